//! Leaves of those whom a drain has sent away, told to owners some time later.
//!
//! In: members and subscribers that leave. Out: the same messages to owners, at once or `drain_leave_delay_ms` later. A user who
//! comes back on another node meanwhile is in presence all the time: its new connection has joined before the old one leaves.
//! Invariants: what is late keeps its order; a core's last word about a channel, which takes out every member there, never
//! overtakes a leave that is late; at the drain's end nothing is left.

use alloc::collections::VecDeque;

use super::Shard;
use crate::ids::CoreId;
use crate::lane_message::LaneMessage;
use crate::metrics::Metric;

/// Leaves that wait on one shard. Over: the oldest is told at once (counted).
pub(super) const LATE_LEAVES_MAX: usize = if cfg!(test) { 16 } else { 131_072 };

/// See the file's header.
#[derive(Debug, Default)]
pub(super) struct LateLeaves {
    /// When, to whom, what.
    queue: VecDeque<(u64, CoreId, LaneMessage)>,
    /// Whoever leaves now was sent away by a drain.
    is_sent_away: bool,
}

impl Shard {
    /// Does something that ends subscriptions because this node drains.
    pub(super) fn leaving_late(&mut self, act: impl FnOnce(&mut Self)) {
        self.late_leaves.is_sent_away = self.owner.is_shared() && !self.shutting_down;
        act(self);
        self.late_leaves.is_sent_away = false;
    }

    /// Tells an owner that a member, or the last subscriber, has left.
    pub(super) fn tell_leave(&mut self, to: CoreId, message: LaneMessage) {
        let late = &mut self.late_leaves;
        let takes_members_along = matches!(message, LaneMessage::Leave(_)) && !late.queue.is_empty();
        if !late.is_sent_away && !takes_members_along {
            return self.lanes.push(to, message);
        }
        if late.queue.len() >= LATE_LEAVES_MAX
            && let Some((_, to, message)) = late.queue.pop_front()
        {
            self.lanes.push(to, message);
            self.metrics.add(Metric::DrainLeavesEarly, 1);
        }
        let due_ms = self.now_ms + u64::from(self.options.limits.drain_leave_delay_ms);
        late.queue.push_back((due_ms, to, message));
        self.metrics.set(Metric::DrainLeavesWaiting, late.queue.len() as u64);
    }

    /// Tells what is due.
    pub(super) fn tell_late_leaves(&mut self) {
        self.tell_leaves_until(self.now_ms);
    }

    /// Tells everything: the drain ends.
    pub(super) fn tell_all_leaves(&mut self) {
        self.tell_leaves_until(u64::MAX);
    }

    fn tell_leaves_until(&mut self, until_ms: u64) {
        let queue = &mut self.late_leaves.queue;
        if queue.is_empty() {
            return;
        }
        while queue.front().is_some_and(|(due_ms, ..)| *due_ms <= until_ms)
            && let Some((_, to, message)) = queue.pop_front()
        {
            self.lanes.push(to, message);
        }
        self.metrics.set(Metric::DrainLeavesWaiting, queue.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::ids::ConnId;
    use crate::lane_message::MemberLeave;
    use crate::limits::Limits;
    use crate::namespace::{Namespace, Namespaces};
    use crate::options::{Access, Options};
    use crate::owner::FleetPlace;
    use crate::tokens::NoTokens;

    #[test]
    fn one_leave_too_many_is_told_at_once_and_counted() {
        let mut shard = Shard::new(
            Options {
                core: CoreId(0),
                shards: 2,
                seed: 1,
                boot: 1,
                limits: Limits::DEFAULT,
                namespaces: Namespaces::new(Namespace::closed(""), vec![]).expect("it is sound").into(),
                tokens: alloc::sync::Arc::new(NoTokens),
                access: Access::closed("/ws"),
                fleet: Some(FleetPlace { core: CoreId(3), wall_offset_ms: 0 }),
                utf8: |bytes| core::str::from_utf8(bytes).is_ok(),
            },
            1_000,
        );
        let leave = |slot| {
            let conn = ConnId { slot, generation: 0 };
            LaneMessage::MemberLeave(MemberLeave { channel: "news".into(), from: CoreId(0), conn }.into())
        };
        shard.leaving_late(|shard| {
            (0..=LATE_LEAVES_MAX as u32).for_each(|slot| shard.tell_leave(CoreId(1), leave(slot)))
        });
        assert_eq!(shard.metrics.get(Metric::DrainLeavesEarly), 1);
        assert_eq!(shard.metrics.get(Metric::DrainLeavesWaiting), LATE_LEAVES_MAX as u64);
        let told = shard.lanes.take_batch(CoreId(1)).expect("one leave").messages;
        let [LaneMessage::MemberLeave(first)] = &told[..] else { panic!("{told:?}") };
        assert_eq!(first.conn.slot, 0, "the oldest");
    }
}
