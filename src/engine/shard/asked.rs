//! What a client's command becomes when a backend has decided.
//!
//! In: answers of backends to what `ask_backend` asked. Out: replies to the client.

use super::Shard;
use crate::backends::BackendAnswer;
use crate::ids::ConnId;

impl Shard {
    /// The answer to an ask, or why there is none; exactly one for each. The connection may have gone.
    pub(super) fn backend_answered(&mut self, conn: ConnId, ask: u32, answer: BackendAnswer) {
        let _ = (conn, ask, answer);
    }
}
