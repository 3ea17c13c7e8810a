//! Where users are: their connections on one core, and the cores where they have connections.
//!
//! In: connections that come and go with a user id, from the sessions of this core ([`LocalUsers`]) and as
//! `UserJoin` and `UserLeave` from all cores to the user's owner ([`UserCores`]). Out: whom a call about a user
//! concerns.
//! Invariants: a core tells the owner of a user's first and last connection and of nothing between; both messages
//! and the calls passed on travel lanes in order, so a call finds every connection whose `UserJoin` came before it.
//!
//! ```text
//! users   [ ann: 2 ]            first link of each user's ring
//! links   2 <-> 7 <-> 4 <-> 2   connections by slot, a ring per user: any of them leaves in constant time
//! ```
//! Bounds: as many links as connection slots, as many users as connections.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::hash::BuildHasher;

use foldhash::quality::FixedState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::ids::{ConnId, CoreId};
use crate::names::Names;
use crate::slots::Slots;

/// The connections of one core that have a user id.
#[derive(Debug)]
pub struct LocalUsers {
    users: Slots<LocalUser>,
    names: Names,
    /// By connection slot.
    links: Vec<Option<Link>>,
}

#[derive(Debug)]
struct LocalUser {
    name: Box<str>,
    /// Slot of one of its connections.
    first: u32,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    user: u32,
    generation: u32,
    previous: u32,
    next: u32,
}

impl LocalUsers {
    /// No users. `seed` is secret: clients choose user ids.
    pub fn new(seed: u64) -> Self {
        LocalUsers { users: Slots::new(), names: Names::new(seed), links: Vec::new() }
    }

    /// Notes a connection of a user. True: it is the user's first on this core; tell the owner. A connection that is
    /// noted already stays with its user.
    pub fn insert(&mut self, user: &str, conn: ConnId) -> bool {
        let ConnId { slot, generation } = conn;
        if self.links.len() <= slot as usize {
            self.links.resize(slot as usize + 1, None);
        }
        if self.links[slot as usize].is_some() {
            return false;
        }
        let known = self.names.find(user, |user| name_at(&self.users, user));
        let ring = known.and_then(|at| self.users.at(at).map(|(_, user)| (at, user.first)));
        let Some((at, next)) = ring else {
            let (at, _) = self.users.insert(LocalUser { name: user.into(), first: slot });
            self.names.insert(user, at, |user| name_at(&self.users, user));
            self.links[slot as usize] = Some(Link { user: at, generation, previous: slot, next: slot });
            return true;
        };
        let previous = self.link(next).map_or(next, |link| link.previous);
        self.links[slot as usize] = Some(Link { user: at, generation, previous, next });
        self.change(previous, |link| link.next = slot);
        self.change(next, |link| link.previous = slot);
        false
    }

    /// Forgets a connection. Some: it was this user's last on this core; tell the owner.
    pub fn remove(&mut self, conn: ConnId) -> Option<Box<str>> {
        let place = self.links.get_mut(conn.slot as usize)?;
        let link = place.filter(|link| link.generation == conn.generation)?;
        *place = None;
        if link.next == conn.slot {
            let (generation, user) = self.users.at(link.user)?;
            self.names.remove(&user.name, link.user);
            return self.users.remove(link.user, generation).map(|user| user.name);
        }
        self.change(link.previous, |neighbour| neighbour.next = link.next);
        self.change(link.next, |neighbour| neighbour.previous = link.previous);
        if let Some(user) = self.users.at_mut(link.user) {
            user.first = link.next;
        }
        None
    }

    /// The connections of a user, in no order.
    pub fn connections(&self, user: &str) -> impl Iterator<Item = ConnId> {
        let first = self
            .names
            .find(user, |user| name_at(&self.users, user))
            .and_then(|at| self.users.at(at))
            .map(|(_, user)| user.first);
        let ring = core::iter::successors(first, move |slot| {
            let next = self.link(*slot)?.next;
            (Some(next) != first).then_some(next)
        });
        ring.filter_map(|slot| self.link(slot).map(|link| ConnId { slot, generation: link.generation }))
    }

    /// Users with a connection here.
    pub fn len(&self) -> u32 {
        self.users.len()
    }

    /// Whether nobody with a user id is here.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    fn link(&self, slot: u32) -> Option<&Link> {
        self.links.get(slot as usize)?.as_ref()
    }

    fn change(&mut self, slot: u32, change: impl FnOnce(&mut Link)) {
        if let Some(Some(link)) = self.links.get_mut(slot as usize) {
            change(link);
        }
    }
}

fn name_at(users: &Slots<LocalUser>, slot: u32) -> &str {
    users.at(slot).map_or("", |(_, user)| &user.name)
}

/// At the owner of users: the cores where they have connections.
#[derive(Debug)]
pub struct UserCores {
    users: HashTable<Spread>,
    hasher: FixedState,
}

#[derive(Debug)]
struct Spread {
    user: Box<str>,
    /// In the order in which they came.
    cores: Vec<CoreId>,
}

impl UserCores {
    /// No users. `seed` is secret: clients choose user ids.
    pub fn new(seed: u64) -> Self {
        UserCores { users: HashTable::new(), hasher: FixedState::with_seed(seed) }
    }

    /// A core has a first connection of the user.
    pub fn join(&mut self, user: Box<str>, core: CoreId) {
        let hasher = &self.hasher;
        let hash = hasher.hash_one(&*user);
        match self.users.entry(hash, |known| known.user == user, |known| hasher.hash_one(&*known.user)) {
            Entry::Occupied(mut place) => {
                let cores = &mut place.get_mut().cores;
                if !cores.contains(&core) {
                    cores.push(core);
                }
            }
            Entry::Vacant(place) => drop(place.insert(Spread { user, cores: [core].into() })),
        }
    }

    /// The core's last connection of the user has gone.
    pub fn leave(&mut self, user: &str, core: CoreId) {
        let Ok(mut place) = self.users.find_entry(self.hasher.hash_one(user), |known| &*known.user == user) else {
            return;
        };
        let cores = &mut place.get_mut().cores;
        cores.retain(|known| *known != core);
        if cores.is_empty() {
            place.remove();
        }
    }

    /// The cores where the user has connections.
    pub fn cores(&self, user: &str) -> &[CoreId] {
        self.users
            .find(self.hasher.hash_one(user), |known| &*known.user == user)
            .map_or(&[], |known| known.cores.as_slice())
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
        fn rings_are_plain_sets(steps in prop::collection::vec((0u32..24, 0u8..5), 0..300)) {
            let mut users = LocalUsers::new(4);
            let mut model: BTreeMap<u8, BTreeSet<(u32, u32)>> = BTreeMap::new();
            let mut slots: [(u32, Option<u8>); 24] = [(0, None); 24];
            for (slot, who) in steps {
                let (generation, tenant) = &mut slots[slot as usize];
                let conn = ConnId { slot, generation: *generation };
                match tenant.take() {
                    None => {
                        let own = model.entry(who).or_default();
                        prop_assert_eq!(users.insert(&user(who), conn), own.is_empty());
                        own.insert((slot, *generation));
                        *tenant = Some(who);
                        prop_assert!(!users.insert("somebody else", conn), "noted already");
                    }
                    Some(was) => {
                        let late = ConnId { slot, generation: generation.wrapping_sub(1) };
                        prop_assert_eq!(users.remove(late), None, "a former tenant's name");
                        let own = model.get_mut(&was).expect("noted");
                        own.remove(&(slot, *generation));
                        prop_assert_eq!(users.remove(conn), own.is_empty().then(|| user(was).into()));
                        *generation += 1;
                    }
                }
                for (who, own) in &model {
                    let seen: Vec<_> = users.connections(&user(*who)).map(|c| (c.slot, c.generation)).collect();
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
                    users.join(user(who).into(), CoreId(core));
                    model.entry(who).or_default().insert(core);
                } else {
                    users.leave(&user(who), CoreId(core));
                    model.entry(who).or_default().remove(&core);
                }
                for (who, cores) in &model {
                    let known: BTreeSet<u16> = users.cores(&user(*who)).iter().map(|core| core.0).collect();
                    prop_assert_eq!(&known, cores);
                    prop_assert_eq!(users.cores(&user(*who)).len(), cores.len());
                }
                prop_assert_eq!(users.len(), model.values().filter(|cores| !cores.is_empty()).count());
            }
        }
    }
}
