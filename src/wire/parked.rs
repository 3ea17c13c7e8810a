//! What a node that goes away leaves behind of a user's connection, for the node that the user reaches next.
//!
//! In: what only the server knows of a connection. Out: bytes that an engine keeps for some time; views that borrow them.
//!
//! ```text
//! all numbers little-endian; TEXT len u16 | UTF-8; BLOB len u32 | bytes
//! PARKED        version u8 (1) | flags u8 (bit 0: conn_info) | conn_info BLOB if bit 0 | count u16, count × SUBSCRIPTION
//! SUBSCRIPTION  channel TEXT | flags u8 (bit 0: presence, 1: join_leave, 2: push_join_leave, 3: recovery, 4: positioned,
//!               5: position) | info BLOB | data BLOB | expires_at_ms u64 (wall clock; 0: never)
//!               | boot u32, creation u32, offset u64 if bit 5
//! ```
//! Invariant: decoding never reads what a length announces without having it; another version or flag is nothing parked.

use alloc::vec::Vec;

use crate::ingest::{Cursor, IngestError, Overrides};
use crate::record::{blob, put_blob, put_text, text};

const VERSION: u8 = 1;
const CONN_INFO: u8 = 1;
const POSITION: u8 = 1 << 5;
const SUBSCRIPTION_FLAGS: u8 = 0b11_1111;

/// A connection of a user. See the file's header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parked<'a> {
    /// JSON that other clients see; none: as its token says.
    pub conn_info: Option<&'a [u8]>,
    /// Server-side subscriptions that were made at run time.
    pub subscriptions: Vec<ParkedSubscription<'a>>,
}

/// One subscription of a [`Parked`] connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParkedSubscription<'a> {
    /// Full name.
    pub channel: &'a str,
    /// What it did; each is set.
    pub overrides: Overrides,
    /// JSON that other clients see; empty: none.
    pub info: &'a [u8],
    /// Data for the client; empty: none.
    pub data: &'a [u8],
    /// When it expires, in milliseconds of the parking node's wall clock; 0: never.
    pub expires_at_ms: u64,
    /// What the connection had of the channel: epoch and offset.
    pub position: Option<((u32, u32), u64)>,
}

impl<'a> Parked<'a> {
    /// Appends it, with the first subscriptions that fit so many bytes; returns how many did.
    pub fn write(&self, out: &mut Vec<u8>, bytes_max: usize) -> usize {
        let start = out.len();
        out.push(VERSION);
        out.push(if self.conn_info.is_some() { CONN_INFO } else { 0 });
        if let Some(info) = self.conn_info {
            put_blob(out, info);
        }
        let at = out.len();
        out.extend_from_slice(&[0; 2]);
        let mut count = 0_u16;
        for subscription in &self.subscriptions {
            let before = out.len();
            subscription.write(out);
            if out.len() - start > bytes_max || count == u16::MAX {
                out.truncate(before);
                break;
            }
            count += 1;
        }
        out[at..at + 2].copy_from_slice(&count.to_le_bytes());
        usize::from(count)
    }

    /// What [`Parked::write`] has written; none for anything else.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        read(bytes).ok()
    }
}

impl ParkedSubscription<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        put_text(out, self.channel);
        let Overrides { presence, join_leave, push_join_leave, recovery, positioned } = self.overrides;
        let on = [presence, join_leave, push_join_leave, recovery, positioned];
        let flags = on.iter().enumerate().fold(0, |flags, (bit, on)| flags | u8::from(on == &Some(true)) << bit);
        out.push(flags | if self.position.is_some() { POSITION } else { 0 });
        put_blob(out, self.info);
        put_blob(out, self.data);
        out.extend_from_slice(&self.expires_at_ms.to_le_bytes());
        if let Some(((boot, creation), offset)) = self.position {
            out.extend_from_slice(&boot.to_le_bytes());
            out.extend_from_slice(&creation.to_le_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
        }
    }
}

fn read(bytes: &[u8]) -> Result<Parked<'_>, IngestError> {
    let mut cursor = Cursor { rest: bytes };
    if cursor.u8()? != VERSION {
        return Err(IngestError::BadFrame);
    }
    let flags = cursor.u8()?;
    if flags & !CONN_INFO != 0 {
        return Err(IngestError::BadFrame);
    }
    let conn_info = if flags & CONN_INFO != 0 { Some(blob(&mut cursor)?) } else { None };
    let mut subscriptions = Vec::new();
    for _ in 0..cursor.u16()? {
        subscriptions.push(subscription(&mut cursor)?);
    }
    cursor.end()?;
    Ok(Parked { conn_info, subscriptions })
}

fn subscription<'a>(cursor: &mut Cursor<'a>) -> Result<ParkedSubscription<'a>, IngestError> {
    let channel = text(cursor)?;
    let flags = cursor.u8()?;
    if flags & !SUBSCRIPTION_FLAGS != 0 {
        return Err(IngestError::BadFrame);
    }
    let on = |bit: u8| Some(flags & 1 << bit != 0);
    let overrides =
        Overrides { presence: on(0), join_leave: on(1), push_join_leave: on(2), recovery: on(3), positioned: on(4) };
    let (info, data, expires_at_ms) = (blob(cursor)?, blob(cursor)?, cursor.u64()?);
    let position = if flags & POSITION != 0 { Some(((cursor.u32()?, cursor.u32()?), cursor.u64()?)) } else { None };
    Ok(ParkedSubscription { channel, overrides, info, data, expires_at_ms, position })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn example() -> Parked<'static> {
        let overrides = Overrides {
            presence: Some(true),
            join_leave: Some(false),
            push_join_leave: Some(true),
            recovery: Some(true),
            positioned: Some(false),
        };
        let one = ParkedSubscription {
            channel: "news:1",
            overrides,
            info: b"{\"a\":1}",
            data: b"[]",
            expires_at_ms: 1 << 41,
            position: Some(((7, 8), 9)),
        };
        let off = |_| Some(false);
        let none = Overrides {
            presence: off(0),
            join_leave: off(1),
            push_join_leave: off(2),
            recovery: off(3),
            positioned: off(4),
        };
        let two = ParkedSubscription { channel: "b", overrides: none, ..ParkedSubscription::default() };
        Parked { conn_info: Some(b"{}"), subscriptions: vec![one, two] }
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else_is() {
        let parked = example();
        let mut bytes = Vec::new();
        assert_eq!(parked.write(&mut bytes, usize::MAX), 2);
        assert_eq!(Parked::read(&bytes), Some(parked));
        for len in 0..bytes.len() {
            assert_eq!(Parked::read(&bytes[..len]), None, "cut to {len}");
        }
        bytes.push(0);
        assert_eq!(Parked::read(&bytes), None, "something behind it");
        bytes.pop();
        bytes[0] = 2;
        assert_eq!(Parked::read(&bytes), None, "another version");
    }

    #[test]
    fn what_does_not_fit_is_left_out_whole() {
        let parked = example();
        let (mut all, mut cut) = (Vec::new(), Vec::new());
        parked.write(&mut all, usize::MAX);
        assert_eq!(parked.write(&mut cut, all.len() - 1), 1);
        let read = Parked::read(&cut).expect("it is whole");
        assert_eq!(read.subscriptions, &parked.subscriptions[..1]);
    }
}
