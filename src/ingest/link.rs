//! One connection as the client sees it: what the gateway allows, what is outstanding, what time demands.
//!
//! In: the hello's answer, changes of credit, answers by number, the time. Out: frames to write next ([`Link::fill`]),
//! and how long there will be none.
//! Invariants: `sent_messages` and `sent_bytes` are what was sent on this connection and has no answer; a publish is
//! sent only inside the window. Numbers below `cursor` were sent here or have their outcome; the rest goes in order.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_wire::ingest::{BatchWriter, HelloOk, IngestError, write_ping, write_pong};

use crate::buffer::MADE_KEY_BYTES;
use crate::error::{PublishError, Refusal};
use crate::remote::Remote;
use crate::state::{Outcomes, State, Stop};

/// Pings of the gateway that may wait for their answer; a gateway that sends more gets no more answers than this.
const PONGS_MAX: usize = 16;

/// How a connection ended, or is to end.
#[derive(Clone, Debug)]
pub(crate) enum End {
    /// Nothing is left to do.
    Done,
    /// The node goes away and has answered what it will.
    Moved,
    /// Cut, silent, or a temporary error: try again.
    Retry(Box<str>),
    /// A write failed: try again, unless the reader finds the gateway's reason.
    Unwritable(Box<str>),
    /// Refused for good.
    Final(Refusal),
}

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Link {
    /// To end a blocked read or write from another thread.
    pub(crate) stream: Arc<TcpStream>,
    pub(crate) node: Box<str>,
    /// Which connection of the client it is, from 1.
    pub(crate) generation: u64,
    /// Events and calls.
    pub(crate) remote: Remote,
    window_messages: i64,
    window_bytes: i64,
    frame_bytes_max: usize,
    publication_bytes_max: u32,
    cursor: u64,
    pub(crate) sent_messages: i64,
    pub(crate) sent_bytes: i64,
    /// Something was answered here, so the node works.
    answered: bool,
    opened_at: Instant,
    /// Set by the reader.
    pub(crate) end: Option<End>,
    /// A going-away was received: until when answers may come.
    pub(crate) leave_at: Option<Instant>,
    /// Where a going-away said to go.
    pub(crate) hints: Vec<String>,
    pongs: Vec<u64>,
    ping_interval: Duration,
    peer_timeout: Duration,
    heard_at: Instant,
    pinged: u64,
    ping_at: Instant,
}

/// What [`Link`] takes from the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkOptions {
    pub(crate) ping_interval: Duration,
    pub(crate) peer_timeout: Duration,
    pub(crate) batch_bytes_max: usize,
}

impl Link {
    pub(crate) fn new(
        stream: Arc<TcpStream>,
        hello: &HelloOk<'_>,
        generation: u64,
        cursor: u64,
        options: LinkOptions,
        now: Instant,
    ) -> Self {
        // Half of the gateway's patience, so that one lost turn does not end an idle connection.
        let idle = match hello.idle_timeout_ms {
            0 => options.ping_interval,
            idle_timeout_ms => Duration::from_millis(u64::from(idle_timeout_ms / 2).max(1)),
        };
        let ping_interval = options.ping_interval.min(idle);
        Link {
            stream,
            node: hello.node.into(),
            generation,
            remote: Remote::new(hello.features, hello.frame_bytes_max as usize),
            window_messages: i64::from(hello.credit_messages),
            window_bytes: i64::try_from(hello.credit_bytes).unwrap_or(i64::MAX),
            frame_bytes_max: hello.frame_bytes_max as usize,
            publication_bytes_max: hello.publication_bytes_max,
            cursor,
            sent_messages: 0,
            sent_bytes: 0,
            answered: false,
            opened_at: now,
            end: None,
            leave_at: None,
            hints: Vec::new(),
            pongs: Vec::new(),
            ping_interval,
            peer_timeout: options.peer_timeout,
            heard_at: now,
            pinged: 0,
            ping_at: now + ping_interval,
        }
    }

    /// Bytes came from the gateway.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard_at = now;
        self.ping_at = now + self.ping_interval;
    }

    pub(crate) fn pinged(&mut self, nonce: u64) {
        if self.pongs.len() < PONGS_MAX {
            self.pongs.push(nonce);
        }
    }

    /// The window changed.
    pub(crate) fn credit(&mut self, messages: i32, bytes: i64) {
        self.window_messages = self.window_messages.saturating_add(i64::from(messages));
        self.window_bytes = self.window_bytes.saturating_add(bytes);
    }

    /// Whether the publish with this number may be answered here.
    pub(crate) fn was_sent(&self, seq: u64) -> bool {
        seq < self.cursor
    }

    /// A publish of this size was answered.
    pub(crate) fn answer(&mut self, payload_len: u32) {
        self.sent_messages -= 1;
        self.sent_bytes -= i64::from(payload_len);
        self.answered = true;
    }

    /// Whether the connection was worth making, so that the next attempt needs no delay.
    pub(crate) fn useful(&self, now: Instant, lasting: Duration) -> bool {
        self.answered || now.saturating_duration_since(self.opened_at) > lasting
    }

    /// An empty window lets one publish of any size through, so that no shrinking can stop a connection for ever.
    fn allows(&self, payload_len: i64) -> bool {
        self.sent_messages < self.window_messages
            && (self.sent_messages == 0 || self.sent_bytes + payload_len <= self.window_bytes)
    }

    /// Whether anything waits that only credit or a new connection will let out.
    pub(crate) fn holds_back(&self, next_seq: u64) -> bool {
        self.leave_at.is_some() || self.cursor < next_seq
    }

    /// Appends pongs, a ping if it is time, frames of events and calls, and one batch of publishes, to `out`.
    pub(crate) fn fill(state: &mut State, options: LinkOptions, now: Instant, out: &mut Vec<u8>, done: &mut Outcomes) {
        let Some(mut link) = state.link.take() else { return };
        for nonce in link.pongs.drain(..) {
            write_pong(out, nonce);
        }
        if now >= link.ping_at {
            link.pinged += 1;
            write_ping(out, link.pinged);
            link.ping_at = now + link.ping_interval;
        }
        if link.leave_at.is_some() || state.stop != Stop::No {
            link.remote.take_no_more();
        }
        out.append(&mut link.remote.out);
        if link.leave_at.is_none() {
            link.fill_batch(state, options.batch_bytes_max, out, done);
        }
        state.link = Some(link);
    }

    fn fill_batch(&mut self, state: &mut State, batch_bytes_max: usize, out: &mut Vec<u8>, done: &mut Outcomes) {
        let mut made_key = [0; MADE_KEY_BYTES];
        let end = state.buffer.next_seq();
        let mut too_large = Vec::new();
        let mut batch: Option<BatchWriter<'_>> = None;
        let mut out = Some(out);
        while self.cursor < end {
            let Some(publish) = state.buffer.get(self.cursor, &mut made_key) else {
                self.cursor += 1;
                continue;
            };
            let entry_bytes =
                BatchWriter::entry_bytes(publish.idempotency_key.len(), publish.channel.len(), publish.payload.len());
            if publish.payload.len() > self.publication_bytes_max as usize
                || BatchWriter::HEADER_BYTES + entry_bytes > self.frame_bytes_max
            {
                too_large.push(self.cursor);
                self.cursor += 1;
                continue;
            }
            if !self.allows(publish.payload.len() as i64) {
                break;
            }
            let frame_bytes = batch.as_ref().map_or(BatchWriter::HEADER_BYTES, BatchWriter::frame_bytes);
            let frame_bytes_max = if batch.is_none() { usize::MAX } else { batch_bytes_max.min(self.frame_bytes_max) };
            if frame_bytes + entry_bytes > frame_bytes_max {
                break;
            }
            if batch.is_none() {
                batch = out.take().map(|out| BatchWriter::new(out, publish.seq));
            }
            // Lengths were checked when the publish was taken, so this cannot fail.
            if batch.as_mut().is_some_and(|batch| batch.push(&publish).is_ok()) {
                self.sent_messages += 1;
                self.sent_bytes += publish.payload.len() as i64;
            }
            self.cursor += 1;
        }
        if let Some(batch) = batch {
            batch.finish();
        }
        for seq in too_large {
            state.complete(seq, Err(PublishError::Refused(IngestError::TooLarge.into())), done);
        }
    }

    /// When there is something to do even if nothing happens, and whether the gateway has been silent for too long.
    pub(crate) fn time_left(&self, now: Instant) -> Result<Duration, End> {
        let silent = now.saturating_duration_since(self.heard_at);
        if silent >= self.peer_timeout {
            return Err(End::Retry(format!("nothing heard for {} ms", silent.as_millis()).into()));
        }
        let mut at = self.ping_at.min(self.heard_at + self.peer_timeout);
        if let Some(leave_at) = self.leave_at {
            if (self.sent_messages == 0 && self.remote.is_idle()) || now >= leave_at {
                return Err(End::Moved);
            }
            at = at.min(leave_at);
        }
        Ok(at.saturating_duration_since(now))
    }
}
