//! The sleep/wake protocol between one consumer and many producers, without the queue and without the descriptor.
//!
//! In: producers that have made work visible, a consumer that found none. Out: who must ring the bell.
//!
//! ```text
//! consumer                                producer
//! 1. asleep := true                       1. make the item visible
//! 2. full fence                           2. full fence
//! 3. look for work once more              3. asleep? then swap it to false, and who saw true rings the bell
//! 4. none: wait for the bell
//! ```
//!
//! Invariant: of the consumer's look (3) and the producer's look (3) at least one sees the other side's write, because each
//! is behind a full fence that follows the own write. So an item is either found before the sleep or ends it. Only one
//! producer rings per sleep, because a swap returns true once. `lane_loom.rs` model-checks exactly this type.

use crate::primitive::{AtomicBool, Ordering, fence};

/// Says whether the consumer sleeps, or is about to.
pub(crate) struct SleepFlag {
    asleep: AtomicBool,
}

impl SleepFlag {
    pub(crate) fn new() -> SleepFlag {
        SleepFlag { asleep: AtomicBool::new(false) }
    }

    /// Consumer: announces the sleep, then asks `has_work` once more. False: there is work, the announcement is taken back.
    pub(crate) fn prepare(&self, has_work: impl FnOnce() -> bool) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        // Pairs with the fence in `take_wake`: orders the announcement before the look for work.
        fence(Ordering::SeqCst);
        if has_work() {
            self.asleep.store(false, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Producer, after its items are visible: true if the caller must ring the bell.
    #[inline]
    pub(crate) fn take_wake(&self) -> bool {
        // Pairs with the fence in `prepare`: orders the items before the look at the flag.
        fence(Ordering::SeqCst);
        // The plain load keeps the line shared while the consumer is awake, which is the usual case under load.
        self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel)
    }

    /// Consumer: no longer sleeping.
    pub(crate) fn clear(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }
}
