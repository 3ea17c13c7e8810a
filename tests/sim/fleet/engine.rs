//! A model of the engine that several nodes share, with what can go wrong with it.
//!
//! In: requests, carried out one after the other in the order in which the world lets them arrive; faults. Out: answers;
//! what is fed, in an inbox per registration of a node. What it promises is the contract's (`engine/backplane.rs`), written
//! down once more and kept simple. What was kept when its replica looked last is all that a failover saves; no channel's
//! epoch outlives that. Claim: an epoch that owners bring is never used for two histories of a channel.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ringway_engine::backplane::{
    Answer, Audience, Enter, Event, Fed, Feed, Follow, Keep, NodeId, Order, Page, Park, PublishBatch, Published, Read,
    Refusal, Request, Room, Subject, Taken, Tell,
};
use ringway_engine::ids::{Epoch, Offset};
use ringway_engine::lane_message::Position;
use ringway_engine::route;

use super::truth::{Id, Truth};

/// How long a node that is silent counts as living.
pub(crate) const LEASE_MS: u64 = 1_500;

/// Who asks: one registration of one start of a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    pub(crate) generation: u32,
    /// The start: a batch keeps its name when the node registers anew.
    pub(crate) boot: u64,
}

/// See the file's header.
#[derive(Default)]
pub(crate) struct Engine {
    pub(crate) now_ms: u64,
    kept: Kept,
    /// What a failover would find.
    replica: Kept,
    /// There is one.
    pub(crate) has_replica: bool,
    generations: u32,
    /// By generation: what is fed and has not arrived; open while the node's connection for it is.
    pub(crate) inboxes: BTreeMap<u32, Inbox>,
    /// By the name of the node: its start, its registration, until when.
    leases: BTreeMap<usize, (u64, NodeId, u64)>,
    pub(crate) draining_until_ms: u64,
    /// Epochs under which a history has begun, by channel.
    begun: BTreeSet<(Box<str>, (u32, u32))>,
    /// Times that it has lost something.
    pub(crate) losses: u32,
}

/// What is fed to one registration.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    pub(crate) queue: VecDeque<Event>,
    /// The node has gone without the engine's knowing: what is fed goes nowhere.
    pub(crate) is_ghost: bool,
}

/// What a replica has a copy of.
#[derive(Clone, Default)]
struct Kept {
    channels: BTreeMap<Box<str>, Channel>,
    /// Whether it is a user, and the name.
    interest: BTreeMap<(bool, Box<str>), BTreeSet<u32>>,
    keys: BTreeMap<(Box<str>, Box<[u8]>), Position>,
    parked: BTreeMap<Box<str>, Parked>,
    /// By user and registration.
    connections: BTreeMap<Box<str>, BTreeMap<u32, u32>>,
}

/// What is parked for a user, the oldest first, and until when.
type Parked = (VecDeque<Taken>, u64);

#[derive(Clone)]
struct Channel {
    epoch: Epoch,
    top: Offset,
    records: VecDeque<Box<[u8]>>,
    /// By start of a node: number and place of its last batch.
    batches: BTreeMap<u64, (u64, Position)>,
    /// A failover has cut it off somewhere: a new epoch begins with the next request.
    is_stale: bool,
}

impl Engine {
    /// Registers a start of a node. None: another start under its name still counts as living.
    pub(crate) fn register(&mut self, name: usize, boot: u64) -> Option<NodeId> {
        let now_ms = self.now_ms;
        self.leases.retain(|of, (start, _, until_ms)| *until_ms > now_ms || (*of == name && *start == boot));
        if self.leases.get(&name).is_some_and(|(start, ..)| *start != boot) {
            return None;
        }
        self.generations += 1;
        let others: Vec<u16> = self.leases.values().map(|(_, node, _)| node.place).collect();
        let place = (0..).find(|place| !others.contains(place)).expect("a free place");
        let node = NodeId { place, generation: self.generations };
        self.leases.insert(name, (boot, node, now_ms + LEASE_MS));
        Some(node)
    }

    /// Whether some start of a node counts as living.
    pub(crate) fn has_lease(&self, name: usize) -> bool {
        self.leases.get(&name).is_some_and(|(.., until_ms)| *until_ms > self.now_ms)
    }

    /// A node shows that it lives. False: its lease has ended, and it is to be registered again.
    pub(crate) fn renew(&mut self, name: usize, boot: u64, node: NodeId) -> bool {
        let now_ms = self.now_ms;
        let lease = self.leases.get_mut(&name);
        let lease = lease.filter(|(start, of, until_ms)| (*start, *of) == (boot, node) && *until_ms > now_ms);
        let Some((.., until_ms)) = lease else { return false };
        *until_ms = now_ms + LEASE_MS;
        true
    }

    /// A node gives its lease back.
    pub(crate) fn release(&mut self, name: usize) {
        self.leases.remove(&name);
    }

    /// The replica has everything.
    pub(crate) fn replicate(&mut self) {
        if self.has_replica {
            self.replica = self.kept.clone();
        }
    }

    /// Time passes: connections of those that are gone end, once that shows.
    pub(crate) fn pass(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        let leases = &self.leases;
        let lives =
            |generation| leases.values().any(|(_, node, until_ms)| node.generation == generation && *until_ms > now_ms);
        self.inboxes.retain(|generation, inbox| !inbox.is_ghost || lives(*generation));
    }

    /// Comes back as its replica was when it looked last. Whoever was connected is not.
    pub(crate) fn fail_over(&mut self) {
        self.kept = self.replica.clone();
        self.kept.channels.values_mut().for_each(|channel| channel.is_stale = true);
        self.inboxes.clear();
        self.losses += 1;
    }

    /// Comes back without anything.
    pub(crate) fn restart_empty(&mut self) {
        (self.kept, self.replica) = (Kept::default(), Kept::default());
        self.inboxes.clear();
        self.leases.clear();
        self.draining_until_ms = 0;
        self.losses += 1;
    }

    /// Forgets who is interested in something, and nothing else.
    pub(crate) fn forget_interest(&mut self, pick: usize) {
        let count = self.kept.interest.len().max(1);
        if let Some(key) = self.kept.interest.keys().nth(pick % count).cloned() {
            self.kept.interest.remove(&key);
        }
    }

    /// Carries one request out.
    pub(crate) fn execute(&mut self, from: Caller, request: Request, truth: &mut Truth) -> Result<Answer, Refusal> {
        Ok(match request {
            Request::Publish(batch) => Answer::Published(self.publish(from, batch, truth)?),
            Request::Follow(follow) => Answer::Page(self.follow(from, &follow, truth)),
            Request::FollowUser { user } => {
                self.kept.interest.entry((true, user)).or_default().insert(from.generation);
                Answer::Done
            }
            Request::Unfollow(subject) => {
                let key = interest_of(&subject);
                if let Some(nodes) = self.kept.interest.get_mut(&key) {
                    nodes.remove(&from.generation);
                    if nodes.is_empty() {
                        self.kept.interest.remove(&key);
                    }
                }
                Answer::Done
            }
            Request::Read(read) => Answer::Page(self.read(&read, truth)),
            Request::Forget { channel } => {
                self.kept.channels.get_mut(&channel).into_iter().for_each(|channel| channel.records.clear());
                Answer::Done
            }
            Request::Tell(tell) => Answer::Told(self.tell(tell)),
            Request::Order(order) => Answer::Told(self.order(order)?),
            Request::Park(entry) => Answer::Displaced(self.park(from, entry, truth)),
            Request::TakeParked { user } => {
                let taken = self.take_parked(&user);
                self.kept.interest.entry((true, user)).or_default().insert(from.generation);
                Answer::Parked(taken.map(Box::new))
            }
            Request::Draining { ttl_ms } => {
                self.draining_until_ms = self.draining_until_ms.max(self.now_ms + ttl_ms);
                Answer::Done
            }
            Request::Enter(enter) => Answer::Entered(self.enter(from, enter)),
            Request::SetConnections { user, mine } => {
                self.set_connections(from, user, mine);
                Answer::Done
            }
            Request::Describe { .. } | Request::Nodes => panic!("control planes ask for nodes, owners do not"),
        })
    }

    fn channel(&mut self, name: &str, fresh: Epoch, truth: &mut Truth) -> &mut Channel {
        let is_new = !self.kept.channels.contains_key(name);
        let channel = self.kept.channels.entry(name.into()).or_insert_with(|| Channel {
            epoch: fresh,
            top: 0,
            records: VecDeque::new(),
            batches: BTreeMap::new(),
            is_stale: false,
        });
        let was_stale = std::mem::take(&mut channel.is_stale);
        if was_stale {
            (channel.epoch, channel.top) = (fresh, 0);
            channel.records.clear();
        }
        if is_new || was_stale {
            let first = self.begun.insert((name.into(), (channel.epoch.boot, channel.epoch.creation)));
            assert!(first, "epoch {} began two histories of {name}", channel.epoch);
            truth.begin_epoch(name, channel.epoch);
        }
        channel
    }

    fn publish(&mut self, from: Caller, batch: PublishBatch, truth: &mut Truth) -> Result<Published, Refusal> {
        let key = (!batch.idempotency_key.is_empty()).then(|| (batch.channel.clone(), batch.idempotency_key.clone()));
        let was = key.as_ref().and_then(|key| self.kept.keys.get(key)).copied();
        let channel = self.channel(&batch.channel, batch.fresh, truth);
        match channel.batches.get(&from.boot) {
            Some((number, first)) if *number == batch.number => {
                truth.counts.note("batches again", 1);
                return Ok(Published { first: *first, duplicate: false });
            }
            Some((number, _)) if *number > batch.number => {
                truth.counts.note("batches too late", 1);
                return Err(Refusal::Unknown);
            }
            _ => {}
        }
        if let Some(first) = was {
            return Ok(Published { first, duplicate: true });
        }
        let prev = channel.top;
        let first = Position { offset: prev + 1, epoch: channel.epoch };
        channel.top += batch.records.len() as Offset;
        channel.keep(&batch.records, batch.keep);
        channel.batches.insert(from.boot, (batch.number, first));
        truth.happened(&batch.channel, first, &batch.records);
        if let Some(key) = key {
            self.kept.keys.insert(key, first);
        }
        if batch.replicated {
            self.replicate();
        }
        let (bucket, subject) = (route::bucket(&batch.channel), Subject::Channel(batch.channel));
        let what = Fed::Publications { epoch: first.epoch, prev, first: first.offset, records: batch.records };
        self.feed(Feed { bucket, addressed: true, subject, what });
        Ok(Published { first, duplicate: false })
    }

    fn follow(&mut self, from: Caller, follow: &Follow, truth: &mut Truth) -> Page {
        let joined = self.kept.interest.entry((false, follow.channel.clone())).or_default().insert(from.generation);
        let channel = self.channel(&follow.channel, follow.fresh, truth);
        let latest = channel.records.len().saturating_sub(follow.limit as usize);
        let page = match follow.since {
            Some(since) if since.epoch != channel.epoch => channel.page(0, 0, false),
            Some(since) => channel.page(latest.max(channel.behind(since.offset)), follow.limit, false),
            None => channel.page(latest, follow.limit, false),
        };
        Page { joined, ..page }
    }

    fn read(&mut self, read: &Read, truth: &mut Truth) -> Page {
        let channel = self.channel(&read.channel, read.fresh, truth);
        let from = match (read.since, read.reverse) {
            (None, false) => 0,
            (None, true) => channel.records.len(),
            (Some(since), false) => channel.behind(since),
            (Some(since), true) => channel.behind(since.saturating_sub(1)),
        };
        channel.page(from, read.limit, read.reverse)
    }

    fn tell(&mut self, tell: Tell) -> u32 {
        let feed = Feed {
            bucket: route::bucket(tell.subject.name()),
            addressed: true,
            subject: tell.subject,
            what: Fed::Told(tell.body),
        };
        match tell.to {
            Audience::Interested => self.feed(feed),
            Audience::Node(generation) => u32::from(self.say(generation, Event::Feed(feed))),
        }
    }

    /// Says it to interested nodes; forgets those without an inbox.
    fn feed(&mut self, feed: Feed) -> u32 {
        let key = interest_of(&feed.subject);
        let Some(interested) = self.kept.interest.get_mut(&key) else { return 0 };
        interested.retain(|generation| self.inboxes.contains_key(generation));
        let generations: Vec<u32> = interested.iter().copied().collect();
        if generations.is_empty() {
            self.kept.interest.remove(&key);
        }
        for generation in &generations {
            self.say(*generation, Event::Feed(feed.clone()));
        }
        generations.len() as u32
    }

    fn say(&mut self, generation: u32, event: Event) -> bool {
        let Some(inbox) = self.inboxes.get_mut(&generation) else { return false };
        if !inbox.is_ghost {
            inbox.queue.push_back(event);
        }
        true
    }

    /// Each of those that are parked has the orders behind it, wherever the next one stands.
    fn order(&mut self, order: Order) -> Result<u32, Refusal> {
        let Order { user, body, noted_max } = order;
        if let Some((parked, _)) = self.kept.parked.get_mut(&user) {
            if parked.iter().any(|taken| taken.orders.len() >= noted_max as usize) {
                return Err(Refusal::Unavailable);
            }
            parked.iter_mut().for_each(|taken| taken.orders.push(body.clone()));
        }
        Ok(self.tell(Tell { subject: Subject::User(user), to: Audience::Interested, body }))
    }

    fn park(&mut self, from: Caller, park: Park, truth: &mut Truth) -> u32 {
        let now_ms = self.now_ms;
        let open = |generation: &u32| *generation != from.generation && self.inboxes.contains_key(generation);
        let interested = self.kept.interest.get(&(true, park.user.clone()));
        let elsewhere = interested.is_some_and(|nodes| nodes.iter().any(open));
        let (parked, until_ms) = self.kept.parked.entry(park.user.clone()).or_default();
        if *until_ms <= now_ms {
            parked.clear();
        }
        *until_ms = now_ms + park.ttl_ms;
        match parked.iter_mut().find(|taken| taken.client == park.client) {
            Some(taken) => taken.body = park.body,
            None if park.again => {}
            None => {
                let alone = park.alone && !elsewhere && parked.is_empty();
                parked.iter_mut().for_each(|taken| taken.alone = false);
                if !alone {
                    truth.orders.not_alone.insert(park.user.clone().into_string());
                }
                parked.push_back(Taken { client: park.client, body: park.body, alone, orders: Vec::new() });
            }
        }
        parked.retain(|taken| !taken.body.is_empty());
        let over = parked.len().saturating_sub(park.entries_max as usize);
        parked.drain(..over);
        if parked.is_empty() {
            self.kept.parked.remove(&park.user);
        }
        over as u32
    }

    fn take_parked(&mut self, user: &str) -> Option<Taken> {
        let (parked, until_ms) = self.kept.parked.get_mut(user)?;
        let taken = parked.pop_front().filter(|_| *until_ms > self.now_ms);
        if parked.is_empty() {
            self.kept.parked.remove(user);
        }
        taken
    }

    fn lives(&self, generation: u32) -> bool {
        self.leases.values().any(|(_, node, until_ms)| node.generation == generation && *until_ms > self.now_ms)
    }

    fn enter(&mut self, from: Caller, Enter { user, mine, max }: Enter) -> Room {
        let known = self.kept.connections.get(&user).cloned().unwrap_or_default();
        let others = known.into_iter().filter(|(of, _)| *of != from.generation && self.lives(*of));
        let (mut all, mut gone) = (mine, 0);
        for (of, count) in others {
            all += count;
            gone += if self.inboxes.contains_key(&of) { 0 } else { count };
        }
        if all <= max {
            self.set_connections(from, user, mine);
            Room::Yes
        } else if all - gone <= max {
            Room::Later
        } else {
            Room::No
        }
    }

    fn set_connections(&mut self, from: Caller, user: Box<str>, mine: u32) {
        let known = self.kept.connections.entry(user).or_default();
        known.insert(from.generation, mine);
        known.retain(|_, count| *count > 0);
    }

    /// Connections that living nodes are said to have.
    pub(crate) fn living_connections(&self) -> Vec<(Box<str>, u32, u32)> {
        let all = self.kept.connections.iter();
        let all = all.flat_map(|(user, known)| known.iter().map(|(of, count)| (user.clone(), *of, *count)));
        all.filter(|(_, of, _)| self.lives(*of)).collect()
    }

    /// Epoch and top of a channel; none: nobody has asked for it, or the next request begins another epoch.
    pub(crate) fn position(&self, channel: &str) -> Option<Position> {
        let channel = self.kept.channels.get(channel).filter(|channel| !channel.is_stale)?;
        Some(Position { offset: channel.top, epoch: channel.epoch })
    }

    /// Interest of registrations that have an inbox.
    pub(crate) fn living_interest(&self) -> Vec<(bool, Box<str>)> {
        let living = |nodes: &BTreeSet<u32>| nodes.iter().any(|generation| self.inboxes.contains_key(generation));
        self.kept.interest.iter().filter(|(_, nodes)| living(nodes)).map(|(key, _)| key.clone()).collect()
    }
}

fn interest_of(subject: &Subject) -> (bool, Box<str>) {
    match subject {
        Subject::Channel(name) => (false, name.clone()),
        Subject::User(id) => (true, id.clone()),
        Subject::Nodes => panic!("nobody is interested in nodes"),
    }
}

impl Channel {
    fn keep(&mut self, records: &[Box<[u8]>], keep: Keep) {
        self.records.extend(records.iter().cloned());
        let over = self.records.len().saturating_sub(keep.size as usize);
        self.records.drain(..over);
    }

    /// How many of the kept records have an offset up to this one.
    fn behind(&self, offset: Offset) -> usize {
        let oldest = self.top + 1 - self.records.len() as u64;
        ((offset + 1).saturating_sub(oldest) as usize).min(self.records.len())
    }

    /// Records behind (with `reverse` before) a place among those kept.
    fn page(&self, from: usize, limit: u32, reverse: bool) -> Page {
        let oldest = self.top + 1 - self.records.len() as u64;
        let (top, limit) = (Position { offset: self.top, epoch: self.epoch }, limit as usize);
        let (first, records): (usize, Vec<_>) = if reverse {
            (from.wrapping_sub(1), self.records.iter().take(from).rev().take(limit).cloned().collect())
        } else {
            (from, self.records.iter().skip(from).take(limit).cloned().collect())
        };
        let first = if records.is_empty() { 0 } else { oldest.wrapping_add(first as u64) };
        Page { top, first, records, joined: false }
    }
}

/// The number that stands in a record's payload.
pub(crate) fn id_of(record: &[u8]) -> Id {
    let record = ringway_wire::record::Record::read(record).expect("a record");
    super::truth::id_in(record.payload)
}
