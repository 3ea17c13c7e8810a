//! JSON texts: the check of payloads, string escapes, and the writer of JSON fields.
//!
//! In: payloads of publishers before they are embedded in pushes; values of replies from `reply` and `push`. Out:
//! whether a text may be embedded; JSON appended to a buffer.
//!
//! Invariants: what [`check`] accepts is exactly RFC 8259 within [`DEPTH_MAX`], given that the text is UTF-8; nothing
//! that is written here contains a raw newline of our own, because newlines separate replies.

use alloc::vec::Vec;
use core::fmt;

use super::fields::{Empty, WriteFields};
use super::json_scan::Scan;
use super::json_string::plain_len;
use super::reply::Tag;

/// Containers that may stand inside each other in a payload or an unknown field.
pub const DEPTH_MAX: u32 = 128;

/// What is wrong with a JSON text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonErrorKind {
    /// The text ends inside a value, or holds none.
    End,
    /// A byte that cannot stand here.
    Unexpected,
    /// An escape that JSON does not have.
    Escape,
    /// A raw control character inside a string.
    Control,
    /// A number without digits where there must be one.
    Number,
    /// More than [`DEPTH_MAX`] containers inside each other.
    TooDeep,
}

/// A JSON text is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JsonError {
    /// What is wrong.
    pub kind: JsonErrorKind,
    /// Byte index at which it was noticed.
    pub at: usize,
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.kind {
            JsonErrorKind::End => "the text ends inside a value",
            JsonErrorKind::Unexpected => "unexpected byte",
            JsonErrorKind::Escape => "unknown escape",
            JsonErrorKind::Control => "raw control character in a string",
            JsonErrorKind::Number => "incomplete number",
            JsonErrorKind::TooDeep => "too many containers inside each other",
        };
        write!(f, "{text} at byte {}", self.at)
    }
}

impl core::error::Error for JsonError {}

/// Checks that `text` is one complete JSON value (RFC 8259), in one pass and without allocation. That it is UTF-8
/// must have been checked before. Numbers may have any size; lone surrogate escapes are allowed (RFC 8259 §8.2).
///
/// `Ok(true)`: raw `\n` or `\r` stand between tokens; [`remove_newlines`] must take them out before the text is
/// embedded in a reply.
pub fn check(text: &[u8]) -> Result<bool, JsonError> {
    let mut scan = Scan::text(text);
    scan.value().map_err(|kind| JsonError { kind, at: scan.at })?;
    scan.whitespace();
    if scan.at < text.len() {
        return Err(JsonError { kind: JsonErrorKind::Unexpected, at: scan.at });
    }
    Ok(scan.newline_seen)
}

/// Takes the raw newlines out of a text that [`check`] has accepted. They can only stand between tokens, and never
/// are all that separates two of them, so the value stays the same.
pub fn remove_newlines(text: &mut Vec<u8>) {
    text.retain(|&byte| byte != b'\n' && byte != b'\r');
}

/// Appends `value` as a JSON string, quotes included.
pub fn write_string(out: &mut Vec<u8>, value: &str) {
    write_text(out, value.as_bytes());
}

/// As [`write_string`], of bytes that are known to be UTF-8.
fn write_text(out: &mut Vec<u8>, mut rest: &[u8]) {
    out.reserve(rest.len() + 2);
    out.push(b'"');
    loop {
        let plain = plain_len(rest);
        out.extend_from_slice(&rest[..plain]);
        let Some(&byte) = rest.get(plain) else { break };
        write_escape(out, byte);
        rest = &rest[plain + 1..];
    }
    out.push(b'"');
}

/// Appends the escape of a quote, a backslash or a control character.
fn write_escape(out: &mut Vec<u8>, byte: u8) {
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        8 => b'b',
        12 => b'f',
        _ => {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

/// Appends `value` in decimal.
fn write_unsigned(out: &mut Vec<u8>, mut value: u64) {
    const DIGITS_MAX: usize = 20;
    let mut digits = [0; DIGITS_MAX];
    let mut at = DIGITS_MAX;
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends `value` in decimal.
pub(super) fn write_signed(out: &mut Vec<u8>, value: i64) {
    if value < 0 {
        out.push(b'-');
    }
    write_unsigned(out, value.unsigned_abs());
}

/// Writes the fields of a JSON object behind its `{`.
pub(super) struct JsonFields<'o>(pub(super) &'o mut Vec<u8>);

impl JsonFields<'_> {
    fn name(&mut self, name: &str) {
        // A complete value never ends with an opening bracket, so the last byte tells whether this is the first field.
        if !matches!(self.0.last(), None | Some(b'{')) {
            self.0.push(b',');
        }
        self.0.push(b'"');
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    pub(super) fn object(&mut self, write: impl FnOnce(&mut Self)) {
        self.0.push(b'{');
        write(self);
        self.0.push(b'}');
    }
}

impl WriteFields for JsonFields<'_> {
    fn string(&mut self, number: u32, name: &str, value: &str) {
        if !value.is_empty() {
            self.string_always(number, name, value);
        }
    }

    fn string_always(&mut self, _: u32, name: &str, value: &str) {
        self.name(name);
        write_string(self.0, value);
    }

    fn data(&mut self, _: u32, name: &str, value: &[u8]) {
        if !value.is_empty() {
            self.name(name);
            self.0.extend_from_slice(value);
        }
    }

    fn text_data(&mut self, _: u32, name: &str, value: &[u8]) {
        if !value.is_empty() {
            self.name(name);
            write_text(self.0, value);
        }
    }

    fn boolean(&mut self, _: u32, name: &str, value: bool) {
        if value {
            self.name(name);
            self.0.extend_from_slice(b"true");
        }
    }

    fn unsigned(&mut self, number: u32, name: &str, value: u64) {
        if value != 0 {
            self.unsigned_always(number, name, value);
        }
    }

    fn unsigned_always(&mut self, _: u32, name: &str, value: u64) {
        self.name(name);
        write_unsigned(self.0, value);
    }

    fn signed(&mut self, _: u32, name: &str, value: i64) {
        if value != 0 {
            self.name(name);
            write_signed(self.0, value);
        }
    }

    fn message(&mut self, _: u32, name: &str, write: impl FnOnce(&mut Self)) {
        self.name(name);
        self.object(write);
    }

    fn repeated<T>(
        &mut self,
        _: u32,
        name: &str,
        empty: Empty,
        items: impl Iterator<Item = T>,
        write: impl Fn(&mut Self, T),
    ) {
        let mut items = items.peekable();
        if items.peek().is_none() && empty == Empty::Omit {
            return;
        }
        self.name(name);
        self.0.push(b'[');
        let mut first = true;
        for item in items {
            if !first {
                self.0.push(b',');
            }
            first = false;
            self.object(|fields| write(fields, item));
        }
        self.0.push(b']');
    }

    fn map<'k, T>(
        &mut self,
        _: u32,
        name: &str,
        empty: Empty,
        entries: impl Iterator<Item = (&'k str, T)>,
        write: impl Fn(&mut Self, T),
    ) {
        let mut entries = entries.peekable();
        if entries.peek().is_none() && empty == Empty::Omit {
            return;
        }
        self.name(name);
        self.object(|fields| {
            let mut first = true;
            for (key, value) in entries {
                if !first {
                    fields.0.push(b',');
                }
                first = false;
                write_string(fields.0, key);
                fields.0.push(b':');
                fields.object(|fields| write(fields, value));
            }
        });
    }

    fn string_map(&mut self, _: u32, name: &str, entries: &[Tag]) {
        if entries.is_empty() {
            return;
        }
        self.name(name);
        self.object(|fields| {
            for (index, (key, value)) in entries.iter().enumerate() {
                if index > 0 {
                    fields.0.push(b',');
                }
                write_string(fields.0, key);
                fields.0.push(b':');
                write_string(fields.0, value);
            }
        });
    }
}
