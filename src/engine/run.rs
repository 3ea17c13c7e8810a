//! What waits for the subscribers of one channel on this core, and the fan-out under way.
//!
//! In: publications and events in lane order, and the channel's lists as they were when each came. Out: (connection
//! slot, frame) pairs, as many at a time as asked for.
//!
//! ```text
//! list      [ 7 | 9 | - | 12 | 3 ]         connection slots by join order; '-' left while a fan-out was waiting
//! waiting   P5(end 4) P6(end 5)            each goes to entries below its `end`: the list as it was when P came
//! part      one list's frames; "based" for subscribers that have the publication before the first, "whole" for others
//! ```
//! Invariants: all frames of a run that an entry is to get follow each other without a gap, so that after the first,
//! which is whole unless the subscriber has the one before, deltas apply; an entry that has got a publication has its base
//! until something is dropped. Ends never fall from one frame to the next.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::fanout::{Delivery, Lossy, Taken};
use crate::frame::Frame;
use crate::list::{HAS_BASE, List, VACANT, slot_of};
use crate::namespace::SlowConsumer;
use crate::publication::Publication;

/// Publications of one channel that one fan-out carries.
const JOINED_PUBLICATIONS_MAX: usize = 64;
/// Places for waiting publications that a channel's state may keep for the next channel.
const KEPT_CAPACITY: usize = 4 * JOINED_PUBLICATIONS_MAX;

/// See the file's header. Exists only while something waits; kept and reused for other channels.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    waiting: VecDeque<Waiting>,
    /// For each of `waiting`, one behind the other: per list of the channel its length when the publication came, or 0
    /// for a list that does not take it.
    ends: VecDeque<u32>,
    run: Run,
    /// Bytes of publications in `waiting` and in `run`.
    pub(crate) backlog_bytes: usize,
}

#[derive(Debug)]
struct Waiting {
    publication: Arc<Publication>,
    /// How many of `ends` are its own; lists that were added later have none.
    lists: u32,
}

/// A fan-out under way; none while `lists` is 0.
#[derive(Debug, Default)]
struct Run {
    /// How many lists it serves.
    lists: usize,
    /// The list at hand, and the place in it.
    list: usize,
    cursor: u32,
    /// Bytes of the publications it carries.
    bytes: usize,
    /// Set when what it carries may be dropped for slow connections, to the channel's slot.
    lossy: Option<(SlowConsumer, u32)>,
    /// By list; longer than `lists` when a run before had more.
    parts: Vec<Part>,
}

/// What one list gets.
#[derive(Debug, Default)]
struct Part {
    pieces: Vec<Piece>,
    /// All based frames as one, for entries that get all of them; none if there is one piece.
    joined: Option<Frame>,
    /// The same for entries without the base of the first; none if that is the same.
    joined_whole: Option<Frame>,
    /// Publications among the pieces; the rest are events.
    publications: u32,
}

#[derive(Debug)]
struct Piece {
    /// For subscribers that have the publication before.
    based: Frame,
    /// For the others; none if that is the same.
    whole: Option<Frame>,
    /// Entries below get it.
    end: u32,
    event: bool,
}

/// How far one call may go, and how far it has come.
pub(crate) struct Slice {
    pub(crate) budget: u32,
    pub(crate) done: u32,
    pub(crate) put_off: bool,
}

impl Pending {
    /// Takes in what goes to each list as it is now.
    pub(crate) fn push(&mut self, publication: Arc<Publication>, lists: &[List]) {
        self.backlog_bytes += publication.memory_bytes();
        let event = publication.is_event();
        let takes = |list: &List| !event || list.variant.join_leave();
        self.ends.extend(lists.iter().map(|list| if takes(list) { list.entries.len() as u32 } else { 0 }));
        self.waiting.push_back(Waiting { publication, lists: lists.len() as u32 });
    }

    /// Whether a fan-out is under way.
    pub(crate) const fn is_running(&self) -> bool {
        self.run.lists > 0
    }

    /// Whether it may be kept for another channel.
    pub(crate) fn is_small(&self) -> bool {
        self.waiting.capacity() <= KEPT_CAPACITY
    }

    /// Moves ends to where they are once a list's gaps are closed. Only while no fan-out is under way.
    pub(crate) fn compact(&mut self, lists: &[List]) {
        let mut first = 0;
        for waiting in &self.waiting {
            let ends = self.ends.range_mut(first..first + waiting.lists as usize);
            for (end, list) in ends.zip(lists) {
                *end = list.live_below(*end);
            }
            first += waiting.lists as usize;
        }
    }

    /// Takes what waits into a fan-out; false if nothing waits. What waits together goes out as one joined frame: one
    /// write per subscriber instead of one each.
    pub(crate) fn begin(&mut self, lists: &[List], policy: SlowConsumer, channel: u32, joined: &mut Joined) -> bool {
        let Pending { waiting, ends, run, .. } = self;
        let Some(first) = waiting.front() else { return false };
        let event = first.publication.is_event();
        // Events are never dropped, so they do not travel with what may be.
        let lossy = policy != SlowConsumer::Disconnect;
        run.start(lists.len(), (lossy && !event).then_some((policy, channel)));
        let (mut bytes, mut taken) = (0, 0);
        while let Some(next) = waiting.front() {
            bytes += next.publication.frame_bytes_max();
            let apart = lossy && next.publication.is_event() != event;
            if taken > 0 && (bytes > joined.bytes_max || taken == JOINED_PUBLICATIONS_MAX || apart) {
                break;
            }
            let Some(Waiting { publication, lists: count }) = waiting.pop_front() else { break };
            run.bytes += publication.memory_bytes();
            for ((list, part), end) in lists.iter().zip(&mut run.parts).zip(ends.drain(..count as usize)) {
                if end > 0 {
                    part.add(&publication, list, end);
                }
            }
            taken += 1;
        }
        run.parts[..run.lists].iter_mut().for_each(|part| part.join(joined));
        true
    }

    /// Goes on with the fan-out. Returns the bytes of what it carried once it has ended.
    pub(crate) fn advance(
        &mut self,
        lists: &mut [List],
        slice: &mut Slice,
        deliver: &mut impl FnMut(u32, &Delivery<'_>) -> Taken,
    ) -> Option<usize> {
        let run = &mut self.run;
        for (list, part) in lists.iter_mut().zip(&run.parts).take(run.lists).skip(run.list) {
            let ended = if list.variant.delta() {
                part.hand_out::<true>(&mut list.entries, &mut run.cursor, run.lossy, slice, deliver)
            } else {
                part.hand_out::<false>(&mut list.entries, &mut run.cursor, run.lossy, slice, deliver)
            };
            if !ended {
                return None;
            }
            run.list += 1;
            run.cursor = 0;
        }
        let bytes = run.bytes;
        run.finish();
        self.backlog_bytes -= bytes;
        Some(bytes)
    }
}

impl Run {
    fn start(&mut self, lists: usize, lossy: Option<(SlowConsumer, u32)>) {
        (self.lists, self.list, self.cursor, self.bytes, self.lossy) = (lists, 0, 0, 0, lossy);
        if self.parts.len() < lists {
            self.parts.resize_with(lists, Part::default);
        }
    }

    /// Lets go of the frames; room for the next ones stays.
    fn finish(&mut self) {
        for part in &mut self.parts[..self.lists] {
            part.pieces.clear();
            (part.joined, part.joined_whole, part.publications) = (None, None, 0);
        }
        self.lists = 0;
    }
}

/// Buffer in which frames are joined.
#[derive(Debug)]
pub(crate) struct Joined {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl Joined {
    pub(crate) const fn new(bytes_max: usize) -> Self {
        Joined { bytes: Vec::new(), bytes_max }
    }

    fn join<'a>(&mut self, frames: impl Iterator<Item = &'a Frame>) -> Frame {
        self.bytes.clear();
        frames.for_each(|frame| self.bytes.extend_from_slice(frame.bytes()));
        Frame::from_bytes(&self.bytes)
    }
}

impl Part {
    fn add(&mut self, publication: &Arc<Publication>, list: &List, end: u32) {
        let frame = |has_base| Frame::from_publication(Arc::clone(publication), list.variant, has_base);
        let Some(based) = frame(true) else {
            debug_assert!(false, "not encoded for a list that takes it");
            return;
        };
        let event = publication.is_event();
        let whole = if list.variant.delta() && !event { frame(false) } else { None };
        self.publications += u32::from(!event);
        self.pieces.push(Piece { based, whole, end, event });
    }

    fn join(&mut self, joined: &mut Joined) {
        if self.pieces.len() < 2 {
            return;
        }
        self.joined = Some(joined.join(self.pieces.iter().map(|piece| &piece.based)));
        let first = self.pieces.iter().position(|piece| !piece.event);
        if let Some((at, whole)) = first.and_then(|at| Some((at, self.pieces.get(at)?.whole.as_ref()?))) {
            let frames = self.pieces.iter().enumerate();
            self.joined_whole = Some(joined.join(frames.map(|(i, piece)| if i == at { whole } else { &piece.based })));
        }
    }

    /// Goes on from the cursor; true when the list is through.
    fn hand_out<const DELTA: bool>(
        &self,
        entries: &mut [u32],
        cursor: &mut u32,
        lossy: Option<(SlowConsumer, u32)>,
        slice: &mut Slice,
        deliver: &mut impl FnMut(u32, &Delivery<'_>) -> Taken,
    ) -> bool {
        let (Some(first), Some(last)) = (self.pieces.first(), self.pieces.last()) else { return true };
        // The usual case: everybody on the list gets the same.
        if *cursor < first.end {
            let based = self.joined.as_ref().unwrap_or(&first.based);
            let whole = self.joined_whole.as_ref().or(first.whole.as_ref()).unwrap_or(based);
            let lossy = lossy.map(|(policy, channel)| match policy {
                SlowConsumer::Conflate => {
                    Lossy { policy, channel, instead: last.whole.as_ref().unwrap_or(&last.based), publications: 1 }
                }
                _ => Lossy { policy, channel, instead: whole, publications: self.publications },
            });
            let delivery = |frame| Delivery::new(frame, self.publications, lossy);
            let (whole, based) = (delivery(whole), delivery(based));
            // In registers while the loop runs.
            let (mut at, mut done) = (*cursor, slice.done);
            for entry in &mut entries[at as usize..first.end as usize] {
                if done == slice.budget {
                    break;
                }
                if *entry != VACANT {
                    let slot = if DELTA { slot_of(*entry) } else { *entry };
                    let delivery = if DELTA && *entry & HAS_BASE != 0 { &based } else { &whole };
                    if deliver(slot, delivery) == Taken::PutOff {
                        slice.put_off = true;
                        break;
                    }
                    if DELTA && self.publications > 0 {
                        *entry |= HAS_BASE;
                    }
                    done += 1;
                }
                at += 1;
            }
            (*cursor, slice.done) = (at, done);
            if at < first.end {
                return false;
            }
        }
        self.hand_out_singly::<DELTA>(entries, cursor, lossy, slice, deliver)
    }

    /// Those who joined between the first and the last get only what came after them.
    fn hand_out_singly<const DELTA: bool>(
        &self,
        entries: &mut [u32],
        cursor: &mut u32,
        lossy: Option<(SlowConsumer, u32)>,
        slice: &mut Slice,
        deliver: &mut impl FnMut(u32, &Delivery<'_>) -> Taken,
    ) -> bool {
        let end = self.pieces.last().map_or(0, |piece| piece.end);
        while *cursor < end {
            if slice.done >= slice.budget {
                return false;
            }
            let entry = &mut entries[*cursor as usize];
            let (at, vacant) = (*cursor, *entry == VACANT);
            let mut begun = false;
            for piece in self.pieces.iter().filter(|piece| piece.end > at && !vacant) {
                let whole = piece.whole.as_ref().unwrap_or(&piece.based);
                let frame = if DELTA && *entry & HAS_BASE == 0 { whole } else { &piece.based };
                let publications = u32::from(!piece.event);
                let lossy = lossy.map(|(policy, channel)| Lossy { policy, channel, instead: whole, publications });
                let delivery = Delivery { begun, ..Delivery::new(frame, publications, lossy) };
                if deliver(slot_of(*entry), &delivery) == Taken::PutOff && !begun {
                    slice.put_off = true;
                    return false;
                }
                if DELTA && !piece.event {
                    *entry |= HAS_BASE;
                }
                begun = true;
                slice.done += 1;
            }
            *cursor += 1;
        }
        true
    }
}
