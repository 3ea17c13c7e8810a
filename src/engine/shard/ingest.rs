//! One frame of a backend, and the acknowledgements that go back.
//!
//! In: received bytes of ingest connections. Out: publishes to owners, acknowledgements and errors to the backend.

use ringway_wire::ingest::{
    self, ClientFrame, FRAME_HEADER_BYTES, HELLO_FRAME_BYTES_MAX, IngestError, Publish, PublishBatch, TakeEvents,
    write_acks, write_hello_ok, write_nack, write_pong,
};

use super::Shard;
use super::publish::PayloadCheck;
use crate::backends::BackendId;
use crate::connection::{Connection, Phase};
use crate::events;
use crate::frame::Frame;
use crate::ids::{ConnId, CoreId};
use crate::ingest_session::{IngestSession, check, error_of};
use crate::lane_message::{EventAnswered, LaneMessage, PublishError};
use crate::metrics::Metric;
use crate::owner::LOOK_AHEAD;
use crate::publish_run::{Entry, EntryAnswer, RunAnswer};
use crate::seam::Note;

impl Shard {
    /// Bytes of a backend.
    pub(super) fn received_ingest(&mut self, conn: ConnId, bytes: &mut [u8]) {
        // So that publishes to channels that this core owns need not queue behind them.
        self.take_own_messages();
        self.read(conn, bytes, self.inflate_part());
        self.runs.send(&mut self.lanes);
    }

    /// Takes one frame from the front of `bytes`; 0: it is not whole.
    pub(super) fn read_ingest(&mut self, conn: ConnId, bytes: &[u8]) -> usize {
        let ready = self.ingest_session(conn).is_some_and(|session| session.ready);
        // Before its hello nobody makes us keep more than a hello.
        let frame_bytes_max =
            if ready { self.options.limits.ingest_frame_bytes_max as usize } else { HELLO_FRAME_BYTES_MAX };
        let outcome = match ingest::frame_len(bytes, frame_bytes_max) {
            Ok(Some(len)) if len <= bytes.len() => self.ingest_frame(conn, &bytes[..len], ready).map(|()| len),
            Ok(_) => Ok(0),
            Err(error) => Err(error),
        };
        outcome.unwrap_or_else(|error| {
            self.fail_ingest(conn, error);
            bytes.len()
        })
    }

    /// # Errors
    /// What ends the connection.
    fn ingest_frame(&mut self, conn: ConnId, frame: &[u8], ready: bool) -> Result<(), IngestError> {
        debug_assert!(frame.len() >= FRAME_HEADER_BYTES);
        let frame = ingest::decode_client(frame)?;
        if !matches!(frame, ClientFrame::Publish(_) | ClientFrame::PublishBatch(_)) {
            // The owner hears of publishes before what was asked behind them.
            self.runs.send(&mut self.lanes);
        }
        match frame {
            ClientFrame::Hello(hello) => self.hello(conn, &hello),
            _ if !ready => Err(IngestError::BadFrame),
            ClientFrame::Publish(publish) => self.ingest_publish(conn, &publish, self.owner_of(publish.channel), None),
            ClientFrame::PublishBatch(batch) => self.ingest_batch(conn, batch),
            ClientFrame::Ping { nonce } => {
                self.frame.clear();
                write_pong(&mut self.frame, nonce);
                let pong = Frame::from_bytes(&self.frame);
                self.send(conn, pong);
                Ok(())
            }
            ClientFrame::Pong { .. } | ClientFrame::Unknown { .. } => Ok(()),
            ClientFrame::TakeEvents(take) => self.take_events(conn, take),
            ClientFrame::EventAck { event } => {
                let backend = self.backend_id(conn);
                self.tell_event_keeper(event, LaneMessage::EventAcknowledged { backend, event });
                Ok(())
            }
            ClientFrame::EventAnswer { event, verdict } => {
                let answered = EventAnswered { backend: self.backend_id(conn), event, decision: (&verdict).into() };
                self.tell_event_keeper(event, LaneMessage::EventAnswered(answered.into()));
                Ok(())
            }
            ClientFrame::Call(call) => self.ingest_call(conn, &call),
            // The backend has all its acknowledgements and closes; its FIN ends the connection.
            ClientFrame::Goodbye => {
                self.withdraw_backend(conn);
                Ok(())
            }
        }
    }

    fn hello(&mut self, conn: ConnId, hello: &ingest::Hello<'_>) -> Result<(), IngestError> {
        let Some(Connection { phase: Phase::Ingest { session, peer }, .. }) =
            self.connections.get_mut(conn.slot, conn.generation)
        else {
            return Ok(());
        };
        let peer = *peer;
        if let Err(error) = session.hello(hello, &self.options.access.ingest_tokens) {
            if matches!(error, IngestError::BadToken | IngestError::VersionUnsupported) {
                self.metrics.add(Metric::IngestAuthFailures, 1);
                self.note(Note::IngestRefused { peer });
            }
            return Err(error);
        }
        self.frame.clear();
        let name = &self.options.access.node_name;
        write_hello_ok(&mut self.frame, &session.hello_ok(&self.options.limits, self.options.boot, name));
        let answer = Frame::from_bytes(&self.frame);
        self.send(conn, answer);
        self.timers.arm(conn.slot, self.now_ms + self.options.limits.ingest_idle_timeout_ms as u64);
        self.note(Note::IngestConnected { peer });
        Ok(())
    }

    /// # Errors
    /// What ends the connection.
    fn take_events(&mut self, conn: ConnId, take: TakeEvents) -> Result<(), IngestError> {
        let (backend, shards) = (self.backend_id(conn), self.options.shards);
        let Some(Connection { phase: Phase::Ingest { session, peer }, .. }) =
            self.connections.get_mut(conn.slot, conn.generation)
        else {
            return Ok(());
        };
        let (peer, notice) = (*peer, session.take_events(take, backend, shards)?);
        self.note(Note::EventsTaken { peer, kinds: notice.kinds });
        self.tell_every_shard(|| LaneMessage::BackendChanged(notice.into()));
        Ok(())
    }

    /// What a backend has not acknowledged goes elsewhere. For any connection that ends; most are no backends.
    pub(super) fn withdraw_backend(&mut self, conn: ConnId) {
        let backend = self.backend_id(conn);
        let notice = self.ingest_session_mut(conn).and_then(|session| session.withdraw(backend));
        if let Some(notice) = notice {
            self.tell_every_shard(|| LaneMessage::BackendChanged(notice.into()));
        }
    }

    const fn backend_id(&self, conn: ConnId) -> BackendId {
        BackendId { core: self.options.core, conn }
    }

    /// Sends a message to the shard that keeps an event; the number comes from a backend and may be any.
    fn tell_event_keeper(&mut self, event: u64, message: LaneMessage) {
        let keeper = events::core_of(event);
        if keeper.0 < self.options.shards {
            self.lanes.push(keeper, message);
        } else {
            self.metrics.add(Metric::EventsLate, 1);
        }
    }

    pub(super) fn tell_every_shard(&mut self, message: impl Fn() -> LaneMessage) {
        for core in 0..self.options.shards {
            self.lanes.push(CoreId(core), message());
        }
    }

    /// # Errors
    /// What ends the connection, behind the entries that came before it.
    fn ingest_batch(&mut self, conn: ConnId, mut batch: PublishBatch<'_>) -> Result<(), IngestError> {
        let me = self.options.core;
        loop {
            let mut broken = None;
            let group: [_; LOOK_AHEAD] = core::array::from_fn(|_| match batch.next()? {
                Ok(publish) => Some((publish, self.owner_of(publish.channel))),
                Err(error) => {
                    broken = Some(error);
                    None
                }
            });
            let own = |place: &Option<(Publish<'_>, CoreId)>| place.is_some_and(|(_, to)| to == me);
            let mut slots = [None; LOOK_AHEAD];
            if group.iter().any(own) {
                let channels = group.each_ref().map(|place| place.as_ref().filter(|_| own(place)));
                slots = self.owner.look_ahead(channels.map(|place| place.map(|(publish, _)| publish.channel)));
            }
            for ((publish, to), slot) in group.iter().flatten().zip(slots) {
                self.ingest_publish(conn, publish, *to, slot)?;
            }
            match broken {
                Some(error) => return Err(error),
                None if group[LOOK_AHEAD - 1].is_none() => return Ok(()),
                None => {}
            }
        }
    }

    /// `to`: the channel's owner; `slot`: where that has the channel, if it is this core and was asked.
    ///
    /// # Errors
    /// What ends the connection; a refusal of this one publish is answered and is no error here.
    fn ingest_publish(
        &mut self,
        conn: ConnId,
        publish: &Publish<'_>,
        to: CoreId,
        slot: Option<u32>,
    ) -> Result<(), IngestError> {
        let Some(Connection { phase: Phase::Ingest { session, .. }, .. }) =
            self.connections.get_mut(conn.slot, conn.generation)
        else {
            // A refusal that overflowed the outbox has ended the connection, and its credit with it.
            return Ok(());
        };
        self.metrics.add(Metric::IngestPublishes, 1);
        let bytes = publish.payload.len() as u32;
        session.take_credit(publish.payload.len(), &self.options.limits)?;
        let checked = check(publish, &self.options.limits, &self.options.namespaces)
            .and_then(|kind| self.check_payload(kind, publish.payload).ok_or(PublishError::BadPayload));
        match checked {
            Ok(PayloadCheck::AsItIs) => self.ingest_to_owner(conn, publish, publish.payload, to, slot),
            Ok(PayloadCheck::Rewritten) => {
                let payload = core::mem::take(&mut self.payload);
                self.ingest_to_owner(conn, publish, &payload, to, slot);
                self.payload = payload;
            }
            Err(error) => {
                self.metrics.add(Metric::PublicationsRefused, 1);
                self.ingest_refused(conn, publish.seq, bytes, error);
            }
        }
        Ok(())
    }

    /// To this core as the owner at once, where nothing that was said to it before still waits; to others, and behind what
    /// waits, in runs.
    fn ingest_to_owner(&mut self, conn: ConnId, publish: &Publish<'_>, payload: &[u8], to: CoreId, slot: Option<u32>) {
        let entry = Entry {
            seq: publish.seq,
            kind: publish.kind,
            idempotency_key: publish.idempotency_key,
            channel: publish.channel,
            payload,
        };
        let me = self.options.core;
        if to != me || self.lanes.has_own() || self.owner.is_shared() {
            return self.runs.push(to, me, conn, &entry);
        }
        let (owner, mut around) = self.owner();
        let answer = owner.take_entry(&entry, slot, &mut around);
        // Publications for subscribers of this core.
        self.take_own_messages();
        self.entry_answered(conn, &answer);
    }

    /// Publishes of one backend that other owners, or this core later, have decided about.
    pub(super) fn run_answered(&mut self, run: &RunAnswer) {
        for answer in &run.answers {
            self.entry_answered(run.conn, answer);
        }
    }

    fn entry_answered(&mut self, conn: ConnId, answer: &EntryAnswer) {
        match answer.result {
            Ok(ack) => self.ingest_acknowledged(conn, answer.payload_bytes, ack),
            Err(error) => self.ingest_refused(conn, answer.seq, answer.payload_bytes, error),
        }
    }

    /// Answers one publish with an error.
    pub(super) fn ingest_refused(&mut self, conn: ConnId, seq: u64, bytes: u32, error: PublishError) {
        self.metrics.add(Metric::IngestErrors, 1);
        let Some(session) = self.ingest_session_mut(conn) else { return };
        session.return_credit(bytes);
        let done = session.finished && !session.has_outstanding();
        self.frame.clear();
        write_nack(&mut self.frame, seq, error_of(error));
        let nack = Frame::from_bytes(&self.frame);
        self.send(conn, nack);
        if done {
            self.write_acknowledgements();
            if !self.is_closing(conn) {
                self.finish_backend(conn);
            }
        }
    }

    /// Collects an acknowledgement; all of a turn's go out in one frame.
    pub(super) fn ingest_acknowledged(&mut self, conn: ConnId, bytes: u32, ack: ingest::Ack) {
        self.metrics.add(Metric::IngestAcks, 1);
        let Some(session) = self.ingest_session_mut(conn) else { return };
        session.return_credit(bytes);
        session.acknowledge(ack);
        if !core::mem::replace(&mut session.listed, true) {
            self.to_acknowledge.push(conn);
        }
    }

    pub(super) fn write_acknowledgements(&mut self) {
        while let Some(conn) = self.to_acknowledge.pop() {
            let Some(Connection { phase: Phase::Ingest { session, .. }, .. }) =
                self.connections.get_mut(conn.slot, conn.generation)
            else {
                continue;
            };
            session.listed = false;
            let done = session.finished && !session.has_outstanding();
            self.frame.clear();
            write_acks(&mut self.frame, session.take_acks());
            let acks = Frame::from_bytes(&self.frame);
            self.send(conn, acks);
            if done {
                self.finish_backend(conn);
            }
        }
    }

    pub(super) fn ingest_session(&self, conn: ConnId) -> Option<&IngestSession> {
        match &self.connections.get(conn.slot, conn.generation)?.phase {
            Phase::Ingest { session, .. } => Some(session),
            _ => None,
        }
    }

    pub(super) fn ingest_session_mut(&mut self, conn: ConnId) -> Option<&mut IngestSession> {
        match &mut self.connections.get_mut(conn.slot, conn.generation)?.phase {
            Phase::Ingest { session, .. } => Some(session),
            _ => None,
        }
    }
}
