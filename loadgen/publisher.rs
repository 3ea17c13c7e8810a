//! The publishing side of the fanout scenario: stamped publications to channels in turn.
//!
//! In: how many publications and their intended times. Out: frames on a WebSocket connection that the server
//! broadcasts (plain ones, or those of NATS), or publishes on the ingest port.
//! Invariants: publication g goes to channel g modulo channels with sequence g / channels; nothing here waits.
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use ringway_wire::frame::Opcode;
use ringway_wire::ingest::PayloadKind;

use crate::ingest_sender::{IngestSender, SenderOptions};
use crate::nats;
use crate::net;
use crate::options::{CHANNEL_MARK, Clients, Protocol, Publishing, Target, Via};
use crate::payload::{PayloadTemplate, Stamp};
use crate::protocol::{Dialect, Item, Reply, next_frame, write_frame};

/// Longest wait for the publishing connection's upgrade, in ms.
const UPGRADE_WAIT_MS: u64 = 5_000;
/// Bytes read at once from a publishing connection, on which next to nothing arrives.
const READ_BYTES: usize = 4096;

enum Line {
    Websocket(WsLine),
    Ingest(Box<IngestSender>),
}

/// A publisher with its counters.
pub struct Publisher {
    line: Line,
    payload: PayloadTemplate,
    /// Over a WebSocket: each message begins with the number of its channel and a space.
    direct: bool,
    message: Vec<u8>,
    channels: u64,
    run: u16,
    published: u64,
}

impl Publisher {
    /// Connects as the options say.
    pub fn connect(clients: &Clients, publishing: &Publishing, run: u16) -> Result<Publisher, String> {
        let default = match clients.protocol {
            Protocol::Websocket | Protocol::Nats => Via::Websocket,
            Protocol::CentrifugeJson | Protocol::CentrifugeProtobuf => Via::Ingest,
        };
        let direct = clients.url.contains(CHANNEL_MARK);
        let line = match publishing.publish_via.unwrap_or(default) {
            Via::Websocket if clients.channels > 1 && !direct => {
                let text =
                    "a publishing WebSocket connection reaches everybody: use --channels 1, or {channel} in --url";
                return Err(text.to_string());
            }
            Via::Websocket => Line::Websocket(WsLine::connect(clients, &publishing.publish_path)?),
            Via::Ingest => Line::Ingest(Box::new(IngestSender::connect(&SenderOptions {
                address: publishing.ingest,
                token: publishing.ingest_token.clone(),
                number: 0,
                channel_names: (0..clients.channels)
                    .map(|number| format!("{}{number}", clients.channel_prefix))
                    .collect(),
                kind: PayloadKind::Json,
                idempotency_keys: false,
            })?)),
        };
        let payload = PayloadTemplate::new(publishing.payload, publishing.payload_bytes)?;
        Ok(Publisher {
            line,
            payload,
            direct,
            message: Vec::new(),
            channels: u64::from(clients.channels),
            run,
            published: 0,
        })
    }

    /// Publications so far.
    pub fn published(&self) -> u64 {
        self.published
    }

    /// How many publications may be made now.
    pub fn room(&self) -> u64 {
        match &self.line {
            Line::Websocket(_) => u64::MAX,
            Line::Ingest(sender) => sender.room(self.payload_bytes()),
        }
    }

    fn payload_bytes(&self) -> usize {
        self.payload.len()
    }

    /// Makes one publication; it leaves with [`Publisher::flush`].
    pub fn publish(&mut self, intended_ns: u64) -> Result<(), String> {
        let channel = (self.published % self.channels) as u32;
        let stamp = Stamp { run: self.run, channel, sequence: self.published / self.channels, intended_ns };
        let payload = self.payload.stamped(&stamp);
        match &mut self.line {
            Line::Websocket(line) if self.direct => {
                self.message.clear();
                self.message.extend_from_slice(channel.to_string().as_bytes());
                self.message.push(b' ');
                self.message.extend_from_slice(payload);
                write_frame(&mut line.out, Opcode::Text, &self.message);
            }
            Line::Websocket(line) => line.publish(payload),
            Line::Ingest(sender) => sender.publish(channel, payload, intended_ns)?,
        }
        self.published += 1;
        Ok(())
    }

    /// Sends what the socket takes, and takes what has arrived. True: nothing is left to send.
    pub fn flush(&mut self) -> Result<bool, String> {
        match &mut self.line {
            Line::Websocket(line) => line.flush(),
            Line::Ingest(sender) => {
                sender.receive()?;
                sender.flush()
            }
        }
    }

    /// The ingest side, when that is how publications are made.
    pub fn ingest(&self) -> Option<&IngestSender> {
        match &self.line {
            Line::Websocket(_) => None,
            Line::Ingest(sender) => Some(sender),
        }
    }
}

/// A WebSocket connection whose every message the server broadcasts to all others; to NATS each says to which channel.
struct WsLine {
    stream: TcpStream,
    dialect: Dialect,
    /// NATS: the channel, and the command that is written next.
    command: Option<(String, Vec<u8>)>,
    out: Vec<u8>,
    input: Vec<u8>,
}

impl WsLine {
    fn connect(clients: &Clients, path: &str) -> Result<WsLine, String> {
        let target = Target::parse(&clients.url)?;
        let nats = clients.protocol == Protocol::Nats;
        let protocol = if nats { Protocol::Nats } else { Protocol::Websocket };
        let dialect = Dialect::new(protocol, &target.host, path, false);
        let explain = |error: std::io::Error| format!("publisher {}{path}: {error}", target.host);
        let mut stream = TcpStream::connect(target.address).map_err(explain)?;
        stream.set_nodelay(true).map_err(explain)?;
        stream.write_all(&dialect.request(0)).map_err(explain)?;
        stream.set_read_timeout(Some(Duration::from_millis(UPGRADE_WAIT_MS))).map_err(explain)?;
        let (mut input, since) = (Vec::new(), Instant::now());
        let end = loop {
            let mut bytes = [0; READ_BYTES];
            let count = stream.read(&mut bytes).map_err(explain)?;
            input.extend_from_slice(&bytes[..count]);
            if let Some(end) = dialect.answer_len(&input)? {
                break end;
            }
            if count == 0 || since.elapsed() > Duration::from_millis(UPGRADE_WAIT_MS) {
                return Err(format!("publisher {}{path}: no answer to the upgrade", target.host));
            }
        };
        input.drain(..end);
        stream.set_nonblocking(true).map_err(explain)?;
        let mut out = Vec::new();
        if nats {
            write_frame(&mut out, Opcode::Binary, nats::introduction());
        }
        let command = nats.then(|| (format!("{}0", clients.channel_prefix), Vec::new()));
        Ok(WsLine { stream, dialect, command, out, input })
    }

    fn publish(&mut self, payload: &[u8]) {
        let Some((channel, command)) = &mut self.command else {
            return write_frame(&mut self.out, Opcode::Text, payload);
        };
        command.clear();
        nats::write_publish(command, channel, payload);
        write_frame(&mut self.out, Opcode::Binary, command);
    }

    fn flush(&mut self) -> Result<bool, String> {
        self.receive()?;
        if !self.out.is_empty() {
            let sent = net::send(&self.stream, &self.out).map_err(|error| format!("publisher: {error}"))?;
            self.out.drain(..sent);
        }
        Ok(self.out.is_empty())
    }

    /// Answers pings; anything else that arrives is not for us.
    fn receive(&mut self) -> Result<(), String> {
        let mut bytes = [0; READ_BYTES];
        while let Some(count) = net::receive(&self.stream, &mut bytes).map_err(|error| format!("publisher: {error}"))? {
            if count == 0 {
                return Err("publisher: the server closed the connection".to_string());
            }
            self.input.extend_from_slice(&bytes[..count]);
        }
        let mut at = 0;
        while let Some(frame) = next_frame(&self.input[at..], false)? {
            at += frame.length;
            match frame.opcode {
                8 => return Err("publisher: the server sent a close frame".to_string()),
                9 => write_frame(&mut self.out, Opcode::Pong, frame.payload),
                // The server's lines: whether it still listens, and what it refuses.
                2 if self.command.is_some() => {
                    let mut rest = frame.payload;
                    while let Some((item, used)) = self.dialect.next_item(rest)? {
                        rest = &rest[used..];
                        match item {
                            Item::Ping => self.out.extend_from_slice(self.dialect.pong()),
                            Item::Message(line) => {
                                if let Reply::Refused(text) = self.dialect.reply(line) {
                                    return Err(format!("publisher: refused: {text}"));
                                }
                            }
                        }
                    }
                }
                _ => {}
            }
        }
        self.input.drain(..at);
        Ok(())
    }
}
