//! Messages of cores: requests to this core as an owner, and owners' answers and publications for its connections.
//!
//! In: lane messages, in the order in which each core said them. Out: the owner's work, replies to clients, fan-outs.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use ringway_wire::centrifuge::Form;
use ringway_wire::centrifuge::reply::{ClientError, ReplyWriter, SubscribeResult};
use ringway_wire::ingest::Ack;

use super::Shard;
use super::command::EpochText;
use crate::connection::{Connection, Phase};
use crate::ids::{ConnId, CoreId, LocalChannelId};
use crate::lane_message::{
    LaneMessage, LeaveRequest, Origin, PublishAnswer, PublishError, RecoverFrom, Recovery, SubscribeAnswer, Subscribed,
};
use crate::metrics::Metric;
use crate::seam::Note;
use crate::session::{Subscription, SubscriptionState};
use crate::variant::Variant;

/// Text of an unsubscribe push after lost publications; code 2500 makes the SDK subscribe again and recover.
const INSUFFICIENT_STATE: (u32, &str) = (2500, "insufficient state");

/// What a recovered publication takes in an answer beside its payload, offset and publisher included.
const RECOVERED_ENVELOPE_BYTES: usize = 128;

impl Shard {
    pub(super) fn lane(&mut self, message: LaneMessage) {
        match message {
            LaneMessage::Publish(request) => self.owned_publish(*request),
            LaneMessage::Subscribe(request) => self.owned_subscribe(*request),
            LaneMessage::Leave(request) => self.owned_leave(&request),
            LaneMessage::MemberLeave(request) => self.owned_member_leave(&request),
            LaneMessage::ChannelCall(call) => self.owned_channel_call(&call),
            LaneMessage::ChannelsCall(call) => self.owned_channels_call(*call),
            LaneMessage::UserJoin(presence) => self.owned_user_join(*presence),
            LaneMessage::UserLeave(presence) => self.owned_user_leave(&presence),
            LaneMessage::UserCall(call) if call.origin.is_some() => self.owned_user_call(*call),
            LaneMessage::PublishAnswer(answer) => self.publish_answered(&answer),
            LaneMessage::SubscribeAnswer(answer) => self.subscribe_answered(*answer),
            LaneMessage::Rules(rules) => {
                self.options.namespaces = rules;
                self.owner.rules_changed();
            }
            LaneMessage::ChannelAnswer(_)
            | LaneMessage::UserCall(_)
            | LaneMessage::UserAnswer(_)
            | LaneMessage::ChannelsAnswer(_)
            | LaneMessage::TokenChecked(_)
            | LaneMessage::RevokeToken(_) => {}
            LaneMessage::Deliver { local, publication } => {
                if !self.fanouts.deliver(local, publication) {
                    self.metrics.add(Metric::LaneStale, 1);
                }
            }
        }
    }

    fn publish_answered(&mut self, answer: &PublishAnswer) {
        match (answer.origin, answer.result) {
            (Origin::Ingest { conn, seq, bytes }, Ok(position)) => {
                let epoch = (position.epoch.boot, position.epoch.creation);
                let ack = Ack { seq, offset: position.offset, epoch, duplicate: answer.duplicate };
                self.ingest_acknowledged(conn, bytes, ack);
            }
            (Origin::Ingest { conn, seq, bytes }, Err(error)) => self.ingest_refused(conn, seq, bytes, error),
            (Origin::Client { conn, command }, result) => self.client_publish_answered(conn, command, result.err()),
            // The control plane has an inbox of its own.
            (Origin::Control { .. }, _) => self.metrics.add(Metric::LaneStale, 1),
        }
    }

    fn client_publish_answered(&mut self, conn: ConnId, command: u32, error: Option<PublishError>) {
        let Some(Connection { phase: Phase::Client(session), .. }) =
            self.connections.get_mut(conn.slot, conn.generation)
        else {
            self.metrics.add(Metric::LaneStale, 1);
            return;
        };
        session.in_flight -= 1;
        let form = session.form;
        match error {
            None => ReplyWriter::resume(form, &mut self.replies).publish(command),
            Some(error) => self.refuse(form, command, client_error(error)),
        }
        self.send_replies(conn, form);
    }

    /// The subscriber joins its core's list now: what comes behind this answer in the lane is the first it gets.
    fn subscribe_answered(&mut self, answer: SubscribeAnswer) {
        let SubscribeAnswer { conn, command, local, result } = answer;
        if !self.fanouts.answered(local) {
            self.metrics.add(Metric::LaneStale, 1);
            return;
        }
        if let Some((form, subscription)) = self.take_asked(conn, command, local) {
            let granted = result.ok().map(|granted| self.fitted(conn, granted));
            self.answer_subscriber(conn, form, command, subscription, granted);
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
        let bytes: usize = publications.iter().map(|missed| missed.payload().len() + RECOVERED_ENVELOPE_BYTES).sum();
        // Half of the outbox is left to what comes behind.
        if waiting + bytes > self.options.limits.outbox_bytes_max as usize / 2 && !publications.is_empty() {
            self.metrics.add(Metric::RecoveriesTooLarge, 1);
            granted.recovery = Some(Recovery::NotRecovered);
        }
        granted
    }

    /// The subscription that waits for this answer, out of its session.
    fn take_asked(&mut self, conn: ConnId, command: u32, local: LocalChannelId) -> Option<(Form, Subscription)> {
        let Connection { phase: Phase::Client(session), .. } = self.connections.get_mut(conn.slot, conn.generation)?
        else {
            return None;
        };
        let index = session.asked(local, command)?;
        session.in_flight -= 1;
        Some((session.form, session.subscriptions.swap_remove(index)))
    }

    fn answer_subscriber(
        &mut self,
        conn: ConnId,
        form: Form,
        command: u32,
        subscription: Subscription,
        granted: Option<Subscribed>,
    ) {
        let SubscriptionState::Asked { recover, reject_unrecovered, unsubscribe, .. } = subscription.state else {
            return;
        };
        let joined = match granted {
            None => {
                self.refuse(form, command, ClientError::TooManyRequests);
                false
            }
            Some(Subscribed { recovery: Some(Recovery::NotRecovered), .. }) if reject_unrecovered => {
                self.refuse(form, command, ClientError::UnrecoverablePosition);
                false
            }
            Some(granted) => {
                self.reply_subscribed(form, command, subscription.local, recover, &granted);
                true
            }
        };
        if !joined {
            self.metrics.add(Metric::SubscribesRefused, 1);
        }
        if let Some(unsubscribe) = unsubscribe {
            ReplyWriter::resume(form, &mut self.replies).unsubscribe(unsubscribe);
        } else if joined {
            let index = self.fanouts.join(subscription.local, Variant::plain(form), conn.slot);
            self.metrics.add(Metric::SubscriptionsOpen, 1);
            if let Some(Connection { phase: Phase::Client(session), .. }) =
                self.connections.get_mut(conn.slot, conn.generation)
            {
                let state = SubscriptionState::Joined { index };
                session.subscriptions.push(Subscription { local: subscription.local, state });
            }
        }
    }

    fn reply_subscribed(
        &mut self,
        form: Form,
        command: u32,
        local: LocalChannelId,
        recover: Option<RecoverFrom>,
        granted: &Subscribed,
    ) {
        let Some(channel) = self.fanouts.get(local) else { return };
        let namespace = self.options.namespaces.get(channel.namespace);
        let epoch = EpochText::new(granted.top.epoch);
        let missed: &[_] = match &granted.recovery {
            Some(Recovery::Recovered(publications)) => publications,
            Some(Recovery::NotRecovered) | None => &[],
        };
        let recovered = matches!(granted.recovery, Some(Recovery::Recovered(_)));
        let has_position = namespace.history_size > 0;
        let result = SubscribeResult {
            recoverable: namespace.recovery,
            positioned: namespace.recovery,
            epoch: if has_position { epoch.as_str() } else { "" },
            // The SDK advances from the client's own offset while it takes the publications.
            offset: match recover {
                Some(from) if recovered => from.offset,
                _ if has_position => granted.top.offset,
                _ => 0,
            },
            recovered,
            was_recovering: recover.is_some(),
            ..SubscribeResult::default()
        };
        let publications = missed.iter().map(|publication| publication.view());
        ReplyWriter::resume(form, &mut self.replies).subscribe(command, &result, publications);
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
        let mut gone = BTreeMap::new();
        for local in channels {
            let Some(channel) = self.fanouts.abandon(local) else { continue };
            let leave = LeaveRequest { channel: channel.clone(), local, from: self.options.core };
            self.lanes.push(from, LaneMessage::Leave(leave.into()));
            gone.insert((local.slot, local.generation), channel);
        }
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
        self.note(Note::LaneLost { from, subscriptions });
    }

    /// Ends a client's subscriptions to channels that are gone; returns how many it was told of.
    fn end_subscriptions(&mut self, conn: ConnId, form: Form, gone: &BTreeMap<(u32, u32), Box<str>>) -> u32 {
        let Some(Connection { phase: Phase::Client(session), .. }) =
            self.connections.get_mut(conn.slot, conn.generation)
        else {
            return 0;
        };
        let mut ended = Vec::new();
        session.subscriptions.retain(|subscription| {
            let name = gone.get(&(subscription.local.slot, subscription.local.generation));
            ended.extend(name.map(|name| (name, subscription.state.clone())));
            name.is_none()
        });
        let asked = ended.iter().filter(|(_, state)| matches!(state, SubscriptionState::Asked { .. })).count();
        session.in_flight -= asked as u32;
        self.metrics.sub(Metric::SubscriptionsOpen, (ended.len() - asked) as u64);
        self.metrics.add(Metric::SubscribesRefused, asked as u64);
        self.metrics.add(Metric::CommandErrors, asked as u64);
        for (name, state) in &ended {
            let mut writer = ReplyWriter::resume(form, &mut self.replies);
            match state {
                SubscriptionState::Joined { .. } => {
                    let (code, reason) = INSUFFICIENT_STATE;
                    writer.push_unsubscribe(name, code, reason);
                }
                SubscriptionState::Asked { command, unsubscribe, .. } => {
                    writer.error(*command, ClientError::Internal);
                    if let Some(unsubscribe) = unsubscribe {
                        writer.unsubscribe(*unsubscribe);
                    }
                }
            }
        }
        ended.len() as u32
    }
}

/// A publish's refusal as a client sees it.
fn client_error(error: PublishError) -> ClientError {
    match error {
        PublishError::UnknownChannel => ClientError::UnknownChannel,
        PublishError::PermissionDenied => ClientError::PermissionDenied,
        PublishError::BadPayload => ClientError::BadRequest,
        PublishError::TooLarge => ClientError::LimitExceeded,
        PublishError::Busy => ClientError::TooManyRequests,
    }
}
