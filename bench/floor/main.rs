//! The floor: a bare WebSocket upgrade, then the kernel's own send loop. What any gateway on this kernel pays at least.
//!
//! In: WebSocket clients on one listener. A connection whose path ends in `/publish` is a publisher; every other one is
//! a subscriber and is never read again after its upgrade. Out: each message of a publisher, as one unmasked server
//! frame, to every subscriber.
//!
//! ```text
//! publisher ── message ──> frame ──> SEND entries, 256 per submission ──> every subscriber
//! ```
//!
//! On purpose there is nothing else: no state per connection but its descriptor, no pings, no channels, no queues. A
//! subscriber that does not take a whole write is closed and counted, since its stream would be cut inside a frame.
//!
//! Invariants: a descriptor has at most one operation in flight outside a broadcast, and is closed only when it has
//! none; the bytes of a broadcast outlive it, since every SEND carries MSG_DONTWAIT and is over when its submission
//! returns.
use std::collections::HashMap;
use std::io::{self, Write};
use std::mem;
use std::net::SocketAddrV4;
use std::os::fd::RawFd;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use ringway_wire::frame::{Opcode, decode_header, write_server_header};
use ringway_wire::mask::unmask;
use ringway_wire::upgrade::{find_head_end, parse_request, write_accept};

/// Longest upgrade request that is waited for, in bytes.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Read size for publishers, in bytes: what waits behind a running broadcast is taken in one turn.
const READ_BYTES: usize = 256 * 1024;
/// Entries of the completion queue; a storm of accepts fits.
const COMPLETION_ENTRIES: u32 = 16 * 1024;
/// Length of the accept queue.
const LISTEN_BACKLOG: i32 = 65_535;

/// How a broadcast leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// SEND entries on the ring, submitted in batches.
    Ring,
    /// One send() call per subscriber.
    Send,
}

#[derive(Parser, Debug)]
#[command(name = "ringway-floor", about = "The kernel's own price of a WebSocket broadcast", version)]
struct Options {
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8100")]
    listen: SocketAddrV4,
    /// Core to pin the only thread to.
    #[arg(long)]
    cpu: Option<usize>,
    /// How a broadcast leaves.
    #[arg(long, value_enum, default_value = "ring")]
    mode: Mode,
    /// SEND entries per submission.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,
    /// Messages that arrived together go to each subscriber in one write.
    #[arg(long)]
    frames_joined: bool,
    /// SO_SNDBUF of the listener, inherited by its connections, in bytes; 0 leaves the kernel's default.
    #[arg(long, default_value_t = 16_384)]
    send_buffer_bytes: i32,
    /// SO_RCVBUF of the listener, in bytes; 0 leaves the kernel's default.
    #[arg(long, default_value_t = 16_384)]
    receive_buffer_bytes: i32,
}

/// What a completion belongs to, kept in the upper half of its user data; the descriptor is the lower half.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Kind {
    Accept = 1,
    Handshake = 2,
    Publisher = 3,
    Send = 4,
}

fn user_data(kind: Kind, fd: RawFd) -> u64 {
    (kind as u64) << 32 | u64::from(fd.cast_unsigned())
}

/// One completion, taken out of the ring before anything is done about it.
struct Completion {
    user_data: u64,
    result: i32,
    more: bool,
}

/// All state of the program.
struct Floor {
    options: Options,
    ring: IoUring,
    listener: RawFd,
    /// Upgraded connections that get every message.
    subscribers: Vec<RawFd>,
    /// Upgrade requests, and publishers' messages, of which only a part has arrived.
    partial: HashMap<RawFd, Vec<u8>>,
    /// Completions that arrived while a broadcast was submitted.
    waiting: Vec<Completion>,
    /// Subscribers that failed in the running broadcast.
    failed: Vec<RawFd>,
    scratch: Vec<u8>,
    /// Subscribers that were closed because they did not take a whole write.
    short_writes: u64,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match Floor::start(options).and_then(|mut floor| floor.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringway-floor: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Floor {
    /// Pins, listens, makes the ring, prints the address.
    fn start(options: Options) -> io::Result<Floor> {
        if let Some(cpu) = options.cpu {
            pin_to_core(cpu)?;
        }
        raise_open_file_limit();
        let (listener, port) = listen(&options)?;
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(COMPLETION_ENTRIES)
            .build(options.batch.max(64).next_power_of_two())?;
        let mut stdout = io::stdout();
        writeln!(stdout, "ringway-floor ready {}:{port} pid={}", options.listen.ip(), std::process::id())?;
        stdout.flush()?;
        Ok(Floor {
            options,
            ring,
            listener,
            subscribers: Vec::new(),
            partial: HashMap::new(),
            waiting: Vec::new(),
            failed: Vec::new(),
            scratch: vec![0; READ_BYTES],
            short_writes: 0,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        self.arm_accept()?;
        loop {
            if self.waiting.is_empty() {
                match self.ring.submit_and_wait(1) {
                    Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
                    other => other?,
                };
            }
            self.reap();
            for completion in mem::take(&mut self.waiting) {
                self.take(&completion)?;
            }
        }
    }

    /// Moves completions out of the ring; failed sends go to `failed`, the rest to `waiting`.
    fn reap(&mut self) {
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
            _ => self.published(fd),
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
        let publisher = request.path.ends_with("/publish");
        if send(fd, &answer) != Ok(answer.len()) {
            self.close(fd);
            return Ok(());
        }
        if publisher {
            let rest = head.split_off(end);
            self.partial.insert(fd, rest);
            return self.arm_read(fd, Kind::Publisher);
        }
        self.subscribers.push(fd);
        Ok(())
    }

    /// Takes whole messages of a publisher, frames them for clients and broadcasts them.
    fn published(&mut self, fd: RawFd) -> io::Result<()> {
        let count = receive(fd, &mut self.scratch);
        let mut bytes = self.partial.remove(&fd).unwrap_or_default();
        let Some(count) = count else {
            self.close(fd);
            return Ok(());
        };
        bytes.extend_from_slice(&self.scratch[..count]);
        let (mut frames, mut at) = (Vec::new(), 0);
        loop {
            let Ok(header) = decode_header(&bytes[at..]) else {
                self.close(fd);
                return Ok(());
            };
            let Some(header) = header else { break };
            let start = at + header.header_len;
            let payload_len = usize::try_from(header.payload_len).unwrap_or(usize::MAX);
            let Some(end) = start.checked_add(payload_len).filter(|end| *end <= bytes.len()) else { break };
            if let Some(key) = header.mask {
                unmask(&mut bytes[start..end], key);
            }
            if header.opcode == Opcode::Close {
                self.close(fd);
                return Ok(());
            }
            if !header.opcode.is_control() {
                write_server_header(&mut frames, header.opcode, payload_len);
                frames.extend_from_slice(&bytes[start..end]);
                if !self.options.frames_joined {
                    self.broadcast(&frames)?;
                    frames.clear();
                }
            }
            at = end;
        }
        if !frames.is_empty() {
            self.broadcast(&frames)?;
        }
        bytes.drain(..at);
        self.partial.insert(fd, bytes);
        self.arm_read(fd, Kind::Publisher)
    }

    /// Sends `bytes` to every subscriber; returns when the kernel is done with them.
    fn broadcast(&mut self, bytes: &[u8]) -> io::Result<()> {
        let subscribers = mem::take(&mut self.subscribers);
        let sent = match self.options.mode {
            Mode::Send => {
                for &fd in &subscribers {
                    match send(fd, bytes) {
                        Ok(count) if count == bytes.len() => {}
                        outcome => {
                            self.short_writes += u64::from(matches!(outcome, Ok(_) | Err(libc::EAGAIN)));
                            self.failed.push(fd);
                        }
                    }
                }
                Ok(())
            }
            Mode::Ring => self.broadcast_on_ring(&subscribers, bytes),
        };
        self.subscribers = subscribers;
        if !self.failed.is_empty() {
            self.drop_failed();
        }
        sent
    }

    fn broadcast_on_ring(&mut self, subscribers: &[RawFd], bytes: &[u8]) -> io::Result<()> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let length = u32::try_from(bytes.len()).map_err(|_| io::Error::other("a broadcast of 4 GiB"))?;
        for batch in subscribers.chunks(self.options.batch as usize) {
            for &fd in batch {
                let entry = opcode::Send::new(types::Fd(fd), bytes.as_ptr(), length)
                    .flags(flags)
                    .build()
                    .flags(squeue::Flags::SKIP_SUCCESS)
                    .user_data(user_data(Kind::Send, fd));
                self.push(&entry)?;
            }
            self.submit_all()?;
            self.reap();
        }
        Ok(())
    }

    /// Submits until the queue is empty: no entry that points into a broadcast may outlive it.
    fn submit_all(&mut self) -> io::Result<()> {
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

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: needed because the crate cannot know what an entry points to. Poll and accept entries point to
            // nothing; a SEND entry points to bytes that `broadcast` borrows until `submit_all` has emptied the queue,
            // and MSG_DONTWAIT makes the kernel finish with them inside that call.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.submit_all()?;
        }
    }

    fn arm_accept(&mut self) -> io::Result<()> {
        let entry = opcode::AcceptMulti::new(types::Fd(self.listener))
            .flags(libc::SOCK_CLOEXEC)
            .build()
            .user_data(user_data(Kind::Accept, self.listener));
        self.push(&entry)
    }

    fn arm_read(&mut self, fd: RawFd, kind: Kind) -> io::Result<()> {
        let entry = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).build().user_data(user_data(kind, fd));
        self.push(&entry)
    }

    fn close(&mut self, fd: RawFd) {
        self.partial.remove(&fd);
        close(fd);
    }

    fn drop_failed(&mut self) {
        let mut failed = mem::take(&mut self.failed);
        failed.sort_unstable();
        failed.dedup();
        self.subscribers.retain(|fd| failed.binary_search(fd).is_err());
        for &fd in &failed {
            close(fd);
        }
        eprintln!("ringway-floor: {} subscribers closed; short writes so far: {}", failed.len(), self.short_writes);
    }
}

fn fd_of(user_data: u64) -> RawFd {
    (user_data as u32).cast_signed()
}

/// Bytes received without waiting; None when the peer is gone.
fn receive(fd: RawFd, into: &mut [u8]) -> Option<usize> {
    // SAFETY: recv is not in std for a bare descriptor; `into` is valid for writes of its length during the call.
    let count = unsafe { libc::recv(fd, into.as_mut_ptr().cast(), into.len(), libc::MSG_DONTWAIT) };
    match usize::try_from(count) {
        Ok(0) => None,
        Ok(count) => Some(count),
        Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => Some(0),
        Err(_) => None,
    }
}

/// Bytes taken without waiting, or the errno.
fn send(fd: RawFd, bytes: &[u8]) -> Result<usize, i32> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: send is not in std for a bare descriptor; `bytes` is valid for reads of its length during the call.
    let count = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

fn close(fd: RawFd) {
    // SAFETY: descriptors are bare numbers here to keep the state at four bytes; each is closed once, when it has left
    // every list and has no operation in flight.
    unsafe { libc::close(fd) };
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn set_option(fd: RawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: std has no socket buffer options; the pointer and the length describe `value`, which outlives the call.
    check(unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), size_of::<i32>() as u32) })
}

/// A listening socket with the options Ringway gives its own; accepted connections inherit them.
fn listen(options: &Options) -> io::Result<(RawFd, u16)> {
    // SAFETY: std cannot set options before listen(); the call takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    if options.send_buffer_bytes > 0 {
        set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, options.send_buffer_bytes)?;
    }
    if options.receive_buffer_bytes > 0 {
        set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, options.receive_buffer_bytes)?;
    }
    let mut address = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: options.listen.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*options.listen.ip()).to_be() },
        sin_zero: [0; 8],
    };
    let mut length = size_of_val(&address) as u32;
    // SAFETY: bind and getsockname take the address by pointer; it and its length are locals that outlive the calls.
    unsafe {
        check(libc::bind(fd, (&raw const address).cast(), length))?;
        check(libc::listen(fd, LISTEN_BACKLOG))?;
        check(libc::getsockname(fd, (&raw mut address).cast(), &raw mut length))?;
    }
    Ok((fd, u16::from_be(address.sin_port)))
}

fn pin_to_core(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::other(format!("--cpu {cpu}: no such core")));
    }
    // SAFETY: std cannot pin; the set is a local of plain integers for which zero is valid, and `cpu` is inside it.
    check(unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    })
}

/// Takes what the hard limit allows; more connections than that are refused by accept, loudly.
fn raise_open_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: std cannot read limits; the pointer is to a local that outlives both calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}
