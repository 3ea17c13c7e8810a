//! One worker process: its event loop, and every connection from connect to close.
//!
//! In: [`WorkerConfig`] and orders on stdin, bytes of its connections. Out: notes on stdout, bytes to the server.
//!
//! Invariants: an idle open connection costs a descriptor, one byte of phase and four bytes per subscription; bytes of
//! a frame that is not whole yet, bytes that a socket did not take, and what is known of an opening connection live in
//! maps that are empty when nothing is under way. All orders and notes are lines, so that the worker does not know
//! whether it is a process or anything else.
mod churn;
mod talk;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};

use ringway_wire::deflate::{InflateLimits, Inflater};
use ringway_wire::frame::Opcode;

use crate::checker::Checker;
use crate::link::{WorkerConfig, decode};
use crate::net::{self, Poll, Ready};
use crate::payload::{PayloadTemplate, Stamp, StampFinder};
use crate::protocol::{Dialect, Item, Reply, next_frame, write_frame};
use crate::report::Latency;
use crate::token::TokenSigner;
use churn::Churn;

/// Bytes read from a socket at once.
const READ_BYTES: usize = 64 * 1024;
/// What a compressed message may become. A server under test is not suspected: only its errors are to be bounded.
const INFLATE_LIMITS: InflateLimits = InflateLimits { message_bytes_max: 16 * 1024 * 1024, ratio_max: 1032 };
/// Longest wait when nothing is to be said, in microseconds.
const IDLE_WAIT_US: u64 = 100_000;
/// Token of stdin in the epoll; connections have their index.
const ORDERS: u64 = u64::MAX;
/// Connections begun between two looks at the sockets.
const STARTS_PER_TURN: u32 = 32;

/// Where a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    Unborn,
    /// The upgrade was, or will be, sent.
    Upgrading,
    /// Commands were sent, replies are due.
    Joining,
    Open,
    Closed,
}

/// What is known of a connection until it is open.
#[derive(Debug)]
struct Opening {
    started_ns: u64,
    replies_due: u32,
}

/// What the coordinator waits for.
#[derive(Debug)]
struct Goal {
    published: u64,
    /// Deliveries to this worker by then.
    due: u64,
    /// Time of the first delivery since the order; 0: none yet.
    first_ns: u64,
}

/// The running echo load.
#[derive(Debug)]
struct Echo {
    payload: PayloadTemplate,
    next_sequence: Vec<u32>,
    outstanding: u64,
    stopping: bool,
}

struct Worker {
    config: WorkerConfig,
    dialect: Dialect,
    /// Gives each connection its own token; none: all have that of the configuration.
    signer: Option<TokenSigner>,
    poll: Poll,
    sockets: Vec<Option<OwnedFd>>,
    phases: Vec<Phase>,
    opening: HashMap<u32, Opening>,
    partial: HashMap<u32, Vec<u8>>,
    unsent: HashMap<u32, Vec<u8>>,
    checker: Checker,
    finder: StampFinder,
    latency: Latency,
    opening_latency: Latency,
    echo: Option<Echo>,
    echoes: u64,
    churn: Option<Churn>,
    changes: u64,
    told: u64,
    scratch: Vec<u8>,
    /// One for all connections: every message begins with an empty window.
    inflater: Inflater,
    received_bytes: u64,
    compressed: u64,
    orders: String,
    started: u32,
    open: u32,
    ready_said: bool,
    first_ns: u64,
    last_ns: u64,
    failures: BTreeMap<String, u64>,
    losses: BTreeMap<String, u64>,
    pings: u64,
    answers_pings: bool,
    goal: Option<Goal>,
    /// Time of the last delivery.
    delivered_ns: u64,
    said_ns: u64,
    said_received: u64,
    said_open: u32,
    cpu_ns_at_reset: u64,
    exiting: bool,
}

/// The first line of stdin: a worker's configuration.
pub(crate) fn first_line() -> Result<String, String> {
    let mut line = String::new();
    // Unbuffered by hand: a buffered reader would hide orders from the epoll.
    let mut byte = [0u8; 1];
    loop {
        match rustix::io::read(io::stdin(), &mut byte) {
            Ok(1) if byte[0] == b'\n' => return Ok(line),
            Ok(1) => line.push(char::from(byte[0])),
            Ok(_) => return Err("no configuration on stdin; this command is started by the program itself".to_string()),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Runs a worker on stdin and stdout until it is told to exit or its coordinator is gone.
pub fn run() -> Result<(), String> {
    let line = first_line()?;
    let config: WorkerConfig = decode(&line)?;
    net::raise_open_file_limit();
    if let Some(cpu) = config.cpu {
        net::pin_to_core(cpu)?;
    }
    Worker::new(config)?.run()
}

impl Worker {
    fn new(config: WorkerConfig) -> Result<Worker, String> {
        let poll = Poll::new().map_err(|error| format!("epoll: {error}"))?;
        poll.add(io::stdin(), ORDERS, false).map_err(|error| format!("stdin: {error}"))?;
        let count = config.connections as usize;
        Ok(Worker {
            signer: config.token_secret.as_deref().map(TokenSigner::new),
            dialect: Dialect::new(config.protocol, &config.host, &config.path, config.deflate),
            poll,
            sockets: std::iter::repeat_with(|| None).take(count).collect(),
            phases: vec![Phase::Unborn; count],
            opening: HashMap::new(),
            partial: HashMap::new(),
            unsent: HashMap::new(),
            checker: Checker::new(config.layout, config.run, config.first_connection, config.connections),
            finder: StampFinder::default(),
            latency: Latency::new(),
            opening_latency: Latency::new(),
            echo: None,
            echoes: 0,
            churn: None,
            changes: 0,
            told: 0,
            scratch: vec![0; READ_BYTES],
            inflater: Inflater::new(),
            received_bytes: 0,
            compressed: 0,
            orders: String::new(),
            started: 0,
            open: 0,
            ready_said: false,
            first_ns: net::now_ns(),
            last_ns: 0,
            failures: BTreeMap::new(),
            losses: BTreeMap::new(),
            pings: 0,
            answers_pings: false,
            goal: None,
            delivered_ns: 0,
            said_ns: 0,
            said_received: 0,
            said_open: 0,
            cpu_ns_at_reset: 0,
            exiting: false,
            config,
        })
    }

    fn run(mut self) -> Result<(), String> {
        let mut ready: Vec<Ready> = Vec::with_capacity(net::EVENTS_MAX);
        while !self.exiting {
            let more_to_start = self.start_connections();
            if !more_to_start && self.config.nap_us > 0 {
                net::nap(self.config.nap_us);
            }
            let timeout_us = match (more_to_start, self.something_to_say()) {
                (true, _) => 0,
                (false, true) => self.config.notify_us,
                (false, false) => IDLE_WAIT_US,
            };
            self.poll.wait(timeout_us, &mut ready).map_err(|error| format!("epoll: {error}"))?;
            for event in &ready {
                if event.token == ORDERS {
                    self.take_orders()?;
                    continue;
                }
                let connection = event.token as u32;
                if event.writable {
                    self.writable(connection);
                }
                if event.readable {
                    self.read(connection);
                }
            }
            self.notify()?;
        }
        Ok(())
    }

    /// Begins connections as rate and window allow; true if more could be begun at once.
    fn start_connections(&mut self) -> bool {
        let mut budget = STARTS_PER_TURN;
        while self.started < self.config.connections && self.opening.len() < self.config.opening_max as usize {
            if self.config.connect_rate > 0.0 {
                let elapsed_s = (net::now_ns() - self.first_ns) as f64 / 1e9;
                if f64::from(self.started) >= elapsed_s * self.config.connect_rate {
                    return false;
                }
            }
            if budget == 0 {
                return true;
            }
            budget -= 1;
            let connection = self.started;
            self.started += 1;
            self.start(connection);
        }
        false
    }

    fn start(&mut self, connection: u32) {
        let config = &self.config;
        let number = config.first_connection + u64::from(connection);
        let source = net::source_address(config.target, number, config.connections_per_address);
        let started_ns = net::now_ns();
        if connection == 0 {
            self.first_ns = started_ns;
        }
        let replies_due = self.dialect.replies(config.channels_of(connection).count() as u32);
        self.opening.insert(connection, Opening { started_ns, replies_due });
        self.phases[connection as usize] = Phase::Upgrading;
        let socket = match net::connect(config.target, source, config.receive_buffer_bytes) {
            Ok(socket) => socket,
            Err(error) => return self.end(connection, &format!("connect: {error}")),
        };
        // On loopback the connection usually stands already, and the request leaves at once.
        let request = self.dialect.request(config.layout.channel(number, 0));
        match net::send(&socket, &request) {
            Ok(sent) => {
                if sent < request.len() {
                    self.unsent.insert(connection, request[sent..].to_vec());
                }
                let added = self.poll.add(&socket, u64::from(connection), sent < request.len());
                self.sockets[connection as usize] = Some(socket);
                if let Err(error) = added {
                    self.end(connection, &format!("epoll: {error}"));
                }
            }
            Err(error) => self.end(connection, &format!("connect: {error}")),
        }
    }

    /// Sends `bytes`, or keeps what the socket does not take.
    fn send(&mut self, connection: u32, bytes: &[u8]) {
        if let Some(unsent) = self.unsent.get_mut(&connection) {
            unsent.extend_from_slice(bytes);
            return;
        }
        let Some(socket) = &self.sockets[connection as usize] else { return };
        match net::send(socket, bytes) {
            Ok(sent) if sent == bytes.len() => {}
            Ok(sent) => {
                self.unsent.insert(connection, bytes[sent..].to_vec());
                if let Err(error) = self.poll.change(socket, u64::from(connection), true) {
                    self.end(connection, &format!("epoll: {error}"));
                }
            }
            Err(error) => self.end(connection, &format!("send: {error}")),
        }
    }

    fn writable(&mut self, connection: u32) {
        let Some(bytes) = self.unsent.remove(&connection) else { return };
        self.send(connection, &bytes);
        if self.unsent.contains_key(&connection) {
            return;
        }
        if let Some(socket) = &self.sockets[connection as usize]
            && let Err(error) = self.poll.change(socket, u64::from(connection), false)
        {
            self.end(connection, &format!("epoll: {error}"));
        }
    }

    fn read(&mut self, connection: u32) {
        let mut scratch = mem::take(&mut self.scratch);
        while let Some(socket) = &self.sockets[connection as usize] {
            match net::receive(socket.as_fd(), &mut scratch) {
                Ok(None) => break,
                Ok(Some(0)) => self.end(connection, "closed without a close frame"),
                Ok(Some(count)) => {
                    self.received_bytes += count as u64;
                    if let Err(reason) = self.take(connection, &scratch[..count], net::now_ns()) {
                        self.end(connection, &reason);
                    }
                    if count < scratch.len() {
                        break;
                    }
                }
                Err(error) => self.end(connection, &format!("receive: {error}")),
            }
        }
        self.scratch = scratch;
    }

    /// Takes received bytes behind those that were kept.
    fn take(&mut self, connection: u32, bytes: &[u8], now_ns: u64) -> Result<(), String> {
        let kept = if self.partial.is_empty() { None } else { self.partial.remove(&connection) };
        let Some(mut kept) = kept else {
            let used = self.consume(connection, bytes, now_ns)?;
            if used < bytes.len() {
                self.partial.insert(connection, bytes[used..].to_vec());
            }
            return Ok(());
        };
        kept.extend_from_slice(bytes);
        let used = self.consume(connection, &kept, now_ns)?;
        if used < kept.len() {
            kept.drain(..used);
            self.partial.insert(connection, kept);
        }
        Ok(())
    }

    /// Takes what is whole; returns how many bytes that was.
    fn consume(&mut self, connection: u32, bytes: &[u8], now_ns: u64) -> Result<usize, String> {
        let mut at = 0;
        if self.phases[connection as usize] == Phase::Upgrading {
            let Some(end) = self.dialect.answer_len(bytes)? else { return Ok(0) };
            at = end;
            self.upgraded(connection, now_ns);
        }
        while let Some(frame) = next_frame(&bytes[at..], self.config.deflate)? {
            at += frame.length;
            match frame.opcode {
                1 | 2 if frame.compressed => self.compressed_message(connection, frame.payload, now_ns)?,
                1 | 2 => self.message(connection, frame.payload, now_ns).map(drop)?,
                8 => return Err(close_reason(frame.payload)),
                9 => {
                    self.pings += 1;
                    let mut pong = Vec::new();
                    write_frame(&mut pong, Opcode::Pong, frame.payload);
                    self.send(connection, &pong);
                }
                10 => {}
                opcode => return Err(format!("unexpected opcode {opcode}")),
            }
        }
        Ok(at)
    }

    fn upgraded(&mut self, connection: u32, now_ns: u64) {
        self.phases[connection as usize] = Phase::Joining;
        let config = &self.config;
        let names = |channel: u32| match config.channel_names.get(channel as usize) {
            Some(name) => name.clone(),
            None => format!("{}{channel}", config.channel_prefix),
        };
        let own = self.signer.as_ref().map(|signer| signer.token(config.first_connection + u64::from(connection)));
        let channels = config.channels_of(connection).map(names);
        let commands = self.dialect.opening(own.as_deref().or(config.token.as_deref()), channels, config.join_leave);
        if commands.is_empty() {
            return self.opened(connection, now_ns);
        }
        self.send(connection, &commands);
    }

    fn opened(&mut self, connection: u32, now_ns: u64) {
        if let Some(opening) = self.opening.remove(&connection) {
            self.opening_latency.record(now_ns.saturating_sub(opening.started_ns));
        }
        self.phases[connection as usize] = Phase::Open;
        self.open += 1;
        self.last_ns = now_ns;
        // Maps that a storm of openings made large would count for the idle connections.
        if self.opening.is_empty() && self.started == self.config.connections {
            self.opening.shrink_to_fit();
            self.partial.shrink_to_fit();
            self.unsent.shrink_to_fit();
        }
    }

    fn compressed_message(&mut self, connection: u32, payload: &[u8], now_ns: u64) -> Result<(), String> {
        // Taken out for as long as the message borrows from it.
        let mut inflater = mem::take(&mut self.inflater);
        let received = match inflater.inflate(payload, &INFLATE_LIMITS) {
            Ok(message) => self.message(connection, message, now_ns),
            Err(error) => Err(format!("inflate: {error:?}")),
        };
        inflater.release();
        self.inflater = inflater;
        self.compressed += received?;
        Ok(())
    }

    /// Takes a whole message; returns how many of its deliveries counted as received.
    #[inline]
    fn message(&mut self, connection: u32, mut message: &[u8], now_ns: u64) -> Result<u64, String> {
        let received_before = self.checker.received();
        while let Some((item, used)) = self.dialect.next_item(message)? {
            message = &message[used..];
            match item {
                Item::Ping => {
                    self.pings += 1;
                    if self.answers_pings {
                        let pong = self.dialect.pong().to_vec();
                        self.send(connection, &pong);
                    }
                }
                Item::Message(bytes) => match self.finder.find(bytes) {
                    Some((stamp, _)) => self.delivery(connection, &stamp, now_ns),
                    None => self.reply(connection, bytes, now_ns)?,
                },
            }
        }
        Ok(self.checker.received() - received_before)
    }

    #[inline]
    fn delivery(&mut self, connection: u32, stamp: &Stamp, now_ns: u64) {
        if self.checker.take(connection, stamp) {
            self.latency.record(now_ns.saturating_sub(stamp.intended_ns));
            self.delivered_ns = now_ns;
            if let Some(goal) = self.goal.as_mut().filter(|goal| goal.first_ns == 0) {
                goal.first_ns = now_ns;
            }
            if self.echo.is_some() {
                self.echoed(connection);
            }
        }
    }

    fn reply(&mut self, connection: u32, bytes: &[u8], now_ns: u64) -> Result<(), String> {
        match self.phases[connection as usize] {
            Phase::Joining => {}
            Phase::Open => return self.reply_while_open(connection, bytes, now_ns),
            Phase::Unborn | Phase::Upgrading | Phase::Closed => return Ok(()),
        }
        match self.dialect.reply(bytes) {
            Reply::Other => {}
            Reply::Refused(text) => return Err(format!("refused: {text}")),
            Reply::Done { pong } => {
                self.answers_pings |= pong;
                let Some(opening) = self.opening.get_mut(&connection) else { return Ok(()) };
                opening.replies_due = opening.replies_due.saturating_sub(1);
                if opening.replies_due == 0 {
                    self.opened(connection, now_ns);
                }
            }
        }
        Ok(())
    }

    /// Ends a connection that failed or was closed, and counts why.
    fn end(&mut self, connection: u32, reason: &str) {
        let phase = mem::replace(&mut self.phases[connection as usize], Phase::Closed);
        self.sockets[connection as usize] = None;
        self.opening.remove(&connection);
        self.partial.remove(&connection);
        self.unsent.remove(&connection);
        self.forget_churner(connection);
        let list = match phase {
            Phase::Closed => return,
            Phase::Open => {
                self.open -= 1;
                &mut self.losses
            }
            Phase::Unborn | Phase::Upgrading | Phase::Joining => &mut self.failures,
        };
        *list.entry(reason.to_string()).or_default() += 1;
    }
}

fn close_reason(payload: &[u8]) -> String {
    match payload.split_first_chunk::<2>() {
        Some((code, text)) => format!("closed {} {}", u16::from_be_bytes(*code), String::from_utf8_lossy(text)),
        None => "closed without a code".to_string(),
    }
}
