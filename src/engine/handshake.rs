//! Admits or refuses an upgrade: path and origin; and whether messages may be compressed.
//!
//! In: a parsed upgrade request and who may come in. Out: what the connection becomes, or the HTTP refusal.

use ringway_wire::centrifuge::Form;
use ringway_wire::deflate::Deflate;
use ringway_wire::upgrade::{UpgradeRefusal, UpgradeRequest};

use crate::metrics::Metric;
use crate::options::{Access, Origins};

/// Path of the diagnostic echo.
pub const ECHO_PATH: &str = "/echo";

/// What an admitted connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A client of the Centrifuge protocol.
    Client(Form),
    /// A client of the same protocol that only listens.
    Uni,
    /// Messages come back as they are; for conformance and latency tests.
    Echo,
}

/// # Errors
/// The HTTP answer that the peer gets; the connection ends behind it.
pub fn decide(request: &UpgradeRequest<'_>, access: &Access) -> Result<Purpose, UpgradeRefusal> {
    let purpose = if *request.path == *access.websocket_path {
        Purpose::Client(if request.protobuf { Form::Protobuf } else { Form::Json })
    } else if !access.uni_websocket_path.is_empty() && *request.path == *access.uni_websocket_path {
        Purpose::Uni
    } else if access.echo && request.path == ECHO_PATH {
        Purpose::Echo
    } else {
        return Err(UpgradeRefusal::NotFound);
    };
    match request.origin {
        Some(origin) if !origin_allowed(origin, request.host, &access.origins) => Err(UpgradeRefusal::Forbidden),
        _ => Ok(purpose),
    }
}

/// The client's offer of permessage-deflate, if it is accepted. The echo stays without, so that it measures the same
/// whatever the client offers.
pub fn deflate(request: &UpgradeRequest<'_>, purpose: Purpose, access: &Access) -> Option<Deflate> {
    match purpose {
        Purpose::Client(_) | Purpose::Uni if access.deflate => request.deflate,
        Purpose::Client(_) | Purpose::Uni | Purpose::Echo => None,
    }
}

/// The counter of a refusal.
pub const fn refusal_metric(refusal: UpgradeRefusal) -> Metric {
    match refusal {
        UpgradeRefusal::NotFound => Metric::HandshakeRefusedPath,
        UpgradeRefusal::Forbidden => Metric::HandshakeRefusedOrigin,
        UpgradeRefusal::HeadTooLarge => Metric::HandshakeRefusedSize,
        UpgradeRefusal::Unavailable => Metric::HandshakeRefusedDraining,
        UpgradeRefusal::Busy => Metric::HandshakeRefusedRate,
        UpgradeRefusal::BadRequest(_)
        | UpgradeRefusal::MethodNotAllowed
        | UpgradeRefusal::UpgradeRequired
        | UpgradeRefusal::TooManyRequests => Metric::HandshakeRefusedRequest,
    }
}

fn origin_allowed(origin: &str, host: &str, allowed: &Origins) -> bool {
    match allowed {
        Origins::Any => true,
        Origins::SameHost => origin.split_once("://").is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(host)),
        Origins::List(list) => list.iter().any(|known| known.eq_ignore_ascii_case(origin)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn origins() {
        assert!(origin_allowed("https://a.example", "a.example", &Origins::SameHost));
        assert!(origin_allowed("http://A.example:8000", "a.example:8000", &Origins::SameHost));
        for origin in ["https://a.example.evil", "https://evil/a.example", "null", "a.example", ""] {
            assert!(!origin_allowed(origin, "a.example", &Origins::SameHost), "{origin}");
        }
        let list = Origins::List(vec!["https://app.example".into()]);
        assert!(origin_allowed("https://APP.example", "x", &list));
        assert!(!origin_allowed("http://app.example", "x", &list));
        assert!(origin_allowed("null", "x", &Origins::Any));
    }
}
