//! What travels on one connection beside publishes: clients' events and their answers, calls and theirs.
//!
//! In: replies of handlers, calls of the backend's threads, answers of the gateway. Out: finished frames that the
//! writer takes along, and results to those who wait.
//! Invariant: whatever was under way when the connection ends has no answer: calls get [`CallError::Lost`], events come
//! again from the gateway, to whoever is there then.

use std::collections::HashMap;
use std::sync::Arc;

use ringway_wire::ingest::{
    Call, CallBody, EventKinds, FEATURE_CALLS, FEATURE_EVENTS, TakeEvents, write_call, write_take_events,
};

use crate::calls::{CallCell, CallError};

/// Calls of one connection that wait for their answer. Over: [`CallError::Busy`].
const CALLS_IN_FLIGHT_MAX: usize = 256;

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Remote {
    features: u32,
    frame_bytes_max: usize,
    /// Frames to write, in order.
    pub(crate) out: Vec<u8>,
    /// Events that were taken and have no reply yet.
    pub(crate) events_open: usize,
    /// Events were asked for.
    taking: bool,
    calls: HashMap<u32, Arc<CallCell>>,
    next_call: u32,
}

impl Remote {
    pub(crate) fn new(features: u32, frame_bytes_max: usize) -> Self {
        Remote {
            features,
            frame_bytes_max,
            out: Vec::new(),
            events_open: 0,
            taking: false,
            calls: HashMap::new(),
            next_call: 0,
        }
    }

    pub(crate) fn frame_bytes_max(&self) -> usize {
        self.frame_bytes_max
    }

    /// Asks for events, if the gateway has them.
    pub(crate) fn take_events(&mut self, take: TakeEvents) {
        if self.features & FEATURE_EVENTS != 0 {
            self.taking = true;
            write_take_events(&mut self.out, take);
        }
    }

    /// Asks for no new events; those that are open stay.
    pub(crate) fn take_no_more(&mut self) {
        if std::mem::take(&mut self.taking) {
            write_take_events(&mut self.out, TakeEvents { kinds: EventKinds::default(), window: 0 });
        }
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.events_open == 0 && self.calls.is_empty() && self.out.is_empty()
    }

    /// Queues a call; the cell gets the answer.
    pub(crate) fn call(&mut self, what: CallBody<'_>) -> Result<Arc<CallCell>, CallError> {
        if self.features & FEATURE_CALLS == 0 {
            return Err(CallError::NotSupported);
        }
        if self.calls.len() >= CALLS_IN_FLIGHT_MAX {
            return Err(CallError::Busy);
        }
        while self.calls.contains_key(&self.next_call) {
            self.next_call = self.next_call.wrapping_add(1);
        }
        let call = self.next_call;
        self.next_call = call.wrapping_add(1);
        write_call(&mut self.out, &Call { call, what }, self.frame_bytes_max).map_err(|_| CallError::TooLarge)?;
        let cell = Arc::new(CallCell::default());
        self.calls.insert(call, Arc::clone(&cell));
        Ok(cell)
    }

    /// Who waits for the answer to a call.
    pub(crate) fn answered(&mut self, call: u32) -> Option<Arc<CallCell>> {
        self.calls.remove(&call)
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.calls.drain().for_each(|(_, cell)| cell.fill(Err(CallError::Lost)));
    }
}
