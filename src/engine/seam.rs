//! The seam between decisions and the world: what can happen to a shard, and what it asks for.
//!
//! In: a driver turns completions, lane batches and time into [`Input`]s. Out: [`Action`]s, and writes through
//! `Shard::collect_writes`. The real loop and the simulator are two drivers of the same engine.

use core::net::IpAddr;

use ringway_wire::ingest::EventKinds;

use crate::ids::{ConnId, CoreId};
use crate::lane_message::LaneMessage;
pub use crate::shard::drain::DrainOrder;

/// Which port a connection came in on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// WebSocket clients.
    Client,
    /// Backends.
    Ingest,
}

/// What can happen to a shard.
#[derive(Debug)]
pub enum Input<'a> {
    /// Bytes arrived. They are unmasked and read in place; what is incomplete is copied.
    Received {
        /// From whom.
        conn: ConnId,
        /// The driver's buffer, for the length of the call.
        bytes: &'a mut [u8],
    },
    /// The peer will send no more (FIN).
    PeerFinished {
        /// Which peer.
        conn: ConnId,
    },
    /// The socket failed (reset, timeout, unreachable).
    SocketFailed {
        /// Whose socket.
        conn: ConnId,
    },
    /// The socket takes bytes again after a short write.
    Writable {
        /// Whose socket.
        conn: ConnId,
    },
    /// How much of a collected write the socket took; less than all means that it is full.
    Wrote {
        /// Whose socket.
        conn: ConnId,
        /// Bytes taken.
        bytes: usize,
        /// Whether that was everything.
        all: bool,
    },
    /// The driver has closed the socket and nothing of it is in flight any more: the slot may be used again.
    Closed {
        /// Which connection.
        conn: ConnId,
    },
    /// A message from another core (or from this one to itself), in lane order.
    Lane {
        /// What it says.
        message: LaneMessage,
    },
    /// The named core dropped publications for this one because its spill was full.
    LaneLost {
        /// Who dropped.
        from: CoreId,
    },
    /// This node is to be left: after a grace, clients are sent away paced, the most idle first. A second one changes the
    /// pace. Its end is when no connection is left; its bound is `drain_deadline_ms`.
    Drain(DrainOrder),
    /// No client is left, and backends have heard of it: they are to leave too.
    DrainBackends,
    /// Close every client with this node's shutdown code at once and take no more.
    Shutdown,
}

/// A connection that has been accepted by the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Accepted {
    /// On which port.
    pub port: Port,
    /// From where, if the kernel still knew.
    pub peer: Option<IpAddr>,
}

/// What a shard asks its driver to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Close the socket once nothing of it is in flight, then say `Input::Closed`. All wanted writes were made.
    Close {
        /// Which connection.
        conn: ConnId,
        /// Reset it (RST) instead of a FIN: the peer does not read or did not answer.
        reset: bool,
    },
    /// Say FIN, and go on reading: everything wanted was written.
    FinishWriting {
        /// Which connection.
        conn: ConnId,
    },
    /// A rare fact for the log.
    Note(Note),
}

/// Facts that are worth a log line; the engine does not log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// A core's publications for this shard were lost; its subscribers were told.
    LaneLost {
        /// Who dropped.
        from: CoreId,
        /// Subscriptions that were ended with code 2500.
        subscriptions: u32,
    },
    /// A backend presented a wrong token.
    IngestRefused {
        /// From where.
        peer: Option<IpAddr>,
    },
    /// A backend connected.
    IngestConnected {
        /// From where.
        peer: Option<IpAddr>,
    },
    /// A backend said which events it takes.
    EventsTaken {
        /// From where.
        peer: Option<IpAddr>,
        /// Which.
        kinds: EventKinds,
    },
    /// Events of clients were dropped: too many waited for backends, or they waited for too long.
    EventsLost {
        /// How many since the last such note.
        count: u64,
    },
    /// A user's connection came in although the engine did not say whether there is room for it on the fleet.
    UserLimitUnchecked,
}
