//! The stamp that every payload carries, and finding it again in whatever a server wrapped around it.
//!
//! In: run, channel, sequence, intended time. Out: payload bytes; and from received bytes the stamp back.
//! [`PayloadForm`] says what stands around it; below, the plain text of dots.
//!
//! ```text
//! "~rw1RRRRCCCCCCCCSSSSSSSSSSTTTTTTTTTTTTTTTT.......padding......."
//!  marker run channel sequence intended ns      dots
//!  4      4   8       10       16 hex digits
//! ```
//!
//! Invariants: a payload is JSON of plain ASCII (a string, or an object in one line), so that it passes unchanged through
//! JSON, Protobuf and plain WebSocket; the marker never occurs outside the stamp; of two payloads of one template only
//! the stamps differ.
use std::fmt::Write as _;

use clap::ValueEnum;
use memchr::memmem;
use serde::{Deserialize, Serialize};

const MARKER: &[u8; 4] = b"~rw1";
/// Bytes of a stamp.
pub const STAMP_BYTES: usize = 4 + 4 + 8 + 10 + 16;
/// Shortest payload: a stamp between quotes.
pub const PAYLOAD_BYTES_MIN: usize = STAMP_BYTES + 2;

/// What stands around the stamp in a payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PayloadForm {
    /// A JSON string of the stamp and dots.
    #[default]
    Text,
    /// A JSON object as a market feed publishes it: a list of trades, with keys that repeat and numbers that do not.
    Json,
}

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
    /// Where the stamp stands.
    stamp_at: usize,
}

impl PayloadTemplate {
    /// A payload of `payload_bytes`, which must be enough for its form: [`PAYLOAD_BYTES_MIN`] for text.
    ///
    /// # Errors
    /// How many bytes it takes at least.
    pub fn new(form: PayloadForm, payload_bytes: usize) -> Result<PayloadTemplate, String> {
        let (bytes_min, (before, behind)) = match form {
            PayloadForm::Text => (PAYLOAD_BYTES_MIN, text_around(payload_bytes)),
            PayloadForm::Json => {
                (json_around(0).0.len() + STAMP_BYTES + json_around(0).1.len(), json_around(payload_bytes))
            }
        };
        if payload_bytes < bytes_min {
            return Err(format!("--payload-bytes {payload_bytes}: at least {bytes_min}, the stamp needs them"));
        }
        let bytes = [before.as_bytes(), &[0; STAMP_BYTES], behind.as_bytes()].concat();
        Ok(PayloadTemplate { bytes, stamp_at: before.len() })
    }

    /// Payload length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a payload is never empty")]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The payload with this stamp.
    pub fn stamped(&mut self, stamp: &Stamp) -> &[u8] {
        stamp.write(&mut self.bytes[self.stamp_at..self.stamp_at + STAMP_BYTES]);
        &self.bytes
    }
}

/// What stands before and behind the stamp of a text of `payload_bytes`.
fn text_around(payload_bytes: usize) -> (String, String) {
    let dots = ".".repeat(payload_bytes.saturating_sub(PAYLOAD_BYTES_MIN));
    ("\"".to_string(), format!("{dots}\""))
}

/// What stands before and behind the stamp of an object of `payload_bytes`: as many trades as there is room for, and a
/// note for the rest. Always the same, so that runs can be compared.
fn json_around(payload_bytes: usize) -> (String, String) {
    const NOTE: &str = "Prices are indicative, times are in UTC, and late trades are marked by the venue. ";
    let before = "{\"stamp\":\"".to_string();
    let mut behind = "\",\"type\":\"trades\",\"symbol\":\"EUR/USD\",\"venue\":\"primary\",\"trades\":[".to_string();
    let room = payload_bytes.saturating_sub(before.len() + STAMP_BYTES + "],\"note\":\"\"}".len());
    let (mut number, mut at_ms, mut comma) = (7u64, 1_700_000_000_000u64, "");
    loop {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        at_ms += number >> 56;
        let side = if number >> 60 & 1 == 0 { "buy" } else { "sell" };
        let (id, price, quantity) = (number >> 40, number >> 30 & 1023, 1 + (number >> 20 & 255));
        let mut trade = String::new();
        let _ = write!(
            trade,
            "{comma}{{\"id\":{id},\"price\":1.0{price:04},\"quantity\":{quantity}00,\"side\":\"{side}\",\"at_ms\":{at_ms}}}"
        );
        if behind.len() + trade.len() > room {
            break;
        }
        behind.push_str(&trade);
        comma = ",";
    }
    let note: String = NOTE.chars().cycle().take(room.saturating_sub(behind.len())).collect();
    let _ = write!(behind, "],\"note\":\"{note}\"}}");
    (before, behind)
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
    fn objects_have_the_length_asked_for_and_shrink_as_json_does() {
        let bytes_min = (1..).find(|&bytes| PayloadTemplate::new(PayloadForm::Json, bytes).is_ok()).expect("a length");
        let stamp = Stamp { run: 1, channel: 2, sequence: 3, intended_ns: 4 };
        for bytes in (bytes_min..bytes_min + 300).chain([1024, 4096, 65_536]) {
            let mut template = PayloadTemplate::new(PayloadForm::Json, bytes).expect("long enough");
            let payload = template.stamped(&stamp);
            assert_eq!((payload.len(), payload.is_ascii(), payload.contains(&b'\n')), (bytes, true, false));
            let value: serde_json::Value = serde_json::from_slice(payload).expect("JSON");
            assert!(value["trades"].as_array().expect("a list").len() >= (bytes - bytes_min) / 100, "{bytes}");
            let (found, end) = StampFinder::default().find(payload).expect("the stamp");
            assert_eq!((found, StampFinder::default().find(&payload[end..])), (stamp, None));
        }
        let mut compressed = Vec::new();
        let mut template = PayloadTemplate::new(PayloadForm::Json, 1024).expect("long enough");
        ringway_wire::deflate::Compressor::new().compress(template.stamped(&stamp), &mut compressed);
        assert!((300..600).contains(&compressed.len()), "{} bytes of 1024", compressed.len());
    }

    #[test]
    fn a_stamp_survives_wrapping() {
        let mut template = PayloadTemplate::new(PayloadForm::Text, 128).expect("long enough");
        let stamp = Stamp { run: 0xbeef, channel: 9_999, sequence: 0xff_0000_0001, intended_ns: u64::MAX - 3 };
        let payload = template.stamped(&stamp).to_vec();
        assert_eq!(payload.len(), 128);
        assert!(serde_json::from_slice::<String>(&payload).is_ok(), "a text is a JSON string");
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
        let mut bad = PayloadTemplate::new(PayloadForm::Text, 64)
            .expect("long enough")
            .stamped(&Stamp { run: 1, channel: 1, sequence: 1, intended_ns: 1 })
            .to_vec();
        bad[20] = b'~';
        assert!(finder.find(&bad).is_none());
        assert!(PayloadTemplate::new(PayloadForm::Text, PAYLOAD_BYTES_MIN - 1).is_err());
    }
}
