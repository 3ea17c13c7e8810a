//! Leaving: from the wish to drain this node to the moment when nobody is connected.
//!
//! In: a signal or a call of the API ([`Drain::begin`], [`Drain::hurry`]), the numbers that shards publish. Out: readiness
//! that fails, orders to the shards ([`DrainOrders`]), [`Progress`] for whoever asks. Which client leaves when is decided in
//! `engine/shard/drain.rs`; here it is only started, watched and bounded.
//!
//! ```text
//! serving ─> grace ─> clients ─> backends ─> left        (what /api/drain calls the state)
//!              └─────────┴──────────┴─ deadline, second signal: everybody at once ─> left
//! ```
//! Invariants: orders reach a shard however full its lanes are (two loads per turn, no queue); backends are told when no
//! client is left and no event waits for them, or when the time for that is over; it ends, whatever peers do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use ringway_engine::ids::CoreId;
use ringway_engine::limits::Limits;
use ringway_engine::metrics::Metric;
use ringway_engine::seam::{DrainOrder, Input};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::control::{MetricsHub, Phase, Readiness};
use crate::shared::Shared;
use crate::{clock, log};

/// How often the shards' numbers are looked at; they are published as often.
const LOOK_INTERVAL_MS: u64 = 100;
/// How long the end waits for somebody who has asked for the progress to hear of it.
const TELL_TIMEOUT_MS: u64 = 2_000;

/// Orders to the shards, in this order; a shard may miss those before the last.
const SERVE: u8 = 0;
const CLIENTS: u8 = 1;
const BACKENDS: u8 = 2;
const AT_ONCE: u8 = 3;

/// How far the shards are to have drained; each looks at it once per turn.
#[derive(Debug)]
pub struct DrainOrders {
    step: AtomicU8,
    /// Clients per 1,000 s, by shard; set before the step that needs them.
    paces: Box<[AtomicU64]>,
}

impl DrainOrders {
    /// Nobody is to leave.
    pub fn new(shards: usize) -> Self {
        DrainOrders { step: AtomicU8::new(SERVE), paces: (0..shards).map(|_| AtomicU64::new(0)).collect() }
    }

    /// What a shard is to do next; `taken` is how far it has come.
    pub fn next(&self, core: CoreId, taken: &mut u8) -> Option<Input<'static>> {
        let wanted = self.step.load(Ordering::Acquire);
        if *taken >= wanted {
            return None;
        }
        // At once is at once, whatever was to come before it.
        *taken = if wanted == AT_ONCE { AT_ONCE } else { *taken + 1 };
        Some(match *taken {
            CLIENTS => {
                let pace = self.paces.get(core.0 as usize).map_or(0, |pace| pace.load(Ordering::Relaxed));
                Input::Drain(DrainOrder { clients_per_1000_s: pace })
            }
            BACKENDS => Input::DrainBackends,
            _ => Input::Shutdown,
        })
    }

    fn give(&self, shared: &Shared, step: u8) {
        self.step.fetch_max(step, Ordering::Release);
        for inbox in &shared.inboxes {
            inbox.wake_if_asleep();
        }
    }
}

/// The rate of the node, divided over shards as their clients are, in clients per 1,000 s. Together they are the rate.
fn paces(rate_per_s: u32, clients: &[u64]) -> Vec<u64> {
    let rate = u128::from(rate_per_s) * 1_000;
    // One more than there are: who comes during the grace must leave too.
    let total: u128 = clients.iter().map(|open| u128::from(*open) + 1).sum();
    let mut before = 0_u128;
    let part = |open: &u64| {
        let behind = before + u128::from(*open) + 1;
        let part = rate * behind / total - rate * before / total;
        before = behind;
        part as u64
    };
    clients.iter().map(part).collect()
}

/// How far a node has come with leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DrainState {
    /// Nobody has asked for it.
    Serving = 0,
    /// Readiness fails; load balancers are to notice.
    Grace = 1,
    /// Newcomers are refused, clients are sent away.
    Clients = 2,
    /// No client is left; backends leave.
    Backends = 3,
    /// Nobody is connected any more; the process ends.
    Left = 4,
}

/// What `/api/drain` answers.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// How far.
    pub state: DrainState,
    /// Client connections when it began.
    pub clients_at_start: u64,
    /// Client connections now, with those whose end is under way.
    pub clients_left: u64,
    /// Connections of backends now.
    pub backends_left: u64,
    /// Clients that were sent away at the configured rate.
    pub sent_away: u64,
    /// Clients that were closed all at once: the deadline was over, or somebody hurried it.
    pub forced: u64,
    /// Since it began; 0 before.
    pub elapsed_ms: u64,
    /// From its begin to when whoever is left is closed at once.
    pub deadline_ms: u64,
    /// Clients per second.
    pub rate_per_s: u32,
}

/// The drain of one node, which happens once.
#[derive(Debug)]
pub struct Drain {
    grace_ms: u64,
    rate_per_s: u32,
    deadline_ms: u64,
    /// None where nobody keeps leaves to itself.
    leave_delay_ms: u64,
    backends_ms: u64,
    metrics: Arc<MetricsHub>,
    ready: Arc<Readiness>,
    state: AtomicU8,
    began_ms: AtomicU64,
    clients_at_start: AtomicU64,
    begun: Notify,
    hurried: Notify,
    /// Somebody asks for the progress.
    watched: AtomicBool,
    told: Notify,
}

impl Drain {
    /// Of a node that serves, alone or in a fleet.
    pub fn new(limits: &Limits, in_fleet: bool, metrics: Arc<MetricsHub>, ready: Arc<Readiness>) -> Arc<Self> {
        Arc::new(Drain {
            grace_ms: limits.drain_grace_ms.into(),
            rate_per_s: limits.drain_rate_per_s,
            deadline_ms: limits.drain_deadline_ms.into(),
            leave_delay_ms: if in_fleet { limits.drain_leave_delay_ms.into() } else { 0 },
            backends_ms: limits.drain_backends_ms.into(),
            metrics,
            ready,
            state: AtomicU8::new(DrainState::Serving as u8),
            began_ms: AtomicU64::new(0),
            clients_at_start: AtomicU64::new(0),
            begun: Notify::new(),
            hurried: Notify::new(),
            watched: AtomicBool::new(false),
            told: Notify::new(),
        })
    }

    /// Fails readiness at once and begins; does nothing when it has begun.
    pub fn begin(&self, cause: &str) {
        let (from, to) = (DrainState::Serving as u8, DrainState::Grace as u8);
        if self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return;
        }
        self.ready.set(Phase::Draining);
        let clients = self.metrics.total(Metric::ConnectionsOpen);
        self.clients_at_start.store(clients, Ordering::Relaxed);
        self.began_ms.store(clock::now_ms(), Ordering::Relaxed);
        log::info("drain", "begins", &[("cause", &cause), ("clients", &clients), ("rate_per_s", &self.rate_per_s)]);
        self.begun.notify_one();
    }

    fn warn_if_too_short(&self, clients: u64) {
        let leaving_ms = clients * 1_000 / u64::from(self.rate_per_s.max(1));
        let needed_ms = self.grace_ms + leaving_ms + self.leave_delay_ms + self.backends_ms;
        if needed_ms > self.deadline_ms {
            log::warn(
                "drain",
                "limits.drain_deadline_ms is too short for limits.drain_rate_per_s: at its end the clients who are left are closed at once",
                &[("needed_ms", &needed_ms), ("deadline_ms", &self.deadline_ms)],
            );
        }
    }

    /// Closes everybody at once; does nothing before it has begun.
    pub fn hurry(&self, cause: &str) {
        if self.has_begun() {
            log::info("drain", "hurried: everybody is closed at once", &[("cause", &cause)]);
            self.hurried.notify_one();
        }
    }

    /// Whether it has begun.
    pub fn has_begun(&self) -> bool {
        self.state() != DrainState::Serving
    }

    fn state(&self) -> DrainState {
        match self.state.load(Ordering::Acquire) {
            1 => DrainState::Grace,
            2 => DrainState::Clients,
            3 => DrainState::Backends,
            4 => DrainState::Left,
            _ => DrainState::Serving,
        }
    }

    fn elapsed_ms(&self) -> u64 {
        if self.has_begun() { clock::now_ms().saturating_sub(self.began_ms.load(Ordering::Relaxed)) } else { 0 }
    }

    /// How far it is. Who asks during a drain is waited for at its end, so that it hears of it.
    pub fn progress(&self) -> Progress {
        let total = |metric| self.metrics.total(metric);
        let state = self.state();
        match state {
            DrainState::Serving => {}
            DrainState::Left => self.told.notify_one(),
            _ => self.watched.store(true, Ordering::Relaxed),
        }
        Progress {
            state,
            clients_at_start: if state == DrainState::Serving { 0 } else { self.clients_at_start() },
            clients_left: total(Metric::ConnectionsOpen),
            backends_left: total(Metric::IngestConnectionsOpen),
            sent_away: total(Metric::DrainPaced),
            forced: total(Metric::DrainForced),
            elapsed_ms: self.elapsed_ms(),
            deadline_ms: self.deadline_ms,
            rate_per_s: self.rate_per_s,
        }
    }

    /// The most that were seen: a shard that is short of time says late who was there at the begin.
    fn clients_at_start(&self) -> u64 {
        let metrics = [Metric::ConnectionsOpen, Metric::DrainPaced, Metric::DrainForced];
        let now = metrics.into_iter().map(|metric| self.metrics.total(metric)).sum();
        self.clients_at_start.fetch_max(now, Ordering::Relaxed).max(now)
    }

    /// Waits until somebody begins it, then carries it out; ends when nobody is connected, or had the time to leave.
    pub async fn run(&self, shared: &Shared) {
        self.begun.notified().await;
        // Who came a moment before the order is in the shards' numbers a moment behind it.
        look_again().await;
        look_again().await;
        self.warn_if_too_short(self.clients_at_start());
        let clients: Vec<u64> =
            (0..shared.drain.paces.len()).map(|shard| self.metrics.of(shard, Metric::ConnectionsOpen)).collect();
        for (place, pace) in shared.drain.paces.iter().zip(paces(self.rate_per_s, &clients)) {
            place.store(pace, Ordering::Relaxed);
        }
        shared.drain.give(shared, CLIENTS);
        let left = tokio::select! {
            () = self.paced(shared) => true,
            () = self.hurried.notified() => false,
            () = tokio::time::sleep(Duration::from_millis(self.deadline_ms)) => {
                log::warn("drain", "limits.drain_deadline_ms is over: who is left is closed at once", &[
                    ("clients", &self.metrics.total(Metric::ConnectionsOpen)),
                ]);
                false
            }
        };
        if !left {
            shared.drain.give(shared, AT_ONCE);
            tokio::select! {
                () = self.nobody() => {}
                () = self.hurried.notified() => {}
                () = tokio::time::sleep(Duration::from_millis(shared.stop_timeout_ms)) => {}
            }
        }
        self.enter(DrainState::Left);
        let Progress { sent_away, forced, elapsed_ms, .. } = self.progress();
        log::info("drain", "done", &[("sent_away", &sent_away), ("forced", &forced), ("elapsed_ms", &elapsed_ms)]);
        if self.watched.load(Ordering::Relaxed) {
            self.told_last_time().await;
        }
    }

    async fn told_last_time(&self) {
        // Our own look may have left a permit.
        let _ = tokio::time::timeout(Duration::ZERO, self.told.notified()).await;
        let _ = tokio::time::timeout(Duration::from_millis(TELL_TIMEOUT_MS), self.told.notified()).await;
    }

    async fn nobody(&self) {
        while self.metrics.total(Metric::ConnectionsOpen) + self.metrics.total(Metric::IngestConnectionsOpen) > 0 {
            look_again().await;
        }
    }

    async fn paced(&self, shared: &Shared) {
        let leaving = |shard| self.metrics.of(shard, Metric::DrainState) == 2;
        while !(0..shared.drain.paces.len()).all(leaving) {
            look_again().await;
        }
        self.enter(DrainState::Clients);
        while !self.backends_may_leave() {
            look_again().await;
        }
        self.enter(DrainState::Backends);
        shared.drain.give(shared, BACKENDS);
        // Their connections may have been opened since the numbers were published.
        look_again().await;
        look_again().await;
        self.nobody().await;
    }

    /// Events of clients, most of all their ends, are for backends: these leave behind the last of them. At the latest when
    /// what is left of the time is just enough for them.
    fn backends_may_leave(&self) -> bool {
        if self.elapsed_ms() + self.backends_ms >= self.deadline_ms {
            return true;
        }
        let total = |metric| self.metrics.total(metric);
        let events_wait = total(Metric::EventsPending) > 0 && total(Metric::EventBackends) > 0;
        total(Metric::ConnectionsOpen) == 0 && total(Metric::DrainLeavesWaiting) == 0 && !events_wait
    }

    fn enter(&self, state: DrainState) {
        self.state.store(state as u8, Ordering::Release);
        log::debug("drain", "goes on", &[("state", &format_args!("{state:?}"))]);
    }
}

async fn look_again() {
    tokio::time::sleep(Duration::from_millis(LOOK_INTERVAL_MS)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_have_parts_of_the_rate_as_they_have_clients() {
        for (rate, clients) in
            [(1_000, vec![0, 0, 0]), (7, vec![10, 0, 1_000_000]), (1, vec![3; 56]), (10_000_000, vec![9])]
        {
            let parts = paces(rate, &clients);
            assert_eq!(parts.iter().sum::<u64>(), u64::from(rate) * 1_000, "{rate} over {clients:?}: {parts:?}");
        }
        assert_eq!(paces(1_000, &[999, 2_999]), [250_000, 750_000]);
        assert!(paces(100, &[0, 400]).iter().all(|part| *part > 0), "who comes during the grace must leave too");
    }

    #[test]
    fn a_shard_hears_each_order_once_and_the_last_at_once() {
        let orders = DrainOrders::new(2);
        let mut taken = 0;
        assert!(orders.next(CoreId(0), &mut taken).is_none());
        orders.paces[1].store(5, Ordering::Relaxed);
        orders.step.store(CLIENTS, Ordering::Release);
        let mut late = taken;
        let order = orders.next(CoreId(1), &mut taken);
        assert!(matches!(order, Some(Input::Drain(DrainOrder { clients_per_1000_s: 5 }))), "{order:?}");
        assert!(orders.next(CoreId(1), &mut taken).is_none());
        orders.step.store(BACKENDS, Ordering::Release);
        assert!(matches!(orders.next(CoreId(1), &mut taken), Some(Input::DrainBackends)));
        orders.step.store(AT_ONCE, Ordering::Release);
        assert!(matches!(orders.next(CoreId(1), &mut taken), Some(Input::Shutdown)));
        assert!(matches!(orders.next(CoreId(0), &mut late), Some(Input::Shutdown)));
        assert!(orders.next(CoreId(0), &mut late).is_none());
    }
}
