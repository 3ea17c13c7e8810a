//! Replies and pushes: exact JSON, protobuf through `prost`, and where a publication's data stands.
//!
//! In: every reply with full and with empty fields, and random publications. Out: disagreements as panics.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use proptest::prelude::*;
use prost::Message;
use serde_json::{Value, json};

use super::json::value;
use super::messages;
use crate::centrifuge::Form::{self, Json, Protobuf};
use crate::centrifuge::reply::*;

const INFO: ClientInfoView<'static> =
    ClientInfoView { user: "42", client: "id-1", conn_info: br#"{"n":1}"#, chan_info: b"[]" };

/// What one closure writes, in both forms.
fn both(write: impl Fn(&mut ReplyWriter<'_>)) -> (String, Vec<messages::Reply>) {
    let [json, protobuf] = Form::ALL.map(|form| {
        let mut out = b"before".to_vec();
        let mut writer = ReplyWriter::new(form, &mut out);
        assert!(writer.is_empty());
        write(&mut writer);
        assert!(!writer.is_empty());
        assert_eq!(&out[..6], b"before");
        out.split_off(6)
    });
    (String::from_utf8(json).unwrap(), decode_all(&protobuf))
}

fn decode_all(mut bytes: &[u8]) -> Vec<messages::Reply> {
    let mut replies = Vec::new();
    while !bytes.is_empty() {
        replies.push(messages::Reply::decode_length_delimited(&mut bytes).unwrap());
    }
    replies
}

/// A publication push as most subscribers take it, and where its data stands.
fn plain_push(form: Form, out: &mut Vec<u8>, channel: &str, view: &PublicationView<'_>) -> Range<usize> {
    push_publication(&PushShape::plain(form, channel), PushData::Plain, out, view).unwrap()
}

/// Expects one reply: this JSON text, and these protobuf fields.
#[track_caller]
fn expect(write: impl Fn(&mut ReplyWriter<'_>), json: &str, protobuf: messages::Reply) {
    let (text, replies) = both(write);
    assert_eq!(text, json);
    assert_eq!(replies, [protobuf]);
    serde_json::from_str::<Value>(&text).unwrap();
}

fn reply(id: u32) -> messages::Reply {
    messages::Reply { id, ..Default::default() }
}

fn push(channel: &str) -> messages::Push {
    messages::Push { channel: channel.into(), ..Default::default() }
}

fn info() -> messages::ClientInfo {
    messages::ClientInfo {
        user: "42".into(),
        client: "id-1".into(),
        conn_info: br#"{"n":1}"#.to_vec(),
        chan_info: b"[]".to_vec(),
    }
}

#[test]
fn errors() {
    let codes: Vec<u32> = ClientError::ALL.iter().map(|error| error.code()).collect();
    assert_eq!(codes, (100..=113).collect::<Vec<_>>());
    assert!(ClientError::ALL.iter().all(|error| !error.text().is_empty()));
    let temporary: Vec<u32> = ClientError::ALL.iter().filter(|e| e.temporary()).map(|e| e.code()).collect();
    assert_eq!(temporary, [100, 111, 113]);

    let error = |temporary| messages::Error { code: 106, message: "limit exceeded".into(), temporary };
    expect(
        |writer| writer.error(3, ClientError::LimitExceeded),
        r#"{"id":3,"error":{"code":106,"message":"limit exceeded"}}"#,
        messages::Reply { error: Some(error(false)), ..reply(3) },
    );
    expect(
        |writer| writer.error_temporary(3, ClientError::LimitExceeded),
        r#"{"id":3,"error":{"code":106,"message":"limit exceeded","temporary":true}}"#,
        messages::Reply { error: Some(error(true)), ..reply(3) },
    );
    let (text, _) = both(|writer| writer.error(3, ClientError::Internal));
    assert_eq!(text, r#"{"id":3,"error":{"code":100,"message":"internal server error","temporary":true}}"#);
}

#[test]
fn errors_of_applications_always_have_a_code_and_a_text() {
    let error = |code, message: &str, temporary| messages::Reply {
        error: Some(messages::Error { code, message: message.into(), temporary }),
        ..reply(3)
    };
    expect(
        |writer| writer.error_custom(3, 1000, "no \"room\"\n", true),
        r#"{"id":3,"error":{"code":1000,"message":"no \"room\"\n","temporary":true}}"#,
        error(1000, "no \"room\"\n", true),
    );
    expect(
        |writer| writer.error_custom(3, 1999, "", false),
        r#"{"id":3,"error":{"code":1999,"message":"application error"}}"#,
        error(1999, ERROR_TEXT_FALLBACK, false),
    );
    expect(
        |writer| writer.error_custom(3, 103, "", false),
        r#"{"id":3,"error":{"code":103,"message":"permission denied"}}"#,
        error(103, "permission denied", false),
    );
    expect(
        |writer| writer.error_custom(3, 0, "", false),
        r#"{"id":3,"error":{"code":100,"message":"internal server error"}}"#,
        error(100, "internal server error", false),
    );
}

#[test]
fn empty_results_are_there() {
    let nothing = Some(messages::Nothing {});
    expect(
        |writer| writer.connect(1, &ConnectResult::default()),
        r#"{"id":1,"connect":{}}"#,
        messages::Reply { connect: Some(Default::default()), ..reply(1) },
    );
    expect(
        |writer| writer.subscribe(1, &SubscribeResult::default(), [].into_iter()),
        r#"{"id":1,"subscribe":{}}"#,
        messages::Reply { subscribe: Some(Default::default()), ..reply(1) },
    );
    expect(
        |writer| writer.unsubscribe(1),
        r#"{"id":1,"unsubscribe":{}}"#,
        messages::Reply { unsubscribe: nothing.clone(), ..reply(1) },
    );
    expect(
        |writer| writer.publish(1),
        r#"{"id":1,"publish":{}}"#,
        messages::Reply { publish: nothing.clone(), ..reply(1) },
    );
    expect(|writer| writer.ping_result(1), r#"{"id":1,"ping":{}}"#, messages::Reply { ping: nothing, ..reply(1) });
    expect(
        |writer| writer.rpc(1, b""),
        r#"{"id":1,"rpc":{}}"#,
        messages::Reply { rpc: Some(Default::default()), ..reply(1) },
    );
    expect(
        |writer| writer.refresh(1, &RefreshResult::default()),
        r#"{"id":1,"refresh":{}}"#,
        messages::Reply { refresh: Some(Default::default()), ..reply(1) },
    );
    expect(
        |writer| writer.sub_refresh(1, false, 0),
        r#"{"id":1,"sub_refresh":{}}"#,
        messages::Reply { sub_refresh: Some(Default::default()), ..reply(1) },
    );
    // These have fields that JSON always shows.
    expect(
        |writer| writer.presence(1, [].into_iter()),
        r#"{"id":1,"presence":{"presence":{}}}"#,
        messages::Reply { presence: Some(Default::default()), ..reply(1) },
    );
    expect(
        |writer| writer.presence_stats(1, 0, 0),
        r#"{"id":1,"presence_stats":{"num_clients":0,"num_users":0}}"#,
        messages::Reply { presence_stats: Some(Default::default()), ..reply(1) },
    );
    expect(
        |writer| writer.history(1, [].into_iter(), "", 0),
        r#"{"id":1,"history":{"publications":[],"epoch":"","offset":0}}"#,
        messages::Reply { history: Some(Default::default()), ..reply(1) },
    );
    expect(
        |writer| writer.push_join("c", &ClientInfoView::default()),
        r#"{"push":{"channel":"c","join":{"info":{"user":"","client":""}}}}"#,
        messages::Reply {
            push: Some(messages::Push {
                join: Some(messages::JoinLeave { info: Some(Default::default()) }),
                ..push("c")
            }),
            ..reply(0)
        },
    );
}

#[test]
fn golden_protobuf_bytes() {
    let bytes = |write: &dyn Fn(&mut ReplyWriter<'_>)| {
        let mut out = Vec::new();
        write(&mut ReplyWriter::new(Protobuf, &mut out));
        out
    };
    assert_eq!(bytes(&|writer| writer.ping()), b"\0");
    assert_eq!(bytes(&|writer| writer.unsubscribe(2)), b"\x04\x08\x02\x3a\x00");
    assert_eq!(
        bytes(&|writer| writer.connect(1, &ConnectResult { client: "abc", ping: 25, pong: true, ..Default::default() })),
        b"\x0d\x08\x01\x2a\x09\x0a\x03abc\x38\x19\x40\x01"
    );
    assert_eq!(
        bytes(&|writer| writer.error(2, ClientError::TooManyRequests)),
        b"\x1b\x08\x02\x12\x17\x08\x6f\x12\x11too many requests\x18\x01"
    );
    assert_eq!(
        bytes(&|writer| writer.push_unsubscribe("c", 2500, "lost")),
        b"\x10\x22\x0e\x12\x01c\x3a\x09\x10\xc4\x13\x1a\x04lost"
    );
    // A negative int64 takes ten bytes.
    assert_eq!(
        bytes(&|writer| writer.connect(0, &ConnectResult { time: -1, ..Default::default() })),
        b"\x0d\x2a\x0b\x58\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
    );
}

fn publications() -> Vec<PublicationView<'static>> {
    let tags: &'static [Tag] = vec![("k".into(), "v".into())].leak();
    vec![
        PublicationView { data: b"{}", offset: 8, info: None, tags: &[], data_as: PushData::Plain },
        PublicationView { data: b"\"x\"", offset: 9, info: Some(INFO), tags, data_as: PushData::Plain },
    ]
}

/// A subscribe result with every field, here and below.
const SUBSCRIBED: SubscribeResult<'static> = SubscribeResult {
    expires: true,
    ttl: 60,
    recoverable: true,
    epoch: "e\"1",
    recovered: true,
    offset: (1 << 53) - 1,
    positioned: true,
    data: Some(b"null"),
    was_recovering: true,
    delta: true,
    id: 5,
};

const SUBSCRIBED_TEXT: &str = concat!(
    r#"{"expires":true,"ttl":60,"recoverable":true,"epoch":"e\"1","publications":[{"data":"{}","offset":8},"#,
    r#"{"data":"\"x\"","info":{"user":"42","client":"id-1","conn_info":{"n":1},"chan_info":[]},"offset":9,"#,
    r#""tags":{"k":"v"}}],"recovered":true,"offset":9007199254740991,"positioned":true,"data":null,"#,
    r#""was_recovering":true,"delta":true,"id":5}"#
);

fn subscribed_message() -> messages::SubscribeResult {
    messages::SubscribeResult {
        expires: true,
        ttl: 60,
        recoverable: true,
        epoch: "e\"1".into(),
        publications: vec![
            messages::Publication { data: b"{}".to_vec(), offset: 8, ..Default::default() },
            messages::Publication {
                data: b"\"x\"".to_vec(),
                offset: 9,
                info: Some(info()),
                tags: BTreeMap::from([("k".into(), "v".into())]),
                ..Default::default()
            },
        ],
        recovered: true,
        offset: (1 << 53) - 1,
        positioned: true,
        data: b"null".to_vec(),
        was_recovering: true,
        delta: true,
        id: 5,
    }
}

/// Server-side subscriptions: one with everything, one with nothing.
fn subs() -> impl Iterator<Item = ServerSubscription<'static, impl Iterator<Item = PublicationView<'static>>>> {
    [("a", SUBSCRIBED, publications()), ("b", SubscribeResult::default(), vec![])].into_iter().map(
        |(channel, result, publications)| {
            let publications = publications.into_iter();
            ServerSubscription { channel, result, publications }
        },
    )
}

fn subs_message() -> BTreeMap<String, messages::SubscribeResult> {
    BTreeMap::from([("a".into(), subscribed_message()), ("b".into(), Default::default())])
}

const CONNECTED: ConnectResult<'static> = ConnectResult {
    client: "id-1",
    version: "0.1",
    expires: true,
    ttl: 3600,
    data: Some(b"[1]"),
    ping: 25,
    pong: true,
    session: "s",
    node: "n",
    time: 1_700_000_000_000,
    flag: -2,
};

#[test]
fn connect_and_subscribe_results() {
    expect(
        |writer| writer.subscribe(2, &SUBSCRIBED, publications().into_iter()),
        &format!(r#"{{"id":2,"subscribe":{SUBSCRIBED_TEXT}}}"#),
        messages::Reply { subscribe: Some(subscribed_message()), ..reply(2) },
    );
    expect(
        |writer| writer.connect_with_subs(1, &CONNECTED, subs()),
        &format!(
            concat!(
                r#"{{"id":1,"connect":{{"client":"id-1","version":"0.1","expires":true,"ttl":3600,"data":[1],"#,
                r#""subs":{{"a":{text},"b":{{}}}},"ping":25,"pong":true,"session":"s","node":"n","#,
                r#""time":1700000000000,"flag":-2}}}}"#
            ),
            text = SUBSCRIBED_TEXT
        ),
        messages::Reply {
            connect: Some(messages::ConnectResult {
                client: "id-1".into(),
                version: "0.1".into(),
                expires: true,
                ttl: 3600,
                data: b"[1]".to_vec(),
                subs: subs_message(),
                ping: 25,
                pong: true,
                session: "s".into(),
                node: "n".into(),
                time: 1_700_000_000_000,
                flag: -2,
            }),
            ..reply(1)
        },
    );
}

// Other numbers than in the answer, another order, and no flag.
#[test]
fn connect_push() {
    expect(
        |writer| writer.push_connect(&CONNECTED, subs()),
        &format!(
            concat!(
                r#"{{"push":{{"connect":{{"client":"id-1","version":"0.1","data":[1],"subs":{{"a":{text},"b":{{}}}},"#,
                r#""expires":true,"ttl":3600,"ping":25,"pong":true,"session":"s","node":"n","#,
                r#""time":1700000000000}}}}}}"#
            ),
            text = SUBSCRIBED_TEXT
        ),
        messages::Reply {
            push: Some(messages::Push {
                connect: Some(messages::ConnectPush {
                    client: "id-1".into(),
                    version: "0.1".into(),
                    data: b"[1]".to_vec(),
                    subs: subs_message(),
                    expires: true,
                    ttl: 3600,
                    ping: 25,
                    pong: true,
                    session: "s".into(),
                    node: "n".into(),
                    time: 1_700_000_000_000,
                }),
                ..push("")
            }),
            ..reply(0)
        },
    );
}

#[test]
fn other_results() {
    expect(
        |writer| writer.presence(1, [INFO].into_iter()),
        concat!(
            r#"{"id":1,"presence":{"presence":{"id-1":"#,
            r#"{"user":"42","client":"id-1","conn_info":{"n":1},"chan_info":[]}}}}"#
        ),
        messages::Reply {
            presence: Some(messages::PresenceResult { presence: BTreeMap::from([("id-1".into(), info())]) }),
            ..reply(1)
        },
    );
    let two = [INFO, ClientInfoView { client: "id-2", ..Default::default() }];
    let (text, replies) = both(|writer| writer.presence(1, two.into_iter()));
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["presence"]["presence"]["id-2"]["user"], "");
    assert_eq!(replies[0].presence.as_ref().unwrap().presence.len(), 2);
    expect(
        |writer| writer.presence_stats(1, 300, 2),
        r#"{"id":1,"presence_stats":{"num_clients":300,"num_users":2}}"#,
        messages::Reply {
            presence_stats: Some(messages::PresenceStatsResult { num_clients: 300, num_users: 2 }),
            ..reply(1)
        },
    );
    expect(
        |writer| {
            let one = PublicationView { data: b"1", offset: 8, ..Default::default() };
            writer.history(1, [one, one].into_iter(), "e", 9)
        },
        r#"{"id":1,"history":{"publications":[{"data":1,"offset":8},{"data":1,"offset":8}],"epoch":"e","offset":9}}"#,
        messages::Reply {
            history: Some(messages::HistoryResult {
                publications: vec![messages::Publication { data: b"1".to_vec(), offset: 8, ..Default::default() }; 2],
                epoch: "e".into(),
                offset: 9,
            }),
            ..reply(1)
        },
    );
    expect(
        |writer| writer.rpc(1, b"[]"),
        r#"{"id":1,"rpc":{"data":[]}}"#,
        messages::Reply { rpc: Some(messages::RpcResult { data: b"[]".to_vec() }), ..reply(1) },
    );
    expect(
        |writer| writer.refresh(1, &RefreshResult { client: "c", version: "v", expires: true, ttl: 9 }),
        r#"{"id":1,"refresh":{"client":"c","version":"v","expires":true,"ttl":9}}"#,
        messages::Reply {
            refresh: Some(messages::RefreshResult { client: "c".into(), version: "v".into(), expires: true, ttl: 9 }),
            ..reply(1)
        },
    );
    expect(
        |writer| writer.sub_refresh(1, true, 9),
        r#"{"id":1,"sub_refresh":{"expires":true,"ttl":9}}"#,
        messages::Reply { sub_refresh: Some(messages::SubRefreshResult { expires: true, ttl: 9 }), ..reply(1) },
    );
}

#[test]
fn pushes() {
    let of = |push| messages::Reply { push: Some(push), ..reply(0) };
    expect(
        |writer| writer.push_unsubscribe("c", 2000, "server unsubscribe"),
        r#"{"push":{"channel":"c","unsubscribe":{"code":2000,"reason":"server unsubscribe"}}}"#,
        of(messages::Push {
            unsubscribe: Some(messages::UnsubscribePush { code: 2000, reason: "server unsubscribe".into() }),
            ..push("c")
        }),
    );
    expect(
        |writer| writer.push_message(b"{\"a\":1}"),
        r#"{"push":{"message":{"data":{"a":1}}}}"#,
        of(messages::Push { message: Some(messages::MessagePush { data: b"{\"a\":1}".to_vec() }), ..push("") }),
    );
    let info_text = r#"{"user":"42","client":"id-1","conn_info":{"n":1},"chan_info":[]}"#;
    let join_leave = Some(messages::JoinLeave { info: Some(info()) });
    expect(
        |writer| writer.push_join("c", &INFO),
        &format!(r#"{{"push":{{"channel":"c","join":{{"info":{info_text}}}}}}}"#),
        of(messages::Push { join: join_leave.clone(), ..push("c") }),
    );
    expect(
        |writer| writer.push_leave("c", &INFO),
        &format!(r#"{{"push":{{"channel":"c","leave":{{"info":{info_text}}}}}}}"#),
        of(messages::Push { leave: join_leave, ..push("c") }),
    );
    let subscribe = SubscribePush { recoverable: true, epoch: "e", offset: 3, positioned: true, data: b"{}" };
    expect(
        |writer| writer.push_subscribe("c", &subscribe),
        concat!(
            r#"{"push":{"channel":"c","subscribe":"#,
            r#"{"recoverable":true,"epoch":"e","offset":3,"positioned":true,"data":{}}}}"#
        ),
        of(messages::Push {
            subscribe: Some(messages::SubscribePush {
                recoverable: true,
                epoch: "e".into(),
                offset: 3,
                positioned: true,
                data: b"{}".to_vec(),
            }),
            ..push("c")
        }),
    );
}

#[test]
fn bare_pushes() {
    let [json, protobuf] = Form::ALL.map(|form| {
        let mut out = Vec::new();
        let mut writer = ReplyWriter::new(form, &mut out).bare(true);
        let no_subs = core::iter::empty::<ServerSubscription<'_, core::iter::Empty<_>>>();
        writer.push_connect(&ConnectResult { client: "id-1", ..Default::default() }, no_subs);
        writer.ping();
        writer.push_publication("c", &PublicationView { data: b"1", offset: 2, ..Default::default() });
        writer.push_join("c", &ClientInfoView { client: "i", ..Default::default() });
        writer.push_leave("c", &ClientInfoView { client: "i", ..Default::default() });
        writer.push_subscribe("d", &SubscribePush::default());
        writer.push_unsubscribe("d", 2000, "bye");
        writer.push_message(b"{}");
        writer.push_refresh(true, 60);
        writer.push_disconnect(&DisconnectPush { code: 3001, reason: "shutdown", reconnect: true });
        writer.push_disconnect(&DisconnectPush { code: 3500, reason: "invalid token", reconnect: false });
        out
    });
    assert_eq!(
        String::from_utf8(json).unwrap().lines().collect::<Vec<_>>(),
        [
            r#"{"connect":{"client":"id-1"}}"#,
            "{}",
            r#"{"channel":"c","pub":{"data":1,"offset":2}}"#,
            r#"{"channel":"c","join":{"info":{"user":"","client":"i"}}}"#,
            r#"{"channel":"c","leave":{"info":{"user":"","client":"i"}}}"#,
            r#"{"channel":"d","subscribe":{}}"#,
            r#"{"channel":"d","unsubscribe":{"code":2000,"reason":"bye"}}"#,
            r#"{"message":{"data":{}}}"#,
            r#"{"refresh":{"expires":true,"ttl":60}}"#,
            r#"{"disconnect":{"code":3001,"reason":"shutdown","reconnect":true}}"#,
            r#"{"disconnect":{"code":3500,"reason":"invalid token"}}"#,
        ]
    );
    let mut bytes = &protobuf[..];
    let mut pushes = Vec::new();
    while !bytes.is_empty() {
        pushes.push(messages::Push::decode_length_delimited(&mut bytes).unwrap());
    }
    let connect = messages::ConnectPush { client: "id-1".into(), ..Default::default() };
    let publication = messages::Publication { data: b"1".to_vec(), offset: 2, ..Default::default() };
    let info = messages::ClientInfo { client: "i".into(), ..Default::default() };
    let join_leave = Some(messages::JoinLeave { info: Some(info) });
    let disconnect = |code, reason: &str, reconnect| {
        let disconnect = messages::DisconnectPush { code, reason: reason.into(), reconnect };
        messages::Push { disconnect: Some(disconnect), ..push("") }
    };
    let unsubscribe = messages::UnsubscribePush { code: 2000, reason: "bye".into() };
    assert_eq!(
        pushes,
        [
            messages::Push { connect: Some(connect), ..push("") },
            push(""),
            messages::Push { r#pub: Some(publication), ..push("c") },
            messages::Push { join: join_leave.clone(), ..push("c") },
            messages::Push { leave: join_leave, ..push("c") },
            messages::Push { subscribe: Some(Default::default()), ..push("d") },
            messages::Push { unsubscribe: Some(unsubscribe), ..push("d") },
            messages::Push { message: Some(messages::MessagePush { data: b"{}".to_vec() }), ..push("") },
            messages::Push { refresh: Some(messages::RefreshPush { expires: true, ttl: 60 }), ..push("") },
            disconnect(3001, "shutdown", true),
            disconnect(3500, "invalid token", false),
        ]
    );
}

#[test]
fn several_replies_make_one_message() {
    let (text, replies) = both(|writer| {
        writer.publish(1);
        writer.ping();
        writer.push_publication("c", &PublicationView { data: b"1", ..Default::default() });
        writer.error(2, ClientError::Expired);
    });
    assert_eq!(
        text,
        concat!(
            "{\"id\":1,\"publish\":{}}\n{}\n{\"push\":{\"channel\":\"c\",\"pub\":{\"data\":1}}}\n",
            "{\"id\":2,\"error\":{\"code\":110,\"message\":\"expired\"}}"
        )
    );
    assert_eq!(replies.len(), 4);
    assert_eq!(replies[1], messages::Reply::default());
    assert_eq!(PING[Json as usize], b"{}");
    assert_eq!(PING[Protobuf as usize], b"\0");
}

#[test]
fn golden_publication() {
    // The specification gives the sizes of this push: 85 and 43 bytes.
    let view = PublicationView { data: b"{\"score\":\"1-0 (41)\"}", offset: 123_456, ..Default::default() };
    assert_eq!(view.data.len(), 20);
    let mut out = b"header".to_vec();
    let range = plain_push(Json, &mut out, "news:sport", &view);
    assert_eq!(out.len() - 6, 85);
    assert_eq!(
        out,
        b"header{\"push\":{\"channel\":\"news:sport\",\"pub\":{\"data\":{\"score\":\"1-0 (41)\"},\"offset\":123456}}}"
    );
    assert_eq!(&out[range], view.data);

    let mut out = b"header".to_vec();
    let range = plain_push(Protobuf, &mut out, "news:sport", &view);
    assert_eq!(out.len() - 6, 43);
    assert_eq!(out, b"header\x2a\x22\x28\x12\x0anews:sport\x22\x1a\x22\x14{\"score\":\"1-0 (41)\"}\x30\xc0\xc4\x07");
    assert_eq!(&out[range], view.data);
}

#[test]
fn lengths_at_the_borders_of_their_forms() {
    for len in [
        0, 1, 100, 110, 118, 119, 120, 121, 122, 123, 124, 125, 126, 127, 128, 129, 16_370, 16_383, 16_384, 2_097_151,
        2_097_152,
    ] {
        let data = vec![b'7'; len];
        let mut out = Vec::new();
        ReplyWriter::new(Protobuf, &mut out).rpc(1, &data);
        assert_eq!(
            decode_all(&out),
            [messages::Reply { rpc: Some(messages::RpcResult { data: data.clone() }), ..reply(1) }]
        );
        let mut out = Vec::new();
        let view = PublicationView { data: &data, ..Default::default() };
        let range = plain_push(Protobuf, &mut out, "", &view);
        assert_eq!(out[range], data);
        let publication = messages::Publication { data, ..Default::default() };
        assert_eq!(
            decode_all(&out),
            [messages::Reply { push: Some(messages::Push { r#pub: Some(publication), ..push("") }), ..reply(0) }]
        );
    }
}

proptest! {
    #[test]
    fn publications_in_both_forms(
        channel in any::<String>(),
        data in value(),
        info in any::<Option<(String, String)>>(),
        (conn_info, chan_info) in (proptest::option::of(value()), proptest::option::of(value())),
        offset in prop_oneof![0..300_u64, any::<u64>()],
        tags in proptest::collection::btree_map(any::<String>(), any::<String>(), 0..4),
    ) {
        let data_text = serde_json::to_vec(&data).unwrap();
        let text = |value: &Option<Value>| value.as_ref().map(|value| serde_json::to_vec(value).unwrap());
        let (conn_text, chan_text) = (text(&conn_info).unwrap_or_default(), text(&chan_info).unwrap_or_default());
        let tag_list: Vec<Tag> = tags.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect();
        let view = PublicationView {
            data: &data_text,
            offset,
            info: info.as_ref().map(|(user, client)| ClientInfoView {
                user, client, conn_info: &conn_text, chan_info: &chan_text,
            }),
            tags: &tag_list,
            ..Default::default()
        };

        let mut out = b"x".to_vec();
        let range = plain_push(Json, &mut out, &channel, &view);
        prop_assert_eq!(&out[range], &data_text[..]);
        prop_assert!(!out.contains(&b'\n'));
        let mut expected = json!({ "data": data });
        if let Some((user, client)) = &info {
            let mut object = json!({ "user": user, "client": client });
            if let Some(value) = &conn_info { object["conn_info"] = value.clone(); }
            if let Some(value) = &chan_info { object["chan_info"] = value.clone(); }
            expected["info"] = object;
        }
        if offset > 0 { expected["offset"] = json!(offset); }
        if !tags.is_empty() { expected["tags"] = json!(tags); }
        let mut push_expected = json!({ "pub": expected });
        if !channel.is_empty() { push_expected["channel"] = json!(channel); }
        let parsed: Value = serde_json::from_slice(&out[1..]).unwrap();
        prop_assert_eq!(parsed, json!({ "push": push_expected }));

        let mut out = b"x".to_vec();
        let range = plain_push(Protobuf, &mut out, &channel, &view);
        prop_assert_eq!(&out[range], &data_text[..]);
        let publication = messages::Publication {
            data: data_text.clone(),
            info: info.clone().map(|(user, client)| messages::ClientInfo {
                user, client, conn_info: conn_text.clone(), chan_info: chan_text.clone(),
            }),
            offset,
            tags: tags.clone(),
            ..Default::default()
        };
        let push = messages::Push { channel: channel.clone(), r#pub: Some(publication.clone()), ..Default::default() };
        prop_assert_eq!(decode_all(&out[1..]), [messages::Reply { push: Some(push), ..reply(0) }]);

        // The same publication inside a result.
        let mut out = Vec::new();
        ReplyWriter::new(Protobuf, &mut out).subscribe(9, &SubscribeResult::default(), [view; 3].into_iter());
        let subscribe = messages::SubscribeResult { publications: vec![publication; 3], ..Default::default() };
        prop_assert_eq!(decode_all(&out), [messages::Reply { subscribe: Some(subscribe), ..reply(9) }]);
    }
}

#[test]
fn every_shape_of_a_publication() {
    let view = PublicationView { data: br#"{"a":"\n"}"#, offset: 7, info: Some(INFO), ..Default::default() };
    let escaped = r#""{\"a\":\"\\n\"}""#;
    let info_text = r#""info":{"user":"42","client":"id-1","conn_info":{"n":1},"chan_info":[]}"#;
    for (channel, bare, data) in [ChannelRef::Name("c"), ChannelRef::Name(""), ChannelRef::Number(300)]
        .into_iter()
        .flat_map(|channel| [false, true].map(|bare| (channel, bare)))
        .flat_map(|(channel, bare)| {
            [PushData::Plain, PushData::Whole, PushData::Delta].map(|data| (channel, bare, data))
        })
    {
        let shape = |form| PushShape { form, bare, channel };
        let mut out = b"before".to_vec();
        let range = push_publication(&shape(Json), data, &mut out, &view);
        let channel_text = match channel {
            ChannelRef::Name("") => String::new(),
            ChannelRef::Name(name) => format!(r#""channel":"{name}","#),
            ChannelRef::Number(number) => format!(r#""id":{number},"#),
        };
        let (data_text, delta_text) = match data {
            PushData::Plain => (r#"{"a":"\n"}"#, ""),
            PushData::Whole => (escaped, ""),
            PushData::Delta => (escaped, r#","delta":true"#),
        };
        let push_text = format!(r#"{{{channel_text}"pub":{{"data":{data_text},{info_text},"offset":7{delta_text}}}}}"#);
        let expected = if bare { push_text } else { format!(r#"{{"push":{push_text}}}"#) };
        assert_eq!(core::str::from_utf8(&out[6..]).unwrap(), expected);
        serde_json::from_str::<Value>(&expected).unwrap();
        assert_eq!(range.map(|range| &out[range]), (data == PushData::Plain).then_some(view.data));

        let mut out = b"before".to_vec();
        let range = push_publication(&shape(Protobuf), data, &mut out, &view).unwrap();
        assert_eq!(&out[range], view.data);
        let publication = messages::Publication {
            data: view.data.to_vec(),
            offset: 7,
            info: Some(info()),
            delta: data == PushData::Delta,
            ..Default::default()
        };
        let (id, name) = match channel {
            ChannelRef::Name(name) => (0, name),
            ChannelRef::Number(number) => (number, ""),
        };
        let push = messages::Push { id, r#pub: Some(publication), ..push(name) };
        if bare {
            assert_eq!(messages::Push::decode_length_delimited(&out[6..]), Ok(push));
        } else {
            assert_eq!(decode_all(&out[6..]), [messages::Reply { push: Some(push), ..reply(0) }]);
        }
    }
}

#[test]
fn joins_and_leaves_in_every_shape() {
    let bytes = |shape: PushShape<'_>, write: fn(&PushShape<'_>, &mut Vec<u8>, &ClientInfoView<'_>)| {
        let mut out = Vec::new();
        write(&shape, &mut out, &ClientInfoView { user: "u", client: "i", ..Default::default() });
        out
    };
    let compact = PushShape { form: Json, bare: false, channel: ChannelRef::Number(7) };
    assert_eq!(bytes(compact, push_join), br#"{"push":{"id":7,"join":{"info":{"user":"u","client":"i"}}}}"#);
    let bare = PushShape { form: Json, bare: true, channel: ChannelRef::Name("c") };
    assert_eq!(bytes(bare, push_leave), br#"{"channel":"c","leave":{"info":{"user":"u","client":"i"}}}"#);
    let compact = PushShape { form: Protobuf, ..compact };
    assert_eq!(bytes(compact, push_leave), b"\x0e\x22\x0c\x08\x07\x32\x08\x0a\x06\x0a\x01u\x12\x01i");
    let bare = PushShape { form: Protobuf, ..bare };
    assert_eq!(bytes(bare, push_join), b"\x0d\x12\x01c\x2a\x08\x0a\x06\x0a\x01u\x12\x01i");
}

#[test]
fn lists_of_subscriptions_with_deltas_hold_strings() {
    let publications = [
        PublicationView { data: b"{}", offset: 8, ..Default::default() },
        PublicationView { data: b"0{2x~;", offset: 9, data_as: PushData::Delta, ..Default::default() },
    ];
    let result = SubscribeResult { delta: true, ..Default::default() };
    let (text, replies) = both(|writer| writer.subscribe(1, &result, publications.iter().copied()));
    let list = r#"[{"data":"{}","offset":8},{"data":"0{2x~;","offset":9,"delta":true}]"#;
    assert_eq!(text, format!(r#"{{"id":1,"subscribe":{{"publications":{list},"delta":true}}}}"#));
    let sent = &replies[0].subscribe.as_ref().unwrap().publications;
    assert_eq!((&sent[0].data[..], sent[0].delta), (&b"{}"[..], false));
    assert_eq!((&sent[1].data[..], sent[1].delta), (&b"0{2x~;"[..], true));
    // History knows nothing of deltas.
    let (text, _) = both(|writer| writer.history(1, publications[..1].iter().copied(), "e", 8));
    assert!(text.contains(r#"{"data":{},"offset":8}"#));
}
