//! A primary that is killed while its replicas have not all of it: with WAIT nothing acknowledged is lost, without it what
//! is lost is announced. Replicas are cut off first, so that a tail is lost in every run, not only in an unlucky one.

use std::time::Duration;

use ringway_tests::fleet::{Engine, Failover, Fleet, NodeOptions, Workspace};
use serde_json::Value;

use super::{assert_never_silent, number, summary, turn};

const CLIENTS: u32 = 100;
/// Publishers over ingest alone publish a number until it is acknowledged. Some clients are away at any time: who is there
/// sees the tail before it is lost.
const LOAD: &[&str] = &[
    "-m",
    "40",
    "--written-by-clients",
    "0",
    "--rate-per-channel",
    "4",
    "--backoff-min-ms",
    "1500",
    "--allow-announced",
    "--cuts-per-s",
    "20",
];

/// What the load has seen of a failover whose promoted replica lacks the primary's last publications.
fn failed_over(name: &str, durability: &str) -> (Value, u64) {
    let workspace = Workspace::new(name);
    let mut redis = Failover::with_replicas(&workspace, Engine::Redis, 2);
    let mut options = NodeOptions::on("sentinel", &redis.addresses).with(&["limits.backplane_wait_ms=2000"]);
    options.rules = vec![format!("durability = \"{durability}\"")];
    let fleet = Fleet::start(&workspace, 3, &options);
    let mut load = fleet.load(&workspace, CLIENTS, LOAD);
    load.wait_deliveries(2_000);
    redis.cut_replication();
    // Behind a second every publish that a replica may have had is answered. What is acknowledged from here on has none.
    std::thread::sleep(Duration::from_secs(1));
    let acknowledged =
        || -> u64 { fleet.nodes.iter().map(|node| node.metrics().sum("ringway_publications_total", &[])).sum() };
    let before = acknowledged();
    std::thread::sleep(Duration::from_secs(2));
    let without_copy = acknowledged() - before;
    redis.fail_over_behind();
    load.wait_deliveries(2_000);
    let report = load.finish();
    let promotions = redis.promotions();
    println!(
        "{durability}: {promotions} promotions | {without_copy} without a copy | {} | {}",
        summary(&report),
        report["deliveries"]
    );
    assert_never_silent(&report);
    let (changes, told) = (number(&report, "acknowledged_epoch_changes"), number(&report, "deliveries.unrecovered"));
    if promotions == 1 {
        assert_eq!(changes, 40, "each channel, once: {report:#}");
        assert_eq!(told, 200, "each subscription is told, once: {report:#}");
    } else {
        // Sentinels may replace a server that stood still. A channel that nobody wrote between has begun one epoch for two.
        assert!((40..=40 * promotions).contains(&changes), "{promotions} promotions: {report:#}");
        assert!((200..=200 * promotions).contains(&told), "{promotions} promotions: {report:#}");
    }
    assert_eq!(number(&report, "connections_lost"), number(&report, "cut_off"), "no other end: {report:#}");
    (report, without_copy)
}

#[test]
fn with_wait_nothing_is_acknowledged_that_no_replica_has() {
    let _turn = turn();
    let (_, without_copy) = failed_over("with-wait", "fleet");
    assert_eq!(without_copy, 0, "nothing is acknowledged that no replica has");
}

#[test]
fn without_wait_what_is_lost_is_announced() {
    let _turn = turn();
    let (report, without_copy) = failed_over("without-wait", "memory");
    assert!(without_copy > 0, "acknowledged, and on no replica");
    assert!(number(&report, "deliveries.announced") > 0, "acknowledged, and not on the replica: {report:#}");
}
