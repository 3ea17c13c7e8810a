//! What an owner on a node of a fleet does at its own bounds: refuses or gives up early, and counts it.

use alloc::format;

use ringway_wire::centrifuge::Form;

use super::following::LONELY_MAX;
use super::presence::QUESTIONS_MAX;
use super::*;
use crate::backplane::Page;
use crate::call::{CallError, ChannelAsk, ChannelCall};
use crate::ids::{Epoch, LocalChannelId};
use crate::lane_message::{LeaveRequest, SubscribeRequest};
use crate::lanes::LanesOut;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::namespace::{Namespace, Namespaces};
use crate::owner::Place;
use crate::variant::Variant;

const ASKER: CoreId = CoreId(1);
const BACKPLANE: CoreId = CoreId(2);

struct Node {
    owner: Owner,
    lanes: LanesOut,
    metrics: Metrics,
    namespaces: Namespaces,
}

impl Node {
    fn new() -> Node {
        let rules = Namespace { presence: true, ..Namespace::closed("") };
        let place = Place { core: CoreId(0), shards: 1, boot: 1 };
        let fleet = Some(FleetPlace { core: BACKPLANE, wall_offset_ms: 0 });
        let mut node = Node {
            owner: Owner::new(Limits::DEFAULT, place, fleet, 7),
            lanes: LanesOut::new(CoreId(0), 3, usize::MAX, 1_000),
            metrics: Metrics::new(),
            namespaces: Namespaces::new(rules, Vec::new()).expect("rules").with_catch_all(true),
        };
        node.with(|owner, around| owner.backplane_event(Event::Restored(Box::new(Buckets::ALL)), around));
        node
    }

    fn with<R>(&mut self, act: impl FnOnce(&mut Owner, &mut Surroundings<'_>) -> R) -> R {
        let mut around = Surroundings {
            lanes: &mut self.lanes,
            metrics: &mut self.metrics,
            namespaces: &self.namespaces,
            now_ms: 1_000,
        };
        act(&mut self.owner, &mut around)
    }

    fn said(&mut self, to: CoreId) -> Vec<LaneMessage> {
        core::iter::from_fn(|| self.lanes.take_batch(to)).flat_map(|batch| batch.messages).collect()
    }

    fn requests(&mut self) -> Vec<(Token, Request)> {
        let request = |message| match message {
            LaneMessage::ToBackplane { token, request } => (token, *request),
            other => panic!("{other:?}"),
        };
        self.said(BACKPLANE).into_iter().map(request).collect()
    }
}

#[test]
fn one_presence_call_too_many_is_refused_and_counted() {
    let mut node = Node::new();
    for call in 0..=u64::from(QUESTIONS_MAX) {
        let origin = Origin::Control { call };
        let call = ChannelCall { channel: "news".into(), ask: ChannelAsk::PresenceStats, origin, from: ASKER };
        node.with(|owner, around| owner.channel_call(&call, around));
    }
    assert_eq!(node.requests().len(), QUESTIONS_MAX as usize);
    let answers = node.said(ASKER);
    let [LaneMessage::ChannelAnswer(answer)] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(answer.origin, Origin::Control { call: QUESTIONS_MAX.into() });
    assert!(matches!(answer.result, Err(CallError::Busy)));
    assert_eq!(node.metrics.get(Metric::FleetPresenceRefused), 1);
}

#[test]
fn the_channel_that_was_left_first_is_given_up_early_and_counted() {
    let mut node = Node::new();
    let local = |slot| LocalChannelId { slot, generation: 0 };
    let name = |slot| format!("channel-{slot}").into_boxed_str();
    let last = LONELY_MAX as u32;
    for slot in 0..=last {
        let request = SubscribeRequest {
            channel: name(slot),
            local: local(slot),
            variant: Variant::plain(Form::Json),
            member: None,
            tell_join_leave: false,
            recover: None,
            conn: ConnId { slot: 0, generation: 0 },
            command: slot,
            from: ASKER,
        };
        node.with(|owner, around| owner.subscribe(request, around));
    }
    for (token, _) in node.requests() {
        let top = Position { offset: 0, epoch: Epoch { boot: 1, creation: 1 } };
        let page = Page { top, first: 0, records: Vec::new(), joined: true };
        node.with(|owner, around| owner.backplane_event(Event::Answer(token, Ok(Answer::Page(page))), around));
    }
    for slot in 0..=last {
        assert_eq!(node.requests(), [], "nothing is given up before the bound");
        let leave = LeaveRequest { channel: name(slot), local: local(slot), from: ASKER };
        node.with(|owner, around| owner.leave(&leave, around));
    }
    let given_up: Vec<Request> = node.requests().into_iter().map(|(_, request)| request).collect();
    assert_eq!(given_up, [Request::Unfollow(Subject::Channel(name(0)))]);
    assert_eq!(node.metrics.get(Metric::FleetLonelyCut), 1);
}
