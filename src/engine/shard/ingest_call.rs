//! Calls of backends over ingest: the server API as frames.
//!
//! In: Call frames, and the answers of owners and shards. Out: calls into the lanes, one CallAnswer frame each.
//! Invariant: each call is answered once: refused here, or by whoever it went to.

use alloc::boxed::Box;
use alloc::vec::Vec;

use ringway_wire::ingest::{
    Call, CallAnswer, CallBody, CallResult, ChannelClients, IngestError, ListBuf, Member, PastPublication, PayloadKind,
    Refusal, SERVER_FRAME_BYTES_MAX, write_call_answer,
};

use super::Shard;
use crate::backends::{may_disconnect, subscription};
use crate::call::{
    CallError, ChannelAsk, ChannelCall, ChannelFact, ChannelsAnswer, ChannelsCall, HistoryAsk, Since, UserCall,
    UserOrder,
};
use crate::frame::Frame;
use crate::ids::{ConnId, CoreId, Epoch};
use crate::ingest_session::call_error_of;
use crate::lane_message::{LaneMessage, Origin};
use crate::metrics::Metric;
use crate::namespace::channel_is_valid;

/// What a disconnect without a code of its own says.
const DISCONNECT: (u16, &str) = (3503, "force disconnect");
/// What an unsubscribe without a code of its own says.
const UNSUBSCRIBE: (u32, &str) = (2000, "server unsubscribe");
/// Channels that one answer lists; asking for more gets as many.
const CHANNELS_LISTED_MAX: u32 = 10_000;
/// Codes of an unsubscribe push.
const UNSUBSCRIBE_CODES: core::ops::RangeInclusive<u32> = 2_000..=2_999;

impl Shard {
    /// # Errors
    /// What ends the connection; a refusal of this one call is answered and is no error here.
    pub(super) fn ingest_call(&mut self, conn: ConnId, call: &Call<'_>) -> Result<(), IngestError> {
        self.metrics.add(Metric::IngestCalls, 1);
        let limits = &self.options.limits;
        let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) else { return Ok(()) };
        let crate::connection::Phase::Ingest { session, .. } = &mut connection.phase else { return Ok(()) };
        if !session.begin_call(limits)? {
            self.send_call_answer(conn, call.call, CallResult::Refused(Refusal::of(IngestError::Busy)));
            return Ok(());
        }
        let origin = Origin::IngestCall { conn, call: call.call };
        if let Err(error) = self.pass_call_on(conn, call, origin) {
            self.refuse_call(conn, call.call, error);
        }
        Ok(())
    }

    /// Hands a call to whoever answers it.
    fn pass_call_on(&mut self, conn: ConnId, call: &Call<'_>, origin: Origin) -> Result<(), CallError> {
        match call.what {
            CallBody::Presence { channel } => self.call_channel(channel, ChannelAsk::Presence, origin),
            CallBody::PresenceStats { channel } => self.call_channel(channel, ChannelAsk::PresenceStats, origin),
            CallBody::History { channel, reverse, limit, since } => {
                let ask = HistoryAsk { limit, since: since.map(since_of), reverse };
                self.call_channel(channel, ChannelAsk::History(ask), origin)
            }
            CallBody::HistoryRemove { channel } => self.call_channel(channel, ChannelAsk::HistoryRemove, origin),
            CallBody::Channels { pattern, limit } => {
                let (from, limit) = (self.options.core, limit.min(CHANNELS_LISTED_MAX));
                let (shards, is_shared) = (self.options.shards, self.owner.is_shared());
                if let Some(session) = self.ingest_session_mut(conn) {
                    session.gather(call.call, if is_shared { 1 } else { shards }, limit);
                }
                if is_shared {
                    // The control plane asks all nodes, and answers as one shard would.
                    let question = ChannelsCall { pattern: pattern.into(), limit, origin, from };
                    self.lanes.push(CoreId(shards), LaneMessage::ChannelsCall(question.into()));
                    return Ok(());
                }
                self.tell_every_shard(|| {
                    let question = ChannelsCall { pattern: pattern.into(), limit, origin, from };
                    LaneMessage::ChannelsCall(question.into())
                });
                Ok(())
            }
            CallBody::Subscribe { user, client, .. }
            | CallBody::Unsubscribe { user, client, .. }
            | CallBody::Disconnect { user, client, .. }
            | CallBody::Refresh { user, client, .. }
            | CallBody::Message { user, client, .. } => {
                if user.is_empty() {
                    return Err(CallError::BadRequest);
                }
                let order = self.user_order(&call.what)?;
                let owner = self.owner_of(user);
                let (user, client) = (user.into(), client.into());
                let call = UserCall { user, client, order, origin: Some(origin), from: self.options.core };
                self.lanes.push(owner, LaneMessage::UserCall(call.into()));
                Ok(())
            }
        }
    }

    fn call_channel(&mut self, channel: &str, ask: ChannelAsk, origin: Origin) -> Result<(), CallError> {
        self.known_channel(channel)?;
        let call = ChannelCall { channel: channel.into(), ask, origin, from: self.options.core };
        self.lanes.push(self.owner_of(channel), LaneMessage::ChannelCall(call.into()));
        Ok(())
    }

    fn known_channel(&self, channel: &str) -> Result<(), CallError> {
        let known =
            channel_is_valid(channel, &self.options.limits) && self.options.namespaces.resolve(channel).is_some();
        if known { Ok(()) } else { Err(CallError::UnknownChannel) }
    }

    pub(super) fn user_order(&mut self, what: &CallBody<'_>) -> Result<UserOrder, CallError> {
        match *what {
            CallBody::Subscribe { subscription: wanted, recover, .. } => {
                self.known_channel(wanted.channel)?;
                let mut subscription = subscription(wanted.channel, &wanted.grant);
                subscription.info = self.json_part(wanted.grant.info)?;
                subscription.data = self.json_part(wanted.grant.data)?;
                Ok(UserOrder::Subscribe { subscription, recover: recover.map(since_of) })
            }
            CallBody::Unsubscribe { channel, code, reason, .. } => {
                if !channel.is_empty() {
                    self.known_channel(channel)?;
                }
                let code = if code == 0 { UNSUBSCRIBE.0 } else { code };
                let reason = if reason.is_empty() { UNSUBSCRIBE.1 } else { reason };
                if !UNSUBSCRIBE_CODES.contains(&code) {
                    return Err(CallError::BadRequest);
                }
                Ok(UserOrder::Unsubscribe { channel: channel.into(), code, reason: reason.into() })
            }
            CallBody::Disconnect { code, reason, whitelist, .. } => {
                let code = if code == 0 { DISCONNECT.0 } else { code };
                let reason = if reason.is_empty() { DISCONNECT.1 } else { reason };
                if !may_disconnect(code, reason) {
                    return Err(CallError::BadRequest);
                }
                let whitelist = whitelist.map(Box::from).collect();
                Ok(UserOrder::Disconnect { code, reason: reason.into(), whitelist })
            }
            CallBody::Refresh { expired, expires_in_ms, info, .. } => {
                let info = info.map(|info| self.json_part(info)).transpose()?;
                Ok(UserOrder::Refresh { expired, expires_in_ms, info })
            }
            CallBody::Message { data, .. } if !data.is_empty() => {
                Ok(UserOrder::Message { data: self.json_part(data)? })
            }
            _ => Err(CallError::BadRequest),
        }
    }

    fn json_part(&mut self, bytes: &[u8]) -> Result<Box<[u8]>, CallError> {
        self.checked_part(PayloadKind::Json, bytes.into()).ok_or(CallError::BadRequest)
    }

    /// The owner's answer to a call about a channel.
    pub(super) fn ingest_channel_answered(&mut self, conn: ConnId, call: u32, result: &Result<ChannelFact, CallError>) {
        let mut list = ListBuf::new();
        match result {
            Err(error) => self.refuse_call(conn, call, *error),
            Ok(ChannelFact::Presence(members)) => {
                let members = members.iter().map(|member| Member {
                    client: &member.client,
                    user: &member.user,
                    conn_info: &member.conn_info,
                    chan_info: &member.chan_info,
                });
                match fill(&mut list, members) {
                    Ok(()) => self.answer_call(conn, call, CallResult::Presence(list.list())),
                    Err(error) => self.refuse_call(conn, call, error),
                }
            }
            Ok(ChannelFact::PresenceStats { clients, users }) => {
                self.answer_call(conn, call, CallResult::PresenceStats { clients: *clients, users: *users });
            }
            Ok(ChannelFact::History { publications, top }) => {
                let views: Vec<_> = publications.iter().collect();
                let past = views.iter().map(|view| PastPublication {
                    offset: view.offset,
                    publisher: view.info.as_ref().map(|info| Member {
                        client: info.client,
                        user: info.user,
                        conn_info: info.conn_info,
                        chan_info: info.chan_info,
                    }),
                    data: view.data,
                });
                let filled = fill(&mut list, past);
                let epoch = (top.epoch.boot, top.epoch.creation);
                match filled {
                    Ok(()) => {
                        let publications = list.list();
                        self.answer_call(conn, call, CallResult::History { epoch, offset: top.offset, publications });
                    }
                    Err(error) => self.refuse_call(conn, call, error),
                }
            }
            Ok(ChannelFact::Removed) => self.answer_call(conn, call, CallResult::Removed),
        }
    }

    /// The user's owner's answer.
    pub(super) fn ingest_user_answered(&mut self, conn: ConnId, call: u32, result: Result<u16, CallError>) {
        match result {
            Ok(shards) => self.answer_call(conn, call, CallResult::User { shards }),
            Err(error) => self.refuse_call(conn, call, error),
        }
    }

    /// One shard's answer.
    pub(super) fn ingest_channels_answered(&mut self, conn: ConnId, call: u32, answer: ChannelsAnswer) {
        let gathered = self.ingest_session_mut(conn).and_then(|session| session.gathered(call, answer));
        let Some(gathered) = gathered else { return };
        let (channels, total) = match gathered {
            Ok(gathered) => gathered,
            Err(error) => return self.refuse_call(conn, call, error),
        };
        let mut list = ListBuf::new();
        let entries = channels.iter().map(|one| ChannelClients { channel: &one.channel, clients: one.clients });
        match fill(&mut list, entries) {
            Ok(()) => self.answer_call(conn, call, CallResult::Channels { total, channels: list.list() }),
            Err(error) => self.refuse_call(conn, call, error),
        }
    }

    fn refuse_call(&mut self, conn: ConnId, call: u32, error: CallError) {
        self.answer_call(conn, call, CallResult::Refused(Refusal::of(call_error_of(error))));
    }

    /// Answers a call that was begun.
    fn answer_call(&mut self, conn: ConnId, call: u32, result: CallResult<'_>) {
        let Some(session) = self.ingest_session_mut(conn) else {
            return self.metrics.add(Metric::LaneStale, 1);
        };
        session.call_answered();
        let done = session.finished && !session.has_outstanding();
        self.send_call_answer(conn, call, result);
        if done {
            self.write_acknowledgements();
            if !self.is_closing(conn) {
                self.finish_backend(conn);
            }
        }
    }

    fn send_call_answer(&mut self, conn: ConnId, call: u32, result: CallResult<'_>) {
        self.frame.clear();
        let mut refused = matches!(result, CallResult::Refused(_));
        if write_call_answer(&mut self.frame, &CallAnswer { call, result }).is_err() {
            self.write_refused(call, IngestError::LimitExceeded);
            refused = true;
        }
        // A large answer that the outbox cannot take must not end a backend that only asked much at once.
        if !self.has_outbox_room(conn, self.frame.len()) {
            self.frame.clear();
            self.write_refused(call, IngestError::Busy);
            refused = true;
        }
        self.metrics.add(Metric::IngestCallsRefused, u64::from(refused));
        let frame = Frame::from_bytes(&self.frame);
        self.send(conn, frame);
    }

    fn write_refused(&mut self, call: u32, error: IngestError) {
        let refused = CallAnswer { call, result: CallResult::Refused(Refusal::of(error)) };
        // Fits any frame.
        let _ = write_call_answer(&mut self.frame, &refused);
    }
}

/// # Errors
/// [`CallError::LimitExceeded`] when the entries do not fit one frame.
fn fill<'a, T: ringway_wire::ingest::Entry<'a>>(
    list: &mut ListBuf,
    entries: impl Iterator<Item = T>,
) -> Result<(), CallError> {
    for entry in entries {
        if list.push(&entry).is_err() || list.bytes_len() > SERVER_FRAME_BYTES_MAX {
            return Err(CallError::LimitExceeded);
        }
    }
    Ok(())
}

fn since_of(since: ringway_wire::ingest::Since) -> Since {
    let epoch = since.epoch.map(|(boot, creation)| Epoch { boot, creation });
    Since { offset: since.offset, epoch }
}
