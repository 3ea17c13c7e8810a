//! When the process is told to stop.
//!
//! In: SIGTERM and SIGINT. Out: a future that ends with the signal's name. Boot then lets the shards close their
//! clients with code 3001 (they reconnect elsewhere and recover) and waits for them, bounded.

use std::io;

use tokio::signal::unix::{SignalKind, signal as watch};

/// # Errors
/// The handlers cannot be installed.
pub fn signal() -> io::Result<impl Future<Output = &'static str>> {
    let mut terminate = watch(SignalKind::terminate())?;
    let mut interrupt = watch(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}
