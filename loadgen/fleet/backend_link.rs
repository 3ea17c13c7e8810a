//! One ingest connection of a publisher that may lose it at any time.
//!
//! In: publishes with their keys. Out: frames; what was acknowledged or refused, by the place that the caller gave. Any error
//! means that the connection is over. Invariant: never more outstanding than the credit allows; nothing here waits.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use ringway_wire::ingest::{
    Hello, IngestError, PayloadKind, Publish, SERVER_FRAME_BYTES_MAX, ServerFrame, VERSION, decode_server, frame_len,
    write_hello, write_pong, write_publish,
};

use crate::net;

/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;

/// What the gateway said about one publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Ack { place: usize, epoch: (u32, u32), offset: u64, duplicate: bool },
    Nack { place: usize, temporary: bool, reason: String },
}

pub(super) struct Link {
    socket: OwnedFd,
    /// When it was begun.
    pub(super) since_ns: u64,
    /// The gateway wants no more publishes.
    pub(super) going_away: bool,
    out: Vec<u8>,
    input: Vec<u8>,
    scratch: Vec<u8>,
    next_seq: u64,
    /// Number on the connection -> place, time of sending, payload bytes.
    outstanding: BTreeMap<u64, (usize, u64, usize)>,
    /// Publishes and payload bytes that may be outstanding; none before the hello was answered.
    credit: Option<(i64, i64)>,
    outstanding_bytes: usize,
}

impl Link {
    pub(super) fn connect(address: SocketAddr, token: &str, instance: u64, now_ns: u64) -> Result<Link, String> {
        let socket = net::connect(address, None, 0).map_err(|error| format!("connect: {error}"))?;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&instance.to_le_bytes());
        id[8..].copy_from_slice(&now_ns.to_le_bytes());
        let mut out = Vec::new();
        let hello = Hello {
            version_min: VERSION,
            version_max: VERSION,
            features: 0,
            instance: id,
            token: token.as_bytes(),
            name: "ringway-loadgen",
        };
        write_hello(&mut out, &hello);
        Ok(Link {
            socket,
            since_ns: now_ns,
            going_away: false,
            out,
            input: Vec::new(),
            scratch: vec![0; READ_BYTES],
            next_seq: 1,
            outstanding: BTreeMap::new(),
            credit: None,
            outstanding_bytes: 0,
        })
    }

    /// Whether the hello was answered.
    pub(super) fn is_ready(&self) -> bool {
        self.credit.is_some()
    }

    /// Publishes without an answer.
    pub(super) fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// When the oldest publish without an answer was sent.
    pub(super) fn oldest_ns(&self) -> Option<u64> {
        self.outstanding.first_key_value().map(|(_, (_, sent_ns, _))| *sent_ns)
    }

    /// How many publishes of this length the credit allows now.
    pub(super) fn room(&self, payload_bytes: usize) -> i64 {
        let Some((messages, bytes)) = self.credit else { return 0 };
        let bytes = (bytes - self.outstanding_bytes as i64) / payload_bytes.max(1) as i64;
        (messages - self.outstanding.len() as i64).min(bytes).max(0)
    }

    /// Adds a publish; the caller has checked [`Link::room`].
    pub(super) fn publish(&mut self, place: usize, channel: &str, key: &[u8], payload: &[u8], now_ns: u64) {
        let publish = Publish { seq: self.next_seq, kind: PayloadKind::Json, idempotency_key: key, channel, payload };
        if write_publish(&mut self.out, &publish).is_err() {
            // Names and keys of this program are short: it cannot be too long.
            return;
        }
        self.outstanding.insert(self.next_seq, (place, now_ns, payload.len()));
        self.outstanding_bytes += payload.len();
        self.next_seq += 1;
    }

    /// Sends what the socket takes.
    pub(super) fn flush(&mut self) -> Result<(), String> {
        while !self.out.is_empty() {
            match net::send(&self.socket, &self.out) {
                Ok(0) => return Ok(()),
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) => return Err(format!("send: {error}")),
            }
        }
        Ok(())
    }

    /// Takes what has arrived.
    pub(super) fn receive(&mut self) -> Result<Vec<Heard>, String> {
        self.flush()?;
        let mut heard = Vec::new();
        let mut scratch = std::mem::take(&mut self.scratch);
        let result = loop {
            match net::receive(&self.socket, &mut scratch) {
                Ok(None) => break Ok(()),
                Ok(Some(0)) => break Err("it closed".to_string()),
                Ok(Some(count)) => {
                    self.input.extend_from_slice(&scratch[..count]);
                    if let Err(reason) = self.frames(&mut heard) {
                        break Err(reason);
                    }
                }
                Err(rustix::io::Errno::NOTCONN) => break Ok(()),
                Err(error) => break Err(format!("receive: {error}")),
            }
        };
        self.scratch = scratch;
        // What was heard before the end counts; the end is found again.
        if heard.is_empty() { result.map(|()| heard) } else { Ok(heard) }
    }

    fn frames(&mut self, heard: &mut Vec<Heard>) -> Result<(), String> {
        let input = std::mem::take(&mut self.input);
        let mut at = 0;
        while let Some(length) = frame_len(&input[at..], SERVER_FRAME_BYTES_MAX).map_err(broken)? {
            let Some(frame) = input.get(at..at + length) else { break };
            at += length;
            self.frame(decode_server(frame).map_err(broken)?, heard)?;
        }
        self.input = input;
        self.input.drain(..at);
        Ok(())
    }

    fn frame(&mut self, frame: ServerFrame<'_>, heard: &mut Vec<Heard>) -> Result<(), String> {
        match frame {
            ServerFrame::HelloOk(hello) => {
                let bytes = i64::try_from(hello.credit_bytes).unwrap_or(i64::MAX);
                self.credit = Some((i64::from(hello.credit_messages), bytes));
            }
            ServerFrame::Acks(acks) => {
                for ack in acks {
                    let ack = ack.map_err(broken)?;
                    let place = self.settle(ack.seq)?;
                    heard.push(Heard::Ack { place, epoch: ack.epoch, offset: ack.offset, duplicate: ack.duplicate });
                }
            }
            ServerFrame::Nack { seq, refusal } => {
                let place = self.settle(seq)?;
                let reason = format!("{} {}", refusal.code, refusal.text);
                heard.push(Heard::Nack { place, temporary: refusal.temporary, reason });
            }
            ServerFrame::Credit { messages, bytes } => {
                if let Some(credit) = &mut self.credit {
                    *credit = (credit.0 + i64::from(messages), credit.1.saturating_add(bytes));
                }
            }
            ServerFrame::Ping { nonce } => write_pong(&mut self.out, nonce),
            ServerFrame::GoingAway(_) => self.going_away = true,
            ServerFrame::Fatal(refusal) => return Err(format!("{} {}", refusal.code, refusal.text)),
            ServerFrame::Pong { .. }
            | ServerFrame::Event(_)
            | ServerFrame::CallAnswer(_)
            | ServerFrame::Unknown { .. } => {}
        }
        Ok(())
    }

    fn settle(&mut self, seq: u64) -> Result<usize, String> {
        let Some((place, _, bytes)) = self.outstanding.remove(&seq) else {
            return Err(format!("an answer to publish {seq}, which waits for none"));
        };
        self.outstanding_bytes -= bytes;
        Ok(place)
    }
}

fn broken(error: IngestError) -> String {
    format!("broken frame: {error:?}")
}
