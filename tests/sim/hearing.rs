//! What backends hear of clients: the oracle of events.
//!
//! In: every event that reaches a simulated backend. Out: a failure at the first contradiction. Claims: events of one
//! client grow on each connection of a backend, and are heard for the first time in the order in which they happened;
//! what is sent again is the same; of messages none is missing, unless it was counted as dropped; a life begins with
//! its connect and ends with its disconnect, and between them subscribes and unsubscribes alternate.

use std::collections::{BTreeMap, BTreeSet};

use ringway_wire::ingest::{ClientEvent, EventKind, Happened};
use serde_json::Value;

/// See the file's header.
#[derive(Debug, Default)]
pub(crate) struct Hearing {
    clients: BTreeMap<String, Life>,
    /// Last number by connection of a backend and client.
    last: BTreeMap<(u64, String), u64>,
    pub(crate) heard: u64,
    pub(crate) again: u64,
    /// Asks are given up while they are on their way to one backend, and then do not hold up what goes to another.
    hasty: bool,
}

/// The events of one client by number, each once.
#[derive(Debug, Default)]
struct Life {
    events: BTreeMap<u64, Fact>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Fact {
    kind: EventKind,
    ask: bool,
    channel: String,
    data: Vec<u8>,
}

impl Hearing {
    pub(crate) fn new(hasty: bool) -> Self {
        Hearing { hasty, ..Hearing::default() }
    }

    /// An event on a backend's connection.
    pub(crate) fn hear(&mut self, connection: u64, number: u64, event: &ClientEvent<'_>) {
        let before = self.last.insert((connection, event.client.to_owned()), number);
        assert!(before.is_none_or(|before| before < number), "{number} behind {before:?} on one connection");
        let life = self.clients.entry(event.client.to_owned()).or_default();
        let fact = Fact::of(event);
        self.heard += 1;
        if let Some(known) = life.events.get(&number) {
            assert_eq!(*known, fact, "event {number} was another one before");
            self.again += 1;
            return;
        }
        let newest = life.events.keys().next_back();
        let in_order = newest.is_none_or(|newest| *newest < number) || (self.hasty && fact.ask);
        assert!(in_order, "{number} is heard behind {newest:?}");
        life.events.insert(number, fact);
    }

    /// Nothing is under way. `sent`: messages of clients that are connected; nothing was dropped if `all`.
    pub(crate) fn assert_complete(&self, sent: &BTreeMap<String, u64>, all: bool) {
        for (client, life) in &self.clients {
            let messages: Vec<_> = life.of(EventKind::Message).map(|fact| fact.message()).collect();
            let rises = messages.windows(2).all(|two| two[0] < two[1]);
            assert!(rises, "messages of {client} out of order: {messages:?}");
            if !all {
                continue;
            }
            let expected: Vec<_> = (1..=messages.len() as u64).collect();
            assert_eq!(messages, expected, "of the messages of {client} one is missing");
            if let Some(sent) = sent.get(client) {
                assert_eq!(messages.len() as u64, *sent, "not all messages of {client} were heard");
            }
        }
    }

    /// Every client has gone, and nothing was dropped. Channels whose names begin with `told` are those in which
    /// backends are told of all subscriptions.
    pub(crate) fn assert_lives_are_whole(&self, told: &str, admits: bool) {
        for (client, life) in &self.clients {
            let kinds: Vec<_> = life.events.values().map(|fact| fact.kind).collect();
            let connects = kinds.iter().filter(|kind| **kind == EventKind::Connect).count();
            assert!(kinds[0] == EventKind::Connect && connects == 1, "{client} began with {kinds:?}");
            // A backend may have refused it, or have been asked in vain.
            if !(admits && kinds.len() == 1) {
                let ends = kinds.iter().filter(|kind| **kind == EventKind::Disconnect).count();
                assert!(kinds.last() == Some(&EventKind::Disconnect) && ends == 1, "{client} ended with {kinds:?}");
            }
            let mut open = BTreeSet::new();
            for fact in life.events.values().filter(|fact| fact.channel.starts_with(told)) {
                match fact.kind {
                    EventKind::Subscribe => assert!(open.insert(&fact.channel), "{client} subscribed twice: {fact:?}"),
                    EventKind::Unsubscribe => assert!(open.remove(&fact.channel), "{client} left too often: {fact:?}"),
                    _ => {}
                }
            }
            assert!(open.is_empty(), "{client} never left {open:?}");
        }
    }
}

impl Life {
    fn of(&self, kind: EventKind) -> impl Iterator<Item = &Fact> {
        self.events.values().filter(move |fact| fact.kind == kind)
    }
}

impl Fact {
    fn of(event: &ClientEvent<'_>) -> Self {
        let (channel, data) = match event.what {
            Happened::Connect { data, .. } | Happened::Rpc { data, .. } | Happened::Message { data } => ("", data),
            Happened::Subscribe { channel, data } | Happened::Publish { channel, data } => (channel, data),
            Happened::Unsubscribe { channel } => (channel, &b""[..]),
            Happened::Disconnect { .. } => ("", &b""[..]),
        };
        Fact { kind: event.what.kind(), ask: event.ask, channel: channel.to_owned(), data: data.to_vec() }
    }

    fn message(&self) -> u64 {
        let data: Value = serde_json::from_slice(&self.data).expect("messages are JSON");
        data["m"].as_u64().expect("a number")
    }
}
