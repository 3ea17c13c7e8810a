//! Who a client is: what a token or a backend has said of it.
//!
//! In: claims. Out: what others see of the client, and when it expires. 32 bytes where nothing is said but the user.

use alloc::boxed::Box;

use crate::deadline::Deadline;

/// Who a client is, as a token or a backend has said.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// User id; empty: anonymous.
    pub user: Box<str>,
    /// What few clients have.
    pub about: Option<Box<About>>,
    /// When the connection expires.
    pub expires: Deadline,
}

/// What is said of few clients.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// JSON that other clients see; empty: none.
    pub info: Box<[u8]>,
    /// JSON that only backends see; empty: none.
    pub meta: Box<[u8]>,
    /// Id of the token; empty: none.
    pub token_id: Box<str>,
    /// `info` was given at run time: the next token does not bring it.
    pub is_refreshed: bool,
}

impl Identity {
    /// JSON that other clients see; empty: none.
    pub fn info(&self) -> &[u8] {
        self.about.as_ref().map_or(&[], |about| &about.info)
    }

    /// JSON that only backends see; empty: none.
    pub fn meta(&self) -> &[u8] {
        self.about.as_ref().map_or(&[], |about| &about.meta)
    }

    /// Id of the token; empty: none.
    pub fn token_id(&self) -> &str {
        self.about.as_ref().map_or("", |about| &about.token_id)
    }

    /// JSON that other clients see, if it was given at run time.
    pub fn refreshed_info(&self) -> Option<&[u8]> {
        self.about.as_ref().filter(|about| about.is_refreshed).map(|about| &*about.info)
    }

    /// Replaces all that is said besides the user.
    pub fn set_about(&mut self, about: About) {
        let is_empty =
            !about.is_refreshed && about.info.is_empty() && about.meta.is_empty() && about.token_id.is_empty();
        self.about = (!is_empty).then(|| Box::new(about));
    }
}
