//! What the control plane asks of the shards, and of the process around them.
//!
//! In: calls of the HTTP API. Out: [`Call`]s over a bounded queue; `control_link.rs` turns them into lane messages and
//! answers each through its `reply`. Invariant: a call is answered once or its reply is dropped, never twice.

use std::collections::BTreeMap;

use ringway_engine::backplane::{Answer as Told, Refusal, Request};
use ringway_engine::call::{CallError, ChannelAsk, ChannelFact, UserOrder};
use ringway_engine::lane_message::{Position, PublishError};
use ringway_engine::publication::Tags;
use ringway_wire::ingest::PayloadKind;
use tokio::sync::{mpsc, oneshot};

/// Calls that wait for the link. Over: answered "too many requests".
pub const CALLS_MAX: usize = 4_096;

/// Bounded; the receiver turns calls into lane messages and answers each through its `reply`.
pub type CallSender = mpsc::Sender<Call>;

/// Where an answer goes. Dropped without one: the caller is told "internal server error".
pub type Answer<T, E> = oneshot::Sender<Result<T, E>>;

/// A queue for calls, of [`CALLS_MAX`].
pub fn call_queue() -> (CallSender, mpsc::Receiver<Call>) {
    mpsc::channel(CALLS_MAX)
}

/// What the control plane asks of the shards.
#[derive(Debug)]
pub enum Call {
    /// Publish to a channel.
    Publish {
        /// Full name, within `channel_bytes_max`.
        channel: String,
        /// JSON without newlines, or bytes.
        payload: Vec<u8>,
        /// Which of the two.
        kind: PayloadKind,
        /// Scoped to the channel; empty: none. Within `idempotency_key_bytes_max`.
        idempotency_key: Vec<u8>,
        /// Names and values beside the payload; few or none.
        tags: Tags,
        /// Not kept in history, and no offset taken.
        skip_history: bool,
        /// Who waits.
        reply: Answer<Published, PublishError>,
    },
    /// Ask or order something about one channel.
    Channel {
        /// Full name, within `channel_bytes_max`.
        channel: String,
        /// What.
        ask: ChannelAsk,
        /// Who waits.
        reply: Answer<ChannelTold, CallError>,
    },
    /// Order something about the connections of one user.
    User {
        /// User id; never empty.
        user: String,
        /// Only this connection of the user; empty: all.
        client: String,
        /// What.
        order: UserOrder,
        /// Who waits; it is told how many cores hold connections of the user.
        reply: Answer<u16, CallError>,
    },
    /// List channels with subscribers.
    Channels {
        /// Only names that contain this; empty: all.
        pattern: String,
        /// At most so many names, the first ones.
        limit: u32,
        /// Who waits.
        reply: Answer<ChannelsListed, CallError>,
    },
    /// Ask the backplane; only where there is one.
    Backplane {
        /// What.
        request: Request,
        /// Who waits.
        reply: Answer<Told, Refusal>,
    },
    /// Refuse a token from now on, and close the connections that came with it.
    RevokeToken {
        /// Id of the token; never empty.
        token_id: String,
        /// Until when that must be remembered, in seconds since 1970: the token's own end. None: not known.
        until_unix_s: Option<u64>,
        /// Who waits.
        reply: Answer<(), RevokeError>,
    },
    /// Read the configuration again.
    Reload {
        /// Who waits; an error says why everything stays as it was.
        reply: Answer<Reloaded, String>,
    },
}

/// A publish that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Where it stands in its channel.
    pub position: Position,
    /// The same idempotency key was published before; `position` is the first one's.
    pub duplicate: bool,
}

/// What the owner of a channel said, and what it takes to write it down.
#[derive(Debug)]
pub struct ChannelTold {
    /// The answer.
    pub fact: ChannelFact,
    /// What payloads of this channel are.
    pub kind: PayloadKind,
}

/// Channels with subscribers, of all shards.
#[derive(Debug, Default)]
pub struct ChannelsListed {
    /// The first names with their subscribers on this node.
    pub channels: BTreeMap<Box<str>, u64>,
    /// All channels with subscribers, whether listed or not.
    pub total: u64,
}

/// Why a token was not revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RevokeError {
    /// Not every shard could be told; the caller tries again.
    Busy,
    /// Why this node cannot.
    Refused(String),
}

/// A configuration that was read again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Keys that changed and hold now.
    pub applied: Vec<String>,
    /// Keys whose new value holds only after a restart.
    pub needs_restart: Vec<String>,
}

/// What boot lends to the control plane: the parts of the process that are neither shards nor HTTP. Called on the
/// control thread, so nothing here may wait for a network.
pub trait Hooks {
    /// Reads the configuration again and spreads it.
    ///
    /// # Errors
    /// What is wrong with it; then everything stays as it was.
    fn reload(&mut self) -> Result<Reloaded, String>;

    /// Refuses a token from now on. Live connections are not its business.
    ///
    /// # Errors
    /// Why it cannot.
    fn revoke_token(&mut self, token_id: &str, until_unix_s: Option<u64>) -> Result<(), String>;
}

/// A process that has neither a configuration file nor tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHooks;

impl Hooks for NoHooks {
    fn reload(&mut self) -> Result<Reloaded, String> {
        Err("this node does not read its configuration again".into())
    }

    fn revoke_token(&mut self, _token_id: &str, _until_unix_s: Option<u64>) -> Result<(), String> {
        Err("this node takes no tokens".into())
    }
}
