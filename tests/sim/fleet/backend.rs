//! A model backend of a fleet: publishes with and without idempotency keys, through any node.
//!
//! In: the bytes that a shard wrote to it. Out: hello, publishes, pongs. What has a key is sent again until it is acknowledged,
//! through whichever node is reached next; what has none and whose outcome is unknown is not. Claims: a publish is answered
//! once per connection; answers for one channel keep the order of the publishes; a repeated key gets the first one's place.

use std::collections::{BTreeMap, VecDeque};

use ringway_wire::ingest::{
    Ack, EpochText, Hello, IngestError, PayloadKind, Publish, SERVER_FRAME_BYTES_MAX, ServerFrame, VERSION,
    decode_server, frame_len, write_goodbye, write_hello, write_pong, write_publish,
};

use crate::dice::Dice;
use crate::plan::TOKEN;
use crate::socket::{PeerEnd, Socket};

use super::plan::FleetPlan;
use super::truth::{Id, Truth, payload};

/// Publishes of one act.
const BURST: usize = 5;

/// See the file's header.
#[derive(Debug, Default)]
pub(crate) struct Backend {
    pub(crate) link: Option<Link>,
    last_seq: u64,
    /// With a key and not acknowledged, in the order of their first sending.
    unsure: VecDeque<Publication>,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) socket: usize,
    number: u64,
    arrived: VecDeque<u8>,
    credit: usize,
    ready: bool,
    /// It publishes nothing new here, and leaves when all is answered.
    leaves: bool,
    /// By number: not answered yet.
    pending: BTreeMap<u64, Publication>,
    /// By channel: what was answered last.
    answered: BTreeMap<usize, (u64, String, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Publication {
    channel: usize,
    id: Id,
    keyed: bool,
    /// Sent before.
    again: bool,
}

/// What a backend may touch while it acts.
pub(crate) struct Around<'a> {
    pub(crate) dice: &'a mut Dice,
    pub(crate) plan: &'a FleetPlan,
    pub(crate) truth: &'a mut Truth,
    pub(crate) socket: &'a mut Socket,
}

impl Backend {
    /// Begins a connection over a socket that was accepted.
    pub(crate) fn connect(&mut self, socket: usize, around: &mut Around<'_>) {
        let hello = Hello {
            version_min: VERSION,
            version_max: VERSION,
            features: 0,
            instance: [7; 16],
            token: TOKEN,
            name: "model",
        };
        let mut out = Vec::new();
        write_hello(&mut out, &hello);
        around.socket.up.extend(out);
        self.link = Some(Link {
            socket,
            number: around.truth.connection(),
            arrived: VecDeque::new(),
            credit: 0,
            ready: false,
            leaves: false,
            pending: BTreeMap::new(),
            answered: BTreeMap::new(),
        });
    }

    /// Sends again what has a key, then something new.
    pub(crate) fn act(&mut self, around: &mut Around<'_>) {
        self.pursue(around);
        for _ in 0..around.dice.between(1, BURST) {
            self.publish(around.dice.below(around.plan.channels.len()), around);
        }
    }

    /// A new publication, if there is credit.
    pub(crate) fn publish(&mut self, channel: usize, around: &mut Around<'_>) {
        let Some(link) = self.link.as_ref().filter(|link| link.takes()) else { return };
        let id = around.truth.publish(&around.plan.channels[channel].name, link.number);
        let keyed = around.dice.one_in(2);
        self.send(Publication { channel, id, keyed, again: false }, around);
    }

    /// Sends again what has a key and is not acknowledged. True: there was something.
    pub(crate) fn pursue(&mut self, around: &mut Around<'_>) -> bool {
        let mut some = false;
        while self.link.as_ref().is_some_and(Link::takes)
            && let Some(publication) = self.unsure.pop_front()
        {
            some = true;
            around.truth.repeat(publication.id);
            around.truth.counts.note("published again", 1);
            self.send(Publication { again: true, ..publication }, around);
        }
        some
    }

    fn send(&mut self, publication: Publication, around: &mut Around<'_>) {
        let Some(link) = &mut self.link else { return };
        self.last_seq += 1;
        link.pending.insert(self.last_seq, publication);
        let (key, payload) = (publication.id.to_le_bytes(), payload(publication.id));
        let publish = Publish {
            seq: self.last_seq,
            kind: PayloadKind::Json,
            idempotency_key: if publication.keyed { &key } else { b"" },
            channel: &around.plan.channels[publication.channel].name,
            payload: payload.as_bytes(),
        };
        let mut out = Vec::new();
        write_publish(&mut out, &publish).expect("fits");
        around.socket.up.extend(out);
    }

    /// Reads up to `bytes` of what has arrived. False: there was nothing.
    pub(crate) fn read(&mut self, bytes: usize, around: &mut Around<'_>) -> bool {
        let Some(link) = &mut self.link else { return false };
        let take = bytes.min(around.socket.down.len());
        if take == 0 {
            if around.socket.server_end {
                self.cut(around);
                return true;
            }
            return false;
        }
        link.arrived.extend(around.socket.down.drain(..take));
        let bytes = link.arrived.make_contiguous().to_vec();
        let mut used = 0;
        while let Some(len) = frame_len(&bytes[used..], SERVER_FRAME_BYTES_MAX).expect("sound frames") {
            let Some(frame) = bytes.get(used..used + len) else { break };
            used += len;
            self.take(decode_server(frame).expect("sound frames"), around);
        }
        if let Some(link) = &mut self.link {
            link.arrived.drain(..used);
        }
        self.leave_if_answered(around);
        true
    }

    fn take(&mut self, frame: ServerFrame<'_>, around: &mut Around<'_>) {
        let Some(link) = &mut self.link else { return };
        match frame {
            ServerFrame::HelloOk(hello) => {
                link.ready = true;
                link.credit = hello.credit_messages as usize;
            }
            ServerFrame::Acks(acks) => {
                for ack in acks {
                    self.acknowledged(&ack.expect("sound acknowledgements"), around);
                }
            }
            ServerFrame::Nack { seq, refusal } => {
                let publication = link.pending.remove(&seq).expect("an answer to a publish");
                // Busy says that it has not happened; internal, that nobody knows.
                let surely = refusal.code == IngestError::Busy.code();
                assert!(surely || refusal.code == IngestError::InternalError.code(), "{publication:?}: {refusal:?}");
                around.truth.counts.note("refused to backends", 1);
                if surely && !publication.keyed {
                    around.truth.refuse(publication.id, true);
                } else {
                    self.is_unsure(publication, around);
                }
            }
            ServerFrame::Ping { nonce } => {
                let mut out = Vec::new();
                write_pong(&mut out, nonce);
                around.socket.up.extend(out);
            }
            ServerFrame::GoingAway(_) => link.leaves = true,
            ServerFrame::Fatal(refusal) => assert!(refusal.temporary, "{refusal:?}"),
            other => panic!("a backend got {other:?}"),
        }
    }

    fn acknowledged(&mut self, ack: &Ack, around: &mut Around<'_>) {
        let Some(link) = &mut self.link else { return };
        let publication = link.pending.remove(&ack.seq);
        let publication = publication.unwrap_or_else(|| panic!("a second answer to publish {}", ack.seq));
        let epoch = EpochText(ack.epoch).to_string();
        assert!(!ack.duplicate || publication.keyed, "it has no key: {ack:?}");
        assert!(!ack.duplicate || publication.again, "a new key was taken for a repeated one: {ack:?}");
        around.truth.acknowledge(publication.id, Some((&epoch, ack.offset)));
        if ack.duplicate {
            return around.truth.counts.note("duplicates", 1);
        }
        let now = (ack.seq, epoch, ack.offset);
        if publication.again {
            // It may have happened when it was sent first.
            return;
        }
        if let Some(before) = link.answered.insert(publication.channel, now.clone()) {
            let rose = before.1 != now.1 || before.2 < now.2;
            assert!(before.0 < now.0 && rose, "answers of channel {} swapped", publication.channel);
        }
    }

    /// Whoever published does not know what became of it.
    fn is_unsure(&mut self, publication: Publication, around: &mut Around<'_>) {
        if publication.keyed {
            self.unsure.push_back(publication);
        } else {
            around.truth.refuse(publication.id, false);
        }
    }

    /// Loses its connection.
    pub(crate) fn cut(&mut self, around: &mut Around<'_>) {
        around.socket.end(PeerEnd::Reset);
        let Some(link) = self.link.take() else { return };
        for publication in link.pending.into_values() {
            self.is_unsure(publication, around);
        }
    }

    /// Publishes nothing new, and leaves when all is answered.
    pub(crate) fn leave(&mut self, around: &mut Around<'_>) {
        let Some(link) = &mut self.link else { return };
        link.leaves = true;
        self.leave_if_answered(around);
    }

    fn leave_if_answered(&mut self, around: &mut Around<'_>) {
        if self.link.take_if(|link| link.leaves && link.pending.is_empty()).is_some() {
            let mut out = Vec::new();
            write_goodbye(&mut out);
            around.socket.up.extend(out);
            around.socket.end(PeerEnd::Fin);
        }
    }

    /// Everything that can be known is.
    pub(crate) fn is_sure(&self) -> bool {
        self.unsure.is_empty() && self.link.as_ref().is_none_or(|link| link.pending.is_empty())
    }
}

impl Link {
    fn takes(&self) -> bool {
        self.ready && !self.leaves && self.pending.len() < self.credit
    }
}
