//! Set-up: a server with connected clients and a backend is drained: by SIGTERM, the API, the command. Claims: readiness
//! fails at once; clients get 3001 one after the other while the others are served; the client port closes; a backend's
//! publishes are all acknowledged; the process ends with 0, and the command says so. A second signal hurries it. The command
//! says why a node has not left.

use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use ringway_tests::server::{DEV_KEY, binary};
use ringway_tests::{Backend, Client, Encoding, Server, eventually, http};
use serde_json::Value;

/// A drain that takes a test's time; `more` may change any of it.
fn server(more: &[&str]) -> Server {
    let mut settings = vec!["--shards", "2", "--set", "drain.on_sigterm=true"];
    settings.extend(["--set", "limits.drain_grace_ms=300", "--set", "limits.drain_rate_per_s=40"]);
    settings.extend_from_slice(more);
    Server::start(&settings)
}

fn clients(server: &Server, count: usize) -> Vec<Client> {
    let encoding = |n| if n % 2 == 0 { Encoding::Json } else { Encoding::Protobuf };
    (0..count).map(|n| Client::connect_as(server, encoding(n))).collect()
}

fn assert_sent_away(clients: &mut [Client]) {
    for client in clients {
        let close = client.expect_close();
        assert_eq!((close.code, close.reason.as_str()), (Some(3001), "shutdown"));
    }
}

/// What `/api/drain` says; none when nobody answers any more.
fn progress(control: SocketAddr, method: &str, body: &str) -> Value {
    let headers = [("X-API-Key", DEV_KEY), ("Content-Type", "application/json")];
    let response = http::request(control, method, "/api/drain", &headers, body.as_bytes());
    assert_eq!(response.status, 200, "{}", response.text());
    serde_json::from_str::<Value>(&response.text()).expect("JSON")["result"].take()
}

/// Runs `ringway drain --dev` against a control port.
fn command(control: SocketAddr, more: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(["drain", "--dev", "--control", &control.to_string()]).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn sigterm_sends_everybody_away_and_ends_with_0() {
    let mut server = server(&[]);
    let mut clients = clients(&server, 30);
    clients[0].subscribe("any");
    server.signal("TERM");
    eventually("/ready fails", || http::get(server.control, "/ready").status == 503);
    assert_eq!(http::get(server.control, "/health").status, 200, "it works, it only is not to be sent anybody");
    assert_sent_away(&mut clients);
    assert!(server.wait_exit().success());
    assert!(TcpStream::connect(server.client).is_err(), "the port is free");
}

#[test]
fn clients_who_are_not_told_yet_are_served_while_newcomers_are_refused() {
    let mut server = server(&["--set", "limits.drain_rate_per_s=1"]);
    let mut clients = clients(&server, 40);
    for client in &mut clients {
        client.subscribe("news");
    }
    assert_eq!(progress(server.control, "GET", "")["state"], "serving", "to ask is not to drain");
    let begun = progress(server.control, "POST", "{}");
    assert_eq!(begun["state"], "grace", "{begun}");
    assert_eq!(http::get(server.control, "/ready").status, 503, "fails behind the answer");
    eventually("clients leave", || progress(server.control, "GET", "")["state"] == "clients");
    eventually("the client port closes", || TcpStream::connect(server.client).is_err());
    let mut before = Value::Null;
    eventually("all are counted", || {
        before = progress(server.control, "GET", "");
        before["clients_at_start"] == 40
    });
    server.publish("news", &Value::from(1));
    let served = clients.iter_mut().filter_map(|client| client.try_push(Duration::from_secs(2))).count();
    // One per second leaves meanwhile; were they closed together, hardly anybody would be left.
    assert!(served >= 6, "{served} of 40 were still served; {before}");
    let metrics = server.metrics();
    assert_eq!(metrics.sum("ringway_drain_state", &[]), 4, "both shards");
    assert!(metrics.sum("ringway_drain_clients_left", &[]) > 0);
    let hurried = progress(server.control, "POST", r#"{"hurry":true}"#);
    assert!(hurried["clients_left"].as_u64().is_some_and(|left| left > 0), "{hurried}");
    assert_sent_away(&mut clients);
    assert!(server.wait_exit().success());
}

#[test]
fn a_second_signal_hurries_it() {
    for second in ["TERM", "INT"] {
        let mut server = server(&["--set", "limits.drain_rate_per_s=1", "--set", "limits.drain_grace_ms=100000"]);
        let mut clients = clients(&server, 25);
        server.signal("TERM");
        eventually("/ready fails", || http::get(server.control, "/ready").status == 503);
        clients[3].assert_alive();
        let start = Instant::now();
        server.signal(second);
        assert_sent_away(&mut clients);
        assert!(server.wait_exit().success(), "SIG{second}");
        assert!(start.elapsed() < Duration::from_secs(25), "the grace alone would be 100 s");
    }
}

#[test]
fn sigint_does_not_wait() {
    let mut server = server(&["--set", "limits.drain_grace_ms=100000"]);
    let mut clients = clients(&server, 5);
    server.signal("INT");
    assert_sent_away(&mut clients);
    assert!(server.wait_exit().success());
}

#[test]
fn at_the_deadline_the_rest_is_closed_at_once() {
    let mut server = server(&[
        "--set",
        "limits.drain_rate_per_s=1",
        "--set",
        "limits.drain_backends_ms=100",
        "--set",
        "limits.drain_deadline_ms=1500",
    ]);
    let mut clients = clients(&server, 40);
    server.signal("TERM");
    assert_sent_away(&mut clients);
    assert!(server.wait_exit().success());
    let log = server.stderr();
    assert!(log.contains("drain_deadline_ms is too short"), "{log}");
    let done = log.lines().find(|line| line.contains("done") && line.contains("forced=")).expect("a last word");
    let forced = done.split("forced=").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("a number");
    assert!(forced.parse::<u32>().is_ok_and(|forced| forced >= 30), "{done}");
}

#[test]
fn the_command_waits_until_the_node_has_left() {
    let mut server = server(&[]);
    let mut clients = clients(&server, 30);
    let running = command(server.control, &[]).spawn().expect("runs");
    assert_sent_away(&mut clients);
    let output = running.wait_with_output().expect("ends");
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("left: 30 clients were sent away one after the other, 0 all at once"), "{text}");
    assert!(server.wait_exit().success());
}

#[test]
fn the_command_says_why_not() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let output = command(nobody, &[]).output().expect("runs");
    assert_eq!(output.status.code(), Some(69), "{}", said(&output));
    assert!(said(&output).contains("cannot reach the node"), "{}", said(&output));

    let mut server = server(&["--set", "limits.drain_rate_per_s=1"]);
    let output = command(server.control, &["--set", "control.api_key=wrong"]).output().expect("runs");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("refuses: unauthorized"), "{}", said(&output));
    assert_eq!(http::get(server.control, "/ready").status, 200);

    // A node that dies in the middle has not left.
    let clients = clients(&server, 20);
    let running = command(server.control, &[]).spawn().expect("runs");
    eventually("it drains", || http::get(server.control, "/ready").status == 503);
    server.signal("KILL");
    let output = running.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("without saying that all have left"), "{}", said(&output));
    assert!(!server.wait_exit().success());
    drop(clients);
}

#[test]
fn a_backend_has_all_its_acknowledgements_and_goes_on_elsewhere() {
    let (mut leaving, staying) = (server(&["--set", "limits.drain_backends_ms=10000"]), Server::start(&[]));
    let backend = Backend::connect_to(&[leaving.ingest, staying.ingest]);
    let mut clients = clients(&leaving, 10);
    let mut pending: Vec<_> = (0..500).map(|n| backend.publish(&format!("c{}", n % 7), b"1")).collect();
    leaving.signal("TERM");
    let mut count = pending.len();
    while leaving.runs() {
        pending.push(backend.publish(&format!("c{}", count % 7), b"1"));
        count += 1;
        if pending.len() > 200 {
            pending.drain(..100).for_each(|one| _ = one.ack());
        }
    }
    assert_sent_away(&mut clients);
    assert!(leaving.wait_exit().success(), "{}", leaving.stderr());
    pending.push(backend.publish("c0", b"1"));
    pending.drain(..).for_each(|one| _ = one.ack());
    let there = staying.metrics().sum("ringway_ingest_acks_total", &[]);
    assert!(there > 0, "it has gone on at the other node");
    let log = leaving.stderr();
    let elapsed = log.lines().find(|line| line.contains("elapsed_ms=")).expect("a last word");
    let elapsed_ms: u64 =
        elapsed.split("elapsed_ms=").nth(1).and_then(|text| text.trim().parse().ok()).expect("a number");
    assert!(elapsed_ms < 10_000, "it left by itself, not at the end of its time: {elapsed}");
}
