//! End-to-end tests: one file per behaviour, each saying its set-up and its claim, against a real `ringway` process.
//!
//! In: the binary that the harness builds or `RINGWAY_BIN` names. Out: pass or fail, with the server's stderr on a fail.
//! One test binary for all of them, so that they link once; run one file with
//! `cargo test -p ringway-tests --test e2e recovery::`.
#![allow(clippy::print_stdout, reason = "what was measured belongs into the output of the test")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time and start real threads")]

mod bad_input;
mod drain;
mod first_light;
mod lane_order;
mod limits;
mod load_balancers;
mod loop_edges;
mod many_shards;
mod partial_frames;
mod recovery;
mod reload;
mod second_instance;
mod shutdown;
mod slow_consumer;
