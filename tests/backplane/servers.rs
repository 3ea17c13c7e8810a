//! Real engines as processes: Redis from Debian, Valkey from a wheel; alone, with a replica, as a cluster.
//!
//! In: which kind. Out: a process on a free port of the loopback with a folder of its own. Invariant: what was started is
//! ended by its own process id, also when a test fails.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ringway_tests::fleet::valkey_server;

/// How long a server may take to start or to do as it is told.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Redis,
    Valkey,
}

/// The program of a kind, if it is there.
pub(crate) fn program(kind: Kind) -> Option<PathBuf> {
    let named = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
    let found = match kind {
        Kind::Redis => named("REDIS_SERVER").or_else(|| Some("/usr/bin/redis-server".into())),
        Kind::Valkey => named("VALKEY_SERVER").or_else(valkey_server),
    };
    found.filter(|path| path.exists())
}

/// A running server.
pub(crate) struct Server {
    kind: Kind,
    child: Child,
    port: u16,
    folder: PathBuf,
    options: Vec<String>,
}

impl Server {
    /// Starts one with further options.
    pub(crate) fn start(kind: Kind, options: &[&str]) -> Server {
        let port = free_port();
        let folder = new_folder();
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        let child = spawn(kind, port, &folder, &options);
        let server = Server { kind, child, port, folder, options };
        server.wait_until_up();
        server
    }

    /// A sentinel that alone decides about this primary.
    pub(crate) fn sentinel(primary: u16) -> Server {
        let (port, folder) = (free_port(), new_folder());
        let file = folder.join("sentinel.conf");
        let text = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor mymaster 127.0.0.1 {primary} 1\n\
             sentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 3000\n",
            folder.display()
        );
        std::fs::write(&file, text).expect("a file");
        let mut command = Command::new(program(Kind::Redis).expect("the program is there"));
        command.arg(&file).arg("--sentinel").stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
        let child = command.spawn().expect("the sentinel starts");
        let server = Server { kind: Kind::Redis, child, port, folder, options: Vec::new() };
        server.wait_until_up();
        let until = Instant::now() + PATIENCE;
        // It hears of replicas from the primary, every ten seconds or when it is new.
        loop {
            let replicas = redis::cmd("SENTINEL").arg("REPLICAS").arg("mymaster").query(&mut server.client());
            if replicas.is_ok_and(|replicas: Vec<redis::Value>| !replicas.is_empty()) {
                return server;
            }
            assert!(Instant::now() < until, "the sentinel finds no replica");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again on the same port. Servers keep nothing on disk here, so it comes back empty.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.kind, self.port, &self.folder, &self.options);
        self.wait_until_up();
    }

    /// SIGSTOP or SIGCONT.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status();
        assert!(status.is_ok_and(|status| status.success()), "kill -{name}");
    }

    /// A plain connection for what a test itself wants to know.
    pub(crate) fn client(&self) -> redis::Connection {
        let client = redis::Client::open(format!("redis://{}/", self.address())).expect("an address");
        client.get_connection_with_timeout(PATIENCE).expect("the server answers")
    }

    fn wait_until_up(&self) {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let client = redis::Client::open(format!("redis://{}/", self.address())).expect("an address");
            if let Ok(mut connection) = client.get_connection_with_timeout(Duration::from_millis(200))
                && redis::cmd("PING").query::<String>(&mut connection).is_ok()
            {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{:?} on port {} did not start", self.kind, self.port);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn spawn(kind: Kind, port: u16, folder: &Path, options: &[String]) -> Child {
    let program = program(kind).expect("the program is there");
    let mut command = Command::new(program);
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    command.args(["--stream-node-max-bytes", "512", "--maxmemory-policy", "noeviction"]);
    command.args(["--client-output-buffer-limit", "pubsub", "512mb", "256mb", "60"]);
    command.args(["--repl-diskless-sync-delay", "0", "--repl-backlog-size", "16mb"]);
    command.arg("--dir").arg(folder).args(options);
    command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
    command.spawn().expect("the server starts")
}

fn new_folder() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("ringway-backplane-{}-{count}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// Waits until the primary's only replica has everything.
pub(crate) fn wait_for_replica(primary: &Server) {
    let until = Instant::now() + PATIENCE;
    loop {
        let info: String = redis::cmd("INFO").arg("replication").query(&mut primary.client()).expect("info");
        if info.contains("state=online") {
            return;
        }
        assert!(Instant::now() < until, "the replica does not come: {info}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Makes a replica a primary.
pub(crate) fn promote(replica: &Server) {
    redis::cmd("REPLICAOF").arg("NO").arg("ONE").exec(&mut replica.client()).expect("it is promoted");
}

/// A port of the loopback that nobody has now, and a cluster's bus port above it likewise.
pub(crate) fn free_port() -> u16 {
    for _ in 0..100 {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
        if port < 55_000 && TcpListener::bind(("127.0.0.1", port + 10_000)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}
