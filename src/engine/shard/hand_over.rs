//! What only this node knows of a client, given to the node that it reaches next; and what others gave.
//!
//! In: clients that a drain sends away; connect commands while some node drains. Out: things parked with the engine under the
//! client's user; connect results with what was parked.
//!
//! ```text
//! sent away ─> positions asked of owners ─> each subscription ends where its position is known ─> parked ─> Close frame
//! connect ─> identity ─> anything parked? (only while a node drains and parked_ttl_ms behind it) ─> server-side subscriptions
//! ```
//! Handed over are server-side subscriptions that were made while the client was connected, and info that it was given
//! meanwhile. All else comes again by itself: subscriptions of the client's own, of its token or connect event, the personal
//! channel. A client that keeps its own position brings it, and it counts more than ours.
//! Invariants: a subscription that is parked with a position has had everything up to it and nothing behind it; the Close
//! frame goes out when the engine has what is parked, or `hand_over_wait_ms` later; a connect command waits at most
//! `parked_wait_ms`; what was taken for a client that is not there any more is parked again.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use ringway_wire::close::CloseReason;
use ringway_wire::ingest;
use ringway_wire::parked::{Parked, ParkedSubscription};

use super::Shard;
use super::subscribe::Made;
use crate::identity::About;
use crate::ids::{ConnId, Epoch, LocalChannelId};
use crate::lane_message::{LaneMessage, Position, RecoverFrom, SubscribeRequest};
use crate::limits::TICK_MS;
use crate::metrics::Metric;
use crate::owner::{Handed, Taker};
use crate::session::AskWhat;
use crate::subscription::{AnswerTo, Subscription};
use crate::tokens::{ConnectClaims, Overrides, TokenSubscription};
use crate::variant::Variant;

/// See the file's header.
#[derive(Debug, Default)]
pub(super) struct HandOvers {
    /// Clients that are to leave, by slot.
    leaving: BTreeMap<u32, HandOver>,
    /// Some position is to be asked for again.
    again: bool,
    ticked_ms: u64,
    /// Connect commands that wait for what may be parked: until when, and the request. Also answered ones.
    taking: VecDeque<(u64, ConnId, u32)>,
    /// Until then something may be parked.
    draining_until_ms: u64,
}

/// A client that is to leave.
#[derive(Debug)]
struct HandOver {
    conn: ConnId,
    user: Box<str>,
    conn_info: Option<Box<[u8]>>,
    subscriptions: Vec<Kept>,
    /// The engine has been asked.
    is_sent: bool,
    until_ms: u64,
}

/// One of its subscriptions.
#[derive(Debug)]
struct Kept {
    channel: Box<str>,
    local: LocalChannelId,
    variant: Variant,
    overrides: ingest::Overrides,
    info: Box<[u8]>,
    data: Box<[u8]>,
    expires_at_ms: Option<u64>,
    position: Where,
}

/// A subscription's position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    /// To be asked for.
    Unasked,
    /// The owner was asked under this number.
    Asked(u32),
    /// It stands here, and has ended.
    At(Position),
    /// The channel has none, or it cannot be known.
    Nowhere,
}

impl HandOvers {
    /// Clients that are to leave and wait.
    pub(super) fn waiting(&self) -> u64 {
        self.leaving.len() as u64
    }

    /// Whether a client that is to leave has this subscription still, as far as it knows: it may have ended here.
    pub(super) fn holds(&self, conn: ConnId, channel: &str) -> bool {
        let hand_over = self.leaving.get(&conn.slot).filter(|hand_over| hand_over.conn == conn);
        hand_over.is_some_and(|hand_over| hand_over.subscriptions.iter().any(|kept| *kept.channel == *channel))
    }

    /// A subscription (all: empty) is ended by an order: it is not to go on elsewhere, unless it is on its way there.
    /// Returns the channels of those that it concerns.
    pub(super) fn give_up(&mut self, conn: ConnId, channel: &str) -> Vec<Box<str>> {
        let hand_over = self.leaving.get_mut(&conn.slot).filter(|hand_over| hand_over.conn == conn);
        let Some(hand_over) = hand_over else { return Vec::new() };
        let ends = |kept: &mut Kept| channel.is_empty() || *kept.channel == *channel;
        hand_over.subscriptions.extract_if(.., ends).map(|kept| kept.channel).collect()
    }
}

impl Shard {
    /// The one place where what only this node knows of a client goes to others. True: the client has to wait, and is closed
    /// when all is parked. A node alone has nobody to give it to: its clients bring their own positions, and get the
    /// server-side subscriptions of their token.
    pub(super) fn hand_over(&mut self, conn: ConnId) -> bool {
        if self.hand_overs.leaving.contains_key(&conn.slot) {
            // Everybody is closed at once.
            self.forget_hand_over(conn);
            return false;
        }
        let Some(hand_over) = self.what_is_known(conn) else { return false };
        if self.shutting_down {
            // No time to ask where it stands.
            self.park_state(&hand_over, None);
            return false;
        }
        self.hand_overs.leaving.insert(conn.slot, hand_over);
        self.ask_positions(conn.slot);
        self.park_if_complete(conn.slot);
        true
    }

    fn what_is_known(&self, conn: ConnId) -> Option<HandOver> {
        let session = self.session(conn)?;
        if !self.owner.is_shared() || session.user().is_empty() || !session.is_open() {
            return None;
        }
        let conn_info: Option<Box<[u8]>> = session.identity.refreshed_info().map(Box::from);
        let parked = session.subscriptions.iter().filter(|one| one.traits().run_time && one.place().is_some());
        let subscriptions: Vec<Kept> = parked.filter_map(|one| self.kept(one)).collect();
        if conn_info.is_none() && subscriptions.is_empty() {
            return None;
        }
        let until_ms = self.now_ms + u64::from(self.options.limits.hand_over_wait_ms);
        Some(HandOver { conn, user: session.user().into(), conn_info, subscriptions, is_sent: false, until_ms })
    }

    fn kept(&self, subscription: &Subscription) -> Option<Kept> {
        let channel = self.fanouts.get(subscription.local)?;
        let has_position = self.options.namespaces.get(channel.namespace).history_size > 0;
        let (traits, hears) = (subscription.traits(), subscription.variant.join_leave());
        Some(Kept {
            channel: channel.name.clone(),
            local: subscription.local,
            variant: subscription.variant,
            // What it did, whatever the namespace says where it goes on.
            overrides: ingest::Overrides {
                presence: Some(traits.member),
                join_leave: Some(traits.tell_join_leave || hears),
                push_join_leave: Some(hears),
                recovery: Some(traits.recoverable),
                positioned: Some(traits.positioned),
            },
            info: subscription.info().into(),
            data: subscription.data().into(),
            expires_at_ms: subscription.expires_at_ms(),
            position: if has_position { Where::Unasked } else { Where::Nowhere },
        })
    }

    /// Asks owners where the client stands, as a subscribe would: the answer comes behind all that went out before it.
    fn ask_positions(&mut self, slot: u32) {
        let Some(hand_over) = self.hand_overs.leaving.get(&slot) else { return };
        let conn = hand_over.conn;
        for index in 0..hand_over.subscriptions.len() {
            let number = self.new_request();
            let Some(hand_over) = self.hand_overs.leaving.get_mut(&slot) else { return };
            let kept = &mut hand_over.subscriptions[index];
            if kept.position != Where::Unasked {
                continue;
            }
            if !self.fanouts.asked_again(kept.local) {
                kept.position = Where::Nowhere;
                continue;
            }
            kept.position = Where::Asked(number);
            let request = SubscribeRequest {
                channel: kept.channel.clone(),
                local: kept.local,
                variant: kept.variant,
                member: None,
                tell_join_leave: false,
                recover: None,
                conn,
                command: number,
                from: self.options.core,
            };
            let owner = self.owner_of(&request.channel);
            self.lanes.push(owner, LaneMessage::Subscribe(request.into()));
        }
    }

    /// An owner's answer. True: it was about the position of a client that is to leave. Where everything that came before the
    /// answer is in its outbox, the subscription ends here.
    pub(super) fn position_came(
        &mut self,
        conn: ConnId,
        number: u32,
        local: LocalChannelId,
        top: Option<Position>,
    ) -> bool {
        let has_all = self.fanouts.has_handed_out(local);
        let hand_over = self.hand_overs.leaving.get_mut(&conn.slot).filter(|hand_over| hand_over.conn == conn);
        let kept = hand_over.and_then(|hand_over| {
            hand_over.subscriptions.iter_mut().find(|kept| kept.position == Where::Asked(number))
        });
        let Some(kept) = kept else { return false };
        match top {
            Some(_) if !has_all => {
                kept.position = Where::Unasked;
                self.hand_overs.again = true;
                return true;
            }
            Some(top) => kept.position = Where::At(top),
            None => kept.position = Where::Nowhere,
        }
        self.leaving_late(|shard| shard.end_silently(conn, local));
        self.park_if_complete(conn.slot);
        true
    }

    fn end_silently(&mut self, conn: ConnId, local: LocalChannelId) {
        let Some(session) = self.session_mut(conn) else { return };
        let Some(index) = session.subscription(local) else { return };
        if let Some(subscription) = session.subscriptions.swap_remove(index) {
            self.leave(conn, &subscription);
        }
    }

    fn park_if_complete(&mut self, slot: u32) {
        let Some(hand_over) = self.hand_overs.leaving.get_mut(&slot) else { return };
        let is_known = |kept: &Kept| matches!(kept.position, Where::At(_) | Where::Nowhere);
        if hand_over.is_sent || !hand_over.subscriptions.iter().all(is_known) {
            return;
        }
        hand_over.is_sent = true;
        let Some(hand_over) = self.hand_overs.leaving.remove(&slot) else { return };
        self.park_state(&hand_over, Some(hand_over.conn));
        self.hand_overs.leaving.insert(slot, hand_over);
    }

    fn park_state(&mut self, hand_over: &HandOver, waits: Option<ConnId>) {
        let wall_ms = self.owner.wall_ms(self.now_ms);
        let subscription = |kept: &'_ Kept| ParkedSubscription {
            expires_at_ms: kept.expires_at_ms.map_or(0, |at_ms| wall_ms + at_ms.saturating_sub(self.now_ms)),
            position: match kept.position {
                Where::At(Position { offset, epoch }) => Some(((epoch.boot, epoch.creation), offset)),
                _ => None,
            },
            overrides: kept.overrides,
            ..ParkedSubscription::default()
        };
        let subscriptions = hand_over.subscriptions.iter().map(|kept| ParkedSubscription {
            channel: &kept.channel,
            info: &kept.info,
            data: &kept.data,
            ..subscription(kept)
        });
        let parked = Parked { conn_info: hand_over.conn_info.as_deref(), subscriptions: subscriptions.collect() };
        let mut body = Vec::new();
        let written = parked.write(&mut body, self.options.limits.parked_bytes_max as usize);
        self.metrics.add(Metric::HandOversCut, (parked.subscriptions.len() - written) as u64);
        let user = hand_over.user.clone();
        let (owner, mut around) = self.owner();
        owner.park_state(waits, user, body.into(), &mut around);
    }

    /// The client ends before it was closed, or everybody is closed at once.
    pub(super) fn forget_hand_over(&mut self, conn: ConnId) {
        let is_this = self.hand_overs.leaving.get(&conn.slot).is_some_and(|hand_over| hand_over.conn == conn);
        if is_this
            && let Some(hand_over) = self.hand_overs.leaving.remove(&conn.slot)
            && !hand_over.is_sent
        {
            self.park_state(&hand_over, None);
        }
    }

    /// Goes on with what waits. Called once per turn.
    pub(super) fn go_on_handing_over(&mut self) {
        self.tell_late_leaves();
        let is_tick = self.now_ms / TICK_MS > self.hand_overs.ticked_ms / TICK_MS;
        if core::mem::take(&mut self.hand_overs.again) || (is_tick && !self.hand_overs.leaving.is_empty()) {
            self.look_at_leaving();
        }
        if !is_tick {
            return;
        }
        self.hand_overs.ticked_ms = self.now_ms;
        while let Some((until_ms, conn, number)) = self.hand_overs.taking.front().copied()
            && until_ms <= self.now_ms
        {
            self.hand_overs.taking.pop_front();
            let what = self.session_mut(conn).and_then(|session| session.take_ask(number));
            if let Some(AskWhat::Parked { claims, data }) = what {
                self.let_in(conn, *claims, data, None);
                self.flush_replies(conn);
            }
        }
    }

    fn look_at_leaving(&mut self) {
        let slots: Vec<u32> = self.hand_overs.leaving.keys().copied().collect();
        for slot in slots {
            self.ask_positions(slot);
            self.park_if_complete(slot);
            let Some(hand_over) = self.hand_overs.leaving.get(&slot) else { continue };
            if hand_over.until_ms <= self.now_ms {
                let conn = hand_over.conn;
                self.metrics.add(Metric::HandOversLate, 1);
                self.forget_hand_over(conn);
                self.leaving_late(|shard| shard.close(conn, CloseReason::Shutdown));
            }
        }
    }

    /// What came of hand-overs.
    pub(super) fn take_handed(&mut self) {
        for handed in self.owner.take_handed() {
            match handed {
                Handed::Parked(conn) => {
                    let is_this = |hand_over: &HandOver| hand_over.conn == conn;
                    if self.hand_overs.leaving.get(&conn.slot).is_some_and(is_this) {
                        self.hand_overs.leaving.remove(&conn.slot);
                        self.leaving_late(|shard| shard.close(conn, CloseReason::Shutdown));
                    }
                }
                Handed::Taken(taker, body) => self.parked_came(taker, body),
                Handed::Entered(entrant, room) => self.place_answered(entrant, room),
                Handed::Unsaid(user) => self.unsaid(user),
            }
        }
    }

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
        self.wait(conn, number, AskWhat::Parked { claims: Box::new(claims), data });
        let until_ms = self.now_ms + u64::from(self.options.limits.parked_wait_ms);
        self.hand_overs.taking.push_back((until_ms, conn, number));
        let (owner, mut around) = self.owner();
        owner.take_parked(Taker { conn, number, user }, &mut around);
    }

    /// The engine's answer: perhaps too late for the connect result, perhaps for a client that has gone.
    fn parked_came(&mut self, taker: Taker, body: Option<Box<[u8]>>) {
        let Taker { conn, number, user } = taker;
        let parked = body.as_deref().and_then(Parked::read);
        let waits = self.session_mut(conn).and_then(|session| session.take_ask(number));
        if let Some(AskWhat::Parked { claims, data }) = waits {
            self.metrics.add(Metric::HandOversRestored, parked.is_some().into());
            self.let_in(conn, *claims, data, parked.as_ref());
            return self.flush_replies(conn);
        }
        let (Some(parked), Some(body)) = (&parked, &body) else { return };
        match self.session_mut(conn) {
            Some(session) if session.admitted && *session.user() == *user => {
                if let Some(info) = parked.conn_info {
                    let about = session.identity.about.take().map(|about| *about).unwrap_or_default();
                    session.identity.set_about(About { info: info.into(), is_refreshed: true, ..about });
                }
                self.metrics.add(Metric::HandOversRestored, 1);
                self.restore(conn, parked, AnswerTo::Push);
                self.flush_replies(conn);
            }
            _ => {
                let body = body.clone();
                let (owner, mut around) = self.owner();
                owner.park_state(None, user, body, &mut around);
            }
        }
    }

    /// Makes the subscriptions that another node had made; returns how many owners will answer.
    pub(super) fn restore(&mut self, conn: ConnId, parked: &Parked<'_>, answer_to: AnswerTo) -> u32 {
        let wall_ms = self.owner.wall_ms(self.now_ms);
        let mut asked = 0;
        for one in &parked.subscriptions {
            let expires_in_ms = (one.expires_at_ms > 0).then(|| one.expires_at_ms.saturating_sub(wall_ms));
            if expires_in_ms == Some(0) {
                continue;
            }
            let ingest::Overrides { presence, join_leave, push_join_leave, recovery, positioned } = one.overrides;
            let subscription = TokenSubscription {
                channel: one.channel.into(),
                info: one.info.into(),
                data: one.data.into(),
                expires_in_ms,
                overrides: Overrides { presence, join_leave, push_join_leave, recovery, positioned },
            };
            let position = one
                .position
                .map(|((boot, creation), offset)| RecoverFrom { offset, epoch: Some(Epoch { boot, creation }) });
            let made = Made { answer_to, recover: None, parked: position, run_time: true };
            asked += u32::from(self.make_subscription(conn, subscription, made));
        }
        asked
    }
}
