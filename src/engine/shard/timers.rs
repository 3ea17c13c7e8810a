//! Deadlines that have come, and upkeep.
//!
//! In: time. Out: pings, connections ended for what they did not do in time, aged history.

use alloc::vec::Vec;

use ringway_wire::close::CloseReason;
use ringway_wire::ingest::{IngestError, write_ping};

use super::Shard;
use crate::connection::{Connection, Phase};
use crate::deadline::Deadline;
use crate::frame::Frame;
use crate::ids::ConnId;
use crate::limits::TICK_MS;
use crate::metrics::Metric;
use crate::session::PingState;

/// Bytes that a buffer for something under construction keeps.
const KEPT_BUFFER_BYTES: usize = 16 * 1024;

/// What a connection's deadline meant.
enum Due {
    Handshake,
    Hello,
    Connect,
    Client,
    PingBackend,
    BackendSilent,
    CloseAnswer,
    Nothing,
}

impl Shard {
    pub(super) fn fire_timers(&mut self) {
        let mut due = core::mem::take(&mut self.due);
        self.timers.advance(self.now_ms, &mut due);
        for slot in due.drain(..) {
            if let Some((generation, connection)) = self.connections.at(slot) {
                let due = meaning(connection);
                self.fire(ConnId { slot, generation }, due);
            }
        }
        self.due = due;
        if self.now_ms >= self.swept_ms + TICK_MS {
            self.swept_ms = self.now_ms;
            let (owner, mut around) = self.owner();
            owner.sweep(&mut around);
            self.register_refused();
            self.expire_events();
            self.shrink();
        }
    }

    /// Gives back what only a rush, or a big message, needed.
    fn shrink(&mut self) {
        self.outboxes.shrink();
        self.to_write.shrink();
        // These two are cleared before each use; replies may be on their way.
        self.frame.clear();
        self.payload.clear();
        for buffer in [&mut self.replies, &mut self.frame, &mut self.payload] {
            if buffer.is_empty() && buffer.capacity() > KEPT_BUFFER_BYTES {
                *buffer = Vec::new();
            }
        }
    }

    fn fire(&mut self, conn: ConnId, due: Due) {
        let limits = &self.options.limits;
        let pong_timeout_ms = limits.pong_timeout_ms as u64;
        let ingest_idle_timeout_ms = limits.ingest_idle_timeout_ms as u64;
        match due {
            Due::Nothing => {}
            Due::Handshake => {
                self.metrics.add(Metric::HandshakeTimeout, 1);
                self.metrics.add(Metric::ServerClosed, 1);
                self.end(conn, true);
            }
            Due::Hello => {
                self.metrics.add(Metric::HandshakeTimeout, 1);
                self.fail_ingest(conn, IngestError::HelloTimeout);
            }
            Due::Connect => self.close(conn, CloseReason::ConnectTimeout),
            Due::Client => self.client_due(conn),
            // While we do not read, an answer can lie unread: that is our silence, not the peer's.
            Due::BackendSilent if self.is_deaf() => {
                self.timers.arm(conn.slot, self.now_ms + pong_timeout_ms.max(TICK_MS));
            }
            Due::PingBackend => {
                self.frame.clear();
                write_ping(&mut self.frame, self.now_ms);
                let ping = Frame::from_bytes(&self.frame);
                if let Some(Connection { phase: Phase::Ingest { session, .. }, .. }) =
                    self.connections.get_mut(conn.slot, conn.generation)
                {
                    session.awaiting_pong = true;
                }
                self.timers.arm(conn.slot, self.now_ms + ingest_idle_timeout_ms);
                self.send(conn, ping);
            }
            Due::BackendSilent => self.fail_ingest(conn, IngestError::IdleTimeout),
            // Closing: the peer did not answer or does not read.
            Due::CloseAnswer => self.end(conn, true),
        }
    }

    /// A client has been admitted: its first ping comes after half to one interval, so that clients who came together
    /// are not pinged together.
    pub(super) fn arm_first_ping(&mut self, conn: ConnId) {
        let interval_ms = self.options.limits.ping_interval_ms as u64;
        let first_ms = interval_ms / 2 + self.random.below((interval_ms / 2).max(1));
        let now_ms = self.now_ms;
        let Some(session) = self.session_mut(conn) else { return };
        if interval_ms == 0 {
            session.ping = PingState::Off;
        } else {
            session.ping_at = Deadline::at_ms(now_ms + first_ms);
        }
        self.arm_client(conn);
    }

    /// Sets the timer to whatever comes first: the next step of ping and pong, or something that expires.
    pub(super) fn arm_client(&mut self, conn: ConnId) {
        let grace_ms = self.options.limits.expired_grace_ms as u64;
        let Some(session) = self.session(conn).filter(|session| session.is_open()) else { return };
        let ping = session.ping_at.ms().filter(|_| session.ping != PingState::Off);
        let expiry = session.expires_at_ms().map(|at_ms| at_ms + grace_ms);
        match ping.into_iter().chain(expiry).min() {
            Some(at_ms) => self.timers.arm(conn.slot, at_ms),
            None => self.timers.disarm(conn.slot),
        }
    }

    /// Whether answers can lie unread, or were asked for late, whatever the peer did: this shard is pressed, or had no
    /// turn for so long that a peer's time was partly ours.
    fn is_deaf(&self) -> bool {
        self.is_pressed() || self.now_ms < self.late_until_ms
    }

    fn client_due(&mut self, conn: ConnId) {
        if self.expire(conn) {
            self.ping_step(conn);
            self.arm_client(conn);
        }
    }

    fn ping_step(&mut self, conn: ConnId) {
        let limits = &self.options.limits;
        let (interval_ms, timeout_ms) = (limits.ping_interval_ms as u64, limits.pong_timeout_ms as u64);
        // While we do not read, an answer can lie unread: that is our silence, not the peer's.
        let deaf = self.is_deaf() || !self.wants_read(conn);
        let now_ms = self.now_ms;
        let Some(session) = self.session_mut(conn) else { return };
        if session.ping_at.ms().is_none_or(|at_ms| at_ms > now_ms) {
            return;
        }
        match session.ping {
            PingState::Off => {}
            PingState::Resting if session.uni => {
                session.ping_at = Deadline::at_ms(now_ms + interval_ms);
                let ping = self.pings[session.form as usize].clone();
                self.metrics.add(Metric::PingsSent, 1);
                self.send(conn, ping);
            }
            PingState::Resting => {
                session.awaiting_pong = true;
                session.ping = PingState::Asked;
                session.ping_at = Deadline::at_ms(now_ms + timeout_ms);
                let ping = self.pings[session.form as usize].clone();
                self.metrics.add(Metric::PingsSent, 1);
                self.send(conn, ping);
            }
            PingState::Asked if !session.awaiting_pong => {
                session.ping = PingState::Resting;
                session.ping_at = Deadline::at_ms(now_ms + interval_ms.saturating_sub(timeout_ms).max(TICK_MS));
            }
            PingState::Asked if deaf => session.ping_at = Deadline::at_ms(now_ms + timeout_ms.max(TICK_MS)),
            PingState::Asked => self.close(conn, CloseReason::NoPong),
        }
    }
}

fn meaning(connection: &Connection) -> Due {
    match &connection.phase {
        Phase::Upgrading { .. } => Due::Handshake,
        Phase::Client(session) if !session.is_open() => Due::Connect,
        Phase::Client(_) => Due::Client,
        Phase::Ingest { session, .. } if !session.ready => Due::Hello,
        Phase::Ingest { session, .. } if session.awaiting_pong => Due::BackendSilent,
        Phase::Ingest { .. } => Due::PingBackend,
        Phase::Closing(_) => Due::CloseAnswer,
        Phase::Echo | Phase::Gone => Due::Nothing,
    }
}
