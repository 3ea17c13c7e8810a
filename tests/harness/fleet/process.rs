//! The folder and ports of a test, and a process in it.
//!
//! In: commands. Out: running processes with their logs; signals by pid. Invariants: a process ends with its value; the
//! folder goes with the test, unless the test fails: then it stays, and its path is printed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::PATIENCE;

/// Lowest port handed out.
const PORT_MIN: u16 = 10_000;
/// Bytes of a log that are shown when a test fails.
const LOG_TAIL_BYTES: usize = 4_000;

/// A folder for the files and logs of one test; it lasts as long as anything that was started in it.
#[derive(Clone, Debug)]
pub struct Workspace(Arc<Folder>);

#[derive(Debug)]
struct Folder {
    path: PathBuf,
}

impl Workspace {
    /// Makes a folder of its own for `test`.
    pub fn new(test: &str) -> Workspace {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ringway-fleet-{}-{number}-{test}", std::process::id()));
        fs::create_dir_all(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Workspace(Arc::new(Folder { path }))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// A folder in it.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.0.path.join(name);
        fs::create_dir_all(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// Writes a file in it.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path.join(name);
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("logs are in {}", self.path.display());
        } else {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// A free port of 127.0.0.1 that stays free: below what the kernel gives to outgoing connections, so that no client sits
/// on it while its server restarts, and handed out once in this process.
pub fn port() -> u16 {
    static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let below: u16 = range.split_whitespace().next().and_then(|low| low.parse().ok()).unwrap_or(32_768);
    let span = u32::from(below.max(PORT_MIN + 1_000) - PORT_MIN);
    // Test programs that run at the same time begin at different places.
    let begin = std::process::id().wrapping_mul(7_919) % span;
    for step in 0..span {
        let port = PORT_MIN + ((begin + step) % span) as u16;
        if !taken.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            taken.insert(port);
            return port;
        }
    }
    panic!("no port is free between {PORT_MIN} and {below}");
}

/// A running process.
#[derive(Debug)]
pub struct Managed {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Managed {
    /// Starts `command`; what it prints goes behind what is already in the log called `name`.
    pub fn start(workspace: &Workspace, name: &str, command: &mut Command) -> Managed {
        let log = workspace.path().join(format!("{name}.log"));
        let open = || File::options().create(true).append(true).open(&log);
        let (out, err) = match (open(), open()) {
            (Ok(out), Ok(err)) => (out, err),
            (Err(error), _) | (_, Err(error)) => panic!("{}: {error}", log.display()),
        };
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        let child = child.unwrap_or_else(|error| {
            panic!("cannot run {:?}: {error}; tests/sdk/install.sh installs what tests need", command.get_program())
        });
        Managed { name: name.to_owned(), child, log }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed, and those of the same name before it.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal by name; kill(1) because a system call would need unsafe.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status();
        assert!(status.is_ok_and(|status| status.success()), "kill -{name} of {} failed", self.name);
    }

    /// Sends SIGTERM and waits for the end.
    pub fn stop(&mut self, within: Duration) -> ExitStatus {
        self.signal("TERM");
        self.wait(within)
    }

    /// Ends it with SIGKILL and waits for the end; also when it is frozen or gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end.
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        let end = Instant::now() + within;
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return status;
            }
            assert!(Instant::now() < end, "{}: no end within {within:?}\n{}", self.name, self.log_tail());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until `condition` holds; fails when it does not within [`PATIENCE`], or when the process ends.
    pub fn wait_until(&mut self, what: &str, mut condition: impl FnMut(&Managed) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(self.runs(), "{}: ended before: {what}\n{}", self.name, self.log_tail());
            assert!(Instant::now() < end, "{}: not within {PATIENCE:?}: {what}\n{}", self.name, self.log_tail());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let from = log.len().saturating_sub(LOG_TAIL_BYTES);
        log.get(from..).unwrap_or(&log).to_owned()
    }
}

impl Drop for Managed {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- end of the log of {} ---\n{}", self.name, self.log_tail());
        }
    }
}
