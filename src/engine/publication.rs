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
use core::ops::Range;

use ringway_wire::centrifuge::Form;
use ringway_wire::centrifuge::reply::{ClientInfoView, PublicationView};
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
    /// Set when a client published.
    pub publisher: Option<Box<Publisher>>,
    /// The subscribers' variants.
    pub variants: VariantSet,
    /// The publication of the channel before this one, for deltas; none: all get it whole.
    pub previous: Option<&'a Publication>,
    /// Payloads (or deltas) of at least so many bytes are compressed for variants that may be; 0: none.
    pub deflate_bytes_min: u32,
}

impl<'a> Draft<'a> {
    /// A JSON publication of a backend, whole and uncompressed, without an offset, for nobody.
    pub const fn new(channel: &'a str, payload: &'a [u8]) -> Self {
        Draft {
            channel,
            number: 0,
            offset: 0,
            payload,
            kind: PayloadKind::Json,
            publisher: None,
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
    publisher: Option<Box<Publisher>>,
    frames: Frames,
    payload: Range<u32>,
    event: bool,
}

impl Publication {
    /// Encodes a publication once for every encoding among its variants. `scratch` is reused between calls.
    pub fn encode(draft: Draft<'_>, scratch: &mut Scratch) -> Self {
        let view = view(draft.payload, draft.offset, draft.publisher.as_deref());
        let payload = scratch.encode(&draft, &view);
        let frames = scratch.finish();
        Publication { offset: draft.offset, publisher: draft.publisher, frames, payload, event: false }
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
        Publication { offset: 0, publisher: None, frames: scratch.finish(), payload: 0..0, event: true }
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
        view(self.payload(), self.offset, self.publisher.as_deref())
    }

    /// Bytes of memory this publication takes, without the allocator's own.
    pub fn memory_bytes(&self) -> usize {
        self.frames.memory_bytes() + size_of::<Self>()
    }
}

fn view<'a>(data: &'a [u8], offset: Offset, publisher: Option<&'a Publisher>) -> PublicationView<'a> {
    let info = publisher.map(|publisher| ClientInfoView {
        user: &publisher.user,
        client: &publisher.client,
        conn_info: &[],
        chan_info: &[],
    });
    PublicationView { data, offset, info, ..Default::default() }
}

/// WebSocket opcode of a form's messages.
pub const fn opcode(form: Form) -> Opcode {
    match form {
        Form::Json => Opcode::Text,
        Form::Protobuf => Opcode::Binary,
    }
}
