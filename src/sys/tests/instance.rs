//! The instance lock and the port check against a second process: this program starts itself as the holder.
//! In: a child process. Out: assertions. Invariant: the child ends when its input closes, so none is left behind.
#![allow(clippy::disallowed_methods, reason = "tests start processes directly")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{PATIENCE, listen_at};
use ringway_sys::thread::unshare_file_table;
use ringway_sys::{InstanceLock, port_holder};

const IN_CHILD: &str = "INSTANCE_TEST_CHILD";

/// The child's part: holds a port and its lock until standard input ends. The listener stands in a thread with a private
/// file table, as in a shard.
#[test]
fn holder() {
    if std::env::var_os(IN_CHILD).is_none() {
        return;
    }
    let shard = std::thread::spawn(|| {
        unshare_file_table().expect("no privilege is needed");
        let listener = listen_at("127.0.0.1:0", true);
        let lock = InstanceLock::acquire(listener.local_addr()).expect("free");
        println!("\nholding {}", listener.local_addr());
        std::io::stdout().flush().expect("the parent listens");
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        drop((lock, listener));
    });
    shard.join().expect("shard");
}

fn start_holder() -> (Child, SocketAddr) {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "holder", "--nocapture"])
        .env(IN_CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("child");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let address = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("holding ").map(str::to_owned));
    (child, address.expect("the child holds a port").parse().expect("address"))
}

#[test]
fn a_second_process_is_refused_with_the_holders_pid_until_it_ends() {
    let (mut child, address) = start_holder();
    let refused = InstanceLock::acquire(address).expect_err("held by the child");
    assert_eq!(refused.pid, child.id());
    assert!(refused.to_string().contains(&child.id().to_string()) && !refused.name.is_empty(), "{refused}");
    let wildcard = SocketAddr::new("0.0.0.0".parse().expect("ip"), address.port());
    assert_eq!(InstanceLock::acquire(wildcard).expect_err("overlaps").pid, child.id());
    // More refused starts than a listener's backlog holds: the answer must not wait or lose the pid.
    for _ in 0..200 {
        assert_eq!(InstanceLock::acquire(address).expect_err("held").pid, child.id());
    }
    assert_eq!(port_holder(address).expect("the port is held").pid, child.id(), "found in the shard's own table");
    child.kill().expect("kill");
    child.wait().expect("wait");
    let deadline = Instant::now() + PATIENCE;
    while let Err(holder) = InstanceLock::acquire(address) {
        assert!(Instant::now() < deadline, "still held by {holder}");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(port_holder(address), None);
}
