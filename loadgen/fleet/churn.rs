//! Clients that leave channels and come back to them, and whose connections are cut, at random and at a rate.
//!
//! In: rates, the clock, answers to unsubscribes. Out: unsubscribe and subscribe commands, connections that end.
//!
//! ```text
//! stands ── unsubscribe sent ──> leaving ── answered ──> left ── subscribe with the position ──> asked ── answered ──> stands
//! ```
//!
//! Invariants: what comes before the answer to an unsubscribe counts and moves the position; what comes behind it, before the
//! answer to the next subscribe, is foreign. A client that is cut off comes back without what it had left. Behind the load
//! everybody comes back to everything, so that the checker can ask for all of it; who was told that something may be missing
//! and has had nothing since leaves and comes back once more, as only an answer behind the last publication is the last word.
use super::report::FleetReport;
use super::worker::{FleetWorker, Phase};
use crate::net;

/// Ids of unsubscribe commands are this and the index of the subscription; above those of subscribes, below those of
/// publishes.
pub(super) const UNSUBSCRIBE_ID: u32 = 1_000;
/// Changes and cuts begun between two looks at the sockets. What is due beyond it waits for the next turn.
const CHANGES_PER_TURN: u64 = 64;

/// So many of something per second.
#[derive(Debug, Default)]
struct Pace {
    per_s: f64,
    since_ns: u64,
    done: u64,
}

impl Pace {
    fn begin(&mut self, now_ns: u64) {
        (self.since_ns, self.done) = (now_ns, 0);
    }

    /// How many are due now, all of which are then done.
    fn due(&mut self, now_ns: u64) -> u64 {
        let all = (now_ns.saturating_sub(self.since_ns) as f64 / 1e9 * self.per_s) as u64;
        let due = all.saturating_sub(self.done).min(CHANGES_PER_TURN);
        self.done += due;
        due
    }
}

/// What a worker does to its clients.
#[derive(Debug, Default)]
pub(super) struct Churn {
    changes: Pace,
    cuts: Pace,
    runs: bool,
    over: bool,
    left: u64,
    returned: u64,
    cut_off: u64,
}

impl Churn {
    /// Rates of this worker, per second.
    pub(super) fn new(changes_per_s: f64, cuts_per_s: f64) -> Churn {
        let pace = |per_s| Pace { per_s, ..Pace::default() };
        Churn { changes: pace(changes_per_s), cuts: pace(cuts_per_s), ..Churn::default() }
    }

    /// From now on.
    pub(super) fn begin(&mut self, now_ns: u64) {
        self.changes.begin(now_ns);
        self.cuts.begin(now_ns);
        self.runs = true;
    }

    /// No more; everybody comes back.
    pub(super) fn stop(&mut self) {
        (self.runs, self.over) = (false, true);
    }

    /// Writes down what was done.
    pub(super) fn report(&self, into: &mut FleetReport) {
        (into.left, into.returned, into.cut_off) = (self.left, self.returned, self.cut_off);
    }
}

impl FleetWorker {
    /// Does what is due.
    pub(super) fn churn_due(&mut self, now_ns: u64) {
        if !self.churn.runs {
            return;
        }
        let clients = self.clients.len() as u64;
        for _ in 0..self.churn.changes.due(now_ns) {
            let client = self.random.below(clients) as u32;
            let index = self.random.below(u64::from(self.config.layout.subscriptions)) as u32;
            self.change(client, index);
        }
        for _ in 0..self.churn.cuts.due(now_ns) {
            let client = self.random.below(clients) as u32;
            if self.clients[client as usize].phase == Phase::Open {
                self.churn.cut_off += 1;
                self.cut(client, "cut off by the run", true);
            }
        }
    }

    /// Leaves what stands, comes back to what was left; what is under way stays as it is.
    fn change(&mut self, client: u32, index: u32) {
        let place = &self.clients[client as usize];
        if place.phase != Phase::Open {
            return;
        }
        let bit = 1 << index;
        if place.standing & bit != 0 {
            self.leave(client, index);
        } else if place.left & bit != 0 && place.leaving & bit == 0 {
            self.come_back(client, index);
        }
    }

    fn leave(&mut self, client: u32, index: u32) {
        let was_whole = self.is_whole(client);
        let place = &mut self.clients[client as usize];
        let bit = 1 << index;
        place.standing &= !bit;
        place.left |= bit;
        place.leaving |= bit;
        (place.asked, place.asked_ns) = (place.asked + 1, net::now_ns());
        self.churn.left += 1;
        self.count_whole(client, was_whole);
        let (id, name) = (UNSUBSCRIBE_ID + index, self.name_of(client, index));
        self.send_command(client, &format!("{{\"id\":{id},\"unsubscribe\":{{\"channel\":\"{name}\"}}}}"));
    }

    fn come_back(&mut self, client: u32, index: u32) {
        let was_whole = self.is_whole(client);
        self.clients[client as usize].left &= !(1 << index);
        self.churn.returned += 1;
        self.count_whole(client, was_whole);
        self.subscribe_again(client, index);
    }

    /// The answer to an unsubscribe.
    pub(super) fn unsubscribed(&mut self, client: u32, index: u32) {
        self.clients[client as usize].leaving &= !(1u32.checked_shl(index).unwrap_or(0));
        self.answer_came(client);
    }

    /// Whether a push to this subscription belongs to it now: it stands, or its end has no answer yet.
    pub(super) fn listens(&self, client: u32, index: u32) -> bool {
        let place = &self.clients[client as usize];
        (place.standing | place.leaving) & (1 << index) != 0
    }

    /// Behind the load: lets those ask once more who cannot tell whether more will come.
    pub(super) fn ask_again(&mut self) {
        for subscription in self.checker.in_doubt() {
            let (client, index) =
                (subscription / self.config.layout.subscriptions, subscription % self.config.layout.subscriptions);
            if self.clients[client as usize].phase == Phase::Open {
                self.leave(client, index);
            }
        }
    }

    /// Behind the load: brings everybody back to what was left.
    pub(super) fn bring_back(&mut self) {
        if !self.churn.over {
            return;
        }
        for client in 0..self.clients.len() as u32 {
            let place = &mut self.clients[client as usize];
            match place.phase {
                _ if place.left == 0 => {}
                // These subscribe when they join.
                Phase::Away | Phase::Upgrading => {
                    self.churn.returned += u64::from(place.left.count_ones());
                    place.left = 0;
                }
                Phase::Open => {
                    let back = place.left & !place.leaving;
                    for index in (0..self.config.layout.subscriptions).filter(|index| back & 1 << index != 0) {
                        self.come_back(client, index);
                    }
                }
                Phase::Joining | Phase::Gone => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_kept_in_bounded_parts() {
        let mut pace = Pace { per_s: 1_000.0, ..Pace::default() };
        pace.begin(5_000_000_000);
        assert_eq!(pace.due(5_000_000_000), 0);
        assert_eq!(pace.due(5_010_000_000), 10);
        assert_eq!(pace.due(5_010_000_000), 0);
        let late: u64 = (0..20).map(|_| pace.due(6_000_000_000)).sum();
        assert_eq!(late, 990);
        let first = Pace { per_s: 1_000.0, since_ns: 0, done: 0 }.due(1_000_000_000);
        assert_eq!(first, CHANGES_PER_TURN);
    }
}
