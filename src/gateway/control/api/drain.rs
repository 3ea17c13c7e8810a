//! `/api/drain`: begins a drain, and tells how far it is.
//!
//! In: `POST` with `{}` or `{"hurry":true}`, `GET`; both with the API key. Out: `{"result":…}` with a [`Progress`].
//! Invariant: it is no row of the methods' table, so that no batch and no tool that tries every command ends a node.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{MethodRouter, get};
use schemars::JsonSchema;
use serde::Deserialize;

use super::error::{ApiError, ErrorMode};
use super::methods::parse;
use super::results::ApiResult;
use super::{Plane, admitted, refused};
use crate::control::json;
use crate::drain::Progress;

/// Name of its counter.
const NAME: &str = "drain";

/// Makes the node leave: readiness fails, clients are sent away at the configured rate, backends follow, and the process
/// ends. Once begun it is not taken back.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct DrainRequest {
    /// Close everybody at once, whether a drain has begun or not.
    #[serde(default)]
    hurry: bool,
}

pub(super) fn route() -> MethodRouter<Arc<Plane>> {
    get(tell).post(begin)
}

async fn tell(State(plane): State<Arc<Plane>>, request: Request) -> Response {
    let mode = ErrorMode::of(request.headers());
    match admitted(&plane, request).await {
        Ok(_) => told(&plane, &plane.drain.progress(), mode),
        Err(error) => refused(&plane, NAME, &error, mode),
    }
}

async fn begin(State(plane): State<Arc<Plane>>, request: Request) -> Response {
    let mode = ErrorMode::of(request.headers());
    match admitted(&plane, request).await.and_then(|body| parse::<DrainRequest>(&body)) {
        Ok(order) => {
            plane.drain.begin("api");
            if order.hurry {
                plane.drain.hurry("api");
            }
            told(&plane, &plane.drain.progress(), mode)
        }
        Err(error) => refused(&plane, NAME, &error, mode),
    }
}

fn told(plane: &Plane, progress: &Progress, mode: ErrorMode) -> Response {
    match serde_json::to_string(progress) {
        Ok(progress) => {
            plane.api_results.count(NAME, ApiResult::Ok);
            json(StatusCode::OK, format!("{{\"result\":{progress}}}"))
        }
        // Numbers and a word are always JSON; an error is an honest answer all the same.
        Err(_) => refused(plane, NAME, &ApiError::no_answer(), mode),
    }
}
