//! A subscription as a client of the fleet sees it, and pages of history: both are compared with the engine's histories.
//!
//! In: publications that a client was sent, and answers to its history commands. Out: a failure at the first that is not the one that
//! stands there. Claims: with positions, each publication is the next one; without, each stands behind the one before it; a page is
//! exactly what is kept, up to a top that was the channel's between question and answer.

use std::collections::{BTreeMap, BTreeSet};

use crate::presence::Roster;
use crate::speech::Publication;

use super::client::{Around, Position};
use super::truth::id_in;

/// A subscription, as the client sees it.
#[derive(Debug)]
pub(crate) struct Stay {
    pub(crate) epoch: String,
    pub(crate) next: u64,
    pub(crate) server_side: bool,
    pub(crate) roster: Option<Roster>,
    /// Of a channel without positions: the last that came, and epochs that it has left.
    pub(crate) seen: Option<Position>,
    pub(crate) left: BTreeSet<String>,
}

impl Stay {
    pub(crate) const fn new(epoch: String, offset: u64, server_side: bool, roster: Option<Roster>) -> Self {
        Stay { epoch, next: offset + 1, server_side, roster, seen: None, left: BTreeSet::new() }
    }

    pub(crate) fn position(&self) -> Position {
        (self.next - 1, self.epoch.clone())
    }

    pub(crate) fn publication(&mut self, channel: usize, publication: &Publication, around: &mut Around<'_>) {
        if !around.plan.has_positions(channel) {
            return self.fleeting(channel, publication, around);
        }
        assert_eq!(publication.offset, self.next, "channel {channel}, epoch {}", self.epoch);
        let stands = around.truth.at(&around.plan.channels[channel].name, &self.epoch, self.next);
        assert_eq!(id_in(&publication.data), stands, "another publication at {} of channel {channel}", self.next);
        self.next += 1;
    }

    /// Without offsets: behind all that came before it, and not once more.
    fn fleeting(&mut self, channel: usize, publication: &Publication, around: &mut Around<'_>) {
        assert_eq!(publication.offset, 0, "channel {channel} has no positions");
        // What was sent again to an engine that had lost it stands in two histories.
        let places = around.truth.places(&around.plan.channels[channel].name, id_in(&publication.data));
        let may_be = |(epoch, offset): &&(String, u64)| match &self.seen {
            Some(before) if before.1 == *epoch => before.0 < *offset,
            _ => !self.left.contains(epoch),
        };
        let same = |place: &&(String, u64)| self.seen.as_ref().is_some_and(|before| before.1 == place.0);
        let place = places.iter().filter(may_be).find(same).or_else(|| places.iter().find(may_be));
        let place = place.unwrap_or_else(|| panic!("{places:?} of channel {channel} came behind {:?}", self.seen));
        let now = (place.1, place.0.clone());
        if let Some(before) = self.seen.replace(now.clone()) {
            if before.1 != now.1 {
                self.left.insert(before.1);
            } else {
                around.truth.counts.note("fleeting in order", 1);
                around.truth.counts.note("fleeting missed", now.0 - before.0 - 1);
            }
        }
    }
}

/// A page of history. `asked`: limit, and whether the newest come first; `tops`: of the channel's histories when it was asked.
pub(crate) fn page(
    channel: usize,
    (limit, reverse): (i32, bool),
    tops: &BTreeMap<String, u64>,
    (publications, epoch, offset): (&[Publication], &str, u64),
    around: &mut Around<'_>,
) {
    let name = &around.plan.channels[channel].name;
    let newest = around.truth.top(name, epoch);
    let oldest = tops.get(epoch).copied().unwrap_or(0);
    assert!((oldest..=newest).contains(&offset), "top {offset}, not {oldest} to {newest}, of {name}, {epoch}");
    let kept = offset.saturating_sub(around.plan.history_size.into()) + 1..=offset;
    let mut expected: Vec<u64> = if reverse { kept.rev().collect() } else { kept.collect() };
    expected.truncate(limit as usize);
    let given: Vec<u64> = publications.iter().map(|publication| publication.offset).collect();
    assert_eq!(given, expected, "history of {name}, top {offset}, limit {limit}, reverse {reverse}");
    for publication in publications {
        let stands = around.truth.at(name, epoch, publication.offset);
        assert_eq!(id_in(&publication.data), stands, "another at {} of {name}", publication.offset);
    }
    around.truth.counts.note("history compared", publications.len() as u64);
}
