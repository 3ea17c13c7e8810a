//! Binary frames of backends: the ingest protocol, version 1. `docs/INGEST.md` is the same for other languages.
//!
//! In: bytes of a TCP stream, cut into whole frames with [`frame_len`]. Out: typed views that borrow those bytes
//! ([`decode_client`], [`decode_server`]), and frames appended to a `Vec<u8>` (`write_…`, [`BatchWriter`],
//! [`AckWriter`]).
//!
//! ```text
//! all numbers little-endian
//! frame         length u32 (of what follows) | type u8 | body
//!
//! backend → gateway
//! 01 Hello         magic 8 | version_min u16 | version_max u16 | features u32 | instance 16
//!                  | token_len u16 | token | name_len u8 | name | (more, from newer peers: ignored)
//! 02 Publish       seq u64 | ENTRY
//! 03 PublishBatch  first_seq u64 | count u32 | count × ENTRY
//!    ENTRY         kind u8 | flags u8 | key_len u8 | channel_len u8 | payload_len u32
//!                  | seq u64 if flags bit 0 (batch only; else one more than the entry before) | key | channel | payload
//! 06 EventAck      event u64
//! 07 Goodbye       (empty)
//! 08 TakeEvents    kinds u32 | window u32                                            see `event.rs`
//! 09 EventAnswer   event u64 | verdict u8 | body                                     see `event.rs`
//! 0a Call          call u32 | kind u8 | body                                         see `call.rs`
//!
//! gateway → backend
//! 11 HelloOk       version u16 | features u32 | boot u64 | credit_messages u32 | credit_bytes u64 | frame_bytes_max u32
//!                  | publication_bytes_max u32 | idempotency_window_ms u32 | idle_timeout_ms u32 | node_len u8 | node
//!                  | (more, from newer peers: ignored)
//! 12 Fatal         code u16 | flags u8 (bit 0: temporary) | text_len u8 | text
//! 13 Acks          count u32 | count × ACK
//!    ACK           flags u8 | seq u64 if bit 1 (else previous + 1) | boot u32 if bit 2 | creation u32 if bit 3 (else as
//!                  the ack before) | offset u64;   bit 0: duplicate
//! 14 Nack          seq u64 | code u16 | flags u8 (bit 0: temporary) | text_len u8 | text
//! 15 Credit        messages i32 | bytes i64 (changes of the window)
//! 16 GoingAway     deadline_ms u32 | count u8 | count × (len u8 | address)
//! 17 Event         event u64 | kind u8 | body                                        see `event.rs`
//! 18 CallAnswer    call u32 | result u8 | body                                       see `call.rs`
//!
//! both ways
//! 04 Ping          nonce u64
//! 05 Pong          nonce u64
//! ```
//!
//! Invariants: decoding never allocates and never reads what a length announces without having it; a count only bounds
//! an iteration over bytes that are there. A frame must be used up to its last byte (Hello and HelloOk excepted: the
//! version is not known yet). A frame type with the top bit set may be skipped by a peer that does not know it; any
//! other unknown type is [`IngestError::BadFrame`]. The layouts of Hello and Fatal are the same in every version.

mod call;
mod client;
mod error;
mod event;
mod parts;
mod server;

use alloc::vec::Vec;
use core::fmt;

pub use call::{
    Call, CallAnswer, CallBody, CallResult, ChannelClients, PastPublication, write_call, write_call_answer,
};
pub use client::{
    BatchWriter, ClientFrame, Hello, Publish, PublishBatch, decode_client, write_event_ack, write_goodbye, write_hello,
    write_publish,
};
pub use error::IngestError;
pub use event::{
    Admission, ClientEvent, EventKind, EventKinds, Happened, TakeEvents, Transport, Verdict, decode_event,
    write_client_event, write_event_answer, write_take_events,
};
pub use parts::{Entry, Grant, List, ListBuf, Member, Overrides, Since, Subscription};
pub use server::{
    Ack, AckWriter, Acks, Addresses, Event, GoingAway, HelloOk, Refusal, ServerFrame, decode_server, write_acks,
    write_credit, write_event, write_fatal, write_going_away, write_hello_ok, write_nack,
};

/// Length and type: what stands before every body.
pub const FRAME_HEADER_BYTES: usize = 5;
/// First bytes of a hello's body.
pub const MAGIC: [u8; 8] = *b"RWINGEST";
/// The version of the protocol that this code speaks.
pub const VERSION: u16 = 1;

/// Largest hello frame; what a gateway allows before it knows who is there.
pub const HELLO_FRAME_BYTES_MAX: usize = 1024;
/// Largest frame from the gateway to a backend.
pub const SERVER_FRAME_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of a token.
pub const TOKEN_BYTES_MAX: usize = 256;
/// Bytes of a backend's or a node's name.
pub const NAME_BYTES_MAX: usize = 64;
/// Bytes of an idempotency key.
pub const KEY_BYTES_MAX: usize = 64;
/// Bytes of a channel name; its length is one byte on the wire.
pub const CHANNEL_BYTES_MAX: usize = 255;
/// Bytes of a text beside an error code.
pub const ERROR_TEXT_BYTES_MAX: usize = 255;
/// Bytes of one address in a going-away frame.
pub const ADDRESS_BYTES_MAX: usize = 255;
/// Addresses in a going-away frame.
pub const ADDRESSES_MAX: usize = 32;
/// Acknowledgements in one frame; [`AckWriter`] begins another frame behind that many.
pub const ACKS_PER_FRAME_MAX: usize = 4096;
/// Bytes of a publish in a frame besides key, channel and payload, in a batch without an explicit number.
pub const ENTRY_BYTES_MIN: usize = 8;

/// Feature bit of hello and hello-ok: events may be taken on this connection.
pub const FEATURE_EVENTS: u32 = 1;
/// Feature bit of hello and hello-ok: calls may be made on this connection.
pub const FEATURE_CALLS: u32 = 2;
/// What this code can do of all features.
pub const FEATURES: u32 = FEATURE_EVENTS | FEATURE_CALLS;

const _: () = {
    let hello = FRAME_HEADER_BYTES + 8 + 2 + 2 + 4 + 16 + 2 + TOKEN_BYTES_MAX + 1 + NAME_BYTES_MAX;
    assert!(hello <= HELLO_FRAME_BYTES_MAX / 2, "room for what later versions add");
    assert!(FRAME_HEADER_BYTES + 4 + ACKS_PER_FRAME_MAX * server::ACK_BYTES_MAX <= SERVER_FRAME_BYTES_MAX);
    assert!(FRAME_HEADER_BYTES + 5 + ADDRESSES_MAX * (1 + ADDRESS_BYTES_MAX) <= SERVER_FRAME_BYTES_MAX);
};

/// What a payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PayloadKind {
    /// JSON text, checked once at publish.
    Json = 0,
    /// Any bytes; only Protobuf clients can receive them.
    Bytes = 1,
}

impl PayloadKind {
    /// The kind with this number on the wire.
    pub const fn from_code(code: u8) -> Option<PayloadKind> {
        match code {
            0 => Some(PayloadKind::Json),
            1 => Some(PayloadKind::Bytes),
            _ => None,
        }
    }
}

/// Length of the whole frame at the front of `bytes`, header included, once its length field is there.
///
/// # Errors
/// [`IngestError::FrameTooLarge`] when it exceeds `frame_bytes_max`, [`IngestError::BadFrame`] when it has no type.
pub fn frame_len(bytes: &[u8], frame_bytes_max: usize) -> Result<Option<usize>, IngestError> {
    let Some(length) = bytes.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*length) as usize;
    if length == 0 {
        return Err(IngestError::BadFrame);
    }
    match length.checked_add(4) {
        Some(whole) if whole <= frame_bytes_max => Ok(Some(whole)),
        _ => Err(IngestError::FrameTooLarge),
    }
}

/// The text form of an epoch, as clients see it: `<boot>.<creation>`, both in base 36 with digits `0-9a-z` and without
/// leading zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochText(pub (u32, u32));

impl fmt::Display for EpochText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (boot, creation) = self.0;
        write_base36(f, boot)?;
        f.write_str(".")?;
        write_base36(f, creation)
    }
}

fn write_base36(f: &mut fmt::Formatter<'_>, mut number: u32) -> fmt::Result {
    // 36^7 > 2^32
    let mut digits = [0u8; 7];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b"0123456789abcdefghijklmnopqrstuvwxyz"[(number % 36) as usize];
        number /= 36;
        if number == 0 {
            break;
        }
    }
    digits[start..].iter().try_for_each(|digit| fmt::Write::write_char(f, char::from(*digit)))
}

/// Appends a ping; its answer carries the same nonce.
pub fn write_ping(out: &mut Vec<u8>, nonce: u64) {
    write_frame(out, kind::PING, |out| out.extend_from_slice(&nonce.to_le_bytes()));
}

/// Appends the answer to a ping.
pub fn write_pong(out: &mut Vec<u8>, nonce: u64) {
    write_frame(out, kind::PONG, |out| out.extend_from_slice(&nonce.to_le_bytes()));
}

/// Frame types.
mod kind {
    pub(super) const HELLO: u8 = 0x01;
    pub(super) const PUBLISH: u8 = 0x02;
    pub(super) const PUBLISH_BATCH: u8 = 0x03;
    pub(super) const PING: u8 = 0x04;
    pub(super) const PONG: u8 = 0x05;
    pub(super) const EVENT_ACK: u8 = 0x06;
    pub(super) const GOODBYE: u8 = 0x07;
    pub(super) const TAKE_EVENTS: u8 = 0x08;
    pub(super) const EVENT_ANSWER: u8 = 0x09;
    pub(super) const CALL: u8 = 0x0a;
    pub(super) const HELLO_OK: u8 = 0x11;
    pub(super) const FATAL: u8 = 0x12;
    pub(super) const ACKS: u8 = 0x13;
    pub(super) const NACK: u8 = 0x14;
    pub(super) const CREDIT: u8 = 0x15;
    pub(super) const GOING_AWAY: u8 = 0x16;
    pub(super) const EVENT: u8 = 0x17;
    pub(super) const CALL_ANSWER: u8 = 0x18;
    /// Types from here on may be skipped by who does not know them.
    pub(super) const SKIPPABLE: u8 = 0x80;
}

/// Reads from the front of a body; every read is checked against what is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a> {
    pub(crate) rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// The type and the body of a whole frame.
    fn open(frame: &'a [u8]) -> Result<(u8, Cursor<'a>), IngestError> {
        let mut cursor = Cursor { rest: frame };
        let length = cursor.u32()? as usize;
        if length != cursor.rest.len() {
            return Err(IngestError::BadFrame);
        }
        Ok((cursor.u8()?, cursor))
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], IngestError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(IngestError::BadFrame)?;
        self.rest = rest;
        Ok(*head)
    }

    #[inline]
    pub(crate) fn bytes(&mut self, length: usize) -> Result<&'a [u8], IngestError> {
        let (head, rest) = self.rest.split_at_checked(length).ok_or(IngestError::BadFrame)?;
        self.rest = rest;
        Ok(head)
    }

    #[inline]
    pub(crate) fn text(&mut self, length: usize) -> Result<&'a str, IngestError> {
        core::str::from_utf8(self.bytes(length)?).map_err(|_| IngestError::BadFrame)
    }

    #[inline]
    pub(crate) fn u8(&mut self) -> Result<u8, IngestError> {
        self.array::<1>().map(|[byte]| byte)
    }

    #[inline]
    pub(crate) fn u16(&mut self) -> Result<u16, IngestError> {
        self.array().map(u16::from_le_bytes)
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> Result<u32, IngestError> {
        self.array().map(u32::from_le_bytes)
    }

    #[inline]
    pub(crate) fn u64(&mut self) -> Result<u64, IngestError> {
        self.array().map(u64::from_le_bytes)
    }

    /// Nothing may be left.
    pub(crate) fn end(self) -> Result<(), IngestError> {
        if self.rest.is_empty() { Ok(()) } else { Err(IngestError::BadFrame) }
    }
}

/// Appends a header whose length is not known yet; returns where the frame starts.
fn begin_frame(out: &mut Vec<u8>, kind: u8) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, kind]);
    start
}

/// Fills in the length of the frame that started at `start` and ends at the end of `out`.
fn end_frame(out: &mut [u8], start: usize) {
    let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

fn write_frame(out: &mut Vec<u8>, kind: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let start = begin_frame(out, kind);
    body(out);
    end_frame(out, start);
}

/// Appends a frame, or nothing when its body cannot be written or it would be longer than `frame_bytes_max`.
fn write_checked(
    out: &mut Vec<u8>,
    kind: u8,
    frame_bytes_max: usize,
    body: impl FnOnce(&mut Vec<u8>) -> Result<(), IngestError>,
) -> Result<(), IngestError> {
    let start = begin_frame(out, kind);
    let written = body(out);
    if written.is_err() || out.len() - start > frame_bytes_max {
        out.truncate(start);
        return Err(written.err().unwrap_or(IngestError::TooLarge));
    }
    end_frame(out, start);
    Ok(())
}

/// Appends a length byte and as many whole characters of `text` as `bytes_max` (at most 255) allows.
fn write_short_text(out: &mut Vec<u8>, text: &str, bytes_max: usize) {
    let text = &text[..text.floor_char_boundary(bytes_max.min(255))];
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod event_tests;
#[cfg(test)]
mod tests;
