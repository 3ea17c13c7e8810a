//! What a simulated backend owes for the events that it was sent: acknowledgements and decisions.
//!
//! In: events. Out: EventAck and EventAnswer frames, later and in any order. A decision is what the client wished for
//! in what it sent along (`pending.rs`), so that the client knows what to expect.

use ringway_wire::ingest::{Admission, ClientEvent, Grant, Happened, Verdict, write_event_ack, write_event_answer};
use serde_json::Value;

use crate::dice::Dice;
use crate::pending::Wish;

/// Bytes of the largest answer.
const FRAME_BYTES_MAX: usize = 1 << 20;

/// What one event is owed.
#[derive(Debug)]
struct Owed {
    event: u64,
    wish: Wish,
    answer: Answer,
}

#[derive(Debug)]
enum Answer {
    Acknowledgement,
    Admit { user: String },
    Grant,
    Publish { data: Vec<u8> },
    Rpc { data: Vec<u8> },
}

/// See the file's header.
#[derive(Debug, Default)]
pub(crate) struct Decisions {
    owed: Vec<Owed>,
}

impl Decisions {
    /// Notes what an event is owed.
    pub(crate) fn owe(&mut self, event: u64, said: &ClientEvent<'_>) {
        let wished = |data: &[u8]| if data.is_empty() { Wish::Allow } else { Wish::read(data) };
        let (wish, answer) = match said.what {
            _ if !said.ask => (Wish::Allow, Answer::Acknowledgement),
            Happened::Connect { data, .. } => {
                let json: Value = serde_json::from_slice(data).expect("JSON");
                let user = json["user"].as_str().expect("a user").to_owned();
                (wished(data), Answer::Admit { user })
            }
            Happened::Subscribe { data, .. } => (wished(data), Answer::Grant),
            Happened::Publish { data, .. } => {
                let json: Value = serde_json::from_slice(data).expect("JSON");
                (Wish::of(json["p"].as_u64().expect("a number")), Answer::Publish { data: data.to_vec() })
            }
            Happened::Rpc { data, .. } => (wished(data), Answer::Rpc { data: data.to_vec() }),
            other => panic!("nobody asks about {other:?}"),
        };
        self.owed.push(Owed { event, wish, answer });
    }

    /// Pays some of what is owed; everything if `all`.
    pub(crate) fn pay(&mut self, dice: &mut Dice, all: bool) -> Vec<u8> {
        let mut out = Vec::new();
        let count = if all { self.owed.len() } else { self.owed.len().min(dice.below(4)) };
        for _ in 0..count {
            let index = dice.below(self.owed.len());
            if !all && self.owed[index].wish == Wish::Linger && !dice.one_in(20) {
                continue;
            }
            let owed = self.owed.swap_remove(index);
            owed.write(&mut out);
        }
        out
    }

    /// The connection has ended: others are sent what was owed.
    pub(crate) fn clear(&mut self) {
        self.owed.clear();
    }
}

impl Owed {
    fn write(&self, out: &mut Vec<u8>) {
        let mut replaced = Vec::new();
        let verdict = match (&self.answer, self.wish) {
            (Answer::Acknowledgement, _) => return write_event_ack(out, self.event),
            (_, Wish::Deny) => Verdict::Error { code: 403, temporary: false, message: "denied" },
            (_, Wish::Kick) => Verdict::Disconnect { code: 4321, reason: "kicked" },
            (Answer::Admit { user }, _) => Verdict::Connect(Admission { user, ..Admission::ANONYMOUS }),
            (Answer::Grant, _) => Verdict::Subscribe(Grant::default()),
            (Answer::Publish { .. }, _) if self.event.is_multiple_of(3) => Verdict::Publish { data: None },
            (Answer::Publish { data }, _) => {
                // The same, but for a newline that must not reach subscribers.
                let comma = data.iter().position(|byte| *byte == b',').expect("two fields") + 1;
                replaced.extend_from_slice(&data[..comma]);
                replaced.push(b'\n');
                replaced.extend_from_slice(&data[comma..]);
                Verdict::Publish { data: Some(&replaced) }
            }
            (Answer::Rpc { data }, _) => Verdict::Rpc { data },
        };
        write_event_answer(out, self.event, &verdict, FRAME_BYTES_MAX).expect("fits");
    }
}
