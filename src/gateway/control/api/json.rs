//! JSON and bytes that pass through the API as they are.
//!
//! In: `data`, `info` and their base64 twins in requests; payloads of the shards. Out: bytes for the shards, JSON for
//! answers. Invariant: JSON goes on as it was written, newlines between its tokens removed (JSON clients separate
//! messages by newlines); what stands in an answer as JSON has been checked to be JSON.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use ringway_wire::ingest::PayloadKind;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::error::ApiError;

/// What base64 of requests looks like; for the schema.
pub(super) const BASE64: &str = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$";

/// Standard base64 with padding. Bits that the last character leaves over may be anything, as in Go's decoder.
const DECODER: GeneralPurpose =
    GeneralPurpose::new(&base64::alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// Any JSON value, as it was written.
#[derive(Debug, Deserialize, Serialize)]
#[serde(transparent)]
pub(super) struct Json(Box<RawValue>);

impl Json {
    /// Bytes of the shards, if they are JSON.
    pub(super) fn checked(bytes: &[u8]) -> Option<Json> {
        let text = std::str::from_utf8(bytes).ok()?;
        RawValue::from_string(text.to_owned()).ok().map(Json)
    }

    /// In valid JSON a raw newline stands only between tokens, and never between two that would merge without it.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        let mut bytes = String::from(Box::<str>::from(self.0)).into_bytes();
        bytes.retain(|byte| !matches!(byte, b'\n' | b'\r'));
        bytes
    }
}

impl JsonSchema for Json {
    fn schema_name() -> Cow<'static, str> {
        "Json".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        true.into()
    }
}

/// For a field in which `null` is a value, not the absence of one.
pub(super) fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Json>, D::Error> {
    Json::deserialize(deserializer).map(Some)
}

/// A payload from `data` or `b64data`, which wins when it is not empty.
///
/// # Errors
/// Neither is there, or the base64 is none.
pub(super) fn payload(data: Option<Json>, b64data: Option<String>) -> Result<(Vec<u8>, PayloadKind), ApiError> {
    match (b64data.filter(|text| !text.is_empty()), data) {
        (Some(text), _) => Ok((decode(&text, "b64data")?, PayloadKind::Bytes)),
        (None, Some(data)) => Ok((data.into_bytes(), PayloadKind::Json)),
        (None, None) => Err(ApiError::bad_request("data or b64data must be given")),
    }
}

/// JSON from a field or its base64 twin, which wins when it is not empty; empty when there is neither.
///
/// # Errors
/// The base64 is none, or what it holds is not JSON.
pub(super) fn json_or_base64(
    plain: Option<Json>,
    base64: Option<String>,
    base64_name: &str,
) -> Result<Vec<u8>, ApiError> {
    match base64.filter(|text| !text.is_empty()) {
        Some(text) => Json::checked(&decode(&text, base64_name)?)
            .map(Json::into_bytes)
            .ok_or_else(|| ApiError::conflict(format!("{base64_name} must hold JSON"))),
        None => Ok(plain.map(Json::into_bytes).unwrap_or_default()),
    }
}

fn decode(text: &str, name: &str) -> Result<Vec<u8>, ApiError> {
    DECODER.decode(text).map_err(|_| ApiError::bad_request(format!("{name} is not base64")))
}

/// A payload in an answer: `data`, or `b64data` when it is bytes.
pub(super) fn in_answer(payload: &[u8], kind: PayloadKind) -> (Option<Json>, Option<String>) {
    let data = (kind == PayloadKind::Json).then(|| Json::checked(payload)).flatten();
    let b64data = data.is_none().then(|| STANDARD.encode(payload));
    (data, b64data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_of_both_kinds() {
        let json = |text: &str| serde_json::from_str::<Json>(text).expect("is JSON");
        let (bytes, kind) = payload(Some(json("{\"a\":\r\n[1,\n2]}")), None).expect("is a payload");
        assert_eq!((bytes.as_slice(), kind), (b"{\"a\":[1,2]}".as_slice(), PayloadKind::Json));
        let (bytes, kind) = payload(Some(json("1")), Some("AAEC".into())).expect("is a payload");
        assert_eq!((bytes.as_slice(), kind), ([0, 1, 2].as_slice(), PayloadKind::Bytes));
        assert_eq!(payload(Some(json("null")), Some(String::new())).expect("is a payload").0, b"null");
        assert_eq!(payload(None, Some("AB==".into())).expect("bits left over are ignored").0, [0]);
        for (data, b64data) in [(None, None), (None, Some("")), (None, Some("AAE")), (None, Some("?"))] {
            assert_eq!(payload(data, b64data.map(Into::into)).expect_err("is none").code, 107, "{b64data:?}");
        }
    }

    #[test]
    fn only_json_stands_as_json_in_an_answer() {
        let (data, b64data) = in_answer(b"{\"a\":1}", PayloadKind::Json);
        assert!(data.is_some() && b64data.is_none());
        for (payload, kind) in [(b"1".as_slice(), PayloadKind::Bytes), (b"\xff\x00", PayloadKind::Json)] {
            let (data, b64data) = in_answer(payload, kind);
            assert!(data.is_none() && b64data.is_some(), "{payload:?}");
        }
    }
}
