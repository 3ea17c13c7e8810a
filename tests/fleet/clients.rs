//! Clients with tokens, and calls of the server API, at one node or behind the load balancer.
//!
//! In: an address, a user. Out: what comes back: a connect result, a refusal, pushes. Nodes run with `--dev`.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ringway_tests::client::PATH;
use ringway_tests::fleet::Node;
use ringway_tests::http;
use ringway_tests::websocket::{CLOSE, Received, WebSocket};
use serde_json::{Value, json};

/// As `--dev` has it: secret of tokens, and key of the API.
const SECRET: &str = "dev";
const PATIENCE: Duration = Duration::from_secs(30);

fn token(user: &str) -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(json!({ "alg": "HS256", "typ": "JWT" })), part(json!({ "sub": user })));
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, signed.as_bytes())))
}

/// The result of a call of the server API, which must be one.
pub(crate) fn api(node: &Node, method: &str, body: &Value) -> Value {
    let response = http::post_json(node.control, &format!("/api/{method}"), Some(SECRET), &body.to_string());
    let answer: Value = serde_json::from_slice(&response.body).unwrap_or_else(|_| panic!("{}", response.text()));
    assert!(answer.get("error").is_none(), "{method}: {answer}");
    answer["result"].clone()
}

/// Why a client was not let in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// By an error reply.
    Error { code: u64, temporary: bool },
    /// By a Close frame with this code.
    Closed(u16),
}

/// A client of the JSON protocol.
pub(crate) struct Client {
    socket: WebSocket,
    arrived: VecDeque<Value>,
}

impl Client {
    /// Connects; with the connect result.
    pub(crate) fn connect(address: SocketAddr, user: &str) -> (Client, Value) {
        Client::try_connect(address, user).unwrap_or_else(|refusal| panic!("{refusal:?}"))
    }

    /// Connects, or is refused.
    pub(crate) fn try_connect(address: SocketAddr, user: &str) -> Result<(Client, Value), Refused> {
        let socket = WebSocket::open(address, PATH, None);
        let mut client = Client { socket, arrived: VecDeque::new() };
        client.socket.send_text(&json!({ "id": 1, "connect": { "token": token(user) } }).to_string());
        let reply = client.next().map_err(Refused::Closed)?;
        match reply["error"]["code"].as_u64() {
            Some(code) => Err(Refused::Error { code, temporary: reply["error"]["temporary"] == true }),
            None => Ok((client, reply["connect"].clone())),
        }
    }

    /// Subscribes; with the result.
    pub(crate) fn subscribe(&mut self, channel: &str) -> Value {
        self.socket.send_text(&json!({ "id": 2, "subscribe": { "channel": channel } }).to_string());
        loop {
            let reply = self.next().expect("an answer");
            if reply["id"] == 2 {
                assert!(reply.get("subscribe").is_some(), "{reply}");
                return reply["subscribe"].clone();
            }
        }
    }

    /// The next message but pings, which are answered; or the code of the Close frame.
    pub(crate) fn next(&mut self) -> Result<Value, u16> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(value) = self.arrived.pop_front() {
                return Ok(value);
            }
            let Received::Frame(frame) = self.socket.try_frame(end.saturating_duration_since(Instant::now())) else {
                panic!("nothing came, or the connection ended without a Close frame");
            };
            if frame.opcode == CLOSE {
                return Err(u16::from_be_bytes([frame.payload[0], frame.payload[1]]));
            }
            let text = String::from_utf8(frame.payload).expect("text");
            for line in text.lines() {
                match serde_json::from_str(line).expect("JSON") {
                    Value::Object(empty) if empty.is_empty() => self.socket.send_text("{}"),
                    value => self.arrived.push_back(value),
                }
            }
        }
    }

    /// The number in the next message, which must be a publication.
    pub(crate) fn published(&mut self) -> u64 {
        let push = self.next().expect("a push");
        push["push"]["pub"]["data"]["n"].as_u64().unwrap_or_else(|| panic!("{push}"))
    }
}
