//! The outside of a token: JWS compact serialization (RFC 7515 §3.1), with nothing believed yet.
//!
//! In: text from a client. Out: the algorithm and key id that its header names, what is signed, and the signature.
//! Invariants: base64url without padding and with zero trailing bits, so that one token has one text; a header that
//! asks for something unknown (`crit`, `none`, encryption) is malformed, never ignored.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::keys::Alg;
use super::object::Object;

/// The text is no token that could be verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// A token that has the right shape.
#[derive(Debug)]
pub struct Compact<'a> {
    /// What its header says it was signed with. Only a key of that kind is ever tried.
    pub alg: Alg,
    /// Which key its header names.
    pub kid: Option<String>,
    /// Header and payload as they were signed.
    pub signed: &'a [u8],
    payload: &'a str,
    signature: &'a str,
}

/// RFC 7515 §4.1. `typ`, `cty` and hints where to find keys are ignored: keys come from the configuration alone.
#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    crit: Option<serde::de::IgnoredAny>,
}

impl<'a> Compact<'a> {
    /// Reads the header.
    ///
    /// # Errors
    /// Not three parts, no readable header, or an algorithm that is not supported.
    pub fn parse(token: &'a str) -> Result<Compact<'a>, Malformed> {
        let (rest, signature) = token.rsplit_once('.').ok_or(Malformed)?;
        let (header, payload) = rest.split_once('.').ok_or(Malformed)?;
        if payload.contains('.') {
            return Err(Malformed);
        }
        let Object::<Header>(header) = serde_json::from_slice(&decode(header)?).map_err(|_| Malformed)?;
        // §4.1.11: who does not understand an extension marked critical must refuse, and none is understood here.
        if header.crit.is_some() {
            return Err(Malformed);
        }
        let alg = Alg::from_name(&header.alg).ok_or(Malformed)?;
        Ok(Compact { alg, kid: header.kid, signed: rest.as_bytes(), payload, signature })
    }

    /// The signature's bytes.
    ///
    /// # Errors
    /// Not base64url.
    pub fn signature(&self) -> Result<Vec<u8>, Malformed> {
        decode(self.signature)
    }

    /// The claims, to be read only after the signature was found good.
    ///
    /// # Errors
    /// Not base64url, or not UTF-8.
    pub fn payload(&self) -> Result<String, Malformed> {
        String::from_utf8(decode(self.payload)?).map_err(|_| Malformed)
    }
}

fn decode(part: &str) -> Result<Vec<u8>, Malformed> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with_header(header: &str) -> String {
        format!("{}.e30.AAAA", URL_SAFE_NO_PAD.encode(header))
    }

    #[test]
    fn the_header_decides_algorithm_and_key() {
        let token = with_header(r#"{"typ":"JWT","alg":"ES384","kid":"k1","x5u":"http://127.0.0.1/"}"#);
        let compact = Compact::parse(&token).expect("well-formed");
        assert_eq!((compact.alg, compact.kid.as_deref()), (Alg::Es384, Some("k1")));
        assert_eq!(compact.payload().as_deref(), Ok("{}"));
        assert_eq!(compact.signature(), Ok(vec![0, 0, 0]));
        assert_eq!(compact.signed, token.rsplit_once('.').expect("dots").0.as_bytes());
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for header in [
            r#"{"alg":"none"}"#,
            r#"{"alg":"None"}"#,
            r#"{"alg":"hs256"}"#,
            r#"{"alg":"PS256"}"#,
            r#"{"alg":"RSA-OAEP","enc":"A128GCM"}"#,
            r#"{"alg":["HS256"]}"#,
            r#"{"alg":"HS256","alg":"RS256"}"#,
            r#"{"alg":"HS256","crit":["b64"],"b64":false}"#,
            r#"{"alg":"HS256","kid":7}"#,
            r#"{"typ":"JWT"}"#,
            "[]",
            r#"["HS256",null,null]"#,
            "",
        ] {
            assert_eq!(Compact::parse(&with_header(header)).err(), Some(Malformed), "{header}");
        }
        let good = with_header(r#"{"alg":"HS256"}"#);
        assert!(Compact::parse(&good).is_ok());
        for token in
            ["", ".", "..", "a.b.c", &good[1..], &format!("{good}.AA"), &format!(" {good}"), &good.replace('.', "")]
        {
            assert_eq!(Compact::parse(token).err(), Some(Malformed), "{token:?}");
        }
        // Padding, the other alphabet, and trailing bits that say nothing would give one token several texts.
        for signature in ["AA==", "+/AA", "AB", "A"] {
            let token = format!("{}.e30.{signature}", URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#));
            assert_eq!(Compact::parse(&token).expect("its header is fine").signature(), Err(Malformed), "{signature}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(token in "\\PC{0,64}|[A-Za-z0-9_.-]{0,200}", header in "\\PC{0,40}") {
            for text in [token, with_header(&header)] {
                if let Ok(compact) = Compact::parse(&text) {
                    let _ = (compact.signature(), compact.payload());
                }
            }
        }
    }
}
