//! A gateway for tests: speaks the real codec over real sockets, keeps publications as an owner does (one offset per
//! idempotency key and channel), and misbehaves on demand and by seed.
//!
//! In: connections of the client under test. Out: acknowledgements in any order among channels, cuts, silence,
//! refusals; a [`Broker`] to compare with. What the client did wrong is in [`Gateway::violations`].
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]
#![allow(clippy::disallowed_methods, reason = "a test has real time and threads of its own")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringway_wire::ingest::{
    self, Ack, Call, CallAnswer, CallBody, CallResult, ChannelClients, ClientEvent, ClientFrame, HelloOk, IngestError,
    ListBuf, Member, PastPublication, Publish, Refusal, TakeEvents,
};

/// xorshift64*, so that a seed means the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[derive(Default)]
pub struct Channel {
    pub creation: u32,
    pub payloads: Vec<Vec<u8>>,
    keys: HashMap<Vec<u8>, u64>,
}

/// What all gateways of a test share, as the nodes of a fleet would.
#[derive(Default)]
pub struct Broker {
    pub channels: HashMap<String, Channel>,
}

impl Broker {
    pub fn publish(&mut self, publish: &Publish<'_>) -> Ack {
        let creations = self.channels.len() as u32;
        let channel = self
            .channels
            .entry(publish.channel.to_owned())
            .or_insert_with(|| Channel { creation: creations, ..Channel::default() });
        let known = channel.keys.get(publish.idempotency_key).copied();
        let offset = known.unwrap_or(channel.payloads.len() as u64 + 1);
        if known.is_none() {
            channel.payloads.push(publish.payload.to_vec());
            channel.keys.insert(publish.idempotency_key.to_vec(), offset);
        }
        Ack { seq: publish.seq, offset, epoch: (77, channel.creation), duplicate: known.is_some() }
    }
}

/// How a gateway behaves. The default behaves well.
#[derive(Clone)]
pub struct Behaviour {
    pub token: Vec<u8>,
    pub credit_messages: u32,
    pub credit_bytes: u64,
    pub frame_bytes_max: u32,
    pub publication_bytes_max: u32,
    pub idle_timeout_ms: u32,
    pub seed: u64,
    /// Cut a connection after at most this many publishes; 0: never.
    pub cut_after_max: u64,
    /// Acknowledge in random order and portions.
    pub shuffle: bool,
    /// Read nothing after the hello.
    pub mute: bool,
    /// Say going-away behind this many publishes of a connection; 0: never.
    pub leave_after: u64,
    pub leave_deadline_ms: u32,
    pub leave_to: Vec<String>,
    /// Refuse publishes whose channel begins with this.
    pub refuse: Option<(&'static str, IngestError)>,
    /// Answer the hello with this.
    pub fatal: Option<IngestError>,
    /// Send a ping with each portion of acknowledgements.
    pub ping: bool,
    /// Keep no publications, only answer.
    pub discard: bool,
    /// What the hello's answer names, at most.
    pub features: u32,
    /// Cut a connection after at most this many acknowledged or answered events; 0: never.
    pub cut_after_events_max: u64,
}

impl Default for Behaviour {
    fn default() -> Self {
        Behaviour {
            token: b"dev".to_vec(),
            credit_messages: 16_384,
            credit_bytes: 8 * 1024 * 1024,
            frame_bytes_max: 1024 * 1024,
            publication_bytes_max: 64 * 1024,
            idle_timeout_ms: 30_000,
            seed: 1,
            cut_after_max: 0,
            shuffle: false,
            mute: false,
            leave_after: 0,
            leave_deadline_ms: 5_000,
            leave_to: Vec::new(),
            refuse: None,
            fatal: None,
            ping: false,
            discard: false,
            features: ingest::FEATURES,
            cut_after_events_max: 0,
        }
    }
}

/// Set by a test while the gateway runs, and read back.
#[derive(Default)]
pub struct Controls {
    /// Acknowledge nothing.
    pub hold: AtomicBool,
    /// To be told as a change of credit, once.
    pub credit_messages: AtomicI64,
    pub connections: AtomicU64,
    pub publishes: AtomicU64,
    pub pings: AtomicU64,
    pub pongs: AtomicU64,
    pub goodbyes: AtomicU64,
    pub outstanding_high: AtomicI64,
    /// Events that no backend has acknowledged or answered, as frames by number.
    pub events: Mutex<BTreeMap<u64, Vec<u8>>>,
    /// What backends said to events: number and verdict, or nothing for an acknowledgement. In order.
    pub replies: Mutex<Vec<(u64, Option<String>)>>,
    /// Every choice of events that was received.
    pub takes: Mutex<Vec<TakeEvents>>,
    violations: Mutex<Vec<String>>,
    stop: AtomicBool,
}

impl Controls {
    /// Something that a client did; it is sent to whoever takes it until it is done.
    pub fn event(&self, number: u64, event: &ClientEvent<'_>) {
        let mut frame = Vec::new();
        ingest::write_client_event(&mut frame, number, event).unwrap();
        self.events.lock().unwrap().insert(number, frame);
    }

    pub fn replies(&self) -> Vec<(u64, Option<String>)> {
        self.replies.lock().unwrap().clone()
    }
}

pub struct Gateway {
    pub address: String,
    pub broker: Arc<Mutex<Broker>>,
    pub controls: Arc<Controls>,
    accept: Option<JoinHandle<()>>,
}

impl Gateway {
    pub fn start(behaviour: Behaviour) -> Gateway {
        Gateway::start_with(behaviour, Arc::default())
    }

    pub fn start_with(behaviour: Behaviour, broker: Arc<Mutex<Broker>>) -> Gateway {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let controls = Arc::new(Controls::default());
        let (accept_broker, accept_controls) = (Arc::clone(&broker), Arc::clone(&controls));
        let accept = std::thread::spawn(move || {
            let mut connections = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                if accept_controls.stop.load(Ordering::Relaxed) {
                    break;
                }
                let number = accept_controls.connections.fetch_add(1, Ordering::Relaxed);
                let connection = Connection {
                    stream,
                    random: Random(behaviour.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(number * 7919) | 1),
                    behaviour: behaviour.clone(),
                    broker: Arc::clone(&accept_broker),
                    controls: Arc::clone(&accept_controls),
                    window_high: (i64::from(behaviour.credit_messages), behaviour.credit_bytes as i64),
                    window_messages: i64::from(behaviour.credit_messages),
                    outstanding: HashMap::new(),
                    outstanding_bytes: 0,
                    pending: Vec::new(),
                    take: None,
                    events_sent: BTreeSet::new(),
                    events_done: 0,
                };
                connections.push(std::thread::spawn(move || connection.run()));
            }
            connections.into_iter().for_each(|connection| connection.join().unwrap());
        });
        Gateway { address, broker, controls, accept: Some(accept) }
    }

    pub fn violations(&self) -> Vec<String> {
        self.controls.violations.lock().unwrap().clone()
    }

    /// No more connections; those open are cut.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.controls.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(&self.address);
        if let Some(accept) = self.accept.take() {
            let result = accept.join();
            if !std::thread::panicking() {
                result.unwrap();
            }
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.end();
    }
}

struct Connection {
    stream: TcpStream,
    random: Random,
    behaviour: Behaviour,
    broker: Arc<Mutex<Broker>>,
    controls: Arc<Controls>,
    /// Largest window ever granted: messages, bytes.
    window_high: (i64, i64),
    window_messages: i64,
    outstanding: HashMap<u64, i64>,
    outstanding_bytes: i64,
    pending: Vec<Ack>,
    take: Option<TakeEvents>,
    events_sent: BTreeSet<u64>,
    events_done: u64,
}

/// What to do with the connection after a publish.
enum Then {
    GoOn,
    End,
}

impl Connection {
    fn run(mut self) {
        self.stream.set_nodelay(true).unwrap();
        self.stream.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
        let cut_after = self.up_to(self.behaviour.cut_after_max);
        let cut_after_events = self.up_to(self.behaviour.cut_after_events_max);
        let (mut buffer, mut filled) = (vec![0; 2 * 1024 * 1024], 0);
        let (mut greeted, mut publishes) = (false, 0);
        let mut left_at = None;
        while !self.controls.stop.load(Ordering::Relaxed) {
            match self.stream.read(&mut buffer[filled..]) {
                Ok(0) => return,
                Ok(count) => filled += count,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    self.flush_acks(true);
                }
                Err(_) => return,
            }
            let mut used = 0;
            let mut replies = Vec::new();
            while let Some(length) =
                ingest::frame_len(&buffer[used..filled], self.behaviour.frame_bytes_max as usize).unwrap()
            {
                if length > filled - used {
                    break;
                }
                let frame = buffer[used..used + length].to_vec();
                used += length;
                let then = match ingest::decode_client(&frame).unwrap() {
                    ClientFrame::Hello(hello) => {
                        assert!(!greeted);
                        greeted = true;
                        if self.greet(&hello) { Then::GoOn } else { Then::End }
                    }
                    ClientFrame::Publish(publish) => {
                        publishes += 1;
                        self.publish(&publish, publishes == cut_after, &mut replies)
                    }
                    ClientFrame::PublishBatch(batch) => {
                        let mut then = Then::GoOn;
                        for publish in batch {
                            publishes += 1;
                            then = self.publish(&publish.unwrap(), publishes == cut_after, &mut replies);
                            if matches!(then, Then::End) {
                                self.linger(&frame, publishes);
                                break;
                            }
                        }
                        then
                    }
                    ClientFrame::Ping { nonce } => {
                        self.controls.pings.fetch_add(1, Ordering::Relaxed);
                        ingest::write_pong(&mut replies, nonce);
                        Then::GoOn
                    }
                    ClientFrame::Pong { .. } => {
                        self.controls.pongs.fetch_add(1, Ordering::Relaxed);
                        Then::GoOn
                    }
                    ClientFrame::Goodbye => {
                        self.controls.goodbyes.fetch_add(1, Ordering::Relaxed);
                        Then::End
                    }
                    ClientFrame::TakeEvents(take) => {
                        self.controls.takes.lock().unwrap().push(take);
                        self.take = Some(take).filter(|take| !take.kinds.is_empty());
                        Then::GoOn
                    }
                    ClientFrame::EventAck { event } => self.event_done(event, None, cut_after_events),
                    ClientFrame::EventAnswer { event, verdict } => {
                        self.event_done(event, Some(format!("{verdict:?}")), cut_after_events)
                    }
                    ClientFrame::Call(call) => call_answer(&call, &mut replies),
                    other => panic!("{other:?}"),
                };
                if matches!(then, Then::End) {
                    return;
                }
                if self.behaviour.mute {
                    std::thread::sleep(Duration::from_secs(2));
                    return;
                }
            }
            buffer.copy_within(used..filled, 0);
            filled -= used;
            self.flush_acks(!self.behaviour.shuffle);
            self.change_credit(&mut replies);
            self.send_events(&mut replies);
            if self.behaviour.leave_after > 0 && publishes >= self.behaviour.leave_after && left_at.is_none() {
                left_at = Some(Instant::now());
                let addresses: Vec<&str> = self.behaviour.leave_to.iter().map(String::as_str).collect();
                ingest::write_going_away(&mut replies, self.behaviour.leave_deadline_ms, &addresses);
            }
            self.send(&replies);
        }
    }

    /// A number from 1 to `max`; without end for 0.
    fn up_to(&mut self, max: u64) -> u64 {
        if max == 0 { u64::MAX } else { 1 + self.random.below(max) }
    }

    fn send(&mut self, bytes: &[u8]) {
        // The client may have gone.
        let _ = self.stream.write_all(bytes);
    }

    fn greet(&mut self, hello: &ingest::Hello<'_>) -> bool {
        let mut out = Vec::new();
        let error = match hello.version() {
            Ok(_) if hello.token != self.behaviour.token => Some(IngestError::BadToken),
            Ok(_) => self.behaviour.fatal,
            Err(error) => Some(error),
        };
        match error {
            Some(error) => ingest::write_fatal(&mut out, error),
            None => ingest::write_hello_ok(
                &mut out,
                &HelloOk {
                    version: hello.version_max,
                    features: hello.features & self.behaviour.features,
                    boot: 77,
                    credit_messages: self.behaviour.credit_messages,
                    credit_bytes: self.behaviour.credit_bytes,
                    frame_bytes_max: self.behaviour.frame_bytes_max,
                    publication_bytes_max: self.behaviour.publication_bytes_max,
                    idempotency_window_ms: 300_000,
                    idle_timeout_ms: self.behaviour.idle_timeout_ms,
                    node: &self.stream.local_addr().unwrap().to_string(),
                },
            ),
        }
        self.send(&out);
        error.is_none()
    }

    fn publish(&mut self, publish: &Publish<'_>, cut: bool, replies: &mut Vec<u8>) -> Then {
        self.controls.publishes.fetch_add(1, Ordering::Relaxed);
        let bytes = publish.payload.len() as i64;
        if self.outstanding.insert(publish.seq, bytes).is_some() {
            self.violation(format!("{} was sent twice on one connection", publish.seq));
        }
        self.outstanding_bytes += bytes;
        let count = self.outstanding.len() as i64;
        self.controls.outstanding_high.fetch_max(count, Ordering::Relaxed);
        if count > self.window_high.0 || (count > 1 && self.outstanding_bytes > self.window_high.1) {
            self.violation(format!("{count} messages, {} bytes outstanding", self.outstanding_bytes));
        }
        if cut && self.random.below(2) == 0 {
            return Then::End; // before it is taken
        }
        if let Some((prefix, error)) = self.behaviour.refuse
            && publish.channel.starts_with(prefix)
        {
            self.answered(publish.seq);
            ingest::write_nack(replies, publish.seq, error);
            return Then::GoOn;
        }
        let ack = if self.behaviour.discard {
            Ack { seq: publish.seq, offset: publish.seq, epoch: (77, 1), duplicate: false }
        } else {
            self.broker.lock().unwrap().publish(publish)
        };
        self.pending.push(ack);
        if cut {
            // After it is taken, with some acknowledgements sent, the last one perhaps torn.
            let mut out = Vec::new();
            ingest::write_acks(&mut out, self.pending.drain(..));
            let torn = self.random.below(out.len() as u64 + 1) as usize;
            self.send(&out[..torn]);
            return Then::End;
        }
        Then::GoOn
    }

    /// A cut that the client sees while this side still works on what it has read: sometimes the rest of the frame is
    /// published later, beside the client's next connection.
    fn linger(&mut self, frame: &[u8], publishes: u64) {
        if self.random.below(3) > 0 || self.behaviour.discard {
            return;
        }
        let _ = self.stream.shutdown(Shutdown::Both);
        let ClientFrame::PublishBatch(batch) = ingest::decode_client(frame).unwrap() else { return };
        // Entries in front were published before or are the one cut at; publishing them again changes nothing.
        for publish in batch {
            if (publishes + self.random.below(4)).is_multiple_of(4) {
                std::thread::sleep(Duration::from_micros(300));
            }
            self.broker.lock().unwrap().publish(&publish.unwrap());
        }
    }

    fn answered(&mut self, seq: u64) {
        self.outstanding_bytes -= self.outstanding.remove(&seq).unwrap();
    }

    fn flush_acks(&mut self, all: bool) {
        if self.pending.is_empty() || self.controls.hold.load(Ordering::Relaxed) {
            return;
        }
        if self.behaviour.shuffle {
            for index in (1..self.pending.len()).rev() {
                let other = self.random.below(index as u64 + 1) as usize;
                self.pending.swap(index, other);
            }
        }
        let portion = match all {
            true => self.pending.len(),
            false => self.random.below(self.pending.len() as u64 + 1) as usize,
        };
        let acks: Vec<Ack> = self.pending.drain(..portion).collect();
        acks.iter().for_each(|ack| self.answered(ack.seq));
        let mut out = Vec::new();
        ingest::write_acks(&mut out, acks);
        if self.behaviour.ping {
            ingest::write_ping(&mut out, 5);
        }
        self.send(&out);
    }

    fn change_credit(&mut self, replies: &mut Vec<u8>) {
        let change = self.controls.credit_messages.swap(0, Ordering::Relaxed);
        if change != 0 {
            self.window_messages += change;
            self.window_high.0 = self.window_high.0.max(self.window_messages);
            ingest::write_credit(replies, change as i32, 0);
        }
    }

    /// Every event that was not sent here before, if any are wanted.
    fn send_events(&mut self, replies: &mut Vec<u8>) {
        if self.take.is_none() {
            return;
        }
        for (number, frame) in self.controls.events.lock().unwrap().iter() {
            if self.events_sent.insert(*number) {
                replies.extend_from_slice(frame);
            }
        }
    }

    fn event_done(&mut self, event: u64, verdict: Option<String>, cut_after: u64) -> Then {
        if !self.events_sent.contains(&event) {
            self.violation(format!("event {event} was not sent here"));
        }
        self.events_done += 1;
        if self.events_done == cut_after && self.random.below(2) == 0 {
            return Then::End; // before it counts
        }
        if self.controls.events.lock().unwrap().remove(&event).is_none() {
            self.violation(format!("event {event} was done twice"));
        }
        self.controls.replies.lock().unwrap().push((event, verdict));
        if self.events_done == cut_after { Then::End } else { Then::GoOn }
    }

    fn violation(&self, text: String) {
        self.controls.violations.lock().unwrap().push(text);
    }
}

/// Answers calls by their channel or user: `refuse` is refused, `cut` ends the connection, `mute` gets no answer, all
/// else a fixed answer.
fn call_answer(call: &Call<'_>, replies: &mut Vec<u8>) -> Then {
    let (mut members, mut publications, mut channels) = (ListBuf::new(), ListBuf::new(), ListBuf::new());
    let member = Member { client: "c-1", user: "ann", conn_info: b"1", chan_info: b"" };
    members.push(&member).unwrap();
    publications.push(&PastPublication { offset: 8, publisher: Some(member), data: b"[8]" }).unwrap();
    publications.push(&PastPublication { offset: 9, publisher: None, data: b"[9]" }).unwrap();
    channels.push(&ChannelClients { channel: "news", clients: 3 }).unwrap();
    let (about, result) = match call.what {
        CallBody::Presence { channel } => (channel, CallResult::Presence(members.list())),
        CallBody::PresenceStats { channel } => (channel, CallResult::PresenceStats { clients: 3, users: 2 }),
        CallBody::History { channel, .. } => {
            let publications = publications.list();
            (channel, CallResult::History { epoch: (255, 1), offset: 9, publications })
        }
        CallBody::HistoryRemove { channel } => (channel, CallResult::Removed),
        CallBody::Subscribe { user, .. }
        | CallBody::Unsubscribe { user, .. }
        | CallBody::Disconnect { user, .. }
        | CallBody::Refresh { user, .. }
        | CallBody::Message { user, .. } => (user, CallResult::User { shards: user.len() as u16 }),
        CallBody::Channels { pattern, .. } => (pattern, CallResult::Channels { total: 7, channels: channels.list() }),
    };
    let result = match about {
        "cut" => return Then::End,
        "mute" => return Then::GoOn,
        "refuse" => CallResult::Refused(Refusal::of(IngestError::NotAvailable)),
        _ => result,
    };
    ingest::write_call_answer(replies, &CallAnswer { call: call.call, result }).unwrap();
    Then::GoOn
}
