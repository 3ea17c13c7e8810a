//! Events and calls through whole shards.
//!
//! Set-up: two shards joined by lanes that deliver at once, real bytes of clients and backends, sockets that take
//! every write. Claim of each test: its name.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use ringway_wire::frame::{Opcode, write_client_header};
use ringway_wire::ingest::{
    self as wire, Admission, Call, CallAnswer, CallBody, CallResult as CallResultOf, EventKinds, FEATURE_CALLS,
    FEATURE_EVENTS, FEATURES, Hello, IngestError, ListBuf, Overrides, SERVER_FRAME_BYTES_MAX, ServerFrame, TakeEvents,
    VERSION, Verdict,
};

use super::*;
use crate::call::{CallError, ChannelAnswer, ChannelCount, ChannelFact, ChannelsAnswer, UserAnswer, UserOrder};
use crate::ids::{CoreId, Epoch};
use crate::lane_message::{Origin, Position};
use crate::limits::Limits;
use crate::namespace::{Allow, Namespace, Namespaces};
use crate::options::{Access, Options, Origins};
use crate::outbox::WriteBatch;
use crate::past::Past;
use crate::seam::{Accepted, Action, Input, Port};
use crate::tokens::NoTokens;

const LIMITS: Limits = Limits {
    events_pending_per_connection_max: 4,
    event_answer_timeout_ms: 1_000,
    event_deadline_ms: 5_000,
    ingest_calls_in_flight_max: 2,
    ..Limits::DEFAULT
};

fn shard(core: u16) -> Shard {
    let mut namespace = Namespace::closed("");
    namespace.subscribe = Allow::Anyone;
    let access = Access { anonymous: true, origins: Origins::Any, ..Access::closed("/ws") };
    let options = Options {
        core: CoreId(core),
        shards: 2,
        seed: 1,
        boot: 77,
        limits: LIMITS,
        namespaces: Namespaces::new(namespace, vec![]).expect("it is sound").into(),
        tokens: alloc::sync::Arc::new(NoTokens),
        access: Access { ingest_tokens: vec![b"dev".as_slice().into()], node_name: "node-7".into(), ..access },
        fleet: None,
        utf8: |bytes| core::str::from_utf8(bytes).is_ok(),
    };
    Shard::new(options, 1_000)
}

/// Two shards, and what their sockets have taken.
struct Node {
    shards: [Shard; 2],
    now_ms: u64,
    taken: BTreeMap<(usize, u32), Vec<u8>>,
    /// Calls that arrived for owners that this test plays itself.
    calls: Vec<LaneMessage>,
}

impl Node {
    fn new() -> Self {
        Node { shards: [shard(0), shard(1)], now_ms: 1_000, taken: BTreeMap::new(), calls: Vec::new() }
    }

    /// Turns until nothing moves any more.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for from in 0..2 {
                let shard = &mut self.shards[from];
                shard.begin_turn(self.now_ms);
                // Calls to owners are played by the test.
                let mut own = Vec::new();
                while let Some(message) = shard.lanes.pop_own() {
                    own.push(message);
                }
                self.deliver(from, own, &mut moved);
                self.shards[from].end_turn();
                self.write(from);
                let mut targets = Vec::new();
                self.shards[from].lanes().take_waiting(&mut targets);
                for to in targets {
                    while let Some(batch) = self.shards[from].lanes().take_batch(to) {
                        self.deliver(usize::from(to.0), batch.messages, &mut moved);
                    }
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn deliver(&mut self, to: usize, messages: Vec<LaneMessage>, moved: &mut bool) {
        for message in messages {
            *moved = true;
            match message {
                LaneMessage::ChannelCall(_) | LaneMessage::UserCall(_) | LaneMessage::ChannelsCall(_) => {
                    self.calls.push(message);
                }
                message => self.shards[to].handle(Input::Lane { message }),
            }
        }
    }

    fn write(&mut self, core: usize) {
        let mut batch = WriteBatch::default();
        loop {
            self.shards[core].collect_writes(&mut batch);
            if batch.is_empty() {
                return;
            }
            for index in 0..batch.len() {
                let (conn, bytes) = batch.get(index).expect("below its length");
                self.taken.entry((core, conn.slot)).or_default().extend_from_slice(bytes);
                self.shards[core].handle(Input::Wrote { conn, bytes: bytes.len(), all: true });
            }
        }
    }

    fn receive(&mut self, core: usize, conn: ConnId, mut bytes: Vec<u8>) {
        self.shards[core].handle(Input::Received { conn, bytes: &mut bytes });
        self.settle();
    }

    fn client(&mut self, core: usize) -> ConnId {
        let conn = self.shards[core].accepted(Accepted { port: Port::Client, peer: None }).expect("there is room");
        let mut bytes = b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            .to_vec();
        let connect = br#"{"id":1,"connect":{}}"#;
        write_client_header(&mut bytes, Opcode::Text, connect.len(), [0; 4]);
        bytes.extend_from_slice(connect);
        self.receive(core, conn, bytes);
        conn
    }

    /// A backend that takes all events, on the shard `core`.
    fn backend(&mut self, core: usize, instance: u8) -> ConnId {
        let conn = self.shards[core].accepted(Accepted { port: Port::Ingest, peer: None }).expect("there is room");
        let mut bytes = Vec::new();
        let (features, token, name) = (FEATURES | 1 << 20, &b"dev"[..], "test");
        let instance = [instance; 16];
        let hello = Hello { version_min: VERSION, version_max: VERSION, features, instance, token, name };
        wire::write_hello(&mut bytes, &hello);
        wire::write_take_events(&mut bytes, TakeEvents { kinds: EventKinds::ALL, window: 0 });
        self.receive(core, conn, bytes);
        let frames = self.frames(core, conn);
        let Ok(ServerFrame::HelloOk(answer)) = wire::decode_server(&frames[0]) else { panic!("no answer") };
        assert_eq!((answer.features, answer.node), (FEATURE_EVENTS | FEATURE_CALLS, "node-7"));
        // Events may have come right behind it.
        self.taken.insert((core, conn.slot), frames[1..].concat());
        conn
    }

    /// Whole frames that a backend has been sent since the last call.
    fn frames(&mut self, core: usize, conn: ConnId) -> Vec<Vec<u8>> {
        let bytes = self.taken.remove(&(core, conn.slot)).unwrap_or_default();
        let (mut rest, mut frames) = (&bytes[..], Vec::new());
        while let Ok(Some(length)) = wire::frame_len(rest, SERVER_FRAME_BYTES_MAX) {
            frames.push(rest[..length].to_vec());
            rest = &rest[length..];
        }
        assert!(rest.is_empty());
        frames
    }

    /// Events that a backend has been sent since the last call: number, client, what.
    fn events(&mut self, core: usize, conn: ConnId) -> Vec<(u64, String, String)> {
        let frames = self.frames(core, conn);
        let event = |frame: &Vec<u8>| match wire::decode_server(frame) {
            Ok(ServerFrame::Event(event)) => {
                let said = wire::decode_event(&event).expect("it can be read");
                let what = match said.what {
                    Happened::Message { data } | Happened::Rpc { data, .. } => String::from_utf8_lossy(data).into(),
                    other => alloc::format!("{other:?}"),
                };
                (event.event, said.client.to_owned(), what)
            }
            other => panic!("{other:?}"),
        };
        frames.iter().map(event).collect()
    }

    fn answer(&mut self, core: usize, conn: ConnId, event: u64, verdict: &Verdict<'_>) {
        let mut bytes = Vec::new();
        wire::write_event_answer(&mut bytes, event, verdict, 1 << 20).expect("it fits");
        self.receive(core, conn, bytes);
    }

    fn acknowledge(&mut self, core: usize, conn: ConnId, event: u64) {
        let mut bytes = Vec::new();
        wire::write_event_ack(&mut bytes, event);
        self.receive(core, conn, bytes);
    }

    fn tell(&mut self, core: usize, conn: ConnId, data: &str) {
        self.shards[core].tell_backend(conn, &ClientEvent::Message { data: data.as_bytes() });
        self.settle();
    }

    fn ask(&mut self, core: usize, conn: ConnId, ask: u32) -> Result<(), AskError> {
        let result = self.shards[core].ask_backend(conn, ask, &ClientEvent::Rpc { method: "sum", data: b"[1]" });
        self.settle();
        result
    }

    fn count(&mut self, core: usize, metric: Metric) -> u64 {
        self.shards[core].metrics().get(metric)
    }

    fn call(&mut self, conn: ConnId, call: u32, what: CallBody<'_>) {
        let mut bytes = Vec::new();
        wire::write_call(&mut bytes, &Call { call, what }, 1 << 20).expect("it fits");
        self.receive(0, conn, bytes);
    }

    /// The one frame that answers: call and refusal.
    fn refusal(&mut self, conn: ConnId) -> (u32, u16) {
        let frames = self.frames(0, conn);
        assert_eq!(frames.len(), 1);
        match wire::decode_server(&frames[0]) {
            Ok(ServerFrame::CallAnswer(CallAnswer { call, result: CallResultOf::Refused(refusal) })) => {
                (call, refusal.code)
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn events_reach_a_backend_of_another_shard_and_leave_with_their_acknowledgement() {
    let mut node = Node::new();
    let client = node.client(0);
    node.tell(0, client, "before any backend");
    let backend = node.backend(1, 1);
    node.tell(0, client, "behind it");
    let events = node.events(1, backend);
    assert_eq!(events.iter().map(|event| &*event.2).collect::<Vec<_>>(), ["before any backend", "behind it"]);
    assert!(events[0].0 < events[1].0);
    assert_eq!(events[0].1, client_id(77, CoreId(0), client).as_ref());
    assert_eq!(node.count(0, Metric::EventsPending), 2);
    node.acknowledge(1, backend, events[1].0);
    node.acknowledge(1, backend, events[0].0);
    assert_eq!((node.count(0, Metric::EventsPending), node.count(0, Metric::EventsPendingBytes)), (0, 0));
    // Acknowledged twice, or of a shard that is none.
    node.acknowledge(1, backend, events[0].0);
    node.acknowledge(1, backend, u64::MAX);
    assert_eq!((node.count(0, Metric::EventsLate), node.count(1, Metric::EventsLate)), (1, 1));
}

#[test]
fn a_backend_that_ends_leaves_its_events_to_the_next() {
    type End = fn(&mut Node, ConnId);
    let ends: [End; 4] = [
        |node, conn| node.shards[1].handle(Input::PeerFinished { conn }),
        |node, conn| node.shards[1].handle(Input::SocketFailed { conn }),
        |node, conn| node.receive(1, conn, vec![0xff; 5]),
        |node, conn| {
            let mut goodbye = Vec::new();
            wire::write_goodbye(&mut goodbye);
            node.receive(1, conn, goodbye);
        },
    ];
    for end in ends {
        let mut node = Node::new();
        let client = node.client(0);
        let first = node.backend(1, 1);
        node.tell(0, client, "1");
        node.tell(0, client, "2");
        let sent = node.events(1, first);
        assert_eq!(sent.len(), 2);
        end(&mut node, first);
        node.settle();
        assert_eq!((node.count(0, Metric::EventsResent), node.count(0, Metric::EventBackends)), (2, 0));
        let second = node.backend(0, 2);
        assert_eq!(node.events(0, second), sent);
        let mut actions = Vec::new();
        node.shards[1].take_actions(&mut actions);
        assert!(actions.iter().any(|action| matches!(action, Action::Note(Note::EventsTaken { .. }))));
    }
}

#[test]
fn bounds_refuse_and_deadlines_let_go_and_both_are_counted() {
    let mut node = Node::new();
    let (client, other) = (node.client(0), node.client(0));
    assert_eq!(node.ask(0, client, 1), Err(AskError::NoBackend));
    for _ in 0..6 {
        node.tell(0, client, "x");
    }
    node.tell(0, other, "unharmed");
    assert_eq!((node.count(0, Metric::EventsKept), node.count(0, Metric::EventsFullMessage)), (5, 2));
    let mut actions = Vec::new();
    node.shards[0].take_actions(&mut actions);
    assert!(actions.contains(&Action::Note(Note::EventsLost { count: 1 })), "{actions:?}");

    node.now_ms += 5_200;
    node.settle();
    assert_eq!((node.count(0, Metric::EventsExpiredMessage), node.count(0, Metric::EventsPending)), (5, 0));
    node.backend(1, 1);
    assert_eq!(node.ask(0, client, 2), Ok(()));
    for ask in 3..6 {
        assert_eq!(node.ask(0, client, ask), Ok(()));
    }
    assert_eq!(node.ask(0, client, 7), Err(AskError::Busy));
    node.now_ms += 1_200;
    node.settle();
    assert_eq!((node.count(0, Metric::AsksTimedOut), node.count(0, Metric::AsksBusy)), (4, 1));
    assert_eq!(node.count(0, Metric::AsksUnserved), 1);
    // What is too large for a frame is refused at once.
    let huge = vec![b'x'; SERVER_FRAME_BYTES_MAX];
    let rpc = ClientEvent::Rpc { method: "", data: &huge };
    assert_eq!(node.shards[0].ask_backend(client, 8, &rpc), Err(AskError::TooLarge));
}

#[test]
fn answers_must_be_of_their_kind_and_json_where_json_is_read() {
    let mut node = Node::new();
    let client = node.client(0);
    let backend = node.backend(1, 1);
    let (mut answered, mut broken) = (0, 0);
    for (verdict, good) in [
        (Verdict::Rpc { data: b"{\"a\":\n1}" }, true),
        (Verdict::Rpc { data: b"" }, true),
        (Verdict::Error { code: 403, temporary: false, message: "no" }, true),
        (Verdict::Rpc { data: b"{" }, false),
        (Verdict::Rpc { data: &[b'"', 0xff, b'"'] }, false),
        (Verdict::Publish { data: None }, false),
        (Verdict::Connect(Admission::ANONYMOUS), false),
    ] {
        assert_eq!(node.ask(0, client, 1), Ok(()));
        let events = node.events(1, backend);
        node.answer(1, backend, events[0].0, &verdict);
        answered += 1;
        broken += u64::from(!good);
        let counts = (node.count(0, Metric::EventsAnswered), node.count(0, Metric::EventsBroken));
        assert_eq!(counts, (answered, broken), "{verdict:?}");
    }
    assert_eq!(node.count(0, Metric::EventsPending), 0);
    // Newlines would end a JSON client's message.
    let answer = BackendAnswer::Rpc(Ok(b"{\"a\":\n1}".as_slice().into()));
    let checked = node.shards[0].checked_answer(client, EventKind::Rpc, answer);
    assert_eq!(checked, Some(BackendAnswer::Rpc(Ok(b"{\"a\":1}".as_slice().into()))));
}

#[test]
fn an_admission_is_checked_in_every_part() {
    let mut node = Node::new();
    let client = node.client(0);
    let admission = |info: &[u8], data: &[u8], chan_info: &[u8]| {
        let mut subscriptions = ListBuf::new();
        let overrides = Overrides { presence: Some(true), ..Overrides::default() };
        let grant = wire::Grant { info: chan_info, data: b"", expires_in_ms: Some(5), overrides };
        subscriptions.push(&wire::Subscription { channel: "a", grant }).expect("it fits");
        let subscriptions = subscriptions.list();
        let verdict = Verdict::Connect(Admission { user: "ann", info, data, subscriptions, ..Admission::ANONYMOUS });
        Decision::from(&verdict)
    };
    let mut check = |decision| match decision {
        Decision::Allowed(answer) => node.shards[0].checked_answer(client, EventKind::Connect, answer),
        Decision::Denied(_) => None,
    };
    let Some(BackendAnswer::Connect(Ok(claims), data)) = check(admission(b"{}", b"1", b"[\n]")) else { panic!() };
    assert_eq!((&*claims.user, &*claims.info, &*data), ("ann", &b"{}"[..], &b"1"[..]));
    let subscription = &claims.subscriptions[0];
    assert_eq!((&*subscription.channel, &*subscription.info), ("a", &b"[]"[..]));
    assert_eq!((subscription.expires_in_ms, subscription.overrides.presence), (Some(5), Some(true)));
    for broken in [admission(b"{", b"1", b"1"), admission(b"1", b"{", b"1"), admission(b"1", b"1", b"{")] {
        assert_eq!(check(broken), None);
    }
}

#[test]
fn features_that_the_hello_did_not_name_end_the_connection() {
    let mut take = Vec::new();
    wire::write_take_events(&mut take, TakeEvents { kinds: EventKinds::ALL, window: 0 });
    let mut call = Vec::new();
    let what = CallBody::Presence { channel: "a" };
    wire::write_call(&mut call, &Call { call: 1, what }, 1 << 20).expect("it fits");
    for frame in [take, call] {
        let mut node = Node::new();
        let conn = node.shards[0].accepted(Accepted { port: Port::Ingest, peer: None }).expect("there is room");
        let (token, name, instance) = (&b"dev"[..], "old", [1; 16]);
        let hello = Hello { version_min: VERSION, version_max: VERSION, features: 0, instance, token, name };
        let mut bytes = Vec::new();
        wire::write_hello(&mut bytes, &hello);
        bytes.extend_from_slice(&frame);
        node.receive(0, conn, bytes);
        let frames = node.frames(0, conn);
        let Ok(ServerFrame::Fatal(refusal)) = wire::decode_server(&frames[1]) else { panic!("no refusal") };
        assert_eq!(refusal.code, IngestError::BadFrame.code());
    }
}

#[test]
fn calls_are_checked_passed_on_and_answered_once() {
    let mut node = Node::new();
    let backend = node.backend(0, 1);
    let (user, client, channel) = ("ann", "", "news");
    let bad_request = IngestError::BadRequest.code();
    for (call, what, code) in [
        (1, CallBody::Presence { channel: "no:such" }, IngestError::UnknownChannel.code()),
        (2, CallBody::Presence { channel: "" }, IngestError::UnknownChannel.code()),
        (3, CallBody::Message { user: "", client, data: b"1" }, bad_request),
        (4, CallBody::Message { user, client, data: b"{" }, bad_request),
        (5, CallBody::Message { user, client, data: b"" }, bad_request),
        (6, CallBody::Unsubscribe { user, client, channel, code: 3_000, reason: "" }, bad_request),
        (7, CallBody::Disconnect { user, client, code: 2_000, reason: "", whitelist: wire::List::EMPTY }, bad_request),
        (8, CallBody::Refresh { user, client, expired: false, expires_in_ms: None, info: Some(b"{") }, bad_request),
    ] {
        node.call(backend, call, what);
        assert_eq!(node.refusal(backend), (call, code));
    }
    assert!(node.calls.is_empty());

    node.call(backend, 9, CallBody::Disconnect { user, client, code: 0, reason: "", whitelist: wire::List::EMPTY });
    node.call(backend, 10, CallBody::PresenceStats { channel });
    // The bound is two.
    node.call(backend, 11, CallBody::PresenceStats { channel });
    assert_eq!(node.refusal(backend), (11, IngestError::Busy.code()));
    let [LaneMessage::UserCall(disconnect), LaneMessage::ChannelCall(stats)] = &node.calls[..] else { panic!() };
    let order = UserOrder::Disconnect { code: 3503, reason: "force disconnect".into(), whitelist: vec![] };
    assert_eq!((&*disconnect.user, &disconnect.order), ("ann", &order));
    let (disconnected, counted) = (disconnect.origin.expect("it waits"), stats.origin);
    assert_eq!(counted, Origin::IngestCall { conn: backend, call: 10 });

    let stats = Ok(ChannelFact::PresenceStats { clients: 3, users: 2 });
    let answers = [
        LaneMessage::ChannelAnswer(ChannelAnswer { origin: counted, result: stats }.into()),
        LaneMessage::UserAnswer(UserAnswer { origin: disconnected, result: Err(CallError::Busy) }),
    ];
    for message in answers {
        node.shards[0].handle(Input::Lane { message });
    }
    node.settle();
    let frames = node.frames(0, backend);
    let result = CallResultOf::PresenceStats { clients: 3, users: 2 };
    let Ok(ServerFrame::CallAnswer(answer)) = wire::decode_server(&frames[0]) else { panic!() };
    assert_eq!(answer, CallAnswer { call: 10, result });
    assert_eq!(frames.len(), 2);
    assert_eq!(node.count(0, Metric::IngestCalls), 11);
    assert_eq!(node.count(0, Metric::IngestCallsRefused), 10);
}

#[test]
fn channels_are_gathered_from_every_shard_and_a_last_answer_goes_out_behind_a_fin() {
    let mut node = Node::new();
    let backend = node.backend(0, 1);
    node.call(backend, 5, CallBody::Channels { pattern: "", limit: 2 });
    assert_eq!(node.calls.len(), 2);
    node.shards[0].handle(Input::PeerFinished { conn: backend });
    for (core, names) in [(1, ["b", "d"]), (0, ["c", "a"])] {
        node.settle();
        assert!(node.frames(0, backend).is_empty());
        let channels = names.map(|name| ChannelCount { channel: name.into(), clients: 1 }).to_vec();
        let origin = Origin::IngestCall { conn: backend, call: 5 };
        let answer = ChannelsAnswer { origin, core: CoreId(core), channels, total: 10, is_whole: true };
        node.shards[0].handle(Input::Lane { message: LaneMessage::ChannelsAnswer(answer.into()) });
    }
    node.settle();
    let frames = node.frames(0, backend);
    let Ok(ServerFrame::CallAnswer(answer)) = wire::decode_server(&frames[0]) else { panic!() };
    let CallResultOf::Channels { total: 20, channels } = answer.result else { panic!("{answer:?}") };
    assert_eq!(channels.map(|one| one.channel.to_owned()).collect::<Vec<_>>(), ["a", "b"]);
    let mut actions = Vec::new();
    node.shards[0].take_actions(&mut actions);
    assert!(actions.iter().any(|action| matches!(action, Action::Close { reset: false, .. })), "{actions:?}");
}

#[test]
fn an_answer_too_large_for_a_frame_is_refused() {
    let mut node = Node::new();
    let backend = node.backend(0, 1);
    node.call(backend, 1, CallBody::Presence { channel: "news" });
    let member = alloc::sync::Arc::new(crate::presence::Member {
        core: CoreId(0),
        conn: backend,
        client: "c".into(),
        user: "u".into(),
        conn_info: vec![b'1'; 60_000].into(),
        chan_info: Box::default(),
    });
    let origin = Origin::IngestCall { conn: backend, call: 1 };
    let answer = |fact| LaneMessage::ChannelAnswer(ChannelAnswer { origin, result: Ok(fact) }.into());
    node.shards[0].handle(Input::Lane { message: answer(ChannelFact::Presence(vec![member; 18])) });
    node.settle();
    assert_eq!(node.refusal(backend), (1, IngestError::LimitExceeded.code()));
    node.call(backend, 1, CallBody::HistoryRemove { channel: "news" });
    let top = Position { offset: 3, epoch: Epoch { boot: 1, creation: 2 } };
    node.shards[0].handle(Input::Lane { message: answer(ChannelFact::History { publications: Past::default(), top }) });
    node.settle();
    let frames = node.frames(0, backend);
    let Ok(ServerFrame::CallAnswer(answer)) = wire::decode_server(&frames[0]) else { panic!() };
    let CallResultOf::History { epoch: (1, 2), offset: 3, publications } = answer.result else { panic!() };
    assert_eq!(publications.remaining(), 0);
}
