//! The contract while real servers and the ways to them fail.
//!
//! In: servers, proxies, clusters. Out: a panic where something is lost or repeated without a word.

use std::time::Duration;

use ringway::backplane::config::Mode;
use ringway::backplane::metrics::Number;
use ringway::backplane::tags;
use ringway_engine::backplane::{Audience, Refusal, Request, Subject};
use ringway_engine::route;

use crate::cluster::Cluster;
use crate::fire::Fire;
use crate::node::Node;
use crate::proxy::Proxy;
use crate::redis_nodes::RedisFleet;
use crate::servers::{Kind, Server, promote, wait_for_replica};
use crate::suite::{self, Fleet as _};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn connections_are_cut_and_held() {
    let server = Server::start(Kind::Redis, &[]);
    let proxies: Vec<Proxy> = (0..4).map(|_| Proxy::new(&server.address())).collect();
    let fleet = RedisFleet::single(&[server.address()]);
    let mut nodes: Vec<Node> = proxies.iter().map(|proxy| fleet.node_behind(&proxy.address())).collect();
    let followers = nodes.split_off(2);
    let mut fire = Fire::new("cut", nodes, followers);
    fire.rounds(500, &mut |round, dice| {
        let proxy = &proxies[dice.below(proxies.len())];
        match dice.below(40) {
            0 => proxy.cut(),
            1 => proxy.delay(Duration::from_micros(dice.below(3_000) as u64)),
            2 if round % 3 == 0 => proxy.hold(true),
            3 | 4 => proxies.iter().for_each(|proxy| proxy.hold(false)),
            _ => {}
        }
    });
    proxies.iter().for_each(|proxy| {
        proxy.hold(false);
        proxy.delay(Duration::ZERO);
    });
    fire.finish();
    assert_eq!(fire.epoch_changes, 0, "nothing was lost, so nothing began anew");
    assert!(fire.unknown > 0 && fire.brokens() > 0, "the faults were none");
}

#[test]
fn a_server_that_stands_still_loses_nothing() {
    let server = Server::start(Kind::Redis, &[]);
    let fleet = RedisFleet::single(&[server.address()]);
    let mut fire = Fire::new("still", fleet.nodes(2), fleet.nodes(2));
    fire.run_for(SECOND / 4);
    server.signal("STOP");
    fire.run_for(2 * SECOND);
    server.signal("CONT");
    fire.run_for(SECOND / 2);
    fire.finish();
    assert_eq!(fire.epoch_changes, 0);
    assert!(fire.brokens() > 0);
}

#[test]
fn a_server_that_comes_back_empty_begins_new_epochs() {
    let mut server = Server::start(Kind::Valkey, &[]);
    let fleet = RedisFleet::single(&[server.address()]);
    let mut fire = Fire::new("empty", fleet.nodes(2), fleet.nodes(2));
    fire.forgets = true;
    fire.run_for(SECOND / 2);
    server.kill();
    fire.run_for(SECOND / 4);
    server.restart();
    fire.run_for(SECOND / 2);
    fire.finish();
    assert!(fire.epoch_changes > 0);
}

#[test]
fn a_promoted_replica_begins_new_epochs() {
    for replicated in [false, true] {
        let mut primary = Server::start(Kind::Redis, &[]);
        let replica = Server::start(Kind::Redis, &["--replicaof", "127.0.0.1", &primary.port().to_string()]);
        wait_for_replica(&primary);
        let fleet = RedisFleet::single(&[primary.address(), replica.address()]);
        let mut fire = Fire::new("failover", fleet.nodes(2), fleet.nodes(2));
        fire.forgets = true;
        fire.replicated = replicated;
        fire.run_for(SECOND / 2);
        primary.kill();
        fire.run_for(SECOND / 4);
        promote(&replica);
        // Those who want a replica's copy wait until there is one.
        let another = Server::start(Kind::Redis, &["--replicaof", "127.0.0.1", &replica.port().to_string()]);
        fire.replicated = false;
        fire.run_for(SECOND / 2);
        fire.finish();
        assert!(fire.epoch_changes > 0);
        drop(another);
    }
}

#[test]
fn sentinels_name_the_primary() {
    let mut primary = Server::start(Kind::Redis, &[]);
    let replica = Server::start(Kind::Redis, &["--replicaof", "127.0.0.1", &primary.port().to_string()]);
    wait_for_replica(&primary);
    let sentinel = Server::sentinel(primary.port());
    let fleet = RedisFleet::new(Mode::Sentinel, &[sentinel.address()], |_| {});
    let mut fire = Fire::new("sentinel", fleet.nodes(1), fleet.nodes(1));
    fire.forgets = true;
    fire.run_for(SECOND / 2);
    primary.kill();
    fire.finish();
    assert!(fire.epoch_changes > 0);
    drop((sentinel, replica));
}

#[test]
fn a_replicated_publish_without_a_replica_is_unknown_and_happens_once() {
    let server = Server::start(Kind::Redis, &[]);
    let fleet = RedisFleet::new(Mode::Single, &[server.address()], |settings| settings.replica_wait_ms = 50);
    let mut node = fleet.node();
    let mut batch = node.batch("wait:1", &[b"1"]);
    batch.replicated = true;
    let token = node.submit(Request::Publish(batch.clone()));
    assert_eq!(node.answer(token), Err(Refusal::Unknown));
    let replica = Server::start(Kind::Redis, &["--replicaof", "127.0.0.1", &server.port().to_string()]);
    wait_for_replica(&server);
    assert_eq!(node.publish_once_replicated(batch).first.offset, 1);
    assert_eq!(node.read("wait:1", None, 10, false).records.len(), 1);
    drop(replica);
}

/// WAIT holds up its connection: a channel that wants replicas must not slow those that do not.
#[test]
fn without_a_replica_nobody_waits_for_one() {
    let server = Server::start(Kind::Redis, &[]);
    let fleet = RedisFleet::new(Mode::Single, &[server.address()], |settings| settings.replica_wait_ms = 500);
    let (mut node, metrics) = fleet.named("n");
    let mut batch = node.batch("wait:1", &[b"1"]);
    batch.replicated = true;
    // Nobody knows yet that there is none: once it happens, and is not confirmed.
    let mut outcomes = (0..20).map(|_| {
        let token = node.submit(Request::Publish(batch.clone()));
        node.answer(token)
    });
    assert_eq!(outcomes.find(|outcome| *outcome != Err(Refusal::Unknown)), Some(Err(Refusal::Unavailable)));
    for number in 0..20 {
        let mut batch = node.batch("wait:1", &[b"2"]);
        batch.replicated = true;
        let token = node.submit(Request::Publish(batch));
        node.publish(&format!("other:{number}"), &[b"1"]);
        assert_eq!(node.answer(token), Err(Refusal::Unavailable));
    }
    assert_eq!(node.read("wait:1", None, 10, false).records, [Box::from(*b"1")], "the others were not begun");
    assert!(metrics.get(Number::Unreplicated) >= 20);
    let replica = Server::start(Kind::Redis, &["--replicaof", "127.0.0.1", &server.port().to_string()]);
    wait_for_replica(&server);
    assert_eq!(node.publish_once_replicated(batch).first.offset, 1);
    drop(replica);
}

/// WAITs one behind the other would add up, until the server seems dead.
#[test]
fn while_a_wait_is_out_there_is_no_other() {
    let server = Server::start(Kind::Redis, &[]);
    let fleet = RedisFleet::new(Mode::Single, &[server.address()], |settings| settings.replica_wait_ms = 1_000);
    let mut node = fleet.node();
    let tokens: Vec<u64> = (0..20)
        .map(|number| {
            let mut batch = node.batch(&format!("wait:{number}"), &[b"1"]);
            batch.replicated = true;
            let token = node.submit(Request::Publish(batch));
            // So that they do not all go out together.
            std::thread::sleep(Duration::from_millis(5));
            token
        })
        .collect();
    for token in tokens {
        assert!(matches!(node.answer(token), Err(Refusal::Unknown | Refusal::Unavailable)));
    }
    node.publish("other:1", &[b"1"]);
    assert_eq!(node.brokens, 0, "the server was not taken for dead");
    let statistics: String = redis::cmd("INFO").arg("commandstats").query(&mut server.client()).expect("they come");
    let waits = statistics.lines().filter_map(|line| line.strip_prefix("cmdstat_wait:calls=")).next();
    // None, if ROLE was faster than the first publish.
    let waits: u32 = waits.and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or(0);
    assert!(waits <= 1, "{waits} WAITs");
}

#[test]
fn forgotten_scripts_are_loaded_again() {
    let server = Server::start(Kind::Redis, &[]);
    let fleet = RedisFleet::single(&[server.address()]);
    let mut fire = Fire::new("flush", fleet.nodes(1), fleet.nodes(1));
    let mut client = server.client();
    fire.rounds(200, &mut |round, _| {
        if round % 20 == 0 {
            redis::cmd("SCRIPT").arg("FLUSH").exec(&mut client).expect("it forgets");
        }
    });
    fire.finish();
    assert_eq!((fire.epoch_changes, fire.brokens()), (0, 0));
}

#[test]
fn a_lost_lease_makes_a_node_another_one() {
    let server = Server::start(Kind::Redis, &[]);
    let fleet = RedisFleet::new(Mode::Single, &[server.address()], |settings| settings.lease_ms = 3_000);
    let mut fire = Fire::new("lease", fleet.nodes(1), fleet.nodes(1));
    fire.run_for(SECOND / 4);
    let mut client = server.client();
    let leases: Vec<String> = redis::cmd("KEYS").arg("*}rname:*").query(&mut client).expect("keys");
    assert_eq!(leases.len(), 2);
    redis::cmd("DEL").arg(&leases).exec(&mut client).expect("they go");
    fire.run_for(2 * SECOND);
    assert!(fire.brokens() > 0);
    fire.finish();
    assert_eq!(fire.epoch_changes, 0);
}

#[test]
fn two_nodes_of_one_name_do_not_both_live() {
    let server = Server::start(Kind::Redis, &[]);
    let fleet = RedisFleet::single(&[server.address()]);
    let (first, _) = fleet.named("same");
    let mut second = fleet.start("same");
    assert!(matches!(second.word(), ringway::backplane::Registered::NameTaken(text) if text.contains("same")));
    drop(first);
    // The first one gives its name back as it goes.
    let place = second.registered();
    let (third, _) = fleet.named("third");
    assert_ne!(third.id.place, place.place);
    assert!(third.id.generation > place.generation, "a generation is never given twice");
}

/// What the engine has been asked, by command, since it started.
fn calls(server: &Server, command: &str) -> u64 {
    let info: String = redis::cmd("INFO").arg("commandstats").query(&mut server.client()).expect("info");
    let line = info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or(0)
}

#[test]
fn a_publish_is_one_message_in_and_one_per_interested_node_out() {
    const NODES: usize = 8;
    const PUBLISHES: u64 = 20;
    let server = Server::start(Kind::Redis, &[]);
    let fleet = RedisFleet::new(Mode::Single, &[server.address()], |settings| settings.lease_ms = 6_000);
    let (mut nodes, metrics): (Vec<_>, Vec<_>) = (0..NODES).map(|n| fleet.named(&format!("n{n}"))).unzip();
    nodes[0].wait_until("it knows of all nodes", |_| metrics[0].get(Number::LivingNodes) == NODES as u64);
    // Over max(8 / 3, 2) = 2 interested nodes it is one message for all.
    for k in 0..=NODES {
        let channel = format!("count:{k}");
        for node in &mut nodes[..k] {
            node.follow(&channel, None, 0);
        }
        let messages = calls(&server, "spublish");
        let asked = metrics[NODES - 1].get(Number::RoundTrips);
        let heard: Vec<u64> = metrics.iter().map(|metrics| metrics.get(Number::FeedMessages)).collect();
        for _ in 0..PUBLISHES {
            nodes[NODES - 1].publish(&channel, &[b"x"]);
        }
        let spoken = if k > 2 { 1 } else { k as u64 };
        assert_eq!(calls(&server, "spublish") - messages, PUBLISHES * spoken, "k = {k}");
        assert_eq!(metrics[NODES - 1].get(Number::RoundTrips) - asked, PUBLISHES, "k = {k}");
        for (n, node) in nodes.iter_mut().enumerate() {
            let expected = if n < k || k > 2 { PUBLISHES } else { 0 };
            let now = || metrics[n].get(Number::FeedMessages) - heard[n];
            node.wait_until("all is fed", |_| now() >= expected);
            assert_eq!(now(), expected, "node {n}, k = {k}");
        }
    }
}

#[test]
fn a_key_is_not_kept_for_what_could_not_be_kept() {
    let server = Server::start(Kind::Redis, &[]);
    let fleet = RedisFleet::single(&[server.address()]);
    let mut node = fleet.node();
    let mut client = server.client();
    let stream = format!("ringway:{{{}}}skept:1", tags::tag(route::bucket("kept:1")));
    let keyed = |node: &mut Node, record: &[u8]| {
        let mut batch = node.batch("kept:1", &[record]);
        batch.idempotency_key = b"k".as_slice().into();
        batch
    };
    // The first publish begins an epoch, with an empty stream.
    let first = node.publish("kept:1", &[b"1"]).first;
    redis::cmd("SET").arg(&stream).arg("no stream").exec(&mut client).expect("it is replaced");
    let batch = keyed(&mut node, b"2");
    let token = node.submit(Request::Publish(batch));
    assert_eq!(node.answer(token), Err(Refusal::Unknown));
    redis::cmd("DEL").arg(&stream).exec(&mut client).expect("it is gone");
    let batch = keyed(&mut node, b"2");
    let second = node.publish_batch(batch);
    assert_eq!((second.first.offset, second.first.epoch, second.duplicate), (2, first.epoch, false));
    let batch = keyed(&mut node, b"3");
    assert!(node.publish_batch(batch).duplicate, "and now it is kept");
}

#[test]
fn a_dead_nodes_interest_ends_with_the_next_publish() {
    let server = Server::start(Kind::Redis, &[]);
    let fleet = RedisFleet::single(&[server.address()]);
    let (mut a, mut b) = (fleet.node(), fleet.node());
    a.follow("dead:1", None, 0);
    b.follow("dead:1", None, 0);
    let subject = Subject::Channel("dead:1".into());
    assert_eq!(a.tell(subject.clone(), Audience::Interested, b""), 2);
    drop(b);
    a.wait_until("it is gone", |a| a.tell(subject.clone(), Audience::Interested, b"") == 1);
    let members: Vec<String> = redis::cmd("KEYS").arg("*}ndead:1").query(&mut server.client()).expect("keys");
    let left: u64 = redis::cmd("SCARD").arg(&members[0]).query(&mut server.client()).expect("a number");
    assert_eq!(left, 1);
}

#[test]
fn nothing_is_accepted_without_the_engine() {
    let mut server = Server::start(Kind::Redis, &[]);
    let fleet = RedisFleet::single(&[server.address()]);
    let mut node = fleet.node();
    server.kill();
    node.wait_until("it breaks", |node| node.brokens == 1);
    let batch = node.batch("without:1", &[b"1"]);
    let token = node.submit(Request::Publish(batch));
    assert_eq!(node.answer(token), Err(Refusal::Unavailable));
    server.restart();
    node.wait_open();
    assert_eq!(node.publish("without:1", &[b"2"]).first.offset, 1);
}

#[test]
fn a_cluster_keeps_the_rules() {
    let cluster = Cluster::start(Kind::Redis);
    suite::run(&RedisFleet::new(Mode::Cluster, &cluster.addresses(), |_| {}));
}

#[test]
fn slots_migrate_under_fire() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let cluster = Cluster::start(kind);
        let fleet = RedisFleet::new(Mode::Cluster, &cluster.addresses(), |_| {});
        let mut fire = Fire::new("migrate", fleet.nodes(2), fleet.nodes(2));
        fire.run_for(SECOND / 4);
        for n in 0..12 {
            let channel = fire.channel(n).to_string();
            let slot = tags::slot(tags::tag(route::bucket(&channel)));
            cluster.migrate(slot, (cluster.owner(slot) + 1 + n % 2) % 3);
            fire.run_for(SECOND / 10);
        }
        fire.finish();
        assert!(fire.brokens() > 0);
        assert_eq!(fire.epoch_changes, 0, "a slot that moves takes its channels along");
    }
}

#[test]
fn a_primary_of_a_cluster_is_replaced() {
    let cluster = Cluster::start(Kind::Redis);
    let port = cluster.servers[0].port().to_string();
    let replica = cluster.add_replica(0);
    wait_for_replica(&cluster.servers[0]);
    let fleet = RedisFleet::new(Mode::Cluster, &cluster.addresses(), |_| {});
    let mut fire = Fire::new("takeover", fleet.nodes(1), fleet.nodes(1));
    fire.forgets = true;
    fire.run_for(SECOND / 2);
    let failover = redis::cmd("CLUSTER").arg("FAILOVER").arg("TAKEOVER").exec(&mut replica.client());
    failover.expect("the replica takes over");
    fire.run_for(SECOND);
    fire.finish();
    assert!(fire.epoch_changes > 0, "the primary on port {port} was replaced");
}
