//! Which offer of permessage-deflate is accepted, and with what answer (RFC 7692 §5, §7.1).
//!
//! In: the value of a `Sec-WebSocket-Extensions` header. Out: a [`Deflate`], which writes its own answer.
//! Invariants: the first offer that can be honoured is accepted; a malformed one is declined as if it were not there and
//! never ends the connection; the answer always has both `no_context_takeover`, which a server may say unasked
//! (§7.1.1.1, §7.1.1.2), and nothing of the request is copied into it.

use alloc::vec::Vec;

use super::SERVER_WINDOW_BITS;

/// The extension's name (§7).
const NAME: &[u8] = b"permessage-deflate";

/// An accepted offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deflate {
    /// The client named the largest window for server messages, so the answer must name ours (§7.1.2.1).
    pub names_window: bool,
}

impl Deflate {
    /// Appends the value of the answer's `Sec-WebSocket-Extensions`.
    pub fn write_answer(self, out: &mut Vec<u8>) {
        out.extend_from_slice(NAME);
        out.extend_from_slice(b"; server_no_context_takeover; client_no_context_takeover");
        if self.names_window {
            const { assert!(SERVER_WINDOW_BITS == 12) };
            out.extend_from_slice(b"; server_max_window_bits=12");
        }
    }
}

/// The first acceptable offer of permessage-deflate in the value of one `Sec-WebSocket-Extensions` header.
pub fn accept_offer(value: &[u8]) -> Option<Deflate> {
    Unquoted::new(value, b',').find_map(parse)
}

/// Parameters that have been seen; each may come once (§7.1).
#[derive(Default)]
struct Seen {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_max_window_bits: bool,
    client_max_window_bits: bool,
}

/// One offer: a name and parameters. None: another extension, or one that cannot be honoured.
fn parse(offer: &[u8]) -> Option<Deflate> {
    let mut parts = Unquoted::new(offer, b';');
    if parts.next()?.trim_ascii() != NAME {
        return None;
    }
    let mut seen = Seen::default();
    for part in parts {
        let (name, value) = match memchr::memchr(b'=', part) {
            Some(at) => (part[..at].trim_ascii(), Some(part[at + 1..].trim_ascii())),
            None => (part.trim_ascii(), None),
        };
        let (place, valid) = match name {
            b"server_no_context_takeover" => (&mut seen.server_no_context_takeover, value.is_none()),
            b"client_no_context_takeover" => (&mut seen.client_no_context_takeover, value.is_none()),
            // One frame serves all connections, so all must take the window it was made with.
            b"server_max_window_bits" => {
                let fits = value.and_then(bits).is_some_and(|bits| bits >= SERVER_WINDOW_BITS);
                (&mut seen.server_max_window_bits, fits)
            }
            // A hint, with or without a value (§7.1.2.2): the inflater takes any window.
            b"client_max_window_bits" => {
                (&mut seen.client_max_window_bits, value.is_none_or(|value| bits(value).is_some()))
            }
            _ => return None,
        };
        if core::mem::replace(place, true) || !valid {
            return None;
        }
    }
    Some(Deflate { names_window: seen.server_max_window_bits })
}

/// A number of window bits, 8 to 15 without leading zeros, as a token or a quoted string (§7.1.2, RFC 6455 §9.1).
fn bits(value: &[u8]) -> Option<u8> {
    let mut digits = [0; 2];
    let mut len = 0;
    let mut push = |digit: u8| {
        *digits.get_mut(len)? = digit;
        len += 1;
        Some(())
    };
    match value {
        [b'"', quoted @ .., b'"'] => {
            let mut rest = quoted.iter();
            while let Some(&byte) = rest.next() {
                push(if byte == b'\\' { *rest.next()? } else { byte })?;
            }
        }
        _ => value.iter().try_for_each(|&byte| push(byte))?,
    }
    match &digits[..len] {
        [digit @ b'8'..=b'9'] => Some(digit - b'0'),
        [b'1', digit @ b'0'..=b'5'] => Some(10 + digit - b'0'),
        _ => None,
    }
}

/// The parts of a header value between separators that stand in no quoted string.
struct Unquoted<'a> {
    rest: Option<&'a [u8]>,
    separator: u8,
}

impl<'a> Unquoted<'a> {
    fn new(value: &'a [u8], separator: u8) -> Self {
        Unquoted { rest: Some(value), separator }
    }
}

impl<'a> Iterator for Unquoted<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest?;
        let (mut quoted, mut escaped) = (false, false);
        for (at, &byte) in rest.iter().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                _ if byte == self.separator && !quoted => {
                    self.rest = Some(&rest[at + 1..]);
                    return Some(&rest[..at]);
                }
                _ => {}
            }
        }
        self.rest = None;
        Some(rest)
    }
}
