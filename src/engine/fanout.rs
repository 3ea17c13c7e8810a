//! One publication to this core's subscribers: local channels, their subscriber lists, and sliced fan-outs.
//!
//! In: publications from owners (lane order), joins and leaves of connections. Out: (connection slot, frame) pairs, at
//! most a given number per turn; the rest follows in the next turn.
//!
//! A subscriber stands in one list of its channel, that of its [`Variant`]; lists exist while somebody is on them. What
//! waits for a channel, and how it is handed out, is `run.rs`; a lone publication for a channel with few subscribers, which
//! is what a message to one user is, waits in the queue of channels itself and needs no state.
//! Invariants: lists only grow while something waits (leaves mark their place, joins append), so a slice continues
//! where it stopped and nobody is skipped, served twice or served what came before they joined. The order of lists
//! changes only when nothing waits.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::frame::Frame;
use crate::ids::LocalChannelId;
use crate::list::{HAS_BASE, List, VACANT, slot_of};
use crate::names::Names;
use crate::namespace::{NamespaceId, Namespaces, SlowConsumer};
use crate::publication::Publication;
use crate::run::{Joined, Pending, Slice};
use crate::slots::Slots;
use crate::variant::Variant;

/// Bytes of frames joined into one for a whole fan-out; less where outboxes are small.
const JOINED_BYTES_MAX: usize = 32 * 1024;
/// States of channels with something waiting that are kept for the next ones.
const SPARE_MAX: usize = 64;

/// Places in the queue of channels that stay for the next burst; what a larger one took is given back behind it.
const KEPT_ACTIVE: usize = 16 * 1024;
/// Subscribers of a channel whose next publication waits in the queue of channels.
const FEW_MAX: usize = 4;

/// All channels with a subscriber (or a subscribe under way) on this core.
#[derive(Debug)]
pub struct Fanouts {
    channels: Slots<Channel>,
    names: Names,
    /// Channels with something waiting, in the order in which they began to wait: each once, and once more in front of that
    /// with a publication that waits here.
    active: VecDeque<Active>,
    joined: Joined,
    /// For channels that begin to wait.
    #[expect(clippy::vec_box, reason = "they go back and forth between here and the channels")]
    spare: Vec<Box<Pending>>,
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
    /// One per variant with a subscriber; most channels have one.
    lists: Vec<List>,
    /// Subscribes sent to the owner and not answered yet.
    unanswered: u32,
    /// A publication waits in the queue of channels, in front of what is in `pending`.
    one_waits: bool,
    /// What waits and is handed out; none: nothing.
    pending: Option<Box<Pending>>,
}

/// A place in the queue of channels with something waiting.
#[derive(Debug)]
struct Active {
    local: LocalChannelId,
    /// What waits; none: it is in the channel's `pending`.
    one: Option<One>,
}

/// A publication for the first `end` entries of a channel's only list.
#[derive(Debug)]
struct One {
    publication: Arc<Publication>,
    end: u8,
    /// How many of them have it.
    cursor: u8,
}

/// What [`Fanouts::step`] hands to the shard for a subscriber. The same for many of them.
#[derive(Debug)]
pub struct Delivery<'a> {
    /// One or several publications' frames.
    pub frame: &'a Frame,
    /// Bytes of the frame.
    pub bytes: usize,
    /// How many publications these are; joins and leaves are none.
    pub publications: u32,
    /// It cannot be put off: the subscriber has had a part of what belongs together.
    pub begun: bool,
    /// Set when it may be dropped for a slow subscriber.
    pub lossy: Option<Lossy<'a>>,
}

/// What may happen to a delivery for a slow subscriber.
#[derive(Clone, Copy, Debug)]
pub struct Lossy<'a> {
    /// Of the namespace; not `Disconnect`.
    pub policy: SlowConsumer,
    /// The channel's slot, by which an outbox knows what belongs together.
    pub channel: u32,
    /// What to take when something of the channel was dropped before it, or may yet be: it needs no base. With `Conflate`
    /// only the newest publication.
    pub instead: &'a Frame,
    /// How many publications that is.
    pub publications: u32,
}

impl<'a> Delivery<'a> {
    /// One that may be put off.
    pub fn new(frame: &'a Frame, publications: u32, lossy: Option<Lossy<'a>>) -> Self {
        Delivery { frame, bytes: frame.size_bytes(), publications, begun: false, lossy }
    }
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

impl Channel {
    /// Whether the owner's answer to a subscribe of this variant has been taken and somebody is still there: then the
    /// owner sends this core what it needs for more of them.
    pub fn has_subscriber(&self, variant: Variant) -> bool {
        self.lists.iter().any(|list| list.variant == variant && list.live() > 0)
    }
}

impl Fanouts {
    /// No channels. Joined frames stay well below `outbox_bytes_max`.
    pub fn new(seed: u64, outbox_bytes_max: u32) -> Self {
        Fanouts {
            channels: Slots::new(),
            names: Names::new(seed),
            active: VecDeque::new(),
            joined: Joined::new(JOINED_BYTES_MAX.min(outbox_bytes_max as usize / 4)),
            spare: Vec::new(),
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

    /// Places that channels may stand in.
    pub fn slots(&self) -> u32 {
        self.channels.slots()
    }

    /// The channel in a place, and how many subscribers it has here.
    pub fn subscribers_at(&self, slot: u32) -> Option<(&str, u32)> {
        let (_, channel) = self.channels.at(slot)?;
        Some((&channel.name, channel.lists.iter().map(List::live).sum::<usize>() as u32))
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
                lists: Vec::new(),
                unanswered: 0,
                one_waits: false,
                pending: None,
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

    /// Notes another question to the owner, which is answered like a subscribe. False: the channel has gone.
    pub fn asked_again(&mut self, local: LocalChannelId) -> bool {
        let Some(channel) = self.channels.get_mut(local.slot, local.generation) else { return false };
        channel.unanswered += 1;
        true
    }

    /// Whether everybody on the channel's lists has all that has come.
    pub fn has_handed_out(&self, local: LocalChannelId) -> bool {
        self.channels.get(local.slot, local.generation).is_none_or(|channel| !channel.is_waiting())
    }

    /// Puts a connection on the channel's list of its variant; it gets what comes from now on, the first publication
    /// whole. Returns its place.
    pub fn join(&mut self, local: LocalChannelId, variant: Variant, slot: u32) -> u32 {
        let Some(channel) = self.channels.get_mut(local.slot, local.generation) else { return VACANT };
        let at = channel.lists.iter().position(|list| list.variant == variant).unwrap_or_else(|| {
            // Most channels have one list: no room for more.
            channel.lists.reserve_exact(1);
            channel.lists.push(List::new(variant));
            channel.lists.len() - 1
        });
        // While something waits, a vacant place is among those that are still to get it.
        if channel.is_waiting() { channel.lists[at].append(slot) } else { channel.lists[at].join(slot) }
    }

    /// Takes a connection off the channel's list. `moved` hears of others whose places change.
    pub fn leave(&mut self, local: LocalChannelId, variant: Variant, index: u32, moved: &mut Vec<Moved>) {
        let Some(channel) = self.channels.get_mut(local.slot, local.generation) else { return };
        let Some(at) = channel.lists.iter().position(|list| list.variant == variant) else { return };
        let list = &mut channel.lists[at];
        // The place stays vacant for who comes next: giving it to the last one would touch that one's session, which is
        // seldom at hand.
        list.vacate(index);
        // Places may change only when nothing waits and the last fan-out's places have been tidied.
        if channel.is_waiting() {
            return;
        }
        let list = &mut channel.lists[at];
        if list.live() == 0 {
            channel.lists.swap_remove(at);
        } else if list.is_gappy() {
            list.tidy(|slot, index| moved.push(Moved { slot, local, index }));
        }
    }

    /// Something of the channel was dropped for this subscriber: its next publication is whole.
    pub fn drop_base(&mut self, local: LocalChannelId, variant: Variant, index: u32) {
        let Some(channel) = self.channels.get_mut(local.slot, local.generation) else { return };
        if let Some(list) = channel.lists.iter_mut().find(|list| list.variant == variant) {
            list.drop_base(index);
        }
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
        self.backlog_bytes -= channel.pending.as_ref().map_or(0, |pending| pending.backlog_bytes);
        self.names.remove(&channel.name, local.slot);
        self.channels.remove(local.slot, local.generation).map(|channel| channel.name)
    }

    /// The rules have been replaced: looks every channel's namespace up again. A name that has none any more keeps its
    /// last one.
    pub fn rules_changed(&mut self, namespaces: &Namespaces) {
        for slot in 0..self.channels.slots() {
            if let Some(channel) = self.channels.at_mut(slot)
                && let Some((namespace, _)) = namespaces.resolve(&channel.name)
            {
                channel.namespace = namespace;
            }
        }
    }

    /// Every channel on this core.
    pub fn iter(&self) -> impl Iterator<Item = (LocalChannelId, &Channel)> {
        (0..self.channels.slots()).filter_map(|slot| {
            let (generation, channel) = self.channels.at(slot)?;
            Some((LocalChannelId { slot, generation }, channel))
        })
    }

    /// Takes a publication or event from the lane. False: nobody here follows the channel under that name any more.
    pub fn deliver(&mut self, local: LocalChannelId, publication: Arc<Publication>) -> bool {
        let Some(channel) = self.channels.get_mut(local.slot, local.generation) else { return false };
        let event = publication.is_event();
        let takes = |list: &List| !list.entries.is_empty() && (!event || list.variant.join_leave());
        if !channel.lists.iter().any(takes) {
            return true;
        }
        self.backlog_bytes += publication.memory_bytes();
        if let [list] = &channel.lists[..]
            && list.entries.len() <= FEW_MAX
            && !channel.is_waiting()
            && !event
        {
            let one = One { publication, end: list.entries.len() as u8, cursor: 0 };
            self.active.push_back(Active { local, one: Some(one) });
            channel.one_waits = true;
            return true;
        }
        let pending = channel.pending.get_or_insert_with(|| {
            self.active.push_back(Active { local, one: None });
            self.spare.pop().unwrap_or_default()
        });
        pending.push(publication, &channel.lists);
        true
    }

    /// Whether some fan-out is not finished.
    pub fn has_work(&self) -> bool {
        !self.active.is_empty()
    }

    /// Hands out deliveries, at most `budget` of them, until one is put off; returns how many. `moved` hears of
    /// subscribers whose place changed when a list was tidied behind a fan-out.
    pub fn step(
        &mut self,
        budget: u32,
        namespaces: &Namespaces,
        mut deliver: impl FnMut(u32, &Delivery<'_>) -> Taken,
        moved: &mut Vec<Moved>,
    ) -> u32 {
        let mut slice = Slice { budget, done: 0, put_off: false };
        while slice.done < budget && !slice.put_off {
            let Some(active) = self.active.front_mut() else {
                self.active.shrink_to(KEPT_ACTIVE);
                break;
            };
            let local = active.local;
            let Some(channel) = self.channels.get_mut(local.slot, local.generation) else {
                self.backlog_bytes -= active.one.as_ref().map_or(0, |one| one.publication.memory_bytes());
                self.active.pop_front();
                continue;
            };
            if let Some(one) = &mut active.one {
                if channel.hand_out_one(local, one, namespaces, &mut slice, &mut deliver) {
                    self.backlog_bytes -= one.publication.memory_bytes();
                    self.active.pop_front();
                    channel.one_waits = false;
                    if !channel.is_waiting() {
                        channel.tidy(local, moved);
                    }
                }
                continue;
            }
            if !channel.begin(local, namespaces, &mut self.joined, moved) {
                let pending = channel.pending.take().filter(|pending| pending.is_small());
                self.spare.extend(pending.filter(|_| self.spare.len() < SPARE_MAX));
                self.active.pop_front();
                continue;
            }
            let Some(pending) = &mut channel.pending else { break };
            if let Some(bytes) = pending.advance(&mut channel.lists, &mut slice, &mut deliver) {
                self.backlog_bytes -= bytes;
                // Another channel's turn, so that a busy channel does not hold up the rest.
                self.active.rotate_left(1);
            }
        }
        slice.done
    }
}

impl Channel {
    /// Makes sure that a fan-out is under way; false if nothing waits any more: then everybody has a place for good.
    fn begin(
        &mut self,
        local: LocalChannelId,
        namespaces: &Namespaces,
        joined: &mut Joined,
        moved: &mut Vec<Moved>,
    ) -> bool {
        let Some(pending) = &mut self.pending else { return false };
        if pending.is_running() {
            return true;
        }
        // A channel that never rests does not keep a place for everybody who ever left it.
        if self.lists.iter().any(List::is_sparse) {
            pending.compact(&self.lists);
            for list in &mut self.lists {
                list.compact(|slot, index| moved.push(Moved { slot, local, index }));
            }
        }
        let policy = namespaces.get(self.namespace).slow_consumer;
        if pending.begin(&self.lists, policy, local.slot, joined) {
            return true;
        }
        self.tidy(local, moved);
        false
    }

    /// Whether places must stay as they are.
    const fn is_waiting(&self) -> bool {
        self.one_waits || self.pending.is_some()
    }

    /// Closes gaps. Only while nothing waits.
    fn tidy(&mut self, local: LocalChannelId, moved: &mut Vec<Moved>) {
        for list in &mut self.lists {
            list.tidy(|slot, index| moved.push(Moved { slot, local, index }));
        }
        self.lists.retain(|list| !list.entries.is_empty());
    }

    /// Goes on with a publication that waits in the queue; true when everybody has it.
    fn hand_out_one(
        &mut self,
        local: LocalChannelId,
        one: &mut One,
        namespaces: &Namespaces,
        slice: &mut Slice,
        deliver: &mut impl FnMut(u32, &Delivery<'_>) -> Taken,
    ) -> bool {
        let Some(list) = self.lists.first_mut() else { return true };
        let (variant, publication) = (list.variant, &one.publication);
        let frame = |has_base| Frame::from_publication(Arc::clone(publication), variant, has_base);
        let Some(whole) = frame(false) else {
            debug_assert!(false, "not encoded for a list that takes it");
            return true;
        };
        let policy = namespaces.get(self.namespace).slow_consumer;
        let lossy = (policy != SlowConsumer::Disconnect).then_some(Lossy {
            policy,
            channel: local.slot,
            instead: &whole,
            publications: 1,
        });
        while one.cursor < one.end && slice.done < slice.budget {
            let entry = list.entries[one.cursor as usize];
            if entry != VACANT {
                let based = (variant.delta() && entry & HAS_BASE != 0).then(|| frame(true)).flatten();
                let delivery = Delivery::new(based.as_ref().unwrap_or(&whole), 1, lossy);
                if deliver(slot_of(entry), &delivery) == Taken::PutOff {
                    slice.put_off = true;
                    return false;
                }
                if variant.delta() {
                    list.entries[one.cursor as usize] |= HAS_BASE;
                }
                slice.done += 1;
            }
            one.cursor += 1;
        }
        one.cursor == one.end
    }
}

fn name_at(channels: &Slots<Channel>, slot: u32) -> &str {
    channels.at(slot).map_or("", |(_, channel)| &channel.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoded::{Push, Told, applied, pushes};
    use crate::ids::{ConnId, CoreId};
    use crate::namespace::Namespace;
    use crate::presence::Member;
    use crate::publication::{Draft, JoinLeave, Scratch};
    use crate::variant::VariantSet;
    use alloc::collections::BTreeMap;
    use alloc::string::{String, ToString};
    use proptest::prelude::*;
    use ringway_wire::centrifuge::Form;

    #[derive(Clone, Debug)]
    enum Step {
        Join(u32, Variant),
        Leave(u32),
        DropBase(u32),
        Publish(u8),
        Event(bool),
        Slice(u32),
    }

    /// Few variants in one run, so that lists have several subscribers.
    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let variants = (any::<(bool, bool, bool)>(), any::<(bool, bool, bool)>()).prop_map(
            |((json, bare, compact), (delta, deflate, join_leave))| {
                Variant::plain(if json { Form::Json } else { Form::Protobuf })
                    .with_bare(json && bare)
                    .with_compact(compact)
                    .with_delta(delta)
                    .with_deflate(deflate)
                    .with_join_leave(join_leave)
            },
        );
        prop::collection::vec(variants, 1..5).prop_flat_map(|variants| {
            let step = prop_oneof![
                3 => (0u32..12, prop::sample::select(variants)).prop_map(|(slot, variant)| Step::Join(slot, variant)),
                2 => (0u32..12).prop_map(Step::Leave),
                1 => (0u32..12).prop_map(Step::DropBase),
                4 => any::<u8>().prop_map(Step::Publish),
                1 => any::<bool>().prop_map(Step::Event),
                4 => (1u32..5).prop_map(Step::Slice),
            ];
            prop::collection::vec(step, 1..150)
        })
    }

    /// What was said in the channel.
    #[derive(Clone, Debug, PartialEq)]
    enum Said {
        Payload(Vec<u8>),
        Event(JoinLeave, String),
    }

    struct Subscriber {
        variant: Variant,
        index: u32,
        /// Of what was said, what comes next.
        next: usize,
        /// What it holds to apply deltas to.
        base: Option<Vec<u8>>,
    }

    /// Owner, lane and subscribers around the fan-out under test.
    struct World {
        fanouts: Fanouts,
        namespaces: Namespaces,
        local: LocalChannelId,
        subscribers: BTreeMap<u32, Subscriber>,
        said: Vec<Said>,
        variants: VariantSet,
        last: Option<Arc<Publication>>,
        scratch: Scratch,
        offered: u32,
        deltas: u32,
    }

    const NUMBER: i64 = 70_000;

    impl World {
        fn new(policy: SlowConsumer) -> Self {
            let mut fanouts = Fanouts::new(7, 1 << 20);
            // The channel stays followed by the unanswered subscribe.
            let local = fanouts.follow("c", NamespaceId(0));
            let namespace = Namespace { slow_consumer: policy, ..Namespace::closed("") };
            World {
                fanouts,
                namespaces: Namespaces::new(namespace, Vec::new()).expect("one namespace contradicts nothing"),
                local,
                subscribers: BTreeMap::new(),
                said: Vec::new(),
                variants: VariantSet::NONE,
                last: None,
                scratch: Scratch::default(),
                offered: 0,
                deltas: 0,
            }
        }

        fn take(&mut self, step: Step) {
            let local = self.local;
            match step {
                Step::Join(slot, variant) => {
                    if self.subscribers.contains_key(&slot) {
                        return;
                    }
                    self.variants = self.variants.with(variant);
                    let index = self.fanouts.join(local, variant, slot);
                    self.subscribers.insert(slot, Subscriber { variant, index, next: self.said.len(), base: None });
                }
                Step::Leave(slot) => {
                    let Some(subscriber) = self.subscribers.remove(&slot) else { return };
                    let mut moved = Vec::new();
                    self.fanouts.leave(local, subscriber.variant, subscriber.index, &mut moved);
                    self.moved(moved);
                }
                Step::DropBase(slot) => {
                    let Some(subscriber) = self.subscribers.get_mut(&slot) else { return };
                    subscriber.base = None;
                    self.fanouts.drop_base(local, subscriber.variant, subscriber.index);
                }
                Step::Publish(byte) => self.publish(byte),
                Step::Event(join) => self.event(if join { JoinLeave::Join } else { JoinLeave::Leave }),
                Step::Slice(budget) => self.slice(budget),
            }
        }

        fn publish(&mut self, byte: u8) {
            // Much in common with the one before, and long enough for compression in some.
            let number = self.said.len();
            let payload = alloc::format!("\"<{number}>{}é{byte}\"", "lorem ipsum dolor ".repeat(byte as usize % 16));
            let draft = Draft {
                number: NUMBER,
                offset: number as u64 + 1,
                variants: self.variants,
                previous: self.last.as_deref(),
                deflate_bytes_min: 64,
                ..Draft::new("c", payload.as_bytes())
            };
            let publication = Arc::new(Publication::encode(draft, &mut self.scratch));
            self.last = self.variants.has_delta().then(|| Arc::clone(&publication));
            assert!(self.fanouts.deliver(self.local, publication));
            self.said.push(Said::Payload(payload.into_bytes()));
        }

        fn event(&mut self, kind: JoinLeave) {
            let client = alloc::format!("client-{}", self.said.len());
            let member = Member {
                core: CoreId(0),
                conn: ConnId { slot: 0, generation: 0 },
                client: client.as_str().into(),
                user: "u".into(),
                conn_info: Box::default(),
                chan_info: Box::default(),
            };
            let event = Publication::join_leave(kind, "c", NUMBER, &member, self.variants, &mut self.scratch);
            self.fanouts.deliver(self.local, Arc::new(event));
            self.said.push(Said::Event(kind, client));
        }

        fn slice(&mut self, budget: u32) {
            let mut moved = Vec::new();
            let World { fanouts, namespaces, subscribers, said, offered, deltas, .. } = self;
            fanouts.step(
                budget,
                namespaces,
                |slot, delivery| {
                    *offered += 1;
                    if offered.is_multiple_of(5) && !delivery.begun {
                        return Taken::PutOff;
                    }
                    let subscriber = subscribers.get_mut(&slot).expect("only those who are subscribed are served");
                    // Each third time as if something had been dropped.
                    let lossy = delivery.lossy.filter(|_| offered.is_multiple_of(3));
                    let (frame, publications) = lossy
                        .map_or((delivery.frame, delivery.publications), |lossy| (lossy.instead, lossy.publications));
                    if let Some(lossy) = lossy {
                        subscriber.base = None;
                        if lossy.policy == SlowConsumer::Conflate {
                            subscriber.skip(said, delivery.publications - lossy.publications);
                        }
                    }
                    let told = pushes(frame.bytes(), subscriber.variant);
                    let publishes = |push: &&Push| matches!(push.told, Told::Publication { .. });
                    assert_eq!(told.iter().filter(publishes).count() as u32, publications);
                    for push in told {
                        *deltas += subscriber.take(push, said);
                    }
                    Taken::Yes
                },
                &mut moved,
            );
            self.moved(moved);
        }

        fn moved(&mut self, moved: Vec<Moved>) {
            for moved in moved {
                if let Some(subscriber) = self.subscribers.get_mut(&moved.slot) {
                    subscriber.index = moved.index;
                }
            }
        }

        /// Hands out the rest; everybody must have everything then.
        fn end(&mut self) {
            while self.fanouts.has_work() {
                self.slice(3);
            }
            for (slot, subscriber) in &mut self.subscribers {
                subscriber.pass_over(&self.said);
                assert_eq!(subscriber.next, self.said.len(), "slot {slot} missed the end");
            }
            let channel = self.fanouts.get(self.local).expect("still followed");
            let live: usize = channel.lists.iter().map(List::live).sum();
            assert_eq!(live, self.subscribers.len());
            assert!(channel.lists.iter().all(|list| list.live() > 0 && !list.is_gappy()), "empty lists are gone");
            assert!(channel.pending.is_none());
            assert_eq!(self.fanouts.backlog_bytes(), 0);
        }
    }

    impl Subscriber {
        /// Over events that it does not want to hear of.
        fn pass_over(&mut self, said: &[Said]) {
            while !self.variant.join_leave() && matches!(said.get(self.next), Some(Said::Event(..))) {
                self.next += 1;
            }
        }

        fn skip(&mut self, said: &[Said], publications: u32) {
            for _ in 0..publications {
                self.pass_over(said);
                assert!(matches!(said[self.next], Said::Payload(_)), "an event would be lost");
                self.next += 1;
            }
        }

        /// Returns how many deltas it got.
        fn take(&mut self, push: Push, said: &[Said]) -> u32 {
            self.pass_over(said);
            let channel = if self.variant.compact() { alloc::format!("#{NUMBER}") } else { "c".to_string() };
            assert_eq!(push.channel, channel);
            let (now, delta) = match push.told {
                Told::Publication { data, delta, offset } => {
                    assert_eq!(offset, self.next as u64 + 1);
                    assert!(self.variant.delta() || !delta);
                    let payload = applied(self.base.as_deref(), &data, delta);
                    self.base = Some(payload.clone());
                    (Said::Payload(payload), delta)
                }
                Told::Join(client) => (Said::Event(JoinLeave::Join, client), false),
                Told::Leave(client) => (Said::Event(JoinLeave::Leave, client), false),
            };
            assert_eq!(Some(&now), said.get(self.next));
            self.next += 1;
            u32::from(delta)
        }
    }

    proptest! {
        /// Joins, leaves, publications and events between the slices of fan-outs, in any variants: each subscriber gets
        /// exactly what was said between its join and its leave (all that was handed out by then), in order, in its
        /// variant, and can apply each delta to what it got before.
        #[test]
        fn slices_belong_to_the_list_as_it_was(steps in steps()) {
            let mut world = World::new(SlowConsumer::Disconnect);
            steps.into_iter().for_each(|step| world.take(step));
            world.end();
        }

        /// The same when something may be dropped: what is given instead needs no base.
        #[test]
        fn what_is_given_instead_needs_no_base(steps in steps(), conflate in any::<bool>()) {
            let policy = if conflate { SlowConsumer::Conflate } else { SlowConsumer::DropOldest };
            let mut world = World::new(policy);
            steps.into_iter().for_each(|step| world.take(step));
            world.end();
        }
    }

    #[test]
    fn who_has_the_publication_before_gets_a_delta() {
        let mut world = World::new(SlowConsumer::Disconnect);
        let delta = Variant::plain(Form::Json).with_delta(true);
        world.take(Step::Join(0, delta));
        world.take(Step::Publish(15));
        world.slice(100);
        assert_eq!(world.deltas, 0, "the first is whole");
        world.take(Step::Join(1, delta));
        world.take(Step::Publish(14));
        world.take(Step::Join(2, delta));
        world.take(Step::Publish(15));
        world.end();
        assert_eq!(world.deltas, 2 + 1, "two as one frame for the first; the second alone for who came between");
        world.take(Step::DropBase(0));
        world.take(Step::Publish(15));
        world.end();
        assert_eq!(world.deltas, 3 + 2);
        world.take(Step::Publish(15));
        world.end();
        assert_eq!(world.deltas, 5 + 3);
    }

    #[test]
    fn a_list_for_each_variant_and_none_for_nobody() {
        let mut world = World::new(SlowConsumer::Disconnect);
        let json = Variant::plain(Form::Json);
        for (slot, variant) in [json, json.with_compact(true), json.with_join_leave(true), json].into_iter().enumerate()
        {
            world.take(Step::Join(slot as u32, variant));
        }
        let lists = |world: &World| world.fanouts.get(world.local).map_or(0, |channel| channel.lists.len());
        assert_eq!(lists(&world), 3);
        world.take(Step::Leave(1));
        assert_eq!(lists(&world), 2, "at rest at once");
        world.take(Step::Publish(0));
        world.take(Step::Leave(2));
        assert_eq!(lists(&world), 2, "not while something waits");
        world.end();
        assert_eq!(lists(&world), 1);
    }

    #[test]
    fn channels_follow_the_rules_that_are_loaded_for_their_prefix() {
        let load = |named| Namespaces::new(Namespace::closed(""), named).expect("sound").with_catch_all(true);
        let before = load(alloc::vec![]);
        let mut fanouts = Fanouts::new(1, 1 << 20);
        let (default, _) = before.resolve("chat:1").expect("caught by the default");
        let local = fanouts.follow("chat:1", default);
        let after = before.reloaded(load(alloc::vec![Namespace::closed("chat")])).expect("sound");
        fanouts.rules_changed(&after);
        let (chat, _) = after.resolve("chat:1").expect("named");
        assert_ne!(chat, default);
        assert_eq!(fanouts.get(local).map(|channel| channel.namespace), Some(chat));
        // The prefix has no rules any more: the last ones go on.
        let gone = Namespaces::new(Namespace::closed(""), alloc::vec![]).expect("sound");
        fanouts.rules_changed(&after.reloaded(gone).expect("sound"));
        assert_eq!(fanouts.get(local).map(|channel| channel.namespace), Some(chat));
    }
}
