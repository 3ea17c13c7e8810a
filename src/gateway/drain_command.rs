//! `ringway drain`: makes a running node leave, shows how far it is, and ends when it has left.
//!
//! In: the node's own configuration (control address and API key), its answers to `/api/drain`. Out: a progress bar on
//! standard error, or a line now and then where that is no terminal; an exit code. Invariants: 0 only when the node itself
//! has said that nobody is connected any more and its control port is closed; everything waited for has an end, but the
//! drain itself, whose end is the node's `limits.drain_deadline_ms`.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;

use crate::cli::{EXIT_FAILURE, EXIT_OK, EXIT_UNAVAILABLE, RunArgs};
use crate::config::Config;
use crate::drain::{DrainState, Progress};

/// Time to connect to the control port, and for each answer.
const ANSWER_TIMEOUT_MS: u64 = 5_000;
/// Time between two looks.
const LOOK_INTERVAL_MS: u64 = 200;
/// Looks that may fail one after the other before the node counts as gone.
const FAILURES_MAX: u32 = 5;
/// Looks between two lines where no terminal shows a bar.
const LOOKS_PER_LINE: u32 = 25;
/// From the node's word that it has left to the end of its process.
const EXIT_TIMEOUT_MS: u64 = 15_000;
/// Bytes of an answer.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Flags of `ringway drain`.
#[derive(Args, Debug, Clone, Default)]
pub struct DrainArgs {
    /// The flags that the node runs with: they name its control address and its API key.
    #[command(flatten)]
    pub node: RunArgs,
    /// Address of the node's control port, instead of the configured one
    #[arg(long, value_name = "ADDRESS")]
    pub control: Option<SocketAddr>,
    /// Closes everybody at once
    #[arg(long)]
    pub hurry: bool,
    /// Begins the drain and does not wait for its end
    #[arg(long)]
    pub no_wait: bool,
}

/// Why the command ends without a node that has left.
#[derive(Debug)]
struct Trouble {
    text: String,
    exit: u8,
}

/// Drains the node that `config` describes; returns the exit code.
pub fn run(args: &DrainArgs, config: &Config) -> u8 {
    let node = Node { control: reachable(args.control.unwrap_or(config.control.listen)), config };
    match drain(args, &node) {
        Ok(()) => EXIT_OK,
        Err(trouble) => {
            eprintln!("ringway: {}", trouble.text);
            trouble.exit
        }
    }
}

fn drain(args: &DrainArgs, node: &Node<'_>) -> Result<(), Trouble> {
    let body = if args.hurry { r#"{"hurry":true}"# } else { "{}" };
    let first = node.ask("POST", body).map_err(|error| match error {
        AskError::Unreachable(text) => {
            Trouble { text: format!("cannot reach the node at {}: {text}", node.control), exit: EXIT_UNAVAILABLE }
        }
        AskError::Refused(text) => {
            Trouble { text: format!("the node at {} refuses: {text}", node.control), exit: EXIT_FAILURE }
        }
    })?;
    if args.no_wait {
        eprintln!("ringway: drains: {}", sentence(&first));
        return Ok(());
    }
    let last = watch(node, first)?;
    let end = EXIT_TIMEOUT_MS / LOOK_INTERVAL_MS;
    for _ in 0..end {
        // Its process ends now; until then a supervisor would take it for alive.
        if TcpStream::connect_timeout(&node.control, Duration::from_millis(ANSWER_TIMEOUT_MS)).is_err() {
            eprintln!("ringway: left: {}", sentence(&last));
            return Ok(());
        }
        pause();
    }
    let text = format!("the node has nobody left, but its process has not ended within {EXIT_TIMEOUT_MS} ms");
    Err(Trouble { text, exit: EXIT_FAILURE })
}

/// Shows the progress until the node says that it has left.
fn watch(node: &Node<'_>, mut now: Progress) -> Result<Progress, Trouble> {
    let bar = ProgressBar::new(now.clients_at_start);
    // A template that does not parse would be a mistake here; the plain bar serves as well.
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} left  {elapsed}  {msg}") {
        bar.set_style(style);
    }
    let (mut failures, mut looks) = (0, 0_u32);
    loop {
        bar.set_length(now.clients_at_start.max(now.clients_left));
        bar.set_position(now.clients_at_start.saturating_sub(now.clients_left));
        bar.set_message(sentence(&now));
        if bar.is_hidden() && looks.is_multiple_of(LOOKS_PER_LINE) {
            eprintln!("ringway: {}", sentence(&now));
        }
        if now.state == DrainState::Left {
            bar.finish_and_clear();
            return Ok(now);
        }
        pause();
        looks += 1;
        match node.ask("GET", "") {
            Ok(progress) => (now, failures) = (progress, 0),
            Err(_) if failures < FAILURES_MAX => failures += 1,
            Err(AskError::Unreachable(text) | AskError::Refused(text)) => {
                bar.abandon();
                let text =
                    format!("the node went without saying that all have left ({text}); last seen: {}", sentence(&now));
                return Err(Trouble { text, exit: EXIT_FAILURE });
            }
        }
    }
}

fn sentence(progress: &Progress) -> String {
    let Progress { clients_left, backends_left, sent_away, forced, rate_per_s, .. } = progress;
    match progress.state {
        DrainState::Serving => "not draining".into(),
        DrainState::Grace => format!("{clients_left} clients; load balancers are to notice first"),
        DrainState::Clients => format!("{clients_left} clients to go, {rate_per_s} per second"),
        DrainState::Backends => format!("{clients_left} clients and {backends_left} backends to go"),
        DrainState::Left => format!("{sent_away} clients were sent away one after the other, {forced} all at once"),
    }
}

fn pause() {
    std::thread::sleep(Duration::from_millis(LOOK_INTERVAL_MS));
}

/// An address that is listened on, as one can connect to it.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

struct Node<'a> {
    control: SocketAddr,
    config: &'a Config,
}

#[derive(Debug)]
enum AskError {
    Unreachable(String),
    Refused(String),
}

/// What the API answers; one of the two is there.
#[derive(Deserialize)]
struct Answer {
    result: Option<Progress>,
    error: Option<ApiFailure>,
}

#[derive(Deserialize)]
struct ApiFailure {
    message: String,
}

impl Node<'_> {
    fn ask(&self, method: &str, body: &str) -> Result<Progress, AskError> {
        let answer = self.exchange(method, body).map_err(|error| AskError::Unreachable(error.to_string()))?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        match serde_json::from_str(body) {
            Ok(Answer { result: Some(progress), .. }) => Ok(progress),
            Ok(Answer { error: Some(ApiFailure { message }), .. }) => Err(AskError::Refused(message)),
            _ => Err(AskError::Refused("its answer is none of a Ringway node's".into())),
        }
    }

    /// One request on a connection of its own, to its end.
    fn exchange(&self, method: &str, body: &str) -> std::io::Result<String> {
        let timeout = Duration::from_millis(ANSWER_TIMEOUT_MS);
        let mut stream = TcpStream::connect_timeout(&self.control, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let key = self.config.control.api_key.as_header().unwrap_or_default();
        let request = format!(
            "{method} /api/drain HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nX-API-Key: {key}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.control,
            body.len()
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_for_everybody_is_reached_on_this_host() {
        let there = |text: &str| reachable(text.parse().expect("an address")).to_string();
        assert_eq!(there("0.0.0.0:8001"), "127.0.0.1:8001");
        assert_eq!(there("[::]:8001"), "[::1]:8001");
        assert_eq!(there("10.0.0.7:8001"), "10.0.0.7:8001");
    }
}
