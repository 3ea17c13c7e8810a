//! The one place where the gateway reads the time.
//!
//! In: the kernel's clocks. Out: milliseconds for the engine, which has no clock of its own.

use ringway_sys::thread::monotonic_ns;

/// Milliseconds of CLOCK_MONOTONIC: only goes forward, starts anywhere.
pub fn now_ms() -> u64 {
    monotonic_ns() / 1_000_000
}

/// Milliseconds since 1970; may jump when the host's clock is set. Only for times that tokens and backends give.
pub fn unix_now_ms() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
