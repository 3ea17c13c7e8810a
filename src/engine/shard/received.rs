//! Bytes of a peer: upgrade request, WebSocket frames, client messages, ingest frames.
//!
//! In: `Input::Received`. Out: what they ask for, carried out. Bytes are parsed where the kernel put them; only the
//! beginning of something incomplete is copied, and that copy is freed with its end.

use alloc::boxed::Box;

use ringway_wire::centrifuge::Form;
use ringway_wire::centrifuge::command::Commands;
use ringway_wire::close::CloseReason;
use ringway_wire::deflate::{InflateError, Inflater};
use ringway_wire::frame::{CONTROL_PAYLOAD_BYTES_MAX, Opcode, write_server_header};
use ringway_wire::message::{self, Event, Fragments, MessageKind, WsError};
use ringway_wire::upgrade::{self, UpgradeRefusal};

use super::inflating::Part;
use super::writing::list;
use super::{Shard, uni};
use crate::connection::{Connection, Phase, Until};
use crate::frame::Frame;
use crate::handshake::{self, Purpose};
use crate::ids::ConnId;
use crate::metrics::Metric;
use crate::outbox::Outboxes;
use crate::publication::opcode;
use crate::seam::Port;
use crate::session::{Session, Stage};

/// Unused bytes that the buffer of an incomplete frame may keep.
const PARTIAL_SLACK_BYTES: usize = 512;
/// This part of a second's upgrades may come at once: a shard that was late for so long refuses nobody.
const UPGRADES_AT_ONCE_PART: u32 = 4;

/// What the front of the received bytes is to be read as.
#[derive(Clone, Copy)]
enum Reader {
    Upgrade {
        scanned: usize,
    },
    Client {
        deflate: bool,
    },
    Echo,
    Ingest,
    Discard,
    /// Nothing: its connect command is not answered yet.
    Wait,
}

/// What reading frames needs beside their bytes, taken out of its places while a connection's bytes are read.
struct FrameState {
    /// The connection's.
    fragments: Fragments,
    /// The shard's.
    inflater: Inflater,
    /// How much may be inflated.
    part: Part,
    /// It is used up, and there is more.
    inflate_later: bool,
}

/// The counter of a compressed message that is refused.
const fn inflate_metric(error: InflateError) -> Metric {
    match error {
        InflateError::TooBig => Metric::InflateRefusedSize,
        InflateError::Ratio => Metric::InflateRefusedRatio,
        InflateError::Corrupt => Metric::InflateRefusedCorrupt,
    }
}

impl Shard {
    pub(super) fn received(&mut self, conn: ConnId, bytes: &mut [u8]) {
        self.metrics.add(Metric::ReadBytes, bytes.len() as u64);
        let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) else { return };
        match &mut connection.phase {
            Phase::Client(session) => session.awaiting_pong = false,
            Phase::Ingest { session, .. } => {
                session.awaiting_pong = false;
                return self.received_ingest(conn, bytes);
            }
            _ => {}
        }
        self.read(conn, bytes, self.inflate_part());
    }

    /// Reads what was left from the last time and `bytes` behind it.
    pub(super) fn read(&mut self, conn: ConnId, bytes: &mut [u8], part: Part) {
        self.tell_insufficient_to(conn);
        let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) else { return };
        let mut state = FrameState {
            fragments: core::mem::take(&mut connection.fragments),
            inflater: core::mem::take(&mut self.inflating.inflater),
            part,
            inflate_later: false,
        };
        let partial = match connection.partial.take() {
            None => {
                let used = self.consume(conn, &mut state, bytes);
                (used < bytes.len()).then(|| Box::new(bytes[used..].to_vec()))
            }
            Some(mut partial) => {
                partial.extend_from_slice(bytes);
                let used = self.consume(conn, &mut state, &mut partial);
                partial.drain(..used);
                // A few bytes left over must not keep the memory of the many before them.
                if partial.capacity() > 2 * partial.len() + PARTIAL_SLACK_BYTES {
                    partial.shrink_to_fit();
                }
                (!partial.is_empty()).then_some(partial)
            }
        };
        let FrameState { mut fragments, mut inflater, inflate_later, .. } = state;
        fragments.release();
        inflater.release();
        self.inflating.inflater = inflater;
        if let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) {
            connection.fragments = fragments;
            connection.partial = partial;
        }
        if inflate_later {
            self.inflate_later(conn);
        }
    }

    /// Reads from the front of `bytes` as long as something is complete; returns how much was used.
    fn consume(&mut self, conn: ConnId, state: &mut FrameState, bytes: &mut [u8]) -> usize {
        let mut used = 0;
        loop {
            let rest = &mut bytes[used..];
            if rest.is_empty() {
                return used;
            }
            let consumed = match self.reader(conn) {
                Reader::Discard => rest.len(),
                Reader::Wait => 0,
                Reader::Upgrade { scanned } => self.read_upgrade(conn, rest, scanned),
                Reader::Client { deflate } => self.read_frame(conn, state, rest, deflate, false),
                Reader::Echo => self.read_frame(conn, state, rest, false, true),
                Reader::Ingest => self.read_ingest(conn, rest),
            };
            if consumed == 0 {
                return used;
            }
            used += consumed;
            if !self.inflated(state.inflater.take_totals(), state.part) {
                state.inflate_later = used < bytes.len();
                return used;
            }
        }
    }

    fn reader(&self, conn: ConnId) -> Reader {
        match self.connections.get(conn.slot, conn.generation).map(|connection| &connection.phase) {
            Some(Phase::Upgrading { scanned }) => Reader::Upgrade { scanned: *scanned as usize },
            Some(Phase::Client(session)) if session.stage == Stage::Opening => Reader::Wait,
            Some(Phase::Client(session)) => Reader::Client { deflate: session.deflate },
            Some(Phase::Echo) => Reader::Echo,
            Some(Phase::Ingest { .. }) => Reader::Ingest,
            // The peer's answer to our Close is read as frames, so that its Close ends the wait. What else comes is not
            // carried out, so it need not be remembered whether it may be compressed.
            Some(Phase::Closing(Until::PeerClose)) => Reader::Client { deflate: true },
            Some(Phase::Closing(_) | Phase::Gone) | None => Reader::Discard,
        }
    }

    fn read_upgrade(&mut self, conn: ConnId, bytes: &[u8], scanned: usize) -> usize {
        let limit = self.options.limits.handshake_bytes_max as usize;
        let Some(end) = upgrade::find_head_end(bytes, scanned).filter(|end| *end <= limit) else {
            if bytes.len() > limit {
                self.refuse_upgrade(conn, UpgradeRefusal::HeadTooLarge);
                return bytes.len();
            }
            if let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) {
                connection.phase = Phase::Upgrading { scanned: bytes.len() as u32 };
            }
            return 0;
        };
        let decided = upgrade::parse_request(&bytes[..end])
            .and_then(|request| handshake::decide(&request, &self.options.access).map(|purpose| (request, purpose)))
            .and_then(|decided| self.take_upgrade().map(|()| decided));
        let (request, purpose) = match decided {
            Ok(decided) => decided,
            Err(refusal) => {
                self.refuse_upgrade(conn, refusal);
                return bytes.len();
            }
        };
        let deflate = handshake::deflate(&request, purpose, &self.options.access);
        self.frame.clear();
        upgrade::write_accept(&mut self.frame, &request, deflate);
        let answer = Frame::from_bytes(&self.frame);
        self.metrics.add(Metric::ConnectionsUpgraded, 1);
        self.metrics.add(Metric::UpgradesDeflate, u64::from(deflate.is_some()));
        if let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) {
            match purpose {
                Purpose::Client(form) => {
                    connection.phase = Phase::Client(Session::new(form, deflate.is_some()));
                    self.timers.arm(conn.slot, self.now_ms + self.options.limits.connect_timeout_ms as u64);
                }
                Purpose::Uni => {
                    connection.phase = Phase::Client(Session::new_uni(deflate.is_some()));
                    self.timers.arm(conn.slot, self.now_ms + self.options.limits.connect_timeout_ms as u64);
                }
                Purpose::Echo => {
                    connection.phase = Phase::Echo;
                    self.timers.disarm(conn.slot);
                }
            }
        }
        self.send(conn, answer);
        if let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) {
            Outboxes::keep(&mut connection.outbox);
        }
        if purpose == Purpose::Uni
            && let Some(connect) = uni::connect_in_query(request.query)
        {
            self.uni_connect(conn, &connect);
        }
        end
    }

    /// Whether one more client may come now. Asked behind everything else that may refuse it, so that only who would have
    /// been admitted counts.
    fn take_upgrade(&mut self) -> Result<(), UpgradeRefusal> {
        if !self.takes_newcomers(Port::Client) {
            return Err(UpgradeRefusal::Unavailable);
        }
        let rate = self.options.limits.upgrades_per_s_max.div_ceil(u32::from(self.options.shards.max(1)));
        let admitted = self.upgrade_rate.take_of(rate, rate / UPGRADES_AT_ONCE_PART, self.now_ms);
        if admitted { Ok(()) } else { Err(UpgradeRefusal::Busy) }
    }

    fn refuse_upgrade(&mut self, conn: ConnId, refusal: UpgradeRefusal) {
        self.metrics.add(handshake::refusal_metric(refusal), 1);
        self.metrics.add(Metric::ServerClosed, 1);
        self.frame.clear();
        upgrade::write_refusal(&mut self.frame, refusal);
        self.finish_with(conn, Frame::from_bytes(&self.frame));
    }

    /// Takes one frame from the front of `bytes`; 0: it is not whole.
    fn read_frame(
        &mut self,
        conn: ConnId,
        state: &mut FrameState,
        bytes: &mut [u8],
        deflate: bool,
        echo: bool,
    ) -> usize {
        let FrameState { fragments, inflater, .. } = state;
        let len = bytes.len();
        let step = match message::step_with(fragments, bytes, &self.message_limits, deflate.then_some(inflater)) {
            Ok(step) => step,
            Err(error) => {
                if let WsError::Inflate(error) = error {
                    self.metrics.add(inflate_metric(error), 1);
                }
                self.fail(conn, error.close_reason());
                return len;
            }
        };
        let consumed = step.consumed;
        match step.event {
            None => {}
            Some(Event::Message { kind, data }) if echo => {
                let opcode = if kind == MessageKind::Text { Opcode::Text } else { Opcode::Binary };
                self.send_frame(conn, opcode, data);
            }
            Some(Event::Message { kind, data }) => self.client_message(conn, kind, data),
            Some(Event::Ping(payload)) => {
                let mut copy = [0; CONTROL_PAYLOAD_BYTES_MAX];
                let copy = &mut copy[..payload.len()];
                copy.copy_from_slice(payload);
                self.send_frame(conn, Opcode::Pong, copy);
            }
            Some(Event::Pong(_)) => {}
            Some(Event::Close { code, .. }) => {
                self.peer_closed(conn, code);
                return len;
            }
        }
        consumed
    }

    fn send_frame(&mut self, conn: ConnId, opcode: Opcode, payload: &[u8]) {
        if self.is_closing(conn) {
            return;
        }
        self.frame.clear();
        write_server_header(&mut self.frame, opcode, payload.len());
        self.frame.extend_from_slice(payload);
        let frame = Frame::from_bytes(&self.frame);
        self.send(conn, frame);
    }

    /// One WebSocket message of a client: a batch of commands.
    fn client_message(&mut self, conn: ConnId, kind: MessageKind, data: &[u8]) {
        let Some(Connection { phase: Phase::Client(session), .. }) = self.connections.get(conn.slot, conn.generation)
        else {
            return;
        };
        let (form, uni) = (session.form, session.uni);
        self.metrics.add(Metric::MessagesReceived, 1);
        // JSON comes as text, whose UTF-8 was checked; Protobuf as binary. Anything else is another protocol.
        if (kind == MessageKind::Text) != (form == Form::Json) {
            self.close(conn, CloseReason::BadRequest);
            return;
        }
        if uni { self.uni_connect(conn, data) } else { self.client_commands(conn, form, data) }
    }

    /// The commands of a message, in order. Those behind a connect command that cannot be answered at once wait with it.
    pub(super) fn client_commands(&mut self, conn: ConnId, form: Form, data: &[u8]) {
        let mut commands = Commands::new(form, data);
        let mut count = 0;
        while let Some(command) = commands.next() {
            let within = count < self.options.limits.commands_per_message_max as usize;
            count += 1;
            match command {
                Ok(command) if within => self.command(conn, form, &command),
                Ok(_) | Err(_) => {
                    self.send_replies(conn, form);
                    self.close(conn, CloseReason::BadRequest);
                }
            }
            if self.is_closing(conn) {
                self.replies.clear();
                return;
            }
            if self.hold_while_opening(conn, commands.rest()) {
                return;
            }
        }
        self.send_replies(conn, form);
    }

    /// Whether a connect command waits for its answer. Then what is behind it waits too, and so does what others send
    /// to this client: nothing may reach it in front of that answer.
    pub(super) fn hold_while_opening(&mut self, conn: ConnId, rest: &[u8]) -> bool {
        let Some(Connection { phase: Phase::Client(session), outbox, .. }) =
            self.connections.get_mut(conn.slot, conn.generation)
        else {
            return false;
        };
        let Some(opening) = session.opening_mut() else { return false };
        opening.rest = rest.to_vec();
        Outboxes::hold(outbox);
        true
    }

    /// Sends the answer to the connect command, which is in `replies`, in front of what waited for it. False: nothing
    /// was held, and the answer goes out with the other replies.
    pub(super) fn release(&mut self, conn: ConnId) -> bool {
        let Some(form) = self.form_of(conn) else { return false };
        let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) else { return false };
        if !connection.outbox.held {
            return false;
        }
        self.frame.clear();
        write_server_header(&mut self.frame, opcode(form), self.replies.len());
        self.frame.extend_from_slice(&self.replies);
        self.replies.clear();
        self.outboxes.let_go(&mut connection.outbox, Frame::from_bytes(&self.frame));
        list(&mut self.to_write, conn.slot, connection);
        true
    }
}
