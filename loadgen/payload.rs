//! The stamp that every payload carries, and finding it again in whatever a server wrapped around it.
//!
//! In: run, channel, sequence, intended time. Out: payload bytes; and from received bytes the stamp back.
//!
//! ```text
//! "~rw1RRRRCCCCCCCCSSSSSSSSSSTTTTTTTTTTTTTTTT.......padding......."
//!  marker run channel sequence intended ns      dots
//!  4      4   8       10       16 hex digits
//! ```
//!
//! Invariants: a payload is a JSON string of plain ASCII, so that it passes unchanged through JSON, Protobuf and plain
//! WebSocket; the marker never occurs in the padding.
use memchr::memmem;

const MARKER: &[u8; 4] = b"~rw1";
/// Bytes of a stamp.
pub const STAMP_BYTES: usize = 4 + 4 + 8 + 10 + 16;
/// Shortest payload: a stamp between quotes.
pub const PAYLOAD_BYTES_MIN: usize = STAMP_BYTES + 2;

/// What a payload says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Which run of the load generator; what another run left behind is not counted.
    pub run: u16,
    /// Number of the channel.
    pub channel: u32,
    /// Number of the publication in its channel, dense from 0; below 2^40.
    pub sequence: u64,
    /// When it should have been sent, on the monotonic clock, in ns.
    pub intended_ns: u64,
}

impl Stamp {
    fn write(&self, out: &mut [u8]) {
        out[..4].copy_from_slice(MARKER);
        write_hex(&mut out[4..8], u64::from(self.run));
        write_hex(&mut out[8..16], u64::from(self.channel));
        write_hex(&mut out[16..26], self.sequence);
        write_hex(&mut out[26..42], self.intended_ns);
    }

    /// The stamp at the front of `bytes`, if one is there.
    #[inline]
    pub fn read(bytes: &[u8]) -> Option<Stamp> {
        let bytes = bytes.first_chunk::<STAMP_BYTES>()?;
        if !bytes.starts_with(MARKER) {
            return None;
        }
        Some(Stamp {
            run: read_hex(&bytes[4..8])? as u16,
            channel: read_hex(&bytes[8..16])? as u32,
            sequence: read_hex(&bytes[16..26])?,
            intended_ns: read_hex(&bytes[26..42])?,
        })
    }
}

/// Finds stamps; remembers where the last one stood, since one server wraps all its messages alike.
#[derive(Clone, Debug, Default)]
pub struct StampFinder {
    usual_at: usize,
}

impl StampFinder {
    /// The first stamp in `bytes` and the position behind it.
    #[inline]
    pub fn find(&mut self, bytes: &[u8]) -> Option<(Stamp, usize)> {
        if let Some(stamp) = bytes.get(self.usual_at..).and_then(Stamp::read) {
            return Some((stamp, self.usual_at + STAMP_BYTES));
        }
        let at = memmem::find(bytes, MARKER)?;
        self.usual_at = at;
        Stamp::read(&bytes[at..]).map(|stamp| (stamp, at + STAMP_BYTES))
    }
}

/// A payload of fixed length of which only the stamp changes.
#[derive(Clone, Debug)]
pub struct PayloadTemplate {
    bytes: Vec<u8>,
}

impl PayloadTemplate {
    /// A payload of `payload_bytes`, which must be at least [`PAYLOAD_BYTES_MIN`].
    pub fn new(payload_bytes: usize) -> Result<PayloadTemplate, String> {
        if payload_bytes < PAYLOAD_BYTES_MIN {
            return Err(format!("--payload-bytes {payload_bytes}: at least {PAYLOAD_BYTES_MIN}, the stamp needs them"));
        }
        let mut bytes = vec![b'.'; payload_bytes];
        bytes[0] = b'"';
        bytes[payload_bytes - 1] = b'"';
        Ok(PayloadTemplate { bytes })
    }

    /// Payload length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a payload is never empty")]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The payload with this stamp.
    pub fn stamped(&mut self, stamp: &Stamp) -> &[u8] {
        stamp.write(&mut self.bytes[1..=STAMP_BYTES]);
        &self.bytes
    }
}

fn write_hex(out: &mut [u8], value: u64) {
    let digits = out.len();
    for (index, digit) in out.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(value >> (4 * (digits - 1 - index)) & 15) as usize];
    }
}

#[inline]
fn read_hex(digits: &[u8]) -> Option<u64> {
    let (mut value, mut bad) = (0u64, 0u8);
    for &digit in digits {
        // '0'..='9' are 0x30..0x39, 'a'..='f' are 0x61..0x66: bit 6 tells letters, which count from 10.
        let nibble = (digit & 15) + 9 * (digit >> 6);
        bad |= nibble & 0xf0;
        value = value << 4 | u64::from(nibble & 15);
    }
    if bad == 0 { Some(value) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_survives_wrapping() {
        let mut template = PayloadTemplate::new(128).expect("long enough");
        let stamp = Stamp { run: 0xbeef, channel: 9_999, sequence: 0xff_0000_0001, intended_ns: u64::MAX - 3 };
        let payload = template.stamped(&stamp).to_vec();
        assert_eq!(payload.len(), 128);
        assert!(serde_json::from_slice::<String>(&payload).is_ok(), "a payload is a JSON string");
        let mut finder = StampFinder::default();
        for prefix in ["", "{\"push\":{\"channel\":\"c0\",\"pub\":{\"data\":", "x", "~rw", "~r~rw"] {
            let wrapped = [prefix.as_bytes(), &payload, b"}}}"].concat();
            let (found, end) = finder.find(&wrapped).expect("the stamp");
            assert_eq!(found, stamp);
            assert_eq!(end, prefix.len() + 1 + STAMP_BYTES);
            assert!(finder.find(&wrapped[end..]).is_none());
        }
    }

    #[test]
    fn what_is_no_stamp_is_not_found() {
        let mut finder = StampFinder::default();
        assert!(finder.find(b"").is_none());
        assert!(finder.find(b"~rw1").is_none());
        let mut bad = PayloadTemplate::new(64)
            .expect("long enough")
            .stamped(&Stamp { run: 1, channel: 1, sequence: 1, intended_ns: 1 })
            .to_vec();
        bad[20] = b'~';
        assert!(finder.find(&bad).is_none());
        assert!(PayloadTemplate::new(PAYLOAD_BYTES_MIN - 1).is_err());
    }
}
