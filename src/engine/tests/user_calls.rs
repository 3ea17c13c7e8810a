//! Calls about a user, at the core that owns the user.
//!
//! Set-up: shard 1 of three, fed and read through its lanes. Claim: a call reaches each core where the user has
//! connections, once and in order, before it is answered; nobody else hears of it.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use ringway_engine::call::*;
use ringway_engine::ids::*;
use ringway_engine::lane_message::*;
use ringway_engine::limits::Limits;
use ringway_engine::metrics::Metric;
use ringway_engine::namespace::*;
use ringway_engine::options::*;
use ringway_engine::seam::Input;
use ringway_engine::shard::Shard;
use ringway_engine::tokens::NoTokens;

const CONTROL: CoreId = CoreId(3);

fn shard() -> Shard {
    let options = Options {
        core: CoreId(1),
        shards: 3,
        seed: 1,
        boot: 77,
        limits: Limits::DEFAULT,
        namespaces: Namespaces::new(Namespace::closed(""), vec![]).unwrap().into(),
        tokens: std::sync::Arc::new(NoTokens),
        access: Access::closed("/ws"),
        fleet: None,
        utf8: |bytes| std::str::from_utf8(bytes).is_ok(),
    };
    Shard::new(options, 1_000)
}

fn presence(user: &str, core: u16) -> Box<UserPresence> {
    Box::new(UserPresence { user: user.into(), from: CoreId(core) })
}

fn say(shard: &mut Shard, message: LaneMessage) {
    shard.handle(Input::Lane { message });
}

fn call(shard: &mut Shard, user: &str, data: u8) {
    let call = UserCall {
        user: user.into(),
        client: "one".into(),
        order: UserOrder::Message { data: Box::new([data]) },
        origin: Some(Origin::Control { call: data.into() }),
        from: CONTROL,
    };
    say(shard, LaneMessage::UserCall(Box::new(call)));
}

/// What a core was told, as (user, data) of the calls passed on.
fn passed_on(shard: &mut Shard, core: u16) -> Vec<(String, u8)> {
    let Some(batch) = shard.lanes().take_batch(CoreId(core)) else { return vec![] };
    let calls = batch.messages.into_iter().map(|message| {
        let LaneMessage::UserCall(call) = message else { panic!("{message:?}") };
        assert_eq!((call.origin, call.from, &*call.client), (None, CoreId(1), "one"));
        let UserOrder::Message { data } = call.order else { panic!("{:?}", call.order) };
        (call.user.into(), data[0])
    });
    calls.collect()
}

fn answers(shard: &mut Shard) -> Vec<Result<u16, CallError>> {
    let batch = shard.lanes().take_batch(CONTROL).unwrap();
    let results = batch.messages.into_iter().map(|message| match message {
        LaneMessage::UserAnswer(answer) => answer.result,
        other => panic!("{other:?}"),
    });
    results.collect()
}

#[test]
fn calls_reach_the_user_s_cores_in_order() {
    let mut shard = shard();
    for (user, core) in [("ann", 0), ("ann", 2), ("bob", 2)] {
        say(&mut shard, LaneMessage::UserJoin(presence(user, core)));
    }
    assert_eq!(shard.metrics().get(Metric::UsersOnline), 2);
    call(&mut shard, "ann", 1);
    call(&mut shard, "bob", 2);
    call(&mut shard, "ann", 3);
    call(&mut shard, "nobody", 4);
    call(&mut shard, "", 5);
    assert_eq!(answers(&mut shard), [Ok(2), Ok(1), Ok(2), Ok(0), Err(CallError::BadRequest)]);
    let ann = |data| ("ann".to_string(), data);
    assert_eq!(passed_on(&mut shard, 0), [ann(1), ann(3)]);
    assert_eq!(passed_on(&mut shard, 2), [ann(1), ("bob".to_string(), 2), ann(3)]);
}

#[test]
fn a_core_that_the_user_has_left_hears_nothing_more() {
    let mut shard = shard();
    say(&mut shard, LaneMessage::UserJoin(presence("ann", 0)));
    call(&mut shard, "ann", 1);
    say(&mut shard, LaneMessage::UserLeave(presence("ann", 0)));
    call(&mut shard, "ann", 2);
    assert_eq!(answers(&mut shard), [Ok(1), Ok(0)]);
    assert_eq!(passed_on(&mut shard, 0), [("ann".to_string(), 1)]);
    assert_eq!(shard.metrics().get(Metric::UsersOnline), 0);
}
