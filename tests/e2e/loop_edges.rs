//! Set-up: queues of the smallest size, and a process that is stopped while its clients act, so that everything comes
//! at once when it goes on.
//! Claim: the edges of the loop are met (each counter moves) and nothing is lost at any of them: more completions than the
//! queue holds, connections left with unread data, lanes that are full in both directions, fan-outs cut into slices.
//! (A completion queue that really overflows, with multishots ending, is provoked on the ring itself in `src/sys/tests`.)

use ringway_tests::{Backend, Client, Encoding, Push, Server, eventually};

fn sum(server: &Server, name: &str) -> u64 {
    server.metrics().sum(name, &[])
}

#[test]
fn more_at_once_than_the_queues_hold_loses_nobody() {
    const CLIENTS: usize = 400;
    let server = Server::start(&[
        "--shards",
        "1",
        "--set",
        "ring.submission_entries=64",
        "--set",
        "ring.completion_entries=128",
        "--set",
        "limits.fanout_deliveries_per_turn_max=64",
    ]);
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|n| Client::connect_as(&server, if n % 2 == 0 { Encoding::Json } else { Encoding::Protobuf }))
        .collect();
    for client in &mut clients {
        client.subscribe("edges");
    }
    for round in 0..3 {
        server.signal("STOP");
        let ids: Vec<u32> =
            clients.iter_mut().map(|client| client.send("publish", &[("channel", "edges"), ("data", "1")])).collect();
        server.signal("CONT");
        for (client, id) in clients.iter_mut().zip(&ids) {
            client.reply(*id);
        }
        for client in &mut clients {
            for offset in 1..=CLIENTS as u64 {
                assert_eq!(client.publication("edges").offset, round * CLIENTS as u64 + offset);
            }
        }
    }
    eventually("fan-outs were cut", || sum(&server, "ringway_fanouts_sliced_total") > 0);
    for client in &mut clients {
        client.assert_alive();
    }
}

#[test]
fn a_connection_with_unread_data_is_read_on() {
    let server = Server::start(&["--shards", "1", "--set", "limits.read_bytes_per_turn_max=8192"]);
    let mut client = Client::connect(&server);
    let data = format!("\"{}\"", "x".repeat(900));
    server.signal("STOP");
    // More than one turn's share, less than what the sockets hold; then silence: no further edge will come.
    let ids: Vec<u32> = (0..25).map(|_| client.send("publish", &[("channel", "unread"), ("data", &data)])).collect();
    server.signal("CONT");
    for id in ids {
        client.reply(id);
    }
    eventually("reads were deferred", || sum(&server, "ringway_reads_deferred_total") > 0);
}

#[test]
fn too_many_requests_in_flight_hold_only_their_own_client_back() {
    let server = Server::start(&["--shards", "1", "--set", "limits.requests_in_flight_per_connection_max=2"]);
    let (mut busy, mut other) = (Client::connect(&server), Client::connect(&server));
    server.signal("STOP");
    let ids: Vec<u32> = (0..200).map(|_| busy.send("publish", &[("channel", "busy"), ("data", "1")])).collect();
    server.signal("CONT");
    other.assert_alive();
    for id in ids {
        busy.reply(id);
    }
}

#[test]
fn lanes_full_in_both_directions_make_progress() {
    const CHANNELS: usize = 32;
    const ROUNDS: u64 = 300;
    let server = Server::start(&[
        "--shards",
        "2",
        "--set",
        "lane.capacity_batches=2",
        "--set",
        "limits.lane_batch_messages_max=1",
    ]);
    let channels: Vec<String> = (0..CHANNELS).map(|n| format!("full-{n}")).collect();
    // Enough of both that each shard has some, and each shard owns about half of the channels.
    let mut subscribers: Vec<Client> = (0..16).map(|_| Client::connect(&server)).collect();
    for subscriber in &mut subscribers {
        channels.iter().for_each(|channel| drop(subscriber.subscribe(channel)));
    }
    let publishers: Vec<_> = (0..8)
        .map(|part| {
            let backend = Backend::connect(&server);
            let mine: Vec<String> = channels.iter().skip(part).step_by(8).cloned().collect();
            std::thread::spawn(move || {
                let mut last = Vec::new();
                for round in 1..=ROUNDS {
                    last = mine.iter().map(|channel| backend.publish(channel, round.to_string().as_bytes())).collect();
                }
                for pending in last {
                    assert_eq!(pending.ack().offset, ROUNDS);
                }
            })
        })
        .collect();
    for subscriber in &mut subscribers {
        let mut seen = [0u64; CHANNELS];
        for _ in 0..ROUNDS * CHANNELS as u64 {
            let Push::Publication(channel, publication) = subscriber.push() else { panic!("a publication") };
            let n: usize = channel["full-".len()..].parse().expect("one of the channels");
            seen[n] += 1;
            assert_eq!(publication.offset, seen[n], "{channel}");
        }
    }
    publishers.into_iter().for_each(|publisher| publisher.join().expect("a publisher"));
    eventually("lanes were full", || sum(&server, "ringway_lane_full_total") > 0);
    assert_eq!(sum(&server, "ringway_lane_publications_dropped_total"), 0);
}
