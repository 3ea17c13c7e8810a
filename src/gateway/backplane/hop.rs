//! The thread `backplane-0`: lanes on one side, a backplane on the other.
//!
//! In: batches of [`LaneMessage::ToBackplane`] from shards. Out: batches of [`LaneMessage::Backplane`]: answers to the core
//! that asked, feed to the owner of its bucket, what nodes tell each other to the control plane, everything else to every
//! shard. Invariants: it never blocks; what
//! finds a queue full waits here in order, bounded by `spill_bytes_max` per shard; at the bound what is fed is dropped,
//! counted, and the shard is told `Broken` and `Restored` for its buckets, so that it follows them again.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use ringway_engine::backplane::{Backplane, Buckets, Event, Feed, Subject, Token};
use ringway_engine::ids::{Bucket, CoreId};
use ringway_engine::lane_message::{Batch, LaneMessage};
use ringway_engine::limits::BUCKETS;
use ringway_engine::route;
use ringway_sys::{Errno, Inbox, thread as sys_thread};
use tokio::io::unix::AsyncFd;

use super::config::BackplaneConfig;
use super::metrics::{BackplaneMetrics, Number};
use super::redis::{Redis, Registered};
use crate::log;
use crate::shared::Shared;

/// Batches taken from the inbox before the backplane is polled again.
const BATCHES_PER_TURN_MAX: usize = 64;
/// How soon a batch is offered again to a shard whose queue was full.
const RETRY_MS: u64 = 1;

/// The thread, from outside.
pub struct Hop {
    thread: JoinHandle<io::Result<()>>,
    stop: Arc<AtomicBool>,
    inbox: Arc<Inbox<Batch>>,
}

impl Hop {
    /// Starts it. Must be called by a thread with the process's common file table, because it wakes shards. The receiver
    /// gets what is known about this node's registration.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(
        shared: &Arc<Shared>,
        config: &BackplaneConfig,
        boot: u64,
        batch_messages_max: usize,
        metrics: &Arc<BackplaneMetrics>,
    ) -> Result<(Hop, mpsc::Receiver<Registered>), Errno> {
        let core = shared.backplane();
        let inbox = Arc::clone(&shared.inboxes[core.0 as usize]);
        let stop = Arc::new(AtomicBool::new(false));
        let (word, words) = mpsc::channel();
        let (shared, config, metrics) = (Arc::clone(shared), config.clone(), Arc::clone(metrics));
        let (stopped, own) = (Arc::clone(&stop), Arc::clone(&inbox));
        let body = move || {
            let _guard = EndTogether;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let spill_bytes_max = config.spill_bytes_max;
                let (backplane, mut registered) =
                    Redis::start(config, boot, Arc::clone(&metrics), &tokio::runtime::Handle::current());
                tokio::spawn(async move {
                    while let Some(registered) = registered.recv().await {
                        // Boot listens only until it knows enough.
                        let _ = word.send(registered);
                    }
                });
                let lanes = Lanes::new(&shared, core, spill_bytes_max, batch_messages_max, metrics);
                let mut relay = Relay { backplane, lanes, asked: Asked::default(), events: Vec::new() };
                // A task among those of the sessions: what these wake here would otherwise wait for a look at all descriptors.
                let running = tokio::spawn(async move {
                    relay.run(&own, &stopped).await?;
                    relay.backplane.stop().await;
                    Ok(())
                });
                match running.await {
                    Ok(result) => result,
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        Err(error) => Err(io::Error::other(error)),
                    },
                }
            })
        };
        let thread = sys_thread::spawn_named("backplane-0", body)?;
        Ok((Hop { thread, stop, inbox }, words))
    }

    /// Gives the node's lease back and ends the thread. To be called when no shard needs it any more.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Release);
        self.inbox.wake_if_asleep();
        match self.thread.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::error("backplane", "the thread failed", &[("error", &error)]),
            // Its guard has ended the process.
            Err(_) => {}
        }
    }
}

/// Ends the process when the thread panics: shards would wait for ever.
struct EndTogether;

impl Drop for EndTogether {
    fn drop(&mut self) {
        if std::thread::panicking() {
            log::error("backplane", "the thread panicked", &[]);
            std::process::exit(i32::from(crate::cli::EXIT_FAILURE));
        }
    }
}

/// An inbox's wake-up descriptor, as the runtime wants it.
struct Bell(Arc<Inbox<Batch>>);

impl std::os::fd::AsRawFd for Bell {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

/// Between lanes and a backplane.
struct Relay<B> {
    backplane: B,
    lanes: Lanes,
    asked: Asked,
    events: Vec<Event>,
}

impl<B: Backplane> Relay<B> {
    async fn run(&mut self, inbox: &Arc<Inbox<Batch>>, stop: &AtomicBool) -> io::Result<()> {
        #[expect(
            deprecated,
            reason = "its successor is unsafe to call; the inbox owns its descriptor as long as it lives"
        )]
        let bell = AsyncFd::new(Bell(Arc::clone(inbox)))?;
        let mut rang = true;
        while !stop.load(Ordering::Acquire) {
            // Woken by something else the bell has mostly not rung, and to ask it is a system call. If it has, it ends the next
            // sleep, which nobody has to announce again.
            if rang {
                inbox.awake();
            }
            rang = true;
            let more = self.take_requests(inbox);
            let polled = self.poll_once().await;
            self.lanes.send();
            if more || polled || !inbox.prepare_sleep() {
                // The sessions are tasks of this thread: they must come to their turn.
                tokio::task::yield_now().await;
                continue;
            }
            let retry = Duration::from_millis(RETRY_MS);
            rang = tokio::select! {
                guard = bell.readable() => {
                    guard?.clear_ready();
                    true
                }
                () = poll_fn(|context| self.backplane.poll(context, &mut self.events)) => {
                    self.take_events();
                    false
                }
                () = tokio::time::sleep(retry), if self.lanes.wait() => false,
            };
        }
        Ok(())
    }

    /// True: more waits.
    fn take_requests(&mut self, inbox: &Inbox<Batch>) -> bool {
        // Shards drop publications only, and send none here.
        inbox.take_lost().for_each(drop);
        for _ in 0..BATCHES_PER_TURN_MAX {
            let Some(batch) = inbox.pop() else { return false };
            for message in batch.messages {
                if let LaneMessage::ToBackplane { token, request } = message {
                    let own = self.asked.add(batch.from, token);
                    self.backplane.submit(own, *request);
                }
            }
        }
        !inbox.is_empty()
    }

    /// True: something has happened.
    async fn poll_once(&mut self) -> bool {
        let poll = |context: &mut Context<'_>| Poll::Ready(self.backplane.poll(context, &mut self.events).is_ready());
        let ready = poll_fn(poll).await;
        self.take_events();
        ready
    }

    fn take_events(&mut self) {
        for event in self.events.drain(..) {
            match event {
                Event::Answer(own, result) => {
                    if let Some((core, token)) = self.asked.take(own) {
                        self.lanes.push(core, Event::Answer(token, result));
                    }
                }
                Event::Feed(feed) => self.lanes.feed(feed),
                event @ Event::Registered(_) => {
                    self.lanes.say_to_all(&event);
                    self.lanes.push(self.lanes.control(), event);
                }
                event @ Event::Draining { .. } => self.lanes.say_to_all(&event),
                Event::Broken(buckets) => {
                    self.lanes.open.remove_all(&buckets);
                    self.lanes.say_to_all(&Event::Broken(buckets));
                }
                Event::Restored(buckets) => {
                    self.lanes.open.insert_all(&buckets);
                    self.lanes.say_to_all(&Event::Restored(buckets));
                }
            }
        }
    }
}

/// Who asked what: the tokens of different cores may be equal.
#[derive(Default)]
struct Asked {
    places: Vec<Option<(CoreId, Token)>>,
    free: Vec<usize>,
}

impl Asked {
    fn add(&mut self, core: CoreId, token: Token) -> Token {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.places[place] = Some((core, token));
        Token(place as u64)
    }

    fn take(&mut self, own: Token) -> Option<(CoreId, Token)> {
        let place = usize::try_from(own.0).ok()?;
        let asked = self.places.get_mut(place)?.take()?;
        self.free.push(place);
        Some(asked)
    }
}

/// What waits to be said to shards.
struct Lanes {
    core: CoreId,
    shards: u16,
    /// One per shard, and behind them the control plane's.
    inboxes: Vec<Arc<Inbox<Batch>>>,
    targets: Vec<Target>,
    spill_bytes_max: usize,
    batch_messages_max: usize,
    /// Announced and not broken, as a shard knows it that has heard everything.
    open: Buckets,
    metrics: Arc<BackplaneMetrics>,
}

#[derive(Default)]
struct Target {
    queue: VecDeque<Event>,
    bytes: usize,
}

impl Lanes {
    fn new(
        shared: &Shared,
        core: CoreId,
        spill_bytes_max: usize,
        batch_messages_max: usize,
        metrics: Arc<BackplaneMetrics>,
    ) -> Self {
        let inboxes = shared.inboxes[..=shared.shards as usize].to_vec();
        Lanes {
            core,
            shards: shared.shards,
            targets: inboxes.iter().map(|_| Target::default()).collect(),
            inboxes,
            spill_bytes_max,
            batch_messages_max,
            open: Buckets::NONE,
            metrics,
        }
    }

    /// The control plane, as [`Shared`] has it.
    const fn control(&self) -> CoreId {
        CoreId(self.shards)
    }

    fn push(&mut self, to: CoreId, event: Event) {
        let Some(target) = self.targets.get_mut(to.0 as usize) else { return };
        target.bytes += event.memory_bytes();
        target.queue.push_back(event);
    }

    fn say_to_all(&mut self, event: &Event) {
        for core in 0..self.shards {
            self.push(CoreId(core), event.clone());
        }
    }

    fn feed(&mut self, feed: Feed) {
        if feed.subject == Subject::Nodes {
            return self.feed_control(feed);
        }
        let to = route::owner(feed.bucket, self.shards);
        self.push(to, Event::Feed(feed));
        if self.targets[to.0 as usize].bytes > self.spill_bytes_max {
            // Often it is only this thread that is behind.
            self.send_to(to);
            if self.targets[to.0 as usize].bytes > self.spill_bytes_max {
                self.drop_feed(to);
            }
        }
    }

    /// Questions and answers of nodes. One that finds no room is not answered: whoever asked waits no longer than its limit.
    fn feed_control(&mut self, feed: Feed) {
        let event = Event::Feed(feed);
        let control = self.control();
        if self.targets[control.0 as usize].bytes + event.memory_bytes() > self.spill_bytes_max {
            self.metrics.add(Number::SpillLost, 1);
            return;
        }
        self.push(control, event);
    }

    /// Forgets what is fed to a shard that does not keep up, and tells it.
    fn drop_feed(&mut self, to: CoreId) {
        let target = &mut self.targets[to.0 as usize];
        let before = target.queue.len();
        target.queue.retain(|event| !matches!(event, Event::Feed(_)));
        self.metrics.add(Number::SpillLost, (before - target.queue.len()) as u64);
        target.bytes = target.queue.iter().map(Event::memory_bytes).sum();
        // It will follow everything anew behind the last one of these, which it has not taken yet.
        if matches!(target.queue.back(), Some(Event::Restored(_))) {
            return;
        }
        let mut own = Buckets::NONE;
        let of_shard = (0..BUCKETS).map(Bucket).filter(|bucket| route::owner(*bucket, self.shards) == to);
        of_shard.filter(|bucket| self.open.contains(*bucket)).for_each(|bucket| own.insert(bucket));
        if !own.is_empty() {
            self.push(to, Event::Broken(Box::new(own.clone())));
            self.push(to, Event::Restored(Box::new(own)));
        }
    }

    fn wait(&self) -> bool {
        self.targets.iter().any(|target| !target.queue.is_empty())
    }

    fn send(&mut self) {
        for core in 0..=self.shards {
            self.send_to(CoreId(core));
        }
        let spilled: usize = self.targets.iter().map(|target| target.bytes).sum();
        self.metrics.set(Number::SpillBytes, spilled as u64);
    }

    /// Gives a shard what its queue takes.
    fn send_to(&mut self, to: CoreId) {
        let (target, inbox) = (&mut self.targets[to.0 as usize], &self.inboxes[to.0 as usize]);
        if target.queue.is_empty() {
            return;
        }
        while !target.queue.is_empty() {
            let count = target.queue.len().min(self.batch_messages_max);
            let wrap = |event| LaneMessage::Backplane(Box::new(event));
            let messages: Vec<_> = target.queue.drain(..count).map(wrap).collect();
            if let Err(batch) = inbox.push(Batch { from: self.core, messages }) {
                let events = batch.messages.into_iter().rev().filter_map(|message| match message {
                    LaneMessage::Backplane(event) => Some(*event),
                    _ => None,
                });
                events.for_each(|event| target.queue.push_front(event));
                self.metrics.add(Number::Spilled, 1);
                break;
            }
        }
        target.bytes = target.queue.iter().map(Event::memory_bytes).sum();
        inbox.wake_if_asleep();
    }
}

#[cfg(test)]
mod tests;
