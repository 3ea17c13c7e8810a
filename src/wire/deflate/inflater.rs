//! Inflates compressed messages of clients (RFC 7692 §7.2.2), within limits.
//!
//! In: the payload of a compressed message, fragments joined, from `message.rs`. Out: the message, in this inflater's own
//! buffer until its next use.
//! Invariants
//! - Work and memory stop at the limit, not behind it; memory grows with what comes out and never with what is announced.
//! - Every message begins with an empty window, so one inflater serves all connections of a shard.
//! - A payload that does not end where a DEFLATE block ends is refused, and with it everything that was cut off.

use alloc::boxed::Box;
use alloc::vec::Vec;

use zlib_rs::{Inflate, InflateFlush, Status};

use super::{CLIENT_WINDOW_BITS, TAIL};

/// Bytes that a message may inflate to whatever its ratio: a few zeros in a row are no attack.
pub const RATIO_EXEMPT_BYTES: usize = 64 * 1024;

/// Bytes of output buffer that are kept between messages. What a longer message needed is freed behind it.
pub const INFLATE_KEEP_BYTES: usize = 64 * 1024;

/// Bytes of the first output buffer.
const BUFFER_BYTES_MIN: usize = 4 * 1024;

/// What is put behind a payload: the four bytes that its sender left out, and a last block, empty. The decoder reports
/// the last block's end only if the payload ended where a block may begin.
const ENDING: [u8; 9] = [TAIL[0], TAIL[1], TAIL[2], TAIL[3], 0x01, 0x00, 0x00, 0xFF, 0xFF];

/// How much may come out of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InflateLimits {
    /// Bytes of the inflated message.
    pub message_bytes_max: usize,
    /// Bytes that one compressed byte may become, on the average of a message; DEFLATE itself ends at 1032. Messages of
    /// up to [`RATIO_EXEMPT_BYTES`] are exempt.
    pub ratio_max: u32,
}

/// Why a compressed message is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InflateError {
    /// It would be longer than `message_bytes_max`.
    TooBig,
    /// It would be more than `ratio_max` times as long as what was sent.
    Ratio,
    /// It is no DEFLATE, or is cut off, or refers to what stood before its first byte.
    Corrupt,
}

/// What an inflater has done since it was last asked; what it did for messages that it then refused is in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InflateTotals {
    /// Messages that were inflated, and not refused.
    pub messages: u64,
    /// Compressed bytes taken.
    pub bytes_in: u64,
    /// Bytes made of them.
    pub bytes_out: u64,
}

impl InflateTotals {
    /// How much work it was, in bytes made. A byte taken counts too, as blocks without content cost time and give
    /// nothing: 64 KiB of empty blocks, each with a code table of its own, take as long as 1 MiB of ordinary JSON to make.
    pub const fn work_bytes(&self) -> u64 {
        self.bytes_out + 16 * self.bytes_in
    }
}

/// See the file's header. Eight bytes, and nothing else before its first use.
#[derive(Default)]
pub struct Inflater(Option<Box<Parts>>);

struct Parts {
    stream: Inflate,
    /// All of it may be written to; the message at hand is its front.
    buffer: Vec<u8>,
    totals: InflateTotals,
}

impl Inflater {
    /// An inflater that takes its memory, about 50 KiB and the longest message's bytes, when it is first used.
    pub const fn new() -> Self {
        Inflater(None)
    }

    /// Inflates the payload of one message. The result stays until the next call of this or of [`Inflater::release`].
    ///
    /// # Errors
    /// See [`InflateError`]. The inflater itself stays usable.
    pub fn inflate(&mut self, payload: &[u8], limits: &InflateLimits) -> Result<&mut [u8], InflateError> {
        let parts = self.0.get_or_insert_with(|| {
            Box::new(Parts {
                stream: Inflate::new(false, CLIENT_WINDOW_BITS),
                buffer: Vec::new(),
                totals: InflateTotals::default(),
            })
        });
        let by_ratio = payload.len().saturating_mul(limits.ratio_max as usize).max(RATIO_EXEMPT_BYTES);
        let bytes_max = limits.message_bytes_max.min(by_ratio);
        let over = if bytes_max < limits.message_bytes_max { InflateError::Ratio } else { InflateError::TooBig };

        let filled = parts.run(payload, bytes_max, over)?;
        parts.totals.messages += 1;
        Ok(&mut parts.buffer[..filled])
    }

    /// Frees the memory of a long message that has been handled.
    #[inline]
    pub fn release(&mut self) {
        if let Some(parts) = &mut self.0
            && parts.buffer.len() > INFLATE_KEEP_BYTES
        {
            parts.buffer = Vec::new();
        }
    }

    /// Bytes of the buffer that is held at the moment, for tests and memory reports.
    pub fn buffer_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |parts| parts.buffer.len())
    }

    /// What was done since the last call.
    #[inline]
    pub fn take_totals(&mut self) -> InflateTotals {
        self.0.as_mut().map_or_else(InflateTotals::default, |parts| core::mem::take(&mut parts.totals))
    }
}

impl Parts {
    /// Fills the buffer's front; gives how many bytes the message has.
    fn run(&mut self, payload: &[u8], bytes_max: usize, over: InflateError) -> Result<usize, InflateError> {
        let mut filled = 0;
        let mut ended = false;
        self.stream.reset(false);
        for mut rest in [payload, &ENDING] {
            ended = false;
            loop {
                // One byte more than may come out shows that too much does.
                let room = self.room(filled, bytes_max.saturating_add(1));
                let (taken, made) = (self.stream.total_in(), self.stream.total_out());
                let status = self
                    .stream
                    .decompress(rest, &mut self.buffer[filled..room], InflateFlush::NoFlush)
                    .map_err(|_| InflateError::Corrupt)?;
                let taken = (self.stream.total_in() - taken) as usize;
                let made = (self.stream.total_out() - made) as usize;
                rest = &rest[taken..];
                filled += made;
                self.totals.bytes_in += taken as u64;
                self.totals.bytes_out += made as u64;
                if filled > bytes_max {
                    return Err(over);
                }
                if status == Status::StreamEnd {
                    // A last block need not be the last (§7.2.3.4): what follows begins anew at the next byte.
                    self.stream.reset(false);
                    ended = true;
                    if rest.is_empty() {
                        break;
                    }
                    ended = false;
                } else if rest.is_empty() && (filled < room || made == 0) {
                    break;
                } else if taken == 0 && made == 0 {
                    return Err(InflateError::Corrupt);
                }
            }
        }
        if ended { Ok(filled) } else { Err(InflateError::Corrupt) }
    }

    /// Sees to it that there is room behind `filled`, up to `end_max` bytes; gives where it ends.
    fn room(&mut self, filled: usize, end_max: usize) -> usize {
        if filled == self.buffer.len() {
            let longer = (filled * 2).max(BUFFER_BYTES_MIN).min(end_max.max(BUFFER_BYTES_MIN));
            self.buffer.resize(longer, 0);
        }
        self.buffer.len().min(end_max)
    }
}

impl core::fmt::Debug for Inflater {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Inflater").field("buffer_bytes", &self.buffer_bytes()).finish_non_exhaustive()
    }
}
