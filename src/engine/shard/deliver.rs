//! A turn's share of the fan-outs, from subscriber lists into outboxes.
//!
//! In: deliveries, in the order of the lists. Out: frames in outboxes, connections listed for writing; slow connections lose what
//! their channel's policy says, or end. Invariant: what a delivery costs here is paid for every subscriber, so all but the usual
//! case stands apart.

use alloc::vec::Vec;

use super::Shard;
use super::slow::Losses;
use super::writing::{ToWrite, list};
use crate::connection::Connection;
use crate::fanout::{Delivery, Taken};
use crate::ids::ConnId;
use crate::metrics::Metric;
use crate::outbox::Outboxes;
use crate::slots::Slots;

/// Where deliveries go.
struct Deliver<'a> {
    connections: &'a mut Slots<Connection>,
    outboxes: &'a mut Outboxes,
    to_write: &'a mut ToWrite,
    overflowed: &'a mut Vec<u32>,
    losses: &'a mut Losses,
    outbox_bytes_max: usize,
    /// Now.
    tick: u32,
    /// Publications so far.
    delivered: u64,
}

impl Deliver<'_> {
    #[inline]
    fn take(&mut self, slot: u32, delivery: &Delivery<'_>) -> Taken {
        let Some(connection) = self.connections.at_mut(slot) else { return Taken::Yes };
        connection.outbox.used_tick = self.tick;
        let wanted = connection.outbox.bytes() as usize + delivery.bytes;
        if delivery.lossy.is_some() || wanted > self.outbox_bytes_max / 2 {
            return self.take_with_care(slot, delivery);
        }
        self.outboxes.push_sized(&mut connection.outbox, delivery.frame.clone(), delivery.bytes);
        list(self.to_write, slot, connection);
        self.delivered += u64::from(delivery.publications);
        Taken::Yes
    }

    /// One that may be dropped, or may not fit.
    #[inline(never)]
    fn take_with_care(&mut self, slot: u32, delivery: &Delivery<'_>) -> Taken {
        let Some(connection) = self.connections.at_mut(slot) else { return Taken::Yes };
        let bytes_max = self.outbox_bytes_max;
        let waiting = connection.outbox.bytes() as usize;
        let wanted = waiting + delivery.bytes;
        // A socket that takes what it is offered is not slow because a turn brought much: write first.
        if wanted > bytes_max / 2
            && waiting > 0
            && !connection.outbox.blocked
            && !connection.outbox.held
            && !delivery.begun
        {
            return Taken::PutOff;
        }
        let queue = &mut connection.outbox;
        let brought = match &delivery.lossy {
            Some(lossy) => self.losses.push(self.outboxes, queue, slot, delivery, lossy, bytes_max),
            None if !self.losses.make_room(self.outboxes, queue, delivery.bytes, bytes_max) => None,
            None => {
                self.outboxes.push(queue, delivery.frame.clone());
                Some(delivery.publications)
            }
        };
        let Some(publications) = brought else {
            self.overflowed.push(slot);
            return Taken::Yes;
        };
        list(self.to_write, slot, connection);
        self.delivered += u64::from(publications);
        Taken::Yes
    }
}

impl Shard {
    /// Hands out a turn's share of deliveries.
    pub(super) fn fan_out(&mut self) {
        if !self.fanouts.has_work() {
            return;
        }
        let tick = self.used_tick();
        let mut deliver = Deliver {
            connections: &mut self.connections,
            outboxes: &mut self.outboxes,
            to_write: &mut self.to_write,
            overflowed: &mut self.overflowed,
            losses: &mut self.losses,
            outbox_bytes_max: self.options.limits.outbox_bytes_max as usize,
            tick,
            delivered: 0,
        };
        let budget = self.options.limits.fanout_deliveries_per_turn_max;
        let namespaces = &self.options.namespaces;
        self.fanouts.step(budget, namespaces, |slot, delivery| deliver.take(slot, delivery), &mut self.moved);
        self.metrics.add(Metric::Deliveries, deliver.delivered);
        self.metrics.set(Metric::FanoutBacklogBytes, self.fanouts.backlog_bytes() as u64);
        if self.fanouts.has_work() {
            self.metrics.add(Metric::FanoutsSliced, 1);
        }
        self.apply_moves();
        self.settle_losses();
        while let Some(slot) = self.overflowed.pop() {
            if let Some((generation, _)) = self.connections.at(slot) {
                self.overflow(ConnId { slot, generation });
            }
        }
    }
}
