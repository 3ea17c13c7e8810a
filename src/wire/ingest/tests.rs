//! Round trips, truncation, hostile lengths, and the worked example and error table of `docs/INGEST.md`.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use alloc::{format, vec};

use proptest::prelude::*;

use super::*;

pub(super) const DOCUMENT: &str = include_str!("../../../docs/INGEST.md");

fn hello() -> Hello<'static> {
    Hello { version_min: 1, version_max: 3, features: 1, instance: [9; 16], token: b"secret", name: "billing" }
}

fn hello_ok() -> HelloOk<'static> {
    HelloOk {
        version: 1,
        features: 0,
        boot: 0x1122_3344_5566_7788,
        credit_messages: 16_384,
        credit_bytes: 8 << 20,
        frame_bytes_max: 1 << 20,
        publication_bytes_max: 65_536,
        idempotency_window_ms: 300_000,
        idle_timeout_ms: 30_000,
        node: "node-1",
    }
}

fn publish(seq: u64) -> Publish<'static> {
    Publish { seq, kind: PayloadKind::Json, idempotency_key: b"key", channel: "news", payload: b"{}" }
}

/// One of each frame of the client.
fn client_frames() -> Vec<Vec<u8>> {
    let mut frames = vec![Vec::new(); 7];
    write_hello(&mut frames[0], &hello());
    write_publish(&mut frames[1], &publish(5)).unwrap();
    let mut batch = BatchWriter::new(&mut frames[2], 5);
    for seq in [5, 6, 9] {
        batch.push(&publish(seq)).unwrap();
    }
    batch.finish();
    write_ping(&mut frames[3], 1);
    write_pong(&mut frames[4], 2);
    write_event_ack(&mut frames[5], 3);
    write_goodbye(&mut frames[6]);
    frames.extend(event_tests::client_frames());
    frames
}

/// One of each frame of the gateway.
fn server_frames() -> Vec<Vec<u8>> {
    let mut frames = vec![Vec::new(); 9];
    write_hello_ok(&mut frames[0], &hello_ok());
    write_fatal(&mut frames[1], IngestError::BadToken);
    let ack = |seq, creation| Ack { seq, offset: 1, epoch: (3, creation), duplicate: seq == 6 };
    write_acks(&mut frames[2], [ack(5, 1), ack(6, 1), ack(9, 2)]);
    write_nack(&mut frames[3], 7, IngestError::Busy);
    write_credit(&mut frames[4], -5, 1_000);
    write_ping(&mut frames[5], 1);
    write_pong(&mut frames[6], 2);
    write_going_away(&mut frames[7], 5_000, &["a:1", "b:2"]);
    write_event(&mut frames[8], &Event { event: 4, kind: 2, body: b"body" }).unwrap();
    frames.extend(event_tests::server_frames());
    frames
}

/// Decodes a frame of the client to its last byte.
fn drain_client(frame: &[u8]) -> Result<(), IngestError> {
    match decode_client(frame)? {
        ClientFrame::PublishBatch(mut batch) => batch.try_for_each(|entry| entry.map(|_| ())),
        _ => Ok(()),
    }
}

/// Decodes a frame of the gateway to its last byte; what an event says is decoded apart.
fn drain_server(frame: &[u8]) -> Result<(), IngestError> {
    match decode_server(frame)? {
        ServerFrame::Acks(mut acks) => acks.try_for_each(|entry| entry.map(|_| ())),
        _ => Ok(()),
    }
}

/// The frame with its length field made to agree with its bytes.
pub(super) fn relength(mut frame: Vec<u8>) -> Vec<u8> {
    end_frame(&mut frame, 0);
    frame
}

#[test]
fn hello_and_its_answers_round_trip() {
    let frames = client_frames();
    let ClientFrame::Hello(decoded) = decode_client(&frames[0]).unwrap() else { panic!() };
    assert_eq!(decoded, hello());
    assert_eq!(decoded.version(), Ok(1));
    assert_eq!(Hello { version_min: 2, ..hello() }.version(), Err(IngestError::VersionUnsupported));
    let frames = server_frames();
    let ServerFrame::HelloOk(decoded) = decode_server(&frames[0]).unwrap() else { panic!() };
    assert_eq!(decoded, hello_ok());
    let ServerFrame::Fatal(refusal) = decode_server(&frames[1]).unwrap() else { panic!() };
    assert_eq!(refusal, Refusal { code: 301, temporary: false, text: "bad token" });
    let ServerFrame::Nack { seq: 7, refusal } = decode_server(&frames[3]).unwrap() else { panic!() };
    assert_eq!(refusal, Refusal { code: 200, temporary: true, text: "busy" });
    let ServerFrame::Credit { messages: -5, bytes: 1_000 } = decode_server(&frames[4]).unwrap() else { panic!() };
    let ServerFrame::GoingAway(going) = decode_server(&frames[7]).unwrap() else { panic!() };
    assert_eq!((going.deadline_ms, going.addresses.collect::<Vec<_>>()), (5_000, vec!["a:1", "b:2"]));
    let ServerFrame::Event(event) = decode_server(&frames[8]).unwrap() else { panic!() };
    assert_eq!(event, Event { event: 4, kind: 2, body: b"body" });
}

#[test]
fn a_newer_hello_may_be_longer_but_other_frames_may_not() {
    for frames in [client_frames(), server_frames()] {
        for mut frame in frames {
            let kind = frame[4];
            frame.push(0);
            let frame = relength(frame);
            let result = if kind < 0x10 { drain_client(&frame).or(drain_server(&frame)) } else { drain_server(&frame) };
            let longer_is_allowed = [kind::HELLO, kind::HELLO_OK, kind::EVENT].contains(&kind);
            assert_eq!(result.is_ok(), longer_is_allowed, "type {kind:#04x}");
        }
    }
}

#[test]
fn unknown_types_are_skipped_only_when_flagged() {
    for kind in 0..=u8::MAX {
        let frame = relength(vec![0, 0, 0, 0, kind, 1, 2, 3]);
        if kind >= 0x80 {
            assert!(matches!(decode_client(&frame), Ok(ClientFrame::Unknown { kind: k }) if k == kind));
            assert!(matches!(decode_server(&frame), Ok(ServerFrame::Unknown { kind: k }) if k == kind));
        } else {
            assert!(decode_client(&frame).is_err(), "{kind:#04x}");
        }
    }
}

#[test]
fn a_frame_cut_at_any_byte_is_an_error() {
    for frame in client_frames() {
        for end in 0..frame.len() {
            assert!(drain_client(&frame[..end]).is_err(), "type {:#04x} at {end}", frame[4]);
            if end >= 5 {
                // The same with a length that agrees, as a hostile peer would send it.
                assert!(drain_client(&relength(frame[..end].to_vec())).is_err(), "type {:#04x} at {end}", frame[4]);
            }
        }
    }
    for frame in server_frames() {
        for end in 0..frame.len() {
            assert!(drain_server(&frame[..end]).is_err(), "type {:#04x} at {end}", frame[4]);
            if end >= 5 && !(frame[4] == kind::EVENT && end >= 14) {
                assert!(drain_server(&relength(frame[..end].to_vec())).is_err(), "type {:#04x} at {end}", frame[4]);
            }
        }
    }
}

#[test]
fn frame_len_tells_the_whole_frame() {
    let frame = &client_frames()[1];
    for end in 0..4 {
        assert_eq!(frame_len(&frame[..end], 1024), Ok(None));
    }
    assert_eq!(frame_len(frame, 1024), Ok(Some(frame.len())));
    assert_eq!(frame_len(frame, frame.len()), Ok(Some(frame.len())));
    assert_eq!(frame_len(frame, frame.len() - 1), Err(IngestError::FrameTooLarge));
    assert_eq!(frame_len(&[0; 4], 1024), Err(IngestError::BadFrame));
    assert_eq!(frame_len(&[0xff; 4], usize::MAX), Ok(Some(u32::MAX as usize + 4)));
    assert_eq!(frame_len(&[0xff; 4], 1 << 20), Err(IngestError::FrameTooLarge));
}

#[test]
fn announced_counts_reserve_nothing() {
    let mut batch = relength([&[0, 0, 0, 0, kind::PUBLISH_BATCH][..], &[0; 8], &[0xff; 4], &[0; 64]].concat());
    assert_eq!(drain_client(&batch), Err(IngestError::BadFrame));
    // Nine entries in the room of eight are refused at once; eight empty ones are there.
    batch[13..17].copy_from_slice(&9u32.to_le_bytes());
    assert_eq!(drain_client(&batch), Err(IngestError::BadFrame));
    batch[13..17].copy_from_slice(&8u32.to_le_bytes());
    assert_eq!(drain_client(&batch), Ok(()));
    batch[13..17].copy_from_slice(&0u32.to_le_bytes());
    assert_eq!(drain_client(&batch), Err(IngestError::BadFrame));
    let acks = relength([&[0, 0, 0, 0, kind::ACKS][..], &[0xff; 4], &[0; 64]].concat());
    assert_eq!(drain_server(&acks), Err(IngestError::BadFrame));
    let addresses = relength([&[0, 0, 0, 0, kind::GOING_AWAY][..], &[0; 4], &[0xff], &[0; 255]].concat());
    assert_eq!(drain_server(&addresses), Err(IngestError::BadFrame));
}

#[test]
fn a_bad_entry_ends_its_batch() {
    let mut frame = client_frames().swap_remove(2);
    let second = BatchWriter::HEADER_BYTES + ENTRY_BYTES_MIN + 3 + 4 + 2;
    for (at, value) in [(0, 7), (1, 2), (1, 0x81), (2, 65), (3, 255), (7, 255)] {
        let kept = core::mem::replace(&mut frame[second + at], value);
        let ClientFrame::PublishBatch(batch) = decode_client(&frame).unwrap() else { panic!() };
        let entries: Vec<_> = batch.map(|entry| entry.map(|publish| publish.seq)).collect();
        assert_eq!(entries, [Ok(5), Err(IngestError::BadFrame)], "byte {at} of the entry");
        frame[second + at] = kept;
    }
    let invalid_utf8 = second + ENTRY_BYTES_MIN + 3;
    frame[invalid_utf8] = 0xff;
    assert_eq!(drain_client(&frame), Err(IngestError::BadFrame));
}

#[test]
fn writers_refuse_what_does_not_fit() {
    let long = [b'x'; 256];
    let channel = core::str::from_utf8(&long).unwrap();
    let mut out = Vec::new();
    assert_eq!(write_publish(&mut out, &Publish { channel, ..publish(1) }), Err(IngestError::TooLarge));
    let key = &long[..65];
    assert_eq!(write_publish(&mut out, &Publish { idempotency_key: key, ..publish(1) }), Err(IngestError::TooLarge));
    let event = Event { event: 1, kind: 0, body: &vec![0; SERVER_FRAME_BYTES_MAX] };
    assert_eq!(write_event(&mut out, &event), Err(IngestError::TooLarge));
    BatchWriter::new(&mut out, 1).finish();
    write_acks(&mut out, []);
    assert!(out.is_empty());
    // Names and address lists are cut rather than refused.
    write_going_away(&mut out, 1, &vec![channel; 40]);
    let ServerFrame::GoingAway(going) = decode_server(&out).unwrap() else { panic!() };
    assert_eq!(going.addresses.count(), 0);
    out.clear();
    write_going_away(&mut out, 1, &["a:1"; 40]);
    let ServerFrame::GoingAway(going) = decode_server(&out).unwrap() else { panic!() };
    assert_eq!(going.addresses.count(), ADDRESSES_MAX);
    out.clear();
    let name = "ä".repeat(40);
    write_hello(&mut out, &Hello { name: &name, ..hello() });
    let ClientFrame::Hello(decoded) = decode_client(&out).unwrap() else { panic!() };
    assert_eq!(decoded.name, "ä".repeat(32));
}

#[test]
fn acknowledgements_of_one_channel_are_compact() {
    let mut out = Vec::new();
    let ack = |seq| Ack { seq, offset: seq, epoch: (1, 1), duplicate: false };
    write_acks(&mut out, (0..ACKS_PER_FRAME_MAX as u64 + 1).map(ack));
    let first = frame_len(&out, SERVER_FRAME_BYTES_MAX).unwrap().unwrap();
    assert_eq!(first, FRAME_HEADER_BYTES + 4 + 9 * ACKS_PER_FRAME_MAX + 16);
    let ServerFrame::Acks(acks) = decode_server(&out[..first]).unwrap() else { panic!() };
    assert_eq!(acks.remaining() as usize, ACKS_PER_FRAME_MAX);
    let ServerFrame::Acks(mut acks) = decode_server(&out[first..]).unwrap() else { panic!() };
    assert_eq!(acks.next(), Some(Ok(ack(ACKS_PER_FRAME_MAX as u64))));
    assert_eq!(acks.next(), None);
}

#[test]
fn epochs_print_in_base_36() {
    assert_eq!(EpochText((0, 0)).to_string(), "0.0");
    assert_eq!(EpochText((35, 36)).to_string(), "z.10");
    assert_eq!(EpochText((u32::MAX, 1)).to_string(), "1z141z3.1");
}

/// Bytes of the fenced blocks behind a heading of the document; text after `;` is a comment.
pub(super) fn example(heading: &str) -> Vec<u8> {
    let section = DOCUMENT.split(heading).nth(1).unwrap_or_else(|| panic!("{heading} is missing"));
    let block = section.split("```").nth(1).unwrap();
    let digits = block.lines().skip(1).flat_map(|line| line.split(';').next().unwrap().split_whitespace());
    digits.map(|byte| u8::from_str_radix(byte, 16).unwrap_or_else(|_| panic!("{byte:?}"))).collect()
}

#[test]
fn the_documents_example_is_what_the_code_writes() {
    let mut out = Vec::new();
    let instance = *b"0123456789abcdef";
    let token = b"dev";
    write_hello(&mut out, &Hello { version_min: 1, version_max: 1, features: 0, instance, token, name: "shop" });
    assert_eq!(out, example("### Example: Hello"));

    out.clear();
    write_hello_ok(&mut out, &HelloOk { boot: 0x0102_0304_0506_0708, node: "n1", ..hello_ok() });
    assert_eq!(out, example("### Example: HelloOk"));

    out.clear();
    let first = Publish { seq: 1, kind: PayloadKind::Json, idempotency_key: b"", channel: "a", payload: b"1" };
    let mut batch = BatchWriter::new(&mut out, 1);
    batch.push(&first).unwrap();
    batch.push(&Publish { seq: 2, idempotency_key: b"k", channel: "b", payload: b"[2]", ..first }).unwrap();
    batch.push(&Publish { seq: 5, kind: PayloadKind::Bytes, payload: &[0xff], ..first }).unwrap();
    batch.finish();
    assert_eq!(out, example("### Example: PublishBatch"));

    out.clear();
    let ack = Ack { seq: 1, offset: 10, epoch: (255, 1), duplicate: false };
    write_acks(&mut out, [ack, Ack { seq: 2, offset: 3, epoch: (255, 2), duplicate: true }]);
    assert_eq!(out, example("### Example: Acks"));

    out.clear();
    write_nack(&mut out, 5, IngestError::BadPayload);
    assert_eq!(out, example("### Example: Nack"));
}

#[test]
fn the_documents_error_table_is_the_codes() {
    for error in IngestError::ALL {
        let (code, text, help) = (error.code(), error.text(), error.help().trim());
        let temporary = if error.temporary() { "yes" } else { "no" };
        let row = format!("| {code} | {text} | {temporary} | {help} |");
        assert!(DOCUMENT.contains(&row), "docs/INGEST.md should have this row:\n{row}");
    }
    let section = DOCUMENT.split("## Errors").nth(1).unwrap().split("## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| code"));
    assert_eq!(rows.count(), IngestError::COUNT);
}

type OwnedPublish = (u64, bool, Vec<u8>, String, Vec<u8>);

fn publishes() -> impl Strategy<Value = Vec<OwnedPublish>> {
    let seq = prop_oneof![0u64..4, any::<u64>()];
    let key = prop::collection::vec(any::<u8>(), 0..=KEY_BYTES_MAX);
    let payload = prop::collection::vec(any::<u8>(), 0..300);
    prop::collection::vec((seq, any::<bool>(), key, "[a-zä:]{0,60}", payload), 1..20)
}

fn view(publish: &OwnedPublish) -> Publish<'_> {
    let (seq, json, key, channel, payload) = publish;
    let kind = if *json { PayloadKind::Json } else { PayloadKind::Bytes };
    Publish { seq: *seq, kind, idempotency_key: key, channel, payload }
}

proptest! {
    #[test]
    fn publishes_round_trip(publishes in publishes()) {
        prop_assume!(publishes.iter().all(|(_, _, _, channel, _)| channel.len() <= CHANNEL_BYTES_MAX));
        let mut out = Vec::new();
        let mut batch = BatchWriter::new(&mut out, publishes[0].0);
        for publish in &publishes {
            batch.push(&view(publish)).unwrap();
        }
        prop_assert_eq!(batch.count() as usize, publishes.len());
        batch.finish();
        let ClientFrame::PublishBatch(decoded) = decode_client(&out).unwrap() else { panic!() };
        let decoded: Result<Vec<_>, _> = decoded.collect();
        prop_assert_eq!(decoded.unwrap(), publishes.iter().map(view).collect::<Vec<_>>());

        out.clear();
        write_publish(&mut out, &view(&publishes[0])).unwrap();
        let ClientFrame::Publish(decoded) = decode_client(&out).unwrap() else { panic!() };
        prop_assert_eq!(decoded, view(&publishes[0]));
    }

    #[test]
    fn acks_round_trip(acks in prop::collection::vec(
        (0u64..5, any::<u64>(), prop_oneof![Just(1u32), any::<u32>()], 0u32..3, any::<bool>()), 1..200,
    )) {
        let mut seq = 0;
        let acks: Vec<Ack> = acks.into_iter().map(|(step, offset, boot, creation, duplicate)| {
            seq += step;
            Ack { seq, offset, epoch: (boot, creation), duplicate }
        }).collect();
        let mut out = Vec::new();
        write_acks(&mut out, acks.iter().copied());
        let ServerFrame::Acks(decoded) = decode_server(&out).unwrap() else { panic!() };
        let decoded: Result<Vec<_>, _> = decoded.collect();
        prop_assert_eq!(decoded.unwrap(), acks);
    }

    #[test]
    fn any_bytes_are_an_error_or_a_frame(kind in any::<u8>(), body in prop::collection::vec(any::<u8>(), 0..200)) {
        let frame = relength([&[0, 0, 0, 0, kind][..], &body].concat());
        let _ = drain_client(&frame);
        let _ = drain_server(&frame);
        let _ = drain_client(&body);
        let _ = drain_server(&body);
    }
}
