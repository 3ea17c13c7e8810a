//! A publication as an engine keeps it for several nodes, and what nodes tell each other through it.
//!
//! In: a publication on its way to the engine; bytes that came back from it. Out: those bytes; views that borrow them.
//!
//! ```text
//! all numbers little-endian; TEXT len u16 | UTF-8; BLOB len u32 | bytes
//! RECORD     flags u8 (bit 0: bytes, else JSON; bit 1: publisher; bit 2: tags) | at_ms u64
//!            | payload BLOB | user TEXT, client TEXT, conn_info BLOB, chan_info BLOB if bit 1
//!            | count u16, count × (name TEXT, value TEXT) if bit 2
//! TOLD       01 RECORD                                       a publication without an offset
//!            02                                              the channel's history was removed
//!            03 joined u8 | user TEXT, client TEXT, conn_info BLOB, chan_info BLOB      a member came (1) or went (0)
//!            04 from u32 | an ingest Call frame              an order about a user's connections
//!            05 from u32, question u64, counts_only u8       who is in the channel?
//!            06 question u64, more u8 (0: the last part, 1: more follow, 2: too many to say)
//!               | count u32, count × (user TEXT, client TEXT, conn_info BLOB, chan_info BLOB)
//!            07 question u64, clients u32, users u32 | count u32, count × hash u64   the users' hashes; of more than 10,000 the smallest
//! ```
//! Invariant: decoding never reads what a length announces without having it; an unknown kind or flag is no record.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::centrifuge::reply::{ClientInfoView, Tag};
use crate::ingest::{Cursor, IngestError, PayloadKind};

const BYTES: u8 = 1;
const PUBLISHER: u8 = 2;
const TAGS: u8 = 4;

/// See the file's header.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// What the payload is.
    pub kind: PayloadKind,
    /// When it was published, in milliseconds of the publishing node's wall clock.
    pub at_ms: u64,
    /// JSON without raw newlines, or bytes.
    pub payload: &'a [u8],
    /// Who published, if a client did.
    pub publisher: Option<ClientInfoView<'a>>,
    /// Names and values beside the payload.
    pub tags: Tags<'a>,
}

/// Names and values, as they were given or as they stand in a record.
#[derive(Clone, Copy, Debug)]
pub enum Tags<'a> {
    /// Given.
    Given(&'a [Tag]),
    /// In a record, read to its end before.
    Stored {
        /// How many.
        count: u16,
        /// Their bytes.
        bytes: &'a [u8],
    },
}

impl Tags<'_> {
    /// Each of them, owned.
    pub fn to_boxed(self) -> Box<[Tag]> {
        match self {
            Tags::Given(tags) => tags.into(),
            Tags::Stored { count, bytes } => {
                let mut cursor = Cursor { rest: bytes };
                (0..count)
                    .map_while(|_| Some((text(&mut cursor).ok()?.into(), text(&mut cursor).ok()?.into())))
                    .collect()
            }
        }
    }
}

impl<'a> Record<'a> {
    /// Appends it.
    pub fn write(&self, out: &mut Vec<u8>) {
        let Tags::Given(tags) = self.tags else { return };
        // Names and values of one publication are bounded far below these lengths; what is over is left out, not cut.
        let tags = &tags[..tags.len().min(u16::MAX as usize)];
        let flags = if self.kind == PayloadKind::Bytes { BYTES } else { 0 }
            | if self.publisher.is_some() { PUBLISHER } else { 0 }
            | if tags.is_empty() { 0 } else { TAGS };
        out.push(flags);
        out.extend_from_slice(&self.at_ms.to_le_bytes());
        put_blob(out, self.payload);
        if let Some(publisher) = &self.publisher {
            put_info(out, publisher);
        }
        if !tags.is_empty() {
            out.extend_from_slice(&(tags.len() as u16).to_le_bytes());
            for (name, value) in tags {
                put_text(out, name);
                put_text(out, value);
            }
        }
    }

    /// What [`Record::write`] has written; none for anything else.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        read(bytes).ok()
    }
}

fn read(bytes: &[u8]) -> Result<Record<'_>, IngestError> {
    let mut cursor = Cursor { rest: bytes };
    let flags = cursor.u8()?;
    if flags & !(BYTES | PUBLISHER | TAGS) != 0 {
        return Err(IngestError::BadFrame);
    }
    let kind = if flags & BYTES != 0 { PayloadKind::Bytes } else { PayloadKind::Json };
    let at_ms = cursor.u64()?;
    let payload = blob(&mut cursor)?;
    let publisher = if flags & PUBLISHER != 0 { Some(info(&mut cursor)?) } else { None };
    let mut tags = Tags::Given(&[]);
    if flags & TAGS != 0 {
        let count = cursor.u16()?;
        let bytes = cursor.rest;
        for _ in 0..count {
            text(&mut cursor)?;
            text(&mut cursor)?;
        }
        tags = Tags::Stored { count, bytes };
    }
    cursor.end()?;
    Ok(Record { kind, at_ms, payload, publisher, tags })
}

/// What nodes tell each other about a channel or a user.
#[derive(Clone, Copy, Debug)]
pub enum Told<'a> {
    /// A publication without an offset.
    Publication(Record<'a>),
    /// A channel's history was removed.
    HistoryRemoved,
    /// A member came or went.
    Member {
        /// It came.
        joined: bool,
        /// Who.
        member: ClientInfoView<'a>,
    },
    /// An order about a user's connections.
    Order {
        /// Generation of the node that says so; its own connections have heard.
        from: u32,
        /// An ingest Call frame.
        frame: &'a [u8],
    },
    /// Who is in the channel?
    Question {
        /// Generation of the node that asks.
        from: u32,
        /// Its number for the question.
        question: u64,
        /// Only how many.
        counts_only: bool,
    },
    /// Some of the members at one node.
    Members {
        /// The question.
        question: u64,
        /// Whether there are more.
        more: More,
        /// The members.
        members: Members<'a>,
    },
    /// How many members one node has.
    Counts {
        /// The question.
        question: u64,
        /// Connections.
        clients: u32,
        /// Distinct users.
        users: u32,
        /// A hash of each user's id, so that who asks counts nobody twice; where there are many, the smallest of them.
        hashes: Hashes<'a>,
    },
}

/// What follows one part of a node's members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum More {
    /// Nothing: all have been said.
    No,
    /// Another part.
    Yes,
    /// Nothing: they are too many to be said.
    TooMany,
}

/// Members, to be written or as they stand in bytes that were read to their end before.
#[derive(Clone, Copy, Debug)]
pub enum Members<'a> {
    /// To be written.
    Given(&'a [ClientInfoView<'a>]),
    /// Read.
    Stored {
        /// How many.
        count: u32,
        /// Their bytes.
        bytes: &'a [u8],
    },
}

impl<'a> Members<'a> {
    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = ClientInfoView<'a>> {
        let (given, count, bytes) = match self {
            Members::Given(given) => (given, 0, &[][..]),
            Members::Stored { count, bytes } => (&[][..], count, bytes),
        };
        let mut cursor = Cursor { rest: bytes };
        given.iter().copied().chain((0..count).map_while(move |_| info(&mut cursor).ok()))
    }
}

/// Hashes, to be written or as they stand in bytes.
#[derive(Clone, Copy, Debug)]
pub enum Hashes<'a> {
    /// To be written.
    Given(&'a [u64]),
    /// Read: eight bytes each.
    Stored(&'a [[u8; 8]]),
}

impl<'a> Hashes<'a> {
    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = u64> + 'a {
        let (given, stored) = match self {
            Hashes::Given(given) => (given, &[][..]),
            Hashes::Stored(stored) => (&[][..], stored),
        };
        given.iter().copied().chain(stored.iter().map(|bytes| u64::from_le_bytes(*bytes)))
    }
}

impl<'a> Told<'a> {
    /// Appends it.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Told::Publication(record) => {
                out.push(1);
                record.write(out);
            }
            Told::HistoryRemoved => out.push(2),
            Told::Member { joined, member } => {
                out.extend_from_slice(&[3, u8::from(*joined)]);
                put_info(out, member);
            }
            Told::Order { from, frame } => {
                out.push(4);
                out.extend_from_slice(&from.to_le_bytes());
                out.extend_from_slice(frame);
            }
            Told::Question { from, question, counts_only } => {
                out.push(5);
                out.extend_from_slice(&from.to_le_bytes());
                out.extend_from_slice(&question.to_le_bytes());
                out.push(u8::from(*counts_only));
            }
            Told::Members { question, more, members } => {
                out.push(6);
                out.extend_from_slice(&question.to_le_bytes());
                out.push(match more {
                    More::No => 0,
                    More::Yes => 1,
                    More::TooMany => 2,
                });
                out.extend_from_slice(&(members.iter().count() as u32).to_le_bytes());
                members.iter().for_each(|member| put_info(out, &member));
            }
            Told::Counts { question, clients, users, hashes } => {
                out.push(7);
                out.extend_from_slice(&question.to_le_bytes());
                out.extend_from_slice(&clients.to_le_bytes());
                out.extend_from_slice(&users.to_le_bytes());
                out.extend_from_slice(&(hashes.iter().count() as u32).to_le_bytes());
                hashes.iter().for_each(|hash| out.extend_from_slice(&hash.to_le_bytes()));
            }
        }
    }

    /// What [`Told::write`] has written; none for anything else.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let mut cursor = Cursor { rest };
        match kind {
            1 => Record::read(rest).map(Told::Publication),
            2 if rest.is_empty() => Some(Told::HistoryRemoved),
            3 => {
                let joined = cursor.u8().ok().filter(|flag| *flag <= 1)? == 1;
                let member = info(&mut cursor).ok()?;
                cursor.end().ok()?;
                Some(Told::Member { joined, member })
            }
            4 => Some(Told::Order { from: cursor.u32().ok()?, frame: cursor.rest }),
            5..=7 => presence(*kind, &mut cursor).ok(),
            _ => None,
        }
    }
}

fn presence<'a>(kind: u8, cursor: &mut Cursor<'a>) -> Result<Told<'a>, IngestError> {
    if kind == 5 {
        let (from, question) = (cursor.u32()?, cursor.u64()?);
        let counts_only = match cursor.u8()? {
            0 => false,
            1 => true,
            _ => return Err(IngestError::BadFrame),
        };
        cursor.end()?;
        return Ok(Told::Question { from, question, counts_only });
    }
    let question = cursor.u64()?;
    if kind == 7 {
        let (clients, users, count) = (cursor.u32()?, cursor.u32()?, cursor.u32()?);
        let (hashes, rest) = cursor.rest.as_chunks();
        if !rest.is_empty() || hashes.len() != count as usize {
            return Err(IngestError::BadFrame);
        }
        return Ok(Told::Counts { question, clients, users, hashes: Hashes::Stored(hashes) });
    }
    let more = match cursor.u8()? {
        0 => More::No,
        1 => More::Yes,
        2 => More::TooMany,
        _ => return Err(IngestError::BadFrame),
    };
    let count = cursor.u32()?;
    let bytes = cursor.rest;
    for _ in 0..count {
        info(cursor)?;
    }
    cursor.end()?;
    Ok(Told::Members { question, more, members: Members::Stored { count, bytes } })
}

fn info<'a>(cursor: &mut Cursor<'a>) -> Result<ClientInfoView<'a>, IngestError> {
    Ok(ClientInfoView {
        user: text(cursor)?,
        client: text(cursor)?,
        conn_info: blob(cursor)?,
        chan_info: blob(cursor)?,
    })
}

pub(crate) fn text<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str, IngestError> {
    let len = cursor.u16()?;
    cursor.text(len as usize)
}

pub(crate) fn blob<'a>(cursor: &mut Cursor<'a>) -> Result<&'a [u8], IngestError> {
    let len = cursor.u32()?;
    cursor.bytes(len as usize)
}

fn put_info(out: &mut Vec<u8>, info: &ClientInfoView<'_>) {
    put_text(out, info.user);
    put_text(out, info.client);
    put_blob(out, info.conn_info);
    put_blob(out, info.chan_info);
}

/// A text that is too long for its length goes as nothing: names, users and tags are bounded far below.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    let text = if text.len() > u16::MAX as usize { "" } else { text };
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

pub(crate) fn put_blob(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use proptest::prelude::*;

    proptest! {
        /// What is written is read, and no other bytes are taken for it: neither a part of it, nor more.
        #[test]
        fn what_is_written_is_read(
            bytes in any::<bool>(),
            at_ms in any::<u64>(),
            payload in prop::collection::vec(any::<u8>(), 0..40),
            publisher in prop::option::of(("[a-zé]{0,9}", "[a-z]{0,9}", prop::collection::vec(any::<u8>(), 0..9))),
            tags in prop::collection::vec(("[a-zé]{0,5}", "[a-z]{0,5}"), 0..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let tags: Vec<Tag> = tags.iter().map(|(name, value)| ((**name).into(), (**value).into())).collect();
            let view = |given: &'_ (String, String, Vec<u8>)| (given.0.clone(), given.1.clone(), given.2.clone());
            let publisher_view = publisher.as_ref().map(|(user, client, info)| ClientInfoView {
                user, client, conn_info: info, chan_info: b"{}",
            });
            let kind = if bytes { PayloadKind::Bytes } else { PayloadKind::Json };
            let record = Record { kind, at_ms, payload: &payload, publisher: publisher_view, tags: Tags::Given(&tags) };
            let mut out = Vec::new();
            Told::Publication(record).write(&mut out);
            let Some(Told::Publication(read)) = Told::read(&out) else { panic!("not read") };
            prop_assert_eq!((read.kind, read.at_ms, read.payload), (kind, at_ms, &payload[..]));
            let found = read.publisher.map(|info| (info.user.into(), info.client.into(), info.conn_info.to_vec()));
            prop_assert_eq!(found, publisher.as_ref().map(view));
            prop_assert_eq!(&*read.tags.to_boxed(), &tags[..]);
            prop_assert!(Told::read(&out[..cut.index(out.len())]).is_none());
            out.push(0);
            prop_assert!(Told::read(&out).is_none());
        }

        #[test]
        fn what_is_asked_and_answered_is_read(
            question in any::<u64>(),
            users in prop::collection::vec("[a-zé]{0,9}", 0..5),
            hashes in prop::collection::vec(any::<u64>(), 0..5),
            cut in any::<prop::sample::Index>(),
        ) {
            let given: Vec<_> = users
                .iter()
                .map(|user| ClientInfoView { user, client: "c", conn_info: b"{}", chan_info: b"" })
                .collect();
            let told = [
                Told::Question { from: 7, question, counts_only: true },
                Told::Members { question, more: More::Yes, members: Members::Given(&given) },
                Told::Counts { question, clients: 9, users: 8, hashes: Hashes::Given(&hashes) },
            ];
            for told in told {
                let mut out = Vec::new();
                told.write(&mut out);
                match (told, Told::read(&out)) {
                    (Told::Question { .. }, Some(Told::Question { from: 7, question: read, counts_only: true })) => {
                        prop_assert_eq!(read, question);
                    }
                    (Told::Members { .. }, Some(Told::Members { question: read, more: More::Yes, members })) => {
                        let found: Vec<_> = members.iter().map(|member| String::from(member.user)).collect();
                        prop_assert_eq!((read, &found), (question, &users));
                    }
                    (Told::Counts { .. }, Some(Told::Counts { question: read, clients: 9, users: 8, hashes: found })) => {
                        prop_assert_eq!((read, found.iter().collect::<Vec<_>>()), (question, hashes.clone()));
                    }
                    (_, read) => panic!("{read:?}"),
                }
                prop_assert!(Told::read(&out[..cut.index(out.len())]).is_none());
                out.push(0);
                prop_assert!(Told::read(&out).is_none());
            }
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = (Record::read(&bytes), Told::read(&bytes));
        }
    }
}
