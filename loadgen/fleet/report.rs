//! What a worker of a fleet run found, and how the parts of all workers add up.
//!
//! In: counts of workers. Out: their sums. Invariant: merging keeps every number; times stay histograms.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::check::{Counts, Unconfirmed};
use super::reconnect::Rate;
use crate::report::{Buckets, Latency};

/// Reasons counted by text. Over: under [`OTHER_REASONS`].
pub const REASONS_MAX: usize = 64;
/// Where further reasons are counted.
pub const OTHER_REASONS: &str = "others";

/// Adds one to a reason.
pub fn count_reason(reasons: &mut BTreeMap<String, u64>, reason: &str) {
    if let Some(count) = reasons.get_mut(reason) {
        *count += 1;
        return;
    }
    let name = if reasons.len() < REASONS_MAX { reason } else { OTHER_REASONS };
    *reasons.entry(name.to_string()).or_default() += 1;
}

/// One worker's results.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FleetReport {
    /// What came, and what was wrong with it.
    pub counts: Counts,
    /// How numbers look that nobody confirmed.
    pub unconfirmed: Vec<Unconfirmed>,
    /// The first deliveries that came again or late, in words; `EXAMPLES_MAX` of each worker.
    pub examples: Vec<String>,
    /// Connections established behind the first of each client, by time.
    pub reconnected: Rate,
    /// Why connections that stood ended, with counts.
    pub closes: BTreeMap<String, u64>,
    /// Why connections did not come to stand, with counts.
    pub refusals: BTreeMap<String, u64>,
    /// Subscribes that were refused and tried again, by error.
    pub refused_subscribes: BTreeMap<String, u64>,
    /// Publishes that were refused and tried again, by error.
    pub refused_publishes: BTreeMap<String, u64>,
    /// Pushes that told a client to subscribe again, by code.
    pub resubscribes: BTreeMap<String, u64>,
    /// What must not happen: clients and subscriptions sent away for good, deliveries of other channels, by reason.
    pub faults: BTreeMap<String, u64>,
    /// Connections established, the first of each client included.
    pub established: u64,
    /// Clients that are connected with every subscription.
    pub whole: u32,
    /// Publications of clients that were confirmed.
    pub published: u64,
    /// Unsubscribes that clients sent of their own accord.
    pub left: u64,
    /// Subscribes to what they had left.
    pub returned: u64,
    /// Connections that the run itself cut.
    pub cut_off: u64,
    /// Longest time of each client without a message while the load ran, in ns.
    pub silence: Buckets,
    /// From the end of a connection to the first message behind it, in ns.
    pub interruption: Buckets,
    /// From the end of a connection until every subscription stood again, in ns.
    pub absence: Buckets,
    /// From the time at which a publication was due to its delivery, in ns.
    pub latency: Buckets,
    /// Memory of the process, in bytes.
    pub resident_bytes: u64,
    /// CPU of the process, in ns.
    pub cpu_ns: u64,
}

/// All workers together.
#[derive(Debug, Default)]
pub struct FleetSum {
    /// Sums; the histograms in it stay empty.
    pub report: FleetReport,
    /// Longest time of each client without a message.
    pub silence: Latency,
    /// From the end of a connection to the first message behind it.
    pub interruption: Latency,
    /// From the end of a connection until every subscription stood again.
    pub absence: Latency,
    /// Delivery latency.
    pub latency: Latency,
}

impl FleetSum {
    /// Adds one worker's.
    pub fn add(&mut self, part: FleetReport) {
        self.silence.add(&part.silence);
        self.interruption.add(&part.interruption);
        self.absence.add(&part.absence);
        self.latency.add(&part.latency);
        let sum = &mut self.report;
        sum.counts.add(&part.counts);
        sum.unconfirmed.extend(part.unconfirmed);
        sum.examples.extend(part.examples);
        sum.reconnected.add(&part.reconnected);
        for (into, from) in [
            (&mut sum.closes, part.closes),
            (&mut sum.refusals, part.refusals),
            (&mut sum.refused_subscribes, part.refused_subscribes),
            (&mut sum.refused_publishes, part.refused_publishes),
            (&mut sum.resubscribes, part.resubscribes),
            (&mut sum.faults, part.faults),
        ] {
            for (reason, count) in from {
                *into.entry(reason).or_default() += count;
            }
        }
        sum.established += part.established;
        sum.whole += part.whole;
        sum.published += part.published;
        sum.left += part.left;
        sum.returned += part.returned;
        sum.cut_off += part.cut_off;
        sum.resident_bytes += part.resident_bytes;
        sum.cpu_ns += part.cpu_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_bounded() {
        let mut reasons = BTreeMap::new();
        for number in 0..200 {
            count_reason(&mut reasons, &format!("r{number}"));
            count_reason(&mut reasons, "r0");
        }
        assert_eq!((reasons.len(), reasons["r0"], reasons[OTHER_REASONS]), (REASONS_MAX + 1, 201, 136));
    }
}
