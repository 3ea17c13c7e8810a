//! Fuzz body: a whole shard fed by an untrusted client or backend, in chunks, with sockets that take only a part.
//!
//! In: `[mode, seed of cuts, bytes...]`. Mode bits: 0 backend instead of client; 1 a valid upgrade and connect (or hello)
//! comes first; 2 each chunk goes out as one masked frame, text or binary by bit 3, instead of raw; 4 Protobuf; 5 compression
//! is allowed and asked for; 6 those frames say that they are compressed, and are.
//! Claim: no input panics; whatever is sent, the connection can be ended, and then its slot and all its frames are free.

use ringway_engine::ids::{ConnId, CoreId};
use ringway_engine::limits::Limits;
use ringway_engine::metrics::Metric;
use ringway_engine::namespace::{Allow, Namespace, Namespaces};
use ringway_engine::options::{Access, Options, Origins};
use ringway_engine::outbox::WriteBatch;
use ringway_engine::seam::{Accepted, Action, Input, Port};
use ringway_engine::shard::Shard;
use ringway_engine::tokens::NoTokens;
use ringway_wire::deflate::Compressor;
use ringway_wire::frame::{Opcode, write_client_header};
use ringway_wire::ingest::{FEATURES, Hello, write_hello};

/// Takes one input.
pub fn run(data: &[u8]) {
    let [mode, cuts, bytes @ ..] = data else { return };
    let flag = |bit: u8| mode & 1 << bit != 0;
    let (backend, greeted, framed, text, protobuf) = (flag(0), flag(1), flag(2), flag(3), flag(4));
    let (deflate, compressed) = (flag(5), flag(6));
    let mut shard = shard(deflate);
    let mut compressor = Compressor::new();
    let port = if backend { Port::Ingest } else { Port::Client };
    let Some(conn) = shard.accepted(Accepted { port, peer: None }) else { return };
    let mut now_ms = 1_000;
    if greeted {
        feed(&mut shard, conn, &greeting(backend, protobuf, deflate));
    }
    let mut cuts = u64::from(*cuts) | 1;
    let mut rest = bytes;
    while !rest.is_empty() {
        cuts = cuts.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (chunk, behind) = rest.split_at((cuts >> 33) as usize % 200 % rest.len() + 1);
        rest = behind;
        if framed && !backend {
            let (mut frame, mut payload) = (Vec::new(), chunk.to_vec());
            if compressed {
                payload.clear();
                compressor.compress(chunk, &mut payload);
            }
            write_client_header(&mut frame, if text { Opcode::Text } else { Opcode::Binary }, payload.len(), [0; 4]);
            frame[0] |= if compressed { 0x40 } else { 0 };
            frame.extend_from_slice(&payload);
            feed(&mut shard, conn, &frame);
        } else {
            feed(&mut shard, conn, chunk);
        }
        now_ms += cuts >> 50;
        turn(&mut shard, now_ms, (cuts >> 40) as usize);
    }
    // However it ended: everything can be written, the peer goes, and nothing stays behind.
    shard.handle(Input::Writable { conn });
    turn(&mut shard, now_ms, usize::MAX);
    shard.handle(Input::SocketFailed { conn });
    turn(&mut shard, now_ms + 1_000, usize::MAX);
    shard.handle(Input::Closed { conn });
    turn(&mut shard, now_ms + 2_000, usize::MAX);
    assert_eq!((shard.connections(), shard.outbox_frames()), (0, 0), "something stayed behind");
    let metrics = shard.metrics();
    for gauge in
        [Metric::ConnectionsOpen, Metric::IngestConnectionsOpen, Metric::SubscriptionsOpen, Metric::ChannelsFollowed]
    {
        assert_eq!(metrics.get(gauge), 0, "{gauge:?}");
    }
}

fn feed(shard: &mut Shard, conn: ConnId, bytes: &[u8]) {
    if shard.wants_read(conn) && !shard.is_pressed() {
        shard.handle(Input::Received { conn, bytes: &mut bytes.to_vec() });
    }
}

/// A turn whose sockets take at most `room` bytes of each write.
fn turn(shard: &mut Shard, now_ms: u64, room: usize) {
    shard.begin_turn(now_ms);
    let mut batch = WriteBatch::default();
    let mut actions = Vec::new();
    loop {
        shard.end_turn();
        loop {
            shard.collect_writes(&mut batch);
            if batch.is_empty() {
                break;
            }
            for index in 0..batch.len() {
                let Some((conn, bytes)) = batch.get(index) else { break };
                let (len, taken) = (bytes.len(), bytes.len().min(room));
                shard.handle(Input::Wrote { conn, bytes: taken, all: taken == len });
            }
        }
        shard.take_actions(&mut actions);
        assert!(actions.iter().filter(|action| matches!(action, Action::Close { .. })).count() <= 1, "closed twice");
        if !shard.has_work() {
            return;
        }
    }
}

fn shard(deflate: bool) -> Shard {
    let mut namespace = Namespace::closed("");
    namespace.history_size = 10;
    namespace.history_ttl_ms = 1_000_000;
    namespace.recovery = true;
    (namespace.subscribe, namespace.publish) = (Allow::Anyone, Allow::Anyone);
    let Ok(namespaces) = Namespaces::new(namespace, Vec::new()) else { panic!("the namespace is sound") };
    let options = Options {
        core: CoreId(0),
        shards: 1,
        seed: 7,
        boot: 7,
        limits: Limits {
            message_bytes_max: 4096,
            connections_per_shard_max: 16,
            ingest_connections_per_shard_max: 16,
            outbox_bytes_max: 16 * 1024,
            publication_bytes_max: 4096,
            ..Limits::DEFAULT
        },
        namespaces: namespaces.into(),
        tokens: std::sync::Arc::new(NoTokens),
        access: Access {
            echo: true,
            anonymous: true,
            deflate,
            origins: Origins::Any,
            ingest_tokens: vec![(*b"dev").into()],
            ..Access::closed("/ws")
        },
        fleet: None,
        utf8: |bytes| core::str::from_utf8(bytes).is_ok(),
    };
    Shard::new(options, 1_000)
}

fn greeting(backend: bool, protobuf: bool, deflate: bool) -> Vec<u8> {
    let mut out = Vec::new();
    if backend {
        let hello = Hello {
            version_min: 1,
            version_max: 1,
            features: FEATURES,
            instance: [1; 16],
            token: b"dev",
            name: "fuzz",
        };
        write_hello(&mut out, &hello);
        return out;
    }
    out.extend_from_slice(b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n");
    out.extend_from_slice(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n");
    if protobuf {
        out.extend_from_slice(b"Sec-WebSocket-Protocol: centrifuge-protobuf\r\n");
    }
    if deflate {
        out.extend_from_slice(b"Sec-WebSocket-Extensions: permessage-deflate\r\n");
    }
    out.extend_from_slice(b"\r\n");
    // {id: 1, connect: {}} in either form.
    let connect: &[u8] = if protobuf { &[4, 8, 1, 34, 0] } else { br#"{"id":1,"connect":{}}"# };
    write_client_header(&mut out, if protobuf { Opcode::Binary } else { Opcode::Text }, connect.len(), [0; 4]);
    out.extend_from_slice(connect);
    out
}
