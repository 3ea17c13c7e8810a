//! Set-up: two fake gateways over one set of channels; the first says going-away in the middle of a stream. Claim: the
//! client sends nothing new there, waits for its acknowledgements up to the deadline, goes on at the next address, and
//! each channel keeps its order.

#![allow(clippy::disallowed_methods, reason = "a test has real time")]

mod fake_gateway;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fake_gateway::{Behaviour, Gateway};
use ringway_ingest::{Client, Config, Options};

fn two(first: Behaviour) -> (Gateway, Gateway) {
    let second = Gateway::start(Behaviour::default());
    let first = Behaviour { leave_to: vec![second.address.clone()], ..first };
    (Gateway::start_with(first, Arc::clone(&second.broker)), second)
}

fn publish(client: &Client, numbers: std::ops::Range<u32>) {
    for number in numbers {
        client.submit_blocking(&format!("c{}", number % 3), &number.to_le_bytes(), &Options::default()).unwrap();
    }
}

fn assert_ordered(gateway: &Gateway, count: usize) {
    let broker = gateway.broker.lock().unwrap();
    let mut total = 0;
    for (channel, log) in &broker.channels {
        total += log.payloads.len();
        let numbers: Vec<u32> =
            log.payloads.iter().map(|bytes| u32::from_le_bytes(bytes[..].try_into().unwrap())).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{channel}");
    }
    assert_eq!(total, count);
}

#[test]
fn moves_on_when_all_is_answered() {
    // The hint of the frame is the only way to the second gateway.
    // Answers in portions keep something outstanding, so only the going-away itself can stop the stream. The client
    // may have sent a window more before it hears of it.
    let (first, second) =
        two(Behaviour { leave_after: 500, credit_messages: 100, shuffle: true, ..Behaviour::default() });
    let client = Client::connect(Config::new(first.address.clone(), "dev")).unwrap();
    publish(&client, 0..5_000);
    client.flush(Duration::from_secs(10)).unwrap();
    assert_eq!(client.stats().node.as_deref(), Some(&*second.address));
    assert_eq!(first.controls.goodbyes.load(Ordering::Relaxed), 1);
    let at_first = first.controls.publishes.load(Ordering::Relaxed);
    let at_second = second.controls.publishes.load(Ordering::Relaxed);
    assert!((500..=700).contains(&at_first), "{at_first}");
    assert_eq!(at_first + at_second, 5_000, "what was acknowledged is not sent again");
    assert_ordered(&second, 5_000);
}

#[test]
fn moves_on_at_the_deadline_and_sends_again() {
    let (first, second) =
        two(Behaviour { leave_after: 50, leave_deadline_ms: 150, credit_messages: 60, ..Behaviour::default() });
    first.controls.hold.store(true, Ordering::Relaxed);
    let begin = Instant::now();
    let client = Client::connect(Config::new(first.address.clone(), "dev")).unwrap();
    publish(&client, 0..1_000);
    client.flush(Duration::from_secs(10)).unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(150), "it must wait for the deadline");
    assert_eq!(second.controls.publishes.load(Ordering::Relaxed), 1_000, "everything is sent again");
    assert_ordered(&second, 1_000);
}

#[test]
fn several_addresses_are_tried_in_turn() {
    let second = Gateway::start(Behaviour::default());
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut config = Config::new(gone, "dev");
    config.addresses.push(second.address.clone());
    let client = Client::connect(config).unwrap();
    assert_eq!(client.stats().node.as_deref(), Some(&*second.address));
}
