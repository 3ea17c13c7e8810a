//! Calls of backends: the server API as frames.
//!
//! In: the bodies of Call and CallAnswer frames. Out: [`Call`]s and [`CallResult`]s that borrow them; and the same
//! frames written.
//!
//! ```text
//! 0a Call        call u32 | kind u8 | BODY
//!    BODY        1 presence        channel TEXT
//!                2 presence_stats  channel TEXT
//!                3 history         channel TEXT | flags u8 (bit 0: newest first) | limit i32 | SINCE
//!                4 history_remove  channel TEXT
//!                5 subscribe       user TEXT | client TEXT | SUBSCRIPTION | SINCE
//!                6 unsubscribe     user TEXT | client TEXT | channel TEXT | code u32 | reason TEXT
//!                7 disconnect      user TEXT | client TEXT | code u16 | reason TEXT | LIST of client TEXT that stay
//!                8 refresh         user TEXT | client TEXT | flags u8 (bit 0: expired, 1: expires, 2: info)
//!                                  | expires_in_ms u64 if bit 1 | info BLOB if bit 2
//!                9 message         user TEXT | client TEXT | data BLOB
//!               10 channels        pattern TEXT | limit u32
//! 18 CallAnswer  call u32 | result u8 | BODY
//!    BODY        0 refused         code u16 | flags u8 (bit 0: temporary) | text_len u8 | text
//!                1 presence        LIST of MEMBER
//!                2 presence_stats  clients u32 | users u32
//!                3 history         boot u32 | creation u32 | offset u64 of the top | LIST of PUBLICATION
//!                4 removed         (empty)
//!                5 user            shards u16
//!                6 channels        total u32 | LIST of (channel TEXT | clients u32)
//!    PUBLICATION offset u64 | flags u8 (bit 0: a client published) | MEMBER if bit 0 | data BLOB
//! ```
//! TEXT, BLOB, LIST, SINCE, SUBSCRIPTION and MEMBER are drawn in `parts.rs`.

use alloc::vec::Vec;

use super::parts::{
    Bytes, Entry, List, Member, Since, Subscription, put_blob, put_since, put_text, put_u64_if, read_since,
};
use super::server::{Refusal, put_refusal, read_refusal};
use super::{Cursor, IngestError, SERVER_FRAME_BYTES_MAX, kind, write_checked};

const REVERSE: u8 = 1;
const EXPIRED: u8 = 1;
const EXPIRES: u8 = 2;
const INFO: u8 = 4;
const BY_CLIENT: u8 = 1;

/// One call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Call<'a> {
    /// Number that the backend gave it; the answer repeats it.
    pub call: u32,
    /// What is asked.
    pub what: CallBody<'a>,
}

/// What a call asks. `user` names whose connections, `client` only one of them when it is not empty.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CallBody<'a> {
    /// Who is in a channel.
    Presence {
        /// Full name.
        channel: &'a str,
    },
    /// How many are in a channel.
    PresenceStats {
        /// Full name.
        channel: &'a str,
    },
    /// Publications of the past.
    History {
        /// Full name.
        channel: &'a str,
        /// Newest first.
        reverse: bool,
        /// How many at most; 0: only the position; negative: as many as the caps allow.
        limit: i32,
        /// From where; none: from the start, or with `reverse` from the end.
        since: Option<Since>,
    },
    /// Forget a channel's publications.
    HistoryRemove {
        /// Full name.
        channel: &'a str,
    },
    /// Subscribe a user's connections.
    Subscribe {
        /// User id.
        user: &'a str,
        /// Client id, or empty.
        client: &'a str,
        /// To what.
        subscription: Subscription<'a>,
        /// From where to recover; none: from now on.
        recover: Option<Since>,
    },
    /// End subscriptions of a user's connections.
    Unsubscribe {
        /// User id.
        user: &'a str,
        /// Client id, or empty.
        client: &'a str,
        /// Full name; empty: all channels.
        channel: &'a str,
        /// 2000 to 2999; 0: 2000.
        code: u32,
        /// Text beside the code; empty: the gateway's.
        reason: &'a str,
    },
    /// Close a user's connections.
    Disconnect {
        /// User id.
        user: &'a str,
        /// Client id, or empty.
        client: &'a str,
        /// WebSocket close code, 3000 to 4999; 0: 3503.
        code: u16,
        /// Text beside the code, at most 123 bytes; empty: the gateway's.
        reason: &'a str,
        /// Client ids that stay.
        whitelist: List<'a, &'a str>,
    },
    /// Change when a user's connections expire.
    Refresh {
        /// User id.
        user: &'a str,
        /// Client id, or empty.
        client: &'a str,
        /// They have expired: close.
        expired: bool,
        /// How long they may live from now; none: without end.
        expires_in_ms: Option<u64>,
        /// New info that others see; none: as it is.
        info: Option<&'a [u8]>,
    },
    /// A message outside channels.
    Message {
        /// User id.
        user: &'a str,
        /// Client id, or empty.
        client: &'a str,
        /// JSON.
        data: &'a [u8],
    },
    /// Which channels there are.
    Channels {
        /// Only names that contain this; empty: all.
        pattern: &'a str,
        /// How many names at most.
        limit: u32,
    },
}

/// The answer to one call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CallAnswer<'a> {
    /// The call's number.
    pub call: u32,
    /// What came of it.
    pub result: CallResult<'a>,
}

/// See [`CallAnswer`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CallResult<'a> {
    /// Why not.
    Refused(Refusal<'a>),
    /// Everyone there, in no order.
    Presence(List<'a, Member<'a>>),
    /// Counts.
    PresenceStats {
        /// Connections.
        clients: u32,
        /// Distinct users; all anonymous ones are one.
        users: u32,
    },
    /// Publications in the order asked for.
    History {
        /// The channel's epoch: boot, creation.
        epoch: (u32, u32),
        /// The channel's top.
        offset: u64,
        /// As many as asked for, or fewer.
        publications: List<'a, PastPublication<'a>>,
    },
    /// History was removed.
    Removed,
    /// The order has been handed to every shard that holds connections of the user.
    User {
        /// How many.
        shards: u16,
    },
    /// Channels with subscribers.
    Channels {
        /// How many there are, whether listed or not.
        total: u32,
        /// As many as asked for, or fewer.
        channels: List<'a, ChannelClients<'a>>,
    },
}

/// A publication of the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PastPublication<'a> {
    /// Its place.
    pub offset: u64,
    /// Who published; none: a backend.
    pub publisher: Option<Member<'a>>,
    /// What was published.
    pub data: &'a [u8],
}

/// A channel and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelClients<'a> {
    /// Full name.
    pub channel: &'a str,
    /// Its subscribers, as far as its owner knows.
    pub clients: u32,
}

impl<'a> Entry<'a> for PastPublication<'a> {
    const BYTES_MIN: usize = 8 + 1 + 4;

    fn read(cursor: &mut Bytes<'a>) -> Result<Self, IngestError> {
        let (offset, flags) = (cursor.0.u64()?, cursor.0.flags(BY_CLIENT)?);
        let publisher = if flags & BY_CLIENT != 0 { Some(Member::read(cursor)?) } else { None };
        Ok(PastPublication { offset, publisher, data: cursor.0.blob()? })
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), IngestError> {
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.push(if self.publisher.is_some() { BY_CLIENT } else { 0 });
        if let Some(publisher) = &self.publisher {
            publisher.write(out)?;
        }
        put_blob(out, self.data)
    }
}

impl<'a> Entry<'a> for ChannelClients<'a> {
    const BYTES_MIN: usize = 2 + 4;

    fn read(cursor: &mut Bytes<'a>) -> Result<Self, IngestError> {
        Ok(ChannelClients { channel: cursor.0.long_text()?, clients: cursor.0.u32()? })
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), IngestError> {
        put_text(out, self.channel)?;
        out.extend_from_slice(&self.clients.to_le_bytes());
        Ok(())
    }
}

pub(super) fn read_call<'a>(body: &mut Cursor<'a>) -> Result<Call<'a>, IngestError> {
    let (call, kind) = (body.u32()?, body.u8()?);
    let what = match kind {
        1 => CallBody::Presence { channel: body.long_text()? },
        2 => CallBody::PresenceStats { channel: body.long_text()? },
        3 => CallBody::History {
            channel: body.long_text()?,
            reverse: body.flags(REVERSE)? & REVERSE != 0,
            limit: body.i32()?,
            since: read_since(body)?,
        },
        4 => CallBody::HistoryRemove { channel: body.long_text()? },
        5..=9 => {
            let (user, client) = (body.long_text()?, body.long_text()?);
            read_user_call(body, kind, user, client)?
        }
        10 => CallBody::Channels { pattern: body.long_text()?, limit: body.u32()? },
        _ => return Err(IngestError::BadFrame),
    };
    Ok(Call { call, what })
}

fn read_user_call<'a>(
    body: &mut Cursor<'a>,
    kind: u8,
    user: &'a str,
    client: &'a str,
) -> Result<CallBody<'a>, IngestError> {
    Ok(match kind {
        5 => {
            let mut bytes = Bytes(*body);
            let subscription = Subscription::read(&mut bytes)?;
            *body = bytes.0;
            CallBody::Subscribe { user, client, subscription, recover: read_since(body)? }
        }
        6 => {
            let (channel, code) = (body.long_text()?, body.u32()?);
            CallBody::Unsubscribe { user, client, channel, code, reason: body.long_text()? }
        }
        7 => {
            let (code, reason) = (body.u16()?, body.long_text()?);
            CallBody::Disconnect { user, client, code, reason, whitelist: List::read(body)? }
        }
        8 => {
            let flags = body.flags(EXPIRED | EXPIRES | INFO)?;
            let expires_in_ms = body.u64_if(flags & EXPIRES != 0)?;
            let info = body.blob_if(flags & INFO != 0)?;
            CallBody::Refresh { user, client, expired: flags & EXPIRED != 0, expires_in_ms, info }
        }
        _ => CallBody::Message { user, client, data: body.blob()? },
    })
}

/// Appends a call.
///
/// # Errors
/// [`IngestError::TooLarge`] when a part does not fit its length field, or the frame `frame_bytes_max`; nothing is
/// written then.
pub fn write_call(out: &mut Vec<u8>, call: &Call<'_>, frame_bytes_max: usize) -> Result<(), IngestError> {
    write_checked(out, kind::CALL, frame_bytes_max, |out| {
        out.extend_from_slice(&call.call.to_le_bytes());
        match call.what {
            CallBody::Presence { channel } => put_named(out, 1, channel),
            CallBody::PresenceStats { channel } => put_named(out, 2, channel),
            CallBody::History { channel, reverse, limit, since } => {
                put_named(out, 3, channel)?;
                out.push(if reverse { REVERSE } else { 0 });
                out.extend_from_slice(&limit.to_le_bytes());
                put_since(out, since.as_ref());
                Ok(())
            }
            CallBody::HistoryRemove { channel } => put_named(out, 4, channel),
            CallBody::Channels { pattern, limit } => {
                put_named(out, 10, pattern)?;
                out.extend_from_slice(&limit.to_le_bytes());
                Ok(())
            }
            what => put_user_call(out, what),
        }
    })
}

fn put_user_call(out: &mut Vec<u8>, what: CallBody<'_>) -> Result<(), IngestError> {
    match what {
        CallBody::Subscribe { user, client, subscription, recover } => {
            put_user(out, 5, user, client)?;
            subscription.write(out)?;
            put_since(out, recover.as_ref());
            Ok(())
        }
        CallBody::Unsubscribe { user, client, channel, code, reason } => {
            put_user(out, 6, user, client)?;
            put_text(out, channel)?;
            out.extend_from_slice(&code.to_le_bytes());
            put_text(out, reason)
        }
        CallBody::Disconnect { user, client, code, reason, whitelist } => {
            put_user(out, 7, user, client)?;
            out.extend_from_slice(&code.to_le_bytes());
            put_text(out, reason)?;
            whitelist.write(out);
            Ok(())
        }
        CallBody::Refresh { user, client, expired, expires_in_ms, info } => {
            put_user(out, 8, user, client)?;
            let flag = |there: bool, bit: u8| if there { bit } else { 0 };
            let flags = flag(expired, EXPIRED) | flag(expires_in_ms.is_some(), EXPIRES) | flag(info.is_some(), INFO);
            out.push(flags);
            put_u64_if(out, expires_in_ms);
            info.map_or(Ok(()), |info| put_blob(out, info))
        }
        CallBody::Message { user, client, data } => {
            put_user(out, 9, user, client)?;
            put_blob(out, data)
        }
        CallBody::Presence { .. }
        | CallBody::PresenceStats { .. }
        | CallBody::History { .. }
        | CallBody::HistoryRemove { .. }
        | CallBody::Channels { .. } => Ok(()),
    }
}

fn put_named(out: &mut Vec<u8>, kind: u8, name: &str) -> Result<(), IngestError> {
    out.push(kind);
    put_text(out, name)
}

fn put_user(out: &mut Vec<u8>, kind: u8, user: &str, client: &str) -> Result<(), IngestError> {
    put_named(out, kind, user)?;
    put_text(out, client)
}

pub(super) fn read_call_answer<'a>(body: &mut Cursor<'a>) -> Result<CallAnswer<'a>, IngestError> {
    let (call, result) = (body.u32()?, body.u8()?);
    let result = match result {
        0 => CallResult::Refused(read_refusal(body)?),
        1 => CallResult::Presence(List::read(body)?),
        2 => CallResult::PresenceStats { clients: body.u32()?, users: body.u32()? },
        3 => {
            let (epoch, offset) = ((body.u32()?, body.u32()?), body.u64()?);
            CallResult::History { epoch, offset, publications: List::read(body)? }
        }
        4 => CallResult::Removed,
        5 => CallResult::User { shards: body.u16()? },
        6 => CallResult::Channels { total: body.u32()?, channels: List::read(body)? },
        _ => return Err(IngestError::BadFrame),
    };
    Ok(CallAnswer { call, result })
}

/// Appends an answer.
///
/// # Errors
/// [`IngestError::TooLarge`] when the frame would exceed [`SERVER_FRAME_BYTES_MAX`]; nothing is written then.
pub fn write_call_answer(out: &mut Vec<u8>, answer: &CallAnswer<'_>) -> Result<(), IngestError> {
    write_checked(out, kind::CALL_ANSWER, SERVER_FRAME_BYTES_MAX, |out| {
        out.extend_from_slice(&answer.call.to_le_bytes());
        match answer.result {
            CallResult::Refused(refusal) => {
                out.push(0);
                put_refusal(out, &refusal);
            }
            CallResult::Presence(members) => {
                out.push(1);
                members.write(out);
            }
            CallResult::PresenceStats { clients, users } => {
                out.push(2);
                out.extend_from_slice(&clients.to_le_bytes());
                out.extend_from_slice(&users.to_le_bytes());
            }
            CallResult::History { epoch: (boot, creation), offset, publications } => {
                out.push(3);
                out.extend_from_slice(&boot.to_le_bytes());
                out.extend_from_slice(&creation.to_le_bytes());
                out.extend_from_slice(&offset.to_le_bytes());
                publications.write(out);
            }
            CallResult::Removed => out.push(4),
            CallResult::User { shards } => {
                out.push(5);
                out.extend_from_slice(&shards.to_le_bytes());
            }
            CallResult::Channels { total, channels } => {
                out.push(6);
                out.extend_from_slice(&total.to_le_bytes());
                channels.write(out);
            }
        }
        Ok(())
    })
}
