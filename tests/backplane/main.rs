//! The contract with an engine that several nodes share, held against every implementation.
//!
//! `suite.rs` has rules R1 to R7 as tests over `dyn Backplane`; they run over the embedded implementation, Redis, Valkey
//! and a cluster of three primaries. `faults.rs` cuts, kills, stops, promotes and migrates real servers.
//! Redis comes from Debian, Valkey from `tests/backplane/install.sh`.
#![allow(clippy::disallowed_methods, reason = "a test reads the time where it needs it")]

mod node;
mod redis_nodes;
mod servers;

use redis_nodes::RedisFleet;
use servers::{Kind, Server};

#[test]
fn two_nodes_hear_each_other() {
    let server = Server::start(Kind::Redis, &[]);
    let fleet = RedisFleet::single(&[server.address()]);
    let (mut a, mut b) = (fleet.node("a"), fleet.node("b"));
    a.wait_open();
    b.wait_open();
    let page = b.follow("news", None, 0);
    assert_eq!(page.top.offset, 0);
    let first = a.publish("news", &[b"1"]).first;
    assert_eq!((first.offset, first.epoch), (1, page.top.epoch));
    a.publish("news", &[b"2", b"3"]);
    assert_eq!(b.fed("news"), (first.epoch, 0, vec![(*b"1").into()]));
    assert_eq!(b.fed("news"), (first.epoch, 1, vec![(*b"2").into(), (*b"3").into()]));
    let page = a.read("news", None, 10, false);
    assert_eq!((page.top.offset, page.first, page.records.len()), (3, 1, 3));
}
