//! Clients that publish over their own connection: one to each channel that clients write.
//!
//! In: the rate, replies and the ends of connections. Out: publish commands, and what became of every number.
//!
//! Invariants: a writer has at most one publication without an answer, so that its numbers are in the order of the
//! channel. A publish has no idempotency key in this protocol: when the connection ends before the answer, nobody knows
//! whether it was published, and it is not sent again; its number is kept as unconfirmed. One that was refused as temporary
//! keeps its number and is sent again.
use super::link::Written;
use super::worker::{FleetWorker, Phase};
use crate::net;
use crate::payload::{PayloadForm, PayloadTemplate, Stamp};

/// Ids of publish commands are this and the number; those of other commands are smaller.
pub(super) const PUBLISH_ID: u32 = 1_000_000;
/// Publishes begun between two looks at the sockets.
const PUBLISHES_PER_TURN: usize = 64;
/// Numbers per writer whose fate is not known. Over: the writer stops, and the run fails.
pub(super) const UNCONFIRMED_MAX: usize = 10_000;

/// A publication without an answer.
#[derive(Clone, Copy, Debug)]
struct Outstanding {
    /// Number of the command.
    id: u32,
    sent_ns: u64,
}

#[derive(Debug)]
struct Writer {
    /// Index of the client in its worker.
    client: u32,
    channel: u32,
    next: u32,
    confirmed: u32,
    unconfirmed: Vec<u32>,
    outstanding: Option<Outstanding>,
    due_ns: u64,
}

/// All writers of a worker; writer i is client i.
#[derive(Debug)]
pub(super) struct Writers {
    all: Vec<Writer>,
    payload: PayloadTemplate,
    /// From one publication of a writer to its next, in ns; 0: nobody publishes.
    interval_ns: u64,
    /// Whose turn is looked at next.
    turn: usize,
    next_id: u32,
    stopping: bool,
    pub(super) published: u64,
}

impl Writers {
    /// Channel n is written by client n of the run.
    pub(super) fn new(first: u64, connections: u32, written: u32, payload_bytes: usize) -> Result<Writers, String> {
        let count = u64::from(written).saturating_sub(first).min(u64::from(connections)) as u32;
        let writer = |client: u32| Writer {
            client,
            channel: first as u32 + client,
            next: 0,
            confirmed: 0,
            unconfirmed: Vec::new(),
            outstanding: None,
            due_ns: 0,
        };
        Ok(Writers {
            all: (0..count).map(writer).collect(),
            payload: PayloadTemplate::new(PayloadForm::Text, payload_bytes)?,
            interval_ns: 0,
            turn: 0,
            next_id: PUBLISH_ID,
            stopping: false,
            published: 0,
        })
    }

    /// Everybody publishes from now on, spread over the first interval.
    pub(super) fn begin(&mut self, rate_per_channel: f64, now_ns: u64) {
        if rate_per_channel <= 0.0 || self.all.is_empty() {
            return;
        }
        self.interval_ns = (1e9 / rate_per_channel) as u64;
        let count = self.all.len() as u64;
        for (place, writer) in (0u64..).zip(&mut self.all) {
            writer.due_ns = now_ns + self.interval_ns * place / count;
        }
    }

    /// Nobody begins another publication.
    pub(super) fn stop(&mut self) {
        self.stopping = true;
    }

    /// What became of all numbers, once nobody waits for an answer any more.
    pub(super) fn written(&mut self) -> Option<Vec<Written>> {
        if !self.stopping || self.all.iter().any(|writer| writer.outstanding.is_some()) {
            return None;
        }
        self.stopping = false;
        self.interval_ns = 0;
        let of = |writer: &Writer| Written {
            channel: writer.channel,
            next: writer.next,
            confirmed: writer.confirmed,
            unconfirmed: writer.unconfirmed.clone(),
        };
        Some(self.all.iter().map(of).collect())
    }

    /// A connection ended: what it had under way is unconfirmed.
    pub(super) fn cut(&mut self, client: u32) {
        if let Some(writer) = self.all.get_mut(client as usize)
            && writer.outstanding.take().is_some()
        {
            writer.unconfirmed.push(writer.next);
            writer.next += 1;
        }
    }

    /// An answer came. `Ok`: it was published; otherwise whether it is known that it was not. False: nobody waits for it.
    pub(super) fn answered(&mut self, client: u32, id: u32, published: Result<(), bool>) -> bool {
        let Some(writer) = self.all.get_mut(client as usize) else { return false };
        if writer.outstanding.is_none_or(|outstanding| outstanding.id != id) {
            return false;
        }
        writer.outstanding = None;
        match published {
            Ok(()) => {
                writer.next += 1;
                writer.confirmed = writer.next;
                self.published += 1;
            }
            Err(true) => {}
            Err(false) => {
                writer.unconfirmed.push(writer.next);
                writer.next += 1;
            }
        }
        true
    }

    /// Gives up waiting for answers that are older than this.
    pub(super) fn give_up(&mut self, sent_before_ns: u64) {
        for index in 0..self.all.len() {
            let writer = &self.all[index];
            if writer.outstanding.is_some_and(|outstanding| outstanding.sent_ns < sent_before_ns) {
                self.cut(writer.client);
            }
        }
    }
}

impl FleetWorker {
    /// Sends what is due. True: more is due.
    pub(super) fn publish_due(&mut self, now_ns: u64) -> Result<bool, String> {
        let count = self.writers.all.len();
        if self.writers.interval_ns == 0 || self.writers.stopping || count == 0 {
            return Ok(false);
        }
        let mut sent = 0;
        for _ in 0..count {
            let index = self.writers.turn;
            self.writers.turn = (index + 1) % count;
            let writer = &self.writers.all[index];
            if writer.due_ns > now_ns || writer.outstanding.is_some() || !self.is_open(writer.client) {
                continue;
            }
            if writer.unconfirmed.len() >= UNCONFIRMED_MAX {
                return Err(format!("channel {}: {UNCONFIRMED_MAX} publications were never answered", writer.channel));
            }
            self.publish(index);
            sent += 1;
            if sent == PUBLISHES_PER_TURN {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn publish(&mut self, index: usize) {
        let writers = &mut self.writers;
        writers.next_id = writers.next_id.checked_add(1).unwrap_or(PUBLISH_ID);
        let (id, run, now_ns) = (writers.next_id, self.config.run, net::now_ns());
        let writer = &mut writers.all[index];
        let stamp =
            Stamp { run, channel: writer.channel, sequence: u64::from(writer.next), intended_ns: writer.due_ns };
        // After an interruption the next one is due an interval from now: what was missed is not made up for in a burst.
        writer.due_ns = (writer.due_ns + writers.interval_ns).max(now_ns.saturating_sub(writers.interval_ns));
        writer.outstanding = Some(Outstanding { id, sent_ns: now_ns });
        let (client, channel) = (writer.client, writer.channel);
        let name = self.channel_name(channel);
        let payload = String::from_utf8_lossy(self.writers.payload.stamped(&stamp)).into_owned();
        let command = format!("{{\"id\":{id},\"publish\":{{\"channel\":\"{name}\",\"data\":{payload}}}}}");
        self.send_command(client, &command);
    }

    fn is_open(&self, client: u32) -> bool {
        self.clients[client as usize].phase == Phase::Open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_confirmed_refused_or_unconfirmed() {
        let mut writers = Writers::new(10, 5, 12, 100).expect("long enough");
        assert_eq!(writers.all.iter().map(|writer| writer.channel).collect::<Vec<_>>(), [10, 11]);
        let send = |writers: &mut Writers, id| writers.all[0].outstanding = Some(Outstanding { id, sent_ns: 5 });
        send(&mut writers, 1);
        assert!(!writers.answered(0, 9, Ok(())), "an answer to another");
        assert!(writers.answered(0, 1, Ok(())));
        assert!(!writers.answered(0, 1, Ok(())), "an answer again");
        send(&mut writers, 2);
        assert!(writers.answered(0, 2, Err(true)), "refused: the number is used again");
        send(&mut writers, 3);
        writers.cut(0);
        writers.cut(0);
        send(&mut writers, 4);
        writers.stop();
        assert_eq!(writers.written(), None, "one has no answer");
        writers.give_up(5);
        assert_eq!(writers.written(), None, "it is not old enough");
        writers.give_up(6);
        let written = writers.written().expect("all are known");
        assert_eq!(written[0], Written { channel: 10, next: 3, confirmed: 1, unconfirmed: vec![1, 2] });
        assert_eq!(written[1], Written { channel: 11, ..Written::default() });
        // A worker behind the last channel has no writers.
        assert!(Writers::new(12, 5, 12, 100).expect("long enough").all.is_empty());
    }
}
