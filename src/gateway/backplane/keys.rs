//! Names of keys and channels in the engine: `<prefix>{<tag of the bucket>}<letter><name>`.
//!
//! | letter | what |
//! |---|---|
//! | `m` | hash of a channel: `e` epoch, `s` top offset, `r` replication id, `h` a stream exists, `p<place>` a node's last batch |
//! | `s` | stream of a channel: ids `<offset>-0`, field `d` |
//! | `n`, `u` | set of the generations of nodes that are interested in a channel, a user |
//! | `h` | list of a user: what nodes that went away have parked, the oldest first |
//! | `c` | hash of a user: connections by the generation of their node |
//! | `k` | idempotency key: epoch and first offset |
//! | `i<generation>` | channel: a node's inbox |
//! | `b` | channel: all nodes |
//!
//! In: prefix, bucket, names. Out: bytes. Invariant: different things have different names.

use ringway_engine::backplane::Subject;
use ringway_engine::ids::Bucket;
use ringway_engine::limits::BUCKETS;
use ringway_engine::route;

use super::tags;

/// The beginning of each bucket's names.
#[derive(Debug)]
pub(super) struct Keys {
    heads: Vec<String>,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        let head = |bucket| format!("{prefix}{{{}}}", tags::tag(Bucket(bucket)));
        Keys { heads: (0..BUCKETS).map(head).collect() }
    }

    fn key(&self, bucket: Bucket, letter: char, name: &str) -> String {
        format!("{}{letter}{name}", self.heads[bucket.0 as usize])
    }

    /// Scripts name inboxes and the channel of all nodes by this and their letter.
    pub(super) fn head(&self, bucket: Bucket) -> &str {
        &self.heads[bucket.0 as usize]
    }

    pub(super) fn meta(&self, bucket: Bucket, channel: &str) -> String {
        self.key(bucket, 'm', channel)
    }

    pub(super) fn stream(&self, bucket: Bucket, channel: &str) -> String {
        self.key(bucket, 's', channel)
    }

    /// Who is interested in a subject.
    pub(super) fn interest(&self, subject: &Subject) -> String {
        match subject {
            Subject::Channel(name) => self.key(route::bucket(name), 'n', name),
            Subject::User(name) => self.key(route::bucket(name), 'u', name),
            // No user has an empty id, so it is a set that is never filled.
            Subject::Nodes => self.key(route::bucket(""), 'u', ""),
        }
    }

    /// What is parked for a user.
    pub(super) fn parked(&self, user: &str) -> String {
        self.key(route::bucket(user), 'h', user)
    }

    /// How many connections a user has on which node.
    pub(super) fn connections(&self, user: &str) -> String {
        self.key(route::bucket(user), 'c', user)
    }

    /// The length keeps a channel `a:b` with the key `c` apart from `a` with `b:c`.
    pub(super) fn idempotency(&self, bucket: Bucket, channel: &str, key: &[u8]) -> Vec<u8> {
        let mut name = self.key(bucket, 'k', &format!("{}:{channel}:", channel.len())).into_bytes();
        name.extend_from_slice(key);
        name
    }

    /// Behind it stands the node's generation.
    pub(super) fn inbox_prefix(&self, bucket: Bucket) -> String {
        self.key(bucket, 'i', "")
    }

    pub(super) fn inbox(&self, bucket: Bucket, generation: u32) -> String {
        self.key(bucket, 'i', &generation.to_string())
    }

    /// Whether a channel is one node's inbox, and not the one of all nodes: it ends with a generation.
    pub(super) fn is_inbox(channel: &[u8]) -> bool {
        channel.last().is_some_and(u8::is_ascii_digit)
    }

    pub(super) fn all_nodes(&self, bucket: Bucket) -> String {
        self.key(bucket, 'b', "")
    }

    /// A key of the registry; all of them stand in one bucket.
    pub(super) fn registry(&self, name: &str) -> String {
        self.key(REGISTRY, 'r', name)
    }
}

/// Sorted set of the generations of living nodes, by when their leases end.
pub(super) const LIVING: &str = "nodes";
/// Hash of what nodes say of themselves, by generation: time in ms, a colon, the words.
pub(super) const DESCRIBED: &str = "described";
/// Where the registry's keys are.
pub(super) const REGISTRY: Bucket = Bucket(0);
