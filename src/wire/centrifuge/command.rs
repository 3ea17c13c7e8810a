//! Commands of clients: the types, and the batch of one WebSocket message.
//!
//! In: the payload of one WebSocket message (JSON: UTF-8, checked by the message layer). Out: [`Command`]s that borrow
//! it, for the engine's session; or a [`CommandError`], after which the connection is closed with 3501.
//!
//! Invariants: strings are UTF-8; in JSON form every `data` is one complete JSON value; a command holds at most one
//! request, of several that were sent the one with the lowest field number (as the reference server does). What is
//! allocated: strings with JSON escapes, and the list of positions in a connect command.

use alloc::borrow::Cow;
use alloc::vec::Vec;
use core::fmt;

use super::Form;
use super::decode::{command, connect};
use super::fields::ReadFields;
use super::json::JsonErrorKind;
use super::json_scan::Scan;
use super::protobuf::Reader;

/// One command.
#[derive(Clone, Debug, PartialEq)]
pub struct Command<'a> {
    /// Repeated in the reply; 0 for `Pong` and `Send`, which have none.
    pub id: u32,
    /// What is asked for.
    pub request: Request<'a>,
}

/// What a command asks for. Absent fields hold their zero value.
#[derive(Clone, Debug, PartialEq)]
pub enum Request<'a> {
    /// Authenticate; the first command of a connection.
    Connect(ConnectRequest<'a>),
    /// Join a channel.
    Subscribe(SubscribeRequest<'a>),
    /// Leave a channel.
    Unsubscribe {
        /// Channel to leave.
        channel: Cow<'a, str>,
    },
    /// Publish into a channel.
    Publish {
        /// Channel to publish into.
        channel: Cow<'a, str>,
        /// Payload: raw JSON in JSON form, any bytes in protobuf form; empty when absent.
        data: &'a [u8],
    },
    /// Who is subscribed to a channel.
    Presence {
        /// Channel asked about.
        channel: Cow<'a, str>,
    },
    /// How many are subscribed to a channel.
    PresenceStats {
        /// Channel asked about.
        channel: Cow<'a, str>,
    },
    /// Publications of the past.
    History(HistoryRequest<'a>),
    /// Historic request for an empty answer; not the answer to a ping, which is [`Request::Pong`].
    Ping,
    /// Message to the backend without an answer.
    Send {
        /// Payload, as in `Publish`.
        data: &'a [u8],
    },
    /// Call to the backend.
    Rpc {
        /// Name of the method; may be empty.
        method: Cow<'a, str>,
        /// Argument, as in `Publish`.
        data: &'a [u8],
    },
    /// New token for the connection.
    Refresh {
        /// Connection token.
        token: Cow<'a, str>,
    },
    /// New token for a subscription.
    SubRefresh {
        /// Channel of the subscription.
        channel: Cow<'a, str>,
        /// Subscription token.
        token: Cow<'a, str>,
    },
    /// Answer to a ping: an empty command, id 0.
    Pong,
    /// A command with an id but without a request that this server knows (also a publish into a map, and `track`).
    /// To be answered as a bad request.
    Missing,
}

/// Fields of a connect command.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConnectRequest<'a> {
    /// Connection token; empty: none.
    pub token: Cow<'a, str>,
    /// Data for the backend that authenticates; empty: none.
    pub data: &'a [u8],
    /// Positions in server-side subscriptions, in the order of the wire; a channel may occur twice.
    pub subs: Vec<ConnectSubscription<'a>>,
    /// Name of the client software.
    pub name: Cow<'a, str>,
    /// Version of the client software.
    pub version: Cow<'a, str>,
    /// Bits of optional protocol areas that the client offers.
    pub flag: i64,
}

/// What the client knows of a server-side subscription.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConnectSubscription<'a> {
    /// Channel.
    pub channel: Cow<'a, str>,
    /// Whether it wants what it missed after `offset`.
    pub recover: bool,
    /// Last offset it has seen under `epoch`.
    pub offset: u64,
    /// Epoch of `offset`; empty: any.
    pub epoch: Cow<'a, str>,
}

/// Fields of a subscribe command.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SubscribeRequest<'a> {
    /// Channel to join.
    pub channel: Cow<'a, str>,
    /// Subscription token; empty: none.
    pub token: Cow<'a, str>,
    /// Whether the client wants what it missed after `offset`.
    pub recover: bool,
    /// Epoch of `offset`; empty: any.
    pub epoch: Cow<'a, str>,
    /// Last offset the client has seen under `epoch`.
    pub offset: u64,
    /// Data for the backend that authorizes; empty: none.
    pub data: &'a [u8],
    /// Asks that the server notices losses.
    pub positioned: bool,
    /// Asks that the subscription can be recovered.
    pub recoverable: bool,
    /// Asks for join and leave pushes.
    pub join_leave: bool,
    /// Name of the delta format that the client can read; empty: none.
    pub delta: Cow<'a, str>,
    /// Bits: 1 compaction offered, 2 rather an error than an unrecovered subscription.
    pub flag: i64,
    /// Field `type`: 0 is a channel, anything else a kind of subscription that this server does not have.
    pub kind: i32,
    /// Whether a tags filter was sent.
    pub tf_present: bool,
}

impl SubscribeRequest<'_> {
    /// Bit of `flag`: pushes may carry the channel's number instead of its name.
    pub const FLAG_COMPACTION: i64 = 1;
    /// Bit of `flag`: answer error 112 rather than `recovered:false`.
    pub const FLAG_REJECT_UNRECOVERED: i64 = 2;
}

/// Fields of a history command.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistoryRequest<'a> {
    /// Channel asked about.
    pub channel: Cow<'a, str>,
    /// Publications at most; 0: position only, -1: as many as the server allows.
    pub limit: i32,
    /// From where; `None`: from the oldest (the newest if `reverse`).
    pub since: Option<StreamPosition<'a>>,
    /// Newest first.
    pub reverse: bool,
}

/// A place in a channel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StreamPosition<'a> {
    /// Offset under `epoch`.
    pub offset: u64,
    /// Epoch; opaque.
    pub epoch: Cow<'a, str>,
}

/// Why a message of a client cannot be read. All of them close the connection with 3501.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// The message holds no command.
    Empty,
    /// Not JSON objects a line, or not delimited protobuf messages; or a field of another type than the protocol's.
    Malformed,
    /// Containers inside each other beyond [`super::json::DEPTH_MAX`].
    TooDeep,
    /// A number that is not an integer, or is out of its field's range.
    Number,
    /// A string that is not UTF-8.
    Utf8,
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CommandError::Empty => "message without a command",
            CommandError::Malformed => "malformed command",
            CommandError::TooDeep => "too many containers inside each other",
            CommandError::Number => "number not an integer or out of range",
            CommandError::Utf8 => "string is not UTF-8",
        })
    }
}

impl core::error::Error for CommandError {}

impl From<JsonErrorKind> for CommandError {
    fn from(kind: JsonErrorKind) -> Self {
        match kind {
            JsonErrorKind::TooDeep => CommandError::TooDeep,
            _ => CommandError::Malformed,
        }
    }
}

/// Reads the first message of a client on the unidirectional transport: the fields of a connect command as one JSON
/// object, without a command around them (CLIENT-PROTOCOL §17). The text must be UTF-8 and may have newlines between
/// tokens, also inside `data`.
pub fn decode_uni_connect(json: &[u8]) -> Result<ConnectRequest<'_>, CommandError> {
    let mut scan = Scan::text(json);
    scan.whitespace();
    if scan.at == json.len() {
        return Err(CommandError::Empty);
    }
    // `null` is not a request.
    let request = scan.message(connect)?.ok_or(CommandError::Malformed)?;
    scan.whitespace();
    if scan.at < json.len() { Err(CommandError::Malformed) } else { Ok(request) }
}

/// Iterates the commands of one WebSocket message: JSON objects separated by `\n` (whitespace around the whole is
/// ignored), or uvarint-length-delimited protobuf messages (length 0 is a pong). An error ends the iteration.
#[derive(Debug)]
pub struct Commands<'a> {
    form: Form,
    /// What is still to be read.
    rest: &'a [u8],
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// No command was read yet, and there must be one.
    First,
    /// At least one was read; in JSON form `rest` is empty or begins behind a newline.
    More,
    /// An error was reported.
    Failed,
}

impl<'a> Commands<'a> {
    /// Begins to read a message. In JSON form it must be UTF-8 (a WebSocket text message is).
    pub fn new(form: Form, message: &'a [u8]) -> Self {
        let rest = match form {
            Form::Json => message.trim_ascii(),
            Form::Protobuf => message,
        };
        Commands { form, rest, state: State::First }
    }

    fn read(&mut self) -> Result<Command<'a>, CommandError> {
        match self.form {
            Form::Json => {
                let mut scan = Scan::line(self.rest);
                // `null` is not a command.
                let command = scan.message(command)?.ok_or(CommandError::Malformed)?;
                scan.whitespace();
                self.rest = match self.rest.get(scan.at) {
                    None => &[],
                    Some(b'\n') => &self.rest[scan.at + 1..],
                    Some(_) => return Err(CommandError::Malformed),
                };
                Ok(command)
            }
            Form::Protobuf => {
                let mut reader = Reader::new(self.rest);
                let message = reader.delimited()?;
                self.rest = reader.rest();
                command(&mut Reader::new(message))
            }
        }
    }
}

impl<'a> Iterator for Commands<'a> {
    type Item = Result<Command<'a>, CommandError>;

    fn next(&mut self) -> Option<Self::Item> {
        let result = match self.state {
            State::Failed => return None,
            State::More if self.rest.is_empty() => return None,
            State::First if self.rest.is_empty() => Err(CommandError::Empty),
            State::First | State::More => self.read(),
        };
        self.state = if result.is_ok() { State::More } else { State::Failed };
        Some(result)
    }
}

impl core::iter::FusedIterator for Commands<'_> {}
