//! Frames to messages: fragments joined, compressed messages inflated, control frames let through between them, close
//! payloads checked (RFC 6455 §5.4, §5.5, §7.4, §8.1; RFC 7692 §6). The server's side: every frame must be masked.
//!
//! In: the unread bytes of one connection, from its first byte that no earlier step has taken, and the connection's
//! [`Fragments`]. Out: one [`Event`] per message or control frame, borrowed from the received bytes themselves, or, for
//! a fragmented message, from `Fragments`, or, for a compressed one, from the shard's [`Inflater`].
//!
//! Invariants
//! - A frame is taken whole or not at all: a payload is unmasked exactly once, and while a frame is incomplete the
//!   caller's bytes are unchanged and a further call costs O(1).
//! - The same stream gives the same events and the same error wherever it was cut.
//! - A message over `message_bytes_max` is refused by its header, before its payload has arrived or is stored; what a
//!   compressed one becomes is held to the same limit while it is inflated. Its text is checked after that.
//! - An idle connection holds 8 bytes of this file's state and no allocation.
//!
//! What the caller owes: after an error or a Close event no further step is taken on this connection (§5.5.1, §7.1.7).

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::close::CloseReason;
use crate::deflate::{InflateError, InflateLimits, Inflater};
use crate::frame::{FrameError, Header, Opcode, decode_header_with};
use crate::mask::unmask;

/// Fragments of a message that has not ended; 8 bytes while there is none.
///
/// A fragmented message that has just been completed is kept here too, as its [`Event`] borrows from it. The next
/// [`step`] frees it; a caller that takes no further step now calls [`Fragments::release`].
#[derive(Debug, Default)]
pub struct Fragments(Option<Box<Open>>);

#[derive(Debug)]
struct Open {
    kind: MessageKind,
    /// Its first frame said that the whole of it is (RFC 7692 §6.1).
    compressed: bool,
    /// The last fragment has come, the message has been given out.
    complete: bool,
    /// Unmasked payloads so far.
    data: Vec<u8>,
}

impl Fragments {
    /// Whether a message has begun and not ended.
    pub fn is_pending(&self) -> bool {
        self.0.as_ref().is_some_and(|open| !open.complete)
    }

    /// Frees the memory of a message that has been given out; keeps one that has not ended.
    #[inline]
    pub fn release(&mut self) {
        if self.0.is_some() && !self.is_pending() {
            self.0 = None;
        }
    }

    /// Whether the data frame of `header` may come now and still fits the message limit.
    #[inline]
    fn admit(&self, header: &Header, limits: &MessageLimits) -> Result<(), WsError> {
        let stored = match (&self.0, header.opcode) {
            (Some(open), Opcode::Continuation) => open.data.len(),
            (None, Opcode::Text | Opcode::Binary) => 0,
            _ => return Err(WsError::BadFragmentation),
        };
        // `stored` is at most the limit: each fragment came through here.
        match (limits.message_bytes_max - stored.min(limits.message_bytes_max)) as u64 {
            room if header.payload_len <= room => Ok(()),
            _ => Err(WsError::TooBig),
        }
    }

    fn begin(&mut self, kind: MessageKind, compressed: bool, payload: &[u8]) {
        self.0 = Some(Box::new(Open { kind, compressed, complete: false, data: payload.to_vec() }));
    }
}

impl Open {
    fn append(&mut self, payload: &[u8], limits: &MessageLimits) {
        let needed = self.data.len() + payload.len();
        if needed > self.data.capacity() {
            // Doubling keeps a stream of tiny fragments linear; the limit keeps the doubling from overshooting it.
            let capacity = (self.data.capacity() * 2).min(limits.message_bytes_max).max(needed);
            self.data.reserve_exact(capacity - self.data.len());
        }
        self.data.extend_from_slice(payload);
    }
}

/// What a data message holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// UTF-8, checked.
    Text,
    /// Any bytes.
    Binary,
}

/// What one frame completed. Payloads are unmasked.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole message, fragments joined.
    Message {
        /// Text or binary.
        kind: MessageKind,
        /// Its bytes; the receiver may parse in place.
        data: &'a mut [u8],
    },
    /// A ping: the caller answers with a Pong of the same payload (RFC 6455 §5.5.2), at most 125 bytes.
    Ping(&'a [u8]),
    /// A pong, asked for or not.
    Pong(&'a [u8]),
    /// The peer closes. The caller answers with a Close frame, unless it has sent one, and takes no further step.
    Close {
        /// The peer's code, valid on the wire (RFC 6455 §7.4); None when its Close was empty.
        code: Option<u16>,
        /// The peer's reason, UTF-8, at most 123 bytes.
        reason: &'a [u8],
    },
}

/// Why a connection's frames are refused. Each ends the connection, see [`WsError::close_reason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WsError {
    /// A frame header broke the rules.
    Frame(FrameError),
    /// A text message or the reason of a Close was not UTF-8 (§8.1).
    InvalidUtf8,
    /// The message is longer than `message_bytes_max`.
    TooBig,
    /// A compressed message could not be inflated, or not within the limits.
    Inflate(InflateError),
    /// A continuation with no message open, or a new message inside an open one (§5.4).
    BadFragmentation,
    /// A Close code that must not stand on the wire (§7.4).
    BadCloseCode,
    /// A Close payload of one byte (§5.5.1).
    BadClosePayload,
}

impl WsError {
    /// The reason with which the connection is closed.
    pub const fn close_reason(self) -> CloseReason {
        match self {
            WsError::InvalidUtf8 => CloseReason::InvalidUtf8,
            WsError::TooBig | WsError::Inflate(InflateError::TooBig | InflateError::Ratio) => {
                CloseReason::MessageTooBig
            }
            WsError::Inflate(InflateError::Corrupt)
            | WsError::Frame(_)
            | WsError::BadFragmentation
            | WsError::BadCloseCode
            | WsError::BadClosePayload => CloseReason::ProtocolError,
        }
    }
}

impl From<FrameError> for WsError {
    fn from(error: FrameError) -> WsError {
        WsError::Frame(error)
    }
}

/// Bounds and checks that do not change while a connection lives.
#[derive(Clone, Copy, Debug)]
pub struct MessageLimits {
    /// Bytes of one message, all fragments together, as it was sent and as it is inflated. Control frames do not count.
    pub message_bytes_max: usize,
    /// How many times its compressed bytes a message may have: [`InflateLimits::ratio_max`].
    pub inflate_ratio_max: u32,
    /// Whether bytes are UTF-8; chosen at boot, as detecting the processor needs std.
    pub utf8: fn(&[u8]) -> bool,
}

/// What one call of [`step`] did.
#[derive(Debug, PartialEq, Eq)]
pub struct Step<'a> {
    /// Bytes taken from the front. 0: the frame is not whole, more bytes are needed.
    pub consumed: usize,
    /// What was completed. None with `consumed > 0`: a fragment was stored, call again.
    pub event: Option<Event<'a>>,
}

impl Step<'_> {
    const MORE_BYTES_NEEDED: Step<'static> = Step { consumed: 0, event: None };
}

/// Takes one frame from the front of `bytes`, unmasking it in place. No extension was negotiated.
///
/// After `consumed > 0` the caller calls again with the bytes behind; after `consumed == 0` it keeps `bytes` and calls
/// again once more have come ([`frame_bytes_needed`] says how many).
///
/// # Errors
/// The connection must be closed with [`WsError::close_reason`]; what was received behind is not to be read.
#[inline]
pub fn step<'a>(
    fragments: &'a mut Fragments,
    bytes: &'a mut [u8],
    limits: &MessageLimits,
) -> Result<Step<'a>, WsError> {
    step_with(fragments, bytes, limits, None)
}

/// As [`step`], for a connection that may have negotiated permessage-deflate: then `inflater` is the shard's.
///
/// The event of a compressed message borrows from it; the next step frees what a long one took, and a caller that takes
/// no further step now calls [`Inflater::release`].
///
/// # Errors
/// As there.
#[inline]
pub fn step_with<'a>(
    fragments: &'a mut Fragments,
    bytes: &'a mut [u8],
    limits: &MessageLimits,
    mut inflater: Option<&'a mut Inflater>,
) -> Result<Step<'a>, WsError> {
    fragments.release();
    if let Some(inflater) = &mut inflater {
        inflater.release();
    }
    let Some(header) = decode_header_with(bytes, inflater.is_some())? else { return Ok(Step::MORE_BYTES_NEEDED) };
    let Some(key) = header.mask else { return Err(FrameError::NotMasked.into()) };
    if !header.opcode.is_control() {
        fragments.admit(&header, limits)?;
    }

    // Does not truncate: a control payload is below 126 bytes, a data payload was admitted below a usize.
    let consumed = header.header_len + header.payload_len as usize;
    let Some(payload) = bytes.get_mut(header.header_len..consumed) else { return Ok(Step::MORE_BYTES_NEEDED) };
    unmask(payload, key);

    // What no inflater is there for was refused by its header.
    let inflater = |compressed: bool| inflater.filter(|_| compressed);
    let event = match header.opcode {
        Opcode::Text | Opcode::Binary => {
            let kind = if header.opcode == Opcode::Text { MessageKind::Text } else { MessageKind::Binary };
            if header.fin {
                Some(message(kind, payload, limits, inflater(header.compressed))?)
            } else {
                fragments.begin(kind, header.compressed, payload);
                None
            }
        }
        Opcode::Continuation => {
            let Some(open) = &mut fragments.0 else { return Err(WsError::BadFragmentation) };
            open.append(payload, limits);
            open.complete = header.fin;
            if header.fin { Some(message(open.kind, &mut open.data, limits, inflater(open.compressed))?) } else { None }
        }
        Opcode::Ping => Some(Event::Ping(payload)),
        Opcode::Pong => Some(Event::Pong(payload)),
        Opcode::Close => Some(close(payload, limits)?),
    };
    Ok(Step { consumed, event })
}

/// Bytes that the whole frame at the front of `bytes` takes, header included; None while its header is incomplete.
///
/// For sizing the buffer that keeps a partial frame: to be asked when [`step`] has just taken nothing, so that the
/// answer is bounded by `message_bytes_max` and the header.
#[inline]
pub fn frame_bytes_needed(bytes: &[u8]) -> Option<usize> {
    // Compressed or not, it is as long; whether it may be is for `step` to say.
    let header = decode_header_with(bytes, true).ok()??;
    Some(header.header_len.saturating_add(usize::try_from(header.payload_len).unwrap_or(usize::MAX)))
}

/// Whether a peer may write `code` into a Close frame (RFC 6455 §7.4 and the registry it founds).
///
/// 1004 is unassigned, 1005, 1006 and 1015 are for local use, 1016 to 2999 are reserved for the protocol itself.
pub const fn close_code_is_valid(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// A whole message: inflated if there is an inflater, its text checked.
#[inline]
fn message<'a>(
    kind: MessageKind,
    data: &'a mut [u8],
    limits: &MessageLimits,
    inflater: Option<&'a mut Inflater>,
) -> Result<Event<'a>, WsError> {
    let data = match inflater {
        Some(inflater) => inflate(data, limits, inflater)?,
        None => data,
    };
    if kind == MessageKind::Text && !(limits.utf8)(data) {
        return Err(WsError::InvalidUtf8);
    }
    Ok(Event::Message { kind, data })
}

/// Apart, so that it does not stand in the way of the messages that are not compressed.
#[cold]
fn inflate<'a>(data: &[u8], limits: &MessageLimits, inflater: &'a mut Inflater) -> Result<&'a mut [u8], WsError> {
    let limits = InflateLimits { message_bytes_max: limits.message_bytes_max, ratio_max: limits.inflate_ratio_max };
    inflater.inflate(data, &limits).map_err(WsError::Inflate)
}

/// The payload of a Close frame: nothing, or two bytes of code and a reason (RFC 6455 §5.5.1).
fn close<'a>(payload: &'a [u8], limits: &MessageLimits) -> Result<Event<'a>, WsError> {
    if payload.is_empty() {
        return Ok(Event::Close { code: None, reason: &[] });
    }
    let Some((code, reason)) = payload.split_first_chunk::<2>() else { return Err(WsError::BadClosePayload) };
    let code = u16::from_be_bytes(*code);
    if !close_code_is_valid(code) {
        return Err(WsError::BadCloseCode);
    }
    if !(limits.utf8)(reason) {
        return Err(WsError::InvalidUtf8);
    }
    Ok(Event::Close { code: Some(code), reason })
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::deflate::Compressor;
    use crate::frame::{HEADER_BYTES_MAX, write_client_header};

    const LIMITS: MessageLimits = MessageLimits {
        message_bytes_max: 100_000,
        inflate_ratio_max: 200,
        utf8: |bytes| core::str::from_utf8(bytes).is_ok(),
    };
    const KEY: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

    /// An [`Event`] that owns its bytes.
    #[derive(Clone, Debug, PartialEq, Eq)]
    enum Owned {
        Message(MessageKind, Vec<u8>),
        Ping(Vec<u8>),
        Pong(Vec<u8>),
        Close(Option<u16>, Vec<u8>),
    }

    impl From<Event<'_>> for Owned {
        fn from(event: Event<'_>) -> Owned {
            match event {
                Event::Message { kind, data } => Owned::Message(kind, data.to_vec()),
                Event::Ping(data) => Owned::Ping(data.to_vec()),
                Event::Pong(data) => Owned::Pong(data.to_vec()),
                Event::Close { code, reason } => Owned::Close(code, reason.to_vec()),
            }
        }
    }

    fn frame(out: &mut Vec<u8>, fin: bool, opcode: Opcode, payload: &[u8], key: [u8; 4]) {
        let at = out.len();
        write_client_header(out, opcode, payload.len(), key);
        if !fin {
            out[at] &= 0x7F;
        }
        let from = out.len();
        out.extend_from_slice(payload);
        unmask(&mut out[from..], key);
    }

    fn frames(list: &[(bool, Opcode, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for &(fin, opcode, payload) in list {
            frame(&mut out, fin, opcode, payload, KEY);
        }
        out
    }

    /// As [`receive_with`], where no extension was negotiated.
    fn receive(chunks: &[&[u8]], limits: &MessageLimits) -> (Vec<Owned>, Option<WsError>, usize) {
        receive_with(chunks, limits, None)
    }

    /// Feeds `chunks` one after the other as a connection does; stops at an error or a Close.
    /// Gives the events, the error, and the bytes left over.
    fn receive_with(
        chunks: &[&[u8]],
        limits: &MessageLimits,
        mut inflater: Option<&mut Inflater>,
    ) -> (Vec<Owned>, Option<WsError>, usize) {
        let mut fragments = Fragments::default();
        let mut tail: Vec<u8> = Vec::new();
        let mut events = Vec::new();
        for chunk in chunks {
            tail.extend_from_slice(chunk);
            let mut at = 0;
            loop {
                let before = tail[at..].to_vec();
                let done = step_with(&mut fragments, &mut tail[at..], limits, inflater.as_deref_mut());
                let (consumed, event) = match done {
                    Ok(Step { consumed, event }) => (consumed, event.map(Owned::from)),
                    Err(error) => return (events, Some(error), tail.len() - at),
                };
                if consumed == 0 {
                    assert!(event.is_none());
                    assert_eq!(tail[at..], before[..], "an incomplete frame is left as it was");
                    if let Some(needed) = frame_bytes_needed(&tail[at..]) {
                        assert!(needed > before.len() && needed <= limits.message_bytes_max + HEADER_BYTES_MAX);
                    }
                    break;
                }
                at += consumed;
                let closed = matches!(event, Some(Owned::Close(..)));
                events.extend(event);
                if closed {
                    return (events, None, tail.len() - at);
                }
            }
            tail.drain(..at);
        }
        fragments.release();
        assert_eq!(fragments.0.is_some(), fragments.is_pending(), "nothing is kept but an open message");
        (events, None, tail.len())
    }

    fn error_of(list: &[(bool, Opcode, &[u8])]) -> Option<WsError> {
        receive(&[&frames(list)], &LIMITS).1
    }

    #[test]
    fn idle_state_is_eight_bytes() {
        assert_eq!(size_of::<Fragments>(), 8);
    }

    #[test]
    fn unfragmented_messages_borrow_the_received_bytes() {
        let mut bytes = frames(&[(true, Opcode::Text, b"Hello"), (true, Opcode::Binary, b"\xFF")]);
        let start = bytes.as_ptr() as usize;
        let mut fragments = Fragments::default();
        let first = step(&mut fragments, &mut bytes, &LIMITS).unwrap();
        assert_eq!(first.consumed, 11);
        let Some(Event::Message { kind: MessageKind::Text, data }) = first.event else { panic!("{:?}", first.event) };
        assert_eq!((data.as_ptr() as usize, &data[..]), (start + 6, &b"Hello"[..]));
        let second = step(&mut fragments, &mut bytes[11..], &LIMITS).unwrap();
        assert_eq!(second.event, Some(Event::Message { kind: MessageKind::Binary, data: &mut [0xFF] }));
        assert!(fragments.0.is_none(), "no allocation without fragments");
    }

    #[test]
    fn control_frames_come_between_fragments() {
        let stream = frames(&[
            (false, Opcode::Text, b"Hel"),
            (true, Opcode::Ping, b"p"),
            (false, Opcode::Continuation, b""),
            (true, Opcode::Pong, b""),
            (true, Opcode::Continuation, b"lo"),
            (true, Opcode::Binary, b""),
        ]);
        let (events, error, left) = receive(&[&stream], &LIMITS);
        let expected = vec![
            Owned::Ping(b"p".to_vec()),
            Owned::Pong(vec![]),
            Owned::Message(MessageKind::Text, b"Hello".to_vec()),
            Owned::Message(MessageKind::Binary, vec![]),
        ];
        assert_eq!((events, error, left), (expected, None, 0));
    }

    fn compressed(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        Compressor::new().compress(payload, &mut out);
        out
    }

    /// As [`frames`], with RSV1 on those whose first element is true.
    fn frames_rsv1(list: &[(bool, bool, Opcode, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for &(rsv1, fin, opcode, payload) in list {
            let at = out.len();
            frame(&mut out, fin, opcode, payload, KEY);
            out[at] |= if rsv1 { 0x40 } else { 0 };
        }
        out
    }

    fn receive_deflate(list: &[(bool, bool, Opcode, &[u8])]) -> (Vec<Owned>, Option<WsError>) {
        let (events, error, _) = receive_with(&[&frames_rsv1(list)], &LIMITS, Some(&mut Inflater::new()));
        (events, error)
    }

    #[test]
    fn compressed_messages_are_inflated() {
        let hello = compressed(b"Hello");
        let (first, rest) = hello.split_at(3);
        let list = [
            (true, true, Opcode::Text, &hello[..]),
            // Whether a message is compressed is said for each.
            (false, true, Opcode::Text, b"Hello"),
            (true, true, Opcode::Binary, &hello),
            // In fragments, with control frames and empty frames between (RFC 7692 §7.2.3.1).
            (true, false, Opcode::Text, first),
            (false, true, Opcode::Ping, b"p"),
            (false, false, Opcode::Continuation, b""),
            (false, true, Opcode::Continuation, rest),
            (true, true, Opcode::Text, &[0x00]),
            (true, false, Opcode::Binary, b""),
            (false, true, Opcode::Continuation, &[0x00]),
            (false, false, Opcode::Text, b"Hel"),
            (false, true, Opcode::Continuation, b"lo"),
        ];
        let message = |kind, data: &[u8]| Owned::Message(kind, data.to_vec());
        let expected = vec![
            message(MessageKind::Text, b"Hello"),
            message(MessageKind::Text, b"Hello"),
            message(MessageKind::Binary, b"Hello"),
            Owned::Ping(b"p".to_vec()),
            message(MessageKind::Text, b"Hello"),
            message(MessageKind::Text, b""),
            message(MessageKind::Binary, b""),
            message(MessageKind::Text, b"Hello"),
        ];
        assert_eq!(receive_deflate(&list), (expected, None));
        let (events, error, _) = receive(&[&frames_rsv1(&list)], &LIMITS);
        assert_eq!((events, error), (vec![], Some(WsError::Frame(FrameError::ReservedBits))), "not negotiated");
    }

    #[test]
    fn rsv1_stands_on_the_first_frame_of_a_message_only() {
        use Opcode::{Binary, Close, Continuation, Ping, Pong, Text};
        let hello = compressed(b"Hello");
        let reserved = Some(WsError::Frame(FrameError::ReservedBits));
        for opcode in [Ping, Pong, Close] {
            assert_eq!(receive_deflate(&[(true, true, opcode, b"")]), (vec![], reserved), "{opcode:?}");
        }
        for first in [true, false] {
            let list = [(first, false, Text, &hello[..3]), (true, true, Continuation, &hello[3..])];
            assert_eq!(receive_deflate(&list), (vec![], reserved), "on a continuation");
        }
        let list = [(true, false, Text, &hello[..3]), (true, true, Binary, &hello[3..])];
        assert_eq!(receive_deflate(&list), (vec![], Some(WsError::BadFragmentation)), "a message inside another");
        // RSV2 and RSV3 mean nothing, with RSV1 or without.
        for first in [0x91, 0xA1, 0xB1, 0xD1, 0xE1, 0xF1] {
            let mut bytes = frames(&[(true, Text, b"")]);
            bytes[0] = first;
            let error = receive_with(&[&bytes], &LIMITS, Some(&mut Inflater::new())).1;
            assert_eq!(error, reserved, "{first:#04x}");
        }
    }

    #[test]
    fn a_compressed_message_keeps_the_rules_of_its_kind() {
        use Opcode::{Binary, Continuation, Text};
        let bad = compressed(b"a\xFFb");
        assert_eq!(receive_deflate(&[(true, true, Text, &bad)]).1, Some(WsError::InvalidUtf8));
        assert_eq!(receive_deflate(&[(true, true, Binary, &bad)]).1, None);
        // Compressed bytes are no UTF-8, and need not be.
        let long = compressed("größe ".repeat(100).as_bytes());
        assert!(core::str::from_utf8(&long).is_err());
        assert_eq!(receive_deflate(&[(true, true, Text, &long)]).1, None);

        let corrupt = Some(WsError::Inflate(InflateError::Corrupt));
        assert_eq!(receive_deflate(&[(true, true, Text, b"")]).1, corrupt, "an empty message has one byte");
        assert_eq!(receive_deflate(&[(true, true, Text, b"Hello")]).1, corrupt);
        assert_eq!(receive_deflate(&[(true, true, Text, &long[..20])]).1, corrupt);

        // Digits of a count: their ratio is far from the other limit.
        let mut over: Vec<u8> = (0..30_000_u32).flat_map(|number| (number * 7919).to_string().into_bytes()).collect();
        over.truncate(100_001);
        let over = compressed(&over);
        let too_big = Some(WsError::Inflate(InflateError::TooBig));
        assert_eq!(receive_deflate(&[(true, true, Text, &over)]).1, too_big);
        let list = [(true, false, Text, &over[..10]), (false, true, Continuation, &over[10..])];
        assert_eq!(receive_deflate(&list).1, too_big);
        // What is sent counts as well, by its header.
        let limits = MessageLimits { message_bytes_max: 3, ..LIMITS };
        let list = frames_rsv1(&[(true, true, Text, &compressed(b"Hello"))]);
        assert_eq!(receive_with(&[&list], &limits, Some(&mut Inflater::new())).1, Some(WsError::TooBig));
    }

    #[test]
    fn memory_of_a_long_compressed_message_is_given_back() {
        let limits = MessageLimits { message_bytes_max: 1 << 20, inflate_ratio_max: 1032, ..LIMITS };
        let mut bytes = frames_rsv1(&[(true, true, Opcode::Binary, &compressed(&[7; 500_000]))]);
        let (mut fragments, mut inflater) = (Fragments::default(), Inflater::new());
        let step = step_with(&mut fragments, &mut bytes, &limits, Some(&mut inflater)).unwrap();
        let Some(Event::Message { data, .. }) = step.event else { panic!("{:?}", step.event) };
        assert_eq!(data.len(), 500_000);
        assert!(inflater.buffer_bytes() >= 500_000);
        assert_eq!(step_with(&mut fragments, &mut [], &limits, Some(&mut inflater)).unwrap().consumed, 0);
        assert_eq!(inflater.buffer_bytes(), 0);
    }

    #[test]
    fn memory_of_fragments_is_given_back() {
        let mut fragments = Fragments::default();
        let mut stream = frames(&[(false, Opcode::Binary, b"ab"), (true, Opcode::Continuation, b"cd")]);
        let stored = step(&mut fragments, &mut stream, &LIMITS).unwrap();
        assert_eq!(stored, Step { consumed: 8, event: None });
        assert!(fragments.is_pending());
        fragments.release();
        assert!(fragments.is_pending(), "an open message survives release");

        let done = step(&mut fragments, &mut stream[8..], &LIMITS).unwrap();
        assert_eq!(done.event, Some(Event::Message { kind: MessageKind::Binary, data: &mut b"abcd".to_vec() }));
        assert!(!fragments.is_pending() && fragments.0.is_some());
        fragments.release();
        assert!(fragments.0.is_none());

        // The next step frees it too, even one that finds no frame.
        fragments.0 =
            Some(Box::new(Open { kind: MessageKind::Text, compressed: false, complete: true, data: vec![1] }));
        assert_eq!(step(&mut fragments, &mut [], &LIMITS).unwrap().consumed, 0);
        assert!(fragments.0.is_none());
    }

    #[test]
    fn fragmentation_rules() {
        use Opcode::{Binary, Continuation, Text};
        let bad = Some(WsError::BadFragmentation);
        assert_eq!(error_of(&[(true, Continuation, b"x")]), bad, "nothing is open");
        assert_eq!(error_of(&[(false, Continuation, b"x")]), bad);
        assert_eq!(error_of(&[(false, Text, b"x"), (true, Text, b"y")]), bad, "a message inside another");
        assert_eq!(error_of(&[(false, Text, b"x"), (false, Binary, b"y")]), bad);
        assert_eq!(
            error_of(&[(false, Text, b"x"), (true, Continuation, b"y"), (true, Continuation, b"z")]),
            bad,
            "the message had ended"
        );
        assert_eq!(error_of(&[(true, Text, b"x"), (true, Continuation, b"y")]), bad);
        assert_eq!(error_of(&[(false, Text, b"x"), (true, Continuation, b"y"), (true, Text, b"z")]), None);
    }

    #[test]
    fn unmasked_frames_are_refused_from_the_header() {
        for header in [&b"\x81\x05"[..], b"\x82\x7E\x01\x00", b"\x89\x00", b"\x88\x02", b"\x82\x7F\0\0\0\0\0\x01\0\0"] {
            let mut fragments = Fragments::default();
            let error = step(&mut fragments, &mut header.to_vec(), &LIMITS).unwrap_err();
            assert_eq!(error, WsError::Frame(FrameError::NotMasked));
            assert_eq!(error.close_reason(), CloseReason::ProtocolError);
        }
    }

    #[test]
    fn too_big_is_seen_before_the_payload_comes() {
        let limits = MessageLimits { message_bytes_max: 1000, ..LIMITS };
        for (len, fits) in [(1000, true), (1001, false), (70_000, false), (usize::MAX >> 1, false)] {
            let mut header = Vec::new();
            write_client_header(&mut header, Opcode::Binary, len, KEY);
            let result = step(&mut Fragments::default(), &mut header, &limits).map(|step| step.consumed);
            assert_eq!(result, if fits { Ok(0) } else { Err(WsError::TooBig) }, "{len}");
        }

        // Fragments count together.
        for (len, fits) in [(300, true), (301, false)] {
            let mut stream = frames(&[(false, Opcode::Binary, &[7; 400]), (false, Opcode::Continuation, &[7; 300])]);
            write_client_header(&mut stream, Opcode::Continuation, len, KEY);
            let (events, error, _) = receive(&[&stream], &limits);
            assert_eq!((events.len(), error), (0, if fits { None } else { Some(WsError::TooBig) }), "{len}");
        }
        assert_eq!(WsError::TooBig.close_reason().code(), 1009);

        // A limit of nothing still lets control frames and empty messages through.
        let none = MessageLimits { message_bytes_max: 0, ..LIMITS };
        let stream = frames(&[(true, Opcode::Ping, &[1; 125]), (true, Opcode::Binary, b"")]);
        assert_eq!(receive(&[&stream], &none).1, None);
    }

    #[test]
    fn stored_fragments_stay_below_the_limit() {
        let limits = MessageLimits { message_bytes_max: 1000, ..LIMITS };
        let mut fragments = Fragments::default();
        let mut first = frames(&[(false, Opcode::Binary, b"x")]);
        step(&mut fragments, &mut first, &limits).unwrap();
        for _ in 1..1000 {
            let mut next = frames(&[(false, Opcode::Continuation, b"x")]);
            step(&mut fragments, &mut next, &limits).unwrap();
            let open = fragments.0.as_ref().unwrap();
            assert!(open.data.capacity() <= limits.message_bytes_max);
        }
        let mut over = frames(&[(true, Opcode::Continuation, b"x")]);
        assert_eq!(step(&mut fragments, &mut over, &limits), Err(WsError::TooBig));
    }

    #[test]
    fn text_is_checked_over_the_whole_message() {
        // A character may be cut by a fragment border ...
        assert_eq!(error_of(&[(false, Opcode::Text, b"\xE2\x82"), (true, Opcode::Continuation, b"\xAC")]), None);
        // ... but not by the end of the message; surrogates, overlong forms and stray bytes are not UTF-8.
        for bad in [&b"\xE2\x82"[..], b"\xED\xA0\x80", b"\xC0\xAF", b"\xF4\x90\x80\x80", b"a\xFFb", b"\x80"] {
            assert_eq!(error_of(&[(true, Opcode::Text, bad)]), Some(WsError::InvalidUtf8), "{bad:x?}");
            let (head, rest) = bad.split_at(1);
            let cut = [(false, Opcode::Text, head), (true, Opcode::Continuation, rest)];
            assert_eq!(error_of(&cut), Some(WsError::InvalidUtf8), "{bad:x?} in two fragments");
            assert_eq!(error_of(&[(true, Opcode::Binary, bad)]), None);
        }
        assert_eq!(WsError::InvalidUtf8.close_reason().code(), 1007);
    }

    #[test]
    fn close_codes() {
        let valid = |code: u16| match code {
            0..=999 => false,
            1000..=1003 => true,
            1004..=1006 => false,
            1007..=1014 => true,
            1015..=2999 => false,
            3000..=4999 => true,
            5000.. => false,
        };
        for code in 0..=u16::MAX {
            let mut payload = code.to_be_bytes().to_vec();
            payload.extend_from_slice(b"why");
            let stream = frames(&[(true, Opcode::Close, &payload)]);
            let expected = if valid(code) {
                (vec![Owned::Close(Some(code), b"why".to_vec())], None, 0)
            } else {
                (vec![], Some(WsError::BadCloseCode), stream.len())
            };
            assert_eq!(receive(&[&stream], &LIMITS), expected, "{code}");
        }
    }

    #[test]
    fn close_payloads() {
        let receive_close = |payload: &[u8]| {
            let (mut events, error, _) = receive(&[&frames(&[(true, Opcode::Close, payload)])], &LIMITS);
            (events.pop(), error)
        };
        assert_eq!(receive_close(b""), (Some(Owned::Close(None, vec![])), None));
        assert_eq!(receive_close(b"\x03"), (None, Some(WsError::BadClosePayload)));
        assert_eq!(receive_close(b"\x03\xE8"), (Some(Owned::Close(Some(1000), vec![])), None));
        assert_eq!(receive_close(b"\x03\xE8\xFF"), (None, Some(WsError::InvalidUtf8)));
        let longest = [&b"\x0F\xA0"[..], &[b'a'; 123]].concat();
        assert_eq!(receive_close(&longest), (Some(Owned::Close(Some(4000), vec![b'a'; 123])), None));
    }

    #[test]
    fn every_error_has_its_close_code() {
        for (error, code) in [
            (WsError::Frame(FrameError::ReservedBits), 1002),
            (WsError::BadFragmentation, 1002),
            (WsError::BadCloseCode, 1002),
            (WsError::BadClosePayload, 1002),
            (WsError::InvalidUtf8, 1007),
            (WsError::TooBig, 1009),
            (WsError::Inflate(InflateError::TooBig), 1009),
            (WsError::Inflate(InflateError::Ratio), 1009),
            (WsError::Inflate(InflateError::Corrupt), 1002),
        ] {
            assert_eq!(error.close_reason().code(), code, "{error:?}");
        }
    }

    /// One thing a peer sends: a message in fragments (cut at these places), with a ping behind each, or a control frame.
    #[derive(Clone, Debug)]
    enum Sent {
        Message { text: bool, deflate: bool, data: Vec<u8>, cuts: Vec<u16>, pings: bool },
        Control { ping: bool, data: Vec<u8> },
    }

    fn sent() -> impl Strategy<Value = Sent> {
        let data = prop_oneof![
            4 => prop::collection::vec(any::<u8>(), 0..200),
            2 => prop::collection::vec(any::<u8>(), 0..2_000),
            1 => prop::collection::vec(any::<u8>(), 65_500..65_600),
        ];
        prop_oneof![
            3 => (any::<[bool; 3]>(), data, prop::collection::vec(any::<u16>(), 0..5)).prop_map(
                |([text, deflate, pings], mut data, cuts)| {
                    if text {
                        data.iter_mut().for_each(|byte| *byte &= 0x7F);
                    }
                    // Compressing much is slow without optimisation.
                    Sent::Message { text, deflate: deflate && data.len() < 2_000, data, cuts, pings }
                }
            ),
            1 => (any::<bool>(), prop::collection::vec(any::<u8>(), 0..=125))
                .prop_map(|(ping, data)| Sent::Control { ping, data }),
        ]
    }

    /// The bytes of `list` on the wire, and the events they must become.
    fn encode(list: &[Sent]) -> (Vec<u8>, Vec<Owned>) {
        let (mut out, mut events) = (Vec::new(), Vec::new());
        for (i, item) in list.iter().enumerate() {
            let key = (i as u32).wrapping_mul(0x9E37_79B9).to_be_bytes();
            match item {
                Sent::Control { ping, data } => {
                    let (opcode, event) = match ping {
                        true => (Opcode::Ping, Owned::Ping(data.clone())),
                        false => (Opcode::Pong, Owned::Pong(data.clone())),
                    };
                    frame(&mut out, true, opcode, data, key);
                    events.push(event);
                }
                Sent::Message { text, deflate, data, cuts, pings } => {
                    let payload = if *deflate { compressed(data) } else { data.clone() };
                    let begin = out.len();
                    let (kind, mut opcode) = match text {
                        true => (MessageKind::Text, Opcode::Text),
                        false => (MessageKind::Binary, Opcode::Binary),
                    };
                    let mut borders: Vec<usize> = cuts.iter().map(|&cut| cut as usize % (payload.len() + 1)).collect();
                    borders.sort_unstable();
                    let mut from = 0;
                    for border in borders {
                        frame(&mut out, false, opcode, &payload[from..border], key);
                        (opcode, from) = (Opcode::Continuation, border);
                        if *pings {
                            frame(&mut out, true, Opcode::Ping, b"between", key);
                            events.push(Owned::Ping(b"between".to_vec()));
                        }
                    }
                    frame(&mut out, true, opcode, &payload[from..], key);
                    out[begin] |= if *deflate { 0x40 } else { 0 };
                    events.push(Owned::Message(kind, data.clone()));
                }
            }
        }
        (out, events)
    }

    fn cut<'a>(stream: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
        let mut borders: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        borders.push(stream.len());
        borders.sort_unstable();
        let mut from = 0;
        borders.into_iter().map(|border| &stream[core::mem::replace(&mut from, border)..border]).collect()
    }

    /// As [`receive`], where permessage-deflate was negotiated.
    fn receive_any(chunks: &[&[u8]], limits: &MessageLimits) -> (Vec<Owned>, Option<WsError>, usize) {
        receive_with(chunks, limits, Some(&mut Inflater::new()))
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(
            list in prop::collection::vec(sent(), 0..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let (stream, expected) = encode(&list);
            prop_assert_eq!(receive_any(&[&stream], &LIMITS), (expected.clone(), None, 0));
            prop_assert_eq!(receive_any(&cut(&stream, &cuts), &LIMITS), (expected, None, 0));
        }

        #[test]
        fn cuts_change_nothing_in_damaged_streams(
            list in prop::collection::vec(sent(), 1..4),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let (mut stream, _) = encode(&list);
            for (at, byte) in damage {
                // Half of the damage goes to the first bytes, where a header is sure to be hit.
                let range = if byte & 1 == 0 { stream.len().min(16) } else { stream.len() };
                stream[at.index(range)] = byte;
            }
            let (events, error, _) = receive_any(&[&stream], &LIMITS);
            let (cut_events, cut_error, _) = receive_any(&cut(&stream, &cuts), &LIMITS);
            prop_assert_eq!((events, error), (cut_events, cut_error));
        }

        #[test]
        fn one_byte_at_a_time(list in prop::collection::vec(sent(), 0..3)) {
            let (stream, expected) = encode(&list);
            prop_assume!(stream.len() < 5_000);
            let chunks: Vec<&[u8]> = stream.chunks(1).collect();
            prop_assert_eq!(receive_any(&chunks, &LIMITS), (expected, None, 0));
        }
    }
}
