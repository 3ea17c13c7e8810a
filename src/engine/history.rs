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
//! Invariant: what is kept is dense and ends at the channel's top; whoever numbers a publication without keeping it
//! calls [`History::clear`].

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::call::{CallError, HistoryAsk};
use crate::ids::Offset;
use crate::lane_message::{Position, RecoverFrom, Recovery};
use crate::limits::Limits;
use crate::namespace::RecoveryMode;
use crate::publication::Publication;

/// See the file's header.
#[derive(Debug, Default)]
pub struct History {
    kept: VecDeque<Kept>,
}

#[derive(Debug)]
struct Kept {
    publication: Arc<Publication>,
    at_ms: u64,
}

impl History {
    /// Keeps the publication that has just become the channel's top.
    pub fn push(&mut self, publication: Arc<Publication>, now_ms: u64) {
        self.kept.push_back(Kept { publication, at_ms: now_ms });
    }

    /// How many publications are kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// When the oldest was published.
    pub fn oldest_at_ms(&self) -> Option<u64> {
        self.kept.front().map(|oldest| oldest.at_ms)
    }

    /// The newest.
    pub fn latest(&self) -> Option<&Arc<Publication>> {
        self.kept.back().map(|kept| &kept.publication)
    }

    /// Forgets the oldest.
    pub fn pop_oldest(&mut self) -> Option<Arc<Publication>> {
        self.kept.pop_front().map(|kept| kept.publication)
    }

    /// Forgets all; returns the bytes and the number of publications.
    pub fn clear(&mut self) -> (u64, u64) {
        let bytes = self.kept.iter().map(|kept| kept.publication.memory_bytes() as u64).sum();
        let len = self.kept.len() as u64;
        self.kept = VecDeque::new();
        (bytes, len)
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
        if missed > self.kept.len() as u64 || missed > u64::from(limits.recovery_publications_max) {
            return Recovery::NotRecovered;
        }
        let publications = self.kept.range(self.kept.len() - missed as usize..).map(|kept| &kept.publication);
        let bytes: usize = publications.clone().map(|publication| publication.payload().len()).sum();
        if bytes > limits.recovery_bytes_max as usize {
            return Recovery::NotRecovered;
        }
        Recovery::Recovered(publications.cloned().collect())
    }

    /// The latest publication unless the client has it, whatever it came from: publications replace each other.
    fn recover_cache(&self, top: Position, from: RecoverFrom) -> Recovery {
        let has_it = from.offset > 0 && from.offset == top.offset && from.epoch == Some(top.epoch);
        match self.latest() {
            _ if has_it => Recovery::Recovered(Vec::new()),
            Some(latest) => Recovery::Recovered([Arc::clone(latest)].into()),
            None => Recovery::NotRecovered,
        }
    }

    /// A page of the past, at most `history_publications_max` long and `call_answer_bytes_max` of payload large (but
    /// one publication is always given); whoever wants more asks again since the last one of the page.
    ///
    /// # Errors
    /// `BadRequest` for what lies before the beginning; `UnrecoverablePosition` for a position of another epoch. A
    /// position that is not kept any more is no error: forward, the page begins with the oldest that is kept; in
    /// reverse nothing lies before it.
    pub fn page(&self, top: Position, ask: &HistoryAsk, limits: &Limits) -> Result<Vec<Arc<Publication>>, CallError> {
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
        let mut page = Vec::new();
        let mut bytes = 0;
        let mut take = |kept: &Kept| {
            bytes += kept.publication.payload().len();
            let fits = page.is_empty() || bytes <= limits.call_answer_bytes_max as usize;
            if fits {
                page.push(Arc::clone(&kept.publication));
            }
            fits
        };
        if ask.reverse {
            let end = since.map_or(self.kept.len(), |since| self.places_up_to(since - 1, top.offset));
            self.kept.range(..end).rev().take(count_max).all(&mut take);
        } else {
            let start = since.map_or(0, |since| self.places_behind(since, top.offset));
            self.kept.range(start..).take(count_max).all(&mut take);
        }
        Ok(page)
    }

    /// Offset before the oldest that is kept.
    fn floor(&self, top: Offset) -> Offset {
        top - self.kept.len() as u64
    }

    /// Place of the first publication behind `offset`.
    fn places_behind(&self, offset: Offset, top: Offset) -> usize {
        (offset.saturating_sub(self.floor(top)) as usize).min(self.kept.len())
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
    use crate::publication::{Draft, Scratch};
    use proptest::prelude::*;

    const EPOCH: Epoch = Epoch { boot: 7, creation: 3 };
    const OTHER: Epoch = Epoch { boot: 7, creation: 4 };

    fn publication(offset: Offset, bytes: usize) -> Arc<Publication> {
        let payload = alloc::vec![b'1'; bytes];
        Publication::encode(Draft { offset, ..Draft::new("c", &payload) }, &mut Scratch::default()).into()
    }

    /// The last `len` publications of a channel whose top is `top`.
    fn history(top: Offset, len: u64) -> History {
        let mut history = History::default();
        (top - len + 1..=top).for_each(|offset| history.push(publication(offset, 1), offset));
        history
    }

    fn top(offset: Offset) -> Position {
        Position { offset, epoch: EPOCH }
    }

    fn offsets(publications: &[Arc<Publication>]) -> Vec<Offset> {
        publications.iter().map(|publication| publication.offset).collect()
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
            history.push(publication(offset, bytes), 0);
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
                let Some(last) = page.last() else { break };
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
