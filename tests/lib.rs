//! The end-to-end harness: what the integration tests share.
//!
//! In: the `ringway` binary (built here when it is absent or stale). Out: [`Server`], which runs it on free ports and
//! ends it by pid; [`WebSocket`], a blocking client that can also misbehave; [`Client`], the client protocol in JSON
//! and Protobuf on top of it; [`fleet`], several nodes with engine, load balancer and load; [`http`], plain HTTP/1.1 for the control port; [`Script`], which runs the SDK scripts.
//!
//! Invariants: traffic stays on 127.0.0.0/8; every wait has an end; a process is ended only by the pid it was started
//! with; nothing here shares an encoder or decoder with the server, so that an error made on both sides shows.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "tests measure real time and start real threads")]

#[path = "harness/backend.rs"]
pub mod backend;
#[path = "harness/client.rs"]
pub mod client;
#[path = "harness/fleet/mod.rs"]
pub mod fleet;
#[path = "harness/http.rs"]
pub mod http;
#[path = "harness/protobuf.rs"]
pub mod protobuf;
#[path = "harness/script.rs"]
pub mod script;
#[path = "harness/server.rs"]
pub mod server;
#[path = "harness/websocket.rs"]
pub mod websocket;

pub use backend::{Backend, Pending};
pub use client::{Client, Encoding, Publication, Push, ReplyError, SubscribeOptions, Subscribed};
pub use script::Script;
pub use server::{Failure, Metrics, Server};
pub use websocket::{Close, Frame, Received, WebSocket};

use std::time::Duration;

/// How long a test waits for something that should come at once; long enough for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until a number that lags behind, such as a metric, is the expected one.
pub fn eventually_is(what: &str, expected: u64, mut number: impl FnMut() -> u64) {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        let now = number();
        if now == expected {
            return;
        }
        assert!(std::time::Instant::now() < end, "{what}: {now} after {PATIENCE:?}, not {expected}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until `condition` holds, and fails the test with `what` when it does not within [`PATIENCE`].
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < end, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
