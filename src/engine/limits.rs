//! Every limit of the engine, with its unit in the name, its default, and the relations between them.
//!
//! In: numbers from the configuration (`gateway/config.rs` validates ranges). Out: read by every stage.
//! What happens at a limit stands in the comment of its row; each has a counter in `metrics.rs`.

/// Limits of one shard and its connections. Built once at boot from the configuration.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Client connections per shard. Full: the shard closes its client listener, so that the kernel sends newcomers to
    /// other shards, and opens it again when one in twenty slots is free.
    pub connections_per_shard_max: u32,
    /// Backend connections per shard, apart from the clients'. Full: as above, for the ingest listener.
    pub ingest_connections_per_shard_max: u32,
    /// Upgrades of clients that the whole node admits per second, each shard its part, a quarter of a second's worth at once;
    /// 0: as many as come. Over: 503 (counted).
    pub upgrades_per_s_max: u32,
    /// Bytes of an upgrade request. Over: 431 and close.
    pub handshake_bytes_max: u32,
    /// From accept to the end of the upgrade request (or ingest hello). Over: close.
    pub handshake_timeout_ms: u32,
    /// From upgrade to the connect command. Over: close 4000 (reconnects; 3502 would be terminal).
    pub connect_timeout_ms: u32,
    /// From our Close frame to the peer's; then the socket is reset.
    pub close_timeout_ms: u32,
    /// Bytes of one client message, all fragments together. Over: close 1009.
    pub message_bytes_max: u32,
    /// Bytes that one byte of a compressed client message may become, on its average. Over: close 1009. Messages that
    /// inflate to 64 KiB or less are exempt.
    pub inflate_ratio_max: u32,
    /// Bytes inflated for all clients in one turn of the loop, a compressed byte counting as sixteen. One client gets an
    /// eighth. Over: what has come waits for the next turns. Clients with compression are read until half is used.
    pub inflate_bytes_per_turn_max: u32,
    /// Commands in one client message. Over: close 3501.
    pub commands_per_message_max: u32,
    /// Bytes of a channel name. Over: error 107.
    pub channel_bytes_max: u32,
    /// Subscriptions of one connection. Over: error 106.
    pub subscriptions_per_connection_max: u32,
    /// Connections of one user on the node, or on all nodes of a fleet together; 0: not counted. Over: close 3504.
    pub connections_per_user_max: u32,
    /// Publish and subscribe requests of one client connection that wait for an owner's answer. Over: the connection
    /// is not read until answers come.
    pub requests_in_flight_per_connection_max: u32,
    /// Bytes waiting to be written to one client. Over: the namespace's slow-consumer policy (close 3008).
    pub outbox_bytes_max: u32,
    /// Time between pings to a client; 0: none.
    pub ping_interval_ms: u32,
    /// From a ping to the next byte of the client. Over: close 3012.
    pub pong_timeout_ms: u32,
    /// From when a connection or subscription has expired to its end: time for a new token. The client is told
    /// only the first.
    pub expired_grace_ms: u32,
    /// Bytes of one publication's payload, from any source. Over: error 106 (client), too-large (ingest, HTTP 413).
    pub publication_bytes_max: u32,
    /// Channels that one shard owns or follows at once. Over: error 111 (temporary) for a new channel.
    pub channels_per_shard_max: u32,
    /// An owned channel with no subscriber, no history and no publication for this long is forgotten; it returns
    /// under a new epoch.
    pub channel_idle_ms: u32,
    /// Publications in one recovery answer. Over: `recovered:false`.
    pub recovery_publications_max: u32,
    /// Payload bytes in one recovery answer. Over: `recovered:false`. Below `outbox_bytes_max`.
    pub recovery_bytes_max: u32,
    /// Publications in one answer to a history call. More asked for: as many, the caller pages on.
    pub history_publications_max: u32,
    /// Members in one answer to a presence call. Over: error 106; the counts are still to be had.
    pub presence_members_max: u32,
    /// Bytes of payloads or members in one answer to a history or presence call. Over: fewer publications, but at
    /// least one, and the caller pages on; for presence error 106. Below `outbox_bytes_max`.
    pub call_answer_bytes_max: u32,
    /// Bytes of publications that one shard keeps in history windows. Over: the oldest publications of the channel
    /// that is being published to are forgotten early (counted), and its late clients get `recovered:false`.
    pub history_bytes_max: u64,
    /// Idempotency keys that one shard remembers. Over: the oldest are forgotten early (counted).
    pub idempotency_keys_max: u32,
    /// How long a key is remembered.
    pub idempotency_window_ms: u32,
    /// Bytes of an idempotency key. Over: the publish is refused.
    pub idempotency_key_bytes_max: u32,
    /// Largest ingest frame, header included. Over: the backend is disconnected with an error frame.
    pub ingest_frame_bytes_max: u32,
    /// Publishes that one ingest connection may have unacknowledged. Over: it broke the credit it was told, and is
    /// disconnected with an error frame.
    pub ingest_credit_messages: u32,
    /// Payload bytes that one ingest connection may have unacknowledged. Over: as above.
    pub ingest_credit_bytes: u32,
    /// Silence after which a backend is pinged, and after twice that disconnected.
    pub ingest_idle_timeout_ms: u32,
    /// Calls that one ingest connection may have unanswered. Over: the call is answered busy.
    pub ingest_calls_in_flight_max: u32,
    /// Events of clients that one shard keeps for backends: waiting, or sent and neither acknowledged nor answered.
    /// Over: an event is dropped (counted), or what asks is answered with error 111.
    pub events_pending_max: u32,
    /// Bytes of those events. Over: as above.
    pub events_pending_bytes_max: u32,
    /// Of those, the events of one client connection. Over: as above.
    pub events_pending_per_connection_max: u32,
    /// Events that one shard may have unacknowledged at one backend. Over: further ones wait.
    pub events_window_per_backend: u32,
    /// Bytes of them. Over: as above; an event larger than this goes alone.
    pub events_window_bytes_per_backend: u32,
    /// From a client's question to the backend's answer. Over: error 100 (temporary). Below the SDKs' own 5 s.
    pub event_answer_timeout_ms: u32,
    /// How long an event that asks nothing is kept for a backend to take and acknowledge it. Over: dropped (counted).
    pub event_deadline_ms: u32,
    /// Bytes waiting for lanes to other shards, per target. Over half: this shard reads no clients or backends.
    /// At the bound: publications for that core are dropped, its subscribers get "insufficient state".
    pub lane_spill_bytes_max: u32,
    /// Messages of one lane batch.
    pub lane_batch_messages_max: u32,
    /// Deliveries to connections in one turn of the loop; a larger fan-out goes on in the next turn.
    pub fanout_deliveries_per_turn_max: u32,
    /// Bytes of publications that wait for their fan-out on one shard. Over half: the shard reads no clients and
    /// backends; over: it takes nothing from other shards either, whose spills then hold them back in turn.
    pub fanout_backlog_bytes_max: u32,
    /// How long a publish or subscribe waits for the backplane. Over: error 111 or 100 (temporary).
    pub backplane_wait_ms: u32,
    /// Bytes of publications that wait on one shard for the backplane. Over: error 111 (temporary).
    pub backplane_queue_bytes_max: u32,
    /// Bytes of history that one answer of the engine may have when a channel is followed. Over: the latest; who lacks older
    /// ones is told (2500, or `recovered:false`). Twice `recovery_bytes_max`, if that is more.
    pub page_bytes_max: u32,
    /// How often a channel's or user's interest is registered again and its position compared; 0: never.
    pub interest_check_ms: u32,
    /// How long a presence call waits for the nodes of the fleet. Over: it is answered without those that are late.
    pub presence_wait_ms: u32,
    /// How long `info` and `channels` wait for the engine and the other nodes of the fleet. Over: answered without those that
    /// are late, which are named.
    pub nodes_wait_ms: u32,
    /// How long a node stays interested in a channel after its last subscriber has left.
    pub interest_linger_ms: u32,
    /// Bytes read from one connection in one turn; then it waits on the ready list.
    pub read_bytes_per_turn_max: u32,
    /// From the begin of a drain, when readiness fails, to the first client that is sent away: time for load balancers to
    /// notice. Then the client listeners close.
    pub drain_grace_ms: u32,
    /// Clients of the whole node that a drain sends away per second. Over: they wait.
    pub drain_rate_per_s: u32,
    /// From the begin of a drain to its end, whatever is left. Over: everybody is closed at once (counted).
    pub drain_deadline_ms: u32,
    /// From when backends are told that this node goes away to their end. Over: they are read no more, and end behind
    /// their last answers.
    pub drain_backends_ms: u32,
    /// How long a drain of a node of a fleet keeps members in presence whose connections it has ended, and their leaves to
    /// itself, so that a user who comes back elsewhere was never away. At the end of the drain: told at once.
    pub drain_leave_delay_ms: u32,
    /// How long a client that is sent away waits for what only this node knows of it to be parked with the engine. Over: it
    /// leaves without (counted).
    pub hand_over_wait_ms: u32,
    /// How long a connect command waits for what may be parked for its user. Over: it is answered without; what comes later
    /// follows as pushes.
    pub parked_wait_ms: u32,
    /// How long what is parked for a user is kept. Over: it is gone.
    pub parked_ttl_ms: u32,
    /// Connections of one user that are parked. Over: the oldest is dropped (counted).
    pub parked_per_user_max: u32,
    /// Bytes that are parked of one connection. Over: further subscriptions are not (counted).
    pub parked_bytes_max: u32,
}

impl Limits {
    /// The defaults; the configuration table repeats none of them.
    pub const DEFAULT: Limits = Limits {
        connections_per_shard_max: 100_000,
        ingest_connections_per_shard_max: 256,
        upgrades_per_s_max: 0,
        handshake_bytes_max: 8 * 1024,
        handshake_timeout_ms: 10_000,
        connect_timeout_ms: 15_000,
        close_timeout_ms: 5_000,
        message_bytes_max: 64 * 1024,
        // DEFLATE itself ends at 1032; JSON that repeats itself reaches 20 to 100.
        inflate_ratio_max: 200,
        inflate_bytes_per_turn_max: 1024 * 1024,
        commands_per_message_max: 1_024,
        channel_bytes_max: 255,
        subscriptions_per_connection_max: 512,
        connections_per_user_max: 0,
        requests_in_flight_per_connection_max: 1_024,
        outbox_bytes_max: 1024 * 1024,
        ping_interval_ms: 25_000,
        pong_timeout_ms: 10_000,
        expired_grace_ms: 25_000,
        publication_bytes_max: 64 * 1024,
        channels_per_shard_max: 1_000_000,
        channel_idle_ms: 600_000,
        recovery_publications_max: 500,
        recovery_bytes_max: 512 * 1024,
        history_publications_max: 1_000,
        presence_members_max: 2_000,
        call_answer_bytes_max: 512 * 1024,
        history_bytes_max: 1024 * 1024 * 1024,
        idempotency_keys_max: 1_000_000,
        idempotency_window_ms: 300_000,
        idempotency_key_bytes_max: 64,
        ingest_frame_bytes_max: 1024 * 1024,
        ingest_credit_messages: 16_384,
        ingest_credit_bytes: 8 * 1024 * 1024,
        ingest_idle_timeout_ms: 30_000,
        ingest_calls_in_flight_max: 256,
        events_pending_max: 65_536,
        events_pending_bytes_max: 64 * 1024 * 1024,
        events_pending_per_connection_max: 256,
        events_window_per_backend: 1_024,
        events_window_bytes_per_backend: 512 * 1024,
        event_answer_timeout_ms: 4_000,
        event_deadline_ms: 60_000,
        lane_spill_bytes_max: 64 * 1024 * 1024,
        lane_batch_messages_max: 1_024,
        fanout_deliveries_per_turn_max: 512,
        fanout_backlog_bytes_max: 64 * 1024 * 1024,
        backplane_wait_ms: 5_000,
        backplane_queue_bytes_max: 8 * 1024 * 1024,
        page_bytes_max: 4 * 1024 * 1024,
        interest_check_ms: 600_000,
        presence_wait_ms: 1_000,
        nodes_wait_ms: 2_000,
        interest_linger_ms: 10_000,
        read_bytes_per_turn_max: 256 * 1024,
        drain_grace_ms: 5_000,
        drain_rate_per_s: 1_000,
        drain_deadline_ms: 300_000,
        drain_backends_ms: 5_000,
        drain_leave_delay_ms: 5_000,
        hand_over_wait_ms: 2_000,
        parked_wait_ms: 1_000,
        parked_ttl_ms: 60_000,
        parked_per_user_max: 16,
        parked_bytes_max: 64 * 1024,
    };
}

/// Buckets a channel can hash to; the same inside a node and between nodes.
pub const BUCKETS: u16 = 4096;
/// Shards of one process.
pub const SHARDS_MAX: u16 = 1024;
/// Largest offset: JSON numbers are exact up to here.
pub const OFFSET_MAX: u64 = (1 << 53) - 1;
/// Length of one step of the timing wheel.
pub const TICK_MS: u64 = 125;

const _: () = {
    let d = &Limits::DEFAULT;
    assert!(d.recovery_bytes_max <= d.outbox_bytes_max / 2, "a recovery answer must fit half the outbox");
    assert!(d.call_answer_bytes_max <= d.outbox_bytes_max / 2, "an answer to a call must fit half the outbox");
    assert!(d.publication_bytes_max <= d.ingest_frame_bytes_max / 2, "a publication must fit an ingest frame");
    assert!(d.publication_bytes_max <= d.message_bytes_max);
    assert!(d.outbox_bytes_max >= 4 * d.publication_bytes_max, "one publication must not fill an outbox");
    assert!(d.handshake_bytes_max <= d.read_bytes_per_turn_max);
    assert!(SHARDS_MAX < u16::MAX - 1, "two numbers are left for the control plane and the backplane");
    assert!(d.drain_grace_ms as u64 + d.drain_backends_ms as u64 <= d.drain_deadline_ms as u64);
};
