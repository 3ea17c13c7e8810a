//! Counts what a thread allocates, so that "this path does not allocate" is a figure and not a claim.
//!
//! In: every allocation of a program that installs [`CountingAllocator`] as its global allocator. Out: counts per thread.
//! Invariants: counting itself never allocates (the counters are const-initialised thread locals without destructors);
//! every request is handed unchanged to the allocator inside.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static ALLOCATED_BYTES: Cell<u64> = const { Cell::new(0) };
    static DEALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static FREED_BYTES: Cell<u64> = const { Cell::new(0) };
}

/// A global allocator that counts per thread and otherwise is the allocator inside.
pub struct CountingAllocator<A>(A);

impl<A> CountingAllocator<A> {
    /// Wraps `inner`.
    pub const fn new(inner: A) -> CountingAllocator<A> {
        CountingAllocator(inner)
    }
}

/// Allocations (including reallocations) by the calling thread so far; 0 if no [`CountingAllocator`] is installed.
pub fn thread_allocations() -> u64 {
    ALLOCATIONS.get()
}

/// Frees by the calling thread so far, of memory that any thread allocated; 0 if no [`CountingAllocator`] is installed.
pub fn thread_deallocations() -> u64 {
    DEALLOCATIONS.get()
}

/// Bytes asked for by the calling thread so far (never reduced by frees); 0 if no [`CountingAllocator`] is installed.
pub fn thread_allocated_bytes() -> u64 {
    ALLOCATED_BYTES.get()
}

/// Bytes given back by the calling thread so far, as they were asked for; 0 if no [`CountingAllocator`] is installed. What
/// a thread holds has grown by the difference between this and [`thread_allocated_bytes`] where no other thread frees it.
pub fn thread_freed_bytes() -> u64 {
    FREED_BYTES.get()
}

fn count_freed(bytes: usize) {
    FREED_BYTES.set(FREED_BYTES.get().wrapping_add(bytes as u64));
}

fn count(bytes: usize) {
    // Const-initialised cells without destructors are reachable for the whole life of a thread, so this cannot fail or
    // allocate, not even while the thread ends.
    ALLOCATIONS.set(ALLOCATIONS.get().wrapping_add(1));
    ALLOCATED_BYTES.set(ALLOCATED_BYTES.get().wrapping_add(bytes as u64));
}

// SAFETY: needed because `GlobalAlloc` is an unsafe trait. Sound: every call goes unchanged to `A`, which keeps the
// contract; counting touches only thread-local cells, does not unwind and does not allocate.
unsafe impl<A: GlobalAlloc> GlobalAlloc for CountingAllocator<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: needed to reach the inner allocator. Sound: the caller keeps the contract of `alloc` for this layout.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        DEALLOCATIONS.set(DEALLOCATIONS.get().wrapping_add(1));
        count_freed(layout.size());
        // SAFETY: needed to reach the inner allocator. Sound: `pointer` came from it, through this wrapper, with `layout`.
        unsafe { self.0.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size);
        count_freed(layout.size());
        // SAFETY: as in `dealloc`; the caller keeps the contract on `new_size`.
        unsafe { self.0.realloc(pointer, layout, new_size) }
    }
}
