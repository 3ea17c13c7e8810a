//! Numbers about tokens, for the whole process.
//!
//! In: one relaxed addition per token, fetch or revocation, from any thread. Out: rows of `/metrics` and of the
//! generated page. Invariant: every row is rendered, also while it is 0.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// One metric. A name stands in several rows when it has labels, side by side.
#[derive(Clone, Copy, Debug)]
pub struct AuthRow {
    /// Name as Prometheus sees it.
    pub name: &'static str,
    /// Labels as they are written between braces; empty: none.
    pub labels: &'static str,
    /// `counter` or `gauge`.
    pub kind: &'static str,
    /// What it is.
    pub help: &'static str,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Claims were given.
    Ok,
    /// Malformed, wrongly signed, of an unknown key, not for us, not yet valid.
    Invalid,
    /// Its time is over.
    Expired,
    /// Its id is revoked.
    Revoked,
    /// Asked to come again.
    Busy,
}

/// Index of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the rows say what each is")]
pub enum Number {
    PoolFull = 10,
    AnswersDelayed,
    JwksFetched,
    JwksFailed,
    JwksKeys,
    Revoked,
    RevokedForgotten,
}

const CHECKED: &str = "ringway_tokens_checked_total";
const CHECKED_HELP: &str = "Tokens checked, by kind and result. invalid: malformed, wrongly signed, of an unknown key, not for this node or not yet valid; busy: the pool was full or the key set is being fetched.";
const FETCHES: &str = "ringway_jwks_fetches_total";
const FETCHES_HELP: &str = "Fetches of auth.jwks_url by result. While they fail the keys of the last good one stay.";

const fn checked(labels: &'static str) -> AuthRow {
    AuthRow { name: CHECKED, labels, kind: "counter", help: CHECKED_HELP }
}

/// Every metric about tokens: five results of connection tokens, five of subscription tokens, then [`Number`]s.
pub const AUTH_ROWS: &[AuthRow] = &[
    checked("kind=\"connect\",result=\"ok\""),
    checked("kind=\"connect\",result=\"invalid\""),
    checked("kind=\"connect\",result=\"expired\""),
    checked("kind=\"connect\",result=\"revoked\""),
    checked("kind=\"connect\",result=\"busy\""),
    checked("kind=\"subscribe\",result=\"ok\""),
    checked("kind=\"subscribe\",result=\"invalid\""),
    checked("kind=\"subscribe\",result=\"expired\""),
    checked("kind=\"subscribe\",result=\"revoked\""),
    checked("kind=\"subscribe\",result=\"busy\""),
    AuthRow {
        name: "ringway_token_pool_full_total",
        labels: "",
        kind: "counter",
        help: "Tokens answered busy because auth.pool_queue_max were waiting already.",
    },
    AuthRow {
        name: "ringway_token_answers_delayed_total",
        labels: "",
        kind: "counter",
        help: "Verdicts that a pool thread had to offer again because the asking shard's queue was full.",
    },
    AuthRow { name: FETCHES, labels: "result=\"ok\"", kind: "counter", help: FETCHES_HELP },
    AuthRow { name: FETCHES, labels: "result=\"failed\"", kind: "counter", help: FETCHES_HELP },
    AuthRow { name: "ringway_jwks_keys", labels: "", kind: "gauge", help: "Keys from auth.jwks_url in use." },
    AuthRow {
        name: "ringway_revoked_tokens",
        labels: "",
        kind: "gauge",
        help: "Token ids that are revoked and have not expired.",
    },
    AuthRow {
        name: "ringway_revoked_tokens_forgotten_total",
        labels: "",
        kind: "counter",
        help: "Revoked token ids forgotten before they expired, because there were more than auth.revoked_tokens_max.",
    },
];

/// The numbers.
#[derive(Debug, Default)]
pub struct AuthMetrics([AtomicU64; AUTH_ROWS.len()]);

impl AuthMetrics {
    /// Counts a check.
    pub fn checked(&self, subscription: bool, outcome: Outcome) {
        self.0[5 * usize::from(subscription) + outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Adds to a number.
    pub fn add(&self, number: Number, by: u64) {
        self.0[number as usize].fetch_add(by, Ordering::Relaxed);
    }

    /// Sets a number.
    pub fn set(&self, number: Number, value: u64) {
        self.0[number as usize].store(value, Ordering::Relaxed);
    }

    /// A row's value, by name and labels as in [`AUTH_ROWS`]; 0 for any other.
    pub fn value(&self, name: &str, labels: &str) -> u64 {
        let row = AUTH_ROWS.iter().position(|row| row.name == name && row.labels == labels);
        row.map_or(0, |row| self.0[row].load(Ordering::Relaxed))
    }

    /// Appends all rows.
    pub fn render(&self, out: &mut String) {
        let mut last = "";
        for (row, value) in AUTH_ROWS.iter().zip(&self.0) {
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
        let metrics = AuthMetrics::default();
        metrics.checked(false, Outcome::Ok);
        metrics.checked(true, Outcome::Busy);
        metrics.add(Number::PoolFull, 3);
        metrics.add(Number::RevokedForgotten, 4);
        metrics.set(Number::JwksKeys, 5);
        metrics.add(Number::JwksFailed, 6);
        for (name, labels, value) in [
            (CHECKED, "kind=\"connect\",result=\"ok\"", 1),
            (CHECKED, "kind=\"subscribe\",result=\"busy\"", 1),
            ("ringway_token_pool_full_total", "", 3),
            ("ringway_revoked_tokens_forgotten_total", "", 4),
            ("ringway_jwks_keys", "", 5),
            (FETCHES, "result=\"failed\"", 6),
        ] {
            assert_eq!(metrics.value(name, labels), value, "{name} {labels}");
        }
        let mut out = String::new();
        metrics.render(&mut out);
        assert_eq!(out.lines().filter(|line| !line.starts_with('#')).count(), AUTH_ROWS.len());
        assert_eq!(out.lines().filter(|line| line.starts_with("# TYPE")).count(), 7);
        assert!(out.contains("ringway_tokens_checked_total{kind=\"subscribe\",result=\"busy\"} 1\n"), "{out}");
    }
}
