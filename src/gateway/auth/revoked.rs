//! Ids of tokens that were revoked before their time.
//!
//! In: ids from the server API. Out: whether a token's id is among them. Bounded: over the limit the ids that would
//! expire soonest are forgotten, counted; expired ones are dropped whenever one is added or the numbers are read.
//! Invariants: an entry costs the same however long its id is (a digest is kept); while nothing is revoked a look-up
//! is one atomic load, otherwise a read lock that only a revocation holds against it, for the time of one insertion.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use aws_lc_rs::digest::{SHA256, digest};

type Id = [u8; 32];

/// The table.
#[derive(Debug, Default)]
pub struct Revoked {
    /// Entries now; read without the lock.
    count: AtomicUsize,
    entries: RwLock<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    until_s: HashMap<Id, u64>,
    /// The same, soonest end first.
    by_end: BTreeSet<(u64, Id)>,
}

/// Nothing is revoked while this is held, so what is handed on under it is in front of what a revocation says next.
#[derive(Debug)]
pub struct Gate<'a>(RwLockReadGuard<'a, Entries>);

impl Gate<'_> {
    /// Whether the id is revoked at this time.
    pub fn contains(&self, token_id: &str, now_unix_s: u64) -> bool {
        !token_id.is_empty() && self.0.until_s.get(&id(token_id)).is_some_and(|until_s| *until_s > now_unix_s)
    }
}

impl Revoked {
    /// Remembers an id until its tokens expire anyway (seconds since 1970; 0: as long as there is room). Gives how
    /// many others had to be forgotten early.
    pub fn add(&self, token_id: &str, until_unix_s: u64, now_unix_s: u64, entries_max: usize) -> u64 {
        let until_s = if until_unix_s == 0 { u64::MAX } else { until_unix_s };
        let id = id(token_id);
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.drop_expired(now_unix_s);
        if until_s > now_unix_s {
            // Said twice: the later end counts.
            let known = entries.until_s.get(&id).copied();
            let until_s = known.map_or(until_s, |known| known.max(until_s));
            if let Some(known) = known {
                entries.by_end.remove(&(known, id));
            }
            entries.until_s.insert(id, until_s);
            entries.by_end.insert((until_s, id));
        }
        let mut forgotten = 0;
        while entries.until_s.len() > entries_max && entries.forget_first() {
            forgotten += 1;
        }
        self.count.store(entries.until_s.len(), Ordering::Release);
        forgotten
    }

    /// Whether the id is revoked at this time; an empty id never is.
    pub fn contains(&self, token_id: &str, now_unix_s: u64) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.gate().contains(token_id, now_unix_s)
    }

    /// Holds off revocations.
    pub fn gate(&self) -> Gate<'_> {
        Gate(self.entries.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Drops what has expired and gives how many are left.
    pub fn sweep(&self, now_unix_s: u64) -> usize {
        if self.count.load(Ordering::Acquire) > 0 {
            let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
            entries.drop_expired(now_unix_s);
            self.count.store(entries.until_s.len(), Ordering::Release);
        }
        self.count.load(Ordering::Acquire)
    }
}

impl Entries {
    fn drop_expired(&mut self, now_unix_s: u64) {
        while self.by_end.first().is_some_and(|(until_s, _)| *until_s <= now_unix_s) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) -> bool {
        let Some((_, id)) = self.by_end.pop_first() else { return false };
        self.until_s.remove(&id).is_some()
    }
}

fn id(token_id: &str) -> Id {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, token_id.as_bytes()).as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_revoked_id_is_known_until_its_end() {
        let revoked = Revoked::default();
        assert!(!revoked.contains("a", 100));
        assert_eq!(revoked.add("a", 200, 100, 10), 0);
        assert_eq!(revoked.add("forever", 0, 100, 10), 0);
        assert!(revoked.contains("a", 199) && !revoked.contains("a", 200) && !revoked.contains("b", 100));
        assert!(!revoked.contains("", 100));
        assert_eq!((revoked.sweep(199), revoked.sweep(200)), (2, 1));
        assert!(revoked.contains("forever", u64::MAX - 1));
        assert_eq!(revoked.add("past", 300, 300, 10), 0);
        assert_eq!(revoked.sweep(300), 1);
        // An end that comes closer is not taken: the other revocation still wants the later one.
        revoked.add("c", 500, 300, 10);
        revoked.add("c", 400, 300, 10);
        assert!(revoked.contains("c", 450));
    }

    #[test]
    fn over_the_limit_the_soonest_to_expire_is_forgotten() {
        let revoked = Revoked::default();
        for (id, until_s) in [("c", 300), ("a", 100), ("b", 200)] {
            assert_eq!(revoked.add(id, until_s, 0, 3), 0);
        }
        assert_eq!(revoked.add("d", 400, 0, 3), 1);
        assert_eq!(["a", "b", "c", "d"].map(|id| revoked.contains(id, 0)), [false, true, true, true]);
        assert_eq!(revoked.add("e", 150, 0, 3), 1, "the new one is itself the soonest");
        assert!(!revoked.contains("e", 0) && revoked.contains("b", 0));
        assert_eq!(revoked.add("f", 900, 0, 0), 4, "no room at all");
        assert_eq!(revoked.sweep(0), 0);
    }

    proptest! {
        #[test]
        fn it_does_what_a_plain_list_does(steps in proptest::collection::vec((0u8..6, 1u64..40, 0u64..4), 1..60)) {
            let revoked = Revoked::default();
            let mut model: Vec<(String, u64)> = Vec::new();
            let mut now = 0;
            for (id, until, later) in steps {
                now += later;
                let id = id.to_string();
                revoked.add(&id, now + until, now, 4);
                model.retain(|(_, end)| *end > now);
                match model.iter_mut().find(|(own, _)| *own == id) {
                    Some((_, end)) => *end = (*end).max(now + until),
                    None => model.push((id, now + until)),
                }
                if model.len() > 4 {
                    let soonest = model.iter().map(|(_, end)| *end).min().unwrap_or_default();
                    // Which of several with the same end goes is not promised: ask.
                    let gone = model.iter().position(|(own, end)| *end == soonest && !revoked.contains(own, now));
                    prop_assert!(gone.is_some(), "nothing with the soonest end is gone");
                    model.remove(gone.unwrap_or_default());
                }
                prop_assert_eq!(revoked.sweep(now), model.len());
                for (own, end) in &model {
                    prop_assert!(revoked.contains(own, now) && !revoked.contains(own, *end));
                }
            }
        }
    }
}
