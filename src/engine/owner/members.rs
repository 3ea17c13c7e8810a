//! The owner's part about members: who comes and goes, and who is told.
//!
//! In: subscribes with a member, `MemberLeave`, cores that give a channel up. Out: joins and leaves to the cores with
//! subscribers that hear of them, in lane order with publications. Which changes are told, `presence.rs` decides.

use alloc::boxed::Box;
use alloc::sync::Arc;

use super::{Owner, Surroundings};
use crate::ids::CoreId;
use crate::lane_message::{LaneMessage, MemberLeave};
use crate::metrics::Metric;
use crate::presence::{Change, Due, Gone, Member, Members, Offered};
use crate::publication::{JoinLeave, Publication};

/// Channels with a change that waits, looked at per call of [`Owner::sweep`].
const SWEEP_CHANGES: usize = 1_024;

impl Owner {
    /// A member's subscription has ended.
    pub fn member_leave(&mut self, request: &MemberLeave, around: &mut Surroundings<'_>) {
        let Some(slot) = self.find(&request.channel, around) else { return };
        self.member_leave_waiting(slot, |waiting| (waiting.from, waiting.conn) == (request.from, request.conn));
        let Some(channel) = self.channels.at_mut(slot) else { return };
        let members = channel.members.as_mut();
        let Some(gone) = members.and_then(|members| members.leave(request.from, request.conn)) else { return };
        channel.used_ms = around.now_ms;
        if let Some(interest) = channel.interest.iter_mut().find(|interest| interest.core == request.from) {
            interest.members -= 1;
        }
        self.gone(slot, gone, around);
    }

    /// Takes a member in whose core has interest. False: its connection was a member already.
    pub(super) fn join(&mut self, slot: u32, member: &Arc<Member>, told: bool, around: &mut Surroundings<'_>) -> bool {
        let Some(channel) = self.channels.at_mut(slot) else { return false };
        let seed = self.seed;
        let members = channel.members.get_or_insert_with(|| Box::new(Members::new(seed)));
        let is_new = members.join(Arc::clone(member), told);
        if is_new {
            if let Some(interest) = channel.interest.iter_mut().find(|interest| interest.core == member.core) {
                interest.members += 1;
            }
            around.metrics.add(Metric::PresenceMembers, 1);
        }
        is_new
    }

    /// Takes all members of a core out that has no interest any more.
    pub(super) fn leave_core(&mut self, slot: u32, core: CoreId, around: &mut Surroundings<'_>) {
        let Some(members) = self.channels.at_mut(slot).and_then(|channel| channel.members.as_mut()) else { return };
        for gone in members.leave_core(core) {
            self.gone(slot, gone, around);
        }
    }

    fn gone(&mut self, slot: u32, Gone { member, told }: Gone, around: &mut Surroundings<'_>) {
        around.metrics.sub(Metric::PresenceMembers, 1);
        if told {
            self.changed(slot, Change { kind: JoinLeave::Leave, member }, around);
        }
    }

    /// Tells a change that has happened, now or later or not at all.
    pub(super) fn changed(&mut self, slot: u32, change: Change, around: &mut Surroundings<'_>) {
        let Some((generation, _)) = self.channels.at(slot) else { return };
        let Some(channel) = self.channels.at_mut(slot) else { return };
        let rules = around.namespaces.get(channel.namespace);
        // On a node of a fleet others may watch.
        let watched = (self.fleet.is_some() && rules.join_leave)
            || channel.interest.iter().any(|interest| interest.variants.has_join_leave());
        let Some(members) = channel.members.as_mut().filter(|_| watched) else { return };
        match members.offer(change, rules, around.now_ms) {
            Offered::Tell { change, dropped } => {
                around.metrics.add(Metric::JoinLeaveDropped, dropped);
                self.tell_all(slot, &change, around);
            }
            Offered::Waits { list, dropped } => {
                around.metrics.add(Metric::JoinLeaveDropped, dropped);
                if list {
                    self.changes.push_back((slot, generation));
                }
            }
            Offered::Dropped => around.metrics.add(Metric::JoinLeaveDropped, 1),
        }
    }

    /// Tells those changes that have waited long enough.
    pub(super) fn tell_due(&mut self, around: &mut Surroundings<'_>) {
        for _ in 0..self.changes.len().min(SWEEP_CHANGES) {
            let Some((slot, generation)) = self.changes.pop_front() else { break };
            let Some(channel) = self.channels.get_mut(slot, generation) else { continue };
            let Some(members) = channel.members.as_mut() else { continue };
            match members.due(around.namespaces.get(channel.namespace), around.now_ms) {
                Due::Tell(change) => self.tell_all(slot, &change, around),
                Due::Waits => self.changes.push_back((slot, generation)),
                Due::Nothing => {}
            }
        }
    }

    /// Tells a change to this node's watchers, or to those of all nodes, among which this one hears it, too.
    fn tell_all(&mut self, slot: u32, change: &Change, around: &mut Surroundings<'_>) {
        match self.fleet {
            None => self.tell(slot, change, around),
            Some(_) => self.tell_nodes(slot, change, around),
        }
    }

    /// Encodes a change once and sends it to the cores with subscribers that hear of it.
    pub(super) fn tell(&mut self, slot: u32, change: &Change, around: &mut Surroundings<'_>) {
        let Some((_, channel)) = self.channels.at(slot) else { return };
        let variants = channel.variants();
        if !variants.has_join_leave() {
            return;
        }
        around.metrics.add(Metric::JoinLeaveTold, 1);
        let publication = Arc::new(Publication::join_leave(
            change.kind,
            &channel.name,
            channel.number,
            &change.member,
            variants,
            &mut self.scratch,
        ));
        for interest in channel.interest.iter().filter(|interest| interest.variants.has_join_leave()) {
            let message = LaneMessage::Deliver { local: interest.local, publication: Arc::clone(&publication) };
            around.lanes.push(interest.core, message);
        }
    }
}
