//! A model backend: ingest frames as a client library writes them, credit kept, everything unanswered sent again after
//! a cut.
//!
//! In: the bytes a shard wrote to it. Out: hello, publishes alone and in batches, pongs. Claims: a publish is answered
//! exactly once per connection; answers for one channel keep the order of the publishes; a repeated idempotency key
//! gets the first one's position.

use std::collections::{BTreeMap, VecDeque};

use ringway_wire::ingest::{
    Ack, BatchWriter, EpochText, EventKinds, FEATURE_EVENTS, Hello, PayloadKind, Publish, SERVER_FRAME_BYTES_MAX,
    ServerFrame, TakeEvents, VERSION, decode_event, decode_server, frame_len, write_goodbye, write_hello, write_pong,
    write_publish, write_take_events,
};

use crate::decisions::Decisions;
use crate::dice::Dice;
use crate::hearing::Hearing;
use crate::ledger::{Id, Ledger};
use crate::plan::{Plan, TOKEN};
use crate::rules::Kind;
use crate::socket::{PeerEnd, Socket};

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) socket: Option<usize>,
    connection: u64,
    ready: bool,
    said_goodbye: bool,
    arrived: VecDeque<u8>,
    last_seq: u64,
    /// By number: not answered yet.
    pub(crate) pending: BTreeMap<u64, Sent>,
    /// By channel: what was published and can be published again with its key.
    keyed: Vec<Option<Id>>,
    /// By channel: number and position of the last answer on this connection.
    answered: BTreeMap<usize, (u64, String, u64)>,
    decisions: Decisions,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    channel: usize,
    id: Id,
    /// A key that was used before; the answer must say so.
    again: bool,
    /// Sent on an earlier connection too: the answer may say so.
    resent: bool,
}

/// What a backend may touch while it acts.
pub(crate) struct Around<'a> {
    pub(crate) dice: &'a mut Dice,
    pub(crate) plan: &'a Plan,
    pub(crate) ledger: &'a mut Ledger,
    pub(crate) socket: &'a mut Socket,
    pub(crate) hearing: &'a mut Hearing,
}

impl Backend {
    pub(crate) fn new(plan: &Plan) -> Self {
        Backend {
            socket: None,
            connection: 0,
            ready: false,
            said_goodbye: false,
            arrived: VecDeque::new(),
            last_seq: 0,
            pending: BTreeMap::new(),
            keyed: plan.channels.iter().map(|_| None).collect(),
            answered: BTreeMap::new(),
            decisions: Decisions::default(),
        }
    }

    /// Begins a connection over a socket that was accepted.
    pub(crate) fn connect(&mut self, socket: usize, around: &mut Around<'_>) {
        self.socket = Some(socket);
        self.connection = around.ledger.connection();
        self.ready = false;
        self.arrived.clear();
        self.answered.clear();
        self.decisions.clear();
        let hello = Hello {
            version_min: VERSION,
            version_max: VERSION,
            features: if around.plan.events { FEATURE_EVENTS } else { 0 },
            instance: [7; 16],
            token: TOKEN,
            name: "model",
        };
        let mut out = Vec::new();
        write_hello(&mut out, &hello);
        around.socket.up.extend(out);
    }

    /// Publishes as much as the credit allows, in one frame or one by one.
    pub(crate) fn act(&mut self, around: &mut Around<'_>) {
        let credit = around.plan.limits.ingest_credit_messages as usize - self.pending.len();
        if !self.ready || self.said_goodbye || credit == 0 {
            return;
        }
        let count = around.dice.between(1, credit);
        // Half of everything goes to the first channel, whose owner the plan has placed.
        let channels = around.plan.channels.len();
        let publishes: Vec<_> = (0..count)
            .map(|_| {
                let channel = if around.dice.one_in(2) { 0 } else { around.dice.below(channels) };
                self.publish(channel, around)
            })
            .collect();
        let out = frames(&publishes, around);
        around.socket.up.extend(out);
    }

    /// One new publish.
    pub(crate) fn publish_to(&mut self, channel: usize, around: &mut Around<'_>) {
        let publish = self.new_publish(channel, around);
        let out = frames(&[publish], around);
        around.socket.up.extend(out);
    }

    fn publish(&mut self, channel: usize, around: &mut Around<'_>) -> (u64, Sent) {
        match self.keyed[channel] {
            // A namespace that comes and goes takes a publish once and refuses it once.
            Some(id) if around.dice.one_in(20) && around.plan.channels[channel].kind != Kind::Fleeting => {
                let sent = Sent { channel, id, again: true, resent: false };
                self.last_seq += 1;
                self.pending.insert(self.last_seq, sent);
                (self.last_seq, sent)
            }
            _ => self.new_publish(channel, around),
        }
    }

    fn new_publish(&mut self, channel: usize, around: &mut Around<'_>) -> (u64, Sent) {
        let id = around.ledger.publish(channel, None, self.connection);
        let sent = Sent { channel, id, again: false, resent: false };
        self.last_seq += 1;
        self.keyed[channel] = Some(id);
        self.pending.insert(self.last_seq, sent);
        (self.last_seq, sent)
    }

    /// Reads up to `bytes` of what has arrived. False: there was nothing.
    pub(crate) fn read(&mut self, bytes: usize, around: &mut Around<'_>) -> bool {
        let take = bytes.min(around.socket.down.len());
        if take == 0 {
            let over = around.socket.server_end && self.socket.is_some();
            if over {
                assert!(self.said_goodbye, "the server ended a backend's connection");
                self.socket = None;
            }
            return over;
        }
        self.arrived.extend(around.socket.down.drain(..take));
        let bytes = self.arrived.make_contiguous().to_vec();
        let mut used = 0;
        while let Some(len) = frame_len(&bytes[used..], SERVER_FRAME_BYTES_MAX).expect("the server's frames are sound")
        {
            let Some(frame) = bytes.get(used..used + len) else { break };
            used += len;
            self.take(decode_server(frame).expect("the server's frames are sound"), around);
        }
        self.arrived.drain(..used);
        true
    }

    fn take(&mut self, frame: ServerFrame<'_>, around: &mut Around<'_>) {
        match frame {
            ServerFrame::HelloOk(_) => {
                self.ready = true;
                if around.plan.events {
                    let mut out = Vec::new();
                    let window = around.dice.pick(&[0, 1, 20]);
                    write_take_events(&mut out, TakeEvents { kinds: EventKinds::ALL, window });
                    around.socket.up.extend(out);
                }
                // What has no answer goes first, in its order.
                let resent: Vec<_> = self.pending.iter().map(|(seq, sent)| (*seq, *sent)).collect();
                let out = frames(&resent, around);
                around.socket.up.extend(out);
            }
            ServerFrame::Acks(acks) => {
                for ack in acks {
                    self.acknowledged(&ack.expect("acknowledgements are sound"), around);
                }
            }
            ServerFrame::Nack { seq, refusal } => {
                let sent = self.pending.remove(&seq).expect("an answer to a publish");
                assert!(around.plan.channels[sent.channel].kind == Kind::Fleeting, "refused: {refusal:?}");
                if sent.resent {
                    around.ledger.unknown(sent.channel);
                } else {
                    around.ledger.refuse(sent.id);
                }
                around.ledger.counts.note("publishes without a namespace", 1);
            }
            ServerFrame::Event(event) => {
                let said = decode_event(&event).expect("the server's frames are sound");
                around.hearing.hear(self.connection, event.event, &said);
                self.decisions.owe(event.event, &said);
            }
            ServerFrame::Ping { nonce } => {
                let mut out = Vec::new();
                write_pong(&mut out, nonce);
                around.socket.up.extend(out);
            }
            ServerFrame::Fatal(refusal) if self.said_goodbye => {
                assert!(refusal.temporary, "{refusal:?}");
            }
            other => panic!("a backend got {other:?}"),
        }
    }

    fn acknowledged(&mut self, ack: &Ack, around: &mut Around<'_>) {
        let sent = self.pending.remove(&ack.seq);
        let sent = sent.unwrap_or_else(|| panic!("a second answer to publish {}", ack.seq));
        let epoch = EpochText(ack.epoch).to_string();
        assert!(ack.duplicate || !sent.again, "a repeated key was published again: {ack:?}");
        assert!(!ack.duplicate || sent.again || sent.resent, "a new key was taken for a repeated one: {ack:?}");
        around.ledger.place(sent.channel, &epoch, ack.offset, sent.id);
        around.ledger.counts.acked += 1;
        if !sent.again {
            around.ledger.accepted(sent.channel);
        }
        if sent.again || ack.duplicate {
            return;
        }
        let now = (ack.seq, epoch, ack.offset);
        if let Some(before) = self.answered.insert(sent.channel, now.clone()) {
            let rose = before.1 != now.1 || before.2 < now.2;
            assert!(before.0 < now.0 && rose, "answers of channel {} swapped: {before:?} {now:?}", sent.channel);
        }
    }

    /// Acknowledges and decides some of what it was told and asked; everything if `all`. False: nothing was owed.
    pub(crate) fn decide(&mut self, all: bool, around: &mut Around<'_>) -> bool {
        let out = self.decisions.pay(around.dice, all);
        around.socket.up.extend(&out);
        !out.is_empty()
    }

    /// Loses the connection; what has no answer is sent again on the next one.
    pub(crate) fn cut(&mut self, around: &mut Around<'_>) {
        around.socket.end(PeerEnd::Reset);
        self.socket = None;
        for sent in self.pending.values_mut() {
            sent.resent = true;
        }
    }

    /// Sends nothing more; ends its side.
    pub(crate) fn say_goodbye(&mut self, around: &mut Around<'_>) {
        let mut out = Vec::new();
        write_goodbye(&mut out);
        around.socket.up.extend(out);
        self.said_goodbye = true;
        around.socket.end(PeerEnd::Fin);
        self.socket = None;
    }

    /// The server is told to end: a fatal frame is no failure any more.
    pub(crate) fn expect_end(&mut self) {
        self.said_goodbye = true;
    }
}

/// Publishes as frames: one batch, or one frame each.
fn frames(publishes: &[(u64, Sent)], around: &mut Around<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    let parts: Vec<_> = publishes
        .iter()
        .map(|(_, sent)| {
            let payload = around.ledger.payload(sent.id);
            // A raw newline between tokens is allowed in JSON and must not reach subscribers.
            let payload = if sent.id % 7 == 0 { payload.replacen(',', ",\n", 1) } else { payload };
            (sent.id.to_le_bytes(), payload)
        })
        .collect();
    let entries = publishes.iter().zip(&parts).map(|((seq, sent), (key, payload))| Publish {
        seq: *seq,
        kind: PayloadKind::Json,
        idempotency_key: key,
        channel: &around.plan.channels[sent.channel].name,
        payload: payload.as_bytes(),
    });
    if around.dice.one_in(3) || publishes.is_empty() {
        for entry in entries {
            write_publish(&mut out, &entry).expect("fits");
        }
        return out;
    }
    let entries: Vec<_> = entries.collect();
    for chunk in entries.chunks(16) {
        let mut batch = BatchWriter::new(&mut out, chunk[0].seq);
        for entry in chunk {
            batch.push(entry).expect("fits");
        }
        batch.finish();
    }
    out
}
