//! Fuzz target of the ingest codec; the claim stands in the body.
#![no_main]

#[path = "../../fuzz_bodies/ingest.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));
