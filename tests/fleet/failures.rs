//! What fails and comes back while clients publish and subscribe: the engine stands still, is cut off from one node, is
//! restarted empty; a node stands still; a node's name is taken; a node's clock jumps. Each with what clients see of it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use ringway_tests::eventually;
use ringway_tests::fleet::{Engine, Fleet, HaProxy, Load, Node, NodeOptions, RedisServer, Workspace};
use serde_json::Value;

use super::proxy::Proxy;
use super::{assert_never_silent, assert_nothing_lost, number, summary, turn};

const CLIENTS: u32 = 100;
/// Subscriptions of each client.
const SUBSCRIPTIONS: u32 = 2;
const LOAD: &[&str] = &["-m", "40", "--written-by-clients", "10", "--rate-per-channel", "4", "--backoff-min-ms", "200"];
/// What a publish waits for the engine: less than the 5 s after which publishers of the load go elsewhere.
const WAIT: &str = "limits.backplane_wait_ms=2000";
/// A lease that ends while a test waits for it.
const LEASE: &str = "backplane.lease_ms=4000";
/// How long the engine is away: longer than publishes wait, than the engine's timeout, and than a lease of 10 s.
const ENGINE_AWAY: Duration = Duration::from_secs(12);
/// How long a node is away: longer than [`LEASE`] and the engine's timeout.
const NODE_AWAY: Duration = Duration::from_secs(6);

/// How often a reason that begins like this was counted in a map of the report.
fn reasons(report: &Value, map: &str, begin: &str) -> u64 {
    let all = report[map].as_object().into_iter().flatten();
    all.filter(|(reason, _)| reason.starts_with(begin)).filter_map(|(_, count)| count.as_u64()).sum()
}

/// Nothing was lost or announced, and nobody was sent away, or told to subscribe again, for nothing.
fn assert_nobody_noticed(report: &Value) {
    assert_nothing_lost(report);
    assert_eq!(number(report, "connections_lost"), 0, "{report:#}");
    assert_eq!(reasons(report, "resubscribes", ""), 0, "{report:#}");
}

fn registrations(node: &Node) -> u64 {
    node.metrics().sum("ringway_backplane_registrations_total", &[])
}

#[test]
fn an_engine_that_stands_still_costs_nobody_anything() {
    let _turn = turn();
    let workspace = Workspace::new("engine-frozen");
    let redis = RedisServer::start(&workspace, Engine::Redis, "redis", &[]);
    let fleet = Fleet::start(&workspace, 3, &NodeOptions::on("single", &[redis.address]).with(&[WAIT]));
    let mut load = fleet.load(&workspace, CLIENTS, LOAD);
    load.wait_deliveries(1_000);
    redis.freeze();
    std::thread::sleep(ENGINE_AWAY);
    assert_eq!(load.state("whole"), u64::from(CLIENTS), "clients stay connected and subscribed");
    redis.thaw();
    load.wait_deliveries(1_000);
    let report = load.finish();
    println!("{} | refused {} {}", summary(&report), report["refused_publishes"], report["ingest_refusals"]);
    assert_nobody_noticed(&report);
    // Behind the wait publishes were refused: clients are told 100 and backends 201 of those that the engine may have, 111
    // and 200 of those that it has not.
    for (who, code) in [("refused_publishes", "100"), ("refused_publishes", "111"), ("ingest_refusals", "201")] {
        assert!(reasons(&report, who, code) > 0, "{who} {code}: {report:#}");
    }
}

#[test]
fn a_node_that_is_cut_off_from_the_engine_catches_up() {
    let _turn = turn();
    let workspace = Workspace::new("engine-cut-off");
    let redis = RedisServer::start(&workspace, Engine::Redis, "redis", &[]);
    let proxy = Proxy::new(&redis.address.to_string());
    let options = NodeOptions::on("single", &[redis.address]).with(&[WAIT, LEASE]);
    let through_proxy = [proxy.address().parse().expect("the address of a proxy")];
    let cut_off = NodeOptions::on("single", &through_proxy).with(&[WAIT, LEASE]);
    let nodes = vec![Node::start(&workspace, "n1", &cut_off), Node::start(&workspace, "n2", &options)];
    let fleet = Fleet { balancer: HaProxy::start(&workspace, &nodes, 1), nodes };
    let mut load = fleet.load(&workspace, CLIENTS, LOAD);
    load.wait_deliveries(1_000);
    proxy.hold(true);
    std::thread::sleep(NODE_AWAY);
    proxy.cut();
    eventually("the other node sees that it is alone", || {
        fleet.nodes[1].metrics().sum("ringway_backplane_nodes", &[]) == 1
    });
    proxy.hold(false);
    eventually("it is registered again", || registrations(&fleet.nodes[0]) == 2);
    load.wait_deliveries(1_000);
    let report = load.finish();
    println!("{}", summary(&report));
    assert_nobody_noticed(&report);
    assert_eq!(registrations(&fleet.nodes[1]), 1);
}

#[test]
fn an_engine_that_comes_back_empty_is_told_to_everybody_once() {
    let _turn = turn();
    let workspace = Workspace::new("engine-empty");
    let mut redis = RedisServer::start(&workspace, Engine::Redis, "redis", &[]);
    let fleet = Fleet::start(&workspace, 3, &NodeOptions::on("single", &[redis.address]).with(&[WAIT]));
    let mut load = fleet.load(&workspace, CLIENTS, &[LOAD, &["--allow-announced"]].concat());
    load.wait_deliveries(1_000);
    redis.restart();
    let subscriptions = u64::from(CLIENTS * SUBSCRIPTIONS);
    let resets = |fleet: &Fleet| -> u64 {
        fleet.nodes.iter().map(|node| node.metrics().sum("ringway_fleet_resets_total", &[])).sum()
    };
    eventually("the nodes have found out", || resets(&fleet) > 0);
    load.wait_whole();
    load.wait_deliveries(1_000);
    let report = load.finish();
    println!("{} | {}", summary(&report), report["resubscribes"]);
    assert_never_silent(&report);
    assert_eq!(number(&report, "connections_lost"), 0, "{report:#}");
    assert_eq!(number(&report, "deliveries.unrecovered"), subscriptions, "each subscription is told, once: {report:#}");
    assert_eq!(reasons(&report, "resubscribes", "2500"), subscriptions, "by a push: {report:#}");
    assert_eq!(number(&report, "deliveries.recoveries"), 0, "{report:#}");
    assert_eq!(number(&report, "acknowledged_epoch_changes"), 30, "one for each channel over ingest: {report:#}");
}

#[test]
fn a_node_that_stood_still_registers_anew_and_fills_the_gap() {
    let _turn = turn();
    let workspace = Workspace::new("node-frozen");
    let redis = RedisServer::start(&workspace, Engine::Redis, "redis", &[]);
    let options = NodeOptions::on("single", &[redis.address]).with(&[LEASE]);
    let nodes: Vec<Node> = ["n1", "n2"].iter().map(|name| Node::start(&workspace, name, &options)).collect();
    // Everybody is connected with the first, without a balancer that would let them go; the second takes publications.
    let load = ["-m", "40", "--written-by-clients", "0", "--rate-per-channel", "4"];
    let mut load = Load::start(&workspace, nodes[0].client, &nodes[1..], CLIENTS, &load);
    load.wait_deliveries(1_000);
    nodes[0].freeze();
    eventually("its lease ends", || nodes[1].metrics().sum("ringway_backplane_nodes", &[]) == 1);
    std::thread::sleep(NODE_AWAY);
    nodes[0].thaw();
    eventually("it is registered anew", || registrations(&nodes[0]) == 2);
    load.wait_deliveries(2_000);
    let report = load.finish();
    println!("{}", summary(&report));
    assert_nobody_noticed(&report);
    assert_eq!(registrations(&nodes[1]), 1);
}

#[test]
fn a_second_node_of_one_name_ends_and_says_why() {
    let _turn = turn();
    let workspace = Workspace::new("one-name");
    let redis = RedisServer::start(&workspace, Engine::Redis, "redis", &[]);
    let options =
        NodeOptions::on("single", &[redis.address]).with(&["backplane.lease_ms=1000", "backplane.timeout_ms=500"]);
    let fleet = Fleet::start(&workspace, 1, &options);
    let mut load = fleet.load(&workspace, CLIENTS, LOAD);
    load.wait_deliveries(500);
    let mut second = Node::begin(&workspace, "twin", &NodeOptions { calls_itself: Some("n1".to_owned()), ..options });
    let status = second.process.wait(Duration::from_secs(20));
    let log = second.process.log();
    assert_eq!(status.code(), Some(69), "it is not available: {log}");
    assert!(log.contains("another living node has the name n1"), "{log}");
    assert!(!log.contains("ringway ready "), "{log}");
    load.wait_deliveries(500);
    let report = load.finish();
    println!("{}", summary(&report));
    assert_nobody_noticed(&report);
    assert_eq!(registrations(&fleet.nodes[0]), 1);
}

/// The library that gives a process another clock.
fn fake_time() -> PathBuf {
    let found = Command::new("sh").args(["-c", "ls /usr/lib/*/faketime/libfaketimeMT.so.1"]).output().expect("sh");
    let found = String::from_utf8_lossy(&found.stdout);
    PathBuf::from(found.lines().next().expect("libfaketime of tests/sdk/install.sh: run `make sdk`").trim())
}

#[test]
fn a_node_whose_clock_jumps_serves_everybody() {
    let _turn = turn();
    let library = fake_time();
    let workspace = Workspace::new("clock");
    let redis = RedisServer::start(&workspace, Engine::Redis, "redis", &[]);
    let clock = workspace.write("clock", "+0");
    let mut options = NodeOptions::on("single", &[redis.address]).with(&[LEASE]);
    let right = Node::start(&workspace, "n1", &options);
    options.environment = [
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME_TIMESTAMP_FILE", clock.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec();
    let nodes = vec![right, Node::start(&workspace, "n2", &options)];
    let fleet = Fleet { balancer: HaProxy::start(&workspace, &nodes, 1), nodes };
    // Cut connections come back to either node and recover what either has published.
    let mut load = fleet.load(&workspace, CLIENTS, &[LOAD, &["--cuts-per-s", "20"]].concat());
    load.wait_deliveries(1_000);
    for jump in ["+2d", "-2d", "+0"] {
        workspace.write("clock", jump);
        load.wait_deliveries(2_000);
    }
    let log = fleet.nodes[1].process.log();
    let report = load.finish();
    println!("{}", summary(&report));
    assert_nothing_lost(&report);
    assert_eq!(number(&report, "connections_lost"), number(&report, "cut_off"), "nobody is sent away: {report:#}");
    assert_eq!(fleet.nodes.iter().map(registrations).collect::<Vec<_>>(), [1, 1], "leases hold: {log}");
}
