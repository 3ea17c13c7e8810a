//! libFuzzer target: the HTTP/1.1 upgrade request. The body is shared with the replay test.
#![no_main]

#[path = "../../fuzz_bodies/upgrade.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));
