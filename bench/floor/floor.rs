//! One thread of the floor: its ring, its connections, its turn.
//!
//! In: connections of its own listener, bytes of upgrades and publishers, batches of other threads. Out: upgrade answers;
//! batches for `send` and for the inboxes of the other threads.
//!
//! Invariants: a descriptor has at most one operation in flight outside a send loop, and is closed only when it has none;
//! each batch of a publisher reaches every thread once, in the order of that publisher.
use std::collections::HashMap;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Arc;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use ringway_sys::{Inbox, ListenOptions, Listener, thread};
use ringway_wire::upgrade::{find_head_end, parse_request, write_accept};

use crate::Options;
use crate::batch::{Audience, Batch};
use crate::descriptor::{close, receive, send};

/// Longest upgrade request that is waited for, in bytes.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Read size for publishers, in bytes: what waits behind a running broadcast is taken in one turn.
const READ_BYTES: usize = 256 * 1024;
/// Entries of the completion queue; a storm of accepts fits.
const COMPLETION_ENTRIES: u32 = 16 * 1024;
/// Length of the accept queue; the kernel bounds it by net.core.somaxconn.
const LISTEN_BACKLOG: u32 = 65_535;
/// Subscribers that direct messages may name, from 0.
const NUMBERS_MAX: usize = 1 << 20;
/// A number without a subscriber in this thread.
pub(crate) const NOBODY: RawFd = -1;
/// Ends of paths, see the program's header.
const PUBLISHER: &str = "/publish";
const DIRECT_PUBLISHER: &str = "/direct/publish";
const DIRECT: &str = "/direct/";

/// What a completion belongs to, kept in the upper half of its user data; the descriptor is the lower half.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    Accept = 1,
    Handshake = 2,
    Publisher = 3,
    DirectPublisher = 4,
    Wake = 5,
    Send = 6,
}

pub(crate) fn user_data(kind: Kind, fd: RawFd) -> u64 {
    (kind as u64) << 32 | u64::from(fd.cast_unsigned())
}

fn fd_of(user_data: u64) -> RawFd {
    (user_data as u32).cast_signed()
}

/// One completion, taken out of the ring before anything is done about it.
struct Completion {
    user_data: u64,
    result: i32,
    more: bool,
}

/// All state of a thread.
pub(crate) struct Floor {
    pub(crate) options: Options,
    index: usize,
    ring: IoUring,
    listener: Listener,
    inboxes: Arc<[Arc<Inbox<Arc<Batch>>>]>,
    /// Upgraded connections that get every message.
    pub(crate) subscribers: Vec<RawFd>,
    /// Upgraded connections that get what names them, by number.
    pub(crate) numbered: Vec<RawFd>,
    /// Upgrade requests, and publishers' messages, of which only a part has arrived.
    partial: HashMap<RawFd, Vec<u8>>,
    /// Completions that arrived while a batch was submitted.
    waiting: Vec<Completion>,
    /// Subscribers that failed in the running send loop.
    pub(crate) failed: Vec<RawFd>,
    scratch: Vec<u8>,
    /// Subscribers that were closed because they did not take a whole write.
    pub(crate) short_writes: u64,
    /// Batches that a full inbox did not take.
    batches_lost: u64,
}

impl Floor {
    /// Pins the calling thread, splits its file table, makes the ring and listens; also returns the address.
    pub(crate) fn start(
        index: usize,
        options: Options,
        inboxes: Arc<[Arc<Inbox<Arc<Batch>>>]>,
    ) -> io::Result<(Floor, SocketAddr)> {
        if let Some(&core) = options.cpu.get(index % options.cpu.len().max(1)) {
            thread::pin_to_core(core).map_err(|error| io::Error::other(format!("--cpu {core}: {error}")))?;
        }
        thread::unshare_file_table().map_err(io::Error::other)?;
        let listener = Listener::bind(&ListenOptions {
            address: options.listen,
            backlog: LISTEN_BACKLOG,
            reuse_port: true,
            send_buffer_bytes: options.send_buffer_bytes,
            receive_buffer_bytes: options.receive_buffer_bytes,
        });
        let listener = listener.map_err(|error| io::Error::other(format!("--listen {}: {error}", options.listen)))?;
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(COMPLETION_ENTRIES)
            .build(options.batch.max(64).next_power_of_two())?;
        let address = listener.local_addr();
        let floor = Floor {
            options,
            index,
            ring,
            listener,
            inboxes,
            subscribers: Vec::new(),
            numbered: Vec::new(),
            partial: HashMap::new(),
            waiting: Vec::new(),
            failed: Vec::new(),
            scratch: vec![0; READ_BYTES],
            short_writes: 0,
            batches_lost: 0,
        };
        Ok((floor, address))
    }

    pub(crate) fn run(&mut self) -> io::Result<()> {
        let inboxes = Arc::clone(&self.inboxes);
        let inbox = &inboxes[self.index];
        self.arm_accept()?;
        self.arm_wake()?;
        loop {
            let sleep = inbox.prepare_sleep() && self.waiting.is_empty();
            if sleep {
                match self.ring.submit_and_wait(1) {
                    Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                    other => drop(other?),
                }
            }
            inbox.awake();
            self.reap();
            for completion in mem::take(&mut self.waiting) {
                self.take(&completion)?;
            }
            while let Some(batch) = inbox.pop() {
                self.deliver(&batch)?;
            }
        }
    }

    /// Moves completions out of the ring; failed sends go to `failed`, the rest to `waiting`.
    pub(crate) fn reap(&mut self) {
        for entry in self.ring.completion() {
            let (user_data, result) = (entry.user_data(), entry.result());
            if user_data >> 32 == Kind::Send as u64 {
                // SKIP_SUCCESS: only what went wrong, or was taken in part, has a completion.
                self.failed.push(fd_of(user_data));
                self.short_writes += u64::from(result >= 0 || result == -libc::EAGAIN);
            } else {
                self.waiting.push(Completion { user_data, result, more: cqueue::more(entry.flags()) });
            }
        }
    }

    fn take(&mut self, completion: &Completion) -> io::Result<()> {
        let fd = fd_of(completion.user_data);
        match completion.user_data >> 32 {
            kind if kind == Kind::Accept as u64 => {
                if completion.result >= 0 {
                    self.arm_read(completion.result, Kind::Handshake)?;
                } else {
                    eprintln!("ringway-floor: accept: {}", io::Error::from_raw_os_error(-completion.result));
                }
                if completion.more { Ok(()) } else { self.arm_accept() }
            }
            kind if kind == Kind::Handshake as u64 => self.handshake(fd),
            kind if kind == Kind::Wake as u64 => self.arm_wake(),
            kind if kind == Kind::DirectPublisher as u64 => self.published(fd, Audience::Numbered),
            _ => self.published(fd, Audience::Everybody),
        }
    }

    /// Reads more of an upgrade request and answers it once it is whole.
    fn handshake(&mut self, fd: RawFd) -> io::Result<()> {
        let Some(count) = receive(fd, &mut self.scratch[..HEAD_BYTES_MAX]) else {
            self.close(fd);
            return Ok(());
        };
        let mut head = self.partial.remove(&fd).unwrap_or_default();
        head.extend_from_slice(&self.scratch[..count]);
        let Some(end) = find_head_end(&head, 0) else {
            if head.len() > HEAD_BYTES_MAX {
                self.close(fd);
                return Ok(());
            }
            self.partial.insert(fd, head);
            return self.arm_read(fd, Kind::Handshake);
        };
        let Ok(request) = parse_request(&head[..end]) else {
            self.close(fd);
            return Ok(());
        };
        let mut answer = Vec::with_capacity(256);
        write_accept(&mut answer, &request, None);
        let publisher = match request.path {
            path if path.ends_with(DIRECT_PUBLISHER) => Some(Kind::DirectPublisher),
            path if path.ends_with(PUBLISHER) => Some(Kind::Publisher),
            _ => None,
        };
        let number = request.path.rsplit_once(DIRECT).and_then(|(_, number)| number.parse::<usize>().ok());
        if number.is_some_and(|number| number >= NUMBERS_MAX) || send(fd, &answer) != Ok(answer.len()) {
            self.close(fd);
            return Ok(());
        }
        match (publisher, number) {
            (Some(kind), _) => {
                let rest = head.split_off(end);
                self.partial.insert(fd, rest);
                return self.arm_read(fd, kind);
            }
            (None, Some(number)) => {
                if number >= self.numbered.len() {
                    self.numbered.resize(number + 1, NOBODY);
                }
                self.numbered[number] = fd;
            }
            (None, None) => self.subscribers.push(fd),
        }
        Ok(())
    }

    /// Takes whole messages of a publisher and sends them, here and in the other threads.
    fn published(&mut self, fd: RawFd, audience: Audience) -> io::Result<()> {
        let count = receive(fd, &mut self.scratch);
        let mut bytes = self.partial.remove(&fd).unwrap_or_default();
        let Some(count) = count else {
            self.close(fd);
            return Ok(());
        };
        bytes.extend_from_slice(&self.scratch[..count]);
        let taken = Batch::take(&mut bytes, audience, self.options.frames_joined);
        if !taken.batch.is_empty() {
            let batch = Arc::new(taken.batch);
            // First the others, so that all of them send at once.
            self.tell_others(&batch);
            self.deliver(&batch)?;
        }
        if taken.over {
            self.close(fd);
            return Ok(());
        }
        bytes.drain(..taken.used);
        self.partial.insert(fd, bytes);
        let kind = if audience == Audience::Numbered { Kind::DirectPublisher } else { Kind::Publisher };
        self.arm_read(fd, kind)
    }

    /// Gives a batch to every other thread, each woken at most once for it.
    fn tell_others(&mut self, batch: &Arc<Batch>) {
        for (index, inbox) in self.inboxes.iter().enumerate() {
            if index == self.index {
                continue;
            }
            if inbox.push(Arc::clone(batch)).is_err() {
                self.batches_lost += 1;
                eprintln!("ringway-floor: thread {index} takes no more; batches lost so far: {}", self.batches_lost);
            }
            inbox.wake_if_asleep();
        }
    }

    /// Submits until the queue is empty: no entry that points into a batch may outlive it.
    pub(crate) fn submit_all(&mut self) -> io::Result<()> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {
                    self.reap();
                }
                other => drop(other?),
            }
        }
        Ok(())
    }

    pub(crate) fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: needed because the crate cannot know what an entry points to. Poll and accept entries point to
            // nothing; a SEND entry points to bytes that `send_on_ring` borrows until `submit_all` has emptied the queue,
            // and MSG_DONTWAIT makes the kernel finish with them inside that call.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.submit_all()?;
        }
    }

    fn arm_accept(&mut self) -> io::Result<()> {
        let listener = self.listener.as_raw_fd();
        let entry = opcode::AcceptMulti::new(types::Fd(listener))
            .flags(libc::SOCK_CLOEXEC)
            .build()
            .user_data(user_data(Kind::Accept, listener));
        self.push(&entry)
    }

    fn arm_wake(&mut self) -> io::Result<()> {
        self.arm_read(self.inboxes[self.index].as_raw_fd(), Kind::Wake)
    }

    fn arm_read(&mut self, fd: RawFd, kind: Kind) -> io::Result<()> {
        let entry = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).build().user_data(user_data(kind, fd));
        self.push(&entry)
    }

    fn close(&mut self, fd: RawFd) {
        self.partial.remove(&fd);
        close(fd);
    }
}
