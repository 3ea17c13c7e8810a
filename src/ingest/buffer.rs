//! Publishes that have no outcome yet, in the order of the calls.
//!
//! In: publishes from the client's face; outcomes by number. Out: any of them again as a [`Publish`] to send.
//!
//! ```text
//! slots     [ base_seq | base_seq+1 | … | next_seq-1 ]    one small record each: where its bytes are, who waits
//! segments  [ key channel payload | key channel payload … ][ … ]   bytes, SEGMENT_BYTES each, freed from the front
//! ```
//!
//! Invariants: the front slot has no outcome (slots with one leave as soon as all before them have left). Segments hold
//! the bytes of slots in order, so that a segment is free when the first slot of a later one is at the front. Room is
//! counted over the whole span, which is what memory is held for.

use std::collections::VecDeque;

use ringway_wire::ingest::{PayloadKind, Publish};

use crate::state::Waiter;

/// Bytes of one allocation for many publishes; a larger publish gets one of its own.
const SEGMENT_BYTES: usize = 64 * 1024;

/// Length of a key made from instance and number.
pub(crate) const MADE_KEY_BYTES: usize = 24;

#[derive(Debug)]
struct Slot {
    segment: u64,
    at: u32,
    payload_len: u32,
    key_len: u8,
    channel_len: u8,
    kind: PayloadKind,
    /// None: it has its outcome.
    waiter: Option<Waiter>,
}

impl Slot {
    fn bytes_len(&self) -> usize {
        usize::from(self.key_len) + usize::from(self.channel_len) + self.payload_len as usize
    }
}

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Buffer {
    /// First half of the keys that are made here.
    instance: [u8; 16],
    base_seq: u64,
    slots: VecDeque<Slot>,
    first_segment: u64,
    segments: VecDeque<Vec<u8>>,
    bytes: usize,
}

/// A publish to keep; lengths have been checked.
pub(crate) struct NewPublish<'a> {
    pub(crate) kind: PayloadKind,
    /// Empty: one is made.
    pub(crate) key: &'a [u8],
    pub(crate) channel: &'a str,
    pub(crate) payload: &'a [u8],
}

impl NewPublish<'_> {
    pub(crate) fn bytes_len(&self) -> usize {
        self.key.len() + self.channel.len() + self.payload.len()
    }
}

impl Buffer {
    pub(crate) fn new(instance: [u8; 16]) -> Self {
        // Numbers begin at 1, so that 0 stays free to mean "none" in logs.
        Buffer { instance, base_seq: 1, slots: VecDeque::new(), first_segment: 0, segments: VecDeque::new(), bytes: 0 }
    }

    /// Number of the oldest publish without an outcome, or of the next one.
    pub(crate) fn base_seq(&self) -> u64 {
        self.base_seq
    }

    /// Number that the next publish gets.
    pub(crate) fn next_seq(&self) -> u64 {
        self.base_seq + self.slots.len() as u64
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Bytes over the whole span.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps a publish and gives it its number.
    pub(crate) fn push(&mut self, publish: &NewPublish<'_>, waiter: Waiter) -> u64 {
        let bytes_len = publish.bytes_len();
        let fits = self.segments.back().is_some_and(|segment| segment.capacity() - segment.len() >= bytes_len);
        if !fits {
            self.segments.push_back(Vec::with_capacity(bytes_len.max(SEGMENT_BYTES)));
        }
        let seq = self.next_seq();
        let last = self.segments.len() - 1;
        let segment = &mut self.segments[last];
        self.slots.push_back(Slot {
            segment: self.first_segment + last as u64,
            at: segment.len() as u32,
            payload_len: publish.payload.len() as u32,
            key_len: publish.key.len() as u8,
            channel_len: publish.channel.len() as u8,
            kind: publish.kind,
            waiter: Some(waiter),
        });
        segment.extend_from_slice(publish.key);
        segment.extend_from_slice(publish.channel.as_bytes());
        segment.extend_from_slice(publish.payload);
        self.bytes += bytes_len;
        seq
    }

    /// The publish with this number if it has no outcome yet. A made key is put into `made_key`.
    #[inline]
    pub(crate) fn get<'b>(&'b self, seq: u64, made_key: &'b mut [u8; MADE_KEY_BYTES]) -> Option<Publish<'b>> {
        let slot = self.slots.get(usize::try_from(seq.checked_sub(self.base_seq)?).ok()?)?;
        slot.waiter.as_ref()?;
        let segment = self.segments.get((slot.segment - self.first_segment) as usize)?;
        let bytes = segment.get(slot.at as usize..slot.at as usize + slot.bytes_len())?;
        let (key, rest) = bytes.split_at(usize::from(slot.key_len));
        let (channel, payload) = rest.split_at(usize::from(slot.channel_len));
        let idempotency_key = if key.is_empty() {
            made_key[..16].copy_from_slice(&self.instance);
            made_key[16..].copy_from_slice(&seq.to_le_bytes());
            &made_key[..]
        } else {
            key
        };
        let channel = std::str::from_utf8(channel).ok()?;
        Some(Publish { seq, kind: slot.kind, idempotency_key, channel, payload })
    }

    /// Payload bytes of a publish without an outcome; none when there is no such publish.
    #[inline]
    pub(crate) fn payload_len(&self, seq: u64) -> Option<u32> {
        let slot = self.slots.get(usize::try_from(seq.checked_sub(self.base_seq)?).ok()?)?;
        slot.waiter.as_ref().map(|_| slot.payload_len)
    }

    /// Marks a publish as having its outcome, and lets go what is complete at the front.
    pub(crate) fn complete(&mut self, seq: u64) -> Option<Waiter> {
        let index = usize::try_from(seq.checked_sub(self.base_seq)?).ok()?;
        let waiter = self.slots.get_mut(index)?.waiter.take()?;
        while self.slots.front().is_some_and(|slot| slot.waiter.is_none()) {
            self.pop_front();
        }
        Some(waiter)
    }

    fn pop_front(&mut self) {
        let Some(slot) = self.slots.pop_front() else { return };
        self.base_seq += 1;
        self.bytes -= slot.bytes_len();
        let first_used = self.slots.front().map_or(slot.segment, |next| next.segment);
        while self.first_segment < first_used {
            self.segments.pop_front();
            self.first_segment += 1;
        }
        if self.slots.is_empty() {
            match self.segments.back_mut() {
                // The common case of a client that keeps up: the same allocation serves for ever.
                Some(segment) if segment.capacity() <= SEGMENT_BYTES => segment.clear(),
                _ => {
                    self.first_segment += self.segments.len() as u64;
                    self.segments.clear();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn take(buffer: &Buffer, seq: u64) -> Option<(Vec<u8>, String, Vec<u8>)> {
        let mut key = [0; MADE_KEY_BYTES];
        let publish = buffer.get(seq, &mut key)?;
        Some((publish.idempotency_key.to_vec(), publish.channel.to_owned(), publish.payload.to_vec()))
    }

    #[test]
    fn made_keys_are_instance_and_number() {
        let mut buffer = Buffer::new([7; 16]);
        let publish = NewPublish { kind: PayloadKind::Json, key: b"", channel: "c", payload: b"1" };
        assert_eq!(buffer.push(&publish, Waiter::Callback), 1);
        let (key, ..) = take(&buffer, 1).unwrap();
        assert_eq!(key, [&[7u8; 16][..], &1u64.to_le_bytes()].concat());
    }

    proptest! {
        /// Random pushes and completions against a plain map: every publish without an outcome keeps its bytes, the
        /// front always has none, and segments are let go.
        #[test]
        fn agrees_with_a_map(steps in prop::collection::vec((any::<bool>(), any::<u16>(), 0usize..40_000), 1..200)) {
            let mut buffer = Buffer::new([1; 16]);
            let mut model = std::collections::BTreeMap::new();
            for (push, pick, size) in steps {
                if push || model.is_empty() {
                    let payload = vec![pick as u8; size];
                    let channel = format!("c{pick}");
                    let key = pick.to_le_bytes();
                    let publish =
                        NewPublish { kind: PayloadKind::Bytes, key: &key, channel: &channel, payload: &payload };
                    let seq = buffer.push(&publish, Waiter::Callback);
                    prop_assert_eq!(model.insert(seq, (key.to_vec(), channel, payload)), None);
                } else {
                    let seq = *model.keys().nth(usize::from(pick) % model.len()).unwrap();
                    prop_assert!(buffer.complete(seq).is_some());
                    prop_assert!(buffer.complete(seq).is_none());
                    model.remove(&seq);
                }
                prop_assert_eq!(buffer.base_seq(), model.keys().next().copied().unwrap_or(buffer.next_seq()));
                let held: usize = buffer.segments.iter().map(Vec::capacity).sum();
                prop_assert!(held <= 2 * buffer.bytes() + 2 * SEGMENT_BYTES, "{held} for {}", buffer.bytes());
            }
            for seq in 0..=buffer.next_seq() {
                prop_assert_eq!(take(&buffer, seq), model.get(&seq).cloned());
            }
        }
    }
}
