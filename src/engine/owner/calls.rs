//! What calls ask of the owner: presence, history, and which channels there are.
//!
//! In: `ChannelCall`s of clients and backends whose rights were checked, `ChannelsCall`s of operators. Out: one answer
//! each. Invariant: an answer is never larger than its limits, whatever the channel's size.

use alloc::vec::Vec;

use super::{Channel, Owner, Surroundings};
use crate::call::{
    CallError, ChannelAnswer, ChannelAsk, ChannelCall, ChannelCount, ChannelFact, ChannelsAnswer, ChannelsCall,
    HistoryAsk,
};
use crate::lane_message::{LaneMessage, Position};
use crate::metrics::Metric;
use crate::namespace::channel_is_valid;
use crate::presence::Members;

impl Owner {
    /// Answers a call about one channel.
    pub fn channel_call(&mut self, call: &ChannelCall, around: &mut Surroundings<'_>) {
        let result = self.fact(&call.channel, &call.ask, around);
        around.metrics.add(Metric::ChannelCalls, 1);
        if matches!(result, Err(CallError::LimitExceeded)) {
            around.metrics.add(Metric::ChannelCallsTooLarge, 1);
        }
        let answer = ChannelAnswer { origin: call.origin, result };
        around.lanes.push(call.from, LaneMessage::ChannelAnswer(answer.into()));
    }

    fn fact(&mut self, name: &str, ask: &ChannelAsk, around: &mut Surroundings<'_>) -> Result<ChannelFact, CallError> {
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

    /// Answers which channels have subscribers. Looks at every channel of this shard if few match: for operators.
    pub fn channels_call(&self, call: &ChannelsCall, around: &mut Surroundings<'_>) {
        let channels = (0..self.channels.slots())
            .filter_map(|slot| self.channels.at(slot).map(|(_, channel)| channel))
            .filter(|channel| !channel.interest.is_empty() && channel.name.contains(&*call.pattern))
            .map(|channel| ChannelCount {
                channel: channel.name.clone(),
                clients: channel.clients().max(channel.interest.len() as u32),
            })
            .take(call.limit as usize)
            .collect();
        let answer = ChannelsAnswer { origin: call.origin, core: self.place.core, channels, total: self.followed };
        around.lanes.push(call.from, LaneMessage::ChannelsAnswer(answer.into()));
    }
}

impl Channel {
    fn clients(&self) -> u32 {
        self.members.as_ref().map_or(0, |members| members.clients())
    }
}
