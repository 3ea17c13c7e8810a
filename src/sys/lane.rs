//! The inbox of a shard or plane: a bounded queue into one thread, its sleep flag, its wake-up descriptor, and a flag per
//! sender that needs no place in the queue.
//!
//! In: items from any number of threads. Out: items to the one consumer, in order per sender; wake-ups of that consumer
//! through an eventfd that a ring polls ([`Ring::poll_wake`](crate::Ring::poll_wake)) or tokio's `AsyncFd` watches.
//!
//! The consumer's turn:
//! ```text
//! loop {
//!     take items with pop() and flags with take_lost()
//!     sleep = inbox.prepare_sleep()          // last look; false: more work is there
//!     ring.turn(if sleep { until deadline } else { No })
//!     inbox.awake()                          // also before the wake poll is armed again
//! }
//! ```
//! Invariants: nobody blocks on a full queue (the item is handed back); a wake-up is never lost (`sleep.rs`); an eventfd is
//! made at construction, which must happen before the threads that share the inbox split their file tables.

use std::cell::Cell;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;

use crate::op::Errno;
use crate::primitive::{AtomicBool, AtomicU64, Ordering};
use crate::sleep::{Prepared, SleepFlag};

thread_local! {
    /// Whether this thread has left the process's common file table.
    static FILE_TABLE_IS_PRIVATE: Cell<bool> = const { Cell::new(false) };
}

/// Remembers that the calling thread has a file table of its own: descriptors it opens are invisible to other threads.
pub(crate) fn note_private_file_table() {
    FILE_TABLE_IS_PRIVATE.set(true);
}

/// A bounded queue into one consuming thread. Any thread may push; one thread at a time consumes.
pub struct Inbox<T> {
    queue: ArrayQueue<T>,
    /// Alone on its cache line: producers read it once per batch and must not meet the queue's indices there.
    sleep: CachePadded<SleepFlag>,
    /// Consumer's note that since the last `awake` it announced a sleep that somebody may have seen; nobody else reads it.
    bell_may_ring: AtomicBool,
    /// An eventfd, non-blocking; `File` because reading and writing 8 bytes is all that is done with it.
    bell: std::fs::File,
    lost: Box<[AtomicU64]>,
    senders: usize,
}

impl<T> Inbox<T> {
    /// Makes an inbox for `capacity` items and flags for `senders` senders (numbered from 0).
    ///
    /// Errors: EINVAL if `capacity` is 0 or the calling thread has a private file table (its descriptors could not be
    /// reached, or worse, would name something else, in other threads); EMFILE or ENFILE if no descriptor is free.
    pub fn new(capacity: usize, senders: usize) -> Result<Arc<Inbox<T>>, Errno> {
        if capacity == 0 || FILE_TABLE_IS_PRIVATE.get() {
            return Err(Errno(libc::EINVAL));
        }
        Ok(Arc::new(Inbox {
            queue: ArrayQueue::new(capacity),
            sleep: CachePadded::new(SleepFlag::new()),
            bell_may_ring: AtomicBool::new(false),
            bell: std::fs::File::from(new_eventfd()?),
            lost: (0..senders.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            senders,
        }))
    }

    /// Puts an item at the end, or hands it back if the queue is full. Does not wake: see [`Inbox::wake_if_asleep`].
    #[inline]
    pub fn push(&self, item: T) -> Result<(), T> {
        self.queue.push(item)
    }

    /// Wakes the consumer if it sleeps or is about to. To be called once after a batch of pushes or a lost mark.
    /// True: a wake-up was really sent, which costs the caller some 12 µs if the consumer's core has halted.
    pub fn wake_if_asleep(&self) -> bool {
        if !self.sleep.take_wake() {
            return false;
        }
        // The counter cannot reach its maximum (one write per announced sleep, drained at each awakening), so the only
        // failure left is a descriptor that this thread cannot see: a construction-order bug that would lose wake-ups.
        if let Err(error) = (&self.bell).write(&1u64.to_ne_bytes())
            && error.kind() != std::io::ErrorKind::WouldBlock
        {
            panic!("wake-up descriptor is unusable in this thread ({error}): inbox made after the file tables split?");
        }
        true
    }

    /// Consumer: takes the oldest item.
    #[inline]
    pub fn pop(&self) -> Option<T> {
        self.queue.pop()
    }

    /// Whether no item waits. Lost marks are not counted.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Number of waiting items (a snapshot).
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Number of items the queue holds at most.
    pub fn capacity(&self) -> usize {
        self.queue.capacity()
    }

    /// Consumer: announces that it is going to sleep, then looks again. False: an item or a lost mark is there, do not sleep.
    pub fn prepare_sleep(&self) -> bool {
        let prepared = self.sleep.prepare(|| !self.queue.is_empty() || self.any_lost());
        if prepared != Prepared::Work {
            self.bell_may_ring.store(true, Ordering::Relaxed);
        }
        prepared == Prepared::Sleep
    }

    /// Consumer: clears the announcement and drains the wake-up descriptor. Cheap when no
    /// sleep was announced. To be called after each turn, whatever ended it, and so before the wake poll is armed again.
    pub fn awake(&self) {
        if !self.bell_may_ring.load(Ordering::Relaxed) {
            return;
        }
        self.bell_may_ring.store(false, Ordering::Relaxed);
        self.sleep.clear();
        // A producer that took the wake may still be on its way to the bell: then the next sleep ends early, once, and
        // drains here. EAGAIN (nobody rang) is the other outcome; neither needs an answer.
        let _ = (&self.bell).read(&mut [0u8; 8]);
    }

    /// Sender `sender` tells the consumer that something could not be queued. Works when the queue is full; follow it with
    /// [`Inbox::wake_if_asleep`]. Panics if `sender` is not below the number given at construction.
    pub fn mark_lost(&self, sender: usize) {
        assert!(sender < self.senders, "sender {sender} of {}", self.senders);
        self.lost[sender / 64].fetch_or(1 << (sender % 64), Ordering::AcqRel);
    }

    /// Consumer: takes the lost marks, one sender at a time; marks not yet yielded stay if the iterator is dropped.
    pub fn take_lost(&self) -> impl Iterator<Item = usize> + '_ {
        self.lost.iter().enumerate().flat_map(|(index, word)| {
            std::iter::from_fn(move || {
                let marks = word.load(Ordering::Acquire);
                (marks != 0).then(|| {
                    let bit = marks.trailing_zeros() as usize;
                    word.fetch_and(!(1 << bit), Ordering::AcqRel);
                    index * 64 + bit
                })
            })
        })
    }

    fn any_lost(&self) -> bool {
        self.lost.iter().any(|word| word.load(Ordering::Acquire) != 0)
    }
}

impl<T> AsFd for Inbox<T> {
    /// The wake-up descriptor: readable when a wake-up was sent. For polling only.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

impl<T> AsRawFd for Inbox<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.bell.as_raw_fd()
    }
}

fn new_eventfd() -> Result<OwnedFd, Errno> {
    // SAFETY: needed because the standard library has no eventfd. Sound: the call takes two integers and no memory.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(Errno::last());
    }
    // SAFETY: needed to give the new descriptor an owner. Sound: the kernel has just returned it, so it is open and
    // nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
