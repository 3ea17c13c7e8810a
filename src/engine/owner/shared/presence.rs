//! Who is in a channel of a fleet: each node knows its own members, and whoever asks, asks all nodes with subscribers.
//!
//! In: presence calls; questions and answers of other nodes. Out: one answer per call, when every node that heard the question
//! has answered, or after `presence_wait_ms` without those that have not.
//! So the engine keeps no members: a node that was killed takes its members with it at once (the engine finds no inbox of it),
//! one that hangs is left out, and no channel is a hot key however many are in it.
//! Invariant: an answer is never larger than its limits, whatever the nodes say.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use ringway_wire::centrifuge::reply::ClientInfoView;
use ringway_wire::record::{Hashes, Members as ToldMembers, More, Told};
use xxhash_rust::xxh3::xxh3_64;

use super::super::{Owner, Surroundings};
use super::Asked;
use super::feed::member_of;
use super::user_count::{self, UserCount};
use crate::backplane::{Answer, Audience, Refusal, Request, Subject, Tell};
use crate::call::{CallError, ChannelAnswer, ChannelFact};
use crate::ids::CoreId;
use crate::lane_message::{LaneMessage, Origin};
use crate::metrics::Metric;
use crate::presence::Member;

/// Questions of one owner under way. Over: the call is refused as busy (counted).
pub(super) const QUESTIONS_MAX: u32 = if cfg!(test) { 8 } else { 1_024 };
/// Bytes of members in one message.
const PART_BYTES: usize = 32 * 1024;

/// A presence call that waits for nodes.
#[derive(Debug)]
pub(super) struct Question {
    origin: Origin,
    from: CoreId,
    counts_only: bool,
    since_ms: u64,
    /// Nodes that heard it, once that is known.
    nodes: Option<u32>,
    /// Those that have said everything.
    heard: u32,
    members: Vec<Arc<Member>>,
    bytes: usize,
    too_many: bool,
    clients: u32,
    users: UserCount,
}

impl Owner {
    /// Asks all nodes who is in a channel.
    ///
    /// # Errors
    /// Too many questions are under way, or the engine cannot be reached.
    pub(in crate::owner) fn ask_members(
        &mut self,
        channel: &str,
        counts_only: bool,
        (origin, from): (Origin, CoreId),
        around: &mut Surroundings<'_>,
    ) -> Result<(), CallError> {
        let reachable = self.is_reachable(channel);
        let Some(fleet) = self.fleet.as_mut().filter(|_| reachable) else { return Err(CallError::Busy) };
        if fleet.questions.len() >= QUESTIONS_MAX {
            around.metrics.add(Metric::FleetPresenceRefused, 1);
            return Err(CallError::Busy);
        }
        around.metrics.add(Metric::FleetPresenceQuestions, 1);
        let question = Question {
            origin,
            from,
            counts_only,
            since_ms: around.now_ms,
            nodes: None,
            heard: 0,
            members: Vec::new(),
            bytes: 0,
            too_many: false,
            clients: 0,
            users: UserCount::default(),
        };
        let (slot, generation) = fleet.questions.insert(question);
        let number = u64::from(generation) << 32 | u64::from(slot);
        let told = Told::Question { from: fleet.generation, question: number, counts_only };
        self.tell_channel(Asked::Question(number), channel, Audience::Interested, &told, around);
        Ok(())
    }

    /// So many nodes hear the question.
    pub(super) fn question_passed_on(
        &mut self,
        number: u64,
        result: Result<Answer, Refusal>,
        around: &mut Surroundings<'_>,
    ) {
        let Some(question) = self.question(number) else { return };
        match result {
            Ok(Answer::Told(nodes)) => {
                question.nodes = Some(nodes);
                self.end_if_answered(number, around);
            }
            Ok(_) | Err(_) => {
                let (origin, from) = (question.origin, question.from);
                self.take_question(number);
                let answer = ChannelAnswer { origin, result: Err(CallError::Busy) };
                around.lanes.push(from, LaneMessage::ChannelAnswer(answer.into()));
            }
        }
    }

    /// Questions and answers of nodes. False: it is something else.
    pub(super) fn presence_told(&mut self, channel: &str, body: &[u8], around: &mut Surroundings<'_>) -> bool {
        match Told::read(body) {
            Some(Told::Question { from, question, counts_only }) => {
                self.answer_question(channel, from, (question, counts_only), around);
            }
            Some(Told::Members { question: number, more, members }) => {
                let limits = (self.limits.presence_members_max as usize, self.limits.call_answer_bytes_max as usize);
                let Some(question) = self.question(number) else { return true };
                for member in members.iter() {
                    let member = member_of(&member);
                    question.bytes += member.memory_bytes();
                    if question.members.len() >= limits.0 || question.bytes > limits.1 {
                        question.too_many = true;
                        break;
                    }
                    question.members.push(Arc::new(member));
                }
                question.too_many |= more == More::TooMany;
                question.heard += u32::from(more != More::Yes);
                self.end_if_answered(number, around);
            }
            Some(Told::Counts { question: number, clients, users, hashes }) => {
                let Some(question) = self.question(number) else { return true };
                question.clients = question.clients.saturating_add(clients);
                question.heard += 1;
                question.users.add(users, hashes.iter());
                self.end_if_answered(number, around);
            }
            _ => return false,
        }
        true
    }

    /// Says who of this node is in the channel.
    fn answer_question(
        &mut self,
        channel: &str,
        to: u32,
        (question, counts_only): (u64, bool),
        around: &mut Surroundings<'_>,
    ) {
        let slot = self.find(channel, around);
        let members = slot.and_then(|slot| self.channels.at(slot)).and_then(|(_, channel)| channel.members.as_ref());
        let all: Vec<Arc<Member>> = match members {
            Some(members) if counts_only || members.clients() <= self.limits.presence_members_max => {
                members.iter().cloned().collect()
            }
            Some(_) => {
                let told = Told::Members { question, more: More::TooMany, members: ToldMembers::Given(&[]) };
                return self.tell_channel(Asked::Nobody, channel, Audience::Node(to), &told, around);
            }
            None => Vec::new(),
        };
        if counts_only {
            let (clients, users) = members.map_or((0, 0), |members| (members.clients(), members.users()));
            let hashes = user_count::told(all.iter().map(|member| xxh3_64(member.user.as_bytes())).collect());
            let told = Told::Counts { question, clients, users, hashes: Hashes::Given(&hashes) };
            return self.tell_channel(Asked::Nobody, channel, Audience::Node(to), &told, around);
        }
        let mut part: Vec<ClientInfoView<'_>> = Vec::new();
        let mut bytes = 0;
        for member in &all {
            part.push(ClientInfoView {
                user: &member.user,
                client: &member.client,
                conn_info: &member.conn_info,
                chan_info: &member.chan_info,
            });
            bytes += member.memory_bytes();
            if bytes >= PART_BYTES {
                let told = Told::Members { question, more: More::Yes, members: ToldMembers::Given(&part) };
                self.tell_channel(Asked::Nobody, channel, Audience::Node(to), &told, around);
                part.clear();
                bytes = 0;
            }
        }
        let told = Told::Members { question, more: More::No, members: ToldMembers::Given(&part) };
        self.tell_channel(Asked::Nobody, channel, Audience::Node(to), &told, around);
    }

    /// Answers calls that have waited for too long with what has been heard.
    pub(super) fn end_questions(&mut self, around: &mut Surroundings<'_>) {
        let wait_ms = u64::from(self.limits.presence_wait_ms);
        let Some(fleet) = &self.fleet else { return };
        let late: Vec<u64> = (0..fleet.questions.slots())
            .filter_map(|slot| {
                let (generation, question) = fleet.questions.at(slot)?;
                (question.since_ms + wait_ms <= around.now_ms).then_some(u64::from(generation) << 32 | u64::from(slot))
            })
            .collect();
        for number in late {
            around.metrics.add(Metric::FleetPresencePartial, 1);
            self.end_question(number, around);
        }
    }

    fn end_if_answered(&mut self, number: u64, around: &mut Surroundings<'_>) {
        let Some(question) = self.question(number) else { return };
        if question.nodes.is_some_and(|nodes| question.heard >= nodes) {
            self.end_question(number, around);
        }
    }

    fn end_question(&mut self, number: u64, around: &mut Surroundings<'_>) {
        let Some(question) = self.take_question(number) else { return };
        let result = if question.counts_only {
            Ok(ChannelFact::PresenceStats { clients: question.clients, users: question.users.users() })
        } else if question.too_many {
            Err(CallError::LimitExceeded)
        } else {
            Ok(ChannelFact::Presence(question.members))
        };
        if matches!(result, Err(CallError::LimitExceeded)) {
            around.metrics.add(Metric::ChannelCallsTooLarge, 1);
        }
        let answer = ChannelAnswer { origin: question.origin, result };
        around.lanes.push(question.from, LaneMessage::ChannelAnswer(answer.into()));
    }

    fn question(&mut self, number: u64) -> Option<&mut Question> {
        self.fleet.as_mut()?.questions.get_mut(number as u32, (number >> 32) as u32)
    }

    fn take_question(&mut self, number: u64) -> Option<Question> {
        self.fleet.as_mut()?.questions.remove(number as u32, (number >> 32) as u32)
    }

    pub(super) fn tell_channel(
        &mut self,
        asked: Asked,
        channel: &str,
        to: Audience,
        told: &Told<'_>,
        around: &mut Surroundings<'_>,
    ) {
        let mut body = Vec::new();
        told.write(&mut body);
        let subject = Subject::Channel(Box::from(channel));
        self.ask(asked, Request::Tell(Tell { subject, to, body: body.into() }), around);
    }
}
