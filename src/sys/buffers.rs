//! Memory that a shard takes once and reuses: the scratch buffer into which sockets are read and replies are joined.
//!
//! In: a size at start. Out: a mutable slice for the length of a borrow. Invariant: the mapping lives exactly as long as
//! its `Scratch`, is page-aligned, zeroed at first, and belongs to this value alone.

use std::ptr::NonNull;

use crate::op::Errno;

/// Transparent huge pages are 2 MiB on x86-64 and on arm64 with 4 KiB pages: smaller buffers cannot hold one.
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// Granularity of the mapping's length; a multiple of every page size Linux uses on the supported targets.
const ALIGNMENT_BYTES: usize = 64 << 10;

/// A fixed, page-aligned buffer of one shard.
pub struct Scratch {
    memory: NonNull<u8>,
    bytes: usize,
}

// SAFETY: needed because a raw pointer is not `Send` by itself. Sound: the mapping is owned by this value alone and has no
// tie to the thread that made it; access follows the borrow rules through `&self` and `&mut self`.
unsafe impl Send for Scratch {}
// SAFETY: needed and sound for the same reason: `&self` gives only `&[u8]`.
unsafe impl Sync for Scratch {}

impl Scratch {
    /// Maps at least `bytes` bytes (rounded up to 64 KiB), zeroed. Errors: EINVAL for 0, ENOMEM.
    pub fn new(bytes: usize) -> Result<Scratch, Errno> {
        let bytes = bytes.checked_next_multiple_of(ALIGNMENT_BYTES).ok_or(Errno(libc::ENOMEM))?;
        if bytes == 0 {
            return Err(Errno(libc::EINVAL));
        }
        // SAFETY: needed because page-aligned anonymous memory with its own paging advice has no safe interface in std.
        // Sound: a new anonymous private mapping at an address of the kernel's choice touches no existing memory.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let Some(memory) = NonNull::new(address.cast::<u8>()) else {
            return Err(Errno(libc::ENOMEM));
        };
        let scratch = Scratch { memory, bytes };
        if bytes >= HUGE_PAGE_BYTES {
            // SAFETY: needed for fewer TLB misses on a large buffer. Sound: the range is this value's own mapping, and
            // MADV_HUGEPAGE is advice that never changes its contents. A refusal leaves small pages, which work too.
            unsafe { libc::madvise(scratch.memory.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        }
        Ok(scratch)
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Never: a scratch buffer holds at least one page.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The buffer, to read.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: needed to see the mapping as bytes. Sound: `memory` is the start of `bytes` readable, initialised
        // (kernel-zeroed) bytes owned by self, and the borrow of self keeps writers out.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.bytes) }
    }

    /// The buffer, to fill.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; the mutable borrow of self makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.bytes) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: needed to give the mapping back. Sound: address and length are those of the mapping made in `new`, every
        // slice of it borrowed self and is gone.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_zeroed_writable_and_of_the_promised_size() {
        for bytes in [1, 4096, ALIGNMENT_BYTES + 1, 3 << 20] {
            let mut scratch = Scratch::new(bytes).expect("memory");
            assert!(scratch.len() >= bytes && scratch.len() - bytes < ALIGNMENT_BYTES);
            assert_eq!(scratch.as_slice().as_ptr() as usize % 4096, 0);
            assert!(scratch.as_slice().iter().all(|&byte| byte == 0));
            scratch.as_mut_slice().fill(7);
            assert!(scratch.as_slice().iter().all(|&byte| byte == 7));
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert_eq!(Scratch::new(0).err(), Some(Errno(libc::EINVAL)));
        assert_eq!(Scratch::new(usize::MAX).err(), Some(Errno(libc::ENOMEM)));
    }

    #[test]
    fn scratch_moves_between_threads() {
        let mut scratch = Scratch::new(4096).expect("memory");
        scratch.as_mut_slice()[0] = 1;
        let thread = crate::thread::spawn_named("scratch", move || scratch.as_slice()[0]).expect("thread");
        assert_eq!(thread.join().expect("no panic"), 1);
    }
}
