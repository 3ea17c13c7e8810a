//! The one place where the gateway reads the time.
//!
//! In: the kernel's clocks. Out: milliseconds: for the engine, which has no clock of its own, and for tokens, which
//! speak of days and years.

use std::time::{SystemTime, UNIX_EPOCH};

use ringway_sys::thread::monotonic_ns;

/// Milliseconds of CLOCK_MONOTONIC: only goes forward, starts anywhere.
pub fn now_ms() -> u64 {
    monotonic_ns() / 1_000_000
}

/// Milliseconds since 1970, as the host believes; jumps when its clock is set.
#[expect(clippy::disallowed_methods, reason = "the time of day has no other source")]
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
