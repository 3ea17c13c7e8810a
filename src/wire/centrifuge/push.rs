//! The publication push: encoded once per publication and form, then shared by all subscribers.
//!
//! In: a channel and a publication from the channel's owner. Out: the payload of a WebSocket message (no header)
//! appended to a buffer, and where the publication's data stands in it.
//!
//! ```text
//! JSON      {"push":{"channel":"c","pub":{"data":DATA,"info":{...},"offset":7}}}
//! protobuf  length | push tag, length | channel | pub tag, length | data tag, length, DATA | info | offset
//! ```
//!
//! Invariants: DATA stands there verbatim in both forms; all lengths are known before the first byte is written, so
//! nothing moves. Order and content are those of `reply`'s other publications.

use alloc::vec::Vec;
use core::ops::Range;

use super::Form;
use super::fields::WriteFields;
use super::json::{JsonFields, write_string};
use super::protobuf::{ProtobufFields, ProtobufSize, length_field_len, write_length, write_uvarint};
use super::reply::{PublicationView, publication_tail};

/// Bytes of a JSON push around channel, data and the optional fields, offset included.
const JSON_ENVELOPE_BYTES: usize = 80;

// Numbers of the fields on the way to the data: Reply.push, Push.channel, Push.pub, Publication.data.
const PUSH: u32 = 4;
const CHANNEL: u32 = 2;
const PUB: u32 = 4;
const DATA: u32 = 4;

/// Appends the payload (without WebSocket header) of a publication push. Returns the range in `out` where the
/// publication's data stands, verbatim in both forms, so that a caller can share it.
///
/// In JSON form the data must be one valid JSON value without raw newlines ([`super::json::check`]); empty data is
/// left out.
pub fn push_publication(
    form: Form,
    out: &mut Vec<u8>,
    channel: &str,
    publication: &PublicationView<'_>,
) -> Range<usize> {
    match form {
        Form::Json => push_json(out, channel, publication),
        Form::Protobuf => push_protobuf(out, channel, publication),
    }
}

fn push_json(out: &mut Vec<u8>, channel: &str, publication: &PublicationView<'_>) -> Range<usize> {
    out.reserve(JSON_ENVELOPE_BYTES + channel.len() + publication.data.len());
    out.extend_from_slice(b"{\"push\":{");
    if !channel.is_empty() {
        out.extend_from_slice(b"\"channel\":");
        write_string(out, channel);
        out.push(b',');
    }
    out.extend_from_slice(b"\"pub\":{");
    let mut fields = JsonFields(out);
    fields.data(DATA, "data", publication.data);
    let end = fields.0.len();
    publication_tail(&mut fields, publication);
    out.extend_from_slice(b"}}}");
    end - publication.data.len()..end
}

fn push_protobuf(out: &mut Vec<u8>, channel: &str, publication: &PublicationView<'_>) -> Range<usize> {
    let data = publication.data;
    let field_len = |number, len| if len == 0 { 0 } else { length_field_len(number, len) };
    let mut size = ProtobufSize(field_len(DATA, data.len()));
    publication_tail(&mut size, publication);
    let pub_len = size.0;
    let push_len = field_len(CHANNEL, channel.len()) + length_field_len(PUB, pub_len);
    let reply_len = length_field_len(PUSH, push_len);

    out.reserve(length_field_len(1, reply_len));
    write_uvarint(out, reply_len as u64);
    write_length(out, PUSH, push_len);
    if !channel.is_empty() {
        write_length(out, CHANNEL, channel.len());
        out.extend_from_slice(channel.as_bytes());
    }
    write_length(out, PUB, pub_len);
    let mut fields = ProtobufFields(out);
    fields.data(DATA, "data", data);
    let end = fields.0.len();
    publication_tail(&mut fields, publication);
    end - data.len()..end
}
