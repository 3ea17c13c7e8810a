//! The engine that several nodes share, behind the contract of [`ringway_engine::backplane`].
//!
//! ```text
//! shard ── ToBackplane ──> hop ── Request ──> redis ──> session of the bucket's primary ── script ──> server
//! shard <── Backplane ──── hop <── Event ──── redis <── session: replies · inboxes of this node ───── server
//! ```
//! | file | what |
//! |---|---|
//! | `hop` | the thread `backplane-0`: lanes on one side, a `Backplane` on the other |
//! | `redis` | the handle that is a `Backplane`; the manager that keeps sessions where primaries are |
//! | `session`, `pipeline`, `inboxes`, `opening` | one primary: what is under way there, what is fed from there, how it begins |
//! | `link` | one connection |
//! | `call`, `scripts`, `lua/` | requests as commands, scripts, replies |
//! | `feed` | what travels on inboxes |
//! | `keys`, `tags` | names in the engine; buckets as hash tags |
//! | `registry` | this node's name, place and generation; who is alive |
//! | `topology` | which server is the primary of which buckets |
//! | `config`, `rows`, `metrics` | words and numbers |

mod call;
pub mod config;
mod feed;
pub mod hop;
mod inboxes;
mod keys;
mod link;
pub mod metrics;
mod opening;
mod pipeline;
pub mod redis;
mod registry;
pub mod rows;
mod scripts;
mod session;
pub mod tags;
mod topology;

pub use hop::Hop;
pub use redis::{Redis, Registered};
