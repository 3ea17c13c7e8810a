//! A drain, on a virtual clock.
//!
//! Set-up: one shard of one or two, sockets that take everything or nothing, a turn at every tick. Claims: nobody leaves within the
//! grace; then the most idle leave first, never more in a tick than the pace brings; pings and pongs are no traffic; what is
//! under way is answered in front of the Close frame; at the deadline everybody else is closed in one turn; newcomers are
//! served in the grace and refused with 503 behind it; backends are told, answered, and ended.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeMap;

use proptest::prelude::*;
use ringway_engine::ids::{ConnId, CoreId};
use ringway_engine::lane_message::{LaneMessage, PublishAnswer, PublishError};
use ringway_engine::limits::{Limits, TICK_MS};
use ringway_engine::metrics::Metric;
use ringway_engine::namespace::*;
use ringway_engine::options::*;
use ringway_engine::outbox::WriteBatch;
use ringway_engine::publish_run::{EntryAnswer, RunAnswer};
use ringway_engine::route;
use ringway_engine::seam::*;
use ringway_engine::shard::Shard;
use ringway_engine::tokens::NoTokens;
use ringway_wire::frame::{Opcode, decode_header, write_client_header, write_close};
use ringway_wire::ingest::{
    Hello, PayloadKind, Publish, ServerFrame, decode_server, frame_len, write_hello, write_publish,
};

const GRACE_MS: u64 = 1_000;
const DEADLINE_MS: u64 = 60_000;
const BACKENDS_MS: u64 = 2_000;
const TOKEN: &[u8] = b"secret";

struct World {
    shard: Shard,
    now_ms: u64,
    /// What each peer has been sent.
    sent: BTreeMap<u32, Vec<u8>>,
    /// Whose sockets take nothing.
    full: Vec<ConnId>,
}

impl World {
    fn new(shards: u16) -> World {
        let mut namespace = Namespace::closed("");
        (namespace.subscribe, namespace.publish) = (Allow::Anyone, Allow::Anyone);
        let options = Options {
            core: CoreId(0),
            shards,
            seed: 1,
            boot: 77,
            limits: Limits {
                drain_grace_ms: GRACE_MS as u32,
                drain_deadline_ms: DEADLINE_MS as u32,
                drain_backends_ms: BACKENDS_MS as u32,
                // Nobody here would answer.
                ping_interval_ms: 0,
                ..Limits::DEFAULT
            },
            namespaces: Namespaces::new(namespace, vec![]).unwrap().into(),
            tokens: std::sync::Arc::new(NoTokens),
            fleet: None,
            access: Access {
                anonymous: true,
                origins: Origins::Any,
                ingest_tokens: vec![TOKEN.into()],
                ..Access::closed("/ws")
            },
            utf8: |bytes| std::str::from_utf8(bytes).is_ok(),
        };
        World { shard: Shard::new(options, 1_000), now_ms: 1_000, sent: BTreeMap::new(), full: Vec::new() }
    }

    fn upgrade(&mut self) -> ConnId {
        let conn = self.shard.accepted(Accepted { port: Port::Client, peer: None }).unwrap();
        self.receive(
            conn,
            b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        );
        conn
    }

    fn client(&mut self) -> ConnId {
        let conn = self.upgrade();
        self.command(conn, r#"{"id":1,"connect":{}}"#);
        self.turn();
        let sent = self.sent.remove(&conn.slot).unwrap();
        assert!(sent.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&sent));
        conn
    }

    fn receive(&mut self, conn: ConnId, bytes: &[u8]) {
        self.shard.handle(Input::Received { conn, bytes: &mut bytes.to_vec() });
    }

    fn command(&mut self, conn: ConnId, json: &str) {
        let mut bytes = Vec::new();
        write_client_header(&mut bytes, Opcode::Text, json.len(), [0; 4]);
        bytes.extend_from_slice(json.as_bytes());
        self.receive(conn, &bytes);
    }

    /// One turn at the time that it is; sockets take everything, but those that are full.
    fn turn(&mut self) {
        self.shard.begin_turn(self.now_ms);
        self.shard.end_turn();
        let mut batch = WriteBatch::default();
        loop {
            self.shard.collect_writes(&mut batch);
            if batch.is_empty() {
                return;
            }
            for index in 0..batch.len() {
                let (conn, bytes) = batch.get(index).unwrap();
                let full = self.full.contains(&conn);
                let taken = if full { 0 } else { bytes.len() };
                self.sent.entry(conn.slot).or_default().extend_from_slice(&bytes[..taken]);
                self.shard.handle(Input::Wrote { conn, bytes: taken, all: !full });
            }
        }
    }

    fn tick(&mut self) {
        self.now_ms += TICK_MS;
        self.turn();
    }

    fn ticks(&mut self, ms: u64) {
        for _ in 0..ms / TICK_MS {
            self.tick();
        }
    }

    /// Frames that a peer has been sent since the last look: opcode and payload.
    fn frames(&mut self, conn: ConnId) -> Vec<(Opcode, Vec<u8>)> {
        let (sent, mut frames) = (self.sent.remove(&conn.slot).unwrap_or_default(), Vec::new());
        let mut rest = &sent[..];
        while let Some(header) = decode_header(rest).unwrap() {
            let end = header.header_len + header.payload_len as usize;
            frames.push((header.opcode, rest[header.header_len..end].to_vec()));
            rest = &rest[end..];
        }
        frames
    }

    /// Those of `clients` who were sent a Close frame since the last look; it must say 3001 and nothing may follow it.
    fn closed(&mut self, clients: &[ConnId]) -> Vec<ConnId> {
        let mut expected = Vec::new();
        write_close(&mut expected, 3001, "shutdown");
        let told = clients.iter().filter(|conn| {
            let frames = self.frames(**conn);
            let close = frames.iter().position(|(opcode, _)| *opcode == Opcode::Close);
            if let Some(close) = close {
                assert_eq!(close, frames.len() - 1);
                assert_eq!(frames[close].1, expected[2..]);
            }
            close.is_some()
        });
        told.copied().collect()
    }

    fn drain(&mut self, clients_per_s: u64) {
        self.shard.handle(Input::Drain(DrainOrder { clients_per_1000_s: clients_per_s * 1_000 }));
    }

    fn gauge(&mut self, metric: Metric) -> u64 {
        self.shard.metrics().get(metric)
    }
}

#[test]
fn the_most_idle_leave_first_and_never_more_than_the_pace_brings() {
    let mut world = World::new(1);
    let clients: Vec<ConnId> = (0..40).map(|_| world.client()).collect();
    // Traffic in another order than they came, each in a tick of its own; the last ten send pongs.
    let mut order: Vec<ConnId> = clients[30..].to_vec();
    for index in (0..30).map(|n| n * 7 % 30) {
        world.tick();
        world.command(clients[index], r#"{"id":9,"rpc":{"method":"none"}}"#);
        order.push(clients[index]);
        for silent in &clients[30..] {
            world.command(*silent, "{}");
        }
    }
    world.turn();
    world.closed(&clients);
    assert_eq!(world.gauge(Metric::DrainState), 0);
    world.drain(16);
    world.ticks(GRACE_MS - TICK_MS);
    assert_eq!((world.closed(&clients), world.gauge(Metric::DrainState)), (vec![], 1));
    let mut left = Vec::new();
    let mut ticks = 0;
    while left.len() < clients.len() {
        world.tick();
        ticks += 1;
        let now = world.closed(&clients);
        assert!(now.len() <= 2, "16 per second are 2 per tick, not {}", now.len());
        let mut wanted = order[left.len()..left.len() + now.len()].to_vec();
        // Within the ten nobody is more idle than another.
        if left.len() < 10 {
            wanted.clone_from(&now);
            assert!(now.iter().all(|conn| clients[30..].contains(conn)), "{now:?}");
        }
        wanted.sort_unstable_by_key(|conn| now.iter().position(|own| own == conn));
        assert_eq!(now, wanted, "after {} had left", left.len());
        left.extend(now);
        assert_eq!(world.gauge(Metric::DrainState), 2);
        assert_eq!(world.gauge(Metric::DrainLeft), (clients.len() - left.len()) as u64);
        assert!(ticks < 100);
    }
    assert!(ticks >= clients.len() / 2, "{ticks}");
    assert_eq!((world.gauge(Metric::DrainPaced), world.gauge(Metric::DrainForced)), (40, 0));
}

#[test]
fn who_becomes_active_meanwhile_leaves_later() {
    let mut world = World::new(1);
    let clients: Vec<ConnId> = (0..12).map(|_| world.client()).collect();
    world.drain(8);
    world.ticks(GRACE_MS);
    let mut left = world.closed(&clients);
    while left.len() < 11 {
        // One of those that are left keeps talking, and may not leave before the others.
        world.command(clients[0], r#"{"id":3,"send":{"data":1}}"#);
        world.tick();
        left.extend(world.closed(&clients));
    }
    assert!(!left.contains(&clients[0]), "{left:?}");
    world.tick();
    assert_eq!(world.closed(&clients), [clients[0]]);
}

#[test]
fn a_delivery_is_traffic() {
    let mut world = World::new(1);
    let clients: Vec<ConnId> = (0..6).map(|_| world.client()).collect();
    for listener in &clients[..3] {
        world.command(*listener, r#"{"id":2,"subscribe":{"channel":"news"}}"#);
    }
    world.ticks(1_000);
    world.command(clients[5], r#"{"id":3,"publish":{"channel":"news","data":1}}"#);
    world.turn();
    world.closed(&clients);
    world.drain(8);
    world.ticks(GRACE_MS + 2 * TICK_MS);
    assert_eq!(world.closed(&clients), [clients[3], clients[4]]);
}

#[test]
fn at_the_deadline_everybody_is_closed_at_once() {
    let mut world = World::new(1);
    let clients: Vec<ConnId> = (0..100).map(|_| world.client()).collect();
    world.drain(1);
    world.ticks(DEADLINE_MS - TICK_MS);
    let paced = world.closed(&clients).len() as u64;
    assert!((50..=59).contains(&paced), "{paced}");
    world.tick();
    assert_eq!(world.closed(&clients).len() as u64, 100 - paced);
    assert_eq!((world.gauge(Metric::DrainPaced), world.gauge(Metric::DrainForced)), (paced, 100 - paced));
    assert_eq!(world.gauge(Metric::DrainLeft), 0);
}

#[test]
fn a_hurried_drain_closes_everybody_at_once() {
    let mut world = World::new(1);
    let clients: Vec<ConnId> = (0..10).map(|_| world.client()).collect();
    world.drain(1);
    world.ticks(500);
    world.shard.handle(Input::Shutdown);
    world.turn();
    assert_eq!(world.closed(&clients), clients);
    assert_eq!((world.gauge(Metric::DrainPaced), world.gauge(Metric::DrainForced)), (0, 10));
}

#[test]
fn a_late_turn_is_not_made_up_for() {
    let mut world = World::new(1);
    let clients: Vec<ConnId> = (0..100).map(|_| world.client()).collect();
    world.drain(40);
    world.ticks(GRACE_MS);
    world.closed(&clients);
    world.now_ms += 5_000;
    world.turn();
    let together = world.closed(&clients).len();
    assert!((1..=10).contains(&together), "two ticks of 40 per second are 10, not {together}");
}

#[test]
fn newcomers_are_served_in_the_grace_and_refused_behind_it() {
    let mut world = World::new(1);
    world.drain(1_000);
    world.tick();
    assert!(world.shard.takes_newcomers(Port::Client));
    let client = world.client();
    let waits = world.shard.accepted(Accepted { port: Port::Client, peer: None }).unwrap();
    world.ticks(GRACE_MS);
    assert!(!world.shard.takes_newcomers(Port::Client) && world.shard.takes_newcomers(Port::Ingest));
    world.tick();
    assert_eq!(world.closed(&[client]), [client]);
    world.receive(
        waits,
        b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    );
    world.turn();
    let answer = String::from_utf8(world.sent.remove(&waits.slot).unwrap()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After: 1\r\n"), "{answer}");
    assert_eq!(world.gauge(Metric::HandshakeRefusedDraining), 1);
}

fn channel_of_the_other_shard() -> String {
    let owned = |name: &String| route::owner(route::bucket(name), 2) == CoreId(1);
    (0..).map(|n| format!("c{n}")).find(owned).unwrap()
}

/// The channel's owner is the other shard, which answers when the test does.
#[test]
fn a_request_under_way_is_answered_in_front_of_the_close() {
    let mut world = World::new(2);
    let client = world.client();
    let channel = channel_of_the_other_shard();
    world.command(client, &format!(r#"{{"id":7,"publish":{{"channel":"{channel}","data":1}}}}"#));
    world.drain(1_000);
    world.ticks(GRACE_MS + 1_000);
    assert_eq!(world.closed(&[client]), [], "its publish is not answered");
    assert!(!world.shard.wants_read(client), "what it sends now belongs to the next node");
    let batch = world.shard.lanes().take_batch(CoreId(1)).unwrap();
    let request = batch.messages.into_iter().find_map(|message| match message {
        LaneMessage::Publish(request) => Some(request),
        _ => None,
    });
    let origin = request.unwrap().origin;
    let answer = PublishAnswer { origin, result: Err(PublishError::Busy), duplicate: false };
    world.shard.handle(Input::Lane { message: LaneMessage::PublishAnswer(answer) });
    world.turn();
    let frames = world.frames(client);
    let texts: Vec<String> = frames.iter().map(|(_, payload)| String::from_utf8_lossy(payload).into_owned()).collect();
    let (close, answer) = (frames.len() - 1, frames.len() - 2);
    assert!(texts[answer].contains(r#""id":7"#) && frames[close].0 == Opcode::Close, "{texts:?}");
    assert_eq!(world.gauge(Metric::DrainPaced), 1);
}

#[test]
fn what_waits_is_written_in_front_of_the_close() {
    let mut world = World::new(1);
    let (listener, speaker) = (world.client(), world.client());
    world.command(listener, r#"{"id":2,"subscribe":{"channel":"news"}}"#);
    world.turn();
    world.frames(listener);
    world.full.push(listener);
    for number in 0..20 {
        world.command(speaker, &format!(r#"{{"id":{},"publish":{{"channel":"news","data":{number}}}}}"#, number + 2));
    }
    world.turn();
    world.drain(1_000);
    world.ticks(GRACE_MS + 2 * TICK_MS);
    assert_eq!(world.gauge(Metric::DrainPaced), 2);
    assert!(world.frames(listener).is_empty());
    world.full.clear();
    world.shard.handle(Input::Writable { conn: listener });
    world.turn();
    let frames = world.frames(listener);
    let text: String = frames.iter().map(|(_, payload)| String::from_utf8_lossy(payload).into_owned()).collect();
    assert!((0..20).all(|number| text.contains(&format!(r#""data":{number},"#))), "{text}");
    assert_eq!(frames.last().unwrap().0, Opcode::Close);
}

fn backend(world: &mut World) -> ConnId {
    let conn = world.shard.accepted(Accepted { port: Port::Ingest, peer: None }).unwrap();
    let mut hello = Vec::new();
    let own = Hello { version_min: 1, version_max: 1, features: 0, token: TOKEN, instance: [7; 16], name: "test" };
    write_hello(&mut hello, &own);
    world.receive(conn, &hello);
    world.turn();
    world.sent.remove(&conn.slot).unwrap();
    conn
}

fn kinds(bytes: &[u8]) -> Vec<String> {
    let (mut rest, mut kinds) = (bytes, Vec::new());
    while let Ok(Some(len)) = frame_len(rest, 1 << 20) {
        let kind = match decode_server(&rest[..len]).unwrap() {
            ServerFrame::GoingAway(going) => format!("going away within {}", going.deadline_ms),
            ServerFrame::Nack { seq, .. } => format!("nack {seq}"),
            ServerFrame::Acks(_) => "acks".into(),
            ServerFrame::Fatal(_) => "fatal".into(),
            other => format!("{other:?}"),
        };
        kinds.push(kind);
        rest = &rest[len..];
    }
    kinds
}

#[test]
fn backends_are_told_and_answered_and_ended() {
    let mut world = World::new(2);
    let silent = backend(&mut world);
    world.drain(1_000);
    world.ticks(GRACE_MS + 1_000);
    assert!(!world.sent.contains_key(&silent.slot), "clients come first");
    let channel = channel_of_the_other_shard();
    let publish = Publish { seq: 1, kind: PayloadKind::Json, idempotency_key: b"", channel: &channel, payload: b"1" };
    let mut frame = Vec::new();
    write_publish(&mut frame, &publish).unwrap();
    world.receive(silent, &frame);
    world.shard.handle(Input::DrainBackends);
    world.turn();
    assert!(!world.shard.takes_newcomers(Port::Ingest));
    assert_eq!(kinds(&world.sent.remove(&silent.slot).unwrap()), ["going away within 2000"]);
    world.ticks(BACKENDS_MS + 1_000);
    assert!(!world.sent.contains_key(&silent.slot), "its publish is not answered");
    assert!(!world.shard.wants_read(silent), "it had its time");
    let batch = world.shard.lanes().take_batch(CoreId(1)).unwrap();
    assert!(matches!(batch.messages[..], [.., LaneMessage::PublishRun(_)]), "{:?}", batch.messages);
    let answers = vec![EntryAnswer { seq: 1, payload_bytes: 1, result: Err(PublishError::Busy) }];
    world.shard.handle(Input::Lane { message: LaneMessage::RunAnswer(Box::new(RunAnswer { conn: silent, answers })) });
    world.tick();
    assert_eq!(kinds(&world.sent.remove(&silent.slot).unwrap()), ["nack 1", "fatal"]);
}

proptest! {
    /// Whatever the pace, the numbers and the hiccups of the clock: the pace is kept, in every window and over all, nobody
    /// is left behind, and nobody is told twice.
    #[test]
    fn the_pace_is_kept(
        count in 1usize..200,
        pace_per_s in 1u64..2_000,
        steps in prop::collection::vec(1u64..400, 50..200),
    ) {
        let mut world = World::new(1);
        let clients: Vec<ConnId> = (0..count).map(|_| world.client()).collect();
        world.drain(pace_per_s);
        let began_ms = world.now_ms;
        let mut left = 0;
        for step in steps {
            world.now_ms += step;
            world.turn();
            let now = world.closed(&clients).len();
            let deadline = world.now_ms >= began_ms + DEADLINE_MS;
            let most = (pace_per_s * 2 * TICK_MS / 1_000 + 1) as usize;
            prop_assert!(deadline || now <= most, "{now} in one turn, at {pace_per_s} per second");
            left += now;
            let since_ms = (world.now_ms - began_ms).saturating_sub(GRACE_MS);
            prop_assert!(deadline || left as u64 * 1_000 <= pace_per_s * since_ms, "{left} within {since_ms} ms");
        }
        let told = world.gauge(Metric::DrainPaced) + world.gauge(Metric::DrainForced);
        prop_assert_eq!(told, left as u64);
        world.now_ms = began_ms + DEADLINE_MS;
        world.turn();
        left += world.closed(&clients).len();
        prop_assert_eq!(left, count);
    }
}
