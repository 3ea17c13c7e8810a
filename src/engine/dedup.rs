//! Remembers idempotency keys for a while: a publish that comes again gets the first one's position.
//!
//! In: (channel, key) and the position it got, from `owner.rs`. Out: that position for a repeated key.
//! Keys are kept as 128-bit SipHash-1-3 values under a secret seed, 64 bytes each with their table entry. Bounded by
//! age and by count; invariant: entries leave in the order they came, so the ring's front is always the oldest.

use alloc::collections::VecDeque;
use core::hash::Hasher;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use siphasher::sip128::{Hasher128, SipHasher13};

use crate::lane_message::Position;

/// See the file's header.
#[derive(Debug)]
pub struct Dedup {
    positions: HashMap<u128, Position, FixedState>,
    ages: VecDeque<(u128, u64)>,
    keys_max: usize,
    window_ms: u64,
    secret: [u64; 2],
}

impl Dedup {
    /// Remembers `keys_max` keys for `window_ms` each.
    pub fn new(keys_max: u32, window_ms: u32, seed: u64) -> Self {
        Dedup {
            positions: HashMap::with_hasher(FixedState::with_seed(seed)),
            ages: VecDeque::new(),
            keys_max: keys_max as usize,
            window_ms: window_ms as u64,
            secret: [seed, seed.rotate_left(32) ^ 0x9E37_79B9_7F4A_7C15],
        }
    }

    /// The hash under which a key is remembered.
    pub fn hash(&self, channel: &str, key: &[u8]) -> u128 {
        let mut hasher = SipHasher13::new_with_keys(self.secret[0], self.secret[1]);
        hasher.write(channel.as_bytes());
        // A channel name has no byte 0xFF (it is UTF-8), so no other pair gives the same bytes.
        hasher.write_u8(0xFF);
        hasher.write(key);
        hasher.finish128().into()
    }

    /// Where the key's publication stands, if it was published within the window.
    pub fn find(&mut self, hash: u128, now_ms: u64) -> Option<Position> {
        self.expire(now_ms);
        self.positions.get(&hash).copied()
    }

    /// Remembers a key. Returns how many were forgotten before their time to make room.
    pub fn insert(&mut self, hash: u128, position: Position, now_ms: u64) -> u64 {
        let mut dropped = 0;
        while self.ages.len() >= self.keys_max {
            let Some((oldest, _)) = self.ages.pop_front() else { break };
            self.positions.remove(&oldest);
            dropped += 1;
        }
        if self.keys_max > 0 {
            self.positions.insert(hash, position);
            self.ages.push_back((hash, now_ms));
        }
        dropped
    }

    /// Forgets what is older than the window.
    pub fn expire(&mut self, now_ms: u64) {
        while self.ages.front().is_some_and(|(_, at_ms)| at_ms + self.window_ms <= now_ms) {
            if let Some((hash, _)) = self.ages.pop_front() {
                self.positions.remove(&hash);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Epoch;

    fn position(offset: u64) -> Position {
        Position { offset, epoch: Epoch { boot: 1, creation: 1 } }
    }

    #[test]
    fn keys_are_scoped_to_their_channel_and_expire() {
        let mut dedup = Dedup::new(10, 1_000, 42);
        let (a, b) = (dedup.hash("a", b"k"), dedup.hash("b", b"k"));
        assert_ne!(a, b);
        assert_eq!(dedup.insert(a, position(5), 0), 0);
        assert_eq!(dedup.find(a, 999), Some(position(5)));
        assert_eq!(dedup.find(b, 999), None);
        assert_eq!(dedup.find(a, 1_000), None);
    }

    #[test]
    fn over_the_bound_the_oldest_goes_first() {
        let mut dedup = Dedup::new(2, 1_000, 42);
        let keys: [u128; 3] = core::array::from_fn(|n| dedup.hash("a", &[n as u8]));
        assert_eq!(dedup.insert(keys[0], position(1), 0), 0);
        assert_eq!(dedup.insert(keys[1], position(2), 0), 0);
        assert_eq!(dedup.insert(keys[2], position(3), 0), 1);
        assert_eq!(dedup.find(keys[0], 0), None);
        assert_eq!(dedup.find(keys[1], 0), Some(position(2)));
        assert_eq!(dedup.find(keys[2], 0), Some(position(3)));
    }
}
