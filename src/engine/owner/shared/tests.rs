//! Owners of several nodes and a model of the engine between them, under schedules of everything that can happen: requests,
//! answers and feed each late on their own, connections cut with what is in them, the engine started empty, batches whose
//! outcome nobody knows.
//!
//! Claims: a client of a channel with history gets each publication once, in order, wherever it goes with its position, or is
//! told (2500, or not recovered); a publish that was acknowledged stands at the place that it was told; once faults have ended
//! everybody has everything and nothing waits. The plan stands in every failure.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::{format, vec};

use proptest::prelude::*;
use ringway_wire::centrifuge::Form;

use super::*;
use crate::backplane::{Fed, Follow, Page, PublishBatch, Published};
use crate::ids::{ConnId, Epoch, LocalChannelId, Offset};
use crate::lane_message::{LeaveRequest, PublishRequest, RecoverFrom, Recovery, SubscribeAnswer, SubscribeRequest};
use crate::lanes::LanesOut;
use crate::limits::{Limits, TICK_MS};
use crate::metrics::Metrics;
use crate::namespace::{Namespace, Namespaces};
use crate::owner::Place;
use crate::publication::{Publication, Tags};
use crate::route;
use crate::variant::Variant;

const NODES: usize = 3;
const CHANNELS: [&str; 2] = ["red", "blue"];
const CLIENTS: usize = 6;
const BACKPLANE: CoreId = CoreId(2);
const HISTORY: u32 = 6;

#[derive(Default)]
struct Log {
    epoch: Option<Epoch>,
    records: Vec<Box<[u8]>>,
    interested: BTreeSet<usize>,
    last: BTreeMap<usize, (u64, Offset)>,
}

/// Everything that any history of a channel has ever held.
type Past = BTreeMap<(usize, (u32, u32)), Vec<Box<[u8]>>>;

struct Node {
    owner: Owner,
    lanes: LanesOut,
    metrics: Metrics,
    connected: bool,
    requests: VecDeque<(Token, Request)>,
    answers: VecDeque<Event>,
    feed: VecDeque<Event>,
    locals: BTreeMap<usize, Local>,
    generation: u32,
}

#[derive(Default)]
struct Local {
    generation: u32,
    members: BTreeSet<usize>,
    pending: u32,
}

#[derive(Clone, Copy, Default)]
struct Client {
    at: Option<usize>,
    live: bool,
    command: u32,
    position: Option<Position>,
}

struct World {
    nodes: Vec<Node>,
    clients: Vec<Client>,
    logs: Vec<Log>,
    past: Past,
    published: u32,
    acknowledged: u32,
    refused: u32,
    told: u32,
    /// Requests on connections that were given up: the engine may still carry them out.
    late: VecDeque<(usize, Request)>,
    namespaces: Namespaces,
    now_ms: u64,
}

/// Each client follows one channel.
const fn channel_of(client: usize) -> usize {
    client % CHANNELS.len()
}

impl World {
    fn new(page_bytes_max: u32) -> Self {
        let rules =
            Namespace { history_size: HISTORY, history_ttl_ms: 1_000_000, recovery: true, ..Namespace::closed("") };
        let node = |index: usize| Node {
            owner: Owner::new(
                // Often enough that schedules have it.
                Limits {
                    interest_check_ms: 4 * TICK_MS as u32,
                    page_bytes_max,
                    recovery_bytes_max: page_bytes_max / 2,
                    ..Limits::DEFAULT
                },
                Place { core: CoreId(0), shards: 1, boot: index as u32 },
                Some(FleetPlace { core: BACKPLANE, wall_offset_ms: 5_000 }),
                7,
            ),
            lanes: LanesOut::new(CoreId(0), 3, usize::MAX, 1_000),
            metrics: Metrics::new(),
            connected: false,
            requests: VecDeque::new(),
            answers: VecDeque::new(),
            feed: VecDeque::new(),
            locals: BTreeMap::new(),
            generation: 0,
        };
        World {
            nodes: (0..NODES).map(node).collect(),
            clients: vec![Client::default(); CLIENTS],
            logs: CHANNELS.iter().map(|_| Log::default()).collect(),
            past: Past::new(),
            published: 0,
            acknowledged: 0,
            refused: 0,
            told: 0,
            late: VecDeque::new(),
            namespaces: Namespaces::new(rules, Vec::new()).expect("rules").with_catch_all(true),
            now_ms: 1_000_000,
        }
    }

    fn with<R>(&mut self, node: usize, act: impl FnOnce(&mut Owner, &mut Surroundings<'_>) -> R) -> R {
        let node = &mut self.nodes[node];
        let mut around = Surroundings {
            lanes: &mut node.lanes,
            metrics: &mut node.metrics,
            namespaces: &self.namespaces,
            now_ms: self.now_ms,
        };
        act(&mut node.owner, &mut around)
    }

    /// Takes what an owner has said: to clients of its node, and to the engine.
    fn settle(&mut self, index: usize) {
        self.with(index, |owner, around| owner.follow_again(around));
        while let Some(message) = self.nodes[index].lanes.pop_own() {
            match message {
                LaneMessage::SubscribeAnswer(answer) => self.answered(index, *answer),
                LaneMessage::Deliver { local, publication } => self.deliver(index, local, &publication),
                LaneMessage::Insufficient { local } => self.insufficient(index, local),
                other => panic!("{other:?}"),
            }
        }
        while let Some(batch) = self.nodes[index].lanes.take_batch(CoreId(1)) {
            for message in batch.messages {
                let LaneMessage::PublishAnswer(answer) = message else { panic!("{message:?}") };
                let Origin::Control { call } = answer.origin else { panic!("{answer:?}") };
                match answer.result {
                    Ok(Position { offset, epoch }) => {
                        self.acknowledged += 1;
                        let log = &self.past[&(call as usize % CHANNELS.len(), (epoch.boot, epoch.creation))];
                        let record = ringway_wire::record::Record::read(&log[offset as usize - 1]).expect("a record");
                        assert_eq!(
                            record.payload,
                            format!("{call}").as_bytes(),
                            "acknowledged elsewhere than it stands"
                        );
                    }
                    Err(_) => self.refused += 1,
                }
            }
        }
        while let Some(batch) = self.nodes[index].lanes.take_batch(BACKPLANE) {
            for message in batch.messages {
                let LaneMessage::ToBackplane { token, request } = message else { panic!("{message:?}") };
                let node = &mut self.nodes[index];
                if node.connected {
                    node.requests.push_back((token, *request));
                } else {
                    node.answers.push_back(Event::Answer(token, Err(Refusal::Unavailable)));
                }
            }
        }
    }

    fn subscribe(&mut self, client: usize, node: usize) {
        if self.clients[client].at.is_some() {
            return;
        }
        let channel = channel_of(client);
        let it = &mut self.nodes[node];
        let generation = it.generation;
        let local = it.locals.entry(channel).or_insert_with(|| Local { generation, ..Local::default() });
        it.generation += 1;
        local.pending += 1;
        let local = LocalChannelId { slot: channel as u32, generation: local.generation };
        let now = &mut self.clients[client];
        now.at = Some(node);
        now.command += 1;
        let request = SubscribeRequest {
            channel: CHANNELS[channel].into(),
            local,
            variant: Variant::plain(Form::Json),
            member: None,
            tell_join_leave: false,
            recover: now.position.map(|Position { offset, epoch }| RecoverFrom { offset, epoch: Some(epoch) }),
            conn: ConnId { slot: client as u32, generation: 0 },
            command: now.command,
            from: CoreId(0),
        };
        self.with(node, |owner, around| owner.subscribe(request, around));
        self.settle(node);
    }

    fn answered(&mut self, node: usize, answer: SubscribeAnswer) {
        let client = answer.conn.slot as usize;
        let channel = channel_of(client);
        let it = &mut self.nodes[node];
        let Some(local) = it.locals.get_mut(&channel).filter(|local| local.generation == answer.local.generation)
        else {
            return;
        };
        local.pending -= 1;
        let now = &mut self.clients[client];
        let is_current = now.at == Some(node) && now.command == answer.command;
        match answer.result {
            Ok(subscribed) if is_current => {
                local.members.insert(client);
                now.live = true;
                match (now.position, &subscribed.recovery) {
                    (Some(position), Some(Recovery::Recovered(past))) => {
                        assert_eq!(position.epoch, subscribed.top.epoch);
                        let log = &self.past[&(channel, (position.epoch.boot, position.epoch.creation))];
                        let missed: Vec<_> = past.iter().map(|one| (one.offset, one.data.to_vec())).collect();
                        let wanted: Vec<_> = (position.offset + 1..=subscribed.top.offset)
                            .map(|offset| {
                                let record = ringway_wire::record::Record::read(&log[offset as usize - 1]);
                                (offset, record.expect("a record").payload.to_vec())
                            })
                            .collect();
                        assert_eq!(missed, wanted, "what a returning client missed");
                    }
                    (Some(_), _) => self.told += 1,
                    (None, _) => {}
                }
                now.position = Some(subscribed.top);
            }
            Ok(_) => {}
            Err(_) if is_current => now.at = None,
            Err(_) => {}
        }
        self.leave_if_unused(node, channel);
    }

    fn leave(&mut self, client: usize) {
        let Some(node) = self.clients[client].at.take() else { return };
        self.clients[client].live = false;
        let channel = channel_of(client);
        if let Some(local) = self.nodes[node].locals.get_mut(&channel) {
            local.members.remove(&client);
        }
        self.leave_if_unused(node, channel);
        self.settle(node);
    }

    fn leave_if_unused(&mut self, node: usize, channel: usize) {
        let Some(local) = self.nodes[node].locals.get(&channel) else { return };
        if local.members.is_empty() && local.pending == 0 {
            let local = LocalChannelId { slot: channel as u32, generation: local.generation };
            self.nodes[node].locals.remove(&channel);
            let leave = LeaveRequest { channel: CHANNELS[channel].into(), local, from: CoreId(0) };
            self.with(node, |owner, around| owner.leave(&leave, around));
        }
    }

    fn deliver(&mut self, node: usize, local: LocalChannelId, publication: &Publication) {
        let channel = local.slot as usize;
        let Some(known) = self.nodes[node].locals.get(&channel).filter(|known| known.generation == local.generation)
        else {
            return;
        };
        for client in &known.members {
            let position = self.clients[*client].position.as_mut().expect("live clients have one");
            assert_eq!(publication.offset, position.offset + 1, "client {client} at {position:?}");
            position.offset += 1;
            let log = &self.past[&(channel, (position.epoch.boot, position.epoch.creation))];
            let record = ringway_wire::record::Record::read(&log[position.offset as usize - 1]).expect("a record");
            assert_eq!(record.payload, publication.payload());
        }
    }

    fn insufficient(&mut self, node: usize, local: LocalChannelId) {
        let channel = local.slot as usize;
        let known = self.nodes[node].locals.get(&channel).is_some_and(|known| known.generation == local.generation);
        if !known {
            return;
        }
        self.nodes[node].locals.remove(&channel);
        // Whoever waited for an answer is refused with the channel.
        for (index, client) in self.clients.iter_mut().enumerate() {
            if client.at == Some(node) && channel_of(index) == channel {
                client.at = None;
                client.live = false;
                self.told += 1;
            }
        }
        let leave = LeaveRequest { channel: CHANNELS[channel].into(), local, from: CoreId(0) };
        self.with(node, |owner, around| owner.leave(&leave, around));
    }

    fn publish(&mut self, node: usize, channel: usize) {
        // The number says the channel, too.
        let number = self.published as usize * CHANNELS.len() + channel;
        self.published += 1;
        let request = PublishRequest {
            channel: CHANNELS[channel].into(),
            payload: format!("{number}").into_bytes().into(),
            kind: ringway_wire::ingest::PayloadKind::Json,
            idempotency_key: Box::default(),
            publisher: None,
            tags: Tags::default(),
            skip_history: false,
            origin: Origin::Control { call: number as u64 },
            from: CoreId(1),
        };
        self.with(node, |owner, around| owner.publish(request, around));
        self.settle(node);
    }

    /// The engine carries out the next request of a node.
    fn execute(&mut self, node: usize) {
        let Some((token, request)) = self.nodes[node].requests.pop_front() else { return };
        let result = match request {
            Request::Publish(batch) => Answer::Published(self.engine_publish(node, batch)),
            Request::Follow(follow) => Answer::Page(self.engine_follow(node, &follow)),
            Request::Unfollow(subject) => {
                let channel = CHANNELS.iter().position(|name| *name == subject.name()).expect("known");
                self.logs[channel].interested.remove(&node);
                Answer::Done
            }
            other => panic!("{other:?}"),
        };
        self.nodes[node].answers.push_back(Event::Answer(token, Ok(result)));
    }

    fn engine_publish(&mut self, node: usize, batch: PublishBatch) -> Published {
        let channel = CHANNELS.iter().position(|name| **name == *batch.channel).expect("known");
        let log = &mut self.logs[channel];
        let epoch = *log.epoch.get_or_insert(batch.fresh);
        if let Some((number, first)) = log.last.get(&node)
            && *number >= batch.number
        {
            // Nobody hears the answer to one that comes late.
            return Published { first: Position { offset: *first, epoch }, duplicate: false };
        }
        let prev = log.records.len() as Offset;
        log.last.insert(node, (batch.number, prev + 1));
        log.records.extend(batch.records.iter().cloned());
        self.past.entry((channel, (epoch.boot, epoch.creation))).or_default().extend(batch.records.iter().cloned());
        for other in self.logs[channel].interested.clone() {
            let what = Fed::Publications { epoch, prev, first: prev + 1, records: batch.records.clone() };
            let subject = Subject::Channel(batch.channel.clone());
            let bucket = route::bucket(&batch.channel);
            if self.nodes[other].connected {
                self.nodes[other].feed.push_back(Event::Feed(Feed { bucket, addressed: true, subject, what }));
            } else {
                self.logs[channel].interested.remove(&other);
            }
        }
        Published { first: Position { offset: prev + 1, epoch }, duplicate: false }
    }

    fn engine_follow(&mut self, node: usize, follow: &Follow) -> Page {
        let channel = CHANNELS.iter().position(|name| **name == *follow.channel).expect("known");
        let log = &mut self.logs[channel];
        let joined = log.interested.insert(node);
        let epoch = *log.epoch.get_or_insert(follow.fresh);
        self.past.entry((channel, (epoch.boot, epoch.creation))).or_default();
        let top = log.records.len() as Offset;
        let latest = top.saturating_sub(u64::from(HISTORY.min(follow.limit)));
        let (from, limit) = match follow.since {
            Some(since) if since.epoch == epoch => (since.offset.max(latest), follow.limit as usize),
            Some(_) => (top, 0),
            None => (latest, follow.limit as usize),
        };
        let behind: Vec<_> = log.records.iter().skip(from as usize).take(limit).cloned().collect();
        // The latest that fit, and one in any case.
        let mut bytes = 0;
        let fits = |(index, size): &(usize, usize)| {
            bytes += size;
            *index == 0 || bytes <= follow.bytes_max as usize
        };
        let fitting = behind.iter().rev().map(|record| record.len()).enumerate().take_while(fits).count();
        let skipped = behind.len() - fitting;
        let first = from + 1 + skipped as Offset;
        Page { top: Position { offset: top, epoch }, first, records: behind[skipped..].to_vec(), joined }
    }

    fn hear(&mut self, node: usize, event: Option<Event>) {
        if let Some(event) = event {
            self.with(node, |owner, around| owner.backplane_event(event, around));
            self.settle(node);
        }
    }

    /// What is on the way is lost; some of the requests have been carried out all the same.
    fn cut(&mut self, node: usize, carried_out: usize) {
        if !self.nodes[node].connected {
            return;
        }
        (0..carried_out).for_each(|_| self.execute(node));
        let it = &mut self.nodes[node];
        it.connected = false;
        let unheard: Vec<_> = it.answers.drain(..).collect();
        it.feed.clear();
        let mut lost: Vec<_> = unheard
            .into_iter()
            .filter_map(|event| match event {
                Event::Answer(token, _) => Some(token),
                _ => None,
            })
            .collect();
        for (token, request) in it.requests.drain(..) {
            lost.push(token);
            self.late.push_back((node, request));
        }
        // Nobody knows which of them have happened.
        for token in lost {
            it.answers.push_back(Event::Answer(token, Err(Refusal::Unknown)));
        }
        it.answers.push_back(Event::Broken(Box::new(Buckets::ALL)));
        for log in &mut self.logs {
            log.interested.remove(&node);
        }
    }

    fn connect(&mut self, node: usize) {
        if !self.nodes[node].connected {
            // What was said of the old connection comes first.
            while let Some(event) = self.nodes[node].answers.pop_front() {
                self.hear(node, Some(event));
            }
            self.nodes[node].connected = true;
            self.nodes[node].answers.push_back(Event::Restored(Box::new(Buckets::ALL)));
        }
    }

    /// The engine starts empty: connections are cut, and epochs begin anew.
    fn restart(&mut self) {
        (0..NODES).for_each(|node| self.cut(node, 1));
        self.logs = CHANNELS.iter().map(|_| Log::default()).collect();
    }

    fn tick(&mut self) {
        self.now_ms += TICK_MS;
        for node in 0..NODES {
            self.with(node, |owner, around| owner.sweep(around));
            self.settle(node);
        }
    }

    fn step(&mut self, (what, node, which): (u8, usize, usize)) {
        let (node, client) = (node % NODES, which % CLIENTS);
        match what {
            0..20 => self.publish(node, which % CHANNELS.len()),
            20..32 => self.subscribe(client, node),
            32..38 => self.leave(client),
            38..60 => self.execute(node),
            60..76 => {
                let event = self.nodes[node].answers.pop_front();
                self.hear(node, event);
            }
            76..90 => {
                let event = self.nodes[node].feed.pop_front();
                self.hear(node, event);
            }
            90..94 => self.cut(node, which % 4),
            94..98 => self.connect(node),
            98 => self.restart(),
            // What was sent over a connection that is no more arrives after all.
            100 => {
                if let Some((node, Request::Publish(batch))) = self.late.pop_front() {
                    self.engine_publish(node, batch);
                }
            }
            // The engine forgets who is interested, and nothing else happens.
            99 => drop(self.logs[which % CHANNELS.len()].interested.remove(&node)),
            _ => self.tick(),
        }
    }

    /// Everything on the way arrives.
    fn arrive(&mut self) {
        for node in 0..NODES {
            self.connect(node);
            for _ in 0..40 {
                self.execute(node);
                let event = self.nodes[node].answers.pop_front();
                self.hear(node, event);
                let event = self.nodes[node].feed.pop_front();
                self.hear(node, event);
            }
        }
    }

    /// Faults end: everything on the way arrives, everybody who was told to come back does.
    fn converge(&mut self) {
        for _ in 0..60 {
            self.arrive();
            for client in 0..CLIENTS {
                if self.clients[client].at.is_none() {
                    self.subscribe(client, client % NODES);
                }
            }
            self.tick();
        }
        self.arrive();
        for log in self.past.values() {
            let distinct: BTreeSet<_> = log.iter().collect();
            assert_eq!(distinct.len(), log.len(), "a publication stands twice in one history");
        }
        for (index, client) in self.clients.iter().enumerate() {
            let log = &self.logs[channel_of(index)];
            let top = Position { offset: log.records.len() as Offset, epoch: log.epoch.expect("followed") };
            assert!(client.live, "client {index} waits for ever");
            assert_eq!(client.position, Some(top), "client {index}");
        }
        assert_eq!(self.acknowledged + self.refused, self.published, "each publish is answered once");
        for node in &mut self.nodes {
            let fleet = node.owner.fleet.as_ref().expect("a node of a fleet");
            assert_eq!((fleet.queued_bytes, fleet.follows, fleet.asked.len()), (0, 0, 0));
        }
    }
}

fn plan() -> impl Strategy<Value = Vec<(u8, usize, usize)>> {
    prop::collection::vec((0u8..103, 0usize..NODES, 0usize..12), 0..400)
}

/// All of history fits into a page, or a part of it.
fn page_bytes() -> impl Strategy<Value = u32> {
    prop_oneof![Just(Limits::DEFAULT.page_bytes_max), 0u32..100]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 400 } else { 5_000 }))]

    #[test]
    fn nothing_is_missed_and_nothing_comes_twice(plan in plan(), page_bytes_max in page_bytes()) {
        let mut world = World::new(page_bytes_max);
        (0..NODES).for_each(|node| world.connect(node));
        plan.into_iter().for_each(|step| world.step(step));
        world.converge();
    }

    /// Without faults nobody is ever told that something may be missing, as long as nobody is away for longer than history.
    #[test]
    fn without_faults_nobody_is_told_anything(plan in plan(), page_bytes_max in page_bytes()) {
        let mut world = World::new(page_bytes_max);
        (0..NODES).for_each(|node| world.connect(node));
        for client in 0..CLIENTS {
            world.subscribe(client, client % NODES);
        }
        plan.into_iter().filter(|(what, ..)| !(32..38).contains(what) && !(90..101).contains(what)).for_each(|step| world.step(step));
        world.converge();
        prop_assert_eq!((world.told, world.refused), (0, 0));
    }
}
