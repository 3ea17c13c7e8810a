//! The oracle of the fleet: what stands where in which history, what was acknowledged, and what clients may be told.
//!
//! In: every batch that the engine's model has numbered, every publish and its answer, everything that a client sees. Out: a
//! failure at the first contradiction; counts. Claims: a history holds a publication once; what is acknowledged stands where
//! the answer says; what was refused stands nowhere; publications of one connection keep their order.

use std::collections::{BTreeMap, BTreeSet};

use ringway_engine::ids::Epoch;
use ringway_engine::lane_message::Position;

use crate::ledger::Counts;

use super::engine::id_of;

/// Number of a publication, unique in a run and ascending in the order of sending. It stands in the payload.
pub(crate) type Id = u64;

/// See the file's header.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    published: Vec<Published>,
    /// All that a history ever held, by channel and epoch.
    past: BTreeMap<(String, String), Vec<Id>>,
    connections: u64,
    pub(crate) counts: Counts,
    pub(crate) orders: Orders,
}

/// Orders that were ever given about users, as (user, channel).
#[derive(Debug, Default)]
pub(crate) struct Orders {
    pub(crate) subscribed: BTreeSet<(usize, usize)>,
    pub(crate) unsubscribed: BTreeSet<(usize, usize)>,
    pub(crate) disconnected: BTreeSet<usize>,
    /// Users that were ordered to have less since everything was at rest: such an order may still be on its way.
    pub(crate) ending: BTreeSet<usize>,
    /// Users of whom something was parked that may be another connection's.
    pub(crate) not_alone: BTreeSet<String>,
}

#[derive(Debug)]
struct Published {
    channel: String,
    /// Through which it was sent first.
    connection: u64,
    /// Sent more than once.
    repeated: bool,
    fate: Fate,
}

/// What whoever published knows.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    /// Epoch and offset, if the answer says them.
    Acknowledged(Option<(String, u64)>),
    Refused,
    Unknown,
}

impl Truth {
    pub(crate) fn connection(&mut self) -> u64 {
        self.connections += 1;
        self.connections
    }

    /// A new publication.
    pub(crate) fn publish(&mut self, channel: &str, connection: u64) -> Id {
        let (channel, repeated, fate) = (channel.to_owned(), false, Fate::Open);
        self.published.push(Published { channel, connection, repeated, fate });
        self.published.len() as Id - 1
    }

    /// It is sent again, under its key.
    pub(crate) fn repeat(&mut self, id: Id) {
        self.published[id as usize].repeated = true;
    }

    /// A history begins.
    pub(crate) fn begin_epoch(&mut self, channel: &str, epoch: Epoch) {
        self.past.entry((channel.to_owned(), epoch.to_string())).or_default();
    }

    /// The engine has numbered a batch.
    pub(crate) fn happened(&mut self, channel: &str, first: Position, records: &[Box<[u8]>]) {
        let past = self.past.get_mut(&(channel.to_owned(), first.epoch.to_string())).expect("a history that has begun");
        for record in records {
            let id = id_of(record);
            assert_eq!(self.published[id as usize].channel, channel, "publication {id} stands in another channel");
            assert!(!past.contains(&id), "publication {id} stands twice in one history of {channel}");
            past.push(id);
        }
        assert_eq!(past.len() as u64, first.offset + records.len() as u64 - 1, "offsets are dense");
    }

    /// Acknowledged, and where.
    pub(crate) fn acknowledge(&mut self, id: Id, at: Option<(&str, u64)>) {
        self.counts.acked += 1;
        let channel = self.published[id as usize].channel.clone();
        match at {
            Some((epoch, offset)) => {
                assert_eq!(self.at(&channel, epoch, offset), id, "acknowledged elsewhere than it stands");
            }
            None => assert!(self.stands(id), "publication {id} was acknowledged and stands nowhere"),
        }
        let at = at.map(|(epoch, offset)| (epoch.to_owned(), offset));
        self.published[id as usize].fate = Fate::Acknowledged(at);
    }

    /// Refused; `surely`: the answer says that it has not happened.
    pub(crate) fn refuse(&mut self, id: Id, surely: bool) {
        self.counts.note(if surely { "publishes refused" } else { "publishes unknown" }, 1);
        let surely = surely && !self.published[id as usize].repeated;
        self.published[id as usize].fate = if surely { Fate::Refused } else { Fate::Unknown };
    }

    fn stands(&self, id: Id) -> bool {
        self.past.values().any(|past| past.contains(&id))
    }

    /// What stands at an offset of a history; fails when nothing does.
    pub(crate) fn at(&self, channel: &str, epoch: &str, offset: u64) -> Id {
        let past = self.past.get(&(channel.to_owned(), epoch.to_owned()));
        let past = past.unwrap_or_else(|| panic!("{channel} never had the epoch {epoch}"));
        let id = offset.checked_sub(1).and_then(|index| past.get(index as usize));
        *id.unwrap_or_else(|| panic!("nothing stands at {offset} of {channel}, epoch {epoch}"))
    }

    /// Where a publication of a channel stands: epoch and offset, in each history that has it.
    pub(crate) fn places(&self, channel: &str, id: Id) -> Vec<(String, u64)> {
        let of_channel = self.past.iter().filter(|((name, _), _)| name == channel);
        let places = of_channel.filter_map(|((_, epoch), past)| {
            let index = past.iter().position(|one| *one == id)?;
            Some((epoch.clone(), index as u64 + 1))
        });
        places.collect()
    }

    /// Highest offset of each history of a channel.
    pub(crate) fn tops(&self, channel: &str) -> BTreeMap<String, u64> {
        let of_channel = self.past.iter().filter(|((name, _), _)| name == channel);
        of_channel.map(|((_, epoch), past)| (epoch.clone(), past.len() as u64)).collect()
    }

    /// Highest offset of a history.
    pub(crate) fn top(&self, channel: &str, epoch: &str) -> u64 {
        self.past.get(&(channel.to_owned(), epoch.to_owned())).map_or(0, |past| past.len() as u64)
    }

    /// Nothing is under way any more.
    pub(crate) fn finish(&self) {
        for (id, published) in self.published.iter().enumerate() {
            let id = id as Id;
            match published.fate {
                Fate::Open => panic!("publication {id} was never answered: {published:?}"),
                Fate::Refused => assert!(!self.stands(id), "publication {id} was refused and stands somewhere"),
                Fate::Acknowledged(_) => assert!(self.stands(id), "publication {id} was acknowledged"),
                Fate::Unknown => {}
            }
        }
        for ((channel, epoch), past) in &self.past {
            let mut newest: BTreeMap<u64, Id> = BTreeMap::new();
            for id in past.iter().filter(|id| !self.published[**id as usize].repeated) {
                let before = newest.insert(self.published[*id as usize].connection, *id);
                let rises = before.is_none_or(|before| before < *id);
                assert!(rises, "{before:?} and {id} of one connection swapped in {channel}, epoch {epoch}");
            }
        }
    }
}

/// A publication's payload.
pub(crate) fn payload(id: Id) -> String {
    format!("{{\"p\":{id}}}")
}

/// The number in a payload, which must be whole.
pub(crate) fn id_in(payload: &[u8]) -> Id {
    let text = std::str::from_utf8(payload).expect("payloads are text");
    let digits = text.strip_prefix("{\"p\":").and_then(|rest| rest.strip_suffix('}'));
    digits.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("payload {text:?}"))
}
