//! What the coordinator of a fleet run and its workers say to each other: one JSON object per line over the worker's stdin
//! and stdout.
//!
//! In and out: [`FleetConfig`] first, then [`FleetOrder`]s to the worker and [`FleetNote`]s back.
//! Invariant: notes are counts and times, never one line per delivery.
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::reconnect::Backoff;
use super::report::FleetReport;
use crate::checker::Layout;

/// All that a worker needs to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FleetConfig {
    /// Number of its first client in the run.
    pub first_connection: u64,
    /// How many clients it has.
    pub connections: u32,
    /// Where they connect to, again and again.
    pub target: SocketAddr,
    /// Host header.
    pub host: String,
    /// Path and query.
    pub path: String,
    /// Who subscribes to what.
    pub layout: Layout,
    /// Channel names are this and a number.
    pub channel_prefix: String,
    /// Channels below this are written by clients: channel n by client n.
    pub written_by_clients: u32,
    /// Payload length.
    pub payload_bytes: usize,
    /// HMAC secret with which each client's own token is signed; none: anonymous.
    pub token_secret: Option<String>,
    /// Stamp of this run.
    pub run: u16,
    /// Seed of what is random.
    pub seed: u64,
    /// First connections per second of this worker; 0: as fast as they come.
    pub connect_rate: f64,
    /// First connections that may be opening at once.
    pub opening_max: u32,
    /// Delays before coming back.
    pub backoff: Backoff,
    /// Leaves and returns per second of this worker's clients.
    pub changes_per_s: f64,
    /// Connections of this worker's clients that are cut per second.
    pub cuts_per_s: f64,
    /// Longest wait for a reply, in ms; behind it the connection is given up.
    pub reply_timeout_ms: u64,
    /// Pause before each wait, in microseconds.
    pub nap_us: u64,
    /// Core to pin to.
    pub cpu: Option<usize>,
    /// Clients per source address.
    pub connections_per_address: u32,
}

/// Coordinator to worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FleetOrder {
    /// The load begins: count silences from here, and let clients publish so often.
    Begin {
        /// Publications per second to each channel that a client writes.
        rate_per_channel: f64,
    },
    /// Clients publish no more; say [`FleetNote::Written`] when none waits for a reply.
    Stop,
    /// Say [`FleetNote::Settled`] once every subscription has so many publications of its channel.
    Settle {
        /// By channel.
        confirmed: Vec<u32>,
    },
    /// Say [`FleetNote::Report`].
    Report {
        /// Publications by channel: one behind the last number that may have been published.
        written: Vec<u32>,
        /// (channel, number) that were never confirmed to their writers.
        unconfirmed: Vec<(u32, u32)>,
    },
    /// Close everything and end.
    Exit,
}

/// What became of a channel's numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Channel.
    pub channel: u32,
    /// One behind the last number used.
    pub next: u32,
    /// One behind the last number that was confirmed.
    pub confirmed: u32,
    /// Numbers that were sent and never confirmed.
    pub unconfirmed: Vec<u32>,
}

/// Worker to coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FleetNote {
    /// How it is.
    Status {
        /// Clients that are connected with every subscription.
        whole: u32,
        /// Deliveries so far.
        received: u64,
        /// Times that clients had to come back.
        reconnects: u64,
    },
    /// Nobody publishes any more.
    Written(Vec<Written>),
    /// Everybody has what was asked for.
    Settled,
    /// The worker's results.
    Report(Box<FleetReport>),
}
