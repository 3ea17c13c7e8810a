//! One process of a fleet run: its event loop, and its clients from connect to close and back again.
//!
//! In: [`FleetConfig`] and orders on stdin, bytes of its connections. Out: notes on stdout, bytes to the fleet.
//!
//! ```text
//! Away ── back-off over ──> Upgrading ── 101 ──> Joining ── connect reply ──> Open
//!   ^                          └── refused, reset, closed, silent for too long ──┘
//!   └──────────────────────────────────────┘        Gone: closed with a final code
//! ```
//!
//! Invariants: a client is a fixed number of bytes and a position per subscription; bytes of a frame that is not whole
//! yet, and bytes that a socket did not take, live in maps that are empty when nothing is under way. A client comes back as
//! the SDKs do: the same address, their back-off, subscribes with its positions in the frame of the connect command.
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::io::{self, Write as _};
use std::mem;
use std::os::fd::{AsFd as _, OwnedFd};

use ringway_wire::frame::Opcode;

use super::check::PositionChecker;
use super::churn::Churn;
use super::link::{FleetConfig, FleetNote, FleetOrder};
use super::reconnect::{Random, Rate};
use super::report::{FleetReport, count_reason};
use super::writers::Writers;
use crate::link::{decode, encode};
use crate::net::{self, Poll, Ready};
use crate::options::Protocol;
use crate::payload::StampFinder;
use crate::protocol::{Dialect, write_frame};
use crate::report::Latency;
use crate::server_cost;
use crate::token::TokenSigner;

/// Bytes read from a socket at once.
const READ_BYTES: usize = 64 * 1024;
/// Token of stdin in the epoll; clients have their index.
const ORDERS: u64 = u64::MAX;
/// Longest wait for the sockets, in microseconds.
const WAIT_US: u64 = 10_000;
/// First connections begun between two looks at the sockets.
const STARTS_PER_TURN: u32 = 32;
/// How often the worker says how it is, and looks for clients that wait in vain, in ns.
const STATUS_NS: u64 = 100_000_000;
/// Subscriptions of one client at most: a bit each.
pub(crate) const SUBSCRIPTIONS_MAX: u32 = 32;
/// What a client waits beyond the announced interval of pings, in ms; that of the SDKs.
const PING_GRACE_MS: u64 = 10_000;

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not connected, and going to be when its delay is over.
    Away,
    /// Connecting, or waiting for the answer to the upgrade.
    Upgrading,
    /// Waiting for the connect reply.
    Joining,
    /// Connected; single subscriptions may be under way.
    Open,
    /// Sent away for good.
    Gone,
}

/// One client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) socket: Option<OwnedFd>,
    pub(super) phase: Phase,
    /// Connects that failed since the last that did not.
    pub(super) attempts: u8,
    /// Subscriptions that stand, a bit each.
    pub(super) standing: u32,
    /// Subscribes and unsubscribes that have no answer yet.
    pub(super) asked: u32,
    /// Subscriptions that the client has given up for a while, a bit each.
    pub(super) left: u32,
    /// Of them, those whose unsubscribe has no answer yet.
    pub(super) leaving: u32,
    /// Subscriptions that were refused for now and are tried again when an alarm rings, a bit each.
    pub(super) refused: u32,
    /// It was whole once.
    pub(super) begun: bool,
    /// Since when it waits for what the phase waits for; while it is open, when bytes came last.
    pub(super) since_ns: u64,
    /// When the last subscribe was sent or answered.
    pub(super) asked_ns: u64,
    /// When its last connection ended, until a message comes; 0: one came.
    pub(super) cut_ns: u64,
    /// The same until every subscription stands.
    pub(super) absent_ns: u64,
    /// When the last message came, or when the load began.
    pub(super) heard_ns: u64,
    /// Longest time without a message, in ns.
    pub(super) silence_ns: u64,
}

impl Client {
    fn new() -> Client {
        Client {
            socket: None,
            phase: Phase::Away,
            attempts: 0,
            standing: 0,
            asked: 0,
            left: 0,
            leaving: 0,
            refused: 0,
            begun: false,
            since_ns: 0,
            asked_ns: 0,
            cut_ns: 0,
            absent_ns: 0,
            heard_ns: 0,
            silence_ns: 0,
        }
    }
}

/// What a timer is for: to connect, or to subscribe again to the client's subscription of this index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Alarm {
    Connect,
    Subscribe(u32),
}

/// What is counted and reported as it is.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) closes: BTreeMap<String, u64>,
    pub(super) refusals: BTreeMap<String, u64>,
    pub(super) refused_subscribes: BTreeMap<String, u64>,
    pub(super) refused_publishes: BTreeMap<String, u64>,
    pub(super) resubscribes: BTreeMap<String, u64>,
    pub(super) faults: BTreeMap<String, u64>,
    pub(super) established: u64,
    pub(super) reconnected: Rate,
    pub(super) reconnects: u64,
    pub(super) interruption: Latency,
    pub(super) absence: Latency,
    pub(super) latency: Latency,
}

pub(crate) struct FleetWorker {
    pub(super) config: FleetConfig,
    pub(super) dialect: Dialect,
    signer: Option<TokenSigner>,
    poll: Poll,
    pub(super) clients: Vec<Client>,
    pub(super) checker: PositionChecker,
    pub(super) writers: Writers,
    pub(super) churn: Churn,
    pub(super) finder: StampFinder,
    pub(super) random: Random,
    pub(super) tally: Tally,
    partial: HashMap<u32, Vec<u8>>,
    unsent: HashMap<u32, Vec<u8>>,
    alarms: BinaryHeap<Reverse<(u64, u32, Alarm)>>,
    scratch: Vec<u8>,
    orders: String,
    started: u32,
    begun_ns: u64,
    /// Clients that are connecting for the first time.
    pub(super) opening: u32,
    /// Clients that are open with every subscription.
    pub(super) whole: u32,
    /// The load runs: silences count.
    pub(super) loaded: bool,
    /// Interval of pings that the server announced, in ms; 0: none come.
    pub(super) ping_ms: u64,
    /// Nothing more is published; everybody shall have all of it.
    settling: bool,
    looked_ns: u64,
    exiting: bool,
}

/// Runs a worker on stdin and stdout until it is told to exit or its coordinator is gone; `line` is its configuration.
pub(crate) fn run(line: &str) -> Result<(), String> {
    let config: FleetConfig = decode(line)?;
    net::raise_open_file_limit();
    if let Some(cpu) = config.cpu {
        net::pin_to_core(cpu)?;
    }
    FleetWorker::new(config)?.run()
}

impl FleetWorker {
    fn new(config: FleetConfig) -> Result<FleetWorker, String> {
        let poll = Poll::new().map_err(|error| format!("epoll: {error}"))?;
        poll.add(io::stdin(), ORDERS, false).map_err(|error| format!("stdin: {error}"))?;
        let count = config.connections;
        Ok(FleetWorker {
            signer: config.token_secret.as_deref().map(TokenSigner::new),
            dialect: Dialect::new(Protocol::CentrifugeJson, &config.host, &config.path, false),
            poll,
            clients: (0..count).map(|_| Client::new()).collect(),
            checker: PositionChecker::new(config.layout, config.first_connection, count),
            writers: Writers::new(config.first_connection, count, config.written_by_clients, config.payload_bytes)?,
            churn: Churn::new(config.changes_per_s, config.cuts_per_s),
            finder: StampFinder::default(),
            random: Random::new(config.seed ^ config.first_connection),
            tally: Tally::default(),
            partial: HashMap::new(),
            unsent: HashMap::new(),
            alarms: BinaryHeap::new(),
            scratch: vec![0; READ_BYTES],
            orders: String::new(),
            started: 0,
            begun_ns: net::now_ns(),
            opening: 0,
            whole: 0,
            loaded: false,
            ping_ms: 0,
            settling: false,
            looked_ns: 0,
            exiting: false,
            config,
        })
    }

    fn run(mut self) -> Result<(), String> {
        let mut ready: Vec<Ready> = Vec::with_capacity(net::EVENTS_MAX);
        while !self.exiting {
            let mut busy = self.start_clients();
            self.ring_alarms();
            busy |= self.publish_due(net::now_ns())?;
            self.churn_due(net::now_ns());
            if !busy && self.config.nap_us > 0 {
                net::nap(self.config.nap_us);
            }
            self.poll.wait(if busy { 0 } else { WAIT_US }, &mut ready).map_err(|error| format!("epoll: {error}"))?;
            for event in &ready {
                if event.token == ORDERS {
                    self.take_orders()?;
                    continue;
                }
                let client = event.token as u32;
                if event.writable {
                    self.writable(client);
                }
                if event.readable {
                    self.read(client);
                }
            }
            self.look_around()?;
        }
        Ok(())
    }

    /// Begins first connections as rate and window allow; true if more could be begun at once.
    fn start_clients(&mut self) -> bool {
        for _ in 0..STARTS_PER_TURN {
            if self.started >= self.config.connections || self.opening >= self.config.opening_max {
                return false;
            }
            let elapsed_s = (net::now_ns() - self.begun_ns) as f64 / 1e9;
            if self.config.connect_rate > 0.0 && f64::from(self.started) >= elapsed_s * self.config.connect_rate {
                return false;
            }
            let client = self.started;
            self.started += 1;
            self.opening += 1;
            self.connect(client);
        }
        true
    }

    /// Does what is due.
    fn ring_alarms(&mut self) {
        let now_ns = net::now_ns();
        while let Some(Reverse((due_ns, client, alarm))) = self.alarms.peek().copied() {
            if due_ns > now_ns {
                return;
            }
            self.alarms.pop();
            match (alarm, self.clients[client as usize].phase) {
                (Alarm::Connect, Phase::Away) => self.connect(client),
                (Alarm::Subscribe(index), Phase::Open) => self.retry(client, index),
                _ => {}
            }
        }
    }

    pub(super) fn set_alarm(&mut self, due_ns: u64, client: u32, alarm: Alarm) {
        self.alarms.push(Reverse((due_ns, client, alarm)));
    }

    fn connect(&mut self, client: u32) {
        let config = &self.config;
        let number = config.first_connection + u64::from(client);
        let source = net::source_address(config.target, number, config.connections_per_address);
        let place = &mut self.clients[client as usize];
        (place.phase, place.since_ns) = (Phase::Upgrading, net::now_ns());
        let socket = match net::connect(config.target, source, 0) {
            Ok(socket) => socket,
            Err(error) => return self.cut(client, &format!("connect: {error}"), true),
        };
        let request = self.dialect.request(0);
        match net::send(&socket, &request) {
            Ok(sent) => {
                if sent < request.len() {
                    self.unsent.insert(client, request[sent..].to_vec());
                }
                let added = self.poll.add(&socket, u64::from(client), sent < request.len());
                self.clients[client as usize].socket = Some(socket);
                if let Err(error) = added {
                    self.cut(client, &format!("epoll: {error}"), true);
                }
            }
            Err(error) => self.cut(client, &format!("connect: {error}"), true),
        }
    }

    /// Ends a connection, counts why, and lets the client come back if it may.
    pub(super) fn cut(&mut self, client: u32, reason: &str, comes_back: bool) {
        let now_ns = net::now_ns();
        self.partial.remove(&client);
        self.unsent.remove(&client);
        self.writers.cut(client);
        let was_whole = self.is_whole(client);
        let place = &mut self.clients[client as usize];
        place.socket = None;
        (place.standing, place.asked, place.leaving, place.refused) = (0, 0, 0, 0);
        match mem::replace(&mut place.phase, Phase::Away) {
            Phase::Open => {
                count_reason(&mut self.tally.closes, reason);
                self.tally.reconnects += 1;
                if place.cut_ns == 0 {
                    place.cut_ns = now_ns;
                }
                if place.absent_ns == 0 {
                    place.absent_ns = now_ns;
                }
            }
            _ => count_reason(&mut self.tally.refusals, reason),
        }
        self.whole -= u32::from(was_whole);
        if !comes_back {
            place.phase = Phase::Gone;
            count_reason(&mut self.tally.faults, reason);
            return;
        }
        let delay_ns = self.config.backoff.delay_ns(place.attempts, &mut self.random);
        place.attempts = place.attempts.saturating_add(1);
        self.set_alarm(now_ns + delay_ns, client, Alarm::Connect);
    }

    pub(super) fn is_whole(&self, client: u32) -> bool {
        let place = &self.clients[client as usize];
        place.phase == Phase::Open && (place.standing | place.left).count_ones() == self.config.layout.subscriptions
    }

    /// Counts a client whose subscriptions have changed.
    pub(super) fn count_whole(&mut self, client: u32, was_whole: bool) {
        self.whole = self.whole + u32::from(self.is_whole(client)) - u32::from(was_whole);
    }

    /// The upgrade was answered: connect command and all subscribes go out in one frame, as an SDK sends them.
    fn join(&mut self, client: u32) {
        let number = self.config.first_connection + u64::from(client);
        let mut commands = match &self.signer {
            Some(signer) => format!("{{\"id\":1,\"connect\":{{\"token\":\"{}\"}}}}", signer.token(number)),
            None => "{\"id\":1,\"connect\":{}}".to_string(),
        };
        let left = self.clients[client as usize].left;
        for index in (0..self.config.layout.subscriptions).filter(|index| left & 1 << index == 0) {
            commands.push('\n');
            commands.push_str(&self.subscribe_command(client, index));
        }
        let now_ns = net::now_ns();
        let place = &mut self.clients[client as usize];
        (place.phase, place.since_ns, place.asked_ns) = (Phase::Joining, now_ns, now_ns);
        place.asked = self.config.layout.subscriptions - left.count_ones();
        self.send_command(client, &commands);
    }

    /// Sends commands in one frame, or keeps what the socket does not take.
    pub(super) fn send_command(&mut self, client: u32, commands: &str) {
        let mut frame = Vec::with_capacity(commands.len() + 16);
        write_frame(&mut frame, Opcode::Text, commands.as_bytes());
        self.send(client, &frame);
    }

    pub(super) fn send(&mut self, client: u32, bytes: &[u8]) {
        if let Some(unsent) = self.unsent.get_mut(&client) {
            unsent.extend_from_slice(bytes);
            return;
        }
        let Some(socket) = &self.clients[client as usize].socket else { return };
        match net::send(socket, bytes) {
            Ok(sent) if sent == bytes.len() => {}
            Ok(sent) => {
                self.unsent.insert(client, bytes[sent..].to_vec());
                if let Err(error) = self.poll.change(socket, u64::from(client), true) {
                    self.cut(client, &format!("epoll: {error}"), true);
                }
            }
            Err(error) => self.cut(client, &format!("send: {error}"), true),
        }
    }

    fn writable(&mut self, client: u32) {
        let Some(bytes) = self.unsent.remove(&client) else { return };
        self.send(client, &bytes);
        if !self.unsent.contains_key(&client)
            && let Some(socket) = &self.clients[client as usize].socket
            && let Err(error) = self.poll.change(socket, u64::from(client), false)
        {
            self.cut(client, &format!("epoll: {error}"), true);
        }
    }

    fn read(&mut self, client: u32) {
        let mut scratch = mem::take(&mut self.scratch);
        while let Some(socket) = &self.clients[client as usize].socket {
            match net::receive(socket.as_fd(), &mut scratch) {
                Ok(None) => break,
                Ok(Some(0)) => self.cut(client, "ended without a close frame", true),
                Ok(Some(count)) => {
                    if let Err((reason, comes_back)) = self.take(client, &scratch[..count]) {
                        self.cut(client, &reason, comes_back);
                    }
                    if count < scratch.len() {
                        break;
                    }
                }
                Err(error) => self.cut(client, &format!("receive: {error}"), true),
            }
        }
        self.scratch = scratch;
    }

    /// Takes received bytes behind those that were kept. An error ends the connection: why, and whether it comes back.
    fn take(&mut self, client: u32, bytes: &[u8]) -> Result<(), (String, bool)> {
        let Some(mut kept) = self.partial.remove(&client) else {
            let used = self.consume(client, bytes)?;
            if used < bytes.len() {
                self.partial.insert(client, bytes[used..].to_vec());
            }
            return Ok(());
        };
        kept.extend_from_slice(bytes);
        let used = self.consume(client, &kept)?;
        if used < kept.len() {
            kept.drain(..used);
            self.partial.insert(client, kept);
        }
        Ok(())
    }

    /// Takes what is whole; returns how many bytes that was.
    fn consume(&mut self, client: u32, bytes: &[u8]) -> Result<usize, (String, bool)> {
        let mut at = 0;
        if self.clients[client as usize].phase == Phase::Upgrading {
            let answer = self.dialect.answer_len(bytes).map_err(|reason| (reason, true))?;
            let Some(end) = answer else { return Ok(0) };
            at = end;
            self.join(client);
        }
        self.frames(client, &bytes[at..]).map(|used| at + used)
    }

    /// Ten times a second: says how it is, and gives up what waits in vain.
    fn look_around(&mut self) -> Result<(), String> {
        if let Some(written) = self.writers.written() {
            say(&FleetNote::Written(written))?;
        }
        let now_ns = net::now_ns();
        if now_ns - self.looked_ns < STATUS_NS {
            return Ok(());
        }
        self.looked_ns = now_ns;
        self.bring_back();
        let reply_ns = self.config.reply_timeout_ms * 1_000_000;
        self.writers.give_up(now_ns.saturating_sub(reply_ns));
        for client in 0..self.clients.len() as u32 {
            let place = &self.clients[client as usize];
            let waited_ns = now_ns.saturating_sub(place.since_ns);
            let ping_ns = (self.ping_ms + PING_GRACE_MS) * 1_000_000;
            let reason = match place.phase {
                Phase::Upgrading if waited_ns > reply_ns => "no answer to the upgrade in time",
                Phase::Joining if waited_ns > reply_ns => "no connect reply in time",
                Phase::Open if place.asked > 0 && now_ns.saturating_sub(place.asked_ns) > reply_ns => {
                    "no subscribe reply in time"
                }
                Phase::Open if self.ping_ms > 0 && waited_ns > ping_ns => "no ping in time",
                _ => continue,
            };
            self.cut(client, reason, true);
        }
        // Who is on its way back has everything that is due, perhaps, and still is not there.
        let all_there = self.clients.iter().all(|place| place.phase == Phase::Gone || place.left == 0)
            && self.whole as usize + self.clients.iter().filter(|place| place.phase == Phase::Gone).count()
                == self.clients.len();
        if self.settling && all_there {
            if self.checker.settled() {
                self.settling = false;
                say(&FleetNote::Settled)?;
            } else {
                self.ask_again();
            }
        }
        let received = self.checker.counts().received;
        say(&FleetNote::Status { whole: self.whole, received, reconnects: self.tally.reconnects })
    }

    fn take_orders(&mut self) -> Result<(), String> {
        let mut bytes = vec![0; READ_BYTES];
        match rustix::io::read(io::stdin(), &mut bytes) {
            // The coordinator is gone: so is the run.
            Ok(0) => self.exiting = true,
            Ok(count) => self.orders.push_str(&String::from_utf8_lossy(&bytes[..count])),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(error) => return Err(format!("stdin: {error}")),
        }
        while let Some(end) = self.orders.find('\n') {
            let line: String = self.orders.drain(..=end).collect();
            self.obey(decode(&line)?)?;
        }
        Ok(())
    }

    fn obey(&mut self, order: FleetOrder) -> Result<(), String> {
        let now_ns = net::now_ns();
        match order {
            FleetOrder::Begin { rate_per_channel } => {
                self.loaded = true;
                for place in &mut self.clients {
                    place.heard_ns = now_ns;
                }
                self.writers.begin(rate_per_channel, now_ns);
                self.churn.begin(now_ns);
            }
            FleetOrder::Stop => {
                self.loaded = false;
                for place in &mut self.clients {
                    place.silence_ns = place.silence_ns.max(now_ns.saturating_sub(place.heard_ns));
                }
                self.writers.stop();
                self.churn.stop();
            }
            FleetOrder::Settle { confirmed } => {
                self.checker.ended(confirmed);
                self.settling = true;
            }
            FleetOrder::Report { written, unconfirmed } => {
                let report = self.report(&written, &unconfirmed);
                say(&FleetNote::Report(Box::new(report)))?;
            }
            FleetOrder::Exit => self.exiting = true,
        }
        Ok(())
    }

    fn report(&mut self, written: &[u32], unconfirmed: &[(u32, u32)]) -> FleetReport {
        let (counts, unconfirmed) = self.checker.finish(written, unconfirmed);
        let mut silence = Latency::new();
        for place in &self.clients {
            silence.record(place.silence_ns);
        }
        let tally = mem::take(&mut self.tally);
        let mut report = FleetReport {
            counts,
            unconfirmed,
            examples: self.checker.examples().to_vec(),
            reconnected: tally.reconnected,
            closes: tally.closes,
            refusals: tally.refusals,
            refused_subscribes: tally.refused_subscribes,
            refused_publishes: tally.refused_publishes,
            resubscribes: tally.resubscribes,
            faults: tally.faults,
            established: tally.established,
            whole: self.whole,
            published: self.writers.published,
            silence: silence.buckets(),
            interruption: tally.interruption.buckets(),
            absence: tally.absence.buckets(),
            latency: tally.latency.buckets(),
            resident_bytes: server_cost::own_resident_bytes(),
            cpu_ns: server_cost::own_cpu_ns(),
            ..FleetReport::default()
        };
        self.churn.report(&mut report);
        report
    }
}

fn say(note: &FleetNote) -> Result<(), String> {
    let line = encode(note)?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| format!("stdout: {error}"))
}
