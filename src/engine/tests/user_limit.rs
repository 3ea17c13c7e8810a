//! The limit of connections per user, over the shards of a node and over the nodes of a fleet.
//!
//! Set-up: nodes of two shards each, alone or on one embedded engine, real bytes of model clients, tokens whose text names their
//! user. Claims: a node alone never has more than the limit, and refuses nobody below it; nor have nodes of a fleet together while
//! the engine can be reached, also when all ask at once; what is counted goes with a connection, with a client that went while it
//! was asked for, and with a node; without the engine each node holds the limit by itself, and tells the engine on its return.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};

use proptest::prelude::*;
use ringway_engine::backplane::{Backplane, Event, Feed, Token};
use ringway_engine::embedded::{Handle, Hub};
use ringway_engine::ids::*;
use ringway_engine::lane_message::*;
use ringway_engine::limits::{Limits, TICK_MS};
use ringway_engine::metrics::Metric;
use ringway_engine::namespace::*;
use ringway_engine::options::*;
use ringway_engine::outbox::WriteBatch;
use ringway_engine::owner::FleetPlace;
use ringway_engine::route;
use ringway_engine::seam::*;
use ringway_engine::shard::Shard;
use ringway_engine::tokens::*;
use ringway_wire::frame::{Opcode, decode_header, write_client_header};

const SHARDS: u16 = 2;
const BACKPLANE: CoreId = CoreId(SHARDS + 1);
const MAX: u32 = 3;

/// A token is its user's name.
#[derive(Debug)]
struct Named;

impl Tokens for Named {
    fn check_connect(&self, token: &str, _: TokenAsk) -> TokenCheck<ConnectClaims> {
        TokenCheck::Done(Ok(ConnectClaims { user: token.into(), ..ConnectClaims::default() }))
    }

    fn check_subscribe(&self, _: &str, _: TokenAsk) -> TokenCheck<SubscribeClaims> {
        TokenCheck::Done(Err(TokenError::Invalid))
    }
}

/// What a client has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    In,
    /// Closed with 3504.
    Limit,
    /// A temporary error.
    Later,
}

struct Client {
    shard: usize,
    conn: ConnId,
    told: Told,
}

struct Node {
    shards: Vec<Shard>,
    handle: Option<Handle>,
    /// Who asked the engine what.
    asked: Vec<(CoreId, Token)>,
    /// The engine's words are held back.
    holds: bool,
    held: Vec<Event>,
    clients: Vec<Client>,
}

impl Node {
    fn new(boot: u64, hub: Option<&Rc<RefCell<Hub>>>) -> Node {
        let fleet = hub.map(|_| FleetPlace { core: BACKPLANE, wall_offset_ms: 5_000 });
        let shard = |core| {
            let options = Options {
                core: CoreId(core),
                shards: SHARDS,
                seed: 1,
                boot,
                limits: Limits { connections_per_user_max: MAX, ping_interval_ms: 0, ..Limits::DEFAULT },
                namespaces: Namespaces::new(Namespace::closed(""), vec![]).unwrap().into(),
                tokens: Arc::new(Named),
                access: Access { anonymous: true, origins: Origins::Any, ..Access::closed("/ws") },
                fleet,
                utf8: |bytes| std::str::from_utf8(bytes).is_ok(),
            };
            Shard::new(options, 1_000)
        };
        let shards = (0..SHARDS).map(shard).collect();
        Node { shards, handle: hub.map(Handle::new), asked: vec![], holds: false, held: vec![], clients: vec![] }
    }

    fn counted(&mut self, metric: Metric) -> u64 {
        self.shards.iter_mut().map(|shard| shard.metrics().get(metric)).sum()
    }

    fn open(&self) -> u32 {
        self.clients.iter().filter(|client| client.told == Told::In).count() as u32
    }

    /// A client whose connect command has been received, and nothing more.
    fn begin(&mut self, shard: usize, user: &str) -> usize {
        let it = &mut self.shards[shard];
        let conn = it.accepted(Accepted { port: Port::Client, peer: None }).unwrap();
        let mut bytes = b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            .to_vec();
        it.handle(Input::Received { conn, bytes: &mut bytes });
        let connect = if user.is_empty() {
            r#"{"id":1,"connect":{}}"#.to_owned()
        } else {
            format!(r#"{{"id":1,"connect":{{"token":"{user}"}}}}"#)
        };
        let mut bytes = Vec::new();
        write_client_header(&mut bytes, Opcode::Text, connect.len(), [0; 4]);
        bytes.extend_from_slice(connect.as_bytes());
        it.handle(Input::Received { conn, bytes: &mut bytes });
        self.clients.push(Client { shard, conn, told: Told::Nothing });
        self.clients.len() - 1
    }

    /// Its connection fails.
    fn end(&mut self, client: usize) {
        let client = self.clients.swap_remove(client);
        self.shards[client.shard].handle(Input::SocketFailed { conn: client.conn });
        self.shards[client.shard].handle(Input::Closed { conn: client.conn });
    }

    fn turn(&mut self, now_ms: u64) {
        for core in 0..self.shards.len() {
            self.shards[core].begin_turn(now_ms);
            self.shards[core].end_turn();
            for to in 0..self.shards.len() {
                while let Some(batch) = self.shards[core].lanes().take_batch(CoreId(to as u16)) {
                    for message in batch.messages {
                        self.shards[to].handle(Input::Lane { message });
                    }
                }
            }
            while let Some(batch) = self.shards[core].lanes().take_batch(BACKPLANE) {
                for message in batch.messages {
                    let LaneMessage::ToBackplane { token, request } = message else { panic!("{message:?}") };
                    self.asked.push((CoreId(core as u16), token));
                    self.handle.as_mut().unwrap().submit(Token(self.asked.len() as u64 - 1), *request);
                }
            }
        }
        if let Some(handle) = &mut self.handle {
            let _ = handle.poll(&mut Context::from_waker(Waker::noop()), &mut self.held);
        }
        if !self.holds {
            self.hear();
        }
        (0..self.shards.len()).for_each(|core| self.write(core));
    }

    fn hear(&mut self) {
        for event in std::mem::take(&mut self.held) {
            match event {
                Event::Answer(token, result) => {
                    let (core, token) = self.asked[token.0 as usize];
                    self.say(core, Event::Answer(token, result));
                }
                Event::Feed(Feed { bucket, .. }) => self.say(route::owner(bucket, SHARDS), event),
                event => (0..SHARDS).for_each(|core| self.say(CoreId(core), event.clone())),
            }
        }
    }

    fn say(&mut self, core: CoreId, event: Event) {
        self.shards[core.0 as usize].handle(Input::Lane { message: LaneMessage::Backplane(Box::new(event)) });
    }

    fn write(&mut self, core: usize) {
        self.shards[core].end_turn();
        let mut batch = WriteBatch::default();
        loop {
            self.shards[core].collect_writes(&mut batch);
            if batch.is_empty() {
                return;
            }
            for index in 0..batch.len() {
                let (conn, bytes) = batch.get(index).unwrap();
                let is_this = |client: &&mut Client| client.shard == core && client.conn == conn;
                if let Some(client) = self.clients.iter_mut().find(is_this)
                    && let Some(told) = told(bytes)
                {
                    client.told = told;
                }
                let bytes = bytes.len();
                self.shards[core].handle(Input::Wrote { conn, bytes, all: true });
            }
        }
    }
}

/// What is said in the bytes of one write: the answer to the upgrade, or frames.
fn told(bytes: &[u8]) -> Option<Told> {
    let mut rest = match bytes.windows(4).position(|end| end == b"\r\n\r\n") {
        Some(end) if bytes.starts_with(b"HTTP/1.1 101") => &bytes[end + 4..],
        _ => bytes,
    };
    let mut told = None;
    while let Some(header) = decode_header(rest).unwrap() {
        let end = header.header_len + header.payload_len as usize;
        let payload = &rest[header.header_len..end];
        told = Some(if header.opcode == Opcode::Close {
            assert_eq!(payload, [&3504_u16.to_be_bytes()[..], b"connection limit"].concat());
            Told::Limit
        } else {
            let text = std::str::from_utf8(payload).unwrap();
            if text.contains(r#""error""#) {
                assert!(text.contains(r#""code":111"#) && text.contains(r#""temporary":true"#), "{text}");
                Told::Later
            } else {
                Told::In
            }
        });
        rest = &rest[end..];
    }
    told
}

struct World {
    hub: Rc<RefCell<Hub>>,
    nodes: Vec<Node>,
    now_ms: u64,
}

impl World {
    fn new(nodes: usize) -> World {
        let hub = Hub::new();
        let nodes = (0..nodes).map(|node| Node::new(70 + node as u64, Some(&hub))).collect();
        let mut world = World { hub, nodes, now_ms: 1_000 };
        world.settle();
        world
    }

    fn alone() -> World {
        World { hub: Hub::new(), nodes: vec![Node::new(70, None)], now_ms: 1_000 }
    }

    fn turn(&mut self) {
        self.now_ms += TICK_MS;
        self.hub.borrow_mut().set_now_ms(self.now_ms);
        self.nodes.iter_mut().for_each(|node| node.turn(self.now_ms));
    }

    fn settle(&mut self) {
        (0..12).for_each(|_| self.turn());
    }

    fn set_reachable(&mut self, node: usize, is_reachable: bool) {
        let id = self.nodes[node].handle.as_ref().unwrap().node();
        self.hub.borrow_mut().set_reachable(id, is_reachable);
    }

    /// What the engine counts at a node.
    fn known(&self, node: usize) -> u32 {
        self.hub.borrow().connections(self.nodes[node].handle.as_ref().unwrap().node(), "u")
    }

    /// Connects and settles.
    fn connect(&mut self, node: usize, shard: usize, user: &str) -> Told {
        let client = self.nodes[node].begin(shard, user);
        self.settle();
        self.nodes[node].clients[client].told
    }
}

#[test]
fn a_node_alone_holds_the_limit_over_its_shards() {
    let mut world = World::alone();
    let node = &mut world.nodes[0];
    for n in 0..6 {
        node.begin(n % 2, "u");
    }
    world.settle();
    let node = &mut world.nodes[0];
    let refused = node.clients.iter().filter(|client| client.told == Told::Limit).count();
    assert_eq!((node.open(), refused), (MAX, 3));
    assert_eq!(node.counted(Metric::UserLimitRefused), 3);
    assert_eq!(world.connect(0, 0, "v"), Told::In, "others have a limit of their own");
    for _ in 0..2 * MAX {
        assert_eq!(world.connect(0, 1, ""), Told::In, "who has no name is not counted");
    }
    let gone = world.nodes[0].clients.iter().position(|client| client.told == Told::In).unwrap();
    world.nodes[0].end(gone);
    world.settle();
    assert_eq!(world.connect(0, 1, "u"), Told::In);
    assert_eq!(world.connect(0, 0, "u"), Told::Limit);
    assert_eq!(world.nodes[0].counted(Metric::UserLimitUnchecked), 0);
}

#[test]
fn nodes_that_admit_at_once_hold_the_limit_together() {
    let mut world = World::new(3);
    for node in &mut world.nodes {
        for n in 0..3 {
            node.begin(n % 2, "u");
        }
    }
    world.settle();
    let open: u32 = world.nodes.iter().map(Node::open).sum();
    assert_eq!(open, MAX);
    let refused: u64 = world.nodes.iter_mut().map(|node| node.counted(Metric::UserLimitRefused)).sum();
    assert_eq!(refused, 6);
    for node in 0..3 {
        assert_eq!(world.known(node), world.nodes[node].open());
    }
}

#[test]
fn what_a_node_had_goes_with_it_and_is_in_doubt_while_it_seems_gone() {
    let mut world = World::new(2);
    for shard in [0, 1, 0] {
        assert_eq!(world.connect(0, shard, "u"), Told::In);
    }
    assert_eq!(world.connect(1, 0, "u"), Told::Limit);
    world.set_reachable(0, false);
    assert_eq!(world.connect(1, 1, "u"), Told::Later, "its lease still holds");
    assert_eq!(world.nodes[1].counted(Metric::UserLimitInDoubt), 1);
    drop(world.nodes.remove(0));
    assert_eq!(world.connect(0, 1, "u"), Told::In);
}

#[test]
fn without_the_engine_each_node_holds_the_limit_and_tells_it_later() {
    let mut world = World::new(2);
    assert_eq!(world.connect(1, 0, "u"), Told::In);
    world.set_reachable(0, false);
    for shard in [0, 1, 0] {
        assert_eq!(world.connect(0, shard, "u"), Told::In, "nobody is kept out");
    }
    assert_eq!(world.connect(0, 1, "u"), Told::Limit, "by this node's own count");
    assert_eq!((world.nodes[0].counted(Metric::UserLimitUnchecked), world.known(0)), (3, 0));
    world.set_reachable(0, true);
    world.settle();
    assert_eq!(world.known(0), 3);
    // Who leaves meanwhile is forgotten on its return, also if nobody of that user is left.
    world.set_reachable(0, false);
    while !world.nodes[0].clients.is_empty() {
        world.nodes[0].end(0);
    }
    world.settle();
    assert_eq!(world.known(0), 3);
    world.set_reachable(0, true);
    world.settle();
    assert_eq!(world.known(0), 0);
    assert_eq!(world.connect(1, 1, "u"), Told::In);
    // And an engine that has forgotten everything is told everything.
    world.hub.borrow_mut().restart_empty();
    world.settle();
    assert_eq!(world.known(1), 2);
}

#[test]
fn who_goes_while_it_is_asked_for_is_not_counted() {
    let mut world = World::new(2);
    world.nodes[0].holds = true;
    for _ in 0..MAX {
        let client = world.nodes[0].begin(0, "u");
        world.settle();
        assert_eq!(world.nodes[0].clients[client].told, Told::Nothing);
        world.nodes[0].end(client);
    }
    world.nodes[0].holds = false;
    world.settle();
    assert_eq!(world.known(0), 0);
    for shard in [0, 1, 0] {
        assert_eq!(world.connect(1, shard, "u"), Told::In);
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Connect(usize, usize),
    End(usize, usize),
    Turn,
    Reach(usize, bool),
    Hold(usize, bool),
    Restart,
}

fn steps(faults: bool) -> impl Strategy<Value = Vec<Step>> {
    let fault = if faults { 2 } else { 0 };
    let step = prop_oneof![
        6 => (0usize..2, 0usize..2).prop_map(|(node, shard)| Step::Connect(node, shard)),
        4 => (0usize..2, 0usize..8).prop_map(|(node, which)| Step::End(node, which)),
        6 => Just(Step::Turn),
        1 => (0usize..2, any::<bool>()).prop_map(|(node, holds)| Step::Hold(node, holds)),
        fault => (0usize..2, any::<bool>()).prop_map(|(node, reach)| Step::Reach(node, reach)),
        fault / 2 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 0..120)
}

fn play(steps: Vec<Step>, mut check: impl FnMut(&World)) -> World {
    let mut world = World::new(2);
    for step in steps {
        match step {
            Step::Connect(node, shard) => {
                world.nodes[node].begin(shard, "u");
            }
            Step::End(node, which) => {
                let clients = world.nodes[node].clients.len();
                if clients > 0 {
                    world.nodes[node].end(which % clients);
                }
            }
            Step::Turn => world.turn(),
            Step::Reach(node, reach) => world.set_reachable(node, reach),
            Step::Hold(node, holds) => world.nodes[node].holds = holds,
            Step::Restart => world.hub.borrow_mut().restart_empty(),
        }
        check(&world);
    }
    for node in 0..2 {
        world.nodes[node].holds = false;
        world.set_reachable(node, true);
    }
    world.settle();
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 200 } else { 2_000 }))]

    #[test]
    fn with_the_engine_there_are_never_too_many(plan in steps(false)) {
        let world = play(plan, |world| {
            let open: u32 = world.nodes.iter().map(Node::open).sum();
            assert!(open <= MAX, "{open}");
        });
        for node in 0..2 {
            prop_assert_eq!(world.known(node), world.nodes[node].open());
        }
    }

    #[test]
    fn whatever_happens_the_engine_knows_the_number_in_the_end(plan in steps(true)) {
        let world = play(plan, |world| assert!(world.nodes.iter().all(|node| node.open() <= MAX)));
        for node in 0..2 {
            prop_assert_eq!(world.known(node), world.nodes[node].open(), "node {}", node);
        }
    }
}
