//! The world of one run: shards, the lanes between them, sockets, peers and the clock, all moved by one seed.
//!
//! In: a [`Plan`]. Out: a run that holds, or a panic. A shard's turn is a list of small operations in an order that
//! the dice choose; operations of different shards interleave anyhow. What a real loop never does, this does not do:
//! an operation is not cut in two, one shard's operations keep their order, and batches of one sender stay in line.
//!
//! ```text
//! turn   begin | lane, read, writable (some of each, shuffled) | end turn | write | send lanes | carry out | closed
//! send   for each target: raise its flag if something was lost, then one batch after the other until the queue is full
//! ```

use std::collections::VecDeque;
use std::sync::Arc;

use ringway_engine::ids::CoreId;
use ringway_engine::lane_message::{Batch, LaneMessage};
use ringway_engine::metrics::Metric;
use ringway_engine::namespace::Namespaces;
use ringway_engine::seam::{Action, Input, Note, Port};
use ringway_engine::shard::Shard;

use crate::backend::Backend;
use crate::client::Client;
use crate::control::Control;
use crate::dice::{Dice, Trace};
use crate::driver::{Driver, Wires};
use crate::hearing::Hearing;
use crate::ledger::Ledger;
use crate::plan::Plan;
use crate::rules;
use crate::socket::Socket;
use crate::tokens::ModelTokens;

/// See the file's header.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) dice: Dice,
    pub(crate) trace: Trace,
    pub(crate) ledger: Ledger,
    pub(crate) clients: Vec<Client>,
    pub(crate) backends: Vec<Backend>,
    pub(crate) sockets: Vec<Socket>,
    pub(crate) now_ms: u64,
    pub(crate) control: Control,
    pub(crate) hearing: Hearing,
    pub(crate) tokens: Arc<ModelTokens>,
    pub(crate) rules: Namespaces,
    pub(crate) reloads: u32,
    /// Backends have left for good.
    pub(crate) left: bool,
    nodes: Vec<Node>,
    /// By target, then sender; behind the shards the control plane is both.
    pub(crate) lanes: Vec<Vec<Lane>>,
}

/// One shard and where it is in its turn.
struct Node {
    driver: Driver,
    ops: VecDeque<Op>,
    /// Taken from a lane and not handled yet.
    hand: Vec<LaneMessage>,
    /// Does nothing for so many of its operations.
    stalled: usize,
}

/// From one shard to another.
#[derive(Default)]
pub(crate) struct Lane {
    pub(crate) queue: VecDeque<Batch>,
    lost: bool,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Begin,
    /// Takes messages of one sender, at most so many, looks at the flags, and handles them.
    Lane {
        messages_max: usize,
    },
    TakeLost,
    Handle,
    /// Bytes of one socket, at most so many.
    Read {
        bytes_max: usize,
    },
    Writable,
    EndTurn,
    Write {
        short: bool,
    },
    Send,
    RaiseLost(CoreId),
    Push(CoreId),
    CarryOut,
    Closed,
}

/// All of it.
const ALL: usize = usize::MAX;

impl World {
    pub(crate) fn new(plan: Plan) -> Self {
        let (shards, planes) = (plan.shards, plan.shards + 1);
        let tokens = Arc::new(ModelTokens::default());
        let mut ledger = Ledger::new(&plan);
        let node = |core| Node {
            driver: Driver::new(core, Shard::new(plan.options(core, tokens.clone()), 0)),
            ops: VecDeque::new(),
            hand: Vec::new(),
            stalled: 0,
        };
        World {
            dice: Dice::new(plan.seed),
            trace: Trace::default(),
            clients: plan.clients.iter().map(|client| Client::new(client.clone(), &plan)).collect(),
            backends: plan.backends.iter().map(|_| Backend::new(&plan)).collect(),
            sockets: Vec::new(),
            now_ms: 0,
            control: Control::new(&mut ledger),
            hearing: Hearing::new(plan.limits.event_answer_timeout_ms < 1_000),
            rules: rules::namespaces(plan.numbers, plan.catch_all, 0),
            reloads: 0,
            left: false,
            nodes: (0..shards).map(node).collect(),
            lanes: (0..planes).map(|_| (0..planes).map(|_| Lane::default()).collect()).collect(),
            tokens,
            ledger,
            plan,
        }
    }

    /// A number of all shards together.
    pub(crate) fn total(&mut self, metric: Metric) -> u64 {
        self.nodes.iter_mut().map(|node| node.driver.shard.metrics().get(metric)).sum()
    }

    /// A new connection to a shard; its place among `sockets`.
    pub(crate) fn open(&mut self, core: usize, port: Port) -> Option<usize> {
        let room = if port == Port::Client { self.plan.socket_bytes_max } else { 1 << 20 };
        self.drive(core, |driver, wires| driver.open(core, port, room, wires))
    }

    /// Runs `act` on a shard's driver, with what it touches.
    fn drive<T>(&mut self, core: usize, act: impl FnOnce(&mut Driver, &mut Wires<'_>) -> T) -> T {
        let mut wires = Wires { sockets: &mut self.sockets, dice: &mut self.dice, trace: &mut self.trace };
        act(&mut self.nodes[core].driver, &mut wires)
    }

    /// One operation of a shard.
    pub(crate) fn step(&mut self, core: usize) {
        if self.nodes[core].stalled > 0 {
            self.nodes[core].stalled -= 1;
            return;
        }
        // Anywhere, as a thread loses its processor.
        if self.plan.stalls && self.dice.one_in(400) {
            self.nodes[core].stalled = self.dice.between(10, 300);
        }
        if self.nodes[core].ops.is_empty() {
            self.begin_turn(core);
        }
        if let Some(op) = self.nodes[core].ops.pop_front() {
            self.carry_out(core, op);
        }
    }

    /// Puts a turn together.
    fn begin_turn(&mut self, core: usize) {
        let (dice, lossy) = (&mut self.dice, self.plan.lossy);
        let mut ops = Vec::new();
        ops.extend((0..dice.below(5)).map(|_| Op::Lane { messages_max: dice.pick(&[1, 2, 7, ALL]) }));
        ops.extend((0..dice.below(5)).map(|_| Op::Read { bytes_max: dice.pick(&[1, 20, 300, 100_000, 100_000]) }));
        ops.extend((0..dice.below(3)).map(|_| Op::Writable));
        dice.shuffle(&mut ops);
        let mut rare = |ops: &mut Vec<Op>, op, skipped_one_in| {
            if !dice.one_in(skipped_one_in) {
                ops.push(op);
            }
        };
        rare(&mut ops, Op::EndTurn, 6);
        rare(&mut ops, Op::Write { short: true }, 4);
        // What piles up is lost in parts: the large is dropped, a small one behind it still fits.
        rare(&mut ops, Op::Send, if lossy { 2 } else { 6 });
        rare(&mut ops, Op::CarryOut, 4);
        rare(&mut ops, Op::Closed, 2);
        self.nodes[core].ops.push_back(Op::Begin);
        self.nodes[core].ops.extend(ops);
    }

    /// A whole turn without faults, in the order of the real loop. True: something was done.
    pub(crate) fn fair_turn(&mut self, core: usize) -> bool {
        let before = self.trace.digest();
        self.nodes[core].stalled = 0;
        while let Some(op) = self.nodes[core].ops.pop_front() {
            self.carry_out(core, op);
        }
        let mut turn = vec![Op::Begin];
        turn.extend((0..self.plan.shards * 4).map(|_| Op::Lane { messages_max: ALL }));
        turn.extend(self.nodes[core].driver.sockets.iter().flat_map(|_| [Op::Writable, Op::Read { bytes_max: ALL }]));
        turn.extend([Op::EndTurn, Op::Write { short: false }, Op::Send, Op::CarryOut, Op::Closed]);
        self.nodes[core].ops.extend(turn);
        while let Some(op) = self.nodes[core].ops.pop_front() {
            self.carry_out(core, op);
        }
        before != self.trace.digest()
            || self.nodes[core].driver.shard.has_work()
            || !self.nodes[core].driver.closing.is_empty()
    }

    fn carry_out(&mut self, core: usize, op: Op) {
        match op {
            Op::Begin => self.nodes[core].driver.shard.begin_turn(self.now_ms),
            Op::Lane { messages_max } => {
                self.take_lane(core, messages_max);
                // Looked at behind the pop and before the messages, as the loop does.
                self.nodes[core].ops.push_front(Op::Handle);
                self.nodes[core].ops.push_front(Op::TakeLost);
            }
            Op::TakeLost => self.take_lost(core),
            Op::Handle => {
                let node = &mut self.nodes[core];
                for message in node.hand.drain(..) {
                    node.driver.shard.handle(Input::Lane { message });
                }
            }
            Op::Read { bytes_max } => self.drive(core, |driver, wires| driver.read(bytes_max, wires)),
            Op::Writable => self.drive(core, Driver::writable),
            Op::EndTurn => self.nodes[core].driver.shard.end_turn(),
            Op::Write { short } => self.drive(core, |driver, wires| driver.write(short, wires)),
            Op::Send => {
                let mut targets = Vec::new();
                self.nodes[core].driver.shard.lanes().take_waiting(&mut targets);
                self.dice.shuffle(&mut targets);
                for to in targets {
                    // Raised before anything said later is sent.
                    self.nodes[core].ops.push_front(Op::Push(to));
                    self.nodes[core].ops.push_front(Op::RaiseLost(to));
                }
            }
            Op::RaiseLost(to) => {
                if self.nodes[core].driver.shard.lanes().take_lost(to) {
                    self.trace.note("lost", [core as u64, u64::from(to.0), 0]);
                    self.lanes[to.0 as usize][core].lost = true;
                    self.ledger.counts.lost += 1;
                    *self.ledger.lost.entry((core, to.0 as usize)).or_default() += 1;
                }
            }
            Op::Push(to) => self.push(core, to),
            Op::CarryOut => {
                let mut actions = Vec::new();
                self.nodes[core].driver.shard.take_actions(&mut actions);
                for action in actions {
                    match action {
                        Action::Close { conn, .. } => {
                            self.trace.note("close", [core as u64, u64::from(conn.slot), 0]);
                            self.nodes[core].driver.closing.push(conn);
                        }
                        Action::FinishWriting { conn } => {
                            if let Some(index) = self.nodes[core].driver.sockets.get(&conn.slot) {
                                self.sockets[*index].server_end = true;
                            }
                        }
                        Action::Note(Note::LaneLost { subscriptions, .. }) => {
                            self.trace.note("ended", [core as u64, u64::from(subscriptions), 0]);
                            self.ledger.counts.ended += u64::from(subscriptions);
                        }
                        Action::Note(_) => {}
                    }
                }
            }
            Op::Closed => self.drive(core, Driver::closed),
        }
    }

    /// Offers one batch to a lane, and comes back for the next until the queue is full.
    fn push(&mut self, core: usize, to: CoreId) {
        let Some(batch) = self.nodes[core].driver.shard.lanes().take_batch(to) else { return };
        let lanes = &mut self.lanes[to.0 as usize];
        let queued: usize = lanes.iter().map(|lane| lane.queue.len()).sum();
        self.trace.note("push", [core as u64, u64::from(to.0), batch.messages.len() as u64]);
        if queued >= self.plan.queue_batches_max {
            self.nodes[core].driver.shard.lanes().put_back(to, batch);
        } else {
            lanes[core].queue.push_back(batch);
            self.nodes[core].ops.push_front(Op::Push(to));
        }
    }

    /// Takes messages of one sender off the lane, in order.
    fn take_lane(&mut self, core: usize, messages_max: usize) {
        if self.nodes[core].driver.shard.is_swamped() {
            return;
        }
        let senders: Vec<_> = (0..=self.plan.shards).filter(|from| !self.lanes[core][*from].queue.is_empty()).collect();
        if senders.is_empty() {
            return;
        }
        let from = self.dice.pick(&senders);
        let queue = &mut self.lanes[core][from].queue;
        let batch = &mut queue[0];
        let take = messages_max.min(batch.messages.len());
        self.nodes[core].hand.extend(batch.messages.drain(..take));
        if batch.messages.is_empty() {
            queue.pop_front();
        }
        self.trace.note("lane", [core as u64, from as u64, take as u64]);
    }

    fn take_lost(&mut self, core: usize) {
        for from in 0..self.plan.shards {
            if std::mem::take(&mut self.lanes[core][from].lost) {
                self.trace.note("told lost", [core as u64, from as u64, 0]);
                self.nodes[core].driver.shard.handle(Input::LaneLost { from: CoreId(from as u16) });
            }
        }
    }

    /// Whether something is under way that needs no new input to go on.
    pub(crate) fn is_busy(&mut self) -> bool {
        let lanes = self.lanes.iter().flatten().any(|lane| !lane.queue.is_empty() || lane.lost);
        let sockets = self
            .sockets
            .iter()
            .any(|socket| !socket.closed && (!socket.up.is_empty() || !socket.down.is_empty() || socket.blocked));
        lanes || sockets || self.nodes.iter_mut().any(|node| node.driver.shard.lanes().spill_bytes() > 0)
    }

    /// What is kept for backends is bounded, whatever they do.
    pub(crate) fn assert_bounds(&mut self) {
        let max = u64::from(self.plan.limits.events_pending_max);
        for (core, node) in self.nodes.iter_mut().enumerate() {
            let pending = node.driver.shard.metrics().get(Metric::EventsPending);
            assert!(pending <= max, "shard {core} keeps {pending} events of at most {max}");
        }
    }

    /// Tells every shard to end.
    pub(crate) fn shut_down(&mut self) {
        for node in &mut self.nodes {
            node.driver.shard.handle(Input::Shutdown);
        }
    }

    /// Every peer has gone and every channel is forgotten: nothing may be left.
    pub(crate) fn assert_empty(&mut self) {
        for (core, node) in self.nodes.iter_mut().enumerate() {
            assert_eq!(node.driver.shard.connections(), 0, "connections of shard {core}");
            assert!(node.driver.sockets.is_empty() && node.driver.closing.is_empty(), "sockets of shard {core}");
            assert_eq!(node.driver.shard.outbox_frames(), 0, "frames left in outboxes of shard {core}");
            assert_eq!(node.driver.shard.lanes().spill_bytes(), 0, "spill of shard {core}");
            let gauges = [
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
                Metric::EventsPending,
                Metric::EventsPendingBytes,
            ];
            for gauge in gauges {
                assert_eq!(node.driver.shard.metrics().get(gauge), 0, "{gauge:?} of shard {core}");
            }
        }
    }
}
