//! What one seed makes of a run: how many shards, clients and backends there are and where they sit, how tight the
//! limits are, and which faults may come.
//!
//! In: a seed. Out: a [`Plan`] that nothing changes afterwards.
//! Invariant: every second plan puts owner, subscriber and publisher on three different shards of four.

use std::sync::Arc;

use ringway_engine::ids::CoreId;
use ringway_engine::limits::Limits;
use ringway_engine::namespace::{EventMode, Namespace};
use ringway_engine::options::{Access, Options, Origins};
use ringway_engine::route;
use ringway_engine::tokens::Tokens;
use ringway_tests::Encoding;
use ringway_tests::client::PATH;

use crate::dice::Dice;
use crate::rules::{self, COMMON, Kind, Numbers};

/// The secret of backends.
pub(crate) const TOKEN: &[u8] = b"simulated";
/// User ids; the anonymous ones have none.
pub(crate) const USERS: [&str; 4] = ["ann", "bob", "cyd", ""];
/// Longer than any run.
pub(crate) const FOREVER_MS: u64 = 100_000_000;

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) boot: u64,
    pub(crate) shards: usize,
    pub(crate) limits: Limits,
    pub(crate) channels: Vec<ChannelPlan>,
    pub(crate) clients: Vec<ClientPlan>,
    /// The shard of each backend.
    pub(crate) backends: Vec<usize>,
    /// What the rules of channels are made of.
    pub(crate) numbers: Numbers,
    /// Batches that wait for one shard at most.
    pub(crate) queue_batches_max: usize,
    /// Bytes that a client's socket holds before the server's next write is short.
    pub(crate) socket_bytes_max: usize,
    /// Steps of the workload.
    pub(crate) steps: usize,
    /// Spills are so small that publications between shards are lost.
    pub(crate) lossy: bool,
    /// Outboxes are so small that slow clients are disconnected.
    pub(crate) slow: bool,
    /// Payloads of some ten thousand bytes are among the publications.
    pub(crate) large: bool,
    /// Slow clients lose publications and are not closed.
    pub(crate) gentle: bool,
    /// Shards stop for a while, so that what is meant for them piles up.
    pub(crate) stalls: bool,
    /// Clients have tokens; without, a backend admits them or everybody may come in.
    pub(crate) tokens: bool,
    /// Backends hear of what clients do, and decide.
    pub(crate) events: bool,
    /// They admit clients.
    pub(crate) connect_asked: bool,
    /// A channel whose prefix has no namespace belongs to the default one.
    pub(crate) catch_all: bool,
    /// The rules are replaced now and then.
    pub(crate) reloads: bool,
}

#[derive(Debug)]
pub(crate) struct ChannelPlan {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) owner: usize,
    pub(crate) rules: Namespace,
    /// Has offsets.
    pub(crate) history: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct ClientPlan {
    pub(crate) encoding: Encoding,
    /// The shard it connects to, mostly.
    pub(crate) home: usize,
    /// Empty: anonymous.
    pub(crate) user: &'static str,
    /// It offers to take deltas, and numbers in place of names.
    pub(crate) thrifty: bool,
    /// It asks for joins and leaves.
    pub(crate) watches: bool,
}

impl Plan {
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0x517A_7E5E_ED00_0001);
        let roles_apart = seed.is_multiple_of(2);
        let shards = if roles_apart { 4 } else { dice.pick(&[1, 2, 2, 3, 5, 7]) };
        let lossy = shards > 1 && dice.one_in(3);
        let slow = dice.one_in(4);
        let large = !slow && dice.one_in(4);
        let channels = dice.between(1, if slow || lossy { 2 } else { 5 });
        // On few shards, so that fan-outs have several to go to.
        let homes: Vec<_> = (0..dice.between(1, shards)).map(|_| dice.below(shards)).collect();
        let clients = dice.between(2, 14);
        let backends = dice.between(2, 4);
        let history_lasts = dice.one_in(2);
        let mut plan = Plan {
            seed,
            boot: dice.seed(),
            shards,
            limits: limits(&mut dice, lossy, slow),
            channels: (0..channels).map(|n| channel(&mut dice, n, shards)).collect(),
            clients: (0..clients).map(|_| client(&mut dice, &homes)).collect(),
            backends: (0..backends).map(|_| dice.below(shards)).collect(),
            numbers: Numbers {
                history_size: dice.pick(&[1, 4, 32, 500, 5_000]) as u32,
                history_lasts,
                whole: false,
                events: false,
                forced: false,
                coalesce: false,
            },
            queue_batches_max: if lossy { dice.between(1, 4) } else { dice.pick(&[1, 2, 8, 64]) },
            socket_bytes_max: if slow { dice.between(64, 2_000) } else { dice.pick(&[64, 700, 5_000, 200_000]) },
            steps: dice.between(3_000, 9_000),
            lossy,
            slow,
            large,
            stalls: lossy || dice.one_in(3),
            gentle: false,
            tokens: false,
            events: false,
            connect_asked: false,
            catch_all: false,
            reloads: false,
        };
        plan.channels.iter_mut().for_each(|channel| channel.rules = channel.kind.rules(plan.numbers));
        if lossy && let Some(last) = plan.backends.last_mut() {
            // What comes in at the owner itself reaches it unhindered, and is too much for the lanes.
            *last = plan.channels[0].owner;
        }
        if roles_apart {
            let owner = plan.channels[0].owner;
            (plan.clients[0].home, plan.backends[0]) = ((owner + 1) % 4, (owner + 2) % 4);
        }
        plan
    }

    /// A plan in which clients use the whole protocol.
    pub(crate) fn whole(seed: u64) -> Self {
        let mut plan = Plan::new(seed);
        let mut dice = Dice::new(seed ^ 0x0B5E_55ED_0000_0002);
        plan.numbers = Numbers { whole: true, forced: dice.one_in(3), coalesce: dice.one_in(2), ..plan.numbers };
        plan.tokens = !dice.one_in(4);
        plan.events = dice.one_in(2);
        plan.numbers.events = plan.events;
        plan.connect_asked = plan.events && !plan.tokens;
        plan.catch_all = dice.one_in(2);
        plan.reloads = dice.one_in(3);
        let mut kinds: Vec<_> = (0..dice.between(2, 5)).map(|_| dice.pick(&COMMON)).collect();
        kinds.push(dice.pick(&[Kind::Crowd, Kind::Token]));
        if plan.events {
            kinds.push(Kind::Asked);
        }
        if plan.reloads {
            kinds.push(if plan.catch_all { Kind::Late } else { Kind::Fleeting });
        }
        if plan.slow {
            kinds.extend([Kind::Oldest, Kind::Newest]);
        }
        plan.channels.truncate(1);
        if plan.slow && dice.one_in(2) {
            // Nothing but what slow clients may lose, so that they are not closed at once.
            plan.channels = vec![channel_of(Kind::Oldest, "first", plan.shards)];
            kinds = vec![Kind::Oldest; 5];
            kinds.push(Kind::Newest);
            plan.reloads = false;
            plan.gentle = true;
        }
        let names = kinds.into_iter().enumerate().map(|(n, kind)| (kind, format!("{n}-{}", dice.below(1_000))));
        let users = USERS.iter().filter(|user| !user.is_empty() && (plan.tokens || plan.connect_asked));
        let personal = users.map(|user| (Kind::Direct, format!("#{user}")));
        let names: Vec<_> = names.chain(personal).collect();
        let shards = plan.shards;
        plan.channels.extend(names.into_iter().map(|(kind, rest)| channel_of(kind, &rest, shards)));
        plan.channels.iter_mut().for_each(|channel| channel.rules = channel.kind.rules(plan.numbers));
        for client in &mut plan.clients {
            client.user = if plan.tokens || plan.connect_asked { dice.pick(&USERS) } else { "" };
            client.thrifty = plan.gentle || dice.one_in(2);
            client.watches = dice.one_in(2);
        }
        plan.steps *= 2;
        plan.limits.expired_grace_ms = dice.pick(&[200, 25_000]);
        plan.limits.connect_timeout_ms = dice.pick(&[400, 15_000]);
        plan.limits.event_answer_timeout_ms = dice.pick(&[300, 4_000]);
        plan.limits.events_pending_max = dice.pick(&[20, 65_536, 65_536]);
        plan.limits.events_pending_per_connection_max = dice.pick(&[4, 256, 256]);
        plan.limits.events_window_per_backend = dice.pick(&[1, 3, 1_024]);
        plan
    }

    /// Where the channel stands among `channels`.
    pub(crate) fn number_of(&self, name: &str) -> usize {
        let number = self.channels.iter().position(|channel| channel.name == name);
        number.unwrap_or_else(|| panic!("an unknown channel {name:?}"))
    }

    pub(crate) fn options(&self, core: usize, tokens: Arc<dyn Tokens>) -> Options {
        Options {
            core: CoreId(core as u16),
            shards: self.shards as u16,
            seed: self.seed,
            boot: self.boot,
            limits: self.limits.clone(),
            namespaces: rules::namespaces(self.numbers, self.catch_all, 0).into(),
            tokens,
            access: Access {
                anonymous: !self.connect_asked,
                origins: Origins::Any,
                ingest_tokens: vec![TOKEN.into()],
                personal_channel: self.numbers.whole,
                personal_namespace: Kind::Direct.namespace_name().into(),
                connect_events: match (self.connect_asked, self.events) {
                    (true, _) => EventMode::Ask,
                    (false, true) => EventMode::Notify,
                    (false, false) => EventMode::Off,
                },
                rpc_events: self.events,
                ..Access::closed(PATH)
            },
            fleet: None,
            utf8: |bytes| std::str::from_utf8(bytes).is_ok(),
        }
    }
}

fn limits(dice: &mut Dice, lossy: bool, slow: bool) -> Limits {
    let defaults = Limits::DEFAULT;
    Limits {
        connections_per_shard_max: 1_000,
        outbox_bytes_max: if slow { dice.between(2_000, 4_000) as u32 } else { 1 << 30 },
        requests_in_flight_per_connection_max: dice.pick(&[1, 2, 8, 1_024]),
        ping_interval_ms: dice.pick(&[0, 6_000]),
        pong_timeout_ms: 5_000,
        channel_idle_ms: dice.pick(&[500, 600_000]),
        recovery_publications_max: dice.pick(&[3, 500, 500]),
        recovery_bytes_max: if slow { 1_000 } else { defaults.recovery_bytes_max },
        ingest_credit_messages: if slow || lossy { 64 } else { dice.pick(&[1, 7, 64]) },
        lane_spill_bytes_max: if lossy { dice.between(500, 3_000) as u32 } else { 1 << 30 },
        lane_batch_messages_max: if lossy { dice.between(1, 16) as u32 } else { dice.pick(&[1, 2, 5, 1_024]) },
        fanout_deliveries_per_turn_max: dice.pick(&[1, 2, 3, 7, 4_096]),
        ..defaults
    }
}

fn channel(dice: &mut Dice, number: usize, shards: usize) -> ChannelPlan {
    let history = number == 0 || !dice.one_in(4);
    let kind = if history { Kind::Stream } else { Kind::Plain };
    channel_of(kind, &format!("channel-{number}-{}", dice.below(1_000)), shards)
}

fn channel_of(kind: Kind, rest: &str, shards: usize) -> ChannelPlan {
    let name = match kind.namespace_name() {
        "" => rest.to_owned(),
        prefix => format!("{prefix}:{rest}"),
    };
    let owner = owner_of(&name, shards);
    let history = !matches!(kind, Kind::Plain | Kind::Big);
    ChannelPlan { name, kind, owner, rules: Namespace::closed(""), history }
}

/// The shard that owns a channel, or a user.
pub(crate) fn owner_of(name: &str, shards: usize) -> usize {
    route::owner(route::bucket(name), shards as u16).0 as usize
}

fn client(dice: &mut Dice, homes: &[usize]) -> ClientPlan {
    let (encoding, home) = (dice.pick(&[Encoding::Json, Encoding::Protobuf]), dice.pick(homes));
    ClientPlan { encoding, home, user: "", thrifty: false, watches: false }
}
