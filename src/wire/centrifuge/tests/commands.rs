//! Commands: what SDKs send, batches, order of keys, unknown fields, and what must be refused.
//!
//! In: messages by hand from the specification, and random JSON commands. Out: disagreements as panics.

use alloc::borrow::Cow;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::json::value;
use super::{decode, decode_one};
use crate::centrifuge::Form::{self, Json, Protobuf};
use crate::centrifuge::command::*;

#[test]
fn javascript_connects_and_subscribes_in_one_message() {
    let message = concat!(
        r#"{"connect":{"token":"t.o.k","data":{"a":[1]},"name":"js","version":"5.8.0","flag":1},"id":1}"#,
        "\n",
        r#"{"subscribe":{"channel":"news","recover":true,"epoch":"xyz","offset":12,"flag":1},"id":2}"#,
    );
    let expected = vec![
        Command {
            id: 1,
            request: Request::Connect(ConnectRequest {
                token: "t.o.k".into(),
                data: br#"{"a":[1]}"#,
                name: "js".into(),
                version: "5.8.0".into(),
                flag: 1,
                ..Default::default()
            }),
        },
        Command {
            id: 2,
            request: Request::Subscribe(SubscribeRequest {
                channel: "news".into(),
                recover: true,
                epoch: "xyz".into(),
                offset: 12,
                flag: 1,
                ..Default::default()
            }),
        },
    ];
    assert_eq!(decode(Json, message.as_bytes()), Ok(expected.clone()));
    // Whitespace around the whole is ignored.
    assert_eq!(decode(Json, format!(" \r\n{message}\r\n ").as_bytes()), Ok(expected));
}

#[test]
fn a_unidirectional_client_sends_a_bare_connect_request() {
    let request = decode_uni_connect(
        br#" {"token":"t","data":{"a": 1},"headers":{"x":"y"},"name":"n","version":"v","flag":3,"dict":"d","profile":"p",
            "subs":{"c":{"recover":true,"offset":7,"epoch":"e"}}} "#,
    );
    assert_eq!(
        request,
        Ok(ConnectRequest {
            token: "t".into(),
            data: br#"{"a": 1}"#,
            subs: vec![ConnectSubscription { channel: "c".into(), recover: true, offset: 7, epoch: "e".into() }],
            name: "n".into(),
            version: "v".into(),
            flag: 3,
        })
    );
    assert_eq!(decode_uni_connect(b"{}"), Ok(ConnectRequest::default()));
    assert_eq!(decode_uni_connect(b"{\n}\r\n"), Ok(ConnectRequest::default()));
    for text in ["", " ", "\n"] {
        assert_eq!(decode_uni_connect(text.as_bytes()), Err(CommandError::Empty));
    }
    for text in ["null", "[]", "1", "{}{}", "{}\n{}", "{", "{\"token\":1}", "{\"data\":}", "\"x\""] {
        assert_eq!(decode_uni_connect(text.as_bytes()), Err(CommandError::Malformed), "{text}");
    }
    assert_eq!(decode_uni_connect(br#"{"flag":1.5}"#), Err(CommandError::Number));
    let deep = format!("{{\"data\":{}", "[".repeat(200));
    assert_eq!(decode_uni_connect(deep.as_bytes()), Err(CommandError::TooDeep));
}

#[test]
fn the_common_path_borrows() {
    let message = br#"{"subscribe":{"channel":"news","token":"t","epoch":"e"},"id":2}"#;
    let Request::Subscribe(request) = decode_one(Json, message).request else { panic!() };
    for text in [request.channel, request.token, request.epoch] {
        assert!(matches!(text, Cow::Borrowed(_)));
    }
}

#[test]
fn every_request_in_json() {
    let channel = || Cow::Borrowed("c");
    let token = || Cow::Borrowed("t");
    let data = &b"{ \"x\" : 1 }"[..];
    let position = StreamPosition { offset: 7, epoch: "e".into() };
    for (text, request) in [
        (r#""connect":{}"#, Request::Connect(ConnectRequest::default())),
        (
            r#""connect":{"subs":{"a":{"recover":true,"epoch":"e","offset":9},"b":{},"c":null}}"#,
            Request::Connect(ConnectRequest {
                subs: vec![
                    ConnectSubscription { channel: "a".into(), recover: true, offset: 9, epoch: "e".into() },
                    ConnectSubscription { channel: "b".into(), ..Default::default() },
                ],
                ..Default::default()
            }),
        ),
        (
            concat!(
                r#""subscribe":{"channel":"c","token":"t","data":{ "x" : 1 },"positioned":true,"recoverable":true,"#,
                r#""join_leave":true,"delta":"fossil","tf":{"op":"and","nodes":[{}]},"flag":-3,"type":4,"limit":5}"#
            ),
            Request::Subscribe(SubscribeRequest {
                channel: channel(),
                token: token(),
                data,
                positioned: true,
                recoverable: true,
                join_leave: true,
                delta: "fossil".into(),
                tf_present: true,
                flag: -3,
                kind: 4,
                ..Default::default()
            }),
        ),
        (
            r#""subscribe":{"channel":"c","tf":null,"recover":false,"offset":null,"data":null}"#,
            Request::Subscribe(SubscribeRequest { channel: channel(), data: b"null", ..Default::default() }),
        ),
        (r#""unsubscribe":{"channel":"c"}"#, Request::Unsubscribe { channel: channel() }),
        (r#""publish":{"channel":"c","data":{ "x" : 1 }}"#, Request::Publish { channel: channel(), data }),
        (r#""publish":{"channel":"c","data":{ "x" : 1 },"type":1,"key":"k"}"#, Request::Missing),
        (r#""presence":{"channel":"c"}"#, Request::Presence { channel: channel() }),
        (r#""presence_stats":{"channel":"c"}"#, Request::PresenceStats { channel: channel() }),
        (
            r#""history":{"channel":"c","limit":-1,"since":{"offset":7,"epoch":"e"},"reverse":true}"#,
            Request::History(HistoryRequest { channel: channel(), limit: -1, since: Some(position), reverse: true }),
        ),
        (
            r#""history":{"channel":"c","since":{}}"#,
            Request::History(HistoryRequest {
                channel: channel(),
                since: Some(StreamPosition::default()),
                ..Default::default()
            }),
        ),
        (r#""ping":{}"#, Request::Ping),
        (r#""send":{"data":{ "x" : 1 }}"#, Request::Send { data }),
        (r#""rpc":{"data":{ "x" : 1 },"method":"m"}"#, Request::Rpc { method: "m".into(), data }),
        (r#""rpc":{"data":1.50e3}"#, Request::Rpc { method: "".into(), data: b"1.50e3" }),
        (r#""refresh":{"token":"t"}"#, Request::Refresh { token: token() }),
        (r#""sub_refresh":{"channel":"c","token":"t"}"#, Request::SubRefresh { channel: channel(), token: token() }),
        (r#""sub_refresh":{"channel":"c","type":1,"track":[{}]}"#, Request::Missing),
        (r#""connect":null"#, Request::Missing),
        (r#""later":[{"a":"\u00e9"}]"#, Request::Missing),
        // The lowest number wins, whatever the order.
        (r#""rpc":{"method":"m"},"ping":{},"send":{"data":1}"#, Request::Ping),
        (r#""\u0070ing":{}"#, Request::Ping),
    ] {
        let expected = Command { id: 7, request };
        for message in [format!("{{{text},\"id\":7}}"), format!("{{ \"id\" : 7 , {text} }}")] {
            assert_eq!(decode_one(Json, message.as_bytes()), expected, "{message}");
        }
    }
}

#[test]
fn pongs() {
    for message in ["{}", " {} \n", "{\"id\":0}", "{ }"] {
        assert_eq!(decode_one(Json, message.as_bytes()), Command { id: 0, request: Request::Pong }, "{message:?}");
    }
    for message in [&b"\0"[..], b"\x02\x08\x00"] {
        assert_eq!(decode_one(Protobuf, message), Command { id: 0, request: Request::Pong });
    }
    assert_eq!(decode(Json, b"{}\n{}\n").map(|commands| commands.len()), Ok(2));
    assert_eq!(decode(Protobuf, b"\0\0\0").map(|commands| commands.len()), Ok(3));
}

#[test]
fn numbers_in_json() {
    for (id, expected) in [
        ("0", Ok(0)),
        ("1", Ok(1)),
        ("4294967295", Ok(u32::MAX)),
        ("null", Ok(0)),
        ("4294967296", Err(CommandError::Number)),
        ("99999999999999999999999", Err(CommandError::Number)),
        ("-1", Err(CommandError::Number)),
        ("1.0", Err(CommandError::Number)),
        ("1e3", Err(CommandError::Number)),
        ("01", Err(CommandError::Number)),
        ("\"1\"", Err(CommandError::Malformed)),
        ("1x", Err(CommandError::Malformed)),
        ("", Err(CommandError::Malformed)),
    ] {
        let message = format!("{{\"ping\":{{}},\"id\":{id}}}");
        assert_eq!(decode(Json, message.as_bytes()).map(|commands| commands[0].id), expected, "{id}");
    }
    for (offset, expected) in [
        ("9007199254740991", Some((1 << 53) - 1)),
        ("18446744073709551615", Some(u64::MAX)),
        ("18446744073709551616", None),
        ("-1", None),
    ] {
        let message = format!("{{\"subscribe\":{{\"offset\":{offset}}},\"id\":1}}");
        match (decode(Json, message.as_bytes()), expected) {
            (Ok(commands), Some(offset)) => {
                let Request::Subscribe(request) = &commands[0].request else { panic!() };
                assert_eq!(request.offset, offset);
            }
            (result, expected) => assert_eq!((result, expected), (Err(CommandError::Number), None)),
        }
    }
    for (flag, expected) in [
        ("-9223372036854775808", Some(i64::MIN)),
        ("9223372036854775807", Some(i64::MAX)),
        ("-9223372036854775809", None),
        ("9223372036854775808", None),
    ] {
        let message = format!("{{\"connect\":{{\"flag\":{flag}}},\"id\":1}}");
        match (decode(Json, message.as_bytes()), expected) {
            (Ok(commands), Some(flag)) => {
                let Request::Connect(request) = &commands[0].request else { panic!() };
                assert_eq!(request.flag, flag);
            }
            (result, expected) => assert_eq!((result, expected), (Err(CommandError::Number), None)),
        }
    }
}

#[test]
fn malformed_json_is_refused() {
    for message in [
        "x",
        "null",
        "[]",
        "1",
        "\"\"",
        "{",
        "{\"id\"",
        "{\"id\":1",
        "{\"id\":1,",
        "{\"id\":1,}",
        "{,\"id\":1}",
        "{\"id\":1 \"ping\":{}}",
        "{\"id\":1}{\"id\":2}",
        "{\"id\":1},{\"id\":2}",
        "{}\n\n{}",
        "{}\n x",
        "{\n}",
        "{\"id\":\n1}",
        "{\"rpc\":{\"data\":[1,\n2]}}",
        "{\"rpc\":{\"data\":{]}}}",
        "{\"rpc\":{\"data\":01}}",
        "{\"rpc\":{\"data\":}}",
        "{\"rpc\":{\"method\":1}}",
        "{\"rpc\":[]}",
        "{\"rpc\":\"x\"}",
        "{\"rpc\":{}",
        "{\"connect\":{\"subs\":[]}}",
        "{\"connect\":{\"subs\":{\"a\":1}}}",
        "{\"connect\":{\"subs\":{\"a\":{},}}}",
        "{\"subscribe\":{\"recover\":1}}",
        "{\"subscribe\":{\"recover\":\"true\"}}",
        "{\"a\":{\"b\":tru}}",
        "{\"publish\":{\"channel\":\"a\nb\"}}",
        "{\"publish\":{\"channel\":\"a\\x\"}}",
        "\u{feff}{}",
    ] {
        assert_eq!(decode(Json, message.as_bytes()), Err(CommandError::Malformed), "{message:?}");
    }
    let deep = format!("{{\"rpc\":{{\"data\":{}", "[".repeat(10_000));
    assert_eq!(decode(Json, deep.as_bytes()), Err(CommandError::TooDeep));
    let deep = format!("{{\"later\":{}", "{\"a\":".repeat(10_000));
    assert_eq!(decode(Json, deep.as_bytes()), Err(CommandError::TooDeep));
    assert_eq!(decode(Json, b"{\"publish\":{\"channel\":\"\xff\"}}"), Err(CommandError::Utf8));
    assert_eq!(decode(Json, b"{\"publish\":{\"channel\":\"\\n\xff\"}}"), Err(CommandError::Utf8));
}

#[test]
fn malformed_protobuf_is_refused() {
    for message in [
        &b"\x01"[..],                                    // length without bytes
        b"\x80",                                         // length without end
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",     // length 2^64 - 1
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",     // length over 64 bits
        b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", // length of eleven bytes
        b"\x01\x08",                                     // id without value
        b"\x02\x00\x00",                                 // field number 0
        b"\x02\x0a\x00",                                 // id as bytes
        b"\x02\x20\x00",                                 // connect as a number
        b"\x02\x0b\x0c",                                 // group
        b"\x02\x0e\x00",                                 // wire type 6
        b"\x02\x22\x01",                                 // connect longer than the command
        b"\x04\x22\x02\x0a\x01",                         // token longer than connect
        b"\x06\x22\x04\x1a\x02\x10\x01",                 // value of a map entry as a number
        b"\x03\xb9\x3e\x00",                             // unknown field of 8 bytes, cut
    ] {
        assert_eq!(decode(Protobuf, message), Err(CommandError::Malformed), "{message:02x?}");
    }
    // id 2^32, and limit 2^31
    assert_eq!(decode(Protobuf, b"\x06\x08\x80\x80\x80\x80\x10"), Err(CommandError::Number));
    assert_eq!(decode(Protobuf, b"\x08\x52\x06\x38\x80\x80\x80\x80\x08"), Err(CommandError::Number));
    assert_eq!(decode(Protobuf, b"\x05\x22\x03\x0a\x01\xff"), Err(CommandError::Utf8));
}

#[test]
fn empty_messages_and_the_end_after_an_error() {
    for form in Form::ALL {
        assert_eq!(decode(form, b""), Err(CommandError::Empty));
    }
    assert_eq!(decode(Json, b" \r\n\t"), Err(CommandError::Empty));
    let mut commands = Commands::new(Json, b"{\"id\":1}\nx\n{\"id\":2}");
    assert_eq!(commands.next().map(|command| command.map(|command| command.id)), Some(Ok(1)));
    assert_eq!(commands.next(), Some(Err(CommandError::Malformed)));
    assert_eq!(commands.next(), None);
    let mut commands = Commands::new(Protobuf, b"\0\x05");
    assert_eq!(commands.next(), Some(Ok(Command { id: 0, request: Request::Pong })));
    assert_eq!(commands.next(), Some(Err(CommandError::Malformed)));
    assert_eq!(commands.next(), None);
}

/// An object in the order given, with spaces after some tokens.
fn object(fields: Vec<(&str, Value)>, space: &str) -> String {
    let fields: Vec<String> =
        fields.iter().map(|(name, value)| format!("{space}{}{space}:{space}{value}{space}", json!(name))).collect();
    format!("{{{}}}", fields.join(","))
}

proptest! {
    #[test]
    fn subscribe_in_any_order_with_unknown_fields(
        (channel, token, epoch, unknown_name) in any::<(String, String, String, String)>(),
        (id, offset, flag, kind) in any::<(u32, u64, i64, i32)>(),
        (recover, positioned, recoverable, join_leave) in any::<(bool, bool, bool, bool)>(),
        (data, unknown) in (value(), value()),
        order in Just((0..11).collect::<Vec<usize>>()).prop_shuffle(),
        space in prop::sample::select(&["", " ", "\t", "\r "][..]),
    ) {
        let unknown_name = format!("x_{unknown_name}");
        let fields = [
            ("channel", json!(channel)), ("token", json!(token)), ("epoch", json!(epoch)), ("offset", json!(offset)),
            ("flag", json!(flag)), ("type", json!(kind)), ("recover", json!(recover)),
            ("positioned", json!(positioned)), ("recoverable", json!(recoverable)), ("join_leave", json!(join_leave)),
            (unknown_name.as_str(), unknown.clone()),
        ];
        let mut fields: Vec<_> = order.iter().map(|&index| fields[index].clone()).collect();
        fields.insert(order[0], ("data", data.clone()));
        let request = object(fields, space);
        let id_first = order[1] > 5;
        let envelope = if id_first {
            format!(r#"{{"id":{id},"subscribe":{request},"unknown":{unknown}}}"#)
        } else {
            format!(r#"{{"unknown":{unknown},"subscribe":{request},"id":{id}}}"#)
        };
        let data = serde_json::to_vec(&data).unwrap();
        prop_assert_eq!(decode_one(Json, envelope.as_bytes()), Command {
            id,
            request: Request::Subscribe(SubscribeRequest {
                channel: channel.into(), token: token.into(), epoch: epoch.into(), offset, flag, kind, recover,
                positioned, recoverable, join_leave, data: &data, ..Default::default()
            }),
        });
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in any::<Vec<u8>>()) {
        for form in Form::ALL {
            // Each command takes at least a byte, so the iteration ends.
            prop_assert!(Commands::new(form, &bytes).count() <= bytes.len() + 1);
        }
    }

    #[test]
    fn mutated_batches_are_read_or_refused(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut message = concat!(
            r#"{"connect":{"token":"t","subs":{"a":{"offset":1,"epoch":"\u00e9"}},"data":[1,{"a":null}]},"id":1}"#, "\n",
            r#"{"subscribe":{"channel":"c","flag":-1,"tf":{}},"id":2}"#, "\n",
            r#"{"history":{"channel":"c","since":{"offset":5},"limit":-1},"id":3}"#,
        ).as_bytes().to_vec();
        for (at, byte) in edits {
            let at = at.index(message.len());
            message[at] = byte;
        }
        let _ = decode(Json, &message);
    }
}
