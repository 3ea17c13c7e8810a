//! Rules that are replaced while channels exist.
//!
//! Set-up: one shard alone, fed and read through its lanes. Claim: a channel that exists follows the new rules.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use ringway_engine::call::*;
use ringway_engine::ids::*;
use ringway_engine::lane_message::*;
use ringway_engine::limits::Limits;
use ringway_engine::namespace::*;
use ringway_engine::options::*;
use ringway_engine::seam::Input;
use ringway_engine::shard::Shard;
use ringway_engine::tokens::NoTokens;

const CONTROL: CoreId = CoreId(1);

fn rules(named: Vec<Namespace>) -> Namespaces {
    let kept = Namespace { history_size: 1, history_ttl_ms: 1_000, ..Namespace::closed("") };
    Namespaces::new(kept, named).unwrap().with_catch_all(true)
}

fn ask(shard: &mut Shard, ask: ChannelAsk) -> Result<ChannelFact, CallError> {
    let call = ChannelCall { channel: "chat:1".into(), ask, origin: Origin::Control { call: 1 }, from: CONTROL };
    shard.handle(Input::Lane { message: LaneMessage::ChannelCall(call.into()) });
    match shard.lanes().take_batch(CONTROL).unwrap().messages.pop() {
        Some(LaneMessage::ChannelAnswer(answer)) => answer.result,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_channel_that_exists_follows_the_rules_that_are_loaded_for_its_prefix() {
    let options = Options {
        core: CoreId(0),
        shards: 1,
        seed: 1,
        boot: 77,
        limits: Limits::DEFAULT,
        namespaces: rules(vec![]).into(),
        tokens: std::sync::Arc::new(NoTokens),
        access: Access::closed("/ws"),
        fleet: None,
        utf8: |bytes| std::str::from_utf8(bytes).is_ok(),
    };
    let mut shard = Shard::new(options, 1_000);
    let history = ChannelAsk::History(HistoryAsk { limit: 0, since: None, reverse: false });
    assert!(ask(&mut shard, history.clone()).is_ok(), "it is made, under the default rules");
    assert!(matches!(ask(&mut shard, ChannelAsk::PresenceStats), Err(CallError::NotAvailable)));
    let chat = Namespace { presence: true, ..Namespace::closed("chat") };
    let next = rules(vec![]).reloaded(rules(vec![chat])).unwrap();
    shard.handle(Input::Lane { message: LaneMessage::Rules(next.into()) });
    assert!(matches!(
        ask(&mut shard, ChannelAsk::PresenceStats),
        Ok(ChannelFact::PresenceStats { clients: 0, users: 0 })
    ));
    assert!(matches!(ask(&mut shard, history), Err(CallError::NotAvailable)));
}
