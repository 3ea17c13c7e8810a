//! Order, gaps and duplicates of what each subscription receives.
//!
//! In: (connection, stamp) of each delivery, and at the end how many publications there were. Out: [`Counts`].
//!
//! Invariants: four bytes per subscription as long as nothing goes wrong; every delivery is counted exactly once, as in
//! order, duplicate, disordered or foreign; a publication that never came is counted as a gap, at the end if it is the
//! last. Publications start at sequence 0 after every subscription stands, so a missing first one is a gap too.
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::payload::Stamp;

/// Holes that are remembered to tell a late delivery from a second one; beyond it, late counts as duplicate.
const HOLES_MAX: usize = 100_000;

/// How connections subscribe to channels: connection i takes i*s .. i*s+s modulo the number of channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Channels in all.
    pub channels: u32,
    /// Subscriptions of each connection; at most `channels`.
    pub subscriptions: u32,
}

impl Layout {
    /// Channel of subscription `index` of a connection.
    pub fn channel(&self, connection: u64, index: u32) -> u32 {
        ((connection * u64::from(self.subscriptions) + u64::from(index)) % u64::from(self.channels)) as u32
    }

    /// Which subscription of a connection a channel is; None if it has none to it.
    #[inline]
    pub fn index(&self, connection: u64, channel: u32) -> Option<u32> {
        if self.channels == 1 {
            return (channel == 0).then_some(0);
        }
        if channel >= self.channels {
            return None;
        }
        let index = (channel + self.channels - self.channel(connection, 0)) % self.channels;
        (index < self.subscriptions).then_some(index)
    }

    /// Publications to `channel` when `published` were made over all channels in turn.
    pub fn published_to(&self, channel: u32, published: u64) -> u64 {
        let channels = u64::from(self.channels);
        published / channels + u64::from(u64::from(channel) < published % channels)
    }
}

/// What came, and what was wrong with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Deliveries that came for the first time, in order or not.
    pub received: u64,
    /// Publications that did not come.
    pub gaps: u64,
    /// Deliveries that had come before.
    pub duplicates: u64,
    /// Deliveries that came after a later one.
    pub disordered: u64,
    /// Deliveries of another run, or to a connection that did not subscribe.
    pub foreign: u64,
}

impl Counts {
    /// Adds another part's counts.
    pub fn add(&mut self, other: &Counts) {
        self.received += other.received;
        self.gaps += other.gaps;
        self.duplicates += other.duplicates;
        self.disordered += other.disordered;
        self.foreign += other.foreign;
    }

    /// Whether everything came once and in order.
    pub fn intact(&self) -> bool {
        self.gaps == 0 && self.duplicates == 0 && self.disordered == 0
    }
}

/// The checker of one worker's connections.
#[derive(Debug)]
pub struct Checker {
    layout: Layout,
    run: u16,
    first_connection: u64,
    /// Next expected sequence of each subscription, connection by connection.
    next: Vec<u32>,
    /// (subscription, sequence) that were skipped.
    holes: BTreeSet<(u32, u32)>,
    /// Deliveries to this worker for all publications to channels below an index, per round over the channels.
    deliveries_below: Vec<u32>,
    counts: Counts,
}

impl Checker {
    /// A checker for `connections` connections from number `first_connection`.
    pub fn new(layout: Layout, run: u16, first_connection: u64, connections: u32) -> Checker {
        let subscriptions = connections as usize * layout.subscriptions as usize;
        let mut below = vec![0u32; layout.channels as usize + 1];
        for connection in 0..u64::from(connections) {
            for index in 0..layout.subscriptions {
                below[layout.channel(first_connection + connection, index) as usize + 1] += 1;
            }
        }
        for channel in 1..below.len() {
            below[channel] += below[channel - 1];
        }
        Checker {
            layout,
            run,
            first_connection,
            next: vec![0; subscriptions],
            holes: BTreeSet::new(),
            deliveries_below: below,
            counts: Counts::default(),
        }
    }

    /// Takes one delivery to the worker's connection `connection` (counted from 0). True if it counts as received.
    #[inline]
    pub fn take(&mut self, connection: u32, stamp: &Stamp) -> bool {
        let number = self.first_connection + u64::from(connection);
        let index = self.layout.index(number, stamp.channel).filter(|_| stamp.run == self.run);
        let Some(index) = index else {
            self.counts.foreign += 1;
            return false;
        };
        let subscription = connection * self.layout.subscriptions + index;
        let next = &mut self.next[subscription as usize];
        // Sequences of one run stay far below 2^32 per channel; the upper bits of a stamp are then zero.
        let sequence = stamp.sequence as u32;
        if sequence == *next {
            *next = sequence + 1;
            self.counts.received += 1;
            return true;
        }
        self.take_unexpected(subscription, sequence)
    }

    #[cold]
    fn take_unexpected(&mut self, subscription: u32, sequence: u32) -> bool {
        let next = &mut self.next[subscription as usize];
        if sequence > *next {
            self.counts.gaps += u64::from(sequence - *next);
            let room = HOLES_MAX.saturating_sub(self.holes.len());
            self.holes.extend((*next..sequence).take(room).map(|hole| (subscription, hole)));
            *next = sequence + 1;
            self.counts.received += 1;
            return true;
        }
        if self.holes.remove(&(subscription, sequence)) {
            self.counts.gaps -= 1;
            self.counts.disordered += 1;
            self.counts.received += 1;
            return true;
        }
        self.counts.duplicates += 1;
        false
    }

    /// Deliveries that are due to this worker once `published` publications were made over all channels in turn.
    pub fn due(&self, published: u64) -> u64 {
        let channels = u64::from(self.layout.channels);
        let all = u64::from(*self.deliveries_below.last().unwrap_or(&0));
        let rest = self.deliveries_below.get((published % channels) as usize).copied().unwrap_or(0);
        published / channels * all + u64::from(rest)
    }

    /// Deliveries received so far.
    pub fn received(&self) -> u64 {
        self.counts.received
    }

    /// The counts, with what is missing at the end of each channel when `published` publications were made.
    pub fn finish(&self, published: u64) -> Counts {
        let mut counts = self.counts;
        for (subscription, &next) in self.next.iter().enumerate() {
            let connection = self.first_connection + (subscription / self.layout.subscriptions as usize) as u64;
            let index = (subscription % self.layout.subscriptions as usize) as u32;
            let due = self.layout.published_to(self.layout.channel(connection, index), published);
            counts.gaps += due.saturating_sub(u64::from(next));
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: u16 = 7;

    fn stamp(channel: u32, sequence: u64) -> Stamp {
        Stamp { run: RUN, channel, sequence, intended_ns: 0 }
    }

    fn one_channel() -> Checker {
        Checker::new(Layout { channels: 1, subscriptions: 1 }, RUN, 0, 2)
    }

    #[test]
    fn in_order_is_intact() {
        let mut checker = one_channel();
        for sequence in 0..5 {
            assert!(checker.take(0, &stamp(0, sequence)));
            assert!(checker.take(1, &stamp(0, sequence)));
        }
        assert_eq!(checker.due(5), 10);
        let counts = checker.finish(5);
        assert_eq!(counts, Counts { received: 10, ..Counts::default() });
        assert!(counts.intact());
    }

    #[test]
    fn a_hole_a_first_and_a_last_one_missing_are_gaps() {
        let mut checker = one_channel();
        for sequence in [0, 1, 3] {
            checker.take(0, &stamp(0, sequence));
        }
        for sequence in [1, 2] {
            checker.take(1, &stamp(0, sequence));
        }
        let counts = checker.finish(4);
        assert_eq!((counts.received, counts.gaps, counts.duplicates, counts.disordered), (5, 3, 0, 0));
        assert!(!counts.intact());
    }

    #[test]
    fn a_second_delivery_is_a_duplicate() {
        let mut checker = one_channel();
        assert!(checker.take(0, &stamp(0, 0)));
        assert!(!checker.take(0, &stamp(0, 0)));
        assert_eq!(checker.finish(0).duplicates, 1);
        assert!(!checker.finish(0).intact());
    }

    #[test]
    fn a_late_delivery_is_disorder_and_no_gap() {
        let mut checker = one_channel();
        for sequence in [0, 2, 1] {
            assert!(checker.take(0, &stamp(0, sequence)));
        }
        assert!(!checker.take(0, &stamp(0, 1)), "the hole is filled: a second one is a duplicate");
        let counts = checker.finish(0);
        assert_eq!((counts.received, counts.gaps, counts.duplicates, counts.disordered), (3, 0, 1, 1));
    }

    #[test]
    fn another_run_or_channel_is_foreign() {
        let mut checker = Checker::new(Layout { channels: 4, subscriptions: 2 }, RUN, 0, 1);
        assert!(checker.take(0, &stamp(1, 0)));
        assert!(!checker.take(0, &stamp(2, 0)), "connection 0 has channels 0 and 1");
        assert!(!checker.take(0, &stamp(9, 0)));
        assert!(!checker.take(0, &Stamp { run: RUN + 1, ..stamp(0, 0) }));
        assert_eq!(checker.finish(0).foreign, 3);
    }

    #[test]
    fn due_counts_every_subscription_of_the_worker() {
        // Connections 3, 4, 5 of a run over 5 channels with 2 subscriptions each: (1,2) (3,4) (0,1).
        let layout = Layout { channels: 5, subscriptions: 2 };
        let checker = Checker::new(layout, RUN, 3, 3);
        assert_eq!(checker.due(5), 6);
        assert_eq!(checker.due(1), 1);
        assert_eq!(checker.due(2), 3);
        assert_eq!(checker.due(12), 15);
        for connection in 3..6 {
            for index in 0..2 {
                assert_eq!(layout.index(connection, layout.channel(connection, index)), Some(index));
            }
        }
    }
}
