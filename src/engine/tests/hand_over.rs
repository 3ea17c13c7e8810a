//! What a drained node knows of its clients, and the node that they reach next.
//!
//! Set-up: two nodes of one shard each on one embedded engine, a virtual clock, real bytes of model clients, tokens whose text
//! names their user. Claims: what is known only here is parked before the Close frame, which waits for it but not for ever;
//! the next connect of the user, on any node, has it in its result with what was missed, once; orders that come on the way count; a
//! position is given only where it can be the client's own; nobody asks the engine while no
//! node drains; who is sent away leaves channels only some time later, or at the end of the drain.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};

use ringway_engine::backplane::{Answer, Backplane, Event, Request};
use ringway_engine::call::{UserCall, UserOrder};
use ringway_engine::embedded::{Handle, Hub};
use ringway_engine::ids::*;
use ringway_engine::lane_message::*;
use ringway_engine::limits::{Limits, TICK_MS};
use ringway_engine::metrics::Metric;
use ringway_engine::namespace::*;
use ringway_engine::options::*;
use ringway_engine::outbox::WriteBatch;
use ringway_engine::owner::FleetPlace;
use ringway_engine::seam::*;
use ringway_engine::shard::Shard;
use ringway_engine::tokens::*;
use ringway_wire::frame::{Opcode, decode_header, write_client_header};
use ringway_wire::ingest::PayloadKind;
use ringway_wire::record::Told;

const BACKPLANE: CoreId = CoreId(2);
const GRACE_MS: u64 = 1_000;
const LEAVE_DELAY_MS: u64 = 3_000;
const HAND_OVER_WAIT_MS: u64 = 2_000;
const PARKED_WAIT_MS: u64 = 1_000;
const PARKED_TTL_MS: u64 = 20_000;

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

struct Node {
    shard: Shard,
    handle: Handle,
    /// The engine's answers to parking and taking are held back.
    holds: bool,
    held: Vec<Event>,
    /// What it has asked of the engine.
    asked: Vec<Request>,
    sent: std::collections::BTreeMap<u32, Vec<u8>>,
}

struct World {
    hub: Rc<RefCell<Hub>>,
    nodes: [Node; 2],
    now_ms: u64,
}

fn node(hub: &Rc<RefCell<Hub>>, boot: u64) -> Node {
    let rules = Namespace {
        presence: true,
        join_leave: true,
        history_size: 16,
        history_ttl_ms: 600_000,
        recovery: true,
        ..Namespace::closed("")
    };
    let options = Options {
        core: CoreId(0),
        shards: 1,
        seed: 1,
        boot,
        limits: Limits {
            drain_grace_ms: GRACE_MS as u32,
            drain_leave_delay_ms: LEAVE_DELAY_MS as u32,
            hand_over_wait_ms: HAND_OVER_WAIT_MS as u32,
            parked_wait_ms: PARKED_WAIT_MS as u32,
            parked_ttl_ms: PARKED_TTL_MS as u32,
            ping_interval_ms: 0,
            ..Limits::DEFAULT
        },
        namespaces: Namespaces::new(rules, vec![]).unwrap().into(),
        tokens: Arc::new(Named),
        access: Access { anonymous: true, origins: Origins::Any, ..Access::closed("/ws") },
        fleet: Some(FleetPlace { core: BACKPLANE, wall_offset_ms: 5_000 }),
        utf8: |bytes| std::str::from_utf8(bytes).is_ok(),
    };
    let (shard, handle) = (Shard::new(options, 1_000), Handle::new(hub));
    Node { shard, handle, holds: false, held: vec![], asked: vec![], sent: Default::default() }
}

impl Node {
    fn hears(&mut self, event: Event) {
        self.shard.handle(Input::Lane { message: LaneMessage::Backplane(Box::new(event)) });
    }

    /// A turn, with everything that the engine says.
    fn turn(&mut self, now_ms: u64) {
        for _ in 0..8 {
            self.shard.begin_turn(now_ms);
            self.shard.end_turn();
            while let Some(batch) = self.shard.lanes().take_batch(BACKPLANE) {
                for message in batch.messages {
                    let LaneMessage::ToBackplane { token, request } = message else { panic!("{message:?}") };
                    self.asked.push((*request).clone());
                    self.handle.submit(token, *request);
                }
            }
            let mut events = Vec::new();
            let _ = self.handle.poll(&mut Context::from_waker(Waker::noop()), &mut events);
            for event in events {
                let is_held = matches!(event, Event::Answer(_, Ok(Answer::Displaced(_) | Answer::Parked(_))));
                if self.holds && is_held { self.held.push(event) } else { self.hears(event) }
            }
        }
        self.shard.end_turn();
        let mut batch = WriteBatch::default();
        loop {
            self.shard.collect_writes(&mut batch);
            if batch.is_empty() {
                return;
            }
            for index in 0..batch.len() {
                let (conn, bytes) = batch.get(index).unwrap();
                self.sent.entry(conn.slot).or_default().extend_from_slice(bytes);
                let bytes = bytes.len();
                self.shard.handle(Input::Wrote { conn, bytes, all: true });
            }
        }
    }

    fn command(&mut self, conn: ConnId, json: &str) {
        let mut bytes = Vec::new();
        write_client_header(&mut bytes, Opcode::Text, json.len(), [0; 4]);
        bytes.extend_from_slice(json.as_bytes());
        self.shard.handle(Input::Received { conn, bytes: &mut bytes });
    }

    fn counted(&mut self, metric: Metric) -> u64 {
        self.shard.metrics().get(metric)
    }

    fn questions(&self) -> usize {
        self.asked.iter().filter(|request| matches!(request, Request::TakeParked { .. })).count()
    }

    /// Leaves that other nodes were told.
    fn leaves(&self) -> usize {
        let is_leave = |request: &&Request| {
            let Request::Tell(tell) = request else { return false };
            matches!(Told::read(&tell.body), Some(Told::Member { joined: false, .. }))
        };
        self.asked.iter().filter(is_leave).count()
    }
}

impl World {
    fn new() -> World {
        let hub = Hub::new();
        let nodes = [node(&hub, 71), node(&hub, 72)];
        let mut world = World { hub, nodes, now_ms: 1_000 };
        world.turn();
        world
    }

    fn turn(&mut self) {
        self.hub.borrow_mut().set_now_ms(self.now_ms);
        for _ in 0..2 {
            self.nodes.iter_mut().for_each(|node| node.turn(self.now_ms));
        }
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / TICK_MS {
            self.now_ms += TICK_MS;
            self.turn();
        }
    }

    /// A client on a node, its connect command sent.
    fn connect(&mut self, node: usize, user: &str) -> ConnId {
        let shard = &mut self.nodes[node].shard;
        let conn = shard.accepted(Accepted { port: Port::Client, peer: None }).unwrap();
        let mut upgrade = b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            .to_vec();
        shard.handle(Input::Received { conn, bytes: &mut upgrade });
        self.turn();
        self.nodes[node].sent.remove(&conn.slot).unwrap();
        let connect = match user {
            "" => r#"{"id":1,"connect":{}}"#.to_owned(),
            _ => format!(r#"{{"id":1,"connect":{{"token":"{user}"}}}}"#),
        };
        self.nodes[node].command(conn, &connect);
        self.turn();
        conn
    }

    /// What a client was sent since the last look: text, and whether a Close frame came (3001).
    fn hears(&mut self, node: usize, conn: ConnId) -> (String, bool) {
        let sent = self.nodes[node].sent.remove(&conn.slot).unwrap_or_default();
        let (mut text, mut closed, mut rest) = (String::new(), false, &sent[..]);
        while let Some(header) = decode_header(rest).unwrap() {
            let end = header.header_len + header.payload_len as usize;
            let payload = &rest[header.header_len..end];
            if header.opcode == Opcode::Close {
                assert_eq!(payload[..2], 3001_u16.to_be_bytes());
                closed = true;
            } else {
                text.push_str(std::str::from_utf8(payload).unwrap());
                text.push('\n');
            }
            rest = &rest[end..];
        }
        (text, closed)
    }

    fn order(&mut self, node: usize, user: &str, order: UserOrder) {
        let call = UserCall { user: user.into(), client: "".into(), order, origin: None, from: CoreId(0) };
        self.nodes[node].shard.handle(Input::Lane { message: LaneMessage::UserCall(Box::new(call)) });
        self.turn();
    }

    fn subscribe(&mut self, node: usize, user: &str, channel: &str) {
        let subscription = TokenSubscription {
            channel: channel.into(),
            data: (*br#"{"d":1}"#).into(),
            info: (*br#"{"i":2}"#).into(),
            ..TokenSubscription::default()
        };
        self.order(node, user, UserOrder::Subscribe { subscription, recover: None });
    }

    /// An order as a backend gives it at a node: to all nodes.
    fn call(&mut self, node: usize, user: &str, order: UserOrder) {
        let origin = Some(Origin::Control { call: 1 });
        let call = UserCall { user: user.into(), client: "".into(), order, origin, from: CoreId(1) };
        self.nodes[node].shard.handle(Input::Lane { message: LaneMessage::UserCall(Box::new(call)) });
        self.turn();
    }

    fn publish(&mut self, node: usize, channel: &str, number: u32) {
        let request = PublishRequest {
            channel: channel.into(),
            payload: format!("{{\"n\":{number}}}").into_bytes().into(),
            kind: PayloadKind::Json,
            idempotency_key: Box::default(),
            publisher: None,
            tags: Default::default(),
            skip_history: false,
            origin: Origin::Control { call: number.into() },
            from: CoreId(1),
        };
        self.nodes[node].shard.handle(Input::Lane { message: LaneMessage::Publish(Box::new(request)) });
        self.turn();
        self.turn();
    }

    fn drain(&mut self, node: usize) {
        self.nodes[node].shard.handle(Input::Drain(DrainOrder { clients_per_1000_s: 100_000 }));
        self.turn();
    }
}

fn subscribe_to(channel: &str) -> UserOrder {
    let subscription = TokenSubscription { channel: channel.into(), ..TokenSubscription::default() };
    UserOrder::Subscribe { subscription, recover: None }
}

fn unsubscribe_from(channel: &str) -> UserOrder {
    UserOrder::Unsubscribe { channel: channel.into(), code: 2000, reason: "ended".into() }
}

fn info(text: &str) -> UserOrder {
    UserOrder::Refresh { expired: false, expires_in_ms: None, info: Some(text.as_bytes().into()) }
}

fn disconnect() -> UserOrder {
    UserOrder::Disconnect { code: 4001, reason: "go".into(), whitelist: vec![] }
}

fn numbers(text: &str) -> Vec<u32> {
    text.split(r#""n":"#).skip(1).map(|rest| rest[..rest.find('}').unwrap()].parse().unwrap()).collect()
}

#[test]
fn what_was_made_at_run_time_is_parked_before_the_close_frame_and_restored_elsewhere() {
    let mut world = World::new();
    let conn = world.connect(0, "u");
    world.subscribe(0, "u", "news");
    world.order(
        0,
        "u",
        UserOrder::Refresh { expired: false, expires_in_ms: None, info: Some((*br#"{"vip":true}"#).into()) },
    );
    (1..=3).for_each(|n| world.publish(0, "news", n));
    assert_eq!(numbers(&world.hears(0, conn).0), [1, 2, 3]);
    world.nodes[0].holds = true;
    world.drain(0);
    world.pass(GRACE_MS + 500);
    let (text, closed) = world.hears(0, conn);
    assert!(!closed && text.is_empty(), "it waits for the engine: {text}");
    assert_eq!(world.nodes[0].held.len(), 1, "and the engine has it");
    // It has what is parked up to here, and nothing behind it.
    world.publish(1, "news", 4);
    assert_eq!(world.hears(0, conn), (String::new(), false));
    let held = world.nodes[0].held.pop().unwrap();
    world.nodes[0].hears(held);
    world.turn();
    assert!(world.hears(0, conn).1, "now it may go");
    world.publish(1, "news", 5);

    let back = world.connect(1, "u");
    let (text, _) = world.hears(1, back);
    assert_eq!(numbers(&text), [4, 5], "{text}");
    assert!(text.contains(r#""subs":{"news":{"#) && text.contains(r#""recovered":true"#), "{text}");
    assert!(text.contains(r#""data":{"d":1}"#), "{text}");
    assert_eq!(world.nodes[1].questions(), 1);
    world.publish(0, "news", 6);
    assert_eq!(numbers(&world.hears(1, back).0), [6]);
    // It was given once.
    let other = world.connect(1, "u");
    let (text, _) = world.hears(1, other);
    assert!(!text.contains("subs"), "{text}");
    // And what was restored would be parked again.
    world.nodes[1].asked.clear();
    world.drain(1);
    world.pass(GRACE_MS + 500);
    let parked: Vec<_> = world.nodes[1]
        .asked
        .iter()
        .filter_map(|request| match request {
            Request::Park(entry) => Some(ringway_wire::parked::Parked::read(&entry.body).unwrap()),
            _ => None,
        })
        .collect();
    assert_eq!(parked.len(), 1, "the other connection has nothing of its own");
    assert_eq!(parked[0].conn_info, Some(&br#"{"vip":true}"#[..]));
    let [one] = &parked[0].subscriptions[..] else { panic!("{parked:?}") };
    assert_eq!((one.channel, one.info, one.data), ("news", &br#"{"i":2}"#[..], &br#"{"d":1}"#[..]));
    assert_eq!(one.position.map(|(_, offset)| offset), Some(6));
}

#[test]
fn the_close_frame_does_not_wait_for_ever() {
    let mut world = World::new();
    let conn = world.connect(0, "u");
    world.subscribe(0, "u", "news");
    world.nodes[0].holds = true;
    world.drain(0);
    world.pass(GRACE_MS + HAND_OVER_WAIT_MS);
    assert!(!world.hears(0, conn).1);
    world.pass(500);
    assert!(world.hears(0, conn).1);
    assert_eq!(world.nodes[0].counted(Metric::HandOversLate), 1);
    // A late answer finds nobody.
    let held = world.nodes[0].held.pop().unwrap();
    world.nodes[0].hears(held);
    world.turn();
}

#[test]
fn everybody_is_closed_at_once_and_what_they_have_is_parked_all_the_same() {
    let mut world = World::new();
    let clients: Vec<_> = ["a", "b"].map(|user| world.connect(0, user)).into();
    world.subscribe(0, "a", "news");
    world.subscribe(0, "b", "news");
    world.nodes[0].shard.handle(Input::Shutdown);
    world.turn();
    assert!(clients.iter().all(|conn| world.hears(0, *conn).1));
    let parks = world.nodes[0].asked.iter().filter(|request| matches!(request, Request::Park(_))).count();
    assert_eq!(parks, 2);
}

#[test]
fn nothing_is_parked_of_those_who_have_nothing_and_nobody_asks_while_nobody_drains() {
    let mut world = World::new();
    let anonymous = world.connect(0, "");
    let plain = world.connect(0, "u");
    assert!(world.hears(0, anonymous).0.contains("connect") && world.hears(0, plain).0.contains("connect"));
    assert_eq!(world.nodes[0].questions(), 0);
    world.drain(0);
    world.pass(GRACE_MS + 500);
    assert!(world.hears(0, anonymous).1 && world.hears(0, plain).1);
    assert!(!world.nodes[0].asked.iter().any(|request| matches!(request, Request::Park(_))));
    // While the window is open, those with a name ask.
    world.connect(1, "");
    assert_eq!(world.nodes[1].questions(), 0);
    world.connect(1, "u");
    assert_eq!(world.nodes[1].questions(), 1);
    world.pass(PARKED_TTL_MS);
    world.connect(1, "u");
    assert_eq!(world.nodes[1].questions(), 1, "the window is closed");
}

#[test]
fn a_connect_does_not_wait_long_and_what_comes_late_follows_as_pushes() {
    let mut world = World::new();
    let conn = world.connect(0, "u");
    world.subscribe(0, "u", "news");
    world.publish(0, "news", 1);
    world.drain(0);
    world.pass(GRACE_MS + 500);
    assert!(world.hears(0, conn).1);
    world.publish(1, "news", 2);
    world.nodes[1].holds = true;
    let back = world.connect(1, "u");
    assert_eq!(world.hears(1, back).0, "");
    world.pass(PARKED_WAIT_MS + TICK_MS);
    let (text, _) = world.hears(1, back);
    assert!(text.contains("connect") && !text.contains("subs"), "{text}");
    let held = world.nodes[1].held.pop().unwrap();
    world.nodes[1].hears(held);
    world.turn();
    let (text, _) = world.hears(1, back);
    assert!(text.contains("subscribe") && numbers(&text) == [2], "{text}");
}

#[test]
fn what_was_taken_for_a_client_that_has_gone_is_parked_again() {
    let mut world = World::new();
    let conn = world.connect(0, "u");
    world.subscribe(0, "u", "news");
    world.drain(0);
    world.pass(GRACE_MS + 500);
    assert!(world.hears(0, conn).1);
    world.nodes[1].holds = true;
    let gone = world.connect(1, "u");
    world.nodes[1].shard.handle(Input::SocketFailed { conn: gone });
    let held = world.nodes[1].held.pop().unwrap();
    world.nodes[1].holds = false;
    world.nodes[1].hears(held);
    world.turn();
    let back = world.connect(1, "u");
    let (text, _) = world.hears(1, back);
    assert!(text.contains(r#""subs":{"news":{"#), "{text}");
}

#[test]
fn who_is_sent_away_leaves_later_and_at_the_end_at_once() {
    for ends in [false, true] {
        let mut world = World::new();
        let conn = world.connect(0, "u");
        world.subscribe(0, "u", "news");
        world.connect(1, "w");
        world.subscribe(1, "w", "news");
        world.drain(0);
        world.pass(GRACE_MS + 500);
        assert!(world.hears(0, conn).1);
        world.pass(LEAVE_DELAY_MS - 1_500);
        assert_eq!(world.nodes[0].leaves(), 0, "it is still a member");
        assert!(world.nodes[0].counted(Metric::DrainLeavesWaiting) > 0);
        if ends {
            world.nodes[0].shard.handle(Input::DrainBackends);
            world.turn();
        } else {
            world.pass(2_500);
        }
        assert_eq!(world.nodes[0].leaves(), 1);
        assert_eq!(world.nodes[0].counted(Metric::DrainLeavesWaiting), 0);
    }
}

#[test]
fn who_leaves_by_itself_while_others_are_sent_away_leaves_at_once() {
    let mut world = World::new();
    let clients: Vec<_> = ["a", "b"].map(|user| world.connect(0, user)).into();
    world.subscribe(0, "a", "news");
    world.subscribe(0, "b", "news");
    world.nodes[0].shard.handle(Input::Drain(DrainOrder { clients_per_1000_s: 1_000 }));
    world.pass(GRACE_MS + 1_500);
    let sent_away: Vec<_> = clients.iter().filter(|conn| world.hears(0, **conn).1).collect();
    assert_eq!((sent_away.len(), world.nodes[0].leaves()), (1, 0));
    let other = *clients.iter().find(|conn| **conn != *sent_away[0]).unwrap();
    world.nodes[0].shard.handle(Input::SocketFailed { conn: other });
    world.turn();
    assert_eq!(world.nodes[0].leaves(), 1, "its own leave, and not the other's with it");
}

/// Orders that change what a client has: when it is told, and when it is known to be parked, may lie in any order.
#[test]
fn an_order_counts_whether_it_comes_before_or_after_what_is_parked() {
    // Where the order comes: with the state on its way to the engine, and parked with nobody connected.
    for away in [false, true] {
        let mut world = World::new();
        let conn = world.connect(0, "u");
        ["news", "old"].iter().for_each(|channel| world.subscribe(0, "u", channel));
        world.hears(0, conn);
        world.nodes[0].holds = !away;
        world.drain(0);
        world.pass(GRACE_MS + 500);
        assert_eq!(world.hears(0, conn).1, away);
        for order in [unsubscribe_from("old"), subscribe_to("new"), info(r#"{"vip":true}"#)] {
            if away { world.call(1, "u", order) } else { world.order(0, "u", order) }
        }
        while let Some(held) = world.nodes[0].held.pop() {
            world.nodes[0].hears(held);
            world.turn();
        }
        if !away {
            let (text, closed) = world.hears(0, conn);
            assert!(closed && text.contains(r#""unsubscribe":{"code":2000"#) && !text.contains("new\""), "{text}");
        }
        let back = world.connect(1, "u");
        let (text, _) = world.hears(1, back);
        assert!(text.contains(r#""news":{"#) && text.contains(r#""new":{"#), "away {away}: {text}");
        assert!(!text.contains(r#""old":{"#), "away {away}: {text}");
        world.publish(0, "new", 7);
        assert_eq!(numbers(&world.hears(1, back).0), [7]);
    }
}

#[test]
fn an_order_counts_for_a_client_that_waits_for_what_is_parked() {
    // Whether it waits too long, and is let in without.
    for late in [false, true] {
        let mut world = World::new();
        let conn = world.connect(0, "u");
        ["news", "old"].iter().for_each(|channel| world.subscribe(0, "u", channel));
        world.drain(0);
        world.pass(GRACE_MS + 500);
        assert!(world.hears(0, conn).1);
        world.nodes[1].holds = true;
        let back = world.connect(1, "u");
        for order in [unsubscribe_from("old"), subscribe_to("new"), info(r#"{"vip":true}"#)] {
            world.call(0, "u", order);
        }
        assert_eq!(world.hears(1, back).0, "");
        world.pass(if late { PARKED_WAIT_MS + TICK_MS } else { 0 });
        let held = world.nodes[1].held.pop().unwrap();
        world.nodes[1].hears(held);
        world.turn();
        let (text, _) = world.hears(1, back);
        assert!(text.contains("news") && text.contains("new\""), "late {late}: {text}");
        assert!(!text.contains("old"), "late {late}: {text}");
        world.nodes[1].holds = false;
        world.nodes[1].asked.clear();
        world.drain(1);
        world.pass(GRACE_MS + 500);
        let is_park =
            |request: &Request| matches!(request, Request::Park(park) if park.body.windows(3).any(|w| w == b"vip"));
        assert!(world.nodes[1].asked.iter().any(is_park), "late {late}");
    }
}

#[test]
fn who_is_disconnected_by_an_order_hands_nothing_over() {
    for (away, holds) in [(false, true), (true, false)] {
        let mut world = World::new();
        let conn = world.connect(0, "u");
        world.subscribe(0, "u", "news");
        world.nodes[0].holds = holds;
        world.drain(0);
        world.pass(GRACE_MS + 500);
        if away {
            assert!(world.hears(0, conn).1);
            world.call(1, "u", disconnect());
        } else {
            world.order(0, "u", disconnect());
        }
        let back = world.connect(1, "u");
        let (text, _) = world.hears(1, back);
        assert!(text.contains("connect") && !text.contains("subs"), "away {away}: {text}");
    }
}

/// Which of a user's clients takes what is parked is not known: where there may have been two, no position is given, and the
/// client is told that something may be missing. Where there was one it is exact.
#[test]
fn a_position_is_given_only_if_it_can_be_the_clients_own() {
    // Where the other connection is: on no node, on the same, on another one, on that one and parked from there before.
    for other in 0..4 {
        let mut world = World::new();
        let conn = world.connect(0, "u");
        let stale = match other {
            1 => Some((0, world.connect(0, "u"))),
            2 | 3 => Some((1, world.connect(1, "u"))),
            _ => None,
        };
        world.subscribe(0, "u", "news");
        world.subscribe(1, "u", "news");
        world.publish(1, "news", 1);
        assert_eq!(numbers(&world.hears(0, conn).0), [1]);
        if let Some((1, gone)) = stale.filter(|_| other == 3) {
            // It reads nothing more, and is parked first: with a position that is older.
            world.drain(1);
            world.pass(GRACE_MS + 500);
            world.hears(1, gone);
            world.publish(0, "news", 2);
            assert_eq!(numbers(&world.hears(0, conn).0), [2]);
        }
        world.drain(0);
        world.pass(GRACE_MS + 500);
        world.hears(0, conn);
        world.publish(1, "news", 3);
        let hub = Rc::clone(&world.hub);
        world.nodes[0] = node(&hub, 73);
        world.turn();
        let back = world.connect(0, "u");
        let (text, _) = world.hears(0, back);
        assert!(text.contains(r#""was_recovering":true"#), "{text}");
        match other {
            0 => assert!(numbers(&text) == [3] && text.contains(r#""recovered":true"#), "{text}"),
            _ => assert!(numbers(&text).is_empty() && !text.contains(r#""recovered":true"#), "other {other}: {text}"),
        }
        world.publish(1, "news", 4);
        assert_eq!(numbers(&world.hears(0, back).0), [4]);
    }
}
