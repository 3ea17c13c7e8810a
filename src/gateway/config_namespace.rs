//! The configuration table of one namespace: one row per option.
//!
//! In: nothing. Out: [`NAMESPACE_ROWS`], read as the rows of `config_table.rs` are.
//! Invariants: every field of `Namespace` but its name has a row (a test checks); the text of a row says what a reload
//! means for subscriptions that are live; what may not change under a live channel needs a restart.

use ringway_engine::namespace::{Allow, Durability, EventMode, JoinLeaveAbove, Namespace, RecoveryMode, SlowConsumer};
use ringway_wire::ingest::PayloadKind;

use crate::config_table::{Field, Row, choice, flag, integer};

macro_rules! options {
    ($( $key:ident, $restart:ident, $field:expr; $what:literal; $effect:literal; $when:literal; )+) => {
        /// Rows of one namespace; in the file under `[namespace]` (the default one) or `[[namespaces]]`.
        pub const NAMESPACE_ROWS: &[Row<Namespace>] = &[ $( Row {
            key: stringify!($key), field: $field, what: $what, effect: $effect, when: $when,
            restart: $restart,
        }, )+ ];
    };
}
/// For the third column of [`options`].
const RESTART: bool = true;
/// As above.
const RELOAD: bool = false;

macro_rules! allow {
    ($f:ident) => {
        choice!($f: Allow {
            "backend" = Backend,
            "token" = Token,
            "subscriber" = Subscriber,
            "authenticated" = Authenticated,
            "anyone" = Anyone,
        })
    };
}

options! {
    history_size, RELOAD, integer!("publications" 0..=1_000_000, history_size: u32);
        "Publications kept per channel. 0: none. A reload holds from the next publication of a channel.";
        "Memory of each kept publication, per channel: at least its payload.";
        "As many as a client may miss between two connections.";
    history_ttl_ms, RELOAD, integer!("ms" 0..=31_536_000_000, history_ttl_ms: u64);
        "How long a publication is kept. Above 0 when there is history. A reload holds at once, for kept publications too.";
        "Bounds the memory of channels that fell silent.";
        "Above the longest disconnection after which a client should recover.";
    durability, RELOAD, choice!(durability: Durability { "memory" = Memory, "disk" = Disk, "fleet" = Fleet });
        "What an acknowledged publication has survived: \"memory\", it has its offset and stands in the memory of this process. \"disk\" and \"fleet\" are refused: they are not available in this version.";
        "None.";
        "Not in this version.";
    recovery, RELOAD, flag!(recovery);
        "Whether a client may resume from (epoch, offset). Needs history. A reload holds for new subscribes.";
        "A reconnect reads the history window.";
        "Wherever clients must not miss publications.";
    recovery_forced, RELOAD, flag!(recovery_forced);
        "Whether every subscriber recovers, also one that did not ask to. Means nothing without recovery. A reload holds for new subscribes.";
        "Each reconnect of each subscriber reads the history window.";
        "Off when only some clients of a channel need what they missed, and ask for it.";
    recovery_mode, RELOAD, choice!(recovery_mode: RecoveryMode { "stream" = Stream, "cache" = Cache });
        "What a client gets that comes back: \"stream\", all that it missed or nothing; \"cache\", only the newest publication. A reload holds for new subscribes.";
        "\"cache\" answers with one publication at most.";
        "\"cache\" when each publication replaces the one before, as a price or a state does.";
    positioned, RELOAD, flag!(positioned);
        "Whether a subscriber that lost publications is told so (2500), although it does not recover. Needs history. A reload holds for new subscribes.";
        "None.";
        "When clients can load their state anew and must know when to.";
    payload, RESTART, choice!(payload: PayloadKind { "json" = Json, "bytes" = Bytes });
        "What payloads are: JSON text, checked once at publish, or bytes, which only Protobuf clients can receive. Channels hold publications of one kind, so a change waits for a restart.";
        "None.";
        "bytes for binary feeds.";
    subscribe, RELOAD, allow!(subscribe);
        "Which clients may subscribe by themselves. \"token\": those with a subscription token, so none where no key for tokens is configured; \"backend\": none, with or without a token. A $ at the start of a channel's name, or behind its prefix, always asks for a token. A reload holds for new subscribes.";
        "None.";
        "Open what the application needs, nothing more.";
    publish, RELOAD, allow!(publish);
        "Which clients may publish. \"backend\": only backends, over ingest or the HTTP API; \"subscriber\": those in the channel. A reload holds at once.";
        "None.";
        "For chats without a backend in between.";
    read_presence, RELOAD, allow!(read_presence);
        "Which clients may read presence and its counts, where there is presence. A reload holds at once.";
        "An answer grows with the members of the channel.";
        "When clients show who is there.";
    read_history, RELOAD, allow!(read_history);
        "Which clients may read history, where there is history. A reload holds at once.";
        "An answer grows with the publications asked for.";
        "When clients show what was said before they came.";
    user_limited, RELOAD, flag!(user_limited);
        "Whether a name with # admits only the users listed behind it, separated by commas: chat:#anne,bob. They need no other right to subscribe. Off: # is a character as any other. A reload holds for new subscribes, and at once for publishing and reading.";
        "None.";
        "Off when channel names contain # for other reasons.";
    presence, RELOAD, flag!(presence);
        "Whether it is known who is subscribed. A reload holds for new subscribes.";
        "Memory per member of a channel; work per subscribe and unsubscribe.";
        "When clients or backends ask who is there.";
    join_leave, RELOAD, flag!(join_leave);
        "Whether coming and going is told to those subscribers that ask for it. Needs presence. A reload holds for new subscribes.";
        "A push to each watcher per join and leave.";
        "When clients show comings and goings at once.";
    join_leave_forced, RELOAD, flag!(join_leave_forced);
        "Whether it is told to all subscribers, asked or not. Needs join_leave. A reload holds for new subscribes.";
        "A push to each subscriber per join and leave: in large channels the square of their size.";
        "For small channels only.";
    join_leave_members_max, RELOAD, integer!("members" 0..=1_000_000, join_leave_members_max: u32);
        "Members above which a channel stops telling each join and leave; what it tells then is join_leave_above. A reload holds at once.";
        "Bounds the pushes that the churn of a big channel causes.";
        "Raise it when watchers of bigger channels need every name.";
    join_leave_above, RELOAD, choice!(join_leave_above: JoinLeaveAbove { "none" = None, "coalesce" = Coalesce });
        "What a channel above join_leave_members_max tells: nothing, or the newest join or leave of each interval, as a sign that something changed. A reload holds at once.";
        "\"coalesce\": at most one push per watcher and join_leave_interval_ms.";
        "\"coalesce\" when clients read the counts again after a change.";
    join_leave_interval_ms, RELOAD, integer!("ms" 100..=3_600_000, join_leave_interval_ms: u32);
        "Time between two coalesced changes of one channel. A reload holds at once.";
        "See join_leave_above.";
        "Raise it when big channels change all the time.";
    publish_rate_per_connection, RELOAD, integer!("publications a second" 0..=1_000_000, publish_rate_per_connection: u32);
        "Publications of one client connection in all channels of the namespace. Over: error 111 (temporary). 0: no limit. A reload holds at once.";
        "None.";
        "Wherever clients may publish and are not trusted.";
    publish_rate_per_channel, RELOAD, integer!("publications a second" 0..=1_000_000, publish_rate_per_channel: u32);
        "Publications of all clients in one channel. Over: error 111 (temporary). 0: no limit; backends have none. A reload holds at once.";
        "None.";
        "Where a channel has more subscribers than its flood could serve.";
    slow_consumer, RELOAD, choice!(slow_consumer: SlowConsumer { "disconnect" = Disconnect, "drop_oldest" = DropOldest, "conflate" = Conflate });
        "What happens to a client that reads slower than its messages come, at limits.outbox_bytes_max: closed with 3008 and back to recover; or its oldest publications of such channels are dropped; or only the newest of each channel is kept. A reload holds at once.";
        "\"drop_oldest\" and \"conflate\" keep slow clients connected, with holes.";
        "\"conflate\" for tickers and positions, \"drop_oldest\" for feeds where late is worthless.";
    deflate_bytes_min, RELOAD, integer!("bytes" 0..=16_777_216, deflate_bytes_min: u32);
        "JSON payloads of at least so many bytes are compressed, once, for clients that can (client.deflate). 0: never. A reload holds from the next publication.";
        "CPU once per publication, not per subscriber; fewer bytes per delivery.";
        "A few hundred: what is smaller hardly shrinks.";
    delta, RELOAD, flag!(delta);
        "Whether subscribers that ask for it get Fossil deltas against the publication before. A reload holds for new subscribes.";
        "CPU once per publication; the last publication of the channel is kept.";
        "When publications are large and resemble each other.";
    subscribe_events, RELOAD, choice!(subscribe_events: EventMode { "off" = Off, "notify" = Notify, "ask" = Ask });
        "Whether backends on the ingest port are told of subscribes and unsubscribes (\"notify\"), or decide about those that the rules allow (\"ask\"). A reload holds for new subscribes.";
        "One event per subscribe and unsubscribe; with \"ask\" the client waits for a backend's answer.";
        "\"ask\" when rights stand in a database.";
    publish_events, RELOAD, choice!(publish_events: EventMode { "off" = Off, "notify" = Notify, "ask" = Ask });
        "Whether backends on the ingest port are told of clients' publishes (\"notify\"), or decide about those that the rules allow (\"ask\"). A reload holds at once.";
        "One event per publish of a client; with \"ask\" it waits for a backend's answer.";
        "\"ask\" to filter or to store what clients say.";
    channels_per_shard_max, RELOAD, integer!("channels" 0..=100_000_000, channels_per_shard_max: u32);
        "Channels of this namespace that one shard owns at once. Over: error 111 (temporary) for a new channel. 0: only limits.channels_per_shard_max holds. A reload holds for new channels.";
        "Keeps one namespace from using up the channels of all.";
        "Where clients choose channel names.";
}
