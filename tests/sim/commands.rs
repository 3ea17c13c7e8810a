//! What a simulated client asks for, and how it writes it down.
//!
//! In: dice, what the client knows. Out: commands as bytes, each noted as one that awaits its answer (`pending.rs`).

use std::collections::BTreeMap;

use ringway_engine::namespace::Allow;
use serde_json::{Value, json};

use crate::client::{Around, Ask, Client, Link};
use crate::pending::{Pending, Wish};
use crate::rules::Kind;
use crate::speech;
use crate::tokens::Claim;

impl Client {
    pub(crate) fn connect_command(&mut self, around: &mut Around<'_>) -> Vec<u8> {
        let plan = around.plan;
        let name = if self.plan.thrifty { "go" } else { "js" };
        let mut request = json!({"name": name, "flag": i64::from(self.plan.thrifty)});
        let (mut claim, mut wish) = (None, None);
        let user = self.plan.user;
        if plan.tokens && !user.is_empty() {
            let grantable =
                |kind| matches!(kind, Kind::Stream | Kind::Crowd | Kind::Token | Kind::Cache | Kind::Newest);
            let granted: Vec<_> = (0..plan.channels.len())
                .filter(|number| grantable(plan.channels[*number].kind) && around.dice.one_in(5))
                .collect();
            let names = granted.iter().map(|number| plan.channels[*number].name.clone()).collect();
            let token = Claim::new(around.dice, user, names);
            request["token"] = json!(token.text());
            self.change(|link| link.granted = granted);
            claim = Some(token);
        } else if plan.connect_asked {
            let wished = Wish::any(around.dice);
            request["data"] = json!({"wish": wished.word(), "user": user});
            wish = Some(wished);
        }
        let mut asks = BTreeMap::new();
        let known = self.positions.iter().enumerate().filter(|(number, _)| plan.channels[*number].rules.recovery);
        for (number, position) in known {
            let Some((offset, epoch)) = position.clone().filter(|_| plan.numbers.whole) else { continue };
            if request["subs"].is_null() {
                request["subs"] = json!({});
            }
            request["subs"][&plan.channels[number].name] = json!({"recover": true, "offset": offset, "epoch": epoch});
            asks.insert(number, Ask { offset, epoch, impossible: false });
        }
        let pending = Pending::Connect { claim, wish, asks, sent_ms: around.now_ms };
        self.command("connect", request, pending)
    }

    pub(crate) fn subscribe(&mut self, channel: usize, around: &mut Around<'_>) -> Vec<u8> {
        let plan = &around.plan.channels[channel];
        if plan.kind == Kind::Direct {
            return Vec::new();
        }
        let ask = match (&self.positions[channel], around.dice.below(12)) {
            (None, 0) => Some(Ask { offset: 0, epoch: String::new(), impossible: false }),
            (None, _) | (Some(_), 0..4) => None,
            (Some((offset, _)), 4) => Some(Ask { offset: *offset, epoch: "0.1".to_owned(), impossible: true }),
            (Some((offset, epoch)), 5) => {
                Some(Ask { offset: offset + 1_000_000, epoch: epoch.clone(), impossible: true })
            }
            (Some((offset, epoch)), 6) => {
                Some(Ask { offset: offset.saturating_sub(3), epoch: epoch.clone(), impossible: false })
            }
            (Some((offset, epoch)), _) => Some(Ask { offset: *offset, epoch: epoch.clone(), impossible: false }),
        };
        let mut request = json!({"channel": plan.name});
        if let Some(ask) = &ask {
            request["recover"] = json!(true);
            request["offset"] = json!(ask.offset);
            request["epoch"] = json!(ask.epoch);
        }
        let whole = around.plan.numbers.whole;
        let rejects = whole && around.dice.one_in(4);
        let thrifty = self.plan.thrifty;
        if whole {
            request["flag"] = json!(i64::from(thrifty) | i64::from(rejects) << 1);
            request["join_leave"] = json!(self.plan.watches);
        }
        if thrifty {
            request["delta"] = json!("fossil");
        }
        let claim = (plan.kind == Kind::Token).then(|| {
            let claim = Claim::new(around.dice, self.plan.user, vec![plan.name.clone()]);
            request["token"] = json!(claim.text());
            claim
        });
        let wish = (plan.kind == Kind::Asked).then(|| {
            let wish = Wish::any(around.dice);
            request["data"] = json!({"wish": wish.word()});
            wish
        });
        let Some(link) = &mut self.link else { return Vec::new() };
        let may_be_duplicate = std::mem::replace(&mut link.wants[channel], true);
        // Where nothing is kept the server takes no notice of the wish.
        let ask = ask.filter(|_| plan.rules.recovery);
        let pending =
            Pending::Subscribe { channel, ask, rejects, claim, wish, may_be_duplicate, sent_ms: around.now_ms };
        self.command("subscribe", request, pending)
    }

    /// Subscribes with a good token whose verdict takes a while.
    pub(crate) fn subscribe_later(&mut self, channel: usize, around: &mut Around<'_>) {
        let name = &around.plan.channels[channel].name;
        let claim = Claim::slow(self.plan.user, name);
        let request = json!({"channel": name, "token": claim.text()});
        self.change(|link| link.wants[channel] = true);
        let pending = Pending::Subscribe {
            channel,
            ask: None,
            rejects: false,
            claim: Some(claim),
            wish: None,
            may_be_duplicate: false,
            sent_ms: around.now_ms,
        };
        let command = self.command("subscribe", request, pending);
        self.send(&command, around);
    }

    pub(crate) fn unsubscribe(&mut self, channel: usize, around: &mut Around<'_>) -> Vec<u8> {
        self.change(|link| link.wants[channel] = false);
        let name = &around.plan.channels[channel].name;
        self.command("unsubscribe", json!({"channel": name}), Pending::Unsubscribe { channel })
    }

    pub(crate) fn publish(&mut self, channel: usize, around: &mut Around<'_>) -> Vec<u8> {
        let plan = &around.plan.channels[channel];
        if plan.kind == Kind::Direct && !plan.name.ends_with(&format!("#{}", self.plan.user)) {
            return Vec::new();
        }
        if !plan.history {
            // Nobody learns the offset of a client's publication there, so the oracle could not place it.
            let pending = if plan.rules.presence {
                Pending::Presence { channel, asks: false }
            } else {
                Pending::Refused { code: 108 }
            };
            return self.command("presence", json!({"channel": plan.name}), pending);
        }
        let Some(Link { client_id: Some(client_id), number, .. }) = &self.link else { return Vec::new() };
        let id = around.ledger.publish(channel, Some(client_id), *number);
        let payload: Value = serde_json::from_str(&around.ledger.payload(id)).expect("payloads are JSON");
        let pending = Pending::Publish { channel, id };
        self.command("publish", json!({"channel": plan.name, "data": payload}), pending)
    }

    /// What clients do less often than subscribe and publish.
    pub(crate) fn something_else(&mut self, channel: usize, around: &mut Around<'_>) -> Vec<u8> {
        let plan = around.plan;
        let rpc = |data: Value| json!({"method": "m", "data": data});
        if !plan.numbers.whole {
            return self.command("rpc", rpc(json!(1)), Pending::Refused { code: 104 });
        }
        let (name, rules) = (&plan.channels[channel].name, &plan.channels[channel].rules);
        let kind = plan.channels[channel].kind;
        match around.dice.below(6) {
            0 if plan.events => {
                let wish = Wish::any(around.dice);
                let data = json!({"wish": wish.word(), "n": around.dice.below(1_000)});
                self.command("rpc", rpc(data.clone()), Pending::Rpc { data, wish })
            }
            0 => self.command("rpc", rpc(json!(1)), Pending::Refused { code: 104 }),
            1 if plan.events => {
                let Some(link) = &mut self.link else { return Vec::new() };
                link.sent += 1;
                speech::encode(self.plan.encoding, 0, "send", json!({"data": {"m": link.sent}}))
            }
            2 if kind == Kind::Token => {
                if !self.link.as_ref().is_some_and(|link| link.stays.contains_key(&channel)) {
                    return Vec::new();
                }
                let claim = Claim::new(around.dice, self.plan.user, vec![name.clone()]);
                let request = json!({"channel": name, "token": claim.text()});
                self.command("sub_refresh", request, Pending::SubRefresh { channel, claim, sent_ms: around.now_ms })
            }
            2 if plan.tokens && !self.plan.user.is_empty() => {
                let claim = Claim::new(around.dice, self.plan.user, Vec::new());
                let request = json!({"token": claim.text()});
                self.command("refresh", request, Pending::Refresh { claim, sent_ms: around.now_ms })
            }
            3 if rules.presence => self.command("presence_stats", json!({"channel": name}), Pending::Stats { channel }),
            _ if rules.history_size > 0 && rules.read_history == Allow::Anyone && kind != Kind::Direct => {
                let (limit, reverse) = (around.dice.pick(&[-1, 0, 1, 7]), around.dice.one_in(2));
                let request = json!({"channel": name, "limit": limit, "reverse": reverse});
                self.command("history", request, Pending::History { channel, limit, reverse })
            }
            _ => Vec::new(),
        }
    }

    /// Asks who is there wherever it has just begun to hear of joins and leaves, as applications do.
    pub(crate) fn ask_presence(&mut self, around: &mut Around<'_>) {
        let wanted = |link: &mut Link| {
            let (channel, stay) = link.stays.iter_mut().find(|(_, stay)| stay.wants_presence)?;
            stay.wants_presence = false;
            (!link.said_close).then_some(*channel)
        };
        while let Some(channel) = self.link.as_mut().and_then(wanted) {
            let name = &around.plan.channels[channel].name;
            let pending = Pending::Presence { channel, asks: true };
            let command = self.command("presence", json!({"channel": name}), pending);
            self.send(&command, around);
        }
    }
}
