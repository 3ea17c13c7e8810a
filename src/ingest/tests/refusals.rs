//! Set-up: fake gateways that refuse, go silent or are not there. Claim: what is final is told at once and to everyone
//! who waits, what is not is tried again, and a dead peer is noticed.

#![allow(clippy::disallowed_methods, reason = "a test has real time")]

mod fake_gateway;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fake_gateway::{Behaviour, Gateway};
use ringway_ingest::{Client, Config, ConnectError, IngestError, Options, PayloadKind, PublishError};

#[test]
fn a_wrong_token_is_final() {
    let gateway = Gateway::start(Behaviour::default());
    let client = Client::start(Config::new(gateway.address.clone(), "wrong")).unwrap();
    let early = client.publish("c", b"1", &Options::default());
    let Err(ConnectError::Refused(refusal)) = client.wait_connected(Duration::from_secs(5)) else {
        panic!("it must be refused");
    };
    assert_eq!(refusal.error(), Some(IngestError::BadToken));
    if let Ok(handle) = early {
        assert_eq!(handle.wait(), Err(PublishError::Failed(refusal.clone())));
    }
    assert_eq!(client.publish("c", b"1", &Options::default()).err(), Some(PublishError::Failed(refusal)));
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(gateway.controls.connections.load(Ordering::Relaxed), 1, "it must not try again");
}

#[test]
fn a_temporary_refusal_of_the_hello_is_tried_elsewhere() {
    let busy = Gateway::start(Behaviour { fatal: Some(IngestError::Shutdown), ..Behaviour::default() });
    let good = Gateway::start(Behaviour::default());
    let mut config = Config::new(busy.address.clone(), "dev");
    config.addresses.push(good.address.clone());
    let client = Client::connect(config).unwrap();
    assert_eq!(client.stats().node.as_deref(), Some(&*good.address));
    assert!(client.stats().last_error.contains("shutdown"));
}

#[test]
fn nobody_there_is_told_in_time() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut config = Config::new(gone.clone(), "dev");
    config.connect_timeout = Duration::from_millis(200);
    let Err(ConnectError::Unreachable(text)) = Client::connect(config) else { panic!("nobody is there") };
    assert!(text.contains(&gone), "{text}");
    assert!(matches!(Client::start(Config { addresses: vec![], ..Config::new("", "") }), Err(ConnectError::Config(_))));
}

#[test]
fn refused_publishes_reach_the_caller_and_others_go_on() {
    let behaviour = Behaviour { refuse: Some(("busy", IngestError::Busy)), ping: true, ..Behaviour::default() };
    let gateway = Gateway::start(behaviour);
    let client = Client::connect(Config::new(gateway.address.clone(), "dev")).unwrap();
    let options = Options { kind: PayloadKind::Bytes, idempotency_key: Some(b"mine") };
    let refused = client.publish("busy1", b"1", &options).unwrap();
    let taken = client.publish("free", b"2", &options).unwrap();
    let again = client.publish("free", b"2", &options).unwrap();
    let large = client.publish("free", &vec![0; 64 * 1024 + 1], &Options::default()).unwrap();
    let Err(PublishError::Refused(refusal)) = refused.wait() else { panic!("it must be refused") };
    assert!(refusal.temporary && refusal.error() == Some(IngestError::Busy));
    let first = taken.wait().unwrap();
    assert_eq!((first.offset, first.duplicate, first.epoch.to_string()), (1, false, "25.0".to_owned()));
    assert_eq!((again.wait().unwrap().offset, again.wait().unwrap().duplicate), (1, true));
    assert_eq!(large.wait(), Err(PublishError::Refused(IngestError::TooLarge.into())));
    assert_eq!(client.publish("", b"1", &options).err(), Some(PublishError::Invalid("a channel has 1 to 255 bytes")));
    assert!(client.publish(&"c".repeat(256), b"1", &options).is_err());
    assert!(client.publish("c", b"1", &Options { idempotency_key: Some(&[0; 65]), ..options }).is_err());
    let deadline = Instant::now() + Duration::from_secs(5);
    while gateway.controls.pongs.load(Ordering::Relaxed) == 0 {
        assert!(Instant::now() < deadline, "pings are answered");
        std::thread::sleep(Duration::from_millis(1));
    }
    client.close(Duration::from_secs(5)).unwrap();
}

#[test]
fn a_dead_peer_is_noticed_and_a_silent_one_pinged() {
    let broker = Arc::default();
    let dead = Gateway::start_with(Behaviour { mute: true, ..Behaviour::default() }, Arc::clone(&broker));
    let good = Gateway::start_with(Behaviour { idle_timeout_ms: 60, ..Behaviour::default() }, broker);
    let mut config = Config::new(dead.address.clone(), "dev");
    config.addresses.push(good.address.clone());
    config.ping_interval = Duration::from_millis(100);
    config.peer_timeout = Duration::from_millis(300);
    let begin = Instant::now();
    let client = Client::connect(config).unwrap();
    let handle = client.publish("c", b"1", &Options::default()).unwrap();
    assert_eq!(handle.wait().unwrap().offset, 1);
    assert!((Duration::from_millis(300)..Duration::from_millis(1_500)).contains(&begin.elapsed()));
    assert!(client.stats().last_error.contains("nothing heard"), "{:?}", client.stats());
    std::thread::sleep(Duration::from_millis(400));
    assert!(good.controls.pings.load(Ordering::Relaxed) >= 5, "an idle connection is kept alive at half its time");
    assert_eq!(client.stats().connections, 2, "and stays");
}

#[test]
fn closing_tells_everyone_who_waits() {
    let gateway = Gateway::start(Behaviour::default());
    gateway.controls.hold.store(true, Ordering::Relaxed);
    let client = Client::connect(Config::new(gateway.address.clone(), "dev")).unwrap();
    let handles: Vec<_> = (0..10).map(|_| client.publish("c", b"1", &Options::default()).unwrap()).collect();
    assert_eq!(client.close(Duration::from_millis(100)), Err(PublishError::Timeout));
    for handle in handles {
        assert_eq!(handle.try_get(), Some(Err(PublishError::Closed)));
    }
    let client = Client::connect(Config::new(gateway.address.clone(), "dev")).unwrap();
    let handle = client.publish("c", b"1", &Options::default()).unwrap();
    drop(client);
    assert_eq!(handle.wait(), Err(PublishError::Closed));
}

#[test]
fn a_panic_in_the_outcome_function_closes_the_client() {
    let gateway = Gateway::start(Behaviour::default());
    let mut config = Config::new(gateway.address.clone(), "dev");
    config.on_outcomes = Some(Box::new(|_| panic!("provoked by the test")));
    let client = Client::connect(config).unwrap();
    client.submit("c", b"1", &Options::default()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while client.submit("c", b"1", &Options::default()) != Err(PublishError::Closed) {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
}
