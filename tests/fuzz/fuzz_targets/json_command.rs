//! Fuzz target: see `fuzz_bodies/json_command.rs`.
#![no_main]
#[path = "../../fuzz_bodies/json_command.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));
