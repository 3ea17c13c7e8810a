//! Sockets without a ring: options, both address families, connecting from a chosen address, every way to end.
//! In: loopback addresses, port 0. Out: assertions.
#![allow(clippy::disallowed_methods, reason = "tests read clocks directly")]

mod common;

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::Instant;

use common::{PATIENCE, listen, listen_at, pair};
use ringway_sys::{ConnectOptions, Errno, ListenOptions, Listener, Socket};

fn retry<T>(mut attempt: impl FnMut() -> Result<T, Errno>, goes_on: impl Fn(Errno) -> bool) -> Result<T, Errno> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Err(errno) if goes_on(errno) && Instant::now() < deadline => std::thread::yield_now(),
            other => return other,
        }
    }
}

#[test]
fn connects_from_a_chosen_address_over_both_families() {
    for (listen, local) in [("127.0.0.1:0", Some("127.3.2.1:0")), ("[::1]:0", Some("[::1]:0")), ("127.0.0.1:0", None)] {
        let listener = listen_at(listen, false);
        let local: Option<SocketAddr> = local.map(|text| text.parse().expect("address"));
        let options = ConnectOptions { receive_buffer_bytes: 4096, ..ConnectOptions::default() };
        let client = Socket::connect_from(local, listener.local_addr(), options).expect("begins");
        retry(|| client.connect_outcome(), |errno| errno.0 == libc::ENOTCONN).expect("connected");
        let server = retry(|| listener.accept(), Errno::is_again).expect("accepted");
        assert_eq!((server.peer_addr(), client.peer_addr()), (client.local_addr(), Some(listener.local_addr())));
        if let Some(local) = local {
            assert_eq!(server.peer_addr().map(|address| address.ip()), Some(local.ip()));
        }
        assert_eq!(server.recv(&mut [0u8; 8]), Err(Errno(libc::EAGAIN)), "does not wait");
        assert_eq!(client.send(b"hello"), Ok(5));
        let mut buffer = [0u8; 8];
        assert_eq!(retry(|| server.recv(&mut buffer), Errno::is_again), Ok(5));
        client.shutdown_write().expect("connected");
        assert_eq!(retry(|| server.recv(&mut buffer), Errno::is_again), Ok(0), "end of stream");
        assert_eq!(server.send(b"still open this way"), Ok(19));
    }
}

#[test]
fn a_refused_connection_says_so() {
    let address = listen().local_addr();
    let result = Socket::connect_from(None, address, ConnectOptions::default())
        .and_then(|client| retry(|| client.connect_outcome(), |errno| errno.0 == libc::ENOTCONN));
    assert_eq!(result, Err(Errno(libc::ECONNREFUSED)));
}

#[test]
fn accepted_sockets_inherit_the_listeners_options() {
    let listener = listen();
    let (socket, _peer) = pair(&listener);
    let view = TcpStream::from(socket.as_fd().try_clone_to_owned().expect("copy"));
    assert!(view.nodelay().expect("option"));
    // The bounded buffers: a peer that does not read takes far less than the default's megabytes.
    let (mut taken, junk) = (0, [0u8; 4096]);
    while let Ok(bytes) = socket.send(&junk) {
        taken += bytes;
    }
    assert!((4096..400_000).contains(&taken), "{taken}");
    socket.set_keepalive(60, 10, 3).expect("keep-alive");
    socket.set_user_timeout(5000).expect("user time-out");
    assert_eq!(socket.set_keepalive(0, 1, 1), Err(Errno(libc::EINVAL)));
}

#[test]
fn reset_on_close_resets() {
    let listener = listen();
    let (socket, mut peer) = pair(&listener);
    socket.reset_on_close().expect("option");
    drop(socket);
    assert_eq!(peer.read(&mut [0u8; 1]).expect_err("reset").kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_port_in_use_is_refused_unless_shared() {
    let shared = listen_at("127.0.0.1:0", true);
    let options = |reuse_port| ListenOptions {
        address: shared.local_addr(),
        backlog: 1,
        reuse_port,
        send_buffer_bytes: 0,
        receive_buffer_bytes: 0,
    };
    assert_eq!(Listener::bind(&options(false)).err(), Some(Errno(libc::EADDRINUSE)));
    assert_eq!(Listener::bind(&options(true)).expect("shared").local_addr(), shared.local_addr());
}
