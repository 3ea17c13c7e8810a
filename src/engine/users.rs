//! Where users are: their connections on one core, and the cores where they have connections.
//!
//! In: connections that come and go with a user id, from the sessions of this core ([`LocalUsers`]) and as
//! `UserJoin` and `UserLeave` from all cores to the user's owner ([`UserCores`]). Out: whom a call about a user
//! concerns.
//! Invariants: a core tells the owner of a user's first and last connection and of nothing between; both messages
//! and the calls passed on travel lanes in order, so a call finds every connection whose `UserJoin` came before it.
//!
//! ```text
//! names   [ 2 ]                 a connection of each user, found by the user id that it holds itself
//! links   2 <-> 7 <-> 4 <-> 2   connections by slot, a ring per user: any of them leaves in constant time
//! ```
//! Bounds: as many links as connection slots, as many users as connections. A user id is kept by its connections and,
//! once, by its owner.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::hash::BuildHasher;

use foldhash::quality::FixedState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::ids::CoreId;
use crate::names::Names;

/// The connections of one core that have a user id. Who asks tells the user of a slot: `user_at`.
#[derive(Debug)]
pub struct LocalUsers {
    names: Names,
    /// By connection slot.
    links: Vec<Link>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Link {
    previous: u32,
    /// [`NONE`] while the connection is in no ring.
    next: u32,
}

const NONE: u32 = u32::MAX;
const FREE: Link = Link { previous: NONE, next: NONE };

impl LocalUsers {
    /// No users, with address space for so many connections. `seed` is secret: clients choose user ids.
    pub fn new(seed: u64, slots: usize) -> Self {
        LocalUsers { names: Names::new(seed), links: Vec::with_capacity(slots) }
    }

    /// Notes a connection of a user. True: it is the user's first on this core; tell the owner. A connection that is
    /// noted already stays with its user.
    pub fn insert<'a>(&mut self, user: &str, slot: u32, user_at: impl Fn(u32) -> &'a str) -> bool {
        if self.links.len() <= slot as usize {
            self.links.resize(slot as usize + 1, FREE);
        }
        if self.links[slot as usize] != FREE {
            return false;
        }
        let Some(next) = self.names.find(user, &user_at) else {
            self.names.insert(user, slot, user_at);
            self.links[slot as usize] = Link { previous: slot, next: slot };
            return true;
        };
        let previous = self.link(next).map_or(next, |link| link.previous);
        self.links[slot as usize] = Link { previous, next };
        self.change(previous, |link| link.next = slot);
        self.change(next, |link| link.previous = slot);
        false
    }

    /// Forgets a connection, which still holds its user id. True: it was this user's last on this core; tell the owner.
    pub fn remove<'a>(&mut self, user: &str, slot: u32, user_at: impl Fn(u32) -> &'a str) -> bool {
        let Some(link) = self.link(slot).copied() else { return false };
        self.links[slot as usize] = FREE;
        if link.next == slot {
            self.names.remove(user, slot);
            return true;
        }
        self.change(link.previous, |neighbour| neighbour.next = link.next);
        self.change(link.next, |neighbour| neighbour.previous = link.previous);
        if self.names.find(user, user_at) == Some(slot) {
            self.names.replace(user, slot, link.next);
        }
        false
    }

    /// The slots of a user's connections, in no order.
    pub fn connections<'a>(&self, user: &str, user_at: impl Fn(u32) -> &'a str) -> impl Iterator<Item = u32> {
        let first = self.names.find(user, user_at);
        core::iter::successors(first, move |slot| {
            let next = self.link(*slot)?.next;
            (Some(next) != first).then_some(next)
        })
    }

    /// Users with a connection here.
    pub fn len(&self) -> u32 {
        self.names.len()
    }

    /// Whether nobody with a user id is here.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    fn link(&self, slot: u32) -> Option<&Link> {
        self.links.get(slot as usize).filter(|link| **link != FREE)
    }

    fn change(&mut self, slot: u32, change: impl FnOnce(&mut Link)) {
        if let Some(link) = self.links.get_mut(slot as usize) {
            change(link);
        }
    }
}

/// At the owner of users: the cores where they have connections.
#[derive(Debug)]
pub struct UserCores {
    users: HashTable<Spread>,
    hasher: FixedState,
}

/// A user and its cores, in one allocation: the cores in the order in which they came, 2 bytes each, then the user id, then
/// the number of cores. There is one for each user of the node.
#[derive(Debug)]
struct Spread(Box<[u8]>);

/// Bytes of a core, and of their number.
const CORE_BYTES: usize = 2;

impl Spread {
    fn new(user: &str, cores: impl ExactSizeIterator<Item = CoreId>) -> Self {
        let number = cores.len();
        let mut bytes = Vec::with_capacity((number + 1) * CORE_BYTES + user.len());
        bytes.extend(cores.flat_map(|core| core.0.to_le_bytes()));
        bytes.extend_from_slice(user.as_bytes());
        bytes.extend_from_slice(&(number as u16).to_le_bytes());
        Spread(bytes.into())
    }

    fn parts(&self) -> (&[[u8; CORE_BYTES]], &[u8]) {
        let (rest, number) = self.0.split_last_chunk().unwrap_or((&[], &[0; CORE_BYTES]));
        let (cores, user) = rest.split_at(usize::from(u16::from_le_bytes(*number)) * CORE_BYTES);
        (cores.as_chunks().0, user)
    }

    fn user(&self) -> &[u8] {
        self.parts().1
    }

    fn cores(&self) -> impl ExactSizeIterator<Item = CoreId> + Clone {
        self.parts().0.iter().map(|core| CoreId(u16::from_le_bytes(*core)))
    }
}

impl UserCores {
    /// No users. `seed` is secret: clients choose user ids.
    pub fn new(seed: u64) -> Self {
        UserCores { users: HashTable::new(), hasher: FixedState::with_seed(seed) }
    }

    /// A core has a first connection of the user. True: no core had one.
    pub fn join(&mut self, user: &str, core: CoreId) -> bool {
        let hasher = &self.hasher;
        let hash = hasher.hash_one(user.as_bytes());
        let known = |known: &Spread| known.user() == user.as_bytes();
        match self.users.entry(hash, known, |known| hasher.hash_one(known.user())) {
            Entry::Occupied(mut place) => {
                let cores = place.get().cores();
                if !cores.clone().any(|known| known == core) {
                    let cores: Vec<CoreId> = cores.chain([core]).collect();
                    *place.get_mut() = Spread::new(user, cores.into_iter());
                }
                false
            }
            Entry::Vacant(place) => {
                place.insert(Spread::new(user, [core].into_iter()));
                true
            }
        }
    }

    /// The core's last connection of the user has gone. True: no core has one any more.
    pub fn leave(&mut self, user: &str, core: CoreId) -> bool {
        let known = |known: &Spread| known.user() == user.as_bytes();
        let Ok(mut place) = self.users.find_entry(self.hasher.hash_one(user.as_bytes()), known) else { return false };
        let cores: Vec<CoreId> = place.get().cores().filter(|known| *known != core).collect();
        if cores.is_empty() {
            place.remove();
            true
        } else {
            *place.get_mut() = Spread::new(user, cores.into_iter());
            false
        }
    }

    /// Each user.
    pub fn users(&self) -> impl Iterator<Item = &str> {
        self.users.iter().filter_map(|known| core::str::from_utf8(known.user()).ok())
    }

    /// The cores where the user has connections.
    pub fn cores(&self, user: &str) -> impl Iterator<Item = CoreId> {
        let known = |known: &Spread| known.user() == user.as_bytes();
        let known = self.users.find(self.hasher.hash_one(user.as_bytes()), known);
        known.into_iter().flat_map(Spread::cores)
    }

    /// Users with a connection somewhere whose owner this core is.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::{BTreeMap, BTreeSet};
    use alloc::string::String;
    use proptest::prelude::*;

    fn user(n: u8) -> String {
        alloc::format!("user-{n}")
    }

    proptest! {
        /// Connections as a shard has them: a slot is free, or taken under a generation.
        #[test]
        fn rings_are_plain_sets(steps in prop::collection::vec((0u32..24, 0usize..5), 0..300)) {
            let names: Vec<String> = (0..5).map(user).collect();
            let mut users = LocalUsers::new(4, 0);
            let mut model: BTreeMap<usize, BTreeSet<u32>> = BTreeMap::new();
            let mut slots: [Option<usize>; 24] = [None; 24];
            for (slot, who) in steps {
                let before = slots;
                let user_at = |slot: u32| before[slot as usize].map_or("", |who| &names[who]);
                match before[slot as usize] {
                    None => {
                        slots[slot as usize] = Some(who);
                        let after = slots;
                        let user_at = |slot: u32| after[slot as usize].map_or("", |who| &names[who]);
                        let own = model.entry(who).or_default();
                        prop_assert_eq!(users.insert(&names[who], slot, user_at), own.is_empty());
                        own.insert(slot);
                        prop_assert!(!users.insert("somebody else", slot, user_at), "noted already");
                    }
                    Some(was) => {
                        let own = model.get_mut(&was).expect("noted");
                        own.remove(&slot);
                        prop_assert_eq!(users.remove(&names[was], slot, user_at), own.is_empty());
                        prop_assert!(!users.remove(&names[was], slot, user_at), "gone already");
                        slots[slot as usize] = None;
                    }
                }
                let after = slots;
                let user_at = |slot: u32| after[slot as usize].map_or("", |who| &names[who]);
                for (who, own) in &model {
                    let seen: Vec<u32> = users.connections(&names[*who], user_at).collect();
                    prop_assert_eq!(seen.len(), own.len());
                    prop_assert_eq!(&seen.into_iter().collect::<BTreeSet<_>>(), own);
                }
                prop_assert_eq!(users.len() as usize, model.values().filter(|own| !own.is_empty()).count());
            }
        }

        #[test]
        fn cores_are_plain_sets(steps in prop::collection::vec((any::<bool>(), 0u8..4, 0u16..5), 0..200)) {
            let mut users = UserCores::new(4);
            let mut model: BTreeMap<u8, BTreeSet<u16>> = BTreeMap::new();
            for (joins, who, core) in steps {
                if joins {
                    users.join(&user(who), CoreId(core));
                    model.entry(who).or_default().insert(core);
                } else {
                    users.leave(&user(who), CoreId(core));
                    model.entry(who).or_default().remove(&core);
                }
                for (who, cores) in &model {
                    let known: BTreeSet<u16> = users.cores(&user(*who)).map(|core| core.0).collect();
                    prop_assert_eq!(&known, cores);
                    prop_assert_eq!(users.cores(&user(*who)).count(), cores.len());
                }
                prop_assert_eq!(users.len(), model.values().filter(|cores| !cores.is_empty()).count());
            }
        }
    }
}
