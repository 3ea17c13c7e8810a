//! The phases of a run: work with faults, rest, what must then be true, everybody's leaving, forgetting.
//!
//! In: a world. Out: a run that holds, or a panic.

use std::collections::{BTreeMap, BTreeSet};

use ringway_engine::call::{ChannelAsk, UserOrder};
use ringway_engine::metrics::Metric;

use crate::client::Client;
use crate::control::{Expected, subscribe_order, unsubscribe_order};
use crate::plan::{FOREVER_MS, USERS};
use crate::rules::Kind;
use crate::socket::PeerEnd;
use crate::world::World;

/// Fair rounds within which everything must come to rest.
const ROUNDS_TO_REST_MAX: u32 = 50_000;
/// Rounds without an event that count as rest.
const QUIET_ROUNDS: u32 = 4;
/// Events that were dropped, all kinds and reasons.
const DROPPED: [Metric; 14] = [
    Metric::EventsFullConnect,
    Metric::EventsFullDisconnect,
    Metric::EventsFullSubscribe,
    Metric::EventsFullUnsubscribe,
    Metric::EventsFullPublish,
    Metric::EventsFullRpc,
    Metric::EventsFullMessage,
    Metric::EventsExpiredConnect,
    Metric::EventsExpiredDisconnect,
    Metric::EventsExpiredSubscribe,
    Metric::EventsExpiredUnsubscribe,
    Metric::EventsExpiredPublish,
    Metric::EventsExpiredRpc,
    Metric::EventsExpiredMessage,
];

/// One run.
pub(crate) fn all(world: &mut World) {
    work(world);
    rest(world);
    if world.plan.numbers.whole {
        if world.dice.one_in(3) {
            pass_time(world);
        }
        gather(world);
        order_about(world);
        end_what_is_asked(world);
        final_publications(world);
        tell_crowds(world);
        compare_members(world);
        compare_events(world);
    } else {
        final_publications(world);
    }
    leave(world);
    forget(world);
    world.ledger.finish();
}

/// Everything at once, faults included.
fn work(world: &mut World) {
    for _ in 0..world.plan.steps {
        match world.dice.below(20) {
            0..13 => {
                let core = world.dice.below(world.plan.shards);
                world.step(core);
            }
            13..17 => client_does(world),
            17..19 => backend_does(world),
            _ if world.plan.numbers.whole && world.dice.one_in(2) => others_do(world),
            _ => world.now_ms += world.dice.below(12) as u64,
        }
    }
}

fn client_does(world: &mut World) {
    let number = world.dice.below(world.clients.len());
    if world.clients[number].link.is_none() {
        return world.connect_client(number);
    }
    let mut what = world.dice.below(100);
    // Where lanes lose publications, clients stay long enough to be told.
    if world.plan.lossy && !world.dice.one_in(8) {
        what = 100;
    }
    // Where slow clients are wanted, every second one hardly reads once it has subscribed.
    let has_something = |world: &World| world.clients[number].link.as_ref().is_some_and(|link| !link.stays.is_empty());
    let is_slow = world.plan.slow && number.is_multiple_of(2) && has_something(world);
    if is_slow && what >= 40 && !world.dice.one_in(10) {
        return;
    }
    let bytes = world.dice.pick(&[1, 10, 200, 5_000, usize::MAX, usize::MAX]);
    world.with_client(number, |client, around| match what {
        0 => client.say_close(around),
        1 => client.cut(PeerEnd::Fin, around),
        2 => client.cut(PeerEnd::Reset, around),
        3..40 => client.act(around),
        _ => {
            client.read(bytes, around);
        }
    });
}

/// The control plane and whoever checks tokens.
fn others_do(world: &mut World) {
    match world.dice.below(16) {
        0..5 => world.with_control(|control, around| control.act(around)),
        5..13 => {
            world.give_verdict();
        }
        13 if world.plan.reloads && world.dice.one_in(10) => world.reload(),
        _ => {
            world.take_answers();
        }
    }
}

fn backend_does(world: &mut World) {
    let number = world.dice.below(world.backends.len());
    if world.backends[number].socket.is_none() {
        return world.connect_backend(number);
    }
    let what = world.dice.below(400);
    world.with_backend(number, |backend, around| match what {
        0 => backend.cut(around),
        1..200 => backend.act(around),
        200..280 if around.plan.events => {
            backend.decide(false, around);
        }
        _ => {
            backend.read(usize::MAX, around);
        }
    });
}

/// No new work and no faults: everything under way must come to its end.
fn rest(world: &mut World) {
    rest_but(world, true);
}

/// The same, but verdicts about tokens that are under way may stay so.
fn rest_but(world: &mut World, verdicts: bool) {
    world.assert_bounds();
    let mut quiet = 0;
    for round in 0..ROUNDS_TO_REST_MAX {
        let mut active = false;
        for core in 0..world.plan.shards {
            active |= world.fair_turn(core);
        }
        for number in 0..world.clients.len() {
            active |= world.with_client(number, |client, around| client.read(usize::MAX, around)) == Some(true);
        }
        for number in 0..world.backends.len() {
            let owes = !world.backends[number].pending.is_empty() || (world.plan.events && !world.left);
            if world.backends[number].socket.is_none() && owes {
                world.connect_backend(number);
            }
            active |= world.with_backend(number, |backend, around| backend.read(usize::MAX, around)) == Some(true);
            active |= world.with_backend(number, |backend, around| backend.decide(true, around)) == Some(true);
        }
        while verdicts && world.give_verdict() {
            active = true;
        }
        active |= world.take_answers();
        // So slowly that nobody's deadline comes while a long backlog goes out.
        world.now_ms += u64::from(round % 16 == 0);
        quiet = if active || world.is_busy() { 0 } else { quiet + 1 };
        if quiet == QUIET_ROUNDS {
            return;
        }
    }
    panic!("no rest after {ROUNDS_TO_REST_MAX} rounds: the shards hold each other up");
}

/// One more publication per channel shows whether the one before was lost at the end of somebody's stay.
fn final_publications(world: &mut World) {
    if world.backends[0].socket.is_none() {
        world.connect_backend(0);
        rest(world);
    }
    for channel in 0..world.plan.channels.len() {
        world.with_backend(0, |backend, around| backend.publish_to(channel, around));
        rest(world);
    }
    for client in &world.clients {
        client.assert_up_to_date(&world.plan, &world.ledger, world.now_ms);
    }
    world.control.assert_answered();
    let stays = stays(world);
    assert_eq!(world.total(Metric::SubscriptionsOpen), stays as u64, "subscriptions, and what clients believe");
    let (skipped, dropped) = (
        world.ledger.counts.tally.get("skipped").copied().unwrap_or(0),
        world.total(Metric::OutboxDroppedOldest) + world.total(Metric::OutboxConflated),
    );
    assert!(skipped <= dropped, "{skipped} publications were not seen, {dropped} counted as dropped");
    for backend in &world.backends {
        assert!(backend.pending.is_empty(), "publishes without an answer: {:?}", backend.pending);
    }
}

/// Time passes in which tokens expire.
fn pass_time(world: &mut World) {
    for _ in 0..40 {
        world.now_ms += 1_000;
        rest(world);
    }
}

/// Changes of a crowd wait for the end of their interval: time passes until one goes by in which nobody came or went.
fn tell_crowds(world: &mut World) {
    loop {
        let before = stays(world);
        world.now_ms += 150;
        rest(world);
        if stays(world) == before {
            return;
        }
    }
}

/// Subscriptions that clients believe in.
fn stays(world: &World) -> usize {
    world.clients.iter().filter_map(|client| client.link.as_ref()).map(|link| link.stays.len()).sum()
}

/// Everybody comes, and many go again: channels with members have some.
fn gather(world: &mut World) {
    for number in 0..world.clients.len() {
        if world.clients[number].link.is_none() {
            world.connect_client(number);
        }
    }
    rest(world);
    for joins in [true, false] {
        for number in 0..world.clients.len() {
            world.with_client(number, |client, around| client.crowd(joins, around));
        }
        rest(world);
    }
}

/// Orders about a user, one after the other: each is carried out on all its connections, and on no others.
fn order_about(world: &mut World) {
    let user = world.dice.pick(&USERS[..USERS.len() - 1]);
    let channel = world.dice.below(world.plan.channels.len());
    if matches!(world.plan.channels[channel].kind, Kind::Fleeting | Kind::Late) {
        return;
    }
    let name = world.plan.channels[channel].name.clone();
    // (the connection, whether it has the channel) of all its clients that are connected.
    let states = |world: &World| -> Vec<(u64, bool)> {
        let links = world.clients.iter().filter(|client| client.plan.user == user).filter_map(|c| c.link.as_ref());
        let links = links.filter(|link| link.client_id.is_some() && !link.said_close);
        links.map(|link| (link.number, link.stays.contains_key(&channel))).collect()
    };
    world.with_control(|control, around| {
        let order = subscribe_order(channel, around);
        control.order(user, order, around)
    });
    rest(world);
    // What a lossy lane loses ends subscriptions again.
    if !world.plan.lossy {
        let states = states(world);
        assert!(states.iter().all(|(_, has)| *has), "channel {channel} was ordered for {user}: {states:?}");
        world.ledger.counts.note("subscribed by order at rest", states.len() as u64);
    }
    world.with_control(|control, around| control.order(user, unsubscribe_order(&name), around));
    rest(world);
    let after = states(world);
    assert!(after.iter().all(|(_, has)| !has), "channel {channel} was ended for {user}: {after:?}");
    if world.dice.one_in(3) {
        let order = UserOrder::Disconnect { code: 4001, reason: "go".into(), whitelist: Vec::new() };
        world.with_control(|control, around| control.order(user, order, around));
        rest(world);
        assert_eq!(states(world), [], "{user} was disconnected");
        world.ledger.counts.note("disconnected by order at rest", after.len() as u64);
    }
}

/// A subscription is ended while its token is being checked: it must not come about.
fn end_what_is_asked(world: &mut World) {
    let channels = 0..world.plan.channels.len();
    let tokens: Vec<_> = channels.filter(|number| world.plan.channels[*number].kind == Kind::Token).collect();
    let fits = |client: &Client, channel: usize| {
        let link = client.link.as_ref().filter(|link| link.client_id.is_some() && !link.said_close);
        !client.plan.user.is_empty() && link.is_some_and(|link| !link.stays.contains_key(&channel))
    };
    let found = tokens.into_iter().find_map(|channel| {
        let number = world.clients.iter().position(|client| fits(client, channel))?;
        Some((channel, number))
    });
    let Some((channel, number)) = found else { return };
    let (user, name) = (world.clients[number].plan.user, world.plan.channels[channel].name.clone());
    world.with_client(number, |client, around| client.subscribe_later(channel, around));
    rest_but(world, false);
    world.with_control(|control, around| control.order(user, unsubscribe_order(&name), around));
    rest_but(world, false);
    rest(world);
    if let Some(link) = &world.clients[number].link {
        assert!(!link.stays.contains_key(&channel), "channel {channel} was ended before it was granted: {link:?}");
        world.ledger.counts.note("ended while asked", 1);
    }
}

/// Nothing is under way: presence is what clients believe, and so is what each watcher was told.
fn compare_members(world: &mut World) {
    for channel in 0..world.plan.channels.len() {
        let (kind, presence) = (world.plan.channels[channel].kind, world.plan.channels[channel].rules.presence);
        if kind == Kind::Late && world.reloads > 0 {
            for ask in [ChannelAsk::Presence, ChannelAsk::PresenceStats] {
                world.with_control(|control, around| control.ask(channel, ask, Expected::Something, around.plan));
            }
        }
        if !presence || kind == Kind::Late {
            continue;
        }
        let links = || world.clients.iter().filter_map(|client| Some((client, client.link.as_ref()?)));
        let there = links().filter(|(_, link)| link.stays.contains_key(&channel));
        let there: BTreeSet<_> = there
            .map(|(client, link)| (link.client_id.clone().expect("it is in"), client.plan.user.to_owned()))
            .collect();
        let clients: BTreeSet<_> = there.iter().map(|(client, _)| client.clone()).collect();
        let (mut compared, mut summaries) = (0, 0);
        for (_, link) in links() {
            let Some(roster) = link.stays.get(&channel).and_then(|stay| stay.roster.as_ref()) else { continue };
            let Some(members) = roster.members() else {
                // Where outboxes are small the answer may not have fit.
                let may_not_know = roster.is_partial() || world.plan.slow;
                assert!(may_not_know, "a watcher of channel {channel} never learned who is there");
                if roster.is_partial() && kind == Kind::Big && world.plan.numbers.coalesce {
                    roster.assert_last_is_true(&clients);
                    summaries += 1;
                }
                continue;
            };
            assert_eq!(*members, clients, "what {:?} was told of channel {channel}", link.client_id);
            compared += 1;
        }
        world.ledger.counts.note("crowds compared", summaries);
        world.ledger.counts.note("rosters compared", compared);
        for ask in [ChannelAsk::Presence, ChannelAsk::PresenceStats] {
            let expected = Expected::Members(there.clone());
            world.with_control(|control, around| control.ask(channel, ask, expected, around.plan));
        }
    }
    rest(world);
    world.control.assert_answered();
}

/// Nothing is under way: backends have heard of all that clients did.
fn compare_events(world: &mut World) {
    let links = world.clients.iter().filter_map(|client| client.link.as_ref());
    let sent: BTreeMap<_, _> = links.filter_map(|link| Some((link.client_id.clone()?, link.sent))).collect();
    let all = dropped(world) == 0;
    world.hearing.assert_complete(&sent, all);
    assert_eq!(world.total(Metric::EventsPending), 0, "events that nobody has acknowledged");
}

fn dropped(world: &mut World) -> u64 {
    DROPPED.into_iter().map(|metric| world.total(metric)).sum()
}

/// Every peer goes, each in its own way, or the shards end them all.
fn leave(world: &mut World) {
    let shutdown = world.dice.one_in(3);
    // Backends that hear of clients stay until the last one has gone.
    let events = world.plan.events && !shutdown;
    if !events {
        backends_leave(world, shutdown);
    }
    if shutdown {
        world.shut_down();
    } else {
        for number in 0..world.clients.len() {
            let how = world.dice.below(3);
            world.with_client(number, |client, around| match how {
                0 => client.say_close(around),
                1 => client.cut(PeerEnd::Fin, around),
                _ => client.cut(PeerEnd::Reset, around),
            });
        }
    }
    rest(world);
    assert!(world.clients.iter().all(|client| client.link.is_none()), "a client was not let go");
    if world.plan.numbers.whole {
        compare_members(world);
    }
    if events {
        if dropped(world) == 0 {
            world.hearing.assert_complete(&BTreeMap::new(), true);
            world.hearing.assert_lives_are_whole("token:", world.plan.connect_asked);
            world.ledger.counts.note("whole lives", 1);
        }
        backends_leave(world, false);
        rest(world);
    }
    let (heard, again) = (world.hearing.heard, world.hearing.again);
    world.ledger.counts.note("events", heard);
    world.ledger.counts.note("events again", again);
    for (what, metric) in [("asks timed out", Metric::AsksTimedOut), ("asks busy", Metric::AsksBusy)] {
        let times = world.total(metric);
        world.ledger.counts.note(what, times);
    }
}

fn backends_leave(world: &mut World, shutdown: bool) {
    world.left = true;
    for number in 0..world.backends.len() {
        world.with_backend(
            number,
            |backend, around| {
                if shutdown { backend.expect_end() } else { backend.say_goodbye(around) }
            },
        );
    }
}

/// Time passes until every channel is forgotten.
fn forget(world: &mut World) {
    world.now_ms += 2 * FOREVER_MS;
    for _ in 0..20 {
        world.now_ms += 1_000_000;
        rest(world);
    }
    world.assert_empty();
}
