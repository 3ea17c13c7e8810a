//! What travels on inboxes and bucket channels.
//!
//! In: the payload of a published message. Out: a [`Feed`]. Invariant: what is malformed is an error, never a panic; the
//! caller then knows that something may be missing.
//!
//! ```text
//! P<epoch> <offset before the first> <bytes of the channel> <bytes of each record> ...\n<channel><records>
//! Tc <bytes of the channel>\n<channel><body>        Tu <bytes of the user>\n<user><body>
//! Tn 0\n<body>
//! ```
//! The script writes everything up to and with the offset; the publishing node the rest.

use std::fmt::Write as _;

use ringway_engine::backplane::{Fed, Feed, Subject};
use ringway_engine::ids::{Bucket, Epoch};

/// The part of a publication's message between offset and records.
pub(super) fn publication_tail(channel: &str, records: &[Box<[u8]>]) -> Vec<u8> {
    let mut tail = channel.len().to_string();
    for record in records {
        let _ = write!(tail, " {}", record.len());
    }
    tail.push('\n');
    tail.push_str(channel);
    tail.into_bytes()
}

/// A whole message about a subject.
pub(super) fn told(subject: &Subject, body: &[u8]) -> Vec<u8> {
    let kind = match subject {
        Subject::Channel(_) => 'c',
        Subject::User(_) => 'u',
        Subject::Nodes => 'n',
    };
    let mut message = format!("T{kind} {}\n{}", subject.name().len(), subject.name()).into_bytes();
    message.extend_from_slice(body);
    message
}

/// Reads a message that came for this bucket, to this node alone or to all. None: it is malformed.
pub(super) fn parse(bucket: Bucket, addressed: bool, message: &[u8]) -> Option<Feed> {
    let end = message.iter().position(|byte| *byte == b'\n')?;
    let (head, body) = (std::str::from_utf8(&message[..end]).ok()?, &message[end + 1..]);
    let mut words = head.split(' ');
    let first = words.next()?;
    let (subject, what) = if let Some(epoch) = first.strip_prefix('P') {
        let epoch = Epoch::parse(epoch)?;
        let prev: u64 = words.next()?.parse().ok()?;
        let (name, mut rest) = split(body, words.next()?)?;
        let mut records = Vec::new();
        for length in words {
            let (record, behind) = split(rest, length)?;
            records.push(record.into());
            rest = behind;
        }
        if records.is_empty() || !rest.is_empty() {
            return None;
        }
        let channel = std::str::from_utf8(name).ok()?;
        (Subject::Channel(channel.into()), Fed::Publications { epoch, prev, first: prev + 1, records })
    } else {
        let (name, body) = split(body, words.next()?)?;
        let name = std::str::from_utf8(name).ok()?.into();
        let subject = match first {
            "Tc" => Subject::Channel(name),
            "Tu" => Subject::User(name),
            "Tn" => Subject::Nodes,
            _ => return None,
        };
        (subject, Fed::Told(body.into()))
    };
    Some(Feed { bucket, addressed, subject, what })
}

fn split<'a>(bytes: &'a [u8], length: &str) -> Option<(&'a [u8], &'a [u8])> {
    bytes.split_at_checked(length.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_published_is_what_is_fed(
            channel in "[a-z:é{} ]{1,20}", records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..5), prev: u32,
        ) {
            let records: Vec<Box<[u8]>> = records.into_iter().map(Into::into).collect();
            let epoch = Epoch { boot: 7, creation: 9 };
            let mut message = format!("P{epoch} {prev} ").into_bytes();
            message.extend(publication_tail(&channel, &records));
            records.iter().for_each(|record| message.extend_from_slice(record));
            let fed = parse(Bucket(3), true, &message).expect("is well formed");
            let prev = u64::from(prev);
            let what = Fed::Publications { epoch, prev, first: prev + 1, records };
            prop_assert_eq!(fed, Feed { bucket: Bucket(3), addressed: true, subject: Subject::Channel(channel.into()), what });
        }

        #[test]
        fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..60), kind in "P|Tc|Tu") {
            let mut message = kind.into_bytes();
            message.extend(bytes);
            let _ = parse(Bucket(0), true, &message);
        }

        #[test]
        fn what_is_told_is_what_is_heard(name in ".{0,20}", body in prop::collection::vec(any::<u8>(), 0..60), kind in 0..3) {
            let subject = match kind {
                0 => Subject::User(name.into()),
                1 => Subject::Channel(name.into()),
                _ => Subject::Nodes,
            };
            let fed = parse(Bucket(1), false, &told(&subject, &body)).expect("is well formed");
            prop_assert_eq!(fed, Feed { bucket: Bucket(1), addressed: false, subject, what: Fed::Told(body.into()) });
        }
    }
}
