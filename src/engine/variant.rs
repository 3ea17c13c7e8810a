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
}

/// Set of variants, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VariantSet(u64);

impl VariantSet {
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
        (0..Self::BITS).filter(move |bit| self.0 & 1 << bit != 0).map(Variant)
    }

    const BITS: u8 = Variant::COUNT as u8;
}
