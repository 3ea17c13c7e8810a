//! Orders about a user, carried out on the connections that this core has of it.
//!
//! In: `UserCall`s that the user's owner has passed on. Out: subscriptions, pushes, closed connections.

use alloc::boxed::Box;
use alloc::vec::Vec;

use ringway_wire::close::CloseReason;

use super::Shard;
use crate::call::{UserCall, UserOrder};
use crate::connection::{Connection, Phase};
use crate::identity::About;
use crate::ids::ConnId;
use crate::lane_message::{LaneMessage, RecoverFrom, UserPresence};
use crate::metrics::Metric;
use crate::session::client_id;
use crate::slots::Slots;
use crate::subscription::AnswerTo;

impl Shard {
    /// The client's user is known: backends can reach it by that name.
    pub(super) fn join_user(&mut self, conn: ConnId) {
        let user: Box<str> = match self.session(conn) {
            Some(session) if !session.user().is_empty() => session.user().into(),
            _ => return,
        };
        let connections = &self.connections;
        if self.users.insert(&user, conn.slot, |slot| user_at(connections, slot)) {
            let presence = UserPresence { user, from: self.options.core };
            self.lanes.push(self.owner_of(&presence.user), LaneMessage::UserJoin(presence.into()));
        }
        self.metrics.set(Metric::UsersOpen, u64::from(self.users.len()));
    }

    pub(super) fn leave_user(&mut self, conn: ConnId) {
        let user: Box<str> = match self.session(conn) {
            Some(session) if !session.user().is_empty() => session.user().into(),
            _ => return,
        };
        let connections = &self.connections;
        if self.users.remove(&user, conn.slot, |slot| user_at(connections, slot)) {
            let presence = UserPresence { user: user.clone(), from: self.options.core };
            self.lanes.push(self.owner_of(&presence.user), LaneMessage::UserLeave(presence.into()));
        }
        if self.counts_connections() {
            self.leave_place(user);
        }
        self.metrics.set(Metric::UsersOpen, u64::from(self.users.len()));
    }

    /// Does what a backend wants done with the connections of a user.
    pub(super) fn carry_out(&mut self, call: &UserCall) {
        // A subscription to a channel that was given up in this turn is there until its client is told: an order must not
        // make a second one beside it.
        self.tell_insufficient();
        let slots = self.users.connections(&call.user, |slot| user_at(&self.connections, slot));
        let id = |slot| self.connections.at(slot).map(|(generation, _)| ConnId { slot, generation });
        let connections: Vec<ConnId> = slots.filter_map(id).collect();
        for conn in connections {
            let client = client_id(self.options.boot, self.options.core, conn);
            if call.client.is_empty() || *call.client == *client.as_ref() {
                self.order(conn, client.as_ref(), &call.order);
                self.flush_replies(conn);
            }
        }
    }

    /// Carries an order out on one connection. What a client has may be on its way from another node or to one: the order
    /// counts there, too.
    fn order(&mut self, conn: ConnId, client: &str, order: &UserOrder) {
        if let UserOrder::Disconnect { whitelist, .. } = order
            && whitelist.iter().any(|stays| **stays == *client)
        {
            return;
        }
        if !self.waits_for_parked(conn, order) && !self.changes_hand_over(conn, order) {
            self.carry_out_order(conn, order);
        }
    }

    /// On what the client has here.
    pub(super) fn carry_out_order(&mut self, conn: ConnId, order: &UserOrder) {
        match order {
            UserOrder::Subscribe { subscription, recover } => {
                let recover = recover.map(|since| RecoverFrom { offset: since.offset, epoch: since.epoch });
                self.server_subscribe(conn, subscription.clone(), recover, AnswerTo::Push);
            }
            UserOrder::Unsubscribe { channel, code, reason } => self.unsubscribe_by_order(conn, channel, *code, reason),
            UserOrder::Disconnect { code, reason, .. } => self.close_with(conn, *code, reason),
            UserOrder::Refresh { expired: true, .. } => self.close(conn, CloseReason::Expired),
            UserOrder::Refresh { expires_in_ms, info, .. } => {
                let expires_at_ms = expires_in_ms.map(|after_ms| self.now_ms + after_ms);
                if let Some(session) = self.session_mut(conn) {
                    session.identity.expires = expires_at_ms.into();
                    if let Some(info) = info {
                        let about = session.identity.about.take().map(|about| *about).unwrap_or_default();
                        session.identity.set_about(About { info: info.clone(), is_refreshed: true, ..about });
                    }
                }
                self.arm_client(conn);
            }
            UserOrder::Message { data } => {
                let Some(form) = self.form_of(conn) else { return };
                match self.embeddable(form, data) {
                    Some(data) => self.pushes(conn).push_message(&data),
                    None => self.metrics.add(Metric::MessagesUnreadable, 1),
                }
            }
        }
    }

    fn unsubscribe_by_order(&mut self, conn: ConnId, channel: &str, code: u32, reason: &str) {
        for channel in self.hand_overs.give_up(conn, channel) {
            let local = self.fanouts.find(&channel);
            let is_here =
                local.is_some_and(|local| self.session(conn).is_some_and(|s| s.subscription(local).is_some()));
            if !is_here {
                // It has ended here without a word, since it was to go on elsewhere.
                self.pushes(conn).push_unsubscribe(&channel, code, reason);
            }
        }
        if channel.is_empty() {
            let count = self.session(conn).map_or(0, |session| session.subscriptions.len());
            // From the end: an ended one is replaced by the last, which has had its turn.
            for index in (0..count).rev() {
                self.end_from_server(conn, index, code, reason);
            }
            return;
        }
        let local = self.fanouts.find(channel);
        let index = local.and_then(|local| self.session(conn)?.subscription(local));
        if let Some(index) = index {
            self.end_from_server(conn, index, code, reason);
        }
    }

    /// Closes the connections that came with a token that was revoked.
    pub(super) fn revoke_token(&mut self, token_id: &str) {
        // No id is not an id that many have.
        if token_id.is_empty() {
            return;
        }
        let revoked: Vec<ConnId> = (0..self.connections.slots())
            .filter_map(|slot| match self.connections.at(slot)? {
                (generation, Connection { phase: Phase::Client(session), .. }) => {
                    (session.identity.token_id() == token_id).then_some(ConnId { slot, generation })
                }
                _ => None,
            })
            .collect();
        for conn in revoked {
            self.close(conn, CloseReason::InvalidToken);
        }
    }
}

/// The user of the connection in a slot; empty: none.
pub(super) fn user_at(connections: &Slots<Connection>, slot: u32) -> &str {
    match connections.at(slot) {
        Some((_, Connection { phase: Phase::Client(session), .. })) => session.user(),
        _ => "",
    }
}
