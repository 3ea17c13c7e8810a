//! A model client: speaks real bytes, keeps what an SDK keeps, and checks everything it is told.
//!
//! In: the bytes a shard wrote to it. Out: upgrade requests, masked frames with commands in JSON or Protobuf. Claims: a
//! command has one answer, and one that can be true (`pending.rs`); what comes for a channel comes within a
//! subscription (`stay.rs`), from its answer or push to its unsubscribe answer or push; the connection ends only with a
//! code that there is a reason for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ringway_tests::Encoding;
use ringway_tests::websocket::CLOSE;
use serde_json::Value;

use crate::dice::Dice;
use crate::ledger::Ledger;
use crate::pending::{Pending, Wish};
use crate::plan::{ClientPlan, Plan};
use crate::rules::Kind;
use crate::socket::{Arrived, PeerEnd, Socket, client_frame, next_frame, opcode, upgrade_request};
use crate::speech::{self, Body, Message, Name, Told};
use crate::stay::Stay;
use crate::tokens::Outcome;

/// Time by which the server may be late with what a deadline says.
const LATE_MS: u64 = 1_000;
/// Time by which a shard's clock may be behind: it stands still during a turn, in which the shard may be stopped.
pub(crate) const EARLY_MS: u64 = 500;

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) plan: ClientPlan,
    pub(crate) link: Option<Link>,
    /// Last known (offset, epoch) by channel; survives reconnects.
    pub(crate) positions: Vec<Option<(u64, String)>>,
}

/// One connection of a client.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) socket: usize,
    pub(crate) number: u64,
    arrived: VecDeque<u8>,
    upgraded: bool,
    began_ms: u64,
    /// From the connect answer.
    pub(crate) client_id: Option<String>,
    /// Its connect command was answered with an error: it goes.
    pub(crate) refused: bool,
    last_command: u32,
    pub(crate) pending: BTreeMap<u32, Pending>,
    /// By channel: where the client is subscribed, as far as it knows.
    pub(crate) stays: BTreeMap<usize, Stay>,
    /// Channels by the number that stands for them.
    pub(crate) numbers: BTreeMap<i64, usize>,
    /// Channels of subscribes that were refused.
    pub(crate) refusals: BTreeSet<usize>,
    /// Channels whose subscription was prolonged before it was known to be granted, and until when at the earliest.
    pub(crate) prolonged: BTreeMap<usize, u64>,
    /// By channel: whether the last command sent was a subscribe.
    pub(crate) wants: Vec<bool>,
    /// Channels that its connection token grants.
    pub(crate) granted: Vec<usize>,
    /// When it may end at the earliest, and must have ended, because its token's time is over.
    pub(crate) ends_ms: Option<(u64, u64)>,
    /// Messages to backends that were sent.
    pub(crate) sent: u64,
    pub(crate) said_close: bool,
    pub(crate) close_code: Option<u16>,
}

/// A wish to recover.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) offset: u64,
    pub(crate) epoch: String,
    /// Cannot be granted.
    pub(crate) impossible: bool,
}

/// What a client may touch while it acts.
pub(crate) struct Around<'a> {
    pub(crate) dice: &'a mut Dice,
    pub(crate) plan: &'a Plan,
    pub(crate) ledger: &'a mut Ledger,
    pub(crate) socket: &'a mut Socket,
    pub(crate) now_ms: u64,
    /// The client speaks JSON.
    pub(crate) json: bool,
}

impl Client {
    pub(crate) fn new(client: ClientPlan, plan: &Plan) -> Self {
        Client { plan: client, link: None, positions: plan.channels.iter().map(|_| None).collect() }
    }

    /// Begins a connection over a socket that was accepted.
    pub(crate) fn connect(&mut self, socket: usize, around: &mut Around<'_>) {
        around.socket.up.extend(upgrade_request(self.plan.encoding).bytes());
        self.link = Some(Link {
            socket,
            number: around.ledger.connection(),
            arrived: VecDeque::new(),
            upgraded: false,
            began_ms: around.now_ms,
            client_id: None,
            refused: false,
            last_command: 0,
            pending: BTreeMap::new(),
            stays: BTreeMap::new(),
            numbers: BTreeMap::new(),
            refusals: BTreeSet::new(),
            prolonged: BTreeMap::new(),
            wants: around.plan.channels.iter().map(|_| false).collect(),
            granted: Vec::new(),
            ends_ms: None,
            sent: 0,
            said_close: false,
            close_code: None,
        });
        // Sent before the 101 is seen, as some clients do.
        let mut message = self.connect_command(around);
        // And with what is wanted from the beginning right behind it.
        if around.plan.numbers.whole && around.dice.one_in(3) {
            let channel = around.dice.below(around.plan.channels.len());
            let command = self.subscribe(channel, around);
            self.append(&mut message, &command);
        }
        self.send(&message, around);
    }

    /// One message with one or several commands.
    pub(crate) fn act(&mut self, around: &mut Around<'_>) {
        let Some(link) = &self.link else { return };
        if link.client_id.is_none() || link.refused || link.said_close {
            return;
        }
        let mut message = Vec::new();
        for _ in 0..around.dice.pick(&[1, 1, 2, 5]) {
            let channel = any_channel(around);
            let wants = self.link.as_ref().is_some_and(|link| link.wants[channel]);
            let command = match around.dice.below(12) {
                0..3 => self.publish(channel, around),
                3 => self.something_else(channel, around),
                4 => self.subscribe(channel, around),
                _ if !wants => self.subscribe(channel, around),
                5..8 => self.unsubscribe(channel, around),
                _ => continue,
            };
            self.append(&mut message, &command);
        }
        if !message.is_empty() {
            self.send(&message, around);
        }
    }

    fn append(&self, message: &mut Vec<u8>, command: &[u8]) {
        if !message.is_empty() && !command.is_empty() && self.plan.encoding == Encoding::Json {
            message.push(b'\n');
        }
        message.extend_from_slice(command);
    }

    pub(crate) fn command(&mut self, name: &str, request: Value, pending: Pending) -> Vec<u8> {
        let Some(link) = &mut self.link else { return Vec::new() };
        link.last_command += 1;
        link.pending.insert(link.last_command, pending);
        speech::encode(self.plan.encoding, link.last_command, name, request)
    }

    pub(crate) fn send(&self, message: &[u8], around: &mut Around<'_>) {
        let mask = around.dice.seed() as u32;
        around.socket.up.extend(client_frame(opcode(self.plan.encoding), message, mask));
    }

    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Link)) {
        if let Some(link) = &mut self.link {
            change(link);
        }
    }

    /// Subscribes to all channels with members, or leaves one in three of them.
    pub(crate) fn crowd(&mut self, joins: bool, around: &mut Around<'_>) {
        for channel in 0..around.plan.channels.len() {
            let Some(link) = self.link.as_ref().filter(|link| link.client_id.is_some() && !link.refused) else {
                return;
            };
            let (has, wants) = (link.stays.contains_key(&channel), link.wants[channel]);
            let command = match joins {
                _ if !around.plan.channels[channel].rules.presence || link.said_close => continue,
                true if !has && !wants => self.subscribe(channel, around),
                false if has && around.dice.one_in(3) => self.unsubscribe(channel, around),
                _ => continue,
            };
            self.send(&command, around);
        }
    }

    /// Reads up to `bytes` of what has arrived. False: there was nothing to read and nothing to find out.
    pub(crate) fn read(&mut self, bytes: usize, around: &mut Around<'_>) -> bool {
        let Some(link) = &mut self.link else { return false };
        let take = bytes.min(around.socket.down.len());
        if take == 0 {
            if around.socket.server_end {
                self.over(around);
                return true;
            }
            if link.refused {
                self.cut(PeerEnd::Fin, around);
                return true;
            }
            return false;
        }
        link.arrived.extend(around.socket.down.drain(..take));
        if !link.upgraded {
            let head: Vec<u8> = link.arrived.iter().copied().collect();
            let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") else { return true };
            assert!(head.starts_with(b"HTTP/1.1 101 "), "{:?}", String::from_utf8_lossy(&head));
            link.arrived.drain(..end + 4);
            link.upgraded = true;
        }
        let encoding = self.plan.encoding;
        while let Some(frame) = self.link.as_mut().and_then(|link| next_frame(&mut link.arrived, encoding)) {
            match frame {
                Arrived::Data(payload) => {
                    for message in speech::decode(encoding, &payload) {
                        self.take(message, around);
                    }
                }
                Arrived::Close(code) => self.closed(code, around),
            }
        }
        self.ask_presence(around);
        true
    }

    fn closed(&mut self, code: u16, around: &mut Around<'_>) {
        let may = self.may_be_closed(code, around);
        let Some(link) = &mut self.link else { return };
        link.close_code = Some(code);
        if !std::mem::replace(&mut link.said_close, true) {
            assert!(may, "closed with {code}: {link:?}");
            around.ledger.counts.closed_slow += u64::from(code == 3008);
            around.ledger.counts.note(closed_name(code), 1);
            let frame = client_frame(CLOSE, &code.to_be_bytes(), 7);
            around.socket.up.extend(frame);
        }
    }

    /// Whether there is a reason for the server to close with this code.
    fn may_be_closed(&self, code: u16, around: &Around<'_>) -> bool {
        let Some(link) = &self.link else { return false };
        let (user, orders, now_ms) = (self.plan.user, &around.ledger.orders, around.now_ms);
        let is_over = |ends_ms: Option<(u64, u64)>| ends_ms.is_some_and(|(earliest_ms, _)| now_ms >= earliest_ms);
        let outcomes = |of: &[Outcome]| {
            let claims = link.pending.values().filter_map(Pending::claim);
            claims.into_iter().any(|claim| of.contains(&claim.outcome))
        };
        match code {
            3001 => true,
            3005 => is_over(link.ends_ms) || orders.refreshed.contains(user),
            3006 => link.stays.values().any(|stay| stay.is_server_side() && is_over(stay.ends_ms)),
            3008 => around.plan.slow,
            3010 => around.plan.lossy && !around.ledger.lost.is_empty(),
            // Taken for somebody else, it shows a token of its own.
            3500 => link.refused || outcomes(&[Outcome::Stranger, Outcome::Invalid]),
            4000 => {
                link.client_id.is_none()
                    && now_ms + EARLY_MS >= link.began_ms + u64::from(around.plan.limits.connect_timeout_ms)
            }
            4001 => orders.disconnected.contains(user),
            4321 => link.pending.values().any(|pending| pending.wish() == Some(Wish::Kick)),
            _ => false,
        }
    }

    /// Says goodbye with a Close frame; more may arrive before its answer.
    pub(crate) fn say_close(&mut self, around: &mut Around<'_>) {
        if let Some(link) = &mut self.link
            && !std::mem::replace(&mut link.said_close, true)
        {
            around.socket.up.extend(client_frame(CLOSE, &1000_u16.to_be_bytes(), 7));
        }
    }

    /// Goes without a word.
    pub(crate) fn cut(&mut self, how: PeerEnd, around: &mut Around<'_>) {
        around.socket.end(how);
        self.forget(around);
    }

    /// The server has closed the socket and everything was read.
    fn over(&mut self, around: &mut Around<'_>) {
        let known = self.link.as_ref().is_some_and(|link| link.said_close || link.close_code.is_some());
        // A client so slow that it did not answer the Close in time is reset.
        assert!(known || around.plan.slow, "the server ended the connection without a Close frame");
        around.socket.peer_end.get_or_insert(PeerEnd::Fin);
        self.forget(around);
    }

    fn forget(&mut self, around: &mut Around<'_>) {
        let Some(link) = self.link.take() else { return };
        for pending in link.pending.values() {
            if let Pending::Publish { channel, .. } = pending {
                around.ledger.unknown(*channel);
            }
        }
        for (channel, stay) in link.stays {
            stay.end(channel, around.ledger);
        }
    }

    fn take(&mut self, message: Message, around: &mut Around<'_>) {
        match message {
            Message::Ping => {
                let pong: &[u8] = if self.plan.encoding == Encoding::Json { b"{}" } else { b"\0" };
                self.send(pong, around);
            }
            Message::Reply(id, body) => self.answered(id, body, around),
            Message::Push(name, told) => self.pushed(&name, told, around),
        }
    }

    fn answered(&mut self, id: u32, body: Body, around: &mut Around<'_>) {
        let Some(link) = &mut self.link else { return };
        let pending = link.pending.remove(&id).unwrap_or_else(|| panic!("a second answer to command {id}: {body:?}"));
        self.settle(id, pending, body, around);
    }

    fn pushed(&mut self, name: &Name, told: Told, around: &mut Around<'_>) {
        if let Told::Message(data) = &told {
            let message: Value = serde_json::from_slice(data).expect("messages are JSON");
            let number = message["message"].as_u64().expect("a number");
            assert!(number <= around.ledger.messages, "message {number} was never sent");
            return around.ledger.counts.note("messages", 1);
        }
        let Some(link) = &mut self.link else { return };
        assert!(link.client_id.is_some(), "{told:?} before the connect result");
        let channel = match name {
            Name::Channel(name) => around.plan.number_of(name),
            Name::Number(number) => {
                around.ledger.counts.note("numbers", 1);
                *link.numbers.get(number).unwrap_or_else(|| panic!("number {number} stands for nothing"))
            }
        };
        let stay = link.stays.get_mut(&channel);
        let in_vain = |told: &Told| panic!("{told:?} of channel {channel} without a subscription");
        match told {
            Told::Publication(publication) => {
                let told = Told::Publication(publication.clone());
                let stay = stay.unwrap_or_else(|| in_vain(&told));
                stay.publication(channel, &publication, around);
                let position = stay.position(&around.plan.channels[channel]);
                if position.is_some() {
                    self.positions[channel] = position;
                }
            }
            Told::Join(_) | Told::Leave(_) => stay.unwrap_or_else(|| in_vain(&told)).changed(channel, &told, around),
            Told::Subscribe { epoch, offset, recoverable } => {
                let order = (self.plan.user.to_owned(), channel);
                assert!(around.ledger.orders.subscribed.contains(&order), "subscribed without an order: {order:?}");
                let stay = Stay::pushed(channel, (epoch, offset), recoverable, around);
                let before = self.link.as_mut().and_then(|link| link.stays.insert(channel, stay));
                assert!(before.is_none(), "subscribed twice to channel {channel}");
            }
            Told::Unsubscribe { code } => self.unsubscribed(channel, code, around),
            Told::Message(_) => {}
        }
    }

    /// The server has ended a subscription.
    fn unsubscribed(&mut self, channel: usize, code: u64, around: &mut Around<'_>) {
        let Some(link) = &mut self.link else { return };
        let stay = link.stays.remove(&channel);
        match code {
            2000 => {
                let order = (self.plan.user.to_owned(), channel);
                assert!(around.ledger.orders.unsubscribed.contains(&order), "ended without an order: {order:?}");
                assert!(
                    stay.is_some() || link.refusals.contains(&channel),
                    "2000 for channel {channel}, not subscribed"
                );
                around.ledger.counts.note("ended by order", 1);
            }
            2500 => {
                let way = (around.plan.channels[channel].owner, around.socket.shard);
                assert!(around.ledger.lost.contains_key(&way), "nothing was lost from {} to {}", way.0, way.1);
                assert!(around.plan.lossy && stay.is_some(), "2500 for channel {channel}, not subscribed");
                around.ledger.counts.told_lost += 1;
            }
            2501 => {
                let ends_ms = stay.as_ref().and_then(|stay| stay.ends_ms);
                let (earliest_ms, _) = ends_ms.unwrap_or_else(|| panic!("channel {channel} does not expire"));
                assert!(around.now_ms >= earliest_ms, "expired before its time");
                around.ledger.counts.note("subscriptions expired", 1);
            }
            _ => panic!("unsubscribed from channel {channel} with {code}"),
        }
        if let Some(stay) = stay {
            stay.end(channel, around.ledger);
        }
        if !link.asks(channel) {
            link.wants[channel] = false;
        }
    }

    /// Nothing is under way: every command was answered, every subscription has reached its channel's top, and nothing
    /// outlives its token.
    pub(crate) fn assert_up_to_date(&self, plan: &Plan, ledger: &Ledger, now_ms: u64) {
        let Some(link) = &self.link else { return };
        assert!(link.pending.is_empty(), "commands without an answer: {link:?}");
        let is_late = |ends_ms: Option<(u64, u64)>| ends_ms.is_some_and(|(_, latest_ms)| now_ms > latest_ms + LATE_MS);
        let prolonged = ledger.orders.refreshed.contains(self.plan.user);
        assert!(prolonged || !is_late(link.ends_ms), "it outlives its token at {now_ms}: {link:?}");
        for (channel, stay) in &link.stays {
            stay.assert_up_to_date(*channel, plan, ledger);
            assert!(!is_late(stay.ends_ms), "channel {channel} outlives its token at {now_ms}: {stay:?}");
        }
    }
}

impl Link {
    /// Whether a subscribe to the channel is unanswered.
    pub(crate) fn asks(&self, channel: usize) -> bool {
        self.pending.values().any(|pending| matches!(pending, Pending::Subscribe { channel: of, .. } if *of == channel))
    }
}

const fn closed_name(code: u16) -> &'static str {
    match code {
        3005 => "closed expired",
        3006 => "closed with an expired subscription",
        3010 => "closed for lost publications",
        3500 => "closed for a token",
        4000 => "closed before connected",
        4001 => "closed by order",
        4321 => "closed by a backend",
        _ => "closed otherwise",
    }
}

/// Any channel, and often one about which backends decide.
fn any_channel(around: &mut Around<'_>) -> usize {
    let asked = around.plan.channels.iter().position(|channel| channel.kind == Kind::Asked);
    match asked {
        Some(asked) if around.dice.one_in(4) => asked,
        _ => around.dice.below(around.plan.channels.len()),
    }
}
