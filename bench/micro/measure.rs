//! Runs the cases of one bench and prints what they cost.
//!
//! In: the command line, closures that do a known number of things. Out: a table for people, with `--json` one line for
//! machines. Invariants: a figure is the median of [`RUNS`] runs and stands beside the fastest and the slowest; a case of
//! one thread is measured in that thread's CPU time, so that other programs disturb it little.
//!
//! ```text
//! cargo bench -p ringway-bench --bench fanout              full
//! cargo bench -p ringway-bench --bench fanout -- --json    full, one line of JSON behind the table
//! cargo test -p ringway-bench --bench fanout               tiny, once: does it work?
//! BENCH --list | BENCH --once CASE                         what `instructions.py` calls
//! ```
#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

use std::fmt::Write as _;
use std::hint::black_box;

use ringway_sys::thread::thread_cpu_time_ns;

/// Runs per case.
pub const RUNS: usize = 9;
/// CPU time that a run takes at least, so that reading the clock does not count.
const RUN_NS_MIN: u64 = 20_000_000;
/// Rounds before the one that `--once` shows to an instruction counter: caches and reused vectors are as in steady state.
const ONCE_WARM_UP_ROUNDS: usize = 200;

/// One bench: its cases and how they are to be run.
pub struct Bench {
    name: &'static str,
    mode: Mode,
    json: bool,
    rows: Vec<Row>,
}

#[derive(PartialEq)]
enum Mode {
    Full,
    Tiny,
    List,
    Once(String),
}

struct Row {
    case: String,
    unit: &'static str,
    /// Ascending.
    runs: Vec<f64>,
}

impl Bench {
    /// Reads the command line.
    pub fn from_command_line(name: &'static str) -> Bench {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
        let once = arguments.iter().position(|argument| argument == "--once").and_then(|at| arguments.get(at + 1));
        let mode = match once {
            Some(case) => Mode::Once(case.clone()),
            None if has("--list") => Mode::List,
            None if has("--bench") => Mode::Full,
            None => Mode::Tiny,
        };
        Bench { name, mode, json: has("--json"), rows: Vec::new() }
    }

    /// Whether this is a test with tiny inputs.
    pub fn is_tiny(&self) -> bool {
        self.mode == Mode::Tiny
    }

    /// Whether cases that `--once` cannot run (several threads) are wanted.
    pub fn is_timed(&self) -> bool {
        matches!(self.mode, Mode::Full | Mode::Tiny)
    }

    /// Measures a case of this thread: `round` does `items` things. The figure is nanoseconds of CPU time per thing.
    pub fn case(&mut self, case: &str, items: u64, round: impl FnMut()) {
        self.case_with(case, items, || round);
    }

    /// As [`Bench::case`], where `prepare` makes what the round needs, only if this case is wanted.
    pub fn case_with<F: FnMut()>(&mut self, case: &str, items: u64, prepare: impl FnOnce() -> F) {
        match &self.mode {
            Mode::List => println!("{case}\t{items}"),
            Mode::Once(wanted) if wanted != case => {}
            Mode::Once(_) => {
                let mut round = prepare();
                (0..ONCE_WARM_UP_ROUNDS).for_each(|_| round());
                counted(&mut round);
            }
            Mode::Tiny => {
                let mut round = prepare();
                round();
                let spent_ns = cpu_of(1, &mut round);
                self.add(case, "ns", vec![spent_ns as f64 / items as f64]);
            }
            Mode::Full => {
                let mut round = prepare();
                let mut rounds = 1;
                while cpu_of(rounds, &mut round) < RUN_NS_MIN {
                    rounds *= 2;
                }
                let runs = (0..RUNS).map(|_| cpu_of(rounds, &mut round) as f64 / (rounds * items) as f64).collect();
                self.add(case, "ns", runs);
            }
        }
    }

    /// Adds figures that were measured elsewhere.
    pub fn add(&mut self, case: &str, unit: &'static str, mut runs: Vec<f64>) {
        runs.sort_by(f64::total_cmp);
        if !runs.is_empty() {
            self.rows.push(Row { case: case.to_owned(), unit, runs });
        }
    }

    /// Prints everything.
    pub fn finish(self) {
        if !self.is_timed() {
            return;
        }
        let tiny = if self.is_tiny() { " (tiny: figures mean nothing)" } else { "" };
        println!("{}{tiny}", self.name);
        println!("  {:<52} {:>12} {:>12} {:>12}", "case", "median", "fastest", "slowest");
        for row in &self.rows {
            let (least, most) = (row.runs[0], row.runs[row.runs.len() - 1]);
            // A rate is the better the larger it is.
            let (fastest, slowest) = if row.unit.ends_with("/s") { (most, least) } else { (least, most) };
            let figures = [row.median(), fastest, slowest].map(number);
            println!("  {:<52} {:>12} {:>12} {:>12} {}", row.case, figures[0], figures[1], figures[2], row.unit);
        }
        if self.json {
            println!("{}", self.to_json());
        }
    }

    /// One line; names of cases are ours and need no escaping.
    fn to_json(&self) -> String {
        let mut line = format!("{{\"bench\":\"{}\",\"runs\":{RUNS},\"tiny\":{},\"cases\":[", self.name, self.is_tiny());
        for (index, row) in self.rows.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let (least, most) = (row.runs[0], row.runs[row.runs.len() - 1]);
            // Writing into a string cannot fail.
            let _ = write!(
                line,
                "{comma}{{\"case\":\"{}\",\"unit\":\"{}\",\"median\":{:.3},\"least\":{least:.3},\"most\":{most:.3}}}",
                row.case,
                row.unit,
                row.median()
            );
        }
        line.push_str("]}");
        line
    }
}

impl Row {
    fn median(&self) -> f64 {
        self.runs[self.runs.len() / 2]
    }
}

/// CPU time of this thread for so many rounds.
fn cpu_of(rounds: u64, round: &mut impl FnMut()) -> u64 {
    let before = thread_cpu_time_ns();
    for _ in 0..rounds {
        round();
    }
    thread_cpu_time_ns() - before
}

/// The one function that `instructions.py` counts in.
#[inline(never)]
pub fn counted(round: &mut dyn FnMut()) {
    black_box(round)();
}

/// Four significant digits, thousands apart.
fn number(value: f64) -> String {
    let decimals = if value >= 1000.0 {
        0
    } else if value >= 100.0 {
        1
    } else {
        2
    };
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = text.split_once('.').map_or((text.as_str(), None), |(w, f)| (w, Some(f)));
    let mut out = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if let Some(fraction) = fraction {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(
            [0.256, 12.345, 345.67, 1234.5, 1_234_567.0].map(number),
            ["0.26", "12.35", "345.7", "1,234", "1,234,567"]
        );
    }

    #[test]
    fn a_median_is_a_run_in_the_middle() {
        let mut bench = Bench { name: "b", mode: Mode::Tiny, json: true, rows: Vec::new() };
        bench.add("c", "ns", vec![9.0, 1.0, 2.0]);
        assert_eq!(
            bench.to_json(),
            "{\"bench\":\"b\",\"runs\":9,\"tiny\":true,\"cases\":[{\"case\":\"c\",\"unit\":\"ns\",\"median\":2.000,\"least\":1.000,\"most\":9.000}]}"
        );
    }
}
