//! Set-up: a fake gateway with events that it sends until they are done, and that cuts connections. Claim: each event
//! comes to the handler, in order per client; what it replies goes out once; a cut loses nothing; a leaving client
//! takes no more and finishes what it has.

#![allow(clippy::disallowed_methods, reason = "a test has real time")]

mod fake_gateway;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use fake_gateway::{Behaviour, Gateway};
use ringway_ingest::{
    Client, ClientEvent, Config, ConnectError, ConnectReply, EventId, EventKind, EventKinds, EventOptions, Happened,
    Reply, SubscribeReply, Transport,
};

fn event<'a>(client: &'a str, ask: bool, what: Happened<'a>) -> ClientEvent<'a> {
    ClientEvent { ask, transport: Transport::Json, client, user: "ann", meta: b"", what }
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn connect(gateway: &Gateway) -> Client {
    let mut config = Config::new(gateway.address.clone(), "dev");
    config.backoff_min = Duration::from_millis(1);
    config.backoff_max = Duration::from_millis(20);
    Client::connect(config).unwrap()
}

#[test]
fn every_reply_becomes_its_verdict() {
    let gateway = Gateway::start(Behaviour::default());
    let client = connect(&gateway);
    let options = EventOptions { threads: 2, window: 64, ..EventOptions::default() };
    let granted = SubscribeReply { info: b"1".to_vec(), ..SubscribeReply::default() };
    let reply = move |event: &ringway_ingest::Event<'_>| match (event.client.client, event.client.what) {
        ("ok", _) => Reply::Done,
        ("error", _) => Reply::Error { code: 403, message: "no".into(), temporary: false },
        ("close", _) => Reply::Disconnect { code: 4_500, reason: "bye".into() },
        ("panic", _) => panic!("expected by the test"),
        ("wrong", _) => Reply::Publish(Vec::new()),
        ("large", _) => Reply::Rpc(vec![b'1'; 2 << 20]),
        (_, Happened::Connect { .. }) => Reply::Connect(ConnectReply {
            user: "ann".into(),
            expires_in: Some(Duration::from_secs(9)),
            subscriptions: vec![("news".into(), granted.clone())],
            ..ConnectReply::default()
        }),
        (_, Happened::Subscribe { .. }) => Reply::Subscribe(granted.clone()),
        (_, Happened::Publish { .. }) => Reply::Publish(b"2".to_vec()),
        (_, Happened::Rpc { .. }) => Reply::Rpc(b"3".to_vec()),
        (_, other) => panic!("{other:?}"),
    };
    client.events(options, reply).unwrap();
    assert!(matches!(client.events(options, |_| Reply::Done), Err(ConnectError::Config(_))));
    let rpc = Happened::Rpc { method: "m", data: b"" };
    let sent = [
        (
            "ok",
            true,
            Happened::Connect { name: "", version: "", info: b"", data: b"" },
            "Connect(Admission { user: \"\",",
        ),
        ("ok", true, Happened::Subscribe { channel: "c", data: b"" }, "Subscribe(Grant { info: [], data: [],"),
        ("ok", true, Happened::Publish { channel: "c", data: b"1" }, "Publish { data: None }"),
        ("ok", true, rpc, "Rpc { data: [] }"),
        ("ok", false, Happened::Message { data: b"1" }, ""),
        ("error", true, rpc, "Error { code: 403, temporary: false, message: \"no\" }"),
        ("error", false, rpc, ""),
        ("close", true, rpc, "Disconnect { code: 4500, reason: \"bye\" }"),
        ("panic", true, rpc, "Error { code: 100, temporary: true,"),
        ("panic", false, rpc, ""),
        ("wrong", true, rpc, "Error { code: 100, temporary: true,"),
        ("large", true, rpc, "Error { code: 100, temporary: true,"),
        (
            "x",
            true,
            Happened::Connect { name: "", version: "", info: b"", data: b"" },
            "Connect(Admission { user: \"ann\",",
        ),
        ("x", true, Happened::Subscribe { channel: "c", data: b"" }, "Subscribe(Grant { info: [49],"),
        ("x", true, Happened::Publish { channel: "c", data: b"1" }, "Publish { data: Some([50]) }"),
        ("x", true, rpc, "Rpc { data: [51] }"),
    ];
    for (number, (client, ask, what, _)) in sent.iter().enumerate() {
        gateway.controls.event(number as u64, &event(client, *ask, *what));
    }
    eventually("all are done", || gateway.controls.replies().len() == sent.len());
    for (number, verdict) in gateway.controls.replies() {
        let wanted = sent[number as usize].3;
        assert_eq!(verdict.is_some(), !wanted.is_empty(), "{number}");
        let verdict = verdict.unwrap_or_default();
        assert!(verdict.starts_with(wanted), "{number}: {verdict} is not {wanted}");
    }
    assert_eq!(client.stats().handler_panics, 2);
    let takes = gateway.controls.takes.lock().unwrap().clone();
    assert_eq!((takes.len(), takes[0].kinds, takes[0].window), (1, EventKinds::ALL, 64));
    assert_eq!(gateway.violations(), Vec::<String>::new());
}

#[test]
fn a_hundred_cuts_lose_nothing_and_keep_each_clients_order() {
    let gateway = Gateway::start(Behaviour { cut_after_events_max: 40, ..Behaviour::default() });
    let seen: Arc<Mutex<HashMap<String, Vec<u64>>>> = Arc::default();
    let client = connect(&gateway);
    let log = Arc::clone(&seen);
    let handler = move |event: &ringway_ingest::Event<'_>| {
        log.lock().unwrap().entry(event.client.client.to_owned()).or_default().push(event.id.number);
        Reply::Done
    };
    client.events(EventOptions::default(), handler).unwrap();
    for number in 0..2_000 {
        let client = format!("c{}", number % 7);
        gateway.controls.event(number, &event(&client, number % 3 == 0, Happened::Message { data: b"" }));
    }
    eventually("all are done", || gateway.controls.events.lock().unwrap().is_empty());
    let connections = gateway.controls.connections.load(Ordering::Relaxed);
    assert!(connections > 50, "{connections} connections");
    for (client, numbers) in seen.lock().unwrap().iter() {
        // Again only what was not done before the cut, and then in order again: the first times are in order.
        let mut firsts = Vec::new();
        for number in numbers {
            if !firsts.contains(number) {
                firsts.push(*number);
            }
        }
        assert!(firsts.is_sorted(), "{client}");
        let own: Vec<u64> = (0..2_000).filter(|number| format!("c{}", number % 7) == *client).collect();
        assert_eq!(firsts, own, "{client}");
    }
    assert_eq!(gateway.violations(), Vec::<String>::new());
    client.close(Duration::from_secs(5)).unwrap();
}

#[test]
fn one_client_waits_for_its_own_events_and_for_nobody_elses() {
    let gateway = Gateway::start(Behaviour::default());
    let client = Arc::new(connect(&gateway));
    let later: Arc<OnceLock<EventId>> = Arc::default();
    let held = Arc::clone(&later);
    let (release, gate) = std::sync::mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let handler = move |event: &ringway_ingest::Event<'_>| match event.client.client {
        "slow" if event.id.number == 0 => {
            gate.lock().unwrap().recv().unwrap();
            Reply::Done
        }
        "later" => {
            held.set(event.id).unwrap();
            Reply::Later
        }
        _ => Reply::Done,
    };
    client.events(EventOptions { threads: 8, ..EventOptions::default() }, handler).unwrap();
    let message = Happened::Message { data: b"" };
    gateway.controls.event(0, &event("slow", false, message));
    gateway.controls.event(1, &event("slow", false, message));
    gateway.controls.event(2, &event("later", true, Happened::Rpc { method: "", data: b"" }));
    let names: Vec<String> = (0..40).map(|n| format!("n{n}")).collect();
    for (index, name) in names.iter().enumerate() {
        gateway.controls.event(10 + index as u64, &event(name, false, message));
    }
    // Those that share the slow one's thread wait for it; others do not.
    eventually("others are done", || gateway.controls.replies().len() > 20);
    assert!(gateway.controls.replies().iter().all(|(number, _)| *number > 2));
    release.send(()).unwrap();
    eventually("all but one", || gateway.controls.events.lock().unwrap().len() == 1);
    eventually("the handler has kept it", || later.get().is_some());
    assert!(client.reply(*later.get().unwrap(), &Reply::Rpc(b"1".to_vec())));
    eventually("all", || gateway.controls.events.lock().unwrap().is_empty());
    let order: Vec<u64> = gateway.controls.replies().into_iter().map(|(number, _)| number).filter(|n| *n < 2).collect();
    assert_eq!(order, [0, 1]);
}

#[test]
fn close_takes_no_more_and_finishes_what_it_has() {
    let gateway = Gateway::start(Behaviour::default());
    let client = connect(&gateway);
    let begun = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&begun);
    let kinds = EventKinds::default().with(EventKind::Message);
    let options = EventOptions { kinds, ..EventOptions::default() };
    let handler = move |_: &ringway_ingest::Event<'_>| {
        count.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(100));
        Reply::Done
    };
    client.events(options, handler).unwrap();
    gateway.controls.event(1, &event("a", false, Happened::Message { data: b"" }));
    eventually("the handler runs", || begun.load(Ordering::Relaxed) == 1);
    client.close(Duration::from_secs(5)).unwrap();
    eventually("a goodbye", || gateway.controls.goodbyes.load(Ordering::Relaxed) == 1);
    assert_eq!(gateway.controls.replies(), [(1, None)]);
    let takes: Vec<EventKinds> = gateway.controls.takes.lock().unwrap().iter().map(|take| take.kinds).collect();
    assert_eq!(takes, [kinds, EventKinds::default()]);
}

#[test]
fn a_gateway_without_events_is_not_asked_for_any() {
    let gateway = Gateway::start(Behaviour { features: 0, ..Behaviour::default() });
    let client = connect(&gateway);
    client.events(EventOptions::default(), |_| Reply::Done).unwrap();
    let handle = client.publish("c", b"1", &ringway_ingest::Options::default()).unwrap();
    handle.wait().unwrap();
    assert!(gateway.controls.takes.lock().unwrap().is_empty());
    let none = EventOptions { threads: 0, ..EventOptions::default() };
    assert!(matches!(client.events(none, |_| Reply::Done), Err(ConnectError::Config(_))));
}
