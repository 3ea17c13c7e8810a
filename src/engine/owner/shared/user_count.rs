//! How many different users several nodes have, from what each of them tells.
//!
//! In: each node's number of users and hashes of their ids: all of them, or of more than [`HASHES_MAX`] the smallest. Out: one
//! number. Up to that many users per node it is exact. Above, the smallest hashes of all nodes together are a sample whose
//! largest says how dense hashes are ("k minimum values"): with 10,000 of them the standard error is 1 %.
//! Invariant: what is said lies between the largest node's number and the sum.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

/// Hashes that one node tells, at 8 bytes.
pub(super) const HASHES_MAX: usize = 10_000;

/// See the file's header.
#[derive(Debug, Default)]
pub(super) struct UserCount {
    hashes: BTreeSet<u64>,
    /// Of the node with most users.
    most: u32,
    sum: u32,
    /// Some node has told a sample.
    is_sampled: bool,
}

/// What a node tells of its users' hashes, which may repeat.
pub(super) fn told(mut hashes: Vec<u64>) -> Vec<u64> {
    hashes.sort_unstable();
    hashes.dedup();
    hashes.truncate(HASHES_MAX);
    hashes
}

impl UserCount {
    /// One node's word.
    pub(super) fn add(&mut self, users: u32, hashes: impl Iterator<Item = u64>) {
        let mut given = 0;
        for hash in hashes.take(HASHES_MAX) {
            self.hashes.insert(hash);
            given += 1;
        }
        self.most = self.most.max(users);
        self.sum = self.sum.saturating_add(users);
        self.is_sampled |= users as usize > given;
    }

    /// How many there are.
    pub(super) fn users(&self) -> u32 {
        if !self.is_sampled {
            return self.hashes.len() as u32;
        }
        let Some(largest) = self.hashes.iter().nth(HASHES_MAX - 1) else { return self.sum };
        let estimate = ((HASHES_MAX as u128 - 1) << 64) / (u128::from(*largest) + 1);
        u32::try_from(estimate).unwrap_or(u32::MAX).clamp(self.most, self.sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use core::ops::Range;
    use xxhash_rust::xxh3::xxh3_64;

    fn count(nodes: &[Range<u32>]) -> u32 {
        let mut count = UserCount::default();
        for users in nodes {
            let hashes = users.clone().map(|user| xxh3_64(format!("user-{user}").as_bytes())).collect();
            count.add(users.len() as u32, told(hashes).into_iter());
        }
        count.users()
    }

    #[test]
    fn few_users_are_counted_exactly() {
        assert_eq!(count(&[]), 0);
        assert_eq!(count(&[0..10, 5..15, 15..15]), 15);
        assert_eq!(count(&[0..10_000, 1..10_001]), 10_001);
    }

    #[test]
    fn many_users_are_counted_once_within_some_percent() {
        for nodes in
            [&[0..60_000, 30_000..90_000][..], &[0..90_000, 0..90_000, 0..5], &[0..9_000, 0..12_000, 12_000..90_000]]
        {
            let (counted, true_count) = (count(nodes), 90_000_f64);
            let error = (f64::from(counted) - true_count).abs() / true_count;
            assert!(error < 0.03, "{counted}, off by {error}");
        }
    }

    #[test]
    fn it_stays_between_the_largest_node_and_the_sum() {
        let all = 0..200_000;
        assert_eq!(count(&[all]), 200_000);
        // A node that tells no hashes at all.
        let mut count = UserCount::default();
        count.add(50_000, core::iter::empty());
        count.add(3, 0..3);
        assert_eq!(count.users(), 50_003);
    }
}
