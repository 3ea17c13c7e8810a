//! What each subscription received against what its channel's one writer sent, across reconnects.
//!
//! In: answers to subscribes, deliveries, at the end how many publications there were and which nobody confirmed. Out:
//! [`Counts`].
//!
//! ```text
//! position: (epoch, offset) as the server told it, next sequence number as the writer counts
//! delivery:  number as expected  -> received          larger  -> the numbers between are lost
//!            smaller, was lost   -> disordered        smaller -> duplicate
//! behind recovered:false the first delivery sets the number anew: what it skips is announced, not lost
//! ```
//!
//! Invariants: each publication and subscription is in exactly one of received, lost, announced or (at the end)
//! unconfirmed; offsets are judged apart from numbers: each must be the one before plus one under one epoch.
use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use crate::checker::Layout;

/// Lost numbers that one worker remembers, to tell a late delivery from a repetition. Over: counted in
/// [`Counts::not_remembered`]; a late one then counts as a duplicate.
const HOLES_MAX: usize = 1_000_000;
/// Announced gaps that one worker remembers. Over: counted in [`Counts::not_remembered`]; a number that its writer never
/// had confirmed may then count as lost.
const ANNOUNCED_MAX: usize = 1_000_000;
/// Wrong deliveries of one worker that are told one by one. Over: only counted.
pub const EXAMPLES_MAX: usize = 8;

/// What came, and what was wrong with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Deliveries that came for the first time.
    pub received: u64,
    /// Of them, those that came in answers to subscribes.
    pub recovered: u64,
    /// Publications that did not come, and of which nothing was said.
    pub lost: u64,
    /// Of those, publications missing when the run had ended and everybody had had time.
    pub missing_at_end: u64,
    /// Publications that did not come, behind `recovered:false`.
    pub announced: u64,
    /// Deliveries that came again behind `recovered:false`: what the engine had lost and got once more.
    pub announced_repeats: u64,
    /// Deliveries that had come before.
    pub duplicates: u64,
    /// Deliveries that came after a later one.
    pub disordered: u64,
    /// Offsets that were not the one before plus one under the epoch.
    pub wrong_offsets: u64,
    /// Answers `recovered:true` under another epoch than was asked for.
    pub wrong_epochs: u64,
    /// Answers `recovered:true`.
    pub recoveries: u64,
    /// Answers `recovered:false`.
    pub unrecovered: u64,
    /// Of those, the ones behind which nothing was missing.
    pub unrecovered_needlessly: u64,
    /// Deliveries of another run, of a channel that the client has not, or before the answer to its subscribe.
    pub foreign: u64,
    /// Lost or announced numbers for which there was no room.
    pub not_remembered: u64,
    /// Of a writer that was cut off: numbers that came behind a later one, because the writer did not wait for them.
    pub late_unconfirmed: u64,
    /// Of a writer that was cut off: numbers that no subscriber ever saw, so that they were not published.
    pub unpublished: u64,
}

impl Counts {
    /// Adds another part's counts.
    pub fn add(&mut self, other: &Counts) {
        let pairs: [(&mut u64, u64); 17] = [
            (&mut self.received, other.received),
            (&mut self.recovered, other.recovered),
            (&mut self.lost, other.lost),
            (&mut self.missing_at_end, other.missing_at_end),
            (&mut self.announced, other.announced),
            (&mut self.announced_repeats, other.announced_repeats),
            (&mut self.duplicates, other.duplicates),
            (&mut self.disordered, other.disordered),
            (&mut self.wrong_offsets, other.wrong_offsets),
            (&mut self.wrong_epochs, other.wrong_epochs),
            (&mut self.recoveries, other.recoveries),
            (&mut self.unrecovered, other.unrecovered),
            (&mut self.unrecovered_needlessly, other.unrecovered_needlessly),
            (&mut self.foreign, other.foreign),
            (&mut self.not_remembered, other.not_remembered),
            (&mut self.late_unconfirmed, other.late_unconfirmed),
            (&mut self.unpublished, other.unpublished),
        ];
        for (sum, part) in pairs {
            *sum += part;
        }
    }

    /// Whether nothing is wrong that the server had not announced.
    pub fn never_silent(&self) -> bool {
        self.lost + self.duplicates + self.disordered + self.wrong_offsets + self.wrong_epochs + self.foreign == 0
    }

    /// Whether everything came once and in order.
    pub fn intact(&self) -> bool {
        self.never_silent() && self.announced == 0 && self.announced_repeats == 0
    }
}

/// Where a subscription stands.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    offset: u64,
    /// Number of its epoch, from 1; 0: not subscribed yet.
    epoch: u32,
    /// Sequence number that comes next.
    next: u32,
    /// The server has said that something may be missing, and nothing has come since.
    announced: bool,
    /// It has ever said so.
    unrecovered: bool,
    /// It was answered when everything had been published.
    answered_last: bool,
}

/// A server's answer to a subscribe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    /// Epoch of the channel.
    pub epoch: &'a str,
    /// Its top, or the position asked for.
    pub offset: u64,
    /// Whether everything since the position asked for comes.
    pub recovered: bool,
}

/// How a number that its writer never had confirmed looks to the subscribers of one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unconfirmed {
    /// Channel.
    pub channel: u32,
    /// Number.
    pub sequence: u32,
    /// Subscriptions that count it as lost.
    pub lost: u64,
    /// Of those, subscriptions to which nothing came behind it.
    pub missing_at_end: u64,
    /// Subscriptions that skipped it behind `recovered:false`.
    pub announced: u64,
}

/// The checker of one worker's clients.
#[derive(Debug)]
pub struct PositionChecker {
    layout: Layout,
    first_connection: u64,
    places: Vec<Place>,
    epochs: Vec<Box<str>>,
    epoch_numbers: HashMap<Box<str>, u32>,
    /// (subscription, number) that were skipped in silence.
    holes: BTreeSet<(u32, u32)>,
    /// (subscription, from, to) that were skipped behind an announcement.
    announced: Vec<(u32, u32, u32)>,
    /// (subscription, number) that came behind a later one.
    late: Vec<(u32, u32)>,
    counts: Counts,
    /// (subscription, number) that came again, somewhere behind an announcement.
    again: Vec<(u32, u32)>,
    examples: Vec<String>,
    /// Publications of each channel that are due, once nothing more is published.
    due: Option<Vec<u32>>,
}

impl PositionChecker {
    /// A checker for `connections` clients from number `first_connection`; every number is expected from 0.
    pub fn new(layout: Layout, first_connection: u64, connections: u32) -> PositionChecker {
        let subscriptions = connections as usize * layout.subscriptions as usize;
        PositionChecker {
            layout,
            first_connection,
            places: vec![Place::default(); subscriptions],
            epochs: Vec::new(),
            epoch_numbers: HashMap::new(),
            holes: BTreeSet::new(),
            announced: Vec::new(),
            late: Vec::new(),
            counts: Counts::default(),
            again: Vec::new(),
            examples: Vec::new(),
            due: None,
        }
    }

    /// Index of a subscription among all of this worker's, by client and channel; none: the client has not this channel.
    pub fn subscription(&self, connection: u32, channel: u32) -> Option<u32> {
        let index = self.layout.index(self.first_connection + u64::from(connection), channel)?;
        Some(connection * self.layout.subscriptions + index)
    }

    fn channel_of(&self, subscription: u32) -> u32 {
        let subscriptions = self.layout.subscriptions;
        let connection = self.first_connection + u64::from(subscription / subscriptions);
        self.layout.channel(connection, subscription % subscriptions)
    }

    /// The position to recover from: epoch and offset. None: it has never been subscribed.
    pub fn position(&self, subscription: u32) -> Option<(&str, u64)> {
        let place = &self.places[subscription as usize];
        let epoch = self.epochs.get((place.epoch as usize).checked_sub(1)?)?;
        Some((epoch, place.offset))
    }

    /// Takes the answer to a subscribe; the publications that came with it are deliveries behind this.
    pub fn answered(&mut self, subscription: u32, answer: Answer<'_>) {
        let epoch = self.epoch_number(answer.epoch);
        let place = &mut self.places[subscription as usize];
        place.answered_last = self.due.is_some();
        if place.epoch == 0 {
            (place.epoch, place.offset) = (epoch, answer.offset);
        } else if answer.recovered {
            self.counts.recoveries += 1;
            self.counts.wrong_epochs += u64::from(place.epoch != epoch);
            place.epoch = epoch;
        } else {
            self.counts.unrecovered += 1;
            (place.epoch, place.offset) = (epoch, answer.offset);
            (place.announced, place.unrecovered) = (true, true);
        }
    }

    fn epoch_number(&mut self, epoch: &str) -> u32 {
        if let Some(number) = self.epoch_numbers.get(epoch) {
            return *number;
        }
        self.epochs.push(epoch.into());
        let number = self.epochs.len() as u32;
        self.epoch_numbers.insert(epoch.into(), number);
        number
    }

    /// A delivery came that belongs to no subscription.
    pub fn count_foreign(&mut self) {
        self.counts.foreign += 1;
    }

    /// So many deliveries came in an answer to a subscribe.
    pub fn count_recovered(&mut self, deliveries: u64) {
        self.counts.recovered += deliveries;
    }

    /// Takes one delivery with the number of its writer and the offset of the server. True: it counts as received.
    pub fn take(&mut self, subscription: u32, sequence: u32, offset: u64) -> bool {
        let place = &mut self.places[subscription as usize];
        if place.epoch == 0 {
            self.counts.foreign += 1;
            return false;
        }
        self.counts.wrong_offsets += u64::from(offset != place.offset + 1);
        // SDKs keep the largest: a repetition does not throw them back.
        place.offset = place.offset.max(offset);
        let next = place.next;
        if place.announced {
            place.announced = false;
            place.next = sequence + 1;
            self.counts.received += 1;
            self.announcement_over(subscription, next, sequence);
            return true;
        }
        if sequence < next {
            return self.take_old(subscription, sequence, offset);
        }
        place.next = sequence + 1;
        self.counts.received += 1;
        self.lose(subscription, next, sequence);
        true
    }

    fn announcement_over(&mut self, subscription: u32, next: u32, sequence: u32) {
        self.counts.announced += u64::from(sequence.saturating_sub(next));
        self.counts.announced_repeats += u64::from(next.saturating_sub(sequence));
        self.counts.unrecovered_needlessly += u64::from(sequence == next);
        if sequence > next {
            if self.announced.len() < ANNOUNCED_MAX {
                self.announced.push((subscription, next, sequence));
            } else {
                self.counts.not_remembered += 1;
            }
        }
    }

    fn lose(&mut self, subscription: u32, from: u32, to: u32) {
        self.counts.lost += u64::from(to - from);
        for sequence in from..to {
            if self.holes.len() >= HOLES_MAX {
                self.counts.not_remembered += u64::from(to - sequence);
                return;
            }
            self.holes.insert((subscription, sequence));
        }
    }

    fn take_old(&mut self, subscription: u32, sequence: u32, offset: u64) -> bool {
        let is_new = self.holes.remove(&(subscription, sequence));
        if self.examples.len() < EXAMPLES_MAX {
            let place = self.places[subscription as usize];
            let epoch = self.epochs.get((place.epoch as usize).wrapping_sub(1)).map_or("none", |epoch| epoch);
            let channel = self.channel_of(subscription);
            let (what, next) = (if is_new { "late" } else { "again" }, place.next);
            let text = format!(
                "subscription {subscription} of channel {channel}: number {sequence} {what} at {offset} of {epoch}, not {next}"
            );
            self.examples.push(text);
        }
        if !is_new {
            self.counts.duplicates += 1;
            if self.places[subscription as usize].unrecovered && self.again.len() < HOLES_MAX {
                self.again.push((subscription, sequence));
            }
            return false;
        }
        self.counts.lost -= 1;
        self.counts.disordered += 1;
        self.counts.received += 1;
        if self.late.len() < HOLES_MAX {
            self.late.push((subscription, sequence));
        } else {
            self.counts.not_remembered += 1;
        }
        true
    }

    /// Everything was published: `confirmed` publications of each channel, which is what is due from here on.
    pub fn ended(&mut self, confirmed: Vec<u32>) {
        self.due = Some(confirmed);
    }

    /// Whether every subscription has what its writer had confirmed. One behind an announcement may have no more to come;
    /// only an answer behind the last publication says so.
    pub fn settled(&self) -> bool {
        let told = |place: &Place| place.announced && place.answered_last;
        self.due.is_some() && self.indices().all(|one| !self.is_behind(one) || told(&self.places[one as usize]))
    }

    /// Subscriptions that have to ask once more, because nothing came behind an announcement.
    pub fn in_doubt(&self) -> Vec<u32> {
        let doubtful = |place: &Place| place.announced && !place.answered_last;
        self.indices().filter(|&one| self.is_behind(one) && doubtful(&self.places[one as usize])).collect()
    }

    fn indices(&self) -> std::ops::Range<u32> {
        0..self.places.len() as u32
    }

    /// Whether a subscription lacks something that is due.
    fn is_behind(&self, subscription: u32) -> bool {
        let Some(due) = &self.due else { return false };
        let due = due.get(self.channel_of(subscription) as usize).copied().unwrap_or(0);
        self.places[subscription as usize].next < due
    }

    /// The first deliveries that came again or late, in words.
    pub fn examples(&self) -> &[String] {
        &self.examples
    }

    /// The counts so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The end: what of `written` publications per channel is missing now, and how `unconfirmed` numbers look from here.
    pub fn finish(&mut self, written: &[u32], unconfirmed: &[(u32, u32)]) -> (Counts, Vec<Unconfirmed>) {
        let mut tallies: BTreeMap<(u32, u32), Unconfirmed> = BTreeMap::new();
        for &(channel, sequence) in unconfirmed {
            tallies.insert((channel, sequence), Unconfirmed { channel, sequence, ..Unconfirmed::default() });
        }
        for subscription in 0..self.places.len() as u32 {
            let channel = self.channel_of(subscription);
            let place = self.places[subscription as usize];
            let due = written.get(channel as usize).copied().unwrap_or(0);
            if due <= place.next {
                continue;
            }
            self.places[subscription as usize].next = due;
            if place.announced {
                self.announcement_over(subscription, place.next, due);
            } else {
                self.counts.missing_at_end += u64::from(due - place.next);
                self.lose(subscription, place.next, due);
                for (_, tally) in tallies.range_mut((channel, place.next)..(channel, due)) {
                    tally.missing_at_end += 1;
                }
            }
        }
        for &(subscription, sequence) in &self.holes {
            if let Some(tally) = tallies.get_mut(&(self.channel_of(subscription), sequence)) {
                tally.lost += 1;
            }
        }
        for &(subscription, from, to) in &self.announced {
            let channel = self.channel_of(subscription);
            for (_, tally) in tallies.range_mut((channel, from)..(channel, to)) {
                tally.announced += 1;
            }
        }
        for &(subscription, sequence) in &self.late {
            if tallies.contains_key(&(self.channel_of(subscription), sequence)) {
                self.counts.disordered -= 1;
                self.counts.late_unconfirmed += 1;
            }
        }
        // What nobody had confirmed may be carried out late, by an engine that had lost it: once more for who saw it.
        for &(subscription, sequence) in &self.again {
            if tallies.contains_key(&(self.channel_of(subscription), sequence)) {
                self.counts.duplicates -= 1;
                self.counts.announced_repeats += 1;
            }
        }
        (self.counts, tallies.into_values().collect())
    }
}

/// Takes back as lost what was never published: numbers that no subscriber in the whole run saw. `parts` are those of
/// all workers.
pub fn discount(counts: &mut Counts, layout: Layout, connections: u64, parts: impl Iterator<Item = Unconfirmed>) {
    let mut sums: BTreeMap<(u32, u32), Unconfirmed> = BTreeMap::new();
    for part in parts {
        let sum = sums.entry((part.channel, part.sequence)).or_default();
        sum.lost += part.lost;
        sum.missing_at_end += part.missing_at_end;
        sum.announced += part.announced;
    }
    let mut subscribers = vec![0u64; layout.channels as usize];
    for connection in 0..connections {
        for index in 0..layout.subscriptions {
            subscribers[layout.channel(connection, index) as usize] += 1;
        }
    }
    for ((channel, _), sum) in sums {
        if sum.lost + sum.announced >= subscribers.get(channel as usize).copied().unwrap_or(0) {
            counts.lost -= sum.lost;
            counts.missing_at_end -= sum.missing_at_end;
            counts.announced -= sum.announced;
            counts.unpublished += 1;
        }
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
