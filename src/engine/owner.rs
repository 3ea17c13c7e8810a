//! The owner of channels: offset, epoch, history, members, interested cores, repeated keys.
//!
//! In: publishes, subscribes, leaves and calls that lanes bring from any core, this one included. Out: answers to who
//! asked, and publications, joins and leaves to each core with interest, all into the lanes, in the order decided here.
//! `publishing`, `members` and `calls` below hold what happens to a publish, what concerns members and what calls ask;
//! `shared` what is different where several nodes share an engine.
//!
//! Invariants: offsets are dense from 1 under an epoch and no number is given twice; what an answer calls the top is
//! followed in the lane by exactly the publications above it; a publication is encoded once per encoding in use; a
//! core's members leave with its interest at the latest.

mod calls;
mod members;
mod publishing;
mod shared;
#[cfg(test)]
mod tests;

pub use publishing::LOOK_AHEAD;
pub use shared::{FleetPlace, Handed, OrderAsker, Taker};

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::dedup::Dedup;
use crate::history::History;
use crate::ids::{CoreId, Epoch, LocalChannelId, Offset};
use crate::lane_message::{
    LaneMessage, LeaveRequest, Position, Recovery, SubscribeAnswer, SubscribeError, SubscribeRequest, Subscribed,
};
use crate::lanes::LanesOut;
use crate::limits::{Limits, OFFSET_MAX};
use crate::metrics::{Metric, Metrics};
use crate::names::Names;
use crate::namespace::{Namespace, NamespaceId, Namespaces};
use crate::presence::{Change, Members};
use crate::publication::{JoinLeave, Publication, Scratch};
use crate::rate::TokenBucket;
use crate::slots::Slots;
use crate::variant::VariantSet;
use shared::{Busy, Fleet, Stage};

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
    sweep_cursor: u32,
    history_bytes: u64,
    history_len: u64,
    scratch: Scratch,
    /// On a node of a fleet.
    fleet: Option<Box<Fleet>>,
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
    /// On a node of a fleet: whether the engine feeds it.
    stage: Stage,
    /// How many breaks of the engine's feed it has seen.
    breaks: u32,
    /// And what goes on about it.
    busy: Option<Box<Busy>>,
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
    pub fn new(limits: Limits, place: Place, fleet: Option<FleetPlace>, seed: u64) -> Self {
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
            sweep_cursor: 0,
            history_bytes: 0,
            history_len: 0,
            scratch: Scratch::default(),
            fleet: fleet.map(|place| Box::new(Fleet::new(place))),
            limits,
            seed: seed.rotate_left(17),
        }
    }

    /// Notes a core's interest and answers with the channel's top and what the client missed. Its joining is told
    /// behind the answer, so that the client hears of itself once it is subscribed.
    pub fn subscribe(&mut self, request: SubscribeRequest, around: &mut Surroundings<'_>) {
        match self.fleet {
            None => self.answer_subscribe(request, around),
            Some(_) => self.subscribe_shared(request, around),
        }
    }

    fn answer_subscribe(&mut self, mut request: SubscribeRequest, around: &mut Surroundings<'_>) {
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
        self.leave_waiting(slot, |waiting| (waiting.from, waiting.local) == name);
        let Some(channel) = self.channels.at_mut(slot) else { return };
        let Some(index) = channel.interest.iter().position(|interest| (interest.core, interest.local) == name) else {
            return;
        };
        let interest = channel.interest.swap_remove(index);
        let is_last = channel.interest.is_empty();
        self.followed -= u32::from(is_last);
        if interest.members > 0 {
            self.leave_core(slot, interest.core, around);
        }
        if is_last {
            self.left_alone(slot, around);
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
        self.fleet_tick(around);
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
    /// False: there is no channel in the slot.
    fn refresh(&mut self, slot: u32, around: &Surroundings<'_>) -> bool {
        let Some(channel) = self.channels.at_mut(slot) else { return false };
        if channel.rules == self.rules {
            return true;
        }
        channel.rules = self.rules;
        if let Some((namespace, _)) = around.namespaces.resolve(&channel.name) {
            let before = core::mem::replace(&mut channel.namespace, namespace);
            *self.count_of(before) -= 1;
            *self.count_of(namespace) += 1;
        }
        true
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
            stage: Stage::Cold,
            breaks: 0,
            busy: None,
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

    /// Counts what a channel's history has become.
    const fn count(&mut self, before: Kept, after: Kept) {
        self.history_bytes = self.history_bytes - before.bytes + after.bytes;
        self.history_len = self.history_len - before.len + after.len;
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
        let used = !channel.interest.is_empty() || channel.stage == Stage::Live || channel.busy.is_some();
        if !used && channel.history.is_empty() && channel.used_ms + idle_ms <= around.now_ms {
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
