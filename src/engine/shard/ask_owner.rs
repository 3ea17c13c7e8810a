//! What an owner hears of a subscribe, and which subscribes it need not hear of.
//!
//! In: subscriptions whose right is settled. Out: one message, to the owner or to this core itself, whose answer makes the
//! subscription.
//!
//! A storm of subscribes to one channel asks its owner once per core and variant: behind the first answer the owner sends
//! this core every publication in that variant anyway, and where a channel has no positions and no members there is
//! nothing else to ask. The answer then goes through this core's own lane, so that whoever waits for an owner's answer
//! sees no difference.
//!
//! Invariant: who is granted here gets what the owner sends behind the answer to the first of its variant: the list that it
//! joins has somebody, so the owner has not been told that this core left.

use alloc::boxed::Box;

use super::Shard;
use crate::connection::{Connection, Phase};
use crate::ids::{ConnId, Epoch, LocalChannelId};
use crate::lane_message::{LaneMessage, Position, SubscribeAnswer, SubscribeRequest, Subscribed};
use crate::metrics::Metric;
use crate::presence::Member;
use crate::session::client_id;

impl Shard {
    /// The right is settled: the owner's turn, unless its answer is known.
    pub(super) fn ask_owner(&mut self, conn: ConnId, local: LocalChannelId, number: u32) {
        let (core, boot) = (self.options.core, self.options.boot);
        let Some(channel) = self.fanouts.get(local) else { return };
        let has_position = self.options.namespaces.get(channel.namespace).history_size > 0;
        let Some(Connection { phase: Phase::Client(session), .. }) =
            self.connections.get_mut(conn.slot, conn.generation)
        else {
            return;
        };
        let Some(index) = session.asked(local, number) else { return };
        let identity = &session.identity;
        let subscription = &session.subscriptions[index];
        let stays = subscription.asked().is_some_and(|asked| asked.leaving.is_none());
        let member = (subscription.traits().member && stays).then(|| {
            Box::new(Member {
                core,
                conn,
                client: client_id(boot, core, conn).as_ref().into(),
                user: identity.user.clone(),
                conn_info: identity.info().into(),
                chan_info: subscription.info().into(),
            })
        });
        let (variant, tell_join_leave) = (subscription.variant, subscription.traits().tell_join_leave);
        let Some(asked) = session.subscriptions[index].asked_mut() else { return };
        asked.sent = true;
        let recover = asked.recover;
        let nothing_to_ask = member.is_none() && recover.is_none() && !has_position && !variant.compact();
        if nothing_to_ask && channel.has_subscriber(variant) {
            self.metrics.add(Metric::SubscribesAnsweredHere, 1);
            // Told to nobody: a channel without positions.
            let top = Position { offset: 0, epoch: Epoch { boot: 0, creation: 0 } };
            let granted = Subscribed { top, recovery: None, number: 0 };
            let answer = SubscribeAnswer { conn, command: number, local, result: Ok(granted) };
            return self.lanes.push(core, LaneMessage::SubscribeAnswer(Box::new(answer)));
        }
        let channel = channel.name.clone();
        let owner = self.owner_of(&channel);
        let request = SubscribeRequest {
            channel,
            local,
            variant,
            member,
            tell_join_leave,
            recover,
            conn,
            command: number,
            from: core,
        };
        self.lanes.push(owner, LaneMessage::Subscribe(request.into()));
    }
}
