//! libFuzzer target: tokens. The body is shared with the replay test.
#![no_main]

#[path = "../../fuzz_bodies/jwt.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));
