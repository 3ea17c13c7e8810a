//! One shard with what a loop keeps for it: its sockets, and what is being written and closed.
//!
//! In: dice that choose which socket is next and how much of it. Out: `Input`s to the shard, bytes to and from sockets, notes
//! in the trace. Both simulations drive their shards with it, that of one node (`world.rs`) and that of several (`fleet`).
//! Invariant: what the real loop never does this does not do: no write for a socket that is closed or has not said writable.

use std::collections::BTreeMap;

use ringway_engine::ids::ConnId;
use ringway_engine::outbox::WriteBatch;
use ringway_engine::seam::{Accepted, Input, Port};
use ringway_engine::shard::Shard;

use crate::dice::{Dice, Trace};
use crate::socket::{PeerEnd, Socket};

/// See the file's header.
pub(crate) struct Driver {
    pub(crate) shard: Shard,
    /// Stands for it in the trace.
    number: u64,
    /// Open sockets by slot.
    pub(crate) sockets: BTreeMap<u32, usize>,
    /// Told to close; `Closed` follows.
    pub(crate) closing: Vec<ConnId>,
    writes: WriteBatch,
}

/// What a driver touches beside its shard.
pub(crate) struct Wires<'a> {
    pub(crate) sockets: &'a mut Vec<Socket>,
    pub(crate) dice: &'a mut Dice,
    pub(crate) trace: &'a mut Trace,
}

impl Driver {
    pub(crate) fn new(number: usize, shard: Shard) -> Self {
        let (sockets, closing, writes) = (BTreeMap::new(), Vec::new(), WriteBatch::default());
        Driver { shard, number: number as u64, sockets, closing, writes }
    }

    /// A new connection, whose socket holds so many bytes; its place among all sockets.
    pub(crate) fn open(&mut self, core: usize, port: Port, room: usize, wires: &mut Wires<'_>) -> Option<usize> {
        let conn = self.shard.accepted(Accepted { port, peer: None })?;
        wires.sockets.push(Socket::new(core, conn, room));
        let index = wires.sockets.len() - 1;
        self.sockets.insert(conn.slot, index);
        wires.trace.note("open", [self.number, u64::from(conn.slot), index as u64]);
        Some(index)
    }

    /// Bytes of one socket, at most so many.
    pub(crate) fn read(&mut self, bytes_max: usize, wires: &mut Wires<'_>) {
        if self.shard.is_pressed() {
            return;
        }
        let (shard, sockets) = (&self.shard, &*wires.sockets);
        let readable = |socket: &Socket| {
            let fresh = !socket.up.is_empty() || (socket.peer_end.is_some() && !socket.peer_end_told);
            fresh && shard.wants_read(socket.conn)
        };
        let ready: Vec<_> = self.sockets.values().copied().filter(|index| readable(&sockets[*index])).collect();
        if ready.is_empty() {
            return;
        }
        let index = wires.dice.pick(&ready);
        let socket = &mut wires.sockets[index];
        let conn = socket.conn;
        let take = bytes_max.min(socket.up.len());
        wires.trace.note("read", [self.number, index as u64, take as u64]);
        if take > 0 {
            let mut bytes: Vec<u8> = socket.up.drain(..take).collect();
            self.shard.handle(Input::Received { conn, bytes: &mut bytes });
            return;
        }
        socket.peer_end_told = true;
        self.shard.handle(match socket.peer_end {
            Some(PeerEnd::Reset) => Input::SocketFailed { conn },
            Some(PeerEnd::Fin) | None => Input::PeerFinished { conn },
        });
    }

    /// One socket that was full has room again.
    pub(crate) fn writable(&mut self, wires: &mut Wires<'_>) {
        let has_room = |index: &usize| wires.sockets[*index].blocked && wires.sockets[*index].room() > 0;
        let free: Vec<_> = self.sockets.values().copied().filter(has_room).collect();
        if !free.is_empty() {
            let index = wires.dice.pick(&free);
            wires.sockets[index].blocked = false;
            wires.trace.note("writable", [self.number, index as u64, 0]);
            self.shard.handle(Input::Writable { conn: wires.sockets[index].conn });
        }
    }

    /// Everything that waits; `short`: sockets may take less than they have room for.
    pub(crate) fn write(&mut self, short: bool, wires: &mut Wires<'_>) {
        loop {
            self.shard.collect_writes(&mut self.writes);
            if self.writes.is_empty() {
                return;
            }
            for (write, (conn, bytes)) in self.writes.iter().enumerate() {
                let index = self.sockets.get(&conn.slot).copied();
                let Some(index) = index.filter(|index| wires.sockets[*index].conn == conn) else {
                    panic!("a write for {conn:?}, which has no socket");
                };
                let socket = &mut wires.sockets[index];
                assert!(!socket.blocked, "a write for a socket that has not said writable");
                if socket.peer_end == Some(PeerEnd::Reset) && !socket.peer_end_told {
                    socket.peer_end_told = true;
                    self.shard.handle(Input::SocketFailed { conn });
                    continue;
                }
                let mut take = bytes.len().min(socket.room());
                if short && take > 0 && wires.dice.one_in(6) {
                    take = wires.dice.below(take);
                }
                socket.take(&bytes[..take]);
                let all = take == bytes.len();
                socket.blocked = !all;
                wires.trace.note("write", [self.number, index as u64, take as u64]);
                if all {
                    self.shard.wrote_whole(&self.writes, write..write + 1);
                } else {
                    self.shard.handle(Input::Wrote { conn, bytes: take, all });
                }
            }
        }
    }

    /// Nothing of one closing connection is in flight any more.
    pub(crate) fn closed(&mut self, wires: &mut Wires<'_>) {
        if self.closing.is_empty() {
            return;
        }
        let conn = self.closing.swap_remove(wires.dice.below(self.closing.len()));
        if let Some(index) = self.sockets.remove(&conn.slot) {
            assert_eq!(wires.sockets[index].conn, conn, "closed another connection of the slot");
            wires.sockets[index].server_end = true;
            wires.sockets[index].closed = true;
            wires.trace.note("closed", [self.number, index as u64, 0]);
        }
        self.shard.handle(Input::Closed { conn });
    }
}
