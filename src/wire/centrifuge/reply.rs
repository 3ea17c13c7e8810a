//! Replies: the types of answers and pushes, and the number and name of each field of an answer.
//!
//! In: answers of the engine's session. Out: the payload of a WebSocket message (no header) appended to a buffer, in
//! JSON or protobuf.
//!
//! ```text
//! JSON      {"id":1,"connect":{...}} \n {"push":{"channel":"c","pub":{"data":...}}} \n ...
//! protobuf  uvarint length | Reply | uvarint length | Reply | ...
//! bare      {"channel":"c","pub":{"data":...}}: pushes without the reply around them (unidirectional transport)
//! ```
//!
//! Invariants: a result object is written even when all its fields are zero (SDKs index it); an error always has a
//! text; data is embedded as it is, so in JSON form it must be one valid value without raw newlines.
//!
//! Numbers and names of fields: CLIENT-PROTOCOL §3 to §6.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::Form;
use super::fields::{Empty, WriteFields};
use super::json::JsonFields;
use super::protobuf::ProtobufFields;
pub use super::push::{ChannelRef, PushData, PushShape, push_join, push_leave, push_publication};

/// The ping, as the payload of a WebSocket message: `PING[form as usize]`. An empty reply in both forms.
pub const PING: [&[u8]; Form::COUNT] = [b"{}", b"\0"];

/// Text of an application's error that came without one; SDKs cannot read an error without a text.
pub const ERROR_TEXT_FALLBACK: &str = "application error";

macro_rules! error_table {
    ($( $(#[doc = $doc:literal])+ $variant:ident = $code:literal, $text:literal, $temporary:literal; )+) => {
        /// An error in a reply (CLIENT-PROTOCOL §9).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum ClientError { $( $(#[doc = $doc])+ $variant = $code, )+ }

        impl ClientError {
            /// All errors, by code.
            pub const ALL: &'static [ClientError] = &[ $( ClientError::$variant, )+ ];

            /// The number on the wire.
            pub const fn code(self) -> u32 { self as u32 }

            /// The text on the wire; never empty.
            pub const fn text(self) -> &'static str { match self { $( ClientError::$variant => $text, )+ } }

            /// Whether SDKs try again; if not, they give the connection or subscription up (except for 109).
            pub const fn temporary(self) -> bool { match self { $( ClientError::$variant => $temporary, )+ } }
        }
    };
}

error_table! {
    /// Something failed on our side.
    Internal = 100, "internal server error", true;
    /// The connection has no credentials.
    Unauthorized = 101, "unauthorized", false;
    /// No namespace has this channel.
    UnknownChannel = 102, "unknown channel", false;
    /// The identity may not do this in the channel.
    PermissionDenied = 103, "permission denied", false;
    /// Nobody serves this rpc method.
    MethodNotFound = 104, "method not found", false;
    /// The connection already has a subscription to the channel.
    AlreadySubscribed = 105, "already subscribed", false;
    /// A limit of this connection is reached.
    LimitExceeded = 106, "limit exceeded", false;
    /// The command is readable but makes no sense.
    BadRequest = 107, "bad request", false;
    /// The feature is off.
    NotAvailable = 108, "not available", false;
    /// The token has expired; SDKs fetch a new one and try again.
    TokenExpired = 109, "token expired", false;
    /// The connection or subscription has expired and no token can prolong it.
    Expired = 110, "expired", false;
    /// Too many requests for now.
    TooManyRequests = 111, "too many requests", true;
    /// The position cannot be recovered, and the client asked for an error in that case.
    UnrecoverablePosition = 112, "unrecoverable position", false;
    /// The list changed while it was read page by page.
    ConcurrentPagination = 113, "concurrent pagination", true;
}

/// Result of a connect command. Zero values are left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectResult<'a> {
    /// Client id.
    pub client: &'a str,
    /// Version of the server.
    pub version: &'a str,
    /// Whether the connection expires after `ttl`.
    pub expires: bool,
    /// Seconds until the connection expires.
    pub ttl: u32,
    /// Data from the backend that authenticated.
    pub data: Option<&'a [u8]>,
    /// Seconds between pings; 0: none are sent.
    pub ping: u32,
    /// Whether the client must answer pings.
    pub pong: bool,
    /// Session id; only for transports of two streams.
    pub session: &'a str,
    /// Node id; only for transports of two streams.
    pub node: &'a str,
    /// Server time, Unix milliseconds.
    pub time: i64,
    /// Bits of optional protocol areas that are switched on.
    pub flag: i64,
}

/// A server-side subscription in a connect result.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServerSubscription<'a, P> {
    /// Channel.
    pub channel: &'a str,
    /// As in the answer to a subscribe command.
    pub result: SubscribeResult<'a>,
    /// Recovered publications, ascending: an iterator of [`PublicationView`].
    pub publications: P,
}

impl<'a, P> ServerSubscription<'a, P> {
    /// As an entry of the map of subscriptions.
    pub(super) fn entry(self) -> (&'a str, Self) {
        (self.channel, self)
    }
}

/// Result of a subscribe command, without its publications. Zero values are left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct SubscribeResult<'a> {
    /// Whether the subscription expires after `ttl`.
    pub expires: bool,
    /// Seconds until the subscription expires.
    pub ttl: u32,
    /// Whether the client shall keep its position and recover after a reconnect.
    pub recoverable: bool,
    /// Epoch of the channel.
    pub epoch: &'a str,
    /// Whether everything missed is in the publications.
    pub recovered: bool,
    /// Top of the channel; the offset of the request when `recovered`.
    pub offset: u64,
    /// Whether the server notices losses.
    pub positioned: bool,
    /// Data from the backend that authorized.
    pub data: Option<&'a [u8]>,
    /// Whether the request asked for recovery.
    pub was_recovering: bool,
    /// Whether publications may be deltas.
    pub delta: bool,
    /// Number that stands for the channel in pushes; 0: none.
    pub id: i64,
}

/// A name and a value beside a publication's payload.
pub type Tag = (Box<str>, Box<str>);

/// A publication as clients see it. Zero values are left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct PublicationView<'a> {
    /// Payload. In JSON form: one valid JSON value without raw newlines.
    pub data: &'a [u8],
    /// Place in the channel; 0: the channel has no history.
    pub offset: u64,
    /// The client that published, if one did.
    pub info: Option<ClientInfoView<'a>>,
    /// Tags, in any order.
    pub tags: &'a [Tag],
    /// What `data` is in a list of publications. A push is told on its own.
    pub data_as: PushData,
}

/// A client as other clients see it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClientInfoView<'a> {
    /// User id; empty: anonymous.
    pub user: &'a str,
    /// Client id.
    pub client: &'a str,
    /// Info of the connection (JSON value in JSON form); empty: none.
    pub conn_info: &'a [u8],
    /// Info of the subscription (JSON value in JSON form); empty: none.
    pub chan_info: &'a [u8],
}

/// Result of a refresh command.
#[derive(Clone, Copy, Debug, Default)]
pub struct RefreshResult<'a> {
    /// Client id; centrifuge-js copies it when `expires`.
    pub client: &'a str,
    /// Version of the server.
    pub version: &'a str,
    /// Whether the connection expires after `ttl`.
    pub expires: bool,
    /// Seconds until the connection expires.
    pub ttl: u32,
}

/// A push that ends an unidirectional connection; the close frame with the same code follows it.
#[derive(Clone, Copy, Debug, Default)]
pub struct DisconnectPush<'a> {
    /// As in the close frame (CLIENT-PROTOCOL §10).
    pub code: u32,
    /// Why; not empty.
    pub reason: &'a str,
    /// Whether the client shall come back.
    pub reconnect: bool,
}

/// A push that tells of a server-side subscription made at run time.
#[derive(Clone, Copy, Debug, Default)]
pub struct SubscribePush<'a> {
    /// Whether the client shall keep its position and recover after a reconnect.
    pub recoverable: bool,
    /// Epoch of the channel.
    pub epoch: &'a str,
    /// Top of the channel.
    pub offset: u64,
    /// Whether the server notices losses.
    pub positioned: bool,
    /// Data for the client; empty: none.
    pub data: &'a [u8],
}

/// For connect results without server-side subscriptions.
const NO_SUBS: core::iter::Empty<ServerSubscription<'static, core::iter::Empty<PublicationView<'static>>>> =
    core::iter::empty();

/// Appends replies and pushes of one form to a buffer; several replies make one WebSocket message. It never writes the
/// WebSocket header. One writer per message: it puts the separator only between its own replies.
pub struct ReplyWriter<'a> {
    pub(super) form: Form,
    pub(super) out: &'a mut Vec<u8>,
    start: usize,
    /// Pushes stand without the reply around them.
    pub(super) bare: bool,
}

/// Writes one reply in the writer's form. A macro, because a closure cannot be generic over the form.
macro_rules! reply {
    ($writer:ident, |$reply:ident| $write:block) => {{
        $writer.separator();
        match $writer.form {
            Form::Json => JsonFields($writer.out).object(|$reply| $write),
            Form::Protobuf => ProtobufFields($writer.out).delimited(|$reply| $write),
        }
    }};
}

/// Writes `{ id, name: { fields } }`.
macro_rules! result {
    ($writer:ident, $id:ident, $number:literal, $name:literal, |$fields:ident| $write:expr) => {
        reply!($writer, |reply| {
            reply.unsigned(1, "id", u64::from($id));
            reply.message($number, $name, |$fields| $write);
        })
    };
}

impl<'a> ReplyWriter<'a> {
    /// Begins a WebSocket message at the end of `out`.
    pub fn new(form: Form, out: &'a mut Vec<u8>) -> Self {
        let start = out.len();
        ReplyWriter { form, out, start, bare: false }
    }

    /// Goes on with the WebSocket message that `out` holds from its first byte.
    pub fn resume(form: Form, out: &'a mut Vec<u8>) -> Self {
        ReplyWriter { form, out, start: 0, bare: false }
    }

    /// With `on`, pushes stand without the reply around them: for connections on the unidirectional transport, which
    /// send no commands and get no answers.
    pub fn bare(mut self, on: bool) -> Self {
        self.bare = on;
        self
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.out.len() == self.start
    }

    /// To be called before each reply or push.
    pub(super) fn separator(&mut self) {
        if self.form == Form::Json && !self.is_empty() {
            self.out.push(b'\n');
        }
    }

    /// A failed command.
    pub fn error(&mut self, id: u32, error: ClientError) {
        self.error_reply(id, error.code(), error.text(), error.temporary());
    }

    /// A failed command that the client shall try again, whatever the error's rule is: for limits and overload, where
    /// SDKs would otherwise give up for ever.
    pub fn error_temporary(&mut self, id: u32, error: ClientError) {
        self.error_reply(id, error.code(), error.text(), true);
    }

    /// A failed command with code and text of a backend. Codes of applications are 400 to 1999; one of
    /// [`ClientError`]'s is possible too. Never sends what SDKs cannot read: an empty text becomes the code's own or
    /// [`ERROR_TEXT_FALLBACK`], and code 0, which is no error, [`ClientError::Internal`].
    pub fn error_custom(&mut self, id: u32, code: u32, message: &str, temporary: bool) {
        let code = if code == 0 { ClientError::Internal.code() } else { code };
        let known = ClientError::ALL.iter().find(|error| error.code() == code);
        let fallback = known.map_or(ERROR_TEXT_FALLBACK, |error| error.text());
        self.error_reply(id, code, if message.is_empty() { fallback } else { message }, temporary);
    }

    fn error_reply(&mut self, id: u32, code: u32, message: &str, temporary: bool) {
        result!(self, id, 2, "error", |fields| {
            fields.unsigned(1, "code", u64::from(code));
            fields.string(2, "message", message);
            fields.boolean(3, "temporary", temporary);
        });
    }

    /// Answer to `connect`, without server-side subscriptions.
    pub fn connect(&mut self, id: u32, result: &ConnectResult<'_>) {
        self.connect_with_subs(id, result, NO_SUBS);
    }

    /// Answer to `connect`, with server-side subscriptions; each channel must occur only once.
    pub fn connect_with_subs<'s, P: Iterator<Item = PublicationView<'s>>>(
        &mut self,
        id: u32,
        result: &ConnectResult<'_>,
        subs: impl Iterator<Item = ServerSubscription<'s, P>>,
    ) {
        result!(self, id, 5, "connect", |fields| connect_result(fields, result, subs));
    }

    /// Answer to `subscribe`, with the recovered publications in ascending order.
    pub fn subscribe<'p>(
        &mut self,
        id: u32,
        result: &SubscribeResult<'_>,
        publications: impl Iterator<Item = PublicationView<'p>>,
    ) {
        result!(self, id, 6, "subscribe", |fields| subscribe_result(fields, result, publications));
    }

    /// Answer to `unsubscribe`.
    pub fn unsubscribe(&mut self, id: u32) {
        result!(self, id, 7, "unsubscribe", |_fields| ());
    }

    /// Answer to `publish`; has no offset in this protocol.
    pub fn publish(&mut self, id: u32) {
        result!(self, id, 8, "publish", |_fields| ());
    }

    /// Answer to `presence`.
    pub fn presence<'p>(&mut self, id: u32, clients: impl Iterator<Item = ClientInfoView<'p>>) {
        let entries = clients.map(|info| (info.client, info));
        result!(self, id, 9, "presence", |fields| {
            fields.map(1, "presence", Empty::Write, entries, |fields, info| client_info(fields, &info));
        });
    }

    /// Answer to `presence_stats`.
    pub fn presence_stats(&mut self, id: u32, clients: u32, users: u32) {
        result!(self, id, 10, "presence_stats", |fields| {
            fields.unsigned_always(1, "num_clients", u64::from(clients));
            fields.unsigned_always(2, "num_users", u64::from(users));
        });
    }

    /// Answer to `history`: publications in the order asked for, and the top of the channel.
    pub fn history<'p>(
        &mut self,
        id: u32,
        publications: impl Iterator<Item = PublicationView<'p>>,
        epoch: &str,
        offset: u64,
    ) {
        result!(self, id, 11, "history", |fields| {
            fields.repeated(1, "publications", Empty::Write, publications, |fields, view| {
                publication(fields, &view, PushData::Plain);
            });
            fields.string_always(2, "epoch", epoch);
            fields.unsigned_always(3, "offset", offset);
        });
    }

    /// Answer to the historic `ping` command. (The server's own ping is [`ReplyWriter::ping`].)
    pub fn ping_result(&mut self, id: u32) {
        result!(self, id, 12, "ping", |_fields| ());
    }

    /// Answer to `rpc`.
    pub fn rpc(&mut self, id: u32, data: &[u8]) {
        result!(self, id, 13, "rpc", |fields| fields.data(1, "data", data));
    }

    /// Answer to `refresh`.
    pub fn refresh(&mut self, id: u32, result: &RefreshResult<'_>) {
        result!(self, id, 14, "refresh", |fields| {
            fields.string(1, "client", result.client);
            fields.string(2, "version", result.version);
            fields.boolean(3, "expires", result.expires);
            fields.unsigned(4, "ttl", u64::from(result.ttl));
        });
    }

    /// Answer to `sub_refresh`; `ttl` in seconds.
    pub fn sub_refresh(&mut self, id: u32, expires: bool, ttl: u32) {
        result!(self, id, 15, "sub_refresh", |fields| {
            fields.boolean(1, "expires", expires);
            fields.unsigned(2, "ttl", u64::from(ttl));
        });
    }

    /// A ping.
    pub fn ping(&mut self) {
        self.separator();
        self.out.extend_from_slice(PING[self.form as usize]);
    }
}

fn connect_result<'s, F: WriteFields, P: Iterator<Item = PublicationView<'s>>>(
    fields: &mut F,
    result: &ConnectResult<'_>,
    subs: impl Iterator<Item = ServerSubscription<'s, P>>,
) {
    fields.string(1, "client", result.client);
    fields.string(2, "version", result.version);
    fields.boolean(3, "expires", result.expires);
    fields.unsigned(4, "ttl", u64::from(result.ttl));
    fields.data(5, "data", result.data.unwrap_or_default());
    fields.map(6, "subs", Empty::Omit, subs.map(ServerSubscription::entry), |fields, sub| {
        subscribe_result(fields, &sub.result, sub.publications);
    });
    fields.unsigned(7, "ping", u64::from(result.ping));
    fields.boolean(8, "pong", result.pong);
    fields.string(9, "session", result.session);
    fields.string(10, "node", result.node);
    fields.signed(11, "time", result.time);
    fields.signed(12, "flag", result.flag);
}

pub(super) fn subscribe_result<'p, F: WriteFields>(
    fields: &mut F,
    result: &SubscribeResult<'_>,
    publications: impl Iterator<Item = PublicationView<'p>>,
) {
    fields.boolean(1, "expires", result.expires);
    fields.unsigned(2, "ttl", u64::from(result.ttl));
    fields.boolean(3, "recoverable", result.recoverable);
    fields.string(6, "epoch", result.epoch);
    fields.repeated(7, "publications", Empty::Omit, publications, |fields, view| {
        // In a subscription with deltas SDKs take all JSON data for strings.
        let data = if result.delta && view.data_as == PushData::Plain { PushData::Whole } else { view.data_as };
        publication(fields, &view, data);
    });
    fields.boolean(8, "recovered", result.recovered);
    fields.unsigned(9, "offset", result.offset);
    fields.boolean(10, "positioned", result.positioned);
    fields.data(11, "data", result.data.unwrap_or_default());
    fields.boolean(12, "was_recovering", result.was_recovering);
    fields.boolean(13, "delta", result.delta);
    fields.signed(14, "id", result.id);
}

fn publication<F: WriteFields>(fields: &mut F, view: &PublicationView<'_>, data: PushData) {
    publication_data(fields, view, data);
    publication_tail(fields, view, data);
}

/// The data of a publication, its first field.
#[inline(always)] // once per publication and shape; the call would cost more than what is done
pub(super) fn publication_data<F: WriteFields>(fields: &mut F, view: &PublicationView<'_>, data: PushData) {
    match data {
        PushData::Plain => fields.data(4, "data", view.data),
        PushData::Whole | PushData::Delta => fields.text_data(4, "data", view.data),
    }
}

/// All fields of a publication that stand behind its data.
#[inline(always)] // as above
pub(super) fn publication_tail<F: WriteFields>(fields: &mut F, view: &PublicationView<'_>, data: PushData) {
    if let Some(info) = &view.info {
        fields.message(5, "info", |fields| client_info(fields, info));
    }
    fields.unsigned(6, "offset", view.offset);
    fields.string_map(7, "tags", view.tags);
    fields.boolean(8, "delta", data == PushData::Delta);
}

pub(super) fn client_info<F: WriteFields>(fields: &mut F, info: &ClientInfoView<'_>) {
    fields.string_always(1, "user", info.user);
    fields.string_always(2, "client", info.client);
    fields.data(3, "conn_info", info.conn_info);
    fields.data(4, "chan_info", info.chan_info);
}
