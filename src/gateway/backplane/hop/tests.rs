//! The hop between shards that the test plays on real inboxes and a backplane that it plays, too.

use ringway_engine::backplane::{Answer, Fed, Feed, Refusal, Request, Subject};

use super::*;
use crate::control::MetricsHub;

const SHARDS: u16 = 2;

/// Says what it is told to say, and keeps what it was asked.
#[derive(Default)]
struct Played {
    asked: Vec<(Token, Request)>,
    events: Vec<Event>,
}

impl Backplane for Played {
    fn submit(&mut self, token: Token, request: Request) {
        self.asked.push((token, request));
    }

    fn poll(&mut self, _: &mut Context<'_>, out: &mut Vec<Event>) -> Poll<()> {
        if self.events.is_empty() {
            return Poll::Pending;
        }
        out.append(&mut self.events);
        Poll::Ready(())
    }
}

fn relay(capacity_batches: usize, spill_bytes_max: usize) -> (Relay<Played>, Arc<Shared>) {
    let inboxes = (0..SHARDS + 2).map(|_| Inbox::new(capacity_batches, SHARDS as usize + 2).expect("opens")).collect();
    let metrics = MetricsHub::new(SHARDS as usize);
    let shared = Arc::new(Shared {
        shards: SHARDS,
        inboxes,
        metrics,
        stop: AtomicBool::new(false),
        stop_timeout_ms: 0,
        drain: crate::drain::DrainOrders::new(SHARDS.into()),
    });
    let lanes = Lanes::new(&shared, shared.backplane(), spill_bytes_max, 100, Arc::default());
    (Relay { backplane: Played::default(), lanes, asked: Asked::default(), events: Vec::new() }, shared)
}

fn heard(shared: &Shared, shard: u16) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(batch) = shared.inboxes[shard as usize].pop() {
        assert_eq!(batch.from, shared.backplane());
        for message in batch.messages {
            let LaneMessage::Backplane(event) = message else { panic!("{message:?}") };
            events.push(*event);
        }
    }
    events
}

fn ask(shared: &Shared, from: u16, token: u64) {
    let request = Box::new(Request::Unfollow(Subject::Channel("c".into())));
    let messages = vec![LaneMessage::ToBackplane { token: Token(token), request }];
    assert!(shared.inboxes[shared.backplane().0 as usize].push(Batch { from: CoreId(from), messages }).is_ok());
}

fn feed(bucket: u16, bytes: usize) -> Event {
    let what = Fed::Told(vec![0; bytes].into());
    Event::Feed(Feed { bucket: Bucket(bucket), addressed: true, subject: Subject::Channel("c".into()), what })
}

fn turn(relay: &mut Relay<Played>) {
    let waker = std::task::Waker::noop();
    let _ = relay.backplane.poll(&mut Context::from_waker(waker), &mut relay.events);
    relay.take_events();
    relay.lanes.send();
}

#[test]
fn answers_go_to_who_asked_and_feed_to_the_owner() {
    let (mut relay, shared) = relay(16, 1 << 20);
    let inbox = Arc::clone(&shared.inboxes[shared.backplane().0 as usize]);
    ask(&shared, 0, 7);
    ask(&shared, 1, 7);
    assert!(!relay.take_requests(&inbox));
    let own: Vec<Token> = relay.backplane.asked.iter().map(|(token, _)| *token).collect();
    assert_ne!(own[0], own[1], "two cores may give the same token");
    relay.backplane.events = vec![
        Event::Restored(Box::new(Buckets::ALL)),
        Event::Answer(own[1], Ok(Answer::Done)),
        feed(4, 1),
        Event::Answer(own[0], Err(Refusal::Unavailable)),
        feed(5, 1),
        Event::Broken(Box::new(Buckets::ALL)),
        // Nobody waits for this one any more.
        Event::Answer(own[0], Ok(Answer::Done)),
    ];
    turn(&mut relay);
    let (restored, broken) = (Event::Restored(Box::new(Buckets::ALL)), Event::Broken(Box::new(Buckets::ALL)));
    let refused = Event::Answer(Token(7), Err(Refusal::Unavailable));
    assert_eq!(heard(&shared, 0), [restored.clone(), feed(4, 1), refused, broken.clone()]);
    assert_eq!(heard(&shared, 1), [restored, Event::Answer(Token(7), Ok(Answer::Done)), feed(5, 1), broken]);
    // A place that was answered is used again.
    ask(&shared, 1, 8);
    relay.take_requests(&inbox);
    assert!(own.contains(&relay.backplane.asked[2].0));
}

#[test]
fn a_shard_that_is_behind_gets_all_of_it_later_and_in_order() {
    let (mut relay, shared) = relay(1, 1 << 20);
    for n in 0..5 {
        relay.backplane.events.push(feed(2 * n, 1));
        turn(&mut relay);
    }
    assert!(relay.lanes.wait());
    let mut events = heard(&shared, 0);
    while relay.lanes.wait() {
        relay.lanes.send();
        events.extend(heard(&shared, 0));
    }
    assert_eq!(events, (0..5).map(|n| feed(2 * n, 1)).collect::<Vec<_>>());
    assert!(relay.lanes.metrics.get(Number::Spilled) > 0);
}

#[test]
fn over_the_bound_a_shard_is_told_to_follow_again() {
    let (mut relay, shared) = relay(1, 10_000);
    let inbox = Arc::clone(&shared.inboxes[shared.backplane().0 as usize]);
    let mut open = Buckets::NONE;
    [0, 2, 3].map(Bucket).into_iter().for_each(|bucket| open.insert(bucket));
    relay.backplane.events = vec![Event::Restored(Box::new(open))];
    turn(&mut relay);
    ask(&shared, 0, 1);
    relay.take_requests(&inbox);
    let own = relay.backplane.asked[0].0;
    // The queue of each shard has one batch now. What follows waits here.
    relay.backplane.events = (0..30).map(|_| feed(2, 1_000)).collect();
    relay.backplane.events.insert(3, Event::Answer(own, Ok(Answer::Done)));
    relay.backplane.events.push(feed(3, 1));
    turn(&mut relay);
    assert!(relay.lanes.targets[0].bytes <= 12_000, "{} bytes wait", relay.lanes.targets[0].bytes);
    let lost = relay.lanes.metrics.get(Number::SpillLost);
    assert!(lost > 0);
    let mut events = heard(&shared, 0);
    while relay.lanes.wait() {
        relay.lanes.send();
        events.extend(heard(&shared, 0));
        events.extend(heard(&shared, 1).into_iter().filter(|event| *event == feed(3, 1)));
    }
    let own_open =
        |event: &&Event| matches!(event, Event::Broken(b) | Event::Restored(b) if b.iter().eq([Bucket(0), Bucket(2)]));
    assert_eq!(events.iter().filter(own_open).count(), 2, "broken and restored, for its open buckets");
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Answer(..))).count(), 1, "answers are kept");
    assert_eq!(events.iter().filter(|event| **event == feed(2, 1_000)).count() as u64, 30 - lost);
    assert!(events.contains(&feed(3, 1)), "the other shard misses nothing");
}
