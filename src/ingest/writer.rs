//! The thread that connects, sends, and notices a dead peer; one for the life of the client.
//!
//! In: the buffer, the link's credit and ends, the time. Out: bytes on the socket; at the very end the outcome of all
//! that is left.
//! Invariants: a new connection begins behind the oldest publish without an outcome, so what was sent before and not
//! answered goes first, in its old order. Sockets are used without the lock.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ringway_wire::ingest::{self, ServerFrame};

use crate::config::Config;
use crate::connect::{self, Opened, Route};
use crate::error::PublishError;
use crate::link::{End, Link, LinkOptions};
use crate::reader;
use crate::state::{Outcomes, Shared, Stop, WriterSleep, now};

/// Runs until the client is closed or a gateway refuses for good.
pub(crate) fn run(shared: &Arc<Shared>, config: &Config, instance: [u8; 16]) {
    let mut route = Route::new(config.addresses.clone());
    let mut failures = 0;
    while wait_backoff(shared, config, failures) {
        let address = route.take();
        let (end, useful) = match connect::open(&address, config, instance) {
            Err(end) => (end, false),
            Ok(opened) => serve(shared, config, opened, &mut route),
        };
        failures = if useful { 0 } else { failures + 1 };
        let mut state = shared.lock();
        match end {
            End::Done => break,
            End::Moved => {}
            End::Retry(text) | End::Unwritable(text) => state.counters.last_error = text,
            End::Final(refusal) => {
                state.counters.last_error = refusal.text.clone();
                state.stop = Stop::Failed(refusal);
                break;
            }
        }
    }
    let mut outcomes = Outcomes::default();
    let mut state = shared.lock();
    let error = match &state.stop {
        Stop::Failed(refusal) => PublishError::Failed(refusal.clone()),
        _ => {
            // Also when the buffer ran empty while closing: nothing may be kept behind this thread.
            state.stop = Stop::Now;
            PublishError::Closed
        }
    };
    state.complete_all(&error, &mut outcomes);
    shared.wake_waiting(&state);
    drop(state);
    shared.deliver(&mut outcomes);
}

/// Sleeps before an attempt; false when there is to be none.
fn wait_backoff(shared: &Shared, config: &Config, failures: u32) -> bool {
    let until = now() + connect::backoff(config, failures);
    let mut state = shared.lock();
    loop {
        match state.stop {
            Stop::No => {}
            Stop::WhenEmpty if !state.buffer.is_empty() => {}
            _ => return false,
        }
        let left = until.saturating_duration_since(now());
        if left.is_zero() {
            return true;
        }
        state = shared.writer_sleep(state, WriterSleep::Blocked, left);
    }
}

/// One connection's life behind its hello. Returns how it ended, and whether it was of use.
fn serve(shared: &Arc<Shared>, config: &Config, opened: Opened, route: &mut Route) -> (End, bool) {
    let Opened { stream, bytes, hello_ok_bytes } = opened;
    let stream = Arc::new(stream);
    let options = LinkOptions {
        ping_interval: config.ping_interval,
        peer_timeout: config.peer_timeout,
        batch_bytes_max: config.batch_bytes_max,
    };
    let Ok(ServerFrame::HelloOk(hello)) = ingest::decode_server(&bytes[..hello_ok_bytes]) else {
        return (End::Retry("the answer to the hello is not one".into()), false);
    };
    {
        let mut state = shared.lock();
        state.counters.connections += 1;
        let generation = state.counters.connections;
        let mut link = Link::new(Arc::clone(&stream), &hello, generation, state.buffer.base_seq(), options, now());
        if let Some(dispatcher) = shared.dispatcher.get() {
            dispatcher.begin(&mut link);
        }
        state.link = Some(link);
        shared.wake_waiting(&state);
    }
    let rest = bytes[hello_ok_bytes..].to_vec();
    let (reader_shared, reader_stream) = (Arc::clone(shared), Arc::clone(&stream));
    let reader = thread::Builder::new()
        .name("ingest-reader".into())
        .spawn(move || reader::run(&reader_shared, &reader_stream, rest));
    let end = match &reader {
        Ok(_) => send(shared, &stream, options),
        Err(error) => End::Retry(error.to_string().into()),
    };
    // Errors mean that the peer has closed already, which is what is wanted.
    let _ = stream.shutdown(Shutdown::Both);
    if let Some(dispatcher) = shared.dispatcher.get() {
        // Before the reader is waited for: it may be waiting for the handler.
        dispatcher.end();
    }
    if let Ok(reader) = reader {
        // It ends with the socket.
        let _ = reader.join();
    }
    let mut state = shared.lock();
    let Some(link) = state.link.take() else {
        return (end, false);
    };
    shared.wake_waiting(&state);
    let useful = link.useful(now(), config.backoff_max);
    route.hint(link.hints);
    let end = match (end, link.end) {
        (End::Unwritable(_), Some(said)) => said,
        // What the reader says after our own shutdown is no news, except for a refusal that was on its way.
        (_, Some(said @ End::Final(_))) => said,
        (end, _) => end,
    };
    (end, useful)
}

/// Writes what may be sent until the connection is to end.
fn send(shared: &Shared, stream: &TcpStream, options: LinkOptions) -> End {
    let mut out = Vec::with_capacity(options.batch_bytes_max);
    let mut outcomes = Outcomes::default();
    loop {
        let end = next_write(shared, options, &mut out, &mut outcomes);
        shared.deliver(&mut outcomes);
        if let Some(End::Done | End::Moved) = end {
            ingest::write_goodbye(&mut out);
        }
        let mut socket = stream;
        let written = socket.write_all(&out);
        match (end, written) {
            (Some(end), _) => return end,
            (None, Ok(())) => {}
            (None, Err(error)) => return End::Unwritable(error.to_string().into()),
        }
    }
}

/// Waits until there is something to write (in `out`), outcomes to hand on, or an end.
fn next_write(shared: &Shared, options: LinkOptions, out: &mut Vec<u8>, outcomes: &mut Outcomes) -> Option<End> {
    out.clear();
    let mut state = shared.lock();
    loop {
        let now = now();
        match state.stop {
            Stop::Now | Stop::Failed(_) => return Some(End::Done),
            Stop::WhenEmpty if state.is_drained() => return Some(End::Done),
            Stop::WhenEmpty | Stop::No => {}
        }
        let link = state.link.as_mut()?;
        if let Some(end) = &link.end {
            return Some(end.clone());
        }
        let time_left: Duration = match link.time_left(now) {
            Ok(time_left) => time_left,
            Err(end) => return Some(end),
        };
        Link::fill(&mut state, options, now, out, outcomes);
        if !out.is_empty() || !outcomes.is_empty() {
            if !outcomes.is_empty() {
                shared.wake_waiting(&state);
            }
            return None;
        }
        let next_seq = state.buffer.next_seq();
        let blocked = state.link.as_ref().is_some_and(|link| link.holds_back(next_seq));
        let sleep = if blocked { WriterSleep::Blocked } else { WriterSleep::Idle };
        state = shared.writer_sleep(state, sleep, time_left);
    }
}
