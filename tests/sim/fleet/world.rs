//! The world of one run of several nodes: nodes, the engine between them, clients, backends, calls of the server API, the clock.
//!
//! In: a [`FleetPlan`]. Out: what the phases let happen, one thing at a time, in the order that the seed chooses.
//! A node is a place with a name; what runs there is a start of it ([`Node`]), and there may be none.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use ringway_engine::backplane::Request;
use ringway_engine::call::{Since, UserAnswer, UserCall, UserOrder};
use ringway_engine::ids::CoreId;
use ringway_engine::lane_message::{LaneMessage, Origin};
use ringway_engine::metrics::Metric;
use ringway_engine::route;
use ringway_engine::seam::Port;
use ringway_engine::tokens::{Overrides, TokenSubscription, Tokens};

use crate::dice::{Dice, Trace};
use crate::driver::Wires;
use crate::socket::Socket;

use super::backend::{self, Backend};
use super::client::{self, Client};
use super::engine::Engine;
use super::hop::{Cut, Late};
use super::node::{Leaving, Node, Turn};
use super::plan::{FleetPlan, NEVER_MS, Named};
use super::truth::Truth;

/// See the file's header.
pub(crate) struct World {
    pub(crate) plan: FleetPlan,
    pub(crate) dice: Dice,
    pub(crate) trace: Trace,
    pub(crate) truth: Truth,
    pub(crate) engine: Engine,
    pub(crate) nodes: Vec<Option<Node>>,
    pub(crate) clients: Vec<Client>,
    pub(crate) backends: Vec<Backend>,
    pub(crate) sockets: Vec<Socket>,
    pub(crate) now_ms: u64,
    /// Requests of connections that are no more, which may still arrive.
    late: VecDeque<Late>,
    /// Orders without an answer, by the node and number of the call.
    orders: BTreeMap<(usize, u64), usize>,
    calls: u64,
    pub(crate) refused_orders: u64,
    tokens: Arc<dyn Tokens>,
    boots: u64,
}

/// What a node touches beside itself.
pub(crate) struct Beside<'a> {
    pub(crate) wires: Wires<'a>,
    pub(crate) engine: &'a mut Engine,
    pub(crate) truth: &'a mut Truth,
}

impl World {
    pub(crate) fn new(plan: FleetPlan) -> Self {
        let mut world = World {
            dice: Dice::new(plan.seed),
            trace: Trace::default(),
            truth: Truth::default(),
            engine: Engine::default(),
            nodes: plan.nodes.iter().map(|_| None).collect(),
            clients: (0..plan.clients.len()).map(|number| Client::new(number, &plan)).collect(),
            backends: (0..plan.backends).map(|_| Backend::default()).collect(),
            sockets: Vec::new(),
            now_ms: 1_000,
            late: VecDeque::new(),
            orders: BTreeMap::new(),
            calls: 0,
            refused_orders: 0,
            tokens: Arc::new(Named),
            boots: 0,
            plan,
        };
        world.engine.now_ms = world.now_ms;
        world.engine.has_replica = world.plan.faults.failovers;
        (0..world.nodes.len()).for_each(|name| world.start(name));
        world
    }

    /// A new start of a node that is down.
    pub(crate) fn start(&mut self, name: usize) {
        if self.nodes[name].is_some() || self.engine.has_lease(name) {
            return;
        }
        self.boots += 1;
        // Unique among all starts, as far as 32 bits of it are looked at.
        let boot = self.dice.seed() << 32 | self.boots << 8 | name as u64;
        let mut node = Node::new(name, boot, &self.plan, &self.tokens, self.now_ms);
        if node.hop.open(&mut self.engine, &mut self.truth) {
            self.trace.note("start", [name as u64, self.boots, 0]);
            self.nodes[name] = Some(node);
        }
    }

    /// Runs `act` on a node that is up, with what it touches.
    pub(crate) fn with_node<T>(&mut self, name: usize, act: impl FnOnce(&mut Node, &mut Beside<'_>) -> T) -> Option<T> {
        let node = self.nodes[name].as_mut()?;
        let wires = Wires { sockets: &mut self.sockets, dice: &mut self.dice, trace: &mut self.trace };
        Some(act(node, &mut Beside { wires, engine: &mut self.engine, truth: &mut self.truth }))
    }

    /// A turn of one of a node's shards.
    pub(crate) fn turn(&mut self, name: usize, core: usize, how: &Turn) {
        let now_ms = self.now_ms;
        self.with_node(name, |node, beside| node.turn(core, how, now_ms, &mut beside.wires));
    }

    /// Time passes: nodes that are awake show that they live.
    pub(crate) fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        self.engine.pass(self.now_ms);
        for name in 0..self.nodes.len() {
            let late =
                self.with_node(
                    name,
                    |node, beside| {
                        if node.is_frozen { None } else { node.hop.renew(beside.engine, beside.truth) }
                    },
                );
            self.keep_late(late.flatten().unwrap_or_default());
        }
    }

    /// A node's connection to the engine ends.
    pub(crate) fn cut(&mut self, name: usize) {
        let how = self.any_cut();
        self.trace.note("cut", [name as u64, 0, 0]);
        let late = self.with_node(name, |node, beside| node.hop.cut(how, beside.engine, beside.truth));
        self.keep_late(late.unwrap_or_default());
    }

    fn any_cut(&mut self) -> Cut {
        Cut { carried_out: self.dice.below(4), late: self.dice.below(4), leaves_ghost: self.dice.one_in(3) }
    }

    fn keep_late(&mut self, late: Vec<Late>) {
        // Some never arrive.
        let dice = &mut self.dice;
        // A late leave takes interest away without a word: where nobody looks at it again, only publishes are late.
        let never = self.plan.limits.interest_check_ms == NEVER_MS;
        let may = |request: &Request| !never || matches!(request, Request::Publish(_));
        self.late.extend(late.into_iter().filter(|(_, request)| may(request) && !dice.one_in(3)));
    }

    /// A request of a connection that is no more arrives. False: there is none.
    pub(crate) fn late_arrives(&mut self) -> bool {
        let Some((from, request)) = self.late.pop_front() else { return false };
        self.trace.note("late", [u64::from(from.generation), 0, 0]);
        self.truth.counts.note("late requests", 1);
        // Whoever asked hears nothing of it.
        let _ = self.engine.execute(from, request, &mut self.truth);
        true
    }

    /// A node's process ends without a word.
    pub(crate) fn kill(&mut self, name: usize) {
        let how = self.any_cut();
        let Some(node) = self.nodes[name].take() else { return };
        self.trace.note("kill", [name as u64, 0, 0]);
        self.truth.counts.note("kills", 1);
        self.orphan(&node);
        let late = node.hop.kill(how, &mut self.engine, &mut self.truth);
        self.keep_late(late);
        self.orders.retain(|(node, _), _| *node != name);
    }

    fn orphan(&mut self, node: &Node) {
        for index in node.sockets() {
            let socket = &mut self.sockets[index];
            (socket.is_orphan, socket.server_end, socket.closed) = (true, true, true);
            socket.up.clear();
        }
    }

    /// A node that is being left goes on with that; it ends when nobody is there any more.
    pub(crate) fn go_on_leaving(&mut self, name: usize) {
        let now_ms = self.now_ms;
        let deadline_ms = u64::from(self.plan.limits.drain_deadline_ms);
        let Some(node) = self.nodes[name].as_mut().filter(|node| !node.is_frozen) else { return };
        let late = node.leaving_since_ms + deadline_ms + 3_000 <= now_ms;
        let left = [Port::Client, Port::Ingest].map(|port| node.connections(port));
        let next = match (node.leaving, left) {
            (Leaving::Not, _) => return,
            (Leaving::Clients, [0, _]) => Some(Leaving::Backends),
            (Leaving::Backends, [_, 0]) => Some(Leaving::AtOnce),
            (Leaving::Clients | Leaving::Backends, _) if late => Some(Leaving::AtOnce),
            _ => None,
        };
        if let Some(step) = next {
            node.leave(step, now_ms);
        }
        let is_over = node.leaving == Leaving::AtOnce && node.has_nobody() && !node.has_waiting_lanes();
        if is_over && let Some(mut node) = self.nodes[name].take() {
            let metrics = [
                (Metric::HandOversParked, "parked"),
                (Metric::HandOversLate, "parked late"),
                (Metric::HandOversFailed, "not parked"),
                (Metric::DrainForced, "forced out"),
            ];
            metrics.into_iter().for_each(|(metric, name)| self.truth.counts.note(name, node.total(metric)));
            self.trace.note("left", [name as u64, 0, 0]);
            self.truth.counts.note("drains", 1);
            self.count_metrics(&mut node);
            node.hop.stop(&mut self.engine, &mut self.truth);
            self.orders.retain(|(node, _), _| *node != name);
        }
    }

    /// What a start of a node has met.
    pub(crate) fn count_metrics(&mut self, node: &mut Node) {
        let metrics = [
            (Metric::FleetFedHeld, "holes"),
            (Metric::FleetFedAgain, "fed again"),
            (Metric::FleetResets, "resets"),
            (Metric::HandOversRestored, "restored"),
            (Metric::FleetPresencePartial, "presence without a node"),
            (Metric::FleetUnfollows, "left alone"),
        ];
        metrics.into_iter().for_each(|(metric, name)| self.truth.counts.note(name, node.total(metric)));
    }

    /// The engine is another one now: connections to it are of no more use.
    pub(crate) fn engine_went(&mut self) {
        self.nodes.iter_mut().flatten().for_each(|node| node.hop.engine_went());
    }

    /// Runs `act` on a client that has a connection, with what it may touch.
    pub(crate) fn with_client<T>(
        &mut self,
        number: usize,
        act: impl FnOnce(&mut Client, &mut client::Around<'_>) -> T,
    ) -> Option<T> {
        let client = &mut self.clients[number];
        let link = client.link.as_ref()?;
        let (boot, now_ms, limits) = (link.boot, self.now_ms, &self.plan.limits);
        let node = self.nodes[link.node].as_mut().filter(|node| node.boot == boot);
        let in_order = self.plan.faults.spare_the_engine()
            && limits.backplane_wait_ms > 1_000
            && node.is_some_and(|node| node.leaves_in_order(u64::from(limits.drain_deadline_ms), now_ms));
        let socket = &mut self.sockets[link.socket];
        let (dice, plan, truth, losses) = (&mut self.dice, &self.plan, &mut self.truth, self.engine.losses);
        Some(act(client, &mut client::Around { dice, plan, truth, socket, losses, in_order }))
    }

    /// A place for a new connection: its node and its socket.
    fn open(&mut self, port: Port, room: usize) -> Option<(usize, usize)> {
        let open = |node: &Option<Node>| node.as_ref().is_some_and(|node| node.takes_newcomers(port));
        let names: Vec<_> = (0..self.nodes.len()).filter(|name| open(&self.nodes[*name])).collect();
        let name = if names.is_empty() { return None } else { self.dice.pick(&names) };
        let core = self.dice.below(self.plan.nodes[name].shards);
        let socket = self.with_node(name, |node, beside| node.open(core, port, room, &mut beside.wires))??;
        Some((name, socket))
    }

    /// A client without a connection takes one, to any node.
    pub(crate) fn connect_client(&mut self, number: usize) {
        let Some((name, socket)) = self.open(Port::Client, self.plan.socket_bytes_max) else { return };
        let now_ms = self.now_ms;
        let knows = |node: &Node| node.knows_draining_until_ms.iter().all(|until_ms| *until_ms > now_ms);
        let knows_draining = self.nodes[name].as_ref().is_some_and(knows);
        let boot = self.nodes[name].as_ref().map_or(0, |node| node.boot);
        let (dice, plan, truth, losses) = (&mut self.dice, &self.plan, &mut self.truth, self.engine.losses);
        self.clients[number].look_back(|socket| self.sockets[socket].closed);
        let socket_of = &mut self.sockets[socket];
        let mut around = client::Around { dice, plan, truth, socket: socket_of, losses, in_order: false };
        self.clients[number].connect((socket, name, boot), knows_draining, &mut around);
    }

    /// Runs `act` on a backend that has a connection, with what it may touch.
    pub(crate) fn with_backend<T>(
        &mut self,
        number: usize,
        act: impl FnOnce(&mut Backend, &mut backend::Around<'_>) -> T,
    ) -> Option<T> {
        let backend = &mut self.backends[number];
        let socket = &mut self.sockets[backend.link.as_ref()?.socket];
        let (dice, plan, truth) = (&mut self.dice, &self.plan, &mut self.truth);
        Some(act(backend, &mut backend::Around { dice, plan, truth, socket }))
    }

    pub(crate) fn connect_backend(&mut self, number: usize) {
        let Some((_, socket)) = self.open(Port::Ingest, 1 << 20) else { return };
        let (dice, plan, truth) = (&mut self.dice, &self.plan, &mut self.truth);
        let mut around = backend::Around { dice, plan, truth, socket: &mut self.sockets[socket] };
        self.backends[number].connect(socket, &mut around);
    }

    /// An order about a client's user, at any node that is up.
    pub(crate) fn order(&mut self, client: usize, order: UserOrder) {
        let up: Vec<_> = (0..self.nodes.len()).filter(|name| self.nodes[*name].is_some()).collect();
        if !up.is_empty() {
            let name = self.dice.pick(&up);
            self.order_at(name, client, order);
        }
    }

    /// The same at this node.
    pub(crate) fn order_at(&mut self, name: usize, client: usize, order: UserOrder) {
        let orders = &mut self.truth.orders;
        let of_channel = (client, self.plan.ordered());
        match &order {
            UserOrder::Subscribe { .. } => drop(orders.subscribed.insert(of_channel)),
            UserOrder::Unsubscribe { .. } => {
                orders.unsubscribed.insert(of_channel);
                orders.ending.insert(client);
                self.clients[client].owed.clear();
            }
            UserOrder::Disconnect { .. } => {
                orders.disconnected.insert(client);
                orders.ending.insert(client);
                self.clients[client].owed.clear();
            }
            UserOrder::Refresh { .. } | UserOrder::Message { .. } => {}
        }
        self.calls += 1;
        let (call, shards) = (self.calls, self.plan.nodes[name].shards as u16);
        self.orders.insert((name, call), client);
        let user = self.plan.clients[client].user.as_str();
        let owner = route::owner(route::bucket(user), shards);
        let origin = Some(Origin::Control { call });
        let user_call = UserCall { user: user.into(), client: Box::default(), order, origin, from: CoreId(shards) };
        self.trace.note("order", [name as u64, client as u64, call]);
        if let Some(node) = &mut self.nodes[name] {
            node.say(owner.0.into(), LaneMessage::UserCall(user_call.into()));
        }
    }

    /// Be subscribed to the channel for that.
    pub(crate) fn subscribe_order(&self) -> UserOrder {
        let subscription = TokenSubscription {
            channel: self.plan.channels[self.plan.ordered()].name.as_str().into(),
            overrides: Overrides { recovery: Some(true), ..Overrides::default() },
            ..TokenSubscription::default()
        };
        UserOrder::Subscribe { subscription, recover: None::<Since> }
    }

    /// Be it no more.
    pub(crate) fn unsubscribe_order(&self) -> UserOrder {
        let channel = self.plan.channels[self.plan.ordered()].name.as_str().into();
        UserOrder::Unsubscribe { channel, code: 2000, reason: "ended".into() }
    }

    /// The server API takes its answers. False: there were none.
    pub(crate) fn take_answers(&mut self) -> bool {
        let mut some = false;
        for name in 0..self.nodes.len() {
            let Some(node) = &mut self.nodes[name] else { continue };
            for message in node.take_answers() {
                some = true;
                let LaneMessage::UserAnswer(UserAnswer { origin: Origin::Control { call }, result }) = message else {
                    panic!("the control plane got {message:?}")
                };
                let known = self.orders.remove(&(name, call));
                assert!(known.is_some(), "a second answer to call {call}");
                self.refused_orders += u64::from(result.is_err());
                self.truth.counts.note(if result.is_ok() { "orders" } else { "orders refused" }, 1);
            }
        }
        some
    }

    /// Some order has no answer.
    pub(crate) fn has_open_orders(&self) -> bool {
        !self.orders.is_empty()
    }

    /// A user has no more connections than the limit, as long as the engine does what it is asked.
    pub(crate) fn assert_limit(&mut self) {
        let max = self.plan.limits.connections_per_user_max as usize;
        if max == 0 || !self.plan.faults.spare_the_engine() {
            return;
        }
        // A node that has just started does not know of the engine yet, and lets in who fits there.
        let unchecked = |node: &mut Node| node.total(Metric::UserLimitUnchecked) > 0;
        if self.nodes.iter_mut().flatten().any(unchecked) {
            return;
        }
        // Whom a node sends away may not know yet.
        let stays = |client: &&Client| {
            let Some(link) = client.link.as_ref().filter(|_| client.is_in()) else { return false };
            let node = self.nodes[link.node].as_ref();
            node.is_some_and(|node| node.boot == link.boot && node.leaving == Leaving::Not)
        };
        let inside = self.clients.iter().filter(|client| client.plan.is_visitor).filter(stays).count();
        assert!(inside <= max, "{inside} connections of one user, not {max}");
        self.truth.counts.note("limits looked at", u64::from(inside == max));
    }

    /// Everybody for whom there is room is in.
    pub(crate) fn assert_room_is_used(&self) {
        let visitors: Vec<_> = self.clients.iter().filter(|client| client.plan.is_visitor).collect();
        let inside = visitors.iter().filter(|client| client.is_in()).count();
        let room = visitors.len().min(self.plan.limits.connections_per_user_max as usize);
        // Who came in while the engine could not be asked stays.
        assert!(inside >= room, "{inside} of {} visitors are in, and there is room for {room}", visitors.len());
    }

    /// Nothing is under way between nodes and engine, nor at the server API.
    pub(crate) fn assert_at_rest(&mut self) {
        assert!(self.orders.is_empty(), "orders without an answer: {:?}", self.orders);
        for (name, node) in self.nodes.iter_mut().enumerate() {
            let node = node.as_mut().unwrap_or_else(|| panic!("node {name} did not come back"));
            assert!(!node.hop.is_busy(&self.engine), "something waits between node {name} and the engine");
            assert_eq!(node.total(Metric::FleetQueuedBytes), 0, "publishes wait on node {name}");
        }
        self.truth.orders.ending.clear();
    }
}
