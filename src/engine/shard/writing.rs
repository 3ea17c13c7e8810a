//! What outboxes give to the driver to write, and what sockets took whole.
//!
//! In: connections with something waiting, listed by whoever queued it. Out: a [`WriteBatch`] with one write for each; what
//! became of it comes back as `Input::Wrote`, or here for those taken whole. Invariant: a listed connection stands in the
//! list once.

use alloc::vec::Vec;
use core::ops::Range;

use super::Shard;
use crate::connection::{Connection, Phase, Until};
use crate::ids::ConnId;
use crate::metrics::Metric;
use crate::outbox::WriteBatch;
use crate::seam::Action;

/// Places that an empty list keeps: what a turn's deliveries need.
const KEPT_SLOTS: usize = 8_192;

/// Slots of connections with something to write, in the order in which they began to have it.
#[derive(Debug, Default)]
pub(super) struct ToWrite {
    slots: Vec<u32>,
    /// Those in front of this place have been taken.
    taken: usize,
}

impl ToWrite {
    pub(super) const fn is_empty(&self) -> bool {
        self.taken == self.slots.len()
    }

    /// Gives back what only a rush needed.
    pub(super) fn shrink(&mut self) {
        if self.is_empty() && self.slots.capacity() > KEPT_SLOTS {
            *self = ToWrite::default();
        }
    }
}

/// Puts a connection on the list of those to write to, once, unless it waits for its socket.
#[inline]
pub(super) fn list(to_write: &mut ToWrite, slot: u32, connection: &mut Connection) {
    let outbox = &mut connection.outbox;
    if !(outbox.listed | outbox.blocked | outbox.held) {
        outbox.listed = true;
        to_write.slots.push(slot);
    }
}

impl Shard {
    /// Fills a batch of writes, one per connection. Each is followed by `Input::Wrote` or [`Shard::wrote_whole`]. Call it
    /// until it is empty.
    pub fn collect_writes(&mut self, batch: &mut WriteBatch) {
        batch.clear();
        // In the order of arrival, so that no connection waits behind another for more than one batch.
        let first = self.to_write.taken;
        for slot in &self.to_write.slots[first..] {
            if batch.is_full() {
                break;
            }
            self.to_write.taken += 1;
            let Some((generation, connection)) = self.connections.at_mut_with_generation(*slot) else { continue };
            let outbox = &mut connection.outbox;
            let listed = core::mem::take(&mut outbox.listed);
            if listed && !outbox.blocked && !outbox.held {
                self.outboxes.collect(outbox, ConnId { slot: *slot, generation }, batch);
            }
        }
        if self.to_write.is_empty() {
            self.to_write.slots.clear();
            self.to_write.taken = 0;
        }
    }

    /// Sockets took these writes of the batch whole: an `Input::Wrote` for each, but counted together.
    pub fn wrote_whole(&mut self, batch: &WriteBatch, writes: Range<usize>) {
        let (mut count, mut bytes) = (0, 0);
        for (conn, size) in batch.sizes(writes) {
            let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) else { continue };
            if matches!(connection.phase, Phase::Gone) {
                continue;
            }
            count += 1;
            bytes += size as u64;
            self.outboxes.wrote(&mut connection.outbox, size);
            if !connection.outbox.is_empty() {
                // More than fits one write waits.
                list(&mut self.to_write, conn.slot, connection);
            } else if matches!(connection.phase, Phase::Closing(_)) {
                self.written_out(conn);
            }
        }
        self.metrics.add(Metric::Writes, count);
        self.metrics.add(Metric::WriteBytes, bytes);
    }

    /// Nothing waits for this connection any more.
    pub(super) fn written_out(&mut self, conn: ConnId) {
        let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) else { return };
        match &mut connection.phase {
            Phase::Closing(Until::Written) => self.end(conn, false),
            Phase::Closing(until @ Until::WrittenThenPeerEnd) => {
                *until = Until::PeerEnd;
                self.actions.push(Action::FinishWriting { conn });
            }
            _ => {}
        }
    }
}
