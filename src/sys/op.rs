//! What a ring operation belongs to, and how the kernel's errors are named.
//!
//! In: operation kind, slot and generation from the loop; error numbers from the kernel. Out: the 64-bit `user_data` that
//! travels with an operation and comes back with each of its completions; errors with name and text.
//!
//! ```text
//!  63        56 55                    32 31                               0
//! +------------+------------------------+----------------------------------+
//! | op (8 bit) |      slot (24 bit)     |         generation (32 bit)      |
//! +------------+------------------------+----------------------------------+
//! ```
//!
//! Invariants: packing loses nothing (slot ≤ [`Token::SLOT_MAX`]); op 0 is never used, so an all-zero `user_data` decodes
//! to no operation. A late completion for a slot that has been reused differs by its generation.

use std::fmt;

/// Kinds of operation. The number is part of the packed form, never of anything that leaves the process.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Op {
    /// Multishot accept of a listener; each completion carries a [`Socket`](crate::Socket).
    Accept = 1,
    /// Multishot poll for input or hang-up of a socket.
    Readable = 2,
    /// One-shot poll for room in a socket's send buffer.
    Writable = 3,
    /// One-shot poll of an inbox's wake-up descriptor.
    Wake = 4,
    /// Answer of a cancel request.
    Cancel = 5,
    /// A send of [`Ring::send_all`](crate::Ring::send_all). Used by the ring alone: it never comes out of a turn.
    Send = 6,
}

impl Op {
    const fn from_u8(code: u8) -> Option<Op> {
        Some(match code {
            1 => Op::Accept,
            2 => Op::Readable,
            3 => Op::Writable,
            4 => Op::Wake,
            5 => Op::Cancel,
            6 => Op::Send,
            _ => return None,
        })
    }
}

/// What an operation belongs to: kind, slot, generation, in 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(u64);

impl Token {
    /// Largest slot number, 2^24 − 1: a shard holds far fewer connections (the open-file limit bounds them).
    pub const SLOT_MAX: u32 = (1 << 24) - 1;

    /// Packs the three. Panics if `slot` is over [`Token::SLOT_MAX`]: slots come from the program, not from a peer.
    #[inline]
    pub const fn new(op: Op, slot: u32, generation: u32) -> Token {
        assert!(slot <= Token::SLOT_MAX, "slot needs more than 24 bits");
        Token((op as u64) << 56 | (slot as u64) << 32 | generation as u64)
    }

    /// The kind, or `None` for a `user_data` that this crate did not pack.
    #[inline]
    pub const fn op(self) -> Option<Op> {
        Op::from_u8((self.0 >> 56) as u8)
    }

    /// The slot, 24 bits.
    #[inline]
    pub const fn slot(self) -> u32 {
        (self.0 >> 32) as u32 & Token::SLOT_MAX
    }

    /// The generation of the slot at the time the operation was queued, 32 bits.
    #[inline]
    pub const fn generation(self) -> u32 {
        self.0 as u32
    }

    #[inline]
    pub(crate) const fn user_data(self) -> u64 {
        self.0
    }

    #[inline]
    pub(crate) const fn from_user_data(user_data: u64) -> Token {
        Token(user_data)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.op() {
            Some(op) => write!(f, "{op:?}({}#{})", self.slot(), self.generation()),
            None => write!(f, "Token({:#x})", self.0),
        }
    }
}

/// A kernel error number (positive, as in `errno(3)`).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// The error of the last failed system call of this thread.
    pub(crate) fn last() -> Errno {
        Errno::from(std::io::Error::last_os_error())
    }

    /// Nothing could be done without waiting (EAGAIN).
    #[inline]
    pub const fn is_again(self) -> bool {
        self.0 == libc::EAGAIN
    }

    /// The operation was cancelled on request (ECANCELED).
    #[inline]
    pub const fn is_cancelled(self) -> bool {
        self.0 == libc::ECANCELED
    }

    /// No descriptor is free: in this process or file table (EMFILE), or in the system (ENFILE).
    #[inline]
    pub const fn is_out_of_files(self) -> bool {
        matches!(self.0, libc::EMFILE | libc::ENFILE)
    }

    /// The peer is gone: reset, closed pipe, or no answer within the user timeout.
    #[inline]
    pub const fn is_peer_gone(self) -> bool {
        matches!(self.0, libc::ECONNRESET | libc::EPIPE | libc::ETIMEDOUT | libc::ENOTCONN | libc::ECONNABORTED)
    }

    /// Symbolic name such as `EAGAIN`, for those errors that this crate's calls can meet.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            libc::EPERM => "EPERM",
            libc::ENOENT => "ENOENT",
            libc::EINTR => "EINTR",
            libc::EIO => "EIO",
            libc::EBADF => "EBADF",
            libc::EAGAIN => "EAGAIN",
            libc::ENOMEM => "ENOMEM",
            libc::EACCES => "EACCES",
            libc::EFAULT => "EFAULT",
            libc::EBUSY => "EBUSY",
            libc::EEXIST => "EEXIST",
            libc::EINVAL => "EINVAL",
            libc::ENFILE => "ENFILE",
            libc::EMFILE => "EMFILE",
            libc::EPIPE => "EPIPE",
            libc::ENOSYS => "ENOSYS",
            libc::ETIME => "ETIME",
            libc::EPROTO => "EPROTO",
            libc::EBADR => "EBADR",
            libc::EOVERFLOW => "EOVERFLOW",
            libc::ENOTSOCK => "ENOTSOCK",
            libc::EDESTADDRREQ => "EDESTADDRREQ",
            libc::EMSGSIZE => "EMSGSIZE",
            libc::EOPNOTSUPP => "EOPNOTSUPP",
            libc::EAFNOSUPPORT => "EAFNOSUPPORT",
            libc::EADDRINUSE => "EADDRINUSE",
            libc::EADDRNOTAVAIL => "EADDRNOTAVAIL",
            libc::ENETDOWN => "ENETDOWN",
            libc::ENETUNREACH => "ENETUNREACH",
            libc::ECONNABORTED => "ECONNABORTED",
            libc::ECONNRESET => "ECONNRESET",
            libc::ENOBUFS => "ENOBUFS",
            libc::EISCONN => "EISCONN",
            libc::ENOTCONN => "ENOTCONN",
            libc::ETIMEDOUT => "ETIMEDOUT",
            libc::ECONNREFUSED => "ECONNREFUSED",
            libc::EHOSTUNREACH => "EHOSTUNREACH",
            libc::EALREADY => "EALREADY",
            libc::EINPROGRESS => "EINPROGRESS",
            libc::ECANCELED => "ECANCELED",
            _ => return None,
        })
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The standard library's text reads "Resource temporarily unavailable (os error 11)": text and number both.
        let text = std::io::Error::from_raw_os_error(self.0);
        match self.name() {
            Some(name) => write!(f, "{name}: {text}"),
            None => write!(f, "{text}"),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "Errno({})", self.0),
        }
    }
}

impl std::error::Error for Errno {}

impl From<std::io::Error> for Errno {
    /// Keeps the kernel's number; an error without one (made by the standard library) becomes EIO.
    fn from(error: std::io::Error) -> Errno {
        Errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> std::io::Error {
        std::io::Error::from_raw_os_error(errno.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_op() -> impl Strategy<Value = Op> {
        prop_oneof![
            Just(Op::Accept),
            Just(Op::Readable),
            Just(Op::Writable),
            Just(Op::Wake),
            Just(Op::Cancel),
            Just(Op::Send)
        ]
    }

    proptest! {
        #[test]
        fn a_token_gives_back_what_was_packed(op in any_op(), slot in 0..=Token::SLOT_MAX, generation: u32) {
            let token = Token::from_user_data(Token::new(op, slot, generation).user_data());
            prop_assert_eq!((token.op(), token.slot(), token.generation()), (Some(op), slot, generation));
        }

        #[test]
        fn any_user_data_decodes_without_panic(raw: u64) {
            let token = Token::from_user_data(raw);
            prop_assert!(token.slot() <= Token::SLOT_MAX);
            prop_assert_eq!(token.op().is_some(), (1..=6).contains(&(raw >> 56)));
        }
    }

    #[test]
    fn different_parts_make_different_tokens() {
        let token = Token::new(Op::Readable, 7, 1);
        assert_ne!(token, Token::new(Op::Readable, 7, 2), "a reused slot differs by its generation");
        assert_ne!(token, Token::new(Op::Readable, 8, 1));
        assert_ne!(token, Token::new(Op::Writable, 7, 1));
        assert_eq!(Token::from_user_data(0).op(), None);
    }

    #[test]
    #[should_panic(expected = "24 bits")]
    fn a_slot_over_the_bound_is_a_bug() {
        let _ = Token::new(Op::Readable, Token::SLOT_MAX + 1, 0);
    }

    #[test]
    fn errors_show_name_and_text() {
        let text = Errno(libc::EAGAIN).to_string();
        assert!(text.starts_with("EAGAIN: ") && text.contains("unavailable"), "{text}");
        assert_eq!(format!("{:?}", Errno(4095)), "Errno(4095)");
        assert!(Errno(libc::EMFILE).is_out_of_files() && Errno(libc::ECANCELED).is_cancelled());
    }
}
