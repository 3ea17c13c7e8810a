//! Set-up: a real HAProxy with `tuning/haproxy.cfg` (addresses replaced) in front of two nodes without a backplane; clients
//! of the protocol connect through it, and come back at once when they are closed. Claim: while one node is drained under
//! publications, each of its clients is told 3001 once and gets to the other node by one connect that nobody refuses; the
//! other node's clients notice nothing. And nginx takes `tuning/nginx.conf`.
//!
//! HAProxy and nginx come from Debian (`make sdk` installs them).

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ringway_tests::server::{binary, root};
use ringway_tests::{Client, Encoding, Push, Server, eventually, eventually_is};
use serde_json::json;

const CLIENTS: usize = 60;

/// HAProxy with this folder's configuration; ended by its pid.
struct Proxy {
    child: Child,
    listen: SocketAddr,
    folder: PathBuf,
}

impl Proxy {
    fn start(nodes: [&Server; 2]) -> Proxy {
        let listen = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
        let text = std::fs::read_to_string(root().join("tuning/haproxy.cfg")).expect("the example");
        let mut text = replace(&text, "bind :8000\n", &format!("bind {listen}\n"));
        text = replace(&text, "default-server check port 8001 ", "default-server check ");
        for (index, node) in nodes.iter().enumerate() {
            let name = format!("server node-{} 10.0.0.{}:8000\n", index + 1, index + 1);
            let (client, control) = (node.client, node.control.port());
            text = replace(&text, &name, &format!("server node-{} {client} port {control}\n", index + 1));
        }
        let folder = std::env::temp_dir().join(format!("ringway-haproxy-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let file = folder.join("haproxy.cfg");
        std::fs::write(&file, text).expect("written");
        let program = program("haproxy");
        let checked = Command::new(&program).args(["-c", "-f"]).arg(&file).output().expect("haproxy runs");
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
        let child = Command::new(program)
            .args(["-db", "-f"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("haproxy runs");
        Proxy { child, listen, folder }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Replaces what must be there once.
fn replace(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from:?} stands once in the example");
    text.replace(from, to)
}

/// Debian puts them where not everybody's PATH looks.
fn program(name: &str) -> PathBuf {
    let own = Path::new("/usr/sbin").join(name);
    if own.exists() { own } else { PathBuf::from(name) }
}

/// What one client has seen when it is told to stop.
#[derive(Debug, Default)]
struct Seen {
    closes: Vec<Option<u16>>,
    publications: u64,
    /// Of those, since its latest connect.
    since_connect: u64,
}

/// Connects and subscribes; connects again at once when it is closed. A connect that is refused fails the test.
fn live(address: SocketAddr, encoding: Encoding, up: &Barrier, stop: &AtomicBool, reached: &AtomicU64) -> Seen {
    let mut seen = Seen::default();
    loop {
        let mut client = Client::open(address, encoding);
        client.say_connect();
        client.subscribe("news");
        if seen.closes.is_empty() {
            up.wait();
        }
        seen.since_connect = 0;
        loop {
            match client.try_push(Duration::from_millis(100)) {
                Some(Push::Publication(..)) => {
                    seen.publications += 1;
                    seen.since_connect += 1;
                    if seen.since_connect == 1 {
                        reached.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Some(other) => panic!("{other:?}"),
                None if client.close.is_some() => break,
                None if stop.load(Ordering::Relaxed) => return seen,
                None => {}
            }
        }
        seen.closes.push(client.close.and_then(|close| close.code));
    }
}

#[test]
fn clients_of_a_drained_node_reach_the_other_one_through_haproxy() {
    let settings = ["--shards", "2", "--set", "limits.drain_grace_ms=4000", "--set", "limits.drain_rate_per_s=30"];
    let (mut leaving, staying) = (Server::start(&settings), Server::start(&settings));
    let proxy = Proxy::start([&leaving, &staying]);
    eventually("haproxy listens", || std::net::TcpStream::connect(proxy.listen).is_ok());
    let (stop, reached) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let up = Arc::new(Barrier::new(CLIENTS + 1));
    let threads: Vec<JoinHandle<Seen>> = (0..CLIENTS)
        .map(|n| {
            let (stop, reached, up, listen) = (Arc::clone(&stop), Arc::clone(&reached), Arc::clone(&up), proxy.listen);
            let encoding = if n % 2 == 0 { Encoding::Json } else { Encoding::Protobuf };
            thread::spawn(move || live(listen, encoding, &up, &stop, &reached))
        })
        .collect();
    up.wait();
    let subscribed = |server: &Server| server.metrics().sum("ringway_subscriptions_open", &[]);
    eventually_is("everybody subscribes", CLIENTS as u64, || subscribed(&leaving) + subscribed(&staying));
    let there = subscribed(&leaving);
    assert!(there >= CLIENTS as u64 / 4, "leastconn gives each node its part: {there} of {CLIENTS}");

    let mut command = Command::new(binary());
    command.args(["drain", "--dev", "--control", &leaving.control.to_string()]).stderr(Stdio::piped());
    let mut command = command.spawn().expect("runs");
    let mut number = 0_u64;
    while command.try_wait().expect("a child").is_none() {
        // Each node has its own channels; who is there hears it.
        number += 1;
        staying.publish("news", &json!({ "n": number }));
        thread::sleep(Duration::from_millis(10));
    }
    let output = command.wait_with_output().expect("ended");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains(&format!("left: {there} clients were sent away one after the other, 0 all at once")),
        "{said}"
    );
    assert!(leaving.wait_exit().success());
    eventually_is("everybody is at the other node", CLIENTS as u64, || subscribed(&staying));
    eventually("everybody hears of it", || {
        staying.publish("news", &json!("last"));
        reached.load(Ordering::Relaxed) >= CLIENTS as u64
    });
    stop.store(true, Ordering::Relaxed);
    let seen: Vec<Seen> = threads.into_iter().map(|thread| thread.join().expect("no connect was refused")).collect();
    let moved = seen.iter().filter(|seen| seen.closes == [Some(3001)]).count() as u64;
    let stayed = seen.iter().filter(|seen| seen.closes.is_empty()).count() as u64;
    assert_eq!((moved, stayed), (there, CLIENTS as u64 - there), "{seen:?}");
    assert!(seen.iter().all(|seen| seen.since_connect > 0), "{seen:?}");
    let refused = staying.metrics().sum("ringway_handshakes_refused_total", &[]);
    assert_eq!(refused, 0);
}

#[test]
fn nginx_takes_its_example() {
    let folder = std::env::temp_dir().join(format!("ringway-nginx-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let output = Command::new(program("nginx"))
        .args(["-t", "-e", "stderr", "-p"])
        .arg(&folder)
        .arg("-c")
        .arg(root().join("tuning/nginx.conf"))
        .output()
        .expect("nginx runs");
    let _ = std::fs::remove_dir_all(&folder);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !said.contains("[warn]"), "{said}");
}
