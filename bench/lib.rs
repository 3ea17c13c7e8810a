//! What the micro benches and the proofs of cost share. Scenarios over sockets, beside the floor and other servers, are
//! in `fanout.sh` and `compare.py`.
//!
//! | file | what |
//! |---|---|
//! | `micro/measure` | cases, runs, medians, the table and the JSON line |
//! | `micro/node` | an engine with subscribers and no sockets |
//! | `micro/singles` | the same with a channel of its own for each subscriber |
//! | `micro/host` | one shard's real loop with real sockets, inside this process |
//!
//! In: command lines of the benches. Out: figures. Invariant: nothing here is part of the program.
#![forbid(unsafe_code)]

pub mod micro;
