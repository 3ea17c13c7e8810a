//! Keys that verify tokens, each bound to the algorithms of its own kind.
//!
//! In: shared secrets, PEM texts, the numbers of a JWK. Out: a [`KeySet`] that says whether a signature is good.
//! Invariants: the algorithm in a token only chooses among keys of that kind, never how a key's bytes are read, so an
//! RSA key can not be taken for a shared secret; a set has at most [`PUBLIC_KEYS_MAX`] public keys and
//! [`HMAC_SECRETS_MAX`] secrets, so the work for one token is bounded; no key is printed.

use std::fmt;

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RsaParameters,
    RsaPublicKeyComponents, RsaSubjectPublicKey, VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::jwt::{Compact, Malformed};

/// Shared secrets at once. Over: the configuration is refused.
pub const HMAC_SECRETS_MAX: usize = 16;
/// Public keys of one source (all PEM files and the JWKS file together, or the JWKS URL). Over: the configuration, or
/// what the URL answered, is refused.
pub const PUBLIC_KEYS_MAX: usize = 64;
/// Bytes of an RSA modulus, from 2048 to 8192 bits. Others: the key is refused.
const RSA_MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

/// How a token is signed (RFC 7518 §3.1, RFC 8037 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the RFC")]
pub enum Alg {
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Rs384,
    Rs512,
    Es256,
    Es384,
    Es512,
    EdDsa,
}

impl Alg {
    /// All, with their names in a header.
    pub const NAMES: &'static [(&'static str, Alg)] = &[
        ("HS256", Alg::Hs256),
        ("HS384", Alg::Hs384),
        ("HS512", Alg::Hs512),
        ("RS256", Alg::Rs256),
        ("RS384", Alg::Rs384),
        ("RS512", Alg::Rs512),
        ("ES256", Alg::Es256),
        ("ES384", Alg::Es384),
        ("ES512", Alg::Es512),
        ("EdDSA", Alg::EdDsa),
    ];

    /// The algorithm with exactly this name.
    pub fn from_name(name: &str) -> Option<Alg> {
        // RFC 9864 calls EdDSA over this curve by the curve's name.
        if name == "Ed25519" {
            return Some(Alg::EdDsa);
        }
        Self::NAMES.iter().find(|(own, _)| *own == name).map(|(_, alg)| *alg)
    }

    /// Whether both sides share the secret.
    pub const fn is_hmac(self) -> bool {
        matches!(self, Alg::Hs256 | Alg::Hs384 | Alg::Hs512)
    }
}

const RSA: [(Alg, &RsaParameters); 3] = [
    (Alg::Rs256, &RSA_PKCS1_2048_8192_SHA256),
    (Alg::Rs384, &RSA_PKCS1_2048_8192_SHA384),
    (Alg::Rs512, &RSA_PKCS1_2048_8192_SHA512),
];
const CURVES: [(Alg, &str, &dyn VerificationAlgorithm); 4] = [
    (Alg::Es256, "P-256", &ECDSA_P256_SHA256_FIXED),
    (Alg::Es384, "P-384", &ECDSA_P384_SHA384_FIXED),
    (Alg::Es512, "P-521", &ECDSA_P521_SHA512_FIXED),
    (Alg::EdDsa, "Ed25519", &ED25519),
];

/// A shared secret, ready for each hash.
struct HmacKey {
    hs256: hmac::Key,
    hs384: hmac::Key,
    hs512: hmac::Key,
}

impl HmacKey {
    fn new(secret: &[u8]) -> HmacKey {
        HmacKey {
            hs256: hmac::Key::new(hmac::HMAC_SHA256, secret),
            hs384: hmac::Key::new(hmac::HMAC_SHA384, secret),
            hs512: hmac::Key::new(hmac::HMAC_SHA512, secret),
        }
    }

    /// In constant time.
    fn verify(&self, alg: Alg, message: &[u8], tag: &[u8]) -> bool {
        let key = match alg {
            Alg::Hs256 => &self.hs256,
            Alg::Hs384 => &self.hs384,
            Alg::Hs512 => &self.hs512,
            _ => return false,
        };
        hmac::verify(key, message, tag).is_ok()
    }
}

/// A public key, ready for each algorithm of its kind.
pub struct PublicKey {
    kid: Option<Box<str>>,
    uses: Vec<(Alg, ParsedPublicKey)>,
}

impl PublicKey {
    /// From the DER text of a `SubjectPublicKeyInfo`, or of an `RSAPublicKey` (RFC 8017).
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn from_der(der: &[u8]) -> Result<PublicKey, String> {
        for (alg, _, curve) in CURVES {
            if let Ok(key) = ParsedPublicKey::new(curve, der) {
                return Ok(PublicKey { kid: None, uses: vec![(alg, key)] });
            }
        }
        let unknown = |_| "not a public key of a supported kind (RSA, P-256, P-384, P-521, Ed25519)".to_string();
        let modulus_bytes = RsaSubjectPublicKey::from_der(der).map_err(unknown)?.modulus_len();
        check_modulus(modulus_bytes)?;
        let mut uses = Vec::new();
        for (alg, parameters) in RSA {
            uses.push((alg, ParsedPublicKey::new(parameters, der).map_err(unknown)?));
        }
        Ok(PublicKey { kid: None, uses })
    }

    /// From modulus and exponent, big-endian without leading zeros.
    ///
    /// # Errors
    /// Says what is wrong with them.
    pub fn from_rsa_numbers(n: &[u8], e: &[u8]) -> Result<PublicKey, String> {
        check_modulus(n.len())?;
        let mut uses = Vec::new();
        for (alg, parameters) in RSA {
            let key = RsaPublicKeyComponents { n, e }.to_parsed_public_key(parameters);
            uses.push((alg, key.map_err(|_| "not an RSA key".to_string())?));
        }
        Ok(PublicKey { kid: None, uses })
    }

    /// From the name of a curve (RFC 7518 §6.2.1.1, RFC 8037 §2) and a point: uncompressed, or Ed25519's 32 bytes.
    ///
    /// # Errors
    /// Says what is wrong with them.
    pub fn from_point(curve: &str, point: &[u8]) -> Result<PublicKey, String> {
        let (alg, _, parameters) =
            CURVES.into_iter().find(|(_, name, _)| *name == curve).ok_or("an unsupported curve")?;
        let key = ParsedPublicKey::new(parameters, point).map_err(|_| "not a point of its curve".to_string())?;
        Ok(PublicKey { kid: None, uses: vec![(alg, key)] })
    }

    /// Gives it an id, and narrows it to one algorithm where its publisher did.
    ///
    /// # Errors
    /// The algorithm is not one of its kind.
    pub fn named(mut self, kid: Option<&str>, only: Option<Alg>) -> Result<PublicKey, String> {
        self.kid = kid.map(Into::into);
        if let Some(only) = only {
            self.uses.retain(|(alg, _)| *alg == only);
        }
        if self.uses.is_empty() { Err("alg does not fit the kind of key".into()) } else { Ok(self) }
    }

    fn verify(&self, alg: Alg, message: &[u8], signature: &[u8]) -> bool {
        self.uses.iter().any(|(own, key)| *own == alg && key.verify_sig(message, signature).is_ok())
    }
}

fn check_modulus(bytes: usize) -> Result<(), String> {
    if RSA_MODULUS_BYTES.contains(&bytes) {
        Ok(())
    } else {
        Err(format!("an RSA key of {} bits; 2048 to 8192 are allowed", bytes * 8))
    }
}

/// All public keys of a PEM text (RFC 7468).
///
/// # Errors
/// Says what is wrong with it; a private key or a certificate is refused by name.
pub fn public_keys_from_pem(text: &str) -> Result<Vec<PublicKey>, String> {
    let mut keys = Vec::new();
    let mut rest = text;
    while let Some((_, from)) = rest.split_once("-----BEGIN ") {
        let (label, from) = from.split_once("-----").ok_or("a BEGIN line without end")?;
        let (body, from) = from.split_once(&format!("-----END {label}-----")).ok_or("no END line for a BEGIN line")?;
        match label {
            "PUBLIC KEY" | "RSA PUBLIC KEY" => {}
            "CERTIFICATE" => {
                return Err("a certificate; take its key out with `openssl x509 -pubkey -noout`".into());
            }
            other => return Err(format!("{other:?} instead of a public key")),
        }
        let body: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        keys.push(PublicKey::from_der(&STANDARD.decode(body).map_err(|_| "not base64")?)?);
        rest = from;
    }
    if keys.is_empty() { Err("no public key in it".into()) } else { Ok(keys) }
}

/// What a set of keys says about a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    /// One of them signed it.
    Good,
    /// None of them did.
    Bad,
}

/// Keys of one or several sources.
#[derive(Default)]
pub struct KeySet {
    hmac: Vec<HmacKey>,
    public: Vec<PublicKey>,
}

impl KeySet {
    /// Adds a shared secret.
    ///
    /// # Errors
    /// Over [`HMAC_SECRETS_MAX`], or empty.
    pub fn add_secret(&mut self, secret: &[u8]) -> Result<(), String> {
        if secret.is_empty() {
            return Err("a secret must not be empty".into());
        }
        if self.hmac.len() == HMAC_SECRETS_MAX {
            return Err(format!("there must be at most {HMAC_SECRETS_MAX} secrets"));
        }
        self.hmac.push(HmacKey::new(secret));
        Ok(())
    }

    /// Adds a public key.
    ///
    /// # Errors
    /// Over [`PUBLIC_KEYS_MAX`].
    pub fn add_public(&mut self, key: PublicKey) -> Result<(), String> {
        if self.public.len() == PUBLIC_KEYS_MAX {
            return Err(format!("there must be at most {PUBLIC_KEYS_MAX} public keys"));
        }
        self.public.push(key);
        Ok(())
    }

    /// Adds the public keys of another set.
    ///
    /// # Errors
    /// Over [`PUBLIC_KEYS_MAX`].
    pub fn join(&mut self, other: KeySet) -> Result<(), String> {
        other.public.into_iter().try_for_each(|key| self.add_public(key))
    }

    /// Shared secrets in it.
    pub fn secrets(&self) -> usize {
        self.hmac.len()
    }

    /// Public keys in it.
    pub fn public_keys(&self) -> usize {
        self.public.len()
    }

    /// Whether a public key has this id.
    pub fn has_kid(&self, kid: &str) -> bool {
        self.public.iter().any(|key| key.kid.as_deref() == Some(kid))
    }

    /// Tries the keys that can have signed this token: those of its algorithm's kind, and of its key id when it names
    /// one (keys without an id, which PEM files and secrets are, always count).
    ///
    /// # Errors
    /// The signature is not base64url.
    pub fn verify(&self, token: &Compact<'_>) -> Result<Signature, Malformed> {
        let signature = token.signature()?;
        let good = if token.alg.is_hmac() {
            self.hmac.iter().any(|key| key.verify(token.alg, token.signed, &signature))
        } else {
            self.public
                .iter()
                .filter(|key| key.kid.is_none() || token.kid.is_none() || key.kid.as_deref() == token.kid.as_deref())
                .any(|key| key.verify(token.alg, token.signed, &signature))
        };
        Ok(if good { Signature::Good } else { Signature::Bad })
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeySet({} secrets, {} public keys)", self.hmac.len(), self.public.len())
    }
}
