//! The WebSocket frame header (RFC 6455 §5.2): decoding, and encoding of unmasked server and masked client headers.
//!
//! In: the bytes at the front of a connection's received data. Out: a [`Header`] by value (to `message.rs` and the
//! load generator), or header bytes appended to a caller's buffer.
//!
//! ```text
//!  byte 0               byte 1              then                          then
//! +---+-------+--------+------+-----------+----------------------------+---------------------+---------
//! |FIN|RSV1..3| opcode | MASK | length 7  | 0, 2 or 8 bytes big-endian | 0 or 4 bytes of key | payload
//! +---+-------+--------+------+-----------+----------------------------+---------------------+---------
//!   1     3       4       1        7         length 126: 2, 127: 8
//! ```
//!
//! Invariants: decoding looks at no more than [`HEADER_BYTES_MAX`] bytes and keeps no state, so asking again when more
//! bytes have come costs O(1). The rules are checked in the order of the bytes: a broken frame is refused at the first
//! byte that breaks it, and always with the same error, however the stream was cut. RSV1 may be set only where
//! permessage-deflate was negotiated, and only on the first frame of a message (RFC 7692 §6); RSV2 and RSV3 never.

use alloc::vec::Vec;

/// Longest frame header: two bytes, an eight-byte length, a four-byte masking key.
pub const HEADER_BYTES_MAX: usize = 14;

/// Longest payload of a control frame, in bytes (RFC 6455 §5.5).
pub const CONTROL_PAYLOAD_BYTES_MAX: usize = 125;

/// What a frame is (RFC 6455 §5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// A further fragment of the message that is open.
    Continuation = 0x0,
    /// First (or only) fragment of a UTF-8 message.
    Text = 0x1,
    /// First (or only) fragment of a binary message.
    Binary = 0x2,
    /// The close handshake (RFC 6455 §5.5.1).
    Close = 0x8,
    /// A question whether the other side is there; its payload comes back in a Pong.
    Ping = 0x9,
    /// The answer to a Ping, or an unasked sign of life.
    Pong = 0xA,
}

impl Opcode {
    /// Whether it is a control frame: never fragmented, at most [`CONTROL_PAYLOAD_BYTES_MAX`] bytes.
    #[inline]
    pub const fn is_control(self) -> bool {
        self.bits() & 0x8 != 0
    }

    /// The four bits on the wire.
    #[inline]
    pub const fn bits(self) -> u8 {
        self as u8
    }

    /// The opcode of the four bits; None for a reserved one.
    #[inline]
    const fn from_bits(bits: u8) -> Option<Opcode> {
        Some(match bits {
            0x0 => Opcode::Continuation,
            0x1 => Opcode::Text,
            0x2 => Opcode::Binary,
            0x8 => Opcode::Close,
            0x9 => Opcode::Ping,
            0xA => Opcode::Pong,
            _ => return None,
        })
    }
}

/// A decoded frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Last (or only) frame of its message.
    pub fin: bool,
    /// What the frame is.
    pub opcode: Opcode,
    /// RSV1: the message that begins here is compressed (RFC 7692 §6). Never on a continuation or a control frame.
    pub compressed: bool,
    /// The masking key; None for an unmasked frame. A server must refuse None, a client must refuse Some (§5.1).
    pub mask: Option<[u8; 4]>,
    /// Bytes of the header itself, 2 to [`HEADER_BYTES_MAX`].
    pub header_len: usize,
    /// Bytes of payload behind it, below 2^63.
    pub payload_len: u64,
}

/// Why a frame header is refused. All end the connection with 1002 (RFC 6455 §7.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// A reserved bit is set to which no negotiated extension gives a meaning here (§5.2, RFC 7692 §6).
    ReservedBits,
    /// Opcode 3 to 7 or 11 to 15 (§5.2).
    ReservedOpcode,
    /// A control frame without FIN (§5.5).
    FragmentedControl,
    /// A control frame of more than [`CONTROL_PAYLOAD_BYTES_MAX`] bytes (§5.5).
    ControlTooLong,
    /// The length was not written in its shortest form (§5.2).
    LengthNotMinimal,
    /// The top bit of the eight-byte length is set (§5.2).
    LengthTooLarge,
    /// A client sent an unmasked frame (§5.1).
    NotMasked,
}

/// RSV1 in the first byte of a frame: the message is compressed (RFC 7692 §6).
const RSV1: u8 = 0x40;

/// Decodes the header at the front of `bytes`. `Ok(None)`: more bytes are needed. `deflate`: permessage-deflate was
/// negotiated, so that a message may be compressed.
///
/// Whether a mask must be there depends on who reads, so it is not checked here: see [`Header::mask`].
///
/// # Errors
/// The first rule of RFC 6455 §5.2 and §5.5 that the bytes present break, even while the header is incomplete.
#[inline]
pub fn decode_header_with(bytes: &[u8], deflate: bool) -> Result<Option<Header>, FrameError> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let reserved = first & 0x70;
    // 1 and 2 are Text and Binary: the opcodes that begin a message.
    if reserved != 0 && !(deflate && reserved == RSV1 && matches!(first & 0x0F, 1 | 2)) {
        return Err(FrameError::ReservedBits);
    }
    let Some(opcode) = Opcode::from_bits(first & 0x0F) else { return Err(FrameError::ReservedOpcode) };
    let fin = first & 0x80 != 0;
    if opcode.is_control() && !fin {
        return Err(FrameError::FragmentedControl);
    }

    let Some(&second) = bytes.get(1) else { return Ok(None) };
    let short_len = second & 0x7F;
    if opcode.is_control() && short_len as usize > CONTROL_PAYLOAD_BYTES_MAX {
        return Err(FrameError::ControlTooLong);
    }
    let (key_at, payload_len) = match short_len {
        0..=125 => (2, u64::from(short_len)),
        126 => {
            let Some(len) = array_at::<2>(bytes, 2) else { return Ok(None) };
            let len = u64::from(u16::from_be_bytes(len));
            if len <= 125 {
                return Err(FrameError::LengthNotMinimal);
            }
            (4, len)
        }
        _ => {
            let Some(len) = array_at::<8>(bytes, 2) else { return Ok(None) };
            let len = u64::from_be_bytes(len);
            if len >> 63 != 0 {
                return Err(FrameError::LengthTooLarge);
            }
            if len <= u64::from(u16::MAX) {
                return Err(FrameError::LengthNotMinimal);
            }
            (10, len)
        }
    };

    let masked = second & 0x80 != 0;
    let (mask, header_len) = if masked {
        let Some(key) = array_at::<4>(bytes, key_at) else { return Ok(None) };
        (Some(key), key_at + 4)
    } else {
        (None, key_at)
    };
    Ok(Some(Header { fin, opcode, compressed: reserved != 0, mask, header_len, payload_len }))
}

/// As [`decode_header_with`] where no extension was negotiated: all three reserved bits must be zero.
///
/// # Errors
/// As there.
#[inline]
pub fn decode_header(bytes: &[u8]) -> Result<Option<Header>, FrameError> {
    decode_header_with(bytes, false)
}

/// Bytes of the header that [`write_server_header`] writes: 2, 4 or 10.
#[inline]
pub const fn server_header_len(payload_len: usize) -> usize {
    match payload_len {
        0..=125 => 2,
        126..=0xFFFF => 4,
        _ => 10,
    }
}

/// Appends an unmasked header with FIN set and the shortest length form: a whole message in one frame.
#[inline]
pub fn write_server_header(out: &mut Vec<u8>, opcode: Opcode, payload_len: usize) {
    let (header, len) = encode_header(opcode, payload_len, 0);
    out.extend_from_slice(&header[..len]);
}

/// As [`write_server_header`], for a payload that [`Compressor::compress`](crate::deflate::Compressor::compress) has
/// made: RSV1 is set (RFC 7692 §6). `opcode` is Text or Binary, `payload_len` the compressed length.
#[inline]
pub fn write_compressed_server_header(out: &mut Vec<u8>, opcode: Opcode, payload_len: usize) {
    debug_assert!(matches!(opcode, Opcode::Text | Opcode::Binary), "{opcode:?} frames are never compressed (§6)");
    let (mut header, len) = encode_header(opcode, payload_len, 0);
    header[0] |= RSV1;
    out.extend_from_slice(&header[..len]);
}

/// Appends a masked header with FIN set and the shortest length form; the payload must then be masked with `mask`
/// (`mask::unmask` is its own inverse). For clients: the load generator and tests.
#[inline]
pub fn write_client_header(out: &mut Vec<u8>, opcode: Opcode, payload_len: usize, mask: [u8; 4]) {
    let (header, len) = encode_header(opcode, payload_len, 0x80);
    out.extend_from_slice(&header[..len]);
    out.extend_from_slice(&mask);
}

/// Appends a whole server Close frame with `code` and `reason`.
///
/// A reason that does not fit a control frame is cut at the last character border before byte 123.
pub fn write_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    debug_assert!(!matches!(code, 0..=999 | 1004..=1006 | 1015), "{code} must not stand in a Close frame (§7.4)");
    let mut reason_len = reason.len().min(CONTROL_PAYLOAD_BYTES_MAX - 2);
    while !reason.is_char_boundary(reason_len) {
        reason_len -= 1;
    }
    write_server_header(out, Opcode::Close, 2 + reason_len);
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(&reason.as_bytes()[..reason_len]);
}

/// The unmasked part of a header, and how many of the ten bytes it takes. `mask_bit` is 0x80 or 0.
#[inline]
fn encode_header(opcode: Opcode, payload_len: usize, mask_bit: u8) -> ([u8; 10], usize) {
    let mut header = [0; 10];
    header[0] = 0x80 | opcode.bits();
    let len = server_header_len(payload_len);
    match len {
        2 => header[1] = mask_bit | payload_len as u8,
        4 => {
            header[1] = mask_bit | 126;
            header[2..4].copy_from_slice(&(payload_len as u16).to_be_bytes());
        }
        _ => {
            header[1] = mask_bit | 127;
            header[2..10].copy_from_slice(&(payload_len as u64).to_be_bytes());
        }
    }
    (header, len)
}

/// `N` bytes at `at`; None when they are not all there.
#[inline]
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    const KEY: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
    const OPCODES: [Opcode; 6] =
        [Opcode::Continuation, Opcode::Text, Opcode::Binary, Opcode::Close, Opcode::Ping, Opcode::Pong];

    #[test]
    fn rfc_examples_of_section_5_7() {
        let unmasked = decode_header(b"\x81\x05Hello").unwrap().unwrap();
        assert_eq!(
            unmasked,
            Header { fin: true, opcode: Opcode::Text, compressed: false, mask: None, header_len: 2, payload_len: 5 },
            "single-frame unmasked text"
        );
        let masked = decode_header(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58").unwrap().unwrap();
        assert_eq!(masked, Header { mask: Some(KEY), header_len: 6, ..unmasked });
        let fragment = decode_header(b"\x01\x03Hel").unwrap().unwrap();
        assert!(!fragment.fin && fragment.opcode == Opcode::Text);
        let last = decode_header(b"\x80\x02lo").unwrap().unwrap();
        assert!(last.fin && last.opcode == Opcode::Continuation);
        assert_eq!(decode_header(b"\x82\x7E\x01\x00").unwrap().unwrap().payload_len, 256);
        assert_eq!(decode_header(b"\x82\x7F\0\0\0\0\0\x01\0\0").unwrap().unwrap().payload_len, 65536);
    }

    #[test]
    fn every_length_form_round_trips() {
        for len in [0, 1, 124, 125, 126, 127, 255, 256, 65_534, 65_535, 65_536, 65_537, 1 << 31, usize::MAX >> 1] {
            for opcode in [Opcode::Text, Opcode::Binary, Opcode::Continuation] {
                let mut server = Vec::new();
                write_server_header(&mut server, opcode, len);
                assert_eq!(server.len(), server_header_len(len), "{len}");
                let header = Header {
                    fin: true,
                    opcode,
                    compressed: false,
                    mask: None,
                    header_len: server.len(),
                    payload_len: len as u64,
                };
                assert_eq!(decode_header(&server), Ok(Some(header)));

                let mut client = Vec::new();
                write_client_header(&mut client, opcode, len, KEY);
                let header = Header { mask: Some(KEY), header_len: client.len(), ..header };
                assert_eq!(client.len(), server.len() + 4);
                assert_eq!(decode_header(&client), Ok(Some(header)));
            }
        }
        assert_eq!(
            [125, 126, 65_535, 65_536].map(server_header_len),
            [2, 4, 4, 10],
            "the shortest form changes between these"
        );
    }

    #[test]
    fn a_cut_header_asks_for_more() {
        for len in [5, 300, 70_000] {
            let mut bytes = Vec::new();
            write_client_header(&mut bytes, Opcode::Binary, len, KEY);
            for cut in 0..bytes.len() {
                assert_eq!(decode_header(&bytes[..cut]), Ok(None), "{len} cut at {cut}");
            }
        }
    }

    #[test]
    fn lengths_not_in_shortest_form_are_refused() {
        for len in [0u16, 1, 125] {
            let mut bytes = vec![0x82, 0x80 | 126];
            bytes.extend_from_slice(&len.to_be_bytes());
            assert_eq!(decode_header(&bytes), Err(FrameError::LengthNotMinimal), "{len} in two bytes");
        }
        for len in [0u64, 125, 126, 65_535] {
            let mut bytes = vec![0x82, 0x80 | 127];
            bytes.extend_from_slice(&len.to_be_bytes());
            assert_eq!(decode_header(&bytes), Err(FrameError::LengthNotMinimal), "{len} in eight bytes");
        }
    }

    #[test]
    fn the_top_bit_of_the_length_is_refused() {
        for top in [0x80, 0xFF] {
            let bytes = [0x82, 127, top, 0, 0, 0, 0, 0, 0, 0];
            assert_eq!(decode_header(&bytes), Err(FrameError::LengthTooLarge));
        }
        let largest = [0x82, 127, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF];
        assert_eq!(decode_header(&largest).unwrap().unwrap().payload_len, (1 << 63) - 1);
    }

    #[test]
    fn every_first_byte() {
        for first in 0..=255u8 {
            let expected = match (first & 0x70, first & 0x0F, first & 0x80) {
                (reserved, _, _) if reserved != 0 => Err(FrameError::ReservedBits),
                (_, 3..=7 | 11..=15, _) => Err(FrameError::ReservedOpcode),
                (_, 8.., 0) => Err(FrameError::FragmentedControl),
                _ => Ok(None),
            };
            assert_eq!(decode_header(&[first]), expected, "{first:#04x} alone");
            assert_eq!(decode_header(&[first, 0x80]), expected, "{first:#04x} and the second byte");
            if expected.is_ok() {
                let header = decode_header(&[first, 0]).unwrap().unwrap();
                assert_eq!(header.opcode.bits() | if header.fin { 0x80 } else { 0 }, first);
            }
        }
    }

    #[test]
    fn every_first_byte_with_deflate() {
        for first in 0..=255u8 {
            // RSV1 says something about a message, so it stands where one begins and nowhere else.
            let compressed = matches!(first & 0x7F, 0x41 | 0x42);
            let plain = decode_header(&[first, 0]);
            let expected = match plain {
                Err(FrameError::ReservedBits) if compressed => decode_header(&[first & !0x40, 0])
                    .map(|header| header.map(|header| Header { compressed: true, ..header })),
                _ => plain,
            };
            assert_eq!(decode_header_with(&[first, 0], true), expected, "{first:#04x}");
            assert_eq!(decode_header_with(&[first], true).is_err(), expected.is_err(), "{first:#04x} alone");
            assert_eq!(decode_header_with(&[first, 0], false), plain);
        }
    }

    #[test]
    fn compressed_headers_round_trip() {
        for len in [0, 1, 125, 126, 65_535, 65_536] {
            for opcode in [Opcode::Text, Opcode::Binary] {
                let (mut plain, mut compressed) = (Vec::new(), Vec::new());
                write_server_header(&mut plain, opcode, len);
                write_compressed_server_header(&mut compressed, opcode, len);
                assert_eq!((compressed[0], &compressed[1..]), (plain[0] | 0x40, &plain[1..]));
                let header = decode_header(&plain).unwrap().unwrap();
                let expected = Header { compressed: true, ..header };
                assert_eq!(decode_header_with(&compressed, true), Ok(Some(expected)));
                assert_eq!(decode_header(&compressed), Err(FrameError::ReservedBits));
            }
        }
    }

    #[test]
    fn control_frames_are_short_and_whole() {
        for opcode in OPCODES.into_iter().filter(|opcode| opcode.is_control()) {
            let first = 0x80 | opcode.bits();
            assert!(decode_header(&[first, 0x80 | 125, 1, 2, 3, 4]).unwrap().is_some());
            for len in [126, 127] {
                assert_eq!(decode_header(&[first, len]), Err(FrameError::ControlTooLong));
                assert_eq!(decode_header(&[first, 0x80 | len]), Err(FrameError::ControlTooLong));
            }
            assert_eq!(decode_header(&[opcode.bits()]), Err(FrameError::FragmentedControl));
        }
        assert_eq!(OPCODES.map(Opcode::is_control), [false, false, false, true, true, true]);
    }

    #[test]
    fn close_frames_are_written_and_cut_at_characters() {
        let mut out = Vec::new();
        write_close(&mut out, 1002, "bye");
        assert_eq!(out, b"\x88\x05\x03\xEAbye");

        let ascii: alloc::string::String = core::iter::repeat_n('a', 200).collect();
        out.clear();
        write_close(&mut out, 3001, &ascii);
        assert_eq!((out.len(), out[1]), (127, 125));

        // 62 two-byte characters are 124 bytes: the last one does not fit and must go whole.
        let two_byte: alloc::string::String = core::iter::repeat_n('ä', 62).collect();
        out.clear();
        write_close(&mut out, 3001, &two_byte);
        assert_eq!((out.len(), out[1]), (2 + 2 + 122, 124));
        assert!(core::str::from_utf8(&out[4..]).is_ok());
    }

    #[test]
    fn every_close_reason_fits_its_frame() {
        for &reason in crate::close::CloseReason::ALL {
            let mut out = Vec::new();
            write_close(&mut out, reason.code(), reason.text());
            assert_eq!(&out[4..], reason.text().as_bytes());
        }
    }
}
