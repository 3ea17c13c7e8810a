//! Finds a table's slot by a channel's name, without keeping the name twice.
//!
//! In: names and the slots where the caller keeps them. Out: slots. The hash is seeded at boot, so that nobody can
//! choose names that collide.

use core::hash::BuildHasher;

use foldhash::quality::FixedState;
use hashbrown::HashTable;

/// See the file's header.
#[derive(Debug)]
pub struct Names {
    slots: HashTable<u32>,
    hasher: FixedState,
}

impl Names {
    /// An empty index.
    pub fn new(seed: u64) -> Self {
        Names { slots: HashTable::new(), hasher: FixedState::with_seed(seed) }
    }

    /// The slot of `name`; `name_at` gives the name that a slot holds.
    #[inline]
    pub fn find<'a>(&self, name: &str, name_at: impl Fn(u32) -> &'a str) -> Option<u32> {
        self.slots.find(self.hasher.hash_one(name), |slot| name_at(*slot) == name).copied()
    }

    /// Adds a name that is not there yet.
    pub fn insert<'a>(&mut self, name: &str, slot: u32, name_at: impl Fn(u32) -> &'a str) {
        let hasher = &self.hasher;
        self.slots.insert_unique(hasher.hash_one(name), slot, |slot| hasher.hash_one(name_at(*slot)));
    }

    /// A name that is there moves to another slot, which holds the same name.
    pub fn replace(&mut self, name: &str, slot: u32, with: u32) {
        let hash = self.hasher.hash_one(name);
        if let Some(place) = self.slots.find_mut(hash, |candidate| *candidate == slot) {
            *place = with;
        }
    }

    /// How many names there are.
    pub fn len(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Takes a name out. Call it while `slot` still holds the name.
    pub fn remove(&mut self, name: &str, slot: u32) {
        if let Ok(entry) = self.slots.find_entry(self.hasher.hash_one(name), |candidate| *candidate == slot) {
            entry.remove();
        }
    }
}
