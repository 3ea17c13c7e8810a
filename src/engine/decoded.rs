//! Tests only: pushes as a client reads them, out of finished frames, independent of the encoder.
//!
//! In: bytes of one or many WebSocket frames, and the variant that the client negotiated. Out: what each push tells.

use alloc::borrow::ToOwned;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use ringway_wire::centrifuge::Form;
use ringway_wire::deflate::{InflateLimits, Inflater};
use serde_json::Value;

use crate::variant::Variant;

/// What a push tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// A publication, and whether `data` is a delta.
    Publication { data: Vec<u8>, delta: bool, offset: u64 },
    /// A client id came.
    Join(String),
    /// A client id went.
    Leave(String),
}

/// A push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Push {
    /// The channel's name, or its number as text with `#` before it.
    pub(crate) channel: String,
    pub(crate) told: Told,
    /// The frame was compressed.
    pub(crate) compressed: bool,
}

/// All pushes of some frames. Panics at anything that such a client could not read.
pub(crate) fn pushes(mut bytes: &[u8], variant: Variant) -> Vec<Push> {
    let mut pushes = Vec::new();
    while let [first, second, rest @ ..] = bytes {
        let (len, rest) = match second {
            126 => (u16::from_be_bytes([rest[0], rest[1]]) as usize, &rest[2..]),
            127 => (u64::from_be_bytes(*rest.first_chunk().expect("8 bytes")) as usize, &rest[8..]),
            len => (*len as usize, rest),
        };
        let (body, rest) = rest.split_at(len);
        bytes = rest;
        let compressed = first & 0x40 != 0;
        assert!(variant.deflate() || !compressed, "compressed for a client that did not negotiate it");
        let inflated = if compressed { inflate(body) } else { body.to_owned() };
        let opcode = if variant.form() == Form::Json { 1 } else { 2 };
        assert_eq!(first & 0xBF, 0x80 | opcode, "a whole message of the right kind");
        let (channel, told) = match variant.form() {
            Form::Json => json(&inflated, variant),
            Form::Protobuf => protobuf(&inflated, variant),
        };
        assert_eq!(channel.starts_with('#'), variant.compact());
        pushes.push(Push { channel, told, compressed });
    }
    assert!(bytes.is_empty());
    pushes
}

fn inflate(body: &[u8]) -> Vec<u8> {
    let limits = InflateLimits { message_bytes_max: 1 << 20, ratio_max: 1_100 };
    Inflater::new().inflate(body, &limits).expect("DEFLATE").to_owned()
}

fn json(text: &[u8], variant: Variant) -> (String, Told) {
    let reply: Value = serde_json::from_slice(text).expect("JSON");
    let push = if variant.bare() { &reply } else { &reply["push"] };
    let channel = push["channel"].as_str().map_or_else(|| alloc::format!("#{}", push["id"]), ToOwned::to_owned);
    let client = |key: &str| push[key]["info"]["client"].as_str().map(ToOwned::to_owned);
    if let Some(client) = client("join") {
        return (channel, Told::Join(client));
    }
    if let Some(client) = client("leave") {
        return (channel, Told::Leave(client));
    }
    let publication = &push["pub"];
    let data = &publication["data"];
    let data =
        if variant.delta() { data.as_str().expect("data as a JSON string").to_owned() } else { data.to_string() };
    let delta = publication["delta"].as_bool().unwrap_or_default();
    let offset = publication["offset"].as_u64().unwrap_or_default();
    (channel, Told::Publication { data: data.into_bytes(), delta, offset })
}

fn protobuf(message: &[u8], variant: Variant) -> (String, Told) {
    let (len, mut rest) = uvarint(message);
    assert_eq!(len as usize, rest.len(), "one reply");
    let replied;
    if !variant.bare() {
        replied = fields(rest);
        rest = replied[0].1;
        assert_eq!((replied.len(), replied[0].0), (1, 4), "Reply.push");
    }
    let mut channel = String::new();
    let mut told = None;
    for (number, bytes, value) in fields(rest) {
        match number {
            1 => channel = alloc::format!("#{value}"),
            2 => channel = String::from_utf8(bytes.to_owned()).expect("UTF-8"),
            4 => {
                let (mut data, mut delta, mut offset) = (Vec::new(), false, 0);
                for (number, bytes, value) in fields(bytes) {
                    match number {
                        4 => data = bytes.to_owned(),
                        6 => offset = value,
                        8 => delta = value == 1,
                        _ => {}
                    }
                }
                told = Some(Told::Publication { data, delta, offset });
            }
            5 | 6 => {
                let info = fields(bytes)[0].1;
                let client = fields(info).into_iter().find(|(number, ..)| *number == 2).expect("client").1;
                let client = String::from_utf8(client.to_owned()).expect("UTF-8");
                told = Some(if number == 5 { Told::Join(client) } else { Told::Leave(client) });
            }
            other => panic!("field {other}"),
        }
    }
    (channel, told.expect("something is told"))
}

/// (number, bytes, value) of each field; only varints and lengths occur.
fn fields(mut bytes: &[u8]) -> Vec<(u64, &[u8], u64)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let (tag, rest) = uvarint(bytes);
        let (value, rest) = uvarint(rest);
        let len = if tag & 7 == 2 { value as usize } else { 0 };
        let (content, rest) = rest.split_at(len);
        fields.push((tag >> 3, content, value));
        bytes = rest;
    }
    fields
}

fn uvarint(bytes: &[u8]) -> (u64, &[u8]) {
    let len = bytes.iter().position(|byte| byte & 0x80 == 0).expect("an end") + 1;
    let value = bytes[..len].iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7F));
    (value, &bytes[len..])
}

/// What a client of deltas holds after a publication; panics when it could not apply it.
pub(crate) fn applied(base: Option<&[u8]>, data: &[u8], delta: bool) -> Vec<u8> {
    if !delta {
        return data.to_owned();
    }
    let mut whole = Vec::new();
    ringway_wire::delta::apply(base.expect("a base"), data, 1 << 20, &mut whole).expect("a delta against the base");
    whole
}
