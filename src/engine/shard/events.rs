//! Clients' events for backends, and what comes back.
//!
//! In: what sessions tell and ask ([`Shard::tell_backend`], [`Shard::ask_backend`]), and lane messages of the shards
//! that hold backends. Out: events to those shards, answers to sessions (`backend_answered`), each exactly once.
//! Invariants: nothing here waits: a question is a request under way like any other. An event that is not kept, or
//! is given up, is counted by kind.

use alloc::boxed::Box;

use ringway_wire::centrifuge::Form;
use ringway_wire::close::CloseReason;
use ringway_wire::ingest::{self, EventKind, Happened, PayloadKind, Transport, write_client_event};
use xxhash_rust::xxh3::xxh3_64;

use super::Shard;
use crate::backends::{AskError, BackendAnswer, BackendNotice, Decision, Denied};
use crate::connection::{Connection, Phase};
use crate::events::{Done, NewEvent, Outgoing};
use crate::frame::Frame;
use crate::ids::ConnId;
use crate::lane_message::{EventAnswered, EventDelivery, LaneMessage};
use crate::metrics::Metric;
use crate::seam::Note;
use crate::session::{Session, client_id};
use crate::tokens::TokenSubscription;

/// Time between two notes about events that were lost.
const LOST_NOTE_INTERVAL_MS: u64 = 10_000;

/// Something that a client did, or wants to do. Whose it is comes from its session; for `Connect`, which may come
/// before the session knows, from here.
#[derive(Clone, Copy, Debug)]
pub(super) enum ClientEvent<'a> {
    /// It connects.
    Connect {
        /// User id that its token gave it; empty: none.
        user: &'a str,
        /// Info that its token gave it; empty: none.
        info: &'a [u8],
        /// Meta that its token gave it; empty: none.
        meta: &'a [u8],
        /// Of its software.
        name: &'a str,
        /// Of its software.
        version: &'a str,
        /// What it sent along.
        data: &'a [u8],
    },
    /// Its connection ends. To be told while it still has its session, and last.
    Disconnect {
        /// WebSocket close code.
        code: u16,
    },
    /// It subscribes.
    Subscribe {
        /// Full name.
        channel: &'a str,
        /// What it sent along.
        data: &'a [u8],
    },
    /// A subscription has ended.
    Unsubscribe {
        /// Full name.
        channel: &'a str,
    },
    /// It publishes.
    Publish {
        /// Full name.
        channel: &'a str,
        /// As the client sent it.
        data: &'a [u8],
    },
    /// It calls a method.
    Rpc {
        /// May be empty.
        method: &'a str,
        /// As the client sent it.
        data: &'a [u8],
    },
    /// It sends a message that has no answer.
    Message {
        /// As the client sent it.
        data: &'a [u8],
    },
}

impl<'a> ClientEvent<'a> {
    fn happened(&self) -> Happened<'a> {
        match *self {
            ClientEvent::Connect { info, name, version, data, .. } => Happened::Connect { name, version, info, data },
            ClientEvent::Disconnect { code } => Happened::Disconnect { code: code.into(), reason: reason_of(code) },
            ClientEvent::Subscribe { channel, data } => Happened::Subscribe { channel, data },
            ClientEvent::Unsubscribe { channel } => Happened::Unsubscribe { channel },
            ClientEvent::Publish { channel, data } => Happened::Publish { channel, data },
            ClientEvent::Rpc { method, data } => Happened::Rpc { method, data },
            ClientEvent::Message { data } => Happened::Message { data },
        }
    }
}

/// The text that we give with a close code; none for a code of the client's or a backend's.
fn reason_of(code: u16) -> &'static str {
    CloseReason::ALL.iter().find(|reason| reason.code() == code).map_or("", |reason| reason.text())
}

/// User id and meta of a client.
fn identity(session: &Session) -> (&str, &[u8]) {
    (session.user(), session.identity.meta())
}

/// How a client speaks.
const fn transport(session: &Session) -> Transport {
    match session.form {
        _ if session.uni => Transport::Unidirectional,
        Form::Json => Transport::Json,
        Form::Protobuf => Transport::Protobuf,
    }
}

/// Events lost since the last note about it.
#[derive(Debug, Default)]
pub(super) struct LostEvents {
    count: u64,
    /// Before this nothing is noted.
    quiet_until_ms: u64,
}

impl Shard {
    /// Tells backends of something that has happened. An event that cannot be kept is dropped and counted.
    pub(super) fn tell_backend(&mut self, conn: ConnId, event: &ClientEvent<'_>) {
        if self.keep_event(conn, None, event).is_err() {
            self.metrics.add(full_metric(event.happened().kind()), 1);
            self.lost_event();
        }
    }

    /// Asks a backend about something. `backend_answered` is called for it exactly once, with `ask` unchanged and
    /// never from within this call; also when the connection has gone meanwhile.
    ///
    /// # Errors
    /// It was not asked, and nothing follows.
    pub(super) fn ask_backend(&mut self, conn: ConnId, ask: u32, event: &ClientEvent<'_>) -> Result<(), AskError> {
        self.keep_event(conn, Some(ask), event).inspect_err(|error| {
            let metric = match error {
                AskError::Busy => Metric::AsksBusy,
                AskError::NoBackend => Metric::AsksUnserved,
                AskError::TooLarge => Metric::AsksTooLarge,
            };
            self.metrics.add(metric, 1);
        })
    }

    fn keep_event(&mut self, conn: ConnId, ask: Option<u32>, event: &ClientEvent<'_>) -> Result<(), AskError> {
        let what = event.happened();
        let kind = what.kind();
        // Before anything is encoded, so that a full store costs nothing.
        self.events.admit(conn, kind, ask.is_some())?;
        let Some(Connection { phase: Phase::Client(session), .. }) = self.connections.get(conn.slot, conn.generation)
        else {
            return Err(AskError::NoBackend);
        };
        let (user, meta) = match *event {
            ClientEvent::Connect { user, meta, .. } => (user, meta),
            _ => identity(session),
        };
        let client = client_id(self.options.boot, self.options.core, conn);
        let client = client.as_ref();
        let number = self.events.next_number(ask.is_some());
        let said = ingest::ClientEvent { ask: ask.is_some(), transport: transport(session), client, user, meta, what };
        self.frame.clear();
        write_client_event(&mut self.frame, number, &said).map_err(|_| AskError::TooLarge)?;
        let event = NewEvent {
            number,
            conn,
            client: xxh3_64(client.as_bytes()),
            kind,
            ask: ask.unwrap_or(0),
            frame: self.frame.as_slice().into(),
        };
        self.events.add(event, self.now_ms)?;
        self.metrics.add(Metric::EventsKept, 1);
        self.send_events();
        Ok(())
    }

    /// Hands what may be sent to the shards of its backends.
    fn send_events(&mut self) {
        while let Some(Outgoing { backend, number: _, frame }) = self.events.pop_outgoing() {
            self.metrics.add(Metric::EventsSent, 1);
            let delivery = EventDelivery { to: backend.conn, frame };
            self.lanes.push(backend.core, LaneMessage::Event(delivery.into()));
        }
        self.metrics.set(Metric::EventsPending, self.events.len() as u64);
        self.metrics.set(Metric::EventsPendingBytes, self.events.bytes() as u64);
    }

    pub(super) fn backend_changed(&mut self, notice: &BackendNotice) {
        let again = self.events.backend_changed(notice);
        self.metrics.add(Metric::EventsResent, again.into());
        self.metrics.set(Metric::EventBackends, self.events.backends() as u64);
        self.send_events();
    }

    /// An event for a backend of this shard. One that has gone has been announced as gone, or will be.
    pub(super) fn deliver_event(&mut self, delivery: &EventDelivery) {
        let EventDelivery { to, frame } = delivery;
        if self.ingest_session(*to).is_some_and(|session| session.takes_events()) {
            self.send(*to, Frame::from_bytes(frame));
        } else {
            self.metrics.add(Metric::LaneStale, 1);
        }
    }

    pub(super) fn event_acknowledged(&mut self, backend: crate::backends::BackendId, event: u64) {
        let done = self.events.acknowledged(backend, event);
        let metric = if done.is_some() { Metric::EventsAcknowledged } else { Metric::EventsLate };
        self.metrics.add(metric, 1);
        self.send_events();
    }

    pub(super) fn event_answered(&mut self, answered: EventAnswered) {
        let EventAnswered { backend, event, decision } = answered;
        let done = self.events.answered(backend, event);
        self.send_events();
        let Some(Done { conn, kind, ask: Some(ask) }) = done else {
            return self.metrics.add(Metric::EventsLate, 1);
        };
        self.metrics.add(Metric::EventsAnswered, 1);
        let answer = match decision {
            Decision::Denied(denied) => BackendAnswer::denied(kind, denied),
            Decision::Allowed(answer) => self.checked_answer(conn, kind, answer).or_else(|| {
                self.metrics.add(Metric::EventsBroken, 1);
                BackendAnswer::denied(kind, Denied::broken())
            }),
        };
        if let Some(answer) = answer {
            self.backend_answered(conn, ask, answer);
        }
    }

    /// Gives up events whose time is over. Called once per tick.
    pub(super) fn expire_events(&mut self) {
        while let Some(Done { conn, kind, ask }) = self.events.expire(self.now_ms) {
            match ask {
                None => {
                    self.metrics.add(expired_metric(kind), 1);
                    self.lost.count += 1;
                }
                Some(ask) => {
                    self.metrics.add(Metric::AsksTimedOut, 1);
                    if let Some(answer) = BackendAnswer::denied(kind, Denied::Timeout) {
                        self.backend_answered(conn, ask, answer);
                    }
                }
            }
        }
        self.send_events();
        self.note_lost_events();
    }

    fn lost_event(&mut self) {
        self.lost.count += 1;
        self.note_lost_events();
    }

    fn note_lost_events(&mut self) {
        if self.lost.count > 0 && self.now_ms >= self.lost.quiet_until_ms {
            self.lost.quiet_until_ms = self.now_ms + LOST_NOTE_INTERVAL_MS;
            let count = core::mem::take(&mut self.lost.count);
            self.note(Note::EventsLost { count });
        }
    }

    /// The answer as it may go into frames: of the kind that was asked for, and JSON where JSON is read. None: it is
    /// not. What a publish is replaced with is checked where it is published.
    fn checked_answer(&mut self, conn: ConnId, kind: EventKind, answer: BackendAnswer) -> Option<BackendAnswer> {
        let form = self.form_of(conn).unwrap_or(Form::Json);
        let data_kind = if form == Form::Json { PayloadKind::Json } else { PayloadKind::Bytes };
        match (kind, answer) {
            (EventKind::Connect, BackendAnswer::Connect(Ok(mut claims), data)) => {
                claims.info = self.checked_part(PayloadKind::Json, claims.info)?;
                claims.meta = self.checked_part(PayloadKind::Json, claims.meta)?;
                for subscription in &mut claims.subscriptions {
                    self.check_subscription(data_kind, subscription)?;
                }
                Some(BackendAnswer::Connect(Ok(claims), self.checked_part(data_kind, data)?))
            }
            (EventKind::Subscribe, BackendAnswer::Subscribe(Ok(mut subscription))) => {
                self.check_subscription(data_kind, &mut subscription)?;
                Some(BackendAnswer::Subscribe(Ok(subscription)))
            }
            (EventKind::Publish, answer @ BackendAnswer::Publish(Ok(_))) => Some(answer),
            (EventKind::Rpc, BackendAnswer::Rpc(Ok(data))) => {
                Some(BackendAnswer::Rpc(Ok(self.checked_part(data_kind, data)?)))
            }
            _ => None,
        }
    }

    fn check_subscription(&mut self, data_kind: PayloadKind, subscription: &mut TokenSubscription) -> Option<()> {
        subscription.info = self.checked_part(PayloadKind::Json, core::mem::take(&mut subscription.info))?;
        subscription.data = self.checked_part(data_kind, core::mem::take(&mut subscription.data))?;
        Some(())
    }

    /// One blob of a backend's; an empty one is none.
    pub(super) fn checked_part(&mut self, kind: PayloadKind, bytes: Box<[u8]>) -> Option<Box<[u8]>> {
        if bytes.is_empty() { Some(bytes) } else { self.checked_payload(kind, &bytes) }
    }
}

const fn full_metric(kind: EventKind) -> Metric {
    match kind {
        EventKind::Connect => Metric::EventsFullConnect,
        EventKind::Disconnect => Metric::EventsFullDisconnect,
        EventKind::Subscribe => Metric::EventsFullSubscribe,
        EventKind::Unsubscribe => Metric::EventsFullUnsubscribe,
        EventKind::Publish => Metric::EventsFullPublish,
        EventKind::Rpc => Metric::EventsFullRpc,
        EventKind::Message => Metric::EventsFullMessage,
    }
}

const fn expired_metric(kind: EventKind) -> Metric {
    match kind {
        EventKind::Connect => Metric::EventsExpiredConnect,
        EventKind::Disconnect => Metric::EventsExpiredDisconnect,
        EventKind::Subscribe => Metric::EventsExpiredSubscribe,
        EventKind::Unsubscribe => Metric::EventsExpiredUnsubscribe,
        EventKind::Publish => Metric::EventsExpiredPublish,
        EventKind::Rpc => Metric::EventsExpiredRpc,
        EventKind::Message => Metric::EventsExpiredMessage,
    }
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
