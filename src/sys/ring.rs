//! One io_uring per shard: accepts, polls, cancels, batched sends, and one wait per turn of the loop.
//!
//! In: requests with a [`Token`] from the loop; sockets and inboxes to watch. Out: [`Completion`]s with the same token, each
//! accepted connection owned by exactly one of them; what a batch of sends could not place.
//!
//! Invariants:
//! - **No borrowed memory in flight.** The only operations with an address are the sends of [`Ring::send_all`], and none
//!   outlives that call: see its comment. Accept, poll and cancel carry no address.
//! - **An accepted descriptor has one owner.** `Op::Accept` is given to accept operations alone (`queue` checks it), so a
//!   non-negative result under that token is a new descriptor, and it is wrapped the moment the completion is read.
//! - **One thread.** The ring is made for a single issuer and is not `Send`.
//! - **Nothing seen is lost.** Completions met while sending or while making room are kept and come out of the next turn.

use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};

use crate::lane::Inbox;
use crate::op::{Errno, Op, Token};
use crate::probe::{self, Report, Unsupported};
use crate::socket::{Listener, Socket};

/// Sends larger than this go through the plain system call: the kernel cuts one operation off near 2 GiB and would call
/// the cut a success.
const SEND_BYTES_MAX: usize = 1 << 30;
/// Submissions that make no progress before the process gives up. The first few are retried at once, the rest a
/// millisecond apart: half a second of a kernel without memory for one request.
const SUBMIT_ATTEMPTS_MAX: u32 = 500;
const SUBMIT_ATTEMPTS_AT_ONCE: u32 = 10;

/// Sizes of a ring's queues, in entries; the kernel rounds up to powers of two.
#[derive(Clone, Copy, Debug)]
pub struct RingOptions {
    /// Requests that one submission carries at most (1..=32768).
    pub submission_entries: u32,
    /// Completions that wait in shared memory (submission entries..=65536). Beyond it the kernel keeps them aside and
    /// ends multishots: size it for a burst.
    pub completion_entries: u32,
}

impl Default for RingOptions {
    fn default() -> RingOptions {
        RingOptions { submission_entries: 1024, completion_entries: 16384 }
    }
}

/// What became of an operation.
#[derive(Debug)]
pub struct Completion {
    /// The token given with the operation.
    pub token: Token,
    /// Poll: the poll(2) mask. Accept: 0, and the connection is in the completion. Cancel: 0, or ENOENT (nothing to cancel)
    /// or EALREADY. A cancelled operation ends with ECANCELED.
    pub result: Result<u32, Errno>,
    /// A multishot operation goes on. False on a multishot: it has ended and must be armed again if it is still wanted.
    pub more: bool,
    socket: Option<Socket>,
}

impl Completion {
    /// The accepted connection, owned; `None` for other completions.
    pub fn into_socket(self) -> Option<Socket> {
        self.socket
    }

    /// Takes the accepted connection out; `None` the second time and for other completions.
    pub fn take_socket(&mut self) -> Option<Socket> {
        self.socket.take()
    }

    /// For polls: the peer has ended its side, reset, or the socket is in error. There may still be data to read.
    pub fn is_hangup(&self) -> bool {
        let mask = (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) as u32;
        self.result.is_ok_and(|events| events & mask != 0)
    }
}

/// How long a turn may wait for a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// At most this long.
    Until {
        /// Milliseconds from now.
        timeout_ms: u64,
    },
    /// Until something completes.
    Forever,
}

/// How a turn went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnReport {
    /// The completion queue was full at some time since the last turn: nothing is lost, but multishots may have ended
    /// (their last completion says `more: false`) and the queue is too small for the load.
    pub overflowed: bool,
    /// The thread waited in the kernel.
    pub waited: bool,
}

/// An io_uring, used by the thread that made it.
pub struct Ring {
    ring: IoUring,
    /// Completions met outside a turn, in order.
    kept: Vec<Completion>,
    overflowed: bool,
    /// Of the accepts that were ever begun: one for each listener.
    accepts: Vec<u64>,
    /// The kernel allows one submitting thread (SINGLE_ISSUER), and descriptors belong to the thread's file table.
    _thread: PhantomData<*const ()>,
}

impl Ring {
    /// Makes a ring for the calling thread and checks that the kernel has everything the gateway uses.
    pub fn new(options: &RingOptions) -> Result<Ring, Unsupported> {
        let mut builder = IoUring::builder();
        builder
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_no_sqarray()
            .setup_cqsize(options.completion_entries)
            // A forked child must not submit through the parent's queues.
            .dontfork();
        let ring = builder
            .build(options.submission_entries)
            .map_err(|error| probe::explain_setup(Errno::from(error), options))?;
        probe::check(&ring)?;
        let mut ring = Ring { ring, kept: Vec::new(), overflowed: false, accepts: Vec::new(), _thread: PhantomData };
        probe::check_sends_end_when_submitted(&mut ring)?;
        ring.overflowed = false;
        Ok(ring)
    }

    /// What this kernel offers, or what is missing and how to get it; for boot and `ringway check`.
    pub fn probe() -> Result<Report, Unsupported> {
        probe::probe()
    }

    /// Entries of submission and completion queue, as made by the kernel.
    pub fn entries(&self) -> (u32, u32) {
        (self.ring.params().sq_entries(), self.ring.params().cq_entries())
    }

    /// Accepts connections until cancelled; each completion carries one ([`Completion::into_socket`]). `token` must be of
    /// [`Op::Accept`]. The operation keeps the listening socket alive until it has ended.
    pub fn accept_multishot(&mut self, listener: &Listener, token: Token) {
        assert_eq!(token.op(), Some(Op::Accept), "an accept needs a token of Op::Accept");
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let entry = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).flags(flags).build();
        self.push(entry.user_data(token.user_data()));
        if !self.accepts.contains(&token.user_data()) {
            self.accepts.push(token.user_data());
        }
    }

    /// Reports input, the peer's end and errors until cancelled. Edge-triggered: data left unread gives no new completion.
    /// The operation keeps the connection open until it has ended, even if the socket is dropped. A socket dropped before
    /// the next turn is not watched (EBADF, or whatever has taken its number: only readiness passes, never data).
    pub fn poll_readable(&mut self, socket: &Socket, token: Token) {
        let events = (libc::POLLIN | libc::POLLRDHUP) as u32;
        self.poll(socket.as_fd(), events, true, token);
    }

    /// Reports once when the send buffer has room (or the connection is in error).
    pub fn poll_writable(&mut self, socket: &Socket, token: Token) {
        self.poll(socket.as_fd(), libc::POLLOUT as u32, false, token);
    }

    /// Reports once when somebody wakes the inbox's consumer. To be armed again after each completion, behind
    /// [`Inbox::awake`].
    pub fn poll_wake<T>(&mut self, inbox: &Inbox<T>, token: Token) {
        self.poll(inbox.as_fd(), libc::POLLIN as u32, false, token);
    }

    /// Ends the operation queued with `target`, whose last completion then has ECANCELED; `token` gets the answer.
    pub fn cancel(&mut self, target: Token, token: Token) {
        let entry = opcode::AsyncCancel::new(target.user_data()).build();
        self.queue(entry, token);
    }

    fn poll(&mut self, fd: BorrowedFd<'_>, events: u32, multishot: bool, token: Token) {
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), events).multi(multishot).build();
        self.queue(entry, token);
    }

    /// Queues an operation that is neither accept nor send: their tokens say how a result is to be read.
    fn queue(&mut self, entry: Entry, token: Token) {
        let op = token.op();
        assert!(
            op.is_some_and(|op| op != Op::Accept && op != Op::Send),
            "{token:?} is of an operation with its own function"
        );
        self.push(entry.user_data(token.user_data()));
    }

    /// The one place where a full submission queue is met: submits and tries again.
    fn push(&mut self, entry: Entry) {
        loop {
            // SAFETY: needed because the queue takes raw entries. Sound: the entries of this function (accept, poll, cancel)
            // contain no address, so the kernel touches no memory of ours on their account.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            self.submit_queued();
        }
    }

    /// Sends every (socket, bytes) without waiting, in submissions of at most the submission queue's size. On return the
    /// kernel is done with all bytes. What was not taken whole is pushed to `exceptions` as (index in `sends`, bytes taken
    /// or the error; EAGAIN: no room at all).
    ///
    /// A socket should occur once per call: behind a short send to it, a later one could still be taken and leave a hole.
    ///
    /// Panics only if the iterator does; everything it yielded before is then sent and accounted for.
    pub fn send_all<'a>(
        &mut self,
        sends: impl Iterator<Item = (&'a Socket, &'a [u8])>,
        exceptions: &mut Vec<(usize, Result<usize, Errno>)>,
    ) {
        let mut sends = sends.enumerate();
        let searched = self.kept.len();
        let mut batch = SendBatch { ring: self, exceptions, first: 0, queued: 0, searched };
        while let Filled::BatchIsFull(held_back) = batch.fill(&mut sends) {
            batch.finish();
            if let Some((index, socket, bytes)) = held_back {
                batch.send_by_call(index, socket, bytes);
            }
        }
        batch.finish();
    }

    /// Submits everything queued; on return the submission queue is empty and its completions have been kept. A kernel that
    /// takes nothing for half a second ends the process: entries that point into borrowed memory must not stay behind.
    fn submit_queued(&mut self) {
        let mut attempts = 0;
        while !self.ring.submission().is_empty() {
            let before = self.ring.submission().len();
            let result = self.ring.submit();
            let progressed = self.ring.submission().len() < before;
            self.keep_completions();
            if progressed {
                attempts = 0;
                continue;
            }
            attempts += 1;
            if attempts == SUBMIT_ATTEMPTS_MAX {
                fatal("io_uring takes no more requests", result.err().map(Errno::from));
            }
            if attempts > SUBMIT_ATTEMPTS_AT_ONCE {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    }

    /// Moves what is in the completion queue to `kept`; sends are sorted out by the caller.
    fn keep_completions(&mut self) {
        self.overflowed |= self.ring.submission().cq_overflow();
        self.kept.extend(self.ring.completion().map(|entry| read_completion(&entry)));
    }

    /// Submits what is queued, waits as told, and appends all completions to `out`. Does not wait when completions are
    /// already there. An interrupted wait and a time-out are no errors: they append nothing.
    ///
    /// Errors are the kernel's and not to be expected: EBADR means that it had no memory to keep a completion.
    pub fn turn(&mut self, wait: Wait, out: &mut Vec<Completion>) -> Result<TurnReport, Errno> {
        let before = out.len();
        self.keep_completions();
        out.append(&mut self.kept);
        let wait = if out.len() > before { Wait::No } else { wait };
        let wait = if wait == (Wait::Until { timeout_ms: 0 }) { Wait::No } else { wait };
        let result = match wait {
            Wait::No => {
                let queue = self.ring.submission();
                // Nothing to tell and nothing to fetch: the system call is spared.
                let idle = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
                drop(queue);
                if idle { Ok(0) } else { self.ring.submit() }
            }
            Wait::Forever => self.ring.submit_and_wait(1),
            Wait::Until { timeout_ms } => {
                let time = Timespec::new().sec(timeout_ms / 1000).nsec((timeout_ms % 1000) as u32 * 1_000_000);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time))
            }
        };
        self.keep_completions();
        out.append(&mut self.kept);
        match result.map_err(Errno::from) {
            Ok(_) => {}
            // ETIME, EINTR: the wait ended. EBUSY, EAGAIN: short of completion room or memory for now; what was not taken is
            // still queued, and the next turn submits it.
            Err(Errno(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            Err(errno) => return Err(errno),
        }
        Ok(TurnReport { overflowed: std::mem::take(&mut self.overflowed), waited: wait != Wait::No })
    }
}

impl Drop for Ring {
    /// Ends everything in flight and closes connections that were accepted but never taken out.
    fn drop(&mut self) {
        // Best effort: whatever fails here is ended by the kernel when the ring's descriptor closes; at worst a connection
        // accepted in that moment stays open until the process ends. Accepts alone, by name: to cancel all that is in flight
        // takes the kernel time that grows with the square of how much it is, minutes with some hundred thousand polls.
        for user_data in &self.accepts {
            let accepts = CancelBuilder::user_data(*user_data).all();
            let _ = self.ring.submitter().register_sync_cancel(Some(Timespec::new().sec(1)), accepts);
        }
        let _ = self.ring.submit();
        self.keep_completions();
    }
}

/// Outcome of filling a batch.
enum Filled<'a> {
    /// All sends are queued.
    SendsAreOver,
    /// The batch must be finished first; with a send that is too large for an entry and must follow it.
    BatchIsFull(Option<(usize, &'a Socket, &'a [u8])>),
}

/// Sends that are queued but not yet known to be over.
///
/// Why no send outlives [`Ring::send_all`], although its entries hold plain addresses:
/// 1. Entries are pushed only by [`SendBatch::fill`], from slices of lifetime `'a`, which outlives the call.
/// 2. `finish` returns only when the kernel has consumed every entry of the queue, or ends the process.
/// 3. A consumed entry is over when the submitting system call returns: MSG_DONTWAIT marks the request as one that must not
///    wait, so the kernel either copies the bytes into the socket or fails the request on the spot; it neither polls nor
///    hands it to a worker (no IOSQE_ASYNC, no link, no drain is ever used). `probe` has tried this on this very ring.
/// 4. If the iterator panics, `drop` runs `finish` before the unwinding reaches the owner of the bytes.
struct SendBatch<'r> {
    ring: &'r mut Ring,
    exceptions: &'r mut Vec<(usize, Result<usize, Errno>)>,
    /// Index, in the whole call, of this batch's first entry. Entry k of the batch has slot k.
    first: usize,
    /// Entries pushed and not yet finished.
    queued: u32,
    /// How much of the kept completions is older than this batch, and so holds none of its failures.
    searched: usize,
}

impl SendBatch<'_> {
    fn fill<'a>(&mut self, sends: &mut impl Iterator<Item = (usize, (&'a Socket, &'a [u8]))>) -> Filled<'a> {
        let mut queue = self.ring.ring.submission();
        // Asked before the iterator, so that no send is in hand without a place.
        while !queue.is_full() {
            let Some((index, (socket, bytes))) = sends.next() else { return Filled::SendsAreOver };
            if self.queued == 0 {
                self.first = index;
            }
            // An entry's slot says its distance from the first: a skipped index ends the batch's numbering.
            if bytes.len() > SEND_BYTES_MAX {
                return Filled::BatchIsFull(Some((index, socket, bytes)));
            }
            let flags = libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
            let entry = opcode::Send::new(Fd(socket.as_raw_fd()), bytes.as_ptr(), bytes.len() as u32)
                .flags(flags)
                .build()
                // Safe to be silent about success only because of MSG_WAITALL: a short send then counts as a failure.
                .flags(Flags::SKIP_SUCCESS)
                .user_data(Token::new(Op::Send, self.queued, 0).user_data());
            // SAFETY: needed because the queue takes raw entries. Sound: `bytes` lives for 'a, and this request is over
            // before `send_all` returns or unwinds (points 1 to 4 at `SendBatch`).
            if unsafe { queue.push(&entry) }.is_err() {
                // Not reached: `is_full` said that there is room.
                return Filled::BatchIsFull(Some((index, socket, bytes)));
            }
            self.queued += 1;
        }
        Filled::BatchIsFull(None)
    }

    /// Submits until the kernel has consumed every entry, then reads what failed.
    fn finish(&mut self) {
        // Also with no entry of ours: other queued requests may have filled the queue.
        self.ring.submit_queued();
        self.ring.keep_completions();
        // Failures may wait in the kernel's overflow list: fetch until it is empty.
        while self.ring.ring.submission().cq_overflow() {
            if let Err(error) = self.ring.ring.submit()
                && error.raw_os_error() == Some(libc::EBADR)
            {
                fatal("io_uring lost completions of sends", Some(Errno::from(error)));
            }
            self.ring.keep_completions();
        }
        let is_send = |completion: &mut Completion| completion.token.op() == Some(Op::Send);
        for completion in self.ring.kept.extract_if(self.searched.., is_send) {
            let taken = completion.result.map(|bytes| bytes as usize);
            self.exceptions.push((self.first + completion.token.slot() as usize, taken));
        }
        self.searched = self.ring.kept.len();
        self.queued = 0;
    }

    /// A send that is too large for one entry, by system call.
    fn send_by_call(&mut self, index: usize, socket: &Socket, bytes: &[u8]) {
        match socket.send(bytes) {
            Ok(taken) if taken == bytes.len() => {}
            short_or_failed => self.exceptions.push((index, short_or_failed)),
        }
    }
}

impl Drop for SendBatch<'_> {
    fn drop(&mut self) {
        // Only after a panic of the iterator is anything left; see point 4 at `SendBatch`.
        if self.queued > 0 {
            self.finish();
        }
    }
}

fn read_completion(entry: &cqueue::Entry) -> Completion {
    let token = Token::from_user_data(entry.user_data());
    let (mut result, mut socket) = (u32::try_from(entry.result()).map_err(|_| Errno(-entry.result())), None);
    if let (Some(Op::Accept), Ok(number)) = (token.op(), result) {
        // SAFETY: needed to give the accepted descriptor an owner. Sound: only accepts without a registered-file table carry
        // Op::Accept, so the result is a descriptor that the kernel has just opened; each completion is read once, because
        // reading advances the queue's head.
        socket = Some(Socket::from(unsafe { OwnedFd::from_raw_fd(number as i32) }));
        result = Ok(0);
    }
    Completion { token, result, more: cqueue::more(entry.flags()), socket }
}

/// Ends the process: going on would leave the kernel with addresses of memory that is about to be reused.
#[allow(clippy::print_stderr, reason = "the last words of a process that cannot go on")]
fn fatal(what: &str, errno: Option<Errno>) -> ! {
    match errno {
        Some(errno) => eprintln!("fatal: {what}: {errno}"),
        None => eprintln!("fatal: {what}"),
    }
    std::process::abort()
}
