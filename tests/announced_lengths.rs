//! What a message announces is not allocated before it is there.
//!
//! In: short messages whose lengths, counts and sizes speak of gigabytes, and a counting allocator. Claim: reading one
//! takes less memory than a small multiple of its own bytes, whatever it announces.

use std::alloc::System;

use ringway_sys::CountingAllocator;
use ringway_sys::alloc_count::thread_allocated_bytes;
use ringway_wire::centrifuge::Form;
use ringway_wire::centrifuge::command::{Commands, decode_uni_connect};
use ringway_wire::delta::apply;

#[global_allocator]
static ALLOCATOR: CountingAllocator<System> = CountingAllocator::new(System);

/// A small message may take this much: a list of subscriptions begins with room for four.
const ALLOCATED_BYTES_MAX: u64 = 1024;

/// 2^31 as a uvarint.
const ANNOUNCED: [u8; 5] = [0x80, 0x80, 0x80, 0x80, 0x08];

/// Fails if `read` allocates more than a small message may.
fn bounded(what: &str, read: impl FnOnce()) {
    let before = thread_allocated_bytes();
    read();
    let allocated = thread_allocated_bytes() - before;
    assert!(allocated <= ALLOCATED_BYTES_MAX, "{what}: {allocated} bytes");
}

/// A field with a length: tag, then `body`.
fn field(number: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    out.extend_from_slice(body);
    out
}

/// `body` with its length before it.
fn delimited(body: &[u8]) -> Vec<u8> {
    let mut out = vec![u8::try_from(body.len()).expect("a short body")];
    out.extend_from_slice(body);
    out
}

#[test]
fn protobuf_commands() {
    let mut cases = vec![("a message", ANNOUNCED.to_vec())];
    // Commands are fields 4 to 15; each with a length of its own that is too long, and with fields that are.
    for request in 4..=15 {
        cases.push(("a request", delimited(&field(request, &ANNOUNCED))));
        for inner in 1..=15 {
            cases.push(("a field", delimited(&field(request, &delimited(&field(inner, &ANNOUNCED))))));
            let entry = field(inner, &delimited(&field(1, &ANNOUNCED)));
            cases.push(("a map's entry", delimited(&field(request, &delimited(&entry)))));
        }
    }
    for (what, message) in cases {
        assert!(message.len() <= 20);
        bounded(what, || {
            for command in Commands::new(Form::Protobuf, &message) {
                drop(command);
            }
        });
        // The announced length is also more than there is.
        if what == "a message" || what == "a request" {
            assert!(Commands::new(Form::Protobuf, &message).any(|command| command.is_err()), "{message:02x?}");
        }
    }
}

#[test]
fn numbers_in_json_announce_nothing() {
    for text in [
        r#"{"id":4294967295,"history":{"limit":2147483647}}"#,
        r#"{"id":1,"subscribe":{"offset":18446744073709551615,"limit":2147483647}}"#,
        r#"{"id":1,"connect":{"subs":{"a":{"offset":18446744073709551615}}}}"#,
    ] {
        bounded(text, || assert!(Commands::new(Form::Json, text.as_bytes()).all(|command| command.is_ok())));
    }
    let text = r#"{"subs":{"a":{"offset":18446744073709551615}}}"#;
    bounded(text, || assert!(decode_uni_connect(text.as_bytes()).is_ok()));
}

#[test]
fn deltas() {
    // 2^31 and 2^32 - 1 in the digits of deltas.
    for delta in ["200000\n0;", "3~~~~~\n200000:abc", "3~~~~~\n3@0,3~~~~~@0,", "200000\n1:a200000:b"] {
        bounded(delta, || assert!(apply(b"0123456789", delta.as_bytes(), usize::MAX, &mut Vec::new()).is_err()));
    }
}

#[test]
fn the_allocator_counts() {
    let before = thread_allocated_bytes();
    drop(std::hint::black_box(Vec::<u8>::with_capacity(1 << 20)));
    assert!(thread_allocated_bytes() - before >= 1 << 20);
}
