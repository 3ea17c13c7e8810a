//! Many subscribes of one shard to one channel.
//!
//! Set-up: one shard of two, whose other shard is this test and owns the channel. Claim: behind the owner's first answer it
//! is asked only for what it alone knows, and whoever was granted without it gets every publication.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeMap;
use std::sync::Arc;

use ringway_engine::ids::*;
use ringway_engine::lane_message::*;
use ringway_engine::limits::Limits;
use ringway_engine::namespace::*;
use ringway_engine::options::*;
use ringway_engine::outbox::WriteBatch;
use ringway_engine::publication::{Draft, Publication, Scratch};
use ringway_engine::route;
use ringway_engine::seam::*;
use ringway_engine::shard::Shard;
use ringway_engine::tokens::NoTokens;
use ringway_engine::variant::{Variant, VariantSet};
use ringway_wire::centrifuge::Form;
use ringway_wire::frame::{Opcode, decode_header, write_client_header};

struct World {
    shard: Shard,
    channel: String,
}

impl World {
    fn new(rules: Namespace) -> World {
        let rules = Namespace { subscribe: Allow::Anyone, ..rules };
        let options = Options {
            core: CoreId(0),
            shards: 2,
            seed: 1,
            boot: 77,
            limits: Limits::DEFAULT,
            namespaces: Namespaces::new(rules, vec![]).unwrap().into(),
            tokens: Arc::new(NoTokens),
            access: Access { anonymous: true, origins: Origins::Any, ..Access::closed("/ws") },
            fleet: None,
            utf8: |bytes| std::str::from_utf8(bytes).is_ok(),
        };
        let foreign = |name: &String| route::owner(route::bucket(name), 2) == CoreId(1);
        let channel = (0..).map(|i| format!("c{i}")).find(foreign).unwrap();
        World { shard: Shard::new(options, 1_000), channel }
    }

    fn client(&mut self) -> ConnId {
        let conn = self.shard.accepted(Accepted { port: Port::Client, peer: None }).unwrap();
        let mut upgrade = b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            .to_vec();
        self.shard.handle(Input::Received { conn, bytes: &mut upgrade });
        self.says(conn, r#"{"id":1,"connect":{}}"#);
        self.written();
        self.told();
        conn
    }

    fn says(&mut self, conn: ConnId, commands: &str) {
        let mut bytes = Vec::new();
        write_client_header(&mut bytes, Opcode::Text, commands.len(), [0; 4]);
        bytes.extend_from_slice(commands.as_bytes());
        self.shard.handle(Input::Received { conn, bytes: &mut bytes });
    }

    fn subscribes(&mut self, conn: ConnId) -> Vec<SubscribeRequest> {
        self.says(conn, &format!(r#"{{"id":2,"subscribe":{{"channel":"{}"}}}}"#, self.channel));
        self.shard.end_turn();
        self.told()
            .into_iter()
            .filter_map(|message| match message {
                LaneMessage::Subscribe(request) => Some(*request),
                _ => None,
            })
            .collect()
    }

    fn told(&mut self) -> Vec<LaneMessage> {
        let mut told = Vec::new();
        while let Some(batch) = self.shard.lanes().take_batch(CoreId(1)) {
            told.extend(batch.messages);
        }
        told
    }

    fn grant(&mut self, request: &SubscribeRequest) {
        let top = Position { offset: 0, epoch: Epoch { boot: 9, creation: 1 } };
        let result = Ok(Subscribed { top, recovery: None, number: 5 });
        let answer = SubscribeAnswer { conn: request.conn, command: request.command, local: request.local, result };
        self.shard.handle(Input::Lane { message: LaneMessage::SubscribeAnswer(Box::new(answer)) });
    }

    fn publish(&mut self, local: LocalChannelId) {
        let variants = VariantSet::NONE.with(Variant::plain(Form::Json));
        let draft = Draft { variants, ..Draft::new(&self.channel, b"1") };
        let publication = Arc::new(Publication::encode(draft, &mut Scratch::default()));
        self.shard.handle(Input::Lane { message: LaneMessage::Deliver { local, publication } });
    }

    /// Messages that each client reads in one turn.
    fn written(&mut self) -> BTreeMap<u32, Vec<String>> {
        self.shard.end_turn();
        let (mut read, mut batch) = (BTreeMap::<u32, Vec<u8>>::new(), WriteBatch::default());
        loop {
            self.shard.collect_writes(&mut batch);
            if batch.get(0).is_none() {
                break;
            }
            for index in 0.. {
                let Some((conn, bytes)) = batch.get(index) else { break };
                let count = bytes.len();
                read.entry(conn.slot).or_default().extend_from_slice(bytes);
                self.shard.handle(Input::Wrote { conn, bytes: count, all: true });
            }
        }
        read.into_iter().map(|(slot, bytes)| (slot, messages(&bytes))).collect()
    }
}

fn messages(mut rest: &[u8]) -> Vec<String> {
    let mut lines = Vec::new();
    while let Ok(Some(header)) = decode_header(rest) {
        let end = header.header_len + header.payload_len as usize;
        lines.push(String::from_utf8_lossy(&rest[header.header_len..end]).into_owned());
        rest = &rest[end..];
    }
    lines
}

#[test]
fn the_owner_is_asked_once_and_everybody_gets_every_publication() {
    let mut world = World::new(Namespace::closed(""));
    let clients: Vec<ConnId> = (0..5).map(|_| world.client()).collect();
    let first = world.subscribes(clients[0]);
    let second = world.subscribes(clients[1]);
    assert_eq!((first.len(), second.len()), (1, 1), "before the first answer nothing is known");
    world.grant(&first[0]);
    for later in &clients[2..] {
        assert!(world.subscribes(*later).is_empty(), "the answer is known");
    }
    world.publish(first[0].local);
    world.grant(&second[0]);
    world.publish(first[0].local);
    let read = world.written();
    for (index, conn) in clients.iter().enumerate() {
        let publications = read[&conn.slot].iter().filter(|message| message.contains("\"pub\"")).count();
        assert_eq!(publications, if index == 1 { 1 } else { 2 }, "client {index}: {:?}", read[&conn.slot]);
        assert!(read[&conn.slot][0].contains(r#""id":2,"subscribe""#), "the answer comes first");
    }
}

#[test]
fn when_the_last_one_has_left_the_owner_is_asked_again() {
    let mut world = World::new(Namespace::closed(""));
    let (one, other) = (world.client(), world.client());
    let request = world.subscribes(one).pop().unwrap();
    world.grant(&request);
    assert!(world.subscribes(other).is_empty());
    world.written();
    let unsubscribe = format!(r#"{{"id":3,"unsubscribe":{{"channel":"{}"}}}}"#, world.channel);
    world.says(one, &unsubscribe);
    assert!(world.told().is_empty(), "there is still somebody");
    world.says(other, &unsubscribe);
    assert!(matches!(world.told()[..], [LaneMessage::Leave(_)]), "the owner hears of the last");
    world.written();
    assert_eq!(world.subscribes(one).len(), 1);
}

#[test]
fn what_the_owner_alone_knows_is_asked_of_it() {
    let kept = Namespace { history_size: 8, history_ttl_ms: 60_000, recovery: true, ..Namespace::closed("") };
    let present = Namespace { presence: true, ..Namespace::closed("") };
    for rules in [kept, present] {
        let mut world = World::new(rules);
        let (one, other) = (world.client(), world.client());
        let request = world.subscribes(one).pop().unwrap();
        world.grant(&request);
        assert_eq!(world.subscribes(other).len(), 1, "positions and members are the owner's");
    }
}
