//! Tokens of the simulation: a claim written out as text, and whoever checks it, at once or later.
//!
//! In: claims of simulated clients; the engine's questions. Out: verdicts, some at once and some kept until the world
//! delivers them, in any order, also to connections that have gone.
//! Invariant: what becomes of a token stands in the token, so that its client knows what to expect.

use std::sync::Mutex;

use ringway_engine::tokens::{
    ConnectClaims, SubscribeClaims, TokenAsk, TokenCheck, TokenChecked, TokenError, TokenSubscription, Tokens, Verdict,
};
use serde_json::{Value, json};

use crate::dice::Dice;

/// What a token says.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) user: String,
    /// Granted by a connection token; the one channel of a subscription token.
    pub(crate) channels: Vec<String>,
    pub(crate) ttl_ms: Option<u64>,
    pub(crate) outcome: Outcome,
    /// Its verdict takes a while.
    later: bool,
}

/// What becomes of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Good,
    Invalid,
    Expired,
    /// The pool of whoever checks is full.
    Busy,
    /// It is good, and somebody else's.
    Stranger,
}

const OUTCOMES: [Outcome; 5] = [Outcome::Good, Outcome::Invalid, Outcome::Expired, Outcome::Busy, Outcome::Stranger];

impl Claim {
    /// A token for a user, mostly a good one.
    pub(crate) fn new(dice: &mut Dice, user: &str, channels: Vec<String>) -> Self {
        let outcome = if dice.one_in(6) { dice.pick(&OUTCOMES) } else { Outcome::Good };
        let ttl_ms = dice.pick(&[None, None, None, Some(300), Some(1_000), Some(5_000)]);
        Claim { user: user.to_owned(), channels, ttl_ms, outcome, later: dice.one_in(2) }
    }

    /// A good one whose verdict takes a while.
    pub(crate) fn slow(user: &str, channel: &str) -> Self {
        let channels = vec![channel.to_owned()];
        Claim { user: user.to_owned(), channels, ttl_ms: None, outcome: Outcome::Good, later: true }
    }

    pub(crate) fn text(&self) -> String {
        let outcome = OUTCOMES.iter().position(|outcome| *outcome == self.outcome);
        json!({
            "user": self.user, "channels": self.channels, "ttl": self.ttl_ms, "outcome": outcome, "later": self.later
        })
        .to_string()
    }

    fn parse(text: &str) -> Self {
        let token: Value = serde_json::from_str(text).expect("a token of the simulation");
        let channels = token["channels"].as_array().into_iter().flatten();
        Claim {
            user: token["user"].as_str().expect("a user").to_owned(),
            channels: channels.map(|channel| channel.as_str().expect("a channel").to_owned()).collect(),
            ttl_ms: token["ttl"].as_u64(),
            outcome: OUTCOMES[token["outcome"].as_u64().expect("an outcome") as usize],
            later: token["later"].as_bool().expect("true or false"),
        }
    }

    fn verdict<C>(&self, claims: C) -> Result<C, TokenError> {
        match self.outcome {
            Outcome::Good | Outcome::Stranger => Ok(claims),
            Outcome::Invalid => Err(TokenError::Invalid),
            Outcome::Expired => Err(TokenError::Expired),
            Outcome::Busy => Err(TokenError::Busy),
        }
    }

    fn claimed_user(&self) -> Box<str> {
        if self.outcome == Outcome::Stranger { "stranger".into() } else { self.user.as_str().into() }
    }

    fn connect(&self) -> Result<ConnectClaims, TokenError> {
        let subscription =
            |channel: &String| TokenSubscription { channel: channel.as_str().into(), ..Default::default() };
        self.verdict(ConnectClaims {
            user: self.claimed_user(),
            subscriptions: self.channels.iter().map(subscription).collect(),
            expires_in_ms: self.ttl_ms,
            ..ConnectClaims::default()
        })
    }

    fn subscribe(&self) -> Result<SubscribeClaims, TokenError> {
        let channel = self.channels[0].as_str().into();
        let subscription = TokenSubscription { channel, expires_in_ms: self.ttl_ms, ..Default::default() };
        self.verdict(SubscribeClaims { user: self.claimed_user(), client: Box::default(), subscription })
    }
}

/// See the file's header.
#[derive(Debug, Default)]
pub(crate) struct ModelTokens {
    kept: Mutex<Vec<TokenChecked>>,
}

impl ModelTokens {
    /// Takes out one of the verdicts that are kept.
    pub(crate) fn take(&self, pick: impl FnOnce(usize) -> usize) -> Option<TokenChecked> {
        let mut kept = self.kept.lock().expect("nobody panics here");
        let count = kept.len();
        (count > 0).then(|| kept.swap_remove(pick(count)))
    }

    fn check<C>(
        &self,
        claim: &Claim,
        ask: TokenAsk,
        verdict: Result<C, TokenError>,
        wrap: fn(Result<C, TokenError>) -> Verdict,
    ) -> TokenCheck<C> {
        if !claim.later {
            return TokenCheck::Done(verdict);
        }
        self.kept.lock().expect("nobody panics here").push(TokenChecked { ask, verdict: wrap(verdict) });
        TokenCheck::Later
    }
}

impl Tokens for ModelTokens {
    fn check_connect(&self, token: &str, ask: TokenAsk) -> TokenCheck<ConnectClaims> {
        let claim = Claim::parse(token);
        self.check(&claim, ask, claim.connect(), Verdict::Connect)
    }

    fn check_subscribe(&self, token: &str, ask: TokenAsk) -> TokenCheck<SubscribeClaims> {
        let claim = Claim::parse(token);
        self.check(&claim, ask, claim.subscribe(), Verdict::Subscribe)
    }
}
