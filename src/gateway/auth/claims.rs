//! The inside of a token: what its claims must say, and what they grant.
//!
//! In: the JSON text of a payload whose signature is good, and the time of day. Out: the engine's claims.
//! Invariants: a claim of the wrong type makes the token invalid, it is never skipped; JSON that goes on to clients is
//! valid and has no raw newline (clients separate messages by newlines); each channel is granted once, and `subs`
//! wins over `channels`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ringway_engine::tokens::{ConnectClaims, Overrides, SubscribeClaims, TokenError, TokenSubscription};
use serde::de::{IgnoredAny, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::object::Object;

/// What this node asks of a token beside its signature.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Must stand in `aud`; empty: not asked.
    pub audience: Box<str>,
    /// Must be `iss`; empty: not asked.
    pub issuer: Box<str>,
    /// The claim that holds the user id.
    pub user_id_claim: Box<str>,
    /// How far the issuer's clock may be from ours.
    pub leeway_ms: u64,
    /// Channels that one token may grant. Over: invalid.
    pub token_channels_max: usize,
}

/// Claims that have passed, and the id by which the token can be revoked.
#[derive(Debug)]
pub struct Passed<C> {
    /// For the engine.
    pub claims: C,
    /// `jti`; empty: none.
    pub token_id: Box<str>,
}

/// RFC 7519 §4.1, and what Centrifugo's tokens have beside. Claims that are not here are ignored.
#[derive(Deserialize)]
struct Claims<'a> {
    #[serde(borrow, default)]
    sub: Option<&'a RawValue>,
    #[serde(borrow, default)]
    aud: Option<&'a RawValue>,
    #[serde(borrow, default)]
    iss: Option<&'a RawValue>,
    #[serde(default)]
    exp: Option<Seconds>,
    #[serde(default)]
    nbf: Option<Seconds>,
    #[serde(default, rename = "iat")]
    _iat: Option<Seconds>,
    #[serde(default)]
    jti: Option<Box<str>>,
    #[serde(default)]
    expire_at: Option<Seconds>,
    #[serde(borrow, default)]
    info: Option<&'a RawValue>,
    #[serde(default)]
    b64info: Option<String>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    b64data: Option<String>,
    #[serde(borrow, default)]
    meta: Option<&'a RawValue>,
    #[serde(default)]
    channels: Option<Vec<Box<str>>>,
    #[serde(borrow, default)]
    subs: Option<BTreeMap<Box<str>, Object<Sub<'a>>>>,
    #[serde(default)]
    channel: Option<Box<str>>,
    #[serde(default)]
    client: Option<Box<str>>,
    #[serde(default, rename = "override")]
    overrides: Option<Object<Override>>,
}

/// One entry of `subs`.
#[derive(Deserialize)]
struct Sub<'a> {
    #[serde(borrow, default)]
    info: Option<&'a RawValue>,
    #[serde(default)]
    b64info: Option<String>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    b64data: Option<String>,
    #[serde(default, rename = "override")]
    overrides: Option<Object<Override>>,
}

#[derive(Clone, Copy, Default, Deserialize)]
struct Override {
    #[serde(default)]
    presence: Option<Object<Flag>>,
    #[serde(default)]
    join_leave: Option<Object<Flag>>,
    #[serde(default)]
    force_push_join_leave: Option<Object<Flag>>,
    #[serde(default)]
    force_recovery: Option<Object<Flag>>,
    #[serde(default)]
    force_positioning: Option<Object<Flag>>,
}

#[derive(Clone, Copy, Deserialize)]
struct Flag {
    #[serde(default)]
    value: Option<bool>,
}

impl Override {
    fn read(given: Option<Object<Override>>) -> Overrides {
        let Object(given) = given.unwrap_or_default();
        let value = |flag: Option<Object<Flag>>| flag.and_then(|flag| flag.0.value);
        Overrides {
            presence: value(given.presence),
            join_leave: value(given.join_leave),
            push_join_leave: value(given.force_push_join_leave),
            recovery: value(given.force_recovery),
            positioned: value(given.force_positioning),
        }
    }
}

/// A moment, in milliseconds since 1970. RFC 7519 §2 (NumericDate) allows fractions of a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seconds {
    unix_ms: i64,
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Seconds, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Seconds;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of seconds")
            }

            fn visit_u64<E>(self, seconds: u64) -> Result<Seconds, E> {
                Ok(Seconds { unix_ms: i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1000) })
            }

            fn visit_i64<E>(self, seconds: i64) -> Result<Seconds, E> {
                Ok(Seconds { unix_ms: seconds.saturating_mul(1000) })
            }

            fn visit_f64<E>(self, seconds: f64) -> Result<Seconds, E> {
                // `as` takes what is too large to the nearest end; JSON has no NaN.
                Ok(Seconds { unix_ms: (seconds * 1000.0) as i64 })
            }
        }
        deserializer.deserialize_f64(Number)
    }
}

/// Checks the claims of a connection token.
///
/// # Errors
/// Expired, or anything else that makes it invalid here.
pub fn connect(payload: &str, policy: &Policy, now_unix_ms: u64) -> Result<Passed<ConnectClaims>, TokenError> {
    let claims = read(payload)?;
    // A token for one channel must not open a connection.
    if claims.channel.is_some() {
        return Err(TokenError::Invalid);
    }
    let expires_in_ms = check(&claims, policy, now_unix_ms)?;
    let token_id = claims.jti.clone().unwrap_or_default();
    let granted = ConnectClaims {
        user: user(payload, &claims, policy)?,
        info: json(claims.info, claims.b64info.as_deref())?,
        meta: json(claims.meta, None)?,
        subscriptions: subscriptions(claims.subs, claims.channels, policy)?,
        token_id: token_id.clone(),
        expires_in_ms,
    };
    Ok(Passed { claims: granted, token_id })
}

/// Checks the claims of a subscription token.
///
/// # Errors
/// Expired, or anything else that makes it invalid here.
pub fn subscribe(payload: &str, policy: &Policy, now_unix_ms: u64) -> Result<Passed<SubscribeClaims>, TokenError> {
    let claims = read(payload)?;
    let channel = claims.channel.clone().filter(|channel| !channel.is_empty()).ok_or(TokenError::Invalid)?;
    let expires_in_ms = check(&claims, policy, now_unix_ms)?;
    let granted = SubscribeClaims {
        user: user(payload, &claims, policy)?,
        client: claims.client.unwrap_or_default(),
        subscription: TokenSubscription {
            channel,
            info: json(claims.info, claims.b64info.as_deref())?,
            data: json(claims.data, claims.b64data.as_deref())?,
            overrides: Override::read(claims.overrides),
            expires_in_ms,
        },
    };
    Ok(Passed { claims: granted, token_id: claims.jti.unwrap_or_default() })
}

fn read(payload: &str) -> Result<Claims<'_>, TokenError> {
    serde_json::from_str(payload).map(|Object(claims)| claims).map_err(|_| TokenError::Invalid)
}

/// Whom the token is for and when; gives how long what it opens may live.
fn check(claims: &Claims<'_>, policy: &Policy, now_unix_ms: u64) -> Result<Option<u64>, TokenError> {
    if !policy.audience.is_empty() && !is_audience(claims.aud, &policy.audience) {
        return Err(TokenError::Invalid);
    }
    if !policy.issuer.is_empty() && claims.iss.and_then(text).as_deref() != Some(&*policy.issuer) {
        return Err(TokenError::Invalid);
    }
    let now_ms = i64::try_from(now_unix_ms).unwrap_or(i64::MAX);
    let leeway_ms = i64::try_from(policy.leeway_ms).unwrap_or(i64::MAX);
    if claims.nbf.is_some_and(|nbf| nbf.unix_ms > now_ms.saturating_add(leeway_ms)) {
        return Err(TokenError::Invalid);
    }
    // How long until this moment; within the leeway behind it, how much of the leeway is left.
    let remaining_ms = |moment: Seconds| {
        let end_ms = if moment.unix_ms > now_ms { moment.unix_ms } else { moment.unix_ms.saturating_add(leeway_ms) };
        u64::try_from(end_ms.saturating_sub(now_ms)).ok().filter(|left| *left > 0).ok_or(TokenError::Expired)
    };
    let token_ms = claims.exp.map(remaining_ms).transpose()?;
    match claims.expire_at {
        None => Ok(token_ms),
        Some(Seconds { unix_ms: 0 }) => Ok(None),
        Some(moment) => remaining_ms(moment).map(Some),
    }
}

/// RFC 7519 §4.1.3: one text, or several.
fn is_audience(aud: Option<&RawValue>, ours: &str) -> bool {
    let Some(aud) = aud else { return false };
    match serde_json::from_str::<Vec<String>>(aud.get()) {
        Ok(several) => several.iter().any(|one| one == ours),
        Err(_) => text(aud).as_deref() == Some(ours),
    }
}

fn text(raw: &RawValue) -> Option<Box<str>> {
    serde_json::from_str(raw.get()).ok()
}

/// Absent: anonymous.
fn user(payload: &str, claims: &Claims<'_>, policy: &Policy) -> Result<Box<str>, TokenError> {
    let raw = if &*policy.user_id_claim == "sub" {
        claims.sub
    } else {
        let all: HashMap<String, &RawValue> = serde_json::from_str(payload).map_err(|_| TokenError::Invalid)?;
        all.get(&*policy.user_id_claim).copied()
    };
    raw.map_or(Ok(Box::default()), |raw| text(raw).ok_or(TokenError::Invalid))
}

/// JSON as it was written, or from base64, which wins when both are there.
fn json(raw: Option<&RawValue>, base64: Option<&str>) -> Result<Box<[u8]>, TokenError> {
    let Some(base64) = base64.filter(|base64| !base64.is_empty()) else {
        return Ok(raw.map(|raw| without_newlines(raw.get())).unwrap_or_default());
    };
    let bytes = STANDARD.decode(base64).map_err(|_| TokenError::Invalid)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| TokenError::Invalid)?;
    // Not JSON would tear apart the frames of JSON clients that see it.
    serde_json::from_str::<IgnoredAny>(text).map_err(|_| TokenError::Invalid)?;
    Ok(without_newlines(text))
}

/// In valid JSON a raw newline stands only between tokens, and never between two that would merge without it.
fn without_newlines(json: &str) -> Box<[u8]> {
    json.trim().bytes().filter(|b| !matches!(b, b'\n' | b'\r')).collect()
}

fn subscriptions(
    subs: Option<BTreeMap<Box<str>, Object<Sub<'_>>>>,
    channels: Option<Vec<Box<str>>>,
    policy: &Policy,
) -> Result<Vec<TokenSubscription>, TokenError> {
    let mut granted: BTreeMap<Box<str>, TokenSubscription> = BTreeMap::new();
    for (channel, Object(sub)) in subs.unwrap_or_default() {
        let subscription = TokenSubscription {
            channel: channel.clone(),
            info: json(sub.info, sub.b64info.as_deref())?,
            data: json(sub.data, sub.b64data.as_deref())?,
            overrides: Override::read(sub.overrides),
            expires_in_ms: None,
        };
        granted.insert(channel, subscription);
    }
    for channel in channels.unwrap_or_default() {
        granted.entry(channel.clone()).or_insert_with(|| TokenSubscription { channel, ..TokenSubscription::default() });
    }
    if granted.len() > policy.token_channels_max || granted.contains_key("") {
        return Err(TokenError::Invalid);
    }
    Ok(granted.into_values().collect())
}

#[cfg(test)]
#[path = "claims_tests.rs"]
mod tests;
