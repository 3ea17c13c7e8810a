//! Set-up: a fake gateway with small windows, which counts what is outstanding. Claim: the client never exceeds the
//! window in messages or bytes, uses it fully, follows its changes, and its own bounds hold while the gateway is slow.

#![allow(clippy::disallowed_methods, reason = "a test has real time")]

mod fake_gateway;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fake_gateway::{Behaviour, Gateway};
use ringway_ingest::{Client, Config, Options, PublishError};

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn messages_stay_in_the_window_as_it_grows_and_shrinks() {
    let gateway = Gateway::start(Behaviour { credit_messages: 10, ..Behaviour::default() });
    gateway.controls.hold.store(true, Ordering::Relaxed);
    let client = Client::connect(Config::new(gateway.address.clone(), "dev")).unwrap();
    for _ in 0..1_000 {
        client.submit("c", b"1", &Options::default()).unwrap();
    }
    let received = || gateway.controls.publishes.load(Ordering::Relaxed);
    eventually("the window is used", || received() == 10);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(received(), 10);

    gateway.controls.credit_messages.store(15, Ordering::Relaxed);
    eventually("the larger window is used", || received() == 25);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(received(), 25);

    // Shrunk to 5: no more is sent until fewer than 5 are outstanding, and then never more than that.
    gateway.controls.credit_messages.store(-20, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(50));
    gateway.controls.outstanding_high.store(0, Ordering::Relaxed);
    gateway.controls.hold.store(false, Ordering::Relaxed);
    client.flush(Duration::from_secs(10)).unwrap();
    let high = gateway.controls.outstanding_high.load(Ordering::Relaxed);
    assert!(high <= 5, "{high} outstanding in a window of 5");
    assert_eq!(gateway.violations(), Vec::<String>::new());
    client.close(Duration::from_secs(5)).unwrap();
    eventually("a goodbye", || gateway.controls.goodbyes.load(Ordering::Relaxed) == 1);
}

#[test]
fn bytes_stay_in_the_window() {
    let behaviour = Behaviour { credit_bytes: 1_000, publication_bytes_max: 1_000, ..Behaviour::default() };
    let gateway = Gateway::start(behaviour);
    gateway.controls.hold.store(true, Ordering::Relaxed);
    let client = Client::connect(Config::new(gateway.address.clone(), "dev")).unwrap();
    for size in [300, 300, 300, 300, 1_000, 0, 1_000].repeat(20) {
        client.submit("c", &vec![b'1'; size], &Options::default()).unwrap();
    }
    eventually("the window is used", || client.stats().outstanding_messages == 3);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(client.stats().outstanding_bytes, 900);
    gateway.controls.hold.store(false, Ordering::Relaxed);
    client.flush(Duration::from_secs(10)).unwrap();
    assert_eq!(gateway.violations(), Vec::<String>::new());
}

#[test]
fn a_full_buffer_refuses_or_waits() {
    let gateway = Gateway::start(Behaviour { credit_messages: 2, ..Behaviour::default() });
    gateway.controls.hold.store(true, Ordering::Relaxed);
    let mut config = Config::new(gateway.address.clone(), "dev");
    config.buffered_messages_max = 5;
    config.buffered_bytes_max = 100;
    let client = Client::connect(config).unwrap();
    let options = Options::default();
    assert!(matches!(client.publish("c", &[b'1'; 100], &options), Err(PublishError::Invalid(_))));
    let handles: Vec<_> = (0..5).map(|_| client.publish("c", b"1", &options).unwrap()).collect();
    assert_eq!(client.publish("c", b"1", &options).err(), Some(PublishError::Full));
    assert_eq!(handles[0].wait_timeout(Duration::from_millis(20)), Err(PublishError::Timeout));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.publish_blocking("c", b"1", &options).unwrap().wait());
        std::thread::sleep(Duration::from_millis(50));
        assert!(!waiting.is_finished(), "it must wait for room");
        gateway.controls.hold.store(false, Ordering::Relaxed);
        assert_eq!(waiting.join().unwrap().unwrap().offset, 6);
    });
    let offsets: Vec<u64> = handles.iter().map(|handle| handle.wait().unwrap().offset).collect();
    assert_eq!(offsets, [1, 2, 3, 4, 5]);
    // In bytes: 33 of the 100 stay free behind one of 67.
    gateway.controls.hold.store(true, Ordering::Relaxed);
    client.flush(Duration::from_secs(5)).unwrap();
    client.publish("c", &[b'1'; 66], &options).unwrap();
    assert_eq!(client.publish("c", &[b'1'; 33], &options).err(), Some(PublishError::Full));
    client.publish("c", &[b'1'; 32], &options).unwrap();
}
