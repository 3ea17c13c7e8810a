//! Tokens: who a client is and what it may, as signed by somebody that the configuration names.
//!
//! In: tokens from shards; keys from the configuration, files and a URL; ids that were revoked. Out: the engine's
//! [`ConnectClaims`] and [`SubscribeClaims`], at once or over the lane of the asking shard.
//!
//! ```text
//! shard ── HMAC: verified here and now ──────────────────────────────> Done
//!    └──── RSA, ECDSA, EdDSA ──> bounded queue ──> auth-0, auth-1 … ──> TokenChecked in the shard's inbox
//! control plane ── fetches auth.jwks_url ──> key set ──> next snapshot
//! ```
//!
//! | file | what |
//! |---|---|
//! | `jwt` | the outside: three parts, algorithm, key id |
//! | `keys`, `jwks` | keys by kind; PEM and JSON Web Key Sets |
//! | `claims` | the inside: times, audience, what is granted |
//! | `checker` | keys, policy, revoked ids: what all threads share |
//! | `pool`, `fetch` | the threads and the task |
//! | `config`, `rows`, `metrics`, `revoked` | keys of the configuration, numbers, the bounded table |
//!
//! Invariants: a shard never waits for a lock that is held for long, a full queue or a fetch; nothing in a token is
//! believed before its signature; a token never says where its key is found.

pub mod claims;
pub mod config;
pub mod jwks;
pub mod jwt;
pub mod keys;
pub mod metrics;
pub mod revoked;
pub mod rows;

mod checker;
mod fetch;
mod object;
mod pool;

use std::sync::Arc;

use ringway_engine::lane_message::Batch;
use ringway_engine::tokens::{ConnectClaims, SubscribeClaims, TokenAsk, TokenCheck, TokenError, Tokens};
use ringway_sys::{Errno, Inbox};

use checker::{Checker, Purpose, Snapshot};
use config::AuthConfig;
use jwt::Compact;
use metrics::Number;
use pool::{Job, Pool};

/// Checks tokens for all shards of the process.
#[derive(Debug)]
pub struct Auth {
    checker: Arc<Checker>,
    pool: Pool,
}

impl Auth {
    /// Starts the pool's threads. To be called where the process's common file table is, before shards run.
    /// `inboxes` are those of the shards and, last, the control plane's.
    ///
    /// # Errors
    /// No more threads are allowed.
    pub fn start(config: &AuthConfig, inboxes: &[Arc<Inbox<Batch>>]) -> Result<Arc<Auth>, Errno> {
        let checker = Arc::new(Checker::new(config));
        let pool = Pool::start(config.pool_threads, config.pool_queue_max, &checker, inboxes)?;
        Ok(Arc::new(Auth { checker, pool }))
    }

    /// Keeps the keys of a URL fresh, whether one is configured now or later. To be run on the control plane's runtime.
    pub fn keep_keys_fresh(&self) -> impl Future<Output = ()> + Send + use<> {
        fetch::keep_fresh(Arc::clone(&self.checker))
    }

    /// Takes other keys and another policy, as a whole; a fetched key set stays when its source is the same.
    /// Connections that are open stay. The pool keeps its size. A URL is asked at once. Not to be called by a shard: it
    /// wakes the control plane's runtime, whose descriptors a shard does not have.
    pub fn replace(&self, config: &AuthConfig) {
        self.checker.replace(config);
    }

    /// From now on tokens with this id are invalid, until they expire anyway (seconds since 1970; 0: not known). Closing
    /// connections that came with it is another thing: tell the shards `LaneMessage::RevokeToken` after this.
    /// An empty id is no id.
    pub fn revoke_token(&self, token_id: &str, until_unix_s: u64) {
        if !token_id.is_empty() {
            self.checker.revoke(token_id, until_unix_s);
        }
    }

    /// Appends the rows of `/metrics`.
    pub fn render_metrics(&self, out: &mut String) {
        self.checker.render(out);
    }

    fn check<C>(
        &self,
        token: &str,
        ask: TokenAsk,
        purpose: Purpose,
        here: fn(&Checker, &Snapshot, &Compact<'_>) -> Result<C, TokenError>,
    ) -> TokenCheck<C> {
        let snapshot = self.checker.snapshot();
        let refused = |error| TokenCheck::Done(self.checker.refuse(purpose, error));
        if token.len() > snapshot.token_bytes_max {
            return refused(TokenError::Invalid);
        }
        let Ok(compact) = Compact::parse(token) else { return refused(TokenError::Invalid) };
        if compact.alg.is_hmac() {
            return TokenCheck::Done(here(&self.checker, &snapshot, &compact));
        }
        if !snapshot.has_public_keys() {
            return refused(TokenError::Invalid);
        }
        match self.pool.offer(Job { token: token.into(), purpose, ask }) {
            Ok(()) => TokenCheck::Later,
            Err(error) => {
                self.checker.metrics.add(Number::PoolFull, 1);
                refused(error)
            }
        }
    }
}

impl Tokens for Auth {
    fn check_connect(&self, token: &str, ask: TokenAsk) -> TokenCheck<ConnectClaims> {
        self.check(token, ask, Purpose::Connect, Checker::connect)
    }

    fn check_subscribe(&self, token: &str, ask: TokenAsk) -> TokenCheck<SubscribeClaims> {
        self.check(token, ask, Purpose::Subscribe, Checker::subscribe)
    }
}

#[cfg(test)]
mod tests;
