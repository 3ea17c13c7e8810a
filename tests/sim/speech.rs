//! The client protocol as the simulated clients speak it: commands and messages as plain values, in JSON and Protobuf.
//!
//! In: a command as a JSON object; payloads of messages that arrived. Out: bytes of the command; [`Message`]s. One table
//! of fields serves both directions of the Protobuf form. Written from the protocol's description, with nothing shared
//! with the server's codec.

use ringway_tests::{Encoding, protobuf as pb};
use serde_json::{Map, Value, json};

/// One publication, as it came.
#[derive(Clone, Debug)]
pub(crate) struct Publication {
    /// 0 in a channel without history.
    pub(crate) offset: u64,
    /// The payload, or a delta to the one before.
    pub(crate) data: Vec<u8>,
    pub(crate) delta: bool,
    /// `data` came as text around the payload.
    pub(crate) as_text: bool,
    /// Id of the client that published, if a client did.
    pub(crate) publisher: Option<String>,
}

/// Result of a subscribe, or an entry of a connect result.
#[derive(Clone, Debug)]
pub(crate) struct Subscribed {
    pub(crate) recoverable: bool,
    pub(crate) epoch: String,
    pub(crate) offset: u64,
    pub(crate) recovered: bool,
    pub(crate) was_recovering: bool,
    pub(crate) publications: Vec<Publication>,
    /// Publications may be deltas.
    pub(crate) delta: bool,
    /// Stands for the channel in pushes; 0: nothing does.
    pub(crate) number: i64,
    /// Milliseconds that it lives, as far as the answer says; none: it does not end.
    pub(crate) ttl_ms: Option<u64>,
}

/// A client as others see it: client id and user id.
pub(crate) type Seen = (String, String);

/// What follows the id in a reply.
#[derive(Debug)]
pub(crate) enum Body {
    Error { code: u64, temporary: bool },
    Connect { client: String, ttl_ms: Option<u64>, subs: Vec<(String, Subscribed)> },
    Subscribe(Subscribed),
    Unsubscribe,
    Publish,
    Presence(Vec<Seen>),
    Stats { clients: u64, users: u64 },
    History { publications: Vec<Publication>, epoch: String, offset: u64 },
    Rpc(Vec<u8>),
    Refresh { ttl_ms: Option<u64> },
    SubRefresh { ttl_ms: Option<u64> },
}

/// What a push is about.
#[derive(Debug)]
pub(crate) enum Name {
    Channel(String),
    /// Announced in a subscribe result.
    Number(i64),
}

/// What a push tells.
#[derive(Debug)]
pub(crate) enum Told {
    Publication(Publication),
    Join(Seen),
    Leave(Seen),
    Unsubscribe { code: u64 },
    Subscribe { epoch: String, offset: u64, recoverable: bool },
    Message(Vec<u8>),
}

/// One message of the server.
#[derive(Debug)]
pub(crate) enum Message {
    Ping,
    Reply(u32, Body),
    Push(Name, Told),
}

/// Type of a Protobuf field.
enum Field {
    Number,
    Boolean,
    Text,
    /// Bytes: JSON in the JSON form.
    Data,
    One(Fields),
    Many(Fields),
    /// From texts.
    Map(Fields),
}

type Fields = &'static [(u32, &'static str, Field)];

use Field::{Boolean, Data, Many, Number, One, Text};

const INFO: Fields = &[(1, "user", Text), (2, "client", Text), (3, "conn_info", Data), (4, "chan_info", Data)];
const ABOUT: Fields = &[(1, "info", One(INFO))];
const PUBLICATION: Fields = &[(4, "data", Data), (5, "info", One(INFO)), (6, "offset", Number), (8, "delta", Boolean)];
const SUBSCRIBED: Fields = &[
    (1, "expires", Boolean),
    (2, "ttl", Number),
    (3, "recoverable", Boolean),
    (6, "epoch", Text),
    (7, "publications", Many(PUBLICATION)),
    (8, "recovered", Boolean),
    (9, "offset", Number),
    (10, "positioned", Boolean),
    (11, "data", Data),
    (12, "was_recovering", Boolean),
    (13, "delta", Boolean),
    (14, "id", Number),
];
const CONNECTED: Fields = &[
    (1, "client", Text),
    (2, "version", Text),
    (3, "expires", Boolean),
    (4, "ttl", Number),
    (5, "data", Data),
    (6, "subs", Field::Map(SUBSCRIBED)),
    (7, "ping", Number),
    (8, "pong", Boolean),
];
const HISTORY: Fields = &[(1, "publications", Many(PUBLICATION)), (2, "epoch", Text), (3, "offset", Number)];
const REFRESHED: Fields = &[(1, "client", Text), (2, "version", Text), (3, "expires", Boolean), (4, "ttl", Number)];
const PUSH: Fields = &[
    (1, "id", Number),
    (2, "channel", Text),
    (4, "pub", One(PUBLICATION)),
    (5, "join", One(ABOUT)),
    (6, "leave", One(ABOUT)),
    (7, "unsubscribe", One(&[(2, "code", Number), (3, "reason", Text)])),
    (8, "message", One(&[(1, "data", Data)])),
    (
        9,
        "subscribe",
        One(&[
            (1, "recoverable", Boolean),
            (4, "epoch", Text),
            (5, "offset", Number),
            (6, "positioned", Boolean),
            (7, "data", Data),
        ]),
    ),
];
const REPLY: Fields = &[
    (1, "id", Number),
    (2, "error", One(&[(1, "code", Number), (2, "message", Text), (3, "temporary", Boolean)])),
    (4, "push", One(PUSH)),
    (5, "connect", One(CONNECTED)),
    (6, "subscribe", One(SUBSCRIBED)),
    (7, "unsubscribe", One(&[])),
    (8, "publish", One(&[])),
    (9, "presence", One(&[(1, "presence", Field::Map(INFO))])),
    (10, "presence_stats", One(&[(1, "num_clients", Number), (2, "num_users", Number)])),
    (11, "history", One(HISTORY)),
    (13, "rpc", One(&[(1, "data", Data)])),
    (14, "refresh", One(REFRESHED)),
    (15, "sub_refresh", One(&[(1, "expires", Boolean), (2, "ttl", Number)])),
];
const SUBSCRIBE: Fields = &[
    (1, "channel", Text),
    (2, "token", Text),
    (3, "recover", Boolean),
    (6, "epoch", Text),
    (7, "offset", Number),
    (8, "data", Data),
    (9, "positioned", Boolean),
    (10, "recoverable", Boolean),
    (11, "join_leave", Boolean),
    (12, "delta", Text),
    (14, "flag", Number),
];
const CHANNEL: Fields = &[(1, "channel", Text)];
const COMMAND: Fields = &[
    (1, "id", Number),
    (
        4,
        "connect",
        One(&[
            (1, "token", Text),
            (2, "data", Data),
            (3, "subs", Field::Map(SUBSCRIBE)),
            (4, "name", Text),
            (7, "flag", Number),
        ]),
    ),
    (5, "subscribe", One(SUBSCRIBE)),
    (6, "unsubscribe", One(CHANNEL)),
    (7, "publish", One(&[(1, "channel", Text), (2, "data", Data)])),
    (8, "presence", One(CHANNEL)),
    (9, "presence_stats", One(CHANNEL)),
    (
        10,
        "history",
        One(&[
            (1, "channel", Text),
            (7, "limit", Number),
            (8, "since", One(&[(1, "offset", Number), (2, "epoch", Text)])),
            (9, "reverse", Boolean),
        ]),
    ),
    (12, "send", One(&[(1, "data", Data)])),
    (13, "rpc", One(&[(1, "data", Data), (2, "method", Text)])),
    (14, "refresh", One(&[(1, "token", Text)])),
    (15, "sub_refresh", One(&[(1, "channel", Text), (2, "token", Text)])),
];

/// A command as bytes, in Protobuf with its length in front. `id` 0: a command without an answer.
pub(crate) fn encode(encoding: Encoding, id: u32, name: &str, request: Value) -> Vec<u8> {
    let mut command = Map::new();
    if id > 0 {
        command.insert("id".to_owned(), json!(id));
    }
    command.insert(name.to_owned(), request);
    match encoding {
        // Sorted by key, so that `id` stands before some requests and behind others.
        Encoding::Json => Value::Object(command).to_string().into_bytes(),
        Encoding::Protobuf => {
            let mut body = Vec::new();
            write(&mut body, COMMAND, &command);
            let mut out = Vec::new();
            pb::write_varint(&mut out, body.len() as u64);
            out.extend_from_slice(&body);
            out
        }
    }
}

fn write(out: &mut Vec<u8>, fields: Fields, object: &Map<String, Value>) {
    for (key, value) in object {
        let known = fields.iter().find(|(_, name, _)| name == key);
        let (number, _, field) = known.unwrap_or_else(|| panic!("no field number known for {key}"));
        let message = |fields: Fields, value: &Value| {
            let mut message = Vec::new();
            write(&mut message, fields, value.as_object().expect("an object"));
            message
        };
        match field {
            Number => pb::write_number(out, *number, value.as_i64().expect("a number") as u64),
            Boolean => pb::write_number(out, *number, u64::from(value.as_bool().expect("true or false"))),
            Text => pb::write_bytes(out, *number, value.as_str().expect("a text").as_bytes()),
            Data => pb::write_bytes(out, *number, value.to_string().as_bytes()),
            One(fields) => pb::write_bytes(out, *number, &message(fields, value)),
            Field::Map(fields) => {
                for (name, value) in value.as_object().expect("an object") {
                    let mut entry = Vec::new();
                    pb::write_bytes(&mut entry, 1, name.as_bytes());
                    pb::write_bytes(&mut entry, 2, &message(fields, value));
                    pb::write_bytes(out, *number, &entry);
                }
            }
            Many(_) => panic!("no command repeats a field"),
        }
    }
}

/// A Protobuf message as the JSON form would have it, but for data: a text with one character for each byte.
fn read(message: &[u8], fields: Fields) -> Value {
    let mut object = Map::new();
    for (number, value) in pb::fields(message) {
        let known = fields.iter().find(|(of, ..)| *of == number);
        let (_, name, field) = known.unwrap_or_else(|| panic!("an unknown field {number}"));
        let value = match (field, value) {
            (Number, pb::Value::Varint(value)) => json!(value),
            (Boolean, pb::Value::Varint(value)) => json!(value != 0),
            (Text, pb::Value::Bytes(bytes)) => json!(std::str::from_utf8(bytes).expect("texts are UTF-8")),
            (Data, pb::Value::Bytes(bytes)) => json!(bytes.iter().map(|byte| *byte as char).collect::<String>()),
            (One(fields), pb::Value::Bytes(bytes)) => read(bytes, fields),
            (Many(fields), pb::Value::Bytes(bytes)) => {
                let list = object.entry(*name).or_insert_with(|| json!([]));
                list.as_array_mut().expect("a list").push(read(bytes, fields));
                continue;
            }
            (Field::Map(fields), pb::Value::Bytes(bytes)) => {
                let entry = pb::fields(bytes);
                let value = read(pb::bytes(&entry, 2).unwrap_or_default(), fields);
                let map = object.entry(*name).or_insert_with(|| json!({}));
                map.as_object_mut().expect("a map").insert(pb::text(&entry, 1), value);
                continue;
            }
            (_, value) => panic!("{name} is {value:?}"),
        };
        object.insert((*name).to_owned(), value);
    }
    Value::Object(object)
}

/// The messages of one frame, in order.
pub(crate) fn decode(encoding: Encoding, payload: &[u8]) -> Vec<Message> {
    match encoding {
        Encoding::Json => {
            let text = std::str::from_utf8(payload).expect("a text frame is UTF-8");
            let lines = text.lines().filter(|line| !line.is_empty());
            let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
            lines.map(|line| message(encoding, &parse(line))).collect()
        }
        Encoding::Protobuf => {
            let (mut rest, mut messages) = (payload, Vec::new());
            while !rest.is_empty() {
                messages.push(message(encoding, &read(pb::read_bytes(&mut rest), REPLY)));
            }
            messages
        }
    }
}

fn message(encoding: Encoding, reply: &Value) -> Message {
    if let Some(push) = reply.get("push") {
        return pushed(encoding, push);
    }
    let Some(id) = reply["id"].as_u64() else {
        assert_eq!(reply, &json!({}), "a message without id and push is a ping");
        return Message::Ping;
    };
    let result = |name: &str| reply.get(name).filter(|result| result.is_object());
    let body = if let Some(error) = result("error") {
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "an error without a text: {error}");
        Body::Error { code: number(error, "code"), temporary: flag(error, "temporary") }
    } else if let Some(result) = result("connect") {
        let subs = result["subs"].as_object().into_iter().flatten();
        let subs = subs.map(|(name, sub)| (name.clone(), subscribed(encoding, sub))).collect();
        Body::Connect { client: text(result, "client"), ttl_ms: ttl_ms(result), subs }
    } else if let Some(result) = result("subscribe") {
        Body::Subscribe(subscribed(encoding, result))
    } else if result("unsubscribe").is_some() {
        Body::Unsubscribe
    } else if result("publish").is_some() {
        Body::Publish
    } else if let Some(result) = result("presence") {
        let members = result["presence"].as_object().into_iter().flatten();
        Body::Presence(
            members
                .map(|(key, info)| {
                    let seen = seen(info);
                    assert_eq!(*key, seen.0, "a member stands under its client id");
                    seen
                })
                .collect(),
        )
    } else if let Some(result) = result("presence_stats") {
        Body::Stats { clients: number(result, "num_clients"), users: number(result, "num_users") }
    } else if let Some(result) = result("history") {
        let publications = publications(encoding, result);
        Body::History { publications, epoch: text(result, "epoch"), offset: number(result, "offset") }
    } else if let Some(result) = result("rpc") {
        Body::Rpc(data(encoding, &result["data"]).0)
    } else if let Some(result) = result("refresh") {
        Body::Refresh { ttl_ms: ttl_ms(result) }
    } else if let Some(result) = result("sub_refresh") {
        Body::SubRefresh { ttl_ms: ttl_ms(result) }
    } else {
        panic!("a reply without a result object: {reply}")
    };
    Message::Reply(id as u32, body)
}

fn pushed(encoding: Encoding, push: &Value) -> Message {
    let name = match push.get("id") {
        Some(id) => Name::Number(id.as_i64().expect("a number")),
        None => Name::Channel(text(push, "channel")),
    };
    let told = if let Some(publication) = push.get("pub") {
        Told::Publication(publication_of(encoding, publication))
    } else if let Some(join) = push.get("join") {
        Told::Join(seen(&join["info"]))
    } else if let Some(leave) = push.get("leave") {
        Told::Leave(seen(&leave["info"]))
    } else if let Some(unsubscribe) = push.get("unsubscribe") {
        assert!(!text(unsubscribe, "reason").is_empty(), "{push}");
        Told::Unsubscribe { code: number(unsubscribe, "code") }
    } else if let Some(subscribe) = push.get("subscribe") {
        let (epoch, offset) = (text(subscribe, "epoch"), number(subscribe, "offset"));
        Told::Subscribe { epoch, offset, recoverable: flag(subscribe, "recoverable") }
    } else if let Some(message) = push.get("message") {
        Told::Message(data(encoding, &message["data"]).0)
    } else {
        panic!("an unknown push: {push}")
    };
    Message::Push(name, told)
}

fn subscribed(encoding: Encoding, result: &Value) -> Subscribed {
    Subscribed {
        recoverable: flag(result, "recoverable"),
        epoch: text(result, "epoch"),
        offset: number(result, "offset"),
        recovered: flag(result, "recovered"),
        was_recovering: flag(result, "was_recovering"),
        publications: publications(encoding, result),
        delta: flag(result, "delta"),
        number: number(result, "id") as i64,
        ttl_ms: ttl_ms(result),
    }
}

fn publications(encoding: Encoding, result: &Value) -> Vec<Publication> {
    let list = result["publications"].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().map(|publication| publication_of(encoding, publication)).collect()
}

fn publication_of(encoding: Encoding, publication: &Value) -> Publication {
    let (data, as_text) = data(encoding, &publication["data"]);
    Publication {
        offset: number(publication, "offset"),
        data,
        as_text,
        delta: flag(publication, "delta"),
        publisher: publication["info"]["client"].as_str().map(str::to_owned),
    }
}

/// Data, and whether it is a JSON text around it.
fn data(encoding: Encoding, value: &Value) -> (Vec<u8>, bool) {
    match (encoding, value) {
        (Encoding::Protobuf, Value::String(bytes)) => (bytes.chars().map(|byte| byte as u8).collect(), false),
        (Encoding::Json, Value::String(text)) => (text.as_bytes().to_vec(), true),
        (Encoding::Json, value) => (value.to_string().into_bytes(), false),
        (Encoding::Protobuf, value) => panic!("data is {value}"),
    }
}

fn seen(info: &Value) -> Seen {
    (text(info, "client"), text(info, "user"))
}

fn ttl_ms(result: &Value) -> Option<u64> {
    let ttl_ms = number(result, "ttl") * 1_000;
    assert_eq!(flag(result, "expires"), ttl_ms > 0, "an end is told with its time: {result}");
    (ttl_ms > 0).then_some(ttl_ms)
}

fn number(object: &Value, key: &str) -> u64 {
    object[key].as_u64().unwrap_or(0)
}

fn flag(object: &Value, key: &str) -> bool {
    object[key].as_bool().unwrap_or(false)
}

fn text(object: &Value, key: &str) -> String {
    object[key].as_str().unwrap_or_default().to_owned()
}
