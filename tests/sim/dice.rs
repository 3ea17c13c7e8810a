//! Every decision of a run that is not the engine's: one seeded sequence, and a trace of what was decided.
//!
//! In: a seed. Out: numbers, the same for the same seed; a digest of the whole run, and its last events for a failure.

use std::collections::VecDeque;
use std::fmt::Write as _;

use ringway_engine::random::Random;

/// Events that a failure shows.
const LAST_EVENTS: usize = 60;

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Dice(Random);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Dice(Random::new(seed))
    }

    pub(crate) fn seed(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0.below(bound as u64) as usize
    }

    /// A number of the range, its ends included.
    pub(crate) fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    pub(crate) fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    pub(crate) fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            let other = self.below(last + 1);
            list.swap(last, other);
        }
    }
}

/// What happened, in order.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    digest: u64,
    events: u64,
    last: VecDeque<(&'static str, [u64; 3])>,
}

impl Trace {
    pub(crate) fn note(&mut self, what: &'static str, numbers: [u64; 3]) {
        self.events += 1;
        let name = what.bytes().fold(7, |sum: u64, byte| sum.wrapping_mul(31) + u64::from(byte));
        for number in [name, numbers[0], numbers[1], numbers[2]] {
            // FNV-1a over words: only equality between two runs is asked of it.
            self.digest = (self.digest ^ number).wrapping_mul(0x0100_0000_01B3).rotate_left(23);
        }
        if self.last.len() == LAST_EVENTS {
            self.last.pop_front();
        }
        self.last.push_back((what, numbers));
    }

    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    /// The last events, newest last.
    pub(crate) fn tail(&self) -> String {
        let mut text = format!("{} events, the last:\n", self.events);
        for (what, [a, b, c]) in &self.last {
            let _ = writeln!(text, "  {what} {a} {b} {c}");
        }
        text
    }
}
