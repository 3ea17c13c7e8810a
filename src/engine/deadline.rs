//! A time at which something is due, or never, in 4 bytes: every connection has several.
//!
//! In and out: milliseconds of the shard's clock. Invariant: never earlier than it was set, and less than [`TICK_MS`] later,
//! which is as exact as the timing wheel is.

use core::num::NonZeroU32;

use crate::limits::TICK_MS;

/// See the file's header. Reaches 13 years; what would be later is never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deadline(Option<NonZeroU32>);

impl Deadline {
    /// Nothing is due.
    pub const NEVER: Deadline = Deadline(None);

    /// Due at this time; 0 counts as the first tick.
    pub fn at_ms(at_ms: u64) -> Self {
        Deadline(u32::try_from(at_ms.div_ceil(TICK_MS).max(1)).ok().and_then(NonZeroU32::new))
    }

    /// When it is due; none: never.
    pub fn ms(self) -> Option<u64> {
        self.0.map(|tick| u64::from(tick.get()) * TICK_MS)
    }
}

impl From<Option<u64>> for Deadline {
    fn from(at_ms: Option<u64>) -> Self {
        at_ms.map_or(Deadline::NEVER, Deadline::at_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_early_and_hardly_late() {
        for at_ms in [0, 1, TICK_MS - 1, TICK_MS, TICK_MS + 1, 86_400_000] {
            let due_ms = Deadline::at_ms(at_ms).ms().expect("due");
            assert!(due_ms >= at_ms && due_ms < at_ms.max(1) + TICK_MS, "{at_ms}: {due_ms}");
        }
        assert_eq!(Deadline::from(None).ms(), None);
        assert_eq!(Deadline::at_ms(u64::MAX), Deadline::NEVER);
    }
}
