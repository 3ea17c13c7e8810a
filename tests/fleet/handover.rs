//! What only a node knows of a user's connection goes along when the node is drained.
//!
//! Set-up: two nodes on one Redis behind HAProxy; a client with a token, a member of a channel only because the server API
//! subscribed it while it was connected. Claims: its node is stopped, and its next connect through HAProxy, to the other node,
//! has the subscription in its result with exactly what was published meanwhile; presence on the other node has the user all
//! the time; who stayed asked the engine about hand-overs only because some node drained.

use std::time::Duration;

use ringway_tests::eventually;
use ringway_tests::fleet::{Engine, Fleet, Node, NodeOptions, RedisServer, Workspace};
use serde_json::{Value, json};

use super::clients::{Client, api};
use super::turn;

/// With history.
const CHANNEL: &str = "fleet:given";
/// With presence.
const ROOM: &str = "room";
const PATIENCE: Duration = Duration::from_secs(30);

fn publish(node: &Node, number: u32) {
    api(node, "publish", &json!({ "channel": CHANNEL, "data": { "n": number } }));
}

/// Whether the room has a member of this user, as this node says.
fn is_present(node: &Node, user: &str) -> bool {
    let answer = api(node, "presence", &json!({ "channel": ROOM }));
    answer["presence"].as_object().is_some_and(|members| members.values().any(|member| member["user"] == user))
}

fn numbers(publications: &Value) -> Vec<u64> {
    let all = publications.as_array().into_iter().flatten();
    all.map(|publication| publication["data"]["n"].as_u64().expect("a number")).collect()
}

#[test]
fn what_only_a_drained_node_knew_is_in_the_next_connect_result() {
    let _turn = turn();
    let workspace = Workspace::new("handover");
    let redis = RedisServer::start(&workspace, Engine::Redis, "redis", &[]);
    // Long enough for the other node to hear of the drain with the next renewal of its lease.
    let options = NodeOptions::on("single", &[redis.address]).with(&[
        "backplane.lease_ms=4000",
        "limits.drain_grace_ms=2500",
        "limits.drain_leave_delay_ms=3000",
        "limits.drain_deadline_ms=30000",
    ]);
    let mut fleet = Fleet::start(&workspace, 2, &options);
    let (mut client, result) = Client::connect(fleet.balancer.address, "mia");
    assert!(result["subs"].get(CHANNEL).is_none(), "{result}");
    let somewhere = || fleet.nodes.iter().position(|node| node.connections() == 1);
    eventually("it is somewhere", || somewhere().is_some());
    let from = somewhere().expect("it stays there");
    let to = 1 - from;
    for channel in [CHANNEL, ROOM] {
        let subscribe = json!({ "user": "mia", "channel": channel, "data": { "d": 1 }, "info": { "i": 2 } });
        api(&fleet.nodes[to], "subscribe", &subscribe);
        let push = client.next().expect("a push");
        assert_eq!(
            (&push["push"]["channel"], &push["push"]["subscribe"]["data"]),
            (&json!(channel), &json!({ "d": 1 }))
        );
    }
    publish(&fleet.nodes[to], 1);
    assert_eq!(client.published(), 1);
    assert!(is_present(&fleet.nodes[to], "mia"));

    fleet.nodes[from].process.signal("TERM");
    assert_eq!(client.next(), Err(3001));
    drop(client);
    assert!(is_present(&fleet.nodes[to], "mia"), "it is away, and nobody is told");
    publish(&fleet.nodes[to], 2);
    publish(&fleet.nodes[to], 3);
    let (mut client, result) = Client::connect(fleet.balancer.address, "mia");
    let restored = &result["subs"][CHANNEL];
    assert_eq!(numbers(&restored["publications"]), [2, 3], "{result}");
    assert_eq!((&restored["recovered"], &restored["data"]), (&json!(true), &json!({ "d": 1 })), "{result}");
    assert!(result["subs"].get(ROOM).is_some(), "{result}");
    publish(&fleet.nodes[to], 4);
    assert_eq!(client.published(), 4);
    let members = api(&fleet.nodes[to], "presence", &json!({ "channel": ROOM }));
    assert!(members.to_string().contains(r#"{"i":2}"#), "{members}");
    // The old connection leaves some time later, and the user is there all the time.
    let status = fleet.nodes[from].process.wait(PATIENCE);
    assert!(status.success(), "{status}");
    assert!(is_present(&fleet.nodes[to], "mia"));
    let metrics = fleet.nodes[to].metrics();
    assert_eq!(metrics.sum("ringway_hand_overs_total", &["what=\"restored\""]), 1);
    assert_eq!(metrics.sum("ringway_hand_over_questions_total", &[]), 1, "nobody asked before the drain");
}
