//! HAProxy in front of the nodes.
//!
//! In: nodes, `tuning/haproxy.cfg`. Out: one address for all clients. Invariant: a test runs the file that operators are
//! given; only addresses, sizes and the times of its looks at the nodes are others.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use super::node::Node;
use super::process::{Managed, Workspace, port};
use crate::server::root;

/// Connections of one process: each takes two descriptors of the 20,000 that a process may have.
const CONNECTIONS_MAX: u32 = 9_500;

/// One HAProxy, of several processes if there are many clients.
#[derive(Debug)]
pub struct HaProxy {
    processes: Vec<Managed>,
    workspace: Workspace,
    command: Vec<String>,
    /// Where clients connect.
    pub address: SocketAddr,
}

impl HaProxy {
    /// Starts `processes` of them on one port, among which the kernel spreads the connections.
    pub fn start(workspace: &Workspace, nodes: &[Node], processes: usize) -> HaProxy {
        let address = SocketAddr::from(([127, 0, 0, 1], port()));
        let file = workspace.write("haproxy.cfg", &configuration(address, nodes));
        let command = vec!["-db".to_owned(), "-f".to_owned(), file.display().to_string()];
        let mut balancer = HaProxy { processes: Vec::new(), workspace: workspace.clone(), command, address };
        balancer.spawn(processes);
        balancer
    }

    fn spawn(&mut self, processes: usize) {
        for number in 0..processes {
            let name = format!("haproxy-{number}");
            let mut process = Managed::start(&self.workspace, &name, Command::new(program()).args(&self.command));
            let address = self.address;
            process.wait_until("takes connections", |_| TcpStream::connect(address).is_ok());
            self.processes.push(process);
        }
    }

    /// Kills it, which cuts every client at once, and starts it again.
    pub fn restart(&mut self) {
        let processes = self.processes.len();
        self.processes.clear();
        self.spawn(processes);
    }
}

/// `tuning/haproxy.cfg` with the test's addresses, and looks at the nodes so often that a test need not wait for them.
fn configuration(address: SocketAddr, nodes: &[Node]) -> String {
    let example = std::fs::read_to_string(root().join("tuning/haproxy.cfg")).expect("tuning/haproxy.cfg");
    let lines = example.lines().filter(|line| !line.trim_start().starts_with("server "));
    let mut text = lines.collect::<Vec<_>>().join("\n");
    text = format!("global\n    maxconn {CONNECTIONS_MAX}\n    nbthread 1\n\n{text}");
    text = replace(&text, "bind :8000\n", &format!("bind {address}\n"));
    text = replace(&text, "check port 8001 inter 1s fall 2 rise 2 slowstart 30s", "check inter 100ms fall 2 rise 1");
    text.push('\n');
    for node in nodes {
        let _ = writeln!(text, "    server {} {} port {}", node.name, node.client, node.control.port());
    }
    text
}

/// Replaces what must be there once.
fn replace(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from:?} stands once in tuning/haproxy.cfg");
    text.replace(from, to)
}

/// Debian puts it where not everybody's PATH looks.
fn program() -> PathBuf {
    let own = PathBuf::from("/usr/sbin/haproxy");
    if own.exists() { own } else { PathBuf::from("haproxy") }
}
