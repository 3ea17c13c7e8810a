//! One behaviour of the client protocol per script of `tests/sdk`, with the published SDKs in both encodings.
//!
//! Set-up: `ringway --dev` with the namespaces of `tests/sdk/namespaces.toml`, short pings, and what a behaviour needs
//! beside them. Claim: what stands in the header of each script; a script ends with exit code 0 only when it saw all of it.
#![allow(clippy::print_stdout, reason = "what the scripts said belongs into the output of the test")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time and start real threads")]

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringway_tests::{Script, Server};

const PATIENCE: Duration = Duration::from_secs(120);

/// The scripts have time-outs of their own (SDKs give up after 5 s), so on a small machine they run one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A server with the namespaces of these tests, and `settings` (`key=value`).
fn server(settings: &[&str]) -> Server {
    let file = ringway_tests::server::root().join("tests/sdk/namespaces.toml").display().to_string();
    let mut arguments = vec!["--shards", "2", "--config", &file];
    // A peer that is gone in silence is noticed after 1.9 s.
    for setting in ["limits.ping_interval_ms=1000", "limits.pong_timeout_ms=900"].iter().chain(settings) {
        arguments.extend_from_slice(&["--set", setting]);
    }
    Server::start(&arguments)
}

/// Runs one script for each encoding, which must say `ok: ` so many times.
fn run(script: &str, steps: usize, settings: &[&str]) {
    let _turn = turn();
    let mut server = server(settings);
    for encoding in ["json", "protobuf"] {
        let said = Script::run(&mut server, &[script, encoding], PATIENCE);
        print!("{said}");
        assert_eq!(said.lines().filter(|line| line.starts_with("ok: ")).count(), steps, "steps of {script} {encoding}");
    }
}

#[test]
fn presence_node() {
    run("presence.mjs", 5, &[]);
}

#[test]
fn presence_python() {
    run("presence.py", 5, &[]);
}

#[test]
fn join_leave_node() {
    run("join_leave.mjs", 3, &[]);
}

#[test]
fn join_leave_python() {
    run("join_leave.py", 2, &[]);
}

#[test]
fn history_node() {
    run("history.mjs", 6, &[]);
}

#[test]
fn history_python() {
    run("history.py", 5, &[]);
}

#[test]
fn recovery_modes_node() {
    run("recovery_modes.mjs", 5, &[]);
}

#[test]
fn recovery_modes_python() {
    run("recovery_modes.py", 4, &[]);
}
