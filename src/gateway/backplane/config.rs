//! What an operator says about the backplane and about this node's name.
//!
//! In: `backplane.*` and `node.*` of the settings. Out: a [`BackplaneConfig`], if one is wanted. Invariants: defaults stand
//! in [`BackplaneSettings::default`] alone; a password is never printed.

use std::fmt;
use std::time::Duration;

use crate::config_source::Problem;

/// Which engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// None: this node is alone.
    None,
    /// Redis or Valkey, 7.0 or newer.
    Redis,
}

/// How primaries are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The one of the addresses that is a primary.
    Single,
    /// The addresses are sentinels, who know it.
    Sentinel,
    /// The addresses are some servers of a cluster.
    Cluster,
}

/// Values as they were given.
#[derive(Clone)]
#[allow(missing_docs, reason = "each field is a key, and its row in rows.rs says what it is")]
pub struct BackplaneSettings {
    pub engine: Engine,
    pub mode: Mode,
    pub addresses: Vec<String>,
    pub sentinel_name: String,
    pub username: String,
    pub password: String,
    pub password_file: String,
    pub prefix: String,
    pub node_name: String,
    pub timeout_ms: u32,
    pub lease_ms: u32,
    pub replica_wait_ms: u32,
    pub channel_meta_ttl_ms: u64,
    pub requests_in_flight_max: u32,
    pub bytes_in_flight_max: u32,
    pub spill_bytes_max: u32,
}

impl Default for BackplaneSettings {
    fn default() -> Self {
        BackplaneSettings {
            engine: Engine::None,
            mode: Mode::Single,
            addresses: vec!["127.0.0.1:6379".into()],
            sentinel_name: "mymaster".into(),
            username: String::new(),
            password: String::new(),
            password_file: String::new(),
            prefix: "ringway:".into(),
            node_name: String::new(),
            timeout_ms: 2_000,
            lease_ms: 10_000,
            replica_wait_ms: 500,
            channel_meta_ttl_ms: 7 * 24 * 3_600_000,
            requests_in_flight_max: 65_536,
            bytes_in_flight_max: 64 * 1024 * 1024,
            spill_bytes_max: 64 * 1024 * 1024,
        }
    }
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// Name or IP address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Address {
    /// Reads `host:port` or `[IPv6 address]:port`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Address, String> {
        if text.starts_with("rediss://") {
            return Err(format!(
                "{text}: TLS to the engine is not supported; give host:port of a plain port, or of a local TLS tunnel"
            ));
        }
        let text = text.strip_prefix("redis://").unwrap_or(text);
        let wrong = || format!("{text} is not host:port (user, password and database are not part of it)");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        if host.is_empty() || host.contains(['/', '@', ' ']) {
            return Err(wrong());
        }
        Ok(Address { host: host.into(), port })
    }
}

/// As whom the node introduces itself to the engine.
#[derive(Clone, Default)]
pub struct Login {
    username: String,
    password: String,
}

impl Login {
    /// None: without.
    pub(super) fn password(&self) -> Option<&str> {
        (!self.password.is_empty()).then_some(&self.password)
    }

    pub(super) fn username(&self) -> &str {
        if self.username.is_empty() { "default" } else { &self.username }
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

/// A checked configuration of the backplane.
#[derive(Clone, Debug)]
pub struct BackplaneConfig {
    /// How primaries are found.
    pub mode: Mode,
    /// Whom to ask first.
    pub addresses: Vec<Address>,
    /// The primary's name at sentinels.
    pub sentinel_name: String,
    /// User and password.
    pub login: Login,
    /// In front of all keys and channels.
    pub prefix: String,
    /// This node's name.
    pub node_name: String,
    /// Without an answer for this long a server is taken for dead.
    pub timeout_ms: u64,
    /// How long a node that does not renew its lease counts as alive.
    pub lease_ms: u64,
    /// How long a replicated publish waits for a replica.
    pub replica_wait_ms: u64,
    /// How long an unused channel's epoch and offset are remembered.
    pub channel_meta_ttl_ms: u64,
    /// Requests without an answer. Over: refused as unavailable.
    pub requests_in_flight_max: usize,
    /// Memory of those. Over: refused as unavailable.
    pub bytes_in_flight_max: usize,
    /// Bytes of events that wait for one shard's queue. Over: what is fed is dropped and the shard told.
    pub spill_bytes_max: usize,
}

impl BackplaneConfig {
    pub(super) const fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

impl BackplaneSettings {
    /// This node's name: the one that was given, or the host's. With no backplane too.
    pub fn node_name(&self) -> String {
        if self.node_name.is_empty() { host_name() } else { self.node_name.clone() }
    }

    /// Checks what was given. None: no backplane is wanted, or there are problems, which are appended.
    pub fn finish(&self, problems: &mut Vec<Problem>) -> Option<BackplaneConfig> {
        if self.engine == Engine::None {
            return None;
        }
        let before = problems.len();
        let mut wrong = |key: &str, text: &str| problems.push(Problem::between(key, text));
        let mut addresses = Vec::new();
        for text in &self.addresses {
            match Address::parse(text) {
                Ok(address) => addresses.push(address),
                Err(text) => wrong("backplane.addresses", &text),
            }
        }
        if self.addresses.is_empty() {
            wrong("backplane.addresses", "backplane.engine is set, so at least one host:port is needed");
        }
        if self.mode == Mode::Sentinel && self.sentinel_name.is_empty() {
            wrong("backplane.sentinel_name", "backplane.mode is sentinel, so the primary's name is needed");
        }
        if self.prefix.contains(['{', '}']) {
            wrong("backplane.prefix", "must not contain { or }, between which a key's hash tag stands");
        }
        let node_name = self.node_name();
        if node_name.is_empty() || node_name.contains(char::is_whitespace) {
            wrong("node.name", "must be set, without spaces, when this host has no name");
        }
        if u64::from(self.lease_ms) < 2 * u64::from(self.timeout_ms) {
            wrong(
                "backplane.lease_ms",
                "must be at least 2 times backplane.timeout_ms: a lease must outlive a server that is replaced",
            );
        }
        (problems.len() == before).then(|| BackplaneConfig {
            mode: self.mode,
            addresses,
            sentinel_name: self.sentinel_name.clone(),
            login: Login { username: self.username.clone(), password: self.password.clone() },
            prefix: self.prefix.clone(),
            node_name,
            timeout_ms: self.timeout_ms.into(),
            lease_ms: self.lease_ms.into(),
            replica_wait_ms: self.replica_wait_ms.into(),
            channel_meta_ttl_ms: self.channel_meta_ttl_ms,
            requests_in_flight_max: self.requests_in_flight_max as usize,
            bytes_in_flight_max: self.bytes_in_flight_max as usize,
            spill_bytes_max: self.spill_bytes_max as usize,
        })
    }
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port() {
        let address = |host: &str, port| Ok(Address { host: host.into(), port });
        assert_eq!(Address::parse("engine.example:6379"), address("engine.example", 6379));
        assert_eq!(Address::parse("redis://127.0.0.1:1"), address("127.0.0.1", 1));
        assert_eq!(Address::parse("[::1]:7000"), address("::1", 7000));
        for text in ["", "engine", "engine:", ":1", "engine:0", "engine:70000", "redis://u:p@engine:1", "engine:1/0"] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
        assert!(Address::parse("rediss://engine:1").is_err_and(|text| text.contains("TLS")));
    }

    #[test]
    fn what_cannot_work_is_named() {
        let settings = BackplaneSettings {
            engine: Engine::Redis,
            addresses: vec!["rediss://engine:1".into()],
            prefix: "a{b".into(),
            mode: Mode::Sentinel,
            sentinel_name: String::new(),
            lease_ms: 100,
            node_name: "a b".into(),
            ..BackplaneSettings::default()
        };
        let mut problems = Vec::new();
        assert!(settings.finish(&mut problems).is_none());
        let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems.len(), 5, "{text:?}");
        let fine = BackplaneSettings { engine: Engine::Redis, node_name: "n1".into(), ..BackplaneSettings::default() };
        problems.clear();
        assert!(fine.finish(&mut problems).is_some_and(|config| config.node_name == "n1"));
    }
}
