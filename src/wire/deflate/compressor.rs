//! Compresses payloads of server messages (RFC 7692 §7.2.1).
//!
//! In: the payload of a finished frame. Out: the compressed payload, or a whole frame, appended to the caller's buffer.
//! Invariants: the output depends on the payload alone, so that one frame serves every connection that negotiated
//! compression; memory is taken at the first use and kept, so one compressor belongs to a shard and not to a connection.

use alloc::boxed::Box;
use alloc::vec::Vec;

use zlib_rs::{Deflate, DeflateFlush};

use super::{SERVER_WINDOW_BITS, TAIL};
use crate::frame::{Opcode, write_compressed_server_header, write_server_header};

/// How hard is tried, 1 to 9. Broadcasts are compressed once and sent many times, so bytes count for more than work, as
/// long as the work is small. Counted with zlib-rs 0.6.8 on lists of JSON objects, bytes made and thousands of instructions:
///
/// | level | 1 KiB | 4 KiB |
/// |---|---|---|
/// | 1 | 505 B, 221 | 1,686 B, 303 |
/// | 2 | 402 B, 353 | 1,216 B, 478 |
/// | 4 | 393 B, 375 | 1,162 B, 569 |
/// | 6 | 386 B, 384 | 1,135 B, 606 |
/// | 9 | 382 B, 408 | 1,144 B, 733 |
///
/// Two thirds of the instructions at 1 KiB clear the hash table and do not depend on the level.
pub const LEVEL: i32 = 6;

/// Bytes that a payload may grow by: five for each stored block, the flush, and some to spare. Were it too small, the
/// output would be made in two steps.
const fn room_for(payload_len: usize) -> usize {
    payload_len + payload_len / 1024 + 64
}

/// See the file's header.
#[derive(Default)]
pub struct Compressor {
    stream: Option<Box<Deflate>>,
    /// The compressed payload of the frame at hand, since its length stands before it.
    payload: Vec<u8>,
}

impl Compressor {
    /// A compressor that takes its memory, about 260 KiB, when it is first used.
    pub const fn new() -> Self {
        Compressor { stream: None, payload: Vec::new() }
    }

    /// Appends the compressed `payload`: what stands behind the header of
    /// [`write_compressed_server_header`](crate::frame::write_compressed_server_header).
    ///
    /// It may be longer than the payload, by [about five bytes per 16 KiB](https://www.zlib.net/zlib_tech.html); an
    /// empty payload gives one byte (RFC 7692 §7.2.3.6).
    pub fn compress(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        let stream = self.stream.get_or_insert_with(|| Box::new(Deflate::new(LEVEL, false, SERVER_WINDOW_BITS)));
        stream.reset();
        let start = out.len();
        let mut filled = start;
        loop {
            out.resize(filled + room_for(payload.len()), 0);
            let taken = stream.total_in() as usize;
            let done = stream.compress(&payload[taken..], &mut out[filled..], DeflateFlush::SyncFlush);
            debug_assert!(done.is_ok(), "{done:?}: the stream was just reset");
            let before = filled;
            filled = start + stream.total_out() as usize;
            // Room that is left says that all is out, the flush too.
            if filled < out.len() || filled == before {
                break;
            }
        }
        debug_assert!(out[start..filled].ends_with(&TAIL), "a sync flush ends with an empty stored block");
        out.truncate(filled.saturating_sub(TAIL.len()).max(start));
    }

    /// Appends a whole server frame that holds `payload`: compressed, or as it is when compressing would not make it
    /// smaller, which a message of a connection with compression may be (RFC 7692 §6). Tells whether it is compressed.
    /// `opcode` is Text or Binary.
    pub fn write_frame(&mut self, out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) -> bool {
        let mut compressed = core::mem::take(&mut self.payload);
        compressed.clear();
        self.compress(payload, &mut compressed);
        let smaller = compressed.len() < payload.len();
        if smaller {
            write_compressed_server_header(out, opcode, compressed.len());
            out.extend_from_slice(&compressed);
        } else {
            write_server_header(out, opcode, payload.len());
            out.extend_from_slice(payload);
        }
        self.payload = compressed;
        smaller
    }
}

impl core::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Compressor").field("in_use", &self.stream.is_some()).finish_non_exhaustive()
    }
}
