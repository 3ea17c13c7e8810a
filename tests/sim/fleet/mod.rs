//! A fleet under a seeded scheduler: several nodes of one to three whole shards, and the engine that they share.
//!
//! In: seeds. Out: pass, or the first broken promise with the seed that breaks it. Everything between a client and the
//! engine's model is the product's (`Shard`, driven as the loop drives it); the order of everything is the seed's: turns,
//! lanes, requests to the engine, answers and what is fed, each late on its own. Nodes are cut off, killed, drained, frozen and
//! started again; the engine comes back empty or without its last writes; clients come back elsewhere with their positions; several
//! clients of one user want in at once; orders come while a client goes from node to node.
//!
//! ```text
//! RINGWAY_SIM_SEED=7 cargo test -p ringway-tests --test sim fleet     one seed again
//! RINGWAY_SIM_SEEDS=20000 cargo test ... --test sim fleet             that many, from 0; `make sim-fleet`: optimised
//! ```
//! Invariant: a run depends on its seed alone.

mod backend;
mod client;
mod engine;
mod hop;
mod node;
mod phases;
mod plan;
mod stay;
mod truth;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::ledger::Counts;

use plan::FleetPlan;
use world::World;

/// Seeds of a normal run.
const SEEDS: u64 = if cfg!(debug_assertions) { 2_000 } else { 20_000 };
/// What runs must meet, and how often at least in a thousand of them; about a third of what they do meet.
const MET: &[(&str, u64)] = &[
    // Faults.
    ("cuts", 900),
    ("kills", 190),
    ("drains", 260),
    ("freezes", 280),
    ("engines emptied", 25),
    ("failovers", 35),
    ("registered again", 320),
    ("late requests", 220),
    ("fed and dropped", 15),
    ("forced out", 15),
    // What owners do about them.
    ("holes", 500),
    ("fed again", 110),
    ("batches again", 60),
    ("resets", 40),
    ("left alone", 2_500),
    // Publishes of all outcomes.
    ("duplicates", 400),
    ("published again", 2_000),
    ("publishes refused", 180),
    ("publishes unknown", 2_000),
    // Clients that are sent away and come back.
    ("sent away", 250),
    ("missed and recovered", 1_000),
    ("closed by order", 240),
    ("closed for lost publications", 4),
    // What goes along, and what is known of all nodes.
    ("parked", 50),
    ("handed over", 33),
    ("handed over exactly", 3),
    ("joins", 4_500),
    ("leaves", 300),
    ("presence without a node", 50),
    ("members compared", 1_300),
    ("orders", 5_000),
    ("orders refused", 1_700),
    ("orders on the way", 30),
    ("orders with nobody there", 10),
    // Channels without history, and reads of those with one.
    ("fleeting in order", 1_000),
    ("history compared", 130),
    // Users with too many connections.
    ("one too many", 300),
    ("limits looked at", 300),
];
/// Of so many orders that meet a client on its way from node to node one may be lost: a gap that is known.
const ORDERS_PER_LOST_MIN: u64 = 25;
/// Fewer runs than this need not meet it.
const MET_SEEDS: u64 = 500;

#[test]
fn fleet() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("RINGWAY_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RINGWAY_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let count = seeds.end - seeds.start;
    let sum = run_all(seeds);
    println!("fleet: {sum:#?}");
    for (what, least) in MET.iter().filter(|_| count >= MET_SEEDS) {
        let (times, least) = (sum.tally.get(what).copied().unwrap_or(0), least * count / 1_000);
        assert!(times >= least, "{what}: {times} times, not {least}: {sum:#?}");
    }
    if count >= MET_SEEDS {
        let orders = |what: &str| sum.tally.get(what).copied().unwrap_or(0);
        assert!(orders("orders lost on the way") * ORDERS_PER_LOST_MIN <= orders("orders on the way"), "{sum:#?}");
        assert!(sum.recovered > count / 3 && sum.not_recovered > count / 20, "{sum:#?}");
        assert!(sum.told_lost > count / 40 && sum.delivered > count * 15, "{sum:#?}");
    }
}

#[test]
fn a_seed_of_the_fleet_is_one_run() {
    for seed in [2, 3, 5] {
        assert_eq!(run(seed).0, run(seed).0, "seed {seed}");
    }
    assert_ne!(run(2).0, run(4).0, "two seeds gave one run");
}

/// All of them, on all processors: runs share nothing.
fn run_all(seeds: std::ops::Range<u64>) -> Counts {
    let next = AtomicU64::new(seeds.start);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min((seeds.end - seeds.start) as usize);
    let work = || {
        let mut sum = Counts::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return sum;
            }
            sum.add(&run(seed).1);
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut sum = Counts::default();
        for thread in threads {
            sum.add(&thread.join().expect("a run has failed; its seed is above"));
        }
        sum
    })
}

/// One run; its digest and counts. A broken promise panics with the seed.
fn run(seed: u64) -> (u64, Counts) {
    let mut world = World::new(FleetPlan::new(seed));
    let outcome = catch_unwind(AssertUnwindSafe(|| phases::all(&mut world)));
    if outcome.is_err() {
        panic!(
            "RINGWAY_SIM_SEED={seed} cargo test -p ringway-tests --test sim fleet fails (its cause is above)\n{:#?}\n{}",
            world.plan,
            world.trace.tail()
        );
    }
    (world.trace.digest(), world.truth.counts)
}
