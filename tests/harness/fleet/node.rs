//! One node: a `ringway` process with a generated configuration, on ports that it keeps.
//!
//! In: options. Out: a listening process that can be stopped, killed, frozen and started again. Invariant: a node that is
//! started again has the same name and the same ports.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::process::{Managed, Workspace, port};
use super::redis::PRIMARY_NAME;
use crate::server::{Metrics, binary};
use crate::{PATIENCE, http};

/// Longest drain of a node in a test.
const DRAIN_PATIENCE: Duration = Duration::from_secs(60);

/// The engine that nodes share.
#[derive(Clone, Debug)]
pub struct Backplane {
    /// `single`, `sentinel` or `cluster`.
    pub mode: &'static str,
    /// Servers, or Sentinels.
    pub addresses: Vec<SocketAddr>,
}

/// What all nodes of a fleet have.
#[derive(Clone, Debug, Default)]
pub struct NodeOptions {
    /// The engine; none: each node on its own.
    pub backplane: Option<Backplane>,
    /// Shards; 0: two.
    pub shards: u32,
    /// Further settings, `key=value`.
    pub settings: Vec<String>,
    /// Further rules of the namespace `fleet`, a line of the configuration each.
    pub rules: Vec<String>,
    /// Variables of the process.
    pub environment: Vec<(String, String)>,
    /// What the node calls itself; none: as its log is called.
    pub calls_itself: Option<String>,
}

impl NodeOptions {
    /// Nodes on one engine.
    pub fn on(mode: &'static str, addresses: &[SocketAddr]) -> NodeOptions {
        let backplane = Some(Backplane { mode, addresses: addresses.to_vec() });
        NodeOptions { backplane, ..NodeOptions::default() }
    }

    /// With further settings, `key=value`.
    pub fn with(mut self, settings: &[&str]) -> NodeOptions {
        self.settings.extend(settings.iter().map(|&setting| setting.to_owned()));
        self
    }
}

/// One node.
#[derive(Debug)]
pub struct Node {
    /// Its name in the fleet.
    pub name: String,
    /// Where clients, or the load balancer, connect.
    pub client: SocketAddr,
    /// The HTTP control port.
    pub control: SocketAddr,
    /// The binary ingest port.
    pub ingest: SocketAddr,
    /// The process.
    pub process: Managed,
    file: PathBuf,
    options: NodeOptions,
    workspace: Workspace,
}

impl Node {
    /// Starts one and waits until it is ready.
    pub fn start(workspace: &Workspace, name: &str, options: &NodeOptions) -> Node {
        let mut node = Node::begin(workspace, name, options);
        node.wait_ready(0);
        node
    }

    /// Starts one that may never be ready.
    pub fn begin(workspace: &Workspace, name: &str, options: &NodeOptions) -> Node {
        let address = || SocketAddr::from(([127, 0, 0, 1], port()));
        let (client, control, ingest) = (address(), address(), address());
        let file = workspace.write(&format!("{name}.toml"), &configuration(name, [client, control, ingest], options));
        let process = spawn(workspace, name, &file, options);
        let (name, options, workspace) = (name.to_owned(), options.clone(), workspace.clone());
        Node { name, client, control, ingest, process, file, options, workspace }
    }

    /// `before`: ready lines that its log holds of processes before it.
    fn wait_ready(&mut self, before: usize) {
        self.process.wait_until("is ready", |process| ready_lines(process) > before);
    }

    /// Ends it with SIGTERM, which lets its clients go at its pace, and waits for the end.
    pub fn stop(&mut self) {
        let status = self.process.stop(DRAIN_PATIENCE);
        assert!(status.success(), "{} ended with {status}\n{}", self.name, self.process.log());
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

    /// Starts it again, killing what still runs, on the ports that it had.
    pub fn restart(&mut self) {
        self.process.kill();
        let before = ready_lines(&self.process);
        self.process = spawn(&self.workspace, &self.name, &self.file, &self.options);
        self.wait_ready(before);
    }

    /// The counters of `/metrics`, now.
    pub fn metrics(&self) -> Metrics {
        let response = http::get(self.control, "/metrics");
        assert_eq!(response.status, 200, "{}", response.text());
        Metrics::parse(&response.text())
    }

    /// Whether it says that it is ready.
    pub fn is_ready(&self) -> bool {
        http::get(self.control, "/ready").status == 200
    }

    /// Client connections now.
    pub fn connections(&self) -> u64 {
        self.metrics().sum("ringway_connections_open", &[])
    }

    /// Waits until somebody is connected to it.
    pub fn wait_connected(&self) {
        let end = std::time::Instant::now() + PATIENCE;
        while self.connections() == 0 {
            assert!(std::time::Instant::now() < end, "nobody came to {} within {PATIENCE:?}", self.name);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn ready_lines(process: &Managed) -> usize {
    process.log().lines().filter(|line| line.starts_with("ringway ready ")).count()
}

fn spawn(workspace: &Workspace, name: &str, file: &std::path::Path, options: &NodeOptions) -> Managed {
    let mut command = Command::new(binary());
    command.args(["--dev", "--config"]).arg(file);
    for setting in &options.settings {
        command.args(["--set", setting]);
    }
    command.envs(options.environment.iter().map(|(key, value)| (key, value)));
    Managed::start(workspace, name, &mut command)
}

/// Everything open, as `--dev`; channels `fleet:` keep enough history for an absence of a minute.
fn configuration(name: &str, [client, control, ingest]: [SocketAddr; 3], options: &NodeOptions) -> String {
    let mut text = format!("shards = {}\n\n", if options.shards == 0 { 2 } else { options.shards });
    if let Some(backplane) = &options.backplane {
        let name = options.calls_itself.as_deref().unwrap_or(name);
        let addresses: Vec<String> = backplane.addresses.iter().map(|address| format!("\"{address}\"")).collect();
        let _ = write!(
            text,
            "[node]\nname = \"{name}\"\n\n[backplane]\nengine = \"redis\"\nmode = \"{}\"\naddresses = [{}]\n",
            backplane.mode,
            addresses.join(", ")
        );
        if backplane.mode == "sentinel" {
            let _ = writeln!(text, "sentinel_name = \"{PRIMARY_NAME}\"");
        }
        text.push('\n');
    }
    let _ = write!(
        text,
        "[client]\nlisten = \"{client}\"\n\n[control]\nlisten = \"{control}\"\n\n[ingest]\nlisten = \"{ingest}\"\n\n\
         [drain]\non_sigterm = true\n\n\
         [[namespaces]]\nname = \"fleet\"\nsubscribe = \"anyone\"\npublish = \"anyone\"\nhistory_size = 300\n\
         history_ttl_ms = 600000\nrecovery = true\n"
    );
    for rule in &options.rules {
        let _ = writeln!(text, "{rule}");
    }
    text
}
