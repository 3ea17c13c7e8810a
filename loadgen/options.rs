//! The command line.
//!
//! In: arguments. Out: [`Options`], one variant of [`Command`] per scenario, with [`Common`] shared by all.
//! Invariant: every option has a unit in its name or in its help.
#[path = "options_fleet.rs"]
mod fleet;

use std::net::SocketAddr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

pub use fleet::FleetOptions;

use crate::payload::PayloadForm;

/// What the connections speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Centrifuge client protocol v2 in JSON.
    CentrifugeJson,
    /// Centrifuge client protocol v2 in Protobuf.
    CentrifugeProtobuf,
    /// Plain WebSocket messages; a connection subscribes by being there.
    Websocket,
    /// The NATS client protocol over WebSocket.
    Nats,
}

/// When a closed loop publishes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refill {
    /// `--outstanding` messages in one write; the next ones when every subscriber has received all of them.
    Round,
    /// A further message whenever the deliveries outstanding fall below `--outstanding` messages' worth.
    Slide,
}

/// How the fanout scenario publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    /// Over Ringway's ingest port.
    Ingest,
    /// Over a WebSocket connection to `--publish-path`, whose every message the server broadcasts; or, if --url has a
    /// {channel}, sends to whom the number in front of it names.
    Websocket,
}

/// On which shard of a Ringway the channels of an ingest run are owned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owners {
    /// On any, as names fall.
    Any,
    /// All on shard 0, where all ingest connections are.
    Here,
    /// None on shard 0, where all ingest connections are.
    Elsewhere,
}

/// The load generator's arguments.
#[derive(Debug, Parser)]
#[command(
    name = "ringway-loadgen",
    version,
    about = "Measures a WebSocket gateway: connections, fan-out, echo, ingest"
)]
pub struct Options {
    /// The scenario.
    #[command(subcommand)]
    pub command: Command,
}

impl Options {
    /// The options that all scenarios share; none for a worker.
    pub fn common(&self) -> Option<&Common> {
        match &self.command {
            Command::Connect(options) => Some(&options.common),
            Command::Fanout(options) => Some(&options.common),
            Command::Echo(options) => Some(&options.common),
            Command::Ingest(options) => Some(&options.common),
            Command::Presence(options) => Some(&options.common),
            Command::Memory(options) => Some(&options.common),
            Command::Fleet(options) => Some(&options.common),
            Command::Worker | Command::FleetWorker => None,
        }
    }
}

/// The scenarios.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Open connections at a rate or as fast as they come, hold them, answer pings, close.
    Connect(ConnectOptions),
    /// Publish to subscribers, open-loop at a rate or closed-loop with some messages outstanding.
    Fanout(FanoutOptions),
    /// Send messages that the server sends back, some outstanding per connection.
    Echo(EchoOptions),
    /// Publish over the ingest port, as fast as acknowledgements allow or at a rate.
    Ingest(IngestOptions),
    /// Let members of a channel leave and join again, while watchers are told of it.
    Presence(PresenceOptions),
    /// Let all connections come and leave again, several times, and read the server's memory in between.
    Memory(MemoryOptions),
    /// Clients that come back and recover when they are cut off, and publishers that go on elsewhere: is anything lost?
    Fleet(FleetOptions),
    /// One worker process; started by the program itself.
    #[command(hide = true)]
    Worker,
    /// One worker process of `fleet`; started by the program itself.
    #[command(hide = true)]
    FleetWorker,
}

/// What all scenarios share.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Print one JSON object on stdout.
    #[arg(long)]
    pub json: bool,
    /// Core to pin the load generator's processes to; several are given to the processes in turn.
    #[arg(long, value_delimiter = ',')]
    pub cpu: Vec<usize>,
    /// Process of the server under test (several if it has several): its CPU and memory are read around the window.
    #[arg(long, value_delimiter = ',')]
    pub server_pid: Vec<u32>,
    /// Name of what is measured, for the report.
    #[arg(long, default_value = "")]
    pub label: String,
    /// Missing, doubled or disordered deliveries are counted but do not fail the run.
    #[arg(long)]
    pub lossy: bool,
    /// Seconds without any progress after which the run fails.
    #[arg(long, default_value_t = 15)]
    pub stall_s: u64,
}

/// Which connections, and how their processes behave.
#[derive(Args, Clone, Debug)]
pub struct Clients {
    /// Server, as ws://address:port/path; {channel} in the path becomes the number of the connection's first channel.
    /// Several, separated by commas: all connections are divided among them in the order of their numbers.
    #[arg(long, default_value = "ws://127.0.0.1:8000/connection/websocket")]
    pub url: String,
    /// What the connections speak.
    #[arg(long, value_enum, default_value = "centrifuge-json")]
    pub protocol: Protocol,
    /// Connections in all.
    #[arg(long, short = 'n', default_value_t = 1000)]
    pub connections: u32,
    /// Channels in all.
    #[arg(long, short = 'm', default_value_t = 1)]
    pub channels: u32,
    /// Subscriptions of each connection; connection i takes channels i*s, i*s+1, ... modulo the number of channels. None
    /// (0) is for connections that only stand.
    #[arg(long, short = 's', default_value_t = 1)]
    pub subscriptions: u32,
    /// Channel names are this and a number.
    #[arg(long, default_value = "c")]
    pub channel_prefix: String,
    /// Token of the connect command, if any.
    #[arg(long)]
    pub token: Option<String>,
    /// HMAC secret of the server: connection i comes with a token of user u<i>, signed as it connects. Instead of --token.
    #[arg(long, conflicts_with = "token")]
    pub token_secret: Option<String>,
    /// New connections per second; 0: as fast as they come.
    #[arg(long, default_value_t = 0)]
    pub connect_rate: u32,
    /// Connections of one process that may be opening at once.
    #[arg(long, default_value_t = 256)]
    pub opening_max: u32,
    /// Pause before each look for readable sockets, in microseconds: readers then work in batches, and a send seldom
    /// pays for waking an idle core. Default 1000, for echo 0.
    #[arg(long)]
    pub nap_us: Option<u64>,
    /// Worker processes; 0: as few as the open-file limit allows.
    #[arg(long, default_value_t = 0)]
    pub workers: u32,
    /// Connections that share a source address of 127.0.0.0/8; used for loopback servers only.
    #[arg(long, default_value_t = 1000)]
    pub connections_per_address: u32,
    /// SO_RCVBUF of each connection, in bytes; 0: the kernel's default.
    #[arg(long, default_value_t = 0)]
    pub receive_buffer_bytes: u32,
    /// Names of the channels; empty: prefix and number. Set by scenarios.
    #[arg(skip)]
    pub channel_names: Vec<String>,
    /// How many connections subscribe to each of the named; empty: all to each. Set by scenarios.
    #[arg(skip)]
    pub channel_members: Vec<u32>,
    /// Whether subscribers ask for joins and leaves. Set by scenarios.
    #[arg(skip)]
    pub join_leave: bool,
    /// Offer permessage-deflate without context takeover, insist on it, and inflate what comes compressed.
    #[arg(long)]
    pub deflate: bool,
    /// With --deflate: payloads of at least so many bytes must come compressed; 0: none need to.
    #[arg(long, default_value_t = 1)]
    pub deflate_bytes_min: usize,
}

/// Options of `connect`.
#[derive(Args, Clone, Debug)]
pub struct ConnectOptions {
    /// Shared options.
    #[command(flatten)]
    pub common: Common,
    /// Connections.
    #[command(flatten)]
    pub clients: Clients,
    /// Seconds to hold all connections after the last has opened.
    #[arg(long, default_value_t = 5)]
    pub hold_s: u64,
}

/// Options of `fanout`.
#[derive(Args, Clone, Debug)]
pub struct FanoutOptions {
    /// Shared options.
    #[command(flatten)]
    pub common: Common,
    /// Connections.
    #[command(flatten)]
    pub clients: Clients,
    /// Publishing side.
    #[command(flatten)]
    pub publishing: Publishing,
    /// Publications per second over all channels, open-loop; 0: closed-loop.
    #[arg(long, default_value_t = 0.0)]
    pub rate: f64,
    /// Messages outstanding in the closed loop.
    #[arg(long, short = 'k', default_value_t = 1)]
    pub outstanding: u32,
    /// When the closed loop publishes again.
    #[arg(long, value_enum, default_value = "round")]
    pub refill: Refill,
    /// Window of so many publications to one channel, one at a time with a pause between, each with its own times and CPU;
    /// instead of `--seconds` of load. 0: off.
    #[arg(long, default_value_t = 0)]
    pub broadcasts: u32,
    /// Seconds of rest before the server's memory is read: with all connections open, again when each channel had one
    /// publication, and behind the window. 0: no rest, and no such readings. Needs --server-pid.
    #[arg(long, default_value_t = 0.0)]
    pub rest_s: f64,
}

/// Where and what to publish, and for how long.
#[derive(Args, Clone, Debug)]
pub struct Publishing {
    /// How to publish; default: ingest for the Centrifuge protocols, websocket for plain WebSocket.
    #[arg(long, value_enum)]
    pub publish_via: Option<Via>,
    /// Path of the publishing WebSocket connection.
    #[arg(long, default_value = "/publish")]
    pub publish_path: String,
    /// Ingest port.
    #[arg(long, default_value = "127.0.0.1:8002")]
    pub ingest: SocketAddr,
    /// Token of the ingest port.
    #[arg(long, default_value = "dev")]
    pub ingest_token: String,
    /// Payload length in bytes.
    #[arg(long, default_value_t = 128)]
    pub payload_bytes: usize,
    /// What a payload holds beside the stamp.
    #[arg(long, value_enum, default_value = "text")]
    pub payload: PayloadForm,
    /// Seconds of the measured window.
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// Seconds of the same load before the window.
    #[arg(long, default_value_t = 1.0)]
    pub warmup_s: f64,
}

/// Options of `echo`.
#[derive(Args, Clone, Debug)]
pub struct EchoOptions {
    /// Shared options.
    #[command(flatten)]
    pub common: Common,
    /// Connections.
    #[command(flatten)]
    pub clients: Clients,
    /// Messages outstanding per connection.
    #[arg(long, short = 'k', default_value_t = 1)]
    pub outstanding: u32,
    /// Payload length in bytes.
    #[arg(long, default_value_t = 64)]
    pub payload_bytes: usize,
    /// Seconds of the measured window.
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// Seconds of the same load before the window.
    #[arg(long, default_value_t = 1.0)]
    pub warmup_s: f64,
}

/// Options of `ingest`.
#[derive(Args, Clone, Debug)]
pub struct IngestOptions {
    /// Shared options.
    #[command(flatten)]
    pub common: Common,
    /// Publishing side.
    #[command(flatten)]
    pub publishing: Publishing,
    /// Ingest connections.
    #[arg(long, short = 'n', default_value_t = 4)]
    pub connections: u32,
    /// Channels in all; channel i belongs to connection i modulo connections.
    #[arg(long, short = 'm', default_value_t = 1000)]
    pub channels: u32,
    /// Channel names are this and a number.
    #[arg(long, default_value = "c")]
    pub channel_prefix: String,
    /// Publications per frame.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub batch: u32,
    /// Publications per second in all; 0: as fast as acknowledgements allow.
    #[arg(long, default_value_t = 0.0)]
    pub rate: f64,
    /// Publications in all instead of a time; 0: for `--seconds`.
    #[arg(long, default_value_t = 0)]
    pub count: u64,
    /// Give each publication an idempotency key of 16 bytes.
    #[arg(long)]
    pub idempotency_keys: bool,
    /// Which shard owns the channels; other than any, it needs --control and --shards, and all connections come to shard 0.
    #[arg(long, value_enum, default_value = "any")]
    pub owners: Owners,
    /// Shards of the server.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub shards: u16,
    /// Ringway's control port: messages between its shards are reported, and --history-checks asks there.
    #[arg(long)]
    pub control: Option<SocketAddr>,
    /// Key of the HTTP API.
    #[arg(long, default_value = "dev")]
    pub api_key: String,
    /// Behind the window, the history of so many channels must hold exactly the last --history-size publications.
    #[arg(long, default_value_t = 0)]
    pub history_checks: u32,
    /// Publications that the server keeps of each channel.
    #[arg(long, default_value_t = 100)]
    pub history_size: u32,
}

/// Options of `presence`.
#[derive(Args, Clone, Debug)]
pub struct PresenceOptions {
    /// Shared options.
    #[command(flatten)]
    pub common: Common,
    /// The members. What they subscribe to is `--churn-channels`.
    #[command(flatten)]
    pub clients: Clients,
    /// Channels, as NAME or NAME=MEMBERS: that many connections subscribe, without a number all; watchers to each. Each
    /// is churned in windows of its own. One of a namespace without presence shows what the commands alone cost.
    #[arg(long, value_delimiter = ',', required = true, value_parser = ChurnChannel::parse)]
    pub churn_channels: Vec<ChurnChannel>,
    /// How many members come and go, the others staying; several numbers get windows of their own, in channels with
    /// more members than that. 0: all of them.
    #[arg(long, value_delimiter = ',', default_value = "0")]
    pub churners: Vec<u32>,
    /// Subscribers that ask for joins and leaves, and stay.
    #[arg(long, default_value_t = 10)]
    pub watchers: u32,
    /// Members, over all processes, that have sent an unsubscribe or a subscribe and wait for its reply.
    #[arg(long, short = 'k', default_value_t = 120)]
    pub outstanding: u32,
    /// Windows of each channel and each number of churners, in turn.
    #[arg(long, default_value_t = 1)]
    pub rounds: u32,
    /// Control port, for the counts of members and of bytes written.
    #[arg(long, default_value = "127.0.0.1:8001")]
    pub control: SocketAddr,
    /// Key of the HTTP API.
    #[arg(long, default_value = "dev")]
    pub api_key: String,
    /// Seconds of each measured window.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Seconds of the same load before each window.
    #[arg(long, default_value_t = 0.5)]
    pub warmup_s: f64,
}

/// Options of `memory`.
#[derive(Args, Clone, Debug)]
pub struct MemoryOptions {
    /// Shared options.
    #[command(flatten)]
    pub common: Common,
    /// Connections.
    #[command(flatten)]
    pub clients: Clients,
    /// What each connection receives while it is there; `--seconds` and `--warmup-s` mean nothing here.
    #[command(flatten)]
    pub publishing: Publishing,
    /// Publications to each channel in each round, one after the other.
    #[arg(long, default_value_t = 0)]
    pub publications: u32,
    /// How often all connections open and leave again.
    #[arg(long, default_value_t = 1)]
    pub rounds: u32,
    /// Seconds of rest before each reading of the server's memory.
    #[arg(long, default_value_t = 5.0)]
    pub rest_s: f64,
    /// Control port, which says when the server has seen everybody leave.
    #[arg(long, default_value = "127.0.0.1:8001")]
    pub control: SocketAddr,
}

/// A channel of the presence scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChurnChannel {
    /// Its name.
    pub name: String,
    /// Connections that subscribe, watchers not counted; none: all.
    pub members: Option<u32>,
}

impl ChurnChannel {
    fn parse(text: &str) -> Result<ChurnChannel, String> {
        let Some((name, members)) = text.split_once('=') else {
            return Ok(ChurnChannel { name: text.to_string(), members: None });
        };
        let members = members.parse().ok().filter(|members| *members > 0);
        let members = members.ok_or_else(|| format!("{text}: the number of members must be at least 1"))?;
        Ok(ChurnChannel { name: name.to_string(), members: Some(members) })
    }
}

/// Stands in a path for the number of a connection's first channel.
pub const CHANNEL_MARK: &str = "{channel}";

/// A server address as given by `--url`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where to connect.
    pub address: SocketAddr,
    /// Value of the Host header.
    pub host: String,
    /// Path and query.
    pub path: String,
}

impl Target {
    /// Parses `ws://host:port/path`; a name is resolved here, once.
    pub fn parse(url: &str) -> Result<Target, String> {
        use std::net::ToSocketAddrs as _;
        let rest = url.strip_prefix("ws://").ok_or_else(|| format!("--url {url}: only ws:// is spoken"))?;
        let (host, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let with_port = if host.contains(':') { host.to_string() } else { format!("{host}:80") };
        let mut found = with_port.to_socket_addrs().map_err(|error| format!("--url {url}: {error}"))?;
        let address = found.next().ok_or_else(|| format!("--url {url}: no address"))?;
        Ok(Target { address, host: host.to_string(), path: path.to_string() })
    }

    /// Parses urls that are separated by commas.
    pub fn parse_all(urls: &str) -> Result<Vec<Target>, String> {
        urls.split(',').map(Target::parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let target = Target::parse("ws://127.0.0.1:8000/a?b=c").expect("a good url");
        assert_eq!(
            (target.address.port(), target.host.as_str(), target.path.as_str()),
            (8000, "127.0.0.1:8000", "/a?b=c")
        );
        assert_eq!(Target::parse("ws://127.0.0.1:9").expect("no path").path, "/");
        assert!(Target::parse("http://127.0.0.1/").is_err());
        let targets = Target::parse_all("ws://127.0.0.1:9/a,ws://127.0.0.1:10/b").expect("two good urls");
        assert_eq!(targets.iter().map(|target| target.address.port()).collect::<Vec<_>>(), [9, 10]);
        assert!(Target::parse_all("ws://127.0.0.1:9,").is_err());
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Options::command().debug_assert();
    }
}
