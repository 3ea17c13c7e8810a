//! The owner alone between its lanes: what each core is told, and in which order.
//!
//! Set-up: one owner at core 0 of three, lanes that nobody empties but the test. Claim of each test: its name.

use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};

use proptest::prelude::*;
use ringway_wire::centrifuge::Form;
use ringway_wire::ingest::PayloadKind;

use super::*;
use crate::call::{CallError, ChannelAnswer, ChannelAsk, ChannelCall, ChannelFact, HistoryAsk, Since};
use crate::ids::ConnId;
use crate::lane_message::{MemberLeave, Origin, PublishError, PublishRequest, RecoverFrom};
use crate::limits::TICK_MS;
use crate::namespace::{JoinLeaveAbove, Namespace, RecoveryMode};
use crate::presence::Member;
use crate::publication::Tags;
use crate::publish_run::Entry;
use crate::variant::Variant;

/// Where calls of the test are answered.
const CONTROL: CoreId = CoreId(3);
const PLACE: Place = Place { core: CoreId(0), shards: 3, boot: 77 };

struct Bed {
    owner: Owner,
    lanes: LanesOut,
    metrics: Metrics,
    namespaces: Namespaces,
    now_ms: u64,
}

impl Bed {
    fn new(rules: Namespace, limits: Limits) -> Self {
        Bed {
            owner: Owner::new(limits, PLACE, None, 5),
            lanes: LanesOut::new(CoreId(0), 4, usize::MAX, 1_000),
            metrics: Metrics::new(),
            namespaces: Namespaces::new(rules, Vec::new()).expect("rules without contradiction").with_catch_all(true),
            now_ms: 1_000_000,
        }
    }

    fn with<R>(&mut self, act: impl FnOnce(&mut Owner, &mut Surroundings<'_>) -> R) -> R {
        let mut around = Surroundings {
            lanes: &mut self.lanes,
            metrics: &mut self.metrics,
            namespaces: &self.namespaces,
            now_ms: self.now_ms,
        };
        act(&mut self.owner, &mut around)
    }

    fn reload(&mut self, rules: Namespace, named: Vec<Namespace>) {
        self.namespaces = Namespaces::new(rules, named).expect("rules without contradiction").with_catch_all(true);
        self.owner.rules_changed();
    }

    /// What was said to a core since it was last asked.
    fn told(&mut self, core: CoreId) -> Vec<LaneMessage> {
        if core == PLACE.core {
            return core::iter::from_fn(|| self.lanes.pop_own()).collect();
        }
        core::iter::from_fn(|| self.lanes.take_batch(core)).flat_map(|batch| batch.messages).collect()
    }

    fn publish_as(&mut self, channel: &str, origin: Origin, skip_history: bool) -> Result<Position, PublishError> {
        let request = PublishRequest {
            channel: channel.into(),
            payload: (*b"1").into(),
            kind: PayloadKind::Json,
            idempotency_key: Box::default(),
            publisher: None,
            tags: Tags::default(),
            skip_history,
            origin,
            from: CONTROL,
        };
        self.with(|owner, around| owner.publish(request, around));
        match self.told(CONTROL).pop() {
            Some(LaneMessage::PublishAnswer(answer)) => answer.result,
            other => panic!("{other:?}"),
        }
    }

    fn publish(&mut self, channel: &str) -> Result<Position, PublishError> {
        self.publish_as(channel, Origin::Control { call: 1 }, false)
    }

    fn subscribe(&mut self, request: SubscribeRequest) {
        self.with(|owner, around| owner.subscribe(request, around));
    }

    /// A member that wants its coming and going told.
    fn join(&mut self, channel: &str, core: u16, slot: u32, user: &str) {
        let member = Some(Box::new(member(core, slot, user)));
        self.subscribe(SubscribeRequest { member, tell_join_leave: true, ..request(channel, core, slot) });
    }

    fn member_leave(&mut self, channel: &str, core: u16, slot: u32) {
        let leave = MemberLeave { channel: channel.into(), from: CoreId(core), conn: conn(slot) };
        self.with(|owner, around| owner.member_leave(&leave, around));
    }

    fn leave(&mut self, channel: &str, core: u16) {
        let leave = LeaveRequest { channel: channel.into(), local: LOCAL, from: CoreId(core) };
        self.with(|owner, around| owner.leave(&leave, around));
    }

    fn ask(&mut self, channel: &str, ask: ChannelAsk) -> Result<ChannelFact, CallError> {
        let call = ChannelCall { channel: channel.into(), ask, origin: Origin::Control { call: 9 }, from: CONTROL };
        self.with(|owner, around| owner.channel_call(&call, around));
        match self.told(CONTROL).pop() {
            Some(LaneMessage::ChannelAnswer(answer)) => {
                let ChannelAnswer { origin, result } = *answer;
                assert_eq!(origin, Origin::Control { call: 9 });
                result
            }
            other => panic!("{other:?}"),
        }
    }

    fn stats(&mut self, channel: &str) -> (u32, u32) {
        match self.ask(channel, ChannelAsk::PresenceStats) {
            Ok(ChannelFact::PresenceStats { clients, users }) => (clients, users),
            other => panic!("{other:?}"),
        }
    }

    fn present(&mut self, channel: &str) -> BTreeSet<String> {
        match self.ask(channel, ChannelAsk::Presence) {
            Ok(ChannelFact::Presence(members)) => members.iter().map(|member| member.client.to_string()).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// Offsets of the whole history, and the top.
    fn history(&mut self, channel: &str) -> (Vec<Offset>, Position) {
        match self.ask(channel, ChannelAsk::History(HistoryAsk { limit: -1, since: None, reverse: false })) {
            Ok(ChannelFact::History { publications, top }) => (publications.iter().map(|p| p.offset).collect(), top),
            other => panic!("{other:?}"),
        }
    }

    /// What a client that comes back with a position recovers; none: it cannot.
    fn recover(&mut self, channel: &str, offset: Offset, epoch: Option<Epoch>) -> Option<Vec<Offset>> {
        let recover = Some(RecoverFrom { offset, epoch });
        self.subscribe(SubscribeRequest { recover, ..request(channel, 1, 99) });
        match self.told(CoreId(1)).pop() {
            Some(LaneMessage::SubscribeAnswer(answer)) => match answer.result.expect("granted").recovery {
                Some(Recovery::Recovered(missed)) => Some(missed.iter().map(|p| p.offset).collect()),
                Some(Recovery::NotRecovered) => None,
                None => panic!("it was asked for"),
            },
            other => panic!("{other:?}"),
        }
    }
}

const LOCAL: LocalChannelId = LocalChannelId { slot: 4, generation: 2 };

fn conn(slot: u32) -> ConnId {
    ConnId { slot, generation: 1 }
}

fn member(core: u16, slot: u32, user: &str) -> Member {
    Member {
        core: CoreId(core),
        conn: conn(slot),
        client: alloc::format!("{core}-{slot}").into(),
        user: user.into(),
        conn_info: Box::default(),
        chan_info: Box::default(),
    }
}

fn watching() -> Variant {
    plain().with_join_leave(true)
}

fn plain() -> Variant {
    Variant::plain(Form::Json)
}

fn request(channel: &str, core: u16, slot: u32) -> SubscribeRequest {
    SubscribeRequest {
        channel: channel.into(),
        local: LOCAL,
        variant: plain(),
        member: None,
        tell_join_leave: false,
        recover: None,
        conn: conn(slot),
        command: slot,
        from: CoreId(core),
    }
}

fn watcher(channel: &str, core: u16, slot: u32) -> SubscribeRequest {
    SubscribeRequest { variant: watching(), ..request(channel, core, slot) }
}

fn rules() -> Namespace {
    let mut rules = Namespace::closed("");
    rules.history_size = 10;
    rules.history_ttl_ms = 60_000;
    rules.recovery = true;
    rules.presence = true;
    rules.join_leave = true;
    rules
}

/// A join or leave as a watcher reads it: "+client" or "-client".
fn event(publication: &Publication) -> String {
    let frame = publication.frame(watching(), false).expect("a watcher needs it");
    let text = String::from_utf8_lossy(frame).into_owned();
    let client = text.split("\"client\":\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a client");
    let sign = match (text.contains("\"join\":"), text.contains("\"leave\":")) {
        (true, false) => '+',
        (false, true) => '-',
        _ => panic!("{text}"),
    };
    alloc::format!("{sign}{client}")
}

/// Answers as "answer", joins and leaves as above.
fn heard(messages: &[LaneMessage]) -> Vec<String> {
    let text = |message: &LaneMessage| match message {
        LaneMessage::SubscribeAnswer(_) => "answer".to_string(),
        LaneMessage::Deliver { publication, .. } => event(publication),
        other => panic!("{other:?}"),
    };
    messages.iter().map(text).collect()
}

#[test]
fn a_member_hears_of_itself_behind_its_answer() {
    let mut bed = Bed::new(rules(), Limits::DEFAULT);
    bed.subscribe(watcher("c", 2, 1));
    bed.subscribe(request("c", 0, 1));
    let member = Some(Box::new(member(1, 7, "ann")));
    bed.subscribe(SubscribeRequest { member, tell_join_leave: true, ..watcher("c", 1, 7) });
    assert_eq!(heard(&bed.told(CoreId(1))), ["answer", "+1-7"]);
    assert_eq!(heard(&bed.told(CoreId(2))), ["answer", "+1-7"]);
    assert_eq!(heard(&bed.told(CoreId(0))), ["answer"], "nobody there asked to hear of it");
    bed.member_leave("c", 1, 7);
    bed.member_leave("c", 1, 7);
    bed.member_leave("nobody's", 1, 7);
    assert_eq!(heard(&bed.told(CoreId(2))), ["-1-7"]);
    assert_eq!(bed.metrics.get(Metric::JoinLeaveTold), 2);
    assert_eq!(bed.metrics.get(Metric::PresenceMembers), 0);
}

#[test]
fn a_member_that_is_not_to_be_told_of_comes_and_goes_silently() {
    let mut bed = Bed::new(rules(), Limits::DEFAULT);
    bed.subscribe(watcher("c", 2, 1));
    let silent = Some(Box::new(member(1, 7, "ann")));
    bed.subscribe(SubscribeRequest { member: silent, ..request("c", 1, 7) });
    assert_eq!(bed.stats("c"), (1, 1));
    bed.member_leave("c", 1, 7);
    assert_eq!(bed.stats("c"), (0, 0));
    assert_eq!(heard(&bed.told(CoreId(2))), ["answer"]);
}

#[test]
fn presence_over_its_limits_is_refused_but_still_counted() {
    let mut bed = Bed::new(rules(), Limits { presence_members_max: 3, ..Limits::DEFAULT });
    for (slot, user) in [(1, "ann"), (2, "ann"), (3, "bob")] {
        bed.join("c", 1, slot, user);
    }
    assert_eq!(bed.present("c").len(), 3);
    bed.join("c", 2, 1, "");
    assert_eq!(bed.ask("c", ChannelAsk::Presence).err(), Some(CallError::LimitExceeded));
    assert_eq!(bed.stats("c"), (4, 3));
    assert_eq!(bed.metrics.get(Metric::ChannelCallsTooLarge), 1);
    let mut bed = Bed::new(rules(), Limits { call_answer_bytes_max: 1_024, ..Limits::DEFAULT });
    bed.join("c", 1, 1, &"u".repeat(1_024));
    assert_eq!(bed.ask("c", ChannelAsk::Presence).err(), Some(CallError::LimitExceeded));
}

#[test]
fn what_a_namespace_does_not_have_is_not_available() {
    let mut bed = Bed::new(Namespace::closed(""), Limits::DEFAULT);
    let history = ChannelAsk::History(HistoryAsk { limit: 1, since: None, reverse: false });
    for ask in [ChannelAsk::Presence, ChannelAsk::PresenceStats, history, ChannelAsk::HistoryRemove] {
        assert_eq!(bed.ask("c", ask.clone()).err(), Some(CallError::NotAvailable), "{ask:?}");
        assert_eq!(bed.ask("", ask).err(), Some(CallError::UnknownChannel));
    }
    bed.join("c", 1, 1, "ann");
    assert_eq!(bed.stats("c"), (1, 1), "a member by its token");
}

#[test]
fn a_crowd_is_told_of_by_ticks() {
    let mut crowded = rules();
    crowded.join_leave_members_max = 2;
    crowded.join_leave_above = JoinLeaveAbove::Coalesce;
    crowded.join_leave_interval_ms = 1_000;
    let mut bed = Bed::new(crowded, Limits::DEFAULT);
    bed.subscribe(watcher("c", 2, 1));
    for slot in 1..=100 {
        bed.join("c", 1, slot, "ann");
    }
    assert_eq!(heard(&bed.told(CoreId(2))), ["answer", "+1-1", "+1-2"]);
    bed.now_ms += 1_000 - TICK_MS;
    bed.with(|owner, around| owner.sweep(around));
    assert!(bed.told(CoreId(2)).is_empty());
    bed.now_ms += TICK_MS;
    bed.with(|owner, around| owner.sweep(around));
    assert_eq!(heard(&bed.told(CoreId(2))), ["+1-100"]);
    bed.now_ms += 60_000;
    bed.with(|owner, around| owner.sweep(around));
    assert!(bed.told(CoreId(2)).is_empty(), "once is enough");
    assert_eq!(bed.metrics.get(Metric::JoinLeaveDropped), 97);
    bed.member_leave("c", 1, 50);
    assert_eq!(heard(&bed.told(CoreId(2))), ["-1-50"], "a rested channel waits for nothing");
}

#[test]
fn a_core_s_members_leave_with_its_interest() {
    let mut bed = Bed::new(rules(), Limits::DEFAULT);
    bed.subscribe(watcher("c", 2, 1));
    for slot in 1..=3 {
        bed.join("c", 1, slot, "ann");
    }
    bed.join("c", 0, 1, "bob");
    bed.told(CoreId(2));
    let old = LocalChannelId { slot: 4, generation: 1 };
    let late = LeaveRequest { channel: "c".into(), local: old, from: CoreId(1) };
    bed.with(|owner, around| owner.leave(&late, around));
    assert_eq!(bed.stats("c"), (4, 2), "a leave for a former name");
    bed.leave("c", 1);
    assert_eq!(bed.stats("c"), (1, 1));
    let gone: BTreeSet<_> = heard(&bed.told(CoreId(2))).into_iter().collect();
    assert_eq!(gone, ["-1-1", "-1-2", "-1-3"].map(String::from).into());
    bed.member_leave("c", 1, 2);
    assert!(bed.told(CoreId(2)).is_empty());
    assert_eq!(bed.metrics.get(Metric::PresenceMembers), 1);
}

#[test]
fn removed_history_leaves_epoch_and_offsets() {
    let mut bed = Bed::new(rules(), Limits::DEFAULT);
    assert!((0..5).all(|_| bed.publish("c").is_ok()));
    let (offsets, before) = bed.history("c");
    assert_eq!((offsets.as_slice(), before.offset), (&[1, 2, 3, 4, 5][..], 5));
    assert!(matches!(bed.ask("c", ChannelAsk::HistoryRemove), Ok(ChannelFact::Removed)));
    assert_eq!(bed.history("c"), ([].into(), before));
    assert_eq!(bed.recover("c", 5, Some(before.epoch)), Some([].into()), "has everything");
    assert_eq!(bed.recover("c", 4, Some(before.epoch)), None);
    assert_eq!(bed.publish("c"), Ok(Position { offset: 6, epoch: before.epoch }));
    assert_eq!(bed.recover("c", 5, Some(before.epoch)), Some([6].into()));
    assert_eq!(bed.recover("c", 4, Some(before.epoch)), None);
    bed.with(|owner, around| owner.sweep(around));
    assert_eq!(bed.metrics.get(Metric::HistoryPublications), 1);
}

#[test]
fn the_position_of_an_unused_channel_holds_for_a_later_subscribe() {
    let mut bed = Bed::new(rules(), Limits::DEFAULT);
    let (offsets, top) = bed.history("c");
    assert_eq!((offsets.len(), top.offset), (0, 0));
    bed.publish("c").expect("published");
    assert_eq!(bed.recover("c", 0, Some(top.epoch)), Some([1].into()));
    let wrong = Some(Since { offset: 0, epoch: Some(Epoch { boot: 1, creation: 1 }) });
    let ask = ChannelAsk::History(HistoryAsk { limit: 0, since: wrong, reverse: false });
    assert_eq!(bed.ask("c", ask).err(), Some(CallError::UnrecoverablePosition));
}

#[test]
fn a_time_without_history_leaves_no_hole_in_it() {
    let mut bed = Bed::new(rules(), Limits::DEFAULT);
    assert!((0..3).all(|_| bed.publish("c").is_ok()));
    bed.reload(Namespace { history_size: 0, recovery: false, ..rules() }, Vec::new());
    assert!(bed.publish("c").is_ok());
    bed.reload(rules(), Vec::new());
    let position = bed.publish("c").expect("published");
    assert_eq!(bed.history("c"), ([5].into(), position));
    assert_eq!(bed.recover("c", 3, Some(position.epoch)), None);
    assert_eq!(bed.recover("c", 4, Some(position.epoch)), Some([5].into()));
}

#[test]
fn what_is_too_old_is_in_no_answer() {
    let mut bed = Bed::new(rules(), Limits::DEFAULT);
    let first = bed.publish("c").expect("published");
    bed.now_ms += 59_999;
    assert_eq!(bed.history("c").0, [1]);
    bed.now_ms += 1;
    assert_eq!(bed.history("c"), ([].into(), first));
}

#[test]
fn what_skips_history_has_no_number() {
    let mut bed = Bed::new(rules(), Limits::DEFAULT);
    bed.subscribe(request("c", 1, 1));
    let first = bed.publish("c").expect("published");
    let skipped = bed.publish_as("c", Origin::Control { call: 2 }, true).expect("published");
    assert_eq!(skipped, Position { offset: 0, epoch: first.epoch });
    assert_eq!(bed.publish("c").expect("published").offset, 2);
    assert_eq!(bed.history("c").0, [1, 2]);
    let delivered: Vec<Offset> = bed
        .told(CoreId(1))
        .iter()
        .filter_map(|message| match message {
            LaneMessage::Deliver { publication, .. } => Some(publication.offset),
            _ => None,
        })
        .collect();
    assert_eq!(delivered, [1, 0, 2]);
}

#[test]
fn clients_have_a_rate_and_backends_none() {
    let mut limited = rules();
    limited.publish_rate_per_channel = 3;
    let mut bed = Bed::new(limited, Limits::DEFAULT);
    let client = Origin::Client { conn: conn(1), command: 1 };
    let passed = |bed: &mut Bed| (0..10).filter(|_| bed.publish_as("c", client, false).is_ok()).count();
    assert_eq!(passed(&mut bed), 3);
    assert_eq!(bed.publish_as("c", client, false), Err(PublishError::Busy));
    assert_eq!(bed.metrics.get(Metric::PublicationsRateLimited), 8);
    assert!((0..10).all(|_| bed.publish("c").is_ok()));
    bed.now_ms += 1_000;
    assert_eq!(passed(&mut bed), 3);
    assert_eq!(bed.history("c").1.offset, 16, "what was refused has no number");
}

#[test]
fn a_namespace_has_its_share_of_channels_until_idle_ones_go() {
    let mut few = rules();
    few.channels_per_shard_max = 2;
    let mut bed = Bed::new(few, Limits { channel_idle_ms: 10_000, ..Limits::DEFAULT });
    assert!(bed.publish("a").is_ok() && bed.publish("b").is_ok());
    assert_eq!(bed.publish("c"), Err(PublishError::Busy));
    bed.subscribe(request("c", 1, 1));
    let Some(LaneMessage::SubscribeAnswer(answer)) = bed.told(CoreId(1)).pop() else { panic!("no answer") };
    assert_eq!(answer.result.err(), Some(SubscribeError::Busy));
    assert_eq!(bed.metrics.get(Metric::ChannelsRefused), 2);
    bed.now_ms += 70_000;
    (0..2).for_each(|_| bed.with(|owner, around| owner.sweep(around)));
    assert!(bed.publish("c").is_ok());
}

#[test]
fn a_reload_moves_channels_to_their_new_namespace() {
    let mut bed = Bed::new(rules(), Limits::DEFAULT);
    assert!(bed.publish("news:a").is_ok());
    let mut news = rules();
    news.name = "news".into();
    news.channels_per_shard_max = 1;
    news.history_size = 0;
    news.recovery = false;
    bed.reload(rules(), [news.clone()].into());
    assert_eq!(bed.publish("news:b"), Ok(bed.history_of_nothing("news:b")), "nobody has counted news:a there yet");
    assert_eq!(bed.publish("news:a").map(|position| position.offset), Ok(2));
    let history = ChannelAsk::History(HistoryAsk { limit: 1, since: None, reverse: false });
    assert_eq!(bed.ask("news:a", history).err(), Some(CallError::NotAvailable));
    assert_eq!(bed.publish("news:c"), Err(PublishError::Busy), "both are counted now");
    let mut few = rules();
    few.channels_per_shard_max = 1;
    bed.reload(few, [news].into());
    assert!(bed.publish("other:c").is_ok(), "neither channel counts in the default namespace any more");
}

#[test]
fn cache_mode_answers_with_the_latest() {
    let mut cache = rules();
    cache.recovery_mode = RecoveryMode::Cache;
    let mut bed = Bed::new(cache, Limits::DEFAULT);
    assert_eq!(bed.recover("c", 0, None), None);
    assert!((0..3).all(|_| bed.publish("c").is_ok()));
    assert_eq!(bed.recover("c", 0, None), Some([3].into()));
}

#[test]
fn numbers_are_unique_on_the_node() {
    let mut seen = BTreeSet::new();
    for core in 0..3 {
        let mut owner = Owner::new(Limits::DEFAULT, Place { core: CoreId(core), ..PLACE }, None, 1);
        assert!((0..100).all(|_| seen.insert(owner.new_number())));
    }
    assert_eq!((seen.first(), seen.last()), (Some(&1), Some(&300)));
}

impl Bed {
    /// The position of the first publication of a channel that keeps none.
    fn history_of_nothing(&self, channel: &str) -> Position {
        let slot = self.owner.names.find(channel, |slot| name_at(&self.owner.channels, slot)).expect("it exists");
        let (_, channel) = self.owner.channels.at(slot).expect("it exists");
        assert!(channel.history.is_empty());
        Position { offset: 1, epoch: channel.epoch }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Join { core: u16, slot: u32 },
    MemberLeave { core: u16, slot: u32 },
    Leave { core: u16 },
    Publish,
    Keep(u32),
    Remove,
    Recover { back: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u16..2, 0u32..6).prop_map(|(core, slot)| Step::Join { core, slot }),
        3 => (0u16..2, 0u32..6).prop_map(|(core, slot)| Step::MemberLeave { core, slot }),
        1 => (0u16..2).prop_map(|core| Step::Leave { core }),
        4 => Just(Step::Publish),
        1 => prop_oneof![Just(0u32), Just(3), Just(10)].prop_map(Step::Keep),
        1 => Just(Step::Remove),
        2 => (0u64..8).prop_map(|back| Step::Recover { back }),
    ]
}

#[test]
fn a_channel_whose_namespace_a_reload_took_away_gets_nothing_new() {
    let mut bed = Bed::new(rules(), Limits::DEFAULT);
    let with = || {
        let chat = Namespace { name: "chat".into(), ..rules() };
        Namespaces::new(rules(), [chat].into()).expect("rules without contradiction")
    };
    bed.namespaces = with();
    assert_eq!(bed.publish("chat:1").map(|position| position.offset), Ok(1));
    let without = Namespaces::new(rules(), Vec::new()).expect("rules without contradiction");
    for (rules, expected) in [(without, Err(PublishError::UnknownChannel)), (with(), Ok(2))] {
        bed.namespaces = bed.namespaces.reloaded(rules).expect("the same kinds of payload");
        bed.owner.rules_changed();
        assert_eq!(bed.publish("chat:1").map(|position| position.offset), expected);
    }
}

proptest! {
    /// A watcher that adds joins and takes leaves away has the channel's presence at every moment, and recovery gives
    /// exactly what is missing or nothing, whatever is joined, left, published, removed and reloaded between.
    #[test]
    fn watchers_and_histories_agree_with_plain_models(steps in prop::collection::vec(step(), 0..120)) {
        let mut bed = Bed::new(rules(), Limits::DEFAULT);
        bed.subscribe(watcher("c", 2, 1));
        bed.told(CoreId(2));
        let (mut seen, mut model) = (BTreeSet::new(), BTreeSet::new());
        let (mut kept, mut top, mut size): (Vec<Offset>, _, _) = (Vec::new(), 0, 10);
        for step in steps {
            match step {
                Step::Join { core, slot } => {
                    bed.join("c", core, slot, "ann");
                    model.insert((core, slot));
                    // A new size holds from the next use on.
                    kept.drain(..kept.len().saturating_sub(size));
                }
                Step::MemberLeave { core, slot } => {
                    bed.member_leave("c", core, slot);
                    model.remove(&(core, slot));
                }
                Step::Leave { core } => {
                    bed.leave("c", core);
                    model.retain(|member| member.0 != core);
                }
                Step::Publish => {
                    top += 1;
                    prop_assert_eq!(bed.publish("c").map(|position| position.offset), Ok(top));
                    kept.push(top);
                    // What is not kept ends what was.
                    kept.drain(..kept.len().saturating_sub(size));
                }
                Step::Keep(history_size) => {
                    size = history_size as usize;
                    let reloaded = Namespace { history_size, recovery: history_size > 0, ..rules() };
                    bed.reload(reloaded, Vec::new());
                }
                Step::Remove => {
                    prop_assert_eq!(bed.ask("c", ChannelAsk::HistoryRemove).is_ok(), size > 0);
                    if size > 0 {
                        kept.clear();
                    }
                }
                Step::Recover { back } => {
                    let from = u64::saturating_sub(top, back);
                    let missed: Vec<Offset> = (from + 1..=top).collect();
                    kept.drain(..kept.len().saturating_sub(size));
                    let possible = kept.ends_with(&missed);
                    prop_assert_eq!(bed.recover("c", from, None), possible.then_some(missed));
                }
            }
            for message in bed.told(CoreId(2)) {
                let LaneMessage::Deliver { publication, .. } = message else { panic!("{message:?}") };
                if !publication.is_event() {
                    continue;
                }
                let event = event(&publication);
                let (sign, client) = event.split_at(1);
                prop_assert!(if sign == "+" { seen.insert(client.to_string()) } else { seen.remove(client) }, "{}", event);
            }
            let all: BTreeSet<String> = model.iter().map(|(core, slot)| alloc::format!("{core}-{slot}")).collect();
            prop_assert_eq!(&seen, &all);
            // Exact, or a core's leave would look through members that have gone, or miss some.
            for interest in &bed.owner.channels.at(0).expect("the channel").1.interest {
                let own = model.iter().filter(|(core, _)| *core == interest.core.0).count();
                prop_assert_eq!(interest.members as usize, own);
            }
            prop_assert_eq!(&bed.present("c"), &all);
            bed.told(CoreId(0));
            bed.told(CoreId(1));
        }
    }
}

#[test]
fn history_stays_within_its_bytes_and_what_it_forgot_is_counted() {
    const BYTES_MAX: u64 = 4_096;
    let mut bed = Bed::new(rules(), Limits { history_bytes_max: BYTES_MAX, ..Limits::DEFAULT });
    let channels: Vec<_> = (0..40).map(|number| alloc::format!("c{number}")).collect();
    for round in 1..=30 {
        for channel in &channels {
            assert_eq!(bed.publish(channel).map(|position| position.offset), Ok(round));
            assert!(bed.owner.history_bytes <= BYTES_MAX, "{}", bed.owner.history_bytes);
        }
    }
    let mut kept = 0;
    for channel in &channels {
        let (offsets, top) = bed.history(channel);
        assert!(offsets.iter().copied().eq(30 - offsets.len() as u64 + 1..=30), "{offsets:?}");
        assert_eq!(top.offset, 30);
        kept += offsets.len() as u64;
    }
    assert_eq!(bed.owner.history_len, kept);
    assert!(kept > 40, "{kept}");
    let forgotten = 40 * 30 - kept - bed.metrics.get(Metric::HistoryDropped);
    assert!(bed.metrics.get(Metric::HistoryDropped) > 0);
    assert!(forgotten <= 40 * 20, "what is over history_size is not counted as dropped: {forgotten}");
    bed.now_ms += 60_000;
    bed.with(|owner, around| owner.sweep(around));
    assert_eq!((bed.owner.history_bytes, bed.owner.history_len), (0, 0));
}

#[test]
fn what_was_looked_for_ahead_is_not_taken_for_another_channel() {
    let mut bed = Bed::new(rules(), Limits::DEFAULT);
    let entry = |channel, seq| Entry { seq, kind: PayloadKind::Json, idempotency_key: &[], channel, payload: b"1" };
    let mut channels = [None; LOOK_AHEAD];
    (channels[0], channels[2]) = (Some("a"), Some("b"));
    assert_eq!(bed.owner.look_ahead(channels), [None; LOOK_AHEAD]);
    for channel in ["a", "b"] {
        assert_eq!(bed.publish(channel).map(|position| position.offset), Ok(1));
    }
    let slots = bed.owner.look_ahead(channels);
    assert!(slots[0].is_some() && slots[1].is_none() && slots[2].is_some());
    // The slots of another channel, of none at all, and of a channel that is not there yet.
    for (channel, slot, offset) in [("a", slots[2], 2), ("b", Some(99), 2), ("c", slots[0], 1), ("a", slots[0], 3)] {
        let answer = bed.with(|owner, around| owner.take_entry(&entry(channel, offset), slot, around));
        assert_eq!(answer.result.map(|ack| ack.offset), Ok(offset));
    }
}
