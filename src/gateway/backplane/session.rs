//! One primary: a connection for commands, one for the feed, and the buckets that are reached there.
//!
//! In: [`Order`]s of the manager and of the handle. Out: events; reports to the manager. Invariants: both connections live
//! and die together; a bucket is announced (`Restored`) when its inboxes are confirmed, and `Broken` comes before anything
//! that follows its loss; requests for a bucket that is not open are refused at once.

use std::sync::Arc;
use std::time::Duration;

use ringway_engine::backplane::{Buckets, Event, NodeId, Refusal};
use ringway_engine::ids::Bucket;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::config::Address;
use super::inboxes::Inboxes;
use super::link::Reason;
use super::metrics::Number;
use super::opening::{self, Opened};
use super::pipeline::{Found, Pipeline};
use super::redis::{Common, Job};
use super::topology;
use crate::log;

/// First pause behind a failure; doubled up to the last.
const BACK_OFF_FIRST_MS: u64 = 20;
const BACK_OFF_LAST_MS: u64 = 1_000;
/// How often a session looks whether its server owes an answer.
const LOOK_MS: u64 = 50;
/// Every so many looks the server is asked whether it still is a primary.
const LOOKS_PER_ROLE: u32 = 20;
/// Orders taken at once, before the connections are looked at again.
const ORDERS_PER_TURN_MAX: usize = 1_024;

/// What a session is told.
pub(super) enum Order {
    /// A request.
    Job(Job),
    /// These buckets are to be reached here.
    Take(Box<Buckets>),
    /// These are not any more. Behind the report nothing of them comes from here.
    Give(Box<Buckets>),
    /// From now on the node is this; none: it is not registered.
    Node(Option<NodeId>),
}

impl Order {
    /// The bucket of a request; of other orders any.
    pub(super) const fn bucket(&self) -> Bucket {
        match self {
            Order::Job(job) => job.bucket,
            _ => Bucket(0),
        }
    }
}

/// What a session tells the manager.
pub(super) enum Report {
    /// Has given up what it was told to give.
    Given,
    /// Has lost this one: the server is not its primary (any more).
    Lost(Bucket),
    /// Has lost its connections, or could not open them.
    Failed,
}

/// Where the primary is.
pub(super) enum Source {
    /// Look each time.
    Look,
    /// There, or nowhere.
    At(Address),
}

pub(super) struct Session {
    pub(super) common: Arc<Common>,
    pub(super) source: Source,
    pub(super) orders: mpsc::UnboundedReceiver<Order>,
    pub(super) reports: mpsc::UnboundedSender<Report>,
    pub(super) node: Option<NodeId>,
    pub(super) buckets: Box<Buckets>,
    pub(super) out: Vec<Event>,
}

/// Why a session stops serving.
enum End {
    /// The connections are of no more use.
    Failed(Reason),
    /// The node is another one.
    Node,
    /// Nobody gives orders any more.
    Over,
}

impl Session {
    /// Runs until nobody gives orders any more.
    pub(super) async fn run(mut self) {
        let mut back_off_ms = BACK_OFF_FIRST_MS;
        loop {
            let opened = match self.open().await {
                Ok(opened) => opened,
                Err(End::Over) => return,
                Err(End::Node) => continue,
                Err(End::Failed(reason)) => {
                    self.common.metrics.add(Number::ConnectsFailed, 1);
                    self.say_failure("cannot reach the engine", &reason, back_off_ms == BACK_OFF_FIRST_MS);
                    let _ = self.reports.send(Report::Failed);
                    if self.pause(back_off_ms).await.is_err() {
                        return;
                    }
                    back_off_ms = (back_off_ms * 2).min(BACK_OFF_LAST_MS);
                    continue;
                }
            };
            back_off_ms = BACK_OFF_FIRST_MS;
            self.common.metrics.add(Number::Connects, 1);
            match self.serve(opened).await {
                End::Over => return,
                End::Node => {}
                End::Failed(reason) => {
                    self.say_failure("lost the engine", &reason, true);
                    let _ = self.reports.send(Report::Failed);
                }
            }
        }
    }

    fn say_failure(&self, what: &str, reason: &str, loudly: bool) {
        let server = match &self.source {
            Source::Look => "the primary".to_string(),
            Source::At(address) => address.to_string(),
        };
        let say = if loudly { log::warn } else { log::debug };
        say("backplane", what, &[("server", &server), ("reason", &reason)]);
    }

    /// Opens the connections; meanwhile refuses requests. Waits while there is no node.
    async fn open(&mut self) -> Result<Opened, End> {
        let common = Arc::clone(&self.common);
        let at = match &self.source {
            Source::Look => None,
            Source::At(address) => Some(address.clone()),
        };
        let opening = async {
            let address = match at {
                Some(address) => address,
                None => {
                    let found = topology::look(&common.config, &[]).await?;
                    found.into_keys().next().ok_or("no primary")?
                }
            };
            opening::open(&common.config, &address).await
        };
        let mut opening = Box::pin(opening);
        loop {
            tokio::select! {
                result = &mut opening, if self.node.is_some() => return result.map_err(End::Failed),
                order = self.orders.recv() => {
                    if self.order_while_closed(order).await? {
                        return Err(End::Node);
                    }
                }
            }
        }
    }

    /// Waits; meanwhile refuses requests.
    async fn pause(&mut self, pause_ms: u64) -> Result<(), End> {
        let pause = tokio::time::sleep(Duration::from_millis(pause_ms));
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return Ok(()),
                order = self.orders.recv() => { self.order_while_closed(order).await?; }
            }
        }
    }

    /// True: the node is another one.
    async fn order_while_closed(&mut self, order: Option<Order>) -> Result<bool, End> {
        let mut node_changed = false;
        match order {
            None => return Err(End::Over),
            Some(Order::Job(job)) => {
                self.common.answer(job, Err(Refusal::Unavailable), &mut self.out);
                self.flush().await?;
            }
            Some(Order::Take(buckets)) => self.add(&buckets),
            Some(Order::Give(buckets)) => {
                self.drop_buckets(&buckets);
                let _ = self.reports.send(Report::Given);
            }
            Some(Order::Node(node)) => {
                self.node = node;
                node_changed = true;
            }
        }
        Ok(node_changed)
    }

    fn add(&mut self, buckets: &Buckets) {
        buckets.iter().for_each(|bucket| self.buckets.insert(bucket));
    }

    fn drop_buckets(&mut self, buckets: &Buckets) {
        buckets.iter().for_each(|bucket| self.buckets.remove(bucket));
    }

    /// Serves until the connections end or the node changes; then everything under way has been answered.
    async fn serve(&mut self, opened: Opened) -> End {
        let Some(node) = self.node else { return End::Node };
        let mut serving = Serving {
            node,
            pipeline: Pipeline::new(&self.common, opened.replication_id),
            commands: opened.commands,
            feed: opened.feed,
            inboxes: Inboxes::new(),
            looks: 0,
            looks_without_feed: 0,
        };
        let end = match serving.run(self).await {
            Ok(end) | Err(end) => end,
        };
        let open = serving.inboxes.give(&Buckets::ALL);
        self.common.broken(&open, &mut self.out);
        serving.pipeline.fail(&self.common, &mut self.out);
        match self.flush().await {
            Ok(()) => end,
            Err(over) => over,
        }
    }

    /// Hands events over. Waits when their receiver is behind: then nothing is read from the server either.
    async fn flush(&mut self) -> Result<(), End> {
        if self.out.is_empty() {
            return Ok(());
        }
        self.common.events.send(std::mem::take(&mut self.out)).await.map_err(|_| End::Over)
    }
}

/// A session whose connections are open.
struct Serving {
    node: NodeId,
    pipeline: Pipeline,
    commands: super::link::Link,
    feed: super::link::Link,
    inboxes: Inboxes,
    looks: u32,
    looks_without_feed: u32,
}

impl Serving {
    async fn run(&mut self, session: &mut Session) -> Result<End, End> {
        let mut look = interval(Duration::from_millis(LOOK_MS));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let buckets = session.buckets.clone();
        self.inboxes.take(&session.common, self.node.generation, &mut self.feed, &buckets);
        loop {
            self.pipeline.fill(&session.common, self.node, &mut self.commands, &mut session.out);
            self.commands.write_some().map_err(End::Failed)?;
            session.flush().await?;
            tokio::select! {
                result = self.commands.drive() => result.map_err(End::Failed)?,
                result = self.feed.drive() => {
                    self.looks_without_feed = 0;
                    result.map_err(End::Failed)?;
                }
                order = session.orders.recv() => {
                    if let Some(end) = self.orders(session, order) {
                        return Ok(end);
                    }
                }
                _ = look.tick() => self.look(session)?,
            }
            // The feed first: what a reply tells may rest on it.
            self.take_feed(session)?;
            self.take_replies(session)?;
            if let Some(opened) = self.inboxes.take_opened() {
                session.common.restored(opened, &mut session.out);
            }
        }
    }

    fn orders(&mut self, session: &mut Session, first: Option<Order>) -> Option<End> {
        let mut next = first;
        for turn in 1.. {
            match next {
                None => return Some(End::Over),
                Some(Order::Job(job)) if self.inboxes.is_open(job.bucket) => self.pipeline.add(job),
                Some(Order::Job(job)) => session.common.answer(job, Err(Refusal::Unavailable), &mut session.out),
                Some(Order::Take(buckets)) => {
                    session.add(&buckets);
                    self.inboxes.take(&session.common, self.node.generation, &mut self.feed, &buckets);
                }
                Some(Order::Give(buckets)) => {
                    session.drop_buckets(&buckets);
                    self.lose(session, &buckets);
                    let _ = session.reports.send(Report::Given);
                }
                Some(Order::Node(node)) => {
                    session.node = node;
                    return Some(End::Node);
                }
            }
            if turn == ORDERS_PER_TURN_MAX {
                break;
            }
            next = match session.orders.try_recv() {
                Ok(order) => Some(order),
                Err(mpsc::error::TryRecvError::Empty) => break,
                Err(mpsc::error::TryRecvError::Disconnected) => None,
            };
        }
        None
    }

    fn take_feed(&mut self, session: &mut Session) -> Result<(), End> {
        while let Some(value) = self.feed.next().map_err(End::Failed)? {
            let lost = self.inboxes.take_value(&session.common, value, &mut session.out).map_err(End::Failed)?;
            if let Some(bucket) = lost {
                self.lost(session, bucket)?;
            }
        }
        Ok(())
    }

    fn take_replies(&mut self, session: &mut Session) -> Result<(), End> {
        while let Some(value) = self.commands.next().map_err(End::Failed)? {
            let found = self
                .pipeline
                .reply(&session.common, self.node, &mut self.commands, value, &mut session.out)
                .map_err(End::Failed)?;
            if let Found::Moved(bucket) = found {
                self.lost(session, bucket)?;
            }
        }
        Ok(())
    }

    /// # Errors
    /// A server that is alone cannot lose a bucket.
    fn lost(&mut self, session: &mut Session, bucket: Bucket) -> Result<(), End> {
        if matches!(session.source, Source::Look) {
            let text = "the server is one of a cluster (MOVED): set backplane.mode to cluster";
            return Err(End::Failed(text.into()));
        }
        if !session.buckets.contains(bucket) {
            // Said already: several requests were on their way.
            return Ok(());
        }
        let mut buckets = Buckets::NONE;
        buckets.insert(bucket);
        session.drop_buckets(&buckets);
        self.lose(session, &buckets);
        let _ = session.reports.send(Report::Lost(bucket));
        Ok(())
    }

    /// Announces the loss of buckets that were open, and refuses what waits for them.
    fn lose(&mut self, session: &mut Session, buckets: &Buckets) {
        let lost = self.inboxes.give(buckets);
        session.common.broken(&lost, &mut session.out);
        let open = self.inboxes.open();
        self.pipeline.refuse_waiting(&session.common, |bucket| open.contains(bucket), &mut session.out);
    }

    fn look(&mut self, session: &mut Session) -> Result<(), End> {
        self.looks += 1;
        self.looks_without_feed += 1;
        if self.looks.is_multiple_of(LOOKS_PER_ROLE) {
            self.pipeline.ask_role(&mut self.commands);
            self.inboxes.ping(&mut self.feed);
            self.feed.write_some().map_err(End::Failed)?;
        }
        let timeout_ms = session.common.config.timeout_ms;
        let silent_ms = u64::from(self.looks_without_feed) * LOOK_MS;
        if silent_ms > timeout_ms + u64::from(LOOKS_PER_ROLE) * LOOK_MS {
            return Err(End::Failed("no answer in time on the connection for the feed".into()));
        }
        if self.pipeline.is_dead((timeout_ms + session.common.config.replica_wait_ms) * 1_000_000) {
            return Err(End::Failed("no answer in time".into()));
        }
        Ok(())
    }
}
