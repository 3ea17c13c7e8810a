//! What has to hold between the values of a configuration, one entry each.
//!
//! In: the settings of all sources together. Out: checked by `config.rs` at load, listed in `tuning/CONFIG.md`.
//! Invariant: a value that is legal by its own range but harmful beside another is refused here, before anything runs.

use ringway_engine::namespace::Durability;

use crate::auth::config::is_jwks_url;
use crate::backplane::config::Engine;
use crate::config::Settings;

/// Something that has to hold between values, checked when all sources are read.
pub struct Relation {
    /// The key that an operator would change first.
    pub key: &'static str,
    /// What has to hold, in keys.
    pub text: &'static str,
    /// Whether it holds.
    pub(crate) holds: fn(&Settings) -> bool,
}

/// Every relation between values.
pub const RELATIONS: &[Relation] = &[
    Relation {
        key: "limits.recovery_bytes_max",
        text: "limits.recovery_bytes_max must be at most half of limits.outbox_bytes_max: a recovery answer must leave room for what follows",
        holds: |s| s.limits.recovery_bytes_max <= s.limits.outbox_bytes_max / 2,
    },
    Relation {
        key: "limits.call_answer_bytes_max",
        text: "limits.call_answer_bytes_max must be at most half of limits.outbox_bytes_max: an answer must leave room for what follows",
        holds: |s| s.limits.call_answer_bytes_max <= s.limits.outbox_bytes_max / 2,
    },
    Relation {
        key: "limits.publication_bytes_max",
        text: "limits.publication_bytes_max must be at most half of limits.ingest_frame_bytes_max",
        holds: |s| s.limits.publication_bytes_max <= s.limits.ingest_frame_bytes_max / 2,
    },
    Relation {
        key: "limits.publication_bytes_max",
        text: "limits.publication_bytes_max must be at most limits.message_bytes_max",
        holds: |s| s.limits.publication_bytes_max <= s.limits.message_bytes_max,
    },
    Relation {
        key: "limits.outbox_bytes_max",
        text: "limits.outbox_bytes_max must be at least 4 times limits.publication_bytes_max: one publication must not fill an outbox",
        holds: |s| u64::from(s.limits.outbox_bytes_max) >= 4 * u64::from(s.limits.publication_bytes_max),
    },
    Relation {
        key: "limits.handshake_bytes_max",
        text: "limits.handshake_bytes_max must be at most limits.read_bytes_per_turn_max",
        holds: |s| s.limits.handshake_bytes_max <= s.limits.read_bytes_per_turn_max,
    },
    Relation {
        key: "limits.ingest_credit_bytes",
        text: "limits.ingest_credit_bytes must be at least limits.ingest_frame_bytes_max: one frame must fit the credit",
        holds: |s| s.limits.ingest_credit_bytes >= s.limits.ingest_frame_bytes_max,
    },
    Relation {
        key: "limits.events_pending_bytes_max",
        text: "limits.events_pending_bytes_max must be at least 2 times limits.message_bytes_max: one event must not fill it",
        holds: |s| u64::from(s.limits.events_pending_bytes_max) >= 2 * u64::from(s.limits.message_bytes_max),
    },
    Relation {
        key: "limits.ping_interval_ms",
        text: "limits.ping_interval_ms must be 0 or at least 1000: clients are told whole seconds",
        holds: |s| s.limits.ping_interval_ms == 0 || s.limits.ping_interval_ms >= 1000,
    },
    Relation {
        key: "limits.pong_timeout_ms",
        text: "limits.pong_timeout_ms must be below limits.ping_interval_ms: an answer must be due before the next ping",
        holds: |s| s.limits.ping_interval_ms == 0 || s.limits.pong_timeout_ms < s.limits.ping_interval_ms,
    },
    Relation {
        key: "limits.drain_deadline_ms",
        text: "limits.drain_deadline_ms must be at least limits.drain_grace_ms and limits.drain_backends_ms together: clients leave between the two",
        holds: |s| {
            let apart = u64::from(s.limits.drain_grace_ms) + u64::from(s.limits.drain_backends_ms);
            u64::from(s.limits.drain_deadline_ms) >= apart
        },
    },
    Relation {
        key: "limits.drain_grace_ms",
        text: "limits.drain_grace_ms must be at least a third of backplane.lease_ms on a node of a fleet: so long it may take until the other nodes know that clients come whose state is kept for them",
        holds: |s| {
            s.backplane.engine == Engine::None
                || 3 * u64::from(s.limits.drain_grace_ms) >= u64::from(s.backplane.lease_ms)
        },
    },
    Relation {
        key: "ring.submission_entries",
        text: "ring.submission_entries must be a power of two",
        holds: |s| s.submission_entries.is_power_of_two(),
    },
    Relation {
        key: "ring.completion_entries",
        text: "ring.completion_entries must be a power of two",
        holds: |s| s.completion_entries.is_power_of_two(),
    },
    Relation {
        key: "ring.completion_entries",
        text: "ring.completion_entries must be at least twice ring.submission_entries",
        holds: |s| s.completion_entries >= 2 * s.submission_entries,
    },
    Relation {
        key: "client.websocket_path",
        text: "client.websocket_path must begin with / and have no spaces, control characters, ? or #",
        holds: |s| is_path(&s.websocket_path),
    },
    Relation {
        key: "client.websocket_path",
        text: "client.websocket_path must not be /echo, which client.echo serves",
        holds: |s| !(s.echo && s.websocket_path == "/echo"),
    },
    Relation {
        key: "client.uni_websocket_path",
        text: "client.uni_websocket_path must be empty, or begin with / and have no spaces, control characters, ? or #",
        holds: |s| s.uni_websocket_path.is_empty() || is_path(&s.uni_websocket_path),
    },
    Relation {
        key: "client.uni_websocket_path",
        text: "client.uni_websocket_path must be neither client.websocket_path nor /echo, which client.echo serves",
        holds: |s| s.uni_websocket_path != s.websocket_path && !(s.echo && s.uni_websocket_path == "/echo"),
    },
    Relation {
        key: "client.personal_namespace",
        text: "client.personal_namespace must be a configured namespace that is user_limited while client.personal_channel is on: otherwise others could subscribe to what is personal",
        holds: |s| {
            let mut namespaces = std::iter::once(&s.namespace).chain(&s.namespaces);
            !s.personal_channel || namespaces.any(|ns| *ns.name == *s.personal_namespace && ns.user_limited)
        },
    },
    Relation {
        key: "client.allowed_origins",
        text: "client.allowed_origins must be [\"*\"] alone, or origins such as \"https://app.example.com\" without path",
        holds: |s| s.allowed_origins == ["*"] || s.allowed_origins.iter().all(|o| is_origin(o)),
    },
    Relation {
        key: "control.listen",
        text: "client.listen, control.listen and ingest.listen must have different ports (or 0, a free one)",
        holds: |s| {
            let ports = [s.client_listen.port(), s.control_listen.port(), s.ingest_listen.port()];
            (0..3).all(|i| ports[i] == 0 || !ports[..i].contains(&ports[i]))
        },
    },
    Relation {
        key: "control.api_key",
        text: "control.api_key and control.api_key_file must not both be set",
        holds: |s| s.api_key.is_empty() || s.api_key_file.is_empty(),
    },
    Relation {
        key: "backplane.engine",
        text: "durability \"fleet\" needs a backplane: set backplane.engine, or use \"memory\"",
        holds: |s| {
            s.backplane.engine != Engine::None
                || s.namespaces.iter().chain([&s.namespace]).all(|rules| rules.durability != Durability::Fleet)
        },
    },
    Relation {
        key: "node.name",
        text: "node.name must have at most 64 bytes, which is what backends are told of it",
        holds: |s| s.backplane.node_name.len() <= ringway_wire::ingest::NAME_BYTES_MAX,
    },
    Relation {
        key: "backplane.password",
        text: "backplane.password and backplane.password_file must not both be set",
        holds: |s| s.backplane.password.is_empty() || s.backplane.password_file.is_empty(),
    },
    Relation {
        key: "ingest.tokens",
        text: "ingest.tokens and ingest.tokens_file must not both be set",
        holds: |s| s.ingest_tokens.is_empty() || s.ingest_tokens_file.is_empty(),
    },
    Relation {
        key: "ingest.tokens",
        text: "ingest.tokens must not hold an empty text",
        holds: |s| s.ingest_tokens.iter().all(|t| !t.is_empty()),
    },
    Relation {
        key: "auth.hmac_secrets",
        text: "auth.hmac_secrets and auth.hmac_secrets_file must not both be set",
        holds: |s| s.auth.hmac_secrets.is_empty() || s.auth.hmac_secrets_file.is_empty(),
    },
    Relation {
        key: "auth.jwks_url",
        text: "auth.jwks_url must be http:// or https:// and a host, without user and password",
        holds: |s| is_jwks_url(&s.auth.jwks_url),
    },
    Relation {
        key: "auth.jwks_ca_file",
        text: "auth.jwks_ca_file needs an https:// auth.jwks_url",
        holds: |s| s.auth.jwks_ca_file.is_empty() || s.auth.jwks_url.starts_with("https://"),
    },
    Relation {
        key: "auth.user_id_claim",
        text: "auth.user_id_claim must be the name of a claim",
        holds: |s| !s.auth.user_id_claim.is_empty(),
    },
];

fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#'))
}

/// `scheme://host[:port]`, or `null`, which browsers send for files and sandboxes.
fn is_origin(text: &str) -> bool {
    text == "null"
        || text.split_once("://").is_some_and(|(scheme, rest)| {
            !scheme.is_empty()
                && !rest.is_empty()
                && rest.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b'?' | b'#' | b'*'))
        })
}
