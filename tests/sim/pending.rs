//! Commands of a client that have no answer yet, and which answers can be true.
//!
//! In: an answer and the command it belongs to. Out: what the client believes from then on. Claims: what was asked is
//! granted, or refused for a reason that there is: a token that is no good, a backend that was told to refuse, a limit.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::client::{Around, Ask, Client, EARLY_MS};
use crate::dice::Dice;
use crate::ledger::Id;
use crate::plan::Plan;
use crate::rules::Kind;
use crate::speech::{Body, Publication, Subscribed};
use crate::stay::{Begun, Stay};
use crate::tokens::{Claim, Outcome};

/// Later than any run.
const NEVER_MS: u64 = u64::MAX / 2;

/// What a backend is to decide; it stands in what the client sends along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Allow,
    /// Error 403.
    Deny,
    /// Allow it after a while, perhaps too late.
    Linger,
    /// Close with 4321.
    Kick,
}

const WISHES: [(Wish, &str); 4] =
    [(Wish::Allow, "allow"), (Wish::Deny, "deny"), (Wish::Linger, "linger"), (Wish::Kick, "kick")];

impl Wish {
    pub(crate) fn any(dice: &mut Dice) -> Self {
        use Wish::{Allow, Deny, Kick, Linger};
        let often = [Allow, Allow, Allow, Allow, Deny, Linger, Linger];
        if dice.one_in(20) { Kick } else { dice.pick(&often) }
    }

    pub(crate) fn word(self) -> &'static str {
        WISHES.iter().find(|(wish, _)| *wish == self).expect("all have one").1
    }

    /// Out of what a client has sent along.
    pub(crate) fn read(data: &[u8]) -> Self {
        let data: Value = serde_json::from_slice(data).expect("JSON");
        let known = WISHES.iter().find(|(_, word)| data["wish"].as_str() == Some(word));
        known.unwrap_or_else(|| panic!("no wish in {data}")).0
    }

    /// What a client wishes for a publish, so that nothing but the publication stands in it.
    pub(crate) const fn of(publication: Id) -> Self {
        match publication % 7 {
            0 => Wish::Deny,
            1 => Wish::Linger,
            _ => Wish::Allow,
        }
    }
}

/// See the file's header.
#[derive(Debug)]
pub(crate) enum Pending {
    Connect {
        claim: Option<Claim>,
        wish: Option<Wish>,
        asks: BTreeMap<usize, Ask>,
        sent_ms: u64,
    },
    Subscribe {
        channel: usize,
        ask: Option<Ask>,
        /// It would rather have error 112 than `recovered:false`.
        rejects: bool,
        claim: Option<Claim>,
        wish: Option<Wish>,
        may_be_duplicate: bool,
        sent_ms: u64,
    },
    Unsubscribe {
        channel: usize,
    },
    Publish {
        channel: usize,
        id: Id,
    },
    /// `asks`: for the roster of its subscription.
    Presence {
        channel: usize,
        asks: bool,
    },
    Stats {
        channel: usize,
    },
    History {
        channel: usize,
        limit: i64,
        reverse: bool,
    },
    Rpc {
        data: Value,
        wish: Wish,
    },
    Refresh {
        claim: Claim,
        sent_ms: u64,
    },
    SubRefresh {
        channel: usize,
        claim: Claim,
        sent_ms: u64,
    },
    Refused {
        code: u64,
    },
}

impl Pending {
    pub(crate) const fn claim(&self) -> Option<&Claim> {
        match self {
            Pending::Connect { claim, .. } | Pending::Subscribe { claim, .. } => claim.as_ref(),
            Pending::Refresh { claim, .. } | Pending::SubRefresh { claim, .. } => Some(claim),
            _ => None,
        }
    }

    pub(crate) fn wish(&self) -> Option<Wish> {
        match self {
            Pending::Connect { wish, .. } | Pending::Subscribe { wish, .. } => *wish,
            Pending::Rpc { wish, .. } => Some(*wish),
            _ => None,
        }
    }
}

impl Client {
    /// Takes the answer to a command.
    pub(crate) fn settle(&mut self, id: u32, pending: Pending, body: Body, around: &mut Around<'_>) {
        match (pending, body) {
            (Pending::Connect { claim, wish, asks, sent_ms }, Body::Connect { client, ttl_ms, subs }) => {
                assert!(!matches!(wish, Some(Wish::Deny | Wish::Kick)), "admitted against a backend's word");
                self.connected(claim.as_ref(), asks, sent_ms, client, ttl_ms, subs, around);
            }
            (Pending::Subscribe { channel, ask, rejects, claim, wish, sent_ms, .. }, Body::Subscribe(answer)) => {
                // Taken for somebody else itself, it may show that one's token.
                let stranger = self.link.as_ref().is_some_and(|link| link.refused);
                let good = |claim: &Claim| claim.outcome == Outcome::Good || stranger;
                assert!(claim.as_ref().is_none_or(good), "{claim:?} was taken");
                assert!(!matches!(wish, Some(Wish::Deny | Wish::Kick)), "granted against a backend's word");
                let unrecovered = answer.was_recovering && !answer.recovered;
                assert!(!(rejects && unrecovered), "an unrecovered subscription for who rejects it: {answer:?}");
                let Some(link) = &self.link else { return };
                // Given up before it was answered, and asked for or made by the server since: answers come in any order.
                let given_up = link
                    .pending
                    .range(id..)
                    .any(|(_, later)| matches!(later, Pending::Unsubscribe { channel: of } if *of == channel));
                if given_up && link.stays.contains_key(&channel) {
                    return around.ledger.counts.note("overtaken", 1);
                }
                let mut ends = claim.and_then(|claim| ends_ms(&claim, sent_ms, around));
                let Some(link) = &mut self.link else { return };
                if let Some(prolonged_ms) = link.prolonged.remove(&channel) {
                    ends = Some((ends.map_or(prolonged_ms, |ends| ends.0.min(prolonged_ms)), NEVER_MS));
                }
                let begun = Begun {
                    command: id,
                    watches: self.plan.watches,
                    ends_ms: ends.filter(|_| answer.ttl_ms.is_some()),
                };
                self.subscribed(channel, ask.as_ref(), &answer, begun, around);
            }
            (Pending::Unsubscribe { channel }, Body::Unsubscribe) => {
                let Some(link) = &mut self.link else { return };
                // What the server has made it goes on with, and so does what the client has asked for since.
                if link.stays.get(&channel).is_some_and(|stay| !stay.is_server_side() && stay.command < id)
                    && let Some(stay) = link.stays.remove(&channel)
                {
                    stay.end(channel, around.ledger);
                }
            }
            (Pending::Publish { channel, id }, Body::Publish) => {
                let asked = around.plan.channels[channel].kind == Kind::Asked;
                assert!(!asked || Wish::of(id) != Wish::Deny, "publication {id} was to be refused");
                around.ledger.accepted(channel);
            }
            (Pending::Presence { channel, asks: true }, Body::Presence(members)) => {
                let Some(link) = &mut self.link else { return };
                if let Some(roster) = link.stays.get_mut(&channel).and_then(|stay| stay.roster.as_mut()) {
                    roster.answered(members.into_iter().map(|(client, _)| client));
                }
            }
            (Pending::Presence { asks: false, .. }, Body::Presence(_)) => {}
            (Pending::Stats { .. }, Body::Stats { clients, users }) => {
                assert!(users <= clients && (users > 0 || clients == 0), "{clients} clients, {users} users");
            }
            (Pending::History { channel, limit, reverse }, Body::History { publications, epoch, offset }) => {
                page(channel, (limit, reverse), &publications, &epoch, offset, around);
            }
            (Pending::Rpc { data, wish: Wish::Allow | Wish::Linger }, Body::Rpc(answer)) => {
                assert_eq!(serde_json::from_slice::<Value>(&answer).expect("JSON"), data, "a backend answers the same");
                around.ledger.counts.note("rpc", 1);
            }
            (Pending::Refresh { claim, sent_ms }, Body::Refresh { ttl_ms }) if claim.outcome == Outcome::Good => {
                assert_eq!(ttl_ms.is_some(), claim.ttl_ms.is_some());
                around.ledger.counts.note("refreshed", 1);
                if let Some(link) = &mut self.link {
                    link.ends_ms = ends_ms(&claim, sent_ms, around);
                }
            }
            (Pending::SubRefresh { channel, claim, sent_ms }, Body::SubRefresh { ttl_ms })
                if claim.outcome == Outcome::Good =>
            {
                assert_eq!(ttl_ms.is_some(), claim.ttl_ms.is_some());
                around.ledger.counts.note("subscriptions refreshed", 1);
                let Some(link) = &mut self.link else { return };
                let ends = ends_ms(&claim, sent_ms, around);
                let asks = link.asks(channel);
                match (link.stays.get_mut(&channel), ends) {
                    (Some(stay), ends) => stay.ends_ms = ends,
                    (None, Some((earliest_ms, _))) => drop(link.prolonged.insert(channel, earliest_ms)),
                    (None, None) => {}
                }
                assert!(asks || link.stays.contains_key(&channel), "channel {channel} was prolonged, not subscribed");
            }
            (pending, Body::Error { code, temporary }) => self.refused(pending, code, temporary, around),
            (pending, body) => panic!("{pending:?} was answered {body:?}"),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "all that a connect result says")]
    fn connected(
        &mut self,
        claim: Option<&Claim>,
        mut asks: BTreeMap<usize, Ask>,
        sent_ms: u64,
        client: String,
        ttl_ms: Option<u64>,
        subs: Vec<(String, Subscribed)>,
        around: &mut Around<'_>,
    ) {
        assert!(claim.is_none_or(|claim| matches!(claim.outcome, Outcome::Good | Outcome::Stranger)), "{claim:?}");
        let (plan, user) = (around.plan, self.plan.user);
        let ends = claim.is_some_and(|claim| claim.ttl_ms.is_some());
        assert!(ttl_ms.is_some() == ends || around.ledger.orders.refreshed.contains(user), "{claim:?}: {ttl_ms:?}");
        let ends = claim.and_then(|claim| ends_ms(claim, sent_ms, around));
        let is_stranger = claim.is_some_and(|claim| claim.outcome == Outcome::Stranger);
        let Some(link) = &mut self.link else { return };
        link.client_id = Some(client);
        link.ends_ms = ends;
        // Whoever it is taken for now, no order is about it.
        let mut expected = link.granted.clone();
        let personal = |channel: &str| channel.strip_prefix("direct:#") == Some(user) && !is_stranger;
        expected.extend((0..plan.channels.len()).filter(|number| personal(&plan.channels[*number].name)));
        if is_stranger {
            link.refused = true;
        }
        for (name, answer) in subs {
            if is_stranger && name == "direct:#stranger" {
                continue;
            }
            let channel = plan.number_of(&name);
            let place = expected.iter().position(|expected| *expected == channel);
            expected.swap_remove(place.unwrap_or_else(|| panic!("nobody granted {name}")));
            let ask = asks.remove(&channel);
            let begun = Begun::default();
            self.subscribed(channel, ask.as_ref(), &answer, begun, around);
        }
        let ended = |channel: &usize| around.ledger.orders.unsubscribed.contains(&(user.to_owned(), *channel));
        let missing: Vec<_> = expected.iter().filter(|channel| !ended(channel)).collect();
        assert!(missing.is_empty(), "channels {missing:?} are missing in the connect result");
    }

    fn subscribed(
        &mut self,
        channel: usize,
        ask: Option<&Ask>,
        answer: &Subscribed,
        begun: Begun,
        around: &mut Around<'_>,
    ) {
        let stay = Stay::begin(channel, answer, ask, begun, around);
        let position = stay.position(&around.plan.channels[channel]);
        if position.is_some() {
            self.positions[channel] = position;
        }
        let Some(link) = &mut self.link else { return };
        if answer.number > 0 {
            assert!(self.plan.thrifty, "a number for who did not ask for it");
            link.numbers.insert(answer.number, channel);
        }
        let before = link.stays.insert(channel, stay);
        assert!(before.is_none(), "subscribed twice to channel {channel} on {}", link.number);
    }

    /// A command was answered with an error.
    fn refused(&mut self, pending: Pending, code: u64, temporary: bool, around: &mut Around<'_>) {
        // Without a backend a feature is not available for now; otherwise for good.
        assert!(code == 108 || temporary == matches!(code, 100 | 111 | 113), "error {code}, temporary: {temporary}");
        let plan = around.plan;
        // Backends may be slow, absent, or have too much to do.
        let unserved = plan.events && matches!(code, 100 | 108 | 111);
        let denied = |wish: Wish| (code == 403 && wish == Wish::Deny) || unserved;
        let gone = |channel: usize| plan.channels[channel].kind == Kind::Fleeting && matches!(code, 102 | 111);
        let may = match &pending {
            Pending::Refused { code: expected } => code == *expected,
            Pending::Connect { claim, wish, .. } => {
                if let Some(link) = &mut self.link {
                    link.refused = true;
                }
                claim.as_ref().is_some_and(|claim| refuses(claim, code, 0)) || wish.is_some_and(denied)
            }
            Pending::Subscribe { channel, ask, rejects, claim, wish, may_be_duplicate, .. } => {
                let lost = code == 100 && plan.lossy;
                let duplicate = code == 105 && (*may_be_duplicate || self.may_be_subscribed(*channel, around));
                let unrecovered = code == 112 && *rejects && ask.is_some();
                around.ledger.counts.note("rejected unrecovered", u64::from(unrecovered));
                around.ledger.counts.not_recovered += u64::from(unrecovered);
                let token = claim.as_ref().is_some_and(|claim| refuses(claim, code, 103));
                around.ledger.counts.note("subscription tokens refused", u64::from(token));
                lost || duplicate || unrecovered || token || wish.is_some_and(denied) || gone(*channel)
            }
            Pending::Publish { channel, id } => {
                around.ledger.refuse(*id);
                let asked = plan.channels[*channel].kind == Kind::Asked;
                around.ledger.counts.note("publishes denied", u64::from(asked && code == 403));
                (asked && denied(Wish::of(*id))) || gone(*channel)
            }
            Pending::Rpc { wish, .. } => denied(*wish),
            Pending::Refresh { claim, .. } => refuses(claim, code, 0),
            // By then the subscription may have ended.
            Pending::SubRefresh { claim, .. } => refuses(claim, code, 103) || code == 103,
            // The answer would not have fit the outbox.
            Pending::Presence { .. } | Pending::Stats { .. } | Pending::History { .. } if plan.slow && code == 106 => {
                true
            }
            Pending::Presence { channel, .. } | Pending::Stats { channel } => {
                plan.channels[*channel].kind == Kind::Late && code == 108
            }
            Pending::History { channel, .. } => gone(*channel),
            Pending::Unsubscribe { .. } => false,
        };
        assert!(may, "{pending:?} was answered with error {code}");
        around.ledger.counts.note("refused", 1);
        let Some(link) = &mut self.link else { return };
        if let Pending::Subscribe { channel, .. } = pending {
            link.refusals.insert(channel);
            if !link.stays.contains_key(&channel) && !link.asks(channel) {
                link.wants[channel] = false;
            }
        }
    }

    /// Whether the server may have made a subscription that the client has not heard of.
    fn may_be_subscribed(&self, channel: usize, around: &Around<'_>) -> bool {
        // Or it has ended a subscription before it was granted, and the client has asked again.
        let (orders, of_user) = (&around.ledger.orders, (self.plan.user.to_owned(), channel));
        let ordered = orders.subscribed.contains(&of_user) || orders.unsubscribed.contains(&of_user);
        let Some(link) = &self.link else { return false };
        ordered || link.granted_or_personal(channel, around.plan)
    }
}

impl crate::client::Link {
    fn granted_or_personal(&self, channel: usize, plan: &Plan) -> bool {
        self.granted.contains(&channel) || plan.channels[channel].kind == Kind::Direct
    }
}

/// Whether a token is a reason for an error. `invalid`: the error that an invalid one gets; 0: it closes.
fn refuses(claim: &Claim, code: u64, invalid: u64) -> bool {
    match claim.outcome {
        Outcome::Expired => code == 109,
        Outcome::Busy => code == 111,
        Outcome::Invalid => code == invalid,
        Outcome::Good | Outcome::Stranger => false,
    }
}

/// When what a token prolongs may end at the earliest, and must have ended.
fn ends_ms(claim: &Claim, sent_ms: u64, around: &Around<'_>) -> Option<(u64, u64)> {
    let after_ms = claim.ttl_ms? + u64::from(around.plan.limits.expired_grace_ms);
    Some(((sent_ms + after_ms).saturating_sub(EARLY_MS), around.now_ms + after_ms))
}

/// A page of history must be a piece of the channel, in order.
fn page(
    channel: usize,
    (limit, reverse): (i64, bool),
    publications: &[Publication],
    epoch: &str,
    top: u64,
    around: &mut Around<'_>,
) {
    assert!(limit < 0 || publications.len() as i64 <= limit, "{} of {limit}", publications.len());
    let mut before: Option<u64> = None;
    for publication in publications {
        let expected = before.map(|before| if reverse { before - 1 } else { before + 1 });
        assert!(expected.is_none_or(|expected| expected == publication.offset), "a page with a hole");
        before = Some(publication.offset);
        let id = around.ledger.identify(channel, &publication.data, publication.publisher.as_deref());
        around.ledger.place(channel, epoch, publication.offset, id);
    }
    let newest = publications.first().filter(|_| reverse);
    assert!(newest.is_none_or(|newest| newest.offset == top), "the newest is missing below {top}");
    around.ledger.counts.note("history pages", 1);
}
