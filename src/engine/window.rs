//! Records of one channel in one buffer, oldest first: a ring of bytes.
//!
//! In: payloads with a time. Out: the oldest, the newest, and runs of records from some place on.
//!
//! ```text
//! one record   [ len u32, bit 31: marked | at_ms u64 | payload | len u32 ]
//! the buffer   [ …newest ][ free ][ oldest … ]      records may go over the end and on at the front
//! ```
//! The length stands at both ends, so that the oldest can be taken and the newest few can be found without a walk over all.
//! One buffer instead of an allocation per record: a record costs 16 bytes beside its payload, and taking one in touches
//! the memory that the one it replaces has left.
//! Invariant: `used` is the sum of all records' bytes and never above the buffer's.

use alloc::boxed::Box;
use alloc::vec;

/// Bytes of a record beside its payload.
pub const RECORD_BYTES: usize = FRONT_BYTES + LEN_BYTES;
/// Bytes of the largest buffer: places are 32 bits wide. A channel that would need more forgets its oldest early.
pub const WINDOW_BYTES_MAX: usize = u32::MAX as usize;
const LEN_BYTES: usize = 4;
const FRONT_BYTES: usize = LEN_BYTES + 8;
const MARKED: u32 = 1 << 31;
/// Smallest buffer.
const BUFFER_BYTES_MIN: usize = 64;

/// See the file's header.
#[derive(Debug, Default)]
pub struct Window {
    buffer: Box<[u8]>,
    /// Where the oldest record begins.
    head: u32,
    used: u32,
    len: u32,
}

/// One record.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Its payload, in two pieces where it goes over the end of the buffer.
    pub payload: (&'a [u8], &'a [u8]),
    /// The mark it was given.
    pub marked: bool,
    /// When it was added.
    pub at_ms: u64,
}

/// A place between two records: how many lie before it, and where it is.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Records before it.
    pub index: usize,
    /// Bytes before it.
    at: usize,
}

impl Window {
    /// How many records there are.
    #[inline]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there is none.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory it takes.
    #[inline]
    pub const fn capacity(&self) -> usize {
        self.buffer.len()
    }

    /// Whether a payload of so many bytes fits as things are.
    #[inline]
    pub const fn fits(&self, payload_bytes: usize) -> bool {
        self.used as usize + payload_bytes + RECORD_BYTES <= self.buffer.len()
    }

    /// How large the buffer should become so that a payload of so many bytes fits, when at most `len_max` records are kept:
    /// half as large again, but not beyond what so many records of this size need.
    pub fn grown(&self, payload_bytes: usize, len_max: u32) -> usize {
        let need = self.used as usize + payload_bytes + RECORD_BYTES;
        let full = need as u64 * u64::from(len_max) / (u64::from(self.len) + 1);
        let half_as_much = self.buffer.len() + self.buffer.len() / 2;
        // A sixteenth more, since no two records need have one length.
        let wanted = half_as_much.min(usize::try_from(full + full / 16).unwrap_or(usize::MAX));
        allocated(wanted.max(need))
    }

    /// Moves the records into a buffer of this size, which must be enough for them.
    pub fn resize(&mut self, capacity: usize) {
        let capacity = capacity.max(self.used as usize);
        let mut buffer = vec![0; capacity].into_boxed_slice();
        let (front, back) = self.pieces(self.head as usize, self.used as usize);
        buffer[..front.len()].copy_from_slice(front);
        buffer[front.len()..front.len() + back.len()].copy_from_slice(back);
        self.buffer = buffer;
        self.head = 0;
    }

    /// Gives memory back when three quarters of it are not used.
    pub fn tidy(&mut self) {
        let capacity = allocated(self.used as usize);
        if self.len == 0 {
            *self = Window::default();
        } else if capacity <= self.buffer.len() / 4 {
            self.resize(capacity);
        }
    }

    /// Adds a record, which must fit ([`Window::fits`]).
    pub fn push(&mut self, payload: &[u8], at_ms: u64, marked: bool) {
        debug_assert!(self.fits(payload.len()));
        let len = (payload.len() as u32).to_le_bytes();
        let first = payload.len() as u32 | if marked { MARKED } else { 0 };
        let mut front = [0; FRONT_BYTES];
        front[..LEN_BYTES].copy_from_slice(&first.to_le_bytes());
        front[LEN_BYTES..].copy_from_slice(&at_ms.to_le_bytes());
        let bytes = payload.len() + RECORD_BYTES;
        let at = self.wrapped(self.head as usize + self.used as usize);
        if let Some(record) = self.buffer.get_mut(at..at + bytes) {
            record[..FRONT_BYTES].copy_from_slice(&front);
            record[FRONT_BYTES..bytes - LEN_BYTES].copy_from_slice(payload);
            record[bytes - LEN_BYTES..].copy_from_slice(&len);
        } else {
            self.put(at, &front);
            self.put(self.wrapped(at + FRONT_BYTES), payload);
            self.put(self.wrapped(at + bytes - LEN_BYTES), &len);
        }
        self.used += bytes as u32;
        self.len += 1;
    }

    /// When the oldest record was added.
    #[inline]
    pub fn oldest_at_ms(&self) -> Option<u64> {
        (self.len > 0).then(|| u64::from_le_bytes(self.array(self.wrapped(self.head as usize + LEN_BYTES))))
    }

    /// Forgets the oldest; whether it was marked.
    pub fn pop(&mut self) -> Option<bool> {
        if self.len == 0 {
            return None;
        }
        let first = u32::from_le_bytes(self.array(self.head as usize));
        let bytes = (first & !MARKED) as usize + RECORD_BYTES;
        self.head = self.wrapped(self.head as usize + bytes) as u32;
        self.used -= bytes as u32;
        self.len -= 1;
        Some(first & MARKED != 0)
    }

    /// The place before the newest `count` records, and the bytes of their payloads.
    pub fn before_newest(&self, count: usize) -> (Cut, usize) {
        let count = count.min(self.len());
        let mut at = self.used as usize;
        for _ in 0..count {
            let end = self.wrapped(self.head as usize + at - LEN_BYTES);
            at -= u32::from_le_bytes(self.array(end)) as usize + RECORD_BYTES;
        }
        let bytes = self.used as usize - at - count * RECORD_BYTES;
        (Cut { index: self.len() - count, at }, bytes)
    }

    /// The place before the oldest.
    pub const fn start(&self) -> Cut {
        Cut { index: 0, at: 0 }
    }

    /// The place behind the newest.
    #[cfg(test)]
    const fn end(&self) -> Cut {
        Cut { index: self.len as usize, at: self.used as usize }
    }

    /// The record behind a place, and the place behind that.
    pub fn next(&self, cut: Cut) -> Option<(Record<'_>, Cut)> {
        if cut.index >= self.len() {
            return None;
        }
        let at = self.wrapped(self.head as usize + cut.at);
        let first = u32::from_le_bytes(self.array(at));
        let len = (first & !MARKED) as usize;
        let payload = self.pieces(self.wrapped(at + FRONT_BYTES), len);
        let at_ms = u64::from_le_bytes(self.array(self.wrapped(at + LEN_BYTES)));
        let record = Record { payload, marked: first & MARKED != 0, at_ms };
        Some((record, Cut { index: cut.index + 1, at: cut.at + len + RECORD_BYTES }))
    }

    /// The record before a place, and the place before that.
    pub fn back(&self, cut: Cut) -> Option<(Record<'_>, Cut)> {
        let index = cut.index.checked_sub(1)?;
        let end = self.wrapped(self.head as usize + cut.at - LEN_BYTES);
        let at = cut.at - u32::from_le_bytes(self.array(end)) as usize - RECORD_BYTES;
        let before = Cut { index, at };
        self.next(before).map(|(record, _)| (record, before))
    }

    #[inline]
    fn wrapped(&self, at: usize) -> usize {
        if at >= self.buffer.len() { at - self.buffer.len() } else { at }
    }

    /// Bytes from a place on, in two pieces where they go over the end.
    fn pieces(&self, at: usize, len: usize) -> (&[u8], &[u8]) {
        let whole = self.buffer.len();
        if at + len <= whole {
            (&self.buffer[at..at + len], &[])
        } else {
            (&self.buffer[at..], &self.buffer[..at + len - whole])
        }
    }

    #[inline]
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        if let Some(bytes) = self.buffer.get(at..).and_then(|rest| rest.first_chunk()) {
            return *bytes;
        }
        let (front, back) = self.pieces(at, N);
        let mut bytes = [0; N];
        bytes[..front.len()].copy_from_slice(front);
        bytes[front.len()..].copy_from_slice(back);
        bytes
    }

    /// Copies bytes to a place, over the end where they reach it.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        let (front, back) = bytes.split_at(bytes.len().min(self.buffer.len() - at));
        self.buffer[at..at + front.len()].copy_from_slice(front);
        self.buffer[..back.len()].copy_from_slice(back);
    }
}

/// What an allocation of so many bytes really takes: allocators have about four sizes to a doubling, so what lies between
/// costs the same.
fn allocated(bytes: usize) -> usize {
    let bytes = bytes.max(BUFFER_BYTES_MIN);
    let step = 1 << (bytes.ilog2() - 2);
    bytes.next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::VecDeque;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn joined(record: Record<'_>) -> (Vec<u8>, bool) {
        ([record.payload.0, record.payload.1].concat(), record.marked)
    }

    fn forward(window: &Window, mut cut: Cut) -> Vec<(Vec<u8>, bool)> {
        let mut found = Vec::new();
        while let Some((record, next)) = window.next(cut) {
            found.push(joined(record));
            cut = next;
        }
        found
    }

    fn backward(window: &Window) -> Vec<(Vec<u8>, bool)> {
        let (mut found, mut cut) = (Vec::new(), window.end());
        while let Some((record, before)) = window.back(cut) {
            found.push(joined(record));
            cut = before;
        }
        found
    }

    proptest! {
        /// Against a plain queue: records of any length come and go, the buffer grows and shrinks, and what is read from any
        /// place on, in either direction, is the queue's.
        #[test]
        fn a_window_is_a_queue(steps in prop::collection::vec((0usize..40, any::<bool>(), 0u8..8), 0..200), len_max in 1u32..20) {
            let (mut window, mut queue) = (Window::default(), VecDeque::new());
            for (number, (len, marked, act)) in steps.into_iter().enumerate() {
                match act {
                    0 => prop_assert_eq!(window.pop(), queue.pop_front().map(|(_, marked, _)| marked)),
                    1 => window.tidy(),
                    _ => {
                        while window.len() >= len_max as usize {
                            window.pop();
                            queue.pop_front();
                        }
                        if !window.fits(len) {
                            window.resize(window.grown(len, len_max));
                        }
                        prop_assert!(window.fits(len));
                        let payload: Vec<u8> = (0..len).map(|byte| (number + byte) as u8).collect();
                        window.push(&payload, number as u64, marked);
                        queue.push_back((payload, marked, number as u64));
                    }
                }
                prop_assert_eq!(window.len(), queue.len());
                prop_assert_eq!(window.oldest_at_ms(), queue.front().map(|(_, _, at_ms)| *at_ms));
                let mut all: Vec<_> = queue.iter().map(|(payload, marked, _)| (payload.clone(), *marked)).collect();
                prop_assert_eq!(&forward(&window, window.start()), &all);
                let newest = len % (queue.len() + 1);
                let (cut, bytes) = window.before_newest(newest);
                let expected = &all[all.len() - newest..];
                prop_assert_eq!(bytes, expected.iter().map(|(payload, _)| payload.len()).sum::<usize>());
                prop_assert_eq!(&forward(&window, cut)[..], expected);
                all.reverse();
                prop_assert_eq!(backward(&window), all);
            }
        }
    }

    #[test]
    fn a_full_window_of_equal_records_wastes_little_and_never_grows_again() {
        let mut window = Window::default();
        let mut capacity = 0;
        for number in 0..1_000u64 {
            while window.len() >= 100 {
                window.pop();
            }
            if !window.fits(128) {
                window.resize(window.grown(128, 100));
            }
            window.push(&[7; 128], number, false);
            if number == 99 {
                capacity = window.capacity();
            }
        }
        assert_eq!(window.capacity(), capacity);
        assert!(capacity <= 100 * (128 + RECORD_BYTES) * 5 / 4, "{capacity}");
        (0..90).for_each(|_| assert!(window.pop().is_some()));
        window.tidy();
        assert!(window.capacity() <= 20 * (128 + RECORD_BYTES));
        (0..10).for_each(|_| assert!(window.pop().is_some()));
        window.tidy();
        assert_eq!(window.capacity(), 0);
    }
}
