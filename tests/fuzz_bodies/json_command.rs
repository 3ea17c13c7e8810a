//! Fuzz body: a WebSocket message of JSON commands, and a JSON payload, both from an untrusted peer.
//!
//! In: any bytes, taken once as a message and once as a payload. Claim: no input panics; what is accepted from UTF-8
//! can be embedded in replies, one line each, and is read back as it was.

use ringway_wire::centrifuge::Form;
use ringway_wire::centrifuge::command::{Command, CommandError, Commands, Request, decode_uni_connect};
use ringway_wire::centrifuge::json::{check, remove_newlines, write_string};
use ringway_wire::centrifuge::reply::{
    ClientInfoView, PublicationView, PushData, PushShape, ReplyWriter, push_publication,
};

/// Takes one input.
pub fn run(data: &[u8]) {
    let commands: Vec<_> = Commands::new(Form::Json, data).collect();
    assert!(commands.iter().rev().skip(1).all(Result::is_ok), "an error ends the iteration");
    assert!(!commands.is_empty(), "a message is an error or has a command");
    let checked = check(data);
    let bare = decode_uni_connect(data);
    assert!(bare.is_err() || checked.is_ok(), "a bare connect request is one JSON value");
    if core::str::from_utf8(data).is_err() {
        // The message layer lets no such text through; it must only not panic.
        return;
    }
    if commands.iter().all(Result::is_ok) {
        one_by_one(data, &commands);
    }
    for command in commands.iter().flatten() {
        embed(command);
    }
    if let Ok(newlines) = checked {
        assert_eq!(newlines, data.iter().any(|byte| matches!(byte, b'\n' | b'\r')));
        let mut payload = data.to_vec();
        remove_newlines(&mut payload);
        assert_eq!(check(&payload), Ok(false));
        payload_round_trip(&payload);
    }
}

/// Each line alone gives the same command.
fn one_by_one(message: &[u8], commands: &[Result<Command<'_>, CommandError>]) {
    let lines: Vec<_> = message.trim_ascii().split(|&byte| byte == b'\n').collect();
    assert_eq!(lines.len(), commands.len());
    for (line, command) in lines.into_iter().zip(commands) {
        assert_eq!(Commands::new(Form::Json, line).next().as_ref(), Some(command));
    }
}

/// What a command carries goes into pushes and replies.
fn embed(command: &Command<'_>) {
    match &command.request {
        Request::Publish { channel, data } => {
            string_round_trip(channel);
            let info = ClientInfoView { user: channel, client: "c", conn_info: data, chan_info: b"" };
            let view = PublicationView { data, offset: 1, info: Some(info), ..Default::default() };
            let mut out = b"before".to_vec();
            let shape = PushShape::plain(Form::Json, channel);
            let range = push_publication(&shape, PushData::Plain, &mut out, &view).expect("plain data stands verbatim");
            assert_eq!(&out[range], *data);
            line(&out[6..]);
        }
        Request::Rpc { data, .. } | Request::Send { data } if !data.is_empty() => payload_round_trip(data),
        Request::Connect(request) => {
            request.subs.iter().for_each(|sub| string_round_trip(&sub.channel));
            string_round_trip(&request.token);
        }
        Request::Subscribe(request) => {
            string_round_trip(&request.channel);
            string_round_trip(&request.epoch);
        }
        _ => {}
    }
}

/// One valid JSON text on one line.
fn line(text: &[u8]) {
    assert!(check(text).is_ok(), "{}", String::from_utf8_lossy(text));
    assert!(!text.contains(&b'\n'));
}

/// An rpc reply has the shape of an rpc command, so the decoder can read it.
fn payload_round_trip(payload: &[u8]) {
    let mut out = Vec::new();
    ReplyWriter::new(Form::Json, &mut out).rpc(7, payload);
    line(&out);
    let expected = Command { id: 7, request: Request::Rpc { method: "".into(), data: payload.trim_ascii() } };
    assert!(Commands::new(Form::Json, &out).eq([Ok(expected)]));
}

fn string_round_trip(text: &str) {
    let mut out = b"{\"refresh\":{\"token\":".to_vec();
    write_string(&mut out, text);
    out.extend_from_slice(b"}}");
    line(&out);
    let expected = Command { id: 0, request: Request::Refresh { token: text.into() } };
    assert!(Commands::new(Form::Json, &out).eq([Ok(expected)]));
}
