//! What compression costs: a publication compressed once for all its subscribers, and a client's message inflated.
//!
//! In: nothing. Out: nanoseconds per message.

use std::hint::black_box;

use ringway_bench::micro::measure::Bench;
use ringway_wire::deflate::{Compressor, InflateLimits, Inflater};
use ringway_wire::frame::Opcode;

fn main() {
    let mut bench = Bench::from_command_line("deflate");
    let sizes: &[usize] = if bench.is_tiny() { &[256] } else { &[256, 1024, 4096, 16 * 1024] };
    for &bytes in sizes {
        bench.case_with(&format!("compress frame {bytes} B"), 1, || {
            let (message, mut compressor, mut out) = (json(bytes), Compressor::new(), Vec::new());
            move || {
                out.clear();
                assert!(compressor.write_frame(&mut out, Opcode::Text, black_box(&message)));
            }
        });
        bench.case_with(&format!("inflate {bytes} B"), 1, || {
            let (mut payload, mut inflater) = (Vec::new(), Inflater::new());
            Compressor::new().compress(&json(bytes), &mut payload);
            let limits = InflateLimits { message_bytes_max: 64 * 1024, ratio_max: 200 };
            move || {
                let message = inflater.inflate(black_box(&payload), &limits).expect("a whole message");
                assert!(message.len() >= bytes);
            }
        });
    }
    bench.finish();
}

/// Orders as a market feed publishes them: keys that repeat, numbers that do not.
fn json(bytes: usize) -> Vec<u8> {
    let mut text = String::from("{\"orders\":[");
    let mut number = 7_u64;
    while text.len() < bytes {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let side = if number >> 60 & 1 == 0 { "buy" } else { "sell" };
        let (id, price, cents) = (number >> 40, number >> 50 & 1023, number >> 20 & 63);
        text.push_str(&format!("{{\"id\":{id},\"price\":{price}.{cents:02},\"side\":\"{side}\"}},"));
    }
    text.pop();
    text.push_str("]}");
    text.into_bytes()
}
