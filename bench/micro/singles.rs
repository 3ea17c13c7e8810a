//! An engine where each subscriber has a channel of its own: what a message to one client costs without the kernel.
//!
//! In: how many channels, in which wire form. Out: writes collected from the engine, each answered as taken whole. Invariant:
//! every round counts what was written, so that a round that delivers to nobody cannot pass for a fast one.

use ringway_engine::ids::ConnId;
use ringway_engine::outbox::WriteBatch;
use ringway_engine::seam::{Accepted, Input, Port};
use ringway_engine::shard::Shard;
use ringway_wire::centrifuge::Form;
use ringway_wire::ingest::{BatchWriter, PayloadKind, Publish};

use super::node::{backend_hello, client_opening_to, json_payload, options};

/// Publishes of one frame; a turn of the loop behind each.
const BATCH: usize = 256;

/// See the file's header.
pub struct Singles {
    shard: Shard,
    backend: ConnId,
    batch: WriteBatch,
    names: Vec<String>,
    payload: Vec<u8>,
    frame: Vec<u8>,
    seq: u64,
}

impl Singles {
    /// A node with so many clients on a channel each, and one backend.
    pub fn new(channels: u32, form: Form, payload_bytes: usize) -> Singles {
        let mut shard = Shard::new(options(|bytes| simdutf8::basic::from_utf8(bytes).is_ok()), 0);
        let names: Vec<_> = (0..channels).map(|number| format!("c{number}")).collect();
        let accept = |shard: &mut Shard, port| shard.accepted(Accepted { port, peer: None }).expect("slots are free");
        for name in &names {
            let conn = accept(&mut shard, Port::Client);
            shard.handle(Input::Received { conn, bytes: &mut client_opening_to(form, name) });
        }
        let backend = accept(&mut shard, Port::Ingest);
        shard.handle(Input::Received { conn: backend, bytes: &mut backend_hello() });
        let mut singles = Singles {
            shard,
            backend,
            batch: WriteBatch::default(),
            names,
            payload: json_payload(payload_bytes),
            frame: Vec::new(),
            seq: 0,
        };
        let opened = singles.settle();
        assert!(opened >= u64::from(channels), "{opened} of {channels} clients were answered");
        singles.shard.take_actions(&mut Vec::new());
        singles
    }

    /// A message to each channel, from the backend's bytes to the last write; returns how many writes were made.
    pub fn round(&mut self) -> u64 {
        let mut writes = 0;
        for first in (0..self.names.len()).step_by(BATCH) {
            self.frame.clear();
            let mut writer = BatchWriter::new(&mut self.frame, self.seq + 1);
            for name in self.names.iter().skip(first).take(BATCH) {
                self.seq += 1;
                let publish = Publish {
                    seq: self.seq,
                    kind: PayloadKind::Json,
                    idempotency_key: &[],
                    channel: name,
                    payload: &self.payload,
                };
                writer.push(&publish).expect("it fits an ingest frame");
            }
            writer.finish();
            self.shard.handle(Input::Received { conn: self.backend, bytes: &mut self.frame });
            writes += self.settle();
        }
        writes
    }

    /// Turns until nothing is left to do; returns how many writes were made.
    fn settle(&mut self) -> u64 {
        let mut writes = 0;
        loop {
            self.shard.end_turn();
            loop {
                self.shard.collect_writes(&mut self.batch);
                if self.batch.is_empty() {
                    break;
                }
                for index in 0..self.batch.len() {
                    let Some((conn, bytes)) = self.batch.get(index) else { break };
                    let bytes = bytes.len();
                    self.shard.handle(Input::Wrote { conn, bytes, all: true });
                }
                writes += self.batch.len() as u64;
            }
            if !self.shard.has_work() {
                return writes;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringway_engine::metrics::Metric;

    #[test]
    fn every_channel_gets_its_message() {
        for form in Form::ALL {
            let mut singles = Singles::new(300, form, 128);
            assert_eq!(singles.round(), 302, "each client, and an acknowledgement for each of two frames");
            assert_eq!(singles.shard.metrics().get(Metric::Deliveries), 300);
        }
    }
}
