//! The counting allocator counts, and shows that the ring's steady state (send to all, turn, read) allocates nothing.
//! In: a counting global allocator. Out: counts of this thread.

mod common;

use std::alloc::System;
use std::io::{Read, Write};

use common::{listen, pair, readable, ring};
use ringway_sys::alloc_count::{thread_allocated_bytes, thread_allocations};
use ringway_sys::{CountingAllocator, Inbox, Wait};

#[global_allocator]
static ALLOCATOR: CountingAllocator<System> = CountingAllocator::new(System);

#[test]
fn counts_allocations_of_this_thread_only() {
    let (count, bytes) = (thread_allocations(), thread_allocated_bytes());
    let mut buffer = std::hint::black_box(Vec::<u8>::with_capacity(1000));
    assert_eq!((thread_allocations() - count, thread_allocated_bytes() - bytes), (1, 1000));
    buffer.reserve_exact(5000);
    assert_eq!(thread_allocations() - count, 2, "growing counts too");
    let count = thread_allocations();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let before = thread_allocations();
            drop(std::hint::black_box(Box::new([0u8; 64])));
            thread_allocations() - before
        });
        assert_eq!(other.join().expect("thread"), 1);
    });
    let started = thread_allocations() - count;
    assert!(started < 20, "starting a thread costs this one a few, {started}");
}

#[test]
fn the_steady_state_of_the_ring_and_the_inbox_allocates_nothing() {
    let (listener, mut ring) = (listen(), ring(64, 256));
    let mut pairs: Vec<_> = (0..100).map(|_| pair(&listener)).collect();
    let inbox = Inbox::<u64>::new(16, 4).expect("inbox");
    for (slot, (socket, _)) in pairs.iter().enumerate() {
        ring.poll_readable(socket, readable(slot as u32, 0));
    }
    let (mut out, mut exceptions) = (Vec::new(), Vec::new());
    let mut allocations = 0;
    for round in 0..20 {
        for (_, peer) in &mut pairs {
            peer.write_all(b"ping").expect("write");
        }
        let before = thread_allocations();
        let mut answered = 0;
        while answered < pairs.len() {
            ring.turn(Wait::Until { timeout_ms: 1000 }, &mut out).expect("turn");
            for completion in out.drain(..) {
                let (socket, _) = &pairs[completion.token.slot() as usize];
                assert_eq!(socket.recv(&mut [0u8; 16]), Ok(4));
                answered += 1;
            }
            ring.send_all(pairs.iter().map(|(socket, _)| (socket, &b"pong"[..])), &mut exceptions);
            inbox.push(round).expect("room");
            inbox.mark_lost(1);
            assert!(!inbox.prepare_sleep() && !inbox.wake_if_asleep());
            assert_eq!((inbox.pop(), inbox.take_lost().count()), (Some(round), 1));
        }
        // The first rounds grow the reused vectors.
        if round >= 5 {
            allocations += thread_allocations() - before;
        }
        assert!(exceptions.is_empty());
        for (_, peer) in &mut pairs {
            let mut answer = [0u8; 4];
            peer.read_exact(&mut answer).expect("answered");
        }
    }
    assert_eq!(allocations, 0);
}
