//! What calls ask of the owner: presence and history.
//!
//! In: `ChannelCall`s of clients and backends whose rights were checked. Out: one answer each. Invariant: an answer is never larger
//! than its limits, whatever the channel's size.

use alloc::vec::Vec;

use super::{Channel, Owner, Surroundings};
use crate::call::{CallError, ChannelAnswer, ChannelAsk, ChannelCall, ChannelFact, HistoryAsk};
use crate::ids::CoreId;
use crate::lane_message::{LaneMessage, Origin, Position};
use crate::metrics::Metric;
use crate::namespace::channel_is_valid;
use crate::presence::Members;

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

    /// Channels that this core owns and somebody is subscribed to, on whatever core.
    pub const fn channels_followed(&self) -> u32 {
        self.followed
    }
}

impl Channel {
    fn clients(&self) -> u32 {
        self.members.as_ref().map_or(0, |members| members.clients())
    }
}
