//! This node's inboxes at one primary: which buckets are open there, and what comes in.
//!
//! In: buckets to hold, pushes and replies of the connection for the feed. Out: feed; buckets that opened or were lost.
//! Invariants: a bucket is open only when both its channels are confirmed; what the server takes away shows at once.

use std::collections::VecDeque;

use redis::{PushKind, Value, cmd};
use ringway_engine::backplane::{Buckets, Event};
use ringway_engine::ids::Bucket;

use super::feed;
use super::keys::Keys;
use super::link::{Link, Reason};
use super::metrics::Number;
use super::redis::Common;
use super::tags;

/// Channels per bucket: the node's own, and the one of all nodes.
const CHANNELS: u8 = 2;

/// A command on this connection whose reply is to come.
enum Expected {
    /// SSUBSCRIBE: one push per channel.
    Confirmations {
        bucket: Bucket,
        left: u8,
    },
    Pong,
}

pub(super) struct Inboxes {
    /// To be held here.
    wanted: Buckets,
    open: Buckets,
    /// Opened since the last look.
    opened: Buckets,
    expected: VecDeque<Expected>,
    /// Confirmations that are to come.
    pending: usize,
}

impl Inboxes {
    pub(super) const fn new() -> Self {
        Inboxes {
            wanted: Buckets::NONE,
            open: Buckets::NONE,
            opened: Buckets::NONE,
            expected: VecDeque::new(),
            pending: 0,
        }
    }

    pub(super) const fn is_open(&self, bucket: Bucket) -> bool {
        self.open.contains(bucket)
    }

    pub(super) const fn open(&self) -> &Buckets {
        &self.open
    }

    /// Subscribes to both channels of each bucket that is not held yet.
    pub(super) fn take(&mut self, common: &Common, generation: u32, link: &mut Link, buckets: &Buckets) {
        for bucket in buckets.iter().filter(|bucket| !self.wanted.contains(*bucket)).collect::<Vec<_>>() {
            self.wanted.insert(bucket);
            // One command per bucket: in a cluster all its channels must be of one slot.
            link.push(cmd("SSUBSCRIBE").arg(common.keys.inbox(bucket, generation)).arg(common.keys.all_nodes(bucket)));
            self.expected.push_back(Expected::Confirmations { bucket, left: CHANNELS });
            self.pending += 1;
        }
    }

    /// Gives buckets up; returns those that were open. The server's subscriptions end when it loses the slots.
    pub(super) fn give(&mut self, buckets: &Buckets) -> Buckets {
        let mut lost = Buckets::NONE;
        for bucket in buckets.iter() {
            self.wanted.remove(bucket);
            self.opened.remove(bucket);
            if self.open.contains(bucket) {
                self.open.remove(bucket);
                lost.insert(bucket);
            }
        }
        lost
    }

    /// Those that have opened, once no confirmation is to come.
    pub(super) fn take_opened(&mut self) -> Option<Box<Buckets>> {
        if self.pending > 0 || self.opened.is_empty() {
            return None;
        }
        Some(Box::new(std::mem::replace(&mut self.opened, Buckets::NONE)))
    }

    pub(super) fn ping(&mut self, link: &mut Link) {
        link.push(&cmd("PING"));
        self.expected.push_back(Expected::Pong);
    }

    /// Takes what came; returns the bucket that was lost by it.
    ///
    /// # Errors
    /// The connection is of no more use.
    pub(super) fn take_value(
        &mut self,
        common: &Common,
        value: Value,
        out: &mut Vec<Event>,
    ) -> Result<Option<Bucket>, Reason> {
        match value {
            Value::Push { kind: PushKind::SMessage, data } => self.message(common, &data, out).map(|()| None),
            Value::Push { kind: PushKind::SSubscribe, .. } => self.confirmed().map(|()| None),
            Value::Push { kind: PushKind::SUnsubscribe, data } => Ok(self.taken_away(&data)),
            Value::Push { .. } => Ok(None),
            Value::ServerError(error) => match self.expected.pop_front() {
                // MOVED: another server has the bucket. What else there is will not be better next time.
                Some(Expected::Confirmations { bucket, .. }) => {
                    self.pending -= 1;
                    if !matches!(error.code(), "MOVED" | "ASK" | "CLUSTERDOWN" | "TRYAGAIN") {
                        return Err(format!("inboxes: {} {}", error.code(), error.details().unwrap_or_default()));
                    }
                    Ok(Some(bucket))
                }
                _ => Err(format!("{} {}", error.code(), error.details().unwrap_or_default())),
            },
            _ => match self.expected.pop_front() {
                Some(Expected::Pong) => Ok(None),
                _ => Err("an unexpected reply among inboxes".into()),
            },
        }
    }

    fn confirmed(&mut self) -> Result<(), Reason> {
        let Some(Expected::Confirmations { bucket, left }) = self.expected.front_mut() else {
            return Err("a confirmation of nothing".into());
        };
        let bucket = *bucket;
        *left -= 1;
        if *left == 0 {
            self.expected.pop_front();
            self.pending -= 1;
            if self.wanted.contains(bucket) {
                self.open.insert(bucket);
                self.opened.insert(bucket);
            }
        }
        Ok(())
    }

    fn taken_away(&self, data: &[Value]) -> Option<Bucket> {
        let bucket = channel_of(data).and_then(tags::bucket_of)?;
        let half = self.expected.iter().any(
            |expected| matches!(expected, Expected::Confirmations { bucket: of, left } if *of == bucket && *left < CHANNELS),
        );
        // Otherwise it is a subscription from before it was given up here.
        (self.open.contains(bucket) || half).then_some(bucket)
    }

    fn message(&self, common: &Common, data: &[Value], out: &mut Vec<Event>) -> Result<(), Reason> {
        let (Some(channel), Some(Value::BulkString(message))) = (channel_of(data), data.get(1)) else {
            return Err("a message without channel".into());
        };
        common.metrics.add(Number::FeedMessages, 1);
        common.metrics.add(Number::FeedBytes, message.len() as u64);
        let Some(bucket) = tags::bucket_of(channel) else { return Ok(()) };
        // Before it is announced, a bucket's feed would come ahead of everybody's follow.
        if !self.open.contains(bucket) || self.opened.contains(bucket) {
            return Ok(());
        }
        let Some(fed) = feed::parse(bucket, Keys::is_inbox(channel), message) else {
            common.metrics.add(Number::FeedMalformed, 1);
            return Err("a message on an inbox cannot be read".into());
        };
        out.push(Event::Feed(fed));
        Ok(())
    }
}

fn channel_of(data: &[Value]) -> Option<&[u8]> {
    match data.first() {
        Some(Value::BulkString(channel)) => Some(channel),
        _ => None,
    }
}
