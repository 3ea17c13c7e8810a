//! A client's subscription to one channel: what it does, and how far it has come.
//!
//! In: a namespace's options, what a client asks for, what a token or backend overrides. Out: [`Traits`] and states that
//! `shard/subscribe.rs` moves along.

use alloc::boxed::Box;
use core::num::NonZeroU8;

use crate::ids::LocalChannelId;
use crate::lane_message::RecoverFrom;
use crate::namespace::Namespace;
use crate::tokens::Overrides;
use crate::variant::Variant;

/// A channel of a client: asked for, or joined. 24 bytes, and nothing else while it is joined and has nothing special.
#[derive(Debug)]
pub struct Subscription {
    /// The channel on this core.
    pub local: LocalChannelId,
    /// Place in the list of a joined one.
    index: u32,
    /// On which of the channel's lists it stands, or will stand.
    pub variant: Variant,
    /// [`Traits`], a bit each, and [`ALWAYS`].
    traits: NonZeroU8,
    rare: Option<Box<Rare>>,
}

const _: () = assert!(size_of::<Option<Subscription>>() == 24, "every connection has one");

/// What few subscriptions have, or have for a short time.
#[derive(Debug, Default)]
struct Rare {
    asked: Option<Asked>,
    extra: SubscriptionExtra,
}

/// Bit that is set whatever the traits are, so that "no subscription" takes no room of its own.
const ALWAYS: NonZeroU8 = NonZeroU8::new(1 << 7).expect("it is not 0");

impl Subscription {
    /// One that nobody has granted yet.
    pub fn asked_for(local: LocalChannelId, variant: Variant, traits: Traits, asked: Asked) -> Self {
        let rare = Rare { asked: Some(asked), extra: SubscriptionExtra::default() };
        Subscription { local, index: 0, variant, traits: traits.bits(), rare: Some(Box::new(rare)) }
    }

    /// What is known of one that is not granted yet; none: it is joined.
    pub fn asked(&self) -> Option<&Asked> {
        self.rare.as_ref()?.asked.as_ref()
    }

    /// As [`Subscription::asked`].
    pub fn asked_mut(&mut self) -> Option<&mut Asked> {
        self.rare.as_mut()?.asked.as_mut()
    }

    /// It has been answered: it has no place until [`Subscription::joined`].
    pub fn take_asked(&mut self) -> Option<Asked> {
        let asked = self.rare.as_mut()?.asked.take();
        self.settle();
        asked
    }

    /// It stands in its list, at this place.
    pub fn joined(&mut self, index: u32) {
        self.index = index;
    }

    /// Its place in its list, once it is joined.
    pub fn place(&self) -> Option<u32> {
        self.asked().is_none().then_some(self.index)
    }

    /// What it does.
    pub const fn traits(&self) -> Traits {
        Traits::of_bits(self.traits)
    }

    /// Changes what it does.
    pub fn set_traits(&mut self, traits: Traits) {
        self.traits = traits.bits();
    }

    /// JSON that other clients see; empty: none.
    pub fn info(&self) -> &[u8] {
        self.rare.as_ref().map_or(&[], |rare| &rare.extra.info)
    }

    /// Data that the client was given, if nobody else could give it again; empty: none.
    pub fn data(&self) -> &[u8] {
        self.rare.as_ref().map_or(&[], |rare| &rare.extra.data)
    }

    /// When it expires; none: never.
    pub fn expires_at_ms(&self) -> Option<u64> {
        self.rare.as_ref()?.extra.expires_at_ms
    }

    /// Sets these.
    pub fn set_extra(&mut self, extra: SubscriptionExtra) {
        self.rare.get_or_insert_default().extra = extra;
        self.settle();
    }

    /// Gives memory back that nothing needs any more.
    fn settle(&mut self) {
        self.rare.take_if(|rare| rare.asked.is_none() && rare.extra.is_empty());
    }
}

/// What a subscription does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// The server made it, not the client.
    pub server_side: bool,
    /// It takes part in presence.
    pub member: bool,
    /// Its coming and going is told to others.
    pub tell_join_leave: bool,
    /// The client shall keep its position and resume from it.
    pub recoverable: bool,
    /// The client is told of losses.
    pub positioned: bool,
    /// The server made it while the client was connected: the next connect does not bring it.
    pub run_time: bool,
}

impl Traits {
    const fn bits(self) -> NonZeroU8 {
        let Traits { server_side, member, tell_join_leave, recoverable, positioned, run_time } = self;
        ALWAYS
            .saturating_add(server_side as u8)
            .saturating_add((member as u8) << 1)
            .saturating_add((tell_join_leave as u8) << 2)
            .saturating_add((recoverable as u8) << 3)
            .saturating_add((positioned as u8) << 4)
            .saturating_add((run_time as u8) << 5)
    }

    const fn of_bits(bits: NonZeroU8) -> Self {
        let bits = bits.get();
        Traits {
            server_side: bits & 1 != 0,
            member: bits & 1 << 1 != 0,
            tell_join_leave: bits & 1 << 2 != 0,
            recoverable: bits & 1 << 3 != 0,
            positioned: bits & 1 << 4 != 0,
            run_time: bits & 1 << 5 != 0,
        }
    }
}

/// What few subscriptions have.
#[derive(Clone, Debug, Default)]
pub struct SubscriptionExtra {
    /// JSON that other clients see; empty: none.
    pub info: Box<[u8]>,
    /// When it expires; none: never.
    pub expires_at_ms: Option<u64>,
    /// Data that the client was given, of those made at run time; empty: none.
    pub data: Box<[u8]>,
}

impl SubscriptionExtra {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.info.is_empty() && self.expires_at_ms.is_none() && self.data.is_empty()
    }
}

/// A subscription that is not granted yet.
#[derive(Debug, Default)]
pub struct Asked {
    /// Number of the request; with the local channel it names this subscription.
    pub request: u32,
    /// Who gets the answer.
    pub answer_to: AnswerTo,
    /// Where the client wants to resume.
    pub recover: Option<RecoverFrom>,
    /// It would rather have error 112 than `recovered:false`.
    pub reject_unrecovered: bool,
    /// Data for the client in the answer; empty: none.
    pub data: Box<[u8]>,
    /// The owner has been asked; before that, a token or a backend.
    pub sent: bool,
    /// It is to end as soon as it is answered.
    pub leaving: Option<Leaving>,
}

/// Who gets the answer to a subscribe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AnswerTo {
    /// A subscribe command.
    Command(u32),
    /// The connect command.
    Connect,
    /// The client, as a push: a backend has made the subscription.
    #[default]
    Push,
}

/// Why a subscription that is not answered yet is to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// The client has unsubscribed with this command; both are answered in order.
    Command(u32),
    /// A backend has ended it.
    Server {
        /// Code of the push.
        code: u32,
        /// Text of the push.
        reason: Box<str>,
    },
}

/// What a subscription does, by its namespace, what the client asks for, and what a token or backend overrides.
pub fn traits_of(namespace: &Namespace, overrides: &Overrides, wants: Wants) -> Traits {
    let recovery = overrides.recovery.unwrap_or(namespace.recovery_forced || wants.recovery);
    let recoverable = namespace.recovery && recovery;
    let positioned = overrides.positioned.unwrap_or(namespace.positioned || wants.positioned);
    let member = overrides.presence.unwrap_or(namespace.presence);
    Traits {
        server_side: false,
        member,
        tell_join_leave: member && overrides.join_leave.unwrap_or(namespace.join_leave),
        recoverable,
        positioned: recoverable || (namespace.history_size > 0 && positioned),
        run_time: false,
    }
}

/// Whether a subscription hears of others' coming and going.
pub fn hears_join_leave(namespace: &Namespace, overrides: &Overrides, asked: bool) -> bool {
    let on = overrides.join_leave.unwrap_or(namespace.join_leave);
    on && overrides.push_join_leave.unwrap_or(namespace.join_leave_forced || asked)
}

/// What a client asks of its subscription.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wants {
    /// To resume later.
    pub recovery: bool,
    /// To be told of losses.
    pub positioned: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traits_are_bits() {
        for bits in 0..64u8 {
            let on = |bit: u8| bits & 1 << bit != 0;
            let traits = Traits {
                server_side: on(0),
                member: on(1),
                tell_join_leave: on(2),
                recoverable: on(3),
                positioned: on(4),
                run_time: on(5),
            };
            assert_eq!(Traits::of_bits(traits.bits()), traits);
        }
    }

    #[test]
    fn a_plain_joined_subscription_has_no_memory_of_its_own() {
        let local = LocalChannelId { slot: 1, generation: 2 };
        let variant = Variant::plain(ringway_wire::centrifuge::Form::Json);
        let mut one =
            Subscription::asked_for(local, variant, Traits::default(), Asked { request: 7, ..Asked::default() });
        assert_eq!((one.place(), one.asked().map(|asked| asked.request)), (None, Some(7)));
        assert_eq!(one.take_asked().map(|asked| asked.request), Some(7));
        one.joined(3);
        assert!(one.rare.is_none() && one.place() == Some(3));
        one.set_extra(SubscriptionExtra {
            info: (*b"1").into(),
            expires_at_ms: Some(5),
            ..SubscriptionExtra::default()
        });
        assert_eq!((one.info(), one.expires_at_ms(), one.place()), (&b"1"[..], Some(5), Some(3)));
        one.set_extra(SubscriptionExtra::default());
        assert!(one.rare.is_none());
    }
}
