//! The contract of [`backplane`](crate::backplane) without an engine: several handles share one [`Hub`] in this process.
//!
//! In: requests through a [`Handle`]; time and faults from whoever drives the hub. Out: events to each handle. It is what
//! the suite measures other implementations by, and the simulator's model of an engine. Invariants: deterministic, no
//! clock, no I/O; a request is carried out when it is submitted; what a handle was told waits for it in order.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::mem;
use core::task::{Context, Poll, Waker};

use crate::backplane::{
    Answer, Audience, Backplane, Buckets, Described, Enter, Event, Fed, Feed, Follow, Keep, NodeId, Order, Page, Park,
    PublishBatch, Published, Read, Refusal, Request, Room, Subject, Taken, Tell, Token,
};
use crate::ids::{Epoch, Offset};
use crate::lane_message::Position;
use crate::route;

/// What all handles share.
#[derive(Debug, Default)]
pub struct Hub {
    now_ms: u64,
    nodes: BTreeMap<u32, Node>,
    generations: u32,
    channels: BTreeMap<Box<str>, Channel>,
    interest: BTreeMap<(bool, Box<str>), BTreeSet<u32>>,
    /// Until when each counts.
    keys: BTreeMap<Key, (Position, u64)>,
    /// By user, with the time until when.
    parked: BTreeMap<Box<str>, Parked>,
    draining_until_ms: u64,
    /// By user and generation.
    connections: BTreeMap<Box<str>, BTreeMap<u32, u32>>,
}

/// What is parked for one user, oldest first, and until when.
type Parked = (VecDeque<Entry>, u64);

/// Something that is parked, or an order that came behind it.
#[derive(Debug)]
enum Entry {
    State { client: Box<str>, body: Box<[u8]>, alone: bool },
    Order(Box<[u8]>),
}

/// A channel, and an idempotency key.
type Key = (Box<str>, Box<[u8]>);

/// One handle's side of the hub.
#[derive(Debug, Default)]
struct Node {
    place: u16,
    is_reachable: bool,
    events: VecDeque<Event>,
    waker: Option<Waker>,
    /// What it says of itself, and since when.
    said: (Box<[u8]>, u64),
}

#[derive(Debug)]
struct Channel {
    epoch: Epoch,
    top: Offset,
    /// The newest ones, up to the top.
    records: VecDeque<Box<[u8]>>,
    until_ms: u64,
    /// By place: generation, number, and where the node's last batch went.
    batches: BTreeMap<u16, (u32, u64, Position)>,
}

/// One node's way to a hub.
#[derive(Debug)]
pub struct Handle {
    hub: Rc<RefCell<Hub>>,
    me: NodeId,
}

impl Handle {
    /// Registers a node, which can reach the hub at once.
    pub fn new(hub: &Rc<RefCell<Hub>>) -> Handle {
        let me = hub.borrow_mut().register();
        Handle { hub: Rc::clone(hub), me }
    }

    /// Who it is.
    pub const fn node(&self) -> NodeId {
        self.me
    }
}

impl Drop for Handle {
    /// The node is gone; its interest goes when somebody publishes.
    fn drop(&mut self) {
        // A hub that is just being used drops no handle.
        if let Ok(mut hub) = self.hub.try_borrow_mut() {
            hub.nodes.remove(&self.me.generation);
        }
    }
}

impl Backplane for Handle {
    fn submit(&mut self, token: Token, request: Request) {
        self.hub.borrow_mut().submit(self.me, token, request);
    }

    fn poll(&mut self, context: &mut Context<'_>, out: &mut Vec<Event>) -> Poll<()> {
        let mut hub = self.hub.borrow_mut();
        let Some(node) = hub.nodes.get_mut(&self.me.generation) else { return Poll::Pending };
        if node.events.is_empty() {
            node.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        out.extend(node.events.drain(..));
        Poll::Ready(())
    }
}

impl Hub {
    /// An empty one.
    pub fn new() -> Rc<RefCell<Hub>> {
        Rc::new(RefCell::new(Hub::default()))
    }

    /// Time goes on.
    pub fn set_now_ms(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
    }

    /// Cuts a node off, or lets it reach the hub again.
    pub fn set_reachable(&mut self, node: NodeId, is_reachable: bool) {
        let Some(place) = self.nodes.get_mut(&node.generation) else { return };
        if mem::replace(&mut place.is_reachable, is_reachable) != is_reachable {
            let all = Box::new(Buckets::ALL);
            self.say(node.generation, if is_reachable { Event::Restored(all) } else { Event::Broken(all) });
        }
    }

    /// Comes back empty: everything is forgotten, and everybody is told that something may be missing.
    pub fn restart_empty(&mut self) {
        self.channels.clear();
        self.interest.clear();
        self.keys.clear();
        self.parked.clear();
        self.connections.clear();
        let reachable = |(generation, node): (&u32, &Node)| node.is_reachable.then_some(*generation);
        for generation in self.nodes.iter().filter_map(reachable).collect::<Vec<_>>() {
            self.say(generation, Event::Broken(Box::new(Buckets::ALL)));
            self.say(generation, Event::Restored(Box::new(Buckets::ALL)));
        }
    }

    /// How many connections of a user a node has, as the hub knows.
    pub fn connections(&self, node: NodeId, user: &str) -> u32 {
        self.connections.get(user).and_then(|known| known.get(&node.generation)).copied().unwrap_or(0)
    }

    fn register(&mut self) -> NodeId {
        self.generations += 1;
        let mut place = 0;
        while self.nodes.values().any(|node| node.place == place) {
            place += 1;
        }
        let mut events = VecDeque::from([Event::Restored(Box::new(Buckets::ALL))]);
        let left_ms = self.draining_until_ms.saturating_sub(self.now_ms);
        events.extend((left_ms > 0).then_some(Event::Draining { left_ms }));
        self.nodes.insert(
            self.generations,
            Node { place, is_reachable: true, events, waker: None, said: (Box::default(), self.now_ms) },
        );
        NodeId { place, generation: self.generations }
    }

    fn say(&mut self, generation: u32, event: Event) {
        if let Some(node) = self.nodes.get_mut(&generation) {
            node.events.push_back(event);
            if let Some(waker) = node.waker.take() {
                waker.wake();
            }
        }
    }

    fn submit(&mut self, me: NodeId, token: Token, request: Request) {
        let is_reachable = self.nodes.get(&me.generation).is_some_and(|node| node.is_reachable);
        let result = if is_reachable { self.carry_out(me, request) } else { Err(Refusal::Unavailable) };
        self.say(me.generation, Event::Answer(token, result));
    }

    fn carry_out(&mut self, me: NodeId, request: Request) -> Result<Answer, Refusal> {
        Ok(match request {
            Request::Publish(batch) => Answer::Published(self.publish(me, batch)?),
            Request::Follow(follow) => Answer::Page(self.follow(me, &follow)),
            Request::FollowUser { user } => {
                self.interest.entry((true, user)).or_default().insert(me.generation);
                Answer::Done
            }
            Request::Unfollow(subject) => {
                if let Some(nodes) = self.interest.get_mut(&interest_of(&subject)) {
                    nodes.remove(&me.generation);
                }
                Answer::Done
            }
            Request::Read(read) => Answer::Page(self.read(&read)),
            Request::Forget { channel } => {
                if let Some(channel) = self.channels.get_mut(&channel) {
                    channel.records.clear();
                }
                Answer::Done
            }
            Request::Tell(tell) => Answer::Told(self.tell(tell)),
            Request::Order(order) => Answer::Told(self.order(order)?),
            Request::Park(entry) => Answer::Displaced(self.keep_parked(me, entry)),
            Request::Enter(enter) => Answer::Entered(self.enter(me, enter)),
            Request::SetConnections { user, mine } => {
                self.set_connections(me, user, mine);
                Answer::Done
            }
            Request::Describe { body } => {
                let now_ms = self.now_ms;
                if let Some(node) = self.nodes.get_mut(&me.generation) {
                    node.said = (body, now_ms);
                }
                Answer::Done
            }
            Request::Nodes => {
                Answer::Nodes(self.nodes.iter().map(|(generation, node)| self.described(*generation, node)).collect())
            }
            Request::TakeParked { user } => {
                let taken = self.take_parked(&user);
                self.interest.entry((true, user)).or_default().insert(me.generation);
                Answer::Parked(taken.map(Box::new))
            }
            Request::Draining { ttl_ms } => {
                self.draining_until_ms = self.draining_until_ms.max(self.now_ms.saturating_add(ttl_ms));
                let reachable = |(generation, node): (&u32, &Node)| node.is_reachable.then_some(*generation);
                for generation in self.nodes.iter().filter_map(reachable).collect::<Vec<_>>() {
                    self.say(generation, Event::Draining { left_ms: ttl_ms });
                }
                Answer::Done
            }
        })
    }

    fn enter(&mut self, me: NodeId, Enter { user, mine, max }: Enter) -> Room {
        let (nodes, mut others, mut gone) = (&self.nodes, 0, 0);
        if let Some(known) = self.connections.get_mut(&user) {
            known.retain(|generation, _| nodes.contains_key(generation));
            for (generation, count) in known.iter().filter(|(generation, _)| **generation != me.generation) {
                others += count;
                gone += if nodes[generation].is_reachable { 0 } else { *count };
            }
        }
        if others + mine <= max {
            self.set_connections(me, user, mine);
            Room::Yes
        } else if others - gone + mine <= max {
            Room::Later
        } else {
            Room::No
        }
    }

    fn set_connections(&mut self, me: NodeId, user: Box<str>, mine: u32) {
        if mine > 0 {
            self.connections.entry(user).or_default().insert(me.generation, mine);
        } else if let Some(known) = self.connections.get_mut(&user) {
            known.remove(&me.generation);
            if known.is_empty() {
                self.connections.remove(&user);
            }
        }
    }

    fn described(&self, generation: u32, node: &Node) -> Described {
        let (body, at_ms) = &node.said;
        Described { generation, age_ms: self.now_ms.saturating_sub(*at_ms), body: body.clone() }
    }

    fn order(&mut self, Order { user, body, noted_max }: Order) -> Result<u32, Refusal> {
        let now_ms = self.now_ms;
        if let Some((entries, _)) = self.parked.get_mut(&user).filter(|(_, until_ms)| *until_ms > now_ms) {
            let noted = entries.iter().filter(|entry| matches!(entry, Entry::Order(_))).count();
            if noted >= noted_max as usize {
                return Err(Refusal::Unavailable);
            }
            entries.push_back(Entry::Order(body.clone()));
        }
        Ok(self.tell(Tell { subject: Subject::User(user), to: Audience::Interested, body }))
    }

    fn keep_parked(&mut self, me: NodeId, wanted: Park) -> u32 {
        let now_ms = self.now_ms;
        let nodes = &self.nodes;
        let is_elsewhere = |generation: &u32| {
            *generation != me.generation && nodes.get(generation).is_some_and(|node| node.is_reachable)
        };
        let interested = self.interest.get(&(true, wanted.user.clone()));
        let elsewhere = interested.is_some_and(|nodes| nodes.iter().any(is_elsewhere));
        let (entries, until_ms) = self.parked.entry(wanted.user.clone()).or_default();
        if *until_ms <= now_ms {
            entries.clear();
        }
        *until_ms = now_ms.saturating_add(wanted.ttl_ms);
        let place = entries.iter().position(|entry| entry.is_of(&wanted.client));
        match place {
            Some(place) if wanted.body.is_empty() => drop(entries.remove(place)),
            Some(place) => entries[place].replace(wanted.body),
            None if wanted.again || wanted.body.is_empty() => {}
            None => {
                let alone = wanted.alone && !elsewhere && !entries.iter().any(Entry::is_state);
                entries.iter_mut().for_each(Entry::is_not_alone);
                entries.push_back(Entry::State { client: wanted.client, body: wanted.body, alone });
            }
        }
        let states = entries.iter().filter(|entry| entry.is_state()).count();
        let over = states.saturating_sub(wanted.entries_max as usize);
        for _ in 0..over {
            while entries.pop_front().is_some_and(|entry| !entry.is_state()) {}
        }
        if states == 0 {
            self.parked.remove(&wanted.user);
        }
        over as u32
    }

    fn take_parked(&mut self, user: &str) -> Option<Taken> {
        let (mut entries, until_ms) = self.parked.remove(user).filter(|(_, until_ms)| *until_ms > self.now_ms)?;
        let mut taken = None;
        while taken.is_none() {
            if let Entry::State { client, body, alone } = entries.pop_front()? {
                taken = Some(Taken { client, body, alone, orders: Vec::new() });
            }
        }
        if let Some(taken) = &mut taken {
            taken.orders.extend(entries.iter().filter_map(Entry::order).map(Box::from));
        }
        if entries.iter().any(Entry::is_state) {
            self.parked.insert(user.into(), (entries, until_ms));
        }
        taken
    }

    fn channel(&mut self, name: &str, fresh: Epoch) -> &mut Channel {
        let now_ms = self.now_ms;
        let channel = self.channels.entry(name.into()).or_insert_with(|| Channel {
            epoch: fresh,
            top: 0,
            records: VecDeque::new(),
            until_ms: u64::MAX,
            batches: BTreeMap::new(),
        });
        if channel.until_ms <= now_ms {
            channel.records.clear();
        }
        channel
    }

    fn publish(&mut self, me: NodeId, batch: PublishBatch) -> Result<Published, Refusal> {
        let now_ms = self.now_ms;
        self.keys.retain(|_, (_, until_ms)| *until_ms > now_ms);
        let key = (!batch.idempotency_key.is_empty()).then(|| (batch.channel.clone(), batch.idempotency_key.clone()));
        let was = key.as_ref().and_then(|key| self.keys.get(key)).map(|(first, _)| *first);
        let channel = self.channel(&batch.channel, batch.fresh);
        if let Some((generation, number, first)) = channel.batches.get(&me.place)
            && *generation == me.generation
            && *number >= batch.number
        {
            let published = Published { first: *first, duplicate: false };
            return if *number == batch.number { Ok(published) } else { Err(Refusal::Unknown) };
        }
        if let Some(first) = was {
            return Ok(Published { first, duplicate: true });
        }
        let prev = channel.top;
        let first = Position { offset: prev + 1, epoch: channel.epoch };
        channel.top += batch.records.len() as u64;
        channel.keep(&batch.records, batch.keep, now_ms);
        channel.batches.insert(me.place, (me.generation, batch.number, first));
        if let Some(key) = key {
            self.keys.insert(key, (first, now_ms.saturating_add(batch.idempotency_window_ms)));
        }
        let (bucket, subject) = (route::bucket(&batch.channel), Subject::Channel(batch.channel));
        let what = Fed::Publications { epoch: first.epoch, prev, first: first.offset, records: batch.records };
        self.feed(Feed { bucket, addressed: true, subject, what });
        Ok(Published { first, duplicate: false })
    }

    fn follow(&mut self, me: NodeId, follow: &Follow) -> Page {
        let joined = self.interest.entry((false, follow.channel.clone())).or_default().insert(me.generation);
        let channel = self.channel(&follow.channel, follow.fresh);
        let latest = channel.records.len().saturating_sub(follow.limit as usize);
        let page = match follow.since {
            Some(since) if since.epoch != channel.epoch => channel.page(0, 0, 0, false),
            Some(since) => channel.latest(latest.max(channel.behind(since.offset)), follow),
            None => channel.latest(latest, follow),
        };
        Page { joined, ..page }
    }

    fn read(&mut self, read: &Read) -> Page {
        let channel = self.channel(&read.channel, read.fresh);
        let from = match (read.since, read.reverse) {
            (None, false) => 0,
            (None, true) => channel.records.len(),
            (Some(since), false) => channel.behind(since),
            (Some(since), true) => channel.behind(since.saturating_sub(1)),
        };
        channel.page(from, read.limit, read.bytes_max, read.reverse)
    }

    fn tell(&mut self, tell: Tell) -> u32 {
        let bucket = route::bucket(tell.subject.name());
        match tell.to {
            Audience::Interested => {
                self.feed(Feed { bucket, addressed: true, subject: tell.subject, what: Fed::Told(tell.body) })
            }
            Audience::Node(generation) => {
                let is_there = self.nodes.get(&generation).is_some_and(|node| node.is_reachable);
                if is_there {
                    self.say(
                        generation,
                        Event::Feed(Feed {
                            bucket,
                            addressed: true,
                            subject: tell.subject,
                            what: Fed::Told(tell.body),
                        }),
                    );
                }
                is_there.into()
            }
        }
    }

    /// Says it to interested nodes; forgets those that cannot be reached.
    fn feed(&mut self, feed: Feed) -> u32 {
        let key = interest_of(&feed.subject);
        let Some(interested) = self.interest.get_mut(&key) else { return 0 };
        let nodes = &self.nodes;
        interested.retain(|generation| nodes.get(generation).is_some_and(|node| node.is_reachable));
        let generations: Vec<u32> = interested.iter().copied().collect();
        for generation in &generations {
            self.say(*generation, Event::Feed(feed.clone()));
        }
        generations.len() as u32
    }
}

fn interest_of(subject: &Subject) -> (bool, Box<str>) {
    match subject {
        Subject::Channel(name) => (false, name.clone()),
        Subject::User(id) => (true, id.clone()),
        // No user has an empty id.
        Subject::Nodes => (true, Box::default()),
    }
}

/// How many of these records a page may have: so many of so many bytes at most, but at least one.
fn fitting<'a>(records: impl Iterator<Item = &'a Box<[u8]>>, limit: u32, bytes_max: u32) -> usize {
    let mut bytes = 0;
    let fits = |(index, size): &(usize, usize)| {
        bytes += size;
        *index == 0 || bytes <= bytes_max as usize
    };
    records.take(limit as usize).map(|record| record.len()).enumerate().take_while(fits).count()
}

impl Entry {
    const fn is_state(&self) -> bool {
        matches!(self, Entry::State { .. })
    }

    fn is_of(&self, name: &str) -> bool {
        matches!(self, Entry::State { client, .. } if **client == *name)
    }

    fn replace(&mut self, by: Box<[u8]>) {
        if let Entry::State { body, .. } = self {
            *body = by;
        }
    }

    const fn is_not_alone(&mut self) {
        if let Entry::State { alone, .. } = self {
            *alone = false;
        }
    }

    fn order(&self) -> Option<&[u8]> {
        match self {
            Entry::Order(body) => Some(body),
            Entry::State { .. } => None,
        }
    }
}

impl Channel {
    /// What has just become the top.
    fn keep(&mut self, records: &[Box<[u8]>], keep: Keep, now_ms: u64) {
        self.records.extend(records.iter().cloned());
        let over = self.records.len().saturating_sub(keep.size as usize);
        self.records.drain(..over);
        self.until_ms = now_ms.saturating_add(keep.ttl_ms);
    }

    /// How many of the kept records have an offset up to this one.
    fn behind(&self, offset: Offset) -> usize {
        let oldest = self.top + 1 - self.records.len() as u64;
        usize::try_from((offset + 1).saturating_sub(oldest)).unwrap_or(usize::MAX).min(self.records.len())
    }

    /// The latest records behind a place among those kept: as many as a follow may have.
    fn latest(&self, from: usize, follow: &Follow) -> Page {
        let fitting = fitting(self.records.iter().skip(from).rev(), follow.limit, follow.bytes_max);
        self.page(self.records.len() - fitting, follow.limit, follow.bytes_max, false)
    }

    /// Records behind (with `reverse` before) a place among those kept.
    fn page(&self, from: usize, limit: u32, bytes_max: u32, reverse: bool) -> Page {
        let oldest = self.top + 1 - self.records.len() as u64;
        let top = Position { offset: self.top, epoch: self.epoch };
        let (first, records): (usize, Vec<_>) = if reverse {
            let records = self.records.iter().take(from).rev();
            (from.wrapping_sub(1), records.clone().take(fitting(records, limit, bytes_max)).cloned().collect())
        } else {
            let records = self.records.iter().skip(from);
            (from, records.clone().take(fitting(records, limit, bytes_max)).cloned().collect())
        };
        let first = if records.is_empty() { 0 } else { oldest + first as u64 };
        Page { top, first, records, joined: false }
    }
}
