//! A node as a test plays it: a backplane handle that is driven step by step.
//!
//! In: a `dyn Backplane`. Out: answers by token, feed by channel. Invariant: an event is looked at once, in order.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use ringway_engine::backplane::{
    Answer, Audience, Backplane, Buckets, Described, Enter, Event, Fed, Feed, Follow, Keep, NodeId, Order, Page, Park,
    PublishBatch, Published, Read, Refusal, Request, Room, Subject, Taken, Tell, Token,
};
use ringway_engine::ids::Epoch;
use ringway_engine::lane_message::Position;
use ringway_engine::route;

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// See the file's header.
pub(crate) struct Node {
    backplane: Box<dyn Backplane>,
    pub(crate) id: NodeId,
    next_token: u64,
    boot: u32,
    creations: u32,
    numbers: BTreeMap<String, u64>,
    answers: BTreeMap<u64, Result<Answer, Refusal>>,
    pub(crate) feed: VecDeque<Feed>,
    pub(crate) open: Buckets,
    /// Times something was broken.
    pub(crate) brokens: u64,
    /// Buckets broken since the last look, for those who follow things.
    pub(crate) lost: Buckets,
    /// As last said.
    pub(crate) draining_left_ms: u64,
    /// Bytes of a page that it asks for.
    pub(crate) page_bytes_max: u32,
}

impl Node {
    pub(crate) fn new(backplane: Box<dyn Backplane>, id: NodeId, boot: u32) -> Node {
        Node {
            backplane,
            id,
            next_token: 0,
            boot,
            creations: 0,
            numbers: BTreeMap::new(),
            answers: BTreeMap::new(),
            feed: VecDeque::new(),
            open: Buckets::NONE,
            brokens: 0,
            lost: Buckets::NONE,
            draining_left_ms: 0,
            page_bytes_max: u32::MAX,
        }
    }

    /// An epoch that was never used.
    pub(crate) fn fresh(&mut self) -> Epoch {
        self.creations += 1;
        Epoch { boot: self.boot, creation: self.creations }
    }

    /// The next number of a batch of this node on this channel.
    pub(crate) fn next_number(&mut self, channel: &str) -> u64 {
        let number = self.numbers.entry(channel.into()).or_default();
        *number += 1;
        *number
    }

    pub(crate) fn submit(&mut self, request: Request) -> u64 {
        self.next_token += 1;
        self.backplane.submit(Token(self.next_token), request);
        self.next_token
    }

    /// Takes what has happened; waits for something for at most so long.
    pub(crate) fn step(&mut self, wait: Duration) -> bool {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let until = Instant::now() + wait;
        let mut events = Vec::new();
        while self.backplane.poll(&mut Context::from_waker(&waker), &mut events) == Poll::Pending {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            std::thread::park_timeout(left);
        }
        for event in events {
            match event {
                Event::Answer(token, result) => {
                    assert!(self.answers.insert(token.0, result).is_none(), "two answers to {token:?}");
                }
                Event::Feed(feed) => self.feed.push_back(feed),
                Event::Registered(_) => {}
                Event::Draining { left_ms } => self.draining_left_ms = left_ms,
                Event::Broken(buckets) => {
                    self.brokens += 1;
                    buckets.iter().for_each(|bucket| {
                        self.open.remove(bucket);
                        self.lost.insert(bucket);
                    });
                }
                Event::Restored(buckets) => buckets.iter().for_each(|bucket| self.open.insert(bucket)),
            }
        }
        true
    }

    /// Steps until it holds.
    #[track_caller]
    pub(crate) fn wait_until(&mut self, what: &str, mut holds: impl FnMut(&mut Node) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < until, "waited in vain: {what}");
            self.step(Duration::from_millis(50));
        }
    }

    #[track_caller]
    pub(crate) fn wait_open(&mut self) {
        self.wait_until("all buckets open", |node| node.open == Buckets::ALL);
    }

    #[track_caller]
    pub(crate) fn answer(&mut self, token: u64) -> Result<Answer, Refusal> {
        self.wait_until("an answer", |node| node.answers.contains_key(&token));
        self.answers.remove(&token).expect("is there")
    }

    pub(crate) fn try_answer(&mut self, token: u64) -> Option<Result<Answer, Refusal>> {
        self.answers.remove(&token)
    }

    #[track_caller]
    fn ask(&mut self, request: Request) -> Answer {
        let token = self.submit(request.clone());
        self.answer(token).unwrap_or_else(|refusal| panic!("{refusal:?}: {request:?}"))
    }

    pub(crate) fn batch(&mut self, channel: &str, records: &[&[u8]]) -> PublishBatch {
        PublishBatch {
            channel: channel.into(),
            records: records.iter().map(|record| (*record).into()).collect(),
            idempotency_key: Box::default(),
            idempotency_window_ms: 60_000,
            number: self.next_number(channel),
            keep: Keep { size: 100, ttl_ms: 600_000 },
            replicated: false,
            fresh: self.fresh(),
        }
    }

    #[track_caller]
    pub(crate) fn publish_batch(&mut self, batch: PublishBatch) -> Published {
        match self.ask(Request::Publish(batch)) {
            Answer::Published(published) => published,
            other => panic!("{other:?}"),
        }
    }

    /// Publishes as often as it takes until a replica is seen to be there.
    #[track_caller]
    pub(crate) fn publish_once_replicated(&mut self, batch: PublishBatch) -> Published {
        loop {
            let token = self.submit(Request::Publish(batch.clone()));
            match self.answer(token) {
                Ok(Answer::Published(published)) => return published,
                Err(Refusal::Unavailable) => std::thread::sleep(Duration::from_millis(50)),
                other => panic!("{other:?}"),
            }
        }
    }

    #[track_caller]
    pub(crate) fn publish(&mut self, channel: &str, records: &[&[u8]]) -> Published {
        let batch = self.batch(channel, records);
        self.publish_batch(batch)
    }

    pub(crate) fn follow_request(&mut self, channel: &str, since: Option<Position>, limit: u32) -> Request {
        let bytes_max = self.page_bytes_max;
        Request::Follow(Follow { channel: channel.into(), since, limit, bytes_max, fresh: self.fresh() })
    }

    #[track_caller]
    pub(crate) fn follow(&mut self, channel: &str, since: Option<Position>, limit: u32) -> Page {
        let request = self.follow_request(channel, since, limit);
        page(self.ask(request))
    }

    #[track_caller]
    pub(crate) fn read(&mut self, channel: &str, since: Option<u64>, limit: u32, reverse: bool) -> Page {
        let fresh = self.fresh();
        let bytes_max = self.page_bytes_max;
        page(self.ask(Request::Read(Read { channel: channel.into(), since, limit, bytes_max, reverse, fresh })))
    }

    #[track_caller]
    pub(crate) fn unfollow(&mut self, channel: &str) {
        assert_eq!(self.ask(Request::Unfollow(Subject::Channel(channel.into()))), Answer::Done);
    }

    #[track_caller]
    pub(crate) fn follow_user(&mut self, user: &str) {
        assert_eq!(self.ask(Request::FollowUser { user: user.into() }), Answer::Done);
    }

    #[track_caller]
    pub(crate) fn forget(&mut self, channel: &str) {
        assert_eq!(self.ask(Request::Forget { channel: channel.into() }), Answer::Done);
    }

    #[track_caller]
    pub(crate) fn tell(&mut self, subject: Subject, to: Audience, body: &[u8]) -> u32 {
        match self.ask(Request::Tell(Tell { subject, to, body: body.into() })) {
            Answer::Told(nodes) => nodes,
            other => panic!("{other:?}"),
        }
    }

    /// Parks something; returns how many older ones had to go.
    #[track_caller]
    pub(crate) fn park(&mut self, user: &str, body: &[u8], ttl_ms: u64, entries_max: u32) -> u32 {
        // Each is of another connection.
        let client = String::from_utf8_lossy(body).as_ref().into();
        let (user, body) = (user.into(), body.into());
        self.park_as(Park { user, client, body, again: false, alone: true, ttl_ms, entries_max })
    }

    #[track_caller]
    pub(crate) fn park_as(&mut self, park: Park) -> u32 {
        match self.ask(Request::Park(park)) {
            Answer::Displaced(displaced) => displaced,
            other => panic!("{other:?}"),
        }
    }

    /// Says an order about a user; none: too many are noted.
    #[track_caller]
    pub(crate) fn order(&mut self, user: &str, body: &[u8], noted_max: u32) -> Option<u32> {
        let token = self.submit(Request::Order(Order { user: user.into(), body: body.into(), noted_max }));
        match self.answer(token) {
            Ok(Answer::Told(nodes)) => Some(nodes),
            Err(Refusal::Unavailable) => None,
            other => panic!("{other:?}"),
        }
    }

    /// Takes what is parked.
    #[track_caller]
    pub(crate) fn take_parked(&mut self, user: &str) -> Option<Box<[u8]>> {
        self.take_all_parked(user).map(|taken| taken.body)
    }

    /// The same with all that is known of it.
    #[track_caller]
    pub(crate) fn take_all_parked(&mut self, user: &str) -> Option<Taken> {
        match self.ask(Request::TakeParked { user: user.into() }) {
            Answer::Parked(taken) => taken.map(|taken| *taken),
            other => panic!("{other:?}"),
        }
    }

    /// Whether one more connection of a user may come in, the `mine`th of this node.
    #[track_caller]
    pub(crate) fn enter(&mut self, user: &str, mine: u32, max: u32) -> Room {
        match self.ask(Request::Enter(Enter { user: user.into(), mine, max })) {
            Answer::Entered(room) => room,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn set_connections(&mut self, user: &str, mine: u32) {
        assert_eq!(self.ask(Request::SetConnections { user: user.into(), mine }), Answer::Done);
    }

    /// Says what this node is.
    #[track_caller]
    pub(crate) fn describe(&mut self, body: &[u8]) {
        assert_eq!(self.ask(Request::Describe { body: body.into() }), Answer::Done);
    }

    /// What living nodes say of themselves.
    #[track_caller]
    pub(crate) fn nodes(&mut self) -> Vec<Described> {
        match self.ask(Request::Nodes) {
            Answer::Nodes(nodes) => nodes,
            other => panic!("{other:?}"),
        }
    }

    /// Says that this node goes away.
    #[track_caller]
    pub(crate) fn draining(&mut self, ttl_ms: u64) {
        assert_eq!(self.ask(Request::Draining { ttl_ms }), Answer::Done);
    }

    /// The next batch that was fed of a channel: epoch, offset before, records.
    #[track_caller]
    pub(crate) fn fed(&mut self, channel: &str) -> (Epoch, u64, Vec<Box<[u8]>>) {
        let subject = Subject::Channel(channel.into());
        self.wait_until("a publication is fed", |node| node.feed.iter().any(|feed| feed.subject == subject));
        let place = self.feed.iter().position(|feed| feed.subject == subject).expect("is there");
        let feed = self.feed.remove(place).expect("is there");
        assert_eq!(feed.bucket, route::bucket(channel));
        match feed.what {
            Fed::Publications { epoch, prev, first, records } => {
                assert_eq!(first, prev + 1);
                (epoch, prev, records)
            }
            Fed::Told(body) => panic!("told {body:?}"),
        }
    }

    /// The next thing told about a subject.
    #[track_caller]
    pub(crate) fn told(&mut self, subject: &Subject) -> Box<[u8]> {
        self.wait_until("something is told", |node| node.feed.iter().any(|feed| feed.subject == *subject));
        let place = self.feed.iter().position(|feed| feed.subject == *subject).expect("is there");
        match self.feed.remove(place).expect("is there").what {
            Fed::Told(body) => body,
            other @ Fed::Publications { .. } => panic!("{other:?}"),
        }
    }

    /// Nothing more is on its way: what was said to this node before has come.
    #[track_caller]
    pub(crate) fn settle(&mut self) {
        let subject = Subject::User("settle".into());
        self.follow_user("settle");
        assert!(self.tell(subject.clone(), Audience::Interested, b"") > 0);
        self.told(&subject);
        self.step(Duration::from_millis(30));
    }
}

#[track_caller]
fn page(answer: Answer) -> Page {
    match answer {
        Answer::Page(page) => page,
        other => panic!("{other:?}"),
    }
}
