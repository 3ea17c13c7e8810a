//! The owner of channels: offset, epoch, history window, interested cores, repeated keys.
//!
//! In: publishes, subscribes and leaves that lanes bring from any core, this one included. Out: answers to who asked
//! and publications to each core with interest, all into the lanes, in the order decided here.
//!
//! Invariants: offsets are dense from 1 under an epoch and no number is given twice; what an answer calls the top is
//! followed in the lane by exactly the publications above it; a publication is encoded once per encoding in use.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::dedup::Dedup;
use crate::ids::{CoreId, Epoch, LocalChannelId, Offset};
use crate::lane_message::{
    LaneMessage, LeaveRequest, Position, PublishAnswer, PublishError, PublishRequest, RecoverFrom, Recovery,
    SubscribeAnswer, SubscribeError, SubscribeRequest, Subscribed,
};
use crate::lanes::LanesOut;
use crate::limits::{Limits, OFFSET_MAX};
use crate::metrics::{Metric, Metrics};
use crate::names::Names;
use crate::namespace::{NamespaceId, Namespaces, channel_is_valid};
use crate::publication::{Draft, Publication, Scratch};
use crate::slots::Slots;
use crate::variant::VariantSet;

/// Owned channels looked at per call of [`Owner::sweep`].
const SWEEP_CHANNELS: u32 = 256;

/// See the file's header.
#[derive(Debug)]
pub struct Owner {
    channels: Slots<Channel>,
    names: Names,
    dedup: Dedup,
    boot: u32,
    creations: u32,
    sweep_cursor: u32,
    history_bytes: u64,
    history_len: u64,
    scratch: Scratch,
    limits: Limits,
}

#[derive(Debug)]
struct Channel {
    name: Box<str>,
    namespace: NamespaceId,
    epoch: Epoch,
    top: Offset,
    history: VecDeque<Kept>,
    /// The latest publication, kept while somebody takes deltas.
    last: Option<Arc<Publication>>,
    interest: Vec<Interest>,
    used_ms: u64,
}

#[derive(Debug)]
struct Kept {
    publication: Arc<Publication>,
    at_ms: u64,
}

/// A core that has subscribers, and what it calls the channel.
#[derive(Debug)]
struct Interest {
    core: CoreId,
    local: LocalChannelId,
    variants: VariantSet,
}

/// What every decision here needs from the shard.
pub struct Surroundings<'a> {
    /// Where answers and publications go.
    pub lanes: &'a mut LanesOut,
    /// What is counted.
    pub metrics: &'a mut Metrics,
    /// The rules.
    pub namespaces: &'a Namespaces,
    /// The time of this turn.
    pub now_ms: u64,
}

impl Owner {
    /// An owner without channels. `boot` is random per start of the process; `seed` is secret.
    pub fn new(limits: Limits, boot: u32, seed: u64) -> Self {
        Owner {
            channels: Slots::new(),
            names: Names::new(seed),
            dedup: Dedup::new(limits.idempotency_keys_max, limits.idempotency_window_ms, seed ^ 0x5DEE_CE66),
            boot,
            creations: 0,
            sweep_cursor: 0,
            history_bytes: 0,
            history_len: 0,
            scratch: Scratch::default(),
            limits,
        }
    }

    /// Gives a publication its offset, keeps it, sends it to interested cores, and answers.
    pub fn publish(&mut self, request: PublishRequest, around: &mut Surroundings<'_>) {
        let (from, origin) = (request.from, request.origin);
        let mut duplicate = false;
        let result = self.try_publish(request, &mut duplicate, around);
        if result.is_err() {
            around.metrics.add(Metric::PublicationsRefused, 1);
        }
        around.lanes.push(from, LaneMessage::PublishAnswer(PublishAnswer { origin, result, duplicate }));
    }

    fn try_publish(
        &mut self,
        request: PublishRequest,
        duplicate: &mut bool,
        around: &mut Surroundings<'_>,
    ) -> Result<Position, PublishError> {
        let now_ms = around.now_ms;
        let key =
            (!request.idempotency_key.is_empty()).then(|| self.dedup.hash(&request.channel, &request.idempotency_key));
        if let Some(position) = key.and_then(|key| self.dedup.find(key, now_ms)) {
            around.metrics.add(Metric::PublicationsDuplicate, 1);
            *duplicate = true;
            return Ok(position);
        }
        let found = self.find(&request.channel);
        let namespace = match found.and_then(|slot| self.channels.at(slot)) {
            Some((_, channel)) => channel.namespace,
            None if !channel_is_valid(&request.channel, &self.limits) => return Err(PublishError::UnknownChannel),
            None => around.namespaces.resolve(&request.channel).ok_or(PublishError::UnknownChannel)?.0,
        };
        // Checked here once more, whoever sent it: bytes in a text frame would close every JSON subscriber.
        if around.namespaces.get(namespace).payload != request.kind {
            return Err(PublishError::BadPayload);
        }
        let slot = match found {
            Some(slot) => slot,
            None => self.create(request.channel.clone(), namespace, around).ok_or(PublishError::Busy)?,
        };
        let epoch = self.next_epoch_if_spent(slot);
        let Some(channel) = self.channels.at_mut(slot) else { return Err(PublishError::Busy) };
        let namespace = around.namespaces.get(channel.namespace);
        if let Some(epoch) = epoch {
            channel.epoch = epoch;
            channel.top = 0;
        }
        channel.top += 1;
        channel.used_ms = now_ms;
        let variants = channel.interest.iter().fold(VariantSet::NONE, |all, interest| all.union(interest.variants));
        let shown_offset = if namespace.history_size > 0 { channel.top } else { 0 };
        let draft = Draft {
            channel: &request.channel,
            number: 1 + slot as i64,
            offset: shown_offset,
            payload: &request.payload,
            kind: request.kind,
            publisher: request.publisher,
            variants,
            previous: channel.last.as_deref(),
            deflate_bytes_min: namespace.deflate_bytes_min,
        };
        let publication = Arc::new(Publication::encode(draft, &mut self.scratch));
        channel.last = variants.has_delta().then(|| Arc::clone(&publication));
        for interest in &channel.interest {
            let message = LaneMessage::Deliver { local: interest.local, publication: Arc::clone(&publication) };
            around.lanes.push(interest.core, message);
        }
        let position = Position { offset: channel.top, epoch: channel.epoch };
        if namespace.history_size > 0 {
            self.history_bytes += publication.memory_bytes() as u64;
            self.history_len += 1;
            channel.history.push_back(Kept { publication, at_ms: now_ms });
            self.trim(slot, around);
        }
        if let Some(key) = key {
            let dropped = self.dedup.insert(key, position, now_ms);
            around.metrics.add(Metric::IdempotencyKeysDropped, dropped);
        }
        around.metrics.add(Metric::PublicationsOwned, 1);
        Ok(position)
    }

    /// Notes a core's interest and answers with the channel's top and what the client missed.
    pub fn subscribe(&mut self, request: SubscribeRequest, around: &mut Surroundings<'_>) {
        let from = request.from;
        let (conn, command, local) = (request.conn, request.command, request.local);
        let result = self.try_subscribe(request, around).ok_or(SubscribeError::Busy);
        let answer = SubscribeAnswer { conn, command, local, result };
        around.lanes.push(from, LaneMessage::SubscribeAnswer(Box::new(answer)));
    }

    fn try_subscribe(&mut self, request: SubscribeRequest, around: &mut Surroundings<'_>) -> Option<Subscribed> {
        let slot = match self.find(&request.channel) {
            Some(slot) => slot,
            None => {
                let (namespace, _) = around.namespaces.resolve(&request.channel)?;
                self.create(request.channel, namespace, around)?
            }
        };
        self.trim(slot, around);
        let limits = &self.limits;
        let channel = self.channels.at_mut(slot)?;
        channel.used_ms = around.now_ms;
        match channel.interest.iter_mut().find(|interest| interest.core == request.from) {
            Some(interest) if interest.local == request.local => {
                interest.variants = interest.variants.with(request.variant)
            }
            Some(interest) => {
                interest.local = request.local;
                interest.variants = VariantSet::NONE.with(request.variant);
            }
            None => channel.interest.push(Interest {
                core: request.from,
                local: request.local,
                variants: VariantSet::NONE.with(request.variant),
            }),
        }
        let recovery = request.recover.map(|from| channel.recover(from, limits));
        match recovery {
            Some(Recovery::Recovered(_)) => around.metrics.add(Metric::RecoveriesDone, 1),
            Some(Recovery::NotRecovered) => around.metrics.add(Metric::RecoveriesFailed, 1),
            None => {}
        }
        Some(Subscribed {
            top: Position { offset: channel.top, epoch: channel.epoch },
            recovery,
            number: 1 + slot as i64,
        })
    }

    /// Forgets a core's interest, unless it has subscribed again since under another name.
    pub fn leave(&mut self, request: &LeaveRequest, around: &mut Surroundings<'_>) {
        let Some(channel) = self.find(&request.channel).and_then(|slot| self.channels.at_mut(slot)) else { return };
        channel.used_ms = around.now_ms;
        channel.interest.retain(|interest| (interest.core, interest.local) != (request.from, request.local));
    }

    /// Does a bounded part of the upkeep: ages history and forgets idle channels. Called once per tick.
    pub fn sweep(&mut self, around: &mut Surroundings<'_>) {
        self.dedup.expire(around.now_ms);
        let slots = self.channels.slots();
        for _ in 0..SWEEP_CHANNELS.min(slots) {
            self.sweep_cursor = (self.sweep_cursor + 1) % slots;
            self.trim(self.sweep_cursor, around);
            self.evict_if_idle(self.sweep_cursor, around);
        }
        around.metrics.set(Metric::HistoryBytes, self.history_bytes);
        around.metrics.set(Metric::HistoryPublications, self.history_len);
        around.metrics.set(Metric::ChannelsOwned, self.channels.len() as u64);
    }

    fn find(&self, name: &str) -> Option<u32> {
        self.names.find(name, |slot| name_at(&self.channels, slot))
    }

    /// None: the table is full.
    fn create(&mut self, name: Box<str>, namespace: NamespaceId, around: &mut Surroundings<'_>) -> Option<u32> {
        // The regular sweep makes room; looking for it here would let a client buy our time with names.
        if self.channels.len() >= self.limits.channels_per_shard_max {
            return None;
        }
        let channel = Channel {
            name,
            namespace,
            epoch: self.new_epoch(),
            top: 0,
            history: VecDeque::new(),
            last: None,
            interest: Vec::new(),
            used_ms: around.now_ms,
        };
        let (slot, generation) = self.channels.insert(channel);
        let name = &self.channels.get(slot, generation)?.name;
        self.names.insert(name, slot, |slot| name_at(&self.channels, slot));
        around.metrics.set(Metric::ChannelsOwned, self.channels.len() as u64);
        Some(slot)
    }

    fn new_epoch(&mut self) -> Epoch {
        self.creations = self.creations.wrapping_add(1);
        Epoch { boot: self.boot, creation: self.creations }
    }

    /// A new epoch when the channel has used up its numbers.
    fn next_epoch_if_spent(&mut self, slot: u32) -> Option<Epoch> {
        let spent = self.channels.at(slot).is_some_and(|(_, channel)| channel.top >= OFFSET_MAX);
        spent.then(|| self.new_epoch())
    }

    /// Takes what is too old or too much out of one channel's history.
    fn trim(&mut self, slot: u32, around: &mut Surroundings<'_>) {
        let Some(channel) = self.channels.at_mut(slot) else { return };
        let namespace = around.namespaces.get(channel.namespace);
        while let Some(oldest) = channel.history.front() {
            let surplus = channel.history.len() > namespace.history_size as usize;
            let old = oldest.at_ms + namespace.history_ttl_ms <= around.now_ms;
            let crowded = self.history_bytes > self.limits.history_bytes_max;
            if !(surplus || old || crowded) {
                break;
            }
            if !(surplus || old) {
                around.metrics.add(Metric::HistoryDropped, 1);
            }
            self.history_bytes -= oldest.publication.memory_bytes() as u64;
            self.history_len -= 1;
            channel.history.pop_front();
        }
    }

    fn evict_if_idle(&mut self, slot: u32, around: &mut Surroundings<'_>) {
        let idle_ms = self.limits.channel_idle_ms as u64;
        let Some((generation, channel)) = self.channels.at(slot) else { return };
        if channel.interest.is_empty() && channel.history.is_empty() && channel.used_ms + idle_ms <= around.now_ms {
            self.names.remove(&channel.name, slot);
            self.channels.remove(slot, generation);
            around.metrics.add(Metric::ChannelsEvicted, 1);
        }
    }
}

impl Channel {
    /// All that followed `from`, or that it cannot be had. A partial list is never an answer.
    fn recover(&self, from: RecoverFrom, limits: &Limits) -> Recovery {
        let same_epoch = from.epoch.is_none_or(|epoch| epoch == self.epoch);
        if !same_epoch || from.offset > self.top {
            return Recovery::NotRecovered;
        }
        let missed = (self.top - from.offset) as usize;
        if missed > self.history.len() || missed > limits.recovery_publications_max as usize {
            return Recovery::NotRecovered;
        }
        let publications = self.history.range(self.history.len() - missed..).map(|kept| &kept.publication);
        let bytes: usize = publications.clone().map(|publication| publication.payload().len()).sum();
        if bytes > limits.recovery_bytes_max as usize {
            return Recovery::NotRecovered;
        }
        Recovery::Recovered(publications.cloned().collect())
    }
}

fn name_at(channels: &Slots<Channel>, slot: u32) -> &str {
    channels.at(slot).map_or("", |(_, channel)| &channel.name)
}
