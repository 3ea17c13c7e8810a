//! What a received frame costs: unmasking alone, and a whole masked frame (header, unmasking, UTF-8).
//!
//! In: nothing. Out: nanoseconds per frame. The key is zero, which costs the same work and leaves the bytes as they were, so
//! that a round can decode the same frames again without copying them first.

use std::hint::black_box;

use ringway_bench::micro::measure::Bench;
use ringway_wire::frame::{Opcode, decode_header, write_client_header};
use ringway_wire::mask::unmask;
use ringway_wire::message::{Event, Fragments, MessageLimits, step};

/// Frames in the buffer that a round decodes.
const FRAMES: usize = 16;
const KEY: [u8; 4] = [0; 4];

fn main() {
    let mut bench = Bench::from_command_line("decode_unmask");
    let sizes: &[usize] = if bench.is_tiny() { &[16, 128] } else { &[16, 128, 1024, 16 * 1024] };
    for &bytes in sizes {
        bench.case_with(&format!("unmask {bytes} B"), 1, || {
            let mut payload = vec![b'x'; bytes];
            move || unmask(black_box(&mut payload), black_box(KEY))
        });
    }
    bench.case_with("header 128 B", FRAMES as u64, || {
        let frames = frames(Opcode::Text, 128);
        let len = frames.len() / FRAMES;
        move || {
            for frame in frames.chunks_exact(len) {
                let header = decode_header(black_box(frame)).expect("a valid frame").expect("a whole header");
                assert_eq!(header.payload_len, 128);
            }
        }
    });
    for &bytes in sizes {
        bench.case_with(&format!("text frame {bytes} B"), FRAMES as u64, || decode(Opcode::Text, bytes));
    }
    bench.case_with("binary frame 128 B", FRAMES as u64, || decode(Opcode::Binary, 128));
    bench.case_with("pong frame 0 B", FRAMES as u64, || decode(Opcode::Pong, 0));
    bench.finish();
}

/// A round that decodes all frames of a buffer, as the engine does after one receive.
fn decode(opcode: Opcode, bytes: usize) -> impl FnMut() {
    let limits = MessageLimits {
        message_bytes_max: 64 * 1024,
        inflate_ratio_max: 200,
        utf8: |bytes| simdutf8::basic::from_utf8(bytes).is_ok(),
    };
    let (mut buffer, mut fragments) = (frames(opcode, bytes), Fragments::default());
    move || {
        let mut rest = black_box(buffer.as_mut_slice());
        let mut events = 0;
        while !rest.is_empty() {
            let done = step(&mut fragments, rest, &limits).expect("a valid frame");
            let consumed = done.consumed;
            events += usize::from(matches!(done.event, Some(Event::Message { .. } | Event::Pong(_))));
            rest = &mut rest[consumed..];
        }
        assert_eq!(events, FRAMES);
    }
}

fn frames(opcode: Opcode, bytes: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..FRAMES {
        write_client_header(&mut out, opcode, bytes, KEY);
        out.resize(out.len() + bytes, b'x');
    }
    out
}
