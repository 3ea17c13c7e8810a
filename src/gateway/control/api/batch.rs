//! `batch`: several commands in one request.
//!
//! In: `{"commands":[{"publish":{…}},…]}`. Out: `{"replies":[{"publish":{…}},…]}`, one for each, in order.
//! Invariants: a batch that is not understood as a whole has done nothing; commands are sent in order without waiting for
//! each other, so those about one channel happen in order, and those about one user; unless `parallel`, commands about
//! users wait for those about channels before them, and the other way round.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ask::{Asking, Start};
use super::error::ApiError;
use super::methods::{Command, Reply, finish};
use super::shape::list;
use crate::control::call::CALLS_MAX;

/// Several commands.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct BatchRequest {
    /// At most `control.batch_commands_max`.
    #[serde(deserialize_with = "list::<_, _, CALLS_MAX>")]
    commands: Vec<Command>,
    /// Commands about channels, users and the node need not wait for each other.
    parallel: Option<bool>,
}

/// One reply for each command, in their order.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct BatchResult {
    /// Results under the name of the method, or errors.
    replies: Vec<Reply>,
}

impl BatchRequest {
    /// # Errors
    /// Too many commands.
    pub(super) async fn run(self, asking: &Asking<'_>) -> Result<BatchResult, ApiError> {
        let commands_max = asking.options().api.batch_commands_max as usize;
        if self.commands.len() > commands_max {
            return Err(ApiError::limit_exceeded(format!("a batch has at most {commands_max} commands")));
        }
        let parallel = self.parallel.unwrap_or_default();
        let mut replies = Vec::with_capacity(self.commands.len());
        let mut under_way = Vec::new();
        let mut class = None;
        for command in self.commands {
            if !parallel && class.replace(command.class()).is_some_and(|before| before != command.class()) {
                gather(&mut under_way, &mut replies, asking).await;
            }
            under_way.push((command.method(), command.start(asking)));
        }
        gather(&mut under_way, &mut replies, asking).await;
        Ok(BatchResult { replies })
    }
}

type UnderWay = Vec<(&'static str, super::ask::Work<Reply>)>;

async fn gather(under_way: &mut UnderWay, replies: &mut Vec<Reply>, asking: &Asking<'_>) {
    for (method, work) in under_way.drain(..) {
        replies.push(finish(method, work, asking).await);
    }
}
