//! stub
use super::Shard;
use crate::events::{AskError, ClientEvent};
use crate::ids::ConnId;
impl Shard {
    pub(super) fn tell_backend(&mut self, _conn: ConnId, _event: &ClientEvent<'_>) {}
    pub(super) fn ask_backend(&mut self, _conn: ConnId, _ask: u32, _event: &ClientEvent<'_>) -> Result<(), AskError> {
        Err(AskError::NoBackend)
    }
}
