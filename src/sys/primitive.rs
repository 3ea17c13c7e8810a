//! The one place where this crate's atomics come from.
//!
//! In: nothing. Out: atomic types for `sleep.rs` and `lane.rs`. Under `--cfg loom` they are loom's, so that the model
//! checker sees every access of the sleep/wake protocol; otherwise they are the standard library's.
//! Invariant: no other file of the lane names `std::sync::atomic` or `loom` directly.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
