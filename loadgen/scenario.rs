//! The scenarios: what is done, what is measured, what is reported.
//!
//! In: [`Options`]. Out: a [`Report`].
//!
//! A window begins and ends at rest: nothing is outstanding when the server's CPU is read, so that the CPU belongs to
//! exactly the deliveries counted. Open-loop latency counts from the time at which a publication was due, also when it
//! left late.
mod broadcasts;
mod fleet;
mod ingest;
mod ingest_server;
mod memory;
mod presence;
mod rounds;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::coordinator::{Coordinator, Merged, Regime};
use crate::ingest_sender::AckFaults;
use crate::link::Order;
use crate::net;
use crate::options::{Clients, Command, Common, ConnectOptions, EchoOptions, FanoutOptions, Options, Protocol, Refill};
use crate::payload::{PayloadForm, PayloadTemplate};
use crate::publisher::Publisher;
use crate::report::Report;
use crate::server_cost::{Cost, threads_run_ns};
use memory::MemoryLog;

/// Nap of readers when none is given, in microseconds.
const NAP_US: u64 = 1_000;
/// How often workers report deliveries for a progress display and for stall detection, in microseconds.
const NOTIFY_US: u64 = 100_000;
/// The same where the next publication waits for it.
const NOTIFY_SLIDING_US: u64 = 200;
/// Longest sleep of an open loop, in microseconds: acknowledgements and pings are looked after between.
const PACE_SLEEP_US_MAX: u64 = 10_000;
/// Longest sleep that leaves a publication due in the middle of it, in microseconds.
const PACE_SLEEP_US_MIN: u64 = 50;

/// Runs the scenario of the command line.
pub fn run(options: &Options) -> Result<Report, String> {
    if let Some(&cpu) = options.common().and_then(|common| common.cpu.first()) {
        net::pin_to_core(cpu)?;
    }
    match &options.command {
        Command::Connect(options) => connect(options),
        Command::Fanout(options) => fanout(options),
        Command::Echo(options) => echo(options),
        Command::Ingest(options) => ingest::run(options),
        Command::Presence(options) => presence::run(options),
        Command::Memory(options) => rounds::run(options),
        Command::Fleet(options) => fleet::run(options),
        Command::Worker | Command::FleetWorker => Err("a worker is not a scenario".to_string()),
    }
}

/// A stamp that tells this run from others.
fn run_number() -> u16 {
    (net::now_ns() >> 10) as u16 ^ std::process::id() as u16
}

struct Window {
    before: Cost,
    threads_before: BTreeMap<String, u64>,
    begun: Instant,
}

impl Window {
    fn begin(common: &Common) -> Result<Window, String> {
        let (before, threads_before) = (Cost::read(&common.server_pid)?, threads_run_ns(&common.server_pid));
        Ok(Window { before, threads_before, begun: Instant::now() })
    }

    /// Ends the window: its length in s, and rows of what the server used for each of `operations`.
    fn end(&self, common: &Common, report: &mut Report, operations: u64, per: &'static str) -> Result<f64, String> {
        let seconds = self.begun.elapsed().as_secs_f64();
        report.number("window_s", seconds);
        if common.server_pid.is_empty() {
            return Ok(seconds);
        }
        let after = Cost::read(&common.server_pid)?;
        let cpu_ns = after.cpu_ns_since(&self.before) as f64;
        let threads = threads_run_ns(&common.server_pid).into_iter().map(|(thread, run_ns)| {
            let before_ns = self.threads_before.get(&thread).copied().unwrap_or(0);
            (thread, run_ns.saturating_sub(before_ns))
        });
        report.row("server_threads_ns", json!(threads.collect::<BTreeMap<_, _>>()));
        let operations = operations.max(1) as f64;
        report.number(per, cpu_ns / 1e3 / operations);
        report.number("server_user_us", (after.user_ns - self.before.user_ns) as f64 / 1e3 / operations);
        report.number("server_system_us", (after.system_ns - self.before.system_ns) as f64 / 1e3 / operations);
        report.number("server_cores", cpu_ns / 1e9 / seconds);
        report.row("server_resident_bytes", after.resident_bytes);
        report.row("server_proportional_bytes", after.proportional_bytes);
        Ok(seconds)
    }
}

fn begin(scenario: &'static str, common: &Common, clients: &Clients) -> Report {
    let mut report = Report::new(common.lossy);
    report.row("scenario", scenario);
    if !common.label.is_empty() {
        report.row("label", common.label.clone());
    }
    report.row("protocol", json!(clients.protocol));
    report.row("connections", clients.connections);
    report.row("channels", clients.channels);
    report.row("subscriptions_per_connection", clients.subscriptions);
    report.row("deflate", clients.deflate);
    report
}

/// Opens all connections and reports how that went. An error when none opened.
fn open(
    common: &Common,
    clients: &Clients,
    regime: Regime,
    run: u16,
    report: &mut Report,
) -> Result<(Coordinator, Merged), String> {
    let window = Window::begin(common)?;
    let mut merged = Merged::default();
    let mut coordinator = Coordinator::start(common, clients, regime, run)?;
    report.row("nap_us", clients.nap_us.unwrap_or(regime.nap_us));
    report.row("workers", coordinator.workers());
    coordinator.ready(&mut merged)?;
    let opened = &merged.opened;
    let seconds = opened.last_ns.saturating_sub(opened.first_ns) as f64 / 1e9;
    report.row("opened", opened.connections);
    report.number("opening_s", seconds);
    report.number("opened_per_s", f64::from(opened.connections) / seconds.max(1e-9));
    report.number("loadgen_cpu_us_per_opening", opened.cpu_ns as f64 / 1e3 / f64::from(opened.connections.max(1)));
    report.latency("opening_latency", &merged.opening_latency);
    if !common.server_pid.is_empty() {
        let after = Cost::read(&common.server_pid)?;
        let each = f64::from(opened.connections.max(1));
        report.number("server_cpu_us_per_opening", after.cpu_ns_since(&window.before) as f64 / 1e3 / each);
        let grown = after.resident_bytes.saturating_sub(window.before.resident_bytes);
        report.number("server_resident_bytes_per_connection", grown as f64 / each);
    }
    report.reasons("opening_failures", &opened.failures);
    if opened.connections < clients.connections {
        report.problem(format!("{} of {} connections opened", opened.connections, clients.connections));
    }
    if opened.connections == 0 {
        return Err(format!("no connection opened: {:?}", opened.failures));
    }
    Ok((coordinator, merged))
}

fn finish(coordinator: Coordinator, merged: &Merged, report: &mut Report, operations: u64) -> Result<(), String> {
    report.row("pings", merged.report.pings);
    report.row("open_at_end", merged.report.open);
    report.reasons("losses", &merged.report.losses);
    if !merged.report.losses.is_empty() {
        report.problem("open connections were lost".to_string());
    }
    if operations > 0 {
        report.number("loadgen_cpu_us", merged.report.cpu_ns as f64 / 1e3 / operations as f64);
    }
    let each = merged.report.resident_bytes as f64 / f64::from(merged.opened.connections.max(1));
    report.number("loadgen_bytes_per_connection", each);
    coordinator.finish()
}

fn connect(options: &ConnectOptions) -> Result<Report, String> {
    let (common, clients) = (&options.common, &options.clients);
    let mut report = begin("connect", common, clients);
    let regime = Regime { nap_us: NAP_US, notify_us: NOTIFY_US };
    let (mut coordinator, mut merged) = open(common, clients, regime, run_number(), &mut report)?;
    let window = Window::begin(common)?;
    coordinator.hold(Duration::from_secs(options.hold_s))?;
    window.end(common, &mut report, 1, "server_cpu_us_holding")?;
    coordinator.report(None, &mut merged)?;
    finish(coordinator, &merged, &mut report, 0)?;
    Ok(report)
}

fn fanout(options: &FanoutOptions) -> Result<Report, String> {
    let (common, clients, publishing) = (&options.common, &options.clients, &options.publishing);
    if clients.subscriptions == 0 {
        return Err("--subscriptions must be at least 1: nobody would receive anything".to_string());
    }
    let mut report = begin("fanout", common, clients);
    report.row("payload", json!(publishing.payload));
    report.row("payload_bytes", publishing.payload_bytes);
    let mut memory = MemoryLog::begin(common, options.rest_s)?;
    let open_loop = options.rate > 0.0;
    let sliding = !open_loop && options.refill == Refill::Slide;
    if open_loop {
        report.number("rate_per_s", options.rate);
    } else {
        report.row("outstanding", options.outstanding.max(1));
        report.row("refill", json!(options.refill));
    }
    let run = run_number();
    let notify_us = if sliding { NOTIFY_SLIDING_US } else { NOTIFY_US };
    let (mut coordinator, mut merged) = open(common, clients, Regime { nap_us: NAP_US, notify_us }, run, &mut report)?;
    let mut publisher = Publisher::connect(clients, publishing, run)?;
    let subscriptions = u64::from(clients.connections) * u64::from(clients.subscriptions);
    let mut load = Load { options, coordinator: &mut coordinator, publisher: &mut publisher, subscriptions };
    let mut whole = memory.first_publication(&mut load)?;
    whole = whole && (publishing.warmup_s <= 0.0 || load.run_for(publishing.warmup_s)?);
    let deliveries_before = load.due();
    load.coordinator.order(&Order::Reset)?;
    load.coordinator.done()?;
    let window = Window::begin(common)?;
    whole = whole
        && match options.broadcasts {
            0 => load.run_for(publishing.seconds)?,
            count => broadcasts::run(&mut load, count, &mut report)?,
        };
    let published = load.publisher.published();
    let deliveries = load.due() - deliveries_before;
    let seconds = window.end(common, &mut report, deliveries, "server_cpu_us_per_delivery")?;
    // Before the rest, in which pings come.
    coordinator.report(Some(published), &mut merged)?;
    memory.rested("loaded", &mut coordinator, &mut publisher)?;
    memory.finish(&mut report, clients.connections);
    report.row("publications", published);
    report.row("window_deliveries", deliveries);
    report.number("deliveries_per_s", deliveries as f64 / seconds);
    report.latency("latency", &merged.latency);
    report.counts(&merged.report.counts);
    add_compression(&mut report, clients, publishing.payload_bytes, deliveries, &merged);
    if !whole {
        report.problem(format!("deliveries stalled for {} s", common.stall_s));
    }
    if let Some(sender) = publisher.ingest() {
        report.row("publish_acknowledged", sender.acked());
        report.latency("publish_latency", sender.latency());
        add_faults(&mut report, sender.faults());
    }
    finish(coordinator, &merged, &mut report, deliveries)?;
    Ok(report)
}

/// What came over the wire, and whether what should be compressed was.
fn add_compression(report: &mut Report, clients: &Clients, payload_bytes: usize, deliveries: u64, merged: &Merged) {
    let received = &merged.report;
    report.number("received_bytes_per_delivery", received.received_bytes as f64 / deliveries.max(1) as f64);
    if !clients.deflate {
        return;
    }
    let uncompressed = received.counts.received - received.compressed;
    report.row("compressed_deliveries", received.compressed);
    report.row("uncompressed_deliveries", uncompressed);
    if clients.deflate_bytes_min > 0 && payload_bytes >= clients.deflate_bytes_min && uncompressed > 0 {
        report.problem(format!("{uncompressed} deliveries came uncompressed"));
    }
}

/// The publishing loop of a fanout run.
struct Load<'a> {
    options: &'a FanoutOptions,
    coordinator: &'a mut Coordinator,
    publisher: &'a mut Publisher,
    subscriptions: u64,
}

impl Load<'_> {
    /// Deliveries due for all publications so far.
    fn due(&self) -> u64 {
        let channels = u64::from(self.options.clients.channels);
        let published = self.publisher.published();
        // The first channels have one subscriber more, if they do not divide evenly.
        let further = published % channels;
        let rest = further * (self.subscriptions / channels) + further.min(self.subscriptions % channels);
        published / channels * self.subscriptions + rest
    }

    /// Runs the load for `seconds` and then until all is delivered. False: it stalled.
    fn run_for(&mut self, seconds: f64) -> Result<bool, String> {
        if self.options.rate > 0.0 {
            self.paced(seconds)?;
        } else {
            match self.options.refill {
                Refill::Round => return self.rounds(seconds),
                Refill::Slide => {
                    if !self.sliding(seconds)? {
                        return Ok(false);
                    }
                }
            }
        }
        self.drain()
    }

    /// One publication to each channel, and then until all is delivered. False: it stalled.
    fn once(&mut self) -> Result<bool, String> {
        for _ in 0..self.options.clients.channels {
            while self.publisher.room() == 0 {
                self.publisher.flush()?;
            }
            self.publisher.publish(net::now_ns())?;
        }
        while !self.publisher.flush()? {
            net::nap(PACE_SLEEP_US_MIN);
        }
        self.drain()
    }

    /// Waits until everything is delivered and acknowledged.
    fn drain(&mut self) -> Result<bool, String> {
        let published = self.publisher.published();
        self.coordinator.order(&Order::Goal { published })?;
        let publisher = &mut *self.publisher;
        let reached = self.coordinator.reached(published, || publisher.flush().map(drop))?;
        let since = Instant::now();
        while publisher.ingest().is_some_and(|sender| sender.unsettled() > 0) {
            publisher.flush()?;
            if since.elapsed() > Duration::from_secs(self.options.common.stall_s) {
                return Ok(false);
            }
            net::nap(PACE_SLEEP_US_MIN);
        }
        Ok(reached)
    }

    fn rounds(&mut self, seconds: f64) -> Result<bool, String> {
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        while Instant::now() < end {
            let published = self.publisher.published() + u64::from(self.options.outstanding.max(1));
            self.coordinator.order(&Order::Goal { published })?;
            let now_ns = net::now_ns();
            while self.publisher.published() < published {
                while self.publisher.room() == 0 {
                    self.publisher.flush()?;
                }
                self.publisher.publish(now_ns)?;
            }
            while !self.publisher.flush()? {
                net::nap(PACE_SLEEP_US_MIN);
            }
            let publisher = &mut *self.publisher;
            if !self.coordinator.reached(published, || publisher.flush().map(drop))? {
                return Ok(false);
            }
        }
        self.drain()
    }

    fn sliding(&mut self, seconds: f64) -> Result<bool, String> {
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        let stall = Duration::from_secs(self.options.common.stall_s);
        let (mut moved, mut channel_due) = (Instant::now(), self.due());
        let each = (self.subscriptions / u64::from(self.options.clients.channels)).max(1);
        let outstanding_max = u64::from(self.options.outstanding.max(1)) * each;
        while Instant::now() < end {
            let now_ns = net::now_ns();
            let mut published = false;
            while channel_due.saturating_sub(self.coordinator.deliveries()) < outstanding_max
                && self.publisher.room() > 0
            {
                self.publisher.publish(now_ns)?;
                channel_due += each;
                published = true;
            }
            if published {
                moved = Instant::now();
                channel_due = self.due();
            }
            self.publisher.flush()?;
            self.coordinator.listen(Duration::from_micros(NOTIFY_SLIDING_US))?;
            if moved.elapsed() > stall {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn paced(&mut self, seconds: f64) -> Result<(), String> {
        let begun_ns = net::now_ns();
        let interval_ns = 1e9 / self.options.rate;
        let total = (seconds * self.options.rate) as u64;
        let mut count = 0u64;
        while count < total {
            let now_ns = net::now_ns();
            let due = (((now_ns - begun_ns) as f64 / interval_ns) as u64 + 1).min(total);
            while count < due && self.publisher.room() > 0 {
                self.publisher.publish(begun_ns + (count as f64 * interval_ns) as u64)?;
                count += 1;
            }
            self.publisher.flush()?;
            self.coordinator.listen(Duration::ZERO)?;
            let next_ns = begun_ns + (count as f64 * interval_ns) as u64;
            let wait_us = next_ns.saturating_sub(net::now_ns()) / 1000;
            net::nap(wait_us.clamp(PACE_SLEEP_US_MIN, PACE_SLEEP_US_MAX));
        }
        while !self.publisher.flush()? {
            net::nap(PACE_SLEEP_US_MIN);
        }
        Ok(())
    }
}

fn echo(options: &EchoOptions) -> Result<Report, String> {
    let common = &options.common;
    let mut clients = options.clients.clone();
    if clients.protocol != Protocol::Websocket {
        return Err("echo speaks plain WebSocket: add --protocol websocket and the --url of an echo path".to_string());
    }
    // Each connection is a channel of its own, so that order is checked per connection.
    (clients.channels, clients.subscriptions) = (clients.connections, 1);
    PayloadTemplate::new(PayloadForm::Text, options.payload_bytes)?;
    let mut report = begin("echo", common, &clients);
    report.row("payload_bytes", options.payload_bytes);
    report.row("outstanding", options.outstanding.max(1));
    let regime = Regime { nap_us: 0, notify_us: NOTIFY_US };
    let (mut coordinator, mut merged) = open(common, &clients, regime, run_number(), &mut report)?;
    let outstanding = options.outstanding.max(1);
    coordinator.order(&Order::Echo { outstanding, payload_bytes: options.payload_bytes })?;
    coordinator.hold(Duration::from_secs_f64(options.warmup_s))?;
    coordinator.order(&Order::Reset)?;
    coordinator.done()?;
    let window = Window::begin(common)?;
    coordinator.hold(Duration::from_secs_f64(options.seconds))?;
    coordinator.order(&Order::EchoStop)?;
    let whole = coordinator.done()?;
    coordinator.report(None, &mut merged)?;
    let echoes = merged.report.echoes;
    let seconds = window.end(common, &mut report, echoes, "server_cpu_us_per_echo")?;
    report.row("echoes", echoes);
    report.number("echoes_per_s", echoes as f64 / seconds);
    report.latency("latency", &merged.latency);
    report.counts(&merged.report.counts);
    if !whole {
        report.problem(format!("echoes were missing for {} s", common.stall_s));
    }
    finish(coordinator, &merged, &mut report, echoes)?;
    Ok(report)
}

fn add_faults(report: &mut Report, faults: &AckFaults) {
    if !faults.none() {
        report.problem(format!("acknowledgements: {faults:?}"));
    }
}
