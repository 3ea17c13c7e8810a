//! Set-up: one client, one fake gateway that only answers. Claim: all of a long stream is acknowledged, in few writes.
//! The rate is printed: `cargo test -p ringway-ingest --profile fast --test throughput -- --nocapture`.

#![allow(clippy::disallowed_methods, reason = "a test has real time")]

mod fake_gateway;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fake_gateway::{Behaviour, Gateway};
use ringway_ingest::{Client, Config, Options};

#[test]
fn a_long_stream_is_acknowledged() {
    let publishes: u64 = if cfg!(debug_assertions) { 100_000 } else { 3_000_000 };
    let gateway = Gateway::start(Behaviour { discard: true, ..Behaviour::default() });
    let mut config = Config::new(gateway.address.clone(), "dev");
    let acked = Arc::new(AtomicU64::new(0));
    let sink = Arc::clone(&acked);
    config.on_outcomes = Some(Box::new(move |outcomes| {
        let count = outcomes.iter().filter(|outcome| outcome.result.is_ok()).count();
        sink.fetch_add(count as u64, Ordering::Relaxed);
    }));
    let client = Client::connect(config).unwrap();
    let begin = Instant::now();
    for _ in 0..publishes {
        client.submit_blocking("channel", br#"{"text":"about this long"}"#, &Options::default()).unwrap();
    }
    client.close(Duration::from_secs(60)).unwrap();
    let seconds = begin.elapsed().as_secs_f64();
    assert_eq!(acked.load(Ordering::Relaxed), publishes);
    eprintln!("{publishes} publishes acknowledged in {seconds:.2} s: {:.0} per second", publishes as f64 / seconds);
}
