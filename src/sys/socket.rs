//! Non-blocking TCP sockets, IPv4 and IPv6, with the options that a gateway needs.
//!
//! In: addresses and options; accepted descriptors from `ring.rs`. Out: [`Listener`] and [`Socket`], which the ring watches
//! and on which a shard reads and writes inline. Invariants: each value owns its descriptor alone and closes it once; every
//! socket is non-blocking and close-on-exec; sockets do not change threads, because after
//! [`unshare_file_table`](crate::thread::unshare_file_table) the same number names another file there.

use std::io::{Read, Write};
use std::marker::PhantomData;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::op::Errno;

/// Makes a type stay in its thread: raw pointers are neither `Send` nor `Sync`.
type NotSend = PhantomData<*const ()>;

/// How to listen.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// Address and port; port 0 lets the kernel choose.
    pub address: SocketAddr,
    /// Connections that may wait for acceptance; the kernel bounds it by `net.core.somaxconn`.
    pub backlog: u32,
    /// Several listeners of the same user share the port, the kernel spreads connections over them (SO_REUSEPORT).
    pub reuse_port: bool,
    /// SO_SNDBUF of accepted sockets, which the kernel doubles for its own bookkeeping; 0 leaves its automatic size.
    pub send_buffer_bytes: u32,
    /// SO_RCVBUF of accepted sockets, likewise.
    pub receive_buffer_bytes: u32,
}

/// A listening socket. Accepted sockets inherit TCP_NODELAY and the buffer sizes.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
    _thread: NotSend,
}

impl Listener {
    /// Binds and listens, with SO_REUSEADDR and TCP_NODELAY. Errors: EADDRINUSE, EACCES (port below 1024),
    /// EADDRNOTAVAIL (address not of this host), EMFILE.
    pub fn bind(options: &ListenOptions) -> Result<Listener, Errno> {
        let fd = new_stream_socket(&options.address)?;
        let socket = fd.as_fd();
        set_option(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, &1i32)?;
        if options.reuse_port {
            set_option(socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, &1i32)?;
        }
        set_option(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, &1i32)?;
        set_buffers(socket, options.send_buffer_bytes, options.receive_buffer_bytes)?;
        bind(socket, &options.address)?;
        let backlog = i32::try_from(options.backlog).unwrap_or(i32::MAX);
        // SAFETY: needed because std binds and listens in one step, without our options. Sound: integers only.
        if unsafe { libc::listen(socket.as_raw_fd(), backlog) } != 0 {
            return Err(Errno::last());
        }
        let listener = TcpListener::from(fd);
        let address = listener.local_addr()?;
        Ok(Listener { listener, address, _thread: PhantomData })
    }

    /// The address that was bound, with the port that the kernel chose if 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Accepts one waiting connection by system call, without a ring. Errors: EAGAIN if none waits; EMFILE, ENFILE.
    pub fn accept(&self) -> Result<Socket, Errno> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        Ok(Socket::from(OwnedFd::from(stream)))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

/// Options of an outgoing connection (load generator, tests).
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectOptions {
    /// SO_SNDBUF; 0 leaves the kernel's automatic size.
    pub send_buffer_bytes: u32,
    /// SO_RCVBUF, set before connecting so that it bounds the offered window; 0 leaves the kernel's automatic size.
    pub receive_buffer_bytes: u32,
    /// Close with a reset (SO_LINGER 0): leaves no TIME_WAIT behind, loses unsent data.
    pub reset_on_close: bool,
}

/// A non-blocking TCP connection. Dropping it closes the descriptor; a multishot poll of a ring keeps the connection itself
/// open until that is cancelled (the peer sees no FIN before), so cancel first, drop after the last completion.
#[derive(Debug)]
pub struct Socket {
    // The standard stream is the owner; its reads and writes are recv and send(MSG_NOSIGNAL), and do not wait, because the
    // descriptor is non-blocking.
    stream: TcpStream,
    _thread: NotSend,
}

impl Socket {
    /// Begins to connect to `remote`, optionally from the address `local` (port 0: the kernel chooses the port at connect
    /// time and may use one port for several remotes, IP_BIND_ADDRESS_NO_PORT). Returns at once: the socket becomes writable
    /// when the outcome is known, see [`Socket::connect_outcome`].
    pub fn connect_from(
        local: Option<SocketAddr>,
        remote: SocketAddr,
        options: ConnectOptions,
    ) -> Result<Socket, Errno> {
        let fd = new_stream_socket(&remote)?;
        let socket = fd.as_fd();
        set_option(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, &1i32)?;
        set_buffers(socket, options.send_buffer_bytes, options.receive_buffer_bytes)?;
        if let Some(local) = local {
            // Of level IPPROTO_IP for IPv6 sockets too.
            set_option(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, &1i32)?;
            bind(socket, &local)?;
        }
        // SAFETY: needed because std cannot connect a socket that is bound or non-blocking. Sound: `with_address` passes an
        // address that lives during the call.
        let result =
            with_address(&remote, |address, bytes| unsafe { libc::connect(socket.as_raw_fd(), address, bytes) });
        if result != 0 {
            let errno = Errno::last();
            if errno.0 != libc::EINPROGRESS && errno.0 != libc::EINTR {
                return Err(errno);
            }
        }
        let socket = Socket::from(fd);
        if options.reset_on_close {
            socket.reset_on_close()?;
        }
        Ok(socket)
    }

    /// After a socket of [`Socket::connect_from`] has become writable: whether it is connected. Taking the error clears it.
    /// Errors: the connect error (ECONNREFUSED, ETIMEDOUT …); ENOTCONN while it is still under way.
    pub fn connect_outcome(&self) -> Result<(), Errno> {
        match self.stream.take_error()? {
            Some(error) => Err(Errno::from(error)),
            None => self.stream.peer_addr().map(|_| ()).map_err(Errno::from),
        }
    }

    /// Reads what is there, without waiting. `Ok(0)`: the peer has ended its side (or `buffer` is empty).
    /// Errors: EAGAIN if nothing is there; ECONNRESET, ETIMEDOUT.
    #[inline]
    pub fn recv(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        loop {
            match (&self.stream).read(buffer) {
                Ok(bytes) => return Ok(bytes),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Errno::from(error)),
            }
        }
    }

    /// Writes what fits, without waiting and without SIGPIPE; returns the bytes taken.
    /// Errors: EAGAIN if nothing fits; EPIPE, ECONNRESET.
    #[inline]
    pub fn send(&self, bytes: &[u8]) -> Result<usize, Errno> {
        loop {
            match (&self.stream).write(bytes) {
                Ok(taken) => return Ok(taken),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Errno::from(error)),
            }
        }
    }

    /// Ends our side: the peer reads what was sent, then end of stream. Errors: ENOTCONN if the peer has reset.
    pub fn shutdown_write(&self) -> Result<(), Errno> {
        self.stream.shutdown(Shutdown::Write).map_err(Errno::from)
    }

    /// The peer's address; `None` once the connection is gone.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.stream.peer_addr().ok()
    }

    /// The own address; `None` if the kernel does not tell.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.stream.local_addr().ok()
    }

    /// Makes closing send a reset at once instead of lingering: unsent data is dropped, no TIME_WAIT remains.
    pub fn reset_on_close(&self) -> Result<(), Errno> {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        set_option(self.as_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &linger)
    }

    /// Lets the kernel probe a silent peer: first after `idle_s` seconds, then every `interval_s`, at most `count` times.
    /// Errors: EINVAL for values outside the kernel's range (1..=32767 seconds, 1..=127 probes).
    pub fn set_keepalive(&self, idle_s: u32, interval_s: u32, count: u32) -> Result<(), Errno> {
        set_option(self.as_fd(), libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, &idle_s)?;
        set_option(self.as_fd(), libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, &interval_s)?;
        set_option(self.as_fd(), libc::IPPROTO_TCP, libc::TCP_KEEPCNT, &count)?;
        set_option(self.as_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, &1i32)
    }

    /// Ends the connection with ETIMEDOUT when sent data stays unacknowledged for this long (TCP_USER_TIMEOUT); 0 restores
    /// the kernel's default.
    pub fn set_user_timeout(&self, timeout_ms: u32) -> Result<(), Errno> {
        set_option(self.as_fd(), libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, &timeout_ms)
    }
}

impl From<OwnedFd> for Socket {
    /// Takes over a connected, non-blocking stream socket.
    fn from(fd: OwnedFd) -> Socket {
        Socket { stream: TcpStream::from(fd), _thread: PhantomData }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

fn new_stream_socket(address: &SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    new_socket(family, libc::SOCK_STREAM)
}

/// A new non-blocking, close-on-exec socket.
pub(crate) fn new_socket(family: libc::c_int, kind: libc::c_int) -> Result<OwnedFd, Errno> {
    // SAFETY: needed because std makes no socket without connecting or binding it. Sound: integers only.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(Errno::last());
    }
    // SAFETY: needed to give the new descriptor an owner. Sound: the kernel has just returned it, nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_buffers(socket: BorrowedFd<'_>, send_bytes: u32, receive_bytes: u32) -> Result<(), Errno> {
    for (name, bytes) in [(libc::SO_SNDBUF, send_bytes), (libc::SO_RCVBUF, receive_bytes)] {
        if bytes > 0 {
            set_option(socket, libc::SOL_SOCKET, name, &i32::try_from(bytes).unwrap_or(i32::MAX))?;
        }
    }
    Ok(())
}

/// Binds without listening.
pub(crate) fn bind(socket: BorrowedFd<'_>, address: &SocketAddr) -> Result<(), Errno> {
    // SAFETY: needed because std binds only while making a socket. Sound: `with_address` passes an address that lives during
    // the call, with its true length.
    let result = with_address(address, |address, bytes| unsafe { libc::bind(socket.as_raw_fd(), address, bytes) });
    if result == 0 { Ok(()) } else { Err(Errno::last()) }
}

/// A free port check and tests need a bound socket that does not listen and does not share its port.
pub(crate) fn try_bind(address: &SocketAddr) -> Result<(), Errno> {
    let fd = new_stream_socket(address)?;
    // Without it, connections in TIME_WAIT would count as a holder.
    set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, &1i32)?;
    bind(fd.as_fd(), address)
}

/// Sets a socket option whose C type is `T`.
fn set_option<T: Copy>(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: &T) -> Result<(), Errno> {
    let bytes = std::mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: needed because std sets few of the options. Sound: the kernel reads `bytes` bytes behind a live reference to
    // a `T`; all callers in this file pass integers or `linger`, which have no padding.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), bytes) };
    if result == 0 { Ok(()) } else { Err(Errno::last()) }
}

/// Calls `f` with the C form of `address` and its length; the pointer is valid for the length of the call.
fn with_address(
    address: &SocketAddr,
    f: impl FnOnce(*const libc::sockaddr, libc::socklen_t) -> libc::c_int,
) -> libc::c_int {
    match address {
        SocketAddr::V4(v4) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            f(std::ptr::from_ref(&raw).cast(), std::mem::size_of_val(&raw) as libc::socklen_t)
        }
        SocketAddr::V6(v6) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            f(std::ptr::from_ref(&raw).cast(), std::mem::size_of_val(&raw) as libc::socklen_t)
        }
    }
}
