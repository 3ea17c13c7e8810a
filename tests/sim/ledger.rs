//! The oracle: what was published where, who has seen it at which offset, and whether that can all be true.
//!
//! In: every publish sent, every acknowledgement, every publication that a client sees. Out: a failure at the first
//! contradiction; at the end the counts. Claims: an offset holds one publication and a publication one offset; offsets
//! are dense; publishes of one connection keep their order; what was acknowledged is there.

use std::collections::{BTreeMap, BTreeSet};

use crate::plan::Plan;
use crate::rules::Kind;

/// Number of a publication, unique in a run and ascending in the order of sending. It stands in the payload.
pub(crate) type Id = u64;

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Ledger {
    published: Vec<Published>,
    channels: Vec<Channel>,
    /// What was seen on each stay in a channel without history.
    unnumbered: Vec<(usize, Vec<Id>)>,
    connections: u64,
    large: bool,
    uneven: bool,
    gentle: bool,
    /// Times that shard `to` was told that shard `from` lost publications, as (from, to).
    pub(crate) lost: BTreeMap<(usize, usize), u32>,
    /// What the run came to, for the report.
    pub(crate) counts: Counts,
    /// What backends and operators have ordered about users.
    pub(crate) orders: Orders,
    /// Publishes that were answered with an error: nobody may ever see them.
    refused: BTreeSet<Id>,
    /// What clients were told by backends, outside channels.
    pub(crate) messages: u64,
}

/// Orders about users that were ever given, as (user, channel).
#[derive(Debug, Default)]
pub(crate) struct Orders {
    pub(crate) subscribed: BTreeSet<(String, usize)>,
    pub(crate) unsubscribed: BTreeSet<(String, usize)>,
    pub(crate) disconnected: BTreeSet<String>,
    pub(crate) refreshed: BTreeSet<String>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// What else happened, by name.
    pub(crate) tally: BTreeMap<&'static str, u64>,
    pub(crate) stays: u64,
    /// Of those, with owner, subscriber and some publisher on three different shards.
    pub(crate) stays_apart: u64,
    pub(crate) recovered: u64,
    pub(crate) not_recovered: u64,
    pub(crate) delivered: u64,
    pub(crate) acked: u64,
    /// Times that a shard dropped publications for another.
    pub(crate) lost: u64,
    /// Subscriptions that shards ended for that.
    pub(crate) ended: u64,
    /// Of those, clients that heard of it.
    pub(crate) told_lost: u64,
    pub(crate) closed_slow: u64,
}

impl Counts {
    /// Counts something by its name.
    pub(crate) fn note(&mut self, what: &'static str, times: u64) {
        *self.tally.entry(what).or_default() += times;
    }

    pub(crate) fn add(&mut self, other: &Counts) {
        other.tally.iter().for_each(|(what, times)| self.note(what, *times));
        self.stays += other.stays;
        self.stays_apart += other.stays_apart;
        self.recovered += other.recovered;
        self.not_recovered += other.not_recovered;
        self.delivered += other.delivered;
        self.acked += other.acked;
        self.lost += other.lost;
        self.ended += other.ended;
        self.told_lost += other.told_lost;
        self.closed_slow += other.closed_slow;
    }
}

#[derive(Debug)]
struct Published {
    channel: usize,
    /// Client id, or none for a backend.
    client: Option<String>,
    /// The connection it went through first.
    connection: u64,
    at: Option<(String, u64)>,
}

#[derive(Debug, Default)]
struct Channel {
    /// Epoch to publications by offset, from 1.
    epochs: BTreeMap<String, Vec<Option<Id>>>,
    accepted: u64,
    /// Publishes of connections that ended before the answer.
    unknown: u64,
    /// What is published is kept for the whole run, and its last publication is known.
    lasting: bool,
    /// A backend decides about clients' publishes, in any order.
    asked: bool,
    /// A publish may be refused, and taken when it is sent again behind others.
    fleeting: bool,
}

impl Channel {
    fn new(kind: Kind, plan: &Plan) -> Self {
        let lasting = plan.numbers.history_lasts && kind != Kind::Fleeting;
        Channel { lasting, asked: kind == Kind::Asked, fleeting: kind == Kind::Fleeting, ..Channel::default() }
    }
}

impl Ledger {
    pub(crate) fn new(plan: &Plan) -> Self {
        Ledger {
            published: Vec::new(),
            channels: plan.channels.iter().map(|channel| Channel::new(channel.kind, plan)).collect(),
            unnumbered: Vec::new(),
            connections: 0,
            large: plan.large,
            uneven: plan.lossy,
            gentle: plan.gentle,
            lost: BTreeMap::new(),
            counts: Counts::default(),
            orders: Orders::default(),
            refused: BTreeSet::new(),
            messages: 0,
        }
    }

    /// A number for a new connection.
    pub(crate) fn connection(&mut self) -> u64 {
        self.connections += 1;
        self.connections
    }

    /// Notes a publish that is about to be sent.
    pub(crate) fn publish(&mut self, channel: usize, client: Option<&str>, connection: u64) -> Id {
        self.published.push(Published { channel, client: client.map(str::to_owned), connection, at: None });
        self.published.len() as Id - 1
    }

    /// The payload of a publication, as it must arrive.
    pub(crate) fn payload(&self, id: Id) -> String {
        let scrambled = id.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let len = match scrambled % 64 {
            0 if self.large => 10_000 + scrambled % 60_000 / 2,
            // So alike and so long that deltas are worth it.
            _ if self.gentle => 100 + scrambled % 200,
            1..4 => scrambled % 700,
            4..20 if self.uneven => scrambled % 700,
            _ => scrambled % 40,
        };
        format!("{{\"p\":{id},\"x\":\"{}\"}}", "x".repeat(len as usize))
    }

    /// The publish was taken.
    pub(crate) fn accepted(&mut self, channel: usize) {
        self.channels[channel].accepted += 1;
    }

    /// Nobody will hear what became of the publish.
    pub(crate) fn unknown(&mut self, channel: usize) {
        self.channels[channel].unknown += 1;
    }

    /// The publish was answered with an error.
    pub(crate) fn refuse(&mut self, id: Id) {
        assert_eq!(self.published[id as usize].at, None, "publication {id} was refused and stands somewhere");
        self.refused.insert(id);
    }

    /// Which publication a payload is; everything in it must be as it was published.
    pub(crate) fn identify(&self, channel: usize, data: &[u8], client: Option<&str>) -> Id {
        let text = std::str::from_utf8(data).expect("payloads are text");
        let digits = text.strip_prefix("{\"p\":").and_then(|rest| rest.split_once(','));
        let id: Id = digits.and_then(|(digits, _)| digits.parse().ok()).unwrap_or_else(|| panic!("payload {text:?}"));
        let published = self.published.get(id as usize).unwrap_or_else(|| panic!("{id} was never published"));
        assert_eq!(text, self.payload(id), "the payload was changed");
        assert_eq!(published.channel, channel, "publication {id} came on another channel");
        assert_eq!(published.client.as_deref(), client, "publication {id} names another publisher");
        id
    }

    /// A publication stands at an offset.
    pub(crate) fn place(&mut self, channel: usize, epoch: &str, offset: u64, id: Id) {
        assert!(offset > 0, "offset 0 was given");
        assert!(!self.refused.contains(&id), "publication {id} was refused and stands at {offset}");
        let epochs = &mut self.channels[channel].epochs;
        if !epochs.contains_key(epoch) {
            epochs.insert(epoch.to_owned(), Vec::new());
        }
        let places = epochs.get_mut(epoch).expect("just made");
        let index = offset as usize - 1;
        if places.len() <= index {
            assert!(index < self.published.len(), "offset {offset} is above all that was published");
            places.resize(index + 1, None);
        }
        match places[index] {
            Some(other) => assert_eq!(other, id, "two publications at offset {offset} of channel {channel}"),
            None => places[index] = Some(id),
        }
        match &self.published[id as usize].at {
            Some((own, at)) => assert_eq!((own.as_str(), *at), (epoch, offset), "publication {id} has two places"),
            None => self.published[id as usize].at = Some((epoch.to_owned(), offset)),
        }
    }

    /// Where a publication stands, if anybody knows.
    pub(crate) fn position(&self, id: Id) -> Option<(&str, u64)> {
        self.published[id as usize].at.as_ref().map(|(epoch, offset)| (epoch.as_str(), *offset))
    }

    /// What somebody saw, from subscribe to unsubscribe, in a channel without history.
    pub(crate) fn saw_unnumbered(&mut self, channel: usize, ids: Vec<Id>) {
        self.unnumbered.push((channel, ids));
    }

    /// Highest offset known under an epoch; 0: none.
    pub(crate) fn top(&self, channel: usize, epoch: &str) -> u64 {
        self.channels[channel].epochs.get(epoch).map_or(0, |places| places.len() as u64)
    }

    /// An epoch of the channel and its highest offset known.
    pub(crate) fn newest(&self, channel: usize) -> Option<(String, u64)> {
        let (epoch, places) = self.channels[channel].epochs.iter().next_back()?;
        Some((epoch.clone(), places.len() as u64))
    }

    /// The last of all publications that were given a number in a channel without history.
    pub(crate) fn last(&self, channel: usize) -> Option<Id> {
        let in_channel = self.published.iter().enumerate().filter(|(_, published)| published.channel == channel);
        in_channel.filter(|(_, published)| published.at.is_some()).map(|(id, _)| id as Id).max()
    }

    /// Everything that can only be said when all is quiet.
    pub(crate) fn finish(&self) {
        for (number, channel) in self.channels.iter().enumerate() {
            let tops: u64 = channel.epochs.values().map(|places| places.len() as u64).sum();
            let most = channel.accepted + channel.unknown;
            assert!(tops <= most, "channel {number}: {tops} offsets for at most {most} publishes");
            // Where channels are forgotten, one may have had an epoch of which nobody has seen anything.
            if channel.epochs.len() == 1 && channel.lasting {
                let accepted = channel.accepted;
                assert!(tops >= accepted, "channel {number}: {accepted} publishes accepted, {tops} offsets given");
            }
            for places in channel.epochs.values().filter(|_| !channel.fleeting) {
                let mut newest: BTreeMap<u64, Id> = BTreeMap::new();
                let in_order = |id: &&Id| !(channel.asked && self.published[**id as usize].client.is_some());
                for id in places.iter().flatten().filter(in_order) {
                    let before = newest.insert(self.published[*id as usize].connection, *id);
                    assert!(before.is_none_or(|before| before < *id), "{before:?} and {id} of one connection swapped");
                }
            }
        }
        for (channel, ids) in &self.unnumbered {
            let places: Vec<_> = ids.iter().map(|id| self.position(*id).expect("acknowledged by now")).collect();
            for pair in places.windows(2) {
                let ((epoch, offset), (next_epoch, next)) = (pair[0], pair[1]);
                assert_eq!((epoch, offset + 1), (next_epoch, next), "a hole in channel {channel} without history");
            }
        }
    }
}
