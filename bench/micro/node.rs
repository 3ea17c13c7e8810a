//! An engine with connected subscribers and no sockets: what a delivery costs without the kernel.
//!
//! In: how many subscribers, in which wire form. Out: writes collected from the engine, each answered as taken whole, which is
//! what the real loop does when every socket has room. Invariant: every round counts what was written, so that a round
//! that delivers to nobody cannot pass for a fast one.

use ringway_engine::ids::{ConnId, CoreId};
use ringway_engine::limits::Limits;
use ringway_engine::namespace::{Allow, Namespace, Namespaces};
use ringway_engine::options::{Access, Options, Origins};
use ringway_engine::outbox::WriteBatch;
use ringway_engine::seam::{Accepted, Input, Port};
use ringway_engine::shard::Shard;
use ringway_engine::tokens::NoTokens;
use ringway_sys::thread::monotonic_ns;
use ringway_wire::centrifuge::Form;
use ringway_wire::frame::{Opcode, write_client_header};
use ringway_wire::ingest::{Hello, PayloadKind, Publish, VERSION, write_hello, write_publish};

/// The channel of all benches.
pub const CHANNEL: &str = "bench";
/// The token of the backend.
pub const TOKEN: &[u8] = b"bench-token";
/// Publications kept: as `--dev` has it.
pub const HISTORY_SIZE: u32 = 100;

/// Connections that a shard has address space for.
const CONNECTIONS_MAX: u32 = 1_000_000;

/// What a shard of the benches may do: everything, with history, without pings that would come in between.
pub fn options(utf8: fn(&[u8]) -> bool) -> Options {
    let open = Namespace {
        history_size: HISTORY_SIZE,
        history_ttl_ms: 300_000,
        recovery: true,
        subscribe: Allow::Anyone,
        publish: Allow::Anyone,
        ..Namespace::closed("")
    };
    Options {
        core: CoreId(0),
        shards: 1,
        seed: 7,
        boot: 11,
        limits: Limits {
            ping_interval_ms: 0,
            ingest_idle_timeout_ms: 3_600_000,
            connections_per_shard_max: CONNECTIONS_MAX,
            ..Limits::DEFAULT
        },
        namespaces: Namespaces::new(open, Vec::new()).expect("one namespace contradicts nothing").into(),
        tokens: std::sync::Arc::new(NoTokens),
        fleet: None,
        access: Access {
            anonymous: true,
            origins: Origins::Any,
            ingest_tokens: vec![TOKEN.into()],
            ..Access::closed("/connection/websocket")
        },
        utf8,
    }
}

/// What a client says first, all at once: upgrade, connect, subscribe to the channel of all benches.
pub fn client_opening(form: Form) -> Vec<u8> {
    client_opening_to(form, CHANNEL)
}

/// The same for a channel with a name of less than 100 bytes.
pub fn client_opening_to(form: Form, channel: &str) -> Vec<u8> {
    let mut bytes = client_connect(form);
    bytes.extend(client_subscribe(form, channel));
    bytes
}

/// Upgrade and connect.
fn client_connect(form: Form) -> Vec<u8> {
    let protocol = if form == Form::Protobuf { "Sec-WebSocket-Protocol: centrifuge-protobuf\r\n" } else { "" };
    let mut bytes = format!(
        "GET /connection/websocket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{protocol}\r\n"
    )
    .into_bytes();
    match form {
        Form::Json => push_client_frame(&mut bytes, Opcode::Text, b"{\"id\":1,\"connect\":{}}"),
        // Length, id = 1, connect = {}.
        Form::Protobuf => push_client_frame(&mut bytes, Opcode::Binary, &[4, 0x08, 1, 0x22, 0]),
    }
    bytes
}

/// Subscribe.
fn client_subscribe(form: Form, channel: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    match form {
        Form::Json => {
            let subscribe = format!("{{\"id\":2,\"subscribe\":{{\"channel\":\"{channel}\"}}}}");
            push_client_frame(&mut bytes, Opcode::Text, subscribe.as_bytes());
        }
        Form::Protobuf => {
            // Length, id = 2, subscribe = { channel }.
            let name = channel.as_bytes();
            let mut subscribe = vec![name.len() as u8 + 6, 0x08, 2, 0x2A, name.len() as u8 + 2, 0x0A, name.len() as u8];
            subscribe.extend_from_slice(name);
            push_client_frame(&mut bytes, Opcode::Binary, &subscribe);
        }
    }
    bytes
}

/// Appends one frame as a client sends it, masked.
pub fn push_client_frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    let mask = [0x37, 0xFA, 0x21, 0x3D];
    write_client_header(out, opcode, payload.len(), mask);
    let start = out.len();
    out.extend_from_slice(payload);
    ringway_wire::mask::unmask(&mut out[start..], mask);
}

/// A backend's hello.
pub fn backend_hello() -> Vec<u8> {
    let mut bytes = Vec::new();
    let hello = Hello {
        version_min: VERSION,
        version_max: VERSION,
        features: 0,
        instance: [1; 16],
        token: TOKEN,
        name: "bench",
    };
    write_hello(&mut bytes, &hello);
    bytes
}

/// A JSON payload of exactly so many bytes, at least 2.
pub fn json_payload(bytes: usize) -> Vec<u8> {
    let mut payload = vec![b'x'; bytes];
    (payload[0], payload[bytes - 1]) = (b'"', b'"');
    payload
}

/// Appends a backend's publish of `payload` to the channel.
pub fn push_publish(out: &mut Vec<u8>, seq: u64, payload: &[u8]) {
    let publish = Publish { seq, kind: PayloadKind::Json, idempotency_key: &[], channel: CHANNEL, payload };
    write_publish(out, &publish).expect("it fits an ingest frame");
}

/// What became of one publication, and where its time went (wall clock).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Writes collected, the backend's acknowledgement among them.
    pub writes: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// From the backend's bytes to subscribers with something in their outbox.
    pub fan_out_ns: u64,
    /// Outboxes to batches of writes.
    pub collect_ns: u64,
    /// Telling the engine that each write was taken.
    pub wrote_ns: u64,
}

/// See the file's header.
pub struct Node {
    shard: Shard,
    backend: ConnId,
    batch: WriteBatch,
    publish: Vec<u8>,
    payload: Vec<u8>,
    seq: u64,
}

impl Node {
    /// A node with so many clients on one channel, and one backend.
    pub fn new(subscribers: u32, form: Form, payload_bytes: usize) -> Node {
        Node::with_stride(subscribers, form, payload_bytes, 1)
    }

    /// The same, but clients subscribe in steps of `stride` over the order in which they came, so that neighbours on the
    /// channel's list are as far apart in memory. No divisor of `subscribers` but 1.
    pub fn with_stride(subscribers: u32, form: Form, payload_bytes: usize, stride: u32) -> Node {
        let mut shard = Shard::new(options(|bytes| simdutf8::basic::from_utf8(bytes).is_ok()), 0);
        let (connect, subscribe) = (client_connect(form), client_subscribe(form, CHANNEL));
        let accept = |shard: &mut Shard, port| shard.accepted(Accepted { port, peer: None }).expect("slots are free");
        let mut conns = Vec::new();
        for _ in 0..subscribers {
            let conn = accept(&mut shard, Port::Client);
            shard.handle(Input::Received { conn, bytes: &mut connect.clone() });
            conns.push(conn);
        }
        for turn in 0..u64::from(subscribers) {
            let conn = conns[(turn * u64::from(stride) % u64::from(subscribers)) as usize];
            shard.handle(Input::Received { conn, bytes: &mut subscribe.clone() });
        }
        let backend = accept(&mut shard, Port::Ingest);
        shard.handle(Input::Received { conn: backend, bytes: &mut backend_hello() });
        let mut node = Node {
            shard,
            backend,
            batch: WriteBatch::default(),
            publish: Vec::new(),
            payload: json_payload(payload_bytes),
            seq: 0,
        };
        let opened = node.settle(&mut Round::default());
        assert!(opened >= u64::from(subscribers), "{opened} of {subscribers} clients were answered");
        node.shard.take_actions(&mut Vec::new());
        node
    }

    /// The engine, for metrics.
    pub fn shard(&mut self) -> &mut Shard {
        &mut self.shard
    }

    /// One publication from the backend's bytes to the last write, as turns of the loop.
    pub fn round(&mut self) -> Round {
        self.publish.clear();
        self.seq += 1;
        push_publish(&mut self.publish, self.seq, &self.payload);
        let mut round = Round::default();
        let start = monotonic_ns();
        self.shard.handle(Input::Received { conn: self.backend, bytes: &mut self.publish });
        round.fan_out_ns = monotonic_ns() - start;
        self.settle(&mut round);
        round
    }

    /// Turns until nothing is left to do; returns how many writes were made.
    fn settle(&mut self, round: &mut Round) -> u64 {
        loop {
            let start = monotonic_ns();
            self.shard.end_turn();
            round.fan_out_ns += monotonic_ns() - start;
            while self.write_batch(round) {}
            if !self.shard.has_work() {
                return round.writes;
            }
        }
    }

    fn write_batch(&mut self, round: &mut Round) -> bool {
        let start = monotonic_ns();
        self.shard.collect_writes(&mut self.batch);
        let collected = monotonic_ns();
        round.bytes += self.batch.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
        self.shard.wrote_whole(&self.batch, 0..self.batch.len());
        round.writes += self.batch.len() as u64;
        round.collect_ns += collected - start;
        round.wrote_ns += monotonic_ns() - collected;
        !self.batch.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringway_engine::metrics::Metric;

    #[test]
    fn every_subscriber_gets_every_publication_in_its_form() {
        for form in Form::ALL {
            let mut node = Node::new(300, form, 128);
            let round = node.round();
            assert_eq!(round.writes, 301, "the clients and the backend's acknowledgement");
            assert!(round.bytes > 300 * 128);
            assert_eq!(node.shard().metrics().get(Metric::Deliveries), 300);
        }
    }
}
