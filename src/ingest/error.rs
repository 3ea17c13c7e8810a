//! What can go wrong, as the backend sees it.
//!
//! In: refusals from the wire, bounds of the client, errors of sockets. Out: values that clone and print.

use std::fmt;

use ringway_wire::ingest::{self, IngestError};

/// Why the gateway refused something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its number; [`Refusal::error`] gives the known ones a name.
    pub code: u16,
    /// Whether trying again can help.
    pub temporary: bool,
    /// For people.
    pub text: Box<str>,
}

impl Refusal {
    /// The error with this code, or none when the gateway is newer than this library.
    pub fn error(&self) -> Option<IngestError> {
        IngestError::from_code(self.code)
    }
}

impl From<IngestError> for Refusal {
    fn from(error: IngestError) -> Self {
        Refusal { code: error.code(), temporary: error.temporary(), text: error.text().into() }
    }
}

impl From<ingest::Refusal<'_>> for Refusal {
    fn from(refusal: ingest::Refusal<'_>) -> Self {
        Refusal { code: refusal.code, temporary: refusal.temporary, text: refusal.text.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text, self.code)
    }
}

/// Why a publish was not taken, or not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishError {
    /// The client's buffer is at a bound; nothing was kept. Wait for outcomes, or use the blocking call.
    Full,
    /// Channel, key or payload can never be sent: an empty or over-long channel (255 bytes), a key over 64 bytes, or
    /// more than `buffered_bytes_max` in all.
    Invalid(&'static str),
    /// The gateway refused it; temporary refusals too are left to the caller.
    Refused(Refusal),
    /// The client was closed first. If it had been sent, it may have been published.
    Closed,
    /// The gateway ended the connection for good, e.g. for a wrong token. If it had been sent, it may have been
    /// published.
    Failed(Refusal),
    /// The time of the call ran out; the publish itself goes on.
    Timeout,
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PublishError::Full => f.write_str("the client's buffer is full"),
            PublishError::Invalid(what) => f.write_str(what),
            PublishError::Refused(refusal) => write!(f, "refused: {refusal}"),
            PublishError::Closed => f.write_str("the client was closed"),
            PublishError::Failed(refusal) => write!(f, "the gateway ended the connection: {refusal}"),
            PublishError::Timeout => f.write_str("no outcome in time"),
        }
    }
}

impl std::error::Error for PublishError {}

/// Why there is no client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// A field of the configuration is out of range.
    Config(&'static str),
    /// A thread could not be started.
    Thread(Box<str>),
    /// A gateway answered, and will not change its mind.
    Refused(Refusal),
    /// No gateway answered the hello in time; the text is the last attempt's.
    Unreachable(Box<str>),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Config(what) => write!(f, "configuration: {what}"),
            ConnectError::Thread(what) => write!(f, "no thread: {what}"),
            ConnectError::Refused(refusal) => write!(f, "refused: {refusal}"),
            ConnectError::Unreachable(what) => write!(f, "no gateway reached: {what}"),
        }
    }
}

impl std::error::Error for ConnectError {}
