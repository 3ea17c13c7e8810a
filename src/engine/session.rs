//! What a client is and may: its identity, its subscriptions, and what each of its commands means.
//!
//! In: decoded commands. Out: a [`Decision`] that `shard/` carries out. Invariant: nothing that the client says about
//! itself decides anything; rights come from namespaces, tokens and backends.

use alloc::boxed::Box;
use alloc::vec::Vec;

use ringway_wire::centrifuge::Form;
use ringway_wire::centrifuge::command::{Command, ConnectRequest, HistoryRequest, Request, SubscribeRequest};
use ringway_wire::centrifuge::reply::ClientError;
use ringway_wire::close::CloseReason;
use ringway_wire::ingest::PayloadKind;

use crate::authorize::{self, SubscribeRight, Who};
use crate::call::{ChannelAsk, HistoryAsk, Since};
use crate::deadline::Deadline;
use crate::identity::Identity;
use crate::ids::{ConnId, CoreId, Epoch, LocalChannelId};
use crate::lane_message::RecoverFrom;
use crate::namespace::{EventMode, NamespaceId, channel_is_valid};
use crate::opening::Opening;
use crate::options::Options;
use crate::rate::TokenBucket;
use crate::subscriptions::Subscriptions;
use crate::tokens::ConnectClaims;
use crate::variant::Variant;

/// Bytes of a client id's text.
pub const CLIENT_ID_BYTES: usize = 36;

/// A client's state between its commands.
#[derive(Debug)]
pub struct Session {
    /// How it encodes.
    pub form: Form,
    /// It negotiated permessage-deflate: it may send compressed messages, and may be sent such.
    pub deflate: bool,
    /// It only listens: pushes stand alone, and it sends nothing but its connect request.
    pub uni: bool,
    /// It understands pushes that carry a number in place of their channel's name, if it offers to take them.
    pub takes_numbers: bool,
    /// How far it has come.
    pub stage: Stage,
    /// What its timer does next.
    pub ping: PingState,
    /// It is known who it is, although its connect command may not be answered yet.
    pub admitted: bool,
    /// A ping is out and nothing has come since.
    pub awaiting_pong: bool,
    /// When `ping` is to act; the connection's timer may fire earlier, for what expires.
    pub ping_at: Deadline,
    /// Requests that wait for an owner, a token's verdict or a backend.
    pub in_flight: u32,
    /// Who it is; nobody before it is admitted.
    pub identity: Identity,
    /// Its channels.
    pub subscriptions: Subscriptions,
    rare: Option<Box<Rare>>,
}

const _: () = assert!(size_of::<Session>() <= 88, "every client has one");

/// What few clients have, or have for a short time.
#[derive(Debug, Default)]
struct Rare {
    /// What its connect command still waits for.
    opening: Option<Opening>,
    /// Requests that wait for a verdict or a backend.
    asks: Vec<Ask>,
    /// How much it may publish now, for each namespace with a limit that it has published to.
    publish_rates: Vec<(NamespaceId, TokenBucket)>,
}

/// How Protobuf SDKs that understand numbers in place of channel names call themselves, unless the application names
/// them otherwise (it then gets names, which always work). The JavaScript SDK in Protobuf must not be here: it offers to
/// take numbers and then drops each such push, since it compares two objects of 64-bit integers by identity
/// (npm `centrifuge` 5.8.0).
const NUMBERED_PROTOBUF_CLIENTS: [&str; 6] = ["csharp", "dart", "go", "java", "python", "swift"];

/// How far a client has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its connect command is expected.
    New,
    /// Its connect command waits for an answer; nothing else is read until then.
    Opening,
    /// It is in.
    Open,
    /// Its connect command was answered with an error; it is expected to close.
    Refused,
}

/// What a connected client's timer does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PingState {
    /// Sends a ping.
    Resting,
    /// Looks whether anything came since the ping.
    Asked,
    /// Nothing: pings are off.
    Off,
}

/// A request that waits for a verdict or a backend.
#[derive(Debug)]
pub struct Ask {
    /// Its number.
    pub number: u32,
    /// What it is.
    pub what: AskWhat,
}

/// See [`Ask`].
#[derive(Debug)]
pub enum AskWhat {
    /// The connect command.
    Connect,
    /// The connect command of a client whose user may have too many connections.
    Place {
        /// Who it is.
        claims: Box<ConnectClaims>,
        /// Data of the backend for the client.
        data: Box<[u8]>,
    },
    /// The connect command of a client that is to be let in: what another node knew of its user.
    Parked {
        /// Who it is.
        claims: Box<ConnectClaims>,
        /// Data of the backend for the client.
        data: Box<[u8]>,
    },
    /// A subscribe command; the number is that of its subscription.
    Subscribe {
        /// The channel on this core.
        local: LocalChannelId,
    },
    /// A publish command.
    Publish {
        /// Id of the command.
        command: u32,
        /// Full name.
        channel: Box<str>,
        /// Checked payload.
        payload: Box<[u8]>,
    },
    /// An rpc command.
    Rpc {
        /// Id of the command.
        command: u32,
    },
    /// A refresh command.
    Refresh {
        /// Id of the command.
        command: u32,
    },
    /// A sub_refresh command.
    SubRefresh {
        /// Id of the command.
        command: u32,
        /// Full name.
        channel: Box<str>,
    },
}

/// What to do about a command.
#[derive(Debug)]
pub enum Decision<'a> {
    /// Nothing.
    Ignore,
    /// Answer with an error.
    Refuse(ClientError),
    /// End the connection.
    Close(CloseReason),
    /// Find out who it is.
    Connect(&'a ConnectRequest<'a>),
    /// Find out whether it may, then ask the owner.
    Subscribe(SubscribeDecision<'a>),
    /// Take it off the list, and answer.
    Unsubscribe {
        /// Full name.
        channel: &'a str,
    },
    /// Send it to the owner.
    Publish {
        /// Full name.
        channel: &'a str,
        /// Its rules.
        namespace: NamespaceId,
        /// As the client sent it.
        data: &'a [u8],
    },
    /// Ask the owner of the channel.
    Read {
        /// Full name.
        channel: &'a str,
        /// What.
        ask: ChannelAsk,
    },
    /// Hand it to a backend.
    Rpc {
        /// Name of the method.
        method: &'a str,
        /// As the client sent it.
        data: &'a [u8],
    },
    /// Tell a backend.
    Message {
        /// As the client sent it.
        data: &'a [u8],
    },
    /// Prolong the connection.
    Refresh {
        /// Connection token.
        token: &'a str,
    },
    /// Prolong a subscription.
    SubRefresh {
        /// Full name.
        channel: &'a str,
        /// Subscription token.
        token: &'a str,
    },
    /// Answer the historic ping command.
    AnswerPing,
}

/// A subscribe that may go on, unless the client has the channel already.
#[derive(Debug)]
pub struct SubscribeDecision<'a> {
    /// The command.
    pub request: &'a SubscribeRequest<'a>,
    /// The channel's rules.
    pub namespace: NamespaceId,
    /// Who has to be asked.
    pub right: Right,
    /// Where to resume.
    pub recover: Option<RecoverFrom>,
}

/// Who decides about a subscribe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Nobody any more: it is granted.
    Granted,
    /// The token that came with it.
    Token,
    /// A backend.
    Backend,
}

impl Session {
    /// A client that has just upgraded.
    pub fn new(form: Form, deflate: bool) -> Self {
        Session {
            form,
            deflate,
            uni: false,
            takes_numbers: false,
            stage: Stage::New,
            ping: PingState::Resting,
            admitted: false,
            awaiting_pong: false,
            ping_at: Deadline::NEVER,
            in_flight: 0,
            identity: Identity::default(),
            subscriptions: Subscriptions::default(),
            rare: None,
        }
    }

    /// A client that has just upgraded on the unidirectional path.
    pub fn new_uni(deflate: bool) -> Self {
        Session { uni: true, ..Session::new(Form::Json, deflate) }
    }

    /// Notes the name of its software.
    pub fn software_is(&mut self, name: &str) {
        self.takes_numbers = self.form == Form::Json || NUMBERED_PROTOBUF_CLIENTS.contains(&name);
    }

    /// In which encoding its subscriptions take publications, before they ask for more.
    pub const fn variant(&self) -> Variant {
        Variant::plain(self.form).with_bare(self.uni).with_deflate(self.deflate)
    }

    /// Whether its connect command was answered with a result.
    pub const fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open)
    }

    /// Its user id; empty: anonymous, or not known yet.
    pub fn user(&self) -> &str {
        &self.identity.user
    }

    /// Notes a request that waits for a verdict or a backend.
    pub fn wait(&mut self, number: u32, what: AskWhat) {
        self.in_flight += 1;
        self.rare.get_or_insert_default().asks.push(Ask { number, what });
    }

    /// The request that was waiting under this number.
    pub fn take_ask(&mut self, number: u32) -> Option<AskWhat> {
        let asks = &mut self.rare.as_mut()?.asks;
        let index = asks.iter().position(|ask| ask.number == number)?;
        let what = asks.swap_remove(index).what;
        self.in_flight -= 1;
        self.settle();
        Some(what)
    }

    /// Forgets all requests that wait for a verdict or a backend.
    pub fn forget_asks(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.asks.clear();
        }
        self.settle();
    }

    /// What its connect command still waits for; none: nothing, or none has come.
    pub fn opening(&self) -> Option<&Opening> {
        self.rare.as_ref()?.opening.as_ref()
    }

    /// As [`Session::opening`].
    pub fn opening_mut(&mut self) -> Option<&mut Opening> {
        self.rare.as_mut()?.opening.as_mut()
    }

    /// Its connect command has come.
    pub fn begin_opening(&mut self, opening: Opening) {
        self.rare.get_or_insert_default().opening = Some(opening);
    }

    /// Its connect command is answered.
    pub fn take_opening(&mut self) -> Option<Opening> {
        let opening = self.rare.as_mut()?.opening.take();
        self.settle();
        opening
    }

    /// Gives memory back that nothing needs any more.
    fn settle(&mut self) {
        self.rare.take_if(|rare| rare.opening.is_none() && rare.asks.is_empty() && rare.publish_rates.is_empty());
    }

    /// Takes one publish of what the client may do in channels of a namespace. False: it has to wait.
    pub fn take_publish(&mut self, namespace: NamespaceId, rate_per_second: u32, now_ms: u64) -> bool {
        if rate_per_second == 0 {
            return true;
        }
        let rates = &mut self.rare.get_or_insert_default().publish_rates;
        let index = rates.iter().position(|(id, _)| *id == namespace).unwrap_or_else(|| {
            rates.push((namespace, TokenBucket::default()));
            rates.len() - 1
        });
        rates[index].1.take(rate_per_second, now_ms)
    }

    /// What a command means in this state. `subscribed`: whether it has a joined subscription to a channel.
    pub fn decide<'a>(
        &self,
        command: &'a Command<'a>,
        options: &Options,
        subscribed: impl Fn(&str) -> bool,
    ) -> Decision<'a> {
        if self.stage == Stage::Refused {
            return Decision::Ignore;
        }
        let has_reply = !matches!(command.request, Request::Pong | Request::Send { .. });
        if has_reply && command.id == 0 {
            return Decision::Close(CloseReason::BadRequest);
        }
        let who = |channel: &str| Who { user: self.user(), subscribed: subscribed(channel) };
        let read = |channel: &'a str, ask: ChannelAsk| match may_read(channel, &ask, &who(channel), options) {
            Ok(()) => Decision::Read { channel, ask },
            Err(error) => Decision::Refuse(error),
        };
        match &command.request {
            Request::Connect(connect) if self.stage == Stage::New => Decision::Connect(connect),
            Request::Connect(_) => Decision::Close(CloseReason::BadRequest),
            _ if !self.is_open() => Decision::Close(CloseReason::BadRequest),
            Request::Pong => Decision::Ignore,
            Request::Send { data } => Decision::Message { data },
            Request::Subscribe(subscribe) => self.decide_subscribe(subscribe, options),
            Request::Unsubscribe { channel } => Decision::Unsubscribe { channel },
            Request::Publish { channel, data } => match self.may_publish(channel, data, &who(channel), options) {
                Ok(namespace) => Decision::Publish { channel, namespace, data },
                Err(error) => Decision::Refuse(error),
            },
            Request::Presence { channel } => read(channel, ChannelAsk::Presence),
            Request::PresenceStats { channel } => read(channel, ChannelAsk::PresenceStats),
            Request::History(history) => read(&history.channel, ChannelAsk::History(history_ask(history))),
            Request::Ping => Decision::AnswerPing,
            Request::Rpc { method, data } if options.access.rpc_events => Decision::Rpc { method, data },
            Request::Rpc { .. } => Decision::Refuse(ClientError::MethodNotFound),
            Request::Refresh { token } if token.is_empty() => Decision::Refuse(ClientError::BadRequest),
            Request::Refresh { token } => Decision::Refresh { token },
            Request::SubRefresh { token, .. } if token.is_empty() => Decision::Refuse(ClientError::BadRequest),
            Request::SubRefresh { channel, token } => Decision::SubRefresh { channel, token },
            Request::Missing => Decision::Refuse(ClientError::BadRequest),
        }
    }

    fn decide_subscribe<'a>(&self, request: &'a SubscribeRequest<'a>, options: &Options) -> Decision<'a> {
        let channel = &*request.channel;
        if !channel_is_valid(channel, &options.limits) || request.tf_present {
            return Decision::Refuse(ClientError::BadRequest);
        }
        if request.kind != 0 {
            return Decision::Refuse(ClientError::NotAvailable);
        }
        let Some((id, namespace)) = options.namespaces.resolve(channel) else {
            return Decision::Refuse(ClientError::UnknownChannel);
        };
        if namespace.payload != PayloadKind::Json && self.form == Form::Json {
            return Decision::Refuse(ClientError::PermissionDenied);
        }
        let token = !request.token.is_empty();
        let who = Who { user: self.user(), subscribed: false };
        let right = match authorize::subscribe(namespace, channel, &who, token) {
            _ if !token && authorize::backend_decides(namespace, channel, who.user) => Right::Backend,
            SubscribeRight::Granted => Right::Granted,
            SubscribeRight::NeedsToken => Right::Token,
            SubscribeRight::Denied(error) => return Decision::Refuse(error),
        };
        if self.subscriptions.len() >= options.limits.subscriptions_per_connection_max as usize {
            return Decision::Refuse(ClientError::LimitExceeded);
        }
        let recover = (request.recover && namespace.recovery)
            .then(|| RecoverFrom { offset: request.offset, epoch: epoch(&request.epoch) });
        Decision::Subscribe(SubscribeDecision { request, namespace: id, right, recover })
    }

    fn may_publish(
        &self,
        channel: &str,
        data: &[u8],
        who: &Who<'_>,
        options: &Options,
    ) -> Result<NamespaceId, ClientError> {
        if !channel_is_valid(channel, &options.limits) || data.is_empty() {
            return Err(ClientError::BadRequest);
        }
        let (id, namespace) = options.namespaces.resolve(channel).ok_or(ClientError::UnknownChannel)?;
        if namespace.payload != PayloadKind::Json && self.form == Form::Json {
            return Err(ClientError::PermissionDenied);
        }
        // A backend that is asked decides alone.
        if namespace.publish_events != EventMode::Ask {
            authorize::publish(namespace, channel, who)?;
        }
        if data.len() > options.limits.publication_bytes_max as usize {
            return Err(ClientError::LimitExceeded);
        }
        Ok(id)
    }

    /// The live subscription to a channel: joined, or asked for and not given up since.
    pub fn subscription(&self, local: LocalChannelId) -> Option<usize> {
        self.subscriptions.iter().position(|subscription| {
            let given_up = subscription.asked().is_some_and(|asked| asked.leaving.is_some());
            subscription.local == local && !given_up
        })
    }

    /// The subscription that waits under this number.
    pub fn asked(&self, local: LocalChannelId, request: u32) -> Option<usize> {
        self.subscriptions.iter().position(|subscription| {
            let same = subscription.asked().is_some_and(|asked| asked.request == request);
            subscription.local == local && same
        })
    }

    /// When the connection or one of its subscriptions expires next.
    pub fn expires_at_ms(&self) -> Option<u64> {
        let subscriptions = self.subscriptions.iter().filter_map(|subscription| subscription.expires_at_ms());
        subscriptions.chain(self.identity.expires.ms()).min()
    }
}

fn may_read(channel: &str, ask: &ChannelAsk, who: &Who<'_>, options: &Options) -> Result<(), ClientError> {
    if !channel_is_valid(channel, &options.limits) {
        return Err(ClientError::BadRequest);
    }
    let (_, namespace) = options.namespaces.resolve(channel).ok_or(ClientError::UnknownChannel)?;
    match ask {
        ChannelAsk::Presence | ChannelAsk::PresenceStats if !namespace.presence => Err(ClientError::NotAvailable),
        ChannelAsk::Presence | ChannelAsk::PresenceStats => authorize::read_presence(namespace, channel, who),
        ChannelAsk::History(_) | ChannelAsk::HistoryRemove if namespace.history_size == 0 => {
            Err(ClientError::NotAvailable)
        }
        ChannelAsk::History(_) | ChannelAsk::HistoryRemove => authorize::read_history(namespace, channel, who),
    }
}

fn history_ask(request: &HistoryRequest<'_>) -> HistoryAsk {
    HistoryAsk {
        limit: request.limit,
        since: request.since.as_ref().map(|since| Since { offset: since.offset, epoch: epoch(&since.epoch) }),
        reverse: request.reverse,
    }
}

/// A client's epoch; none: it takes any. A text that is no epoch of ours matches none: creations are counted from 1.
pub fn epoch(text: &str) -> Option<Epoch> {
    (!text.is_empty()).then(|| Epoch::parse(text).unwrap_or(Epoch { boot: 0, creation: 0 }))
}

/// A client's id: unique over restarts, shards and reuse of slots, and never stored.
/// 36 characters in the shape of a UUID: boot id (56 bits), shard (16), slot (24), generation (32).
pub fn client_id(boot: u64, core: CoreId, conn: ConnId) -> impl AsRef<str> {
    let groups = [
        (boot >> 32, 8),
        (boot >> 16, 4),
        (u64::from(core.0), 4),
        (u64::from(conn.slot >> 8), 4),
        (u64::from(conn.slot & 0xFF) << 40 | (boot & 0xFF) << 32 | u64::from(conn.generation), 12),
    ];
    let mut text = ClientId { bytes: [b'-'; CLIENT_ID_BYTES] };
    let mut end = 0;
    for (value, digits) in groups {
        // By hand: formatting it cost a fiftieth of an opening.
        for place in 0..digits {
            let digit = (value >> (4 * (digits - 1 - place)) & 0xF) as usize;
            text.bytes[end + place] = b"0123456789abcdef"[digit];
        }
        end += digits + 1;
    }
    text
}

struct ClientId {
    bytes: [u8; CLIENT_ID_BYTES],
}

impl AsRef<str> for ClientId {
    fn as_ref(&self) -> &str {
        core::str::from_utf8(&self.bytes).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use alloc::string::ToString;

    #[test]
    fn numbers_only_for_clients_known_to_understand_them() {
        let takes = |form, name| {
            let mut session = Session::new(form, false);
            session.software_is(name);
            session.takes_numbers
        };
        assert!(takes(Form::Json, "js") && takes(Form::Json, "anything") && takes(Form::Protobuf, "python"));
        assert!(!takes(Form::Protobuf, "js") && !takes(Form::Protobuf, "my application") && !takes(Form::Protobuf, ""));
    }

    #[test]
    fn client_ids_differ_in_every_part() {
        let conn = |slot, generation| ConnId { slot, generation };
        let ids = [
            client_id(1 << 40, CoreId(0), conn(0, 0)),
            client_id(2 << 40, CoreId(0), conn(0, 0)),
            client_id(1 << 40, CoreId(1), conn(0, 0)),
            client_id(1 << 40, CoreId(0), conn(1, 0)),
            client_id(1 << 40, CoreId(0), conn(0x00FF_FFFF, 0)),
            client_id(1 << 40, CoreId(0), conn(0, 1)),
            client_id(1 << 40, CoreId(0), conn(0, u32::MAX)),
        ];
        let texts: BTreeSet<_> = ids.iter().map(|id| id.as_ref().to_string()).collect();
        assert_eq!(texts.len(), ids.len());
        assert!(texts.iter().all(|text| text.len() == CLIENT_ID_BYTES));
        let id = client_id(0x0012_3456_789A_BCDE, CoreId(0x0102), conn(0x00A1_B2C3, 0x0D0E_0F10));
        assert_eq!(id.as_ref(), "00123456-789a-0102-a1b2-c3de0d0e0f10");
    }
}
