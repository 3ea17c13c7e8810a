//! Set-up: a channel with history (`--dev` keeps 100), a subscriber that goes away and comes back with its position.
//! Claim: with the right epoch it gets exactly what it missed, then live publications without a hole; with another
//! epoch, or when too much was missed, it is told `recovered:false` and gets nothing twice.

use ringway_tests::{Client, Encoding, Server, SubscribeOptions};
use serde_json::json;

const BOTH: [Encoding; 2] = [Encoding::Json, Encoding::Protobuf];

fn publish(server: &Server, channel: &str, count: u64) {
    for n in 0..count {
        server.publish(channel, &json!({ "n": n }));
    }
}

#[test]
fn exactly_the_missed_ones_come_back() {
    let server = Server::start(&[]);
    for encoding in BOTH {
        let channel = format!("missed-{encoding:?}");
        publish(&server, &channel, 10);
        let mut client = Client::connect_as(&server, encoding);
        let first = client.subscribe(&channel);
        assert_eq!((first.offset, first.recovered, first.was_recovering), (10, false, false));
        assert!(first.publications.is_empty());
        drop(client);
        publish(&server, &channel, 7);

        let mut client = Client::connect_as(&server, encoding);
        let back = client.subscribe_with(&channel, &SubscribeOptions { recover: Some((10, &first.epoch)) });
        assert!(back.recovered && back.was_recovering && back.recoverable, "{back:?}");
        // The offset of the request: SDKs move on from it while they apply the publications.
        assert_eq!((back.offset, &back.epoch), (10, &first.epoch));
        let offsets: Vec<u64> = back.publications.iter().map(|publication| publication.offset).collect();
        assert_eq!(offsets, [11, 12, 13, 14, 15, 16, 17]);
        assert_eq!(back.publications[6].data, br#"{"n":6}"#);
        publish(&server, &channel, 1);
        assert_eq!(client.publication(&channel).offset, 18);
    }
}

#[test]
fn nothing_missed_is_recovered_and_empty() {
    let server = Server::start(&[]);
    publish(&server, "quiet", 3);
    for encoding in BOTH {
        let mut client = Client::connect_as(&server, encoding);
        let epoch = client.subscribe("quiet").epoch;
        drop(client);
        let mut client = Client::connect_as(&server, encoding);
        let back = client.subscribe_with("quiet", &SubscribeOptions { recover: Some((3, &epoch)) });
        assert!(back.recovered && back.publications.is_empty(), "{back:?}");
        // The reference accepts any epoch from a client that has none yet.
        let mut client = Client::connect_as(&server, encoding);
        let back = client.subscribe_with("quiet", &SubscribeOptions { recover: Some((1, "")) });
        assert!(back.recovered && back.publications.len() == 2, "{back:?}");
    }
}

#[test]
fn another_epoch_is_not_recovered() {
    let server = Server::start(&[]);
    publish(&server, "other", 5);
    for encoding in BOTH {
        let mut client = Client::connect_as(&server, encoding);
        let back = client.subscribe_with("other", &SubscribeOptions { recover: Some((2, "not.this")) });
        assert!(back.was_recovering && !back.recovered && back.publications.is_empty(), "{back:?}");
        assert_eq!(back.offset, 5);
        assert_ne!(back.epoch, "not.this");
    }
}

#[test]
fn more_than_history_holds_is_not_recovered() {
    let server = Server::start(&[]);
    publish(&server, "long", 150);
    for encoding in BOTH {
        let mut client = Client::connect_as(&server, encoding);
        let epoch = client.subscribe("long").epoch;
        drop(client);
        for (from, recovered) in [(49, false), (50, true), (149, true), (150, true), (151, false)] {
            let mut client = Client::connect_as(&server, encoding);
            let back = client.subscribe_with("long", &SubscribeOptions { recover: Some((from, &epoch)) });
            assert_eq!(back.recovered, recovered, "from {from}: {back:?}");
            let expected = if recovered { 150 - from } else { 0 };
            assert_eq!(back.publications.len() as u64, expected, "from {from}");
            assert_eq!(back.offset, if recovered { from } else { 150 }, "from {from}");
        }
    }
}

#[test]
fn a_restart_changes_the_epoch() {
    let mut server = Server::start(&[]);
    publish(&server, "again", 5);
    let epoch = Client::connect(&server).subscribe("again").epoch;
    server.restart();
    publish(&server, "again", 5);
    let mut client = Client::connect(&server);
    // The same offset exists again, but it names another publication.
    let back = client.subscribe_with("again", &SubscribeOptions { recover: Some((4, &epoch)) });
    assert!(back.was_recovering && !back.recovered && back.epoch != epoch, "{back:?}");
    assert_eq!(back.offset, 5);
}
