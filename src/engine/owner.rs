//! The owner of channels: offset, epoch, history, members, interested cores, repeated keys.
//!
//! In: publishes, subscribes, leaves and calls that lanes bring from any core, this one included. Out: answers to who
//! asked, and publications, joins and leaves to each core with interest, all into the lanes, in the order decided here.
//! `members` and `calls` below hold what concerns members and what calls ask.
//!
//! Invariants: offsets are dense from 1 under an epoch and no number is given twice; what an answer calls the top is
//! followed in the lane by exactly the publications above it; a publication is encoded once per encoding in use; a
//! core's members leave with its interest at the latest.

mod calls;
mod members;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use ringway_wire::ingest::{Ack, PayloadKind};

use crate::dedup::Dedup;
use crate::history::{History, Room};
use crate::ids::{CoreId, Epoch, LocalChannelId, Offset};
use crate::lane_message::{
    LaneMessage, LeaveRequest, Origin, Position, PublishAnswer, PublishError, PublishRequest, Recovery,
    SubscribeAnswer, SubscribeError, SubscribeRequest, Subscribed,
};
use crate::lanes::LanesOut;
use crate::limits::{Limits, OFFSET_MAX};
use crate::metrics::{Metric, Metrics};
use crate::names::Names;
use crate::namespace::{Namespace, NamespaceId, Namespaces, channel_is_valid};
use crate::presence::{Change, Members};
use crate::publication::{Draft, Extra, JoinLeave, Publication, Scratch};
use crate::publish_run::{Entry, EntryAnswer, PublishRun, RunAnswer};
use crate::rate::TokenBucket;
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
    place: Place,
    /// Epochs given.
    creations: u32,
    /// Channels made.
    created: u64,
    /// Counts reloads of the rules; channels that have seen fewer look their namespace up again.
    rules: u32,
    /// Channels by namespace.
    by_namespace: Vec<u32>,
    /// Channels with subscribers.
    followed: u32,
    /// Channels where a join or leave waits to be told, each once.
    changes: VecDeque<(u32, u32)>,
    listings: VecDeque<calls::Listing>,
    sweep_cursor: u32,
    history_bytes: u64,
    history_len: u64,
    scratch: Scratch,
    limits: Limits,
    seed: u64,
}

/// Which owner this is, among those of the node and of all starts of it.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its shard.
    pub core: CoreId,
    /// How many shards the node has.
    pub shards: u16,
    /// Random per start of the process.
    pub boot: u32,
}

#[derive(Debug)]
struct Channel {
    name: Box<str>,
    namespace: NamespaceId,
    /// Reloads that `namespace` has seen.
    rules: u32,
    /// Stands for the name in compact pushes.
    number: i64,
    epoch: Epoch,
    top: Offset,
    history: History,
    /// The latest publication, kept while somebody takes deltas.
    last: Option<Arc<Publication>>,
    interest: Vec<Interest>,
    /// None until the first comes.
    members: Option<Box<Members>>,
    /// Of clients' publishes.
    rate: TokenBucket,
    used_ms: u64,
}

/// A core that has subscribers, and what it calls the channel.
#[derive(Debug)]
struct Interest {
    core: CoreId,
    local: LocalChannelId,
    variants: VariantSet,
    /// How many members are there.
    members: u32,
}

/// A publish as the owner decides about it, whoever brings it.
struct Publishing<'a> {
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

/// A publish's fate.
struct Published {
    result: Result<Position, PublishError>,
    /// The same key was published before; `result` is the first one's position.
    duplicate: bool,
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
    /// An owner without channels. `seed` is secret.
    pub fn new(limits: Limits, place: Place, seed: u64) -> Self {
        Owner {
            channels: Slots::new(),
            names: Names::new(seed),
            dedup: Dedup::new(limits.idempotency_keys_max, limits.idempotency_window_ms, seed ^ 0x5DEE_CE66),
            place,
            creations: 0,
            created: 0,
            rules: 0,
            by_namespace: Vec::new(),
            followed: 0,
            changes: VecDeque::new(),
            listings: VecDeque::new(),
            sweep_cursor: 0,
            history_bytes: 0,
            history_len: 0,
            scratch: Scratch::default(),
            limits,
            seed: seed.rotate_left(17),
        }
    }

    /// Gives a publication its offset, keeps it, sends it to interested cores, and answers.
    pub fn publish(&mut self, request: PublishRequest, around: &mut Surroundings<'_>) {
        let (from, origin) = (request.from, request.origin);
        let publish = Publishing {
            channel: &request.channel,
            payload: &request.payload,
            kind: request.kind,
            idempotency_key: &request.idempotency_key,
            extra: Extra::of(request.publisher.map(|publisher| *publisher), request.tags),
            skip_history: request.skip_history,
            by_client: matches!(origin, Origin::Client { .. }),
        };
        let Published { result, duplicate } = self.take(publish, around);
        around.lanes.push(from, LaneMessage::PublishAnswer(PublishAnswer { origin, result, duplicate }));
    }

    /// The same for all of a run, with one answer.
    pub fn publish_run(&mut self, run: &PublishRun, around: &mut Surroundings<'_>) {
        let answers = run.iter().map(|entry| self.take_entry(&entry, around)).collect();
        let answer = RunAnswer { conn: run.conn, answers };
        around.lanes.push(run.from, LaneMessage::RunAnswer(answer.into()));
    }

    /// The same for one publish of a backend; the answer is returned, and what follows from it is in the lanes.
    pub fn take_entry(&mut self, entry: &Entry<'_>, around: &mut Surroundings<'_>) -> EntryAnswer {
        let publish = Publishing {
            channel: entry.channel,
            payload: entry.payload,
            kind: entry.kind,
            idempotency_key: entry.idempotency_key,
            extra: None,
            skip_history: false,
            by_client: false,
        };
        let Published { result, duplicate } = self.take(publish, around);
        let result = result.map(|Position { offset, epoch }| Ack {
            seq: entry.seq,
            offset,
            epoch: (epoch.boot, epoch.creation),
            duplicate,
        });
        EntryAnswer { seq: entry.seq, payload_bytes: entry.payload.len() as u32, result }
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
        let found = self.find(request.channel, around);
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
        let position = self.append(slot, request, around).ok_or(PublishError::Busy)?;
        if let Some(key) = key {
            let dropped = self.dedup.insert(key, position, now_ms);
            around.metrics.add(Metric::IdempotencyKeysDropped, dropped);
        }
        around.metrics.add(Metric::PublicationsOwned, 1);
        Ok(position)
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
        let Publishing { channel: name, payload, kind, extra, .. } = request;
        if !channel.interest.is_empty() || channel.last.is_some() {
            let variants = channel.variants();
            let draft = Draft {
                channel: name,
                number: channel.number,
                offset: if has_history && is_numbered { channel.top } else { 0 },
                payload,
                kind,
                extra: extra.clone(),
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
        }
        let offset = if is_numbered { channel.top } else { 0 };
        let position = Position { offset, epoch: channel.epoch };
        if is_numbered {
            // What is kept ends at the top: a new epoch, or a number that is not kept, begins it anew.
            if epoch.is_some() || !has_history {
                self.forget_history(slot);
            }
            if has_history {
                self.keep(slot, payload, extra, around);
            }
        }
        Some(position)
    }

    fn keep(&mut self, slot: u32, payload: &[u8], extra: Option<Arc<Extra>>, around: &mut Surroundings<'_>) {
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
        let forgotten = channel.history.push(payload, extra, around.now_ms, room);
        if forgotten > 0 {
            around.metrics.add(Metric::HistoryDropped, forgotten);
        }
        let after = Kept::of(&channel.history);
        self.count(before, after);
    }

    /// Counts what a channel's history has become.
    const fn count(&mut self, before: Kept, after: Kept) {
        self.history_bytes = self.history_bytes - before.bytes + after.bytes;
        self.history_len = self.history_len - before.len + after.len;
    }

    /// Notes a core's interest and answers with the channel's top and what the client missed. Its joining is told
    /// behind the answer, so that the client hears of itself once it is subscribed.
    pub fn subscribe(&mut self, mut request: SubscribeRequest, around: &mut Surroundings<'_>) {
        let (from, conn, command, local) = (request.from, request.conn, request.command, request.local);
        let member = request.member.take().map(Arc::from);
        let told = request.tell_join_leave;
        let subscribed = self.try_subscribe(request, around);
        let mut joined = None;
        let result = subscribed.ok_or(SubscribeError::Busy).map(|(slot, subscribed)| {
            joined = member.filter(|member| self.join(slot, member, told, around)).map(|member| (slot, member));
            subscribed
        });
        let answer = SubscribeAnswer { conn, command, local, result };
        around.lanes.push(from, LaneMessage::SubscribeAnswer(Box::new(answer)));
        if let (Some((slot, member)), true) = (joined, told) {
            self.changed(slot, Change { kind: JoinLeave::Join, member }, around);
        }
    }

    fn try_subscribe(&mut self, request: SubscribeRequest, around: &mut Surroundings<'_>) -> Option<(u32, Subscribed)> {
        let slot = match self.find(&request.channel, around) {
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
        self.followed += u32::from(channel.interest.is_empty());
        match channel.interest.iter_mut().find(|interest| interest.core == request.from) {
            Some(interest) if interest.local == request.local => {
                interest.variants = interest.variants.with(request.variant)
            }
            Some(interest) => {
                interest.local = request.local;
                interest.variants = VariantSet::NONE.with(request.variant);
            }
            None => {
                if channel.interest.is_empty() {
                    // Most channels have subscribers on one core.
                    channel.interest.reserve_exact(1);
                }
                channel.interest.push(Interest {
                    core: request.from,
                    local: request.local,
                    variants: VariantSet::NONE.with(request.variant),
                    members: 0,
                });
            }
        }
        let top = Position { offset: channel.top, epoch: channel.epoch };
        let mode = around.namespaces.get(channel.namespace).recovery_mode;
        let recovery = request.recover.map(|from| channel.history.recover(top, from, mode, limits));
        match recovery {
            Some(Recovery::Recovered(_)) => around.metrics.add(Metric::RecoveriesDone, 1),
            Some(Recovery::NotRecovered) => around.metrics.add(Metric::RecoveriesFailed, 1),
            None => {}
        }
        Some((slot, Subscribed { top, recovery, number: channel.number }))
    }

    /// Forgets a core's interest, unless it has subscribed again since under another name. Members of it that have
    /// not left one by one (a core that lost messages gives a channel up as a whole) leave now.
    pub fn leave(&mut self, request: &LeaveRequest, around: &mut Surroundings<'_>) {
        let Some(slot) = self.find(&request.channel, around) else { return };
        let Some(channel) = self.channels.at_mut(slot) else { return };
        channel.used_ms = around.now_ms;
        let name = (request.from, request.local);
        let Some(index) = channel.interest.iter().position(|interest| (interest.core, interest.local) == name) else {
            return;
        };
        let interest = channel.interest.swap_remove(index);
        self.followed -= u32::from(channel.interest.is_empty());
        if interest.members > 0 {
            self.leave_core(slot, interest.core, around);
        }
        if let Some(channel) = self.channels.at_mut(slot) {
            channel.members.take_if(|members| channel.interest.is_empty() && members.is_idle());
        }
    }

    /// Does a bounded part of the upkeep: ages history, forgets idle channels, tells of changes that waited. Called
    /// once per tick.
    pub fn sweep(&mut self, around: &mut Surroundings<'_>) {
        self.dedup.expire(around.now_ms);
        self.tell_due(around);
        let slots = self.channels.slots();
        for _ in 0..SWEEP_CHANNELS.min(slots) {
            self.sweep_cursor = (self.sweep_cursor + 1) % slots;
            self.refresh(self.sweep_cursor, around);
            self.trim(self.sweep_cursor, around);
            self.evict_if_idle(self.sweep_cursor, around);
        }
        around.metrics.set(Metric::HistoryBytes, self.history_bytes);
        around.metrics.set(Metric::HistoryPublications, self.history_len);
        around.metrics.set(Metric::ChannelsOwned, self.channels.len() as u64);
    }

    /// The rules have been replaced. Channels follow when they are next used, or swept.
    pub fn rules_changed(&mut self) {
        self.rules = self.rules.wrapping_add(1);
    }

    /// The channel, under the rules that hold now.
    fn find(&mut self, name: &str, around: &Surroundings<'_>) -> Option<u32> {
        let slot = self.names.find(name, |slot| name_at(&self.channels, slot))?;
        self.refresh(slot, around);
        Some(slot)
    }

    /// Looks the channel's namespace up again if the rules have been replaced. A name that has none any more keeps its
    /// last one: who may still use it is decided where requests come in.
    fn refresh(&mut self, slot: u32, around: &Surroundings<'_>) {
        let Some(channel) = self.channels.at_mut(slot) else { return };
        if channel.rules == self.rules {
            return;
        }
        channel.rules = self.rules;
        if let Some((namespace, _)) = around.namespaces.resolve(&channel.name) {
            let before = core::mem::replace(&mut channel.namespace, namespace);
            *self.count_of(before) -= 1;
            *self.count_of(namespace) += 1;
        }
    }

    /// None: the table is full, or the namespace has its share of it.
    fn create(&mut self, name: Box<str>, namespace: NamespaceId, around: &mut Surroundings<'_>) -> Option<u32> {
        // The regular sweep makes room; looking for it here would let a client buy our time with names.
        let share = around.namespaces.get(namespace).channels_per_shard_max;
        let is_full = self.channels.len() >= self.limits.channels_per_shard_max;
        if is_full || (share > 0 && *self.count_of(namespace) >= share) {
            around.metrics.add(Metric::ChannelsRefused, 1);
            return None;
        }
        let channel = Channel {
            name,
            namespace,
            rules: self.rules,
            number: self.new_number(),
            epoch: self.new_epoch(),
            top: 0,
            history: History::default(),
            last: None,
            interest: Vec::new(),
            members: None,
            rate: TokenBucket::default(),
            used_ms: around.now_ms,
        };
        *self.count_of(namespace) += 1;
        let (slot, generation) = self.channels.insert(channel);
        let name = &self.channels.get(slot, generation)?.name;
        self.names.insert(name, slot, |slot| name_at(&self.channels, slot));
        around.metrics.set(Metric::ChannelsOwned, self.channels.len() as u64);
        Some(slot)
    }

    /// How many channels a namespace has here.
    fn count_of(&mut self, namespace: NamespaceId) -> &mut u32 {
        let index = namespace.0 as usize;
        if self.by_namespace.len() <= index {
            self.by_namespace.resize(index + 1, 0);
        }
        &mut self.by_namespace[index]
    }

    /// Unique on the node for as long as it runs; small, since it stands in every compact push, and far below 2^53.
    fn new_number(&mut self) -> i64 {
        let number = self.created * u64::from(self.place.shards) + u64::from(self.place.core.0) + 1;
        self.created += 1;
        number as i64
    }

    fn new_epoch(&mut self) -> Epoch {
        self.creations = self.creations.wrapping_add(1);
        Epoch { boot: self.place.boot, creation: self.creations }
    }

    /// A new epoch when the channel has used up its numbers.
    fn next_epoch_if_spent(&mut self, slot: u32) -> Option<Epoch> {
        let spent = self.channels.at(slot).is_some_and(|(_, channel)| channel.top >= OFFSET_MAX);
        spent.then(|| self.new_epoch())
    }

    /// Takes what is too old or too much out of one channel's history.
    fn trim(&mut self, slot: u32, around: &Surroundings<'_>) {
        let Some(channel) = self.channels.at_mut(slot) else { return };
        let before = Kept::of(&channel.history);
        age(&mut channel.history, around.namespaces.get(channel.namespace), around.now_ms);
        channel.history.tidy();
        let after = Kept::of(&channel.history);
        self.count(before, after);
    }

    /// Takes everything out of one channel's history; offsets go on where they are.
    fn forget_history(&mut self, slot: u32) {
        let Some(channel) = self.channels.at_mut(slot) else { return };
        let before = Kept::of(&channel.history);
        channel.history.clear();
        self.count(before, Kept { bytes: 0, len: 0 });
    }

    fn evict_if_idle(&mut self, slot: u32, around: &mut Surroundings<'_>) {
        let idle_ms = self.limits.channel_idle_ms as u64;
        let Some((generation, channel)) = self.channels.at(slot) else { return };
        if channel.interest.is_empty() && channel.history.is_empty() && channel.used_ms + idle_ms <= around.now_ms {
            let namespace = channel.namespace;
            self.names.remove(&channel.name, slot);
            self.channels.remove(slot, generation);
            *self.count_of(namespace) -= 1;
            around.metrics.add(Metric::ChannelsEvicted, 1);
        }
    }
}

impl Channel {
    /// In how many ways its subscribers take publications, joins and leaves.
    fn variants(&self) -> VariantSet {
        self.interest.iter().fold(VariantSet::NONE, |all, interest| all.union(interest.variants))
    }
}

/// What is kept of one channel.
#[derive(Clone, Copy)]
struct Kept {
    bytes: u64,
    len: u64,
}

impl Kept {
    fn of(history: &History) -> Self {
        Kept { bytes: history.bytes() as u64, len: history.len() as u64 }
    }
}

/// Forgets what is too old or too much.
fn age(history: &mut History, rules: &Namespace, now_ms: u64) {
    while let Some(oldest_at_ms) = history.oldest_at_ms() {
        let surplus = history.len() > rules.history_size as usize;
        if !surplus && oldest_at_ms + rules.history_ttl_ms > now_ms {
            break;
        }
        history.pop_oldest();
    }
}

fn name_at(channels: &Slots<Channel>, slot: u32) -> &str {
    channels.at(slot).map_or("", |(_, channel)| &channel.name)
}
