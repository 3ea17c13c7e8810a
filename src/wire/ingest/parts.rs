//! Pieces of which events, answers and calls are made: texts, blobs, lists, grants.
//!
//! In: a [`Cursor`] over a frame's body. Out: views that borrow it; and, for writers, the same bytes appended.
//!
//! ```text
//! TEXT          len u16 | UTF-8
//! BLOB          len u32 | bytes
//! LIST of X     count u32 | count × X
//! SINCE         flags u8 (bit 0: there, bit 1: with epoch) | offset u64 if bit 0 | boot u32, creation u32 if bit 1
//! GRANT         flags u8 (bit 0: expires) | expires_in_ms u64 if bit 0 | set u8 | on u8 | info BLOB | data BLOB
//!               set, on: bit 0 presence, 1 join_leave, 2 push_join_leave, 3 recovery, 4 positioned;
//!               on only where set, the rest is as the namespace says
//! SUBSCRIPTION  channel TEXT | GRANT
//! MEMBER        client TEXT | user TEXT | conn_info BLOB | chan_info BLOB
//! ```
//!
//! Invariant: a [`List`] has been read to its end when its frame was decoded, so its entries come without errors; it
//! is kept as bytes and reserves nothing for the count it announces.

use alloc::vec::Vec;
use core::marker::PhantomData;

use super::{Cursor, IngestError};

/// Flag: there is a point in time.
const EXPIRES: u8 = 1;
const SINCE_THERE: u8 = 1;
const SINCE_EPOCH: u8 = 2;
/// Options of a subscription that a grant may set.
const OVERRIDES: u8 = 0b1_1111;

/// One entry of a [`List`].
pub trait Entry<'a>: Sized {
    /// Bytes that an entry takes at least, so that a count can be refused before anything is read.
    const BYTES_MIN: usize;

    /// Reads one from the front.
    #[doc(hidden)]
    fn read(cursor: &mut Bytes<'a>) -> Result<Self, IngestError>;

    /// Appends it.
    #[doc(hidden)]
    fn write(&self, out: &mut Vec<u8>) -> Result<(), IngestError>;
}

/// A frame's bytes as [`Entry`] reads them.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a>(pub(super) Cursor<'a>);

/// Entries of one kind inside a frame, decoded one by one.
#[derive(Clone, Copy)]
pub struct List<'a, T> {
    entries: Bytes<'a>,
    count: u32,
    kind: PhantomData<T>,
}

impl<'a, T: Entry<'a>> List<'a, T> {
    /// No entries.
    pub const EMPTY: Self = List { entries: Bytes(Cursor { rest: &[] }), count: 0, kind: PhantomData };

    /// Entries still to come.
    pub fn remaining(&self) -> u32 {
        self.count
    }

    pub(super) fn read(cursor: &mut Cursor<'a>) -> Result<Self, IngestError> {
        let count = cursor.u32()?;
        if count as usize > cursor.rest.len() / T::BYTES_MIN {
            return Err(IngestError::BadFrame);
        }
        let mut rest = Bytes(*cursor);
        for _ in 0..count {
            T::read(&mut rest)?;
        }
        let length = cursor.rest.len() - rest.0.rest.len();
        let entries = Bytes(Cursor { rest: cursor.bytes(length)? });
        Ok(List { entries, count, kind: PhantomData })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(self.entries.0.rest);
    }
}

impl<'a, T: Entry<'a>> Iterator for List<'a, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.count = self.count.checked_sub(1)?;
        T::read(&mut self.entries).ok()
    }
}

impl<'a, T: Entry<'a> + Clone + PartialEq> PartialEq for List<'a, T> {
    fn eq(&self, other: &Self) -> bool {
        self.count == other.count && self.entries.0.rest == other.entries.0.rest
    }
}

impl<T> core::fmt::Debug for List<'_, T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "List({} entries, {} bytes)", self.count, self.entries.0.rest.len())
    }
}

/// A list under construction.
#[derive(Debug, Default)]
pub struct ListBuf {
    bytes: Vec<u8>,
    count: u32,
}

impl ListBuf {
    /// An empty one.
    pub const fn new() -> Self {
        ListBuf { bytes: Vec::new(), count: 0 }
    }

    /// Appends an entry. A list must hold entries of one type only.
    ///
    /// # Errors
    /// [`IngestError::TooLarge`] when a part does not fit its length field; nothing is appended then.
    pub fn push<'a, T: Entry<'a>>(&mut self, entry: &T) -> Result<(), IngestError> {
        let start = self.bytes.len();
        let result = entry.write(&mut self.bytes);
        match result {
            Ok(()) => self.count += 1,
            Err(_) => self.bytes.truncate(start),
        }
        result
    }

    /// Bytes so far.
    pub fn bytes_len(&self) -> usize {
        self.bytes.len()
    }

    /// As part of a frame. `T` must be what was pushed.
    pub fn list<'a, T: Entry<'a>>(&'a self) -> List<'a, T> {
        List { entries: Bytes(Cursor { rest: &self.bytes }), count: self.count, kind: PhantomData }
    }
}

/// A position that somebody claims to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since {
    /// Offset.
    pub offset: u64,
    /// Boot and creation; none: of whatever epoch the channel has.
    pub epoch: Option<(u32, u32)>,
}

/// Options of one subscription that differ from its namespace's; none: as the namespace says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Whether it takes part in presence.
    pub presence: Option<bool>,
    /// Whether its coming and going is told.
    pub join_leave: Option<bool>,
    /// Whether it is told of others' coming and going without having asked.
    pub push_join_leave: Option<bool>,
    /// Whether it recovers without having asked.
    pub recovery: Option<bool>,
    /// Whether it is positioned without having asked.
    pub positioned: Option<bool>,
}

/// What a backend grants with a subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant<'a> {
    /// JSON that other clients see of the subscription; empty: none.
    pub info: &'a [u8],
    /// For the client itself: JSON, or any bytes for a Protobuf client; empty: none.
    pub data: &'a [u8],
    /// How long it may live from now; none: without end.
    pub expires_in_ms: Option<u64>,
    /// What differs from the namespace.
    pub overrides: Overrides,
}

/// A server-side subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subscription<'a> {
    /// Full name.
    pub channel: &'a str,
    /// Under which terms.
    pub grant: Grant<'a>,
}

/// A client as others see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Member<'a> {
    /// Client id.
    pub client: &'a str,
    /// User id; empty: anonymous.
    pub user: &'a str,
    /// Info of the connection; empty: none.
    pub conn_info: &'a [u8],
    /// Info of the subscription; empty: none.
    pub chan_info: &'a [u8],
}

impl<'a> Entry<'a> for &'a str {
    const BYTES_MIN: usize = 2;

    fn read(cursor: &mut Bytes<'a>) -> Result<Self, IngestError> {
        cursor.0.long_text()
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), IngestError> {
        put_text(out, self)
    }
}

impl<'a> Entry<'a> for Subscription<'a> {
    const BYTES_MIN: usize = 2 + 3 + 8;

    fn read(cursor: &mut Bytes<'a>) -> Result<Self, IngestError> {
        Ok(Subscription { channel: cursor.0.long_text()?, grant: read_grant(&mut cursor.0)? })
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), IngestError> {
        put_text(out, self.channel)?;
        put_grant(out, &self.grant)
    }
}

impl<'a> Entry<'a> for Member<'a> {
    const BYTES_MIN: usize = 2 + 2 + 4 + 4;

    fn read(cursor: &mut Bytes<'a>) -> Result<Self, IngestError> {
        let (client, user) = (cursor.0.long_text()?, cursor.0.long_text()?);
        Ok(Member { client, user, conn_info: cursor.0.blob()?, chan_info: cursor.0.blob()? })
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), IngestError> {
        put_text(out, self.client)?;
        put_text(out, self.user)?;
        put_blob(out, self.conn_info)?;
        put_blob(out, self.chan_info)
    }
}

impl<'a> Cursor<'a> {
    /// A TEXT.
    pub(super) fn long_text(&mut self) -> Result<&'a str, IngestError> {
        let length = usize::from(self.u16()?);
        self.text(length)
    }

    /// A BLOB.
    pub(super) fn blob(&mut self) -> Result<&'a [u8], IngestError> {
        let length = self.u32()? as usize;
        self.bytes(length)
    }

    pub(super) fn i32(&mut self) -> Result<i32, IngestError> {
        self.array().map(i32::from_le_bytes)
    }

    /// Flags of which only `known` may be set.
    pub(super) fn flags(&mut self, known: u8) -> Result<u8, IngestError> {
        let flags = self.u8()?;
        if flags & !known == 0 { Ok(flags) } else { Err(IngestError::BadFrame) }
    }

    /// A u64 if `there`.
    pub(super) fn u64_if(&mut self, there: bool) -> Result<Option<u64>, IngestError> {
        if there { self.u64().map(Some) } else { Ok(None) }
    }

    /// A BLOB if `there`.
    pub(super) fn blob_if(&mut self, there: bool) -> Result<Option<&'a [u8]>, IngestError> {
        if there { self.blob().map(Some) } else { Ok(None) }
    }
}

pub(super) fn read_since(cursor: &mut Cursor<'_>) -> Result<Option<Since>, IngestError> {
    let flags = cursor.flags(SINCE_THERE | SINCE_EPOCH)?;
    if flags == SINCE_EPOCH {
        return Err(IngestError::BadFrame);
    }
    if flags & SINCE_THERE == 0 {
        return Ok(None);
    }
    let offset = cursor.u64()?;
    let epoch = if flags & SINCE_EPOCH != 0 { Some((cursor.u32()?, cursor.u32()?)) } else { None };
    Ok(Some(Since { offset, epoch }))
}

pub(super) fn put_since(out: &mut Vec<u8>, since: Option<&Since>) {
    let Some(since) = since else { return out.push(0) };
    out.push(SINCE_THERE | if since.epoch.is_some() { SINCE_EPOCH } else { 0 });
    out.extend_from_slice(&since.offset.to_le_bytes());
    if let Some((boot, creation)) = since.epoch {
        out.extend_from_slice(&boot.to_le_bytes());
        out.extend_from_slice(&creation.to_le_bytes());
    }
}

pub(super) fn read_grant<'a>(cursor: &mut Cursor<'a>) -> Result<Grant<'a>, IngestError> {
    let flags = cursor.flags(EXPIRES)?;
    let expires_in_ms = cursor.u64_if(flags & EXPIRES != 0)?;
    let set = cursor.flags(OVERRIDES)?;
    let on = cursor.flags(set)?;
    let option = |bit: u8| (set & 1 << bit != 0).then_some(on & 1 << bit != 0);
    let overrides = Overrides {
        presence: option(0),
        join_leave: option(1),
        push_join_leave: option(2),
        recovery: option(3),
        positioned: option(4),
    };
    Ok(Grant { info: cursor.blob()?, data: cursor.blob()?, expires_in_ms, overrides })
}

pub(super) fn put_grant(out: &mut Vec<u8>, grant: &Grant<'_>) -> Result<(), IngestError> {
    out.push(if grant.expires_in_ms.is_some() { EXPIRES } else { 0 });
    put_u64_if(out, grant.expires_in_ms);
    let Overrides { presence, join_leave, push_join_leave, recovery, positioned } = grant.overrides;
    let options = [presence, join_leave, push_join_leave, recovery, positioned];
    let bits = |wanted: fn(Option<bool>) -> bool| {
        options.iter().enumerate().fold(0, |bits, (bit, option)| bits | u8::from(wanted(*option)) << bit)
    };
    out.extend_from_slice(&[bits(|option| option.is_some()), bits(|option| option == Some(true))]);
    put_blob(out, grant.info)?;
    put_blob(out, grant.data)
}

/// # Errors
/// [`IngestError::TooLarge`] when the length does not fit its field.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str) -> Result<(), IngestError> {
    let length = u16::try_from(text.len()).map_err(|_| IngestError::TooLarge)?;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

/// # Errors
/// As [`put_text`].
pub(super) fn put_blob(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), IngestError> {
    let length = u32::try_from(bytes.len()).map_err(|_| IngestError::TooLarge)?;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

pub(super) fn put_u64_if(out: &mut Vec<u8>, value: Option<u64>) {
    if let Some(value) = value {
        out.extend_from_slice(&value.to_le_bytes());
    }
}
