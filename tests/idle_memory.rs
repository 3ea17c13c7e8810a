//! What an idle connection holds of the heap, with compression and without.
//!
//! In: one shard with model clients that have subscribed and have each received a broadcast, and a counting allocator.
//! Claim: compression adds nothing to a connection. What the shard itself needs for it does not depend on how many there
//! are; the compressor's own tables are the C allocator's and not counted, one per shard.

use std::alloc::System;
use std::sync::Arc;

use ringway_engine::ids::{ConnId, CoreId};
use ringway_engine::limits::Limits;
use ringway_engine::metrics::Metric;
use ringway_engine::namespace::{Allow, Namespace, Namespaces};
use ringway_engine::options::{Access, Options, Origins};
use ringway_engine::outbox::WriteBatch;
use ringway_engine::seam::{Accepted, Input, Port};
use ringway_engine::shard::Shard;
use ringway_engine::tokens::NoTokens;
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

fn shard() -> Shard {
    let mut namespace = Namespace::closed("");
    (namespace.subscribe, namespace.publish) = (Allow::Anyone, Allow::Anyone);
    namespace.deflate_bytes_min = 512;
    let options = Options {
        core: CoreId(0),
        shards: 1,
        seed: 1,
        boot: 77,
        limits: Limits::DEFAULT,
        namespaces: Namespaces::new(namespace, vec![]).expect("sound").into(),
        tokens: Arc::new(NoTokens),
        access: Access { anonymous: true, deflate: true, origins: Origins::Any, ..Access::closed("/ws") },
        utf8: |bytes| std::str::from_utf8(bytes).is_ok(),
    };
    Shard::new(options, 1_000)
}

/// A turn with ideal sockets; how many bytes they took.
fn turn(shard: &mut Shard) -> usize {
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
                let len = bytes.len();
                written += len;
                shard.handle(Input::Wrote { conn, bytes: len, all: true });
            }
        }
        if !shard.has_work() {
            return written;
        }
    }
}

fn command(shard: &mut Shard, conn: ConnId, json: &str) {
    let mut frame = Vec::new();
    write_client_header(&mut frame, Opcode::Text, json.len(), [0; 4]);
    frame.extend_from_slice(json.as_bytes());
    shard.handle(Input::Received { conn, bytes: &mut frame });
    turn(shard);
}

/// Heap that a shard holds with `count` clients that offer `offer`: all subscribed, before and behind a broadcast.
fn held_bytes(count: u32, offer: &str) -> [i64; 2] {
    let held = || thread_allocated_bytes() as i64 - thread_freed_bytes() as i64;
    let mut shard = shard();
    // Address space for all connections that there may be is part of the shard.
    let before = held();
    let mut first = None;
    for _ in 0..count {
        let conn = shard.accepted(Accepted { port: Port::Client, peer: None }).expect("room");
        let mut request = format!(
            "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{offer}\r\n"
        );
        // Safe as bytes: an HTTP head is ASCII.
        shard.handle(Input::Received { conn, bytes: &mut std::mem::take(&mut request).into_bytes() });
        turn(&mut shard);
        command(&mut shard, conn, r#"{"id":1,"connect":{}}"#);
        command(&mut shard, conn, r#"{"id":2,"subscribe":{"channel":"c"}}"#);
        first.get_or_insert(conn);
    }
    assert_eq!(shard.metrics().get(Metric::SubscriptionsOpen), u64::from(count));
    assert_eq!(shard.metrics().get(Metric::UpgradesDeflate), if offer.is_empty() { 0 } else { u64::from(count) });
    let idle = held() - before;

    let conn = first.expect("a client");
    let payload = r#"{"key":"value","number":123456},"#.repeat(32);
    let publish = format!(r#"{{"id":3,"publish":{{"channel":"c","data":[{}]}}}}"#, payload.trim_end_matches(','));
    let mut frame = Vec::new();
    write_client_header(&mut frame, Opcode::Text, publish.len(), [0; 4]);
    frame.extend_from_slice(publish.as_bytes());
    shard.handle(Input::Received { conn, bytes: &mut frame });
    let each = turn(&mut shard) / count as usize;
    assert_eq!(each < 512, !offer.is_empty(), "{each} bytes to each: compressed or not, as was agreed");
    drop(frame);
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
