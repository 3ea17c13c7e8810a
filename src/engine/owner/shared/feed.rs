//! What the engine feeds: publications with offsets, and what nodes tell each other about channels.
//!
//! In: feed messages, in order per connection, and perhaps with holes or twice. Out: publications to subscribers, in order
//! and once.
//! Each batch says which offset lies before it. Continues the top: it goes out. Lies below: it has been there. Leaves a hole,
//! or is of another epoch: it is held, and the channel is followed again, whose page decides.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use ringway_wire::centrifuge::reply::ClientInfoView;
use ringway_wire::record::{Record, Told};

use super::super::{Owner, Surroundings};
use super::{Asked, Stage};
use crate::backplane::{Fed, Request, Subject};
use crate::ids::{ConnId, CoreId, Epoch, Offset};
use crate::metrics::Metric;
use crate::presence::{Change, Member};
use crate::publication::{Extra, JoinLeave, Publisher};

/// Bytes that one channel holds back. Over: they are dropped, and the channel is followed once more.
const HELD_BYTES_MAX: usize = 1024 * 1024;

/// A batch that does not continue what went out.
#[derive(Debug)]
pub(super) struct Held {
    epoch: Epoch,
    prev: Offset,
    first: Offset,
    records: Vec<Box<[u8]>>,
    /// A follow was sent since it came: its page is no older than this.
    pub(super) asked: bool,
}

impl Owner {
    /// Something was fed about a channel.
    pub(super) fn fed(&mut self, name: &str, addressed: bool, what: Fed, around: &mut Surroundings<'_>) {
        if let Fed::Told(body) = &what
            && self.presence_told(name, body, around)
        {
            return;
        }
        let found = self.find(name, around);
        let wanted = found.and_then(|slot| self.channels.at(slot)).is_some_and(|(_, channel)| {
            channel.stage == Stage::Live || channel.busy.as_ref().is_some_and(|busy| busy.following)
        });
        let Some(slot) = found.filter(|_| wanted) else {
            around.metrics.add(Metric::FleetFedToNobody, 1);
            if addressed {
                // A leave was lost with a connection.
                self.ask(Asked::Nobody, Request::Unfollow(Subject::Channel(name.into())), around);
            }
            return;
        };
        match what {
            Fed::Publications { epoch, prev, first, records } => {
                let held = Held { epoch, prev, first, records, asked: false };
                if let Some(held) = self.take_or_give_back(slot, held, around) {
                    self.hold(slot, held, around);
                    self.follow_if_needed(slot, around);
                }
            }
            Fed::Told(body) => self.told(slot, &body, around),
        }
    }

    /// Sends a batch out if it continues the top, or drops it if it lies below; else it comes back.
    fn take_or_give_back(&mut self, slot: u32, held: Held, around: &mut Surroundings<'_>) -> Option<Held> {
        let (_, channel) = self.channels.at(slot)?;
        let last = held.first + held.records.len() as Offset - 1;
        // Where nothing is kept a hole cannot be filled, and nobody was promised that there is none.
        let has_history = around.namespaces.get(channel.namespace).history_size > 0;
        let fits = held.prev <= channel.top || !has_history;
        if channel.stage == Stage::Cold || held.epoch != channel.epoch || !fits {
            return Some(held);
        }
        if last <= channel.top {
            around.metrics.add(Metric::FleetFedAgain, held.records.len() as u64);
            return None;
        }
        let next = held.first.max(channel.top + 1);
        for (offset, record) in (next..).zip(&held.records[(next - held.first) as usize..]) {
            self.take_in(slot, offset, record, around);
        }
        None
    }

    fn hold(&mut self, slot: u32, held: Held, around: &mut Surroundings<'_>) {
        let Some(busy) = self.busy(slot) else { return };
        let bytes: usize = held.records.iter().map(|record| record.len() + size_of::<Held>()).sum();
        if busy.held_bytes + bytes > HELD_BYTES_MAX {
            around.metrics.add(Metric::FleetHeldDropped, busy.held.len() as u64 + 1);
            busy.held.clear();
            busy.held_bytes = 0;
            busy.again = true;
            return;
        }
        around.metrics.add(Metric::FleetFedHeld, 1);
        busy.held_bytes += bytes;
        busy.held.push(held);
    }

    /// Looks at what was held once more, now that a page has come.
    pub(super) fn take_held(&mut self, slot: u32, around: &mut Surroundings<'_>) {
        let Some(busy) = self.channels.at_mut(slot).and_then(|channel| channel.busy.as_mut()) else { return };
        busy.held_bytes = 0;
        for held in core::mem::take(&mut busy.held) {
            let asked = held.asked;
            // A page that was read after it came does not know it: it belongs to a history that has ended.
            if let Some(held) = self.take_or_give_back(slot, held, around)
                && !asked
            {
                self.hold(slot, held, around);
            }
        }
    }

    /// The channel's next publication: out to subscribers, and kept.
    pub(super) fn take_in(&mut self, slot: u32, offset: Offset, bytes: &[u8], around: &mut Surroundings<'_>) {
        let Some(channel) = self.channels.at_mut(slot) else { return };
        channel.top = offset;
        let rules = around.namespaces.get(channel.namespace);
        let has_history = rules.history_size > 0;
        around.metrics.add(Metric::FleetFed, 1);
        // Another kind than this node's rules say would close every subscriber.
        let Some(record) = Record::read(bytes).filter(|record| record.kind == rules.payload) else {
            around.metrics.add(Metric::FleetFedUnreadable, 1);
            return self.forget_history(slot);
        };
        let extra = extra_of(&record);
        let at_ms = self.fleet.as_ref().map_or(around.now_ms, |fleet| fleet.turn_ms(record.at_ms, around.now_ms));
        self.send_out(slot, if has_history { offset } else { 0 }, (record.payload, record.kind), extra.clone(), around);
        if has_history {
            self.keep(slot, record.payload, extra, at_ms, around);
        }
    }

    /// Keeps a publication of the past.
    pub(super) fn keep_record(&mut self, slot: u32, bytes: &[u8], around: &mut Surroundings<'_>) {
        let Some(record) = Record::read(bytes) else { return self.forget_history(slot) };
        let at_ms = self.fleet.as_ref().map_or(around.now_ms, |fleet| fleet.turn_ms(record.at_ms, around.now_ms));
        self.keep(slot, record.payload, extra_of(&record), at_ms, around);
    }

    fn told(&mut self, slot: u32, body: &[u8], around: &mut Surroundings<'_>) {
        match Told::read(body) {
            Some(Told::Publication(record)) => {
                let Some((_, channel)) = self.channels.at(slot) else { return };
                if record.kind == around.namespaces.get(channel.namespace).payload {
                    self.send_out(slot, 0, (record.payload, record.kind), extra_of(&record), around);
                }
            }
            Some(Told::HistoryRemoved) => self.forget_history(slot),
            Some(Told::Member { joined, member }) => {
                let kind = if joined { JoinLeave::Join } else { JoinLeave::Leave };
                self.tell(slot, &Change { kind, member: Arc::new(member_of(&member)) }, around);
            }
            Some(Told::Order { .. } | Told::Question { .. } | Told::Members { .. } | Told::Counts { .. }) | None => {
                around.metrics.add(Metric::FleetFedUnreadable, 1)
            }
        }
    }
}

/// A member of any node: nothing here refers to its connection.
pub(super) fn member_of(info: &ClientInfoView<'_>) -> Member {
    Member {
        core: CoreId(u16::MAX),
        conn: ConnId { slot: 0, generation: 0 },
        client: info.client.into(),
        user: info.user.into(),
        conn_info: info.conn_info.into(),
        chan_info: info.chan_info.into(),
    }
}

/// What stands beside a record's payload.
pub(super) fn extra_of(record: &Record<'_>) -> Option<Arc<Extra>> {
    let publisher = record.publisher.map(|info| Publisher {
        user: info.user.into(),
        client: info.client.into(),
        conn_info: info.conn_info.into(),
        chan_info: info.chan_info.into(),
    });
    Extra::of(publisher, record.tags.to_boxed())
}
