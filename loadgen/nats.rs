//! The NATS client protocol over WebSocket, as far as a fan-out needs it, so that nats-server can stand beside Ringway.
//!
//! In: channel names, payloads, received messages. Out: the lines of commands; an [`Item`] for each line of the server.
//! Invariant: the server's frames hold whole protocol messages; anything else is an error and never a guess. Nothing
//! is allocated per received message.
use std::io::Write as _;

use memchr::memmem;

use crate::protocol::{Item, Reply};

/// Answers a ping.
pub const PONG: &[u8] = b"PONG\r\n";
/// The first thing that a client says. `verbose` off: only what fails is answered.
const CONNECT: &[u8] = b"CONNECT {\"verbose\":false,\"pedantic\":false,\"echo\":false}\r\n";

/// What a subscriber says at first; the one answer is a pong, which comes when all of it was done.
pub fn opening(channels: impl Iterator<Item = String>) -> Vec<u8> {
    let mut out = CONNECT.to_vec();
    for (number, channel) in channels.enumerate() {
        out.extend_from_slice(format!("SUB {channel} {}\r\n", number + 1).as_bytes());
    }
    out.extend_from_slice(b"PING\r\n");
    out
}

/// What a publisher says at first.
pub fn introduction() -> &'static [u8] {
    CONNECT
}

/// Appends the command that publishes `payload`.
pub fn write_publish(out: &mut Vec<u8>, channel: &str, payload: &[u8]) {
    // Writing to memory does not fail.
    let _ = write!(out, "PUB {channel} {}\r\n", payload.len());
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

/// The next item at the front of a message, and how many bytes it takes.
pub fn next_item(message: &[u8]) -> Result<(Item<'_>, usize), String> {
    let end = memmem::find(message, b"\r\n").ok_or("a NATS line is cut")?;
    let (line, start) = (&message[..end], end + 2);
    if line == b"PING" {
        return Ok((Item::Ping, start));
    }
    if !line.starts_with(b"MSG ") {
        return Ok((Item::Message(line), start));
    }
    let length = line.rsplit(|byte| *byte == b' ').next().and_then(|digits| std::str::from_utf8(digits).ok());
    let length: usize = length.and_then(|digits| digits.parse().ok()).ok_or("a NATS message without length")?;
    let payload = message.get(start..).and_then(|rest| rest.get(..length)).ok_or("a NATS message is cut")?;
    match message.get(start + length..start + length + 2) {
        Some(b"\r\n") => Ok((Item::Message(payload), start + length + 2)),
        _ => Err("a NATS message is cut".to_string()),
    }
}

/// What a line that is no message says.
pub fn reply(line: &[u8]) -> Reply {
    if line == b"PONG" {
        Reply::Done { pong: true }
    } else if line.starts_with(b"-ERR") {
        Reply::Refused(String::from_utf8_lossy(line).into_owned())
    } else {
        Reply::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_apart() {
        let mut rest: &[u8] = b"INFO {}\r\nMSG c0 1 4\r\na\r\nb\r\nPING\r\nPONG\r\n-ERR 'no'\r\n";
        let mut items = Vec::new();
        while !rest.is_empty() {
            let (item, used) = next_item(rest).expect("well-formed");
            items.push(item);
            rest = &rest[used..];
        }
        let message = |text: &'static str| Item::Message(text.as_bytes());
        let wanted = [message("INFO {}"), message("a\r\nb"), Item::Ping, message("PONG"), message("-ERR 'no'")];
        assert_eq!(items, wanted);
        assert_eq!(reply(b"PONG"), Reply::Done { pong: true });
        assert_eq!(reply(b"INFO {}"), Reply::Other);
        assert_eq!(reply(b"-ERR 'no'"), Reply::Refused("-ERR 'no'".to_string()));
        for cut in [&b"MSG c0 1 4\r\nabc"[..], b"MSG c0 1 4\r\nabcd", b"MSG c0 1 x\r\n", b"PIN"] {
            assert!(next_item(cut).is_err(), "{}", String::from_utf8_lossy(cut));
        }
    }

    #[test]
    fn what_is_published_is_what_the_server_is_told() {
        let mut out = Vec::new();
        write_publish(&mut out, "c0", b"ab");
        assert_eq!(out, b"PUB c0 2\r\nab\r\n");
        let opening = opening(["c0".to_string(), "c1".to_string()].into_iter());
        assert!(opening.ends_with(b"\r\nSUB c0 1\r\nSUB c1 2\r\nPING\r\n"), "{}", String::from_utf8_lossy(&opening));
    }
}
