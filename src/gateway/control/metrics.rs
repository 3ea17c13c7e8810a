//! Metrics of the shards on their way to `/metrics`.
//!
//! In: each shard's loop copies its counters here now and then. Out: Prometheus text format 0.0.4.
//! Invariants: a shard writes only its own array, with relaxed stores and no lock; the reader may see numbers of
//! neighbouring moments, never a torn number; every row of the engine's table is rendered, also while it is 0.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use ringway_engine::metrics::{self, Kind, Metrics, Row, TABLE};
use ringway_wire::close::CloseReason;

use crate::auth::Auth;
use crate::backplane::metrics::BackplaneMetrics;

/// Name of the counter of closes by reason, which is not a row of the engine's table.
pub const CLOSES_NAME: &str = "ringway_closes_total";
/// Its help text.
pub const CLOSES_HELP: &str = "Connections that Ringway ended, by reason; CLOSE_CODES.md says what each means.";

/// The published numbers of one shard, in cache lines of their own so that shards do not slow each other.
#[derive(Debug)]
#[repr(align(128))]
struct ShardMetrics {
    values: [AtomicU64; metrics::COUNT],
    closes: [AtomicU64; CloseReason::COUNT],
}

/// The published numbers of all shards.
#[derive(Debug)]
pub struct MetricsHub {
    shards: Vec<ShardMetrics>,
    /// Set once, before anybody reads.
    auth: OnceLock<Arc<Auth>>,
    /// Likewise, if there is a backplane.
    backplane: OnceLock<Arc<BackplaneMetrics>>,
}

impl MetricsHub {
    /// All zero, for this many shards.
    pub fn new(shards: usize) -> Arc<Self> {
        let zero = || ShardMetrics {
            values: [const { AtomicU64::new(0) }; metrics::COUNT],
            closes: [const { AtomicU64::new(0) }; CloseReason::COUNT],
        };
        Arc::new(MetricsHub {
            shards: (0..shards).map(|_| zero()).collect(),
            auth: OnceLock::new(),
            backplane: OnceLock::new(),
        })
    }

    /// Also shows the numbers about tokens.
    pub fn show_auth(&self, auth: &Arc<Auth>) {
        // A second one would be of the same process, and is not there.
        let _ = self.auth.set(Arc::clone(auth));
    }

    /// Also shows the numbers about the backplane.
    pub fn show_backplane(&self, backplane: &Arc<BackplaneMetrics>) {
        // As above.
        let _ = self.backplane.set(Arc::clone(backplane));
    }

    /// The numbers about the backplane, if there is one.
    pub fn backplane(&self) -> Option<&Arc<BackplaneMetrics>> {
        self.backplane.get()
    }

    /// Publishes a shard's numbers; a few hundred bytes of plain stores. A shard that does not exist is ignored.
    pub fn publish(&self, shard: usize, metrics: &Metrics) {
        let Some(place) = self.shards.get(shard) else { return };
        for (place, value) in place.values.iter().zip(metrics.values()) {
            place.store(*value, Ordering::Relaxed);
        }
        for (place, value) in place.closes.iter().zip(metrics.closes()) {
            place.store(*value, Ordering::Relaxed);
        }
    }

    /// One row of one shard; 0 for a shard that does not exist.
    pub fn of(&self, shard: usize, metric: metrics::Metric) -> u64 {
        self.shards.get(shard).map_or(0, |numbers| numbers.values[metric as usize].load(Ordering::Relaxed))
    }

    /// Sum of one row over all shards.
    pub fn total(&self, metric: metrics::Metric) -> u64 {
        self.shards.iter().map(|s| s.values[metric as usize].load(Ordering::Relaxed)).fold(0, u64::wrapping_add)
    }

    /// Appends all rows, each with a `shard` label.
    pub(super) fn render(&self, out: &mut String) {
        for (index, row) in TABLE.iter().enumerate() {
            // Rows of one name form one family, rendered where the first of them stands.
            if TABLE[..index].iter().any(|earlier| earlier.name == row.name) {
                continue;
            }
            let family: Vec<(usize, &Row)> =
                TABLE.iter().enumerate().skip(index).filter(|(_, r)| r.name == row.name).collect();
            push_header(out, row.name, kind_name(row.kind), &family_help(&family));
            for (index, row) in family {
                for (shard, numbers) in self.shards.iter().enumerate() {
                    let comma = if row.labels.is_empty() { "" } else { "," };
                    let value = numbers.values[index].load(Ordering::Relaxed);
                    let _ = writeln!(out, "{}{{{}{comma}shard=\"{shard}\"}} {value}", row.name, row.labels);
                }
            }
        }
        push_header(out, CLOSES_NAME, "counter", CLOSES_HELP);
        for reason in CloseReason::ALL {
            for (shard, numbers) in self.shards.iter().enumerate() {
                let value = numbers.closes[*reason as usize].load(Ordering::Relaxed);
                let (label, code) = (reason.label(), reason.code());
                let _ = writeln!(out, "{CLOSES_NAME}{{reason=\"{label}\",code=\"{code}\",shard=\"{shard}\"}} {value}");
            }
        }
        if let Some(auth) = self.auth.get() {
            auth.render_metrics(out);
        }
        if let Some(backplane) = self.backplane.get() {
            backplane.render(out);
        }
    }
}

/// The word of the text format for a kind.
pub const fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
    }
}

/// A family has one help text; with several rows it says which is which.
fn family_help(family: &[(usize, &Row)]) -> String {
    match family {
        [(_, row)] => row.help.to_string(),
        rows => {
            let parts: Vec<String> = rows.iter().map(|(_, row)| format!("{}: {}", row.labels, row.help)).collect();
            parts.join(" ")
        }
    }
}

/// The two comment lines before a family. Help text has no newline or backslash to escape (a test checks the table).
pub(super) fn push_header(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringway_engine::metrics::Metric;

    #[test]
    fn every_row_of_every_shard_is_rendered_once() {
        let hub = MetricsHub::new(2);
        let mut metrics = Metrics::new();
        metrics.add(Metric::ConnectionsAccepted, 5);
        metrics.closed(CloseReason::Slow);
        hub.publish(1, &metrics);
        hub.publish(7, &metrics);
        let mut out = String::new();
        hub.render(&mut out);

        for row in TABLE {
            for shard in 0..2 {
                let comma = if row.labels.is_empty() { "" } else { "," };
                let series = format!("{}{{{}{comma}shard=\"{shard}\"}} ", row.name, row.labels);
                assert_eq!(out.lines().filter(|l| l.starts_with(&series)).count(), 1, "{series}");
            }
        }
        assert!(out.contains("ringway_connections_accepted_total{shard=\"0\"} 0\n"));
        assert!(out.contains("ringway_connections_accepted_total{shard=\"1\"} 5\n"));
        assert!(out.contains("ringway_closes_total{reason=\"slow\",code=\"3008\",shard=\"1\"} 1\n"));
        assert_eq!(hub.total(Metric::ConnectionsAccepted), 5);
    }

    #[test]
    fn a_family_has_one_header_and_stands_together() {
        let hub = MetricsHub::new(3);
        let mut out = String::new();
        hub.render(&mut out);
        let mut seen = std::collections::HashSet::new();
        let mut current = String::new();
        for line in out.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                current = rest.split(' ').next().unwrap_or_default().to_string();
                assert!(seen.insert(current.clone()), "{current} has two headers");
            } else if !line.starts_with('#') {
                assert_eq!(line.split('{').next(), Some(current.as_str()), "stands outside its family: {line}");
            }
        }
    }

    #[test]
    fn help_needs_no_escapes_and_kinds_agree() {
        for row in TABLE {
            assert!(!row.help.contains(['\n', '\\']), "{}", row.name);
            assert!(TABLE.iter().all(|r| r.name != row.name || r.kind == row.kind), "{}", row.name);
        }
    }
}
