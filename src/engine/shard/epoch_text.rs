//! An epoch's text without an allocation.
//!
//! In: an epoch. Out: the text that clients see.

use core::fmt::Write;

use crate::ids::Epoch;

/// An epoch's text without an allocation.
pub(super) struct EpochText {
    bytes: [u8; Epoch::TEXT_BYTES_MAX],
    len: usize,
}

impl EpochText {
    pub(super) fn new(epoch: Epoch) -> Self {
        let mut text = EpochText { bytes: [0; Epoch::TEXT_BYTES_MAX], len: 0 };
        // Cannot fail: the array holds the longest text.
        let _ = write!(text, "{epoch}");
        text
    }

    pub(super) fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

impl Write for EpochText {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        let end = self.len + s.len();
        self.bytes.get_mut(self.len..end).ok_or(core::fmt::Error)?.copy_from_slice(s.as_bytes());
        self.len = end;
        Ok(())
    }
}
