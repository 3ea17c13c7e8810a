//! Fuzz body of the ingest codec: shared by the fuzz target and the replay of its corpus.
//!
//! In: any bytes. Claim: cutting them into frames and decoding each, as the gateway and as a client library do, never
//! panics; whatever decodes is written again by the encoders and then decodes to the same; a batch or a list yields no
//! more entries than there are bytes for.

use ringway_wire::ingest::{
    self, Ack, BatchWriter, ClientFrame, ENTRY_BYTES_MIN, IngestError, Publish, ServerFrame, Verdict, decode_client,
    decode_event, decode_server, frame_len,
};

/// Small, so that the bound itself is reached.
const FRAME_BYTES_MAX: usize = 4096;

pub fn run(data: &[u8]) {
    let mut rest = data;
    while let Ok(Some(length)) = frame_len(rest, FRAME_BYTES_MAX) {
        let Some((frame, behind)) = rest.split_at_checked(length) else { break };
        client(frame);
        server(frame);
        rest = behind;
    }
    // The same bytes as one frame whose length agrees, so that mutations need not keep it right.
    if !data.is_empty() {
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let whole = [&length.to_le_bytes()[..], data].concat();
        client(&whole);
        server(&whole);
    }
}

fn client(frame: &[u8]) {
    let mut again = Vec::new();
    match decode_client(frame) {
        Ok(ClientFrame::Hello(hello)) => {
            let _ = hello.version();
            ingest::write_hello(&mut again, &hello);
            let Ok(ClientFrame::Hello(second)) = decode_client(&again) else { panic!("hello is lost") };
            assert_eq!(hello, second);
        }
        Ok(ClientFrame::Publish(publish)) => {
            ingest::write_publish(&mut again, &publish).expect("what was decoded can be written");
            assert_eq!(again, frame);
        }
        Ok(ClientFrame::PublishBatch(batch)) => {
            let announced = batch.remaining() as usize;
            assert!(announced * ENTRY_BYTES_MIN <= frame.len());
            let entries: Result<Vec<Publish<'_>>, IngestError> = batch.collect();
            let Ok(entries) = entries else { return };
            assert_eq!(entries.len(), announced);
            let mut writer = BatchWriter::new(&mut again, entries[0].seq);
            entries.iter().for_each(|entry| writer.push(entry).expect("what was decoded can be written"));
            writer.finish();
            let Ok(ClientFrame::PublishBatch(second)) = decode_client(&again) else { panic!("batch is lost") };
            assert!(second.eq(entries.into_iter().map(Ok)));
        }
        Ok(ClientFrame::EventAnswer { event, verdict }) => {
            ingest::write_event_answer(&mut again, event, &verdict, frame.len())
                .expect("what was decoded can be written");
            assert_eq!(again, frame);
            if let Verdict::Connect(admission) = verdict {
                let announced = admission.subscriptions.remaining() as usize;
                assert_eq!(admission.subscriptions.count(), announced);
            }
        }
        Ok(ClientFrame::Call(call)) => {
            ingest::write_call(&mut again, &call, frame.len()).expect("what was decoded can be written");
            assert_eq!(again, frame);
        }
        Ok(ClientFrame::TakeEvents(take)) => {
            ingest::write_take_events(&mut again, take);
            assert_eq!(again, frame);
        }
        Ok(_) | Err(_) => {}
    }
}

fn server(frame: &[u8]) {
    let mut again = Vec::new();
    match decode_server(frame) {
        Ok(ServerFrame::HelloOk(hello)) => {
            ingest::write_hello_ok(&mut again, &hello);
            let Ok(ServerFrame::HelloOk(second)) = decode_server(&again) else { panic!("hello-ok is lost") };
            assert_eq!(hello, second);
        }
        Ok(ServerFrame::Acks(acks)) => {
            let acks: Result<Vec<Ack>, IngestError> = acks.collect();
            let Ok(acks) = acks else { return };
            ingest::write_acks(&mut again, acks.iter().copied());
            let mut second = Vec::new();
            let mut rest = &again[..];
            while let Ok(Some(length)) = frame_len(rest, again.len()) {
                let Ok(ServerFrame::Acks(frame)) = decode_server(&rest[..length]) else { panic!("acks are lost") };
                second.extend(frame.map(|ack| ack.expect("what was written can be read")));
                rest = &rest[length..];
            }
            assert_eq!(acks, second);
        }
        Ok(ServerFrame::GoingAway(going)) => {
            let addresses: Vec<&str> = going.addresses.collect();
            ingest::write_going_away(&mut again, going.deadline_ms, &addresses);
            assert_eq!(again, frame);
        }
        Ok(ServerFrame::Event(event)) => {
            ingest::write_event(&mut again, &event).expect("what was decoded can be written");
            assert_eq!(again, frame);
            if let Ok(decoded) = decode_event(&event) {
                again.clear();
                ingest::write_client_event(&mut again, event.event, &decoded).expect("what was decoded can be written");
                assert_eq!(again, frame);
            }
        }
        Ok(ServerFrame::CallAnswer(answer)) => {
            ingest::write_call_answer(&mut again, &answer).expect("what was decoded can be written");
            let Ok(ServerFrame::CallAnswer(second)) = decode_server(&again) else { panic!("answer is lost") };
            assert_eq!(answer, second);
        }
        Ok(_) | Err(_) => {}
    }
}
