//! The phases of a run of several nodes: work with faults, their end, what must then be true, everybody's leaving.
//!
//! In: a world. Out: a run that holds, or a panic.

use std::collections::BTreeSet;

use ringway_engine::call::UserOrder;

use crate::socket::PeerEnd;

use super::engine::LEASE_MS;
use super::node::{Leaving, Turn};
use super::plan::{IDLE_MS, Kind};
use super::world::{Beside, World};

/// Rounds within which everything under way must come to its end while no time passes.
const ROUNDS_MAX: u32 = 3_000;
/// A step of the clock while everything comes to rest: a tick of the shards.
const TICK_MS: u64 = 125;
/// Time within which all nodes must be up, everybody be connected and have all.
const CONVERGE_MS: u64 = 40_000;
/// Further time in which nothing may change what is true at rest: interest is looked at again.
const REST_MS: u64 = 2_500;

/// One run.
pub(crate) fn all(world: &mut World) {
    work(world);
    converge(world);
    compare_members(world);
    order_about(world);
    order_on_the_way(world);
    final_publications(world);
    leave(world);
    world.truth.finish();
}

/// Everything at once, faults included.
fn work(world: &mut World) {
    for _ in 0..world.plan.steps {
        match world.dice.below(100) {
            0..42 => a_turn(world),
            42..66 => between_node_and_engine(world),
            66..82 => client_does(world),
            82..88 => backend_does(world),
            88..91 => order_something(world),
            91..97 => {
                let ms = world.dice.pick(&[1, 10, 40, 130]);
                pass(world, ms);
            }
            _ => fault(world),
        }
    }
}

fn any_node(world: &mut World) -> usize {
    world.dice.below(world.nodes.len())
}

fn a_turn(world: &mut World) {
    let name = any_node(world);
    let core = world.dice.below(world.plan.nodes[name].shards);
    if world.nodes[name].as_ref().is_some_and(|node| !node.is_frozen) {
        world.turn(name, core, &Turn::Any);
    }
}

/// Requests, answers and what is fed, each a part of its way.
fn between_node_and_engine(world: &mut World) {
    let name = any_node(world);
    let (what, times) = (world.dice.below(6), world.dice.pick(&[1, 1, 3, 20]));
    let events_max = world.dice.pick(&[1, 3, 1_000]);
    let core = world.dice.below(world.plan.nodes[name].shards);
    world.with_node(name, |node, beside| {
        for _ in 0..times {
            let some = match what {
                // The process stands still, and what it has written arrives all the same.
                0 | 1 => node.hop.execute(beside.engine, beside.truth),
                _ if node.is_frozen => false,
                2 => node.give_hop(&mut beside.wires),
                3 => node.hop.hear_reply(),
                4 => node.hop.hear_feed(beside.engine),
                _ => node.hop_gives(core, events_max),
            };
            if !some {
                return;
            }
            beside.wires.trace.note("between", [name as u64, what as u64, core as u64]);
        }
    });
    if what == 5 && world.plan.faults.failovers && world.dice.one_in(4) {
        world.engine.replicate();
    }
}

fn client_does(world: &mut World) {
    let number = world.dice.below(world.clients.len());
    if world.clients[number].link.is_none() {
        return world.connect_client(number);
    }
    let what = world.dice.below(100);
    let bytes = world.dice.pick(&[1, 10, 200, usize::MAX, usize::MAX, usize::MAX]);
    world.with_client(number, |client, around| match what {
        0 => client.say_close(around),
        1 => client.cut(PeerEnd::Fin, around),
        2 => client.cut(PeerEnd::Reset, around),
        3..30 => client.act(around),
        _ => {
            client.read(bytes, around);
        }
    });
    world.assert_limit();
}

fn backend_does(world: &mut World) {
    let number = world.dice.below(world.backends.len());
    if world.backends[number].link.is_none() {
        return world.connect_backend(number);
    }
    let what = world.dice.below(60);
    world.with_backend(number, |backend, around| match what {
        0 => backend.cut(around),
        1..25 => backend.act(around),
        _ => {
            backend.read(usize::MAX, around);
        }
    });
}

fn order_something(world: &mut World) {
    let client = world.dice.below(world.plan.residents());
    let order = match world.dice.below(8) {
        0..5 => world.subscribe_order(),
        5..7 => world.unsubscribe_order(),
        _ => UserOrder::Disconnect { code: 4001, reason: "go".into(), whitelist: Vec::new() },
    };
    world.order(client, order);
    world.take_answers();
}

/// Time passes, nodes that are down come back, those that are left go on with it.
fn pass(world: &mut World, ms: u64) {
    world.pass(ms);
    for name in 0..world.nodes.len() {
        world.go_on_leaving(name);
        if world.nodes[name].is_none() && world.dice.one_in(8) {
            world.start(name);
        }
        let opens = world.dice.one_in(4);
        world.with_node(name, |node, beside| {
            if opens && !node.is_frozen {
                node.hop.open(beside.engine, beside.truth);
            }
        });
    }
}

fn fault(world: &mut World) {
    let (name, faults) = (any_node(world), world.plan.faults);
    let others = world.nodes.iter().flatten().filter(|node| node.leaving == Leaving::Not).count();
    match world.dice.below(30) {
        0..6 if faults.cuts => world.cut(name),
        6..10 if faults.cuts => {
            world.late_arrives();
        }
        10..12 if faults.kills => world.kill(name),
        12..16 if faults.drains && others > 1 => drain(world, name),
        16..22 if faults.freezes => {
            world.truth.counts.note("freezes", 1);
            world.with_node(name, |node, _| node.is_frozen = !node.is_frozen);
            if world.dice.one_in(2) {
                pass(world, LEASE_MS);
            }
        }
        22 if faults.empties => {
            world.truth.counts.note("engines emptied", 1);
            world.engine.restart_empty();
            world.engine_went();
        }
        23 if faults.failovers => {
            world.truth.counts.note("failovers", 1);
            world.engine.fail_over();
            world.engine_went();
        }
        24..27 if faults.leaks => {
            let pick = world.dice.below(100);
            world.engine.forget_interest(pick);
            let core = world.dice.below(world.plan.nodes[name].shards);
            let dropped = world.with_node(name, |node, _| node.hop.drop_feed(core));
            world.truth.counts.note("fed and dropped", dropped.unwrap_or(0) as u64);
        }
        _ => {}
    }
}

fn drain(world: &mut World, name: usize) {
    let (now_ms, at_once) = (world.now_ms, world.dice.one_in(8));
    world.with_node(name, |node, _| {
        if !node.is_frozen && node.leaving == Leaving::Not {
            node.leave(if at_once { Leaving::AtOnce } else { Leaving::Clients }, now_ms);
        }
    });
}

/// While no time passes: everything under way comes to its end.
fn settle(world: &mut World) {
    for _ in 0..ROUNDS_MAX {
        let before = world.trace.digest();
        let mut active = false;
        for name in 0..world.nodes.len() {
            let shards = world.plan.nodes[name].shards;
            (0..shards).for_each(|core| world.turn(name, core, &Turn::Fair));
            active |= world.with_node(name, |node, Beside { wires, engine, truth }| {
                let mut some = false;
                while node.give_hop(wires) {
                    some = true;
                }
                while node.hop.execute(engine, truth) || node.hop.hear_feed(engine) || node.hop.hear_reply() {
                    some = true;
                }
                for core in 0..shards {
                    some |= node.hop_gives(core, usize::MAX);
                }
                some || node.has_work()
            }) == Some(true);
        }
        for number in 0..world.clients.len() {
            active |= world.with_client(number, |client, around| client.read(usize::MAX, around)) == Some(true);
        }
        world.assert_limit();
        for number in 0..world.backends.len() {
            active |= world.with_backend(number, |backend, around| backend.read(usize::MAX, around)) == Some(true);
        }
        active |= world.take_answers();
        if !active && before == world.trace.digest() {
            return;
        }
    }
    panic!("no end after {ROUNDS_MAX} rounds: something goes round in circles");
}

/// Time passes without faults; everybody does what brings it further, if `all` pursue it.
fn rest(world: &mut World, ms: u64, all: bool) {
    for _ in 0..ms.div_ceil(TICK_MS) {
        world.pass(TICK_MS);
        for name in 0..world.nodes.len() {
            world.go_on_leaving(name);
            if all {
                world.start(name);
            }
            world.with_node(name, |node, beside| node.hop.open(beside.engine, beside.truth));
        }
        for number in (0..world.clients.len()).filter(|_| all) {
            if world.clients[number].link.is_none() {
                world.connect_client(number);
            }
            world.with_client(number, |client, around| client.pursue(around));
        }
        for number in (0..world.backends.len()).filter(|_| all) {
            if world.backends[number].link.is_none() {
                world.connect_backend(number);
            }
            world.with_backend(number, |backend, around| backend.pursue(around));
        }
        settle(world);
    }
}

/// Faults have ended: within a time everybody is connected and has all.
fn converge(world: &mut World) {
    while world.late_arrives() {}
    world.nodes.iter_mut().flatten().for_each(|node| node.is_frozen = false);
    for client in &mut world.clients {
        let kinds = world.plan.channels.iter().map(|channel| channel.kind != Kind::Ordered);
        client.wants = kinds.collect();
    }
    for _ in 0..CONVERGE_MS / 1_000 {
        rest(world, 1_000, true);
        let up = world.nodes.iter().flatten().filter(|node| node.leaving == Leaving::Not).count();
        if up == world.nodes.len() && world.backends.iter().all(super::backend::Backend::is_sure) {
            break;
        }
    }
    rest(world, REST_MS, true);
    world.assert_at_rest();
    world.assert_room_is_used();
    assert!(world.backends.iter().all(super::backend::Backend::is_sure), "publishes without an answer");
}

/// Who is there, as every node says it, is who is connected.
fn compare_members(world: &mut World) {
    for channel in 0..world.plan.channels.len() {
        if world.plan.channels[channel].kind != Kind::Crowd {
            continue;
        }
        for number in 0..world.clients.len() {
            world.with_client(number, |client, around| client.ask_presence(channel, around));
        }
        rest(world, TICK_MS, true);
        let links: Vec<_> = world.clients.iter().filter_map(|client| client.link.as_ref()).collect();
        let there: BTreeSet<String> = links
            .iter()
            .filter(|link| link.stays.contains_key(&channel))
            .filter_map(|link| link.client_id.clone())
            .collect();
        for link in &links {
            assert_eq!(link.members.get(&channel), Some(&there), "members of channel {channel}");
        }
        let compared = links.len() as u64;
        world.truth.counts.note("members compared", compared);
    }
}

/// Orders about each client, wherever it is connected: each is carried out.
fn order_about(world: &mut World) {
    let ordered = world.plan.ordered();
    let client = world.dice.below(world.plan.residents());
    let has = |world: &World| {
        let link = world.clients[client].link.as_ref();
        link.is_some_and(|link| link.stays.contains_key(&ordered))
    };
    let order = world.subscribe_order();
    world.order(client, order);
    rest(world, TICK_MS, true);
    assert!(has(world), "client {client} was to be subscribed by order");
    world.truth.counts.note("subscribed by order at rest", 1);
    if world.dice.one_in(2) {
        let order = world.unsubscribe_order();
        world.order(client, order);
        rest(world, TICK_MS, true);
        assert!(!has(world), "client {client} was to be unsubscribed by order");
    }
}

/// Orders while a client goes from a node that is left to another: it has nothing then that the last of them took away.
fn order_on_the_way(world: &mut World) {
    let faults = world.plan.faults;
    if !faults.drains || !faults.spare_the_engine() {
        return;
    }
    let (ordered, client) = (world.plan.ordered(), world.dice.below(world.plan.residents()));
    let info = Some((*br#"{"on":"the way"}"#).into());
    for order in [UserOrder::Refresh { expired: false, expires_in_ms: None, info }, world.subscribe_order()] {
        world.order(client, order);
        rest(world, TICK_MS, true);
    }
    let Some(name) = world.clients[client].link.as_ref().map(|link| link.node) else { return };
    let unsure = ["parked late", "not parked", "forced out"];
    let count = |world: &World| unsure.map(|what| world.truth.counts.tally.get(what).copied().unwrap_or(0));
    let (before, refused) = (count(world), world.refused_orders);
    let now_ms = world.now_ms;
    world.with_node(name, |node, _| node.leave(Leaving::Clients, now_ms));
    let mut stays = true;
    let mut was_away = false;
    for _ in 0..world.dice.between(1, 3) {
        for _ in 0..world.dice.pick(&[20, 200, 800]) {
            on_the_way(world);
        }
        was_away |= world.clients[client].link.as_ref().is_none_or(|link| link.node != name);
        stays = world.dice.one_in(2);
        let order = if stays { world.subscribe_order() } else { world.unsubscribe_order() };
        world.order(client, order);
        for _ in 0..20_000 {
            if !world.has_open_orders() {
                break;
            }
            on_the_way(world);
            world.take_answers();
        }
    }
    for _ in 0..80 {
        rest(world, 250, true);
        let is_back =
            world.clients[client].link.as_ref().is_some_and(|link| link.node != name || world.nodes[name].is_some());
        if is_back && world.nodes.iter().flatten().all(|node| node.leaving == Leaving::Not) {
            break;
        }
    }
    rest(world, REST_MS, true);
    let link = world.clients[client].link.as_ref().expect("everybody is connected");
    let is_sure = count(world) == before
        && world.refused_orders == refused
        && link.knows_draining
        && world.clients[client].is_sure_of_parked();
    if is_sure {
        let has = link.stays.contains_key(&ordered);
        // A known gap (DECISIONS.md, "An order counts for what is on its way"), met by seeds 31, 730 and 3966: few may be lost.
        world.truth.counts.note("orders lost on the way", u64::from(stays != has));
        world.truth.counts.note("orders on the way", 1);
        world.truth.counts.note("orders with nobody there", u64::from(was_away));
    }
}

/// A step of everybody, without faults.
fn on_the_way(world: &mut World) {
    match world.dice.below(100) {
        0..40 => a_turn(world),
        40..70 => between_node_and_engine(world),
        70..92 => {
            let number = world.dice.below(world.clients.len());
            if world.clients[number].link.is_none() {
                return world.connect_client(number);
            }
            world.with_client(number, |client, around| client.read(usize::MAX, around));
        }
        _ => {
            world.pass(20);
            (0..world.nodes.len()).for_each(|name| world.go_on_leaving(name));
        }
    }
}

/// One more publication per channel shows whether the one before was lost.
fn final_publications(world: &mut World) {
    for _ in 0..2 {
        for channel in 0..world.plan.channels.len() {
            world.with_backend(0, |backend, around| backend.publish(channel, around));
            settle(world);
        }
    }
    rest(world, TICK_MS, true);
    world.assert_at_rest();
    let engine = &world.engine;
    let top = |channel: &str| engine.position(channel).map(|top| (top.offset, top.epoch.to_string()));
    for client in &world.clients {
        client.assert_up_to_date(&world.plan, top);
    }
}

/// Everybody goes; then nothing is left, on no node and for no living one in the engine.
fn leave(world: &mut World) {
    for number in 0..world.clients.len() {
        let how = world.dice.below(3);
        world.with_client(number, |client, around| match how {
            0 => client.say_close(around),
            1 => client.cut(PeerEnd::Fin, around),
            _ => client.cut(PeerEnd::Reset, around),
        });
    }
    // Histories of channels are kept for as long as the plan says; here for ever.
    rest(world, u64::from(world.plan.limits.interest_linger_ms) + IDLE_MS + REST_MS, false);
    assert!(world.clients.iter().all(|client| client.link.is_none()), "a client was not let go");
    // Interest that was given back while the engine could not be reached ends when something is said.
    for channel in 0..world.plan.channels.len() {
        world.with_backend(0, |backend, around| backend.publish(channel, around));
        settle(world);
    }
    for client in 0..world.clients.len() {
        // A node takes no notice of what it says itself.
        for name in [0, 1] {
            let order = world.unsubscribe_order();
            world.order_at(name, client, order);
            settle(world);
        }
    }
    for number in 0..world.backends.len() {
        world.with_backend(number, |backend, around| backend.leave(around));
    }
    rest(world, IDLE_MS + REST_MS, false);
    let connections = world.engine.living_connections();
    assert!(connections.is_empty(), "connections that nobody has: {connections:?}");
    let interest = world.engine.living_interest();
    assert!(interest.is_empty(), "interest that nobody has: {interest:?}");
    for name in 0..world.nodes.len() {
        let Some(mut node) = world.nodes[name].take() else { continue };
        node.assert_empty(name);
        world.count_metrics(&mut node);
    }
}
