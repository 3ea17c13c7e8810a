//! A connection between a simulated peer and a shard: two streams of bytes and how each side ended.
//!
//! In: bytes of either side, in any pieces. Out: the same bytes in order. And WebSocket frames as a client writes and
//! reads them (RFC 6455), with nothing shared with the server's codec.

use std::collections::VecDeque;

use ringway_engine::ids::ConnId;
use ringway_tests::websocket::{BINARY, CLOSE, KEY, TEXT};
use ringway_tests::{Encoding, client::PATH};

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) shard: usize,
    pub(crate) conn: ConnId,
    /// Peer to server, not read yet.
    pub(crate) up: VecDeque<u8>,
    /// Server to peer, not read yet.
    pub(crate) down: VecDeque<u8>,
    pub(crate) down_bytes_max: usize,
    pub(crate) peer_end: Option<PeerEnd>,
    /// The shard has heard of the peer's end.
    pub(crate) peer_end_told: bool,
    /// A short write: the shard is owed `Writable`.
    pub(crate) blocked: bool,
    /// The server writes nothing more; what is in `down` can still be read.
    pub(crate) server_end: bool,
    /// The slot is free again.
    pub(crate) closed: bool,
    /// The server's process is gone, without a word.
    pub(crate) is_orphan: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerEnd {
    Fin,
    Reset,
}

impl Socket {
    pub(crate) fn new(shard: usize, conn: ConnId, down_bytes_max: usize) -> Self {
        Socket {
            shard,
            conn,
            up: VecDeque::new(),
            down: VecDeque::new(),
            down_bytes_max,
            peer_end: None,
            peer_end_told: false,
            blocked: false,
            server_end: false,
            closed: false,
            is_orphan: false,
        }
    }

    pub(crate) fn room(&self) -> usize {
        // What is sent to a peer that has gone is taken and thrown away.
        if self.peer_end.is_some() { usize::MAX } else { self.down_bytes_max.saturating_sub(self.down.len()) }
    }

    /// The server's write of `bytes`.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        if self.peer_end.is_none() {
            self.down.extend(bytes);
        }
    }

    pub(crate) fn end(&mut self, how: PeerEnd) {
        self.peer_end = Some(how);
        self.down.clear();
        if how == PeerEnd::Reset {
            self.up.clear();
        }
    }
}

pub(crate) fn upgrade_request(encoding: Encoding) -> String {
    let subprotocol = match encoding {
        Encoding::Json => "",
        Encoding::Protobuf => "Sec-WebSocket-Protocol: centrifuge-protobuf\r\n",
    };
    format!(
        "GET {PATH} HTTP/1.1\r\nHost: simulated\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{subprotocol}\r\n"
    )
}

/// A masked frame.
pub(crate) fn client_frame(opcode: u8, payload: &[u8], mask: u32) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        short @ 0..=125 => frame.push(0x80 | short as u8),
        medium @ 126..=65_535 => {
            frame.push(0x80 | 126);
            frame.extend((medium as u16).to_be_bytes());
        }
        long => {
            frame.push(0x80 | 127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    let key = mask.to_be_bytes();
    frame.extend(key);
    frame.extend(payload.iter().enumerate().map(|(i, byte)| byte ^ key[i % 4]));
    frame
}

pub(crate) const fn opcode(encoding: Encoding) -> u8 {
    match encoding {
        Encoding::Json => TEXT,
        Encoding::Protobuf => BINARY,
    }
}

/// What a client reads.
#[derive(Debug)]
pub(crate) enum Arrived {
    /// The payload of a data message.
    Data(Vec<u8>),
    Close(u16),
}

/// Takes the next frame from the front of what a client has read.
pub(crate) fn next_frame(bytes: &mut VecDeque<u8>, encoding: Encoding) -> Option<Arrived> {
    let byte = |index: usize| bytes.get(index).copied();
    let (first, second) = (byte(0)?, byte(1)?);
    assert_eq!(first & 0xF0, 0x80, "a server frame is final and has no reserved bits");
    assert_eq!(second & 0x80, 0, "a server frame is masked");
    let (start, len) = match second {
        126 => (4, u64::from(byte(2)?) << 8 | u64::from(byte(3)?)),
        127 => {
            byte(9)?;
            (10, (2..10).fold(0, |len, index| len << 8 | u64::from(bytes[index])))
        }
        short => (2, u64::from(short)),
    };
    let end = start + len as usize;
    if bytes.len() < end {
        return None;
    }
    let payload: Vec<u8> = bytes.drain(..end).skip(start).collect();
    if first & 0x0F == CLOSE {
        return Some(Arrived::Close(u16::from_be_bytes([payload[0], payload[1]])));
    }
    assert_eq!(first & 0x0F, opcode(encoding), "messages come in the frame type of the encoding");
    Some(Arrived::Data(payload))
}
