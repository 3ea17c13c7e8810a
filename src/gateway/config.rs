//! Configuration: defaults, what is derived from them, and what has to hold between values.
//!
//! In: the command line, one TOML file, the environment. Out: a [`Config`] that boot and every plane take as true.
//! Order, later wins: defaults (or those of `--dev`), file, environment, flags.
//! Invariants: this file and `engine/limits.rs` are the only ones with defaults; defaults let nobody in; a [`Config`]
//! exists only if every range and every relation holds; secrets are never printed.
//!
//! `config_table.rs` has the row of each key (`config_namespace.rs` those of a namespace), `config_source.rs` reads the sources into [`Settings`],
//! `config_relations.rs` says what has to hold between values.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use ringway_engine::limits::{Limits, SHARDS_MAX};
use ringway_engine::namespace::{Allow, EventMode, Namespace, Namespaces};
use ringway_engine::options::{Access, Origins};

use crate::auth::config::{AuthConfig, AuthSettings};
use crate::backplane::config::{BackplaneConfig, BackplaneSettings};
use crate::cli::{Cli, RunArgs};
use crate::config_relations::RELATIONS;
use crate::config_source::{self, Problem};
use crate::log::Level;
pub use crate::secret::Secret;

/// Bytes of a file that holds secrets or the configuration.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The validated configuration of one process.
pub struct Config {
    /// Everything open, on loopback only.
    pub dev: bool,
    /// Shards, from 1 to `SHARDS_MAX`.
    pub shards: u16,
    /// Whether each shard's thread is pinned to a core.
    pub pin_shards: bool,
    /// Whether to start beside an instance that holds the client port.
    pub takeover: bool,
    /// Whether SIGTERM drains.
    pub drain_on_sigterm: bool,
    /// The client port. Its path and admission stand in `access`.
    pub client: ClientConfig,
    /// The control plane.
    pub control: ControlConfig,
    /// The ingest port. Its tokens stand in `access`.
    pub ingest: IngestConfig,
    /// Each shard's ring.
    pub ring: RingConfig,
    /// Batches that a queue between two shards holds.
    pub lane_capacity_batches: u32,
    /// Least severity that is logged.
    pub log_level: Level,
    /// Limits of the engine.
    pub engine: Limits,
    /// Channel rules.
    pub namespaces: Namespaces,
    /// Who may come in.
    pub access: Access,
    /// Flags that it was made from; a reload reads the same sources again.
    pub args: RunArgs,
    /// Values as they were given; a reload compares them.
    pub settings: Settings,
    /// Keys of tokens, and what tokens must say.
    pub auth: AuthConfig,
    /// The engine that this node shares with others, if it does.
    pub backplane: Option<BackplaneConfig>,
    /// What was found odd about `auth.*` while its secrets were still at hand.
    auth_warnings: Vec<String>,
}

/// The client port.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Address; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Listen queue of each shard's socket, in connections.
    pub backlog: u32,
    /// SO_SNDBUF of a connection; 0: left to the kernel.
    pub send_buffer_bytes: u32,
    /// SO_RCVBUF of a connection; 0: left to the kernel.
    pub receive_buffer_bytes: u32,
}

/// The control plane.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Address; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Key of the HTTP API; empty: it refuses every call.
    pub api_key: Secret,
    /// Whether `/demo` is served.
    pub demo: bool,
    /// Bounds of the server API.
    pub api: ApiLimits,
}

/// Bounds of the server API.
#[derive(Clone, Copy, Debug)]
pub struct ApiLimits {
    /// Channels of one broadcast. Over: error 106.
    pub broadcast_channels_max: u32,
    /// Commands of one batch. Over: error 106.
    pub batch_commands_max: u32,
    /// Publications that one history call may ask for. Over: error 106.
    pub history_publications_max: u32,
    /// Channels in the answer of `channels`. Over: error 106.
    pub channels_listed_max: u32,
}

/// The ingest port.
#[derive(Clone, Debug)]
pub struct IngestConfig {
    /// Address; port 0 takes a free one.
    pub listen: SocketAddr,
}

/// One shard's ring.
#[derive(Clone, Debug)]
pub struct RingConfig {
    /// Submission queue; a power of two.
    pub submission_entries: u32,
    /// Completion queue; a power of two, at least twice the submission queue.
    pub completion_entries: u32,
    /// How frames are written.
    pub send_mode: SendMode,
}

/// How frames are written to sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendMode {
    /// As operations of the ring, all of a turn in one system call.
    Ring,
    /// With one `send` call each.
    Syscall,
}

impl SendMode {
    /// Names in the configuration.
    pub const NAMES: &'static [&'static str] = &["ring", "syscall"];

    /// Name in the configuration.
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// The mode with this name; `ring` for any other text.
    pub fn from_name(name: &str) -> SendMode {
        if name == "syscall" { SendMode::Syscall } else { SendMode::Ring }
    }
}

impl fmt::Debug for Config {
    /// Leaves out `access`, whose tokens print.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("dev", &self.dev)
            .field("shards", &self.shards)
            .field("client", &self.client)
            .field("control", &self.control)
            .field("ingest", &self.ingest)
            .field("ring", &self.ring)
            .field("engine", &self.engine)
            .finish_non_exhaustive()
    }
}

/// Values as they were given, one field per key, before anything is derived from them.
#[derive(Clone)]
#[allow(missing_docs, reason = "each field is a key, and its row in config_table.rs says what it is")]
pub struct Settings {
    pub shards: u16,
    pub pin_shards: bool,
    pub takeover: bool,
    pub client_listen: SocketAddr,
    pub websocket_path: String,
    pub allowed_origins: Vec<String>,
    pub anonymous: bool,
    pub echo: bool,
    pub uni_websocket_path: String,
    pub deflate: bool,
    pub personal_channel: bool,
    pub personal_namespace: String,
    pub connect_events: EventMode,
    pub rpc_events: bool,
    pub backlog: u32,
    pub send_buffer_bytes: u32,
    pub receive_buffer_bytes: u32,
    pub control_listen: SocketAddr,
    pub api_key: String,
    pub api_key_file: String,
    pub demo: bool,
    pub api: ApiLimits,
    pub ingest_listen: SocketAddr,
    pub ingest_tokens: Vec<String>,
    pub ingest_tokens_file: String,
    pub submission_entries: u32,
    pub completion_entries: u32,
    pub send_mode: SendMode,
    pub lane_capacity_batches: u32,
    pub drain_on_sigterm: bool,
    pub log_level: Level,
    pub limits: Limits,
    pub namespace: Namespace,
    pub namespaces: Vec<Namespace>,
    pub catch_all: bool,
    pub auth: AuthSettings,
    pub backplane: BackplaneSettings,
}

impl Default for Settings {
    /// Closed: no client, backend or API call is let in; only the client port is reachable from other hosts.
    fn default() -> Self {
        Settings {
            shards: 0,
            pin_shards: true,
            takeover: false,
            client_listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8000),
            websocket_path: "/connection/websocket".into(),
            allowed_origins: Vec::new(),
            anonymous: false,
            echo: false,
            uni_websocket_path: String::new(),
            deflate: false,
            personal_channel: false,
            personal_namespace: String::new(),
            connect_events: EventMode::Off,
            rpc_events: false,
            backlog: 4096,
            send_buffer_bytes: 16 * 1024,
            receive_buffer_bytes: 16 * 1024,
            control_listen: loopback(8001),
            api_key: String::new(),
            api_key_file: String::new(),
            demo: false,
            api: ApiLimits {
                broadcast_channels_max: 1_000,
                batch_commands_max: 1_000,
                history_publications_max: 1_000,
                channels_listed_max: 10_000,
            },
            ingest_listen: loopback(8002),
            ingest_tokens: Vec::new(),
            ingest_tokens_file: String::new(),
            submission_entries: 1024,
            completion_entries: 16 * 1024,
            send_mode: SendMode::Ring,
            lane_capacity_batches: 1024,
            drain_on_sigterm: true,
            log_level: Level::Info,
            limits: Limits::DEFAULT,
            namespace: Namespace::closed(""),
            namespaces: Vec::new(),
            catch_all: false,
            auth: AuthSettings::default(),
            backplane: BackplaneSettings::default(),
        }
    }
}

impl Settings {
    /// What `--dev` starts from: everybody may do everything, and every listener is on loopback.
    pub fn dev() -> Self {
        Settings {
            client_listen: loopback(8000),
            allowed_origins: vec!["*".into()],
            anonymous: true,
            echo: true,
            uni_websocket_path: "/connection/uni_websocket".into(),
            deflate: true,
            personal_channel: true,
            drain_on_sigterm: false,
            api_key: "dev".into(),
            demo: true,
            ingest_tokens: vec!["dev".into()],
            namespace: Namespace {
                history_size: 100,
                history_ttl_ms: 300_000,
                recovery: true,
                subscribe: Allow::Anyone,
                publish: Allow::Anyone,
                presence: true,
                join_leave: true,
                read_presence: Allow::Anyone,
                read_history: Allow::Anyone,
                delta: true,
                deflate_bytes_min: 512,
                ..Namespace::closed("")
            },
            catch_all: true,
            auth: AuthSettings { hmac_secrets: vec!["dev".into()], ..AuthSettings::default() },
            ..Settings::default()
        }
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// Everything that is wrong with a configuration, in the order in which it was found. Never empty.
#[derive(Debug)]
pub struct ConfigError {
    /// One entry per wrong key.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads and validates all sources: the file that `--config` (or `RINGWAY_CONFIG`) names, the process's
    /// environment, and the flags.
    ///
    /// # Errors
    /// Every problem found, each with its source, key, and what is allowed.
    pub fn load(cli: &Cli) -> Result<Config, ConfigError> {
        Config::load_from(cli.run_args(), Config::environment())
    }

    /// The environment of the process; variables that are not UTF-8 are left out.
    pub fn environment() -> impl Iterator<Item = (String, String)> {
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
    }

    /// As [`Config::load`], with the environment as an argument.
    ///
    /// # Errors
    /// Every problem found.
    pub fn load_from(
        args: &RunArgs,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Config, ConfigError> {
        let mut settings = if args.dev { Settings::dev() } else { Settings::default() };
        let mut problems = Vec::new();
        config_source::apply(&mut settings, args, environment, &mut problems);
        settings.finish(args, problems)
    }

    /// What is allowed and yet probably not meant, one text each. For the log at start and for `ringway check`.
    pub fn warnings(&self) -> Vec<String> {
        let mut out = Vec::new();
        if !self.access.anonymous && !self.auth.has_keys() {
            out.push("client.anonymous is false and no key for tokens is set (auth.*): no client can connect".into());
        }
        out.extend(self.auth_warnings.iter().cloned());
        if !self.control.listen.ip().is_loopback() {
            out.push(format!(
                "control.listen is {}: whoever reaches it reads /metrics, and the API key travels unencrypted",
                self.control.listen
            ));
        }
        if !self.ingest.listen.ip().is_loopback() {
            out.push(format!("ingest.listen is {}: tokens and payloads travel unencrypted", self.ingest.listen));
        }
        if self.access.ingest_tokens.is_empty() && self.control.api_key.is_empty() {
            out.push("neither ingest.tokens nor control.api_key is set: no backend can publish".into());
        }
        let compresses = self.namespaces.iter().any(|namespace| namespace.deflate_bytes_min > 0);
        if self.access.deflate != compresses {
            out.push(if compresses {
                "a namespace has deflate_bytes_min, but client.deflate is off: nothing is compressed".into()
            } else {
                "client.deflate is on, but no namespace has deflate_bytes_min: nothing is compressed".into()
            });
        }
        if self.access.echo && !self.dev {
            out.push("client.echo is on: /echo answers anyone".into());
        }
        if self.control.demo && matches!(self.access.origins, Origins::SameHost) {
            out.push(
                "control.demo is on, but the demo page's origin has another port than client.listen: \
                 add it to client.allowed_origins"
                    .into(),
            );
        }
        out
    }
}

impl Settings {
    /// Checks what spans several values and derives the rest.
    ///
    /// # Errors
    /// `problems`, and behind them those found here.
    pub(crate) fn finish(mut self, args: &RunArgs, mut problems: Vec<Problem>) -> Result<Config, ConfigError> {
        let dev = args.dev;
        let settings = self.clone();
        if dev {
            // A secret from a file replaces the one that everybody knows.
            if !self.api_key_file.is_empty() && self.api_key == Settings::dev().api_key {
                self.api_key.clear();
            }
            if !self.ingest_tokens_file.is_empty() && self.ingest_tokens == Settings::dev().ingest_tokens {
                self.ingest_tokens.clear();
            }
            if !self.auth.hmac_secrets_file.is_empty() && self.auth.hmac_secrets == Settings::dev().auth.hmac_secrets {
                self.auth.hmac_secrets.clear();
            }
        }
        for relation in RELATIONS {
            if !(relation.holds)(&self) {
                problems.push(Problem::between(relation.key, relation.text));
            }
        }
        if dev {
            self.require_loopback(&mut problems);
        }
        self.read_secret_files(&mut problems);
        let texts = Namespaces::problems(&self.namespace, &self.namespaces);
        problems.extend(texts.iter().map(|text| Problem::between("namespaces", text)));
        let namespaces = match Namespaces::new(self.namespace, self.namespaces) {
            Ok(namespaces) if problems.is_empty() => namespaces.with_catch_all(self.catch_all),
            _ => return Err(ConfigError { problems }),
        };
        let auth_warnings = if dev { Vec::new() } else { self.auth.warnings() };
        let backplane = self.backplane.finish(&mut problems);
        let Some(auth) = self.auth.finish(&mut problems).filter(|_| problems.is_empty()) else {
            return Err(ConfigError { problems });
        };
        Ok(Config {
            dev,
            auth,
            auth_warnings,
            backplane,
            shards: if self.shards == 0 { cores() } else { self.shards },
            pin_shards: self.pin_shards,
            takeover: self.takeover,
            drain_on_sigterm: self.drain_on_sigterm,
            client: ClientConfig {
                listen: self.client_listen,
                backlog: self.backlog,
                send_buffer_bytes: self.send_buffer_bytes,
                receive_buffer_bytes: self.receive_buffer_bytes,
            },
            control: ControlConfig {
                listen: self.control_listen,
                api_key: Secret::new(self.api_key.as_bytes()),
                demo: self.demo,
                api: self.api,
            },
            ingest: IngestConfig { listen: self.ingest_listen },
            ring: RingConfig {
                submission_entries: self.submission_entries,
                completion_entries: self.completion_entries,
                send_mode: self.send_mode,
            },
            lane_capacity_batches: self.lane_capacity_batches,
            log_level: self.log_level,
            engine: self.limits,
            namespaces,
            access: Access {
                echo: self.echo,
                anonymous: self.anonymous,
                origins: origins(&self.allowed_origins),
                node_name: self.backplane.node_name().into(),
                ingest_tokens: self.ingest_tokens.iter().map(|t| t.as_bytes().into()).collect(),
                uni_websocket_path: self.uni_websocket_path.into(),
                deflate: self.deflate,
                personal_channel: self.personal_channel,
                personal_namespace: self.personal_namespace.into(),
                connect_events: self.connect_events,
                rpc_events: self.rpc_events,
                ..Access::closed(&self.websocket_path)
            },
            args: args.clone(),
            settings,
        })
    }

    /// `--dev` opens everything, so nothing of it may be reachable from another host.
    fn require_loopback(&self, problems: &mut Vec<Problem>) {
        let listeners = [
            ("client.listen", self.client_listen),
            ("control.listen", self.control_listen),
            ("ingest.listen", self.ingest_listen),
        ];
        for (key, address) in listeners {
            if !address.ip().is_loopback() {
                problems.push(Problem::between(
                    key,
                    &format!("{address} is not a loopback address; --dev lets everybody in, so run without it to listen there"),
                ));
            }
        }
    }

    fn read_secret_files(&mut self, problems: &mut Vec<Problem>) {
        if !self.api_key_file.is_empty() {
            match read_secrets(Path::new(&self.api_key_file)) {
                Ok(lines) => self.api_key = lines.into_iter().next().unwrap_or_default(),
                Err(text) => problems.push(Problem::between("control.api_key_file", &text)),
            }
        }
        if !self.ingest_tokens_file.is_empty() {
            match read_secrets(Path::new(&self.ingest_tokens_file)) {
                Ok(lines) => self.ingest_tokens = lines,
                Err(text) => problems.push(Problem::between("ingest.tokens_file", &text)),
            }
        }
        if !self.backplane.password_file.is_empty() {
            match read_secrets(Path::new(&self.backplane.password_file)) {
                Ok(lines) => self.backplane.password = lines.into_iter().next().unwrap_or_default(),
                Err(text) => problems.push(Problem::between("backplane.password_file", &text)),
            }
        }
        if !self.auth.hmac_secrets_file.is_empty() {
            match read_secrets(Path::new(&self.auth.hmac_secrets_file)) {
                Ok(lines) => self.auth.hmac_secrets = lines,
                Err(text) => problems.push(Problem::between("auth.hmac_secrets_file", &text)),
            }
        }
    }
}

fn origins(list: &[String]) -> Origins {
    match list {
        [] => Origins::SameHost,
        [one] if one == "*" => Origins::Any,
        list => Origins::List(list.iter().map(|o| o.to_ascii_lowercase().into()).collect()),
    }
}

/// Cores that this process may use (affinity and CPU quota counted in), within the bounds of `shards`.
fn cores() -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u16::try_from(cores).unwrap_or(SHARDS_MAX).clamp(1, SHARDS_MAX)
}

/// The lines of a file of secrets, without those that are empty.
fn read_secrets(path: &Path) -> Result<Vec<String>, String> {
    let text = config_source::read_file(path)?;
    let lines: Vec<String> = text.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect();
    if lines.is_empty() { Err(format!("{} holds no secret", path.display())) } else { Ok(lines) }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
