//! A publication: the payload and its finished WebSocket frames, one allocation, shared by all cores.
//!
//! In: payload, offset and publisher from the owner. Out: frames that go to sockets as they are (server frames are
//! unmasked, RFC 6455 §5.1, so one encoding serves every subscriber of a variant), and the payload for recovery answers.
//! A join or leave travels the same way: an event, with neither offset nor payload.
//!
//! ```text
//! bytes  [ header | {"push":{"channel":…,"pub":{"data":PAYLOAD,…}}} ][ header | protobuf push ]…[ table ]
//!          ^ a frame                                                   ^ another                  ^ key, start, end of each
//! ```
//! The payload is pointed at inside a frame; only when no frame has it verbatim does it stand alone. Encodings that need
//! no bytes of their own (nothing gained by compression, or by a delta) point at another's frame.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ops::Range;

use ringway_wire::centrifuge::Form;
use ringway_wire::centrifuge::reply::{ClientInfoView, PublicationView, Tag};
use ringway_wire::frame::Opcode;
use ringway_wire::ingest::PayloadKind;

use crate::encoder::Frames;
pub use crate::encoder::Scratch;
use crate::ids::Offset;
use crate::presence::Member;
use crate::variant::{Variant, VariantSet};

/// Who published, when a client did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publisher {
    /// User id; empty: anonymous.
    pub user: Box<str>,
    /// Client id.
    pub client: Box<str>,
    /// Info of its connection; empty: none.
    pub conn_info: Box<[u8]>,
    /// Info of its subscription to the channel; empty: none.
    pub chan_info: Box<[u8]>,
}

/// Names and values beside a payload.
pub type Tags = Box<[Tag]>;

/// What few publications have beside their payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extra {
    /// Set when a client published.
    pub publisher: Option<Publisher>,
    /// Names and values; few or none.
    pub tags: Tags,
}

impl Extra {
    /// None when there is nothing.
    pub fn of(publisher: Option<Publisher>, tags: Tags) -> Option<Arc<Self>> {
        (publisher.is_some() || !tags.is_empty()).then(|| Arc::new(Extra { publisher, tags }))
    }

    /// Who published, as it is encoded.
    pub fn publisher_view(&self) -> Option<ClientInfoView<'_>> {
        self.publisher.as_ref().map(|publisher| ClientInfoView {
            user: &publisher.user,
            client: &publisher.client,
            conn_info: &publisher.conn_info,
            chan_info: &publisher.chan_info,
        })
    }

    /// Bytes of memory it takes.
    pub fn memory_bytes(&self) -> usize {
        let publisher = self.publisher.as_ref().map_or(0, |publisher| {
            publisher.user.len() + publisher.client.len() + publisher.conn_info.len() + publisher.chan_info.len()
        });
        size_of::<Self>() + publisher + tags_bytes(&self.tags)
    }
}

/// What becomes a publication.
#[derive(Debug)]
pub struct Draft<'a> {
    /// Full name.
    pub channel: &'a str,
    /// Number that stands for the channel in compact pushes.
    pub number: i64,
    /// Place in the channel as clients see it; 0 for channels without history.
    pub offset: Offset,
    /// What was published: JSON without raw newlines, or bytes.
    pub payload: &'a [u8],
    /// Which of the two.
    pub kind: PayloadKind,
    /// What stands beside the payload, if anything does.
    pub extra: Option<Arc<Extra>>,
    /// The subscribers' variants.
    pub variants: VariantSet,
    /// The publication of the channel before this one, for deltas; none: all get it whole.
    pub previous: Option<&'a Publication>,
    /// Payloads (or deltas) of at least so many bytes are compressed for variants that may be; 0: none.
    pub deflate_bytes_min: u32,
}

impl<'a> Draft<'a> {
    /// A JSON publication of a backend, whole and uncompressed, without an offset, for nobody.
    pub fn new(channel: &'a str, payload: &'a [u8]) -> Self {
        Draft {
            channel,
            number: 0,
            offset: 0,
            payload,
            kind: PayloadKind::Json,
            extra: None,
            variants: VariantSet::NONE,
            previous: None,
            deflate_bytes_min: 0,
        }
    }
}

/// Whether a member came or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinLeave {
    /// It came.
    Join,
    /// It went.
    Leave,
}

/// See the file's header.
#[derive(Debug)]
pub struct Publication {
    /// Place in the channel as clients see it; 0 for channels without history, and for events.
    pub offset: Offset,
    extra: Option<Arc<Extra>>,
    frames: Frames,
    payload: Range<u32>,
    event: bool,
}

impl Publication {
    /// Encodes a publication once for every encoding among its variants. `scratch` is reused between calls.
    pub fn encode(draft: Draft<'_>, scratch: &mut Scratch) -> Self {
        let view = view(draft.payload, draft.offset, draft.extra.as_deref());
        let payload = scratch.encode(&draft, &view);
        let frames = scratch.finish();
        Publication { offset: draft.offset, extra: draft.extra, frames, payload, event: false }
    }

    /// Encodes a member's coming or going for those variants that hear of it. It has no offset and no payload.
    pub fn join_leave(
        kind: JoinLeave,
        channel: &str,
        number: i64,
        member: &Member,
        variants: VariantSet,
        scratch: &mut Scratch,
    ) -> Self {
        scratch.encode_join_leave(kind, channel, number, member, variants);
        let frames = scratch.finish();
        Publication { offset: 0, extra: None, frames, payload: 0..0, event: true }
    }

    /// Whether it is a join or leave: only lists that hear of those get it.
    #[inline]
    pub const fn is_event(&self) -> bool {
        self.event
    }

    /// Where the finished WebSocket frame of one variant stands; with `has_base` as a delta, if there is one worth it.
    /// None if no core needed that variant when it was published.
    pub fn frame_range(&self, variant: Variant, has_base: bool) -> Option<Range<u32>> {
        if self.event {
            return variant.join_leave().then(|| self.frames.find(variant.event_encoding(), false)).flatten();
        }
        let delta = (has_base && variant.delta()).then(|| self.frames.find(variant.encoding(), true)).flatten();
        delta.or_else(|| self.frames.find(variant.encoding(), false))
    }

    /// The finished WebSocket frame of one variant; see [`Publication::frame_range`].
    pub fn frame(&self, variant: Variant, has_base: bool) -> Option<&[u8]> {
        Some(self.frames.at(self.frame_range(variant, has_base)?))
    }

    /// The bytes of a frame.
    #[inline]
    pub fn bytes_at(&self, range: Range<u32>) -> &[u8] {
        self.frames.at(range)
    }

    /// Bytes of its longest frame; 0 if it has none.
    pub fn frame_bytes_max(&self) -> usize {
        self.frames.longest()
    }

    /// What was published; nothing for an event.
    pub fn payload(&self) -> &[u8] {
        self.frames.at(self.payload.clone())
    }

    /// As part of a recovery answer.
    pub fn view(&self) -> PublicationView<'_> {
        view(self.payload(), self.offset, self.extra.as_deref())
    }

    /// Bytes of memory this publication takes, without the allocator's own.
    pub fn memory_bytes(&self) -> usize {
        self.frames.memory_bytes() + self.extra.as_ref().map_or(0, |extra| extra.memory_bytes()) + size_of::<Self>()
    }
}

/// Bytes of memory that tags take.
pub fn tags_bytes(tags: &[Tag]) -> usize {
    tags.iter().map(|(name, value)| size_of::<Tag>() + name.len() + value.len()).sum()
}

pub(crate) fn view<'a>(data: &'a [u8], offset: Offset, extra: Option<&'a Extra>) -> PublicationView<'a> {
    let info = extra.and_then(Extra::publisher_view);
    let tags = extra.map_or(&[][..], |extra| &extra.tags);
    PublicationView { data, offset, info, tags, ..Default::default() }
}

/// WebSocket opcode of a form's messages.
pub const fn opcode(form: Form) -> Opcode {
    match form {
        Form::Json => Opcode::Text,
        Form::Protobuf => Opcode::Binary,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoded::{Told, applied, pushes};
    use crate::ids::{ConnId, CoreId};
    use alloc::string::String;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    const NUMBER: i64 = 300;

    fn variants() -> impl Iterator<Item = Variant> {
        let all = |bit: usize| move |i: usize| i & 1 << bit != 0;
        (0..Variant::COUNT).map(move |i| {
            Variant::plain(if all(0)(i) { Form::Json } else { Form::Protobuf })
                .with_bare(all(1)(i) && all(0)(i))
                .with_compact(all(2)(i))
                .with_delta(all(3)(i))
                .with_deflate(all(4)(i))
                .with_join_leave(all(5)(i))
        })
    }

    fn every() -> VariantSet {
        variants().fold(VariantSet::NONE, VariantSet::with)
    }

    /// A JSON text of words; few, so that two have much in common.
    fn payload() -> impl Strategy<Value = String> {
        let word = prop::sample::select(alloc::vec!["alpha", "beta", "gämmä", "δέλτα", "e", "\\n\\\"q\\\""]);
        prop::collection::vec(word, 0..40).prop_map(|words| alloc::format!("{{\"w\":\"{}\"}}", words.join(" ")))
    }

    fn data(publication: &Publication, variant: Variant, has_base: bool) -> (Vec<u8>, bool) {
        let frame = publication.frame(variant, has_base).expect("encoded");
        let told = pushes(frame, variant).remove(0);
        assert_eq!(told.channel, if variant.compact() { "#300" } else { "c" });
        let Told::Publication { data, delta, offset } = told.told else { panic!("{told:?}") };
        assert_eq!(offset, publication.offset);
        (data, delta)
    }

    proptest! {
        // Each case reads some hundred frames.
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Any set of variants: each member reads the payload out of its frame, whole or by a delta, and nobody else has
        /// a frame.
        #[test]
        fn every_variant_reads_the_same(
            (before, now) in (payload(), payload()),
            chosen in prop::collection::vec(any::<bool>(), Variant::COUNT),
            deflate_bytes_min in 0u32..200,
        ) {
            let chosen: Vec<_> = variants().zip(chosen).filter_map(|(variant, chosen)| chosen.then_some(variant)).collect();
            let set = chosen.iter().copied().fold(VariantSet::NONE, VariantSet::with);
            let mut scratch = Scratch::default();
            let draft = |payload| Draft {
                number: NUMBER, offset: 7, variants: set, deflate_bytes_min, ..Draft::new("c", payload)
            };
            let previous = Publication::encode(draft(before.as_bytes()), &mut scratch);
            let draft = Draft { previous: Some(&previous), ..draft(now.as_bytes()) };
            let publication = Publication::encode(draft, &mut scratch);
            prop_assert_eq!(publication.payload(), now.as_bytes());
            prop_assert_eq!(publication.view().data, now.as_bytes());
            for variant in variants() {
                let wanted = chosen.iter().any(|other| other.encoding() == variant.encoding());
                prop_assert_eq!(publication.frame(variant, false).is_some(), wanted);
                prop_assert_eq!(publication.frame(variant, true).is_some(), wanted);
                if !wanted {
                    continue;
                }
                let (whole, is_delta) = data(&publication, variant, false);
                prop_assert!(!is_delta);
                prop_assert_eq!(&whole[..], now.as_bytes());
                let (based, is_delta) = data(&publication, variant, true);
                prop_assert!(variant.delta() || !is_delta);
                prop_assert_eq!(applied(Some(before.as_bytes()), &based, is_delta), now.as_bytes());
            }
        }
    }

    #[test]
    fn a_long_repetition_is_compressed_and_a_small_change_is_a_delta() {
        let mut scratch = Scratch::default();
        let text = |end: &str| alloc::format!("\"{}{end}\"", "the same words again ".repeat(20));
        let draft =
            |payload| Draft { number: NUMBER, variants: every(), deflate_bytes_min: 100, ..Draft::new("c", payload) };
        let (before, now) = (text("a"), text("b"));
        let previous = Publication::encode(draft(before.as_bytes()), &mut scratch);
        let draft = Draft { previous: Some(&previous), ..draft(now.as_bytes()) };
        let publication = Publication::encode(draft, &mut scratch);
        for variant in variants() {
            let whole = publication.frame(variant, false).expect("encoded");
            let compressed = pushes(whole, variant).remove(0).compressed;
            assert_eq!(compressed, variant.deflate());
            assert!(!compressed || whole.len() < 150);
            let (_, is_delta) = data(&publication, variant, true);
            assert_eq!(is_delta, variant.delta());
            let based = publication.frame(variant, true).expect("encoded");
            assert!(!is_delta || based.len() < 110, "{}", based.len());
        }
    }

    #[test]
    fn what_gains_nothing_is_not_stored_twice() {
        let mut scratch = Scratch::default();
        let encode = |variants, bytes_min, scratch: &mut Scratch| {
            let draft = Draft { variants, deflate_bytes_min: bytes_min, ..Draft::new("c", b"\"short\"") };
            Publication::encode(draft, scratch)
        };
        let plain = Variant::plain(Form::Json);
        let one = encode(VariantSet::NONE.with(plain), 0, &mut scratch);
        let both = VariantSet::NONE.with(plain).with(plain.with_deflate(true));
        for bytes_min in [0, 1, 1000] {
            let two = encode(both, bytes_min, &mut scratch);
            assert_eq!(two.frame_range(plain, false), two.frame_range(plain.with_deflate(true), false));
            assert_eq!(two.memory_bytes() - one.memory_bytes(), 9, "a row of the table");
        }
        let delta = plain.with_delta(true);
        let first = encode(VariantSet::NONE.with(delta), 0, &mut scratch);
        assert_eq!(first.frame_range(delta, true), first.frame_range(delta, false), "nothing to take a difference to");
        assert_eq!(first.payload(), b"\"short\"", "beside the frame, which has it as a string");
    }

    #[test]
    fn events_are_for_those_who_hear_of_them() {
        let member = Member {
            core: CoreId(0),
            conn: ConnId { slot: 0, generation: 0 },
            client: "someone".into(),
            user: "u".into(),
            conn_info: (*b"{\"n\":1}").into(),
            chan_info: Box::default(),
        };
        for (kind, expected) in
            [(JoinLeave::Join, Told::Join("someone".into())), (JoinLeave::Leave, Told::Leave("someone".into()))]
        {
            let mut scratch = Scratch::default();
            let event = Publication::join_leave(kind, "c", NUMBER, &member, every(), &mut scratch);
            assert!(event.is_event() && event.payload().is_empty());
            for variant in variants() {
                let frame = event.frame(variant, true);
                assert_eq!(frame.is_some(), variant.join_leave());
                if let Some(frame) = frame {
                    let push = pushes(frame, variant).remove(0);
                    assert_eq!((push.told, push.compressed), (expected.clone(), false));
                }
            }
            // 2 forms by compact, and JSON bare: no more than those are stored.
            let ranges: Vec<_> = variants().filter_map(|variant| event.frame_range(variant, false)).collect();
            let distinct = ranges.iter().enumerate().filter(|(i, range)| !ranges[..*i].contains(range)).count();
            assert_eq!(distinct, 6);
            let nobody = VariantSet::NONE.with(Variant::plain(Form::Json));
            assert_eq!(Publication::join_leave(kind, "c", NUMBER, &member, nobody, &mut scratch).frame_bytes_max(), 0);
        }
    }

    #[test]
    fn the_payload_is_pointed_at_inside_a_frame() {
        let payload = [b"\"".as_slice(), &[b'x'; 1000], b"\""].concat();
        let variants = VariantSet::NONE.with(Variant::plain(Form::Json));
        let draft = Draft { variants, ..Draft::new("c", &payload) };
        let publication = Publication::encode(draft, &mut Scratch::default());
        assert!(publication.memory_bytes() < payload.len() + 200);
        assert_eq!(publication.payload(), payload);
    }
}
