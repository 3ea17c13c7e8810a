//! What a backend is and may: its hello, its credit, its events and calls, and what each of its frames means.
//!
//! In: decoded ingest frames. Out: decisions that `shard.rs` carries out, and acknowledgements collected over a turn.
//! Invariants: the credit told in the hello is never exceeded without ending the connection; calls without an answer
//! stay within `ingest_calls_in_flight_max`.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use ringway_wire::ingest::{
    Ack, FEATURE_CALLS, FEATURE_EVENTS, FEATURES, Hello, HelloOk, IngestError, PayloadKind, Publish, TakeEvents,
    VERSION,
};
use subtle::{Choice, ConstantTimeEq};
use xxhash_rust::xxh3::xxh3_64;

use crate::backends::{BackendId, BackendNotice};
use crate::call::{CallError, ChannelCount, ChannelsAnswer};
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
    /// What both sides can do.
    features: u32,
    /// The instance of its hello, folded.
    instance: u64,
    /// It has said which events it wants; every shard knows it.
    announced: bool,
    /// Calls not yet answered.
    calls: u32,
    /// Those of them whose answers come from every shard.
    gathers: Vec<Gather>,
}

/// A call whose answer is gathered from every shard.
#[derive(Debug)]
struct Gather {
    call: u32,
    shards_left: u16,
    limit: u32,
    total: u32,
    channels: BTreeMap<Box<str>, u32>,
    is_whole: bool,
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
        self.features = hello.features & FEATURES;
        self.instance = xxh3_64(&hello.instance);
        Ok(())
    }

    /// What the backend is told about the limits that hold for it.
    pub fn hello_ok<'a>(&self, limits: &Limits, boot: u64, node: &'a str) -> HelloOk<'a> {
        HelloOk {
            version: VERSION,
            features: self.features,
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

    /// Whether some publish or call is not answered yet.
    pub const fn has_outstanding(&self) -> bool {
        self.outstanding > 0 || self.calls > 0
    }

    /// Which events the backend wants from here on, for every shard of `shards`.
    ///
    /// # Errors
    /// [`IngestError::BadFrame`] when it did not say in its hello that it would take any.
    pub fn take_events(
        &mut self,
        take: TakeEvents,
        backend: BackendId,
        shards: u16,
    ) -> Result<BackendNotice, IngestError> {
        if self.features & FEATURE_EVENTS == 0 {
            return Err(IngestError::BadFrame);
        }
        self.announced = true;
        let window = if take.window == 0 { 0 } else { (take.window / u32::from(shards)).max(1) };
        Ok(BackendNotice { backend, instance: self.instance, kinds: take.kinds, window, gone: false })
    }

    /// Whether events may still be sent to it.
    pub const fn takes_events(&self) -> bool {
        self.announced
    }

    /// It takes no events and acknowledges none any more. None: no shard knows that it did.
    pub fn withdraw(&mut self, backend: BackendId) -> Option<BackendNotice> {
        let gone = BackendNotice { backend, instance: self.instance, kinds: Default::default(), window: 0, gone: true };
        core::mem::take(&mut self.announced).then_some(gone)
    }

    /// Takes in a call; it is to be answered.
    ///
    /// # Errors
    /// Fatal: it did not say in its hello that it would call.
    /// `Ok(false)`: too many are under way; it is to be answered busy, and [`Self::call_answered`] is not to be called.
    pub fn begin_call(&mut self, limits: &Limits) -> Result<bool, IngestError> {
        if self.features & FEATURE_CALLS == 0 {
            return Err(IngestError::BadFrame);
        }
        let within = self.calls < limits.ingest_calls_in_flight_max;
        self.calls += u32::from(within);
        Ok(within)
    }

    /// A call has its answer.
    pub const fn call_answered(&mut self) {
        self.calls = self.calls.saturating_sub(1);
    }

    /// A call that every shard answers.
    pub fn gather(&mut self, call: u32, shards_left: u16, limit: u32) {
        self.gathers.push(Gather { call, shards_left, limit, total: 0, channels: BTreeMap::new(), is_whole: true });
    }

    /// One shard's answer to such a call. The whole of it with the last one: channels by name, and how many there are.
    ///
    /// # Errors
    /// Somebody had too much to do.
    pub fn gathered(
        &mut self,
        call: u32,
        answer: ChannelsAnswer,
    ) -> Option<Result<(Vec<ChannelCount>, u32), CallError>> {
        let index = self.gathers.iter().position(|gather| gather.call == call)?;
        let gather = &mut self.gathers[index];
        gather.total = gather.total.saturating_add(answer.total);
        gather.is_whole &= answer.is_whole;
        for ChannelCount { channel, clients } in answer.channels {
            *gather.channels.entry(channel).or_default() += clients;
        }
        gather.shards_left = gather.shards_left.saturating_sub(1);
        if gather.shards_left > 0 {
            return None;
        }
        let Gather { limit, total, channels, is_whole, .. } = self.gathers.swap_remove(index);
        let channels = channels.into_iter().take(limit as usize);
        let channels = channels.map(|(channel, clients)| ChannelCount { channel, clients }).collect();
        Some(if is_whole { Ok((channels, total)) } else { Err(CallError::Busy) })
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
        // A backend that publishes again under the same key is given the first position, whatever happened.
        PublishError::Busy => IngestError::Busy,
        // Not busy: that says that nothing was done.
        PublishError::Unknown => IngestError::InternalError,
    }
}

/// A call's refusal as the backend sees it.
pub const fn call_error_of(error: CallError) -> IngestError {
    match error {
        CallError::UnknownChannel => IngestError::UnknownChannel,
        CallError::NotAvailable => IngestError::NotAvailable,
        CallError::UnrecoverablePosition => IngestError::UnrecoverablePosition,
        CallError::LimitExceeded => IngestError::LimitExceeded,
        CallError::BadRequest => IngestError::BadRequest,
        CallError::Busy => IngestError::Busy,
    }
}
