//! Fuzz body: a WebSocket message of protobuf commands from an untrusted client.
//!
//! In: any bytes as one message. Claim: no input panics; what is accepted goes into pushes and replies and is read
//! back as it was.

use ringway_wire::centrifuge::Form::Protobuf;
use ringway_wire::centrifuge::command::{Command, Commands, Request};
use ringway_wire::centrifuge::reply::{
    PublicationView, PushData, PushShape, RefreshResult, ReplyWriter, push_publication,
};

/// Takes one input.
pub fn run(data: &[u8]) {
    let commands: Vec<_> = Commands::new(Protobuf, data).collect();
    assert!(commands.iter().rev().skip(1).all(Result::is_ok), "an error ends the iteration");
    assert!(!commands.is_empty() && commands.len() <= data.len().max(1), "a command takes a byte at least");
    for command in commands.iter().flatten() {
        embed(command);
    }
}

fn embed(command: &Command<'_>) {
    match &command.request {
        Request::Publish { channel, data } => {
            let view = PublicationView { data, offset: u64::from(command.id), ..Default::default() };
            let mut out = b"before".to_vec();
            let shape = PushShape::plain(Protobuf, channel);
            let range = push_publication(&shape, PushData::Plain, &mut out, &view).expect("plain data stands verbatim");
            assert_eq!(&out[range], *data);
            // The length before the reply covers exactly the rest.
            let (len, taken) = uvarint(&out[6..]);
            assert_eq!(len, out.len() - 6 - taken);
            string_round_trip(command.id, channel);
        }
        Request::Rpc { data, .. } | Request::Send { data } => {
            // Rpc and refresh replies have the numbers of their commands, so the decoder can read them.
            let mut out = Vec::new();
            ReplyWriter::new(Protobuf, &mut out).rpc(command.id, data);
            let expected = Command { id: command.id, request: Request::Rpc { method: "".into(), data } };
            assert!(Commands::new(Protobuf, &out).eq([Ok(expected)]));
        }
        Request::Connect(request) => {
            string_round_trip(command.id, &request.token);
            request.subs.iter().for_each(|sub| string_round_trip(command.id, &sub.epoch));
        }
        Request::Subscribe(request) => string_round_trip(command.id, &request.channel),
        _ => {}
    }
}

fn string_round_trip(id: u32, text: &str) {
    let mut out = Vec::new();
    ReplyWriter::new(Protobuf, &mut out).refresh(id, &RefreshResult { client: text, ..Default::default() });
    let expected = Command { id, request: Request::Refresh { token: text.into() } };
    assert!(Commands::new(Protobuf, &out).eq([Ok(expected)]));
}

/// Value and length of the uvarint at the start of `bytes`.
fn uvarint(bytes: &[u8]) -> (usize, usize) {
    let taken = bytes.iter().take_while(|&&byte| byte >= 128).count() + 1;
    let value = bytes[..taken].iter().rev().fold(0, |value, &byte| value << 7 | usize::from(byte & 127));
    (value, taken)
}
