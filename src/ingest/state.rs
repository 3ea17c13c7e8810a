//! What the caller's threads, the writer and the reader share, and how outcomes reach those who wait.
//!
//! In: publishes (callers), outcomes and ends of connections (reader, writer). Out: wake-ups, each only when somebody
//! sleeps, and filled [`OutcomeCell`]s.
//! Invariants: one lock, held for memory work only, never during a system call on a socket or a caller's function.
//! Every publish that was kept gets exactly one outcome: it leaves the buffer in the same step in which the outcome is
//! collected.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ringway_wire::ingest::EpochText;

use crate::buffer::Buffer;
use crate::calls::CallCell;
use crate::config::OnOutcomes;
use crate::error::{PublishError, Refusal};
use crate::events::{Dispatcher, Job};
use crate::link::Link;

/// Where a publication stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Place in its channel; 0: a channel without history.
    pub offset: u64,
    /// Of the channel; prints as clients see it.
    pub epoch: EpochText,
    /// The idempotency key was known already; the place is the first publish's. Also after a resend whose first
    /// acknowledgement was lost.
    pub duplicate: bool,
}

/// What became of one publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Number that the call returned.
    pub seq: u64,
    /// Its place, or why it has none.
    pub result: Result<Ack, PublishError>,
}

/// Who waits for an outcome.
#[derive(Debug)]
pub(crate) enum Waiter {
    /// The function of the configuration.
    Callback,
    /// A handle.
    Handle(Arc<OutcomeCell>),
}

/// A place for one outcome.
#[derive(Debug, Default)]
pub(crate) struct OutcomeCell {
    result: Mutex<Option<Result<Ack, PublishError>>>,
    filled: Condvar,
}

impl OutcomeCell {
    fn fill(&self, result: Result<Ack, PublishError>) {
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        self.filled.notify_all();
    }

    pub(crate) fn get(&self) -> Option<Result<Ack, PublishError>> {
        self.result.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the outcome, until `deadline` if there is one.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Option<Result<Ack, PublishError>> {
        let mut result = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        while result.is_none() {
            result = wait_until(&self.filled, result, deadline)?;
        }
        result.clone()
    }
}

/// How far the end of the client has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Open.
    No,
    /// No new publishes; the rest is still sent.
    WhenEmpty,
    /// Now; what is left gets [`PublishError::Closed`].
    Now,
    /// A gateway refused for good.
    Failed(Refusal),
}

/// What the writer sleeps for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriterSleep {
    /// It is at work and will look again.
    Awake,
    /// A publish would give it something to do.
    Idle,
    /// Only the reader, an end or time would.
    Blocked,
}

/// Counters that the face shows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) acked: u64,
    pub(crate) refused: u64,
    pub(crate) connections: u64,
    pub(crate) events: u64,
    pub(crate) handler_panics: u64,
    pub(crate) last_error: Box<str>,
}

/// Under the lock.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) buffer: Buffer,
    /// The connection in force.
    pub(crate) link: Option<Link>,
    pub(crate) stop: Stop,
    pub(crate) writer: WriterSleep,
    pub(crate) counters: Counters,
    /// Callers that wait for [`Shared::progress`].
    pub(crate) waiting: u32,
}

/// See the file's header.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// The writer sleeps here.
    writer_wake: Condvar,
    /// Callers sleep here: for room, for emptiness, for a connection.
    progress: Condvar,
    on_outcomes: Mutex<Option<OnOutcomes>>,
    has_on_outcomes: AtomicBool,
    /// Takes events, once there is a handler.
    pub(crate) dispatcher: OnceLock<Arc<Dispatcher>>,
}

impl Shared {
    pub(crate) fn new(instance: [u8; 16], on_outcomes: Option<OnOutcomes>) -> Self {
        Shared {
            state: Mutex::new(State {
                buffer: Buffer::new(instance),
                link: None,
                stop: Stop::No,
                writer: WriterSleep::Awake,
                counters: Counters::default(),
                waiting: 0,
            }),
            writer_wake: Condvar::new(),
            progress: Condvar::new(),
            has_on_outcomes: AtomicBool::new(on_outcomes.is_some()),
            on_outcomes: Mutex::new(on_outcomes),
            dispatcher: OnceLock::new(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of a caller's function never happens under this lock, and the state is consistent between calls.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writer waits for something to do; `sleep` says what could be.
    pub(crate) fn writer_sleep<'s>(
        &'s self,
        mut state: MutexGuard<'s, State>,
        sleep: WriterSleep,
        time: Duration,
    ) -> MutexGuard<'s, State> {
        state.writer = sleep;
        let (mut state, _) = self.writer_wake.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner);
        state.writer = WriterSleep::Awake;
        state
    }

    /// After a publish was kept.
    pub(crate) fn wake_idle_writer(&self, mut state: MutexGuard<'_, State>) {
        let idle = state.writer == WriterSleep::Idle;
        if idle {
            state.writer = WriterSleep::Awake;
        }
        drop(state);
        if idle {
            self.writer_wake.notify_one();
        }
    }

    /// After an answer, an end, or a decision to stop.
    pub(crate) fn wake_writer(&self, state: &mut State) {
        if state.writer != WriterSleep::Awake {
            state.writer = WriterSleep::Awake;
            self.writer_wake.notify_one();
        }
    }

    /// A caller waits for anything to change; none when the deadline has passed.
    pub(crate) fn wait_progress<'s>(
        &'s self,
        mut state: MutexGuard<'s, State>,
        deadline: Option<Instant>,
    ) -> Option<MutexGuard<'s, State>> {
        state.waiting += 1;
        let mut state = match wait_until(&self.progress, state, deadline) {
            Some(state) => state,
            None => {
                self.lock().waiting -= 1;
                return None;
            }
        };
        state.waiting -= 1;
        Some(state)
    }

    /// After outcomes, a new connection or an end.
    pub(crate) fn wake_waiting(&self, state: &State) {
        if state.waiting > 0 {
            self.progress.notify_all();
        }
    }

    /// Hands outcomes to those who wait. Not under the lock.
    pub(crate) fn deliver(&self, outcomes: &mut Outcomes) {
        for (cell, result) in outcomes.handles.drain(..) {
            cell.fill(result);
        }
        for (cell, frame) in outcomes.calls.drain(..) {
            cell.fill_from(&frame);
        }
        if !outcomes.callback.is_empty() && self.has_on_outcomes.load(Ordering::Relaxed) {
            let mut function = self.on_outcomes.lock().unwrap_or_else(PoisonError::into_inner);
            let panicked = match function.as_mut() {
                Some(function) => catch_unwind(AssertUnwindSafe(|| function(&outcomes.callback))).is_err(),
                None => false,
            };
            if panicked {
                // Its state may be broken, and going on without it would lose outcomes in silence.
                *function = None;
                let mut state = self.lock();
                state.counters.last_error = "the outcome function panicked".into();
                state.stop = Stop::Now;
                self.wake_writer(&mut state);
            }
        }
        outcomes.callback.clear();
        if let Some(dispatcher) = self.dispatcher.get() {
            // Last, since it may wait for the handler.
            outcomes.events.drain(..).for_each(|job| dispatcher.dispatch(job));
        }
    }
}

/// Outcomes on their way from under the lock to those who wait.
#[derive(Default)]
pub(crate) struct Outcomes {
    handles: Vec<(Arc<OutcomeCell>, Result<Ack, PublishError>)>,
    callback: Vec<Outcome>,
    /// Answers to calls, as frames.
    pub(crate) calls: Vec<(Arc<CallCell>, Box<[u8]>)>,
    pub(crate) events: Vec<Job>,
}

impl Outcomes {
    pub(crate) fn is_empty(&self) -> bool {
        // Calls and events come from the reader alone, which hands them on in any case.
        self.handles.is_empty() && self.callback.is_empty()
    }
}

impl State {
    /// Whether every publish has its outcome, and every event and call on the connection its answer.
    pub(crate) fn is_drained(&self) -> bool {
        self.buffer.is_empty() && self.link.as_ref().is_none_or(|link| link.remote.is_idle())
    }

    /// Gives a publish its outcome; false when it has one or never was.
    #[inline]
    pub(crate) fn complete(&mut self, seq: u64, result: Result<Ack, PublishError>, outcomes: &mut Outcomes) -> bool {
        let Some(waiter) = self.buffer.complete(seq) else {
            return false;
        };
        match &result {
            Ok(_) => self.counters.acked += 1,
            Err(_) => self.counters.refused += 1,
        }
        match waiter {
            Waiter::Handle(cell) => outcomes.handles.push((cell, result)),
            Waiter::Callback => outcomes.callback.push(Outcome { seq, result }),
        }
        true
    }

    /// Gives all that is left the same outcome.
    pub(crate) fn complete_all(&mut self, error: &PublishError, outcomes: &mut Outcomes) {
        for seq in self.buffer.base_seq()..self.buffer.next_seq() {
            self.complete(seq, Err(error.clone()), outcomes);
        }
    }
}

/// Waits on `condvar` once; none when `deadline` has passed.
pub(crate) fn wait_until<'g, T>(
    condvar: &Condvar,
    guard: MutexGuard<'g, T>,
    deadline: Option<Instant>,
) -> Option<MutexGuard<'g, T>> {
    let Some(deadline) = deadline else {
        return Some(condvar.wait(guard).unwrap_or_else(PoisonError::into_inner));
    };
    let left = deadline.checked_duration_since(now()).filter(|left| !left.is_zero())?;
    Some(condvar.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0)
}

/// The time, read in this one place.
#[expect(clippy::disallowed_methods, reason = "a library in the backend's process has no loop whose turns have a time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
