//! The threads that verify signatures of public keys, which take too long for a shard.
//!
//! In: tokens from shards over one bounded queue. Out: `LaneMessage::TokenChecked` into the asking shard's inbox.
//! Invariants: a shard never waits (a full queue is its answer); an answer is never lost: while an inbox is full it
//! stays here and is offered again; a verdict is handed over under the gate of the revoked ids, so that a revocation
//! either is in it or comes behind it in the same inbox; a thread with too many answers waiting takes no more tokens.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use ringway_engine::ids::CoreId;
use ringway_engine::lane_message::{Batch, LaneMessage};
use ringway_engine::tokens::{TokenAsk, TokenChecked, TokenError, Verdict};
use ringway_sys::{Errno, Inbox, thread as sys_thread};

use super::checker::{Checker, Purpose};
use super::jwt::Compact;
use super::metrics::Number;
use crate::clock;

/// Answers that one thread holds back for full inboxes. Over: it takes no tokens until some are gone, so that the queue
/// fills and shards are told so.
const ANSWERS_WAITING_MAX: usize = 256;
/// How soon an answer is offered again to a shard whose inbox was full.
const ANSWER_RETRY_MS: u64 = 1;

/// A token that waits.
#[derive(Debug)]
pub(super) struct Job {
    /// As the client sent it; its header has been read once and is fine.
    pub(super) token: Box<str>,
    /// What for.
    pub(super) purpose: Purpose,
    /// Who asks.
    pub(super) ask: TokenAsk,
}

/// The way into the pool. When the last one is dropped the threads end.
#[derive(Clone, Debug)]
pub(super) struct Pool(Sender<Job>);

impl Pool {
    /// Starts the threads `auth-0`, `auth-1`, … They must be started by a thread with the process's common file table,
    /// because they wake shards and the control plane. `inboxes` are those of the shards and, last, the control plane's.
    ///
    /// # Errors
    /// No more threads are allowed.
    pub(super) fn start(
        threads: u32,
        queue_max: u32,
        checker: &Arc<Checker>,
        inboxes: &[Arc<Inbox<Batch>>],
    ) -> Result<Pool, Errno> {
        let (jobs, queue) = bounded(queue_max as usize);
        for number in 0..threads {
            let worker = Worker {
                queue: queue.clone(),
                checker: Arc::clone(checker),
                inboxes: inboxes.to_vec(),
                from: CoreId(inboxes.len().saturating_sub(1) as u16),
                waiting: Vec::new(),
                offered_ms: 0,
            };
            sys_thread::spawn_named(&format!("auth-{number}"), move || worker.run())?;
        }
        Ok(Pool(jobs))
    }

    /// Puts a token at the end, unless the queue is full. Never waits.
    pub(super) fn offer(&self, job: Job) -> Result<(), TokenError> {
        self.0.try_send(job).map_err(|_| TokenError::Busy)
    }
}

struct Worker {
    queue: Receiver<Job>,
    checker: Arc<Checker>,
    inboxes: Vec<Arc<Inbox<Batch>>>,
    from: CoreId,
    /// Answers whose inbox was full.
    waiting: Vec<TokenChecked>,
    /// When they were last offered again.
    offered_ms: u64,
}

impl Worker {
    fn run(mut self) {
        loop {
            let retry = Duration::from_millis(ANSWER_RETRY_MS);
            let job = if self.waiting.is_empty() {
                self.queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else if self.waiting.len() < ANSWERS_WAITING_MAX {
                self.queue.recv_timeout(retry)
            } else {
                std::thread::sleep(retry);
                Err(RecvTimeoutError::Timeout)
            };
            match job {
                Ok(job) => self.answer(&job),
                Err(RecvTimeoutError::Timeout) => {}
                // Nobody is left to ask or to hear.
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.offer_again();
        }
    }

    fn answer(&mut self, job: &Job) {
        let verdict = match Compact::parse(&job.token) {
            Ok(token) => self.checker.verdict(job.purpose, &token),
            Err(_) => match job.purpose {
                Purpose::Connect => Verdict::Connect(self.checker.refuse(job.purpose, TokenError::Invalid)),
                Purpose::Subscribe => Verdict::Subscribe(self.checker.refuse(job.purpose, TokenError::Invalid)),
            },
        };
        if let Some(held_back) = self.hand_over(TokenChecked { ask: job.ask, verdict }) {
            self.checker.metrics.add(Number::AnswersDelayed, 1);
            self.waiting.push(held_back);
        }
    }

    /// At most once per [`ANSWER_RETRY_MS`], also while tokens keep coming.
    fn offer_again(&mut self) {
        let now_ms = clock::now_ms();
        if self.waiting.is_empty() || now_ms.saturating_sub(self.offered_ms) < ANSWER_RETRY_MS {
            return;
        }
        self.offered_ms = now_ms;
        for checked in std::mem::take(&mut self.waiting) {
            if let Some(held_back) = self.hand_over(checked) {
                self.waiting.push(held_back);
            }
        }
    }

    /// Gives the verdict back when the inbox is full.
    fn hand_over(&self, mut checked: TokenChecked) -> Option<TokenChecked> {
        // A shard that does not exist asked for nothing.
        let inbox = self.inboxes.get(checked.ask.core.0 as usize)?;
        let gate = self.checker.revoked.gate();
        if let Verdict::Connect(result) = &mut checked.verdict
            && result.as_ref().is_ok_and(|claims| gate.contains(&claims.token_id, clock::unix_now_ms() / 1000))
        {
            *result = Err(TokenError::Invalid);
        }
        let messages = vec![LaneMessage::TokenChecked(Box::new(checked))];
        let full = inbox.push(Batch { from: self.from, messages });
        drop(gate);
        match full {
            Ok(()) => {
                inbox.wake_if_asleep();
                None
            }
            Err(batch) => batch.messages.into_iter().find_map(|message| match message {
                LaneMessage::TokenChecked(checked) => Some(*checked),
                _ => None,
            }),
        }
    }
}
