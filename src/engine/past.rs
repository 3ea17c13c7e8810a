//! Publications of the past, copied out of a channel's window: what a recovery or a page of history brings.
//!
//! In: payloads as `history.rs` finds them, in the order of the answer. Out: views of them, wherever the answer goes.
//! All payloads stand in one buffer, so that an answer costs two allocations and no shared counter, however long it is.

use alloc::sync::Arc;
use alloc::vec::Vec;

use ringway_wire::centrifuge::reply::PublicationView;

use crate::ids::Offset;
use crate::publication::{Extra, view};

/// See the file's header.
#[derive(Debug, Default)]
pub struct Past {
    payloads: Vec<u8>,
    rows: Vec<Row>,
    first: Offset,
    reverse: bool,
}

#[derive(Debug)]
struct Row {
    /// Where the payload ends; it begins where the one before ends.
    end: usize,
    extra: Option<Arc<Extra>>,
}

impl Past {
    /// Nothing yet; the first to come has the offset `first`, and each further one the next, or with `reverse` the one
    /// before.
    pub const fn new(first: Offset, reverse: bool) -> Self {
        Past { payloads: Vec::new(), rows: Vec::new(), first, reverse }
    }

    /// Makes room for so many, with so many bytes of payload in all.
    pub fn reserve(&mut self, publications: usize, bytes: usize) {
        self.rows.reserve_exact(publications);
        self.payloads.reserve_exact(bytes);
    }

    /// Adds one; its payload comes in two pieces.
    pub fn push(&mut self, payload: (&[u8], &[u8]), extra: Option<Arc<Extra>>) {
        self.payloads.extend_from_slice(payload.0);
        self.payloads.extend_from_slice(payload.1);
        self.rows.push(Row { end: self.payloads.len(), extra });
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Bytes of all payloads.
    pub fn payload_bytes(&self) -> usize {
        self.payloads.len()
    }

    /// Bytes of memory they take.
    pub fn memory_bytes(&self) -> usize {
        let extras = self.rows.iter().filter_map(|row| row.extra.as_ref()).map(|extra| extra.memory_bytes());
        self.payloads.capacity() + self.rows.capacity() * size_of::<Row>() + extras.sum::<usize>()
    }

    /// Each of them, in the order of the answer.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = PublicationView<'_>> + Clone {
        self.rows.iter().enumerate().map(|(index, row)| {
            let start = index.checked_sub(1).map_or(0, |before| self.rows[before].end);
            let steps = index as Offset;
            let offset = if self.reverse { self.first - steps } else { self.first + steps };
            view(&self.payloads[start..row.end], offset, row.extra.as_deref())
        })
    }
}
