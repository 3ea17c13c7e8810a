//! Who is subscribed to one channel: members by connection, counts by user.
//!
//! In: members that come and go, from every core, in lane order. Out: the set, its counts in constant time, and which
//! changes are worth telling watchers.

use alloc::boxed::Box;

use crate::ids::{ConnId, CoreId};

/// A client in a channel, as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its core.
    pub core: CoreId,
    /// Its connection there.
    pub conn: ConnId,
    /// Client id.
    pub client: Box<str>,
    /// User id; empty: anonymous.
    pub user: Box<str>,
    /// Info of the connection; empty: none.
    pub conn_info: Box<[u8]>,
    /// Info of the subscription; empty: none.
    pub chan_info: Box<[u8]>,
}
