//! The sockets of a shard, by the slots of its connections, and what of each is in flight in the ring.
//!
//! In: accepted sockets, completions, the engine's wish to close. Out: operations of the ring, and the moment when a
//! slot may be used again. Invariants: a socket is dropped (closed) only when nothing of it is in flight, so that the
//! peer sees the end and a late completion cannot meet the slot's next tenant; should one come all the same, its
//! generation tells it apart.

use ringway_engine::ids::ConnId;
use ringway_sys::{Op, Ring, Socket, Token};

/// See the file's header.
pub(crate) struct Places {
    places: Vec<Place>,
}

#[derive(Default)]
struct Place {
    socket: Option<Socket>,
    generation: u32,
    /// Operations that have not said their last word: polls and cancels.
    in_flight: u8,
    readable_armed: bool,
    writable_armed: bool,
    closing: bool,
    /// It stands on the ready list.
    pub(crate) ready: bool,
    /// The poll has reported the peer's end or an error: read until the socket says so itself.
    pub(crate) hangup: bool,
}

impl Places {
    /// No sockets, with address space for so many.
    pub(crate) fn new(slots: usize) -> Self {
        Places { places: Vec::with_capacity(slots) }
    }

    /// Puts an accepted socket into its slot and begins to watch it.
    pub(crate) fn open(&mut self, ring: &mut Ring, conn: ConnId, socket: Socket) {
        let slot = conn.slot as usize;
        if self.places.len() <= slot {
            self.places.resize_with(slot + 1, Place::default);
        }
        let place = &mut self.places[slot];
        debug_assert!(place.socket.is_none() && place.in_flight == 0, "slot {slot} is still taken");
        *place = Place { generation: conn.generation, readable_armed: true, in_flight: 1, ..Place::default() };
        ring.poll_readable(place.socket.insert(socket), token(Op::Readable, conn));
    }

    /// The socket of a connection that still has one.
    #[inline]
    pub(crate) fn socket(&self, conn: ConnId) -> Option<&Socket> {
        self.find(conn)?.socket.as_ref()
    }

    /// Puts a connection on the ready list's account. False: it stands there already, or is gone.
    pub(crate) fn mark_ready(&mut self, conn: ConnId, hangup: bool) -> bool {
        let Some(place) = self.find_mut(conn) else { return false };
        place.hangup |= hangup;
        !std::mem::replace(&mut place.ready, true)
    }

    /// Takes a connection off the ready list's account.
    pub(crate) fn unmark_ready(&mut self, conn: ConnId) {
        if let Some(place) = self.find_mut(conn) {
            place.ready = false;
        }
    }

    /// Whether the peer's end was reported.
    pub(crate) fn hangup(&self, conn: ConnId) -> bool {
        self.find(conn).is_some_and(|place| place.hangup)
    }

    /// Waits for room in the socket's send buffer, once.
    pub(crate) fn watch_writable(&mut self, ring: &mut Ring, conn: ConnId) {
        let Some(place) = self.find_mut(conn) else { return };
        if let (Some(socket), false, false) = (&place.socket, place.writable_armed, place.closing) {
            ring.poll_writable(socket, token(Op::Writable, conn));
            place.writable_armed = true;
            place.in_flight += 1;
        }
    }

    /// An operation of the connection has said something; `more`: and will again. None: the slot has another tenant.
    pub(crate) fn completed(&mut self, op: Op, conn: ConnId, more: bool) -> Option<Completed> {
        let place = self.find_mut(conn)?;
        if !more {
            place.in_flight -= 1;
            match op {
                Op::Readable => place.readable_armed = false,
                Op::Writable => place.writable_armed = false,
                Op::Accept | Op::Wake | Op::Cancel | Op::Send => {}
            }
        }
        Some(if !place.closing {
            Completed::Live
        } else if place.in_flight == 0 {
            Completed::LastOfClosing
        } else {
            Completed::Closing
        })
    }

    /// Watches for input again after a multishot poll ended by itself.
    pub(crate) fn rearm_readable(&mut self, ring: &mut Ring, conn: ConnId) {
        let Some(place) = self.find_mut(conn) else { return };
        if let (Some(socket), false) = (&place.socket, place.readable_armed) {
            ring.poll_readable(socket, token(Op::Readable, conn));
            place.readable_armed = true;
            place.in_flight += 1;
        }
    }

    /// Ends what is in flight. True: nothing was, the connection can be closed at once.
    pub(crate) fn begin_close(&mut self, ring: &mut Ring, conn: ConnId, reset: bool) -> bool {
        let Some(place) = self.find_mut(conn) else { return false };
        place.closing = true;
        if let (Some(socket), true) = (&place.socket, reset) {
            // Best effort: without it the peer gets a FIN instead of a reset.
            let _ = socket.reset_on_close();
        }
        for (armed, op) in [(place.readable_armed, Op::Readable), (place.writable_armed, Op::Writable)] {
            if armed {
                ring.cancel(token(op, conn), token(Op::Cancel, conn));
                place.in_flight += 1;
            }
        }
        place.in_flight == 0
    }

    /// Closes the socket; the slot may be used again.
    pub(crate) fn close(&mut self, conn: ConnId) {
        if let Some(place) = self.find_mut(conn) {
            debug_assert_eq!(place.in_flight, 0);
            *place = Place { generation: conn.generation.wrapping_add(1), ..Place::default() };
        }
    }

    #[inline]
    fn find(&self, conn: ConnId) -> Option<&Place> {
        self.places
            .get(conn.slot as usize)
            .filter(|place| place.generation == conn.generation && place.socket.is_some())
    }

    #[inline]
    fn find_mut(&mut self, conn: ConnId) -> Option<&mut Place> {
        self.places
            .get_mut(conn.slot as usize)
            .filter(|place| place.generation == conn.generation && place.socket.is_some())
    }
}

/// What a completion means for its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completed {
    /// It goes on living.
    Live,
    /// It is closing, and something else is still in flight.
    Closing,
    /// It was the last of a closing connection: close the socket now.
    LastOfClosing,
}

fn token(op: Op, conn: ConnId) -> Token {
    Token::new(op, conn.slot, conn.generation)
}
