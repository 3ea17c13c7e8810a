//! One client command: decided by its session, carried out by the file of its kind.
//!
//! In: decoded commands. Out: replies into `self.replies`, requests to owners into the lanes.

use alloc::borrow::Cow;

use ringway_wire::centrifuge::Form;
use ringway_wire::centrifuge::command::{Command, Request};
use ringway_wire::centrifuge::json;
use ringway_wire::centrifuge::reply::{ClientError, ReplyWriter};

use super::Shard;
use super::events::ClientEvent;
use crate::connection::{Connection, Phase};
use crate::ids::ConnId;
use crate::metrics::Metric;
use crate::session::{AskWhat, Decision, Session};

impl Shard {
    pub(super) fn command(&mut self, conn: ConnId, form: Form, command: &Command<'_>) {
        self.metrics.add(Metric::CommandsReceived, 1);
        if command.request != Request::Pong {
            self.used(conn);
        }
        let Some(session) = self.session(conn) else { return };
        let subscribed = |channel: &str| {
            let index = self.fanouts.find(channel).and_then(|local| session.subscription(local));
            index.is_some_and(|index| session.subscriptions[index].place().is_some())
        };
        let id = command.id;
        match session.decide(command, &self.options, subscribed) {
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
            Decision::Connect(request) => self.connect(conn, id, request),
            Decision::AnswerPing => ReplyWriter::resume(form, &mut self.replies).ping_result(id),
            Decision::Subscribe(decision) => self.subscribe(conn, id, &decision),
            Decision::Unsubscribe { channel } => self.unsubscribe(conn, id, channel),
            Decision::Publish { channel, namespace, data } => self.publish(conn, id, channel, namespace, data),
            Decision::Read { channel, ask } => self.read_channel(conn, id, channel, ask),
            Decision::Rpc { method, data } => self.rpc(conn, form, id, method, data),
            Decision::Message { data } => self.tell_backend(conn, &ClientEvent::Message { data }),
            Decision::Refresh { token } => self.refresh(conn, id, token),
            Decision::SubRefresh { channel, token } => self.sub_refresh(conn, id, channel, token),
        }
    }

    pub(super) fn refuse(&mut self, form: Form, id: u32, error: ClientError) {
        self.metrics.add(Metric::CommandErrors, 1);
        ReplyWriter::resume(form, &mut self.replies).error(id, error);
    }

    /// Writes pushes to a client into `replies`.
    pub(super) fn pushes(&mut self, conn: ConnId) -> ReplyWriter<'_> {
        let (form, uni) = self.session(conn).map_or((Form::Json, false), |session| (session.form, session.uni));
        ReplyWriter::resume(form, &mut self.replies).bare(uni)
    }

    fn rpc(&mut self, conn: ConnId, form: Form, id: u32, method: &str, data: &[u8]) {
        let number = self.new_request();
        match self.ask_backend(conn, number, &ClientEvent::Rpc { method, data }) {
            Ok(()) => self.wait(conn, number, AskWhat::Rpc { command: id }),
            Err(denied) => self.deny(conn, form, id, &denied.into()),
        }
    }

    /// Data as it can stand in a message of this form; none: a JSON client cannot have it.
    pub(super) fn embeddable<'a>(&self, form: Form, data: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        if form == Form::Protobuf {
            return Some(Cow::Borrowed(data));
        }
        if !(self.options.utf8)(data) {
            return None;
        }
        match json::check(data) {
            Ok(false) => Some(Cow::Borrowed(data)),
            Ok(true) => {
                let mut data = data.to_vec();
                json::remove_newlines(&mut data);
                Some(Cow::Owned(data))
            }
            Err(_) => None,
        }
    }

    pub(super) fn session(&self, conn: ConnId) -> Option<&Session> {
        match self.connections.get(conn.slot, conn.generation) {
            Some(Connection { phase: Phase::Client(session), .. }) => Some(session),
            _ => None,
        }
    }

    pub(super) fn session_mut(&mut self, conn: ConnId) -> Option<&mut Session> {
        match self.connections.get_mut(conn.slot, conn.generation) {
            Some(Connection { phase: Phase::Client(session), .. }) => Some(session),
            _ => None,
        }
    }

    pub(super) fn form_of(&self, conn: ConnId) -> Option<Form> {
        self.session(conn).map(|session| session.form)
    }
}
