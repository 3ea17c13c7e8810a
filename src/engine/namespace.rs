//! Namespaces: a channel's name decides what the channel can do and who may use it.
//!
//! In: a channel name, `ns:rest` or plain. Out: the [`Namespace`] whose options hold for it, or none (error 102).
//! Invariant: options come from the configuration alone, never from a client.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use ringway_wire::ingest::PayloadKind;

use crate::limits::Limits;

/// Who may do something with a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allow {
    /// Only backends, over ingest or the HTTP API.
    Backend,
    /// Clients that present a subscription token for the channel, or to whom a backend has granted it.
    Token,
    /// Clients that are subscribed to the channel. For publishing and reading only.
    Subscriber,
    /// Clients with a user id.
    Authenticated,
    /// Every connected client, anonymous ones too.
    Anyone,
}

/// What a subscriber gets that comes back with a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryMode {
    /// Everything that it missed, or nothing.
    Stream,
    /// The latest publication, if it does not have it: for channels whose publications replace each other.
    Cache,
}

/// What watchers of a channel with more than `join_leave_members_max` members hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinLeaveAbove {
    /// Nothing.
    None,
    /// The latest join or leave of each interval, as a sign that something has changed.
    Coalesce,
}

/// What happens to a client that reads slower than its messages come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowConsumer {
    /// It is closed with 3008, comes back and recovers.
    Disconnect,
    /// Its oldest publications of such channels are dropped.
    DropOldest,
    /// Of such channels only the newest publication (per channel, or per key) is kept for it.
    Conflate,
}

/// What backends are told of, and asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventMode {
    /// Nothing.
    Off,
    /// That it has happened.
    Notify,
    /// Whether it may happen.
    Ask,
}

/// Options of a namespace. The defaults are closed.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// The part before the first `:`; empty for the default namespace.
    pub name: Box<str>,
    /// Publications kept per channel; 0: none.
    pub history_size: u32,
    /// How long a publication is kept.
    pub history_ttl_ms: u64,
    /// Whether a client may resume from (epoch, offset). Needs history.
    pub recovery: bool,
    /// What payloads are: JSON text (checked at publish) or bytes (Protobuf clients only).
    pub payload: PayloadKind,
    /// Who may subscribe.
    pub subscribe: Allow,
    /// Who may publish.
    pub publish: Allow,
    /// Who may read presence.
    pub read_presence: Allow,
    /// Who may read history.
    pub read_history: Allow,
    /// Whether a name with `#` admits only the users listed behind it, separated by commas.
    pub user_limited: bool,
    /// Whether subscribers recover without having asked for it. Needs `recovery`.
    pub recovery_forced: bool,
    /// What a subscriber gets that comes back.
    pub recovery_mode: RecoveryMode,
    /// Whether subscribers are told of losses although they do not recover.
    pub positioned: bool,
    /// Whether it is known who is subscribed.
    pub presence: bool,
    /// Whether coming and going is told to those subscribers that ask for it. Needs `presence`.
    pub join_leave: bool,
    /// Whether it is told to all of them.
    pub join_leave_forced: bool,
    /// Members above which a channel stops telling each join and leave.
    pub join_leave_members_max: u32,
    /// What is told above.
    pub join_leave_above: JoinLeaveAbove,
    /// Time between two coalesced changes of one channel.
    pub join_leave_interval_ms: u32,
    /// Publications per second of one client connection in all channels of the namespace; 0: no limit.
    pub publish_rate_per_connection: u32,
    /// Publications per second of clients in one channel; 0: no limit.
    pub publish_rate_per_channel: u32,
    /// What happens to slow clients.
    pub slow_consumer: SlowConsumer,
    /// JSON payloads of at least so many bytes are compressed for clients that can; 0: never.
    pub deflate_bytes_min: u32,
    /// Whether subscribers may have Fossil deltas.
    pub delta: bool,
    /// Whether backends are told of subscribes, or decide about them.
    pub subscribe_events: EventMode,
    /// Whether backends are told of clients' publishes, or decide about them.
    pub publish_events: EventMode,
    /// Channels of this namespace that one shard owns at once; 0: only the shard's own limit holds.
    pub channels_per_shard_max: u32,
}

impl Namespace {
    /// A namespace with no history that only backends may use.
    pub fn closed(name: &str) -> Self {
        Namespace {
            name: name.into(),
            history_size: 0,
            history_ttl_ms: 0,
            recovery: false,
            payload: PayloadKind::Json,
            subscribe: Allow::Backend,
            publish: Allow::Backend,
            read_presence: Allow::Backend,
            read_history: Allow::Backend,
            user_limited: true,
            recovery_forced: true,
            recovery_mode: RecoveryMode::Stream,
            positioned: false,
            presence: false,
            join_leave: false,
            join_leave_forced: false,
            join_leave_members_max: 1_000,
            join_leave_above: JoinLeaveAbove::None,
            join_leave_interval_ms: 1_000,
            publish_rate_per_connection: 0,
            publish_rate_per_channel: 0,
            slow_consumer: SlowConsumer::Disconnect,
            deflate_bytes_min: 0,
            delta: false,
            subscribe_events: EventMode::Off,
            publish_events: EventMode::Off,
            channels_per_shard_max: 0,
        }
    }
}

/// All namespaces of the node. A handful, so a scan beats a map.
#[derive(Clone, Debug)]
pub struct Namespaces {
    default: Namespace,
    named: Vec<Namespace>,
    catch_all: bool,
}

/// Index of a namespace: 0 is the default one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceId(pub u16);

impl Namespaces {
    /// # Errors
    /// The text says which namespace contradicts itself or which name stands twice.
    pub fn new(default: Namespace, named: Vec<Namespace>) -> Result<Self, String> {
        for (i, ns) in named.iter().enumerate() {
            if ns.name.is_empty() || ns.name.contains(':') {
                return Err(alloc::format!("namespace name {:?} is empty or contains ':'", ns.name));
            }
            if named[..i].iter().any(|other| other.name == ns.name) {
                return Err(alloc::format!("namespace {:?} is defined twice", ns.name));
            }
        }
        for ns in core::iter::once(&default).chain(&named) {
            if ns.recovery && ns.history_size == 0 {
                return Err(alloc::format!("namespace {:?}: recovery needs history_size above 0", ns.name));
            }
            if ns.history_size > 0 && ns.history_ttl_ms == 0 {
                return Err(alloc::format!("namespace {:?}: history_size needs history_ttl_ms above 0", ns.name));
            }
        }
        Ok(Namespaces { default, named, catch_all: false })
    }

    /// Whether a channel whose prefix names no namespace belongs to the default one. Otherwise it has none.
    pub fn with_catch_all(mut self, catch_all: bool) -> Self {
        self.catch_all = catch_all;
        self
    }

    /// The namespace of `channel`, or none when its prefix is not configured.
    pub fn resolve(&self, channel: &str) -> Option<(NamespaceId, &Namespace)> {
        let Some((prefix, _)) = channel.split_once(':') else {
            return Some((NamespaceId(0), &self.default));
        };
        let Some(index) = self.named.iter().position(|ns| &*ns.name == prefix) else {
            return self.catch_all.then_some((NamespaceId(0), &self.default));
        };
        Some((NamespaceId(index as u16 + 1), &self.named[index]))
    }

    /// The namespace with this id.
    pub fn get(&self, id: NamespaceId) -> &Namespace {
        if id.0 == 0 { &self.default } else { &self.named[id.0 as usize - 1] }
    }
}

/// Whether a text can be a channel's name: not empty, not too long, no control characters.
pub fn channel_is_valid(channel: &str, limits: &Limits) -> bool {
    !channel.is_empty()
        && channel.len() <= limits.channel_bytes_max as usize
        && !channel.bytes().any(|byte| byte.is_ascii_control())
}
