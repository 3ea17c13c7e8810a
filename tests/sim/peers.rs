//! Who the world speaks to: clients, backends, the control plane, whoever checks tokens.
//!
//! In: dice by way of the phases. Out: peers that act with what they may touch; messages of the control plane in lanes.

use std::sync::Arc;

use ringway_engine::ids::CoreId;
use ringway_engine::lane_message::{Batch, LaneMessage};
use ringway_engine::seam::Port;
use ringway_tests::Encoding;

use crate::backend::{self, Backend};
use crate::client::{self, Client};
use crate::control::{self, Control};
use crate::rules;
use crate::world::World;

impl World {
    /// The control plane says something to a shard.
    pub(crate) fn say(&mut self, (core, message): control::Said) {
        let from = self.plan.shards;
        self.trace.note("say", [core as u64, 0, 0]);
        self.lanes[core][from].queue.push_back(Batch { from: CoreId(from as u16), messages: vec![message] });
    }

    /// One call of the control plane.
    pub(crate) fn with_control(&mut self, act: impl FnOnce(&mut Control, &mut control::Around<'_>) -> control::Said) {
        let (dice, plan, ledger) = (&mut self.dice, &self.plan, &mut self.ledger);
        let said = act(&mut self.control, &mut control::Around { dice, plan, ledger });
        self.say(said);
    }

    /// The control plane takes its answers. False: there were none.
    pub(crate) fn take_answers(&mut self) -> bool {
        let batches: Vec<_> = self.lanes[self.plan.shards].iter_mut().flat_map(|lane| lane.queue.drain(..)).collect();
        let some = !batches.is_empty();
        for message in batches.into_iter().flat_map(|batch| batch.messages) {
            self.control.take(message, &self.plan, &mut self.ledger);
        }
        some
    }

    /// A verdict about a token reaches the shard that waits for it. False: none is under way.
    pub(crate) fn give_verdict(&mut self) -> bool {
        let dice = &mut self.dice;
        let Some(checked) = self.tokens.take(|count| dice.below(count)) else { return false };
        self.ledger.counts.note("verdicts later", 1);
        self.say((checked.ask.core.0.into(), LaneMessage::TokenChecked(checked.into())));
        true
    }

    /// New rules, which reach the shards one after the other.
    pub(crate) fn reload(&mut self) {
        self.reloads += 1;
        self.ledger.counts.note("reloads", 1);
        let next = rules::namespaces(self.plan.numbers, self.plan.catch_all, self.reloads);
        self.rules = self.rules.reloaded(next).expect("rules that can follow");
        for core in 0..self.plan.shards {
            self.say((core, LaneMessage::Rules(Arc::new(self.rules.clone()))));
        }
    }

    /// Runs `act` on a client that has a connection, with what it may touch.
    pub(crate) fn with_client<T>(
        &mut self,
        number: usize,
        act: impl FnOnce(&mut Client, &mut client::Around<'_>) -> T,
    ) -> Option<T> {
        let client = &mut self.clients[number];
        let socket = &mut self.sockets[client.link.as_ref()?.socket];
        let (dice, plan, ledger, now_ms) = (&mut self.dice, &self.plan, &mut self.ledger, self.now_ms);
        let json = client.plan.encoding == Encoding::Json;
        Some(act(client, &mut client::Around { dice, plan, ledger, socket, now_ms, json }))
    }

    /// The same for a new connection of a client.
    pub(crate) fn connect_client(&mut self, number: usize) {
        let home = self.plan.clients[number].home;
        let core = if self.dice.one_in(5) { self.dice.below(self.plan.shards) } else { home };
        let Some(index) = self.open(core, Port::Client) else { return };
        let (dice, plan, ledger, now_ms) = (&mut self.dice, &self.plan, &mut self.ledger, self.now_ms);
        let json = self.plan.clients[number].encoding == Encoding::Json;
        let mut around = client::Around { dice, plan, ledger, socket: &mut self.sockets[index], now_ms, json };
        self.clients[number].connect(index, &mut around);
    }

    /// Runs `act` on a backend that has a connection, with what it may touch.
    pub(crate) fn with_backend<T>(
        &mut self,
        number: usize,
        act: impl FnOnce(&mut Backend, &mut backend::Around<'_>) -> T,
    ) -> Option<T> {
        let backend = &mut self.backends[number];
        let socket = &mut self.sockets[backend.socket?];
        let (dice, plan, ledger, hearing) = (&mut self.dice, &self.plan, &mut self.ledger, &mut self.hearing);
        Some(act(backend, &mut backend::Around { dice, plan, ledger, socket, hearing }))
    }

    pub(crate) fn connect_backend(&mut self, number: usize) {
        let core = self.plan.backends[number];
        let Some(index) = self.open(core, Port::Ingest) else { return };
        let (dice, plan, ledger, hearing) = (&mut self.dice, &self.plan, &mut self.ledger, &mut self.hearing);
        let mut around = backend::Around { dice, plan, ledger, socket: &mut self.sockets[index], hearing };
        self.backends[number].connect(index, &mut around);
    }
}
