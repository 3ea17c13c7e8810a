//! Clients with permessage-deflate (RFC 7692): who gets it, what they may send, and what it costs the others.
//!
//! Set-up: one shard, real bytes of model clients, an ideal socket that takes every write. Claim of each test: its name.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use ringway_engine::ids::*;
use ringway_engine::limits::Limits;
use ringway_engine::metrics::Metric;
use ringway_engine::namespace::*;
use ringway_engine::options::*;
use ringway_engine::outbox::WriteBatch;
use ringway_engine::seam::*;
use ringway_engine::shard::Shard;
use ringway_engine::tokens::NoTokens;
use ringway_wire::deflate::Compressor;
use ringway_wire::frame::{Opcode, write_client_header};

const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
const CONNECT: &str = r#"{"id":1,"connect":{}}"#;

/// A shard whose clients may publish and subscribe, and may have compression if `deflate`.
fn shard(limits: Limits, deflate: bool) -> Shard {
    let mut namespace = Namespace::closed("");
    namespace.subscribe = Allow::Anyone;
    namespace.publish = Allow::Anyone;
    Shard::new(
        Options {
            core: CoreId(0),
            shards: 1,
            seed: 1,
            boot: 77,
            limits,
            namespaces: Namespaces::new(namespace, vec![]).unwrap().into(),
            tokens: std::sync::Arc::new(NoTokens),
            access: Access { anonymous: true, echo: true, deflate, origins: Origins::Any, ..Access::closed("/ws") },
            fleet: None,
            utf8: |bytes| std::str::from_utf8(bytes).is_ok(),
        },
        1_000,
    )
}

/// What the sockets took in one turn, by slot.
type Written = Vec<(u32, Vec<u8>)>;

fn turn(shard: &mut Shard) -> Written {
    shard.end_turn();
    let mut batch = WriteBatch::default();
    let mut out = vec![];
    loop {
        shard.collect_writes(&mut batch);
        if batch.is_empty() {
            return out;
        }
        for index in 0..batch.len() {
            let (conn, bytes) = batch.get(index).unwrap();
            out.push((conn.slot, bytes.to_vec()));
            let len = bytes.len();
            shard.handle(Input::Wrote { conn, bytes: len, all: true });
        }
    }
}

/// All that one connection was written in a turn.
fn of(written: &Written, conn: ConnId) -> Vec<u8> {
    written.iter().filter(|(slot, _)| *slot == conn.slot).flat_map(|(_, bytes)| bytes.clone()).collect()
}

fn receive(shard: &mut Shard, conn: ConnId, bytes: &[u8]) {
    shard.handle(Input::Received { conn, bytes: &mut bytes.to_vec() });
}

/// A client that has upgraded, and the answer it got.
fn upgraded(shard: &mut Shard, path: &str, offer: &str) -> (ConnId, String) {
    let conn = shard.accepted(Accepted { port: Port::Client, peer: None }).unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{offer}\r\n"
    );
    receive(shard, conn, request.as_bytes());
    let answer = String::from_utf8(of(&turn(shard), conn)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    (conn, answer)
}

fn connected(shard: &mut Shard, offer: &str) -> ConnId {
    let (conn, _) = upgraded(shard, "/ws", offer);
    receive(shard, conn, &text(CONNECT));
    assert_eq!(of(&turn(shard), conn)[0], 0x81, "a reply to the connect command");
    conn
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    write_client_header(&mut out, Opcode::Text, payload.len(), [0; 4]);
    out[0] = first;
    out.extend_from_slice(payload);
    out
}

fn text(payload: &str) -> Vec<u8> {
    frame(0x81, payload.as_bytes())
}

fn deflated(payload: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    Compressor::new().compress(payload, &mut out);
    out
}

/// `payload` as one compressed text message.
fn compressed(payload: &str) -> Vec<u8> {
    frame(0xC1, &deflated(payload.as_bytes()))
}

/// The close code of the last frame.
fn close_code(bytes: &[u8]) -> Option<u16> {
    let at = bytes.windows(2).rposition(|pair| pair[0] == 0x88)?;
    Some(u16::from_be_bytes([*bytes.get(at + 2)?, *bytes.get(at + 3)?]))
}

#[test]
fn compression_is_given_to_clients_who_ask_where_it_is_allowed() {
    for (deflate, path, offer, given) in [
        (true, "/ws", OFFER, true),
        (false, "/ws", OFFER, false),
        (true, "/ws", "", false),
        (true, "/ws", "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=9\r\n", false),
        (true, "/echo", OFFER, false),
    ] {
        let mut shard = shard(Limits::DEFAULT, deflate);
        let (conn, answer) = upgraded(&mut shard, path, offer);
        let said = answer.contains("\r\nSec-WebSocket-Extensions: permessage-deflate; ");
        assert_eq!(said, given, "{path} {offer}: {answer}");
        assert_eq!(shard.metrics().get(Metric::UpgradesDeflate), u64::from(given));

        receive(&mut shard, conn, &compressed(CONNECT));
        let written = of(&turn(&mut shard), conn);
        if given {
            assert!(written.starts_with(&[0x81]) && close_code(&written).is_none(), "{written:x?}");
            assert_eq!(shard.metrics().get(Metric::SessionsConnected), 1);
        } else {
            assert_eq!(close_code(&written), Some(1002), "RSV1 without an extension, {path} {offer}");
        }
    }
}

#[test]
fn commands_come_in_compressed_fragments_with_a_ping_between() {
    let mut shard = shard(Limits::DEFAULT, true);
    let conn = connected(&mut shard, OFFER);
    let subscribe = deflated(br#"{"id":2,"subscribe":{"channel":"news"}}"#);
    let (first, rest) = subscribe.split_at(5);
    let stream =
        [frame(0x41, first), frame(0x89, b"between"), frame(0x80, rest), text(r#"{"id":3,"ping":{}}"#)].concat();
    let mut written = vec![];
    for byte in stream {
        receive(&mut shard, conn, &[byte]);
        written.extend(of(&turn(&mut shard), conn));
    }
    let said = String::from_utf8_lossy(&written).into_owned();
    assert!(
        said.contains("between") && said.contains(r#"{"id":2,"subscribe":{"#) && said.contains(r#""id":3"#),
        "{said}"
    );
    let metrics = shard.metrics();
    assert_eq!((metrics.get(Metric::SubscriptionsOpen), metrics.get(Metric::MessagesInflated)), (1, 1));
    assert!(metrics.get(Metric::InflateBytesIn) > 0 && metrics.get(Metric::InflateBytesOut) > 0);
}

#[test]
fn what_cannot_be_inflated_ends_only_its_sender() {
    let limits = || Limits { message_bytes_max: 1 << 20, ..Limits::DEFAULT };
    for (message, code, metric) in [
        (frame(0xC1, b"no deflate"), 1002, Metric::InflateRefusedCorrupt),
        (frame(0xC1, b""), 1002, Metric::InflateRefusedCorrupt),
        (frame(0xC1, &deflated(&vec![b' '; 1 << 19])), 1009, Metric::InflateRefusedRatio),
        // Below the ratio, so that the size alone decides.
        (frame(0xC1, &deflated(&spread(3 << 20))), 1009, Metric::InflateRefusedSize),
    ] {
        let mut shard = shard(limits(), true);
        let (bad, good) = (connected(&mut shard, OFFER), connected(&mut shard, OFFER));
        receive(&mut shard, bad, &message);
        receive(&mut shard, good, &compressed(r#"{"id":2,"ping":{}}"#));
        let written = turn(&mut shard);
        assert_eq!(close_code(&of(&written, bad)), Some(code), "{metric:?}");
        assert_eq!(shard.metrics().get(metric), 1, "{metric:?}");
        let answer = String::from_utf8_lossy(&of(&written, good)).into_owned();
        assert!(answer.contains(r#""id":2"#), "{metric:?}: {answer}");
    }
}

/// Bytes with a ratio of some tens.
fn spread(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| if at % 64 == 0 { (at / 64 * 31 % 251) as u8 } else { b'x' }).collect()
}

#[test]
fn after_our_close_compressed_messages_are_thrown_away() {
    let mut shard = shard(Limits::DEFAULT, true);
    let conn = connected(&mut shard, OFFER);
    receive(&mut shard, conn, &compressed("{}{"));
    assert_eq!(close_code(&of(&turn(&mut shard), conn)), Some(3501));
    // It was on its way when we closed; the peer's Close behind it must still be found.
    receive(&mut shard, conn, &compressed(r#"{"id":2,"ping":{}}"#));
    assert!(of(&turn(&mut shard), conn).is_empty());
    receive(&mut shard, conn, &frame(0x88, &3501_u16.to_be_bytes()));
    turn(&mut shard);
    let mut actions = vec![];
    shard.take_actions(&mut actions);
    assert!(actions.iter().any(|action| matches!(action, Action::Close { .. })), "{actions:?}");
}

/// Valid commands that nobody answers, 60 KiB each, about a hundred bytes on the wire.
fn bombs(count: usize) -> Vec<u8> {
    let bomb = compressed(&format!(r#"{{"send":{{"data":"{}"}}}}"#, "x".repeat(60_000)));
    assert!(bomb.len() < 200);
    bomb.repeat(count)
}

#[test]
fn a_flood_of_bombs_is_spread_over_turns_and_keeps_nobody_waiting() {
    let mut shard = shard(Limits::DEFAULT, true);
    let (bad, good) = (connected(&mut shard, OFFER), connected(&mut shard, OFFER));
    let before = shard.metrics().get(Metric::InflateBytesOut);
    let made = |shard: &mut Shard| shard.metrics().get(Metric::InflateBytesOut) - before;
    const BOMBS: usize = 200;
    let per_turn = u64::from(Limits::DEFAULT.inflate_bytes_per_turn_max) + u64::from(Limits::DEFAULT.message_bytes_max);

    receive(&mut shard, bad, &bombs(BOMBS));
    assert!(made(&mut shard) <= per_turn / 4, "a client has a part of a turn");
    assert!(!shard.wants_read(bad), "nothing more is read while it waits");
    assert!(shard.wants_read(good));
    receive(&mut shard, good, &compressed(r#"{"id":2,"ping":{}}"#));
    let answer = of(&turn(&mut shard), good);
    assert!(String::from_utf8_lossy(&answer).contains(r#""id":2"#), "answered in the same turn");

    let (mut turns, mut last) = (1, made(&mut shard));
    while shard.has_work() {
        assert!(shard.wants_read(good), "half a turn is for those who do not wait");
        turn(&mut shard);
        let now = made(&mut shard);
        assert!(now > last && now - last <= per_turn, "turn {turns}: {} bytes", now - last);
        last = now;
        turns += 1;
    }
    assert!(turns > 10, "{turns}");
    // Nothing was lost on the way.
    assert!(shard.wants_read(bad));
    let metrics = shard.metrics();
    assert_eq!(metrics.get(Metric::MessagesInflated), BOMBS as u64 + 1);
    assert!(metrics.get(Metric::InflatesDeferred) > 10);
    receive(&mut shard, bad, &compressed(r#"{"id":3,"ping":{}}"#));
    let answer = of(&turn(&mut shard), bad);
    assert!(String::from_utf8_lossy(&answer).contains(r#""id":3"#), "a client like any other, {answer:x?}");
}

#[test]
fn a_turn_is_bounded_however_many_clients_send_bombs() {
    let mut shard = shard(Limits::DEFAULT, true);
    let clients: Vec<_> = (0..40).map(|_| connected(&mut shard, OFFER)).collect();
    let before = shard.metrics().get(Metric::InflateBytesOut);
    let per_turn = u64::from(Limits::DEFAULT.inflate_bytes_per_turn_max) + u64::from(Limits::DEFAULT.message_bytes_max);
    let mut read = 0;
    for conn in &clients {
        if shard.wants_read(*conn) {
            receive(&mut shard, *conn, &bombs(20));
            read += 1;
        }
    }
    assert!(read < clients.len(), "the last ones are not read in this turn");
    let mut left: Vec<_> = clients[read..].to_vec();
    let mut before = before;
    for _ in 0..1_000 {
        turn(&mut shard);
        let now = shard.metrics().get(Metric::InflateBytesOut);
        assert!(now - before <= per_turn + u64::from(Limits::DEFAULT.message_bytes_max), "{}", now - before);
        before = now;
        left.retain(|conn| {
            let wants = shard.wants_read(*conn);
            if wants {
                receive(&mut shard, *conn, &bombs(20));
            }
            !wants
        });
        if left.is_empty() && !shard.has_work() {
            assert_eq!(shard.metrics().get(Metric::MessagesInflated), 40 * 20);
            return;
        }
    }
    panic!("not all were inflated");
}

#[test]
fn a_client_that_goes_while_it_waits_leaves_nothing() {
    let mut shard = shard(Limits::DEFAULT, true);
    let conn = connected(&mut shard, OFFER);
    receive(&mut shard, conn, &bombs(100));
    assert!(shard.has_work());
    shard.handle(Input::SocketFailed { conn });
    turn(&mut shard);
    shard.handle(Input::Closed { conn });
    shard.begin_turn(2_000);
    turn(&mut shard);
    assert!(!shard.has_work(), "who is gone does not keep the loop awake");
    assert_eq!((shard.connections(), shard.outbox_frames()), (0, 0));
    let next = connected(&mut shard, OFFER);
    assert!(shard.wants_read(next), "its slot is as new");
}
