//! Connect commands whose answer takes a while: tokens that are checked elsewhere, server-side subscriptions whose
//! owners answer later, and what comes in between.
//!
//! Set-up: one shard of two, whose other shard is this test; real bytes of model clients; tokens whose text names their
//! user. Claim of each test: its name.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::sync::Arc;

use ringway_engine::backends::{BackendId, BackendNotice};
use ringway_engine::call::{UserCall, UserOrder};
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
use ringway_engine::tokens::*;
use ringway_engine::variant::{Variant, VariantSet};
use ringway_wire::centrifuge::Form;
use ringway_wire::frame::{Opcode, decode_header, write_client_header};
use ringway_wire::ingest::{EventKind, EventKinds, ServerFrame, decode_event, decode_server};

const EPOCH: Epoch = Epoch { boot: 9, creation: 1 };

/// Answers later, if at all: the test says what.
#[derive(Debug)]
struct Later;

impl Tokens for Later {
    fn check_connect(&self, _: &str, _: TokenAsk) -> TokenCheck<ConnectClaims> {
        TokenCheck::Later
    }

    fn check_subscribe(&self, _: &str, _: TokenAsk) -> TokenCheck<SubscribeClaims> {
        TokenCheck::Later
    }
}

struct World {
    shard: Shard,
    conn: ConnId,
    now_ms: u64,
    actions: Vec<Action>,
}

impl World {
    fn new() -> World {
        World::with(EventMode::Off)
    }

    /// Backends are told of connects and subscribes, or not.
    fn with(events: EventMode) -> World {
        let rules = Namespace {
            subscribe_events: events,
            subscribe: Allow::Anyone,
            presence: true,
            history_size: 8,
            history_ttl_ms: 60_000,
            recovery: true,
            ..Namespace::closed("")
        };
        let options = Options {
            core: CoreId(0),
            shards: 2,
            seed: 1,
            boot: 77,
            limits: Limits::DEFAULT,
            namespaces: Namespaces::new(rules, vec![]).unwrap().into(),
            tokens: Arc::new(Later),
            access: Access { anonymous: true, origins: Origins::Any, connect_events: events, ..Access::closed("/ws") },
            fleet: None,
            utf8: |bytes| std::str::from_utf8(bytes).is_ok(),
        };
        let mut shard = Shard::new(options, 1_000);
        let conn = shard.accepted(Accepted { port: Port::Client, peer: None }).unwrap();
        let mut upgrade = b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            .to_vec();
        shard.handle(Input::Received { conn, bytes: &mut upgrade });
        let mut world = World { shard, conn, now_ms: 1_000, actions: Vec::new() };
        world.raw();
        world
    }

    fn says(&mut self, commands: &str) {
        let mut bytes = Vec::new();
        write_client_header(&mut bytes, Opcode::Text, commands.len(), [0; 4]);
        bytes.extend_from_slice(commands.as_bytes());
        self.shard.handle(Input::Received { conn: self.conn, bytes: &mut bytes });
    }

    fn hears(&mut self, message: LaneMessage) {
        self.shard.handle(Input::Lane { message });
    }

    fn checked(&mut self, ask: u32, verdict: Verdict) {
        let ask = TokenAsk { core: CoreId(0), conn: self.conn, ask };
        self.hears(LaneMessage::TokenChecked(Box::new(TokenChecked { ask, verdict })));
    }

    fn admit(&mut self, user: &str, channels: &[&str]) {
        let subscriptions =
            channels.iter().map(|channel| TokenSubscription { channel: (*channel).into(), ..Default::default() });
        let claims = ConnectClaims { user: user.into(), subscriptions: subscriptions.collect(), ..Default::default() };
        self.checked(1, Verdict::Connect(Ok(claims)));
    }

    /// What this shard has said to the other one.
    fn told(&mut self) -> Vec<LaneMessage> {
        let mut told = Vec::new();
        while let Some(batch) = self.shard.lanes().take_batch(CoreId(1)) {
            told.extend(batch.messages);
        }
        told
    }

    /// The subscribes among it, as (channel, request number, local channel, member).
    fn asked(&mut self) -> Vec<(String, u32, LocalChannelId, bool)> {
        let subscribe = |message| match message {
            LaneMessage::Subscribe(request) => {
                Some((request.channel.to_string(), request.command, request.local, request.member.is_some()))
            }
            _ => None,
        };
        self.told().into_iter().filter_map(subscribe).collect()
    }

    fn grant(&mut self, number: u32, local: LocalChannelId, offset: Offset) {
        let granted = Subscribed { top: Position { offset, epoch: EPOCH }, recovery: None, number: 5 };
        let answer = SubscribeAnswer { conn: self.conn, command: number, local, result: Ok(granted) };
        self.hears(LaneMessage::SubscribeAnswer(Box::new(answer)));
    }

    fn deliver(&mut self, channel: &str, local: LocalChannelId, offset: Offset) {
        let variants = VariantSet::NONE.with(Variant::plain(Form::Json));
        let draft = Draft { offset, variants, ..Draft::new(channel, b"1") };
        let publication = Arc::new(Publication::encode(draft, &mut Scratch::default()));
        self.hears(LaneMessage::Deliver { local, publication });
    }

    /// Kinds of the events among what this shard has said to the other one, where a backend is.
    fn events(&mut self) -> Vec<EventKind> {
        self.told().iter().filter_map(event_kind).collect()
    }

    fn order(&mut self, user: &str, order: UserOrder) {
        let (user, client) = (user.into(), Box::default());
        self.hears(LaneMessage::UserCall(Box::new(UserCall { user, client, order, origin: None, from: CoreId(1) })));
    }

    fn raw(&mut self) -> Vec<u8> {
        self.shard.end_turn();
        let mut read = Vec::new();
        let mut batch = WriteBatch::default();
        loop {
            self.shard.collect_writes(&mut batch);
            let Some((conn, bytes)) = batch.get(0) else { break };
            let count = bytes.len();
            read.extend_from_slice(bytes);
            self.shard.handle(Input::Wrote { conn, bytes: count, all: true });
        }
        self.shard.take_actions(&mut self.actions);
        read
    }

    /// What the client reads in one turn: the payloads of its messages, split into lines.
    fn reads(&mut self) -> Vec<String> {
        let raw = self.raw();
        let (mut rest, mut lines) = (&raw[..], Vec::new());
        while let Some(header) = decode_header(rest).unwrap() {
            let end = header.header_len + header.payload_len as usize;
            let payload = String::from_utf8_lossy(&rest[header.header_len..end]).into_owned();
            lines.extend(payload.lines().map(str::to_string));
            rest = &rest[end..];
        }
        lines
    }

    fn later(&mut self, ms: u64) {
        self.now_ms += ms;
        self.shard.begin_turn(self.now_ms);
    }
}

/// Channels that the other shard owns.
fn foreign(count: usize) -> Vec<String> {
    let names = (0..).map(|i| format!("c{i}"));
    names.filter(|name| route::owner(route::bucket(name), 2) == CoreId(1)).take(count).collect()
}

fn starts(lines: &[String], wanted: &[&str]) {
    assert_eq!(lines.len(), wanted.len(), "{lines:#?}");
    for (line, wanted) in lines.iter().zip(wanted) {
        assert!(line.contains(wanted), "{wanted} is not in {line}");
    }
}

#[test]
fn commands_behind_a_connect_wait_for_its_token_and_keep_their_order() {
    let mut world = World::new();
    let channel = &foreign(1)[0];
    world.says(&format!(
        "{{\"id\":1,\"connect\":{{\"token\":\"t\"}}}}\n{{\"id\":2,\"subscribe\":{{\"channel\":\"{channel}\"}}}}\n{{\"id\":3,\"ping\":{{}}}}"
    ));
    // A message of its own behind the first: received already, carried out last.
    world.says("{\"id\":4,\"unsubscribe\":{\"channel\":\"other\"}}");
    assert_eq!(world.reads(), Vec::<String>::new());
    assert!(!world.shard.wants_read(world.conn));
    assert_eq!(world.asked().len(), 0, "nothing is done for somebody unknown");
    world.admit("anne", &[]);
    starts(&world.reads(), &["\"connect\":", "\"ping\":", "{\"id\":4,\"unsubscribe\":"]);
    assert!(world.shard.wants_read(world.conn));
    let asked = world.asked();
    assert_eq!((asked.len(), &asked[0].0), (1, channel));
    world.grant(asked[0].1, asked[0].2, 7);
    starts(&world.reads(), &["{\"id\":2,\"subscribe\":"]);
}

#[test]
fn a_connect_alone_in_its_message_is_answered_too() {
    let mut world = World::new();
    world.says("{\"id\":1,\"connect\":{\"token\":\"t\"}}");
    world.admit("", &[]);
    starts(&world.reads(), &["\"connect\":"]);
    assert!(world.actions.is_empty(), "{:?}", world.actions);
}

#[test]
fn an_expired_token_is_an_error_and_what_follows_is_not_carried_out() {
    let mut world = World::new();
    world.says("{\"id\":1,\"connect\":{\"token\":\"t\"}}\n{\"id\":2,\"ping\":{}}");
    world.checked(1, Verdict::Connect(Err(TokenError::Expired)));
    starts(&world.reads(), &["\"code\":109"]);
    world.says("{\"id\":3,\"ping\":{}}");
    assert_eq!(world.reads(), Vec::<String>::new());
    // It does not close by itself: the connect clock does.
    world.later(60_000);
    assert!(String::from_utf8_lossy(&world.raw()).contains("connect timeout"));
}

#[test]
fn publications_wait_behind_the_connect_result_that_tells_of_their_subscription() {
    let mut world = World::new();
    let channels = foreign(2);
    world.says("{\"id\":1,\"connect\":{\"token\":\"t\"}}\n{\"id\":2,\"ping\":{}}");
    world.admit("anne", &[&channels[0], &channels[1]]);
    let asked = world.asked();
    assert_eq!(asked.len(), 2);
    world.grant(asked[0].1, asked[0].2, 7);
    world.deliver(&channels[0], asked[0].2, 8);
    assert_eq!(world.reads(), Vec::<String>::new(), "one owner has not answered");
    world.deliver(&channels[0], asked[0].2, 9);
    world.grant(asked[1].1, asked[1].2, 70);
    world.deliver(&channels[1], asked[1].2, 71);
    let lines = world.reads();
    // The last two came in the turn of the answer, whose fan-outs are its last act.
    starts(&lines, &["\"connect\":", "\"offset\":8", "\"ping\":", "\"offset\":9", "\"offset\":71"]);
    assert!(lines[0].contains("\"offset\":7") && lines[0].contains("\"offset\":70"), "{}", lines[0]);
}

#[test]
fn a_client_that_goes_while_it_is_admitted_leaves_nothing() {
    let mut world = World::new();
    let channels = foreign(2);
    world.says("{\"id\":1,\"connect\":{\"token\":\"t\"}}");
    world.admit("anne", &[&channels[0], &channels[1]]);
    let asked = world.asked();
    world.grant(asked[0].1, asked[0].2, 7);
    world.deliver(&channels[0], asked[0].2, 8);
    let conn = world.conn;
    world.shard.handle(Input::SocketFailed { conn });
    world.shard.handle(Input::Closed { conn });
    world.raw();
    let left = world.told().iter().filter(|message| matches!(message, LaneMessage::MemberLeave(_))).count();
    assert_eq!(left, 2, "both owners have counted it in");
    world.grant(asked[1].1, asked[1].2, 70);
    world.raw();
    let leaves = world.told().iter().filter(|message| matches!(message, LaneMessage::Leave(_))).count();
    assert_eq!(leaves, 1, "the channel whose owner answered too late is given up");
    assert_eq!((world.shard.connections(), world.shard.outbox_frames()), (0, 0));
}

#[test]
fn a_membership_given_up_early_ends_before_the_next_one_begins() {
    let mut world = World::new();
    let channel = &foreign(1)[0];
    world.says("{\"id\":1,\"connect\":{}}");
    world.reads();
    let subscribe = |id| format!("{{\"id\":{id},\"subscribe\":{{\"channel\":\"{channel}\"}}}}");
    world.says(
        &[&subscribe(2), &format!("{{\"id\":3,\"unsubscribe\":{{\"channel\":\"{channel}\"}}}}"), &subscribe(4)]
            .map(|s| s.as_str())
            .join("\n"),
    );
    world.shard.end_turn();
    let told = world.told();
    let kinds: Vec<&str> = told
        .iter()
        .map(|message| match message {
            LaneMessage::Subscribe(_) => "subscribe",
            LaneMessage::MemberLeave(_) => "member leave",
            _ => "other",
        })
        .collect();
    assert_eq!(kinds, ["subscribe", "member leave", "subscribe"]);
    let numbers: Vec<_> = told
        .iter()
        .filter_map(|message| match message {
            LaneMessage::Subscribe(request) => Some((request.command, request.local)),
            _ => None,
        })
        .collect();
    for (number, local) in numbers {
        world.grant(number, local, 7);
    }
    starts(&world.reads(), &["{\"id\":2,\"subscribe\":", "{\"id\":3,\"unsubscribe\":", "{\"id\":4,\"subscribe\":"]);
    assert!(!world.told().iter().any(|message| matches!(message, LaneMessage::MemberLeave(_))));
}

#[test]
fn an_expired_connection_is_closed_after_its_grace_and_a_refresh_keeps_it() {
    let mut world = World::new();
    world.says("{\"id\":1,\"connect\":{\"token\":\"t\"}}");
    let claims = |expires_in_ms| ConnectClaims { user: "anne".into(), expires_in_ms, ..Default::default() };
    world.checked(1, Verdict::Connect(Ok(claims(Some(10_000)))));
    assert!(world.reads()[0].contains("\"expires\":true,\"ttl\":10"));
    world.later(11_000);
    world.says("{\"id\":2,\"refresh\":{\"token\":\"u\"}}");
    world.checked(2, Verdict::Connect(Ok(claims(Some(1_000)))));
    assert!(world.reads().iter().any(|line| line.contains("\"refresh\":{\"client\":")));
    let grace_ms = u64::from(Limits::DEFAULT.expired_grace_ms);
    // Pings come meanwhile, and are answered.
    world.later(grace_ms - 2_000);
    world.raw();
    world.says("{}");
    world.later(4_000);
    assert!(String::from_utf8_lossy(&world.raw()).contains("connection expired"));
}

#[test]
fn orders_reach_the_connections_of_their_user_only() {
    let mut world = World::new();
    world.says("{\"id\":1,\"connect\":{\"token\":\"t\"}}");
    world.admit("anne", &[]);
    world.reads();
    let order = |user: &str| {
        let order = UserOrder::Message { data: b"{\"a\": 1}".as_slice().into() };
        LaneMessage::UserCall(Box::new(UserCall {
            user: user.into(),
            client: Box::default(),
            order,
            origin: None,
            from: CoreId(1),
        }))
    };
    world.hears(order("bert"));
    world.hears(order("anne"));
    assert_eq!(world.reads(), ["{\"push\":{\"message\":{\"data\":{\"a\": 1}}}}"]);
    world.hears(LaneMessage::RevokeToken("".into()));
    world.hears(LaneMessage::UserCall(Box::new(UserCall {
        user: "anne".into(),
        client: Box::default(),
        order: UserOrder::Disconnect { code: 4001, reason: "go away".into(), whitelist: vec![] },
        origin: None,
        from: CoreId(1),
    })));
    assert!(String::from_utf8_lossy(&world.raw()).contains("go away"));
}

fn event_kind(message: &LaneMessage) -> Option<EventKind> {
    let LaneMessage::Event(delivery) = message else { return None };
    match decode_server(&delivery.frame) {
        Ok(ServerFrame::Event(event)) => Some(decode_event(&event).unwrap().what.kind()),
        other => panic!("{other:?}"),
    }
}

fn disconnect() -> UserOrder {
    UserOrder::Disconnect { code: 4001, reason: "go away".into(), whitelist: vec![] }
}

#[test]
fn a_connect_command_that_is_never_answered_lets_nothing_through() {
    let mut world = World::new();
    let channels = foreign(2);
    world.says("{\"id\":1,\"connect\":{\"token\":\"t\"}}");
    world.admit("anne", &[&channels[0], &channels[1]]);
    let asked = world.asked();
    world.grant(asked[0].1, asked[0].2, 7);
    world.deliver(&channels[0], asked[0].2, 8);
    assert_eq!(world.reads(), Vec::<String>::new());
    world.order("anne", disconnect());
    let raw = String::from_utf8_lossy(&world.raw()).into_owned();
    assert!(raw.contains("go away") && !raw.contains("offset"), "{raw:?}");
}

#[test]
fn a_close_frame_that_waited_behind_a_connect_command_is_an_answer_to_ours() {
    let mut world = World::new();
    let channels = foreign(1);
    world.says("{\"id\":1,\"connect\":{\"token\":\"t\"}}");
    world.admit("anne", &[&channels[0]]);
    let mut close = Vec::new();
    write_client_header(&mut close, Opcode::Close, 2, [0; 4]);
    close.extend_from_slice(&1000u16.to_be_bytes());
    let conn = world.conn;
    world.shard.handle(Input::Received { conn, bytes: &mut close });
    world.raw();
    assert_eq!(world.actions, [], "it is not read yet");
    world.order("anne", disconnect());
    assert!(String::from_utf8_lossy(&world.raw()).contains("go away"));
    assert_eq!(world.actions, [Action::Close { conn, reset: false }]);
}

#[test]
fn a_verdict_about_a_subscription_that_was_lost_meanwhile_closes_nobody() {
    let mut world = World::new();
    let channel = &foreign(1)[0];
    world.says("{\"id\":1,\"connect\":{}}");
    world.says(&format!("{{\"id\":2,\"subscribe\":{{\"channel\":\"{channel}\",\"token\":\"t\"}}}}"));
    world.reads();
    world.shard.handle(Input::LaneLost { from: CoreId(1) });
    starts(&world.reads(), &["{\"id\":2,\"error\":{\"code\":100"]);
    let claims = |channel: &str| {
        let subscription = TokenSubscription { channel: channel.into(), ..Default::default() };
        Verdict::Subscribe(Ok(SubscribeClaims { subscription, ..Default::default() }))
    };
    world.checked(2, claims(channel));
    // Nor does a new token for what has ended.
    world.says(&format!("{{\"id\":3,\"sub_refresh\":{{\"channel\":\"{channel}\",\"token\":\"t\"}}}}"));
    world.checked(3, claims(channel));
    starts(&world.reads(), &["{\"id\":3,\"error\":{\"code\":103"]);
    world.says("{\"id\":4,\"ping\":{}}");
    starts(&world.reads(), &["{\"id\":4,\"ping\":"]);
    // One for another channel still does.
    world.says(&format!("{{\"id\":5,\"sub_refresh\":{{\"channel\":\"{channel}\",\"token\":\"t\"}}}}"));
    world.checked(4, claims("other"));
    assert!(String::from_utf8_lossy(&world.raw()).contains("invalid token"));
}

#[test]
fn backends_hear_of_a_client_before_its_subscriptions_and_of_the_end_of_both() {
    use EventKind::{Connect, Disconnect, Subscribe, Unsubscribe};
    let mut world = World::with(EventMode::Notify);
    let backend = BackendId { core: CoreId(1), conn: ConnId { slot: 0, generation: 0 } };
    let notice = BackendNotice { backend, instance: 1, kinds: EventKinds::ALL, window: 0, gone: false };
    world.hears(LaneMessage::BackendChanged(notice.into()));
    let channels = foreign(2);
    world.says("{\"id\":1,\"connect\":{\"token\":\"t\"}}");
    assert_eq!(world.events(), [], "nobody knows yet who it is");
    world.admit("anne", &[&channels[0], &channels[1]]);
    let told = world.told();
    let subscribes: Vec<_> = told
        .iter()
        .filter_map(|message| match message {
            LaneMessage::Subscribe(request) => Some((request.command, request.local)),
            _ => None,
        })
        .collect();
    assert_eq!(told.iter().filter_map(event_kind).collect::<Vec<_>>(), [Connect]);
    world.grant(subscribes[0].0, subscribes[0].1, 7);
    assert_eq!(world.events(), [Subscribe]);
    // It never gets in: the other channel's owner does not answer.
    world.shard.handle(Input::LaneLost { from: CoreId(1) });
    assert_eq!(world.events(), [Unsubscribe, Disconnect]);
}

#[test]
fn a_subscription_ended_before_it_was_granted_does_not_end_the_one_that_followed() {
    let mut world = World::new();
    let channel = &foreign(1)[0];
    world.says("{\"id\":1,\"connect\":{\"token\":\"t\"}}");
    world.admit("anne", &[]);
    world.says(&format!("{{\"id\":2,\"subscribe\":{{\"channel\":\"{channel}\",\"token\":\"t\"}}}}"));
    world.reads();
    let subscription = TokenSubscription { channel: channel.as_str().into(), ..Default::default() };
    world.order("anne", UserOrder::Unsubscribe { channel: channel.as_str().into(), code: 2000, reason: "no".into() });
    world.order("anne", UserOrder::Subscribe { subscription: subscription.clone(), recover: None });
    let ordered = world.asked();
    world.grant(ordered[0].1, ordered[0].2, 7);
    starts(&world.reads(), &["\"subscribe\":"]);
    let claims = SubscribeClaims { user: "anne".into(), subscription, ..Default::default() };
    world.checked(2, Verdict::Subscribe(Ok(claims)));
    let asked = world.asked();
    assert!(!asked[0].3, "what is to end is no member");
    world.grant(asked[0].1, asked[0].2, 7);
    let lines = world.reads();
    starts(&lines, &["{\"id\":2,\"error\":{\"code\":105"]);
    world.deliver(channel, ordered[0].2, 8);
    starts(&world.reads(), &["\"offset\":8"]);
}

#[test]
fn who_leaves_a_channel_that_is_being_given_up_is_told_that_first() {
    let mut world = World::with(EventMode::Off);
    let channel = &foreign(1)[0];
    world.says("{\"id\":1,\"connect\":{}}");
    world.says(&format!("{{\"id\":2,\"subscribe\":{{\"channel\":\"{channel}\"}}}}"));
    let asked = world.asked();
    world.grant(asked[0].1, asked[0].2, 7);
    starts(&world.reads(), &["{\"id\":1,\"connect\":", "{\"id\":2,\"subscribe\":"]);
    // Both within a turn, at whose end all clients are told. An SDK that hears 2500 last subscribes again.
    world.hears(LaneMessage::Insufficient { local: asked[0].2 });
    world.says(&format!("{{\"id\":3,\"unsubscribe\":{{\"channel\":\"{channel}\"}}}}"));
    let heard = world.reads();
    assert!(heard[0].contains("\"code\":2500"), "{heard:?}");
    starts(&heard[1..], &["{\"id\":3,\"unsubscribe\":"]);
    // Who subscribes is told as well, and has one subscription.
    world.says(&format!("{{\"id\":4,\"subscribe\":{{\"channel\":\"{channel}\"}}}}"));
    let asked = world.asked();
    world.grant(asked[0].1, asked[0].2, 8);
    starts(&world.reads(), &["{\"id\":4,\"subscribe\":"]);
    world.hears(LaneMessage::Insufficient { local: asked[0].2 });
    world.says(&format!("{{\"id\":5,\"subscribe\":{{\"channel\":\"{channel}\"}}}}"));
    let heard = world.reads();
    assert!(heard.len() == 1 && heard[0].contains("\"code\":2500"), "{heard:?}");
    let asked = world.asked();
    world.grant(asked[0].1, asked[0].2, 9);
    starts(&world.reads(), &["{\"id\":5,\"subscribe\":"]);
}
