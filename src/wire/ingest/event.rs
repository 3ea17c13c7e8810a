//! What clients did, told to backends, and what backends decide about it.
//!
//! In: the bodies of Event and EventAnswer frames. Out: [`ClientEvent`]s and [`Verdict`]s that borrow them; and the
//! same frames written.
//!
//! ```text
//! 17 Event        event u64 | kind u8 | flags u8 (bit 0: an answer is awaited) | transport u8 (0 JSON, 1 Protobuf,
//!                 2 unidirectional) | client TEXT | user TEXT | meta BLOB | WHAT
//!    WHAT         1 connect      name TEXT | version TEXT | info BLOB | data BLOB
//!                 2 disconnect   code u32 | reason TEXT
//!                 3 subscribe    channel TEXT | data BLOB
//!                 4 unsubscribe  channel TEXT
//!                 5 publish      channel TEXT | data BLOB
//!                 6 rpc          method TEXT | data BLOB
//!                 7 message      data BLOB
//! 08 TakeEvents   kinds u32 (bit n: kind n) | window u32
//! 09 EventAnswer  event u64 | verdict u8 | BODY
//!    BODY         0 error        code u32 | flags u8 (bit 0: temporary) | message TEXT
//!                 2 disconnect   code u16 | reason TEXT
//!                 1 connect      flags u8 (bit 0: expires) | expires_in_ms u64 if bit 0 | user TEXT | info BLOB
//!                                | meta BLOB | data BLOB | LIST of SUBSCRIPTION
//!                 3 subscribe    GRANT
//!                 5 publish      flags u8 (bit 0: other data) | data BLOB if bit 0
//!                 6 rpc          data BLOB
//! ```
//! TEXT, BLOB, LIST, GRANT and SUBSCRIPTION are drawn in `parts.rs`.
//!
//! Invariant: whether an event awaits an answer, and which kind, is decided by the gateway; a verdict of another kind
//! is readable here and refused by the engine.

use alloc::vec::Vec;

use super::parts::{Grant, List, Subscription, put_blob, put_grant, put_text, put_u64_if, read_grant};
use super::{Cursor, Event, IngestError, SERVER_FRAME_BYTES_MAX, kind, write_checked, write_frame};

const AWAITS_ANSWER: u8 = 1;
const EXPIRES: u8 = 1;
const OTHER_DATA: u8 = 1;
const TEMPORARY: u8 = 1;
const VERDICT_ERROR: u8 = 0;
/// The number of the event kind that is never asked about.
const VERDICT_DISCONNECT: u8 = EventKind::Disconnect as u8;

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EventKind {
    /// A client connects.
    Connect = 1,
    /// Its connection has ended.
    Disconnect = 2,
    /// It subscribes.
    Subscribe = 3,
    /// A subscription has ended.
    Unsubscribe = 4,
    /// It publishes.
    Publish = 5,
    /// It calls a method.
    Rpc = 6,
    /// It sends a message that has no answer.
    Message = 7,
}

impl EventKind {
    /// All kinds, by number.
    pub const ALL: [EventKind; 7] = [
        EventKind::Connect,
        EventKind::Disconnect,
        EventKind::Subscribe,
        EventKind::Unsubscribe,
        EventKind::Publish,
        EventKind::Rpc,
        EventKind::Message,
    ];

    /// The kind with this number on the wire.
    pub const fn from_code(code: u8) -> Option<EventKind> {
        match code {
            1..=7 => Some(Self::ALL[code as usize - 1]),
            _ => None,
        }
    }

    /// The value of a `kind` label in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            EventKind::Connect => "connect",
            EventKind::Disconnect => "disconnect",
            EventKind::Subscribe => "subscribe",
            EventKind::Unsubscribe => "unsubscribe",
            EventKind::Publish => "publish",
            EventKind::Rpc => "rpc",
            EventKind::Message => "message",
        }
    }
}

/// A set of kinds. Bits that name no kind are kept and mean nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventKinds(pub u32);

impl EventKinds {
    /// Every kind.
    pub const ALL: EventKinds = EventKinds(0b1111_1110);

    /// With `kind` added.
    #[must_use]
    pub const fn with(self, kind: EventKind) -> Self {
        EventKinds(self.0 | 1 << kind as u32)
    }

    /// Whether `kind` is in it.
    pub const fn contains(self, kind: EventKind) -> bool {
        self.0 & 1 << kind as u32 != 0
    }

    /// Whether no kind is in it.
    pub const fn is_empty(self) -> bool {
        self.0 & Self::ALL.0 == 0
    }
}

/// How a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Transport {
    /// WebSocket, JSON.
    Json = 0,
    /// WebSocket, Protobuf.
    Protobuf = 1,
    /// Unidirectional WebSocket, JSON.
    Unidirectional = 2,
}

impl Transport {
    const fn from_code(code: u8) -> Option<Transport> {
        match code {
            0 => Some(Transport::Json),
            1 => Some(Transport::Protobuf),
            2 => Some(Transport::Unidirectional),
            _ => None,
        }
    }
}

/// Something that a client did, or wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientEvent<'a> {
    /// The client waits for an [`Verdict`]; otherwise it has happened, and an EventAck is enough.
    pub ask: bool,
    /// How the client speaks.
    pub transport: Transport,
    /// Client id.
    pub client: &'a str,
    /// User id; empty: anonymous, or not known yet.
    pub user: &'a str,
    /// What the connection's token or admission said for backends only; empty: none.
    pub meta: &'a [u8],
    /// What it did.
    pub what: Happened<'a>,
}

/// See [`ClientEvent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened<'a> {
    /// It connects.
    Connect {
        /// Of its software.
        name: &'a str,
        /// Of its software.
        version: &'a str,
        /// What its token says for other clients; empty: none.
        info: &'a [u8],
        /// What it sent along.
        data: &'a [u8],
    },
    /// Its connection has ended; the last event of a client.
    Disconnect {
        /// WebSocket close code.
        code: u32,
        /// Beside the code.
        reason: &'a str,
    },
    /// It subscribes.
    Subscribe {
        /// Full name.
        channel: &'a str,
        /// What it sent along.
        data: &'a [u8],
    },
    /// A subscription has ended.
    Unsubscribe {
        /// Full name.
        channel: &'a str,
    },
    /// It publishes.
    Publish {
        /// Full name.
        channel: &'a str,
        /// JSON from a JSON client, else any bytes.
        data: &'a [u8],
    },
    /// It calls a method.
    Rpc {
        /// May be empty.
        method: &'a str,
        /// As in `Publish`.
        data: &'a [u8],
    },
    /// It sends a message.
    Message {
        /// As in `Publish`.
        data: &'a [u8],
    },
}

impl Happened<'_> {
    /// Which kind it is.
    pub const fn kind(&self) -> EventKind {
        match self {
            Happened::Connect { .. } => EventKind::Connect,
            Happened::Disconnect { .. } => EventKind::Disconnect,
            Happened::Subscribe { .. } => EventKind::Subscribe,
            Happened::Unsubscribe { .. } => EventKind::Unsubscribe,
            Happened::Publish { .. } => EventKind::Publish,
            Happened::Rpc { .. } => EventKind::Rpc,
            Happened::Message { .. } => EventKind::Message,
        }
    }
}

/// Which events a backend wants from here on. A later frame replaces the one before; no kinds: no new events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakeEvents {
    /// Which.
    pub kinds: EventKinds,
    /// How many may be unacknowledged and unanswered at once, about; 0: as many as the gateway likes.
    pub window: u32,
}

/// A backend's decision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict<'a> {
    /// The client's command is answered with an error.
    Error {
        /// 100 and above; see the client protocol.
        code: u32,
        /// Whether the client tries again.
        temporary: bool,
        /// Never empty.
        message: &'a str,
    },
    /// The client's connection is closed.
    Disconnect {
        /// WebSocket close code, 3000 to 4999.
        code: u16,
        /// Never empty, at most 123 bytes.
        reason: &'a str,
    },
    /// It may connect.
    Connect(Admission<'a>),
    /// It may subscribe.
    Subscribe(Grant<'a>),
    /// It may publish.
    Publish {
        /// What is published instead of what the client sent; none: that.
        data: Option<&'a [u8]>,
    },
    /// The method's result.
    Rpc {
        /// JSON for a JSON client, else any bytes.
        data: &'a [u8],
    },
}

/// What a client may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Admission<'a> {
    /// User id; empty: anonymous.
    pub user: &'a str,
    /// JSON that other clients see beside the user; empty: none.
    pub info: &'a [u8],
    /// JSON that comes with each later event of the client; empty: none.
    pub meta: &'a [u8],
    /// For the client itself: JSON, or any bytes for a Protobuf client; empty: none.
    pub data: &'a [u8],
    /// How long the connection may live from now; none: without end.
    pub expires_in_ms: Option<u64>,
    /// Server-side subscriptions.
    pub subscriptions: List<'a, Subscription<'a>>,
}

impl Admission<'_> {
    /// Anonymous, without anything.
    pub const ANONYMOUS: Admission<'static> =
        Admission { user: "", info: b"", meta: b"", data: b"", expires_in_ms: None, subscriptions: List::EMPTY };
}

/// Decodes what an event says.
///
/// # Errors
/// [`IngestError::BadFrame`] when its kind is not known or its body is not of this protocol.
pub fn decode_event<'a>(event: &Event<'a>) -> Result<ClientEvent<'a>, IngestError> {
    let event_kind = EventKind::from_code(event.kind).ok_or(IngestError::BadFrame)?;
    let mut body = Cursor { rest: event.body };
    let ask = body.flags(AWAITS_ANSWER)? & AWAITS_ANSWER != 0;
    let transport = Transport::from_code(body.u8()?).ok_or(IngestError::BadFrame)?;
    let (client, user, meta) = (body.long_text()?, body.long_text()?, body.blob()?);
    let what = match event_kind {
        EventKind::Connect => Happened::Connect {
            name: body.long_text()?,
            version: body.long_text()?,
            info: body.blob()?,
            data: body.blob()?,
        },
        EventKind::Disconnect => Happened::Disconnect { code: body.u32()?, reason: body.long_text()? },
        EventKind::Subscribe => Happened::Subscribe { channel: body.long_text()?, data: body.blob()? },
        EventKind::Unsubscribe => Happened::Unsubscribe { channel: body.long_text()? },
        EventKind::Publish => Happened::Publish { channel: body.long_text()?, data: body.blob()? },
        EventKind::Rpc => Happened::Rpc { method: body.long_text()?, data: body.blob()? },
        EventKind::Message => Happened::Message { data: body.blob()? },
    };
    body.end()?;
    Ok(ClientEvent { ask, transport, client, user, meta, what })
}

/// Appends an event.
///
/// # Errors
/// [`IngestError::TooLarge`] when a part does not fit its length field, or the frame [`SERVER_FRAME_BYTES_MAX`];
/// nothing is written then.
pub fn write_client_event(out: &mut Vec<u8>, number: u64, event: &ClientEvent<'_>) -> Result<(), IngestError> {
    write_checked(out, kind::EVENT, SERVER_FRAME_BYTES_MAX, |out| {
        out.extend_from_slice(&number.to_le_bytes());
        let flags = if event.ask { AWAITS_ANSWER } else { 0 };
        out.extend_from_slice(&[event.what.kind() as u8, flags, event.transport as u8]);
        put_text(out, event.client)?;
        put_text(out, event.user)?;
        put_blob(out, event.meta)?;
        match event.what {
            Happened::Connect { name, version, info, data } => {
                put_text(out, name)?;
                put_text(out, version)?;
                put_blob(out, info)?;
                put_blob(out, data)
            }
            Happened::Disconnect { code, reason } => {
                out.extend_from_slice(&code.to_le_bytes());
                put_text(out, reason)
            }
            Happened::Subscribe { channel: name, data }
            | Happened::Publish { channel: name, data }
            | Happened::Rpc { method: name, data } => {
                put_text(out, name)?;
                put_blob(out, data)
            }
            Happened::Unsubscribe { channel } => put_text(out, channel),
            Happened::Message { data } => put_blob(out, data),
        }
    })
}

/// Appends a choice of events.
pub fn write_take_events(out: &mut Vec<u8>, take: TakeEvents) {
    write_frame(out, kind::TAKE_EVENTS, |out| {
        out.extend_from_slice(&take.kinds.0.to_le_bytes());
        out.extend_from_slice(&take.window.to_le_bytes());
    });
}

pub(super) fn read_take_events(body: &mut Cursor<'_>) -> Result<TakeEvents, IngestError> {
    Ok(TakeEvents { kinds: EventKinds(body.u32()?), window: body.u32()? })
}

pub(super) fn read_verdict<'a>(body: &mut Cursor<'a>) -> Result<Verdict<'a>, IngestError> {
    let verdict = body.u8()?;
    if verdict == VERDICT_ERROR {
        let (code, flags) = (body.u32()?, body.flags(TEMPORARY)?);
        return Ok(Verdict::Error { code, temporary: flags & TEMPORARY != 0, message: body.long_text()? });
    }
    match EventKind::from_code(verdict).ok_or(IngestError::BadFrame)? {
        EventKind::Disconnect => Ok(Verdict::Disconnect { code: body.u16()?, reason: body.long_text()? }),
        EventKind::Connect => {
            let flags = body.flags(EXPIRES)?;
            Ok(Verdict::Connect(Admission {
                expires_in_ms: body.u64_if(flags & EXPIRES != 0)?,
                user: body.long_text()?,
                info: body.blob()?,
                meta: body.blob()?,
                data: body.blob()?,
                subscriptions: List::read(body)?,
            }))
        }
        EventKind::Subscribe => Ok(Verdict::Subscribe(read_grant(body)?)),
        EventKind::Publish => {
            let flags = body.flags(OTHER_DATA)?;
            Ok(Verdict::Publish { data: body.blob_if(flags & OTHER_DATA != 0)? })
        }
        EventKind::Rpc => Ok(Verdict::Rpc { data: body.blob()? }),
        EventKind::Unsubscribe | EventKind::Message => Err(IngestError::BadFrame),
    }
}

/// Appends a decision.
///
/// # Errors
/// [`IngestError::TooLarge`] when a part does not fit its length field, or the frame `frame_bytes_max`; nothing is
/// written then.
pub fn write_event_answer(
    out: &mut Vec<u8>,
    event: u64,
    verdict: &Verdict<'_>,
    frame_bytes_max: usize,
) -> Result<(), IngestError> {
    write_checked(out, kind::EVENT_ANSWER, frame_bytes_max, |out| {
        out.extend_from_slice(&event.to_le_bytes());
        match verdict {
            Verdict::Error { code, temporary, message } => {
                out.push(VERDICT_ERROR);
                out.extend_from_slice(&code.to_le_bytes());
                out.push(if *temporary { TEMPORARY } else { 0 });
                put_text(out, message)
            }
            Verdict::Disconnect { code, reason } => {
                out.push(VERDICT_DISCONNECT);
                out.extend_from_slice(&code.to_le_bytes());
                put_text(out, reason)
            }
            Verdict::Connect(admission) => {
                out.push(EventKind::Connect as u8);
                out.push(if admission.expires_in_ms.is_some() { EXPIRES } else { 0 });
                put_u64_if(out, admission.expires_in_ms);
                put_text(out, admission.user)?;
                put_blob(out, admission.info)?;
                put_blob(out, admission.meta)?;
                put_blob(out, admission.data)?;
                admission.subscriptions.write(out);
                Ok(())
            }
            Verdict::Subscribe(grant) => {
                out.push(EventKind::Subscribe as u8);
                put_grant(out, grant)
            }
            Verdict::Publish { data } => {
                out.extend_from_slice(&[EventKind::Publish as u8, if data.is_some() { OTHER_DATA } else { 0 }]);
                data.map_or(Ok(()), |data| put_blob(out, data))
            }
            Verdict::Rpc { data } => {
                out.push(EventKind::Rpc as u8);
                put_blob(out, data)
            }
        }
    })
}
