//! What a client is told when it is made: where to go, who it is, and every bound with its unit.
//!
//! In: set by the backend. Out: read by all other files. Invariant: checked once, by [`Config::check`].

use std::fmt;
use std::time::Duration;

use ringway_wire::ingest::{NAME_BYTES_MAX, TOKEN_BYTES_MAX};

use crate::error::ConnectError;
use crate::state::Outcome;

/// Takes outcomes; see [`Config::on_outcomes`].
pub(crate) type OnOutcomes = Box<dyn FnMut(&[Outcome]) + Send>;

/// See the fields. [`Config::new`] gives the defaults.
pub struct Config {
    /// `host:port` of each node, tried in turn beginning with the first. At least one. Many backends with one list
    /// spread over its nodes if each rotates it by a random number.
    pub addresses: Vec<String>,
    /// Shared secret, at most 256 bytes.
    pub token: Vec<u8>,
    /// Seen in the gateway's logs; at most 64 bytes. Default: empty.
    pub name: String,
    /// Time for one attempt, from the call to the answered hello; also how long [`crate::Client::connect`] waits in
    /// all. Default: 5 s.
    pub connect_timeout: Duration,
    /// Delay before the second attempt in a row; doubles with each further one, less a random part of up to a half.
    /// Default: 50 ms.
    pub backoff_min: Duration,
    /// Largest delay between attempts. Default: 5 s.
    pub backoff_max: Duration,
    /// Silence of the gateway after which it is pinged. Default: 5 s.
    pub ping_interval: Duration,
    /// Silence of the gateway after which the connection is given up, and how long a write may make no progress.
    /// Default: 15 s.
    pub peer_timeout: Duration,
    /// Publishes held: from the oldest without an outcome to the newest. Default: 65,536.
    pub buffered_messages_max: usize,
    /// Bytes of payloads, channels and given keys held, counted likewise. Default: 64 MiB.
    pub buffered_bytes_max: usize,
    /// Bytes of one write to the gateway, unless a single publish is larger. Default: 64 KiB.
    pub batch_bytes_max: usize,
    /// How long a call of the server API waits for its answer. Default: 10 s.
    pub call_timeout: Duration,
    /// Told of the outcome of what was given to [`crate::Client::submit`], many at a time, from the client's threads
    /// and never from two at once. While it runs nothing else is read from the gateway, so it must be short; it must
    /// not wait for an outcome itself. A panic in it closes the client. Default: none.
    pub on_outcomes: Option<OnOutcomes>,
}

impl Config {
    /// Defaults for everything but an address and the token.
    pub fn new(address: impl Into<String>, token: impl Into<Vec<u8>>) -> Config {
        Config {
            addresses: vec![address.into()],
            token: token.into(),
            name: String::new(),
            connect_timeout: Duration::from_secs(5),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(5),
            ping_interval: Duration::from_secs(5),
            peer_timeout: Duration::from_secs(15),
            buffered_messages_max: 65_536,
            buffered_bytes_max: 64 * 1024 * 1024,
            batch_bytes_max: 64 * 1024,
            call_timeout: Duration::from_secs(10),
            on_outcomes: None,
        }
    }

    /// # Errors
    /// [`ConnectError::Config`] names the field and its bound.
    pub(crate) fn check(&self) -> Result<(), ConnectError> {
        let complaint = if self.addresses.is_empty() {
            "addresses: at least one is needed"
        } else if self.token.len() > TOKEN_BYTES_MAX {
            "token: at most 256 bytes"
        } else if self.name.len() > NAME_BYTES_MAX {
            "name: at most 64 bytes"
        } else if self.buffered_messages_max == 0 || self.buffered_bytes_max == 0 || self.batch_bytes_max == 0 {
            "buffered_messages_max, buffered_bytes_max, batch_bytes_max: must be above 0"
        } else if self.connect_timeout.is_zero() || self.ping_interval.is_zero() {
            "connect_timeout, ping_interval: must be above 0"
        } else if self.peer_timeout <= self.ping_interval {
            "peer_timeout: must be above ping_interval"
        } else if self.backoff_min > self.backoff_max {
            "backoff_min: must not be above backoff_max"
        } else {
            return Ok(());
        };
        Err(ConnectError::Config(complaint))
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The token is a secret and stays out of logs.
        f.debug_struct("Config").field("addresses", &self.addresses).field("name", &self.name).finish_non_exhaustive()
    }
}
