//! Shared secrets in memory.
//!
//! In: bytes from the configuration. Out: yes or no to bytes that somebody presents. Invariants: a secret is never
//! printed, an unset one matches nothing, and comparing takes the same time wherever two texts differ.

use std::fmt;

use subtle::ConstantTimeEq;

/// A shared secret. Never printed; compared in constant time.
#[derive(Clone)]
pub struct Secret(Box<[u8]>);

impl Secret {
    /// Wraps the secret's bytes; empty bytes match nothing.
    pub fn new(bytes: &[u8]) -> Self {
        Secret(bytes.into())
    }

    /// Whether no secret is set.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `given` is the secret. Takes the same time wherever they differ; only the length can be told from it.
    pub fn matches(&self, given: &[u8]) -> bool {
        !self.0.is_empty() && bool::from(self.0.ct_eq(given))
    }

    /// The secret itself, for who presents it elsewhere. None when it is no text that a header can carry.
    pub fn as_header(&self) -> Option<&str> {
        let text = std::str::from_utf8(&self.0).ok()?;
        (!text.contains(|c: char| c.is_control())).then_some(text)
    }

    /// Whether both are the same secret, or both unset.
    pub fn same(&self, other: &Secret) -> bool {
        bool::from(self.0.ct_eq(&other.0))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "Secret(none)" } else { "Secret(***)" })
    }
}
