//! How many connections each user has on this node, at the user's owner, where `connections_per_user_max` says that they are to
//! be counted.
//!
//! In: connections that want to come in, and those that go, from all cores of the node. Out: whether there is room on this node,
//! and what the engine of a fleet is to know.
//! Invariants: a connection counts from when it asked; the engine is told absolute numbers, so that one that was lost is mended by
//! the next; behind the last answer that a user waits for, the engine knows the number that holds.
//! Bound: as many entries as users with a connection, or with one that waits to come in.

use alloc::boxed::Box;
use core::hash::BuildHasher;

use foldhash::quality::FixedState;
use hashbrown::HashTable;

/// See the file's header.
#[derive(Debug)]
pub struct UserPlaces {
    users: HashTable<Box<Places>>,
    hasher: FixedState,
}

#[derive(Debug)]
struct Places {
    user: Box<str>,
    /// Connections, those that wait for the engine's word included.
    count: u32,
    /// Of them, those that wait.
    waiting: u32,
    /// What the engine was told last may be more than `count`.
    is_stale: bool,
}

impl UserPlaces {
    /// Nobody. `seed` is secret: clients choose user ids.
    pub fn new(seed: u64) -> Self {
        UserPlaces { users: HashTable::new(), hasher: FixedState::with_seed(seed) }
    }

    /// One more connection wants to come in; `waits`: the engine is asked. Returns how many there are with it; none: there is
    /// no room on this node.
    pub fn enter(&mut self, user: &str, max: u32, waits: bool) -> Option<u32> {
        let (hasher, hash) = (&self.hasher, self.hasher.hash_one(user));
        let places = self
            .users
            .entry(hash, |places| *places.user == *user, |places| hasher.hash_one(&*places.user))
            .or_insert_with(|| Box::new(Places { user: user.into(), count: 0, waiting: 0, is_stale: false }))
            .into_mut();
        if places.count >= max {
            return None;
        }
        places.count += 1;
        places.waiting += u32::from(waits);
        Some(places.count)
    }

    /// The engine has answered, or cannot, in which case the connection comes in. Some: it is to be told this number.
    pub fn answered(&mut self, user: &str, comes_in: bool) -> Option<u32> {
        let places = self.find(user)?;
        places.waiting = places.waiting.saturating_sub(1);
        if !comes_in {
            places.count = places.count.saturating_sub(1);
            // Those who asked behind it counted it in.
            places.is_stale |= places.waiting > 0;
        }
        let tell = (places.waiting == 0 && core::mem::take(&mut places.is_stale)).then_some(places.count);
        self.forget_if_empty(user);
        tell
    }

    /// A connection has gone. Returns how many are left.
    pub fn leave(&mut self, user: &str) -> u32 {
        let Some(places) = self.find(user) else { return 0 };
        places.count = places.count.saturating_sub(1);
        // Who waits may be refused, and was counted in.
        places.is_stale |= places.waiting > 0;
        let count = places.count;
        self.forget_if_empty(user);
        count
    }

    /// The engine is told how many there are: this many.
    pub fn tell(&mut self, user: &str) -> u32 {
        let Some(places) = self.find(user) else { return 0 };
        // As above.
        places.is_stale |= places.waiting > 0;
        places.count
    }

    /// How many there are.
    pub fn count(&self, user: &str) -> u32 {
        let found = self.users.find(self.hasher.hash_one(user), |places| *places.user == *user);
        found.map_or(0, |places| places.count)
    }

    /// Each user of whom something is known.
    pub fn users(&self) -> impl Iterator<Item = &str> {
        self.users.iter().map(|places| &*places.user)
    }

    /// How many those are.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether nobody is counted.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    fn find(&mut self, user: &str) -> Option<&mut Places> {
        let found = self.users.find_mut(self.hasher.hash_one(user), |places| *places.user == *user);
        found.map(|places| &mut **places)
    }

    fn forget_if_empty(&mut self, user: &str) {
        let found = self.users.find_entry(self.hasher.hash_one(user), |places| *places.user == *user);
        if let Ok(place) = found
            && (place.get().count, place.get().waiting) == (0, 0)
        {
            place.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::VecDeque;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    const MAX: u32 = 4;

    /// What is on its way to the engine, in order.
    #[derive(Clone, Copy, Debug)]
    enum Said {
        Enter(u32),
        Set(u32),
    }

    proptest! {
        /// One node's part and the engine's, which answers late: others come and go at the engine meanwhile.
        #[test]
        fn the_engine_knows_the_number_when_nothing_waits(steps in prop::collection::vec((0u8..7, 0u32..3), 0..200)) {
            let mut places = UserPlaces::new(1);
            let (mut said, mut answers) = (VecDeque::new(), VecDeque::new());
            let (mut engine, mut others, mut open) = (0, 0, 0);
            for (what, number) in steps.into_iter().chain(core::iter::repeat_n((2, 0), 400)) {
                match what {
                    0 => {
                        let with_it = places.enter("u", MAX, true);
                        prop_assert_eq!(with_it.is_none(), open + said_enters(&said) + answers.len() as u32 >= MAX);
                        said.extend(with_it.map(Said::Enter));
                    }
                    1 if open > 0 => {
                        open -= 1;
                        said.push_back(Said::Set(places.leave("u")));
                    }
                    2 | 3 => match said.pop_front() {
                        Some(Said::Set(mine)) => engine = mine,
                        Some(Said::Enter(mine)) => {
                            let fits = others + mine <= MAX;
                            engine = if fits { mine } else { engine };
                            answers.push_back(fits);
                        }
                        None => {
                            if let Some(fits) = answers.pop_front() {
                                open += u32::from(fits);
                                said.extend(places.answered("u", fits).map(Said::Set));
                            }
                        }
                    },
                    4 => {
                        if let Some(fits) = answers.pop_front() {
                            open += u32::from(fits);
                            said.extend(places.answered("u", fits).map(Said::Set));
                        }
                    }
                    5 => said.push_back(Said::Set(places.tell("u"))),
                    _ => others = number,
                }
            }
            prop_assert!(said.is_empty() && answers.is_empty());
            prop_assert_eq!((places.count("u"), engine), (open, open));
            prop_assert_eq!(places.is_empty(), open == 0);
        }
    }

    fn said_enters(said: &VecDeque<Said>) -> u32 {
        said.iter().filter(|said| matches!(said, Said::Enter(_))).count() as u32
    }

    #[test]
    fn a_node_alone_counts_exactly() {
        let mut places = UserPlaces::new(1);
        let entered: Vec<_> = (0..6).map(|_| places.enter("u", MAX, false)).collect();
        assert_eq!(entered, [Some(1), Some(2), Some(3), Some(4), None, None]);
        assert_eq!(
            (places.enter("v", MAX, false), places.leave("u"), places.enter("u", MAX, false)),
            (Some(1), 3, Some(4))
        );
        (0..4).for_each(|_| assert!(places.leave("u") < 4));
        assert_eq!((places.count("u"), places.len()), (0, 1));
    }
}
