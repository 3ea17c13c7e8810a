//! What all threads that check tokens share: keys, policy, revoked ids, numbers.
//!
//! In: tokens whose header was read; new configurations; key sets that were fetched. Out: verdicts.
//! Invariants: keys and policy change together, as one snapshot, and reading it takes no lock; a fetched set is taken
//! only while its source is still the configured one; an unknown key is "come again" until a set that was asked for
//! just now does not have it either, because an invalid token makes SDKs give up for good.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use ringway_engine::tokens::{ConnectClaims, SubscribeClaims, TokenError, Verdict};
use tokio::sync::Notify;

use super::claims::{self, Passed, Policy};
use super::config::{AuthConfig, JwksSource};
use super::jwt::Compact;
use super::keys::{KeySet, Signature};
use super::metrics::{AuthMetrics, Number, Outcome};
use super::revoked::Revoked;
use crate::clock;

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A connection.
    Connect,
    /// A subscription.
    Subscribe,
}

/// Keys and policy of one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// From the configuration and files.
    local: Arc<KeySet>,
    /// Where more come from.
    source: Option<Arc<JwksSource>>,
    /// What came from there.
    fetched: Option<Fetched>,
    policy: Policy,
    /// Bytes of a token.
    pub(super) token_bytes_max: usize,
    revoked_tokens_max: usize,
}

#[derive(Clone, Debug)]
struct Fetched {
    keys: Arc<KeySet>,
    /// When they were asked for, on the clock that only goes forward.
    asked_ms: u64,
}

impl Snapshot {
    fn new(config: &AuthConfig, before: Option<&Snapshot>) -> Snapshot {
        // The same source keeps its keys and its schedule.
        let kept = before.filter(|before| before.source.as_deref() == config.jwks.as_ref());
        Snapshot {
            local: Arc::clone(&config.keys),
            source: match kept {
                Some(kept) => kept.source.clone(),
                None => config.jwks.clone().map(Arc::new),
            },
            fetched: kept.and_then(|kept| kept.fetched.clone()),
            policy: config.policy.clone(),
            token_bytes_max: config.token_bytes_max,
            revoked_tokens_max: config.revoked_tokens_max,
        }
    }

    /// Whether a token of a public key can be valid, now or after a fetch.
    pub(super) fn has_public_keys(&self) -> bool {
        self.local.public_keys() > 0 || self.source.is_some()
    }

    /// Whether a newer key set might have the key of this token.
    fn may_come(&self, token: &Compact<'_>) -> bool {
        if token.alg.is_hmac() || self.source.is_none() {
            return false;
        }
        let Some(fetched) = &self.fetched else { return true };
        token.kid.as_deref().is_some_and(|kid| !self.local.has_kid(kid) && !fetched.keys.has_kid(kid))
    }
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Checker {
    snapshot: ArcSwap<Snapshot>,
    /// Held while a snapshot is made from the one before.
    swap: Mutex<()>,
    /// Revoked ids.
    pub(super) revoked: Revoked,
    /// Numbers.
    pub(super) metrics: AuthMetrics,
    /// A token names a key that is not known. Only threads with the process's common file table may ring it: it wakes
    /// the control plane's runtime through a descriptor.
    pub(super) wanted: Notify,
    /// The source has changed.
    pub(super) changed: Notify,
}

/// Why claims were not given.
enum Refused {
    Error(TokenError),
    Revoked,
}

impl From<TokenError> for Refused {
    fn from(error: TokenError) -> Self {
        Refused::Error(error)
    }
}

impl Checker {
    /// With keys, and nothing fetched or revoked.
    pub(super) fn new(config: &AuthConfig) -> Checker {
        Checker {
            snapshot: ArcSwap::from_pointee(Snapshot::new(config, None)),
            swap: Mutex::new(()),
            revoked: Revoked::default(),
            metrics: AuthMetrics::default(),
            wanted: Notify::new(),
            changed: Notify::new(),
        }
    }

    /// Keys and policy now.
    pub(super) fn snapshot(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// Takes another configuration as a whole.
    pub(super) fn replace(&self, config: &AuthConfig) {
        let _turn = self.swap.lock().unwrap_or_else(PoisonError::into_inner);
        let next = Snapshot::new(config, Some(&self.snapshot.load()));
        self.metrics
            .set(Number::JwksKeys, next.fetched.as_ref().map_or(0, |fetched| fetched.keys.public_keys() as u64));
        self.snapshot.store(Arc::new(next));
        self.changed.notify_one();
    }

    /// Where to fetch keys.
    pub(super) fn source(&self) -> Option<Arc<JwksSource>> {
        self.snapshot.load().source.clone()
    }

    /// Takes fetched keys, unless their source is no longer the configured one.
    pub(super) fn install(&self, source: &Arc<JwksSource>, keys: KeySet, asked_ms: u64) {
        let _turn = self.swap.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.snapshot.load();
        if !now.source.as_ref().is_some_and(|current| Arc::ptr_eq(current, source)) {
            return;
        }
        self.metrics.set(Number::JwksKeys, keys.public_keys() as u64);
        self.snapshot.store(Arc::new(Snapshot {
            local: Arc::clone(&now.local),
            source: Some(Arc::clone(source)),
            fetched: Some(Fetched { keys: Arc::new(keys), asked_ms }),
            policy: now.policy.clone(),
            token_bytes_max: now.token_bytes_max,
            revoked_tokens_max: now.revoked_tokens_max,
        }));
    }

    /// Revokes an id; see [`Revoked::add`].
    pub(super) fn revoke(&self, token_id: &str, until_unix_s: u64) {
        let entries_max = self.snapshot.load().revoked_tokens_max;
        let forgotten = self.revoked.add(token_id, until_unix_s, clock::unix_now_ms() / 1000, entries_max);
        self.metrics.add(Number::RevokedForgotten, forgotten);
    }

    /// Appends the rows of `/metrics`.
    pub(super) fn render(&self, out: &mut String) {
        self.metrics.set(Number::Revoked, self.revoked.sweep(clock::unix_now_ms() / 1000) as u64);
        self.metrics.render(out);
    }

    /// Checks a connection token.
    ///
    /// # Errors
    /// As [`TokenError`] says.
    pub(super) fn connect(&self, snapshot: &Snapshot, token: &Compact<'_>) -> Result<ConnectClaims, TokenError> {
        self.count(Purpose::Connect, self.check(snapshot, token, claims::connect))
    }

    /// Checks a subscription token.
    ///
    /// # Errors
    /// As [`TokenError`] says.
    pub(super) fn subscribe(&self, snapshot: &Snapshot, token: &Compact<'_>) -> Result<SubscribeClaims, TokenError> {
        self.count(Purpose::Subscribe, self.check(snapshot, token, claims::subscribe))
    }

    /// Either of the two, for whoever answers later.
    pub(super) fn verdict(&self, purpose: Purpose, token: &Compact<'_>) -> Verdict {
        let snapshot = self.snapshot.load();
        match purpose {
            Purpose::Connect => Verdict::Connect(self.connect(&snapshot, token)),
            Purpose::Subscribe => Verdict::Subscribe(self.subscribe(&snapshot, token)),
        }
    }

    /// Counts a token that did not come as far as a signature.
    pub(super) fn refuse<C>(&self, purpose: Purpose, error: TokenError) -> Result<C, TokenError> {
        self.count(purpose, Err(Refused::Error(error)))
    }

    fn check<C>(
        &self,
        snapshot: &Snapshot,
        token: &Compact<'_>,
        read: fn(&str, &Policy, u64) -> Result<Passed<C>, TokenError>,
    ) -> Result<C, Refused> {
        let mut signature = snapshot.local.verify(token).map_err(|_| TokenError::Invalid)?;
        if signature == Signature::Bad
            && let Some(fetched) = &snapshot.fetched
        {
            signature = fetched.keys.verify(token).map_err(|_| TokenError::Invalid)?;
        }
        if signature == Signature::Bad {
            return Err(self.unsigned(snapshot, token).into());
        }
        let payload = token.payload().map_err(|_| TokenError::Invalid)?;
        let now_unix_ms = clock::unix_now_ms();
        let passed = read(&payload, &snapshot.policy, now_unix_ms)?;
        if self.revoked.contains(&passed.token_id, now_unix_ms / 1000) {
            return Err(Refused::Revoked);
        }
        Ok(passed.claims)
    }

    /// None of the keys signed it: is there hope?
    fn unsigned(&self, snapshot: &Snapshot, token: &Compact<'_>) -> TokenError {
        if !snapshot.may_come(token) {
            return TokenError::Invalid;
        }
        let refetch_min_ms = snapshot.source.as_ref().map_or(0, |source| source.refetch_min_ms);
        let asked_ms = snapshot.fetched.as_ref().map(|fetched| fetched.asked_ms);
        if asked_ms.is_some_and(|asked_ms| clock::now_ms().saturating_sub(asked_ms) < refetch_min_ms) {
            return TokenError::Invalid;
        }
        self.wanted.notify_one();
        TokenError::Busy
    }

    fn count<C>(&self, purpose: Purpose, result: Result<C, Refused>) -> Result<C, TokenError> {
        let (outcome, result) = match result {
            Ok(claims) => (Outcome::Ok, Ok(claims)),
            Err(Refused::Revoked) => (Outcome::Revoked, Err(TokenError::Invalid)),
            Err(Refused::Error(error)) => {
                let outcome = match error {
                    TokenError::Invalid => Outcome::Invalid,
                    TokenError::Expired => Outcome::Expired,
                    TokenError::Busy => Outcome::Busy,
                };
                (outcome, Err(error))
            }
        };
        self.metrics.checked(purpose == Purpose::Subscribe, outcome);
        result
    }
}
