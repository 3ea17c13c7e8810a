//! One node without an engine behind HAProxy: what the load balancer does loses nothing, and what such a node forgets is
//! announced to everybody. Shows that the load's checker and the balancer work before nodes share anything.

use ringway_tests::fleet::{Fleet, NodeOptions, Workspace};

use super::{assert_never_silent, assert_nothing_lost, number, summary, turn};

const LOAD: &[&str] = &["-m", "20", "--written-by-clients", "5", "--rate-per-channel", "4", "--backoff-min-ms", "200"];

#[test]
fn clients_whose_load_balancer_restarts_recover_everything() {
    let _turn = turn();
    let workspace = Workspace::new("balancer");
    let mut fleet = Fleet::start(&workspace, 1, &NodeOptions::default());
    let mut load = fleet.load(&workspace, 100, LOAD);
    load.wait_deliveries(2_000);
    for _ in 0..2 {
        fleet.balancer.restart();
        load.wait_whole();
        load.wait_deliveries(1_000);
    }
    let report = load.finish();
    println!("{}", summary(&report));
    assert_nothing_lost(&report);
    assert_eq!(number(&report, "connections_lost"), 200, "{report:#}");
    assert!(number(&report, "deliveries.recoveries") >= 400, "two subscriptions each, twice: {report:#}");
    assert!(number(&report, "deliveries.recovered") > 0, "{report:#}");
}

#[test]
fn what_a_killed_node_forgets_is_announced() {
    let _turn = turn();
    let workspace = Workspace::new("forgets");
    let mut fleet = Fleet::start(&workspace, 1, &NodeOptions::default());
    let mut load = fleet.load(&workspace, 100, &[LOAD, &["--allow-announced"]].concat());
    load.wait_deliveries(2_000);
    let before = load.state("reconnects");
    fleet.nodes[0].kill();
    fleet.nodes[0].restart();
    load.wait_until("everybody came back", |state| {
        state["whole"] == 100 && state["reconnects"].as_u64() >= Some(before + 100)
    });
    load.wait_deliveries(1_000);
    let report = load.finish();
    println!("{}", summary(&report));
    assert_never_silent(&report);
    assert_eq!(number(&report, "deliveries.unrecovered"), 200, "{report:#}");
    assert_eq!(number(&report, "acknowledged_epoch_changes"), 15, "one for each channel over ingest: {report:#}");
}
