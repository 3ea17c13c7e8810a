//! Which core owns a channel. The only place that hashes a channel's name.
//!
//! In: a channel name. Out: its bucket and, from that, its owner core. The hash is XXH3-64 with seed 0, the same on
//! every node and for ever: the backplane's partitioning rests on it.

use xxhash_rust::xxh3::xxh3_64;

use crate::ids::{Bucket, CoreId};
use crate::limits::BUCKETS;

/// The bucket of a channel.
#[inline]
pub fn bucket(channel: &str) -> Bucket {
    Bucket((xxh3_64(channel.as_bytes()) % BUCKETS as u64) as u16)
}

/// The core that owns a bucket on a node with `shards` shards.
#[inline]
pub const fn owner(bucket: Bucket, shards: u16) -> CoreId {
    CoreId(bucket.0 % shards)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_never_move() {
        // A changed hash would send a fleet's nodes to different partitions.
        assert_eq!(bucket("news"), Bucket((xxh3_64(b"news") % 4096) as u16));
        assert_eq!(xxh3_64(b""), 0x2D06_8005_38D3_94C2);
    }

    #[test]
    fn owners_are_spread() {
        let mut counts = [0u32; 7];
        for n in 0..70_000 {
            counts[owner(bucket(&alloc::format!("channel:{n}")), 7).0 as usize] += 1;
        }
        assert!(counts.iter().all(|c| (8_500..11_500).contains(c)), "{counts:?}");
    }
}
