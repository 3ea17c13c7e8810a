//! The subscriptions of one client, in no order, scanned: most clients have few.
//!
//! In and out: [`Subscription`]s by their place. The first one lies in the session itself; a client with no more has no
//! further memory. Invariant: there are more only where there is a first.

use alloc::vec::Vec;
use core::ops::{Index, IndexMut};

use thin_vec::ThinVec;

use crate::subscription::Subscription;

/// See the file's header.
#[derive(Debug, Default)]
pub struct Subscriptions {
    first: Option<Subscription>,
    /// A vector whose length and capacity stand with its elements: 8 bytes in each connection instead of 24.
    more: ThinVec<Subscription>,
}

impl Subscriptions {
    /// How many there are.
    pub fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// All.
    pub fn iter(&self) -> impl Iterator<Item = &Subscription> {
        self.first.iter().chain(self.more.iter())
    }

    /// All.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Subscription> {
        self.first.iter_mut().chain(self.more.iter_mut())
    }

    /// Adds one, behind the others.
    pub fn push(&mut self, subscription: Subscription) {
        if self.first.is_none() {
            self.first = Some(subscription);
        } else {
            // Not four at once: many clients have two.
            if self.more.len() == self.more.capacity() {
                self.more.reserve_exact((self.more.len() / 2).max(1));
            }
            self.more.push(subscription);
        }
    }

    /// Takes one out; the last one takes its place. None: there is none at this place.
    pub fn swap_remove(&mut self, index: usize) -> Option<Subscription> {
        let last = self.more.pop();
        if self.more.is_empty() {
            self.more = ThinVec::new();
        }
        match last {
            Some(last) if index == self.len() => Some(last),
            Some(last) if index < self.len() => Some(core::mem::replace(&mut self[index], last)),
            Some(last) => {
                self.push(last);
                None
            }
            None => self.first.take_if(|_| index == 0),
        }
    }

    /// Takes all out that `wanted` says, and returns them.
    pub fn remove_all(&mut self, wanted: impl Fn(&Subscription) -> bool) -> Vec<Subscription> {
        let all = core::mem::take(self).into_iter();
        let (gone, stay) = all.partition::<Vec<_>, _>(wanted);
        stay.into_iter().for_each(|subscription| self.push(subscription));
        gone
    }
}

impl IntoIterator for Subscriptions {
    type Item = Subscription;
    type IntoIter = core::iter::Chain<core::option::IntoIter<Subscription>, thin_vec::IntoIter<Subscription>>;

    fn into_iter(self) -> Self::IntoIter {
        self.first.into_iter().chain(self.more)
    }
}

impl Index<usize> for Subscriptions {
    type Output = Subscription;

    fn index(&self, index: usize) -> &Subscription {
        match (index, &self.first) {
            (0, Some(first)) => first,
            _ => &self.more[index.wrapping_sub(1)],
        }
    }
}

impl IndexMut<usize> for Subscriptions {
    fn index_mut(&mut self, index: usize) -> &mut Subscription {
        match (index, &mut self.first) {
            (0, Some(first)) => first,
            _ => &mut self.more[index.wrapping_sub(1)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::LocalChannelId;
    use crate::subscription::{Asked, Traits};
    use crate::variant::Variant;
    use proptest::prelude::*;
    use ringway_wire::centrifuge::Form;

    #[derive(Clone, Debug)]
    enum Step {
        Push(u32),
        Remove(usize),
        RemoveAll(u32),
    }

    fn subscription(slot: u32) -> Subscription {
        let local = LocalChannelId { slot, generation: 0 };
        Subscription::asked_for(local, Variant::plain(Form::Json), Traits::default(), Asked::default())
    }

    proptest! {
        #[test]
        fn as_a_plain_list(steps in prop::collection::vec(prop_oneof![
            3 => (0u32..9).prop_map(Step::Push),
            2 => (0usize..9).prop_map(Step::Remove),
            1 => (0u32..9).prop_map(Step::RemoveAll),
        ], 0..60)) {
            let (mut list, mut model) = (Subscriptions::default(), Vec::new());
            for step in steps {
                match step {
                    Step::Push(slot) => {
                        list.push(subscription(slot));
                        model.push(slot);
                    }
                    Step::Remove(index) => {
                        let removed = list.swap_remove(index).map(|one| one.local.slot);
                        prop_assert_eq!(removed, (index < model.len()).then(|| model.swap_remove(index)));
                    }
                    Step::RemoveAll(slot) => {
                        let gone = list.remove_all(|one| one.local.slot == slot).len();
                        prop_assert_eq!(gone, model.iter().filter(|known| **known == slot).count());
                        model.retain(|known| *known != slot);
                    }
                }
                prop_assert_eq!(list.iter().map(|one| one.local.slot).collect::<Vec<_>>(), model.clone());
                prop_assert_eq!(list.iter_mut().count(), model.len());
                prop_assert_eq!((list.len(), list.is_empty()), (model.len(), model.is_empty()));
                for (index, slot) in model.iter().enumerate() {
                    list[index].joined(*slot);
                    prop_assert_eq!(list[index].local.slot, *slot);
                }
            }
        }
    }
}
