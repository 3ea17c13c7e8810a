//! The engine alone, under a seeded scheduler: the order of topic ownership (`owner.rs`, `fanout.rs`, `lanes.rs`).
//!
//! In: seeds. Out: pass, or the first broken promise with the seed that breaks it. Several shards are driven as a loop
//! would drive them, but every order that threads, sockets and clocks could produce is chosen by the seed: which lane
//! delivers next and how much, when turns end, how much a write takes, where a fan-out is cut, when a queue is full.
//! Clients and backends speak real bytes and check what they are told (`client.rs`, `backend.rs`, `ledger.rs`).
//!
//! ```text
//! RINGWAY_SIM_SEED=7 cargo test -p ringway-tests --test sim     one seed again
//! RINGWAY_SIM_SEEDS=5000 cargo test ...                         that many, from 0
//! ```
//! Invariant: a run depends on its seed alone.
#![allow(clippy::print_stdout, reason = "the counts of a run tell whether it tested anything")]

mod backend;
mod client;
mod dice;
mod ledger;
mod plan;
mod socket;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use ledger::Counts;
use plan::{FOREVER_MS, Plan};
use socket::PeerEnd;
use world::World;

/// Seeds of a normal run; unoptimised builds are slower, so they do fewer.
const SEEDS: u64 = if cfg!(debug_assertions) { 100 } else { 1_000 };
/// Fair rounds within which everything must come to rest.
const ROUNDS_TO_REST_MAX: u32 = 50_000;
/// Rounds without an event that count as rest.
const QUIET_ROUNDS: u32 = 4;

#[test]
fn every_order_of_deliveries_keeps_every_promise() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("RINGWAY_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RINGWAY_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let single = seeds.end - seeds.start == 1;
    let mut sum = Counts::default();
    for seed in seeds {
        sum.add(&run(seed).1);
    }
    println!("{sum:?}");
    if !single {
        // A simulation that never meets its cases proves nothing.
        assert!(sum.stays_apart > 100, "owner, subscriber and publisher apart: {}", sum.stays_apart);
        assert!(sum.recovered > 100 && sum.not_recovered > 100, "{sum:?}");
        assert!(sum.told_lost > 10 && sum.closed_slow > 10, "{sum:?}");
    }
}

#[test]
fn a_seed_is_one_run() {
    for seed in [2, 3] {
        assert_eq!(run(seed).0, run(seed).0, "seed {seed} gave two runs");
    }
    assert_ne!(run(2).0, run(4).0, "two seeds gave one run");
}

/// One run; its digest and counts. A broken promise panics with the seed.
fn run(seed: u64) -> (u64, Counts) {
    let mut world = World::new(Plan::new(seed));
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        work(&mut world);
        rest(&mut world);
        final_publications(&mut world);
        leave(&mut world);
        forget(&mut world);
        world.ledger.finish();
    }));
    if outcome.is_err() {
        panic!("RINGWAY_SIM_SEED={seed} fails (its cause is above)\n{:#?}\n{}", world.plan, world.trace.tail());
    }
    (world.trace.digest(), world.ledger.counts)
}

/// Everything at once, faults included.
fn work(world: &mut World) {
    for _ in 0..world.plan.steps {
        match world.dice.below(20) {
            0..13 => {
                let core = world.dice.below(world.plan.shards);
                world.step(core);
            }
            13..17 => client_does(world),
            17..19 => backend_does(world),
            _ => world.now_ms += world.dice.below(12) as u64,
        }
    }
}

fn client_does(world: &mut World) {
    let number = world.dice.below(world.clients.len());
    if world.clients[number].link.is_none() {
        return world.connect_client(number);
    }
    let mut what = world.dice.below(100);
    // Where lanes lose publications, clients stay long enough to be told.
    if world.plan.lossy && !world.dice.one_in(8) {
        what = 100;
    }
    // Where slow clients are wanted, every second one hardly reads.
    if world.plan.slow && number.is_multiple_of(2) && what >= 40 && !world.dice.one_in(10) {
        return;
    }
    let bytes = world.dice.pick(&[1, 10, 200, 5_000, usize::MAX, usize::MAX]);
    world.with_client(number, |client, around| match what {
        0 => client.say_close(around),
        1 => client.cut(PeerEnd::Fin, around),
        2 => client.cut(PeerEnd::Reset, around),
        3..40 => client.act(around),
        _ => {
            client.read(bytes, around);
        }
    });
}

fn backend_does(world: &mut World) {
    let number = world.dice.below(world.backends.len());
    if world.backends[number].socket.is_none() {
        return world.connect_backend(number);
    }
    let what = world.dice.below(400);
    world.with_backend(number, |backend, around| match what {
        0 => backend.cut(around),
        1..200 => backend.act(around),
        _ => {
            backend.read(usize::MAX, around);
        }
    });
}

/// No new work and no faults: everything under way must come to its end.
fn rest(world: &mut World) {
    let mut quiet = 0;
    for round in 0..ROUNDS_TO_REST_MAX {
        let mut active = false;
        for core in 0..world.plan.shards {
            active |= world.fair_turn(core);
        }
        for number in 0..world.clients.len() {
            active |= world.with_client(number, |client, around| client.read(usize::MAX, around)) == Some(true);
        }
        for number in 0..world.backends.len() {
            if world.backends[number].socket.is_none() && !world.backends[number].pending.is_empty() {
                world.connect_backend(number);
            }
            active |= world.with_backend(number, |backend, around| backend.read(usize::MAX, around)) == Some(true);
        }
        // So slowly that nobody's deadline comes while a long backlog goes out.
        world.now_ms += u64::from(round % 16 == 0);
        quiet = if active || world.is_busy() { 0 } else { quiet + 1 };
        if quiet == QUIET_ROUNDS {
            return;
        }
    }
    panic!("no rest after {ROUNDS_TO_REST_MAX} rounds: the shards hold each other up");
}

/// One more publication per channel shows whether the one before was lost at the end of somebody's stay.
fn final_publications(world: &mut World) {
    if world.backends[0].socket.is_none() {
        world.connect_backend(0);
        rest(world);
    }
    for channel in 0..world.plan.channels.len() {
        world.with_backend(0, |backend, around| backend.publish_to(channel, around));
        rest(world);
    }
    for client in &world.clients {
        client.assert_up_to_date(&world.plan, &world.ledger);
    }
    for backend in &world.backends {
        assert!(backend.pending.is_empty(), "publishes without an answer: {:?}", backend.pending);
    }
}

/// Every peer goes, each in its own way, or the shards end them all.
fn leave(world: &mut World) {
    let shutdown = world.dice.one_in(3);
    for number in 0..world.backends.len() {
        world.with_backend(
            number,
            |backend, around| {
                if shutdown { backend.expect_end() } else { backend.say_goodbye(around) }
            },
        );
    }
    if shutdown {
        world.shut_down();
    } else {
        for number in 0..world.clients.len() {
            let how = world.dice.below(3);
            world.with_client(number, |client, around| match how {
                0 => client.say_close(around),
                1 => client.cut(PeerEnd::Fin, around),
                _ => client.cut(PeerEnd::Reset, around),
            });
        }
    }
    rest(world);
    assert!(world.clients.iter().all(|client| client.link.is_none()), "a client was not let go");
}

/// Time passes until every channel is forgotten.
fn forget(world: &mut World) {
    world.now_ms += 2 * FOREVER_MS;
    for _ in 0..20 {
        world.now_ms += 1_000_000;
        rest(world);
    }
    world.assert_empty();
}
