//! Clients of a fleet that are cut off and come back: nothing may be missing, doubled or out of order, whatever node they
//! reach.
//!
//! ```text
//! scenario/fleet ── crew ──> worker process 0..n: clients that reconnect and recover (`worker`, `replies`, `writers`)
//!              └── backend: one thread that publishes over ingest, to any node that takes it
//! ```
//!
//! | file | role |
//! |---|---|
//! | `check` | lost, announced, doubled, disordered, wrong offsets per subscription |
//! | `reconnect` | back-off as the SDKs do it, which closes are final, connections per second |
//! | `link` | what coordinator and workers say to each other |
//! | `worker` | event loop of one process: its clients from connect to close and back |
//! | `replies` | what a received message means to a client |
//! | `writers` | clients that publish |
//! | `churn` | clients that leave channels and come back, connections that are cut |
//! | `report` | what a worker found, and how it adds up |
//! | `crew` | starts the workers and talks with them |
//! | `backend` | publishes over ingest with idempotency keys, and again elsewhere when a node is gone |
//!
//! Invariants: a channel has one writer, so its sequence numbers tell loss, repetition and disorder exactly; what the
//! server announces (`recovered:false`) is counted apart from what it does not; memory per client is a fixed number of
//! bytes plus one position per subscription.
pub mod backend;
pub mod check;
pub mod crew;
pub mod link;
pub mod reconnect;
pub mod report;

mod churn;
mod replies;
pub(crate) mod worker;
mod writers;

/// Runs a worker process on stdin and stdout until it is told to exit or its coordinator is gone.
///
/// # Errors
/// What ended it: a configuration that cannot be read, or a system call that failed.
pub fn run_worker() -> Result<(), String> {
    worker::run(&crate::worker::first_line()?)
}
