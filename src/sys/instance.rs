//! Who else serves this address: an instance lock, and a look at who listens on a port.
//!
//! In: the address that a process is about to serve. Out: the lock, or the holder's pid and name. SO_REUSEPORT would let a
//! second gateway of the same user join the port silently and take a share of the connections; the lock refuses it.
//!
//! The lock is a listening abstract Unix socket called `ringway-instance/<port>/<ip>` (`any` for a wildcard address). It
//! leaves no file, ends with the process however that ends, and is counted per network namespace, as ports are.
//! Invariant: two processes that could receive each other's connections never both hold a lock. Each binds its own name
//! first and looks for conflicting names afterwards, so of two that start together at least one sees the other.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener};
use std::{fmt, fs};

use crate::op::Errno;
use crate::socket::{new_socket, try_bind};

const NAME_PREFIX: &str = "ringway-instance";
/// `__SO_ACCEPTCON` as `/proc/net/unix` prints it: the socket listens.
const LISTENING_FLAGS: &str = "00010000";
/// TCP_LISTEN as `/proc/net/tcp` prints it.
const LISTENING_STATE: &str = "0A";

/// A process that holds an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process id as this process sees it; 0 if it could not be found out (another user's or container's process).
    pub pid: u32,
    /// Its name (`comm`); empty if it could not be found out.
    pub name: String,
}

impl Holder {
    fn of_pid(pid: u32) -> Holder {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Holder { pid, name: name.trim_end().to_owned() }
    }

    fn unknown() -> Holder {
        Holder { pid: 0, name: String::new() }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.pid, self.name.as_str()) {
            (0, _) => f.write_str("a process that this user may not see"),
            (pid, "") => write!(f, "process {pid}"),
            (pid, name) => write!(f, "process {pid} ({name})"),
        }
    }
}

/// Held by the one process that serves an address; released when dropped or when the process ends. A thread that splits its
/// file table takes a copy along, so a running shard keeps the lock.
#[derive(Debug)]
pub struct InstanceLock {
    _listener: UnixListener,
}

impl InstanceLock {
    /// Takes the lock for `address`, or tells who has it or one that overlaps (a wildcard address overlaps every address of
    /// its port). Port 0 is always free. A planned hand-over between two processes does not call this.
    pub fn acquire(address: SocketAddr) -> Result<InstanceLock, Holder> {
        let port = address.port();
        let ip = address.ip().to_canonical();
        let own = lock_name(port, ip);
        // Port 0 names no port yet: an unnamed address (the kernel chooses one) makes a lock that conflicts with nothing.
        let unix_address = if port == 0 {
            UnixAddress::from_pathname("").map_err(|_| Holder::unknown())?
        } else {
            UnixAddress::from_abstract_name(&own).map_err(|_| Holder::unknown())?
        };
        let listener = match UnixListener::bind_addr(&unix_address) {
            Ok(listener) => listener,
            Err(_) => return Err(holder_of_lock(&own).unwrap_or_else(Holder::unknown)),
        };
        if port != 0
            && let Some(other) = conflicting_lock(port, ip, &own)
        {
            return Err(holder_of_lock(&other).unwrap_or_else(Holder::unknown));
        }
        Ok(InstanceLock { _listener: listener })
    }
}

fn lock_name(port: u16, ip: IpAddr) -> String {
    if ip.is_unspecified() { format!("{NAME_PREFIX}/{port}/any") } else { format!("{NAME_PREFIX}/{port}/{ip}") }
}

/// Lines of `/proc/net/unix` for listening abstract sockets: (inode, name).
fn abstract_listeners() -> Vec<(u64, String)> {
    let table = fs::read("/proc/thread-self/net/unix").unwrap_or_default();
    let table = String::from_utf8_lossy(&table);
    let row = |line: &str| {
        // Num RefCount Protocol Flags Type St Inode Path
        let mut fields = line.split_whitespace();
        let flags = fields.nth(3)?;
        let inode = fields.nth(2)?.parse().ok()?;
        let name = fields.next()?.strip_prefix('@')?;
        (flags == LISTENING_FLAGS).then(|| (inode, name.to_owned()))
    };
    table.lines().filter_map(row).collect()
}

/// A lock of the same port on an address that overlaps `ip`, other than `own`.
fn conflicting_lock(port: u16, ip: IpAddr, own: &str) -> Option<String> {
    let same_port = format!("{NAME_PREFIX}/{port}/");
    let any = format!("{same_port}any");
    let overlaps = |name: &str| name.starts_with(&same_port) && (ip.is_unspecified() || name == any);
    abstract_listeners().into_iter().map(|(_, name)| name).find(|name| name != own && overlaps(name))
}

/// Asks the kernel who listens on the abstract name; works across users. Falls back to `/proc` when the listener's backlog
/// is full of others who asked.
fn holder_of_lock(name: &str) -> Option<Holder> {
    if let Ok(pid) = peer_pid(name)
        && pid != 0
    {
        return Some(Holder::of_pid(pid));
    }
    let inode = abstract_listeners().into_iter().find(|(_, other)| other == name)?.0;
    holder_of_inode(inode)
}

/// Connects to the abstract name without waiting and reads the credentials that its owner had when it began to listen.
fn peer_pid(name: &str) -> Result<u32, Errno> {
    let socket = new_socket(libc::AF_UNIX, libc::SOCK_STREAM)?;
    let mut address = libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; 108] };
    // An abstract name starts behind a zero byte and has no closing zero.
    let path = address.sun_path.get_mut(1..=name.len()).ok_or(Errno(libc::EINVAL))?;
    for (to, from) in path.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let bytes = std::mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len();
    // SAFETY: needed because std's connect would wait if the backlog is full. Sound: `address` is a live, fully initialised
    // sockaddr_un and `bytes`, checked by the slice above, is within it.
    let result =
        unsafe { libc::connect(socket.as_raw_fd(), std::ptr::from_ref(&address).cast(), bytes as libc::socklen_t) };
    if result != 0 {
        return Err(Errno::last());
    }
    peer_credentials(socket.as_fd()).map(|credentials| credentials.pid as u32)
}

fn peer_credentials(socket: BorrowedFd<'_>) -> Result<libc::ucred, Errno> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut bytes = std::mem::size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: needed because std's peer_cred is unstable. Sound: the kernel writes at most `bytes` bytes, the size of the
    // live local behind the pointer, and any content is a valid `ucred`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            std::ptr::from_mut(&mut credentials).cast(),
            &mut bytes,
        )
    };
    if result == 0 { Ok(credentials) } else { Err(Errno::last()) }
}

/// Whether someone listens on `address` in a way that would refuse us or share connections with us, and who. Binds the
/// address once without SO_REUSEPORT and closes it again; when that is refused, finds the listener through `/proc`.
/// `None`: the address is free, or the refusal has another reason (such as an address that is not of this host).
pub fn port_holder(address: SocketAddr) -> Option<Holder> {
    if address.port() == 0 || try_bind(&address) != Err(Errno(libc::EADDRINUSE)) {
        return None;
    }
    let inode = listener_inode(&address);
    Some(inode.and_then(holder_of_inode).unwrap_or_else(Holder::unknown))
}

fn listener_inode(address: &SocketAddr) -> Option<u64> {
    let wanted = address.ip().to_canonical();
    ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"].iter().find_map(|path| {
        let table = fs::read_to_string(path).unwrap_or_default();
        table.lines().skip(1).find_map(|line| {
            // sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (ip, port) = parse_proc_address(fields.get(1)?)?;
            let ip = ip.to_canonical();
            let overlaps = ip == wanted || ip.is_unspecified() || wanted.is_unspecified();
            let listens = fields.get(3) == Some(&LISTENING_STATE);
            (listens && port == address.port() && overlaps).then(|| fields.get(9)?.parse().ok())?
        })
    })
}

/// `0100007F:1F90`, or 32 digits for IPv6: 32-bit words printed as native integers over bytes in network order.
fn parse_proc_address(text: &str) -> Option<(IpAddr, u16)> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |range| Some(u32::from_str_radix(ip.get(range)?, 16).ok()?.to_ne_bytes());
    let ip = match ip.len() {
        8 => IpAddr::from(word(0..8)?),
        32 => {
            let mut octets = [0u8; 16];
            for (index, part) in octets.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(index * 8..index * 8 + 8)?);
            }
            IpAddr::from(octets)
        }
        _ => return None,
    };
    Some((ip, port))
}

/// The process that has the socket `inode` open, in any thread: threads may have file tables of their own.
fn holder_of_inode(inode: u64) -> Option<Holder> {
    let link = format!("socket:[{inode}]");
    let has_link = |folder: std::path::PathBuf| {
        let files = fs::read_dir(folder).into_iter().flatten().flatten();
        files.into_iter().any(|file| fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == link.as_str()))
    };
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let threads = fs::read_dir(process.path().join("task")).into_iter().flatten().flatten();
        if threads.into_iter().any(|thread| has_link(thread.path().join("fd"))) {
            return Some(Holder::of_pid(pid));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::{ListenOptions, Listener};

    fn listen(address: &str, reuse_port: bool) -> Listener {
        let address = address.parse().expect("address");
        let options = ListenOptions { address, backlog: 8, reuse_port, send_buffer_bytes: 0, receive_buffer_bytes: 0 };
        Listener::bind(&options).expect("listener")
    }

    #[test]
    fn a_listener_is_found_with_its_process_even_if_it_shares_the_port() {
        for (address, wildcard) in [("127.0.0.1:0", "0.0.0.0"), ("[::1]:0", "::")] {
            let listener = listen(address, true);
            let bound = listener.local_addr();
            let holder = port_holder(bound).expect("someone listens");
            assert_eq!(holder.pid, std::process::id());
            assert!(!holder.name.is_empty());
            let wildcard = SocketAddr::new(wildcard.parse().expect("ip"), bound.port());
            assert_eq!(port_holder(wildcard).map(|holder| holder.pid), Some(std::process::id()));
            drop(listener);
            assert_eq!(port_holder(bound), None);
        }
    }

    #[test]
    fn locks_refuse_the_same_address_and_overlaps_and_end_with_their_value() {
        // Locks name ports and open none, so a port number outside the ephemeral use of other tests is enough.
        let at = |text: &str| -> SocketAddr { text.parse().expect("address") };
        let lock = InstanceLock::acquire(at("127.0.0.1:1")).expect("free");
        let refused = InstanceLock::acquire(at("127.0.0.1:1")).expect_err("held");
        assert_eq!(refused.pid, std::process::id());
        assert!(refused.to_string().starts_with("process "), "{refused}");
        assert_eq!(InstanceLock::acquire(at("0.0.0.0:1")).expect_err("overlaps").pid, std::process::id());
        assert_eq!(InstanceLock::acquire(at("[::]:1")).expect_err("overlaps").pid, std::process::id());
        let other = InstanceLock::acquire(at("127.0.0.2:1")).expect("another address is free");
        drop((lock, other));
        let any = InstanceLock::acquire(at("[::]:1")).expect("free again");
        assert!(InstanceLock::acquire(at("127.0.0.1:1")).is_err());
        drop(any);
        let (first, second) = (InstanceLock::acquire(at("127.0.0.1:0")), InstanceLock::acquire(at("127.0.0.1:0")));
        assert!(first.is_ok() && second.is_ok(), "port 0 conflicts with nothing");
    }

    #[test]
    fn addresses_of_proc_net_are_read() {
        let v4 = parse_proc_address(if cfg!(target_endian = "little") { "0100007F:1F90" } else { "7F000001:1F90" });
        assert_eq!(v4, Some(("127.0.0.1".parse().expect("ip"), 8080)));
        assert_eq!(parse_proc_address("00000000000000000000000000000000:0050"), Some(("::".parse().expect("ip"), 80)));
        for bad in ["", ":", "zz:1", "0100007F", "0100007F:xyz", "0100007:1F90"] {
            assert_eq!(parse_proc_address(bad), None, "{bad}");
        }
    }
}
