//! Private file tables: what one thread opens afterwards does not exist for another, the open-file limit counts per thread,
//! and a full table shows as an error completion of the accept. The cases with a small limit run in a child process of this
//! very program, started by a shell that lowers the limit.
#![allow(clippy::disallowed_methods, reason = "tests start threads and read clocks directly")]

mod common;

use std::fs::File;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::{Arc, Barrier};

use common::{listen, ring, turn_until};
use ringway_sys::thread::{spawn_named, unshare_file_table};
use ringway_sys::{Errno, Inbox, Op, Token, Wait};

const SMALL_LIMIT: &str = "64";
const IN_CHILD: &str = "FILE_TABLES_TEST_CHILD";

/// Runs one test of this program again in a process with room for 64 open files. False: this is that process.
fn in_child_with_a_small_limit(test: &str) -> bool {
    if std::env::var_os(IN_CHILD).is_some() {
        return false;
    }
    let program = std::env::current_exe().expect("this program");
    let output = Command::new("sh")
        .args(["-c", &format!("ulimit -n {SMALL_LIMIT} && exec \"$0\" --exact {test} --nocapture --test-threads=1")])
        .arg(program)
        .env(IN_CHILD, "1")
        .output()
        .expect("a shell");
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}{complained}");
    true
}

fn link_of(number: i32) -> Option<std::path::PathBuf> {
    std::fs::read_link(format!("/proc/thread-self/fd/{number}")).ok()
}

/// Opens files until the table is full.
fn fill_the_table() -> Vec<File> {
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

#[test]
fn a_socket_opened_after_the_split_is_invisible_to_other_threads() {
    let ends = Arc::new(Barrier::new(2));
    let other = ends.clone();
    let (tell, told) = std::sync::mpsc::channel();
    let shard = spawn_named("shard", move || {
        unshare_file_table().expect("no privilege is needed");
        let listener = listen();
        let own = link_of(listener.as_raw_fd());
        tell.send((listener.as_raw_fd(), listener.local_addr())).expect("the test waits");
        other.wait();
        assert_eq!(Inbox::<u8>::new(1, 0).err(), Some(Errno(libc::EINVAL)), "an inbox made here could wake nobody");
        own
    })
    .expect("thread");
    let (number, address) = told.recv().expect("the shard listens");
    let here = link_of(number);
    TcpStream::connect(address).expect("the socket is alive");
    ends.wait();
    let there = shard.join().expect("shard");
    assert!(there.is_some() && here != there, "number {number} is {here:?} here and {there:?} there");
}

#[test]
fn an_inbox_made_before_the_split_wakes_across_tables() {
    let inbox = Inbox::<u32>::new(4, 0).expect("inbox");
    let asleep = Arc::new(Barrier::new(2));
    let (consumer_inbox, consumer_asleep) = (inbox.clone(), asleep.clone());
    let consumer = spawn_named("shard", move || {
        unshare_file_table().expect("no privilege is needed");
        let mut ring = ring(8, 64);
        ring.poll_wake(&consumer_inbox, Token::new(Op::Wake, 0, 0));
        assert!(consumer_inbox.prepare_sleep());
        consumer_asleep.wait();
        turn_until(&mut ring, |all| !all.is_empty());
        consumer_inbox.awake();
        consumer_inbox.pop()
    })
    .expect("thread");
    let producer = spawn_named("shard", move || {
        unshare_file_table().expect("no privilege is needed");
        asleep.wait();
        inbox.push(7).expect("room");
        inbox.wake_if_asleep()
    })
    .expect("thread");
    assert!(producer.join().expect("producer"));
    assert_eq!(consumer.join().expect("consumer"), Some(7));
}

#[test]
fn two_threads_hold_more_files_than_the_limit() {
    if in_child_with_a_small_limit("two_threads_hold_more_files_than_the_limit") {
        return;
    }
    let limit: usize = SMALL_LIMIT.parse().expect("number");
    let together = Arc::new(Barrier::new(2));
    let shards = [(); 2].map(|()| {
        let together = together.clone();
        spawn_named("shard", move || {
            unshare_file_table().expect("no privilege is needed");
            let files = fill_the_table();
            together.wait();
            files.len()
        })
        .expect("thread")
    });
    let held: Vec<usize> = shards.into_iter().map(|shard| shard.join().expect("shard")).collect();
    assert!(held.iter().all(|&files| files < limit) && held.iter().sum::<usize>() > limit, "{held:?}");
}

#[test]
fn accept_without_a_free_descriptor_gives_an_error_and_works_again_later() {
    if in_child_with_a_small_limit("accept_without_a_free_descriptor_gives_an_error_and_works_again_later") {
        return;
    }
    let (listener, mut ring) = (listen(), ring(8, 64));
    let token = Token::new(Op::Accept, 0, 0);
    ring.accept_multishot(&listener, token);
    ring.turn(Wait::No, &mut Vec::new()).expect("turn");
    let client = socket_before_the_table_fills(&listener);
    let failed = turn_until(&mut ring, |all| all.iter().any(|completion| !completion.more));
    let failed = failed.last().expect("one");
    assert_eq!((failed.token, &failed.result), (token, &Err(Errno(libc::EMFILE))));
    assert!(failed.result.is_err_and(Errno::is_out_of_files), "the accept has ended: the listener must be armed again");
    drop(client.1);
    ring.accept_multishot(&listener, token);
    let mut accepted = turn_until(&mut ring, |all| !all.is_empty());
    let peer = accepted.remove(0).into_socket().expect("the connection was waiting all the while").peer_addr();
    assert_eq!(peer, client.0.local_addr());
}

/// A connecting socket, then a full table: the ring has not run, so the accept happens with no descriptor free.
fn socket_before_the_table_fills(listener: &ringway_sys::Listener) -> (ringway_sys::Socket, Vec<File>) {
    let client = ringway_sys::Socket::connect_from(None, listener.local_addr(), Default::default()).expect("connect");
    (client, fill_the_table())
}
