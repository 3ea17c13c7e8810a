//! Ids that cross a function border, each a type of its own so that a slot is never taken for a shard.
//!
//! In and out: plain numbers. Invariant: every id of a reused place carries a generation, so that what arrives late
//! for the former tenant is recognised and dropped.

use core::fmt;

use ringway_wire::ingest::EpochText;

/// A shard (one per core, normally), or a plane that speaks to shards over lanes.
/// Shards are `0..shards`; the control plane is the number after the last shard, the backplane the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CoreId(pub u16);

/// A connection of one shard: its slot in the slab and the generation of that slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnId {
    /// Index into the shard's slab of connections.
    pub slot: u32,
    /// How many connections this slot has held before, modulo 2^32.
    pub generation: u32,
}

/// A channel as one shard knows it while it has subscribers there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LocalChannelId {
    /// Index into the shard's table of local channels.
    pub slot: u32,
    /// Generation of that table entry.
    pub generation: u32,
}

/// `hash(channel) % BUCKETS`; names the owner core inside a node and the backplane's shard between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bucket(pub u16);

/// The epoch of a channel: a number that is never used twice for different histories of one channel.
/// Clients see it as text, `<boot>.<creation>`, both in base 36 (see [`Epoch::parse`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch {
    /// Random per start of the process.
    pub boot: u32,
    /// Counts channel creations on the owning shard since that start, so a recreated channel differs.
    pub creation: u32,
}

impl Epoch {
    /// Longest text of an epoch, in bytes.
    pub const TEXT_BYTES_MAX: usize = 15;

    /// The epoch that a client sends back; none for any other text.
    pub fn parse(text: &str) -> Option<Epoch> {
        let (boot, creation) = text.split_once('.')?;
        Some(Epoch { boot: parse_base36(boot)?, creation: parse_base36(creation)? })
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        EpochText((self.boot, self.creation)).fmt(f)
    }
}

/// Only the one text that [`EpochText`] makes is accepted: no sign, no leading zeros, no capitals.
fn parse_base36(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
    if !plain || (text.len() > 1 && text.starts_with('0')) {
        return None;
    }
    u32::from_str_radix(text, 36).ok()
}

/// Position of a publication in its channel: dense from 1 under one epoch, 0 means "before the first".
pub type Offset = u64;

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn epochs_survive_the_trip_to_a_client(boot: u32, creation: u32) {
            let epoch = Epoch { boot, creation };
            let text = epoch.to_string();
            prop_assert!(text.len() <= Epoch::TEXT_BYTES_MAX);
            prop_assert_eq!(Epoch::parse(&text), Some(epoch));
        }
    }

    #[test]
    fn other_texts_are_no_epochs() {
        for text in ["", ".", "1", "1.", ".1", "+1.1", "01.1", "A.1", "1.1.1", "zzzzzzzz.1", "1. 1"] {
            assert_eq!(Epoch::parse(text), None, "{text:?}");
        }
    }
}
