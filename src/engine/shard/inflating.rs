//! How the shard's clients share its inflating.
//!
//! In: what was inflated for a client, after each of its frames. Out: whether it may go on in this turn; connections
//! that may not wait here, with their bytes in `Connection::partial`, and are read on in later turns.
//!
//! A few bytes can become very many, so the bytes read in a turn bound nothing. Invariants: a turn inflates about
//! `inflate_bytes_per_turn_max` and one message, whatever is sent; half of that is for connections that are read and half
//! for those that wait, so that neither keep the others from it; who waits is not read, so it holds no more than one read.

use alloc::collections::VecDeque;

use ringway_wire::deflate::{InflateTotals, Inflater};

use super::Shard;
use crate::connection::Phase;
use crate::ids::ConnId;
use crate::metrics::Metric;

/// A client's part of a turn's inflating: one in so many.
const PARTS: u64 = 8;

/// See the file's header.
#[derive(Debug, Default)]
pub(super) struct Inflating {
    /// For the messages of all clients, one at a time.
    pub(super) inflater: Inflater,
    /// What this turn has inflated so far.
    work_bytes: u64,
    /// Each once, as its `inflating` says.
    waiting: VecDeque<ConnId>,
}

/// One connection's part of the turn.
#[derive(Clone, Copy)]
pub(super) struct Part {
    end_bytes: u64,
}

impl Shard {
    /// Begins the work of a connection that is read.
    pub(super) fn inflate_part(&self) -> Part {
        self.part_below(self.inflate_bytes_max() / 2)
    }

    fn part_below(&self, bytes_max: u64) -> Part {
        Part { end_bytes: (self.inflating.work_bytes + self.inflate_bytes_max() / PARTS).min(bytes_max) }
    }

    /// Counts what was inflated. False: the part is used up.
    pub(super) fn inflated(&mut self, totals: InflateTotals, part: Part) -> bool {
        if totals == InflateTotals::default() {
            return true;
        }
        self.metrics.add(Metric::MessagesInflated, totals.messages);
        self.metrics.add(Metric::InflateBytesIn, totals.bytes_in);
        self.metrics.add(Metric::InflateBytesOut, totals.bytes_out);
        self.inflating.work_bytes += totals.work_bytes();
        self.inflating.work_bytes < part.end_bytes
    }

    /// Whether nothing more is to be inflated in this turn for connections that are read.
    pub(super) fn inflating_is_exhausted(&self) -> bool {
        self.inflating.work_bytes >= self.inflate_bytes_max() / 2
    }

    /// What a connection has sent waits for a later turn.
    pub(super) fn inflate_later(&mut self, conn: ConnId) {
        let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) else { return };
        connection.inflating = true;
        self.inflating.waiting.push_back(conn);
        self.metrics.add(Metric::InflatesDeferred, 1);
    }

    /// The end of a turn: goes on with those that wait, each once, as far as the turn's share goes; at least one.
    pub(super) fn go_on_inflating(&mut self) {
        let max = self.inflate_bytes_max();
        for count in 0..self.inflating.waiting.len() {
            if self.is_pressed() || (count > 0 && self.inflating.work_bytes >= max) {
                break;
            }
            let Some(conn) = self.inflating.waiting.pop_front() else { break };
            if !self.may_go_on(conn) {
                self.inflating.waiting.push_back(conn);
                continue;
            }
            if let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) {
                connection.inflating = false;
                self.read(conn, &mut [], self.part_below(max));
            }
        }
        self.inflating.work_bytes = 0;
    }

    /// Whether some connection that waits could go on at once.
    pub(super) fn can_go_on_inflating(&self) -> bool {
        !self.inflating.waiting.is_empty()
            && !self.is_pressed()
            && self.inflating.waiting.iter().any(|conn| self.may_go_on(*conn))
    }

    /// Whether a connection that waits need not wait for an owner's answers too. One that is gone need not.
    fn may_go_on(&self, conn: ConnId) -> bool {
        match self.connections.get(conn.slot, conn.generation).map(|connection| &connection.phase) {
            Some(Phase::Client(session)) => {
                session.in_flight < self.options.limits.requests_in_flight_per_connection_max
            }
            _ => true,
        }
    }

    fn inflate_bytes_max(&self) -> u64 {
        u64::from(self.options.limits.inflate_bytes_per_turn_max)
    }
}
