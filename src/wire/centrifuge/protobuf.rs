//! The protobuf encoding: reader, writer, and size of fields.
//!
//! In: the bytes of one delimited message (`command`), or values of replies from `reply` and `push`. Out: values that
//! borrow those bytes, or bytes appended to a buffer.
//!
//! ```text
//! message   uvarint length | field | field | ...
//! field     uvarint (number << 3 | wire type) | value
//! value     0: uvarint   1: 8 bytes   2: uvarint length | bytes   5: 4 bytes
//! ```
//!
//! Invariants: a length is compared with the bytes that are there before anything is done with it; groups (wire types
//! 3 and 4, gone since proto3) and known fields of another wire type are malformed; unknown fields are skipped.
//! Differs from the standard in one way: a message field that occurs twice is replaced, not merged.

use alloc::borrow::Cow;
use alloc::vec::Vec;

use super::command::CommandError;
use super::fields::{Empty, ReadFields, WriteFields};
use super::reply::Tag;

/// Bytes of the longest uvarint of 64 bits.
const UVARINT_BYTES_MAX: usize = 10;

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH: u8 = 2;
const FIXED32: u8 = 5;

/// Reads fields of one message.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    /// Wire type of the field whose number was read last.
    wire: u8,
}

impl<'a> Reader<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Reader { rest: message, wire: VARINT }
    }

    /// What is still to be read.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    #[inline]
    fn uvarint(&mut self) -> Result<u64, CommandError> {
        // Numbers, tags and lengths below 128: one byte.
        if let Some((&byte @ 0..=127, rest)) = self.rest.split_first() {
            self.rest = rest;
            return Ok(u64::from(byte));
        }
        self.uvarint_long()
    }

    fn uvarint_long(&mut self) -> Result<u64, CommandError> {
        let mut value = 0;
        for (index, &byte) in self.rest.iter().take(UVARINT_BYTES_MAX).enumerate() {
            value |= u64::from(byte & 127) << (7 * index);
            if byte < 128 {
                // The tenth byte holds one bit.
                if index == UVARINT_BYTES_MAX - 1 && byte > 1 {
                    return Err(CommandError::Malformed);
                }
                self.rest = &self.rest[index + 1..];
                return Ok(value);
            }
        }
        Err(CommandError::Malformed)
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], CommandError> {
        let len = usize::try_from(len).map_err(|_| CommandError::Malformed)?;
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(CommandError::Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    /// Takes a uvarint length and as many bytes.
    #[inline]
    pub(super) fn delimited(&mut self) -> Result<&'a [u8], CommandError> {
        let len = self.uvarint()?;
        self.take(len)
    }

    #[inline]
    fn typed(&self, wire: u8) -> Result<(), CommandError> {
        if self.wire == wire { Ok(()) } else { Err(CommandError::Malformed) }
    }
}

impl<'a> ReadFields<'a> for Reader<'a> {
    #[inline]
    fn next_field(&mut self, _: impl Fn(&[u8]) -> u32) -> Result<Option<u32>, CommandError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = u32::try_from(self.uvarint()?).map_err(|_| CommandError::Malformed)?;
        self.wire = (tag & 7) as u8;
        match tag >> 3 {
            0 => Err(CommandError::Malformed),
            number => Ok(Some(number)),
        }
    }

    fn skip(&mut self) -> Result<(), CommandError> {
        match self.wire {
            VARINT => self.uvarint().map(|_| ()),
            FIXED64 => self.take(8).map(|_| ()),
            LENGTH => self.delimited().map(|_| ()),
            FIXED32 => self.take(4).map(|_| ()),
            _ => Err(CommandError::Malformed),
        }
    }

    fn present(&mut self) -> Result<bool, CommandError> {
        self.skip()?;
        Ok(true)
    }

    fn string(&mut self) -> Result<Cow<'a, str>, CommandError> {
        core::str::from_utf8(self.data()?).map(Cow::Borrowed).map_err(|_| CommandError::Utf8)
    }

    #[inline]
    fn data(&mut self) -> Result<&'a [u8], CommandError> {
        self.typed(LENGTH)?;
        self.delimited()
    }

    fn boolean(&mut self) -> Result<bool, CommandError> {
        Ok(self.unsigned()? != 0)
    }

    fn unsigned(&mut self) -> Result<u64, CommandError> {
        self.typed(VARINT)?;
        self.uvarint()
    }

    fn signed(&mut self) -> Result<i64, CommandError> {
        // int32 and int64 are two's complement of 64 bits on the wire.
        self.unsigned().map(u64::cast_signed)
    }

    #[inline]
    fn message<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, CommandError>,
    ) -> Result<Option<T>, CommandError> {
        let message = self.data()?;
        read(&mut Reader::new(message)).map(Some)
    }

    fn entries(
        &mut self,
        mut each: impl FnMut(Cow<'a, str>, &mut Self) -> Result<(), CommandError>,
    ) -> Result<(), CommandError> {
        // A map is a repeated message { key = 1, value = 2 }; both may be absent, and stand in any order.
        let mut entry = Reader::new(self.data()?);
        let mut key = Cow::Borrowed("");
        let mut value: &[u8] = &[0]; // length 0: an absent value is an empty message
        while let Some(number) = entry.next_field(|_| 0)? {
            match number {
                1 => key = entry.string()?,
                2 => {
                    entry.typed(LENGTH)?;
                    // With its length, so that `each` can take it as a message field.
                    let from = entry.rest;
                    entry.delimited()?;
                    value = &from[..from.len() - entry.rest.len()];
                }
                _ => entry.skip()?,
            }
        }
        each(key, &mut Reader { rest: value, wire: LENGTH })
    }
}

/// Bytes of `value` as a uvarint.
#[inline]
pub(super) const fn uvarint_len(value: u64) -> usize {
    // 7 bits a byte; 0 takes one byte.
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Appends `value` as a uvarint.
#[inline]
pub(super) fn write_uvarint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 128 {
        out.push(value as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends the tag of a field with a length, and the length.
#[inline]
pub(super) fn write_length(out: &mut Vec<u8>, number: u32, len: usize) {
    write_uvarint(out, tag(number, LENGTH));
    write_uvarint(out, len as u64);
}

/// Bytes of a field with a length: tag, length, and `len` bytes.
#[inline]
pub(super) const fn length_field_len(number: u32, len: usize) -> usize {
    uvarint_len(tag(number, LENGTH)) + uvarint_len(len as u64) + len
}

const fn tag(number: u32, wire: u8) -> u64 {
    (number as u64) << 3 | wire as u64
}

/// Writes the fields of a protobuf message.
pub(super) struct ProtobufFields<'o>(pub(super) &'o mut Vec<u8>);

impl ProtobufFields<'_> {
    /// Appends a message with its uvarint length before it; the length is known only when the message is written.
    pub(super) fn delimited(&mut self, write: impl FnOnce(&mut Self)) {
        let at = self.0.len();
        self.0.push(0);
        write(self);
        let start = at + 1;
        let end = self.0.len();
        let mut len = end - start;
        // Short messages keep the one byte; long ones move up by what their length takes more.
        let more = uvarint_len(len as u64) - 1;
        if more > 0 {
            self.0.resize(end + more, 0);
            self.0.copy_within(start..end, start + more);
        }
        for byte in &mut self.0[at..at + more] {
            *byte = len as u8 | 128;
            len >>= 7;
        }
        self.0[at + more] = len as u8;
    }

    #[inline]
    fn bytes(&mut self, number: u32, value: &[u8]) {
        if !value.is_empty() {
            write_length(self.0, number, value.len());
            self.0.extend_from_slice(value);
        }
    }
}

impl WriteFields for ProtobufFields<'_> {
    fn string(&mut self, number: u32, _: &str, value: &str) {
        self.bytes(number, value.as_bytes());
    }

    fn string_always(&mut self, number: u32, _: &str, value: &str) {
        self.bytes(number, value.as_bytes());
    }

    fn data(&mut self, number: u32, _: &str, value: &[u8]) {
        self.bytes(number, value);
    }

    fn text_data(&mut self, number: u32, _: &str, value: &[u8]) {
        self.bytes(number, value);
    }

    fn boolean(&mut self, number: u32, name: &str, value: bool) {
        self.unsigned(number, name, u64::from(value));
    }

    fn unsigned(&mut self, number: u32, _: &str, value: u64) {
        if value != 0 {
            write_uvarint(self.0, tag(number, VARINT));
            write_uvarint(self.0, value);
        }
    }

    fn unsigned_always(&mut self, number: u32, name: &str, value: u64) {
        self.unsigned(number, name, value);
    }

    fn signed(&mut self, number: u32, name: &str, value: i64) {
        self.unsigned(number, name, value.cast_unsigned());
    }

    fn message(&mut self, number: u32, _: &str, write: impl FnOnce(&mut Self)) {
        write_uvarint(self.0, tag(number, LENGTH));
        self.delimited(write);
    }

    fn repeated<T>(
        &mut self,
        number: u32,
        name: &str,
        _: Empty,
        items: impl Iterator<Item = T>,
        write: impl Fn(&mut Self, T),
    ) {
        for item in items {
            self.message(number, name, |fields| write(fields, item));
        }
    }

    fn map<'k, T>(
        &mut self,
        number: u32,
        name: &str,
        _: Empty,
        entries: impl Iterator<Item = (&'k str, T)>,
        write: impl Fn(&mut Self, T),
    ) {
        for (key, value) in entries {
            self.message(number, name, |entry| {
                entry.string(1, "key", key);
                entry.message(2, "value", |fields| write(fields, value));
            });
        }
    }

    fn string_map(&mut self, number: u32, name: &str, entries: &[Tag]) {
        for (key, value) in entries {
            self.message(number, name, |entry| {
                entry.string(1, "key", key);
                entry.string(2, "value", value);
            });
        }
    }
}

/// Counts the bytes that [`ProtobufFields`] would write.
pub(super) struct ProtobufSize(pub(super) usize);

impl ProtobufSize {
    fn bytes(&mut self, number: u32, len: usize) {
        if len > 0 {
            self.0 += length_field_len(number, len);
        }
    }
}

impl WriteFields for ProtobufSize {
    fn string(&mut self, number: u32, _: &str, value: &str) {
        self.bytes(number, value.len());
    }

    fn string_always(&mut self, number: u32, _: &str, value: &str) {
        self.bytes(number, value.len());
    }

    fn data(&mut self, number: u32, _: &str, value: &[u8]) {
        self.bytes(number, value.len());
    }

    fn text_data(&mut self, number: u32, _: &str, value: &[u8]) {
        self.bytes(number, value.len());
    }

    fn boolean(&mut self, number: u32, name: &str, value: bool) {
        self.unsigned(number, name, u64::from(value));
    }

    fn unsigned(&mut self, number: u32, _: &str, value: u64) {
        if value != 0 {
            self.0 += uvarint_len(tag(number, VARINT)) + uvarint_len(value);
        }
    }

    fn unsigned_always(&mut self, number: u32, name: &str, value: u64) {
        self.unsigned(number, name, value);
    }

    fn signed(&mut self, number: u32, name: &str, value: i64) {
        self.unsigned(number, name, value.cast_unsigned());
    }

    fn message(&mut self, number: u32, _: &str, write: impl FnOnce(&mut Self)) {
        let mut inner = ProtobufSize(0);
        write(&mut inner);
        self.0 += length_field_len(number, inner.0);
    }

    fn repeated<T>(
        &mut self,
        number: u32,
        name: &str,
        _: Empty,
        items: impl Iterator<Item = T>,
        write: impl Fn(&mut Self, T),
    ) {
        for item in items {
            self.message(number, name, |fields| write(fields, item));
        }
    }

    fn map<'k, T>(
        &mut self,
        number: u32,
        name: &str,
        _: Empty,
        entries: impl Iterator<Item = (&'k str, T)>,
        write: impl Fn(&mut Self, T),
    ) {
        for (key, value) in entries {
            self.message(number, name, |entry| {
                entry.string(1, "key", key);
                entry.message(2, "value", |fields| write(fields, value));
            });
        }
    }

    fn string_map(&mut self, number: u32, name: &str, entries: &[Tag]) {
        for (key, value) in entries {
            self.message(number, name, |entry| {
                entry.string(1, "key", key);
                entry.string(2, "value", value);
            });
        }
    }
}
