//! The client side of what the connections speak: upgrade, opening commands, and what a received message holds.
//!
//! In: options at start; then upgrade answers and message payloads. Out: request and command bytes; an [`Item`] for
//! each ping, reply and push in a message.
//!
//! Invariants: nothing is allocated per message; a masked frame uses one fixed key, since masking protects browsers'
//! proxies and not a measurement, while the server's unmasking stays real work.
use std::borrow::Cow;

use memchr::{memchr, memmem};
use ringway_wire::frame::{Opcode, write_client_header};
use ringway_wire::upgrade::accept_key;

use crate::nats;
use crate::options::{CHANNEL_MARK, Protocol};

/// The handshake key of every connection: 16 bytes in base64. One key, so that the expected answer is computed once.
const UPGRADE_KEY: &[u8; 24] = b"cmluZ3dheS1sb2FkLWdlbg==";
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
/// Subscribe commands in one frame.
const COMMANDS_PER_FRAME: u32 = 32;
/// What is offered for compression (RFC 7692 §7.1.1): nothing is to be remembered between messages, on either side, so
/// that one inflater serves all connections.
const DEFLATE_OFFER: &str =
    "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n";
/// Longest answer to an upgrade, in bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// One thing that a received message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// An empty reply: the server asks whether we are there.
    Ping,
    /// Anything else; a push holds a stamp, a reply does not.
    Message(&'a [u8]),
}

/// What a reply says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The command was done; `pong` if it was the connect and pings are to be answered.
    Done {
        /// The connect result asks for pongs.
        pong: bool,
    },
    /// The command was refused.
    Refused(String),
    /// Not a reply: a push of another kind, such as a join.
    Other,
}

/// The bytes that open a connection of one kind.
#[derive(Clone, Debug)]
pub struct Dialect {
    protocol: Protocol,
    /// What stands before and behind the number of a channel; all of it before, if the path has none.
    request: (Vec<u8>, Option<Vec<u8>>),
    deflate: bool,
    accept: [u8; 28],
    pong: Vec<u8>,
}

impl Dialect {
    /// For a server at `host` and `path`; `deflate`: compression is offered, and must be accepted.
    pub fn new(protocol: Protocol, host: &str, path: &str, deflate: bool) -> Dialect {
        let subprotocol = match protocol {
            Protocol::CentrifugeProtobuf => "Sec-WebSocket-Protocol: centrifuge-protobuf\r\n",
            Protocol::CentrifugeJson | Protocol::Websocket | Protocol::Nats => "",
        };
        let extensions = if deflate { DEFLATE_OFFER } else { "" };
        let key = String::from_utf8_lossy(UPGRADE_KEY);
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{subprotocol}{extensions}\r\n"
        );
        let request = match request.split_once(CHANNEL_MARK) {
            Some((before, behind)) => (before.as_bytes().to_vec(), Some(behind.as_bytes().to_vec())),
            None => (request.into_bytes(), None),
        };
        let mut pong = Vec::new();
        match protocol {
            Protocol::CentrifugeJson => write_frame(&mut pong, Opcode::Text, b"{}"),
            Protocol::CentrifugeProtobuf => write_frame(&mut pong, Opcode::Binary, &[0]),
            Protocol::Nats => write_frame(&mut pong, Opcode::Binary, nats::PONG),
            Protocol::Websocket => {}
        }
        Dialect { protocol, request, deflate, accept: accept_key(UPGRADE_KEY), pong }
    }

    /// The upgrade request of a connection whose first channel has this number.
    pub fn request(&self, channel: u32) -> Cow<'_, [u8]> {
        match &self.request {
            (whole, None) => Cow::Borrowed(whole),
            (before, Some(behind)) => Cow::Owned([before, channel.to_string().as_bytes(), behind].concat()),
        }
    }

    /// The frame that answers a ping of the client protocol.
    pub fn pong(&self) -> &[u8] {
        &self.pong
    }

    /// The frame type of data messages.
    pub fn opcode(&self) -> Opcode {
        match self.protocol {
            Protocol::CentrifugeProtobuf | Protocol::Nats => Opcode::Binary,
            Protocol::CentrifugeJson | Protocol::Websocket => Opcode::Text,
        }
    }

    /// Length of the answer to the upgrade, once it is whole.
    ///
    /// # Errors
    /// What is wrong with it: not 101, a wrong accept key, or another say about compression than was asked for.
    pub fn answer_len(&self, bytes: &[u8]) -> Result<Option<usize>, String> {
        let Some(end) = memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4) else {
            let too_long = bytes.len() > ANSWER_BYTES_MAX;
            return if too_long { Err("upgrade answer without end".to_string()) } else { Ok(None) };
        };
        let answer = &bytes[..end];
        if !answer.starts_with(b"HTTP/1.1 101") {
            let line = answer.split(|byte| *byte == b'\r').next().unwrap_or(answer);
            return Err(format!("upgrade refused: {}", String::from_utf8_lossy(line)));
        }
        if memmem::find(answer, &self.accept).is_none() {
            return Err("upgrade answer has a wrong Sec-WebSocket-Accept".to_string());
        }
        let extensions = extensions(answer);
        if !self.deflate && !extensions.is_empty() {
            return Err(format!("upgrade answer has an extension that was not offered: {extensions}"));
        }
        // A client that does not compress need not hear about its own takeover; it must not inflate what needs a memory.
        if self.deflate
            && !(extensions.starts_with("permessage-deflate") && extensions.contains("server_no_context_takeover"))
        {
            return Err(format!("compression was not accepted as offered: {extensions:?}"));
        }
        Ok(Some(end))
    }

    /// Frames with the connect command and a subscribe command per channel; empty for plain WebSocket.
    pub fn opening(&self, token: Option<&str>, channels: impl Iterator<Item = String>, join_leave: bool) -> Vec<u8> {
        let mut out = Vec::new();
        let mut batch = Vec::new();
        match self.protocol {
            Protocol::Websocket => return out,
            Protocol::Nats => {
                write_frame(&mut out, self.opcode(), &nats::opening(channels));
                return out;
            }
            Protocol::CentrifugeJson => {
                let connect =
                    token.map_or_else(|| "{}".to_string(), |token| format!("{{\"token\":{}}}", quoted(token)));
                batch.extend_from_slice(format!("{{\"id\":1,\"connect\":{connect}}}").as_bytes());
            }
            Protocol::CentrifugeProtobuf => {
                let mut connect = Vec::new();
                if let Some(token) = token {
                    write_field(&mut connect, 1, token.as_bytes());
                }
                write_command(&mut batch, 1, 4, &connect);
            }
        }
        for (index, channel) in (0u32..).zip(channels) {
            if index % COMMANDS_PER_FRAME == COMMANDS_PER_FRAME - 1 {
                write_frame(&mut out, self.opcode(), &batch);
                batch.clear();
            }
            let id = index + 2;
            self.write_subscribe(&mut batch, id, &channel, join_leave);
        }
        write_frame(&mut out, self.opcode(), &batch);
        out
    }

    /// A frame with one subscribe command; `join_leave`: with others' joins and leaves.
    pub fn subscribing(&self, id: u32, channel: &str, join_leave: bool) -> Vec<u8> {
        let (mut command, mut out) = (Vec::new(), Vec::new());
        self.write_subscribe(&mut command, id, channel, join_leave);
        write_frame(&mut out, self.opcode(), &command);
        out
    }

    /// A frame with one unsubscribe command.
    pub fn unsubscribing(&self, id: u32, channel: &str) -> Vec<u8> {
        let (mut command, mut out) = (Vec::new(), Vec::new());
        if self.protocol == Protocol::CentrifugeJson {
            let text = format!("{{\"id\":{id},\"unsubscribe\":{{\"channel\":{}}}}}", quoted(channel));
            command.extend_from_slice(text.as_bytes());
        } else {
            let mut unsubscribe = Vec::new();
            write_field(&mut unsubscribe, 1, channel.as_bytes());
            write_command(&mut command, id, 6, &unsubscribe);
        }
        write_frame(&mut out, self.opcode(), &command);
        out
    }

    fn write_subscribe(&self, batch: &mut Vec<u8>, id: u32, channel: &str, join_leave: bool) {
        if self.protocol == Protocol::CentrifugeJson {
            if !batch.is_empty() {
                batch.push(b'\n');
            }
            let asks = if join_leave { ",\"join_leave\":true" } else { "" };
            let command = format!("{{\"id\":{id},\"subscribe\":{{\"channel\":{}{asks}}}}}", quoted(channel));
            batch.extend_from_slice(command.as_bytes());
        } else {
            let mut subscribe = Vec::new();
            write_field(&mut subscribe, 1, channel.as_bytes());
            if join_leave {
                subscribe.extend_from_slice(&[11 << 3, 1]);
            }
            write_command(batch, id, 5, &subscribe);
        }
    }

    /// How many replies the opening commands bring.
    pub fn replies(&self, subscriptions: u32) -> u32 {
        match self.protocol {
            Protocol::Websocket => 0,
            Protocol::Nats => 1,
            Protocol::CentrifugeJson | Protocol::CentrifugeProtobuf => subscriptions + 1,
        }
    }

    /// The next item at the front of a message, and how many bytes it takes; None at the end.
    #[inline]
    pub fn next_item<'a>(&self, message: &'a [u8]) -> Result<Option<(Item<'a>, usize)>, String> {
        if message.is_empty() {
            return Ok(None);
        }
        match self.protocol {
            Protocol::Websocket => Ok(Some((Item::Message(message), message.len()))),
            Protocol::Nats => nats::next_item(message).map(Some),
            Protocol::CentrifugeJson => {
                let (line, used) = match memchr(b'\n', message) {
                    Some(at) => (&message[..at], at + 1),
                    None => (message, message.len()),
                };
                Ok(Some((if line == b"{}" { Item::Ping } else { Item::Message(line) }, used)))
            }
            Protocol::CentrifugeProtobuf => {
                let (length, start) = read_varint(message).ok_or("a protobuf length is cut")?;
                let end = usize::try_from(length).ok().and_then(|length| start.checked_add(length));
                let end = end.filter(|end| *end <= message.len()).ok_or("a protobuf message is cut")?;
                Ok(Some((if length == 0 { Item::Ping } else { Item::Message(&message[start..end]) }, end)))
            }
        }
    }

    /// Whether a message is a push that tells of somebody's coming or going.
    pub fn is_join_or_leave(&self, message: &[u8]) -> bool {
        match self.protocol {
            Protocol::Websocket | Protocol::Nats => false,
            Protocol::CentrifugeJson => {
                let has = |key: &[u8]| memmem::find(message, key).is_some();
                message.starts_with(b"{\"push\":") && (has(b"\"join\":{") || has(b"\"leave\":{"))
            }
            Protocol::CentrifugeProtobuf => fields(message).any(|(field, value)| match value {
                Field::Bytes(push) if field == 4 => fields(push).any(|(field, _)| field == 5 || field == 6),
                Field::Bytes(_) | Field::Number(_) => false,
            }),
        }
    }

    /// What a message without a stamp says.
    pub fn reply(&self, message: &[u8]) -> Reply {
        match self.protocol {
            Protocol::Websocket => Reply::Other,
            Protocol::Nats => nats::reply(message),
            Protocol::CentrifugeJson => json_reply(message),
            Protocol::CentrifugeProtobuf => protobuf_reply(message),
        }
    }
}

/// The value of the extensions header of an upgrade's answer, in lower case; empty without one.
fn extensions(answer: &[u8]) -> String {
    let answer = String::from_utf8_lossy(answer).to_ascii_lowercase();
    let value = answer.lines().find_map(|line| line.strip_prefix("sec-websocket-extensions:"));
    value.unwrap_or_default().trim().to_string()
}

/// Appends a whole masked client frame.
pub fn write_frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    write_client_header(out, opcode, payload.len(), MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
}

/// A server frame at the front of the received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The four opcode bits.
    pub opcode: u8,
    /// The payload is compressed (RFC 7692 §6).
    pub compressed: bool,
    /// The payload.
    pub payload: &'a [u8],
    /// Bytes of the whole frame.
    pub length: usize,
}

/// The frame at the front of `bytes`; None while it is not whole. Servers under test send no fragments and no masks;
/// `deflate`: text and binary may be compressed.
#[inline]
pub fn next_frame(bytes: &[u8], deflate: bool) -> Result<Option<Frame<'_>>, String> {
    let &[first, second, ..] = bytes else { return Ok(None) };
    let compressed = deflate && matches!(first, 0xc1 | 0xc2);
    if (first & 0xf0 != 0x80 && !compressed) || second & 0x80 != 0 {
        return Err(format!("unexpected frame header {first:02x} {second:02x}"));
    }
    let (start, length) = match second {
        126 => match bytes.get(2..4) {
            Some(length) => (4, u64::from(u16::from_be_bytes([length[0], length[1]]))),
            None => return Ok(None),
        },
        127 => match bytes.get(2..10).and_then(|length| length.first_chunk::<8>()) {
            Some(length) => (10, u64::from_be_bytes(*length)),
            None => return Ok(None),
        },
        length => (2, u64::from(length)),
    };
    let end = usize::try_from(length).ok().and_then(|length| length.checked_add(start)).ok_or("a frame is too long")?;
    Ok(bytes.get(start..end).map(|payload| Frame { opcode: first & 0x0f, compressed, payload, length: end }))
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn json_reply(line: &[u8]) -> Reply {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(line) else {
        return Reply::Refused(format!("not JSON: {}", String::from_utf8_lossy(line)));
    };
    if value.get("id").and_then(serde_json::Value::as_u64).unwrap_or(0) == 0 {
        return Reply::Other;
    }
    match value.get("error") {
        Some(error) => Reply::Refused(error.to_string()),
        None => {
            let pong = value.get("connect").and_then(|connect| connect.get("pong"));
            Reply::Done { pong: pong.and_then(serde_json::Value::as_bool).unwrap_or(false) }
        }
    }
}

fn protobuf_reply(message: &[u8]) -> Reply {
    let (mut id, mut refused, mut pong) = (0, None, false);
    for (field, value) in fields(message) {
        match (field, value) {
            (1, Field::Number(number)) => id = number,
            (2, Field::Bytes(error)) => refused = Some(protobuf_error(error)),
            (5, Field::Bytes(connect)) => {
                pong = fields(connect).any(|(field, value)| field == 8 && matches!(value, Field::Number(1)));
            }
            _ => {}
        }
    }
    match (id, refused) {
        (0, _) => Reply::Other,
        (_, Some(error)) => Reply::Refused(error),
        (_, None) => Reply::Done { pong },
    }
}

fn protobuf_error(error: &[u8]) -> String {
    let (mut code, mut text) = (0, String::new());
    for (field, value) in fields(error) {
        match (field, value) {
            (1, Field::Number(number)) => code = number,
            (2, Field::Bytes(bytes)) => text = String::from_utf8_lossy(bytes).into_owned(),
            _ => {}
        }
    }
    format!("{code} {text}")
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Fields of a Protobuf message up to the first that cannot be read; fixed-width fields do not occur in replies.
fn fields(mut rest: &[u8]) -> impl Iterator<Item = (u64, Field<'_>)> {
    std::iter::from_fn(move || {
        let (key, used) = read_varint(rest)?;
        let body = &rest[used..];
        let (number, used) = read_varint(body)?;
        match key & 7 {
            0 => {
                rest = &body[used..];
                Some((key >> 3, Field::Number(number)))
            }
            2 => {
                let end = used.checked_add(usize::try_from(number).ok()?)?;
                let bytes = body.get(used..end)?;
                rest = &body[end..];
                Some((key >> 3, Field::Bytes(bytes)))
            }
            _ => None,
        }
    })
}

#[inline]
fn read_varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0;
    for (index, &byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, index + 1));
        }
    }
    None
}

fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn write_field(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    write_varint(out, field << 3 | 2);
    write_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn write_command(out: &mut Vec<u8>, id: u32, field: u64, body: &[u8]) {
    let mut command = vec![1 << 3];
    write_varint(&mut command, u64::from(id));
    write_field(&mut command, field, body);
    write_varint(out, command.len() as u64);
    out.extend_from_slice(&command);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(dialect: &Dialect, mut message: &[u8]) -> Result<Vec<Option<Vec<u8>>>, String> {
        let mut found = Vec::new();
        while let Some((item, used)) = dialect.next_item(message)? {
            found.push(match item {
                Item::Ping => None,
                Item::Message(bytes) => Some(bytes.to_vec()),
            });
            message = &message[used..];
        }
        Ok(found)
    }

    #[test]
    fn json_batches_split_into_pings_replies_and_pushes() {
        let dialect = Dialect::new(Protocol::CentrifugeJson, "h", "/", false);
        let message = b"{\"id\":1,\"connect\":{\"ping\":25,\"pong\":true}}\n{}\n{\"push\":{}}\n";
        let found = items(&dialect, message).expect("whole");
        assert_eq!(found.len(), 3);
        assert_eq!(dialect.reply(found[0].as_ref().expect("a reply")), Reply::Done { pong: true });
        assert_eq!(found[1], None);
        assert_eq!(dialect.reply(found[2].as_ref().expect("a push")), Reply::Other);
        let refused = dialect.reply(b"{\"error\":{\"code\":103,\"message\":\"permission denied\"},\"id\":2}");
        assert!(matches!(refused, Reply::Refused(text) if text.contains("103")));
    }

    #[test]
    fn protobuf_batches_split_and_cut_ones_are_refused() {
        let dialect = Dialect::new(Protocol::CentrifugeProtobuf, "h", "/", false);
        let mut message = Vec::new();
        write_command(&mut message, 1, 5, &[8 << 3, 1]);
        message.push(0);
        write_command(&mut message, 2, 2, &[1 << 3, 103]);
        let found = items(&dialect, &message).expect("whole");
        assert_eq!(dialect.reply(found[0].as_ref().expect("a reply")), Reply::Done { pong: true });
        assert_eq!(found[1], None);
        assert_eq!(dialect.reply(found[2].as_ref().expect("a reply")), Reply::Refused("103 ".to_string()));
        assert!(items(&dialect, &message[..message.len() - 1]).is_err());
    }

    #[test]
    fn opening_commands_are_whole_frames_with_every_id_once() {
        let dialect = Dialect::new(Protocol::CentrifugeJson, "h", "/", false);
        let mut bytes = dialect.opening(Some("t\"k"), (0..100).map(|channel| format!("c{channel}")), false);
        let mut ids = Vec::new();
        while !bytes.is_empty() {
            let header = ringway_wire::frame::decode_header(&bytes).expect("good").expect("whole");
            let end = header.header_len + header.payload_len as usize;
            ringway_wire::mask::unmask(&mut bytes[header.header_len..end], header.mask.expect("clients mask"));
            let text = String::from_utf8(bytes[header.header_len..end].to_vec()).expect("text");
            for line in text.lines() {
                let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
                ids.push(value["id"].as_u64().expect("an id"));
            }
            bytes.drain(..end);
        }
        assert_eq!(ids, (1..=101).collect::<Vec<_>>());
        assert_eq!(dialect.replies(100), 101);
    }

    #[test]
    fn joins_and_leaves_are_told_from_other_messages() {
        let json = Dialect::new(Protocol::CentrifugeJson, "h", "/", false);
        assert!(json.is_join_or_leave(b"{\"push\":{\"channel\":\"c\",\"join\":{\"info\":{}}}}"));
        assert!(json.is_join_or_leave(b"{\"push\":{\"channel\":\"c\",\"leave\":{\"info\":{}}}}"));
        assert!(!json.is_join_or_leave(b"{\"push\":{\"channel\":\"c\",\"pub\":{\"data\":1}}}"));
        assert!(!json.is_join_or_leave(b"{\"id\":2,\"subscribe\":{}}"));
        let protobuf = Dialect::new(Protocol::CentrifugeProtobuf, "h", "/", false);
        for (field, told) in [(4, false), (5, true), (6, true), (7, false)] {
            let (mut push, mut message) = (Vec::new(), Vec::new());
            write_field(&mut push, 2, b"c");
            write_field(&mut push, field, &[]);
            write_field(&mut message, 4, &push);
            assert_eq!(protobuf.is_join_or_leave(&message), told, "field {field} of a push");
        }
    }

    #[test]
    fn frames_of_every_length_form_and_cut() {
        for length in [0usize, 1, 125, 126, 65_535, 65_536] {
            let mut bytes = Vec::new();
            ringway_wire::frame::write_server_header(&mut bytes, Opcode::Text, length);
            bytes.resize(bytes.len() + length, b'x');
            for deflate in [false, true] {
                let frame = next_frame(&bytes, deflate).expect("good").expect("whole");
                assert_eq!((frame.opcode, frame.payload.len(), frame.length), (1, length, bytes.len()));
                assert!(!frame.compressed);
                assert_eq!(next_frame(&bytes[..bytes.len() - 1], deflate), Ok(None));
            }
            bytes[0] |= 0x40;
            assert!(next_frame(&bytes, false).is_err(), "compressed without an agreement");
            assert!(next_frame(&bytes, true).expect("good").expect("whole").compressed);
        }
        assert!(next_frame(&[0x01, 0x00], true).is_err(), "a fragment");
        assert!(next_frame(&[0x81, 0x80], true).is_err(), "a masked server frame");
        assert!(next_frame(&[0xc9, 0x00], true).is_err(), "a compressed ping");
    }

    #[test]
    fn upgrade_answers_are_checked() {
        let dialect = Dialect::new(Protocol::Websocket, "h", "/", false);
        let key = accept_key(UPGRADE_KEY);
        let good = format!(
            "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {}\r\n\r\n",
            String::from_utf8_lossy(&key)
        );
        assert_eq!(dialect.answer_len(good.as_bytes()), Ok(Some(good.len())));
        assert_eq!(dialect.answer_len(&good.as_bytes()[..good.len() - 1]), Ok(None));
        assert!(dialect.answer_len(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").is_err());
        assert!(dialect.answer_len(b"HTTP/1.1 101 x\r\nSec-WebSocket-Accept: nonsense\r\n\r\n").is_err());
        let deflating = Dialect::new(Protocol::Websocket, "h", "/", true);
        for (extensions, plain_takes, deflating_takes) in [
            ("", true, false),
            ("sec-websocket-extensions: permessage-deflate; server_no_context_takeover\r\n", false, true),
            ("Sec-WebSocket-Extensions: permessage-deflate\r\n", false, false),
            ("Sec-WebSocket-Extensions: other; server_no_context_takeover\r\n", false, false),
        ] {
            let answer = good.replace("\r\n\r\n", &format!("\r\n{extensions}\r\n"));
            assert_eq!(dialect.answer_len(answer.as_bytes()).is_ok(), plain_takes, "{extensions}");
            assert_eq!(deflating.answer_len(answer.as_bytes()).is_ok(), deflating_takes, "{extensions}");
        }
        let offered = |dialect: &Dialect| String::from_utf8_lossy(&dialect.request(0)).contains("permessage-deflate");
        assert_eq!((offered(&dialect), offered(&deflating)), (false, true));
    }

    #[test]
    fn a_path_may_name_the_channel() {
        let numbered = Dialect::new(Protocol::Websocket, "h", "/direct/{channel}?x=1", false);
        let line = |channel| String::from_utf8_lossy(&numbered.request(channel)).lines().next().map(str::to_string);
        assert_eq!(line(0).as_deref(), Some("GET /direct/0?x=1 HTTP/1.1"));
        assert_eq!(line(4711).as_deref(), Some("GET /direct/4711?x=1 HTTP/1.1"));
    }
}
