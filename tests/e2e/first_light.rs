//! Set-up: one `--dev` server; subscribers in both encodings; publications from the HTTP API, from a client and from
//! the Rust ingest client.
//! Claim: every subscriber gets every publication, once, in order, with the offset that the publisher was told.

use std::time::Duration;

use ringway_tests::client::{Body, Message};
use ringway_tests::{Backend, Client, Encoding, Server, eventually_is, http};
use serde_json::json;

#[test]
fn api_publications_reach_both_encodings() {
    let server = Server::start(&[]);
    let mut json_client = Client::connect_as(&server, Encoding::Json);
    let mut protobuf_client = Client::connect_as(&server, Encoding::Protobuf);
    assert_ne!(json_client.connected.client, protobuf_client.connected.client);
    assert!(json_client.connected.ping > 0 && json_client.connected.pong, "{:?}", json_client.connected);
    let position = json_client.subscribe("news");
    assert!(position.recoverable && position.offset == 0 && !position.epoch.is_empty(), "{position:?}");
    assert_eq!(protobuf_client.subscribe("news"), position);
    for n in 1..=20_u64 {
        let (offset, epoch) = server.publish("news", &json!({ "n": n }));
        assert_eq!((offset, &epoch), (n, &position.epoch));
        for client in [&mut json_client, &mut protobuf_client] {
            let publication = client.publication("news");
            assert_eq!((publication.offset, publication.publisher), (n, None));
            assert_eq!(publication.data, json!({ "n": n }).to_string().into_bytes());
        }
    }
}

#[test]
fn a_client_publishes_to_itself_and_to_others() {
    let server = Server::start(&[]);
    let mut alice = Client::connect_as(&server, Encoding::Protobuf);
    let mut bob = Client::connect_as(&server, Encoding::Json);
    alice.subscribe("chat");
    bob.subscribe("chat");
    alice.publish("chat", r#"{"text":"from alice"}"#);
    bob.publish("chat", r#"{"text":"from bob"}"#);
    let (alice_id, bob_id) = (alice.connected.client.clone(), bob.connected.client.clone());
    for client in [&mut alice, &mut bob] {
        let first = client.publication("chat");
        assert_eq!((first.offset, first.publisher.as_deref()), (1, Some(alice_id.as_str())));
        assert_eq!(first.data, br#"{"text":"from alice"}"#);
        let second = client.publication("chat");
        assert_eq!((second.offset, second.publisher.as_deref()), (2, Some(bob_id.as_str())));
    }
}

#[test]
fn ingest_publications_arrive_in_order() {
    const COUNT: u64 = 5_000;
    let server = Server::start(&[]);
    let mut subscriber = Client::connect(&server);
    let epoch = subscriber.subscribe("feed").epoch;
    let backend = Backend::connect(&server);
    let pending: Vec<_> = (1..=COUNT).map(|n| backend.publish("feed", format!("{{\"n\":{n}}}").as_bytes())).collect();
    for n in 1..=COUNT {
        let publication = subscriber.publication("feed");
        assert_eq!((publication.offset, publication.data), (n, format!("{{\"n\":{n}}}").into_bytes()));
    }
    for (n, pending) in (1..).zip(pending) {
        let ack = pending.ack();
        assert_eq!((ack.offset, ack.duplicate), (n, false));
        assert_eq!(ack.epoch.to_string(), epoch);
    }
    eventually_is("publishes", COUNT, || server.metrics().sum("ringway_ingest_publishes_total", &[]));
}

#[test]
fn connect_and_subscribe_in_one_frame() {
    let server = Server::start(&[]);
    for encoding in [Encoding::Json, Encoding::Protobuf] {
        let mut client = Client::open(server.client, encoding);
        let mut batch = client.command(1, "connect", &[], &Default::default());
        for (id, channel) in [(2, "a"), (3, "b"), (4, "c")] {
            if encoding == Encoding::Json {
                batch.push(b'\n');
            }
            batch.extend(client.command(id, "subscribe", &[("channel", channel)], &Default::default()));
        }
        client.send_message(&batch);
        let mut answered = Vec::new();
        while answered.len() < 4 {
            match client.message(Duration::from_secs(10)) {
                Some(Message::Reply(1, Body::Connect(_))) => {
                    assert!(answered.is_empty(), "connect is answered before what stands behind it");
                    answered.push(1);
                }
                Some(Message::Reply(id, Body::Subscribe(_))) => answered.push(id),
                other => panic!("{other:?}, close {:?}", client.close),
            }
        }
        answered.sort_unstable();
        assert_eq!(answered, [1, 2, 3, 4]);
    }
}

#[test]
fn unsubscribe_ends_deliveries_and_subscribing_again_works() {
    let server = Server::start(&[]);
    for encoding in [Encoding::Json, Encoding::Protobuf] {
        let mut client = Client::connect_as(&server, encoding);
        let start = client.subscribe("on-off").offset;
        assert_eq!(client.refused("subscribe", &[("channel", "on-off")]).code, 105);
        server.publish("on-off", &json!(1));
        assert_eq!(client.publication("on-off").offset, start + 1);
        assert_eq!(client.request("unsubscribe", &[("channel", "on-off")]), Body::Other("unsubscribe"));
        server.publish("on-off", &json!(2));
        assert_eq!(client.try_push(Duration::from_millis(300)), None);
        assert_eq!(client.subscribe("on-off").offset, start + 2);
        server.publish("on-off", &json!(3));
        assert_eq!(client.publication("on-off").offset, start + 3);
    }
}

#[test]
fn send_and_rpc_are_refused_without_harm() {
    let server = Server::start(&[]);
    for encoding in [Encoding::Json, Encoding::Protobuf] {
        let mut client = Client::connect_as(&server, encoding);
        let error = client.refused("rpc", &[("data", "{}"), ("method", "any")]);
        assert!(matches!(error.code, 104 | 108) && !error.temporary, "{error:?}");
        // `send` has no id and no answer.
        let send = client.command(0, "send", &[("data", "{}")], &Default::default());
        client.send_message(&send);
        client.assert_alive();
    }
}

#[test]
fn health_ready_metrics_and_the_api_key() {
    let server = Server::start(&[]);
    assert_eq!(http::get(server.control, "/health").status, 200);
    assert_eq!(http::get(server.control, "/ready").status, 200);
    assert_eq!(http::get(server.control, "/nothing-here").status, 404);
    let body = r#"{"channel":"a","data":1}"#;
    for key in [None, Some("wrong"), Some("")] {
        assert_eq!(http::post_json(server.control, "/api/publish", key, body).status, 401, "key {key:?}");
    }
    let open = || server.metrics().sum("ringway_connections_open", &[]);
    let one = Client::connect(&server);
    eventually_is("open connections", 1, open);
    drop(one);
    eventually_is("open connections", 0, open);
}
