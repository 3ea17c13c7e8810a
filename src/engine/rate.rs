//! A token bucket: so many events per second, with one second's worth at once, or another burst.
//!
//! In: the rate that holds now and the time. Out: whether one more event may pass. Counted in thousandths of a token,
//! so that a millisecond refills exactly `rate` of them and nothing is lost by rounding.
//! Invariant: in any span of time no more events pass than `rate` times the span, plus `rate` (or the burst).

/// Thousandths of a token in a token.
const TOKEN: u64 = 1_000;

/// See the file's header. Begins full; whoever holds it says the rate each time, so that a reload applies at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenBucket {
    /// Thousandths of a token that are missing from a full bucket.
    missing: u64,
    at_ms: u64,
}

impl TokenBucket {
    /// Takes a token if there is one. `rate_per_second` 0: no limit. `now_ms` of a clock that only goes forward.
    pub fn take(&mut self, rate_per_second: u32, now_ms: u64) -> bool {
        self.take_of(rate_per_second, rate_per_second, now_ms)
    }

    /// The same with at most `burst` events at once, one at least.
    pub fn take_of(&mut self, rate_per_second: u32, burst: u32, now_ms: u64) -> bool {
        if rate_per_second == 0 {
            return true;
        }
        let rate = u64::from(rate_per_second);
        let refilled = now_ms.saturating_sub(self.at_ms).saturating_mul(rate);
        let full = u64::from(burst.max(1)) * TOKEN;
        // A lower rate than last time makes the bucket smaller, not its debt larger.
        self.missing = self.missing.saturating_sub(refilled).min(full);
        self.at_ms = now_ms;
        let allowed = self.missing + TOKEN <= full;
        if allowed {
            self.missing += TOKEN;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn a_second_s_worth_at_once_then_the_rate() {
        let mut bucket = TokenBucket::default();
        let at = |bucket: &mut TokenBucket, now_ms, tries: u32| (0..tries).filter(|_| bucket.take(10, now_ms)).count();
        assert_eq!(at(&mut bucket, 5_000, 50), 10);
        assert_eq!(at(&mut bucket, 5_099, 50), 0);
        assert_eq!(at(&mut bucket, 5_100, 50), 1);
        assert_eq!(at(&mut bucket, 5_350, 50), 2);
        assert_eq!(at(&mut bucket, 5_400, 50), 1, "half a token was kept");
        assert_eq!(at(&mut bucket, 60_000, 50), 10, "never more than a second's worth");
    }

    #[test]
    fn no_rate_is_no_limit_and_a_new_rate_holds_at_once() {
        let mut bucket = TokenBucket::default();
        assert!((0..1_000).all(|_| bucket.take(0, 0)));
        assert_eq!((0..100).filter(|_| bucket.take(100, 0)).count(), 100);
        assert!(!bucket.take(2, 0), "empty stays empty");
        assert!(bucket.take(2, 500));
    }

    proptest! {
        /// No window of time lets more pass than its length allows, and a waiting event is let through in time.
        #[test]
        fn no_window_passes_more_than_it_may(rate in 1u32..50, steps in prop::collection::vec((0u64..400, 1u32..20), 1..60)) {
            let mut bucket = TokenBucket::default();
            let mut now_ms = 0;
            let mut passed: Vec<u64> = Vec::new();
            for (pause_ms, tries) in steps {
                now_ms += pause_ms;
                for _ in 0..tries {
                    let owed = passed.iter().enumerate().all(|(i, from)| {
                        let count = (passed.len() - i + 1) as u64;
                        count * TOKEN <= u64::from(rate) * TOKEN + (now_ms - from) * u64::from(rate)
                    });
                    let allowed = bucket.take(rate, now_ms);
                    prop_assert_eq!(allowed, owed, "at {}", now_ms);
                    if allowed {
                        passed.push(now_ms);
                    }
                }
            }
        }
    }
}
