//! One deadline per connection, in a hashed timing wheel (Varghese & Lauck 1987, scheme 6) of coarse ticks.
//!
//! In: `arm(slot, deadline)` as connections change state. Out: `advance` hands over the slots that are due.
//! Costs 12 bytes a slot and no allocation per timer. Invariant: a slot stands in at most one bucket.

use alloc::vec::Vec;

use crate::limits::TICK_MS;

/// Ticks in one turn of the wheel: a deadline further away is looked at once per turn.
const WHEEL_TICKS: usize = 512;
const NONE: u32 = u32::MAX;

/// See the file's header.
#[derive(Debug)]
pub struct Timers {
    heads: Vec<u32>,
    links: Vec<Link>,
    now_tick: u64,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    next: u32,
    prev: u32,
    /// Tick modulo 2^32. Its bucket is this modulo the ticks of the wheel.
    deadline_tick: u32,
}

/// `prev` of a slot that stands in no bucket.
const UNARMED: u32 = u32::MAX - 1;
const IDLE: Link = Link { next: NONE, prev: UNARMED, deadline_tick: 0 };

impl Link {
    const fn bucket(&self) -> usize {
        self.deadline_tick as usize % WHEEL_TICKS
    }
}

const _: () = assert!(size_of::<Link>() == 12 && WHEEL_TICKS.is_power_of_two(), "2^32 is a whole number of turns");

impl Timers {
    /// A wheel that stands at `now_ms`, with address space for so many slots.
    pub fn new(now_ms: u64, slots: usize) -> Self {
        let links = Vec::with_capacity(slots);
        Timers { heads: alloc::vec![NONE; WHEEL_TICKS], links, now_tick: now_ms / TICK_MS }
    }

    /// Sets the slot's deadline, replacing the one it had. Fires up to one tick late, never early.
    pub fn arm(&mut self, slot: u32, deadline_ms: u64) {
        self.disarm(slot);
        if self.links.len() <= slot as usize {
            self.links.resize(slot as usize + 1, IDLE);
        }
        let tick = deadline_ms.div_ceil(TICK_MS).max(self.now_tick + 1);
        let link = Link { next: NONE, prev: NONE, deadline_tick: tick as u32 };
        let bucket = link.bucket();
        let head = self.heads[bucket];
        self.links[slot as usize] = Link { next: head, ..link };
        if head != NONE {
            self.links[head as usize].prev = slot;
        }
        self.heads[bucket] = slot;
    }

    /// Takes the slot's deadline away, if it has one.
    pub fn disarm(&mut self, slot: u32) {
        let Some(link) = self.links.get(slot as usize).copied().filter(|link| link.prev != UNARMED) else { return };
        if link.prev == NONE {
            self.heads[link.bucket()] = link.next;
        } else {
            self.links[link.prev as usize].next = link.next;
        }
        if link.next != NONE {
            self.links[link.next as usize].prev = link.prev;
        }
        self.links[slot as usize] = IDLE;
    }

    /// Moves the wheel to `now_ms` and appends the slots whose deadline has come; they are disarmed.
    pub fn advance(&mut self, now_ms: u64, due: &mut Vec<u32>) {
        let target = now_ms / TICK_MS;
        // After a long stall one whole turn visits every bucket.
        let steps = target.saturating_sub(self.now_tick).min(WHEEL_TICKS as u64);
        let first = target - steps + 1;
        for tick in first..=target {
            let mut slot = self.heads[(tick % WHEEL_TICKS as u64) as usize];
            while slot != NONE {
                let link = self.links[slot as usize];
                if (target as u32).wrapping_sub(link.deadline_tick) < u32::MAX / 2 {
                    self.disarm(slot);
                    due.push(slot);
                }
                slot = link.next;
            }
        }
        self.now_tick = self.now_tick.max(target);
    }

    /// Milliseconds from `now_ms` to the next tick.
    pub const fn next_tick_in_ms(now_ms: u64) -> u64 {
        TICK_MS - now_ms % TICK_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fires_once_and_never_early(steps in prop::collection::vec((0u32..40, 0u64..200_000, 0u64..90_000, any::<bool>()), 1..200)) {
            let mut now = 1_000_000u64;
            let mut timers = Timers::new(now, 0);
            let mut model: Vec<Option<u64>> = alloc::vec![None; 40];
            for (slot, after, step, disarm) in steps {
                if disarm {
                    timers.disarm(slot);
                    model[slot as usize] = None;
                } else {
                    timers.arm(slot, now + after);
                    model[slot as usize] = Some(now + after);
                }
                now += step;
                let mut due = Vec::new();
                timers.advance(now, &mut due);
                for slot in due {
                    let deadline = model[slot as usize].take();
                    prop_assert!(deadline.is_some_and(|d| d <= now), "slot {slot} fired at {now}, deadline {deadline:?}");
                }
                for (slot, deadline) in model.iter().enumerate() {
                    prop_assert!(deadline.is_none_or(|d| d + TICK_MS > now), "slot {slot} missed {deadline:?} at {now}");
                }
            }
        }
    }
}
