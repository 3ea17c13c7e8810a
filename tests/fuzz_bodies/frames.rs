//! Fuzz body: WebSocket frames from an untrusted client, cut at arbitrary places.
//!
//! In: `[limit, number of cuts, that many cut bytes, stream...]`; a cut byte is the length of one chunk, 0 standing for
//! 256, and what remains is the last chunk. Claim: no input panics, no step takes more than it was given, an incomplete
//! frame is left unchanged, nothing passes the limits, and the cuts change neither the events nor the error.

use ringway_wire::frame::{CONTROL_PAYLOAD_BYTES_MAX, HEADER_BYTES_MAX, Opcode, write_client_header};
use ringway_wire::mask::unmask;
use ringway_wire::message::{
    Event, Fragments, MessageKind, MessageLimits, Step, WsError, close_code_is_valid, frame_bytes_needed, step,
};

/// Takes one input.
pub fn run(data: &[u8]) {
    let [limit, cuts, rest @ ..] = data else { return };
    let Some((cuts, stream)) = rest.split_at_checked(*cuts as usize % 32) else { return };
    let limits = MessageLimits {
        // From nothing to 64 KiB, so that short inputs reach the limit too.
        message_bytes_max: (1 << (limit % 17)) - 1,
        inflate_ratio_max: 0,
        utf8: |bytes| core::str::from_utf8(bytes).is_ok(),
    };

    let whole = receive(&[stream], &limits);
    let mut chunks = Vec::new();
    let mut left = stream;
    for &cut in cuts {
        let len = if cut == 0 { 256 } else { cut as usize };
        let (chunk, behind) = left.split_at(len.min(left.len()));
        chunks.push(chunk);
        left = behind;
    }
    chunks.push(left);
    assert_eq!(whole, receive(&chunks, &limits), "the cuts changed what was received");

    round_trip(stream, limits.message_bytes_max);
}

/// What came out of a stream, with its bytes.
#[derive(Debug, PartialEq)]
enum Owned {
    Message(MessageKind, Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, Vec<u8>),
}

/// Feeds the chunks as a connection does, until an error or a Close; gives the events and the error.
fn receive(chunks: &[&[u8]], limits: &MessageLimits) -> (Vec<Owned>, Option<WsError>) {
    let mut fragments = Fragments::default();
    let mut tail = Vec::new();
    let mut events = Vec::new();
    for chunk in chunks {
        tail.extend_from_slice(chunk);
        loop {
            let before = tail.clone();
            let (consumed, event) = match step(&mut fragments, &mut tail, limits) {
                Ok(Step { consumed, event }) => (consumed, event.map(|event| owned(event, limits))),
                Err(error) => return (events, Some(error)),
            };
            assert!(consumed <= tail.len());
            if consumed == 0 {
                assert!(event.is_none(), "an event without bytes");
                assert_eq!(tail, before, "an incomplete frame was changed");
                if let Some(needed) = frame_bytes_needed(&tail) {
                    let longest = limits.message_bytes_max.max(CONTROL_PAYLOAD_BYTES_MAX) + HEADER_BYTES_MAX;
                    assert!(needed > tail.len() && needed <= longest);
                }
                break;
            }
            assert_eq!(frame_bytes_needed(&before), Some(consumed));
            tail.drain(..consumed);
            let closed = matches!(event, Some(Owned::Close(..)));
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
        Event::Ping(data) => {
            assert!(data.len() <= CONTROL_PAYLOAD_BYTES_MAX);
            Owned::Ping(data.to_vec())
        }
        Event::Pong(data) => {
            assert!(data.len() <= CONTROL_PAYLOAD_BYTES_MAX);
            Owned::Pong(data.to_vec())
        }
        Event::Close { code, reason } => {
            assert!(code.is_none_or(close_code_is_valid) && core::str::from_utf8(reason).is_ok());
            Owned::Close(code, reason.to_vec())
        }
    }
}

/// Any bytes sent as one binary message come out as they went in, or are refused as too big.
fn round_trip(payload: &[u8], message_bytes_max: usize) {
    let key = [payload.len() as u8, 0xA5, 0, 0xFF];
    let mut frame = Vec::new();
    write_client_header(&mut frame, Opcode::Binary, payload.len(), key);
    let header_len = frame.len();
    frame.extend_from_slice(payload);
    unmask(&mut frame[header_len..], key);

    let frame_len = frame.len();
    let mut fragments = Fragments::default();
    let limits = MessageLimits { message_bytes_max, inflate_ratio_max: 0, utf8: |_| false };
    match step(&mut fragments, &mut frame, &limits) {
        Ok(Step { consumed, event: Some(Event::Message { kind: MessageKind::Binary, data }) }) => {
            assert_eq!((consumed, &*data), (frame_len, payload));
        }
        Err(WsError::TooBig) => assert!(payload.len() > message_bytes_max),
        other => panic!("{other:?}"),
    }
}
