//! HAProxy in front of the nodes.
//!
//! In: nodes. Out: one address for all clients. Invariants: who is ready is asked on each node's control port; a connection
//! that a node does not take goes to another; connections that stand are left alone when a node stops being ready, since
//! the node itself sends its clients away at its pace.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use super::node::Node;
use super::process::{Managed, Workspace, port};

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
            let mut process = Managed::start(&self.workspace, &name, Command::new("haproxy").args(&self.command));
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

fn configuration(address: SocketAddr, nodes: &[Node]) -> String {
    let mut text = format!(
        "global\n    maxconn {CONNECTIONS_MAX}\n    nbthread 1\n\n\
         defaults\n    mode http\n    option redispatch\n    retries 3\n    \
         # A node that refuses an upgrade has done nothing: another one may take it.\n    \
         retry-on conn-failure empty-response 503\n    \
         timeout connect 2s\n    timeout client 60s\n    timeout server 60s\n    timeout tunnel 1h\n    timeout queue 5s\n\n\
         frontend clients\n    bind {address}\n    default_backend nodes\n\n\
         backend nodes\n    balance leastconn\n    option httpchk GET /ready\n    http-check expect status 200\n    \
         default-server inter 200ms fastinter 100ms fall 1 rise 1 observe layer4 on-error mark-down error-limit 3\n"
    );
    for node in nodes {
        let _ = writeln!(text, "    server {} {} check port {}", node.name, node.client, node.control.port());
    }
    text
}
