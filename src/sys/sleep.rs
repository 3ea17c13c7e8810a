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

/// What the consumer's last look found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Prepared {
    /// Nothing: whoever brings work from now on rings the bell.
    Sleep,
    /// Work, and nobody saw the announcement.
    Work,
    /// Work, and a producer saw the announcement: it rings the bell although nobody sleeps.
    WorkAndBell,
}

/// Says whether the consumer sleeps, or is about to.
///
/// Every write is a swap, so the flag's values form one chain in which each `true` is followed by whoever took it. A plain
/// store would save nothing where it matters (the consumer writes only around a sleep), and the model checker does not order
/// a store against a concurrent swap: with stores it reports a lost wake-up among two producers.
pub(crate) struct SleepFlag {
    asleep: AtomicBool,
}

impl SleepFlag {
    pub(crate) fn new() -> SleepFlag {
        SleepFlag { asleep: AtomicBool::new(false) }
    }

    /// Consumer: announces the sleep, then asks `has_work` once more; if there is work, takes the announcement back.
    pub(crate) fn prepare(&self, has_work: impl FnOnce() -> bool) -> Prepared {
        self.asleep.swap(true, Ordering::Relaxed);
        // Pairs with the fence in `take_wake`: orders the announcement before the look for work.
        fence(Ordering::SeqCst);
        if !has_work() {
            return Prepared::Sleep;
        }
        if self.asleep.swap(false, Ordering::Relaxed) { Prepared::Work } else { Prepared::WorkAndBell }
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
        self.asleep.swap(false, Ordering::Relaxed);
    }
}
