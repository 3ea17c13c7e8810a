//! Messages of cores: requests to this core as an owner, and owners' answers and publications for its connections.
//!
//! In: lane messages, in the order in which each core said them. Out: the owner's work, replies to clients, fan-outs.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use ringway_wire::centrifuge::Form;
use ringway_wire::centrifuge::reply::{ClientError, ReplyWriter};
use ringway_wire::close::CloseReason;

use super::Shard;
use super::events::ClientEvent;
use super::subscribe::INSUFFICIENT_STATE;
use crate::call::{ChannelAnswer, UserAnswer};
use crate::connection::{Connection, Phase};
use crate::ids::{ConnId, CoreId, LocalChannelId};
use crate::lane_message::{LaneMessage, LeaveRequest, Origin, PublishAnswer};
use crate::metrics::Metric;
use crate::namespace::{EventMode, Namespaces};
use crate::seam::Note;
use crate::subscription::{AnswerTo, Asked, Leaving, Subscription};

/// Channels that this core has given up, by their place.
pub(super) type GivenUp = BTreeMap<(u32, u32), Abandoned>;

/// A channel that this core gives up because publications were lost on their way to it.
#[derive(Debug)]
pub(super) struct Abandoned {
    name: Box<str>,
    /// Backends hear of its subscriptions.
    told: bool,
}

impl Shard {
    pub(super) fn lane(&mut self, message: LaneMessage) {
        match message {
            LaneMessage::Publish(request) => self.owned_publish(*request),
            LaneMessage::PublishRun(run) => self.owned_publish_run(&run),
            LaneMessage::RunAnswer(answer) => self.run_answered(&answer),
            LaneMessage::Subscribe(request) => self.owned_subscribe(*request),
            LaneMessage::Leave(request) => self.owned_leave(&request),
            LaneMessage::MemberLeave(request) => self.owned_member_leave(&request),
            LaneMessage::ChannelCall(call) => self.owned_channel_call(&call),
            LaneMessage::ChannelsCall(call) => self.begin_listing(*call),
            LaneMessage::UserJoin(presence) => self.owned_user_join(&presence),
            LaneMessage::UserLeave(presence) => self.owned_user_leave(&presence),
            LaneMessage::UserEnter(entrant) => self.owned_user_enter(*entrant),
            LaneMessage::UserEntered(entered) => self.user_entered(*entered),
            LaneMessage::UserExit(presence) => self.owned_user_exit(&presence),
            LaneMessage::UserPark(parking) => self.owned_user_park(*parking),
            LaneMessage::UserParked(conn) => self.was_parked(conn),
            LaneMessage::UserTake(taker) => {
                let (owner, mut around) = self.owner();
                owner.take_parked(*taker, &mut around);
            }
            LaneMessage::UserTaken(taken) => {
                let (taker, taken) = *taken;
                self.parked_came(taker, taken.map(|taken| *taken));
            }
            LaneMessage::UserCall(call) if call.origin.is_some() => self.owned_user_call(&call),
            LaneMessage::PublishAnswer(answer) => self.publish_answered(&answer),
            LaneMessage::SubscribeAnswer(answer) => self.subscribe_answered(*answer),
            LaneMessage::BackendChanged(notice) => self.backend_changed(&notice),
            LaneMessage::Event(delivery) => self.deliver_event(&delivery),
            LaneMessage::EventAcknowledged { backend, event } => self.event_acknowledged(backend, event),
            LaneMessage::EventAnswered(answered) => self.event_answered(*answered),
            LaneMessage::ChannelAnswer(answer) if let Origin::IngestCall { conn, call } = answer.origin => {
                self.ingest_channel_answered(conn, call, &answer.result);
            }
            LaneMessage::UserAnswer(UserAnswer { origin: Origin::IngestCall { conn, call }, result }) => {
                self.ingest_user_answered(conn, call, result);
            }
            LaneMessage::ChannelsAnswer(answer) if let Origin::IngestCall { conn, call } = answer.origin => {
                self.ingest_channels_answered(conn, call, *answer);
            }
            LaneMessage::ChannelAnswer(answer) => self.channel_answered(*answer),
            LaneMessage::TokenChecked(checked) => self.token_checked(*checked),
            LaneMessage::RevokeToken(token_id) => self.revoke_token(&token_id),
            LaneMessage::UserCall(call) => self.carry_out(&call),
            LaneMessage::Rules(rules) => self.rules_changed(rules),
            LaneMessage::Backplane(event) => self.backplane_event(*event),
            LaneMessage::Insufficient { local } => self.give_up(local),
            // The control plane and the backplane have inboxes of their own.
            LaneMessage::UserAnswer(_) | LaneMessage::ChannelsAnswer(_) | LaneMessage::ToBackplane { .. } => {
                self.metrics.add(Metric::LaneStale, 1)
            }
            LaneMessage::Deliver { local, publication } => {
                if !self.fanouts.deliver(local, publication) {
                    self.metrics.add(Metric::LaneStale, 1);
                }
            }
        }
    }

    /// New rules hold from here on; channels that this core owns follow when they are next used, or swept.
    fn rules_changed(&mut self, rules: Arc<Namespaces>) {
        self.fanouts.rules_changed(&rules);
        self.options.namespaces = rules;
        let (owner, _) = self.owner();
        owner.rules_changed();
    }

    fn publish_answered(&mut self, answer: &PublishAnswer) {
        match (answer.origin, answer.result) {
            (Origin::Client { conn, command }, result) => self.client_publish_answered(conn, command, result.err()),
            // The control plane has an inbox of its own, and calls are not publishes.
            (Origin::Control { .. } | Origin::IngestCall { .. }, _) => self.metrics.add(Metric::LaneStale, 1),
        }
    }

    fn channel_answered(&mut self, answer: ChannelAnswer) {
        match answer.origin {
            Origin::Client { conn, command } => self.client_read_answered(conn, command, &answer),
            // The control plane has an inbox of its own.
            Origin::IngestCall { .. } | Origin::Control { .. } => {
                self.metrics.add(Metric::LaneStale, 1);
            }
        }
    }

    /// Publications from `from` were dropped: whoever follows a channel of that core is told to come back and
    /// recover. What was asked of it and not answered is refused for now; a late answer finds nobody.
    pub(super) fn lane_lost(&mut self, from: CoreId) {
        let channels: Vec<_> = self
            .fanouts
            .iter()
            .filter(|(_, channel)| self.owner_of(&channel.name) == from)
            .map(|(local, _)| local)
            .collect();
        channels.into_iter().for_each(|local| self.give_up(local));
        let subscriptions = self.end_given_up();
        self.note(Note::LaneLost { from, subscriptions });
    }

    /// Tells the subscribers of channels that were given up in this turn.
    pub(super) fn tell_insufficient(&mut self) {
        if !self.given_up.is_empty() {
            self.end_given_up();
        }
    }

    /// The same for one client, whose commands are to be read: it must not be answered that it has left a channel, and then be
    /// told to subscribe again.
    pub(super) fn tell_insufficient_to(&mut self, conn: ConnId) {
        if self.given_up.is_empty() {
            return;
        }
        let Some(form) = self.session(conn).map(|session| session.form) else { return };
        let gone = core::mem::take(&mut self.given_up);
        self.end_subscriptions(conn, form, &gone);
        self.send_replies(conn, form);
        self.given_up.extend(gone);
    }

    /// Nothing more of this channel goes out, and its owner hears that this core left.
    fn give_up(&mut self, local: LocalChannelId) {
        let told = self.events_of(local) != EventMode::Off;
        let Some(name) = self.fanouts.abandon(local) else { return };
        let leave = LeaveRequest { channel: name.clone(), local, from: self.options.core };
        self.lanes.push(self.owner_of(&name), LaneMessage::Leave(leave.into()));
        self.given_up.insert((local.slot, local.generation), Abandoned { name, told });
    }

    /// Ends the subscriptions to all channels that were given up; returns how many clients' were ended.
    fn end_given_up(&mut self) -> u32 {
        let gone = core::mem::take(&mut self.given_up);
        let mut subscriptions = 0;
        for slot in 0..self.connections.slots() {
            let Some((generation, Connection { phase: Phase::Client(session), .. })) = self.connections.at(slot) else {
                continue;
            };
            let (conn, form) = (ConnId { slot, generation }, session.form);
            subscriptions += self.end_subscriptions(conn, form, &gone);
            self.send_replies(conn, form);
        }
        self.metrics.set(Metric::ChannelsFollowed, self.fanouts.len() as u64);
        subscriptions
    }

    /// Ends a client's subscriptions to channels that are gone; returns how many it was told of.
    fn end_subscriptions(&mut self, conn: ConnId, form: Form, gone: &GivenUp) -> u32 {
        let Some(session) = self.session_mut(conn) else { return 0 };
        let channel = |one: &Subscription| gone.get(&(one.local.slot, one.local.generation));
        let ended = session.subscriptions.remove_all(|subscription| channel(subscription).is_some());
        let told = ended.len() as u32;
        let mut lost_server_side = false;
        for subscription in ended {
            if let Some(asked) = subscription.asked() {
                lost_server_side |= self.asked_in_vain(conn, form, asked);
                continue;
            }
            let Some(channel) = channel(&subscription) else { continue };
            self.metrics.sub(Metric::SubscriptionsOpen, 1);
            let server_side = subscription.traits().server_side;
            lost_server_side |= server_side;
            if !server_side {
                let (code, reason) = INSUFFICIENT_STATE;
                self.pushes(conn).push_unsubscribe(&channel.name, code, reason);
            }
            if channel.told {
                self.tell_backend(conn, &ClientEvent::Unsubscribe { channel: &channel.name });
            }
        }
        if lost_server_side {
            // The client cannot subscribe again by itself: it comes back, and its connect result carries what it missed.
            self.send_replies(conn, form);
            self.close(conn, CloseReason::InsufficientState);
        }
        told
    }

    /// A subscription's answer was lost with the lane. True: without that channel the client would think that it has lost
    /// the right to it, so it has to come back.
    fn asked_in_vain(&mut self, conn: ConnId, form: Form, asked: &Asked) -> bool {
        self.metrics.add(Metric::SubscribesRefused, 1);
        self.metrics.add(Metric::CommandErrors, 1);
        if let Some(session) = self.session_mut(conn) {
            session.in_flight -= 1;
        }
        if let AnswerTo::Command(command) = asked.answer_to {
            ReplyWriter::resume(form, &mut self.replies).error(command, ClientError::Internal);
        }
        if let Some(Leaving::Command(unsubscribe)) = asked.leaving {
            ReplyWriter::resume(form, &mut self.replies).unsubscribe(unsubscribe);
        }
        asked.answer_to == AnswerTo::Connect
    }
}
