//! The gateway: joins the engine's decisions to the kernel.
//!
//! | file | what |
//! |---|---|
//! | `shared` | what the threads of one process share |
//! | `shard_loop`, `places` | the loop of one shard and its sockets: read this first |
//! | `boot`, `shutdown`, `drain` | from configuration to a running node and back |
//! | `control`, `control_link` | HTTP on a thread of its own, and its way to the shards |
//! | `backplane` | the engine that several nodes share, and the thread that speaks with it |
//! | `auth` | tokens: keys, verification, revocation |
//! | `config*`, `cli`, `pages` | one table of keys: file, environment, flags, reference pages |
//! | `reload` | a changed configuration into a running node |
//! | `clock`, `log`, `secret` | time, words, and what is not to be told |
#![forbid(unsafe_code)]

pub mod auth;
pub mod backplane;
pub mod boot;
pub mod cli;
pub mod clock;
pub mod config;
pub mod config_namespace;
pub mod config_relations;
pub mod config_source;
pub mod config_table;
pub mod control;
pub mod control_link;
pub mod drain;
pub mod drain_command;
pub mod log;
mod notes;
pub mod pages;
mod places;
pub mod reload;
pub mod secret;
pub mod shard_loop;
pub mod shared;
pub mod shutdown;
