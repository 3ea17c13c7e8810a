//! The control plane as a speaker on the lanes: its calls become lane messages, shards' answers come back to it.
//!
//! In: `Call`s over a bounded queue. Out: requests to owner cores, answers through each call's `reply`.
//! Invariants: a shard's queue that is full refuses the call (temporary error), it never waits; what is asked of one
//! channel or user arrives in the order of the calls; a call whose asker has gone is forgotten with its answer; calls
//! under way are bounded by `CALLS_IN_FLIGHT_MAX` and `CALL_BYTES_IN_FLIGHT_MAX`.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ringway_engine::backplane::{self, Event, Fed, Feed, Refusal, Token};
use ringway_engine::call::{
    CallError, ChannelAnswer, ChannelCall, ChannelCount, ChannelFact, ChannelsAnswer, ChannelsCall, UserCall, UserOrder,
};
use ringway_engine::ids::CoreId;
use ringway_engine::lane_message::{Batch, LaneMessage, Origin, PublishError, PublishRequest};
use ringway_engine::namespace::Namespaces;
use ringway_engine::publication::tags_bytes;
use ringway_engine::route;
use ringway_sys::Inbox;
use ringway_wire::ingest::PayloadKind;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use crate::backplane::metrics::Number;
use crate::control::call::{Answer, Call, ChannelTold, ChannelsListed, Hooks, Published, RevokeError};
use crate::control::{ListedByAll, News};
use crate::shared::Shared;

/// Calls sent to shards and not answered yet. Over: refused as busy.
pub const CALLS_IN_FLIGHT_MAX: usize = 65_536;
/// Payload bytes of those. Over: refused as busy.
pub const CALL_BYTES_IN_FLIGHT_MAX: usize = 128 * 1024 * 1024;
/// Calls taken from the queue at once; those for one shard travel as one batch.
const CALLS_PER_TURN_MAX: usize = 1_024;
/// A shard whose queue is full gets an answer that it waits for so much later. There is one for each call of a backend at most.
const ANSWER_AGAIN: Duration = Duration::from_millis(10);

/// What the link needs beside the lanes.
pub struct LinkParts {
    /// Rules of channels, until a reload sends others to the control plane's inbox as it does to every shard's.
    pub namespaces: Arc<Namespaces>,
    /// Reload and revocation.
    pub hooks: Box<dyn Hooks>,
    /// Where what other nodes say goes; none: there is no backplane.
    pub news: Option<mpsc::Sender<News>>,
}

/// Serves calls until the other end of the queue is gone.
///
/// # Errors
/// The runtime cannot watch the inbox.
pub async fn serve(shared: Arc<Shared>, parts: LinkParts, mut calls: mpsc::Receiver<Call>) -> io::Result<()> {
    let core = shared.control();
    let inbox = Arc::clone(&shared.inboxes[core.0 as usize]);
    #[expect(deprecated, reason = "its successor is unsafe to call; the inbox owns its descriptor as long as it lives")]
    let bell = AsyncFd::new(InboxFd(Arc::clone(&inbox)))?;
    let mut link = Link::new(shared, core, parts);
    let mut taken = Vec::new();
    loop {
        inbox.awake();
        link.take_answers(&inbox);
        if !inbox.prepare_sleep() {
            // Answers keep coming: let other tasks of this thread run between two looks.
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            count = calls.recv_many(&mut taken, CALLS_PER_TURN_MAX) => {
                if count == 0 {
                    return Ok(());
                }
                for call in taken.drain(..) {
                    link.call(call);
                }
                link.flush();
            }
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
    namespaces: Arc<Namespaces>,
    hooks: Box<dyn Hooks>,
    news: Option<mpsc::Sender<News>>,
    next_call: u64,
    in_flight: HashMap<u64, InFlight>,
    bytes_in_flight: usize,
    /// Per shard, what this turn has to say to it.
    outgoing: Vec<Vec<LaneMessage>>,
}

/// A call that shards have and have not answered.
struct InFlight {
    bytes: usize,
    waiting: Waiting,
}

enum Waiting {
    Publish(Answer<Published, PublishError>),
    Channel {
        kind: PayloadKind,
        reply: Answer<ChannelTold, CallError>,
    },
    User(Answer<u16, CallError>),
    Channels {
        shards_left: u16,
        limit: u32,
        is_whole: bool,
        listed: ChannelsListed,
        reply: Answer<ChannelsListed, CallError>,
    },
    Backplane(Answer<backplane::Answer, Refusal>),
}

impl Waiting {
    fn is_abandoned(&self) -> bool {
        match self {
            Waiting::Publish(reply) => reply.is_closed(),
            Waiting::Channel { reply, .. } => reply.is_closed(),
            Waiting::User(reply) => reply.is_closed(),
            Waiting::Channels { reply, .. } => reply.is_closed(),
            Waiting::Backplane(reply) => reply.is_closed(),
        }
    }

    /// The asker may have gone; then nobody needs the refusal.
    fn refuse_busy(self) {
        let _ = match self {
            Waiting::Publish(reply) => reply.send(Err(PublishError::Busy)).is_ok(),
            Waiting::Channel { reply, .. } => reply.send(Err(CallError::Busy)).is_ok(),
            Waiting::User(reply) => reply.send(Err(CallError::Busy)).is_ok(),
            Waiting::Channels { reply, .. } => reply.send(Err(CallError::Busy)).is_ok(),
            Waiting::Backplane(reply) => reply.send(Err(Refusal::Unavailable)).is_ok(),
        };
    }
}

impl Link {
    fn new(shared: Arc<Shared>, core: CoreId, parts: LinkParts) -> Self {
        let LinkParts { namespaces, hooks, news } = parts;
        // One for each inbox, its own, which stays empty, and the backplane's included.
        let outgoing = shared.inboxes.iter().map(|_| Vec::new()).collect();
        let (in_flight, bytes_in_flight) = (HashMap::new(), 0);
        Link { shared, core, namespaces, hooks, news, next_call: 0, in_flight, bytes_in_flight, outgoing }
    }

    fn call(&mut self, call: Call) {
        match call {
            Call::Publish { channel, payload, kind, idempotency_key, tags, skip_history, reply } => {
                let bytes = payload.len() + channel.len() + idempotency_key.len() + tags_bytes(&tags);
                let Some((number, origin)) = self.admit(bytes, Waiting::Publish(reply)) else { return };
                let owner = self.owner(&channel);
                let request = PublishRequest {
                    channel: channel.into_boxed_str(),
                    payload: payload.into_boxed_slice(),
                    kind,
                    idempotency_key: idempotency_key.into_boxed_slice(),
                    tags,
                    skip_history,
                    publisher: None,
                    origin,
                    from: self.core,
                };
                self.say(owner, LaneMessage::Publish(Box::new(request)), number);
            }
            Call::Channel { channel, ask, reply } => {
                let kind = self.namespaces.resolve(&channel).map_or(PayloadKind::Json, |(_, rules)| rules.payload);
                let Some((number, origin)) = self.admit(channel.len(), Waiting::Channel { kind, reply }) else {
                    return;
                };
                let owner = self.owner(&channel);
                let call = ChannelCall { channel: channel.into_boxed_str(), ask, origin, from: self.core };
                self.say(owner, LaneMessage::ChannelCall(Box::new(call)), number);
            }
            Call::User { user, client, order, reply } => self.order(user, client, order, reply),
            Call::Channels { pattern, limit, reply } => self.list_channels(pattern.into(), limit, reply),
            Call::Backplane { request, reply } => {
                let Some((number, _)) = self.admit(request.memory_bytes(), Waiting::Backplane(reply)) else { return };
                let message = LaneMessage::ToBackplane { token: Token(number), request: Box::new(request) };
                self.say(self.shared.backplane(), message, number);
            }
            Call::RevokeToken { token_id, until_unix_s, reply } => {
                // Nobody waits any more: it has happened all the same.
                let _ = reply.send(self.revoke(&token_id, until_unix_s));
            }
            Call::Reload { reply } => {
                // What was asked before is sent before the new rules.
                self.flush();
                let _ = reply.send(self.hooks.reload());
            }
        }
    }

    fn order(&mut self, user: String, client: String, order: UserOrder, reply: Answer<u16, CallError>) {
        let channel = match &order {
            UserOrder::Subscribe { subscription, .. } => &subscription.channel,
            UserOrder::Unsubscribe { channel, .. } => channel,
            UserOrder::Disconnect { .. } | UserOrder::Refresh { .. } | UserOrder::Message { .. } => "",
        };
        // The user's owner knows no channels, and the cores it tells answer nobody.
        if !channel.is_empty() && self.namespaces.resolve(channel).is_none() {
            let _ = reply.send(Err(CallError::UnknownChannel));
            return;
        }
        let bytes = match &order {
            UserOrder::Subscribe { subscription, .. } => subscription.info.len() + subscription.data.len(),
            UserOrder::Message { data } => data.len(),
            _ => 0,
        };
        let Some((number, origin)) = self.admit(bytes + user.len(), Waiting::User(reply)) else { return };
        let owner = self.owner(&user);
        let call = UserCall { user: user.into(), client: client.into(), order, origin: Some(origin), from: self.core };
        self.say(owner, LaneMessage::UserCall(Box::new(call)), number);
    }

    fn list_channels(&mut self, pattern: Box<str>, limit: u32, reply: Answer<ChannelsListed, CallError>) {
        let (shards_left, listed) = (self.core.0, ChannelsListed::default());
        let waiting = Waiting::Channels { shards_left, limit, is_whole: true, listed, reply };
        let Some((number, origin)) = self.admit(pattern.len(), waiting) else { return };
        for shard in 0..self.core.0 {
            let call = ChannelsCall { pattern: pattern.clone(), limit, origin, from: self.core };
            self.say(CoreId(shard), LaneMessage::ChannelsCall(Box::new(call)), number);
        }
    }

    fn revoke(&mut self, token_id: &str, until_unix_s: Option<u64>) -> Result<(), RevokeError> {
        self.hooks.revoke_token(token_id, until_unix_s).map_err(RevokeError::Refused)?;
        // The table refuses newcomers from here on; each shard closes those who are there.
        self.flush();
        let mut all_told = true;
        for shard in 0..self.core.0 {
            all_told &= self.push(CoreId(shard), vec![LaneMessage::RevokeToken(token_id.into())]).is_ok();
        }
        if all_told { Ok(()) } else { Err(RevokeError::Busy) }
    }

    /// The owner of a channel, or of a user: both are routed by name.
    fn owner(&self, name: &str) -> CoreId {
        route::owner(route::bucket(name), self.core.0)
    }

    /// Gives a call its number; none when there are too many, and then it has been refused.
    fn admit(&mut self, bytes: usize, waiting: Waiting) -> Option<(u64, Origin)> {
        let full = |link: &Link| {
            link.in_flight.len() >= CALLS_IN_FLIGHT_MAX || link.bytes_in_flight + bytes > CALL_BYTES_IN_FLIGHT_MAX
        };
        if full(self) {
            self.in_flight.retain(|_, call| !call.waiting.is_abandoned());
            self.bytes_in_flight = self.in_flight.values().map(|call| call.bytes).sum();
        }
        if full(self) {
            waiting.refuse_busy();
            return None;
        }
        let number = self.next_call;
        self.next_call += 1;
        self.bytes_in_flight += bytes;
        self.in_flight.insert(number, InFlight { bytes, waiting });
        Some((number, Origin::Control { call: number }))
    }

    /// Queues a message of this turn; a full batch goes at once.
    fn say(&mut self, to: CoreId, message: LaneMessage, number: u64) {
        match self.outgoing.get_mut(to.0 as usize) {
            Some(messages) => {
                messages.push(message);
                if messages.len() >= CALLS_PER_TURN_MAX {
                    self.flush();
                }
            }
            // No such shard: no answer will come.
            None => drop(self.settle(number)),
        }
    }

    /// Hands this turn's messages to their shards. A shard whose queue is full refuses all of its own.
    fn flush(&mut self) {
        for shard in 0..self.outgoing.len() {
            let messages = std::mem::take(&mut self.outgoing[shard]);
            if messages.is_empty() {
                continue;
            }
            if let Err(refused) = self.push(CoreId(shard as u16), messages) {
                for number in refused.iter().filter_map(call_number) {
                    if let Some(waiting) = self.settle(number) {
                        waiting.refuse_busy();
                    }
                }
            }
        }
    }

    /// # Errors
    /// The shard's queue is full; the messages come back.
    fn push(&self, to: CoreId, messages: Vec<LaneMessage>) -> Result<(), Vec<LaneMessage>> {
        let inbox = &self.shared.inboxes[to.0 as usize];
        inbox.push(Batch { from: self.core, messages }).map_err(|batch| batch.messages)?;
        inbox.wake_if_asleep();
        Ok(())
    }

    /// Takes a call out of those under way.
    fn settle(&mut self, number: u64) -> Option<Waiting> {
        let call = self.in_flight.remove(&number)?;
        self.bytes_in_flight -= call.bytes;
        Some(call.waiting)
    }

    fn take_answers(&mut self, inbox: &Inbox<Batch>) {
        // Shards never drop answers, only publications, and none is sent here.
        inbox.take_lost().for_each(drop);
        while let Some(batch) = inbox.pop() {
            for message in batch.messages {
                self.answered(message);
            }
        }
    }

    fn answered(&mut self, message: LaneMessage) {
        match message {
            LaneMessage::PublishAnswer(answer) => {
                if let Some(Waiting::Publish(reply)) = self.settle_origin(answer.origin) {
                    let published = answer.result.map(|position| Published { position, duplicate: answer.duplicate });
                    let _ = reply.send(published);
                }
            }
            LaneMessage::ChannelAnswer(answer) => {
                let ChannelAnswer { origin, result } = *answer;
                if let Some(Waiting::Channel { kind, reply }) = self.settle_origin(origin) {
                    let _ = reply.send(result.map(|fact: ChannelFact| ChannelTold { fact, kind }));
                }
            }
            LaneMessage::UserAnswer(answer) => {
                if let Some(Waiting::User(reply)) = self.settle_origin(answer.origin) {
                    let _ = reply.send(answer.result);
                }
            }
            LaneMessage::ChannelsAnswer(answer) => self.channels_answered(*answer),
            LaneMessage::ChannelsCall(call) => self.list_for_a_backend(*call),
            LaneMessage::Rules(rules) => self.namespaces = rules,
            LaneMessage::Backplane(event) => self.backplane_said(*event),
            // Nothing else is said to the control plane; a sender's mistake harms nobody here.
            _ => {}
        }
    }

    /// A backend's question about the channels of all nodes, which a shard has passed on: its answer goes back there.
    fn list_for_a_backend(&self, question: ChannelsCall) {
        let ChannelsCall { pattern, limit, origin, from } = question;
        let (reply, listed) = oneshot::channel();
        // No room: the reply is dropped, and the call refused.
        let asked = News::Asked { pattern: pattern.into(), limit, reply };
        drop(self.news.as_ref().map(|to| to.try_send(asked)));
        let (shared, core) = (Arc::clone(&self.shared), self.core);
        tokio::spawn(async move {
            let listed = listed.await.unwrap_or(Err(CallError::Busy));
            let is_whole = listed.is_ok();
            let ListedByAll { channels, total, .. } = listed.unwrap_or_default();
            let counted =
                |(channel, clients)| ChannelCount { channel, clients: u32::try_from(clients).unwrap_or(u32::MAX) };
            let channels = channels.into_iter().take(limit as usize).map(counted).collect();
            let total = u32::try_from(total).unwrap_or(u32::MAX);
            let answer = ChannelsAnswer { origin, core, channels, total, is_whole };
            let mut batch = Batch { from: core, messages: vec![LaneMessage::ChannelsAnswer(answer.into())] };
            let Some(inbox) = shared.inboxes.get(from.0 as usize) else { return };
            while let Err(refused) = inbox.push(batch) {
                batch = refused;
                tokio::time::sleep(ANSWER_AGAIN).await;
            }
            inbox.wake_if_asleep();
        });
    }

    fn backplane_said(&mut self, event: Event) {
        let news = match event {
            Event::Answer(token, result) => {
                if let Some(Waiting::Backplane(reply)) = self.settle(token.0) {
                    let _ = reply.send(result);
                }
                return;
            }
            Event::Registered(node) => News::Registered(node.generation),
            Event::Feed(Feed { what: Fed::Told(body), .. }) => News::Told(body),
            _ => return,
        };
        // Too much waits, or nobody listens any more: whoever asked goes without.
        let lost = self.news.as_ref().is_none_or(|to| to.try_send(news).is_err());
        if let (true, Some(metrics)) = (lost, self.shared.metrics.backplane()) {
            metrics.add(Number::NodeAnswersDropped, 1);
        }
    }

    fn settle_origin(&mut self, origin: Origin) -> Option<Waiting> {
        match origin {
            Origin::Control { call } => self.settle(call),
            _ => None,
        }
    }

    /// One shard's part; the last one completes the answer.
    fn channels_answered(&mut self, answer: ChannelsAnswer) {
        let Origin::Control { call } = answer.origin else { return };
        let Some(InFlight { waiting: Waiting::Channels { shards_left, limit, is_whole, listed, .. }, .. }) =
            self.in_flight.get_mut(&call)
        else {
            return;
        };
        for ChannelCount { channel, clients } in answer.channels {
            *listed.channels.entry(channel).or_default() += u64::from(clients);
        }
        // The first names are right, the others may lack a shard's part.
        while listed.channels.len() > *limit as usize {
            listed.channels.pop_last();
        }
        listed.total += u64::from(answer.total);
        *is_whole &= answer.is_whole;
        *shards_left = shards_left.saturating_sub(1);
        if *shards_left == 0
            && let Some(Waiting::Channels { is_whole, listed, reply, .. }) = self.settle(call)
        {
            let _ = reply.send(if is_whole { Ok(listed) } else { Err(CallError::Busy) });
        }
    }
}

/// The call that a message belongs to.
fn call_number(message: &LaneMessage) -> Option<u64> {
    let origin = match message {
        LaneMessage::Publish(request) => request.origin,
        LaneMessage::ChannelCall(call) => call.origin,
        LaneMessage::UserCall(call) => call.origin?,
        LaneMessage::ChannelsCall(call) => call.origin,
        LaneMessage::ToBackplane { token, .. } => return Some(token.0),
        _ => return None,
    };
    match origin {
        Origin::Control { call } => Some(call),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
