//! The scripts that the engine runs, one per kind of request, with what is common to them put in front.
//!
//! In: files in `lua/`. Out: text and SHA-1 of each. Invariant: a script's keys carry one hash tag, and what it says is
//! said on channels of that tag, so it runs on one primary whole or not at all.

use std::fmt::Write as _;
use std::sync::LazyLock;

use aws_lc_rs::digest;

const POSITION: &str = include_str!("lua/position.lua");
const SPREAD: &str = include_str!("lua/spread.lua");
const KEPT: &str = include_str!("lua/kept.lua");
const NOW: &str = include_str!("lua/now.lua");
/// Redis wants to know that a script without this line may touch what it likes; with it, it checks before it begins.
const FIRST_LINE: &str = "#!lua\n";

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

    fn parts(self) -> &'static [&'static str] {
        match self {
            Script::Publish => &[POSITION, SPREAD, include_str!("lua/publish.lua")],
            Script::Follow => &[POSITION, KEPT, include_str!("lua/follow.lua")],
            Script::Read => &[POSITION, KEPT, include_str!("lua/read.lua")],
            Script::Tell => &[FIRST_LINE, SPREAD, include_str!("lua/tell.lua")],
            Script::Order => &[FIRST_LINE, SPREAD, include_str!("lua/order.lua")],
            Script::Acquire => &[include_str!("lua/acquire.lua")],
            Script::Renew => &[include_str!("lua/renew.lua")],
            Script::Park => &[include_str!("lua/park.lua")],
            Script::Describe => &[FIRST_LINE, NOW, include_str!("lua/describe.lua")],
            Script::Nodes => &[FIRST_LINE, NOW, include_str!("lua/nodes.lua")],
        }
    }
}

static SCRIPTS: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
    let script = |script: Script| {
        let text = script.parts().concat();
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
            assert!(script.text().starts_with("#!lua\n"), "{script:?}");
            assert_eq!(script.text().matches("#!lua").count(), 1, "{script:?}");
            assert_eq!(script.sha().len(), 40);
        }
    }
}
