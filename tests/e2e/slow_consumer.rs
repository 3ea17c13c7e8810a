//! Set-up: four subscribers of one channel; one of them stops reading while publications of 32 KiB go on.
//! Claim: the stalled one is closed with 3008 (it can come back and recover) when its outbox is full; the other three
//! get every publication in order; nobody waits for the stalled one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringway_tests::{Client, Server, eventually, eventually_is};
use serde_json::json;

/// More than the socket buffers of both sides (about 6 MiB at most for the reader) and the outbox of 1 MiB together.
const PUBLICATIONS: u64 = 400;
const PAYLOAD_BYTES: usize = 32 * 1024;
const READERS: usize = 3;
/// How far a reader may be behind: half of its outbox.
const WINDOW: u64 = 16;

#[test]
fn one_stalled_client_is_closed_and_the_others_keep_receiving() {
    // It begins to read again only after all others are done, which must be soon enough to see the Close.
    let server = Server::start(&["--set", "limits.close_timeout_ms=60000"]);
    let mut stalled = Client::connect(&server);
    stalled.subscribe("firehose");
    let progress: Arc<[AtomicU64; READERS]> = Arc::default();
    let readers: Vec<_> = (0..READERS)
        .map(|n| {
            let mut reader = Client::connect(&server);
            reader.subscribe("firehose");
            let progress = Arc::clone(&progress);
            std::thread::spawn(move || {
                for offset in 1..=PUBLICATIONS {
                    assert_eq!(reader.publication("firehose").offset, offset);
                    progress[n].store(offset, Ordering::Relaxed);
                }
                reader.assert_alive();
            })
        })
        .collect();
    let payload = json!("x".repeat(PAYLOAD_BYTES));
    let mut slowest = Duration::ZERO;
    for offset in 1..=PUBLICATIONS {
        let start = Instant::now();
        server.publish("firehose", &payload);
        slowest = slowest.max(start.elapsed());
        // The readers set the pace, so that on a busy machine they do not become slow consumers themselves; if the
        // stalled client held them up, this would not end.
        eventually("the readers keep up with the stalled client beside them", || {
            progress.iter().all(|seen| seen.load(Ordering::Relaxed) + WINDOW >= offset)
        });
    }
    for reader in readers {
        reader.join().expect("a reader that keeps up gets everything");
    }
    assert!(slowest < Duration::from_secs(2), "a publish waited {slowest:?}");

    eventually_is("closes", 1, || server.metrics().closes("slow"));
    eventually_is("overflows", 1, || server.metrics().sum("ringway_outbox_overflows_total", &[]));
    // What the socket held is still there, then the Close.
    let mut expected = 1;
    while let Some(push) = stalled.try_push(Duration::from_secs(10)) {
        let ringway_tests::Push::Publication(_, publication) = push else { panic!("{push:?}") };
        assert_eq!(publication.offset, expected, "also a slow consumer sees no hole before its end");
        expected += 1;
    }
    let close = stalled.close.take().expect("the connection ended");
    assert_eq!((close.code, close.reason.as_str()), (Some(3008), "slow"));
    assert!(expected < PUBLICATIONS, "it was stalled, yet got everything");
}
