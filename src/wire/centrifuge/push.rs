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
use super::fields::{Empty, WriteFields};
use super::json::{JsonFields, write_signed, write_string};
use super::protobuf::{ProtobufFields, ProtobufSize, length_field_len, write_length, write_uvarint};
use super::reply::{
    ClientInfoView, ConnectResult, DisconnectPush, PublicationView, ReplyWriter, ServerSubscription, SubscribePush,
    client_info, publication_data, publication_tail, subscribe_result,
};

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
    // Two calls with a constant each are stores; one with a choice would be a call of memcpy.
    if shape.bare {
        out.push(b'{');
    } else {
        out.extend_from_slice(b"{\"push\":{");
    }
    match shape.channel {
        ChannelRef::Name("") => {}
        ChannelRef::Name(name) => {
            out.extend_from_slice(b"\"channel\":");
            write_string(out, name);
            out.push(b',');
        }
        ChannelRef::Number(number) => {
            out.extend_from_slice(b"\"id\":");
            write_signed(out, number);
            out.push(b',');
        }
    }
    if data == PushData::Plain && !publication.data.is_empty() {
        // What `publication_data` writes, with its name in the same store.
        out.extend_from_slice(b"\"pub\":{\"data\":");
        out.extend_from_slice(publication.data);
    } else {
        out.extend_from_slice(b"\"pub\":{");
        publication_data(&mut JsonFields(out), publication, data);
    }
    let mut fields = JsonFields(out);
    let end = fields.0.len();
    publication_tail(&mut fields, publication, data);
    if shape.bare {
        out.extend_from_slice(b"}}");
    } else {
        out.extend_from_slice(b"}}}");
    }
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
trait PushBody {
    /// Number of the field.
    const NUMBER: u32;
    /// Name of the field.
    const NAME: &'static str;

    /// Writes the fields of the message in it.
    fn write<F: WriteFields>(self, fields: &mut F);
}

/// Appends any push but a publication.
fn push(shape: &PushShape<'_>, out: &mut Vec<u8>, body: impl PushBody) {
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

/// Declares what a push tells: type, number and name of its field, and what is written in it.
macro_rules! push_body {
    ($type:ident, $number:literal, $name:literal, |$body:ident, $fields:ident| $write:expr) => {
        impl PushBody for $type<'_> {
            const NUMBER: u32 = $number;
            const NAME: &'static str = $name;

            fn write<F: WriteFields>(self, $fields: &mut F) {
                let $body = self;
                $write;
            }
        }
    };
}

struct Join<'a>(&'a ClientInfoView<'a>);

push_body!(Join, 5, "join", |body, fields| fields.message(1, "info", |fields| client_info(fields, body.0)));

struct Leave<'a>(&'a ClientInfoView<'a>);

push_body!(Leave, 6, "leave", |body, fields| fields.message(1, "info", |fields| client_info(fields, body.0)));

struct Unsubscribe<'a> {
    code: u32,
    reason: &'a str,
}

push_body!(Unsubscribe, 7, "unsubscribe", |body, fields| {
    fields.unsigned(2, "code", u64::from(body.code));
    fields.string(3, "reason", body.reason);
});

struct Message<'a>(&'a [u8]);

push_body!(Message, 8, "message", |body, fields| fields.data(1, "data", body.0));

push_body!(SubscribePush, 9, "subscribe", |body, fields| {
    fields.boolean(1, "recoverable", body.recoverable);
    fields.string(4, "epoch", body.epoch);
    fields.unsigned(5, "offset", body.offset);
    fields.boolean(6, "positioned", body.positioned);
    fields.data(7, "data", body.data);
});

struct Connect<'a, S> {
    result: &'a ConnectResult<'a>,
    subs: S,
}

impl<'s, S, P> PushBody for Connect<'_, S>
where
    S: Iterator<Item = ServerSubscription<'s, P>>,
    P: Iterator<Item = PublicationView<'s>>,
{
    const NUMBER: u32 = 10;
    const NAME: &'static str = "connect";

    // Other numbers than those of the answer to `connect`.
    fn write<F: WriteFields>(self, fields: &mut F) {
        let Connect { result, subs } = self;
        fields.string(1, "client", result.client);
        fields.string(2, "version", result.version);
        fields.data(3, "data", result.data.unwrap_or_default());
        fields.map(4, "subs", Empty::Omit, subs.map(ServerSubscription::entry), |fields, sub| {
            subscribe_result(fields, &sub.result, sub.publications);
        });
        fields.boolean(5, "expires", result.expires);
        fields.unsigned(6, "ttl", u64::from(result.ttl));
        fields.unsigned(7, "ping", u64::from(result.ping));
        fields.boolean(8, "pong", result.pong);
        fields.string(9, "session", result.session);
        fields.string(10, "node", result.node);
        fields.signed(11, "time", result.time);
    }
}

push_body!(DisconnectPush, 11, "disconnect", |body, fields| {
    fields.unsigned(1, "code", u64::from(body.code));
    fields.string(2, "reason", body.reason);
    fields.boolean(3, "reconnect", body.reconnect);
});

struct Refresh {
    expires: bool,
    ttl: u32,
}

impl PushBody for Refresh {
    const NUMBER: u32 = 12;
    const NAME: &'static str = "refresh";

    fn write<F: WriteFields>(self, fields: &mut F) {
        fields.boolean(1, "expires", self.expires);
        fields.unsigned(2, "ttl", u64::from(self.ttl));
    }
}

/// Pushes to one connection.
impl ReplyWriter<'_> {
    fn push(&mut self, channel: &str, body: impl PushBody) {
        self.separator();
        push(&self.shape(channel), self.out, body);
    }

    fn shape<'c>(&self, channel: &'c str) -> PushShape<'c> {
        PushShape { bare: self.bare, ..PushShape::plain(self.form, channel) }
    }

    /// A publication, whose data is what `publication.data_as` says; for many subscribers encode it once with
    /// [`push_publication`].
    pub fn push_publication(&mut self, channel: &str, publication: &PublicationView<'_>) {
        self.separator();
        push_publication(&self.shape(channel), publication.data_as, self.out, publication);
    }

    /// The server ended a subscription; `code` below 2500 is final, from 2500 on the client subscribes again
    /// (CLIENT-PROTOCOL §11). `reason` must not be empty.
    pub fn push_unsubscribe(&mut self, channel: &str, code: u32, reason: &str) {
        self.push(channel, Unsubscribe { code, reason });
    }

    /// A message to this connection, outside channels.
    pub fn push_message(&mut self, data: &[u8]) {
        self.push("", Message(data));
    }

    /// A client joined a channel; for many subscribers encode it once with [`push_join`].
    pub fn push_join(&mut self, channel: &str, info: &ClientInfoView<'_>) {
        self.push(channel, Join(info));
    }

    /// A client left a channel; for many subscribers encode it once with [`push_leave`].
    pub fn push_leave(&mut self, channel: &str, info: &ClientInfoView<'_>) {
        self.push(channel, Leave(info));
    }

    /// The server subscribed this client.
    pub fn push_subscribe(&mut self, channel: &str, push: &SubscribePush<'_>) {
        self.push(channel, *push);
    }

    /// The connection is authenticated: what the answer to `connect` is elsewhere. Unidirectional transport only.
    /// `result.flag` is not part of it.
    pub fn push_connect<'s, P: Iterator<Item = PublicationView<'s>>>(
        &mut self,
        result: &ConnectResult<'_>,
        subs: impl Iterator<Item = ServerSubscription<'s, P>>,
    ) {
        self.push("", Connect { result, subs });
    }

    /// The connection is going to be closed. Unidirectional transport only: others get the close frame alone.
    pub fn push_disconnect(&mut self, push: &DisconnectPush<'_>) {
        self.push("", *push);
    }

    /// The connection's expiry has changed; `ttl` in seconds. Unidirectional transport only.
    pub fn push_refresh(&mut self, expires: bool, ttl: u32) {
        self.push("", Refresh { expires, ttl });
    }
}
