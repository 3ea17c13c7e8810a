//! What the two forms have in common: fields that are read and written one after the other.
//!
//! In: `command` and `reply`, which describe each message once, with the number and the name of each field. Out:
//! calls to `json_scan` and `json` (fields by name) or `protobuf` (fields by number).
//!
//! Invariants: a field that holds its zero value is not written, unless the method says `always`; unknown fields are
//! skipped; a JSON `null` reads as the zero value.

use alloc::borrow::Cow;

use super::command::CommandError;
use super::reply::Tag;

/// Reads the fields of one message in the order of the wire.
pub(super) trait ReadFields<'a>: Sized {
    /// Goes to the next field and returns its number; `None` at the end of the message. `number_of` maps a JSON name
    /// to its number, unknown names to 0. The caller must then read or skip the value.
    fn next_field(&mut self, number_of: impl Fn(&[u8]) -> u32) -> Result<Option<u32>, CommandError>;

    /// Passes over the value.
    fn skip(&mut self) -> Result<(), CommandError>;

    /// Passes over the value and says whether there was one (not `null`).
    fn present(&mut self) -> Result<bool, CommandError>;

    /// A string; borrowed unless JSON escapes had to be resolved.
    fn string(&mut self) -> Result<Cow<'a, str>, CommandError>;

    /// A `bytes` field: in JSON the text of one complete value, in protobuf the bytes.
    fn data(&mut self) -> Result<&'a [u8], CommandError>;

    /// A `bool` field.
    fn boolean(&mut self) -> Result<bool, CommandError>;

    /// A `uint64` field.
    fn unsigned(&mut self) -> Result<u64, CommandError>;

    /// An `int32` or `int64` field.
    fn signed(&mut self) -> Result<i64, CommandError>;

    /// A `uint32` field.
    fn unsigned32(&mut self) -> Result<u32, CommandError> {
        u32::try_from(self.unsigned()?).map_err(|_| CommandError::Number)
    }

    /// An `int32` field.
    fn signed32(&mut self) -> Result<i32, CommandError> {
        i32::try_from(self.signed()?).map_err(|_| CommandError::Number)
    }

    /// A message field; `read` takes its fields until `next_field` returns `None`. `None` for JSON `null`.
    fn message<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, CommandError>,
    ) -> Result<Option<T>, CommandError>;

    /// A `map<string, message>` field: all entries of it in JSON, one entry in protobuf. `each` gets the key and a
    /// reader on which it must call [`ReadFields::message`] exactly once.
    fn entries(
        &mut self,
        each: impl FnMut(Cow<'a, str>, &mut Self) -> Result<(), CommandError>,
    ) -> Result<(), CommandError>;
}

/// Writes the fields of one message.
pub(super) trait WriteFields {
    /// A string; nothing when empty.
    fn string(&mut self, number: u32, name: &str, value: &str);

    /// A string; in JSON also when empty.
    fn string_always(&mut self, number: u32, name: &str, value: &str);

    /// A `bytes` field; nothing when empty. In JSON the bytes must be the text of one value without raw newlines.
    fn data(&mut self, number: u32, name: &str, value: &[u8]);

    /// A `bytes` field that JSON shows as a string; nothing when empty. In JSON the bytes must be UTF-8.
    fn text_data(&mut self, number: u32, name: &str, value: &[u8]);

    /// A `bool` field; nothing when false.
    fn boolean(&mut self, number: u32, name: &str, value: bool);

    /// A `uint32` or `uint64` field; nothing when 0.
    fn unsigned(&mut self, number: u32, name: &str, value: u64);

    /// A `uint32` or `uint64` field; in JSON also when 0.
    fn unsigned_always(&mut self, number: u32, name: &str, value: u64);

    /// An `int64` field; nothing when 0.
    fn signed(&mut self, number: u32, name: &str, value: i64);

    /// A message field; written even when it has no field (SDKs look for the object).
    fn message(&mut self, number: u32, name: &str, write: impl FnOnce(&mut Self));

    /// A repeated message field; nothing when there is no item and `empty` says so.
    fn repeated<T>(
        &mut self,
        number: u32,
        name: &str,
        empty: Empty,
        items: impl Iterator<Item = T>,
        write: impl Fn(&mut Self, T),
    );

    /// A `map<string, message>` field; nothing when there is no entry and `empty` says so.
    fn map<'k, T>(
        &mut self,
        number: u32,
        name: &str,
        empty: Empty,
        entries: impl Iterator<Item = (&'k str, T)>,
        write: impl Fn(&mut Self, T),
    );

    /// A `map<string, string>` field; nothing when there is no entry.
    fn string_map(&mut self, number: u32, name: &str, entries: &[Tag]);
}

/// What JSON does with a list or map without entries. (Protobuf cannot show the difference.)
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Empty {
    /// Leave the field out.
    Omit,
    /// Write `[]` or `{}`.
    Write,
}
