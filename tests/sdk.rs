//! Published SDKs, a headless browser and curl against a real server, one test per script of `tests/sdk`.
//!
//! In: the server binary, and what `make sdk` installs (npm and PyPI packages, Chromium). Out: pass or fail per script,
//! with everything that the script and the server said on a fail. No SDK is replaced by a stand-in.
#![allow(clippy::print_stdout, reason = "what the scripts said belongs into the output of the test")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time and start real threads")]

use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ringway_tests::backend::DEV_TOKEN;
use ringway_tests::server::DEV_KEY;
use ringway_tests::{Client, Script, Server, eventually_is};
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_secs(60);

/// The scripts have time-outs of their own (SDKs give up after 5 s), so on a small machine they run one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn run(words: &[&str], steps: usize) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // Without it, `--dev` takes every name, and error 102 could not be shown.
    let mut server = Server::start(&["--set", "namespace.catch_all=false"]);
    let said = Script::run(&mut server, words, 3 * MINUTE);
    print!("{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("ok: ")).count(), steps, "steps of {words:?}");
}

#[test]
fn node_json() {
    run(&["node_exchange.mjs", "json"], 9);
}

#[test]
fn node_protobuf() {
    run(&["node_exchange.mjs", "protobuf"], 9);
}

#[test]
fn python_json() {
    run(&["python_exchange.py", "json"], 7);
}

#[test]
fn python_protobuf() {
    run(&["python_exchange.py", "protobuf"], 7);
}

#[test]
fn browser_on_the_demo_page() {
    run(&["browser_demo.mjs"], 6);
}

#[test]
fn browser_node_python_and_backend_on_one_channel() {
    run(&["exchange_all.mjs"], 3);
}

#[test]
fn cent_uses_the_whole_server_api() {
    run(&["api_cent.py"], 8);
}

/// The description at /api/openapi.json against the server that gives it. Bounds are small, so that the arrays which are
/// one longer than allowed are, too.
#[test]
fn schemathesis_finds_nothing() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let bounds = ["broadcast_channels_max", "batch_commands_max"].map(|name| format!("control.{name}=20"));
    let mut server = Server::start(&["--set", &bounds[0], "--set", &bounds[1]]);
    let said = Script::run(&mut server, &["api_schemathesis.py"], 10 * MINUTE);
    print!("{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("ok: ")).count(), 2, "runs");
    assert!(server.runs(), "{}", server.stderr());
}

#[test]
fn the_vendored_sdk_is_the_published_one() {
    let vendor = ringway_tests::server::root().join("src/gateway/demo/vendor");
    let published = ringway_tests::server::root().join("tests/sdk/node_modules/centrifuge");
    for (own, theirs) in [
        ("centrifuge.js", "dist/centrifuge.js"),
        ("centrifuge.protobuf.js", "dist/centrifuge.protobuf.js"),
        ("LICENSE", "LICENSE"),
    ] {
        let read = |path: std::path::PathBuf| {
            std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; run `make sdk`", path.display()))
        };
        // Without the reference to a map file that is not served.
        let strip = |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).expect("UTF-8");
            text.lines().filter(|line| !line.starts_with("//# sourceMappingURL")).collect::<Vec<_>>().join("\n")
        };
        let same = strip(read(vendor.join(own))) == strip(read(published.join(theirs)));
        assert!(same, "vendor/{own} is not {theirs} of the npm package that tests/sdk/package.json pins");
    }
}

#[test]
fn curl_publishes() {
    let server = Server::start(&[]);
    let mut subscriber = Client::connect(&server);
    subscriber.subscribe("from-curl");
    let url = format!("http://{}/api/publish", server.control);
    let curl = |key: &str, body: &str| {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "10", "--write-out", "\n%{http_code}", "--noproxy", "*"])
            .args(["--header", &format!("X-API-Key: {key}"), "--data", body, &url])
            .output()
            .expect("curl runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let (answer, status) = text.rsplit_once('\n').expect("a status line");
        (status.to_owned(), serde_json::from_str::<Value>(answer).unwrap_or(Value::Null))
    };
    let (status, answer) = curl(DEV_KEY, r#"{"channel":"from-curl","data":{"text":"hello"}}"#);
    assert_eq!((status.as_str(), &answer["result"]["offset"]), ("200", &json!(1)), "{answer}");
    assert_eq!(subscriber.publication("from-curl").data, br#"{"text":"hello"}"#);
    assert_eq!(curl("wrong", r#"{"channel":"from-curl","data":1}"#).0, "401");
    // Line breaks between JSON tokens must not tear the frame apart.
    curl(DEV_KEY, "{\"channel\":\"from-curl\",\"data\":{\n\"a\":\r\n[1,\n2]}}");
    assert_eq!(subscriber.publication("from-curl").data, br#"{"a":[1,2]}"#);
}

/// Who counts: script, encoding, first channel, channels.
type Counter = (&'static str, &'static str, usize, usize);

/// Four ingest connections publish `per_channel` publications to each of `channels` channels, at `rate` per second in
/// all; SDK clients subscribed to them count.
fn count(counters: &[Counter], channels: usize, per_channel: usize, rate: f64) {
    const CONNECTIONS: usize = 4;
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let server = Server::start(&["--shards", "3"]);
    let mut scripts: Vec<Script> = counters
        .iter()
        .map(|(script, encoding, first, count)| {
            let words = [script, encoding, &*first.to_string(), &*count.to_string(), &*per_channel.to_string()];
            Script::start(&server, &words)
        })
        .collect();
    for script in &mut scripts {
        script.wait_for("READY", 2 * MINUTE);
    }
    let start = Instant::now();
    std::thread::scope(|scope| {
        for connection in 0..CONNECTIONS {
            let server = &server;
            scope.spawn(move || publish(server, connection, CONNECTIONS, channels, per_channel, rate));
        }
    });
    let total = channels * per_channel;
    println!("{total} publications acknowledged in {:.1?}, offsets dense", start.elapsed());
    for script in scripts {
        let said = script.finish(10 * MINUTE);
        print!("{said}");
        assert!(said.contains("COMPLETE"), "{said}");
    }
    eventually_is("acknowledgements", total as u64, || server.metrics().sum("ringway_ingest_acks_total", &[]));
    let metrics = server.metrics();
    println!("{} deliveries, {} slow closes", metrics.sum("ringway_deliveries_total", &[]), metrics.closes("slow"));
}

/// One ingest connection: its share of the channels, round by round, checked acknowledgement by acknowledgement.
fn publish(server: &Server, connection: usize, connections: usize, channels: usize, per_channel: usize, rate: f64) {
    let mut config = ringway_ingest::Config::new(server.ingest.to_string(), DEV_TOKEN);
    config.name = format!("count-{connection}");
    let client = ringway_ingest::Client::connect(config).expect("connect to the ingest port");
    let mine: Vec<usize> = (connection..channels).step_by(connections).collect();
    let start = Instant::now();
    let mut published = 0_u32;
    let mut waiting = std::collections::VecDeque::new();
    let settle = |(n, expected, handle): (usize, u64, ringway_ingest::PublishHandle)| {
        let ack = handle.wait().unwrap_or_else(|error| panic!("count-{n}, {expected}: {error}"));
        assert_eq!((ack.offset, ack.duplicate), (expected, false), "count-{n}");
    };
    for k in 1..=per_channel as u64 {
        let payload = format!("{{\"n\":{k}}}");
        for n in &mine {
            // The pace is absolute: a hiccup is caught up, the average stays.
            let due = start + Duration::from_secs_f64(f64::from(published) * connections as f64 / rate);
            if let Some(early) = due.checked_duration_since(Instant::now()).filter(|early| early.as_millis() >= 2) {
                std::thread::sleep(early);
            }
            published += 1;
            let options = ringway_ingest::Options::default();
            let handle = client.publish_blocking(&format!("count-{n}"), payload.as_bytes(), &options);
            waiting.push_back((*n, k, handle.expect("publish")));
            if waiting.len() > 4_096 {
                waiting.pop_front().into_iter().for_each(settle);
            }
        }
    }
    waiting.into_iter().for_each(settle);
}

#[test]
fn sdk_clients_count_their_channels_complete() {
    let counters = [
        ("count_channels.mjs", "json", 0, 100),
        ("count_channels.mjs", "protobuf", 0, 100),
        ("count_channels.py", "json", 0, 20),
        ("count_channels.py", "protobuf", 20, 20),
    ];
    count(&counters, 100, 300, 6_000.0);
}

/// 1,000,000 publications over 1,000 channels. A connection may have 512 subscriptions, so two Node clients of each
/// encoding share the channels; a Python client takes some tens of microseconds per publication and counts 100 each.
#[test]
#[ignore = "takes minutes; `make million-publications` runs it"]
fn a_million_publications() {
    let rate = std::env::var("RATE").ok().map_or(15_000.0, |rate| rate.parse().expect("RATE is a number per second"));
    let counters = [
        ("count_channels.mjs", "json", 0, 500),
        ("count_channels.mjs", "json", 500, 500),
        ("count_channels.mjs", "protobuf", 0, 500),
        ("count_channels.mjs", "protobuf", 500, 500),
        ("count_channels.py", "json", 0, 100),
        ("count_channels.py", "protobuf", 900, 100),
    ];
    count(&counters, 1_000, 1_000, rate);
}
