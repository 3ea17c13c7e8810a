//! The backplane's place on a node: between the lanes of its shards and its connection to the engine.
//!
//! In: batches of shards for the engine; what the engine answers and feeds; cuts. Out: events for shards, in the order that
//! `gateway/backplane` keeps: answers and feed each in their order and not in each other's; at the end of a connection first
//! `Broken`, then a refusal for everything under way; at its return `Restored`, behind `Registered` when the node is another one.
//! Claim: every request has one answer.

use std::collections::VecDeque;

use ringway_engine::backplane::{Answer, Buckets, Event, NodeId, Refusal, Request, Token};
use ringway_engine::ids::CoreId;
use ringway_engine::lane_message::{Batch, LaneMessage};
use ringway_engine::route;

use super::engine::{Caller, Engine, Inbox};
use super::truth::Truth;

/// See the file's header.
pub(crate) struct Hop {
    name: usize,
    boot: u64,
    shards: u16,
    /// As whom it was registered last.
    node: Option<NodeId>,
    /// Its connection, as it knows it.
    pub(crate) is_open: bool,
    /// The engine has ended the connection; it will notice.
    is_dead: bool,
    /// On their way to the engine.
    requests: VecDeque<Job>,
    /// On their way back.
    replies: VecDeque<(Job, Result<Answer, Refusal>)>,
    /// To each shard.
    out: Vec<VecDeque<Event>>,
    /// Said to have begun to drain: so long from each sign of life.
    draining_ms: u64,
}

/// A request under way.
struct Job {
    core: CoreId,
    token: Token,
    is_publish: bool,
    /// None: it has been carried out.
    request: Option<Request>,
}

/// A request that was on its way when its connection ended; the engine may still carry it out.
pub(crate) type Late = (Caller, Request);

/// How a cut treats what is on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    /// Requests that arrive all the same, and whose answers do not.
    pub(crate) carried_out: usize,
    /// Further ones that arrive late.
    pub(crate) late: usize,
    /// The engine does not notice.
    pub(crate) leaves_ghost: bool,
}

impl Hop {
    pub(crate) fn new(name: usize, boot: u64, shards: usize) -> Self {
        Hop {
            name,
            boot,
            shards: shards as u16,
            node: None,
            is_open: false,
            is_dead: false,
            requests: VecDeque::new(),
            replies: VecDeque::new(),
            out: (0..shards).map(|_| VecDeque::new()).collect(),
            draining_ms: 0,
        }
    }

    fn caller(&self) -> Option<Caller> {
        self.node.map(|node| Caller { generation: node.generation, boot: self.boot })
    }

    fn inbox<'a>(&self, engine: &'a mut Engine) -> Option<&'a mut Inbox> {
        engine.inboxes.get_mut(&self.node?.generation).filter(|_| self.is_open && !self.is_dead)
    }

    /// Opens the connection, and registers the node if it is not. False: its name is taken.
    pub(crate) fn open(&mut self, engine: &mut Engine, truth: &mut Truth) -> bool {
        if self.is_open {
            return true;
        }
        let living = self.node.is_some_and(|node| engine.renew(self.name, self.boot, node));
        if !living {
            truth.counts.note("registered again", u64::from(self.node.is_some()));
            // What was registered before is gone, and so is its inbox.
            if let Some(node) = self.node.take() {
                engine.inboxes.remove(&node.generation);
            }
            let Some(node) = engine.register(self.name, self.boot) else { return false };
            self.node = Some(node);
            self.say_to_all(&Event::Registered(node));
        }
        let Some(node) = self.node else { return false };
        engine.inboxes.insert(node.generation, Inbox::default());
        (self.is_open, self.is_dead) = (true, false);
        self.say_to_all(&Event::Restored(Box::new(Buckets::ALL)));
        true
    }

    /// The connection ends. What was on its way to the engine may come late.
    pub(crate) fn cut(&mut self, how: Cut, engine: &mut Engine, truth: &mut Truth) -> Vec<Late> {
        let mut late = Vec::new();
        if !self.is_open {
            return late;
        }
        truth.counts.note("cuts", 1);
        for _ in 0..how.carried_out {
            self.execute(engine, truth);
        }
        let caller = self.caller();
        if let Some(generation) = caller.map(|caller| caller.generation) {
            match engine.inboxes.get_mut(&generation).filter(|_| how.leaves_ghost) {
                Some(inbox) => {
                    inbox.queue.clear();
                    inbox.is_ghost = true;
                }
                None => drop(engine.inboxes.remove(&generation)),
            }
        }
        let was_dead = std::mem::take(&mut self.is_dead);
        self.is_open = false;
        self.say_to_all(&Event::Broken(Box::new(Buckets::ALL)));
        for (job, _) in std::mem::take(&mut self.replies) {
            self.fail(&job, true);
        }
        for (index, mut job) in std::mem::take(&mut self.requests).into_iter().enumerate() {
            let was_written = index < how.late;
            if let (true, Some(caller), Some(request)) = (was_written && !was_dead, caller, job.request.take()) {
                late.push((caller, request));
            }
            // Only of a publish that was never written it is said that it has not happened.
            self.fail(&job, was_written);
        }
        late
    }

    fn fail(&mut self, job: &Job, may_have_happened: bool) {
        let refusal = if job.is_publish && may_have_happened { Refusal::Unknown } else { Refusal::Unavailable };
        self.out[job.core.0 as usize].push_back(Event::Answer(job.token, Err(refusal)));
    }

    /// The engine is not the one that it was: the connection is of no more use, which shows later.
    pub(crate) const fn engine_went(&mut self) {
        self.is_dead = self.is_open;
    }

    /// Shows that it lives; cut when the lease has ended meanwhile. None: all is well.
    pub(crate) fn renew(&mut self, engine: &mut Engine, truth: &mut Truth) -> Option<Vec<Late>> {
        let node = self.node.filter(|_| self.is_open)?;
        if self.is_dead || !engine.renew(self.name, self.boot, node) {
            return Some(self.cut(Cut { carried_out: 0, late: usize::MAX, leaves_ghost: false }, engine, truth));
        }
        if self.draining_ms > 0 {
            engine.draining_until_ms = engine.draining_until_ms.max(engine.now_ms + self.draining_ms);
        }
        if engine.draining_until_ms > engine.now_ms {
            self.say_to_all(&Event::Draining { left_ms: engine.draining_until_ms - engine.now_ms });
        }
        None
    }

    /// The process is gone; what it had written may still arrive.
    pub(crate) fn kill(mut self, how: Cut, engine: &mut Engine, truth: &mut Truth) -> Vec<Late> {
        self.cut(how, engine, truth)
    }

    /// The process ends in order: what it has written is carried out, the lease is given back.
    pub(crate) fn stop(mut self, engine: &mut Engine, truth: &mut Truth) {
        if self.is_open && !self.is_dead {
            while self.execute(engine, truth) {}
            engine.release(self.name);
            if self.draining_ms > 0 {
                engine.draining_until_ms = engine.draining_until_ms.max(engine.now_ms + self.draining_ms);
            }
        }
        if let Some(node) = self.node.filter(|_| self.is_open) {
            engine.inboxes.remove(&node.generation);
        }
    }

    /// What a shard asks of the engine.
    pub(crate) fn take(&mut self, batch: Batch) {
        for message in batch.messages {
            let LaneMessage::ToBackplane { token, request } = message else { panic!("{message:?} for the backplane") };
            let is_publish = matches!(*request, Request::Publish(_));
            if let Request::Draining { ttl_ms } = *request {
                self.draining_ms = self.draining_ms.max(ttl_ms);
                self.out[batch.from.0 as usize].push_back(Event::Answer(token, Ok(Answer::Done)));
                continue;
            }
            let job = Job { core: batch.from, token, is_publish, request: Some(*request) };
            if self.is_open {
                self.requests.push_back(job);
            } else {
                self.fail(&job, false);
            }
        }
    }

    /// The engine carries out the next request. False: there is none.
    pub(crate) fn execute(&mut self, engine: &mut Engine, truth: &mut Truth) -> bool {
        let Some(caller) = self.caller().filter(|_| self.is_open && !self.is_dead) else { return false };
        let Some(mut job) = self.requests.pop_front() else { return false };
        let Some(request) = job.request.take() else { return false };
        let result = engine.execute(caller, request, truth);
        self.replies.push_back((job, result));
        true
    }

    /// The next answer arrives. False: there is none.
    pub(crate) fn hear_reply(&mut self) -> bool {
        if self.is_dead {
            return false;
        }
        let Some((job, result)) = self.replies.pop_front() else { return false };
        self.out[job.core.0 as usize].push_back(Event::Answer(job.token, result));
        true
    }

    /// The next thing that is fed arrives. False: there is none.
    pub(crate) fn hear_feed(&mut self, engine: &mut Engine) -> bool {
        let Some(event) = self.inbox(engine).and_then(|inbox| inbox.queue.pop_front()) else { return false };
        let Event::Feed(feed) = &event else { panic!("{event:?} in an inbox") };
        let owner = route::owner(feed.bucket, self.shards);
        self.out[owner.0 as usize].push_back(event);
        true
    }

    /// What is fed to a shard and waits is too much: it is dropped, and the shard told.
    pub(crate) fn drop_feed(&mut self, core: usize) -> usize {
        let queue = &mut self.out[core];
        let before = queue.len();
        queue.retain(|event| !matches!(event, Event::Feed(_)));
        let dropped = before - queue.len();
        if dropped > 0 && self.is_open && !matches!(queue.back(), Some(Event::Restored(_))) {
            queue.push_back(Event::Broken(Box::new(Buckets::ALL)));
            queue.push_back(Event::Restored(Box::new(Buckets::ALL)));
        }
        dropped
    }

    /// Up to so many events for a shard.
    pub(crate) fn batch_for(&mut self, core: usize, events_max: usize) -> Option<Batch> {
        let count = events_max.min(self.out[core].len());
        let messages: Vec<_> =
            self.out[core].drain(..count).map(|event| LaneMessage::Backplane(Box::new(event))).collect();
        (count > 0).then_some(Batch { from: CoreId(self.shards + 1), messages })
    }

    fn say_to_all(&mut self, event: &Event) {
        self.out.iter_mut().for_each(|queue| queue.push_back(event.clone()));
    }

    /// Whether something is on its way.
    pub(crate) fn is_busy(&self, engine: &Engine) -> bool {
        let inbox = self.node.and_then(|node| engine.inboxes.get(&node.generation));
        !self.requests.is_empty()
            || !self.replies.is_empty()
            || inbox.is_some_and(|inbox| !inbox.queue.is_empty())
            || self.out.iter().any(|queue| !queue.is_empty())
    }
}
