//! A backend: the Rust ingest client, connected to a server under test.
//!
//! In: publishes. Out: their acknowledgements; a publish that is refused fails the test.

use std::net::SocketAddr;
use std::time::Duration;

use ringway_ingest::{Ack, CallError, Channels, Client, Config, Options, PublishHandle};

use crate::Server;

/// The ingest token of `--dev`.
pub const DEV_TOKEN: &str = "dev";

/// A connected backend.
#[derive(Debug)]
pub struct Backend(Client);

/// A publish without its outcome yet.
#[derive(Debug)]
pub struct Pending(PublishHandle);

impl Pending {
    /// Waits for the acknowledgement.
    pub fn ack(self) -> Ack {
        self.0.wait().unwrap_or_else(|error| panic!("a publish was refused: {error}"))
    }
}

impl Backend {
    /// Connects with the token of `--dev`.
    pub fn connect(server: &Server) -> Backend {
        let mut config = Config::new(server.ingest.to_string(), DEV_TOKEN);
        config.name = "tests".to_owned();
        config.connect_timeout = Duration::from_secs(10);
        Backend(Client::connect(config).unwrap_or_else(|error| panic!("connect to the ingest port: {error}")))
    }

    /// Connects to the first of several nodes; when that goes, to the next.
    pub fn connect_to(addresses: &[SocketAddr]) -> Backend {
        let mut config = Config::new("", DEV_TOKEN);
        config.addresses = addresses.iter().map(ToString::to_string).collect();
        config.connect_timeout = Duration::from_secs(10);
        Backend(Client::connect(config).unwrap_or_else(|error| panic!("connect to {addresses:?}: {error}")))
    }

    /// Which channels there are whose names contain a text; none: the server could not say.
    pub fn channels(&self, pattern: &str, limit: u32) -> Option<Channels> {
        match self.0.channels(pattern, limit) {
            Ok(channels) => Some(channels),
            Err(CallError::Refused(refusal)) => {
                assert_eq!((refusal.code, refusal.temporary), (200, true), "{refusal:?}");
                None
            }
            Err(error) => panic!("channels: {error}"),
        }
    }

    /// Publishes JSON; waits while the client's buffer is full, not for the acknowledgement.
    pub fn publish(&self, channel: &str, payload: &[u8]) -> Pending {
        let handle = self.0.publish_blocking(channel, payload, &Options::default());
        Pending(handle.unwrap_or_else(|error| panic!("publish to {channel}: {error}")))
    }
}
