//! Nodes over real engines: a runtime for their tasks, and a handle for each.
//!
//! In: addresses and a mode. Out: [`Node`]s. Invariant: the nodes of one fleet share a prefix, those of two never do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ringway::backplane::config::{BackplaneConfig, BackplaneSettings, Engine, Mode};
use ringway::backplane::metrics::BackplaneMetrics;
use ringway::backplane::{Redis, Registered};
use ringway_engine::backplane::NodeId;
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

use crate::node::Node;
use crate::suite::Fleet;

/// See the file's header.
pub(crate) struct RedisFleet {
    runtime: Handle,
    /// Dropped, it ends the runtime's thread.
    _stop: oneshot::Sender<()>,
    settings: BackplaneSettings,
    nodes: AtomicU32,
}

impl RedisFleet {
    pub(crate) fn new(mode: Mode, addresses: &[String], change: impl FnOnce(&mut BackplaneSettings)) -> RedisFleet {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::spawn(move || runtime.block_on(stopped));
        let mut settings = BackplaneSettings {
            engine: Engine::Redis,
            mode,
            addresses: addresses.to_vec(),
            timeout_ms: 1_000,
            // On a busy machine a whole test's nodes, which share a thread, must renew in time.
            lease_ms: 15_000,
            ..BackplaneSettings::default()
        };
        change(&mut settings);
        RedisFleet { runtime: handle, _stop: stop, settings, nodes: AtomicU32::new(0) }
    }

    pub(crate) fn single(addresses: &[String]) -> RedisFleet {
        RedisFleet::new(Mode::Single, addresses, |_| {})
    }

    fn config(&self, name: &str, addresses: &[String]) -> BackplaneConfig {
        let (node_name, addresses) = (name.into(), addresses.to_vec());
        let settings = BackplaneSettings { node_name, addresses, ..self.settings.clone() };
        let mut problems = Vec::new();
        settings.finish(&mut problems).unwrap_or_else(|| panic!("{problems:?}"))
    }

    /// Starts a node and does not wait for it.
    pub(crate) fn start(&self, name: &str) -> Starting {
        self.start_at(name, &self.settings.addresses)
    }

    fn start_at(&self, name: &str, addresses: &[String]) -> Starting {
        let metrics = Arc::new(BackplaneMetrics::default());
        let boot = self.nodes.fetch_add(1, Ordering::Relaxed) + 1;
        let config = self.config(name, addresses);
        let (handle, words) = Redis::start(config, u64::from(boot), Arc::clone(&metrics), &self.runtime);
        Starting { handle, words, metrics, boot }
    }

    fn ready(mut starting: Starting) -> (Node, Arc<BackplaneMetrics>) {
        let id = starting.registered();
        let mut node = Node::new(Box::new(starting.handle), id, starting.boot);
        node.wait_open();
        (node, starting.metrics)
    }

    pub(crate) fn named(&self, name: &str) -> (Node, Arc<BackplaneMetrics>) {
        Self::ready(self.start(name))
    }

    /// A node that reaches the engine by this address.
    pub(crate) fn node_behind(&self, address: &str) -> Node {
        let name = self.next_name();
        Self::ready(self.start_at(&name, &[address.into()])).0
    }

    fn next_name(&self) -> String {
        format!("node-{}", self.nodes.load(Ordering::Relaxed))
    }

    /// So many nodes.
    pub(crate) fn nodes(&self, count: usize) -> Vec<Node> {
        (0..count).map(|_| self.node()).collect()
    }
}

/// A node that has been started.
pub(crate) struct Starting {
    handle: Redis,
    words: UnboundedReceiver<Registered>,
    metrics: Arc<BackplaneMetrics>,
    boot: u32,
}

impl Starting {
    /// What it says next about its registration.
    pub(crate) fn word(&mut self) -> Registered {
        self.words.blocking_recv().expect("it says something")
    }

    /// Waits until it is registered.
    pub(crate) fn registered(&mut self) -> NodeId {
        loop {
            match self.word() {
                Registered::Yes(id) => return id,
                Registered::Refused(text) => panic!("{text}"),
                Registered::NotYet(_) | Registered::NameTaken(_) => {}
            }
        }
    }
}

impl Fleet for RedisFleet {
    fn node(&self) -> Node {
        self.named(&self.next_name()).0
    }

    fn pass_ms(&self, ms: u64) {
        std::thread::sleep(Duration::from_millis(ms));
    }
}
