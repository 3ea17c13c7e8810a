//! What calls ask of the owner: presence, history, and which channels there are.
//!
//! In: `ChannelCall`s of clients and backends whose rights were checked, `ChannelsCall`s of operators. Out: one answer
//! each. Invariants: an answer is never larger than its limits, whatever the channel's size; a listing looks at so many
//! channels per turn and no more.

use alloc::vec::Vec;

use super::{Channel, Owner, Surroundings};
use crate::call::{
    CallError, ChannelAnswer, ChannelAsk, ChannelCall, ChannelCount, ChannelFact, ChannelsAnswer, ChannelsCall,
    HistoryAsk,
};
use crate::ids::CoreId;
use crate::lane_message::{LaneMessage, Origin, Position};
use crate::metrics::Metric;
use crate::namespace::channel_is_valid;
use crate::presence::Members;

/// Listings under way.
const LISTINGS_MAX: usize = 16;
/// Channels that a listing looks at in one turn of the loop.
const LISTED_PER_TURN: u32 = if cfg!(test) { 3 } else { 4_096 };

/// A [`ChannelsCall`] under way. A channel that is forgotten and made again meanwhile may stand in it twice.
#[derive(Debug)]
pub(super) struct Listing {
    call: ChannelsCall,
    /// The first slot not looked at.
    cursor: u32,
    found: Vec<ChannelCount>,
}

impl Owner {
    /// Answers a call about one channel.
    pub fn channel_call(&mut self, call: &ChannelCall, around: &mut Surroundings<'_>) {
        around.metrics.add(Metric::ChannelCalls, 1);
        let result = match self.fact(&call.channel, &call.ask, (call.origin, call.from), around) {
            Ok(Some(fact)) => Ok(fact),
            // The engine of the fleet answers.
            Ok(None) => return,
            Err(error) => Err(error),
        };
        if matches!(result, Err(CallError::LimitExceeded)) {
            around.metrics.add(Metric::ChannelCallsTooLarge, 1);
        }
        let answer = ChannelAnswer { origin: call.origin, result };
        around.lanes.push(call.from, LaneMessage::ChannelAnswer(answer.into()));
    }

    /// None: the answer comes later.
    fn fact(
        &mut self,
        name: &str,
        ask: &ChannelAsk,
        asker: (Origin, CoreId),
        around: &mut Surroundings<'_>,
    ) -> Result<Option<ChannelFact>, CallError> {
        let slot = self.find(name, around);
        let channel = slot.and_then(|slot| self.channels.at(slot)).map(|(_, channel)| channel);
        let namespace = match channel {
            Some(channel) => around.namespaces.get(channel.namespace),
            None if !channel_is_valid(name, &self.limits) => return Err(CallError::UnknownChannel),
            None => around.namespaces.resolve(name).ok_or(CallError::UnknownChannel)?.1,
        };
        // A token may make somebody a member where the namespace has none.
        let has_presence = namespace.presence || channel.is_some_and(|channel| channel.clients() > 0);
        let has_history = namespace.history_size > 0;
        match ask {
            ChannelAsk::Presence | ChannelAsk::PresenceStats if !has_presence => Err(CallError::NotAvailable),
            ChannelAsk::History(_) | ChannelAsk::HistoryRemove if !has_history => Err(CallError::NotAvailable),
            ChannelAsk::Presence | ChannelAsk::PresenceStats if self.is_shared() => {
                let counts_only = matches!(ask, ChannelAsk::PresenceStats);
                return self.ask_members(name, counts_only, asker, around).map(|()| None);
            }
            ChannelAsk::History(ask) if self.is_shared() => {
                return self.read_history(name, *ask, asker, around).map(|()| None);
            }
            ChannelAsk::HistoryRemove if self.is_shared() => {
                return self.forget_shared(name, asker, around).map(|()| None);
            }
            ChannelAsk::Presence => self.presence(channel),
            ChannelAsk::PresenceStats => {
                let members = channel.and_then(|channel| channel.members.as_ref());
                let (clients, users) = members.map_or((0, 0), |members| (members.clients(), members.users()));
                Ok(ChannelFact::PresenceStats { clients, users })
            }
            ChannelAsk::History(ask) => self.history(name, slot, ask, around),
            ChannelAsk::HistoryRemove => {
                slot.into_iter().for_each(|slot| self.forget_history(slot));
                Ok(ChannelFact::Removed)
            }
        }
        .map(Some)
    }

    fn presence(&self, channel: Option<&Channel>) -> Result<ChannelFact, CallError> {
        let Some(members) = channel.and_then(|channel| channel.members.as_ref()) else {
            return Ok(ChannelFact::Presence(Vec::new()));
        };
        let limits = &self.limits;
        let bytes = |members: &Members| members.iter().map(|member| member.memory_bytes()).sum::<usize>();
        if members.clients() > limits.presence_members_max || bytes(members) > limits.call_answer_bytes_max as usize {
            return Err(CallError::LimitExceeded);
        }
        Ok(ChannelFact::Presence(members.iter().cloned().collect()))
    }

    fn history(
        &mut self,
        name: &str,
        slot: Option<u32>,
        ask: &HistoryAsk,
        around: &mut Surroundings<'_>,
    ) -> Result<ChannelFact, CallError> {
        // A channel that nobody has used is made, so that the position in the answer holds for a later subscribe.
        let slot = match slot {
            Some(slot) => slot,
            None => {
                let (namespace, _) = around.namespaces.resolve(name).ok_or(CallError::UnknownChannel)?;
                self.create(name.into(), namespace, around).ok_or(CallError::Busy)?
            }
        };
        self.trim(slot, around);
        let limits = &self.limits;
        let channel = self.channels.at_mut(slot).ok_or(CallError::Busy)?;
        channel.used_ms = around.now_ms;
        let top = Position { offset: channel.top, epoch: channel.epoch };
        let publications = channel.history.page(top, ask, limits)?;
        Ok(ChannelFact::History { publications, top })
    }

    /// Begins to answer which channels have subscribers. Over [`LISTINGS_MAX`] the oldest listing is answered with what
    /// it has found.
    pub fn channels_call(&mut self, call: ChannelsCall, around: &mut Surroundings<'_>) {
        if self.listings.len() >= LISTINGS_MAX
            && let Some(oldest) = self.listings.pop_front()
        {
            around.metrics.add(Metric::ListingsCut, 1);
            self.answer_listing(oldest, around);
        }
        self.listings.push_back(Listing { call, cursor: 0, found: Vec::new() });
    }

    /// Whether [`Owner::list`] has something to do.
    pub fn is_listing(&self) -> bool {
        !self.listings.is_empty()
    }

    /// Goes on with the oldest listing, a bounded part of it. Called once per turn.
    pub fn list(&mut self, around: &mut Surroundings<'_>) {
        let Some(mut listing) = self.listings.pop_front() else { return };
        let end = self.channels.slots().min(listing.cursor.saturating_add(LISTED_PER_TURN));
        let found = (listing.cursor..end)
            .filter_map(|slot| self.channels.at(slot).map(|(_, channel)| channel))
            .filter(|channel| !channel.interest.is_empty() && channel.name.contains(&*listing.call.pattern))
            .map(|channel| ChannelCount {
                channel: channel.name.clone(),
                clients: channel.clients().max(channel.interest.len() as u32),
            });
        let limit = listing.call.limit as usize;
        listing.found.extend(found.take(limit - listing.found.len()));
        listing.cursor = end;
        if listing.found.len() == limit || end == self.channels.slots() {
            self.answer_listing(listing, around);
        } else {
            self.listings.push_front(listing);
        }
    }

    fn answer_listing(&self, listing: Listing, around: &mut Surroundings<'_>) {
        let Listing { call: ChannelsCall { origin, from, .. }, found, .. } = listing;
        let answer = ChannelsAnswer { origin, core: self.place.core, channels: found, total: self.followed };
        around.lanes.push(from, LaneMessage::ChannelsAnswer(answer.into()));
    }
}

impl Channel {
    fn clients(&self) -> u32 {
        self.members.as_ref().map_or(0, |members| members.clients())
    }
}
