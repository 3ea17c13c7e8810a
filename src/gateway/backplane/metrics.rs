//! Numbers about the backplane, for the whole process.
//!
//! In: one relaxed addition per fact, from the backplane's thread. Out: rows of `/metrics` and of the generated page.
//! Invariant: every row is rendered while a backplane is configured, also while it is 0.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use ringway_engine::backplane::Refusal;

use crate::auth::metrics::AuthRow as Row;

/// Index of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the rows say what each is")]
pub enum Number {
    Requests,
    Unavailable,
    Unknown,
    InFlight,
    InFlightBytes,
    FeedMessages,
    FeedBytes,
    FeedMalformed,
    Connects,
    ConnectsFailed,
    Brokens,
    BucketsOpen,
    RoundTrips,
    RoundTripNanos,
    Stale,
    Unreplicated,
    PagesCut,
    Registrations,
    LivingNodes,
    SpillBytes,
    Spilled,
    SpillLost,
    NodesUnknown,
    NodesMissing,
    NodeQuestionsRefused,
    NodeAnswersDropped,
}

const fn counter(name: &'static str, labels: &'static str, help: &'static str) -> Row {
    Row { name, labels, kind: "counter", help }
}

const fn gauge(name: &'static str, help: &'static str) -> Row {
    Row { name, labels: "", kind: "gauge", help }
}

const REFUSED: &str = "ringway_backplane_refused_total";
const REFUSED_HELP: &str = "Requests that the backplane did not carry out (unavailable) or may have carried out (unknown; publishes are sent again under their number).";
const CONNECTS: &str = "ringway_backplane_connects_total";
const CONNECTS_HELP: &str = "Openings of connections to a primary of the engine, by result.";

/// Every metric of the backplane, in the order of [`Number`].
pub const BACKPLANE_ROWS: &[Row] = &[
    counter("ringway_backplane_requests_total", "", "Requests of channels' owners to the backplane."),
    counter(REFUSED, "reason=\"unavailable\"", REFUSED_HELP),
    counter(REFUSED, "reason=\"unknown\"", REFUSED_HELP),
    gauge("ringway_backplane_requests_in_flight", "Requests without an answer."),
    gauge("ringway_backplane_bytes_in_flight", "Memory of those requests."),
    counter("ringway_backplane_feed_messages_total", "", "Messages that came in this node's inboxes."),
    counter("ringway_backplane_feed_bytes_total", "", "Bytes of those messages."),
    counter(
        "ringway_backplane_feed_malformed_total",
        "",
        "Messages that could not be read; the connection was opened again. Some other program publishes there, or nodes differ in version.",
    ),
    counter(CONNECTS, "result=\"ok\"", CONNECTS_HELP),
    counter(CONNECTS, "result=\"failed\"", CONNECTS_HELP),
    counter(
        "ringway_backplane_broken_total",
        "",
        "Times that a primary, or buckets of it, could not be reached any more. Everything followed there was followed again.",
    ),
    gauge(
        "ringway_backplane_buckets_open",
        "Buckets, of 4096, that can be reached now. Fewer: the engine, or a part of it, is away.",
    ),
    counter("ringway_backplane_round_trips_total", "", "Requests that were answered by the engine."),
    counter(
        "ringway_backplane_round_trip_nanoseconds_total",
        "",
        "Time from sending those requests to their answers; divided by their number it is the mean round trip.",
    ),
    counter(
        "ringway_backplane_stale_total",
        "",
        "Calls that met a replication id other than their connection's: after a failover one per channel, which begins a new epoch.",
    ),
    counter(
        "ringway_backplane_unreplicated_total",
        "",
        "Publishes with durability fleet that were not begun because the primary had no replica that could confirm them; they wait for limits.backplane_wait_ms.",
    ),
    counter(
        "ringway_backplane_pages_cut_total",
        "",
        "Answers to follows that lack older records at limits.page_bytes_max. Who needed them is told.",
    ),
    counter(
        "ringway_backplane_registrations_total",
        "",
        "Times this node was registered: 1 at start, more when its lease was lost (the process stood still, or the engine came back empty).",
    ),
    gauge("ringway_backplane_nodes", "Nodes alive, by the engine's registry."),
    gauge("ringway_backplane_spill_bytes", "Bytes of events that wait for shards whose queues are full."),
    counter(
        "ringway_backplane_spilled_total",
        "",
        "Batches of events that had to wait because a shard's queue was full.",
    ),
    counter(
        "ringway_backplane_feed_lost_total",
        "",
        "Fed messages that were dropped at backplane.spill_bytes_max; the shard was told and follows its channels again.",
    ),
    counter(
        "ringway_backplane_nodes_unknown_total",
        "",
        "Calls about all nodes (info, channels) answered by this node alone, because the engine did not say who else there is within limits.nodes_wait_ms.",
    ),
    counter(
        "ringway_backplane_nodes_missing_total",
        "",
        "Nodes that were left out of an answer of channels, and named in it: they did not answer within limits.nodes_wait_ms, or were cut off.",
    ),
    counter(
        "ringway_backplane_node_questions_refused_total",
        "",
        "Calls of channels refused as busy because 64 of them waited for other nodes.",
    ),
    counter(
        "ringway_backplane_node_answers_dropped_total",
        "",
        "Questions and answers of other nodes that could not be read, came too late, or found no room.",
    ),
];

/// The numbers.
#[derive(Debug, Default)]
pub struct BackplaneMetrics([AtomicU64; BACKPLANE_ROWS.len()]);

impl BackplaneMetrics {
    /// Adds to a number.
    pub fn add(&self, number: Number, by: u64) {
        self.0[number as usize].fetch_add(by, Ordering::Relaxed);
    }

    /// Takes from a gauge.
    pub fn sub(&self, number: Number, by: u64) {
        self.0[number as usize].fetch_sub(by, Ordering::Relaxed);
    }

    /// Sets a gauge.
    pub fn set(&self, number: Number, value: u64) {
        self.0[number as usize].store(value, Ordering::Relaxed);
    }

    /// A number.
    pub fn get(&self, number: Number) -> u64 {
        self.0[number as usize].load(Ordering::Relaxed)
    }

    /// Counts a refusal.
    pub fn refused(&self, refusal: Refusal) {
        self.add(if refusal == Refusal::Unknown { Number::Unknown } else { Number::Unavailable }, 1);
    }

    /// Appends all rows.
    pub fn render(&self, out: &mut String) {
        let mut last = "";
        for (row, value) in BACKPLANE_ROWS.iter().zip(&self.0) {
            if row.name != last {
                let _ = writeln!(out, "# HELP {} {}\n# TYPE {} {}", row.name, row.help, row.name, row.kind);
                last = row.name;
            }
            let labels = if row.labels.is_empty() { String::new() } else { format!("{{{}}}", row.labels) };
            let _ = writeln!(out, "{}{labels} {}", row.name, value.load(Ordering::Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_stands_in_its_row() {
        let metrics = BackplaneMetrics::default();
        metrics.add(Number::Requests, 1);
        metrics.refused(Refusal::Unknown);
        metrics.add(Number::SpillLost, 3);
        metrics.set(Number::LivingNodes, 4);
        let mut out = String::new();
        metrics.render(&mut out);
        for line in [
            "ringway_backplane_requests_total 1\n",
            "ringway_backplane_refused_total{reason=\"unknown\"} 1\n",
            "ringway_backplane_feed_lost_total 3\n",
            "ringway_backplane_nodes 4\n",
        ] {
            assert!(out.contains(line), "{line} {out}");
        }
        assert_eq!(out.lines().filter(|line| !line.starts_with('#')).count(), BACKPLANE_ROWS.len());
    }
}
