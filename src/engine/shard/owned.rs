//! What other cores ask of this one as the owner of channels and users.
//!
//! In: lane messages about members, channels and users. Out: the owner's answers; calls about a user go on to each
//! core where it has connections. Invariant: a user call is answered after it has been handed to every such core, in
//! the order in which calls about that user came.

use alloc::vec::Vec;

use super::Shard;
use crate::backplane::Event;
use crate::call::{CallError, ChannelCall, ChannelsCall, UserAnswer, UserCall};
use crate::ids::CoreId;
use crate::lane_message::{LaneMessage, LeaveRequest, MemberLeave, PublishRequest, SubscribeRequest, UserPresence};
use crate::metrics::Metric;
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

    pub(super) fn owned_channels_call(&mut self, call: ChannelsCall) {
        let (owner, mut around) = self.owner();
        owner.channels_call(call, &mut around);
    }

    /// Goes on with what takes more than one turn.
    pub(super) fn go_on_listing(&mut self) {
        let (owner, mut around) = self.owner();
        owner.list(&mut around);
    }

    /// Something came from the backplane.
    pub(super) fn backplane_event(&mut self, event: Event) {
        let (owner, mut around) = self.owner();
        owner.backplane_event(event, &mut around);
    }

    /// Goes on with what the backplane's return made necessary.
    pub(super) fn follow_again(&mut self) {
        let (owner, mut around) = self.owner();
        owner.follow_again(&mut around);
    }

    pub(super) fn owned_user_join(&mut self, presence: &UserPresence) {
        self.user_cores.join(&presence.user, presence.from);
        self.metrics.set(Metric::UsersOnline, self.user_cores.len() as u64);
    }

    pub(super) fn owned_user_leave(&mut self, presence: &UserPresence) {
        self.user_cores.leave(&presence.user, presence.from);
        self.metrics.set(Metric::UsersOnline, self.user_cores.len() as u64);
    }

    /// Passes a call on to each core where the user has connections, and answers with how many those are.
    pub(super) fn owned_user_call(&mut self, call: UserCall) {
        let (from, Some(origin)) = (call.from, call.origin) else { return };
        self.metrics.add(Metric::UserCalls, 1);
        let result = if call.user.is_empty() { Err(CallError::BadRequest) } else { Ok(self.pass_on(call)) };
        self.lanes.push(from, LaneMessage::UserAnswer(UserAnswer { origin, result }));
    }

    fn pass_on(&mut self, call: UserCall) -> u16 {
        let UserCall { user, client, order, .. } = call;
        let cores: Vec<CoreId> = self.user_cores.cores(&user).collect();
        for core in &cores {
            let copy = UserCall {
                user: user.clone(),
                client: client.clone(),
                order: order.clone(),
                origin: None,
                from: self.options.core,
            };
            self.lanes.push(*core, LaneMessage::UserCall(copy.into()));
        }
        cores.len() as u16
    }
}
