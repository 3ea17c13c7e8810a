//! `POST /api/publish`: a backend publishes over HTTP, in the shape of Centrifugo's HTTP API.
//!
//! In: `{"channel":…,"data":…}` with the API key in `X-API-Key` (or `Authorization: apikey …`). Out: a [`Call`] to the
//! shards, then `{"result":{"offset":…,"epoch":…}}`, or `{"error":{"code":…,"message":…}}` with status 200.
//! Other statuses: 401 key, 413 size, 504 no answer in time.
//! Invariants: the key is checked before the body is read; `data` is passed on as it was written, newlines between
//! its tokens removed (JSON clients separate messages by newlines); a field that Ringway cannot honour is an error.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest as _, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use base64::Engine as _;
use ringway_engine::lane_message::PublishError;
use ringway_wire::ingest::PayloadKind;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;

use super::metrics::push_header;
use super::{Call, ControlOptions, Plane, Published, error, json};

/// Room for field names and the channel around a payload.
const ENVELOPE_BYTES: usize = 64 * 1024;

/// How an API call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
enum ApiResult {
    Ok,
    Duplicate,
    Unauthorized,
    BadRequest,
    Refused,
    Busy,
    NoAnswer,
}

/// Label and meaning of each way a call can end, in the order of `ApiResult`.
pub const API_RESULTS: &[(&str, &str)] = &[
    ("ok", "published"),
    ("duplicate", "answered from an idempotency key"),
    ("unauthorized", "no key, a wrong one, or none configured (401)"),
    ("bad_request", "the body is not a publish (107), or too large (413)"),
    ("refused", "the channel or payload is not allowed (102, 103, 106, 107)"),
    ("busy", "a limit of this node (111); the backend should try again"),
    ("no_answer", "the shards did not answer in time (504); it may have happened"),
];

/// Name of the counter.
pub const API_NAME: &str = "ringway_api_calls_total";
/// Its help text.
pub const API_HELP: &str = "Calls of the HTTP API by result.";

/// Counts calls by result.
#[derive(Debug, Default)]
pub(super) struct ApiResults([AtomicU64; API_RESULTS.len()]);

impl ApiResults {
    fn count(&self, result: ApiResult) {
        self.0[result as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn render(&self, out: &mut String) {
        push_header(out, API_NAME, "counter", API_HELP);
        for ((label, _), count) in API_RESULTS.iter().zip(&self.0) {
            let _ = writeln!(out, "{API_NAME}{{result=\"{label}\"}} {}", count.load(Ordering::Relaxed));
        }
    }
}

/// Bytes of a request body: a payload, which base64 makes a third longer, and its envelope.
pub(super) const fn body_bytes_max(options: &ControlOptions) -> usize {
    options.publication_bytes_max as usize / 3 * 4 + ENVELOPE_BYTES
}

/// The body of a publish. Fields that Centrifugo knows and Ringway does not do are read, so that a client library
/// which always sends them with their default value works, and any other value is refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body<'a> {
    #[serde(borrow)]
    channel: Cow<'a, str>,
    /// A JSON `null` is data, too, hence not `Option`'s own reading.
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(default)]
    b64data: String,
    #[serde(default)]
    idempotency_key: String,
    #[serde(default)]
    skip_history: bool,
    #[serde(default)]
    delta: bool,
    #[serde(default)]
    tags: Option<serde_json::Map<String, serde_json::Value>>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// A publish as the shards take it.
struct Publish {
    channel: String,
    payload: Vec<u8>,
    kind: PayloadKind,
    idempotency_key: Vec<u8>,
}

pub(super) async fn handle(State(plane): State<Arc<Plane>>, request: Request) -> Response {
    let (result, response) = call(&plane, request).await;
    plane.api_results.count(result);
    response
}

async fn call(plane: &Arc<Plane>, request: Request) -> (ApiResult, Response) {
    let options = &plane.options;
    if !key_of(request.headers()).is_some_and(|key| options.api_key.matches(key)) {
        let message = if options.api_key.is_empty() {
            "unauthorized: the HTTP API is off, control.api_key is not set"
        } else {
            "unauthorized"
        };
        return (ApiResult::Unauthorized, error(StatusCode::UNAUTHORIZED, 101, message));
    }
    let body = match Bytes::from_request(request, plane).await {
        Ok(body) => body,
        Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            return (ApiResult::BadRequest, too_large(options));
        }
        Err(_) => return (ApiResult::BadRequest, bad_request("the body could not be read")),
    };
    match parse(&body, options) {
        Ok(publish) => ask(plane, publish).await,
        Err(text) => (ApiResult::BadRequest, bad_request(&text)),
    }
}

fn key_of(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(key) = headers.get("x-api-key") {
        return Some(key.as_bytes());
    }
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("apikey").then(|| key.trim().as_bytes())
}

/// # Errors
/// What is wrong with the body, for the developer who wrote it.
fn parse(body: &[u8], options: &ControlOptions) -> Result<Publish, String> {
    let body: Body<'_> = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    if body.channel.is_empty() || body.channel.len() > options.channel_bytes_max as usize {
        return Err(format!("channel must have 1 to {} bytes", options.channel_bytes_max));
    }
    if body.idempotency_key.len() > options.idempotency_key_bytes_max as usize {
        return Err(format!("idempotency_key must have at most {} bytes", options.idempotency_key_bytes_max));
    }
    let tags = body.tags.is_some_and(|tags| !tags.is_empty());
    for (asked, name) in [(body.skip_history, "skip_history"), (body.delta, "delta"), (tags, "tags")] {
        if asked {
            return Err(format!("{name} is not available"));
        }
    }
    let (payload, kind) = match (body.data, body.b64data.as_str()) {
        (Some(data), "") => (without_newlines(data.get()), PayloadKind::Json),
        (None, b64) if !b64.is_empty() => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(b64);
            (bytes.map_err(|_| "b64data is not base64".to_string())?, PayloadKind::Bytes)
        }
        _ => return Err("exactly one of data and b64data must be given".into()),
    };
    let idempotency_key = body.idempotency_key.into_bytes();
    Ok(Publish { channel: body.channel.into_owned(), payload, kind, idempotency_key })
}

/// In valid JSON a raw newline stands only between tokens, and never between two that would merge without it.
fn without_newlines(json: &str) -> Vec<u8> {
    json.bytes().filter(|b| !matches!(b, b'\n' | b'\r')).collect()
}

async fn ask(plane: &Plane, publish: Publish) -> (ApiResult, Response) {
    if publish.payload.len() > plane.options.publication_bytes_max as usize {
        return (ApiResult::Refused, too_large(&plane.options));
    }
    let (reply, answer) = oneshot::channel();
    let Publish { channel, payload, kind, idempotency_key } = publish;
    match plane.calls.try_send(Call::Publish { channel, payload, kind, idempotency_key, reply }) {
        Ok(()) => {}
        Err(TrySendError::Full(_)) => return busy(),
        Err(TrySendError::Closed(_)) => return no_answer(),
    }
    match tokio::time::timeout(Duration::from_millis(plane.options.answer_timeout_ms), answer).await {
        Ok(Ok(Ok(published))) => {
            let result = if published.duplicate { ApiResult::Duplicate } else { ApiResult::Ok };
            (result, json(StatusCode::OK, render_result(&published)))
        }
        Ok(Ok(Err(refusal))) => refused(refusal, &plane.options),
        Ok(Err(_)) | Err(_) => no_answer(),
    }
}

/// Without history there is no position to tell.
fn render_result(published: &Published) -> String {
    match published.position.offset {
        0 => "{\"result\":{}}".into(),
        offset => format!("{{\"result\":{{\"offset\":{offset},\"epoch\":\"{}\"}}}}", published.position.epoch),
    }
}

fn refused(refusal: PublishError, options: &ControlOptions) -> (ApiResult, Response) {
    let ok = StatusCode::OK;
    match refusal {
        PublishError::UnknownChannel => (ApiResult::Refused, error(ok, 102, "unknown channel")),
        PublishError::PermissionDenied => (ApiResult::Refused, error(ok, 103, "permission denied")),
        PublishError::BadPayload => {
            (ApiResult::Refused, bad_request("the channel's namespace takes the other kind of payload"))
        }
        PublishError::TooLarge => (ApiResult::Refused, too_large(options)),
        PublishError::Busy => busy(),
    }
}

fn bad_request(text: &str) -> Response {
    error(StatusCode::OK, 107, &format!("bad request: {text}"))
}

fn too_large(options: &ControlOptions) -> Response {
    let message = format!("limit exceeded: a payload has at most {} bytes", options.publication_bytes_max);
    error(StatusCode::PAYLOAD_TOO_LARGE, 106, &message)
}

fn busy() -> (ApiResult, Response) {
    (ApiResult::Busy, error(StatusCode::OK, 111, "too many requests"))
}

fn no_answer() -> (ApiResult, Response) {
    let message = "internal server error: no answer in time, the publish may have happened";
    (ApiResult::NoAnswer, error(StatusCode::GATEWAY_TIMEOUT, 100, message))
}
