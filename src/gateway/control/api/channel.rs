//! `presence`, `presence_stats`, `history`, `history_remove` and `channels`.
//!
//! In: a channel, or a pattern of names. Out: a [`ChannelAsk`] to the channel's owner, or the same question to every
//! shard. Invariant: what can be large is bounded, and an answer that would be larger is an error, never a part.

use std::collections::BTreeMap;
use std::sync::Arc;

use ringway_engine::call::{ChannelAsk, ChannelFact, HistoryAsk};
use ringway_engine::limits::OFFSET_MAX;
use ringway_engine::presence::Member;
use ringway_wire::centrifuge::reply::PublicationView;
use ringway_wire::ingest::PayloadKind;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ask::{Asking, Start, Work, begun};
use super::error::ApiError;
use super::json::{Json, in_answer};
use super::shape::{optional_object, whole};
use super::user::since_of;
use crate::control::call::{Call, ChannelTold, ChannelsListed};

/// Bytes of a pattern of channel names. Over: error 107.
const PATTERN_BYTES_MAX: usize = 1_024;
/// What a pattern looks like.
const PATTERN: &str = "^[^\\[\\]{}\\\\]*$";

/// Asks who is subscribed to a channel.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct PresenceRequest {
    /// Full name of the channel.
    #[schemars(length(min = 1))]
    channel: String,
}

/// Who is subscribed.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct PresenceResult {
    /// By client id.
    presence: BTreeMap<String, ClientInfo>,
}

/// A client as others see it.
#[derive(Debug, Serialize, JsonSchema)]
struct ClientInfo {
    /// Client id.
    client: String,
    /// User id; empty: anonymous.
    user: String,
    /// Info of the connection; absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    conn_info: Option<Json>,
    /// Info of the subscription; absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    chan_info: Option<Json>,
}

/// Asks how many are subscribed to a channel.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct PresenceStatsRequest {
    /// Full name of the channel.
    #[schemars(length(min = 1))]
    channel: String,
}

/// How many are subscribed.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct PresenceStatsResult {
    /// Connections.
    num_clients: u32,
    /// Distinct users; all anonymous ones are one.
    num_users: u32,
}

/// Asks for publications of the past.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct HistoryRequest {
    /// Full name of the channel.
    #[schemars(length(min = 1))]
    channel: String,
    /// How many at most, up to `control.history_publications_max`; -1: as many as that. 0 or absent: only the position.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(range(min = -1))]
    limit: Option<i32>,
    /// Those behind this position, or with `reverse` those before it. Absent: from the start, or with `reverse` from
    /// the end.
    #[serde(default, deserialize_with = "optional_object")]
    since: Option<StreamPosition>,
    /// Newest first.
    reverse: Option<bool>,
}

/// A position in a channel.
#[derive(Debug, Deserialize, JsonSchema)]
struct StreamPosition {
    /// Offset.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(range(max = OFFSET_MAX))]
    offset: Option<u64>,
    /// Epoch of that offset; empty: whichever the channel has.
    epoch: Option<String>,
}

/// Publications, and the channel's newest position.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct HistoryResult {
    /// In the order asked for.
    publications: Vec<Publication>,
    /// Offset of the newest publication; 0: none yet.
    offset: u64,
    /// Epoch of the channel's offsets.
    epoch: String,
}

/// A publication of the past.
#[derive(Debug, Serialize, JsonSchema)]
struct Publication {
    /// The payload; null when it is bytes.
    data: Option<Json>,
    /// The payload in standard base64, when it is bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    b64data: Option<String>,
    /// Place in the channel.
    offset: u64,
    /// The client that published; absent: a backend did.
    #[serde(skip_serializing_if = "Option::is_none")]
    info: Option<ClientInfo>,
    /// Tags; absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    tags: Option<BTreeMap<String, String>>,
}

/// Makes a channel forget its publications.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct HistoryRemoveRequest {
    /// Full name of the channel.
    #[schemars(length(min = 1))]
    channel: String,
}

/// Nothing more to say.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct HistoryRemoveResult {}

/// Lists channels with subscribers.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct ChannelsRequest {
    /// Only names that match: `*` stands for any characters, `?` for one. Empty or absent: all.
    #[schemars(regex(pattern = PATTERN))]
    pattern: Option<String>,
}

/// Channels with subscribers.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ChannelsResult {
    /// By full name.
    channels: BTreeMap<String, ChannelInfo>,
    /// Names of living nodes of the fleet whose channels are not in it: they did not answer in time. Absent: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing: Vec<String>,
    /// The engine did not say which other nodes there are: only this one's channels are in it. Absent: no.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    engine_unreachable: bool,
}

/// How much a channel is used.
#[derive(Debug, Serialize, JsonSchema)]
struct ChannelInfo {
    /// Subscribers, as far as the nodes know: where a channel has no presence, a node counts the cores that have some.
    num_clients: u64,
}

/// Asks the owner of `channel`; `read` takes the fact that belongs to the question.
fn ask<T: Send + 'static>(
    channel: String,
    ask: ChannelAsk,
    asking: &Asking<'_>,
    read: fn(ChannelTold) -> Option<T>,
) -> Result<Work<T>, ApiError> {
    let channel = asking.channel(channel)?;
    let waiting = asking.send(|reply| Call::Channel { channel, ask, reply })?;
    Ok(Box::pin(async move {
        let told = waiting.answer(ApiError::of_call).await?;
        // An owner answers the question that it was asked; anything else is as good as no answer.
        read(told).ok_or_else(ApiError::no_answer)
    }))
}

impl Start for PresenceRequest {
    type Result = PresenceResult;

    fn start(self, asking: &Asking<'_>) -> Work<PresenceResult> {
        begun(ask(self.channel, ChannelAsk::Presence, asking, |told| match told.fact {
            ChannelFact::Presence(members) => {
                let presence = members.iter().map(|member| (member.client.to_string(), ClientInfo::of(member)));
                Some(PresenceResult { presence: presence.collect() })
            }
            _ => None,
        }))
    }
}

impl ClientInfo {
    fn of(member: &Arc<Member>) -> Self {
        ClientInfo {
            client: member.client.to_string(),
            user: member.user.to_string(),
            conn_info: Json::checked(&member.conn_info),
            chan_info: Json::checked(&member.chan_info),
        }
    }
}

impl Start for PresenceStatsRequest {
    type Result = PresenceStatsResult;

    fn start(self, asking: &Asking<'_>) -> Work<PresenceStatsResult> {
        begun(ask(self.channel, ChannelAsk::PresenceStats, asking, |told| match told.fact {
            ChannelFact::PresenceStats { clients, users } => {
                Some(PresenceStatsResult { num_clients: clients, num_users: users })
            }
            _ => None,
        }))
    }
}

impl Start for HistoryRequest {
    type Result = HistoryResult;

    fn start(self, asking: &Asking<'_>) -> Work<HistoryResult> {
        begun(self.history(asking))
    }
}

impl HistoryRequest {
    fn history(self, asking: &Asking<'_>) -> Result<Work<HistoryResult>, ApiError> {
        let publications_max = asking.options().api.history_publications_max as i32;
        let limit = match self.limit.unwrap_or_default() {
            -1 => publications_max,
            limit if limit < -1 => return Err(ApiError::bad_request("limit must be at least -1")),
            limit if limit > publications_max => {
                return Err(ApiError::limit_exceeded(format!("limit must be at most {publications_max}")));
            }
            limit => limit,
        };
        let since = self.since.map(|since| since_of(since.offset, since.epoch)).transpose()?;
        let question = ChannelAsk::History(HistoryAsk { limit, since, reverse: self.reverse.unwrap_or_default() });
        ask(self.channel, question, asking, |told| match told.fact {
            ChannelFact::History { publications, top } => Some(HistoryResult {
                publications: publications.iter().map(|published| Publication::of(&published, told.kind)).collect(),
                offset: top.offset,
                epoch: top.epoch.to_string(),
            }),
            _ => None,
        })
    }
}

impl Publication {
    fn of(view: &PublicationView<'_>, kind: PayloadKind) -> Self {
        let (data, b64data) = in_answer(view.data, kind);
        let info = view.info.as_ref().map(|info| ClientInfo {
            client: info.client.to_string(),
            user: info.user.to_string(),
            conn_info: Json::checked(info.conn_info),
            chan_info: Json::checked(info.chan_info),
        });
        let tags: BTreeMap<String, String> =
            view.tags.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string())).collect();
        Publication { data, b64data, offset: view.offset, info, tags: (!tags.is_empty()).then_some(tags) }
    }
}

impl Start for HistoryRemoveRequest {
    type Result = HistoryRemoveResult;

    fn start(self, asking: &Asking<'_>) -> Work<HistoryRemoveResult> {
        begun(ask(self.channel, ChannelAsk::HistoryRemove, asking, |told| {
            matches!(told.fact, ChannelFact::Removed).then_some(HistoryRemoveResult {})
        }))
    }
}

impl Start for ChannelsRequest {
    type Result = ChannelsResult;

    fn start(self, asking: &Asking<'_>) -> Work<ChannelsResult> {
        begun(self.list(asking))
    }
}

impl ChannelsRequest {
    fn list(self, asking: &Asking<'_>) -> Result<Work<ChannelsResult>, ApiError> {
        let glob = self.pattern.unwrap_or_default();
        if glob.len() > PATTERN_BYTES_MAX {
            return Err(ApiError::bad_request(format!("pattern must have at most {PATTERN_BYTES_MAX} bytes")));
        }
        if glob.contains(['[', ']', '{', '}', '\\']) {
            return Err(ApiError::bad_request("pattern knows only * and ?"));
        }
        let listed_max = asking.options().api.channels_listed_max;
        // Shards look for the longest plain part, the rest of the pattern is looked at here. One name more than allowed
        // tells that there are too many.
        let pattern = longest_plain_part(&glob).to_string();
        let limit = listed_max + 1;
        if let Some(fleet) = asking.plane.fleet.clone() {
            return Ok(Box::pin(async move {
                let listed = fleet.list(pattern, limit).await.map_err(ApiError::of_call)?;
                let result = ChannelsResult::of(listed.channels, &glob, listed_max)?;
                Ok(ChannelsResult { missing: listed.missing, engine_unreachable: listed.engine_unreachable, ..result })
            }));
        }
        let waiting = asking.send(|reply| Call::Channels { pattern, limit, reply })?;
        Ok(Box::pin(async move {
            let ChannelsListed { channels, .. } = waiting.answer(ApiError::of_call).await?;
            ChannelsResult::of(channels, &glob, listed_max)
        }))
    }
}

impl ChannelsResult {
    /// # Errors
    /// There are more than one answer may hold.
    fn of(channels: BTreeMap<Box<str>, u64>, glob: &str, listed_max: u32) -> Result<Self, ApiError> {
        if channels.len() > listed_max as usize {
            return Err(ApiError::limit_exceeded(format!("more than {listed_max} channels; narrow the pattern")));
        }
        let matching = channels.into_iter().filter(|(name, _)| glob.is_empty() || matches(glob, name));
        let channels = matching.map(|(name, num_clients)| (name.into_string(), ChannelInfo { num_clients }));
        Ok(ChannelsResult { channels: channels.collect(), missing: Vec::new(), engine_unreachable: false })
    }
}

fn longest_plain_part(glob: &str) -> &str {
    glob.split(['*', '?']).max_by_key(|part| part.len()).unwrap_or_default()
}

/// Whether `*` (any characters) and `?` (one) of `glob` can be filled so that it becomes `name`. After a mismatch only
/// the last `*` takes one character more, so it costs at most the product of the lengths.
fn matches(glob: &str, name: &str) -> bool {
    let (mut glob_at, mut name_at) = (glob.chars(), name.chars());
    let mut retry = None;
    loop {
        let mut rest = glob_at.clone();
        match (rest.next(), name_at.clone().next()) {
            (Some('*'), _) => {
                retry = Some((rest.clone(), name_at.clone()));
                glob_at = rest;
            }
            (Some(wanted), Some(found)) if wanted == '?' || wanted == found => {
                glob_at = rest;
                name_at.next();
            }
            (None, None) => return true,
            _ => {
                let Some((after_star, name_from)) = &mut retry else { return false };
                if name_from.next().is_none() {
                    return false;
                }
                (glob_at, name_at) = (after_star.clone(), name_from.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (glob, name, expected) in [
            ("", "", true),
            ("*", "", true),
            ("*", "chat:1", true),
            ("chat:*", "chat:1", true),
            ("chat:*", "chat:", true),
            ("chat:*", "news:1", false),
            ("*:1", "chat:1", true),
            ("*:1", "chat:11", false),
            ("c?at", "chat", true),
            ("c?at", "cat", false),
            ("*a*b*", "xaxxbx", true),
            ("*a*b*", "xbxxax", false),
            ("*aab", "aaaaab", true),
            ("ж*", "жук", true),
            ("?", "ж", true),
            ("chat", "chat", true),
            ("chat", "chats", false),
        ] {
            assert_eq!(matches(glob, name), expected, "{glob:?} {name:?}");
        }
        assert_eq!(longest_plain_part("a*chat:?x*"), "chat:");
        assert_eq!(longest_plain_part("**"), "");
    }

    proptest::proptest! {
        /// Against the definition: a star takes any number of characters, one by one.
        #[test]
        fn patterns_agree_with_their_definition(glob in "[ab*?]{0,8}", name in "[ab]{0,8}") {
            fn slow(glob: &[u8], name: &[u8]) -> bool {
                match (glob, name) {
                    ([], []) => true,
                    ([b'*', rest @ ..], _) => slow(rest, name) || (!name.is_empty() && slow(glob, &name[1..])),
                    ([b'?', rest @ ..], [_, name @ ..]) => slow(rest, name),
                    ([a, rest @ ..], [b, name @ ..]) if a == b => slow(rest, name),
                    _ => false,
                }
            }
            proptest::prop_assert_eq!(matches(&glob, &name), slow(glob.as_bytes(), name.as_bytes()));
        }
    }
}
