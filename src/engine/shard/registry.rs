//! Users on a node of a fleet: where they are is registered with the engine, and orders about them reach every node that has
//! connections of them.
//!
//! In: first and last connections of the users that this core owns, orders about them, orders that other nodes passed on. Out:
//! registrations, orders to other nodes, copies to the cores of this one.
//! Invariant: an order is carried out here whether or not the engine can be reached; it is answered with success only when
//! the engine has passed it on.

use alloc::boxed::Box;
use alloc::vec::Vec;

use ringway_wire::ingest::{
    self, Call, CallBody, ClientFrame, Grant, ListBuf, Overrides, Since, Subscription, write_call,
};
use ringway_wire::record::Told;

use super::Shard;
use crate::backplane::{Buckets, Event, Fed, Feed, Subject};
use crate::call::{UserCall, UserOrder};
use crate::lane_message::LaneMessage;
use crate::metrics::Metric;
use crate::owner::OrderAsker;

/// Users registered again per turn after the engine's return.
const USERS_PER_TURN: usize = 1_024;

impl Shard {
    /// Something came from the backplane.
    pub(super) fn backplane_event(&mut self, event: Event) {
        match &event {
            Event::Feed(Feed { subject: Subject::User(user), what: Fed::Told(body), addressed, .. }) => {
                return self.order_came(user, body, *addressed);
            }
            Event::Restored(buckets) => {
                self.register_again(buckets);
                self.unsaid.try_again();
            }
            Event::Draining { left_ms } => self.somebody_drains(*left_ms),
            _ => {}
        }
        let (owner, mut around) = self.owner();
        owner.backplane_event(event, &mut around);
        self.take_handed();
    }

    /// Goes on with what the backplane's return made necessary.
    pub(super) fn follow_again(&mut self) {
        for _ in 0..USERS_PER_TURN {
            let Some(user) = self.to_register.pop() else { break };
            // Once it can be reached everybody is registered again.
            if !self.owner.is_reachable(&user) {
                continue;
            }
            let is_here = self.user_cores.cores(&user).next().is_some();
            let (owner, mut around) = self.owner();
            if is_here && !owner.follow_user(&user, &mut around) {
                self.to_register.push(user);
                break;
            }
            let mine = self.user_places.tell(&user);
            if mine > 0 {
                self.set_connections(&user, mine);
            }
        }
        let (owner, mut around) = self.owner();
        owner.follow_again(&mut around);
    }

    /// Tries those again whose registration was refused, and now and then registers everybody again; once per tick.
    pub(super) fn register_refused(&mut self) {
        self.owner.take_unregistered(&mut self.to_register);
        self.say_unsaid();
        let interval_ms = u64::from(self.options.limits.interest_check_ms);
        if self.owner.is_shared() && interval_ms > 0 && self.now_ms >= self.registered_ms + interval_ms {
            self.registered_ms = self.now_ms;
            self.register_again(&Buckets::ALL);
        }
    }

    fn register_again(&mut self, buckets: &Buckets) {
        // Some are counted and no core has said yet that it has them.
        let is_new = |user: &&str| self.user_cores.cores(user).next().is_none();
        let users = self.user_cores.users().chain(self.user_places.users().filter(is_new));
        self.to_register.extend(users.filter(|user| buckets.hold(user)).map(Box::from));
    }

    /// The user has got its first connection on this node.
    pub(super) fn register(&mut self, user: &str) {
        if !self.owner.is_shared() {
            return;
        }
        let (owner, mut around) = self.owner();
        if !owner.follow_user(user, &mut around) {
            self.to_register.push(user.into());
        }
    }

    /// The user's last connection on this node has gone.
    pub(super) fn unregister(&mut self, user: &str) {
        if self.owner.is_shared() {
            let (owner, mut around) = self.owner();
            owner.unfollow_user(user, &mut around);
        }
    }

    /// Passes an order on to other nodes; `here`: how many cores of this one have it.
    pub(super) fn order_to_nodes(&mut self, call: &UserCall, asker: OrderAsker) {
        let body = order_body(call, self.options.boot as u32);
        let (owner, mut around) = self.owner();
        owner.tell_user(&call.user, body, asker, &mut around);
    }

    /// An order that another node passed on, or this one's own.
    fn order_came(&mut self, user: &str, body: &[u8], addressed: bool) {
        let Some(Told::Order { from, frame }) = Told::read(body) else {
            return self.metrics.add(Metric::FleetFedUnreadable, 1);
        };
        if from == self.options.boot as u32 {
            return;
        }
        if self.user_cores.cores(user).next().is_none() {
            self.metrics.add(Metric::FleetFedToNobody, 1);
            if addressed {
                self.unregister(user);
            }
            return;
        }
        match self.read_order(frame) {
            Some((client, order)) => {
                let call = UserCall { user: user.into(), client, order, origin: None, from: self.options.core };
                self.pass_on(&call);
            }
            None => self.metrics.add(Metric::FleetFedUnreadable, 1),
        }
    }

    /// What an order is about (empty: every connection of the user), and what it is.
    pub(super) fn read_order(&mut self, frame: &[u8]) -> Option<(Box<str>, UserOrder)> {
        let Ok(ClientFrame::Call(call)) = ingest::decode_client(frame) else { return None };
        let (CallBody::Subscribe { client, .. }
        | CallBody::Unsubscribe { client, .. }
        | CallBody::Disconnect { client, .. }
        | CallBody::Refresh { client, .. }
        | CallBody::Message { client, .. }) = call.what
        else {
            return None;
        };
        // Checked where it came in, and once more: namespaces may differ while a change is rolled out.
        Some((client.into(), self.user_order(&call.what).ok()?))
    }

    /// Hands a call to each core where the user has connections; returns how many those are.
    pub(super) fn pass_on(&mut self, call: &UserCall) -> u16 {
        let cores: Vec<_> = self.user_cores.cores(&call.user).collect();
        for core in &cores {
            let copy = UserCall {
                user: call.user.clone(),
                client: call.client.clone(),
                order: call.order.clone(),
                origin: None,
                from: self.options.core,
            };
            self.lanes.push(*core, LaneMessage::UserCall(copy.into()));
        }
        cores.len() as u16
    }
}

/// An order as nodes tell it each other.
fn order_body(call: &UserCall, boot: u32) -> Box<[u8]> {
    let (user, client) = (&*call.user, &*call.client);
    let mut names = ListBuf::new();
    let what = match &call.order {
        UserOrder::Subscribe { subscription, recover } => {
            let overrides = subscription.overrides;
            CallBody::Subscribe {
                user,
                client,
                subscription: Subscription {
                    channel: &subscription.channel,
                    grant: Grant {
                        info: &subscription.info,
                        data: &subscription.data,
                        expires_in_ms: subscription.expires_in_ms,
                        overrides: Overrides {
                            presence: overrides.presence,
                            join_leave: overrides.join_leave,
                            push_join_leave: overrides.push_join_leave,
                            recovery: overrides.recovery,
                            positioned: overrides.positioned,
                        },
                    },
                },
                recover: recover.map(|since| Since {
                    offset: since.offset,
                    epoch: since.epoch.map(|epoch| (epoch.boot, epoch.creation)),
                }),
            }
        }
        UserOrder::Unsubscribe { channel, code, reason } => {
            CallBody::Unsubscribe { user, client, channel, code: *code, reason }
        }
        UserOrder::Disconnect { code, reason, whitelist } => {
            // What does not fit its length is left out: such a client id exists nowhere.
            for id in whitelist {
                let _ = names.push(&&**id);
            }
            CallBody::Disconnect { user, client, code: *code, reason, whitelist: names.list() }
        }
        UserOrder::Refresh { expired, expires_in_ms, info } => {
            CallBody::Refresh { user, client, expired: *expired, expires_in_ms: *expires_in_ms, info: info.as_deref() }
        }
        UserOrder::Message { data } => CallBody::Message { user, client, data },
    };
    let mut frame = Vec::new();
    // It came over a protocol with the same bounds, so it fits; an empty frame is counted as unreadable by who gets it.
    let _ = write_call(&mut frame, &Call { call: 0, what }, usize::MAX);
    let mut body = Vec::new();
    Told::Order { from: boot, frame: &frame }.write(&mut body);
    body.into()
}
