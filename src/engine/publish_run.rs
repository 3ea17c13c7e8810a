//! Publishes of one backend's connection that came together and have one owner: what crosses a lane at once.
//!
//! In: publishes as `shard/ingest.rs` has checked them, in order. Out: one message per owner for all that was read at
//! once, and one answer to it. A run has three buffers, however many publishes are in it.
//! Invariant: all open runs belong to the one connection that is being read; they are sent before anything else that it
//! asks for, and when its bytes are used up, so that the owner hears in the order in which the backend spoke.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use ringway_wire::ingest::{Ack, PayloadKind};

use crate::ids::{ConnId, CoreId};
use crate::lane_message::{LaneMessage, PublishError};
use crate::lanes::LanesOut;

/// Publishes on their way to the owner of their channels. Payloads have been checked.
#[derive(Debug)]
pub struct PublishRun {
    /// Where the backend waits.
    pub from: CoreId,
    /// Its connection.
    pub conn: ConnId,
    channels: String,
    /// Keys and payloads, in turn.
    bytes: Vec<u8>,
    rows: Vec<Row>,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    seq: u64,
    payload_bytes: u32,
    channel_bytes: u8,
    key_bytes: u8,
    kind: PayloadKind,
}

/// One publish of a run, or of a frame that is being read.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Number that the backend gave it.
    pub seq: u64,
    /// What the payload is.
    pub kind: PayloadKind,
    /// Scoped to the channel, at most 255 bytes; empty: none.
    pub idempotency_key: &'a [u8],
    /// Full name, at most 255 bytes.
    pub channel: &'a str,
    /// JSON without raw newlines, or bytes.
    pub payload: &'a [u8],
}

impl PublishRun {
    fn new(from: CoreId, conn: ConnId) -> Self {
        PublishRun { from, conn, channels: String::new(), bytes: Vec::new(), rows: Vec::new() }
    }

    fn push(&mut self, entry: &Entry<'_>) {
        self.channels.push_str(entry.channel);
        self.bytes.extend_from_slice(entry.idempotency_key);
        self.bytes.extend_from_slice(entry.payload);
        self.rows.push(Row {
            seq: entry.seq,
            payload_bytes: entry.payload.len() as u32,
            channel_bytes: entry.channel.len() as u8,
            key_bytes: entry.idempotency_key.len() as u8,
            kind: entry.kind,
        });
    }

    /// How many publishes.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none; such a run is never sent.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Each of them, in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        let (mut channels, mut bytes) = (&*self.channels, &self.bytes[..]);
        self.rows.iter().map(move |row| {
            let (channel, other_channels) = channels.split_at(row.channel_bytes as usize);
            let (idempotency_key, behind) = bytes.split_at(row.key_bytes as usize);
            let (payload, other_bytes) = behind.split_at(row.payload_bytes as usize);
            (channels, bytes) = (other_channels, other_bytes);
            Entry { seq: row.seq, kind: row.kind, idempotency_key, channel, payload }
        })
    }

    /// Bytes of memory it takes.
    pub fn memory_bytes(&self) -> usize {
        let rows = self.rows.capacity() * size_of::<Row>();
        size_of::<Self>() + self.channels.capacity() + self.bytes.capacity() + rows
    }
}

/// What became of the publishes of one run, in its order.
#[derive(Debug)]
pub struct RunAnswer {
    /// The backend's connection.
    pub conn: ConnId,
    /// One each.
    pub answers: Vec<EntryAnswer>,
}

impl RunAnswer {
    /// Bytes of memory it takes.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.answers.capacity() * size_of::<EntryAnswer>()
    }
}

/// What became of one publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryAnswer {
    /// Number that the backend gave it.
    pub seq: u64,
    /// Payload bytes, whose credit this returns.
    pub payload_bytes: u32,
    /// Where it stands, or why it does not.
    pub result: Result<Ack, PublishError>,
}

/// The runs that are being collected.
#[derive(Debug, Default)]
pub struct OpenRuns {
    by_core: Vec<Option<Box<PublishRun>>>,
    /// Cores with one, in the order in which they got it.
    open: Vec<CoreId>,
}

impl OpenRuns {
    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Adds a publish to the run for `to`.
    pub fn push(&mut self, to: CoreId, from: CoreId, conn: ConnId, entry: &Entry<'_>) {
        let index = to.0 as usize;
        if self.by_core.len() <= index {
            self.by_core.resize_with(index + 1, || None);
        }
        let run = self.by_core[index].get_or_insert_with(|| {
            self.open.push(to);
            Box::new(PublishRun::new(from, conn))
        });
        run.push(entry);
    }

    /// Sends all of them.
    pub fn send(&mut self, lanes: &mut LanesOut) {
        for to in self.open.drain(..) {
            if let Some(run) = self.by_core[to.0 as usize].take() {
                lanes.push(to, LaneMessage::PublishRun(run));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane_message::Batch;
    use proptest::prelude::*;

    proptest! {
        /// What goes in comes out, per owner and in order.
        #[test]
        fn runs_hold_what_was_put_in(
            given in prop::collection::vec((0u16..4, "[a-zé]{1,9}", prop::collection::vec(any::<u8>(), 0..9), 0usize..40), 0..60),
        ) {
            let (mut runs, mut lanes) = (OpenRuns::default(), LanesOut::new(CoreId(9), 10, usize::MAX, 100));
            let conn = ConnId { slot: 3, generation: 4 };
            let payload = [b'1'; 40];
            let entry = |seq: usize, (_, channel, key, bytes): &'_ (u16, String, Vec<u8>, usize)| {
                let kind = if seq.is_multiple_of(2) { PayloadKind::Json } else { PayloadKind::Bytes };
                (seq as u64, kind, key.clone(), channel.clone(), payload[..*bytes].to_vec())
            };
            for (seq, one) in given.iter().enumerate() {
                let (seq, kind, key, channel, payload) = entry(seq, one);
                let entry = Entry { seq, kind, idempotency_key: &key, channel: &channel, payload: &payload };
                runs.push(CoreId(one.0), CoreId(9), conn, &entry);
            }
            runs.send(&mut lanes);
            prop_assert!(runs.is_empty());
            for to in 0..4 {
                let wanted: Vec<_> = given.iter().enumerate().filter(|(_, one)| one.0 == to).map(|(seq, one)| entry(seq, one)).collect();
                let messages = lanes.take_batch(CoreId(to)).map_or(Vec::new(), |Batch { messages, .. }| messages);
                prop_assert_eq!(messages.len(), usize::from(!wanted.is_empty()));
                let Some(LaneMessage::PublishRun(run)) = messages.first() else { continue };
                prop_assert_eq!((run.from, run.conn, run.len()), (CoreId(9), conn, wanted.len()));
                let found = run.iter().map(|one| (one.seq, one.kind, one.idempotency_key.to_vec(), String::from(one.channel), one.payload.to_vec()));
                prop_assert_eq!(found.collect::<Vec<_>>(), wanted);
            }
        }
    }
}
