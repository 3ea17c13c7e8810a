//! Set-up: more shards than cores; connections land on any of them, channels are owned by any of them, backends
//! publish through any of them.
//! Claim: wherever owner, subscriber and publisher are, every subscriber sees dense offsets in order; a subscribe
//! answer and the publications behind it never leave a hole or an overlap, while the channel is published at full rate.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringway_tests::client::{Body, Message};
use ringway_tests::{Backend, Client, Encoding, PATIENCE, Push, Server, SubscribeOptions};

#[test]
fn every_pair_of_shards_keeps_order() {
    const CHANNELS: usize = 64;
    const ROUNDS: u64 = 200;
    let server = Server::start(&["--shards", "7"]);
    let channels: Vec<String> = (0..CHANNELS).map(|n| format!("many-{n}")).collect();
    let mut subscribers: Vec<Client> = (0..24)
        .map(|n| Client::connect_as(&server, if n % 2 == 0 { Encoding::Json } else { Encoding::Protobuf }))
        .collect();
    for subscriber in &mut subscribers {
        for channel in &channels {
            subscriber.subscribe(channel);
        }
    }
    let publisher = {
        let backends = [Backend::connect(&server), Backend::connect(&server)];
        let channels = channels.clone();
        std::thread::spawn(move || {
            let mut last = Vec::new();
            for round in 1..=ROUNDS {
                last.clear();
                for (n, channel) in channels.iter().enumerate() {
                    // A channel always goes through the same backend: order is promised per connection.
                    last.push(backends[n % 2].publish(channel, round.to_string().as_bytes()));
                }
            }
            for pending in last {
                assert_eq!(pending.ack().offset, ROUNDS);
            }
        })
    };
    for subscriber in &mut subscribers {
        let mut seen = [0_u64; CHANNELS];
        for _ in 0..ROUNDS * CHANNELS as u64 {
            let Push::Publication(channel, publication) = subscriber.push() else { panic!("a publication") };
            let n: usize = channel["many-".len()..].parse().expect("one of the channels");
            seen[n] += 1;
            assert_eq!(publication.offset, seen[n], "{channel}");
            assert_eq!(publication.data, seen[n].to_string().into_bytes(), "{channel}");
        }
        assert!(seen.iter().all(|count| *count == ROUNDS));
    }
    publisher.join().expect("the publisher");
}

/// What one subscriber has to keep track of from round to round.
struct Rounds {
    client: Client,
    channel: String,
    position: Option<(u64, String)>,
    recovered: u32,
}

impl Rounds {
    fn next(&mut self) -> Message {
        match self.client.message(PATIENCE) {
            Some(Message::Ping) => self.next(),
            Some(message) => message,
            None => panic!("nothing came; close {:?}", self.client.close),
        }
    }

    /// Subscribe, some publications, unsubscribe; every offset must follow the one before.
    fn round(&mut self, recover: bool, publications: u32) {
        let position = self.position.take().filter(|_| recover);
        let options = SubscribeOptions { recover: position.as_ref().map(|(offset, epoch)| (*offset, epoch.as_str())) };
        let id = self.client.send_subscribe(&self.channel, &options);
        let Message::Reply(of, Body::Subscribe(answer)) = self.next() else {
            panic!("a push of a channel came before its subscribe answer")
        };
        assert_eq!(of, id);
        let mut offset = answer.offset;
        if answer.recovered {
            self.recovered += 1;
            assert_eq!(Some(offset), position.map(|(offset, _)| offset), "recovered from the offset of the request");
        }
        for publication in &answer.publications {
            assert_eq!(publication.offset, offset + 1, "in the subscribe answer");
            offset += 1;
        }
        for _ in 0..publications {
            offset = self.follow(offset);
        }
        let id = self.client.send("unsubscribe", &[("channel", &self.channel.clone())]);
        loop {
            match self.next() {
                Message::Reply(of, Body::Other("unsubscribe")) if of == id => break,
                Message::Push(Push::Publication(_, publication)) => {
                    assert_eq!(publication.offset, offset + 1, "before the unsubscribe answer");
                    offset += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        self.position = Some((offset, answer.epoch));
    }

    fn follow(&mut self, offset: u64) -> u64 {
        match self.next() {
            Message::Push(Push::Publication(channel, publication)) => {
                assert_eq!((channel.as_str(), publication.offset), (self.channel.as_str(), offset + 1));
                publication.offset
            }
            other => panic!("a publication was expected, not {other:?}"),
        }
    }
}

#[test]
fn ten_thousand_subscribes_under_full_rate_leave_no_hole() {
    const SUBSCRIBERS: u32 = 8;
    const ROUNDS: u32 = 10_000 / SUBSCRIBERS;
    let server = Arc::new(Server::start(&["--shards", "4"]));
    let stop = Arc::new(AtomicBool::new(false));
    let channels: Vec<String> = (0..4).map(|n| format!("busy-{n}")).collect();
    let publisher = {
        let (server, stop, channels) = (Arc::clone(&server), Arc::clone(&stop), channels.clone());
        std::thread::spawn(move || {
            let backend = Backend::connect(&server);
            let mut rounds = 0_u64;
            loop {
                let pending: Vec<_> = channels.iter().map(|channel| backend.publish(channel, b"1")).collect();
                rounds += 1;
                if stop.load(Ordering::Relaxed) {
                    assert!(pending.into_iter().all(|pending| pending.ack().offset == rounds));
                    return rounds * channels.len() as u64;
                }
            }
        })
    };
    let start = Instant::now();
    let subscribers: Vec<_> = (0..SUBSCRIBERS)
        .map(|n| {
            let encoding = if n % 2 == 0 { Encoding::Json } else { Encoding::Protobuf };
            let channel = channels[n as usize % channels.len()].clone();
            let mut rounds =
                Rounds { client: Client::connect_as(&server, encoding), channel, position: None, recovered: 0 };
            std::thread::spawn(move || {
                for round in 0..ROUNDS {
                    rounds.round(round % 2 == 1, round % 3);
                }
                rounds.recovered
            })
        })
        .collect();
    let recovered: u32 = subscribers.into_iter().map(|thread| thread.join().expect("no hole, nothing twice")).sum();
    let took = start.elapsed();
    stop.store(true, Ordering::Relaxed);
    let published = publisher.join().expect("the publisher");
    println!("{} rounds in {took:?}, {recovered} recovered, {published} publications meanwhile", ROUNDS * SUBSCRIBERS);
    assert!(published > 10_000 && recovered > 0, "{published} publications, {recovered} recoveries");
    assert!(took < Duration::from_secs(300));
    let metrics = server.metrics();
    assert_eq!(metrics.sum("ringway_lane_publications_dropped_total", &[]), 0);
}
