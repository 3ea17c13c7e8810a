//! The memory scenario: all connections come, receive what there is, and leave again, several times.
//!
//! In: [`MemoryOptions`]. Out: a [`Report`] whose row `rounds` has the server's memory of each round:
//!
//! | moment | when |
//! |---|---|
//! | `before` | before the first connection of the run; a row of its own |
//! | `opened` | all connections stand and have rested |
//! | `received` | each has received its publications, and has rested since |
//! | `left` | the server counts no connection any more, and has rested |
//!
//! What a round leaves behind that the round before it did not is what grows with churn.
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::memory::MemoryLog;
use super::{Load, NAP_US, NOTIFY_US, begin, finish, open, run_number};
use crate::control::Control;
use crate::coordinator::Regime;
use crate::options::{FanoutOptions, MemoryOptions, Refill};
use crate::publisher::Publisher;
use crate::report::Report;

/// Between two looks at how many connections the server counts; longer than shards take to publish their numbers.
const LOOK: Duration = Duration::from_millis(250);

/// Runs it.
pub(super) fn run(options: &MemoryOptions) -> Result<Report, String> {
    let (common, clients) = (&options.common, &options.clients);
    let mut report = begin("memory", common, clients);
    report.row("publications", options.publications);
    report.row("payload_bytes", options.publishing.payload_bytes);
    if options.rest_s <= 0.0 {
        return Err("--rest-s must be above 0: memory is read at rest".to_string());
    }
    if options.publications > 0 && clients.subscriptions == 0 {
        return Err("--subscriptions must be at least 1: nobody would receive anything".to_string());
    }
    let mut memory = MemoryLog::begin(common, options.rest_s)?;
    memory.finish(&mut report, clients.connections);
    let mut rounds = Vec::new();
    for _ in 0..options.rounds.max(1) {
        let first = memory.readings();
        let mut round = Report::new(common.lossy);
        one_round(options, &mut memory, &mut round)?;
        if !round.intact() {
            report.problem(format!("round {}: {}", rounds.len() + 1, round.json()["problems"]));
        }
        let mut row = memory.rows(first, clients.connections);
        for name in ["opened_per_s", "server_cpu_us_per_opening"] {
            row.insert(name.to_string(), round.json()[name].clone());
        }
        rounds.push(Value::Object(row));
    }
    report.row("rounds", Value::Array(rounds));
    Ok(report)
}

fn one_round(options: &MemoryOptions, memory: &mut MemoryLog, report: &mut Report) -> Result<(), String> {
    let (common, clients) = (&options.common, &options.clients);
    let (run, regime) = (run_number(), Regime { nap_us: NAP_US, notify_us: NOTIFY_US });
    let (mut coordinator, mut merged) = open(common, clients, regime, run, report)?;
    memory.rested_with("opened", |time| coordinator.hold(time))?;
    let mut published = None;
    if options.publications > 0 {
        let mut publisher = Publisher::connect(clients, &options.publishing, run)?;
        let fanout = FanoutOptions {
            common: common.clone(),
            clients: clients.clone(),
            publishing: options.publishing.clone(),
            rate: 0.0,
            outstanding: 1,
            refill: Refill::Round,
            broadcasts: 0,
            rest_s: options.rest_s,
        };
        let subscriptions = u64::from(clients.connections) * u64::from(clients.subscriptions);
        let (coordinator, publisher) = (&mut coordinator, &mut publisher);
        let mut load = Load { options: &fanout, coordinator, publisher, subscriptions };
        for _ in 0..options.publications {
            if !load.once()? {
                report.problem(format!("deliveries stalled for {} s", common.stall_s));
                break;
            }
        }
        memory.rested("received", load.coordinator, load.publisher)?;
        published = Some(load.publisher.published());
    }
    coordinator.report(published, &mut merged)?;
    report.counts(&merged.report.counts);
    finish(coordinator, &merged, report, 0)?;
    all_have_left(options)?;
    memory.rested_with("left", |time| {
        thread::sleep(time);
        Ok(())
    })
}

/// Waits until the server counts no connection any more.
fn all_have_left(options: &MemoryOptions) -> Result<(), String> {
    // Its numbers are asked for without a key.
    let control = Control { address: options.control, api_key: String::new() };
    let (mut since, mut least) = (Instant::now(), u64::MAX);
    loop {
        let open = control.metrics()?.sum("ringway_connections_open");
        if open == 0 {
            return Ok(());
        }
        if open < least {
            (since, least) = (Instant::now(), open);
        }
        if since.elapsed() > Duration::from_secs(options.common.stall_s.max(1)) {
            return Err(format!("the server still counts {open} connections after all have left"));
        }
        thread::sleep(LOOK);
    }
}
