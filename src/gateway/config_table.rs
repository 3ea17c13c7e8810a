//! The configuration table: one row per key, from which everything else about configuration is made.
//!
//! In: nothing. Out: [`rows`] and (from `config_namespace.rs`) [`NAMESPACE_ROWS`](crate::config_namespace::NAMESPACE_ROWS),
//! read by `config_source.rs` (file, environment, flags), `reload.rs` (what may change while the process runs) and
//! `pages.rs` (`tuning/CONFIG.md`, `tuning/ringway.toml`).
//! Invariants: no default stands here (defaults are `Settings::default()` and `Limits::DEFAULT`); every field of
//! `Limits` and `Namespace` has a row (tests check); keys of one section stand together.

use std::net::SocketAddr;

use ringway_engine::limits::SHARDS_MAX;
use ringway_engine::namespace::EventMode;

use crate::auth::rows::AUTH_ROWS;
use crate::backplane::rows::BACKPLANE_ROWS;
use crate::config::{SendMode, Settings};
use crate::log::Level;

/// How a key is read, written and checked, by type.
#[derive(Clone, Copy)]
pub enum Field<T: 'static> {
    /// `true` or `false`.
    Flag {
        /// Reads it.
        get: fn(&T) -> bool,
        /// Writes it.
        set: fn(&mut T, bool),
    },
    /// A whole number within bounds, both included.
    Integer {
        /// What is counted: `bytes`, `ms`, or a plural noun.
        unit: &'static str,
        /// Smallest value.
        min: u64,
        /// Largest value.
        max: u64,
        /// Reads it.
        get: fn(&T) -> u64,
        /// Writes a value within the bounds.
        set: fn(&mut T, u64),
    },
    /// One of a few words.
    Choice {
        /// The words.
        names: &'static [&'static str],
        /// Reads it.
        get: fn(&T) -> &'static str,
        /// Writes one of `names`.
        set: fn(&mut T, &str),
    },
    /// An IP address and a port.
    Address {
        /// Reads it.
        get: fn(&T) -> SocketAddr,
        /// Writes it.
        set: fn(&mut T, SocketAddr),
    },
    /// Text. Its meaning is checked when the settings are complete.
    Text {
        /// What is allowed, for people.
        allowed: &'static str,
        /// Whether the value is never shown.
        secret: bool,
        /// Reads it.
        get: fn(&T) -> &str,
        /// Writes it.
        set: fn(&mut T, String),
    },
    /// Several texts. In the environment and in flags: separated by commas.
    List {
        /// What is allowed, for people.
        allowed: &'static str,
        /// Whether the values are never shown.
        secret: bool,
        /// Reads them.
        get: fn(&T) -> &[String],
        /// Writes them.
        set: fn(&mut T, Vec<String>),
    },
}

/// One key.
#[derive(Clone, Copy)]
pub struct Row<T: 'static> {
    /// `section.name`, or a plain name at the top of the file.
    pub key: &'static str,
    /// Type, range, and access to the value.
    pub field: Field<T>,
    /// What it is, and what happens at the limit.
    pub what: &'static str,
    /// What it costs: memory, latency, or another effect.
    pub effect: &'static str,
    /// When to change it.
    pub when: &'static str,
    /// Whether a change needs a restart. If not, a reload applies it, and `what` says from when on.
    pub restart: bool,
}

macro_rules! flag {
    ($($f:ident).+) => { Field::Flag { get: |s| s.$($f).+, set: |s, v| s.$($f).+ = v } };
}
macro_rules! integer {
    ($unit:literal $min:literal ..= $max:expr, $($f:ident).+ : $ty:ty) => {
        Field::Integer {
            unit: $unit, min: $min, max: $max as u64,
            get: |s| s.$($f).+ as u64,
            set: |s, v| s.$($f).+ = v as $ty,
        }
    };
}
macro_rules! address {
    ($f:ident) => {
        Field::Address { get: |s| s.$f, set: |s, v| s.$f = v }
    };
}
macro_rules! text {
    ($allowed:literal, secret: $secret:literal, $f:ident) => {
        Field::Text { allowed: $allowed, secret: $secret, get: |s| &s.$f, set: |s, v| s.$f = v }
    };
}
macro_rules! list {
    ($allowed:literal, secret: $secret:literal, $f:ident) => {
        Field::List { allowed: $allowed, secret: $secret, get: |s| &s.$f, set: |s, v| s.$f = v }
    };
}
/// One of the words of an enum, each with its variant.
macro_rules! choice {
    ($f:ident: $ty:ident { $($name:literal = $variant:ident),+ $(,)? }) => {
        Field::Choice {
            names: &[$($name),+],
            get: |s| match s.$f { $($ty::$variant => $name),+ },
            // Only the names come here.
            set: |s, v| { $( if v == $name { s.$f = $ty::$variant; } )+ },
        }
    };
}
pub(crate) use {choice, flag, integer};

/// Rows need a restart unless the table says `restart: false`: then a reload applies them.
macro_rules! rows {
    ($name:ident: $ty:ty, $doc:literal; $($rows:tt)+) => {
        rows! { $name: $ty, restart: true, $doc; $($rows)+ }
    };
    ($name:ident: $ty:ty, restart: $restart:literal, $doc:literal; $( $key:expr => $field:expr; $what:literal; $effect:literal; $when:literal; )+) => {
        #[doc = $doc]
        pub const $name: &[Row<$ty>] = &[ $( Row {
            key: $key, field: $field, what: $what, effect: $effect, when: $when, restart: $restart,
        }, )+ ];
    };
}
/// A row of `limits.*`; the key is the field's own name.
macro_rules! limits {
    ($( $f:ident, $unit:literal $min:literal ..= $max:literal; $what:literal; $effect:literal; $when:literal; )+) => {
        rows! { LIMIT_ROWS: Settings, "Rows of the engine's limits.";
            $( concat!("limits.", stringify!($f)) => integer!($unit $min..=$max, limits.$f: _); $what; $effect; $when; )+
        }
    };
}

rows! { PROCESS_ROWS: Settings, "Rows of the process, its listeners and its rings.";
    "shards" => integer!("shards" 0..=SHARDS_MAX, shards: u16);
        "Shards (data threads) of the process. 0: one per core that the process may use.";
        "Each shard has its own ring, file table and connection slots; more shards than cores share cores.";
        "Raise it above the cores when connections exceed the open-file limit of one shard; lower it to leave cores to others.";
    "pin_shards" => flag!(pin_shards);
        "Pins each shard's thread to one core.";
        "Steady latency while the cores belong to Ringway; worse latency when other busy processes share them.";
        "Switch it off on a shared machine, or when something else places threads.";
    "takeover" => flag!(takeover);
        "Starts although another instance holds the client port: a planned hand-over.";
        "The kernel spreads new connections over both processes until the older one stops.";
        "Only by the tool that replaces a running instance; normally given as --takeover.";
    "client.listen" => address!(client_listen);
        "Where clients connect.";
        "None.";
        "Bind one address when a proxy on the same host terminates TLS.";
    "client.websocket_path" => text!("a path that begins with /, without spaces, ? or #", secret: false, websocket_path);
        "Path of the client WebSocket.";
        "None.";
        "When clients or a proxy already use another path.";
    "client.allowed_origins" => list!("[\"*\"], [] (the origin's host and port equal the Host header), or origins such as \"https://app.example.com\"", secret: false, allowed_origins);
        "Which Origin headers may upgrade. Requests without one (not from a browser) are always allowed. Others: 403.";
        "None.";
        "List the sites that embed the client when they are served from another host than the gateway.";
    "client.anonymous" => flag!(anonymous);
        "Whether clients without a token are admitted, as anonymous.";
        "None.";
        "For public feeds. What anonymous clients may do is still up to each namespace.";
    "client.echo" => flag!(echo);
        "Serves /echo, a plain WebSocket echo for conformance and latency tests.";
        "None until it is used.";
        "On test machines only: it answers anyone.";
    "client.uni_websocket_path" => text!("empty, or a path that begins with /, without spaces, ? or #", secret: false, uni_websocket_path);
        "Path of the unidirectional WebSocket, for clients without an SDK. Empty: not served.";
        "None until it is used.";
        "When browsers or devices only listen: /connection/uni_websocket is the usual path.";
    "client.deflate" => flag!(deflate);
        "Whether clients may have permessage-deflate (RFC 7692). What is compressed is up to each namespace's deflate_bytes_min.";
        "CPU once per publication and once per message that a client compressed; no memory per idle connection.";
        "When bandwidth costs more than CPU and payloads are JSON of a few hundred bytes or more.";
    "client.personal_channel" => flag!(personal_channel);
        "Whether every client with a user id is subscribed, by the server, to a channel that only this user has: #<user> in client.personal_namespace. Not for user ids with a comma, which would list two users.";
        "One subscription per connection; with history, memory of what waits for each user.";
        "For messages to a user. With history and recovery in its namespace it is the user's offline queue.";
    "client.personal_namespace" => text!("empty (the default namespace), or the name of a namespace", secret: false, personal_namespace);
        "Namespace of personal channels. It must be user_limited.";
        "None.";
        "When personal channels have other options than channels without a prefix.";
    "client.connect_events" => choice!(connect_events: EventMode { "off" = Off, "notify" = Notify, "ask" = Ask });
        "Whether backends on the ingest port are told of connects and disconnects (\"notify\"), or decide whether a client may connect (\"ask\").";
        "One event per connect and disconnect; with \"ask\" a client waits for a backend's answer.";
        "\"ask\" when a backend, and no token, knows who a client is.";
    "client.rpc_events" => flag!(rpc_events);
        "Whether backends on the ingest port answer clients' rpc commands. Otherwise: error 104.";
        "One event per rpc; the client waits for the backend's answer.";
        "When clients call methods over their connection.";
    "client.backlog" => integer!("connections" 1..=65_535, backlog: u32);
        "Connections that the kernel holds per shard until they are accepted; the kernel's net.core.somaxconn caps it.";
        "Kernel memory for each that waits.";
        "Raise it with somaxconn when reconnect storms overflow the listen queue (nstat TcpExtListenOverflows).";
    "client.send_buffer_bytes" => integer!("bytes" 0..=67_108_864, send_buffer_bytes: u32);
        "Socket send buffer (SO_SNDBUF) of a client connection; the kernel doubles it. 0: the kernel tunes it.";
        "Kernel memory per connection with unread data; small values hand a slow client's backlog to the outbox sooner.";
        "Raise it for few clients with large messages over long distances.";
    "client.receive_buffer_bytes" => integer!("bytes" 0..=67_108_864, receive_buffer_bytes: u32);
        "Socket receive buffer (SO_RCVBUF) of a client connection; the kernel doubles it. 0: the kernel tunes it.";
        "Kernel memory per connection that sends faster than it is read.";
        "Raise it when clients upload large messages.";
    "control.listen" => address!(control_listen);
        "Where the control plane listens: health, metrics, HTTP API, demo page. Plain HTTP.";
        "None.";
        "Bind an internal address so that monitoring reaches it. Never a public one: /metrics asks for no key.";
    "control.api_key" => text!("text, sent as X-API-Key", secret: true, api_key);
        "Key of the HTTP API. Empty: the API refuses every call.";
        "None.";
        "Set it, or api_key_file, when a backend publishes over HTTP.";
    "control.api_key_file" => text!("a path", secret: false, api_key_file);
        "File that holds the key (its first line). Not together with control.api_key.";
        "Read once, at start.";
        "When secrets are mounted as files.";
    "control.demo" => flag!(demo);
        "Serves /demo, a page that connects to this gateway from a browser.";
        "About 320 KiB of the binary, sent only on request.";
        "On test machines.";
    "control.broadcast_channels_max" => integer!("channels" 1..=4_096, api.broadcast_channels_max: u32);
        "Channels of one broadcast call. Over: error 106.";
        "A copy of the payload per channel until the shards have taken it.";
        "Raise it when backends broadcast to more channels at once than they care to split.";
    "control.batch_commands_max" => integer!("commands" 1..=4_096, api.batch_commands_max: u32);
        "Commands of one batch call. Over: error 106.";
        "All are under way at once, and all their answers are held until the last one is there.";
        "Raise it when backends collect more commands than that; lower it when single batches delay other calls.";
    "control.history_publications_max" => integer!("publications" 1..=100_000, api.history_publications_max: u32);
        "Publications that one history call may ask for. Over: error 106. The shards' own bounds hold, too.";
        "Their JSON in memory while it is sent.";
        "Raise it when backends read long histories and do not want to page.";
    "control.channels_listed_max" => integer!("channels" 1..=1_000_000, api.channels_listed_max: u32);
        "Channels in the answer of a channels call. Over: error 106; a narrower pattern helps.";
        "Their names in memory, once per shard, while they are sorted and sent.";
        "Raise it on nodes with many channels whose operators list them all.";
    "ingest.listen" => address!(ingest_listen);
        "Where backends connect with the binary ingest protocol. Plain TCP.";
        "None.";
        "Bind an internal address when backends run on other hosts.";
    "ingest.tokens" => list!("texts, one per backend or per generation of the secret", secret: true, ingest_tokens);
        "Shared secrets, any of which admits a backend. Empty: the ingest port refuses everyone.";
        "None.";
        "List the old and the new one while a secret is rotated.";
    "ingest.tokens_file" => text!("a path", secret: false, ingest_tokens_file);
        "File that holds the tokens, one a line. Not together with ingest.tokens.";
        "Read once, at start.";
        "When secrets are mounted as files.";
    "ring.submission_entries" => integer!("entries" 64..=32_768, submission_entries: u32);
        "Submission queue of each shard's ring; a power of two.";
        "64 bytes each.";
        "Raise it when a turn submits more operations than fit and ringway_loop_turns_total grows faster than traffic.";
    "ring.completion_entries" => integer!("entries" 128..=65_536, completion_entries: u32);
        "Completion queue of each shard's ring; a power of two, at least twice ring.submission_entries.";
        "16 bytes each. An overflow costs re-armed polls.";
        "Raise it when ringway_ring_cq_overflows_total moves.";
    "ring.send_mode" => Field::Choice { names: SendMode::NAMES, get: |s| s.send_mode.name(), set: |s, v| s.send_mode = SendMode::from_name(v) };
        "How frames are written: \"ring\" submits all of a turn's sends at once, \"syscall\" calls send() for each.";
        "CPU per delivery; which one is cheaper depends on the kernel.";
        "After measuring both with ringway-loadgen on the kernel in use.";
    "lane.capacity_batches" => integer!("batches" 2..=1_048_576, lane_capacity_batches: u32);
        "Batches that the queue from one shard to another holds. Full: the sender keeps them in its own spill queue.";
        "Memory per place and pair of shards, whether used or not.";
        "Raise it when ringway_lane_full_total grows while ringway_loop_sleeps_total does too.";
    "drain.on_sigterm" => flag!(drain_on_sigterm);
        "Whether SIGTERM drains the node: clients leave paced, see limits.drain_*. Otherwise, and on a second signal, and on SIGINT, all are closed at once.";
        "The process takes as long to end as its clients take to leave: the supervisor must wait for limits.drain_deadline_ms and 10 s more.";
        "Switch it off where a restart may let all clients come back at once.";
}

rows! { LOG_ROWS: Settings, restart: false, "Rows of the log.";
    "log.level" => Field::Choice { names: Level::NAMES, get: |s| s.log_level.name(), set: |s, v| s.log_level = Level::from_name(v) };
        "Least severity that is logged, as logfmt lines on standard error. A reload holds at once.";
        "debug writes lines per connection event.";
        "debug while looking for a fault.";
}

limits! {
    connections_per_shard_max, "connections" 1..=16_000_000;
        "Client connections per shard. Full: the shard closes its listener, so that the kernel sends newcomers to other shards, and opens it again when one in twenty slots is free.";
        "Slots are reserved at start; a connection in use adds its kernel socket and its subscriptions.";
        "Set it to what the host's memory and open-file limit carry, divided by shards.";
    ingest_connections_per_shard_max, "connections" 1..=65_536;
        "Backend connections per shard, apart from the clients'. Full: the shard closes its ingest listener until one in twenty slots is free.";
        "Reserves as many descriptors of each shard's file table.";
        "Raise it when many backend processes publish to one node.";
    upgrades_per_s_max, "upgrades" 0..=10_000_000;
        "Upgrades of clients that the whole node admits per second, each shard its part, a quarter of a second's worth at once. Over: 503 with Retry-After, counted in ringway_handshakes_refused_total; the SDKs come back, later each time. 0: as many as come.";
        "Keeps a herd of clients from another node, and their tokens and recoveries, from slowing down who is connected. Load balancers may try the next node on 503.";
        "Above limits.drain_rate_per_s of the other nodes, and at what the node, and whoever checks tokens for it, has been seen to take.";
    handshake_bytes_max, "bytes" 512..=65_536;
        "Bytes of an upgrade request. Over: 431 and close.";
        "Held per connection only while its request is incomplete.";
        "Raise it when proxies or cookies make requests long.";
    handshake_timeout_ms, "ms" 100..=600_000;
        "From accept to the end of the upgrade request or ingest hello. Over: close.";
        "Bounds how long a silent peer holds a slot.";
        "Raise it for very slow networks, lower it under slot-exhaustion attacks.";
    connect_timeout_ms, "ms" 100..=600_000;
        "From the upgrade to the connect command. Over: close 4000, the client comes back.";
        "Bounds how long an unauthenticated peer holds a slot.";
        "Raise it when clients fetch their token after they connect.";
    close_timeout_ms, "ms" 100..=600_000;
        "From our Close frame to the peer's; then the socket is reset.";
        "Bounds how long a closing connection holds a slot.";
        "Seldom.";
    message_bytes_max, "bytes" 1_024..=67_108_864;
        "Bytes of one client message, all fragments together. Over: close 1009.";
        "Upper bound of what an incomplete message holds per connection.";
        "Raise it with limits.publication_bytes_max when clients publish large payloads.";
    inflate_ratio_max, "times" 2..=1_032;
        "Bytes that one byte of a compressed client message may become, on its average. Over: close 1009. Messages that inflate to 64 KiB or less are exempt.";
        "With limits.message_bytes_max above 64 KiB: bounds the work and memory that a small message can cause.";
        "Raise it when clients publish large payloads that repeat themselves; 1032 is all that DEFLATE can do.";
    inflate_bytes_per_turn_max, "bytes" 65_536..=1_073_741_824;
        "Bytes inflated for all clients of a shard in one turn, a compressed byte counting as sixteen; one client gets an eighth. Over: what has come waits for the next turns.";
        "Bounds how long clients that send compressed messages can hold up the others of their shard.";
        "Lower it when such clients raise the latency of others, seen in ringway_inflates_deferred_total.";
    commands_per_message_max, "commands" 1..=65_536;
        "Commands in one client message. Over: close 3501.";
        "Bounds the work that one message causes.";
        "Raise it when clients batch more subscribes than this.";
    channel_bytes_max, "bytes" 1..=4_096;
        "Bytes of a channel name. Over: error 107.";
        "Names are kept by the owner and by each shard with subscribers.";
        "When names carry long ids.";
    subscriptions_per_connection_max, "subscriptions" 1..=1_048_576;
        "Subscriptions of one connection. Over: error 106.";
        "Memory of the connection and of its shard's channel lists.";
        "When one client follows many channels.";
    connections_per_user_max, "connections" 0..=1_000_000;
        "Connections of one user on the node, or on all nodes of a fleet together; clients without a user id are not counted; 0: nobody is. Over: close 3504, counted in ringway_user_limit_refused_total.";
        "A message to the user's owner per connect and end; in a fleet one script of the engine per connect and a command per end.";
        "Above the devices of one user, with some to spare: a connection that is only half open counts until its ping finds out.";
    requests_in_flight_per_connection_max, "requests" 1..=1_048_576;
        "Publishes and subscribes of one client that wait for an owner's answer. Over: the client is not read until answers come.";
        "Memory of each request that waits.";
        "Raise it when a client subscribes to thousands of channels at once and connects slowly.";
    outbox_bytes_max, "bytes" 4_096..=1_073_741_824;
        "Bytes that wait to be written to one client. Over: close 3008, the client recovers from history.";
        "Worst-case memory per connection. Larger: slow clients stay longer and lag more.";
        "Raise it for bursts to clients on slow links, lower it when slow clients fill the memory.";
    ping_interval_ms, "ms" 0..=3_600_000;
        "Time between pings to a client. 0: none; otherwise at least 1000, because clients are told whole seconds.";
        "One small write and one small read per client and interval.";
        "Lower it when proxies drop idle connections earlier; raise it to save radio and CPU.";
    pong_timeout_ms, "ms" 100..=3_600_000;
        "From a ping to the next byte of the client. Over: close 3012.";
        "Bounds how long a dead peer is taken for alive, together with limits.ping_interval_ms.";
        "Raise it for networks that stall longer.";
    expired_grace_ms, "ms" 0..=600_000;
        "From when a connection or subscription has expired to its end: close 3005 or 3006, unsubscribe 2501.";
        "A client whose token was not renewed keeps its place for so long.";
        "Above the time that clients need to fetch a token.";
    publication_bytes_max, "bytes" 64..=16_777_216;
        "Bytes of one payload, from any source. Over: error 106 to a client, too-large on ingest, 413 over HTTP.";
        "History and outboxes hold payloads of up to this size.";
        "Raise it with message_bytes_max, outbox_bytes_max and ingest_frame_bytes_max.";
    channels_per_shard_max, "channels" 1..=100_000_000;
        "Channels that one shard owns or follows at once. Over: error 111 (temporary) for a new channel, until idle ones are forgotten.";
        "Memory of each channel, and of its history.";
        "Raise it for many small channels, as far as memory allows.";
    channel_idle_ms, "ms" 1_000..=604_800_000;
        "An owned channel with no subscriber, no history and no publication for this long is forgotten; it returns under a new epoch.";
        "Longer keeps unused channels in memory.";
        "Raise it when clients return later than this and must not reload.";
    recovery_publications_max, "publications" 1..=1_000_000;
        "Publications in one recovery answer. Over: recovered:false.";
        "Work and bytes of one subscribe after a reconnect.";
        "Raise it with the namespaces' history_size.";
    recovery_bytes_max, "bytes" 1_024..=536_870_912;
        "Payload bytes in one recovery answer. Over: recovered:false.";
        "A reconnect storm writes up to this per client and channel.";
        "Raise it with limits.outbox_bytes_max, below which it stays.";
    history_publications_max, "publications" 1..=1_000_000;
        "Publications in one answer to a history call. More asked for: as many, the caller pages on.";
        "Work and bytes of one call.";
        "Raise it for backends that read long histories over HTTP.";
    presence_members_max, "members" 1..=1_000_000;
        "Members in one answer to a presence call. Over: error 106, counted in ringway_channel_calls_too_large_total; the counts (presence_stats) are still to be had.";
        "Work and bytes of one call.";
        "Raise it with limits.call_answer_bytes_max when larger channels must be listed.";
    call_answer_bytes_max, "bytes" 1_024..=536_870_912;
        "Bytes of payloads or members in one answer to a history or presence call. Over: fewer publications, but at least one; for presence error 106.";
        "Every call may write up to this.";
        "Raise it with limits.outbox_bytes_max, below which it stays.";
    history_bytes_max, "bytes" 1_048_576..=1_099_511_627_776;
        "Bytes of publications that one shard keeps in history windows. Over: the oldest of the channel being published to are forgotten early, counted in ringway_history_dropped_total.";
        "Worst-case memory of history per shard.";
        "Set it to the memory that history may take, divided by shards.";
    idempotency_keys_max, "keys" 0..=100_000_000;
        "Idempotency keys that one shard remembers. Over: the oldest are forgotten early, counted in ringway_idempotency_keys_dropped_total.";
        "Memory of each key, up to this many.";
        "Publish rate per shard times limits.idempotency_window_ms should fit.";
    idempotency_window_ms, "ms" 1_000..=86_400_000;
        "How long a key is remembered.";
        "Longer holds more keys.";
        "Above the longest time after which a backend resends.";
    idempotency_key_bytes_max, "bytes" 16..=1_024;
        "Bytes of an idempotency key. Over: the publish is refused.";
        "Upper bound of a key's memory.";
        "When backends use long keys.";
    ingest_frame_bytes_max, "bytes" 4_096..=67_108_864;
        "Largest ingest frame, header included. Over: error frame and disconnect.";
        "Receive memory per backend connection.";
        "Raise it for large payloads or larger batches.";
    ingest_credit_messages, "messages" 1..=1_048_576;
        "Publishes that one ingest connection may have unacknowledged. Over: it broke the credit it was told, and is disconnected with an error frame.";
        "Memory of each publish that waits.";
        "Raise it when one backend publishes more than this per round trip.";
    ingest_credit_bytes, "bytes" 4_096..=1_073_741_824;
        "Payload bytes that one ingest connection may have unacknowledged. Over: it broke the credit it was told, and is disconnected with an error frame.";
        "Memory per backend connection under full load.";
        "Raise it with limits.ingest_credit_messages for large payloads.";
    ingest_idle_timeout_ms, "ms" 1_000..=3_600_000;
        "Silence after which a backend is pinged, and after twice that disconnected.";
        "Bounds how long a dead backend's credit is held.";
        "Lower it when backends must fail over faster.";
    ingest_calls_in_flight_max, "calls" 1..=65_536;
        "Calls that one ingest connection may have unanswered. Over: the call is answered busy (200).";
        "Memory of each answer that is made.";
        "Raise it when a backend calls more than this per round trip.";
    events_pending_max, "events" 1..=16_777_216;
        "Events of clients that one shard keeps for backends until they are acknowledged or answered. Over: an event is dropped, counted in ringway_events_dropped_total, or what asks is answered with error 111.";
        "Memory of each event that waits.";
        "Raise it when backends pause longer than this many events, and memory is free.";
    events_pending_bytes_max, "bytes" 1_048_576..=4_294_967_295;
        "Bytes of the events that one shard keeps for backends. Over: as limits.events_pending_max.";
        "Worst-case memory of events per shard.";
        "Raise it with limits.events_pending_max for large events.";
    events_pending_per_connection_max, "events" 1..=65_536;
        "Of the events kept for backends, those of one client connection. Over: as limits.events_pending_max.";
        "Bounds what one client can take from the others.";
        "Raise it when one client sends more than this per round trip of a backend.";
    events_window_per_backend, "events" 1..=1_048_576;
        "Events that one shard may have unacknowledged at one backend. Over: further ones wait.";
        "Larger: more throughput over long distances, and more that is sent again when the backend goes.";
        "At least the events per second of a shard times the backend's time to acknowledge.";
    events_window_bytes_per_backend, "bytes" 4_096..=67_108_864;
        "Bytes of the events that one shard may have unacknowledged at one backend. Over: further ones wait; an event larger than this goes alone.";
        "Worst-case memory per backend connection, times shards.";
        "Raise it with limits.events_window_per_backend for large events.";
    event_answer_timeout_ms, "ms" 10..=600_000;
        "From a client's question (a connect, subscribe, publish or rpc that backends decide) to the backend's answer. Over: error 100, and the client tries again.";
        "Bounds how long a question is kept.";
        "Keep it below the client SDKs' own timeout, 5 s by default.";
    event_deadline_ms, "ms" 100..=86_400_000;
        "How long an event that asks nothing is kept for a backend to take and acknowledge it. Over: it is dropped, counted in ringway_events_dropped_total.";
        "Longer keeps more events while no backend is there, up to limits.events_pending_max.";
        "Above the longest time that all backends are away at once.";
    lane_spill_bytes_max, "bytes" 1_048_576..=4_294_967_295;
        "Bytes waiting for one other shard whose queue is full. Over half: this shard reads no clients or backends. At the bound: publications for that shard are dropped and its subscribers told (2500, 3010).";
        "Worst-case memory per pair of shards.";
        "Raise it when ringway_lane_publications_dropped_total moves and memory is free.";
    lane_batch_messages_max, "messages" 1..=65_536;
        "Messages of one batch between shards.";
        "Larger: fewer queue operations, longer first-message latency.";
        "Seldom; measure with loadgen fanout over several shards.";
    fanout_deliveries_per_turn_max, "deliveries" 64..=1_048_576;
        "Deliveries to connections in one turn of the loop; a larger fan-out goes on in the next turn.";
        "Larger: more throughput, longer turns, so worse latency for everyone else on the shard.";
        "Lower it when big channels disturb small ones.";
    fanout_backlog_bytes_max, "bytes" 1_048_576..=4_294_967_295;
        "Bytes of publications that wait for their fan-out on one shard. Over half: the shard reads no clients or backends. Over: it takes nothing from other shards either, whose spills then hold them back.";
        "Worst-case memory of waiting publications per shard.";
        "Raise it when ringway_fanout_backlog_bytes nears it in bursts and memory is free.";
    backplane_wait_ms, "ms" 100..=600_000;
        "How long a publish or subscribe waits for the backplane. Over: error 111 or 100 (temporary).";
        "Publishes of this time are kept, up to limits.backplane_queue_bytes_max.";
        "Raise it above the time that a failover of the engine takes, if publishers wait that long.";
    backplane_queue_bytes_max, "bytes" 65_536..=1_073_741_824;
        "Bytes of publications that wait on one shard for the backplane. Over: error 111 (temporary).";
        "Memory per shard while the backplane is away.";
        "Raise it with limits.backplane_wait_ms and the rate of publishes.";
    page_bytes_max, "bytes" 2_048..=1_073_741_824;
        "Bytes of history in one answer of the engine when a channel is followed; twice limits.recovery_bytes_max, if that is more. Over: the latest; who lacks older ones is told (2500, or recovered:false), and it is counted in ringway_backplane_pages_cut_total.";
        "Memory of a node and a stall of the engine, for each such answer.";
        "Raise it where a node that was cut off from the engine for long must fill the gap of a busy channel.";
    interest_check_ms, "ms" 0..=86_400_000;
        "How often a channel's or user's interest is registered again with the backplane and its position compared; 0: never.";
        "Channels and users divided by it are calls per second to the backplane.";
        "Seldom. Keep it below half of backplane.channel_meta_ttl_ms.";
    presence_wait_ms, "ms" 100..=60_000;
        "How long a presence call waits for the nodes of the fleet. Over: it is answered without those that are late.";
        "A node that hangs costs each presence call so much time until it is gone.";
        "Raise it where nodes are far apart.";
    nodes_wait_ms, "ms" 100..=4_000;
        "How long the server API's info and channels wait for the engine and the other nodes of the fleet. Over: answered without those that are late, which are named as missing and counted in ringway_backplane_nodes_missing_total.";
        "A node that hangs costs each such call so much time until its lease ends.";
        "Raise it where nodes are far apart or list very many channels.";
    interest_linger_ms, "ms" 0..=3_600_000;
        "How long a node stays interested in a channel after its last subscriber has left.";
        "The backplane feeds the channel for so much longer; who comes back meanwhile is answered without asking it.";
        "Raise it where clients come and go often, lower it where channels are many and busy.";
    read_bytes_per_turn_max, "bytes" 4_096..=16_777_216;
        "Bytes read from one connection in one turn; then it waits on the ready list.";
        "Larger: more throughput of one sender, less fairness.";
        "Seldom.";
    drain_grace_ms, "ms" 0..=600_000;
        "From the begin of a drain, when /ready fails, to the first client that is sent away. Then the client port closes.";
        "Newcomers are still served meanwhile.";
        "Above the time that load balancers need to take a failing node out: interval times failures of their health check.";
    drain_rate_per_s, "clients" 1..=10_000_000;
        "Clients of the whole node that a drain sends away per second, the most idle first; each shard has its part.";
        "Others have to take so many connects per second; the drain takes clients divided by this.";
        "Below what the other nodes, and whoever checks tokens for them, can admit.";
    drain_deadline_ms, "ms" 0..=86_400_000;
        "From the begin of a drain to its end. Over: everybody who is left is closed at once, counted in ringway_drain_clients_total.";
        "Bounds how long a restart takes.";
        "Above clients divided by limits.drain_rate_per_s, and below what the supervisor waits before it kills.";
    drain_backends_ms, "ms" 0..=600_000;
        "From when backends on the ingest port are told that the node goes away, behind the last client, to their end. Over: they are read no more, and end behind their last answers.";
        "None: backends that understand it leave as soon as all they sent is answered.";
        "Seldom.";
    drain_leave_delay_ms, "ms" 0..=600_000;
        "How long a drain of a node of a fleet keeps members in presence whose connections it has ended, and their leaves to itself. At the end of the drain they are told at once.";
        "A user who comes back on another node within this time was never away; the drain takes so much longer.";
        "Above the time in which clients reconnect: their backoff, and the load balancer's.";
    hand_over_wait_ms, "ms" 0..=60_000;
        "How long a client that a drain sends away waits for what only this node knows of it to be parked with the engine. Over: it leaves without, counted in ringway_hand_overs_total.";
        "None for clients of whom nothing is to be parked.";
        "Raise it where the engine is far away.";
    parked_wait_ms, "ms" 10..=60_000;
        "How long a connect command waits for the engine to say what is parked for its user. Over: it is answered without, and what comes later follows as pushes. Asked only while some node of the fleet drains, and limits.parked_ttl_ms behind it.";
        "Connects take so much longer while the engine does not answer.";
        "Raise it where the engine is far away.";
    parked_ttl_ms, "ms" 1_000..=3_600_000;
        "How long what a drained node has parked for a user is kept, and how long behind a drain connects ask for it.";
        "Memory of the engine; one question of the engine per connect while it lasts.";
        "Above the longest time in which clients come back.";
    parked_per_user_max, "connections" 1..=1_024;
        "Connections of one user that are parked. Over: the oldest is dropped, counted in ringway_hand_overs_total.";
        "Memory of the engine.";
        "Raise it where users have more devices at once.";
    parked_bytes_max, "bytes" 1_024..=1_048_576;
        "Bytes that are parked of one connection. Over: further subscriptions are not, counted in ringway_hand_overs_total.";
        "Memory of the engine.";
        "Raise it with limits.subscriptions_per_connection_max.";
}

rows! { NAMESPACES_ROWS: Settings, restart: false, "Rows that hold for all namespaces together; in the file under `[namespace]`.";
    "namespace.catch_all" => flag!(catch_all);
        "Whether a channel whose prefix names no namespace belongs to the default one. Otherwise: error 102. A reload holds for new subscribes and publishes.";
        "None.";
        "While developing. In production a misspelt prefix should fail.";
}

/// All rows of [`Settings`], in the order of the file.
pub fn rows() -> impl Iterator<Item = &'static Row<Settings>> {
    PROCESS_ROWS.iter().chain(AUTH_ROWS).chain(BACKPLANE_ROWS).chain(LOG_ROWS).chain(LIMIT_ROWS).chain(NAMESPACES_ROWS)
}
