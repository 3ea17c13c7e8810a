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
mod driver;
mod fleet;
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
/// What runs with the whole protocol must meet, and how often at least in a hundred of them; about a third of what they
/// do meet.
const MET: &[(&str, u64)] = &[
    // Presence: pushes, and what is compared when nothing is under way.
    ("joins", 300),
    ("leaves", 200),
    ("presence compared", 150),
    ("members compared", 40),
    ("rosters compared", 20),
    ("crowds compared", 10),
    // Server-side subscriptions and orders about users.
    ("server-side stays", 500),
    ("orders for several shards", 100),
    ("subscribed by order at rest", 10),
    ("ended by order", 70),
    ("ended while asked", 10),
    ("closed by order", 20),
    ("disconnected by order at rest", 5),
    ("messages", 100),
    // Tokens.
    ("verdicts later", 500),
    ("subscription tokens refused", 10),
    ("closed for a token", 15),
    ("closed expired", 10),
    ("subscriptions expired", 1),
    ("refreshed", 8),
    ("closed before connected", 5),
    // Kinds of channels and subscriptions.
    ("deltas", 800),
    ("numbers", 2_000),
    ("skipped", 100),
    ("recovered from cache", 40),
    ("rejected unrecovered", 15),
    ("closed for lost publications", 50),
    // Events and decisions.
    ("events", 1_500),
    ("events again", 40),
    ("publishes denied", 1),
    ("rpc", 3),
    ("closed by a backend", 3),
    ("asks timed out", 50),
    ("asks busy", 20),
    ("whole lives", 5),
    // The server API, and new rules.
    ("published by control", 1_000),
    ("history pages", 400),
    ("reloads", 15),
    ("publishes without a namespace", 50),
];
/// Fewer runs than this need not meet it.
const MET_SEEDS: u64 = 50;

#[test]
fn every_order_of_deliveries_keeps_every_promise() {
    let (sum, seeds) = run_all("every_order", SEEDS, Plan::new);
    if seeds > 1 {
        // A simulation that never meets its cases proves nothing.
        assert!(sum.stays_apart > 100, "owner, subscriber and publisher apart: {}", sum.stays_apart);
        assert!(sum.recovered > 100 && sum.not_recovered > 100, "{sum:?}");
        assert!(sum.told_lost > 10 && sum.closed_slow > 10, "{sum:?}");
    }
}

#[test]
fn the_whole_protocol_keeps_what_clients_believe() {
    let (sum, seeds) = run_all("whole", SEEDS, Plan::whole);
    for (what, least) in MET.iter().filter(|_| seeds >= MET_SEEDS) {
        let (times, least) = (sum.tally.get(what).copied().unwrap_or(0), least * seeds / 100);
        assert!(times >= least, "{what}: {times} times, not {least}: {sum:#?}");
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

/// All seeds that are asked for; what they came to, and how many they are.
fn run_all(name: &str, seeds: u64, plan: impl Fn(u64) -> Plan) -> (Counts, u64) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("RINGWAY_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RINGWAY_SIM_SEEDS").unwrap_or(seeds),
    };
    let count = seeds.end - seeds.start;
    let mut sum = Counts::default();
    for seed in seeds {
        sum.add(&run(name, plan(seed)).1);
    }
    println!("{name}: {sum:#?}");
    (sum, count)
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
