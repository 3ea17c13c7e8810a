//! What is under way on one primary's connection for commands.
//!
//! In: requests; replies, in the order of the commands. Out: answers. Invariants: commands of one channel are sent in the
//! order of their requests; a request gets one answer, also when the connection dies; a call that must be made again
//! (stale id, forgotten script) is made behind what cured it, on the same connection; without a replica at most one WAIT
//! per ROLE holds up what comes behind it.

use std::collections::VecDeque;
use std::mem;

use redis::{Value, cmd};
use ringway_engine::backplane::{Answer, Event, NodeId, Refusal, Request};
use ringway_engine::ids::Bucket;
use ringway_sys::thread::monotonic_ns;

use super::call::{self, Again, Outcome, Place};
use super::link::{Link, Reason, number, text};
use super::metrics::Number;
use super::opening;
use super::redis::{Common, Job};
use super::scripts::Script;

/// Commands sent and not answered, per connection. The others wait here, to be refused, not unknown, when it dies.
const COMMANDS_IN_FLIGHT_MAX: usize = 1_024;
/// Bytes of those, near enough.
const BYTES_IN_FLIGHT_MAX: usize = 4 * 1024 * 1024;

/// A command whose reply is to come.
enum Sent {
    Job {
        job: Job,
        at_ns: u64,
        bytes: usize,
    },
    /// WAIT: of the replicated publishes before it.
    Wait,
    /// ROLE.
    Role,
    /// INFO: the replication id again.
    Identity,
    /// SCRIPT LOAD.
    Loaded,
}

/// What a turn of the pipeline found out.
pub(super) enum Found {
    Nothing,
    /// The server is not the one for this bucket.
    Moved(Bucket),
}

#[derive(Default)]
pub(super) struct Pipeline {
    waiting: VecDeque<Job>,
    sent: VecDeque<Sent>,
    bytes: usize,
    /// Calls to be made again once the id has been read.
    stale: Vec<(Job, String)>,
    /// Calls to be made again once scripts are loaded.
    unloaded: Vec<Job>,
    /// Replies to SCRIPT LOAD that are to come.
    loads: usize,
    /// Replicated publishes that have happened and wait for WAIT.
    held: Vec<(Job, Answer)>,
    /// A replicated publish was sent, and a WAIT behind it is to be.
    wait: bool,
    /// A WAIT has no reply yet. Another would wait behind it, in vain if it does.
    waits: bool,
    /// The last ROLE named no replica, or the last WAIT was in vain: what wants a replica's copy is refused, not begun.
    without_replica: bool,
    replication_id: String,
    /// When the oldest command was found late, so many looks ago.
    late: u32,
}

impl Pipeline {
    /// For a connection that has read this id.
    pub(super) fn new(common: &Common, replication_id: String) -> Self {
        common.identified(Some(&replication_id), None);
        Pipeline { replication_id, ..Pipeline::default() }
    }

    pub(super) fn add(&mut self, job: Job) {
        self.waiting.push_back(job);
    }

    /// Sends what may be sent.
    pub(super) fn fill(&mut self, common: &Common, node: NodeId, link: &mut Link, out: &mut Vec<Event>) {
        while self.sent.len() < COMMANDS_IN_FLIGHT_MAX && self.bytes < BYTES_IN_FLIGHT_MAX {
            let Some(job) = self.waiting.pop_front() else { break };
            self.send(common, node, link, job, out);
        }
        self.end_run(common, link);
    }

    fn send(&mut self, common: &Common, node: NodeId, link: &mut Link, job: Job, out: &mut Vec<Event>) {
        if self.without_replica && is_replicated(&job.request) {
            common.metrics.add(Number::Unreplicated, 1);
            return common.answer(job, Err(Refusal::Unavailable), out);
        }
        let living = common.living();
        let place = Place {
            living: &living,
            keys: &common.keys,
            node,
            writer: common.writer(),
            replication_id: &self.replication_id,
            meta_ttl_ms: common.meta_ttl_ms(&job.request),
            bucket_publish_above: common.bucket_publish_above(),
        };
        let bytes = link.push(&call::command(&place, job.bucket, &job.request, job.again));
        self.bytes += bytes;
        self.wait |= is_replicated(&job.request);
        self.sent.push_back(Sent::Job { job, at_ns: monotonic_ns(), bytes });
    }

    /// One WAIT for all replicated publishes that went out together, or while the last one was out.
    fn end_run(&mut self, common: &Common, link: &mut Link) {
        if !self.waits && mem::take(&mut self.wait) {
            self.waits = true;
            let mut wait = cmd("WAIT");
            wait.arg(1).arg(common.config.replica_wait_ms);
            link.push(&wait);
            self.sent.push_back(Sent::Wait);
        }
    }

    /// Asks whether the server still is a primary.
    pub(super) fn ask_role(&mut self, link: &mut Link) {
        if !self.sent.iter().any(|sent| matches!(sent, Sent::Role)) {
            link.push(&cmd("ROLE"));
            self.sent.push_back(Sent::Role);
        }
    }

    /// Whether the server owes an answer for longer than this; true only when two looks in a row found so, because
    /// at the first one the answer may lie unread in our own socket.
    pub(super) fn is_dead(&mut self, timeout_ns: u64) -> bool {
        let oldest = self.sent.iter().find_map(|sent| match sent {
            Sent::Job { at_ns, .. } => Some(*at_ns),
            _ => None,
        });
        let is_late = oldest.is_some_and(|at_ns| monotonic_ns().saturating_sub(at_ns) > timeout_ns);
        self.late = if is_late { self.late + 1 } else { 0 };
        self.late > 1
    }

    /// Takes the reply to the oldest command.
    ///
    /// # Errors
    /// The connection is of no more use.
    pub(super) fn reply(
        &mut self,
        common: &Common,
        node: NodeId,
        link: &mut Link,
        value: Value,
        out: &mut Vec<Event>,
    ) -> Result<Found, Reason> {
        match self.sent.pop_front().ok_or("a reply to nothing")? {
            Sent::Job { job, at_ns, bytes } => {
                self.bytes -= bytes;
                common.metrics.add(Number::RoundTrips, 1);
                common.metrics.add(Number::RoundTripNanos, monotonic_ns().saturating_sub(at_ns));
                return self.answered(common, link, job, value, out);
            }
            Sent::Wait => {
                let has_replica = number(&value).is_some_and(|replicas| replicas > 0);
                self.waits = false;
                for (job, answer) in mem::take(&mut self.held) {
                    common.answer(job, if has_replica { Ok(answer) } else { Err(Refusal::Unknown) }, out);
                }
                if has_replica {
                    self.end_run(common, link);
                } else {
                    // What was sent since is not waited for either.
                    (self.without_replica, self.wait) = (true, false);
                }
            }
            Sent::Role => {
                let role = value.as_sequence().and_then(|parts| text(parts.first()?));
                if role != Some("master") {
                    return Err("the server is no primary any more".into());
                }
                // Those that are connected and in step; one that hangs shows in the next WAIT.
                let replicas = value.as_sequence().and_then(|parts| parts.get(2)?.as_sequence());
                self.without_replica = replicas.is_some_and(<[Value]>::is_empty);
            }
            Sent::Identity => {
                let (now, before) = opening::identities(text(&value).unwrap_or_default())?;
                common.identified(Some(&now), Some(&self.replication_id));
                self.replication_id = now;
                for (mut job, stored) in mem::take(&mut self.stale) {
                    // A slot that has moved comes whole from a primary that lives on. This server's own past does not.
                    let moved = stored != before && stored != self.replication_id && common.is_living(&stored);
                    job.again = if moved { Again::Adopted } else { Again::NewHistory };
                    self.send(common, node, link, job, out);
                }
                self.end_run(common, link);
            }
            Sent::Loaded => {
                self.loads -= 1;
                if matches!(value, Value::ServerError(_)) {
                    return Err("the server does not take scripts".into());
                }
                if self.loads == 0 {
                    for job in mem::take(&mut self.unloaded) {
                        self.send(common, node, link, job, out);
                    }
                    self.end_run(common, link);
                }
            }
        }
        Ok(Found::Nothing)
    }

    fn answered(
        &mut self,
        common: &Common,
        link: &mut Link,
        job: Job,
        value: Value,
        out: &mut Vec<Event>,
    ) -> Result<Found, Reason> {
        common.metrics.add(Number::PagesCut, u64::from(call::is_cut(&job.request, &value)));
        match call::outcome(&job.request, value) {
            Outcome::Done(Ok(_)) if is_replicated(&job.request) && !self.wait && !self.waits => {
                common.answer(job, Err(Refusal::Unknown), out);
            }
            Outcome::Done(Ok(answer)) if is_replicated(&job.request) => self.held.push((job, answer)),
            Outcome::Done(result) => common.answer(job, result, out),
            Outcome::Stale(stored) => {
                common.metrics.add(Number::Stale, 1);
                if self.stale.is_empty() {
                    link.push(cmd("INFO").arg("replication"));
                    self.sent.push_back(Sent::Identity);
                }
                self.stale.push((job, stored));
            }
            Outcome::NoScript => {
                if self.loads == 0 {
                    self.loads = load_scripts(link);
                    self.sent.extend((0..self.loads).map(|_| Sent::Loaded));
                }
                self.unloaded.push(job);
            }
            Outcome::Moved => {
                let bucket = job.bucket;
                common.answer(job, Err(Refusal::Unavailable), out);
                return Ok(Found::Moved(bucket));
            }
            Outcome::NotPrimary => {
                common.answer(job, Err(Refusal::Unavailable), out);
                return Err("the server is no primary".into());
            }
        }
        Ok(Found::Nothing)
    }

    /// Refuses what waits for buckets that are not open any more.
    pub(super) fn refuse_waiting(&mut self, common: &Common, is_open: impl Fn(Bucket) -> bool, out: &mut Vec<Event>) {
        for job in mem::take(&mut self.waiting) {
            if is_open(job.bucket) {
                self.waiting.push_back(job);
            } else {
                common.answer(job, Err(Refusal::Unavailable), out);
            }
        }
    }

    /// The connection is gone: answers everything.
    pub(super) fn fail(self, common: &Common, out: &mut Vec<Event>) {
        common.identified(None, Some(&self.replication_id));
        for (job, _) in self.held {
            common.answer(job, Err(Refusal::Unknown), out);
        }
        for sent in self.sent {
            if let Sent::Job { job, .. } = sent {
                let refusal = call::lost(&job.request);
                common.answer(job, Err(refusal), out);
            }
        }
        let stale = self.stale.into_iter().map(|(job, _)| job);
        for job in stale.chain(self.unloaded).chain(self.waiting) {
            common.answer(job, Err(Refusal::Unavailable), out);
        }
    }
}

const fn is_replicated(request: &Request) -> bool {
    matches!(request, Request::Publish(batch) if batch.replicated)
}

/// Returns how many replies will come.
pub(super) fn load_scripts(link: &mut Link) -> usize {
    for script in Script::ALL {
        link.push(cmd("SCRIPT").arg("LOAD").arg(script.text()));
    }
    Script::ALL.len()
}
