//! What the threads of one process share, beside nothing else.
//!
//! In: made by boot. Out: queues to every thread that speaks over lanes, and a few flags. Invariant: whatever is here is
//! either fixed at boot or safe to touch from any thread.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ringway_engine::ids::CoreId;
use ringway_engine::lane_message::Batch;
use ringway_sys::Inbox;

use crate::control::MetricsHub;
use crate::drain::DrainOrders;

/// What the threads of one process share.
pub struct Shared {
    /// Shards of the process.
    pub shards: u16,
    /// One per shard, behind them the control plane's, and last, if one is configured, the backplane's.
    pub inboxes: Vec<Arc<Inbox<Batch>>>,
    /// Numbers for `/metrics`.
    pub metrics: Arc<MetricsHub>,
    /// Set once, when the process is to end.
    pub stop: AtomicBool,
    /// How long clients may take to answer our Close when the process ends.
    pub stop_timeout_ms: u64,
    /// How far the shards are to have drained.
    pub drain: DrainOrders,
}

impl Shared {
    /// The control plane, as lanes name it.
    pub const fn control(&self) -> CoreId {
        CoreId(self.shards)
    }

    /// The backplane, as lanes name it.
    pub const fn backplane(&self) -> CoreId {
        CoreId(self.shards + 1)
    }
}
