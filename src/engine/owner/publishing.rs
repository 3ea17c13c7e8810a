//! What becomes of a publish: refused, a repetition, or numbered, kept and sent out.
//!
//! In: publishes of clients and the control plane one by one, of backends in runs or straight from the frame that is being
//! read. Out: answers; publications for each core with interest, into the lanes. Invariant: the way on which a publish came
//! decides nothing but where its answer goes.

use alloc::sync::Arc;
use alloc::vec::Vec;

use ringway_wire::ingest::{Ack, PayloadKind};

use super::shared::{Admitted, Asker, Who};
use super::{Kept, Owner, Surroundings, age, name_at};
use crate::history::Room;
use crate::ids::{ConnId, CoreId, Offset};
use crate::lane_message::{LaneMessage, Origin, Position, PublishAnswer, PublishError, PublishRequest};
use crate::metrics::Metric;
use crate::namespace::channel_is_valid;
use crate::publication::{Draft, Extra, Publication};
use crate::publish_run::{Entry, EntryAnswer, PublishRun, RunAnswer};

/// Publishes whose channels are looked for at once: as many misses as a core has under way.
pub const LOOK_AHEAD: usize = 16;

/// A publish as the owner decides about it, whoever brings it.
struct Publishing<'a> {
    /// Where the channel was when it was last looked for.
    slot: Option<u32>,
    channel: &'a str,
    /// JSON without raw newlines, or bytes.
    payload: &'a [u8],
    kind: PayloadKind,
    /// Empty: none.
    idempotency_key: &'a [u8],
    extra: Option<Arc<Extra>>,
    skip_history: bool,
    by_client: bool,
}

impl<'a> Publishing<'a> {
    const fn of(entry: &Entry<'a>, slot: Option<u32>) -> Self {
        Publishing {
            slot,
            channel: entry.channel,
            payload: entry.payload,
            kind: entry.kind,
            idempotency_key: entry.idempotency_key,
            extra: None,
            skip_history: false,
            by_client: false,
        }
    }
}

/// A publish's fate.
struct Published {
    result: Result<Position, PublishError>,
    /// The same key was published before; `result` is the first one's position.
    duplicate: bool,
}

impl Owner {
    /// Gives a publication its offset, keeps it, sends it to interested cores, and answers.
    pub fn publish(&mut self, request: PublishRequest, around: &mut Surroundings<'_>) {
        let (from, origin) = (request.from, request.origin);
        let asker = Asker { from, who: Who::One(origin) };
        let publish = Publishing {
            slot: None,
            channel: &request.channel,
            payload: &request.payload,
            kind: request.kind,
            idempotency_key: &request.idempotency_key,
            extra: Extra::of(request.publisher.map(|publisher| *publisher), request.tags),
            skip_history: request.skip_history,
            by_client: matches!(origin, Origin::Client { .. }),
        };
        if self.is_shared() {
            if let Err(error) = self.take_shared(&publish, asker, around) {
                let answer = PublishAnswer { origin, result: Err(error), duplicate: false };
                around.lanes.push(from, LaneMessage::PublishAnswer(answer));
            }
            return;
        }
        let Published { result, duplicate } = self.take(publish, around);
        around.lanes.push(from, LaneMessage::PublishAnswer(PublishAnswer { origin, result, duplicate }));
    }

    /// The same for all of a run, with one answer.
    pub fn publish_run(&mut self, run: &PublishRun, around: &mut Surroundings<'_>) {
        let mut answers = Vec::with_capacity(run.len());
        let mut entries = run.iter();
        loop {
            let group: [_; LOOK_AHEAD] = core::array::from_fn(|_| entries.next());
            let slots = self.look_ahead(group.each_ref().map(|entry| entry.as_ref().map(|entry| entry.channel)));
            for (entry, slot) in group.iter().flatten().zip(slots) {
                if !self.is_shared() {
                    answers.push(self.take_entry(entry, slot, around));
                } else if let Err(error) = self.take_entry_shared(entry, slot, (run.from, run.conn), around) {
                    let payload_bytes = entry.payload.len() as u32;
                    answers.push(EntryAnswer { seq: entry.seq, payload_bytes, result: Err(error) });
                }
            }
            if group[LOOK_AHEAD - 1].is_none() {
                break;
            }
        }
        if answers.is_empty() {
            return;
        }
        let answer = RunAnswer { conn: run.conn, answers };
        around.lanes.push(run.from, LaneMessage::RunAnswer(answer.into()));
    }

    /// The same for one publish of a backend; the answer is returned, and what follows from it is in the lanes.
    /// `slot`: as [`Owner::look_ahead`] gave it, if it was asked.
    pub fn take_entry(&mut self, entry: &Entry<'_>, slot: Option<u32>, around: &mut Surroundings<'_>) -> EntryAnswer {
        let Published { result, duplicate } = self.take(Publishing::of(entry, slot), around);
        let result = result.map(|Position { offset, epoch }| Ack {
            seq: entry.seq,
            offset,
            epoch: (epoch.boot, epoch.creation),
            duplicate,
        });
        EntryAnswer { seq: entry.seq, payload_bytes: entry.payload.len() as u32, result }
    }

    /// The same on a node of a fleet, where the answer comes later.
    ///
    /// # Errors
    /// It was refused at once.
    fn take_entry_shared(
        &mut self,
        entry: &Entry<'_>,
        slot: Option<u32>,
        (from, conn): (CoreId, ConnId),
        around: &mut Surroundings<'_>,
    ) -> Result<(), PublishError> {
        let who = Who::Entry { conn, seq: entry.seq, payload_bytes: entry.payload.len() as u32 };
        self.take_shared(&Publishing::of(entry, slot), Asker { from, who }, around)
    }

    fn take_shared(
        &mut self,
        publish: &Publishing<'_>,
        asker: Asker,
        around: &mut Surroundings<'_>,
    ) -> Result<(), PublishError> {
        let admitted = Admitted {
            payload: publish.payload,
            kind: publish.kind,
            key: publish.idempotency_key,
            extra: publish.extra.as_deref(),
            numbered: !publish.skip_history,
        };
        let taken = self.admit(publish, around).and_then(|slot| self.enqueue(slot, &admitted, asker, around));
        if taken.is_err() {
            around.metrics.add(Metric::PublicationsRefused, 1);
        }
        taken
    }

    /// Finds the channels of publishes that are to come, and looks at the memory that those will need: what is in no cache
    /// is then fetched for several of them at a time, not for one after the other. Changes nothing.
    pub fn look_ahead(&self, channels: [Option<&str>; LOOK_AHEAD]) -> [Option<u32>; LOOK_AHEAD] {
        let slots = channels.map(|name| self.names.find(name?, |slot| name_at(&self.channels, slot)));
        let oldest = |slot: &Option<u32>| self.channels.at((*slot)?)?.1.history.oldest_at_ms();
        core::hint::black_box(slots.iter().filter_map(oldest).fold(0, |sum, at_ms| sum ^ at_ms));
        slots
    }

    fn take(&mut self, publish: Publishing<'_>, around: &mut Surroundings<'_>) -> Published {
        let mut duplicate = false;
        let result = self.try_publish(publish, &mut duplicate, around);
        if result.is_err() {
            around.metrics.add(Metric::PublicationsRefused, 1);
        }
        Published { result, duplicate }
    }

    fn try_publish(
        &mut self,
        request: Publishing<'_>,
        duplicate: &mut bool,
        around: &mut Surroundings<'_>,
    ) -> Result<Position, PublishError> {
        let now_ms = around.now_ms;
        let key =
            (!request.idempotency_key.is_empty()).then(|| self.dedup.hash(request.channel, request.idempotency_key));
        if let Some(position) = key.and_then(|key| self.dedup.find(key, now_ms)) {
            around.metrics.add(Metric::PublicationsDuplicate, 1);
            *duplicate = true;
            return Ok(position);
        }
        let slot = self.admit(&request, around)?;
        let position = self.append(slot, request, around).ok_or(PublishError::Busy)?;
        if let Some(key) = key {
            let dropped = self.dedup.insert(key, position, now_ms);
            around.metrics.add(Metric::IdempotencyKeysDropped, dropped);
        }
        around.metrics.add(Metric::PublicationsOwned, 1);
        Ok(position)
    }

    /// Whether a publish may pass, and into which channel.
    fn admit(&mut self, request: &Publishing<'_>, around: &mut Surroundings<'_>) -> Result<u32, PublishError> {
        let slot = request.slot.filter(|slot| name_at(&self.channels, *slot) == request.channel);
        let found = match slot {
            Some(slot) => self.refresh(slot, around).then_some(slot),
            None => self.find(request.channel, around),
        };
        let namespace = match found.and_then(|slot| self.channels.at(slot)) {
            Some((_, channel)) => channel.namespace,
            None if !channel_is_valid(request.channel, &self.limits) => return Err(PublishError::UnknownChannel),
            None => around.namespaces.resolve(request.channel).ok_or(PublishError::UnknownChannel)?.0,
        };
        // A reload may have taken the namespace away; its channels stay, and get nothing new.
        if !around.namespaces.is_live(namespace) {
            return Err(PublishError::UnknownChannel);
        }
        // Checked here once more, whoever sent it: bytes in a text frame would close every JSON subscriber.
        if around.namespaces.get(namespace).payload != request.kind {
            return Err(PublishError::BadPayload);
        }
        let slot = match found {
            Some(slot) => slot,
            None => self.create(request.channel.into(), namespace, around).ok_or(PublishError::Busy)?,
        };
        if request.by_client && !self.take_rate(slot, around) {
            around.metrics.add(Metric::PublicationsRateLimited, 1);
            return Err(PublishError::Busy);
        }
        Ok(slot)
    }

    /// Whether a client's publication may pass now.
    fn take_rate(&mut self, slot: u32, around: &Surroundings<'_>) -> bool {
        let Some(channel) = self.channels.at_mut(slot) else { return true };
        let rate = around.namespaces.get(channel.namespace).publish_rate_per_channel;
        channel.rate.take(rate, around.now_ms)
    }

    /// Numbers a publication, sends it out and keeps it. None: the channel has gone, which cannot be.
    fn append(&mut self, slot: u32, request: Publishing<'_>, around: &mut Surroundings<'_>) -> Option<Position> {
        let is_numbered = !request.skip_history;
        let epoch = if is_numbered { self.next_epoch_if_spent(slot) } else { None };
        let channel = self.channels.at_mut(slot)?;
        let namespace = around.namespaces.get(channel.namespace);
        let has_history = namespace.history_size > 0;
        if let Some(epoch) = epoch {
            channel.epoch = epoch;
            channel.top = 0;
        }
        channel.top += Offset::from(is_numbered);
        channel.used_ms = around.now_ms;
        let Publishing { payload, kind, extra, .. } = request;
        let offset = if is_numbered { channel.top } else { 0 };
        let position = Position { offset, epoch: channel.epoch };
        self.send_out(slot, if has_history { offset } else { 0 }, (payload, kind), extra.clone(), around);
        if is_numbered {
            // What is kept ends at the top: a new epoch, or a number that is not kept, begins it anew.
            if epoch.is_some() || !has_history {
                self.forget_history(slot);
            }
            if has_history {
                self.keep(slot, payload, extra, around.now_ms, around);
            }
        }
        Some(position)
    }

    /// Encodes a publication and sends it to each core with subscribers. `offset`: as they see it.
    #[inline]
    pub(super) fn send_out(
        &mut self,
        slot: u32,
        offset: Offset,
        (payload, kind): (&[u8], PayloadKind),
        extra: Option<Arc<Extra>>,
        around: &mut Surroundings<'_>,
    ) {
        let Some(channel) = self.channels.at_mut(slot) else { return };
        if channel.interest.is_empty() && channel.last.is_none() {
            return;
        }
        let variants = channel.variants();
        let draft = Draft {
            channel: &channel.name,
            number: channel.number,
            offset,
            payload,
            kind,
            extra,
            variants,
            previous: channel.last.as_deref(),
            deflate_bytes_min: around.namespaces.get(channel.namespace).deflate_bytes_min,
        };
        let publication = Arc::new(Publication::encode(draft, &mut self.scratch));
        channel.last = variants.has_delta().then(|| Arc::clone(&publication));
        for interest in &channel.interest {
            let message = LaneMessage::Deliver { local: interest.local, publication: Arc::clone(&publication) };
            around.lanes.push(interest.core, message);
        }
    }

    /// Keeps the publication that is the channel's top now.
    pub(super) fn keep(
        &mut self,
        slot: u32,
        payload: &[u8],
        extra: Option<Arc<Extra>>,
        at_ms: u64,
        around: &mut Surroundings<'_>,
    ) {
        let Some(channel) = self.channels.at_mut(slot) else { return };
        let namespace = around.namespaces.get(channel.namespace);
        let before = Kept::of(&channel.history);
        age(&mut channel.history, namespace, around.now_ms);
        let own = channel.history.bytes() as u64;
        let others = self.history_bytes - before.bytes;
        let room = Room {
            len_max: namespace.history_size,
            bytes_max: self.limits.history_bytes_max.saturating_sub(others).max(own),
        };
        let forgotten = channel.history.push(payload, extra, at_ms, room);
        if forgotten > 0 {
            around.metrics.add(Metric::HistoryDropped, forgotten);
        }
        let after = Kept::of(&channel.history);
        self.count(before, after);
    }
}
