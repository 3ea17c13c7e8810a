//! The one place where the gateway reads the time.
//!
//! In: the kernel's clocks. Out: milliseconds for the engine, which has no clock of its own.

use ringway_sys::thread::monotonic_ns;

/// Milliseconds of CLOCK_MONOTONIC: only goes forward, starts anywhere.
pub fn now_ms() -> u64 {
    monotonic_ns() / 1_000_000
}
