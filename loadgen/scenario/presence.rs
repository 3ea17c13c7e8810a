//! The presence scenario: members of a channel leave and join again, while watchers are told of it.
//!
//! In: [`PresenceOptions`]. Out: a [`Report`] with one entry per window.
//!
//! The channels, of one or several sizes, share the connections, and each window churns one of them: windows of a channel
//! with presence and of one without, of a small channel and of a large one, follow each other on the same server, so that
//! their difference is the cost of presence, or of size. A window begins and ends with every member in its channel, and
//! the server must then count them all.
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::{NAP_US, NOTIFY_US, Window, begin, finish, open, run_number};
use crate::control::Control;
use crate::coordinator::{Coordinator, Merged, Regime};
use crate::link::Order;
use crate::options::{Clients, PresenceOptions, Protocol};
use crate::report::Report;

/// Between two looks at what watchers were told; longer than shards take to publish their numbers.
const SETTLE: Duration = Duration::from_millis(200);

/// Runs it.
pub(super) fn run(options: &PresenceOptions) -> Result<Report, String> {
    let common = &options.common;
    if matches!(options.clients.protocol, Protocol::Websocket | Protocol::Nats) {
        return Err("presence needs channels: use a Centrifuge protocol".to_string());
    }
    if options.watchers == 0 || options.outstanding == 0 || options.churn_channels.is_empty() {
        return Err("--watchers, --outstanding and --churn-channels must be at least 1".to_string());
    }
    let count = options.churn_channels.len() as u32;
    let all = options.clients.connections;
    let channel_names = options.churn_channels.iter().map(|channel| channel.name.clone()).collect();
    let channel_members =
        options.churn_channels.iter().map(|channel| channel.members.unwrap_or(all).min(all)).collect();
    let clients = Clients { channels: count, subscriptions: count, channel_names, ..options.clients.clone() };
    let watching = Clients { connections: options.watchers, workers: 1, join_leave: true, ..clients.clone() };
    let clients = Clients { channel_members, ..clients };
    let mut report = begin("presence", common, &clients);
    report.row("watchers", options.watchers);
    report.row("outstanding", options.outstanding);
    let (run, regime) = (run_number(), Regime { nap_us: NAP_US, notify_us: NOTIFY_US });
    let (members, merged) = open(common, &clients, regime, run, &mut report)?;
    // Behind the members, whose opening watchers would otherwise be told of.
    let mut opening = Report::new(false);
    let (watchers, watching) = open(common, &watching, regime, run, &mut opening)?;
    if !opening.intact() {
        report.problem("watchers did not open".to_string());
    }
    let control = Control { address: options.control, api_key: options.api_key.clone() };
    let mut load = Load { options, control, members, watchers, watching, merged, windows: Vec::new() };
    for _ in 0..options.rounds.max(1) {
        for &churners in &options.churners {
            for channel in &options.churn_channels {
                let members = channel.members.unwrap_or(all).min(all);
                if churners < members {
                    let churners = if churners == 0 { members } else { churners };
                    load.window(&channel.name, members, churners, &mut report)?;
                }
            }
        }
    }
    report.row("windows", Value::Array(load.windows));
    load.watchers.report(None, &mut load.watching)?;
    if !load.watching.report.losses.is_empty() {
        report.problem(format!("watchers were lost: {:?}", load.watching.report.losses));
    }
    load.watchers.finish()?;
    load.members.report(None, &mut load.merged)?;
    finish(load.members, &load.merged, &mut report, 0)?;
    Ok(report)
}

/// What the windows of a run share.
struct Load<'a> {
    options: &'a PresenceOptions,
    control: Control,
    members: Coordinator,
    watchers: Coordinator,
    watching: Merged,
    merged: Merged,
    windows: Vec<Value>,
}

impl Load<'_> {
    fn window(&mut self, channel: &str, members: u32, churners: u32, report: &mut Report) -> Result<(), String> {
        let common = &self.options.common;
        let workers = self.members.workers() as u32;
        let order = Order::Churn {
            channel: channel.to_string(),
            outstanding: self.options.outstanding.div_ceil(workers),
            churners: churners.div_ceil(workers),
        };
        let mut whole = self.options.warmup_s <= 0.0 || self.churn(&order, self.options.warmup_s)?;
        self.quiet()?;
        for coordinator in [&mut self.members, &mut self.watchers] {
            coordinator.order(&Order::Reset)?;
            coordinator.done()?;
        }
        let before = self.control.metrics()?;
        let window = Window::begin(common)?;
        whole = whole && self.churn(&order, self.options.seconds)?;
        let mut done = Merged::default();
        self.members.report(None, &mut done)?;
        let mut row = Report::new(common.lossy);
        row.row("channel", channel);
        row.row("members_at_rest", members);
        row.row("churners", churners);
        row.row("events", done.report.changes);
        let seconds = window.end(common, &mut row, done.report.changes, "server_cpu_us_per_event")?;
        let told = self.quiet()?;
        let after = self.control.metrics()?;
        let events = done.report.changes.max(1) as f64;
        row.number("events_per_s", done.report.changes as f64 / seconds);
        let per_event = |name| after.since(&before, name) as f64 / events;
        row.number("written_bytes_per_event", per_event("ringway_write_bytes_total"));
        row.number("writes_per_event", per_event("ringway_writes_total"));
        row.number("lane_messages_per_event", per_event("ringway_lane_messages_sent_total"));
        row.number("turns_per_event", per_event("ringway_loop_turns_total"));
        row.row("changes_told", after.since(&before, "ringway_join_leave_told_total"));
        row.row("changes_not_told", after.since(&before, "ringway_join_leave_dropped_total"));
        row.row("pushes_to_watchers", told);
        row.number("pushes_to_watchers_per_event", told as f64 / events);
        row.row("pushes_to_members", done.report.told);
        row.latency("latency", &done.latency);
        row.number("loadgen_cpu_us", done.report.cpu_ns as f64 / 1e3 / events);
        let expected = u64::from(members) + u64::from(self.options.watchers);
        let counted = self.control.members(channel)?;
        row.row("members", json!(counted.map(|(clients, _)| clients)));
        row.row("users", json!(counted.map(|(_, users)| users)));
        self.windows.push(row.json());
        for (wrong, text) in [
            (!whole, format!("replies stalled for {} s", common.stall_s)),
            (counted.is_some_and(|(clients, _)| clients != expected), format!("{counted:?} members, not {expected}")),
            (done.report.told > 0, "members were told of others, for which they had not asked".to_string()),
            (done.report.changes == 0, "nobody left and joined".to_string()),
        ] {
            if wrong {
                report.problem(format!("{channel}: {text}"));
            }
        }
        Ok(())
    }

    /// Lets members come and go for a time, and then all come back. False: somebody did not.
    fn churn(&mut self, order: &Order, seconds: f64) -> Result<bool, String> {
        self.members.order(order)?;
        self.members.hold(Duration::from_secs_f64(seconds))?;
        self.members.order(&Order::ChurnStop)?;
        self.members.done()
    }

    /// Waits until watchers are told of nothing more; what they were told since the last reset.
    fn quiet(&mut self) -> Result<u64, String> {
        let mut told = None;
        loop {
            thread::sleep(SETTLE);
            let mut now = Merged::default();
            self.watchers.report(None, &mut now)?;
            if told == Some(now.report.told) {
                return Ok(now.report.told);
            }
            told = Some(now.report.told);
        }
    }
}
