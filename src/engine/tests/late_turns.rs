//! Pings of a shard that itself came late.
//!
//! Set-up: one shard alone, one client that reads and never answers. Claim: a client has the whole pong timeout of a shard
//! that is on time; time in which the shard had no turn is not held against it.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use ringway_engine::limits::{Limits, TICK_MS};
use ringway_engine::metrics::Metric;
use ringway_engine::namespace::*;
use ringway_engine::options::*;
use ringway_engine::outbox::WriteBatch;
use ringway_engine::seam::*;
use ringway_engine::shard::Shard;
use ringway_engine::tokens::NoTokens;
use ringway_wire::frame::{Opcode, decode_header, write_client_header};

const PING_MS: u64 = 5_000;
const PONG_MS: u64 = 2_000;

struct World {
    shard: Shard,
    now_ms: u64,
}

impl World {
    /// A client that was admitted and waits for its first ping.
    fn new() -> World {
        let options = Options {
            core: ringway_engine::ids::CoreId(0),
            shards: 1,
            seed: 1,
            boot: 77,
            limits: Limits { ping_interval_ms: PING_MS as u32, pong_timeout_ms: PONG_MS as u32, ..Limits::DEFAULT },
            namespaces: Namespaces::new(Namespace::closed(""), vec![]).unwrap().into(),
            tokens: std::sync::Arc::new(NoTokens),
            access: Access { anonymous: true, origins: Origins::Any, ..Access::closed("/ws") },
            fleet: None,
            utf8: |bytes| std::str::from_utf8(bytes).is_ok(),
        };
        let mut shard = Shard::new(options, 1_000);
        let conn = shard.accepted(Accepted { port: Port::Client, peer: None }).unwrap();
        let mut upgrade = b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            .to_vec();
        shard.handle(Input::Received { conn, bytes: &mut upgrade });
        let command = br#"{"id":1,"connect":{}}"#;
        let mut bytes = Vec::new();
        write_client_header(&mut bytes, Opcode::Text, command.len(), [0; 4]);
        bytes.extend_from_slice(command);
        shard.handle(Input::Received { conn, bytes: &mut bytes });
        let mut world = World { shard, now_ms: 1_000 };
        world.opcodes_after_upgrade();
        world
    }

    fn turn(&mut self) -> Vec<u8> {
        self.shard.end_turn();
        let (mut read, mut batch) = (Vec::new(), WriteBatch::default());
        loop {
            self.shard.collect_writes(&mut batch);
            let Some((conn, bytes)) = batch.get(0) else { return read };
            let count = bytes.len();
            read.extend_from_slice(bytes);
            self.shard.handle(Input::Wrote { conn, bytes: count, all: true });
        }
    }

    fn opcodes_after_upgrade(&mut self) {
        let read = self.turn();
        assert!(read.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&read));
    }

    /// Opcodes of what the client reads in a turn that comes `ms` behind the one before.
    fn next_turn(&mut self, ms: u64) -> Vec<Opcode> {
        self.now_ms += ms;
        self.shard.begin_turn(self.now_ms);
        let read = self.turn();
        let (mut rest, mut opcodes) = (&read[..], Vec::new());
        while let Some(header) = decode_header(rest).unwrap() {
            opcodes.push(header.opcode);
            rest = &rest[header.header_len + header.payload_len as usize..];
        }
        opcodes
    }

    /// Turns at every tick until the client reads something; how long that took.
    fn ticks_until(&mut self, opcode: Opcode) -> u64 {
        let began_ms = self.now_ms;
        loop {
            let read = self.next_turn(TICK_MS);
            assert!(self.now_ms < began_ms + 3 * (PING_MS + PONG_MS), "no {opcode:?}");
            if !read.is_empty() {
                assert_eq!(read, [opcode]);
                return self.now_ms - began_ms;
            }
        }
    }
}

#[test]
fn a_silent_client_is_closed_when_the_shard_was_there_all_the_time() {
    let mut world = World::new();
    world.ticks_until(Opcode::Text);
    let waited_ms = world.ticks_until(Opcode::Close);
    assert!((PONG_MS..=PONG_MS + 2 * TICK_MS).contains(&waited_ms), "{waited_ms}");
}

#[test]
fn a_silent_client_gets_its_time_again_from_a_shard_that_was_late() {
    let mut world = World::new();
    world.ticks_until(Opcode::Text);
    assert!(world.next_turn(3 * PONG_MS).is_empty(), "its answer may lie unread");
    let waited_ms = world.ticks_until(Opcode::Close);
    assert!((PONG_MS..=2 * PONG_MS + 2 * TICK_MS).contains(&waited_ms), "{waited_ms}");
    let late = world.shard.metrics().get(Metric::TurnsLate);
    assert_eq!(late, 1);
}
