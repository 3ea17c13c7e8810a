//! `publish` and `broadcast`.
//!
//! In: a channel or several, and a payload. Out: one publish per channel, all sent before the first answer is waited for;
//! positions. Invariant: a request that is refused here has published nothing, one that the shards refuse may have been
//! published to the other channels of a broadcast, as its responses say.

use std::collections::BTreeMap;

use ringway_engine::lane_message::PublishError;
use ringway_engine::publication::Tags;
use ringway_wire::ingest::PayloadKind;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ask::{Asking, Start, Waiting, Work, begun, refuse};
use super::error::ApiError;
use super::json::{BASE64, Json, payload, present};
use super::results::ApiResult;
use super::shape::{list, whole};
use crate::control::call::{CALLS_MAX, Call, Published};

/// Bytes of a broadcast's payload times its channels. Over: error 106.
pub(super) const BROADCAST_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Tags of one publication. Over: error 107.
const TAGS_MAX: usize = 64;

/// Publishes to one channel. `data` or `b64data` is needed.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(extend("anyOf" = [
    { "required": ["data"] },
    { "required": ["b64data"], "properties": { "b64data": { "type": "string", "minLength": 1 } } },
]))]
pub(super) struct PublishRequest {
    /// Full name of the channel, at most `limits.channel_bytes_max` bytes.
    #[schemars(length(min = 1))]
    channel: String,
    /// The payload: any JSON value, for namespaces whose payload is `json`. At most `limits.publication_bytes_max` bytes.
    #[serde(default, deserialize_with = "present")]
    data: Option<Json>,
    /// The payload as bytes in standard base64, for namespaces whose payload is `bytes`. Not empty: used instead of `data`.
    #[schemars(regex(pattern = BASE64))]
    b64data: Option<String>,
    /// Deliver it to the subscribers of now, without an offset and without a place in history.
    skip_history: Option<bool>,
    /// Names and values that subscribers get beside the payload; at most 64. With the payload they have at most
    /// `limits.publication_bytes_max` bytes.
    #[schemars(extend("maxProperties" = TAGS_MAX))]
    tags: Option<BTreeMap<String, String>>,
    /// The same key again in the same channel, within `limits.idempotency_window_ms`, answers the first one's position
    /// and publishes nothing. At most `limits.idempotency_key_bytes_max` bytes.
    idempotency_key: Option<String>,
    /// Changes nothing: whether subscribers get deltas is up to the channel's namespace.
    #[expect(dead_code, reason = "read so that its type is checked")]
    delta: Option<bool>,
    /// Not available; must be 0.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(range(max = 0))]
    version: Option<u64>,
    /// Not available; must be empty.
    #[schemars(length(max = 0))]
    version_epoch: Option<String>,
}

/// Where the publication stands.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(super) struct PublishResult {
    /// Place in the channel, from 1. Absent: the channel has no history, or it was skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    /// Epoch of the channel's offsets.
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<String>,
    #[serde(skip)]
    pub(super) duplicate: bool,
}

impl PublishResult {
    fn of(published: Published) -> Self {
        let (position, duplicate) = (published.position, published.duplicate);
        if position.offset == 0 {
            return PublishResult { duplicate, ..PublishResult::default() };
        }
        PublishResult { offset: Some(position.offset), epoch: Some(position.epoch.to_string()), duplicate }
    }
}

/// Publishes the same payload to several channels. `data` or `b64data` is needed.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(extend("anyOf" = [
    { "required": ["data"] },
    { "required": ["b64data"], "properties": { "b64data": { "type": "string", "minLength": 1 } } },
]))]
pub(super) struct BroadcastRequest {
    /// Full names of the channels, at most `control.broadcast_channels_max`.
    #[schemars(length(min = 1), inner(length(min = 1)))]
    #[serde(deserialize_with = "list::<_, _, CALLS_MAX>")]
    channels: Vec<String>,
    /// The payload: any JSON value, for namespaces whose payload is `json`. At most `limits.publication_bytes_max` bytes.
    #[serde(default, deserialize_with = "present")]
    data: Option<Json>,
    /// The payload as bytes in standard base64, for namespaces whose payload is `bytes`. Not empty: used instead of `data`.
    #[schemars(regex(pattern = BASE64))]
    b64data: Option<String>,
    /// Deliver it to the subscribers of now, without an offset and without a place in history.
    skip_history: Option<bool>,
    /// Names and values that subscribers get beside the payload; at most 64. With the payload they have at most
    /// `limits.publication_bytes_max` bytes.
    #[schemars(extend("maxProperties" = TAGS_MAX))]
    tags: Option<BTreeMap<String, String>>,
    /// As in `publish`, for each channel apart.
    idempotency_key: Option<String>,
    /// Changes nothing: whether subscribers get deltas is up to the channel's namespace.
    #[expect(dead_code, reason = "read so that its type is checked")]
    delta: Option<bool>,
    /// Not available; must be 0.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(range(max = 0))]
    version: Option<u64>,
    /// Not available; must be empty.
    #[schemars(length(max = 0))]
    version_epoch: Option<String>,
}

/// One response for each channel, in the order of the request.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct BroadcastResult {
    /// As many as channels.
    responses: Vec<PublishResponse>,
}

/// What became of one publish of a broadcast.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum PublishResponse {
    /// It was published.
    Result(PublishResult),
    /// It was not.
    Error(ApiError),
}

/// What is published, whatever the number of channels.
#[derive(Clone)]
struct Content {
    payload: Vec<u8>,
    kind: PayloadKind,
    idempotency_key: Vec<u8>,
    tags: Tags,
    skip_history: bool,
}

impl Content {
    fn send(self, channel: String, asking: &Asking<'_>) -> Result<Waiting<Published, PublishError>, ApiError> {
        let Content { payload, kind, idempotency_key, tags, skip_history } = self;
        asking.send(|reply| Call::Publish { channel, payload, kind, idempotency_key, tags, skip_history, reply })
    }
}

/// What publish and broadcast have in common, before it is checked.
struct Fields {
    data: Option<Json>,
    b64data: Option<String>,
    skip_history: Option<bool>,
    tags: Option<BTreeMap<String, String>>,
    idempotency_key: Option<String>,
    version: Option<u64>,
    version_epoch: Option<String>,
}

impl Fields {
    /// # Errors
    /// A field cannot be honoured, or a size is over its limit.
    fn checked(self, asking: &Asking<'_>) -> Result<Content, ApiError> {
        let options = asking.options();
        refuse(self.version.is_some_and(|version| version != 0), "version")?;
        refuse(self.version_epoch.is_some_and(|epoch| !epoch.is_empty()), "version_epoch")?;
        let idempotency_key = self.idempotency_key.unwrap_or_default().into_bytes();
        let key_bytes_max = options.idempotency_key_bytes_max as usize;
        if idempotency_key.len() > key_bytes_max {
            return Err(ApiError::bad_request(format!("idempotency_key must have at most {key_bytes_max} bytes")));
        }
        let (payload, kind) = payload(self.data, self.b64data)?;
        let tags = self.tags.unwrap_or_default();
        if tags.len() > TAGS_MAX {
            return Err(ApiError::bad_request(format!("tags must be at most {TAGS_MAX}")));
        }
        let tags: Tags = tags.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let tag_bytes: usize = tags.iter().map(|(name, value)| name.len() + value.len()).sum();
        if payload.len() + tag_bytes > options.publication_bytes_max as usize {
            return Err(ApiError::payload_too_large(options.publication_bytes_max));
        }
        let skip_history = self.skip_history.unwrap_or_default();
        Ok(Content { payload, kind, idempotency_key, tags, skip_history })
    }
}

impl Start for PublishRequest {
    type Result = PublishResult;

    fn start(self, asking: &Asking<'_>) -> Work<PublishResult> {
        begun(self.publish(asking))
    }
}

impl PublishRequest {
    fn publish(self, asking: &Asking<'_>) -> Result<Work<PublishResult>, ApiError> {
        let PublishRequest {
            channel, data, b64data, skip_history, tags, idempotency_key, version, version_epoch, ..
        } = self;
        let channel = asking.channel(channel)?;
        let fields = Fields { data, b64data, skip_history, tags, idempotency_key, version, version_epoch };
        let content = fields.checked(asking)?;
        let payload_bytes_max = asking.options().publication_bytes_max;
        let waiting = content.send(channel, asking)?;
        Ok(Box::pin(async move {
            let published = waiting.answer(|error| ApiError::of_publish(error, payload_bytes_max)).await?;
            Ok(PublishResult::of(published))
        }))
    }
}

impl Start for BroadcastRequest {
    type Result = BroadcastResult;

    fn start(self, asking: &Asking<'_>) -> Work<BroadcastResult> {
        begun(self.broadcast(asking))
    }
}

impl BroadcastRequest {
    fn broadcast(self, asking: &Asking<'_>) -> Result<Work<BroadcastResult>, ApiError> {
        let BroadcastRequest {
            channels,
            data,
            b64data,
            skip_history,
            tags,
            idempotency_key,
            version,
            version_epoch,
            ..
        } = self;
        let channels_max = asking.options().api.broadcast_channels_max as usize;
        if channels.is_empty() {
            return Err(ApiError::bad_request("channels must not be empty"));
        }
        if channels.len() > channels_max {
            return Err(ApiError::limit_exceeded(format!("a broadcast has at most {channels_max} channels")));
        }
        let channels = channels.into_iter().map(|name| asking.channel(name)).collect::<Result<Vec<_>, ApiError>>()?;
        let fields = Fields { data, b64data, skip_history, tags, idempotency_key, version, version_epoch };
        let content = fields.checked(asking)?;
        if content.payload.len().saturating_mul(channels.len()) > BROADCAST_BYTES_MAX {
            let text = format!("a broadcast has at most {BROADCAST_BYTES_MAX} bytes, payload times channels");
            return Err(ApiError::limit_exceeded(text));
        }
        let payload_bytes_max = asking.options().publication_bytes_max;
        let waiting: Vec<_> = channels.into_iter().map(|channel| content.clone().send(channel, asking)).collect();
        Ok(Box::pin(async move {
            let mut responses = Vec::with_capacity(waiting.len());
            for waiting in waiting {
                let refused = |error| ApiError::of_publish(error, payload_bytes_max);
                let published = match waiting {
                    Ok(waiting) => waiting.answer(refused).await,
                    Err(error) => Err(error),
                };
                responses.push(match published {
                    Ok(published) => PublishResponse::Result(PublishResult::of(published)),
                    Err(error) => PublishResponse::Error(error),
                });
            }
            Ok(BroadcastResult { responses })
        }))
    }
}

impl BroadcastResult {
    /// How those publishes ended that were refused.
    pub(super) fn refusals(&self) -> impl Iterator<Item = ApiResult> {
        self.responses.iter().filter_map(|response| match response {
            PublishResponse::Result(_) => None,
            PublishResponse::Error(error) => Some(error.result),
        })
    }
}
