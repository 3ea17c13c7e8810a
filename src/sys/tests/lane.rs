//! The inbox under load: no lost wake-up with a ring that really sleeps, order per sender, nothing lost or twice, marks.
//! In: threads with random schedules (the seed is printed). Out: assertions against a deque and against counts.
#![allow(clippy::disallowed_methods, reason = "tests start threads and read clocks directly")]

mod common;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use common::{PATIENCE, ring, turn_until};
use proptest::prelude::*;
use ringway_sys::{Errno, Inbox, Op, Token, Wait};

const WAKE: Token = Token::new(Op::Wake, 0, 0);

/// A small generator, so that every schedule follows from a printed seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn seed() -> u64 {
    let seed = std::env::var("LANE_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| std::process::id() as u64 * 0x9E37_79B9 + 1);
    println!("LANE_SEED={seed}");
    seed
}

#[test]
fn a_sleeping_ring_never_misses_a_wake_in_100_000_rounds() {
    const ROUNDS: u64 = 100_000;
    const PRODUCERS: u64 = 2;
    let inbox = Inbox::<u64>::new(64, 0).expect("inbox");
    let consumed = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..PRODUCERS)
        .map(|producer| {
            let (inbox, consumed, mut random) = (inbox.clone(), consumed.clone(), Random(seed() + producer));
            std::thread::spawn(move || {
                let mut wakes = 0u64;
                for round in 0..ROUNDS / PRODUCERS {
                    let mut item = round * PRODUCERS + producer;
                    while let Err(refused) = inbox.push(item) {
                        item = refused;
                        std::thread::yield_now();
                    }
                    wakes += u64::from(inbox.wake_if_asleep());
                    // Often wait until everything is consumed, so that the consumer is just going to sleep, or asleep.
                    match random.below(4) {
                        0 => {}
                        1 => (0..random.below(200)).for_each(|_| std::hint::spin_loop()),
                        _ => {
                            let deadline = Instant::now() + PATIENCE;
                            while consumed.load(Ordering::Acquire) * PRODUCERS < round * PRODUCERS {
                                assert!(Instant::now() < deadline, "the consumer sleeps over item {round}");
                                std::thread::yield_now();
                            }
                        }
                    }
                }
                wakes
            })
        })
        .collect();
    let mut ring = ring(8, 64);
    ring.poll_wake(&inbox, WAKE);
    let (mut out, mut count, mut sleeps, mut announced) = (Vec::new(), 0, 0u64, 0u64);
    let mut next = [0u64, 1];
    while count < ROUNDS {
        while let Some(item) = inbox.pop() {
            let producer = (item % PRODUCERS) as usize;
            assert_eq!(item, next[producer], "order per sender");
            next[producer] += PRODUCERS;
            count += 1;
            consumed.store(count, Ordering::Release);
        }
        if count == ROUNDS {
            break;
        }
        let sleep = inbox.prepare_sleep();
        sleeps += u64::from(sleep);
        announced += 1;
        let start = Instant::now();
        let wait = if sleep { Wait::Until { timeout_ms: 5_000 } } else { Wait::No };
        ring.turn(wait, &mut out).expect("turn");
        assert!(start.elapsed() < Duration::from_secs(4), "a wake-up was lost after {count} items");
        inbox.awake();
        for completion in out.drain(..) {
            assert_eq!((completion.token, completion.more), (WAKE, false));
            ring.poll_wake(&inbox, WAKE);
        }
    }
    let wakes: u64 = threads.into_iter().map(|thread| thread.join().expect("producer")).sum();
    println!("{announced} announcements, {sleeps} sleeps, {wakes} wake-ups sent for {ROUNDS} items");
    assert!(sleeps > ROUNDS / 100, "the consumer really slept");
    assert!(wakes <= announced, "at most one wake-up per announcement");
}

#[test]
fn the_wake_poll_is_armed_again_each_time() {
    let inbox = Inbox::<u32>::new(4, 0).expect("inbox");
    let mut ring = ring(8, 64);
    for round in 0..5 {
        ring.poll_wake(&inbox, WAKE);
        assert!(inbox.prepare_sleep(), "round {round}: nothing is there");
        ring.turn(Wait::Until { timeout_ms: 5 }, &mut Vec::new()).expect("turn");
        inbox.push(round).expect("room");
        let sender = inbox.clone();
        assert!(std::thread::spawn(move || sender.wake_if_asleep()).join().expect("sender"), "round {round}");
        assert!(!inbox.wake_if_asleep(), "one wake-up per sleep");
        let woken = turn_until(&mut ring, |all| !all.is_empty());
        assert_eq!((woken.len(), woken[0].more), (1, false), "one-shot");
        inbox.awake();
        assert_eq!(inbox.pop(), Some(round));
    }
}

#[test]
fn a_late_bell_ends_one_later_sleep_and_is_then_gone() {
    let inbox = Inbox::<u32>::new(4, 0).expect("inbox");
    let mut ring = ring(8, 64);
    assert!(inbox.prepare_sleep());
    assert!(inbox.wake_if_asleep());
    // The consumer has not heard the bell yet and does not look at it: it announces the next sleep.
    assert!(inbox.prepare_sleep());
    ring.poll_wake(&inbox, WAKE);
    assert_eq!(turn_until(&mut ring, |all| !all.is_empty()).len(), 1);
    inbox.awake();
    ring.poll_wake(&inbox, WAKE);
    let mut out = Vec::new();
    ring.turn(Wait::Until { timeout_ms: 30 }, &mut out).expect("turn");
    assert!(out.is_empty(), "drained: no endless wake-ups");
}

#[test]
fn work_and_marks_forbid_the_sleep() {
    let inbox = Inbox::<u32>::new(2, 130).expect("inbox");
    assert!(inbox.prepare_sleep());
    inbox.awake();
    inbox.push(1).expect("room");
    assert!(!inbox.prepare_sleep(), "an item is there");
    assert!(!inbox.wake_if_asleep(), "the announcement was taken back");
    assert_eq!(inbox.push(2).and(inbox.push(3)), Err(3), "full: handed back");
    for sender in [0, 63, 64, 129] {
        inbox.mark_lost(sender);
        inbox.mark_lost(sender);
    }
    assert_eq!((inbox.pop(), inbox.pop(), inbox.pop()), (Some(1), Some(2), None));
    assert!(inbox.is_empty() && !inbox.prepare_sleep(), "a mark alone forbids it too");
    assert_eq!(inbox.take_lost().take(1).collect::<Vec<_>>(), [0], "the others stay when the iterator is dropped");
    assert_eq!(inbox.take_lost().collect::<Vec<_>>(), [63, 64, 129]);
    assert_eq!(inbox.take_lost().count(), 0);
    assert!(inbox.prepare_sleep());
    inbox.mark_lost(5);
    assert!(inbox.wake_if_asleep(), "a mark ends a sleep");
    assert_eq!(Inbox::<u32>::new(0, 0).err(), Some(Errno(libc::EINVAL)));
}

#[test]
fn random_operations_of_several_threads_agree_with_a_deque_per_sender() {
    const SENDERS: usize = 4;
    const ITEMS: u64 = 30_000;
    let seed = seed();
    for (run, capacity) in [1, 7, 256].into_iter().enumerate() {
        let inbox = Inbox::<(usize, u64)>::new(capacity, SENDERS).expect("inbox");
        let (start, marks) = (Arc::new(Barrier::new(SENDERS + 1)), Arc::new(AtomicUsize::new(0)));
        let threads: Vec<_> = (0..SENDERS)
            .map(|sender| {
                let (inbox, start, marks) = (inbox.clone(), start.clone(), marks.clone());
                let mut random = Random(seed + (run * SENDERS + sender) as u64);
                std::thread::spawn(move || {
                    // The model: what is in here was taken by the queue, in this order.
                    let mut accepted = VecDeque::new();
                    start.wait();
                    for number in 0..ITEMS {
                        match inbox.push((sender, number)) {
                            Ok(()) => accepted.push_back(number),
                            Err(item) => {
                                assert_eq!(item, (sender, number), "handed back unchanged");
                                inbox.mark_lost(sender);
                                marks.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                        if random.below(3) == 0 {
                            inbox.wake_if_asleep();
                        }
                        if random.below(50) == 0 {
                            std::thread::yield_now();
                        }
                    }
                    accepted
                })
            })
            .collect();
        let mut random = Random(seed ^ 0xFFFF);
        let mut received: Vec<VecDeque<u64>> = vec![VecDeque::new(); SENDERS];
        let mut marked = [false; SENDERS];
        start.wait();
        loop {
            let finished = threads.iter().all(|thread| thread.is_finished());
            for _ in 0..random.below(20) {
                let Some((sender, number)) = inbox.pop() else { break };
                received[sender].push_back(number);
            }
            for sender in inbox.take_lost() {
                marked[sender] = true;
            }
            if inbox.prepare_sleep() {
                inbox.awake();
                if finished {
                    break;
                }
            }
        }
        for (sender, thread) in threads.into_iter().enumerate() {
            let accepted = thread.join().expect("sender");
            assert!(received[sender] == accepted, "capacity {capacity}, sender {sender}: lost, twice or out of order");
            assert_eq!(marked[sender], (accepted.len() as u64) < ITEMS, "a refusal leaves a mark, nothing else does");
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Push(u16),
    Pop,
    Sleep,
    Wake,
    Lost(usize),
    TakeLost,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any::<u16>().prop_map(Step::Push),
        3 => Just(Step::Pop),
        1 => Just(Step::Sleep),
        1 => Just(Step::Wake),
        1 => (0..70usize).prop_map(Step::Lost),
        1 => Just(Step::TakeLost),
    ]
}

proptest! {
    #[test]
    fn one_thread_sees_a_bounded_deque(capacity in 1..9usize, steps in prop::collection::vec(any_step(), 0..200)) {
        let inbox = Inbox::<u16>::new(capacity, 70).expect("inbox");
        let (mut model, mut lost, mut asleep) = (VecDeque::new(), std::collections::BTreeSet::new(), false);
        for step in steps {
            match step {
                Step::Push(item) if model.len() == capacity => prop_assert_eq!(inbox.push(item), Err(item)),
                Step::Push(item) => {
                    prop_assert_eq!(inbox.push(item), Ok(()));
                    model.push_back(item);
                }
                Step::Pop => prop_assert_eq!(inbox.pop(), model.pop_front()),
                Step::Sleep => {
                    asleep = inbox.prepare_sleep();
                    prop_assert_eq!(asleep, model.is_empty() && lost.is_empty());
                }
                Step::Wake => prop_assert_eq!(inbox.wake_if_asleep(), std::mem::take(&mut asleep)),
                Step::Lost(sender) => {
                    inbox.mark_lost(sender);
                    lost.insert(sender);
                }
                Step::TakeLost => {
                    prop_assert_eq!(inbox.take_lost().collect::<Vec<_>>(), std::mem::take(&mut lost).into_iter().collect::<Vec<_>>());
                }
            }
            prop_assert_eq!((inbox.len(), inbox.is_empty()), (model.len(), model.is_empty()));
        }
    }
}
