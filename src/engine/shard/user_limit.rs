//! The limit of connections per user, on this node and over the fleet.
//!
//! In: connect commands of named users whose tokens were good, and ends of their connections, on any core; the engine's word. Out:
//! connections that go on to be let in, or are refused.
//!
//! ```text
//! connect ─> identity ─> the user's owner: room on this node? ─> alone: yes or no
//!                                                            └─> fleet: the engine counts all nodes, in one script ─> yes or no
//! ```
//! Invariants: every connection that was let in is counted once, from before it is let in until it ends; a connection that went
//! while it was asked for is taken out again; without the engine's word who fits on this node is let in (counted), and the engine is
//! told when it can be reached.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use ringway_wire::centrifuge::reply::ClientError;
use ringway_wire::close::CloseReason;

use super::Shard;
use super::connect::Refusal;
use crate::backplane::Room;
use crate::ids::ConnId;
use crate::lane_message::{LaneMessage, UserEntered, UserEntrant, UserPresence};
use crate::metrics::Metric;
use crate::seam::Note;
use crate::session::AskWhat;
use crate::tokens::ConnectClaims;

/// Users of whom the engine may know another number, on one shard. Over: one is forgotten (counted), and the engine may count
/// it too high until it connects here again or this node ends.
const UNSAID_MAX: usize = if cfg!(test) { 8 } else { 262_144 };
/// Of them, those that are told in one tick.
const SAID_PER_TICK: usize = 1_024;

/// Users of whom the engine may know another number than holds: it could not be told, or did not answer.
#[derive(Debug, Default)]
pub(super) struct Unsaid {
    users: BTreeSet<Box<str>>,
    /// Some of them may be told now.
    is_due: bool,
    /// When it was last said that somebody came in unchecked.
    noted_ms: u64,
}

impl Unsaid {
    /// The engine can be reached again.
    pub(super) const fn try_again(&mut self) {
        self.is_due = true;
    }
}

impl Shard {
    /// Whether connections of users are counted.
    pub(super) const fn counts_connections(&self) -> bool {
        self.options.limits.connections_per_user_max > 0
    }

    /// Asks the user's owner whether one more connection may come in.
    pub(super) fn ask_for_place(&mut self, conn: ConnId, claims: ConnectClaims, data: Box<[u8]>) {
        if self.session(conn).is_none() {
            return;
        }
        let number = self.new_request();
        let entrant = UserEntrant { user: claims.user.clone(), from: self.options.core, conn, number };
        self.wait(conn, number, AskWhat::Place { claims: Box::new(claims), data });
        self.lanes.push(self.owner_of(&entrant.user), LaneMessage::UserEnter(entrant.into()));
    }

    /// The owner's answer.
    pub(super) fn user_entered(&mut self, entered: UserEntered) {
        let UserEntered { entrant: UserEntrant { user, conn, number, .. }, room } = entered;
        let waits = self.session_mut(conn).and_then(|session| session.take_ask(number));
        let Some(AskWhat::Place { claims, data }) = waits else {
            if room == Room::Yes {
                self.leave_place(user);
            }
            return;
        };
        match room {
            Room::Yes => {
                if let Some(session) = self.session_mut(conn) {
                    // From here on its end takes it out again.
                    session.identity.user = user;
                }
                self.admit_counted(conn, *claims, data);
            }
            Room::No => self.close(conn, CloseReason::ConnectionLimit),
            Room::Later => self.refuse_connect(conn, &Refusal::of(ClientError::TooManyRequests)),
        }
        self.flush_replies(conn);
    }

    /// A connection that was counted has ended.
    pub(super) fn leave_place(&mut self, user: Box<str>) {
        let presence = UserPresence { user, from: self.options.core };
        self.lanes.push(self.owner_of(&presence.user), LaneMessage::UserExit(presence.into()));
    }

    /// As the user's owner: one more connection wants to come in.
    pub(super) fn owned_user_enter(&mut self, entrant: UserEntrant) {
        let max = self.options.limits.connections_per_user_max;
        let waits = self.owner.is_shared() && self.owner.is_reachable(&entrant.user);
        match self.user_places.enter(&entrant.user, max, waits) {
            None => self.answer_entrant(entrant, Room::No),
            Some(mine) if waits => {
                let (owner, mut around) = self.owner();
                owner.enter_user(entrant, mine, max, &mut around);
            }
            Some(_) => {
                if self.owner.is_shared() {
                    self.entered_unchecked();
                }
                self.answer_entrant(entrant, Room::Yes);
            }
        }
    }

    /// The engine's word; none: it did not say.
    pub(super) fn place_answered(&mut self, entrant: UserEntrant, room: Option<Room>) {
        if room.is_none() {
            self.entered_unchecked();
            // It may know of it, or not.
            self.unsaid(entrant.user.clone());
        }
        let room = room.unwrap_or(Room::Yes);
        if let Some(mine) = self.user_places.answered(&entrant.user, room == Room::Yes) {
            self.set_connections(&entrant.user, mine);
        }
        self.answer_entrant(entrant, room);
    }

    /// As the user's owner: a connection has gone.
    pub(super) fn owned_user_exit(&mut self, presence: &UserPresence) {
        let mine = self.user_places.leave(&presence.user);
        self.set_connections(&presence.user, mine);
    }

    /// Tells the engine how many connections of the user this node has.
    pub(super) fn set_connections(&mut self, user: &str, mine: u32) {
        if self.owner.is_reachable(user) {
            let (owner, mut around) = self.owner();
            owner.set_connections(user, mine, &mut around);
        } else if self.owner.is_shared() {
            self.unsaid(user.into());
        }
    }

    /// What the engine knows of this user may be wrong.
    pub(super) fn unsaid(&mut self, user: Box<str>) {
        let unsaid = &mut self.unsaid;
        unsaid.users.insert(user);
        unsaid.is_due = true;
        if unsaid.users.len() > UNSAID_MAX {
            unsaid.users.pop_first();
            self.metrics.add(Metric::UserLimitForgotten, 1);
        }
    }

    /// Says what can be said by now, some of it; once per tick.
    pub(super) fn say_unsaid(&mut self) {
        if !core::mem::take(&mut self.unsaid.is_due) {
            return;
        }
        let reachable = self.unsaid.users.iter().filter(|user| self.owner.is_reachable(user));
        let some: Vec<Box<str>> = reachable.take(SAID_PER_TICK).cloned().collect();
        self.unsaid.is_due = some.len() == SAID_PER_TICK;
        for user in some {
            self.unsaid.users.remove(&user);
            let mine = self.user_places.tell(&user);
            self.set_connections(&user, mine);
        }
    }

    fn answer_entrant(&mut self, entrant: UserEntrant, room: Room) {
        match room {
            Room::Yes => {}
            Room::No => self.metrics.add(Metric::UserLimitRefused, 1),
            Room::Later => self.metrics.add(Metric::UserLimitInDoubt, 1),
        }
        let to = entrant.from;
        self.lanes.push(to, LaneMessage::UserEntered(UserEntered { entrant, room }.into()));
    }

    fn entered_unchecked(&mut self) {
        self.metrics.add(Metric::UserLimitUnchecked, 1);
        let again_ms = u64::from(self.options.limits.backplane_wait_ms);
        if self.now_ms >= self.unsaid.noted_ms + again_ms {
            self.unsaid.noted_ms = self.now_ms;
            self.note(Note::UserLimitUnchecked);
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::{format, vec};

    use super::*;
    use crate::ids::CoreId;
    use crate::limits::Limits;
    use crate::namespace::{Namespace, Namespaces};
    use crate::options::{Access, Options};
    use crate::owner::FleetPlace;
    use crate::tokens::NoTokens;

    #[test]
    fn one_user_too_many_whose_number_cannot_be_told_is_counted() {
        let options = Options {
            core: CoreId(0),
            shards: 1,
            seed: 1,
            boot: 1,
            limits: Limits { connections_per_user_max: 2, ..Limits::DEFAULT },
            namespaces: Namespaces::new(Namespace::closed(""), vec![]).expect("it is sound").into(),
            tokens: alloc::sync::Arc::new(NoTokens),
            access: Access::closed("/ws"),
            fleet: Some(FleetPlace { core: CoreId(2), wall_offset_ms: 0 }),
            utf8: |bytes| core::str::from_utf8(bytes).is_ok(),
        };
        let mut shard = Shard::new(options, 1_000);
        for n in 0..=UNSAID_MAX {
            // Each once, however often it comes and goes.
            (0..3).for_each(|_| shard.set_connections(&format!("user-{n}"), 1));
        }
        assert_eq!((shard.unsaid.users.len(), shard.metrics.get(Metric::UserLimitForgotten)), (UNSAID_MAX, 1));
    }
}
