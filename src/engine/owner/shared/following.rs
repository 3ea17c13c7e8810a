//! Following a channel: from the first subscriber of this node to some time after the last.
//!
//! In: subscribes, pages that follows bring. Out: follows, answers to subscribers.
//! The order is fixed: the inbox is open (the backplane sees to that), interest is registered, position and history are read
//! (one request does both), the subscriber is answered, the feed goes on from there.
//! Invariants: nobody is answered with a position that the feed does not continue; a client that knows more than this node
//! (it was served by another) is answered only after the engine was asked.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::super::{Channel, Owner, Surroundings};
use super::{Asked, Stage};
use crate::backplane::{Answer, Follow, Page, Refusal, Request, Subject};
use crate::ids::Offset;
use crate::lane_message::{LaneMessage, Position, RecoverFrom, SubscribeAnswer, SubscribeError, SubscribeRequest};
use crate::metrics::Metric;
use crate::namespace::RecoveryMode;

/// Channels of one owner that linger behind their last subscriber, each once for every time it was left. Over: the one
/// that was left first is given up at once (counted).
pub(super) const LONELY_MAX: usize = if cfg!(test) { 32 } else { 1_048_576 };

/// A subscribe that waits for a page.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) request: SubscribeRequest,
    pub(super) since_ms: u64,
    /// A follow that was sent since will answer it, one way or the other.
    asked: bool,
}

impl Owner {
    /// A subscribe on a node of a fleet.
    pub(in crate::owner) fn subscribe_shared(&mut self, request: SubscribeRequest, around: &mut Surroundings<'_>) {
        let slot = match self.find(&request.channel, around) {
            Some(slot) => Some(slot),
            None => around
                .namespaces
                .resolve(&request.channel)
                .and_then(|(namespace, _)| self.create(request.channel.clone(), namespace, around)),
        };
        let Some(slot) = slot else { return Self::refuse_subscribe(&request, around) };
        self.trim(slot, around);
        let mode = self.recovery_mode(slot, around);
        let most = self.limits.recovery_publications_max;
        if self.channels.at(slot).is_some_and(|(_, channel)| channel.can_answer(&request, mode, most)) {
            return self.answer_subscribe(request, around);
        }
        let since_ms = around.now_ms;
        let Some(busy) = self.busy(slot) else { return };
        busy.waiting.push(Waiting { request, since_ms, asked: false });
        self.follow_if_needed(slot, around);
    }

    pub(super) fn refuse_subscribe(request: &SubscribeRequest, around: &mut Surroundings<'_>) {
        let SubscribeRequest { conn, command, local, .. } = *request;
        let answer = SubscribeAnswer { conn, command, local, result: Err(SubscribeError::Busy) };
        around.lanes.push(request.from, LaneMessage::SubscribeAnswer(Box::new(answer)));
    }

    /// Subscribes that wait and whose core has given the channel up are not answered; members that have left before they
    /// came do not come.
    pub(in crate::owner) fn leave_waiting(&mut self, slot: u32, gone: impl Fn(&SubscribeRequest) -> bool) {
        if let Some(busy) = self.channels.at_mut(slot).and_then(|channel| channel.busy.as_mut()) {
            busy.waiting.retain(|waiting| !gone(&waiting.request));
        }
    }

    /// The same for members.
    pub(in crate::owner) fn member_leave_waiting(&mut self, slot: u32, is: impl Fn(&SubscribeRequest) -> bool) {
        if let Some(busy) = self.channels.at_mut(slot).and_then(|channel| channel.busy.as_mut()) {
            busy.waiting
                .iter_mut()
                .filter(|waiting| is(&waiting.request))
                .for_each(|waiting| waiting.request.member = None);
        }
    }

    /// The last subscriber has left: the channel is followed for a while longer, since many come back.
    pub(in crate::owner) fn left_alone(&mut self, slot: u32, around: &mut Surroundings<'_>) {
        let Some((generation, _)) = self.channels.at(slot) else { return };
        let Some(fleet) = &mut self.fleet else { return };
        fleet.lonely.push_back((slot, generation, around.now_ms));
        if fleet.lonely.len() > LONELY_MAX
            && let Some((slot, generation, _)) = fleet.lonely.pop_front()
            && self.unfollow_if_lonely(slot, generation, around)
        {
            around.metrics.add(Metric::FleetLonelyCut, 1);
        }
    }

    pub(super) fn unfollow_lonely(&mut self, around: &mut Surroundings<'_>) {
        let linger_ms = u64::from(self.limits.interest_linger_ms);
        // Who is put back waits for the next time.
        let mut due = self.fleet.as_ref().map_or(0, |fleet| fleet.lonely.len());
        let mut given_up = 0;
        while due > 0
            && given_up < super::FOLLOWS_MAX
            && let Some(fleet) = &mut self.fleet
            && let Some((slot, generation, _)) =
                fleet.lonely.pop_front_if(|(_, _, since_ms)| *since_ms + linger_ms <= around.now_ms)
        {
            due -= 1;
            given_up += u32::from(self.unfollow_if_lonely(slot, generation, around));
        }
    }

    /// True: the channel was given up. A channel whose subscribers came back stands in the queue all the same.
    fn unfollow_if_lonely(&mut self, slot: u32, generation: u32, around: &mut Surroundings<'_>) -> bool {
        let Some(channel) = self.channels.get_mut(slot, generation) else { return false };
        if channel.stage != Stage::Live || !channel.interest.is_empty() {
            return false;
        }
        if channel.busy.as_ref().is_some_and(|busy| !busy.waiting.is_empty() || busy.following) {
            // Nobody may come of it, and then nobody leaves: it is looked at again.
            if let Some(fleet) = &mut self.fleet {
                fleet.lonely.push_back((slot, generation, around.now_ms));
            }
            return false;
        }
        self.unfollow(slot, around);
        true
    }

    /// From here on the channel is not fed, and what is kept of it is not its top any more.
    pub(super) fn unfollow(&mut self, slot: u32, around: &mut Surroundings<'_>) {
        let Some(channel) = self.channels.at_mut(slot) else { return };
        channel.stage = Stage::Cold;
        channel.last = None;
        if let Some(busy) = &mut channel.busy {
            busy.held.clear();
            busy.held_bytes = 0;
            busy.again = false;
        }
        let request = Request::Unfollow(Subject::Channel(channel.name.clone()));
        self.forget_history(slot);
        around.metrics.add(Metric::FleetUnfollows, 1);
        self.ask(Asked::Nobody, request, around);
    }

    /// The channel must be followed once more, whatever is known of it.
    pub(super) fn follow_soon(&mut self, slot: u32, around: &mut Surroundings<'_>) {
        if let Some(busy) = self.busy(slot) {
            busy.again = true;
            self.follow_if_needed(slot, around);
        }
    }

    /// Follows the channel if somebody waits for that and it is not under way.
    pub(super) fn follow_if_needed(&mut self, slot: u32, around: &mut Surroundings<'_>) {
        let Some((generation, channel)) = self.channels.at(slot) else { return };
        let Some(busy) = &channel.busy else { return };
        let wanted = busy.again || !busy.held.is_empty() || !busy.waiting.is_empty();
        if !wanted || busy.following || !self.is_reachable(&channel.name) {
            return;
        }
        let rules = around.namespaces.get(channel.namespace);
        let was = (channel.stage == Stage::Live).then_some(Position { offset: channel.top, epoch: channel.epoch });
        let (since, limit) = wanted_records(busy.waiting.iter().filter_map(|waiting| waiting.request.recover), was);
        let limit = match (limit, rules.recovery_mode) {
            (Wanted::Nothing, _) => 0,
            (Wanted::Records, RecoveryMode::Cache) if was.is_none() => rules.history_size.min(1),
            // A recovery is of so many at most, and nothing else waits for them.
            (Wanted::Records, _) if was.is_none() => rules.history_size.min(self.limits.recovery_publications_max),
            (Wanted::Records, _) => rules.history_size,
        };
        let since = if was.is_none() && rules.recovery_mode == RecoveryMode::Cache { None } else { since };
        let fresh = self.new_epoch();
        let Some(channel) = self.channels.at_mut(slot) else { return };
        let request = Request::Follow(Follow {
            channel: channel.name.clone(),
            since,
            limit,
            // What may be recovered fits, with the heads of its records.
            bytes_max: self.limits.page_bytes_max.max(self.limits.recovery_bytes_max.saturating_mul(2)),
            fresh,
        });
        let Some(busy) = &mut channel.busy else { return };
        busy.following = true;
        busy.again = false;
        busy.waiting.iter_mut().for_each(|waiting| waiting.asked = true);
        busy.held.iter_mut().for_each(|held| held.asked = true);
        let Some(fleet) = &mut self.fleet else { return };
        fleet.follows += 1;
        let breaks = fleet.breaks;
        around.metrics.add(Metric::FleetFollows, 1);
        self.ask(Asked::Follow { channel: (slot, generation), was, breaks }, request, around);
    }

    /// A follow's answer. `was`: what this node had when it asked; `breaks`: how often the feed had been broken.
    pub(super) fn followed(
        &mut self,
        (slot, generation): (u32, u32),
        (was, breaks): (Option<Position>, u32),
        result: Result<Answer, Refusal>,
        around: &mut Surroundings<'_>,
    ) {
        let Some(channel) = self.channels.get_mut(slot, generation) else { return };
        let (stage, epoch, top, seen) = (channel.stage, channel.epoch, channel.top, channel.breaks);
        let Some(busy) = &mut channel.busy else { return };
        busy.following = false;
        let Ok(Answer::Page(page)) = result else {
            // The next tick tries again, or what follows the engine's return.
            busy.again = true;
            return;
        };
        channel.breaks = breaks;
        match was {
            // It was not known, and somebody else's page has come since, which cannot be: one follow at a time.
            None if stage == Stage::Live => {}
            None => self.begin(slot, &page, around),
            // Given up meanwhile: whoever wants it now asks again.
            Some(_) if stage == Stage::Cold => return self.follow_soon_if_wanted(slot, around),
            // The page is ahead of a feed that nothing has broken: what is between comes.
            Some(was) if was.epoch == epoch && seen == breaks && !page.joined && page.is_ahead(was, top) => {
                busy.again = true;
                busy.waiting.iter_mut().for_each(|waiting| waiting.asked = false);
                busy.held.iter_mut().for_each(|held| held.asked = false);
                return;
            }
            Some(was) if was.epoch == epoch => self.catch_up(slot, was, &page, around),
            Some(_) => {}
        }
        self.take_held(slot, around);
        self.answer_waiting(slot, around);
        self.follow_if_needed(slot, around);
    }

    fn follow_soon_if_wanted(&mut self, slot: u32, around: &mut Surroundings<'_>) {
        if let Some(busy) = self.channels.at_mut(slot).and_then(|channel| channel.busy.as_mut()) {
            busy.again = !busy.waiting.is_empty();
        }
        self.follow_if_needed(slot, around);
    }

    /// The channel's position is known now, and some of its past.
    fn begin(&mut self, slot: u32, page: &Page, around: &mut Surroundings<'_>) {
        self.forget_history(slot);
        let Some(channel) = self.channels.at_mut(slot) else { return };
        channel.stage = Stage::Live;
        channel.epoch = page.top.epoch;
        channel.top = page.top.offset;
        channel.last = None;
        if page.reaches_top() {
            page.records.iter().for_each(|record| self.keep_record(slot, record, around));
        }
        // Somebody may have come and gone while it was asked for.
        if self.channels.at(slot).is_some_and(|(_, channel)| channel.interest.is_empty()) {
            self.left_alone(slot, around);
        }
    }

    /// What this node has missed goes out; when not all of it is kept any more, or another history has begun, subscribers
    /// are told so.
    fn catch_up(&mut self, slot: u32, was: Position, page: &Page, around: &mut Surroundings<'_>) {
        let Some((_, channel)) = self.channels.at(slot) else { return };
        let has_history = around.namespaces.get(channel.namespace).history_size > 0;
        let top = channel.top;
        if page.top.epoch != was.epoch || page.top.offset < was.offset {
            return self.reset(slot, page, has_history, around);
        }
        if page.top.offset > top {
            if !page.covers(top) {
                return self.reset(slot, page, has_history, around);
            }
            let skip = (top + 1 - page.first) as usize;
            for (offset, record) in (top + 1..).zip(&page.records[skip..]) {
                self.take_in(slot, offset, record, around);
            }
        }
        self.warm(slot, page, around);
    }

    /// Keeps records that are older than what is kept, so that recoveries find them here.
    fn warm(&mut self, slot: u32, page: &Page, around: &mut Surroundings<'_>) {
        let Some((_, channel)) = self.channels.at(slot) else { return };
        let floor = channel.top - channel.history.len() as Offset;
        let older = page.records.iter().zip(page.first..).filter(|(_, offset)| *offset <= floor).count();
        // They must touch: what is kept is dense.
        if older == 0 || page.first + (older as Offset) != floor + 1 {
            return;
        }
        let kept = channel.history.records();
        self.forget_history(slot);
        page.records[..older].iter().for_each(|record| self.keep_record(slot, record, around));
        for (payload, extra, at_ms) in kept {
            self.keep(slot, &payload, extra, at_ms, around);
        }
    }

    /// Another history, or a hole that nothing fills: subscribers are told, and come back.
    fn reset(&mut self, slot: u32, page: &Page, has_history: bool, around: &mut Surroundings<'_>) {
        self.forget_history(slot);
        let Some(channel) = self.channels.at_mut(slot) else { return };
        channel.epoch = page.top.epoch;
        channel.top = page.top.offset;
        channel.last = None;
        // Where nothing is kept nobody was promised that nothing is missing.
        if has_history {
            around.metrics.add(Metric::FleetResets, 1);
            for interest in &channel.interest {
                around.lanes.push(interest.core, LaneMessage::Insufficient { local: interest.local });
            }
        }
        if page.reaches_top() {
            page.records.iter().for_each(|record| self.keep_record(slot, record, around));
        }
    }

    fn answer_waiting(&mut self, slot: u32, around: &mut Surroundings<'_>) {
        let (mode, most) = (self.recovery_mode(slot, around), self.limits.recovery_publications_max);
        let Some(channel) = self.channels.at_mut(slot) else { return };
        let Some(mut busy) = channel.busy.take() else { return };
        let answered: Vec<_> = busy
            .waiting
            .extract_if(.., |waiting| waiting.asked || channel.can_answer(&waiting.request, mode, most))
            .collect();
        channel.busy = Some(busy);
        for waiting in answered {
            self.answer_subscribe(waiting.request, around);
        }
    }

    fn recovery_mode(&self, slot: u32, around: &Surroundings<'_>) -> RecoveryMode {
        self.channels
            .at(slot)
            .map_or(RecoveryMode::Stream, |(_, channel)| around.namespaces.get(channel.namespace).recovery_mode)
    }
}

impl Channel {
    /// Whether a subscribe can be answered from what is here. `most`: publications that a recovery may have.
    fn can_answer(&self, request: &SubscribeRequest, mode: RecoveryMode, most: u32) -> bool {
        let Some(from) = request.recover else { return self.stage == Stage::Live };
        let knows_epoch = from.epoch.is_none_or(|epoch| epoch == self.epoch);
        self.stage == Stage::Live
            && match mode {
                RecoveryMode::Stream => {
                    let missed = self.top.checked_sub(from.offset);
                    // Of too many nothing is recovered, whoever keeps them.
                    let enough = |missed| missed <= self.history.len() as Offset || missed > Offset::from(most);
                    knows_epoch && missed.is_some_and(enough)
                }
                RecoveryMode::Cache => !self.history.is_empty(),
            }
    }
}

/// Whether a follow needs records.
enum Wanted {
    Nothing,
    Records,
}

/// From where a follow reads, for all who wait and for the node itself.
fn wanted_records(recovers: impl Iterator<Item = RecoverFrom>, was: Option<Position>) -> (Option<Position>, Wanted) {
    let mut since = was;
    for from in recovers {
        let Some(epoch) = from.epoch.or(since.map(|since| since.epoch)) else {
            // A position of whatever epoch there is: the newest records.
            return (None, Wanted::Records);
        };
        match &mut since {
            Some(since) if since.epoch == epoch => since.offset = since.offset.min(from.offset),
            // Another epoch than the node's, or than somebody's before it: the page will tell which one holds.
            Some(_) => {}
            None => since = Some(Position { offset: from.offset, epoch }),
        }
    }
    (since, if since.is_some() { Wanted::Records } else { Wanted::Nothing })
}

impl Page {
    /// Whether its records are all that follows an offset.
    fn covers(&self, top: Offset) -> bool {
        self.reaches_top() && self.first <= top + 1
    }

    /// Whether it shows the same history further than its records and what went out reach.
    fn is_ahead(&self, was: Position, top: Offset) -> bool {
        self.top.epoch == was.epoch && self.top.offset > top && !self.covers(top)
    }

    /// Whether its records end at the top (or there are none, and it needs none).
    fn reaches_top(&self) -> bool {
        !self.records.is_empty() && self.first + self.records.len() as Offset == self.top.offset + 1
    }
}
