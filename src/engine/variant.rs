//! In which encoding a subscriber takes publications, and what else its list is for.
//!
//! In: what a subscription negotiated. Out: a small number that names the list of its channel that it stands in, and
//! the frames which that list takes. Subscribers of one variant get the same bytes.

use ringway_wire::centrifuge::Form;

/// One way to take a channel: one subscriber list per channel and variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Variant(u8);

impl Variant {
    const FORM: u8 = 1;
    const BARE: u8 = 1 << 1;
    const COMPACT: u8 = 1 << 2;
    const DELTA: u8 = 1 << 3;
    const DEFLATE: u8 = 1 << 4;
    const JOIN_LEAVE: u8 = 1 << 5;

    /// How many variants there are.
    pub const COUNT: usize = 64;

    /// The plain variant of a form.
    pub const fn plain(form: Form) -> Self {
        Variant(form as u8)
    }

    /// Pushes stand alone, without the reply around them: the unidirectional transport. JSON only.
    pub const fn with_bare(self, on: bool) -> Self {
        self.with(Self::BARE, on)
    }

    /// Pushes carry the channel's number instead of its name.
    pub const fn with_compact(self, on: bool) -> Self {
        self.with(Self::COMPACT, on)
    }

    /// Publications may be Fossil deltas.
    pub const fn with_delta(self, on: bool) -> Self {
        self.with(Self::DELTA, on)
    }

    /// Messages may be compressed (RFC 7692).
    pub const fn with_deflate(self, on: bool) -> Self {
        self.with(Self::DEFLATE, on)
    }

    /// Hears of joins and leaves.
    pub const fn with_join_leave(self, on: bool) -> Self {
        self.with(Self::JOIN_LEAVE, on)
    }

    const fn with(self, bit: u8, on: bool) -> Self {
        if on { Variant(self.0 | bit) } else { Variant(self.0 & !bit) }
    }

    /// JSON or Protobuf.
    pub const fn form(self) -> Form {
        if self.0 & Self::FORM == Form::Json as u8 { Form::Json } else { Form::Protobuf }
    }

    /// See [`Variant::with_bare`].
    pub const fn bare(self) -> bool {
        self.0 & Self::BARE != 0
    }

    /// See [`Variant::with_compact`].
    pub const fn compact(self) -> bool {
        self.0 & Self::COMPACT != 0
    }

    /// See [`Variant::with_delta`].
    pub const fn delta(self) -> bool {
        self.0 & Self::DELTA != 0
    }

    /// See [`Variant::with_deflate`].
    pub const fn deflate(self) -> bool {
        self.0 & Self::DEFLATE != 0
    }

    /// See [`Variant::with_join_leave`].
    pub const fn join_leave(self) -> bool {
        self.0 & Self::JOIN_LEAVE != 0
    }

    /// As an index below [`Variant::COUNT`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// How publications are encoded for it: variants that differ only in what else they hear of take the same bytes.
    pub const fn encoding(self) -> Self {
        self.with_join_leave(false)
    }

    /// How joins and leaves are encoded for it: there is nothing in them to compress or to take a difference of.
    pub const fn event_encoding(self) -> Self {
        Variant(self.0 & (Self::FORM | Self::BARE | Self::COMPACT))
    }
}

/// Set of variants, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VariantSet(u64);

impl VariantSet {
    /// Nothing.
    pub const NONE: VariantSet = VariantSet(0);

    /// With `variant` added.
    pub const fn with(self, variant: Variant) -> Self {
        VariantSet(self.0 | 1 << variant.index())
    }

    /// Both sets together.
    pub const fn union(self, other: Self) -> Self {
        VariantSet(self.0 | other.0)
    }

    /// Whether `variant` is in it.
    pub const fn contains(self, variant: Variant) -> bool {
        self.0 & 1 << variant.index() != 0
    }

    /// Whether nothing is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// All of it, ascending.
    pub fn iter(self) -> impl Iterator<Item = Variant> {
        let mut rest = self.0;
        core::iter::from_fn(move || {
            let bit = rest.trailing_zeros();
            // Clears the lowest bit; of nothing it leaves nothing.
            rest &= rest.wrapping_sub(1);
            (bit < u64::BITS).then_some(Variant(bit as u8))
        })
    }

    /// The encodings in which its members take publications.
    pub const fn encodings(self) -> Self {
        VariantSet((self.0 | self.0 >> Variant::JOIN_LEAVE as u32) & !Self::JOIN_LEAVE)
    }

    /// The encodings in which its members take joins and leaves; those that do not hear of them need none.
    pub fn event_encodings(self) -> Self {
        let watchers = VariantSet(self.0 & Self::JOIN_LEAVE);
        watchers.iter().fold(VariantSet::default(), |all, variant| all.with(variant.event_encoding()))
    }

    /// Whether some member takes deltas.
    pub const fn has_delta(self) -> bool {
        self.0 & Self::DELTA != 0
    }

    /// Whether some member hears of joins and leaves.
    pub const fn has_join_leave(self) -> bool {
        self.0 & Self::JOIN_LEAVE != 0
    }

    /// All variants with deltas: every other run of as many bits as the flag's value.
    const DELTA: u64 = 0xFF00_FF00_FF00_FF00;
    /// All variants that hear of joins and leaves.
    const JOIN_LEAVE: u64 = 0xFFFF_FFFF_0000_0000;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_say_of_their_members_what_the_members_say() {
        for a in 0..Variant::COUNT as u8 {
            let set = VariantSet::default().with(Variant(a));
            assert_eq!(set.has_delta(), Variant(a).delta());
            assert_eq!(set.has_join_leave(), Variant(a).join_leave());
            for b in 0..Variant::COUNT as u8 {
                let set = set.with(Variant(b));
                let (low, high) = (Variant(a.min(b)), Variant(a.max(b)));
                assert!(set.iter().eq([low].into_iter().chain((low != high).then_some(high))));
                let encodings = VariantSet::default().with(low.encoding()).with(high.encoding());
                assert_eq!(set.encodings(), encodings);
                for variant in set.iter().filter(|variant| variant.join_leave()) {
                    assert!(set.event_encodings().contains(variant.event_encoding()));
                }
                assert_eq!(set.event_encodings().is_empty(), !set.has_join_leave());
            }
        }
        assert_eq!(VariantSet::default().iter().count(), 0);
    }

    #[test]
    fn each_property_is_a_bit_of_its_own() {
        let plain = Variant::plain(Form::Protobuf);
        let all = [
            plain.with_bare(true),
            plain.with_compact(true),
            plain.with_delta(true),
            plain.with_deflate(true),
            plain.with_join_leave(true),
        ];
        for (i, variant) in all.into_iter().enumerate() {
            let says = [variant.bare(), variant.compact(), variant.delta(), variant.deflate(), variant.join_leave()];
            assert!(says.iter().enumerate().all(|(j, says)| *says == (i == j)));
            assert_eq!(variant.form(), Form::Protobuf);
        }
    }
}
