//! What any node of a fleet knows of all of them, and how many connections a user may have on all of them.
//!
//! Set-up: three nodes on one Redis, clients at each. Claims: `info` at any node lists the living ones, with their numbers;
//! `channels` sums their subscribers; a node that hangs is named as missing and not counted, a killed one is forgotten with its
//! lease, and without the engine a node answers for itself and says so. A user never
//! has more connections than the limit, whichever nodes they come to and however many at once; a killed node's do not count for
//! longer than its lease, and meanwhile nobody is sent away for good.

use std::time::{Duration, Instant};

use ringway_tests::backend::Backend;
use ringway_tests::fleet::{Engine, Node, NodeOptions, RedisServer, Workspace};
use serde_json::{Value, json};

use super::clients::{Client, Refused, api};
use super::turn;

const PATIENCE: Duration = Duration::from_secs(60);
const LEASE: &str = "backplane.lease_ms=4000";
/// With presence.
const ROOM: &str = "room";
/// Without.
const PLAIN: &str = "fleet:plain";

/// Asks until the answer is as it should be: what other nodes say of themselves is some seconds old.
#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> Result<(), Value>) {
    let end = Instant::now() + PATIENCE;
    while let Err(seen) = holds() {
        assert!(Instant::now() < end, "{what}: {seen}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Names and connections in the answer of `info`, by name.
fn nodes(info: &Value) -> Vec<(String, u64)> {
    let all = info["nodes"].as_array().expect("nodes");
    let mut nodes: Vec<_> = all
        .iter()
        .map(|node| {
            (node["name"].as_str().expect("a name").to_owned(), node["num_clients"].as_u64().expect("a number"))
        })
        .collect();
    nodes.sort();
    nodes
}

fn named(names: &[(&str, u64)]) -> Vec<(String, u64)> {
    names.iter().map(|(name, clients)| ((*name).to_owned(), *clients)).collect()
}

#[track_caller]
fn until_info(node: &Node, expected: &[(&str, u64)]) {
    until("info", || {
        let info = api(node, "info", &json!({}));
        if nodes(&info) == named(expected) { Ok(()) } else { Err(info) }
    });
}

fn in_room(node: &Node) -> (u64, Value) {
    let listed = api(node, "channels", &json!({ "pattern": "ro?m" }));
    (listed["channels"][ROOM]["num_clients"].as_u64().unwrap_or(0), listed)
}

#[test]
fn info_and_channels_are_those_of_all_nodes() {
    let _turn = turn();
    let workspace = Workspace::new("registry");
    let redis = RedisServer::start(&workspace, Engine::Redis, "redis", &[]);
    let options = NodeOptions::on("single", &[redis.address]).with(&[LEASE, "limits.nodes_wait_ms=1000"]);
    let mut fleet: Vec<Node> = (1..=3).map(|n| Node::start(&workspace, &format!("n{n}"), &options)).collect();
    let mut clients = Vec::new();
    for (place, node) in fleet.iter().enumerate() {
        for number in 0..=place {
            let (mut client, _) = Client::connect(node.client, &format!("user-{place}-{number}"));
            client.subscribe(ROOM);
            clients.push(client);
        }
    }
    for node in &fleet {
        until_info(node, &[("n1", 1), ("n2", 2), ("n3", 3)]);
        let info = api(node, "info", &json!({}));
        assert_eq!((&info["nodes"][0]["name"], &info["nodes"][0]["age_ms"]), (&json!(node.name), &json!(0)), "{info}");
        for node in info["nodes"].as_array().expect("nodes") {
            // With --dev every user has a personal channel too.
            assert_eq!(node["num_subs"].as_u64(), node["num_clients"].as_u64().map(|clients| 2 * clients), "{info}");
            assert!(node["uid"].as_str().is_some_and(|uid| uid.len() == 16) && node["version"].is_string(), "{info}");
        }
        let (counted, listed) = in_room(node);
        assert_eq!(counted, 6, "{listed}");
        assert!(listed.get("missing").is_none() && listed.get("engine_unreachable").is_none(), "{listed}");
    }

    fleet[2].freeze();
    let (counted, listed) = in_room(&fleet[0]);
    assert_eq!((counted, &listed["missing"]), (3, &json!(["n3"])), "{listed}");
    assert!(fleet[0].metrics().sum("ringway_backplane_nodes_missing_total", &[]) >= 1);
    until_info(&fleet[0], &[("n1", 1), ("n2", 2)]);
    fleet[2].thaw();
    until_info(&fleet[0], &[("n1", 1), ("n2", 2), ("n3", 3)]);
    until("channels", || {
        let (counted, listed) = in_room(&fleet[1]);
        if counted == 6 && listed.get("missing").is_none() { Ok(()) } else { Err(listed) }
    });

    fleet[1].kill();
    until_info(&fleet[0], &[("n1", 1), ("n3", 3)]);
    let (counted, listed) = in_room(&fleet[0]);
    assert!(counted == 4 && listed.get("missing").is_none(), "{listed}");

    redis.freeze();
    let info = api(&fleet[0], "info", &json!({}));
    assert_eq!((nodes(&info), &info["engine_unreachable"]), (named(&[("n1", 1)]), &json!(true)), "{info}");
    let (counted, listed) = in_room(&fleet[0]);
    assert_eq!((counted, &listed["engine_unreachable"]), (1, &json!(true)), "{listed}");
    assert!(fleet[0].metrics().sum("ringway_backplane_nodes_unknown_total", &[]) >= 2);
    redis.thaw();
    until_info(&fleet[0], &[("n1", 1), ("n3", 3)]);
}

/// The same over ingest, and of a channel without presence: clients are counted, on whichever shards and nodes they are.
#[test]
fn channels_over_ingest_are_those_of_all_nodes_or_refused() {
    let _turn = turn();
    let workspace = Workspace::new("registry-ingest");
    let redis = RedisServer::start(&workspace, Engine::Redis, "redis", &[]);
    let options = NodeOptions::on("single", &[redis.address]).with(&[LEASE, "limits.nodes_wait_ms=1000"]);
    let fleet: Vec<Node> = (1..=3).map(|n| Node::start(&workspace, &format!("n{n}"), &options)).collect();
    let mut clients = Vec::new();
    for (place, node) in fleet.iter().enumerate() {
        for number in 0..=3 * place {
            let (mut client, _) = Client::connect(node.client, &format!("user-{place}-{number}"));
            client.subscribe(PLAIN);
            if place == 2 && number == 0 {
                client.subscribe("fleet:here");
            }
            clients.push(client);
        }
    }
    let all = [("fleet:here".to_owned(), 1), (PLAIN.to_owned(), 12)];
    let backends: Vec<Backend> = fleet.iter().map(|node| Backend::connect_to(&[node.ingest])).collect();
    for (node, backend) in fleet.iter().zip(&backends) {
        until_info(node, &[("n1", 1), ("n2", 4), ("n3", 7)]);
        let listed = api(node, "channels", &json!({ "pattern": "fleet:*" }));
        assert_eq!(listed["channels"][PLAIN]["num_clients"], json!(12), "{listed}");
        let listed = backend.channels("fleet:", 10).expect("all have answered");
        assert_eq!(listed.channels, all);
        // A channel counts on each node; with --dev each user has a personal channel, too.
        assert_eq!(listed.total, 3 + 1 + 12);
        assert_eq!(backend.channels("fleet:", 1).expect("all have answered").channels, all[..1]);
        assert!(backend.channels("nowhere", 10).expect("all have answered").channels.is_empty());
    }

    fleet[2].freeze();
    assert_eq!(backends[0].channels("fleet:", 10), None, "it cannot say which node is missing");
    fleet[2].thaw();
    until("all have answered", || match backends[0].channels("fleet:", 10) {
        Some(listed) if listed.channels == all => Ok(()),
        other => Err(json!(format!("{other:?}"))),
    });
    redis.freeze();
    assert_eq!(backends[0].channels("fleet:", 10), None, "who else there is is not known");
    redis.thaw();
}

#[test]
fn a_user_has_no_more_connections_than_the_limit_on_all_nodes_together() {
    let _turn = turn();
    let workspace = Workspace::new("user-limit");
    let redis = RedisServer::start(&workspace, Engine::Redis, "redis", &[]);
    let limit = "limits.connections_per_user_max=3";
    let options = NodeOptions::on("single", &[redis.address]).with(&[LEASE, limit]);
    let mut fleet: Vec<Node> = (1..=3).map(|n| Node::start(&workspace, &format!("n{n}"), &options)).collect();
    for node in &fleet {
        until("the engine is open", || match node.metrics().sum("ringway_backplane_buckets_open", &[]) {
            4_096 => Ok(()),
            fewer => Err(json!(fewer)),
        });
    }
    // All at once, at all nodes.
    let all: Vec<_> = std::thread::scope(|scope| {
        let connect = |place: usize| {
            let address = fleet[place].client;
            scope.spawn(move || Client::try_connect(address, "ann").map(|(client, _)| (place, client)))
        };
        let connecting: Vec<_> = (0..9).map(|n| connect(n % 3)).collect();
        connecting.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let refused = all.iter().filter_map(|result| result.as_ref().err()).collect::<Vec<_>>();
    assert_eq!(refused, vec![&Refused::Closed(3504); 6]);
    until("all are counted", || {
        let of = |node: &Node| node.metrics().sum("ringway_user_limit_refused_total", &["reason=\"limit\""]);
        let counted: u64 = fleet.iter().map(of).sum();
        if counted == 6 { Ok(()) } else { Err(json!(counted)) }
    });
    let mut inside: Vec<(usize, Client)> = all.into_iter().filter_map(Result::ok).collect();
    let connect = |node: &Node| Client::try_connect(node.client, "ann").map(|(client, _)| client);
    assert_eq!(connect(&fleet[0]).err(), Some(Refused::Closed(3504)));
    drop(Client::connect(fleet[0].client, "ben"));

    // A connection that ends makes room, at any node.
    let (place, _) = inside.pop().expect("three are in");
    let elsewhere = (place + 1) % 3;
    until("room", || {
        connect(&fleet[elsewhere]).map_err(|refused| json!(format!("{refused:?}"))).map(|client| {
            inside.push((elsewhere, client));
        })
    });

    // So does a killed node, with its lease; until then whoever comes is to come again.
    let killed = inside[0].0;
    let (lost, staying): (Vec<_>, Vec<_>) = inside.into_iter().partition(|(place, _)| *place == killed);
    let survivor = (killed + 1) % 3;
    fleet[killed].kill();
    let mut again = Vec::new();
    let mut seen = Vec::new();
    until("room behind a killed node", || match connect(&fleet[survivor]) {
        Ok(client) => {
            again.push(client);
            if again.len() == lost.len() { Ok(()) } else { Err(json!(again.len())) }
        }
        Err(refused) => {
            let text = json!(format!("{refused:?}"));
            seen.push(refused);
            Err(text)
        }
    });
    // Nobody is sent away for good because of a node that is gone.
    let later = Refused::Error { code: 111, temporary: true };
    assert!(seen.iter().all(|refused| *refused == later), "{seen:?}");
    assert_eq!(connect(&fleet[survivor]).err(), Some(Refused::Closed(3504)), "{} stayed", staying.len());

    // Without the engine nobody is kept out but by the node's own count.
    redis.freeze();
    let other = (killed + 2) % 3;
    let unchecked = connect(&fleet[other]);
    assert!(unchecked.is_ok(), "{:?}", unchecked.err());
    until("it is counted", || match fleet[other].metrics().sum("ringway_user_limit_unchecked_total", &[]) {
        0 => Err(json!(0)),
        _ => Ok(()),
    });
    redis.thaw();
    until("the engine knows again", || match connect(&fleet[survivor]) {
        Err(Refused::Closed(3504)) => Ok(()),
        Err(refused) => Err(json!(format!("{refused:?}"))),
        Ok(_) => Err(json!("let in")),
    });
}
