//! The unidirectional WebSocket: for clients without an SDK, which only listen (CLIENT-PROTOCOL §17).
//!
//! In: a connect request without an envelope, as the first message or in the query (`cf_connect`, percent-encoded).
//! Out: an identity and server-side subscriptions as for any client; pushes stand alone, a connect push first.
//! Invariant: nothing that such a client sends later is carried out; what would be an error reply is a close code.

use alloc::vec::Vec;

use ringway_wire::centrifuge::Form;
use ringway_wire::centrifuge::command::decode_uni_connect;
use ringway_wire::close::CloseReason;

use super::Shard;
use crate::ids::ConnId;
use crate::metrics::Metric;
use crate::session::Stage;

impl Shard {
    /// The first message of a client that only listens. Later ones are not for us; they are read away.
    pub(super) fn uni_connect(&mut self, conn: ConnId, json: &[u8]) {
        if self.session(conn).is_none_or(|session| session.stage != Stage::New) {
            return;
        }
        self.metrics.add(Metric::CommandsReceived, 1);
        match decode_uni_connect(json) {
            Ok(request) => self.connect(conn, 0, &request),
            Err(_) => self.close(conn, CloseReason::BadRequest),
        }
        if !self.is_closing(conn) && !self.hold_while_opening(conn, &[]) {
            self.send_replies(conn, Form::Json);
        }
    }
}

/// The connect request in an upgrade's query; none: it comes as a message. What is not percent-encoded text is no JSON
/// either and is refused there.
pub(super) fn connect_in_query(query: &str) -> Option<Vec<u8>> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix("cf_connect="))?;
    let mut json = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        json.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(core::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            b'+' => b' ',
            byte => byte,
        });
    }
    Some(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_requests_in_queries() {
        let json = |query| connect_in_query(query).map(|json| alloc::string::String::from_utf8(json).expect("UTF-8"));
        assert_eq!(json("a=b&cf_connect=%7B%22token%22%3a%22x%22%7d").as_deref(), Some("{\"token\":\"x\"}"));
        assert_eq!(json("cf_connect={}").as_deref(), Some("{}"));
        assert_eq!(json("cf_connect=").as_deref(), Some(""));
        for query in ["", "cf_connec=1", "cf_connect=%7", "cf_connect=%zz", "xcf_connect={}"] {
            assert_eq!(json(query), None, "{query}");
        }
    }
}
