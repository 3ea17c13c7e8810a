//! The engine alone, under a seeded scheduler: the order of topic ownership (`owner.rs`, `fanout.rs`, `lanes.rs`).
//!
//! In: seeds. Out: pass, or the first broken promise with the seed that breaks it. Several shards are driven as a loop
//! would drive them, but every order that threads, sockets and clocks could produce is chosen by the seed: which lane
//! delivers next and how much, when turns end, how much a write takes, where a fan-out is cut, when a queue is full.
//! Clients and backends speak real bytes and check what they are told (`client.rs`, `backend.rs`, `ledger.rs`).
//! Half of the runs publish and subscribe under all kinds of pressure; the other half uses the whole client protocol:
//! tokens, server-side subscriptions, presence, deltas, events, the server API (`control.rs`), new rules on the way.
//!
//! ```text
//! RINGWAY_SIM_SEED=7 cargo test -p ringway-tests --test sim     one seed again
//! RINGWAY_SIM_SEEDS=5000 cargo test ...                         that many, from 0
//! ... --test sim whole                                          only runs with the whole protocol
//! ```
//! Invariant: a run depends on its seed alone.
#![allow(clippy::print_stdout, reason = "the counts of a run tell whether it tested anything")]

mod backend;
mod client;
mod commands;
mod control;
mod decisions;
mod dice;
mod hearing;
mod ledger;
mod peers;
mod pending;
mod phases;
mod plan;
mod presence;
mod rules;
mod socket;
mod speech;
mod stay;
mod tokens;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use ledger::Counts;
use plan::Plan;
use world::World;

/// Seeds of a normal run; unoptimised builds are slower, so they do fewer.
const SEEDS: u64 = if cfg!(debug_assertions) { 100 } else { 1_000 };

/// What runs with the whole protocol must meet, and how often at least in a normal run.
const MET: &[(&str, u64)] = &[];

#[test]
fn every_order_of_deliveries_keeps_every_promise() {
    let (sum, single) = run_all("every_order", Plan::new);
    if !single {
        // A simulation that never meets its cases proves nothing.
        assert!(sum.stays_apart > 100, "owner, subscriber and publisher apart: {}", sum.stays_apart);
        assert!(sum.recovered > 100 && sum.not_recovered > 100, "{sum:?}");
        assert!(sum.told_lost > 10 && sum.closed_slow > 10, "{sum:?}");
    }
}

#[test]
fn the_whole_protocol_keeps_what_clients_believe() {
    let (sum, single) = run_all("whole", Plan::whole);
    if !single {
        for (what, least) in MET {
            let times = sum.tally.get(what).copied().unwrap_or(0);
            assert!(times >= *least, "{what}: {times} times, not {least}: {sum:?}");
        }
    }
}

#[test]
fn a_seed_is_one_run() {
    for seed in [2, 3] {
        assert_eq!(run("every_order", Plan::new(seed)).0, run("every_order", Plan::new(seed)).0, "seed {seed}");
        assert_eq!(run("whole", Plan::whole(seed)).0, run("whole", Plan::whole(seed)).0, "seed {seed}");
    }
    let digest = |seed| run("every_order", Plan::new(seed)).0;
    assert_ne!(digest(2), digest(4), "two seeds gave one run");
}

/// All seeds that are asked for, and whether that is a single one.
fn run_all(name: &str, plan: impl Fn(u64) -> Plan) -> (Counts, bool) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("RINGWAY_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RINGWAY_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let single = seeds.end - seeds.start == 1;
    let mut sum = Counts::default();
    for seed in seeds {
        sum.add(&run(name, plan(seed)).1);
    }
    println!("{name}: {sum:#?}");
    (sum, single)
}

/// One run; its digest and counts. A broken promise panics with the seed.
fn run(name: &str, plan: Plan) -> (u64, Counts) {
    let mut world = World::new(plan);
    let outcome = catch_unwind(AssertUnwindSafe(|| phases::all(&mut world)));
    if outcome.is_err() {
        let seed = world.plan.seed;
        panic!(
            "RINGWAY_SIM_SEED={seed} cargo test -p ringway-tests --test sim {name} fails (its cause is above)\n{:#?}\n{}",
            world.plan,
            world.trace.tail()
        );
    }
    (world.trace.digest(), world.ledger.counts)
}
