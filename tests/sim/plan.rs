//! What one seed makes of a run: how many shards, clients and backends there are and where they sit, how tight the
//! limits are, and which faults may come.
//!
//! In: a seed. Out: a [`Plan`] that nothing changes afterwards.
//! Invariant: every second plan puts owner, subscriber and publisher on three different shards of four.

use ringway_engine::ids::CoreId;
use ringway_engine::limits::Limits;
use ringway_engine::namespace::{Allow, Namespace, Namespaces};
use ringway_engine::options::{Access, Options, Origins};
use ringway_engine::route;
use ringway_engine::tokens::NoTokens;
use ringway_tests::Encoding;
use ringway_tests::client::PATH;

use crate::dice::Dice;

/// The secret of backends.
pub(crate) const TOKEN: &[u8] = b"simulated";
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
    /// Publications kept in a channel with history.
    pub(crate) history_size: u32,
    /// Whether they are kept for the whole run.
    pub(crate) history_lasts: bool,
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
    /// Shards stop for a while, so that what is meant for them piles up.
    pub(crate) stalls: bool,
}

#[derive(Debug)]
pub(crate) struct ChannelPlan {
    pub(crate) name: String,
    pub(crate) owner: usize,
    /// Has offsets and can be recovered.
    pub(crate) history: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientPlan {
    pub(crate) encoding: Encoding,
    /// The shard it connects to, mostly.
    pub(crate) home: usize,
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
            history_size: dice.pick(&[1, 4, 32, 500, 5_000]) as u32,
            history_lasts,
            queue_batches_max: if lossy { dice.between(1, 4) } else { dice.pick(&[1, 2, 8, 64]) },
            socket_bytes_max: if slow { dice.between(64, 2_000) } else { dice.pick(&[64, 700, 5_000, 200_000]) },
            steps: dice.between(3_000, 9_000),
            lossy,
            slow,
            large,
            stalls: lossy || dice.one_in(3),
        };
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

    pub(crate) fn options(&self, core: usize) -> Options {
        let open =
            |name: &str| Namespace { subscribe: Allow::Anyone, publish: Allow::Anyone, ..Namespace::closed(name) };
        let default = Namespace {
            history_size: self.history_size,
            history_ttl_ms: if self.history_lasts { FOREVER_MS } else { 2_000 },
            recovery: true,
            ..open("")
        };
        Options {
            core: CoreId(core as u16),
            shards: self.shards as u16,
            seed: self.seed,
            boot: self.boot,
            limits: self.limits.clone(),
            namespaces: Namespaces::new(default, vec![open("plain")]).expect("namespaces without contradiction").into(),
            tokens: std::sync::Arc::new(NoTokens),
            access: Access {
                anonymous: true,
                origins: Origins::Any,
                ingest_tokens: vec![TOKEN.into()],
                ..Access::closed(PATH)
            },
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
    let name = format!("{}channel-{number}-{}", if history { "" } else { "plain:" }, dice.below(1_000));
    let owner = route::owner(route::bucket(&name), shards as u16).0 as usize;
    ChannelPlan { name, owner, history }
}

fn client(dice: &mut Dice, homes: &[usize]) -> ClientPlan {
    ClientPlan { encoding: dice.pick(&[Encoding::Json, Encoding::Protobuf]), home: dice.pick(homes) }
}
