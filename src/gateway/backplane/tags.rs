//! Buckets as hash tags: bucket b has a tag whose slot is one of 4b to 4b + 3, so slots, and with them the primaries of
//! a cluster, get the same number of buckets.
//!
//! In: nothing. Out: a tag for each bucket, the slot of a tag. Invariant: tags never change, or the nodes of a fleet
//! would look for channels in different places.

use std::sync::LazyLock;

use ringway_engine::ids::Bucket;
use ringway_engine::limits::BUCKETS;

/// Slots of a cluster (Redis cluster specification).
pub const SLOTS: u16 = 16_384;
const SLOTS_PER_BUCKET: u16 = SLOTS / BUCKETS;

static TAGS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let mut tags = vec![String::new(); BUCKETS as usize];
    let mut missing = tags.len();
    for number in 0u32.. {
        if missing == 0 {
            break;
        }
        let text = base36(number);
        let place = &mut tags[(slot(&text) / SLOTS_PER_BUCKET) as usize];
        if place.is_empty() {
            *place = text;
            missing -= 1;
        }
    }
    tags
});

/// The tag of a bucket, without braces.
pub fn tag(bucket: Bucket) -> &'static str {
    &TAGS[bucket.0 as usize]
}

/// The slot of a key that consists of, or is tagged with, this text.
pub fn slot(text: &str) -> u16 {
    crc16(text.as_bytes()) % SLOTS
}

/// The bucket whose tag stands between the braces of a key or channel. None: it is not of ours.
pub fn bucket_of(name: &[u8]) -> Option<Bucket> {
    let open = name.iter().position(|byte| *byte == b'{')?;
    let length = name[open + 1..].iter().position(|byte| *byte == b'}')?;
    let text = std::str::from_utf8(&name[open + 1..open + 1 + length]).ok()?;
    let bucket = Bucket(slot(text) / SLOTS_PER_BUCKET);
    (tag(bucket) == text).then_some(bucket)
}

/// The bucket whose slots contain this one.
pub const fn bucket_of_slot(slot: u16) -> Bucket {
    Bucket(slot / SLOTS_PER_BUCKET)
}

fn base36(mut number: u32) -> String {
    let mut text = Vec::new();
    loop {
        text.push(b"0123456789abcdefghijklmnopqrstuvwxyz"[(number % 36) as usize]);
        number /= 36;
        if number == 0 {
            break;
        }
    }
    text.iter().rev().map(|byte| char::from(*byte)).collect()
}

/// CRC-16/XMODEM, as the Redis cluster specification asks for.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| if crc & 0x8000 != 0 { crc << 1 ^ 0x1021 } else { crc << 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_spread_and_never_move() {
        assert_eq!(crc16(b"123456789"), 0x31C3, "the check value of the specification");
        for bucket in (0..BUCKETS).map(Bucket) {
            assert_eq!(slot(tag(bucket)) / 4, bucket.0);
            assert_eq!(bucket_of(format!("rw:{{{}}}i12", tag(bucket)).as_bytes()), Some(bucket));
        }
        let all: String = (0..BUCKETS).map(|bucket| tag(Bucket(bucket))).collect::<Vec<_>>().join(",");
        assert_eq!(crc16(all.as_bytes()), ALL_TAGS, "a moved tag sends nodes to different keys");
    }

    /// Sum of all tags, which must never change.
    const ALL_TAGS: u16 = 0x65AD;
}
