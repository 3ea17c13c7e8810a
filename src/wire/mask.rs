//! Unmasking of client payloads (RFC 6455 §5.3). The one loop of this crate that touches every received byte.
//!
//! In: the payload of a whole frame, in the receive buffer, and the frame's key. Out: the same bytes, in place.
//!
//! Invariants: byte `i` is XORed with `key[i % 4]`, `i` counted from the start of the payload; the function is its own
//! inverse, so it masks as well. It is called once per frame, when the frame is whole, so no key offset is carried.

/// Bytes of one step. Wide enough that the compiler keeps two vector registers busy on the x86-64 baseline (SSE2).
const STEP_BYTES: usize = 32;

/// XORs `payload` with `key` repeated.
#[inline]
pub fn unmask(payload: &mut [u8], key: [u8; 4]) {
    let word = u32::from_ne_bytes(key);
    let wide = u64::from(word) << 32 | u64::from(word);

    let (steps, tail) = payload.as_chunks_mut::<STEP_BYTES>();
    for step in steps {
        xor_words(step, wide);
    }
    // The tail is below one step: most client messages are short, so it is taken in words and not byte by byte. Words
    // and steps are multiples of four bytes, so that the key starts anew at each border.
    let (words, tail) = tail.as_chunks_mut::<8>();
    for bytes in words {
        *bytes = (u64::from_ne_bytes(*bytes) ^ wide).to_ne_bytes();
    }
    let tail = match tail.split_first_chunk_mut::<4>() {
        Some((bytes, rest)) => {
            *bytes = (u32::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
            rest
        }
        None => tail,
    };
    for (byte, key) in tail.iter_mut().zip(key) {
        *byte ^= key;
    }
}

/// XORs each eight-byte word of one step with `wide`; the fixed length lets the compiler unroll it into vectors.
#[inline]
fn xor_words(step: &mut [u8; STEP_BYTES], wide: u64) {
    let (words, _) = step.as_chunks_mut::<8>();
    for bytes in words {
        *bytes = (u64::from_ne_bytes(*bytes) ^ wide).to_ne_bytes();
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    fn naive(payload: &mut [u8], key: [u8; 4]) {
        for (i, byte) in payload.iter_mut().enumerate() {
            *byte ^= key[i % 4];
        }
    }

    #[test]
    fn rfc_example() {
        let mut payload = *b"\x7f\x9f\x4d\x51\x58";
        unmask(&mut payload, [0x37, 0xfa, 0x21, 0x3d]);
        assert_eq!(&payload, b"Hello");
    }

    #[test]
    fn every_length_at_every_alignment_matches_the_naive_loop() {
        for key in [[0; 4], [1, 2, 3, 4], [0xFF; 4], [0x80, 0, 0x7F, 0xA5]] {
            for alignment in 0..STEP_BYTES {
                for len in (0..=100).chain([127, 128, 129, 255, 256, 257, 1000, 4099]) {
                    let original: Vec<u8> = (0..alignment + len + 8).map(|i| (i * 31 + 7) as u8).collect();
                    let mut fast = original.clone();
                    let mut slow = original.clone();
                    unmask(&mut fast[alignment..alignment + len], key);
                    naive(&mut slow[alignment..alignment + len], key);
                    assert_eq!(fast, slow, "key {key:?}, alignment {alignment}, length {len}");
                    unmask(&mut fast[alignment..alignment + len], key);
                    assert_eq!(fast, original, "its own inverse");
                }
            }
        }
    }
}
