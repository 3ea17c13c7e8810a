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
                if let Some(index) = subscription.place() {
                    self.fanouts.drop_base(subscription.local, subscription.variant, index);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoded::{Told, applied, pushes};
    use crate::fanout::{Fanouts, Taken};
    use crate::ids::ConnId;
    use crate::namespace::{Namespace, NamespaceId, Namespaces};
    use crate::outbox::WriteBatch;
    use crate::publication::{Draft, Publication, Scratch};
    use crate::variant::{Variant, VariantSet};
    use alloc::string::ToString;
    use alloc::sync::Arc;
    use proptest::prelude::*;
    use ringway_wire::centrifuge::Form;

    const OUTBOX_BYTES_MAX: usize = 1_500;
    const CHANNELS: usize = 3;

    #[derive(Clone, Debug)]
    enum Step {
        Publish(usize, u8),
        FanOut,
        Write(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0..CHANNELS, any::<u8>()).prop_map(|(channel, byte)| Step::Publish(channel, byte)),
            3 => Just(Step::FanOut),
            1 => (0usize..2_000).prop_map(Step::Write),
        ];
        prop::collection::vec(step, 1..300)
    }

    /// What a channel has said and what a client with deltas has of it.
    #[derive(Default)]
    struct Followed {
        said: Vec<Vec<u8>>,
        last: Option<Arc<Publication>>,
        has: Option<usize>,
    }

    proptest! {
        /// One client, slow at times, with deltas in channels that may lose publications: what it reads can be applied to
        /// what it read before, in order, and is what was published; at the end it has the newest of each channel.
        #[test]
        fn what_is_dropped_is_no_delta_s_base(steps in steps(), conflate in any::<bool>(), json in any::<bool>()) {
            let policy = if conflate { SlowConsumer::Conflate } else { SlowConsumer::DropOldest };
            let namespace = Namespace { slow_consumer: policy, ..Namespace::closed("") };
            let namespaces = Namespaces::new(namespace, Vec::new()).expect("one namespace contradicts nothing");
            let variant = Variant::plain(if json { Form::Json } else { Form::Protobuf }).with_delta(true);
            let mut fanouts = Fanouts::new(7, OUTBOX_BYTES_MAX as u32);
            let locals: Vec<_> = (0..CHANNELS).map(|i| fanouts.follow(&i.to_string(), NamespaceId(0))).collect();
            locals.iter().for_each(|local| assert_eq!(fanouts.join(*local, variant, 5), 0));
            let (mut outboxes, mut queue, mut losses) = (Outboxes::default(), Queue::EMPTY, Losses::default());
            let mut followed: [Followed; CHANNELS] = Default::default();
            let (mut scratch, mut read) = (Scratch::default(), Vec::new());
            for step in steps.into_iter().chain([Step::FanOut]) {
                match step {
                    Step::Publish(i, byte) => {
                        let followed = &mut followed[i];
                        let payload = alloc::format!("\"{}{byte:03}/{:04}\"", "x".repeat(200), followed.said.len());
                        let draft = Draft {
                            variants: VariantSet::NONE.with(variant),
                            previous: followed.last.as_deref(),
                            offset: followed.said.len() as u64 + 1,
                            ..Draft::new(fanouts.get(locals[i]).map_or("", |channel| &channel.name), payload.as_bytes())
                        };
                        let publication = Arc::new(Publication::encode(draft, &mut scratch));
                        followed.last = Some(Arc::clone(&publication));
                        followed.said.push(payload.into_bytes());
                        fanouts.deliver(locals[i], publication);
                    }
                    Step::FanOut => {
                        fanouts.step(1_000, &namespaces, |slot, delivery| {
                            let lossy = delivery.lossy.as_ref().expect("the policy");
                            let pushed = losses.push(&mut outboxes, &mut queue, slot, delivery, lossy, OUTBOX_BYTES_MAX);
                            assert!(pushed.is_some(), "something can always be dropped");
                            Taken::Yes
                        }, &mut Vec::new());
                        for (_, channel) in losses.lacking.drain(..) {
                            let local = locals.iter().find(|local| local.slot == channel).expect("one of ours");
                            fanouts.drop_base(*local, variant, 0);
                        }
                    }
                    Step::Write(takes) => write(&mut outboxes, &mut queue, takes, &mut read),
                }
            }
            write(&mut outboxes, &mut queue, usize::MAX, &mut read);
            let (mut missing, mut dropped) = (0, losses.dropped_oldest + losses.conflated);
            for push in pushes(&read, variant) {
                let followed = &mut followed[push.channel.parse::<usize>().expect("a number")];
                let Told::Publication { data, delta, offset } = push.told else { panic!("no events here") };
                let base = followed.has.map(|has| &followed.said[has][..]);
                prop_assert_eq!(&applied(base, &data, delta), &followed.said[offset as usize - 1]);
                let next = followed.has.map_or(0, |has| has + 1);
                prop_assert!(next < offset as usize, "in order, and once");
                missing += offset - 1 - next as u64;
                followed.has = Some(offset as usize - 1);
            }
            for followed in &followed {
                let has = followed.has.map_or(0, |has| has + 1);
                prop_assert!(!conflate || has == followed.said.len(), "the newest");
                missing += (followed.said.len() - has) as u64;
            }
            dropped -= missing;
            prop_assert_eq!(dropped, 0, "each that is missing was counted");
            prop_assert_eq!(outboxes.nodes_in_use(), 0);
        }
    }

    fn write(outboxes: &mut Outboxes, queue: &mut Queue, mut takes: usize, read: &mut Vec<u8>) {
        let mut batch = WriteBatch::default();
        while !queue.is_empty() {
            batch.clear();
            outboxes.collect(queue, ConnId { slot: 5, generation: 0 }, &mut batch);
            let Some((_, bytes)) = batch.get(0) else { return };
            let taken = bytes.len().min(takes);
            read.extend_from_slice(&bytes[..taken]);
            let all = taken == bytes.len();
            outboxes.wrote(queue, taken);
            takes -= taken;
            if !all {
                return;
            }
        }
    }
}
