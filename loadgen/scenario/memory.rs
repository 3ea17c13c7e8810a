//! The server's memory at moments of a run at which it is at rest, and its CPU while it rests.
//!
//! In: the server's processes, and how long to rest before each reading. Out: one row, `memory`, with a reading per moment,
//! and behind a rest the CPU in it. In a fanout run:
//!
//! | moment | when |
//! |---|---|
//! | `before` | before the first connection |
//! | `opened` | all connections stand and have rested |
//! | `received` | every subscriber has received one publication, not rested |
//! | `received_rested` | the same, rested |
//! | `loaded` | behind the measured window, rested |
//!
//! In a memory run `rounds.rs` says the moments.
//! Invariant: bytes of the process only. What the kernel holds for sockets is not in them; `kernel_slab_bytes` is all that
//! the machine's kernel holds in small objects, for both ends of each connection and whatever else runs.
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::Load;
use crate::coordinator::Coordinator;
use crate::options::Common;
use crate::publisher::Publisher;
use crate::report::Report;
use crate::server_cost::{Cost, kernel_slab_bytes};

/// How often a resting publisher looks for pings; far below every time-out of a server.
const PUBLISHER_LOOK: Duration = Duration::from_secs(1);

/// See the file's header. Without a rest it reads nothing.
pub(super) struct MemoryLog {
    pids: Vec<u32>,
    rest: Duration,
    readings: Vec<Reading>,
}

struct Reading {
    moment: &'static str,
    cost: Cost,
    kernel_slab_bytes: u64,
    /// CPU of the server over the rest before it, in cores; none without a rest.
    cores: Option<f64>,
}

impl MemoryLog {
    /// Takes the first reading.
    ///
    /// # Errors
    /// There is no server to read, or it is gone.
    pub(super) fn begin(common: &Common, rest_s: f64) -> Result<MemoryLog, String> {
        let rest = Duration::try_from_secs_f64(rest_s).map_err(|error| format!("--rest-s {rest_s}: {error}"))?;
        if !rest.is_zero() && common.server_pid.is_empty() {
            return Err("--rest-s reads the server's memory: add --server-pid".to_string());
        }
        let mut log = MemoryLog { pids: common.server_pid.clone(), rest, readings: Vec::new() };
        log.read("before", None)?;
        Ok(log)
    }

    fn measures(&self) -> bool {
        !self.rest.is_zero()
    }

    /// Makes the first publication to each channel, with readings around it. False: it did not reach everybody.
    pub(super) fn first_publication(&mut self, load: &mut Load<'_>) -> Result<bool, String> {
        if !self.measures() {
            return Ok(true);
        }
        self.rested("opened", load.coordinator, load.publisher)?;
        let whole = load.once()?;
        self.read("received", None)?;
        self.rested("received_rested", load.coordinator, load.publisher)?;
        Ok(whole)
    }

    /// A rest, in which the publisher answers pings, and a reading.
    pub(super) fn rested(
        &mut self,
        moment: &'static str,
        coordinator: &mut Coordinator,
        publisher: &mut Publisher,
    ) -> Result<(), String> {
        self.rested_with(moment, |time| {
            coordinator.hold(time)?;
            publisher.flush().map(drop)
        })
    }

    /// A rest in which `pass` lets some of the time go by, again and again, and a reading.
    pub(super) fn rested_with(
        &mut self,
        moment: &'static str,
        mut pass: impl FnMut(Duration) -> Result<(), String>,
    ) -> Result<(), String> {
        if !self.measures() {
            return Ok(());
        }
        let (begun, before) = (Instant::now(), Cost::read(&self.pids)?);
        while let Some(left) = self.rest.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) {
            pass(left.min(PUBLISHER_LOOK))?;
        }
        self.read(moment, Some((begun, &before)))
    }

    fn read(&mut self, moment: &'static str, rested: Option<(Instant, &Cost)>) -> Result<(), String> {
        if self.measures() {
            let cost = Cost::read(&self.pids)?;
            let cores =
                rested.map(|(begun, before)| cost.cpu_ns_since(before) as f64 / begun.elapsed().as_nanos() as f64);
            self.readings.push(Reading { moment, cost, kernel_slab_bytes: kernel_slab_bytes(), cores });
        }
        Ok(())
    }

    /// Adds the row: bytes of the process, and how many of them came since `before` for each connection.
    pub(super) fn finish(&self, report: &mut Report, connections: u32) {
        if !self.readings.is_empty() {
            report.row("memory", self.rows(0, connections));
        }
    }

    /// How many readings there are.
    pub(super) fn readings(&self) -> usize {
        self.readings.len()
    }

    /// The readings from number `first` on, by moment.
    pub(super) fn rows(&self, first: usize, connections: u32) -> Map<String, Value> {
        let Some(Reading { cost: before, kernel_slab_bytes: slab_before, .. }) = self.readings.first() else {
            return Map::new();
        };
        let each = |now: u64, then: u64| (now as f64 - then as f64) / f64::from(connections.max(1));
        self.readings[first..]
            .iter()
            .map(|Reading { moment, cost, kernel_slab_bytes: slab, cores }| {
                let reading = json!({
                    "resident_bytes": cost.resident_bytes,
                    "proportional_bytes": cost.proportional_bytes,
                    "resident_bytes_per_connection": each(cost.resident_bytes, before.resident_bytes),
                    "proportional_bytes_per_connection": each(cost.proportional_bytes, before.proportional_bytes),
                    "kernel_slab_bytes": slab,
                    "kernel_slab_bytes_per_connection": each(*slab, *slab_before),
                    "cores": cores,
                });
                (moment.to_string(), reading)
            })
            .collect()
    }
}
