//! A client's publish: checked, perhaps shown to a backend, sent to the owner, answered.
//!
//! In: publish commands, backends' words, owners' answers. Out: publishes to owners, replies.

use alloc::boxed::Box;

use ringway_wire::centrifuge::json;
use ringway_wire::centrifuge::reply::{ClientError, ReplyWriter};
use ringway_wire::ingest::PayloadKind;

use super::Shard;
use super::events::ClientEvent;
use crate::backends::Denied;
use crate::ids::ConnId;
use crate::lane_message::{LaneMessage, Origin, PublishError, PublishRequest};
use crate::metrics::Metric;
use crate::namespace::{EventMode, NamespaceId};
use crate::publication::{Publisher, Tags};
use crate::session::{AskWhat, client_id};

impl Shard {
    pub(super) fn publish(&mut self, conn: ConnId, id: u32, channel: &str, namespace: NamespaceId, data: &[u8]) {
        let Some(form) = self.form_of(conn) else { return };
        let rules = self.options.namespaces.get(namespace);
        let (kind, events, rate) = (rules.payload, rules.publish_events, rules.publish_rate_per_connection);
        let Some(payload) = self.checked_payload(kind, data) else {
            self.metrics.add(Metric::PublicationsRefused, 1);
            return self.refuse(form, id, ClientError::BadRequest);
        };
        let now_ms = self.now_ms;
        let Some(session) = self.session_mut(conn) else { return };
        if rate > 0 && !session.take_publish(namespace, rate, now_ms) {
            self.metrics.add(Metric::PublicationsLimited, 1);
            self.metrics.add(Metric::PublicationsRefused, 1);
            return self.refuse(form, id, ClientError::TooManyRequests);
        }
        let event = ClientEvent::Publish { channel, data: &payload };
        match events {
            EventMode::Off => self.publish_to_owner(conn, id, channel, payload, kind),
            EventMode::Notify => {
                self.tell_backend(conn, &event);
                self.publish_to_owner(conn, id, channel, payload, kind);
            }
            EventMode::Ask => {
                let number = self.new_request();
                match self.ask_backend(conn, number, &event) {
                    Ok(()) => {
                        self.wait(conn, number, AskWhat::Publish { command: id, channel: channel.into(), payload });
                    }
                    Err(denied) => self.deny(conn, form, id, &denied.into()),
                }
            }
        }
    }

    /// A backend's word about a publish; it may have changed the payload.
    pub(super) fn publish_decided(
        &mut self,
        conn: ConnId,
        command: u32,
        channel: Box<str>,
        payload: Box<[u8]>,
        answer: Result<Option<Box<[u8]>>, Denied>,
    ) {
        let Some(form) = self.form_of(conn) else { return };
        let Some((_, rules)) = self.options.namespaces.resolve(&channel) else {
            return self.refuse(form, command, ClientError::UnknownChannel);
        };
        let kind = rules.payload;
        let payload = match answer {
            Ok(None) => payload,
            Ok(Some(changed)) => {
                let fits = changed.len() <= self.options.limits.publication_bytes_max as usize;
                match self.checked_payload(kind, &changed).filter(|_| fits) {
                    Some(payload) => payload,
                    // The backend's mistake is not the client's.
                    None => return self.refuse(form, command, ClientError::Internal),
                }
            }
            Err(denied) => {
                self.metrics.add(Metric::PublicationsRefused, 1);
                return self.deny(conn, form, command, &denied);
            }
        };
        self.publish_to_owner(conn, command, &channel, payload, kind);
    }

    fn publish_to_owner(&mut self, conn: ConnId, command: u32, channel: &str, payload: Box<[u8]>, kind: PayloadKind) {
        let client = client_id(self.options.boot, self.options.core, conn);
        let local = self.fanouts.find(channel);
        let Some(session) = self.session_mut(conn) else { return };
        session.in_flight += 1;
        let identity = &session.identity;
        let subscription = local.and_then(|local| session.subscription(local));
        let publisher = Publisher {
            user: identity.user.clone(),
            client: client.as_ref().into(),
            conn_info: identity.info().into(),
            chan_info: subscription.map_or_else(Box::default, |index| session.subscriptions[index].info().into()),
        };
        let request = PublishRequest {
            channel: channel.into(),
            payload,
            kind,
            idempotency_key: Box::default(),
            publisher: Some(Box::new(publisher)),
            tags: Tags::default(),
            skip_history: false,
            origin: Origin::Client { conn, command },
            from: self.options.core,
        };
        self.lanes.push(self.owner_of(channel), LaneMessage::Publish(request.into()));
    }

    pub(super) fn client_publish_answered(&mut self, conn: ConnId, command: u32, error: Option<PublishError>) {
        let Some(session) = self.session_mut(conn) else { return self.metrics.add(Metric::LaneStale, 1) };
        session.in_flight -= 1;
        let form = session.form;
        match error {
            None => ReplyWriter::resume(form, &mut self.replies).publish(command),
            Some(error) => self.refuse(form, command, client_error(error)),
        }
        self.send_replies(conn, form);
    }

    /// A payload as it goes into frames: JSON is checked here, once, and loses its raw newlines. None: it is no JSON.
    pub(super) fn checked_payload(&mut self, kind: PayloadKind, data: &[u8]) -> Option<Box<[u8]>> {
        Some(match self.check_payload(kind, data)? {
            PayloadCheck::AsItIs => data.into(),
            PayloadCheck::Rewritten => self.payload.as_slice().into(),
        })
    }

    /// As [`Shard::checked_payload`], without an allocation.
    pub(super) fn check_payload(&mut self, kind: PayloadKind, data: &[u8]) -> Option<PayloadCheck> {
        if kind == PayloadKind::Bytes {
            return Some(PayloadCheck::AsItIs);
        }
        if !(self.options.utf8)(data) {
            return None;
        }
        if !json::check(data).ok()? {
            return Some(PayloadCheck::AsItIs);
        }
        self.payload.clear();
        self.payload.extend_from_slice(data);
        json::remove_newlines(&mut self.payload);
        Some(PayloadCheck::Rewritten)
    }
}

/// Where a payload that was checked stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PayloadCheck {
    /// Where it was given.
    AsItIs,
    /// In the shard's buffer for payloads.
    Rewritten,
}

/// A publish's refusal as a client sees it.
fn client_error(error: PublishError) -> ClientError {
    match error {
        PublishError::UnknownChannel => ClientError::UnknownChannel,
        PublishError::PermissionDenied => ClientError::PermissionDenied,
        PublishError::BadPayload => ClientError::BadRequest,
        PublishError::TooLarge => ClientError::LimitExceeded,
        PublishError::Busy => ClientError::TooManyRequests,
        // Not "too many requests": that says that nothing was done.
        PublishError::Unknown => ClientError::Internal,
    }
}
