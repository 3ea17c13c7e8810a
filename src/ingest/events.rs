//! Clients' events: taken, handed to the backend's function on threads of their own, acknowledged or answered.
//!
//! In: event frames from the reader. Out: calls of the handler, its replies as frames on the same connection.
//!
//! ```text
//! reader ── by hash of the client id ──> queue of a thread ──> handler ──> reply
//! ```
//!
//! Invariants: events of one client come to the handler one after another, in order; those of different clients on
//! several threads at once. An event whose connection has ended is not begun: the gateway sends it again. A full queue
//! makes the reader wait, and the gateway's window bounds what can come.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ringway_wire::ingest::{
    Admission, ClientEvent, EventKind, EventKinds, Grant, IngestError, ListBuf, Overrides, ServerFrame, Subscription,
    TakeEvents, Verdict, decode_event, decode_server, write_event_ack, write_event_answer,
};

use crate::calls::millis;
use crate::client::Client;
use crate::error::ConnectError;
use crate::state::{Shared, Stop, wait_until};

/// Events that wait for one thread. Full: the reader waits.
const QUEUED_PER_THREAD_MAX: usize = 16_384;
/// How often the waiting reader looks whether its connection is still there.
const FULL_LOOK: Duration = Duration::from_millis(50);
/// Threads for one handler.
const THREADS_MAX: usize = 1_024;
/// What a client gets when its event's handler fails.
const INTERNAL: Verdict<'static> = Verdict::Error { code: 100, temporary: true, message: "internal server error" };

/// Which events, and how they are handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventOptions {
    /// Which kinds. Default: all.
    pub kinds: EventKinds,
    /// Threads that call the handler, 1 to 1,024. Default: 4.
    pub threads: usize,
    /// Events that may be without a reply at once, about; 0: as many as the gateway likes. Default: 0.
    pub window: u32,
}

impl Default for EventOptions {
    fn default() -> Self {
        EventOptions { kinds: EventKinds::ALL, threads: 4, window: 0 }
    }
}

/// Names an event on its connection, for [`Client::reply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventId {
    /// The gateway's number: the same when the event comes again, and growing along the events of one client.
    pub number: u64,
    kind: EventKind,
    ask: bool,
    generation: u64,
}

/// Something that a client did, or wants to do.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// Its name.
    pub id: EventId,
    /// Who did what.
    pub client: ClientEvent<'a>,
}

/// What the handler says. An event that asks nothing is acknowledged by any of them but `Later`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reply {
    /// Done; or allowed, with nothing to add: as an anonymous client, with an empty result.
    #[default]
    Done,
    /// The client's command is answered with an error.
    Error {
        /// 100 to 4999; from 400 on they are yours.
        code: u32,
        /// 1 to 1,024 bytes.
        message: String,
        /// Whether the client tries again.
        temporary: bool,
    },
    /// The client's connection is closed.
    Disconnect {
        /// 3000 to 4999; from 4000 on they are yours.
        code: u16,
        /// 1 to 123 bytes.
        reason: String,
    },
    /// It may connect.
    Connect(ConnectReply),
    /// It may subscribe.
    Subscribe(SubscribeReply),
    /// It may publish, but this.
    Publish(Vec<u8>),
    /// The method's result.
    Rpc(Vec<u8>),
    /// [`Client::reply`] will say it.
    Later,
}

/// What a client may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectReply {
    /// User id; empty: anonymous.
    pub user: String,
    /// JSON that other clients see; empty: none.
    pub info: Vec<u8>,
    /// JSON that comes with each later event of the client; empty: none.
    pub meta: Vec<u8>,
    /// JSON for the client itself; empty: none.
    pub data: Vec<u8>,
    /// How long the connection may live; none: without end.
    pub expires_in: Option<Duration>,
    /// Server-side subscriptions by channel.
    pub subscriptions: Vec<(String, SubscribeReply)>,
}

/// What comes with a subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscribeReply {
    /// JSON that other clients see; empty: none.
    pub info: Vec<u8>,
    /// JSON for the client itself; empty: none.
    pub data: Vec<u8>,
    /// How long the subscription may live; none: without end.
    pub expires_in: Option<Duration>,
    /// What differs from the namespace.
    pub overrides: Overrides,
}

impl SubscribeReply {
    fn grant(&self) -> Grant<'_> {
        let expires_in_ms = self.expires_in.map(millis);
        Grant { info: &self.info, data: &self.data, expires_in_ms, overrides: self.overrides }
    }
}

type Handler = dyn Fn(&Event<'_>) -> Reply + Send + Sync;

/// The handler and its threads.
pub(crate) struct Dispatcher {
    handler: Box<Handler>,
    take: TakeEvents,
    queues: Vec<Queue>,
    hasher: RandomState,
    /// The connection in force; 0: none.
    generation: AtomicU64,
    closed: AtomicBool,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct Queue {
    jobs: Mutex<VecDeque<Job>>,
    changed: Condvar,
}

/// An event's frame, and the connection that it came on.
pub(crate) struct Job {
    pub(crate) generation: u64,
    pub(crate) frame: Box<[u8]>,
}

impl Client {
    /// Takes events of clients from here on, on this connection and those that follow. `handler` is called from threads
    /// of its own, for one client's events one after another. When it returns the event is acknowledged or answered; a
    /// panic in it is counted, and answered with an error. Events come at least once: do not act twice on one
    /// [`EventId::number`]. While it runs, nothing else of that client is handled, and clients wait at most a few
    /// seconds for answers.
    ///
    /// # Errors
    /// [`ConnectError::Config`] for options out of range or a second call, [`ConnectError::Thread`].
    pub fn events(
        &self,
        options: EventOptions,
        handler: impl Fn(&Event<'_>) -> Reply + Send + Sync + 'static,
    ) -> Result<(), ConnectError> {
        if !(1..=THREADS_MAX).contains(&options.threads) {
            return Err(ConnectError::Config("threads: 1 to 1,024"));
        }
        let dispatcher = Arc::new(Dispatcher {
            handler: Box::new(handler),
            take: TakeEvents { kinds: options.kinds, window: options.window },
            queues: (0..options.threads).map(|_| Queue::default()).collect(),
            hasher: RandomState::new(),
            generation: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            threads: Mutex::new(Vec::new()),
        });
        if self.shared.dispatcher.set(Arc::clone(&dispatcher)).is_err() {
            return Err(ConnectError::Config("events: there is a handler already"));
        }
        for index in 0..options.threads {
            let (shared, own) = (Arc::clone(&self.shared), Arc::clone(&dispatcher));
            let thread = thread::Builder::new()
                .name(format!("ingest-event-{index}"))
                .spawn(move || own.work(&shared, index))
                .map_err(|error| {
                    dispatcher.close();
                    ConnectError::Thread(error.to_string().into())
                })?;
            dispatcher.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        let mut state = self.shared.lock();
        if state.stop == Stop::No
            && let Some(link) = state.link.as_mut()
        {
            dispatcher.begin(link);
            self.shared.wake_writer(&mut state);
        }
        Ok(())
    }

    /// Replies to an event whose handler said [`Reply::Later`]. False: its connection has ended, and the event comes
    /// again.
    pub fn reply(&self, event: EventId, reply: &Reply) -> bool {
        self.shared.reply(event, reply)
    }
}

impl Dispatcher {
    /// Asks for events on a new connection.
    pub(crate) fn begin(&self, link: &mut crate::link::Link) {
        self.generation.store(link.generation, Ordering::Release);
        link.remote.take_events(self.take);
    }

    /// The connection has ended: what waits is not begun.
    pub(crate) fn end(&self) {
        self.generation.store(0, Ordering::Release);
    }

    /// No more events; threads end when their handler returns.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.end();
        for queue in &self.queues {
            // Under the lock, so that nobody misses it between looking and waiting.
            let _jobs = queue.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            queue.changed.notify_all();
        }
    }

    /// Waits for the threads; only when all handlers have returned or will.
    pub(crate) fn join(&self) {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads.into_iter().filter(|thread| thread.thread().id() != thread::current().id()) {
            // A thread cannot panic: its handler is caught.
            let _ = thread.join();
        }
    }

    /// Hands an event to its client's thread; waits while that one's queue is full.
    pub(crate) fn dispatch(&self, job: Job) {
        let Some((_, event)) = read(&job.frame) else { return };
        let index = self.hasher.hash_one(event.client) as usize % self.queues.len();
        let queue = &self.queues[index];
        let mut jobs = queue.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        while jobs.len() >= QUEUED_PER_THREAD_MAX && self.is_current(&job) {
            let (waited, _) = queue.changed.wait_timeout(jobs, FULL_LOOK).unwrap_or_else(PoisonError::into_inner);
            jobs = waited;
        }
        if self.is_current(&job) {
            jobs.push_back(job);
            queue.changed.notify_all();
        }
    }

    fn is_current(&self, job: &Job) -> bool {
        self.generation.load(Ordering::Acquire) == job.generation
    }

    fn next(&self, queue: &Queue) -> Option<Job> {
        let mut jobs = queue.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if self.closed.load(Ordering::Acquire) {
                return None;
            }
            if let Some(job) = jobs.pop_front() {
                queue.changed.notify_all();
                return Some(job);
            }
            jobs = wait_until(&queue.changed, jobs, None)?;
        }
    }

    fn work(&self, shared: &Shared, index: usize) {
        while let Some(job) = self.next(&self.queues[index]) {
            if !self.is_current(&job) {
                continue;
            }
            let Some((number, client)) = read(&job.frame) else { continue };
            let id = EventId { number, kind: client.what.kind(), ask: client.ask, generation: job.generation };
            let event = Event { id, client };
            match catch_unwind(AssertUnwindSafe(|| (self.handler)(&event))) {
                Ok(Reply::Later) => {}
                Ok(reply) => {
                    shared.reply(id, &reply);
                }
                Err(_) => {
                    let mut state = shared.lock();
                    state.counters.handler_panics += 1;
                    state.counters.last_error = "the event handler panicked".into();
                    drop(state);
                    shared.reply_with(id, |out, max| write_reply(out, id, &INTERNAL, max));
                }
            }
        }
    }
}

impl fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatcher").field("take", &self.take).finish_non_exhaustive()
    }
}

fn read(frame: &[u8]) -> Option<(u64, ClientEvent<'_>)> {
    match decode_server(frame) {
        Ok(ServerFrame::Event(event)) => Some((event.event, decode_event(&event).ok()?)),
        _ => None,
    }
}

impl Shared {
    fn reply(&self, id: EventId, reply: &Reply) -> bool {
        self.reply_with(id, |out, max| match verdict(out, id, reply, max) {
            Err(IngestError::TooLarge) => write_reply(out, id, &INTERNAL, max),
            written => written,
        })
    }

    fn reply_with(&self, id: EventId, write: impl FnOnce(&mut Vec<u8>, usize) -> Result<(), IngestError>) -> bool {
        let mut state = self.lock();
        let Some(link) = state.link.as_mut().filter(|link| link.generation == id.generation) else { return false };
        let max = link.remote.frame_bytes_max();
        // The last resort is small enough for any frame.
        let _ = write(&mut link.remote.out, max);
        link.remote.events_open = link.remote.events_open.saturating_sub(1);
        state.counters.events += 1;
        self.wake_writer(&mut state);
        self.wake_waiting(&state);
        true
    }
}

/// Writes what a reply means for its event.
fn verdict(out: &mut Vec<u8>, id: EventId, reply: &Reply, max: usize) -> Result<(), IngestError> {
    if !id.ask {
        write_event_ack(out, id.number);
        return Ok(());
    }
    let mut subscriptions = ListBuf::new();
    let verdict = match (reply, id.kind) {
        (Reply::Error { code, message, temporary }, _) => {
            Verdict::Error { code: *code, temporary: *temporary, message }
        }
        (Reply::Disconnect { code, reason }, _) => Verdict::Disconnect { code: *code, reason },
        (Reply::Done, EventKind::Connect) => Verdict::Connect(Admission::ANONYMOUS),
        (Reply::Connect(reply), EventKind::Connect) => {
            for (channel, granted) in &reply.subscriptions {
                subscriptions.push(&Subscription { channel, grant: granted.grant() })?;
            }
            Verdict::Connect(Admission {
                user: &reply.user,
                info: &reply.info,
                meta: &reply.meta,
                data: &reply.data,
                expires_in_ms: reply.expires_in.map(millis),
                subscriptions: subscriptions.list(),
            })
        }
        (Reply::Done, EventKind::Subscribe) => Verdict::Subscribe(Grant::default()),
        (Reply::Subscribe(reply), EventKind::Subscribe) => Verdict::Subscribe(reply.grant()),
        (Reply::Done, EventKind::Publish) => Verdict::Publish { data: None },
        (Reply::Publish(data), EventKind::Publish) => Verdict::Publish { data: Some(data) },
        (Reply::Done, EventKind::Rpc) => Verdict::Rpc { data: b"" },
        (Reply::Rpc(data), EventKind::Rpc) => Verdict::Rpc { data },
        // A reply of another kind than the event: a bug of the handler, which the client sees as an internal error.
        _ => INTERNAL,
    };
    write_reply(out, id, &verdict, max)
}

fn write_reply(out: &mut Vec<u8>, id: EventId, verdict: &Verdict<'_>, max: usize) -> Result<(), IngestError> {
    if !id.ask {
        write_event_ack(out, id.number);
        return Ok(());
    }
    write_event_answer(out, id.number, verdict, max)
}
