//! Client library for backends over Ringway's binary ingest port: publishes, clients' events, the server API.
//!
//! In: publishes from any thread of the backend, without waiting for the network; a function that is told and asked
//! about clients ([`Client::events`]); calls such as [`Client::presence`]. Out: for each publish exactly one outcome,
//! its place in its channel or why it has none, to a [`PublishHandle`] or to the client's outcome function; replies to
//! events; answers to calls.
//!
//! ```no_run
//! use ringway_ingest::{Client, Config, Options};
//!
//! let client = Client::connect(Config::new("127.0.0.1:8002", "dev"))?;
//! let handle = client.publish("news", br#"{"text":"hello"}"#, &Options::default())?;
//! let ack = handle.wait()?;
//! println!("offset {} of epoch {}", ack.offset, ack.epoch);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | file | what |
//! |---|---|
//! | `client` | the face: publish, flush, close |
//! | `config` | addresses, token, and every bound |
//! | `buffer` | publishes that have no outcome yet, in order, in few allocations |
//! | `events` | clients' events: threads, handler, replies |
//! | `calls` | the server API |
//! | `remote` | events and calls of one connection |
//! | `state` | what the threads share, under one lock; outcomes |
//! | `link` | one connection's credit and deadlines; picks what may be sent now |
//! | `connect` | addresses in turn, hello, delay between attempts |
//! | `writer` | thread that connects, sends, and notices a dead peer |
//! | `reader` | thread that takes what the gateway says |
//!
//! What it keeps, as long as the process lives:
//! * Publishes of one client are sent in the order of the calls. After a cut, what has no outcome is sent again in that
//!   order, before anything newer. With the idempotency key that each carries, the gateway publishes it once, as long
//!   as the cut is shorter than the gateway's idempotency window.
//! * A refusal is final, also a temporary one such as "busy": trying that publish again behind others would change the
//!   order of its channel, which only the caller can judge. It sees [`Refusal::temporary`] and may publish again,
//!   under the same key if it gave one.
//! * Memory is bounded by [`Config::buffered_messages_max`] and [`Config::buffered_bytes_max`]: at a bound `publish`
//!   says [`PublishError::Full`], `publish_blocking` waits.
#![forbid(unsafe_code)]

mod buffer;
mod calls;
mod client;
mod config;
mod connect;
mod error;
mod events;
mod link;
mod reader;
mod remote;
mod state;
mod writer;

pub use calls::{CallError, Channels, History, HistoryOptions, Member, PastPublication, PresenceStats, Who};
pub use client::{Client, Options, PublishHandle, Stats};
pub use config::Config;
pub use error::{ConnectError, PublishError, Refusal};
pub use events::{ConnectReply, Event, EventId, EventOptions, Reply, SubscribeReply};
pub use ringway_wire::ingest::{
    ClientEvent, EpochText as Epoch, EventKind, EventKinds, Grant, Happened, IngestError, Overrides, PayloadKind,
    Since, Subscription, Transport,
};
pub use state::{Ack, Outcome};
