//! Plain HTTP/1.1 over one connection per request, for the control port and for raw upgrade requests.
//!
//! In: an address and the parts of a request. Out: status, headers and body, read to the end of the connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::PATIENCE;

/// An HTTP response.
#[derive(Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Status line and header lines.
    pub head: String,
    /// What follows the head.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The value of a header, its name in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// GET.
pub fn get(address: SocketAddr, path: &str) -> Response {
    request(address, "GET", path, &[], b"")
}

/// POST with a JSON body; `key` goes into `X-API-Key`.
pub fn post_json(address: SocketAddr, path: &str, key: Option<&str>, body: &str) -> Response {
    let mut headers = vec![("Content-Type", "application/json")];
    headers.extend(key.map(|key| ("X-API-Key", key)));
    request(address, "POST", path, &headers, body.as_bytes())
}

/// Any request; the connection closes behind it.
pub fn request(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if method != "GET" {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    raw(address, &[head.as_bytes(), body].concat())
}

/// Sends bytes as they are and reads the answer to its end. The peer must close.
pub fn raw(address: SocketAddr, bytes: &[u8]) -> Response {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    // A refusal may come, and the connection end, while a large request is still being written.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let end = stream.read_to_end(&mut answer);
    parse(&answer).unwrap_or_else(|| {
        panic!("no HTTP answer ({end:?}) but {:?}", String::from_utf8_lossy(&answer[..answer.len().min(200)]))
    })
}

/// Splits a whole answer; none when there is no full head.
pub fn parse(answer: &[u8]) -> Option<Response> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let body = answer[end + 4..].to_vec();
    let response = Response { status, head, body };
    let chunked = response.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
    if chunked {
        let body = dechunk(&response.body)?;
        return Some(Response { body, ..response });
    }
    Some(response)
}

fn dechunk(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let line = body.windows(2).position(|window| window == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&body[..line]).ok()?.trim(), 16).ok()?;
        body = &body[line + 2..];
        if size == 0 {
            return Some(out);
        }
        out.extend_from_slice(body.get(..size)?);
        body = body.get(size + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_chunked_bodies() {
        let plain = parse(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").expect("parses");
        assert_eq!((plain.status, plain.text().as_str(), plain.header("content-length")), (200, "hi", Some("2")));
        let chunked =
            b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\nA\r\n0123456789\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).expect("parses").text(), "hi0123456789");
        assert!(parse(b"HTTP/1.1 200 OK\r\n").is_none());
    }
}
