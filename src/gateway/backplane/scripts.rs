//! The scripts that the engine runs, one per kind of request, with what is common to them put where they name it.
//!
//! In: files in `lua/`. Out: text and SHA-1 of each. Invariant: a script's keys carry one hash tag, and what it says is
//! said on channels of that tag, so it runs on one primary whole or not at all.

use std::fmt::Write as _;
use std::sync::LazyLock;

use aws_lc_rs::digest;

/// What a line `-- include <name>` stands for.
const COMMON: [(&str, &str); 4] = [
    ("-- include position.lua\n", include_str!("lua/position.lua")),
    ("-- include spread.lua\n", include_str!("lua/spread.lua")),
    ("-- include kept.lua\n", include_str!("lua/kept.lua")),
    ("-- include now.lua\n", include_str!("lua/now.lua")),
];

/// One script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the head of each file says what it does")]
pub(super) enum Script {
    Publish,
    Follow,
    Read,
    Tell,
    Order,
    Acquire,
    Renew,
    Park,
    Describe,
    Nodes,
}

impl Script {
    /// All of them.
    pub(super) const ALL: [Script; 10] = [
        Script::Publish,
        Script::Follow,
        Script::Read,
        Script::Tell,
        Script::Order,
        Script::Acquire,
        Script::Renew,
        Script::Park,
        Script::Describe,
        Script::Nodes,
    ];

    /// Its whole text.
    pub(super) fn text(self) -> &'static str {
        &SCRIPTS[self as usize].0
    }

    /// SHA-1 of the text in hexadecimal, by which a server that has it knows it.
    pub(super) fn sha(self) -> &'static str {
        &SCRIPTS[self as usize].1
    }

    fn source(self) -> &'static str {
        match self {
            Script::Publish => include_str!("lua/publish.lua"),
            Script::Follow => include_str!("lua/follow.lua"),
            Script::Read => include_str!("lua/read.lua"),
            Script::Tell => include_str!("lua/tell.lua"),
            Script::Order => include_str!("lua/order.lua"),
            Script::Acquire => include_str!("lua/acquire.lua"),
            Script::Renew => include_str!("lua/renew.lua"),
            Script::Park => include_str!("lua/park.lua"),
            Script::Describe => include_str!("lua/describe.lua"),
            Script::Nodes => include_str!("lua/nodes.lua"),
        }
    }
}

static SCRIPTS: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
    let script = |script: Script| {
        let text = COMMON.iter().fold(script.source().to_owned(), |text, (line, part)| text.replace(line, part));
        let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
        let sha = digest.as_ref().iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        (text, sha)
    };
    Script::ALL.map(script).into()
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_script_has_one_first_line_and_a_sum() {
        for script in Script::ALL {
            // With this line a server checks before it begins what a script may do.
            assert!(script.text().starts_with("#!lua\n"), "{script:?}");
            assert!(!script.text().contains("-- include"), "{script:?}");
            assert_eq!(script.text().matches("#!lua").count(), 1, "{script:?}");
            assert_eq!(script.sha().len(), 40);
        }
    }
}
