//! libFuzzer target: a whole shard fed by one untrusted peer. The body is shared with the replay test.
#![no_main]

#[path = "../../fuzz_bodies/shard.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));
