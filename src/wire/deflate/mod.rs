//! permessage-deflate (RFC 7692): compressed messages without memory between them.
//!
//! In: the client's offers (from `upgrade.rs`), payloads of finished frames (from the engine), compressed payloads (from
//! `message.rs`). Out: the parameters of the answer, compressed payloads, and inflated messages.
//!
//! | file | what |
//! |---|---|
//! | `offer` | which of the client's offers is accepted, and the answer |
//! | `compressor` | payload to compressed payload or frame; one per shard |
//! | `inflater` | compressed payload to message, within limits; one per shard |
//!
//! Invariants
//! - Nothing is remembered from one message to the next, in either direction (both `no_context_takeover`): a connection
//!   costs one bit, a compressed frame is the same for every connection and can be shared by all of them.
//! - One window size, [`SERVER_WINDOW_BITS`], for every frame we make: an offer that wants a smaller one is declined.
//! - What a message inflates to is bounded in bytes and in ratio while it is inflated, not after.

mod compressor;
mod inflater;
mod offer;
#[cfg(test)]
mod tests;

pub use compressor::{Compressor, LEVEL};
pub use inflater::{INFLATE_KEEP_BYTES, InflateError, InflateLimits, InflateTotals, Inflater, RATIO_EXEMPT_BYTES};
pub use offer::{Deflate, accept_offer};

/// Base-two logarithm of the bytes of the window of server messages (RFC 7692 §7.1.2.1). Against the largest, 15, it
/// costs nothing up to 4 KiB of JSON, 3% at 16 KiB and 8% at 64 KiB. For that, clients that name a smaller window to save
/// memory need not be declined, down to this one, and the compressor works on 16 KiB instead of 128.
pub const SERVER_WINDOW_BITS: u8 = 12;

/// The same of client messages: whatever a client takes is inflated.
const CLIENT_WINDOW_BITS: u8 = 15;

/// What ends every compressed message and is left out on the wire (RFC 7692 §7.2.1): the length of an empty stored
/// block, which a sync flush leaves.
const TAIL: [u8; 4] = [0x00, 0x00, 0xFF, 0xFF];
