//! Histograms that merge, and what a run says at its end: a table for people, one JSON object for machines.
//!
//! In: latencies in ns, counts, costs. Out: text.
//! Invariant: merging the buckets of several workers gives the histogram that one worker would have had.
use std::collections::BTreeMap;
use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::checker::Counts;

/// Smallest latency told apart, in ns.
const LATENCY_NS_MIN: u64 = 1_000;
/// Longest latency, in ns; longer ones count as this.
const LATENCY_NS_MAX: u64 = 120_000_000_000;
/// Significant digits of a latency.
const LATENCY_DIGITS: u8 = 3;

/// A histogram of latencies in ns.
#[derive(Clone, Debug)]
pub struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        Latency::new()
    }
}

impl Latency {
    /// An empty one.
    pub fn new() -> Latency {
        let histogram = Histogram::new_with_bounds(LATENCY_NS_MIN, LATENCY_NS_MAX, LATENCY_DIGITS);
        Latency(histogram.expect("the bounds are constants that the histogram accepts"))
    }

    /// Counts one.
    #[inline]
    pub fn record(&mut self, latency_ns: u64) {
        self.0.saturating_record(latency_ns);
    }

    /// Adds another worker's.
    pub fn add(&mut self, buckets: &Buckets) {
        for &(latency_ns, count) in &buckets.0 {
            self.0.saturating_record_n(latency_ns, count);
        }
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that this share of all stays within, in microseconds.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }

    /// What it holds, to be sent.
    pub fn buckets(&self) -> Buckets {
        Buckets(self.0.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect())
    }

    fn json(&self) -> Value {
        json!({
            "count": self.count(),
            "min_us": self.0.min() as f64 / 1e3,
            "mean_us": round(self.0.mean() / 1e3),
            "p50_us": self.quantile_us(0.5),
            "p90_us": self.quantile_us(0.9),
            "p99_us": self.quantile_us(0.99),
            "p999_us": self.quantile_us(0.999),
            "max_us": self.0.max() as f64 / 1e3,
        })
    }
}

/// The non-empty buckets of a histogram: (latency in ns, count).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buckets(pub Vec<(u64, u64)>);

/// The result of a run.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<(&'static str, Value)>,
    counts: Option<Counts>,
    problems: Vec<String>,
    lossy: bool,
}

impl Report {
    /// A result without rows; `lossy`: wrong deliveries do not fail the run.
    pub fn new(lossy: bool) -> Report {
        Report { lossy, ..Report::default() }
    }

    /// Adds a row. Names end in their unit.
    pub fn row(&mut self, name: &'static str, value: impl Into<Value>) {
        self.rows.push((name, value.into()));
    }

    /// Adds a number, rounded to four significant digits behind which nothing is known.
    pub fn number(&mut self, name: &'static str, value: f64) {
        self.rows.push((name, round(value).into()));
    }

    /// Adds a histogram.
    pub fn latency(&mut self, name: &'static str, latency: &Latency) {
        if latency.count() > 0 {
            self.rows.push((name, latency.json()));
        }
    }

    /// Adds counted reasons, if there are any.
    pub fn reasons(&mut self, name: &'static str, reasons: &BTreeMap<String, u64>) {
        if !reasons.is_empty() {
            self.rows.push((name, json!(reasons)));
        }
    }

    /// Adds the deliveries.
    pub fn counts(&mut self, counts: &Counts) {
        self.counts = Some(*counts);
        self.rows.push(("deliveries", json!(counts)));
    }

    /// Something that fails the run, whatever was counted.
    pub fn problem(&mut self, text: String) {
        self.problems.push(text);
    }

    /// Whether the run counts as good.
    pub fn intact(&self) -> bool {
        self.problems.is_empty() && (self.lossy || self.counts.is_none_or(|counts| counts.intact()))
    }

    /// One JSON object.
    pub fn json(&self) -> Value {
        let mut map: Map<String, Value> =
            self.rows.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
        map.insert("intact".to_string(), self.intact().into());
        map.insert("problems".to_string(), json!(self.problems));
        Value::Object(map)
    }

    /// Lines of name and value.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let width = self.rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in &self.rows {
            if let Value::Array(items) = value {
                for item in items {
                    let _ = writeln!(out, "{name:width$}  {}", line(item));
                }
                continue;
            }
            let _ = writeln!(out, "{name:width$}  {}", line(value));
        }
        for problem in &self.problems {
            let _ = writeln!(out, "PROBLEM: {problem}");
        }
        let verdict = if self.intact() { "every delivery right" } else { "FAILED" };
        let _ = writeln!(out, "{:width$}  {verdict}", "verdict");
        out
    }
}

fn line(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let parts: Vec<String> = map.iter().map(|(name, value)| format!("{name} {value}")).collect();
            parts.join("  ")
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let scale = 10f64.powf(3.0 - value.abs().log10().floor());
    if scale < 1.0 { value.round() } else { (value * scale).round() / scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_histograms_equal_one() {
        let (mut whole, mut parts) = (Latency::new(), [Latency::new(), Latency::new(), Latency::new()]);
        let mut value = 1u64;
        for index in 0..10_000usize {
            value = value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let latency_ns = 1_000 + (value >> 33) % 2_000_000_000;
            whole.record(latency_ns);
            parts[index % 3].record(latency_ns);
        }
        let mut merged = Latency::new();
        for part in &parts {
            let sent = serde_json::to_string(&part.buckets()).expect("JSON");
            merged.add(&serde_json::from_str(&sent).expect("JSON"));
        }
        assert_eq!(merged.buckets(), whole.buckets());
        assert_eq!(merged.count(), 10_000);
        for quantile in [0.0, 0.5, 0.9, 0.99, 0.999, 1.0] {
            assert_eq!(merged.quantile_us(quantile), whole.quantile_us(quantile));
        }
    }

    #[test]
    fn wrong_deliveries_fail_unless_lossy() {
        let wrong = Counts { received: 9, gaps: 1, ..Counts::default() };
        for (lossy, counts, good) in [(false, wrong, false), (true, wrong, true), (false, Counts::default(), true)] {
            let mut report = Report::new(lossy);
            report.counts(&counts);
            assert_eq!(report.intact(), good);
            assert_eq!(report.json()["intact"], good);
        }
        let mut report = Report::new(true);
        report.problem("stalled".to_string());
        assert!(!report.intact());
    }

    #[test]
    fn rounding_keeps_four_digits() {
        assert_eq!(round(4.123_456), 4.123);
        assert_eq!(round(230_123.7), 230_124.0);
        assert_eq!(round(0.0), 0.0);
    }
}
