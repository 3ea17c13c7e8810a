//! What other cores ask of this one as the owner of channels and users.
//!
//! In: lane messages about members, channels and users. Out: the owner's answers; calls about a user go on to each
//! core where it has connections. Invariant: a user call is answered after it has been handed to every such core, in
//! the order in which calls about that user came.

use super::Shard;
use crate::call::{CallError, ChannelCall, UserAnswer, UserCall, UserOrder};
use crate::lane_message::{LaneMessage, LeaveRequest, MemberLeave, PublishRequest, SubscribeRequest, UserPresence};
use crate::metrics::Metric;
use crate::owner::OrderAsker;
use crate::publish_run::PublishRun;

impl Shard {
    pub(super) fn owned_publish(&mut self, request: PublishRequest) {
        let (owner, mut around) = self.owner();
        owner.publish(request, &mut around);
    }

    pub(super) fn owned_publish_run(&mut self, run: &PublishRun) {
        let (owner, mut around) = self.owner();
        owner.publish_run(run, &mut around);
    }

    pub(super) fn owned_subscribe(&mut self, request: SubscribeRequest) {
        let (owner, mut around) = self.owner();
        owner.subscribe(request, &mut around);
    }

    pub(super) fn owned_leave(&mut self, request: &LeaveRequest) {
        let (owner, mut around) = self.owner();
        owner.leave(request, &mut around);
    }

    pub(super) fn owned_member_leave(&mut self, request: &MemberLeave) {
        let (owner, mut around) = self.owner();
        owner.member_leave(request, &mut around);
    }

    pub(super) fn owned_channel_call(&mut self, call: &ChannelCall) {
        let (owner, mut around) = self.owner();
        owner.channel_call(call, &mut around);
    }

    pub(super) fn owned_user_join(&mut self, presence: &UserPresence) {
        let is_first = self.user_cores.join(&presence.user, presence.from);
        self.metrics.set(Metric::UsersOnline, self.user_cores.len() as u64);
        if is_first {
            self.register(&presence.user);
        }
    }

    pub(super) fn owned_user_leave(&mut self, presence: &UserPresence) {
        let was_last = self.user_cores.leave(&presence.user, presence.from);
        self.metrics.set(Metric::UsersOnline, self.user_cores.len() as u64);
        if was_last {
            self.unregister(&presence.user);
        }
    }

    /// Passes a call on to each core where the user has connections, and to other nodes, and answers with how many
    /// those are.
    pub(super) fn owned_user_call(&mut self, call: &UserCall) {
        let (from, Some(origin)) = (call.from, call.origin) else { return };
        self.metrics.add(Metric::UserCalls, 1);
        let result = if call.user.is_empty() { Err(CallError::BadRequest) } else { Ok(self.pass_on(call)) };
        let is_noted = !matches!(call.order, UserOrder::Message { .. });
        match result {
            Ok(here) if self.owner.is_shared() => {
                self.order_to_nodes(call, OrderAsker { origin, from, here, is_noted })
            }
            _ => self.lanes.push(from, LaneMessage::UserAnswer(UserAnswer { origin, result })),
        }
    }
}
