//! What a client is and may: its identity, its subscriptions, and what each of its commands means.
//!
//! In: decoded commands. Out: a [`Decision`] that `shard.rs` carries out. Invariant: nothing that the client says
//! about itself decides anything; rules come from the namespaces and the access options.

use alloc::vec::Vec;
use core::fmt::Write;

use ringway_wire::centrifuge::Form;
use ringway_wire::centrifuge::command::{Command, ConnectRequest, Request, SubscribeRequest};
use ringway_wire::centrifuge::reply::ClientError;
use ringway_wire::close::CloseReason;
use ringway_wire::ingest::PayloadKind;

use crate::ids::{ConnId, CoreId, Epoch, LocalChannelId};
use crate::lane_message::RecoverFrom;
use crate::namespace::{Allow, NamespaceId, channel_is_valid};
use crate::options::Options;

/// Bytes of a client id's text.
pub const CLIENT_ID_BYTES: usize = 36;

/// A client's state between its commands.
#[derive(Debug)]
pub struct Session {
    /// How it encodes.
    pub form: Form,
    /// It negotiated permessage-deflate: it may send compressed messages, and may be sent such.
    pub deflate: bool,
    /// Its connect command was answered with a result.
    pub connected: bool,
    /// What its timer does next.
    pub ping: PingState,
    /// A ping is out and nothing has come since.
    pub awaiting_pong: bool,
    /// Requests that wait for an owner.
    pub in_flight: u32,
    /// In no order; scanned, since most clients have few.
    pub subscriptions: Vec<Subscription>,
}

/// What a connected client's timer does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PingState {
    /// Sends a ping.
    Resting,
    /// Looks whether anything came since the ping.
    Asked,
}

/// A channel of a client.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// The channel on this core.
    pub local: LocalChannelId,
    /// How far it has come.
    pub state: SubscriptionState,
}

/// How far a subscription has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubscriptionState {
    /// The owner has been asked.
    Asked {
        /// Id of the subscribe command.
        command: u32,
        /// Where the client wants to resume.
        recover: Option<RecoverFrom>,
        /// It would rather have error 112 than `recovered:false`.
        reject_unrecovered: bool,
        /// The client has unsubscribed meanwhile, with this command; both are answered together.
        unsubscribe: Option<u32>,
    },
    /// On the channel's list.
    Joined {
        /// Place in the list.
        index: u32,
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
    /// Answer the connect command: the client is in.
    Welcome,
    /// Ask the owner.
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
        /// As the client sent it.
        data: &'a [u8],
    },
    /// Answer the historic ping command.
    AnswerPing,
}

/// A subscribe that may go to the owner, unless the client has the channel already.
#[derive(Debug)]
pub struct SubscribeDecision<'a> {
    /// Full name.
    pub channel: &'a str,
    /// Its rules.
    pub namespace: NamespaceId,
    /// Where to resume.
    pub recover: Option<RecoverFrom>,
    /// Answer 112 if that cannot be.
    pub reject_unrecovered: bool,
}

impl Session {
    /// A client that has just upgraded.
    pub const fn new(form: Form, deflate: bool) -> Self {
        Session {
            form,
            deflate,
            connected: false,
            ping: PingState::Resting,
            awaiting_pong: false,
            in_flight: 0,
            subscriptions: Vec::new(),
        }
    }

    /// What a command means in this state.
    pub fn decide<'a>(&self, command: &'a Command<'_>, options: &Options) -> Decision<'a> {
        let has_reply = !matches!(command.request, Request::Pong | Request::Send { .. });
        if has_reply && command.id == 0 {
            return Decision::Close(CloseReason::BadRequest);
        }
        match &command.request {
            Request::Connect(connect) => self.decide_connect(connect, options),
            _ if !self.connected => Decision::Close(CloseReason::BadRequest),
            Request::Pong | Request::Send { .. } => Decision::Ignore,
            Request::Subscribe(subscribe) => self.decide_subscribe(subscribe, options),
            Request::Unsubscribe { channel } => Decision::Unsubscribe { channel },
            Request::Publish { channel, data } => match self.may_publish(channel, data, options) {
                Ok(()) => Decision::Publish { channel, data },
                Err(error) => Decision::Refuse(error),
            },
            Request::Ping => Decision::AnswerPing,
            Request::Rpc { .. } => Decision::Refuse(ClientError::MethodNotFound),
            Request::Presence { .. }
            | Request::PresenceStats { .. }
            | Request::History(_)
            | Request::Refresh { .. }
            | Request::SubRefresh { .. } => Decision::Refuse(ClientError::NotAvailable),
            Request::Missing => Decision::Refuse(ClientError::BadRequest),
        }
    }

    fn decide_connect<'a>(&self, connect: &ConnectRequest<'_>, options: &Options) -> Decision<'a> {
        if self.connected {
            return Decision::Close(CloseReason::BadRequest);
        }
        if !connect.token.is_empty() {
            // No key to verify a token with is configured, and an unverified one proves nothing.
            return Decision::Close(CloseReason::InvalidToken);
        }
        if options.access.anonymous { Decision::Welcome } else { Decision::Close(CloseReason::PermissionDenied) }
    }

    fn decide_subscribe<'a>(&self, request: &'a SubscribeRequest<'_>, options: &Options) -> Decision<'a> {
        if !channel_is_valid(&request.channel, &options.limits) || request.tf_present {
            return Decision::Refuse(ClientError::BadRequest);
        }
        if request.kind != 0 {
            return Decision::Refuse(ClientError::NotAvailable);
        }
        let Some((id, namespace)) = options.namespaces.resolve(&request.channel) else {
            return Decision::Refuse(ClientError::UnknownChannel);
        };
        let readable = namespace.payload == PayloadKind::Json || self.form == Form::Protobuf;
        if !allowed(namespace.subscribe) || !readable {
            return Decision::Refuse(ClientError::PermissionDenied);
        }
        if self.subscriptions.len() >= options.limits.subscriptions_per_connection_max as usize {
            return Decision::Refuse(ClientError::LimitExceeded);
        }
        let recover = (request.recover && namespace.recovery).then(|| RecoverFrom {
            offset: request.offset,
            // A text that is no epoch of ours matches none: creations are counted from 1.
            epoch: (!request.epoch.is_empty())
                .then(|| Epoch::parse(&request.epoch).unwrap_or(Epoch { boot: 0, creation: 0 })),
        });
        Decision::Subscribe(SubscribeDecision {
            channel: &request.channel,
            namespace: id,
            recover,
            reject_unrecovered: request.flag & SubscribeRequest::FLAG_REJECT_UNRECOVERED != 0,
        })
    }

    fn may_publish(&self, channel: &str, data: &[u8], options: &Options) -> Result<(), ClientError> {
        if !channel_is_valid(channel, &options.limits) || data.is_empty() {
            return Err(ClientError::BadRequest);
        }
        let (_, namespace) = options.namespaces.resolve(channel).ok_or(ClientError::UnknownChannel)?;
        let writable = namespace.payload == PayloadKind::Json || self.form == Form::Protobuf;
        if !allowed(namespace.publish) || !writable {
            return Err(ClientError::PermissionDenied);
        }
        if data.len() > options.limits.publication_bytes_max as usize {
            return Err(ClientError::LimitExceeded);
        }
        Ok(())
    }

    /// The live subscription to a channel: joined, or asked for and not given up since.
    pub fn subscription(&self, local: LocalChannelId) -> Option<usize> {
        self.subscriptions.iter().position(|subscription| {
            let given_up = matches!(subscription.state, SubscriptionState::Asked { unsubscribe: Some(_), .. });
            subscription.local == local && !given_up
        })
    }

    /// The subscription that a subscribe command has asked for.
    pub fn asked(&self, local: LocalChannelId, asked: u32) -> Option<usize> {
        self.subscriptions.iter().position(|subscription| {
            let same = matches!(subscription.state, SubscriptionState::Asked { command, .. } if command == asked);
            subscription.local == local && same
        })
    }
}

/// Clients have no user id yet, so only what everyone may do is allowed.
fn allowed(rule: Allow) -> bool {
    match rule {
        Allow::Anyone => true,
        Allow::Authenticated | Allow::Subscriber | Allow::Token | Allow::Backend => false,
    }
}

/// A client's id: unique over restarts, shards and reuse of slots, and never stored.
/// 36 characters in the shape of a UUID: boot id (56 bits), shard (16), slot (24), generation (32).
pub fn client_id(boot: u64, core: CoreId, conn: ConnId) -> impl AsRef<str> {
    let mut text = ClientId { bytes: [0; CLIENT_ID_BYTES], len: 0 };
    // Cannot fail: the groups and dashes are 36 characters.
    let _ = write!(
        text,
        "{:08x}-{:04x}-{:04x}-{:04x}-{:02x}{:02x}{:08x}",
        boot >> 32,
        boot >> 16 & 0xFFFF,
        core.0,
        conn.slot >> 8 & 0xFFFF,
        conn.slot & 0xFF,
        boot & 0xFF,
        conn.generation,
    );
    text
}

struct ClientId {
    bytes: [u8; CLIENT_ID_BYTES],
    len: usize,
}

impl Write for ClientId {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        let end = self.len + s.len();
        self.bytes.get_mut(self.len..end).ok_or(core::fmt::Error)?.copy_from_slice(s.as_bytes());
        self.len = end;
        Ok(())
    }
}

impl AsRef<str> for ClientId {
    fn as_ref(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use alloc::string::ToString;

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
    }
}
