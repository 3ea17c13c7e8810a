//! Clients' events at a backend on the ingest port, and its answers, with the published SDKs (`tests/sdk/events.mjs`, `.py`).
//!
//! Set-up: a server that asks about connects, subscribes, publishes and rpc, and a backend that is written with the Rust
//! client library. Claim: clients get what the backend says, in both encodings; a slow answer holds up nothing else; the
//! backend hears everything that a client did, in order, to its disconnect.
#![allow(clippy::print_stdout, reason = "what the scripts said belongs into the output of the test")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time and start real threads")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ringway_ingest::{Client, Config, ConnectReply, Event, EventOptions, Happened, Reply, SubscribeReply};
use ringway_tests::backend::DEV_TOKEN;
use ringway_tests::{Script, Server, eventually};

/// Answers to `slow` come after this: several pings later.
const SLOW: Duration = Duration::from_secs(3);

/// The scripts have time-outs of their own (SDKs give up after 5 s), so on a small machine they run one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// What each client did, by client id: its user, and the events in order.
type Heard = Arc<Mutex<HashMap<String, (String, Vec<String>)>>>;

fn error(code: u32, message: &str) -> Reply {
    Reply::Error { code, message: message.into(), temporary: false }
}

fn connect(data: &[u8]) -> Reply {
    let user =
        serde_json::from_slice::<serde_json::Value>(data).unwrap_or_default()["user"].as_str().map(str::to_owned);
    match user.as_deref() {
        Some("banned") => Reply::Disconnect { code: 4500, reason: "banned".into() },
        None | Some("stranger") => error(1001, "who are you"),
        Some(user) => Reply::Connect(ConnectReply {
            user: user.into(),
            info: br#"{"name":"A"}"#.to_vec(),
            data: serde_json::json!({ "welcome": user }).to_string().into_bytes(),
            subscriptions: vec![("backend:from-connect".into(), SubscribeReply::default())],
            ..ConnectReply::default()
        }),
    }
}

fn subscribe(channel: &str) -> Reply {
    if channel.starts_with("asked:secret") {
        return error(1003, "not for you");
    }
    Reply::Subscribe(SubscribeReply {
        info: br#"{"role":"guest"}"#.to_vec(),
        data: br#"{"topic":"tea"}"#.to_vec(),
        ..SubscribeReply::default()
    })
}

fn publish(data: &[u8]) -> Reply {
    match data {
        br#"{"text":"rude"}"# | br#"{"text": "rude"}"# => Reply::Publish(br#"{"text":"censored"}"#.to_vec()),
        br#"{"text":"forbidden"}"# | br#"{"text": "forbidden"}"# => error(1005, "no"),
        _ => Reply::Done,
    }
}

/// The name of an event in the list of what was heard, and the answer.
fn serve(event: &Event<'_>, client: &Arc<Client>) -> (String, Reply) {
    match event.client.what {
        Happened::Connect { data, .. } => ("connect".into(), connect(data)),
        Happened::Subscribe { channel, .. } => (format!("subscribe {channel}"), subscribe(channel)),
        Happened::Publish { data, .. } => ("publish".into(), publish(data)),
        Happened::Rpc { method: "echo", data } => ("rpc echo".into(), Reply::Rpc(data.to_vec())),
        Happened::Rpc { method: "slow", .. } => {
            let (id, client) = (event.id, Arc::clone(client));
            std::thread::spawn(move || {
                std::thread::sleep(SLOW);
                client.reply(id, &Reply::Rpc(br#""late""#.to_vec()));
            });
            ("rpc slow".into(), Reply::Later)
        }
        Happened::Rpc { .. } => ("rpc".into(), error(104, "method not found")),
        Happened::Unsubscribe { channel, .. } => (format!("unsubscribe {channel}"), Reply::Done),
        Happened::Disconnect { .. } => ("disconnect".into(), Reply::Done),
        Happened::Message { .. } => ("message".into(), Reply::Done),
    }
}

fn backend(server: &Server, heard: &Heard) -> Arc<Client> {
    let config = Config::new(server.ingest.to_string(), DEV_TOKEN);
    let client = Arc::new(Client::connect(config).expect("connect to the ingest port"));
    let (own, heard) = (Arc::clone(&client), Arc::clone(heard));
    let handler = move |event: &Event<'_>| {
        let (name, reply) = serve(event, &own);
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        let (user, names) = heard.entry(event.client.client.to_owned()).or_default();
        event.client.user.clone_into(user);
        names.push(name);
        reply
    };
    client.events(EventOptions::default(), handler).expect("takes events");
    client
}

#[test]
fn a_backend_decides_and_hears_everything_in_order_node() {
    decides("events.mjs");
}

#[test]
fn a_backend_decides_and_hears_everything_in_order_python() {
    decides("events.py");
}

fn decides(script: &str) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let file = ringway_tests::server::root().join("tests/sdk/namespaces.toml").display().to_string();
    let settings = [
        "limits.ping_interval_ms=1000",
        "limits.pong_timeout_ms=900",
        "client.personal_channel=false",
        "client.connect_events=ask",
        "client.rpc_events=true",
    ];
    let mut arguments = vec!["--shards", "2", "--config", &file];
    for setting in settings {
        arguments.extend_from_slice(&["--set", setting]);
    }
    let mut server = Server::start(&arguments);
    let heard = Heard::default();
    let _backend = backend(&server, &heard);
    for encoding in ["json", "protobuf"] {
        let said = Script::run(&mut server, &[script, encoding], Duration::from_secs(120));
        print!("{said}");
        assert_eq!(said.lines().filter(|line| line.starts_with("ok: ")).count(), 7, "{said}");
        let user = format!("alice-{encoding}");
        let of_alice = || {
            let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            heard.values().find(|(name, _)| *name == user).map(|(_, names)| names.clone()).unwrap_or_default()
        };
        eventually("the disconnect is heard", || of_alice().last().is_some_and(|name| name == "disconnect"));
        let (room, secret) = (format!("asked:room-{encoding}"), format!("asked:secret-{encoding}"));
        let expected = [
            "connect".to_owned(),
            format!("subscribe {room}"),
            format!("subscribe {secret}"),
            "publish".into(),
            "publish".into(),
            "publish".into(),
            "publish".into(),
            "rpc echo".into(),
            "rpc".into(),
            "rpc slow".into(),
            format!("unsubscribe {room}"),
            "rpc".into(),
            "disconnect".into(),
        ];
        assert_eq!(of_alice(), expected);
    }
}
