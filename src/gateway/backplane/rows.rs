//! The configuration rows of `node.*` and `backplane.*`.
//!
//! In: nothing. Out: [`BACKPLANE_ROWS`], a part of the table in `config_table.rs` and of the generated pages.
//! Invariant: defaults stand in `BackplaneSettings::default()` alone.

use super::config::{Engine, Mode};
use crate::config::Settings;
use crate::config_table::{Field, Row};

macro_rules! text {
    ($allowed:literal, secret: $secret:literal, $f:ident) => {
        Field::Text { allowed: $allowed, secret: $secret, get: |s| &s.backplane.$f, set: |s, v| s.backplane.$f = v }
    };
}
macro_rules! integer {
    ($unit:literal $min:literal ..= $max:literal, $f:ident) => {
        Field::Integer {
            unit: $unit,
            min: $min,
            max: $max,
            get: |s| s.backplane.$f.into(),
            // Within the bounds, which fit the field.
            set: |s, v| s.backplane.$f = v as _,
        }
    };
}
macro_rules! rows {
    ($( $key:literal => $field:expr; $what:literal; $effect:literal; $when:literal; )+) => {
        /// Rows of the node and of the engine that it shares with others.
        pub const BACKPLANE_ROWS: &[Row<Settings>] = &[ $( Row {
            key: $key, field: $field, what: $what, effect: $effect, when: $when, restart: true,
        }, )+ ];
    };
}

rows! {
    "node.name" => text!("text without spaces, 64 bytes at most; empty: the host's name", secret: false, node_name);
        "This node's name, which no other living node of the fleet may have. Backends on the ingest port are told it, and info shows it.";
        "None.";
        "When several nodes run on one host.";
    "backplane.engine" => Field::Choice {
            names: &["none", "redis"],
            get: |s| match s.backplane.engine { Engine::None => "none", Engine::Redis => "redis" },
            set: |s, v| s.backplane.engine = if v == "redis" { Engine::Redis } else { Engine::None },
        };
        "The engine over which nodes share channels: \"redis\" (Redis or Valkey, 7.0 or newer). \"none\": this node is alone.";
        "A publish is answered after a round trip to the engine; while it is away, publishes fail with a temporary error.";
        "When more than one node serves the same channels.";
    "backplane.mode" => Field::Choice {
            names: &["single", "sentinel", "cluster"],
            get: |s| match s.backplane.mode { Mode::Single => "single", Mode::Sentinel => "sentinel", Mode::Cluster => "cluster" },
            set: |s, v| s.backplane.mode = match v { "sentinel" => Mode::Sentinel, "cluster" => Mode::Cluster, _ => Mode::Single },
        };
        "How the primary is found: it is one of the addresses (\"single\"), the addresses are sentinels (\"sentinel\"), or servers of a cluster (\"cluster\").";
        "None.";
        "As the engine is set up.";
    "backplane.addresses" => Field::List {
            allowed: "host:port each; no rediss://, TLS is not supported",
            secret: false,
            get: |s| &s.backplane.addresses,
            set: |s, v| s.backplane.addresses = v,
        };
        "Servers (or sentinels) of the engine, asked in this order.";
        "None.";
        "Always with backplane.engine. Name several, so that one may be away.";
    "backplane.sentinel_name" => text!("text", secret: false, sentinel_name);
        "The primary's name at the sentinels.";
        "None.";
        "When it is not the usual one.";
    "backplane.username" => text!("text; empty: the engine's default user", secret: false, username);
        "As whom the node introduces itself to the engine (ACL). Sentinels are asked without.";
        "None.";
        "When the engine has users.";
    "backplane.password" => text!("text; empty: none", secret: true, password);
        "The engine's password.";
        "Travels unencrypted.";
        "Set it, or password_file, when the engine asks for one.";
    "backplane.password_file" => text!("a path", secret: false, password_file);
        "File that holds the password (its first line). Not together with backplane.password.";
        "Read once, at start.";
        "When secrets are mounted as files.";
    "backplane.prefix" => text!("text without { and }", secret: false, prefix);
        "In front of every key and channel name in the engine; the same on all nodes of a fleet.";
        "Its bytes in every key.";
        "When several fleets share one engine.";
    "backplane.timeout_ms" => integer!("ms" 100..=60_000, timeout_ms);
        "Silence after which a server of the engine is taken for dead: its connections are opened again and everything followed there is followed again.";
        "Lower: failures are seen sooner; too low: a busy server looks dead.";
        "Above the engine's longest pause (fork for a snapshot, slow disk).";
    "backplane.lease_ms" => integer!("ms" 1_000..=600_000, lease_ms);
        "How long a node that has gone silent counts as alive; renewed at every third of it. A node that starts under the name of one that has just died waits up to this long.";
        "None.";
        "Seldom.";
    "backplane.replica_wait_ms" => integer!("ms" 10..=60_000, replica_wait_ms);
        "How long a publish that wants a replica's copy waits for it (WAIT). Over: its outcome is unknown and it is sent again.";
        "Other requests to that primary wait behind it, so that at most one wait a second is in vain: without a replica such publishes are not begun.";
        "Above the usual lag of replicas.";
    "backplane.channel_meta_ttl_ms" => integer!("ms" 60_000..=31_536_000_000, channel_meta_ttl_ms);
        "How long the engine remembers epoch and offset of a channel that nobody uses. After it the channel begins a new epoch. A channel whose history lives longer is remembered as long as that.";
        "Some 150 bytes of the engine's memory per channel, for this long.";
        "Lower it for very many channels that are used once.";
    "backplane.requests_in_flight_max" => integer!("requests" 16..=16_777_216, requests_in_flight_max);
        "Requests of this node to the engine without an answer. Over: refused, and the publisher gets a temporary error.";
        "Memory of each.";
        "Raise it when ringway_backplane_refused_total moves while the engine is fast.";
    "backplane.bytes_in_flight_max" => integer!("bytes" 1_048_576..=4_294_967_295, bytes_in_flight_max);
        "Memory of the requests without an answer. Over: as backplane.requests_in_flight_max.";
        "Worst-case memory.";
        "With backplane.requests_in_flight_max.";
    "backplane.spill_bytes_max" => integer!("bytes" 1_048_576..=4_294_967_295, spill_bytes_max);
        "Bytes of events from the engine that wait for one shard whose queue is full. Over: what is fed is dropped, counted in ringway_backplane_feed_lost_total, and the shard follows its channels again.";
        "Worst-case memory per shard.";
        "Raise it when ringway_backplane_feed_lost_total moves and memory is free.";
}
