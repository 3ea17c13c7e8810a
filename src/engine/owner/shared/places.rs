//! Connections of users as the engine counts them over all nodes.
//!
//! In: connections that want to come in, and how many of a user this node has. Out: requests; the engine's word, for the shard.

use alloc::boxed::Box;

use super::super::{Owner, Surroundings};
use super::{Asked, Handed};
use crate::backplane::{Answer, Enter, Refusal, Request};
use crate::lane_message::UserEntrant;

impl Owner {
    /// Asks whether one more connection of a user may come in; with it this node would have `mine`.
    pub fn enter_user(&mut self, entrant: UserEntrant, mine: u32, max: u32, around: &mut Surroundings<'_>) {
        let enter = Enter { user: entrant.user.clone(), mine, max };
        self.ask(Asked::Enter(Box::new(entrant)), Request::Enter(enter), around);
    }

    /// Says how many connections of a user this node has.
    pub fn set_connections(&mut self, user: &str, mine: u32, around: &mut Surroundings<'_>) {
        self.ask(
            Asked::SetConnections { user: user.into() },
            Request::SetConnections { user: user.into(), mine },
            around,
        );
    }

    pub(super) fn connections_set(&mut self, user: Box<str>, result: &Result<Answer, Refusal>) {
        if let (Some(fleet), Err(_)) = (&mut self.fleet, result) {
            fleet.handed.push(Handed::Unsaid(user));
        }
    }

    pub(super) fn entered(&mut self, entrant: UserEntrant, result: Result<Answer, Refusal>) {
        let room = match result {
            Ok(Answer::Entered(room)) => Some(room),
            Ok(_) | Err(_) => None,
        };
        if let Some(fleet) = &mut self.fleet {
            fleet.handed.push(Handed::Entered(entrant, room));
        }
    }
}
