//! One `ringway` process under test.
//!
//! In: command-line arguments. Out: a [`Server`] that is listening (its addresses come from the ready line), its
//! metrics, its exit; or a [`Failure`] with exit code and stderr when it refused to start.
//! Invariants: the process is ended by its own pid when the value is dropped; its stderr is shown when a test fails.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{PATIENCE, http};

/// The API key of `--dev`.
pub const DEV_KEY: &str = "dev";

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    stderr: Arc<Mutex<String>>,
    /// Arguments behind those that every test server has; a restart uses them again.
    more: Vec<String>,
    /// Where clients connect.
    pub client: SocketAddr,
    /// The HTTP control port.
    pub control: SocketAddr,
    /// The binary ingest port.
    pub ingest: SocketAddr,
    /// The process.
    pub pid: u32,
}

/// A server that did not come up.
#[derive(Debug)]
pub struct Failure {
    /// Exit code; none when a signal or this harness ended it.
    pub code: Option<i32>,
    /// What it printed to stdout.
    pub stdout: String,
    /// What it printed to stderr.
    pub stderr: String,
}

impl Server {
    /// Starts `ringway --dev` on three free loopback ports, with `more` behind.
    pub fn start(more: &[&str]) -> Server {
        let mut all = vec!["--dev"];
        for key in ["client", "control", "ingest"] {
            all.push("--set");
            all.push(match key {
                "client" => "client.listen=127.0.0.1:0",
                "control" => "control.listen=127.0.0.1:0",
                _ => "ingest.listen=127.0.0.1:0",
            });
        }
        all.extend_from_slice(more);
        let mut server = Self::spawn(&all).unwrap_or_else(|failure| panic!("ringway did not start: {failure:#?}"));
        server.more = more.iter().map(|&word| word.to_owned()).collect();
        server
    }

    /// Starts `ringway` with exactly `args` and waits for its ready line.
    ///
    /// # Errors
    /// The process ended, or said nothing within [`PATIENCE`].
    pub fn spawn(args: &[&str]) -> Result<Server, Failure> {
        let mut child = Command::new(binary())
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {}: {error}", binary().display()));
        let stderr = Arc::new(Mutex::new(String::new()));
        let stderr_thread = collect(child.stderr.take().expect("piped"), Arc::clone(&stderr));
        let (send, lines) = mpsc::channel::<String>();
        let stdout = child.stdout.take().expect("piped");
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Read on after the ready line, so that the pipe never fills.
                let _ = send.send(line);
            }
        });
        let end = Instant::now() + PATIENCE;
        let mut seen = String::new();
        while let Ok(line) = lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            if let Some((client, control, ingest, pid)) = parse_ready(&line) {
                assert_eq!(pid, child.id(), "the ready line names another process");
                return Ok(Server { pid, child, stderr, more: Vec::new(), client, control, ingest });
            }
            seen.push_str(&line);
            seen.push('\n');
        }
        // Its stdout is at its end, so it is gone or goes now; otherwise it hangs and is ended here.
        let code = wait(&mut child, Duration::from_secs(5)).and_then(|status| status.code());
        let _ = child.kill();
        let _ = child.wait();
        let _ = stderr_thread.join();
        let stderr = stderr.lock().map(|text| text.clone()).unwrap_or_default();
        Err(Failure { code, stdout: seen, stderr })
    }

    /// Ends this server with SIGTERM and starts another on the same addresses: what clients see as a restart.
    pub fn restart(&mut self) {
        let status = self.terminate();
        assert!(status.success(), "restart: the old process ended with {status}\n{}", self.stderr());
        let settings = [
            format!("client.listen={}", self.client),
            format!("control.listen={}", self.control),
            format!("ingest.listen={}", self.ingest),
        ];
        let mut all = vec!["--dev"];
        for setting in &settings {
            all.extend_from_slice(&["--set", setting]);
        }
        let more = std::mem::take(&mut self.more);
        all.extend(more.iter().map(String::as_str));
        *self = Self::spawn(&all).unwrap_or_else(|failure| panic!("ringway did not restart: {failure:#?}"));
        self.more = more;
    }

    /// Sends SIGTERM and waits for the end.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait_exit()
    }

    /// Waits for the end of the process.
    pub fn wait_exit(&mut self) -> ExitStatus {
        wait(&mut self.child, PATIENCE).unwrap_or_else(|| panic!("no exit within {PATIENCE:?}\n{}", self.stderr()))
    }

    /// Sends a signal by name; kill(1) because a system call would need unsafe.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.pid.to_string()).status();
        assert!(status.is_ok_and(|status| status.success()), "kill -{name} {} failed", self.pid);
    }

    /// Whether the process still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What the server has written to stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.lock().map(|text| text.clone()).unwrap_or_default()
    }

    /// The counters of `/metrics`, now.
    pub fn metrics(&self) -> Metrics {
        let response = http::get(self.control, "/metrics");
        assert_eq!(response.status, 200, "{}", response.text());
        Metrics::parse(&response.text())
    }

    /// Publishes over the HTTP API; `data` is JSON. Gives offset and epoch.
    pub fn publish(&self, channel: &str, data: &Value) -> (u64, String) {
        let body = json!({ "channel": channel, "data": data }).to_string();
        let response = http::post_json(self.control, "/api/publish", Some(DEV_KEY), &body);
        let answer: Value = serde_json::from_str(&response.text()).unwrap_or(Value::Null);
        let offset = answer["result"]["offset"].as_u64();
        let epoch = answer["result"]["epoch"].as_str();
        match (response.status, offset, epoch) {
            (200, Some(offset), Some(epoch)) => (offset, epoch.to_owned()),
            _ => panic!("publish to {channel}: status {}, {}", response.status, response.text()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- stderr of ringway, pid {} ---\n{}---", self.pid, self.stderr());
        }
    }
}

/// The samples of one `/metrics` page.
#[derive(Debug)]
pub struct Metrics(Vec<(String, f64)>);

impl Metrics {
    /// Reads the Prometheus text format; comment lines are skipped.
    pub(crate) fn parse(page: &str) -> Metrics {
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Metrics(page.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    /// The sum over all shards of the samples called `name` that carry every one of `labels` (`key="value"`).
    /// Fails when there is no such sample: a metric that does not exist must not read as zero.
    pub fn sum(&self, name: &str, labels: &[&str]) -> u64 {
        let hit = |sample: &&(String, f64)| {
            let (own, rest) = sample.0.split_once('{').unwrap_or((&sample.0, ""));
            own == name && labels.iter().all(|label| rest.contains(label))
        };
        let mut hits = self.0.iter().filter(hit).peekable();
        assert!(hits.peek().is_some(), "/metrics has no {name} with {labels:?}");
        hits.map(|(_, value)| *value as u64).sum()
    }

    /// Connections ended for a reason of the close table, by its metric label. The page lags behind a little, as each
    /// shard publishes its numbers now and then: wait for a number with [`crate::eventually`].
    pub fn closes(&self, reason: &str) -> u64 {
        self.sum("ringway_closes_total", &[&format!("reason=\"{reason}\"")])
    }
}

/// Reads `ringway ready client=A control=B ingest=C pid=N`.
fn parse_ready(line: &str) -> Option<(SocketAddr, SocketAddr, SocketAddr, u32)> {
    let rest = line.strip_prefix("ringway ready ")?;
    let field = |key: &str| rest.split_whitespace().find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    Some((
        field("client")?.parse().ok()?,
        field("control")?.parse().ok()?,
        field("ingest")?.parse().ok()?,
        field("pid")?.parse().ok()?,
    ))
}

fn collect(mut pipe: impl Read + Send + 'static, into: Arc<Mutex<String>>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(n @ 1..) = pipe.read(&mut chunk) {
            if let Ok(mut text) = into.lock() {
                text.push_str(&String::from_utf8_lossy(&chunk[..n]));
            }
        }
    })
}

fn wait(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + patience;
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() > end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The binary under test: `RINGWAY_BIN`, or `target/fast/ringway` beside the running test, brought up to date by cargo
/// once per test process.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| build("ringway", "RINGWAY_BIN"))
}

/// The load generator: `LOADGEN_BIN`, or built as [`binary`] is.
pub fn loadgen() -> &'static Path {
    static LOADGEN: OnceLock<PathBuf> = OnceLock::new();
    LOADGEN.get_or_init(|| build("ringway-loadgen", "LOADGEN_BIN"))
}

/// Where the program of a package is: in the environment, or freshly built.
fn build(package: &str, variable: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return PathBuf::from(path);
    }
    // <target>/<profile>/deps/<test>
    let test = std::env::current_exe().expect("the path of the running test");
    let target = test.ancestors().nth(3).expect("a test runs in <target>/<profile>/deps");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--profile", "fast", "-p", package, "--bin", package, "--target-dir"])
        .arg(target)
        .current_dir(root())
        .status();
    assert!(status.is_ok_and(|status| status.success()), "cargo build --profile fast -p {package} failed");
    target.join("fast").join(package)
}

/// The root of the source tree.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ stands in the source tree")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_line() {
        let line = "ringway ready client=127.0.0.1:8000 control=127.0.0.1:8001 ingest=127.0.0.1:8002 pid=7";
        let (client, control, ingest, pid) = parse_ready(line).expect("parses");
        assert_eq!((client.port(), control.port(), ingest.port(), pid), (8000, 8001, 8002, 7));
        assert!(parse_ready("ringway ready client=127.0.0.1:8000 pid=7").is_none());
        assert!(parse_ready("something else").is_none());
    }

    #[test]
    fn metrics_are_summed_over_shards_and_selected_by_label() {
        let page = "# HELP a_total x\na_total{shard=\"0\",reason=\"slow\"} 2\na_total{shard=\"1\",reason=\"slow\"} 3\n\
                    a_total{shard=\"0\",reason=\"other\"} 5\na_total_more 9\n";
        let metrics = Metrics::parse(page);
        assert_eq!(metrics.sum("a_total", &["reason=\"slow\""]), 5);
        assert_eq!(metrics.sum("a_total", &[]), 10);
        assert_eq!(metrics.sum("a_total", &["shard=\"0\"", "reason=\"other\""]), 5);
    }

    #[test]
    #[should_panic(expected = "has no b_total")]
    fn an_unknown_metric_is_not_zero() {
        Metrics::parse("a_total 1\n").sum("b_total", &[]);
    }
}
