//! The server API over real sockets: what each method asks of the shards, and how their answers look.

use std::sync::Mutex;

use ringway_engine::call::{CallError, ChannelAsk, ChannelFact, HistoryAsk, Since, UserOrder};
use ringway_engine::ids::{ConnId, CoreId};
use ringway_engine::past::Past;
use ringway_engine::presence::Member;
use ringway_engine::publication::{Extra, Publisher, Tags};
use ringway_engine::tokens::Overrides;
use serde_json::{Value, json};

use super::*;
use crate::control::call::{ChannelTold, ChannelsListed, RevokeError};

fn member(client: &str, user: &str, conn_info: &[u8], chan_info: &[u8]) -> Arc<Member> {
    let conn = ConnId { slot: 1, generation: 1 };
    let (conn_info, chan_info) = (conn_info.into(), chan_info.into());
    Arc::new(Member { core: CoreId(0), conn, client: client.into(), user: user.into(), conn_info, chan_info })
}

fn past() -> Past {
    let (user, client) = ("ann".into(), "c1".into());
    let publisher = Publisher { user, client, conn_info: Box::default(), chan_info: Box::default() };
    let mut past = Past::new(4, false);
    past.push((b"{\"n\":4}", b""), None);
    past.push((b"5", b""), Extra::of(Some(publisher), Tags::default()));
    past
}

/// Answers everything but publishes; channel and user names ask for what.
pub(super) fn other_shards(call: Call) {
    match call {
        Call::Backplane { request, .. } => panic!("there is none: {request:?}"),
        Call::Publish { .. } => unreachable!("answered elsewhere"),
        Call::Channel { channel, ask, reply } => {
            let kind = if channel == "bytes" { PayloadKind::Bytes } else { PayloadKind::Json };
            let fact = match (channel.as_str(), ask) {
                ("unknown", _) => Err(CallError::UnknownChannel),
                ("off", _) => Err(CallError::NotAvailable),
                ("gone", _) => Err(CallError::UnrecoverablePosition),
                ("large", _) => Err(CallError::LimitExceeded),
                ("senseless", _) => Err(CallError::BadRequest),
                ("busy", _) => Err(CallError::Busy),
                ("dropped", _) => return,
                (_, ChannelAsk::Presence) => Ok(ChannelFact::Presence(vec![
                    member("c1", "ann", b"{\"a\":1}", b""),
                    member("c2", "", b"", b"[2]"),
                ])),
                (_, ChannelAsk::PresenceStats) => Ok(ChannelFact::PresenceStats { clients: 7, users: 3 }),
                // The top tells the test what was asked.
                (_, ChannelAsk::History(HistoryAsk { limit, since, reverse })) => Ok(ChannelFact::History {
                    publications: past(),
                    top: Position {
                        offset: limit as u64 * 1_000 + reverse as u64 * 100 + since.map_or(0, |since| since.offset),
                        epoch: since.and_then(|since| since.epoch).unwrap_or(EPOCH),
                    },
                }),
                (_, ChannelAsk::HistoryRemove) => Ok(ChannelFact::Removed),
            };
            let _ = reply.send(fact.map(|fact| ChannelTold { fact, kind }));
        }
        Call::User { user, reply, .. } => {
            let _ = match user.as_str() {
                "unknown" => reply.send(Err(CallError::UnknownChannel)),
                "busy" => reply.send(Err(CallError::Busy)),
                _ => reply.send(Ok(2)),
            };
        }
        Call::Channels { reply, .. } => {
            let channels = [("a:1".into(), 3), ("b:1".into(), 4)].into();
            let _ = reply.send(Ok(ChannelsListed { channels, total: 9 }));
        }
        Call::RevokeToken { token_id, reply, .. } => {
            let _ = reply.send(match token_id.as_str() {
                "busy" => Err(RevokeError::Busy),
                "none" => Err(RevokeError::Refused("no tokens".into())),
                _ => Ok(()),
            });
        }
        Call::Reload { reply } => {
            let _ = reply.send(Ok(Reloaded { applied: Vec::new(), needs_restart: vec!["shards".into()] }));
        }
    }
}

fn server() -> Server {
    Server::start(|_| {}, 64, shards)
}

fn answer(server: &Server, method: &str, body: &Value) -> Value {
    let (status, answer) = server.api(method, &body.to_string());
    assert_eq!(status, 200, "{method} {body}: {answer}");
    serde_json::from_str(&answer).expect("is JSON")
}

fn error_code(server: &Server, method: &str, body: &Value) -> u64 {
    answer(server, method, body)["error"]["code"].as_u64().unwrap_or_default()
}

#[test]
fn broadcast_answers_each_channel() {
    let server = server();
    let got = answer(&server, "broadcast", &json!({ "channels": ["a", "unknown", "plain"], "data": 1 }));
    let responses = &got["result"]["responses"];
    assert_eq!(responses[0], json!({ "result": { "offset": 1000, "epoch": EPOCH.to_string() } }));
    assert_eq!(responses[1], json!({ "error": { "code": 102, "message": "unknown channel" } }));
    assert_eq!(responses[2], json!({ "result": {} }));
    let one_too_many = json!({ "channels": ["a", "b", "c", "d"], "data": 1 });
    for (body, code) in [
        (one_too_many, 106),
        (json!({ "channels": [], "data": 1 }), 107),
        (json!({ "channels": ["a", ""], "data": 1 }), 107),
        (json!({ "channels": ["a"] }), 107),
        (json!({ "channels": "a", "data": 1 }), 107),
    ] {
        assert_eq!(error_code(&server, "broadcast", &body), code, "{body}");
    }
    let metrics = server.get("/metrics").2;
    for line in ["{method=\"broadcast\",result=\"ok\"} 1", "{method=\"broadcast_publish\",result=\"refused\"} 1"] {
        assert!(metrics.contains(&format!("ringway_api_calls_total{line}\n")), "{line}");
    }
}

#[test]
fn questions_about_channels() {
    let server = server();
    assert_eq!(
        answer(&server, "presence", &json!({ "channel": "p" })),
        json!({ "result": { "presence": {
            "c1": { "client": "c1", "user": "ann", "conn_info": { "a": 1 } },
            "c2": { "client": "c2", "user": "", "chan_info": [2] },
        } } })
    );
    let stats = answer(&server, "presence_stats", &json!({ "channel": "p" }));
    assert_eq!(stats, json!({ "result": { "num_clients": 7, "num_users": 3 } }));
    let since = json!({ "offset": 12, "epoch": EPOCH.to_string() });
    assert_eq!(
        answer(&server, "history", &json!({ "channel": "h", "limit": 3, "reverse": true, "since": since })),
        json!({ "result": {
            "publications": [
                { "data": { "n": 4 }, "offset": 4 },
                { "data": 5, "offset": 5, "info": { "client": "c1", "user": "ann" } },
            ],
            "offset": 3112,
            "epoch": EPOCH.to_string(),
        } })
    );
    let bytes = answer(&server, "history", &json!({ "channel": "bytes", "limit": -1 }));
    assert_eq!(bytes["result"]["publications"][1]["data"], Value::Null);
    assert_eq!(bytes["result"]["publications"][1]["b64data"], "NQ==");
    assert_eq!(bytes["result"]["offset"], 10_000, "-1 is the configured bound");
    assert_eq!(answer(&server, "history", &json!({ "channel": "h" }))["result"]["offset"], 0, "absent is 0");
    assert_eq!(answer(&server, "history_remove", &json!({ "channel": "h" })), json!({ "result": {} }));
    for (body, code) in [
        (json!({ "channel": "h", "limit": 11 }), 106),
        (json!({ "channel": "h", "limit": -2 }), 107),
        (json!({ "channel": "h", "since": { "offset": -1 } }), 107),
        (json!({ "channel": "h", "since": { "offset": 1_u64 << 53 } }), 107),
        (json!({ "channel": "" }), 107),
        (json!({}), 107),
    ] {
        assert_eq!(error_code(&server, "history", &body), code, "{body}");
    }
}

#[test]
fn refusals_of_channel_calls_keep_their_codes() {
    let server = server();
    let cases = [
        ("unknown", 102, 404),
        ("off", 108, 400),
        ("gone", 112, 416),
        ("large", 106, 400),
        ("senseless", 107, 400),
        ("busy", 111, 429),
    ];
    for (channel, code, status) in cases {
        let body = json!({ "channel": channel });
        assert_eq!(error_code(&server, "presence", &body), code, "{channel}");
        let head = "POST /api/presence HTTP/1.1\r\nX-API-Key: key\r\nX-Centrifugo-Error-Mode: transport";
        assert_eq!(server.request(head, &body.to_string()).0, status, "{channel}");
    }
    assert_eq!(server.api("presence", "{\"channel\":\"dropped\"}").0, 504);
}

#[test]
fn channels_are_listed_by_pattern() {
    let server = server();
    let names = |pattern: Value| {
        let got = answer(&server, "channels", &pattern);
        got["result"]["channels"].as_object().expect("is an object").keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(names(json!({})), ["a:1", "b:1"]);
    assert_eq!(names(json!({ "pattern": "a:*" })), ["a:1"]);
    assert_eq!(names(json!({ "pattern": "?:1" })), ["a:1", "b:1"]);
    assert_eq!(names(json!({ "pattern": ":" })), Vec::<String>::new());
    assert_eq!(answer(&server, "channels", &json!({}))["result"]["channels"]["b:1"], json!({ "num_clients": 4 }));
    assert_eq!(error_code(&server, "channels", &json!({ "pattern": "[ab]" })), 107);
    let narrow = Server::start(|options| options.api.channels_listed_max = 1, 64, shards);
    assert_eq!(error_code(&narrow, "channels", &json!({})), 106);
}

/// User, client, order.
type Order = (String, String, UserOrder);

/// What a server's user calls were, in order.
fn recording() -> (Server, Arc<Mutex<Vec<Order>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&seen);
    let server = Server::start(
        |_| {},
        64,
        async move |call| {
            if let Call::User { user, client, order, reply } = call {
                record.lock().expect("no panic").push((user, client, order));
                let _ = reply.send(Ok(1));
            }
        },
    );
    (server, seen)
}

#[test]
fn orders_about_users() {
    let (server, seen) = recording();
    let take = |method: &str, body: Value| {
        assert_eq!(answer(&server, method, &body), json!({ "result": {} }), "{method}");
        seen.lock().expect("no panic").pop().expect("was sent")
    };
    let (user, client, order) = take(
        "subscribe",
        json!({
            "user": "ann", "channel": "a", "client": "c1", "info": { "i": 1 }, "b64data": "WzFd",
            "recover_since": { "offset": 3, "epoch": "" },
            "override": { "presence": { "value": true }, "force_recovery": { "value": false }, "join_leave": null },
        }),
    );
    assert_eq!((user.as_str(), client.as_str()), ("ann", "c1"));
    let UserOrder::Subscribe { subscription, recover } = order else { panic!("{order:?}") };
    assert_eq!(
        (&*subscription.channel, &*subscription.info, &*subscription.data),
        ("a", &b"{\"i\":1}"[..], &b"[1]"[..])
    );
    assert_eq!(subscription.expires_in_ms, None);
    assert_eq!(recover, Some(Since { offset: 3, epoch: None }));
    let overrides = Overrides { presence: Some(true), recovery: Some(false), ..Overrides::default() };
    assert_eq!(subscription.overrides, overrides);

    let (_, client, order) = take("unsubscribe", json!({ "user": "ann", "channel": "a" }));
    let all = UserOrder::Unsubscribe { channel: "a".into(), code: 2000, reason: "server unsubscribe".into() };
    assert_eq!((client.as_str(), order), ("", all));

    // What `cent` sends for a disconnect without code and reason.
    let (.., order) = take("disconnect", json!({ "user": "ann", "disconnect": { "code": 0, "reason": "" } }));
    let default = UserOrder::Disconnect { code: 3503, reason: "force disconnect".into(), whitelist: vec![] };
    assert_eq!(order, default);
    let disconnect = json!({ "user": "ann", "whitelist": ["c1"], "disconnect": { "code": 4242, "reason": "bye" } });
    let (.., order) = take("disconnect", disconnect);
    assert_eq!(order, UserOrder::Disconnect { code: 4242, reason: "bye".into(), whitelist: vec!["c1".into()] });

    let (.., order) = take("refresh", json!({ "user": "ann" }));
    assert_eq!(order, UserOrder::Refresh { expired: false, expires_in_ms: None, info: None });
    let (.., order) = take("refresh", json!({ "user": "ann", "expire_at": 1, "info": [1] }));
    let over = UserOrder::Refresh { expired: true, expires_in_ms: Some(0), info: Some(b"[1]".as_slice().into()) };
    assert_eq!(order, over);

    let (.., order) = take("rpc", json!({ "user": "ann", "data": null }));
    assert_eq!(order, UserOrder::Message { data: b"null".as_slice().into() });
}

#[test]
fn bad_orders_are_refused() {
    let (server, seen) = recording();
    for (method, body) in [
        ("subscribe", json!({ "user": "", "channel": "a" })),
        ("subscribe", json!({ "user": "ann", "channel": "" })),
        ("subscribe", json!({ "user": "ann", "channel": "a", "session": "s" })),
        ("subscribe", json!({ "user": "ann", "channel": "a", "expire_at": -1 })),
        ("subscribe", json!({ "user": "a".repeat(1_025), "channel": "a" })),
        ("disconnect", json!({ "user": "ann", "disconnect": { "code": 1000 } })),
        ("disconnect", json!({ "user": "ann", "disconnect": { "reason": "{}" } })),
        ("disconnect", json!({ "user": "ann", "disconnect": { "reason": "a".repeat(124) } })),
        ("rpc", json!({ "user": "ann" })),
        ("rpc", json!({ "user": "ann", "b64data": "?" })),
    ] {
        assert_eq!(error_code(&server, method, &body), 107, "{method} {body}");
    }
    let not_json = json!({ "user": "ann", "channel": "a", "b64info": "AAEC" });
    assert_eq!(error_code(&server, "subscribe", &not_json), 113);
    assert_eq!(server.api("rpc", &json!({ "user": "ann", "data": "x".repeat(2_000) }).to_string()).0, 413);
    assert!(seen.lock().expect("no panic").is_empty(), "nothing reached the shards");
}

#[test]
fn calls_about_the_node() {
    let server = server();
    let mut numbers = Metrics::new();
    numbers.set(Metric::ConnectionsOpen, 5);
    numbers.set(Metric::SubscriptionsOpen, 6);
    server.metrics.publish(1, &numbers);
    let info = answer(&server, "info", &json!({}));
    let node = &info["result"]["nodes"][0];
    assert_eq!((&node["num_clients"], &node["num_subs"]), (&json!(5), &json!(6)), "{info}");
    assert_eq!(node["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(node["name"], "n7");
    assert!(node["process"]["rss"].as_u64().is_some_and(|rss| rss > 100_000), "{node}");
    assert_eq!(answer(&server, "info", &json!({}))["result"]["nodes"][0]["uid"], node["uid"]);

    assert_eq!(
        answer(&server, "reload", &json!({})),
        json!({ "result": { "applied": [], "needs_restart": ["shards"] } })
    );
    for body in [json!({ "token_id": "t" }), json!({ "uid": "t" }), json!({ "token_id": "t", "expire_at": 0 })] {
        assert_eq!(answer(&server, "revoke_token", &body), json!({ "result": {} }), "{body}");
    }
    for (id, code) in [("", 107), ("busy", 111), ("none", 108)] {
        assert_eq!(error_code(&server, "revoke_token", &json!({ "token_id": id })), code, "{id:?}");
    }
}

#[test]
fn a_batch_answers_in_order_and_is_refused_as_a_whole() {
    let server = server();
    let commands = json!([
        { "publish": { "channel": "a", "data": 1 } },
        { "presence_stats": { "channel": "off" } },
        { "disconnect": { "user": "ann" } },
        { "broadcast": { "channels": ["a"], "data": 1 } },
    ]);
    for parallel in [json!(true), json!(false), json!(null)] {
        let got = answer(&server, "batch", &json!({ "commands": commands, "parallel": parallel }));
        assert_eq!(
            got["replies"],
            json!([
                { "publish": { "offset": 1000, "epoch": EPOCH.to_string() } },
                { "error": { "code": 108, "message": "not available: the channel's namespace does not have it" } },
                { "disconnect": {} },
                { "broadcast": { "responses": [{ "result": { "offset": 1000, "epoch": EPOCH.to_string() } }] } },
            ])
        );
    }
    assert_eq!(answer(&server, "batch", &json!({ "commands": [] })), json!({ "replies": [] }));
    let five = json!({ "commands": vec![json!({ "info": {} }); 5] });
    for (body, code) in [
        (five, 106),
        (json!({ "commands": [{ "publish": { "channel": "a", "data": 1 } }, { "nothing": {} }] }), 107),
        (json!({ "commands": [{ "publish": { "channel": "a", "data": 1 }, "info": {} }] }), 107),
        (json!({ "commands": [{}] }), 107),
        (json!({}), 107),
    ] {
        assert_eq!(error_code(&server, "batch", &body), code, "{body}");
    }
}

/// A batch of several commands must not cost a round trip each: the shards here answer only when all have come.
#[test]
fn commands_of_a_batch_and_channels_of_a_broadcast_are_under_way_together() {
    let waiting = Mutex::new(Vec::new());
    let server = Server::start(
        |_| {},
        64,
        async move |call| {
            let Call::Publish { reply, .. } = call else { return };
            let mut waiting = waiting.lock().expect("no panic");
            waiting.push(reply);
            if waiting.len() == 3 {
                let published = Published { position: Position { offset: 9, epoch: EPOCH }, duplicate: false };
                for reply in waiting.drain(..) {
                    let _ = reply.send(Ok(published));
                }
            }
        },
    );
    let publish = json!({ "publish": { "channel": "a", "data": 1 } });
    let got = answer(&server, "batch", &json!({ "commands": [publish, publish, publish] }));
    assert_eq!(got["replies"][2]["publish"]["offset"], 9, "{got}");
    let got = answer(&server, "broadcast", &json!({ "channels": ["a", "b", "c"], "data": 1 }));
    assert_eq!(got["result"]["responses"][2]["result"]["offset"], 9, "{got}");
}

#[test]
fn the_older_single_endpoint() {
    let server = server();
    let call = |body: Value| {
        let head = "POST /api HTTP/1.1\r\nX-API-Key: key";
        let (status, _, answer) = server.request(head, &body.to_string());
        (status, serde_json::from_str::<Value>(&answer).expect("is JSON"))
    };
    let (status, got) = call(json!({ "method": "publish", "params": { "channel": "a", "data": { "x": 1 } } }));
    assert_eq!((status, &got["result"]["offset"]), (200, &json!(7000)));
    assert_eq!(call(json!({ "method": "info" })).1["result"]["nodes"][0]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(call(json!({ "method": "nothing", "params": {} })).1["error"]["code"], 104);
    assert_eq!(call(json!({ "method": "publish" })).1["error"]["code"], 107);
    assert_eq!(call(json!([])).1["error"]["code"], 107);
}

#[test]
fn transport_mode_says_errors_by_status() {
    let server = server();
    let status = |mode: &str, body: &str| {
        let head = format!("POST /api/publish HTTP/1.1\r\nX-API-Key: key\r\nX-Centrifugo-Error-Mode: {mode}");
        server.request(&head, body).0
    };
    for (body, expected) in [
        ("{\"channel\":\"a\",\"data\":1}", 200),
        ("{", 400),
        ("{\"channel\":\"unknown\",\"data\":1}", 404),
        ("{\"channel\":\"denied\",\"data\":1}", 403),
        ("{\"channel\":\"kind\",\"data\":1}", 409),
        ("{\"channel\":\"large\",\"data\":1}", 413),
        ("{\"channel\":\"busy\",\"data\":1}", 429),
        ("{\"channel\":\"dropped\",\"data\":1}", 504),
    ] {
        assert_eq!(status("transport", body), expected, "{body}");
    }
    assert_eq!(status("any", "{"), 200);
}

#[test]
fn the_key_is_checked_before_the_body_by_every_method() {
    let server = server();
    for method in ["publish", "batch", "history", "reload", "channels"] {
        // No body comes, and yet there is an answer.
        let head =
            format!("POST /api/{method} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n");
        let (status, _, answer) = server.raw(head.as_bytes());
        assert_eq!(
            (status, answer.as_str()),
            (401, "{\"error\":{\"code\":101,\"message\":\"unauthorized\"}}"),
            "{method}"
        );
    }
}

#[test]
fn the_description_is_served() {
    let server = server();
    let (status, head, body) = server.get("/api/openapi.json");
    assert!(status == 200 && head.contains("content-type: application/json"), "{head}");
    let document: Value = serde_json::from_str(&body).expect("is JSON");
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["components"]["schemas"]["HistoryRequest"]["properties"]["limit"]["maximum"], 10);
}

#[test]
fn a_drain_begins_with_the_key_alone_and_no_batch_can_hold_one() {
    let server = server();
    server.ready.set(Phase::Ready);
    let ready = || server.get("/ready").0;
    let told = |head: &str, body: &str| server.request(&format!("{head} HTTP/1.1\r\nX-API-Key: key"), body);
    assert_eq!(server.get("/api/drain").0, 401);
    assert_eq!(server.request("POST /api/drain HTTP/1.1", "{}").0, 401);
    let batch = json!({ "commands": [{ "drain": {} }] });
    assert_eq!(error_code(&server, "batch", &batch), 107);
    assert_eq!(error_code(&server, "drain", &json!([])), 107);
    let asked: Value = serde_json::from_str(&told("GET /api/drain", "").2).expect("is JSON");
    assert_eq!((&asked["result"]["state"], ready()), (&json!("serving"), 200), "{asked}");
    let mut numbers = Metrics::new();
    numbers.set(Metric::ConnectionsOpen, 5);
    server.metrics.publish(1, &numbers);
    let begun = answer(&server, "drain", &json!({}));
    let result = &begun["result"];
    assert_eq!((&result["state"], &result["clients_at_start"], ready()), (&json!("grace"), &json!(5), 503), "{begun}");
    assert!(server.get("/metrics").2.contains("ringway_api_calls_total{method=\"drain\",result=\"ok\"} 2\n"));
}
