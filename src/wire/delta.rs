//! Fossil deltas: what turns one publication into the next (CLIENT-PROTOCOL §13).
//!
//! In: two payloads from the channel's owner. Out: a delta for the subscribers that hold the first, or the word that
//! there is none worth sending. [`apply`] is the other direction, for tests and the load generator.
//!
//! ```text
//! delta    SIZE '\n' | command | command | ... | CHECKSUM ';'
//! command  COUNT ':' COUNT bytes       these bytes
//!          COUNT '@' OFFSET ','        COUNT bytes of the old payload from OFFSET on
//! ```
//! SIZE is that of the new payload, CHECKSUM the sum of its big-endian 32-bit words (the last one padded with zeros);
//! numbers are written in base 64, most significant digit first. The format is that of fossil-scm's `delta_create`, as
//! npm `fossil-delta` and the Centrifuge SDKs apply it; how matches are found is each encoder's own.
//!
//! Invariants: a delta is smaller than the new payload; a text's delta is UTF-8, because literals are whole characters;
//! work is O(new payload), with at most [`PROBES_MAX`] looks into the index per byte or end of a short match, plus the
//! making of that index, of at most [`BLOCKS_MAX`] entries.

use alloc::vec::Vec;
use core::fmt;

/// What a push says more when it carries a delta: `,"delta":true`, and the escape of the newline.
const SAVED_BYTES_MIN: usize = 14;
/// Payloads above this size get no delta. (Numbers of the format have 32 bits in JavaScript.)
const PAYLOAD_BYTES_MAX: usize = 1 << 30;
/// Bytes that must be equal before a match is looked at.
const WINDOW: usize = 8;
/// Every so many bytes of the old payload one window is indexed: matches of `WINDOW + STEP_MIN - 1` bytes are found.
const STEP_MIN: usize = 4;
/// Windows of the old payload that are indexed at most (12 bytes of memory each); longer payloads are indexed in longer
/// steps and give larger deltas.
pub const BLOCKS_MAX: usize = 1 << 16;
/// Windows with the same hash that are looked at for each byte of the new payload.
pub const PROBES_MAX: usize = 4;
/// A match of this length is taken without looking for a longer one across its end.
const LONG_BYTES: usize = 32;
/// After so many bytes without a match every second byte is looked at, after twice as many every third, and so on.
const MISSES_PER_STEP: usize = 64;
/// Between a common start and a common end, fewer bytes than this are sent as they are: indexing would cost more.
const SEARCHED_BYTES_MIN: usize = 32;
/// Bytes of the head of a short literal. A copy in the middle of a literal makes two of one.
const LITERAL_HEAD_BYTES: usize = 2;
/// End of a chain of windows.
const NONE: u32 = u32::MAX;

/// Makes deltas. Keeps its index between calls, so that making one allocates nothing in the long run.
#[derive(Debug, Default)]
pub struct DeltaEncoder {
    /// The last indexed window of each hash; a power of two long, with room so that most hashes have none.
    heads: Vec<u32>,
    /// For each window the one before it with the same hash.
    next: Vec<u32>,
    /// Bytes between two windows.
    step: usize,
}

impl DeltaEncoder {
    /// Appends to `out` the delta that turns `old` into `new`. False, and nothing appended, if there is none that saves
    /// enough to be worth sending, or, with `text`, if `new` is not UTF-8: then the whole payload is to be sent. With
    /// `text` the delta is UTF-8, as the JSON form needs it.
    pub fn create(&mut self, old: &[u8], new: &[u8], text: bool, out: &mut Vec<u8>) -> bool {
        if old.len() > PAYLOAD_BYTES_MAX || new.len() > PAYLOAD_BYTES_MAX || new.len() <= SAVED_BYTES_MIN {
            return false;
        }
        if text && core::str::from_utf8(new).is_err() {
            return false;
        }
        let start = out.len();
        let mut delta =
            Delta { old, new, text, done: 0, follows: 0, out, out_end: start + new.len() - SAVED_BYTES_MIN };
        let small = self.write(&mut delta);
        if !small {
            out.truncate(start);
        }
        small
    }

    /// Whether the delta became small enough.
    fn write(&mut self, delta: &mut Delta<'_>) -> bool {
        let (old, new) = (delta.old, delta.new);
        write_number(delta.out, new.len());
        delta.out.push(b'\n');

        // Most payloads of a channel differ in one place: what stands before and behind it needs no search.
        let prefix = delta.trimmed(Match { at: 0, len: common_prefix(old, new), offset: 0 });
        let prefix = if prefix.is_worth_it() { prefix } else { Match { len: 0, ..prefix } };
        let suffix_len = common_suffix(&old[prefix.len..], &new[prefix.len..]);
        let suffix =
            delta.trimmed(Match { at: new.len() - suffix_len, len: suffix_len, offset: old.len() - suffix_len });
        let suffix = if suffix.is_worth_it() { suffix } else { Match { at: new.len(), len: 0, offset: 0 } };

        delta.copy(prefix);
        if suffix.at - delta.done >= SEARCHED_BYTES_MIN && old.len() >= WINDOW {
            self.index(old);
            self.search(delta, suffix.at);
        }
        delta.copy(suffix);
        delta.literal(new.len());
        write_number(delta.out, checksum(new) as usize);
        delta.out.push(b';');
        delta.is_small()
    }

    /// Indexes windows of `old`, which must hold one at least.
    fn index(&mut self, old: &[u8]) {
        self.step = old.len().div_ceil(BLOCKS_MAX).max(STEP_MIN);
        let blocks = (old.len() - WINDOW) / self.step + 1;
        self.heads.clear();
        self.heads.resize(2 * blocks.next_power_of_two(), NONE);
        self.next.clear();
        for block in 0..blocks {
            let slot = self.slot(window(old, block * self.step));
            self.next.push(self.heads[slot]);
            self.heads[slot] = block as u32;
        }
    }

    #[inline]
    fn slot(&self, window: u64) -> usize {
        const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;
        (window.wrapping_mul(MULTIPLIER) >> 32) as usize & (self.heads.len() - 1)
    }

    /// Writes literals and copies up to `end` or a little before it.
    fn search(&self, delta: &mut Delta<'_>, end: usize) {
        let mut at = delta.done;
        while at + WINDOW <= end && delta.is_small() {
            let Some(mut best) = self.longest(delta, at, end) else {
                // The longer nothing was found, the longer the steps: a match is found a little late, and reaches back.
                at += 1 + (at - delta.done) / MISSES_PER_STEP;
                continue;
            };
            // Payloads are full of short matches, such as the same key of another row. One that goes on behind the end
            // of a short one, and so has a window across that end, is longer.
            while best.len < LONG_BYTES {
                // A match that was trimmed to whole characters can be shorter than a window.
                let across = (best.at + best.len + 1).saturating_sub(WINDOW).max(delta.done);
                let found = (across..across + STEP_MIN)
                    .filter(|at| at + WINDOW <= end)
                    .filter_map(|at| self.longest(delta, at, end))
                    .max_by_key(|found| found.len);
                match found {
                    Some(found) if found.len > best.len => best = found,
                    _ => break,
                }
            }
            delta.copy(best);
            at = delta.done;
        }
    }

    /// The longest match around the window at `at`, of those that are looked at.
    fn longest(&self, delta: &Delta<'_>, at: usize, end: usize) -> Option<Match> {
        let (old, here) = (delta.old, window(delta.new, at));
        let mut best: Option<Match> = None;
        let mut look = |offset: usize| {
            if offset <= old.len() - WINDOW && window(old, offset) == here {
                let found = delta.around(at, offset, end);
                if found.is_worth_it() && best.is_none_or(|best| found.len > best.len) {
                    best = Some(found);
                }
            }
        };
        // Behind a change, payloads often go on where the copy before ended, or are the same up to their end.
        look(delta.follows + (at - delta.done));
        look((at + old.len()).wrapping_sub(delta.new.len()));
        let mut block = self.heads[self.slot(here)];
        for _ in 0..PROBES_MAX {
            if block == NONE {
                break;
            }
            look(block as usize * self.step);
            block = self.next[block as usize];
        }
        best
    }
}

/// The same bytes in both payloads.
#[derive(Clone, Copy)]
struct Match {
    /// Where in the new payload.
    at: usize,
    len: usize,
    /// Where in the old payload.
    offset: usize,
}

impl Match {
    /// Whether a copy takes fewer bytes than a literal would.
    fn is_worth_it(&self) -> bool {
        self.len > digits(self.len) + 1 + digits(self.offset) + 1 + LITERAL_HEAD_BYTES
    }
}

/// A delta that is being written.
struct Delta<'a> {
    old: &'a [u8],
    new: &'a [u8],
    text: bool,
    /// Bytes of the new payload that are written.
    done: usize,
    /// Where the last copy ended in the old payload.
    follows: usize,
    out: &'a mut Vec<u8>,
    /// The length that `out` must not exceed.
    out_end: usize,
}

impl Delta<'_> {
    fn is_small(&self) -> bool {
        self.out.len() <= self.out_end
    }

    /// Writes what is between, and a copy.
    fn copy(&mut self, copy: Match) {
        if copy.len == 0 {
            return;
        }
        self.literal(copy.at);
        write_number(self.out, copy.len);
        self.out.push(b'@');
        write_number(self.out, copy.offset);
        self.out.push(b',');
        self.done = copy.at + copy.len;
        self.follows = copy.offset + copy.len;
    }

    /// Writes what is not written yet before `end`, as it is.
    fn literal(&mut self, end: usize) {
        let bytes = &self.new[self.done..end];
        if !bytes.is_empty() {
            write_number(self.out, bytes.len());
            self.out.push(b':');
            self.out.extend_from_slice(bytes);
            self.done = end;
        }
    }

    /// The match around two equal windows: back to what is written, and up to `end`.
    fn around(&self, at: usize, offset: usize, end: usize) -> Match {
        let (old, new) = (self.old, self.new);
        let ahead = WINDOW + common_prefix(&old[offset + WINDOW..], &new[at + WINDOW..end]);
        let back = common_suffix(&old[..offset], &new[self.done..at]);
        self.trimmed(Match { at: at - back, len: back + ahead, offset: offset - back })
    }

    /// Makes a match in a text begin and end between two characters, so that the literals around it are UTF-8.
    fn trimmed(&self, mut found: Match) -> Match {
        while found.len > 0 && !self.between_characters(found.at) {
            found = Match { at: found.at + 1, len: found.len - 1, offset: found.offset + 1 };
        }
        while found.len > 0 && !self.between_characters(found.at + found.len) {
            found.len -= 1;
        }
        found
    }

    #[inline]
    fn between_characters(&self, at: usize) -> bool {
        // Bytes that go on with a character are 0b10xxxxxx.
        !self.text || self.new.get(at).is_none_or(|byte| byte & 0xC0 != 0x80)
    }
}

/// Why a delta cannot be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeltaError {
    /// Not the format, or cut off.
    Malformed,
    /// The new payload would be larger than allowed.
    TooLarge,
    /// A copy of bytes that the old payload does not have.
    CopyBeyondOld,
    /// The commands give another size than the delta announces.
    WrongSize,
    /// The result is not what the delta was made for: the old payload is another one.
    WrongChecksum,
}

impl fmt::Display for DeltaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DeltaError::Malformed => "malformed delta",
            DeltaError::TooLarge => "the delta's result is larger than allowed",
            DeltaError::CopyBeyondOld => "the delta copies beyond the end of the old payload",
            DeltaError::WrongSize => "the delta's result has another size than announced",
            DeltaError::WrongChecksum => "the delta's result has another checksum than announced",
        })
    }
}

impl core::error::Error for DeltaError {}

/// Turns `old` into the payload that `delta` was made for, in `out`, whose content before is lost. A result of more than
/// `payload_bytes_max` bytes is refused. Memory is taken for what is there, not for what is announced.
pub fn apply(old: &[u8], delta: &[u8], payload_bytes_max: usize, out: &mut Vec<u8>) -> Result<(), DeltaError> {
    out.clear();
    let mut reader = Reader(delta);
    let size = reader.number()?;
    reader.expect(b'\n')?;
    if size > payload_bytes_max {
        return Err(DeltaError::TooLarge);
    }
    loop {
        let count = reader.number()?;
        let bytes = match reader.byte()? {
            b'@' => {
                let offset = reader.number()?;
                reader.expect(b',')?;
                let from = old.get(offset..).ok_or(DeltaError::CopyBeyondOld)?;
                from.get(..count).ok_or(DeltaError::CopyBeyondOld)?
            }
            b':' => reader.take(count)?,
            b';' if !reader.0.is_empty() => return Err(DeltaError::Malformed),
            b';' if out.len() != size => return Err(DeltaError::WrongSize),
            b';' if checksum(out) as usize != count => return Err(DeltaError::WrongChecksum),
            b';' => return Ok(()),
            _ => return Err(DeltaError::Malformed),
        };
        if bytes.len() > size - out.len() {
            return Err(DeltaError::WrongSize);
        }
        out.extend_from_slice(bytes);
    }
}

/// What is still to be read of a delta.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8, DeltaError> {
        let (&byte, rest) = self.0.split_first().ok_or(DeltaError::Malformed)?;
        self.0 = rest;
        Ok(byte)
    }

    fn expect(&mut self, byte: u8) -> Result<(), DeltaError> {
        if self.byte()? == byte { Ok(()) } else { Err(DeltaError::Malformed) }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], DeltaError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(DeltaError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    /// A number of 32 bits at most.
    fn number(&mut self) -> Result<usize, DeltaError> {
        let mut value: u32 = 0;
        let mut any = false;
        while let Some(digit) = self.0.first().and_then(|&byte| digit_value(byte)) {
            if value > u32::MAX >> DIGIT_BITS {
                return Err(DeltaError::Malformed);
            }
            value = value << DIGIT_BITS | digit;
            any = true;
            self.0 = &self.0[1..];
        }
        if any { Ok(value as usize) } else { Err(DeltaError::Malformed) }
    }
}

const DIGIT_BITS: u32 = 6;
const DIGITS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~";

fn digit_value(byte: u8) -> Option<u32> {
    let (first, value) = match byte {
        b'0'..=b'9' => (b'0', 0),
        b'A'..=b'Z' => (b'A', 10),
        b'_' => (b'_', 36),
        b'a'..=b'z' => (b'a', 37),
        b'~' => (b'~', 63),
        _ => return None,
    };
    Some(u32::from(byte - first) + value)
}

/// Digits of a number below 2^32.
#[inline]
fn digits(value: usize) -> usize {
    (u32::BITS - (value as u32 | 1).leading_zeros()).div_ceil(DIGIT_BITS) as usize
}

/// Appends a number below 2^32.
fn write_number(out: &mut Vec<u8>, value: usize) {
    for place in (0..digits(value)).rev() {
        out.push(DIGITS[value >> (place as u32 * DIGIT_BITS) & 63]);
    }
}

/// Sum of the big-endian 32-bit words, the last one padded with zeros.
fn checksum(bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<4>();
    let sum = words.iter().fold(0_u32, |sum, word| sum.wrapping_add(u32::from_be_bytes(*word)));
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum.wrapping_add(u32::from_be_bytes(last))
}

/// The window at `at`, which must be inside.
#[inline]
fn window(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |window| u64::from_le_bytes(*window))
}

/// How many bytes are equal at the start.
fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let mut len = 0;
    while let (Some(x), Some(y)) = (a[len..].first_chunk(), b[len..].first_chunk()) {
        let differ = u64::from_le_bytes(*x) ^ u64::from_le_bytes(*y);
        if differ != 0 {
            return len + differ.trailing_zeros() as usize / 8;
        }
        len += WINDOW;
    }
    len + a[len..].iter().zip(&b[len..]).take_while(|(x, y)| x == y).count()
}

/// How many bytes are equal at the end.
fn common_suffix(mut a: &[u8], mut b: &[u8]) -> usize {
    let mut len = 0;
    while let (Some((a_rest, x)), Some((b_rest, y))) = (a.split_last_chunk(), b.split_last_chunk()) {
        let differ = u64::from_le_bytes(*x) ^ u64::from_le_bytes(*y);
        if differ != 0 {
            return len + differ.leading_zeros() as usize / 8;
        }
        len += WINDOW;
        (a, b) = (a_rest, b_rest);
    }
    len + a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count()
}

#[cfg(test)]
mod tests;
