//! The subscribers of one channel in one variant on this core.
//!
//! In: joins and leaves of connections. Out: connection slots in the order of joining, and for lists with deltas whether
//! each has the channel's last publication. Invariant: while a fan-out waits (the caller says so) nobody changes place:
//! leaves mark theirs, joins append.

use alloc::vec::Vec;

use crate::variant::Variant;

/// Vacant places that a list may have before it is tidied.
const VACANT_MAX: usize = if cfg!(test) { 2 } else { 64 };
/// Marks a place whose subscriber has left.
pub(crate) const VACANT: u32 = u32::MAX;
/// In an entry beside the slot: the subscriber has the channel's last publication, so that it can take a delta.
pub(crate) const HAS_BASE: u32 = 1 << 31;

/// See the file's header.
#[derive(Debug)]
pub(crate) struct List {
    pub(crate) variant: Variant,
    /// Connection slots, or [`VACANT`], or slots with [`HAS_BASE`].
    pub(crate) entries: Vec<u32>,
    /// Places marked [`VACANT`], filled when nothing waits any more.
    vacant: Vec<u32>,
}

impl List {
    pub(crate) const fn new(variant: Variant) -> Self {
        List { variant, entries: Vec::new(), vacant: Vec::new() }
    }

    /// Subscribers on it.
    pub(crate) fn live(&self) -> usize {
        self.entries.len() - self.vacant.len()
    }

    /// Puts a connection into a vacant place, or behind the others; returns its place. Not while something waits.
    pub(crate) fn join(&mut self, slot: u32) -> u32 {
        match self.vacant.pop() {
            Some(index) => {
                self.entries[index as usize] = slot;
                index
            }
            None => self.append(slot),
        }
    }

    /// Appends a connection; returns its place.
    pub(crate) fn append(&mut self, slot: u32) -> u32 {
        if self.entries.is_empty() {
            // Many channels have one subscriber.
            self.entries.reserve_exact(1);
        }
        self.entries.push(slot);
        self.entries.len() as u32 - 1
    }

    /// Marks a place as left. A wrong or vacant one stays as it is.
    pub(crate) fn vacate(&mut self, index: u32) {
        if let Some(entry) = self.entries.get_mut(index as usize).filter(|entry| **entry != VACANT) {
            *entry = VACANT;
            self.vacant.push(index);
        }
    }

    /// The subscriber has lost something: a delta would not apply.
    pub(crate) fn drop_base(&mut self, index: u32) {
        if let Some(entry) = self.entries.get_mut(index as usize).filter(|entry| **entry != VACANT) {
            *entry &= !HAS_BASE;
        }
    }

    /// Whether gaps should be closed while nothing waits.
    pub(crate) fn is_gappy(&self) -> bool {
        self.vacant.len() > VACANT_MAX.max(self.entries.len() / 8)
    }

    /// Whether gaps should be closed although publications wait.
    pub(crate) fn is_sparse(&self) -> bool {
        self.vacant.len() > VACANT_MAX.max(self.entries.len() / 2)
    }

    /// How many subscribers stand below a place.
    pub(crate) fn live_below(&self, end: u32) -> u32 {
        self.entries[..end as usize].iter().filter(|entry| **entry != VACANT).count() as u32
    }

    /// Closes all gaps, keeping the order; tells everybody's place.
    pub(crate) fn compact(&mut self, mut moved: impl FnMut(u32, u32)) {
        self.vacant.clear();
        self.entries.retain(|entry| *entry != VACANT);
        for (index, entry) in self.entries.iter().enumerate() {
            moved(slot_of(*entry), index as u32);
        }
    }

    /// Fills the places that were left; tells who has moved where.
    pub(crate) fn tidy(&mut self, mut moved: impl FnMut(u32, u32)) {
        while let Some(index) = self.vacant.pop() {
            while self.entries.last() == Some(&VACANT) {
                self.entries.pop();
            }
            if (index as usize) < self.entries.len() {
                let left = self.entries.swap_remove(index as usize);
                debug_assert_eq!(left, VACANT);
                if let Some(entry) = self.entries.get(index as usize) {
                    moved(slot_of(*entry), index);
                }
            }
        }
    }
}

/// The connection of an entry that is not vacant.
pub(crate) const fn slot_of(entry: u32) -> u32 {
    entry & !HAS_BASE
}
