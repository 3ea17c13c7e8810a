//! `info`, `revoke_token` and `reload`: about the node as a whole.
//!
//! In: counters that shards publish, /proc, what other nodes say of themselves, orders for boot's hooks. Out: nodes'
//! descriptions; done or not.
//! Invariant: what this node does not know is absent, never guessed.

use std::hash::{BuildHasher, Hasher};

use ringway_engine::limits::OFFSET_MAX;
use ringway_engine::metrics::Metric;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ask::{Asking, Start, Work, at_once, begun, text};
use super::error::ApiError;
use super::shape::whole;
use super::user::ID_BYTES_MAX;
use crate::clock;
use crate::control::call::{Call, RevokeError};
use crate::control::fleet::name_of;
use crate::control::{Plane, process};

/// Asks for the state of the node.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct InfoRequest {}

/// All nodes of the fleet.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct InfoResult {
    /// The one that is asked, then the others by name: those whose lease holds.
    nodes: Vec<Node>,
    /// Names of living nodes that have not said anything of themselves that this one understands. Absent: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing: Vec<String>,
    /// The engine did not say who else there is: `nodes` holds this one alone. Absent: no.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    engine_unreachable: bool,
}

/// One node, as it describes itself.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct Node {
    /// Random per start.
    uid: String,
    /// `node.name`, or the host's name.
    name: String,
    /// Version of the program.
    version: String,
    /// Client connections.
    num_clients: u64,
    /// Distinct users with a client connection.
    num_users: u64,
    /// Subscriptions of clients.
    num_subs: u64,
    /// Channels that this node owns: with subscribers, with publications in history, or used a short time ago.
    num_channels: u64,
    /// Seconds since the process started.
    uptime: u64,
    /// The process.
    process: Process,
    /// Milliseconds since it said so: 0 of the node that is asked, some seconds of others.
    age_ms: u64,
}

/// What a process uses.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct Process {
    /// Percent of one core, on average since the start.
    cpu: f64,
    /// Resident memory in bytes.
    rss: u64,
}

/// What does not change about a node.
#[derive(Debug)]
pub(in crate::control) struct NodeIdentity {
    uid: String,
    name: String,
}

impl NodeIdentity {
    pub(in crate::control) fn new(name: &str) -> Self {
        // The standard library's randomly keyed hasher, whose keys come from the kernel.
        let uid = std::hash::RandomState::new().build_hasher().finish();
        NodeIdentity { uid: format!("{uid:016x}"), name: name.into() }
    }
}

impl Plane {
    fn node(&self) -> Node {
        let total = |metric| self.metrics.total(metric);
        let number = |text: Option<String>| text.and_then(|text| text.parse::<f64>().ok()).unwrap_or_default();
        let uptime = (clock::unix_now_ms() as f64 / 1_000.0 - number(process::start_seconds())).max(0.0);
        let cpu = if uptime > 0.0 { number(process::cpu_seconds()) / uptime * 100.0 } else { 0.0 };
        Node {
            uid: self.identity.uid.clone(),
            name: self.identity.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            num_clients: total(Metric::ConnectionsOpen),
            num_users: total(Metric::UsersOnline),
            num_subs: total(Metric::SubscriptionsOpen),
            num_channels: total(Metric::ChannelsOwned),
            uptime: uptime as u64,
            process: Process { cpu, rss: number(process::resident_bytes()) as u64 },
            age_ms: 0,
        }
    }

    /// What this node tells others of itself; they show it when they are asked.
    pub(in crate::control) fn description(&self) -> Vec<u8> {
        // It is texts and numbers, which can be written.
        serde_json::to_vec(&self.node()).unwrap_or_default()
    }
}

impl Start for InfoRequest {
    type Result = InfoResult;

    fn start(self, asking: &Asking<'_>) -> Work<InfoResult> {
        let mut info = InfoResult { nodes: vec![asking.plane.node()], missing: Vec::new(), engine_unreachable: false };
        let Some(fleet) = asking.plane.fleet.clone() else { return at_once(Ok(info)) };
        Box::pin(async move {
            let others = fleet.others().await;
            info.engine_unreachable = others.is_none();
            let mut nodes = Vec::new();
            for other in others.into_iter().flatten() {
                match serde_json::from_slice(&other.body) {
                    Ok(node) => nodes.push(Node { age_ms: other.age_ms, ..node }),
                    Err(_) => info.missing.push(name_of(&other)),
                }
            }
            nodes.sort_by(|a: &Node, b| a.name.cmp(&b.name));
            info.nodes.append(&mut nodes);
            Ok(info)
        })
    }
}

/// Refuses a token from now on and closes the connections that came with it. `token_id` or `uid` is needed.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(extend("anyOf" = [
    { "required": ["token_id"], "properties": { "token_id": { "type": "string", "minLength": 1 } } },
    { "required": ["uid"], "properties": { "uid": { "type": "string", "minLength": 1 } } },
]))]
pub(super) struct RevokeTokenRequest {
    /// Id of the token, its `jti` claim.
    token_id: Option<String>,
    /// Another name of `token_id`, used when that is empty.
    uid: Option<String>,
    /// The token's own end, in seconds since 1970, until which the revocation is remembered. 0 or absent: not known.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(range(max = OFFSET_MAX))]
    expire_at: Option<u64>,
}

/// Nothing more to say.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct RevokeTokenResult {}

impl Start for RevokeTokenRequest {
    type Result = RevokeTokenResult;

    fn start(self, asking: &Asking<'_>) -> Work<RevokeTokenResult> {
        begun(self.revoke(asking))
    }
}

impl RevokeTokenRequest {
    fn revoke(self, asking: &Asking<'_>) -> Result<Work<RevokeTokenResult>, ApiError> {
        let given = [self.token_id, self.uid].into_iter().flatten().find(|id| !id.is_empty());
        let token_id = text("token_id", given.unwrap_or_default(), ID_BYTES_MAX)?;
        if self.expire_at.is_some_and(|at| at > OFFSET_MAX) {
            return Err(ApiError::bad_request("expire_at is too large"));
        }
        let until_unix_s = self.expire_at.filter(|at| *at != 0);
        let waiting = asking.send(|reply| Call::RevokeToken { token_id, until_unix_s, reply })?;
        Ok(Box::pin(async move {
            let refused = |error| match error {
                RevokeError::Busy => ApiError::busy(),
                RevokeError::Refused(why) => ApiError::not_available(why),
            };
            waiting.answer(refused).await.map(|()| RevokeTokenResult {})
        }))
    }
}

/// Makes the node read its configuration again.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct ReloadRequest {}

/// The new configuration holds.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ReloadResult {
    /// Keys that changed and hold now.
    applied: Vec<String>,
    /// Keys whose new value holds only after a restart.
    needs_restart: Vec<String>,
}

impl Start for ReloadRequest {
    type Result = ReloadResult;

    fn start(self, asking: &Asking<'_>) -> Work<ReloadResult> {
        begun(asking.send(|reply| Call::Reload { reply }).map(|waiting| {
            let work: Work<ReloadResult> = Box::pin(async move {
                let refused = |why| ApiError::conflict(format!("the configuration was refused: {why}"));
                let reloaded = waiting.answer(refused).await?;
                Ok(ReloadResult { applied: reloaded.applied, needs_restart: reloaded.needs_restart })
            });
            work
        }))
    }
}
