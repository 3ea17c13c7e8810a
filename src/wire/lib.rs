//! Every byte layout that leaves the process: sockets (and, later, disk).
//!
//! In: bytes as the kernel delivered them. Out: typed views that borrow those bytes, and finished frames.
//! Nothing here has a clock, a socket, a thread or `unsafe`; nothing here imports another crate of ours.
//!
//! | file | layout |
//! |---|---|
//! | `upgrade` | HTTP/1.1 upgrade request and its answers (RFC 6455 §4) |
//! | `frame` | WebSocket frame header (RFC 6455 §5.2) |
//! | `mask` | payload unmasking (RFC 6455 §5.3) |
//! | `message` | fragments to messages, control frames between them (RFC 6455 §5.4, §5.5) |
//! | `deflate` | compressed messages: offers, one compressor, one inflater (RFC 7692) |
//! | `close` | the table of close codes |
//! | `centrifuge` | the client protocol in JSON and Protobuf |
//! | `delta` | Fossil deltas between publications |
//! | `ingest` | binary frames of backends |
//! | `parked` | what a node that goes away leaves behind of a user's connection |
//! | `record` | publications on an engine that several nodes share, and what nodes tell each other |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod centrifuge;
pub mod close;
pub mod deflate;
pub mod delta;
pub mod frame;
pub mod ingest;
pub mod mask;
pub mod message;
pub mod parked;
pub mod record;
pub mod upgrade;
