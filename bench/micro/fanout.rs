//! What a delivery costs in the engine: one publication from a backend's bytes to 10,000 collected writes, no kernel.
//!
//! In: nothing. Out: nanoseconds per delivery, whole and by stage. Several publications that wait together are joined into
//! one write per subscriber; those cases divide by deliveries too.

use mimalloc::MiMalloc;
use ringway_bench::micro::measure::{Bench, RUNS};
use ringway_bench::micro::node::Node;
use ringway_bench::micro::singles::Singles;
use ringway_wire::centrifuge::Form;

/// As in the `ringway` binary.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Subscribers that are in no cache of the processor.
const MILLION: u32 = 1_000_000;
/// Far apart, and prime to that.
const SCATTERED: u32 = 618_033;
/// Publications per run of the stages.
const ROUNDS: u32 = 40;

fn main() {
    let mut bench = Bench::from_command_line("fanout");
    let sizes: &[u32] = if bench.is_tiny() { &[50] } else { &[1_000, 10_000] };
    for &subscribers in sizes {
        for form in Form::ALL {
            bench.case_with(&format!("{form:?} 128 B to {subscribers}: whole"), u64::from(subscribers), || {
                let mut node = Node::new(subscribers, form, 128);
                move || {
                    let round = node.round();
                    assert_eq!(round.writes, u64::from(subscribers) + 1);
                }
            });
        }
        bench.case_with(
            &format!("Json 128 B to each of {subscribers} channels of one"),
            u64::from(subscribers),
            || {
                let mut singles = Singles::new(subscribers, Form::Json, 128);
                move || assert!(singles.round() > u64::from(subscribers))
            },
        );
        if bench.is_timed() {
            stages(&mut bench, subscribers);
        }
    }
    // Too much for an instruction counter, and it counts the same: this is about caches.
    if bench.is_timed() && !bench.is_tiny() {
        for (order, stride) in [("as they came", 1), ("scattered", SCATTERED)] {
            bench.case_with(&format!("Json 128 B to {MILLION}, {order}: whole"), u64::from(MILLION), || {
                let mut node = Node::with_stride(MILLION, Form::Json, 128, stride);
                move || assert_eq!(node.round().writes, u64::from(MILLION) + 1)
            });
        }
    }
    bench.finish();
}

/// Where the time of a delivery goes.
fn stages(bench: &mut Bench, subscribers: u32) {
    let mut node = Node::new(subscribers, Form::Json, 128);
    let (runs, rounds) = if bench.is_tiny() { (1, 1) } else { (RUNS, ROUNDS) };
    let mut figures = [const { Vec::new() }; 3];
    for _ in 0..runs {
        // Wall clock: a round that another program interrupted must not count, so a run is the median of its rounds.
        let mut spent = [const { Vec::new() }; 3];
        for _ in 0..rounds {
            let round = node.round();
            for (spent, ns) in spent.iter_mut().zip([round.fan_out_ns, round.collect_ns, round.wrote_ns]) {
                spent.push(ns);
            }
        }
        for (figures, spent) in figures.iter_mut().zip(&mut spent) {
            spent.sort_unstable();
            figures.push(spent[spent.len() / 2] as f64 / f64::from(subscribers));
        }
    }
    for (stage, figures) in ["list to outboxes", "outboxes to writes", "writes taken"].into_iter().zip(figures) {
        bench.add(&format!("Json 128 B to {subscribers}: {stage}"), "ns", figures);
    }
}
