//! permessage-deflate against the WebSocket clients of other projects: node's `ws` and Python's `websockets`, which the
//! published SDKs stand on.
//!
//! Set-up: a server of a few lines around `ringway-wire` that answers each message with the same, compressed where that
//! was negotiated; scripts of `tests/sdk` (installed by `make sdk`) that send messages of all sizes and compare.
//! Claim: what they offer by default is accepted, with a window they can live with; they read what the compressor makes,
//! and their messages are inflated, in fragments too.
#![allow(clippy::disallowed_methods, reason = "tests measure real time and start real threads")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use ringway_tests::server::root;
use ringway_wire::deflate::{Compressor, Inflater};
use ringway_wire::frame::{Opcode, write_close, write_server_header};
use ringway_wire::message::{Event, Fragments, MessageKind, MessageLimits, step_with};
use ringway_wire::upgrade::{find_head_end, parse_request, write_accept};

/// Messages that were inflated, and frames that went out compressed, by all connections of the process.
static INFLATED: AtomicU64 = AtomicU64::new(0);
static COMPRESSED: AtomicU64 = AtomicU64::new(0);

#[test]
fn foreign_clients_read_and_write_compressed_messages() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || echo(stream));
        }
    });
    for (program, script) in [("node", "deflate_peer.mjs"), (".venv/bin/python", "deflate_peer.py")] {
        let (inflated, compressed) = (INFLATED.load(Ordering::Relaxed), COMPRESSED.load(Ordering::Relaxed));
        let folder = root().join("tests").join("sdk");
        assert!(folder.join("node_modules/ws").exists(), "tests/sdk is not installed: run `make sdk`");
        let program = if program.starts_with('.') { folder.join(program) } else { PathBuf::from(program) };
        let output = Command::new(program)
            .args([script, &format!("ws://{address}/")])
            .current_dir(&folder)
            .output()
            .expect("the script starts");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{script}:\n{said}{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.contains("COMPLETE"), "{script}:\n{said}");
        assert!(INFLATED.load(Ordering::Relaxed) > inflated + 10, "{script} sent next to nothing compressed");
        assert!(COMPRESSED.load(Ordering::Relaxed) > compressed + 10, "{script} got next to nothing compressed");
    }
}

/// One connection, until its end. A panic here closes it, and the script fails.
fn echo(mut stream: TcpStream) {
    stream.set_nodelay(true).expect("a TCP option");
    let limits = MessageLimits {
        message_bytes_max: 4 << 20,
        inflate_ratio_max: 1032,
        utf8: |bytes| std::str::from_utf8(bytes).is_ok(),
    };
    let (mut tail, mut buffer, mut out) = (Vec::new(), vec![0; 64 * 1024], Vec::new());
    let (mut fragments, mut inflater, mut compressor) = (Fragments::default(), Inflater::new(), Compressor::new());
    let (mut deflate, mut closed) = (None, false);
    // Who answers a Close ends the connection (RFC 6455 §7.1.1), and clients wait for that.
    while !closed {
        let read = stream.read(&mut buffer).unwrap_or(0);
        if read == 0 {
            return;
        }
        tail.extend_from_slice(&buffer[..read]);
        if deflate.is_none() {
            let Some(end) = find_head_end(&tail, 0) else { continue };
            let request = parse_request(&tail[..end]).expect("a valid request");
            write_accept(&mut out, &request, request.deflate);
            deflate = Some(request.deflate.is_some());
            tail.drain(..end);
        }
        let negotiated = deflate == Some(true);
        loop {
            let inflater = negotiated.then_some(&mut inflater);
            let step = step_with(&mut fragments, &mut tail, &limits, inflater).expect("valid frames");
            let consumed = step.consumed;
            match step.event {
                None => {}
                Some(Event::Message { kind, data }) => {
                    let opcode = if kind == MessageKind::Text { Opcode::Text } else { Opcode::Binary };
                    if negotiated {
                        COMPRESSED.fetch_add(compressor.write_frame(&mut out, opcode, data).into(), Ordering::Relaxed);
                    } else {
                        write_server_header(&mut out, opcode, data.len());
                        out.extend_from_slice(data);
                    }
                }
                Some(Event::Ping(payload)) => {
                    write_server_header(&mut out, Opcode::Pong, payload.len());
                    out.extend_from_slice(payload);
                }
                Some(Event::Pong(_)) => {}
                Some(Event::Close { .. }) => {
                    write_close(&mut out, 1000, "");
                    closed = true;
                }
            }
            if closed || consumed == 0 {
                break;
            }
            tail.drain(..consumed);
        }
        INFLATED.fetch_add(inflater.take_totals().messages, Ordering::Relaxed);
        if stream.write_all(&out).is_err() {
            return;
        }
        out.clear();
    }
}
