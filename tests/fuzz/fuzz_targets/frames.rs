//! libFuzzer target: WebSocket frames, cut at arbitrary places. The body is shared with the replay test.
#![no_main]

#[path = "../../fuzz_bodies/frames.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));
