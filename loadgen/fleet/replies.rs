//! What a received message means to a client: replies to its commands, publications, pushes, pings and closes.
//!
//! In: whole WebSocket frames. Out: answers and deliveries for the checker, pongs, subscribes again, or the end of the
//! connection with its reason. Invariant: a publication is found by its stamp without parsing; everything else is JSON.
use memchr::memmem;
use ringway_wire::frame::Opcode;
use serde_json::Value;

use super::check::Answer;
use super::churn::UNSUBSCRIBE_ID;
use super::reconnect::comes_back;
use super::report::count_reason;
use super::worker::{Alarm, FleetWorker, Phase};
use super::writers::PUBLISH_ID;
use crate::net;
use crate::payload::Stamp;
use crate::protocol::{Item, next_frame, write_frame};

/// Id of the connect command; those of subscribes are this and one more than their index.
const CONNECT_ID: u32 = 1;
/// Smallest code of an unsubscribe push behind which SDKs subscribe again.
const RESUBSCRIBE_CODE_MIN: u64 = 2500;
/// Error behind which it is not known whether something was done.
const INTERNAL_ERROR: u64 = 100;
/// Error that asks for a new token, which SDKs fetch before they try again.
const TOKEN_EXPIRED: u64 = 109;

impl FleetWorker {
    /// Takes whole frames; returns how many bytes they were. An error ends the connection: why, and whether it comes back.
    pub(super) fn frames(&mut self, client: u32, bytes: &[u8]) -> Result<usize, (String, bool)> {
        let mut at = 0;
        while let Some(frame) = next_frame(&bytes[at..], false).map_err(|reason| (reason, true))? {
            at += frame.length;
            self.clients[client as usize].since_ns = match self.clients[client as usize].phase {
                Phase::Open => net::now_ns(),
                _ => self.clients[client as usize].since_ns,
            };
            match frame.opcode {
                1 => self.message(client, frame.payload)?,
                8 => return Err(close(frame.payload)),
                9 => {
                    let mut pong = Vec::new();
                    write_frame(&mut pong, Opcode::Pong, frame.payload);
                    self.send(client, &pong);
                }
                10 => {}
                opcode => return Err((format!("unexpected opcode {opcode}"), true)),
            }
        }
        Ok(at)
    }

    fn message(&mut self, client: u32, mut message: &[u8]) -> Result<(), (String, bool)> {
        let broken = |reason: String| (reason, true);
        while let Some((item, used)) = self.dialect.next_item(message).map_err(broken)? {
            message = &message[used..];
            match item {
                Item::Ping => {
                    let pong = self.dialect.pong().to_vec();
                    self.send(client, &pong);
                }
                Item::Message(line) if line.starts_with(b"{\"push\":") => self.push(client, line)?,
                Item::Message(line) => self.reply(client, line)?,
            }
        }
        Ok(())
    }

    fn push(&mut self, client: u32, line: &[u8]) -> Result<(), (String, bool)> {
        if let Some((stamp, end)) = self.finder.find(line) {
            let offset = offset_behind(&line[end..]);
            let index = self.config.layout.index(self.config.first_connection + u64::from(client), stamp.channel);
            if index.is_some_and(|index| !self.listens(client, index)) {
                self.checker.count_foreign();
                return Ok(());
            }
            self.delivery(client, &stamp, offset, net::now_ns());
            return Ok(());
        }
        let value = json(line)?;
        let push = &value["push"];
        let Some(code) = push["unsubscribe"]["code"].as_u64() else { return Ok(()) };
        let Some(index) = push["channel"].as_str().and_then(|name| self.index_of(client, name)) else { return Ok(()) };
        let text = format!("{code} {}", push["unsubscribe"]["reason"].as_str().unwrap_or_default());
        if self.clients[client as usize].left & 1 << index != 0 {
            // It is leaving by itself.
            return Ok(());
        }
        self.fallen(client, index);
        if code >= RESUBSCRIBE_CODE_MIN {
            count_reason(&mut self.tally.resubscribes, &text);
            self.subscribe_again(client, index);
        } else {
            count_reason(&mut self.tally.faults, &format!("unsubscribed {text}"));
        }
        Ok(())
    }

    fn delivery(&mut self, client: u32, stamp: &Stamp, offset: u64, now_ns: u64) {
        let subscription = self.checker.subscription(client, stamp.channel).filter(|_| stamp.run == self.config.run);
        // What does not belong to the run or to the client's channels goes to a channel that it has, as a wrong number.
        let Some(subscription) = subscription else {
            count_reason(&mut self.tally.faults, "a delivery of a channel that the client has not");
            return;
        };
        if !self.checker.take(subscription, stamp.sequence as u32, offset) {
            return;
        }
        self.tally.latency.record(now_ns.saturating_sub(stamp.intended_ns));
        let place = &mut self.clients[client as usize];
        if place.cut_ns > 0 {
            self.tally.interruption.record(now_ns.saturating_sub(place.cut_ns));
            place.cut_ns = 0;
        }
        if self.loaded {
            place.silence_ns = place.silence_ns.max(now_ns.saturating_sub(place.heard_ns));
            place.heard_ns = now_ns;
        }
    }

    fn reply(&mut self, client: u32, line: &[u8]) -> Result<(), (String, bool)> {
        let value = json(line)?;
        let id = value["id"].as_u64().unwrap_or(0) as u32;
        let error = value.get("error").map(|error| {
            let (code, message) = (error["code"].as_u64().unwrap_or(0), error["message"].as_str().unwrap_or_default());
            (code, format!("{code} {message}"), error["temporary"].as_bool().unwrap_or(false))
        });
        match (id, error) {
            (0, _) => {}
            (CONNECT_ID, Some((code, text, temporary))) => {
                return Err((format!("connect refused: {text}"), temporary || code == TOKEN_EXPIRED));
            }
            (CONNECT_ID, None) => self.connected(client, &value["connect"]),
            (PUBLISH_ID.., None) => {
                self.writers.answered(client, id, Ok(()));
            }
            (PUBLISH_ID.., Some((code, text, _))) => {
                if self.writers.answered(client, id, Err(code != INTERNAL_ERROR)) {
                    count_reason(&mut self.tally.refused_publishes, &text);
                }
            }
            (UNSUBSCRIBE_ID.., None) => self.unsubscribed(client, id - UNSUBSCRIBE_ID),
            (UNSUBSCRIBE_ID.., Some((_, text, _))) => {
                count_reason(&mut self.tally.faults, &format!("unsubscribe refused: {text}"));
            }
            (_, None) => self.subscribed(client, id - CONNECT_ID - 1, &value["subscribe"]),
            (_, Some((_, text, temporary))) => {
                self.answer_came(client);
                if temporary {
                    count_reason(&mut self.tally.refused_subscribes, &text);
                    let (index, delay_ns) = (id - CONNECT_ID - 1, self.config.backoff.delay_ns(0, &mut self.random));
                    self.clients[client as usize].refused |= 1u32.checked_shl(index).unwrap_or(0);
                    self.set_alarm(net::now_ns() + delay_ns, client, Alarm::Subscribe(index));
                } else {
                    count_reason(&mut self.tally.faults, &format!("subscribe refused: {text}"));
                }
            }
        }
        Ok(())
    }

    fn connected(&mut self, client: u32, result: &Value) {
        let now_ns = net::now_ns();
        self.ping_ms = result["ping"].as_u64().unwrap_or(0) * 1000;
        let place = &mut self.clients[client as usize];
        (place.phase, place.since_ns, place.attempts) = (Phase::Open, now_ns, 0);
        self.tally.established += 1;
        if place.begun {
            self.tally.reconnected.count(now_ns);
        }
        // Whoever had left all its channels is whole with the connection alone.
        self.count_whole(client, false);
    }

    fn subscribed(&mut self, client: u32, index: u32, result: &Value) {
        self.answer_came(client);
        let layout = self.config.layout;
        if index >= layout.subscriptions {
            return;
        }
        let subscription = client * layout.subscriptions + index;
        let answer = Answer {
            epoch: result["epoch"].as_str().unwrap_or_default(),
            offset: result["offset"].as_u64().unwrap_or(0),
            recovered: result["recovered"].as_bool().unwrap_or(false),
        };
        if !result["recoverable"].as_bool().unwrap_or(false) {
            count_reason(&mut self.tally.faults, "the channel is not recoverable");
        }
        self.checker.answered(subscription, answer);
        let publications = result["publications"].as_array().map_or(&[][..], Vec::as_slice);
        let now_ns = net::now_ns();
        for publication in publications {
            let stamp = publication["data"].as_str().and_then(|data| Stamp::read(data.as_bytes()));
            match stamp {
                Some(stamp) => {
                    let offset = publication["offset"].as_u64().unwrap_or(0);
                    self.delivery(client, &stamp, offset, now_ns);
                }
                None => count_reason(&mut self.tally.faults, "a recovered publication of another run"),
            }
        }
        self.checker.count_recovered(publications.len() as u64);
        let was_whole = self.is_whole(client);
        self.clients[client as usize].standing |= 1 << index;
        if self.is_whole(client) && !was_whole {
            let place = &mut self.clients[client as usize];
            self.whole += 1;
            if !place.begun {
                place.begun = true;
                self.opening -= 1;
            }
            if place.absent_ns > 0 {
                self.tally.absence.record(now_ns.saturating_sub(place.absent_ns));
                place.absent_ns = 0;
            }
        }
    }

    /// An answer to a subscribe came; the others have as long again.
    pub(super) fn answer_came(&mut self, client: u32) {
        let place = &mut self.clients[client as usize];
        (place.asked, place.asked_ns) = (place.asked.saturating_sub(1), net::now_ns());
    }

    /// A subscription fell.
    fn fallen(&mut self, client: u32, index: u32) {
        self.whole -= u32::from(self.is_whole(client));
        let place = &mut self.clients[client as usize];
        place.standing &= !(1 << index);
        if place.absent_ns == 0 {
            place.absent_ns = net::now_ns();
        }
    }

    /// Subscribes again to what was refused for now, unless the connection has ended since: the next one subscribes to all.
    pub(super) fn retry(&mut self, client: u32, index: u32) {
        let place = &mut self.clients[client as usize];
        if place.refused & 1 << index != 0 {
            place.refused &= !(1 << index);
            self.subscribe_again(client, index);
        }
    }

    /// Subscribes to one channel with the position that the client has.
    pub(super) fn subscribe_again(&mut self, client: u32, index: u32) {
        let command = self.subscribe_command(client, index);
        let place = &mut self.clients[client as usize];
        (place.asked, place.asked_ns) = (place.asked + 1, net::now_ns());
        self.send_command(client, &command);
    }

    pub(super) fn subscribe_command(&self, client: u32, index: u32) -> String {
        let layout = self.config.layout;
        let name = self.name_of(client, index);
        let id = CONNECT_ID + 1 + index;
        let recover = match self.checker.position(client * layout.subscriptions + index) {
            Some((epoch, offset)) => format!(",\"recover\":true,\"epoch\":\"{epoch}\",\"offset\":{offset}"),
            None => String::new(),
        };
        format!("{{\"id\":{id},\"subscribe\":{{\"channel\":\"{name}\",\"recoverable\":true{recover}}}}}")
    }

    /// Name of the channel of a client's subscription.
    pub(super) fn name_of(&self, client: u32, index: u32) -> String {
        self.channel_name(self.config.layout.channel(self.config.first_connection + u64::from(client), index))
    }

    pub(super) fn channel_name(&self, channel: u32) -> String {
        format!("{}{channel}", self.config.channel_prefix)
    }

    fn index_of(&self, client: u32, name: &str) -> Option<u32> {
        let channel: u32 = name.strip_prefix(&*self.config.channel_prefix)?.parse().ok()?;
        self.config.layout.index(self.config.first_connection + u64::from(client), channel)
    }
}

fn json(line: &[u8]) -> Result<Value, (String, bool)> {
    serde_json::from_slice(line).map_err(|_| ("a message that is not JSON".to_string(), true))
}

/// The offset of a publication, of which `rest` is what stands behind its stamp; 0: it has none.
fn offset_behind(rest: &[u8]) -> u64 {
    const KEY: &[u8] = b"\"offset\":";
    let Some(at) = memmem::rfind(rest, KEY) else { return 0 };
    let digits = rest[at + KEY.len()..].iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0u64, |value, digit| value.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
}

/// Why the server closed, and whether an SDK comes back.
fn close(payload: &[u8]) -> (String, bool) {
    match payload.split_first_chunk::<2>() {
        Some((code, text)) => {
            let code = u16::from_be_bytes(*code);
            (format!("closed {code} {}", String::from_utf8_lossy(text)), comes_back(code))
        }
        None => ("closed without a code".to_string(), true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_found_behind_the_payload() {
        assert_eq!(offset_behind(b"....\",\"offset\":17}}}"), 17);
        assert_eq!(offset_behind(b"....\",\"info\":{\"user\":\"u\",\"client\":\"x\"},\"offset\":900}}}"), 900);
        assert_eq!(offset_behind(b"....\"}}}"), 0);
    }

    #[test]
    fn closes_say_whether_to_come_back() {
        assert_eq!(close(b"\x0b\xb9shutdown"), ("closed 3001 shutdown".to_string(), true));
        assert!(!close(b"\x0d\xacinvalid token").1);
        assert_eq!(close(b""), ("closed without a code".to_string(), true));
    }
}
