//! The face of the library.
//!
//! In: calls of the backend's threads. Out: numbered publishes in the buffer, the writer woken; handles and counters.
//! Invariants: a call that does not say "blocking" or "wait" never waits for the network. Numbers grow by one per
//! publish for the life of the client, in the order in which calls took the lock.

use std::fmt;
use std::net::Shutdown;
use std::sync::{Arc, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ringway_wire::ingest::{CHANNEL_BYTES_MAX, KEY_BYTES_MAX, PayloadKind};

use crate::buffer::NewPublish;
use crate::config::Config;
use crate::connect::random_u64;
use crate::error::{ConnectError, PublishError};
use crate::state::{Ack, OutcomeCell, Shared, State, Stop, Waiter, now};
use crate::writer;

/// How to publish; the default is JSON under a made key.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// What the payload is; must agree with the channel's namespace.
    pub kind: PayloadKind,
    /// Scoped to the channel, 1 to 64 bytes: within the gateway's window a key is published once. None: one that no
    /// other publish has is made, which covers resending after a cut.
    pub idempotency_key: Option<&'a [u8]>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options { kind: PayloadKind::Json, idempotency_key: None }
    }
}

/// A connection to a gateway that mends itself. Shared by reference among threads; see the crate's documentation.
/// Dropping it gives up what is not acknowledged yet; [`Client::close`] waits.
pub struct Client {
    pub(crate) shared: Arc<Shared>,
    pub(crate) call_timeout: Duration,
    writer: Option<JoinHandle<()>>,
    buffered_messages_max: usize,
    buffered_bytes_max: usize,
}

/// The outcome of one publish, now or later. May be dropped; the publish goes on.
#[derive(Debug)]
pub struct PublishHandle {
    seq: u64,
    cell: Arc<OutcomeCell>,
}

impl PublishHandle {
    /// The publish's number.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Waits for the outcome.
    ///
    /// # Errors
    /// Why there is no acknowledgement.
    pub fn wait(&self) -> Result<Ack, PublishError> {
        self.cell.wait(None).unwrap_or(Err(PublishError::Timeout))
    }

    /// Waits for the outcome, but not longer than `timeout`.
    ///
    /// # Errors
    /// [`PublishError::Timeout`], or why there is no acknowledgement.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Ack, PublishError> {
        self.cell.wait(Some(now() + timeout)).unwrap_or(Err(PublishError::Timeout))
    }

    /// The outcome if it is there.
    pub fn try_get(&self) -> Option<Result<Ack, PublishError>> {
        self.cell.get()
    }
}

/// What a client is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// The node now connected to, by the name it gave.
    pub node: Option<Box<str>>,
    /// Connections made so far.
    pub connections: u64,
    /// Publishes acknowledged.
    pub acked: u64,
    /// Publishes with any other outcome.
    pub refused: u64,
    /// Publishes held: from the oldest without an outcome to the newest.
    pub buffered_messages: usize,
    /// Bytes held, likewise.
    pub buffered_bytes: usize,
    /// Publishes sent on this connection and not answered.
    pub outstanding_messages: u64,
    /// Their payload bytes.
    pub outstanding_bytes: u64,
    /// Events replied to.
    pub events: u64,
    /// Events whose handler panicked.
    pub handler_panics: u64,
    /// Why the last connection or attempt ended.
    pub last_error: Box<str>,
}

impl Client {
    /// Starts a client and waits for its first connection, up to `connect_timeout`.
    ///
    /// # Errors
    /// The configuration is wrong, no gateway answered in time, or one refused for good.
    pub fn connect(config: Config) -> Result<Client, ConnectError> {
        let timeout = config.connect_timeout;
        let client = Client::start(config)?;
        client.wait_connected(timeout)?;
        Ok(client)
    }

    /// Starts a client that connects in the background; publishes are held until then.
    ///
    /// # Errors
    /// The configuration is wrong or a thread could not be started.
    pub fn start(mut config: Config) -> Result<Client, ConnectError> {
        config.check()?;
        let mut instance = [0; 16];
        instance[..8].copy_from_slice(&random_u64().to_le_bytes());
        instance[8..].copy_from_slice(&random_u64().to_le_bytes());
        let shared = Arc::new(Shared::new(instance, config.on_outcomes.take()));
        let (buffered_messages_max, buffered_bytes_max) = (config.buffered_messages_max, config.buffered_bytes_max);
        let call_timeout = config.call_timeout;
        let writer_shared = Arc::clone(&shared);
        let writer = thread::Builder::new()
            .name("ingest-writer".into())
            .spawn(move || writer::run(&writer_shared, &config, instance))
            .map_err(|error| ConnectError::Thread(error.to_string().into()))?;
        Ok(Client { shared, call_timeout, writer: Some(writer), buffered_messages_max, buffered_bytes_max })
    }

    /// Waits until there is a connection.
    ///
    /// # Errors
    /// None in time, or a gateway refused for good.
    pub fn wait_connected(&self, timeout: Duration) -> Result<(), ConnectError> {
        let deadline = now() + timeout;
        let mut state = self.shared.lock();
        loop {
            if state.link.is_some() {
                return Ok(());
            }
            if let Stop::Failed(refusal) = &state.stop {
                return Err(ConnectError::Refused(refusal.clone()));
            }
            state = match self.shared.wait_progress(state, Some(deadline)) {
                Some(state) => state,
                None => return Err(ConnectError::Unreachable(self.shared.lock().counters.last_error.clone())),
            };
        }
    }

    /// Publishes without waiting; the handle gets the outcome.
    ///
    /// # Errors
    /// It was not taken: [`PublishError::Full`], `Invalid`, `Closed` or `Failed`.
    pub fn publish(&self, channel: &str, payload: &[u8], options: &Options<'_>) -> Result<PublishHandle, PublishError> {
        self.with_handle(channel, payload, options, false)
    }

    /// As [`Client::publish`], but waits while the buffer is full.
    ///
    /// # Errors
    /// As there, without `Full`.
    pub fn publish_blocking(
        &self,
        channel: &str,
        payload: &[u8],
        options: &Options<'_>,
    ) -> Result<PublishHandle, PublishError> {
        self.with_handle(channel, payload, options, true)
    }

    /// Publishes without waiting and without a handle: the cheapest way. The outcome goes to
    /// [`Config::on_outcomes`] under the number that is returned, possibly before this call returns.
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub fn submit(&self, channel: &str, payload: &[u8], options: &Options<'_>) -> Result<u64, PublishError> {
        self.take(channel, payload, options, false, || Waiter::Callback)
    }

    /// As [`Client::submit`], but waits while the buffer is full.
    ///
    /// # Errors
    /// As there, without `Full`.
    pub fn submit_blocking(&self, channel: &str, payload: &[u8], options: &Options<'_>) -> Result<u64, PublishError> {
        self.take(channel, payload, options, true, || Waiter::Callback)
    }

    /// Waits until everything published before this call has its outcome. Handles and the outcome function may be told
    /// a moment later; [`Client::close`] waits for that too.
    ///
    /// # Errors
    /// [`PublishError::Timeout`].
    pub fn flush(&self, timeout: Duration) -> Result<(), PublishError> {
        let deadline = now() + timeout;
        let mut state = self.shared.lock();
        let target = state.buffer.next_seq();
        while state.buffer.base_seq() < target {
            state = self.shared.wait_progress(state, Some(deadline)).ok_or(PublishError::Timeout)?;
        }
        Ok(())
    }

    /// Takes no more publishes, calls and events, waits until all have their outcome, answer or reply but not longer
    /// than `timeout`, says goodbye and ends the threads (an attempt to connect that is under way may add up to
    /// `connect_timeout`; an event's handler that has not returned in time is not waited for).
    ///
    /// # Errors
    /// [`PublishError::Timeout`] when some got [`PublishError::Closed`] instead of an answer.
    pub fn close(mut self, timeout: Duration) -> Result<(), PublishError> {
        {
            let mut state = self.shared.lock();
            if state.stop == Stop::No {
                state.stop = Stop::WhenEmpty;
            }
            self.shared.wake_writer(&mut state);
            self.shared.wake_waiting(&state);
        }
        let result = self.drain(timeout);
        if result.is_err() {
            self.stop_now();
        }
        if let Some(writer) = self.writer.take() {
            // Joining fails only for a thread that panicked, and that panic has been printed.
            let _ = writer.join();
        }
        if let Some(dispatcher) = self.shared.dispatcher.get() {
            dispatcher.close();
            if result.is_ok() {
                dispatcher.join();
            }
        }
        result
    }

    fn drain(&self, timeout: Duration) -> Result<(), PublishError> {
        let deadline = now() + timeout;
        let mut state = self.shared.lock();
        while !state.is_drained() {
            state = self.shared.wait_progress(state, Some(deadline)).ok_or(PublishError::Timeout)?;
        }
        Ok(())
    }

    /// What the client is doing.
    pub fn stats(&self) -> Stats {
        let state = self.shared.lock();
        let link = state.link.as_ref();
        Stats {
            node: link.map(|link| link.node.clone()),
            connections: state.counters.connections,
            acked: state.counters.acked,
            refused: state.counters.refused,
            buffered_messages: state.buffer.len(),
            buffered_bytes: state.buffer.bytes(),
            outstanding_messages: link.map_or(0, |link| link.sent_messages.max(0) as u64),
            outstanding_bytes: link.map_or(0, |link| link.sent_bytes.max(0) as u64),
            events: state.counters.events,
            handler_panics: state.counters.handler_panics,
            last_error: state.counters.last_error.clone(),
        }
    }

    fn with_handle(
        &self,
        channel: &str,
        payload: &[u8],
        options: &Options<'_>,
        blocking: bool,
    ) -> Result<PublishHandle, PublishError> {
        let cell = Arc::new(OutcomeCell::default());
        let seq = self.take(channel, payload, options, blocking, || Waiter::Handle(Arc::clone(&cell)))?;
        Ok(PublishHandle { seq, cell })
    }

    fn take(
        &self,
        channel: &str,
        payload: &[u8],
        options: &Options<'_>,
        blocking: bool,
        waiter: impl FnOnce() -> Waiter,
    ) -> Result<u64, PublishError> {
        let key = options.idempotency_key.unwrap_or_default();
        let publish = NewPublish { kind: options.kind, key, channel, payload };
        if channel.is_empty() || channel.len() > CHANNEL_BYTES_MAX {
            return Err(PublishError::Invalid("a channel has 1 to 255 bytes"));
        }
        if key.len() > KEY_BYTES_MAX || options.idempotency_key.is_some_and(<[u8]>::is_empty) {
            return Err(PublishError::Invalid("an idempotency key has 1 to 64 bytes"));
        }
        if publish.bytes_len() > self.buffered_bytes_max || u32::try_from(payload.len()).is_err() {
            return Err(PublishError::Invalid("the publish is larger than the client's buffer"));
        }
        let mut state = self.room(publish.bytes_len(), blocking)?;
        let seq = state.buffer.push(&publish, waiter());
        self.shared.wake_idle_writer(state);
        Ok(seq)
    }

    /// The lock, with room for a publish of this size.
    fn room(&self, bytes_len: usize, blocking: bool) -> Result<MutexGuard<'_, State>, PublishError> {
        let mut state = self.shared.lock();
        loop {
            match &state.stop {
                Stop::No => {}
                Stop::WhenEmpty | Stop::Now => return Err(PublishError::Closed),
                Stop::Failed(refusal) => return Err(PublishError::Failed(refusal.clone())),
            }
            let buffer = &state.buffer;
            if buffer.len() < self.buffered_messages_max && buffer.bytes() + bytes_len <= self.buffered_bytes_max {
                return Ok(state);
            }
            if !blocking {
                return Err(PublishError::Full);
            }
            state = self.shared.wait_progress(state, None::<Instant>).ok_or(PublishError::Timeout)?;
        }
    }

    fn stop_now(&self) {
        if let Some(dispatcher) = self.shared.dispatcher.get() {
            dispatcher.close();
        }
        let mut state = self.shared.lock();
        if !matches!(state.stop, Stop::Failed(_)) {
            state.stop = Stop::Now;
        }
        if let Some(link) = &state.link {
            // Ends a read or write that blocks; an error means that it has ended.
            let _ = link.stream.shutdown(Shutdown::Both);
        }
        self.shared.wake_writer(&mut state);
        self.shared.wake_waiting(&state);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Not joined: the writer may be inside an attempt to connect, and ends by itself.
        self.stop_now();
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
