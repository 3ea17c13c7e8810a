//! The kinds of channels in a simulation, and the rules of their namespaces.
//!
//! In: a plan's numbers. Out: a [`Kind`] for each channel, its [`Namespace`], and all of them together, also as a reload
//! changes them.

use ringway_engine::namespace::{Allow, EventMode, JoinLeaveAbove, Namespace, Namespaces, RecoveryMode, SlowConsumer};

use crate::plan::FOREVER_MS;

/// What a channel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// History and recovery.
    Stream,
    /// Nothing.
    Plain,
    /// Members who hear of each other.
    Crowd,
    /// The same with more members than are told of one by one, and without history.
    Big,
    /// Slow clients lose the oldest publications.
    Oldest,
    /// Slow clients keep the newest one; so does who comes back.
    Newest,
    /// Who comes back gets the newest one; slow clients are closed.
    Cache,
    /// A backend decides who subscribes and publishes.
    Asked,
    /// Only with a token.
    Token,
    /// Of one user.
    Direct,
    /// Its namespace comes and goes with reloads.
    Fleeting,
    /// Belongs to the default namespace until a reload gives it one of its own, which has members.
    Late,
}

/// Kinds that any plan may have several channels of.
pub(crate) const COMMON: [Kind; 8] =
    [Kind::Stream, Kind::Plain, Kind::Crowd, Kind::Big, Kind::Oldest, Kind::Newest, Kind::Cache, Kind::Token];
/// Above so many members a big channel tells only some changes.
const BIG_MEMBERS: u32 = 2;

/// What plans decide about rules.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers {
    pub(crate) history_size: u32,
    pub(crate) history_lasts: bool,
    /// The whole protocol is used.
    pub(crate) whole: bool,
    /// Backends hear of what clients do, and decide.
    pub(crate) events: bool,
    /// Members hear of each other without asking.
    pub(crate) forced: bool,
    /// A big channel tells the latest change of each interval, or none.
    pub(crate) coalesce: bool,
}

impl Kind {
    /// Up to the colon.
    pub(crate) const fn namespace_name(self) -> &'static str {
        match self {
            Kind::Stream => "",
            Kind::Plain => "plain",
            Kind::Crowd => "crowd",
            Kind::Big => "big",
            Kind::Oldest => "oldest",
            Kind::Newest => "newest",
            Kind::Cache => "cache",
            Kind::Asked => "asked",
            Kind::Token => "token",
            Kind::Direct => "direct",
            Kind::Fleeting => "fleeting",
            Kind::Late => "late",
        }
    }

    pub(crate) fn rules(self, numbers: Numbers) -> Namespace {
        let open = Namespace {
            subscribe: Allow::Anyone,
            publish: Allow::Anyone,
            read_presence: Allow::Anyone,
            read_history: if numbers.whole { Allow::Anyone } else { Allow::Backend },
            delta: numbers.whole,
            ..Namespace::closed(self.namespace_name())
        };
        let kept = Namespace {
            history_size: numbers.history_size,
            history_ttl_ms: if numbers.history_lasts { FOREVER_MS } else { 2_000 },
            ..open.clone()
        };
        let stream = Namespace { recovery: true, ..kept.clone() };
        let members =
            Namespace { presence: true, join_leave: true, join_leave_forced: numbers.forced, ..stream.clone() };
        match self {
            Kind::Stream | Kind::Fleeting | Kind::Direct => stream,
            Kind::Plain => open,
            Kind::Crowd | Kind::Late => members,
            Kind::Big => Namespace {
                history_size: 0,
                recovery: false,
                join_leave_members_max: BIG_MEMBERS,
                join_leave_above: if numbers.coalesce { JoinLeaveAbove::Coalesce } else { JoinLeaveAbove::None },
                join_leave_interval_ms: 50,
                ..members
            },
            Kind::Oldest => Namespace { slow_consumer: SlowConsumer::DropOldest, ..kept },
            Kind::Newest => {
                Namespace { slow_consumer: SlowConsumer::Conflate, recovery_mode: RecoveryMode::Cache, ..stream }
            }
            Kind::Cache => Namespace { recovery_mode: RecoveryMode::Cache, ..stream },
            Kind::Asked => Namespace { subscribe_events: EventMode::Ask, publish_events: EventMode::Ask, ..members },
            Kind::Token => Namespace {
                subscribe: Allow::Token,
                subscribe_events: if numbers.events { EventMode::Notify } else { EventMode::Off },
                ..members
            },
        }
    }
}

/// All rules of a node before (`reloads` 0) and after so many reloads.
pub(crate) fn namespaces(numbers: Numbers, catch_all: bool, reloads: u32) -> Namespaces {
    let is_there = |kind: &Kind| match kind {
        Kind::Stream => false,
        Kind::Fleeting => reloads.is_multiple_of(2),
        Kind::Late => reloads > 0,
        _ => true,
    };
    let kinds = COMMON.into_iter().chain([Kind::Asked, Kind::Direct, Kind::Fleeting, Kind::Late]).filter(is_there);
    let named = kinds.map(|kind| kind.rules(numbers)).collect();
    Namespaces::new(Kind::Stream.rules(numbers), named)
        .expect("namespaces without contradiction")
        .with_catch_all(catch_all)
}
