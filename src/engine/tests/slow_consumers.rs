//! Clients that read slower than their messages come, under each policy.
//!
//! Set-up: one shard, real bytes of model clients, a socket that takes nothing until it is told to. Claim of each test:
//! its name.
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

const OUTBOX_BYTES_MAX: u32 = 16 * 1024;
/// Bytes of a publication's payload: some sixty fit an outbox.
const PAYLOAD_BYTES: usize = 200;

struct World {
    shard: Shard,
    conn: ConnId,
    read: Vec<u8>,
}

impl World {
    /// A connected client.
    fn new() -> World {
        let namespace = |name: &str, slow_consumer| Namespace {
            subscribe: Allow::Anyone,
            slow_consumer,
            ..Namespace::closed(name)
        };
        let named = vec![namespace("drop", SlowConsumer::DropOldest), namespace("latest", SlowConsumer::Conflate)];
        let namespaces = Namespaces::new(namespace("", SlowConsumer::Disconnect), named).unwrap();
        let options = Options {
            core: CoreId(0),
            shards: 1,
            seed: 1,
            boot: 77,
            limits: Limits {
                outbox_bytes_max: OUTBOX_BYTES_MAX,
                publication_bytes_max: 4096,
                recovery_bytes_max: 8192,
                ..Limits::DEFAULT
            },
            namespaces: namespaces.into(),
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
        let mut world = World { shard, conn, read: Vec::new() };
        world.says(r#"{"id":1,"connect":{}}"#);
        world.turn(usize::MAX);
        world
    }

    fn says(&mut self, command: &str) {
        let mut bytes = Vec::new();
        write_client_header(&mut bytes, Opcode::Text, command.len(), [0; 4]);
        bytes.extend_from_slice(command.as_bytes());
        self.shard.handle(Input::Received { conn: self.conn, bytes: &mut bytes });
    }

    fn subscribe(&mut self, channels: &[&str]) {
        for (i, channel) in channels.iter().enumerate() {
            self.says(&format!(r#"{{"id":{},"subscribe":{{"channel":"{channel}"}}}}"#, i + 2));
        }
        self.turn(usize::MAX);
        self.read.clear();
    }

    /// Publishes `<channel/number>`.
    fn publish(&mut self, channel: &str, number: u32) {
        let payload = format!("\"<{channel}/{number}>{}\"", "x".repeat(PAYLOAD_BYTES));
        let request = PublishRequest {
            channel: channel.into(),
            payload: payload.into_bytes().into(),
            kind: PayloadKind::Json,
            idempotency_key: Box::default(),
            publisher: None,
            tags: Tags::default(),
            skip_history: false,
            origin: Origin::Control { call: 0 },
            from: CoreId(1),
        };
        self.shard.handle(Input::Lane { message: LaneMessage::Publish(Box::new(request)) });
    }

    /// One turn; the socket takes so many bytes and is full then.
    fn turn(&mut self, mut takes: usize) {
        self.shard.end_turn();
        let mut batch = WriteBatch::default();
        loop {
            self.shard.collect_writes(&mut batch);
            let Some((conn, bytes)) = batch.get(0) else { return };
            let taken = bytes.len().min(takes);
            let all = taken == bytes.len();
            takes -= taken;
            self.read.extend_from_slice(&bytes[..taken]);
            self.shard.handle(Input::Wrote { conn, bytes: taken, all });
        }
    }

    /// The socket takes everything again.
    fn drain(&mut self) {
        self.shard.handle(Input::Writable { conn: self.conn });
        self.turn(usize::MAX);
    }

    /// What the client has read since it subscribed: `channel/number`.
    fn publications(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.read);
        text.split('<').skip(1).filter_map(|part| Some(part.split_once('>')?.0.to_owned())).collect()
    }

    fn count(&mut self, metric: Metric) -> u64 {
        self.shard.metrics().get(metric)
    }
}

fn named(channel: &str, numbers: impl IntoIterator<Item = u32>) -> Vec<String> {
    numbers.into_iter().map(|number| format!("{channel}/{number}")).collect()
}

#[test]
fn drop_oldest_keeps_the_newest_and_the_connection() {
    let mut world = World::new();
    world.subscribe(&["drop:a"]);
    for number in 0..500 {
        world.publish("drop:a", number);
        // The socket takes the beginning of the first.
        world.turn(if number == 0 { 20 } else { 0 });
    }
    world.drain();
    let publications = world.publications();
    let dropped = world.count(Metric::OutboxDroppedOldest) as u32;
    assert!(dropped > 400, "{dropped}");
    assert_eq!(publications[..1], named("drop:a", [0]), "what has begun is finished");
    assert_eq!(publications[1..], named("drop:a", 1 + dropped..500));
    assert!(world.read.len() > OUTBOX_BYTES_MAX as usize * 3 / 4, "no more is dropped than must be");
    assert_eq!(world.count(Metric::OutboxOverflows), 0);
    assert_eq!(world.shard.outbox_frames(), 0);
}

#[test]
fn a_fast_client_loses_nothing() {
    let mut world = World::new();
    world.subscribe(&["drop:a", "latest:a"]);
    for number in 0..500 {
        world.publish("drop:a", number);
        world.publish("latest:a", number);
        world.turn(usize::MAX);
    }
    assert_eq!(world.publications().len(), 1000);
    assert_eq!((world.count(Metric::OutboxDroppedOldest), world.count(Metric::OutboxConflated)), (0, 0));
}

#[test]
fn conflate_keeps_the_newest_of_each_channel() {
    let mut world = World::new();
    let channels = ["latest:a", "latest:b", "latest:c"];
    world.subscribe(&channels);
    for number in 0..500 {
        for channel in channels {
            world.publish(channel, number);
        }
        world.turn(if number == 0 { 20 } else { 0 });
    }
    world.drain();
    let mut publications = world.publications();
    assert_eq!(publications.remove(0), "latest:a/0", "what has begun is finished");
    publications.sort();
    assert_eq!(publications, ["latest:a/499", "latest:b/499", "latest:c/499"]);
    assert_eq!(world.count(Metric::OutboxConflated), 3 * 500 - 4);
    assert_eq!(world.count(Metric::OutboxOverflows), 0);
    assert_eq!(world.shard.outbox_frames(), 0);
}

#[test]
fn a_burst_in_one_turn_counts_as_one_behind_an_older_one() {
    let mut world = World::new();
    world.subscribe(&["latest:a"]);
    world.publish("latest:a", 0);
    world.turn(20);
    for number in 1..10 {
        world.publish("latest:a", number);
    }
    world.turn(0);
    for number in 10..20 {
        world.publish("latest:a", number);
    }
    world.turn(0);
    world.drain();
    assert_eq!(world.publications(), named("latest:a", [0, 19]));
    assert_eq!(world.count(Metric::OutboxConflated), 18);
}

#[test]
fn what_may_be_dropped_makes_room_for_what_may_not() {
    let mut world = World::new();
    world.subscribe(&["drop:a", "a"]);
    for number in 0..20 {
        world.publish("drop:a", number);
        world.publish("a", number);
        world.turn(if number == 0 { 20 } else { 0 });
    }
    for number in 20..50 {
        world.publish("a", number);
        world.turn(0);
    }
    assert_eq!(world.count(Metric::OutboxOverflows), 0);
    world.drain();
    let (ordinary, others): (Vec<_>, Vec<_>) = world.publications().into_iter().partition(|name| name.starts_with('a'));
    assert_eq!(ordinary, named("a", 0..50));
    assert!(others.len() < 20);
    assert_eq!(others.len() as u64 + world.count(Metric::OutboxDroppedOldest), 20);
}

#[test]
fn without_anything_to_drop_the_connection_ends() {
    let mut world = World::new();
    world.subscribe(&["drop:a", "a"]);
    for number in 0..200 {
        world.publish("a", number);
        world.turn(0);
    }
    assert_eq!(world.count(Metric::OutboxOverflows), 1);
}

#[test]
fn a_newer_publication_stays_behind_the_answer_to_its_subscribe() {
    let mut world = World::new();
    world.subscribe(&["latest:a"]);
    world.publish("latest:a", 0);
    world.turn(20);
    world.publish("latest:a", 1);
    world.turn(0);
    world.says(r#"{"id":7,"unsubscribe":{"channel":"latest:a"}}"#);
    world.says(r#"{"id":8,"subscribe":{"channel":"latest:a"}}"#);
    world.turn(0);
    world.publish("latest:a", 2);
    world.turn(0);
    world.drain();
    let text = String::from_utf8_lossy(&world.read).into_owned();
    let answer = text.find("\"id\":8").unwrap();
    assert!(answer < text.find("<latest:a/2>").unwrap());
    assert_eq!(text.matches("<latest:a/2>").count(), 1);
}
