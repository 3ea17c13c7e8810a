//! A publication: the payload and its finished WebSocket frames, one allocation, shared by all cores.
//!
//! In: payload, offset and publisher from the owner. Out: frames that go to sockets as they are (server frames are
//! unmasked, RFC 6455 §5.1, so one encoding serves every subscriber), and the payload for recovery answers.
//!
//! ```text
//! bytes  [ header | {"push":{"channel":…,"pub":{"data":PAYLOAD,…}}} ][ header | protobuf push ]
//!          ^ frames[Json]                                               ^ frames[Protobuf]
//! ```
//! The payload is pointed at inside a frame; only when no core needs a frame does it stand alone.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;

use ringway_wire::centrifuge::Form;
use ringway_wire::centrifuge::reply::{
    ClientInfoView, PublicationView, PushData, PushShape, push_join, push_leave, push_publication,
};
use ringway_wire::frame::{Opcode, write_server_header};

use crate::ids::Offset;
use crate::presence::Member;
use crate::variant::VariantSet;

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

/// Whether a member came or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinLeave {
    /// It came.
    Join,
    /// It went.
    Leave,
}

/// Set of wire forms, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FormSet(u8);

impl FormSet {
    /// With `form` added.
    pub const fn with(self, form: Form) -> Self {
        FormSet(self.0 | 1 << form as u8)
    }

    /// Both sets together.
    pub const fn union(self, other: Self) -> Self {
        FormSet(self.0 | other.0)
    }

    /// Whether `form` is in it.
    pub const fn contains(self, form: Form) -> bool {
        self.0 & 1 << form as u8 != 0
    }
}

/// See the file's header.
#[derive(Debug)]
pub struct Publication {
    /// Place in the channel as clients see it; 0 for channels without history.
    pub offset: Offset,
    publisher: Option<Box<Publisher>>,
    bytes: Box<[u8]>,
    frames: [Range<u32>; Form::COUNT],
    payload: Range<u32>,
}

impl Publication {
    /// Encodes a publication once for every form in `forms`. `scratch` is reused between calls.
    pub fn encode(
        channel: &str,
        offset: Offset,
        payload: &[u8],
        publisher: Option<Box<Publisher>>,
        forms: FormSet,
        scratch: &mut Scratch,
    ) -> Self {
        let Scratch { bytes, push } = scratch;
        bytes.clear();
        let mut frames = [0..0, 0..0];
        let mut payload_range = None;
        let view = view(payload, offset, publisher.as_deref());
        for form in Form::ALL.into_iter().filter(|form| forms.contains(*form)) {
            push.clear();
            let data = push_publication(&PushShape::plain(form, channel), PushData::Plain, push, &view);
            let start = bytes.len();
            write_server_header(bytes, opcode(form), push.len());
            let body = bytes.len();
            bytes.extend_from_slice(push);
            frames[form as usize] = start as u32..bytes.len() as u32;
            if let Some(data) = data {
                payload_range.get_or_insert((body + data.start) as u32..(body + data.end) as u32);
            }
        }
        let payload = payload_range.unwrap_or_else(|| {
            bytes.extend_from_slice(payload);
            0..payload.len() as u32
        });
        Publication { offset, publisher, bytes: bytes.as_slice().into(), frames, payload }
    }

    /// Encodes a member's coming or going for those variants that hear of it. It has no offset and no payload.
    pub fn join_leave(
        kind: JoinLeave,
        channel: &str,
        _number: i64,
        member: &Member,
        variants: VariantSet,
        scratch: &mut Scratch,
    ) -> Self {
        let Scratch { bytes, push } = scratch;
        bytes.clear();
        let mut frames = [0..0, 0..0];
        let info = ClientInfoView {
            user: &member.user,
            client: &member.client,
            conn_info: &member.conn_info,
            chan_info: &member.chan_info,
        };
        for form in Form::ALL {
            if !variants.iter().any(|variant| variant.join_leave() && variant.form() == form) {
                continue;
            }
            push.clear();
            let shape = PushShape::plain(form, channel);
            match kind {
                JoinLeave::Join => push_join(&shape, push, &info),
                JoinLeave::Leave => push_leave(&shape, push, &info),
            }
            let start = bytes.len();
            write_server_header(bytes, opcode(form), push.len());
            bytes.extend_from_slice(push);
            frames[form as usize] = start as u32..bytes.len() as u32;
        }
        Publication { offset: 0, publisher: None, bytes: bytes.as_slice().into(), frames, payload: 0..0 }
    }

    /// The finished WebSocket frame of one form; none if no core needed it when it was published.
    #[inline]
    pub fn frame(&self, form: Form) -> Option<&[u8]> {
        let range = &self.frames[form as usize];
        (range.end > range.start).then(|| &self.bytes[range.start as usize..range.end as usize])
    }

    /// What was published.
    pub fn payload(&self) -> &[u8] {
        &self.bytes[self.payload.start as usize..self.payload.end as usize]
    }

    /// As part of a recovery answer.
    pub fn view(&self) -> PublicationView<'_> {
        view(self.payload(), self.offset, self.publisher.as_deref())
    }

    /// Bytes of memory this publication takes, without the allocator's own.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.len() + size_of::<Self>()
    }
}

fn view<'a>(data: &'a [u8], offset: Offset, publisher: Option<&'a Publisher>) -> PublicationView<'a> {
    let info = publisher.map(|publisher| ClientInfoView {
        user: &publisher.user,
        client: &publisher.client,
        conn_info: &publisher.conn_info,
        chan_info: &publisher.chan_info,
    });
    PublicationView { data, offset, info, ..Default::default() }
}

/// Buffers for encoding, kept between publications.
#[derive(Debug, Default)]
pub struct Scratch {
    bytes: Vec<u8>,
    push: Vec<u8>,
}

/// WebSocket opcode of a form's messages.
pub const fn opcode(form: Form) -> Opcode {
    match form {
        Form::Json => Opcode::Text,
        Form::Protobuf => Opcode::Binary,
    }
}
