//! The inbox beside rtrb, and what a wake-up costs.
//!
//! In: nothing. Out: items per second from one busy producer to one busy consumer, each on a core of its own where there are
//! two; nanoseconds of pushing to a consumer that is awake or asleep. rtrb takes one producer only, an inbox takes any
//! number, and a sleeping consumer. Wall clock: another program on either core slows a run, so look at the fastest too.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};

use mimalloc::MiMalloc;
use ringway_bench::micro::measure::{Bench, RUNS};
use ringway_engine::ids::{CoreId, Epoch};
use ringway_engine::lane_message::{Batch, LaneMessage, Origin, Position, PublishAnswer};
use ringway_sys::thread::{allowed_cores, monotonic_ns, pin_to_core, spawn_named};
use ringway_sys::{Inbox, Op, Ring, RingOptions, Token, Wait};

/// As in the `ringway` binary.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Places in either queue.
const CAPACITY: usize = 1024;
/// Spins before a waiting side lets another thread run: with one core it would otherwise spin for its whole time slice.
const SPINS_MAX: u32 = 10_000;

/// The consumer's core and the other side's; the same one where there is one only.
#[derive(Clone, Copy)]
struct Cores {
    here: usize,
    there: usize,
}

fn main() {
    let mut bench = Bench::from_command_line("lane");
    if !bench.is_timed() {
        return;
    }
    let tiny = bench.is_tiny();
    let cores = allowed_cores();
    let cores = Cores { here: cores[0], there: cores[cores.len() - 1] };
    // Threads started later inherit this and choose for themselves.
    pin_to_core(cores.here).expect("an allowed core");
    let items = if tiny { 2_000 } else { 4_000_000 };
    compare(&mut bench, cores, "single items", items, 1, |seq| seq, |item, expected| assert_eq!(item, expected));
    for messages in [1, 16, 64] {
        let batches = items / (4 + messages);
        let name = format!("batches of {messages} messages");
        compare(
            &mut bench,
            cores,
            &name,
            batches,
            messages,
            move |seq| batch(seq, messages),
            |batch, seq| {
                assert_eq!((batch.messages.len() as u64, first_call(&batch)), (messages, seq));
            },
        );
    }
    wake(&mut bench, cores, if tiny { 20 } else { 2_000 });
    bench.finish();
}

/// The same items through an inbox and through rtrb; `messages` are in each.
fn compare<T: Send + 'static>(
    bench: &mut Bench,
    cores: Cores,
    name: &str,
    items: u64,
    messages: u64,
    make: impl Fn(u64) -> T + Copy + Send + 'static,
    check: impl Fn(T, u64) + Copy,
) {
    let runs = if bench.is_tiny() { 1 } else { RUNS };
    // Turn about, so that a slow minute of the machine hits both.
    let (mut inbox_rates, mut rtrb_rates) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let inbox = Inbox::new(CAPACITY, 1).expect("an eventfd");
        let producer = Arc::clone(&inbox);
        let rate = run(cores, items, make, check, move |item| producer.push(item), || inbox.pop());
        inbox_rates.push(rate * messages as f64);
        let (mut producer, mut consumer) = rtrb::RingBuffer::new(CAPACITY);
        let push = move |item| producer.push(item).map_err(|rtrb::PushError::Full(item)| item);
        let rate = run(cores, items, make, check, push, || consumer.pop().ok());
        rtrb_rates.push(rate * messages as f64);
    }
    let unit = if messages > 1 { "messages/s" } else { "items/s" };
    bench.add(&format!("inbox, {name}"), unit, inbox_rates);
    bench.add(&format!("rtrb, {name}"), unit, rtrb_rates);
}

/// Items per second; every item is checked to be the next one.
fn run<T: Send + 'static>(
    cores: Cores,
    items: u64,
    make: impl Fn(u64) -> T + Send + 'static,
    check: impl Fn(T, u64),
    mut push: impl FnMut(T) -> Result<(), T> + Send + 'static,
    mut pop: impl FnMut() -> Option<T>,
) -> f64 {
    let start = Arc::new(Barrier::new(2));
    let other_start = Arc::clone(&start);
    let producer = spawn_named("producer", move || {
        pin_to_core(cores.there).expect("an allowed core");
        other_start.wait();
        let mut patience = 0;
        for seq in 0..items {
            let mut item = make(seq);
            while let Err(refused) = push(item) {
                item = refused;
                wait(&mut patience);
            }
        }
    })
    .expect("a thread");
    start.wait();
    let begun_ns = monotonic_ns();
    let mut patience = 0;
    for expected in 0..items {
        let item = loop {
            match pop() {
                Some(item) => break item,
                None => wait(&mut patience),
            }
        };
        check(item, expected);
    }
    let spent_ns = monotonic_ns() - begun_ns;
    producer.join().expect("the producer");
    items as f64 * 1e9 / spent_ns as f64
}

fn wait(patience: &mut u32) {
    spin_loop();
    *patience += 1;
    if (*patience).is_multiple_of(SPINS_MAX) {
        std::thread::yield_now();
    }
}

/// Acknowledgements, as an owner sends them to the core that published.
fn batch(seq: u64, messages: u64) -> Batch {
    let position = Position { offset: seq, epoch: Epoch { boot: 1, creation: 1 } };
    let message = |index| {
        let origin = Origin::Control { call: seq + index };
        LaneMessage::PublishAnswer(PublishAnswer { origin, result: Ok(position), duplicate: false })
    };
    Batch { from: CoreId(0), messages: (0..messages).map(message).collect() }
}

fn first_call(batch: &Batch) -> u64 {
    match batch.messages.first() {
        Some(LaneMessage::PublishAnswer(PublishAnswer { origin: Origin::Control { call }, .. })) => *call,
        other => panic!("{other:?}"),
    }
}

/// What pushing costs the sender when the consumer is awake, when it sleeps in its ring, and how long it takes to wake.
fn wake(bench: &mut Bench, cores: Cores, rounds: u64) {
    let inbox = Inbox::<u64>::new(CAPACITY, 1).expect("an eventfd");
    bench.case("push and pop, consumer awake", 1, || {
        assert!(inbox.push(1).is_ok() && !inbox.wake_if_asleep() && inbox.pop() == Some(1));
    });
    let (asleep, woken_ns) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let consumer = sleeper(cores, Arc::clone(&inbox), Arc::clone(&asleep), Arc::clone(&woken_ns), rounds);
    let (mut sender_ns, mut latency_ns) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        while asleep.load(Ordering::Acquire) < round {
            std::thread::yield_now();
        }
        // It has announced its sleep; this long later it is in the kernel, and its core has nothing else to do.
        let until_ns = monotonic_ns() + 50_000;
        while monotonic_ns() < until_ns {
            spin_loop();
        }
        let begun_ns = monotonic_ns();
        assert!(inbox.push(round).is_ok());
        let rang = inbox.wake_if_asleep();
        let done_ns = monotonic_ns();
        assert!(rang, "the consumer announced a sleep");
        while woken_ns.load(Ordering::Acquire) < begun_ns {
            spin_loop();
        }
        sender_ns.push((done_ns - begun_ns) as f64);
        latency_ns.push((woken_ns.load(Ordering::Acquire) - begun_ns) as f64);
    }
    consumer.join().expect("the consumer");
    bench.add("push and wake, consumer asleep: sender's time", "ns", sender_ns);
    bench.add("push and wake, consumer asleep: until it has the item", "ns", latency_ns);
}

/// A consumer that takes one item per sleep.
fn sleeper(
    cores: Cores,
    inbox: Arc<Inbox<u64>>,
    asleep: Arc<AtomicU64>,
    woken_ns: Arc<AtomicU64>,
    rounds: u64,
) -> std::thread::JoinHandle<()> {
    spawn_named("consumer", move || {
        pin_to_core(cores.there).expect("an allowed core");
        let mut ring = Ring::new(&RingOptions::default()).unwrap_or_else(|missing| panic!("{missing}"));
        let (mut completions, token) = (Vec::new(), Token::new(Op::Wake, 0, 0));
        for round in 1..=rounds {
            ring.poll_wake(&inbox, token);
            let mut item = None;
            while item.is_none() {
                let sleep = inbox.prepare_sleep();
                if sleep {
                    asleep.store(round, Ordering::Release);
                }
                ring.turn(if sleep { Wait::Until { timeout_ms: 1000 } } else { Wait::No }, &mut completions)
                    .expect("a turn");
                inbox.awake();
                item = inbox.pop();
            }
            completions.clear();
            assert_eq!(item, Some(round));
            woken_ns.store(monotonic_ns(), Ordering::Release);
        }
    })
    .expect("a thread")
}
