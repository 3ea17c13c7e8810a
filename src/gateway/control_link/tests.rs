//! The link against shards that the test plays on real inboxes.

use std::sync::atomic::AtomicBool;

use ringway_engine::call::{ChannelAsk, ChannelCount, UserAnswer};
use ringway_engine::ids::Epoch;
use ringway_engine::lane_message::{Position, PublishAnswer};
use ringway_engine::namespace::Namespace;
use tokio::sync::oneshot;

use super::*;
use crate::control::{MetricsHub, Reloaded};
use crate::drain::DrainOrders;

const SHARDS: u16 = 3;
const EPOCH: Epoch = Epoch { boot: 1, creation: 2 };

struct TestHooks;

impl Hooks for TestHooks {
    fn reload(&mut self) -> Result<Reloaded, String> {
        Ok(Reloaded { applied: Vec::new(), needs_restart: vec!["shards".into()] })
    }

    fn revoke_token(&mut self, token_id: &str, _until_unix_s: Option<u64>) -> Result<(), String> {
        if token_id == "refused" { Err("no".into()) } else { Ok(()) }
    }
}

fn namespaces(payload: PayloadKind) -> Arc<Namespaces> {
    let bytes = Namespace { payload, ..Namespace::closed("bytes") };
    Arc::new(Namespaces::new(Namespace::closed(""), vec![bytes]).expect("is valid"))
}

/// A link that is driven by hand: no task, no descriptor to watch.
fn link(capacity_batches: usize) -> Link {
    let inboxes = (0..=SHARDS).map(|_| Inbox::new(capacity_batches, SHARDS as usize + 1).expect("opens")).collect();
    let shared = Shared {
        shards: SHARDS,
        inboxes,
        metrics: MetricsHub::new(SHARDS as usize),
        stop: AtomicBool::new(false),
        stop_timeout_ms: 0,
        drain: DrainOrders::new(SHARDS as usize),
    };
    let parts = LinkParts { namespaces: namespaces(PayloadKind::Bytes), hooks: Box::new(TestHooks), news: None };
    Link::new(Arc::new(shared), CoreId(SHARDS), parts)
}

/// What a shard has been sent, and by how many batches.
fn received(link: &Link, shard: u16) -> (usize, Vec<LaneMessage>) {
    let inbox = &link.shared.inboxes[shard as usize];
    let mut batches = 0;
    let mut messages = Vec::new();
    while let Some(batch) = inbox.pop() {
        assert_eq!(batch.from, CoreId(SHARDS));
        batches += 1;
        messages.extend(batch.messages);
    }
    (batches, messages)
}

fn publish(link: &mut Link, channel: &str, payload: usize) -> oneshot::Receiver<Result<Published, PublishError>> {
    let (reply, answer) = oneshot::channel();
    link.call(Call::Publish {
        channel: channel.into(),
        payload: vec![b'1'; payload],
        kind: PayloadKind::Json,
        idempotency_key: Vec::new(),
        tags: Default::default(),
        skip_history: channel == "skipped",
        reply,
    });
    answer
}

#[test]
fn calls_of_one_turn_travel_as_one_batch_per_owner_in_order() {
    let mut link = link(16);
    let names: Vec<String> = (0..60).map(|n| format!("channel-{n}")).collect();
    let answers: Vec<_> = names.iter().map(|name| publish(&mut link, name, 1)).collect();
    link.flush();
    let mut next = vec![0; SHARDS as usize];
    let mut total = 0;
    for shard in 0..SHARDS {
        let (batches, messages) = received(&link, shard);
        assert_eq!(batches, 1);
        total += messages.len();
        for message in messages {
            let LaneMessage::Publish(request) = message else { panic!("{message:?}") };
            assert_eq!(link.owner(&request.channel), CoreId(shard));
            let at = names.iter().position(|name| **name == *request.channel).expect("is one of them");
            assert!(at >= next[shard as usize], "order within a shard");
            next[shard as usize] = at;
            let Origin::Control { call } = request.origin else { panic!("{:?}", request.origin) };
            let position = Position { offset: call + 1, epoch: EPOCH };
            let answer = PublishAnswer { origin: request.origin, result: Ok(position), duplicate: false };
            link.answered(LaneMessage::PublishAnswer(answer));
        }
    }
    assert_eq!(total, names.len());
    for (n, mut answer) in answers.into_iter().enumerate() {
        let published = answer.try_recv().expect("is answered").expect("was published");
        assert_eq!(published.position.offset, n as u64 + 1);
    }
    assert_eq!((link.in_flight.len(), link.bytes_in_flight), (0, 0));
}

#[test]
fn a_full_shard_refuses_its_own_calls_alone() {
    let mut link = link(1);
    while link.shared.inboxes[0].push(Batch { from: CoreId(0), messages: Vec::new() }).is_ok() {}
    let names: Vec<String> = (0..60).map(|n| format!("channel-{n}")).collect();
    let answers: Vec<_> = names.iter().map(|name| publish(&mut link, name, 1)).collect();
    link.flush();
    let mut refused = 0;
    for (name, mut answer) in names.iter().zip(answers) {
        let owner = link.owner(name);
        match answer.try_recv() {
            Ok(result) => {
                assert_eq!((owner, result), (CoreId(0), Err(PublishError::Busy)), "{name}");
                refused += 1;
            }
            Err(_) => assert_ne!(owner, CoreId(0), "{name}"),
        }
    }
    assert!(refused > 0);
    assert_eq!(link.in_flight.len(), names.len() - refused);
}

#[test]
fn what_is_under_way_is_bounded_and_the_abandoned_make_room() {
    let mut link = link(64);
    let half = CALL_BYTES_IN_FLIGHT_MAX / 2 - 100;
    let first = publish(&mut link, "a", half);
    let mut second = publish(&mut link, "b", half);
    let mut third = publish(&mut link, "c", half);
    assert_eq!(third.try_recv().expect("is answered"), Err(PublishError::Busy));
    assert!(second.try_recv().is_err(), "is under way");
    drop(first);
    let mut fourth = publish(&mut link, "d", half);
    assert!(fourth.try_recv().is_err(), "took the place of the abandoned one");
    assert_eq!(link.in_flight.len(), 2);
}

#[test]
fn a_channel_call_is_answered_with_the_payload_kind_of_its_namespace() {
    let mut link = link(16);
    let ask = |link: &mut Link| {
        let (reply, mut answer) = oneshot::channel();
        link.call(Call::Channel { channel: "bytes:1".into(), ask: ChannelAsk::HistoryRemove, reply });
        link.flush();
        let owner = link.owner("bytes:1");
        let Some(LaneMessage::ChannelCall(call)) = received(link, owner.0).1.pop() else { panic!("nothing came") };
        assert_eq!((&*call.channel, call.from), ("bytes:1", CoreId(SHARDS)));
        let told = ChannelAnswer { origin: call.origin, result: Ok(ChannelFact::Removed) };
        link.answered(LaneMessage::ChannelAnswer(Box::new(told)));
        answer.try_recv().expect("is answered").expect("was done").kind
    };
    assert_eq!(ask(&mut link), PayloadKind::Bytes);
    link.answered(LaneMessage::Rules(namespaces(PayloadKind::Json)));
    assert_eq!(ask(&mut link), PayloadKind::Json);
}

#[test]
fn a_user_call_goes_to_the_owner_of_the_user() {
    let mut link = link(16);
    let (reply, mut answer) = oneshot::channel();
    let order = UserOrder::Message { data: b"1".as_slice().into() };
    link.call(Call::User { user: "ann".into(), client: "c".into(), order, reply });
    link.flush();
    let owner = link.owner("ann");
    let Some(LaneMessage::UserCall(call)) = received(&link, owner.0).1.pop() else { panic!("nothing came") };
    assert_eq!((&*call.user, &*call.client, call.from), ("ann", "c", CoreId(SHARDS)));
    let origin = call.origin.expect("somebody waits");
    link.answered(LaneMessage::UserAnswer(UserAnswer { origin, result: Ok(2) }));
    assert_eq!(answer.try_recv().expect("is answered"), Ok(2));

    let (reply, mut answer) = oneshot::channel();
    let order = UserOrder::Unsubscribe { channel: "nowhere:1".into(), code: 2000, reason: "a".into() };
    link.call(Call::User { user: "ann".into(), client: String::new(), order, reply });
    assert_eq!(answer.try_recv().expect("is answered"), Err(CallError::UnknownChannel));
}

#[test]
fn channels_are_gathered_from_all_shards() {
    let mut link = link(16);
    let (reply, mut answer) = oneshot::channel();
    link.call(Call::Channels { pattern: "a".into(), limit: 5, reply });
    link.flush();
    for shard in 0..SHARDS {
        assert!(answer.try_recv().is_err(), "waits for all");
        let Some(LaneMessage::ChannelsCall(call)) = received(&link, shard).1.pop() else { panic!("nothing came") };
        assert_eq!((&*call.pattern, call.limit), ("a", 5));
        let count = |channel: String, clients| ChannelCount { channel: channel.into(), clients };
        let channels = vec![count(format!("a{shard}"), 1), count("all".into(), 2)];
        let part = ChannelsAnswer { origin: call.origin, core: CoreId(shard), channels, total: 10, is_whole: true };
        link.answered(LaneMessage::ChannelsAnswer(Box::new(part)));
    }
    let listed = answer.try_recv().expect("is answered").expect("was done");
    assert_eq!((listed.channels.len(), listed.total), (SHARDS as usize + 1, 30));
    assert_eq!(listed.channels["all"], 2 * u64::from(SHARDS));
    assert_eq!(link.in_flight.len(), 0);
}

#[test]
fn revocation_reaches_every_shard_behind_what_was_asked_before() {
    let mut link = link(16);
    let revoke = |link: &mut Link, token_id: &str| {
        let (reply, mut answer) = oneshot::channel();
        link.call(Call::RevokeToken { token_id: token_id.into(), until_unix_s: None, reply });
        answer.try_recv().expect("is answered")
    };
    let _asked_before = publish(&mut link, "a", 1);
    assert_eq!(revoke(&mut link, "t"), Ok(()));
    let owner = link.owner("a");
    for shard in 0..SHARDS {
        let (_, messages) = received(&link, shard);
        let last = messages.last().expect("something came");
        assert!(matches!(last, LaneMessage::RevokeToken(id) if &**id == "t"), "{last:?}");
        assert_eq!(messages.len(), if CoreId(shard) == owner { 2 } else { 1 });
    }
    assert_eq!(revoke(&mut link, "refused"), Err(RevokeError::Refused("no".into())));
    while link.shared.inboxes[1].push(Batch { from: CoreId(0), messages: Vec::new() }).is_ok() {}
    assert_eq!(revoke(&mut link, "t"), Err(RevokeError::Busy));
}

#[test]
fn answers_to_nobody_are_ignored() {
    let mut link = link(16);
    let result = Ok(Position { offset: 1, epoch: EPOCH });
    for origin in [
        Origin::Control { call: 77 },
        Origin::IngestCall { conn: ringway_engine::ids::ConnId { slot: 0, generation: 0 }, call: 1 },
    ] {
        link.answered(LaneMessage::PublishAnswer(PublishAnswer { origin, result, duplicate: false }));
    }
    // An answer of another kind than the question: its asker is not left in the table.
    let mut waiting = publish(&mut link, "a", 1);
    let origin = Origin::Control { call: 0 };
    link.answered(LaneMessage::UserAnswer(UserAnswer { origin, result: Ok(1) }));
    assert!(matches!(waiting.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
    assert_eq!(link.in_flight.len(), 0);
}
