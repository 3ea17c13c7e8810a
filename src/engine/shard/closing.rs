//! Every way in which a connection ends, and what the socket took of each write.
//!
//! In: protocol errors and limits found elsewhere, FIN, socket errors, completed writes, the driver's last word. Out:
//! Close frames and `Action::Close`. Invariants: a connection's subscriptions end before its slot is free; every end
//! is counted once by who ended it, and ours by reason; the slot is free only after the driver said `Closed`.

use ringway_wire::centrifuge::Form;
use ringway_wire::centrifuge::reply::{DisconnectPush, ReplyWriter};
use ringway_wire::close::CloseReason;
use ringway_wire::frame::{write_close, write_server_header};
use ringway_wire::ingest::{IngestError, write_fatal};

use super::Shard;
use super::events::ClientEvent;
use super::writing::list;
use crate::connection::{Phase, Until};
use crate::frame::Frame;
use crate::ids::{ConnId, CoreId, LocalChannelId};
use crate::lane_message::{LaneMessage, LeaveRequest};
use crate::metrics::Metric;
use crate::namespace::EventMode;
use crate::publication::opcode;
use crate::seam::{Action, Port};

/// What backends are told when a connection ended without a Close frame (RFC 6455 §7.1.5).
const ABNORMAL_CLOSURE: u16 = 1006;

impl Shard {
    /// Ends a client's connection with a Close frame, and waits for the peer's.
    pub(super) fn close(&mut self, conn: ConnId, reason: CloseReason) {
        self.close_until(conn, reason, Until::PeerClose);
    }

    /// Ends a connection whose frames cannot be read any more (RFC 6455 §7.1.7).
    pub(super) fn fail(&mut self, conn: ConnId, reason: CloseReason) {
        self.close_until(conn, reason, Until::WrittenThenPeerEnd);
    }

    /// Ends a client's connection with a code and a text of a backend; counted as `force_disconnect`.
    pub(super) fn close_with(&mut self, conn: ConnId, code: u16, text: &str) {
        self.close_with_words(conn, CloseReason::ForceDisconnect, code, text, Until::PeerClose);
    }

    fn close_until(&mut self, conn: ConnId, reason: CloseReason, until: Until) {
        self.close_with_words(conn, reason, reason.code(), reason.text(), until);
    }

    fn close_with_words(&mut self, conn: ConnId, reason: CloseReason, code: u16, text: &str, until: Until) {
        let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) else { return };
        match connection.phase {
            Phase::Closing(_) | Phase::Gone => return,
            Phase::Ingest { .. } => return self.fail_ingest(conn, IngestError::Shutdown),
            Phase::Upgrading { .. } => {
                self.metrics.add(Metric::ServerClosed, 1);
                return self.end(conn, true);
            }
            Phase::Client(_) | Phase::Echo => {}
        }
        self.metrics.add(Metric::ServerClosed, 1);
        self.metrics.closed(reason);
        self.tell_uni(conn, code, text);
        self.leave_all(conn, code);
        self.frame.clear();
        write_close(&mut self.frame, code, text);
        let frame = Frame::from_bytes(&self.frame);
        self.finish(conn, frame, until);
        // The peer's own Close frame may wait already, unread behind a connect command that was not answered.
        if self.connections.get(conn.slot, conn.generation).is_some_and(|connection| connection.partial.is_some()) {
            self.received(conn, &mut []);
        }
    }

    /// A client that only listens hears why as a push too, since its library may not show it the Close frame.
    fn tell_uni(&mut self, conn: ConnId, code: u16, text: &str) {
        if !self.session(conn).is_some_and(|session| session.uni && session.is_open()) {
            return;
        }
        let reconnect = !matches!(code, 3500..=3999 | 4500..=4999);
        let push = DisconnectPush { code: code.into(), reason: text, reconnect };
        self.replies.clear();
        ReplyWriter::resume(Form::Json, &mut self.replies).bare(true).push_disconnect(&push);
        self.frame.clear();
        write_server_header(&mut self.frame, opcode(Form::Json), self.replies.len());
        self.frame.extend_from_slice(&self.replies);
        self.replies.clear();
        let frame = Frame::from_bytes(&self.frame);
        if let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) {
            self.outboxes.push(&mut connection.outbox, frame);
        }
    }

    /// The outbox reached its bound: what the peer did not read is dropped, it recovers from history.
    pub(super) fn overflow(&mut self, conn: ConnId) {
        let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) else { return };
        if matches!(connection.phase, Phase::Closing(_) | Phase::Gone) {
            return;
        }
        self.metrics.add(Metric::OutboxOverflows, 1);
        self.outboxes.drop_unsent(&mut connection.outbox);
        if connection.port == Port::Ingest {
            return self.fail_ingest(conn, IngestError::Slow);
        }
        self.close(conn, CloseReason::Slow);
    }

    /// Ends a backend's connection with a fatal frame.
    pub(super) fn fail_ingest(&mut self, conn: ConnId, error: IngestError) {
        let Some(connection) = self.connections.get(conn.slot, conn.generation) else { return };
        if !matches!(connection.phase, Phase::Ingest { .. }) {
            return;
        }
        self.write_acknowledgements();
        // Those may have ended the connection themselves.
        if self.is_closing(conn) {
            return;
        }
        self.metrics.add(Metric::IngestErrors, 1);
        self.metrics.add(Metric::ServerClosed, 1);
        self.frame.clear();
        write_fatal(&mut self.frame, error);
        self.finish_with(conn, Frame::from_bytes(&self.frame));
    }

    /// The last bytes for a peer that is not listened to any more.
    pub(super) fn finish_with(&mut self, conn: ConnId, frame: Frame) {
        self.finish(conn, frame, Until::WrittenThenPeerEnd);
    }

    fn finish(&mut self, conn: ConnId, frame: Frame, until: Until) {
        self.withdraw_backend(conn);
        let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) else { return };
        connection.phase = Phase::Closing(until);
        // What waits behind an answer to the connect command that will not come means nothing to the client.
        if connection.outbox.held {
            self.outboxes.drop_unsent(&mut connection.outbox);
            connection.outbox.held = false;
        }
        // The rest of a half-received frame is still needed to find the peer's Close behind it.
        if until != Until::PeerClose {
            connection.partial = None;
        }
        self.outboxes.push(&mut connection.outbox, frame);
        list(&mut self.to_write, conn.slot, connection);
        self.timers.arm(conn.slot, self.now_ms + self.options.limits.close_timeout_ms as u64);
    }

    /// The peer's Close frame: ours is answered, or theirs gets its answer.
    pub(super) fn peer_closed(&mut self, conn: ConnId, code: Option<u16>) {
        let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) else { return };
        match &mut connection.phase {
            Phase::Closing(until) => {
                *until = Until::Written;
                let written = connection.outbox.is_empty();
                if written {
                    self.end(conn, false);
                }
            }
            Phase::Gone => {}
            Phase::Upgrading { .. } | Phase::Client(_) | Phase::Echo | Phase::Ingest { .. } => {
                self.metrics.add(Metric::PeerClosed, 1);
                self.leave_all(conn, code.unwrap_or(CloseReason::Normal.code()));
                self.frame.clear();
                // RFC 6455 §5.5.1: the answer usually repeats the code.
                write_close(&mut self.frame, code.unwrap_or(CloseReason::Normal.code()), "");
                let frame = Frame::from_bytes(&self.frame);
                self.finish(conn, frame, Until::Written);
            }
        }
    }

    /// The peer will say nothing more, but it may still listen: last words and acknowledgements go out first.
    pub(super) fn peer_finished(&mut self, conn: ConnId) {
        let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) else { return };
        match &mut connection.phase {
            Phase::Closing(until) if !connection.outbox.is_empty() => *until = Until::Written,
            Phase::Ingest { session, .. } if session.has_outstanding() => {
                session.finished = true;
                // Its last answers still go out, but it can acknowledge no event any more.
                self.withdraw_backend(conn);
            }
            _ => self.lost(conn, Metric::PeerClosed),
        }
    }

    /// A backend that has finished gets its last acknowledgements, and the end.
    pub(super) fn finish_backend(&mut self, conn: ConnId) {
        self.withdraw_backend(conn);
        let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) else { return };
        self.metrics.add(Metric::PeerClosed, 1);
        connection.phase = Phase::Closing(Until::Written);
        self.timers.arm(conn.slot, self.now_ms + self.options.limits.close_timeout_ms as u64);
        if connection.outbox.is_empty() {
            self.end(conn, false);
        }
    }

    pub(super) fn socket_failed(&mut self, conn: ConnId) {
        self.lost(conn, Metric::IoError);
    }

    /// The peer is not there any more.
    fn lost(&mut self, conn: ConnId, who: Metric) {
        let Some(connection) = self.connections.get(conn.slot, conn.generation) else { return };
        match connection.phase {
            Phase::Gone => return,
            Phase::Closing(_) => {}
            Phase::Upgrading { .. } | Phase::Client(_) | Phase::Echo | Phase::Ingest { .. } => {
                self.metrics.add(who, 1);
                self.leave_all(conn, ABNORMAL_CLOSURE);
            }
        }
        self.end(conn, false);
    }

    /// Hands the socket back to the driver. Counted by the caller, unless the connection never finished its upgrade.
    pub(super) fn end(&mut self, conn: ConnId, reset: bool) {
        self.withdraw_backend(conn);
        let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) else { return };
        connection.phase = Phase::Gone;
        connection.partial = None;
        self.outboxes.clear(&mut connection.outbox);
        self.timers.disarm(conn.slot);
        self.actions.push(Action::Close { conn, reset });
    }

    pub(super) fn writable(&mut self, conn: ConnId) {
        let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) else { return };
        connection.outbox.blocked = false;
        if !connection.outbox.is_empty() {
            list(&mut self.to_write, conn.slot, connection);
        }
    }

    pub(super) fn wrote(&mut self, conn: ConnId, bytes: usize, all: bool) {
        let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) else { return };
        if matches!(connection.phase, Phase::Gone) {
            return;
        }
        self.metrics.add(Metric::Writes, 1);
        self.metrics.add(Metric::WriteBytes, bytes as u64);
        self.outboxes.wrote(&mut connection.outbox, bytes);
        if !all {
            self.metrics.add(Metric::WritesShort, 1);
            connection.outbox.blocked = true;
        } else if !connection.outbox.is_empty() {
            // More than fits one write waits.
            list(&mut self.to_write, conn.slot, connection);
        }
        if !all || !connection.outbox.is_empty() {
            return;
        }
        self.written_out(conn);
    }

    pub(super) fn closed(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get(conn.slot, conn.generation) {
            debug_assert!(matches!(connection.phase, Phase::Gone), "closed a connection that had not ended");
        }
        self.timers.disarm(conn.slot);
        let Some(mut connection) = self.connections.remove(conn.slot, conn.generation) else { return };
        self.outboxes.clear(&mut connection.outbox);
        let open = match connection.port {
            Port::Client => Metric::ConnectionsOpen,
            Port::Ingest => Metric::IngestConnectionsOpen,
        };
        self.metrics.sub(open, 1);
    }

    /// Whether nothing more is to be sent to this connection.
    pub(super) fn is_closing(&self, conn: ConnId) -> bool {
        self.connections
            .get(conn.slot, conn.generation)
            .is_none_or(|connection| matches!(connection.phase, Phase::Closing(_) | Phase::Gone))
    }

    /// Ends all subscriptions of a client, and tells those who counted it in.
    fn leave_all(&mut self, conn: ConnId, code: u16) {
        self.forget_hand_over(conn);
        let Some(session) = self.session_mut(conn) else { return };
        let subscriptions = core::mem::take(&mut session.subscriptions);
        session.forget_asks();
        // Backends have heard of it, or have admitted it themselves.
        let was_admitted = session.admitted;
        for subscription in subscriptions {
            self.leave(conn, &subscription);
        }
        self.leave_user(conn);
        if was_admitted && self.options.access.connect_events != EventMode::Off {
            self.tell_backend(conn, &ClientEvent::Disconnect { code });
        }
    }

    /// Tells the owner when the last subscriber on this core has gone.
    pub(super) fn unfollow_if_unused(&mut self, local: LocalChannelId) {
        let Some(channel) = self.fanouts.unfollow_if_unused(local) else { return };
        self.metrics.set(Metric::ChannelsFollowed, self.fanouts.len() as u64);
        let owner: CoreId = self.owner_of(&channel);
        let leave = LeaveRequest { channel, local, from: self.options.core };
        self.tell_leave(owner, LaneMessage::Leave(leave.into()));
    }
}
