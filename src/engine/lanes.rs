//! What waits to be said to other cores: one queue per target, bounded in bytes.
//!
//! In: messages from `owner.rs`, sessions and `shard.rs`. Out: batches for the driver, which puts them into the
//! target's inbox; a batch that finds it full comes back to the front. Messages to this core itself take the same
//! way, except that the shard takes them within its own turn.
//!
//! Nobody blocks: over half the bound the shard reads no clients ([`LanesOut::pressed`]); at the bound publications
//! for that target are dropped and the target is told by a flag ([`LanesOut::take_lost`]), which the driver raises
//! before it sends anything that was said later. Answers and acknowledgements are never dropped: how many there can
//! be is bounded by what was read.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::ids::CoreId;
use crate::lane_message::{Batch, LaneKind, LaneMessage};

/// See the file's header.
#[derive(Debug)]
pub struct LanesOut {
    me: CoreId,
    targets: Vec<Target>,
    /// Targets that may have something waiting, each once.
    waiting: Vec<CoreId>,
    spill_bytes_max: usize,
    batch_messages_max: usize,
    dropped: u64,
    said: [Said; LaneKind::COUNT],
}

/// What was said to other cores since the start, of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Messages.
    pub messages: u64,
    /// Publishes, publications or answers in them.
    pub carried: u64,
}

#[derive(Debug, Default)]
struct Target {
    queue: VecDeque<LaneMessage>,
    bytes: usize,
    listed: bool,
    lost: bool,
}

impl LanesOut {
    /// Queues towards `targets` cores (shards, and behind them the control plane and the backplane).
    pub fn new(me: CoreId, targets: u16, spill_bytes_max: usize, batch_messages_max: usize) -> Self {
        let targets = (0..targets).map(|_| Target::default()).collect();
        LanesOut {
            me,
            targets,
            waiting: Vec::new(),
            spill_bytes_max,
            batch_messages_max,
            dropped: 0,
            said: Default::default(),
        }
    }

    /// Says something to a core.
    pub fn push(&mut self, to: CoreId, message: LaneMessage) {
        let target = &mut self.targets[to.0 as usize];
        let bytes = message.memory_bytes();
        if to != self.me
            && target.bytes + bytes > self.spill_bytes_max
            && matches!(message, LaneMessage::Deliver { .. })
        {
            target.lost = true;
            self.dropped += 1;
        } else {
            if to != self.me {
                let (kind, carried) = message.kind();
                let said = &mut self.said[kind as usize];
                said.messages += 1;
                said.carried += carried;
            }
            target.bytes += bytes;
            target.queue.push_back(message);
        }
        if !target.listed && to != self.me {
            target.listed = true;
            self.waiting.push(to);
        }
    }

    /// The next message that this core said to itself.
    pub fn pop_own(&mut self) -> Option<LaneMessage> {
        let target = &mut self.targets[self.me.0 as usize];
        let message = target.queue.pop_front()?;
        target.bytes -= message.memory_bytes();
        Some(message)
    }

    /// Whether this core has said something to itself that it has not taken yet.
    pub fn has_own(&self) -> bool {
        !self.targets[self.me.0 as usize].queue.is_empty()
    }

    /// Whether a spill is over half its bound: read no clients and backends until it is not.
    pub fn pressed(&self) -> bool {
        self.waiting.iter().any(|to| self.targets[to.0 as usize].bytes > self.spill_bytes_max / 2)
    }

    /// Moves the targets with something to say into `out`.
    pub fn take_waiting(&mut self, out: &mut Vec<CoreId>) {
        out.append(&mut self.waiting);
        for to in out.iter() {
            self.targets[to.0 as usize].listed = false;
        }
    }

    /// Whether publications for `to` were dropped since the last call. Raise the target's flag before any later
    /// batch is sent to it.
    pub fn take_lost(&mut self, to: CoreId) -> bool {
        core::mem::take(&mut self.targets[to.0 as usize].lost)
    }

    /// The next batch for `to`, at most `lane_batch_messages_max` long.
    pub fn take_batch(&mut self, to: CoreId) -> Option<Batch> {
        let target = &mut self.targets[to.0 as usize];
        if target.queue.is_empty() {
            return None;
        }
        let messages: Vec<_> = if target.queue.len() <= self.batch_messages_max {
            target.bytes = 0;
            core::mem::take(&mut target.queue).into()
        } else {
            let messages: Vec<_> = target.queue.drain(..self.batch_messages_max).collect();
            target.bytes -= messages.iter().map(LaneMessage::memory_bytes).sum::<usize>();
            messages
        };
        Some(Batch { from: self.me, messages })
    }

    /// Puts a batch that its target had no place for back to the front.
    pub fn put_back(&mut self, to: CoreId, batch: Batch) {
        let target = &mut self.targets[to.0 as usize];
        target.bytes += batch.messages.iter().map(LaneMessage::memory_bytes).sum::<usize>();
        batch.messages.into_iter().rev().for_each(|message| target.queue.push_front(message));
        if !target.listed {
            target.listed = true;
            self.waiting.push(to);
        }
    }

    /// Bytes waiting for all other cores.
    pub fn spill_bytes(&self) -> usize {
        self.waiting.iter().map(|to| self.targets[to.0 as usize].bytes).sum()
    }

    /// What was said to other cores since the start, what was dropped not counted.
    pub const fn said(&self, kind: LaneKind) -> Said {
        self.said[kind as usize]
    }

    /// Publications dropped since the start.
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, LocalChannelId};
    use crate::lane_message::{Origin, Position, PublishAnswer};
    use crate::publication::{Draft, Publication, Scratch};
    use alloc::sync::Arc;

    fn answer(call: u64) -> LaneMessage {
        let position = Position { offset: call, epoch: Epoch { boot: 1, creation: 1 } };
        LaneMessage::PublishAnswer(PublishAnswer {
            origin: Origin::Control { call },
            result: Ok(position),
            duplicate: false,
        })
    }

    fn deliver() -> LaneMessage {
        let publication = Publication::encode(Draft::new("c", &[0; 100]), &mut Scratch::default());
        LaneMessage::Deliver { local: LocalChannelId { slot: 0, generation: 0 }, publication: Arc::new(publication) }
    }

    #[test]
    fn a_returned_batch_keeps_its_place() {
        let mut lanes = LanesOut::new(CoreId(0), 3, 1 << 20, 2);
        for call in 0..5 {
            lanes.push(CoreId(1), answer(call));
        }
        let first = lanes.take_batch(CoreId(1)).expect("five wait");
        assert_eq!(first.messages.len(), 2);
        lanes.put_back(CoreId(1), first);
        let mut seen = Vec::new();
        while let Some(batch) = lanes.take_batch(CoreId(1)) {
            seen.extend(batch.messages.iter().map(|m| match m {
                LaneMessage::PublishAnswer(PublishAnswer { origin: Origin::Control { call }, .. }) => *call,
                other => panic!("{other:?}"),
            }));
        }
        assert_eq!(seen, [0, 1, 2, 3, 4]);
        assert_eq!(lanes.spill_bytes(), 0);
    }

    #[test]
    fn at_the_bound_publications_are_dropped_and_flagged_but_answers_kept() {
        let mut lanes = LanesOut::new(CoreId(0), 2, 2_000, 1_024);
        for _ in 0..100 {
            lanes.push(CoreId(1), deliver());
        }
        assert!(lanes.pressed());
        assert!(lanes.dropped() > 0 && lanes.dropped() < 100);
        lanes.push(CoreId(1), answer(7));
        assert!(lanes.take_lost(CoreId(1)));
        assert!(!lanes.take_lost(CoreId(1)));
        let batch = lanes.take_batch(CoreId(1)).expect("some wait");
        assert_eq!(batch.messages.len() as u64, 100 - lanes.dropped() + 1);
        assert!(matches!(batch.messages.last(), Some(LaneMessage::PublishAnswer(_))));
        assert!(!lanes.pressed());
    }
}
