//! Model check of the sleep/wake protocol: loom runs every interleaving, and every order of memory effects that it models,
//! of producers and a consumer over [`SleepFlag`](crate::sleep::SleepFlag), the very type that `lane.rs` uses.
//!
//! The queue is a stand-in: a counter that is written with the weakest order, so that nothing but the protocol's own fences
//! can save a wake-up. The bell is loom's `Notify`. A lost wake-up shows as a deadlock, which loom reports.
//!
//! Run: `RUSTFLAGS="--cfg loom" cargo test -p ringway-sys --release --lib loom`

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Arc, Notify};
use loom::thread;

use crate::sleep::SleepFlag;

struct StandIn {
    flag: SleepFlag,
    items: AtomicUsize,
    bell: Notify,
    rung: AtomicUsize,
}

impl StandIn {
    fn new() -> Arc<StandIn> {
        Arc::new(StandIn {
            flag: SleepFlag::new(),
            items: AtomicUsize::new(0),
            bell: Notify::new(),
            rung: AtomicUsize::new(0),
        })
    }

    fn produce(&self, items: usize) {
        for _ in 0..items {
            self.items.fetch_add(1, Ordering::Relaxed);
        }
        if self.flag.take_wake() {
            self.rung.fetch_add(1, Ordering::Relaxed);
            self.bell.notify();
        }
    }

    /// Consumes until `wanted` items have come; returns how often it slept.
    fn consume(&self, wanted: usize) -> usize {
        let (mut taken, mut sleeps) = (0, 0);
        loop {
            taken += self.items.swap(0, Ordering::Relaxed);
            if taken == wanted {
                return sleeps;
            }
            if self.flag.prepare(|| self.items.load(Ordering::Relaxed) != 0) {
                self.bell.wait();
                self.flag.clear();
                sleeps += 1;
            }
        }
    }
}

fn check(producers: usize, items: usize) {
    loom::model(move || {
        let shared = StandIn::new();
        let threads: Vec<_> = (0..producers)
            .map(|_| {
                let shared = shared.clone();
                thread::spawn(move || shared.produce(items))
            })
            .collect();
        let sleeps = shared.consume(producers * items);
        for thread in threads {
            thread.join().expect("a producer does not panic");
        }
        // A late bell may be heard in a later sleep or never; more bells than announced sleeps would cost system calls.
        assert!(sleeps <= producers, "each sleep was ended by one producer");
    });
}

#[test]
fn loom_one_producer_never_loses_a_wake() {
    check(1, 2);
}

#[test]
fn loom_two_producers_never_lose_a_wake() {
    check(2, 1);
}

#[test]
fn loom_one_producer_rings_once_per_sleep() {
    loom::model(|| {
        let shared = StandIn::new();
        assert!(shared.flag.prepare(|| false), "nothing is there");
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let shared = shared.clone();
                thread::spawn(move || shared.produce(1))
            })
            .collect();
        shared.bell.wait();
        for thread in threads {
            thread.join().expect("a producer does not panic");
        }
        assert_eq!(shared.rung.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn loom_work_found_in_the_last_look_takes_the_announcement_back() {
    loom::model(|| {
        let shared = StandIn::new();
        let producer = {
            let shared = shared.clone();
            thread::spawn(move || shared.produce(1))
        };
        if !shared.flag.prepare(|| shared.items.load(Ordering::Relaxed) != 0) {
            assert_eq!(shared.items.load(Ordering::Relaxed), 1);
        } else {
            shared.bell.wait();
            assert_eq!(shared.items.load(Ordering::Acquire), 1, "the bell is rung behind the item");
        }
        producer.join().expect("a producer does not panic");
    });
}
