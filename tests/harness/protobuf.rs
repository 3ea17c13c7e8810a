//! Just enough Protobuf to speak the client protocol from a test: fields written and found by number.
//!
//! In: field numbers and values. Out: bytes of a message, or the fields of one. No generated code and nothing shared
//! with the server's codec.

/// A field's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 2.
    Bytes(&'a [u8]),
}

/// Appends a varint.
pub fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a number field; zero is left out, as proto3 does.
pub fn write_number(out: &mut Vec<u8>, field: u32, value: u64) {
    if value != 0 {
        write_varint(out, u64::from(field) << 3);
        write_varint(out, value);
    }
}

/// Appends a string, bytes or message field, empty ones too.
pub fn write_bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    write_varint(out, (u64::from(field) << 3) | 2);
    write_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// Takes a varint from the front.
pub fn read_varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().expect("a whole varint");
        *bytes = rest;
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return value;
        }
    }
    panic!("a varint of more than ten bytes");
}

/// Takes `len` bytes that a varint announces.
pub fn read_bytes<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let len = read_varint(bytes) as usize;
    assert!(len <= bytes.len(), "{len} bytes announced, {} there", bytes.len());
    let (value, rest) = bytes.split_at(len);
    *bytes = rest;
    value
}

/// The fields of a message, in order.
pub fn fields(mut message: &[u8]) -> Vec<(u32, Value<'_>)> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let tag = read_varint(&mut message);
        let value = match tag & 7 {
            0 => Value::Varint(read_varint(&mut message)),
            2 => Value::Bytes(read_bytes(&mut message)),
            other => panic!("wire type {other} is not used by the client protocol"),
        };
        fields.push(((tag >> 3) as u32, value));
    }
    fields
}

/// The number in `field`, or 0.
pub fn number(fields: &[(u32, Value<'_>)], field: u32) -> u64 {
    let hit = fields.iter().rev().find_map(|(n, value)| match value {
        Value::Varint(value) if *n == field => Some(*value),
        _ => None,
    });
    hit.unwrap_or(0)
}

/// The bytes in `field`, if it is there.
pub fn bytes<'a>(fields: &[(u32, Value<'a>)], field: u32) -> Option<&'a [u8]> {
    all(fields, field).last()
}

/// The text in `field`, or "".
pub fn text(fields: &[(u32, Value<'_>)], field: u32) -> String {
    String::from_utf8(bytes(fields, field).unwrap_or_default().to_vec()).expect("a string field is UTF-8")
}

/// Every occurrence of a repeated message field.
pub fn all<'a, 'f>(fields: &'f [(u32, Value<'a>)], field: u32) -> impl Iterator<Item = &'a [u8]> + 'f {
    fields.iter().filter_map(move |(n, value)| match value {
        Value::Bytes(bytes) if *n == field => Some(*bytes),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut out = Vec::new();
        write_number(&mut out, 1, 300);
        write_number(&mut out, 2, 0);
        write_bytes(&mut out, 5, b"");
        write_bytes(&mut out, 6, b"abc");
        assert_eq!(out, [8, 0xAC, 2, 0x2A, 0, 0x32, 3, b'a', b'b', b'c']);
        let read = fields(&out);
        assert_eq!((number(&read, 1), number(&read, 2)), (300, 0));
        assert_eq!((bytes(&read, 5), bytes(&read, 7)), (Some(&b""[..]), None));
        assert_eq!(text(&read, 6), "abc");
    }
}
