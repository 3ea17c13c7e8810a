//! The decisions of one core.
//!
//! No clock, no socket, no thread, no randomness of its own: time, seeds and bytes are arguments. A driver (the real
//! loop in `gateway/shard_loop.rs`, or the simulator in `tests/sim`) turns what happens into inputs of
//! [`shard::Shard`], and carries out what it answers.
//!
//! | file | a message's way |
//! |---|---|
//! | `seam` | what can happen to a shard, and what it asks for |
//! | `shard` | all state of one core; moves values between the stages below |
//! | `handshake` | 2 admits or refuses an upgrade |
//! | `connection` | 3 what a connection is at the moment |
//! | `session`, `identity`, `opening`, `subscription`, `ingest_session` | 4 what a client or a backend is and may |
//! | `namespace`, `authorize` | 4 channel name → rules; who may what |
//! | `route` | 5 channel → owning core |
//! | `owner`, `dedup` | 6 offset, epoch, history, interested cores, repeated keys |
//! | `backplane`, `embedded` | 6 the engine that several nodes share; one without an engine |
//! | `history`, `presence`, `rate` | 6 a channel's past, who is in it, how often clients may publish |
//! | `users` | 6 where users are |
//! | `events`, `backends` | 4 what clients do, on its way to backends and back |
//! | `publication`, `encoder` | 6 payload and finished frames, each encoding made once |
//! | `lanes`, `lane_message`, `call`, `tokens` | 6 what cores and planes say to each other |
//! | `variant` | 6 in which encodings subscribers take a publication |
//! | `fanout`, `list`, `run` | 7 one publication → this core's subscribers |
//! | `outbox`, `frame` | 8 what waits to be written to one connection |
//! | `slots`, `names`, `timers`, `random` | data structures |
//! | `ids`, `limits`, `metrics`, `options` | words and numbers |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod authorize;
pub mod backends;
pub mod backplane;
pub mod call;
pub mod connection;
pub mod deadline;
#[cfg(test)]
mod decoded;
pub mod dedup;
pub mod embedded;
mod encoder;
pub mod events;
pub mod fanout;
pub mod frame;
pub mod handshake;
pub mod history;
pub mod identity;
pub mod ids;
pub mod ingest_session;
pub mod lane_message;
pub mod lanes;
pub mod limits;
mod list;
pub mod metrics;
pub mod names;
pub mod namespace;
pub mod opening;
pub mod options;
pub mod outbox;
pub mod owner;
pub mod past;
pub mod presence;
pub mod publication;
pub mod publish_run;
pub mod random;
pub mod rate;
pub mod route;
mod run;
pub mod seam;
pub mod session;
pub mod shard;
pub mod slots;
pub mod subscription;
pub mod subscriptions;
pub mod timers;
pub mod tokens;
pub mod user_places;
pub mod users;
pub mod variant;
pub mod window;
