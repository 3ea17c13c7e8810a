//! Protobuf commands: what `prost` writes is what this codec reads.
//!
//! In: random commands as `prost` messages. Out: disagreements as panics.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;
use prost::Message;

use super::{decode, decode_one, messages};
use crate::centrifuge::Form::Protobuf;
use crate::centrifuge::command::*;

fn subscribe_request() -> impl Strategy<Value = messages::SubscribeRequest> {
    (
        any::<(String, String, bool, String, u64, Vec<u8>, bool, bool, bool, String)>(),
        any::<(Option<String>, i64, i32, i32, String, i32, bool)>(),
    )
        .prop_map(|(a, b)| messages::SubscribeRequest {
            channel: a.0,
            token: a.1,
            recover: a.2,
            epoch: a.3,
            offset: a.4,
            data: a.5,
            positioned: a.6,
            recoverable: a.7,
            join_leave: a.8,
            delta: a.9,
            tf: b.0.map(|channel| messages::ChannelRequest { channel }),
            flag: b.1,
            r#type: b.2,
            phase: b.3,
            cursor: b.4,
            limit: b.5,
            asc: b.6,
        })
}

fn connect_request() -> impl Strategy<Value = messages::ConnectRequest> {
    (
        any::<(String, Vec<u8>, String, String, i64, String, String)>(),
        proptest::collection::btree_map(any::<String>(), subscribe_request(), 0..4),
        proptest::collection::btree_map(any::<String>(), any::<String>(), 0..3),
    )
        .prop_map(|(a, subs, headers)| messages::ConnectRequest {
            token: a.0,
            data: a.1,
            subs,
            name: a.2,
            version: a.3,
            headers,
            flag: a.4,
            dict: a.5,
            profile: a.6,
        })
}

fn command() -> impl Strategy<Value = messages::Command> {
    let empty = messages::Command::default;
    let channel = || any::<String>().prop_map(|channel| Some(messages::ChannelRequest { channel }));
    let request = prop_oneof![
        connect_request().prop_map(move |r| messages::Command { connect: Some(r), ..empty() }),
        subscribe_request().prop_map(move |r| messages::Command { subscribe: Some(r), ..empty() }),
        channel().prop_map(move |r| messages::Command { unsubscribe: r, ..empty() }),
        any::<(String, Vec<u8>)>().prop_map(move |(channel, data)| messages::Command {
            publish: Some(messages::PublishRequest { channel, data, ..Default::default() }),
            ..empty()
        }),
        channel().prop_map(move |r| messages::Command { presence: r, ..empty() }),
        channel().prop_map(move |r| messages::Command { presence_stats: r, ..empty() }),
        any::<(String, i32, Option<(u64, String)>, bool)>().prop_map(move |(channel, limit, since, reverse)| {
            let since = since.map(|(offset, epoch)| messages::StreamPosition { offset, epoch });
            messages::Command { history: Some(messages::HistoryRequest { channel, limit, since, reverse }), ..empty() }
        }),
        Just(messages::Command { ping: Some(messages::Nothing {}), ..empty() }),
        any::<Vec<u8>>()
            .prop_map(move |data| messages::Command { send: Some(messages::SendRequest { data }), ..empty() }),
        any::<(Vec<u8>, String)>().prop_map(move |(data, method)| messages::Command {
            rpc: Some(messages::RpcRequest { data, method }),
            ..empty()
        }),
        any::<String>()
            .prop_map(move |token| messages::Command { refresh: Some(messages::RefreshRequest { token }), ..empty() }),
        any::<(String, String)>().prop_map(move |(channel, token)| messages::Command {
            sub_refresh: Some(messages::SubRefreshRequest { channel, token, r#type: 0 }),
            ..empty()
        }),
        Just(empty()),
    ];
    (any::<u32>(), request, any::<String>()).prop_map(|(id, command, unknown)| messages::Command {
        id,
        unknown,
        ..command
    })
}

fn subscribe_view(request: &messages::SubscribeRequest) -> SubscribeRequest<'_> {
    SubscribeRequest {
        channel: request.channel.as_str().into(),
        token: request.token.as_str().into(),
        recover: request.recover,
        epoch: request.epoch.as_str().into(),
        offset: request.offset,
        data: &request.data,
        positioned: request.positioned,
        recoverable: request.recoverable,
        join_leave: request.join_leave,
        delta: request.delta.as_str().into(),
        flag: request.flag,
        kind: request.r#type,
        tf_present: request.tf.is_some(),
    }
}

/// The command as this codec should see it; subscriptions of a connect sorted by channel.
fn view(command: &messages::Command) -> Command<'_> {
    let request = if let Some(request) = &command.connect {
        let mut subs: Vec<_> = request
            .subs
            .iter()
            .map(|(channel, sub)| ConnectSubscription {
                channel: channel.as_str().into(),
                recover: sub.recover,
                offset: sub.offset,
                epoch: sub.epoch.as_str().into(),
            })
            .collect();
        subs.sort_by(|a, b| a.channel.cmp(&b.channel));
        Request::Connect(ConnectRequest {
            token: request.token.as_str().into(),
            data: &request.data,
            subs,
            name: request.name.as_str().into(),
            version: request.version.as_str().into(),
            flag: request.flag,
        })
    } else if let Some(request) = &command.subscribe {
        Request::Subscribe(subscribe_view(request))
    } else if let Some(request) = &command.unsubscribe {
        Request::Unsubscribe { channel: request.channel.as_str().into() }
    } else if let Some(request) = &command.publish {
        Request::Publish { channel: request.channel.as_str().into(), data: &request.data }
    } else if let Some(request) = &command.presence {
        Request::Presence { channel: request.channel.as_str().into() }
    } else if let Some(request) = &command.presence_stats {
        Request::PresenceStats { channel: request.channel.as_str().into() }
    } else if let Some(request) = &command.history {
        let since =
            request.since.as_ref().map(|at| StreamPosition { offset: at.offset, epoch: at.epoch.as_str().into() });
        Request::History(HistoryRequest {
            channel: request.channel.as_str().into(),
            limit: request.limit,
            since,
            reverse: request.reverse,
        })
    } else if command.ping.is_some() {
        Request::Ping
    } else if let Some(request) = &command.send {
        Request::Send { data: &request.data }
    } else if let Some(request) = &command.rpc {
        Request::Rpc { method: request.method.as_str().into(), data: &request.data }
    } else if let Some(request) = &command.refresh {
        Request::Refresh { token: request.token.as_str().into() }
    } else if let Some(request) = &command.sub_refresh {
        Request::SubRefresh { channel: request.channel.as_str().into(), token: request.token.as_str().into() }
    } else if command.id == 0 {
        Request::Pong
    } else {
        Request::Missing
    };
    Command { id: command.id, request }
}

#[test]
fn golden_subscribe() {
    // Command { id: 2, subscribe: { channel: "news", recover: true, epoch: "x", offset: 300, flag: 1 } }
    let message = b"\x14\x08\x02\x2a\x10\x0a\x04news\x18\x01\x32\x01x\x38\xac\x02\x70\x01";
    let mut message = message.to_vec();
    message[0] = (message.len() - 1) as u8;
    message[4] = (message.len() - 5) as u8;
    let expected = Command {
        id: 2,
        request: Request::Subscribe(SubscribeRequest {
            channel: "news".into(),
            recover: true,
            epoch: "x".into(),
            offset: 300,
            flag: 1,
            ..Default::default()
        }),
    };
    assert_eq!(decode_one(Protobuf, &message), expected);
}

#[test]
fn map_entries_in_any_shape() {
    // Value before key, an unknown field in the entry, an entry without anything.
    let message = b"\x12\x22\x10\x1a\x0c\x12\x02\x38\x05\x52\x02hi\x0a\x02ab\x1a\x00";
    let mut message = message.to_vec();
    message[0] = (message.len() - 1) as u8;
    let Request::Connect(request) = decode_one(Protobuf, &message).request else { panic!() };
    assert_eq!(
        request.subs,
        [ConnectSubscription { channel: "ab".into(), offset: 5, ..Default::default() }, ConnectSubscription::default()]
    );
}

#[test]
fn unknown_fields_of_every_wire_type_are_skipped() {
    // 1000: varint, 8 bytes, bytes, 4 bytes; then ping.
    let fields = b"\xc0\x3e\x96\x01\xc1\x3e12345678\xc2\x3e\x03abc\xc5\x3e1234\x5a\x00\x08\x01";
    let mut message = vec![fields.len() as u8];
    message.extend_from_slice(fields);
    assert_eq!(decode_one(Protobuf, &message), Command { id: 1, request: Request::Ping });
}

proptest! {
    #[test]
    fn reads_what_prost_writes(commands in proptest::collection::vec(command(), 1..4)) {
        let mut message = Vec::new();
        for command in &commands {
            command.encode_length_delimited(&mut message).unwrap();
        }
        let mut decoded = decode(Protobuf, &message).unwrap();
        for command in &mut decoded {
            if let Request::Connect(request) = &mut command.request {
                request.subs.sort_by(|a, b| a.channel.cmp(&b.channel));
            }
        }
        prop_assert_eq!(decoded, commands.iter().map(view).collect::<Vec<_>>());
    }

    #[test]
    fn mutated_messages_are_read_or_refused(
        command in command(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut message = command.encode_length_delimited_to_vec();
        for (at, byte) in edits {
            let at = at.index(message.len());
            message[at] = byte;
        }
        let _ = decode(Protobuf, &message);
    }
}
