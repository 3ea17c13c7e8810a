//! What a backend is and may: its hello, its credit, and what each of its frames means.
//!
//! In: decoded ingest frames. Out: decisions that `shard.rs` carries out, and acknowledgements collected over a turn.
//! Invariant: the credit told in the hello is never exceeded without ending the connection.

use alloc::boxed::Box;
use alloc::vec::Vec;

use ringway_wire::ingest::{Ack, Hello, HelloOk, IngestError, PayloadKind, Publish, VERSION};
use subtle::{Choice, ConstantTimeEq};

use crate::lane_message::PublishError;
use crate::limits::Limits;
use crate::namespace::{Namespaces, channel_is_valid};

/// A backend's state between its frames.
#[derive(Debug, Default)]
pub struct IngestSession {
    /// Its hello was answered.
    pub ready: bool,
    /// A ping is out and nothing has come since.
    pub awaiting_pong: bool,
    /// It stands on the shard's list of sessions with acknowledgements to write.
    pub listed: bool,
    /// The backend has shut its side and waits for its last acknowledgements.
    pub finished: bool,
    /// Publishes not yet answered.
    outstanding: u32,
    /// Their payload bytes.
    outstanding_bytes: u64,
    /// Answered in this turn.
    acks: Vec<Ack>,
}

impl IngestSession {
    /// Checks a hello.
    ///
    /// # Errors
    /// The fatal error that the backend gets.
    pub fn hello(&mut self, hello: &Hello<'_>, tokens: &[Box<[u8]>]) -> Result<(), IngestError> {
        if self.ready {
            return Err(IngestError::BadFrame);
        }
        hello.version()?;
        // Every token is compared, in constant time each, so that time tells nothing about any of them.
        let known = tokens.iter().fold(Choice::from(0), |known, token| known | token.ct_eq(hello.token));
        if !bool::from(known) {
            return Err(IngestError::BadToken);
        }
        self.ready = true;
        Ok(())
    }

    /// What the backend is told about the limits that hold for it.
    pub fn hello_ok<'a>(limits: &Limits, boot: u64, node: &'a str) -> HelloOk<'a> {
        HelloOk {
            version: VERSION,
            features: 0,
            boot,
            credit_messages: limits.ingest_credit_messages,
            credit_bytes: limits.ingest_credit_bytes as u64,
            frame_bytes_max: limits.ingest_frame_bytes_max,
            publication_bytes_max: limits.publication_bytes_max,
            idempotency_window_ms: limits.idempotency_window_ms,
            idle_timeout_ms: limits.ingest_idle_timeout_ms,
            node,
        }
    }

    /// Takes credit for a publish.
    ///
    /// # Errors
    /// [`IngestError::CreditExceeded`], which ends the connection.
    pub fn take_credit(&mut self, payload_bytes: usize, limits: &Limits) -> Result<(), IngestError> {
        self.outstanding += 1;
        self.outstanding_bytes += payload_bytes as u64;
        let within = self.outstanding <= limits.ingest_credit_messages
            && self.outstanding_bytes <= limits.ingest_credit_bytes as u64;
        if within { Ok(()) } else { Err(IngestError::CreditExceeded) }
    }

    /// Returns a publish's credit.
    pub fn return_credit(&mut self, payload_bytes: u32) {
        self.outstanding = self.outstanding.saturating_sub(1);
        self.outstanding_bytes = self.outstanding_bytes.saturating_sub(payload_bytes as u64);
    }

    /// Whether some publish is not answered yet.
    pub const fn has_outstanding(&self) -> bool {
        self.outstanding > 0
    }

    /// Collects an acknowledgement.
    pub fn acknowledge(&mut self, ack: Ack) {
        self.acks.push(ack);
    }

    /// The acknowledgements of this turn.
    pub fn take_acks(&mut self) -> alloc::vec::Drain<'_, Ack> {
        self.acks.drain(..)
    }
}

/// Whether a publish may go to the channel's owner; the payload itself is checked by the caller.
///
/// # Errors
/// Why not; the backend gets it for this one publish.
pub fn check(publish: &Publish<'_>, limits: &Limits, namespaces: &Namespaces) -> Result<PayloadKind, PublishError> {
    if !channel_is_valid(publish.channel, limits) {
        return Err(PublishError::UnknownChannel);
    }
    if publish.payload.len() > limits.publication_bytes_max as usize
        || publish.idempotency_key.len() > limits.idempotency_key_bytes_max as usize
    {
        return Err(PublishError::TooLarge);
    }
    let (_, namespace) = namespaces.resolve(publish.channel).ok_or(PublishError::UnknownChannel)?;
    if namespace.payload != publish.kind || publish.payload.is_empty() {
        return Err(PublishError::BadPayload);
    }
    Ok(publish.kind)
}

/// A publish's refusal as the backend sees it.
pub const fn error_of(error: PublishError) -> IngestError {
    match error {
        PublishError::UnknownChannel => IngestError::UnknownChannel,
        PublishError::PermissionDenied => IngestError::PermissionDenied,
        PublishError::BadPayload => IngestError::BadPayload,
        PublishError::TooLarge => IngestError::TooLarge,
        PublishError::Busy => IngestError::Busy,
    }
}
