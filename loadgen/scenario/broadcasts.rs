//! A window of single publications: how long each takes to reach everybody, and what it costs the server.
//!
//! In: the load of a fanout run at rest. Out: one row, `broadcasts`, with an object per publication:
//!
//! | key | what |
//! |---|---|
//! | `first_to_last_ms` | from the first to the last delivery, as the workers saw them |
//! | `publish_to_last_ms` | from publishing to the last delivery |
//! | `server_cpu_us_per_delivery` | CPU of the server from before publishing to the last delivery |
use std::time::Duration;

use serde_json::{Value, json};

use super::Load;
use crate::link::Order;
use crate::net;
use crate::report::Report;
use crate::server_cost::Cost;

/// Pause before each publication: what the one before left to do is done then.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest wait between two looks whether the publication has left, in microseconds.
const LOOK_US: u64 = 50;

/// Publishes `count` times to each channel. False: one did not reach everybody.
pub(super) fn run(load: &mut Load<'_>, count: u32, report: &mut Report) -> Result<bool, String> {
    let mut rows: Vec<Value> = Vec::new();
    for _ in 0..count {
        let pids = &load.options.common.server_pid;
        let published = load.publisher.published() + u64::from(load.options.clients.channels);
        // Before the pause, so that every worker has it when the first delivery comes.
        load.coordinator.order(&Order::Goal { published })?;
        load.coordinator.hold(PAUSE)?;
        let (due_before, before) = (load.due(), Cost::read(pids)?);
        let begun_ns = net::now_ns();
        while load.publisher.published() < published {
            while load.publisher.room() == 0 {
                load.publisher.flush()?;
            }
            load.publisher.publish(begun_ns)?;
        }
        while !load.publisher.flush()? {
            net::nap(LOOK_US);
        }
        let publisher = &mut *load.publisher;
        if !load.coordinator.reached(published, || publisher.flush().map(drop))? {
            return Ok(false);
        }
        let cpu_ns = Cost::read(pids)?.cpu_ns_since(&before) as f64;
        let deliveries = (load.due() - due_before).max(1);
        let (first_ns, last_ns) = load.coordinator.delivered().unwrap_or((begun_ns, begun_ns));
        let ms = |from_ns: u64, to_ns: u64| to_ns.saturating_sub(from_ns) as f64 / 1e6;
        rows.push(json!({
            "first_to_last_ms": ms(first_ns, last_ns),
            "publish_to_last_ms": ms(begun_ns, last_ns),
            "server_cpu_us_per_delivery": cpu_ns / 1e3 / deliveries as f64,
        }));
    }
    report.row("broadcasts", rows);
    load.drain()
}
