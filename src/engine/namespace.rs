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
    /// Clients with a user id.
    Authenticated,
    /// Every connected client, anonymous ones too.
    Anyone,
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
