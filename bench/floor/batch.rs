//! What a publisher's messages become: finished server frames in one buffer, and whom each is for.
//!
//! In: the bytes received from a publisher. Out: [`Batch`], which every thread sends to its own subscribers.
//! Invariant: a batch holds whole messages only, in the order in which they came.
use std::ops::Range;

use ringway_wire::frame::{Opcode, decode_header, write_server_header};
use ringway_wire::mask::unmask;

/// Whom a publisher's messages are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audience {
    /// Each message is for every subscriber.
    Everybody,
    /// Each message begins with the number of its only subscriber and a space, which are not sent.
    Numbered,
}

/// Messages that arrived together.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Whole frames, one behind the other.
    pub(crate) bytes: Vec<u8>,
    /// Writes to every subscriber.
    pub(crate) broadcasts: Vec<Range<usize>>,
    /// Writes to one subscriber each, by its number.
    pub(crate) direct: Vec<(u32, Range<usize>)>,
}

/// What was found in a publisher's bytes.
pub(crate) struct Taken {
    pub(crate) batch: Batch,
    /// Bytes of whole frames; what is behind them is only a part of one.
    pub(crate) used: usize,
    /// The publisher said goodbye or something that is no message for this audience.
    pub(crate) over: bool,
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.broadcasts.is_empty() && self.direct.is_empty()
    }

    /// Takes the whole messages at the front of `bytes`, which are unmasked in place. `joined`: those for everybody become
    /// one write.
    pub(crate) fn take(bytes: &mut [u8], audience: Audience, joined: bool) -> Taken {
        let mut batch = Batch { bytes: Vec::new(), broadcasts: Vec::new(), direct: Vec::new() };
        let (mut used, mut over) = (0, false);
        while !over {
            let Ok(header) = decode_header(&bytes[used..]) else {
                over = true;
                break;
            };
            let Some(header) = header else { break };
            let start = used + header.header_len;
            let payload_len = usize::try_from(header.payload_len).unwrap_or(usize::MAX);
            let Some(end) = start.checked_add(payload_len).filter(|end| *end <= bytes.len()) else { break };
            if let Some(key) = header.mask {
                unmask(&mut bytes[start..end], key);
            }
            used = end;
            if header.opcode == Opcode::Close {
                over = true;
            } else if !header.opcode.is_control() {
                over = !batch.push(header.opcode, &bytes[start..end], audience, joined);
            }
        }
        Taken { batch, used, over }
    }

    /// False: a message that names nobody.
    fn push(&mut self, opcode: Opcode, message: &[u8], audience: Audience, joined: bool) -> bool {
        let frame_start = self.bytes.len();
        if audience == Audience::Numbered {
            let Some((number, payload)) = split_number(message) else { return false };
            write_server_header(&mut self.bytes, opcode, payload.len());
            self.bytes.extend_from_slice(payload);
            self.direct.push((number, frame_start..self.bytes.len()));
            return true;
        }
        write_server_header(&mut self.bytes, opcode, message.len());
        self.bytes.extend_from_slice(message);
        match self.broadcasts.last_mut().filter(|_| joined) {
            Some(write) => write.end = self.bytes.len(),
            None => self.broadcasts.push(frame_start..self.bytes.len()),
        }
        true
    }
}

/// "17 payload" as 17 and "payload".
fn split_number(message: &[u8]) -> Option<(u32, &[u8])> {
    let digits = message.iter().position(|byte| *byte == b' ')?;
    let number = str::from_utf8(&message[..digits]).ok()?.parse().ok()?;
    Some((number, &message[digits + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringway_wire::frame::write_client_header;

    fn sent(messages: &[&[u8]]) -> Vec<u8> {
        let (mut bytes, key) = (Vec::new(), [1, 2, 3, 4]);
        for message in messages {
            write_client_header(&mut bytes, Opcode::Text, message.len(), key);
            bytes.extend(message.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
        }
        bytes
    }

    #[test]
    fn whole_messages_become_frames_and_a_part_stays() {
        let mut bytes = sent(&[b"one", b"two"]);
        let whole = bytes.len();
        bytes.extend_from_slice(&sent(&[b"three"])[..5]);
        let taken = Batch::take(&mut bytes.clone(), Audience::Everybody, false);
        assert_eq!((taken.used, taken.over), (whole, false));
        assert_eq!(taken.batch.bytes, b"\x81\x03one\x81\x03two");
        assert_eq!(taken.batch.broadcasts, [0..5, 5..10]);
        let joined = Batch::take(&mut bytes, Audience::Everybody, true).batch;
        assert_eq!((joined.broadcasts.as_slice(), joined.direct.is_empty()), (std::slice::from_ref(&(0..10)), true));
    }

    #[test]
    fn a_numbered_message_goes_to_its_number_without_it() {
        let taken = Batch::take(&mut sent(&[b"17 one", b"4 two"]), Audience::Numbered, true);
        assert_eq!(taken.batch.bytes, b"\x81\x03one\x81\x03two");
        assert_eq!(taken.batch.direct, [(17, 0..5), (4, 5..10)]);
        assert!(!taken.over);
        for bad in [b"one".as_slice(), b" one", b"4294967296 one", b"-1 one"] {
            assert!(Batch::take(&mut sent(&[bad]), Audience::Numbered, false).over, "{bad:?}");
        }
    }
}
