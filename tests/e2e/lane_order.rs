//! Set-up: four shards, and for every conversation the channel's owner, its subscriber and its publisher on three
//! different ones (the kernel places connections; the client id and the metrics say where). Twelve channels are published
//! at full rate by one backend while a connection for each, three at a time, goes through 10,000 rounds of subscribe
//! and unsubscribe in all.
//! Claim: in both encodings, with and without recover, each round sees exactly the offsets behind its answer: none
//! missing, none twice, none before the answer, none after the unsubscribe answer; a recovery is complete or refused for
//! a reason.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use ringway_engine::route;
use ringway_tests::client::{Body, Message};
use ringway_tests::{
    Backend, Client, Encoding, PATIENCE, Publication, Push, Server, SubscribeOptions, eventually, eventually_is,
};

const SHARDS: u16 = 4;
const ROUNDS: u32 = 10_000;
/// Publications that the server keeps per channel, and gives back in one recovery.
const HISTORY: u64 = 200;

#[test]
fn owner_subscriber_and_publisher_apart_keep_every_offset_in_order() {
    let history = format!("namespace.history_size={HISTORY}");
    let server = Arc::new(Server::start(&[
        "--shards",
        &SHARDS.to_string(),
        "--set",
        &history,
        // Connections that wait for their turn answer no pings, and a reader that the machine holds up for a moment is
        // not this test's business.
        "--set",
        "limits.ping_interval_ms=0",
        "--set",
        "limits.outbox_bytes_max=67108864",
    ]));
    let backend = Backend::connect(&server);
    let published_on = shard_of_backend(&server);

    // Every owner but the publisher's shard, from the two shards that are neither, in both encodings. A channel for
    // each, all published in turn: with one channel for all, a debug build would mostly measure its own JSON parser.
    let mut pool = Pool { server: Arc::clone(&server), spare: Vec::new() };
    let mut names = (0..).map(|n| format!("ordered-{n}"));
    let mut subscribers = Vec::new();
    for owner in (0..SHARDS).filter(|owner| *owner != published_on) {
        for shard in (0..SHARDS).filter(|shard| *shard != owner && *shard != published_on) {
            for encoding in [Encoding::Json, Encoding::Protobuf] {
                let channel = names.find(|name| route::owner(route::bucket(name), SHARDS).0 == owner);
                let channel = channel.expect("every shard owns some channels");
                subscribers.push(Subscriber::new(pool.take(shard, encoding), channel));
            }
        }
    }
    assert_eq!(subscribers.len(), 12);
    let channels = subscribers.iter().map(|subscriber| subscriber.channel.clone()).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let publisher = publish_at_full_rate(backend, channels, &stop);
    let start = Instant::now();
    // A few at a time: more readers than cores would only make each round longer.
    let rounds = ROUNDS.div_ceil(subscribers.len() as u32);
    let mut threads: Vec<JoinHandle<Vec<Subscriber>>> = Vec::new();
    while !subscribers.is_empty() {
        let mut turn = subscribers.split_off(subscribers.len().saturating_sub(4));
        threads.push(std::thread::spawn(move || {
            for subscriber in &mut turn {
                (0..rounds).for_each(|round| subscriber.round(round));
            }
            turn
        }));
    }
    let done: Vec<Subscriber> =
        threads.into_iter().flat_map(|thread| thread.join().expect("no hole, none twice")).collect();
    let took = start.elapsed();
    stop.store(true, Ordering::Relaxed);
    let published = publisher.join().expect("the publisher");

    let sum = |count: fn(&Subscriber) -> u64| done.iter().map(count).sum::<u64>();
    let (rounds, seen) = (sum(|s| s.rounds), sum(|s| s.seen));
    let (recovered, refused) = (sum(|s| s.recovered), sum(|s| s.refused));
    println!(
        "{rounds} rounds in {took:?}: {seen} publications seen, {recovered} times recovered, {refused} times not, \
         {published} published meanwhile"
    );
    assert!(rounds >= u64::from(ROUNDS));
    assert!(published > 10_000, "only {published} publications: the channels were not busy");
    for encoding in [Encoding::Json, Encoding::Protobuf] {
        let of_encoding = done.iter().filter(|subscriber| subscriber.client.encoding == encoding);
        assert!(of_encoding.map(|s| s.recovered).sum::<u64>() > 100, "{encoding:?}: recovery was hardly tested");
    }
    assert_eq!(server.metrics().sum("ringway_lane_publications_dropped_total", &[]), 0);
}

/// The shard of the only backend.
fn shard_of_backend(server: &Server) -> u16 {
    let open = |shard: u16| server.metrics().sum("ringway_ingest_connections_open", &[&format!("shard=\"{shard}\"")]);
    eventually_is("backends", 1, || (0..SHARDS).map(open).sum());
    let mut found = None;
    eventually("the backend's shard", || {
        found = (0..SHARDS).find(|shard| open(*shard) == 1);
        found.is_some()
    });
    found.expect("just found")
}

/// Connections by the shard on which the kernel put them.
struct Pool {
    server: Arc<Server>,
    spare: Vec<Client>,
}

impl Pool {
    /// A connection of that shard; others that came up on the way are kept for later.
    fn take(&mut self, shard: u16, encoding: Encoding) -> Client {
        let fits = |client: &Client| client.encoding == encoding && shard_of(client) == shard;
        if let Some(index) = self.spare.iter().position(fits) {
            return self.spare.swap_remove(index);
        }
        // One in four lands right; 200 misses in a row happen once in 10^25 times.
        for _ in 0..200 {
            let client = Client::connect_as(&self.server, encoding);
            if fits(&client) {
                return client;
            }
            self.spare.push(client);
        }
        panic!("no connection came to shard {shard}");
    }
}

/// The third group of a client id is the number of the shard.
fn shard_of(client: &Client) -> u16 {
    let id = &client.connected.client;
    let group = id.split('-').nth(2).unwrap_or_else(|| panic!("client id {id:?}"));
    u16::from_str_radix(group, 16).unwrap_or_else(|_| panic!("client id {id:?}"))
}

/// Publishes to all channels in turn, as fast as the server takes it. A payload is its offset, so that each side can be
/// checked against the other. Gives how many there were.
fn publish_at_full_rate(backend: Backend, channels: Vec<String>, stop: &Arc<AtomicBool>) -> JoinHandle<u64> {
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        let mut offset = 0_u64;
        loop {
            offset += 1;
            let payload = offset.to_string();
            let last: Vec<_> = channels.iter().map(|channel| backend.publish(channel, payload.as_bytes())).collect();
            if stop.load(Ordering::Relaxed) {
                assert!(last.into_iter().all(|pending| pending.ack().offset == offset), "offsets are dense");
                return offset * channels.len() as u64;
            }
        }
    })
}

/// One connection and the channel that it comes back to.
struct Subscriber {
    client: Client,
    channel: String,
    position: Option<(u64, String)>,
    rounds: u64,
    seen: u64,
    recovered: u64,
    refused: u64,
}

impl Subscriber {
    fn new(client: Client, channel: String) -> Self {
        Subscriber { client, channel, position: None, rounds: 0, seen: 0, recovered: 0, refused: 0 }
    }

    /// Subscribe, 0 to 2 publications, unsubscribe; every second time from where the last round ended.
    fn round(&mut self, round: u32) {
        let from = self.position.take().filter(|_| round % 2 == 1);
        let options = SubscribeOptions { recover: from.as_ref().map(|(offset, epoch)| (*offset, epoch.as_str())) };
        let id = self.client.send_subscribe(&self.channel, &options);
        // The answer comes first: nothing is published to who has not joined.
        let answer = match self.next() {
            Message::Reply(of, Body::Subscribe(answer)) if of == id => answer,
            other => panic!("the answer to subscribe {id} was expected, not {other:?}"),
        };
        let mut offset = answer.offset;
        assert_eq!(answer.was_recovering, from.is_some());
        if let Some((had, epoch)) = &from {
            assert_eq!(*epoch, answer.epoch, "the channel was never forgotten");
            if answer.recovered {
                assert_eq!(offset, *had, "recovered from the offset of the request");
                self.recovered += 1;
            } else {
                assert!(offset - had > HISTORY, "{had} to {offset} is within the history, and was not recovered");
                self.refused += 1;
            }
        }
        assert!(answer.recovered || answer.publications.is_empty(), "publications without a recovery");
        for publication in &answer.publications {
            offset = self.follows(offset, publication);
        }
        for _ in 0..round % 3 {
            let message = self.next();
            offset = self.published(offset, &message).unwrap_or_else(|| panic!("a publication, not {message:?}"));
        }
        let id = self.client.send("unsubscribe", &[("channel", &self.channel.clone())]);
        loop {
            let message = self.next();
            match self.published(offset, &message) {
                Some(next) => offset = next,
                None if message == Message::Reply(id, Body::Other("unsubscribe")) => break,
                None => panic!("the answer to unsubscribe {id} or a publication was expected, not {message:?}"),
            }
        }
        self.position = Some((offset, answer.epoch));
        self.rounds += 1;
    }

    /// The offset of a message that is this channel's next publication; none if it is no publication.
    fn published(&mut self, offset: u64, message: &Message) -> Option<u64> {
        let Message::Push(Push::Publication(channel, publication)) = message else { return None };
        assert_eq!(*channel, self.channel);
        Some(self.follows(offset, publication))
    }

    fn follows(&mut self, offset: u64, publication: &Publication) -> u64 {
        assert_eq!(publication.offset, offset + 1, "round {} of {}", self.rounds, self.channel);
        assert_eq!(publication.data, publication.offset.to_string().into_bytes(), "another publication's payload");
        self.seen += 1;
        publication.offset
    }

    fn next(&mut self) -> Message {
        loop {
            match self.client.message(PATIENCE) {
                Some(Message::Ping) => {}
                Some(message) => return message,
                None => panic!("round {}: nothing came; close {:?}", self.rounds, self.client.close),
            }
        }
    }
}
