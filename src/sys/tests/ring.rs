//! Provokes the ring's hard cases on the running kernel, over loopback: what the loop relies on and what it must handle.
//! In: real rings and sockets. Out: assertions. Invariant: no fixed ports, no sleeps that a result depends on.
#![allow(clippy::disallowed_methods, reason = "tests start threads and read clocks directly")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use common::{PATIENCE, listen, listen_at, pair, readable, ring, turn_for, turn_until};
use ringway_sys::{Errno, Op, Ring, RingOptions, Socket, Token, Wait};

/// Byte `position` of every test stream.
fn pattern(position: usize) -> u8 {
    (position % 251) as u8
}

#[test]
fn partial_sends_add_up_exactly_and_room_is_reported() {
    // Larger than the send buffer: the kernel takes small frames whole or not at all.
    const FRAME_BYTES: usize = 60_000;
    let (listener, mut ring) = (listen(), ring(64, 256));
    let pairs: Vec<_> = (0..3).map(|_| pair(&listener)).collect();
    let stream: Vec<u8> = (0..4 << 20).map(pattern).collect();
    let mut sent = [0usize; 3];
    let (mut short, mut full) = (0, 0);
    // Nobody reads: each socket takes frames whole, then one in part, then none.
    while full < pairs.len() {
        let mut exceptions = Vec::new();
        let frames = pairs.iter().zip(sent).map(|((socket, _), at)| (socket, &stream[at..at + FRAME_BYTES]));
        ring.send_all(frames, &mut exceptions);
        let mut taken = [FRAME_BYTES; 3];
        full = 0;
        for (index, result) in exceptions {
            taken[index] = match result {
                Ok(bytes) => {
                    assert!(bytes < FRAME_BYTES);
                    short += 1;
                    bytes
                }
                Err(errno) => {
                    assert!(errno.is_again(), "{errno}");
                    full += 1;
                    0
                }
            };
        }
        for (at, bytes) in sent.iter_mut().zip(taken) {
            *at += bytes;
        }
    }
    assert!(short > 0, "no send was short: the case was not provoked");
    let token = Token::new(Op::Writable, 1, 0);
    ring.poll_writable(&pairs[1].0, token);
    assert!(turn_for(&mut ring, Duration::from_millis(30)).is_empty(), "no room before the peer reads");
    for ((_, peer), sent) in pairs.iter().zip(sent) {
        let mut peer = peer;
        let mut received = vec![0u8; sent];
        peer.read_exact(&mut received).expect("everything that was counted arrives");
        assert!(received == stream[..sent], "bytes arrive in order, none twice");
    }
    let room = turn_until(&mut ring, |all| !all.is_empty());
    assert_eq!((room[0].token, room[0].more), (token, false), "one-shot");
    assert!(room[0].result.is_ok_and(|events| events & libc::POLLOUT as u32 != 0));
}

#[test]
fn more_sends_than_entries_keep_their_indices() {
    let (listener, mut ring) = (listen(), ring(8, 16));
    let pairs: Vec<_> = (0..50).map(|_| pair(&listener)).collect();
    let stuck = [0usize, 7, 8, 31, 49];
    let junk = vec![0u8; 1 << 20];
    for &index in &stuck {
        while pairs[index].0.send(&junk).is_ok() {}
    }
    let mut exceptions = Vec::new();
    for round in 0..5 {
        ring.send_all(pairs.iter().map(|(socket, _)| (socket, &b"hello"[..])), &mut exceptions);
        exceptions.sort_by_key(|&(index, _)| index);
        let expected: Vec<_> = stuck.iter().map(|&index| (index, Err(Errno(libc::EAGAIN)))).collect();
        assert_eq!(exceptions, expected, "round {round}");
        exceptions.clear();
    }
    for (index, (_, peer)) in pairs.iter().enumerate().filter(|(index, _)| !stuck.contains(index)) {
        let (mut peer, mut received) = (peer, [0u8; 25]);
        peer.read_exact(&mut received).expect("five times");
        assert_eq!(&received, b"hellohellohellohellohello", "socket {index}");
    }
}

#[test]
fn a_send_beyond_the_entry_bound_is_counted_truly_and_errors_are_told() {
    let (listener, mut ring) = (listen(), ring(8, 16));
    let (pairs, gone) = ([pair(&listener), pair(&listener)], pair(&listener));
    gone.0.shutdown_write().expect("connected");
    // Untouched zero pages: the size costs no memory.
    let huge = vec![0u8; (1 << 30) + 1];
    let mut exceptions = Vec::new();
    let sends = [(&pairs[0].0, &b"x"[..]), (&gone.0, b"x"), (&pairs[1].0, &huge[..]), (&pairs[0].0, b"y")];
    ring.send_all(sends.into_iter(), &mut exceptions);
    exceptions.sort_by_key(|&(index, _)| index);
    assert_eq!(exceptions.len(), 2, "{exceptions:?}");
    assert_eq!(exceptions[0], (1, Err(Errno(libc::EPIPE))), "and no SIGPIPE");
    assert!(matches!(exceptions[1], (2, Ok(taken)) if taken < huge.len()), "{exceptions:?}");
    let mut received = [0u8; 2];
    (&pairs[0].1).read_exact(&mut received).expect("both small ones");
    assert_eq!(&received, b"xy");
}

#[test]
fn a_panicking_iterator_leaves_nothing_behind() {
    let (listener, mut ring) = (listen(), ring(16, 32));
    let (first, second) = (pair(&listener), pair(&listener));
    let mut exceptions = Vec::new();
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let bytes = vec![7u8; 1000];
        let sends = (0..3).map(|index| match index {
            0 => (&first.0, &bytes[..]),
            1 => (&second.0, &bytes[..]),
            _ => panic!("the iterator fails"),
        });
        ring.send_all(sends, &mut exceptions);
        drop(bytes);
    }));
    assert!(caught.is_err());
    assert!(exceptions.is_empty(), "{exceptions:?}");
    for (_, peer) in [&first, &second] {
        let (mut peer, mut received) = (peer, [0u8; 1000]);
        peer.read_exact(&mut received).expect("what was yielded was sent before the bytes were freed");
        assert_eq!(received, [7u8; 1000]);
    }
    ring.send_all([(&first.0, &b"again"[..])].into_iter(), &mut exceptions);
    let mut received = [0u8; 5];
    (&first.1).read_exact(&mut received).expect("the ring still works");
    assert_eq!((&received, exceptions.len()), (b"again", 0));
}

#[test]
fn completions_met_while_sending_come_out_of_the_next_turn() {
    let (listener, mut ring) = (listen(), ring(8, 16));
    let (socket, mut peer) = pair(&listener);
    ring.poll_readable(&socket, readable(3, 9));
    ring.turn(Wait::No, &mut Vec::new()).expect("turn");
    peer.write_all(b"ping").expect("write");
    let mut exceptions = Vec::new();
    for _ in 0..100 {
        ring.send_all([(&socket, &b"pong"[..])].into_iter(), &mut exceptions);
    }
    let mut out = Vec::new();
    let report = ring.turn(Wait::Until { timeout_ms: 10_000 }, &mut out).expect("turn");
    assert_eq!(out.len(), 1);
    assert_eq!((out[0].token, out[0].more), (readable(3, 9), true));
    assert!(exceptions.is_empty() && !report.overflowed);
}

#[test]
fn data_left_unread_gives_no_new_completion() {
    let (listener, mut ring) = (listen(), ring(8, 64));
    let (socket, mut peer) = pair(&listener);
    ring.poll_readable(&socket, readable(1, 1));
    peer.write_all(&[1u8; 100]).expect("write");
    turn_until(&mut ring, |all| !all.is_empty());
    let mut buffer = [0u8; 40];
    assert_eq!(socket.recv(&mut buffer), Ok(40));
    assert!(turn_for(&mut ring, Duration::from_millis(50)).is_empty(), "edge-triggered: 60 bytes wait in silence");
    peer.write_all(&[2u8; 1]).expect("write");
    let woken = turn_until(&mut ring, |all| !all.is_empty());
    assert!(woken[0].more, "new data is a new edge of the same poll");
    assert_eq!(socket.recv(&mut [0u8; 100]), Ok(61));
}

#[test]
fn a_full_completion_queue_ends_multishots_and_arming_again_works() {
    const CONNECTIONS: usize = 64;
    let (listener, mut ring) = (listen(), ring(8, 16));
    let mut pairs: Vec<_> = (0..CONNECTIONS).map(|_| pair(&listener)).collect();
    // Eight entries for 64 requests: the full submission queue is met on the way.
    for (slot, (socket, _)) in pairs.iter().enumerate() {
        ring.poll_readable(socket, readable(slot as u32, 0));
    }
    ring.turn(Wait::No, &mut Vec::new()).expect("turn");
    let (mut overflowed, mut ended) = (false, 0);
    for round in 0..3u8 {
        for (_, peer) in &mut pairs {
            peer.write_all(&[round]).expect("write");
        }
        let mut received = vec![0usize; CONNECTIONS];
        let deadline = Instant::now() + PATIENCE;
        let mut out = Vec::new();
        while received.iter().sum::<usize>() < CONNECTIONS {
            assert!(Instant::now() < deadline, "round {round}: {received:?}");
            overflowed |= ring.turn(Wait::Until { timeout_ms: 50 }, &mut out).expect("turn").overflowed;
            for completion in out.drain(..) {
                let slot = completion.token.slot();
                if let Ok(bytes) = pairs[slot as usize].0.recv(&mut [0u8; 8]) {
                    received[slot as usize] += bytes;
                }
                if !completion.more {
                    ended += 1;
                    ring.poll_readable(&pairs[slot as usize].0, readable(slot, 0));
                }
            }
        }
        assert!(received.iter().all(|&bytes| bytes == 1), "{received:?}");
    }
    assert!(overflowed && ended > 0, "the case was not provoked: overflowed {overflowed}, ended {ended}");
}

#[test]
fn a_poll_keeps_the_connection_until_cancelled() {
    let (listener, mut ring) = (listen(), ring(8, 64));
    let (socket, mut peer) = pair(&listener);
    ring.poll_readable(&socket, readable(2, 5));
    ring.turn(Wait::No, &mut Vec::new()).expect("turn");
    drop(socket);
    peer.set_read_timeout(Some(Duration::from_millis(50))).expect("time-out");
    assert!(peer.read(&mut [0u8; 1]).is_err(), "no FIN while the poll holds the connection");
    ring.cancel(readable(2, 5), Token::new(Op::Cancel, 2, 5));
    let ended = turn_until(&mut ring, |all| all.len() == 2);
    let of = |op| ended.iter().find(|completion| completion.token.op() == Some(op)).expect("both are answered");
    assert_eq!(of(Op::Readable).result, Err(Errno(libc::ECANCELED)));
    assert!(!of(Op::Readable).more);
    assert_eq!(of(Op::Cancel).result, Ok(0));
    peer.set_read_timeout(Some(PATIENCE)).expect("time-out");
    assert_eq!(peer.read(&mut [0u8; 1]).expect("end of stream"), 0);
    ring.cancel(readable(2, 5), Token::new(Op::Cancel, 2, 5));
    let nothing = turn_until(&mut ring, |all| !all.is_empty());
    assert_eq!(nothing[0].result, Err(Errno(libc::ENOENT)), "a second cancel finds nothing");
}

#[test]
fn the_close_order_of_the_loop_shows_the_peer_its_end_only_at_the_drop() {
    let (listener, mut ring) = (listen(), ring(8, 64));
    let (socket, mut peer) = pair(&listener);
    ring.poll_readable(&socket, readable(2, 6));
    ring.cancel(readable(2, 6), Token::new(Op::Cancel, 2, 6));
    turn_until(&mut ring, |all| all.iter().any(|completion| completion.result == Err(Errno(libc::ECANCELED))));
    assert_eq!(socket.send(b"last words"), Ok(10), "the connection is open until the drop");
    drop(socket);
    let mut words = Vec::new();
    peer.read_to_end(&mut words).expect("words, then end of stream");
    assert_eq!(words, b"last words");
}

#[test]
fn a_late_completion_of_a_reused_slot_differs_by_its_generation() {
    let (listener, mut ring) = (listen(), ring(8, 64));
    let ((old, mut old_peer), (new, mut new_peer)) = (pair(&listener), pair(&listener));
    ring.poll_readable(&old, readable(5, 1));
    ring.turn(Wait::No, &mut Vec::new()).expect("turn");
    // The old connection's event is on its way when the slot is given to the new one.
    old_peer.write_all(b"late").expect("write");
    ring.cancel(readable(5, 1), Token::new(Op::Cancel, 5, 1));
    drop(old);
    ring.poll_readable(&new, readable(5, 2));
    new_peer.write_all(b"new").expect("write");
    let all = turn_until(&mut ring, |all| {
        all.iter().any(|c| c.token == readable(5, 2)) && all.iter().any(|c| c.token == readable(5, 1) && !c.more)
    });
    let polls = all.iter().filter(|completion| completion.token.op() == Some(Op::Readable));
    let (late, current): (Vec<_>, Vec<_>) = polls.partition(|completion| completion.token.generation() == 1);
    assert!(!late.is_empty() && late.iter().all(|completion| completion.token.slot() == 5), "the case was provoked");
    assert!(current.iter().all(|completion| completion.more && completion.result.is_ok()), "{current:?}");
    assert_eq!(new.recv(&mut [0u8; 8]), Ok(3));
}

#[test]
fn several_listeners_share_a_port_and_every_connection_has_one_owner() {
    const CONNECTIONS: usize = 64;
    let first = listen_at("127.0.0.1:0", true);
    let second = listen_at(&first.local_addr().to_string(), true);
    let mut ring = ring(8, 256);
    for (slot, listener) in [&first, &second].into_iter().enumerate() {
        ring.accept_multishot(listener, Token::new(Op::Accept, slot as u32, 0));
    }
    ring.turn(Wait::No, &mut Vec::new()).expect("turn");
    let peers: Vec<_> = (0..CONNECTIONS).map(|_| TcpStream::connect(first.local_addr()).expect("connect")).collect();
    let mut accepted = turn_until(&mut ring, |all| all.len() == CONNECTIONS);
    let mut of_listener = [0, 0];
    let mut sockets: Vec<Socket> = Vec::new();
    for completion in &mut accepted {
        assert!(completion.more && completion.result == Ok(0));
        of_listener[completion.token.slot() as usize] += 1;
        sockets.extend(completion.take_socket());
        assert!(completion.take_socket().is_none(), "owned once");
    }
    assert!(of_listener.iter().all(|&count| count > 0), "{of_listener:?}");
    let mut ends: Vec<_> = sockets.iter().map(|socket| socket.peer_addr()).collect();
    let mut peer_ends: Vec<_> = peers.iter().map(|peer| peer.local_addr().ok()).collect();
    ends.sort();
    peer_ends.sort();
    assert_eq!(ends, peer_ends);
    // Stopping: cancel ends the accept, and the connections that nobody took are closed with the ring.
    ring.cancel(Token::new(Op::Accept, 0, 0), Token::new(Op::Cancel, 0, 0));
    let ended = turn_until(&mut ring, |all| all.len() == 2);
    assert!(ended.iter().any(|c| c.token.op() == Some(Op::Accept) && !c.more && c.result.is_err()));
}

#[test]
fn a_dropped_ring_closes_connections_that_nobody_took() {
    let listener = listen();
    let mut ring = ring(8, 64);
    ring.accept_multishot(&listener, Token::new(Op::Accept, 0, 0));
    ring.turn(Wait::No, &mut Vec::new()).expect("turn");
    let mut peer = TcpStream::connect(listener.local_addr()).expect("connect");
    peer.set_read_timeout(Some(PATIENCE)).expect("time-out");
    drop(ring);
    drop(listener);
    // End of stream if it had been accepted, a reset if the listener took it along.
    assert!(!matches!(peer.read(&mut [0u8; 1]), Ok(1..)));
}

#[test]
fn hang_up_and_reset_are_seen_by_the_poll() {
    let (listener, mut ring) = (listen(), ring(8, 64));
    let ((closed, peer), (reset, reset_peer)) = (pair(&listener), pair(&listener));
    ring.poll_readable(&closed, readable(1, 0));
    ring.poll_readable(&reset, readable(2, 0));
    ring.turn(Wait::No, &mut Vec::new()).expect("turn");
    drop(peer);
    Socket::from(std::os::fd::OwnedFd::from(reset_peer)).reset_on_close().expect("linger");
    let seen = turn_until(&mut ring, |all| {
        [1, 2]
            .iter()
            .all(|&slot| all.iter().any(|completion| completion.token.slot() == slot && completion.is_hangup()))
    });
    assert!(seen.iter().filter(|completion| completion.token.slot() == 1).all(|completion| completion.more));
    assert_eq!(closed.recv(&mut [0u8; 8]), Ok(0));
    assert!(reset.recv(&mut [0u8; 8]).is_err_and(Errno::is_peer_gone));
}

#[test]
fn a_turn_waits_no_longer_than_told() {
    let mut ring = ring(8, 64);
    let mut out = Vec::new();
    let start = Instant::now();
    assert!(!ring.turn(Wait::No, &mut out).expect("turn").waited);
    assert!(!ring.turn(Wait::Until { timeout_ms: 0 }, &mut out).expect("turn").waited);
    assert!(start.elapsed() < Duration::from_millis(500));
    assert!(ring.turn(Wait::Until { timeout_ms: 60 }, &mut out).expect("turn").waited);
    assert!(start.elapsed() >= Duration::from_millis(60) && out.is_empty());
}

#[test]
fn an_interrupted_wait_is_no_error() {
    extern "C" fn ignore(_: libc::c_int) {}
    // SAFETY: needed because the test must be interrupted by a signal. Sound: the handler does nothing, and the structure is
    // valid when all-zero; without SA_RESTART the wait is really interrupted.
    let (installed, thread) = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as usize;
        (libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()), libc::pthread_self())
    };
    assert_eq!(installed, 0);
    let mut ring = ring(8, 64);
    let start = Instant::now();
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        // SAFETY: needed to interrupt exactly the waiting thread. Sound: that thread outlives this one, which it joins.
        unsafe { libc::pthread_kill(thread, libc::SIGUSR1) }
    });
    let report = ring.turn(Wait::Until { timeout_ms: 10_000 }, &mut Vec::new()).expect("no error");
    assert!(report.waited && start.elapsed() < Duration::from_secs(9), "the signal ended the wait");
    assert_eq!(killer.join().expect("thread"), 0);
}

#[test]
fn tokens_that_would_misread_a_result_are_refused() {
    let (listener, mut ring) = (listen(), ring(8, 64));
    let (socket, _peer) = pair(&listener);
    for op in [Op::Accept, Op::Send] {
        let token = Token::new(op, 0, 0);
        assert!(catch_unwind(AssertUnwindSafe(|| ring.poll_readable(&socket, token))).is_err(), "{op:?}");
    }
    let wrong = AssertUnwindSafe(|| ring.accept_multishot(&listener, readable(0, 0)));
    assert!(catch_unwind(wrong).is_err());
}

#[test]
fn impossible_sizes_are_refused_with_a_remedy() {
    let refused = Ring::new(&RingOptions { submission_entries: 64, completion_entries: 8 }).err().expect("refused");
    assert!(refused.to_string().contains("64 submission and 8 completion"), "{refused}");
    assert!(refused.remedy.contains("65536"), "{refused}");
    let report = Ring::probe().expect("this kernel has everything");
    assert_eq!((report.submission_entries, report.completion_entries), (1024, 16384));
    assert!(report.to_string().contains("batched sends"), "{report}");
}
