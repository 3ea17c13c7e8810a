//! The server API over HTTP: what backends ask of the node, in the shapes of Centrifugo's HTTP API.
//!
//! In: `POST /api/<method>` with a JSON body and the API key in `X-API-Key` (or `Authorization: apikey …`). Out: calls to
//! the shards, then `{"result":…}` or `{"error":{"code":…,"message":…}}`; `GET /api/openapi.json` describes it all.
//! Invariants: the key is checked before the body is read; a field of that API that cannot be honoured is an error, an
//! unknown one is ignored; every list and every answer is bounded.
//!
//! | file | what |
//! |---|---|
//! | `methods` | the table of methods: read this first |
//! | `publish`, `user`, `channel`, `node` | requests and results of the methods |
//! | `batch` | several commands in one request |
//! | `drain` | beginning a drain, and how far it is |
//! | `ask` | sending to the shards and waiting |
//! | `json`, `shape` | payloads and infos, as JSON or base64; what an object and a whole number is |
//! | `error`, `results` | codes and statuses; counters |
//! | `openapi` | the description, from the same types |

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{FromRequest as _, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::value::RawValue;

use self::ask::{Asking, Start as _};
use self::batch::BatchRequest;
use self::error::{ApiError, ErrorMode};
use self::methods::{Command, METHODS, Reply, finish, parse};
use super::{ControlOptions, Plane, json};

mod ask;
mod batch;
mod channel;
mod drain;
mod error;
mod json;
mod methods;
mod node;
mod openapi;
mod publish;
pub mod results;
mod shape;
mod user;

pub(super) use node::NodeIdentity;
pub(super) use results::ApiResults;

/// Room in a body for field names, and for what is not a payload: channel names of a broadcast, commands of a batch.
const ENVELOPE_BYTES: usize = 1024 * 1024;

/// Bytes of a request body: a payload, which base64 makes a third longer, and its envelope. Over: 413.
pub(super) const fn body_bytes_max(options: &ControlOptions) -> usize {
    options.publication_bytes_max as usize / 3 * 4 + ENVELOPE_BYTES
}

/// Everything under `/api`.
pub(super) fn routes(options: &ControlOptions) -> Router<Arc<Plane>> {
    let document: Arc<str> = openapi::document(&options.api).into();
    let mut router = Router::new()
        .route("/api", post(single_endpoint))
        .route("/api/batch", post(batch))
        .route("/api/drain", drain::route())
        .route("/api/openapi.json", get(move || async move { described(&document) }));
    for method in METHODS {
        let name = method.name;
        let handler = move |State(plane): State<Arc<Plane>>, request: Request| call(plane, name, request);
        router = router.route(&format!("/api/{name}"), post(handler));
    }
    router
}

fn described(document: &str) -> Response {
    json(StatusCode::OK, document.to_owned())
}

async fn call(plane: Arc<Plane>, method: &'static str, request: Request) -> Response {
    let mode = ErrorMode::of(request.headers());
    let body = match admitted(&plane, request).await {
        Ok(body) => body,
        Err(error) => return refused(&plane, method, &error, mode),
    };
    let asking = Asking::new(&plane);
    match Command::parse(method, &body).unwrap_or_else(|| Err(ApiError::unknown_method())) {
        Ok(command) => answered(&finish(method, command.start(&asking), &asking).await, mode),
        Err(error) => refused(&plane, method, &error, mode),
    }
}

/// `{"method":"publish","params":{…}}`: the form that all methods shared before each had a path.
#[derive(Deserialize)]
struct SingleEndpoint<'a> {
    method: String,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

async fn single_endpoint(State(plane): State<Arc<Plane>>, request: Request) -> Response {
    let mode = ErrorMode::of(request.headers());
    let body = match admitted(&plane, request).await {
        Ok(body) => body,
        Err(error) => return refused(&plane, "unknown", &error, mode),
    };
    let asking = Asking::new(&plane);
    let envelope = serde_json::from_slice::<SingleEndpoint<'_>>(&body);
    let command = envelope.map_err(|error| ApiError::bad_request(error.to_string())).and_then(|envelope| {
        let params = envelope.params.map_or("{}", RawValue::get);
        Command::parse(&envelope.method, params.as_bytes()).unwrap_or_else(|| Err(ApiError::unknown_method()))
    });
    match command {
        Ok(command) => answered(&finish(command.method(), command.start(&asking), &asking).await, mode),
        Err(error) => refused(&plane, "unknown", &error, mode),
    }
}

async fn batch(State(plane): State<Arc<Plane>>, request: Request) -> Response {
    let mode = ErrorMode::of(request.headers());
    let result = match admitted(&plane, request).await.and_then(|body| parse::<BatchRequest>(&body)) {
        Ok(batch) => batch.run(&Asking::new(&plane)).await,
        Err(error) => Err(error),
    };
    match result.map(|result| serde_json::to_string(&result)) {
        Ok(Ok(body)) => {
            plane.api_results.count("batch", results::ApiResult::Ok);
            json(StatusCode::OK, body)
        }
        Ok(Err(_)) => refused(&plane, "batch", &ApiError::no_answer(), mode),
        Err(error) => refused(&plane, "batch", &error, mode),
    }
}

/// The body of a request whose key is right.
///
/// # Errors
/// The key is wrong, or the body too large or not readable.
async fn admitted(plane: &Arc<Plane>, request: Request) -> Result<Bytes, ApiError> {
    let options = &plane.options;
    if !key_of(request.headers()).is_some_and(|key| options.api_key.matches(key)) {
        return Err(ApiError::unauthorized(!options.api_key.is_empty()));
    }
    Bytes::from_request(request, plane).await.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::body_too_large(body_bytes_max(options)),
        _ => ApiError::bad_request("the body could not be read"),
    })
}

fn key_of(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(key) = headers.get("x-api-key") {
        return Some(key.as_bytes());
    }
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("apikey").then(|| key.trim().as_bytes())
}

/// A call that ended before it was a command.
fn refused(plane: &Plane, method: &str, error: &ApiError, mode: ErrorMode) -> Response {
    plane.api_results.count(method, error.result);
    answered(&Reply::Error(error.clone()), mode)
}

fn answered(reply: &Reply, mode: ErrorMode) -> Response {
    let status = if let Reply::Error(error) = reply { error.status(mode) } else { StatusCode::OK };
    match reply.envelope() {
        Ok(body) => json(status, body),
        // Only what was JSON before is written, so this does not happen; a status without a body is an honest answer.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
