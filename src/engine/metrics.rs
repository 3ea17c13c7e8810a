//! Counters and gauges of one shard: one table, one array of numbers.
//!
//! In: `add`, `set` by the stages as they work. Out: the control plane reads a copy that the loop publishes and
//! renders `/metrics`; `tuning/METRICS.md` is generated from [`TABLE`].
//! Invariant: no row without somebody who increments it (a house rule checks).

use ringway_wire::close::CloseReason;

/// Whether a row only grows or moves both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; reset by a restart.
    Counter,
    /// The value now.
    Gauge,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Name as Prometheus sees it.
    pub name: &'static str,
    /// Labels as rendered between braces, or empty.
    pub labels: &'static str,
    /// Counter or gauge.
    pub kind: Kind,
    /// What it counts, in the unit of its name, and what to do when it moves.
    pub help: &'static str,
}

macro_rules! metrics {
    ($( $variant:ident = $kind:ident $name:literal $labels:literal $help:literal; )+) => {
        /// A row of [`TABLE`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Metric { $( #[doc = $help] $variant, )+ }

        /// Every metric of a shard, in the order of [`Metric`].
        pub const TABLE: &[Row] = &[ $( Row { name: $name, labels: $labels, kind: Kind::$kind, help: $help }, )+ ];
    };
}

metrics! {
    ConnectionsAccepted = Counter "ringway_connections_accepted_total" "" "TCP connections accepted on the client port.";
    ConnectionsOpen = Gauge "ringway_connections_open" "" "Client connections now, from accept to slot reuse.";
    ConnectionsUpgraded = Counter "ringway_upgrades_total" "" "Upgrades answered with 101.";
    SessionsConnected = Counter "ringway_sessions_connected_total" "" "Connect commands answered with a result.";
    PeerClosed = Counter "ringway_connections_ended_total" "by=\"peer\"" "Connections that the peer ended, with or without a Close frame.";
    ServerClosed = Counter "ringway_connections_ended_total" "by=\"server\"" "Connections that Ringway ended; the reason is in ringway_closes_total.";
    IoError = Counter "ringway_connections_ended_total" "by=\"io_error\"" "Connections that ended with a socket error.";
    HandshakeRefusedRequest = Counter "ringway_handshakes_refused_total" "reason=\"bad_request\"" "Upgrade requests that were not a valid WebSocket upgrade (400, 405, 426).";
    HandshakeRefusedPath = Counter "ringway_handshakes_refused_total" "reason=\"path\"" "Upgrade requests for a path that is not served (404).";
    HandshakeRefusedOrigin = Counter "ringway_handshakes_refused_total" "reason=\"origin\"" "Upgrade requests from an origin that is not allowed (403).";
    HandshakeRefusedSize = Counter "ringway_handshakes_refused_total" "reason=\"size\"" "Upgrade requests over handshake_bytes_max (431).";
    HandshakeRefusedDraining = Counter "ringway_handshakes_refused_total" "reason=\"draining\"" "Upgrade requests that came while clients leave (503). Load balancers that send some have not noticed that /ready fails.";
    HandshakeRefusedRate = Counter "ringway_handshakes_refused_total" "reason=\"rate\"" "Upgrade requests over upgrades_per_s_max (503): clients come back by themselves, later each time. A few in a reconnect storm protect who is connected; many without one mean that the limit is too low.";
    HandshakeTimeout = Counter "ringway_handshakes_refused_total" "reason=\"timeout\"" "Connections that did not finish their upgrade or hello within handshake_timeout_ms.";
    AcceptPaused = Counter "ringway_accept_paused_total" "" "Times a shard stopped accepting because all its connection slots were taken.";
    MessagesReceived = Counter "ringway_client_messages_received_total" "" "WebSocket data messages received from clients.";
    UpgradesDeflate = Counter "ringway_upgrades_deflate_total" "" "Upgrades that negotiated permessage-deflate.";
    MessagesInflated = Counter "ringway_messages_inflated_total" "" "Compressed messages received from clients and inflated.";
    InflateBytesIn = Counter "ringway_inflate_bytes_total" "side=\"compressed\"" "Compressed bytes taken from clients' messages.";
    InflateBytesOut = Counter "ringway_inflate_bytes_total" "side=\"inflated\"" "Bytes that they became; divided by the compressed ones it is their ratio.";
    InflateRefusedSize = Counter "ringway_inflate_refused_total" "reason=\"size\"" "Compressed messages that were longer than message_bytes_max when inflated (1009).";
    InflateRefusedRatio = Counter "ringway_inflate_refused_total" "reason=\"ratio\"" "Compressed messages over inflate_ratio_max (1009).";
    InflateRefusedCorrupt = Counter "ringway_inflate_refused_total" "reason=\"corrupt\"" "Compressed messages that could not be inflated (1002): broken, cut off, or made with a window kept from an earlier message.";
    InflatesDeferred = Counter "ringway_inflates_deferred_total" "" "Times a client's compressed messages had to wait for a later turn: inflate_bytes_per_turn_max.";
    CommandsReceived = Counter "ringway_client_commands_total" "" "Client protocol commands received.";
    CommandErrors = Counter "ringway_client_command_errors_total" "" "Commands answered with an error object.";
    UsersOpen = Gauge "ringway_users" "" "Users with a connection, counted on each shard where they have one.";
    UserLimitRefused = Counter "ringway_user_limit_refused_total" "reason=\"limit\"" "Connections refused (3504) because their user had connections_per_user_max.";
    UserLimitInDoubt = Counter "ringway_user_limit_refused_total" "reason=\"in_doubt\"" "Connections refused for now (error 111) because their user had connections_per_user_max, some of them on a node that seems to be gone and whose lease still holds.";
    UserLimitUnchecked = Counter "ringway_user_limit_unchecked_total" "" "Connections let in by this node's own count, because the engine did not say how many their user has on the fleet.";
    UserLimitForgotten = Counter "ringway_user_limit_forgotten_total" "" "Users whose number of connections the engine was not told on its return, because 262,144 of one shard waited for it: it may count them too high until they connect to this node again.";
    TokensInvalid = Counter "ringway_tokens_refused_total" "reason=\"invalid\"" "Tokens that were malformed, wrongly signed, not for this server, revoked, or for another user or channel.";
    TokensExpired = Counter "ringway_tokens_refused_total" "reason=\"expired\"" "Tokens whose time was over; clients fetch a new one.";
    MessagesUnreadable = Counter "ringway_messages_unreadable_total" "" "Messages of backends to a JSON client that are no JSON; not delivered.";
    PublicationsLimited = Counter "ringway_publications_limited_total" "scope=\"connection\"" "Publishes of clients over publish_rate_per_connection, refused for now.";
    PingsSent = Counter "ringway_pings_sent_total" "" "Application pings sent.";
    ReadsDeferred = Counter "ringway_reads_deferred_total" "" "Times a connection was left with unread data: per-turn limit or back-pressure.";
    SubscriptionsOpen = Gauge "ringway_subscriptions_open" "" "Client subscriptions now.";
    SubscribesRefused = Counter "ringway_subscribes_refused_total" "" "Subscribe commands answered with an error.";
    ChannelsOwned = Gauge "ringway_channels_owned" "" "Channels this shard owns now.";
    ChannelsEvicted = Counter "ringway_channels_evicted_total" "" "Idle channels forgotten; they return under a new epoch.";
    ChannelsFollowed = Gauge "ringway_channels_followed" "" "Channels with a subscriber on this shard now.";
    PublicationsOwned = Counter "ringway_publications_total" "" "Publications given an offset by this shard.";
    PublicationsDuplicate = Counter "ringway_publications_duplicate_total" "" "Publishes answered from an idempotency key.";
    PublicationsRefused = Counter "ringway_publications_refused_total" "" "Publishes refused: invalid payload, size, permission, limit.";
    PublicationsRateLimited = Counter "ringway_publications_rate_limited_total" "" "Publishes of clients refused because of the namespace's publish_rate_per_channel.";
    ChannelsRefused = Counter "ringway_channels_refused_total" "" "Channels that were not made because of channels_per_shard_max, of the shard or of the namespace.";
    IdempotencyKeysDropped = Counter "ringway_idempotency_keys_dropped_total" "" "Keys forgotten before idempotency_window_ms because of idempotency_keys_max.";
    HistoryDropped = Counter "ringway_history_dropped_total" "" "Publications forgotten before their age because of history_bytes_max.";
    HistoryBytes = Gauge "ringway_history_bytes" "" "Bytes held in history windows now.";
    HistoryPublications = Gauge "ringway_history_publications" "" "Publications held in history windows now.";
    RecoveriesDone = Counter "ringway_recoveries_total" "result=\"recovered\"" "Subscribes with recover that were answered recovered:true.";
    RecoveriesFailed = Counter "ringway_recoveries_total" "result=\"not_recovered\"" "Subscribes with recover that were answered recovered:false.";
    RecoveriesTooLarge = Counter "ringway_recoveries_too_large_total" "" "Recoveries that were possible but did not fit half the client's outbox; answered recovered:false.";
    PresenceMembers = Gauge "ringway_presence_members" "" "Members of channels that this shard owns now.";
    JoinLeaveTold = Counter "ringway_join_leave_told_total" "" "Joins and leaves told to watchers, each counted once whatever their number.";
    JoinLeaveDropped = Counter "ringway_join_leave_dropped_total" "" "Joins and leaves of channels with watchers not told because of join_leave_members_max.";
    ChannelCalls = Counter "ringway_channel_calls_total" "" "Calls about presence and history answered by this shard as the channel's owner.";
    ChannelCallsTooLarge = Counter "ringway_channel_calls_too_large_total" "" "Presence calls refused because of presence_members_max.";
    ListingsCut = Counter "ringway_listings_cut_total" "" "Listings of channels answered before they were complete, because too many were under way.";
    UsersOnline = Gauge "ringway_users_online" "" "Distinct users with a connection on the node whose owner is this shard.";
    UserCalls = Counter "ringway_user_calls_total" "" "Calls about a user that this shard passed on to the cores with connections of that user.";
    Deliveries = Counter "ringway_deliveries_total" "" "Publications put into a connection's outbox.";
    FanoutsSliced = Counter "ringway_fanouts_sliced_total" "" "Fan-outs that took more than one turn.";
    Writes = Counter "ringway_writes_total" "" "Writes to client and ingest sockets.";
    WritesShort = Counter "ringway_writes_short_total" "" "Writes of which the socket took only a part, or nothing.";
    WriteBytes = Counter "ringway_write_bytes_total" "" "Bytes written to sockets.";
    ReadBytes = Counter "ringway_read_bytes_total" "" "Bytes read from sockets.";
    FanoutBacklogBytes = Gauge "ringway_fanout_backlog_bytes" "" "Bytes of publications that wait for their fan-out on this shard; over fanout_backlog_bytes_max it takes nothing more from other shards.";
    OutboxDroppedOldest = Counter "ringway_outbox_publications_dropped_total" "reason=\"drop_oldest\"" "Publications dropped from full outboxes because their namespace has slow_consumer = drop_oldest.";
    OutboxConflated = Counter "ringway_outbox_publications_dropped_total" "reason=\"conflate\"" "Publications that a newer one of their channel replaced before they were written: slow_consumer = conflate.";
    OutboxOverflows = Counter "ringway_outbox_overflows_total" "" "Connections whose outbox reached outbox_bytes_max.";
    IngestConnectionsOpen = Gauge "ringway_ingest_connections_open" "" "Backend connections now.";
    IngestPublishes = Counter "ringway_ingest_publishes_total" "" "Publishes received over ingest.";
    FleetBatches = Counter "ringway_fleet_batches_total" "" "Batches of publications sent to the backplane, repetitions included.";
    FleetPublishesRefused = Counter "ringway_fleet_refused_total" "what=\"publish\"" "Publishes refused because the backplane could not be reached for backplane_wait_ms, or backplane_queue_bytes_max waited.";
    FleetSubscribesRefused = Counter "ringway_fleet_refused_total" "what=\"subscribe\"" "Subscribes refused because the backplane could not be reached for backplane_wait_ms.";
    FleetQueuedBytes = Gauge "ringway_fleet_queued_bytes" "" "Bytes of publications that wait for the backplane.";
    FleetFollows = Counter "ringway_fleet_follows_total" "" "Times a channel's interest was registered and its position read.";
    FleetUnfollows = Counter "ringway_fleet_unfollows_total" "" "Channels given up interest_linger_ms after their last subscriber.";
    FleetFed = Counter "ringway_fleet_publications_total" "" "Publications that the backplane brought and that went out.";
    FleetFedAgain = Counter "ringway_fleet_publications_ignored_total" "reason=\"known\"" "Publications that came again.";
    FleetFedHeld = Counter "ringway_fleet_holes_total" "" "Batches that did not continue what had gone out; the channel was read again.";
    FleetHeldDropped = Counter "ringway_fleet_publications_ignored_total" "reason=\"held\"" "Batches dropped because too many bytes of one channel waited for a hole to be filled; it was read again.";
    FleetFedToNobody = Counter "ringway_fleet_publications_ignored_total" "reason=\"nobody\"" "Messages about channels without subscribers here.";
    FleetFedUnreadable = Counter "ringway_fleet_publications_ignored_total" "reason=\"unreadable\"" "Publications of another kind than this node's rules say, or of an unknown layout. Do all nodes have the same namespaces?";
    FleetPresenceQuestions = Counter "ringway_fleet_presence_questions_total" "" "Presence calls that were passed on to all nodes with subscribers.";
    FleetPresencePartial = Counter "ringway_fleet_presence_partial_total" "" "Presence calls answered without a node that did not answer in time.";
    FleetPresenceRefused = Counter "ringway_fleet_presence_refused_total" "" "Presence calls refused as busy because 1,024 of one shard waited for other nodes. Does one of them hang?";
    FleetLonelyCut = Counter "ringway_fleet_unfollows_early_total" "" "Channels given up before interest_linger_ms was over because too many of one shard lingered.";
    HandOversParked = Counter "ringway_hand_overs_total" "what=\"parked\"" "Connections of which a drain has parked what only this node knew: subscriptions and info given at run time.";
    HandOversFailed = Counter "ringway_hand_overs_total" "what=\"failed\"" "Connections whose things the engine did not take; their users come back without them.";
    HandOversLate = Counter "ringway_hand_overs_total" "what=\"late\"" "Connections that a drain has closed before their things were known to be parked: hand_over_wait_ms was over.";
    HandOversDisplaced = Counter "ringway_hand_overs_total" "what=\"displaced\"" "Connections parked before that were dropped because their user had more than parked_per_user_max.";
    HandOversCut = Counter "ringway_hand_overs_total" "what=\"cut\"" "Subscriptions that were not parked because their connection had more than parked_bytes_max.";
    HandOversRestored = Counter "ringway_hand_overs_total" "what=\"restored\"" "Connections whose parked things were given to a client that came here.";
    HandOverQuestions = Counter "ringway_hand_over_questions_total" "" "Connect commands for which the engine was asked whether something is parked; only while some node drains and parked_ttl_ms behind it.";
    FleetResets = Counter "ringway_fleet_resets_total" "" "Channels whose subscribers were told that publications may be missing (2500).";
    IngestAcks = Counter "ringway_ingest_acks_total" "" "Publishes acknowledged over ingest.";
    IngestErrors = Counter "ringway_ingest_errors_total" "" "Publishes or frames answered with an error over ingest.";
    IngestAuthFailures = Counter "ringway_ingest_auth_failures_total" "" "Hellos with a wrong token or version.";
    IngestCalls = Counter "ringway_ingest_calls_total" "" "Calls of the server API received over ingest.";
    IngestCallsRefused = Counter "ringway_ingest_calls_refused_total" "" "Calls over ingest that were answered with an error.";
    EventsKept = Counter "ringway_events_total" "" "Events of clients kept for backends.";
    EventsSent = Counter "ringway_events_sent_total" "" "Events sent to backends, each time they are sent.";
    EventsResent = Counter "ringway_events_resent_total" "" "Events that their backend had not acknowledged when it went; they are sent again.";
    EventsAcknowledged = Counter "ringway_events_done_total" "how=\"acknowledged\"" "Events that a backend has acknowledged.";
    EventsAnswered = Counter "ringway_events_done_total" "how=\"answered\"" "Events that a backend has answered.";
    EventsLate = Counter "ringway_events_late_total" "" "Acknowledgements and answers for events that were given up before, or sent elsewhere since.";
    EventsBroken = Counter "ringway_event_answers_broken_total" "" "Answers of another kind than their event, out of range, or with JSON that is none; the client gets error 100. A bug of the backend.";
    EventsPending = Gauge "ringway_events_pending" "" "Events kept now: waiting, or not yet acknowledged or answered.";
    EventsPendingBytes = Gauge "ringway_events_pending_bytes" "" "Bytes of the events kept now.";
    EventBackends = Gauge "ringway_event_backends" "" "Backends that take events now, as each shard knows them.";
    EventsFullConnect = Counter "ringway_events_dropped_total" "kind=\"connect\",reason=\"full\"" "Connect events dropped at a bound of events_pending, or too large for a frame.";
    EventsFullDisconnect = Counter "ringway_events_dropped_total" "kind=\"disconnect\",reason=\"full\"" "Disconnect events, likewise.";
    EventsFullSubscribe = Counter "ringway_events_dropped_total" "kind=\"subscribe\",reason=\"full\"" "Subscribe events, likewise.";
    EventsFullUnsubscribe = Counter "ringway_events_dropped_total" "kind=\"unsubscribe\",reason=\"full\"" "Unsubscribe events, likewise.";
    EventsFullPublish = Counter "ringway_events_dropped_total" "kind=\"publish\",reason=\"full\"" "Publish events, likewise.";
    EventsFullRpc = Counter "ringway_events_dropped_total" "kind=\"rpc\",reason=\"full\"" "Rpc events, likewise.";
    EventsFullMessage = Counter "ringway_events_dropped_total" "kind=\"message\",reason=\"full\"" "Message events, likewise.";
    EventsExpiredConnect = Counter "ringway_events_dropped_total" "kind=\"connect\",reason=\"deadline\"" "Connect events that no backend acknowledged within event_deadline_ms.";
    EventsExpiredDisconnect = Counter "ringway_events_dropped_total" "kind=\"disconnect\",reason=\"deadline\"" "Disconnect events, likewise.";
    EventsExpiredSubscribe = Counter "ringway_events_dropped_total" "kind=\"subscribe\",reason=\"deadline\"" "Subscribe events, likewise.";
    EventsExpiredUnsubscribe = Counter "ringway_events_dropped_total" "kind=\"unsubscribe\",reason=\"deadline\"" "Unsubscribe events, likewise.";
    EventsExpiredPublish = Counter "ringway_events_dropped_total" "kind=\"publish\",reason=\"deadline\"" "Publish events, likewise.";
    EventsExpiredRpc = Counter "ringway_events_dropped_total" "kind=\"rpc\",reason=\"deadline\"" "Rpc events, likewise.";
    EventsExpiredMessage = Counter "ringway_events_dropped_total" "kind=\"message\",reason=\"deadline\"" "Message events, likewise.";
    AsksBusy = Counter "ringway_event_asks_refused_total" "reason=\"busy\"" "Questions of clients refused at a bound of events_pending.";
    AsksUnserved = Counter "ringway_event_asks_refused_total" "reason=\"no_backend\"" "Questions of clients that no backend takes.";
    AsksTooLarge = Counter "ringway_event_asks_refused_total" "reason=\"too_large\"" "Questions of clients too large for an ingest frame.";
    AsksTimedOut = Counter "ringway_event_asks_refused_total" "reason=\"timeout\"" "Questions of clients that no backend answered within event_answer_timeout_ms.";
    LaneMessagesSent = Counter "ringway_lane_messages_sent_total" "" "Messages sent to other shards.";
    LaneMessagesPublish = Counter "ringway_lane_messages_total" "kind=\"publish\"" "Messages to other shards with publishes for the channels' owners. Publishes of a backend that came together are one message per owner.";
    LaneMessagesDeliver = Counter "ringway_lane_messages_total" "kind=\"deliver\"" "Messages to other shards with a publication, join or leave: one for each other shard with interest.";
    LaneMessagesAck = Counter "ringway_lane_messages_total" "kind=\"ack\"" "Messages to other shards, and to the control plane, with owners' answers to publishes: one for each message with publishes.";
    LaneMessagesOther = Counter "ringway_lane_messages_total" "kind=\"other\"" "All other messages to other shards and to the control plane: subscribes, calls, events.";
    LanePublishes = Counter "ringway_lane_publishes_total" "" "Publishes within the messages of kind publish.";
    LaneAcks = Counter "ringway_lane_acks_total" "" "Answers within the messages of kind ack.";
    LaneBatchesSent = Counter "ringway_lane_batches_sent_total" "" "Batches of messages put into another shard's queue.";
    LaneFull = Counter "ringway_lane_full_total" "" "Times a batch had to wait because the target's queue was full.";
    LaneSpillBytes = Gauge "ringway_lane_spill_bytes" "" "Bytes waiting in this shard for full queues of others.";
    LaneDropped = Counter "ringway_lane_publications_dropped_total" "" "Publications dropped at lane_spill_bytes_max; subscribers were told (2500).";
    SubscribesAnsweredHere = Counter "ringway_subscribes_answered_here_total" "" "Subscribes that needed no word of the channel's owner: the shard followed the channel already.";
    LaneStale = Counter "ringway_lane_stale_total" "" "Messages that arrived for a channel or connection already gone.";
    LaneWakes = Counter "ringway_lane_wakes_total" "" "Times this shard woke a sleeping shard.";
    Turns = Counter "ringway_loop_turns_total" "" "Turns of the loop.";
    TurnSleeps = Counter "ringway_loop_sleeps_total" "" "Turns that waited in the kernel.";
    TurnsLate = Counter "ringway_loop_turns_late_total" "" "Turns that came over a second behind the one before: this shard had too little of its core. Nobody is closed for a missing pong for pong_timeout_ms behind one.";
    CqOverflows = Counter "ringway_ring_cq_overflows_total" "" "Turns that found the completion queue overflowed; multishots were re-armed.";
    MultishotRearms = Counter "ringway_ring_multishot_rearms_total" "" "Accept and poll multishots that ended and were armed again.";
    LateCompletions = Counter "ringway_ring_late_completions_total" "" "Completions for a connection slot that had been reused.";
    DrainState = Gauge "ringway_drain_state" "" "0: serving. 1: draining, in the grace in which load balancers notice. 2: clients leave.";
    DrainLeft = Gauge "ringway_drain_clients_left" "" "Clients that a drain has not told to leave yet. Those who left by themselves are in it until their turn.";
    DrainPaced = Counter "ringway_drain_clients_total" "how=\"paced\"" "Clients that a drain has sent away at drain_rate_per_s (3001).";
    DrainLeavesWaiting = Gauge "ringway_drain_leaves_waiting" "" "Members of channels whose connections a drain has ended and whose leaves are told drain_leave_delay_ms later.";
    DrainLeavesEarly = Counter "ringway_drain_leaves_early_total" "" "Leaves told before drain_leave_delay_ms was over because 131,072 of one shard waited: those members may be seen to leave and come back.";
    DrainForced = Counter "ringway_drain_clients_total" "how=\"forced\"" "Clients that were closed all at once (3001): drain_deadline_ms was over, or a second signal hurried it. They come back all at once.";
    AcceptDropped = Counter "ringway_accept_dropped_total" "" "Connections that were accepted while the last slot was being taken, and closed at once.";
    AcceptErrors = Counter "ringway_accept_errors_total" "" "Accepts that failed (out of descriptors or memory, mostly).";
    EngineNotes = Counter "ringway_notes_total" "" "Rare facts worth a log line.";
}

/// How many rows the table has.
pub const COUNT: usize = TABLE.len();

/// The numbers of one shard.
#[derive(Clone, Debug)]
pub struct Metrics {
    values: [u64; COUNT],
    closes: [u64; CloseReason::COUNT],
}

impl Metrics {
    /// All zero.
    pub const fn new() -> Self {
        Metrics { values: [0; COUNT], closes: [0; CloseReason::COUNT] }
    }

    /// Adds to a counter or gauge.
    #[inline]
    pub fn add(&mut self, metric: Metric, n: u64) {
        self.values[metric as usize] = self.values[metric as usize].wrapping_add(n);
    }

    /// Takes from a gauge.
    #[inline]
    pub fn sub(&mut self, metric: Metric, n: u64) {
        self.values[metric as usize] = self.values[metric as usize].wrapping_sub(n);
    }

    /// Sets a gauge.
    #[inline]
    pub fn set(&mut self, metric: Metric, value: u64) {
        self.values[metric as usize] = value;
    }

    /// Counts a connection that Ringway ended for `reason`.
    #[inline]
    pub fn closed(&mut self, reason: CloseReason) {
        self.closes[reason as usize] += 1;
    }

    /// The value of one row.
    pub const fn get(&self, metric: Metric) -> u64 {
        self.values[metric as usize]
    }

    /// The rows in table order.
    pub const fn values(&self) -> &[u64; COUNT] {
        &self.values
    }

    /// Ended connections by reason, in the order of [`CloseReason::ALL`].
    pub const fn closes(&self) -> &[u64; CloseReason::COUNT] {
        &self.closes
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
