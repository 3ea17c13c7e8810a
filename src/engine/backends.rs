//! Backends that take clients' events: which there are, whose turn it is, and what they decide.
//!
//! In: notices of shards whose ingest connections begin or end to take events; verdicts from the wire. Out: a backend
//! for each client, the room in its window, and [`BackendAnswer`]s for sessions.
//! Invariants: the choice among the same backends is the same for a client, and a backend that comes or goes moves
//! only the clients that it gets or had (rendezvous hashing, Thaler & Ravishankar 1998). What is outstanding at a
//! backend stays within its window, except for one event larger than the window, which goes alone.
//! There is no bound of its own: there are at most as many backends as ingest connections on the node.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use ringway_wire::centrifuge::reply::ClientError;
use ringway_wire::ingest::{self, Admission, EventKind, EventKinds, Grant, Verdict};

use crate::ids::{ConnId, CoreId};
use crate::random::Random;
use crate::tokens::{ConnectClaims, Overrides, TokenSubscription};

/// Codes of an error that a backend may give a client's command.
const ERROR_CODES: core::ops::RangeInclusive<u32> = 100..=4_999;
/// Bytes of such an error's message.
const ERROR_MESSAGE_BYTES_MAX: usize = 1_024;
/// Codes with which a backend may close a client.
const DISCONNECT_CODES: core::ops::RangeInclusive<u16> = 3_000..=4_999;
/// Bytes of a Close frame's reason (RFC 6455 §5.5).
const DISCONNECT_REASON_BYTES_MAX: usize = 123;

/// Whether this code and reason may close a client.
pub(crate) fn may_disconnect(code: u16, reason: &str) -> bool {
    DISCONNECT_CODES.contains(&code) && !reason.is_empty() && reason.len() <= DISCONNECT_REASON_BYTES_MAX
}

/// An ingest connection of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BackendId {
    /// Its shard.
    pub core: CoreId,
    /// Its connection there.
    pub conn: ConnId,
}

/// To every shard: what a backend takes from here on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendNotice {
    /// Which backend.
    pub backend: BackendId,
    /// The instance of its hello, folded; the same when the same process comes again.
    pub instance: u64,
    /// Which events; none: no new ones.
    pub kinds: EventKinds,
    /// Events that one shard may have unacknowledged there; 0: as configured.
    pub window: u32,
    /// Its connection has ended: what it has not acknowledged goes elsewhere.
    pub gone: bool,
}

/// Why a backend cannot be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskError {
    /// Too much waits for backends.
    Busy,
    /// No backend takes events of this kind.
    NoBackend,
    /// The event would not fit a frame.
    TooLarge,
}

/// What a backend has decided, or why it has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendAnswer {
    /// About a connect: what the client may be, and data for the client itself (empty: none).
    Connect(Result<ConnectClaims, Denied>, Box<[u8]>),
    /// About a subscribe; the subscription's channel is the one that was asked about.
    Subscribe(Result<TokenSubscription, Denied>),
    /// About a publish; data replaces what the client sent and has not been checked any more than that.
    Publish(Result<Option<Box<[u8]>>, Denied>),
    /// The result of an rpc.
    Rpc(Result<Box<[u8]>, Denied>),
}

/// Why something was not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The command is answered with this error.
    Error {
        /// 100 to 4999.
        code: u32,
        /// Never empty.
        message: Box<str>,
        /// Whether the client tries again.
        temporary: bool,
    },
    /// The client's connection is closed.
    Disconnect {
        /// WebSocket close code, 3000 to 4999.
        code: u16,
        /// 1 to 123 bytes.
        reason: Box<str>,
    },
    /// No answer within `event_answer_timeout_ms`.
    Timeout,
    /// Too much waits for backends.
    Busy,
    /// No backend takes events of this kind.
    NoBackend,
}

impl Denied {
    /// A decision that breaks the rules of the ingest protocol.
    pub fn broken() -> Self {
        Denied::of(ClientError::Internal)
    }

    fn of(error: ClientError) -> Self {
        Denied::Error { code: error.code(), message: error.text().into(), temporary: error.temporary() }
    }

    /// The error that answers the client's command: code, message, temporary. None: the connection is closed instead.
    /// That nobody could be asked is our trouble, and the client tries again.
    pub fn error(&self, kind: EventKind) -> Option<(u32, &str, bool)> {
        let known = match self {
            Denied::Error { code, message, temporary } => return Some((*code, message, *temporary)),
            Denied::Disconnect { .. } => return None,
            Denied::Timeout => ClientError::Internal,
            Denied::Busy => ClientError::TooManyRequests,
            Denied::NoBackend if kind == EventKind::Connect => ClientError::Internal,
            Denied::NoBackend => {
                let error = ClientError::NotAvailable;
                return Some((error.code(), error.text(), true));
            }
        };
        Some((known.code(), known.text(), known.temporary()))
    }
}

impl From<AskError> for Denied {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Busy => Denied::Busy,
            AskError::NoBackend => Denied::NoBackend,
            AskError::TooLarge => Denied::of(ClientError::LimitExceeded),
        }
    }
}

impl BackendAnswer {
    /// The refusal of an ask of this kind; none for kinds that are never asked about.
    pub fn denied(kind: EventKind, denied: Denied) -> Option<Self> {
        match kind {
            EventKind::Connect => Some(BackendAnswer::Connect(Err(denied), Box::default())),
            EventKind::Subscribe => Some(BackendAnswer::Subscribe(Err(denied))),
            EventKind::Publish => Some(BackendAnswer::Publish(Err(denied))),
            EventKind::Rpc => Some(BackendAnswer::Rpc(Err(denied))),
            EventKind::Disconnect | EventKind::Unsubscribe | EventKind::Message => None,
        }
    }
}

/// A verdict as it travels from the backend's shard to the client's, which knows what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Refused, whatever was asked.
    Denied(Denied),
    /// Allowed.
    Allowed(BackendAnswer),
}

impl From<&Verdict<'_>> for Decision {
    fn from(verdict: &Verdict<'_>) -> Self {
        match verdict {
            Verdict::Error { code, temporary, message } => {
                let within = ERROR_CODES.contains(code) && (1..=ERROR_MESSAGE_BYTES_MAX).contains(&message.len());
                Decision::Denied(if within {
                    Denied::Error { code: *code, message: (*message).into(), temporary: *temporary }
                } else {
                    Denied::broken()
                })
            }
            Verdict::Disconnect { code, reason } => Decision::Denied(if may_disconnect(*code, reason) {
                Denied::Disconnect { code: *code, reason: (*reason).into() }
            } else {
                Denied::broken()
            }),
            Verdict::Connect(admission) => {
                Decision::Allowed(BackendAnswer::Connect(Ok(claims(admission)), admission.data.into()))
            }
            Verdict::Subscribe(grant) => Decision::Allowed(BackendAnswer::Subscribe(Ok(subscription("", grant)))),
            Verdict::Publish { data } => Decision::Allowed(BackendAnswer::Publish(Ok(data.map(Box::from)))),
            Verdict::Rpc { data } => Decision::Allowed(BackendAnswer::Rpc(Ok((*data).into()))),
        }
    }
}

fn claims(admission: &Admission<'_>) -> ConnectClaims {
    ConnectClaims {
        user: admission.user.into(),
        info: admission.info.into(),
        meta: admission.meta.into(),
        subscriptions: admission.subscriptions.map(|one| subscription(one.channel, &one.grant)).collect(),
        token_id: Box::default(),
        expires_in_ms: admission.expires_in_ms,
    }
}

/// A subscription as the engine keeps it.
pub(crate) fn subscription(channel: &str, grant: &Grant<'_>) -> TokenSubscription {
    let ingest::Overrides { presence, join_leave, push_join_leave, recovery, positioned } = grant.overrides;
    TokenSubscription {
        channel: channel.into(),
        info: grant.info.into(),
        data: grant.data.into(),
        overrides: Overrides { presence, join_leave, push_join_leave, recovery, positioned },
        expires_in_ms: grant.expires_in_ms,
    }
}

/// One backend as one shard sees it.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) id: BackendId,
    instance: u64,
    kinds: EventKinds,
    window: u32,
    /// Sent there by this shard, and not acknowledged.
    outstanding: u32,
    outstanding_bytes: usize,
    /// Lines whose next event goes there, each with its ticket; what has lost its ticket since is passed over.
    pub(crate) ready: VecDeque<(ConnId, u64)>,
    /// How many of those have lost it.
    pub(crate) stale: usize,
}

impl Backend {
    pub(crate) fn takes(&self, kind: EventKind) -> bool {
        self.kinds.contains(kind)
    }

    /// Whether an event of this size may be sent now.
    pub(crate) fn has_room(&self, bytes: usize, window_bytes: usize) -> bool {
        self.outstanding == 0 || (self.outstanding < self.window && self.outstanding_bytes + bytes <= window_bytes)
    }

    pub(crate) fn sent(&mut self, bytes: usize) {
        self.outstanding += 1;
        self.outstanding_bytes += bytes;
    }

    pub(crate) fn done(&mut self, bytes: usize) {
        self.outstanding -= 1;
        self.outstanding_bytes -= bytes;
    }

    #[cfg(test)]
    pub(crate) fn outstanding(&self) -> (u32, usize) {
        (self.outstanding, self.outstanding_bytes)
    }
}

/// All backends of the node that take events, as one shard knows them.
#[derive(Debug, Default)]
pub(crate) struct Backends {
    list: Vec<Backend>,
}

impl Backends {
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn get(&self, id: BackendId) -> Option<&Backend> {
        self.list.iter().find(|backend| backend.id == id)
    }

    pub(crate) fn get_mut(&mut self, id: BackendId) -> Option<&mut Backend> {
        self.list.iter_mut().find(|backend| backend.id == id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Backend> {
        self.list.iter()
    }

    /// Adds a backend, or changes what it takes. `window_max` holds whatever it wishes.
    pub(crate) fn put(&mut self, notice: &BackendNotice, window_max: u32) {
        let window = match notice.window {
            0 => window_max,
            wished => wished.min(window_max),
        };
        if let Some(known) = self.get_mut(notice.backend) {
            (known.kinds, known.window) = (notice.kinds, window);
            return;
        }
        self.list.push(Backend {
            id: notice.backend,
            instance: notice.instance,
            kinds: notice.kinds,
            window,
            outstanding: 0,
            outstanding_bytes: 0,
            ready: VecDeque::new(),
            stale: 0,
        });
    }

    pub(crate) fn remove(&mut self, id: BackendId) -> Option<Backend> {
        let index = self.list.iter().position(|backend| backend.id == id)?;
        Some(self.list.swap_remove(index))
    }

    pub(crate) fn takes(&self, kind: EventKind) -> bool {
        self.list.iter().any(|backend| backend.takes(kind))
    }

    /// The backend for a client, by the hash of its id: the one of the highest weight.
    pub(crate) fn choose(&self, kind: EventKind, client: u64) -> Option<BackendId> {
        let weight = |backend: &Backend| {
            let BackendId { core, conn } = backend.id;
            // Connections of one instance weigh the same: then any fixed order does.
            (Random::new(client ^ backend.instance).next_u64(), core, conn.slot, conn.generation)
        };
        self.list.iter().filter(|backend| backend.takes(kind)).max_by_key(|backend| weight(backend)).map(|one| one.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;

    fn notice(slot: u32, instance: u64, kinds: EventKinds) -> BackendNotice {
        let backend = BackendId { core: CoreId(1), conn: ConnId { slot, generation: 0 } };
        BackendNotice { backend, instance, kinds, window: 0, gone: false }
    }

    fn choices(backends: &Backends) -> Vec<u32> {
        let mut random = Random::new(5);
        (0..9_000)
            .map(|_| backends.choose(EventKind::Rpc, random.next_u64()).expect("there are some").conn.slot)
            .collect()
    }

    #[test]
    fn the_load_is_spread_and_only_the_clients_of_who_comes_or_goes_move() {
        let mut backends = Backends::default();
        for slot in 0..3 {
            backends.put(&notice(slot, 1_000 + u64::from(slot), EventKinds::ALL), 10);
        }
        let before = choices(&backends);
        let mut counts = BTreeMap::<u32, u32>::new();
        before.iter().for_each(|slot| *counts.entry(*slot).or_default() += 1);
        assert!(counts.len() == 3 && counts.values().all(|count| (2_700..3_300).contains(count)), "{counts:?}");

        let gone = backends.remove(notice(1, 0, EventKinds::ALL).backend).expect("it was there");
        let without = choices(&backends);
        assert!(before.iter().zip(&without).all(|(old, new)| *old == 1 || old == new));
        assert!(without.iter().all(|slot| *slot != 1));

        // The same process comes back over another connection, and so do its clients.
        backends.put(&notice(7, gone.instance, EventKinds::ALL), 10);
        let back = choices(&backends);
        assert!(before.iter().zip(&back).all(|(old, new)| *new == if *old == 1 { 7 } else { *old }));
    }

    #[test]
    fn only_who_takes_the_kind_is_chosen() {
        let mut backends = Backends::default();
        assert_eq!(backends.choose(EventKind::Rpc, 1), None);
        backends.put(&notice(0, 1, EventKinds::default().with(EventKind::Connect)), 10);
        assert_eq!(backends.choose(EventKind::Rpc, 1), None);
        backends.put(&notice(1, 2, EventKinds::default().with(EventKind::Rpc)), 10);
        assert!(choices(&backends).iter().all(|slot| *slot == 1));
        backends.put(&notice(1, 2, EventKinds::default()), 10);
        assert!(!backends.takes(EventKind::Rpc) && backends.len() == 2);
    }

    #[test]
    fn verdicts_out_of_range_become_internal_errors() {
        let broken = Decision::Denied(Denied::broken());
        for verdict in [
            Verdict::Error { code: 99, temporary: false, message: "x" },
            Verdict::Error { code: 5_000, temporary: false, message: "x" },
            Verdict::Error { code: 400, temporary: false, message: "" },
            Verdict::Disconnect { code: 2_999, reason: "x" },
            Verdict::Disconnect { code: 5_000, reason: "x" },
            Verdict::Disconnect { code: 4_000, reason: "" },
            Verdict::Disconnect { code: 4_000, reason: core::str::from_utf8(&[b'x'; 124]).expect("ASCII") },
        ] {
            assert_eq!(Decision::from(&verdict), broken, "{verdict:?}");
        }
        let denied = Denied::Error { code: 400, message: "no".into(), temporary: true };
        let verdict = Verdict::Error { code: 400, temporary: true, message: "no" };
        assert_eq!(Decision::from(&verdict), Decision::Denied(denied));
    }

    #[test]
    fn every_refusal_has_its_error() {
        let error = |denied: Denied, kind| denied.error(kind).map(|(code, _, temporary)| (code, temporary));
        assert_eq!(error(Denied::Timeout, EventKind::Rpc), Some((100, true)));
        assert_eq!(error(AskError::Busy.into(), EventKind::Rpc), Some((111, true)));
        assert_eq!(error(AskError::NoBackend.into(), EventKind::Rpc), Some((108, true)));
        assert_eq!(error(AskError::NoBackend.into(), EventKind::Connect), Some((100, true)));
        assert_eq!(error(AskError::TooLarge.into(), EventKind::Rpc), Some((106, false)));
        assert_eq!(error(Denied::Disconnect { code: 4_000, reason: "x".into() }, EventKind::Rpc), None);
    }
}
