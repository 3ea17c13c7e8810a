//! What clients read of a channel: presence, its counts, history.
//!
//! In: commands whose rights were checked, owners' answers. Out: questions to owners, replies.
//! Invariant: an answer that does not fit the client's outbox is an error to that command, never a slow-consumer close.

use ringway_wire::centrifuge::Form;
use ringway_wire::centrifuge::reply::{ClientError, ClientInfoView, ReplyWriter};

use super::Shard;
use super::epoch_text::EpochText;
use crate::call::{CallError, ChannelAnswer, ChannelAsk, ChannelCall, ChannelFact};
use crate::ids::ConnId;
use crate::lane_message::{LaneMessage, Origin};
use crate::metrics::Metric;

impl Shard {
    pub(super) fn read_channel(&mut self, conn: ConnId, id: u32, channel: &str, ask: ChannelAsk) {
        let Some(session) = self.session_mut(conn) else { return };
        session.in_flight += 1;
        let call = ChannelCall {
            channel: channel.into(),
            ask,
            origin: Origin::Client { conn, command: id },
            from: self.options.core,
        };
        self.lanes.push(self.owner_of(channel), LaneMessage::ChannelCall(call.into()));
    }

    pub(super) fn client_read_answered(&mut self, conn: ConnId, command: u32, answer: &ChannelAnswer) {
        let Some(session) = self.session_mut(conn) else { return self.metrics.add(Metric::LaneStale, 1) };
        session.in_flight -= 1;
        let form = session.form;
        match &answer.result {
            Ok(fact) => self.write_fact(form, command, fact),
            Err(error) => self.refuse(form, command, client_error(*error)),
        }
        let waiting = self.connections.get(conn.slot, conn.generation).map_or(0, |c| c.outbox.bytes() as usize);
        if waiting + self.replies.len() > self.options.limits.outbox_bytes_max as usize / 2 {
            self.replies.clear();
            self.refuse(form, command, ClientError::LimitExceeded);
        }
        self.send_replies(conn, form);
    }

    fn write_fact(&mut self, form: Form, command: u32, fact: &ChannelFact) {
        let mut writer = ReplyWriter::resume(form, &mut self.replies);
        match fact {
            ChannelFact::Presence(members) => writer.presence(
                command,
                members.iter().map(|member| ClientInfoView {
                    user: &member.user,
                    client: &member.client,
                    conn_info: &member.conn_info,
                    chan_info: &member.chan_info,
                }),
            ),
            ChannelFact::PresenceStats { clients, users } => writer.presence_stats(command, *clients, *users),
            ChannelFact::History { publications, top } => {
                let epoch = EpochText::new(top.epoch);
                writer.history(command, publications.iter(), epoch.as_str(), top.offset);
            }
            // Clients have no command for it.
            ChannelFact::Removed => {}
        }
    }
}

fn client_error(error: CallError) -> ClientError {
    match error {
        CallError::UnknownChannel => ClientError::UnknownChannel,
        CallError::NotAvailable => ClientError::NotAvailable,
        CallError::UnrecoverablePosition => ClientError::UnrecoverablePosition,
        CallError::LimitExceeded => ClientError::LimitExceeded,
        CallError::BadRequest => ClientError::BadRequest,
        CallError::Busy => ClientError::TooManyRequests,
    }
}
