//! Calls that only the engine can answer: history, and its removal.
//!
//! In: calls whose rights were checked. Out: reads; answers as they are without a fleet.

use alloc::boxed::Box;

use ringway_wire::centrifuge::reply::ClientInfoView;
use ringway_wire::record::{Record, Told};

use super::super::{Owner, Surroundings};
use super::Asked;
use super::feed::extra_of;
use crate::backplane::{Answer, Audience, Page, Read, Refusal, Request};
use crate::call::{CallError, ChannelAnswer, ChannelFact, HistoryAsk};
use crate::ids::CoreId;
use crate::lane_message::{LaneMessage, Origin};
use crate::past::Past;
use crate::presence::Change;
use crate::publication::JoinLeave;

impl Owner {
    /// Asks the engine for history.
    ///
    /// # Errors
    /// What makes no sense, or the engine cannot be reached.
    pub(in crate::owner) fn read_history(
        &mut self,
        channel: &str,
        ask: HistoryAsk,
        (origin, from): (Origin, CoreId),
        around: &mut Surroundings<'_>,
    ) -> Result<(), CallError> {
        if ask.reverse && ask.since.is_some_and(|since| since.offset == 0) {
            return Err(CallError::BadRequest);
        }
        if !self.is_reachable(channel) {
            return Err(CallError::Busy);
        }
        let limit = u32::try_from(ask.limit).unwrap_or(u32::MAX).min(self.limits.history_publications_max);
        let read = Read {
            channel: channel.into(),
            since: ask.since.map(|since| since.offset),
            limit,
            bytes_max: self.limits.call_answer_bytes_max,
            reverse: ask.reverse,
            fresh: self.new_epoch(),
        };
        self.ask(Asked::Read { origin, from, ask, channel: channel.into() }, Request::Read(read), around);
        Ok(())
    }

    /// Asks the engine to forget a channel's history.
    ///
    /// # Errors
    /// The engine cannot be reached.
    pub(in crate::owner) fn forget_shared(
        &mut self,
        channel: &str,
        (origin, from): (Origin, CoreId),
        around: &mut Surroundings<'_>,
    ) -> Result<(), CallError> {
        if !self.is_reachable(channel) {
            return Err(CallError::Busy);
        }
        let channel: Box<str> = channel.into();
        let request = Request::Forget { channel: channel.clone() };
        self.ask(Asked::Forget { origin, from, channel }, request, around);
        Ok(())
    }

    /// Tells a member's coming or going to all nodes with watchers. When the engine is away it is lost, as joins and leaves
    /// may be.
    pub(in crate::owner) fn tell_nodes(&mut self, slot: u32, change: &Change, around: &mut Surroundings<'_>) {
        let Some((_, channel)) = self.channels.at(slot) else { return };
        let member = &change.member;
        let told = Told::Member {
            joined: change.kind == JoinLeave::Join,
            member: ClientInfoView {
                user: &member.user,
                client: &member.client,
                conn_info: &member.conn_info,
                chan_info: &member.chan_info,
            },
        };
        let channel = channel.name.clone();
        self.tell_channel(Asked::Nobody, &channel, Audience::Interested, &told, around);
    }

    pub(super) fn history_read(
        &mut self,
        channel: &str,
        ask: &HistoryAsk,
        (origin, from): (Origin, CoreId),
        result: Result<Answer, Refusal>,
        around: &mut Surroundings<'_>,
    ) {
        let result = match result {
            Ok(Answer::Page(page)) => self.page_of(channel, ask, &page, around),
            Ok(_) | Err(_) => Err(CallError::Busy),
        };
        around.lanes.push(from, LaneMessage::ChannelAnswer(ChannelAnswer { origin, result }.into()));
    }

    fn page_of(
        &self,
        channel: &str,
        ask: &HistoryAsk,
        page: &Page,
        around: &Surroundings<'_>,
    ) -> Result<ChannelFact, CallError> {
        let since_epoch = ask.since.and_then(|since| since.epoch);
        if since_epoch.is_some_and(|epoch| epoch != page.top.epoch) {
            return Err(CallError::UnrecoverablePosition);
        }
        let ttl_ms = around.namespaces.resolve(channel).map_or(u64::MAX, |(_, rules)| rules.history_ttl_ms);
        let wall_ms = self.fleet.as_ref().map_or(0, |fleet| fleet.wall_ms(around.now_ms));
        let records = page.records.iter().map(|bytes| Record::read(bytes));
        // The oldest may be too old: at the front of a page, or at the end of one that goes back.
        let is_old =
            |record: &Option<Record<'_>>| record.is_none_or(|record| record.at_ms.saturating_add(ttl_ms) <= wall_ms);
        let skip = if ask.reverse { 0 } else { records.clone().take_while(is_old).count() };
        let mut publications = Past::new(page.first + skip as u64, ask.reverse);
        let mut bytes = 0;
        for record in records.skip(skip) {
            let Some(record) = record.filter(|record| !is_old(&Some(*record))) else { break };
            bytes += record.payload.len();
            if !publications.is_empty() && bytes > self.limits.call_answer_bytes_max as usize {
                break;
            }
            publications.push((record.payload, &[]), extra_of(&record));
        }
        Ok(ChannelFact::History { publications, top: page.top })
    }

    pub(super) fn forgotten(
        &mut self,
        channel: &str,
        (origin, from): (Origin, CoreId),
        result: Result<Answer, Refusal>,
        around: &mut Surroundings<'_>,
    ) {
        let result = match result {
            Ok(_) => {
                self.tell_channel(Asked::Nobody, channel, Audience::Interested, &Told::HistoryRemoved, around);
                if let Some(slot) = self.find(channel, around) {
                    self.forget_history(slot);
                }
                Ok(ChannelFact::Removed)
            }
            Err(_) => Err(CallError::Busy),
        };
        around.lanes.push(from, LaneMessage::ChannelAnswer(ChannelAnswer { origin, result }.into()));
    }
}
