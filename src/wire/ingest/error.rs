//! The ingest error table: every answer to a backend that is not an acknowledgement, in one place.
//!
//! In: nothing. Out: for each [`IngestError`] its number on the wire, its text, its metric label, whether trying again
//! can help (temporary) and whether it ends the connection (fatal). `docs/INGEST.md` repeats the table; a test
//! compares the two.
//!
//! Invariants: a number is never given to another meaning. 1xx refuse one publish or call for good, 2xx refuse one for
//! now, 3xx end the connection. Whoever reads an unknown number acts on its flags, which travel beside it.

use core::fmt;

macro_rules! error_table {
    ($( $(#[doc = $doc:literal])+ $variant:ident = $code:literal, $text:literal, $label:literal, $temporary:literal; )+) => {
        /// Why a publish was refused or a backend's connection ended. One row each in the error table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum IngestError { $( $(#[doc = $doc])+ $variant, )+ }

        impl IngestError {
            /// All errors, in table order; `error as usize` indexes it.
            pub const ALL: &'static [IngestError] = &[ $( IngestError::$variant, )+ ];

            /// The number on the wire.
            pub const fn code(self) -> u16 { match self { $( IngestError::$variant => $code, )+ } }

            /// The text on the wire, at most 255 bytes of ASCII.
            pub const fn text(self) -> &'static str { match self { $( IngestError::$variant => $text, )+ } }

            /// The value of a `reason` label in metrics and logs.
            pub const fn label(self) -> &'static str { match self { $( IngestError::$variant => $label, )+ } }

            /// Whether the same request may succeed later, here or at another node.
            pub const fn temporary(self) -> bool { match self { $( IngestError::$variant => $temporary, )+ } }

            /// What it means and what to do about it, for the documentation.
            pub const fn help(self) -> &'static str { match self { $( IngestError::$variant => concat!($($doc),+), )+ } }
        }
    };
}

error_table! {
    /// The channel's prefix is not a configured namespace, or the name is empty or malformed.
    UnknownChannel = 100, "unknown channel", "unknown_channel", false;
    /// This backend may not publish there.
    PermissionDenied = 101, "permission denied", "permission_denied", false;
    /// The namespace wants JSON and the payload is none, or the kinds differ.
    BadPayload = 102, "bad payload", "bad_payload", false;
    /// The payload is over `publication_bytes_max`, or the idempotency key over the gateway's limit.
    TooLarge = 103, "too large", "too_large", false;
    /// The namespace does not have what the call asks for (presence, history), or the gateway does not take calls.
    NotAvailable = 104, "not available", "not_available", false;
    /// The position that the call names is of another epoch, or not kept any more.
    UnrecoverablePosition = 105, "unrecoverable position", "unrecoverable_position", false;
    /// The answer to the call would be larger than a limit allows; ask for less.
    LimitExceeded = 106, "limit exceeded", "limit_exceeded", false;
    /// What the call asks for makes no sense: an empty user, a code out of its range, info that is not JSON.
    BadRequest = 107, "bad request", "bad_request", false;
    /// A limit of the node was reached, or it is draining; nothing was published or done.
    Busy = 200, "busy", "busy", true;
    /// Something failed on our side and the outcome is not known; the same idempotency key makes another try safe.
    InternalError = 201, "internal error", "internal_error", true;
    /// The bytes are not a frame of this protocol; a bug of the sender.
    BadFrame = 300, "bad frame", "bad_frame", false;
    /// The token of the hello is not one of the gateway's.
    BadToken = 301, "bad token", "bad_token", false;
    /// No version of the protocol is spoken by both sides.
    VersionUnsupported = 302, "version unsupported", "version_unsupported", false;
    /// More was outstanding than the largest window ever granted on the connection; a bug of the sender.
    CreditExceeded = 303, "credit exceeded", "credit_exceeded", false;
    /// A frame announced more than `frame_bytes_max`.
    FrameTooLarge = 304, "frame too large", "frame_too_large", false;
    /// No complete hello within the gateway's `handshake_timeout_ms`.
    HelloTimeout = 305, "hello timeout", "hello_timeout", true;
    /// Nothing was heard for twice `idle_timeout_ms`, pings included.
    IdleTimeout = 306, "idle timeout", "idle_timeout", true;
    /// The backend did not read its acknowledgements.
    Slow = 308, "slow", "slow", true;
    /// The node stops; go to another address or come back later.
    Shutdown = 307, "shutdown", "shutdown", true;
}

impl IngestError {
    /// How many errors there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Whether it ends the connection.
    pub const fn fatal(self) -> bool {
        self.code() >= 300
    }

    /// The error with this number, or none when the peer is newer.
    pub fn from_code(code: u16) -> Option<IngestError> {
        Self::ALL.iter().copied().find(|error| error.code() == code)
    }
}

impl fmt::Display for IngestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl core::error::Error for IngestError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_in_their_range() {
        for (index, error) in IngestError::ALL.iter().enumerate() {
            assert_eq!(*error as usize, index);
            assert_eq!(IngestError::from_code(error.code()), Some(*error));
            assert!(error.text().is_ascii() && !error.text().is_empty() && error.text().len() <= 255);
            match error.code() {
                100..200 => assert!(!error.temporary() && !error.fatal(), "{error:?}"),
                200..300 => assert!(error.temporary() && !error.fatal(), "{error:?}"),
                300..400 => assert!(error.fatal(), "{error:?}"),
                other => panic!("{other} is in no range"),
            }
        }
        assert_eq!(IngestError::from_code(0), None);
    }
}
