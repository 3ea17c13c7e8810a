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
//! one write each). Frames of channels whose policy allows it are marked, and may be dropped or replaced while they wait.
//! Invariants: bytes leave in the order pushed; a frame once begun is finished or the connection ends; nothing is
//! pushed, dropped or replaced between `collect` and `wrote`.

use alloc::vec::Vec;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::frame::Frame;
use crate::ids::ConnId;

/// Bytes joined into one write at most; what is left follows when the socket takes more.
pub const WRITE_BYTES_MAX: usize = 128 * 1024;
/// Writes collected at a time.
pub const WRITES_PER_BATCH_MAX: usize = 256;
/// Frames that must stay, over which one search for frames to drop goes at most. Behind so many a connection is slow for
/// what it cannot do without, and ends as such.
const KEPT_FRAMES_PASSED_MAX: u32 = 256;

/// Nodes that are kept while no connection has anything waiting: what a turn's deliveries need. More of them, which many full
/// sockets needed at once, are given back.
const KEPT_NODES: usize = 8_192;

const NONE: u32 = u32::MAX;

/// A connection's queue; 28 bytes when idle, and nothing else.
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
    /// Up to this node nothing is dropped, and there belongs what a held queue waits for. None: in front of all.
    kept_to: u32,
    /// Tick of the connection's last traffic other than pings and pongs. It stands here because a delivery touches this
    /// cache line anyway.
    pub used_tick: u32,
}

impl Queue {
    /// Nothing waits.
    pub const EMPTY: Queue = Queue {
        head: NONE,
        tail: NONE,
        bytes: 0,
        sent: 0,
        blocked: false,
        listed: false,
        held: false,
        kept_to: NONE,
        used_tick: 0,
    };

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
#[derive(Debug)]
pub struct Outboxes {
    nodes: Vec<Node>,
    /// The first of the unused nodes, which follow each other by `next`: no table of their own.
    free: u32,
    /// Nodes that are in a queue.
    used: usize,
    /// Of marked nodes.
    marks: Vec<Mark>,
    free_marks: Vec<u32>,
    /// The node of a channel's newest publication in a queue, where only that one is kept. The hash needs no seed: keys
    /// are slots, which clients do not choose.
    newest: HashMap<(u32, u32), u32, FixedState>,
}

#[derive(Debug)]
struct Node {
    /// None: the node is unused.
    frame: Option<Frame>,
    next: u32,
    /// Index of its mark, or [`NONE`]. Fits where there was padding.
    mark: u32,
}

const _: () = assert!(size_of::<Node>() == 16, "a node waits for every delivery");

/// What a frame is that may be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Slot of the connection.
    pub conn: u32,
    /// Slot of the channel on this core.
    pub channel: u32,
    /// How many publications it carries.
    pub publications: u32,
    /// A newer one of the channel replaces it. Otherwise it may be dropped as one of the oldest.
    pub conflated: bool,
}

impl Default for Outboxes {
    fn default() -> Self {
        Outboxes {
            nodes: Vec::new(),
            free: NONE,
            used: 0,
            marks: Vec::new(),
            free_marks: Vec::new(),
            newest: HashMap::default(),
        }
    }
}

impl Outboxes {
    /// Appends a frame. The caller has checked the bound.
    #[inline]
    pub fn push(&mut self, queue: &mut Queue, frame: Frame) {
        let bytes = frame.size_bytes();
        self.push_node(queue, frame, bytes, NONE);
    }

    /// Appends a frame of so many bytes: where the same goes to many, they are counted once.
    #[inline]
    pub(crate) fn push_sized(&mut self, queue: &mut Queue, frame: Frame, bytes: usize) {
        debug_assert_eq!(bytes, frame.size_bytes());
        self.push_node(queue, frame, bytes, NONE);
    }

    #[inline]
    fn push_node(&mut self, queue: &mut Queue, frame: Frame, bytes: usize, mark: u32) -> u32 {
        queue.bytes += bytes as u32;
        let index = self.node(frame, mark);
        match self.nodes.get_mut(queue.tail as usize) {
            Some(tail) => tail.next = index,
            None => queue.head = index,
        }
        queue.tail = index;
        index
    }

    #[inline]
    fn node(&mut self, frame: Frame, mark: u32) -> u32 {
        let node = Node { frame: Some(frame), next: NONE, mark };
        self.used += 1;
        match self.nodes.get_mut(self.free as usize) {
            Some(place) => core::mem::replace(&mut self.free, core::mem::replace(place, node).next),
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        }
    }

    /// Makes a node that has no mark, and is in no queue any more, unused.
    #[inline]
    fn free(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        (node.frame, node.next) = (None, self.free);
        self.free = index;
        self.used -= 1;
    }

    /// Drops nothing of what waits now, whatever happens: the upgrade's answer, without which a Close frame cannot be
    /// read.
    pub const fn keep(queue: &mut Queue) {
        queue.kept_to = queue.tail;
    }

    /// Stops a queue from being written, and drops nothing of what waits now.
    pub const fn hold(queue: &mut Queue) {
        queue.held = true;
        queue.kept_to = queue.tail;
    }

    /// Lets a held queue go on, with a frame at the place where it ended when it was stopped. Nothing in front of that
    /// place may be droppable.
    pub fn let_go(&mut self, queue: &mut Queue, frame: Frame) {
        queue.held = false;
        if queue.head == NONE {
            return self.push(queue, frame);
        }
        queue.bytes += frame.size_bytes() as u32;
        let index = self.node(frame, NONE);
        let link = match self.nodes.get_mut(queue.kept_to as usize) {
            Some(node) => &mut node.next,
            None => &mut queue.head,
        };
        let following = core::mem::replace(link, index);
        self.nodes[index as usize].next = following;
        if following == NONE {
            queue.tail = index;
        }
    }

    /// Appends a frame that may be dropped. The caller has checked the bound. One that is conflated has no older one of
    /// its channel in the queue (see [`Outboxes::conflatable`]), unless that has begun to go out.
    pub fn push_marked(&mut self, queue: &mut Queue, frame: Frame, mark: Mark) {
        let at = self.free_marks.pop().unwrap_or_else(|| {
            self.marks.push(mark);
            self.marks.len() as u32 - 1
        });
        self.marks[at as usize] = mark;
        let bytes = frame.size_bytes();
        let node = self.push_node(queue, frame, bytes, at);
        if mark.conflated {
            self.newest.insert((mark.conn, mark.channel), node);
        }
    }

    /// The channel's frame that waits for the connection and would be replaced: its node and bytes.
    pub fn conflatable(&mut self, queue: &Queue, conn: u32, channel: u32) -> Option<(u32, u32)> {
        let node = *self.newest.get(&(conn, channel))?;
        if node == queue.head && queue.sent > 0 {
            return None;
        }
        Some((node, self.nodes[node as usize].frame.as_ref().map_or(0, Frame::size_bytes) as u32))
    }

    /// Puts a newer frame in the place of a waiting one, which [`Outboxes::conflatable`] found: behind everything, since
    /// what stands between may be what the newer one follows, such as the answer to a subscribe. Returns how many
    /// publications the older one carried.
    pub fn replace(&mut self, queue: &mut Queue, node: u32, frame: Frame, mark: Mark) -> u32 {
        let older = self.nodes[node as usize].frame.take();
        queue.bytes -= older.map_or(0, |older| older.size_bytes() as u32);
        let Node { next, mark: at, .. } = self.nodes[node as usize];
        let publications = self.marks.get(at as usize).map_or(0, |mark| mark.publications);
        if next == NONE {
            // It is the last one already.
            queue.bytes += frame.size_bytes() as u32;
            self.nodes[node as usize].frame = Some(frame);
            if let Some(place) = self.marks.get_mut(at as usize) {
                *place = mark;
            }
            return publications;
        }
        // The one before it is not known, so the one behind it moves into its place.
        self.unmark(node);
        let free = Node { frame: None, next: NONE, mark: NONE };
        let behind = core::mem::replace(&mut self.nodes[next as usize], free);
        self.free(next);
        if let Some(Mark { conn, channel, conflated: true, .. }) = self.marks.get(behind.mark as usize) {
            self.newest.insert((*conn, *channel), node);
        }
        if queue.tail == next {
            queue.tail = node;
        }
        self.nodes[node as usize] = behind;
        self.push_marked(queue, frame, mark);
        publications
    }

    /// Drops the oldest frames of those that may be, until `bytes` are free or there is none, and tells what they were.
    pub fn drop_oldest(&mut self, queue: &mut Queue, bytes: usize, mut dropped: impl FnMut(Mark)) {
        let (mut freed, mut passed) = (0, 0);
        let (mut before, mut at) = (NONE, queue.head);
        while at != NONE && freed < bytes && passed < KEPT_FRAMES_PASSED_MAX {
            let Node { next, mark, .. } = self.nodes[at as usize];
            let begun = at == queue.head && queue.sent > 0;
            match self.marks.get(mark as usize) {
                Some(mark) if !mark.conflated && !begun => {
                    dropped(*mark);
                    freed += self.release(queue, at);
                    match self.nodes.get_mut(before as usize) {
                        Some(before) => before.next = next,
                        None => queue.head = next,
                    }
                    if next == NONE {
                        queue.tail = before;
                    }
                }
                _ => {
                    passed += 1;
                    before = at;
                }
            }
            at = next;
        }
    }

    /// Frees a node that waits; the caller takes it out of the queue. Returns its bytes.
    fn release(&mut self, queue: &mut Queue, node: u32) -> usize {
        let bytes = self.nodes[node as usize].frame.take().map_or(0, |frame| frame.size_bytes());
        queue.bytes -= bytes as u32;
        self.unmark(node);
        self.free(node);
        bytes
    }

    /// Forgets a node's mark.
    fn unmark(&mut self, node: u32) {
        let at = core::mem::replace(&mut self.nodes[node as usize].mark, NONE);
        let Some(mark) = self.marks.get(at as usize) else { return };
        let key = (mark.conn, mark.channel);
        // Another one may be newest: this one had begun to go out when that came.
        if mark.conflated && self.newest.get(&key) == Some(&node) {
            self.newest.remove(&key);
        }
        self.free_marks.push(at);
    }

    /// Adds what waits for `conn` to the batch, up to [`WRITE_BYTES_MAX`]. The queue keeps it until `wrote`.
    #[inline]
    pub fn collect(&self, queue: &Queue, conn: ConnId, batch: &mut WriteBatch) {
        let Some(head) = self.nodes.get(queue.head as usize) else { return };
        let Some(frame) = &head.frame else { return };
        if head.next == NONE && queue.sent == 0 {
            batch.items.push(Item { conn, source: Source::Frame(frame.clone()) });
            return;
        }
        self.collect_joined(queue, conn, batch);
    }

    #[inline(never)]
    fn collect_joined(&self, queue: &Queue, conn: ConnId, batch: &mut WriteBatch) {
        let start = batch.joined.len();
        let mut skip = queue.sent as usize;
        let mut next = queue.head;
        while let Some(Node { frame: Some(frame), next: following, .. }) = self.nodes.get(next as usize) {
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
    #[inline(always)]
    pub fn wrote(&mut self, queue: &mut Queue, bytes: usize) {
        debug_assert!(bytes <= queue.bytes as usize);
        queue.bytes -= bytes as u32;
        // The usual case: one frame waited, and is out.
        if queue.bytes == 0
            && queue.head == queue.tail
            && let Some(node) = self.nodes.get_mut(queue.head as usize).filter(|node| node.mark == NONE)
        {
            (node.frame, node.next) = (None, self.free);
            self.free = queue.head;
            self.used -= 1;
            (queue.head, queue.tail, queue.sent, queue.kept_to) = (NONE, NONE, 0, NONE);
            return;
        }
        self.wrote_part(queue, bytes);
    }

    /// Of a queue whose bytes are counted already.
    #[inline(never)]
    fn wrote_part(&mut self, queue: &mut Queue, bytes: usize) {
        let mut left = bytes + queue.sent as usize;
        while queue.head != NONE {
            let node = &mut self.nodes[queue.head as usize];
            let len = node.frame.as_ref().map_or(0, Frame::size_bytes);
            if left < len {
                break;
            }
            left -= len;
            let (freed, marked) = (queue.head, node.mark != NONE);
            queue.head = node.next;
            if queue.kept_to == freed {
                queue.kept_to = NONE;
            }
            if marked {
                self.unmark(freed);
            }
            self.free(freed);
        }
        queue.sent = left as u32;
        if queue.head == NONE {
            queue.tail = NONE;
        }
    }

    /// Drops everything but a frame that has begun to go out and what is kept in any case, so that a Close frame can
    /// follow it.
    pub fn drop_unsent(&mut self, queue: &mut Queue) {
        let begun = (queue.sent > 0).then_some(queue.head);
        let kept = if queue.kept_to == NONE { begun } else { Some(queue.kept_to) };
        let mut next = match kept {
            Some(last) => core::mem::replace(&mut self.nodes[last as usize].next, NONE),
            None => queue.head,
        };
        while next != NONE {
            let following = self.nodes[next as usize].next;
            self.release(queue, next);
            next = following;
        }
        (queue.head, queue.tail) = kept.map_or((NONE, NONE), |last| (queue.head, last));
    }

    /// Frees everything; the connection is gone.
    pub fn clear(&mut self, queue: &mut Queue) {
        let mut next = queue.head;
        while let Some(node) = self.nodes.get(next as usize) {
            let (freed, marked) = (next, node.mark != NONE);
            next = node.next;
            if marked {
                self.unmark(freed);
            }
            self.free(freed);
        }
        *queue = Queue { listed: queue.listed, ..Queue::EMPTY };
    }

    /// Nodes in use, for tests and memory reports.
    pub fn nodes_in_use(&self) -> usize {
        self.used
    }

    /// Gives back what only a rush needed. Called now and then.
    pub fn shrink(&mut self) {
        if self.used == 0 && self.nodes.capacity() > KEPT_NODES {
            *self = Outboxes::default();
        }
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

    /// Bytes of some of the writes.
    #[inline]
    pub(crate) fn sizes(&self, writes: core::ops::Range<usize>) -> impl Iterator<Item = (ConnId, usize)> {
        self.items.get(writes).unwrap_or_default().iter().map(|item| {
            let bytes = match &item.source {
                Source::Frame(frame) => frame.size_bytes(),
                Source::Joined(range) => range.len(),
            };
            (item.conn, bytes)
        })
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

    /// What the queue of a model holds.
    #[derive(Debug)]
    struct Modelled {
        bytes: Vec<u8>,
        mark: Option<Mark>,
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(u8, Option<(u32, bool)>),
        Write(usize),
        Drop(usize),
        DropUnsent,
        Clear,
    }

    fn steps() -> impl Strategy<Value = Vec<(bool, Step)>> {
        let mark = prop::option::of((0u32..4, any::<bool>()));
        let step = prop_oneof![
            6 => (1u8..60, mark).prop_map(|(len, mark)| Step::Push(len, mark)),
            3 => (0usize..100).prop_map(Step::Write),
            1 => (1usize..150).prop_map(Step::Drop),
            1 => Just(Step::DropUnsent),
            1 => Just(Step::Clear),
        ];
        prop::collection::vec((any::<bool>(), step), 1..200)
    }

    proptest! {
        /// Two connections that share the nodes, ordinary and marked frames, short writes: what leaves is what a plain
        /// list of frames under the same rules lets out.
        #[test]
        fn marked_frames_are_dropped_and_replaced(steps in steps()) {
            let mut outboxes = Outboxes::default();
            let mut queues = [Queue::EMPTY, Queue::EMPTY];
            let mut models: [(Vec<Modelled>, usize); 2] = Default::default();
            let mut counter = 0u8;
            for (second, step) in steps {
                let conn = u32::from(second);
                let (queue, (model, sent)) = (&mut queues[usize::from(second)], &mut models[usize::from(second)]);
                match step {
                    Step::Push(len, mark) => {
                        counter = counter.wrapping_add(1);
                        let bytes = alloc::vec![counter; len as usize];
                        let frame = Frame::from_bytes(&bytes);
                        let mark = mark.map(|(channel, conflated)| Mark {
                            conn,
                            // A channel has one policy.
                            channel: channel * 2 + u32::from(conflated),
                            publications: u32::from(len),
                            conflated,
                        });
                        let begun = usize::from(*sent > 0);
                        let older = model.iter().skip(begun).position(|other| other.mark.is_some_and(|other| {
                            other.conflated && mark.is_some_and(|mark| mark.channel == other.channel)
                        }));
                        match mark {
                            None => outboxes.push(queue, frame),
                            Some(mark) => match outboxes.conflatable(queue, conn, mark.channel) {
                                Some((node, older_bytes)) => {
                                    let older = model.remove(begun + older.expect("one is found only if it waits"));
                                    prop_assert_eq!(older_bytes as usize, older.bytes.len());
                                    let publications = outboxes.replace(queue, node, frame, mark);
                                    prop_assert_eq!(Some(publications), older.mark.map(|mark| mark.publications));
                                }
                                None => {
                                    prop_assert!(older.is_none(), "one that waits is found");
                                    outboxes.push_marked(queue, frame, mark);
                                }
                            },
                        }
                        model.push(Modelled { bytes, mark });
                    }
                    Step::Write(take) => {
                        let mut batch = WriteBatch::default();
                        outboxes.collect(queue, CONN, &mut batch);
                        let waiting: Vec<u8> = model.iter().flat_map(|frame| frame.bytes.clone()).skip(*sent).collect();
                        let write = batch.get(0).map_or(&[][..], |(_, bytes)| bytes);
                        prop_assert_eq!(write, &waiting[..]);
                        let mut take = take.min(write.len());
                        outboxes.wrote(queue, take);
                        take += *sent;
                        while model.first().is_some_and(|frame| frame.bytes.len() <= take) {
                            take -= model.remove(0).bytes.len();
                        }
                        *sent = take;
                    }
                    Step::Drop(bytes) => {
                        let mut dropped = Vec::new();
                        outboxes.drop_oldest(queue, bytes, |mark| dropped.push(mark));
                        let (mut freed, mut at, mut expected) = (0, usize::from(*sent > 0), Vec::new());
                        while freed < bytes && at < model.len() {
                            if let Some(mark) = model[at].mark.filter(|mark| !mark.conflated) {
                                freed += model.remove(at).bytes.len();
                                expected.push(mark);
                            } else {
                                at += 1;
                            }
                        }
                        prop_assert_eq!(dropped, expected);
                    }
                    Step::DropUnsent => {
                        outboxes.drop_unsent(queue);
                        model.truncate(usize::from(*sent > 0));
                    }
                    Step::Clear => {
                        outboxes.clear(queue);
                        model.clear();
                        *sent = 0;
                    }
                }
                let bytes: usize = model.iter().map(|frame| frame.bytes.len()).sum();
                prop_assert_eq!(queue.bytes() as usize, bytes - *sent);
                let frames = models.iter().map(|(model, _)| model.len()).sum::<usize>();
                prop_assert_eq!(outboxes.nodes_in_use(), frames);
                let marked = models.iter().flat_map(|(model, _)| model).filter(|frame| frame.mark.is_some()).count();
                prop_assert_eq!(outboxes.marks.len() - outboxes.free_marks.len(), marked);
                prop_assert!(outboxes.newest.len() <= marked);
            }
            for queue in &mut queues {
                outboxes.clear(queue);
            }
            prop_assert_eq!((outboxes.nodes_in_use(), outboxes.newest.len()), (0, 0));
        }
    }

    #[test]
    fn a_search_for_frames_to_drop_is_bounded() {
        let (mut outboxes, mut queue) = (Outboxes::default(), Queue::EMPTY);
        for _ in 0..KEPT_FRAMES_PASSED_MAX {
            outboxes.push(&mut queue, Frame::from_static(b"kept"));
        }
        let mark = Mark { conn: 0, channel: 0, publications: 1, conflated: false };
        outboxes.push_marked(&mut queue, Frame::from_static(b"lossy"), mark);
        outboxes.drop_oldest(&mut queue, 1, |_| panic!("too far behind"));
        outboxes.wrote(&mut queue, 4);
        let mut dropped = 0;
        outboxes.drop_oldest(&mut queue, 1, |_| dropped += 1);
        assert_eq!(dropped, 1);
        outboxes.push(&mut queue, Frame::from_static(b"last"));
        let mut batch = WriteBatch::default();
        outboxes.collect(&queue, CONN, &mut batch);
        assert!(batch.get(0).is_some_and(|(_, bytes)| bytes.ends_with(b"keptlast")), "the tail was dropped");
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
    fn what_is_to_be_kept_is_kept_until_it_is_out() {
        let (mut outboxes, mut queue) = (Outboxes::default(), Queue::EMPTY);
        for held in [false, true] {
            outboxes.push(&mut queue, Frame::from_bytes(b"101"));
            if held {
                Outboxes::hold(&mut queue);
            } else {
                Outboxes::keep(&mut queue);
            }
            outboxes.push(&mut queue, Frame::from_bytes(b"publication"));
            outboxes.drop_unsent(&mut queue);
            assert_eq!(queue.bytes(), 3);
            outboxes.push(&mut queue, Frame::from_bytes(b"|close"));
            let mut batch = WriteBatch::default();
            outboxes.collect(&queue, CONN, &mut batch);
            assert_eq!(batch.get(0).map(|(_, bytes)| bytes), Some(b"101|close".as_slice()));
            // It is out: what comes then is dropped as ever.
            outboxes.wrote(&mut queue, 9);
            outboxes.push(&mut queue, Frame::from_bytes(b"publication"));
            outboxes.drop_unsent(&mut queue);
            assert!(queue.is_empty() && outboxes.nodes_in_use() == 0);
        }
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
