//! Namespaces: a channel's name decides what the channel can do and who may use it.
//!
//! In: a channel name, `ns:rest` or plain. Out: the [`Namespace`] whose options hold for it, or none (error 102).
//! Invariants: options come from the configuration alone, never from a client; options that contradict each other are
//! refused when they are loaded; the id of a namespace means the same name for as long as the process runs.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use ringway_wire::ingest::PayloadKind;

use crate::limits::Limits;

/// Who may do something with a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allow {
    /// Only backends, over ingest or the HTTP API.
    Backend,
    /// Clients that present a subscription token for the channel, or to whom a backend has granted it.
    Token,
    /// Clients that are subscribed to the channel. For publishing and reading only.
    Subscriber,
    /// Clients with a user id.
    Authenticated,
    /// Every connected client, anonymous ones too.
    Anyone,
}

/// What a subscriber gets that comes back with a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryMode {
    /// Everything that it missed, or nothing.
    Stream,
    /// The latest publication, if it does not have it: for channels whose publications replace each other.
    Cache,
}

/// What watchers of a channel with more than `join_leave_members_max` members hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinLeaveAbove {
    /// Nothing.
    None,
    /// The latest join or leave of each interval, as a sign that something has changed.
    Coalesce,
}

/// What happens to a client that reads slower than its messages come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowConsumer {
    /// It is closed with 3008, comes back and recovers.
    Disconnect,
    /// Its oldest publications of such channels are dropped.
    DropOldest,
    /// Of such channels only the newest publication (per channel, or per key) is kept for it.
    Conflate,
}

/// What backends are told of, and asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventMode {
    /// Nothing.
    Off,
    /// That it has happened.
    Notify,
    /// Whether it may happen.
    Ask,
}

/// What has happened to a publication before it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It has its offset and stands in the owner's memory.
    Memory,
    /// It is committed to the durable log of the node.
    Disk,
    /// It is on the backplane and on one replica of it.
    Fleet,
}

/// Options of a namespace. The defaults are closed.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// The part before the first `:`; empty for the default namespace.
    pub name: Box<str>,
    /// Publications kept per channel; 0: none.
    pub history_size: u32,
    /// How long a publication is kept.
    pub history_ttl_ms: u64,
    /// What an acknowledgement promises. `Disk` is not accepted at load, and `Fleet` only with a backplane.
    pub durability: Durability,
    /// Whether a client may resume from (epoch, offset). Needs history.
    pub recovery: bool,
    /// What payloads are: JSON text (checked at publish) or bytes (Protobuf clients only).
    pub payload: PayloadKind,
    /// Who may subscribe. Not [`Allow::Subscriber`].
    pub subscribe: Allow,
    /// Who may publish. Not [`Allow::Token`]: publishes carry no token; nor may the two below be that.
    pub publish: Allow,
    /// Who may read presence.
    pub read_presence: Allow,
    /// Who may read history.
    pub read_history: Allow,
    /// Whether a name with `#` admits only the users listed behind it, separated by commas.
    pub user_limited: bool,
    /// Whether subscribers recover without having asked for it. Means nothing without `recovery`.
    pub recovery_forced: bool,
    /// What a subscriber gets that comes back.
    pub recovery_mode: RecoveryMode,
    /// Whether subscribers are told of losses although they do not recover.
    pub positioned: bool,
    /// Whether it is known who is subscribed.
    pub presence: bool,
    /// Whether coming and going is told to those subscribers that ask for it. Needs `presence`.
    pub join_leave: bool,
    /// Whether it is told to all of them.
    pub join_leave_forced: bool,
    /// Members above which a channel stops telling each join and leave.
    pub join_leave_members_max: u32,
    /// What is told above.
    pub join_leave_above: JoinLeaveAbove,
    /// Time between two coalesced changes of one channel.
    pub join_leave_interval_ms: u32,
    /// Publications per second of one client connection in all channels of the namespace; 0: no limit.
    pub publish_rate_per_connection: u32,
    /// Publications per second of clients in one channel; 0: no limit.
    pub publish_rate_per_channel: u32,
    /// What happens to slow clients.
    pub slow_consumer: SlowConsumer,
    /// JSON payloads of at least so many bytes are compressed for clients that can; 0: never.
    pub deflate_bytes_min: u32,
    /// Whether subscribers may have Fossil deltas.
    pub delta: bool,
    /// Whether backends are told of subscribes, or decide about them.
    pub subscribe_events: EventMode,
    /// Whether backends are told of clients' publishes, or decide about them.
    pub publish_events: EventMode,
    /// Channels of this namespace that one shard owns at once; 0: only the shard's own limit holds.
    pub channels_per_shard_max: u32,
}

impl Namespace {
    /// A namespace with no history that only backends may use.
    pub fn closed(name: &str) -> Self {
        Namespace {
            name: name.into(),
            history_size: 0,
            history_ttl_ms: 0,
            durability: Durability::Memory,
            recovery: false,
            payload: PayloadKind::Json,
            subscribe: Allow::Token,
            publish: Allow::Backend,
            read_presence: Allow::Backend,
            read_history: Allow::Backend,
            user_limited: true,
            recovery_forced: true,
            recovery_mode: RecoveryMode::Stream,
            positioned: false,
            presence: false,
            join_leave: false,
            join_leave_forced: false,
            join_leave_members_max: 1_000,
            join_leave_above: JoinLeaveAbove::None,
            join_leave_interval_ms: 1_000,
            publish_rate_per_connection: 0,
            publish_rate_per_channel: 0,
            slow_consumer: SlowConsumer::Disconnect,
            deflate_bytes_min: 0,
            delta: false,
            subscribe_events: EventMode::Off,
            publish_events: EventMode::Off,
            channels_per_shard_max: 0,
        }
    }
}

/// Something that has to hold between the options of one namespace.
#[derive(Debug)]
pub struct NamespaceRule {
    /// What has to hold, in keys, and why.
    pub text: &'static str,
    holds: fn(&Namespace) -> bool,
}

/// Everything that has to hold between the options of one namespace.
pub const NAMESPACE_RULES: &[NamespaceRule] = &[
    NamespaceRule {
        text: "history_size needs history_ttl_ms above 0",
        holds: |ns| ns.history_size == 0 || ns.history_ttl_ms > 0,
    },
    NamespaceRule {
        text: "recovery needs history_size above 0: there is nothing else to recover from",
        holds: |ns| !ns.recovery || ns.history_size > 0,
    },
    NamespaceRule {
        text: "positioned needs history_size above 0: publications have offsets only where there is history",
        holds: |ns| !ns.positioned || ns.history_size > 0,
    },
    NamespaceRule {
        text: "recovery_mode \"cache\" needs recovery",
        holds: |ns| ns.recovery_mode == RecoveryMode::Stream || ns.recovery,
    },
    NamespaceRule { text: "join_leave needs presence", holds: |ns| !ns.join_leave || ns.presence },
    NamespaceRule { text: "join_leave_forced needs join_leave", holds: |ns| !ns.join_leave_forced || ns.join_leave },
    NamespaceRule {
        text: "slow_consumer \"drop_oldest\" and \"conflate\" do not go with positioned: a client is told of the hole that they make",
        holds: |ns| ns.slow_consumer == SlowConsumer::Disconnect || !ns.positioned,
    },
    NamespaceRule {
        text: "slow_consumer \"drop_oldest\" does not go with recovery: a client remembers only its newest offset and would never recover what was dropped",
        holds: |ns| ns.slow_consumer != SlowConsumer::DropOldest || !ns.recovery,
    },
    NamespaceRule {
        text: "slow_consumer \"conflate\" goes with recovery only when recovery_mode is \"cache\": a client remembers only its newest offset and would never recover what was dropped",
        holds: |ns| {
            ns.slow_consumer != SlowConsumer::Conflate || !ns.recovery || ns.recovery_mode == RecoveryMode::Cache
        },
    },
    NamespaceRule {
        text: "deflate_bytes_min above 0 needs payload \"json\": only text is compressed",
        holds: |ns| ns.deflate_bytes_min == 0 || ns.payload == PayloadKind::Json,
    },
    NamespaceRule {
        text: "subscribe must not be \"subscriber\": nobody is subscribed before subscribing",
        holds: |ns| ns.subscribe != Allow::Subscriber,
    },
    NamespaceRule {
        text: "publish, read_presence and read_history must not be \"token\", as these commands carry none: use subscribe = \"token\" and here \"subscriber\"",
        holds: |ns| ![ns.publish, ns.read_presence, ns.read_history].contains(&Allow::Token),
    },
    NamespaceRule {
        text: "durability \"disk\" is not available in this version, which has no durable log: use \"memory\"",
        holds: |ns| ns.durability != Durability::Disk,
    },
];

/// Namespaces of one node, the default one not counted, those that a reload has taken away counted. They are scanned
/// for each resolved channel. Over: refused at load.
pub const NAMESPACES_MAX: usize = 1024;

/// All namespaces of the node. A handful, so a scan beats a map.
#[derive(Clone, Debug)]
pub struct Namespaces {
    default: Namespace,
    named: Vec<Named>,
    catch_all: bool,
}

#[derive(Clone, Debug)]
struct Named {
    namespace: Namespace,
    /// False: a reload has taken it away. It keeps its place, for the channels that still have its id.
    live: bool,
}

/// Index of a namespace: 0 is the default one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceId(pub u16);

impl Namespaces {
    /// # Errors
    /// All of [`Namespaces::problems`], separated by `; `.
    pub fn new(default: Namespace, named: Vec<Namespace>) -> Result<Self, String> {
        let problems = Self::problems(&default, &named);
        if !problems.is_empty() {
            return Err(problems.join("; "));
        }
        let named = named.into_iter().map(|namespace| Named { namespace, live: true }).collect();
        Ok(Namespaces { default, named, catch_all: false })
    }

    /// What is wrong with these namespaces, one text each: contradictions within one, names that are malformed or
    /// stand twice, too many.
    pub fn problems(default: &Namespace, named: &[Namespace]) -> Vec<String> {
        let mut out = Vec::new();
        if named.len() > NAMESPACES_MAX {
            out.push(alloc::format!("there must be at most {NAMESPACES_MAX}"));
        }
        for (i, ns) in named.iter().enumerate() {
            if let Some(what) = fault_of_name(&ns.name) {
                out.push(alloc::format!("namespace name {:?} {what}", ns.name));
            }
            if named[..i].iter().any(|other| other.name == ns.name) {
                out.push(alloc::format!("namespace {:?} is defined twice", ns.name));
            }
        }
        for ns in core::iter::once(default).chain(named) {
            for rule in NAMESPACE_RULES.iter().filter(|rule| !(rule.holds)(ns)) {
                out.push(match &*ns.name {
                    "" => alloc::format!("default namespace: {}", rule.text),
                    name => alloc::format!("namespace {name:?}: {}", rule.text),
                });
            }
        }
        out
    }

    /// Whether a channel whose prefix names no namespace belongs to the default one. Otherwise it has none.
    pub fn with_catch_all(mut self, catch_all: bool) -> Self {
        self.catch_all = catch_all;
        self
    }

    /// The rules that follow these when `new` is loaded while channels exist: a name keeps its id; a name that is gone
    /// keeps its id and its last options, for channels that exist, and is not resolved any more; a name that comes
    /// back is revived under its id; others are added behind.
    ///
    /// # Errors
    /// The payload kind of a namespace would change, under channels that hold publications of the other kind; or there
    /// would be more than [`NAMESPACES_MAX`], those that are gone counted. Nothing has changed then.
    pub fn reloaded(&self, new: Namespaces) -> Result<Namespaces, String> {
        let Namespaces { default, named, catch_all } = new;
        let mut next = Namespaces { default, named: self.named.clone(), catch_all };
        if next.default.payload != self.default.payload {
            return Err("default namespace: payload must not change while the process runs".into());
        }
        next.named.iter_mut().for_each(|known| known.live = false);
        for Named { namespace, .. } in named.into_iter().filter(|named| named.live) {
            let Some(known) = next.named.iter_mut().find(|known| known.namespace.name == namespace.name) else {
                next.named.push(Named { namespace, live: true });
                continue;
            };
            if known.namespace.payload != namespace.payload {
                let name = &namespace.name;
                return Err(alloc::format!("namespace {name:?}: payload must not change while the process runs"));
            }
            *known = Named { namespace, live: true };
        }
        if next.named.len() > NAMESPACES_MAX {
            return Err(alloc::format!(
                "there must be at most {NAMESPACES_MAX}, those counted that were taken away since the process started"
            ));
        }
        Ok(next)
    }

    /// The namespace of `channel`, or none when its prefix is not configured.
    pub fn resolve(&self, channel: &str) -> Option<(NamespaceId, &Namespace)> {
        let Some(prefix) = prefix(channel) else {
            return Some((NamespaceId(0), &self.default));
        };
        let Some(index) = self.named.iter().position(|known| known.live && &*known.namespace.name == prefix) else {
            return self.catch_all.then_some((NamespaceId(0), &self.default));
        };
        Some((NamespaceId(index as u16 + 1), &self.named[index].namespace))
    }

    /// The namespace with this id; the default one for an id that these rules or earlier ones never gave.
    pub fn get(&self, id: NamespaceId) -> &Namespace {
        let index = (id.0 as usize).checked_sub(1);
        index.and_then(|index| self.named.get(index)).map_or(&self.default, |known| &known.namespace)
    }

    /// Whether the namespace with this id is configured. One that a reload has taken away is not: channels that exist
    /// keep it until they are forgotten, and nobody new may subscribe or publish.
    pub fn is_live(&self, id: NamespaceId) -> bool {
        (id.0 as usize).checked_sub(1).is_none_or(|index| self.named.get(index).is_some_and(|known| known.live))
    }

    /// The default namespace (with an empty name), then all others that are configured.
    pub fn iter(&self) -> impl Iterator<Item = &Namespace> {
        let named = self.named.iter().filter(|known| known.live).map(|known| &known.namespace);
        core::iter::once(&self.default).chain(named)
    }

    /// The namespace with this name, also when a reload has taken it away; the default one for an empty name.
    pub fn by_name(&self, name: &str) -> Option<&Namespace> {
        if name.is_empty() {
            return Some(&self.default);
        }
        self.named.iter().map(|known| &known.namespace).find(|namespace| &*namespace.name == name)
    }
}

/// What makes a text no name of a namespace.
fn fault_of_name(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("is empty")
    } else if name.contains(':') {
        Some("contains ':', which ends it")
    } else if name.contains(['#', '$', ',']) {
        Some("contains '#', '$' or ',', which mean something in channel names")
    } else {
        name.chars().any(|c| c.is_whitespace() || c.is_control()).then_some("contains a space or a control character")
    }
}

/// The prefix of a channel, which names its namespace: what stands before the first `:`, without the `$` of a private
/// channel. A `:` within a user list (behind `#`) is part of a user id. None: the channel has no prefix.
pub fn prefix(channel: &str) -> Option<&str> {
    let (before, _) = split(channel)?;
    Some(before.strip_prefix('$').unwrap_or(before))
}

/// What stands behind the prefix; the whole name when there is none.
pub fn rest(channel: &str) -> &str {
    split(channel).map_or(channel, |(_, rest)| rest)
}

fn split(channel: &str) -> Option<(&str, &str)> {
    // Each is one byte, and part of no other character.
    let first = channel.bytes().position(|byte| matches!(byte, b'#' | b':'))?;
    (channel.as_bytes()[first] == b':').then(|| (&channel[..first], &channel[first + 1..]))
}

/// Whether a text can be a channel's name: not empty, not too long, no control characters.
pub fn channel_is_valid(channel: &str, limits: &Limits) -> bool {
    !channel.is_empty()
        && channel.len() <= limits.channel_bytes_max as usize
        && !channel.bytes().any(|byte| byte.is_ascii_control())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    fn named(names: &[&str]) -> Namespaces {
        let named = names.iter().map(|name| Namespace::closed(name)).collect();
        Namespaces::new(Namespace::closed(""), named).unwrap()
    }

    fn id(namespaces: &Namespaces, channel: &str) -> Option<u16> {
        namespaces.resolve(channel).map(|(id, _)| id.0)
    }

    #[test]
    fn a_prefix_names_a_namespace() {
        let namespaces = named(&["chat", "a"]);
        for (channel, expected) in [
            ("plain", Some(0)),
            ("$plain", Some(0)),
            ("chat:1", Some(1)),
            ("chat:", Some(1)),
            ("chat:a:b", Some(1)),
            ("$chat:1", Some(1)),
            ("chat:$1", Some(1)),
            ("a:x#u:1,v", Some(2)),
            // A user id may contain ':'.
            ("#user:1", Some(0)),
            ("news#a:1", Some(0)),
            ("$$chat:1", None),
            ("chats:1", None),
            ("Chat:1", None),
            (":1", None),
            ("$:1", None),
            (" chat:1", None),
        ] {
            assert_eq!(id(&namespaces, channel), expected, "{channel:?}");
            assert_eq!(id(&namespaces.clone().with_catch_all(true), channel), expected.or(Some(0)), "{channel:?}");
        }
        assert_eq!(
            (rest("chat:$1:2"), rest("plain"), rest("a#b:c"), rest("chat:a#b:c")),
            ("$1:2", "plain", "a#b:c", "a#b:c")
        );
    }

    #[test]
    fn every_contradiction_is_refused_with_its_reason() {
        let history = Namespace { history_size: 1, history_ttl_ms: 1, ..Namespace::closed("") };
        let recovery = Namespace { recovery: true, ..history.clone() };
        let cache = Namespace { recovery_mode: RecoveryMode::Cache, ..recovery.clone() };
        let closed = || Namespace::closed("");
        let bad = [
            ("history_ttl_ms above 0", Namespace { history_ttl_ms: 0, ..history.clone() }),
            ("recovery needs history_size", Namespace { recovery: true, ..closed() }),
            ("positioned needs history_size", Namespace { positioned: true, ..closed() }),
            ("\"cache\" needs recovery", Namespace { recovery: false, ..cache.clone() }),
            ("join_leave needs presence", Namespace { join_leave: true, ..closed() }),
            ("join_leave_forced needs", Namespace { join_leave_forced: true, presence: true, ..closed() }),
            (
                "go with positioned",
                Namespace { slow_consumer: SlowConsumer::DropOldest, positioned: true, ..history.clone() },
            ),
            (
                "go with positioned",
                Namespace { slow_consumer: SlowConsumer::Conflate, positioned: true, ..cache.clone() },
            ),
            ("does not go with recovery", Namespace { slow_consumer: SlowConsumer::DropOldest, ..cache.clone() }),
            ("goes with recovery only", Namespace { slow_consumer: SlowConsumer::Conflate, ..recovery.clone() }),
            (
                "deflate_bytes_min above 0 needs",
                Namespace { deflate_bytes_min: 1, payload: PayloadKind::Bytes, ..closed() },
            ),
            ("subscribe must not be", Namespace { subscribe: Allow::Subscriber, ..closed() }),
            ("must not be \"token\"", Namespace { publish: Allow::Token, ..closed() }),
            ("must not be \"token\"", Namespace { read_presence: Allow::Token, ..closed() }),
            ("must not be \"token\"", Namespace { read_history: Allow::Token, ..closed() }),
            ("no durable log", Namespace { durability: Durability::Disk, ..closed() }),
        ];
        for (words, namespace) in bad {
            let default = Namespaces::problems(&namespace, &[]);
            assert_eq!(default.len(), 1, "{words}: {default:?}");
            assert!(
                default[0].starts_with("default namespace: ") && default[0].contains(words),
                "{words}: {default:?}"
            );
            let chat = Namespace { name: "chat".into(), ..namespace };
            let text = Namespaces::new(closed(), vec![chat]).unwrap_err();
            assert!(text.starts_with("namespace \"chat\": ") && text.contains(words), "{words}: {text}");
        }
        let good = [
            closed(),
            history.clone(),
            Namespace { slow_consumer: SlowConsumer::DropOldest, ..history.clone() },
            Namespace { slow_consumer: SlowConsumer::Conflate, ..closed() },
            Namespace { slow_consumer: SlowConsumer::Conflate, ..cache },
            Namespace { positioned: true, ..recovery },
            Namespace { presence: true, join_leave: true, join_leave_forced: true, ..closed() },
            Namespace { publish: Allow::Subscriber, subscribe: Allow::Token, ..closed() },
        ];
        for namespace in good {
            assert_eq!(Namespaces::problems(&namespace, &[]), Vec::<String>::new(), "{namespace:?}");
        }
    }

    #[test]
    fn names_are_checked() {
        let text = |names: &[&str]| {
            let named = names.iter().map(|name| Namespace::closed(name)).collect();
            Namespaces::new(Namespace::closed(""), named).err().unwrap_or_default()
        };
        for (name, words) in
            [("", "empty"), ("a:b", "':'"), ("a#", "'#'"), ("$a", "'$'"), ("a,b", "','"), ("a b", "space")]
        {
            assert!(text(&[name]).contains(words), "{name:?}: {}", text(&[name]));
        }
        assert!(text(&["a", "b", "a"]).contains("\"a\" is defined twice"));
        assert_eq!(text(&["a", "B-1_2.3", "äöü"]), "");
        assert_eq!(text(&["a:b", "c d"]).matches("; ").count(), 1, "all of them");
    }

    #[test]
    fn a_reload_keeps_ids_and_buries_what_is_gone() {
        let first = named(&["a", "b", "c"]);
        let changed = Namespace { history_size: 5, history_ttl_ms: 1, ..Namespace::closed("b") };
        let new =
            Namespaces::new(Namespace { delta: true, ..Namespace::closed("") }, vec![changed, Namespace::closed("d")])
                .unwrap()
                .with_catch_all(true);
        let second = first.reloaded(new).unwrap();
        assert_eq!(["b:", "d:", "x"].map(|channel| id(&second, channel)), [Some(2), Some(4), Some(0)]);
        assert_eq!(["a:", "c:", "e:"].map(|channel| id(&second, channel)), [Some(0); 3], "to the catch-all");
        assert_eq!(second.get(NamespaceId(2)).history_size, 5);
        assert!(second.get(NamespaceId(0)).delta);
        assert_eq!(&*second.get(NamespaceId(1)).name, "a");
        assert_eq!(
            [0, 1, 2, 3, 4, 5].map(|id| second.is_live(NamespaceId(id))),
            [true, false, true, false, true, false]
        );
        let names: Vec<&str> = second.iter().map(|ns| &*ns.name).collect();
        assert_eq!(names, ["", "b", "d"]);

        // Without the catch-all they have none, and `a` comes back under its id.
        let third = second.reloaded(named(&["e", "a"])).unwrap();
        assert_eq!(
            ["a:", "b:", "c:", "d:", "e:"].map(|channel| id(&third, channel)),
            [Some(1), None, None, None, Some(5)]
        );
        assert_eq!(third.get(NamespaceId(2)).history_size, 5, "its last options");
        assert_eq!(third.by_name("b").unwrap().history_size, 5);
        // An id from nowhere is no reason to fail.
        assert_eq!(&*third.get(NamespaceId(u16::MAX)).name, "");
    }

    #[test]
    fn a_reload_cannot_change_payloads_nor_exceed_the_table() {
        let first = named(&["a"]);
        let bytes = |name: &str| Namespace { payload: PayloadKind::Bytes, ..Namespace::closed(name) };
        let text = first.reloaded(Namespaces::new(Namespace::closed(""), vec![bytes("a")]).unwrap()).unwrap_err();
        assert!(text.contains("\"a\": payload must not change"), "{text}");
        let text = first.reloaded(Namespaces::new(bytes(""), vec![]).unwrap()).unwrap_err();
        assert!(text.contains("default namespace: payload must not change"), "{text}");
        // Not even by way of an absence.
        let gone = first.reloaded(named(&[])).unwrap();
        assert!(gone.reloaded(Namespaces::new(Namespace::closed(""), vec![bytes("a")]).unwrap()).is_err());

        let names: Vec<String> = (0..NAMESPACES_MAX).map(|n| alloc::format!("n{n}")).collect();
        let names: Vec<&str> = names.iter().map(|name| &**name).collect();
        let full = named(&names);
        assert!(full.reloaded(named(&names)).is_ok());
        assert!(full.reloaded(named(&["other"])).unwrap_err().contains("taken away"));
        let too_many: Vec<Namespace> = names.iter().chain(&["one"]).map(|name| Namespace::closed(name)).collect();
        assert!(Namespaces::new(Namespace::closed(""), too_many).unwrap_err().contains("at most 1024"));
    }

    proptest! {
        /// Over any number of reloads an id means one name, and what is resolved is what was loaded last.
        #[test]
        fn an_id_means_one_name(loads in prop::collection::vec(prop::collection::btree_set("[a-e]", 0..5), 1..8)) {
            let mut namespaces = named(&[]);
            let mut known: Vec<String> = vec![];
            for load in loads {
                let names: Vec<&str> = load.iter().map(|name| &**name).collect();
                namespaces = namespaces.reloaded(named(&names)).unwrap();
                for name in ["a", "b", "c", "d", "e"] {
                    let resolved = namespaces.resolve(&alloc::format!("{name}:1"));
                    prop_assert_eq!(resolved.is_some(), names.contains(&name));
                    let Some((id, namespace)) = resolved else { continue };
                    prop_assert_eq!(&*namespace.name, name);
                    known.resize(known.len().max(id.0 as usize), String::new());
                    let before = &mut known[id.0 as usize - 1];
                    prop_assert!(before.is_empty() || before == name, "{} was {}", id.0, before);
                    *before = name.into();
                }
                for (index, name) in known.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
                    prop_assert_eq!(&*namespaces.get(NamespaceId(index as u16 + 1)).name, &**name);
                }
            }
        }
    }
}
