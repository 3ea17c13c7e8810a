//! Runs an SDK script against a server: Node or Python from `tests/sdk`, with what `make sdk` installs.
//!
//! In: a script, its arguments and a running server, whose addresses go into the environment. Out: what it printed,
//! when it ended with exit code 0; any other end fails the test and shows everything it said.
//!
//! A script may ask for something on a line of its own, and gets `done` on its stdin:
//! `@restart` (end the server, start another on the same ports), `@publish` (the test's own action).

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::Server;
use crate::server::root;

/// A running script.
#[derive(Debug)]
pub struct Script {
    name: String,
    child: Child,
    lines: mpsc::Receiver<String>,
    said: String,
}

impl Script {
    /// Starts `tests/sdk/<words[0]>` with the rest of `words` as arguments.
    pub fn start(server: &Server, words: &[&str]) -> Script {
        let folder = root().join("tests").join("sdk");
        let mut command = if words[0].ends_with(".py") {
            Command::new(installed(&folder, ".venv/bin/python"))
        } else {
            installed(&folder, "node_modules/centrifuge");
            Command::new("node")
        };
        let mut child = command
            .args(words)
            .current_dir(&folder)
            .env("RINGWAY_WS", format!("ws://{}/connection/websocket", server.client))
            .env("RINGWAY_CLIENT", server.client.to_string())
            .env("RINGWAY_CONTROL", format!("http://{}", server.control))
            .env("RINGWAY_API_KEY", crate::server::DEV_KEY)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {words:?}: {error}"));
        let (send, lines) = mpsc::channel();
        read_lines(child.stdout.take().expect("piped"), send.clone());
        read_lines(child.stderr.take().expect("piped"), send);
        Script { name: words.join(" "), child, lines, said: String::new() }
    }

    /// Runs a script to its end; restarts `server` when it asks. Gives what it printed.
    pub fn run(server: &mut Server, words: &[&str], within: Duration) -> String {
        Self::run_with(server, words, within, |server, request| match request {
            "@restart" => server.restart(),
            other => panic!("an unknown request: {other}"),
        })
    }

    /// Runs a script to its end, with an answer to whatever it asks. Gives what it printed.
    pub fn run_with(
        server: &mut Server,
        words: &[&str],
        within: Duration,
        mut answer: impl FnMut(&mut Server, &str),
    ) -> String {
        let mut script = Script::start(server, words);
        script.serve(within, |request| answer(server, request));
        script.said.clone()
    }

    /// Waits for a line that starts with `prefix` and gives it.
    pub fn wait_for(&mut self, prefix: &str, within: Duration) -> String {
        let end = Instant::now() + within;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.note(&line);
                    if line.starts_with(prefix) {
                        return line;
                    }
                }
                Err(_) => panic!("{}: no line {prefix:?} within {within:?}; it said:\n{}", self.name, self.said),
            }
        }
    }

    /// Writes a line to the script's stdin.
    pub fn tell(&mut self, line: &str) {
        if let Some(stdin) = &mut self.child.stdin {
            let _ = stdin.write_all(format!("{line}\n").as_bytes());
            let _ = stdin.flush();
        }
    }

    /// Waits for its end, which must be exit code 0. Gives what it printed.
    pub fn finish(mut self, within: Duration) -> String {
        self.serve(within, |request| panic!("an unexpected request: {request}"));
        std::mem::take(&mut self.said)
    }

    fn serve(&mut self, within: Duration, mut answer: impl FnMut(&str)) {
        let end = Instant::now() + within;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line.starts_with('@') => {
                    answer(&line);
                    self.tell("done");
                }
                Ok(line) => self.note(&line),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    panic!("{}: not ended within {within:?}; it said:\n{}", self.name, self.said)
                }
            }
        }
        let status = self.child.wait().expect("wait for the script");
        assert!(status.success(), "{} ended with {status}; it said:\n{}", self.name, self.said);
    }

    fn note(&mut self, line: &str) {
        self.said.push_str(line);
        self.said.push('\n');
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_lines(pipe: impl std::io::Read + Send + 'static, into: mpsc::Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if into.send(line).is_err() {
                return;
            }
        }
    });
}

fn installed(folder: &std::path::Path, what: &str) -> PathBuf {
    let path = folder.join(what);
    assert!(path.exists(), "tests/sdk/{what} is missing: run `make sdk`");
    path
}
