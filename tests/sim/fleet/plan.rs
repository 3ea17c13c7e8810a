//! What one seed makes of a run of several nodes: nodes and shards, channels, clients, limits, and which faults may come.
//!
//! In: a seed. Out: a [`FleetPlan`] that nothing changes afterwards.

use std::sync::Arc;

use ringway_engine::ids::CoreId;
use ringway_engine::limits::Limits;
use ringway_engine::namespace::{Allow, Durability, Namespace, Namespaces};
use ringway_engine::options::{Access, Options, Origins};
use ringway_engine::owner::FleetPlace;
use ringway_engine::tokens::{ConnectClaims, SubscribeClaims, TokenAsk, TokenCheck, TokenError, Tokens};
use ringway_tests::Encoding;
use ringway_tests::client::PATH;

use crate::dice::Dice;
use crate::plan::TOKEN;

/// Longer than any run.
const FOREVER_MS: u64 = 100_000_000;
/// Interest is never looked at in a run.
pub(crate) const NEVER_MS: u32 = 100_000_000;
/// From a channel's last use to when it is forgotten.
pub(crate) const IDLE_MS: u64 = 2_000;

/// See the file's header.
#[derive(Debug)]
pub(crate) struct FleetPlan {
    pub(crate) seed: u64,
    pub(crate) nodes: Vec<NodePlan>,
    pub(crate) channels: Vec<ChannelPlan>,
    pub(crate) clients: Vec<ClientPlan>,
    pub(crate) backends: usize,
    pub(crate) history_size: u32,
    pub(crate) limits: Limits,
    pub(crate) socket_bytes_max: usize,
    /// Steps of the workload.
    pub(crate) steps: usize,
    pub(crate) faults: Faults,
}

/// What may go wrong.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// Connections to the engine end, for a while; what is on its way is lost or comes late.
    pub(crate) cuts: bool,
    /// Nodes end without a word, and come back under their name.
    pub(crate) kills: bool,
    /// Nodes are left in order, and come back.
    pub(crate) drains: bool,
    /// Nodes stand still for a while.
    pub(crate) freezes: bool,
    /// The engine comes back empty.
    pub(crate) empties: bool,
    /// The engine's replica takes over, without its last writes.
    pub(crate) failovers: bool,
    /// The engine forgets who is interested; what is fed to a shard is dropped.
    pub(crate) leaks: bool,
}

impl Faults {
    /// The engine's history may lose something.
    pub(crate) const fn lose(self) -> bool {
        self.empties || self.failovers
    }

    /// Everything that the engine is asked and says arrives, though late.
    pub(crate) const fn spare_the_engine(self) -> bool {
        !(self.cuts || self.freezes || self.lose() || self.leaks)
    }
}

#[derive(Debug)]
pub(crate) struct NodePlan {
    pub(crate) shards: usize,
    /// Of its clock.
    wall_offset_ms: i64,
}

/// What a channel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// History and recovery.
    Stream,
    /// Neither: who misses something is not told.
    Fleeting,
    /// The same, and members who hear of each other.
    Crowd,
    /// The same, for subscriptions that orders make.
    Ordered,
}

#[derive(Debug)]
pub(crate) struct ChannelPlan {
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

#[derive(Clone, Debug)]
pub(crate) struct ClientPlan {
    pub(crate) encoding: Encoding,
    pub(crate) user: String,
    /// It keeps positions of subscriptions that the server has made, and brings them along.
    pub(crate) keeps_server_side: bool,
    /// One of several with one user, about whom there are no orders.
    pub(crate) is_visitor: bool,
}

impl FleetPlan {
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0xF1EE_7000_0000_0003);
        let nodes = dice.pick(&[2, 2, 3, 3, 4]);
        let mut faults = Faults {
            cuts: dice.one_in(2),
            kills: dice.one_in(2),
            drains: dice.one_in(2),
            freezes: dice.one_in(4),
            empties: dice.one_in(6),
            failovers: dice.one_in(5),
            leaks: dice.one_in(6),
        };
        if dice.one_in(4) {
            // What is promised where the engine does what it is asked.
            faults = Faults { kills: faults.kills, drains: true, ..Faults::default() };
        }
        let node = |dice: &mut Dice| NodePlan {
            shards: dice.pick(&[1, 1, 2, 2, 3]),
            wall_offset_ms: 5_000 + dice.below(2_000) as i64,
        };
        let streams = dice.between(1, 3);
        let kinds = (0..streams).map(|_| Kind::Stream).chain([Kind::Fleeting, Kind::Crowd, Kind::Ordered]);
        let channels = kinds.enumerate().map(|(number, kind)| {
            let prefix = match kind {
                Kind::Stream => "",
                Kind::Fleeting => "fleeting:",
                Kind::Crowd => "crowd:",
                Kind::Ordered => "ordered:",
            };
            ChannelPlan { name: format!("{prefix}{number}"), kind }
        });
        let channels: Vec<_> = channels.collect();
        let names: Vec<String> =
            channels.iter().map(|channel| format!("{}-{}", channel.name, dice.below(100))).collect();
        let channels = channels.into_iter().zip(names).map(|(channel, name)| ChannelPlan { name, ..channel }).collect();
        let client = |number, dice: &mut Dice| ClientPlan {
            encoding: dice.pick(&[Encoding::Json, Encoding::Protobuf]),
            user: format!("u{number}"),
            keeps_server_side: dice.one_in(2),
            is_visitor: false,
        };
        let visitor = |dice: &mut Dice| ClientPlan {
            user: "visitor".into(),
            is_visitor: true,
            keeps_server_side: false,
            encoding: dice.pick(&[Encoding::Json, Encoding::Protobuf]),
        };
        let mut clients: Vec<_> = (0..dice.between(2, 6)).map(|number| client(number, &mut dice)).collect();
        let connections_per_user_max = if dice.one_in(3) { dice.between(1, 3) as u32 } else { 0 };
        if connections_per_user_max > 0 {
            clients.extend((0..dice.between(2, 5)).map(|_| visitor(&mut dice)));
        }
        FleetPlan {
            seed,
            nodes: (0..nodes).map(|_| node(&mut dice)).collect(),
            channels,
            clients,
            backends: dice.between(1, 2),
            history_size: dice.pick(&[4, 30, 500, 500]) as u32,
            limits: Limits { connections_per_user_max, ..limits(&mut dice, faults.leaks) },
            socket_bytes_max: dice.pick(&[700, 200_000, 200_000]),
            steps: dice.between(300, 1_200),
            faults,
        }
    }

    /// Where the channel stands among `channels`.
    pub(crate) fn number_of(&self, name: &str) -> usize {
        let number = self.channels.iter().position(|channel| channel.name == name);
        number.unwrap_or_else(|| panic!("an unknown channel {name:?}"))
    }

    /// How many clients are nobody's visitors: the first ones.
    pub(crate) fn residents(&self) -> usize {
        self.clients.iter().filter(|client| !client.is_visitor).count()
    }

    /// Whether positions of the channel are known to clients.
    pub(crate) fn has_positions(&self, channel: usize) -> bool {
        self.channels[channel].kind != Kind::Fleeting
    }

    /// The one for orders.
    pub(crate) fn ordered(&self) -> usize {
        self.channels.len() - 1
    }

    pub(crate) fn options(&self, node: usize, boot: u64, core: usize, tokens: Arc<dyn Tokens>) -> Options {
        let shards = self.nodes[node].shards as u16;
        Options {
            core: CoreId(core as u16),
            shards,
            seed: self.seed ^ boot,
            boot,
            limits: self.limits.clone(),
            namespaces: self.namespaces().into(),
            tokens,
            access: Access { origins: Origins::Any, ingest_tokens: vec![TOKEN.into()], ..Access::closed(PATH) },
            fleet: Some(FleetPlace { core: CoreId(shards + 1), wall_offset_ms: self.nodes[node].wall_offset_ms }),
            utf8: |bytes| std::str::from_utf8(bytes).is_ok(),
        }
    }

    fn namespaces(&self) -> Namespaces {
        let stream = |name| Namespace {
            subscribe: Allow::Anyone,
            publish: Allow::Anyone,
            read_presence: Allow::Anyone,
            read_history: Allow::Anyone,
            history_size: self.history_size,
            history_ttl_ms: FOREVER_MS,
            recovery: true,
            ..Namespace::closed(name)
        };
        let crowd = |name| Namespace { presence: true, join_leave: true, join_leave_forced: true, ..stream(name) };
        let ordered = Namespace { durability: Durability::Fleet, ..stream("ordered") };
        let fleeting = Namespace { history_size: 0, history_ttl_ms: 0, recovery: false, ..stream("fleeting") };
        Namespaces::new(stream(""), vec![crowd("crowd"), ordered, fleeting]).expect("namespaces without contradiction")
    }
}

/// `leaks`: interest is lost without a word, so it has to be looked at.
fn limits(dice: &mut Dice, leaks: bool) -> Limits {
    Limits {
        connections_per_shard_max: 64,
        ingest_connections_per_shard_max: 8,
        // Nobody is closed for being slow: a node that stands still is not its clients' fault.
        handshake_timeout_ms: 10_000_000,
        connect_timeout_ms: 10_000_000,
        close_timeout_ms: 2_000,
        ping_interval_ms: 0,
        requests_in_flight_per_connection_max: dice.pick(&[1, 2, 1_024]),
        channel_idle_ms: IDLE_MS as u32,
        ingest_idle_timeout_ms: 10_000_000,
        ingest_credit_messages: dice.pick(&[1, 7, 64]),
        lane_batch_messages_max: dice.pick(&[1, 2, 5, 1_024]),
        fanout_deliveries_per_turn_max: dice.pick(&[1, 3, 4_096]),
        backplane_wait_ms: dice.pick(&[400, 5_000]),
        interest_check_ms: if leaks { 500 } else { dice.pick(&[500, 1_000, NEVER_MS]) },
        presence_wait_ms: 600,
        interest_linger_ms: dice.pick(&[125, 1_000]),
        drain_grace_ms: dice.pick(&[0, 300]),
        drain_deadline_ms: dice.pick(&[1_500, 20_000, 20_000]),
        drain_backends_ms: 500,
        drain_leave_delay_ms: dice.pick(&[0, 1_000]),
        hand_over_wait_ms: dice.pick(&[250, 2_000, 2_000]),
        parked_wait_ms: dice.pick(&[250, 2_000, 2_000]),
        parked_ttl_ms: 1_000_000,
        idempotency_window_ms: FOREVER_MS as u32,
        ..Limits::DEFAULT
    }
}

/// A token is its user's name.
#[derive(Debug)]
pub(crate) struct Named;

impl Tokens for Named {
    fn check_connect(&self, token: &str, _: TokenAsk) -> TokenCheck<ConnectClaims> {
        TokenCheck::Done(Ok(ConnectClaims { user: token.into(), ..ConnectClaims::default() }))
    }

    fn check_subscribe(&self, _: &str, _: TokenAsk) -> TokenCheck<SubscribeClaims> {
        TokenCheck::Done(Err(TokenError::Invalid))
    }
}
