//! All state of one core, and the only place that knows all stages.
//!
//! In: `accepted`, `handle` with an [`Input`], and once per turn `end_turn`. Out: [`Action`]s, writes through
//! `collect_writes`, lane batches through `lanes`. The stages (`handshake`, `session`, `ingest_session`, `owner`,
//! `fanout`, `outbox`) do not call each other; the methods here move values between them, one file per kind of input:
//!
//! | file | input |
//! |---|---|
//! | `received` | bytes of a peer: upgrade, frames, commands, ingest frames |
//! | `inflating` | compressed messages: how much of a turn each client gets |
//! | `command` | one client command |
//! | `connect`, `subscribe`, `publish`, `read`, `refresh` | what commands ask for, from the command to its answer |
//! | `uni` | clients that only listen |
//! | `registry` | users on a node of a fleet, and orders that other nodes pass on |
//! | `user_limit` | how many connections one user may have |
//! | `user` | orders about a user's connections |
//! | `ingest`, `ingest_call` | one frame of a backend |
//! | `deliver` | a slice of the fan-outs into outboxes |
//! | `events` | what backends are told and asked about clients |
//! | `asked` | verdicts about tokens and words of backends, which come later |
//! | `lane` | messages of other cores and of this one |
//! | `owned` | what these ask of an owner |
//! | `timers` | deadlines that have come, upkeep |
//! | `closing` | every way in which a connection ends |
//! | `drain` | sending everybody away, paced |
//! | `hand_over` | what only this node knows of a client, to the node that it reaches next; and from others |
//! | `late_leaves` | leaves of those whom a drain has sent away, told some time later |
//! | `slow` | what is dropped for connections that read too slowly |
//! | `writing` | what outboxes give to the driver to write |

mod ask_owner;
mod asked;
mod closing;
mod command;
mod connect;
mod deliver;
pub mod drain;
mod epoch_text;
mod events;
mod hand_over;
mod inflating;
mod ingest;
mod ingest_call;
mod lane;
mod late_leaves;
mod listing;
mod owned;
mod parked_state;
mod publish;
mod read;
mod received;
mod refresh;
mod registry;
mod slow;
mod subscribe;
mod take_over;
mod timers;
mod uni;
mod user;
mod user_limit;
mod writing;

use alloc::boxed::Box;
use alloc::vec::Vec;

use ringway_wire::centrifuge::Form;
use ringway_wire::centrifuge::reply::PING;
use ringway_wire::frame::write_server_header;
use ringway_wire::message::MessageLimits;

use crate::connection::{Connection, Phase};
use crate::events::Events;
use crate::fanout::{Fanouts, Moved};
use crate::frame::Frame;
use crate::ids::{ConnId, CoreId};
use crate::ingest_session::IngestSession;
use crate::lane_message::LaneKind;
use crate::lanes::{LanesOut, Said};
use crate::limits::{Limits, TICK_MS};
use crate::metrics::{Metric, Metrics};
use crate::options::Options;
use crate::outbox::Outboxes;
use crate::owner::{Owner, Place, Surroundings};
use crate::publication::opcode;
use crate::publish_run::OpenRuns;
use crate::random::Random;
use crate::rate::TokenBucket;
use crate::route;
use crate::seam::{Accepted, Action, Input, Note, Port};
use crate::session::Stage;
use crate::slots::Slots;
use crate::timers::Timers;
use crate::user_places::UserPlaces;
use crate::users::{LocalUsers, UserCores};
use drain::Drain;
use hand_over::HandOvers;
use inflating::Inflating;
use lane::GivenUp;
use late_leaves::LateLeaves;
use slow::Losses;
use user_limit::Unsaid;
use writing::{ToWrite, list};

/// What clients are told of the server's version.
const VERSION: &str = concat!("ringway ", env!("CARGO_PKG_VERSION"));
/// From one turn to the next: over it this shard was late, since a turn is short and sleep ends at the next tick.
const LATE_TURN_MS: u64 = 1_000;
/// Bytes of the longest answer to one ingest publish: a refusal with its text.
const ANSWER_BYTES_MAX: usize = 64;

/// See the file's header.
#[derive(Debug)]
pub struct Shard {
    options: Options,
    message_limits: MessageLimits,
    inflating: Inflating,
    connections: Slots<Connection>,
    timers: Timers,
    outboxes: Outboxes,
    to_write: ToWrite,
    fanouts: Fanouts,
    owner: Owner,
    /// Connections of this core by user.
    users: LocalUsers,
    /// Of the users that this core owns.
    user_cores: UserCores,
    events: Events,
    lost: events::LostEvents,
    listings: listing::Listings,
    lanes: LanesOut,
    /// Publishes of the backend that is being read.
    runs: OpenRuns,
    metrics: Metrics,
    actions: Vec<Action>,
    random: Random,
    /// Number of the latest request that waits for an answer from elsewhere.
    requests: u32,
    pings: [Frame; Form::COUNT],
    /// Backends with acknowledgements to write at the end of the turn.
    to_acknowledge: Vec<ConnId>,
    /// Replies to the message at hand, without a WebSocket header.
    replies: Vec<u8>,
    /// A frame under construction.
    frame: Vec<u8>,
    /// A payload under construction.
    payload: Vec<u8>,
    due: Vec<u32>,
    moved: Vec<Moved>,
    /// Connections whose outbox overflowed during a fan-out.
    overflowed: Vec<u32>,
    /// What was dropped for slow connections.
    losses: Losses,
    /// Channels that this core has given up; their subscribers are told at the end of the turn.
    given_up: GivenUp,
    /// Users to be registered with the backplane.
    to_register: Vec<Box<str>>,
    /// When all of them were last put there.
    registered_ms: u64,
    /// How many connections users have on this node.
    user_places: UserPlaces,
    /// Users of whom the engine may know another number.
    unsaid: Unsaid,
    now_ms: u64,
    swept_ms: u64,
    /// Until then an answer may be missing because this shard was late, not the peer.
    late_until_ms: u64,
    /// Of clients that upgrade.
    upgrade_rate: TokenBucket,
    drain: Drain,
    hand_overs: HandOvers,
    late_leaves: LateLeaves,
    shutting_down: bool,
}

impl Shard {
    /// A shard without connections. `now_ms` is any clock that only goes forward.
    pub fn new(options: Options, now_ms: u64) -> Self {
        let limits = &options.limits;
        let mut random = Random::new(options.seed ^ (options.core.0 as u64) << 48);
        let (owner_seed, fanout_seed, users_seed) = (random.next_u64(), random.next_u64(), random.next_u64());
        let events_seed = random.next_u64();
        let slots = (limits.connections_per_shard_max + limits.ingest_connections_per_shard_max) as usize;
        let place = Place { core: options.core, shards: options.shards, boot: options.boot as u32 };
        Shard {
            message_limits: MessageLimits {
                message_bytes_max: limits.message_bytes_max as usize,
                inflate_ratio_max: limits.inflate_ratio_max,
                utf8: options.utf8,
            },
            inflating: Inflating::default(),
            connections: Slots::with_capacity(slots),
            timers: Timers::new(now_ms, slots),
            outboxes: Outboxes::default(),
            to_write: ToWrite::default(),
            fanouts: Fanouts::new(fanout_seed, limits.outbox_bytes_max),
            users: LocalUsers::new(users_seed, slots),
            owner: Owner::new(limits.clone(), place, options.fleet, owner_seed),
            user_cores: UserCores::new(users_seed),
            events: Events::new(options.core, limits, events_seed),
            lost: events::LostEvents::default(),
            listings: listing::Listings::new(),
            // Two queues more than shards: the control plane's and the backplane's.
            lanes: LanesOut::new(
                options.core,
                options.shards + 2,
                limits.lane_spill_bytes_max as usize,
                limits.lane_batch_messages_max as usize,
            ),
            runs: OpenRuns::default(),
            metrics: Metrics::new(),
            actions: Vec::new(),
            random,
            requests: 0,
            pings: Form::ALL.map(|form| Frame::from_bytes(&framed(form, PING[form as usize]))),
            to_acknowledge: Vec::new(),
            replies: Vec::new(),
            frame: Vec::new(),
            payload: Vec::new(),
            due: Vec::new(),
            moved: Vec::new(),
            overflowed: Vec::new(),
            losses: Losses::default(),
            given_up: GivenUp::new(),
            to_register: Vec::new(),
            registered_ms: now_ms,
            user_places: UserPlaces::new(users_seed),
            unsaid: Unsaid::default(),
            now_ms,
            swept_ms: now_ms,
            late_until_ms: 0,
            upgrade_rate: TokenBucket::default(),
            drain: Drain::default(),
            hand_overs: HandOvers::default(),
            late_leaves: LateLeaves::default(),
            shutting_down: false,
            options,
        }
    }

    /// Tells the time; call it first in every turn.
    pub fn begin_turn(&mut self, now_ms: u64) {
        if now_ms >= self.now_ms + LATE_TURN_MS {
            self.metrics.add(Metric::TurnsLate, 1);
            self.late_until_ms = now_ms + self.options.limits.pong_timeout_ms as u64;
        }
        self.now_ms = self.now_ms.max(now_ms);
    }

    /// Takes in a connection. None: all its port's slots are taken (see [`Shard::is_full`]) or the shard is shutting
    /// down.
    pub fn accepted(&mut self, accepted: Accepted) -> Option<ConnId> {
        if self.is_full(accepted.port) || self.shutting_down {
            self.metrics.add(Metric::AcceptDropped, 1);
            return None;
        }
        let phase = match accepted.port {
            Port::Client => {
                self.metrics.add(Metric::ConnectionsAccepted, 1);
                self.metrics.add(Metric::ConnectionsOpen, 1);
                Phase::Upgrading { scanned: 0 }
            }
            Port::Ingest => {
                self.metrics.add(Metric::IngestConnectionsOpen, 1);
                Phase::Ingest { session: IngestSession::default().into(), peer: accepted.peer }
            }
        };
        let mut connection = Connection::new(accepted.port, phase);
        connection.outbox.used_tick = self.used_tick();
        let (slot, generation) = self.connections.insert(connection);
        self.timers.arm(slot, self.now_ms + self.options.limits.handshake_timeout_ms as u64);
        Some(ConnId { slot, generation })
    }

    /// Whether all of a port's connection slots are taken: stop accepting. Backends have slots of their own, so that
    /// clients cannot keep them out.
    pub fn is_full(&self, port: Port) -> bool {
        let (open, max) = self.places(port);
        open >= max
    }

    /// Whether a port that was full has room again; a twentieth, so that a full shard does not flap.
    pub fn has_room(&self, port: Port) -> bool {
        let (open, max) = self.places(port);
        open < max - max / 20
    }

    /// Connections of a port, and how many there may be.
    fn places(&self, port: Port) -> (u64, u64) {
        let limits = &self.options.limits;
        match port {
            Port::Client => (self.metrics.get(Metric::ConnectionsOpen), limits.connections_per_shard_max as u64),
            Port::Ingest => {
                (self.metrics.get(Metric::IngestConnectionsOpen), limits.ingest_connections_per_shard_max as u64)
            }
        }
    }

    /// Whether more may be read from this connection now. When not, keep it on the ready list and ask again.
    pub fn wants_read(&self, conn: ConnId) -> bool {
        let Some(connection) = self.connections.get(conn.slot, conn.generation) else { return false };
        if connection.inflating {
            return false;
        }
        match &connection.phase {
            Phase::Client(_) | Phase::Ingest { .. } if connection.leaving => false,
            Phase::Client(session) => {
                session.stage != Stage::Opening
                    && session.in_flight < self.options.limits.requests_in_flight_per_connection_max
                    && !(session.deflate && self.inflating_is_exhausted())
            }
            Phase::Gone => false,
            Phase::Upgrading { .. } | Phase::Echo | Phase::Ingest { .. } | Phase::Closing(_) => true,
        }
    }

    /// Whether another core's queue or this core's fan-outs are behind: read nothing at all until they are not.
    pub fn is_pressed(&self) -> bool {
        self.lanes.pressed() || self.fanouts.backlog_bytes() > self.backlog_bytes_max() / 2
    }

    /// Whether fan-outs are so far behind that nothing more is to be taken from other cores this turn. Their spills
    /// hold them back in turn; this core's own work goes on, so the backlog falls.
    pub fn is_swamped(&self) -> bool {
        self.fanouts.backlog_bytes() > self.backlog_bytes_max()
    }

    fn backlog_bytes_max(&self) -> usize {
        self.options.limits.fanout_backlog_bytes_max as usize
    }

    /// Takes in one thing that happened.
    pub fn handle(&mut self, input: Input<'_>) {
        match input {
            Input::Received { conn, bytes } => self.received(conn, bytes),
            Input::PeerFinished { conn } => self.peer_finished(conn),
            Input::SocketFailed { conn } => self.socket_failed(conn),
            Input::Writable { conn } => self.writable(conn),
            Input::Wrote { conn, bytes, all } => self.wrote(conn, bytes, all),
            Input::Closed { conn } => self.closed(conn),
            Input::Lane { message } => self.lane(message),
            Input::LaneLost { from } => self.lane_lost(from),
            Input::Drain(order) => self.begin_drain(order),
            Input::DrainBackends => self.drain_backends(),
            Input::Shutdown => self.shutdown(),
        }
    }

    /// Does what does not wait for an input: compressed messages that were put off, this core's messages to itself,
    /// deadlines, a slice of the fan-outs, collected acknowledgements. Call it after the turn's inputs and before
    /// collecting writes.
    pub fn end_turn(&mut self) {
        self.go_on_inflating();
        self.take_own_messages();
        self.fire_timers();
        self.fan_out();
        self.go_on_listing();
        self.follow_again();
        self.tell_insufficient();
        self.take_own_messages();
        self.write_acknowledgements();
        self.go_on_handing_over();
        self.go_on_draining();
    }

    fn take_own_messages(&mut self) {
        while let Some(message) = self.lanes.pop_own() {
            self.lane(message);
        }
    }

    /// Whether `end_turn` would have something to do at once: do not sleep.
    pub fn has_work(&self) -> bool {
        self.fanouts.has_work()
            || !self.to_write.is_empty()
            || self.lanes.has_own()
            || self.can_go_on_inflating()
            || !self.listings.is_empty()
            || self.owner.has_to_follow()
            || (!self.to_register.is_empty() && self.owner.can_follow())
    }

    /// What waits to be said to other cores.
    pub fn lanes(&mut self) -> &mut LanesOut {
        &mut self.lanes
    }

    /// What this core has said to others since the start.
    pub const fn lanes_said(&self, kind: LaneKind) -> Said {
        self.lanes.said(kind)
    }

    /// Moves what the driver is to do into `out`.
    pub fn take_actions(&mut self, out: &mut Vec<Action>) {
        out.append(&mut self.actions);
    }

    /// The numbers of this shard; the driver adds its own.
    pub fn metrics(&mut self) -> &mut Metrics {
        &mut self.metrics
    }

    /// How many connections of any kind there may be.
    pub fn connections_max(&self) -> usize {
        let limits = &self.options.limits;
        (limits.connections_per_shard_max + limits.ingest_connections_per_shard_max) as usize
    }

    /// Connections of any kind.
    pub fn connections(&self) -> u32 {
        self.connections.len()
    }

    /// Frames that wait in outboxes, for tests and memory reports.
    pub fn outbox_frames(&self) -> usize {
        self.outboxes.nodes_in_use()
    }

    /// Milliseconds until a deadline could have come.
    pub fn next_tick_in_ms(&self) -> u64 {
        Timers::next_tick_in_ms(self.now_ms)
    }

    /// Now, as connections remember their last traffic; a clock that starts at 0 reaches 17 years.
    const fn used_tick(&self) -> u32 {
        (self.now_ms / TICK_MS) as u32
    }

    /// A client has sent or is sent something other than pings and pongs.
    fn used(&mut self, conn: ConnId) {
        let tick = self.used_tick();
        if let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) {
            connection.outbox.used_tick = tick;
        }
    }

    /// The core that owns a channel.
    fn owner_of(&self, channel: &str) -> CoreId {
        match self.options.shards {
            // Nothing to choose: the hash is not needed.
            1 => self.options.core,
            shards => route::owner(route::bucket(channel), shards),
        }
    }

    fn owner(&mut self) -> (&mut Owner, Surroundings<'_>) {
        let around = Surroundings {
            lanes: &mut self.lanes,
            metrics: &mut self.metrics,
            namespaces: &self.options.namespaces,
            now_ms: self.now_ms,
        };
        (&mut self.owner, around)
    }

    /// The number of a new request of some client: unique here for as long as requests wait.
    fn new_request(&mut self) -> u32 {
        self.requests = self.requests.wrapping_add(1);
        self.requests
    }

    fn note(&mut self, note: Note) {
        self.metrics.add(Metric::EngineNotes, 1);
        self.actions.push(Action::Note(note));
    }

    /// Queues a frame for a connection; at the outbox's bound the connection ends as slow.
    fn send(&mut self, conn: ConnId, frame: Frame) {
        let limits = &self.options.limits;
        let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) else { return };
        if matches!(connection.phase, Phase::Gone) {
            return;
        }
        let bytes_max = outbox_bytes_max(connection.port, limits, self.options.shards);
        let bytes = frame.size_bytes();
        if connection.outbox.bytes() as usize + bytes > bytes_max {
            let fits = self.losses.make_room(&mut self.outboxes, &mut connection.outbox, bytes, bytes_max);
            self.settle_losses();
            if !fits {
                return self.overflow(conn);
            }
        }
        let Some(connection) = self.connections.get_mut(conn.slot, conn.generation) else { return };
        self.outboxes.push(&mut connection.outbox, frame);
        list(&mut self.to_write, conn.slot, connection);
    }

    /// Whether so many bytes more may wait for a connection.
    fn has_outbox_room(&self, conn: ConnId, bytes: usize) -> bool {
        self.connections.get(conn.slot, conn.generation).is_some_and(|connection| {
            let max = outbox_bytes_max(connection.port, &self.options.limits, self.options.shards);
            connection.outbox.bytes() as usize + bytes <= max
        })
    }

    /// Wraps the collected replies into one WebSocket message and queues it. A client that only listens gets a message
    /// for each, since it may take one for one JSON value.
    fn send_replies(&mut self, conn: ConnId, form: Form) {
        if self.replies.is_empty() {
            return;
        }
        let replies = core::mem::take(&mut self.replies);
        if self.session(conn).is_some_and(|session| session.uni) {
            // In JSON form a newline stands between pushes and nowhere else.
            replies.split(|byte| *byte == b'\n').for_each(|push| self.send_message(conn, form, push));
        } else {
            self.send_message(conn, form, &replies);
        }
        self.replies = replies;
        self.replies.clear();
    }

    fn send_message(&mut self, conn: ConnId, form: Form, message: &[u8]) {
        self.frame.clear();
        write_server_header(&mut self.frame, opcode(form), message.len());
        self.frame.extend_from_slice(message);
        let frame = Frame::from_bytes(&self.frame);
        self.used(conn);
        self.send(conn, frame);
    }

    /// Tells subscriptions their new places in the lists. In order: one may have moved twice, and its last place counts.
    fn apply_moves(&mut self) {
        for Moved { slot, local, index } in self.moved.drain(..) {
            let Some(Connection { phase: Phase::Client(session), .. }) = self.connections.at_mut(slot) else {
                continue;
            };
            for subscription in session.subscriptions.iter_mut().filter(|subscription| subscription.local == local) {
                if subscription.place().is_some() {
                    subscription.joined(index);
                }
            }
        }
    }
}

/// Bytes that may wait for a connection of a port.
fn outbox_bytes_max(port: Port, limits: &Limits, shards: u16) -> usize {
    match port {
        Port::Client => limits.outbox_bytes_max as usize,
        // A turn may acknowledge all of a backend's credit, and bring what every shard's window lets through.
        Port::Ingest => {
            limits.outbox_bytes_max as usize
                + limits.ingest_credit_messages as usize * ANSWER_BYTES_MAX
                + limits.events_window_bytes_per_backend as usize * shards as usize
        }
    }
}

fn framed(form: Form, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    write_server_header(&mut frame, opcode(form), payload.len());
    frame.extend_from_slice(payload);
    frame
}
