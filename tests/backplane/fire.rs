//! Nodes that publish, and nodes that follow and leave at random, while a test does to the engine what it likes.
//!
//! In: nodes, a number of rounds, a fault per round. Out: a panic where the contract does not hold. The oracle: behind a
//! follow's answer the feed is dense until `Broken`; a record has one position and a position one record; what was
//! acknowledged is there as long as its epoch is; when the faults are over everybody knows each channel's top.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use ringway_engine::backplane::{Answer, Buckets, Fed, PublishBatch, Refusal, Request, Subject};
use ringway_engine::ids::Epoch;
use ringway_engine::lane_message::Position;
use ringway_engine::route;

use crate::dice::Dice;
use crate::node::{Node, PATIENCE};

const CHANNELS: usize = 24;
/// More than is ever published on one of them, so that nothing ages out.
const HISTORY: u32 = 100_000;
/// How long a round waits for something to happen.
const ROUND: Duration = Duration::from_millis(2);

/// See the file's header.
pub(crate) struct Fire {
    dice: Dice,
    publishers: Vec<Publisher>,
    followers: Vec<Follower>,
    ledger: Ledger,
    channels: Vec<String>,
    /// Publishes are only acknowledged once a replica has them.
    pub(crate) replicated: bool,
    /// An engine may lose what it had: what was sent again may stand in another history too.
    pub(crate) forgets: bool,
    /// Times a follower found another epoch than it knew.
    pub(crate) epoch_changes: u64,
    pub(crate) unknown: u64,
    pub(crate) unavailable: u64,
    pub(crate) acknowledged: u64,
}

struct Publisher {
    node: Node,
    /// By channel: what is under way.
    under_way: BTreeMap<usize, UnderWay>,
}

struct UnderWay {
    batch: PublishBatch,
    /// While it is asked for.
    token: Option<u64>,
    /// An earlier try may have happened.
    maybe: bool,
}

struct Follower {
    node: Node,
    states: Vec<State>,
}

#[derive(Default)]
struct State {
    wanted: bool,
    /// Token of a follow under way.
    asked: Option<u64>,
    /// The follow was answered, and nothing broke since.
    is_live: bool,
    /// What this node has.
    cursor: Option<Position>,
    leaving: Option<u64>,
    /// Something broke while a follow was under way.
    is_tainted: bool,
}

/// What is known to be so.
#[derive(Default)]
struct Ledger {
    next: u64,
    records: HashMap<(usize, Epoch, u64), u64>,
    places: HashMap<u64, (usize, Epoch, u64)>,
    acknowledged: Vec<(usize, Epoch, u64, u64)>,
    /// Said not to have happened.
    refused: HashSet<u64>,
}

impl Publisher {
    /// Asks for what is not asked for, where the engine can be reached.
    fn submit(&mut self) {
        for one in self.under_way.values_mut() {
            if one.token.is_none() && self.node.open.contains(route::bucket(&one.batch.channel)) {
                // Each time another one: an engine that has lost its memory may get both copies.
                one.batch.fresh = self.node.fresh();
                one.token = Some(self.node.submit(Request::Publish(one.batch.clone())));
            }
        }
    }
}

impl Ledger {
    #[track_caller]
    fn seen(&mut self, forgets: bool, channel: usize, epoch: Epoch, offset: u64, record: &[u8]) {
        let id = u64::from_le_bytes(record.try_into().expect("8 bytes"));
        assert!(!self.refused.contains(&id), "record {id} was refused and is there");
        let was = *self.records.entry((channel, epoch, offset)).or_insert(id);
        assert_eq!(was, id, "two records at {offset} of {epoch} in channel {channel}");
        let place = self.places.entry(id).or_insert((channel, epoch, offset));
        if forgets && place.1 != epoch {
            *place = (channel, epoch, offset);
        }
        assert_eq!(*place, (channel, epoch, offset), "record {id} has two positions");
    }
}

impl Fire {
    pub(crate) fn new(test: &str, publishers: Vec<Node>, followers: Vec<Node>) -> Fire {
        let dice = Dice::new(test);
        let publishers = publishers.into_iter().map(|node| Publisher { node, under_way: BTreeMap::new() }).collect();
        let states = || (0..CHANNELS).map(|_| State::default()).collect();
        Fire {
            dice,
            publishers,
            followers: followers.into_iter().map(|node| Follower { node, states: states() }).collect(),
            ledger: Ledger::default(),
            channels: (0..CHANNELS).map(|n| format!("fire:{test}:{n}")).collect(),
            replicated: false,
            forgets: false,
            epoch_changes: 0,
            unknown: 0,
            unavailable: 0,
            acknowledged: 0,
        }
    }

    /// Runs; before each round the fault may do something.
    pub(crate) fn rounds(&mut self, rounds: usize, fault: &mut dyn FnMut(usize, &mut Dice)) {
        for round in 0..rounds {
            fault(round, &mut self.dice);
            self.publish();
            self.change();
            self.step();
        }
    }

    /// Runs for so long.
    pub(crate) fn run_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.rounds(1, &mut |_, _| {});
        }
    }

    /// A channel's name.
    pub(crate) fn channel(&self, n: usize) -> &str {
        &self.channels[n]
    }

    /// Times that something was broken for a node.
    pub(crate) fn brokens(&self) -> u64 {
        let publishers: u64 = self.publishers.iter().map(|publisher| publisher.node.brokens).sum();
        publishers + self.followers.iter().map(|follower| follower.node.brokens).sum::<u64>()
    }

    fn publish(&mut self) {
        for publisher in &mut self.publishers {
            for _ in 0..4 {
                let channel = self.dice.below(CHANNELS);
                if publisher.under_way.contains_key(&channel) {
                    continue;
                }
                let records: Vec<[u8; 8]> = (0..1 + self.dice.below(3))
                    .map(|_| {
                        self.ledger.next += 1;
                        self.ledger.next.to_le_bytes()
                    })
                    .collect();
                let slices: Vec<&[u8]> = records.iter().map(|record| &record[..]).collect();
                let mut batch = publisher.node.batch(&self.channels[channel], &slices);
                batch.keep.size = HISTORY;
                batch.replicated = self.replicated;
                publisher.under_way.insert(channel, UnderWay { batch, token: None, maybe: false });
            }
            publisher.submit();
        }
    }

    /// Somebody comes or goes.
    fn change(&mut self) {
        for follower in &mut self.followers {
            let channel = self.dice.below(CHANNELS);
            let state = &mut follower.states[channel];
            if self.dice.below(3) == 0 && state.asked.is_none() && state.leaving.is_none() {
                state.wanted = !state.wanted;
            }
        }
        self.follow_wanted();
    }

    fn follow_wanted(&mut self) {
        for follower in &mut self.followers {
            for (channel, state) in follower.states.iter_mut().enumerate() {
                let name = &self.channels[channel];
                let is_open = follower.node.open.contains(route::bucket(name));
                if !is_open || state.asked.is_some() || state.leaving.is_some() {
                    continue;
                }
                if state.wanted && !state.is_live {
                    let request = follower.node.follow_request(name, state.cursor, HISTORY);
                    state.asked = Some(follower.node.submit(request));
                } else if !state.wanted && state.is_live {
                    state.is_live = false;
                    let subject = Subject::Channel(name.as_str().into());
                    state.leaving = Some(follower.node.submit(Request::Unfollow(subject)));
                }
            }
        }
    }

    fn step(&mut self) {
        for index in 0..self.publishers.len() {
            self.publishers[index].node.step(ROUND);
            self.publisher_answers(index);
        }
        for index in 0..self.followers.len() {
            self.followers[index].node.step(ROUND);
            self.follower_events(index);
        }
    }

    fn publisher_answers(&mut self, index: usize) {
        let publisher = &mut self.publishers[index];
        let mut done = Vec::new();
        for (channel, one) in &mut publisher.under_way {
            let Some(result) = one.token.and_then(|token| publisher.node.try_answer(token)) else { continue };
            one.token = None;
            match result {
                Ok(Answer::Published(published)) => {
                    assert!(!published.duplicate);
                    for (n, record) in one.batch.records.iter().enumerate() {
                        let (epoch, offset) = (published.first.epoch, published.first.offset + n as u64);
                        self.ledger.seen(self.forgets, *channel, epoch, offset, record);
                        let id = u64::from_le_bytes(record[..].try_into().expect("8 bytes"));
                        self.ledger.acknowledged.push((*channel, epoch, offset, id));
                    }
                    self.acknowledged += one.batch.records.len() as u64;
                    done.push(*channel);
                }
                Err(Refusal::Unavailable) => {
                    self.unavailable += 1;
                    // It has not happened, if no earlier try may have: half of the time it never will.
                    if !one.maybe && self.dice.below(2) == 0 {
                        let id = |record: &[u8]| u64::from_le_bytes(record.try_into().expect("8 bytes"));
                        self.ledger.refused.extend(one.batch.records.iter().map(|record| id(record)));
                        done.push(*channel);
                    }
                }
                Err(Refusal::Unknown) => {
                    self.unknown += 1;
                    one.maybe = true;
                }
                Ok(other) => panic!("{other:?}"),
            }
        }
        for channel in done {
            publisher.under_way.remove(&channel);
        }
    }

    fn follower_events(&mut self, index: usize) {
        let follower = &mut self.followers[index];
        let lost = std::mem::replace(&mut follower.node.lost, Buckets::NONE);
        for (channel, state) in follower.states.iter_mut().enumerate() {
            if lost.contains(route::bucket(&self.channels[channel])) {
                state.is_live = false;
                state.is_tainted = state.asked.is_some();
            }
        }
        self.follow_answers(index);
        let follower = &mut self.followers[index];
        let mut left = std::collections::VecDeque::new();
        while let Some(feed) = follower.node.feed.pop_front() {
            let Subject::Channel(name) = &feed.subject else { continue };
            let Some(channel) = self.channels.iter().position(|known| **known == **name) else { continue };
            let state = &mut follower.states[channel];
            if state.asked.is_some() {
                // It may stand behind the answer that is still to come.
                left.push_back(feed);
                continue;
            }
            if !state.is_live {
                continue;
            }
            let Fed::Publications { epoch, prev, first, records } = feed.what else { panic!("nobody tells") };
            let cursor = state.cursor.expect("a live channel has one");
            if epoch != cursor.epoch {
                // Late, or the channel began anew: a follow tells.
                state.is_live = false;
                continue;
            }
            assert!(
                prev <= cursor.offset,
                "follower {index} misses {} to {prev} of {name} ({epoch}); broken {} times",
                cursor.offset + 1,
                follower.node.brokens
            );
            for (offset, record) in (first..).zip(&records) {
                self.ledger.seen(self.forgets, channel, epoch, offset, record);
                let cursor = state.cursor.as_mut().expect("a live channel has one");
                cursor.offset = cursor.offset.max(offset);
            }
        }
        follower.node.feed = left;
    }

    fn follow_answers(&mut self, index: usize) {
        let follower = &mut self.followers[index];
        for (channel, state) in follower.states.iter_mut().enumerate() {
            if let Some(token) = state.leaving
                && follower.node.try_answer(token).is_some()
            {
                state.leaving = None;
            }
            let Some(result) = state.asked.and_then(|token| follower.node.try_answer(token)) else { continue };
            state.asked = None;
            let is_tainted = std::mem::take(&mut state.is_tainted);
            let Ok(answer) = result else { continue };
            let Answer::Page(page) = answer else { panic!("{answer:?}") };
            if !page.records.is_empty() {
                assert_eq!(page.first + page.records.len() as u64 - 1, page.top.offset, "a page that reaches the top");
            }
            match state.cursor {
                Some(cursor) if cursor.epoch == page.top.epoch => {
                    assert!(page.top.offset >= cursor.offset, "a top below what was seen, under the same epoch");
                    let missed = page.top.offset - cursor.offset;
                    assert_eq!(page.records.len() as u64, missed, "history fills what was missed");
                }
                Some(_) => self.epoch_changes += 1,
                None => {}
            }
            for (offset, record) in (page.first..).zip(&page.records) {
                self.ledger.seen(self.forgets, channel, page.top.epoch, offset, record);
            }
            state.cursor = Some(page.top);
            // What broke since it was asked is asked again.
            state.is_live = !is_tainted && follower.node.open.contains(route::bucket(&self.channels[channel]));
        }
    }

    /// The faults are over: everything comes to rest, and the oracle looks at all of it.
    #[track_caller]
    pub(crate) fn finish(&mut self) {
        let until = Instant::now() + PATIENCE;
        for follower in &mut self.followers {
            follower.states.iter_mut().for_each(|state| state.wanted = true);
        }
        loop {
            assert!(Instant::now() < until, "it does not come to rest: {}", self.unrest());
            for publisher in &mut self.publishers {
                publisher.submit();
            }
            self.follow_wanted();
            self.step();
            let published = self.publishers.iter().all(|publisher| publisher.under_way.is_empty());
            let live = self.followers.iter().all(|follower| follower.states.iter().all(|state| state.is_live));
            if published && live && self.know_the_tops() {
                break;
            }
        }
        self.check_history();
        println!(
            "acknowledged {}, unavailable {}, unknown {}, other epochs {}",
            self.acknowledged, self.unavailable, self.unknown, self.epoch_changes
        );
    }

    fn unrest(&self) -> String {
        let under_way: usize = self.publishers.iter().map(|publisher| publisher.under_way.len()).sum();
        let live = |follower: &Follower| follower.states.iter().filter(|state| state.is_live).count();
        let lives: Vec<usize> = self.followers.iter().map(live).collect();
        let open = |node: &Node| node.open.iter().count();
        let opens: Vec<usize> =
            self.publishers.iter().map(|p| open(&p.node)).chain(self.followers.iter().map(|f| open(&f.node))).collect();
        format!("{under_way} batches under way, live channels {lives:?}, open buckets {opens:?}")
    }

    /// Whether each follower has each channel's top; gives what is on its way some time.
    fn know_the_tops(&mut self) -> bool {
        for (channel, name) in self.channels.iter().enumerate() {
            let fresh = self.publishers[0].node.fresh();
            let read = ringway_engine::backplane::Read {
                channel: name.as_str().into(),
                since: None,
                limit: 0,
                bytes_max: 0,
                reverse: false,
                fresh,
            };
            let token = self.publishers[0].node.submit(Request::Read(read));
            let Ok(Answer::Page(page)) = self.publishers[0].node.answer(token) else { return false };
            if self.followers.iter().any(|follower| follower.states[channel].cursor != Some(page.top)) {
                return false;
            }
        }
        true
    }

    #[track_caller]
    fn check_history(&mut self) {
        for (channel, name) in self.channels.iter().enumerate() {
            let page = self.publishers[0].node.read(name, None, HISTORY, false);
            let kept: HashMap<u64, u64> = (page.first..)
                .zip(&page.records)
                .map(|(offset, record)| (offset, u64::from_le_bytes(record[..].try_into().expect("8 bytes"))))
                .collect();
            for (of, epoch, offset, id) in &self.ledger.acknowledged {
                if *of == channel && *epoch == page.top.epoch {
                    assert_eq!(kept.get(offset), Some(id), "acknowledged, same epoch, and not there: {name} {offset}");
                }
            }
        }
    }
}
