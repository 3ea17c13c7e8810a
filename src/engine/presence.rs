//! Who is subscribed to one channel: members by connection, counts by user.
//!
//! In: members that come and go, from every core, in lane order. Out: the set, its counts in constant time, and which
//! changes are worth telling watchers.
//!
//! Invariants: one member per (core, connection); a coming or going costs the same whatever the size of the set (but
//! for the growth of its table); what watchers are told of a channel is in the order in which it happened.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hash::BuildHasher;

use foldhash::quality::FixedState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::ids::{ConnId, CoreId};
use crate::namespace::{JoinLeaveAbove, Namespace};
use crate::publication::JoinLeave;

/// A client in a channel, as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its core.
    pub core: CoreId,
    /// Its connection there.
    pub conn: ConnId,
    /// Client id.
    pub client: Box<str>,
    /// User id; empty: anonymous.
    pub user: Box<str>,
    /// Info of the connection; empty: none.
    pub conn_info: Box<[u8]>,
    /// Info of the subscription; empty: none.
    pub chan_info: Box<[u8]>,
}

impl Member {
    /// Bytes of memory this member takes, without the allocator's own.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.client.len() + self.user.len() + self.conn_info.len() + self.chan_info.len()
    }
}

/// A table that is this much emptier than its room gives memory back.
const SPARSE_FACTOR: usize = 8;
/// Room that a table keeps in any case.
const ROOM_MIN: usize = 64;

/// The members of one channel.
#[derive(Debug)]
pub struct Members {
    members: HashTable<Present>,
    users: HashTable<User>,
    hasher: FixedState,
    gate: Gate,
}

/// The key stands beside the member, so that looking for one touches no other member's memory.
#[derive(Debug)]
struct Present {
    conn: ConnId,
    core: CoreId,
    told: bool,
    member: Arc<Member>,
}

/// A user with a connection here. One of its members stands for its name, the first to come: most users have one, and
/// its memory is at hand when it goes. When it goes before others, it stays in memory until its user has gone.
#[derive(Debug)]
struct User {
    known_by: Arc<Member>,
    connections: u32,
}

/// A member that has gone.
#[derive(Debug)]
pub struct Gone {
    /// Who.
    pub member: Arc<Member>,
    /// Whether its going is to be told.
    pub told: bool,
}

impl Members {
    /// Nobody. `seed` is secret: clients choose user ids.
    pub fn new(seed: u64) -> Self {
        Members {
            members: HashTable::new(),
            users: HashTable::new(),
            hasher: FixedState::with_seed(seed),
            gate: Gate::default(),
        }
    }

    /// Takes a member in; `told`: its going will be. False: the connection was a member already, and is now this one.
    pub fn join(&mut self, member: Arc<Member>, told: bool) -> bool {
        let (core, conn) = (member.core, member.conn);
        self.count_in(&member);
        let hasher = &self.hasher;
        let entry = self.members.entry(
            key_hash(hasher, core, conn),
            |present| present.is(core, conn),
            |present| key_hash(hasher, present.core, present.conn),
        );
        let present = Present { conn, core, told, member };
        match entry {
            Entry::Vacant(place) => {
                place.insert(present);
                true
            }
            Entry::Occupied(mut place) => {
                let before = core::mem::replace(place.get_mut(), present);
                self.count_out(&before.member);
                false
            }
        }
    }

    /// Takes a connection's member out; none: it was no member.
    pub fn leave(&mut self, core: CoreId, conn: ConnId) -> Option<Gone> {
        let hash = key_hash(&self.hasher, core, conn);
        let place = self.members.find_entry(hash, |present| present.is(core, conn)).ok()?;
        let (Present { told, member, .. }, _) = place.remove();
        self.count_out(&member);
        if is_sparse(self.members.len(), self.members.capacity()) {
            let hasher = &self.hasher;
            let room = self.members.len() * 2;
            self.members.shrink_to(room, |present| key_hash(hasher, present.core, present.conn));
        }
        Some(Gone { member, told })
    }

    /// Takes all members of a core out, looking at everyone: for cores that give the channel up as a whole.
    pub fn leave_core(&mut self, core: CoreId) -> Vec<Gone> {
        let gone: Vec<Gone> = self
            .members
            .extract_if(|present| present.core == core)
            .map(|Present { told, member, .. }| Gone { member, told })
            .collect();
        gone.iter().for_each(|gone| self.count_out(&gone.member));
        gone
    }

    /// Connections.
    pub fn clients(&self) -> u32 {
        self.members.len() as u32
    }

    /// Distinct users; all anonymous ones are one.
    pub fn users(&self) -> u32 {
        self.users.len() as u32
    }

    /// Whether nobody is there and no change waits: nothing is lost by dropping the set.
    pub fn is_idle(&self) -> bool {
        self.members.is_empty() && !self.gate.listed
    }

    /// Everyone, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.members.iter().map(|present| &present.member)
    }

    /// What comes of a change that is to be told, now that it has happened.
    pub fn offer(&mut self, change: Change, namespace: &Namespace, now_ms: u64) -> Offered {
        // Both sides of the bound alike: the member that was told of as the last to come is told of when it goes.
        let members = self.clients() + u32::from(change.kind == JoinLeave::Leave);
        self.gate.offer(change, members, namespace, now_ms)
    }

    /// The change that waits, once its time has come.
    pub fn due(&mut self, namespace: &Namespace, now_ms: u64) -> Due {
        self.gate.due(namespace, now_ms)
    }

    fn count_in(&mut self, member: &Arc<Member>) {
        let hasher = &self.hasher;
        self.users
            .entry(hasher.hash_one(&*member.user), |known| known.is_of(member), |known| known.hash(hasher))
            .or_insert_with(|| User { known_by: Arc::clone(member), connections: 0 })
            .get_mut()
            .connections += 1;
    }

    fn count_out(&mut self, member: &Arc<Member>) {
        let hash = self.hasher.hash_one(&*member.user);
        let Ok(mut place) = self.users.find_entry(hash, |known| known.is_of(member)) else { return };
        place.get_mut().connections -= 1;
        if place.get().connections > 0 {
            return;
        }
        place.remove();
        if is_sparse(self.users.len(), self.users.capacity()) {
            let (hasher, room) = (&self.hasher, self.users.len() * 2);
            self.users.shrink_to(room, |known| known.hash(hasher));
        }
    }
}

impl Present {
    fn is(&self, core: CoreId, conn: ConnId) -> bool {
        self.conn == conn && self.core == core
    }
}

impl User {
    fn is_of(&self, member: &Arc<Member>) -> bool {
        Arc::ptr_eq(&self.known_by, member) || self.known_by.user == member.user
    }

    fn hash(&self, hasher: &FixedState) -> u64 {
        hasher.hash_one(&*self.known_by.user)
    }
}

fn key_hash(hasher: &FixedState, core: CoreId, conn: ConnId) -> u64 {
    hasher.hash_one((core, conn))
}

const fn is_sparse(len: usize, room: usize) -> bool {
    room > ROOM_MIN && len * SPARSE_FACTOR < room
}

/// Somebody's coming or going.
#[derive(Clone, Debug)]
pub struct Change {
    /// Which of the two.
    pub kind: JoinLeave,
    /// Whose.
    pub member: Arc<Member>,
}

/// What is to be done about a change.
#[derive(Debug)]
pub enum Offered {
    /// Tell watchers now. `dropped` changes before it will never be told.
    Tell {
        /// This one.
        change: Change,
        /// 0 or 1.
        dropped: u64,
    },
    /// It waits for the end of the interval.
    Waits {
        /// Put the channel on the list of those where something waits, and ask [`Members::due`]; it is not there yet.
        list: bool,
        /// 1 if another change waited, which will never be told.
        dropped: u64,
    },
    /// It is not told.
    Dropped,
}

/// What is to be done about a channel with a change that waits.
#[derive(Debug)]
pub enum Due {
    /// Tell it now, and take the channel off the list.
    Tell(Change),
    /// Its time has not come.
    Waits,
    /// Nothing waits any more: take the channel off the list.
    Nothing,
}

/// Which changes of a large channel are told: at most one per interval, and of several the latest.
#[derive(Debug, Default)]
struct Gate {
    told_ms: Option<u64>,
    waiting: Option<Change>,
    listed: bool,
}

impl Gate {
    fn offer(&mut self, change: Change, members: u32, namespace: &Namespace, now_ms: u64) -> Offered {
        let small = members <= namespace.join_leave_members_max;
        if !small && namespace.join_leave_above == JoinLeaveAbove::None {
            return Offered::Dropped;
        }
        if small || self.is_over(namespace, now_ms) {
            // What waited is older than this one, and would contradict it.
            let dropped = u64::from(self.waiting.take().is_some());
            self.told_ms = Some(now_ms);
            return Offered::Tell { change, dropped };
        }
        let dropped = u64::from(self.waiting.replace(change).is_some());
        Offered::Waits { list: !core::mem::replace(&mut self.listed, true), dropped }
    }

    fn due(&mut self, namespace: &Namespace, now_ms: u64) -> Due {
        if self.waiting.is_some() && !self.is_over(namespace, now_ms) {
            return Due::Waits;
        }
        self.listed = false;
        let Some(change) = self.waiting.take() else { return Due::Nothing };
        self.told_ms = Some(now_ms);
        Due::Tell(change)
    }

    /// Whether the interval since the last told change is over.
    fn is_over(&self, namespace: &Namespace, now_ms: u64) -> bool {
        self.told_ms.is_none_or(|told_ms| now_ms >= told_ms + u64::from(namespace.join_leave_interval_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::{BTreeMap, BTreeSet};
    use proptest::prelude::*;

    fn member(core: u16, slot: u32, user: &str) -> Arc<Member> {
        Arc::new(Member {
            core: CoreId(core),
            conn: ConnId { slot, generation: 1 },
            client: alloc::format!("{core}-{slot}").into(),
            user: user.into(),
            conn_info: Box::default(),
            chan_info: Box::default(),
        })
    }

    fn conn(slot: u32) -> ConnId {
        ConnId { slot, generation: 1 }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Join { core: u16, slot: u32, user: u8 },
        Leave { core: u16, slot: u32 },
        LeaveCore(u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0u16..3, 0u32..40, 0u8..6).prop_map(|(core, slot, user)| Step::Join { core, slot, user }),
            4 => (0u16..3, 0u32..40).prop_map(|(core, slot)| Step::Leave { core, slot }),
            1 => (0u16..3).prop_map(Step::LeaveCore),
        ]
    }

    proptest! {
        #[test]
        fn counts_are_those_of_a_plain_map(steps in prop::collection::vec(step(), 0..200)) {
            let mut members = Members::new(9);
            let mut model: BTreeMap<(u16, u32), u8> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Join { core, slot, user } => {
                        let name = alloc::format!("u{user}");
                        let new = members.join(member(core, slot, if user == 0 { "" } else { &name }), true);
                        prop_assert_eq!(new, model.insert((core, slot), user).is_none());
                    }
                    Step::Leave { core, slot } => {
                        let gone = members.leave(CoreId(core), conn(slot));
                        prop_assert_eq!(gone.map(|gone| (gone.member.core.0, gone.member.conn.slot)),
                            model.remove(&(core, slot)).map(|_| (core, slot)));
                    }
                    Step::LeaveCore(core) => {
                        let gone: BTreeSet<_> = members.leave_core(CoreId(core)).iter().map(|g| g.member.conn.slot).collect();
                        let all: BTreeSet<_> = model.keys().filter(|key| key.0 == core).map(|key| key.1).collect();
                        prop_assert_eq!(gone, all);
                        model.retain(|key, _| key.0 != core);
                    }
                }
                let users: BTreeSet<u8> = model.values().copied().collect();
                prop_assert_eq!((members.clients() as usize, members.users() as usize), (model.len(), users.len()));
                let present: BTreeSet<_> = members.iter().map(|m| (m.core.0, m.conn.slot)).collect();
                prop_assert_eq!(present, model.keys().copied().collect::<BTreeSet<_>>());
            }
        }

        /// Above the bound: at most one change per interval, always the latest one, and the last change of all is told.
        #[test]
        fn a_crowd_is_told_of_once_per_interval(pauses in prop::collection::vec(0u64..700, 1..60)) {
            let mut rules = Namespace::closed("");
            rules.join_leave_members_max = 0;
            rules.join_leave_above = JoinLeaveAbove::Coalesce;
            rules.join_leave_interval_ms = 1_000;
            let mut members = Members::new(9);
            let (mut now_ms, mut told, mut waits, mut listed) = (0, Vec::new(), false, false);
            let last = pauses.len() as u32 - 1;
            for (slot, pause_ms) in pauses.into_iter().enumerate() {
                // Ticks between two changes, as the owner's upkeep has them.
                for _ in 0..pause_ms / 100 {
                    now_ms += 100;
                    if !listed {
                        continue;
                    }
                    match members.due(&rules, now_ms) {
                        Due::Waits => prop_assert!(waits),
                        Due::Nothing => {
                            prop_assert!(!waits);
                            listed = false;
                        }
                        Due::Tell(change) => {
                            (waits, listed) = (false, false);
                            prop_assert_eq!(change.member.conn.slot, slot as u32 - 1, "the latest");
                            told.push((now_ms, change.member.conn.slot));
                        }
                    }
                }
                members.join(member(0, slot as u32, "u"), true);
                let change = Change { kind: JoinLeave::Join, member: member(0, slot as u32, "u") };
                match members.offer(change, &rules, now_ms) {
                    Offered::Tell { change, dropped } => {
                        prop_assert_eq!(dropped, u64::from(waits));
                        waits = false;
                        told.push((now_ms, change.member.conn.slot));
                    }
                    Offered::Waits { list, dropped } => {
                        prop_assert_eq!((list, dropped), (!listed, u64::from(waits)));
                        (waits, listed) = (true, true);
                    }
                    Offered::Dropped => prop_assert!(false, "this namespace drops nothing at once"),
                }
            }
            if waits {
                let Due::Tell(change) = members.due(&rules, now_ms + 1_000) else { panic!("the last change is told") };
                told.push((now_ms + 1_000, change.member.conn.slot));
            }
            prop_assert!(told.windows(2).all(|two| two[1].0 >= two[0].0 + 1_000), "{:?}", told);
            prop_assert_eq!(told.last().map(|last| last.1), Some(last));
        }
    }

    #[test]
    fn up_to_the_bound_every_change_is_told_and_above_none() {
        let mut rules = Namespace::closed("");
        rules.join_leave_members_max = 2;
        let mut members = Members::new(9);
        use JoinLeave::{Join, Leave};
        let tells = |members: &mut Members, kind, slot| {
            let member = member(0, slot, "u");
            match kind {
                Join => assert!(members.join(Arc::clone(&member), true)),
                Leave => assert!(members.leave(CoreId(0), conn(slot)).is_some()),
            }
            matches!(members.offer(Change { kind, member }, &rules, 0), Offered::Tell { .. })
        };
        assert!(tells(&mut members, Join, 1));
        assert!(tells(&mut members, Join, 2));
        assert!(!tells(&mut members, Join, 3));
        assert!(!tells(&mut members, Join, 4));
        assert!(!tells(&mut members, Leave, 4));
        assert!(!tells(&mut members, Leave, 3), "its coming was not told either");
        assert!(tells(&mut members, Leave, 2));
        assert!(tells(&mut members, Join, 5));
    }

    #[test]
    fn falling_below_the_bound_drops_what_waited() {
        let mut rules = Namespace::closed("");
        rules.join_leave_members_max = 1;
        rules.join_leave_above = JoinLeaveAbove::Coalesce;
        let mut members = Members::new(9);
        let change = |kind, slot| Change { kind, member: member(0, slot, "u") };
        members.join(member(0, 1, "u"), true);
        assert!(matches!(members.offer(change(JoinLeave::Join, 1), &rules, 0), Offered::Tell { dropped: 0, .. }));
        members.join(member(0, 2, "u"), true);
        assert!(matches!(
            members.offer(change(JoinLeave::Join, 2), &rules, 1),
            Offered::Waits { list: true, dropped: 0 }
        ));
        members.leave(CoreId(0), conn(2));
        assert!(matches!(
            members.offer(change(JoinLeave::Leave, 2), &rules, 2),
            Offered::Waits { list: false, dropped: 1 }
        ));
        members.leave(CoreId(0), conn(1));
        assert!(matches!(members.offer(change(JoinLeave::Leave, 1), &rules, 3), Offered::Tell { dropped: 1, .. }));
        assert!(matches!(members.due(&rules, 5_000), Due::Nothing), "an older change is never told after a newer one");
    }

    #[test]
    fn an_emptied_table_gives_its_room_back() {
        let mut members = Members::new(9);
        for slot in 0..10_000 {
            members.join(member(0, slot, &alloc::format!("u{slot}")), true);
        }
        for slot in 0..9_990 {
            members.leave(CoreId(0), conn(slot));
        }
        assert_eq!((members.clients(), members.users()), (10, 10));
        assert!(members.members.capacity() < 200 && members.users.capacity() < 200);
    }
}
