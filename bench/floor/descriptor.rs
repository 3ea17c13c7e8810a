//! recv, send and close of a bare descriptor: bare, to keep a connection's state at four bytes.
//!
//! In: a number that the calling thread's file table knows. Out: counts, or the errno. Nothing here waits.
use std::io;
use std::os::fd::RawFd;

/// Bytes received without waiting; None when the peer is gone.
pub(crate) fn receive(fd: RawFd, into: &mut [u8]) -> Option<usize> {
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
pub(crate) fn send(fd: RawFd, bytes: &[u8]) -> Result<usize, i32> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: send is not in std for a bare descriptor; `bytes` is valid for reads of its length during the call.
    let count = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

pub(crate) fn close(fd: RawFd) {
    // SAFETY: descriptors are bare numbers here; each is closed once, when it has left every list and has no operation in
    // flight.
    unsafe { libc::close(fd) };
}
