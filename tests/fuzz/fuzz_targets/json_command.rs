//! libFuzzer target: commands of a client in JSON, one WebSocket message. The body is shared with the replay test.
#![no_main]
#[path = "../../fuzz_bodies/json_command.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));
