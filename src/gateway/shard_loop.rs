//! THE LOOP of one shard. A message's way, 1 to 9, stands here from top to bottom.
//!
//! ```text
//! wait      completions of the ring, or the next tick
//! 1 accept  new sockets get a slot
//! 2–4 read  ready connections: bytes -> Shard (handshake, frames, commands)
//! 5–6 lanes batches of other cores -> Shard (owner, answers, publications)
//! 7 fan out Shard::end_turn: a slice of deliveries, timers, acknowledgements
//! lanes     what was said to other cores goes out in batches; one wake per sleeping core
//! 8–9 write one contiguous write per connection with something waiting; what the socket did not take stays
//! close     sockets of ended connections, once nothing of them is in flight
//! ```
//! In: completions, the inbox, time. Out: ring operations, batches. The loop decides nothing about protocols: it turns
//! each event into an `Input` and carries out `Action`s. Invariants: the poll is edge-triggered, so a connection with
//! unread data stands on the ready list; nothing here blocks but the one wait; work per turn is bounded.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ringway_engine::ids::{ConnId, CoreId};
use ringway_engine::lane_message::{Batch, LaneKind};
use ringway_engine::metrics::Metric;
use ringway_engine::outbox::WriteBatch;
use ringway_engine::seam::{Accepted, Action, Input, Port};
use ringway_engine::shard::Shard;
use ringway_sys::{Completion, Errno, Inbox, ListenOptions, Listener, Op, Ring, Scratch, Socket, Token, Wait};

use crate::clock;
use crate::config::SendMode;
use crate::notes;
use crate::places::{Completed, Places};
use crate::shared::Shared;

/// Batches taken from the inbox in one turn; the rest follows in the next.
const LANE_BATCHES_PER_TURN_MAX: usize = 256;
/// Connections read in one turn; the rest stays on the ready list.
const READS_PER_TURN_MAX: usize = 4096;
/// Bytes read from all connections in one turn, so that a turn stays short; the rest stays on the ready list.
const READ_BYTES_PER_TURN_MAX: usize = 8 * 1024 * 1024;
/// Bytes of the buffer into which all connections of a shard are read.
const SCRATCH_BYTES: usize = 256 * 1024;
/// Completions and ready connections for which there is room at all times; more room, which a rush needed, is given back.
const KEPT_PLACES: usize = 4096;
/// How often the numbers are published for `/metrics`.
const METRICS_INTERVAL_MS: u64 = 100;
/// How long accepting rests after an error such as "too many open files".
const ACCEPT_RETRY_MS: u64 = 100;
/// How soon a batch is offered again to a core whose queue was full.
const LANE_RETRY_MS: u64 = 1;

/// One shard's kernel side.
pub struct ShardLoop {
    core: CoreId,
    shard: Shard,
    ring: Ring,
    places: Places,
    listeners: [Listening; 2],
    shared: Arc<Shared>,
    inbox: Arc<Inbox<Batch>>,
    send_mode: SendMode,
    read_bytes_per_turn_max: usize,
    /// Connections that may have unread data.
    ready: Vec<ConnId>,
    scratch: Scratch,
    completions: Vec<Completion>,
    writes: WriteBatch,
    exceptions: Vec<(usize, Result<usize, Errno>)>,
    actions: Vec<Action>,
    targets: Vec<CoreId>,
    now_ms: u64,
    metrics_published_ms: u64,
    /// A lane's target was full: come back soon.
    lanes_wait: bool,
    /// Some ready connection can be read at once.
    reads_wait: bool,
    stopping_since_ms: Option<u64>,
    drain_step: u8,
}

struct Listening {
    port: Port,
    options: ListenOptions,
    /// None while the port is full or the process stops: the kernel then sends newcomers to other shards.
    listener: Option<Listener>,
    armed: bool,
    /// Not before this.
    retry_ms: u64,
}

/// What a shard's thread needs.
pub struct ShardParts {
    /// Its number.
    pub core: CoreId,
    /// Its decisions.
    pub shard: Shard,
    /// Its ring, made on this thread.
    pub ring: Ring,
    /// Where clients come in.
    pub clients: (ListenOptions, Listener),
    /// Where backends come in.
    pub backends: (ListenOptions, Listener),
    /// What it shares with the others.
    pub shared: Arc<Shared>,
    /// How frames are written.
    pub send_mode: SendMode,
    /// Bytes read from one connection in one turn.
    pub read_bytes_per_turn_max: u32,
}

impl ShardLoop {
    /// # Errors
    /// No memory for the buffer.
    pub fn new(parts: ShardParts) -> Result<Self, Errno> {
        let listening = |port, (options, listener)| Listening {
            port,
            options,
            listener: Some(listener),
            armed: false,
            retry_ms: 0,
        };
        Ok(ShardLoop {
            core: parts.core,
            places: Places::new(parts.shard.connections_max()),
            shard: parts.shard,
            ring: parts.ring,
            listeners: [listening(Port::Client, parts.clients), listening(Port::Ingest, parts.backends)],
            inbox: Arc::clone(&parts.shared.inboxes[parts.core.0 as usize]),
            shared: parts.shared,
            send_mode: parts.send_mode,
            read_bytes_per_turn_max: parts.read_bytes_per_turn_max as usize,
            ready: Vec::new(),
            scratch: Scratch::new(SCRATCH_BYTES)?,
            completions: Vec::new(),
            writes: WriteBatch::default(),
            exceptions: Vec::new(),
            actions: Vec::new(),
            targets: Vec::new(),
            now_ms: clock::now_ms(),
            metrics_published_ms: 0,
            lanes_wait: false,
            reads_wait: false,
            stopping_since_ms: None,
            drain_step: 0,
        })
    }

    /// Runs until the process is to stop and all connections have ended (or had time to).
    ///
    /// # Errors
    /// The ring failed; the process cannot go on.
    pub fn run(mut self) -> Result<(), Errno> {
        self.ring.poll_wake(&self.inbox, wake_token());
        self.accept();
        while !self.is_done() {
            self.turn()?;
        }
        self.shared.metrics.publish(self.core.0 as usize, self.shard.metrics());
        Ok(())
    }

    /// One turn; see the file's header.
    fn turn(&mut self) -> Result<(), Errno> {
        self.wait()?;
        self.now_ms = clock::now_ms();
        self.shard.begin_turn(self.now_ms);
        self.accept();
        self.take_completions();
        self.take_lanes();
        self.read_ready();
        self.shard.end_turn();
        // Writing a slice takes milliseconds: other cores have their part of a publication before it and write meanwhile.
        self.send_lanes();
        self.write();
        // What followed from writing, such as the end of a connection.
        self.send_lanes();
        self.carry_out();
        self.accept();
        self.look_at_ready();
        self.publish_metrics();
        self.drain_if_told();
        self.stop_if_told();
        Ok(())
    }

    /// Sleeps, unless there is something to do, until a completion or the next tick.
    fn wait(&mut self) -> Result<(), Errno> {
        let lanes_busy = !self.inbox.is_empty() && !self.shard.is_swamped();
        let busy = self.shard.has_work() || self.reads_wait || lanes_busy;
        let wait = if busy || !self.inbox.prepare_sleep() {
            Wait::No
        } else if self.lanes_wait {
            Wait::Until { timeout_ms: LANE_RETRY_MS }
        } else {
            Wait::Until { timeout_ms: self.shard.next_tick_in_ms() }
        };
        let report = self.ring.turn(wait, &mut self.completions)?;
        self.inbox.awake();
        let metrics = self.shard.metrics();
        metrics.add(Metric::Turns, 1);
        metrics.add(Metric::TurnSleeps, u64::from(report.waited));
        metrics.add(Metric::CqOverflows, u64::from(report.overflowed));
        Ok(())
    }

    /// Arms the accepts that are not: at start, after an error, after the port was full.
    fn accept(&mut self) {
        if self.stopping_since_ms.is_some() {
            return;
        }
        for index in 0..self.listeners.len() {
            // Refused connects are tried again elsewhere by load balancers; an answer would not be.
            if self.listeners[index].listener.is_some() && !self.shard.takes_newcomers(self.listeners[index].port) {
                self.stop_accept(index);
            }
        }
        for (index, listening) in self.listeners.iter_mut().enumerate() {
            if !self.shard.takes_newcomers(listening.port) {
                continue;
            }
            let room = match listening.listener {
                Some(_) => !self.shard.is_full(listening.port),
                None => self.shard.has_room(listening.port),
            };
            if listening.armed || self.now_ms < listening.retry_ms || !room {
                continue;
            }
            if listening.listener.is_none() {
                listening.listener = Listener::bind(&listening.options).ok();
            }
            let Some(listener) = &listening.listener else {
                self.shard.metrics().add(Metric::AcceptErrors, 1);
                listening.retry_ms = self.now_ms + ACCEPT_RETRY_MS;
                continue;
            };
            self.ring.accept_multishot(listener, Token::new(Op::Accept, index as u32, 0));
            listening.armed = true;
        }
    }

    fn take_completions(&mut self) {
        let mut completions = std::mem::take(&mut self.completions);
        for mut completion in completions.drain(..) {
            let token = completion.token;
            let conn = ConnId { slot: token.slot(), generation: token.generation() };
            match token.op() {
                Some(Op::Accept) => {
                    let socket = completion.take_socket();
                    self.accepted(token.slot() as usize, socket, completion.result.err(), completion.more);
                }
                Some(Op::Wake) => self.ring.poll_wake(&self.inbox, wake_token()),
                Some(op @ (Op::Readable | Op::Writable | Op::Cancel)) => {
                    let hangup = completion.is_hangup();
                    self.connection_completed(op, conn, hangup, completion.more);
                }
                Some(Op::Send) | None => debug_assert!(false, "no such completion is asked for: {token:?}"),
            }
        }
        self.completions = completions;
    }

    fn accepted(&mut self, index: usize, socket: Option<Socket>, error: Option<Errno>, more: bool) {
        let listening = &mut self.listeners[index];
        if !more {
            listening.armed = false;
        }
        match error {
            Some(errno) if !errno.is_cancelled() => {
                self.shard.metrics().add(Metric::AcceptErrors, 1);
                listening.retry_ms = self.now_ms + ACCEPT_RETRY_MS;
            }
            None if !more => self.shard.metrics().add(Metric::MultishotRearms, 1),
            _ => {}
        }
        let Some(socket) = socket else { return };
        let port = listening.port;
        // The address costs a system call and is wanted only for the log of backends.
        let peer = (port == Port::Ingest).then(|| socket.peer_addr()).flatten().map(|address| address.ip());
        let Some(conn) = self.shard.accepted(Accepted { port, peer }) else {
            // Accepted before the accept could be cancelled: the peer sees the end and comes back.
            return;
        };
        self.places.open(&mut self.ring, conn, socket);
        // A client's request is usually there already: it is read in this turn, and needs no completion.
        if port == Port::Client && self.places.mark_ready(conn, false) {
            self.ready.push(conn);
        }
        if self.shard.is_full(port) && self.listeners[index].listener.is_some() {
            self.shard.metrics().add(Metric::AcceptPaused, 1);
            self.stop_accept(index);
        }
    }

    /// Closes a listener: what waits in its queue is reset and comes back, to another shard or later.
    fn stop_accept(&mut self, index: usize) {
        self.listeners[index].listener = None;
        if self.listeners[index].armed {
            // The accept holds the listening socket until its own last completion.
            self.ring.cancel(Token::new(Op::Accept, index as u32, 0), Token::new(Op::Cancel, Token::SLOT_MAX, 0));
        }
    }

    fn connection_completed(&mut self, op: Op, conn: ConnId, hangup: bool, more: bool) {
        if op == Op::Cancel && conn.slot == Token::SLOT_MAX {
            return;
        }
        match self.places.completed(op, conn, more) {
            None => self.shard.metrics().add(Metric::LateCompletions, 1),
            Some(Completed::Closing) => {}
            Some(Completed::LastOfClosing) => self.close(conn),
            Some(Completed::Live) => match op {
                Op::Readable => {
                    if !more {
                        self.shard.metrics().add(Metric::MultishotRearms, 1);
                        self.places.rearm_readable(&mut self.ring, conn);
                    }
                    if self.places.mark_ready(conn, hangup) {
                        self.ready.push(conn);
                    }
                }
                Op::Writable => self.shard.handle(Input::Writable { conn }),
                Op::Accept | Op::Wake | Op::Cancel | Op::Send => {}
            },
        }
    }

    /// Reads connections with unread data, each up to its share; who has more stays on the list.
    fn read_ready(&mut self) {
        self.reads_wait = false;
        if self.ready.is_empty() {
            return;
        }
        let mut ready = std::mem::take(&mut self.ready);
        let (mut turn, mut kept, mut bytes) = (0, 0, 0);
        while turn < ready.len().min(READS_PER_TURN_MAX) && bytes < READ_BYTES_PER_TURN_MAX {
            // Lanes or fan-outs are behind: they make room without our reading more.
            if self.shard.is_pressed() {
                break;
            }
            let conn = ready[turn];
            turn += 1;
            if self.read(conn, &mut bytes) {
                ready[kept] = conn;
                kept += 1;
            } else {
                self.places.unmark_ready(conn);
            }
        }
        self.reads_wait |= turn < ready.len();
        ready.drain(kept..turn);
        // Who was read first waits behind those who were not read at all.
        ready.rotate_left(kept);
        self.ready = ready;
    }

    /// Whether some ready connection can be read at once: then the next turn does not wait. Looked at behind
    /// everything that could have changed it, such as this core's answers to itself.
    fn look_at_ready(&mut self) {
        let readable = !self.ready.is_empty() && !self.shard.is_pressed();
        self.reads_wait = readable && self.ready.iter().any(|conn| self.shard.wants_read(*conn));
    }

    /// True: unread data may be left.
    fn read(&mut self, conn: ConnId, turn_bytes: &mut usize) -> bool {
        let mut read = 0;
        loop {
            if !self.shard.wants_read(conn) || read >= self.read_bytes_per_turn_max {
                let left = self.places.socket(conn).is_some();
                self.shard.metrics().add(Metric::ReadsDeferred, u64::from(left));
                return left;
            }
            let Some(socket) = self.places.socket(conn) else { return false };
            let room = SCRATCH_BYTES.min(self.read_bytes_per_turn_max - read);
            let buffer = &mut self.scratch.as_mut_slice()[..room];
            match socket.recv(buffer) {
                Ok(0) => {
                    self.shard.handle(Input::PeerFinished { conn });
                    return false;
                }
                Ok(bytes) => {
                    read += bytes;
                    *turn_bytes += bytes;
                    self.shard.handle(Input::Received { conn, bytes: &mut buffer[..bytes] });
                    // A short read has emptied the socket; what comes later makes a new edge.
                    if bytes < room && !self.places.hangup(conn) {
                        return false;
                    }
                }
                Err(errno) if errno.is_again() => return false,
                Err(_) => {
                    self.shard.handle(Input::SocketFailed { conn });
                    return false;
                }
            }
        }
    }

    fn take_lanes(&mut self) {
        for _ in 0..LANE_BATCHES_PER_TURN_MAX {
            if self.shard.is_swamped() {
                return;
            }
            let batch = self.inbox.pop();
            // Looked at behind the pop: a sender raises its flag before it sends what comes after the gap.
            for from in self.inbox.take_lost() {
                self.shard.handle(Input::LaneLost { from: CoreId(from as u16) });
            }
            let Some(batch) = batch else { return };
            for message in batch.messages {
                self.shard.handle(Input::Lane { message });
            }
        }
    }

    /// Writes what waits, one write per connection.
    fn write(&mut self) {
        loop {
            self.shard.collect_writes(&mut self.writes);
            if self.writes.is_empty() {
                return;
            }
            self.exceptions.clear();
            match self.send_mode {
                SendMode::Ring => {
                    let places = &self.places;
                    let sends = self.writes.iter().map(|(conn, bytes)| (socket_of(places, conn), bytes));
                    self.ring.send_all(sends, &mut self.exceptions);
                    self.exceptions.sort_unstable_by_key(|(index, _)| *index);
                }
                SendMode::Syscall => {
                    for (index, (conn, bytes)) in self.writes.iter().enumerate() {
                        let result = socket_of(&self.places, conn).send(bytes);
                        if result != Ok(bytes.len()) {
                            self.exceptions.push((index, result));
                        }
                    }
                }
            }
            self.report_writes();
        }
    }

    /// Tells the shard what each socket took.
    fn report_writes(&mut self) {
        let mut next = 0;
        for (index, result) in &self.exceptions {
            self.shard.wrote_whole(&self.writes, next..*index);
            next = index + 1;
            let Some((conn, bytes)) = self.writes.get(*index) else { break };
            let all = bytes.len();
            match *result {
                Ok(bytes) => self.shard.handle(Input::Wrote { conn, bytes, all: bytes == all }),
                Err(errno) if errno.is_again() => self.shard.handle(Input::Wrote { conn, bytes: 0, all: false }),
                Err(_) => {
                    self.shard.handle(Input::SocketFailed { conn });
                    continue;
                }
            }
            self.places.watch_writable(&mut self.ring, conn);
        }
        self.shard.wrote_whole(&self.writes, next..self.writes.len());
    }

    /// Gives other cores what was said to them. A full queue keeps its batch here, in order; nobody waits.
    fn send_lanes(&mut self) {
        self.lanes_wait = false;
        self.shard.lanes().take_waiting(&mut self.targets);
        for to in self.targets.drain(..) {
            let inbox = &self.shared.inboxes[to.0 as usize];
            let mut sent = (0, 0);
            // Raised before anything said later is sent; needs no place in the queue.
            if self.shard.lanes().take_lost(to) {
                inbox.mark_lost(self.core.0 as usize);
            }
            while let Some(batch) = self.shard.lanes().take_batch(to) {
                let messages = batch.messages.len() as u64;
                if let Err(batch) = inbox.push(batch) {
                    self.shard.lanes().put_back(to, batch);
                    self.shard.metrics().add(Metric::LaneFull, 1);
                    self.lanes_wait = true;
                    break;
                }
                sent = (sent.0 + 1, sent.1 + messages);
            }
            let woken = inbox.wake_if_asleep();
            let metrics = self.shard.metrics();
            metrics.add(Metric::LaneBatchesSent, sent.0);
            metrics.add(Metric::LaneMessagesSent, sent.1);
            metrics.add(Metric::LaneWakes, u64::from(woken));
        }
    }

    /// Does what the engine asked for.
    fn carry_out(&mut self) {
        self.shard.take_actions(&mut self.actions);
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            match action {
                Action::Close { conn, reset } => {
                    if self.places.begin_close(&mut self.ring, conn, reset) {
                        self.close(conn);
                    }
                }
                Action::FinishWriting { conn } => {
                    if let Some(socket) = self.places.socket(conn) {
                        // Fails only if the peer has gone already, and then its end is on its way to us.
                        let _ = socket.shutdown_write();
                    }
                }
                Action::Note(note) => notes::log(self.core, note),
            }
        }
        self.actions = actions;
    }

    fn close(&mut self, conn: ConnId) {
        self.places.close(conn);
        self.shard.handle(Input::Closed { conn });
    }

    fn publish_metrics(&mut self) {
        if self.now_ms < self.metrics_published_ms + METRICS_INTERVAL_MS {
            return;
        }
        self.metrics_published_ms = self.now_ms;
        let (spill, dropped) = (self.shard.lanes().spill_bytes() as u64, self.shard.lanes().dropped());
        let said = |kind| self.shard.lanes_said(kind);
        let [publish, deliver, ack, other] =
            [LaneKind::Publish, LaneKind::Deliver, LaneKind::Ack, LaneKind::Other].map(said);
        let metrics = self.shard.metrics();
        metrics.set(Metric::LaneMessagesPublish, publish.messages);
        metrics.set(Metric::LaneMessagesDeliver, deliver.messages);
        metrics.set(Metric::LaneMessagesAck, ack.messages);
        metrics.set(Metric::LaneMessagesOther, other.messages);
        metrics.set(Metric::LanePublishes, publish.carried);
        metrics.set(Metric::LaneAcks, ack.carried);
        metrics.set(Metric::LaneSpillBytes, spill);
        metrics.set(Metric::LaneDropped, dropped);
        self.shared.metrics.publish(self.core.0 as usize, metrics);
        self.completions.shrink_to(KEPT_PLACES);
        self.ready.shrink_to(KEPT_PLACES);
    }

    fn drain_if_told(&mut self) {
        while let Some(input) = self.shared.drain.next(self.core, &mut self.drain_step) {
            self.shard.handle(input);
        }
    }

    fn stop_if_told(&mut self) {
        if self.stopping_since_ms.is_some() || !self.shared.stop.load(Ordering::Acquire) {
            return;
        }
        self.stopping_since_ms = Some(self.now_ms);
        for index in 0..self.listeners.len() {
            self.stop_accept(index);
        }
        self.shard.handle(Input::Shutdown);
    }

    fn is_done(&self) -> bool {
        self.stopping_since_ms.is_some_and(|since_ms| {
            self.shard.connections() == 0 || self.now_ms >= since_ms + self.shared.stop_timeout_ms
        })
    }
}

/// The socket of a connection that has something to write. The engine forgets what waits for a connection before its
/// socket is closed; were that broken, bytes could reach the wrong peer, so it ends the process.
fn socket_of(places: &Places, conn: ConnId) -> &Socket {
    places.socket(conn).unwrap_or_else(|| panic!("{conn:?} has something to write and no socket"))
}

fn wake_token() -> Token {
    Token::new(Op::Wake, 0, 0)
}
