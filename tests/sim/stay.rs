//! A subscription as its client sees it: from the answer that begins it to what ends it.
//!
//! In: subscribe results, publications, joins and leaves, in the order in which they came. Out: positions, and what was
//! published to the ledger. Claims: exactly the offsets behind the answer come, none missing, none twice (some missing
//! where the rules let slow clients lose them); a recovery is complete or none; deltas give what was published.

use ringway_engine::namespace::{RecoveryMode, SlowConsumer};
use ringway_wire::delta;

use crate::client::{Around, Ask};
use crate::ledger::{Id, Ledger};
use crate::plan::{ChannelPlan, Plan};
use crate::presence::Roster;
use crate::rules::Kind;
use crate::speech::{Publication, Subscribed, Told};

/// Largest payload that a delta may give.
const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Stay {
    epoch: String,
    next: u64,
    /// What was seen where there are no offsets.
    seen: Vec<Id>,
    /// The command that it answers; 0: the server made it, not the client.
    pub(crate) command: u32,
    /// Publications may be deltas to the one before, which is kept here.
    delta: bool,
    base: Option<Vec<u8>>,
    /// It hears of joins and leaves.
    pub(crate) roster: Option<Roster>,
    /// It has not asked yet who is there.
    pub(crate) wants_presence: bool,
    /// When it may end at the earliest, and must have ended, because its token's time is over.
    pub(crate) ends_ms: Option<(u64, u64)>,
}

/// How a subscription came about.
#[derive(Debug, Default)]
pub(crate) struct Begun {
    /// The subscribe command; 0: the server has made it.
    pub(crate) command: u32,
    /// The client asked for joins and leaves.
    pub(crate) watches: bool,
    pub(crate) ends_ms: Option<(u64, u64)>,
}

impl Stay {
    /// A subscription that was granted; `ask`: it was to recover.
    pub(crate) fn begin(
        channel: usize,
        answer: &Subscribed,
        ask: Option<&Ask>,
        begun: Begun,
        around: &mut Around<'_>,
    ) -> Self {
        let plan = around.plan;
        let rules = &plan.channels[channel].rules;
        assert_eq!(answer.was_recovering, ask.is_some(), "was_recovering");
        assert!(!answer.recoverable || rules.recovery, "recoverable without recovery: {answer:?}");
        let mut stay = Stay {
            epoch: answer.epoch.clone(),
            next: answer.offset + 1,
            seen: Vec::new(),
            command: begun.command,
            delta: answer.delta,
            base: None,
            roster: None,
            wants_presence: false,
            ends_ms: begun.ends_ms,
        };
        if rules.join_leave && (rules.join_leave_forced || begun.watches) {
            let kind = plan.channels[channel].kind;
            stay.roster = Some(Roster::new(matches!(kind, Kind::Big | Kind::Late)));
            stay.wants_presence = true;
        }
        match ask {
            Some(ask) if answer.recovered => stay.recovered(channel, answer, ask, around),
            _ => {
                assert!(!answer.recovered, "recovered without having asked");
                assert!(answer.publications.is_empty(), "publications without recovery");
                if let Some(ask) = ask {
                    around.ledger.counts.not_recovered += 1;
                    must_be_gone(channel, ask, answer, around);
                }
            }
        }
        around.ledger.counts.stays += 1;
        around.ledger.counts.note("server-side stays", u64::from(stay.is_server_side()));
        let (owner, here) = (plan.channels[channel].owner, around.socket.shard);
        let apart = |publisher: &usize| owner != here && owner != *publisher && here != *publisher;
        around.ledger.counts.stays_apart += u64::from(plan.backends.iter().any(apart));
        stay
    }

    fn recovered(&mut self, channel: usize, answer: &Subscribed, ask: &Ask, around: &mut Around<'_>) {
        let plan = around.plan;
        assert_eq!(answer.offset, ask.offset, "a recovery's answer repeats the offset of the request");
        around.ledger.counts.recovered += 1;
        if plan.channels[channel].rules.recovery_mode == RecoveryMode::Cache {
            assert!(answer.publications.len() <= 1, "a cache is one publication: {answer:?}");
            around.ledger.counts.note("recovered from cache", answer.publications.len() as u64);
            if let Some(latest) = answer.publications.first() {
                self.next = latest.offset;
            }
        } else {
            assert!(!ask.impossible, "recovered from {ask:?}, which cannot be: {answer:?}");
            assert!(ask.epoch.is_empty() || ask.epoch == answer.epoch, "recovered over an epoch");
            let most = plan.numbers.history_size.min(plan.limits.recovery_publications_max) as usize;
            assert!(answer.publications.len() <= most, "{} recovered of {most}", answer.publications.len());
        }
        for publication in &answer.publications {
            assert_eq!(publication.offset, self.next, "in a recovery of channel {channel}");
            assert!(!publication.delta, "a recovery that is not whole");
            let data = self.whole(publication, around);
            place(channel, &self.epoch, publication, &data, around);
            self.next += 1;
        }
    }

    /// A subscription that the server made at run time.
    pub(crate) fn pushed(
        channel: usize,
        (epoch, offset): (String, u64),
        recoverable: bool,
        around: &mut Around<'_>,
    ) -> Self {
        let answer = Subscribed {
            recoverable,
            epoch,
            offset,
            recovered: false,
            was_recovering: false,
            publications: Vec::new(),
            delta: false,
            number: 0,
            ttl_ms: None,
        };
        Stay::begin(channel, &answer, None, Begun::default(), around)
    }

    pub(crate) const fn is_server_side(&self) -> bool {
        self.command == 0
    }

    /// A publication's payload, also out of a delta.
    fn whole(&mut self, publication: &Publication, around: &mut Around<'_>) -> Vec<u8> {
        assert!(self.delta || !publication.delta, "a delta for who did not ask for it");
        assert_eq!(
            publication.as_text,
            self.delta && around.json,
            "in JSON form data is text where there may be deltas, and only there"
        );
        let mut data = publication.data.clone();
        if publication.delta {
            let base = self.base.as_ref().expect("something to apply a delta to");
            let mut whole = Vec::new();
            delta::apply(base, &data, PAYLOAD_BYTES_MAX, &mut whole).expect("a delta to the one before");
            data = whole;
            around.ledger.counts.note("deltas", 1);
        }
        if self.delta {
            self.base = Some(data.clone());
        }
        data
    }

    pub(crate) fn publication(&mut self, channel: usize, publication: &Publication, around: &mut Around<'_>) {
        around.ledger.counts.delivered += 1;
        let data = self.whole(publication, around);
        let plan = &around.plan.channels[channel];
        if !plan.history {
            assert_eq!(publication.offset, 0, "a channel without history shows no offsets");
            let id = around.ledger.identify(channel, &data, publication.publisher.as_deref());
            self.seen.push(id);
            return;
        }
        if plan.rules.slow_consumer == SlowConsumer::Disconnect {
            assert_eq!(publication.offset, self.next, "channel {channel}, epoch {}", self.epoch);
        } else {
            assert!(publication.offset >= self.next, "channel {channel}: {} again", publication.offset);
            around.ledger.counts.note("skipped", publication.offset - self.next);
        }
        self.next = publication.offset + 1;
        place(channel, &self.epoch, publication, &data, around);
    }

    /// A join or leave.
    pub(crate) fn changed(&mut self, channel: usize, told: &Told, around: &mut Around<'_>) {
        let ((client, _), there) = match told {
            Told::Join(seen) => (seen, true),
            Told::Leave(seen) => (seen, false),
            other => panic!("{other:?} is no change"),
        };
        around.ledger.counts.note(if there { "joins" } else { "leaves" }, 1);
        if around.plan.channels[channel].kind == Kind::Late {
            return;
        }
        let roster = self.roster.as_mut().unwrap_or_else(|| panic!("{told:?} for who does not hear of it"));
        roster.told(client, there);
    }

    /// Where the client would resume; none where there is no history.
    pub(crate) fn position(&self, plan: &ChannelPlan) -> Option<(u64, String)> {
        plan.history.then(|| (self.next - 1, self.epoch.clone()))
    }

    /// Nothing is under way: it has reached its channel's top.
    pub(crate) fn assert_up_to_date(&self, channel: usize, plan: &Plan, ledger: &Ledger) {
        if plan.channels[channel].history {
            let top = ledger.top(channel, &self.epoch);
            if plan.channels[channel].kind == Kind::Fleeting {
                // Without a namespace now, the last publication was refused, and nobody may have seen the one before.
                return assert!(self.next > top, "channel {channel}: the end is missing");
            }
            assert_eq!(self.next - 1, top, "channel {channel}: the end is missing");
        } else {
            let last = ledger.last(channel).and_then(|last| ledger.position(last));
            let seen = self.seen.last().and_then(|id| ledger.position(*id));
            // The last one published is the one at the top, since nothing else was under way.
            assert_eq!(seen, last, "channel {channel}: the end is missing");
        }
    }

    pub(crate) fn end(self, channel: usize, ledger: &mut Ledger) {
        if !self.seen.is_empty() {
            ledger.saw_unnumbered(channel, self.seen);
        }
    }
}

/// What was not recovered must really be out of reach.
fn must_be_gone(channel: usize, ask: &Ask, answer: &Subscribed, around: &Around<'_>) {
    let plan = around.plan;
    if !plan.numbers.history_lasts || plan.slow || plan.large {
        return;
    }
    if plan.channels[channel].rules.recovery_mode == RecoveryMode::Cache {
        // An empty history is one in which nothing was published.
        assert_eq!(answer.offset, 0, "{ask:?} could have been recovered: {answer:?}");
        return;
    }
    let comparable = ask.epoch.is_empty() || ask.epoch == answer.epoch;
    if ask.impossible || !comparable {
        return;
    }
    let within = plan.numbers.history_size.min(plan.limits.recovery_publications_max) as u64;
    // An older offset than the top's may belong to an earlier epoch when the client named none.
    let missed = answer.offset.checked_sub(ask.offset);
    assert!(missed.is_none_or(|missed| missed > within), "{ask:?} could have been recovered: {answer:?}");
}

fn place(channel: usize, epoch: &str, publication: &Publication, data: &[u8], around: &mut Around<'_>) {
    let id = around.ledger.identify(channel, data, publication.publisher.as_deref());
    around.ledger.place(channel, epoch, publication.offset, id);
}
