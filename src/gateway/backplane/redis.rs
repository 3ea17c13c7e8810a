//! The backplane on Redis or Valkey: the handle that owners' requests go through, and the manager behind it.
//!
//! In: requests by [`Backplane::submit`]. Out: events by [`Backplane::poll`]. Invariants: every request gets one answer;
//! what waits for an answer is bounded in number and bytes, and over the bound refused at once; a bucket belongs to one
//! session at a time, and the next one gets it only when the last has said that nothing more comes from it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use ringway_engine::backplane::{Answer, Backplane, Buckets, Event, NodeId, Refusal, Request, Token};
use ringway_engine::ids::Bucket;
use ringway_engine::limits::BUCKETS;
use ringway_engine::route;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::call::Again;
use super::config::{Address, BackplaneConfig, Mode};
use super::keys::{Keys, REGISTRY};
use super::link::Reason;
use super::metrics::{BackplaneMetrics, Number};
use super::opening::TOO_OLD;
use super::registry::{Acquired, Living, Registry};
use super::session::{Order, Report, Session, Source};
use super::topology::{self, Topology};
use crate::log;

/// Batches of events between the sessions and whoever polls. Full: sessions read no more from the engine.
const EVENT_BATCHES_MAX: usize = 256;
/// Batches taken in one poll.
const BATCHES_PER_POLL_MAX: usize = 64;
/// Interested nodes beyond this share of the living ones are reached over the bucket's channel.
const BUCKET_PUBLISH_SHARE: usize = 3;
/// But never for so few.
const BUCKET_PUBLISH_MIN: usize = 2;
/// From one look at a cluster's map to the next while all is well.
const MAP_CHECK_MS: u64 = 5_000;
/// And while something is not.
const MAP_RETRY_MS: u64 = 100;
/// From one try to be registered to the next.
const REGISTER_RETRY_MS: u64 = 200;
/// What a record of history outlives at most without the hash that numbers it; see `channel_meta_ttl_ms`.
const META_BEHIND_HISTORY_MS: u64 = 60_000;

/// A request on its way.
pub(super) struct Job {
    pub(super) token: Token,
    pub(super) bucket: Bucket,
    pub(super) request: Request,
    pub(super) bytes: usize,
    pub(super) again: Again,
}

/// What all tasks of one backplane share.
pub(super) struct Common {
    pub(super) config: BackplaneConfig,
    pub(super) keys: Keys,
    pub(super) metrics: Arc<BackplaneMetrics>,
    pub(super) events: mpsc::Sender<Vec<Event>>,
    requests: AtomicUsize,
    bytes: AtomicUsize,
    living: RwLock<Arc<Living>>,
    /// This node drains: others are told for so long, at each renewal of its lease; 0: it does not.
    draining_ms: AtomicU64,
    /// There is something to say to the registry at once.
    renew: Notify,
    /// Names this process's batches: a batch whose outcome is unknown keeps its name when the node becomes another one.
    writer: OnceLock<u32>,
    /// Replication ids of the primaries that this node is connected with.
    identities: RwLock<Vec<String>>,
    routes: RwLock<Vec<Option<mpsc::UnboundedSender<Order>>>>,
}

impl Common {
    /// Answers a request, once.
    pub(super) fn answer(&self, job: Job, result: Result<Answer, Refusal>, out: &mut Vec<Event>) {
        if let Err(refusal) = &result {
            self.metrics.refused(*refusal);
        }
        let requests = self.requests.fetch_sub(1, Ordering::Relaxed) - 1;
        let bytes = self.bytes.fetch_sub(job.bytes, Ordering::Relaxed) - job.bytes;
        self.metrics.set(Number::InFlight, requests as u64);
        self.metrics.set(Number::InFlightBytes, bytes as u64);
        out.push(Event::Answer(job.token, result));
    }

    /// Announces the loss of buckets, if there are any.
    pub(super) fn broken(&self, buckets: &Buckets, out: &mut Vec<Event>) {
        if buckets.is_empty() {
            return;
        }
        self.metrics.add(Number::Brokens, 1);
        self.metrics.sub(Number::BucketsOpen, buckets.iter().count() as u64);
        out.push(Event::Broken(Box::new(buckets.clone())));
    }

    /// Announces buckets.
    pub(super) fn restored(&self, buckets: Box<Buckets>, out: &mut Vec<Event>) {
        self.metrics.add(Number::BucketsOpen, buckets.iter().count() as u64);
        out.push(Event::Restored(buckets));
    }

    pub(super) fn bucket_publish_above(&self) -> usize {
        (self.living().count / BUCKET_PUBLISH_SHARE).max(BUCKET_PUBLISH_MIN)
    }

    /// A hash outlives the history that it numbers.
    pub(super) fn meta_ttl_ms(&self, request: &Request) -> u64 {
        let history_ms = match request {
            Request::Publish(batch) => batch.keep.ttl_ms.saturating_add(META_BEHIND_HISTORY_MS),
            _ => 0,
        };
        self.config.channel_meta_ttl_ms.max(history_ms)
    }

    /// See the field.
    pub(super) fn writer(&self) -> u32 {
        self.writer.get().copied().unwrap_or_default()
    }

    /// A session's primary has this replication id now, instead of that.
    pub(super) fn identified(&self, now: Option<&str>, before: Option<&str>) {
        let mut identities = self.identities.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = before.and_then(|before| identities.iter().position(|id| id == before)) {
            identities.swap_remove(place);
        }
        identities.extend(now.map(String::from));
    }

    /// Whether a primary that this node is connected with has this replication id.
    pub(super) fn is_living(&self, identity: &str) -> bool {
        self.identities.read().unwrap_or_else(PoisonError::into_inner).iter().any(|id| id == identity)
    }

    /// Which nodes were alive when this one's lease was last renewed.
    pub(super) fn living(&self) -> Arc<Living> {
        Arc::clone(&self.living.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set_living(&self, living: Living) {
        self.metrics.set(Number::LivingNodes, living.count as u64);
        *self.living.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(living);
    }

    fn route(&self, bucket: Bucket) -> Option<mpsc::UnboundedSender<Order>> {
        self.routes.read().unwrap_or_else(PoisonError::into_inner)[bucket.0 as usize].clone()
    }

    fn set_routes(&self, buckets: &Buckets, to: Option<&mpsc::UnboundedSender<Order>>) {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        for bucket in buckets.iter() {
            routes[bucket.0 as usize] = to.cloned();
        }
    }
}

/// The first word about whether this node may run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registered {
    /// It is registered.
    Yes(NodeId),
    /// The engine cannot be reached yet; it is tried again for ever.
    NotYet(String),
    /// Another living node has its name; it is tried again for ever.
    NameTaken(String),
    /// It may not, and that will not change by itself.
    Refused(String),
}

/// The handle. See the file's header.
pub struct Redis {
    common: Arc<Common>,
    events: mpsc::Receiver<Vec<Event>>,
    /// Answers to what no session has seen: refusals at a bound, what the registry does.
    answered_here: VecDeque<Event>,
    /// Wakes whoever polled before such an answer.
    waker: Option<std::task::Waker>,
    stop: Option<oneshot::Sender<()>>,
    manager: tokio::task::JoinHandle<()>,
}

impl Redis {
    /// Starts its tasks on a runtime. `boot` is random per start of the process. The receiver gets the first word, and
    /// behind [`Registered::NotYet`] those that follow.
    pub fn start(
        config: BackplaneConfig,
        boot: u64,
        metrics: Arc<BackplaneMetrics>,
        runtime: &tokio::runtime::Handle,
    ) -> (Redis, mpsc::UnboundedReceiver<Registered>) {
        let (events, received) = mpsc::channel(EVENT_BATCHES_MAX);
        let common = Arc::new(Common {
            keys: Keys::new(&config.prefix),
            config,
            metrics,
            events,
            requests: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            living: RwLock::default(),
            draining_ms: AtomicU64::new(0),
            renew: Notify::new(),
            writer: OnceLock::new(),
            identities: RwLock::default(),
            routes: RwLock::new((0..BUCKETS).map(|_| None).collect()),
        });
        let (stop, stopped) = oneshot::channel();
        let (word, words) = mpsc::unbounded_channel();
        let manager = Manager::new(Arc::clone(&common), boot, word);
        let manager = runtime.spawn(manager.run(stopped));
        (
            Redis { common, events: received, answered_here: VecDeque::new(), waker: None, stop: Some(stop), manager },
            words,
        )
    }

    /// Gives the lease back, so that the name is free at once, and ends the tasks.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        // Sessions may wait for somebody to take their events.
        self.events.close();
        // A server that does not answer must not hold up the end.
        let _ = timeout(self.common.config.timeout(), self.manager).await;
    }
}

impl Backplane for Redis {
    fn submit(&mut self, token: Token, request: Request) {
        let common = &self.common;
        common.metrics.add(Number::Requests, 1);
        let bytes = request.memory_bytes();
        let bucket = match request {
            Request::Describe { .. } | Request::Nodes => REGISTRY,
            _ => route::bucket(request.subject_name()),
        };
        let job = Job { token, bucket, request, bytes, again: Again::No };
        let requests = common.requests.fetch_add(1, Ordering::Relaxed);
        let all_bytes = common.bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Request::Draining { ttl_ms } = job.request {
            common.draining_ms.fetch_max(ttl_ms, Ordering::Relaxed);
            common.renew.notify_one();
            return self.answer_here(job, Ok(Answer::Done));
        }
        let is_over =
            requests >= common.config.requests_in_flight_max || all_bytes + bytes > common.config.bytes_in_flight_max;
        let order = Order::Job(job);
        let refused = match common.route(order.bucket()) {
            Some(session) if !is_over => session.send(order).err().map(|error| error.0),
            _ => Some(order),
        };
        if let Some(Order::Job(job)) = refused {
            self.answer_here(job, Err(Refusal::Unavailable));
        }
    }

    fn poll(&mut self, context: &mut Context<'_>, out: &mut Vec<Event>) -> Poll<()> {
        let before = out.len();
        out.extend(self.answered_here.drain(..));
        for _ in 0..BATCHES_PER_POLL_MAX {
            match self.events.poll_recv(context) {
                Poll::Ready(Some(batch)) => out.extend(batch),
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        if out.len() > before {
            return Poll::Ready(());
        }
        self.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Redis {
    /// Answers what no session has seen.
    fn answer_here(&mut self, job: Job, result: Result<Answer, Refusal>) {
        let mut out = Vec::new();
        self.common.answer(job, result, &mut out);
        self.answered_here.extend(out);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// A session as the manager sees it.
struct Held {
    orders: mpsc::UnboundedSender<Order>,
    reports: mpsc::UnboundedReceiver<Report>,
    buckets: Box<Buckets>,
}

/// Keeps this node registered, and a session wherever a primary is.
struct Manager {
    common: Arc<Common>,
    boot: u64,
    words: mpsc::UnboundedSender<Registered>,
    registry: Option<Registry>,
    node: Option<NodeId>,
    sessions: BTreeMap<Address, Held>,
    /// When the lease is renewed, or registering tried again.
    register_at: Instant,
    /// When the map is looked at again. Single servers and sentinels have none: their one session looks by itself.
    look_at: Instant,
    complained: bool,
    last_place: u16,
}

impl Manager {
    fn new(common: Arc<Common>, boot: u64, words: mpsc::UnboundedSender<Registered>) -> Self {
        let now = Instant::now();
        Manager {
            common,
            boot,
            words,
            registry: None,
            node: None,
            sessions: BTreeMap::new(),
            register_at: now,
            look_at: now,
            complained: false,
            last_place: 0,
        }
    }

    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        let common = Arc::clone(&self.common);
        loop {
            let next = self.register_at.min(self.look_at);
            tokio::select! {
                _ = &mut stopped => break,
                () = sleep_until(next) => {}
                () = common.renew.notified() => self.register_at = Instant::now(),
                (address, report) = reported(&mut self.sessions) => self.note(&address, &report),
            }
            let now = Instant::now();
            if self.register_at <= now {
                self.register().await;
            }
            if self.look_at <= now {
                self.look().await;
            }
        }
        // Sessions end when nobody can give them orders any more.
        self.common.set_routes(&Buckets::ALL, None);
        self.sessions.clear();
        if let (Some(registry), Some(node)) = (&mut self.registry, self.node) {
            registry.release(node, common.draining_ms.load(Ordering::Relaxed)).await;
        }
    }

    /// A session has found that the map is not what it was.
    fn note(&mut self, address: &Address, report: &Report) {
        self.look_at = self.look_at.min(Self::after(MAP_RETRY_MS));
        if let (Report::Lost(bucket), Some(held)) = (report, self.sessions.get_mut(address))
            && held.buckets.contains(*bucket)
        {
            held.buckets.remove(*bucket);
            let mut lost = Buckets::NONE;
            lost.insert(*bucket);
            self.common.set_routes(&lost, None);
        }
    }

    fn is_cluster(&self) -> bool {
        self.common.config.mode == Mode::Cluster
    }

    fn after(pause_ms: u64) -> Instant {
        Instant::now() + Duration::from_millis(pause_ms)
    }

    /// Renews the lease, or takes one.
    async fn register(&mut self) {
        self.register_at = Self::after(self.common.config.lease_ms / 3);
        let result = match self.node {
            Some(node) => self.renew(node).await,
            None => self.acquire().await,
        };
        if let Err(reason) = result {
            self.registry = None;
            self.register_at = Self::after(REGISTER_RETRY_MS);
            self.say(if reason.contains(TOO_OLD) || is_login(&reason) {
                Registered::Refused(reason)
            } else {
                Registered::NotYet(reason)
            });
        }
    }

    async fn open_registry(&mut self) -> Result<&mut Registry, Reason> {
        if self.registry.is_none() {
            let topology = self.find().await?;
            let opened = Registry::open(&self.common.config, &self.common.keys, &topology, self.boot).await?;
            self.registry = Some(opened);
        }
        self.registry.as_mut().ok_or_else(|| "no registry".into())
    }

    async fn find(&self) -> Result<Topology, Reason> {
        let known: Vec<Address> = if self.is_cluster() { self.sessions.keys().cloned().collect() } else { Vec::new() };
        topology::look(&self.common.config, &known).await
    }

    async fn renew(&mut self, node: NodeId) -> Result<(), Reason> {
        let draining_ms = self.common.draining_ms.load(Ordering::Relaxed);
        let registry = self.open_registry().await?;
        registry.check_role().await?;
        match registry.renew(node, draining_ms).await? {
            Some((living, left_ms)) => {
                self.complained = false;
                self.common.set_living(living);
                self.tell_draining(left_ms).await;
            }
            None => {
                log::warn("backplane", "this node's lease was lost; it is registered again", &[]);
                self.tell_node(None);
                self.register_at = Instant::now();
            }
        }
        Ok(())
    }

    async fn acquire(&mut self) -> Result<(), Reason> {
        let place = self.last_place;
        match self.open_registry().await?.acquire(place).await? {
            Acquired::Yes { node, living, draining_left_ms } => {
                self.common.metrics.add(Number::Registrations, 1);
                self.common.set_living(living);
                self.last_place = node.place;
                // Of all registrations of this process the first one names its batches.
                let _ = self.common.writer.set(node.generation);
                // Before anything that is announced under this name. Nobody takes it any more: the process ends.
                let _ = self.common.events.send(vec![Event::Registered(node)]).await;
                self.tell_draining(draining_left_ms).await;
                self.tell_node(Some(node));
                self.say(Registered::Yes(node));
                self.complained = false;
                self.look_at = Instant::now();
            }
            Acquired::NameTaken { left_ms } => {
                self.register_at = Self::after(left_ms.min(REGISTER_RETRY_MS));
                let name = &self.common.config.node_name;
                self.say(Registered::NameTaken(format!(
                    "another living node has the name {name}; give each node its own node.name, or stop the other one"
                )));
            }
        }
        Ok(())
    }

    /// Shards hear of it for as long as something may be parked.
    async fn tell_draining(&self, left_ms: u64) {
        if left_ms > 0 {
            // Nobody takes it any more: the process ends.
            let _ = self.common.events.send(vec![Event::Draining { left_ms }]).await;
        }
    }

    fn say(&mut self, word: Registered) {
        if let Registered::NotYet(reason) | Registered::NameTaken(reason) | Registered::Refused(reason) = &word
            && !std::mem::replace(&mut self.complained, true)
        {
            let what = match self.node {
                Some(_) => "this node's lease could not be renewed; it is tried again",
                None => "this node is not registered",
            };
            log::warn("backplane", what, &[("reason", reason)]);
        }
        // Boot listens to the first words only.
        let _ = self.words.send(word);
    }

    fn tell_node(&mut self, node: Option<NodeId>) {
        self.node = node;
        for held in self.sessions.values() {
            let _ = held.orders.send(Order::Node(node));
        }
    }

    /// Brings the sessions where the primaries are.
    async fn look(&mut self) {
        self.look_at = Self::after(if self.is_cluster() { MAP_CHECK_MS } else { u64::from(u32::MAX) });
        if !self.is_cluster() {
            if self.sessions.is_empty() {
                // It finds the primary by itself, whenever it has none.
                let anywhere = Address { host: String::new(), port: 0 };
                self.start(anywhere, Source::Look, Box::new(Buckets::ALL));
            }
            return;
        }
        let Ok(topology) = self.find().await else {
            self.look_at = Self::after(MAP_RETRY_MS);
            return;
        };
        self.take_from_others(&topology).await;
        for (address, buckets) in topology {
            match self.sessions.get_mut(&address) {
                None => self.start(address.clone(), Source::At(address), buckets),
                Some(held) => {
                    let mut new = Buckets::NONE;
                    let held_before = &held.buckets;
                    buckets.iter().filter(|bucket| !held_before.contains(*bucket)).for_each(|b| new.insert(b));
                    if !new.is_empty() {
                        held.buckets = buckets;
                        let _ = held.orders.send(Order::Take(Box::new(new.clone())));
                        self.common.set_routes(&new, Some(&held.orders));
                    }
                }
            }
        }
    }

    /// Takes each bucket from the session that is not its primary's any more; ends sessions that have none left.
    async fn take_from_others(&mut self, topology: &Topology) {
        let mut ended = Vec::new();
        for (address, held) in &mut self.sessions {
            let mut gone = Buckets::NONE;
            let now = topology.get(address);
            held.buckets.iter().filter(|b| !now.is_some_and(|now| now.contains(*b))).for_each(|b| gone.insert(b));
            if !gone.is_empty() {
                self.common.set_routes(&gone, None);
                let _ = held.orders.send(Order::Give(Box::new(gone.clone())));
                // What it has lost meanwhile is part of what is gone, or will be found missing at the next look.
                while let Some(report) = held.reports.recv().await {
                    match report {
                        Report::Given => break,
                        Report::Lost(bucket) => held.buckets.remove(bucket),
                        Report::Failed => {}
                    }
                }
                gone.iter().for_each(|bucket| held.buckets.remove(bucket));
            }
            if held.buckets.is_empty() {
                ended.push(address.clone());
            }
        }
        for address in ended {
            // Its orders end with it, and so does its task.
            self.sessions.remove(&address);
        }
    }

    fn start(&mut self, address: Address, source: Source, buckets: Box<Buckets>) {
        let (orders, received) = mpsc::unbounded_channel();
        let (report, reports) = mpsc::unbounded_channel();
        self.common.set_routes(&buckets, Some(&orders));
        let session = Session {
            common: Arc::clone(&self.common),
            source,
            orders: received,
            reports: report,
            node: self.node,
            buckets: buckets.clone(),
            out: Vec::new(),
        };
        tokio::spawn(session.run());
        self.sessions.insert(address, Held { orders, reports, buckets });
    }
}

/// Waits for a session to report something.
async fn reported(sessions: &mut BTreeMap<Address, Held>) -> (Address, Report) {
    std::future::poll_fn(|context| {
        for (address, held) in sessions.iter_mut() {
            if let Poll::Ready(Some(report)) = held.reports.poll_recv(context) {
                return Poll::Ready((address.clone(), report));
            }
        }
        Poll::Pending
    })
    .await
}

/// Whether the engine does not let this node in.
fn is_login(reason: &str) -> bool {
    reason.contains("WRONGPASS") || reason.contains("NOAUTH") || reason.contains("NOPERM")
}
