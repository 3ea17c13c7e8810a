//! When the process is told to stop, or to read its configuration again.
//!
//! In: SIGTERM, SIGINT and SIGHUP. Out: [`until_stopped`], which ends when the process is to end: at once, with the name of a
//! signal, or when a drain is done. Boot then lets the shards close whoever is left with code 3001 (they reconnect
//! elsewhere and recover) and waits for them, bounded. And the hangups, for `reload.rs`.
//!
//! | signal | serving | draining | hurried |
//! |---|---|---|---|
//! | SIGTERM | drains, or with `drain.on_sigterm` off ends at once | hurries | ends |
//! | SIGINT | ends at once | hurries | ends |
//!
//! SIGQUIT is left to the kernel: it ends the process with a core dump, for whoever wants to look into it.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal as watch};

use crate::drain::Drain;
use crate::shared::Shared;

/// The signals that stop.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// # Errors
    /// The handlers cannot be installed.
    pub fn watch() -> io::Result<Self> {
        Ok(Signals { terminate: watch(SignalKind::terminate())?, interrupt: watch(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Says why the process is to end, when it is.
pub async fn until_stopped(
    mut signals: Signals,
    drain: &Drain,
    shared: &Shared,
    drain_on_sigterm: bool,
) -> &'static str {
    let mut drained = std::pin::pin!(drain.run(shared));
    loop {
        tokio::select! {
            () = &mut drained => return "drained",
            name = signals.next() => match name {
                _ if drain.has_begun() => drain.hurry(name),
                "SIGTERM" if drain_on_sigterm => drain.begin(name),
                _ => return name,
            },
        }
    }
}

/// Every SIGHUP; several that come at once may be one.
///
/// # Errors
/// The handler cannot be installed.
pub fn hangups() -> io::Result<Signal> {
    watch(SignalKind::hangup())
}
