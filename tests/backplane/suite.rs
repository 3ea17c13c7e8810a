//! Rules R1 to R7 of the contract, over any implementation.
//!
//! In: a [`Fleet`] that makes nodes. Out: a panic where a rule does not hold. Each test has channels of its own.

use ringway_engine::backplane::{
    Answer, Audience, Described, Enter, Keep, Page, Park, Refusal, Request, Room, Subject,
};
use ringway_engine::lane_message::Position;
use ringway_engine::route;

use crate::dice::Dice;
use crate::fire::Fire;
use crate::node::Node;

/// Makes nodes that share an engine.
pub(crate) trait Fleet {
    /// A new node, ready.
    fn node(&self) -> Node;
    /// Time goes on for the engine.
    fn pass_ms(&self, ms: u64);
}

/// One of them.
type Rule = fn(&dyn Fleet);

/// All rules that need no fault.
pub(crate) fn run(fleet: &dyn Fleet) {
    let rules: &[(&str, Rule)] = &[
        ("offsets grow by one and the feed comes in that order", order),
        ("an idempotency key gives the first position", keys),
        ("a batch number gives the first position", repeated_batch),
        ("pages are dense and reach the top", pages),
        ("a page has so many bytes at most, but a record at least", page_bytes),
        ("history ends by size and by time, and offsets go on", kept),
        ("what is forgotten is gone, and offsets go on", forget),
        ("who is told hears, and nobody else", tell),
        ("who does not follow hears nothing", unfollow),
        ("an epoch is that of who came first", epochs),
        ("what is parked is taken once, the oldest first, within its time", parked),
        ("orders that come behind what is parked go with it", orders_behind_what_is_parked),
        ("what is parked says whether its user had another connection", alone),
        ("every node hears that one drains, later ones too", draining),
        ("what living nodes say of themselves is known to all, and goes with them", described),
        ("what one node says to another it hears, and no other", between_nodes),
        ("a user's connections on all living nodes never exceed the limit", connections),
        ("nothing is missing behind a follow", under_fire),
    ];
    for (name, rule) in rules {
        println!("rule: {name}");
        rule(fleet);
    }
}

fn bytes(records: &[&str]) -> Vec<Box<[u8]>> {
    records.iter().map(|record| record.as_bytes().into()).collect()
}

fn order(fleet: &dyn Fleet) {
    let mut dice = Dice::new("order");
    let mut nodes = [fleet.node(), fleet.node(), fleet.node()];
    let channel = "order:1";
    let start = nodes[0].follow(channel, None, 0).top;
    nodes[1].follow(channel, None, 0);
    let mut expected = Vec::new();
    for turn in 0..60 {
        let records: Vec<String> = (0..1 + dice.below(5)).map(|n| format!("{turn}-{n}")).collect();
        let slices: Vec<&[u8]> = records.iter().map(String::as_bytes).collect();
        let first = nodes[dice.below(3)].publish(channel, &slices).first;
        assert_eq!((first.epoch, first.offset), (start.epoch, start.offset + 1 + expected.len() as u64));
        expected.extend(records);
    }
    for node in &mut nodes[..2] {
        let mut seen = Vec::new();
        while seen.len() < expected.len() {
            let (epoch, prev, records) = node.fed(channel);
            assert_eq!((epoch, prev), (start.epoch, start.offset + seen.len() as u64));
            seen.extend(records);
        }
        assert_eq!(seen, bytes(&expected.iter().map(String::as_str).collect::<Vec<_>>()));
    }
    nodes[2].settle();
    assert!(nodes[2].feed.is_empty(), "who does not follow hears nothing");
}

/// Two channels of one bucket.
fn neighbours(stem: &str) -> (String, String) {
    let first = format!("{stem}:0");
    let same = |name: &String| route::bucket(name) == route::bucket(&first);
    let second = (1..).map(|n| format!("{stem}:{n}")).find(same).expect("there are many names");
    (first, second)
}

fn keys(fleet: &dyn Fleet) {
    let (mut a, mut b) = (fleet.node(), fleet.node());
    let (one, two) = neighbours("keys");
    b.follow(&one, None, 0);
    b.follow(&two, None, 0);
    let keyed = |node: &mut Node, channel: &str, record: &[u8], window_ms| {
        let mut batch = node.batch(channel, &[record]);
        batch.idempotency_key = b"k:1".as_slice().into();
        batch.idempotency_window_ms = window_ms;
        node.publish_batch(batch)
    };
    let first = keyed(&mut a, &one, b"1", 60_000);
    assert!(!first.duplicate);
    let again = keyed(&mut b, &one, b"other", 60_000);
    assert!(again.duplicate);
    assert_eq!(again.first, first.first);
    let other = keyed(&mut a, &two, b"2", 60_000);
    assert!(!other.duplicate, "a key is of one channel");
    a.publish(&one, &[b"3"]);
    assert_eq!(b.fed(&one).2, bytes(&["1"]));
    assert_eq!(b.fed(&one).2, bytes(&["3"]), "a duplicate is not fed");
    assert_eq!(b.fed(&two).2, bytes(&["2"]));
    // Of channels whose names and keys run into each other.
    let mut batch = a.batch("keys:a", &[b"x"]);
    batch.idempotency_key = b"b:c".as_slice().into();
    a.publish_batch(batch);
    let mut batch = a.batch("keys:a:b", &[b"x"]);
    batch.idempotency_key = b"c".as_slice().into();
    assert!(!a.publish_batch(batch).duplicate);
    // Behind its window it is forgotten.
    let short = "keys:short";
    keyed(&mut a, short, b"1", 40);
    assert!(keyed(&mut a, short, b"1", 40).duplicate);
    fleet.pass_ms(80);
    assert!(!keyed(&mut a, short, b"1", 40).duplicate);
}

fn repeated_batch(fleet: &dyn Fleet) {
    let (mut a, mut b) = (fleet.node(), fleet.node());
    let channel = "repeated:1";
    b.follow(channel, None, 0);
    a.publish(channel, &[b"0"]);
    let batch = a.batch(channel, &[b"1", b"2"]);
    let first = a.publish_batch(batch.clone());
    assert_eq!(first.first.offset, 2);
    for _ in 0..2 {
        assert_eq!(a.publish_batch(batch.clone()), first, "the same number is the same batch");
    }
    // Other nodes count for themselves.
    assert_eq!(b.publish(channel, &[b"3"]).first.offset, 4);
    assert_eq!(a.publish_batch(batch.clone()), first);
    assert_eq!(a.publish(channel, &[b"4"]).first.offset, 5);
    // Behind a later one it can only be a copy from a connection that was given up.
    let token = a.submit(Request::Publish(batch));
    assert_eq!(a.answer(token), Err(Refusal::Unknown));
    let mut seen = Vec::new();
    while seen.len() < 5 {
        seen.extend(b.fed(channel).2);
    }
    assert_eq!(seen, bytes(&["0", "1", "2", "3", "4"]));
    b.settle();
    assert!(b.feed.is_empty());
}

fn pages(fleet: &dyn Fleet) {
    let mut a = fleet.node();
    let channel = "pages:1";
    let page = a.read(channel, None, 10, false);
    assert_eq!((page.top.offset, page.records.len()), (0, 0));
    for n in 1..=20u8 {
        let mut batch = a.batch(channel, &[&[n]]);
        batch.keep.size = 10;
        a.publish_batch(batch);
    }
    // Kept: 11 to 20.
    let mut check = |since, limit, reverse, expected: &[u8]| {
        let page = a.read(channel, since, limit, reverse);
        assert_eq!(page.top.offset, 20);
        let seen: Vec<u8> = page.records.iter().map(|record| record[0]).collect();
        assert_eq!(seen, expected, "{since:?} {limit} {reverse}");
        if !expected.is_empty() {
            assert_eq!(page.first, u64::from(expected[0]));
        }
    };
    check(None, 4, false, &[11, 12, 13, 14]);
    check(None, 100, false, &[11, 12, 13, 14, 15, 16, 17, 18, 19, 20]);
    check(Some(17), 100, false, &[18, 19, 20]);
    check(Some(17), 2, false, &[18, 19]);
    check(Some(3), 2, false, &[11, 12]);
    check(Some(20), 5, false, &[]);
    check(Some(90), 5, false, &[]);
    check(None, 0, false, &[]);
    check(None, 3, true, &[20, 19, 18]);
    check(Some(13), 5, true, &[12, 11]);
    check(Some(11), 5, true, &[]);
    check(Some(0), 5, true, &[]);
    check(Some(90), 1, true, &[20]);
    let top = a.read(channel, None, 0, false).top;
    for (since, limit, expected) in [
        (None, 0, &[][..]),
        (None, 2, &[19, 20]),
        (Some(18), 10, &[19, 20]),
        (Some(18), 0, &[]),
        (Some(15), 2, &[19, 20]),
        (Some(20), 10, &[]),
    ] {
        let since = since.map(|offset| Position { offset, epoch: top.epoch });
        let page = a.follow(channel, since, limit);
        assert_eq!(page.top, top);
        assert_eq!(page.records.iter().map(|record| record[0]).collect::<Vec<_>>(), expected);
    }
    let strange = Position { offset: 15, epoch: a.fresh() };
    assert!(a.follow(channel, Some(strange), 10).records.is_empty(), "nothing follows a position of another epoch");
}

/// 200 records of 10 bytes; the top is 200.
fn page_bytes(fleet: &dyn Fleet) {
    const RECORDS: u64 = 200;
    let mut a = fleet.node();
    let channel = "bytes:1";
    let texts: Vec<String> = (1..=RECORDS).map(|n| format!("{n:010}")).collect();
    let records: Vec<&[u8]> = texts.iter().map(|text| text.as_bytes()).collect();
    let mut batch = a.batch(channel, &records);
    batch.keep.size = RECORDS as u32;
    a.publish_batch(batch);
    let top = a.read(channel, None, 0, false).top;
    let numbers = |page: &Page| -> Vec<u64> {
        let number = |record: &[u8]| std::str::from_utf8(record).expect("digits").parse().expect("a number");
        page.records.iter().map(|record| number(record)).collect()
    };
    for bytes_max in [0, 9, 10, 19, 20, 639, 640, 650, 1_280, 1_999, 2_000, 5_000] {
        a.page_bytes_max = bytes_max;
        let fit = u64::from(bytes_max / 10).clamp(1, RECORDS);
        for limit in [1, 64, 65, RECORDS] {
            let count = fit.min(limit);
            let limit = limit as u32;
            let newest: Vec<u64> = (RECORDS - count + 1..=RECORDS).collect();
            let page = a.follow(channel, None, limit);
            assert_eq!((page.first, numbers(&page)), (newest[0], newest.clone()), "{bytes_max} bytes, {limit}");
            let page = a.follow(channel, Some(Position { offset: 0, ..top }), limit);
            assert_eq!((page.first, numbers(&page)), (newest[0], newest.clone()), "{bytes_max} bytes, {limit}");
            let page = a.read(channel, None, limit, true);
            assert_eq!(numbers(&page), newest.into_iter().rev().collect::<Vec<_>>(), "{bytes_max} bytes, {limit}");
            let page = a.read(channel, Some(20), limit, false);
            let upwards = 21..=RECORDS.min(20 + count);
            assert_eq!((page.first, numbers(&page)), (21, upwards.collect()), "{bytes_max} bytes, {limit}");
        }
        let behind = Position { offset: RECORDS - 1, ..top };
        assert_eq!(numbers(&a.follow(channel, Some(behind), 10)), [RECORDS], "one is given, however large");
        assert!(a.follow(channel, Some(top), 10).records.is_empty());
    }
}

fn kept(fleet: &dyn Fleet) {
    let mut a = fleet.node();
    let channel = "kept:1";
    let publish = |a: &mut Node, records: &[&[u8]], keep| {
        let mut batch = a.batch(channel, records);
        batch.keep = keep;
        a.publish_batch(batch).first.offset
    };
    let three = Keep { size: 3, ttl_ms: 60_000 };
    // A batch longer than what is kept.
    assert_eq!(publish(&mut a, &[b"1", b"2", b"3", b"4", b"5"], three), 1);
    let page = a.read(channel, None, 10, false);
    assert_eq!((page.first, page.records), (3, bytes(&["3", "4", "5"])));
    // Nothing is kept: what was is no history any more, because it does not reach the top.
    assert_eq!(publish(&mut a, &[b"6"], Keep { size: 0, ttl_ms: 60_000 }), 6);
    let page = a.read(channel, None, 10, false);
    assert_eq!((page.top.offset, page.records.len()), (6, 0));
    assert_eq!(publish(&mut a, &[b"7"], three), 7);
    let page = a.read(channel, None, 10, false);
    assert_eq!((page.first, page.records), (7, bytes(&["7"])));
    // It ends some time behind the latest publication.
    assert_eq!(publish(&mut a, &[b"8"], Keep { size: 3, ttl_ms: 50 }), 8);
    assert_eq!(a.read(channel, None, 10, false).records.len(), 2);
    fleet.pass_ms(100);
    let page = a.read(channel, None, 10, false);
    assert_eq!((page.top.offset, page.records.len()), (8, 0));
    assert_eq!(publish(&mut a, &[b"9"], three), 9);
    let page = a.read(channel, None, 10, false);
    assert_eq!((page.first, page.records), (9, bytes(&["9"])));
}

fn forget(fleet: &dyn Fleet) {
    let mut a = fleet.node();
    let channel = "forget:1";
    a.forget(channel);
    let epoch = a.publish(channel, &[b"1", b"2"]).first.epoch;
    a.forget(channel);
    let page = a.read(channel, None, 10, false);
    assert_eq!((page.top.offset, page.top.epoch, page.records.len()), (2, epoch, 0));
    assert_eq!(a.publish(channel, &[b"3"]).first.offset, 3);
    let page = a.read(channel, None, 10, false);
    assert_eq!((page.first, page.records), (3, bytes(&["3"])));
}

fn tell(fleet: &dyn Fleet) {
    let (mut a, mut b, mut c) = (fleet.node(), fleet.node(), fleet.node());
    let channel = Subject::Channel("tell:1".into());
    let user = Subject::User("tell:1".into());
    assert_eq!(a.tell(channel.clone(), Audience::Interested, b"nobody"), 0);
    a.follow("tell:1", None, 0);
    b.follow("tell:1", None, 0);
    c.follow_user("tell:1");
    assert_eq!(a.tell(channel.clone(), Audience::Interested, b"both"), 2);
    assert_eq!(a.told(&channel), (*b"both").into());
    assert_eq!(b.told(&channel), (*b"both").into());
    assert_eq!(a.tell(user.clone(), Audience::Interested, b"c"), 1);
    assert_eq!(c.told(&user), (*b"c").into());
    let to = Audience::Node(b.id.generation);
    assert_eq!(a.tell(channel.clone(), to, b"b"), 1);
    assert_eq!(b.told(&channel), (*b"b").into());
    assert_eq!(a.tell(channel.clone(), Audience::Node(u32::MAX), b"gone"), 0);
    // It keeps its place among publications.
    let publish = a.batch("tell:1", &[b"1"]);
    let tokens = [
        a.submit(Request::Publish(publish)),
        a.submit(Request::Tell(ringway_engine::backplane::Tell {
            subject: channel.clone(),
            to: Audience::Interested,
            body: (*b"between").into(),
        })),
    ];
    let publish = a.batch("tell:1", &[b"2"]);
    let third = a.submit(Request::Publish(publish));
    for token in tokens.into_iter().chain([third]) {
        a.answer(token).expect("it happens");
    }
    b.wait_until("three things", |b| b.feed.len() >= 3);
    let is_told = |n: usize| matches!(b.feed[n].what, ringway_engine::backplane::Fed::Told(_));
    assert_eq!([is_told(0), is_told(1), is_told(2)], [false, true, false]);
    c.settle();
    assert!(c.feed.is_empty());
}

fn unfollow(fleet: &dyn Fleet) {
    let (mut a, mut b) = (fleet.node(), fleet.node());
    b.follow("unfollow:1", None, 0);
    b.follow_user("unfollow");
    b.unfollow("unfollow:1");
    let token = b.submit(Request::Unfollow(Subject::User("unfollow".into())));
    assert_eq!(b.answer(token), Ok(Answer::Done));
    a.publish("unfollow:1", &[b"1"]);
    assert_eq!(a.tell(Subject::User("unfollow".into()), Audience::Interested, b""), 0);
    b.settle();
    assert!(b.feed.is_empty(), "{:?}", b.feed);
    // And again.
    assert_eq!(b.follow("unfollow:1", None, 0).top.offset, 1);
    a.publish("unfollow:1", &[b"2"]);
    assert_eq!(b.fed("unfollow:1").1, 1);
}

fn epochs(fleet: &dyn Fleet) {
    let (mut a, mut b) = (fleet.node(), fleet.node());
    let request = a.follow_request("epochs:1", None, 0);
    let Request::Follow(follow) = &request else { unreachable!() };
    let fresh = follow.fresh;
    let token = a.submit(request);
    let Ok(Answer::Page(page)) = a.answer(token) else { panic!("a page") };
    assert_eq!(page.top.epoch, fresh);
    assert_eq!(b.follow("epochs:1", None, 0).top.epoch, fresh);
    assert_eq!(b.publish("epochs:1", &[b"1"]).first.epoch, fresh);
    assert_eq!(b.read("epochs:1", None, 0, false).top.epoch, fresh);
    assert_ne!(b.read("epochs:2", None, 0, false).top.epoch, fresh);
}

fn parked(fleet: &dyn Fleet) {
    let (mut a, mut b, mut c) = (fleet.node(), fleet.node(), fleet.node());
    let user = "parked:1";
    assert_eq!(b.take_parked(user), None);
    for body in [&b"1"[..], b"2", b"3"] {
        assert_eq!(a.park(user, body, 60_000, 3), 0);
    }
    a.park("parked:2", b"another's", 60_000, 3);
    assert_eq!(b.take_parked(user), Some((*b"1").into()), "the oldest first");
    assert_eq!(a.park(user, b"4", 60_000, 3), 0);
    assert_eq!(a.park(user, b"5", 60_000, 3), 1, "the oldest goes");
    // Two nodes that ask at the same time never get the same.
    let ask = |node: &mut Node| node.submit(Request::TakeParked { user: user.into() });
    let tokens: Vec<_> = (0..2).map(|_| (ask(&mut b), ask(&mut c))).collect();
    let mut taken: Vec<Box<[u8]>> = Vec::new();
    for (of_b, of_c) in tokens {
        for answer in [b.answer(of_b), c.answer(of_c)] {
            let Ok(Answer::Parked(one)) = answer else { panic!("{answer:?}") };
            taken.extend(one.map(|one| one.body));
        }
    }
    taken.sort();
    assert_eq!(taken, bytes(&["3", "4", "5"]));
    assert_eq!(c.take_parked("parked:2"), Some((*b"another's").into()));
    a.park(user, b"6", 50, 3);
    fleet.pass_ms(120);
    assert_eq!(b.take_parked(user), None, "its time is over");
}

/// Orders that come behind what is parked go with it; what is parked is replaced where it stands, or taken away.
fn orders_behind_what_is_parked(fleet: &dyn Fleet) {
    let (mut a, mut b) = (fleet.node(), fleet.node());
    let user = "ordered:1";
    let park = |client: &str, body: &[u8], again| Park {
        user: user.into(),
        client: client.into(),
        body: body.into(),
        again,
        alone: true,
        ttl_ms: 60_000,
        entries_max: 2,
    };
    assert_eq!(a.order(user, b"to nobody", 2), Some(0));
    a.follow_user(user);
    assert_eq!(b.order(user, b"not noted", 2), Some(1));
    a.park_as(park("one", b"1", false));
    assert_eq!(b.order(user, b"first", 2), Some(1));
    a.park_as(park("one", b"1 again", true));
    a.park_as(park("other", b"never parked", true));
    assert_eq!(b.order(user, b"second", 2), Some(1));
    assert_eq!(b.order(user, b"third", 2), None, "too many, and nobody is told");
    let taken = b.take_all_parked(user).expect("it was parked");
    assert_eq!((&*taken.client, &*taken.body, taken.alone), ("one", &b"1 again"[..], true));
    assert_eq!(taken.orders, bytes(&["first", "second"]));
    assert_eq!(b.take_all_parked(user), None, "orders alone are nothing");
    // Taking it has registered the node.
    assert_eq!(a.order(user, b"both", 2), Some(2));
    // Each has those that came behind it.
    a.park_as(park("one", b"1", false));
    a.order(user, b"first", 2);
    a.park_as(park("two", b"2", false));
    a.order(user, b"second", 2);
    assert_eq!(a.park_as(park("three", b"3", false)), 1, "the oldest goes, with what is about it alone");
    let taken = b.take_all_parked(user).expect("it was parked");
    assert_eq!((&*taken.client, taken.orders), ("two", bytes(&["second"])));
    a.park_as(park("three", b"", true));
    assert_eq!(b.take_all_parked(user), None, "it was taken away");
}

/// Whether a parked position can only be that of the client that takes it.
fn alone(fleet: &dyn Fleet) {
    let (mut a, mut b) = (fleet.node(), fleet.node());
    let park = |user: &str, client: &str, alone| Park {
        user: user.into(),
        client: client.into(),
        body: (*b"1").into(),
        again: false,
        alone,
        ttl_ms: 60_000,
        entries_max: 3,
    };
    let taken = |node: &mut Node, user: &str| node.take_all_parked(user).expect("it was parked").alone;
    a.follow_user("alone:1");
    a.park_as(park("alone:1", "one", true));
    assert!(taken(&mut b, "alone:1"));
    a.park_as(park("alone:2", "one", false));
    assert!(!taken(&mut b, "alone:2"), "another on the same node");
    b.follow_user("alone:3");
    a.park_as(park("alone:3", "one", true));
    assert!(!taken(&mut b, "alone:3"), "another on another node");
    a.park_as(park("alone:4", "one", true));
    a.park_as(park("alone:4", "two", true));
    assert!(!taken(&mut b, "alone:4") && !taken(&mut b, "alone:4"), "either may be the client's");
}

fn draining(fleet: &dyn Fleet) {
    let (mut a, mut b) = (fleet.node(), fleet.node());
    b.settle();
    assert_eq!(b.draining_left_ms, 0);
    a.draining(30_000);
    b.wait_until("it hears that a drains", |b| b.draining_left_ms > 0);
    assert!(b.draining_left_ms <= 30_000);
    let mut c = fleet.node();
    c.wait_until("it hears that a drains", |c| c.draining_left_ms > 0);
}

fn under_fire(fleet: &dyn Fleet) {
    let mut fire = Fire::new("under_fire", vec![fleet.node(), fleet.node()], vec![fleet.node(), fleet.node()]);
    fire.rounds(600, &mut |_, _| {});
    fire.finish();
    assert_eq!(fire.epoch_changes, 0);
}

fn described(fleet: &dyn Fleet) {
    let (mut a, mut b) = (fleet.node(), fleet.node());
    let said = |nodes: Vec<Described>, of: &Node| {
        let own: Vec<Described> = nodes.into_iter().filter(|node| node.generation == of.id.generation).collect();
        assert!(own.len() <= 1, "each once");
        own.into_iter().next()
    };
    assert_eq!(said(b.nodes(), &a).map(|node| node.body), Some(Box::default()), "it is alive, and has said nothing");
    for body in [&b"first"[..], b"", b"12:se:c\nond\xff"] {
        a.describe(body);
        assert_eq!(said(b.nodes(), &a).map(|node| node.body), Some(body.into()));
    }
    b.describe(b"b");
    fleet.pass_ms(50);
    let seen = said(a.nodes(), &b).expect("it is alive");
    assert_eq!(&*seen.body, b"b");
    assert!(seen.age_ms >= 50, "{}", seen.age_ms);
    // What is a node's goes with it, at once or with its lease.
    let gone = b.id.generation;
    drop(b);
    let until = std::time::Instant::now() + crate::node::PATIENCE;
    while a.nodes().iter().any(|node| node.generation == gone) {
        assert!(std::time::Instant::now() < until, "it is alive for ever");
        fleet.pass_ms(100);
    }
    assert!(said(a.nodes(), &a).is_some());
}

fn between_nodes(fleet: &dyn Fleet) {
    let (mut a, mut b, mut c) = (fleet.node(), fleet.node(), fleet.node());
    let to = Audience::Node(b.id.generation);
    for word in [&b"one"[..], b"two"] {
        assert_eq!(a.tell(Subject::Nodes, to, word), 1);
    }
    assert_eq!((b.told(&Subject::Nodes), b.told(&Subject::Nodes)), ((*b"one").into(), (*b"two").into()));
    assert_eq!(a.tell(Subject::Nodes, Audience::Node(u32::MAX), b"gone"), 0);
    assert_eq!(a.tell(Subject::Nodes, Audience::Interested, b"nobody"), 0);
    for node in [&mut a, &mut b, &mut c] {
        node.settle();
        assert!(node.feed.is_empty());
    }
}

fn connections(fleet: &dyn Fleet) {
    let (mut a, mut b) = (fleet.node(), fleet.node());
    assert_eq!(a.enter("limited", 1, 3), Room::Yes);
    assert_eq!(b.enter("limited", 1, 3), Room::Yes);
    assert_eq!(b.enter("limited", 2, 3), Room::Yes);
    assert_eq!((a.enter("limited", 2, 3), b.enter("limited", 3, 3)), (Room::No, Room::No));
    assert_eq!(b.enter("other", 1, 1), Room::Yes, "others have a limit of their own");
    // Who was refused changes nothing; a number replaces the one before it.
    b.set_connections("limited", 1);
    assert_eq!((a.enter("limited", 2, 3), b.enter("limited", 2, 3)), (Room::Yes, Room::No));
    a.set_connections("limited", 0);
    assert_eq!((b.enter("limited", 3, 3), a.enter("limited", 1, 3)), (Room::Yes, Room::No));
    // Nodes that come later know of those before them, and those of them.
    let mut late = fleet.node();
    assert_eq!(late.enter("limited", 1, 3), Room::No);
    assert_eq!(late.enter("late", 1, 1), Room::Yes);
    assert_eq!(a.enter("late", 1, 1), Room::No);
    // Many at once, each in a user of its own.
    for round in 0..20 {
        let user = format!("race-{round}");
        let mut nodes = [&mut a, &mut b, &mut late];
        let asked: Vec<(usize, u64)> = (1..=3)
            .flat_map(|mine| (0..3).map(move |node| (node, mine)))
            .map(|(node, mine)| {
                let enter = Enter { user: user.as_str().into(), mine, max: 4 };
                (node, nodes[node].submit(Request::Enter(enter)))
            })
            .collect();
        let answers = asked.into_iter().map(|(node, token)| nodes[node].answer(token));
        let granted = answers.filter(|answer| *answer == Ok(Answer::Entered(Room::Yes))).count();
        assert_eq!(granted, 4, "{user}");
    }
    // What a node had goes with its lease.
    drop(b);
    let until = std::time::Instant::now() + crate::node::PATIENCE;
    while a.enter("limited", 3, 3) != Room::Yes {
        assert!(std::time::Instant::now() < until, "it counts for ever");
        fleet.pass_ms(100);
    }
}
