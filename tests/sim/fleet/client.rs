//! A model client of a fleet: speaks real bytes, keeps its positions, comes back to any node, and checks what it is told.
//!
//! In: the bytes that a shard wrote to it. Out: upgrade requests, masked frames with commands. Claims: what comes for a channel
//! continues what it has, by the history that the engine keeps; who comes back is given all that it missed or is told that it
//! is not, and told so (`recovered: false`, 2500, 3010) only when something may be missing; what a server has subscribed it to
//! comes along when it is sent away.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ringway_tests::websocket::CLOSE;
use serde_json::{Value, json};

use crate::dice::Dice;
use crate::presence::Roster;
use crate::socket::{Arrived, PeerEnd, Socket, client_frame, next_frame, opcode, upgrade_request};
use crate::speech::{self, Body, Message, Name, Subscribed, Told};

use super::plan::{ClientPlan, FleetPlan, Kind};
use super::stay::{Stay, page};
use super::truth::{Id, Truth, payload};

/// Offset and epoch.
pub(crate) type Position = (u64, String);

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) plan: ClientPlan,
    pub(crate) number: usize,
    pub(crate) link: Option<Link>,
    /// Last known, by channel; survives reconnects.
    positions: Vec<Option<Position>>,
    /// By channel: it is to be subscribed.
    pub(crate) wants: Vec<bool>,
    /// Channels that the node it was sent away from has given to the next.
    pub(crate) owed: BTreeSet<usize>,
    /// Its positions in those are exactly what that node has written.
    is_exact: bool,
    /// Something older of its user may still be parked.
    is_tainted: bool,
    /// A connection that it has ended, of which the server may not know.
    stray: Option<usize>,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) socket: usize,
    pub(crate) node: usize,
    pub(crate) boot: u64,
    /// All shards of the node knew, when it was opened, that things may be parked.
    pub(crate) knows_draining: bool,
    number: u64,
    arrived: VecDeque<u8>,
    upgraded: bool,
    pub(crate) client_id: Option<String>,
    last_command: u32,
    pending: BTreeMap<u32, Asked>,
    pub(crate) stays: BTreeMap<usize, Stay>,
    said_close: bool,
    /// The last answer about members, by channel.
    pub(crate) members: BTreeMap<usize, BTreeSet<String>>,
}

/// A command without an answer.
#[derive(Debug)]
enum Asked {
    Connect {
        asks: BTreeMap<usize, Position>,
    },
    Subscribe {
        channel: usize,
        ask: Option<Position>,
    },
    Unsubscribe {
        channel: usize,
    },
    Publish {
        id: Id,
    },
    Presence {
        channel: usize,
    },
    /// With the highest offset of each of the channel's histories when it was asked.
    History {
        channel: usize,
        limit: i32,
        reverse: bool,
        tops: BTreeMap<String, u64>,
    },
}

/// What a client may touch while it acts.
pub(crate) struct Around<'a> {
    pub(crate) dice: &'a mut Dice,
    pub(crate) plan: &'a FleetPlan,
    pub(crate) truth: &'a mut Truth,
    pub(crate) socket: &'a mut Socket,
    /// Times that the engine has lost something.
    pub(crate) losses: u32,
    /// Its node sends clients away in order, and the engine has taken what it gave on.
    pub(crate) in_order: bool,
}

impl Around<'_> {
    /// Whether something behind a position may be missing.
    fn may_miss(&self, channel: usize, (offset, epoch): &Position) -> bool {
        let top = self.truth.top(&self.plan.channels[channel].name, epoch);
        self.losses > 0 || top.saturating_sub(*offset) > u64::from(self.plan.history_size)
    }
}

impl Client {
    pub(crate) fn new(number: usize, plan: &FleetPlan) -> Self {
        let wants = |kind| kind != Kind::Ordered;
        Client {
            plan: plan.clients[number].clone(),
            number,
            link: None,
            positions: plan.channels.iter().map(|_| None).collect(),
            wants: plan.channels.iter().map(|channel| wants(channel.kind)).collect(),
            owed: BTreeSet::new(),
            is_exact: false,
            is_tainted: false,
            stray: None,
        }
    }

    /// Begins a connection over a socket that was accepted.
    pub(crate) fn connect(&mut self, (socket, node, boot): (usize, usize, u64), knows: bool, around: &mut Around<'_>) {
        around.socket.up.extend(upgrade_request(self.plan.encoding).bytes());
        self.is_tainted |= !self.owed.is_empty() && !knows;
        let mut request = json!({"name": "js", "token": self.plan.user});
        let mut asks = BTreeMap::new();
        let ordered = around.plan.ordered();
        if let Some((offset, epoch)) = self.positions[ordered].clone().filter(|_| self.plan.keeps_server_side) {
            let name = &around.plan.channels[ordered].name;
            request["subs"] = json!({ name: {"recover": true, "offset": offset, "epoch": epoch} });
            asks.insert(ordered, (offset, epoch));
        }
        self.link = Some(Link {
            socket,
            node,
            boot,
            knows_draining: knows,
            number: around.truth.connection(),
            arrived: VecDeque::new(),
            upgraded: false,
            client_id: None,
            last_command: 0,
            pending: BTreeMap::new(),
            stays: BTreeMap::new(),
            said_close: false,
            members: BTreeMap::new(),
        });
        self.send("connect", request, Asked::Connect { asks }, around);
    }

    fn send(&mut self, name: &str, request: Value, asked: Asked, around: &mut Around<'_>) {
        let Some(link) = &mut self.link else { return };
        link.last_command += 1;
        link.pending.insert(link.last_command, asked);
        let command = speech::encode(self.plan.encoding, link.last_command, name, request);
        let mask = around.dice.seed() as u32;
        around.socket.up.extend(client_frame(opcode(self.plan.encoding), &command, mask));
    }

    /// Whether it can send commands.
    pub(crate) fn is_in(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.client_id.is_some() && !link.said_close)
    }

    /// One command, of any kind.
    pub(crate) fn act(&mut self, around: &mut Around<'_>) {
        if !self.is_in() {
            return;
        }
        let channel = around.dice.below(around.plan.channels.len());
        match around.dice.below(11) {
            0..4 => self.publish(channel, around),
            10 => self.ask_history(channel, around),
            4 => self.ask_presence(channel, around),
            5 => self.unsubscribe(channel, around),
            _ => {
                self.wants[channel] = around.plan.channels[channel].kind != Kind::Ordered;
                self.pursue(around);
            }
        }
    }

    /// Subscribes to all that it wants and has not. True: there was something.
    pub(crate) fn pursue(&mut self, around: &mut Around<'_>) -> bool {
        let mut some = false;
        for channel in 0..around.plan.channels.len() {
            let Some(link) = self.link.as_ref().filter(|_| self.is_in()) else { return some };
            if !self.wants[channel] || link.stays.contains_key(&channel) || link.asks_about(channel) {
                continue;
            }
            some = true;
            let ask = self.positions[channel].clone().filter(|_| !around.dice.one_in(12));
            let ask = ask.filter(|_| around.plan.has_positions(channel));
            let mut request = json!({"channel": around.plan.channels[channel].name});
            if let Some((offset, epoch)) = &ask {
                request["recover"] = json!(true);
                request["offset"] = json!(offset);
                request["epoch"] = json!(epoch);
            }
            self.send("subscribe", request, Asked::Subscribe { channel, ask }, around);
        }
        some
    }

    fn unsubscribe(&mut self, channel: usize, around: &mut Around<'_>) {
        let Some(link) = &self.link else { return };
        if link.stays.get(&channel).is_some_and(|stay| !stay.server_side) && !link.asks_about(channel) {
            self.wants[channel] = false;
            let request = json!({"channel": around.plan.channels[channel].name});
            self.send("unsubscribe", request, Asked::Unsubscribe { channel }, around);
        }
    }

    fn publish(&mut self, channel: usize, around: &mut Around<'_>) {
        let Some(link) = &self.link else { return };
        let name = &around.plan.channels[channel].name;
        if around.plan.channels[channel].kind == Kind::Ordered {
            return;
        }
        let id = around.truth.publish(name, link.number);
        let data: Value = serde_json::from_str(&payload(id)).expect("payloads are JSON");
        self.send("publish", json!({"channel": name, "data": data}), Asked::Publish { id }, around);
    }

    fn ask_history(&mut self, channel: usize, around: &mut Around<'_>) {
        if !around.plan.has_positions(channel) {
            return;
        }
        let name = &around.plan.channels[channel].name;
        let (limit, reverse) = (around.dice.pick(&[0, 2, 7, 100]), around.dice.one_in(2));
        let request = json!({"channel": name, "limit": limit, "reverse": reverse});
        let tops = around.truth.tops(name);
        self.send("history", request, Asked::History { channel, limit, reverse, tops }, around);
    }

    pub(crate) fn ask_presence(&mut self, channel: usize, around: &mut Around<'_>) {
        if self.is_in() && around.plan.channels[channel].kind == Kind::Crowd {
            let request = json!({"channel": around.plan.channels[channel].name});
            self.send("presence", request, Asked::Presence { channel }, around);
        }
    }

    /// Reads up to `bytes` of what has arrived. False: there was nothing to read and nothing to find out.
    pub(crate) fn read(&mut self, bytes: usize, around: &mut Around<'_>) -> bool {
        let Some(link) = &mut self.link else { return false };
        let take = bytes.min(around.socket.down.len());
        if take == 0 {
            if around.socket.server_end {
                // Also a Close frame may be stuck behind what it did not read in time, and no handshake has none.
                let has_none = around.socket.is_orphan || around.socket.blocked || !link.upgraded;
                // Or the server stood still when it was to be written, until it was too late.
                let has_none = has_none || around.plan.faults.freezes;
                let is_known = link.said_close || has_none;
                assert!(is_known, "ended without a Close frame: {link:?}, {:?}", around.socket);
                around.socket.peer_end.get_or_insert(PeerEnd::Fin);
                self.forget(around);
                return true;
            }
            return false;
        }
        link.arrived.extend(around.socket.down.drain(..take));
        if !link.upgraded {
            let head: Vec<u8> = link.arrived.iter().copied().collect();
            let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") else { return true };
            if head.starts_with(b"HTTP/1.1 503 ") {
                // It was accepted before the node began to leave.
                around.truth.counts.note("refused upgrades", 1);
                self.cut(PeerEnd::Fin, around);
                return true;
            }
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
        true
    }

    fn closed(&mut self, code: u16, around: &mut Around<'_>) {
        let Some(link) = &mut self.link else { return };
        if std::mem::replace(&mut link.said_close, true) {
            return;
        }
        let may = match code {
            3001 => true,
            // In front of the connect result: of a subscription that was to be in it.
            3010 if link.client_id.is_none() => around.losses > 0,
            3010 => {
                link.stays.iter().any(|(channel, stay)| stay.server_side && around.may_miss(*channel, &stay.position()))
            }
            3504 => around.plan.limits.connections_per_user_max > 0,
            4001 => around.truth.orders.disconnected.contains(&self.number),
            _ => false,
        };
        assert!(may, "closed with {code}: {link:?}");
        let name = match code {
            3001 => "sent away",
            3010 => "closed for lost publications",
            3504 => "one too many",
            _ => "closed by order",
        };
        around.truth.counts.note(name, 1);
        let frame = client_frame(CLOSE, &code.to_be_bytes(), 7);
        around.socket.up.extend(frame);
        let may_end = around.truth.orders.ending.contains(&self.number);
        if code == 3001 && around.in_order && !self.is_tainted && !may_end {
            let ordered = link.stays.iter().filter(|(_, stay)| stay.server_side).map(|(channel, _)| *channel);
            self.owed.extend(ordered);
            self.is_exact = true;
        } else {
            self.is_owed_nothing();
        }
    }

    /// Whatever was handed over has been lost with a connection, or will never be asked for.
    fn is_owed_nothing(&mut self) {
        let has_more = self.link.as_ref().is_some_and(|link| link.stays.values().any(|stay| stay.server_side));
        self.is_tainted |= has_more || !self.owed.is_empty();
        self.owed.clear();
        self.is_exact = false;
    }

    /// Says goodbye with a Close frame.
    pub(crate) fn say_close(&mut self, around: &mut Around<'_>) {
        if let Some(link) = &mut self.link
            && !std::mem::replace(&mut link.said_close, true)
        {
            around.socket.up.extend(client_frame(CLOSE, &1000_u16.to_be_bytes(), 7));
            self.stray = Some(link.socket);
            self.is_owed_nothing();
        }
    }

    /// A new connection is about to begin: what it left elsewhere may be given on, too.
    pub(crate) fn look_back(&mut self, is_closed: impl Fn(usize) -> bool) {
        self.is_tainted |= self.stray.take().is_some_and(|socket| !is_closed(socket));
    }

    /// Goes without a word.
    pub(crate) fn cut(&mut self, how: PeerEnd, around: &mut Around<'_>) {
        self.stray = self.link.as_ref().map(|link| link.socket);
        around.socket.end(how);
        self.forget(around);
    }

    fn forget(&mut self, around: &mut Around<'_>) {
        if self.link.as_ref().is_some_and(|link| !link.said_close) {
            self.is_owed_nothing();
        }
        let Some(link) = self.link.take() else { return };
        for asked in link.pending.values() {
            if let Asked::Publish { id } = asked {
                around.truth.refuse(*id, false);
            }
        }
    }

    fn take(&mut self, message: Message, around: &mut Around<'_>) {
        match message {
            Message::Ping => {}
            Message::Reply(id, body) => {
                let Some(link) = &mut self.link else { return };
                let asked = link.pending.remove(&id);
                let asked = asked.unwrap_or_else(|| panic!("a second answer to command {id}: {body:?}"));
                self.answered(asked, body, around);
            }
            Message::Push(Name::Channel(name), told) => self.pushed(around.plan.number_of(&name), told, around),
            Message::Push(Name::Number(number), told) => panic!("{told:?} under a number, {number}"),
        }
    }

    fn answered(&mut self, asked: Asked, body: Body, around: &mut Around<'_>) {
        match (asked, body) {
            (Asked::Connect { asks }, Body::Connect { client, subs, .. }) => {
                let Some(link) = &mut self.link else { return };
                link.client_id = Some(client);
                for (name, answer) in subs {
                    let channel = around.plan.number_of(&name);
                    around.truth.counts.note("handed over", 1);
                    self.server_subscribed(channel, asks.get(&channel), &answer, around);
                }
            }
            (Asked::Subscribe { channel, ask }, Body::Subscribe(answer)) => {
                assert_eq!(answer.was_recovering, ask.is_some(), "was_recovering");
                self.begin(channel, ask.as_ref(), &answer, false, around);
            }
            (Asked::Unsubscribe { channel }, Body::Unsubscribe) => {
                self.link.as_mut().and_then(|link| link.stays.remove(&channel));
            }
            (Asked::Publish { id }, Body::Publish) => around.truth.acknowledge(id, None),
            (Asked::Presence { channel }, Body::Presence(members)) => {
                let Some(link) = &mut self.link else { return };
                let count = members.len();
                let members: BTreeSet<_> = members.into_iter().map(|(client, _)| client).collect();
                assert_eq!(members.len(), count, "a client is there twice: {members:?}");
                link.members.insert(channel, members);
            }
            (Asked::History { channel, limit, reverse, tops }, Body::History { publications, epoch, offset }) => {
                page(channel, (limit, reverse), &tops, (&publications, &epoch, offset), around);
            }
            (Asked::Connect { .. }, Body::Error { code: 111, temporary: true })
                if around.plan.limits.connections_per_user_max > 0 =>
            {
                around.truth.counts.note("to come again", 1);
                self.cut(PeerEnd::Fin, around);
            }
            (asked, Body::Error { code, temporary }) => {
                // The engine could not be reached in time; "internal" says of a publish that it may have happened.
                assert!(matches!(code, 100 | 111) && temporary, "{asked:?} was answered with error {code}");
                match asked {
                    Asked::Publish { id } => around.truth.refuse(id, code == 111),
                    Asked::Connect { .. } => panic!("a connect command was refused with {code}"),
                    _ => around.truth.counts.note("asked in vain", 1),
                }
            }
            (asked, body) => panic!("{asked:?} was answered {body:?}"),
        }
    }

    /// A connect result has a subscription that an order had made on another node.
    fn server_subscribed(
        &mut self,
        channel: usize,
        ask: Option<&Position>,
        answer: &Subscribed,
        around: &mut Around<'_>,
    ) {
        assert!(around.truth.orders.subscribed.contains(&(self.number, channel)), "nobody ordered channel {channel}");
        let is_exact = self.owed.remove(&channel) && self.is_exact;
        let last = self.positions[channel].clone();
        let kept = ask.cloned().or_else(|| {
            // Where the other node stopped: exactly where this client did, if it has read everything.
            let from = answer.was_recovering.then(|| (answer.offset, answer.epoch.clone()))?;
            if let Some(last) = last.filter(|_| is_exact) {
                if answer.recovered {
                    assert_eq!(from, last, "handed over from another position than where the client stands");
                    around.truth.counts.note("handed over exactly", 1);
                } else {
                    let may =
                        around.may_miss(channel, &last) || around.truth.orders.not_alone.contains(&self.plan.user);
                    assert!(may, "{last:?} could have been handed over: {answer:?}");
                }
            }
            answer.recovered.then_some(from)
        });
        self.begin(channel, kept.as_ref(), answer, true, around);
    }

    /// A subscription begins; `ask`: from where it was to be resumed.
    fn begin(
        &mut self,
        channel: usize,
        ask: Option<&Position>,
        answer: &Subscribed,
        server_side: bool,
        around: &mut Around<'_>,
    ) {
        let roster = (around.plan.channels[channel].kind == Kind::Crowd)
            .then(|| Roster::new(!around.plan.faults.spare_the_engine() || around.plan.faults.kills));
        let mut stay = Stay::new(answer.epoch.clone(), answer.offset, server_side, roster);
        around.truth.counts.stays += 1;
        match ask {
            Some(ask) if answer.recovered => {
                assert_eq!((answer.offset, &answer.epoch), (ask.0, &ask.1), "recovered from elsewhere");
                around.truth.counts.recovered += 1;
                around.truth.counts.note("missed and recovered", answer.publications.len() as u64);
                for publication in &answer.publications {
                    stay.publication(channel, publication, around);
                }
            }
            _ => {
                assert!(!answer.recovered && answer.publications.is_empty(), "recovered without having asked");
                if let Some(ask) = ask {
                    around.truth.counts.not_recovered += 1;
                    assert!(around.may_miss(channel, ask), "{ask:?} could have been recovered: {answer:?}");
                }
            }
        }
        self.positions[channel] = Some(stay.position());
        let Some(link) = &mut self.link else { return };
        let before = link.stays.insert(channel, stay);
        assert!(before.is_none(), "subscribed twice to channel {channel}");
    }

    fn pushed(&mut self, channel: usize, told: Told, around: &mut Around<'_>) {
        let Some(link) = &mut self.link else { return };
        assert!(link.client_id.is_some(), "{told:?} before the connect result");
        match told {
            Told::Publication(publication) => {
                let stay = link.stays.get_mut(&channel);
                let stay = stay.unwrap_or_else(|| panic!("{publication:?} without a subscription to {channel}"));
                around.truth.counts.delivered += 1;
                stay.publication(channel, &publication, around);
                self.positions[channel] = Some(stay.position());
            }
            Told::Join((client, _)) => {
                around.truth.counts.note("joins", 1);
                link.change(channel, &client, true);
            }
            Told::Leave((client, _)) => {
                around.truth.counts.note("leaves", 1);
                link.change(channel, &client, false);
            }
            Told::Subscribe { epoch, offset, .. } => {
                let order = (self.number, channel);
                assert!(around.truth.orders.subscribed.contains(&order), "subscribed without an order: {order:?}");
                let is_exact = self.owed.remove(&channel) && self.is_exact;
                let last = self.positions[channel].clone().filter(|last| is_exact && last.1 == epoch);
                if let Some(last) = last {
                    let not_alone = around.truth.orders.not_alone.contains(&self.plan.user);
                    let may = offset == last.0 || not_alone || around.may_miss(channel, &last);
                    assert!(may, "handed over late, at {offset}, not at {last:?}");
                    around.truth.counts.note("handed over late", 1);
                }
                let stay = Stay::new(epoch, offset, true, None);
                self.positions[channel] = Some(stay.position());
                let before = link.stays.insert(channel, stay);
                assert!(before.is_none(), "told twice to be subscribed to channel {channel}: {before:?}, {link:?}");
            }
            Told::Unsubscribe { code } => {
                let stay =
                    link.stays.remove(&channel).unwrap_or_else(|| panic!("{code} for {channel}, not subscribed"));
                match code {
                    2500 => {
                        let position = stay.position();
                        let may = !around.plan.has_positions(channel) || around.may_miss(channel, &position);
                        assert!(may, "told that {channel} misses something: {stay:?}");
                        around.truth.counts.told_lost += 1;
                    }
                    2000 => assert!(around.truth.orders.unsubscribed.contains(&(self.number, channel)), "ended"),
                    _ => panic!("unsubscribed from channel {channel} with {code}"),
                }
            }
            Told::Message(data) => panic!("a message: {data:?}"),
        }
    }

    /// Nothing else of its user can have been parked than what its last node knew.
    pub(crate) const fn is_sure_of_parked(&self) -> bool {
        !self.is_tainted
    }

    /// Nothing is under way: all that it wants it has, up to the top.
    pub(crate) fn assert_up_to_date(&self, plan: &FleetPlan, top: impl Fn(&str) -> Option<Position>) {
        // For some visitors there is no room.
        let Some(link) = self.link.as_ref().filter(|link| link.client_id.is_some() || !self.plan.is_visitor) else {
            return assert!(self.plan.is_visitor, "everybody is connected");
        };
        assert!(link.pending.is_empty(), "commands without an answer: {link:?}");
        for channel in (0..plan.channels.len()).filter(|channel| self.wants[*channel]) {
            assert!(link.stays.contains_key(&channel), "client {} waits for channel {channel}: {link:?}", self.number);
        }
        for (channel, stay) in &link.stays {
            let now = top(&plan.channels[*channel].name).expect("it was published to");
            let here =
                if plan.has_positions(*channel) { stay.position() } else { stay.seen.clone().unwrap_or_default() };
            assert_eq!(here, now, "client {} in channel {channel}: the end is missing", self.number);
        }
        assert!(self.owed.is_empty() || !link.knows_draining, "never handed over: {:?}, {link:?}", self.owed);
    }
}

impl Link {
    /// Whether a subscribe or unsubscribe of the channel is unanswered.
    fn asks_about(&self, channel: usize) -> bool {
        self.pending.values().any(|asked| {
            matches!(asked, Asked::Subscribe { channel: of, .. } | Asked::Unsubscribe { channel: of } if *of == channel)
        })
    }

    fn change(&mut self, channel: usize, client: &str, there: bool) {
        let stay = self.stays.get_mut(&channel).unwrap_or_else(|| panic!("{client} in {channel}, not subscribed"));
        let roster = stay.roster.as_mut().unwrap_or_else(|| panic!("{client} in {channel}, where nobody hears of it"));
        roster.told(client, there);
    }
}
