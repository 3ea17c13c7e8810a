//! Tests of deltas: round trips, sizes, texts, and broken deltas. Against other implementations: `tests/delta_interop.rs`.
//!
//! In: payloads as channels have them, and random ones (proptest prints the seed of a failure). Out: panics.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;

const BYTES_MAX: usize = 1 << 22;

/// The delta, if one is worth sending; checked.
fn delta(encoder: &mut DeltaEncoder, old: &[u8], new: &[u8], text: bool) -> Option<Vec<u8>> {
    let mut out = b"before".to_vec();
    let made = encoder.create(old, new, text, &mut out);
    let delta = out.split_off(6);
    assert_eq!(out, b"before");
    if !made {
        assert!(delta.is_empty());
        return None;
    }
    assert!(delta.len() + SAVED_BYTES_MIN <= new.len());
    if text {
        core::str::from_utf8(&delta).expect("the delta of a text is a text");
    }
    let mut applied = b"old content".to_vec();
    apply(old, &delta, new.len(), &mut applied).expect("a delta can be applied");
    assert!(applied == new, "the delta gives the new payload");
    Some(delta)
}

fn text_delta(old: &str, new: &str) -> Option<String> {
    let mut encoder = DeltaEncoder::default();
    delta(&mut encoder, old.as_bytes(), new.as_bytes(), true).map(|delta| String::from_utf8(delta).unwrap())
}

/// A table of prices, as a channel would send it whole each time.
fn table(rows: usize, price: impl Fn(usize) -> usize) -> String {
    let rows: Vec<String> =
        (0..rows).map(|row| format!(r#"{{"id":{row},"name":"Zürich {row}","price":{}}}"#, price(row))).collect();
    format!("[{}]", rows.join(","))
}

#[test]
fn golden_deltas() {
    assert_eq!(checksum(b""), 0);
    assert_eq!(checksum(b"\x01\x02\x03\x04\x05"), 0x0602_0304);
    assert_eq!(checksum(b"\xff\xff\xff\xff\0\0\0\x02"), 1);
    let old = r#"{"home":"Arsenal","away":"Chelsea","minute":41,"score":"1-0"}"#;
    let new = r#"{"home":"Arsenal","away":"Chelsea","minute":42,"score":"1-0"}"#;
    assert_eq!(old.len(), 61);
    // 61 bytes: 45 from 0, the byte `2`, 15 from 46. The checksum is that of npm `fossil-delta`.
    assert_eq!(text_delta(old, new).unwrap(), "y\ni@0,1:2F@j,2cANE1;");
    assert_eq!(text_delta(old, old).unwrap(), "y\ny@0,2cA7E1;");
}

#[test]
fn what_is_too_small_or_too_different_is_sent_whole() {
    for (old, new) in [
        ("", ""),
        ("", "something that is not there yet"),
        ("something", ""),
        ("short", "short"),
        ("abcdefghijklmnopqrstuvwxyz", "0123456789 other 0123456789"),
        ("abcdefghijklmnopqrst", "abcdefghijklmnopqrstuvwxyz0123"),
    ] {
        assert_eq!(text_delta(old, new), None, "{old:?} {new:?}");
    }
}

#[test]
fn one_change_or_several_are_small_deltas() {
    let old = table(50, |row| 1000 + row);
    let one = table(50, |row| if row == 17 { 7 } else { 1000 + row });
    let len = text_delta(&old, &one).unwrap().len();
    assert!(len < 30, "{len} of {}", one.len());
    // Every tenth row, with values of the same length and of another.
    for value in [9999, 123_456] {
        let five = table(50, |row| if row % 10 == 3 { value } else { 1000 + row });
        let len = text_delta(&old, &five).unwrap().len();
        assert!(len < 140, "{len} of {}", five.len());
    }
    // Rows that moved.
    let (head, tail) = old.split_at(old.len() / 2);
    let moved = format!("{tail}{head}");
    let len = text_delta(&old, &moved).unwrap().len();
    assert!(len < 40, "{len} of {}", moved.len());
}

#[test]
fn texts_are_cut_between_characters() {
    // Characters that share their first or their last bytes: ä and ö, U+1F600 and U+1F601, and U+1F600 and U+10600.
    let start = "ein ganz gewöhnlicher Anfang, lang genug ";
    let end = " und ein ebenso gewöhnliches Ende davon";
    for (a, b) in [("ä", "ö"), ("😀", "😁"), ("😀", "\u{10600}"), ("é", "\u{169}"), ("中", "丮"), ("", "ü")]
    {
        for (a, b) in [(a, b), (b, a)] {
            let (old, new) = (format!("{start}{a}{end}"), format!("{start}{b}{end}"));
            text_delta(&old, &new).expect("a delta");
            // Inside of what is searched as well.
            let many = |one: &str| (0..20).map(|i| format!("{i}{start}{one}{i}{one}{end}")).collect::<String>();
            text_delta(&many(a), &many(b)).expect("a delta");
        }
    }
    // Bytes do not care, and the same change takes fewer of them; but they are no text.
    let (old, new) = (format!("{start}ä{end}"), format!("{start}ö{end}"));
    let mut encoder = DeltaEncoder::default();
    let bytes = delta(&mut encoder, old.as_bytes(), new.as_bytes(), false).unwrap();
    assert!(bytes.len() < text_delta(&old, &new).unwrap().len());
    assert!(core::str::from_utf8(&bytes).is_err());
    let mut broken = new.clone().into_bytes();
    broken.push(0xC3);
    assert_eq!(delta(&mut encoder, old.as_bytes(), &broken, true), None);
    assert!(delta(&mut encoder, old.as_bytes(), &broken, false).is_some());
}

#[test]
fn huge_payloads_keep_the_index_bounded() {
    let mut encoder = DeltaEncoder::default();
    let mut state = 1_u64;
    let mut noise = |len: usize| -> Vec<u8> {
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect()
    };
    let old = noise(3 << 20);
    let mut new = old.clone();
    new.splice(1_000_000..1_000_010, noise(300));
    new.splice(2_000_000..2_000_000, noise(300));
    let len = delta(&mut encoder, &old, &new, false).unwrap().len();
    assert!(len < 800, "{len}");
    assert!(encoder.next.len() <= BLOCKS_MAX && encoder.heads.len() <= 2 * BLOCKS_MAX);
    assert_eq!(delta(&mut encoder, &old, &noise(1 << 20), false), None);
    // Bytes that are all the same are the worst for hash chains.
    let old = vec![b'a'; 1 << 20];
    let mut new = vec![b'a'; 1 << 20];
    new[1 << 19] = b'b';
    new[0] = b'b';
    new[(1 << 20) - 1] = b'b';
    assert!(delta(&mut encoder, &old, &new, true).unwrap().len() < 60);
}

#[test]
fn broken_deltas_are_refused() {
    let old = b"0123456789";
    let result = |delta: &str| {
        let mut out = Vec::new();
        apply(old, delta.as_bytes(), 100, &mut out).map(|()| out)
    };
    let end = |bytes: &[u8]| {
        let mut number = Vec::new();
        write_number(&mut number, checksum(bytes) as usize);
        String::from_utf8(number).unwrap()
    };
    assert_eq!(result("0\n0;"), Ok(vec![]));
    assert_eq!(result(&format!("3\n3@1,{};", end(b"123"))), Ok(b"123".to_vec()));
    assert_eq!(result(&format!("4\n2@8,2:xy{};", end(b"89xy"))), Ok(b"89xy".to_vec()));
    // An empty copy at the very end is one that the old payload has.
    assert_eq!(result("0\n0@A,0;"), Ok(vec![]));
    for (delta, error) in [
        ("", DeltaError::Malformed),
        ("\n", DeltaError::Malformed),
        ("3", DeltaError::Malformed),
        ("3\n", DeltaError::Malformed),
        ("3 ", DeltaError::Malformed),
        ("3\n3@1", DeltaError::Malformed),
        ("3\n3@1,", DeltaError::Malformed),
        ("3\n3@,0;", DeltaError::Malformed),
        ("3\n@1,0;", DeltaError::Malformed),
        ("3\n3:ab", DeltaError::Malformed),
        ("3\n3#abc", DeltaError::Malformed),
        ("0\n0;0", DeltaError::Malformed),
        ("0\n;", DeltaError::Malformed),
        ("~~~~~~~\n", DeltaError::Malformed),
        ("40000000000\n0;", DeltaError::Malformed),
        ("3~~~~~\n3:abc", DeltaError::TooLarge),
        ("1b\n0;", DeltaError::TooLarge),
        ("3\n3@8,0;", DeltaError::CopyBeyondOld),
        ("3\n3@B,0;", DeltaError::CopyBeyondOld),
        ("3\n3~~~~~@0,0;", DeltaError::CopyBeyondOld),
        ("3\n1@3~~~~~,0;", DeltaError::CopyBeyondOld),
        ("3\n3~~~~~:abc", DeltaError::Malformed),
        ("3\n2@0,0;", DeltaError::WrongSize),
        ("3\n4@0,0;", DeltaError::WrongSize),
        ("3\n3@1,0;", DeltaError::WrongChecksum),
    ] {
        assert_eq!(result(delta), Err(error), "{delta:?}: {error}");
    }
}

#[test]
fn numbers_in_base_64() {
    for (value, text) in [
        (0, "0"),
        (9, "9"),
        (10, "A"),
        (36, "_"),
        (37, "a"),
        (63, "~"),
        (64, "10"),
        (4095, "~~"),
        (u32::MAX as usize, "3~~~~~"),
    ] {
        let mut out = Vec::new();
        write_number(&mut out, value);
        assert_eq!(out, text.as_bytes());
        assert_eq!(digits(value), text.len());
        assert_eq!(Reader(text.as_bytes()).number(), Ok(value));
    }
    for byte in 0..=255 {
        let place = DIGITS.iter().position(|&digit| digit == byte);
        assert_eq!(digit_value(byte), place.map(|place| place as u32));
    }
}

/// A payload and what became of it: pieces of it, in any order, with other things between them.
fn edited<T: Clone + fmt::Debug + 'static>(
    item: impl Strategy<Value = T> + Clone + 'static,
) -> impl Strategy<Value = (Vec<T>, Vec<T>)> {
    let piece = (any::<prop::sample::Index>(), 0..200_usize, proptest::collection::vec(item.clone(), 0..20));
    (proptest::collection::vec(item, 0..600), proptest::collection::vec(piece, 0..8)).prop_map(|(old, pieces)| {
        let mut new = Vec::new();
        for (from, len, other) in pieces {
            if !old.is_empty() {
                let from = from.index(old.len());
                new.extend_from_slice(&old[from..(from + len).min(old.len())]);
            }
            new.extend(other);
        }
        (old, new)
    })
}

#[test]
fn a_match_that_was_trimmed_below_a_window_has_nothing_across_its_end() {
    let mut encoder = DeltaEncoder::default();
    let new = "àà\0a0à\u{10000}\u{10000} ¡à\0à à àa";
    // An old payload that ends in the middle of a character.
    let old = "àà à àà\0a0à".as_bytes();
    delta(&mut encoder, &old[..old.len() - 1], new.as_bytes(), true);
}

proptest! {
    #[test]
    fn round_trip_of_bytes((old, new) in edited(prop_oneof![any::<u8>(), 0..3_u8])) {
        let mut encoder = DeltaEncoder::default();
        delta(&mut encoder, &old, &new, false);
        // The index of another payload must not matter.
        delta(&mut encoder, &new, &old, false);
        delta(&mut encoder, &old, &new, true);
        if old.len() > 40 {
            prop_assert!(delta(&mut encoder, &old, &old, false).is_some());
        }
    }

    #[test]
    fn round_trip_of_texts((old, new) in edited(prop_oneof![any::<char>(), prop::char::range('\u{e0}', '\u{ff}')])) {
        let (old, new): (String, String) = (old.into_iter().collect(), new.into_iter().collect());
        let mut encoder = DeltaEncoder::default();
        delta(&mut encoder, old.as_bytes(), new.as_bytes(), true);
        delta(&mut encoder, old.as_bytes(), new.as_bytes(), false);
        // An old payload that is no text harms nobody.
        let mut broken = old.into_bytes();
        broken.truncate(broken.len().saturating_sub(1));
        delta(&mut encoder, &broken, new.as_bytes(), true);
    }

    #[test]
    fn changed_deltas_are_refused_or_bounded(
        (old, new) in edited(0..3_u8),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = Vec::new();
        if DeltaEncoder::default().create(&old, &new, false, &mut bytes) {
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let mut out = Vec::new();
            let _ = apply(&old, &bytes, BYTES_MAX, &mut out);
            prop_assert!(out.len() <= BYTES_MAX);
            prop_assert!(apply(&old, &bytes[..at], BYTES_MAX, &mut out).is_err());
        }
    }

    #[test]
    fn common_ends_are_the_longest((a, b) in edited(0..2_u8)) {
        let (prefix, suffix) = (common_prefix(&a, &b), common_suffix(&a, &b));
        prop_assert_eq!(&a[..prefix], &b[..prefix]);
        prop_assert!(a.get(prefix) != b.get(prefix) || prefix == a.len());
        prop_assert_eq!(&a[a.len() - suffix..], &b[b.len() - suffix..]);
        let before = |bytes: &[u8]| bytes.iter().rev().nth(suffix).copied();
        prop_assert!(before(&a) != before(&b) || suffix == a.len());
    }
}
