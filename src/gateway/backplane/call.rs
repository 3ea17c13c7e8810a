//! Requests as commands, and replies as answers.
//!
//! In: a [`Request`] and what a command needs beside it. Out: a command; a reply's meaning. Invariants: what must not be
//! overtaken by a second call is one plain command (unfollow, forget, tell one node) or is sent with its text (a user's connections,
//! what is parked for one), never a script that may have to be called again; a reply that is not understood counts as unknown.

use std::sync::LazyLock;

use redis::{Cmd, Value, cmd};
use ringway_engine::backplane::{
    Answer, Audience, Described, Enter, Page, PublishBatch, Published, Refusal, Request, Room, Subject, Taken,
};
use ringway_engine::ids::{Bucket, Epoch};
use ringway_engine::lane_message::Position;

use super::feed;
use super::keys::{DESCRIBED, Keys, LIVING};
use super::link::{number, text};
use super::registry::Living;
use super::scripts::Script;

/// Registers a node for a user. Sent with its text: a call that had to wait for the script to be loaded could be overtaken by
/// the leave behind it.
const FOLLOW_USER: &str = "redis.call('SADD', KEYS[1], ARGV[1]) return redis.call('PEXPIRE', KEYS[1], ARGV[2])";

/// Lets a connection of a user in. Sent with its text for the same reason.
static ENTER: LazyLock<String> = LazyLock::new(|| without_comments(include_str!("lua/enter.lua")));
/// Takes what is parked; as above, since it registers the node too.
static TAKE: LazyLock<String> = LazyLock::new(|| without_comments(include_str!("lua/take.lua")));

fn without_comments(text: &str) -> String {
    let lines = text.lines().map(str::trim_start);
    lines.filter(|line| !line.starts_with("--")).flat_map(|line| [line, "\n"]).collect()
}

/// Says how many connections a user has on a node; as above.
const SET_CONNECTIONS: &str =
    "redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) return redis.call('PEXPIRE', KEYS[1], ARGV[3])";

/// What every command needs.
pub(super) struct Place<'a> {
    pub(super) keys: &'a Keys,
    pub(super) node: ringway_engine::backplane::NodeId,
    /// Names this process's batches.
    pub(super) writer: u32,
    /// As the connection that the command takes has read it.
    pub(super) replication_id: &'a str,
    pub(super) meta_ttl_ms: u64,
    /// Which nodes are alive.
    pub(super) living: &'a Living,
    /// Over so many interested nodes the bucket's channel is used.
    pub(super) bucket_publish_above: usize,
}

/// How a request went.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It has been carried out, or not.
    Done(Result<Answer, Refusal>),
    /// The hash was written under another replication id: read the id again, call again.
    /// Here with the first characters of that id.
    Stale(String),
    /// The server has forgotten its scripts: load them, call again.
    NoScript,
    /// Not carried out: the server is not the one for this bucket, now or for ever.
    Moved,
    /// Not carried out: the server is no primary.
    NotPrimary,
}

/// Which call of a script it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// The first.
    No = 0,
    /// The second: what is stored belongs to a history that may have been cut off.
    NewHistory = 1,
    /// The second: what is stored came from another living primary, whole.
    Adopted = 2,
}

/// The command for a request.
pub(super) fn command(place: &Place<'_>, bucket: Bucket, request: &Request, again: Again) -> Cmd {
    let keys = place.keys;
    match request {
        Request::Publish(batch) => publish(place, bucket, batch, again),
        Request::Follow(follow) => {
            let mut call = positioned(place, Script::Follow, bucket, &follow.channel, false);
            call.arg(interest(keys, &follow.channel));
            head(&mut call, place, again, follow.fresh);
            call.arg(place.node.generation).arg(follow.limit);
            match follow.since {
                Some(since) => call.arg(since.epoch.to_string()).arg(since.offset),
                None => call.arg("").arg(""),
            };
            call.arg(keys.inbox_prefix(bucket)).arg(follow.bytes_max);
            call
        }
        Request::Read(read) => {
            let mut call = positioned(place, Script::Read, bucket, &read.channel, false);
            head(&mut call, place, again, read.fresh);
            call.arg(read.limit);
            match read.since {
                Some(since) => call.arg(since),
                None => call.arg(""),
            };
            call.arg(u8::from(read.reverse)).arg(read.bytes_max);
            call
        }
        Request::FollowUser { user } => {
            let mut call = cmd("EVAL");
            call.arg(FOLLOW_USER).arg(1).arg(keys.interest(&Subject::User(user.clone())));
            call.arg(place.node.generation).arg(place.meta_ttl_ms);
            call
        }
        Request::Unfollow(subject) => one("SREM", keys.interest(subject), place.node.generation),
        Request::Forget { channel } => {
            let mut call = cmd("DEL");
            call.arg(keys.stream(bucket, channel));
            call
        }
        Request::Park(park) => {
            let mut call = script(Script::Park, 2);
            call.arg(keys.parked(&park.user)).arg(keys.interest(&Subject::User(park.user.clone())));
            call.arg(&*park.client).arg(&park.body[..]).arg(park.ttl_ms.max(1)).arg(park.entries_max.max(1));
            call.arg(u8::from(park.alone)).arg(u8::from(park.again));
            call.arg(place.node.generation).arg(keys.inbox_prefix(bucket));
            call
        }
        Request::TakeParked { user } => {
            let mut call = cmd("EVAL");
            call.arg(&*TAKE).arg(2).arg(keys.parked(user)).arg(keys.interest(&Subject::User(user.clone())));
            call.arg(place.node.generation).arg(place.meta_ttl_ms);
            call
        }
        Request::Order(order) => {
            let subject = Subject::User(order.user.clone());
            let mut call = script(Script::Order, 2);
            call.arg(keys.interest(&subject)).arg(keys.parked(&order.user));
            call.arg(keys.head(bucket)).arg(place.bucket_publish_above);
            call.arg(feed::told(&subject, &order.body)).arg(&order.body[..]).arg(order.noted_max);
            call
        }
        Request::Enter(enter) => enter_user(place, bucket, enter),
        Request::SetConnections { user, mine } => connections(place, user, *mine),
        Request::Describe { body } => {
            let mut call = registry(keys, Script::Describe);
            call.arg(place.node.generation).arg(&body[..]);
            call
        }
        Request::Nodes => registry(keys, Script::Nodes),
        // The registry's business; see `Redis::submit`.
        Request::Draining { .. } => cmd("PING"),
        Request::Tell(tell) => {
            let message = feed::told(&tell.subject, &tell.body);
            match tell.to {
                Audience::Node(generation) => one("SPUBLISH", keys.inbox(bucket, generation), message),
                Audience::Interested => {
                    let mut call = script(Script::Tell, 1);
                    call.arg(keys.interest(&tell.subject))
                        .arg(keys.head(bucket))
                        .arg(place.bucket_publish_above)
                        .arg(message);
                    call
                }
            }
        }
    }
}

fn publish(place: &Place<'_>, bucket: Bucket, batch: &PublishBatch, again: Again) -> Cmd {
    let keys = place.keys;
    let mut call = positioned(place, Script::Publish, bucket, &batch.channel, !batch.idempotency_key.is_empty());
    call.arg(interest(keys, &batch.channel));
    if !batch.idempotency_key.is_empty() {
        call.arg(keys.idempotency(bucket, &batch.channel, &batch.idempotency_key));
    }
    head(&mut call, place, again, batch.fresh);
    call.arg(format!("p{}", place.node.place))
        // Of one length, so that texts compare as numbers do.
        .arg(format!("{:08x}{:012x}", place.writer, batch.number))
        .arg(batch.keep.size)
        .arg(batch.keep.ttl_ms.max(1))
        .arg(keys.head(bucket))
        .arg(place.bucket_publish_above)
        .arg(feed::publication_tail(&batch.channel, &batch.records));
    if !batch.idempotency_key.is_empty() {
        call.arg(batch.idempotency_window_ms.max(1));
    }
    for record in &batch.records {
        call.arg(&record[..]);
    }
    call
}

fn enter_user(place: &Place<'_>, bucket: Bucket, enter: &Enter) -> Cmd {
    let mut call = cmd("EVAL");
    call.arg(&*ENTER).arg(1).arg(place.keys.connections(&enter.user));
    call.arg(place.node.generation).arg(enter.mine).arg(enter.max);
    call.arg(&place.living.between_spaces).arg(place.living.newest).arg(place.meta_ttl_ms);
    call.arg(place.keys.inbox_prefix(bucket));
    call
}

fn connections(place: &Place<'_>, user: &str, mine: u32) -> Cmd {
    let (key, generation) = (place.keys.connections(user), place.node.generation);
    if mine == 0 {
        return one("HDEL", key, generation);
    }
    let mut call = cmd("EVAL");
    call.arg(SET_CONNECTIONS).arg(1).arg(key).arg(generation).arg(mine).arg(place.meta_ttl_ms);
    call
}

/// The call of a script about what nodes say of themselves.
fn registry(keys: &Keys, which: Script) -> Cmd {
    let mut call = script(which, 2);
    call.arg(keys.registry(LIVING)).arg(keys.registry(DESCRIBED));
    call
}

fn one(name: &str, key: String, argument: impl redis::ToRedisArgs) -> Cmd {
    let mut call = cmd(name);
    call.arg(key).arg(argument);
    call
}

/// A script's call, up to the number of its keys.
pub(super) fn script(script: Script, keys: usize) -> Cmd {
    let mut call = cmd("EVALSHA");
    call.arg(script.sha()).arg(keys);
    call
}

/// The call of a script that knows positions, up to hash and stream.
fn positioned(place: &Place<'_>, which: Script, bucket: Bucket, channel: &str, idempotent: bool) -> Cmd {
    let keys = if which == Script::Read { 2 } else { 3 + usize::from(idempotent) };
    let mut call = script(which, keys);
    call.arg(place.keys.meta(bucket, channel)).arg(place.keys.stream(bucket, channel));
    call
}

fn interest(keys: &Keys, channel: &str) -> String {
    keys.interest(&Subject::Channel(channel.into()))
}

/// The arguments that position.lua wants.
fn head(call: &mut Cmd, place: &Place<'_>, again: Again, fresh: Epoch) {
    call.arg(place.replication_id).arg(format!("{}{fresh}", again as u8)).arg(place.meta_ttl_ms);
}

/// What a reply to a request means.
pub(super) fn outcome(request: &Request, reply: Value) -> Outcome {
    if let Value::ServerError(error) = &reply {
        return refused(request, error.code());
    }
    let answer = match request {
        Request::Publish(_) | Request::Follow(_) | Request::Read(_) if let Some(stored) = stale(&reply) => {
            return Outcome::Stale(stored.into());
        }
        Request::Publish(_) => published(&reply).map(Answer::Published),
        Request::Follow(_) | Request::Read(_) => page(reply).map(Answer::Page),
        Request::Tell(_) => number(&reply).and_then(|nodes| u32::try_from(nodes).ok()).map(Answer::Told),
        Request::Park(_) => number(&reply).and_then(|over| u32::try_from(over).ok()).map(Answer::Displaced),
        Request::Order(_) if matches!(reply, Value::Nil) => return Outcome::Done(Err(Refusal::Unavailable)),
        Request::Order(_) => number(&reply).and_then(|nodes| u32::try_from(nodes).ok()).map(Answer::Told),
        Request::TakeParked { .. } => taken(reply).map(Answer::Parked),
        Request::Nodes => nodes(reply).map(Answer::Nodes),
        Request::Enter(_) => match number(&reply) {
            Some(0) => Some(Answer::Entered(Room::No)),
            Some(1) => Some(Answer::Entered(Room::Yes)),
            Some(2) => Some(Answer::Entered(Room::Later)),
            _ => None,
        },
        Request::FollowUser { .. }
        | Request::Unfollow(_)
        | Request::Forget { .. }
        | Request::Draining { .. }
        | Request::SetConnections { .. }
        | Request::Describe { .. } => Some(Answer::Done),
    };
    Outcome::Done(answer.ok_or(Refusal::Unknown))
}

/// Whether a page of a follow lacks records for its bytes alone.
pub(super) fn is_cut(request: &Request, reply: &Value) -> bool {
    matches!(request, Request::Follow(_)) && reply.as_sequence().and_then(|parts| number(parts.get(4)?)) == Some(1)
}

/// The replication id that is stored beside a channel, if it is not the server's.
fn stale(reply: &Value) -> Option<&str> {
    match reply.as_sequence()? {
        [word, stored] if text(word) == Some("stale") => text(stored),
        _ => None,
    }
}

/// An error that a server gives before it begins is a request that has not happened.
fn refused(request: &Request, code: &str) -> Outcome {
    match code {
        "NOSCRIPT" => Outcome::NoScript,
        "MOVED" => Outcome::Moved,
        "READONLY" | "MASTERDOWN" | "LOADING" => Outcome::NotPrimary,
        // ASK and TRYAGAIN: a slot on its way to another server. Its keys are in two places, so it waits.
        "ASK" | "TRYAGAIN" | "CLUSTERDOWN" | "OOM" | "MISCONF" | "NOREPLICAS" | "NOPERM" | "NOAUTH" | "BUSY" => {
            Outcome::Done(Err(Refusal::Unavailable))
        }
        _ => Outcome::Done(Err(lost(request))),
    }
}

/// What is said of a request whose reply will never come.
pub(super) const fn lost(request: &Request) -> Refusal {
    match request {
        Request::Publish(_) => Refusal::Unknown,
        _ => Refusal::Unavailable,
    }
}

fn published(reply: &Value) -> Option<Published> {
    if let Some((epoch, first)) = text(reply).and_then(|reply| reply.split_once(' ')) {
        let first = Position { offset: first.parse().ok()?, epoch: Epoch::parse(epoch)? };
        return Some(Published { first, duplicate: false });
    }
    let [epoch, first, duplicate] = reply.as_sequence()? else { return None };
    let first = Position { offset: number(first)?, epoch: Epoch::parse(text(epoch)?)? };
    Some(Published { first, duplicate: number(duplicate)? == 1 })
}

/// What was parked, in entries as park.lua writes them.
fn taken(reply: Value) -> Option<Option<Box<Taken>>> {
    let parts = |entry: Value| {
        let Value::BulkString(entry) = entry else { return None };
        let end = entry.iter().position(|byte| *byte == b'\n')?;
        let client = std::str::from_utf8(entry.get(1..end)?).ok()?;
        Some((entry[0], Box::<str>::from(client), Box::<[u8]>::from(&entry[end + 1..])))
    };
    let mut entries = reply.into_sequence().ok()?.into_iter().map(parts);
    let Some(first) = entries.next() else { return Some(None) };
    let (letter, client, body) = first?;
    let orders = entries.map(|entry| Some(entry?.2)).collect::<Option<_>>()?;
    Some(Some(Box::new(Taken { client, body, alone: letter == b'a', orders })))
}

fn nodes(reply: Value) -> Option<Vec<Described>> {
    let described = |node: Value| {
        let [generation, age_ms, Value::BulkString(body)] = &node.into_sequence().ok()?[..] else { return None };
        let generation = u32::try_from(number(generation)?).ok()?;
        Some(Described { generation, age_ms: number(age_ms)?, body: body.as_slice().into() })
    };
    reply.into_sequence().ok()?.into_iter().map(described).collect()
}

fn page(reply: Value) -> Option<Page> {
    let mut parts = reply.into_sequence().ok()?;
    // Only a follow says whether it has registered the node.
    let joined = parts.get(3).is_some_and(|joined| number(joined) == Some(1));
    parts.truncate(3);
    let entries = parts.pop()?.into_sequence().ok()?;
    let [epoch, top] = &parts[..] else { return None };
    let top = Position { offset: number(top)?, epoch: Epoch::parse(text(epoch)?)? };
    let mut page = Page { top, first: 0, records: Vec::with_capacity(entries.len()), joined };
    for entry in entries {
        let mut entry = entry.into_sequence().ok()?;
        let fields = entry.pop()?.into_sequence().ok()?;
        if page.records.is_empty() {
            page.first = text(entry.first()?)?.strip_suffix("-0")?.parse().ok()?;
        }
        let Value::BulkString(record) = fields.into_iter().nth(1)? else { return None };
        page.records.push(record.into_boxed_slice());
    }
    Some(page)
}
