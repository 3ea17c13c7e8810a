//! Frames from a backend to the gateway. The layouts are drawn in the head of `mod.rs`.
//!
//! In: whole frames. Out: [`ClientFrame`]s that borrow them; and, for client libraries, the same frames written.
//! Invariant: a batch is decoded one entry at a time by [`PublishBatch`], so its count reserves nothing.

use alloc::vec::Vec;

use super::call::{Call, read_call};
use super::event::{TakeEvents, Verdict, read_take_events, read_verdict};
use super::{
    CHANNEL_BYTES_MAX, Cursor, ENTRY_BYTES_MIN, IngestError, KEY_BYTES_MAX, MAGIC, NAME_BYTES_MAX, PayloadKind,
    TOKEN_BYTES_MAX, VERSION, begin_frame, end_frame, kind, write_frame, write_short_text,
};

/// Entry flag: the entry carries its number.
const ENTRY_SEQ: u8 = 1;

/// One frame from a backend.
#[derive(Clone, Debug)]
pub enum ClientFrame<'a> {
    /// First frame of a connection, and only that.
    Hello(Hello<'a>),
    /// One publish.
    Publish(Publish<'a>),
    /// Several publishes, to any channels, in order.
    PublishBatch(PublishBatch<'a>),
    /// To be answered with the same nonce.
    Ping {
        /// Any number.
        nonce: u64,
    },
    /// Answer to the gateway's ping.
    Pong {
        /// The ping's.
        nonce: u64,
    },
    /// The backend is done with this event.
    EventAck {
        /// The event's number.
        event: u64,
    },
    /// Which events the backend wants.
    TakeEvents(TakeEvents),
    /// The backend's decision about an event.
    EventAnswer {
        /// The event's number.
        event: u64,
        /// What it decided.
        verdict: Verdict<'a>,
    },
    /// A question or an order.
    Call(Call<'a>),
    /// The backend sends nothing more here and waits for nothing more.
    Goodbye,
    /// A frame that may be skipped, from a newer backend.
    Unknown {
        /// Its type.
        kind: u8,
    },
}

/// How a backend introduces itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    /// Oldest version that it speaks.
    pub version_min: u16,
    /// Newest version that it speaks; not below `version_min`.
    pub version_max: u16,
    /// What it can do, e.g. [`super::FEATURE_EVENTS`]; unknown bits are ignored.
    pub features: u32,
    /// Random per client, the same on all its connections.
    pub instance: [u8; 16],
    /// Shared secret, at most [`TOKEN_BYTES_MAX`] bytes.
    pub token: &'a [u8],
    /// For logs and metrics, at most [`NAME_BYTES_MAX`] bytes.
    pub name: &'a str,
}

impl Hello<'_> {
    /// The version to speak: the newest of both sides.
    ///
    /// # Errors
    /// [`IngestError::VersionUnsupported`] when there is none.
    pub fn version(&self) -> Result<u16, IngestError> {
        if self.version_min <= VERSION && VERSION <= self.version_max {
            Ok(VERSION)
        } else {
            Err(IngestError::VersionUnsupported)
        }
    }
}

/// One publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    /// Number that the backend gave it; acknowledgements name it. The gateway reads no order into it.
    pub seq: u64,
    /// What the payload is said to be.
    pub kind: PayloadKind,
    /// Scoped to the channel, at most [`KEY_BYTES_MAX`] bytes; empty: none.
    pub idempotency_key: &'a [u8],
    /// Full name, at most [`CHANNEL_BYTES_MAX`] bytes; may be empty on the wire.
    pub channel: &'a str,
    /// Not checked here.
    pub payload: &'a [u8],
}

/// The publishes of one batch frame, decoded one by one. After an error nothing more comes.
#[derive(Clone, Copy, Debug)]
pub struct PublishBatch<'a> {
    entries: Cursor<'a>,
    remaining: u32,
    next_seq: u64,
}

impl PublishBatch<'_> {
    /// How many entries the frame still announces; at most as many come.
    pub fn remaining(&self) -> u32 {
        self.remaining
    }
}

impl<'a> Iterator for PublishBatch<'a> {
    type Item = Result<Publish<'a>, IngestError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.remaining == 0 {
            // Bytes behind the last entry are an error, told once.
            return if core::mem::take(&mut self.entries.rest).is_empty() {
                None
            } else {
                Some(Err(IngestError::BadFrame))
            };
        }
        let entry = read_entry(&mut self.entries, Some(self.next_seq));
        match &entry {
            Ok(publish) => {
                self.remaining -= 1;
                self.next_seq = publish.seq.wrapping_add(1);
            }
            Err(_) => {
                self.remaining = 0;
                self.entries.rest = &[];
            }
        }
        Some(entry)
    }
}

/// Decodes one whole frame, header included.
///
/// # Errors
/// [`IngestError::BadFrame`] when it is not a frame of this protocol. Entries of a batch are checked as they are taken.
pub fn decode_client(frame: &[u8]) -> Result<ClientFrame<'_>, IngestError> {
    let (kind, mut body) = Cursor::open(frame)?;
    let decoded = match kind {
        kind::PUBLISH_BATCH => return Ok(ClientFrame::PublishBatch(open_batch(body)?)),
        kind::HELLO => return Ok(ClientFrame::Hello(read_hello(body)?)),
        kind::SKIPPABLE.. => return Ok(ClientFrame::Unknown { kind }),
        kind::PUBLISH => {
            let seq = body.u64()?;
            ClientFrame::Publish(Publish { seq, ..read_entry(&mut body, None)? })
        }
        kind::PING => ClientFrame::Ping { nonce: body.u64()? },
        kind::PONG => ClientFrame::Pong { nonce: body.u64()? },
        kind::EVENT_ACK => ClientFrame::EventAck { event: body.u64()? },
        kind::GOODBYE => ClientFrame::Goodbye,
        kind::TAKE_EVENTS => ClientFrame::TakeEvents(read_take_events(&mut body)?),
        kind::EVENT_ANSWER => ClientFrame::EventAnswer { event: body.u64()?, verdict: read_verdict(&mut body)? },
        kind::CALL => ClientFrame::Call(read_call(&mut body)?),
        _ => return Err(IngestError::BadFrame),
    };
    body.end()?;
    Ok(decoded)
}

fn read_hello(mut body: Cursor<'_>) -> Result<Hello<'_>, IngestError> {
    if body.array()? != MAGIC {
        return Err(IngestError::BadFrame);
    }
    let (version_min, version_max) = (body.u16()?, body.u16()?);
    let (features, instance) = (body.u32()?, body.array()?);
    let token_len = usize::from(body.u16()?);
    if version_min > version_max || token_len > TOKEN_BYTES_MAX {
        return Err(IngestError::BadFrame);
    }
    let token = body.bytes(token_len)?;
    let name_len = usize::from(body.u8()?);
    if name_len > NAME_BYTES_MAX {
        return Err(IngestError::BadFrame);
    }
    let name = body.text(name_len)?;
    Ok(Hello { version_min, version_max, features, instance, token, name })
}

fn open_batch(mut body: Cursor<'_>) -> Result<PublishBatch<'_>, IngestError> {
    let (next_seq, remaining) = (body.u64()?, body.u32()?);
    // An announced count that cannot be true is refused before any entry is taken.
    if remaining == 0 || remaining as usize > body.rest.len() / ENTRY_BYTES_MIN {
        return Err(IngestError::BadFrame);
    }
    Ok(PublishBatch { entries: body, remaining, next_seq })
}

/// Reads an entry. `next_seq` is its number if it carries none; `None` where an explicit one is not allowed.
#[inline]
fn read_entry<'a>(body: &mut Cursor<'a>, next_seq: Option<u64>) -> Result<Publish<'a>, IngestError> {
    let [kind, flags, key_len, channel_len] = body.array()?;
    let payload_len = body.u32()? as usize;
    let kind = PayloadKind::from_code(kind).ok_or(IngestError::BadFrame)?;
    let seq = match (flags, next_seq) {
        (0, next_seq) => next_seq.unwrap_or(0),
        (ENTRY_SEQ, Some(_)) => body.u64()?,
        _ => return Err(IngestError::BadFrame),
    };
    if usize::from(key_len) > KEY_BYTES_MAX {
        return Err(IngestError::BadFrame);
    }
    let idempotency_key = body.bytes(usize::from(key_len))?;
    let channel = body.text(usize::from(channel_len))?;
    let payload = body.bytes(payload_len)?;
    Ok(Publish { seq, kind, idempotency_key, channel, payload })
}

/// Appends a hello. A token or name over its bound is cut; check before.
pub fn write_hello(out: &mut Vec<u8>, hello: &Hello<'_>) {
    let token = &hello.token[..hello.token.len().min(TOKEN_BYTES_MAX)];
    write_frame(out, kind::HELLO, |out| {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&hello.version_min.to_le_bytes());
        out.extend_from_slice(&hello.version_max.to_le_bytes());
        out.extend_from_slice(&hello.features.to_le_bytes());
        out.extend_from_slice(&hello.instance);
        out.extend_from_slice(&(token.len() as u16).to_le_bytes());
        out.extend_from_slice(token);
        write_short_text(out, hello.name, NAME_BYTES_MAX);
    });
}

/// Appends one publish as a frame of its own.
///
/// # Errors
/// [`IngestError::TooLarge`] when key, channel or payload does not fit its length field; nothing is written then.
pub fn write_publish(out: &mut Vec<u8>, publish: &Publish<'_>) -> Result<(), IngestError> {
    check_entry(publish)?;
    write_frame(out, kind::PUBLISH, |out| {
        out.extend_from_slice(&publish.seq.to_le_bytes());
        write_entry(out, publish, false);
    });
    Ok(())
}

/// Appends an acknowledgement of one event.
pub fn write_event_ack(out: &mut Vec<u8>, event: u64) {
    write_frame(out, kind::EVENT_ACK, |out| out.extend_from_slice(&event.to_le_bytes()));
}

/// Appends a goodbye.
pub fn write_goodbye(out: &mut Vec<u8>) {
    write_frame(out, kind::GOODBYE, |_| {});
}

/// Appends one batch frame, entry by entry.
#[derive(Debug)]
pub struct BatchWriter<'v> {
    out: &'v mut Vec<u8>,
    start: usize,
    count: u32,
    next_seq: u64,
}

/// Where the count of a batch stands, from the start of its frame.
const BATCH_COUNT_AT: usize = super::FRAME_HEADER_BYTES + 8;

impl<'v> BatchWriter<'v> {
    /// Bytes of a batch frame before its first entry.
    pub const HEADER_BYTES: usize = BATCH_COUNT_AT + 4;

    /// Begins a frame whose first entry will be `first_seq`.
    pub fn new(out: &'v mut Vec<u8>, first_seq: u64) -> Self {
        let start = begin_frame(out, kind::PUBLISH_BATCH);
        out.extend_from_slice(&first_seq.to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
        BatchWriter { out, start, count: 0, next_seq: first_seq }
    }

    /// Most bytes that an entry can take with key, channel and payload of these lengths.
    pub const fn entry_bytes(key_len: usize, channel_len: usize, payload_len: usize) -> usize {
        ENTRY_BYTES_MIN + 8 + key_len + channel_len + payload_len
    }

    /// Bytes of the frame so far.
    pub fn frame_bytes(&self) -> usize {
        self.out.len() - self.start
    }

    /// Entries so far.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Appends an entry; its number is written only where it does not follow the one before.
    ///
    /// # Errors
    /// [`IngestError::TooLarge`] when key, channel or payload does not fit its length field; nothing is written then.
    #[inline]
    pub fn push(&mut self, publish: &Publish<'_>) -> Result<(), IngestError> {
        check_entry(publish)?;
        write_entry(self.out, publish, publish.seq != self.next_seq);
        self.next_seq = publish.seq.wrapping_add(1);
        self.count += 1;
        Ok(())
    }

    /// Completes the frame; one without entries is taken back.
    pub fn finish(self) {
        if self.count == 0 {
            self.out.truncate(self.start);
            return;
        }
        let count_at = self.start + BATCH_COUNT_AT;
        self.out[count_at..count_at + 4].copy_from_slice(&self.count.to_le_bytes());
        end_frame(self.out, self.start);
    }
}

#[inline]
fn check_entry(publish: &Publish<'_>) -> Result<(), IngestError> {
    let fits = publish.idempotency_key.len() <= KEY_BYTES_MAX
        && publish.channel.len() <= CHANNEL_BYTES_MAX
        && u32::try_from(publish.payload.len()).is_ok();
    if fits { Ok(()) } else { Err(IngestError::TooLarge) }
}

/// The entry must have been checked.
#[inline]
fn write_entry(out: &mut Vec<u8>, publish: &Publish<'_>, with_seq: bool) {
    let (key_len, channel_len) = (publish.idempotency_key.len() as u8, publish.channel.len() as u8);
    out.extend_from_slice(&[publish.kind as u8, if with_seq { ENTRY_SEQ } else { 0 }, key_len, channel_len]);
    out.extend_from_slice(&(publish.payload.len() as u32).to_le_bytes());
    if with_seq {
        out.extend_from_slice(&publish.seq.to_le_bytes());
    }
    out.extend_from_slice(publish.idempotency_key);
    out.extend_from_slice(publish.channel.as_bytes());
    out.extend_from_slice(publish.payload);
}
