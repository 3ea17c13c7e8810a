//! One publication to this core's subscribers: local channels, their subscriber lists, and sliced fan-outs.
//!
//! In: publications from owners (lane order), joins and leaves of connections. Out: (connection slot, frame) pairs, at
//! most a given number per turn; the rest follows in the next turn.
//!
//! ```text
//! list      [ 7 | 9 | - | 12 | 3 ]         connection slots by join order; '-' left while a fan-out was waiting
//! waiting   P5(end 4) P6(end 5)            each goes to entries below its `end`: the list as it was when P came
//! ```
//! Invariants: lists only grow while something waits (leaves mark their place, joins append), so a slice continues
//! where it stopped and nobody is skipped, served twice or served what came before they joined. What waits for a
//! channel when its fan-out begins goes out as one joined frame: one write per subscriber instead of one each.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use ringway_wire::centrifuge::Form;

use crate::frame::Frame;
use crate::ids::LocalChannelId;
use crate::names::Names;
use crate::namespace::NamespaceId;
use crate::publication::Publication;
use crate::slots::Slots;

/// Bytes of frames joined into one for a whole fan-out; less where outboxes are small.
const JOINED_BYTES_MAX: usize = 32 * 1024;
/// Publications of one channel that one fan-out carries.
const JOINED_PUBLICATIONS_MAX: usize = 64;
/// Vacant places that a busy channel's list may have before it is tidied between two fan-outs.
const VACANT_MAX: usize = if cfg!(test) { 2 } else { 64 };
/// Marks a place in a list whose subscriber has left.
const VACANT: u32 = u32::MAX;

/// All channels with a subscriber (or a subscribe under way) on this core.
#[derive(Debug)]
pub struct Fanouts {
    channels: Slots<Channel>,
    names: Names,
    /// Channels with something waiting, each once, in the order in which they began to wait.
    active: VecDeque<LocalChannelId>,
    joined: Vec<u8>,
    joined_bytes_max: usize,
    /// Bytes of publications that wait, or are being handed out.
    backlog_bytes: usize,
}

/// A channel on this core.
#[derive(Debug)]
pub struct Channel {
    /// Full name.
    pub name: Box<str>,
    /// Its rules.
    pub namespace: NamespaceId,
    lists: [List; Form::COUNT],
    /// Subscribes sent to the owner and not answered yet.
    unanswered: u32,
    waiting: VecDeque<Waiting>,
    run: Option<Run>,
    /// Bytes of publications in `waiting` and in `run`.
    backlog_bytes: usize,
    active: bool,
}

#[derive(Debug, Default)]
struct List {
    entries: Vec<u32>,
    /// Places marked [`VACANT`], filled when nothing waits any more.
    vacant: Vec<u32>,
}

#[derive(Debug)]
struct Waiting {
    publication: Arc<Publication>,
    /// Length of each list when it came.
    ends: [u32; Form::COUNT],
}

/// A fan-out under way.
#[derive(Debug)]
struct Run {
    form: usize,
    cursor: u32,
    /// Bytes of the publications it carries.
    bytes: usize,
    /// Per form, (frame, end); ends never fall from one to the next.
    frames: [Vec<(Frame, u32)>; Form::COUNT],
    /// Per form, all frames as one, for entries that get all of them.
    joined: [Option<Frame>; Form::COUNT],
}

/// What [`Fanouts::step`] hands to the shard.
#[derive(Debug)]
pub struct Delivery<'a> {
    /// The connection.
    pub slot: u32,
    /// One or several publications' frames.
    pub frame: &'a Frame,
    /// How many publications these are.
    pub publications: u32,
    /// It cannot be put off: the subscriber has had a part of what belongs together.
    pub begun: bool,
}

/// What the taker of a delivery says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Go on.
    Yes,
    /// Not now: its outbox should be written first. The slice ends here, and the same delivery comes again.
    PutOff,
}

/// A subscriber whose place in a list changed; its subscription must be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The connection.
    pub slot: u32,
    /// The channel.
    pub local: LocalChannelId,
    /// Its new place.
    pub index: u32,
}

impl Fanouts {
    /// No channels. Joined frames stay well below `outbox_bytes_max`.
    pub fn new(seed: u64, outbox_bytes_max: u32) -> Self {
        Fanouts {
            channels: Slots::new(),
            names: Names::new(seed),
            active: VecDeque::new(),
            joined: Vec::new(),
            joined_bytes_max: JOINED_BYTES_MAX.min(outbox_bytes_max as usize / 4),
            backlog_bytes: 0,
        }
    }

    /// Bytes of publications that wait for their fan-out to end.
    pub const fn backlog_bytes(&self) -> usize {
        self.backlog_bytes
    }

    /// How many channels have subscribers here.
    pub fn len(&self) -> u32 {
        self.channels.len()
    }

    /// Whether no channel has subscribers here.
    pub fn is_empty(&self) -> bool {
        self.channels.is_empty()
    }

    /// The channel's name on this core, if it has one.
    pub fn find(&self, name: &str) -> Option<LocalChannelId> {
        let slot = self.names.find(name, |slot| name_at(&self.channels, slot))?;
        self.channels.at(slot).map(|(generation, _)| LocalChannelId { slot, generation })
    }

    /// The channel, unless it has gone since.
    pub fn get(&self, local: LocalChannelId) -> Option<&Channel> {
        self.channels.get(local.slot, local.generation)
    }

    /// Names the channel on this core (if it has no name yet) and notes a subscribe on its way to the owner.
    pub fn follow(&mut self, name: &str, namespace: NamespaceId) -> LocalChannelId {
        let local = self.find(name).unwrap_or_else(|| {
            let (slot, generation) = self.channels.insert(Channel {
                name: name.into(),
                namespace,
                lists: [List::default(), List::default()],
                unanswered: 0,
                waiting: VecDeque::new(),
                run: None,
                backlog_bytes: 0,
                active: false,
            });
            self.names.insert(name, slot, |slot| name_at(&self.channels, slot));
            LocalChannelId { slot, generation }
        });
        if let Some(channel) = self.channels.get_mut(local.slot, local.generation) {
            channel.unanswered += 1;
        }
        local
    }

    /// Notes that the owner has answered a subscribe. False: the channel has gone since.
    pub fn answered(&mut self, local: LocalChannelId) -> bool {
        let Some(channel) = self.channels.get_mut(local.slot, local.generation) else { return false };
        channel.unanswered -= 1;
        true
    }

    /// Puts a connection on the channel's list; it gets what comes from now on. Returns its place.
    pub fn join(&mut self, local: LocalChannelId, form: Form, slot: u32) -> u32 {
        let Some(channel) = self.channels.get_mut(local.slot, local.generation) else { return VACANT };
        let list = &mut channel.lists[form as usize];
        list.entries.push(slot);
        list.entries.len() as u32 - 1
    }

    /// Takes a connection off the channel's list. When another one takes its place, says so.
    pub fn leave(&mut self, local: LocalChannelId, form: Form, index: u32) -> Option<Moved> {
        let channel = self.channels.get_mut(local.slot, local.generation)?;
        // Places may change only when nothing waits and the last fan-out's places have been tidied.
        let list = &mut channel.lists[form as usize];
        if channel.active {
            if let Some(entry) = list.entries.get_mut(index as usize) {
                *entry = VACANT;
                list.vacant.push(index);
            }
            return None;
        }
        if index as usize >= list.entries.len() {
            return None;
        }
        list.entries.swap_remove(index as usize);
        list.entries.get(index as usize).map(|slot| Moved { slot: *slot, local, index })
    }

    /// Forgets the channel if nobody here wants it any more; its owner must then be told.
    pub fn unfollow_if_unused(&mut self, local: LocalChannelId) -> Option<Box<str>> {
        let channel = self.channels.get(local.slot, local.generation)?;
        let subscribers: usize = channel.lists.iter().map(List::live).sum();
        if subscribers > 0 || channel.unanswered > 0 {
            return None;
        }
        self.remove(local)
    }

    /// Drops a channel whose publications were lost, with its list and all that waits; returns its name.
    pub fn abandon(&mut self, local: LocalChannelId) -> Option<Box<str>> {
        self.remove(local)
    }

    fn remove(&mut self, local: LocalChannelId) -> Option<Box<str>> {
        let channel = self.channels.get(local.slot, local.generation)?;
        self.backlog_bytes -= channel.backlog_bytes;
        self.names.remove(&channel.name, local.slot);
        self.channels.remove(local.slot, local.generation).map(|channel| channel.name)
    }

    /// Every channel on this core.
    pub fn iter(&self) -> impl Iterator<Item = (LocalChannelId, &Channel)> {
        (0..self.channels.slots()).filter_map(|slot| {
            let (generation, channel) = self.channels.at(slot)?;
            Some((LocalChannelId { slot, generation }, channel))
        })
    }

    /// Takes a publication from the lane. False: nobody here follows the channel under that name any more.
    pub fn deliver(&mut self, local: LocalChannelId, publication: Arc<Publication>) -> bool {
        let Some(channel) = self.channels.get_mut(local.slot, local.generation) else { return false };
        let ends = [channel.lists[0].entries.len() as u32, channel.lists[1].entries.len() as u32];
        if ends == [0, 0] {
            return true;
        }
        channel.backlog_bytes += publication.memory_bytes();
        self.backlog_bytes += publication.memory_bytes();
        channel.waiting.push_back(Waiting { publication, ends });
        if !channel.active {
            channel.active = true;
            self.active.push_back(local);
        }
        true
    }

    /// Whether some fan-out is not finished.
    pub fn has_work(&self) -> bool {
        !self.active.is_empty()
    }

    /// Hands out deliveries, at most `budget` of them, until one is put off; returns how many. `moved` hears of subscribers whose place
    /// changed when a list was tidied behind a fan-out.
    pub fn step(&mut self, budget: u32, mut deliver: impl FnMut(Delivery<'_>) -> Taken, moved: &mut Vec<Moved>) -> u32 {
        let mut done = 0;
        let mut put_off = false;
        while done < budget && !put_off {
            let Some(local) = self.active.front().copied() else { break };
            let Some(channel) = self.channels.get_mut(local.slot, local.generation) else {
                self.active.pop_front();
                continue;
            };
            if channel.run.is_none() {
                if channel.lists.iter().any(List::is_sparse) {
                    channel.compact(local, moved);
                }
                channel.run = channel.begin(&mut self.joined, self.joined_bytes_max);
            }
            let Some(run) = &mut channel.run else {
                channel.active = false;
                channel.tidy(local, moved);
                self.active.pop_front();
                continue;
            };
            done += run.advance(&channel.lists, budget - done, &mut put_off, &mut deliver);
            if run.form == Form::COUNT {
                channel.backlog_bytes -= run.bytes;
                self.backlog_bytes -= run.bytes;
                channel.run = None;
                // Another channel's turn, so that a busy channel does not hold up the rest.
                self.active.rotate_left(1);
            }
        }
        done
    }
}

impl Channel {
    /// Takes what waits into a fan-out; none if nothing waits.
    fn begin(&mut self, joined_bytes: &mut Vec<u8>, joined_bytes_max: usize) -> Option<Run> {
        let mut run = Run { form: 0, cursor: 0, bytes: 0, frames: Default::default(), joined: Default::default() };
        let mut bytes = 0;
        let mut taken = 0;
        while let Some(next) = self.waiting.front() {
            let size = Form::ALL.iter().filter_map(|form| next.publication.frame(*form)).map(<[u8]>::len).max();
            bytes += size.unwrap_or(0);
            if taken > 0 && (bytes > joined_bytes_max || taken == JOINED_PUBLICATIONS_MAX) {
                break;
            }
            for form in Form::ALL {
                let end = next.ends[form as usize];
                let frame = (end > 0).then(|| Frame::from_publication(Arc::clone(&next.publication), form)).flatten();
                run.frames[form as usize].extend(frame.map(|frame| (frame, end)));
            }
            run.bytes += next.publication.memory_bytes();
            self.waiting.pop_front();
            taken += 1;
        }
        for (frames, joined) in run.frames.iter().zip(&mut run.joined).filter(|(frames, _)| frames.len() > 1) {
            joined_bytes.clear();
            frames.iter().for_each(|(frame, _)| joined_bytes.extend_from_slice(frame.bytes()));
            *joined = Some(Frame::from_bytes(joined_bytes));
        }
        (taken > 0).then_some(run)
    }

    /// Closes the gaps of lists while publications wait and none is being handed out, keeping the order, so that a
    /// channel that never rests does not keep a place for everybody who ever left it.
    fn compact(&mut self, local: LocalChannelId, moved: &mut Vec<Moved>) {
        for (form, list) in self.lists.iter_mut().enumerate() {
            for waiting in &mut self.waiting {
                let end = waiting.ends[form] as usize;
                waiting.ends[form] = list.entries[..end].iter().filter(|slot| **slot != VACANT).count() as u32;
            }
            list.vacant.clear();
            list.entries.retain(|slot| *slot != VACANT);
            let places = list.entries.iter().enumerate();
            moved.extend(places.map(|(index, slot)| Moved { slot: *slot, local, index: index as u32 }));
        }
    }

    /// Fills the places that were left while a fan-out waited.
    fn tidy(&mut self, local: LocalChannelId, moved: &mut Vec<Moved>) {
        for list in &mut self.lists {
            while let Some(index) = list.vacant.pop() {
                while list.entries.last() == Some(&VACANT) {
                    list.entries.pop();
                }
                if (index as usize) < list.entries.len() {
                    let slot = list.entries.swap_remove(index as usize);
                    debug_assert_eq!(slot, VACANT);
                    if let Some(slot) = list.entries.get(index as usize) {
                        moved.push(Moved { slot: *slot, local, index });
                    }
                }
            }
        }
    }
}

impl List {
    fn live(&self) -> usize {
        self.entries.len() - self.vacant.len()
    }

    fn is_sparse(&self) -> bool {
        self.vacant.len() > VACANT_MAX.max(self.entries.len() / 2)
    }
}

impl Run {
    /// Goes on from the cursor; returns how many deliveries were handed out.
    fn advance(
        &mut self,
        lists: &[List; Form::COUNT],
        budget: u32,
        put_off: &mut bool,
        deliver: &mut impl FnMut(Delivery<'_>) -> Taken,
    ) -> u32 {
        let mut done = 0;
        while self.form < Form::COUNT {
            let frames = &self.frames[self.form];
            let end = frames.last().map_or(0, |(_, end)| *end);
            let entries = &lists[self.form].entries[..end as usize];
            // The usual case: everybody on the list gets the same one frame.
            let shared = match &self.joined[self.form] {
                Some(joined) => Some(joined),
                None => frames.first().map(|(frame, _)| frame),
            };
            let shared_end = frames.first().map_or(0, |(_, end)| *end);
            while self.cursor < shared_end && done < budget {
                let slot = entries[self.cursor as usize];
                if let (Some(frame), true) = (shared, slot != VACANT) {
                    let publications = frames.len() as u32;
                    if deliver(Delivery { slot, frame, publications, begun: false }) == Taken::PutOff {
                        *put_off = true;
                        return done;
                    }
                    done += 1;
                }
                self.cursor += 1;
            }
            // Those who joined between the first and the last get only what came after them.
            while self.cursor >= shared_end && self.cursor < end && done < budget {
                let slot = entries[self.cursor as usize];
                let mut begun = false;
                for (frame, _) in frames.iter().filter(|(_, end)| *end > self.cursor && slot != VACANT) {
                    if deliver(Delivery { slot, frame, publications: 1, begun }) == Taken::PutOff && !begun {
                        *put_off = true;
                        return done;
                    }
                    begun = true;
                    done += 1;
                }
                self.cursor += 1;
            }
            if self.cursor < end {
                break;
            }
            self.form += 1;
            self.cursor = 0;
        }
        done
    }
}

fn name_at(channels: &Slots<Channel>, slot: u32) -> &str {
    channels.at(slot).map_or("", |(_, channel)| &channel.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publication::{FormSet, Scratch};
    use alloc::collections::BTreeMap;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Join(u32, bool),
        Leave(u32),
        Publish,
        Slice(u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0u32..12, any::<bool>()).prop_map(|(slot, json)| Step::Join(slot, json)),
            (0u32..12).prop_map(Step::Leave),
            Just(Step::Publish),
            (1u32..5).prop_map(Step::Slice),
        ];
        prop::collection::vec(step, 1..300)
    }

    /// The publications of a frame, by the offset that each carries in its JSON or Protobuf payload `"<n>"`.
    fn numbers(frame: &Frame) -> Vec<u64> {
        let text: alloc::string::String = frame.bytes().iter().map(|b| *b as char).collect();
        text.split('<').skip(1).filter_map(|part| part.split('>').next()?.parse().ok()).collect()
    }

    proptest! {
        /// Joins, leaves and publications between the slices of fan-outs: each subscriber gets exactly the
        /// publications that came between its join and its leave (all that were handed out by then), in order.
        #[test]
        fn slices_belong_to_the_list_as_it_was(steps in steps()) {
            let mut fanouts = Fanouts::new(7, 1 << 20);
            let local = fanouts.follow("c", NamespaceId(0));
            let both = FormSet::default().with(Form::Json).with(Form::Protobuf);
            // slot -> (form, index, next expected number); the channel stays followed by the unanswered subscribe.
            let mut members: BTreeMap<u32, (Form, u32, u64)> = BTreeMap::new();
            let mut published = 0u64;
            let mut offered = 0u32;
            let mut slices = |fanouts: &mut Fanouts, members: &mut BTreeMap<u32, (Form, u32, u64)>, budget| {
                let mut moved = Vec::new();
                let mut wrong = None;
                fanouts.step(budget, |delivery| {
                    offered += 1;
                    if offered.is_multiple_of(5) && !delivery.begun {
                        return Taken::PutOff;
                    }
                    for number in numbers(delivery.frame) {
                        match members.get_mut(&delivery.slot) {
                            Some((_, _, next)) if *next == number => *next += 1,
                            other => wrong = Some(alloc::format!("slot {} got {number}, was {other:?}", delivery.slot)),
                        }
                    }
                    Taken::Yes
                }, &mut moved);
                for Moved { slot, index, .. } in moved {
                    if let Some(member) = members.get_mut(&slot) { member.1 = index; }
                }
                wrong
            };
            for step in steps {
                match step {
                    Step::Join(slot, json) if !members.contains_key(&slot) => {
                        let form = if json { Form::Json } else { Form::Protobuf };
                        let index = fanouts.join(local, form, slot);
                        members.insert(slot, (form, index, published + 1));
                    }
                    Step::Leave(slot) => if let Some((form, index, _)) = members.remove(&slot) {
                        let moved = fanouts.leave(local, form, index);
                        if let Some(member) = moved.and_then(|moved| members.get_mut(&moved.slot)) {
                            member.1 = moved.map_or(0, |moved| moved.index);
                        }
                    },
                    Step::Publish => {
                        published += 1;
                        let payload = alloc::format!("\"<{published}>\"");
                        let publication = Publication::encode("c", published, payload.as_bytes(), None, both, &mut Scratch::default());
                        fanouts.deliver(local, Arc::new(publication));
                    }
                    Step::Slice(budget) => {
                        let wrong = slices(&mut fanouts, &mut members, budget);
                        prop_assert!(wrong.is_none(), "{}", wrong.unwrap_or_default());
                    }
                    Step::Join(..) => {}
                }
            }
            while fanouts.has_work() {
                let wrong = slices(&mut fanouts, &mut members, 3);
                prop_assert!(wrong.is_none(), "{}", wrong.unwrap_or_default());
            }
            for (slot, (_, _, next)) in &members {
                prop_assert_eq!(*next, published + 1, "slot {} missed the end", slot);
            }
            let channel = fanouts.get(local).expect("still followed");
            prop_assert_eq!(channel.lists.iter().map(List::live).sum::<usize>(), members.len());
            prop_assert!(channel.lists.iter().all(|list| list.vacant.is_empty()));
        }
    }
}
