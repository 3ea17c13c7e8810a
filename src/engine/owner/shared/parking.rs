//! What only a node knows of its users when it goes away: given to the engine, and taken by the node that they reach next.
//!
//! In: what is to be parked, connect commands of users of whom something may be parked. Out: requests; what came of them, for the
//! shard. Invariant: each question gets one [`Handed`], also when the engine is lost.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::super::{Owner, Surroundings};
use super::Asked;
use crate::backplane::{Answer, Park, Refusal, Request, Room, Taken};
use crate::ids::{ConnId, CoreId};
use crate::lane_message::{UserEntrant, UserParking};
use crate::metrics::Metric;

/// Who asks for what is parked.
#[derive(Debug)]
pub struct Taker {
    /// The connection.
    pub conn: ConnId,
    /// On which core.
    pub from: CoreId,
    /// Number of its request.
    pub number: u32,
    /// Its user.
    pub user: Box<str>,
}

/// What came of a hand-over, or of a question about a user's connections.
#[derive(Debug)]
pub enum Handed {
    /// The things of a connection on this core are parked, or cannot be: it may go.
    Parked(CoreId, ConnId),
    /// What was parked for a user; none: nothing.
    Taken(Taker, Option<Box<Taken>>),
    /// Whether a user's connection may come in; none: the engine did not say.
    Entered(UserEntrant, Option<Room>),
    /// The engine may not know how many connections this user has here.
    Unsaid(Box<str>),
}

impl Owner {
    /// Tells the fleet that things may be parked until so long after this node's end.
    pub fn announce_drain(&mut self, around: &mut Surroundings<'_>) {
        if self.fleet.is_some() {
            let ttl_ms = self.limits.parked_ttl_ms.into();
            self.ask(Asked::Nobody, Request::Draining { ttl_ms }, around);
        }
    }

    /// Parks something of a user.
    pub fn park_state(&mut self, parking: UserParking, around: &mut Surroundings<'_>) {
        let UserParking { user, client, body, again, alone, waits, from } = parking;
        let (ttl_ms, entries_max) = (self.limits.parked_ttl_ms.into(), self.limits.parked_per_user_max);
        let parking = Park { user, client, body, again, alone, ttl_ms, entries_max };
        self.ask(Asked::Park(waits.map(|conn| (from, conn))), Request::Park(parking), around);
    }

    /// Asks for what is parked for a user.
    pub fn take_parked(&mut self, taker: Taker, around: &mut Surroundings<'_>) {
        around.metrics.add(Metric::HandOverQuestions, 1);
        let user = taker.user.clone();
        self.ask(Asked::TakeParked(taker.into()), Request::TakeParked { user }, around);
    }

    /// What came of hand-overs since the last look.
    pub fn take_handed(&mut self) -> Vec<Handed> {
        self.fleet.as_mut().map(|fleet| core::mem::take(&mut fleet.handed)).unwrap_or_default()
    }

    /// The wall clock, as nodes tell it each other.
    pub fn wall_ms(&self, now_ms: u64) -> u64 {
        self.fleet.as_ref().map_or(now_ms, |fleet| fleet.wall_ms(now_ms))
    }

    pub(super) fn was_parked(
        &mut self,
        waits: Option<(CoreId, ConnId)>,
        result: &Result<Answer, Refusal>,
        around: &mut Surroundings<'_>,
    ) {
        match result {
            Ok(Answer::Displaced(over)) => {
                around.metrics.add(Metric::HandOversParked, 1);
                around.metrics.add(Metric::HandOversDisplaced, u64::from(*over));
            }
            Ok(_) | Err(_) => around.metrics.add(Metric::HandOversFailed, 1),
        }
        if let Some(fleet) = &mut self.fleet {
            fleet.handed.extend(waits.map(|(core, conn)| Handed::Parked(core, conn)));
        }
    }

    pub(super) fn was_taken(&mut self, taker: Taker, result: Result<Answer, Refusal>) {
        let taken = match result {
            Ok(Answer::Parked(taken)) => taken,
            Ok(_) | Err(_) => None,
        };
        if let Some(fleet) = &mut self.fleet {
            fleet.handed.push(Handed::Taken(taker, taken));
        }
    }
}
