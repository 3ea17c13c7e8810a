//! One start of one node: its shards, the lanes between them, and its backplane's place.
//!
//! In: turns, of which the dice say what is in them. Out: bytes to sockets, requests to the engine, answers for whoever calls
//! the server API here. A turn keeps the order of the real loop: begin, then lanes, reads and writable sockets in any order and
//! number, end of turn, writes, lanes, what was asked of the loop, closed sockets; any part behind the first may be left out.

use std::collections::VecDeque;
use std::sync::Arc;

use ringway_engine::ids::CoreId;
use ringway_engine::lane_message::{Batch, LaneMessage};
use ringway_engine::metrics::Metric;
use ringway_engine::seam::{Action, DrainOrder, Input, Port};
use ringway_engine::shard::Shard;
use ringway_engine::tokens::Tokens;

use crate::driver::{Driver, Wires};

use super::hop::Hop;
use super::plan::FleetPlan;

/// See the file's header.
pub(crate) struct Node {
    pub(crate) boot: u64,
    cores: Vec<Driver>,
    /// By target, then sender. Targets behind the shards: the control plane, the backplane.
    lanes: Vec<Vec<VecDeque<Batch>>>,
    pub(crate) hop: Hop,
    /// It stands still.
    pub(crate) is_frozen: bool,
    pub(crate) leaving: Leaving,
    /// Since when.
    pub(crate) leaving_since_ms: u64,
    /// The engine's word that some node drains has been taken by every shard, and until when it holds.
    pub(crate) knows_draining_until_ms: Vec<u64>,
}

/// How far a node has come with leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Leaving {
    Not,
    Clients,
    Backends,
    /// Everybody at once.
    AtOnce,
}

/// What a turn may leave out, and how much it takes.
pub(crate) enum Turn {
    /// As the dice fall.
    Any,
    /// Everything.
    Fair,
}

#[derive(Clone, Copy)]
enum Op {
    Lane { messages_max: usize },
    Read { bytes_max: usize },
    Writable,
}

/// All of it.
const ALL: usize = usize::MAX;
/// Clients whom a shard sends away in 1,000 s.
const PACE: u64 = 20_000;

impl Node {
    pub(crate) fn new(name: usize, boot: u64, plan: &FleetPlan, tokens: &Arc<dyn Tokens>, now_ms: u64) -> Self {
        let shards = plan.nodes[name].shards;
        let driver = |core| {
            let options = plan.options(name, boot, core, Arc::clone(tokens));
            Driver::new(name * 8 + core, Shard::new(options, now_ms))
        };
        let planes = shards + 2;
        Node {
            boot,
            cores: (0..shards).map(driver).collect(),
            lanes: (0..planes).map(|_| (0..planes).map(|_| VecDeque::new()).collect()).collect(),
            hop: Hop::new(name, boot, shards),
            is_frozen: false,
            leaving: Leaving::Not,
            leaving_since_ms: 0,
            knows_draining_until_ms: vec![0; shards],
        }
    }

    pub(crate) fn shards(&self) -> usize {
        self.cores.len()
    }

    pub(crate) fn takes_newcomers(&self, port: Port) -> bool {
        !self.is_frozen
            && self.leaving < Leaving::AtOnce
            && self.cores.iter().all(|core| core.shard.takes_newcomers(port))
    }

    /// A new connection; its place among all sockets.
    pub(crate) fn open(&mut self, core: usize, port: Port, room: usize, wires: &mut Wires<'_>) -> Option<usize> {
        self.cores[core].open(core, port, room, wires)
    }

    /// One turn of a shard.
    pub(crate) fn turn(&mut self, core: usize, how: &Turn, now_ms: u64, wires: &mut Wires<'_>) {
        let ops = self.ops(core, how, wires);
        self.cores[core].shard.begin_turn(now_ms);
        for op in ops {
            match op {
                Op::Lane { messages_max } => self.take_lane(core, messages_max, now_ms, wires),
                Op::Read { bytes_max } => self.cores[core].read(bytes_max, wires),
                Op::Writable => self.cores[core].writable(wires),
            }
        }
        let skips = |wires: &mut Wires<'_>, one_in| matches!(how, Turn::Any) && wires.dice.one_in(one_in);
        if !skips(wires, 6) {
            self.cores[core].shard.end_turn();
        }
        if !skips(wires, 5) {
            self.cores[core].write(matches!(how, Turn::Any), wires);
        }
        if !skips(wires, 5) {
            self.send(core, wires);
        }
        self.carry_out(core, wires);
        let closed = if matches!(how, Turn::Any) { wires.dice.below(2) } else { self.cores[core].closing.len() };
        (0..closed).for_each(|_| self.cores[core].closed(wires));
    }

    fn ops(&self, core: usize, how: &Turn, wires: &mut Wires<'_>) -> Vec<Op> {
        let mut ops = Vec::new();
        match how {
            Turn::Any => {
                let dice = &mut wires.dice;
                ops.extend((0..dice.below(5)).map(|_| Op::Lane { messages_max: dice.pick(&[1, 2, 7, ALL, ALL]) }));
                ops.extend((0..dice.below(5)).map(|_| Op::Read { bytes_max: dice.pick(&[1, 20, 300, ALL, ALL]) }));
                ops.extend((0..dice.below(2)).map(|_| Op::Writable));
                dice.shuffle(&mut ops);
            }
            Turn::Fair => {
                let waiting: usize = self.lanes[core].iter().map(VecDeque::len).sum();
                ops.extend((0..waiting).map(|_| Op::Lane { messages_max: ALL }));
                ops.extend(self.cores[core].sockets.iter().flat_map(|_| [Op::Writable, Op::Read { bytes_max: ALL }]));
            }
        }
        ops
    }

    /// Takes messages of one sender off the lane, in order.
    fn take_lane(&mut self, core: usize, messages_max: usize, now_ms: u64, wires: &mut Wires<'_>) {
        let lanes = &mut self.lanes[core];
        let senders: Vec<_> = (0..lanes.len()).filter(|from| !lanes[*from].is_empty()).collect();
        if senders.is_empty() || self.cores[core].shard.is_swamped() {
            return;
        }
        let from = wires.dice.pick(&senders);
        let batch = &mut lanes[from][0];
        let take = messages_max.min(batch.messages.len());
        let messages: Vec<_> = batch.messages.drain(..take).collect();
        if batch.messages.is_empty() {
            lanes[from].pop_front();
        }
        wires.trace.note("lane", [core as u64, from as u64, take as u64]);
        for message in messages {
            if let LaneMessage::Backplane(event) = &message
                && let ringway_engine::backplane::Event::Draining { left_ms } = **event
            {
                self.knows_draining_until_ms[core] = now_ms + left_ms;
            }
            self.cores[core].shard.handle(Input::Lane { message });
        }
    }

    fn send(&mut self, core: usize, wires: &mut Wires<'_>) {
        let mut targets = Vec::new();
        self.cores[core].shard.lanes().take_waiting(&mut targets);
        wires.dice.shuffle(&mut targets);
        for to in targets {
            let lanes = self.cores[core].shard.lanes();
            assert!(!lanes.take_lost(to), "a lane lost something, and its bound is far away");
            while let Some(batch) = self.cores[core].shard.lanes().take_batch(to) {
                wires.trace.note("send", [core as u64, u64::from(to.0), batch.messages.len() as u64]);
                self.lanes[to.0 as usize][core].push_back(batch);
            }
        }
    }

    fn carry_out(&mut self, core: usize, wires: &mut Wires<'_>) {
        let mut actions = Vec::new();
        let driver = &mut self.cores[core];
        driver.shard.take_actions(&mut actions);
        for action in actions {
            match action {
                Action::Close { conn, .. } => driver.closing.push(conn),
                Action::FinishWriting { conn } => {
                    if let Some(index) = driver.sockets.get(&conn.slot) {
                        wires.sockets[*index].server_end = true;
                    }
                }
                Action::Note(_) => {}
            }
        }
    }

    /// The control plane says something to a shard.
    pub(crate) fn say(&mut self, core: usize, message: LaneMessage) {
        let control = CoreId(self.shards() as u16);
        self.lanes[core][control.0 as usize].push_back(Batch { from: control, messages: vec![message] });
    }

    /// What shards have said to the control plane.
    pub(crate) fn take_answers(&mut self) -> Vec<LaneMessage> {
        let control = self.shards();
        self.lanes[control].iter_mut().flat_map(|lane| lane.drain(..)).flat_map(|batch| batch.messages).collect()
    }

    /// The backplane takes a batch of a shard. False: there is none.
    pub(crate) fn give_hop(&mut self, wires: &mut Wires<'_>) -> bool {
        let lanes = &mut self.lanes[self.cores.len() + 1];
        let senders: Vec<_> = (0..lanes.len()).filter(|from| !lanes[*from].is_empty()).collect();
        if senders.is_empty() {
            return false;
        }
        let from = wires.dice.pick(&senders);
        let batch = lanes[from].pop_front().expect("not empty");
        wires.trace.note("ask engine", [from as u64, batch.messages.len() as u64, 0]);
        self.hop.take(batch);
        true
    }

    /// The backplane gives a shard up to so many events. False: there are none.
    pub(crate) fn hop_gives(&mut self, core: usize, events_max: usize) -> bool {
        let Some(batch) = self.hop.batch_for(core, events_max) else { return false };
        let from = batch.from.0 as usize;
        self.lanes[core][from].push_back(batch);
        true
    }

    /// Goes one step further with leaving.
    pub(crate) fn leave(&mut self, step: Leaving, now_ms: u64) {
        if self.leaving == Leaving::Not {
            self.leaving_since_ms = now_ms;
        }
        self.leaving = step;
        for core in &mut self.cores {
            core.shard.begin_turn(now_ms);
            core.shard.handle(match step {
                Leaving::Not | Leaving::Clients => Input::Drain(DrainOrder { clients_per_1000_s: PACE }),
                Leaving::Backends => Input::DrainBackends,
                Leaving::AtOnce => Input::Shutdown,
            });
        }
    }

    /// Whether those whom it sends away now were handed over: none at once, none without the engine's word.
    pub(crate) fn leaves_in_order(&mut self, deadline_ms: u64, now_ms: u64) -> bool {
        let unsure = [Metric::HandOversLate, Metric::HandOversFailed, Metric::HandOversCut, Metric::DrainForced];
        matches!(self.leaving, Leaving::Clients | Leaving::Backends)
            && now_ms < self.leaving_since_ms + deadline_ms
            && unsure.into_iter().all(|metric| self.total(metric) == 0)
    }

    /// Some shard would do something in its next turn.
    pub(crate) fn has_work(&self) -> bool {
        self.cores.iter().any(|core| core.shard.has_work())
    }

    /// Nothing waits between its shards and its backplane's place.
    pub(crate) fn has_waiting_lanes(&self) -> bool {
        self.lanes.iter().flatten().any(|lane| !lane.is_empty())
    }

    /// Connections of a port.
    pub(crate) fn connections(&mut self, port: Port) -> u64 {
        let metric = match port {
            Port::Client => Metric::ConnectionsOpen,
            Port::Ingest => Metric::IngestConnectionsOpen,
        };
        self.total(metric)
    }

    /// Nobody is connected any more, and nothing waits for peers to be gone.
    pub(crate) fn has_nobody(&mut self) -> bool {
        self.cores.iter_mut().all(|core| core.shard.connections() == 0 && core.closing.is_empty())
    }

    /// A number of all shards together.
    pub(crate) fn total(&mut self, metric: Metric) -> u64 {
        self.cores.iter_mut().map(|core| core.shard.metrics().get(metric)).sum()
    }

    /// Places of all its sockets.
    pub(crate) fn sockets(&self) -> Vec<usize> {
        self.cores.iter().flat_map(|core| core.sockets.values().copied()).collect()
    }

    /// Everybody has gone and channels had time to be forgotten: nothing may be left.
    pub(crate) fn assert_empty(&mut self, name: usize) {
        for (core, driver) in self.cores.iter_mut().enumerate() {
            assert_eq!(driver.shard.connections(), 0, "connections of node {name}, shard {core}");
            assert_eq!(driver.shard.outbox_frames(), 0, "frames left in outboxes of node {name}, shard {core}");
            for gauge in GAUGES {
                assert_eq!(driver.shard.metrics().get(gauge), 0, "{gauge:?} of node {name}, shard {core}");
            }
        }
    }
}

/// What must be 0 when nobody is connected and everything was forgotten.
const GAUGES: [Metric; 12] = [
    Metric::ConnectionsOpen,
    Metric::IngestConnectionsOpen,
    Metric::SubscriptionsOpen,
    Metric::ChannelsFollowed,
    Metric::ChannelsOwned,
    Metric::HistoryBytes,
    Metric::HistoryPublications,
    Metric::PresenceMembers,
    Metric::UsersOpen,
    Metric::UsersOnline,
    Metric::FleetQueuedBytes,
    Metric::DrainLeavesWaiting,
];
