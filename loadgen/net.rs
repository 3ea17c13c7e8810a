//! Sockets, epoll, clock and process settings: the only file that talks to the kernel about connections.
//!
//! In: addresses, descriptors, bytes. Out: descriptors, byte counts, readiness events.
//! Invariant: no call here waits, except [`Poll::wait`] and [`nap`].
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use rustix::process::{Resource, Rlimit};
use rustix::time::{ClockId, Timespec, clock_gettime};

/// Readiness events taken per wait.
pub const EVENTS_MAX: usize = 1024;
/// Descriptors of a worker that are not connections: pipes, epoll, what the runtime opens.
pub const RESERVED_FILES: u64 = 200;

/// Monotonic clock in ns; the same in every process of a run.
#[inline]
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// Pauses the thread.
pub fn nap(microseconds: u64) {
    std::thread::sleep(Duration::from_micros(microseconds));
}

/// Pins the calling thread to a core.
pub fn pin_to_core(core: usize) -> Result<(), String> {
    if core >= rustix::thread::CpuSet::MAX_CPU {
        return Err(format!("--cpu {core}: no such core"));
    }
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set).map_err(|error| format!("--cpu {core}: {error}"))
}

/// Raises the soft open-file limit to the hard one; returns how many connections a process may hold.
pub fn raise_open_file_limit() -> u32 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(1 << 20);
    let raised = Rlimit { current: Some(hard), maximum: limit.maximum };
    let usable = match rustix::process::setrlimit(Resource::Nofile, raised) {
        Ok(()) => hard,
        Err(_) => limit.current.unwrap_or(hard),
    };
    u32::try_from(usable.saturating_sub(RESERVED_FILES).max(1)).unwrap_or(u32::MAX)
}

/// Source address of connection `number`: addresses from 127.16.0.1 upwards, `per_address` connections each, so that
/// ports suffice and limits per address are not met. None (any address) towards a server that is not on loopback.
pub fn source_address(target: SocketAddr, number: u64, per_address: u32) -> Option<SocketAddr> {
    /// Host parts 1..=250 of each /24, so that no address ends in .0 or .255.
    const HOSTS: u64 = 250;
    match target.ip() {
        IpAddr::V4(ip) if ip.is_loopback() && per_address > 0 => {
            let index = number / u64::from(per_address);
            let (subnet, host) = (index / HOSTS % (239 * 256), index % HOSTS + 1);
            let address = Ipv4Addr::new(127, 16 + (subnet / 256) as u8, (subnet % 256) as u8, host as u8);
            Some(SocketAddr::V4(SocketAddrV4::new(address, 0)))
        }
        _ => None,
    }
}

/// Begins a connection; it may not be established yet. Closing it resets it, so that ports are free at once.
pub fn connect(target: SocketAddr, source: Option<SocketAddr>, receive_buffer_bytes: u32) -> Result<OwnedFd, Errno> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
    if receive_buffer_bytes > 0 {
        sockopt::set_socket_recv_buffer_size(&socket, receive_buffer_bytes as usize)?;
    }
    if let Some(source) = source {
        rustix::net::bind(&socket, &source)?;
    }
    match rustix::net::connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// Bytes received without waiting: None when there are none, 0 when the peer has finished.
#[inline]
pub fn receive(socket: impl AsFd, into: &mut [u8]) -> Result<Option<usize>, Errno> {
    match rustix::net::recv(socket, into, RecvFlags::DONTWAIT) {
        Ok((count, _)) => Ok(Some(count)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Bytes taken without waiting; 0 when the socket takes none now or is not connected yet.
pub fn send(socket: impl AsFd, bytes: &[u8]) -> Result<usize, Errno> {
    match rustix::net::send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(count) => Ok(count),
        Err(Errno::AGAIN | Errno::INTR | Errno::NOTCONN) => Ok(0),
        Err(error) => Err(error),
    }
}

/// What a descriptor is ready for.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// The number it was added with.
    pub token: u64,
    /// Bytes, an end or an error wait.
    pub readable: bool,
    /// There is room to send.
    pub writable: bool,
}

/// A level-triggered epoll.
pub struct Poll {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poll {
    /// An empty set.
    pub fn new() -> Result<Poll, Errno> {
        Ok(Poll { epoll: epoll::create(CreateFlags::CLOEXEC)?, events: Vec::with_capacity(EVENTS_MAX) })
    }

    /// Watches a descriptor for reading, and for writing if asked.
    pub fn add(&self, socket: impl AsFd, token: u64, writable: bool) -> Result<(), Errno> {
        epoll::add(&self.epoll, socket, EventData::new_u64(token), interest(writable))
    }

    /// Changes whether it is watched for writing.
    pub fn change(&self, socket: impl AsFd, token: u64, writable: bool) -> Result<(), Errno> {
        epoll::modify(&self.epoll, socket, EventData::new_u64(token), interest(writable))
    }

    /// Waits up to `timeout_us` and replaces `ready` by what is ready, at most [`EVENTS_MAX`].
    pub fn wait(&mut self, timeout_us: u64, ready: &mut Vec<Ready>) -> Result<(), Errno> {
        let timeout = Timespec {
            tv_sec: (timeout_us / 1_000_000).cast_signed(),
            tv_nsec: (timeout_us % 1_000_000 * 1000).cast_signed(),
        };
        self.events.clear();
        ready.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        for event in &self.events {
            let flags = event.flags;
            ready.push(Ready {
                token: event.data.u64(),
                readable: flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR | EventFlags::RDHUP),
                writable: flags.contains(EventFlags::OUT),
            });
        }
        Ok(())
    }
}

fn interest(writable: bool) -> EventFlags {
    if writable { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_addresses_spread_over_loopback() {
        let target: SocketAddr = "127.0.0.1:8000".parse().expect("an address");
        let address = |number| source_address(target, number, 1000).expect("loopback").ip().to_string();
        assert_eq!(address(0), "127.16.0.1");
        assert_eq!(address(999), "127.16.0.1");
        assert_eq!(address(1000), "127.16.0.2");
        assert_eq!(address(250_000), "127.16.1.1");
        assert_eq!(address(2_000_000), "127.16.8.1");
        let elsewhere: SocketAddr = "192.0.2.1:80".parse().expect("an address");
        assert_eq!(source_address(elsewhere, 5, 1000), None);
    }
}
