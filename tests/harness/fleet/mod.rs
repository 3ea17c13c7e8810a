//! A fleet on this machine: real engines, a real load balancer, real nodes, real clients, each a process that can be ended
//! in every way.
//!
//! ```text
//! Load (ringway-loadgen fleet) ──> HaProxy ──> Node 1..n (ringway) ──> RedisServer, with replicas and Sentinels, or a
//!                              └── ingest ─────^                       RedisCluster, or Valkey
//! ```
//!
//! | file | type | role |
//! |---|---|---|
//! | `process.rs` | [`Workspace`], [`Managed`] | folder and ports of a test; a process with its log |
//! | `redis.rs` | [`RedisServer`], [`Failover`], [`RedisCluster`] | engines |
//! | `haproxy.rs` | [`HaProxy`] | load balancer |
//! | `node.rs` | [`Node`], [`Backplane`] | a gateway with a generated configuration |
//! | `load.rs` | [`Load`] | clients and publishers, and their report |
//!
//! Invariants: everything is ended by its own pid when its value is dropped; a node comes back on the ports that it had,
//! which lie below the range that the kernel gives to outgoing connections; logs stay when a test fails.

pub mod haproxy;
pub mod load;
pub mod node;
pub mod process;
pub mod redis;

pub use haproxy::HaProxy;
pub use load::Load;
pub use node::{Backplane, Node, NodeOptions};
pub use process::{Managed, Workspace};
pub use redis::{Engine, Failover, RedisCluster, RedisServer, valkey_server};

/// Nodes with a load balancer in front.
#[derive(Debug)]
pub struct Fleet {
    /// The load balancer; first, so that it ends before the nodes do.
    pub balancer: HaProxy,
    /// The nodes.
    pub nodes: Vec<Node>,
}

impl Fleet {
    /// Starts `count` nodes, `n1` and so on, and the load balancer.
    pub fn start(workspace: &Workspace, count: usize, options: &NodeOptions) -> Fleet {
        let nodes: Vec<Node> =
            (1..=count).map(|number| Node::start(workspace, &format!("n{number}"), options)).collect();
        let balancer = HaProxy::start(workspace, &nodes, 1);
        Fleet { balancer, nodes }
    }

    /// Starts the load on it, with `more` arguments behind.
    pub fn load(&self, workspace: &Workspace, clients: u32, more: &[&str]) -> Load {
        Load::start(workspace, self.balancer.address, &self.nodes, clients, more)
    }

    /// Ends each node with SIGTERM and starts it again, one after the other; behind each, all clients must be whole again.
    pub fn restart_all(&mut self, load: &mut Load) {
        for node in &mut self.nodes {
            node.stop();
            node.restart();
            load.wait_whole();
        }
    }
}
