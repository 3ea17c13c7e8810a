//! `subscribe`, `unsubscribe`, `disconnect`, `refresh` and `rpc`: orders about the connections of one user.
//!
//! In: a user, perhaps one of its connections, and an order. Out: a [`UserOrder`] to the user's owner. Invariants: the
//! answer says that every core with connections of the user was told, in order with later orders about that user; a user
//! without connections is no error.

use ringway_engine::call::{Since, UserOrder};
use ringway_engine::ids::Epoch;
use ringway_engine::limits::OFFSET_MAX;
use ringway_engine::tokens::{Overrides, TokenSubscription};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ask::{Asking, Start, Work, begun, refuse, text};
use super::error::ApiError;
use super::json::{BASE64, Json, json_or_base64, payload, present};
use super::shape::{optional_object, whole};
use crate::clock;
use crate::control::call::Call;

/// Bytes of a user or client id. Over: error 107.
pub(super) const ID_BYTES_MAX: u32 = 1_024;
/// Client ids that one disconnect spares. Over: error 106.
pub(super) const WHITELIST_MAX: usize = 1_024;
/// Bytes of a close reason: a control frame carries no more (RFC 6455 §5.5, two bytes are the code).
const REASON_BYTES_MAX: usize = 123;
/// What a reason looks like: text that no SDK can take for JSON, which some of them try first.
const REASON: &str = "^([^0-9\"\\[{\\-\\x00-\\x20][^\\x00-\\x1f]*)?$";
/// Code and text of an unsubscribe by a backend (client protocol: below 2500 the SDK does not come back).
const UNSUBSCRIBED: (u32, &str) = (2000, "server unsubscribe");
/// Code and text of a disconnect by a backend when it gives none (client protocol: terminal).
const DISCONNECTED: (u16, &str) = (3503, "force disconnect");
/// Largest time in seconds that JSON numbers carry exactly.
const TIME_MAX: u64 = OFFSET_MAX;

/// Subscribes a user's connections to a channel, server-side.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct SubscribeRequest {
    /// The user.
    #[schemars(length(min = 1))]
    user: String,
    /// Full name of the channel.
    #[schemars(length(min = 1))]
    channel: String,
    /// Only this connection of the user.
    client: Option<String>,
    /// Not available; must be empty.
    #[schemars(length(max = 0))]
    session: Option<String>,
    /// JSON that others see beside the user, in presence, joins and leaves.
    info: Option<Json>,
    /// `info` in base64. Not empty: used instead of it.
    #[schemars(regex(pattern = BASE64))]
    b64info: Option<String>,
    /// JSON for the client, in the subscribe push.
    data: Option<Json>,
    /// `data` in base64. Not empty: used instead of it. Must hold JSON.
    #[schemars(regex(pattern = BASE64))]
    b64data: Option<String>,
    /// The client gets what was published after this position.
    #[serde(default, deserialize_with = "optional_object")]
    recover_since: Option<RecoverSince>,
    /// What differs from the channel's namespace for these subscriptions.
    #[serde(rename = "override", default, deserialize_with = "optional_object")]
    overrides: Option<Override>,
    /// When the subscription ends, in seconds since 1970. 0 or absent: with the connection. In the past: at once.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(range(max = TIME_MAX))]
    expire_at: Option<u64>,
}

/// A position in a channel.
#[derive(Debug, Deserialize, JsonSchema)]
struct RecoverSince {
    /// Offset of the last publication that is known.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(range(max = OFFSET_MAX))]
    offset: Option<u64>,
    /// Epoch of that offset; empty: whichever the channel has.
    epoch: Option<String>,
}

/// Options of one subscription.
#[derive(Debug, Deserialize, JsonSchema)]
struct Override {
    /// Whether it takes part in presence.
    #[serde(default, deserialize_with = "optional_object")]
    presence: Option<BoolValue>,
    /// Whether its coming and going is told.
    #[serde(default, deserialize_with = "optional_object")]
    join_leave: Option<BoolValue>,
    /// Whether it hears of others' coming and going.
    #[serde(default, deserialize_with = "optional_object")]
    force_push_join_leave: Option<BoolValue>,
    /// Whether it is told of losses.
    #[serde(default, deserialize_with = "optional_object")]
    force_positioning: Option<BoolValue>,
    /// Whether it recovers.
    #[serde(default, deserialize_with = "optional_object")]
    force_recovery: Option<BoolValue>,
}

/// A switch that can also be absent.
#[derive(Debug, Deserialize, JsonSchema)]
struct BoolValue {
    /// On or off.
    #[serde(default)]
    value: bool,
}

/// Ends server-side and client-side subscriptions of a user's connections.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct UnsubscribeRequest {
    /// The user.
    #[schemars(length(min = 1))]
    user: String,
    /// Full name of the channel; empty or absent: all channels.
    channel: Option<String>,
    /// Only this connection of the user.
    client: Option<String>,
    /// Not available; must be empty.
    #[schemars(length(max = 0))]
    session: Option<String>,
}

/// Closes a user's connections.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct DisconnectRequest {
    /// The user.
    #[schemars(length(min = 1))]
    user: String,
    /// Only this connection of the user.
    client: Option<String>,
    /// Not available; must be empty.
    #[schemars(length(max = 0))]
    session: Option<String>,
    /// Client ids that stay.
    #[schemars(length(max = WHITELIST_MAX))]
    whitelist: Option<Vec<String>>,
    /// Code and reason of the close; absent: 3503 "force disconnect", after which SDKs do not come back.
    #[serde(default, deserialize_with = "optional_object")]
    disconnect: Option<Disconnect>,
}

/// How connections are closed.
#[derive(Debug, Deserialize, JsonSchema)]
struct Disconnect {
    /// WebSocket close code, 3000 to 4999. SDKs come back unless it is 3500 to 3999 or 4500 to 4999. 0: 3503.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(extend("anyOf" = [{ "type": "null" }, { "const": 0 }, { "minimum": 3000, "maximum": 4999 }]))]
    code: Option<u16>,
    /// Text of the close, at most 123 bytes. It does not begin like JSON. Empty: "force disconnect".
    #[schemars(regex(pattern = REASON))]
    reason: Option<String>,
}

/// Changes when a user's connections expire.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct RefreshRequest {
    /// The user.
    #[schemars(length(min = 1))]
    user: String,
    /// Only this connection of the user.
    client: Option<String>,
    /// Not available; must be empty.
    #[schemars(length(max = 0))]
    session: Option<String>,
    /// They have expired: close them with 3005.
    expired: Option<bool>,
    /// When they expire, in seconds since 1970. 0 or absent: never. In the past: at once.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(range(max = TIME_MAX))]
    expire_at: Option<u64>,
    /// New JSON that others see beside the user; absent: as it was.
    info: Option<Json>,
}

/// Pushes a message outside channels to a user's connections. Not kept: who is away does not get it. `data` or `b64data`
/// is needed.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(extend("anyOf" = [
    { "required": ["data"] },
    { "required": ["b64data"], "properties": { "b64data": { "type": "string", "minLength": 1 } } },
]))]
pub(super) struct RpcRequest {
    /// The user.
    #[schemars(length(min = 1))]
    user: String,
    /// Only this connection of the user.
    client: Option<String>,
    /// The message: any JSON value.
    #[serde(default, deserialize_with = "present")]
    data: Option<Json>,
    /// The message as bytes in standard base64, for Protobuf clients. Not empty: used instead of `data`.
    #[schemars(regex(pattern = BASE64))]
    b64data: Option<String>,
}

macro_rules! empty_results {
    ($( $name:ident )+) => { $(
        /// Nothing more to say.
        #[derive(Debug, Serialize, JsonSchema)]
        pub(super) struct $name {}

        impl $name {
            fn new(_cores: u16) -> Self {
                $name {}
            }
        }
    )+ };
}

empty_results! { SubscribeResult UnsubscribeResult DisconnectResult RefreshResult RpcResult }

impl Start for SubscribeRequest {
    type Result = SubscribeResult;

    fn start(self, asking: &Asking<'_>) -> Work<SubscribeResult> {
        begun(self.order(asking).and_then(|(who, order)| who.send(order, asking, SubscribeResult::new)))
    }
}

impl SubscribeRequest {
    fn order(self, asking: &Asking<'_>) -> Result<(Who, UserOrder), ApiError> {
        let who = Who::new(self.user, self.client, self.session)?;
        let subscription = TokenSubscription {
            channel: asking.channel(self.channel)?.into(),
            info: bounded(json_or_base64(self.info, self.b64info, "b64info")?, asking)?,
            data: bounded(json_or_base64(self.data, self.b64data, "b64data")?, asking)?,
            overrides: self.overrides.map(Override::into_engine).unwrap_or_default(),
            expires_in_ms: expires_in_ms(self.expire_at)?,
        };
        let recover = self.recover_since.map(|since| since_of(since.offset, since.epoch)).transpose()?;
        Ok((who, UserOrder::Subscribe { subscription, recover }))
    }
}

impl Override {
    fn into_engine(self) -> Overrides {
        let value = |value: Option<BoolValue>| value.map(|value| value.value);
        Overrides {
            presence: value(self.presence),
            join_leave: value(self.join_leave),
            push_join_leave: value(self.force_push_join_leave),
            recovery: value(self.force_recovery),
            positioned: value(self.force_positioning),
        }
    }
}

impl Start for UnsubscribeRequest {
    type Result = UnsubscribeResult;

    fn start(self, asking: &Asking<'_>) -> Work<UnsubscribeResult> {
        begun(self.order(asking).and_then(|(who, order)| who.send(order, asking, UnsubscribeResult::new)))
    }
}

impl UnsubscribeRequest {
    fn order(self, asking: &Asking<'_>) -> Result<(Who, UserOrder), ApiError> {
        let who = Who::new(self.user, self.client, self.session)?;
        let channel = match self.channel {
            Some(channel) if !channel.is_empty() => asking.channel(channel)?.into(),
            _ => Box::default(),
        };
        let (code, reason) = UNSUBSCRIBED;
        Ok((who, UserOrder::Unsubscribe { channel, code, reason: reason.into() }))
    }
}

impl Start for DisconnectRequest {
    type Result = DisconnectResult;

    fn start(self, asking: &Asking<'_>) -> Work<DisconnectResult> {
        begun(self.order().and_then(|(who, order)| who.send(order, asking, DisconnectResult::new)))
    }
}

impl DisconnectRequest {
    fn order(self) -> Result<(Who, UserOrder), ApiError> {
        let who = Who::new(self.user, self.client, self.session)?;
        let whitelist = self.whitelist.unwrap_or_default();
        if whitelist.len() > WHITELIST_MAX {
            return Err(ApiError::limit_exceeded(format!("whitelist has at most {WHITELIST_MAX} client ids")));
        }
        let (mut code, mut reason) = (DISCONNECTED.0, DISCONNECTED.1.into());
        if let Some(given) = self.disconnect {
            match given.code.unwrap_or_default() {
                0 => {}
                given @ 3000..=4999 => code = given,
                _ => return Err(ApiError::bad_request("disconnect.code must be 3000 to 4999")),
            }
            if let Some(given) = given.reason.filter(|reason| !reason.is_empty()) {
                reason = checked_reason(given)?;
            }
        }
        let whitelist = whitelist.into_iter().map(String::into_boxed_str).collect();
        Ok((who, UserOrder::Disconnect { code, reason, whitelist }))
    }
}

/// SDKs try a reason as JSON first, so it must not be any.
fn checked_reason(reason: String) -> Result<Box<str>, ApiError> {
    if reason.len() > REASON_BYTES_MAX {
        return Err(ApiError::bad_request(format!("disconnect.reason must have at most {REASON_BYTES_MAX} bytes")));
    }
    let like_json = reason.starts_with(|c: char| c.is_ascii_digit() || c <= ' ' || matches!(c, '"' | '[' | '{' | '-'));
    if like_json || reason.chars().any(|c| c < ' ') || matches!(reason.as_str(), "true" | "false" | "null") {
        let text = "disconnect.reason must be plain text that does not begin like JSON";
        return Err(ApiError::bad_request(text));
    }
    Ok(reason.into())
}

impl Start for RefreshRequest {
    type Result = RefreshResult;

    fn start(self, asking: &Asking<'_>) -> Work<RefreshResult> {
        begun(self.order(asking).and_then(|(who, order)| who.send(order, asking, RefreshResult::new)))
    }
}

impl RefreshRequest {
    fn order(self, asking: &Asking<'_>) -> Result<(Who, UserOrder), ApiError> {
        let who = Who::new(self.user, self.client, self.session)?;
        let info = self.info.map(|info| bounded(info.into_bytes(), asking)).transpose()?;
        let expires_in_ms = expires_in_ms(self.expire_at)?;
        let expired = self.expired.unwrap_or_default() || expires_in_ms == Some(0);
        Ok((who, UserOrder::Refresh { expired, expires_in_ms, info }))
    }
}

impl Start for RpcRequest {
    type Result = RpcResult;

    fn start(self, asking: &Asking<'_>) -> Work<RpcResult> {
        begun(self.order(asking).and_then(|(who, order)| who.send(order, asking, RpcResult::new)))
    }
}

impl RpcRequest {
    fn order(self, asking: &Asking<'_>) -> Result<(Who, UserOrder), ApiError> {
        let who = Who::new(self.user, self.client, None)?;
        let (data, _) = payload(self.data, self.b64data)?;
        Ok((who, UserOrder::Message { data: bounded(data, asking)? }))
    }
}

/// Whom an order is about.
struct Who {
    user: String,
    client: String,
}

impl Who {
    fn new(user: String, client: Option<String>, session: Option<String>) -> Result<Self, ApiError> {
        refuse(session.is_some_and(|session| !session.is_empty()), "session")?;
        let user = text("user", user, ID_BYTES_MAX)?;
        let client = client.unwrap_or_default();
        if client.len() > ID_BYTES_MAX as usize {
            return Err(ApiError::bad_request(format!("client must have at most {ID_BYTES_MAX} bytes")));
        }
        Ok(Who { user, client })
    }

    fn send<T: Send + 'static>(
        self,
        order: UserOrder,
        asking: &Asking<'_>,
        result: fn(u16) -> T,
    ) -> Result<Work<T>, ApiError> {
        let Who { user, client } = self;
        let waiting = asking.send(|reply| Call::User { user, client, order, reply })?;
        Ok(Box::pin(async move { waiting.answer(ApiError::of_call).await.map(result) }))
    }
}

/// Info, data and messages go into frames as payloads do, and have their bound.
fn bounded(bytes: Vec<u8>, asking: &Asking<'_>) -> Result<Box<[u8]>, ApiError> {
    let bytes_max = asking.options().publication_bytes_max;
    if bytes.len() > bytes_max as usize {
        return Err(ApiError::payload_too_large(bytes_max));
    }
    Ok(bytes.into())
}

/// A position that a backend claims to know. An epoch that no channel of ours can have is one that none has.
///
/// # Errors
/// The offset is larger than any.
pub(super) fn since_of(offset: Option<u64>, epoch: Option<String>) -> Result<Since, ApiError> {
    let (offset, epoch) = (offset.unwrap_or_default(), epoch.unwrap_or_default());
    if offset > OFFSET_MAX {
        return Err(ApiError::bad_request(format!("offset must be at most {OFFSET_MAX}")));
    }
    let epoch = (!epoch.is_empty()).then(|| Epoch::parse(&epoch).unwrap_or(Epoch { boot: 0, creation: 0 }));
    Ok(Since { offset, epoch })
}

/// From a time of day to what is left of it.
fn expires_in_ms(expire_at: Option<u64>) -> Result<Option<u64>, ApiError> {
    match expire_at {
        None | Some(0) => Ok(None),
        Some(at) if at > TIME_MAX => Err(ApiError::bad_request(format!("expire_at must be at most {TIME_MAX}"))),
        Some(at) => Ok(Some(at.saturating_mul(1_000).saturating_sub(clock::unix_now_ms()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_that_an_sdk_could_take_for_json_are_refused() {
        for reason in ["0", "-1", "\"a\"", "[", "{\"reason\":1}", " a", "null", "true", "a\nb", &"a".repeat(124)] {
            assert!(checked_reason(reason.to_string()).is_err(), "{reason:?}");
        }
        for reason in ["bye", "kicked by an operator", "до свидания", "nullify"] {
            assert_eq!(&*checked_reason(reason.to_string()).expect("is plain"), reason);
        }
    }

    #[test]
    fn times_become_what_is_left_of_them() {
        let now_s = clock::unix_now_ms() / 1_000;
        assert_eq!(expires_in_ms(None).expect("is a time"), None);
        assert_eq!(expires_in_ms(Some(0)).expect("is a time"), None);
        assert_eq!(expires_in_ms(Some(1)).expect("is a time"), Some(0));
        let left = expires_in_ms(Some(now_s + 3_600)).expect("is a time").expect("ends");
        assert!((3_500_000..=3_600_000).contains(&left), "{left}");
        assert!(expires_in_ms(Some(TIME_MAX + 1)).is_err());
    }

    #[test]
    fn foreign_epochs_are_epochs_of_no_channel() {
        assert_eq!(since_of(Some(3), None).expect("is a position").epoch, None);
        assert_eq!(
            since_of(Some(3), Some("what?".into())).expect("is a position").epoch,
            Some(Epoch { boot: 0, creation: 0 })
        );
        assert!(since_of(Some(OFFSET_MAX + 1), None).is_err());
    }
}
