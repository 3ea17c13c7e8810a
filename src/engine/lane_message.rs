//! Everything one core may say to another.
//!
//! In: made by `owner.rs`, `session.rs`, `ingest_session.rs` and the control plane. Out: travels a lane in order.
//! Invariant: all that concerns one channel between two cores travels the same two lanes, so the order in which the
//! owner spoke is the order in which subscribers hear.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use ringway_wire::centrifuge::reply::PublicationView;
use ringway_wire::ingest::PayloadKind;

use crate::backends::{BackendId, BackendNotice, Decision};
use crate::backplane::Taken;
use crate::backplane::{Event, Request, Room, Token};
use crate::call::{ChannelAnswer, ChannelCall, ChannelsAnswer, ChannelsCall, UserAnswer, UserCall};
use crate::ids::{ConnId, CoreId, Epoch, LocalChannelId, Offset};
use crate::namespace::Namespaces;
use crate::owner::Taker;
use crate::past::Past;
use crate::presence::Member;
use crate::publication::{Publication, Publisher, Tags, tags_bytes};
use crate::publish_run::{PublishRun, RunAnswer};
use crate::tokens::TokenChecked;
use crate::variant::Variant;

/// A run of messages from one core to another, in order. Lanes carry batches, so that a turn costs one queue
/// operation and at most one wake per target.
#[derive(Debug)]
pub struct Batch {
    /// The sender.
    pub from: CoreId,
    /// In the order they were said.
    pub messages: Vec<LaneMessage>,
}

/// One message between cores.
#[derive(Debug)]
pub enum LaneMessage {
    /// To the owner: give it an offset, keep it, fan it out.
    Publish(Box<PublishRequest>),
    /// To the owner: as above, publishes of one backend that came together.
    PublishRun(Box<PublishRun>),
    /// To the owner: this connection wants the channel.
    Subscribe(Box<SubscribeRequest>),
    /// To the owner: no subscriber of the channel is left here.
    Leave(Box<LeaveRequest>),
    /// From the owner, to whoever published.
    PublishAnswer(PublishAnswer),
    /// From the owner, to the backend's core: the answer to a run.
    RunAnswer(Box<RunAnswer>),
    /// From the owner: position and what was missed. The connection joins its core's list when this is taken.
    SubscribeAnswer(Box<SubscribeAnswer>),
    /// From the owner, to each core with interest.
    Deliver {
        /// The channel as the receiving core named it when it subscribed.
        local: LocalChannelId,
        /// Shared by all cores.
        publication: Arc<Publication>,
    },
    /// To the owner: a member's subscription has ended.
    MemberLeave(Box<MemberLeave>),
    /// To the owner of a channel.
    ChannelCall(Box<ChannelCall>),
    /// From the owner of a channel.
    ChannelAnswer(Box<ChannelAnswer>),
    /// To the owner of a user: the core has a first connection of that user.
    UserJoin(Box<UserPresence>),
    /// To the owner of a user: the core's last connection of that user has gone.
    UserLeave(Box<UserPresence>),
    /// To the owner of a user: one more connection wants to come in.
    UserEnter(Box<UserEntrant>),
    /// From the owner of a user: whether it may.
    UserEntered(Box<UserEntered>),
    /// To the owner of a user: a connection that had come in has ended.
    UserExit(Box<UserPresence>),
    /// To a user's owner: park what this core knows of a connection.
    UserPark(Box<UserParking>),
    /// It is parked, or cannot be.
    UserParked(ConnId),
    /// To a user's owner: what is parked for it, for a connection that it has heard of.
    UserTake(Box<Taker>),
    /// The answer; none: nothing.
    UserTaken(Box<(Taker, Option<Box<Taken>>)>),
    /// To the owner of a user, and from there to each core with connections of that user.
    UserCall(Box<UserCall>),
    /// From the owner of a user.
    UserAnswer(UserAnswer),
    /// To every shard.
    ChannelsCall(Box<ChannelsCall>),
    /// From each shard.
    ChannelsAnswer(Box<ChannelsAnswer>),
    /// From whoever checks tokens.
    TokenChecked(Box<TokenChecked>),
    /// To every shard: close the connections that came with this token id.
    RevokeToken(Box<str>),
    /// To every shard: a backend begins, changes or ends to take events.
    BackendChanged(Box<BackendNotice>),
    /// To a backend's shard: an event for it.
    Event(Box<EventDelivery>),
    /// To the shard that keeps the event: a backend is done with it.
    EventAcknowledged {
        /// Who.
        backend: BackendId,
        /// The event's number.
        event: u64,
    },
    /// To the shard that keeps the event: a backend has decided.
    EventAnswered(Box<EventAnswered>),
    /// To the backplane: what an owner asks of it.
    ToBackplane {
        /// The owner's name for it.
        token: Token,
        /// What.
        request: Box<Request>,
    },
    /// To a core with subscribers: publications of the channel may be missing and cannot be had; they are to come back.
    Insufficient {
        /// As that core names the channel.
        local: LocalChannelId,
    },
    /// From the backplane, to the owner of the bucket or of the request.
    Backplane(Box<Event>),
    /// To every shard: new channel rules. Ids of namespaces that exist keep their meaning.
    Rules(Arc<Namespaces>),
}

/// An event on its way to a backend.
#[derive(Debug)]
pub struct EventDelivery {
    /// The backend's connection.
    pub to: ConnId,
    /// The finished ingest frame.
    pub frame: Arc<[u8]>,
}

/// A backend's decision on its way to who asked.
#[derive(Debug)]
pub struct EventAnswered {
    /// Who decided.
    pub backend: BackendId,
    /// The event's number.
    pub event: u64,
    /// What was decided.
    pub decision: Decision,
}

/// A member's subscription has ended.
#[derive(Debug)]
pub struct MemberLeave {
    /// Full name.
    pub channel: Box<str>,
    /// The core.
    pub from: CoreId,
    /// The connection.
    pub conn: ConnId,
}

/// A user has, or has no more, connections on a core.
#[derive(Debug)]
pub struct UserPresence {
    /// User id; never empty.
    pub user: Box<str>,
    /// The core.
    pub from: CoreId,
}

/// A connection of a user that wants to come in.
#[derive(Debug)]
pub struct UserEntrant {
    /// User id; never empty.
    pub user: Box<str>,
    /// The core.
    pub from: CoreId,
    /// The connection.
    pub conn: ConnId,
    /// Number of its request.
    pub number: u32,
}

/// What is to be parked of a user's connection. See [`backplane::Park`](crate::backplane::Park).
#[derive(Debug)]
pub struct UserParking {
    /// Whose.
    pub user: Box<str>,
    /// Its client id.
    pub client: Box<str>,
    /// As `ringway_wire::parked` has it; empty: nothing any more.
    pub body: Box<[u8]>,
    /// Only in place of what is parked of it still.
    pub again: bool,
    /// The only one of its user on its core.
    pub alone: bool,
    /// The connection that waits for it.
    pub waits: Option<ConnId>,
    /// On which core.
    pub from: CoreId,
}

/// See [`LaneMessage::UserEntered`].
#[derive(Debug)]
pub struct UserEntered {
    /// As it asked.
    pub entrant: UserEntrant,
    /// Whether it may come in.
    pub room: Room,
}

/// Who waits for the answer to a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A client's publish command.
    Client {
        /// The connection.
        conn: ConnId,
        /// Id of its command.
        command: u32,
    },
    /// A backend's call.
    IngestCall {
        /// The connection.
        conn: ConnId,
        /// Number that the backend gave it.
        call: u32,
    },
    /// A call on the control plane.
    Control {
        /// Number that the control plane gave it.
        call: u64,
    },
}

/// A publish on its way to the owner. The payload has been checked.
#[derive(Debug)]
pub struct PublishRequest {
    /// Full name.
    pub channel: Box<str>,
    /// JSON without raw newlines, or bytes.
    pub payload: Box<[u8]>,
    /// Which of the two.
    pub kind: PayloadKind,
    /// Scoped to the channel; empty: none.
    pub idempotency_key: Box<[u8]>,
    /// Set when a client published.
    pub publisher: Option<Box<Publisher>>,
    /// Names and values beside the payload; few or none.
    pub tags: Tags,
    /// It gets no offset and is not kept: who is not there misses it.
    pub skip_history: bool,
    /// Who waits.
    pub origin: Origin,
    /// Where it waits.
    pub from: CoreId,
}

/// A publish's fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishAnswer {
    /// Who waits.
    pub origin: Origin,
    /// Where it stands in its channel, or why it does not.
    pub result: Result<Position, PublishError>,
    /// The same key was published before; `result` is the first one's position.
    pub duplicate: bool,
}

/// A place in a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Of the publication, or of the channel's top. 0: nothing yet, or a channel without history.
    pub offset: Offset,
    /// Of the channel.
    pub epoch: Epoch,
}

/// Why a publish was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishError {
    /// The channel's prefix is not a configured namespace, or the name is malformed.
    UnknownChannel,
    /// Not allowed to publish there.
    PermissionDenied,
    /// The namespace wants JSON and the payload is not, or the kinds differ.
    BadPayload,
    /// Over `publication_bytes_max`.
    TooLarge,
    /// A limit of this node; try again later.
    Busy,
    /// The backplane did not say in time whether it happened.
    Unknown,
}

/// A subscribe on its way to the owner.
#[derive(Debug)]
pub struct SubscribeRequest {
    /// Full name.
    pub channel: Box<str>,
    /// How the subscriber's core names the channel.
    pub local: LocalChannelId,
    /// In which encoding this subscriber takes publications, so that the owner encodes only what is needed.
    pub variant: Variant,
    /// As whom it takes part in presence; none: it does not. A member that does not become subscribed after all must
    /// be taken out by a `MemberLeave` behind this request.
    pub member: Option<Box<Member>>,
    /// Its coming and going as a member is told to those who want to hear of it.
    pub tell_join_leave: bool,
    /// Where to resume, if it wants to.
    pub recover: Option<RecoverFrom>,
    /// The connection.
    pub conn: ConnId,
    /// Id of its command.
    pub command: u32,
    /// Its core.
    pub from: CoreId,
}

/// A client's last known position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoverFrom {
    /// What the client has.
    pub offset: Offset,
    /// None: the client does not know one and takes any.
    pub epoch: Option<Epoch>,
}

/// The owner's answer to a subscribe.
#[derive(Debug)]
pub struct SubscribeAnswer {
    /// The connection.
    pub conn: ConnId,
    /// Id of its command.
    pub command: u32,
    /// As given in the request.
    pub local: LocalChannelId,
    /// The channel's top, or why not.
    pub result: Result<Subscribed, SubscribeError>,
}

/// A subscribe that was granted.
#[derive(Debug)]
pub struct Subscribed {
    /// The channel's top when the owner answered.
    pub top: Position,
    /// What the answer says about recovery, if it was asked for.
    pub recovery: Option<Recovery>,
    /// Number that stands for the channel in compact pushes, from 1; the same on the whole node.
    pub number: i64,
}

impl Subscribed {
    /// What the client missed, ascending.
    pub fn missed(&self) -> impl ExactSizeIterator<Item = PublicationView<'_>> + Clone {
        const NONE: &Past = &Past::new(0, false);
        match &self.recovery {
            Some(Recovery::Recovered(past)) => past.iter(),
            Some(Recovery::NotRecovered) | None => NONE.iter(),
        }
    }
}

/// Outcome of a recovery.
#[derive(Debug)]
pub enum Recovery {
    /// All that followed the client's offset, ascending; nothing is missing.
    Recovered(Past),
    /// Too old, too much, or another epoch: the client must reload its state.
    NotRecovered,
}

/// Why the owner refused a subscribe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscribeError {
    /// `channels_per_shard_max`; try again later.
    Busy,
}

/// The last subscriber of a channel has left a core, and with it whoever was a member there.
#[derive(Debug)]
pub struct LeaveRequest {
    /// Full name.
    pub channel: Box<str>,
    /// The name under which it was subscribed; a leave for an older one is ignored.
    pub local: LocalChannelId,
    /// The core.
    pub from: CoreId,
}

/// What a message between cores is there for; counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum LaneKind {
    /// Publishes on their way to an owner.
    Publish,
    /// A publication, join or leave on its way to a core with interest.
    Deliver,
    /// An owner's answer to publishes.
    Ack,
    /// All else.
    Other,
}

impl LaneKind {
    /// How many there are.
    pub const COUNT: usize = LaneKind::Other as usize + 1;
}

impl LaneMessage {
    /// What it is there for, and how many publishes, publications or answers it carries.
    pub fn kind(&self) -> (LaneKind, u64) {
        match self {
            LaneMessage::Publish(_) => (LaneKind::Publish, 1),
            LaneMessage::PublishRun(run) => (LaneKind::Publish, run.len() as u64),
            LaneMessage::Deliver { .. } => (LaneKind::Deliver, 1),
            LaneMessage::PublishAnswer(_) => (LaneKind::Ack, 1),
            LaneMessage::RunAnswer(answer) => (LaneKind::Ack, answer.answers.len() as u64),
            _ => (LaneKind::Other, 1),
        }
    }

    /// Bytes this message keeps in memory while it waits, near enough for a bound. A publication that several cores
    /// share counts for each.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + match self {
                LaneMessage::Publish(request) => {
                    size_of::<PublishRequest>()
                        + request.channel.len()
                        + request.payload.len()
                        + request.idempotency_key.len()
                        + tags_bytes(&request.tags)
                }
                LaneMessage::PublishRun(run) => run.memory_bytes(),
                LaneMessage::RunAnswer(answer) => answer.memory_bytes(),
                LaneMessage::Subscribe(request) => {
                    let member = request.member.as_ref().map_or(0, |member| member.memory_bytes());
                    size_of::<SubscribeRequest>() + request.channel.len() + member
                }
                LaneMessage::Leave(request) => size_of::<LeaveRequest>() + request.channel.len(),
                LaneMessage::SubscribeAnswer(answer) => {
                    let missed = match &answer.result {
                        Ok(Subscribed { recovery: Some(Recovery::Recovered(past)), .. }) => past.memory_bytes(),
                        _ => 0,
                    };
                    size_of::<SubscribeAnswer>() + missed
                }
                LaneMessage::MemberLeave(leave) => size_of::<MemberLeave>() + leave.channel.len(),
                LaneMessage::ChannelCall(call) => size_of::<ChannelCall>() + call.channel.len(),
                LaneMessage::ChannelAnswer(answer) => answer.memory_bytes(),
                LaneMessage::UserJoin(presence)
                | LaneMessage::UserLeave(presence)
                | LaneMessage::UserExit(presence) => size_of::<UserPresence>() + presence.user.len(),
                LaneMessage::UserPark(parking) => {
                    size_of::<UserParking>() + parking.user.len() + parking.client.len() + parking.body.len()
                }
                LaneMessage::UserTake(taker) => size_of::<Taker>() + taker.user.len(),
                LaneMessage::UserTaken(taken) => {
                    let state = taken.1.as_ref().map_or(0, |state| state.memory_bytes());
                    size_of::<Taker>() + taken.0.user.len() + state
                }
                LaneMessage::UserEnter(entrant) => size_of::<UserEntrant>() + entrant.user.len(),
                LaneMessage::UserEntered(entered) => size_of::<UserEntered>() + entered.entrant.user.len(),
                LaneMessage::UserCall(call) => call.memory_bytes(),
                LaneMessage::ChannelsCall(call) => size_of::<ChannelsCall>() + call.pattern.len(),
                LaneMessage::ChannelsAnswer(answer) => answer.memory_bytes(),
                LaneMessage::ToBackplane { request, .. } => request.memory_bytes(),
                LaneMessage::Backplane(event) => event.memory_bytes(),
                LaneMessage::Event(delivery) => size_of::<EventDelivery>() + delivery.frame.len(),
                LaneMessage::PublishAnswer(_)
                | LaneMessage::Insufficient { .. }
                | LaneMessage::BackendChanged(_)
                | LaneMessage::EventAcknowledged { .. }
                | LaneMessage::EventAnswered(_)
                | LaneMessage::UserAnswer(_)
                | LaneMessage::UserParked(_)
                | LaneMessage::TokenChecked(_)
                | LaneMessage::RevokeToken(_)
                | LaneMessage::Rules(_) => 0,
                LaneMessage::Deliver { publication, .. } => publication.memory_bytes(),
            }
    }
}
