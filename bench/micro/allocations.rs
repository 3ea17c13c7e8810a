//! A delivery allocates nothing: what a publication allocates is the same for few subscribers and for many.
//!
//! In: a global allocator that counts per thread, around the one of the `ringway` binary. Out: counts per publication, in
//! the engine alone and in the real loop with real sockets. Set-up: one shard, one channel with history, 128-byte payloads,
//! one publication at a time, steady state (the reused vectors have grown). `ALLOCATIONS_SUBSCRIBERS=5000` repeats the real loop's part with more.
#![allow(clippy::print_stdout, reason = "the figures are what is wanted")]

use mimalloc::MiMalloc;
use ringway::config::SendMode;
use ringway_bench::micro::host::{Counts, Host};
use ringway_bench::micro::node::{HISTORY_SIZE, Node};
use ringway_sys::CountingAllocator;
use ringway_sys::alloc_count::{thread_allocations, thread_deallocations};
use ringway_wire::centrifuge::Form;

#[global_allocator]
static ALLOCATOR: CountingAllocator<MiMalloc> = CountingAllocator::new(MiMalloc);

/// Publications before counting: the history window is full, and the reused vectors have grown, also for an offset that
/// takes a second byte in Protobuf (from 128 on).
const WARM_UP: u64 = HISTORY_SIZE as u64 + 50;
/// Publications counted.
const COUNTED: u64 = 100;
/// Allocations that one publication may cost, whatever the number of subscribers.
const PER_PUBLICATION_MAX: u64 = 16;

/// What the engine allocated and freed for [`COUNTED`] publications to so many subscribers.
fn engine(subscribers: u32, form: Form) -> Counts {
    let mut node = Node::new(subscribers, form, 128);
    for _ in 0..WARM_UP {
        node.round();
    }
    let before = Counts { allocations: thread_allocations(), deallocations: thread_deallocations() };
    for _ in 0..COUNTED {
        assert_eq!(node.round().writes, u64::from(subscribers) + 1);
    }
    Counts { allocations: thread_allocations(), deallocations: thread_deallocations() }.since(before)
}

#[test]
fn in_the_engine_a_delivery_allocates_nothing() {
    for form in Form::ALL {
        // Above the deliveries of one turn, so that a fan-out cut into slices is among them.
        let (few, many) = (engine(1_000, form), engine(10_000, form));
        println!("engine, {form:?}: {COUNTED} publications to 1,000: {few:?}; to 10,000: {many:?}");
        assert_eq!(few, many, "nothing depends on the number of subscribers");
        assert!(few.allocations > 0, "the counter counts");
        assert!(few.allocations <= PER_PUBLICATION_MAX * COUNTED, "a publication is cheap: {few:?}");
        assert_eq!(few.allocations, few.deallocations, "what is allocated is freed");
    }
}

/// Per publication, ascending, what the shard's thread allocated from one publish to the next.
fn real_loop(subscribers: u32, form: Form, send_mode: SendMode) -> Vec<Counts> {
    let mut host = Host::start(subscribers, form, 128, send_mode);
    for _ in 0..WARM_UP {
        host.publish();
    }
    let mut counts = Vec::new();
    let mut before = host.publish();
    for _ in 0..COUNTED {
        let now = host.publish();
        counts.push(now.since(before));
        before = now;
    }
    counts.sort_by_key(|count| count.allocations);
    counts
}

#[test]
fn in_the_real_loop_a_delivery_allocates_nothing() {
    let many: u32 = std::env::var("ALLOCATIONS_SUBSCRIBERS").map_or(1_000, |text| text.parse().expect("a number"));
    let few = many / 10;
    for send_mode in [SendMode::Ring, SendMode::Syscall] {
        let (of_few, of_many) = (real_loop(few, Form::Json, send_mode), real_loop(many, Form::Json, send_mode));
        let total = |counts: &[Counts]| counts.iter().map(|count| count.allocations).sum::<u64>();
        let (middle, most) = (COUNTED as usize / 2, COUNTED as usize - 1);
        println!(
            "real loop, {send_mode:?}: a publication to {few}: {:?}, at most {:?}; to {many}: {:?}, at most {:?}",
            of_few[middle], of_few[most], of_many[middle], of_many[most]
        );
        assert!(of_few[0].allocations > 0, "the counter counts");
        assert_eq!(of_few[middle], of_many[middle], "nothing depends on the number of subscribers");
        assert!(of_many[most].allocations <= PER_PUBLICATION_MAX, "not once: {:?}", of_many[most]);
        let more = total(&of_many).saturating_sub(total(&of_few)) as f64;
        let per_delivery = more / (COUNTED * u64::from(many - few)) as f64;
        println!("  {per_delivery:.6} allocations per delivery, over {} deliveries", COUNTED * u64::from(many - few));
        assert!(per_delivery < 0.001);
    }
}
