//! A client's subscription to one channel: what it does, and how far it has come.
//!
//! In: a namespace's options, what a client asks for, what a token or backend overrides. Out: [`Traits`] and states that
//! `shard/subscribe.rs` moves along.

use alloc::boxed::Box;

use crate::ids::LocalChannelId;
use crate::lane_message::RecoverFrom;
use crate::namespace::Namespace;
use crate::tokens::Overrides;
use crate::variant::Variant;

/// A channel of a client.
#[derive(Debug)]
pub struct Subscription {
    /// The channel on this core.
    pub local: LocalChannelId,
    /// On which of the channel's lists it stands, or will stand.
    pub variant: Variant,
    /// What it does.
    pub traits: Traits,
    /// How far it has come.
    pub state: SubscriptionState,
    /// What few subscriptions have.
    pub extra: Option<Box<SubscriptionExtra>>,
}

/// What a subscription does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// The server made it, not the client.
    pub server_side: bool,
    /// It takes part in presence.
    pub member: bool,
    /// Its coming and going is told to others.
    pub tell_join_leave: bool,
    /// The client shall keep its position and resume from it.
    pub recoverable: bool,
    /// The client is told of losses.
    pub positioned: bool,
}

/// What few subscriptions have.
#[derive(Clone, Debug, Default)]
pub struct SubscriptionExtra {
    /// JSON that other clients see; empty: none.
    pub info: Box<[u8]>,
    /// When it expires; none: never.
    pub expires_at_ms: Option<u64>,
}

/// How far a subscription has come.
#[derive(Debug)]
pub enum SubscriptionState {
    /// Its right or its owner is being asked.
    Asked(Box<Asked>),
    /// On the channel's list.
    Joined {
        /// Place in the list.
        index: u32,
    },
}

/// A subscription that is not granted yet.
#[derive(Debug, Default)]
pub struct Asked {
    /// Number of the request; with the local channel it names this subscription.
    pub request: u32,
    /// Who gets the answer.
    pub answer_to: AnswerTo,
    /// Where the client wants to resume.
    pub recover: Option<RecoverFrom>,
    /// It would rather have error 112 than `recovered:false`.
    pub reject_unrecovered: bool,
    /// Data for the client in the answer; empty: none.
    pub data: Box<[u8]>,
    /// The owner has been asked; before that, a token or a backend.
    pub sent: bool,
    /// It is to end as soon as it is answered.
    pub leaving: Option<Leaving>,
}

/// Who gets the answer to a subscribe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AnswerTo {
    /// A subscribe command.
    Command(u32),
    /// The connect command.
    Connect,
    /// The client, as a push: a backend has made the subscription.
    #[default]
    Push,
}

/// Why a subscription that is not answered yet is to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// The client has unsubscribed with this command; both are answered in order.
    Command(u32),
    /// A backend has ended it.
    Server {
        /// Code of the push.
        code: u32,
        /// Text of the push.
        reason: Box<str>,
    },
}

/// What a subscription does, by its namespace, what the client asks for, and what a token or backend overrides.
pub fn traits_of(namespace: &Namespace, overrides: &Overrides, wants: Wants) -> Traits {
    let recovery = overrides.recovery.unwrap_or(namespace.recovery_forced || wants.recovery);
    let recoverable = namespace.recovery && recovery;
    let positioned = overrides.positioned.unwrap_or(namespace.positioned || wants.positioned);
    let member = overrides.presence.unwrap_or(namespace.presence);
    Traits {
        server_side: false,
        member,
        tell_join_leave: member && overrides.join_leave.unwrap_or(namespace.join_leave),
        recoverable,
        positioned: recoverable || (namespace.history_size > 0 && positioned),
    }
}

/// Whether a subscription hears of others' coming and going.
pub fn hears_join_leave(namespace: &Namespace, overrides: &Overrides, asked: bool) -> bool {
    let on = overrides.join_leave.unwrap_or(namespace.join_leave);
    on && overrides.push_join_leave.unwrap_or(namespace.join_leave_forced || asked)
}

/// What a client asks of its subscription.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wants {
    /// To resume later.
    pub recovery: bool,
    /// To be told of losses.
    pub positioned: bool,
}
