//! A table of reused slots: an index and a generation name a tenant, and a late name finds nothing.
//!
//! In and out: values by (slot, generation). Invariant: a generation grows by one each time its slot is freed.

use alloc::vec::Vec;

/// See the file's header. Grows up to a bound that the owner of the table checks through [`Slots::len`].
#[derive(Debug)]
pub struct Slots<T> {
    entries: Vec<Entry<T>>,
    free: u32,
    len: u32,
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    next_free: u32,
    value: Option<T>,
}

const NONE: u32 = u32::MAX;

impl<T> Slots<T> {
    /// An empty table.
    pub const fn new() -> Self {
        Slots { entries: Vec::new(), free: NONE, len: 0 }
    }

    /// An empty table with room for so many. What is not used takes address space and no memory, and the table never moves:
    /// growing by copies would leave as much again behind.
    pub fn with_capacity(tenants: usize) -> Self {
        Slots { entries: Vec::with_capacity(tenants), ..Self::new() }
    }

    /// How many tenants there are.
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Whether there is no tenant.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// One more than the highest slot ever used.
    pub fn slots(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Puts a value into a free slot; returns (slot, generation).
    pub fn insert(&mut self, value: T) -> (u32, u32) {
        self.len += 1;
        if self.free != NONE {
            let slot = self.free;
            let entry = &mut self.entries[slot as usize];
            self.free = entry.next_free;
            entry.value = Some(value);
            return (slot, entry.generation);
        }
        let slot = self.entries.len() as u32;
        self.entries.push(Entry { generation: 0, next_free: NONE, value: Some(value) });
        (slot, 0)
    }

    /// The tenant, if it is still the one named.
    #[inline]
    pub fn get(&self, slot: u32, generation: u32) -> Option<&T> {
        let entry = self.entries.get(slot as usize)?;
        if entry.generation == generation { entry.value.as_ref() } else { None }
    }

    /// The tenant, if it is still the one named.
    #[inline]
    pub fn get_mut(&mut self, slot: u32, generation: u32) -> Option<&mut T> {
        let entry = self.entries.get_mut(slot as usize)?;
        if entry.generation == generation { entry.value.as_mut() } else { None }
    }

    /// Whoever lives in the slot now. For lists that are kept exact, such as a channel's subscribers.
    #[inline]
    pub fn at_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.entries.get_mut(slot as usize)?.value.as_mut()
    }

    /// Whoever lives in the slot now, and its generation.
    #[inline]
    pub fn at(&self, slot: u32) -> Option<(u32, &T)> {
        let entry = self.entries.get(slot as usize)?;
        entry.value.as_ref().map(|value| (entry.generation, value))
    }

    /// As [`Slots::at`], to change it.
    #[inline]
    pub fn at_mut_with_generation(&mut self, slot: u32) -> Option<(u32, &mut T)> {
        let entry = self.entries.get_mut(slot as usize)?;
        let generation = entry.generation;
        entry.value.as_mut().map(|value| (generation, value))
    }

    /// Takes the tenant out; later names for it find nothing.
    pub fn remove(&mut self, slot: u32, generation: u32) -> Option<T> {
        let entry = self.entries.get_mut(slot as usize)?;
        if entry.generation != generation {
            return None;
        }
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        entry.next_free = self.free;
        self.free = slot;
        self.len -= 1;
        Some(value)
    }
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_names_find_nothing() {
        let mut slots = Slots::new();
        let (slot, generation) = slots.insert('a');
        assert_eq!(slots.remove(slot, generation), Some('a'));
        let (again, next) = slots.insert('b');
        assert_eq!((again, next), (slot, generation + 1));
        assert_eq!(slots.get(slot, generation), None);
        assert_eq!(slots.remove(slot, generation), None);
        assert_eq!(slots.get(slot, next), Some(&'b'));
        assert_eq!(slots.len(), 1);
    }
}
