//! One client command: decided by its session, carried out here.
//!
//! In: decoded commands. Out: replies into `self.replies`, requests to owners into the lanes.

use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use core::fmt::Write;

use ringway_wire::centrifuge::Form;
use ringway_wire::centrifuge::command::{Command, Request};
use ringway_wire::centrifuge::json;
use ringway_wire::centrifuge::reply::{ClientError, ConnectResult, ReplyWriter};
use ringway_wire::ingest::PayloadKind;

use super::Shard;
use crate::connection::{Connection, Phase};
use crate::ids::ConnId;
use crate::lane_message::{LaneMessage, Origin, PublishRequest, SubscribeRequest};
use crate::metrics::Metric;
use crate::publication::Publisher;
use crate::session::{Decision, SubscribeDecision, Subscription, SubscriptionState, client_id};
use crate::variant::Variant;

impl Shard {
    pub(super) fn command(&mut self, conn: ConnId, form: Form, command: &Command<'_>) {
        self.metrics.add(Metric::CommandsReceived, 1);
        let Some(Connection { phase: Phase::Client(session), .. }) = self.connections.get(conn.slot, conn.generation)
        else {
            return;
        };
        let id = command.id;
        match session.decide(command, &self.options) {
            Decision::Ignore => {}
            Decision::Refuse(error) => {
                match command.request {
                    Request::Subscribe(_) => self.metrics.add(Metric::SubscribesRefused, 1),
                    Request::Publish { .. } => self.metrics.add(Metric::PublicationsRefused, 1),
                    _ => {}
                }
                self.refuse(form, id, error);
            }
            Decision::Close(reason) => {
                self.send_replies(conn, form);
                self.close(conn, reason);
            }
            Decision::Welcome => self.welcome(conn, form, id),
            Decision::AnswerPing => ReplyWriter::resume(form, &mut self.replies).ping_result(id),
            Decision::Subscribe(decision) => self.ask_owner(conn, form, id, &decision),
            Decision::Unsubscribe { channel } => self.unsubscribe(conn, form, id, channel),
            Decision::Publish { channel, data } => self.publish(conn, form, id, channel, data),
        }
    }

    pub(super) fn refuse(&mut self, form: Form, id: u32, error: ClientError) {
        self.metrics.add(Metric::CommandErrors, 1);
        ReplyWriter::resume(form, &mut self.replies).error(id, error);
    }

    fn welcome(&mut self, conn: ConnId, form: Form, id: u32) {
        let Some(Connection { phase: Phase::Client(session), .. }) =
            self.connections.get_mut(conn.slot, conn.generation)
        else {
            return;
        };
        session.connected = true;
        let interval_ms = self.options.limits.ping_interval_ms as u64;
        if interval_ms == 0 {
            self.timers.disarm(conn.slot);
        } else {
            // The first ping after half to one interval, so that clients who came together are not pinged together.
            let first_ms = interval_ms / 2 + self.random.below(interval_ms / 2);
            self.timers.arm(conn.slot, self.now_ms + first_ms);
        }
        self.metrics.add(Metric::SessionsConnected, 1);
        ReplyWriter::resume(form, &mut self.replies).connect(
            id,
            &ConnectResult {
                client: client_id(self.options.boot, self.options.core, conn).as_ref(),
                version: concat!("ringway ", env!("CARGO_PKG_VERSION")),
                // The protocol counts seconds; the client waits at least as long as we do.
                ping: interval_ms.div_ceil(1_000) as u32,
                pong: interval_ms > 0,
                ..ConnectResult::default()
            },
        );
    }

    fn ask_owner(&mut self, conn: ConnId, form: Form, id: u32, decision: &SubscribeDecision<'_>) {
        let SubscribeDecision { channel, namespace, recover, reject_unrecovered } = *decision;
        let known = self.fanouts.find(channel);
        let crowded = known.is_none() && self.fanouts.len() >= self.options.limits.channels_per_shard_max;
        let Some(Connection { phase: Phase::Client(session), .. }) =
            self.connections.get_mut(conn.slot, conn.generation)
        else {
            return;
        };
        if known.is_some_and(|local| session.subscription(local).is_some()) {
            self.metrics.add(Metric::SubscribesRefused, 1);
            return self.refuse(form, id, ClientError::AlreadySubscribed);
        }
        if crowded {
            self.metrics.add(Metric::SubscribesRefused, 1);
            return self.refuse(form, id, ClientError::TooManyRequests);
        }
        let local = self.fanouts.follow(channel, namespace);
        session.in_flight += 1;
        session.subscriptions.push(Subscription {
            local,
            state: SubscriptionState::Asked { command: id, recover, reject_unrecovered, unsubscribe: None },
        });
        self.metrics.set(Metric::ChannelsFollowed, self.fanouts.len() as u64);
        let request = SubscribeRequest {
            channel: channel.into(),
            local,
            variant: Variant::plain(form),
            member: None,
            tell_join_leave: false,
            recover,
            conn,
            command: id,
            from: self.options.core,
        };
        self.lanes.push(self.owner_of(channel), LaneMessage::Subscribe(request.into()));
    }

    fn unsubscribe(&mut self, conn: ConnId, form: Form, id: u32, channel: &str) {
        let local = self.fanouts.find(channel);
        let Some(Connection { phase: Phase::Client(session), .. }) =
            self.connections.get_mut(conn.slot, conn.generation)
        else {
            return;
        };
        let index = local.and_then(|local| session.subscription(local));
        // Without a subscription the answer is the same: the client is not subscribed.
        let Some(index) = index else { return ReplyWriter::resume(form, &mut self.replies).unsubscribe(id) };
        if let SubscriptionState::Asked { unsubscribe, .. } = &mut session.subscriptions[index].state {
            // Answered in order, behind the subscribe.
            *unsubscribe = Some(id);
            return;
        }
        let subscription = session.subscriptions.swap_remove(index);
        self.leave(conn, &subscription);
        ReplyWriter::resume(form, &mut self.replies).unsubscribe(id);
    }

    fn publish(&mut self, conn: ConnId, form: Form, id: u32, channel: &str, data: &[u8]) {
        let kind = self.options.namespaces.resolve(channel).map_or(PayloadKind::Json, |(_, ns)| ns.payload);
        let Some(payload) = self.checked_payload(kind, data) else {
            self.metrics.add(Metric::PublicationsRefused, 1);
            return self.refuse(form, id, ClientError::BadRequest);
        };
        let Some(Connection { phase: Phase::Client(session), .. }) =
            self.connections.get_mut(conn.slot, conn.generation)
        else {
            return;
        };
        session.in_flight += 1;
        let client = client_id(self.options.boot, self.options.core, conn).as_ref().to_owned();
        let request = PublishRequest {
            channel: channel.into(),
            payload,
            kind,
            idempotency_key: Box::default(),
            publisher: Some(Box::new(Publisher { user: Box::default(), client: client.into() })),
            skip_history: false,
            origin: Origin::Client { conn, command: id },
            from: self.options.core,
        };
        self.lanes.push(self.owner_of(channel), LaneMessage::Publish(request.into()));
    }

    /// A payload as it goes into frames: JSON is checked here, once, and loses its raw newlines. None: it is no JSON.
    pub(super) fn checked_payload(&mut self, kind: PayloadKind, data: &[u8]) -> Option<Box<[u8]>> {
        if kind == PayloadKind::Bytes {
            return Some(data.into());
        }
        if !(self.options.utf8)(data) {
            return None;
        }
        if !json::check(data).ok()? {
            return Some(data.into());
        }
        self.payload.clear();
        self.payload.extend_from_slice(data);
        json::remove_newlines(&mut self.payload);
        Some(self.payload.as_slice().into())
    }
}

/// An epoch's text without an allocation.
pub(super) struct EpochText {
    bytes: [u8; crate::ids::Epoch::TEXT_BYTES_MAX],
    len: usize,
}

impl EpochText {
    pub(super) fn new(epoch: crate::ids::Epoch) -> Self {
        let mut text = EpochText { bytes: [0; crate::ids::Epoch::TEXT_BYTES_MAX], len: 0 };
        // Cannot fail: the array holds the longest text.
        let _ = write!(text, "{epoch}");
        text
    }

    pub(super) fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

impl Write for EpochText {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        let end = self.len + s.len();
        self.bytes.get_mut(self.len..end).ok_or(core::fmt::Error)?.copy_from_slice(s.as_bytes());
        self.len = end;
        Ok(())
    }
}
