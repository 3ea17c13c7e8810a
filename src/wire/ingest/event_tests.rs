//! Events, answers and calls: round trips, cuts at every byte, hostile counts, and the examples of `docs/INGEST.md`.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::tests::{example, relength};
use super::*;

fn event(what: Happened<'static>) -> ClientEvent<'static> {
    let ask = matches!(what.kind(), EventKind::Connect | EventKind::Rpc);
    ClientEvent { ask, transport: Transport::Protobuf, client: "c-1", user: "ann", meta: b"{}", what }
}

fn events() -> Vec<ClientEvent<'static>> {
    [
        Happened::Connect { name: "js", version: "5", info: b"{\"a\":1}", data: b"1" },
        Happened::Disconnect { code: 3000, reason: "normal" },
        Happened::Subscribe { channel: "news", data: b"" },
        Happened::Unsubscribe { channel: "news" },
        Happened::Publish { channel: "news", data: b"[]" },
        Happened::Rpc { method: "sum", data: b"[1,2]" },
        Happened::Message { data: &[0xff] },
    ]
    .map(event)
    .to_vec()
}

fn grant() -> Grant<'static> {
    let overrides = Overrides { presence: Some(true), recovery: Some(false), ..Overrides::default() };
    Grant { info: b"{}", data: b"1", expires_in_ms: Some(1_000), overrides }
}

fn with_verdicts(each: &mut dyn FnMut(&Verdict<'_>)) {
    let mut subscriptions = ListBuf::new();
    subscriptions.push(&Subscription { channel: "a", grant: grant() }).unwrap();
    subscriptions.push(&Subscription { channel: "b", grant: Grant::default() }).unwrap();
    let admission = Admission {
        user: "ann",
        info: b"{}",
        meta: b"2",
        data: b"3",
        expires_in_ms: Some(60_000),
        subscriptions: subscriptions.list(),
    };
    each(&Verdict::Error { code: 403, temporary: true, message: "no" });
    each(&Verdict::Disconnect { code: 4_500, reason: "banned" });
    each(&Verdict::Connect(admission));
    each(&Verdict::Connect(Admission::ANONYMOUS));
    each(&Verdict::Subscribe(grant()));
    each(&Verdict::Publish { data: None });
    each(&Verdict::Publish { data: Some(b"{}") });
    each(&Verdict::Rpc { data: b"3" });
}

fn with_calls(each: &mut dyn FnMut(&CallBody<'_>)) {
    let mut clients = ListBuf::new();
    clients.push(&"c-1").unwrap();
    clients.push(&"c-2").unwrap();
    let (user, client, channel) = ("ann", "c-1", "news");
    let since = Some(Since { offset: 7, epoch: Some((1, 2)) });
    each(&CallBody::Presence { channel });
    each(&CallBody::PresenceStats { channel });
    each(&CallBody::History { channel, reverse: true, limit: -1, since });
    each(&CallBody::History { channel, reverse: false, limit: 5, since: Some(Since { offset: 1, epoch: None }) });
    each(&CallBody::HistoryRemove { channel });
    let subscription = Subscription { channel, grant: grant() };
    each(&CallBody::Subscribe { user, client, subscription, recover: since });
    each(&CallBody::Unsubscribe { user, client: "", channel, code: 2_000, reason: "bye" });
    each(&CallBody::Disconnect { user, client, code: 3_500, reason: "bye", whitelist: clients.list() });
    each(&CallBody::Refresh { user, client, expired: false, expires_in_ms: Some(5), info: Some(b"{}") });
    each(&CallBody::Refresh { user, client, expired: true, expires_in_ms: None, info: None });
    each(&CallBody::Message { user, client, data: b"1" });
    each(&CallBody::Channels { pattern: "new", limit: 10 });
}

fn with_results(each: &mut dyn FnMut(&CallResult<'_>)) {
    let member = Member { client: "c-1", user: "ann", conn_info: b"{}", chan_info: b"" };
    let (mut members, mut publications, mut channels) = (ListBuf::new(), ListBuf::new(), ListBuf::new());
    members.push(&member).unwrap();
    publications.push(&PastPublication { offset: 1, publisher: Some(member), data: b"1" }).unwrap();
    publications.push(&PastPublication { offset: 2, publisher: None, data: b"2" }).unwrap();
    channels.push(&ChannelClients { channel: "news", clients: 3 }).unwrap();
    each(&CallResult::Refused(Refusal::of(IngestError::NotAvailable)));
    each(&CallResult::Presence(members.list()));
    each(&CallResult::PresenceStats { clients: 3, users: 2 });
    each(&CallResult::History { epoch: (1, 2), offset: 2, publications: publications.list() });
    each(&CallResult::Removed);
    each(&CallResult::User { shards: 2 });
    each(&CallResult::Channels { total: 9, channels: channels.list() });
}

/// One of each new frame of the client.
pub(super) fn client_frames() -> Vec<Vec<u8>> {
    let mut frames = vec![Vec::new()];
    write_take_events(&mut frames[0], TakeEvents { kinds: EventKinds::ALL, window: 100 });
    with_verdicts(&mut |verdict| {
        let mut out = Vec::new();
        write_event_answer(&mut out, 9, verdict, 1 << 20).unwrap();
        frames.push(out);
    });
    with_calls(&mut |what| {
        let mut out = Vec::new();
        write_call(&mut out, &Call { call: 4, what: *what }, 1 << 20).unwrap();
        frames.push(out);
    });
    frames
}

/// One of each new frame of the gateway.
pub(super) fn server_frames() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    with_results(&mut |result| {
        let mut out = Vec::new();
        write_call_answer(&mut out, &CallAnswer { call: 4, result: *result }).unwrap();
        frames.push(out);
    });
    frames
}

#[test]
fn events_round_trip_and_are_used_up() {
    for event in events() {
        let mut out = Vec::new();
        write_client_event(&mut out, 77, &event).unwrap();
        let Ok(ServerFrame::Event(frame)) = decode_server(&out) else { panic!() };
        assert_eq!((frame.event, frame.kind), (77, event.what.kind() as u8));
        assert_eq!(decode_event(&frame), Ok(event));
        for end in 0..frame.body.len() {
            let cut = Event { body: &frame.body[..end], ..frame };
            assert_eq!(decode_event(&cut), Err(IngestError::BadFrame), "{event:?} at {end}");
        }
        let longer = [frame.body, &[0]].concat();
        assert_eq!(decode_event(&Event { body: &longer, ..frame }), Err(IngestError::BadFrame));
        assert_eq!(decode_event(&Event { kind: 0, ..frame }), Err(IngestError::BadFrame));
        assert_eq!(decode_event(&Event { kind: 8, ..frame }), Err(IngestError::BadFrame));
    }
}

#[test]
fn verdicts_round_trip() {
    with_verdicts(&mut |verdict| {
        let mut out = Vec::new();
        write_event_answer(&mut out, 9, verdict, 1 << 20).unwrap();
        let Ok(ClientFrame::EventAnswer { event: 9, verdict: decoded }) = decode_client(&out) else { panic!() };
        assert_eq!(decoded, *verdict);
        if let (Verdict::Connect(decoded), Verdict::Connect(admission)) = (decoded, verdict) {
            let subscriptions: Vec<_> = decoded.subscriptions.collect();
            assert_eq!(subscriptions, admission.subscriptions.collect::<Vec<_>>());
        }
    });
}

#[test]
fn calls_and_results_round_trip() {
    with_calls(&mut |what| {
        let mut out = Vec::new();
        let call = Call { call: u32::MAX, what: *what };
        write_call(&mut out, &call, 1 << 20).unwrap();
        let Ok(ClientFrame::Call(decoded)) = decode_client(&out) else { panic!() };
        assert_eq!(decoded, call);
    });
    with_results(&mut |result| {
        let mut out = Vec::new();
        let answer = CallAnswer { call: 0, result: *result };
        write_call_answer(&mut out, &answer).unwrap();
        let Ok(ServerFrame::CallAnswer(decoded)) = decode_server(&out) else { panic!() };
        assert_eq!(decoded, answer);
    });
}

#[test]
fn announced_lists_reserve_nothing_and_must_be_there() {
    let head = [0, 0, 0, 0, kind::EVENT_ANSWER, 9, 0, 0, 0, 0, 0, 0, 0, EventKind::Connect as u8, 0];
    let connect = |count: u32, entries: &[u8]| {
        // Empty user, info, meta and data stand before the list.
        relength([&head[..], &[0; 2 + 3 * 4], &count.to_le_bytes(), entries].concat())
    };
    assert!(decode_client(&connect(0, &[])).is_ok());
    assert!(decode_client(&connect(2, &[0; 26])).is_ok());
    for (count, entries) in [(u32::MAX, &[0; 64][..]), (3, &[0; 26]), (1, &[0; 26]), (2, &[0; 25])] {
        assert!(matches!(decode_client(&connect(count, entries)), Err(IngestError::BadFrame)), "{count}");
    }
    // An entry whose own length goes beyond the frame.
    assert!(decode_client(&connect(2, &[[1; 13], [0; 13]].concat())).is_err());
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_nothing() {
    let long: String = core::iter::repeat_n('x', 65_536).collect();
    let mut out = vec![1, 2, 3];
    let message = event(Happened::Unsubscribe { channel: "" });
    let too_long = ClientEvent { user: &long, ..message };
    assert_eq!(write_client_event(&mut out, 1, &too_long), Err(IngestError::TooLarge));
    let data = vec![0; SERVER_FRAME_BYTES_MAX];
    let too_large = ClientEvent { what: Happened::Message { data: &data }, ..message };
    assert_eq!(write_client_event(&mut out, 1, &too_large), Err(IngestError::TooLarge));
    assert_eq!(write_event_answer(&mut out, 1, &Verdict::Rpc { data: &[0; 100] }, 100), Err(IngestError::TooLarge));
    let call = Call { call: 1, what: CallBody::Presence { channel: &long } };
    assert_eq!(write_call(&mut out, &call, 1 << 20), Err(IngestError::TooLarge));
    assert_eq!(ListBuf::new().push(&long.as_str()), Err(IngestError::TooLarge));
    let mut members = ListBuf::new();
    for _ in 0..20 {
        members.push(&Member { client: &long[1..], ..Member::default() }).unwrap();
    }
    let answer = CallAnswer { call: 1, result: CallResult::Presence(members.list()) };
    assert_eq!(write_call_answer(&mut out, &answer), Err(IngestError::TooLarge));
    assert_eq!(out, [1, 2, 3]);
}

#[test]
fn flags_that_nobody_knows_are_refused() {
    let mut flagged = Vec::new();
    write_event_answer(&mut flagged, 9, &Verdict::Publish { data: None }, 1 << 20).unwrap();
    let flags = flagged.len() - 1;
    flagged[flags] = 2;
    assert!(decode_client(&flagged).is_err());
    // An override that is on without being set.
    let mut grant = Vec::new();
    write_event_answer(&mut grant, 9, &Verdict::Subscribe(Grant::default()), 1 << 20).unwrap();
    let on = grant.len() - 9;
    grant[on] = 1;
    assert!(decode_client(&grant).is_err());
    // Kinds of events that this code does not know mean nothing.
    assert!(EventKinds(1).is_empty() && EventKinds(1 << 8).is_empty() && !EventKinds(1 << 7).is_empty());
}

#[test]
fn the_documents_examples_are_what_the_code_writes() {
    let mut out = Vec::new();
    write_take_events(&mut out, TakeEvents { kinds: EventKinds::ALL, window: 0 });
    assert_eq!(out, example("### Example: TakeEvents"));
    out.clear();
    let what = Happened::Rpc { method: "sum", data: b"[1,2]" };
    let rpc = ClientEvent { ask: true, transport: Transport::Json, client: "c", user: "ann", meta: b"", what };
    write_client_event(&mut out, 258, &rpc).unwrap();
    assert_eq!(out, example("### Example: Event"));
    out.clear();
    write_event_answer(&mut out, 258, &Verdict::Rpc { data: b"3" }, 1 << 20).unwrap();
    assert_eq!(out, example("### Example: EventAnswer"));
    out.clear();
    let what = CallBody::Disconnect { user: "ann", client: "", code: 4500, reason: "bye", whitelist: List::EMPTY };
    write_call(&mut out, &Call { call: 7, what }, 1 << 20).unwrap();
    assert_eq!(out, example("### Example: Call"));
    out.clear();
    write_call_answer(&mut out, &CallAnswer { call: 7, result: CallResult::User { shards: 2 } }).unwrap();
    assert_eq!(out, example("### Example: CallAnswer"));
}

proptest! {
    #[test]
    fn any_event_body_is_an_error_or_written_again(kind in 0u8..9, body in prop::collection::vec(0u8..4, 0..80)) {
        let event = Event { event: 5, kind, body: &body };
        if let Ok(decoded) = decode_event(&event) {
            let mut out = Vec::new();
            write_client_event(&mut out, 5, &decoded).unwrap();
            let Ok(ServerFrame::Event(again)) = decode_server(&out) else { panic!() };
            prop_assert_eq!(again, event);
        }
    }

    #[test]
    fn any_answer_or_call_is_an_error_or_written_again(
        kind in prop::sample::select(vec![kind::EVENT_ANSWER, kind::CALL, kind::CALL_ANSWER]),
        number in any::<[u8; 4]>(),
        body in prop::collection::vec(0u8..6, 0..80),
    ) {
        let frame = relength([&[0, 0, 0, 0, kind][..], &number, &body].concat());
        let mut out = Vec::new();
        match decode_client(&frame) {
            Ok(ClientFrame::EventAnswer { event, verdict }) => {
                write_event_answer(&mut out, event, &verdict, 1 << 20).unwrap();
                prop_assert_eq!(&out, &frame);
            }
            Ok(ClientFrame::Call(call)) => {
                write_call(&mut out, &call, 1 << 20).unwrap();
                prop_assert_eq!(&out, &frame);
            }
            other => prop_assert!(other.is_err()),
        }
        out.clear();
        if let Ok(ServerFrame::CallAnswer(answer)) = decode_server(&frame) {
            write_call_answer(&mut out, &answer).unwrap();
            let Ok(ServerFrame::CallAnswer(again)) = decode_server(&out) else { panic!() };
            prop_assert_eq!(again, answer);
        }
    }
}
