//! The order in which a node begins to follow a channel (inbox confirmed, interest, position and history, answer, live),
//! under fire: clients leave channels and come back to them at a thousand changes a second, each channel is published to
//! all the time, connections are cut at random, and slots of the engine's cluster move meanwhile.

use ringway_tests::fleet::{Engine, Fleet, NodeOptions, RedisCluster, Workspace};

use super::{assert_nothing_lost, number, summary, turn};

/// One or two subscribers per channel on three nodes, half of whom are away: a change of one is a change of its node's
/// interest, as a rule.
const LOAD: &[&str] = &[
    "-m",
    "900",
    "-s",
    "4",
    "--written-by-clients",
    "60",
    "--rate-per-channel",
    "1",
    "--backoff-min-ms",
    "100",
    "--changes-per-s",
    "1500",
    "--cuts-per-s",
    "10",
];
const CLIENTS: u32 = 300;
/// Slots moved at a time, each with a channel or more.
const SLOTS_AT_A_TIME: usize = 20;

fn under_fire(name: &str, moves: usize, deliveries_between: u64) {
    let workspace = Workspace::new(name);
    let cluster = RedisCluster::start(&workspace, Engine::Redis);
    let addresses: Vec<_> = cluster.servers.iter().map(|server| server.address).collect();
    // Nobody lingers: whoever leaves last takes the node's interest along.
    let options = NodeOptions::on("cluster", &addresses).with(&["limits.interest_linger_ms=0"]);
    let fleet = Fleet::start(&workspace, 3, &options);
    let mut load = fleet.load(&workspace, CLIENTS, LOAD);
    load.wait_deliveries(deliveries_between);
    let mut keys_moved = 0;
    for turn in 0..moves {
        keys_moved += cluster.move_slots(turn % 3, (turn + 1) % 3, SLOTS_AT_A_TIME);
        load.wait_deliveries(deliveries_between);
    }
    let sum = |metric: &str| fleet.nodes.iter().map(|node| node.metrics().sum(metric, &[])).sum::<u64>();
    let (follows, unfollows) = (sum("ringway_fleet_follows_total"), sum("ringway_fleet_unfollows_total"));
    let report = load.finish();
    let (left, returned, cut_off) = (number(&report, "left"), number(&report, "returned"), number(&report, "cut_off"));
    let per_s = |count: u64| count as f64 / report["window_s"].as_f64().unwrap_or(1.0);
    println!(
        "{} | left {left} returned {returned} cut {cut_off}, {:.0} changes/s of clients, {:.0}/s of nodes' interest; {} slots \
         with {keys_moved} keys moved; resubscribes {} refused {} {} {}",
        summary(&report),
        per_s(left + returned),
        per_s(follows + unfollows),
        moves * SLOTS_AT_A_TIME,
        report["resubscribes"],
        report["refused_subscribes"],
        report["refused_publishes"],
        report["ingest_refusals"],
    );
    assert_nothing_lost(&report);
    assert!(left > 1_000 && returned > 1_000 && cut_off > 20, "{report:#}");
    assert!(follows > left / 2 && unfollows > left / 2, "the nodes' interest changes too: {follows} {unfollows}");
    assert!(keys_moved >= moves * SLOTS_AT_A_TIME, "{keys_moved} keys moved");
    assert_eq!(number(&report, "connections_lost"), cut_off, "no other end: {report:#}");
}

#[test]
fn nobody_misses_or_repeats_a_message_under_fire() {
    let _turn = turn();
    under_fire("under-fire", 3, 3_000);
}

#[test]
#[ignore = "takes minutes; `make under-fire` runs it"]
fn nobody_misses_or_repeats_a_message_under_fire_for_minutes() {
    let _turn = turn();
    under_fire("under-fire-long", 40, 4_000);
}
