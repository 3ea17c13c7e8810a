//! A subscription's life on its connection's core: asked for, answered, ended.
//!
//! In: subscribe commands, server-side subscriptions of tokens and backends, verdicts, owners' answers, unsubscribes.
//! Out: answers and pushes to the client; `ask_owner.rs` says what owners hear.
//!
//! ```text
//! command ─> right: granted │ token's verdict │ backend's word ─> owner ─> answer: join the list, tell the client
//! ```
//! Invariants: a subscriber joins its list when the owner's answer is taken from the lane, so that what comes behind it
//! is the first it gets; a member of a channel's presence is reported gone exactly once, behind its subscribe.

use alloc::boxed::Box;

use ringway_wire::centrifuge::Form;
use ringway_wire::centrifuge::command::SubscribeRequest as SubscribeCommand;
use ringway_wire::centrifuge::reply::{
    ClientError, PublicationView, PushData, ReplyWriter, SubscribePush, SubscribeResult,
};
use ringway_wire::close::CloseReason;

use super::Shard;
use super::epoch_text::EpochText;
use super::events::ClientEvent;
use crate::backends::Denied;
use crate::connection::{Connection, Phase};
use crate::ids::{ConnId, LocalChannelId};
use crate::lane_message::{LaneMessage, MemberLeave, RecoverFrom, Recovery, SubscribeAnswer, Subscribed};
use crate::metrics::Metric;
use crate::namespace::{EventMode, NamespaceId};
use crate::opening::Granted;
use crate::session::{AskWhat, Right, SubscribeDecision, client_id};
use crate::subscription::{
    AnswerTo, Asked, Leaving, Subscription, SubscriptionExtra, Traits, Wants, hears_join_leave, traits_of,
};
use crate::tokens::{Overrides, SubscribeClaims, TokenAsk, TokenCheck, TokenError, TokenSubscription};
use crate::variant::Variant;

/// Text of an unsubscribe push after lost publications; code 2500 makes the SDK subscribe again and recover.
pub(super) const INSUFFICIENT_STATE: (u32, &str) = (2500, "insufficient state");
/// What a recovered publication takes in an answer beside its payload, offset and publisher included.
const RECOVERED_ENVELOPE_BYTES: usize = 128;

/// How a server-side subscription comes to be.
pub(super) struct Made {
    pub(super) answer_to: AnswerTo,
    /// Where to resume, as an order says; else where the client says that it is.
    pub(super) recover: Option<RecoverFrom>,
    /// Where another node stopped; counts if nobody knows better.
    pub(super) parked: Option<RecoverFrom>,
    /// The next connect does not bring it by itself.
    pub(super) run_time: bool,
}

impl Shard {
    pub(super) fn subscribe(&mut self, conn: ConnId, id: u32, decision: &SubscribeDecision<'_>) {
        let SubscribeDecision { request, namespace, right, recover } = *decision;
        let channel = &*request.channel;
        if let Err(error) = self.has_place(conn, channel) {
            self.metrics.add(Metric::SubscribesRefused, 1);
            let Some(form) = self.form_of(conn) else { return };
            return self.refuse(form, id, error);
        }
        let wants = Wants { recovery: request.recoverable || request.recover, positioned: request.positioned };
        let rules = self.options.namespaces.get(namespace);
        let traits = traits_of(rules, &Overrides::default(), wants);
        let join_leave = hears_join_leave(rules, &Overrides::default(), request.join_leave);
        let delta = rules.delta && *request.delta == *"fossil";
        let compact = request.flag & SubscribeCommand::FLAG_COMPACTION != 0;
        let Some(session) = self.session_mut(conn) else { return };
        let compact = compact && session.takes_numbers;
        let variant = session.variant().with_join_leave(join_leave).with_delta(delta).with_compact(compact);
        let asked = Asked {
            answer_to: AnswerTo::Command(id),
            recover,
            reject_unrecovered: request.flag & SubscribeCommand::FLAG_REJECT_UNRECOVERED != 0,
            ..Asked::default()
        };
        let Some((local, number)) = self.begin_subscription(conn, channel, namespace, variant, traits, asked) else {
            return;
        };
        match right {
            Right::Granted => self.ask_owner(conn, local, number),
            Right::Token => {
                let ask = TokenAsk { core: self.options.core, conn, ask: number };
                match self.options.tokens.clone().check_subscribe(&request.token, ask) {
                    TokenCheck::Done(verdict) => self.subscribe_checked(conn, local, number, verdict),
                    TokenCheck::Later => self.wait(conn, number, AskWhat::Subscribe { local }),
                }
            }
            Right::Backend => {
                match self.ask_backend(conn, number, &ClientEvent::Subscribe { channel, data: request.data }) {
                    Ok(()) => self.wait(conn, number, AskWhat::Subscribe { local }),
                    Err(denied) => self.subscribe_denied(conn, local, number, denied.into()),
                }
            }
        }
    }

    /// Makes a server-side subscription, unless the client has the channel already or it cannot be had.
    pub(super) fn server_subscribe(
        &mut self,
        conn: ConnId,
        subscription: TokenSubscription,
        recover: Option<RecoverFrom>,
        answer_to: AnswerTo,
    ) -> bool {
        let made = Made { answer_to, recover, parked: None, run_time: answer_to == AnswerTo::Push };
        self.make_subscription(conn, subscription, made)
    }

    /// As [`Shard::server_subscribe`], also for one that another node had made.
    pub(super) fn make_subscription(&mut self, conn: ConnId, subscription: TokenSubscription, made: Made) -> bool {
        let Made { answer_to, recover, parked, run_time } = made;
        let channel = &*subscription.channel;
        let resolved = self.options.namespaces.resolve(channel).map(|(id, _)| id);
        let (Some(namespace), Ok(())) = (resolved, self.has_place(conn, channel)) else {
            self.metrics.add(Metric::SubscribesRefused, 1);
            return false;
        };
        let rules = self.options.namespaces.get(namespace);
        let traits = Traits {
            server_side: true,
            run_time,
            ..traits_of(rules, &subscription.overrides, Wants { recovery: recover.is_some(), positioned: false })
        };
        let join_leave = hears_join_leave(rules, &subscription.overrides, false);
        // Where another node stopped, recovery needs no wish of the client's.
        let recovers = traits.recoverable || (parked.is_some() && rules.recovery);
        let now_ms = self.now_ms;
        let Some(session) = self.session_mut(conn) else { return false };
        let known = session.opening().filter(|_| answer_to == AnswerTo::Connect);
        let known = known.and_then(|opening| opening.known.iter().find(|known| *known.channel == *channel));
        let recover = recover.or(known.map(|known| known.from)).or(parked).filter(|_| recovers);
        let variant = session.variant().with_join_leave(join_leave);
        let kept = if run_time { subscription.data.clone() } else { Box::default() };
        let asked = Asked { answer_to, recover, data: subscription.data, ..Asked::default() };
        let begun = self.begin_subscription(conn, channel, namespace, variant, traits, asked);
        let Some((local, number)) = begun else { return false };
        let expires_at_ms = subscription.expires_in_ms.map(|ms| now_ms + ms);
        self.set_extra(conn, local, number, SubscriptionExtra { info: subscription.info, expires_at_ms, data: kept });
        self.ask_owner(conn, local, number);
        true
    }

    /// Whether the client may have one more channel, and this one.
    pub(super) fn has_place(&self, conn: ConnId, channel: &str) -> Result<(), ClientError> {
        let limits = &self.options.limits;
        let known = self.fanouts.find(channel);
        let Some(session) = self.session(conn) else { return Err(ClientError::Internal) };
        let is_handed_over = self.hand_overs.holds(conn, channel);
        if is_handed_over || known.is_some_and(|local| session.subscription(local).is_some()) {
            return Err(ClientError::AlreadySubscribed);
        }
        if session.subscriptions.len() >= limits.subscriptions_per_connection_max as usize {
            return Err(ClientError::LimitExceeded);
        }
        if known.is_none() && self.fanouts.len() >= limits.channels_per_shard_max {
            return Err(ClientError::TooManyRequests);
        }
        Ok(())
    }

    /// Notes a subscription that nobody has granted yet; returns what names it.
    fn begin_subscription(
        &mut self,
        conn: ConnId,
        channel: &str,
        namespace: NamespaceId,
        variant: Variant,
        traits: Traits,
        asked: Asked,
    ) -> Option<(LocalChannelId, u32)> {
        self.session(conn)?;
        let local = self.fanouts.follow(channel, namespace);
        self.metrics.set(Metric::ChannelsFollowed, self.fanouts.len() as u64);
        let number = self.new_request();
        let session = self.session_mut(conn)?;
        session.in_flight += 1;
        let asked = Asked { request: number, ..asked };
        session.subscriptions.push(Subscription::asked_for(local, variant, traits, asked));
        Some((local, number))
    }

    fn set_extra(&mut self, conn: ConnId, local: LocalChannelId, number: u32, extra: SubscriptionExtra) {
        let Some(session) = self.session_mut(conn) else { return };
        let Some(index) = session.asked(local, number) else { return };
        if !extra.is_empty() {
            session.subscriptions[index].set_extra(extra);
        }
    }

    /// A subscription token's verdict.
    pub(super) fn subscribe_checked(
        &mut self,
        conn: ConnId,
        local: LocalChannelId,
        number: u32,
        verdict: Result<SubscribeClaims, TokenError>,
    ) {
        let claims = match verdict {
            Ok(claims) => claims,
            Err(TokenError::Invalid) => {
                self.metrics.add(Metric::TokensInvalid, 1);
                return self.refuse_subscribe(conn, local, number, ClientError::PermissionDenied);
            }
            Err(TokenError::Expired) => {
                self.metrics.add(Metric::TokensExpired, 1);
                return self.refuse_subscribe(conn, local, number, ClientError::TokenExpired);
            }
            Err(TokenError::Busy) => {
                return self.refuse_subscribe(conn, local, number, ClientError::TooManyRequests);
            }
        };
        // Given up since, because publications were lost: it has been answered.
        let Some(channel) = self.fanouts.get(local).map(|channel| &*channel.name) else { return };
        if !self.is_for(conn, channel, &claims) {
            self.metrics.add(Metric::TokensInvalid, 1);
            return self.close(conn, CloseReason::InvalidToken);
        }
        self.grant(conn, local, number, claims.subscription);
    }

    /// Whether a subscription token speaks of this client and this channel.
    pub(super) fn is_for(&self, conn: ConnId, channel: &str, claims: &SubscribeClaims) -> bool {
        let client = client_id(self.options.boot, self.options.core, conn);
        let same_client = claims.client.is_empty() || *claims.client == *client.as_ref();
        let same_user = self.session(conn).is_some_and(|session| session.user() == &*claims.user);
        same_client && same_user && *channel == *claims.subscription.channel
    }

    /// A backend's word about a subscribe.
    pub(super) fn subscribe_decided(
        &mut self,
        conn: ConnId,
        local: LocalChannelId,
        number: u32,
        answer: Result<TokenSubscription, Denied>,
    ) {
        match answer {
            Ok(subscription) => self.grant(conn, local, number, subscription),
            Err(denied) => self.subscribe_denied(conn, local, number, denied),
        }
    }

    fn subscribe_denied(&mut self, conn: ConnId, local: LocalChannelId, number: u32, denied: Denied) {
        self.end_asked(conn, local, number, |shard, form, command| shard.deny(conn, form, command, &denied));
    }

    /// Somebody who may has granted the subscription; what they said of it holds.
    fn grant(&mut self, conn: ConnId, local: LocalChannelId, number: u32, granted: TokenSubscription) {
        let now_ms = self.now_ms;
        let Some(namespace) = self.fanouts.get(local).map(|channel| channel.namespace) else { return };
        let rules = self.options.namespaces.get(namespace);
        let Some(Connection { phase: Phase::Client(session), .. }) =
            self.connections.get_mut(conn.slot, conn.generation)
        else {
            return;
        };
        let Some(index) = session.asked(local, number) else { return };
        let subscription = &mut session.subscriptions[index];
        let before = subscription.traits();
        let wants = Wants { recovery: before.recoverable, positioned: before.positioned };
        subscription.set_traits(traits_of(rules, &granted.overrides, wants));
        let hears = hears_join_leave(rules, &granted.overrides, subscription.variant.join_leave());
        subscription.variant = subscription.variant.with_join_leave(hears);
        if let Some(asked) = subscription.asked_mut() {
            asked.data = granted.data;
        }
        let expires_at_ms = granted.expires_in_ms.map(|after_ms| now_ms + after_ms);
        let extra = SubscriptionExtra { info: granted.info, expires_at_ms, ..SubscriptionExtra::default() };
        self.set_extra(conn, local, number, extra);
        self.ask_owner(conn, local, number);
    }

    fn refuse_subscribe(&mut self, conn: ConnId, local: LocalChannelId, number: u32, error: ClientError) {
        self.end_asked(conn, local, number, |shard, form, command| shard.refuse(form, command, error));
    }

    /// Ends a subscription whose owner was not asked, with an error.
    fn end_asked(
        &mut self,
        conn: ConnId,
        local: LocalChannelId,
        number: u32,
        answer: impl FnOnce(&mut Self, Form, u32),
    ) {
        self.metrics.add(Metric::SubscribesRefused, 1);
        let Some((form, mut subscription)) = self.take_asked(conn, number, local) else { return };
        self.fanouts.answered(local);
        self.unfollow_if_unused(local);
        let Some(asked) = subscription.take_asked() else { return };
        if let AnswerTo::Command(command) = asked.answer_to {
            answer(self, form, command);
        }
        if let Some(Leaving::Command(unsubscribe)) = asked.leaving {
            ReplyWriter::resume(form, &mut self.replies).unsubscribe(unsubscribe);
        }
    }

    /// An owner's answer. The subscriber joins its core's list now: what comes behind this answer in the lane is the
    /// first it gets.
    pub(super) fn subscribe_answered(&mut self, answer: SubscribeAnswer) {
        let SubscribeAnswer { conn, command: number, local, result } = answer;
        if !self.fanouts.answered(local) {
            self.metrics.add(Metric::LaneStale, 1);
            return;
        }
        if self.position_came(conn, number, local, result.as_ref().ok().map(|granted| granted.top)) {
            return self.unfollow_if_unused(local);
        }
        if let Some((form, subscription)) = self.take_asked(conn, number, local) {
            let granted = result.ok().map(|granted| self.fitted(conn, granted));
            self.answer_subscriber(conn, subscription, granted);
            self.send_replies(conn, form);
        } else {
            self.metrics.add(Metric::LaneStale, 1);
        }
        self.unfollow_if_unused(local);
    }

    /// A recovery that would not fit the outbox is none: the client reloads its state instead of being closed as slow,
    /// coming back with the same offset, and being closed again.
    fn fitted(&mut self, conn: ConnId, mut granted: Subscribed) -> Subscribed {
        let Some(Recovery::Recovered(publications)) = &granted.recovery else { return granted };
        let waiting = self.connections.get(conn.slot, conn.generation).map_or(0, |c| c.outbox.bytes() as usize);
        // Several server-side subscriptions are answered together.
        let gathered = self.session(conn).and_then(|session| session.opening()).map_or(0, |opening| opening.bytes());
        let bytes = publications.payload_bytes() + publications.len() * RECOVERED_ENVELOPE_BYTES;
        // Half of the outbox is left to what comes behind.
        if waiting + gathered + bytes > self.options.limits.outbox_bytes_max as usize / 2 && !publications.is_empty() {
            self.metrics.add(Metric::RecoveriesTooLarge, 1);
            granted.recovery = Some(Recovery::NotRecovered);
        }
        granted
    }

    /// The subscription that waits under this number, out of its session.
    fn take_asked(&mut self, conn: ConnId, number: u32, local: LocalChannelId) -> Option<(Form, Subscription)> {
        let session = self.session_mut(conn)?;
        let index = session.asked(local, number)?;
        session.in_flight -= 1;
        Some((session.form, session.subscriptions.swap_remove(index)?))
    }

    fn answer_subscriber(&mut self, conn: ConnId, mut subscription: Subscription, subscribed: Option<Subscribed>) {
        let Some(asked) = subscription.take_asked() else { return };
        let local = subscription.local;
        let Asked { answer_to, recover, reject_unrecovered, data, leaving, .. } = asked;
        let Some(channel) = self.fanouts.get(local) else { return };
        let has_position = self.options.namespaces.get(channel.namespace).history_size > 0;
        let (name, form) = (channel.name.clone(), subscription.variant.form());
        let unrecovered = |granted: &Subscribed| matches!(granted.recovery, Some(Recovery::NotRecovered));
        // Ended by an order before it was granted, and since then there is another one: to end this one with a push
        // would end that one for the client.
        let live = self.session(conn).and_then(|session| session.subscription(local));
        let superseded = live.is_some() && matches!(leaving, Some(Leaving::Server { .. }));
        let refusal = match &subscribed {
            _ if superseded => Some(ClientError::AlreadySubscribed),
            None => Some(ClientError::TooManyRequests),
            Some(granted) if reject_unrecovered && unrecovered(granted) => Some(ClientError::UnrecoverablePosition),
            Some(_) => None,
        };
        let granted = subscribed.filter(|_| refusal.is_none()).map(|subscribed| Granted {
            channel: name.clone(),
            has_position,
            recover,
            subscribed,
            variant: subscription.variant,
            traits: subscription.traits(),
            expires_at_ms: subscription.expires_at_ms(),
            data,
        });
        let leaves = leaving.is_some();
        let joined = granted.is_some() && !leaves;
        if let (Some(error), AnswerTo::Command(command)) = (refusal, answer_to) {
            self.metrics.add(Metric::SubscribesRefused, 1);
            self.refuse(form, command, error);
        }
        if let (Some(granted), AnswerTo::Command(command)) = (&granted, answer_to) {
            self.write_subscribe_result(command, granted);
        }
        match &leaving {
            Some(Leaving::Command(id)) => ReplyWriter::resume(form, &mut self.replies).unsubscribe(*id),
            Some(Leaving::Server { code, reason }) if !superseded && matches!(answer_to, AnswerTo::Command(_)) => {
                self.pushes(conn).push_unsubscribe(&name, *code, reason);
            }
            Some(Leaving::Server { .. }) | None => {}
        }
        if joined {
            self.join(conn, subscription, &name);
        } else if subscription.traits().member && !leaves {
            // The owner has counted it in already (or refused, and finds nobody).
            self.member_left(conn, &name);
        }
        match (answer_to, granted) {
            (AnswerTo::Connect, granted) => self.opening_answered(conn, granted.filter(|_| joined)),
            (AnswerTo::Push, Some(granted)) if joined => self.push_subscribed(conn, &granted),
            _ => {}
        }
    }

    fn join(&mut self, conn: ConnId, mut subscription: Subscription, channel: &str) {
        let index = self.fanouts.join(subscription.local, subscription.variant, conn.slot);
        subscription.joined(index);
        self.metrics.add(Metric::SubscriptionsOpen, 1);
        let expires = subscription.expires_at_ms().is_some();
        let told = self.events_of(subscription.local) == EventMode::Notify;
        let Some(session) = self.session_mut(conn) else { return };
        session.subscriptions.push(subscription);
        if expires {
            self.arm_client(conn);
        }
        if told {
            self.tell_backend(conn, &ClientEvent::Subscribe { channel, data: &[] });
        }
    }

    /// What backends are told of subscribes to a channel.
    pub(super) fn events_of(&self, local: LocalChannelId) -> EventMode {
        let namespace = self.fanouts.get(local).map(|channel| channel.namespace);
        namespace.map_or(EventMode::Off, |id| self.options.namespaces.get(id).subscribe_events)
    }

    /// What a client is told of a subscription. `epoch`: the text of its top's.
    pub(super) fn subscribe_result<'a>(&self, granted: &'a Granted, epoch: &'a str) -> SubscribeResult<'a> {
        let Granted { has_position, recover, subscribed, variant, traits, expires_at_ms, .. } = granted;
        let recovered = matches!(subscribed.recovery, Some(Recovery::Recovered(_)));
        SubscribeResult {
            expires: expires_at_ms.is_some(),
            ttl: ttl_s(*expires_at_ms, self.now_ms),
            recoverable: traits.recoverable,
            positioned: traits.positioned,
            epoch: if *has_position { epoch } else { "" },
            // The SDK advances from the client's own offset while it takes the publications.
            offset: match recover {
                Some(from) if recovered => from.offset,
                _ if *has_position => subscribed.top.offset,
                _ => 0,
            },
            recovered,
            was_recovering: recover.is_some(),
            data: (!granted.data.is_empty()).then_some(&*granted.data),
            delta: variant.delta(),
            id: if variant.compact() { subscribed.number } else { 0 },
        }
    }

    fn write_subscribe_result(&mut self, command: u32, granted: &Granted) {
        let epoch = EpochText::new(granted.subscribed.top.epoch);
        let result = self.subscribe_result(granted, epoch.as_str());
        // In a subscription with deltas, data is always text in JSON form.
        let data_as = if granted.variant.delta() { PushData::Whole } else { PushData::Plain };
        let missed = granted.subscribed.missed();
        let publications = missed.map(|missed| PublicationView { data_as, ..missed });
        ReplyWriter::resume(granted.variant.form(), &mut self.replies).subscribe(command, &result, publications);
    }

    /// Tells a client of a subscription that a backend has made at run time.
    fn push_subscribed(&mut self, conn: ConnId, granted: &Granted) {
        let epoch = EpochText::new(granted.subscribed.top.epoch);
        let result = self.subscribe_result(granted, epoch.as_str());
        let push = SubscribePush {
            recoverable: result.recoverable,
            epoch: result.epoch,
            offset: result.offset,
            positioned: result.positioned,
            data: &granted.data,
        };
        let mut writer = self.pushes(conn);
        writer.push_subscribe(&granted.channel, &push);
        // The push has no room for what was missed: it follows as ordinary publications.
        for missed in granted.subscribed.missed() {
            writer.push_publication(&granted.channel, &missed);
        }
    }

    pub(super) fn unsubscribe(&mut self, conn: ConnId, id: u32, channel: &str) {
        let local = self.fanouts.find(channel);
        let Some(session) = self.session_mut(conn) else { return };
        let form = session.form;
        let index = local.and_then(|local| session.subscription(local));
        // Without a subscription the answer is the same: the client is not subscribed. What the server has made the
        // client cannot end.
        let Some(index) = index.filter(|index| !session.subscriptions[*index].traits().server_side) else {
            return ReplyWriter::resume(form, &mut self.replies).unsubscribe(id);
        };
        if session.subscriptions[index].asked().is_some() {
            // Answered in order, behind the subscribe.
            return self.leave_when_answered(conn, index, Leaving::Command(id));
        }
        self.end_subscription(conn, index);
        ReplyWriter::resume(form, &mut self.replies).unsubscribe(id);
    }

    /// A subscription that nobody has granted yet is to end. Its membership ends now: another subscription of this client
    /// to the channel may be on its way to the owner before this one is answered.
    fn leave_when_answered(&mut self, conn: ConnId, index: usize, leaving: Leaving) {
        let Some(session) = self.session_mut(conn) else { return };
        let subscription = &mut session.subscriptions[index];
        let (local, member) = (subscription.local, subscription.traits().member);
        let Some(asked) = subscription.asked_mut() else { return };
        if asked.leaving.is_some() {
            return;
        }
        asked.leaving = Some(leaving);
        let counted_in = member && asked.sent;
        if counted_in && let Some(channel) = self.fanouts.get(local).map(|channel| channel.name.clone()) {
            self.member_left(conn, &channel);
        }
    }

    /// Ends a subscription from our side: the client is told with a push.
    pub(super) fn end_from_server(&mut self, conn: ConnId, index: usize, code: u32, reason: &str) {
        let Some(session) = self.session_mut(conn) else { return };
        if session.subscriptions[index].asked().is_some() {
            return self.leave_when_answered(conn, index, Leaving::Server { code, reason: reason.into() });
        }
        let local = session.subscriptions[index].local;
        let Some(channel) = self.fanouts.get(local).map(|channel| channel.name.clone()) else { return };
        self.end_subscription(conn, index);
        self.pushes(conn).push_unsubscribe(&channel, code, reason);
    }

    fn end_subscription(&mut self, conn: ConnId, index: usize) {
        let Some(session) = self.session_mut(conn) else { return };
        let Some(subscription) = session.subscriptions.swap_remove(index) else { return };
        self.leave(conn, &subscription);
    }

    /// Takes a connection out of a channel. An answer still on its way will find nobody.
    pub(super) fn leave(&mut self, conn: ConnId, subscription: &Subscription) {
        let local = subscription.local;
        let channel = self.fanouts.get(local).map(|channel| channel.name.clone());
        let asked_owner = match subscription.asked() {
            None => {
                self.metrics.sub(Metric::SubscriptionsOpen, 1);
                if let Some(place) = subscription.place() {
                    self.fanouts.leave(local, subscription.variant, place, &mut self.moved);
                    self.apply_moves();
                }
                if self.events_of(local) != EventMode::Off
                    && let Some(channel) = &channel
                {
                    self.tell_backend(conn, &ClientEvent::Unsubscribe { channel });
                }
                true
            }
            Some(asked) => {
                if !asked.sent {
                    // Nobody will answer what was never asked.
                    self.fanouts.answered(local);
                }
                asked.sent && asked.leaving.is_none()
            }
        };
        if asked_owner
            && subscription.traits().member
            && let Some(channel) = &channel
        {
            self.member_left(conn, channel);
        }
        self.unfollow_if_unused(local);
    }

    fn member_left(&mut self, conn: ConnId, channel: &str) {
        let leave = MemberLeave { channel: channel.into(), from: self.options.core, conn };
        self.tell_leave(self.owner_of(channel), LaneMessage::MemberLeave(leave.into()));
    }
}

/// Seconds until then, rounded up and at least one, so that an SDK never takes it for "never"; 0: never.
pub(super) fn ttl_s(expires_at_ms: Option<u64>, now_ms: u64) -> u32 {
    expires_at_ms.map_or(0, |at_ms| at_ms.saturating_sub(now_ms).div_ceil(1_000).clamp(1, u32::MAX as u64) as u32)
}
