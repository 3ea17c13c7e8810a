//! The options of the fleet scenario.
//!
//! In: arguments. Out: [`FleetOptions`]. Invariant: every option has a unit in its name or in its help.
use std::net::SocketAddr;

use clap::Args;

use super::Common;

/// Options of `fleet`.
#[derive(Args, Clone, Debug)]
pub struct FleetOptions {
    /// Shared options.
    #[command(flatten)]
    pub common: Common,
    /// Where all clients connect, again and again: the load balancer, as ws://address:port/path.
    #[arg(long, default_value = "ws://127.0.0.1:8000/connection/websocket")]
    pub url: String,
    /// Clients in all.
    #[arg(long, short = 'n', default_value_t = 1000)]
    pub connections: u32,
    /// Channels in all; each has one writer.
    #[arg(long, short = 'm', default_value_t = 100)]
    pub channels: u32,
    /// Subscriptions of each client; client i takes channels i*s, i*s+1, ... modulo the number of channels.
    #[arg(long, short = 's', default_value_t = 2)]
    pub subscriptions: u32,
    /// Of the channels, the first so many are written by clients, over WebSocket; the others over ingest.
    #[arg(long, default_value_t = 20)]
    pub written_by_clients: u32,
    /// Channel names are this and a number.
    #[arg(long, default_value = "fleet:")]
    pub channel_prefix: String,
    /// Publications per second to each channel.
    #[arg(long, default_value_t = 1.0)]
    pub rate_per_channel: f64,
    /// Payload length in bytes.
    #[arg(long, default_value_t = 128)]
    pub payload_bytes: usize,
    /// Ingest ports of all nodes; a publisher that loses one goes on at the next.
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:8002")]
    pub ingest: Vec<SocketAddr>,
    /// Token of the ingest ports.
    #[arg(long, default_value = "dev")]
    pub ingest_token: String,
    /// Ingest connections.
    #[arg(long, default_value_t = 6)]
    pub publishers: u32,
    /// HMAC secret of the server: client i comes with a token of user u<i>.
    #[arg(long)]
    pub token_secret: Option<String>,
    /// First connections per second; 0: as fast as they come.
    #[arg(long, default_value_t = 0)]
    pub connect_rate: u32,
    /// Clients of one process that may be opening at once for the first time.
    #[arg(long, default_value_t = 128)]
    pub opening_max: u32,
    /// Worker processes; 0: as few as the open-file limit allows.
    #[arg(long, default_value_t = 0)]
    pub workers: u32,
    /// Shortest delay before coming back, in ms; the default is that of the JavaScript SDK.
    #[arg(long, default_value_t = 500)]
    pub backoff_min_ms: u64,
    /// Longest delay before coming back, in ms.
    #[arg(long, default_value_t = 20_000)]
    pub backoff_max_ms: u64,
    /// Times per second, in all, that a client leaves one of its channels or comes back to one, at random. It keeps its
    /// position meanwhile, and comes back to all of them behind the load.
    #[arg(long, default_value_t = 0.0)]
    pub changes_per_s: f64,
    /// Connections per second that are cut at random, without a close frame.
    #[arg(long, default_value_t = 0.0)]
    pub cuts_per_s: f64,
    /// Longest wait for a reply, in ms; behind it an SDK gives the connection up.
    #[arg(long, default_value_t = 5_000)]
    pub reply_timeout_ms: u64,
    /// Pause before each look for readable sockets, in microseconds.
    #[arg(long, default_value_t = 1_000)]
    pub nap_us: u64,
    /// Clients that share a source address of 127.0.0.0/8; used for loopback servers only.
    #[arg(long, default_value_t = 1000)]
    pub connections_per_address: u32,
    /// Seconds of load; with --follow, the longest.
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// Say on stdout how it is, a JSON object on each line, and let the load end when a line "stop" comes on stdin.
    #[arg(long)]
    pub follow: bool,
    /// Seconds behind the load for everybody to come back and to get what is still due; what is missing then is lost.
    #[arg(long, default_value_t = 60.0)]
    pub settle_s: f64,
    /// Announced loss (`recovered:false`) does not fail the run; silent loss does.
    #[arg(long)]
    pub allow_announced: bool,
    /// Seed of back-off delays; 0: another one each time. It is in the report.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}
