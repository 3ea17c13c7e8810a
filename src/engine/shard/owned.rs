//! stub
use super::Shard;
use crate::ids::ConnId;
use alloc::vec::Vec;
impl Shard {
    pub(super) fn join_user(&mut self, _conn: ConnId) {}
    pub(super) fn leave_user(&mut self, _conn: ConnId) {}
    pub(super) fn connections_of(&self, _user: &str) -> Vec<ConnId> { Vec::new() }
}
