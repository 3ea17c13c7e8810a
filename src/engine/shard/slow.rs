//! What may be dropped for connections that read slower than their messages come, by the channel's policy.
//!
//! In: deliveries of channels that are not `disconnect`, and any frame that would not fit an outbox. Out: frames dropped
//! or replaced in outboxes, counted by reason; subscriptions that have lost something get their next publication whole.

use alloc::vec::Vec;

use super::Shard;
use crate::connection::{Connection, Phase};
use crate::fanout::{Delivery, Lossy};
use crate::metrics::Metric;
use crate::namespace::SlowConsumer;
use crate::outbox::{Mark, Outboxes, Queue};
use crate::session::SubscriptionState;

/// What was dropped since it was last settled. Kept and reused.
#[derive(Debug, Default)]
pub(super) struct Losses {
    dropped_oldest: u64,
    conflated: u64,
    /// (connection slot, channel slot) of subscriptions that lack something now.
    lacking: Vec<(u32, u32)>,
}

impl Losses {
    /// Drops what may be dropped until `bytes` more fit below `bytes_max`; whether they do.
    pub(super) fn make_room(&mut self, outboxes: &mut Outboxes, queue: &mut Queue, bytes: usize, max: usize) -> bool {
        let surplus = (queue.bytes() as usize + bytes).saturating_sub(max);
        if surplus == 0 {
            return true;
        }
        outboxes.drop_oldest(queue, surplus, |mark| {
            self.dropped_oldest += u64::from(mark.publications);
            let lacking = (mark.conn, mark.channel);
            // Most of the time one channel loses several in a row.
            if self.lacking.last() != Some(&lacking) {
                self.lacking.push(lacking);
            }
        });
        queue.bytes() as usize + bytes <= max
    }

    /// Queues a delivery that may be dropped. Returns how many publications it brought; none: it does not fit.
    pub(super) fn push(
        &mut self,
        outboxes: &mut Outboxes,
        queue: &mut Queue,
        conn: u32,
        delivery: &Delivery<'_>,
        lossy: &Lossy<'_>,
        max: usize,
    ) -> Option<u32> {
        let conflated = lossy.policy == SlowConsumer::Conflate;
        let older = if conflated { outboxes.conflatable(queue, conn, lossy.channel) } else { None };
        // Behind something that may yet be dropped goes what does not need it.
        let alone = if conflated { older.is_none() } else { queue.is_empty() };
        let (frame, publications) =
            if alone { (delivery.frame, delivery.publications) } else { (lossy.instead, lossy.publications) };
        let mark = Mark { conn, channel: lossy.channel, publications, conflated };
        let bytes = frame.size_bytes();
        if let Some((node, older_bytes)) = older {
            let grows = bytes.saturating_sub(older_bytes as usize);
            if !self.make_room(outboxes, queue, grows, max) {
                return None;
            }
            self.conflated += u64::from(outboxes.replace(queue, node, frame.clone(), mark));
            self.conflated += u64::from(delivery.publications - publications);
            return Some(publications);
        }
        if !self.make_room(outboxes, queue, bytes, max) {
            return None;
        }
        outboxes.push_marked(queue, frame.clone(), mark);
        Some(publications)
    }
}

impl Shard {
    /// Counts what was dropped, and sees to it that nobody gets a delta to something that it has not.
    pub(super) fn settle_losses(&mut self) {
        let losses = &mut self.losses;
        self.metrics.add(Metric::OutboxDroppedOldest, core::mem::take(&mut losses.dropped_oldest));
        self.metrics.add(Metric::OutboxConflated, core::mem::take(&mut losses.conflated));
        for (conn, channel) in losses.lacking.drain(..) {
            let Some(Connection { phase: Phase::Client(session), .. }) = self.connections.at_mut(conn) else {
                continue;
            };
            // The slot may be another channel's since: then that one gets one publication whole.
            for subscription in session.subscriptions.iter().filter(|subscription| subscription.local.slot == channel) {
                if let SubscriptionState::Joined { index } = subscription.state {
                    self.fanouts.drop_base(subscription.local, session.variant_of(subscription), index);
                }
            }
        }
    }
}
