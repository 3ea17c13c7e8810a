//! The protocol's messages as `prost` types, written from the specification a second time.
//!
//! In: the field numbers of CLIENT-PROTOCOL §3 to §6. Out: an independent encoder of commands and decoder of replies.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Command {
    #[prost(uint32, tag = "1")]
    pub(super) id: u32,
    #[prost(message, optional, tag = "4")]
    pub(super) connect: Option<ConnectRequest>,
    #[prost(message, optional, tag = "5")]
    pub(super) subscribe: Option<SubscribeRequest>,
    #[prost(message, optional, tag = "6")]
    pub(super) unsubscribe: Option<ChannelRequest>,
    #[prost(message, optional, tag = "7")]
    pub(super) publish: Option<PublishRequest>,
    #[prost(message, optional, tag = "8")]
    pub(super) presence: Option<ChannelRequest>,
    #[prost(message, optional, tag = "9")]
    pub(super) presence_stats: Option<ChannelRequest>,
    #[prost(message, optional, tag = "10")]
    pub(super) history: Option<HistoryRequest>,
    #[prost(message, optional, tag = "11")]
    pub(super) ping: Option<Nothing>,
    #[prost(message, optional, tag = "12")]
    pub(super) send: Option<SendRequest>,
    #[prost(message, optional, tag = "13")]
    pub(super) rpc: Option<RpcRequest>,
    #[prost(message, optional, tag = "14")]
    pub(super) refresh: Option<RefreshRequest>,
    #[prost(message, optional, tag = "15")]
    pub(super) sub_refresh: Option<SubRefreshRequest>,
    /// Stands for a field of a later version.
    #[prost(string, tag = "9000")]
    pub(super) unknown: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Nothing {}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ChannelRequest {
    #[prost(string, tag = "1")]
    pub(super) channel: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ConnectRequest {
    #[prost(string, tag = "1")]
    pub(super) token: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) data: Vec<u8>,
    #[prost(btree_map = "string, message", tag = "3")]
    pub(super) subs: BTreeMap<String, SubscribeRequest>,
    #[prost(string, tag = "4")]
    pub(super) name: String,
    #[prost(string, tag = "5")]
    pub(super) version: String,
    #[prost(btree_map = "string, string", tag = "6")]
    pub(super) headers: BTreeMap<String, String>,
    #[prost(int64, tag = "7")]
    pub(super) flag: i64,
    #[prost(string, tag = "8")]
    pub(super) dict: String,
    #[prost(string, tag = "9")]
    pub(super) profile: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SubscribeRequest {
    #[prost(string, tag = "1")]
    pub(super) channel: String,
    #[prost(string, tag = "2")]
    pub(super) token: String,
    #[prost(bool, tag = "3")]
    pub(super) recover: bool,
    #[prost(string, tag = "6")]
    pub(super) epoch: String,
    #[prost(uint64, tag = "7")]
    pub(super) offset: u64,
    #[prost(bytes = "vec", tag = "8")]
    pub(super) data: Vec<u8>,
    #[prost(bool, tag = "9")]
    pub(super) positioned: bool,
    #[prost(bool, tag = "10")]
    pub(super) recoverable: bool,
    #[prost(bool, tag = "11")]
    pub(super) join_leave: bool,
    #[prost(string, tag = "12")]
    pub(super) delta: String,
    #[prost(message, optional, tag = "13")]
    pub(super) tf: Option<ChannelRequest>,
    #[prost(int64, tag = "14")]
    pub(super) flag: i64,
    #[prost(int32, tag = "15")]
    pub(super) r#type: i32,
    #[prost(int32, tag = "16")]
    pub(super) phase: i32,
    #[prost(string, tag = "17")]
    pub(super) cursor: String,
    #[prost(int32, tag = "18")]
    pub(super) limit: i32,
    #[prost(bool, tag = "19")]
    pub(super) asc: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PublishRequest {
    #[prost(string, tag = "1")]
    pub(super) channel: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) data: Vec<u8>,
    #[prost(int32, tag = "3")]
    pub(super) r#type: i32,
    #[prost(string, tag = "4")]
    pub(super) key: String,
    #[prost(bool, tag = "5")]
    pub(super) removed: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StreamPosition {
    #[prost(uint64, tag = "1")]
    pub(super) offset: u64,
    #[prost(string, tag = "2")]
    pub(super) epoch: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HistoryRequest {
    #[prost(string, tag = "1")]
    pub(super) channel: String,
    #[prost(int32, tag = "7")]
    pub(super) limit: i32,
    #[prost(message, optional, tag = "8")]
    pub(super) since: Option<StreamPosition>,
    #[prost(bool, tag = "9")]
    pub(super) reverse: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SendRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) data: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RpcRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) data: Vec<u8>,
    #[prost(string, tag = "2")]
    pub(super) method: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RefreshRequest {
    #[prost(string, tag = "1")]
    pub(super) token: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SubRefreshRequest {
    #[prost(string, tag = "1")]
    pub(super) channel: String,
    #[prost(string, tag = "2")]
    pub(super) token: String,
    #[prost(int32, tag = "3")]
    pub(super) r#type: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Reply {
    #[prost(uint32, tag = "1")]
    pub(super) id: u32,
    #[prost(message, optional, tag = "2")]
    pub(super) error: Option<Error>,
    #[prost(message, optional, tag = "4")]
    pub(super) push: Option<Push>,
    #[prost(message, optional, tag = "5")]
    pub(super) connect: Option<ConnectResult>,
    #[prost(message, optional, tag = "6")]
    pub(super) subscribe: Option<SubscribeResult>,
    #[prost(message, optional, tag = "7")]
    pub(super) unsubscribe: Option<Nothing>,
    #[prost(message, optional, tag = "8")]
    pub(super) publish: Option<Nothing>,
    #[prost(message, optional, tag = "9")]
    pub(super) presence: Option<PresenceResult>,
    #[prost(message, optional, tag = "10")]
    pub(super) presence_stats: Option<PresenceStatsResult>,
    #[prost(message, optional, tag = "11")]
    pub(super) history: Option<HistoryResult>,
    #[prost(message, optional, tag = "12")]
    pub(super) ping: Option<Nothing>,
    #[prost(message, optional, tag = "13")]
    pub(super) rpc: Option<RpcResult>,
    #[prost(message, optional, tag = "14")]
    pub(super) refresh: Option<RefreshResult>,
    #[prost(message, optional, tag = "15")]
    pub(super) sub_refresh: Option<SubRefreshResult>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Error {
    #[prost(uint32, tag = "1")]
    pub(super) code: u32,
    #[prost(string, tag = "2")]
    pub(super) message: String,
    #[prost(bool, tag = "3")]
    pub(super) temporary: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Push {
    #[prost(int64, tag = "1")]
    pub(super) id: i64,
    #[prost(string, tag = "2")]
    pub(super) channel: String,
    #[prost(message, optional, tag = "4")]
    pub(super) r#pub: Option<Publication>,
    #[prost(message, optional, tag = "5")]
    pub(super) join: Option<JoinLeave>,
    #[prost(message, optional, tag = "6")]
    pub(super) leave: Option<JoinLeave>,
    #[prost(message, optional, tag = "7")]
    pub(super) unsubscribe: Option<UnsubscribePush>,
    #[prost(message, optional, tag = "8")]
    pub(super) message: Option<MessagePush>,
    #[prost(message, optional, tag = "9")]
    pub(super) subscribe: Option<SubscribePush>,
    #[prost(message, optional, tag = "10")]
    pub(super) connect: Option<ConnectPush>,
    #[prost(message, optional, tag = "11")]
    pub(super) disconnect: Option<DisconnectPush>,
    #[prost(message, optional, tag = "12")]
    pub(super) refresh: Option<RefreshPush>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ConnectPush {
    #[prost(string, tag = "1")]
    pub(super) client: String,
    #[prost(string, tag = "2")]
    pub(super) version: String,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) data: Vec<u8>,
    #[prost(btree_map = "string, message", tag = "4")]
    pub(super) subs: BTreeMap<String, SubscribeResult>,
    #[prost(bool, tag = "5")]
    pub(super) expires: bool,
    #[prost(uint32, tag = "6")]
    pub(super) ttl: u32,
    #[prost(uint32, tag = "7")]
    pub(super) ping: u32,
    #[prost(bool, tag = "8")]
    pub(super) pong: bool,
    #[prost(string, tag = "9")]
    pub(super) session: String,
    #[prost(string, tag = "10")]
    pub(super) node: String,
    #[prost(int64, tag = "11")]
    pub(super) time: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DisconnectPush {
    #[prost(uint32, tag = "1")]
    pub(super) code: u32,
    #[prost(string, tag = "2")]
    pub(super) reason: String,
    #[prost(bool, tag = "3")]
    pub(super) reconnect: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RefreshPush {
    #[prost(bool, tag = "1")]
    pub(super) expires: bool,
    #[prost(uint32, tag = "2")]
    pub(super) ttl: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct JoinLeave {
    #[prost(message, optional, tag = "1")]
    pub(super) info: Option<ClientInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct UnsubscribePush {
    #[prost(uint32, tag = "2")]
    pub(super) code: u32,
    #[prost(string, tag = "3")]
    pub(super) reason: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct MessagePush {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) data: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SubscribePush {
    #[prost(bool, tag = "1")]
    pub(super) recoverable: bool,
    #[prost(string, tag = "4")]
    pub(super) epoch: String,
    #[prost(uint64, tag = "5")]
    pub(super) offset: u64,
    #[prost(bool, tag = "6")]
    pub(super) positioned: bool,
    #[prost(bytes = "vec", tag = "7")]
    pub(super) data: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ClientInfo {
    #[prost(string, tag = "1")]
    pub(super) user: String,
    #[prost(string, tag = "2")]
    pub(super) client: String,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) conn_info: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub(super) chan_info: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Publication {
    #[prost(bytes = "vec", tag = "4")]
    pub(super) data: Vec<u8>,
    #[prost(message, optional, tag = "5")]
    pub(super) info: Option<ClientInfo>,
    #[prost(uint64, tag = "6")]
    pub(super) offset: u64,
    #[prost(btree_map = "string, string", tag = "7")]
    pub(super) tags: BTreeMap<String, String>,
    #[prost(bool, tag = "8")]
    pub(super) delta: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ConnectResult {
    #[prost(string, tag = "1")]
    pub(super) client: String,
    #[prost(string, tag = "2")]
    pub(super) version: String,
    #[prost(bool, tag = "3")]
    pub(super) expires: bool,
    #[prost(uint32, tag = "4")]
    pub(super) ttl: u32,
    #[prost(bytes = "vec", tag = "5")]
    pub(super) data: Vec<u8>,
    #[prost(btree_map = "string, message", tag = "6")]
    pub(super) subs: BTreeMap<String, SubscribeResult>,
    #[prost(uint32, tag = "7")]
    pub(super) ping: u32,
    #[prost(bool, tag = "8")]
    pub(super) pong: bool,
    #[prost(string, tag = "9")]
    pub(super) session: String,
    #[prost(string, tag = "10")]
    pub(super) node: String,
    #[prost(int64, tag = "11")]
    pub(super) time: i64,
    #[prost(int64, tag = "12")]
    pub(super) flag: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SubscribeResult {
    #[prost(bool, tag = "1")]
    pub(super) expires: bool,
    #[prost(uint32, tag = "2")]
    pub(super) ttl: u32,
    #[prost(bool, tag = "3")]
    pub(super) recoverable: bool,
    #[prost(string, tag = "6")]
    pub(super) epoch: String,
    #[prost(message, repeated, tag = "7")]
    pub(super) publications: Vec<Publication>,
    #[prost(bool, tag = "8")]
    pub(super) recovered: bool,
    #[prost(uint64, tag = "9")]
    pub(super) offset: u64,
    #[prost(bool, tag = "10")]
    pub(super) positioned: bool,
    #[prost(bytes = "vec", tag = "11")]
    pub(super) data: Vec<u8>,
    #[prost(bool, tag = "12")]
    pub(super) was_recovering: bool,
    #[prost(bool, tag = "13")]
    pub(super) delta: bool,
    #[prost(int64, tag = "14")]
    pub(super) id: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PresenceResult {
    #[prost(btree_map = "string, message", tag = "1")]
    pub(super) presence: BTreeMap<String, ClientInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PresenceStatsResult {
    #[prost(uint32, tag = "1")]
    pub(super) num_clients: u32,
    #[prost(uint32, tag = "2")]
    pub(super) num_users: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HistoryResult {
    #[prost(message, repeated, tag = "1")]
    pub(super) publications: Vec<Publication>,
    #[prost(string, tag = "2")]
    pub(super) epoch: String,
    #[prost(uint64, tag = "3")]
    pub(super) offset: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RpcResult {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) data: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RefreshResult {
    #[prost(string, tag = "1")]
    pub(super) client: String,
    #[prost(string, tag = "2")]
    pub(super) version: String,
    #[prost(bool, tag = "3")]
    pub(super) expires: bool,
    #[prost(uint32, tag = "4")]
    pub(super) ttl: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SubRefreshResult {
    #[prost(bool, tag = "1")]
    pub(super) expires: bool,
    #[prost(uint32, tag = "2")]
    pub(super) ttl: u32,
}
