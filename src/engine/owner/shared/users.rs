//! Users on the nodes of a fleet: the engine knows which nodes have connections of a user, as it knows of channels.
//!
//! In: users that get their first connection on this node, or lose their last, and orders about users. Out: requests; the
//! order's answer once the engine has passed it on. Who the users are, the shard knows.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::super::{Owner, Surroundings};
use super::{Asked, FOLLOWS_MAX};
use crate::backplane::{Answer, Audience, Order, Refusal, Request, Subject, Tell};
use crate::call::{CallError, UserAnswer};
use crate::ids::CoreId;
use crate::lane_message::{LaneMessage, Origin};

/// Orders that the engine notes behind what is parked for one user. Over: the order is refused as busy, like any that the engine
/// did not pass on (counted by who asked).
const ORDERS_NOTED_MAX: u32 = 64;

/// Who waits for an order about a user to have been passed on.
#[derive(Clone, Copy, Debug)]
pub struct OrderAsker {
    /// The call.
    pub origin: Origin,
    /// Where it waits.
    pub from: CoreId,
    /// Cores of this node that have it already.
    pub here: u16,
    /// It changes what a client has, so it also counts for what is parked.
    pub is_noted: bool,
}

impl Owner {
    /// Registers this node for a user. False: too many follows are under way, ask again.
    pub fn follow_user(&mut self, user: &str, around: &mut Surroundings<'_>) -> bool {
        let Some(fleet) = self.fleet.as_mut().filter(|fleet| fleet.follows < FOLLOWS_MAX) else { return false };
        fleet.follows += 1;
        self.ask(Asked::FollowUser { user: user.into() }, Request::FollowUser { user: user.into() }, around);
        true
    }

    /// Moves users whose registration was refused into `out`.
    pub fn take_unregistered(&mut self, out: &mut Vec<Box<str>>) {
        if let Some(fleet) = &mut self.fleet {
            out.append(&mut fleet.unregistered);
        }
    }

    /// Takes this node out for a user.
    pub fn unfollow_user(&mut self, user: &str, around: &mut Surroundings<'_>) {
        self.ask(Asked::Nobody, Request::Unfollow(Subject::User(user.into())), around);
    }

    /// Passes an order on to all nodes with connections of the user.
    pub fn tell_user(&mut self, user: &str, body: Box<[u8]>, asker: OrderAsker, around: &mut Surroundings<'_>) {
        if !self.is_reachable(user) {
            return answer(asker, Err(CallError::Busy), around);
        }
        let request = if asker.is_noted {
            Request::Order(Order { user: user.into(), body, noted_max: ORDERS_NOTED_MAX })
        } else {
            Request::Tell(Tell { subject: Subject::User(user.into()), to: Audience::Interested, body })
        };
        self.ask(Asked::Order(asker), request, around);
    }

    pub(super) fn order_passed_on(asker: OrderAsker, result: Result<Answer, Refusal>, around: &mut Surroundings<'_>) {
        let result = match result {
            // This node is among them if it has connections, and has been counted by cores.
            Ok(Answer::Told(nodes)) => {
                let others = nodes.saturating_sub(u32::from(asker.here > 0));
                Ok(asker.here.saturating_add(others.min(u32::from(u16::MAX)) as u16))
            }
            Ok(_) => Ok(asker.here),
            Err(_) => Err(CallError::Busy),
        };
        answer(asker, result, around);
    }
}

fn answer(asker: OrderAsker, result: Result<u16, CallError>, around: &mut Surroundings<'_>) {
    around.lanes.push(asker.from, LaneMessage::UserAnswer(UserAnswer { origin: asker.origin, result }));
}
