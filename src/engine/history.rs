//! The publications of one channel that are still kept, in order.
//!
//! In: publications as the owner numbers them, and questions about the past. Out: what a returning client missed, or
//! pages of history.
//!
//! ```text
//! kept    [ 5 | 6 | 7 | 8 ]          top = 8: the last one kept is the last one numbered
//! recover from 6 -> 7 8              from 4 -> 5 6 7 8        from 3 -> not recovered
//! page    since 6 -> 7 8             since 3 -> 5 6 7 8       since 7 reverse -> 6 5
//! ```
//! Payloads stand in the channel's [`Window`]; what few publications have beside them stands apart, in the same order.
//! Invariant: what is kept is dense and ends at the channel's top; whoever numbers a publication without keeping it
//! calls [`History::clear`].

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::call::{CallError, HistoryAsk};
use crate::ids::Offset;
use crate::lane_message::{Position, RecoverFrom, Recovery};
use crate::limits::Limits;
use crate::namespace::RecoveryMode;
use crate::past::Past;
use crate::publication::Extra;
use crate::window::{Cut, WINDOW_BYTES_MAX, Window};

/// See the file's header.
#[derive(Debug, Default)]
pub struct History {
    window: Window,
    /// Of the marked records, oldest first. None until the first comes.
    extras: Option<Box<Extras>>,
}

#[derive(Debug, Default)]
struct Extras {
    queue: VecDeque<Arc<Extra>>,
    bytes: usize,
}

/// What a history may take.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Publications.
    pub len_max: u32,
    /// Bytes of memory.
    pub bytes_max: u64,
}

impl History {
    /// Keeps the publication that has just become the channel's top, in place of the oldest where there is no room for
    /// more of them. Returns how many were forgotten because of the bytes; when even one does not fit, all are.
    pub fn push(&mut self, payload: &[u8], extra: Option<Arc<Extra>>, now_ms: u64, room: Room) -> u64 {
        let mut forgotten = 0;
        while self.len() >= room.len_max.max(1) as usize {
            self.pop_oldest();
        }
        let extra_bytes = extra.as_ref().map_or(0, |extra| extra.memory_bytes());
        while !self.make_room(payload.len(), extra_bytes, room) {
            if !self.pop_oldest() {
                self.clear();
                return forgotten + 1;
            }
            forgotten += 1;
        }
        self.window.push(payload, now_ms, extra.is_some());
        if let Some(extra) = extra {
            let extras = self.extras.get_or_insert_default();
            extras.bytes += extra_bytes;
            extras.queue.push_back(extra);
        }
        forgotten
    }

    /// Whether a publication fits, if need be in a larger buffer.
    fn make_room(&mut self, payload_bytes: usize, extra_bytes: usize, room: Room) -> bool {
        let beside = (self.bytes() + extra_bytes - self.window.capacity()) as u64;
        if self.window.fits(payload_bytes)
            && (extra_bytes == 0 || self.window.capacity() as u64 + beside <= room.bytes_max)
        {
            return true;
        }
        let capacity = self.window.grown(payload_bytes, room.len_max);
        if capacity > WINDOW_BYTES_MAX || capacity as u64 + beside > room.bytes_max {
            return false;
        }
        self.window.resize(capacity);
        true
    }

    /// How many publications are kept.
    #[inline]
    pub fn len(&self) -> usize {
        self.window.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.window.is_empty()
    }

    /// Bytes of memory it takes.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.window.capacity() + self.extras.as_ref().map_or(0, |extras| extras.bytes)
    }

    /// When the oldest was published.
    #[inline]
    pub fn oldest_at_ms(&self) -> Option<u64> {
        self.window.oldest_at_ms()
    }

    /// Forgets the oldest. False: there is none.
    pub fn pop_oldest(&mut self) -> bool {
        let Some(marked) = self.window.pop() else { return false };
        if marked && let Some(extras) = &mut self.extras {
            extras.bytes -= extras.queue.pop_front().map_or(0, |extra| extra.memory_bytes());
        }
        true
    }

    /// Gives memory back that publications forgotten since have left.
    pub fn tidy(&mut self) {
        self.window.tidy();
        self.extras.take_if(|extras| extras.queue.is_empty());
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        *self = History::default();
    }

    /// Everything that is kept, oldest first, with its times: to be kept anew behind something older.
    pub fn records(&self) -> Vec<(Vec<u8>, Option<Arc<Extra>>, u64)> {
        let (mut cut, mut extras, mut all) = (self.window.start(), 0, Vec::with_capacity(self.len()));
        while let Some((record, next)) = self.window.next(cut) {
            all.push(([record.payload.0, record.payload.1].concat(), self.extra(record.marked, extras), record.at_ms));
            extras += usize::from(record.marked);
            cut = next;
        }
        all
    }

    /// What a client that returns with a position gets.
    pub fn recover(&self, top: Position, from: RecoverFrom, mode: RecoveryMode, limits: &Limits) -> Recovery {
        match mode {
            RecoveryMode::Stream => self.recover_stream(top, from, limits),
            RecoveryMode::Cache => self.recover_cache(top, from),
        }
    }

    /// All that followed `from`, or that it cannot be had. A partial list is never an answer.
    fn recover_stream(&self, top: Position, from: RecoverFrom, limits: &Limits) -> Recovery {
        let same_epoch = from.epoch.is_none_or(|epoch| epoch == top.epoch);
        if !same_epoch || from.offset > top.offset {
            return Recovery::NotRecovered;
        }
        let missed = top.offset - from.offset;
        if missed > self.len() as u64 || missed > u64::from(limits.recovery_publications_max) {
            return Recovery::NotRecovered;
        }
        let (cut, bytes) = self.window.before_newest(missed as usize);
        if bytes > limits.recovery_bytes_max as usize {
            return Recovery::NotRecovered;
        }
        let mut past = Past::new(from.offset + 1, false);
        past.reserve(missed as usize, bytes);
        self.copy(cut, missed as usize, &mut past, |_| true);
        Recovery::Recovered(past)
    }

    /// The latest publication unless the client has it, whatever it came from: publications replace each other.
    fn recover_cache(&self, top: Position, from: RecoverFrom) -> Recovery {
        let has_it = from.offset > 0 && from.offset == top.offset && from.epoch == Some(top.epoch);
        if has_it {
            return Recovery::Recovered(Past::default());
        }
        if self.is_empty() {
            return Recovery::NotRecovered;
        }
        let mut past = Past::new(top.offset, false);
        let (cut, bytes) = self.window.before_newest(1);
        past.reserve(1, bytes);
        self.copy(cut, 1, &mut past, |_| true);
        Recovery::Recovered(past)
    }

    /// A page of the past, at most `history_publications_max` long and `call_answer_bytes_max` of payload large (but
    /// one publication is always given); whoever wants more asks again since the last one of the page.
    ///
    /// # Errors
    /// `BadRequest` for what lies before the beginning; `UnrecoverablePosition` for a position of another epoch. A
    /// position that is not kept any more is no error: forward, the page begins with the oldest that is kept; in
    /// reverse nothing lies before it.
    pub fn page(&self, top: Position, ask: &HistoryAsk, limits: &Limits) -> Result<Past, CallError> {
        if let Some(since) = ask.since {
            if ask.reverse && since.offset == 0 {
                return Err(CallError::BadRequest);
            }
            if since.epoch.is_some_and(|epoch| epoch != top.epoch) {
                return Err(CallError::UnrecoverablePosition);
            }
        }
        // Negative: no number was named.
        let asked = u32::try_from(ask.limit).unwrap_or(u32::MAX);
        let count_max = asked.min(limits.history_publications_max) as usize;
        let since = ask.since.map(|since| since.offset);
        let mut bytes = 0;
        let mut fits = |payload_bytes: usize| {
            let is_first = bytes == 0;
            bytes += payload_bytes;
            is_first || bytes <= limits.call_answer_bytes_max as usize
        };
        let floor = self.floor(top.offset);
        if ask.reverse {
            let end = since.map_or(self.len(), |since| self.places_up_to(since - 1, top.offset));
            let mut past = Past::new(floor + end as u64, true);
            self.copy_back(self.cut(end), count_max, &mut past, &mut fits);
            Ok(past)
        } else {
            let start = since.map_or(0, |since| self.places_behind(since, top.offset));
            let mut past = Past::new(floor + start as u64 + 1, false);
            self.copy(self.cut(start), count_max, &mut past, &mut fits);
            Ok(past)
        }
    }

    /// The place before the record `index`, found from the nearer end.
    fn cut(&self, index: usize) -> Cut {
        if index > self.len() / 2 {
            return self.window.before_newest(self.len() - index).0;
        }
        let mut cut = self.window.start();
        while cut.index < index {
            let Some((_, next)) = self.window.next(cut) else { break };
            cut = next;
        }
        cut
    }

    /// Copies what follows a place, as long as `fits` says so of its length.
    fn copy(&self, mut cut: Cut, count_max: usize, past: &mut Past, mut fits: impl FnMut(usize) -> bool) {
        let mut extras = self.extras_before(cut);
        while past.len() < count_max
            && let Some((record, next)) = self.window.next(cut)
            && fits(record.payload.0.len() + record.payload.1.len())
        {
            past.push(record.payload, self.extra(record.marked, extras));
            extras += usize::from(record.marked);
            cut = next;
        }
    }

    /// Copies what stands before a place, newest first.
    fn copy_back(&self, mut cut: Cut, count_max: usize, past: &mut Past, mut fits: impl FnMut(usize) -> bool) {
        let mut extras = self.extras_before(cut);
        while past.len() < count_max
            && let Some((record, before)) = self.window.back(cut)
            && fits(record.payload.0.len() + record.payload.1.len())
        {
            extras -= usize::from(record.marked);
            past.push(record.payload, self.extra(record.marked, extras));
            cut = before;
        }
    }

    fn extra(&self, marked: bool, index: usize) -> Option<Arc<Extra>> {
        let extras = self.extras.as_ref().filter(|_| marked)?;
        extras.queue.get(index).cloned()
    }

    /// How many marked records stand before a place.
    fn extras_before(&self, mut cut: Cut) -> usize {
        let mut before = self.extras.as_ref().map_or(0, |extras| extras.queue.len());
        // Most channels have none at all.
        while before > 0
            && let Some((record, next)) = self.window.next(cut)
        {
            before -= usize::from(record.marked);
            cut = next;
        }
        before
    }

    /// Offset before the oldest that is kept.
    fn floor(&self, top: Offset) -> Offset {
        top - self.len() as u64
    }

    /// Place of the first publication behind `offset`.
    fn places_behind(&self, offset: Offset, top: Offset) -> usize {
        (offset.saturating_sub(self.floor(top)) as usize).min(self.len())
    }

    /// Place after `offset`; 0 when it is not kept.
    fn places_up_to(&self, offset: Offset, top: Offset) -> usize {
        let known = offset <= top;
        if known { offset.saturating_sub(self.floor(top)) as usize } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Since;
    use crate::ids::Epoch;
    use crate::publication::{Publisher, Tags};
    use alloc::string::ToString;
    use alloc::vec::Vec;
    use proptest::prelude::*;
    use ringway_wire::centrifuge::reply::PublicationView;

    const EPOCH: Epoch = Epoch { boot: 7, creation: 3 };
    const OTHER: Epoch = Epoch { boot: 7, creation: 4 };

    const ROOM: Room = Room { len_max: u32::MAX, bytes_max: u64::MAX };

    /// Every third publication has a publisher, named by its offset.
    fn extra(offset: Offset) -> Option<Arc<Extra>> {
        let user = offset.to_string().into();
        let (conn_info, chan_info) = (Box::default(), Box::default());
        let publisher = Publisher { user, client: "c".into(), conn_info, chan_info };
        offset.is_multiple_of(3).then(|| Extra::of(Some(publisher), Tags::default())).flatten()
    }

    /// The last `len` publications of a channel whose top is `top`.
    fn history(top: Offset, len: u64) -> History {
        let mut history = History::default();
        (top - len + 1..=top)
            .for_each(|offset| assert_eq!(history.push(offset.to_string().as_bytes(), extra(offset), offset, ROOM), 0));
        history
    }

    fn top(offset: Offset) -> Position {
        Position { offset, epoch: EPOCH }
    }

    /// Offsets, each checked to come with its own payload and publisher.
    fn offsets(past: &Past) -> Vec<Offset> {
        let offset = |publication: PublicationView<'_>| {
            let text = publication.offset.to_string();
            if !publication.data.iter().all(|byte| *byte == b'1') || publication.data.len() < 30 {
                assert_eq!(publication.data, text.as_bytes());
                let by = publication.offset.is_multiple_of(3).then_some(&*text);
                assert_eq!(publication.info.map(|info| info.user), by);
            }
            publication.offset
        };
        past.iter().map(offset).collect()
    }

    fn recovered(recovery: Recovery) -> Option<Vec<Offset>> {
        match recovery {
            Recovery::Recovered(publications) => Some(offsets(&publications)),
            Recovery::NotRecovered => None,
        }
    }

    #[test]
    fn cache_mode_gives_the_latest_to_whoever_does_not_have_it() {
        let history = history(8, 2);
        let from = |offset, epoch| RecoverFrom { offset, epoch };
        let cache = |from| recovered(history.recover(top(8), from, RecoveryMode::Cache, &Limits::DEFAULT));
        assert_eq!(cache(from(0, None)), Some([8].into()));
        assert_eq!(cache(from(3, Some(EPOCH))), Some([8].into()), "trimmed long ago");
        assert_eq!(cache(from(8, Some(OTHER))), Some([8].into()), "another history's eighth");
        assert_eq!(cache(from(99, Some(EPOCH))), Some([8].into()));
        assert_eq!(cache(from(8, Some(EPOCH))), Some([].into()), "has it");
        let empty = History::default();
        let none = |from| recovered(empty.recover(top(8), from, RecoveryMode::Cache, &Limits::DEFAULT));
        assert_eq!(none(from(8, Some(EPOCH))), Some([].into()));
        assert_eq!(none(from(7, Some(EPOCH))), None);
        assert_eq!(none(from(0, None)), None);
    }

    #[test]
    fn a_page_ends_at_its_bytes_but_is_never_empty_for_them() {
        let mut history = History::default();
        for (offset, bytes) in [(1, 30), (2, 60), (3, 30), (4, 500)] {
            history.push(&[b'1'; 500][..bytes], None, offset, ROOM);
        }
        let limits = Limits { call_answer_bytes_max: 100, ..Limits::DEFAULT };
        let page = |offset, reverse| {
            let ask = HistoryAsk { limit: -1, since: Some(Since { offset, epoch: None }), reverse };
            offsets(&history.page(top(4), &ask, &limits).expect("the same epoch"))
        };
        assert_eq!(page(0, false), [1, 2]);
        assert_eq!(page(2, false), [3]);
        assert_eq!(page(3, false), [4]);
        assert_eq!(page(5, true), [4]);
        assert_eq!(page(4, true), [3, 2]);
    }

    #[test]
    fn positions_that_make_no_sense_are_refused() {
        let history = history(8, 4);
        let ask = |offset, epoch, reverse| {
            let ask = HistoryAsk { limit: 10, since: Some(Since { offset, epoch }), reverse };
            history.page(top(8), &ask, &Limits::DEFAULT).map(|page| offsets(&page))
        };
        assert_eq!(ask(0, None, true), Err(CallError::BadRequest));
        assert_eq!(ask(6, Some(OTHER), false), Err(CallError::UnrecoverablePosition));
        assert_eq!(ask(6, Some(EPOCH), false), Ok([7, 8].into()));
        assert_eq!(ask(u64::MAX, Some(EPOCH), false), Ok([].into()));
        assert_eq!(ask(u64::MAX, Some(EPOCH), true), Ok([].into()));
    }

    proptest! {
        /// Against a plain list of what was published: numbers 1 to `published`, the last `kept` of them kept.
        #[test]
        fn pages_are_those_of_a_list(
            published in 0u64..40,
            kept in 0u64..40,
            limit in -2i32..12,
            since in prop::option::of(0u64..45),
            reverse: bool,
            most in 1u32..12,
        ) {
            let kept = kept.min(published);
            let limits = Limits { history_publications_max: most, ..Limits::DEFAULT };
            let ask = HistoryAsk { limit, since: since.map(|offset| Since { offset, epoch: Some(EPOCH) }), reverse };
            let answer = history(published, kept).page(top(published), &ask, &limits);
            if reverse && since == Some(0) {
                prop_assert_eq!(answer.err(), Some(CallError::BadRequest));
                return Ok(());
            }
            let mut list: Vec<Offset> = (published - kept + 1..=published).collect();
            if reverse {
                // Beyond the top by more than one, nothing is known to lie before.
                list.retain(|offset| since.is_none_or(|since| *offset < since && since <= published + 1));
                list.reverse();
            } else {
                list.retain(|offset| since.is_none_or(|since| *offset > since));
            }
            list.truncate(if limit < 0 { most as usize } else { (limit as usize).min(most as usize) });
            prop_assert_eq!(offsets(&answer.expect("a known epoch")), list);
        }

        /// Paging by the last offset of each page walks all that is kept, in either direction, and nothing twice.
        #[test]
        fn paging_walks_everything_once(published in 1u64..60, kept in 1u64..60, limit in 1i32..9, reverse: bool) {
            let kept = kept.min(published);
            let history = history(published, kept);
            let (mut walked, mut since) = (Vec::new(), None);
            loop {
                let ask = HistoryAsk { limit, since, reverse };
                let page = history.page(top(published), &ask, &Limits::DEFAULT).expect("a known epoch");
                let Some(last) = page.iter().last() else { break };
                since = Some(Since { offset: last.offset, epoch: Some(EPOCH) });
                walked.extend(offsets(&page));
                prop_assert!(walked.len() as u64 <= kept);
            }
            let mut all: Vec<Offset> = (published - kept + 1..=published).collect();
            if reverse {
                all.reverse();
            }
            prop_assert_eq!(walked, all);
        }

        #[test]
        fn recovery_is_whole_or_none(published in 0u64..40, kept in 0u64..40, from in 0u64..45, most in 1u32..50) {
            let kept = kept.min(published);
            let limits = Limits { recovery_publications_max: most, ..Limits::DEFAULT };
            let from = RecoverFrom { offset: from, epoch: Some(EPOCH) };
            let answer = history(published, kept).recover(top(published), from, RecoveryMode::Stream, &limits);
            let missed: Vec<Offset> = (from.offset + 1..=published).collect();
            let possible = from.offset <= published && missed.len() as u64 <= kept && missed.len() <= most as usize;
            prop_assert_eq!(recovered(answer), possible.then_some(missed));
        }
    }
}
