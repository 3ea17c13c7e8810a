//! The ingest scenario: publish over several connections as fast as acknowledgements allow, or at a rate.
//!
//! In: [`IngestOptions`]. Out: a [`Report`]. Invariant: a channel belongs to one connection, so that its acknowledged
//! offsets must be dense; the window ends when every publish is settled.
use std::time::{Duration, Instant};

use serde_json::json;

use super::{NAP_US, PACE_SLEEP_US_MIN, Window, add_faults, ingest_server, run_number};
use crate::ingest_sender::{AckFaults, IngestSender};
use crate::net::{self, Poll};
use crate::options::IngestOptions;
use crate::payload::{PayloadTemplate, Stamp};
use crate::report::{Latency, Report};
use crate::server_cost::{Cost, own_cpu_ns};

/// Runs it.
pub(super) fn run(options: &IngestOptions) -> Result<Report, String> {
    let (common, publishing) = (&options.common, &options.publishing);
    if options.connections == 0 || options.channels < options.connections {
        return Err("--connections must be at least 1 and at most --channels".to_string());
    }
    let mut report = Report::new(common.lossy);
    report.row("scenario", "ingest");
    if !common.label.is_empty() {
        report.row("label", common.label.clone());
    }
    report.row("connections", options.connections);
    report.row("channels", options.channels);
    report.row("payload", json!(publishing.payload));
    report.row("payload_bytes", publishing.payload_bytes);
    report.row("batch", options.batch);
    report.row("owners", json!(options.owners));
    report.row("shards", options.shards);
    report.row("idempotency_keys", options.idempotency_keys);
    report.row("server_resident_bytes_before", Cost::read(&common.server_pid)?.resident_bytes);
    let mut load = IngestLoad::connect(options)?;
    let mut whole = true;
    if options.count == 0 && publishing.warmup_s > 0.0 {
        whole = load.publish_for(Some(publishing.warmup_s), u64::MAX)?;
        load.senders.iter_mut().for_each(IngestSender::reset_latency);
    }
    let acked_before = load.acked();
    let before = ingest_server::settled_metrics(options)?;
    let window = Window::begin(common)?;
    let own_before_ns = own_cpu_ns();
    let (seconds, count) = if options.count > 0 { (None, options.count) } else { (Some(publishing.seconds), u64::MAX) };
    whole = whole && load.publish_for(seconds, count)?;
    let acked = load.acked() - acked_before;
    let seconds = window.end(common, &mut report, acked, "server_cpu_us_per_publish")?;
    report.number("loadgen_cpu_us", (own_cpu_ns() - own_before_ns) as f64 / 1e3 / acked.max(1) as f64);
    if let (Some(before), Some(after)) = (before, ingest_server::settled_metrics(options)?) {
        ingest_server::report_lanes(options, &mut report, &before, &after);
    }
    let top = |channel: u32| load.senders[(channel % options.connections) as usize].top(channel);
    ingest_server::check_histories(options, &mut report, &load.names, load.run, top)?;
    let (mut latency, mut faults) = (Latency::new(), AckFaults::default());
    for sender in &load.senders {
        latency.add(&sender.latency().buckets());
        faults.add(sender.faults());
    }
    report.row("acknowledged", acked);
    report.number("acknowledged_per_s", acked as f64 / seconds);
    report.latency("latency", &latency);
    add_faults(&mut report, &faults);
    if !whole {
        report.problem(format!("acknowledgements stalled for {} s", common.stall_s));
    }
    Ok(report)
}

/// The publishing loop of an ingest run.
struct IngestLoad<'a> {
    options: &'a IngestOptions,
    senders: Vec<IngestSender>,
    /// Publishes so far of each connection.
    published: Vec<u64>,
    payload: PayloadTemplate,
    poll: Poll,
    run: u16,
    names: Vec<String>,
}

impl<'a> IngestLoad<'a> {
    fn connect(options: &'a IngestOptions) -> Result<IngestLoad<'a>, String> {
        let poll = Poll::new().map_err(|error| format!("epoll: {error}"))?;
        let mut senders = Vec::new();
        let names = ingest_server::channel_names(options);
        for number in 0..options.connections {
            let sender = ingest_server::connect(options, number, &names)?;
            poll.add(&sender, u64::from(number), false).map_err(|error| format!("epoll: {error}"))?;
            senders.push(sender);
        }
        let payload = PayloadTemplate::new(options.publishing.payload, options.publishing.payload_bytes)?;
        Ok(IngestLoad { options, published: vec![0; senders.len()], senders, payload, poll, run: run_number(), names })
    }

    fn acked(&self) -> u64 {
        self.senders.iter().map(IngestSender::acked).sum()
    }

    /// Publishes for a time or a count, then waits for what is outstanding. False: it stalled.
    fn publish_for(&mut self, seconds: Option<f64>, count: u64) -> Result<bool, String> {
        let (begun_ns, mut moved) = (net::now_ns(), Instant::now());
        let end_ns = seconds.map_or(u64::MAX, |seconds| begun_ns + (seconds * 1e9) as u64);
        let interval_ns = if self.options.rate > 0.0 { 1e9 / self.options.rate } else { 0.0 };
        let (mut made, mut ready) = (0u64, Vec::new());
        loop {
            let now_ns = net::now_ns();
            let running = made < count && now_ns < end_ns;
            if !running && self.senders.iter().all(|sender| sender.unsettled() == 0) {
                return Ok(true);
            }
            let due = if interval_ns > 0.0 { ((now_ns - begun_ns) as f64 / interval_ns) as u64 + 1 } else { u64::MAX };
            let mut progress = false;
            for index in 0..self.senders.len() {
                progress |= self.senders[index].receive()? > 0;
                let room = self.senders[index].room(self.payload.len()).min(u64::from(self.options.batch));
                let wanted = if running { room.min(count - made).min(due.saturating_sub(made)) } else { 0 };
                for _ in 0..wanted {
                    let intended_ns =
                        if interval_ns > 0.0 { begun_ns + (made as f64 * interval_ns) as u64 } else { now_ns };
                    self.publish(index, intended_ns)?;
                    made += 1;
                }
                progress |= wanted > 0;
                self.senders[index].flush()?;
            }
            if progress {
                moved = Instant::now();
                continue;
            }
            if moved.elapsed() > Duration::from_secs(self.options.common.stall_s) {
                return Ok(false);
            }
            let timeout_us = if interval_ns > 0.0 && running { PACE_SLEEP_US_MIN } else { NAP_US };
            self.poll.wait(timeout_us, &mut ready).map_err(|error| format!("epoll: {error}"))?;
        }
    }

    /// One publish of connection `index` to the next of its channels: those whose number is `index` modulo connections.
    fn publish(&mut self, index: usize, intended_ns: u64) -> Result<(), String> {
        let (connections, channels) = (self.options.connections, self.options.channels);
        let own = u64::from((channels - 1 - index as u32) / connections + 1);
        let published = &mut self.published[index];
        let channel = (*published % own) as u32 * connections + index as u32;
        let stamp = Stamp { run: self.run, channel, sequence: *published / own, intended_ns };
        *published += 1;
        self.senders[index].publish(channel, self.payload.stamped(&stamp), intended_ns)
    }
}
