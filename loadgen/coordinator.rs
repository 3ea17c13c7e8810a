//! Starts the worker processes, talks with them, merges what they report.
//!
//! In: [`Clients`] and the scenario's orders. Out: [`Opened`] and [`WorkerReport`], merged over all workers.
//! Invariants: no worker outlives its coordinator (its stdin ends); every wait has an end: the stall limit counts from
//! the last sign of progress.
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::checker::Layout;
use crate::link::{Note, Opened, Order, WorkerConfig, WorkerReport, decode, encode};
use crate::net;
use crate::options::{Clients, Common, Target};
use crate::report::Latency;

/// Worker results together.
#[derive(Debug, Default)]
pub struct Merged {
    /// How opening went; times are the first and the last of all workers.
    pub opened: Opened,
    /// Opening latency of all connections.
    pub opening_latency: Latency,
    /// Sums of the reports.
    pub report: WorkerReport,
    /// Latency of all deliveries.
    pub latency: Latency,
}

struct Worker {
    child: Child,
    orders: ChildStdin,
    /// Connections open and deliveries received, as last said.
    open: u32,
    deliveries: u64,
    reached: u64,
    /// First and last delivery of what was last reached.
    delivered: (u64, u64),
}

/// The running workers.
pub struct Coordinator {
    workers: Vec<Worker>,
    notes: Receiver<(usize, Result<Note, String>)>,
    stall: Duration,
}

/// What a scenario adds to [`Clients`].
#[derive(Clone, Copy, Debug)]
pub struct Regime {
    /// Nap when none is given, in microseconds.
    pub nap_us: u64,
    /// How often workers say what they have received, in microseconds.
    pub notify_us: u64,
}

impl Coordinator {
    /// Starts as many workers as the options and the open-file limit ask for.
    pub fn start(common: &Common, clients: &Clients, regime: Regime, run: u16) -> Result<Coordinator, String> {
        if clients.connections == 0 || clients.channels == 0 {
            return Err("--connections and --channels must be at least 1".to_string());
        }
        if clients.subscriptions > clients.channels {
            return Err("--subscriptions may not exceed --channels".to_string());
        }
        let targets = Target::parse_all(&clients.url)?;
        let per_worker = net::raise_open_file_limit();
        let count = clients.workers.max(clients.connections.div_ceil(per_worker)).min(clients.connections);
        // A worker knows one server.
        let count = count.next_multiple_of(targets.len() as u32);
        if count > clients.connections {
            return Err("--connections must be at least one for each --url".to_string());
        }
        let (sender, notes) = channel();
        let mut workers = Vec::new();
        let mut first = 0u32;
        for index in 0..count {
            let share = |all: u32| all / count + u32::from(index < all % count);
            let connections = share(clients.connections);
            let target = &targets[index as usize * targets.len() / count as usize];
            let config = WorkerConfig {
                first_connection: u64::from(first),
                connections,
                target: target.address,
                host: target.host.clone(),
                path: target.path.clone(),
                protocol: clients.protocol,
                layout: Layout { channels: clients.channels, subscriptions: clients.subscriptions },
                channel_prefix: clients.channel_prefix.clone(),
                channel_names: clients.channel_names.clone(),
                channel_members: clients.channel_members.iter().map(|members| share(*members)).collect(),
                join_leave: clients.join_leave,
                token: clients.token.clone(),
                token_secret: clients.token_secret.clone(),
                run,
                connect_rate: f64::from(clients.connect_rate) / f64::from(count),
                opening_max: (clients.opening_max).max(1),
                nap_us: clients.nap_us.unwrap_or(regime.nap_us),
                notify_us: regime.notify_us,
                cpu: common.cpu.get(index as usize % common.cpu.len().max(1)).copied(),
                connections_per_address: clients.connections_per_address,
                receive_buffer_bytes: clients.receive_buffer_bytes,
                deflate: clients.deflate,
            };
            first += connections;
            workers.push(spawn(index as usize, &config, sender.clone())?);
        }
        Ok(Coordinator { workers, notes, stall: Duration::from_secs(common.stall_s.max(1)) })
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Tells every worker.
    pub fn order(&mut self, order: &Order) -> Result<(), String> {
        let line = encode(order)?;
        for worker in &mut self.workers {
            let written = worker.orders.write_all(line.as_bytes()).and_then(|()| worker.orders.flush());
            written.map_err(|error| format!("a worker is gone: {error}"))?;
        }
        Ok(())
    }

    /// Waits until every connection is open or has failed.
    pub fn ready(&mut self, merged: &mut Merged) -> Result<(), String> {
        let bar = self.progress();
        let mut missing = self.workers.len();
        merged.opened.first_ns = u64::MAX;
        while missing > 0 {
            if let Note::Ready(opened) = self.next("opening connections")? {
                missing -= 1;
                let all = &mut merged.opened;
                all.connections += opened.connections;
                all.first_ns = all.first_ns.min(opened.first_ns);
                all.last_ns = all.last_ns.max(opened.last_ns);
                all.resident_bytes += opened.resident_bytes;
                all.cpu_ns += opened.cpu_ns;
                merged.opening_latency.add(&opened.latency);
                for (reason, count) in opened.failures {
                    *all.failures.entry(reason).or_default() += count;
                }
            }
            bar.set_position(self.workers.iter().map(|worker| u64::from(worker.open)).sum());
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// Waits until all deliveries of `published` publications have come; `meanwhile` runs now and then. False: the
    /// deliveries stalled.
    pub fn reached(
        &mut self,
        published: u64,
        mut meanwhile: impl FnMut() -> Result<(), String>,
    ) -> Result<bool, String> {
        let (mut since, mut seen) = (Instant::now(), self.deliveries());
        while self.workers.iter().any(|worker| worker.reached < published) {
            self.take_one(Duration::from_millis(20))?;
            meanwhile()?;
            if self.deliveries() != seen {
                (since, seen) = (Instant::now(), self.deliveries());
            }
            if since.elapsed() > self.stall {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits for [`Note::Done`] of every worker. False: it did not come in time.
    pub fn done(&mut self) -> Result<bool, String> {
        let since = Instant::now();
        let mut missing = self.workers.len();
        while missing > 0 {
            if matches!(self.take_one(Duration::from_millis(20))?, Some(Note::Done)) {
                missing -= 1;
            }
            if since.elapsed() > self.stall {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes notes until there is none for `wait`.
    pub fn listen(&mut self, wait: Duration) -> Result<(), String> {
        while self.take_one(wait)?.is_some() {}
        Ok(())
    }

    /// Takes notes for `time`.
    pub fn hold(&mut self, time: Duration) -> Result<(), String> {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.take_one(left)?;
        }
        Ok(())
    }

    /// Deliveries of all workers, as last said.
    pub fn deliveries(&self) -> u64 {
        self.workers.iter().map(|worker| worker.deliveries).sum()
    }

    /// First and last delivery, of all workers, of what [`Coordinator::reached`] last waited for; monotonic ns. None: there
    /// was none.
    pub fn delivered(&self) -> Option<(u64, u64)> {
        let some = self.workers.iter().map(|worker| worker.delivered).filter(|(first_ns, _)| *first_ns > 0);
        some.reduce(|all, one| (all.0.min(one.0), all.1.max(one.1)))
    }

    /// Collects every worker's report.
    pub fn report(&mut self, published: Option<u64>, merged: &mut Merged) -> Result<(), String> {
        self.order(&Order::Report { published })?;
        let mut missing = self.workers.len();
        while missing > 0 {
            if let Note::Report(report) = self.next("reports")? {
                missing -= 1;
                let all = &mut merged.report;
                all.counts.add(&report.counts);
                merged.latency.add(&report.latency);
                all.echoes += report.echoes;
                all.changes += report.changes;
                all.told += report.told;
                all.open += report.open;
                all.pings += report.pings;
                all.received_bytes += report.received_bytes;
                all.compressed += report.compressed;
                all.cpu_ns += report.cpu_ns;
                all.resident_bytes += report.resident_bytes;
                for (reason, count) in report.losses {
                    *all.losses.entry(reason).or_default() += count;
                }
            }
        }
        Ok(())
    }

    /// Ends the workers and waits for them.
    pub fn finish(mut self) -> Result<(), String> {
        self.order(&Order::Exit)?;
        for worker in &mut self.workers {
            worker.child.wait().map_err(|error| format!("waiting for a worker: {error}"))?;
        }
        Ok(())
    }

    fn next(&mut self, what: &str) -> Result<Note, String> {
        let (mut since, mut seen) = (Instant::now(), self.progress_sum());
        loop {
            if let Some(note) = self.take_one(Duration::from_millis(100))? {
                return Ok(note);
            }
            if self.progress_sum() != seen {
                (since, seen) = (Instant::now(), self.progress_sum());
            }
            if since.elapsed() > self.stall {
                return Err(format!("{what}: no progress for {} s", self.stall.as_secs()));
            }
        }
    }

    fn progress_sum(&self) -> u64 {
        self.deliveries() + self.workers.iter().map(|worker| u64::from(worker.open)).sum::<u64>()
    }

    /// Takes one note, if one comes within `wait`, and remembers what it says.
    fn take_one(&mut self, wait: Duration) -> Result<Option<Note>, String> {
        let (index, note) = match self.notes.recv_timeout(wait) {
            Ok(note) => note,
            Err(RecvTimeoutError::Timeout) => return Ok(None),
            Err(RecvTimeoutError::Disconnected) => return Err("all workers are gone".to_string()),
        };
        let note = note.map_err(|error| format!("worker {index}: {error}"))?;
        let worker = &mut self.workers[index];
        match &note {
            Note::Open { connections } => worker.open = *connections,
            Note::Ready(opened) => worker.open = opened.connections,
            Note::Received { deliveries } => worker.deliveries = *deliveries,
            Note::Reached { published, first_ns, last_ns } => {
                (worker.reached, worker.delivered) = (*published, (*first_ns, *last_ns));
            }
            Note::Done | Note::Report(_) => {}
        }
        Ok(Some(note))
    }

    fn progress(&self) -> ProgressBar {
        let bar = ProgressBar::new(0);
        bar.set_draw_target(ProgressDrawTarget::stderr());
        bar.set_style(
            ProgressStyle::with_template("{spinner} {pos} connections open  {per_sec}")
                .unwrap_or(ProgressStyle::default_bar()),
        );
        bar
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            // After an error: the end of its stdin tells a worker too, but not one that hangs.
            if matches!(worker.child.try_wait(), Ok(None)) {
                let _ = worker.child.kill();
                let _ = worker.child.wait();
            }
        }
    }
}

type NoteSender = std::sync::mpsc::Sender<(usize, Result<Note, String>)>;

fn spawn(index: usize, config: &WorkerConfig, sender: NoteSender) -> Result<Worker, String> {
    let program = std::env::current_exe().map_err(|error| format!("own program: {error}"))?;
    let mut command = Command::new(program);
    command.arg("worker").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("starting a worker: {error}"))?;
    let (Some(mut orders), Some(notes)) = (child.stdin.take(), child.stdout.take()) else {
        return Err("a worker has no pipes".to_string());
    };
    orders.write_all(encode(config)?.as_bytes()).map_err(|error| format!("starting a worker: {error}"))?;
    thread::spawn(move || {
        for line in BufReader::new(notes).lines() {
            let note = line.map_err(|error| error.to_string()).and_then(|line| decode(&line));
            let failed = note.is_err();
            if sender.send((index, note)).is_err() || failed {
                return;
            }
        }
        // Its end is an error unless it was asked for; then nobody listens any more.
        let _ = sender.send((index, Err("ended".to_string())));
    });
    Ok(Worker { child, orders, open: 0, deliveries: 0, reached: 0, delivered: (0, 0) })
}
