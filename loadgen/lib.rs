//! The load generator: clients and publishers that measure Ringway, the floor and its peers with the same code.
//!
//! In: a command line (`options`). Out: a table on stderr and one JSON object on stdout (`report`).
//!
//! ```text
//! main ── options ──> scenario (coordinator process: publishes, waits, merges)
//!                        │ one line of text each way over pipes (`link`)
//!                        ├── worker process 0: its connections on one epoll (`worker`)
//!                        └── worker process n: at most the open-file limit of connections each
//! ```
//!
//! | file | role |
//! |---|---|
//! | `options` | command line |
//! | `scenario` | the scenarios: connect, fanout, echo; `scenario/ingest`, `scenario/presence`, `scenario/fleet`; `scenario/memory`: readings at rest; `scenario/broadcasts`: one publication at a time |
//! | `fleet` | clients that are cut off, come back and recover, and what they missed; has a coordinator and workers of its own |
//! | `coordinator` | starts workers, talks with them, merges what they report |
//! | `link` | the lines that coordinator and worker say to each other |
//! | `worker` | one worker process: its event loop, every connection from connect to close; `worker/talk`: its coordinator; `worker/churn`: leaving and joining |
//! | `protocol` | client side of Centrifuge JSON, Centrifuge Protobuf and plain WebSocket |
//! | `nats` | what of the NATS protocol a fan-out over nats-server needs |
//! | `net` | sockets and epoll |
//! | `token` | a signed token for each connection |
//! | `payload` | the stamp in every payload: run, channel, sequence, intended time |
//! | `checker` | order, gaps and duplicates per subscription, four bytes each |
//! | `publisher`, `ingest_sender` | publishing over a WebSocket or over the ingest port |
//! | `server_cost` | CPU and memory of the measured process, from /proc |
//! | `control` | Ringway's control port: numbers and counts of members |
//! | `report` | histograms that merge, the table, the JSON |
//!
//! Invariants: a worker keeps a few bytes per idle connection and one read buffer for all; latency is counted from the
//! intended time of a publication, so a stalled server cannot hide its stall; a run with a gap, a duplicate or a
//! message out of order ends with a failure unless `--lossy` is given.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "a load generator is all clock and threads")]

pub mod checker;
pub mod control;
pub mod coordinator;
pub mod fleet;
pub mod ingest_sender;
pub mod link;
pub mod nats;
pub mod net;
pub mod options;
pub mod payload;
pub mod protocol;
pub mod publisher;
pub mod report;
pub mod scenario;
pub mod server_cost;
pub mod token;
pub mod worker;
