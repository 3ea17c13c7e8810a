//! Set-up: a server with one well-behaved subscriber; then, one connection each, malformed upgrades, frames, commands
//! and ingest bytes.
//! Claim: each gets the code that the protocol names and loses only its own connection; it is counted by reason; the
//! subscriber sees nothing of it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use ringway_tests::websocket::{self as ws, WebSocket, upgrade_request};
use ringway_tests::{Client, Encoding, PATIENCE, Server, eventually_is, http};
use ringway_wire::ingest;
use serde_json::json;

/// A subscriber that must not notice what others do.
struct Bystander(Client);

impl Bystander {
    fn new(server: &Server) -> Self {
        let mut client = Client::connect(server);
        client.subscribe("bystander");
        Bystander(client)
    }

    fn assert_unharmed(mut self, server: &Server) {
        let (offset, _) = server.publish("bystander", &json!("still here"));
        assert_eq!(self.0.publication("bystander").offset, offset);
        self.0.assert_alive();
    }
}

#[test]
fn upgrades() {
    let server = Server::start(&[]);
    let bystander = Bystander::new(&server);
    let good = upgrade_request(server.client, "/connection/websocket", "");
    let without = |line: &str| {
        let kept: Vec<&str> = good.split("\r\n").filter(|own| !own.to_lowercase().starts_with(line)).collect();
        assert_ne!(kept.join("\r\n"), good, "the good request has no line {line}");
        kept.join("\r\n")
    };
    let replaced = |from: &str, to: &str| {
        assert!(good.contains(from), "the good request has no {from:?}");
        good.replace(from, to)
    };
    let long = format!("X-Long: {}\r\n", "a".repeat(9_000));
    let cases: [(&str, String, &[u16]); 14] = [
        ("no key", without("sec-websocket-key"), &[400]),
        ("key of another length", replaced(ws::KEY, "c2hvcnQ="), &[400]),
        ("key that is no base64", replaced(ws::KEY, "!!!!!!!!!!!!!!!!!!!!!!=="), &[400]),
        ("no version", without("sec-websocket-version"), &[400, 426]),
        ("version 8", replaced("Version: 13", "Version: 8"), &[426]),
        ("no upgrade header", without("upgrade:"), &[400, 426]),
        ("no connection header", without("connection:"), &[400, 426]),
        ("no host", without("host:"), &[400]),
        ("POST", replaced("GET ", "POST "), &[405]),
        ("HTTP/1.0", replaced("HTTP/1.1", "HTTP/1.0"), &[400, 426, 505]),
        ("another path", replaced("/connection/websocket", "/elsewhere"), &[404]),
        (
            "two keys",
            replaced("Upgrade: websocket", &format!("Upgrade: websocket\r\nSec-WebSocket-Key: {}", ws::KEY)),
            &[400],
        ),
        ("over handshake_bytes_max", upgrade_request(server.client, "/connection/websocket", &long), &[431]),
        ("no HTTP at all", "\u{16}\u{3}\u{1}\u{2} hello\r\n\r\n".to_owned(), &[400]),
    ];
    for (name, request, expected) in &cases {
        let response = http::raw(server.client, request.as_bytes());
        assert!(expected.contains(&response.status), "{name}: {}\n{}", response.head, response.text());
        if response.status == 426 {
            assert_eq!(response.header("sec-websocket-version"), Some("13"), "{name}: {}", response.head);
        }
    }
    let refused = || server.metrics().sum("ringway_handshakes_refused_total", &[]);
    eventually_is("refusals", cases.len() as u64, refused);
    let metrics = server.metrics();
    for reason in ["path", "size"] {
        assert_eq!(metrics.sum("ringway_handshakes_refused_total", &[&format!("reason=\"{reason}\"")]), 1, "{reason}");
    }
    bystander.assert_unharmed(&server);
}

/// A frame with any first byte, masked with a zero key so that the payload stands as it is.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    assert!(payload.len() < 126);
    [&[first, 0x80 | payload.len() as u8, 0, 0, 0, 0], payload].concat()
}

#[test]
fn frames() {
    let server = Server::start(&[]);
    let bystander = Bystander::new(&server);
    let long_ping = [&[0x89, 0x80 | 126, 0, 126, 0, 0, 0, 0][..], &[b'x'; 126]].concat();
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        ("unmasked", vec![0x81, 2, b'{', b'}'], 1002),
        ("RSV1 without an extension", frame(0xC1, b"{}"), 1002),
        ("RSV2", frame(0xA1, b"{}"), 1002),
        ("RSV3", frame(0x91, b"{}"), 1002),
        ("opcode 3", frame(0x83, b""), 1002),
        ("opcode 15", frame(0x8F, b""), 1002),
        ("fragmented ping", frame(0x09, b"x"), 1002),
        ("ping of 126 bytes", long_ping, 1002),
        ("continuation of nothing", frame(0x80, b"{}"), 1002),
        ("a message inside a message", [frame(0x01, b"{"), frame(0x81, b"}")].concat(), 1002),
        ("16-bit length that fits 7", vec![0x81, 0x80 | 126, 0, 2, 0, 0, 0, 0, b'{', b'}'], 1002),
        (
            "64-bit length that fits 16",
            [&[0x81, 0x80 | 127, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0][..], b"{}"].concat(),
            1002,
        ),
        ("64-bit length with the top bit", vec![0x81, 0x80 | 127, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1002),
        ("close of one byte", frame(0x88, b"\x03"), 1002),
        ("close with code 1005", frame(0x88, &1005_u16.to_be_bytes()), 1002),
        ("close with code 999", frame(0x88, &999_u16.to_be_bytes()), 1002),
        ("text that is not UTF-8", frame(0x81, b"{\"id\":1,\"\xFF\":1}"), 1007),
        ("UTF-8 that ends half-way", frame(0x81, b"\"\xE2\x82"), 1007),
        (
            "over message_bytes_max, from the header alone",
            vec![0x81, 0x80 | 127, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0],
            1009,
        ),
    ];
    let count = |code: u16| cases.iter().filter(|case| case.2 == code).count() as u64;
    for (name, bytes, code) in &cases {
        let mut client = Client::connect(&server);
        client.socket.write_raw(bytes);
        let close = client.expect_close();
        assert_eq!(close.code, Some(*code), "{name}: {close:?}");
        assert!(!close.reason.is_empty(), "{name}: an empty reason breaks centrifuge-js");
    }
    for (reason, code) in [("ws_protocol_error", 1002), ("invalid_utf8", 1007), ("message_too_big", 1009)] {
        eventually_is(reason, count(code), || server.metrics().closes(reason));
    }
    bystander.assert_unharmed(&server);
}

#[test]
fn a_proper_close_is_answered_in_kind() {
    let server = Server::start(&[]);
    for (payload, code) in [(&b""[..], None), (&b"\x03\xE8"[..], Some(1000)), (&b"\x0F\xA0bye"[..], Some(4000))] {
        let mut client = Client::connect(&server);
        client.socket.send_frame(true, ws::CLOSE, payload);
        let close = client.expect_close();
        assert!(close.code == code || close.code == Some(1000), "{payload:?}: {close:?}");
    }
    let mut client = Client::connect(&server);
    client.socket.send_frame(true, ws::PING, b"are you there");
    let pong = client.socket.frame();
    assert_eq!((pong.opcode, pong.payload.as_slice()), (ws::PONG, &b"are you there"[..]));
}

#[test]
fn commands() {
    let server = Server::start(&[]);
    let bystander = Bystander::new(&server);
    let deep =
        format!("{{\"id\":9,\"publish\":{{\"channel\":\"a\",\"data\":{}1{}}}}}", "[".repeat(5_000), "]".repeat(5_000));
    let json_cases: Vec<(&str, &str)> = vec![
        ("no JSON", "hello"),
        ("half a command", "{\"id\":9,\"subscribe\":{\"channel\":\"a\""),
        ("an array", "[1,2]"),
        ("a number", "7"),
        ("a command behind garbage", "{\"id\":9,\"subscribe\":{\"channel\":\"a\"}} x"),
        ("an empty message", ""),
        ("id 0 that is no send", "{\"publish\":{\"channel\":\"a\",\"data\":1}}"),
        ("id below 0", "{\"id\":-1,\"publish\":{\"channel\":\"a\",\"data\":1}}"),
        ("id that is a string", "{\"id\":\"1\",\"publish\":{\"channel\":\"a\",\"data\":1}}"),
        ("channel that is a number", "{\"id\":9,\"subscribe\":{\"channel\":1}}"),
        ("data that is no JSON", "{\"id\":9,\"publish\":{\"channel\":\"a\",\"data\":{x}}}"),
        ("nesting without end", &deep),
        ("connect again", "{\"id\":9,\"connect\":{}}"),
    ];
    for (name, text) in &json_cases {
        let mut client = Client::connect(&server);
        client.socket.send_text(text);
        let close = client.expect_close();
        assert_eq!(close.code, Some(3501), "{name}: {close:?}");
    }
    let protobuf_cases: [(&str, &[u8]); 8] = [
        ("an empty message", b""),
        ("length without a message", &[5]),
        ("message shorter than its length", &[5, 8, 1]),
        ("a length of 2^63", &[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F, 8, 1]),
        ("a varint without end", &[0xFF; 12]),
        ("wire type 7", &[2, 0x0F, 1]),
        ("a field longer than its message", &[4, 8, 1, 0x2A, 9]),
        ("channel that is not UTF-8", &[8, 8, 9, 0x2A, 4, 0x0A, 2, 0xFF, 0xFE]),
    ];
    for (name, bytes) in &protobuf_cases {
        let mut client = Client::connect_as(&server, Encoding::Protobuf);
        client.send_message(bytes);
        let close = client.expect_close();
        assert_eq!(close.code, Some(3501), "{name}: {close:?}");
    }
    let all = (json_cases.len() + protobuf_cases.len()) as u64;
    eventually_is("closes for bad_request", all, || server.metrics().closes("bad_request"));
    bystander.assert_unharmed(&server);
}

#[test]
fn refused_commands_keep_the_connection() {
    let server = Server::start(&["--set", "namespace.catch_all=false"]);
    for encoding in [Encoding::Json, Encoding::Protobuf] {
        let mut client = Client::connect_as(&server, encoding);
        let long = "x".repeat(256);
        for (name, parameters, code) in [
            ("subscribe", vec![("channel", "")], 107),
            ("subscribe", vec![("channel", long.as_str())], 107),
            ("subscribe", vec![("channel", "no-such-namespace:a")], 102),
            ("publish", vec![("channel", ""), ("data", "1")], 107),
            ("publish", vec![("channel", "no-such-namespace:a"), ("data", "1")], 102),
        ] {
            let error = client.refused(name, &parameters);
            assert_eq!(error.code, code, "{name} {parameters:?}: {error:?}");
        }
        if encoding == Encoding::Protobuf {
            // Only here can the payload of a JSON channel fail to be JSON without the command being broken too.
            assert_eq!(client.refused("publish", &[("channel", "a"), ("data", "{not json")]).code, 107);
        }
        client.assert_alive();
    }
}

/// Sends bytes to the ingest port and reads until the server ends the connection.
fn ingest_answer(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    stream.write_all(bytes).expect("write");
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return answer,
            Ok(n) => answer.extend_from_slice(&chunk[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return answer,
            Err(error) => panic!("the connection did not end: {error}"),
        }
    }
}

fn hello(token: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let version = ingest::VERSION;
    let name = "bad input test";
    let hello =
        ingest::Hello { version_min: version, version_max: version, features: 0, instance: [7; 16], token, name };
    ingest::write_hello(&mut out, &hello);
    out
}

#[test]
fn ingest_bytes() {
    let server = Server::start(&[]);
    let bystander = Bystander::new(&server);
    let with_hello = |tail: &[u8]| [&hello(b"dev"), tail].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("HTTP", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("a frame of 4 GiB", vec![0xFF, 0xFF, 0xFF, 0xFF, 1]),
        ("a frame without a type", vec![0, 0, 0, 0, 0]),
        ("a hello cut short", vec![3, 0, 0, 0, 1, b'R', b'W']),
        ("another magic", {
            let mut bytes = hello(b"dev");
            bytes[5] ^= 0x20;
            bytes
        }),
        ("a wrong token", hello(b"guess")),
        ("an empty token", hello(b"")),
        ("a publish before the hello", vec![2, 0, 0, 0, 2, 0]),
        ("no version in common", {
            let mut bytes = hello(b"dev");
            bytes[13..17].copy_from_slice(&[0xFE, 0xFF, 0xFF, 0xFF]);
            bytes
        }),
        ("a frame type that may not be skipped", with_hello(&[1, 0, 0, 0, 0x7F])),
        (
            "a batch that promises more than it has",
            with_hello(&[13, 0, 0, 0, 3, 1, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]),
        ),
        ("a second hello", with_hello(&hello(b"dev"))),
        ("a frame over the maximum", with_hello(&[0xFF, 0xFF, 0xFF, 0x7F, 2])),
        ("a publish cut short", with_hello(&[3, 0, 0, 0, 2, 1, 2])),
    ];
    for (n, (name, bytes)) in (1..).zip(&cases) {
        ingest_answer(server.ingest, bytes);
        eventually_is(name, n, || server.metrics().sum("ringway_ingest_errors_total", &[]));
    }
    // Two wrong tokens and a version that nobody speaks.
    eventually_is("hellos refused", 3, || server.metrics().sum("ringway_ingest_auth_failures_total", &[]));
    eventually_is("backends", 0, || server.metrics().sum("ringway_ingest_connections_open", &[]));
    bystander.assert_unharmed(&server);
}

#[test]
fn api_bodies() {
    let server = Server::start(&["--set", "namespace.catch_all=false"]);
    let bystander = Bystander::new(&server);
    let large = format!("{{\"channel\":\"a\",\"data\":\"{}\"}}", "x".repeat(2 * 1024 * 1024));
    let cases = [
        ("", &[200, 400, 422][..]),
        ("{", &[200, 400, 422]),
        ("{\"channel\":\"a\"}", &[200, 400, 422]),
        ("{\"data\":1}", &[200, 400, 422]),
        ("{\"channel\":\"\",\"data\":1}", &[200, 400, 422]),
        ("{\"channel\":\"no-such-namespace:a\",\"data\":1}", &[200, 400, 422]),
        (&large, &[200, 413]),
    ];
    for (body, statuses) in cases {
        let response = http::post_json(server.control, "/api/publish", Some("dev"), body);
        let shown = &body[..body.len().min(60)];
        assert!(statuses.contains(&response.status), "{shown}: {} {}", response.status, response.text());
        if response.status == 200 {
            let answer: serde_json::Value = serde_json::from_str(&response.text()).expect("an API answer is JSON");
            assert!(answer["error"]["code"].as_u64().is_some_and(|code| code >= 100), "{shown}: {answer}");
        }
    }
    bystander.assert_unharmed(&server);
}

#[test]
fn a_peer_that_vanishes_in_any_phase_leaves_nothing() {
    let server = Server::start(&[]);
    drop(TcpStream::connect(server.client));
    let mut half = TcpStream::connect(server.client).expect("connect");
    half.write_all(b"GET /connection/websocket HTTP/1.1\r\n").expect("write");
    drop(half);
    drop(WebSocket::open(server.client, "/connection/websocket", None));
    drop(Client::connect(&server));
    let mut middle_of_a_frame = Client::connect(&server);
    middle_of_a_frame.subscribe("a");
    middle_of_a_frame.socket.write_raw(&[0x81, 0x80 | 126, 0x10, 0, 1, 2, 3, 4, b'{']);
    drop(middle_of_a_frame);
    for (name, expected) in [
        ("ringway_connections_accepted_total", 5),
        ("ringway_connections_open", 0),
        ("ringway_subscriptions_open", 0),
        ("ringway_channels_followed", 0),
    ] {
        eventually_is(name, expected, || server.metrics().sum(name, &[]));
    }
}
