//! Nodes over real engines: a runtime for their tasks, and a handle for each.
//!
//! In: addresses and a mode. Out: [`Node`]s. Invariant: the nodes of one fleet share a prefix, those of two never do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ringway::backplane::{Redis, Registered};
use ringway::backplane::config::{BackplaneConfig, BackplaneSettings, Engine, Mode};
use ringway::backplane::metrics::BackplaneMetrics;
use tokio::runtime::Handle;
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
            lease_ms: 3_000,
            ..BackplaneSettings::default()
        };
        change(&mut settings);
        RedisFleet { runtime: handle, _stop: stop, settings, nodes: AtomicU32::new(0) }
    }

    pub(crate) fn single(addresses: &[String]) -> RedisFleet {
        RedisFleet::new(Mode::Single, addresses, |_| {})
    }

    pub(crate) fn config(&self, name: &str) -> BackplaneConfig {
        let settings = BackplaneSettings { node_name: name.into(), ..self.settings.clone() };
        let mut problems = Vec::new();
        settings.finish(&mut problems).unwrap_or_else(|| panic!("{problems:?}"))
    }

    pub(crate) fn named(&self, name: &str) -> (Node, Arc<BackplaneMetrics>) {
        let metrics = Arc::new(BackplaneMetrics::default());
        let boot = self.nodes.fetch_add(1, Ordering::Relaxed) + 1;
        let (handle, mut words) =
            Redis::start(self.config(name), u64::from(boot), Arc::clone(&metrics), &self.runtime);
        let id = loop {
            match words.blocking_recv().expect("it says something") {
                Registered::Yes(id) => break id,
                Registered::Refused(text) => panic!("{text}"),
                Registered::NotYet(_) | Registered::NameTaken(_) => {}
            }
        };
        let mut node = Node::new(Box::new(handle), id, boot);
        node.wait_open();
        (node, metrics)
    }

    /// So many nodes.
    pub(crate) fn nodes(&self, count: usize) -> Vec<Node> {
        (0..count).map(|_| self.node()).collect()
    }
}

impl Fleet for RedisFleet {
    fn node(&self) -> Node {
        let name = format!("node-{}", self.nodes.load(Ordering::Relaxed));
        self.named(&name).0
    }

    fn pass_ms(&self, ms: u64) {
        std::thread::sleep(Duration::from_millis(ms));
    }
}
