//! Fuzz body: the HTTP/1.1 upgrade request of an untrusted client, cut into pieces.
//!
//! In: `[piece length, bytes...]`. Claim: no input panics, the head's end is found at the same place however it was
//! cut, and every answer is one well-formed head that holds nothing of the request.

use ringway_wire::upgrade::{UpgradeRefusal, find_head_end, parse_request, write_accept, write_refusal};

/// Takes one input.
pub fn run(data: &[u8]) {
    let [piece, bytes @ ..] = data else { return };
    let end = find_head_end(bytes, 0);
    assert_eq!(end, find_in_pieces(bytes, (*piece as usize).max(1)));

    // Without an end the bytes are parsed too: the parser must not rely on its caller.
    let head = &bytes[..end.unwrap_or(bytes.len())];
    let mut answer = Vec::new();
    match parse_request(head) {
        Ok(request) => {
            assert!(end.is_some(), "accepted without an end");
            assert!(request.path.starts_with('/') && request.path.is_ascii() && !request.path.contains('?'));
            assert!(request.query.bytes().all(|byte| byte.is_ascii_graphic()));
            assert!(!request.host.is_empty() && request.host.bytes().all(|byte| byte.is_ascii_graphic()));
            assert!(request.origin.is_none_or(|origin| origin.is_ascii() && !origin.contains(['\r', '\n'])));
            for deflate in [None, request.deflate] {
                answer.clear();
                write_accept(&mut answer, &request, deflate);
                let lines = 4 + usize::from(request.subprotocol.is_some()) + usize::from(deflate.is_some());
                check_answer(&answer, 101, Some(lines));
                let end = find_head_end(&answer, 0);
                assert_eq!(end, Some(answer.len()), "bytes behind the head would be read as frames");
            }
        }
        Err(refusal) => {
            let by_parser = matches!(
                refusal,
                UpgradeRefusal::BadRequest(_)
                    | UpgradeRefusal::MethodNotAllowed
                    | UpgradeRefusal::UpgradeRequired
                    | UpgradeRefusal::HeadTooLarge
            );
            assert!(by_parser, "{refusal:?} is not the parser's to give");
            write_refusal(&mut answer, refusal);
            check_answer(&answer, refusal.status(), None);
        }
    }
}

/// The head's end as a connection finds it, which gets `piece_bytes` at a time.
fn find_in_pieces(bytes: &[u8], piece_bytes: usize) -> Option<usize> {
    let mut scanned = 0;
    while scanned < bytes.len() {
        let have = (scanned + piece_bytes).min(bytes.len());
        if let Some(end) = find_head_end(&bytes[..have], scanned) {
            return Some(end);
        }
        scanned = have;
    }
    None
}

/// `lines`: how many lines the head has, its status line included.
fn check_answer(answer: &[u8], status: u16, lines: Option<usize>) {
    let end = find_head_end(answer, 0).expect("an answer has an end");
    let head = core::str::from_utf8(&answer[..end]).expect("an answer is text");
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    let count = head.trim_end_matches("\r\n").split("\r\n").count();
    assert!(lines.is_none_or(|lines| lines == count), "{head}");
}
