//! Fuzz body: tokens of untrusted clients, from the text that came to the claims that are granted.
//!
//! In: `[mode, bytes...]`. Mode bits: 0 the bytes are the token's text instead of what is in it; 1 an audience and an
//! issuer are asked for; 2 the issuer's clock may be off; 3 the user id stands in another claim than `sub`.
//! Without bit 0 the bytes are header and payload, separated by the first newline (no newline: a payload under the usual
//! header), and are signed here with HS256: no mutation would find the signature, and nothing behind it would be reached.
//! Claims: no input panics; only what is signed as its header says is good; what is granted can be sent on, is within its
//! bounds, ends, and is granted under a lenient policy too.

use std::sync::LazyLock;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ringway::auth::claims::{Passed, Policy, connect, subscribe};
use ringway::auth::jwt::Compact;
use ringway::auth::keys::{Alg, KeySet, Signature};
use ringway_engine::tokens::{TokenError, TokenSubscription};

/// The time of day, in ms.
const NOW: u64 = 1_700_000_000_500;
const SECRET: &[u8] = b"known to the fuzzer's own signer alone";
const HEADER: &[u8] = br#"{"alg":"HS256","typ":"JWT"}"#;
const CHANNELS_MAX: usize = 4;
/// Two base64url characters: whatever stands somewhere, one of them is another one.
const OTHER: [&str; 2] = ["A", "B"];

/// Takes one input.
pub fn run(data: &[u8]) {
    let [mode, bytes @ ..] = data else { return };
    let flag = |bit: u8| mode & 1 << bit != 0;
    let lenient = Policy {
        audience: Box::default(),
        issuer: Box::default(),
        user_id_claim: if flag(3) { "uid".into() } else { "sub".into() },
        leeway_ms: if flag(2) { 2_000 } else { 0 },
        token_channels_max: CHANNELS_MAX,
    };
    let policy = match flag(1) {
        true => Policy { audience: "app".into(), issuer: "idp".into(), ..lenient.clone() },
        false => lenient.clone(),
    };
    let payload = if flag(0) { from_text(&String::from_utf8_lossy(bytes)) } else { from_parts(bytes) };
    let Some(payload) = payload else { return };
    let opens = check(&payload, &policy, &lenient, connect, |claims| {
        assert!(claims.subscriptions.len() <= CHANNELS_MAX, "{} channels", claims.subscriptions.len());
        let names: Vec<&str> = claims.subscriptions.iter().map(|subscription| &*subscription.channel).collect();
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "granted twice: {names:?}");
        claims.subscriptions.iter().for_each(check_subscription);
        for json in [&claims.info, &claims.meta] {
            check_json(json);
        }
        claims.expires_in_ms
    });
    let joins = check(&payload, &policy, &lenient, subscribe, |claims| {
        check_subscription(&claims.subscription);
        claims.subscription.expires_in_ms
    });
    assert!(!(opens && joins), "a token for one channel opens connections: {payload}");
}

/// A token as a client sends it. Its payload, if it has one, although nobody signed it.
fn from_text(token: &str) -> Option<String> {
    let compact = Compact::parse(token).ok()?;
    let signed = core::str::from_utf8(compact.signed).expect("a part of the text");
    let signature = token.strip_prefix(signed).and_then(|rest| rest.strip_prefix('.'));
    assert!(signature.is_some_and(|signature| !signature.contains('.')), "more or less than three parts: {token}");
    assert_ne!(keys().verify(&compact), Ok(Signature::Good), "a signature out of nothing: {token}");
    compact.payload().ok()
}

/// A token with these parts, signed. Its payload, if that is text.
fn from_parts(bytes: &[u8]) -> Option<String> {
    let newline = bytes.iter().position(|byte| *byte == b'\n');
    let (header, payload) = newline.map_or((HEADER, bytes), |at| (&bytes[..at], &bytes[at + 1..]));
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET);
    let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&key, signed.as_bytes()));
    let token = format!("{signed}.{signature}");
    let compact = Compact::parse(&token).ok()?;
    let verified = keys().verify(&compact).expect("base64url");
    assert_eq!(verified == Signature::Good, compact.alg == Alg::Hs256, "{:?}", compact.alg);
    // Another character anywhere: at the front of each part.
    for start in [0, token.find('.').map_or(0, |dot| dot + 1), signed.len() + 1] {
        let here = token.get(start..start + 1).filter(|here| *here != ".");
        let Some(other) = here.and_then(|here| OTHER.into_iter().find(|other| *other != here)) else { continue };
        let forged = [&token[..start], other, &token[start + 1..]].concat();
        if let Ok(forged) = Compact::parse(&forged) {
            assert_ne!(keys().verify(&forged), Ok(Signature::Good), "one character differs at {start}: {token}");
        }
    }
    let text = compact.payload().ok();
    assert_eq!(text.as_deref().map(str::as_bytes), core::str::from_utf8(payload).ok().map(str::as_bytes));
    text.filter(|_| verified == Signature::Good)
}

fn keys() -> &'static KeySet {
    static KEYS: LazyLock<KeySet> = LazyLock::new(|| {
        let mut keys = KeySet::default();
        keys.add_secret(SECRET).expect("room");
        keys
    });
    &KEYS
}

/// Whether the claims are granted. `granted` looks at them and says how long what they open may live.
fn check<C: PartialEq + core::fmt::Debug>(
    payload: &str,
    policy: &Policy,
    lenient: &Policy,
    read: fn(&str, &Policy, u64) -> Result<Passed<C>, TokenError>,
    granted: impl Fn(&C) -> Option<u64>,
) -> bool {
    let at = |policy: &Policy, now_ms: u64| read(payload, policy, now_ms).map(|passed| passed.claims);
    match at(policy, NOW) {
        Ok(claims) => {
            let expires_in_ms = granted(&claims);
            assert_eq!(at(lenient, NOW).as_ref(), Ok(&claims), "a policy that asks for less refuses: {payload}");
            if let Some(left_ms) = expires_in_ms {
                assert!(left_ms > 0, "granted for no time: {payload}");
                let end_ms = NOW.saturating_add(left_ms).saturating_add(policy.leeway_ms);
                assert_eq!(at(policy, end_ms), Err(TokenError::Expired), "does not end: {payload}");
            }
            true
        }
        Err(TokenError::Expired) => {
            assert_eq!(at(policy, NOW + 1_000), Err(TokenError::Expired), "comes back to life: {payload}");
            false
        }
        Err(_) => false,
    }
}

fn check_subscription(subscription: &TokenSubscription) {
    assert!(!subscription.channel.is_empty(), "a channel without a name");
    for json in [&subscription.info, &subscription.data] {
        check_json(json);
    }
}

/// JSON that goes on to clients, whose messages are separated by newlines.
fn check_json(json: &[u8]) {
    assert!(!json.contains(&b'\n') && !json.contains(&b'\r'), "a raw newline: {}", json.escape_ascii());
    let valid = json.is_empty() || serde_json::from_slice::<serde_json::Value>(json).is_ok();
    assert!(valid, "not JSON: {}", json.escape_ascii());
}
