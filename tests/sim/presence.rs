//! Who is in a channel, as one watcher has been told.
//!
//! In: joins and leaves as they come, and answers to presence commands. Out: the set of clients that the watcher
//! believes to be there. Claims: of one client a join is followed by a leave and a leave by a join; whoever asked for
//! presence once and applies what it hears knows who is there when everything is quiet.

use std::collections::{BTreeMap, BTreeSet};

/// See the file's header.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    /// The last that was heard of each client: it is there.
    heard: BTreeMap<String, bool>,
    /// The last answer, and what was heard behind it.
    answered: Option<BTreeSet<String>>,
    /// Some changes are not told.
    partial: bool,
    /// The last that was heard of anybody.
    last: Option<(String, bool)>,
}

impl Roster {
    pub(crate) fn new(partial: bool) -> Self {
        Roster { partial, ..Roster::default() }
    }

    /// A client came (`there`) or went.
    pub(crate) fn told(&mut self, client: &str, there: bool) {
        self.last = Some((client.to_owned(), there));
        let before = self.heard.insert(client.to_owned(), there);
        assert!(self.partial || before != Some(there), "{client} was told twice of, there: {there}");
        if let Some(answered) = &mut self.answered {
            if there {
                answered.insert(client.to_owned());
            } else {
                answered.remove(client);
            }
        }
    }

    /// The answer to a presence command. What is heard behind it may be older, but then the last of it is not.
    pub(crate) fn answered(&mut self, members: impl Iterator<Item = String>) {
        self.answered = Some(members.collect());
    }

    /// Who is there; none: it has not asked, or is not told of everyone.
    pub(crate) fn members(&self) -> Option<&BTreeSet<String>> {
        self.answered.as_ref().filter(|_| !self.partial)
    }

    /// Nothing is under way, and whatever waited was told: what was heard last is still so, whatever was left out.
    pub(crate) fn assert_last_is_true(&self, members: &BTreeSet<String>) {
        if let Some((client, there)) = &self.last {
            assert_eq!(members.contains(client), *there, "the last that was told, of {client}, is not so: {members:?}");
        }
    }

    /// Whether some changes are not told.
    pub(crate) const fn is_partial(&self) -> bool {
        self.partial
    }
}
