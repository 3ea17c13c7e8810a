//! A model client: speaks real bytes, keeps what an SDK keeps, and checks everything it is told.
//!
//! In: the bytes a shard wrote to it. Out: upgrade requests, masked frames with commands in JSON or Protobuf. Claims: a
//! command has one answer; a subscription sees exactly the offsets behind its answer, none missing, none twice, until
//! its unsubscribe answer (or the push with code 2500); a recovery is complete or `recovered:false` with a reason.

use std::collections::{BTreeMap, VecDeque};

use ringway_tests::client::{Body, Message, decode_messages, encode_command};
use ringway_tests::websocket::CLOSE;
use ringway_tests::{Encoding, Publication, Push, SubscribeOptions, Subscribed};

use crate::dice::Dice;
use crate::ledger::{Id, Ledger};
use crate::plan::Plan;
use crate::socket::{Arrived, PeerEnd, Socket, client_frame, next_frame, opcode, upgrade_request};

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) encoding: Encoding,
    pub(crate) link: Option<Link>,
    /// Last known (offset, epoch) by channel; survives reconnects.
    positions: Vec<Option<(u64, String)>>,
}

/// One connection of a client.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) socket: usize,
    number: u64,
    arrived: VecDeque<u8>,
    upgraded: bool,
    /// From the connect answer.
    client_id: Option<String>,
    last_command: u32,
    pub(crate) pending: BTreeMap<u32, Pending>,
    /// By channel: where the client is subscribed, as far as it knows.
    stays: BTreeMap<usize, Stay>,
    /// By channel: whether the last command sent was a subscribe.
    wants: Vec<bool>,
    pub(crate) said_close: bool,
    pub(crate) close_code: Option<u16>,
}

/// A command that has no answer yet.
#[derive(Debug)]
pub(crate) enum Pending {
    Connect,
    Subscribe { channel: usize, ask: Option<Ask>, may_be_duplicate: bool },
    Unsubscribe { channel: usize },
    Publish { channel: usize },
    Refused { code: u64 },
}

/// A wish to recover.
#[derive(Debug)]
pub(crate) struct Ask {
    offset: u64,
    epoch: String,
    /// Cannot be granted.
    impossible: bool,
}

/// From a subscribe answer to what ends it.
#[derive(Debug)]
struct Stay {
    epoch: String,
    next: u64,
    /// What was seen where there are no offsets.
    seen: Vec<Id>,
}

/// What a client may touch while it acts.
pub(crate) struct Around<'a> {
    pub(crate) dice: &'a mut Dice,
    pub(crate) plan: &'a Plan,
    pub(crate) ledger: &'a mut Ledger,
    pub(crate) socket: &'a mut Socket,
}

impl Client {
    pub(crate) fn new(encoding: Encoding, plan: &Plan) -> Self {
        Client { encoding, link: None, positions: plan.channels.iter().map(|_| None).collect() }
    }

    /// Begins a connection over a socket that was accepted.
    pub(crate) fn connect(&mut self, socket: usize, around: &mut Around<'_>) {
        around.socket.up.extend(upgrade_request(self.encoding).bytes());
        self.link = Some(Link {
            socket,
            number: around.ledger.connection(),
            arrived: VecDeque::new(),
            upgraded: false,
            client_id: None,
            last_command: 0,
            pending: BTreeMap::new(),
            stays: BTreeMap::new(),
            wants: around.plan.channels.iter().map(|_| false).collect(),
            said_close: false,
            close_code: None,
        });
        // Sent before the 101 is seen, as some clients do.
        let command = self.command("connect", &[], None, Pending::Connect);
        self.send(&command, around);
    }

    /// One message with one or several commands.
    pub(crate) fn act(&mut self, around: &mut Around<'_>) {
        let Some(link) = &self.link else { return };
        if link.client_id.is_none() || link.said_close {
            return;
        }
        let mut message = Vec::new();
        for _ in 0..around.dice.pick(&[1, 1, 2, 5]) {
            let channel = around.dice.below(around.plan.channels.len());
            let wants = self.link.as_ref().is_some_and(|link| link.wants[channel]);
            let command = match around.dice.below(12) {
                0..3 => self.publish(channel, around),
                3 => self.command("rpc", &[("data", "1"), ("method", "m")], None, Pending::Refused { code: 104 }),
                4 => self.subscribe(channel, around),
                _ if !wants => self.subscribe(channel, around),
                5..8 => self.unsubscribe(channel, around),
                _ => continue,
            };
            if !message.is_empty() && self.encoding == Encoding::Json {
                message.push(b'\n');
            }
            message.extend_from_slice(&command);
        }
        if !message.is_empty() {
            self.send(&message, around);
        }
    }

    fn subscribe(&mut self, channel: usize, around: &mut Around<'_>) -> Vec<u8> {
        let plan = &around.plan.channels[channel];
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
        let Some(link) = &mut self.link else { return Vec::new() };
        let may_be_duplicate = std::mem::replace(&mut link.wants[channel], true);
        let recover = ask.as_ref().map(|ask| (ask.offset, ask.epoch.clone()));
        let recover = recover.as_ref().map(|(offset, epoch)| (*offset, epoch.as_str()));
        // Where nothing is kept the server takes no notice of the wish.
        let ask = ask.filter(|_| plan.history);
        let pending = Pending::Subscribe { channel, ask, may_be_duplicate };
        self.command("subscribe", &[("channel", &plan.name)], recover, pending)
    }

    fn unsubscribe(&mut self, channel: usize, around: &mut Around<'_>) -> Vec<u8> {
        if let Some(link) = &mut self.link {
            link.wants[channel] = false;
        }
        let name = &around.plan.channels[channel].name;
        self.command("unsubscribe", &[("channel", name)], None, Pending::Unsubscribe { channel })
    }

    fn publish(&mut self, channel: usize, around: &mut Around<'_>) -> Vec<u8> {
        let plan = &around.plan.channels[channel];
        if !plan.history {
            // Nobody learns the offset of a client's publication there, so the oracle could not place it.
            return self.command("presence", &[("channel", &plan.name)], None, Pending::Refused { code: 108 });
        }
        let Some(Link { client_id: Some(client_id), number, .. }) = &self.link else { return Vec::new() };
        let id = around.ledger.publish(channel, Some(client_id), *number);
        let payload = around.ledger.payload(id);
        self.command("publish", &[("channel", &plan.name), ("data", &payload)], None, Pending::Publish { channel })
    }

    fn command(
        &mut self,
        name: &str,
        parameters: &[(&str, &str)],
        recover: Option<(u64, &str)>,
        pending: Pending,
    ) -> Vec<u8> {
        let Some(link) = &mut self.link else { return Vec::new() };
        link.last_command += 1;
        link.pending.insert(link.last_command, pending);
        encode_command(self.encoding, link.last_command, name, parameters, &SubscribeOptions { recover })
    }

    fn send(&self, message: &[u8], around: &mut Around<'_>) {
        let mask = around.dice.seed() as u32;
        around.socket.up.extend(client_frame(opcode(self.encoding), message, mask));
    }

    /// Reads up to `bytes` of what has arrived. False: there was nothing to read and nothing to find out.
    pub(crate) fn read(&mut self, bytes: usize, around: &mut Around<'_>) -> bool {
        let Some(link) = &mut self.link else { return false };
        let take = bytes.min(around.socket.down.len());
        if take == 0 {
            let over = around.socket.server_end;
            if over {
                self.over(around);
            }
            return over;
        }
        link.arrived.extend(around.socket.down.drain(..take));
        if !link.upgraded {
            let head: Vec<u8> = link.arrived.iter().copied().collect();
            let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") else { return true };
            assert!(head.starts_with(b"HTTP/1.1 101 "), "{:?}", String::from_utf8_lossy(&head));
            link.arrived.drain(..end + 4);
            link.upgraded = true;
        }
        while let Some(frame) = self.link.as_mut().and_then(|link| next_frame(&mut link.arrived, self.encoding)) {
            match frame {
                Arrived::Data(payload) => {
                    for message in decode_messages(self.encoding, &payload) {
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
        link.close_code = Some(code);
        if !std::mem::replace(&mut link.said_close, true) {
            assert!((code == 3008 && around.plan.slow) || code == 3001, "closed with {code}");
            around.ledger.counts.closed_slow += u64::from(code == 3008);
            let frame = client_frame(CLOSE, &code.to_be_bytes(), 7);
            around.socket.up.extend(frame);
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
            if let Pending::Publish { channel } = pending {
                around.ledger.unknown(*channel);
            }
        }
        for (channel, stay) in link.stays {
            end_stay(channel, stay, around);
        }
    }

    fn take(&mut self, message: Message, around: &mut Around<'_>) {
        match message {
            Message::Ping => {
                let pong: &[u8] = if self.encoding == Encoding::Json { b"{}" } else { b"\0" };
                self.send(pong, around);
            }
            Message::Reply(id, body) => self.answered(id, body, around),
            Message::Push(Push::Publication(channel, publication)) => {
                self.publication(number_of(&channel, around), &publication, around);
            }
            Message::Push(Push::Unsubscribe(channel, code)) => {
                assert!(code == 2500 && around.plan.lossy, "unsubscribed from {channel} with {code}");
                self.told_lost(number_of(&channel, around), around);
            }
            Message::Push(Push::Other(what)) => panic!("an unknown push: {what}"),
        }
    }

    fn answered(&mut self, id: u32, body: Body, around: &mut Around<'_>) {
        let Some(link) = &mut self.link else { return };
        let pending = link.pending.remove(&id).unwrap_or_else(|| panic!("a second answer to command {id}: {body:?}"));
        match (pending, body) {
            (Pending::Connect, Body::Connect(connected)) => link.client_id = Some(connected.client),
            (Pending::Refused { code }, Body::Error(error)) if error.code == code => {}
            (Pending::Publish { channel }, Body::Other("publish")) => around.ledger.accepted(channel),
            (Pending::Unsubscribe { channel }, Body::Other("unsubscribe")) => {
                if let Some(stay) = link.stays.remove(&channel) {
                    end_stay(channel, stay, around);
                }
            }
            (Pending::Subscribe { channel, ask, .. }, Body::Subscribe(answer)) => {
                self.subscribed(channel, ask, answer, around);
            }
            (Pending::Subscribe { channel, may_be_duplicate, .. }, Body::Error(error)) => {
                let lost = error.code == 100 && around.plan.lossy;
                assert!((error.code == 105 && may_be_duplicate) || lost, "subscribe was refused: {error:?}");
                if !link.stays.contains_key(&channel) && !link.asks(channel) {
                    link.wants[channel] = false;
                }
            }
            (pending, body) => panic!("{pending:?} was answered {body:?}"),
        }
    }

    fn subscribed(&mut self, channel: usize, ask: Option<Ask>, answer: Subscribed, around: &mut Around<'_>) {
        let plan = around.plan;
        assert_eq!(answer.was_recovering, ask.is_some(), "was_recovering");
        let mut next = answer.offset + 1;
        if answer.recovered {
            let ask = ask.unwrap_or_else(|| panic!("recovered without having asked"));
            assert!(!ask.impossible, "recovered from {ask:?}, which cannot be: {answer:?}");
            assert!(ask.epoch.is_empty() || ask.epoch == answer.epoch, "recovered over an epoch");
            assert_eq!(answer.offset, ask.offset, "a recovery's answer repeats the offset of the request");
            let most = plan.history_size.min(plan.limits.recovery_publications_max) as usize;
            assert!(answer.publications.len() <= most, "{} recovered of {most}", answer.publications.len());
            around.ledger.counts.recovered += 1;
        } else {
            assert!(answer.publications.is_empty(), "publications without recovery");
            if let Some(ask) = ask {
                around.ledger.counts.not_recovered += 1;
                self.must_be_gone(&ask, &answer, plan);
            }
        }
        for publication in &answer.publications {
            assert_eq!(publication.offset, next, "in a recovery of channel {channel}");
            place(channel, &answer.epoch, publication, around);
            next += 1;
        }
        if plan.channels[channel].history {
            self.positions[channel] = Some((next - 1, answer.epoch.clone()));
        }
        around.ledger.counts.stays += 1;
        let (owner, here) = (plan.channels[channel].owner, around.socket.shard);
        let apart = |publisher: &usize| owner != here && owner != *publisher && here != *publisher;
        around.ledger.counts.stays_apart += u64::from(plan.backends.iter().any(apart));
        let Some(link) = &mut self.link else { return };
        let stay = Stay { epoch: answer.epoch, next, seen: Vec::new() };
        let before = link.stays.insert(channel, stay);
        assert!(before.is_none(), "subscribed twice to channel {channel}");
    }

    /// What was not recovered must really be out of reach.
    fn must_be_gone(&self, ask: &Ask, answer: &Subscribed, plan: &Plan) {
        let comparable = ask.epoch.is_empty() || ask.epoch == answer.epoch;
        if ask.impossible || !comparable || !plan.history_lasts || plan.slow || plan.large {
            return;
        }
        let within = plan.history_size.min(plan.limits.recovery_publications_max) as u64;
        // An older offset than the top's may belong to an earlier epoch when the client named none.
        let missed = answer.offset.checked_sub(ask.offset);
        assert!(missed.is_none_or(|missed| missed > within), "{ask:?} could have been recovered: {answer:?}");
    }

    fn publication(&mut self, channel: usize, publication: &Publication, around: &mut Around<'_>) {
        around.ledger.counts.delivered += 1;
        let stay = self.link.as_mut().and_then(|link| link.stays.get_mut(&channel));
        let Some(stay) = stay else {
            panic!("a publication of channel {channel} without a subscription: {publication:?}")
        };
        if !around.plan.channels[channel].history {
            assert_eq!(publication.offset, 0, "a channel without history shows no offsets");
            let id = around.ledger.identify(channel, &publication.data, publication.publisher.as_deref());
            stay.seen.push(id);
            return;
        }
        assert_eq!(publication.offset, stay.next, "channel {channel}, epoch {}", stay.epoch);
        stay.next += 1;
        let epoch = stay.epoch.clone();
        place(channel, &epoch, publication, around);
        self.positions[channel] = Some((publication.offset, epoch));
    }

    fn told_lost(&mut self, channel: usize, around: &mut Around<'_>) {
        let way = (around.plan.channels[channel].owner, around.socket.shard);
        assert!(around.ledger.lost.contains_key(&way), "nothing was lost from {} to {}", way.0, way.1);
        around.ledger.counts.told_lost += 1;
        let Some(link) = &mut self.link else { return };
        let stay = link.stays.remove(&channel);
        end_stay(channel, stay.unwrap_or_else(|| panic!("2500 for channel {channel}, not subscribed")), around);
        if !link.asks(channel) {
            link.wants[channel] = false;
        }
    }

    /// Nothing is under way: every command was answered, and every subscription has reached its channel's top.
    pub(crate) fn assert_up_to_date(&self, plan: &Plan, ledger: &Ledger) {
        let Some(link) = &self.link else { return };
        assert!(link.pending.is_empty(), "commands without an answer: {link:?}");
        for (channel, stay) in &link.stays {
            if plan.channels[*channel].history {
                let top = ledger.top(*channel, &stay.epoch);
                assert_eq!(stay.next - 1, top, "channel {channel}: the end is missing");
            } else {
                let last = ledger.last(*channel).and_then(|last| ledger.position(last));
                let seen = stay.seen.last().and_then(|id| ledger.position(*id));
                // The last one published is the one at the top, since nothing else was under way.
                assert_eq!(seen, last, "channel {channel}: the end is missing");
            }
        }
    }
}

impl Link {
    /// Whether a subscribe to the channel is unanswered.
    fn asks(&self, channel: usize) -> bool {
        self.pending.values().any(|pending| matches!(pending, Pending::Subscribe { channel: of, .. } if *of == channel))
    }
}

fn end_stay(channel: usize, stay: Stay, around: &mut Around<'_>) {
    if !stay.seen.is_empty() {
        around.ledger.saw_unnumbered(channel, stay.seen);
    }
}

fn place(channel: usize, epoch: &str, publication: &Publication, around: &mut Around<'_>) {
    let id = around.ledger.identify(channel, &publication.data, publication.publisher.as_deref());
    around.ledger.place(channel, epoch, publication.offset, id);
}

fn number_of(name: &str, around: &Around<'_>) -> usize {
    let number = around.plan.channels.iter().position(|channel| channel.name == name);
    number.unwrap_or_else(|| panic!("an unknown channel {name:?}"))
}
