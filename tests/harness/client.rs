//! The client protocol over a [`WebSocket`], in both encodings, one typed view of both.
//!
//! In: commands. Out: replies, pushes in the order in which they came. Pings are answered unless a test says no.
//! Written from the protocol's description, with nothing shared with the server's codec.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::protobuf as pb;
use crate::websocket::{self, Close, Received, WebSocket};
use crate::{PATIENCE, Server};

/// Where SDKs connect by default.
pub const PATH: &str = "/connection/websocket";

/// How messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Text frames, one JSON object per line.
    Json,
    /// Binary frames, length-prefixed messages, subprotocol `centrifuge-protobuf`.
    Protobuf,
}

/// One publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// 0 in a channel without history.
    pub offset: u64,
    /// The payload; in JSON re-written without spaces.
    pub data: Vec<u8>,
    /// Id of the client that published, if a client did.
    pub publisher: Option<String>,
}

/// An error object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyError {
    /// From the protocol's table.
    pub code: u64,
    /// Never empty.
    pub message: String,
    /// Whether SDKs try again.
    pub temporary: bool,
}

/// Result of subscribe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subscribed {
    /// SDKs keep the position and recover.
    pub recoverable: bool,
    /// Of the position.
    pub epoch: String,
    /// Top of the stream, or the offset of the request when recovered.
    pub offset: u64,
    /// Everything missed is in `publications`.
    pub recovered: bool,
    /// The request asked to recover.
    pub was_recovering: bool,
    /// What was missed.
    pub publications: Vec<Publication>,
}

/// Result of connect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connected {
    /// Client id.
    pub client: String,
    /// Ping interval in seconds.
    pub ping: u64,
    /// Pongs are expected.
    pub pong: bool,
}

/// What follows the id in a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Error object.
    Error(ReplyError),
    /// Connect result.
    Connect(Connected),
    /// Subscribe result.
    Subscribe(Subscribed),
    /// Any other result object, by its field name.
    Other(&'static str),
}

/// An unsolicited message about a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Push {
    /// A publication on this channel.
    Publication(String, Publication),
    /// The server ended the subscription: channel and code.
    Unsubscribe(String, u64),
    /// Join, leave, message and so on.
    Other(String),
}

/// One message of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Empty reply.
    Ping,
    /// Answer to the command with this id.
    Reply(u32, Body),
    /// Push.
    Push(Push),
}

/// Where to resume.
#[derive(Clone, Debug, Default)]
pub struct SubscribeOptions<'a> {
    /// Ask for what was published since (offset, epoch).
    pub recover: Option<(u64, &'a str)>,
}

/// A connection that speaks the client protocol.
#[derive(Debug)]
pub struct Client {
    /// The connection below.
    pub socket: WebSocket,
    /// The encoding.
    pub encoding: Encoding,
    /// Whether pings are answered.
    pub answer_pings: bool,
    /// Pings seen.
    pub pings: u32,
    /// Result of the connect command.
    pub connected: Connected,
    /// Set when a Close frame came or the connection ended.
    pub close: Option<Close>,
    last_id: u32,
    arrived: VecDeque<Message>,
    pushes: VecDeque<Push>,
}

const RESULTS: [&str; 8] =
    ["unsubscribe", "publish", "presence", "presence_stats", "history", "ping", "rpc", "refresh"];

impl Client {
    /// Upgrades, sends no command.
    pub fn open(address: SocketAddr, encoding: Encoding) -> Client {
        let subprotocol = (encoding == Encoding::Protobuf).then_some("centrifuge-protobuf");
        Self::over(WebSocket::open(address, PATH, subprotocol), encoding)
    }

    /// Speaks over a connection that is already upgraded.
    pub fn over(socket: WebSocket, encoding: Encoding) -> Client {
        Client {
            socket,
            encoding,
            answer_pings: true,
            pings: 0,
            connected: Connected::default(),
            close: None,
            last_id: 0,
            arrived: VecDeque::new(),
            pushes: VecDeque::new(),
        }
    }

    /// Upgrades and connects, in JSON.
    pub fn connect(server: &Server) -> Client {
        Self::connect_as(server, Encoding::Json)
    }

    /// Upgrades and connects.
    pub fn connect_as(server: &Server, encoding: Encoding) -> Client {
        let mut client = Self::open(server.client, encoding);
        client.say_connect();
        client
    }

    /// Sends the connect command and checks its result.
    pub fn say_connect(&mut self) {
        let id = self.send("connect", &[]);
        match self.reply(id) {
            Body::Connect(connected) => self.connected = connected,
            other => panic!("connect was answered {other:?}"),
        }
        assert!(!self.connected.client.is_empty(), "a connect result names the client");
    }

    /// Sends a command with string parameters (and `data`, which is raw) and gives its id.
    pub fn send(&mut self, name: &str, parameters: &[(&str, &str)]) -> u32 {
        self.last_id += 1;
        let id = self.last_id;
        let bytes = self.command(id, name, parameters, &SubscribeOptions::default());
        self.send_message(&bytes);
        id
    }

    /// Sends a subscribe command and gives its id.
    pub fn send_subscribe(&mut self, channel: &str, options: &SubscribeOptions<'_>) -> u32 {
        self.last_id += 1;
        let id = self.last_id;
        let bytes = self.command(id, "subscribe", &[("channel", channel)], options);
        self.send_message(&bytes);
        id
    }

    /// Sends one message in the connection's frame type.
    pub fn send_message(&mut self, bytes: &[u8]) {
        let opcode = if self.encoding == Encoding::Json { websocket::TEXT } else { websocket::BINARY };
        self.socket.send_frame(true, opcode, bytes);
    }

    /// A command as bytes, in Protobuf with its length in front.
    pub fn command(&self, id: u32, name: &str, parameters: &[(&str, &str)], options: &SubscribeOptions<'_>) -> Vec<u8> {
        encode_command(self.encoding, id, name, parameters, options)
    }

    /// Sends a command and waits for its answer; what is pushed meanwhile is kept.
    pub fn request(&mut self, name: &str, parameters: &[(&str, &str)]) -> Body {
        let id = self.send(name, parameters);
        self.reply(id)
    }

    /// Subscribes; an error fails the test.
    pub fn subscribe(&mut self, channel: &str) -> Subscribed {
        self.subscribe_with(channel, &SubscribeOptions::default())
    }

    /// Subscribes from a position; an error fails the test.
    pub fn subscribe_with(&mut self, channel: &str, options: &SubscribeOptions<'_>) -> Subscribed {
        let id = self.send_subscribe(channel, options);
        match self.reply(id) {
            Body::Subscribe(subscribed) => subscribed,
            other => panic!("subscribe to {channel} was answered {other:?}"),
        }
    }

    /// Publishes; an error fails the test.
    pub fn publish(&mut self, channel: &str, data: &str) {
        let body = self.request("publish", &[("channel", channel), ("data", data)]);
        assert_eq!(body, Body::Other("publish"), "publish to {channel}");
    }

    /// Sends a command that must be refused and gives the error.
    pub fn refused(&mut self, name: &str, parameters: &[(&str, &str)]) -> ReplyError {
        match self.request(name, parameters) {
            Body::Error(error) => {
                assert!(!error.message.is_empty(), "an error without a text breaks the Python SDK");
                error
            }
            other => panic!("{name} {parameters:?} was answered {other:?}, not refused"),
        }
    }

    /// Waits for the answer to a command.
    pub fn reply(&mut self, id: u32) -> Body {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.message(end.saturating_duration_since(Instant::now())) {
                Some(Message::Reply(of, body)) if of == id => return body,
                Some(Message::Reply(of, body)) => panic!("reply to {of} while waiting for {id}: {body:?}"),
                Some(Message::Push(push)) => self.pushes.push_back(push),
                Some(Message::Ping) => {}
                None => panic!("no reply to command {id}; close: {:?}", self.close),
            }
        }
    }

    /// The next push.
    pub fn push(&mut self) -> Push {
        self.try_push(PATIENCE).unwrap_or_else(|| panic!("no push came; close: {:?}", self.close))
    }

    /// The next push within a time.
    pub fn try_push(&mut self, within: Duration) -> Option<Push> {
        let end = Instant::now() + within;
        if let Some(push) = self.pushes.pop_front() {
            return Some(push);
        }
        loop {
            match self.message(end.saturating_duration_since(Instant::now()))? {
                Message::Push(push) => return Some(push),
                Message::Ping => {}
                Message::Reply(id, body) => panic!("an answer to {id} that nobody waits for: {body:?}"),
            }
        }
    }

    /// The next push, which must be a publication on `channel`.
    pub fn publication(&mut self, channel: &str) -> Publication {
        match self.push() {
            Push::Publication(of, publication) if of == channel => publication,
            other => panic!("a publication on {channel} was expected, not {other:?}"),
        }
    }

    /// Checks that a round trip works: the connection is unharmed.
    pub fn assert_alive(&mut self) {
        let error = self.refused("subscribe", &[("channel", "")]);
        assert_eq!(error.code, 107, "{error:?}");
    }

    /// Waits for the end of the connection and gives the Close frame.
    pub fn expect_close(&mut self) -> Close {
        match self.close.take() {
            Some(close) => close,
            None => self.socket.expect_close(),
        }
    }

    /// The next message in order of arrival, whatever it is; none when nothing came in time or the connection ended
    /// ([`Client::close`] says which).
    pub fn message(&mut self, within: Duration) -> Option<Message> {
        let end = Instant::now() + within;
        while self.arrived.is_empty() {
            match self.socket.try_frame(end.saturating_duration_since(Instant::now())) {
                Received::Frame(frame) if frame.opcode == websocket::CLOSE => {
                    let code = frame.payload.get(..2).map(|code| u16::from_be_bytes([code[0], code[1]]));
                    let reason = frame.payload.get(2..).map(String::from_utf8_lossy).unwrap_or_default().into_owned();
                    self.socket.send_frame(true, websocket::CLOSE, &frame.payload);
                    self.close = Some(Close { code, reason });
                    return None;
                }
                Received::Frame(frame) if matches!(frame.opcode, websocket::PING | websocket::PONG) => {}
                Received::Frame(frame) => {
                    let expected = if self.encoding == Encoding::Json { websocket::TEXT } else { websocket::BINARY };
                    assert!(frame.fin && frame.opcode == expected, "unexpected frame {frame:?}");
                    self.take(&frame.payload);
                }
                Received::End => {
                    self.close.get_or_insert(Close { code: None, reason: String::new() });
                    return None;
                }
                Received::Nothing => return None,
            }
        }
        self.arrived.pop_front()
    }

    fn take(&mut self, payload: &[u8]) {
        let first = self.arrived.len();
        self.arrived.extend(decode_messages(self.encoding, payload));
        let pings = self.arrived.iter().skip(first).filter(|message| **message == Message::Ping).count();
        self.pings += pings as u32;
        for _ in 0..pings {
            if self.answer_pings {
                let pong: &[u8] = if self.encoding == Encoding::Json { b"{}" } else { b"\0" };
                self.send_message(pong);
            }
        }
    }
}

/// A command as bytes, in Protobuf with its length in front.
pub fn encode_command(
    encoding: Encoding,
    id: u32,
    name: &str,
    parameters: &[(&str, &str)],
    options: &SubscribeOptions<'_>,
) -> Vec<u8> {
    match encoding {
        Encoding::Json => json_command(id, name, parameters, options),
        Encoding::Protobuf => protobuf_command(id, name, parameters, options),
    }
}

/// The messages of one frame, in order.
pub fn decode_messages(encoding: Encoding, payload: &[u8]) -> Vec<Message> {
    match encoding {
        Encoding::Json => {
            let text = std::str::from_utf8(payload).expect("a text frame is UTF-8");
            let lines = text.lines().filter(|line| !line.is_empty());
            let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
            lines.map(|line| json_message(&parse(line))).collect()
        }
        Encoding::Protobuf => {
            let (mut rest, mut messages) = (payload, Vec::new());
            while !rest.is_empty() {
                messages.push(protobuf_message(pb::read_bytes(&mut rest)));
            }
            messages
        }
    }
}

fn json_command(id: u32, name: &str, parameters: &[(&str, &str)], options: &SubscribeOptions<'_>) -> Vec<u8> {
    let mut object = Map::new();
    for (key, value) in parameters {
        let value = if *key == "data" { serde_json::from_str(value).expect("data is JSON") } else { json!(value) };
        object.insert((*key).to_owned(), value);
    }
    if let Some((offset, epoch)) = options.recover {
        object.insert("recover".into(), json!(true));
        object.insert("offset".into(), json!(offset));
        object.insert("epoch".into(), json!(epoch));
    }
    // centrifuge-js writes the id behind the request, so both orders must work: odd ids go first here.
    if id % 2 == 1 {
        format!("{{\"id\":{id},{}:{}}}", json!(name), Value::Object(object)).into_bytes()
    } else {
        format!("{{{}:{},\"id\":{id}}}", json!(name), Value::Object(object)).into_bytes()
    }
}

/// Field numbers of commands and of their parameters.
fn protobuf_command(id: u32, name: &str, parameters: &[(&str, &str)], options: &SubscribeOptions<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in parameters {
        let field = match (name, *key) {
            ("connect", "token") | ("refresh", "token") | ("send", "data") | ("rpc", "data") | (_, "channel") => 1,
            ("publish", "data") | ("connect", "data") | ("rpc", "method") | ("subscribe", "token") => 2,
            other => panic!("no field number known for {other:?}"),
        };
        pb::write_bytes(&mut body, field, value.as_bytes());
    }
    if let Some((offset, epoch)) = options.recover {
        pb::write_number(&mut body, 3, 1);
        pb::write_bytes(&mut body, 6, epoch.as_bytes());
        pb::write_number(&mut body, 7, offset);
    }
    let field = match name {
        "connect" => 4,
        "subscribe" => 5,
        "unsubscribe" => 6,
        "publish" => 7,
        "presence" => 8,
        "presence_stats" => 9,
        "history" => 10,
        "ping" => 11,
        "send" => 12,
        "rpc" => 13,
        "refresh" => 14,
        "sub_refresh" => 15,
        other => panic!("no field number known for {other}"),
    };
    let mut command = Vec::new();
    pb::write_number(&mut command, 1, u64::from(id));
    pb::write_bytes(&mut command, field, &body);
    let mut out = Vec::new();
    pb::write_varint(&mut out, command.len() as u64);
    out.extend_from_slice(&command);
    out
}

fn json_message(reply: &Value) -> Message {
    if let Some(push) = reply.get("push") {
        return Message::Push(json_push(push));
    }
    let Some(id) = reply["id"].as_u64() else {
        assert_eq!(reply, &json!({}), "a message without id and push is a ping");
        return Message::Ping;
    };
    let body = if let Some(error) = reply.get("error") {
        Body::Error(ReplyError {
            code: error["code"].as_u64().unwrap_or(0),
            message: error["message"].as_str().unwrap_or_default().to_owned(),
            temporary: error["temporary"].as_bool().unwrap_or(false),
        })
    } else if let Some(result) = reply.get("connect") {
        Body::Connect(Connected {
            client: result["client"].as_str().unwrap_or_default().to_owned(),
            ping: result["ping"].as_u64().unwrap_or(0),
            pong: result["pong"].as_bool().unwrap_or(false),
        })
    } else if let Some(result) = reply.get("subscribe") {
        let publications = result["publications"].as_array().map(Vec::as_slice).unwrap_or_default();
        Body::Subscribe(Subscribed {
            recoverable: result["recoverable"].as_bool().unwrap_or(false),
            epoch: result["epoch"].as_str().unwrap_or_default().to_owned(),
            offset: result["offset"].as_u64().unwrap_or(0),
            recovered: result["recovered"].as_bool().unwrap_or(false),
            was_recovering: result["was_recovering"].as_bool().unwrap_or(false),
            publications: publications.iter().map(json_publication).collect(),
        })
    } else {
        let name = RESULTS.into_iter().find(|name| reply.get(name).is_some_and(Value::is_object));
        Body::Other(name.unwrap_or_else(|| panic!("a reply without a result object: {reply}")))
    };
    Message::Reply(id as u32, body)
}

fn json_push(push: &Value) -> Push {
    let channel = push["channel"].as_str().unwrap_or_default().to_owned();
    if let Some(publication) = push.get("pub") {
        Push::Publication(channel, json_publication(publication))
    } else if let Some(unsubscribe) = push.get("unsubscribe") {
        Push::Unsubscribe(channel, unsubscribe["code"].as_u64().unwrap_or(0))
    } else {
        Push::Other(push.to_string())
    }
}

fn json_publication(publication: &Value) -> Publication {
    Publication {
        offset: publication["offset"].as_u64().unwrap_or(0),
        data: publication["data"].to_string().into_bytes(),
        publisher: publication["info"]["client"].as_str().map(str::to_owned),
    }
}

fn protobuf_message(message: &[u8]) -> Message {
    let reply = pb::fields(message);
    if reply.is_empty() {
        return Message::Ping;
    }
    if let Some(push) = pb::bytes(&reply, 4) {
        return Message::Push(protobuf_push(push));
    }
    let id = pb::number(&reply, 1) as u32;
    let body = if let Some(error) = pb::bytes(&reply, 2) {
        let error = pb::fields(error);
        Body::Error(ReplyError {
            code: pb::number(&error, 1),
            message: pb::text(&error, 2),
            temporary: pb::number(&error, 3) != 0,
        })
    } else if let Some(result) = pb::bytes(&reply, 5) {
        let result = pb::fields(result);
        Body::Connect(Connected {
            client: pb::text(&result, 1),
            ping: pb::number(&result, 7),
            pong: pb::number(&result, 8) != 0,
        })
    } else if let Some(result) = pb::bytes(&reply, 6) {
        let result = pb::fields(result);
        Body::Subscribe(Subscribed {
            recoverable: pb::number(&result, 3) != 0,
            epoch: pb::text(&result, 6),
            offset: pb::number(&result, 9),
            recovered: pb::number(&result, 8) != 0,
            was_recovering: pb::number(&result, 12) != 0,
            publications: pb::all(&result, 7).map(protobuf_publication).collect(),
        })
    } else {
        let name = RESULTS.into_iter().zip(7..).find(|(_, field)| pb::bytes(&reply, *field).is_some());
        Body::Other(name.unwrap_or_else(|| panic!("a reply without a result: {reply:?}")).0)
    };
    Message::Reply(id, body)
}

fn protobuf_push(push: &[u8]) -> Push {
    let push = pb::fields(push);
    let channel = pb::text(&push, 2);
    if let Some(publication) = pb::bytes(&push, 4) {
        Push::Publication(channel, protobuf_publication(publication))
    } else if let Some(unsubscribe) = pb::bytes(&push, 7) {
        Push::Unsubscribe(channel, pb::number(&pb::fields(unsubscribe), 2))
    } else {
        Push::Other(format!("{push:?}"))
    }
}

fn protobuf_publication(publication: &[u8]) -> Publication {
    let publication = pb::fields(publication);
    Publication {
        offset: pb::number(&publication, 6),
        data: pb::bytes(&publication, 4).unwrap_or_default().to_vec(),
        publisher: pb::bytes(&publication, 5).map(|info| pb::text(&pb::fields(info), 2)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_messages_are_told_apart() {
        let read = |text: &str| json_message(&serde_json::from_str(text).expect("JSON"));
        assert_eq!(read("{}"), Message::Ping);
        assert_eq!(read(r#"{"id":3,"publish":{}}"#), Message::Reply(3, Body::Other("publish")));
        let Message::Push(Push::Publication(channel, publication)) =
            read(r#"{"push":{"channel":"a","pub":{"data":{"n":1},"offset":7}}}"#)
        else {
            panic!("a publication")
        };
        assert_eq!((channel.as_str(), publication.offset, publication.data.as_slice()), ("a", 7, &br#"{"n":1}"#[..]));
    }

    #[test]
    fn protobuf_commands_have_the_documented_bytes() {
        // Command{id:2, subscribe{channel:"a"}}: 08 02, then field 5 with a message of 3 bytes.
        let bytes = protobuf_command(2, "subscribe", &[("channel", "a")], &SubscribeOptions::default());
        assert_eq!(bytes, [7, 8, 2, 0x2A, 3, 0x0A, 1, b'a']);
        assert_eq!(protobuf_message(&[8, 2, 0x42, 0]), Message::Reply(2, Body::Other("publish")));
        assert_eq!(protobuf_message(&[]), Message::Ping);
    }
}
