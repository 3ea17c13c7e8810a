//! What another node knew of a connection, and what orders make of it before it goes on here.
//!
//! In: what is parked, as the engine gives it; orders that came behind it, or while it was asked for. Out: subscriptions and info
//! for the client that takes it; bytes to park again. Whatever an order changes on a connection it changes here in the same way.
//! Invariants: orders are applied in their order, and a row of them may begin anywhere as long as it is whole to its end; a
//! position is given only where it can be the client's own.

use alloc::boxed::Box;
use alloc::vec::Vec;

use ringway_wire::ingest;
use ringway_wire::parked::{Parked, ParkedSubscription};

use crate::call::{Since, UserOrder};
use crate::ids::Epoch;
use crate::lane_message::RecoverFrom;
use crate::tokens::{Overrides, TokenSubscription};

/// No channel has this epoch: whoever asks for what came behind it is told that something may be missing.
const NO_EPOCH: Epoch = Epoch { boot: 0, creation: 0 };

/// See the file's header.
#[derive(Clone, Debug, Default)]
pub(super) struct ParkedState {
    /// Of which connection; empty: none.
    pub(super) client: Box<str>,
    /// JSON that other clients see; none: as its token says.
    pub(super) conn_info: Option<Box<[u8]>>,
    pub(super) subscriptions: Vec<StateSubscription>,
}

/// One of its subscriptions.
#[derive(Clone, Debug)]
pub(super) struct StateSubscription {
    pub(super) wanted: TokenSubscription,
    /// Where to resume, as an order says.
    pub(super) recover: Option<RecoverFrom>,
    /// Where the other node stopped.
    pub(super) parked: Option<RecoverFrom>,
}

impl ParkedState {
    /// What stands in the bytes. `alone`: positions are the client's own; else those of some connection of its user.
    pub(super) fn read(client: Box<str>, body: &[u8], alone: bool, wall_ms: u64) -> Option<Self> {
        let parked = Parked::read(body)?;
        let lives = |one: &&ParkedSubscription<'_>| one.expires_at_ms == 0 || one.expires_at_ms > wall_ms;
        let subscription = |one: &ParkedSubscription<'_>| {
            let ingest::Overrides { presence, join_leave, push_join_leave, recovery, positioned } = one.overrides;
            let wanted = TokenSubscription {
                channel: one.channel.into(),
                info: one.info.into(),
                data: one.data.into(),
                expires_in_ms: (one.expires_at_ms > 0).then(|| one.expires_at_ms.saturating_sub(wall_ms)),
                overrides: Overrides { presence, join_leave, push_join_leave, recovery, positioned },
            };
            let parked = one.position.map(|((boot, creation), offset)| match alone {
                true => RecoverFrom { offset, epoch: Some(Epoch { boot, creation }) },
                false => RecoverFrom { offset: 0, epoch: Some(NO_EPOCH) },
            });
            StateSubscription { wanted, recover: None, parked }
        };
        Some(ParkedState {
            client,
            conn_info: parked.conn_info.map(Box::from),
            subscriptions: parked.subscriptions.iter().filter(lives).map(subscription).collect(),
        })
    }

    /// What an order makes of it; none: its connection was to end. `client`: whom the order is about; empty: all.
    pub(super) fn after(mut self, client: &str, order: &UserOrder) -> Option<Self> {
        if !client.is_empty() && *client != *self.client {
            return Some(self);
        }
        match order {
            UserOrder::Subscribe { subscription, recover } => {
                if !self.subscriptions.iter().any(|one| one.wanted.channel == subscription.channel) {
                    let recover = recover.map(|Since { offset, epoch }| RecoverFrom { offset, epoch });
                    self.subscriptions.push(StateSubscription { wanted: subscription.clone(), recover, parked: None });
                }
            }
            UserOrder::Unsubscribe { channel, .. } => {
                self.subscriptions.retain(|one| !channel.is_empty() && one.wanted.channel != *channel);
            }
            UserOrder::Disconnect { whitelist, .. } if !whitelist.contains(&self.client) => return None,
            UserOrder::Refresh { expired: true, .. } => return None,
            UserOrder::Refresh { info: Some(info), .. } => self.conn_info = Some(info.clone()),
            // When a connection expires its next token says, and a message is for those who are there.
            UserOrder::Disconnect { .. } | UserOrder::Refresh { .. } | UserOrder::Message { .. } => {}
        }
        Some(self)
    }

    /// Its bytes.
    pub(super) fn write(&self, wall_ms: u64, bytes_max: usize) -> Box<[u8]> {
        let subscription = |one: &'_ StateSubscription| {
            let from = one.recover.or(one.parked);
            let position = from.and_then(|RecoverFrom { offset, epoch }| Some((epoch?, offset)));
            let Overrides { presence, join_leave, push_join_leave, recovery, positioned } = one.wanted.overrides;
            ParkedSubscription {
                channel: "",
                overrides: ingest::Overrides { presence, join_leave, push_join_leave, recovery, positioned },
                expires_at_ms: one.wanted.expires_in_ms.map_or(0, |after_ms| wall_ms + after_ms),
                position: position.map(|(epoch, offset)| ((epoch.boot, epoch.creation), offset)),
                ..ParkedSubscription::default()
            }
        };
        let subscriptions = self.subscriptions.iter().map(|one| ParkedSubscription {
            channel: &one.wanted.channel,
            info: &one.wanted.info,
            data: &one.wanted.data,
            ..subscription(one)
        });
        let mut body = Vec::new();
        let parked = Parked { conn_info: self.conn_info.as_deref(), subscriptions: subscriptions.collect() };
        parked.write(&mut body, bytes_max);
        body.into()
    }
}
