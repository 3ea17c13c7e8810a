//! Every scenario at tiny size, as the real program with its worker processes, against a gateway in the test process.
//!
//! Claims: each scenario completes and counts every delivery; a lost, doubled or late delivery ends with exit code 2;
//! pings are answered; several workers add up to one result.
#![allow(clippy::disallowed_methods, reason = "a test server is threads, and nothing else")]

mod support;

use std::process::Command;
use std::sync::atomic::Ordering;

use serde_json::Value;
use support::{Fault, Gateway};

/// Runs the program; its exit code and its JSON.
fn run(arguments: &[&str]) -> (i32, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringway-loadgen"));
    command.args(arguments).args(["--json", "--stall-s", "3"]);
    let output = command.output().expect("the program starts");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let json = serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}"));
    (output.status.code().unwrap_or(-1), json)
}

fn websocket_fanout(gateway: &Gateway, extra: &[&str]) -> (i32, Value) {
    let url = format!("ws://{}/", gateway.clients);
    let common =
        ["fanout", "--protocol", "websocket", "--url", &url, "-n", "8", "--seconds", "0.3", "--warmup-s", "0.1"];
    run(&[&common[..], extra].concat())
}

#[test]
fn fanout_over_websocket_in_rounds_and_sliding() {
    for extra in [&["-k", "1"][..], &["-k", "4"], &["-k", "4", "--refill", "slide"], &["--rate", "200"]] {
        let gateway = Gateway::start(Fault::None);
        let (code, json) = websocket_fanout(&gateway, extra);
        assert_eq!(code, 0, "{extra:?}: {json}");
        let publications = json["publications"].as_u64().expect("a count");
        assert!(publications > 4, "{extra:?}: {json}");
        assert_eq!(json["deliveries"]["received"], publications * 8, "{extra:?}");
        assert_eq!(json["latency"]["count"], json["window_deliveries"], "{extra:?}");
    }
}

#[test]
fn wrong_deliveries_end_with_exit_code_2() {
    for (fault, kind) in [(Fault::Lost, "gaps"), (Fault::Doubled, "duplicates"), (Fault::Late, "disordered")] {
        let gateway = Gateway::start(fault);
        let (code, json) = websocket_fanout(&gateway, &["--rate", "100"]);
        assert_eq!(code, 2, "{fault:?}: {json}");
        assert_eq!(json["deliveries"][kind], 1, "{fault:?}: {json}");
    }
    let (code, json) = websocket_fanout(&Gateway::start(Fault::Doubled), &["--rate", "100", "--lossy"]);
    assert_eq!(code, 0, "{json}");
}

#[test]
fn a_last_delivery_that_never_comes_is_a_stall_and_a_gap() {
    let gateway = Gateway::start(Fault::Lost);
    let (code, json) = websocket_fanout(&gateway, &["-k", "5"]);
    assert_eq!(code, 2, "{json}");
    assert_eq!(json["deliveries"]["gaps"], 1, "{json}");
    assert!(json["problems"].to_string().contains("stalled"), "{json}");
}

#[test]
fn centrifuge_over_ingest_with_many_channels_and_several_workers() {
    let gateway = Gateway::start(Fault::None);
    let (url, ingest) = (format!("ws://{}/connection", gateway.clients), gateway.ingest.to_string());
    let (code, json) = run(&[
        "fanout",
        "--url",
        &url,
        "--ingest",
        &ingest,
        "-n",
        "7",
        "-m",
        "5",
        "-s",
        "3",
        "--workers",
        "3",
        "--seconds",
        "0.3",
        "--warmup-s",
        "0",
        "--rate",
        "300",
    ]);
    assert_eq!(code, 0, "{json}");
    assert_eq!((&json["workers"], &json["publications"]), (&3.into(), &90.into()), "{json}");
    // 21 subscriptions over 5 channels: every round over the channels delivers 21 times.
    assert_eq!(json["deliveries"]["received"], 90 / 5 * 21, "{json}");
    assert_eq!(json["publish_acknowledged"], 90);
    assert_eq!(gateway.pongs.load(Ordering::Relaxed), 7, "one ping each, and one pong");
}

#[test]
fn compressed_deliveries_are_inflated_checked_and_counted() {
    let json_1k = ["--payload", "json", "--payload-bytes", "1024", "-k", "2"];
    let (code, json) = websocket_fanout(&Gateway::start(Fault::None), &json_1k);
    assert_eq!((code, json["compressed_deliveries"].is_null()), (0, true), "{json}");
    let plain_bytes = json["received_bytes_per_delivery"].as_f64().expect("a number");
    assert_eq!(plain_bytes, 1028.0, "payload and frame header: {json}");

    let deflate = [&json_1k[..], &["--deflate"]].concat();
    let (code, json) = websocket_fanout(&Gateway::start(Fault::None), &deflate);
    assert_eq!(code, 0, "{json}");
    assert_eq!(json["compressed_deliveries"], json["deliveries"]["received"], "{json}");
    assert_eq!(json["uncompressed_deliveries"], 0, "{json}");
    let bytes = json["received_bytes_per_delivery"].as_f64().expect("a number");
    assert!(bytes > 100.0 && bytes < plain_bytes * 0.6, "{json}");

    // A gap behind the inflater is still a gap.
    let (code, json) = websocket_fanout(&Gateway::start(Fault::Lost), &[&deflate[..], &["--rate", "100"]].concat());
    assert_eq!((code, &json["deliveries"]["gaps"]), (2, &1.into()), "{json}");

    let (code, json) = websocket_fanout(&Gateway::start(Fault::Uncompressed), &deflate);
    assert_eq!((code, &json["uncompressed_deliveries"]), (2, &1.into()), "{json}");
    assert_eq!(json["deliveries"]["gaps"], 0, "it came, and was checked: {json}");
    for extra in ["--deflate-bytes-min=0", "--deflate-bytes-min=1025"] {
        let (code, json) = websocket_fanout(&Gateway::start(Fault::Uncompressed), &[&deflate[..], &[extra]].concat());
        assert_eq!((code, &json["uncompressed_deliveries"]), (0, &1.into()), "{extra}: {json}");
    }
}

#[test]
fn compressed_deliveries_over_the_client_protocol() {
    let gateway = Gateway::start(Fault::None);
    let (url, ingest) = (format!("ws://{}/connection", gateway.clients), gateway.ingest.to_string());
    let common = ["fanout", "--url", &url, "--ingest", &ingest, "-n", "4", "-m", "2", "--seconds", "0.2"];
    let (code, json) = run(&[&common[..], &["--deflate", "--payload", "json", "--payload-bytes", "600"]].concat());
    assert_eq!((code, &json["uncompressed_deliveries"]), (0, &0.into()), "{json}");
    assert!(json["compressed_deliveries"].as_u64().expect("a count") > 0, "{json}");
}

#[test]
fn compression_that_is_declined_is_an_error() {
    let gateway = Gateway::start(Fault::None);
    let url = format!("ws://{}/echo", gateway.clients);
    let output = Command::new(env!("CARGO_BIN_EXE_ringway-loadgen"))
        .args(["connect", "--deflate", "--protocol", "websocket", "--url", &url, "-n", "2", "--hold-s", "0"])
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("compression was not accepted"), "{output:?}");
}

#[test]
fn memory_is_read_at_rest() {
    let gateway = Gateway::start(Fault::None);
    // Any process will do for the server's: the test's own.
    let pid = std::process::id().to_string();
    let (code, json) = websocket_fanout(&gateway, &["--server-pid", &pid, "--rest-s", "0.1", "-k", "2"]);
    assert_eq!(code, 0, "{json}");
    for moment in ["before", "opened", "received", "received_rested", "loaded"] {
        assert!(json["memory"][moment]["resident_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{moment}: {json}");
    }
    assert_eq!(json["deliveries"]["received"], json["publications"].as_u64().expect("a count") * 8, "{json}");
    let (_, json) = websocket_fanout(&gateway, &["--server-pid", &pid]);
    assert!(json["memory"].is_null(), "{json}");
}

#[test]
fn memory_is_read_in_every_round_of_coming_and_leaving() {
    let gateway = Gateway::start(Fault::None);
    let (url, ingest) = (format!("ws://{}/connection", gateway.clients), gateway.ingest.to_string());
    let (control, pid) = (gateway.control.to_string(), std::process::id().to_string());
    let server = ["memory", "--url", &url, "--ingest", &ingest, "--control", &control, "--server-pid", &pid];
    let (code, json) =
        run(&[&server[..], &["-n", "6", "--rounds", "2", "--publications", "3", "--rest-s", "0.1"]].concat());
    assert_eq!(code, 0, "{json}");
    let rounds = json["rounds"].as_array().expect("rounds");
    assert_eq!(rounds.len(), 2, "{json}");
    for one in rounds {
        for moment in ["opened", "received", "left"] {
            assert!(one[moment]["resident_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{moment}: {one}");
        }
    }
}

#[test]
fn connect_holds_and_answers_pings() {
    let gateway = Gateway::start(Fault::None);
    let url = format!("ws://{}/connection", gateway.clients);
    let (code, json) = run(&["connect", "--url", &url, "-n", "20", "--hold-s", "1", "--connect-rate", "200"]);
    assert_eq!(code, 0, "{json}");
    assert_eq!((&json["opened"], &json["open_at_end"], &json["pings"]), (&20.into(), &20.into(), &20.into()), "{json}");
}

#[test]
fn echo_is_checked_per_connection() {
    let gateway = Gateway::start(Fault::None);
    let url = format!("ws://{}/echo", gateway.clients);
    let (code, json) = run(&[
        "echo",
        "--protocol",
        "websocket",
        "--url",
        &url,
        "-n",
        "3",
        "-k",
        "2",
        "--seconds",
        "0.3",
        "--warmup-s",
        "0.1",
    ]);
    assert_eq!(code, 0, "{json}");
    assert!(json["echoes"].as_u64().expect("a count") > 10, "{json}");
}

fn presence(gateway: &Gateway, extra: &[&str]) -> (i32, Value) {
    let (url, control) = (format!("ws://{}/connection", gateway.clients), gateway.control.to_string());
    let common = ["presence", "--url", &url, "--control", &control, "--churn-channels", "crowd:c,plain:c=5", "-n", "9"];
    let short = ["--watchers", "2", "-k", "4", "--workers", "2", "--seconds", "0.2", "--warmup-s", "0.1"];
    run(&[&common[..], &short, extra].concat())
}

#[test]
fn presence_counts_events_pushes_bytes_and_members() {
    let (code, json) = presence(&Gateway::start(Fault::None), &["--churners", "0,3", "--rounds", "2"]);
    assert_eq!(code, 0, "{json}");
    let windows = json["windows"].as_array().expect("windows");
    let order: Vec<_> = windows.iter().map(|one| (one["channel"].as_str(), one["churners"].as_u64())).collect();
    let (crowd, plain) = (Some("crowd:c"), Some("plain:c"));
    let round = [(crowd, Some(9)), (plain, Some(5)), (crowd, Some(3)), (plain, Some(3))];
    assert_eq!(order, [round, round].concat());
    for one in windows {
        let events = one["events"].as_u64().expect("a count");
        let with_presence = one["channel"] == "crowd:c";
        assert!(events > 10 && events.is_multiple_of(2), "who leaves comes back: {one}");
        assert_eq!(one["pushes_to_watchers"], if with_presence { events * 2 } else { 0 }, "{one}");
        assert_eq!(one["members"], if with_presence { 11.into() } else { Value::Null }, "{one}");
        assert_eq!(one["latency"]["count"], events, "{one}");
        // The two answers, headers included, by turns.
        let bytes =
            ["{\"id\":1000000,\"unsubscribe\":{}}", "{\"id\":1000000,\"subscribe\":{}}"].map(|text| text.len() + 2);
        assert_eq!(one["written_bytes_per_event"], (bytes[0] + bytes[1]) as f64 / 2.0, "{one}");
    }
}

#[test]
fn a_member_too_few_or_told_too_much_fails_the_run() {
    for (fault, problem) in [(Fault::Uncounted, "members, not 11"), (Fault::ToldToAll, "members were told")] {
        let (code, json) = presence(&Gateway::start(fault), &[]);
        assert_eq!(code, 2, "{fault:?}: {json}");
        assert!(json["problems"].to_string().contains(problem), "{fault:?}: {json}");
    }
}

/// Two channels, one written by a client and one over ingest.
fn fleet(fault: Fault, extra: &[&str]) -> (i32, Value) {
    let gateway = Gateway::start(fault);
    let (url, ingest) = (format!("ws://{}/connection", gateway.clients), gateway.ingest.to_string());
    let common = ["fleet", "--url", &url, "--ingest", &ingest, "-n", "8", "-m", "2", "-s", "1", "--workers", "2"];
    let load = ["--written-by-clients", "1", "--publishers", "1", "--rate-per-channel", "20", "--seconds", "0.7"];
    run(&[&common[..], &load, extra].concat())
}

#[test]
fn a_fleet_run_counts_what_every_client_got_from_both_kinds_of_writers() {
    let (code, json) = fleet(Fault::None, &[]);
    assert_eq!(code, 0, "{json}");
    let published = |name: &str| json[name].as_u64().expect("a count");
    assert!(published("published_by_clients") > 5 && published("published_over_ingest") > 5, "{json}");
    let published = published("published_by_clients") + published("published_over_ingest");
    assert_eq!(json["deliveries"]["received"], published * 4, "{json}");
    assert_eq!((&json["settled"], &json["whole_at_end"], &json["established"]), (&true.into(), &8.into(), &8.into()));
}

#[test]
fn a_fleet_run_tells_lost_from_doubled_from_late() {
    // One in each channel.
    for (fault, kind) in [(Fault::Lost, "lost"), (Fault::Doubled, "duplicates"), (Fault::Late, "disordered")] {
        let (code, json) = fleet(fault, &[]);
        assert_eq!(code, 2, "{fault:?}: {json}");
        for one in ["lost", "duplicates", "disordered", "announced", "missing_at_end"] {
            assert_eq!(json["deliveries"][one], if one == kind { 2 } else { 0 }, "{fault:?}, {one}: {json}");
        }
        assert!(json["deliveries"]["wrong_offsets"].as_u64() >= Some(2), "{fault:?}: {json}");
    }
    assert_eq!(fleet(Fault::Lost, &["--allow-announced"]).0, 2, "what was not announced fails it");
    assert_eq!(fleet(Fault::Lost, &["--lossy"]).0, 0);
}

#[test]
fn ingest_counts_acknowledgements_and_respects_credit() {
    let gateway = Gateway::start(Fault::None);
    let ingest = gateway.ingest.to_string();
    let (code, json) =
        run(&["ingest", "--ingest", &ingest, "-n", "2", "-m", "5", "--count", "10000", "--idempotency-keys"]);
    assert_eq!(code, 0, "{json}");
    assert_eq!(json["acknowledged"], 10_000, "{json}");
    let (code, json) = run(&[
        "ingest",
        "--ingest",
        &ingest,
        "-n",
        "1",
        "-m",
        "1",
        "--seconds",
        "0.3",
        "--rate",
        "1000",
        "--warmup-s",
        "0",
    ]);
    assert_eq!(code, 0, "{json}");
    let acknowledged = json["acknowledged"].as_u64().expect("a count");
    assert!((200..=301).contains(&acknowledged), "{json}");
}

#[test]
fn nothing_listening_is_an_error_with_a_reason() {
    let output = Command::new(env!("CARGO_BIN_EXE_ringway-loadgen"))
        .args(["connect", "--url", "ws://127.0.0.1:1/", "-n", "2", "--stall-s", "2"])
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("refused"), "{output:?}");
}
