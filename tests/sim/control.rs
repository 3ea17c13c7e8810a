//! A model of the control plane: the server API as it reaches shards, over lanes.
//!
//! In: dice, answers of shards. Out: publishes, questions about channels, orders about users. Claims: each call has one
//! answer; what it publishes stands where the answer says; presence and its counts are those that clients believe in.

use std::collections::{BTreeMap, BTreeSet};

use ringway_engine::call::{
    CallError, ChannelAnswer, ChannelAsk, ChannelCall, ChannelFact, HistoryAsk, Since, UserAnswer, UserCall, UserOrder,
};
use ringway_engine::ids::{CoreId, Epoch};
use ringway_engine::lane_message::{LaneMessage, Origin, PublishAnswer, PublishError, PublishRequest};
use ringway_engine::tokens::TokenSubscription;
use ringway_wire::ingest::PayloadKind;

use crate::dice::Dice;
use crate::ledger::{Id, Ledger};
use crate::plan::{Plan, USERS, owner_of};
use crate::rules::Kind;

/// See the file's header.
#[derive(Debug, Default)]
pub(crate) struct Control {
    last: u64,
    /// Stands for this plane among the ledger's connections.
    connection: u64,
    pending: BTreeMap<u64, Asked>,
}

/// What awaits an answer.
#[derive(Debug)]
enum Asked {
    Publish { channel: usize, id: Id },
    History { channel: usize },
    Presence { channel: usize, expected: Expected },
    Stats { channel: usize, expected: Expected },
    Order,
}

/// What an answer about members must be.
#[derive(Debug)]
pub(crate) enum Expected {
    /// Nobody knows, while clients come and go.
    Anything,
    /// Members, as by now the rules say that there are.
    Something,
    /// These: client id and user id.
    Members(BTreeSet<(String, String)>),
}

/// What the control plane may touch while it acts.
pub(crate) struct Around<'a> {
    pub(crate) dice: &'a mut Dice,
    pub(crate) plan: &'a Plan,
    pub(crate) ledger: &'a mut Ledger,
}

/// A message and the shard it goes to.
pub(crate) type Said = (usize, LaneMessage);

impl Control {
    pub(crate) fn new(ledger: &mut Ledger) -> Self {
        Control { connection: ledger.connection(), ..Control::default() }
    }

    /// One call about anything.
    pub(crate) fn act(&mut self, around: &mut Around<'_>) -> Said {
        let channel = around.dice.below(around.plan.channels.len());
        match around.dice.below(16) {
            0..6 => self.publish(channel, around),
            6 => self.ask(channel, ChannelAsk::Presence, Expected::Anything, around.plan),
            7 => self.ask(channel, ChannelAsk::PresenceStats, Expected::Anything, around.plan),
            8..10 => {
                let ask =
                    HistoryAsk { limit: around.dice.pick(&[-1, 0, 5]), since: None, reverse: around.dice.one_in(2) };
                self.ask(channel, ChannelAsk::History(ask), Expected::Anything, around.plan)
            }
            _ => {
                let user = around.dice.pick(&USERS[..USERS.len() - 1]);
                let order = any_order(channel, around);
                self.order(user, order, around)
            }
        }
    }

    fn number(&mut self, asked: Asked) -> (u64, Origin) {
        self.last += 1;
        self.pending.insert(self.last, asked);
        (self.last, Origin::Control { call: self.last })
    }

    fn publish(&mut self, channel: usize, around: &mut Around<'_>) -> Said {
        let id = around.ledger.publish(channel, None, self.connection);
        let (_, origin) = self.number(Asked::Publish { channel, id });
        let plan = &around.plan.channels[channel];
        let request = PublishRequest {
            channel: plan.name.as_str().into(),
            payload: around.ledger.payload(id).into_bytes().into(),
            kind: PayloadKind::Json,
            idempotency_key: Box::default(),
            publisher: None,
            tags: Default::default(),
            skip_history: false,
            origin,
            from: CoreId(around.plan.shards as u16),
        };
        (plan.owner, LaneMessage::Publish(request.into()))
    }

    /// A question about a channel; `expected`: what its answer must be.
    pub(crate) fn ask(&mut self, channel: usize, ask: ChannelAsk, expected: Expected, plan: &Plan) -> Said {
        let asked = match ask {
            ChannelAsk::Presence => Asked::Presence { channel, expected },
            ChannelAsk::PresenceStats => Asked::Stats { channel, expected },
            ChannelAsk::History(_) | ChannelAsk::HistoryRemove => Asked::History { channel },
        };
        let (_, origin) = self.number(asked);
        let from = CoreId(plan.shards as u16);
        let call = ChannelCall { channel: plan.channels[channel].name.as_str().into(), ask, origin, from };
        (plan.channels[channel].owner, LaneMessage::ChannelCall(call.into()))
    }

    /// An order about a user, noted for the clients that it concerns.
    pub(crate) fn order(&mut self, user: &str, order: UserOrder, around: &mut Around<'_>) -> Said {
        let orders = &mut around.ledger.orders;
        let of_user = |channel| (user.to_owned(), channel);
        match &order {
            UserOrder::Subscribe { subscription, .. } => {
                orders.subscribed.insert(of_user(around.plan.number_of(&subscription.channel)));
            }
            UserOrder::Unsubscribe { channel, .. } if channel.is_empty() => {
                orders.unsubscribed.extend((0..around.plan.channels.len()).map(of_user));
            }
            UserOrder::Unsubscribe { channel, .. } => {
                orders.unsubscribed.insert(of_user(around.plan.number_of(channel)));
            }
            UserOrder::Disconnect { .. } => drop(orders.disconnected.insert(user.to_owned())),
            UserOrder::Refresh { .. } => drop(orders.refreshed.insert(user.to_owned())),
            UserOrder::Message { .. } => {}
        }
        let (_, origin) = self.number(Asked::Order);
        let from = CoreId(around.plan.shards as u16);
        let call = UserCall { user: user.into(), client: Box::default(), order, origin: Some(origin), from };
        (owner_of(user, around.plan.shards), LaneMessage::UserCall(call.into()))
    }

    /// An answer.
    pub(crate) fn take(&mut self, message: LaneMessage, plan: &Plan, ledger: &mut Ledger) {
        let number = |origin: Origin| match origin {
            Origin::Control { call } => call,
            other => panic!("an answer for {other:?}"),
        };
        match message {
            LaneMessage::PublishAnswer(answer) => {
                let asked = self.pending.remove(&number(answer.origin));
                let Some(Asked::Publish { channel, id }) = asked else { panic!("{answer:?} to {asked:?}") };
                published(channel, id, &answer, plan, ledger);
            }
            LaneMessage::ChannelAnswer(answer) => {
                let asked = self.pending.remove(&number(answer.origin));
                answered(asked.unwrap_or_else(|| panic!("a second answer: {answer:?}")), &answer, plan, ledger);
            }
            LaneMessage::UserAnswer(UserAnswer { origin, result }) => {
                let asked = self.pending.remove(&number(origin));
                assert!(matches!(asked, Some(Asked::Order)), "{asked:?}");
                let shards = result.expect("orders are carried out");
                ledger.counts.note("orders", 1);
                ledger.counts.note("orders for several shards", u64::from(shards > 1));
            }
            other => panic!("the control plane got {other:?}"),
        }
    }

    pub(crate) fn assert_answered(&self) {
        assert!(self.pending.is_empty(), "calls without an answer: {:?}", self.pending);
    }
}

fn any_order(channel: usize, around: &mut Around<'_>) -> UserOrder {
    let plan = &around.plan.channels[channel];
    match around.dice.below(16) {
        0..6 if !matches!(plan.kind, Kind::Fleeting | Kind::Late) => subscribe_order(channel, around),
        6..10 => unsubscribe_order(if around.dice.one_in(6) { "" } else { &plan.name }),
        10 => UserOrder::Disconnect { code: 4001, reason: "go".into(), whitelist: Vec::new() },
        11 if around.dice.one_in(3) => {
            let expires_in_ms = around.dice.pick(&[None, Some(500)]);
            UserOrder::Refresh { expired: around.dice.one_in(3), expires_in_ms, info: None }
        }
        _ => {
            around.ledger.messages += 1;
            let data = format!("{{\"message\":{}}}", around.ledger.messages);
            UserOrder::Message { data: data.into_bytes().into() }
        }
    }
}

/// Subscribe to a channel, sometimes from a position of the past.
pub(crate) fn subscribe_order(channel: usize, around: &mut Around<'_>) -> UserOrder {
    let plan = &around.plan.channels[channel];
    let subscription = TokenSubscription { channel: plan.name.as_str().into(), ..TokenSubscription::default() };
    let can_recover = matches!(plan.kind, Kind::Stream | Kind::Crowd | Kind::Token);
    let known = around.ledger.newest(channel).filter(|_| can_recover && around.dice.one_in(3));
    let recover = known.map(|(epoch, top)| {
        let back = around.dice.below(5) as u64;
        Since { offset: top.saturating_sub(back), epoch: Epoch::parse(&epoch) }
    });
    UserOrder::Subscribe { subscription, recover }
}

/// End the subscription to a channel; to all when empty.
pub(crate) fn unsubscribe_order(channel: &str) -> UserOrder {
    UserOrder::Unsubscribe { channel: channel.into(), code: 2000, reason: "ended".into() }
}

fn published(channel: usize, id: Id, answer: &PublishAnswer, plan: &Plan, ledger: &mut Ledger) {
    match answer.result {
        Ok(position) => {
            assert!(!answer.duplicate, "no key was given");
            ledger.place(channel, &position.epoch.to_string(), position.offset, id);
            ledger.accepted(channel);
            ledger.counts.note("published by control", 1);
        }
        Err(PublishError::UnknownChannel) if plan.channels[channel].kind == Kind::Fleeting => ledger.refuse(id),
        Err(error) => panic!("a publish to channel {channel} was refused: {error:?}"),
    }
}

fn answered(asked: Asked, answer: &ChannelAnswer, plan: &Plan, ledger: &mut Ledger) {
    let rules = |channel: usize| &plan.channels[channel].rules;
    let gone = |channel: usize, error: CallError| {
        plan.channels[channel].kind == Kind::Fleeting && error == CallError::UnknownChannel
    };
    match (asked, &answer.result) {
        (Asked::Presence { channel, expected }, Ok(ChannelFact::Presence(members))) => {
            let there: BTreeSet<_> =
                members.iter().map(|member| (member.client.to_string(), member.user.to_string())).collect();
            assert_eq!(there.len(), members.len(), "a client is there twice: {members:?}");
            if let Expected::Members(expected) = expected {
                assert_eq!(there, expected, "presence of channel {channel} and what clients believe");
                ledger.counts.note("presence compared", 1);
                ledger.counts.note("members compared", there.len() as u64);
            }
        }
        (Asked::Stats { channel, expected }, Ok(ChannelFact::PresenceStats { clients, users })) => {
            if let Expected::Members(expected) = expected {
                let distinct: BTreeSet<_> = expected.iter().map(|(_, user)| user).collect();
                assert_eq!(*clients as usize, expected.len(), "clients of channel {channel}: {expected:?}");
                assert_eq!(*users as usize, distinct.len(), "users of channel {channel}: {expected:?}");
            }
        }
        (Asked::History { channel }, Ok(ChannelFact::History { publications, top })) => {
            let epoch = top.epoch.to_string();
            for view in publications.iter() {
                let id = ledger.identify(channel, view.data, view.info.as_ref().map(|info| info.client));
                ledger.place(channel, &epoch, view.offset, id);
            }
            ledger.counts.note("history pages", 1);
        }
        (
            Asked::Presence { channel, expected: Expected::Anything }
            | Asked::Stats { channel, expected: Expected::Anything },
            Err(error),
        ) => {
            let none = !rules(channel).presence || plan.channels[channel].kind == Kind::Late;
            let known = gone(channel, *error) || (none && *error == CallError::NotAvailable);
            assert!(known, "presence of channel {channel}: {error:?}");
        }
        (Asked::History { channel }, Err(error)) => {
            let none = rules(channel).history_size == 0 && *error == CallError::NotAvailable;
            assert!(gone(channel, *error) || none, "history of channel {channel}: {error:?}");
        }
        (asked, result) => panic!("{asked:?} was answered {result:?}"),
    }
}
