//! The owner on a node of a fleet: offsets, history and repeated keys are the engine's; this owner is the node's one
//! agent for its channels.
//!
//! In: the same requests as everywhere, and [`Event`]s of the backplane. Out: [`Request`]s to it; answers and
//! publications into the lanes, exactly as without a fleet: a subscriber cannot tell the difference.
//!
//! ```text
//! publish    ─> queue of the channel ─> one batch under way ─> offsets ─> acknowledgements     publishing.rs
//! subscribe  ─> waits for the page of a follow, unless the channel is live ─> answer           following.rs
//! feed       ─> next offset: out, and kept;  a hole: held until a page has filled it           feed.rs
//! users      ─> where they are; orders about them to other nodes                               users.rs
//! limit      ─> how many connections a user has on all nodes                                   places.rs
//! drain      ─> what only this node knows of users, to whoever has them next                   parking.rs
//! ```
//! What the feed has brought since the channel became live is kept in its history, as a copy: whoever comes back is
//! answered from there, and the engine is read only for what is older.
//!
//! Invariants: `epoch` and `top` of a live channel are the last that went out to its subscribers; what follows them goes out
//! in order and once, or they are told that their state is insufficient; nothing is acknowledged that the engine has not
//! numbered; a channel has one batch and one follow under way at most, and a batch whose outcome is not known is sent again
//! before the next.

#[cfg(test)]
mod bounds_tests;
mod calls;
mod feed;
mod following;
mod parking;
mod places;
mod presence;
mod publishing;
#[cfg(test)]
mod tests;
mod user_count;
mod users;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::{Owner, Surroundings};
use crate::backplane::{Answer, Buckets, Event, Feed, Refusal, Request, Subject, Token};
use crate::call::HistoryAsk;
use crate::ids::{ConnId, CoreId};
use crate::lane_message::{LaneMessage, Origin, Position, UserEntrant};
use crate::limits::TICK_MS;
use crate::metrics::Metric;
use crate::slots::Slots;
use feed::Held;
use following::Waiting;
pub use parking::{Handed, Taker};
use presence::Question;
pub(super) use publishing::{Admitted, Asker, Who};
use publishing::{Queued, Sent};
pub use users::OrderAsker;

/// Follows of one owner under way; further channels wait. Enough to keep a connection busy, few enough to leave room for
/// publishes.
const FOLLOWS_MAX: u32 = 4_096;
/// Channels looked at per turn when everything is to be followed again.
const SCANNED_PER_TURN: u32 = 4_096;

/// Where a node's backplane is, for its owners.
#[derive(Clone, Copy, Debug)]
pub struct FleetPlace {
    /// Its queue.
    pub core: CoreId,
    /// Wall clock less the clock of turns, in milliseconds.
    pub wall_offset_ms: i64,
}

/// See the file's header.
#[derive(Debug)]
pub(super) struct Fleet {
    place: FleetPlace,
    asked: Slots<Asked>,
    reachable: Buckets,
    scan: Option<Box<Scan>>,
    /// Channels with a [`Busy`], each once.
    busy: VecDeque<(u32, u32)>,
    /// Channels whose last subscriber has left, and when. At most [`following::LONELY_MAX`].
    lonely: VecDeque<(u32, u32, u64)>,
    /// Batches numbered.
    batches: u64,
    /// Of all queues, and of batches under way.
    queued_bytes: usize,
    follows: u32,
    /// Users whose registration was refused.
    unregistered: Vec<Box<str>>,
    /// This node's, by which others answer it.
    generation: u32,
    questions: Slots<Question>,
    /// The first channel whose interest is to be checked next.
    checked: u32,
    /// Times that something fed may have been lost.
    breaks: u32,
    /// For the shard.
    handed: Vec<Handed>,
}

/// What goes on about one channel; there while something does, and until the next tick.
#[derive(Debug, Default)]
pub(super) struct Busy {
    /// Subscribes that the page of a follow will answer.
    waiting: Vec<Waiting>,
    /// A follow is under way.
    following: bool,
    /// Follow once more.
    again: bool,
    /// Fed, and not the next in order.
    held: Vec<Held>,
    held_bytes: usize,
    /// Publishes that wait for the batch under way.
    queue: VecDeque<Queued>,
    sent: Option<Sent>,
}

/// Whether a channel is fed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not, or its position is not known yet.
    #[default]
    Cold,
    /// From its position on.
    Live,
}

/// A request under way.
#[derive(Debug)]
enum Asked {
    Publish {
        channel: (u32, u32),
    },
    Follow {
        channel: (u32, u32),
        was: Option<Position>,
        /// Of the fleet, when it was sent.
        breaks: u32,
    },
    Read {
        origin: Origin,
        from: CoreId,
        ask: HistoryAsk,
        channel: Box<str>,
    },
    Forget {
        origin: Origin,
        from: CoreId,
        channel: Box<str>,
    },
    FollowUser {
        user: Box<str>,
    },
    /// A question about a channel's members, by its number.
    Question(u64),
    /// An order about a user.
    Order(OrderAsker),
    /// What this node knows of a connection.
    Park(Option<(CoreId, ConnId)>),
    /// What others knew of a user, for a connect command.
    TakeParked(Box<Taker>),
    /// A user's connection that wants to come in.
    Enter(Box<UserEntrant>),
    /// How many connections a user has here.
    SetConnections {
        user: Box<str>,
    },
    /// Nobody waits for the answer.
    Nobody,
}

/// Everything in some buckets is to be followed again.
#[derive(Debug)]
struct Scan {
    buckets: Buckets,
    cursor: u32,
}

impl Fleet {
    pub(super) fn new(place: FleetPlace) -> Self {
        Fleet {
            place,
            asked: Slots::new(),
            reachable: Buckets::NONE,
            scan: None,
            busy: VecDeque::new(),
            lonely: VecDeque::new(),
            batches: 0,
            queued_bytes: 0,
            follows: 0,
            unregistered: Vec::new(),
            generation: 0,
            questions: Slots::new(),
            checked: 0,
            breaks: 0,
            handed: Vec::new(),
        }
    }

    const fn wall_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_add_signed(self.place.wall_offset_ms)
    }

    /// When something was published, on the clock of turns.
    const fn turn_ms(&self, at_ms: u64, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.wall_ms(now_ms).saturating_sub(at_ms))
    }
}

impl Owner {
    /// Whether this is a node of a fleet.
    pub const fn is_shared(&self) -> bool {
        self.fleet.is_some()
    }

    /// Something has come from the backplane. About channels only; users are the shard's.
    pub fn backplane_event(&mut self, event: Event, around: &mut Surroundings<'_>) {
        match event {
            Event::Answer(token, result) => self.backplane_answered(token, result, around),
            Event::Feed(Feed { subject: Subject::Channel(channel), addressed, what, .. }) => {
                self.fed(&channel, addressed, what, around);
            }
            Event::Feed(Feed { subject: Subject::User(_) | Subject::Nodes, .. }) | Event::Draining { .. } => {}
            Event::Registered(node) => {
                if let Some(fleet) = &mut self.fleet {
                    fleet.generation = node.generation;
                }
            }
            Event::Broken(buckets) => {
                let Some(fleet) = &mut self.fleet else { return };
                buckets.iter().for_each(|bucket| fleet.reachable.remove(bucket));
                fleet.breaks = fleet.breaks.wrapping_add(1);
            }
            Event::Restored(buckets) => {
                let Some(fleet) = &mut self.fleet else { return };
                buckets.iter().for_each(|bucket| fleet.reachable.insert(bucket));
                let scan = fleet.scan.get_or_insert_with(|| Box::new(Scan { buckets: Buckets::NONE, cursor: 0 }));
                buckets.iter().for_each(|bucket| scan.buckets.insert(bucket));
                scan.cursor = 0;
            }
        }
    }

    fn backplane_answered(&mut self, token: Token, result: Result<Answer, Refusal>, around: &mut Surroundings<'_>) {
        let (slot, generation) = (token.0 as u32, (token.0 >> 32) as u32);
        let Some(asked) = self.fleet.as_mut().and_then(|fleet| fleet.asked.remove(slot, generation)) else { return };
        match asked {
            Asked::Publish { channel } => self.batch_answered(channel, result, around),
            Asked::Follow { channel, was, breaks } => {
                if let Some(fleet) = &mut self.fleet {
                    fleet.follows -= 1;
                }
                self.followed(channel, (was, breaks), result, around);
            }
            Asked::Read { origin, from, ask, channel } => {
                self.history_read(&channel, &ask, (origin, from), result, around);
            }
            Asked::Forget { origin, from, channel } => self.forgotten(&channel, (origin, from), result, around),
            Asked::FollowUser { user } => {
                if let Some(fleet) = &mut self.fleet {
                    fleet.follows -= 1;
                    fleet.unregistered.extend(result.is_err().then_some(user));
                }
            }
            Asked::Question(question) => self.question_passed_on(question, result, around),
            Asked::Order(asker) => Self::order_passed_on(asker, result, around),
            Asked::Park(waits) => self.was_parked(waits, &result, around),
            Asked::TakeParked(taker) => self.was_taken(*taker, result),
            Asked::Enter(entrant) => self.entered(*entrant, result),
            Asked::SetConnections { user } => self.connections_set(user, &result),
            Asked::Nobody => {}
        }
    }

    /// Once per tick: sends again what is to be sent again, gives up what has waited for too long, forgets channels that
    /// nobody follows any more.
    pub(super) fn fleet_tick(&mut self, around: &mut Surroundings<'_>) {
        for _ in 0..self.fleet.as_ref().map_or(0, |fleet| fleet.busy.len()) {
            let Some(place) = self.fleet.as_mut().and_then(|fleet| fleet.busy.pop_front()) else { break };
            let Some(channel) = self.channels.get_mut(place.0, place.1) else { continue };
            if channel.busy.take_if(|busy| busy.is_idle()).is_some() || channel.busy.is_none() {
                continue;
            }
            if let Some(fleet) = &mut self.fleet {
                fleet.busy.push_back(place);
            }
            self.expire(place.0, around);
            self.send_batch(place.0, around);
            self.follow_if_needed(place.0, around);
        }
        self.unfollow_lonely(around);
        self.check_interest(around);
        self.end_questions(around);
        if let Some(fleet) = &self.fleet {
            around.metrics.set(Metric::FleetQueuedBytes, fleet.queued_bytes as u64);
        }
    }

    /// Follows each live channel again now and then, a few in each tick: a registration that was lost shows, and what the
    /// engine keeps of the channel does not end while somebody is here.
    fn check_interest(&mut self, around: &mut Surroundings<'_>) {
        let interval_ms = u64::from(self.limits.interest_check_ms);
        let (slots, cursor) = match &self.fleet {
            Some(fleet) if interval_ms > 0 && fleet.follows < FOLLOWS_MAX => (self.channels.slots(), fleet.checked),
            _ => return,
        };
        let part = (u64::from(slots) * TICK_MS / interval_ms) as u32 + 1;
        let end = slots.min(cursor.saturating_add(part));
        for slot in cursor..end {
            if self.channels.at(slot).is_some_and(|(_, channel)| channel.stage == Stage::Live) {
                self.follow_soon(slot, around);
            }
        }
        if let Some(fleet) = &mut self.fleet {
            fleet.checked = if end == slots { 0 } else { end };
        }
    }

    /// Goes on with following everything again. Called once per turn.
    pub fn follow_again(&mut self, around: &mut Surroundings<'_>) {
        let Some(mut scan) = self.fleet.as_mut().and_then(|fleet| fleet.scan.take()) else { return };
        let end = self.channels.slots().min(scan.cursor + SCANNED_PER_TURN);
        while scan.cursor < end && self.fleet.as_ref().is_some_and(|fleet| fleet.follows < FOLLOWS_MAX) {
            let slot = scan.cursor;
            scan.cursor += 1;
            let Some((_, channel)) = self.channels.at(slot) else { continue };
            let followed = channel.stage == Stage::Live || channel.busy.is_some();
            if followed && scan.buckets.hold(&channel.name) {
                self.follow_soon(slot, around);
            }
        }
        if scan.cursor < self.channels.slots()
            && let Some(fleet) = &mut self.fleet
        {
            fleet.scan = Some(scan);
        }
    }

    /// Whether one more follow may be under way.
    pub fn can_follow(&self) -> bool {
        self.fleet.as_ref().is_some_and(|fleet| fleet.follows < FOLLOWS_MAX)
    }

    /// Whether [`Owner::follow_again`] would have something to do at once.
    pub fn has_to_follow(&self) -> bool {
        self.fleet.as_ref().is_some_and(|fleet| fleet.scan.is_some() && fleet.follows < FOLLOWS_MAX)
    }

    fn ask(&mut self, asked: Asked, request: Request, around: &mut Surroundings<'_>) {
        let Some(fleet) = &mut self.fleet else { return };
        let (slot, generation) = fleet.asked.insert(asked);
        let token = Token(u64::from(generation) << 32 | u64::from(slot));
        around.lanes.push(fleet.place.core, LaneMessage::ToBackplane { token, request: request.into() });
    }

    fn busy(&mut self, slot: u32) -> Option<&mut Busy> {
        let generation = self.channels.at(slot)?.0;
        let channel = self.channels.at_mut(slot)?;
        if channel.busy.is_none() {
            self.fleet.as_mut()?.busy.push_back((slot, generation));
        }
        Some(channel.busy.get_or_insert_default())
    }

    /// Whether the engine's part with this channel or user can be reached.
    pub fn is_reachable(&self, name: &str) -> bool {
        self.fleet.as_ref().is_some_and(|fleet| fleet.reachable.hold(name))
    }
}

impl Busy {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty()
            && !self.following
            && !self.again
            && self.held.is_empty()
            && self.queue.is_empty()
            && self.sent.is_none()
    }
}
