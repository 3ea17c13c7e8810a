//! Tests of the client protocol against independent readers and writers: `serde_json` for JSON, `prost` for protobuf.
//!
//! In: bytes written by hand from the specification, and random values (proptest prints the seed of a failure). Out:
//! panics where this codec and the other one disagree.

mod commands;
mod json;
mod messages;
mod protobuf;
mod replies;

use alloc::vec::Vec;

use super::Form;
use super::command::{Command, CommandError, Commands};

/// All commands of a message, or its first error.
fn decode(form: Form, message: &[u8]) -> Result<Vec<Command<'_>>, CommandError> {
    Commands::new(form, message).collect()
}

/// The only command of a message.
#[track_caller]
fn decode_one(form: Form, message: &[u8]) -> Command<'_> {
    let mut commands = decode(form, message).expect("a valid message");
    assert_eq!(commands.len(), 1);
    commands.remove(0)
}
