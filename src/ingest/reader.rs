//! The thread that takes what the gateway says on one connection.
//!
//! In: bytes of the socket. Out: outcomes and answers to those who wait, events to the handler's threads, credit and
//! ends into the [`crate::link::Link`].
//! Invariants: the lock is taken once for all frames of a read. The thread ends with its connection, and before the
//! next connection begins.

use std::io::{self, Read};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use ringway_wire::ingest::{self, EpochText, SERVER_FRAME_BYTES_MAX, ServerFrame};

use crate::error::PublishError;
use crate::events::Job;
use crate::link::{End, Link};
use crate::state::{Ack, Outcomes, Shared, State, now};

/// Bytes read at once; the buffer grows to [`SERVER_FRAME_BYTES_MAX`] only if a frame needs it.
const READ_BYTES: usize = 64 * 1024;

/// Reads until the connection ends. `bytes` came behind the hello.
pub(crate) fn run(shared: &Shared, stream: &Arc<TcpStream>, bytes: Vec<u8>) {
    let mut filled = bytes.len();
    let mut buffer = bytes;
    let mut outcomes = Outcomes::default();
    loop {
        let (used, end) = {
            let mut state = shared.lock();
            let result = take_frames(&mut state, &buffer[..filled], &mut outcomes);
            let (used, end) = match result {
                Ok(used) => (used, None),
                Err(end) => (filled, Some(end)),
            };
            shared.wake_writer(&mut state);
            shared.wake_waiting(&state);
            (used, end)
        };
        shared.deliver(&mut outcomes);
        if let Some(end) = end {
            return finish(shared, end);
        }
        buffer.copy_within(used..filled, 0);
        filled -= used;
        let wanted = (filled + READ_BYTES).min(SERVER_FRAME_BYTES_MAX);
        if buffer.len() < wanted {
            buffer.resize(wanted, 0);
        }
        match read(stream, &mut buffer[filled..]) {
            Ok(0) => return finish(shared, End::Retry("closed by the gateway".into())),
            Ok(count) => filled += count,
            Err(error) => return finish(shared, End::Retry(error.to_string().into())),
        }
    }
}

fn read(mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn finish(shared: &Shared, end: End) {
    let mut state = shared.lock();
    if let Some(link) = state.link.as_mut() {
        link.end.get_or_insert(end);
    }
    shared.wake_writer(&mut state);
}

/// Takes all whole frames; returns how many bytes they were.
fn take_frames(state: &mut State, bytes: &[u8], outcomes: &mut Outcomes) -> Result<usize, End> {
    let Some(mut link) = state.link.take() else {
        return Ok(bytes.len());
    };
    link.heard(now());
    let mut used = 0;
    let result = loop {
        match ingest::frame_len(&bytes[used..], SERVER_FRAME_BYTES_MAX) {
            Ok(Some(length)) if length <= bytes.len() - used => {
                if let Err(end) = take_frame(state, &mut link, &bytes[used..used + length], outcomes) {
                    break Err(end);
                }
                used += length;
            }
            Ok(_) => break Ok(used),
            Err(error) => break Err(retry(&error)),
        }
    };
    state.link = Some(link);
    result
}

fn take_frame(state: &mut State, link: &mut Link, frame: &[u8], outcomes: &mut Outcomes) -> Result<(), End> {
    match ingest::decode_server(frame).map_err(|error| retry(&error))? {
        ServerFrame::Acks(acks) => {
            for ack in acks {
                let ack = ack.map_err(|error| retry(&error))?;
                let (offset, epoch, duplicate) = (ack.offset, EpochText(ack.epoch), ack.duplicate);
                answer(state, link, ack.seq, Ok(Ack { offset, epoch, duplicate }), outcomes)?;
            }
        }
        ServerFrame::Nack { seq, refusal } => {
            answer(state, link, seq, Err(PublishError::Refused(refusal.into())), outcomes)?;
        }
        ServerFrame::Credit { messages, bytes } => link.credit(messages, bytes),
        ServerFrame::Ping { nonce } => link.pinged(nonce),
        ServerFrame::GoingAway(going) => {
            link.leave_at = Some(now() + Duration::from_millis(u64::from(going.deadline_ms)));
            link.hints = going.addresses.map(str::to_owned).collect();
        }
        ServerFrame::Fatal(refusal) if refusal.temporary => return Err(retry(&refusal.text)),
        ServerFrame::Fatal(refusal) => return Err(End::Final(refusal.into())),
        ServerFrame::HelloOk(_) => return Err(retry(&"a second answer to the hello")),
        ServerFrame::Event(event) => {
            ingest::decode_event(&event).map_err(|error| retry(&error))?;
            link.remote.events_open += 1;
            outcomes.events.push(Job { generation: link.generation, frame: frame.into() });
        }
        ServerFrame::CallAnswer(answer) => {
            let waiting = link.remote.answered(answer.call);
            let cell = waiting.ok_or_else(|| retry(&"an answer to a call that waits for none"))?;
            outcomes.calls.push((cell, frame.into()));
        }
        ServerFrame::Pong { .. } | ServerFrame::Unknown { .. } => {}
    }
    Ok(())
}

fn answer(
    state: &mut State,
    link: &mut Link,
    seq: u64,
    result: Result<Ack, PublishError>,
    outcomes: &mut Outcomes,
) -> Result<(), End> {
    let payload_len = state.buffer.payload_len(seq).filter(|_| link.was_sent(seq));
    let Some(payload_len) = payload_len else {
        return Err(retry(&format_args!("an answer for {seq}, which waits for none")));
    };
    link.answer(payload_len);
    state.complete(seq, result, outcomes);
    Ok(())
}

fn retry(error: &dyn std::fmt::Display) -> End {
    End::Retry(error.to_string().into())
}
