//! A JSON Web Key Set (RFC 7517), as identity providers publish it.
//!
//! In: its text, from a file or a URL. Out: a [`KeySet`] of the signature keys in it that Ringway can use.
//! Invariants: keys for something else (encryption, other algorithms) are left out, not an error; a set without one
//! usable key, or with more than [`PUBLIC_KEYS_MAX`](super::keys::PUBLIC_KEYS_MAX), is refused as a whole; shared
//! secrets (`oct`) are never taken from a set, which is made to be public.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::keys::{Alg, KeySet, PublicKey};
use super::object::Object;

#[derive(Deserialize)]
struct Document {
    /// Read one by one: what one key lacks is no fault of the others.
    keys: Vec<serde_json::Value>,
}

/// RFC 7517 §4, with the numbers of RFC 7518 §6 and RFC 8037 §2.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default, rename = "use")]
    for_use: Option<String>,
    #[serde(default)]
    key_ops: Option<Vec<String>>,
    #[serde(default)]
    alg: Option<String>,
    #[serde(default)]
    crv: Option<String>,
    #[serde(default)]
    n: Option<String>,
    #[serde(default)]
    e: Option<String>,
    #[serde(default)]
    x: Option<String>,
    #[serde(default)]
    y: Option<String>,
}

/// Reads a set.
///
/// # Errors
/// Says why it can not be used.
pub fn parse(text: &[u8]) -> Result<KeySet, String> {
    let Object::<Document>(document) =
        serde_json::from_slice(text).map_err(|e| format!("not a JSON Web Key Set: {e}"))?;
    let mut set = KeySet::default();
    let mut left_out = String::new();
    let keys = document.keys.len();
    for (index, jwk) in document.keys.into_iter().enumerate() {
        match Object::<Jwk>::deserialize(jwk).map_err(|e| e.to_string()).and_then(|jwk| key(&jwk.0)) {
            Ok(key) => set.add_public(key)?,
            Err(text) if left_out.is_empty() => left_out = format!("; key {index}: {text}"),
            Err(_) => {}
        }
    }
    if set.public_keys() == 0 { Err(format!("no usable key among {keys}{left_out}")) } else { Ok(set) }
}

fn key(jwk: &Jwk) -> Result<PublicKey, String> {
    if jwk.for_use.as_deref().is_some_and(|for_use| for_use != "sig") {
        return Err("not for signatures".into());
    }
    if jwk.key_ops.as_ref().is_some_and(|operations| !operations.iter().any(|operation| operation == "verify")) {
        return Err("not for verifying".into());
    }
    let only = match jwk.alg.as_deref() {
        None => None,
        Some(name) => Some(Alg::from_name(name).ok_or("an unsupported alg")?),
    };
    let curve = || jwk.crv.as_deref().ok_or("no crv");
    let key = match jwk.kty.as_str() {
        "RSA" => PublicKey::from_rsa_numbers(&number(jwk.n.as_deref())?, &number(jwk.e.as_deref())?)?,
        "EC" => {
            // SEC 1 §2.3.3: an uncompressed point begins with 4.
            let point = [&[4][..], &bytes(jwk.x.as_deref())?, &bytes(jwk.y.as_deref())?].concat();
            PublicKey::from_point(curve()?, &point)?
        }
        "OKP" => PublicKey::from_point(curve()?, &bytes(jwk.x.as_deref())?)?,
        _ => return Err("an unsupported kty".into()),
    };
    key.named(jwk.kid.as_deref(), only)
}

fn bytes(text: Option<&str>) -> Result<Vec<u8>, String> {
    let text = text.ok_or("a number is missing")?;
    URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| "a number is not base64url".into())
}

/// Without leading zeros, which some publishers write although RFC 7518 §2 forbids them.
fn number(text: Option<&str>) -> Result<Vec<u8>, String> {
    let bytes = bytes(text)?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    Ok(bytes[zeros..].to_vec())
}
