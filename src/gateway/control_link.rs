//! The control plane as a speaker on the lanes: its calls become lane messages, owners' answers come back to it.
//!
//! In: `Call`s over a bounded queue. Out: requests to owner cores, answers through each call's `reply`.
//! Invariants: an owner's queue that is full refuses the call (temporary error), it never waits; a call whose asker has
//! gone is forgotten with its answer; calls under way are bounded by `CALLS_IN_FLIGHT_MAX`.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use ringway_engine::ids::CoreId;
use ringway_engine::lane_message::{Batch, LaneMessage, Origin, PublishError, PublishRequest};
use ringway_engine::route;
use ringway_sys::Inbox;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use crate::control::{Call, Published};
use crate::shard_loop::Shared;

/// Calls sent to owners and not answered yet. Over: refused as busy.
const CALLS_IN_FLIGHT_MAX: usize = 65_536;

type Reply = oneshot::Sender<Result<Published, PublishError>>;

/// Serves calls until the other end of the queue is gone.
///
/// # Errors
/// The runtime cannot watch the inbox.
pub async fn serve(shared: Arc<Shared>, mut calls: mpsc::Receiver<Call>) -> io::Result<()> {
    let core = CoreId(shared.inboxes.len() as u16 - 1);
    let inbox = Arc::clone(&shared.inboxes[core.0 as usize]);
    #[expect(deprecated, reason = "its successor is unsafe to call; the inbox owns its descriptor as long as it lives")]
    let bell = AsyncFd::new(InboxFd(Arc::clone(&inbox)))?;
    let mut link = Link { shared, core, next_call: 0, in_flight: HashMap::new() };
    loop {
        inbox.awake();
        link.take_answers(&inbox);
        if !inbox.prepare_sleep() {
            // Answers keep coming: let other tasks of this thread run between two looks.
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            call = calls.recv() => match call {
                Some(call) => link.send(call),
                None => return Ok(()),
            },
            guard = bell.readable() => guard?.clear_ready(),
        }
    }
}

/// An inbox's wake-up descriptor, as the runtime wants it.
struct InboxFd(Arc<Inbox<Batch>>);

impl std::os::fd::AsRawFd for InboxFd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

struct Link {
    shared: Arc<Shared>,
    core: CoreId,
    next_call: u64,
    in_flight: HashMap<u64, Reply>,
}

impl Link {
    fn send(&mut self, call: Call) {
        let Call::Publish { channel, payload, kind, idempotency_key, reply } = call;
        if self.in_flight.len() >= CALLS_IN_FLIGHT_MAX {
            self.in_flight.retain(|_, reply| !reply.is_closed());
        }
        if self.in_flight.len() >= CALLS_IN_FLIGHT_MAX {
            // The asker may have gone; then nobody needs the refusal.
            let _ = reply.send(Err(PublishError::Busy));
            return;
        }
        let shards = self.core.0;
        let owner = route::owner(route::bucket(&channel), shards);
        let number = self.next_call;
        self.next_call += 1;
        let request = PublishRequest {
            channel: channel.into_boxed_str(),
            payload: payload.into_boxed_slice(),
            kind,
            idempotency_key: idempotency_key.into_boxed_slice(),
            publisher: None,
            skip_history: false,
            origin: Origin::Control { call: number },
            from: self.core,
        };
        let inbox = &self.shared.inboxes[owner.0 as usize];
        let batch = Batch { from: self.core, messages: vec![LaneMessage::Publish(Box::new(request))] };
        if inbox.push(batch).is_err() {
            let _ = reply.send(Err(PublishError::Busy));
            return;
        }
        self.in_flight.insert(number, reply);
        inbox.wake_if_asleep();
    }

    fn take_answers(&mut self, inbox: &Inbox<Batch>) {
        // Shards never drop answers, only publications, and none is sent here.
        inbox.take_lost().for_each(drop);
        while let Some(batch) = inbox.pop() {
            for message in batch.messages {
                let LaneMessage::PublishAnswer(answer) = message else { continue };
                let Origin::Control { call } = answer.origin else { continue };
                let Some(reply) = self.in_flight.remove(&call) else { continue };
                let published = answer.result.map(|position| Published { position, duplicate: answer.duplicate });
                let _ = reply.send(published);
            }
        }
    }
}
