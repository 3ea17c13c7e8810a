//! The contract with an engine that several nodes share: who says what to whom, and what is promised.
//!
//! In: [`Request`]s of owners, each with a token. Out: [`Event`]s: one [`Answer`] to each request, and what the engine
//! feeds to this node. Implementations are the gateway's `backplane` (Redis, Valkey) and [`Embedded`](crate::embedded)
//! (what one node has, behind the same contract); one suite runs over all of them.
//!
//! | rule | promise |
//! |---|---|
//! | R1 | offsets of a channel grow by one under an epoch; the feed of a channel comes in that order |
//! | R2 | a publish is answered only when it is as durable as it asked for |
//! | R3 | the same idempotency key inside its window, or the same batch number again, gives the first position and is not fed again |
//! | R4 | behind the answer to a follow, everything published on the channel is fed or a [`Event::Broken`] comes |
//! | R5 | records of a page are dense and, unless cut by its limit, reach its top |
//! | R6 | what may have been lost or rolled back shows: the epoch differs or `Broken` comes; never silence |
//! | R7 | nothing is accepted without the engine |
//!
//! Requests of one channel are carried out in the order in which they were submitted. Nobody waits here: over the
//! implementation's limits a request is answered with [`Refusal::Unavailable`].

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::task::{Context, Poll};

use crate::ids::{Bucket, Epoch, Offset};
use crate::lane_message::Position;
use crate::limits::BUCKETS;
use crate::route;

/// What the contract is about. See the file's header.
pub trait Backplane {
    /// Takes a request; its answer comes as an event with the same token.
    fn submit(&mut self, token: Token, request: Request);

    /// Moves what has happened into `out`, in order per bucket. Ready: something has been added. Pending: the context's
    /// waker is called when there is something.
    fn poll(&mut self, context: &mut Context<'_>, out: &mut Vec<Event>) -> Poll<()>;
}

/// Names a request to who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// One start of one node, as the engine has registered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId {
    /// The smallest number that no living node has; used again after the node is gone.
    pub place: u16,
    /// Counts starts of all nodes; never used again. Names the node's inboxes.
    pub generation: u32,
}

/// Whose messages a node can be interested in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A channel, by its full name.
    Channel(Box<str>),
    /// A user, by id: orders about its connections.
    User(Box<str>),
    /// The nodes themselves: what one says to another, and to none of its owners. Nobody is interested, each is addressed.
    Nodes,
}

impl Subject {
    /// Channel or user; empty for nodes.
    pub fn name(&self) -> &str {
        match self {
            Subject::Channel(name) | Subject::User(name) => name,
            Subject::Nodes => "",
        }
    }
}

/// What an owner asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Number publications, keep them, feed them to interested nodes. Answer: [`Answer::Published`].
    Publish(PublishBatch),
    /// From here on this node is interested in a channel; then read its position and what followed one. May be said
    /// again at any time. Answer: [`Answer::Page`].
    Follow(Follow),
    /// This node is interested in a user. Answer: [`Answer::Done`].
    FollowUser {
        /// Its id.
        user: Box<str>,
    },
    /// It is not any more. Answer: [`Answer::Done`].
    Unfollow(Subject),
    /// Read history. Answer: [`Answer::Page`].
    Read(Read),
    /// Forget a channel's history; epoch and offsets stay. Answer: [`Answer::Done`].
    Forget {
        /// Full name.
        channel: Box<str>,
    },
    /// Say something to nodes that is neither numbered nor kept. Answer: [`Answer::Told`].
    Tell(Tell),
    /// Say an order about a user to the nodes that are interested in it, and note it behind what is parked for the user, if
    /// anything is. Answer: [`Answer::Told`]; refused as unavailable if too many are noted.
    Order(Order),
    /// Keep something of a user until somebody takes it. Answer: [`Answer::Displaced`].
    Park(Park),
    /// Give out the oldest thing that is parked for a user, with the orders that came behind it: it is given once. From here
    /// on this node is interested in the user. Answer: [`Answer::Parked`].
    TakeParked {
        /// Its id.
        user: Box<str>,
    },
    /// This node goes away, and things may be parked from now on: every node hears [`Event::Draining`], those that come
    /// later too. Answer: [`Answer::Done`].
    Draining {
        /// How long from the last sign of life of this node.
        ttl_ms: u64,
    },
    /// One more connection of a user wants to come in here. Answer: [`Answer::Entered`].
    Enter(Enter),
    /// This node has so many connections of a user. Answer: [`Answer::Done`].
    SetConnections {
        /// Its id.
        user: Box<str>,
        /// 0: none any more.
        mine: u32,
    },
    /// What this node says of itself until it says something else or is not alive any more. Answer: [`Answer::Done`].
    Describe {
        /// The engine does not look into it.
        body: Box<[u8]>,
    },
    /// What living nodes, this one included, say of themselves. Answer: [`Answer::Nodes`].
    Nodes,
}

/// See [`Request::Order`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// About whom; never empty.
    pub user: Box<str>,
    /// As `ringway_wire::told` has it.
    pub body: Box<[u8]>,
    /// Orders that are noted for the user. Over: it is refused, and nobody is told.
    pub noted_max: u32,
}

/// See [`Request::Park`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Park {
    /// Whose; never empty.
    pub user: Box<str>,
    /// Of which connection: its client id. What is parked of it already is replaced, where it stands.
    pub client: Box<str>,
    /// As `ringway_wire::parked` has it. Empty: what is parked of the connection is taken away.
    pub body: Box<[u8]>,
    /// Only if something of the connection is parked still.
    pub again: bool,
    /// The connection is the only one of its user on this node.
    pub alone: bool,
    /// How long all that is parked for the user is kept from now on.
    pub ttl_ms: u64,
    /// Things that are kept for the user. Over: the oldest go.
    pub entries_max: u32,
}

/// See [`Request::Enter`]. Nodes whose leases have ended do not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enter {
    /// Whose; never empty.
    pub user: Box<str>,
    /// Connections of the user that this node has with the new one; replaces what the engine knew, if it comes in.
    pub mine: u32,
    /// On all living nodes together.
    pub max: u32,
}

/// Whether a user's connection may come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// It may.
    Yes,
    /// Living nodes have as many as there may be.
    No,
    /// As above, but one of them seems to be gone, and is counted until its lease ends: there may be room soon.
    Later,
}

/// Publications of one channel, in order. All or none of them happen. An owner has one batch of a channel under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishBatch {
    /// Full name.
    pub channel: Box<str>,
    /// Each as `ringway_wire::record` has it; at least one.
    pub records: Vec<Box<[u8]>>,
    /// Scoped to the channel; empty: none. Only for a batch of one.
    pub idempotency_key: Box<[u8]>,
    /// How long the key is remembered.
    pub idempotency_window_ms: u64,
    /// Counts the batches of this node on this channel's owner, from 1. A batch whose outcome is unknown is sent again
    /// under its number, before any other of the channel; one with a lower number than the last comes late and is refused.
    pub number: u64,
    /// What is kept.
    pub keep: Keep,
    /// At least one replica has it before the answer.
    pub replicated: bool,
    /// The channel's epoch, if it has none or needs another.
    pub fresh: Epoch,
}

/// What is kept of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Publications; 0: none.
    pub size: u32,
    /// How long after the latest publication. Each record carries its own time for those who read.
    pub ttl_ms: u64,
}

/// See [`Request::Follow`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follow {
    /// Full name.
    pub channel: Box<str>,
    /// What this node has: records of the answer are behind it, none if the epoch does not hold any more. None: records
    /// from anywhere.
    pub since: Option<Position>,
    /// Records at most, the latest ones; fewer are given only when no more are kept behind `since`, or for `bytes_max`.
    pub limit: u32,
    /// Bytes of records at most; the latest one is given however large it is.
    pub bytes_max: u32,
    /// The channel's epoch, if it has none or needs another.
    pub fresh: Epoch,
}

/// See [`Request::Read`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Full name.
    pub channel: Box<str>,
    /// Behind this offset, or with `reverse` before it. None: from the oldest, or with `reverse` from the newest.
    pub since: Option<Offset>,
    /// Records at most.
    pub limit: u32,
    /// Bytes of records at most; the first one is given however large it is.
    pub bytes_max: u32,
    /// Newest first.
    pub reverse: bool,
    /// The channel's epoch, if it has none or needs another.
    pub fresh: Epoch,
}

/// See [`Request::Tell`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tell {
    /// About whom; also says in which bucket it travels, so that it keeps its place among the channel's publications.
    pub subject: Subject,
    /// To whom.
    pub to: Audience,
    /// As `ringway_wire::told` has it.
    pub body: Box<[u8]>,
}

/// Which nodes hear a [`Tell`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Those interested in the subject, this one included if it is.
    Interested,
    /// One start of one node, by its generation.
    Node(u32),
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// To a request.
    Answer(Token, Result<Answer, Refusal>),
    /// For a channel or user that this node is interested in, or was; or for one of which so many nodes are that all
    /// hear: who does not follow it drops it.
    Feed(Feed),
    /// As whom this node is registered now; comes before anything is fed, and again when it had to register anew.
    Registered(NodeId),
    /// The engine, or the part of it that has these buckets, cannot be reached; or something may be missing.
    Broken(Box<Buckets>),
    /// It can be reached again (at first too): inboxes are open, and everything followed in these buckets must be
    /// followed again.
    Restored(Box<Buckets>),
    /// Some node goes away or has just gone: for so long something may be parked. Comes again while that lasts.
    Draining {
        /// From now.
        left_ms: u64,
    },
}

/// A request's success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The batch has its offsets.
    Published(Published),
    /// Part of a channel's history, and its top.
    Page(Page),
    /// It was said to so many nodes.
    Told(u32),
    /// It is parked, and so many older things had to go.
    Displaced(u32),
    /// The oldest that was parked; none: nothing.
    Parked(Option<Box<Taken>>),
    /// Whether the connection may come in; if so it is counted.
    Entered(Room),
    /// Every node that is alive, by its lease.
    Nodes(Vec<Described>),
    /// It has happened.
    Done,
}

/// See [`Request::TakeParked`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Of which connection.
    pub client: Box<str>,
    /// As it was parked.
    pub body: Box<[u8]>,
    /// No other connection of the user was known on any node when it was parked, and nothing else of the user was parked
    /// before it was taken.
    pub alone: bool,
    /// What came behind it, the oldest first.
    pub orders: Vec<Box<[u8]>>,
}

/// A living node, and what it says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Of its registration.
    pub generation: u32,
    /// How long ago it said so.
    pub age_ms: u64,
    /// As it was given; empty: it has not said anything yet.
    pub body: Box<[u8]>,
}

/// See [`Answer::Published`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Of the first record; the others follow.
    pub first: Position,
    /// The idempotency key was there already: the position is that of its first publication.
    pub duplicate: bool,
}

/// See [`Answer::Page`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The channel's top.
    pub top: Position,
    /// Of the first record; the others follow upwards, or for a reverse read downwards. Means nothing without records.
    pub first: Offset,
    /// Each as `ringway_wire::record` has it.
    pub records: Vec<Box<[u8]>>,
    /// The answer to a follow of a channel in which this node was not interested before, as the engine knows it: what was
    /// published until now did not come to it.
    pub joined: bool,
}

/// Why a request was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It has not happened: the engine cannot be reached, or too much waits.
    Unavailable,
    /// It may have happened. A publish must be sent again, with its number, before any other of its channel.
    Unknown,
}

/// What the engine tells a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feed {
    /// Of the subject.
    pub bucket: Bucket,
    /// It came to this node alone, as one that is interested; not to all nodes at once.
    pub addressed: bool,
    /// About whom.
    pub subject: Subject,
    /// What.
    pub what: Fed,
}

/// See [`Feed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fed {
    /// A batch that some node has published.
    Publications {
        /// The channel's.
        epoch: Epoch,
        /// The offset before the first.
        prev: Offset,
        /// Of the first; the others follow.
        first: Offset,
        /// At least one.
        records: Vec<Box<[u8]>>,
    },
    /// The body of a [`Tell`].
    Told(Box<[u8]>),
}

/// A set of buckets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets([u64; BUCKETS as usize / 64]);

impl Buckets {
    /// None of them.
    pub const NONE: Self = Buckets([0; BUCKETS as usize / 64]);
    /// All of them.
    pub const ALL: Self = Buckets([u64::MAX; BUCKETS as usize / 64]);

    /// Adds one.
    pub const fn insert(&mut self, bucket: Bucket) {
        self.0[bucket.0 as usize / 64] |= 1 << (bucket.0 % 64);
    }

    /// Takes one out.
    pub const fn remove(&mut self, bucket: Bucket) {
        self.0[bucket.0 as usize / 64] &= !(1 << (bucket.0 % 64));
    }

    /// Whether it is there.
    #[inline]
    pub const fn contains(&self, bucket: Bucket) -> bool {
        self.0[bucket.0 as usize / 64] & 1 << (bucket.0 % 64) != 0
    }

    /// Whether the bucket of a channel or user is there.
    pub fn hold(&self, name: &str) -> bool {
        self.contains(route::bucket(name))
    }

    /// Adds those of another set.
    pub fn insert_all(&mut self, other: &Buckets) {
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
    }

    /// Takes out those of another set.
    pub fn remove_all(&mut self, other: &Buckets) {
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word &= !other);
    }

    /// Whether none is there.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Each of them, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Bucket> {
        (0..BUCKETS).map(Bucket).filter(|bucket| self.contains(*bucket))
    }
}

impl Request {
    /// What it is about; says its bucket.
    pub fn subject_name(&self) -> &str {
        match self {
            Request::Publish(batch) => &batch.channel,
            Request::Follow(follow) => &follow.channel,
            Request::FollowUser { user } | Request::TakeParked { user } | Request::SetConnections { user, .. } => user,
            Request::Enter(enter) => &enter.user,
            Request::Park(entry) => &entry.user,
            Request::Order(order) => &order.user,
            // The registry's business, wherever that is.
            Request::Draining { .. } | Request::Describe { .. } | Request::Nodes => "",
            Request::Unfollow(subject) => subject.name(),
            Request::Read(read) => &read.channel,
            Request::Forget { channel } => channel,
            Request::Tell(tell) => tell.subject.name(),
        }
    }

    /// Bytes of memory it keeps, near enough for a bound.
    pub fn memory_bytes(&self) -> usize {
        let more = match self {
            Request::Publish(batch) => {
                batch.idempotency_key.len() + batch.records.iter().map(|record| record.len() + 16).sum::<usize>()
            }
            Request::Tell(tell) => tell.body.len(),
            Request::Park(entry) => entry.client.len() + entry.body.len(),
            Request::Order(order) => order.body.len(),
            Request::Describe { body } => body.len(),
            _ => 0,
        };
        size_of::<Self>() + self.subject_name().len() + more
    }
}

impl Taken {
    /// Bytes of memory it keeps, near enough for a bound.
    pub fn memory_bytes(&self) -> usize {
        let orders: usize = self.orders.iter().map(|order| order.len() + 16).sum();
        size_of::<Self>() + self.client.len() + self.body.len() + orders
    }
}

impl Event {
    /// Bytes of memory it keeps, near enough for a bound.
    pub fn memory_bytes(&self) -> usize {
        let records = |records: &[Box<[u8]>]| records.iter().map(|record| record.len() + 16).sum::<usize>();
        size_of::<Self>()
            + match self {
                Event::Answer(_, Ok(Answer::Page(page))) => records(&page.records),
                Event::Answer(_, Ok(Answer::Parked(Some(taken)))) => taken.memory_bytes(),
                Event::Answer(_, Ok(Answer::Nodes(nodes))) => {
                    nodes.iter().map(|node| node.body.len() + size_of::<Described>()).sum()
                }
                Event::Feed(Feed { what: Fed::Publications { records: fed, .. }, .. }) => records(fed),
                Event::Feed(Feed { what: Fed::Told(body), .. }) => body.len(),
                Event::Broken(_) | Event::Restored(_) => size_of::<Buckets>(),
                Event::Answer(..) | Event::Registered(_) | Event::Draining { .. } => 0,
            }
    }
}
