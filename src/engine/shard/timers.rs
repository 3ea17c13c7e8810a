//! Deadlines that have come, and upkeep.
//!
//! In: time. Out: pings, connections ended for what they did not do in time, aged history.

use ringway_wire::close::CloseReason;
use ringway_wire::ingest::{IngestError, write_ping};

use super::Shard;
use crate::connection::{Connection, Phase};
use crate::frame::Frame;
use crate::ids::ConnId;
use crate::limits::TICK_MS;
use crate::metrics::Metric;
use crate::session::PingState;

/// What a connection's deadline meant.
enum Due {
    Handshake,
    Hello,
    Connect,
    PingClient { form: ringway_wire::centrifuge::Form },
    ClientAnswered,
    NoPong,
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
            self.expire_events();
        }
    }

    fn fire(&mut self, conn: ConnId, due: Due) {
        let limits = &self.options.limits;
        let pong_timeout_ms = limits.pong_timeout_ms as u64;
        let ping_interval_ms = limits.ping_interval_ms as u64;
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
            Due::PingClient { form } => {
                let ping = self.pings[form as usize].clone();
                if let Some(Connection { phase: Phase::Client(session), .. }) =
                    self.connections.get_mut(conn.slot, conn.generation)
                {
                    session.awaiting_pong = true;
                    session.ping = PingState::Asked;
                }
                self.metrics.add(Metric::PingsSent, 1);
                // Armed before the ping is queued: a full outbox ends the connection and takes the timer over.
                self.timers.arm(conn.slot, self.now_ms + pong_timeout_ms);
                self.send(conn, ping);
            }
            Due::ClientAnswered => {
                if let Some(Connection { phase: Phase::Client(session), .. }) =
                    self.connections.get_mut(conn.slot, conn.generation)
                {
                    session.ping = PingState::Resting;
                }
                let rest_ms = ping_interval_ms.saturating_sub(pong_timeout_ms).max(TICK_MS);
                self.timers.arm(conn.slot, self.now_ms + rest_ms);
            }
            // While we do not read, an answer can lie unread: that is our silence, not the peer's.
            Due::NoPong | Due::BackendSilent if self.is_pressed() || !self.wants_read(conn) => {
                self.timers.arm(conn.slot, self.now_ms + pong_timeout_ms.max(TICK_MS));
            }
            Due::NoPong => self.close(conn, CloseReason::NoPong),
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
}

fn meaning(connection: &Connection) -> Due {
    match &connection.phase {
        Phase::Upgrading { .. } => Due::Handshake,
        Phase::Client(session) if !session.connected => Due::Connect,
        Phase::Client(session) => match session.ping {
            PingState::Resting => Due::PingClient { form: session.form },
            PingState::Asked if session.awaiting_pong => Due::NoPong,
            PingState::Asked => Due::ClientAnswered,
        },
        Phase::Ingest { session, .. } if !session.ready => Due::Hello,
        Phase::Ingest { session, .. } if session.awaiting_pong => Due::BackendSilent,
        Phase::Ingest { .. } => Due::PingBackend,
        Phase::Closing(_) => Due::CloseAnswer,
        Phase::Echo | Phase::Gone => Due::Nothing,
    }
}
