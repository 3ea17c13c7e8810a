//! Frames from the gateway to a backend. The layouts are drawn in the head of `mod.rs`.
//!
//! In: answers of the engine. Out: frames appended to a connection's outbox; and, for client libraries, the same frames
//! decoded into [`ServerFrame`]s that borrow them.
//! Invariant: no frame written here is longer than [`SERVER_FRAME_BYTES_MAX`].

use alloc::vec::Vec;

use super::call::{CallAnswer, read_call_answer};
use super::{
    ACKS_PER_FRAME_MAX, ADDRESS_BYTES_MAX, ADDRESSES_MAX, Cursor, ERROR_TEXT_BYTES_MAX, FRAME_HEADER_BYTES,
    IngestError, NAME_BYTES_MAX, SERVER_FRAME_BYTES_MAX, begin_frame, end_frame, kind, write_frame, write_short_text,
};

/// Bit of a refusal's flags.
const TEMPORARY: u8 = 1;

const ACK_DUPLICATE: u8 = 1;
const ACK_SEQ: u8 = 2;
const ACK_BOOT: u8 = 4;
const ACK_CREATION: u8 = 8;
const ACK_BYTES_MIN: usize = 9;
pub(super) const ACK_BYTES_MAX: usize = ACK_BYTES_MIN + 8 + 4 + 4;

/// One frame from the gateway.
#[derive(Clone, Debug)]
pub enum ServerFrame<'a> {
    /// The hello was accepted; publishes may be sent.
    HelloOk(HelloOk<'a>),
    /// The gateway ends the connection behind this frame.
    Fatal(Refusal<'a>),
    /// Publishes that are as durable as their namespaces say.
    Acks(Acks<'a>),
    /// One publish that was refused.
    Nack {
        /// The publish's number.
        seq: u64,
        /// Why.
        refusal: Refusal<'a>,
    },
    /// The window grows or shrinks by this.
    Credit {
        /// Publishes.
        messages: i32,
        /// Payload bytes.
        bytes: i64,
    },
    /// To be answered with the same nonce.
    Ping {
        /// Any number.
        nonce: u64,
    },
    /// Answer to the backend's ping.
    Pong {
        /// The ping's.
        nonce: u64,
    },
    /// Send nothing new here; wait for the acknowledgements; go on elsewhere.
    GoingAway(GoingAway<'a>),
    /// Something that a client did; [`super::decode_event`] says what.
    Event(Event<'a>),
    /// What came of a call.
    CallAnswer(CallAnswer<'a>),
    /// A frame that may be skipped, from a newer gateway.
    Unknown {
        /// Its type.
        kind: u8,
    },
}

/// What a backend must know before its first publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloOk<'a> {
    /// The version spoken from here on.
    pub version: u16,
    /// What the gateway will use of the hello's features.
    pub features: u32,
    /// Random per start of the gateway.
    pub boot: u64,
    /// Publishes that may be unacknowledged at once.
    pub credit_messages: u32,
    /// Payload bytes that may be unacknowledged at once; at least `publication_bytes_max`.
    pub credit_bytes: u64,
    /// Largest frame that the gateway takes, header included.
    pub frame_bytes_max: u32,
    /// Largest payload that the gateway takes.
    pub publication_bytes_max: u32,
    /// How long an idempotency key is remembered.
    pub idempotency_window_ms: u32,
    /// Silence after which the gateway pings, and after twice that disconnects; 0: never.
    pub idle_timeout_ms: u32,
    /// The node's name, at most [`NAME_BYTES_MAX`] bytes.
    pub node: &'a str,
}

/// Why something was refused, as it came over the wire; the code may be newer than this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal<'a> {
    /// Number; see [`IngestError::from_code`].
    pub code: u16,
    /// Whether trying again can help.
    pub temporary: bool,
    /// For people.
    pub text: &'a str,
}

impl Refusal<'_> {
    /// As the error table has it.
    pub const fn of(error: IngestError) -> Refusal<'static> {
        Refusal { code: error.code(), temporary: error.temporary(), text: error.text() }
    }
}

/// A publish that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The publish's number.
    pub seq: u64,
    /// Its place in the channel; 0: a channel without history.
    pub offset: u64,
    /// The channel's epoch: boot, creation. As text: [`super::EpochText`].
    pub epoch: (u32, u32),
    /// The idempotency key was known; the position is the first publish's.
    pub duplicate: bool,
}

/// The acknowledgements of one frame, decoded one by one. After an error nothing more comes.
#[derive(Clone, Copy, Debug)]
pub struct Acks<'a> {
    entries: Cursor<'a>,
    remaining: u32,
    next: Ack,
    first: bool,
}

impl Acks<'_> {
    /// How many entries the frame still announces; at most as many come.
    pub fn remaining(&self) -> u32 {
        self.remaining
    }

    fn read(&mut self) -> Result<Ack, IngestError> {
        let flags = self.entries.u8()?;
        let inherits_nothing = ACK_SEQ | ACK_BOOT | ACK_CREATION;
        if flags >= 16 || (self.first && flags & inherits_nothing != inherits_nothing) {
            return Err(IngestError::BadFrame);
        }
        let mut ack = self.next;
        ack.duplicate = flags & ACK_DUPLICATE != 0;
        if flags & ACK_SEQ != 0 {
            ack.seq = self.entries.u64()?;
        }
        if flags & ACK_BOOT != 0 {
            ack.epoch.0 = self.entries.u32()?;
        }
        if flags & ACK_CREATION != 0 {
            ack.epoch.1 = self.entries.u32()?;
        }
        ack.offset = self.entries.u64()?;
        self.first = false;
        self.next = Ack { seq: ack.seq.wrapping_add(1), ..ack };
        Ok(ack)
    }
}

impl Iterator for Acks<'_> {
    type Item = Result<Ack, IngestError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.remaining == 0 {
            let rest = core::mem::take(&mut self.entries.rest);
            return if rest.is_empty() { None } else { Some(Err(IngestError::BadFrame)) };
        }
        let ack = self.read();
        self.remaining = if ack.is_ok() { self.remaining - 1 } else { 0 };
        if ack.is_err() {
            self.entries.rest = &[];
        }
        Some(ack)
    }
}

/// The node leaves.
#[derive(Clone, Copy, Debug)]
pub struct GoingAway<'a> {
    /// From receipt; behind it the gateway ends the connection.
    pub deadline_ms: u32,
    /// Where to go, if the gateway knows; else the client uses its own list.
    pub addresses: Addresses<'a>,
}

/// Addresses `host:port` of a going-away frame. Checked when the frame was decoded.
#[derive(Clone, Copy, Debug)]
pub struct Addresses<'a> {
    entries: Cursor<'a>,
    remaining: u8,
}

impl<'a> Iterator for Addresses<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        self.remaining = self.remaining.checked_sub(1)?;
        let length = usize::from(self.entries.u8().ok()?);
        self.entries.text(length).ok()
    }
}

/// Something that a client did, its body not yet decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Names it: acknowledgement and answer carry it. The same when it is sent again, and no other event's while the
    /// gateway runs; grows along the events of one client.
    pub event: u64,
    /// What happened.
    pub kind: u8,
    /// Details.
    pub body: &'a [u8],
}

/// Decodes one whole frame, header included.
///
/// # Errors
/// [`IngestError::BadFrame`] when it is not a frame of this protocol. Acknowledgements are checked as they are taken.
pub fn decode_server(frame: &[u8]) -> Result<ServerFrame<'_>, IngestError> {
    let (kind, mut body) = Cursor::open(frame)?;
    let decoded = match kind {
        kind::ACKS => return Ok(ServerFrame::Acks(open_acks(body)?)),
        kind::HELLO_OK => return Ok(ServerFrame::HelloOk(read_hello_ok(body)?)),
        kind::GOING_AWAY => return Ok(ServerFrame::GoingAway(read_going_away(body)?)),
        kind::EVENT => {
            let (event, kind) = (body.u64()?, body.u8()?);
            return Ok(ServerFrame::Event(Event { event, kind, body: body.rest }));
        }
        kind::SKIPPABLE.. => return Ok(ServerFrame::Unknown { kind }),
        kind::FATAL => ServerFrame::Fatal(read_refusal(&mut body)?),
        kind::NACK => ServerFrame::Nack { seq: body.u64()?, refusal: read_refusal(&mut body)? },
        kind::CREDIT => ServerFrame::Credit {
            messages: i32::from_le_bytes(body.array()?),
            bytes: i64::from_le_bytes(body.array()?),
        },
        kind::CALL_ANSWER => ServerFrame::CallAnswer(read_call_answer(&mut body)?),
        kind::PING => ServerFrame::Ping { nonce: body.u64()? },
        kind::PONG => ServerFrame::Pong { nonce: body.u64()? },
        _ => return Err(IngestError::BadFrame),
    };
    body.end()?;
    Ok(decoded)
}

fn read_hello_ok(mut body: Cursor<'_>) -> Result<HelloOk<'_>, IngestError> {
    let mut hello = HelloOk {
        version: body.u16()?,
        features: body.u32()?,
        boot: body.u64()?,
        credit_messages: body.u32()?,
        credit_bytes: body.u64()?,
        frame_bytes_max: body.u32()?,
        publication_bytes_max: body.u32()?,
        idempotency_window_ms: body.u32()?,
        idle_timeout_ms: body.u32()?,
        node: "",
    };
    let node_len = usize::from(body.u8()?);
    if node_len > NAME_BYTES_MAX {
        return Err(IngestError::BadFrame);
    }
    hello.node = body.text(node_len)?;
    Ok(hello)
}

pub(super) fn read_refusal<'a>(body: &mut Cursor<'a>) -> Result<Refusal<'a>, IngestError> {
    let code = body.u16()?;
    // Other flag bits may come from a newer gateway: a refusal must stay readable in every version.
    let temporary = body.u8()? & TEMPORARY != 0;
    let text_len = usize::from(body.u8()?);
    Ok(Refusal { code, temporary, text: body.text(text_len)? })
}

fn open_acks(mut body: Cursor<'_>) -> Result<Acks<'_>, IngestError> {
    let remaining = body.u32()?;
    if remaining == 0 || remaining as usize > body.rest.len() / ACK_BYTES_MIN {
        return Err(IngestError::BadFrame);
    }
    let next = Ack { seq: 0, offset: 0, epoch: (0, 0), duplicate: false };
    Ok(Acks { entries: body, remaining, next, first: true })
}

fn read_going_away(mut body: Cursor<'_>) -> Result<GoingAway<'_>, IngestError> {
    let (deadline_ms, remaining) = (body.u32()?, body.u8()?);
    let addresses = Addresses { entries: body, remaining };
    if usize::from(remaining) > ADDRESSES_MAX {
        return Err(IngestError::BadFrame);
    }
    for _ in 0..remaining {
        let length = usize::from(body.u8()?);
        body.text(length)?;
    }
    body.end()?;
    Ok(GoingAway { deadline_ms, addresses })
}

/// Appends the answer to a hello.
pub fn write_hello_ok(out: &mut Vec<u8>, hello: &HelloOk<'_>) {
    write_frame(out, kind::HELLO_OK, |out| {
        out.extend_from_slice(&hello.version.to_le_bytes());
        out.extend_from_slice(&hello.features.to_le_bytes());
        out.extend_from_slice(&hello.boot.to_le_bytes());
        out.extend_from_slice(&hello.credit_messages.to_le_bytes());
        out.extend_from_slice(&hello.credit_bytes.to_le_bytes());
        out.extend_from_slice(&hello.frame_bytes_max.to_le_bytes());
        out.extend_from_slice(&hello.publication_bytes_max.to_le_bytes());
        out.extend_from_slice(&hello.idempotency_window_ms.to_le_bytes());
        out.extend_from_slice(&hello.idle_timeout_ms.to_le_bytes());
        write_short_text(out, hello.node, NAME_BYTES_MAX);
    });
}

/// Appends the last frame of a connection.
pub fn write_fatal(out: &mut Vec<u8>, error: IngestError) {
    write_frame(out, kind::FATAL, |out| write_refusal(out, error));
}

/// Appends the refusal of one publish; like an acknowledgement it returns the publish's credit.
pub fn write_nack(out: &mut Vec<u8>, seq: u64, error: IngestError) {
    write_frame(out, kind::NACK, |out| {
        out.extend_from_slice(&seq.to_le_bytes());
        write_refusal(out, error);
    });
}

fn write_refusal(out: &mut Vec<u8>, error: IngestError) {
    put_refusal(out, &Refusal::of(error));
}

pub(super) fn put_refusal(out: &mut Vec<u8>, refusal: &Refusal<'_>) {
    out.extend_from_slice(&refusal.code.to_le_bytes());
    out.push(if refusal.temporary { TEMPORARY } else { 0 });
    write_short_text(out, refusal.text, ERROR_TEXT_BYTES_MAX);
}

/// Appends a change of the window.
pub fn write_credit(out: &mut Vec<u8>, messages: i32, bytes: i64) {
    write_frame(out, kind::CREDIT, |out| {
        out.extend_from_slice(&messages.to_le_bytes());
        out.extend_from_slice(&bytes.to_le_bytes());
    });
}

/// Appends a going-away; addresses beyond [`ADDRESSES_MAX`] and ones longer than [`ADDRESS_BYTES_MAX`] are left out.
pub fn write_going_away(out: &mut Vec<u8>, deadline_ms: u32, addresses: &[&str]) {
    write_frame(out, kind::GOING_AWAY, |out| {
        out.extend_from_slice(&deadline_ms.to_le_bytes());
        let count_at = out.len();
        out.push(0);
        for address in addresses.iter().filter(|address| address.len() <= ADDRESS_BYTES_MAX).take(ADDRESSES_MAX) {
            write_short_text(out, address, ADDRESS_BYTES_MAX);
            out[count_at] += 1;
        }
    });
}

/// Appends an event.
///
/// # Errors
/// [`IngestError::TooLarge`] when the frame would exceed [`SERVER_FRAME_BYTES_MAX`]; nothing is written then.
pub fn write_event(out: &mut Vec<u8>, event: &Event<'_>) -> Result<(), IngestError> {
    if event.body.len() > SERVER_FRAME_BYTES_MAX - FRAME_HEADER_BYTES - 9 {
        return Err(IngestError::TooLarge);
    }
    write_frame(out, kind::EVENT, |out| {
        out.extend_from_slice(&event.event.to_le_bytes());
        out.push(event.kind);
        out.extend_from_slice(event.body);
    });
    Ok(())
}

/// Appends acknowledgements: as few frames as [`ACKS_PER_FRAME_MAX`] allows, none for none.
pub fn write_acks(out: &mut Vec<u8>, acks: impl IntoIterator<Item = Ack>) {
    let mut writer = AckWriter::new(out);
    for ack in acks {
        writer.push(ack);
    }
    writer.finish();
}

/// Appends acknowledgements one at a time, many to a frame.
#[derive(Debug)]
pub struct AckWriter<'v> {
    out: &'v mut Vec<u8>,
    start: usize,
    count: usize,
    next: Ack,
}

impl<'v> AckWriter<'v> {
    /// Writes nothing yet.
    pub fn new(out: &'v mut Vec<u8>) -> Self {
        let next = Ack { seq: 0, offset: 0, epoch: (0, 0), duplicate: false };
        AckWriter { out, start: 0, count: 0, next }
    }

    /// Appends one.
    #[inline]
    pub fn push(&mut self, ack: Ack) {
        if self.count == ACKS_PER_FRAME_MAX {
            self.end();
        }
        let first = self.count == 0;
        if first {
            self.start = begin_frame(self.out, kind::ACKS);
            self.out.extend_from_slice(&[0; 4]);
        }
        let mut flags = if ack.duplicate { ACK_DUPLICATE } else { 0 };
        let mut entry = [0u8; ACK_BYTES_MAX];
        let mut length = 1;
        let mut put = |bytes: &[u8]| {
            entry[length..length + bytes.len()].copy_from_slice(bytes);
            length += bytes.len();
        };
        if first || ack.seq != self.next.seq {
            flags |= ACK_SEQ;
            put(&ack.seq.to_le_bytes());
        }
        if first || ack.epoch.0 != self.next.epoch.0 {
            flags |= ACK_BOOT;
            put(&ack.epoch.0.to_le_bytes());
        }
        if first || ack.epoch.1 != self.next.epoch.1 {
            flags |= ACK_CREATION;
            put(&ack.epoch.1.to_le_bytes());
        }
        put(&ack.offset.to_le_bytes());
        entry[0] = flags;
        self.out.extend_from_slice(&entry[..length]);
        self.count += 1;
        self.next = Ack { seq: ack.seq.wrapping_add(1), ..ack };
    }

    /// Completes the last frame.
    pub fn finish(mut self) {
        if self.count > 0 {
            self.end();
        }
    }

    fn end(&mut self) {
        let count_at = self.start + FRAME_HEADER_BYTES;
        self.out[count_at..count_at + 4].copy_from_slice(&(self.count as u32).to_le_bytes());
        end_frame(self.out, self.start);
        self.count = 0;
    }
}
