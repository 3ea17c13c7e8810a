//! Pushes: the publication push, which is encoded once per publication and shape and then shared by all subscribers,
//! and the other pushes in every shape.
//!
//! In: a shape (form, with or without the reply around it, channel by name or number) and what is told. Out: the
//! payload of a WebSocket message (no header) appended to a buffer, and where a publication's data stands in it.
//!
//! ```text
//! JSON      {"push":{"channel":"c","pub":{"data":DATA,"info":{...},"offset":7}}}
//! protobuf  length | push tag, length | channel | pub tag, length | data tag, length, DATA | info | offset
//! bare      the same without `{"push":` and `}`, or without the push tag and its length
//! ```
//!
//! Invariants: plain DATA stands there verbatim in both forms; in a publication push all lengths are known before the
//! first byte is written, so nothing moves. Order and content are those of `reply`'s other publications.

use alloc::vec::Vec;
use core::ops::Range;

use super::Form;
use super::fields::WriteFields;
use super::json::{JsonFields, write_string, write_unsigned};
use super::protobuf::{ProtobufFields, ProtobufSize, length_field_len, write_length, write_uvarint};
use super::reply::{ClientInfoView, PublicationView, client_info, publication_data, publication_tail};

/// Bytes of a JSON push around channel, data and the optional fields, offset included.
const JSON_ENVELOPE_BYTES: usize = 80;

// Numbers of the fields on the way to the data: Reply.push, Push.id, Push.channel, Push.pub.
const PUSH: u32 = 4;
const ID: u32 = 1;
const CHANNEL: u32 = 2;
const PUB: u32 = 4;

/// How the data of a publication stands in a push or a list (CLIENT-PROTOCOL §13).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PushData {
    /// As it is.
    #[default]
    Plain,
    /// Whole, in a subscription with deltas: JSON form writes it as a JSON string.
    Whole,
    /// A delta against the subscription's publication before: JSON form writes it as a JSON string, and both forms say
    /// `delta`.
    Delta,
}

/// How a push names its channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelRef<'a> {
    /// By its name; empty: the push is about the connection.
    Name(&'a str),
    /// By the number that the subscribe result gave (CLIENT-PROTOCOL §16, channel compaction).
    Number(i64),
}

/// Everything about a push but its content: subscribers of one shape get the same bytes.
#[derive(Clone, Copy, Debug)]
pub struct PushShape<'a> {
    /// JSON or protobuf.
    pub form: Form,
    /// The push stands alone, without the reply around it: the unidirectional transport (CLIENT-PROTOCOL §17).
    pub bare: bool,
    /// Which channel it is about.
    pub channel: ChannelRef<'a>,
}

impl<'a> PushShape<'a> {
    /// Inside a reply, with the channel's name.
    pub const fn plain(form: Form, channel: &'a str) -> Self {
        PushShape { form, bare: false, channel: ChannelRef::Name(channel) }
    }
}

/// Appends the payload (without WebSocket header) of a publication push. Returns the range in `out` where
/// `publication.data` stands verbatim, so that a caller can share it; `None` where it does not: in JSON form unless the
/// data is [`PushData::Plain`]. With [`PushData::Delta`], `publication.data` is the delta.
///
/// In JSON form plain data must be one valid JSON value without raw newlines ([`super::json::check`]), other data must
/// be UTF-8. Empty data is left out.
#[inline]
pub fn push_publication(
    shape: &PushShape<'_>,
    data: PushData,
    out: &mut Vec<u8>,
    publication: &PublicationView<'_>,
) -> Option<Range<usize>> {
    match shape.form {
        Form::Json => push_json(shape, data, out, publication),
        Form::Protobuf => Some(push_protobuf(shape, data, out, publication)),
    }
}

fn push_json(
    shape: &PushShape<'_>,
    data: PushData,
    out: &mut Vec<u8>,
    publication: &PublicationView<'_>,
) -> Option<Range<usize>> {
    let name_len = if let ChannelRef::Name(name) = shape.channel { name.len() } else { 0 };
    out.reserve(JSON_ENVELOPE_BYTES + name_len + publication.data.len());
    out.extend_from_slice(if shape.bare { b"{" } else { b"{\"push\":{" });
    match shape.channel {
        ChannelRef::Name("") => {}
        ChannelRef::Name(name) => {
            out.extend_from_slice(b"\"channel\":");
            write_string(out, name);
            out.push(b',');
        }
        ChannelRef::Number(number) => {
            out.extend_from_slice(if number < 0 { b"\"id\":-" } else { b"\"id\":" });
            write_unsigned(out, number.unsigned_abs());
            out.push(b',');
        }
    }
    out.extend_from_slice(b"\"pub\":{");
    let mut fields = JsonFields(out);
    publication_data(&mut fields, publication, data);
    let end = fields.0.len();
    publication_tail(&mut fields, publication, data);
    out.extend_from_slice(if shape.bare { b"}}" } else { b"}}}" });
    (data == PushData::Plain).then(|| end - publication.data.len()..end)
}

fn push_protobuf(
    shape: &PushShape<'_>,
    data: PushData,
    out: &mut Vec<u8>,
    publication: &PublicationView<'_>,
) -> Range<usize> {
    let mut pub_size = ProtobufSize(0);
    publication_data(&mut pub_size, publication, data);
    publication_tail(&mut pub_size, publication, data);
    let mut push_size = ProtobufSize(length_field_len(PUB, pub_size.0));
    channel(&mut push_size, shape.channel);
    let message_len = if shape.bare { push_size.0 } else { length_field_len(PUSH, push_size.0) };

    out.reserve(length_field_len(1, message_len));
    write_uvarint(out, message_len as u64);
    if !shape.bare {
        write_length(out, PUSH, push_size.0);
    }
    let mut fields = ProtobufFields(out);
    channel(&mut fields, shape.channel);
    write_length(fields.0, PUB, pub_size.0);
    publication_data(&mut fields, publication, data);
    let end = fields.0.len();
    publication_tail(&mut fields, publication, data);
    end - publication.data.len()..end
}

/// Appends a push that tells of a client that joined.
pub fn push_join(shape: &PushShape<'_>, out: &mut Vec<u8>, info: &ClientInfoView<'_>) {
    push(shape, out, Join(info));
}

/// Appends a push that tells of a client that left.
pub fn push_leave(shape: &PushShape<'_>, out: &mut Vec<u8>, info: &ClientInfoView<'_>) {
    push(shape, out, Leave(info));
}

/// The channel of a push.
#[inline]
fn channel<F: WriteFields>(fields: &mut F, channel: ChannelRef<'_>) {
    match channel {
        ChannelRef::Name(name) => fields.string(CHANNEL, "channel", name),
        ChannelRef::Number(number) => fields.signed(ID, "id", number),
    }
}

/// What a push tells: one field of `Push`. A trait, because a closure cannot be generic over the form.
pub(super) trait PushBody {
    /// Number of the field.
    const NUMBER: u32;
    /// Name of the field.
    const NAME: &'static str;

    /// Writes the fields of the message in it.
    fn write<F: WriteFields>(self, fields: &mut F);
}

/// Appends any push but a publication.
pub(super) fn push(shape: &PushShape<'_>, out: &mut Vec<u8>, body: impl PushBody) {
    match shape.form {
        Form::Json => JsonFields(out).object(|fields| enclosed(fields, shape, body)),
        Form::Protobuf => ProtobufFields(out).delimited(|fields| enclosed(fields, shape, body)),
    }
}

fn enclosed<F: WriteFields, B: PushBody>(fields: &mut F, shape: &PushShape<'_>, body: B) {
    let write = |fields: &mut F| {
        channel(fields, shape.channel);
        fields.message(B::NUMBER, B::NAME, |fields| body.write(fields));
    };
    if shape.bare { write(fields) } else { fields.message(PUSH, "push", write) }
}

struct Join<'a>(&'a ClientInfoView<'a>);

impl PushBody for Join<'_> {
    const NUMBER: u32 = 5;
    const NAME: &'static str = "join";

    fn write<F: WriteFields>(self, fields: &mut F) {
        fields.message(1, "info", |fields| client_info(fields, self.0));
    }
}

struct Leave<'a>(&'a ClientInfoView<'a>);

impl PushBody for Leave<'_> {
    const NUMBER: u32 = 6;
    const NAME: &'static str = "leave";

    fn write<F: WriteFields>(self, fields: &mut F) {
        fields.message(1, "info", |fields| client_info(fields, self.0));
    }
}
