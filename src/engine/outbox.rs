//! What waits to be written to one connection: bounded, in order, joined into one contiguous write.
//!
//! In: frames from the other stages through `shard.rs`. Out: a [`WriteBatch`] for the driver, then how much of each
//! write the socket took.
//!
//! ```text
//! queue    head ─> node ─> node ─> node <─ tail        nodes live in one pool per shard
//!          ^ `sent` bytes of the head are already out
//! ```
//! A lone frame is written from its shared bytes; several are copied into one contiguous write (6 times cheaper than
//! one write each). Invariants: bytes leave in the order pushed; a frame once begun is finished or the connection ends.

use alloc::vec::Vec;

use crate::frame::Frame;
use crate::ids::ConnId;

/// Bytes joined into one write at most; what is left follows when the socket takes more.
pub const WRITE_BYTES_MAX: usize = 128 * 1024;
/// Writes collected at a time.
pub const WRITES_PER_BATCH_MAX: usize = 256;

const NONE: u32 = u32::MAX;

/// A connection's queue; 20 bytes when idle, and nothing else.
#[derive(Debug)]
pub struct Queue {
    head: u32,
    tail: u32,
    /// Bytes waiting, without those of the head that are already out.
    bytes: u32,
    /// Bytes of the head that are already out.
    sent: u32,
    /// The socket did not take everything; wait for `Writable`.
    pub blocked: bool,
    /// It stands on the shard's list of connections to write to.
    pub listed: bool,
    /// Nothing is written until something that belongs in front has been inserted.
    pub held: bool,
}

/// A place in a queue: behind what it held when the mark was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u32);

impl Default for Mark {
    /// In front of everything.
    fn default() -> Self {
        Mark(NONE)
    }
}

impl Queue {
    /// Nothing waits.
    pub const EMPTY: Queue =
        Queue { head: NONE, tail: NONE, bytes: 0, sent: 0, blocked: false, listed: false, held: false };

    /// Whether nothing waits.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.head == NONE
    }

    /// Bytes waiting.
    #[inline]
    pub const fn bytes(&self) -> u32 {
        self.bytes
    }
}

/// The nodes of all queues of a shard.
#[derive(Debug, Default)]
pub struct Outboxes {
    nodes: Vec<Node>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Node {
    frame: Option<Frame>,
    next: u32,
}

impl Outboxes {
    /// Appends a frame. The caller has checked the bound.
    #[inline]
    pub fn push(&mut self, queue: &mut Queue, frame: Frame) {
        queue.bytes += frame.bytes().len() as u32;
        let index = self.node(frame);
        if queue.tail == NONE {
            queue.head = index;
        } else {
            self.nodes[queue.tail as usize].next = index;
        }
        queue.tail = index;
    }

    #[inline]
    fn node(&mut self, frame: Frame) -> u32 {
        let node = Node { frame: Some(frame), next: NONE };
        match self.free.pop() {
            Some(index) => {
                self.nodes[index as usize] = node;
                index
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        }
    }

    /// Stops a queue from being written, and marks where it ends.
    pub const fn hold(queue: &mut Queue) -> Mark {
        queue.held = true;
        Mark(queue.tail)
    }

    /// Lets a held queue go on, with a frame at the marked place.
    pub fn release(&mut self, queue: &mut Queue, mark: Mark, frame: Frame) {
        queue.held = false;
        if mark.0 == NONE && queue.head == NONE {
            return self.push(queue, frame);
        }
        queue.bytes += frame.bytes().len() as u32;
        let index = self.node(frame);
        let before = match self.nodes.get_mut(mark.0 as usize) {
            Some(node) => &mut node.next,
            None => &mut queue.head,
        };
        let following = core::mem::replace(before, index);
        self.nodes[index as usize].next = following;
        if following == NONE {
            queue.tail = index;
        }
    }

    /// Adds what waits for `conn` to the batch, up to [`WRITE_BYTES_MAX`]. The queue keeps it until `wrote`.
    pub fn collect(&self, queue: &Queue, conn: ConnId, batch: &mut WriteBatch) {
        let Some(head) = self.nodes.get(queue.head as usize) else { return };
        let Some(frame) = &head.frame else { return };
        if head.next == NONE && queue.sent == 0 {
            batch.items.push(Item { conn, source: Source::Frame(frame.clone()) });
            return;
        }
        let start = batch.joined.len();
        let mut skip = queue.sent as usize;
        let mut next = queue.head;
        while let Some(Node { frame: Some(frame), next: following }) = self.nodes.get(next as usize) {
            let room = WRITE_BYTES_MAX - (batch.joined.len() - start);
            let bytes = &frame.bytes()[skip..];
            batch.joined.extend_from_slice(&bytes[..bytes.len().min(room)]);
            if bytes.len() >= room {
                break;
            }
            skip = 0;
            next = *following;
        }
        batch.items.push(Item { conn, source: Source::Joined(start as u32..batch.joined.len() as u32) });
    }

    /// Takes what the socket took off the queue.
    pub fn wrote(&mut self, queue: &mut Queue, bytes: usize) {
        debug_assert!(bytes <= queue.bytes as usize);
        queue.bytes -= bytes as u32;
        let mut left = bytes + queue.sent as usize;
        while queue.head != NONE {
            let node = &mut self.nodes[queue.head as usize];
            let len = node.frame.as_ref().map_or(0, |frame| frame.bytes().len());
            if left < len {
                break;
            }
            left -= len;
            node.frame = None;
            let freed = queue.head;
            queue.head = node.next;
            self.free.push(freed);
        }
        queue.sent = left as u32;
        if queue.head == NONE {
            queue.tail = NONE;
        }
    }

    /// Drops everything but a frame that has begun to go out, so that a Close frame can follow it.
    pub fn drop_unsent(&mut self, queue: &mut Queue) {
        let begun = (queue.sent > 0).then_some(queue.head);
        let mut next = match begun {
            Some(head) => core::mem::replace(&mut self.nodes[head as usize].next, NONE),
            None => queue.head,
        };
        while next != NONE {
            let node = &mut self.nodes[next as usize];
            let frame = node.frame.take();
            queue.bytes -= frame.map_or(0, |frame| frame.bytes().len() as u32);
            self.free.push(next);
            next = node.next;
        }
        (queue.head, queue.tail) = begun.map_or((NONE, NONE), |head| (head, head));
    }

    /// Frees everything; the connection is gone.
    pub fn clear(&mut self, queue: &mut Queue) {
        let mut next = queue.head;
        while let Some(node) = self.nodes.get_mut(next as usize) {
            node.frame = None;
            self.free.push(next);
            next = node.next;
        }
        *queue = Queue { listed: queue.listed, ..Queue::EMPTY };
    }

    /// Nodes in use, for tests and memory reports.
    pub fn nodes_in_use(&self) -> usize {
        self.nodes.len() - self.free.len()
    }
}

/// Writes to be made, one per connection. Kept and reused by the driver.
#[derive(Debug, Default)]
pub struct WriteBatch {
    items: Vec<Item>,
    joined: Vec<u8>,
}

#[derive(Debug)]
struct Item {
    conn: ConnId,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Frame(Frame),
    Joined(core::ops::Range<u32>),
}

impl WriteBatch {
    /// The writes, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (ConnId, &[u8])> {
        self.items.iter().map(|item| (item.conn, self.bytes_of(item)))
    }

    /// One write.
    pub fn get(&self, index: usize) -> Option<(ConnId, &[u8])> {
        self.items.get(index).map(|item| (item.conn, self.bytes_of(item)))
    }

    /// How many writes there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Whether it should be written before more is collected.
    pub fn is_full(&self) -> bool {
        self.items.len() >= WRITES_PER_BATCH_MAX || self.joined.len() >= WRITE_BYTES_MAX
    }

    /// Forgets the writes; frames go back to being held by their queues alone.
    pub fn clear(&mut self) {
        self.items.clear();
        self.joined.clear();
    }

    #[inline]
    fn bytes_of<'a>(&'a self, item: &'a Item) -> &'a [u8] {
        match &item.source {
            Source::Frame(frame) => frame.bytes(),
            Source::Joined(range) => &self.joined[range.start as usize..range.end as usize],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONN: ConnId = ConnId { slot: 0, generation: 0 };

    proptest! {
        /// Random pushes and short writes: the bytes that leave are the bytes pushed, in order.
        #[test]
        fn bytes_leave_in_order(steps in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..50), 0usize..80), 1..100)) {
            let (mut outboxes, mut queue) = (Outboxes::default(), Queue::EMPTY);
            let (mut pushed, mut left) = (Vec::new(), Vec::new());
            let mut batch = WriteBatch::default();
            for (bytes, take) in steps {
                outboxes.push(&mut queue, Frame::from_bytes(&bytes));
                pushed.extend_from_slice(&bytes);
                batch.clear();
                outboxes.collect(&queue, CONN, &mut batch);
                let (_, write) = batch.get(0).expect("something waits");
                let take = take.min(write.len());
                left.extend_from_slice(&write[..take]);
                outboxes.wrote(&mut queue, take);
                prop_assert_eq!(queue.bytes() as usize, pushed.len() - left.len());
            }
            batch.clear();
            outboxes.collect(&queue, CONN, &mut batch);
            if let Some((_, write)) = batch.get(0) {
                left.extend_from_slice(write);
                outboxes.wrote(&mut queue, write.len());
            }
            prop_assert_eq!(left, pushed);
            prop_assert!(queue.is_empty());
            prop_assert_eq!(outboxes.nodes_in_use(), 0);
        }
    }

    #[test]
    fn a_begun_frame_is_kept_when_the_rest_is_dropped() {
        let (mut outboxes, mut queue) = (Outboxes::default(), Queue::EMPTY);
        for frame in [b"first".as_slice(), b"second", b"third"] {
            outboxes.push(&mut queue, Frame::from_bytes(frame));
        }
        outboxes.wrote(&mut queue, 2);
        outboxes.drop_unsent(&mut queue);
        outboxes.push(&mut queue, Frame::from_bytes(b"|close"));
        let mut batch = WriteBatch::default();
        outboxes.collect(&queue, CONN, &mut batch);
        assert_eq!(batch.get(0).map(|(_, bytes)| bytes), Some(b"rst|close".as_slice()));
        outboxes.clear(&mut queue);
        assert_eq!(outboxes.nodes_in_use(), 0);
    }

    #[test]
    fn a_lone_frame_is_not_copied() {
        let (mut outboxes, mut queue) = (Outboxes::default(), Queue::EMPTY);
        let frame = Frame::from_static(b"shared");
        outboxes.push(&mut queue, frame.clone());
        let mut batch = WriteBatch::default();
        outboxes.collect(&queue, CONN, &mut batch);
        assert_eq!(batch.get(0).map(|(_, bytes)| bytes.as_ptr()), Some(frame.bytes().as_ptr()));
    }
}
