//! JSON strings: where their plain part ends, and what their escapes stand for.
//!
//! In: bytes of a JSON text from `json_scan`, or of a string to be written from `json`. Out: lengths, and strings
//! without escapes.
//!
//! Invariants: nothing reads beyond the slice it was given; a resolved string is UTF-8 and no longer than its text.

use alloc::string::String;
use alloc::vec::Vec;

use super::command::CommandError;

/// How many bytes at the start of `text` may stand in a JSON string as they are: no quote, backslash or control.
#[inline]
pub(super) fn plain_len(text: &[u8]) -> usize {
    // Most keys and values end in the first word.
    match text.first_chunk() {
        Some(word) if special(*word) != 0 => first_special(*word),
        Some(_) => WORD + plain_len_long(&text[WORD..]),
        None => plain_len_tail(text),
    }
}

/// Bytes looked at together.
const WORD: usize = 8;
/// Bytes looked at together in long strings; the compiler makes vector instructions of it.
const BLOCK: usize = 32;

fn plain_len_long(text: &[u8]) -> usize {
    let mut at = 0;
    while let Some(block) = text[at..].first_chunk::<BLOCK>() {
        if block.iter().fold(false, |found, &byte| found | is_special(byte)) {
            break;
        }
        at += BLOCK;
    }
    while let Some(word) = text[at..].first_chunk() {
        if special(*word) != 0 {
            return at + first_special(*word);
        }
        at += WORD;
    }
    at + plain_len_tail(&text[at..])
}

fn plain_len_tail(text: &[u8]) -> usize {
    text.iter().take_while(|&&byte| !is_special(byte)).count()
}

#[inline]
fn is_special(byte: u8) -> bool {
    (byte < b' ') | (byte == b'"') | (byte == b'\\')
}

/// A word with the high bit set in the first byte that is special (and possibly in some behind it).
#[inline]
fn special(word: [u8; WORD]) -> u64 {
    const ONES: u64 = u64::from_le_bytes([1; WORD]);
    let word = u64::from_le_bytes(word);
    // A subtraction sets the high bit of bytes below the bound; it borrows only from bytes behind a hit. Bytes that
    // had the bit before are not below.
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    let below = (quote.wrapping_sub(ONES) & !quote)
        | (backslash.wrapping_sub(ONES) & !backslash)
        | (word.wrapping_sub(ONES * b' ' as u64) & !word);
    below & (ONES << 7)
}

#[inline]
fn first_special(word: [u8; WORD]) -> usize {
    special(word).trailing_zeros() as usize / 8
}

/// Resolves the escapes of a string that `json_scan` has checked. A surrogate without its pair becomes
/// U+FFFD, as JavaScript strings do when they turn into UTF-8.
#[cold]
pub(super) fn unescape(raw: &[u8]) -> Result<String, CommandError> {
    // An escape is at least as long as what it stands for, so the received length is enough.
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        out.extend_from_slice(&rest[..at]);
        let (byte, len) = match rest.get(at + 1) {
            Some(b'b') => (8, 2),
            Some(b'f') => (12, 2),
            Some(b'n') => (b'\n', 2),
            Some(b'r') => (b'\r', 2),
            Some(b't') => (b'\t', 2),
            Some(b'u') => {
                let (character, len) = unicode_escape(&rest[at..]);
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                rest = &rest[at + len..];
                continue;
            }
            Some(&byte) => (byte, 2),
            None => return Err(CommandError::Malformed),
        };
        out.push(byte);
        rest = &rest[at + len..];
    }
    out.extend_from_slice(rest);
    String::from_utf8(out).map_err(|_| CommandError::Utf8)
}

/// The character of a `\uXXXX`, or of a surrogate pair, and its length in the text.
fn unicode_escape(text: &[u8]) -> (char, usize) {
    let high = code_unit(text);
    if let Some(high @ 0xD800..=0xDBFF) = high
        && let Some(low @ 0xDC00..=0xDFFF) = text.get(6..).and_then(code_unit)
    {
        let scalar = 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
        return (char::from_u32(scalar).unwrap_or(char::REPLACEMENT_CHARACTER), 12);
    }
    (high.and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER), 6)
}

/// The number of a `\uXXXX` at the start of `text`.
fn code_unit(text: &[u8]) -> Option<u32> {
    let hex = text.get(..6)?.strip_prefix(b"\\u")?;
    hex.iter().try_fold(0, |value, &digit| Some(value << 4 | (digit as char).to_digit(16)?))
}
