//! Fuzz body: Fossil deltas, both ways.
//!
//! In: `[length of the first part, 2 bytes little-endian] [first part] [second part]`. The parts are taken once as two
//! payloads, and once as a payload and a delta from an untrusted peer. Claim: no input panics; a delta that is made is
//! smaller than its payload, is a text if asked for one, and gives the payload back; a foreign delta gives no more than
//! allowed.

use ringway_wire::delta::{DeltaEncoder, apply};

/// What a foreign delta may give; deltas can copy the old payload many times.
const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// Takes one input.
pub fn run(data: &[u8]) {
    let Some((len, parts)) = data.split_first_chunk() else { return };
    let (old, new) = parts.split_at(parts.len().min(usize::from(u16::from_le_bytes(*len))));
    let mut encoder = DeltaEncoder::default();
    for text in [false, true] {
        round_trip(&mut encoder, old, new, text);
        round_trip(&mut encoder, new, old, text);
    }
    let mut out = Vec::new();
    let applied = apply(old, new, PAYLOAD_BYTES_MAX, &mut out);
    assert!(out.len() <= PAYLOAD_BYTES_MAX);
    if applied.is_ok() {
        // A result is the only one, and nothing smaller would have been allowed.
        let payload = out.clone();
        assert_eq!(apply(old, new, payload.len(), &mut out), Ok(()));
        assert_eq!(out, payload);
        assert!(payload.is_empty() || apply(old, new, payload.len() - 1, &mut out).is_err());
    }
}

fn round_trip(encoder: &mut DeltaEncoder, old: &[u8], new: &[u8], text: bool) {
    let mut delta = b"before".to_vec();
    if !encoder.create(old, new, text, &mut delta) {
        assert_eq!(delta, b"before", "nothing is left of a delta that is not worth it");
        return;
    }
    let delta = &delta[6..];
    assert!(delta.len() < new.len());
    assert!(!text || core::str::from_utf8(delta).is_ok());
    let mut out = Vec::new();
    assert_eq!(apply(old, delta, new.len(), &mut out), Ok(()));
    assert!(out == new);
}
