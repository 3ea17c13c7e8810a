//! Set-up: a fake gateway that answers calls by their channel or user. Claim: each call gets its own answer; a refusal,
//! a cut, silence, a missing feature and a closed client are told apart.

#![allow(clippy::disallowed_methods, reason = "a test has real time")]

mod fake_gateway;

use std::time::Duration;

use fake_gateway::{Behaviour, Gateway};
use ringway_ingest::{
    CallError, Channels, Client, Config, Epoch, Grant, HistoryOptions, IngestError, Member, PresenceStats, Since,
    Subscription, Who,
};

fn connect(behaviour: Behaviour) -> (Gateway, Client) {
    let gateway = Gateway::start(behaviour);
    let mut config = Config::new(gateway.address.clone(), "dev");
    config.call_timeout = Duration::from_secs(30);
    let client = Client::connect(config).unwrap();
    (gateway, client)
}

#[test]
fn each_call_gets_its_answer() {
    let (_gateway, client) = connect(Behaviour::default());
    let member = Member { client: "c-1".into(), user: "ann".into(), conn_info: b"1".to_vec(), chan_info: Vec::new() };
    assert_eq!(client.presence("news"), Ok(vec![member.clone()]));
    assert_eq!(client.presence_stats("news"), Ok(PresenceStats { clients: 3, users: 2 }));
    let since = Some(Since { offset: 7, epoch: None });
    let history = client.history("news", HistoryOptions { limit: -1, since, reverse: false }).unwrap();
    assert_eq!((history.offset, history.epoch), (9, Epoch((255, 1))));
    let publications: Vec<_> = history.publications.iter().map(|one| (one.offset, &*one.data)).collect();
    assert_eq!(publications, [(8, &b"[8]"[..]), (9, b"[9]")]);
    assert_eq!((&history.publications[0].publisher, &history.publications[1].publisher), (&Some(member), &None));
    assert_eq!(client.history_remove("news"), Ok(()));
    let subscription = Subscription { channel: "news", grant: Grant::default() };
    assert_eq!(client.subscribe("ann", subscription, since), Ok(3));
    assert_eq!(client.unsubscribe(Who { user: "bo", client: "c-1" }, "news"), Ok(2));
    assert_eq!(client.disconnect("ann", 4_500, "bye", &["c-1"]), Ok(3));
    assert_eq!(client.refresh("ann", Some(Duration::from_secs(5)), None), Ok(3));
    assert_eq!(client.expire("ann"), Ok(3));
    assert_eq!(client.message("ann", b"{}"), Ok(3));
    assert_eq!(client.channels("", 10), Ok(Channels { total: 7, channels: vec![("news".into(), 3)] }));
}

#[test]
fn many_threads_call_at_once() {
    let (gateway, client) = connect(Behaviour::default());
    std::thread::scope(|scope| {
        for thread in 1..9u16 {
            let client = &client;
            scope.spawn(move || {
                let user = "u".repeat(usize::from(thread));
                for _ in 0..200 {
                    assert_eq!(client.message(&*user, b"1"), Ok(thread), "another thread's answer");
                }
            });
        }
    });
    assert_eq!(gateway.violations(), Vec::<String>::new());
}

#[test]
fn what_goes_wrong_is_told_apart() {
    let (gateway, client) = connect(Behaviour::default());
    let Err(CallError::Refused(refusal)) = client.presence("refuse") else { panic!() };
    assert_eq!(refusal.error(), Some(IngestError::NotAvailable));
    assert_eq!(client.presence(&"x".repeat(70_000)), Err(CallError::TooLarge));
    assert_eq!(client.presence("cut"), Err(CallError::Lost));
    // It comes back by itself.
    client.wait_connected(Duration::from_secs(5)).unwrap();
    assert!(matches!(client.presence_stats("news"), Ok(_) | Err(CallError::NotConnected)));
    drop(gateway);

    let gateway = Gateway::start(Behaviour::default());
    let mut config = Config::new(gateway.address.clone(), "dev");
    config.call_timeout = Duration::from_millis(1);
    assert_eq!(Client::connect(config).unwrap().presence("mute"), Err(CallError::Timeout));

    let (_older, client) = connect(Behaviour { features: 0, ..Behaviour::default() });
    assert_eq!(client.history_remove("news"), Err(CallError::NotSupported));
}
