//! Three nodes on one Redis behind HAProxy, 300 clients that publish and subscribe: small versions of `bench/rolling.sh`.

use ringway_tests::fleet::{Engine, Failover, Fleet, NodeOptions, RedisServer, Workspace};

use super::{assert_never_silent, assert_nothing_lost, number, summary, turn};

const CLIENTS: u32 = 300;
const LOAD: &[&str] = &["-m", "60", "--written-by-clients", "20", "--rate-per-channel", "2", "--backoff-min-ms", "200"];
/// Clients that a drained node lets go per second.
const DRAIN_RATE_PER_S: u64 = 100;
/// A second of the checker may hold the end of one paced second and the begin of the next, and who came back late.
const RATE_SLACK: u64 = 2;

fn drained() -> Vec<String> {
    vec![
        format!("limits.drain_rate_per_s={DRAIN_RATE_PER_S}"),
        "limits.drain_grace_ms=1500".to_owned(),
        "backplane.lease_ms=4500".to_owned(),
        "limits.drain_deadline_ms=20000".to_owned(),
    ]
}

#[test]
fn rolling_restart_small() {
    let _turn = turn();
    let workspace = Workspace::new("rolling");
    let redis = RedisServer::start(&workspace, Engine::Redis, "redis", &[]);
    let mut options = NodeOptions::on("single", &[redis.address]);
    options.settings = drained();
    let mut fleet = Fleet::start(&workspace, 3, &options);
    let mut load = fleet.load(&workspace, CLIENTS, LOAD);
    load.wait_deliveries(2_000);
    fleet.restart_all(&mut load);
    load.wait_deliveries(2_000);
    let report = load.finish();
    println!("{}", summary(&report));
    assert_nothing_lost(&report);
    // Every node had a third of the clients, and the last one also those that had come to it.
    assert!(number(&report, "closed_3001") >= u64::from(CLIENTS), "{report:#}");
    assert_eq!(number(&report, "closed_3001"), number(&report, "connections_lost"), "no other end: {report:#}");
    let fastest = number(&report, "reconnected_per_s_max");
    assert!(fastest <= DRAIN_RATE_PER_S * RATE_SLACK, "{fastest} came back within a second: {report:#}");
}

#[test]
fn kill9_small() {
    let _turn = turn();
    let workspace = Workspace::new("kill9");
    let redis = RedisServer::start(&workspace, Engine::Redis, "redis", &[]);
    let mut fleet = Fleet::start(&workspace, 3, &NodeOptions::on("single", &[redis.address]));
    let mut load = fleet.load(&workspace, CLIENTS, LOAD);
    load.wait_deliveries(2_000);
    for node in 0..2 {
        let before = load.state("reconnects");
        fleet.nodes[node].kill();
        load.wait_until("its clients came back elsewhere", |state| {
            state["whole"] == CLIENTS && state["reconnects"].as_u64() > Some(before)
        });
        fleet.nodes[node].restart();
        load.wait_deliveries(2_000);
    }
    let report = load.finish();
    println!("{}", summary(&report));
    assert_nothing_lost(&report);
    assert!(number(&report, "connections_lost") >= u64::from(CLIENTS) / 3, "{report:#}");
}

#[test]
fn redis_failover_small() {
    let _turn = turn();
    let workspace = Workspace::new("failover");
    let mut redis = Failover::start(&workspace, Engine::Redis);
    let fleet = Fleet::start(&workspace, 3, &NodeOptions::on("sentinel", &redis.addresses));
    let mut load = fleet.load(&workspace, CLIENTS, &[LOAD, &["--allow-announced"]].concat());
    load.wait_deliveries(2_000);
    redis.fail_over();
    load.wait_whole();
    load.wait_deliveries(2_000);
    let report = load.finish();
    println!("{}", summary(&report));
    // What a failover may lose is announced; a channel that goes on does so under another epoch.
    assert_never_silent(&report);
    assert!(number(&report, "acknowledged_epoch_changes") > 0, "a promoted replica is another history: {report:#}");
}
