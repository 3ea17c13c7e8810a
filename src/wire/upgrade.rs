//! The opening handshake (RFC 6455 §4.2): an HTTP/1.1 upgrade request in, the 101 answer or a refusal out.
//!
//! In: the first bytes of a client connection, from the shard loop. Out: a borrowed [`UpgradeRequest`] to
//! `engine/handshake.rs`, which decides on path, origin and caps; then the answer's bytes appended to its buffer.
//!
//! Invariants
//! - Nothing from the request is copied into an answer but the accept key: no header can be injected.
//! - What another hop could read differently is refused and not guessed: duplicates of a header that decides something,
//!   folded lines, lines that end with a lone LF, a body.
//! - Bytes behind the head belong to the first WebSocket frames. They are never looked at here.

use alloc::vec::Vec;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use sha1::{Digest, Sha1};

use crate::deflate::{Deflate, accept_offer};

/// Header lines of a request. Over: 431. Browsers send about fifteen, proxies in front some more.
pub const HEADERS_MAX: usize = 64;

/// Seconds in the `Retry-After` of 429 and 503. The SDKs back off by themselves; this is for proxies and plain clients.
pub const RETRY_AFTER_S: u32 = 1;

/// Appended to the client's key before hashing (RFC 6455 §1.3).
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Bytes that the decoded `Sec-WebSocket-Key` has (RFC 6455 §4.1).
const NONCE_BYTES: usize = 16;

/// Trailing bits are let pass: not all clients zero the four that a 16-byte value leaves over (the example of RFC 6455
/// §4.1 does not), and only the text of the key counts for the answer.
const KEY_BASE64: GeneralPurpose =
    GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// A valid upgrade request. Borrows the head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpgradeRequest<'a> {
    /// Path of the request target: begins with `/`, ASCII, still percent-encoded.
    pub path: &'a str,
    /// Query of the request target without its `?`; empty when there is none.
    pub query: &'a str,
    /// Host and port that the client asked for: the `Host` header, or the target's own when it is absolute.
    pub host: &'a str,
    /// The `Origin` header; None: the client is no browser.
    pub origin: Option<&'a str>,
    /// The client's key as it was written.
    pub key: [u8; 24],
    /// Whether the client speaks Protobuf: by its subprotocol, or by `format=protobuf` or `cf_protocol=protobuf`.
    pub protobuf: bool,
    /// The subprotocol that the 101 answer echoes.
    pub subprotocol: Option<Subprotocol>,
    /// The client's first offer of permessage-deflate that can be accepted; whether it is, the caller decides.
    pub deflate: Option<Deflate>,
}

/// A value of `Sec-WebSocket-Protocol` that is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subprotocol {
    /// The client protocol in JSON, text frames.
    CentrifugeJson,
    /// The client protocol in Protobuf, binary frames.
    CentrifugeProtobuf,
}

impl Subprotocol {
    /// The token on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Subprotocol::CentrifugeJson => "centrifuge-json",
            Subprotocol::CentrifugeProtobuf => "centrifuge-protobuf",
        }
    }

    /// The subprotocol of a token; they are compared exactly (RFC 6455 §4.1, §11.5).
    fn from_token(token: &[u8]) -> Option<Subprotocol> {
        [Subprotocol::CentrifugeJson, Subprotocol::CentrifugeProtobuf]
            .into_iter()
            .find(|known| known.name().as_bytes() == token)
    }
}

/// Why a request is answered with an HTTP error. `NotFound` and below are decided by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpgradeRefusal {
    /// 400: not a valid upgrade request; the text says what is wrong.
    BadRequest(&'static str),
    /// 405: not GET.
    MethodNotAllowed,
    /// 426: no upgrade to WebSocket asked for, or to another version than 13.
    UpgradeRequired,
    /// 431: more than [`HEADERS_MAX`] header lines, or (decided by the caller) more bytes than a head may have.
    HeadTooLarge,
    /// 404: nothing is served on this path.
    NotFound,
    /// 403: the origin is not allowed.
    Forbidden,
    /// 429: too many connections or handshakes from this address or user.
    TooManyRequests,
    /// 503: the node is draining.
    Unavailable,
    /// 503: more clients come than the node admits in this time.
    Busy,
}

impl UpgradeRefusal {
    /// The HTTP status code.
    pub const fn status(self) -> u16 {
        self.answer().0
    }

    /// What was wrong, in one line: the answer's body and the text for logs.
    pub const fn text(self) -> &'static str {
        self.answer().3
    }

    /// Status code, reason phrase, header lines of its own, body.
    const fn answer(self) -> (u16, &'static str, &'static str, &'static str) {
        match self {
            UpgradeRefusal::BadRequest(what) => (400, "Bad Request", CLOSE, what),
            UpgradeRefusal::MethodNotAllowed => {
                let headers = "Connection: close\r\nAllow: GET\r\n";
                (405, "Method Not Allowed", headers, "a WebSocket upgrade is a GET request")
            }
            UpgradeRefusal::UpgradeRequired => {
                // An Upgrade header must be named in Connection too (RFC 9110 §7.8).
                let headers = "Connection: upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
                let text = "only WebSocket version 13 is spoken here: send \"Upgrade: websocket\" and \
                            \"Sec-WebSocket-Version: 13\" (a proxy in front must pass both on)";
                (426, "Upgrade Required", headers, text)
            }
            UpgradeRefusal::HeadTooLarge => {
                (431, "Request Header Fields Too Large", CLOSE, "the request head is larger than this server takes")
            }
            UpgradeRefusal::NotFound => (404, "Not Found", CLOSE, "no WebSocket endpoint on this path"),
            UpgradeRefusal::Forbidden => (403, "Forbidden", CLOSE, "this origin is not allowed"),
            UpgradeRefusal::TooManyRequests => {
                (429, "Too Many Requests", CLOSE, "too many connections or handshakes; try again later")
            }
            UpgradeRefusal::Unavailable => {
                (503, "Service Unavailable", CLOSE, "this node takes no new connections now; try again later")
            }
            UpgradeRefusal::Busy => {
                (503, "Service Unavailable", CLOSE, "more clients connect than this node admits; try again later")
            }
        }
    }

    /// Whether the answer says when to come back.
    const fn is_temporary(self) -> bool {
        matches!(self, UpgradeRefusal::TooManyRequests | UpgradeRefusal::Unavailable | UpgradeRefusal::Busy)
    }
}

const CLOSE: &str = "Connection: close\r\n";

/// Bytes of the request head at the front of `bytes`, its closing empty line included; None: more bytes are needed.
///
/// `already_scanned` is the length that `bytes` had at the last call (0 at the first), so that a head which comes byte
/// by byte is still scanned once.
pub fn find_head_end(bytes: &[u8], already_scanned: usize) -> Option<usize> {
    const END: &[u8] = b"\r\n\r\n";
    // The end may have begun in what was scanned.
    let from = already_scanned.saturating_sub(END.len() - 1);
    let at = memchr::memmem::find(bytes.get(from..)?, END)?;
    Some(from + at + END.len())
}

/// Reads a request head, as [`find_head_end`] has measured it, by RFC 6455 §4.2.1.
///
/// # Errors
/// `BadRequest`, `MethodNotAllowed`, `UpgradeRequired` or `HeadTooLarge`, to be answered with [`write_refusal`].
pub fn parse_request(head: &[u8]) -> Result<UpgradeRequest<'_>, UpgradeRefusal> {
    use UpgradeRefusal::BadRequest;

    // The parser takes a lone LF for a line end. `find_head_end` and other hops may not, and would then see other lines.
    if memchr::memchr_iter(b'\n', head).any(|at| at == 0 || head[at - 1] != b'\r') {
        return Err(BadRequest("malformed request: a line does not end with CR LF"));
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(len)) if len == head.len() => {}
        Ok(_) => return Err(BadRequest("malformed request: it does not end where its head ends")),
        Err(error) => return Err(malformed(error)),
    }
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(BadRequest("malformed request line"));
    };
    if method != "GET" {
        return Err(UpgradeRefusal::MethodNotAllowed);
    }
    if version != 1 {
        return Err(BadRequest("a WebSocket upgrade needs HTTP/1.1"));
    }

    let found = Headers::read(request.headers)?;
    let target = Target::parse(target)?;
    // An absolute target overrules the Host header, which must be there all the same (RFC 9112 §3.2).
    let host = match found.host {
        Some(host) if is_host(host) => target.authority.unwrap_or(host),
        _ => return Err(BadRequest("missing or malformed Host header")),
    };
    if !found.upgrade_websocket {
        return Err(UpgradeRefusal::UpgradeRequired);
    }
    if !found.connection_upgrade {
        return Err(BadRequest("the Connection header must list \"upgrade\" (a proxy in front must pass it on)"));
    }
    if found.version != Some("13") {
        return Err(UpgradeRefusal::UpgradeRequired);
    }
    let Some(key) = found.key.and_then(nonce) else {
        return Err(BadRequest("Sec-WebSocket-Key must be 16 bytes in base64"));
    };
    let protobuf = match found.subprotocol {
        Some(subprotocol) => subprotocol == Subprotocol::CentrifugeProtobuf,
        None => target.query.split('&').any(|pair| matches!(pair, "format=protobuf" | "cf_protocol=protobuf")),
    };
    Ok(UpgradeRequest {
        path: target.path,
        query: target.query,
        host,
        origin: found.origin,
        key,
        protobuf,
        subprotocol: found.subprotocol,
        deflate: found.deflate,
    })
}

/// The value of `Sec-WebSocket-Accept` for a key (RFC 6455 §4.2.2).
pub fn accept_key(key: &[u8; 24]) -> [u8; 28] {
    let digest: [u8; 20] = Sha1::new().chain_update(key).chain_update(ACCEPT_GUID).finalize().into();
    let mut accept = [0; 28];
    let written = KEY_BASE64.encode_slice(digest, &mut accept);
    debug_assert_eq!(written, Ok(accept.len()), "20 bytes are always 28 in base64");
    accept
}

/// Appends the 101 answer; WebSocket frames follow it directly. `deflate`: the offer that was accepted, either
/// [`UpgradeRequest::deflate`] or None.
pub fn write_accept(out: &mut Vec<u8>, request: &UpgradeRequest<'_>, deflate: Option<Deflate>) {
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
    );
    out.extend_from_slice(&accept_key(&request.key));
    if let Some(subprotocol) = request.subprotocol {
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.extend_from_slice(subprotocol.name().as_bytes());
    }
    if let Some(deflate) = deflate {
        out.extend_from_slice(b"\r\nSec-WebSocket-Extensions: ");
        deflate.write_answer(out);
    }
    out.extend_from_slice(b"\r\n\r\n");
}

/// Appends the whole answer to a refused request. The connection is closed behind it.
pub fn write_refusal(out: &mut Vec<u8>, refusal: UpgradeRefusal) {
    let (status, phrase, headers, body) = refusal.answer();
    out.extend_from_slice(b"HTTP/1.1 ");
    write_decimal(out, u32::from(status));
    out.push(b' ');
    out.extend_from_slice(phrase.as_bytes());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(headers.as_bytes());
    if refusal.is_temporary() {
        out.extend_from_slice(b"Retry-After: ");
        write_decimal(out, RETRY_AFTER_S);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: ");
    write_decimal(out, body.len() as u32 + 1);
    out.extend_from_slice(b"\r\n\r\n");
    out.extend_from_slice(body.as_bytes());
    out.push(b'\n');
}

/// The headers that decide something.
#[derive(Default)]
struct Headers<'a> {
    host: Option<&'a str>,
    origin: Option<&'a str>,
    key: Option<&'a str>,
    version: Option<&'a str>,
    upgrade_websocket: bool,
    connection_upgrade: bool,
    subprotocol: Option<Subprotocol>,
    deflate: Option<Deflate>,
}

impl<'a> Headers<'a> {
    fn read(lines: &[httparse::Header<'a>]) -> Result<Headers<'a>, UpgradeRefusal> {
        use UpgradeRefusal::BadRequest;
        let mut found = Headers::default();
        for line in lines {
            let is = |name: &str| line.name.eq_ignore_ascii_case(name);
            if is("Host") {
                once(&mut found.host, line.value, "Host must come once and be plain text")?;
            } else if is("Origin") {
                once(&mut found.origin, line.value, "Origin must come once and be plain text")?;
            } else if is("Sec-WebSocket-Key") {
                once(&mut found.key, line.value, "Sec-WebSocket-Key must come once and be plain text")?;
            } else if is("Sec-WebSocket-Version") {
                once(&mut found.version, line.value, "Sec-WebSocket-Version must come once and be plain text")?;
            } else if is("Upgrade") {
                found.upgrade_websocket |= tokens(line.value).any(|token| token.eq_ignore_ascii_case(b"websocket"));
            } else if is("Connection") {
                found.connection_upgrade |= tokens(line.value).any(|token| token.eq_ignore_ascii_case(b"upgrade"));
            } else if is("Sec-WebSocket-Protocol") {
                // The client lists what it prefers first (§4.1).
                found.subprotocol = found.subprotocol.or_else(|| tokens(line.value).find_map(Subprotocol::from_token));
            } else if is("Sec-WebSocket-Extensions") {
                // Several lines are one list (RFC 6455 §9.1), and the client lists what it prefers first.
                found.deflate = found.deflate.or_else(|| accept_offer(line.value));
            } else if is("Transfer-Encoding") || (is("Content-Length") && line.value != b"0") {
                // Its bytes would be taken for frames.
                return Err(BadRequest("an upgrade request must have no body"));
            }
        }
        Ok(found)
    }
}

/// The request target, taken apart.
struct Target<'a> {
    /// Host and port of an absolute target.
    authority: Option<&'a str>,
    path: &'a str,
    query: &'a str,
}

impl<'a> Target<'a> {
    /// Origin form (`/path?query`), or absolute form (`http://host/path?query`), which a server must take (RFC 9112
    /// §3.2.2, RFC 6455 §4.2.1).
    fn parse(target: &'a str) -> Result<Target<'a>, UpgradeRefusal> {
        let malformed = Err(UpgradeRefusal::BadRequest("malformed request target"));
        if target.bytes().any(|byte| !byte.is_ascii_graphic() || byte == b'#') {
            return malformed;
        }
        let (authority, local) = match target.split_once("://") {
            Some((scheme, rest)) if !scheme.contains(['/', '?']) => {
                if !["http", "https", "ws", "wss"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
                    return malformed;
                }
                let (authority, local) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
                if !is_host(authority) {
                    return malformed;
                }
                (Some(authority), local)
            }
            _ => (None, target),
        };
        let (path, query) = local.split_once('?').unwrap_or((local, ""));
        match path {
            // Only an absolute target may leave the path out.
            "" if authority.is_some() => Ok(Target { authority, path: "/", query }),
            _ if path.starts_with('/') => Ok(Target { authority, path, query }),
            _ => malformed,
        }
    }
}

/// Takes the value of a header that may stand once only.
fn once<'a>(slot: &mut Option<&'a str>, value: &'a [u8], refusal: &'static str) -> Result<(), UpgradeRefusal> {
    match core::str::from_utf8(value) {
        Ok(text) if slot.is_none() && text.is_ascii() => {
            *slot = Some(text.trim_matches([' ', '\t']));
            Ok(())
        }
        _ => Err(UpgradeRefusal::BadRequest(refusal)),
    }
}

/// The elements of a comma-separated header value.
fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

/// Whether it can be a host with an optional port; the caller compares it, so its parts are not taken apart here.
fn is_host(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'?' | b'#' | b'@' | b',' | b'\\'))
}

/// The key as written, if it is 16 bytes in base64.
fn nonce(text: &str) -> Option<[u8; 24]> {
    let key: [u8; 24] = text.as_bytes().try_into().ok()?;
    // The decoder wants room for whole groups of three bytes.
    let mut decoded = [0; 18];
    (KEY_BASE64.decode_slice(key, &mut decoded) == Ok(NONCE_BYTES)).then_some(key)
}

/// The refusal for bytes that are no HTTP/1.1 request.
fn malformed(error: httparse::Error) -> UpgradeRefusal {
    use httparse::Error;
    UpgradeRefusal::BadRequest(match error {
        Error::TooManyHeaders => return UpgradeRefusal::HeadTooLarge,
        Error::HeaderName => "malformed header name",
        Error::HeaderValue => "malformed header value",
        Error::NewLine => "malformed line end",
        Error::Token => "malformed request line",
        Error::Version => "a WebSocket upgrade needs HTTP/1.1",
        Error::Status => "malformed request line",
    })
}

fn write_decimal(out: &mut Vec<u8>, number: u32) {
    let mut digits = [0; 10];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::string::String;
    use alloc::vec;

    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    /// The request of RFC 6455 §1.3.
    const RFC: &str = "GET /chat HTTP/1.1\r\n\
        Host: server.example.com\r\n\
        Upgrade: websocket\r\n\
        Connection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Origin: http://example.com\r\n\
        Sec-WebSocket-Protocol: chat, superchat\r\n\
        Sec-WebSocket-Version: 13\r\n\r\n";

    /// A minimal request with one line replaced; `line` names the header, an empty `with` removes it.
    fn replaced(line: &str, with: &str) -> String {
        let mut head = String::new();
        for (name, whole) in [
            ("GET", "GET /connection/websocket HTTP/1.1"),
            ("Host", "Host: h:8000"),
            ("Upgrade", "Upgrade: websocket"),
            ("Connection", "Connection: Upgrade"),
            ("Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
            ("Version", "Sec-WebSocket-Version: 13"),
        ] {
            let text = if name == line { with } else { whole };
            if !text.is_empty() {
                head.push_str(text);
                head.push_str("\r\n");
            }
        }
        if line == "more" {
            head.push_str(with);
            head.push_str("\r\n");
        }
        head.push_str("\r\n");
        head
    }

    fn parse_error(head: &str) -> UpgradeRefusal {
        parse_request(head.as_bytes()).expect_err(head)
    }

    #[test]
    fn rfc_example() {
        let request = parse_request(RFC.as_bytes()).unwrap();
        assert_eq!(
            request,
            UpgradeRequest {
                path: "/chat",
                query: "",
                host: "server.example.com",
                origin: Some("http://example.com"),
                key: KEY.as_bytes().try_into().unwrap(),
                protobuf: false,
                subprotocol: None,
                deflate: None,
            }
        );
        let mut out = Vec::new();
        write_accept(&mut out, &request, None);
        assert_eq!(
            core::str::from_utf8(&out).unwrap(),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        );
    }

    #[test]
    fn head_end_is_found_wherever_it_is_cut() {
        let bytes = [RFC.as_bytes(), b"\x81\x80abcd"].concat();
        assert_eq!(find_head_end(&bytes, 0), Some(RFC.len()), "frames behind the head are not looked at");
        for scanned in 0..RFC.len() {
            assert_eq!(find_head_end(&bytes[..scanned], 0), None);
            assert_eq!(find_head_end(&bytes, scanned), Some(RFC.len()), "{scanned}");
        }
        for scanned in 1..=RFC.len() {
            let end = find_head_end(&bytes[..scanned], scanned - 1);
            assert_eq!(end, (scanned == RFC.len()).then_some(scanned));
        }
        assert_eq!(find_head_end(b"\r\n\r", 0), None);
        assert_eq!(find_head_end(b"", 0), None);
        assert_eq!(find_head_end(b"ab", 10), None, "a caller's wrong mark is no panic");
    }

    #[test]
    fn good_requests() {
        for (line, with) in [
            ("Upgrade", "upgrade: WebSocket"),
            ("Upgrade", "Upgrade: h2c, websocket"),
            ("Upgrade", "Upgrade: h2c\r\nUpgrade: websocket"),
            ("Connection", "Connection: keep-alive, Upgrade"),
            ("Connection", "CONNECTION: UPGRADE"),
            ("Connection", "Connection: keep-alive\r\nConnection: upgrade"),
            ("Version", "Sec-WebSocket-Version:13"),
            ("Version", "Sec-WebSocket-Version:  13\t"),
            ("Key", "sec-websocket-key: AQIDBAUGBwgJCgsMDQ4PEC=="),
            ("Host", "Host: [::1]:8000"),
            ("more", "Content-Length: 0"),
            ("more", "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"),
            ("more", "Cookie: a=b\r\nCookie: c=d"),
            ("more", "User-Agent: caf\u{e9}"),
        ] {
            let head = replaced(line, with);
            assert!(parse_request(head.as_bytes()).is_ok(), "{head}");
        }
    }

    #[test]
    fn bad_requests() {
        for (line, with) in [
            ("GET", "GET /connection/websocket HTTP/1.0"),
            ("GET", "GET /connection/websocket HTTP/2.0"),
            ("GET", "GET /connection/websocket"),
            ("GET", "GET  HTTP/1.1"),
            ("GET", "GET connection/websocket HTTP/1.1"),
            ("GET", "GET * HTTP/1.1"),
            ("GET", "GET /a#b HTTP/1.1"),
            ("GET", "GET /caf\u{e9} HTTP/1.1"),
            ("GET", "GET ftp://h/a HTTP/1.1"),
            ("GET", "GET http:///a HTTP/1.1"),
            ("GET", "GET http://u@h/a HTTP/1.1"),
            ("Host", ""),
            ("Host", "Host:"),
            ("Host", "Host: a\r\nHost: a"),
            ("Host", "Host: a b"),
            ("Host", "Host: caf\u{e9}"),
            ("Connection", ""),
            ("Connection", "Connection: keep-alive"),
            ("Connection", "Connection: upgraded"),
            ("Key", ""),
            ("Key", "Sec-WebSocket-Key:"),
            ("Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ"),
            ("Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=a"),
            ("Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQAA"),
            ("Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZ!=="),
            ("Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
            ("Version", "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 13"),
            ("more", "Origin: http://a\r\nOrigin: http://a"),
            ("more", "Content-Length: 5"),
            ("more", "Transfer-Encoding: chunked"),
            ("more", "X-Folded: a\r\n b"),
            ("more", "X Space: a"),
            ("more", "X-Space : a"),
            ("more", "X-Nul: \0"),
            ("more", ": a"),
        ] {
            let head = replaced(line, with);
            let refusal = parse_error(&head);
            assert!(matches!(refusal, UpgradeRefusal::BadRequest(_)), "{head}: {refusal:?}");
        }
        assert!(matches!(parse_error("\r\n\r\n"), UpgradeRefusal::BadRequest(_)));

        // Where it ends, and where its lines end, must be beyond doubt.
        let good = replaced("more", "X: a");
        for bad in [
            good.replacen("\r\n", "\n", 1),
            good.replacen("\r\n", "\n\n", 1),
            good.replace("\r\n", "\n"),
            good.replace("X: a\r\n\r\n", "X: a\n\r\n"),
            good[..good.len() - 2].into(),
            format!("{good}{good}"),
            format!("\n{good}"),
        ] {
            assert!(matches!(parse_error(&bad), UpgradeRefusal::BadRequest(_)), "{bad:?}");
        }
    }

    #[test]
    fn other_methods_are_405() {
        for method in ["POST", "HEAD", "OPTIONS", "get", "CONNECT"] {
            let head = replaced("GET", &format!("{method} /connection/websocket HTTP/1.1"));
            assert_eq!(parse_error(&head), UpgradeRefusal::MethodNotAllowed);
        }
    }

    #[test]
    fn what_is_no_websocket_13_is_426() {
        for (line, with) in [
            ("Upgrade", ""),
            ("Upgrade", "Upgrade: h2c"),
            ("Upgrade", "Upgrade: websockets"),
            ("Version", ""),
            ("Version", "Sec-WebSocket-Version: 8"),
            ("Version", "Sec-WebSocket-Version: 013"),
            ("Version", "Sec-WebSocket-Version: 13, 8"),
        ] {
            assert_eq!(parse_error(&replaced(line, with)), UpgradeRefusal::UpgradeRequired, "{with}");
        }
    }

    #[test]
    fn header_lines_are_bounded() {
        let lines = |count: usize| vec!["X: y"; count].join("\r\n");
        assert!(parse_request(replaced("more", &lines(HEADERS_MAX - 5)).as_bytes()).is_ok());
        assert_eq!(parse_error(&replaced("more", &lines(HEADERS_MAX - 4))), UpgradeRefusal::HeadTooLarge);
    }

    #[test]
    fn targets() {
        for (target, path, query, host) in [
            ("/", "/", "", "h:8000"),
            ("/a/b?c=d&e", "/a/b", "c=d&e", "h:8000"),
            ("/a?b?c", "/a", "b?c", "h:8000"),
            ("/a?u=http://x/y", "/a", "u=http://x/y", "h:8000"),
            ("/a%20b", "/a%20b", "", "h:8000"),
            ("http://other/a?b", "/a", "b", "other"),
            ("WSS://other:1", "/", "", "other:1"),
            ("ws://other?b", "/", "b", "other"),
        ] {
            let head = replaced("GET", &format!("GET {target} HTTP/1.1"));
            let request = parse_request(head.as_bytes()).unwrap();
            assert_eq!((request.path, request.query, request.host), (path, query, host), "{target}");
        }
    }

    #[test]
    fn encoding_and_subprotocol() {
        use Subprotocol::{CentrifugeJson, CentrifugeProtobuf};
        for (target, offered, protobuf, subprotocol) in [
            ("/c", "", false, None),
            ("/c", "Sec-WebSocket-Protocol: centrifuge-protobuf", true, Some(CentrifugeProtobuf)),
            ("/c", "Sec-WebSocket-Protocol: centrifuge-json", false, Some(CentrifugeJson)),
            ("/c", "Sec-WebSocket-Protocol: x,centrifuge-json , centrifuge-protobuf", false, Some(CentrifugeJson)),
            (
                "/c",
                "Sec-WebSocket-Protocol: x\r\nSec-WebSocket-Protocol: centrifuge-protobuf",
                true,
                Some(CentrifugeProtobuf),
            ),
            ("/c", "Sec-WebSocket-Protocol: Centrifuge-Protobuf", false, None),
            ("/c", "Sec-WebSocket-Protocol: chat", false, None),
            ("/c?format=protobuf", "", true, None),
            ("/c?a=b&cf_protocol=protobuf", "", true, None),
            ("/c?xformat=protobuf", "", false, None),
            ("/c?format=json", "", false, None),
            // What was negotiated holds: the client will read what the echoed subprotocol says.
            ("/c?format=protobuf", "Sec-WebSocket-Protocol: centrifuge-json", false, Some(CentrifugeJson)),
        ] {
            let more = if offered.is_empty() { "X: y" } else { offered };
            let head = replaced("more", more).replace("/connection/websocket", target);
            let request = parse_request(head.as_bytes()).unwrap();
            assert_eq!((request.protobuf, request.subprotocol), (protobuf, subprotocol), "{target} {offered}");

            let mut out = Vec::new();
            write_accept(&mut out, &request, request.deflate);
            let answer = String::from_utf8(out).unwrap();
            let echoed = answer.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Protocol: "));
            assert_eq!(echoed, subprotocol.map(Subprotocol::name), "{answer}");
            assert!(answer.ends_with("\r\n\r\n") && !answer.contains("Extensions"));
        }
    }

    #[test]
    fn extensions_that_were_offered_are_answered() {
        const ANSWER: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        for (offered, answer) in [
            ("X: y", None),
            ("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits", Some(ANSWER)),
            ("sec-websocket-extensions: x, permessage-deflate", Some(ANSWER)),
            ("Sec-WebSocket-Extensions: x\r\nSec-WebSocket-Extensions: permessage-deflate", Some(ANSWER)),
            (
                "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=9\r\n\
                 Sec-WebSocket-Extensions: permessage-deflate\r\n\
                 Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=15",
                Some(ANSWER),
            ),
            // What is malformed is not accepted, and refuses nobody.
            ("Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=\"", None),
            ("Sec-WebSocket-Extensions: caf\u{e9}; permessage-deflate", None),
            ("Sec-WebSocket-Extensions:", None),
        ] {
            let head = replaced("more", offered);
            let request = parse_request(head.as_bytes()).unwrap();
            assert_eq!(request.deflate.is_some(), answer.is_some(), "{offered}");
            for (deflate, answer) in [(request.deflate, answer), (None, None)] {
                let mut out = Vec::new();
                write_accept(&mut out, &request, deflate);
                let text = String::from_utf8(out).unwrap();
                let written: Vec<_> =
                    text.lines().filter_map(|line| line.strip_prefix("Sec-WebSocket-Extensions: ")).collect();
                assert_eq!(written, answer.into_iter().collect::<Vec<_>>(), "{offered}");
                assert!(text.ends_with("\r\n\r\n"));
            }
        }
    }

    #[test]
    fn refusals_are_whole_http_answers() {
        for (refusal, status, header) in [
            (UpgradeRefusal::BadRequest("why"), 400, "Connection: close"),
            (UpgradeRefusal::Forbidden, 403, "Connection: close"),
            (UpgradeRefusal::NotFound, 404, "Connection: close"),
            (UpgradeRefusal::MethodNotAllowed, 405, "Allow: GET"),
            (UpgradeRefusal::UpgradeRequired, 426, "Sec-WebSocket-Version: 13"),
            (UpgradeRefusal::TooManyRequests, 429, "Retry-After: 1"),
            (UpgradeRefusal::HeadTooLarge, 431, "Connection: close"),
            (UpgradeRefusal::Unavailable, 503, "Retry-After: 1"),
            (UpgradeRefusal::Busy, 503, "Retry-After: 1"),
        ] {
            let mut out = Vec::new();
            write_refusal(&mut out, refusal);
            let mut headers = [httparse::EMPTY_HEADER; 8];
            let mut answer = httparse::Response::new(&mut headers);
            let httparse::Status::Complete(head_len) = answer.parse(&out).unwrap() else { panic!("{refusal:?}") };
            assert_eq!((answer.code, refusal.status()), (Some(status), status));

            let text = core::str::from_utf8(&out).unwrap();
            assert!(text.contains(&format!("\r\n{header}\r\n")), "{text}");
            let length = text.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
            assert_eq!(length.parse(), Ok(out.len() - head_len));
            assert_eq!(text[head_len..].trim_end(), refusal.text());
            assert!(text.contains("close\r\n") && refusal.text().is_ascii() && !refusal.text().contains('\n'));
        }
        let mut out = Vec::new();
        write_refusal(&mut out, UpgradeRefusal::UpgradeRequired);
        assert!(String::from_utf8(out).unwrap().contains("Connection: upgrade, close\r\nUpgrade: websocket\r\n"));
    }
}
