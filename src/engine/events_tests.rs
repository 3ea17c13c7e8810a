//! The event store against a model: backends that come, go, change their minds, acknowledge late and out of order.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;

use proptest::prelude::*;
use ringway_wire::ingest::EventKinds;

use super::*;

const LIMITS: Limits = Limits {
    events_pending_max: 40,
    events_pending_bytes_max: 2_000,
    events_pending_per_connection_max: 8,
    events_window_per_backend: 5,
    events_window_bytes_per_backend: 300,
    event_answer_timeout_ms: 50,
    event_deadline_ms: 400,
    ..Limits::DEFAULT
};

fn conn(slot: u32) -> ConnId {
    ConnId { slot, generation: 3 }
}

fn backend(slot: u32) -> BackendId {
    BackendId { core: CoreId(2), conn: conn(1_000 + slot) }
}

fn notice(slot: u32, kinds: EventKinds, gone: bool) -> BackendNotice {
    BackendNotice { backend: backend(slot), instance: u64::from(slot) * 77, kinds, window: 0, gone }
}

fn events() -> Events {
    Events::new(CoreId(1), &LIMITS, 9)
}

fn add(
    events: &mut Events,
    slot: u32,
    kind: EventKind,
    asks: bool,
    bytes: usize,
    now_ms: u64,
) -> Result<u64, AskError> {
    let number = events.next_number(asks);
    let frame = vec![0u8; bytes].into();
    let event = NewEvent { number, conn: conn(slot), client: u64::from(slot), kind, ask: slot + 7, frame };
    events.add(event, now_ms).map(|()| number)
}

fn sent(events: &mut Events) -> Vec<(BackendId, u64)> {
    core::iter::from_fn(|| events.pop_outgoing()).map(|out| (out.backend, out.number)).collect()
}

#[test]
fn numbers_name_their_shard_and_grow() {
    let mut events = Events::new(CoreId(u16::MAX), &LIMITS, 9);
    let (first, second) = (events.next_number(true), events.next_number(false));
    assert!(first < second);
    assert_eq!((core_of(first), core_of(second)), (CoreId(u16::MAX), CoreId(u16::MAX)));
    assert_eq!((first & ASK, second & ASK), (ASK, 0));
}

#[test]
fn without_a_backend_questions_fail_and_the_rest_waits_its_time() {
    let mut events = events();
    assert_eq!(add(&mut events, 1, EventKind::Rpc, true, 10, 0), Err(AskError::NoBackend));
    let first = add(&mut events, 1, EventKind::Message, false, 10, 0).expect("room");
    let second = add(&mut events, 1, EventKind::Message, false, 10, 300).expect("room");
    assert_eq!(sent(&mut events), []);
    assert_eq!(events.expire(399), None);
    assert_eq!(events.expire(400), Some(Done { conn: conn(1), kind: EventKind::Message, ask: None }));
    events.backend_changed(&notice(1, EventKinds::ALL, false));
    assert_eq!(sent(&mut events), [(backend(1), second)]);
    assert_eq!(events.acknowledged(backend(1), first), None);
    assert!(events.acknowledged(backend(1), second).is_some() && events.is_empty() && events.bytes() == 0);
}

#[test]
fn an_answer_counts_once_from_who_was_asked_and_in_time() {
    let mut events = events();
    events.backend_changed(&notice(1, EventKinds::ALL, false));
    let number = add(&mut events, 4, EventKind::Rpc, true, 10, 0).expect("room");
    assert_eq!(sent(&mut events), [(backend(1), number)]);
    // Not an acknowledgement, not from another, not under another number.
    assert_eq!(events.acknowledged(backend(1), number), None);
    assert_eq!(events.answered(backend(2), number), None);
    assert_eq!(events.answered(backend(1), number + 2), None);
    let done = Some(Done { conn: conn(4), kind: EventKind::Rpc, ask: Some(11) });
    assert_eq!(events.answered(backend(1), number), done);
    assert_eq!(events.answered(backend(1), number), None);
    let late = add(&mut events, 4, EventKind::Rpc, true, 10, 0).expect("room");
    assert_eq!((events.expire(50), events.expire(50)), (done, None));
    assert_eq!(events.answered(backend(1), late), None);
}

#[test]
fn what_a_backend_leaves_goes_to_the_next_in_order() {
    let mut events = events();
    events.backend_changed(&notice(1, EventKinds::ALL, false));
    let numbers: Vec<u64> =
        (0..4).map(|_| add(&mut events, 1, EventKind::Message, false, 10, 0).expect("room")).collect();
    assert_eq!(sent(&mut events).len(), 4);
    assert!(events.acknowledged(backend(1), numbers[2]).is_some());
    assert_eq!(events.backend_changed(&notice(1, EventKinds::ALL, true)), 3);
    assert_eq!(events.acknowledged(backend(1), numbers[0]), None);
    events.backend_changed(&notice(2, EventKinds::ALL, false));
    let again = [numbers[0], numbers[1], numbers[3]].map(|number| (backend(2), number));
    assert_eq!(sent(&mut events), again);
}

#[test]
fn another_backend_is_heard_only_when_the_first_is_done() {
    let mut events = events();
    let only = |kind| EventKinds::default().with(kind);
    events.backend_changed(&notice(1, only(EventKind::Connect), false));
    events.backend_changed(&notice(2, only(EventKind::Message), false));
    let connect = add(&mut events, 1, EventKind::Connect, false, 10, 0).expect("room");
    let message = add(&mut events, 1, EventKind::Message, false, 10, 0).expect("room");
    assert_eq!(sent(&mut events), [(backend(1), connect)]);
    assert!(events.acknowledged(backend(1), connect).is_some());
    assert_eq!(sent(&mut events), [(backend(2), message)]);
}

#[test]
fn a_full_window_is_shared_in_turn() {
    let mut events = events();
    events.backend_changed(&notice(1, EventKinds::ALL, false));
    let loud: Vec<u64> = (0..8).map(|_| add(&mut events, 1, EventKind::Message, false, 10, 0).expect("room")).collect();
    assert_eq!(add(&mut events, 1, EventKind::Message, false, 10, 0), Err(AskError::Busy));
    let quiet = add(&mut events, 2, EventKind::Message, false, 10, 0).expect("room");
    let mut order: Vec<u64> = sent(&mut events).into_iter().map(|(_, number)| number).collect();
    assert_eq!(order, loud[..5]);
    for number in &loud[..3] {
        assert!(events.acknowledged(backend(1), *number).is_some());
    }
    order = sent(&mut events).into_iter().map(|(_, number)| number).collect();
    assert_eq!(order, [loud[5], quiet, loud[6]]);
    // Bytes fill a window too, but one event always goes.
    let mut heavy = Events::new(CoreId(1), &LIMITS, 9);
    heavy.backend_changed(&notice(1, EventKinds::ALL, false));
    for slot in 0..3 {
        add(&mut heavy, slot, EventKind::Message, false, 500, 0).expect("room");
    }
    assert_eq!(sent(&mut heavy).len(), 1);
}

#[derive(Clone, Debug)]
enum Step {
    Add { slot: u32, kind: usize, asks: bool, bytes: usize },
    Put { slot: u32, kinds: u32 },
    Gone { slot: u32 },
    Done { pick: usize },
    Late { pick: usize },
    Time { ms: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let kinds = prop_oneof![3 => Just(EventKinds::ALL.0), 2 => 0u32..256];
    prop_oneof![
        12 => (0u32..6, 0usize..7, any::<bool>(), 1usize..200)
            .prop_map(|(slot, kind, asks, bytes)| Step::Add { slot, kind, asks, bytes }),
        2 => (0u32..3, kinds).prop_map(|(slot, kinds)| Step::Put { slot, kinds }),
        1 => (0u32..3).prop_map(|slot| Step::Gone { slot }),
        10 => any::<usize>().prop_map(|pick| Step::Done { pick }),
        1 => any::<usize>().prop_map(|pick| Step::Late { pick }),
        2 => (0u64..60).prop_map(|ms| Step::Time { ms }),
    ]
}

/// What must hold whatever happens.
#[derive(Default)]
struct Model {
    now_ms: u64,
    /// Kept: whose, how large.
    kept: BTreeMap<u64, (u32, usize)>,
    /// Sent and not done: where.
    at: BTreeMap<u64, u32>,
    live: BTreeSet<u32>,
    finished: BTreeSet<u64>,
}

impl Model {
    fn check_sent(&mut self, events: &mut Events) {
        while let Some(out) = events.pop_outgoing() {
            let slot = out.backend.conn.slot - 1_000;
            assert!(self.live.contains(&slot), "sent to a backend that is not there");
            let (conn, bytes) = self.kept[&out.number];
            assert_eq!(out.frame.len(), bytes);
            assert_eq!(self.at.insert(out.number, slot), None, "sent twice to those who live");
            for (elder, _) in self.kept.range(..out.number).filter(|(_, (other, _))| *other == conn) {
                assert_eq!(self.at.get(elder), Some(&slot), "{} overtook {elder}", out.number);
            }
        }
        for slot in &self.live {
            let at: Vec<usize> =
                self.at.iter().filter(|(_, place)| *place == slot).map(|(number, _)| self.kept[number].1).collect();
            let bytes: usize = at.iter().sum();
            assert!(at.len() <= 5 && (at.len() <= 1 || bytes <= 300), "{at:?} outstanding");
            let known = events.backends.get(backend(*slot)).expect("it lives").outstanding();
            assert_eq!(known, (at.len() as u32, bytes));
        }
    }

    fn finish(&mut self, number: u64) {
        assert!(self.finished.insert(number), "done twice");
        self.kept.remove(&number).expect("it was kept");
        self.at.remove(&number);
    }

    fn expire(&mut self, events: &mut Events) {
        while events.expire(self.now_ms).is_some() {
            let there: BTreeSet<u64> = events.asks.keys().chain(events.others.keys()).copied().collect();
            let gone: Vec<u64> = self.kept.keys().filter(|number| !there.contains(number)).copied().collect();
            assert_eq!(gone.len(), 1);
            self.finish(gone[0]);
            self.check_sent(events);
        }
    }

    fn apply(&mut self, events: &mut Events, step: Step) {
        match step {
            Step::Add { slot, kind, asks, bytes } => {
                let of_slot = self.kept.values().filter(|(conn, _)| *conn == slot).count();
                let total: usize = self.kept.values().map(|(_, bytes)| bytes).sum();
                let full = self.kept.len() >= 40 || of_slot >= 8 || total + bytes > 2_000;
                match add(events, slot, EventKind::ALL[kind], asks, bytes, self.now_ms) {
                    Ok(number) => {
                        assert!(!full);
                        self.kept.insert(number, (slot, bytes));
                    }
                    Err(AskError::Busy) => assert!(full),
                    Err(other) => assert!(asks && other == AskError::NoBackend),
                }
            }
            Step::Put { slot, kinds } => {
                self.live.insert(slot);
                assert_eq!(events.backend_changed(&notice(slot, EventKinds(kinds), false)), 0);
            }
            Step::Gone { slot } => {
                self.live.remove(&slot);
                let left = self.at.values().filter(|place| **place == slot).count();
                self.at.retain(|_, place| *place != slot);
                assert_eq!(events.backend_changed(&notice(slot, EventKinds::ALL, true)) as usize, left);
            }
            Step::Done { pick } => {
                if self.at.is_empty() {
                    return;
                }
                let (number, slot) = self.at.iter().nth(pick % self.at.len()).expect("below its length");
                let (number, slot) = (*number, *slot);
                let done = if number & ASK != 0 {
                    events.answered(backend(slot), number)
                } else {
                    events.acknowledged(backend(slot), number)
                };
                assert_eq!(done.expect("it was sent there").conn, conn(self.kept[&number].0));
                self.finish(number);
            }
            Step::Late { pick } => {
                let stranger = self.finished.iter().chain(self.kept.keys()).nth(pick % 64).copied();
                for slot in 0..3 {
                    let number = stranger.unwrap_or(pick as u64);
                    if self.at.get(&number) != Some(&slot) {
                        assert_eq!(events.answered(backend(slot), number), None);
                        assert_eq!(events.acknowledged(backend(slot), number), None);
                    }
                }
            }
            Step::Time { ms } => {
                self.now_ms += ms;
                self.expire(events);
            }
        }
    }
}

proptest! {
    /// In order per connection, nothing lost unless said so, nothing done twice, every bound held; and when one
    /// backend that takes everything stays, all that is kept comes to it.
    #[test]
    fn agrees_with_a_model(steps in prop::collection::vec(step(), 1..300)) {
        let mut events = events();
        let mut model = Model::default();
        for step in steps {
            model.apply(&mut events, step);
            model.check_sent(&mut events);
            prop_assert_eq!(events.len(), model.kept.len());
            prop_assert_eq!(events.bytes(), model.kept.values().map(|(_, bytes)| bytes).sum::<usize>());
            prop_assert_eq!(events.lines.len(), model.kept.values().map(|(c, _)| c).collect::<BTreeSet<_>>().len());
            let listed: usize = events.backends.iter().map(|b| b.ready.len() - b.stale).sum();
            prop_assert_eq!(listed, events.lines.values().filter(|line| line.ready.is_some()).count());
        }
        for slot in 1..3 {
            model.apply(&mut events, Step::Gone { slot });
            model.check_sent(&mut events);
        }
        model.apply(&mut events, Step::Put { slot: 0, kinds: EventKinds::ALL.0 });
        model.check_sent(&mut events);
        for _ in 0..40 {
            model.apply(&mut events, Step::Done { pick: 0 });
            model.check_sent(&mut events);
        }
        prop_assert!(events.is_empty(), "{} are stuck", events.len());
    }
}
