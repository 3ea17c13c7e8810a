//! What other nodes knew of a client, for its connect result here.
//!
//! In: connect commands while some node drains; what the engine gives; orders about clients that wait for it. Out: connect results
//! and pushes with what was parked, as orders have left it. `hand_over.rs` is the other side.
//! Invariants: a connect command waits at most `parked_wait_ms`, and what comes later follows as pushes; while it waits, orders about
//! the user reach the client, and are kept until what they are about has come; what was taken for a client that is not there any more
//! is parked again.

use alloc::boxed::Box;
use alloc::vec::Vec;

use ringway_wire::close::CloseReason;
use ringway_wire::record::Told;

use super::Shard;
use super::parked_state::ParkedState;
use super::subscribe::Made;
use crate::backplane::Taken;
use crate::call::UserOrder;
use crate::identity::About;
use crate::ids::ConnId;
use crate::lane_message::{LaneMessage, UserParking};
use crate::metrics::Metric;
use crate::owner::Taker;
use crate::session::AskWhat;
use crate::subscription::AnswerTo;
use crate::tokens::ConnectClaims;

/// Orders that wait for what is parked for one client. Over: it is closed and what is parked dropped (counted).
const WAITING_ORDERS_MAX: usize = 64;

impl Shard {
    /// Some node drains, or has just drained.
    pub(super) fn somebody_drains(&mut self, left_ms: u64) {
        let until_ms = &mut self.hand_overs.draining_until_ms;
        *until_ms = (*until_ms).max(self.now_ms.saturating_add(left_ms));
    }

    /// Whether the engine is to be asked for what another node knew of a user.
    pub(super) fn may_be_parked(&self, user: &str) -> bool {
        self.now_ms < self.hand_overs.draining_until_ms && !user.is_empty() && self.owner.is_reachable(user)
    }

    pub(super) fn ask_for_parked(&mut self, conn: ConnId, claims: ConnectClaims, data: Box<[u8]>) {
        if self.session(conn).is_none() {
            return;
        }
        let number = self.new_request();
        let user = claims.user.clone();
        // Orders that come from now on may be about what is parked.
        if let Some(session) = self.session_mut(conn) {
            session.identity.user = user.clone();
        }
        self.join_user(conn);
        self.wait(conn, number, AskWhat::Parked { claims: Box::new(claims), data });
        self.hand_overs.orders.insert((conn.slot, number), (conn, Vec::new()));
        let until_ms = self.now_ms + u64::from(self.options.limits.parked_wait_ms);
        self.hand_overs.taking.push_back((until_ms, conn, number));
        // Behind the word that the user is here: orders that the engine feeds from then on find it.
        let taker = Taker { conn, from: self.options.core, number, user };
        self.lanes.push(self.owner_of(&taker.user), LaneMessage::UserTake(taker.into()));
    }

    /// Notes an order about a client that waits for what is parked. True: it is carried out when that has come.
    pub(super) fn waits_for_parked(&mut self, conn: ConnId, order: &UserOrder) -> bool {
        let of_slot = (conn.slot, 0)..=(conn.slot, u32::MAX);
        let asked = self.hand_overs.orders.range_mut(of_slot).find(|(_, (asked, _))| *asked == conn);
        let Some((_, (_, orders))) = asked else { return false };
        let is_end = matches!(order, UserOrder::Disconnect { .. } | UserOrder::Refresh { expired: true, .. });
        let too_many = orders.len() >= WAITING_ORDERS_MAX && !is_end;
        orders.push(if too_many {
            UserOrder::Refresh { expired: true, expires_in_ms: None, info: None }
        } else {
            order.clone()
        });
        if too_many {
            self.metrics.add(Metric::HandOversFailed, 1);
            self.close(conn, CloseReason::TooManyRequests);
            return true;
        }
        !is_end && self.session(conn).is_some_and(|session| !session.admitted)
    }

    /// Lets a client in with what another node knew of it, and what was ordered meanwhile.
    pub(super) fn let_in_behind(
        &mut self,
        conn: ConnId,
        claims: ConnectClaims,
        data: Box<[u8]>,
        state: Option<ParkedState>,
        orders: &[UserOrder],
    ) {
        let made = orders.iter().try_fold(state.unwrap_or_default(), |state, order| state.after("", order));
        self.let_in(conn, claims, data, made.as_ref());
        for order in orders {
            if matches!(order, UserOrder::Refresh { .. } | UserOrder::Message { .. }) {
                self.carry_out_order(conn, order);
            }
        }
        self.flush_replies(conn);
    }

    /// The engine's answer: perhaps too late for the connect result, perhaps for a client that has gone.
    pub(super) fn parked_came(&mut self, taker: Taker, taken: Option<Taken>) {
        let Taker { conn, number, user, .. } = taker;
        let orders = self.hand_overs.orders.remove(&(conn.slot, number)).map(|(_, orders)| orders).unwrap_or_default();
        let state = taken.and_then(|taken| self.state_of(taken));
        let waits = self.session_mut(conn).and_then(|session| session.take_ask(number));
        if let Some(AskWhat::Parked { claims, data }) = waits {
            self.metrics.add(Metric::HandOversRestored, state.is_some().into());
            return self.let_in_behind(conn, *claims, data, state, &orders);
        }
        let Some(state) = state else { return };
        let Some(state) = orders.iter().try_fold(state, |state, order| state.after("", order)) else { return };
        match self.session_mut(conn) {
            Some(session) if session.admitted && *session.user() == *user => {
                if let Some(info) = &state.conn_info {
                    let about = session.identity.about.take().map(|about| *about).unwrap_or_default();
                    session.identity.set_about(About { info: info.clone(), is_refreshed: true, ..about });
                }
                self.metrics.add(Metric::HandOversRestored, 1);
                self.restore(conn, &state, AnswerTo::Push);
                self.flush_replies(conn);
            }
            _ => {
                let wall_ms = self.owner.wall_ms(self.now_ms);
                let body = state.write(wall_ms, self.options.limits.parked_bytes_max as usize);
                let (client, from) = (state.client, self.options.core);
                let parking = UserParking { user, client, body, again: false, alone: false, waits: None, from };
                self.park_at_owner(parking);
            }
        }
    }

    /// What was parked, and what the orders behind it have made of it; none: nothing, or its connection was to end.
    fn state_of(&mut self, taken: Taken) -> Option<ParkedState> {
        let Taken { client, body, alone, orders } = taken;
        let mut state = ParkedState::read(client, &body, alone, self.owner.wall_ms(self.now_ms))?;
        for order in &orders {
            let read = match Told::read(order) {
                Some(Told::Order { frame, .. }) => self.read_order(frame),
                _ => None,
            };
            match read {
                Some((client, order)) => state = state.after(&client, &order)?,
                None => self.metrics.add(Metric::FleetFedUnreadable, 1),
            }
        }
        Some(state)
    }

    /// Makes the subscriptions that another node had made; returns how many owners will answer.
    pub(super) fn restore(&mut self, conn: ConnId, state: &ParkedState, answer_to: AnswerTo) -> u32 {
        let mut asked = 0;
        for one in &state.subscriptions {
            let made = Made { answer_to, recover: one.recover, parked: one.parked, run_time: true };
            asked += u32::from(self.make_subscription(conn, one.wanted.clone(), made));
        }
        asked
    }
}
