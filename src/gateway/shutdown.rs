//! When the process is told to stop, or to read its configuration again.
//!
//! In: SIGTERM, SIGINT and SIGHUP. Out: a future that ends with the name of a signal to stop. Boot then lets the shards
//! close their clients with code 3001 (they reconnect elsewhere and recover) and waits for them, bounded. And the
//! hangups, for `reload.rs`.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal as watch};

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

/// Every SIGHUP; several that come at once may be one.
///
/// # Errors
/// The handler cannot be installed.
pub fn hangups() -> io::Result<Signal> {
    watch(SignalKind::hangup())
}
