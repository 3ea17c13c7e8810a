//! Calls of backends: the server API, whether it comes over HTTP or over ingest.
//!
//! In: requests that a front (`gateway/control`, `shard/ingest`) has parsed. Out: one answer each. A call about a
//! channel goes to the channel's owner, a call about a user to the user's owner, which tells the cores that hold
//! connections of that user.
//! Invariant: an answer comes exactly once, in any order; what it says has happened before it is sent (a user call
//! has then been handed to every core concerned, in order with later calls about that user).

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::ids::{CoreId, Epoch, Offset};
use crate::lane_message::{Origin, Position};
use crate::past::Past;
use crate::presence::Member;
use crate::tokens::TokenSubscription;

/// A question or an order about one channel, on its way to the owner. From a client only after its rights were checked.
#[derive(Debug)]
pub struct ChannelCall {
    /// Full name.
    pub channel: Box<str>,
    /// What is asked.
    pub ask: ChannelAsk,
    /// Who waits.
    pub origin: Origin,
    /// Where it waits.
    pub from: CoreId,
}

/// See [`ChannelCall`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChannelAsk {
    /// Who is there.
    Presence,
    /// How many are there.
    PresenceStats,
    /// Publications of the past.
    History(HistoryAsk),
    /// Forget them. Epoch and offsets stay: whoever has the top can still resume from it, an older position is lost.
    HistoryRemove,
}

/// Which publications of the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryAsk {
    /// How many at most; 0: only the position; negative: as many as the caps allow.
    pub limit: i32,
    /// From where: those behind it, or with `reverse` those before it. None: from the start, or with `reverse` from the end.
    pub since: Option<Since>,
    /// Newest first.
    pub reverse: bool,
}

/// A position that somebody claims to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since {
    /// Offset.
    pub offset: Offset,
    /// None: of whatever epoch the channel has.
    pub epoch: Option<Epoch>,
}

/// The owner's answer to a [`ChannelCall`].
#[derive(Debug)]
pub struct ChannelAnswer {
    /// Who waits.
    pub origin: Origin,
    /// What it gets.
    pub result: Result<ChannelFact, CallError>,
}

/// See [`ChannelAnswer`].
#[derive(Debug)]
pub enum ChannelFact {
    /// Everyone there, in no order.
    Presence(Vec<Arc<Member>>),
    /// Counts.
    PresenceStats {
        /// Connections.
        clients: u32,
        /// Distinct users; all anonymous ones are one.
        users: u32,
    },
    /// Publications in the order asked for.
    History {
        /// As many as asked for, or fewer.
        publications: Past,
        /// The channel's top.
        top: Position,
    },
    /// History was removed.
    Removed,
}

/// Why a call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallError {
    /// No namespace has this channel, or the name is malformed.
    UnknownChannel,
    /// The namespace does not have what was asked for (presence, history).
    NotAvailable,
    /// The position asked from is of another epoch.
    UnrecoverablePosition,
    /// The answer would be larger than a limit allows.
    LimitExceeded,
    /// What was asked makes no sense.
    BadRequest,
    /// A limit of this node; try again later.
    Busy,
}

impl ChannelAnswer {
    /// Bytes of memory this answer keeps, near enough for a bound; what is shared counts in full.
    pub fn memory_bytes(&self) -> usize {
        let fact = match &self.result {
            Ok(ChannelFact::Presence(members)) => members.iter().map(|member| member.memory_bytes()).sum(),
            Ok(ChannelFact::History { publications, .. }) => publications.memory_bytes(),
            Ok(ChannelFact::PresenceStats { .. } | ChannelFact::Removed) | Err(_) => 0,
        };
        size_of::<Self>() + fact
    }
}

/// An order about the connections of one user, on its way to the user's owner, and from there to each core with
/// connections of that user.
#[derive(Debug)]
pub struct UserCall {
    /// User id; never empty.
    pub user: Box<str>,
    /// Only this connection of the user; empty: all.
    pub client: Box<str>,
    /// What is to happen.
    pub order: UserOrder,
    /// Who waits; none for a copy that the user's owner has passed on.
    pub origin: Option<Origin>,
    /// Where it waits.
    pub from: CoreId,
}

/// See [`UserCall`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserOrder {
    /// Subscribe to a channel, server-side.
    Subscribe {
        /// What to.
        subscription: TokenSubscription,
        /// From where to recover; none: from now on.
        recover: Option<Since>,
    },
    /// End subscriptions to a channel; all channels when empty.
    Unsubscribe {
        /// Full name.
        channel: Box<str>,
        /// Code of the push, 2000 to 2999.
        code: u32,
        /// Text of the push; never empty.
        reason: Box<str>,
    },
    /// Close.
    Disconnect {
        /// WebSocket close code, 3000 to 4999.
        code: u16,
        /// Text; never empty, no JSON.
        reason: Box<str>,
        /// Client ids that stay.
        whitelist: Vec<Box<str>>,
    },
    /// Change when the connection expires.
    Refresh {
        /// It has expired: close with 3005.
        expired: bool,
        /// How long it may live from now; none: without end.
        expires_in_ms: Option<u64>,
        /// New info that others see; none: as it is.
        info: Option<Box<[u8]>>,
    },
    /// A message outside channels.
    Message {
        /// JSON, or any bytes for Protobuf clients.
        data: Box<[u8]>,
    },
}

impl UserCall {
    /// Bytes of memory this call keeps, near enough for a bound.
    pub fn memory_bytes(&self) -> usize {
        let order = match &self.order {
            UserOrder::Subscribe { subscription, .. } => {
                subscription.channel.len() + subscription.info.len() + subscription.data.len()
            }
            UserOrder::Unsubscribe { channel, reason, .. } => channel.len() + reason.len(),
            UserOrder::Disconnect { reason, whitelist, .. } => {
                let clients: usize = whitelist.iter().map(|client| size_of::<Box<str>>() + client.len()).sum();
                reason.len() + clients
            }
            UserOrder::Refresh { info, .. } => info.as_ref().map_or(0, |info| info.len()),
            UserOrder::Message { data } => data.len(),
        };
        size_of::<Self>() + self.user.len() + self.client.len() + order
    }
}

/// The answer to a [`UserCall`].
#[derive(Debug)]
pub struct UserAnswer {
    /// Who waits.
    pub origin: Origin,
    /// How many cores hold connections of that user and were told, or why none was.
    pub result: Result<u16, CallError>,
}

/// A question to every shard, for operators: which channels do you own?
#[derive(Debug)]
pub struct ChannelsCall {
    /// Only names that contain this; empty: all.
    pub pattern: Box<str>,
    /// At most so many names, the first ones.
    pub limit: u32,
    /// Who waits.
    pub origin: Origin,
    /// Where it waits.
    pub from: CoreId,
}

/// One shard's answer to a [`ChannelsCall`].
#[derive(Debug)]
pub struct ChannelsAnswer {
    /// Who waits.
    pub origin: Origin,
    /// Who answers.
    pub core: CoreId,
    /// Channels with subscribers on it, by name.
    pub channels: Vec<ChannelCount>,
    /// Channels that it owns and that have subscribers, whether listed or not; from the control plane: of all nodes.
    pub total: u32,
    /// It has looked at all of them.
    pub is_whole: bool,
}

impl ChannelsAnswer {
    /// Bytes of memory this answer keeps, near enough for a bound.
    pub fn memory_bytes(&self) -> usize {
        let names: usize = self.channels.iter().map(|known| size_of::<ChannelCount>() + known.channel.len()).sum();
        size_of::<Self>() + names
    }
}

/// A channel and how many there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelCount {
    /// Full name.
    pub channel: Box<str>,
    /// Its subscribers where that was counted: on a core, a node or all nodes.
    pub clients: u32,
}
