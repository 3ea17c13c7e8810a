//! What only this node knows of a client, given to the node that it reaches next. What others gave: `take_over.rs`.
//!
//! In: clients that a drain sends away; connect commands while some node drains. Out: things parked with the engine under the
//! client's user; connect results with what was parked.
//!
//! ```text
//! sent away ─> positions asked of owners ─> each subscription ends where its position is known ─> parked ─> Close frame
//! connect ─> identity ─> anything parked? (only while a node drains and parked_ttl_ms behind it) ─> server-side subscriptions
//! order     ─> to a client that is to leave: into what is parked, again if it was ─> parked and nobody there: noted by the engine
//!           ─> to a client that waits for what is parked: into that when it comes
//! ```
//! Handed over are server-side subscriptions that were made while the client was connected, and info that it was given
//! meanwhile. All else comes again by itself: subscriptions of the client's own, of its token or connect event, the personal
//! channel. A client that keeps its own position brings it, and it counts more than ours.
//! Invariants: a subscription that is parked with a position has had everything up to it and nothing behind it; the Close
//! frame goes out when the engine has what is parked, or `hand_over_wait_ms` later; a connect command waits at most
//! `parked_wait_ms`; what was taken for a client that is not there any more is parked again; an order that a client or the
//! engine has heard of by the time of the Close frame is in what goes on; who is closed by an order hands nothing over.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use ringway_wire::close::CloseReason;
use ringway_wire::ingest;
use ringway_wire::parked::{Parked, ParkedSubscription};

use super::Shard;
use super::user::user_at;
use crate::call::UserOrder;
use crate::ids::{ConnId, LocalChannelId};
use crate::lane_message::{LaneMessage, Position, SubscribeRequest, UserParking};
use crate::limits::TICK_MS;
use crate::metrics::Metric;
use crate::owner::Handed;
use crate::session::{AskWhat, client_id};
use crate::subscription::{Subscription, Traits, Wants, hears_join_leave, traits_of};
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
    pub(super) taking: VecDeque<(u64, ConnId, u32)>,
    /// By slot and request: orders about a client for which the engine was asked and has not answered.
    pub(super) orders: BTreeMap<(u32, u32), (ConnId, Vec<UserOrder>)>,
    /// Until then something may be parked.
    pub(super) draining_until_ms: u64,
}

/// A client that is to leave.
#[derive(Debug)]
struct HandOver {
    conn: ConnId,
    user: Box<str>,
    conn_info: Option<Box<[u8]>>,
    subscriptions: Vec<Kept>,
    /// The engine has been asked to park it.
    is_sent: bool,
    /// Times that it was asked and has not answered.
    unanswered: u32,
    /// An order has changed it since it was sent.
    is_changed: bool,
    until_ms: u64,
}

/// One of its subscriptions.
#[derive(Debug)]
struct Kept {
    channel: Box<str>,
    /// On this core; none: an order has made it for the next node.
    live: Option<(LocalChannelId, Variant)>,
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

    /// A subscription (all: empty) is ended by an order: it is not to go on elsewhere.
    /// Returns the channels of those that it concerns.
    pub(super) fn give_up(&mut self, conn: ConnId, channel: &str) -> Vec<Box<str>> {
        let hand_over = self.leaving.get_mut(&conn.slot).filter(|hand_over| hand_over.conn == conn);
        let Some(hand_over) = hand_over else { return Vec::new() };
        let ends = |kept: &mut Kept| channel.is_empty() || *kept.channel == *channel;
        let ended: Vec<Kept> = hand_over.subscriptions.extract_if(.., ends).collect();
        hand_over.is_changed |= !ended.is_empty();
        self.again |= hand_over.is_changed;
        // Of one that was made for the next node the client has not heard.
        ended.into_iter().filter(|kept| kept.live.is_some()).map(|kept| kept.channel).collect()
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
            self.park_state(&hand_over, false);
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
        Some(HandOver {
            conn,
            user: session.user().into(),
            conn_info,
            subscriptions,
            is_sent: false,
            unanswered: 0,
            is_changed: false,
            until_ms,
        })
    }

    fn kept(&self, subscription: &Subscription) -> Option<Kept> {
        let channel = self.fanouts.get(subscription.local)?;
        let has_position = self.options.namespaces.get(channel.namespace).history_size > 0;
        Some(Kept {
            channel: channel.name.clone(),
            live: Some((subscription.local, subscription.variant)),
            overrides: overrides(subscription.traits(), subscription.variant.join_leave()),
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
            let Some((local, variant)) = kept.live.filter(|(local, _)| self.fanouts.asked_again(*local)) else {
                kept.position = Where::Nowhere;
                continue;
            };
            kept.position = Where::Asked(number);
            let request = SubscribeRequest {
                channel: kept.channel.clone(),
                local,
                variant,
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
        let is_due = !hand_over.is_sent || hand_over.is_changed;
        if !is_due || !hand_over.subscriptions.iter().all(is_known) {
            return;
        }
        let Some(mut hand_over) = self.hand_overs.leaving.remove(&slot) else { return };
        self.park_state(&hand_over, true);
        (hand_over.is_sent, hand_over.is_changed) = (true, false);
        hand_over.unanswered += 1;
        self.hand_overs.leaving.insert(slot, hand_over);
    }

    /// `waits`: its connection is closed behind the answer.
    fn park_state(&mut self, hand_over: &HandOver, waits: bool) {
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
        if hand_over.subscriptions.is_empty() && hand_over.conn_info.is_none() {
            // An order has taken away what there was.
            body.clear();
        }
        self.park_body(hand_over, body.into(), waits);
    }

    fn park_body(&mut self, hand_over: &HandOver, body: Box<[u8]>, waits: bool) {
        let conn = hand_over.conn;
        let slots = self.users.connections(&hand_over.user, |slot| user_at(&self.connections, slot));
        let others = slots.filter(|slot| *slot != conn.slot).count();
        let parking = UserParking {
            user: hand_over.user.clone(),
            client: client_id(self.options.boot, self.options.core, conn).as_ref().into(),
            body,
            again: hand_over.is_sent && !self.shutting_down,
            alone: others == 0,
            waits: waits.then_some(conn),
            from: self.options.core,
        };
        self.park_at_owner(parking);
    }

    /// Only the user's owner knows whether other cores have connections of it, and orders go through it, too.
    pub(super) fn park_at_owner(&mut self, parking: UserParking) {
        if self.shutting_down {
            // Whether other cores do anything still nobody knows.
            let (owner, mut around) = self.owner();
            return owner.park_state(UserParking { alone: false, ..parking }, &mut around);
        }
        self.lanes.push(self.owner_of(&parking.user), LaneMessage::UserPark(parking.into()));
    }

    /// As the user's owner: what a core knows of a connection is to be parked.
    pub(super) fn owned_user_park(&mut self, parking: UserParking) {
        let elsewhere = self.user_cores.cores(&parking.user).any(|core| core != parking.from);
        let alone = parking.alone && !elsewhere;
        let (owner, mut around) = self.owner();
        owner.park_state(UserParking { alone, ..parking }, &mut around);
    }

    /// An order about a client that is to leave. True: it is done with. What it makes is for the next node, since the client
    /// is told nothing more here; what it ends, ends here as well.
    pub(super) fn changes_hand_over(&mut self, conn: ConnId, order: &UserOrder) -> bool {
        let is_this = |hand_over: &HandOver| hand_over.conn == conn;
        if !self.hand_overs.leaving.get(&conn.slot).is_some_and(is_this) {
            return false;
        }
        let made = match order {
            UserOrder::Subscribe { .. } => self.made_for_the_next(conn, order),
            _ => None,
        };
        let Some(hand_over) = self.hand_overs.leaving.get_mut(&conn.slot) else { return false };
        match order {
            UserOrder::Subscribe { .. } => {
                hand_over.is_changed |= made.is_some();
                hand_over.subscriptions.extend(made);
                self.hand_overs.again = true;
                true
            }
            UserOrder::Refresh { expired: false, info: Some(info), .. } => {
                hand_over.conn_info = Some(info.clone());
                hand_over.is_changed = true;
                self.hand_overs.again = true;
                false
            }
            UserOrder::Disconnect { .. } | UserOrder::Refresh { expired: true, .. } => {
                if let Some(hand_over) = self.hand_overs.leaving.remove(&conn.slot)
                    && hand_over.is_sent
                {
                    self.park_body(&hand_over, Box::default(), false);
                }
                false
            }
            UserOrder::Unsubscribe { .. } | UserOrder::Refresh { .. } | UserOrder::Message { .. } => false,
        }
    }

    fn made_for_the_next(&self, conn: ConnId, order: &UserOrder) -> Option<Kept> {
        let UserOrder::Subscribe { subscription: wanted, recover } = order else { return None };
        let (namespace, _) = self.options.namespaces.resolve(&wanted.channel)?;
        self.has_place(conn, &wanted.channel).ok()?;
        let rules = self.options.namespaces.get(namespace);
        let wants = Wants { recovery: recover.is_some(), positioned: false };
        let since = recover.and_then(|since| Some(Position { offset: since.offset, epoch: since.epoch? }));
        Some(Kept {
            channel: wanted.channel.clone(),
            live: None,
            overrides: overrides(
                traits_of(rules, &wanted.overrides, wants),
                hears_join_leave(rules, &wanted.overrides, false),
            ),
            info: wanted.info.clone(),
            data: wanted.data.clone(),
            expires_at_ms: wanted.expires_in_ms.map(|after_ms| self.now_ms + after_ms),
            position: since.map_or(Where::Nowhere, Where::At),
        })
    }

    /// The client ends before it was closed, or everybody is closed at once.
    pub(super) fn forget_hand_over(&mut self, conn: ConnId) {
        let is_this = self.hand_overs.leaving.get(&conn.slot).is_some_and(|hand_over| hand_over.conn == conn);
        if is_this
            && let Some(hand_over) = self.hand_overs.leaving.remove(&conn.slot)
            && (!hand_over.is_sent || hand_over.is_changed || self.shutting_down)
        {
            self.park_state(&hand_over, false);
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
                let orders = self.hand_overs.orders.get(&(conn.slot, number)).map(|(_, orders)| orders.clone());
                self.let_in_behind(conn, *claims, data, None, &orders.unwrap_or_default());
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
                Handed::Parked(core, conn) if core == self.options.core => self.was_parked(conn),
                Handed::Parked(core, conn) => self.lanes.push(core, LaneMessage::UserParked(conn)),
                Handed::Taken(taker, taken) => {
                    self.lanes.push(taker.from, LaneMessage::UserTaken((taker, taken).into()));
                }
                Handed::Entered(entrant, room) => self.place_answered(entrant, room),
                Handed::Unsaid(user) => self.unsaid(user),
            }
        }
    }

    /// What a connection had is parked, or cannot be: it may go, unless an order has changed it since.
    pub(super) fn was_parked(&mut self, conn: ConnId) {
        let is_this = |hand_over: &&mut HandOver| hand_over.conn == conn;
        let Some(hand_over) = self.hand_overs.leaving.get_mut(&conn.slot).filter(is_this) else { return };
        hand_over.unanswered = hand_over.unanswered.saturating_sub(1);
        if hand_over.unanswered > 0 || hand_over.is_changed {
            return;
        }
        self.hand_overs.leaving.remove(&conn.slot);
        self.leaving_late(|shard| shard.close(conn, CloseReason::Shutdown));
    }
}

/// What a subscription did, whatever the namespace says where it goes on.
const fn overrides(traits: Traits, hears: bool) -> ingest::Overrides {
    ingest::Overrides {
        presence: Some(traits.member),
        join_leave: Some(traits.tell_join_leave || hears),
        push_join_leave: Some(hears),
        recovery: Some(traits.recoverable),
        positioned: Some(traits.positioned),
    }
}
