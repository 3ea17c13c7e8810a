//! Set-up: servers with small limits.
//! Claim: at each limit the client gets the code that the protocol names, one below it works, and it is counted.

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use ringway_tests::client::{Body, Message};
use ringway_tests::{Backend, Client, Encoding, PATIENCE, Server, eventually, eventually_is};

const BOTH: [Encoding; 2] = [Encoding::Json, Encoding::Protobuf];

#[test]
fn a_message_too_big_is_1009() {
    let server = Server::start(&[]);
    for encoding in BOTH {
        let publish = |client: &Client, bytes: usize| {
            let data = format!("\"{}\"", "x".repeat(bytes));
            client.command(2, "publish", &[("channel", "big"), ("data", &data)], &Default::default())
        };
        let mut client = Client::connect_as(&server, encoding);
        let overhead = publish(&client, 60_000).len() - 60_000;
        let fits = publish(&client, 64 * 1024 - overhead);
        assert_eq!(fits.len(), 64 * 1024);
        client.send_message(&fits);
        assert_eq!(client.reply(2), Body::Other("publish"));
        let over = publish(&client, 64 * 1024 - overhead + 1);
        client.send_message(&over);
        let close = client.expect_close();
        assert_eq!((close.code, close.reason.as_str()), (Some(1009), "message too big"));

        // The same bound holds for the fragments of a message together.
        let mut client = Client::connect_as(&server, encoding);
        let opcode = if encoding == Encoding::Json { 1 } else { 2 };
        client.socket.send_frame(false, opcode, &[b' '; 40_000]);
        client.socket.send_frame(true, 0, &[b' '; 40_000]);
        assert_eq!(client.expect_close().code, Some(1009));
    }
    eventually_is("closes", 4, || server.metrics().closes("message_too_big"));
}

#[test]
fn subscriptions_are_limited_per_connection() {
    let server = Server::start(&["--set", "limits.subscriptions_per_connection_max=3"]);
    for encoding in BOTH {
        let mut client = Client::connect_as(&server, encoding);
        for channel in ["a", "b", "c"] {
            client.subscribe(channel);
        }
        assert_eq!(client.refused("subscribe", &[("channel", "d")]).code, 106);
        assert_eq!(client.request("unsubscribe", &[("channel", "b")]), Body::Other("unsubscribe"));
        client.subscribe("d");
    }
    eventually_is("refusals", 2, || server.metrics().sum("ringway_subscribes_refused_total", &[]));
}

#[test]
fn commands_before_connect_are_3501() {
    let server = Server::start(&[]);
    for encoding in BOTH {
        for (name, parameters) in [
            ("subscribe", vec![("channel", "a")]),
            ("publish", vec![("channel", "a"), ("data", "1")]),
            ("ping", vec![]),
        ] {
            let mut client = Client::open(server.client, encoding);
            client.send(name, &parameters);
            let close = client.expect_close();
            assert_eq!((close.code, close.reason.as_str()), (Some(3501), "bad request"), "{name} {encoding:?}");
        }
    }
}

#[test]
fn more_commands_than_a_message_may_hold_are_3501() {
    let server = Server::start(&["--set", "limits.commands_per_message_max=4"]);
    for encoding in BOTH {
        let batch = |client: &Client, count: u32| {
            let separator: &[u8] = if encoding == Encoding::Json { b"\n" } else { b"" };
            let commands: Vec<Vec<u8>> = (2..2 + count)
                .map(|id| {
                    let channel = format!("c{id}");
                    client.command(id, "subscribe", &[("channel", &channel)], &Default::default())
                })
                .collect();
            commands.join(separator)
        };
        let mut client = Client::connect_as(&server, encoding);
        let four = batch(&client, 4);
        client.send_message(&four);
        // Owners answer in their own time, so the order is open.
        let mut answered: Vec<u32> = (0..4)
            .map(|_| match client.message(PATIENCE) {
                Some(Message::Reply(id, Body::Subscribe(_))) => id,
                other => panic!("{other:?}, close {:?}", client.close),
            })
            .collect();
        answered.sort_unstable();
        assert_eq!(answered, [2, 3, 4, 5]);
        let mut client = Client::connect_as(&server, encoding);
        let five = batch(&client, 5);
        client.send_message(&five);
        assert_eq!(client.expect_close().code, Some(3501), "{encoding:?}");
    }
}

#[test]
fn no_connect_command_in_time_is_4000() {
    let server = Server::start(&["--set", "limits.connect_timeout_ms=1000"]);
    let start = Instant::now();
    let mut client = Client::open(server.client, Encoding::Json);
    let close = client.expect_close();
    // 4000 and not the protocol's 3502, which is terminal: it may be our own overload.
    assert_eq!((close.code, close.reason.as_str()), (Some(4000), "connect timeout"));
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(900) && waited < Duration::from_secs(5), "{waited:?}");
    eventually_is("closes", 1, || server.metrics().closes("connect_timeout"));
}

#[test]
fn no_upgrade_in_time_ends_the_connection() {
    let server = Server::start(&["--set", "limits.handshake_timeout_ms=1000"]);
    for address in [server.client, server.ingest] {
        let start = Instant::now();
        let mut stream = TcpStream::connect(address).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let mut answer = Vec::new();
        let end = stream.read_to_end(&mut answer);
        assert!(!matches!(&end, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock), "not closed: {end:?}");
        assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
    }
    let timeouts = || server.metrics().sum("ringway_handshakes_refused_total", &["reason=\"timeout\""]);
    eventually_is("time-outs", 2, timeouts);
}

#[test]
fn no_pong_is_3012_and_answered_pings_keep_the_connection() {
    let server = Server::start(&["--set", "limits.ping_interval_ms=1000", "--set", "limits.pong_timeout_ms=700"]);
    for encoding in BOTH {
        let mut silent = Client::connect_as(&server, encoding);
        assert_eq!((silent.connected.ping, silent.connected.pong), (1, true));
        silent.answer_pings = false;
        assert_eq!(silent.try_push(Duration::from_secs(6)), None);
        let close = silent.expect_close();
        assert_eq!((close.code, close.reason.as_str()), (Some(3012), "no pong"));
        assert_eq!(silent.pings, 1);
        let mut good = Client::connect_as(&server, encoding);
        assert_eq!(good.try_push(Duration::from_millis(4_200)), None);
        assert!(good.pings >= 3 && good.close.is_none(), "{} pings, {:?}", good.pings, good.close);
        good.assert_alive();
    }
}

#[test]
fn a_full_shard_sends_new_connections_away_until_it_has_room() {
    let server = Server::start(&["--shards", "1", "--set", "limits.connections_per_shard_max=4"]);
    let mut clients: Vec<Client> = (0..4).map(|_| Client::connect(&server)).collect();
    eventually("the pause counted", || server.metrics().sum("ringway_accept_paused_total", &[]) >= 1);
    // The listener is closed, so that with several shards the kernel picks another; here there is none.
    eventually("refused", || TcpStream::connect(server.client).is_err());
    for client in &mut clients {
        client.assert_alive();
    }
    // Backends have places of their own.
    let backend = Backend::connect(&server);
    backend.publish("still-served", b"1").ack();
    drop(clients.pop());
    let mut stream = None;
    eventually("room again", || {
        stream = TcpStream::connect(server.client).ok();
        stream.is_some()
    });
    let stream = stream.expect("connected");
    let request = ringway_tests::websocket::upgrade_request(server.client, "/connection/websocket", "");
    let mut late = Client::over(ringway_tests::WebSocket::upgrade(stream, &request), Encoding::Json);
    late.say_connect();
    late.assert_alive();
}
