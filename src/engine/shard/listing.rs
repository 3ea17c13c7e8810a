//! Which channels have subscribers on this core, and how many.
//!
//! In: [`ChannelsCall`]s, which go to every core. Out: one [`ChannelsAnswer`] each; whoever asked sums them by name. Each core says the
//! first names of its own, in their order: so the first names of all cores together are right in name and number, whatever is left out.
//! Invariants: a listing looks at so many channels per turn and no more, and keeps as many names as are asked for; one that
//! was not carried to its end says so.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};

use super::Shard;
use crate::call::{ChannelCount, ChannelsAnswer, ChannelsCall};
use crate::lane_message::LaneMessage;
use crate::metrics::Metric;

/// Listings under way on one shard. Over: the oldest is ended and answered as cut (counted).
const LISTINGS_MAX: usize = if cfg!(test) { 4 } else { 16 };
/// Channels that a listing looks at in one turn of the loop.
const LISTED_PER_TURN: u32 = if cfg!(test) { 3 } else { 4_096 };

/// Those under way, the oldest first.
pub(super) type Listings = VecDeque<Listing>;

/// A [`ChannelsCall`] under way.
#[derive(Debug)]
pub(super) struct Listing {
    call: ChannelsCall,
    /// The first slot not looked at.
    cursor: u32,
    found: BTreeMap<Box<str>, u32>,
}

impl Shard {
    pub(super) fn begin_listing(&mut self, call: ChannelsCall) {
        if self.listings.len() >= LISTINGS_MAX
            && let Some(oldest) = self.listings.pop_front()
        {
            self.metrics.add(Metric::ListingsCut, 1);
            self.answer_listing(oldest, false);
        }
        self.listings.push_back(Listing { call, cursor: 0, found: BTreeMap::new() });
    }

    /// Goes on with the oldest listing, a bounded part of it. Called once per turn.
    pub(super) fn go_on_listing(&mut self) {
        let Some(mut listing) = self.listings.pop_front() else { return };
        let end = self.fanouts.slots().min(listing.cursor.saturating_add(LISTED_PER_TURN));
        let limit = listing.call.limit as usize;
        for slot in listing.cursor..end {
            let Some((name, clients)) = self.fanouts.subscribers_at(slot) else { continue };
            let is_late =
                listing.found.len() >= limit && listing.found.last_key_value().is_none_or(|(last, _)| **last < *name);
            if clients == 0 || is_late || !name.contains(&*listing.call.pattern) {
                continue;
            }
            *listing.found.entry(name.into()).or_default() += clients;
            if listing.found.len() > limit {
                listing.found.pop_last();
            }
        }
        listing.cursor = end;
        if limit == 0 || end == self.fanouts.slots() {
            self.answer_listing(listing, true);
        } else {
            self.listings.push_front(listing);
        }
    }

    fn answer_listing(&mut self, listing: Listing, is_whole: bool) {
        let Listing { call: ChannelsCall { origin, from, .. }, found, .. } = listing;
        let channels = found.into_iter().map(|(channel, clients)| ChannelCount { channel, clients }).collect();
        let total = self.owner.channels_followed();
        let answer = ChannelsAnswer { origin, core: self.options.core, channels, total, is_whole };
        self.lanes.push(from, LaneMessage::ChannelsAnswer(answer.into()));
    }
}

#[cfg(test)]
mod tests {
    use alloc::{format, vec, vec::Vec};

    use super::*;
    use crate::ids::CoreId;
    use crate::lane_message::Origin;
    use crate::limits::Limits;
    use crate::namespace::{Namespace, Namespaces};
    use crate::options::{Access, Options};
    use crate::tokens::NoTokens;
    use crate::variant::Variant;
    use ringway_wire::centrifuge::Form;

    const CONTROL: CoreId = CoreId(1);

    /// A shard with so many subscribers of each channel.
    fn shard(channels: &[(&str, u32)]) -> Shard {
        let options = Options {
            core: CoreId(0),
            shards: 1,
            seed: 1,
            boot: 1,
            limits: Limits::DEFAULT,
            namespaces: Namespaces::new(Namespace::closed(""), vec![]).expect("it is sound").into(),
            tokens: alloc::sync::Arc::new(NoTokens),
            access: Access::closed("/ws"),
            fleet: None,
            utf8: |bytes| core::str::from_utf8(bytes).is_ok(),
        };
        let mut shard = Shard::new(options, 1_000);
        for (name, clients) in channels {
            let (namespace, _) = shard.options.namespaces.resolve(name).expect("there is one");
            let local = shard.fanouts.follow(name, namespace);
            for slot in 0..*clients {
                let variant = if slot % 2 == 0 {
                    Variant::plain(Form::Json)
                } else {
                    Variant::plain(Form::Json).with_join_leave(true)
                };
                shard.fanouts.join(local, variant, slot);
            }
        }
        shard
    }

    fn call(pattern: &str, limit: u32, number: u64) -> ChannelsCall {
        ChannelsCall { pattern: pattern.into(), limit, origin: Origin::Control { call: number }, from: CONTROL }
    }

    fn told(shard: &mut Shard) -> Vec<ChannelsAnswer> {
        let batch = shard.lanes.take_batch(CONTROL);
        let answers = batch.into_iter().flat_map(|batch| batch.messages).map(|message| match message {
            LaneMessage::ChannelsAnswer(answer) => *answer,
            other => panic!("{other:?}"),
        });
        answers.collect()
    }

    #[test]
    fn the_first_names_are_listed_with_all_their_subscribers() {
        let mut shard = shard(&[("b2", 3), ("b1", 1), ("a2", 0), ("b3", 2), ("a1", 5)]);
        let mut list = |pattern: &str, limit| {
            shard.begin_listing(call(pattern, limit, 3));
            let mut turns = 0;
            while !shard.listings.is_empty() {
                shard.go_on_listing();
                turns += 1;
            }
            assert!(turns <= 2, "five channels, three per turn");
            let answer = told(&mut shard).pop().expect("an answer");
            assert!(answer.is_whole);
            answer.channels.into_iter().map(|known| format!("{}: {}", known.channel, known.clients)).collect::<Vec<_>>()
        };
        assert_eq!(list("b", 10), ["b1: 1", "b2: 3", "b3: 2"]);
        assert_eq!(list("", 2), ["a1: 5", "b1: 1"]);
        assert!(list("zzz", 10).is_empty() && list("", 0).is_empty());
    }

    #[test]
    fn each_listing_is_answered_once_and_one_too_many_says_that_it_is_not_whole() {
        let mut shard = shard(&[("a", 1), ("b", 1), ("c", 1), ("d", 1)]);
        for number in 0..=LISTINGS_MAX as u64 {
            shard.begin_listing(call("", 9, number));
        }
        while !shard.listings.is_empty() {
            shard.go_on_listing();
        }
        let answers = told(&mut shard);
        let answered: Vec<_> = answers.iter().map(|one| (one.origin, one.is_whole, one.channels.len())).collect();
        let expected = |call| (Origin::Control { call }, call > 0, if call > 0 { 4 } else { 0 });
        assert_eq!(answered, (0..=LISTINGS_MAX as u64).map(expected).collect::<Vec<_>>());
        assert_eq!(shard.metrics.get(Metric::ListingsCut), 1);
    }
}
