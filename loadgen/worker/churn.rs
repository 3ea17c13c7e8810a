//! Members that leave a channel and join it again, for the presence scenario.
//!
//! In: the order to begin and to stop, replies of open connections. Out: unsubscribe and subscribe commands, counts.
//! Invariants: a connection has at most one command under way; who has left joins again before another one takes its
//! turn, so that at most `outstanding` members are missing, and none when the load has stopped.
use std::collections::HashMap;

use super::{Phase, Worker};
use crate::net;
use crate::protocol::Reply;

/// Id of the commands. The opening commands have smaller ones; a connection has one of these under way at a time.
const COMMAND_ID: u32 = 1_000_000;

/// The running load.
#[derive(Debug)]
pub(super) struct Churn {
    /// Frames with an unsubscribe and a subscribe command, the same for every connection.
    leave: Vec<u8>,
    join: Vec<u8>,
    under_way: HashMap<u32, Change>,
    /// How many connections take part, whose turn is next, and from one turn to the next.
    churners: u32,
    next: u32,
    stride: u32,
    stopping: bool,
}

#[derive(Debug)]
struct Change {
    leaves: bool,
    sent_ns: u64,
}

impl Worker {
    pub(super) fn begin_churn(&mut self, channel: &str, outstanding: u32, churners: u32) {
        let number = self.config.channel_names.iter().position(|name| name == channel);
        let members = number.map_or(self.config.connections, |number| self.config.members_of(number as u32));
        let churners = churners.min(members);
        self.churn = Some(Churn {
            leave: self.dialect.unsubscribing(COMMAND_ID, channel),
            join: self.dialect.subscribing(COMMAND_ID, channel, self.config.join_leave),
            under_way: HashMap::new(),
            churners,
            next: 0,
            stride: scattering_stride(churners),
            stopping: false,
        });
        for _ in 0..outstanding.min(churners) {
            self.next_leaves();
        }
    }

    pub(super) fn stop_churn(&mut self) {
        if let Some(churn) = &mut self.churn {
            churn.stopping = true;
        }
    }

    pub(super) fn churn_is_over(&self) -> bool {
        self.churn.as_ref().is_some_and(|churn| churn.stopping && churn.under_way.is_empty())
    }

    pub(super) fn forget_churner(&mut self, connection: u32) {
        if let Some(churn) = &mut self.churn {
            churn.under_way.remove(&connection);
        }
    }

    /// A reply or a push to a connection that is open.
    pub(super) fn reply_while_open(&mut self, connection: u32, bytes: &[u8], now_ns: u64) -> Result<(), String> {
        if self.dialect.is_join_or_leave(bytes) {
            self.told += 1;
            return Ok(());
        }
        if !self.churn.as_ref().is_some_and(|churn| churn.under_way.contains_key(&connection)) {
            return Ok(());
        }
        match self.dialect.reply(bytes) {
            Reply::Other => Ok(()),
            Reply::Refused(text) => Err(format!("refused: {text}")),
            Reply::Done { .. } => {
                self.change_answered(connection, now_ns);
                Ok(())
            }
        }
    }

    fn change_answered(&mut self, connection: u32, now_ns: u64) {
        let Some(churn) = &mut self.churn else { return };
        let Some(change) = churn.under_way.get_mut(&connection) else { return };
        self.latency.record(now_ns.saturating_sub(change.sent_ns));
        self.changes += 1;
        if change.leaves {
            *change = Change { leaves: false, sent_ns: now_ns };
            let join = churn.join.clone();
            self.send(connection, &join);
            return;
        }
        churn.under_way.remove(&connection);
        if !churn.stopping {
            self.next_leaves();
        }
    }

    /// The next open connection that has nothing under way leaves.
    fn next_leaves(&mut self) {
        let Some(churn) = &mut self.churn else { return };
        for _ in 0..churn.churners {
            let connection = churn.next;
            churn.next = ((u64::from(churn.next) + u64::from(churn.stride)) % u64::from(churn.churners)) as u32;
            if self.phases[connection as usize] == Phase::Open && !churn.under_way.contains_key(&connection) {
                churn.under_way.insert(connection, Change { leaves: true, sent_ns: net::now_ns() });
                let leave = churn.leave.clone();
                return self.send(connection, &leave);
            }
        }
    }
}

/// A step that visits every one of `count` before any again, in an order in which neighbours are far apart: those who
/// come and go in a real channel are no neighbours in the server's tables either.
fn scattering_stride(count: u32) -> u32 {
    let near_golden = (f64::from(count) * 0.618) as u32;
    (near_golden.max(1)..=count).find(|stride| greatest_common_divisor(*stride, count) == 1).unwrap_or(1)
}

const fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stride_visits_everyone_once() {
        for count in [1u32, 2, 3, 10, 166, 1_000, 16_666, 16_667] {
            let stride = u64::from(scattering_stride(count));
            let mut visited: Vec<u64> = (0..u64::from(count)).map(|turn| turn * stride % u64::from(count)).collect();
            visited.sort_unstable();
            assert!(visited.into_iter().eq(0..u64::from(count)), "{count}");
        }
    }
}
