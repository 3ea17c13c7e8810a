//! What a shard is told at boot.
//!
//! In: the validated configuration. Out: read by every stage; never changed while the shard runs.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::ids::CoreId;
use crate::limits::Limits;
use crate::namespace::{EventMode, Namespaces};
use crate::owner::FleetPlace;
use crate::tokens::Tokens;

/// Everything that makes one shard differ from another or one configuration from the next.
#[derive(Clone, Debug)]
pub struct Options {
    /// This shard.
    pub core: CoreId,
    /// How many shards the node has.
    pub shards: u16,
    /// Seed of hash tables, timers' jitter and ids; random in production, fixed in simulation.
    pub seed: u64,
    /// Random per start of the process, the same on all its shards; part of epochs and client ids.
    pub boot: u64,
    /// Numbers.
    pub limits: Limits,
    /// Channel rules; replaced as a whole by a reload.
    pub namespaces: Arc<Namespaces>,
    /// Checks tokens.
    pub tokens: Arc<dyn Tokens>,
    /// Who may come in.
    pub access: Access,
    /// On a node of a fleet: where its backplane is.
    pub fleet: Option<FleetPlace>,
    /// Validates UTF-8; the fastest for this processor, chosen at boot (SIMD detection needs std).
    pub utf8: fn(&[u8]) -> bool,
}

/// Who may come in, on which paths, and where they are then.
#[derive(Clone, Debug)]
pub struct Access {
    /// Path of the client WebSocket.
    pub websocket_path: Box<str>,
    /// Whether `/echo` is served (conformance and latency tests).
    pub echo: bool,
    /// Whether clients without a token are admitted, as anonymous.
    pub anonymous: bool,
    /// Path of the unidirectional WebSocket; empty: not served.
    pub uni_websocket_path: Box<str>,
    /// Whether clients may have permessage-deflate.
    pub deflate: bool,
    /// Whether every client with a user id is subscribed to its personal channel.
    pub personal_channel: bool,
    /// Namespace of personal channels; empty: the default one. The channel is `<namespace>:#<user>`.
    pub personal_namespace: Box<str>,
    /// Whether backends are told of connects and disconnects, or decide about connects.
    pub connect_events: EventMode,
    /// Whether backends serve rpc.
    pub rpc_events: bool,
    /// Which `Origin` headers may upgrade.
    pub origins: Origins,
    /// This node's name, which backends are told; at most 64 bytes.
    pub node_name: Box<str>,
    /// Shared secrets of backends; empty: the ingest port refuses everyone.
    pub ingest_tokens: Vec<Box<[u8]>>,
}

impl Access {
    /// Lets nobody in: no anonymous clients, no backends, no foreign origins, nothing optional.
    pub fn closed(websocket_path: &str) -> Self {
        Access {
            websocket_path: websocket_path.into(),
            echo: false,
            anonymous: false,
            uni_websocket_path: Box::default(),
            deflate: false,
            personal_channel: false,
            personal_namespace: Box::default(),
            connect_events: EventMode::Off,
            rpc_events: false,
            origins: Origins::SameHost,
            node_name: Box::default(),
            ingest_tokens: Vec::new(),
        }
    }
}

/// Which `Origin` headers may upgrade. Requests without one (no browser) are always allowed.
#[derive(Clone, Debug)]
pub enum Origins {
    /// Any.
    Any,
    /// The origin's host and port must equal the `Host` header.
    SameHost,
    /// One of these, compared exactly after lower-casing, e.g. `https://app.example.com`.
    List(Vec<Box<str>>),
}
