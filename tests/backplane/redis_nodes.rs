//! Nodes over real engines: a runtime for their tasks, and a handle for each.
//!
//! In: addresses and a mode. Out: [`Node`]s. Invariant: the nodes of one fleet share a prefix, those of two never do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ringway::backplane::Redis;
use ringway::backplane::config::{BackplaneConfig, BackplaneSettings, Engine, Mode};
use ringway::backplane::metrics::BackplaneMetrics;
use tokio::runtime::Runtime;

use crate::node::Node;

/// See the file's header.
pub(crate) struct RedisFleet {
    runtime: Runtime,
    settings: BackplaneSettings,
    nodes: AtomicU32,
}

impl RedisFleet {
    pub(crate) fn new(mode: Mode, addresses: &[String], change: impl FnOnce(&mut BackplaneSettings)) -> RedisFleet {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let mut settings = BackplaneSettings {
            engine: Engine::Redis,
            mode,
            addresses: addresses.to_vec(),
            timeout_ms: 1_000,
            lease_ms: 3_000,
            ..BackplaneSettings::default()
        };
        change(&mut settings);
        RedisFleet { runtime: runtime.expect("a runtime"), settings, nodes: AtomicU32::new(0) }
    }

    pub(crate) fn single(addresses: &[String]) -> RedisFleet {
        RedisFleet::new(Mode::Single, addresses, |_| {})
    }

    pub(crate) fn config(&self, name: &str) -> BackplaneConfig {
        let settings = BackplaneSettings { node_name: name.into(), ..self.settings.clone() };
        let mut problems = Vec::new();
        settings.finish(&mut problems).unwrap_or_else(|| panic!("{problems:?}"))
    }

    pub(crate) fn node(&self, name: &str) -> Node {
        self.node_with_metrics(name).0
    }

    pub(crate) fn node_with_metrics(&self, name: &str) -> (Node, Arc<BackplaneMetrics>) {
        let metrics = Arc::new(BackplaneMetrics::default());
        let boot = self.nodes.fetch_add(1, Ordering::Relaxed) + 1;
        let (handle, _words) =
            Redis::start(self.config(name), u64::from(boot), Arc::clone(&metrics), self.runtime.handle());
        (Node::new(Box::new(handle), boot), metrics)
    }
}
