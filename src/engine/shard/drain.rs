//! Sending everybody away: clients paced, the most idle first; backends when no client is left.
//!
//! In: `Input::Drain`, later `Input::DrainBackends`, and time. Out: clients closed with 3001, backends told that this node
//! goes away, counters. Its steps:
//!
//! ```text
//! serving ─ Drain ─> grace ─ drain_grace_ms ─> leaving ─ DrainBackends ─> leaving, backends too
//!                      └───────── drain_deadline_ms, or Shutdown ─────────> everybody at once
//! ```
//! Who has been idle longest stands on top of a heap, by the tick of its last traffic other than pings and pongs. Who had
//! traffic since it was put there sinks to its new place when it comes up, so each one taken is the most idle of all.
//! Invariants: at most [`DrainOrder::clients_per_1000_s`] leave, in portions of one tick and never of more than two; a client
//! with requests under way is read no more and leaves behind their answers; `hand_over.rs` sees each client before its
//! Close frame, and may hold that back for `hand_over_wait_ms`; the heap holds 8 bytes per client and exists only while a shard drains.

use alloc::collections::BinaryHeap;
use alloc::collections::binary_heap::PeekMut;
use alloc::vec::Vec;
use core::cmp::Reverse;

use ringway_wire::close::CloseReason;
use ringway_wire::ingest::{IngestError, write_going_away};

use super::Shard;
use crate::connection::{Connection, Phase};
use crate::frame::Frame;
use crate::ids::ConnId;
use crate::limits::TICK_MS;
use crate::metrics::Metric;
use crate::seam::Port;
use crate::session::Stage;

/// Clients whose place in the heap is corrected in one tick, so that a shard on which everybody is busy does not spend its
/// turn on finding the most idle. Over: who comes up leaves, busy or not.
pub const CORRECTIONS_PER_TICK_MAX: u32 = 8_192;
/// Ticks whose clients may leave together when a turn came late. What is over is not made up for: the survivors' load counts.
const TICKS_TOGETHER_MAX: u64 = 2;
/// One client, in the unit in which the pace adds up: clients per 1,000 s times milliseconds.
const ONE_CLIENT: u64 = 1_000_000;

/// How this shard is to drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainOrder {
    /// This shard's part of `drain_rate_per_s`, a thousand times as fine.
    pub clients_per_1000_s: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    #[default]
    Serving,
    /// Load balancers notice; everything goes on.
    Grace,
    /// Newcomers are refused, clients leave.
    Leaving,
    /// Backends leave too.
    Backends,
}

/// See the file's header.
#[derive(Debug, Default)]
pub(super) struct Drain {
    step: Step,
    pace: u64,
    leave_ms: u64,
    deadline_ms: u64,
    /// Until then backends may leave by themselves.
    backends_ms: u64,
    ticked_ms: u64,
    /// What the pace has brought and nobody has used, in parts of [`ONE_CLIENT`].
    credit: u64,
    /// (tick of the last traffic, slot) of clients who have not been told to leave.
    idle: BinaryHeap<Reverse<(u32, u32)>>,
    /// Those whose turn has come and who have requests under way.
    finishing: Vec<ConnId>,
}

impl Drain {
    /// Clients who have not been told to leave.
    fn left(&self) -> u64 {
        (self.idle.len() + self.finishing.len()) as u64
    }
}

impl Shard {
    /// Whether a port still takes newcomers: if not, close its listener. A connection that was accepted before and upgrades
    /// now is refused with 503.
    pub const fn takes_newcomers(&self, port: Port) -> bool {
        let closed_from = match port {
            Port::Client => Step::Leaving,
            Port::Ingest => Step::Backends,
        };
        (self.drain.step as u8) < closed_from as u8 && !self.shutting_down
    }

    /// A second order only changes the pace.
    pub(super) fn begin_drain(&mut self, order: DrainOrder) {
        self.drain.pace = order.clients_per_1000_s;
        if self.drain.step != Step::Serving || self.shutting_down {
            return;
        }
        let limits = &self.options.limits;
        self.drain.step = Step::Grace;
        self.drain.leave_ms = self.now_ms + u64::from(limits.drain_grace_ms);
        self.drain.deadline_ms = self.now_ms + u64::from(limits.drain_deadline_ms);
        self.metrics.set(Metric::DrainState, 1);
        let (owner, mut around) = self.owner();
        owner.announce_drain(&mut around);
    }

    /// What the time brings. Call it in every turn.
    pub(super) fn go_on_draining(&mut self) {
        if self.drain.step == Step::Serving || self.shutting_down {
            return;
        }
        if self.now_ms >= self.drain.deadline_ms {
            return self.shutdown();
        }
        if self.drain.step == Step::Grace {
            if self.now_ms < self.drain.leave_ms {
                return;
            }
            self.begin_leaving();
        }
        self.finish_requests();
        if self.now_ms / TICK_MS > self.drain.ticked_ms / TICK_MS {
            self.drain_tick();
        }
        self.metrics.set(Metric::DrainLeft, self.drain.left() + self.hand_overs.waiting());
    }

    fn begin_leaving(&mut self) {
        self.drain.step = Step::Leaving;
        self.drain.ticked_ms = self.now_ms;
        self.metrics.set(Metric::DrainState, 2);
        let entry = |slot| {
            let (_, connection) = self.connections.at(slot)?;
            let is_client = matches!(connection.phase, Phase::Client(_) | Phase::Echo);
            is_client.then_some(Reverse((connection.outbox.used_tick, slot)))
        };
        let entries: Vec<_> = (0..self.connections.slots()).filter_map(entry).collect();
        self.drain.idle = entries.into();
    }

    /// Those who could not leave at once and can now.
    fn finish_requests(&mut self) {
        let mut finishing = core::mem::take(&mut self.drain.finishing);
        finishing.retain(|conn| {
            let waits = self.has_requests_under_way(*conn);
            if !waits {
                self.send_away(*conn);
            }
            waits
        });
        self.drain.finishing = finishing;
    }

    fn drain_tick(&mut self) {
        let elapsed_ms = (self.now_ms - self.drain.ticked_ms).min(TICKS_TOGETHER_MAX * TICK_MS);
        self.drain.ticked_ms = self.now_ms;
        self.drain.credit += elapsed_ms * self.drain.pace;
        let mut corrections = CORRECTIONS_PER_TICK_MAX;
        while self.drain.credit >= ONE_CLIENT {
            let Some(conn) = self.most_idle(&mut corrections) else {
                self.drain.credit = 0;
                break;
            };
            self.drain.credit -= ONE_CLIENT;
            if self.has_requests_under_way(conn) {
                if let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) {
                    connection.leaving = true;
                }
                self.drain.finishing.push(conn);
            } else {
                self.send_away(conn);
            }
        }
        if self.drain.step == Step::Backends && self.now_ms >= self.drain.backends_ms {
            self.end_backends();
        }
    }

    /// The client without traffic for longest, taken off the heap.
    fn most_idle(&mut self, corrections: &mut u32) -> Option<ConnId> {
        loop {
            let mut top = self.drain.idle.peek_mut()?;
            let Reverse((tick, slot)) = *top;
            // Who has left since may have been followed by a peer that is about to be refused, never by a client.
            let client = self
                .connections
                .at(slot)
                .filter(|(_, connection)| matches!(connection.phase, Phase::Client(_) | Phase::Echo));
            match client {
                Some((_, connection)) if connection.outbox.used_tick > tick && *corrections > 0 => {
                    *corrections -= 1;
                    *top = Reverse((connection.outbox.used_tick, slot));
                }
                Some((generation, _)) => {
                    PeekMut::pop(top);
                    return Some(ConnId { slot, generation });
                }
                None => {
                    PeekMut::pop(top);
                }
            }
        }
    }

    /// Whether something that a client has asked for is still to be answered.
    fn has_requests_under_way(&self, conn: ConnId) -> bool {
        self.connections.get(conn.slot, conn.generation).is_some_and(|connection| match &connection.phase {
            Phase::Client(session) => session.in_flight > 0 || session.stage == Stage::Opening || connection.inflating,
            _ => false,
        })
    }

    /// Ends a client's connection because this node goes: what waits for it is written first, within the time that any
    /// close has.
    fn send_away(&mut self, conn: ConnId) {
        let Some(connection) = self.connections.get(conn.slot, conn.generation) else { return };
        if matches!(connection.phase, Phase::Client(_) | Phase::Echo) {
            if self.drain.step != Step::Serving {
                let how = if self.shutting_down { Metric::DrainForced } else { Metric::DrainPaced };
                self.metrics.add(how, 1);
            }
            if self.hand_over(conn) {
                // It is closed behind that, and read no more.
                if let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) {
                    connection.leaving = true;
                }
                return;
            }
        }
        self.leaving_late(|shard| shard.close(conn, CloseReason::Shutdown));
    }

    /// Tells every backend that this node goes away; each settles what it has sent, and leaves.
    pub(super) fn drain_backends(&mut self) {
        if self.drain.step >= Step::Backends || self.shutting_down {
            return;
        }
        let leave_ms = u64::from(self.options.limits.drain_backends_ms);
        self.drain.step = Step::Backends;
        self.drain.backends_ms = (self.now_ms + leave_ms).min(self.drain.deadline_ms.max(self.now_ms));
        let left_ms = (self.drain.backends_ms - self.now_ms) as u32;
        self.tell_all_leaves();
        for slot in 0..self.connections.slots() {
            let Some((generation, Connection { phase: Phase::Ingest { session, .. }, .. })) = self.connections.at(slot)
            else {
                continue;
            };
            let conn = ConnId { slot, generation };
            if session.ready {
                self.frame.clear();
                write_going_away(&mut self.frame, left_ms, &[]);
                let frame = Frame::from_bytes(&self.frame);
                self.send(conn, frame);
            } else {
                self.fail_ingest(conn, IngestError::Shutdown);
            }
        }
    }

    /// Backends that have not left by themselves are read no more, and end behind their last answers.
    fn end_backends(&mut self) {
        for slot in 0..self.connections.slots() {
            let Some((generation, connection)) = self.connections.at_mut_with_generation(slot) else { continue };
            let Phase::Ingest { session, .. } = &connection.phase else { continue };
            let waits = session.has_outstanding();
            connection.leaving = true;
            if !waits {
                self.fail_ingest(ConnId { slot, generation }, IngestError::Shutdown);
            }
        }
    }

    /// Ends everybody at once: no drain, its deadline, or somebody who does not want to wait for it.
    pub(super) fn shutdown(&mut self) {
        self.tell_all_leaves();
        if self.drain.step == Step::Serving && !self.shutting_down {
            let (owner, mut around) = self.owner();
            owner.announce_drain(&mut around);
        }
        self.shutting_down = true;
        for slot in 0..self.connections.slots() {
            if let Some((generation, _)) = self.connections.at(slot) {
                self.send_away(ConnId { slot, generation });
            }
        }
        self.drain.idle = BinaryHeap::new();
        self.drain.finishing = Vec::new();
        self.metrics.set(Metric::DrainLeft, 0);
    }
}
