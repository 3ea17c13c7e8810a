//! The `auth.*` keys: what was given, and what they become once secrets and key files have been read.
//!
//! In: [`AuthSettings`] from all sources. Out: [`AuthConfig`], with every key parsed, so that `ringway check` finds a
//! bad one and a reload takes all or nothing. Invariant: secrets are never printed.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::claims::Policy;
use super::jwks;
use super::keys::{self, KeySet};
use crate::config_source::{Problem, read_file};

/// Values as they were given; each field is a key, and its row in `rows.rs` says what it is.
#[derive(Clone)]
#[allow(missing_docs, reason = "the rows say what each is")]
pub struct AuthSettings {
    pub hmac_secrets: Vec<String>,
    pub hmac_secrets_file: String,
    pub public_keys_files: Vec<String>,
    pub jwks_file: String,
    pub jwks_url: String,
    pub jwks_ca_file: String,
    pub jwks_refresh_ms: u64,
    pub jwks_timeout_ms: u64,
    pub audience: String,
    pub issuer: String,
    pub user_id_claim: String,
    pub leeway_ms: u64,
    pub token_bytes_max: u32,
    pub token_channels_max: u32,
    pub pool_threads: u32,
    pub pool_queue_max: u32,
    pub revoked_tokens_max: u32,
}

impl Default for AuthSettings {
    /// No key: every token is invalid.
    fn default() -> Self {
        AuthSettings {
            hmac_secrets: Vec::new(),
            hmac_secrets_file: String::new(),
            public_keys_files: Vec::new(),
            jwks_file: String::new(),
            jwks_url: String::new(),
            jwks_ca_file: String::new(),
            jwks_refresh_ms: 600_000,
            jwks_timeout_ms: 10_000,
            audience: String::new(),
            issuer: String::new(),
            user_id_claim: "sub".into(),
            leeway_ms: 0,
            token_bytes_max: 16 * 1024,
            token_channels_max: 128,
            pool_threads: 2,
            pool_queue_max: 4_096,
            revoked_tokens_max: 100_000,
        }
    }
}

/// Where a key set is fetched, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwksSource {
    /// `http://` or `https://`.
    pub url: String,
    /// PEM file of the authorities that may vouch for the server; empty: those of the system.
    pub ca_file: String,
    /// From one good fetch to the next.
    pub refresh_ms: u64,
    /// From connecting to the last byte.
    pub timeout_ms: u64,
    /// Between two fetches that unknown keys or failures cause.
    pub refetch_min_ms: u64,
}

/// Everything about tokens, ready to use.
#[derive(Clone)]
pub struct AuthConfig {
    /// Keys from the configuration and from files.
    pub keys: Arc<KeySet>,
    /// Keys from a URL.
    pub jwks: Option<JwksSource>,
    /// What is asked of claims.
    pub policy: Policy,
    /// Bytes of a token. Over: invalid.
    pub token_bytes_max: usize,
    /// Ids in the table of revoked tokens.
    pub revoked_tokens_max: usize,
    /// Threads that verify signatures of public keys.
    pub pool_threads: u32,
    /// Tokens that wait for one of them.
    pub pool_queue_max: u32,
}

impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthConfig")
            .field("keys", &self.keys)
            .field("jwks", &self.jwks)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

/// Between two fetches that unknown keys or failures cause: however many tokens name keys that do not exist, the
/// identity provider is asked no more often.
pub const JWKS_REFETCH_MIN_MS: u64 = 5_000;
/// Bytes of a shared secret below which a warning is given: RFC 7518 §3.2 asks for as many as HS256 hashes to.
pub const SECRET_BYTES_MIN: usize = 32;

impl AuthSettings {
    /// Reads the key files and parses all keys. `None` when a problem was added.
    pub(crate) fn finish(self, problems: &mut Vec<Problem>) -> Option<AuthConfig> {
        let known = problems.len();
        let mut set = KeySet::default();
        for secret in &self.hmac_secrets {
            if let Err(text) = set.add_secret(secret.as_bytes()) {
                problems.push(Problem::between("auth.hmac_secrets", &text));
                break;
            }
        }
        for path in &self.public_keys_files {
            if let Err(text) = add_pem(&mut set, Path::new(path)) {
                problems.push(Problem::between("auth.public_keys_files", &text));
            }
        }
        if !self.jwks_file.is_empty()
            && let Err(text) = add_jwks(&mut set, Path::new(&self.jwks_file))
        {
            problems.push(Problem::between("auth.jwks_file", &text));
        }
        let jwks = (!self.jwks_url.is_empty()).then(|| JwksSource {
            url: self.jwks_url.clone(),
            ca_file: self.jwks_ca_file.clone(),
            refresh_ms: self.jwks_refresh_ms,
            timeout_ms: self.jwks_timeout_ms,
            refetch_min_ms: JWKS_REFETCH_MIN_MS,
        });
        (problems.len() == known).then(|| AuthConfig {
            keys: Arc::new(set),
            jwks,
            policy: Policy {
                audience: self.audience.into(),
                issuer: self.issuer.into(),
                user_id_claim: self.user_id_claim.into(),
                leeway_ms: self.leeway_ms,
                token_channels_max: self.token_channels_max as usize,
            },
            token_bytes_max: self.token_bytes_max as usize,
            revoked_tokens_max: self.revoked_tokens_max as usize,
            pool_threads: self.pool_threads,
            pool_queue_max: self.pool_queue_max,
        })
    }

    /// What is allowed and yet probably not meant.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut out = Vec::new();
        if self.hmac_secrets.iter().any(|secret| secret.len() < SECRET_BYTES_MIN) {
            out.push(format!(
                "auth.hmac_secrets holds a secret of fewer than {SECRET_BYTES_MIN} bytes: whoever has a token can guess it offline"
            ));
        }
        if self.jwks_url.starts_with("http://") && !is_loopback(&self.jwks_url) {
            out.push("auth.jwks_url is plain http: whoever is on the way can put in a key of its own".into());
        }
        out
    }
}

impl AuthConfig {
    /// Whether any token can be valid.
    pub fn has_keys(&self) -> bool {
        self.keys.secrets() > 0 || self.keys.public_keys() > 0 || self.jwks.is_some()
    }
}

fn is_loopback(url: &str) -> bool {
    let host = url.parse::<hyper::Uri>().ok().and_then(|uri| Some(uri.host()?.to_string())).unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn add_pem(set: &mut KeySet, path: &Path) -> Result<(), String> {
    let named = |text: String| format!("{}: {text}", path.display());
    for key in keys::public_keys_from_pem(&read_file(path)?).map_err(named)? {
        set.add_public(key)?;
    }
    Ok(())
}

fn add_jwks(set: &mut KeySet, path: &Path) -> Result<(), String> {
    let text = read_file(path)?;
    set.join(jwks::parse(text.as_bytes()).map_err(|text| format!("{}: {text}", path.display()))?)
}

/// Whether a text can stand in `auth.jwks_url`; empty can.
pub(crate) fn is_jwks_url(url: &str) -> bool {
    url.is_empty()
        || url.parse::<hyper::Uri>().is_ok_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
                && uri.host().is_some_and(|host| !host.is_empty())
        })
}
