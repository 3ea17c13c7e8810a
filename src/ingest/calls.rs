//! The server API: questions and orders to the gateway, each with its answer.
//!
//! In: calls of the backend's threads. Out: frames on the connection in force; the answer, or why there is none.
//! Invariant: a call is sent once. When its connection ends first, whether it was carried out is not known, and only
//! the caller can tell whether to call again.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ringway_wire::ingest::{
    self, CallBody, CallResult, EpochText, List, ListBuf, ServerFrame, Since, Subscription, decode_server,
};

use crate::client::Client;
use crate::error::Refusal;
use crate::state::{Stop, now, wait_until};

/// Why a call has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// There is no connection now; nothing was sent.
    NotConnected,
    /// The gateway takes no calls.
    NotSupported,
    /// Too many calls wait for their answer; nothing was sent.
    Busy,
    /// A text is longer than 65,535 bytes, or the call larger than the gateway's frames; nothing was sent.
    TooLarge,
    /// The gateway refused it.
    Refused(Refusal),
    /// The connection ended first, or the answer cannot be read; it may have been carried out.
    Lost,
    /// No answer within [`crate::Config::call_timeout`]; it may have been carried out.
    Timeout,
    /// The client was closed; nothing was sent.
    Closed,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::NotConnected => f.write_str("not connected"),
            CallError::NotSupported => f.write_str("the gateway takes no calls"),
            CallError::Busy => f.write_str("too many calls under way"),
            CallError::TooLarge => f.write_str("the call is too large"),
            CallError::Refused(refusal) => write!(f, "refused: {refusal}"),
            CallError::Lost => f.write_str("the connection ended before the answer"),
            CallError::Timeout => f.write_str("no answer in time"),
            CallError::Closed => f.write_str("the client was closed"),
        }
    }
}

impl std::error::Error for CallError {}

/// Whose connections a call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who<'a> {
    /// User id; not empty.
    pub user: &'a str,
    /// Client id of one connection of the user; empty: all of them.
    pub client: &'a str,
}

impl<'a> From<&'a str> for Who<'a> {
    fn from(user: &'a str) -> Self {
        Who { user, client: "" }
    }
}

/// A client in a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Client id.
    pub client: String,
    /// User id; empty: anonymous.
    pub user: String,
    /// JSON of the connection; empty: none.
    pub conn_info: Vec<u8>,
    /// JSON of the subscription; empty: none.
    pub chan_info: Vec<u8>,
}

/// How many are in a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PresenceStats {
    /// Connections.
    pub clients: u32,
    /// Distinct users; all anonymous ones are one.
    pub users: u32,
}

/// Which publications of the past.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistoryOptions {
    /// How many at most; 0: only the position; negative: as many as the gateway's caps allow.
    pub limit: i32,
    /// From where; none: from the start, or with `reverse` from the end.
    pub since: Option<Since>,
    /// Newest first.
    pub reverse: bool,
}

/// Publications of the past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// The channel's top.
    pub offset: u64,
    /// Of the channel.
    pub epoch: EpochText,
    /// In the order asked for.
    pub publications: Vec<PastPublication>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastPublication {
    /// Its place.
    pub offset: u64,
    /// What was published.
    pub data: Vec<u8>,
    /// Which client published; none: a backend.
    pub publisher: Option<Member>,
}

/// Channels with subscribers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channels {
    /// How many there are, whether listed or not.
    pub total: u32,
    /// Names, and subscribers as far as the gateway knows.
    pub channels: Vec<(String, u32)>,
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CallOutcome {
    Presence(Vec<Member>),
    PresenceStats(PresenceStats),
    History(History),
    Removed,
    User(u16),
    Channels(Channels),
}

/// A place for one answer.
#[derive(Debug, Default)]
pub(crate) struct CallCell {
    result: Mutex<Option<Result<CallOutcome, CallError>>>,
    filled: Condvar,
}

impl CallCell {
    pub(crate) fn fill(&self, result: Result<CallOutcome, CallError>) {
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        self.filled.notify_all();
    }

    /// Fills it from an answer's frame.
    pub(crate) fn fill_from(&self, frame: &[u8]) {
        self.fill(match decode_server(frame) {
            Ok(ServerFrame::CallAnswer(answer)) => outcome_of(answer.result),
            _ => Err(CallError::Lost),
        });
    }

    fn wait(&self, deadline: Instant) -> Result<CallOutcome, CallError> {
        let mut result = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(result) = result.take() {
                return result;
            }
            result = wait_until(&self.filled, result, Some(deadline)).ok_or(CallError::Timeout)?;
        }
    }
}

fn outcome_of(result: CallResult<'_>) -> Result<CallOutcome, CallError> {
    Ok(match result {
        CallResult::Refused(refusal) => return Err(CallError::Refused(refusal.into())),
        CallResult::Presence(members) => CallOutcome::Presence(members.map(member_of).collect()),
        CallResult::PresenceStats { clients, users } => CallOutcome::PresenceStats(PresenceStats { clients, users }),
        CallResult::History { epoch, offset, publications } => {
            let publications = publications.map(|past| PastPublication {
                offset: past.offset,
                data: past.data.to_vec(),
                publisher: past.publisher.map(member_of),
            });
            CallOutcome::History(History { offset, epoch: EpochText(epoch), publications: publications.collect() })
        }
        CallResult::Removed => CallOutcome::Removed,
        CallResult::User { shards } => CallOutcome::User(shards),
        CallResult::Channels { total, channels } => {
            let channels = channels.map(|one| (one.channel.to_owned(), one.clients)).collect();
            CallOutcome::Channels(Channels { total, channels })
        }
    })
}

fn member_of(member: ingest::Member<'_>) -> Member {
    Member {
        client: member.client.to_owned(),
        user: member.user.to_owned(),
        conn_info: member.conn_info.to_vec(),
        chan_info: member.chan_info.to_vec(),
    }
}

/// An answer of another kind than the call's is a bug of the gateway.
macro_rules! expect {
    ($outcome:expr, $pattern:pat => $value:expr) => {
        match $outcome? {
            $pattern => Ok($value),
            _ => Err(CallError::Lost),
        }
    };
}

/// Calls wait for their answer, up to [`crate::Config::call_timeout`]; several threads may call at once.
impl Client {
    /// Who is in a channel.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn presence(&self, channel: &str) -> Result<Vec<Member>, CallError> {
        expect!(self.call(CallBody::Presence { channel }), CallOutcome::Presence(members) => members)
    }

    /// How many are in a channel.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn presence_stats(&self, channel: &str) -> Result<PresenceStats, CallError> {
        expect!(self.call(CallBody::PresenceStats { channel }), CallOutcome::PresenceStats(stats) => stats)
    }

    /// Publications of the past.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn history(&self, channel: &str, options: HistoryOptions) -> Result<History, CallError> {
        let HistoryOptions { limit, since, reverse } = options;
        let what = CallBody::History { channel, reverse, limit, since };
        expect!(self.call(what), CallOutcome::History(history) => history)
    }

    /// Forgets a channel's publications; its epoch changes.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn history_remove(&self, channel: &str) -> Result<(), CallError> {
        expect!(self.call(CallBody::HistoryRemove { channel }), CallOutcome::Removed => ())
    }

    /// Subscribes a user's connections, recovering from `recover` if it is given. Returns how many shards of the
    /// gateway hold connections of the user, as all calls about users do.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn subscribe<'a>(
        &self,
        who: impl Into<Who<'a>>,
        subscription: Subscription<'_>,
        recover: Option<Since>,
    ) -> Result<u16, CallError> {
        let Who { user, client } = who.into();
        self.call_user(CallBody::Subscribe { user, client, subscription, recover })
    }

    /// Ends subscriptions of a user's connections to a channel; to all channels when it is empty.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn unsubscribe<'a>(&self, who: impl Into<Who<'a>>, channel: &str) -> Result<u16, CallError> {
        let Who { user, client } = who.into();
        self.call_user(CallBody::Unsubscribe { user, client, channel, code: 0, reason: "" })
    }

    /// Closes a user's connections but those whose client ids are in `whitelist`. Code 0 and an empty reason: the
    /// gateway's own (3503); others are 3000 to 4999 and at most 123 bytes.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn disconnect<'a>(
        &self,
        who: impl Into<Who<'a>>,
        code: u16,
        reason: &str,
        whitelist: &[&str],
    ) -> Result<u16, CallError> {
        let Who { user, client } = who.into();
        let mut clients = ListBuf::new();
        for client in whitelist {
            clients.push(client).map_err(|_| CallError::TooLarge)?;
        }
        let whitelist: List<'_, &str> = clients.list();
        self.call_user(CallBody::Disconnect { user, client, code, reason, whitelist })
    }

    /// Lets a user's connections live for `expires_in` from now (none: without end), and gives them new info if there
    /// is one.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn refresh<'a>(
        &self,
        who: impl Into<Who<'a>>,
        expires_in: Option<Duration>,
        info: Option<&[u8]>,
    ) -> Result<u16, CallError> {
        let Who { user, client } = who.into();
        let expires_in_ms = expires_in.map(millis);
        self.call_user(CallBody::Refresh { user, client, expired: false, expires_in_ms, info })
    }

    /// Ends a user's connections as expired: they come back with a new token.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn expire<'a>(&self, who: impl Into<Who<'a>>) -> Result<u16, CallError> {
        let Who { user, client } = who.into();
        self.call_user(CallBody::Refresh { user, client, expired: true, expires_in_ms: None, info: None })
    }

    /// Sends a user's connections a message outside channels; JSON.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn message<'a>(&self, who: impl Into<Who<'a>>, data: &[u8]) -> Result<u16, CallError> {
        let Who { user, client } = who.into();
        self.call_user(CallBody::Message { user, client, data })
    }

    /// Channels with subscribers whose name contains `pattern`, at most `limit` of them by name.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn channels(&self, pattern: &str, limit: u32) -> Result<Channels, CallError> {
        expect!(self.call(CallBody::Channels { pattern, limit }), CallOutcome::Channels(channels) => channels)
    }

    fn call_user(&self, what: CallBody<'_>) -> Result<u16, CallError> {
        expect!(self.call(what), CallOutcome::User(shards) => shards)
    }

    fn call(&self, what: CallBody<'_>) -> Result<CallOutcome, CallError> {
        let deadline = now() + self.call_timeout;
        let cell: Arc<CallCell> = {
            let mut state = self.shared.lock();
            if state.stop != Stop::No {
                return Err(CallError::Closed);
            }
            let link = state.link.as_mut().filter(|link| link.end.is_none()).ok_or(CallError::NotConnected)?;
            let cell = link.remote.call(what)?;
            self.shared.wake_writer(&mut state);
            cell
        };
        cell.wait(deadline)
    }
}

/// As the wire counts.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
