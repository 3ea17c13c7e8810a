//! A shard at its bounds: what must not end a fast client, and what must not be let in.
//!
//! Set-up: one shard, real bytes of model clients, an ideal socket that takes every write. Claim of each test: its name.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use ringway_engine::ids::*;
use ringway_engine::lane_message::*;
use ringway_engine::limits::Limits;
use ringway_engine::metrics::Metric;
use ringway_engine::namespace::*;
use ringway_engine::options::*;
use ringway_engine::outbox::WriteBatch;
use ringway_engine::publication::Tags;
use ringway_engine::seam::*;
use ringway_engine::shard::Shard;
use ringway_engine::tokens::NoTokens;
use ringway_wire::frame::{Opcode, write_client_header};
use ringway_wire::ingest::PayloadKind;

fn shard(limits: Limits) -> Shard {
    let mut ns = Namespace::closed("");
    ns.history_size = 1000;
    ns.history_ttl_ms = 1_000_000;
    ns.recovery = true;
    ns.subscribe = Allow::Anyone;
    ns.publish = Allow::Anyone;
    Shard::new(
        Options {
            core: CoreId(0),
            shards: 1,
            seed: 1,
            boot: 77,
            limits,
            namespaces: Namespaces::new(ns, vec![]).unwrap().into(),
            tokens: std::sync::Arc::new(NoTokens),
            access: Access { anonymous: true, origins: Origins::Any, ingest_tokens: vec![], ..Access::closed("/ws") },
            fleet: None,
            utf8: |b| std::str::from_utf8(b).is_ok(),
        },
        1_000,
    )
}
fn text(s: &str) -> Vec<u8> {
    let mut out = vec![];
    write_client_header(&mut out, Opcode::Text, s.len(), [0; 4]);
    out.extend_from_slice(s.as_bytes());
    out
}
/// Writes everything as an ideal socket; returns the bytes.
fn flush(s: &mut Shard) -> Vec<u8> {
    let mut batch = WriteBatch::default();
    let mut out = vec![];
    loop {
        s.collect_writes(&mut batch);
        if batch.is_empty() {
            return out;
        }
        for i in 0..batch.len() {
            let (conn, bytes) = batch.get(i).unwrap();
            out.extend_from_slice(bytes);
            let n = bytes.len();
            s.handle(Input::Wrote { conn, bytes: n, all: true });
        }
    }
}
fn turn(s: &mut Shard) -> Vec<u8> {
    s.end_turn();
    flush(s)
}
fn open(s: &mut Shard) -> ConnId {
    s.accepted(Accepted { port: Port::Client, peer: None }).unwrap()
}
const UP: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
fn connected(s: &mut Shard) -> ConnId {
    let c = open(s);
    let mut b = UP.as_bytes().to_vec();
    b.extend(text(r#"{"id":1,"connect":{}}"#));
    s.handle(Input::Received { conn: c, bytes: &mut b });
    turn(s);
    c
}
fn publish(s: &mut Shard, ch: &str, payload: &[u8], kind: PayloadKind) {
    s.handle(Input::Lane {
        message: LaneMessage::Publish(Box::new(PublishRequest {
            channel: ch.into(),
            payload: payload.into(),
            kind,
            idempotency_key: Box::default(),
            publisher: None,
            tags: Tags::default(),
            skip_history: false,
            origin: Origin::Control { call: 0 },
            from: CoreId(1),
        })),
    });
}

#[test]
fn refusal_survives_half_close() {
    let mut s = shard(Limits::DEFAULT);
    let c = open(&mut s);
    let mut b = b"GET /nope HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".to_vec();
    s.handle(Input::Received { conn: c, bytes: &mut b });
    s.handle(Input::PeerFinished { conn: c });
    let out = turn(&mut s);
    assert!(String::from_utf8_lossy(&out).contains("404"), "nothing was written: {out:?}");
}

#[test]
fn close_answer_survives_fin_behind_close() {
    let mut s = shard(Limits::DEFAULT);
    let c = connected(&mut s);
    let mut b = vec![];
    write_client_header(&mut b, Opcode::Close, 2, [0; 4]);
    b.extend_from_slice(&1000u16.to_be_bytes());
    s.handle(Input::Received { conn: c, bytes: &mut b });
    s.handle(Input::PeerFinished { conn: c });
    let out = turn(&mut s);
    assert_eq!(out.first(), Some(&0x88), "no Close answer: {out:?}");
}

#[test]
fn a_burst_within_one_turn_does_not_make_a_fast_client_slow() {
    let mut s = shard(Limits::DEFAULT);
    let c = connected(&mut s);
    let mut b = text(r#"{"id":2,"subscribe":{"channel":"a"}}"#);
    s.handle(Input::Received { conn: c, bytes: &mut b });
    turn(&mut s);
    // 1.5 MB of publications arrive in one turn (backend credit is 8 MiB); the client's socket is empty and takes all.
    let payload = [b"\"", vec![b'x'; 1000].as_slice(), b"\""].concat();
    for _ in 0..1500 {
        publish(&mut s, "a", &payload, PayloadKind::Json);
    }
    turn(&mut s);
    assert_eq!(s.metrics().get(Metric::OutboxOverflows), 0);
}

#[test]
fn several_recoveries_fit() {
    let mut s = shard(Limits::DEFAULT);
    let payload = [b"\"", vec![b'x'; 4000].as_slice(), b"\""].concat();
    for ch in ["a", "b", "c"] {
        for _ in 0..100 {
            publish(&mut s, ch, &payload, PayloadKind::Json);
        }
    }
    turn(&mut s);
    let c = connected(&mut s);
    let cmd = ["a", "b", "c"]
        .iter()
        .enumerate()
        .map(|(i, ch)| format!(r#"{{"id":{},"subscribe":{{"channel":"{ch}","recover":true,"offset":0}}}}"#, i + 2))
        .collect::<Vec<_>>()
        .join("\n");
    let mut b = text(&cmd);
    s.handle(Input::Received { conn: c, bytes: &mut b });
    turn(&mut s);
    assert_eq!(
        s.metrics().get(Metric::OutboxOverflows),
        0,
        "closed 3008; the SDK reconnects, recovers the same and is closed again"
    );
}

#[test]
fn bytes_do_not_enter_a_json_channel() {
    let mut s = shard(Limits::DEFAULT);
    let c = connected(&mut s);
    let mut b = text(r#"{"id":2,"subscribe":{"channel":"a"}}"#);
    s.handle(Input::Received { conn: c, bytes: &mut b });
    turn(&mut s);
    publish(&mut s, "a", b"\xff\x00", PayloadKind::Bytes);
    let out = turn(&mut s);
    assert!(out.is_empty(), "a text frame with raw bytes went to a JSON client: {:?}", String::from_utf8_lossy(&out));
}

#[test]
fn small_outbox_still_delivers() {
    // Allowed by every relation of the configuration.
    let limits = Limits {
        outbox_bytes_max: 16 * 1024,
        publication_bytes_max: 4096,
        recovery_bytes_max: 8192,
        ..Limits::DEFAULT
    };
    let mut s = shard(limits);
    let c = connected(&mut s);
    let mut b = text(r#"{"id":2,"subscribe":{"channel":"a"}}"#);
    s.handle(Input::Received { conn: c, bytes: &mut b });
    turn(&mut s);
    for _ in 0..64 {
        publish(&mut s, "a", &[b"\"", vec![b'x'; 400].as_slice(), b"\""].concat(), PayloadKind::Json);
    }
    turn(&mut s);
    assert_eq!(s.metrics().get(Metric::OutboxOverflows), 0);
}

#[test]
fn half_a_frame_does_not_hide_the_peers_close() {
    let mut s = shard(Limits::DEFAULT);
    let c = connected(&mut s);
    let mut whole = text(r#"{"id":2,"subscribe":{"channel":"abcdefgh"}}"#);
    let mut second = whole.split_off(20);
    s.handle(Input::Received { conn: c, bytes: &mut whole });
    s.handle(Input::Shutdown);
    turn(&mut s);
    write_client_header(&mut second, Opcode::Close, 2, [0; 4]);
    second.extend_from_slice(&1000u16.to_be_bytes());
    s.handle(Input::Received { conn: c, bytes: &mut second });
    let mut actions = vec![];
    s.take_actions(&mut actions);
    assert!(
        matches!(actions.first(), Some(Action::Close { reset: false, .. })),
        "the peer's Close was not seen: {actions:?}"
    );
}

#[test]
fn in_flight_is_wide_enough() {
    let limits = Limits {
        message_bytes_max: 8 << 20,
        commands_per_message_max: 65_536,
        requests_in_flight_per_connection_max: 1_048_576,
        ..Limits::DEFAULT
    };
    let mut s = shard(limits);
    let c = connected(&mut s);
    let cmd = (0..65_536)
        .map(|i| format!(r#"{{"id":{},"publish":{{"channel":"a","data":1}}}}"#, i + 2))
        .collect::<Vec<_>>()
        .join("\n");
    let mut b = text(&cmd);
    s.handle(Input::Received { conn: c, bytes: &mut b });
}

#[test]
fn fanout_backlog_is_bounded() {
    let bound = 1024 * 1024;
    let limits = Limits { fanout_deliveries_per_turn_max: 1, fanout_backlog_bytes_max: bound, ..Limits::DEFAULT };
    let mut s = shard(limits);
    for _ in 0..3 {
        let c = connected(&mut s);
        let mut b = text(r#"{"id":2,"subscribe":{"channel":"a"}}"#);
        s.handle(Input::Received { conn: c, bytes: &mut b });
        turn(&mut s);
    }
    // A driver that obeys: nothing is taken from lanes while the shard is swamped.
    let mut pressed_first = false;
    for round in 0..1_000_000 {
        assert!(round < 999_999, "never swamped");
        publish(&mut s, "a", b"\"0123456789\"", PayloadKind::Json);
        s.end_turn();
        pressed_first |= s.is_pressed() && !s.is_swamped();
        if s.is_swamped() {
            break;
        }
    }
    assert!(pressed_first, "clients and backends are held back before other shards are");
    while s.has_work() {
        turn(&mut s);
    }
    assert!(!s.is_pressed() && !s.is_swamped());
}

#[test]
fn requests_in_flight_hold_a_client_back_only_until_they_are_answered() {
    let mut s = shard(Limits::DEFAULT);
    let c = connected(&mut s);
    let commands: Vec<_> =
        (0..1024).map(|i| format!(r#"{{"id":{},"publish":{{"channel":"a","data":1}}}}"#, i + 2)).collect();
    let mut b = text(&commands.join("\n"));
    s.handle(Input::Received { conn: c, bytes: &mut b });
    assert!(!s.wants_read(c));
    turn(&mut s);
    assert!(s.wants_read(c));
}

/// Of `count` clients that come at once: whether each was admitted, in order.
fn upgrades(s: &mut Shard, count: usize) -> Vec<bool> {
    let one = |_| {
        let conn = open(s);
        s.handle(Input::Received { conn, bytes: &mut UP.as_bytes().to_vec() });
        let answer = String::from_utf8(turn(s)).unwrap();
        let refused = answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After: 1\r\n");
        assert!(refused || answer.starts_with("HTTP/1.1 101 "), "{answer}");
        !refused
    };
    (0..count).map(one).collect()
}

#[test]
fn clients_over_the_rate_are_refused_until_its_time_has_come() {
    let mut s = shard(Limits { upgrades_per_s_max: 8, ..Limits::DEFAULT });
    s.begin_turn(1_000);
    let bad = open(&mut s);
    s.handle(Input::Received { conn: bad, bytes: &mut UP.replace("/ws", "/elsewhere").into_bytes() });
    turn(&mut s);
    assert_eq!(
        upgrades(&mut s, 4),
        [true, true, false, false],
        "a quarter of a second's worth, and 404 was none of them"
    );
    s.begin_turn(1_125);
    assert_eq!(upgrades(&mut s, 2), [true, false]);
    s.begin_turn(9_000);
    assert_eq!(upgrades(&mut s, 4), [true, true, false, false], "what nobody used is not kept");
    assert_eq!(s.metrics().get(Metric::HandshakeRefusedRate), 5);
    let mut s = shard(Limits { upgrades_per_s_max: 1, ..Limits::DEFAULT });
    assert_eq!(upgrades(&mut s, 2), [true, false], "the least is one at once");
    let mut s = shard(Limits::DEFAULT);
    assert_eq!(upgrades(&mut s, 100), [true; 100]);
}
