//! Remembers idempotency keys for a while: a publish that comes again gets the first one's position.
//!
//! In: (channel, key) and the position it got, from `owner.rs`. Out: that position for a repeated key.
//! Keys are kept as 128-bit SipHash-1-3 values under a secret seed, in the order in which they came: 40 bytes each. A table
//! beside them has 32 bits of each hash and where it stands, so that a new key, which nearly all are, is told from the
//! others, and the table moved when it grows, without a look at them: 10 to 41 bytes each, as full as it is.
//! Bounded by age and by count; invariant: entries leave in the order they came, so the queue's front is always the oldest.

use alloc::collections::VecDeque;
use core::hash::Hasher;

use hashbrown::HashTable;
use siphasher::sip128::{Hasher128, SipHasher13};

use crate::ids::Epoch;
use crate::lane_message::Position;

/// See the file's header.
#[derive(Debug)]
pub struct Dedup {
    places: HashTable<Place>,
    remembered: VecDeque<Remembered>,
    /// Number of the front.
    first: u32,
    keys_max: usize,
    window_ms: u64,
    secret: [u64; 2],
}

/// Where a remembered key stands.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Part of its hash.
    part: u32,
    /// Its number, as keys were counted when they came.
    number: u32,
}

/// The key's hash stands as two halves so that an entry has no gaps.
#[derive(Debug)]
struct Remembered {
    hash: [u64; 2],
    offset: u64,
    epoch: Epoch,
    at_ms: u64,
}

impl Dedup {
    /// Remembers `keys_max` keys for `window_ms` each.
    pub fn new(keys_max: u32, window_ms: u32, seed: u64) -> Self {
        Dedup {
            places: HashTable::new(),
            remembered: VecDeque::new(),
            first: 0,
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
        let (halves, first, remembered) = (halves(hash), self.first, &self.remembered);
        let at = |number: u32| remembered.get(number.wrapping_sub(first) as usize);
        let part = halves[0] as u32;
        let is_it = |place: &Place| place.part == part && at(place.number).is_some_and(|one| one.hash == halves);
        let place = self.places.find(spread(part), is_it)?;
        at(place.number).map(|one| Position { offset: one.offset, epoch: one.epoch })
    }

    /// Remembers a key, which must not be remembered yet. Returns how many were forgotten before their time to make room.
    pub fn insert(&mut self, hash: u128, position: Position, now_ms: u64) -> u64 {
        let mut dropped = 0;
        while self.remembered.len() >= self.keys_max && self.forget_oldest() {
            dropped += 1;
        }
        if self.keys_max > 0 {
            let (hash, Position { offset, epoch }) = (halves(hash), position);
            let number = self.first.wrapping_add(self.remembered.len() as u32);
            self.remembered.push_back(Remembered { hash, offset, epoch, at_ms: now_ms });
            let part = hash[0] as u32;
            self.places.insert_unique(spread(part), Place { part, number }, |place| spread(place.part));
        }
        dropped
    }

    /// Forgets what is older than the window.
    pub fn expire(&mut self, now_ms: u64) {
        while self.remembered.front().is_some_and(|oldest| oldest.at_ms + self.window_ms <= now_ms) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) -> bool {
        let Some(oldest) = self.remembered.pop_front() else { return false };
        let number = self.first;
        self.first = self.first.wrapping_add(1);
        if let Ok(place) = self.places.find_entry(spread(oldest.hash[0] as u32), |place| place.number == number) {
            place.remove();
        }
        true
    }
}

/// The table's hash: it takes its tag from the upper bits and the place from the lower ones.
const fn spread(part: u32) -> u64 {
    (part as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

const fn halves(hash: u128) -> [u64; 2] {
    [hash as u64, (hash >> 64) as u64]
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

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

    proptest! {
        /// Against a plain list, with keys that come again while they are known, and after.
        #[test]
        fn what_is_found_is_what_a_list_would_say(steps in prop::collection::vec((0u8..40, 0u64..30), 0..300), keys_max in 0u32..30) {
            let mut dedup = Dedup::new(keys_max, 100, 42);
            dedup.first = u32::MAX - 20;
            let (mut list, mut now_ms) = (Vec::<(u8, u64, u64)>::new(), 0);
            for (number, (key, wait_ms)) in steps.into_iter().enumerate() {
                now_ms += wait_ms;
                list.retain(|(_, _, at_ms)| at_ms + 100 > now_ms);
                let hash = dedup.hash("c", &[key]);
                let known = list.iter().find(|(known, ..)| *known == key).map(|(_, offset, _)| position(*offset));
                prop_assert_eq!(dedup.find(hash, now_ms), known);
                if known.is_none() {
                    let surplus = (list.len() + 1).saturating_sub(keys_max as usize).min(list.len());
                    prop_assert_eq!(dedup.insert(hash, position(number as u64), now_ms), surplus as u64);
                    list.drain(..surplus);
                    list.extend((keys_max > 0).then_some((key, number as u64, now_ms)));
                }
                prop_assert_eq!(dedup.places.len(), list.len());
            }
        }
    }
}
