//! Clients' events on their way to backends: kept until acknowledged or answered, in order per connection, bounded.
//!
//! In: events of this shard's clients, acknowledgements and answers, backends that come and go, time. Out: events to
//! send ([`Events::pop_outgoing`]), and what was given up.
//!
//! ```text
//! line of one connection   [ sent | sent | next | … ]   sent ones are all at one backend; the next one waits
//!                                          ^ with a ticket for a backend, or until those before are acknowledged,
//!                                            or until a backend comes that takes its kind
//! backend                  window of what is outstanding · ready: lines with a ticket, in turn
//! ```
//!
//! Invariants
//! - An event leaves exactly once: acknowledged, answered, or given up at its deadline. Until then it is sent to at
//!   most one backend at a time, and to another one only after that one has gone.
//! - An event is sent only when every event of its connection before it is done or was sent to the same backend. So
//!   backends hear of a connection in order, whatever kinds they take and however they come and go.
//! - Numbers and deadlines grow together within asks and within the rest, so the first of each is the oldest.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use ringway_wire::ingest::EventKind;

use crate::backends::{AskError, BackendId, BackendNotice, Backends};
use crate::ids::{ConnId, CoreId};
use crate::limits::Limits;

/// Bit of a number that says that an answer is awaited.
const ASK: u64 = 1;
/// Where the shard stands in a number, so that an acknowledgement finds its way.
const CORE_SHIFT: u32 = 48;
/// Entries without a ticket that a backend's list may hold before it is tidied.
const STALE_MIN: usize = 64;

/// The shard that keeps the event with this number.
pub const fn core_of(number: u64) -> CoreId {
    CoreId((number >> CORE_SHIFT) as u16)
}

/// An event to keep.
#[derive(Debug)]
pub struct NewEvent {
    /// From [`Events::next_number`].
    pub number: u64,
    /// Whose it is.
    pub conn: ConnId,
    /// Hash of the client id.
    pub client: u64,
    /// What happened.
    pub kind: EventKind,
    /// Number that the session gave its question; 0 if it does not ask.
    pub ask: u32,
    /// The finished ingest frame.
    pub frame: Arc<[u8]>,
}

/// An event to send to a backend.
#[derive(Debug)]
pub struct Outgoing {
    /// To whom.
    pub backend: BackendId,
    /// Which event.
    pub number: u64,
    /// The finished ingest frame.
    pub frame: Arc<[u8]>,
}

/// An event that is done, or given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Whose it was.
    pub conn: ConnId,
    /// What happened.
    pub kind: EventKind,
    /// Number of the session's question; none: it did not ask.
    pub ask: Option<u32>,
}

#[derive(Debug)]
struct Pending {
    conn: ConnId,
    client: u64,
    kind: EventKind,
    ask: u32,
    frame: Arc<[u8]>,
    deadline_ms: u64,
}

/// Events of one connection.
#[derive(Debug, Default)]
struct Line {
    /// Numbers, ascending.
    queue: VecDeque<u64>,
    /// How many of them, from the front, were sent.
    sent: u32,
    /// Where to.
    at: Option<BackendId>,
    /// Stands on this backend's list of ready lines, with this ticket.
    ready: Option<(BackendId, u64)>,
}

/// See the file's header.
#[derive(Debug)]
pub struct Events {
    core: CoreId,
    bounds: Bounds,
    created: u64,
    tickets: u64,
    asks: BTreeMap<u64, Pending>,
    others: BTreeMap<u64, Pending>,
    bytes: usize,
    lines: HashMap<ConnId, Line, FixedState>,
    backends: Backends,
    outgoing: VecDeque<Outgoing>,
}

#[derive(Debug)]
struct Bounds {
    pending_max: usize,
    pending_bytes_max: usize,
    per_connection_max: usize,
    window: u32,
    window_bytes: usize,
    answer_timeout_ms: u64,
    deadline_ms: u64,
}

impl Events {
    /// Nothing kept, no backends.
    pub fn new(core: CoreId, limits: &Limits, seed: u64) -> Self {
        Events {
            core,
            bounds: Bounds {
                pending_max: limits.events_pending_max as usize,
                pending_bytes_max: limits.events_pending_bytes_max as usize,
                per_connection_max: limits.events_pending_per_connection_max as usize,
                window: limits.events_window_per_backend,
                window_bytes: limits.events_window_bytes_per_backend as usize,
                answer_timeout_ms: limits.event_answer_timeout_ms as u64,
                deadline_ms: limits.event_deadline_ms as u64,
            },
            created: 0,
            tickets: 0,
            asks: BTreeMap::new(),
            others: BTreeMap::new(),
            bytes: 0,
            lines: HashMap::with_hasher(FixedState::with_seed(seed)),
            backends: Backends::default(),
            outgoing: VecDeque::new(),
        }
    }

    /// Events kept.
    pub fn len(&self) -> usize {
        self.asks.len() + self.others.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of their frames.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Backends that take events, or still have some.
    pub fn backends(&self) -> usize {
        self.backends.len()
    }

    /// Whether an event of this kind may be kept now; its size is checked when it is there.
    ///
    /// # Errors
    /// [`AskError::Busy`] at a bound; [`AskError::NoBackend`] for a question that nobody takes.
    pub fn admit(&self, conn: ConnId, kind: EventKind, asks: bool) -> Result<(), AskError> {
        if asks && !self.backends.takes(kind) {
            return Err(AskError::NoBackend);
        }
        let line = self.lines.get(&conn).map_or(0, |line| line.queue.len());
        let within = self.len() < self.bounds.pending_max && line < self.bounds.per_connection_max;
        if within { Ok(()) } else { Err(AskError::Busy) }
    }

    /// The number of the next event; it stands in its frame.
    pub const fn next_number(&mut self, asks: bool) -> u64 {
        self.created += 1;
        (self.core.0 as u64) << CORE_SHIFT | self.created << 1 | if asks { ASK } else { 0 }
    }

    /// Keeps an event, and sends it if it may be sent.
    ///
    /// # Errors
    /// As [`Events::admit`], and [`AskError::Busy`] when its bytes do not fit; nothing is kept then.
    pub fn add(&mut self, event: NewEvent, now_ms: u64) -> Result<(), AskError> {
        let NewEvent { number, conn, client, kind, ask, frame } = event;
        let asks = number & ASK != 0;
        self.admit(conn, kind, asks)?;
        if self.bytes + frame.len() > self.bounds.pending_bytes_max {
            return Err(AskError::Busy);
        }
        let patience_ms = if asks { self.bounds.answer_timeout_ms } else { self.bounds.deadline_ms };
        self.bytes += frame.len();
        let pending = Pending { conn, client, kind, ask, frame, deadline_ms: now_ms + patience_ms };
        self.table(number).insert(number, pending);
        self.lines.entry(conn).or_default().queue.push_back(number);
        if let Some(backend) = self.line_up(conn) {
            self.pump(backend);
        }
        Ok(())
    }

    /// The next event to send.
    pub fn pop_outgoing(&mut self) -> Option<Outgoing> {
        self.outgoing.pop_front()
    }

    /// A backend is done with an event that awaits no answer. None: it is not there, or not at that backend.
    pub fn acknowledged(&mut self, backend: BackendId, number: u64) -> Option<Done> {
        if number & ASK != 0 { None } else { self.done_by(backend, number) }
    }

    /// A backend has answered an event. None as above.
    pub fn answered(&mut self, backend: BackendId, number: u64) -> Option<Done> {
        if number & ASK == 0 { None } else { self.done_by(backend, number) }
    }

    /// A backend comes, changes what it takes, or goes. Returns how many events are to be sent again.
    pub fn backend_changed(&mut self, notice: &BackendNotice) -> u32 {
        let id = notice.backend;
        let mut again = 0;
        if notice.gone {
            if self.backends.remove(id).is_none() {
                return 0;
            }
            // What it was sent and nobody has taken on the way is not sent twice by mistake: the frames are dropped
            // where its connection was.
            for line in self.lines.values_mut().filter(|line| line.at == Some(id)) {
                again += line.sent;
                (line.sent, line.at) = (0, None);
            }
        } else {
            self.backends.put(notice, self.bounds.window);
            if let Some(backend) = self.backends.get_mut(id) {
                // Tickets were given for the kinds that it took before.
                backend.ready.clear();
                backend.stale = 0;
            }
        }
        for line in self.lines.values_mut().filter(|line| line.ready.is_some_and(|(at, _)| at == id)) {
            line.ready = None;
        }
        // Rare, and so may look at everything: who waited for a backend may have one now.
        let waiting: Box<[ConnId]> =
            self.lines.iter().filter(|(_, line)| line.ready.is_none()).map(|(conn, _)| *conn).collect();
        for conn in waiting {
            self.line_up(conn);
        }
        let all: Vec<BackendId> = self.backends.iter().map(|backend| backend.id).collect();
        all.into_iter().for_each(|backend| self.pump(backend));
        again
    }

    /// Gives up one event whose time is over. Call it until there is none.
    pub fn expire(&mut self, now_ms: u64) -> Option<Done> {
        let oldest = |table: &BTreeMap<u64, Pending>| {
            table.first_key_value().filter(|(_, pending)| pending.deadline_ms <= now_ms).map(|(number, _)| *number)
        };
        let number = oldest(&self.asks).or_else(|| oldest(&self.others))?;
        self.take(number)
    }

    fn table(&mut self, number: u64) -> &mut BTreeMap<u64, Pending> {
        if number & ASK != 0 { &mut self.asks } else { &mut self.others }
    }

    fn pending(&self, number: u64) -> Option<&Pending> {
        if number & ASK != 0 { self.asks.get(&number) } else { self.others.get(&number) }
    }

    fn done_by(&mut self, backend: BackendId, number: u64) -> Option<Done> {
        let line = self.lines.get(&self.pending(number)?.conn)?;
        let index = line.queue.binary_search(&number).ok()?;
        // Nobody is done with what it was not sent.
        if line.at != Some(backend) || index >= line.sent as usize {
            return None;
        }
        self.take(number)
    }

    /// Takes an event out, and sends what has waited for that.
    fn take(&mut self, number: u64) -> Option<Done> {
        let pending = self.table(number).remove(&number)?;
        let Pending { conn, kind, ask, ref frame, .. } = pending;
        self.bytes -= frame.len();
        let line = self.lines.get_mut(&conn)?;
        let index = line.queue.binary_search(&number).ok()?;
        line.queue.remove(index);
        let freed = if index < line.sent as usize { line.at } else { None };
        if freed.is_some() {
            line.sent -= 1;
            if line.sent == 0 {
                line.at = None;
            }
        } else if index == line.sent as usize {
            // The event that had the ticket: the one behind it may want another backend.
            let ready = line.ready.take();
            self.lost_ticket(ready);
        }
        if self.lines.get(&conn).is_some_and(|line| line.queue.is_empty()) {
            self.lines.remove(&conn);
        }
        if let Some(backend) = freed.and_then(|backend| self.backends.get_mut(backend)) {
            backend.done(frame.len());
        }
        let ready = self.line_up(conn);
        ready.into_iter().chain(freed.filter(|backend| Some(*backend) != ready)).for_each(|id| self.pump(id));
        Some(Done { conn, kind, ask: (number & ASK != 0).then_some(ask) })
    }

    fn lost_ticket(&mut self, ready: Option<(BackendId, u64)>) {
        let Some(backend) = ready.and_then(|(id, _)| self.backends.get_mut(id)) else { return };
        backend.stale += 1;
        if backend.stale > STALE_MIN.max(backend.ready.len() / 2) {
            let lines = &self.lines;
            backend
                .ready
                .retain(|(conn, ticket)| lines.get(conn).is_some_and(|l| l.ready.is_some_and(|r| r.1 == *ticket)));
            backend.stale = 0;
        }
    }

    /// Gives a line whose next event may go somewhere a ticket for that; returns where it has just been put.
    fn line_up(&mut self, conn: ConnId) -> Option<BackendId> {
        let line = self.lines.get(&conn)?;
        let number = *line.queue.get(line.sent as usize)?;
        if line.ready.is_some() {
            return None;
        }
        let Pending { kind, client, .. } = *self.pending(number)?;
        let id = match line.at {
            // Behind its elder sisters, or when they are done.
            Some(at) => self.backends.get(at).filter(|backend| backend.takes(kind)).map(|backend| backend.id)?,
            None => self.backends.choose(kind, client)?,
        };
        self.tickets += 1;
        let ticket = self.tickets;
        self.lines.get_mut(&conn)?.ready = Some((id, ticket));
        self.backends.get_mut(id)?.ready.push_back((conn, ticket));
        Some(id)
    }

    /// Sends to a backend what its window allows, one event of each ready line in turn.
    fn pump(&mut self, id: BackendId) {
        let window_bytes = self.bounds.window_bytes;
        while let Some(backend) = self.backends.get_mut(id) {
            let Some((conn, ticket)) = backend.ready.front().copied() else { return };
            let next = self.lines.get(&conn).filter(|line| line.ready == Some((id, ticket)));
            let Some(number) = next.and_then(|line| line.queue.get(line.sent as usize).copied()) else {
                backend.ready.pop_front();
                backend.stale = backend.stale.saturating_sub(1);
                continue;
            };
            let table = if number & ASK != 0 { &self.asks } else { &self.others };
            let Some(pending) = table.get(&number) else { return };
            if !backend.has_room(pending.frame.len(), window_bytes) {
                return;
            }
            backend.ready.pop_front();
            backend.sent(pending.frame.len());
            self.outgoing.push_back(Outgoing { backend: id, number, frame: Arc::clone(&pending.frame) });
            if let Some(line) = self.lines.get_mut(&conn) {
                (line.ready, line.at) = (None, Some(id));
                line.sent += 1;
            }
            self.line_up(conn);
        }
    }
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
