//! Starts the worker processes of a fleet run, talks with them, adds up what they report.
//!
//! In: [`FleetOptions`] and orders. Out: how many clients are whole, what was written, the sum of all reports.
//! Invariants: no worker outlives its crew (its stdin ends); every wait has an end.
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::link::{FleetConfig, FleetNote, FleetOrder, Written};
use super::reconnect::Backoff;
use super::report::FleetSum;
use crate::checker::Layout;
use crate::link::{decode, encode};
use crate::net;
use crate::options::{FleetOptions, Target};

type Notes = Sender<(usize, Result<FleetNote, String>)>;

struct Worker {
    child: Child,
    orders: ChildStdin,
    whole: u32,
    received: u64,
    reconnects: u64,
    settled: bool,
}

/// The running workers.
pub struct Crew {
    workers: Vec<Worker>,
    notes: Receiver<(usize, Result<FleetNote, String>)>,
    written: Vec<Vec<Written>>,
    reported: usize,
    /// What was reported so far.
    pub sum: FleetSum,
}

impl Crew {
    /// Starts as many workers as the options and the open-file limit ask for.
    ///
    /// # Errors
    /// What is wrong with the options, or why a process did not start.
    pub fn start(options: &FleetOptions, run: u16, seed: u64) -> Result<Crew, String> {
        let target = Target::parse(&options.url)?;
        let count = options.workers.max(options.connections.div_ceil(net::raise_open_file_limit()));
        let count = count.clamp(1, options.connections.max(1));
        let (sender, notes) = channel();
        let (mut workers, mut first) = (Vec::new(), 0u32);
        for index in 0..count {
            let connections = options.connections / count + u32::from(index < options.connections % count);
            let cpus = &options.common.cpu;
            let config = FleetConfig {
                first_connection: u64::from(first),
                connections,
                target: target.address,
                host: target.host.clone(),
                path: target.path.clone(),
                layout: Layout { channels: options.channels, subscriptions: options.subscriptions },
                channel_prefix: options.channel_prefix.clone(),
                written_by_clients: options.written_by_clients,
                payload_bytes: options.payload_bytes,
                token_secret: options.token_secret.clone(),
                run,
                seed,
                connect_rate: f64::from(options.connect_rate) / f64::from(count),
                opening_max: options.opening_max.max(1),
                backoff: Backoff { min_ms: options.backoff_min_ms, max_ms: options.backoff_max_ms },
                changes_per_s: options.changes_per_s / f64::from(count),
                cuts_per_s: options.cuts_per_s / f64::from(count),
                reply_timeout_ms: options.reply_timeout_ms,
                nap_us: options.nap_us,
                cpu: cpus.get(index as usize % cpus.len().max(1)).copied(),
                connections_per_address: options.connections_per_address,
            };
            first += connections;
            workers.push(spawn(index as usize, &config, sender.clone())?);
        }
        Ok(Crew { workers, notes, written: Vec::new(), reported: 0, sum: FleetSum::default() })
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Clients that are connected with every subscription, as last said.
    pub fn whole(&self) -> u32 {
        self.workers.iter().map(|worker| worker.whole).sum()
    }

    /// Deliveries, as last said.
    pub fn received(&self) -> u64 {
        self.workers.iter().map(|worker| worker.received).sum()
    }

    /// How often clients had to come back, as last said.
    pub fn reconnects(&self) -> u64 {
        self.workers.iter().map(|worker| worker.reconnects).sum()
    }

    /// Tells every worker.
    ///
    /// # Errors
    /// A worker is gone.
    pub fn order(&mut self, order: &FleetOrder) -> Result<(), String> {
        let line = encode(order)?;
        for worker in &mut self.workers {
            let written = worker.orders.write_all(line.as_bytes()).and_then(|()| worker.orders.flush());
            written.map_err(|error| format!("a worker is gone: {error}"))?;
        }
        Ok(())
    }

    /// Takes notes for `time`.
    ///
    /// # Errors
    /// A worker is gone.
    pub fn listen(&mut self, time: Duration) -> Result<(), String> {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.take_one(left)?;
        }
        Ok(())
    }

    /// Waits until all clients are whole, as long as more become so at least every `stall`. False: they did not.
    ///
    /// # Errors
    /// A worker is gone.
    pub fn all_whole(&mut self, clients: u32, stall: Duration) -> Result<bool, String> {
        let (mut since, mut seen) = (Instant::now(), self.whole());
        while self.whole() < clients {
            self.take_one(Duration::from_millis(20))?;
            if self.whole() > seen {
                (since, seen) = (Instant::now(), self.whole());
            }
            if since.elapsed() > stall {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Ends publishing; what became of all numbers of clients.
    ///
    /// # Errors
    /// A worker is gone, or said nothing for `wait`.
    pub fn stop(&mut self, wait: Duration) -> Result<Vec<Written>, String> {
        self.order(&FleetOrder::Stop)?;
        let end = Instant::now() + wait;
        while self.written.len() < self.workers.len() {
            self.take_one(Duration::from_millis(20))?;
            if Instant::now() > end {
                return Err("clients that publish did not stop in time".to_string());
            }
        }
        Ok(std::mem::take(&mut self.written).into_iter().flatten().collect())
    }

    /// Waits until every subscription has so many publications. False: not within `wait`.
    ///
    /// # Errors
    /// A worker is gone.
    pub fn settle(&mut self, confirmed: Vec<u32>, wait: Duration) -> Result<bool, String> {
        self.order(&FleetOrder::Settle { confirmed })?;
        let end = Instant::now() + wait;
        while !self.workers.iter().all(|worker| worker.settled) {
            self.take_one(Duration::from_millis(20))?;
            if Instant::now() > end {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Collects every worker's report into [`Crew::sum`] and ends the workers.
    ///
    /// # Errors
    /// A worker is gone, or said nothing for `wait`.
    pub fn report(&mut self, written: Vec<u32>, unconfirmed: Vec<(u32, u32)>, wait: Duration) -> Result<(), String> {
        self.order(&FleetOrder::Report { written, unconfirmed })?;
        let end = Instant::now() + wait;
        while self.reported < self.workers.len() {
            self.take_one(Duration::from_millis(20))?;
            if Instant::now() > end {
                return Err("reports did not come in time".to_string());
            }
        }
        self.order(&FleetOrder::Exit)?;
        for worker in &mut self.workers {
            worker.child.wait().map_err(|error| format!("waiting for a worker: {error}"))?;
        }
        Ok(())
    }

    fn take_one(&mut self, wait: Duration) -> Result<(), String> {
        let (index, note) = match self.notes.recv_timeout(wait) {
            Ok(note) => note,
            Err(RecvTimeoutError::Timeout) => return Ok(()),
            Err(RecvTimeoutError::Disconnected) => return Err("all workers are gone".to_string()),
        };
        let worker = &mut self.workers[index];
        match note.map_err(|error| format!("worker {index}: {error}"))? {
            FleetNote::Status { whole, received, reconnects } => {
                (worker.whole, worker.received, worker.reconnects) = (whole, received, reconnects);
            }
            FleetNote::Written(written) => self.written.push(written),
            FleetNote::Settled => worker.settled = true,
            FleetNote::Report(report) => {
                self.reported += 1;
                self.sum.add(*report);
            }
        }
        Ok(())
    }
}

impl Drop for Crew {
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

fn spawn(index: usize, config: &FleetConfig, sender: Notes) -> Result<Worker, String> {
    let program = std::env::current_exe().map_err(|error| format!("own program: {error}"))?;
    let mut command = Command::new(program);
    command.arg("fleet-worker").stdin(Stdio::piped()).stdout(Stdio::piped());
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
    Ok(Worker { child, orders, whole: 0, received: 0, reconnects: 0, settled: false })
}
