//! A thin, fast publisher on the ingest port: batches, credit, and acknowledgements checked per channel.
//!
//! In: (channel, payload, intended time). Out: PublishBatch frames; latency from intended time to acknowledgement, and
//! what was wrong with the acknowledgements.
//!
//! Invariants: never more outstanding than the credit allows, in messages and in payload bytes; every publish is
//! acknowledged or refused exactly once; per channel the offsets of new publications are dense under one epoch.
//! Nothing here waits, except the hello.
use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use ringway_wire::ingest::{
    Ack, BatchWriter, Hello, IngestError, PayloadKind, Publish, SERVER_FRAME_BYTES_MAX, ServerFrame, VERSION,
    decode_server, frame_len, write_hello, write_pong,
};

use crate::net;
use crate::report::Latency;

/// Longest wait for the answer to the hello, in ms.
const HELLO_WAIT_MS: u64 = 5_000;
/// Bytes read at once.
const READ_BYTES: usize = 256 * 1024;
/// Publishes collected into one frame.
pub const BATCH_MAX: usize = 256;

/// How to connect and what to publish to.
#[derive(Clone, Debug)]
pub struct SenderOptions {
    /// Ingest port.
    pub address: SocketAddr,
    /// Its token.
    pub token: String,
    /// Number of this connection; part of its instance id.
    pub number: u32,
    /// Names of the channels, by number.
    pub channel_names: Vec<String>,
    /// What payloads are.
    pub kind: PayloadKind,
    /// Give each publish a key of 16 bytes.
    pub idempotency_keys: bool,
}

/// What was wrong with acknowledgements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AckFaults {
    /// Offsets that did not follow the one before on their channel.
    pub gaps: u64,
    /// Publishes acknowledged before an earlier one of their channel.
    pub disordered: u64,
    /// The epoch of a channel changed.
    pub epoch_changes: u64,
    /// Publishes acknowledged as duplicates.
    pub duplicates: u64,
    /// Publishes refused.
    pub refused: u64,
    /// Acknowledgements of nothing that was outstanding.
    pub unknown: u64,
}

impl AckFaults {
    /// Adds another connection's.
    pub fn add(&mut self, other: &AckFaults) {
        self.gaps += other.gaps;
        self.disordered += other.disordered;
        self.epoch_changes += other.epoch_changes;
        self.duplicates += other.duplicates;
        self.refused += other.refused;
        self.unknown += other.unknown;
    }

    /// Whether there is none.
    pub fn none(&self) -> bool {
        *self == AckFaults::default()
    }
}

/// Last acknowledged position of each channel, to check that offsets are dense.
#[derive(Debug)]
pub struct AckChecker {
    last: Vec<Option<Position>>,
    faults: AckFaults,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    epoch: (u32, u32),
    offset: u64,
    seq: u64,
}

impl AckChecker {
    /// For so many channels.
    pub fn new(channels: usize) -> AckChecker {
        AckChecker { last: vec![None; channels], faults: AckFaults::default() }
    }

    /// The last acknowledged offset of a channel; 0: none.
    pub fn top(&self, channel: u32) -> u64 {
        self.last.get(channel as usize).copied().flatten().map_or(0, |last| last.offset)
    }

    /// Takes the acknowledgement of a publish to `channel`. Offset 0 means that the channel keeps no history.
    pub fn take(&mut self, channel: u32, ack: &Ack) {
        if ack.duplicate {
            self.faults.duplicates += 1;
            return;
        }
        let Some(last) = self.last.get_mut(channel as usize) else {
            self.faults.unknown += 1;
            return;
        };
        if let Some(last) = last {
            self.faults.disordered += u64::from(ack.seq <= last.seq);
            if last.epoch != ack.epoch {
                self.faults.epoch_changes += 1;
            } else if ack.offset != 0 && ack.offset != last.offset + 1 {
                self.faults.gaps += 1;
            }
        }
        *last = Some(Position { epoch: ack.epoch, offset: ack.offset, seq: ack.seq });
    }
}

#[derive(Debug)]
struct Outstanding {
    channel: u32,
    payload_bytes: u32,
    intended_ns: u64,
    settled: bool,
}

/// One ingest connection.
pub struct IngestSender {
    stream: TcpStream,
    options: SenderOptions,
    out: Vec<u8>,
    sent: usize,
    batch: Vec<(u32, Vec<u8>)>,
    batch_len: usize,
    input: Vec<u8>,
    scratch: Vec<u8>,
    next_seq: u64,
    outstanding: VecDeque<Outstanding>,
    outstanding_messages: u64,
    outstanding_bytes: u64,
    credit_messages: i64,
    credit_bytes: i64,
    frame_bytes_max: usize,
    acked: u64,
    checker: AckChecker,
    latency: Latency,
    going_away: bool,
}

impl IngestSender {
    /// Connects and says hello.
    pub fn connect(options: &SenderOptions) -> Result<IngestSender, String> {
        let explain = |error: std::io::Error| format!("ingest {}: {error}", options.address);
        let mut stream = TcpStream::connect(options.address).map_err(explain)?;
        stream.set_nodelay(true).map_err(explain)?;
        let mut instance = [0; 16];
        instance[..8].copy_from_slice(&net::now_ns().to_le_bytes());
        instance[8..12].copy_from_slice(&std::process::id().to_le_bytes());
        instance[12..].copy_from_slice(&options.number.to_le_bytes());
        let mut out = Vec::new();
        let hello = Hello {
            version_min: VERSION,
            version_max: VERSION,
            features: 0,
            instance,
            token: options.token.as_bytes(),
            name: "ringway-loadgen",
        };
        write_hello(&mut out, &hello);
        stream.write_all(&out).map_err(explain)?;
        stream.set_read_timeout(Some(Duration::from_millis(HELLO_WAIT_MS))).map_err(explain)?;
        let mut input = Vec::new();
        let (used, credit_messages, credit_bytes, frame_bytes_max) = loop {
            let mut bytes = [0; 4096];
            match stream.read(&mut bytes).map_err(explain)? {
                0 => return Err(format!("ingest {}: closed during the hello", options.address)),
                count => input.extend_from_slice(&bytes[..count]),
            }
            let Some(length) = frame_len(&input, SERVER_FRAME_BYTES_MAX).map_err(broken)? else { continue };
            if input.len() < length {
                continue;
            }
            match decode_server(&input[..length]).map_err(broken)? {
                ServerFrame::HelloOk(hello) => {
                    break (length, hello.credit_messages, hello.credit_bytes, hello.frame_bytes_max as usize);
                }
                ServerFrame::Fatal(refusal) => {
                    return Err(format!("ingest refused: {} {}", refusal.code, refusal.text));
                }
                other => return Err(format!("ingest: {other:?} instead of a hello")),
            }
        };
        input.drain(..used);
        stream.set_nonblocking(true).map_err(explain)?;
        out.clear();
        Ok(IngestSender {
            stream,
            checker: AckChecker::new(options.channel_names.len()),
            options: options.clone(),
            out,
            sent: 0,
            batch: Vec::new(),
            batch_len: 0,
            input,
            scratch: vec![0; READ_BYTES],
            next_seq: 1,
            outstanding: VecDeque::new(),
            outstanding_messages: 0,
            outstanding_bytes: 0,
            credit_messages: i64::from(credit_messages),
            credit_bytes: i64::try_from(credit_bytes).unwrap_or(i64::MAX),
            frame_bytes_max,
            acked: 0,
            latency: Latency::new(),
            going_away: false,
        })
    }

    /// How many publishes of this length the credit allows now.
    pub fn room(&self, payload_bytes: usize) -> u64 {
        if self.going_away {
            return 0;
        }
        let messages = self.credit_messages - self.outstanding_messages.cast_signed();
        let bytes = (self.credit_bytes - self.outstanding_bytes.cast_signed()) / payload_bytes.max(1) as i64;
        messages.min(bytes).max(0).cast_unsigned()
    }

    /// Adds a publish; the caller has checked [`IngestSender::room`].
    pub fn publish(&mut self, channel: u32, payload: &[u8], intended_ns: u64) -> Result<(), String> {
        if self.batch_len == BATCH_MAX {
            self.frame()?;
        }
        // Payload buffers are used again: nothing is allocated per publish in the long run.
        match self.batch.get_mut(self.batch_len) {
            Some((at, bytes)) => {
                *at = channel;
                bytes.clear();
                bytes.extend_from_slice(payload);
            }
            None => self.batch.push((channel, payload.to_vec())),
        }
        self.batch_len += 1;
        self.outstanding.push_back(Outstanding {
            channel,
            payload_bytes: payload.len() as u32,
            intended_ns,
            settled: false,
        });
        self.outstanding_messages += 1;
        self.outstanding_bytes += payload.len() as u64;
        Ok(())
    }

    /// Makes frames of what was collected.
    fn frame(&mut self) -> Result<(), String> {
        let mut next = 0;
        while next < self.batch_len {
            let mut writer = BatchWriter::new(&mut self.out, self.next_seq);
            while next < self.batch_len {
                let (channel, payload) = &self.batch[next];
                let name = self.options.channel_names.get(*channel as usize).map_or("", String::as_str);
                let mut key = [0; 16];
                key[..8].copy_from_slice(&self.next_seq.to_le_bytes());
                key[8..12].copy_from_slice(&self.options.number.to_le_bytes());
                key[12..].copy_from_slice(&std::process::id().to_le_bytes());
                let idempotency_key = if self.options.idempotency_keys { &key[..] } else { &[] };
                let entry_bytes = BatchWriter::entry_bytes(idempotency_key.len(), name.len(), payload.len());
                if writer.count() > 0 && writer.frame_bytes() + entry_bytes > self.frame_bytes_max {
                    break;
                }
                let kind = self.options.kind;
                let publish = Publish { seq: self.next_seq, kind, idempotency_key, channel: name, payload };
                writer.push(&publish).map_err(broken)?;
                self.next_seq += 1;
                next += 1;
            }
            writer.finish();
        }
        self.batch_len = 0;
        Ok(())
    }

    /// Sends what the socket takes. True: nothing is left.
    pub fn flush(&mut self) -> Result<bool, String> {
        self.frame()?;
        while self.sent < self.out.len() {
            match net::send(&self.stream, &self.out[self.sent..]) {
                Ok(0) => return Ok(false),
                Ok(count) => self.sent += count,
                Err(error) => return Err(format!("ingest: {error}")),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(true)
    }

    /// Takes acknowledgements and credit that have arrived; returns how many publishes were settled.
    pub fn receive(&mut self) -> Result<u64, String> {
        let before = self.acked + self.checker.faults.refused;
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut result = Ok(());
        while let Some(count) = net::receive(&self.stream, &mut scratch).map_err(|error| format!("ingest: {error}"))? {
            if count == 0 {
                return Err("ingest: the server closed the connection".to_string());
            }
            self.input.extend_from_slice(&scratch[..count]);
            result = self.take_frames();
            if result.is_err() || count < scratch.len() {
                break;
            }
        }
        self.scratch = scratch;
        result?;
        Ok(self.acked + self.checker.faults.refused - before)
    }

    fn take_frames(&mut self) -> Result<(), String> {
        let input = std::mem::take(&mut self.input);
        let now_ns = net::now_ns();
        let mut at = 0;
        while let Some(length) = frame_len(&input[at..], SERVER_FRAME_BYTES_MAX).map_err(broken)? {
            let Some(frame) = input.get(at..at + length) else { break };
            at += length;
            self.take_frame(decode_server(frame).map_err(broken)?, now_ns)?;
        }
        self.input = input;
        self.input.drain(..at);
        Ok(())
    }

    fn take_frame(&mut self, frame: ServerFrame<'_>, now_ns: u64) -> Result<(), String> {
        match frame {
            ServerFrame::Acks(acks) => {
                for ack in acks {
                    let ack = ack.map_err(broken)?;
                    match self.settle(ack.seq) {
                        Some((channel, intended_ns)) => {
                            self.acked += 1;
                            self.latency.record(now_ns.saturating_sub(intended_ns));
                            self.checker.take(channel, &ack);
                        }
                        None => self.checker.faults.unknown += 1,
                    }
                }
            }
            ServerFrame::Nack { seq, .. } => match self.settle(seq) {
                Some(_) => self.checker.faults.refused += 1,
                None => self.checker.faults.unknown += 1,
            },
            ServerFrame::Credit { messages, bytes } => {
                self.credit_messages += i64::from(messages);
                self.credit_bytes = self.credit_bytes.saturating_add(bytes);
            }
            ServerFrame::Ping { nonce } => write_pong(&mut self.out, nonce),
            ServerFrame::GoingAway(_) => self.going_away = true,
            ServerFrame::Fatal(refusal) => return Err(format!("ingest: {} {}", refusal.code, refusal.text)),
            ServerFrame::HelloOk(_) => return Err("ingest: a second hello".to_string()),
            ServerFrame::Pong { .. }
            | ServerFrame::Event(_)
            | ServerFrame::CallAnswer(_)
            | ServerFrame::Unknown { .. } => {}
        }
        Ok(())
    }

    /// Ends publish `seq`: its channel and intended time, if it was outstanding.
    fn settle(&mut self, seq: u64) -> Option<(u32, u64)> {
        let first = self.next_seq + self.batch_len as u64 - self.outstanding.len() as u64;
        let entry = self.outstanding.get_mut(usize::try_from(seq.checked_sub(first)?).ok()?)?;
        if entry.settled {
            return None;
        }
        entry.settled = true;
        self.outstanding_messages -= 1;
        self.outstanding_bytes -= u64::from(entry.payload_bytes);
        let found = (entry.channel, entry.intended_ns);
        while self.outstanding.front().is_some_and(|entry| entry.settled) {
            self.outstanding.pop_front();
        }
        Some(found)
    }

    /// Publishes neither acknowledged nor refused.
    pub fn unsettled(&self) -> u64 {
        self.outstanding_messages
    }

    /// Publishes acknowledged.
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// The last acknowledged offset of a channel; 0: none.
    pub fn top(&self, channel: u32) -> u64 {
        self.checker.top(channel)
    }

    /// What was wrong.
    pub fn faults(&self) -> &AckFaults {
        &self.checker.faults
    }

    /// Latency from the intended time to the acknowledgement.
    pub fn latency(&self) -> &Latency {
        &self.latency
    }

    /// Forgets latencies so far.
    pub fn reset_latency(&mut self) {
        self.latency = Latency::new();
    }
}

impl AsFd for IngestSender {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn broken(error: IngestError) -> String {
    format!("ingest: broken frame: {error:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(offset: u64, epoch: u32) -> Ack {
        Ack { seq: u64::from(epoch) << 32 | offset, offset, epoch: (epoch, 0), duplicate: false }
    }

    #[test]
    fn acknowledged_offsets_are_dense_per_channel() {
        let mut checker = AckChecker::new(2);
        for offset in 5..9 {
            checker.take(0, &ack(offset, 1));
            checker.take(1, &ack(offset + 100, 1));
        }
        assert!(checker.faults.none());
        checker.take(0, &ack(10, 1));
        assert_eq!(checker.faults.gaps, 1);
        checker.take(0, &ack(10, 1));
        assert_eq!(checker.faults.gaps, 2, "an offset twice is no better than one missing");
        checker.take(1, &ack(1, 2));
        assert_eq!(checker.faults.epoch_changes, 1);
        checker.take(1, &Ack { duplicate: true, ..ack(1, 2) });
        assert_eq!(checker.faults.duplicates, 1);
        checker.take(2, &ack(1, 1));
        assert_eq!(checker.faults.unknown, 1);
    }

    #[test]
    fn channels_without_history_have_offset_zero() {
        let mut checker = AckChecker::new(1);
        checker.take(0, &Ack { seq: 1, ..ack(0, 0) });
        checker.take(0, &Ack { seq: 2, ..ack(0, 0) });
        assert!(checker.faults.none());
        checker.take(0, &Ack { seq: 2, ..ack(0, 0) });
        assert_eq!(checker.faults.disordered, 1);
    }
}
