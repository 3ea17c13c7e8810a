//! From a list of addresses to a connection whose hello was answered.
//!
//! In: the configuration and what a going-away said. Out: a stream with [`HelloOk`] and what came behind it.
//! Invariants: addresses are taken in turn, hints of a leaving node first; the delay grows with each attempt in a row
//! that brought nothing, less a random part, so that many clients do not come back at once.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use ringway_wire::ingest::{self, HELLO_FRAME_BYTES_MAX, Hello, IngestError, ServerFrame, VERSION};

use crate::config::Config;
use crate::link::End;
use crate::state::now;

/// Addresses that one name may stand for; more are not tried in one attempt.
const RESOLVED_MAX: usize = 8;

/// Which address comes next.
#[derive(Debug)]
pub(crate) struct Route {
    addresses: Vec<String>,
    next: usize,
    hints: VecDeque<String>,
}

impl Route {
    pub(crate) fn new(addresses: Vec<String>) -> Self {
        Route { addresses, next: 0, hints: VecDeque::new() }
    }

    /// To be tried once, before the list goes on.
    pub(crate) fn hint(&mut self, hints: Vec<String>) {
        self.hints = hints.into();
    }

    pub(crate) fn take(&mut self) -> String {
        if let Some(hint) = self.hints.pop_front() {
            return hint;
        }
        let address = self.addresses[self.next % self.addresses.len()].clone();
        self.next = (self.next + 1) % self.addresses.len();
        address
    }
}

/// Delay before the attempt after `failures` in a row.
pub(crate) fn backoff(config: &Config, failures: u32) -> Duration {
    let Some(doublings) = failures.checked_sub(1) else {
        return Duration::ZERO;
    };
    let full =
        config.backoff_min.saturating_mul(1u32.checked_shl(doublings).unwrap_or(u32::MAX)).min(config.backoff_max);
    full - full.mul_f64(random_u64() as f64 / u64::MAX as f64 / 2.0)
}

/// The operating system's randomness by way of the standard library's hash seeds: unguessable enough for jitter and
/// for ids that must only be unique.
pub(crate) fn random_u64() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A connection whose hello was answered.
pub(crate) struct Opened {
    pub(crate) stream: TcpStream,
    /// Bytes from the gateway, beginning with the hello-ok frame of this length.
    pub(crate) bytes: Vec<u8>,
    pub(crate) hello_ok_bytes: usize,
}

/// One attempt at one address.
pub(crate) fn open(address: &str, config: &Config, instance: [u8; 16]) -> Result<Opened, End> {
    let retry = |error: &dyn std::fmt::Display| End::Retry(format!("{address}: {error}").into());
    let deadline = now() + config.connect_timeout;
    let mut stream = connect(address, deadline).map_err(|error| retry(&error))?;
    let mut out = Vec::with_capacity(HELLO_FRAME_BYTES_MAX);
    ingest::write_hello(
        &mut out,
        &Hello {
            version_min: VERSION,
            version_max: VERSION,
            features: ingest::FEATURES,
            instance,
            token: &config.token,
            name: &config.name,
        },
    );
    let mut bytes = vec![0; HELLO_FRAME_BYTES_MAX];
    let mut filled = 0;
    stream
        .set_nodelay(true)
        .and_then(|()| stream.set_write_timeout(Some(config.peer_timeout)))
        .and_then(|()| stream.write_all(&out))
        .map_err(|error| retry(&error))?;
    let hello_ok_bytes = loop {
        match ingest::frame_len(&bytes[..filled], HELLO_FRAME_BYTES_MAX) {
            Ok(Some(length)) if length <= filled => break length,
            Ok(_) => {}
            Err(error) => return Err(retry(&error)),
        }
        let read = time_left(deadline)
            .and_then(|left| stream.set_read_timeout(Some(left)))
            .and_then(|()| stream.read(&mut bytes[filled..]));
        match read {
            Ok(0) => return Err(retry(&"closed before the hello was answered")),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(retry(&error)),
        }
    };
    bytes.truncate(filled);
    match ingest::decode_server(&bytes[..hello_ok_bytes]) {
        Ok(ServerFrame::HelloOk(hello)) if hello.version == VERSION => {}
        Ok(ServerFrame::HelloOk(_)) => return Err(End::Final(IngestError::VersionUnsupported.into())),
        Ok(ServerFrame::Fatal(refusal)) if !refusal.temporary => return Err(End::Final(refusal.into())),
        Ok(ServerFrame::Fatal(refusal)) => return Err(retry(&refusal.text)),
        Ok(_) | Err(_) => return Err(retry(&"the answer to the hello is not one")),
    }
    stream.set_read_timeout(None).map_err(|error| retry(&error))?;
    Ok(Opened { stream, bytes, hello_ok_bytes })
}

fn connect(address: &str, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name stands for no address");
    for resolved in address.to_socket_addrs()?.take(RESOLVED_MAX) {
        match TcpStream::connect_timeout(&resolved, time_left(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn time_left(deadline: Instant) -> io::Result<Duration> {
    deadline
        .checked_duration_since(now())
        .filter(|left| !left.is_zero())
        .ok_or_else(|| io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_in_turn_and_hints_first() {
        let mut route = Route::new(vec!["a".into(), "b".into()]);
        assert_eq!([route.take(), route.take(), route.take()], ["a", "b", "a"]);
        route.hint(vec!["x".into(), "y".into()]);
        assert_eq!([route.take(), route.take(), route.take()], ["x", "y", "b"]);
    }

    #[test]
    fn backoff_grows_to_its_bound_with_jitter() {
        let config = Config::new("a", "");
        assert_eq!(backoff(&config, 0), Duration::ZERO);
        for failures in 1..80 {
            let full = config.backoff_min.saturating_mul(1 << (failures - 1).min(20)).min(config.backoff_max);
            let delay = backoff(&config, failures);
            assert!(delay <= full && delay >= full / 2, "{failures}: {delay:?} of {full:?}");
        }
        let delays: std::collections::HashSet<_> = (0..20).map(|_| backoff(&config, 9)).collect();
        assert!(delays.len() > 10, "many clients must not come back at once");
    }
}
