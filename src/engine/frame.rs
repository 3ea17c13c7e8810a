//! A finished WebSocket (or ingest) frame on its way to one or many connections of this core.
//!
//! In: bytes from `session.rs`, a shared publication from `fanout.rs`, or a constant. Out: `outbox.rs` counts and
//! writes them. One pointer wide; cloning costs a local, non-atomic increment, never an atomic one.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::sync::Arc;

use ringway_wire::centrifuge::Form;

use crate::publication::Publication;

/// See the file's header.
#[derive(Clone, Debug)]
pub struct Frame(Rc<Content>);

#[derive(Debug)]
enum Content {
    Bytes(Box<[u8]>),
    Static(&'static [u8]),
    Publication(Arc<Publication>, Form),
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

    /// A publication's frame in one form; takes the core's one atomic reference with it.
    /// None if the publication was not encoded in that form.
    pub fn from_publication(publication: Arc<Publication>, form: Form) -> Option<Self> {
        publication.frame(form)?;
        Some(Frame(Rc::new(Content::Publication(publication, form))))
    }

    /// The bytes to write.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        match &*self.0 {
            Content::Bytes(bytes) => bytes,
            Content::Static(bytes) => bytes,
            Content::Publication(publication, form) => publication.frame(*form).unwrap_or_default(),
        }
    }
}
