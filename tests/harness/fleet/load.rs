//! Clients and publishers: `ringway-loadgen fleet`, followed while it runs.
//!
//! In: the fleet's addresses. Out: how many clients are whole, while it runs; its report at the end. Invariant: the load ends
//! when the test says so, so that no time decides a test.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::node::Node;
use super::process::Workspace;
use crate::server::loadgen;

/// Longest wait for all clients to be connected again, and for the report.
const PATIENCE: Duration = Duration::from_secs(90);
/// Age that a line about the state may have when it comes.
const STALE: Duration = Duration::from_millis(400);
/// Longest load, should nobody end it, in s.
const SECONDS_MAX: &str = "600";

/// A running load.
#[derive(Debug)]
pub struct Load {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    clients: u32,
    state: Value,
    errors: std::path::PathBuf,
}

impl Load {
    /// Starts it and waits until every client is connected and the publishers publish.
    pub fn start(workspace: &Workspace, target: SocketAddr, nodes: &[Node], clients: u32, more: &[&str]) -> Load {
        let url = format!("ws://{target}/connection/websocket");
        let ingest: Vec<String> = nodes.iter().map(|node| node.ingest.to_string()).collect();
        let errors = workspace.path().join("load.log");
        let log = std::fs::File::create(&errors).unwrap_or_else(|error| panic!("{}: {error}", errors.display()));
        let mut child = Command::new(loadgen())
            .args(["fleet", "--json", "--follow", "--seconds", SECONDS_MAX, "--url", &url])
            .args(["-n", &clients.to_string(), "--ingest", &ingest.join(",")])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run ringway-loadgen: {error}"));
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            panic!("ringway-loadgen has no pipes");
        };
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let mut load = Load { child, stdin, lines, clients, state: Value::Null, errors };
        // It says nothing before all clients are whole; behind that it may cut them itself.
        load.wait_until("the load runs", |state| state["state"] == "running");
        load
    }

    /// A number of its state: `whole`, `received`, `reconnects`.
    pub fn state(&mut self, name: &str) -> u64 {
        while let Ok(line) = self.lines.try_recv() {
            self.take(&line);
        }
        self.state[name].as_u64().unwrap_or(0)
    }

    /// Waits until its state, as it is from now on, fulfils `condition`.
    pub fn wait_until(&mut self, what: &str, condition: impl Fn(&Value) -> bool) {
        let end = Instant::now() + PATIENCE;
        std::thread::sleep(STALE);
        while self.lines.try_recv().is_ok() {}
        loop {
            let line = self.lines.recv_timeout(end.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}\n{}{}", self.state, self.log()));
            self.take(&line);
            if condition(&self.state) {
                return;
            }
        }
    }

    /// Waits until every client is connected with every subscription.
    pub fn wait_whole(&mut self) {
        let clients = u64::from(self.clients);
        self.wait_until("all clients are whole", |state| state["whole"] == clients);
    }

    /// Waits until so many deliveries more have come.
    pub fn wait_deliveries(&mut self, more: u64) {
        let goal = self.state("received") + more;
        self.wait_until("deliveries", |state| state["received"].as_u64() >= Some(goal));
    }

    /// Ends the load; the report, whatever it says.
    pub fn finish(mut self) -> Value {
        let _ = self.stdin.write_all(b"stop\n").and_then(|()| self.stdin.flush());
        let end = Instant::now() + PATIENCE;
        while self.state["scenario"].is_null() {
            let line = self.lines.recv_timeout(end.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|_| panic!("no report within {PATIENCE:?}\n{}", self.log()));
            self.take(&line);
        }
        self.state.clone()
    }

    fn take(&mut self, line: &str) {
        self.state = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap_or_default()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- of ringway-loadgen ---\n{}", self.log());
        }
    }
}
