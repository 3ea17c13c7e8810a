//! What the engine needs to know about tokens: who asks, and what a good one says.
//!
//! In: tokens as clients sent them. Out: claims, at once or later over a lane. The engine neither knows keys nor the
//! time of day; an implementation of [`Tokens`] does (`gateway/auth`, or the simulator's).
//! Invariant: claims have passed every check that needs only the token (signature, times, issuer, audience,
//! revocation); who may use them for what is decided by the session.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use crate::ids::{ConnId, CoreId};

/// Checks tokens. Shared by all shards.
pub trait Tokens: fmt::Debug + Send + Sync {
    /// Checks a connection token. What cannot be answered at once comes back as `LaneMessage::TokenChecked`.
    fn check_connect(&self, token: &str, ask: TokenAsk) -> TokenCheck<ConnectClaims>;

    /// Checks a subscription token, as above.
    fn check_subscribe(&self, token: &str, ask: TokenAsk) -> TokenCheck<SubscribeClaims>;
}

/// Who asks, so that a late answer finds its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenAsk {
    /// The asking shard.
    pub core: CoreId,
    /// Its connection.
    pub conn: ConnId,
    /// Number that the session gave it; comes back unchanged.
    pub ask: u32,
}

/// What can be said at once about a token.
#[derive(Debug)]
pub enum TokenCheck<C> {
    /// The verdict.
    Done(Result<C, TokenError>),
    /// The verdict comes over the lane.
    Later,
}

/// A verdict that comes later.
#[derive(Debug)]
pub struct TokenChecked {
    /// Who asked.
    pub ask: TokenAsk,
    /// What for, and the verdict.
    pub verdict: Verdict,
}

/// See [`TokenChecked`].
#[derive(Debug)]
pub enum Verdict {
    /// Of a connection token.
    Connect(Result<ConnectClaims, TokenError>),
    /// Of a subscription token.
    Subscribe(Result<SubscribeClaims, TokenError>),
}

/// Why a token is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// Malformed, wrongly signed, not yet valid, for somebody else, revoked, or of an unknown key.
    Invalid,
    /// Its time is over: the client fetches a new one.
    Expired,
    /// Too many checks are under way; the client tries again.
    Busy,
}

/// What a good connection token says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectClaims {
    /// User id; empty: anonymous.
    pub user: Box<str>,
    /// JSON that other clients see beside the user; empty: none.
    pub info: Box<[u8]>,
    /// JSON that only backends see; empty: none.
    pub meta: Box<[u8]>,
    /// Server-side subscriptions that the token grants.
    pub subscriptions: Vec<TokenSubscription>,
    /// Id of the token, for revocation; empty: none.
    pub token_id: Box<str>,
    /// How long the connection may live from now; none: without end.
    pub expires_in_ms: Option<u64>,
}

/// A server-side subscription granted by a token, a backend or the server API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenSubscription {
    /// Full name.
    pub channel: Box<str>,
    /// JSON that other clients see of this subscription; empty: none.
    pub info: Box<[u8]>,
    /// JSON for the client itself; empty: none.
    pub data: Box<[u8]>,
    /// What differs from the namespace.
    pub overrides: Overrides,
    /// How long the subscription may live from now; none: without end.
    pub expires_in_ms: Option<u64>,
}

/// What a good subscription token says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscribeClaims {
    /// User id; must be the connection's.
    pub user: Box<str>,
    /// Client id to which the token is bound; empty: none.
    pub client: Box<str>,
    /// Channel, info, data, overrides, and how long the subscription may live.
    pub subscription: TokenSubscription,
}

/// Options of one subscription that differ from its namespace's; none: as the namespace says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Whether it takes part in presence.
    pub presence: Option<bool>,
    /// Whether its coming and going is told.
    pub join_leave: Option<bool>,
    /// Whether it is told of others' coming and going without having asked.
    pub push_join_leave: Option<bool>,
    /// Whether it recovers without having asked.
    pub recovery: Option<bool>,
    /// Whether it is positioned without having asked.
    pub positioned: Option<bool>,
}

/// Takes no token: every one is invalid.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTokens;

impl Tokens for NoTokens {
    fn check_connect(&self, _token: &str, _ask: TokenAsk) -> TokenCheck<ConnectClaims> {
        TokenCheck::Done(Err(TokenError::Invalid))
    }

    fn check_subscribe(&self, _token: &str, _ask: TokenAsk) -> TokenCheck<SubscribeClaims> {
        TokenCheck::Done(Err(TokenError::Invalid))
    }
}
