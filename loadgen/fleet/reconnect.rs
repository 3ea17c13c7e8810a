//! When a client comes back, as the SDKs do it, and how many came within a second.
//!
//! In: attempts so far, close codes, times of connections. Out: delays, yes or no, the fullest second.
//! Invariant: delays are `min(max, min + random(0, min(max, min * 2^attempt)))`, so never below the minimum.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Length of a slot in which connections are counted, in ns.
const SLOT_NS: u64 = 10_000_000;
/// Slots of the window of which the fullest counts: one second.
const WINDOW_SLOTS: u64 = 100;

/// A small generator of numbers that look random; its seed is in the report.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// A number below `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31).checked_rem(bound).unwrap_or(0)
    }
}

/// Shortest and longest part of a delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// Shortest delay, in ms.
    pub min_ms: u64,
    /// Longest delay, in ms.
    pub max_ms: u64,
}

impl Backoff {
    /// The delay before the next attempt, in ns, when `attempts` have failed since the last success.
    pub fn delay_ns(&self, attempts: u8, random: &mut Random) -> u64 {
        let grown_ms = self.min_ms.saturating_mul(1 << attempts.min(20)).min(self.max_ms);
        let jitter_ns = random.below(grown_ms * 1_000_000 + 1);
        (self.min_ms * 1_000_000 + jitter_ns).min(self.max_ms * 1_000_000)
    }
}

/// Whether an SDK comes back after a close frame with this code.
pub fn comes_back(code: u16) -> bool {
    !matches!(code, 3500..=3999 | 4500..=4999)
}

/// Connections established, by time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Number of the slot since boot -> connections.
    slots: BTreeMap<u64, u32>,
}

impl Rate {
    /// Counts one at this time of the monotonic clock, which all processes share.
    pub fn count(&mut self, now_ns: u64) {
        *self.slots.entry(now_ns / SLOT_NS).or_default() += 1;
    }

    /// Adds another worker's.
    pub fn add(&mut self, other: &Rate) {
        for (slot, count) in &other.slots {
            *self.slots.entry(*slot).or_default() += count;
        }
    }

    /// Connections in the fullest window of one second, to within a slot of 10 ms.
    pub fn per_second_max(&self) -> u64 {
        let (mut sum, mut fullest) = (0u64, 0u64);
        let mut tail = self.slots.iter();
        let mut leaving = tail.next();
        for (slot, count) in &self.slots {
            sum += u64::from(*count);
            while let Some((old, gone)) = leaving.filter(|(old, _)| **old + WINDOW_SLOTS <= *slot) {
                debug_assert!(old < slot);
                sum -= u64::from(*gone);
                leaving = tail.next();
            }
            fullest = fullest.max(sum);
        }
        fullest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_and_stay_within_their_bounds() {
        let (backoff, mut random) = (Backoff { min_ms: 500, max_ms: 20_000 }, Random::new(7));
        for attempts in 0..30u8 {
            let grown = 500u64.saturating_mul(1 << attempts.min(20)).min(20_000);
            let most = (500 + grown).min(20_000) * 1_000_000;
            let delays: Vec<u64> = (0..2_000).map(|_| backoff.delay_ns(attempts, &mut random)).collect();
            assert!(delays.iter().all(|delay| (500_000_000..=most).contains(delay)), "{attempts}");
            let middle = delays.iter().filter(|delay| **delay > (500_000_000 + most) / 2).count();
            assert!((600..=1_500).contains(&middle), "{attempts}: {middle} above the middle");
        }
    }

    #[test]
    fn final_codes_are_those_of_the_protocol() {
        for (code, back) in
            [(1000, true), (3001, true), (3008, true), (3499, true), (3500, false), (3999, false), (4000, true)]
        {
            assert_eq!(comes_back(code), back, "{code}");
        }
        assert!(!comes_back(4500) && comes_back(5000));
    }

    #[test]
    fn the_fullest_second_slides() {
        let mut rate = Rate::default();
        for ms in (0..5_000).step_by(10) {
            rate.count(ms * 1_000_000);
        }
        assert_eq!(rate.per_second_max(), 100);
        // 30 more around a border of whole seconds.
        for ms in 1_900..1_915 {
            rate.count(ms * 1_000_000);
            rate.count((ms + 200) * 1_000_000);
        }
        assert_eq!(rate.per_second_max(), 130);
        let mut sum = Rate::default();
        sum.add(&rate);
        sum.add(&rate);
        assert_eq!((sum.per_second_max(), Rate::default().per_second_max()), (260, 0));
    }
}
