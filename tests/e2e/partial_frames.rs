//! Set-up: bytes of good clients that arrive in every unhandy way: one at a time, many commands in a frame, many
//! frames in a segment, messages in fragments with a ping between them.
//! Claim: the answers are those of the handy way.

use std::time::Duration;

use ringway_tests::client::{Body, Message};
use ringway_tests::websocket::{self as ws, WebSocket, upgrade_request};
use ringway_tests::{Client, Encoding, Server};
use serde_json::json;
use std::io::Write;
use std::net::TcpStream;

const BOTH: [Encoding; 2] = [Encoding::Json, Encoding::Protobuf];

fn opcode(encoding: Encoding) -> u8 {
    if encoding == Encoding::Json { ws::TEXT } else { ws::BINARY }
}

#[test]
fn one_byte_at_a_time() {
    let server = Server::start(&[]);
    for encoding in BOTH {
        let extra = if encoding == Encoding::Json { "" } else { "Sec-WebSocket-Protocol: centrifuge-protobuf\r\n" };
        let request = upgrade_request(server.client, "/connection/websocket", extra);
        let mut stream = TcpStream::connect(server.client).expect("connect");
        stream.set_nodelay(true).expect("nodelay");
        let (last, first) = request.as_bytes().split_last().expect("not empty");
        for byte in first {
            stream.write_all(&[*byte]).expect("write");
        }
        let socket = WebSocket::upgrade(stream, std::str::from_utf8(&[*last]).expect("ASCII"));
        let mut client = Client::over(socket, encoding);
        for (id, name, parameters) in [
            (1, "connect", vec![]),
            (2, "subscribe", vec![("channel", "drip")]),
            (3, "publish", vec![("channel", "drip"), ("data", "[1,2]")]),
        ] {
            let command = client.command(id, name, &parameters, &Default::default());
            for byte in client.socket.frame_bytes(true, opcode(encoding), &command) {
                client.socket.write_raw(&[byte]);
                if id == 2 {
                    // Slow enough that every byte is a read of its own.
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            assert!(!matches!(client.reply(id), Body::Error(_)));
        }
        assert_eq!(client.publication("drip").data, b"[1,2]");
    }
}

#[test]
fn many_commands_in_a_frame_and_many_frames_in_a_segment() {
    const COUNT: u32 = 400;
    let server = Server::start(&[]);
    for encoding in BOTH {
        let mut client = Client::connect_as(&server, encoding);
        let separator: &[u8] = if encoding == Encoding::Json { b"\n" } else { b"" };
        let commands: Vec<Vec<u8>> = (2..2 + COUNT)
            .map(|id| client.command(id, "subscribe", &[("channel", &format!("m{id}"))], &Default::default()))
            .collect();
        // Half of them in one frame, the other half in a frame each, all in one write.
        let (together, apart) = commands.split_at(COUNT as usize / 2);
        let mut bytes = client.socket.frame_bytes(true, opcode(encoding), &together.join(separator));
        for command in apart {
            bytes.extend(client.socket.frame_bytes(true, opcode(encoding), command));
        }
        client.socket.write_raw(&bytes);
        let mut answered = Vec::new();
        while answered.len() < COUNT as usize {
            match client.message(Duration::from_secs(10)) {
                Some(Message::Reply(id, Body::Subscribe(_))) => answered.push(id),
                Some(Message::Ping) => {}
                other => panic!("after {} answers: {other:?}, close {:?}", answered.len(), client.close),
            }
        }
        answered.sort_unstable();
        assert!(answered.iter().copied().eq(2..2 + COUNT), "each command is answered once");
        server.publish(&format!("m{}", 1 + COUNT), &json!(1));
        assert_eq!(client.publication(&format!("m{}", 1 + COUNT)).data, b"1");
    }
}

#[test]
fn a_message_in_fragments_with_control_frames_between() {
    let server = Server::start(&[]);
    for encoding in BOTH {
        let mut client = Client::connect_as(&server, encoding);
        client.subscribe("parts");
        // Multi-byte characters, so that some cut falls into the middle of one.
        let data = json!("fünf Äpfel — 五つのりんご").to_string();
        let command = client.command(90, "publish", &[("channel", "parts"), ("data", &data)], &Default::default());
        let last = command.len() - 1;
        for (i, byte) in command.iter().enumerate() {
            client.socket.send_frame(i == last, if i == 0 { opcode(encoding) } else { ws::CONTINUATION }, &[*byte]);
            if i % 16 == 7 {
                client.socket.send_frame(true, ws::PING, b"between");
                // An empty fragment is a fragment too.
                client.socket.send_frame(false, ws::CONTINUATION, b"");
            }
        }
        assert_eq!(client.reply(90), Body::Other("publish"));
        assert_eq!(client.publication("parts").data, data.as_bytes());
    }
}

#[test]
fn a_long_message_crosses_every_buffer() {
    let server = Server::start(&[]);
    for encoding in BOTH {
        let mut client = Client::connect_as(&server, encoding);
        client.subscribe("long");
        for len in [125, 126, 127, 1_000, 16_383, 16_384, 16_385, 40_000, 60_000] {
            let data = json!("y".repeat(len)).to_string();
            client.publish("long", &data);
            assert_eq!(client.publication("long").data, data.as_bytes(), "{len}");
        }
    }
}

#[test]
fn a_trailing_newline_is_no_command() {
    let server = Server::start(&[]);
    let mut client = Client::connect(&server);
    client.socket.send_text("{\"id\":5,\"subscribe\":{\"channel\":\"nl\"}}\n");
    assert!(matches!(client.reply(5), Body::Subscribe(_)));
    client.assert_alive();
}
