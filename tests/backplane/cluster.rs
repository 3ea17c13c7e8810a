//! A cluster of three primaries.
//!
//! In: which program. Out: servers that form a cluster; slots move from one to another when a test says so.

use std::time::{Duration, Instant};

use redis::cmd;

use crate::servers::{Kind, PATIENCE, Server};

const SLOTS: u16 = 16_384;
const OPTIONS: [&str; 4] = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];

/// See the file's header.
pub(crate) struct Cluster {
    pub(crate) servers: Vec<Server>,
    ids: Vec<String>,
}

impl Cluster {
    pub(crate) fn start(kind: Kind) -> Cluster {
        let servers: Vec<Server> = (0..3).map(|_| Server::start(kind, &OPTIONS)).collect();
        let share = SLOTS / 3 + 1;
        let mut ids = Vec::new();
        for (n, server) in servers.iter().enumerate() {
            let mut client = server.client();
            let first = n as u16 * share;
            let last = (first + share - 1).min(SLOTS - 1);
            cmd("CLUSTER").arg("ADDSLOTSRANGE").arg(first).arg(last).exec(&mut client).expect("slots");
            // Distinct, so that the three agree without an election of epochs.
            cmd("CLUSTER").arg("SET-CONFIG-EPOCH").arg(n + 1).exec(&mut client).expect("an epoch");
            ids.push(cmd("CLUSTER").arg("MYID").query::<String>(&mut client).expect("an id"));
        }
        let mut client = servers[0].client();
        for server in &servers[1..] {
            cmd("CLUSTER").arg("MEET").arg("127.0.0.1").arg(server.port()).exec(&mut client).expect("they meet");
        }
        let cluster = Cluster { servers, ids };
        let until = Instant::now() + PATIENCE;
        while !cluster.servers.iter().all(is_ok) {
            assert!(Instant::now() < until, "the cluster does not form");
            std::thread::sleep(Duration::from_millis(20));
        }
        cluster
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.servers.iter().map(Server::address).collect()
    }

    /// A replica of one of them.
    pub(crate) fn add_replica(&self, of: usize) -> Server {
        let replica = Server::start(Kind::Redis, &OPTIONS);
        let mut client = replica.client();
        cmd("CLUSTER").arg("MEET").arg("127.0.0.1").arg(self.servers[of].port()).exec(&mut client).expect("they meet");
        let until = Instant::now() + PATIENCE;
        // It must have heard of the primary first.
        while cmd("CLUSTER").arg("REPLICATE").arg(&self.ids[of]).exec(&mut client).is_err() {
            assert!(Instant::now() < until, "the replica does not join");
            std::thread::sleep(Duration::from_millis(50));
        }
        replica
    }

    /// Who has a slot.
    pub(crate) fn owner(&self, slot: u16) -> usize {
        let nodes: String = cmd("CLUSTER").arg("NODES").query(&mut self.servers[0].client()).expect("nodes");
        let has = |line: &&str| {
            line.split(' ').skip(8).any(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                first.parse::<u16>().is_ok_and(|first| first <= slot)
                    && last.parse::<u16>().is_ok_and(|last| slot <= last)
            })
        };
        let line = nodes.lines().find(has).expect("somebody has it");
        self.ids.iter().position(|id| line.starts_with(id)).expect("one of ours")
    }

    /// Moves a slot with all its keys.
    pub(crate) fn migrate(&self, slot: u16, to: usize) {
        let from = self.owner(slot);
        if from == to {
            return;
        }
        let (mut source, mut target) = (self.servers[from].client(), self.servers[to].client());
        let set = |client: &mut redis::Connection, what: &str, id: &str| {
            cmd("CLUSTER").arg("SETSLOT").arg(slot).arg(what).arg(id).exec(client).expect("the slot is set");
        };
        set(&mut target, "IMPORTING", &self.ids[from]);
        set(&mut source, "MIGRATING", &self.ids[to]);
        loop {
            let keys: Vec<Vec<u8>> =
                cmd("CLUSTER").arg("GETKEYSINSLOT").arg(slot).arg(3).query(&mut source).expect("keys");
            if keys.is_empty() {
                break;
            }
            let mut migrate = cmd("MIGRATE");
            migrate.arg("127.0.0.1").arg(self.servers[to].port()).arg("").arg(0).arg(5_000).arg("KEYS").arg(keys);
            migrate.exec(&mut source).expect("keys move");
        }
        set(&mut target, "NODE", &self.ids[to]);
        set(&mut source, "NODE", &self.ids[to]);
        for (n, server) in self.servers.iter().enumerate() {
            if n != from && n != to {
                set(&mut server.client(), "NODE", &self.ids[to]);
            }
        }
    }
}

fn is_ok(server: &Server) -> bool {
    let info: String = cmd("CLUSTER").arg("INFO").query(&mut server.client()).expect("info");
    let nodes: String = cmd("CLUSTER").arg("NODES").query(&mut server.client()).expect("nodes");
    info.contains("cluster_state:ok")
        && info.contains("cluster_slots_ok:16384")
        && nodes.matches("connected").count() >= 3
}
