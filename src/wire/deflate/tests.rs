//! RFC 7692's own examples, a foreign implementation on the other side, damage, and limits.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use proptest::prelude::*;

use super::*;
use crate::frame::{Opcode, decode_header, decode_header_with};

const LIMITS: InflateLimits = InflateLimits { message_bytes_max: 1 << 20, ratio_max: 200 };

/// What the inflater puts behind every payload.
const ENDING_BYTES: u64 = 9;

fn compressed(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Compressor::new().compress(payload, &mut out);
    out
}

fn inflated(payload: &[u8], limits: &InflateLimits) -> Result<Vec<u8>, InflateError> {
    Inflater::new().inflate(payload, limits).map(|message| message.to_vec())
}

/// The other implementation, as a client that follows RFC 7692 §7.2.1.
fn foreign_compressed(payload: &[u8], level: u32) -> Vec<u8> {
    let mut stream = Compress::new(Compression::new(level), false);
    let mut out = Vec::with_capacity(payload.len() * 2 + 1024);
    stream.compress_vec(payload, &mut out, FlushCompress::Sync).unwrap();
    assert_eq!(stream.total_in(), payload.len() as u64);
    assert!(out.ends_with(&TAIL));
    out.truncate(out.len() - TAIL.len());
    out
}

/// The other implementation, as a client that follows RFC 7692 §7.2.2.
fn foreign_inflated(payload: &[u8], bytes: usize) -> Vec<u8> {
    let whole = [payload, &TAIL].concat();
    let mut out = Vec::with_capacity(bytes + 1);
    let status = Decompress::new(false).decompress_vec(&whole, &mut out, FlushDecompress::Sync).unwrap();
    assert_ne!(status, Status::StreamEnd, "a message has no last block");
    out
}

/// JSON as backends publish it: short keys that repeat, numbers that do not.
fn json(bytes: usize) -> Vec<u8> {
    let mut text = String::from("[");
    let mut number = 12_345_u64;
    while text.len() < bytes {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(&alloc::format!(
            "{{\"id\":{},\"price\":{},\"side\":\"sell\"}},",
            number >> 40,
            number >> 50 & 1023
        ));
    }
    text.into_bytes()
}

#[test]
fn rfc_7692_examples_are_inflated() {
    let hello = |payload: &[u8]| assert_eq!(inflated(payload, &LIMITS).as_deref(), Ok(&b"Hello"[..]), "{payload:x?}");
    // §7.2.3.1: one block. Its frame is c1 07 and these.
    hello(&[0xF2, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00]);
    // §7.2.3.3: without compression.
    hello(&[0x00, 0x05, 0x00, 0xFA, 0xFF, 0x48, 0x65, 0x6C, 0x6C, 0x6F, 0x00]);
    // §7.2.3.4: a block with BFINAL.
    hello(&[0xF3, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00, 0x00]);
    // §7.2.3.5: two blocks.
    hello(&[0xF2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xFF, 0xFF, 0xCA, 0xC9, 0xC9, 0x07, 0x00]);
    // §7.2.3.6: an empty message.
    assert_eq!(inflated(&[0x00], &LIMITS).as_deref(), Ok(&b""[..]));
}

#[test]
fn what_needs_the_message_before_is_refused() {
    // §7.2.3.2: the second "Hello" of a client that shares its window between messages, which ours was told not to do.
    assert_eq!(inflated(&[0xF2, 0x00, 0x11, 0x00, 0x00], &LIMITS), Err(InflateError::Corrupt));
    let mut inflater = Inflater::new();
    assert!(inflater.inflate(&[0xF2, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00], &LIMITS).is_ok());
    assert_eq!(inflater.inflate(&[0xF2, 0x00, 0x11, 0x00, 0x00], &LIMITS), Err(InflateError::Corrupt));
    // Nor does a stream that begins behind a last block see what stood before it.
    let mut behind = vec![0xF3, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00];
    behind.extend_from_slice(&[0xF2, 0x00, 0x11, 0x00, 0x00]);
    assert_eq!(inflated(&behind, &LIMITS), Err(InflateError::Corrupt));
}

#[test]
fn rfc_7692_examples_are_made() {
    assert_eq!(compressed(b"Hello"), [0xF2, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00], "§7.2.3.1");
    assert_eq!(compressed(b""), [0x00], "§7.2.3.6");
}

#[test]
fn one_payload_gives_one_output() {
    let mut compressor = Compressor::new();
    let (mut first, mut second) = (Vec::new(), b"before".to_vec());
    compressor.compress(&json(3_000), &mut first);
    compressor.compress(&json(40_000), &mut Vec::new());
    compressor.compress(&json(3_000), &mut second);
    assert_eq!(second, [b"before", &first[..]].concat(), "appended, and nothing remembered");
    assert_eq!(foreign_inflated(&first, 4_000), json(3_000));
}

/// A client that was told so has a window of this size and no more.
#[test]
fn no_distance_is_longer_than_the_window() {
    let unique =
        |seed: u32| (0..3_000_u32).flat_map(move |at| ((at * 7919) ^ seed).wrapping_mul(2_654_435_761).to_be_bytes());
    // What repeats after 12,000 bytes is out of the window's reach, and not made shorter.
    let far: Vec<u8> = unique(1).chain(unique(1)).collect();
    assert!(far.len() > 2 << SERVER_WINDOW_BITS);
    assert!(compressed(&far).len() > far.len() * 9 / 10, "{} of {}", compressed(&far).len(), far.len());
    let foreign = foreign_compressed(&far, 6);
    assert!(foreign.len() < far.len() * 6 / 10, "a larger window would have found it: {}", foreign.len());
}

#[test]
fn frames_are_compressed_when_that_makes_them_smaller() {
    let (mut compressor, mut inflater, mut out) = (Compressor::new(), Inflater::new(), Vec::new());
    assert!(compressor.write_frame(&mut out, Opcode::Text, &json(1024)));
    let header = decode_header_with(&out, true).unwrap().unwrap();
    assert_eq!((header.compressed, header.opcode, header.fin, header.mask), (true, Opcode::Text, true, None));
    assert_eq!(header.header_len + header.payload_len as usize, out.len());
    assert!(out.len() < json(1024).len() / 2);
    assert_eq!(inflater.inflate(&out[header.header_len..], &LIMITS).as_deref(), Ok(&json(1024)[..]));
    assert!(decode_header(&out).is_err(), "a client that did not ask for it must never get it");

    for small in [&b""[..], b"x", b"{}"] {
        out.clear();
        assert!(!compressor.write_frame(&mut out, Opcode::Binary, small));
        let header = decode_header(&out).unwrap().unwrap();
        assert_eq!((header.compressed, header.opcode, &out[header.header_len..]), (false, Opcode::Binary, small));
    }
}

#[test]
fn cut_or_foreign_bytes_are_refused() {
    let whole = compressed(&json(2_000));
    for cut in 0..whole.len() {
        let result = inflated(&whole[..cut], &LIMITS);
        assert_eq!(result, Err(InflateError::Corrupt), "cut at {cut}");
    }
    for bad in [
        &b""[..],
        // Reserved block type.
        &[0x07],
        // A stored block whose length and its complement differ.
        &[0x00, 0x05, 0x00, 0xFA, 0xFE, 0x48, 0x65, 0x6C, 0x6C, 0x6F, 0x00],
        // A zlib header.
        &[0x78, 0x9C, 0x4B, 0x04, 0x00],
        // A last block without the byte that §7.2.1 puts behind it.
        &[0xF3, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00],
        b"{\"id\":1,\"connect\":{}}",
    ] {
        assert_eq!(inflated(bad, &LIMITS), Err(InflateError::Corrupt), "{bad:x?}");
    }
}

#[test]
fn limits_are_exact() {
    for (bytes, message_bytes_max, expected) in [
        (1_000, 1_000, None),
        (1_001, 1_000, Some(InflateError::TooBig)),
        (1, 0, Some(InflateError::TooBig)),
        (0, 0, None),
        (4_096, 4_096, None),
        (4_097, 4_096, Some(InflateError::TooBig)),
        (100_000, 99_999, Some(InflateError::TooBig)),
        (100_000, 100_000, None),
    ] {
        let message = json(bytes)[..bytes].to_vec();
        let limits = InflateLimits { message_bytes_max, ..LIMITS };
        assert_eq!(inflated(&compressed(&message), &limits).err(), expected, "{bytes} of {message_bytes_max}");
    }

    // Zeros have a ratio of about a thousand.
    let zeros = compressed(&vec![0; 500_000]);
    let ratio = (500_000 / zeros.len()) as u32;
    let with = |ratio_max| inflated(&zeros, &InflateLimits { ratio_max, ..LIMITS }).err();
    assert_eq!((with(ratio), with(ratio + 1)), (Some(InflateError::Ratio), None));
    let exempt = compressed(&vec![0; RATIO_EXEMPT_BYTES]);
    let limits = InflateLimits { ratio_max: 1, ..LIMITS };
    assert_eq!(inflated(&exempt, &limits).map(|message| message.len()), Ok(RATIO_EXEMPT_BYTES));
    assert_eq!(inflated(&compressed(&vec![0; RATIO_EXEMPT_BYTES + 1]), &limits), Err(InflateError::Ratio));
}

#[test]
fn a_bomb_costs_no_more_than_its_limit() {
    let bomb = compressed(&vec![0; 8 << 20]);
    let mut inflater = Inflater::new();
    let limits = InflateLimits { message_bytes_max: 8 << 20, ratio_max: 200 };
    assert_eq!(inflater.inflate(&bomb, &limits), Err(InflateError::Ratio));
    let held = inflater.buffer_bytes();
    assert!(held <= bomb.len() * 200 + 1, "{held} bytes for a bomb of {}", bomb.len());
    inflater.release();
    assert_eq!(inflater.buffer_bytes(), 0, "given back");

    let limits = InflateLimits { message_bytes_max: 10_000, ratio_max: u32::MAX };
    assert_eq!(inflater.inflate(&bomb, &limits), Err(InflateError::TooBig));
    assert!(inflater.buffer_bytes() <= 10_001);
    inflater.release();
    assert!(inflater.buffer_bytes() > 0, "a small buffer is kept");
    let InflateTotals { messages, bytes_in, bytes_out } = inflater.take_totals();
    assert_eq!(messages, 0);
    assert!(bytes_in < 2 * bomb.len() as u64, "the second time it stopped early");
    assert!(bytes_out <= (bomb.len() as u64 * 200 + 1) + 10_001, "work ends at the limit");
    assert!(inflater.inflate(&compressed(b"Hello"), &limits).is_ok(), "usable behind an error");
    assert_eq!(inflater.take_totals(), InflateTotals { messages: 1, bytes_in: 7 + ENDING_BYTES, bytes_out: 5 });
    assert_eq!(inflater.take_totals(), InflateTotals::default());
}

/// Payloads of one thing repeated without end: what would make a decoder work without giving anything out.
#[test]
fn blocks_without_content_come_to_an_end() {
    // An empty stored block, and an empty block with fixed codes that calls itself the last.
    for (block, expected) in [(&[0x00, 0x00, 0x00, 0xFF, 0xFF][..], Ok(Vec::new())), (&[0x03, 0x00], Ok(Vec::new()))] {
        let mut payload = block.repeat(20_000);
        payload.push(0x00);
        assert_eq!(inflated(&payload, &LIMITS), expected, "{block:x?}");
    }
    // Empty blocks with fixed codes, ten bits each, are five bytes for four.
    let payload = [0x02, 0x08, 0x20, 0x80, 0x00].repeat(20_000);
    let result = inflated(&[&payload[..], &[0x00]].concat(), &LIMITS);
    assert_eq!(result, Ok(Vec::new()));
}

#[test]
fn an_idle_inflater_is_eight_bytes() {
    assert_eq!(size_of::<Inflater>(), 8);
    assert_eq!(Inflater::new().buffer_bytes(), 0);
}

fn accepted(value: &str) -> Option<String> {
    accept_offer(value.as_bytes()).map(|deflate| {
        let mut out = Vec::new();
        deflate.write_answer(&mut out);
        String::from_utf8(out).unwrap()
    })
}

#[test]
fn offers_that_are_accepted() {
    const PLAIN: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
    const WINDOW: &str =
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=12";
    for (offer, answer) in [
        ("permessage-deflate", PLAIN),
        // Browsers, node's ws and Python's websockets; one that saves memory; Go's gorilla.
        ("permessage-deflate; client_max_window_bits", PLAIN),
        ("permessage-deflate; server_max_window_bits=12; client_max_window_bits=12", WINDOW),
        ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", PLAIN),
        ("  permessage-deflate\t;client_max_window_bits = 8 ", PLAIN),
        ("permessage-deflate; client_max_window_bits=12", PLAIN),
        ("permessage-deflate; server_max_window_bits=13", WINDOW),
        ("permessage-deflate; server_max_window_bits=15; client_max_window_bits=15", WINDOW),
        ("permessage-deflate; server_max_window_bits=\"15\"", WINDOW),
        ("permessage-deflate; server_max_window_bits=\"1\\5\"", WINDOW),
        // RFC 7692 §7.1.3: the first offer cannot be honoured, the second can.
        ("permessage-deflate; server_max_window_bits=10, permessage-deflate", PLAIN),
        ("permessage-deflate; server_max_window_bits=10, permessage-deflate; server_max_window_bits=15", WINDOW),
        ("x-webkit-deflate-frame, permessage-deflate", PLAIN),
        ("foo; bar=\"permessage-deflate, a;\\\"b\", permessage-deflate", PLAIN),
        (", ,permessage-deflate,", PLAIN),
        ("permessage-deflate; unknown, permessage-deflate; server_max_window_bits=15, permessage-deflate", WINDOW),
    ] {
        assert_eq!(accepted(offer).as_deref(), Some(answer), "{offer}");
    }
}

#[test]
fn offers_that_are_declined() {
    for offer in [
        "",
        ",",
        "permessage-bzip2",
        "permessage-deflate2",
        "x permessage-deflate",
        "permessage-deflate=1",
        "\"permessage-deflate\"",
        "foo; bar=\"permessage-deflate, permessage-deflate",
        // The window of a shared frame is not the client's to choose.
        "permessage-deflate; server_max_window_bits=8",
        "permessage-deflate; server_max_window_bits=11",
        // Parameters that are not what §7.1 allows.
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=",
        "permessage-deflate; server_max_window_bits=\"\"",
        "permessage-deflate; server_max_window_bits=\"15",
        "permessage-deflate; server_max_window_bits=\"15\\",
        "permessage-deflate; server_max_window_bits=7",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=015",
        "permessage-deflate; server_max_window_bits=+15",
        "permessage-deflate; server_max_window_bits=15 15",
        "permessage-deflate; server_max_window_bits=1 5",
        "permessage-deflate; server_max_window_bits=115",
        "permessage-deflate; server_max_window_bits=15; server_max_window_bits=15",
        "permessage-deflate; client_max_window_bits=7",
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; client_max_window_bits=08",
        "permessage-deflate; client_max_window_bits=\"\"",
        "permessage-deflate; client_max_window_bits=x",
        "permessage-deflate; client_max_window_bits; client_max_window_bits",
        "permessage-deflate; client_no_context_takeover=1",
        "permessage-deflate; server_no_context_takeover=",
        "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
        "permessage-deflate; unknown",
        "permessage-deflate; unknown=1",
        "permessage-deflate; Client_max_window_bits",
        "permessage-deflate;",
        "permessage-deflate;;client_max_window_bits",
        "permessage-deflate; =15",
        "permessage-deflate; caf\u{e9}",
    ] {
        assert_eq!(accepted(offer), None, "{offer}");
    }
}

proptest! {
    // Compressing is slow without optimisation.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_foreign_client_reads_what_is_made(
        payload in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..3_000),
            prop::collection::vec(0..4_u8, 0..20_000),
            (0..20_000_usize).prop_map(json),
        ],
    ) {
        let made = compressed(&payload);
        prop_assert!(made.len() <= payload.len() + payload.len() / 1024 + 16);
        prop_assert_eq!(foreign_inflated(&made, payload.len()), &payload[..]);
        prop_assert_eq!(inflated(&made, &InflateLimits { ratio_max: u32::MAX, ..LIMITS }), Ok(payload));
    }

    #[test]
    fn what_a_foreign_client_makes_is_read(
        payload in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..3_000),
            prop::collection::vec(0..4_u8, 0..20_000),
            (0..20_000_usize).prop_map(json),
        ],
        level in 0..=9_u32,
    ) {
        let limits = InflateLimits { message_bytes_max: payload.len(), ratio_max: u32::MAX };
        prop_assert_eq!(inflated(&foreign_compressed(&payload, level), &limits), Ok(payload));
    }

}

proptest! {
    #[test]
    fn damage_is_refused_or_stays_within_the_limits(
        mut payload in (0..3_000_usize).prop_map(|bytes| compressed(&json(bytes))),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        for (at, byte) in damage {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        let limits = InflateLimits { message_bytes_max: 5_000, ratio_max: 200 };
        let mut inflater = Inflater::new();
        if let Ok(message) = inflater.inflate(&payload, &limits) {
            prop_assert!(message.len() <= limits.message_bytes_max);
        }
        prop_assert!(inflater.buffer_bytes() <= limits.message_bytes_max + 1);
        let behind = inflater.inflate(&[0x00], &limits).map(|message| message.len());
        prop_assert_eq!(behind, Ok(0), "usable behind an error");
    }

    #[test]
    fn offers_never_panic(value in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(&b"\"\\,;=15 "[..])], 0..60)) {
        let with_name = [b"permessage-deflate;".as_slice(), &value].concat();
        let _ = accept_offer(&value);
        let _ = accept_offer(&with_name);
    }
}
