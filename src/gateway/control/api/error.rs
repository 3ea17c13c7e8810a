//! Errors of the server API: code, text, and the HTTP status that each mode gives them.
//!
//! In: refusals of parsers, shards and limits. Out: `{"error":{"code":…,"message":…}}`, with the numbers of the client
//! protocol. By default an error of a command comes with status 200, as client libraries of Centrifugo's HTTP API expect;
//! with `X-Centrifugo-Error-Mode: transport` the status says it, too.
//! Invariant: 401, 413 and 504 are what they are in both modes.

use axum::http::{HeaderMap, StatusCode};
use ringway_engine::call::CallError;
use ringway_engine::lane_message::PublishError;
use schemars::JsonSchema;
use serde::Serialize;

use super::results::ApiResult;

/// Name of the header that asks for statuses.
pub(super) const MODE_HEADER: &str = "x-centrifugo-error-mode";

/// How errors of commands are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorMode {
    /// In the body alone, with status 200.
    Reply,
    /// Also by the status.
    Transport,
}

impl ErrorMode {
    /// Any other value of the header is as if it were not there.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        match headers.get(MODE_HEADER) {
            Some(value) if value.as_bytes() == b"transport" => ErrorMode::Transport,
            _ => ErrorMode::Reply,
        }
    }
}

/// Why a command failed.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Error")]
pub(super) struct ApiError {
    /// 100 internal, 101 unauthorized, 102 unknown channel, 103 permission denied, 104 not found, 106 limit exceeded,
    /// 107 bad request, 108 not available, 111 too many requests, 112 unrecoverable position, 113 conflict.
    pub(super) code: u32,
    /// For the developer who reads it; not a fixed text.
    pub(super) message: String,
    #[serde(skip)]
    pub(super) result: ApiResult,
    #[serde(skip)]
    status: Status,
}

/// Status of an error in each mode.
#[derive(Clone, Copy, Debug)]
enum Status {
    /// This one in both.
    Always(StatusCode),
    /// This one only in [`ErrorMode::Transport`].
    Transport(StatusCode),
}

impl ApiError {
    fn new(code: u32, result: ApiResult, status: Status, message: impl Into<String>) -> Self {
        ApiError { code, message: message.into(), result, status }
    }

    /// What is wrong with what was sent.
    pub(super) fn bad_request(text: impl AsRef<str>) -> Self {
        let message = format!("bad request: {}", text.as_ref());
        Self::new(107, ApiResult::BadRequest, Status::Transport(StatusCode::BAD_REQUEST), message)
    }

    pub(super) fn not_available(text: impl AsRef<str>) -> Self {
        let message = format!("not available: {}", text.as_ref());
        Self::new(108, ApiResult::Refused, Status::Transport(StatusCode::BAD_REQUEST), message)
    }

    /// Nothing wrong with what was sent, but not in the state that things are in.
    pub(super) fn conflict(text: impl AsRef<str>) -> Self {
        let message = format!("conflict: {}", text.as_ref());
        Self::new(113, ApiResult::Refused, Status::Transport(StatusCode::CONFLICT), message)
    }

    pub(super) fn unauthorized(key_is_set: bool) -> Self {
        let message =
            if key_is_set { "unauthorized" } else { "unauthorized: the HTTP API is off, control.api_key is not set" };
        Self::new(101, ApiResult::Unauthorized, Status::Always(StatusCode::UNAUTHORIZED), message)
    }

    pub(super) fn unknown_method() -> Self {
        Self::new(104, ApiResult::BadRequest, Status::Transport(StatusCode::NOT_FOUND), "method not found")
    }

    pub(super) fn body_too_large(bytes_max: usize) -> Self {
        let message = format!("limit exceeded: a request body has at most {bytes_max} bytes");
        Self::new(106, ApiResult::BadRequest, Status::Always(StatusCode::PAYLOAD_TOO_LARGE), message)
    }

    pub(super) fn payload_too_large(bytes_max: u32) -> Self {
        let message = format!("limit exceeded: a payload has at most {bytes_max} bytes");
        Self::new(106, ApiResult::Refused, Status::Always(StatusCode::PAYLOAD_TOO_LARGE), message)
    }

    /// Of anything but sizes in bytes.
    pub(super) fn limit_exceeded(text: impl AsRef<str>) -> Self {
        let message = format!("limit exceeded: {}", text.as_ref());
        Self::new(106, ApiResult::Refused, Status::Transport(StatusCode::BAD_REQUEST), message)
    }

    pub(super) fn busy() -> Self {
        Self::new(111, ApiResult::Busy, Status::Transport(StatusCode::TOO_MANY_REQUESTS), "too many requests")
    }

    pub(super) fn no_answer() -> Self {
        let message = "internal server error: no answer in time, it may have happened";
        Self::new(100, ApiResult::NoAnswer, Status::Always(StatusCode::GATEWAY_TIMEOUT), message)
    }

    pub(super) fn unknown_channel() -> Self {
        Self::new(102, ApiResult::Refused, Status::Transport(StatusCode::NOT_FOUND), "unknown channel")
    }

    pub(super) fn unrecoverable_position() -> Self {
        let status = Status::Transport(StatusCode::RANGE_NOT_SATISFIABLE);
        Self::new(112, ApiResult::Refused, status, "unrecoverable position")
    }

    /// Why the shards did not publish.
    pub(super) fn of_publish(error: PublishError, payload_bytes_max: u32) -> Self {
        match error {
            PublishError::UnknownChannel => Self::unknown_channel(),
            PublishError::PermissionDenied => {
                let status = Status::Transport(StatusCode::FORBIDDEN);
                Self::new(103, ApiResult::Refused, status, "permission denied")
            }
            // Well-formed, so not the status of a malformed request.
            PublishError::BadPayload => Self::new(
                107,
                ApiResult::Refused,
                Status::Transport(StatusCode::CONFLICT),
                "bad request: the channel's namespace takes the other kind of payload",
            ),
            PublishError::TooLarge => Self::payload_too_large(payload_bytes_max),
            PublishError::Busy => Self::busy(),
            // Not "too many requests": that says that nothing was done.
            PublishError::Unknown => Self::no_answer(),
        }
    }

    /// Why the shards did not do something else.
    pub(super) fn of_call(error: CallError) -> Self {
        match error {
            CallError::UnknownChannel => Self::unknown_channel(),
            CallError::NotAvailable => Self::not_available("the channel's namespace does not have it"),
            CallError::UnrecoverablePosition => Self::unrecoverable_position(),
            CallError::LimitExceeded => Self::limit_exceeded("the answer would be too large"),
            CallError::BadRequest => {
                ApiError { result: ApiResult::Refused, ..Self::bad_request("it makes no sense for this channel") }
            }
            CallError::Busy => Self::busy(),
        }
    }

    pub(super) fn status(&self, mode: ErrorMode) -> StatusCode {
        match (self.status, mode) {
            (Status::Always(status), _) | (Status::Transport(status), ErrorMode::Transport) => status,
            (Status::Transport(_), ErrorMode::Reply) => StatusCode::OK,
        }
    }
}
