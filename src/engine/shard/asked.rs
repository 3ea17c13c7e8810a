//! Answers that come later than the command: verdicts about tokens, words of backends.
//!
//! In: a connection, the number of its request, and the answer. Out: the request goes on, or is refused.
//! Invariant: what the connection no longer waits for is dropped and counted; nothing waits for an answer except the
//! request itself, so that pongs and other commands go on meanwhile.

use ringway_wire::centrifuge::Form;
use ringway_wire::centrifuge::reply::{ClientError, ReplyWriter};
use ringway_wire::ingest::EventKind;

use super::Shard;
use super::connect::Refusal;
use crate::backends::{BackendAnswer, Denied};
use crate::ids::ConnId;
use crate::metrics::Metric;
use crate::session::AskWhat;
use crate::tokens::{TokenChecked, Verdict};

impl Shard {
    /// Notes that a request of the connection waits for a verdict or a backend.
    pub(super) fn wait(&mut self, conn: ConnId, number: u32, what: AskWhat) {
        if let Some(session) = self.session_mut(conn) {
            session.wait(number, what);
        }
    }

    pub(super) fn token_checked(&mut self, checked: TokenChecked) {
        let (conn, number) = (checked.ask.conn, checked.ask.ask);
        let Some(what) = self.session_mut(conn).and_then(|session| session.take_ask(number)) else {
            return self.metrics.add(Metric::LaneStale, 1);
        };
        match (what, checked.verdict) {
            (AskWhat::Connect, Verdict::Connect(verdict)) => self.connect_checked(conn, verdict),
            (AskWhat::Subscribe { local }, Verdict::Subscribe(verdict)) => {
                self.subscribe_checked(conn, local, number, verdict);
            }
            (AskWhat::Refresh { command }, Verdict::Connect(verdict)) => self.refresh_checked(conn, command, verdict),
            (AskWhat::SubRefresh { command, channel }, Verdict::Subscribe(verdict)) => {
                self.sub_refresh_checked(conn, command, &channel, verdict);
            }
            _ => self.metrics.add(Metric::LaneStale, 1),
        }
        self.flush_replies(conn);
    }

    pub(super) fn backend_answered(&mut self, conn: ConnId, number: u32, answer: BackendAnswer) {
        let Some(what) = self.session_mut(conn).and_then(|session| session.take_ask(number)) else {
            return self.metrics.add(Metric::LaneStale, 1);
        };
        match (what, answer) {
            (AskWhat::Connect, BackendAnswer::Connect(answer, data)) => match answer {
                Ok(claims) => self.admit(conn, claims, data),
                Err(denied) => self.connect_denied(conn, denied),
            },
            (AskWhat::Subscribe { local }, BackendAnswer::Subscribe(answer)) => {
                self.subscribe_decided(conn, local, number, answer);
            }
            (AskWhat::Publish { command, channel, payload }, BackendAnswer::Publish(answer)) => {
                self.publish_decided(conn, command, channel, payload, answer);
            }
            (AskWhat::Rpc { command }, BackendAnswer::Rpc(answer)) => {
                let Some(form) = self.form_of(conn) else { return };
                match answer {
                    Ok(data) => self.answer_rpc(form, command, &data),
                    Err(denied) => self.deny(conn, form, command, &denied),
                }
            }
            _ => self.metrics.add(Metric::LaneStale, 1),
        }
        self.flush_replies(conn);
    }

    /// A backend may send bytes that a JSON message cannot carry.
    fn answer_rpc(&mut self, form: Form, command: u32, data: &[u8]) {
        match self.embeddable(form, data) {
            Some(data) => ReplyWriter::resume(form, &mut self.replies).rpc(command, &data),
            None => self.refuse(form, command, ClientError::Internal),
        }
    }

    /// Answers a command with a backend's refusal.
    pub(super) fn deny(&mut self, conn: ConnId, form: Form, command: u32, denied: &Denied) {
        self.metrics.add(Metric::CommandErrors, 1);
        if let Denied::Disconnect { code, reason } = denied {
            return self.close_with(conn, *code, reason);
        }
        // All commands but connect are alike here.
        if let Some((code, message, temporary)) = denied.error(EventKind::Rpc) {
            ReplyWriter::resume(form, &mut self.replies).error_custom(command, code, message, temporary);
        }
    }

    pub(super) fn connect_denied(&mut self, conn: ConnId, denied: Denied) {
        if let Denied::Disconnect { code, reason } = &denied {
            return self.close_with(conn, *code, reason);
        }
        if let Some((code, message, temporary)) = denied.error(EventKind::Connect) {
            self.refuse_connect(conn, &Refusal { code, message, temporary });
        }
    }

    /// Sends what was written into `replies` for this connection outside its own message.
    pub(super) fn flush_replies(&mut self, conn: ConnId) {
        match self.form_of(conn) {
            Some(form) => self.send_replies(conn, form),
            None => self.replies.clear(),
        }
    }
}
