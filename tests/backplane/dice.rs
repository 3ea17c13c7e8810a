//! Randomness that a failing test prints, so that it can be had again: `RINGWAY_SEED=<seed>`.

/// A small generator (SplitMix64).
pub(crate) struct Dice(u64);

impl Dice {
    /// From `RINGWAY_SEED`, or the time; printed.
    pub(crate) fn new(test: &str) -> Dice {
        let given = std::env::var("RINGWAY_SEED").ok().and_then(|text| text.parse().ok());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let seed = given.unwrap_or(now.as_nanos() as u64);
        println!("{test}: RINGWAY_SEED={seed}");
        Dice(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below this number.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}
