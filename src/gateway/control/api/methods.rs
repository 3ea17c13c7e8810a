//! The methods of the server API: one table, from which dispatch, batch commands, counters and the OpenAPI document come.
//!
//! In: a method's name and its body. Out: a [`Command`], and a [`Reply`] when it is done. Invariant: a method is a row
//! here and nowhere else.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use super::ask::{Asking, Start, Work};
use super::channel::{
    ChannelsRequest, ChannelsResult, HistoryRemoveRequest, HistoryRemoveResult, HistoryRequest, HistoryResult,
    PresenceRequest, PresenceResult, PresenceStatsRequest, PresenceStatsResult,
};
use super::error::ApiError;
use super::node::{InfoRequest, InfoResult, ReloadRequest, ReloadResult, RevokeTokenRequest, RevokeTokenResult};
use super::publish::{BroadcastRequest, BroadcastResult, PublishRequest, PublishResult};
use super::results::ApiResult;
use super::shape::object;
use super::user::{
    DisconnectRequest, DisconnectResult, RefreshRequest, RefreshResult, RpcRequest, RpcResult, SubscribeRequest,
    SubscribeResult, UnsubscribeRequest, UnsubscribeResult,
};

/// Whose order a command belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// The owner of a channel.
    Channel,
    /// The owner of a user.
    User,
    /// The node.
    Node,
}

impl Class {
    /// Heading in the OpenAPI document.
    pub(super) const fn tag(self) -> &'static str {
        match self {
            Class::Channel => "channels",
            Class::User => "users",
            Class::Node => "node",
        }
    }
}

/// A row of [`METHODS`].
pub(super) struct Method {
    /// Last part of the path, and key of batch commands and replies.
    pub(super) name: &'static str,
    pub(super) class: Class,
    /// For people.
    pub(super) summary: &'static str,
    /// Schemas of its body and its result.
    pub(super) request: fn(&mut SchemaGenerator) -> Schema,
    pub(super) result: fn(&mut SchemaGenerator) -> Schema,
}

macro_rules! methods {
    ($( $variant:ident = $name:literal, $class:ident, $request:ident => $result:ident, $summary:literal; )+) => {
        /// Every method but `batch`.
        pub(super) const METHODS: &[Method] = &[ $( Method {
            name: $name,
            class: Class::$class,
            summary: $summary,
            request: |generator| generator.subschema_for::<$request>(),
            result: |generator| generator.subschema_for::<$result>(),
        }, )+ ];

        /// One command: an object whose only key is a method.
        #[derive(Debug, Deserialize, JsonSchema)]
        pub(super) enum Command { $( #[doc = $summary] #[serde(rename = $name)] $variant(#[serde(deserialize_with = "object")] $request), )+ }

        /// One reply: an object whose only key is the command's method, or `error`.
        #[derive(Debug, Serialize, JsonSchema)]
        pub(super) enum Reply {
            $( #[doc = concat!("Result of `", $name, "`.")] #[serde(rename = $name)] $variant($result), )+
            /// The command failed.
            #[serde(rename = "error")]
            Error(ApiError),
        }

        impl Command {
            /// The command that a body means to a method; none when there is no such method.
            pub(super) fn parse(method: &str, body: &[u8]) -> Option<Result<Command, ApiError>> {
                match method {
                    $( $name => Some(parse(body).map(Command::$variant)), )+
                    _ => None,
                }
            }

            pub(super) fn method(&self) -> &'static str {
                match self { $( Command::$variant(_) => $name, )+ }
            }

            pub(super) fn class(&self) -> Class {
                match self { $( Command::$variant(_) => Class::$class, )+ }
            }
        }

        impl Start for Command {
            type Result = Reply;

            fn start(self, asking: &Asking<'_>) -> Work<Reply> {
                match self {
                    $( Command::$variant(request) => {
                        let work = request.start(asking);
                        Box::pin(async move { work.await.map(Reply::$variant) })
                    } )+
                }
            }
        }

        impl Reply {
            /// As the answer of a single call: `{"result":…}` or `{"error":…}`.
            ///
            /// # Errors
            /// It cannot be written as JSON.
            pub(super) fn envelope(&self) -> Result<String, serde_json::Error> {
                Ok(match self {
                    $( Reply::$variant(result) => format!("{{\"result\":{}}}", serde_json::to_string(result)?), )+
                    Reply::Error(error) => format!("{{\"error\":{}}}", serde_json::to_string(error)?),
                })
            }
        }
    };
}

methods! {
    Publish = "publish", Channel, PublishRequest => PublishResult, "Publish to a channel.";
    Broadcast = "broadcast", Channel, BroadcastRequest => BroadcastResult, "Publish the same to several channels.";
    Subscribe = "subscribe", User, SubscribeRequest => SubscribeResult, "Subscribe a user's connections to a channel.";
    Unsubscribe = "unsubscribe", User, UnsubscribeRequest => UnsubscribeResult, "End subscriptions of a user's connections.";
    Disconnect = "disconnect", User, DisconnectRequest => DisconnectResult, "Close a user's connections.";
    Refresh = "refresh", User, RefreshRequest => RefreshResult, "Change when a user's connections expire.";
    Presence = "presence", Channel, PresenceRequest => PresenceResult, "Who is subscribed to a channel.";
    PresenceStats = "presence_stats", Channel, PresenceStatsRequest => PresenceStatsResult, "How many are subscribed to a channel.";
    History = "history", Channel, HistoryRequest => HistoryResult, "Publications of the past, and the channel's position.";
    HistoryRemove = "history_remove", Channel, HistoryRemoveRequest => HistoryRemoveResult, "Forget a channel's publications.";
    Channels = "channels", Node, ChannelsRequest => ChannelsResult, "Channels with subscribers, on all nodes.";
    Info = "info", Node, InfoRequest => InfoResult, "State of all nodes.";
    Rpc = "rpc", User, RpcRequest => RpcResult, "Push a message to a user's connections.";
    RevokeToken = "revoke_token", Node, RevokeTokenRequest => RevokeTokenResult, "Refuse a token from now on.";
    Reload = "reload", Node, ReloadRequest => ReloadResult, "Read the configuration again.";
}

/// # Errors
/// What is wrong with the body, for the developer who wrote it.
pub(super) fn parse<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    object(&mut deserializer)
        .and_then(|request| deserializer.end().map(|()| request))
        .map_err(|error| ApiError::bad_request(error.to_string()))
}

impl Reply {
    /// What it counts as.
    pub(super) fn counted(&self) -> ApiResult {
        match self {
            Reply::Publish(result) if result.duplicate => ApiResult::Duplicate,
            Reply::Error(error) => error.result,
            _ => ApiResult::Ok,
        }
    }
}

/// Waits for a command's work and counts how it ended.
pub(super) async fn finish(method: &'static str, work: Work<Reply>, asking: &Asking<'_>) -> Reply {
    let reply = work.await.unwrap_or_else(Reply::Error);
    asking.results().count(method, reply.counted());
    if let Reply::Broadcast(broadcast) = &reply {
        broadcast.refusals().for_each(|result| asking.results().count("broadcast_publish", result));
    }
    reply
}
