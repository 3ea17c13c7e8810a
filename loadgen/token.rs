//! Connection tokens: each connection a user of its own, signed as it connects.
//!
//! In: the server's HMAC secret, the number of a connection. Out: a JWT (RFC 7519) signed with HS256 (RFC 7518 §3.2).
//! Invariant: nothing is kept per connection.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// How long a token holds.
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Signs tokens.
pub struct TokenSigner {
    key: hmac::Key,
    /// Of all tokens, in seconds since 1970.
    expires_at_s: u64,
}

impl TokenSigner {
    /// A signer with the server's secret.
    pub fn new(secret: &str) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        TokenSigner {
            key: hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()),
            expires_at_s: (now + LIFETIME).as_secs(),
        }
    }

    /// The token of user `u<number>`.
    pub fn token(&self, number: u64) -> String {
        let claims = format!("{{\"sub\":\"u{number}\",\"exp\":{}}}", self.expires_at_s);
        let mut token = URL_SAFE_NO_PAD.encode(br#"{"alg":"HS256","typ":"JWT"}"#);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = hmac::sign(&self.key, token.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_signed_and_names_its_user() {
        let token = TokenSigner::new("secret").token(7);
        let (signed, signature) = token.rsplit_once('.').expect("three parts");
        let claims = signed.split_once('.').expect("two parts").1;
        let claims = URL_SAFE_NO_PAD.decode(claims).expect("base64");
        assert!(claims.starts_with(br#"{"sub":"u7","exp":"#), "{}", String::from_utf8_lossy(&claims));
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"secret");
        let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64");
        hmac::verify(&key, signed.as_bytes(), &signature).expect("the signature holds");
    }
}
