//! A finished WebSocket (or ingest) frame on its way to one or many connections of this core.
//!
//! In: bytes from `session.rs`, a shared publication from `fanout.rs`, or a constant. Out: `outbox.rs` counts and
//! writes them. One pointer wide; cloning costs a local, non-atomic increment, never an atomic one.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::sync::Arc;

use crate::publication::Publication;
use crate::variant::Variant;

/// See the file's header.
#[derive(Clone, Debug)]
pub struct Frame(Rc<Content>);

#[derive(Debug)]
enum Content {
    Bytes(Box<[u8]>),
    Static(&'static [u8]),
    /// A publication, and where the frame stands in it: found once, not per delivery.
    Publication(Arc<Publication>, u32, u32),
}

impl Frame {
    /// A frame of its own bytes.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Frame(Rc::new(Content::Bytes(bytes.into())))
    }

    /// A frame that never changes, such as a ping. Make it once and clone it.
    pub fn from_static(bytes: &'static [u8]) -> Self {
        Frame(Rc::new(Content::Static(bytes)))
    }

    /// A publication's frame in one variant, for subscribers that have the one before or that do not; takes the core's
    /// one atomic reference with it. None if the publication was not encoded in that variant.
    pub fn from_publication(publication: Arc<Publication>, variant: Variant, has_base: bool) -> Option<Self> {
        let range = publication.frame_range(variant, has_base)?;
        Some(Frame(Rc::new(Content::Publication(publication, range.start, range.end))))
    }

    /// The bytes to write.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        match &*self.0 {
            Content::Bytes(bytes) => bytes,
            Content::Static(bytes) => bytes,
            Content::Publication(publication, start, end) => publication.bytes_at(*start..*end),
        }
    }

    /// How many bytes there are to write.
    #[inline]
    pub fn size_bytes(&self) -> usize {
        match &*self.0 {
            Content::Bytes(bytes) => bytes.len(),
            Content::Static(bytes) => bytes.len(),
            Content::Publication(_, start, end) => (end - start) as usize,
        }
    }
}
