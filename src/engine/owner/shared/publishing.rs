//! Publishes on their way to the engine: one batch per channel at a time, so that order holds whatever happens to it.
//!
//! In: publishes that the owner has admitted. Out: batches; acknowledgements when the engine has numbered them, refusals when
//! it has not within `backplane_wait_ms`.
//! Invariants: a channel's publishes reach the engine in the order in which they were admitted; one with an idempotency key
//! travels alone; a batch that may have happened is sent again as it was, until it is known or given up.

use alloc::boxed::Box;
use alloc::vec::Vec;

use ringway_wire::ingest::{Ack, PayloadKind};
use ringway_wire::record::{Record, Tags, Told};

use super::super::{Owner, Surroundings};
use super::Asked;
use crate::backplane::{Answer, Audience, Keep, PublishBatch, Published, Refusal, Request, Subject, Tell};
use crate::ids::{ConnId, CoreId, Offset};
use crate::lane_message::{LaneMessage, Origin, Position, PublishAnswer, PublishError};
use crate::metrics::Metric;
use crate::namespace::Durability;
use crate::publication::Extra;
use crate::publish_run::{EntryAnswer, RunAnswer};

/// Publications of one batch.
const BATCH_PUBLICATIONS_MAX: usize = 64;
/// Bytes of one batch; a larger publication goes alone.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// Who waits for a publish.
#[derive(Clone, Copy, Debug)]
pub(in crate::owner) struct Asker {
    /// Where.
    pub(in crate::owner) from: CoreId,
    /// Who.
    pub(in crate::owner) who: Who,
}

/// See [`Asker`].
#[derive(Clone, Copy, Debug)]
pub(in crate::owner) enum Who {
    /// A client, or a call.
    One(Origin),
    /// One publish of a backend's run.
    Entry { conn: ConnId, seq: u64, payload_bytes: u32 },
}

/// A publish that waits.
#[derive(Debug)]
pub(super) struct Queued {
    record: Box<[u8]>,
    key: Box<[u8]>,
    numbered: bool,
    asker: Asker,
    since_ms: u64,
}

/// What is under way.
#[derive(Debug)]
pub(super) struct Sent {
    request: Request,
    askers: Vec<Asker>,
    bytes: usize,
    since_ms: u64,
    /// It has come back, and is to be sent again.
    waits: bool,
    /// It may have happened.
    may_have_happened: bool,
}

/// A publish as the owner has admitted it.
pub(in crate::owner) struct Admitted<'a> {
    pub(in crate::owner) payload: &'a [u8],
    pub(in crate::owner) kind: PayloadKind,
    pub(in crate::owner) key: &'a [u8],
    pub(in crate::owner) extra: Option<&'a Extra>,
    pub(in crate::owner) numbered: bool,
}

impl Owner {
    /// Takes a publish for the engine.
    ///
    /// # Errors
    /// Too much waits already.
    pub(in crate::owner) fn enqueue(
        &mut self,
        slot: u32,
        publish: &Admitted<'_>,
        asker: Asker,
        around: &mut Surroundings<'_>,
    ) -> Result<(), PublishError> {
        let queue_bytes_max = self.limits.backplane_queue_bytes_max as usize;
        let Some(fleet) = self.fleet.as_mut() else { return Err(PublishError::Busy) };
        let record = Record {
            kind: publish.kind,
            at_ms: fleet.wall_ms(around.now_ms),
            payload: publish.payload,
            publisher: publish.extra.and_then(Extra::publisher_view),
            tags: Tags::Given(publish.extra.map_or(&[], |extra| &extra.tags)),
        };
        let mut bytes = Vec::with_capacity(publish.payload.len() + 32);
        if publish.numbered {
            record.write(&mut bytes);
        } else {
            Told::Publication(record).write(&mut bytes);
        }
        if fleet.queued_bytes + bytes.len() > queue_bytes_max {
            around.metrics.add(Metric::FleetPublishesRefused, 1);
            return Err(PublishError::Busy);
        }
        fleet.queued_bytes += bytes.len();
        let queued = Queued {
            record: bytes.into(),
            key: publish.key.into(),
            numbered: publish.numbered,
            asker,
            since_ms: around.now_ms,
        };
        let busy = self.busy(slot).ok_or(PublishError::Busy)?;
        busy.queue.push_back(queued);
        self.send_batch(slot, around);
        Ok(())
    }

    /// Sends the next batch of a channel, or the last one again, if it can go now.
    pub(super) fn send_batch(&mut self, slot: u32, around: &mut Surroundings<'_>) {
        let Some((generation, channel)) = self.channels.at(slot) else { return };
        let nothing = channel.busy.as_ref().is_none_or(|busy| match &busy.sent {
            Some(sent) => !sent.waits,
            None => busy.queue.is_empty(),
        });
        if nothing || !self.is_reachable(&channel.name) {
            return;
        }
        let (name, rules) = (channel.name.clone(), around.namespaces.get(channel.namespace));
        let fresh = self.new_epoch();
        let Some(fleet) = self.fleet.as_mut() else { return };
        let number = fleet.batches + 1;
        let Some(busy) = self.channels.at_mut(slot).and_then(|channel| channel.busy.as_mut()) else { return };
        if busy.sent.is_none() {
            fleet.batches = number;
            let Some(first) = busy.queue.pop_front() else { return };
            let (numbered, key) = (first.numbered, first.key);
            let mut sent = Sent {
                bytes: first.record.len(),
                askers: alloc::vec![first.asker],
                since_ms: first.since_ms,
                waits: false,
                may_have_happened: false,
                // Replaced below.
                request: Request::Forget { channel: Box::default() },
            };
            let mut records = alloc::vec![first.record];
            while numbered
                && key.is_empty()
                && records.len() < BATCH_PUBLICATIONS_MAX
                && let Some(next) = busy.queue.pop_front_if(|next| {
                    next.numbered && next.key.is_empty() && sent.bytes + next.record.len() <= BATCH_BYTES_MAX
                })
            {
                sent.bytes += next.record.len();
                sent.askers.push(next.asker);
                records.push(next.record);
            }
            sent.request = if numbered {
                Request::Publish(PublishBatch {
                    channel: name,
                    records,
                    idempotency_key: key,
                    idempotency_window_ms: self.limits.idempotency_window_ms.into(),
                    number,
                    keep: Keep { size: rules.history_size, ttl_ms: rules.history_ttl_ms },
                    replicated: rules.durability == Durability::Fleet,
                    fresh,
                })
            } else {
                let body = records.pop().unwrap_or_default();
                Request::Tell(Tell { subject: Subject::Channel(name), to: Audience::Interested, body })
            };
            busy.sent = Some(sent);
        }
        let Some(sent) = &mut busy.sent else { return };
        sent.waits = false;
        // Each time another one: an engine that has lost its memory may get both copies, and an epoch begins one history only.
        if let Request::Publish(batch) = &mut sent.request {
            batch.fresh = fresh;
        }
        around.metrics.add(Metric::FleetBatches, 1);
        let request = sent.request.clone();
        self.ask(Asked::Publish { channel: (slot, generation) }, request, around);
    }

    /// The engine has numbered a batch, or not.
    pub(super) fn batch_answered(
        &mut self,
        (slot, generation): (u32, u32),
        result: Result<Answer, Refusal>,
        around: &mut Surroundings<'_>,
    ) {
        let Some(channel) = self.channels.get_mut(slot, generation) else { return };
        channel.used_ms = around.now_ms;
        let epoch = channel.epoch;
        let Some(busy) = &mut channel.busy else { return };
        let published = match result {
            Ok(Answer::Published(published)) => published,
            Ok(_) => Published { first: Position { offset: 0, epoch }, duplicate: false },
            Err(refusal @ (Refusal::Unavailable | Refusal::Unknown)) => {
                // Not before the next tick: whoever refused is to have time.
                if let Some(sent) = &mut busy.sent {
                    sent.waits = true;
                    sent.may_have_happened |= refusal == Refusal::Unknown;
                }
                return;
            }
        };
        let Some(sent) = busy.sent.take() else { return };
        self.free(sent.bytes);
        around.metrics.add(Metric::PublicationsOwned, if published.duplicate { 0 } else { sent.askers.len() as u64 });
        around.metrics.add(Metric::PublicationsDuplicate, u64::from(published.duplicate));
        answer(&sent.askers, Ok(published), around);
        self.send_batch(slot, around);
    }

    /// Refuses what has waited for too long.
    pub(super) fn expire(&mut self, slot: u32, around: &mut Surroundings<'_>) {
        let wait_ms = u64::from(self.limits.backplane_wait_ms);
        let Some(busy) = self.channels.at_mut(slot).and_then(|channel| channel.busy.as_mut()) else { return };
        let late = |since_ms: u64| since_ms + wait_ms <= around.now_ms;
        let (mut unknown, mut askers, mut bytes) = (Vec::new(), Vec::new(), 0);
        if let Some(sent) = busy.sent.take_if(|sent| sent.waits && late(sent.since_ms)) {
            if sent.may_have_happened { &mut unknown } else { &mut askers }.extend(sent.askers);
            bytes += sent.bytes;
        }
        while let Some(queued) = busy.queue.pop_front_if(|queued| late(queued.since_ms)) {
            askers.push(queued.asker);
            bytes += queued.record.len();
        }
        let waiting: Vec<_> = busy.waiting.extract_if(.., |waiting| late(waiting.since_ms)).collect();
        self.free(bytes);
        around.metrics.add(Metric::FleetPublishesRefused, (unknown.len() + askers.len()) as u64);
        answer(&unknown, Err(PublishError::Unknown), around);
        answer(&askers, Err(PublishError::Busy), around);
        for waiting in waiting {
            around.metrics.add(Metric::FleetSubscribesRefused, 1);
            Self::refuse_subscribe(&waiting.request, around);
        }
    }

    fn free(&mut self, bytes: usize) {
        if let Some(fleet) = &mut self.fleet {
            fleet.queued_bytes -= bytes;
        }
    }
}

/// Answers all publishes of a batch, with one message for those of one backend that stand together.
fn answer(askers: &[Asker], result: Result<Published, PublishError>, around: &mut Surroundings<'_>) {
    let refused = if result.is_err() { askers.len() as u64 } else { 0 };
    around.metrics.add(Metric::PublicationsRefused, refused);
    let duplicate = result.is_ok_and(|published| published.duplicate);
    let position = |index: usize| {
        result.map(|Published { first: Position { offset, epoch }, .. }| Position {
            // What is not numbered stays so.
            offset: if offset == 0 { 0 } else { offset + index as Offset },
            epoch,
        })
    };
    let mut run: Option<(CoreId, RunAnswer)> = None;
    for (index, asker) in askers.iter().enumerate() {
        match asker.who {
            Who::One(origin) => {
                let answer = PublishAnswer { origin, result: position(index), duplicate };
                around.lanes.push(asker.from, LaneMessage::PublishAnswer(answer));
            }
            Who::Entry { conn, seq, payload_bytes } => {
                let result = position(index).map(|Position { offset, epoch }| Ack {
                    seq,
                    offset,
                    epoch: (epoch.boot, epoch.creation),
                    duplicate,
                });
                if let Some((from, run)) = run.take_if(|(from, run)| *from != asker.from || run.conn != conn) {
                    around.lanes.push(from, LaneMessage::RunAnswer(run.into()));
                }
                let run = run.get_or_insert((asker.from, RunAnswer { conn, answers: Vec::new() }));
                run.1.answers.push(EntryAnswer { seq, payload_bytes, result });
            }
        }
    }
    if let Some((from, run)) = run {
        around.lanes.push(from, LaneMessage::RunAnswer(run.into()));
    }
}
