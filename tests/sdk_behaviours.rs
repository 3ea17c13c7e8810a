//! One behaviour of the client protocol per script of `tests/sdk`, with the published SDKs in both encodings.
//!
//! Set-up: `ringway --dev` with the namespaces of `tests/sdk/namespaces.toml`, short pings, and what a behaviour needs
//! beside them. Claim: what stands in the header of each script; a script ends with exit code 0 only when it saw all of it.
#![allow(clippy::print_stdout, reason = "what the scripts said belongs into the output of the test")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time and start real threads")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ringway_tests::backend::DEV_TOKEN;
use ringway_tests::{Script, Server, eventually_is};

const PATIENCE: Duration = Duration::from_secs(120);

/// The scripts have time-outs of their own (SDKs give up after 5 s), so on a small machine they run one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A server with the namespaces of these tests, and `settings` (`key=value`).
fn server(settings: &[&str]) -> Server {
    let file = ringway_tests::server::root().join("tests/sdk/namespaces.toml").display().to_string();
    let mut arguments = vec!["--shards", "2", "--config", &file];
    // A peer that is gone in silence is noticed after 1.9 s.
    for setting in ["limits.ping_interval_ms=1000", "limits.pong_timeout_ms=900"].iter().chain(settings) {
        arguments.extend_from_slice(&["--set", setting]);
    }
    Server::start(&arguments)
}

/// Runs one script for each encoding, which must say `ok: ` so many times.
fn run(script: &str, steps: usize, settings: &[&str]) {
    let _turn = turn();
    let mut server = server(settings);
    for encoding in ["json", "protobuf"] {
        let said = Script::run(&mut server, &[script, encoding], PATIENCE);
        print!("{said}");
        assert_eq!(said.lines().filter(|line| line.starts_with("ok: ")).count(), steps, "steps of {script} {encoding}");
    }
}

#[test]
fn presence_node() {
    run("presence.mjs", 5, &[]);
}

#[test]
fn presence_python() {
    run("presence.py", 5, &[]);
}

#[test]
fn join_leave_node() {
    run("join_leave.mjs", 3, &[]);
}

#[test]
fn join_leave_python() {
    run("join_leave.py", 2, &[]);
}

#[test]
fn history_node() {
    run("history.mjs", 6, &[]);
}

#[test]
fn history_python() {
    run("history.py", 5, &[]);
}

#[test]
fn recovery_modes_node() {
    run("recovery_modes.mjs", 5, &[]);
}

#[test]
fn recovery_modes_python() {
    run("recovery_modes.py", 4, &[]);
}

#[test]
fn tokens_node() {
    run("tokens.mjs", 8, &["limits.expired_grace_ms=1000"]);
}

#[test]
fn tokens_python() {
    run("tokens.py", 7, &["limits.expired_grace_ms=1000"]);
}

#[test]
fn rights_node() {
    run("rights.mjs", 6, &[]);
}

#[test]
fn rights_python() {
    run("rights.py", 6, &[]);
}

const PERSONAL: &[&str] = &["client.personal_channel=true", "client.personal_namespace=inbox"];

#[test]
fn server_side_subscriptions_node() {
    run("server_subs.mjs", 5, PERSONAL);
}

#[test]
fn server_side_subscriptions_python() {
    run("server_subs.py", 3, PERSONAL);
}

#[test]
fn server_api_node() {
    run("server_api.mjs", 7, &[]);
}

#[test]
fn server_api_python() {
    run("server_api.py", 6, &[]);
}

#[test]
fn delta_and_compaction_node() {
    run("delta.mjs", 4, &[]);
}

#[test]
fn delta_python() {
    run("delta.py", 2, &[]);
}

#[test]
fn deflate_node_and_browser() {
    run("deflate.mjs", 4, &["client.deflate=true"]);
}

#[test]
fn unidirectional_websocket() {
    let _turn = turn();
    let mut server = server(&[PERSONAL, &["client.uni_websocket_path=/connection/uni_websocket"]].concat());
    let said = Script::run(&mut server, &["uni.mjs"], PATIENCE);
    assert_eq!(said.lines().filter(|line| line.starts_with("ok: ")).count(), 7, "{said}");
}

/// `chat` as the scripts find it, and what `@reload` makes of it.
const BEFORE: &str = "[[namespaces]]\nname = \"chat\"\nsubscribe = \"anyone\"\npublish = \"anyone\"\n";
const AFTER: &str = "[[namespaces]]\nname = \"chat\"\nsubscribe = \"anyone\"\n[[namespaces]]\nname = \"fresh\"\nsubscribe = \"anyone\"\n";

fn reload(script: &str) {
    let _turn = turn();
    let file = std::env::temp_dir().join(format!("ringway-{script}-{}.toml", std::process::id()));
    let write = |text: &str| {
        let beside = file.with_extension("new");
        std::fs::write(&beside, format!("[namespace]\ncatch_all = false\n{text}"))
            .expect("the temporary folder is writable");
        std::fs::rename(&beside, &file).expect("a rename within a folder");
    };
    for encoding in ["json", "protobuf"] {
        write(BEFORE);
        let mut server = Server::start(&["--shards", "2", "--config", &file.display().to_string()]);
        let said = Script::run_with(&mut server, &[script, encoding], PATIENCE, |server, request| {
            assert_eq!(request, "@reload");
            write(AFTER);
            server.signal("HUP");
            eventually_is("reloads", 1, || server.metrics().sum("ringway_reloads_total", &[]));
            eventually_is("shards behind", 0, || server.metrics().sum("ringway_reload_shards_behind", &[]));
        });
        assert_eq!(said.lines().filter(|line| line.starts_with("ok: ")).count(), 2, "{said}");
    }
    let _ = std::fs::remove_file(&file);
}

#[test]
fn reload_node() {
    reload("reload.mjs");
}

#[test]
fn reload_python() {
    reload("reload.py");
}

/// Publishes 1, 2, … to `channel` at 2,000 a second until `stop`; gives how many, all acknowledged.
fn publish_until(server: &Server, channel: &str, stop: &AtomicBool) -> u64 {
    const RATE: f64 = 2_000.0;
    let config = ringway_ingest::Config::new(server.ingest.to_string(), DEV_TOKEN);
    let client = ringway_ingest::Client::connect(config).expect("connect to the ingest port");
    let start = Instant::now();
    let mut waiting = std::collections::VecDeque::new();
    let settle = |(n, handle): (u64, ringway_ingest::PublishHandle)| {
        let ack = handle.wait().unwrap_or_else(|error| panic!("{channel}, {n}: {error}"));
        assert_eq!((ack.offset, ack.duplicate), (n, false), "{channel}");
    };
    let mut published = 0;
    while !stop.load(Ordering::Relaxed) {
        // The pace is absolute: a hiccup is caught up, the average stays.
        let due = start + Duration::from_secs_f64(published as f64 / RATE);
        if let Some(early) = due.checked_duration_since(Instant::now()).filter(|early| early.as_millis() >= 2) {
            std::thread::sleep(early);
        }
        published += 1;
        let options = ringway_ingest::Options::default();
        let handle = client.publish_blocking(channel, published.to_string().as_bytes(), &options);
        waiting.push_back((published, handle.expect("publish")));
        if waiting.len() > 1_024 {
            waiting.pop_front().into_iter().for_each(settle);
        }
    }
    waiting.into_iter().for_each(settle);
    published
}

/// A client of each encoding, one after the other, is cut `cuts` times while publications come.
fn cut(namespace: &str, cuts: usize, mode: &str) {
    let _turn = turn();
    let server = server(&[
        "limits.recovery_publications_max=20000",
        "limits.recovery_bytes_max=4194304",
        "limits.outbox_bytes_max=16777216",
    ]);
    for encoding in ["json", "protobuf"] {
        let channel = format!("{namespace}:{encoding}");
        let mut script = Script::start(&server, &["cut_often.mjs", encoding, &channel, &cuts.to_string(), mode]);
        script.wait_for("READY", PATIENCE);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let publisher = scope.spawn(|| publish_until(&server, &channel, &stop));
            // A panic in here must stop the publisher too, or the scope would wait for it for ever.
            let enough = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                script.wait_for("ENOUGH", PATIENCE + Duration::from_secs(10) * cuts as u32);
            }));
            stop.store(true, Ordering::Relaxed);
            let total = publisher.join();
            if let Err(panic) = enough {
                std::panic::resume_unwind(panic);
            }
            script.tell(&total.expect("the publisher").to_string());
        });
        print!("{}", script.finish(PATIENCE));
    }
    println!("{} slow closes", server.metrics().closes("slow"));
}

#[test]
fn cut_10_times_loses_nothing() {
    cut("flood", 10, "lossless");
}

#[test]
fn cut_for_longer_than_history_says_so() {
    cut("brook", 5, "lossy");
}

#[test]
#[ignore = "takes minutes; `make cut-200` runs it"]
fn cut_200_times_loses_nothing() {
    cut("flood", 200, "lossless");
}

#[test]
#[ignore = "takes minutes; `make cut-200` runs it"]
fn cut_200_times_for_longer_than_history_says_so() {
    cut("brook", 200, "lossy");
}
