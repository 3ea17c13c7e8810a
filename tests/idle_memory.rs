//! What an idle connection holds of the heap, with compression and without, and that it does not grow.
//!
//! In: one shard with model clients that have subscribed and have each received a broadcast, and a counting allocator.
//! Claims: compression adds nothing to a connection. What the shard itself needs for it does not depend on how many there
//! are; the compressor's own tables are the C allocator's and not counted, one per shard. Connections that come and leave, with
//! users and channels of their own, leave nothing behind. Neither does a message of 64 KiB in either direction, on sockets
//! that take it in pieces.

use std::alloc::System;
use std::sync::Arc;

use ringway_engine::ids::{ConnId, CoreId};
use ringway_engine::limits::Limits;
use ringway_engine::metrics::Metric;
use ringway_engine::namespace::{Allow, Namespace, Namespaces};
use ringway_engine::options::{Access, Options, Origins};
use ringway_engine::outbox::WriteBatch;
use ringway_engine::seam::{Accepted, Action, Input, Port};
use ringway_engine::shard::Shard;
use ringway_engine::tokens::{ConnectClaims, SubscribeClaims, TokenAsk, TokenCheck, TokenError, Tokens};
use ringway_sys::CountingAllocator;
use ringway_sys::alloc_count::{thread_allocated_bytes, thread_freed_bytes};
use ringway_wire::frame::{Opcode, write_client_header};

#[global_allocator]
static ALLOCATOR: CountingAllocator<System> = CountingAllocator::new(System);

const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
/// Between these two numbers every table of the shard grows several times.
const FEW: u32 = 300;
const MANY: u32 = 3_000;
/// Heap that one idle, subscribed connection may hold beside its place in the shard's tables.
const CONNECTION_BYTES_MAX: i64 = 64;

/// Rounds of coming and leaving.
const ROUNDS: usize = 12;
/// Rounds after which nothing may come any more: what marks removed entries makes a hash table double once.
const SETTLED_ROUNDS: usize = 6;
/// Bytes of a big message in either direction, below all bounds.
const BIG_BYTES: usize = 64_000;
/// What they may leave behind for each connection of so few: places in two tables of the shard, which double as they grow and
/// are given back from 8,192 places on.
const BIG_BYTES_LEFT_MAX: f64 = 48.0;
/// What they may leave behind in a shard, whatever the number of its connections.
const SHARD_BYTES_LEFT_MAX: i64 = 6 * BIG_BYTES as i64;
/// What a socket takes of a write at most.
const SOCKET_BYTES: usize = 20_000;
/// Longest time for a channel without anybody, and steps of the clock in which it passes.
const CHANNEL_IDLE_MS: u32 = 1_000;
const STEP_MS: u64 = 125;

/// A token is the name of its user.
#[derive(Debug)]
struct Names;

impl Tokens for Names {
    fn check_connect(&self, token: &str, _: TokenAsk) -> TokenCheck<ConnectClaims> {
        TokenCheck::Done(Ok(ConnectClaims { user: token.into(), ..ConnectClaims::default() }))
    }

    fn check_subscribe(&self, _: &str, _: TokenAsk) -> TokenCheck<SubscribeClaims> {
        TokenCheck::Done(Err(TokenError::Invalid))
    }
}

/// What the calling thread holds of the heap.
fn held() -> i64 {
    thread_allocated_bytes() as i64 - thread_freed_bytes() as i64
}

fn shard() -> Shard {
    let mut namespace = Namespace::closed("");
    (namespace.subscribe, namespace.publish) = (Allow::Anyone, Allow::Anyone);
    namespace.deflate_bytes_min = 512;
    let options = Options {
        core: CoreId(0),
        shards: 1,
        seed: 1,
        boot: 77,
        limits: Limits { channel_idle_ms: CHANNEL_IDLE_MS, ..Limits::DEFAULT },
        namespaces: Namespaces::new(namespace, vec![]).expect("sound").into(),
        fleet: None,
        tokens: Arc::new(Names),
        access: Access { anonymous: true, deflate: true, origins: Origins::Any, ..Access::closed("/ws") },
        utf8: |bytes| std::str::from_utf8(bytes).is_ok(),
    };
    Shard::new(options, 1_000)
}

/// A turn with ideal sockets; how many bytes they took.
fn turn(shard: &mut Shard) -> usize {
    turn_with(shard, usize::MAX, &mut Vec::new())
}

/// A turn whose sockets take at most `room` bytes of a write; those that did not take all are noted.
fn turn_with(shard: &mut Shard, room: usize, full: &mut Vec<ConnId>) -> usize {
    let (mut batch, mut written) = (WriteBatch::default(), 0);
    loop {
        shard.end_turn();
        loop {
            shard.collect_writes(&mut batch);
            if batch.is_empty() {
                break;
            }
            for index in 0..batch.len() {
                let (conn, bytes) = batch.get(index).expect("within the batch");
                let (len, all) = (bytes.len().min(room), bytes.len() <= room);
                written += len;
                if !all {
                    full.push(conn);
                }
                shard.handle(Input::Wrote { conn, bytes: len, all });
            }
        }
        if !shard.has_work() {
            return written;
        }
    }
}

fn command(shard: &mut Shard, conn: ConnId, json: &str) {
    shard.handle(Input::Received { conn, bytes: &mut frame(json) });
    turn(shard);
}

fn frame(json: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    write_client_header(&mut frame, Opcode::Text, json.len(), [0; 4]);
    frame.extend_from_slice(json.as_bytes());
    frame
}

/// A client that is connected and subscribed.
fn client(shard: &mut Shard, offer: &str, connect: &str, channel: &str) -> ConnId {
    let conn = shard.accepted(Accepted { port: Port::Client, peer: None }).expect("room");
    let mut request = format!(
        "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{offer}\r\n"
    );
    // Safe as bytes: an HTTP head is ASCII.
    shard.handle(Input::Received { conn, bytes: &mut std::mem::take(&mut request).into_bytes() });
    turn(shard);
    command(shard, conn, &format!(r#"{{"id":1,"connect":{{{connect}}}}}"#));
    command(shard, conn, &format!(r#"{{"id":2,"subscribe":{{"channel":"{channel}"}}}}"#));
    conn
}

/// The driver's side of what the shard wants closed.
fn close(shard: &mut Shard) {
    let mut actions = Vec::new();
    shard.take_actions(&mut actions);
    for action in actions {
        if let Action::Close { conn, .. } = action {
            shard.handle(Input::Closed { conn });
        }
    }
}

/// Heap that a shard holds with `count` clients that offer `offer`: all subscribed, before and behind a broadcast.
fn held_bytes(count: u32, offer: &str) -> [i64; 2] {
    let mut shard = shard();
    // Address space for all connections that there may be is part of the shard.
    let before = held();
    let mut first = None;
    for _ in 0..count {
        let conn = client(&mut shard, offer, "", "c");
        first.get_or_insert(conn);
    }
    assert_eq!(shard.metrics().get(Metric::SubscriptionsOpen), u64::from(count));
    assert_eq!(shard.metrics().get(Metric::UpgradesDeflate), if offer.is_empty() { 0 } else { u64::from(count) });
    let idle = held() - before;

    let conn = first.expect("a client");
    let payload = r#"{"key":"value","number":123456},"#.repeat(32);
    let publish = format!(r#"{{"id":3,"publish":{{"channel":"c","data":[{}]}}}}"#, payload.trim_end_matches(','));
    shard.handle(Input::Received { conn, bytes: &mut frame(&publish) });
    let each = turn(&mut shard) / count as usize;
    assert_eq!(each < 512, !offer.is_empty(), "{each} bytes to each: compressed or not, as was agreed");
    drop(publish);
    drop(payload);
    [idle, held() - before]
}

#[test]
fn compression_adds_nothing_to_a_connection() {
    let more = |count: u32| {
        let (plain, deflate) = (held_bytes(count, ""), held_bytes(count, OFFER));
        eprintln!("{count} clients: plain {plain:?} bytes, with compression {deflate:?}");
        assert!(plain[0] / i64::from(count) <= CONNECTION_BYTES_MAX, "{plain:?}");
        [deflate[0] - plain[0], deflate[1] - plain[1]]
    };
    // The first use of everything is out of the way then.
    held_bytes(1, OFFER);
    let (few, many) = (more(FEW), more(MANY));
    assert_eq!(few[0], many[0], "{} bytes more of each idle connection", (many[0] - few[0]) / i64::from(MANY - FEW));
    assert_eq!(few[1], many[1], "{} bytes more after a broadcast", (many[1] - few[1]) / i64::from(MANY - FEW));
}

#[test]
fn connections_that_come_and_leave_leave_nothing_behind() {
    let (mut shard, mut now_ms) = (shard(), 1_000);
    let mut after = [0; ROUNDS];
    for (round, after) in after.iter_mut().enumerate() {
        let conns: Vec<ConnId> = (0..MANY)
            .map(|i| client(&mut shard, "", &format!(r#""token":"user-{round}-{i}""#), &format!("own-{round}-{i}")))
            .collect();
        assert_eq!(shard.metrics().get(Metric::UsersOnline), u64::from(MANY));
        for conn in conns {
            shard.handle(Input::PeerFinished { conn });
        }
        turn(&mut shard);
        close(&mut shard);
        assert_eq!(shard.connections(), 0);
        // A sweep looks at some of the channels only.
        while shard.metrics().get(Metric::ChannelsOwned) > 0 {
            now_ms += STEP_MS;
            assert!(now_ms < 1_000_000, "channels without anybody stay");
            shard.begin_turn(now_ms);
            turn(&mut shard);
        }
        *after = held();
    }
    eprintln!("held after each round: {after:?} bytes");
    let grown = after[ROUNDS - 1] - after[SETTLED_ROUNDS - 1];
    assert!(grown <= 0, "{grown} bytes more in {} rounds: {after:?}", ROUNDS - SETTLED_ROUNDS);
}

/// Heap beyond idle after each of three rounds in which each of so many clients sends and receives a big message.
fn left_by_big_messages(count: u32) -> [i64; 3] {
    let mut shard = shard();
    let conns: Vec<ConnId> =
        (0..count).map(|i| client(&mut shard, "", &format!(r#""token":"user-{i}""#), "c")).collect();
    let round = |shard: &mut Shard, now_ms: u64| {
        // No namespace serves rpc: the message is read whole, and refused.
        let rpc = frame(&format!(r#"{{"id":3,"rpc":{{"data":"{}"}}}}"#, "x".repeat(BIG_BYTES)));
        for conn in &conns {
            for part in rpc.chunks(BIG_BYTES / 3) {
                shard.handle(Input::Received { conn: *conn, bytes: &mut part.to_vec() });
            }
            turn(shard);
        }
        drop(rpc);
        let publish = format!(r#"{{"id":4,"publish":{{"channel":"c","data":"{}"}}}}"#, "x".repeat(BIG_BYTES));
        shard.handle(Input::Received { conn: conns[0], bytes: &mut frame(&publish) });
        let mut written = 0;
        let mut full = Vec::new();
        loop {
            written += turn_with(shard, SOCKET_BYTES, &mut full);
            if full.is_empty() {
                break;
            }
            for conn in full.drain(..) {
                shard.handle(Input::Writable { conn });
            }
        }
        drop((full, publish));
        assert!(written > conns.len() * BIG_BYTES, "{written} bytes");
        assert_eq!(shard.outbox_frames(), 0);
        shard.begin_turn(now_ms);
        turn(shard);
    };
    let idle = held();
    [1, 2, 3].map(|n| (round(&mut shard, 1_000 + n * STEP_MS), held() - idle).1)
}

#[test]
fn big_messages_leave_nothing_behind() {
    let (few, many) = (left_by_big_messages(FEW), left_by_big_messages(MANY));
    eprintln!("beyond idle: {few:?} bytes of {FEW} clients, {many:?} of {MANY}");
    // The owner's encoder keeps its buffers.
    assert!(few[0] <= SHARD_BYTES_LEFT_MAX, "{few:?}");
    let each = (many[0] - few[0]) as f64 / f64::from(MANY - FEW);
    assert!(each <= BIG_BYTES_LEFT_MAX, "{each:.1} bytes more of each connection: {few:?}, {many:?}");
    assert_eq!(many[0], many[2], "the same again and again");
}
