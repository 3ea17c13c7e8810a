//! What coordinator and workers say to each other: one JSON object per line over the worker's stdin and stdout.
//!
//! In and out: [`WorkerConfig`] first, then [`Order`]s to the worker and [`Note`]s back.
//! Invariant: notes are counts and times, never one line per delivery.
use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::checker::{Counts, Layout};
use crate::options::Protocol;
use crate::report::Buckets;

/// All that a worker needs to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerConfig {
    /// Number of its first connection in the run.
    pub first_connection: u64,
    /// How many connections it holds.
    pub connections: u32,
    /// Where they connect to.
    pub target: SocketAddr,
    /// Host header.
    pub host: String,
    /// Path and query.
    pub path: String,
    /// What they speak.
    pub protocol: Protocol,
    /// Who subscribes to what.
    pub layout: Layout,
    /// Channel names are this and a number.
    pub channel_prefix: String,
    /// Names of the channels instead; empty: prefix and number.
    pub channel_names: Vec<String>,
    /// How many of this worker's connections, from the first, subscribe to each of the named; empty: all to each.
    pub channel_members: Vec<u32>,
    /// Whether subscribers ask for joins and leaves.
    pub join_leave: bool,
    /// Token of the connect command.
    pub token: Option<String>,
    /// HMAC secret with which each connection's own token is signed.
    pub token_secret: Option<String>,
    /// Stamp of this run.
    pub run: u16,
    /// New connections per second of this worker; 0: as fast as they come.
    pub connect_rate: f64,
    /// Connections that may be opening at once.
    pub opening_max: u32,
    /// Pause before each wait, in microseconds.
    pub nap_us: u64,
    /// How often it says what it has received, in microseconds.
    pub notify_us: u64,
    /// Core to pin to.
    pub cpu: Option<usize>,
    /// Connections per source address.
    pub connections_per_address: u32,
    /// SO_RCVBUF, in bytes; 0: default.
    pub receive_buffer_bytes: u32,
    /// Whether permessage-deflate is offered and insisted on.
    pub deflate: bool,
}

impl WorkerConfig {
    /// Numbers of the channels to which the worker's connection `connection` subscribes.
    pub fn channels_of(&self, connection: u32) -> impl Iterator<Item = u32> {
        let number = self.first_connection + u64::from(connection);
        let has = move |channel: &u32| self.members_of(*channel) > connection;
        (0..self.layout.subscriptions).map(move |index| self.layout.channel(number, index)).filter(has)
    }

    /// How many connections of the worker subscribe to a named channel, if they do so in the order of their numbers.
    pub fn members_of(&self, channel: u32) -> u32 {
        self.channel_members.get(channel as usize).copied().unwrap_or(self.connections)
    }
}

/// Coordinator to worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Order {
    /// Say [`Note::Reached`] once all deliveries of this many publications have come.
    Goal {
        /// Publications over all channels, in turn.
        published: u64,
    },
    /// Start sending on every connection, each echo triggering the next.
    Echo {
        /// Messages outstanding per connection.
        outstanding: u32,
        /// Payload length.
        payload_bytes: usize,
    },
    /// Send no more; say [`Note::Done`] when every echo is back.
    EchoStop,
    /// Let connections leave a channel and join it again, one after the other.
    Churn {
        /// Name of the channel.
        channel: String,
        /// Connections that have sent a command and wait for its reply.
        outstanding: u32,
        /// The first so many of the worker's subscribers take part.
        churners: u32,
    },
    /// Let nobody else leave; say [`Note::Done`] when everyone has joined again.
    ChurnStop,
    /// Forget latencies and start counting CPU here; say [`Note::Done`].
    Reset,
    /// Say [`Note::Report`].
    Report {
        /// Publications over all channels, in turn; what is missing then counts as a gap. None: do not look.
        published: Option<u64>,
    },
    /// Close everything and end.
    Exit,
}

/// Worker to coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Note {
    /// So many connections are open now.
    Open {
        /// Connections.
        connections: u32,
    },
    /// Every connection is open or has failed.
    Ready(Opened),
    /// All deliveries of this many publications have come.
    Reached {
        /// As in the order.
        published: u64,
        /// When the first delivery since the order came, monotonic ns; 0: none came since.
        first_ns: u64,
        /// When the last delivery came, monotonic ns.
        last_ns: u64,
    },
    /// So many deliveries have come.
    Received {
        /// Deliveries since the start.
        deliveries: u64,
    },
    /// An order without an answer of its own was carried out.
    Done,
    /// The worker's results.
    Report(Box<WorkerReport>),
}

/// How opening went.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Opened {
    /// Connections that opened.
    pub connections: u32,
    /// When the first was begun, monotonic ns.
    pub first_ns: u64,
    /// When the last was open, monotonic ns.
    pub last_ns: u64,
    /// Time from connect() to open (subscribed), in ns.
    pub latency: Buckets,
    /// Why connections failed, with counts.
    pub failures: BTreeMap<String, u64>,
    /// Memory of the worker process, in bytes.
    pub resident_bytes: u64,
    /// CPU of the worker process so far, in ns.
    pub cpu_ns: u64,
}

/// What a worker found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerReport {
    /// Deliveries and what was wrong with them.
    pub counts: Counts,
    /// Latency from the intended time, in ns, since the last reset.
    pub latency: Buckets,
    /// Echoes since the last reset.
    pub echoes: u64,
    /// Leaves and joins that were answered since the last reset.
    pub changes: u64,
    /// Joins and leaves of others that connections were told of since the last reset.
    pub told: u64,
    /// Connections that are open.
    pub open: u32,
    /// Why open connections ended, with counts.
    pub losses: BTreeMap<String, u64>,
    /// Pings of the client protocol and of WebSocket that came.
    pub pings: u64,
    /// Bytes of the TCP streams since the last reset: frames with their headers, pings too.
    pub received_bytes: u64,
    /// Deliveries of `counts.received` that came in a compressed message.
    pub compressed: u64,
    /// CPU of the worker since the last reset, in ns.
    pub cpu_ns: u64,
    /// Memory of the worker process, in bytes.
    pub resident_bytes: u64,
}

/// One line.
pub fn encode<T: Serialize>(value: &T) -> Result<String, String> {
    let mut line = serde_json::to_string(value).map_err(|error| error.to_string())?;
    line.push('\n');
    Ok(line)
}

/// A line's value.
pub fn decode<T: for<'de> Deserialize<'de>>(line: &str) -> Result<T, String> {
    serde_json::from_str(line).map_err(|error| format!("{error} in {line:?}"))
}
