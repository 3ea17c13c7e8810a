//! Other nodes of the fleet, for calls that are about all of them: `info` and `channels`.
//!
//! In: calls of the server API; what the backplane brings from other nodes ([`News`]). Out: requests to the backplane, questions
//! to other nodes and answers to theirs.
//!
//! ```text
//! each node     describes itself with the engine, every DESCRIBE_INTERVAL_MS, under its lease
//! info          one read of what living nodes say of themselves
//! channels      that read ─> a question to each node's inbox ─> each lists its own channels ─> parts to the asker's inbox
//!               asked over ingest, the question comes from a shard, and goes back to it whole or refused
//! ```
//! A node that does not answer within `limits.nodes_wait_ms`, cannot be reached, or has too much to do is named as missing.
//! Invariants: nothing is summed of a node that has not said all of it; questions and answers under way are bounded; a part that
//! was lost makes its node a missing one, never a smaller one.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ringway_engine::backplane::{Answer, Audience, Described, Refusal, Request, Subject, Tell};
use ringway_engine::call::CallError;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::call::{Call, CallSender, ChannelsListed};
use crate::backplane::metrics::{BackplaneMetrics, Number};

/// News that wait for the control plane. Over: dropped (counted), and whoever asked goes without.
pub const NEWS_MAX: usize = 4_096;
/// From one description of this node to the next.
const DESCRIBE_INTERVAL_MS: u64 = 3_000;
/// Questions of this node under way. Over: the call is refused as busy.
const QUESTIONS_MAX: usize = 64;
/// Parts of answers to one question that wait. Over: dropped, and their node is missing.
const PARTS_MAX: usize = 1_024;
/// Other nodes' questions that this one answers at once. Over: it says that it is busy.
const ANSWERS_MAX: usize = 16;
/// Bytes of channel names in one part.
const PART_BYTES: usize = 64 * 1024;

/// What the backplane brings for the control plane.
#[derive(Debug)]
pub enum News {
    /// This node's generation from here on.
    Registered(u32),
    /// Another node has said something.
    Told(Box<[u8]>),
    /// A backend asks for the channels of all nodes, over ingest.
    Asked {
        /// Only names that contain this; empty: all.
        pattern: String,
        /// At most so many names, the first ones.
        limit: u32,
        /// Who waits.
        reply: oneshot::Sender<Result<ListedByAll, CallError>>,
    },
}

/// What nodes say to each other: JSON, so that nodes of different versions understand what both know.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    /// Which channels of yours have subscribers?
    List {
        /// Generation of the node that asks.
        from: u32,
        /// Its number for the question.
        question: u64,
        /// Only names that contain this.
        pattern: String,
        /// At most so many names, the first ones.
        limit: u32,
    },
    /// Some of them.
    Listed(Part),
}

/// A part of one node's answer.
#[derive(Debug, Serialize, Deserialize)]
struct Part {
    /// Generation of the node that answers.
    from: u32,
    question: u64,
    /// Counts its parts, from 0.
    part: u32,
    is_last: bool,
    /// It has too much to do.
    is_busy: bool,
    /// Of the whole node; said with the last part.
    #[serde(default)]
    total: u64,
    channels: Vec<(Box<str>, u64)>,
}

/// Channels of all nodes.
#[derive(Debug, Default)]
pub struct ListedByAll {
    /// Name and number of subscribers, summed.
    pub channels: BTreeMap<Box<str>, u64>,
    /// Channels with subscribers, whether listed or not, on each node.
    pub total: u64,
    /// Names of nodes that are not in it.
    pub missing: Vec<String>,
    /// Who else there is could not be learned.
    pub engine_unreachable: bool,
}

/// This node's side of the fleet. See the file's header.
#[derive(Debug)]
pub(super) struct Fleet {
    calls: CallSender,
    metrics: Arc<BackplaneMetrics>,
    name: String,
    wait: Duration,
    /// 0: not registered yet.
    generation: AtomicU32,
    next_question: AtomicU64,
    questions: Mutex<HashMap<u64, mpsc::Sender<Part>>>,
    answers: Arc<Semaphore>,
}

/// A node's name, out of what it says of itself.
#[derive(Deserialize)]
struct Named {
    name: String,
}

/// What a node is called.
pub(super) fn name_of(node: &Described) -> String {
    let named = serde_json::from_slice::<Named>(&node.body).ok();
    named.map_or_else(|| format!("generation {}", node.generation), |named| named.name)
}

impl Fleet {
    /// For the node of this name; its questions wait for so long.
    pub(super) fn new(calls: CallSender, metrics: Arc<BackplaneMetrics>, name: String, wait_ms: u64) -> Arc<Fleet> {
        Arc::new(Fleet {
            calls,
            metrics,
            name,
            wait: Duration::from_millis(wait_ms),
            generation: AtomicU32::new(0),
            next_question: AtomicU64::new(0),
            questions: Mutex::default(),
            answers: Arc::new(Semaphore::new(ANSWERS_MAX)),
        })
    }

    /// Describes this node now and then, and hears what others say. Until nobody brings news any more.
    pub(super) async fn run(self: Arc<Self>, mut news: mpsc::Receiver<News>, describe: impl Fn() -> Vec<u8>) {
        let mut interval = tokio::time::interval(Duration::from_millis(DESCRIBE_INTERVAL_MS));
        loop {
            tokio::select! {
                _ = interval.tick() => self.describe(describe()),
                news = news.recv() => match news {
                    Some(News::Registered(generation)) => {
                        self.generation.store(generation, Ordering::Relaxed);
                        self.describe(describe());
                    }
                    Some(News::Told(body)) => self.told(&body),
                    Some(News::Asked { pattern, limit, reply }) => {
                        let fleet = Arc::clone(&self);
                        tokio::spawn(async move {
                            let listed = fleet.list_whole(pattern, limit).await;
                            // Nobody waits any more: the backend has gone.
                            let _ = reply.send(listed);
                        });
                    }
                    None => return std::future::pending().await,
                }
            }
        }
    }

    fn describe(&self, body: Vec<u8>) {
        // Refused: the next one is a few seconds away.
        if self.generation.load(Ordering::Relaxed) != 0 {
            drop(self.ask(Request::Describe { body: body.into() }));
        }
    }

    /// None: there is no room for it.
    fn ask(&self, request: Request) -> Option<oneshot::Receiver<Result<Answer, Refusal>>> {
        let (reply, answer) = oneshot::channel();
        self.calls.try_send(Call::Backplane { request, reply }).ok().map(|()| answer)
    }

    /// The answer, if it comes in time and is one.
    async fn answer(
        &self,
        asked: Option<oneshot::Receiver<Result<Answer, Refusal>>>,
        until: Instant,
    ) -> Option<Answer> {
        timeout_at(until, asked?).await.ok()?.ok()?.ok()
    }

    /// The other living nodes and what they say of themselves, each name once. None: the engine does not say.
    pub(super) async fn others(&self) -> Option<Vec<Described>> {
        self.others_until(Instant::now() + self.wait).await
    }

    async fn others_until(&self, until: Instant) -> Option<Vec<Described>> {
        let Some(Answer::Nodes(mut nodes)) = self.answer(self.ask(Request::Nodes), until).await else {
            self.metrics.add(Number::NodesUnknown, 1);
            return None;
        };
        // A node that had to register anew is there twice until its first lease ends.
        nodes.sort_unstable_by_key(|node| std::cmp::Reverse(node.generation));
        let own = self.generation.load(Ordering::Relaxed);
        let mut names = vec![self.name.clone()];
        nodes.retain(|node| {
            let name = name_of(node);
            let is_new = node.generation != own && !names.contains(&name);
            names.extend(is_new.then_some(name));
            is_new
        });
        Some(nodes)
    }

    /// The channels of all nodes whose names contain a text, with all their subscribers: those with the first names, `limit` of
    /// them or more.
    ///
    /// # Errors
    /// This node has too much to do.
    pub(super) async fn list(&self, pattern: String, limit: u32) -> Result<ListedByAll, CallError> {
        let until = Instant::now() + self.wait;
        let (reply, own) = oneshot::channel();
        let call = Call::Channels { pattern: pattern.clone(), limit, reply };
        self.calls.try_send(call).map_err(|_| CallError::Busy)?;
        let mut listed = ListedByAll::default();
        match self.others_until(until).await {
            Some(nodes) => self.list_others(nodes, (pattern, limit), until, &mut listed).await?,
            None => listed.engine_unreachable = true,
        }
        let ChannelsListed { channels, total } =
            timeout_at(until + self.wait, own).await.ok().and_then(Result::ok).ok_or(CallError::Busy)??;
        listed.total += total;
        for (channel, clients) in channels {
            *listed.channels.entry(channel).or_default() += clients;
        }
        self.metrics.add(Number::NodesMissing, listed.missing.len() as u64);
        Ok(listed)
    }

    /// The same for those who cannot be told which nodes are missing: all of them, or nothing.
    ///
    /// # Errors
    /// This node has too much to do, or some node did not answer.
    async fn list_whole(&self, pattern: String, limit: u32) -> Result<ListedByAll, CallError> {
        let listed = self.list(pattern, limit).await?;
        let is_whole = listed.missing.is_empty() && !listed.engine_unreachable;
        if is_whole { Ok(listed) } else { Err(CallError::Busy) }
    }

    async fn list_others(
        &self,
        nodes: Vec<Described>,
        (pattern, limit): (String, u32),
        until: Instant,
        listed: &mut ListedByAll,
    ) -> Result<(), CallError> {
        let question = self.next_question.fetch_add(1, Ordering::Relaxed);
        let (parts, mut received) = mpsc::channel(PARTS_MAX);
        let _open = self.open(question, parts)?;
        let from = self.generation.load(Ordering::Relaxed);
        let mut asked = Vec::new();
        for node in nodes {
            let word = Word::List { from, question, pattern: pattern.clone(), limit };
            asked.push((node.generation, name_of(&node), self.tell(node.generation, &word)));
        }
        let mut waiting = BTreeMap::new();
        for (generation, name, told) in asked {
            match self.answer(told, until).await {
                Some(Answer::Told(1..)) => {
                    drop(waiting.insert(generation, Hearing { name, parts: 0, heard: Vec::new() }))
                }
                // It has no inbox: its connection to the engine is cut, or it is gone and its lease not yet.
                _ => listed.missing.push(name),
            }
        }
        while !waiting.is_empty()
            && let Ok(Some(part)) = timeout_at(until, received.recv()).await
        {
            hear(part, &mut waiting, listed);
        }
        listed.missing.extend(waiting.into_values().map(|hearing| hearing.name));
        listed.missing.sort_unstable();
        Ok(())
    }

    /// # Errors
    /// Too many questions are under way.
    fn open(&self, question: u64, parts: mpsc::Sender<Part>) -> Result<Open<'_>, CallError> {
        let mut questions = self.questions.lock().unwrap_or_else(PoisonError::into_inner);
        if questions.len() >= QUESTIONS_MAX {
            self.metrics.add(Number::NodeQuestionsRefused, 1);
            return Err(CallError::Busy);
        }
        questions.insert(question, parts);
        Ok(Open { fleet: self, question })
    }

    fn tell(&self, to: u32, word: &Word) -> Option<oneshot::Receiver<Result<Answer, Refusal>>> {
        let body = serde_json::to_vec(word).ok()?.into();
        self.ask(Request::Tell(Tell { subject: Subject::Nodes, to: Audience::Node(to), body }))
    }

    fn told(self: &Arc<Self>, body: &[u8]) {
        match serde_json::from_slice(body) {
            Ok(Word::Listed(part)) => {
                let questions = self.questions.lock().unwrap_or_else(PoisonError::into_inner);
                let taken = questions.get(&part.question).is_some_and(|parts| parts.try_send(part).is_ok());
                self.metrics.add(Number::NodeAnswersDropped, u64::from(!taken));
            }
            Ok(Word::List { from, question, pattern, limit }) => self.answer_question(from, question, pattern, limit),
            Err(_) => self.metrics.add(Number::NodeAnswersDropped, 1),
        }
    }

    /// Another node asks: lists this one's channels, in the background.
    fn answer_question(self: &Arc<Self>, to: u32, question: u64, pattern: String, limit: u32) {
        let Ok(place) = Arc::clone(&self.answers).try_acquire_owned() else {
            return self.say_part(to, question, 0, Vec::new(), Ending::Busy);
        };
        let fleet = Arc::clone(self);
        tokio::spawn(async move {
            let _place = place;
            let (reply, own) = oneshot::channel();
            let until = Instant::now() + fleet.wait;
            let listed = match fleet.calls.try_send(Call::Channels { pattern, limit, reply }) {
                Ok(()) => timeout_at(until, own).await.ok().and_then(Result::ok).and_then(Result::ok),
                Err(_) => None,
            };
            let Some(ChannelsListed { channels, total }) = listed else {
                return fleet.say_part(to, question, 0, Vec::new(), Ending::Busy);
            };
            let (mut part, mut bytes, mut number) = (Vec::new(), 0, 0);
            for (channel, clients) in channels {
                bytes += channel.len();
                part.push((channel, clients));
                if bytes >= PART_BYTES {
                    fleet.say_part(to, question, number, std::mem::take(&mut part), Ending::More);
                    (bytes, number) = (0, number + 1);
                }
            }
            fleet.say_part(to, question, number, part, Ending::Last(total));
        });
    }

    /// A part that finds no room is lost, and this node is missing in the answer.
    fn say_part(&self, to: u32, question: u64, part: u32, channels: Vec<(Box<str>, u64)>, ending: Ending) {
        let from = self.generation.load(Ordering::Relaxed);
        let (is_last, is_busy) = (ending != Ending::More, ending == Ending::Busy);
        let total = if let Ending::Last(total) = ending { total } else { 0 };
        drop(self.tell(to, &Word::Listed(Part { from, question, part, is_last, is_busy, total, channels })));
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    More,
    Last(u64),
    Busy,
}

/// One node that has been asked.
struct Hearing {
    name: String,
    /// How many parts have come.
    parts: u32,
    heard: Vec<(Box<str>, u64)>,
}

/// Takes a part of a node's answer; with its last one it counts.
fn hear(part: Part, waiting: &mut BTreeMap<u32, Hearing>, listed: &mut ListedByAll) {
    let Some(hearing) = waiting.get_mut(&part.from) else { return };
    let is_whole = part.part == hearing.parts && !part.is_busy;
    hearing.parts += 1;
    hearing.heard.extend(part.channels);
    if is_whole && !part.is_last {
        return;
    }
    let Some(hearing) = waiting.remove(&part.from) else { return };
    if !is_whole {
        return listed.missing.push(hearing.name);
    }
    listed.total += part.total;
    for (channel, clients) in hearing.heard {
        *listed.channels.entry(channel).or_default() += clients;
    }
}

/// A question under way; forgotten when it is dropped.
struct Open<'a> {
    fleet: &'a Fleet,
    question: u64,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.fleet.questions.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.question);
    }
}

#[cfg(test)]
#[path = "fleet_tests.rs"]
mod tests;
