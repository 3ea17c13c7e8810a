//! Fleet tests: several nodes on one engine behind HAProxy, restarted, killed and failed over under load.
//!
//! In: the binaries of `ringway` and `ringway-loadgen`, and what tests/sdk/install.sh installs (redis-server, HAProxy,
//! Valkey). Out: pass or fail; on a fail the end of every log, and the folder with all of them. What was lost, doubled or
//! out of order is counted by the load generator's checker, whose own tests are in `loadgen/fleet/check_tests.rs`.
//! One test binary; run one file with `cargo test -p ringway-tests --test fleet one_node::`.
#![allow(clippy::print_stdout, reason = "what was measured belongs into the output of the test")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time and start real threads")]

mod clients;
mod engines;
mod failures;
mod handover;
mod lost_tail;
mod one_node;
#[allow(dead_code, reason = "tests of the backplane also let it delay")]
#[path = "../backplane/proxy.rs"]
mod proxy;
mod registry;
mod three_nodes;
mod under_fire;

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

/// Each test starts many processes, so on a small machine they run one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number of a load's report, by its path (`deliveries.lost`).
fn number(report: &Value, path: &str) -> u64 {
    let found = path.split('.').try_fold(report, |value, key| value.get(key)).and_then(Value::as_u64);
    found.unwrap_or_else(|| panic!("the report has no number {path}: {report:#}"))
}

/// What no fleet may do, whatever happens to it.
fn assert_never_silent(report: &Value) {
    for wrong in ["lost", "duplicates", "disordered", "wrong_offsets", "wrong_epochs", "foreign", "not_remembered"] {
        assert_eq!(number(report, &format!("deliveries.{wrong}")), 0, "{wrong}: {report:#}");
    }
    assert_eq!(number(report, "acknowledged_wrong_offsets"), 0, "{report:#}");
    assert_eq!(report["settled"], true, "{report:#}");
    assert_eq!(report["intact"], true, "{report:#}");
    assert!(number(report, "deliveries.received") > 0, "{report:#}");
}

/// The same, and nothing was announced either.
fn assert_nothing_lost(report: &Value) {
    assert_never_silent(report);
    for wrong in ["announced", "announced_repeats", "unrecovered"] {
        assert_eq!(number(report, &format!("deliveries.{wrong}")), 0, "{wrong}: {report:#}");
    }
}

/// The line of a report that belongs into a test's output.
fn summary(report: &Value) -> String {
    let deliveries = &report["deliveries"];
    format!(
        "received {} recovered {} lost {} duplicates {} disordered {} announced {} | connections lost {} 3001 {} refused \
         {} reconnected/s max {} | published again {} duplicate acknowledgements {} | silence p50/p99 {}/{} ms",
        deliveries["received"],
        deliveries["recovered"],
        deliveries["lost"],
        deliveries["duplicates"],
        deliveries["disordered"],
        deliveries["announced"],
        report["connections_lost"],
        report["closed_3001"],
        report["refused_connects"],
        report["reconnected_per_s_max"],
        report["published_again"],
        report["acknowledged_as_duplicate"],
        report["silence"]["p50_us"].as_f64().unwrap_or(0.0) as u64 / 1000,
        report["silence"]["p99_us"].as_f64().unwrap_or(0.0) as u64 / 1000,
    )
}
