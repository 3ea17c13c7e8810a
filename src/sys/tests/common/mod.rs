//! Shared set-up of the kernel tests: loopback listeners and connected pairs, and a bounded way to wait for completions.
//! In: sizes and sockets' options. Out: sockets and completions. Invariant: every wait ends with a panic after ten seconds.
#![allow(clippy::disallowed_methods, reason = "tests read clocks directly")]
#![allow(dead_code, reason = "each test program uses a part")]

use std::net::TcpStream;
use std::time::{Duration, Instant};

use ringway_sys::{Completion, ListenOptions, Listener, Op, Ring, RingOptions, Socket, Token, Wait};

pub const PATIENCE: Duration = Duration::from_secs(10);

pub fn ring(submission_entries: u32, completion_entries: u32) -> Ring {
    Ring::new(&RingOptions { submission_entries, completion_entries }).expect("this kernel has io_uring")
}

pub fn listen_at(address: &str, reuse_port: bool) -> Listener {
    let address = address.parse().expect("address");
    let buffers = 16384;
    Listener::bind(&ListenOptions {
        address,
        backlog: 1024,
        reuse_port,
        send_buffer_bytes: buffers,
        receive_buffer_bytes: buffers,
    })
    .expect("listener")
}

pub fn listen() -> Listener {
    listen_at("127.0.0.1:0", false)
}

/// A connected pair: the accepted end and the peer's (blocking, with a time-out on reads).
pub fn pair(listener: &Listener) -> (Socket, TcpStream) {
    let peer = TcpStream::connect(listener.local_addr()).expect("connect");
    peer.set_read_timeout(Some(PATIENCE)).expect("time-out");
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok(socket) => return (socket, peer),
            Err(errno) => assert!(errno.is_again() && Instant::now() < deadline, "accept: {errno}"),
        }
    }
}

pub fn readable(slot: u32, generation: u32) -> Token {
    Token::new(Op::Readable, slot, generation)
}

/// Turns until `enough` says so of all completions met.
pub fn turn_until(ring: &mut Ring, enough: impl Fn(&[Completion]) -> bool) -> Vec<Completion> {
    let mut out = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while !enough(&out) {
        assert!(Instant::now() < deadline, "no completion came; so far {out:?}");
        ring.turn(Wait::Until { timeout_ms: 100 }, &mut out).expect("turn");
    }
    out
}

/// Turns for a while and returns what came.
pub fn turn_for(ring: &mut Ring, time: Duration) -> Vec<Completion> {
    let mut out = Vec::new();
    let deadline = Instant::now() + time;
    while Instant::now() < deadline {
        ring.turn(Wait::Until { timeout_ms: 10 }, &mut out).expect("turn");
    }
    out
}
