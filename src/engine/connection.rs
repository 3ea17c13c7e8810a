//! One connection: what it is at the moment, what it has half received, what waits to be written to it.
//!
//! In and out: fields, changed by `shard/`. States: Opening (its clock runs) → Client, Echo or Ingest → Closing (our
//! last bytes are on their way, its clock runs) → Gone (the driver closes the socket; the slot is free after that).

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::net::IpAddr;

use ringway_wire::message::Fragments;

use crate::ingest_session::IngestSession;
use crate::outbox::Queue;
use crate::seam::Port;
use crate::session::Session;

/// See the file's header.
#[derive(Debug)]
pub struct Connection {
    /// On which port it came in.
    pub port: Port,
    /// Compressed messages wait in `partial` for their turn to be inflated; nothing more is read until then.
    pub inflating: bool,
    /// It is to leave when its requests are answered, and is read no more.
    pub leaving: bool,
    /// What it is at the moment.
    pub phase: Phase,
    /// What waits to be written.
    pub outbox: Queue,
    /// The beginning of something whose end has not arrived; none on an idle connection.
    pub partial: Option<Box<Vec<u8>>>,
    /// Fragments of an unfinished message; none on an idle connection.
    pub fragments: Fragments,
}

/// What a connection is at the moment.
#[derive(Debug)]
pub enum Phase {
    /// Waits for its upgrade request.
    Upgrading {
        /// Bytes in which the end of the request was already looked for.
        scanned: u32,
    },
    /// A client of the Centrifuge protocol.
    Client(Session),
    /// Gets back what it sends.
    Echo,
    /// A backend, or what says it is one until its hello.
    Ingest {
        /// Its state.
        session: Box<IngestSession>,
        /// From where, for the log.
        peer: Option<IpAddr>,
    },
    /// Our last bytes (a Close frame, an HTTP answer, a fatal frame) are queued or out.
    Closing(Until),
    /// The driver has been told to close the socket.
    Gone,
}

/// What ends the wait of a closing connection, apart from its clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Everything is written: the peer has said its last word already.
    Written,
    /// The peer has answered our Close with its own (RFC 6455 §7.1.2).
    PeerClose,
    /// Everything is written; then the write side is shut and the wait goes on as `PeerEnd`. For peers that broke a
    /// protocol: what they still send is not parsed, but read away, since closing a socket with unread bytes resets
    /// the connection and can destroy our last words on their way.
    WrittenThenPeerEnd,
    /// The peer has ended its side.
    PeerEnd,
}

impl Connection {
    /// A connection in its first phase.
    pub fn new(port: Port, phase: Phase) -> Self {
        Connection {
            port,
            inflating: false,
            leaving: false,
            phase,
            outbox: Queue::EMPTY,
            partial: None,
            fragments: Fragments::default(),
        }
    }
}
