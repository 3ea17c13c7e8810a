//! This node in the engine's registry: a lease on its name, a place, a generation; and which nodes are alive.
//!
//! In: name and boot id. Out: a [`NodeId`], the living nodes, and the news that a lease was lost. Invariants: a
//! generation is never given twice, also by a server that has lost everything (it counts from the time); a node whose
//! lease another has, or nobody, is that node no more.

use std::fmt::Write as _;
use std::time::Duration;

use redis::{Value, cmd};
use ringway_engine::backplane::NodeId;

use super::call::script;
use super::config::{Address, BackplaneConfig};
use super::keys::{Keys, LIVING, REGISTRY};
use super::link::{Link, Reason, number, within};
use super::opening;
use super::pipeline::load_scripts;
use super::scripts::Script;
use super::topology::Topology;

/// So many times the lease a place is kept for a node that has gone silent.
const PLACE_LEASES: u64 = 60;
/// Living nodes at most; places are below it.
pub(super) const NODES_MAX: u16 = 4_096;

/// The answer to a wish to be registered.
pub(super) enum Acquired {
    Yes {
        node: NodeId,
        living: Living,
        /// For so long something may be parked.
        draining_left_ms: u64,
    },
    /// Another living node has the name; its lease ends in so many ms unless it is renewed.
    NameTaken { left_ms: u64 },
}

/// Which nodes are alive, as of some moment.
#[derive(Debug)]
pub(super) struct Living {
    pub(super) count: usize,
    /// Their generations, each between spaces.
    pub(super) between_spaces: String,
    /// The newest generation then. An older one that is not among the living will never live again; of a newer one nothing is
    /// known.
    pub(super) newest: u64,
}

impl Default for Living {
    /// This node, and nothing is known of others.
    fn default() -> Self {
        Living { count: 1, between_spaces: String::new(), newest: 0 }
    }
}

impl Living {
    /// From what `acquire.lua` and `renew.lua` return.
    fn read(newest: &Value, generations: &Value) -> Option<Living> {
        let generations: Vec<u64> = generations.as_sequence()?.iter().map(number).collect::<Option<_>>()?;
        let mut between_spaces = String::from(" ");
        for generation in &generations {
            let _ = write!(between_spaces, "{generation} ");
        }
        Some(Living { count: generations.len(), between_spaces, newest: number(newest)? })
    }
}

/// A connection to the primary that has the registry.
pub(super) struct Registry {
    link: Link,
    timeout: Duration,
    lease_ms: u64,
    boot: String,
    name: String,
    keys: [String; 5],
}

impl Registry {
    /// # Errors
    /// The primary cannot be reached or will not do.
    pub(super) async fn open(
        config: &BackplaneConfig,
        keys: &Keys,
        topology: &Topology,
        boot: u64,
    ) -> Result<Registry, Reason> {
        let address: &Address = topology
            .iter()
            .find_map(|(address, buckets)| buckets.contains(REGISTRY).then_some(address))
            .ok_or("no primary has the registry")?;
        let (mut link, _) = opening::primary(config, address).await?;
        let loads = load_scripts(&mut link);
        within(config.timeout(), link.replies(loads)).await?;
        Ok(Registry {
            link,
            timeout: config.timeout(),
            lease_ms: config.lease_ms,
            boot: format!("{boot:016x}"),
            name: config.node_name.clone(),
            keys: [
                keys.registry(&format!("name:{}", config.node_name)),
                keys.registry("generations"),
                keys.registry(LIVING),
                keys.registry("place:"),
                keys.registry("draining"),
            ],
        })
    }

    /// `place`: the one that this process had before, or 0.
    ///
    /// # Errors
    /// The connection is of no more use, or no place is free.
    pub(super) async fn acquire(&mut self, place: u16) -> Result<Acquired, Reason> {
        let mut call = script(Script::Acquire, self.keys.len());
        for key in &self.keys {
            call.arg(key);
        }
        call.arg(&self.boot).arg(self.lease_ms).arg(&self.name).arg(NODES_MAX);
        call.arg(place).arg(self.lease_ms * PLACE_LEASES);
        let reply = self.ask(call).await?;
        let acquired = match reply.as_sequence().unwrap_or_default() {
            [left_ms] => number(left_ms).map(|left_ms| Acquired::NameTaken { left_ms }),
            [place, generation, newest, draining_left_ms, living] => {
                let number_of = |value| number(value).ok_or("the registry's answer cannot be read");
                let (place, generation) = (number_of(place)?, number_of(generation)?);
                let (Ok(place), Ok(generation)) = (u16::try_from(place), u32::try_from(generation)) else {
                    return Err("the registry's numbers are too large".into());
                };
                let (node, draining_left_ms) = (NodeId { place, generation }, number_of(draining_left_ms)?);
                Living::read(newest, living).map(|living| Acquired::Yes { node, living, draining_left_ms })
            }
            _ => None,
        };
        acquired.ok_or_else(|| "the registry's answer cannot be read".into())
    }

    /// Returns the living nodes, and for how long something may be parked; none: this node's lease is lost.
    /// `draining_ms`: this node drains, and things may be parked for so long from now; 0: it does not.
    ///
    /// # Errors
    /// The connection is of no more use.
    pub(super) async fn renew(&mut self, node: NodeId, draining_ms: u64) -> Result<Option<(Living, u64)>, Reason> {
        self.call_renew(node, self.lease_ms, draining_ms).await
    }

    /// Gives the name and the place back.
    pub(super) async fn release(&mut self, node: NodeId, draining_ms: u64) {
        // If it fails, the lease ends by itself.
        let _ = self.call_renew(node, 0, draining_ms).await;
    }

    async fn call_renew(
        &mut self,
        node: NodeId,
        lease_ms: u64,
        draining_ms: u64,
    ) -> Result<Option<(Living, u64)>, Reason> {
        let mut call = script(Script::Renew, 5);
        call.arg(&self.keys[0]).arg(format!("{}{}", self.keys[3], node.place)).arg(&self.keys[2]).arg(&self.keys[4]);
        call.arg(&self.keys[1]);
        call.arg(&self.boot).arg(lease_ms).arg(&self.name).arg(node.generation);
        call.arg(self.lease_ms * PLACE_LEASES).arg(draining_ms);
        let reply = self.ask(call).await?;
        match reply.as_sequence() {
            Some([]) => Ok(None),
            Some([newest, left_ms, living]) => {
                let read = Living::read(newest, living).zip(number(left_ms));
                read.map(Some).ok_or_else(|| "the registry's answer cannot be read".into())
            }
            _ => Err("the registry's answer cannot be read".into()),
        }
    }

    async fn ask(&mut self, call: redis::Cmd) -> Result<Value, Reason> {
        let mut replies = within(self.timeout, self.link.ask(&[call])).await?;
        replies.pop().ok_or_else(|| "no answer".into())
    }

    /// Whether the server still is a primary.
    ///
    /// # Errors
    /// It is not, or does not answer.
    pub(super) async fn check_role(&mut self) -> Result<(), Reason> {
        let role = self.ask(cmd("ROLE")).await?;
        let role = role.as_sequence().and_then(|parts| super::link::text(parts.first()?));
        if role == Some("master") { Ok(()) } else { Err("the registry's server is no primary any more".into()) }
    }
}
