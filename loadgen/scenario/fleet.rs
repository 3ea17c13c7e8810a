//! The fleet scenario: clients and publishers that go through restarts, crashes and failovers, and what they missed.
//!
//! In: [`FleetOptions`]; with `--follow` the end of the load on stdin. Out: a [`Report`]; with `--follow` how it is, line by line.
//!
//! ```text
//! all clients whole ─> load (others restart nodes meanwhile) ─> publishers stop, and have everything confirmed
//!                   ─> everybody gets what is still due, or is counted as missing ─> report
//! ```
use std::io::{BufRead as _, Write as _};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::run_number;
use crate::checker::Layout;
use crate::fleet::backend::{Backend, BackendOptions, BackendReport};
use crate::fleet::check::discount;
use crate::fleet::crew::Crew;
use crate::fleet::link::{FleetOrder, Written};
use crate::fleet::worker::SUBSCRIPTIONS_MAX;
use crate::net;
use crate::options::FleetOptions;
use crate::report::Report;

/// From one line about the state to the next.
const SAY_EVERY: Duration = Duration::from_millis(200);

/// Runs it.
pub(super) fn run(options: &FleetOptions) -> Result<Report, String> {
    check(options)?;
    let (run, stall) = (run_number(), Duration::from_secs(options.common.stall_s.max(1)));
    let seed = if options.seed == 0 { net::now_ns() } else { options.seed };
    let mut report = Report::new(options.common.lossy);
    begin(options, seed, &mut report);
    // Other runs on the same servers have channels of their own.
    let options = FleetOptions { channel_prefix: format!("{}{run:x}-", options.channel_prefix), ..options.clone() };
    let mut crew = Crew::start(&options, run, seed)?;
    report.row("workers", crew.workers());
    let began = Instant::now();
    if !crew.all_whole(options.connections, stall)? {
        return Err(format!(
            "{} of {} clients were connected with every subscription",
            crew.whole(),
            options.connections
        ));
    }
    report.number("opening_s", began.elapsed().as_secs_f64());
    let backend = Backend::start(BackendOptions {
        addresses: options.ingest.clone(),
        token: options.ingest_token.clone(),
        publishers: options.publishers,
        channels: options.written_by_clients..options.channels,
        channel_prefix: options.channel_prefix.clone(),
        payload_bytes: options.payload_bytes,
        rate_per_channel: options.rate_per_channel,
        run,
        ack_timeout_ms: options.reply_timeout_ms,
        cpu: options.common.cpu.first().copied(),
    })?;
    crew.order(&FleetOrder::Begin { rate_per_channel: options.rate_per_channel })?;
    let loaded = Instant::now();
    load(&options, &mut crew)?;
    report.number("window_s", loaded.elapsed().as_secs_f64());
    settle(&options, crew, backend, &mut report)?;
    Ok(report)
}

fn check(options: &FleetOptions) -> Result<(), String> {
    if options.connections == 0 || options.channels == 0 || options.subscriptions == 0 {
        return Err("--connections, --channels and --subscriptions must be at least 1".to_string());
    }
    if options.subscriptions > options.channels.min(SUBSCRIPTIONS_MAX) {
        return Err(format!("--subscriptions may not exceed --channels nor {SUBSCRIPTIONS_MAX}"));
    }
    if options.written_by_clients > options.channels.min(options.connections) {
        return Err("--written-by-clients may not exceed --channels nor --connections".to_string());
    }
    if options.backoff_min_ms == 0 || options.backoff_max_ms < options.backoff_min_ms {
        return Err("--backoff-min-ms must be at least 1 and not above --backoff-max-ms".to_string());
    }
    if !(options.changes_per_s >= 0.0 && options.cuts_per_s >= 0.0) {
        return Err("--changes-per-s and --cuts-per-s may not be negative".to_string());
    }
    Ok(())
}

fn begin(options: &FleetOptions, seed: u64, report: &mut Report) {
    report.row("scenario", "fleet");
    if !options.common.label.is_empty() {
        report.row("label", options.common.label.clone());
    }
    report.row("connections", options.connections);
    report.row("channels", options.channels);
    report.row("channels_written_by_clients", options.written_by_clients);
    report.row("subscriptions_per_connection", options.subscriptions);
    report.number("rate_per_channel_per_s", options.rate_per_channel);
    report.row("payload_bytes", options.payload_bytes);
    report.row("backoff_ms", json!([options.backoff_min_ms, options.backoff_max_ms]));
    report.row("seed", seed);
}

/// Lets the load run its time, or until it is told to end.
fn load(options: &FleetOptions, crew: &mut Crew) -> Result<(), String> {
    let end = Instant::now() + Duration::from_secs_f64(options.seconds);
    let stops = options.follow.then(follow_stdin);
    while Instant::now() < end {
        crew.listen(SAY_EVERY.min(end.saturating_duration_since(Instant::now())))?;
        let Some(stops) = &stops else { continue };
        let line = json!({ "state": "running", "whole": crew.whole(), "received": crew.received(),
            "reconnects": crew.reconnects() });
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{line}").and_then(|()| stdout.flush()).map_err(|error| format!("stdout: {error}"))?;
        match stops.try_recv() {
            Err(TryRecvError::Empty) => {}
            // A line, or the end of who started us.
            Ok(()) | Err(TryRecvError::Disconnected) => return Ok(()),
        }
    }
    Ok(())
}

/// Something comes as soon as stdin says "stop" or ends.
fn follow_stdin() -> Receiver<()> {
    let (sender, stops) = channel();
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if line.trim() == "stop" {
                break;
            }
        }
        // Nobody listens any more if the time was up before.
        let _ = sender.send(());
    });
    stops
}

fn settle(options: &FleetOptions, mut crew: Crew, backend: Backend, report: &mut Report) -> Result<(), String> {
    let wait = Duration::from_secs_f64(options.settle_s);
    let began = Instant::now();
    let mut written = crew.stop(wait)?;
    let published = backend.finish(options.settle_s)?;
    written.extend(published.written.iter().cloned());
    let (numbers, confirmed, unconfirmed) = by_channel(options.channels, &written);
    // First everybody comes back, and is then given what is due: a client that is away settles nothing.
    let left = || wait.saturating_sub(began.elapsed());
    let settled = crew.settle(confirmed, left())?;
    // Numbers that their writers never had confirmed may still come, and belong to nobody's wait.
    crew.listen(Duration::from_millis(500))?;
    report.number("settling_s", began.elapsed().as_secs_f64());
    let unconfirmed_count = unconfirmed.len();
    crew.report(numbers, unconfirmed, wait)?;
    let layout = Layout { channels: options.channels, subscriptions: options.subscriptions };
    let mut counts = crew.sum.report.counts;
    let parts = std::mem::take(&mut crew.sum.report.unconfirmed);
    discount(&mut counts, layout, u64::from(options.connections), parts.into_iter());
    crew.sum.report.counts = counts;
    report.row("settled", settled);
    report.row("unconfirmed_publications", unconfirmed_count);
    if !settled {
        report.problem(format!("not everybody had everything {} s behind the load", options.settle_s));
    }
    add_clients(options, &crew, report);
    add_backend(&published, report);
    Ok(())
}

/// By channel: one behind the last number, one behind the last confirmed; and what was never confirmed.
fn by_channel(channels: u32, written: &[Written]) -> (Vec<u32>, Vec<u32>, Vec<(u32, u32)>) {
    let (mut numbers, mut confirmed) = (vec![0; channels as usize], vec![0; channels as usize]);
    let mut unconfirmed = Vec::new();
    for one in written {
        numbers[one.channel as usize] = one.next;
        confirmed[one.channel as usize] = one.confirmed;
        unconfirmed.extend(one.unconfirmed.iter().map(|number| (one.channel, *number)));
    }
    (numbers, confirmed, unconfirmed)
}

fn add_clients(options: &FleetOptions, crew: &Crew, report: &mut Report) {
    let (sum, found) = (&crew.sum, &crew.sum.report);
    let counts = &found.counts;
    report.row("deliveries", json!(counts));
    let closes = |code: &str| -> u64 {
        found.closes.iter().filter(|(reason, _)| reason.starts_with(code)).map(|(_, count)| count).sum()
    };
    report.row("established", found.established);
    report.row("connections_lost", found.closes.values().sum::<u64>());
    report.row("closed_3001", closes("closed 3001"));
    report.row("refused_connects", found.refusals.values().sum::<u64>());
    report.row("reconnected_per_s_max", found.reconnected.per_second_max());
    report.row("whole_at_end", found.whole);
    report.row("published_by_clients", found.published);
    report.row("left", found.left);
    report.row("returned", found.returned);
    report.row("cut_off", found.cut_off);
    report.latency("silence", &sum.silence);
    report.latency("interruption", &sum.interruption);
    report.latency("absence", &sum.absence);
    report.latency("latency", &sum.latency);
    report.reasons("closes", &found.closes);
    report.reasons("refusals", &found.refusals);
    report.reasons("resubscribes", &found.resubscribes);
    report.reasons("refused_subscribes", &found.refused_subscribes);
    report.reasons("refused_publishes", &found.refused_publishes);
    report.reasons("faults", &found.faults);
    report.row("examples", json!(found.examples));
    report.number("loadgen_bytes_per_connection", found.resident_bytes as f64 / f64::from(options.connections));
    report.number("loadgen_cpu_s", found.cpu_ns as f64 / 1e9);
    if !found.faults.is_empty() {
        report.problem(format!("what must not happen: {:?}", found.faults));
    }
    if found.whole < options.connections {
        report.problem(format!("{} of {} clients were whole at the end", found.whole, options.connections));
    }
    let good = if options.allow_announced { counts.never_silent() } else { counts.intact() };
    if !good && !options.common.lossy {
        report.problem("deliveries were lost, doubled, out of order or wrongly numbered".to_string());
    }
}

fn add_backend(published: &BackendReport, report: &mut Report) {
    report.row("published_over_ingest", published.acknowledged);
    report.row("published_again", published.again);
    report.row("acknowledged_as_duplicate", published.duplicates);
    report.row("acknowledged_wrong_offsets", published.wrong_offsets);
    report.row("acknowledged_epoch_changes", published.epoch_changes);
    report.latency("publish_latency", &published.latency);
    report.reasons("ingest_refusals", &published.refusals);
    report.reasons("ingest_moves", &published.moves);
    if published.wrong_offsets > 0 {
        report.problem("acknowledged offsets were not dense under their epoch".to_string());
    }
}
