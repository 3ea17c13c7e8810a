//! Fuzz body: permessage-deflate. Compressed messages and offers of an untrusted client, and our own compressor.
//!
//! In: `[what, limit, ratio, bytes...]`. `what` modulo 4: 0 the payload of one message; 1 a stream of frames, read at once
//! and in pieces; 2 a payload to compress; 3 the value of a `Sec-WebSocket-Extensions` header.
//! Claim: no input panics; nothing passes the limits, and no more memory is held than they allow; what was refused leaves
//! the inflater usable; the cuts change neither the events nor the error; what we compress inflates to what it was; an
//! answer says what was offered and nothing else.

use ringway_wire::deflate::{Compressor, InflateLimits, Inflater, accept_offer};
use ringway_wire::frame::{Opcode, decode_header_with};
use ringway_wire::message::{Event, Fragments, MessageKind, MessageLimits, Step, WsError, step_with};

/// Memory that an inflater may take at first, whatever the limits.
const BUFFER_BYTES_MIN: usize = 4 * 1024;

/// Takes one input.
pub fn run(data: &[u8]) {
    let [what, limit, ratio, bytes @ ..] = data else { return };
    // From nothing to 1 MiB; the ratio counts above 64 KiB.
    let limits = InflateLimits { message_bytes_max: (1 << (limit % 21)) - 1, ratio_max: u32::from(*ratio) };
    match what % 4 {
        0 => payload(bytes, &limits),
        1 => stream(bytes, &limits),
        2 => round_trip(bytes),
        _ => offer(bytes),
    }
}

fn payload(bytes: &[u8], limits: &InflateLimits) {
    let mut inflater = Inflater::new();
    let first = inflater.inflate(bytes, limits).map(|message| message.to_vec());
    if let Ok(message) = &first {
        assert!(message.len() <= limits.message_bytes_max);
        assert!(message.len() <= 64 * 1024 || message.len() <= bytes.len() * limits.ratio_max as usize);
    }
    assert!(inflater.buffer_bytes() <= (limits.message_bytes_max + 1).max(BUFFER_BYTES_MIN));
    let again = inflater.inflate(bytes, limits).map(|message| message.to_vec());
    assert_eq!(first, again, "the message before left something behind");
    assert_eq!(inflater.inflate(&[0x00], limits).map(|message| message.len()), Ok(0), "unusable");
    let totals = inflater.take_totals();
    assert_eq!(totals.messages, 1 + 2 * u64::from(first.is_ok()));
}

/// What came out of a stream, with its bytes.
#[derive(Debug, PartialEq)]
enum Owned {
    Message(MessageKind, Vec<u8>),
    Control(Vec<u8>),
    Close,
}

fn stream(bytes: &[u8], limits: &InflateLimits) {
    let [piece, bytes @ ..] = bytes else { return };
    let limits = MessageLimits {
        message_bytes_max: limits.message_bytes_max,
        inflate_ratio_max: limits.ratio_max,
        utf8: |bytes| core::str::from_utf8(bytes).is_ok(),
    };
    let whole = receive(bytes, bytes.len(), &limits);
    assert_eq!(whole, receive(bytes, *piece as usize, &limits), "the cuts changed what was received");
}

/// Feeds the stream in pieces as a connection does, until an error or a Close; gives the events and the error.
fn receive(stream: &[u8], piece_bytes: usize, limits: &MessageLimits) -> (Vec<Owned>, Option<WsError>) {
    let (mut fragments, mut inflater) = (Fragments::default(), Inflater::new());
    let (mut tail, mut events) = (Vec::new(), Vec::new());
    for piece in stream.chunks(piece_bytes.max(1)) {
        tail.extend_from_slice(piece);
        loop {
            let event = match step_with(&mut fragments, &mut tail, limits, Some(&mut inflater)) {
                Ok(Step { consumed: 0, event }) => {
                    assert!(event.is_none(), "an event without bytes");
                    break;
                }
                Ok(Step { consumed, event }) => {
                    let event = event.map(|event| owned(event, limits));
                    tail.drain(..consumed);
                    event
                }
                Err(error) => return (events, Some(error)),
            };
            let closed = event == Some(Owned::Close);
            events.extend(event);
            if closed {
                return (events, None);
            }
        }
    }
    (events, None)
}

fn owned(event: Event<'_>, limits: &MessageLimits) -> Owned {
    match event {
        Event::Message { kind, data } => {
            assert!(data.len() <= limits.message_bytes_max);
            assert!(kind == MessageKind::Binary || core::str::from_utf8(data).is_ok());
            Owned::Message(kind, data.to_vec())
        }
        Event::Ping(data) | Event::Pong(data) => Owned::Control(data.to_vec()),
        Event::Close { .. } => Owned::Close,
    }
}

fn round_trip(bytes: &[u8]) {
    let (mut compressor, mut inflater, mut out) = (Compressor::new(), Inflater::new(), Vec::new());
    let limits = InflateLimits { message_bytes_max: bytes.len(), ratio_max: u32::MAX };
    for _ in 0..2 {
        out.clear();
        compressor.compress(bytes, &mut out);
        let message = inflater.inflate(&out, &limits).map(|message| message.to_vec());
        assert_eq!(message.as_deref(), Ok(bytes), "with a compressor that is new, and one that is used");
    }

    let mut frame = Vec::new();
    let compressed = compressor.write_frame(&mut frame, Opcode::Binary, bytes);
    let Ok(Some(header)) = decode_header_with(&frame, true) else { panic!("no header of our own") };
    assert_eq!((header.compressed, header.fin, header.opcode), (compressed, true, Opcode::Binary));
    assert_eq!(compressed, out.len() < bytes.len());
    assert_eq!(&frame[header.header_len..], if compressed { &out[..] } else { bytes });
}

fn offer(value: &[u8]) {
    let Some(deflate) = accept_offer(value) else { return };
    let text = String::from_utf8_lossy(value);
    assert!(text.contains("permessage-deflate"), "not offered: {text}");
    let mut answer = Vec::new();
    deflate.write_answer(&mut answer);
    let window = answer.ends_with(b"; server_max_window_bits=12");
    assert_eq!(window, deflate.names_window);
    assert!(!window || text.contains("server_max_window_bits"), "not offered: {text}");
    // The answer is one that a client may get, and an offer of the same would be accepted.
    assert_eq!(accept_offer(&answer), Some(deflate));
}
