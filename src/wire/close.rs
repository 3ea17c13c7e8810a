//! The close table: every reason for which Ringway ends a client connection, in one place.
//!
//! In: nothing. Out: for each [`CloseReason`] its WebSocket close code, its text on the wire, its metric label, and
//! whether the SDKs come back (CLIENT-PROTOCOL: 3500–3999 and 4500–4999 are terminal, all else reconnects).
//! `tuning/CLOSE_CODES.md` is generated from this table.
//!
//! Invariants: a text is never empty and never parses as JSON (SDKs try the reason as JSON first), is ASCII, and fits
//! a control frame (123 bytes). A reason that comes from overload or from our side is never a terminal code.

macro_rules! close_table {
    ($( $(#[doc = $doc:literal])+ $variant:ident = $code:literal, $text:literal, $label:literal; )+) => {
        /// Why Ringway ends a client connection. One row each in the close table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum CloseReason { $( $(#[doc = $doc])+ $variant, )+ }

        impl CloseReason {
            /// All reasons, in table order; `reason as usize` indexes it.
            pub const ALL: &'static [CloseReason] = &[ $( CloseReason::$variant, )+ ];

            /// The WebSocket close code (RFC 6455 §7.4, and the 3000–4999 range of the client protocol).
            pub const fn code(self) -> u16 { match self { $( CloseReason::$variant => $code, )+ } }

            /// The reason text of the Close frame.
            pub const fn text(self) -> &'static str { match self { $( CloseReason::$variant => $text, )+ } }

            /// The value of the `reason` label in metrics and logs.
            pub const fn label(self) -> &'static str { match self { $( CloseReason::$variant => $label, )+ } }

            /// What it means and what to do about it, for the generated page.
            pub const fn help(self) -> &'static str { match self { $( CloseReason::$variant => concat!($($doc),+), )+ } }
        }
    };
}

close_table! {
    /// The peer closed properly, or we answer its Close frame.
    Normal = 1000, "normal closure", "normal";
    /// A frame broke RFC 6455 (reserved bits, unmasked frame, bad length form, bad fragmentation).
    ProtocolError = 1002, "websocket protocol error", "ws_protocol_error";
    /// A text message or a close reason was not UTF-8.
    InvalidUtf8 = 1007, "invalid utf-8", "invalid_utf8";
    /// A message was longer than `message_bytes_max`.
    MessageTooBig = 1009, "message too big", "message_too_big";
    /// The node is draining or stopping; the client reconnects and recovers.
    Shutdown = 3001, "shutdown", "shutdown";
    /// The connection's token has expired and no new one came; the client fetches one and reconnects.
    Expired = 3005, "connection expired", "expired";
    /// A server-side subscription has expired; the client reconnects with a new token.
    SubscriptionExpired = 3006, "subscription expired", "subscription_expired";
    /// The client read slower than its messages came and its outbox reached `outbox_bytes_max`.
    Slow = 3008, "slow", "slow";
    /// Publications of a server-side subscription were lost on the way; the client reconnects and recovers.
    InsufficientState = 3010, "insufficient state", "insufficient_state";
    /// No pong (or other byte) within `pong_timeout_ms` after a ping: a dead or half-open peer.
    NoPong = 3012, "no pong", "no_pong";
    /// A limit of this node is reached; the client reconnects after a while.
    TooManyRequests = 3013, "too many requests", "too_many_requests";
    /// The connection did not send its connect command within `connect_timeout_ms`; may be our own overload, so not
    /// the terminal 3502.
    ConnectTimeout = 4000, "connect timeout", "connect_timeout";
    /// The connect command carried a token that is not valid here.
    InvalidToken = 3500, "invalid token", "invalid_token";
    /// A command broke the client protocol: not decodable, wrong order, missing id.
    BadRequest = 3501, "bad request", "bad_request";
    /// A backend has ended the connection; it may have chosen another code and text.
    ForceDisconnect = 3503, "force disconnect", "force_disconnect";
    /// The user has `connections_per_user_max` connections on this node, or on all nodes of the fleet together.
    ConnectionLimit = 3504, "connection limit", "connection_limit";
    /// The connection tried what its identity does not allow at all.
    PermissionDenied = 3507, "permission denied", "permission_denied";
}

impl CloseReason {
    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Whether the published SDKs reconnect after this close.
    pub const fn reconnects(self) -> bool {
        !matches!(self.code(), 3500..=3999 | 4500..=4999)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_safe_for_every_sdk() {
        for reason in CloseReason::ALL {
            let text = reason.text();
            assert!(!text.is_empty() && text.is_ascii() && text.len() <= 123, "{reason:?}");
            // centrifuge-js tries JSON first: a word that is no JSON literal, number, string, object or array is safe.
            let first = text.as_bytes()[0];
            assert!(first.is_ascii_lowercase() && !matches!(text, "true" | "false" | "null"), "{reason:?}");
        }
    }

    #[test]
    fn overload_is_never_terminal() {
        for reason in [CloseReason::Slow, CloseReason::ConnectTimeout, CloseReason::Shutdown, CloseReason::NoPong] {
            assert!(reason.reconnects(), "{reason:?}");
        }
        assert!(!CloseReason::BadRequest.reconnects());
    }
}
