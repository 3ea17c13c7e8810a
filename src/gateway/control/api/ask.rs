//! Sending calls to the shards and waiting for their answers.
//!
//! In: calls of the methods. Out: answers, or the error that the caller is told. Invariants: sending never waits (a full
//! queue is "too many requests"); all commands of one request share one deadline; what a method sends is on its way when
//! `start` returns, so that a batch costs one round trip to the shards and not one per command.

use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::error::ApiError;
use super::results::ApiResults;
use crate::control::call::{Answer, Call};
use crate::control::{ControlOptions, Plane};

/// An answer on its way.
pub(super) type Work<T> = Pin<Box<dyn Future<Output = Result<T, ApiError>> + Send>>;

/// A request body of one method.
pub(super) trait Start {
    /// What a success says.
    type Result;

    /// Checks it and sends what there is to send.
    fn start(self, asking: &Asking<'_>) -> Work<Self::Result>;
}

/// What a command needs to be carried out.
#[derive(Clone, Copy)]
pub(super) struct Asking<'a> {
    pub(super) plane: &'a Plane,
    deadline: Instant,
}

impl<'a> Asking<'a> {
    /// The clock starts now.
    pub(super) fn new(plane: &'a Plane) -> Self {
        let deadline = Instant::now() + Duration::from_millis(plane.options.answer_timeout_ms);
        Asking { plane, deadline }
    }

    pub(super) fn options(&self) -> &'a ControlOptions {
        &self.plane.options
    }

    pub(super) fn results(&self) -> &'a ApiResults {
        &self.plane.api_results
    }

    /// Sends a call; its answer is waited for by [`Waiting::answer`].
    ///
    /// # Errors
    /// The queue is full or gone.
    pub(super) fn send<T, E>(&self, call: impl FnOnce(Answer<T, E>) -> Call) -> Result<Waiting<T, E>, ApiError> {
        let (reply, answer) = oneshot::channel();
        match self.plane.calls.try_send(call(reply)) {
            Ok(()) => Ok(Waiting { answer, deadline: self.deadline }),
            Err(TrySendError::Full(_)) => Err(ApiError::busy()),
            Err(TrySendError::Closed(_)) => Err(ApiError::no_answer()),
        }
    }

    /// A channel that the shards can be asked about.
    ///
    /// # Errors
    /// The name is empty or too long.
    pub(super) fn channel(&self, name: String) -> Result<String, ApiError> {
        text("channel", name, self.options().channel_bytes_max)
    }
}

/// A call that is under way.
pub(super) struct Waiting<T, E> {
    answer: oneshot::Receiver<Result<T, E>>,
    deadline: Instant,
}

impl<T, E> Waiting<T, E> {
    /// # Errors
    /// The shards' own refusal through `refused`, or none of them answered in time.
    pub(super) async fn answer(self, refused: impl FnOnce(E) -> ApiError) -> Result<T, ApiError> {
        match tokio::time::timeout_at(self.deadline, self.answer).await {
            Ok(Ok(answer)) => answer.map_err(refused),
            Ok(Err(_)) | Err(_) => Err(ApiError::no_answer()),
        }
    }
}

/// What is known at once.
pub(super) fn at_once<T: Send + 'static>(result: Result<T, ApiError>) -> Work<T> {
    Box::pin(std::future::ready(result))
}

/// Either the work that was begun, or at once the reason why not.
pub(super) fn begun<T: Send + 'static>(work: Result<Work<T>, ApiError>) -> Work<T> {
    work.unwrap_or_else(|error| at_once(Err(error)))
}

/// A text that must be there.
///
/// # Errors
/// It is empty or too long.
pub(super) fn text(what: &str, text: String, bytes_max: u32) -> Result<String, ApiError> {
    if text.is_empty() || text.len() > bytes_max as usize {
        return Err(ApiError::bad_request(format!("{what} must have 1 to {bytes_max} bytes")));
    }
    Ok(text)
}

/// Refuses a field that is part of Centrifugo's API and cannot be honoured here.
///
/// # Errors
/// It was used.
pub(super) fn refuse(used: bool, field: &str) -> Result<(), ApiError> {
    if used { Err(ApiError::bad_request(format!("{field} is not available"))) } else { Ok(()) }
}
