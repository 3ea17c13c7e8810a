//! The harness itself: engines start, forget, remember, fail over and move slots as tests of nodes rely on.

use ringway_tests::eventually;
use ringway_tests::fleet::redis::{SLOTS, ask};
use ringway_tests::fleet::{Engine, Failover, RedisCluster, RedisServer, Workspace};

use super::turn;

#[test]
fn a_server_forgets_unless_it_has_an_append_only_file() {
    let _turn = turn();
    let workspace = Workspace::new("forgets");
    for engine in [Engine::Redis, Engine::Valkey] {
        for (appends, kept) in [("no", ""), ("yes", "1")] {
            let name = format!("{engine:?}-{appends}");
            let mut server = RedisServer::start(&workspace, engine, &name, &["--appendonly", appends]);
            server.command(&["SET", "a", "1"]);
            let first = server.info("run_id");
            server.stop();
            server.restart();
            assert_eq!(server.command(&["GET", "a"]), kept, "{name}");
            assert_ne!(server.info("run_id"), first, "{name}");
        }
    }
}

#[test]
fn a_frozen_server_answers_when_it_is_thawed() {
    let _turn = turn();
    let workspace = Workspace::new("frozen");
    let server = RedisServer::start(&workspace, Engine::Redis, "redis", &[]);
    server.freeze();
    let address = server.address;
    let asked = std::thread::spawn(move || ask(address, &["PING"]));
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(!asked.is_finished(), "a frozen server answers nobody");
    server.thaw();
    assert_eq!(asked.join().expect("no panic").as_deref(), Ok("PONG"));
}

#[test]
fn a_replica_can_be_promoted_by_hand_and_gets_another_id() {
    let _turn = turn();
    let workspace = Workspace::new("promoted");
    let mut primary = RedisServer::start(&workspace, Engine::Redis, "a", &[]);
    let replica = primary.start_replica("b");
    let id = primary.info("master_replid");
    assert_eq!(replica.info("master_replid"), id);
    primary.command(&["SET", "a", "1"]);
    eventually("the replica has it", || replica.command(&["GET", "a"]) == "1");
    primary.kill();
    replica.promote();
    assert_eq!(replica.info("role"), "master");
    assert_ne!(replica.info("master_replid"), id);
}

#[test]
fn sentinels_promote_the_replica_of_a_killed_primary() {
    let _turn = turn();
    let workspace = Workspace::new("sentinels");
    let mut failover = Failover::start(&workspace, Engine::Redis);
    assert_eq!((failover.sentinels(), failover.addresses.len()), (3, 3));
    assert_eq!(failover.primary(), failover.servers[0].address);
    failover.fail_over();
    assert_eq!(failover.primary(), failover.servers[1].address);
    assert_eq!(failover.promotions(), 1);
}

#[test]
fn a_cluster_moves_slots_while_it_runs() {
    let _turn = turn();
    let workspace = Workspace::new("cluster");
    let cluster = RedisCluster::start(&workspace, Engine::Redis);
    let id = cluster.servers[0].command(&["CLUSTER", "MYID"]);
    let slots_of_first = || {
        let nodes = cluster.servers[1].command(&["CLUSTER", "NODES"]);
        let line = nodes.lines().find(|line| line.starts_with(&id)).unwrap_or_default().to_owned();
        let range = |word: &str| {
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            Some(last.parse::<u32>().ok()? - first.parse::<u32>().ok()? + 1)
        };
        line.split_whitespace().skip(8).filter_map(range).sum::<u32>()
    };
    let before = slots_of_first();
    assert!(before > SLOTS / 4 && before < SLOTS / 2, "{before}");
    // Those that are another server's are refused.
    for number in 0..100 {
        let _ = ask(cluster.servers[0].address, &["SET", &format!("key{number}"), "1"]);
    }
    assert_eq!(cluster.move_slots(0, 1, 5), 5, "one key in each");
    eventually("the others know", || slots_of_first() == before - 5);
}
