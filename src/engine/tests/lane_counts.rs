//! How many messages cross between shards for a publication, counted exactly.
//!
//! Set-up: N shards with ideal lanes and sockets; a backend on shard 0; for each channel, clients on chosen shards. Claim:
//! publishes that come together are one message per other owner, a publication is one message per other shard with interest,
//! and an owner answers each message of publishes with one; nothing else is said.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeSet;

use ringway_engine::ids::{ConnId, CoreId};
use ringway_engine::lane_message::LaneKind;
use ringway_engine::limits::Limits;
use ringway_engine::metrics::Metric;
use ringway_engine::namespace::{Allow, Namespace, Namespaces};
use ringway_engine::options::{Access, Options, Origins};
use ringway_engine::outbox::WriteBatch;
use ringway_engine::route;
use ringway_engine::seam::{Accepted, Input, Port};
use ringway_engine::shard::Shard;
use ringway_engine::tokens::NoTokens;
use ringway_wire::frame::{Opcode, write_client_header};
use ringway_wire::ingest::{
    BatchWriter, Hello, PayloadKind, Publish, SERVER_FRAME_BYTES_MAX, ServerFrame, VERSION, decode_server, frame_len,
    write_hello, write_publish,
};

/// How the backend's publishes reach it.
#[derive(Clone, Copy, Debug)]
enum Sent {
    /// In one frame.
    Batch,
    /// One by one, all read at once.
    Frames,
    /// One by one, each read alone.
    Alone,
}

struct Node {
    shards: Vec<Shard>,
    backend: ConnId,
    /// What the backend has been sent.
    answers: Vec<u8>,
}

impl Node {
    fn new(count: u16) -> Node {
        let rules =
            Namespace { subscribe: Allow::Anyone, history_size: 10, history_ttl_ms: 60_000, ..Namespace::closed("") };
        let shard = |core| {
            let access = Access { anonymous: true, origins: Origins::Any, ..Access::closed("/ws") };
            let options = Options {
                core: CoreId(core),
                shards: count,
                seed: 1,
                boot: 77,
                limits: Limits { ping_interval_ms: 0, ..Limits::DEFAULT },
                namespaces: Namespaces::new(rules.clone(), vec![]).unwrap().into(),
                tokens: std::sync::Arc::new(NoTokens),
                access: Access { ingest_tokens: vec![b"t".as_slice().into()], ..access },
                fleet: None,
                utf8: |bytes| std::str::from_utf8(bytes).is_ok(),
            };
            Shard::new(options, 1_000)
        };
        let mut shards: Vec<_> = (0..count).map(shard).collect();
        let backend = shards[0].accepted(Accepted { port: Port::Ingest, peer: None }).unwrap();
        let mut node = Node { shards, backend, answers: Vec::new() };
        let mut hello = Vec::new();
        let (features, instance) = (0, [1; 16]);
        let (version_min, version_max) = (VERSION, VERSION);
        write_hello(&mut hello, &Hello { version_min, version_max, features, instance, token: b"t", name: "test" });
        node.shards[0].handle(Input::Received { conn: backend, bytes: &mut hello });
        node.settle();
        node.answers.clear();
        node
    }

    fn subscribe(&mut self, shard: u16, channel: &str) {
        let shard = &mut self.shards[shard as usize];
        let conn = shard.accepted(Accepted { port: Port::Client, peer: None }).unwrap();
        let mut bytes = b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            .to_vec();
        let subscribe = format!("{{\"id\":2,\"subscribe\":{{\"channel\":\"{channel}\"}}}}");
        for text in ["{\"id\":1,\"connect\":{}}", &subscribe] {
            write_client_header(&mut bytes, Opcode::Text, text.len(), [0; 4]);
            bytes.extend_from_slice(text.as_bytes());
        }
        shard.handle(Input::Received { conn, bytes: &mut bytes });
        self.settle();
    }

    /// Turns of all shards until nobody has anything to do or to say.
    fn settle(&mut self) {
        let mut batch = WriteBatch::default();
        loop {
            let mut moved = false;
            for core in 0..self.shards.len() {
                let shard = &mut self.shards[core];
                shard.end_turn();
                loop {
                    shard.collect_writes(&mut batch);
                    if batch.is_empty() {
                        break;
                    }
                    for index in 0..batch.len() {
                        let (conn, bytes) = batch.get(index).unwrap();
                        if core == 0 && conn == self.backend {
                            self.answers.extend_from_slice(bytes);
                        }
                        let bytes = bytes.len();
                        shard.handle(Input::Wrote { conn, bytes, all: true });
                    }
                }
                let mut targets = Vec::new();
                shard.lanes().take_waiting(&mut targets);
                for to in targets {
                    while let Some(batch) = self.shards[core].lanes().take_batch(to) {
                        moved = true;
                        for message in batch.messages {
                            self.shards[to.0 as usize].handle(Input::Lane { message });
                        }
                    }
                }
                moved |= self.shards[core].has_work();
            }
            if !moved {
                return;
            }
        }
    }

    fn receives(&mut self, bytes: &mut [u8]) {
        self.shards[0].handle(Input::Received { conn: self.backend, bytes });
    }

    fn publish(&mut self, channels: &[String], sent: Sent) {
        let publish = |index: usize| Publish {
            seq: index as u64 + 1,
            kind: PayloadKind::Json,
            idempotency_key: &[],
            channel: &channels[index],
            payload: b"1",
        };
        let mut bytes = Vec::new();
        if matches!(sent, Sent::Batch) {
            let mut writer = BatchWriter::new(&mut bytes, 1);
            (0..channels.len()).for_each(|index| writer.push(&publish(index)).unwrap());
            writer.finish();
        } else {
            for index in 0..channels.len() {
                write_publish(&mut bytes, &publish(index)).unwrap();
                if matches!(sent, Sent::Alone) {
                    self.receives(&mut bytes);
                    self.settle();
                    bytes.clear();
                }
            }
        }
        self.receives(&mut bytes);
        self.settle();
    }

    /// Numbers acknowledged since the last call, in the order in which they came.
    fn acknowledged(&mut self) -> Vec<u64> {
        let (mut found, mut rest) = (Vec::new(), &self.answers[..]);
        while let Some(length) = frame_len(rest, SERVER_FRAME_BYTES_MAX).unwrap() {
            match decode_server(&rest[..length]).unwrap() {
                ServerFrame::Acks(acks) => found.extend(acks.map(|ack| ack.unwrap().seq)),
                other => panic!("{other:?}"),
            }
            rest = &rest[length..];
        }
        self.answers.clear();
        found
    }

    /// Messages, and publishes, publications or answers in them, said by all shards since the start.
    fn said(&self, kind: LaneKind) -> (u64, u64) {
        let said = self.shards.iter().map(|shard| shard.lanes_said(kind));
        said.fold((0, 0), |sum, said| (sum.0 + said.messages, sum.1 + said.carried))
    }

    fn deliveries(&mut self) -> u64 {
        self.shards.iter_mut().map(|shard| shard.metrics().get(Metric::Deliveries)).sum()
    }
}

/// `per_channel` publications to each of 40 channels, each with a client on the first `interested` shards from its number on.
fn counted(shards: u16, interested: u16, per_channel: usize, sent: Sent) {
    const CHANNELS: usize = 40;
    let context = format!("{shards} shards, {interested} interested, {per_channel} each, {sent:?}");
    let mut node = Node::new(shards);
    let owner = |channel: &str| route::owner(route::bucket(channel), shards).0;
    let interest = |number: usize| (0..interested).map(move |step| (number as u16 + step) % shards);
    for number in 0..CHANNELS {
        interest(number).for_each(|shard| node.subscribe(shard, &format!("c{number}")));
    }
    let kinds = [LaneKind::Publish, LaneKind::Deliver, LaneKind::Ack, LaneKind::Other];
    let before = kinds.map(|kind| node.said(kind));
    let channels: Vec<_> = (0..CHANNELS * per_channel).map(|index| format!("c{}", index % CHANNELS)).collect();
    node.publish(&channels, sent);
    let grown = |node: &Node, index: usize| {
        let ((messages, carried), before) = (node.said(kinds[index]), before[index]);
        (messages - before.0, carried - before.1)
    };
    let elsewhere = channels.iter().filter(|channel| owner(channel) != 0).count() as u64;
    let owners: BTreeSet<_> = channels.iter().map(|channel| owner(channel)).filter(|owner| *owner != 0).collect();
    let runs = if matches!(sent, Sent::Alone) { elsewhere } else { owners.len() as u64 };
    assert_eq!(grown(&node, 0), (runs, elsewhere), "publishes: {context}");
    let others = (0..CHANNELS).map(|number| {
        let owner = owner(&format!("c{number}"));
        interest(number).filter(|shard| *shard != owner).count()
    });
    let deliver = (others.sum::<usize>() * per_channel) as u64;
    assert_eq!(grown(&node, 1), (deliver, deliver), "deliveries: {context}");
    assert_eq!(grown(&node, 2), (runs, elsewhere), "answers: {context}");
    assert_eq!(grown(&node, 3), (0, 0), "nothing else: {context}");
    assert_eq!(node.deliveries(), channels.len() as u64 * u64::from(interested), "{context}");
    let mut acknowledged = node.acknowledged();
    for channel in 0..CHANNELS as u64 {
        let of_channel = acknowledged.iter().filter(|seq| (**seq - 1) % CHANNELS as u64 == channel);
        assert!(of_channel.is_sorted(), "in the order of the channel: {context}");
    }
    acknowledged.sort_unstable();
    assert!(acknowledged.iter().copied().eq(1..=channels.len() as u64), "each once: {context}");
}

#[test]
fn a_publication_crosses_once_to_its_owner_and_once_to_each_shard_with_interest() {
    for shards in [1, 2, 3, 8] {
        for interested in [0, 1, 2, 8].into_iter().filter(|interested| *interested <= shards) {
            for (per_channel, sent) in [(1, Sent::Alone), (1, Sent::Frames), (1, Sent::Batch), (6, Sent::Batch)] {
                counted(shards, interested, per_channel, sent);
            }
        }
    }
}

#[test]
fn a_publish_behind_a_call_stays_behind_it() {
    use ringway_wire::ingest::{Call, CallBody, CallResult, FEATURE_CALLS, write_call};
    for shards in [1, 2] {
        let mut node = Node::new(shards);
        let conn = node.shards[0].accepted(Accepted { port: Port::Ingest, peer: None }).unwrap();
        node.backend = conn;
        let mut bytes = Vec::new();
        let (version_min, version_max, instance) = (VERSION, VERSION, [2; 16]);
        let hello = Hello { version_min, version_max, features: FEATURE_CALLS, instance, token: b"t", name: "test" };
        write_hello(&mut bytes, &hello);
        node.receives(&mut bytes);
        node.settle();
        node.answers.clear();
        bytes.clear();
        // What the first call sees is one publication, what the second sees two, whoever owns the channel.
        for number in 0..2u32 {
            let publish = Publish {
                seq: u64::from(number),
                kind: PayloadKind::Json,
                idempotency_key: &[],
                channel: "c0",
                payload: b"1",
            };
            write_publish(&mut bytes, &publish).unwrap();
            let what = CallBody::History { channel: "c0", limit: -1, since: None, reverse: false };
            write_call(&mut bytes, &Call { call: number + 1, what }, 1 << 20).unwrap();
        }
        node.receives(&mut bytes);
        node.settle();
        let (mut tops, mut rest) = (Vec::new(), &node.answers[..]);
        while let Some(length) = frame_len(rest, SERVER_FRAME_BYTES_MAX).unwrap() {
            if let ServerFrame::CallAnswer(answer) = decode_server(&rest[..length]).unwrap()
                && let CallResult::History { offset, publications, .. } = answer.result
            {
                tops.push((answer.call, offset, publications.remaining()));
            }
            rest = &rest[length..];
        }
        assert_eq!(tops, [(1, 1, 1), (2, 2, 2)], "{shards} shards");
    }
}
