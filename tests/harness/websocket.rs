//! A blocking WebSocket client on a plain socket: RFC 6455 read independently of the server's own codec.
//!
//! In: an address and a path. Out: frames, the Close that ended the connection. Whatever a client must not do can be
//! done with [`WebSocket::write_raw`] and [`WebSocket::send_frame`].
//! Invariants: every read waits at most [`PATIENCE`]; a server frame that is masked, has a reserved bit or a length
//! that is not minimal fails the test.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::{PATIENCE, http};

/// Opcodes as they stand in the first byte.
pub const CONTINUATION: u8 = 0;
/// Text message.
pub const TEXT: u8 = 1;
/// Binary message.
pub const BINARY: u8 = 2;
/// Close.
pub const CLOSE: u8 = 8;
/// Ping.
pub const PING: u8 = 9;
/// Pong.
pub const PONG: u8 = 10;

/// The key of RFC 6455 §1.3, whose accept value is known.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The accept value that belongs to [`KEY`].
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// One frame from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Last frame of its message.
    pub fin: bool,
    /// One of the opcode constants.
    pub opcode: u8,
    /// Payload.
    pub payload: Vec<u8>,
}

/// What a wait for a frame gave.
#[derive(Debug)]
pub enum Received {
    /// A frame.
    Frame(Frame),
    /// The connection is over.
    End,
    /// Nothing came in time.
    Nothing,
}

/// How the server ended a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    /// Code of the Close frame; none when there was no Close frame or an empty one.
    pub code: Option<u16>,
    /// Its reason.
    pub reason: String,
}

/// A client connection.
#[derive(Debug)]
pub struct WebSocket {
    stream: TcpStream,
    buffer: Vec<u8>,
    read: usize,
    mask: u32,
    /// Head of the 101 answer.
    pub head: http::Response,
}

/// The upgrade request for `path`, with extra header lines (each ending in CRLF).
pub fn upgrade_request(address: SocketAddr, path: &str, extra: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{extra}\r\n"
    )
}

impl WebSocket {
    /// Connects and upgrades.
    pub fn open(address: SocketAddr, path: &str, subprotocol: Option<&str>) -> WebSocket {
        let extra = subprotocol.map(|name| format!("Sec-WebSocket-Protocol: {name}\r\n")).unwrap_or_default();
        let stream = TcpStream::connect(address).expect("connect");
        let socket = Self::upgrade(stream, &upgrade_request(address, path, &extra));
        assert_eq!(socket.head.header("sec-websocket-protocol"), subprotocol, "{}", socket.head.head);
        socket
    }

    /// Sends an upgrade request over `stream` and checks the 101.
    pub fn upgrade(mut stream: TcpStream, request: &str) -> WebSocket {
        stream.set_nodelay(true).expect("nodelay");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        stream.write_all(request.as_bytes()).expect("write the upgrade");
        let mut answer = Vec::new();
        let mut chunk = [0; 4096];
        let mut head = loop {
            if let Some(head) = http::parse(&answer) {
                break head;
            }
            match stream.read(&mut chunk) {
                Ok(n @ 1..) => answer.extend_from_slice(&chunk[..n]),
                other => panic!("upgrade: {other:?} after {:?}", String::from_utf8_lossy(&answer)),
            }
        };
        assert_eq!(head.status, 101, "{}\n{}", head.head, head.text());
        assert_eq!(head.header("sec-websocket-accept"), Some(ACCEPT), "{}", head.head);
        // Bytes that came behind the head belong to frames.
        let buffer = std::mem::take(&mut head.body);
        WebSocket { stream, buffer, read: 0, mask: 0x9E37_79B9, head }
    }

    /// The socket, for what frames cannot express.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends a text message.
    pub fn send_text(&mut self, text: &str) {
        self.send_frame(true, TEXT, text.as_bytes());
    }

    /// Sends a binary message.
    pub fn send_binary(&mut self, payload: &[u8]) {
        self.send_frame(true, BINARY, payload);
    }

    /// Sends one masked frame.
    pub fn send_frame(&mut self, fin: bool, opcode: u8, payload: &[u8]) {
        let frame = self.frame_bytes(fin, opcode, payload);
        self.write_raw(&frame);
    }

    /// A masked frame as bytes, its length in the shortest form.
    pub fn frame_bytes(&mut self, fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![(u8::from(fin) << 7) | opcode];
        match payload.len() {
            short @ 0..=125 => frame.push(0x80 | short as u8),
            medium @ 126..=65_535 => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&(medium as u16).to_be_bytes());
            }
            long => {
                frame.push(0x80 | 127);
                frame.extend_from_slice(&(long as u64).to_be_bytes());
            }
        }
        // A new key per frame, as RFC 6455 §5.3 asks; unpredictability is of no use against our own server.
        self.mask = self.mask.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let key = self.mask.to_be_bytes();
        frame.extend_from_slice(&key);
        frame.extend(payload.iter().enumerate().map(|(i, byte)| byte ^ key[i % 4]));
        frame
    }

    /// Sends bytes as they are.
    pub fn write_raw(&mut self, bytes: &[u8]) {
        // The server may have closed already: the test finds that out by reading.
        let _ = self.stream.write_all(bytes);
    }

    /// The next frame; fails the test when there is none.
    pub fn frame(&mut self) -> Frame {
        match self.try_frame(PATIENCE) {
            Received::Frame(frame) => frame,
            other => panic!("a frame was expected, not {other:?}"),
        }
    }

    /// The next frame within a time.
    pub fn try_frame(&mut self, within: Duration) -> Received {
        let end = Instant::now() + within;
        loop {
            if let Some(frame) = self.buffered() {
                return Received::Frame(frame);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Received::Nothing;
            }
            self.stream.set_read_timeout(Some(left)).expect("timeout");
            let mut chunk = [0; 65_536];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Received::End,
                Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Received::End,
            }
        }
    }

    /// Reads to the end of the connection and gives the Close frame that came, if any. Data frames before it are
    /// passed over. Answers the Close as RFC 6455 §5.5.1 asks.
    pub fn expect_close(&mut self) -> Close {
        let mut close = Close { code: None, reason: String::new() };
        let end = Instant::now() + PATIENCE;
        loop {
            match self.try_frame(end.saturating_duration_since(Instant::now())) {
                Received::Frame(frame) if frame.opcode == CLOSE => {
                    if frame.payload.len() >= 2 {
                        close.code = Some(u16::from_be_bytes([frame.payload[0], frame.payload[1]]));
                        close.reason = String::from_utf8(frame.payload[2..].to_vec()).expect("a reason is UTF-8");
                    }
                    self.send_frame(true, CLOSE, &frame.payload);
                }
                Received::Frame(_) => {}
                Received::End => return close,
                Received::Nothing => panic!("the connection did not end within {PATIENCE:?} (close so far: {close:?})"),
            }
        }
    }

    /// Takes one whole frame from what has been read.
    fn buffered(&mut self) -> Option<Frame> {
        let bytes = &self.buffer[self.read..];
        let (first, second) = (*bytes.first()?, *bytes.get(1)?);
        assert_eq!(first & 0x70, 0, "reserved bits in a server frame");
        assert_eq!(second & 0x80, 0, "a server frame is masked");
        let (start, len) = match second {
            126 => {
                let len = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
                assert!(len > 125, "length not minimal");
                (4, u64::from(len))
            }
            127 => {
                let len = u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?);
                assert!(len > 65_535, "length not minimal");
                (10, len)
            }
            len => (2, u64::from(len)),
        };
        let end = start + usize::try_from(len).expect("a sane length");
        let payload = bytes.get(start..end)?.to_vec();
        self.read += end;
        if self.read == self.buffer.len() {
            self.buffer.clear();
            self.read = 0;
        } else if self.read > 1 << 20 {
            self.buffer.drain(..self.read);
            self.read = 0;
        }
        Some(Frame { fin: first & 0x80 != 0, opcode: first & 0x0F, payload })
    }
}
