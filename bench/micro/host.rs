//! One shard's real loop with real sockets, inside this process, so that a test can look at the loop's own counters.
//!
//! ```text
//! test thread    N subscribers, one backend: blocking sockets
//! shard thread   ShardLoop exactly as `ringway` runs it: own file table, ring, listeners
//! ```
//! In: how many subscribers. Out: per publication, what the shard's thread allocated and freed. The shard's thread reads
//! its counters when it checks a payload's UTF-8, which it does once per publish: the difference between two publishes is
//! the whole life of one publication. Invariant: one publication is outstanding at a time, so that none is joined with the next.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use ringway::clock;
use ringway::config::SendMode;
use ringway::control::MetricsHub;
use ringway::drain::DrainOrders;
use ringway::log;
use ringway::shard_loop::{ShardLoop, ShardParts};
use ringway::shared::Shared;
use ringway_engine::ids::CoreId;
use ringway_engine::metrics::Metric;
use ringway_engine::shard::Shard;
use ringway_sys::alloc_count::{thread_allocations, thread_deallocations};
use ringway_sys::{Errno, Inbox, ListenOptions, Listener, Ring, RingOptions, thread as sys_thread};
use ringway_wire::centrifuge::Form;

use super::node;

/// How long anything may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(30);
/// Room for the frames of one publication, or for the answers to a client's opening.
const READ_BYTES: usize = 4096;

/// Where the shard's thread leaves its counters; one host at a time, see [`Host::start`].
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static DEALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Counters of the shard's thread since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Allocations, reallocations among them.
    pub allocations: u64,
    /// Frees.
    pub deallocations: u64,
}

impl Counts {
    /// What was counted since `earlier`.
    pub const fn since(self, earlier: Counts) -> Counts {
        Counts {
            allocations: self.allocations - earlier.allocations,
            deallocations: self.deallocations - earlier.deallocations,
        }
    }
}

/// See the file's header.
pub struct Host {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<(), Errno>>>,
    subscribers: Vec<TcpStream>,
    backend: TcpStream,
    publish: Vec<u8>,
    payload: Vec<u8>,
    seq: u64,
}

impl Host {
    /// Starts a shard and connects so many subscribers.
    ///
    /// # Panics
    /// If another host runs (the counters are one set), or the kernel refuses something.
    pub fn start(subscribers: u32, form: Form, payload_bytes: usize, send_mode: SendMode) -> Host {
        assert!(!TAKEN.swap(true, Ordering::AcqRel), "one host at a time");
        sys_thread::raise_open_file_limit();
        log::set_level(log::Level::Warn);
        let shared = Arc::new(Shared {
            shards: 1,
            inboxes: (0..2).map(|_| Inbox::new(64, 2).expect("an eventfd")).collect(),
            metrics: MetricsHub::new(1),
            stop: AtomicBool::new(false),
            stop_timeout_ms: 100,
            drain: DrainOrders::new(1),
        });
        let (report, reported) = mpsc::sync_channel(1);
        let of_shard = Arc::clone(&shared);
        let body = move || {
            let (shard_loop, addresses) = open_shard(of_shard, send_mode);
            report.send(addresses).expect("the test waits");
            shard_loop.run()
        };
        let thread = sys_thread::spawn_named("shard-0", body).expect("a thread");
        let (clients, backends) = reported.recv_timeout(PATIENCE).expect("the shard listens");
        let mut backend = connect(backends);
        backend.write_all(&node::backend_hello()).expect("hello");
        assert!(backend.read(&mut [0; READ_BYTES]).expect("answer to the hello") > 0);
        let opening = node::client_opening(form);
        let subscribers = (0..subscribers).map(|_| subscribe(clients, &opening)).collect();
        let payload = node::json_payload(payload_bytes);
        Host { shared, thread: Some(thread), subscribers, backend, publish: Vec::new(), payload, seq: 0 }
    }

    /// Publishes once, waits until every subscriber and the backend have their frame. Returns the shard's counters as they
    /// were when it took this publish in.
    pub fn publish(&mut self) -> Counts {
        self.seq += 1;
        self.publish.clear();
        node::push_publish(&mut self.publish, self.seq, &self.payload);
        self.backend.write_all(&self.publish).expect("publish");
        for subscriber in &mut self.subscribers {
            read_frame(subscriber, self.payload.len());
        }
        assert!(self.backend.read(&mut [0; READ_BYTES]).expect("acknowledgement") > 0);
        Counts {
            allocations: ALLOCATIONS.load(Ordering::Acquire),
            deallocations: DEALLOCATIONS.load(Ordering::Acquire),
        }
    }

    /// Deliveries that the shard counted, as of its last report.
    pub fn deliveries(&self) -> u64 {
        self.shared.metrics.total(Metric::Deliveries)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.inboxes[0].wake_if_asleep();
        self.subscribers.clear();
        let ended = self.thread.take().map(JoinHandle::join);
        TAKEN.store(false, Ordering::Release);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(Ok(())))), "the shard ended badly: {ended:?}");
        }
    }
}

/// Everything of a shard that belongs to its thread, as `ringway::boot` makes it.
fn open_shard(shared: Arc<Shared>, send_mode: SendMode) -> (ShardLoop, (SocketAddr, SocketAddr)) {
    sys_thread::unshare_file_table().expect("a file table");
    let ring = Ring::new(&RingOptions::default()).unwrap_or_else(|missing| panic!("{missing}"));
    let listen = |buffer_bytes| {
        let mut options = ListenOptions {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            backlog: 4096,
            reuse_port: false,
            send_buffer_bytes: buffer_bytes,
            receive_buffer_bytes: buffer_bytes,
        };
        let listener = Listener::bind(&options).expect("a port");
        options.address = listener.local_addr();
        (options, listener)
    };
    let (clients, backends) = (listen(16 * 1024), listen(0));
    let addresses = (clients.0.address, backends.0.address);
    let options = node::options(utf8_that_reports);
    let parts = ShardParts {
        core: CoreId(0),
        read_bytes_per_turn_max: options.limits.read_bytes_per_turn_max,
        shard: Shard::new(options, clock::now_ms()),
        ring,
        clients,
        backends,
        shared,
        send_mode,
    };
    (ShardLoop::new(parts).expect("memory"), addresses)
}

/// Checks UTF-8, and leaves the calling thread's counters for the test.
fn utf8_that_reports(bytes: &[u8]) -> bool {
    ALLOCATIONS.store(thread_allocations(), Ordering::Release);
    DEALLOCATIONS.store(thread_deallocations(), Ordering::Release);
    simdutf8::basic::from_utf8(bytes).is_ok()
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the shard accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    stream.set_nodelay(true).expect("no delay");
    stream
}

/// Connects one client and waits for the answer to its subscribe.
fn subscribe(address: SocketAddr, opening: &[u8]) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(opening).expect("opening");
    let (mut bytes, mut len) = ([0; READ_BYTES], 0);
    // The head of the 101 answer, then the replies to connect and subscribe: in one frame or in two.
    loop {
        let read = stream.read(&mut bytes[len..]).expect("answers");
        assert!(read > 0, "the shard refused: {}", String::from_utf8_lossy(&bytes[..len]));
        len += read;
        let Some(head) = bytes[..len].windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        // The subscribe's answer carries the epoch; the connect's carries the version.
        let frames = &bytes[head + 4..len];
        let has = |text: &[u8]| frames.windows(text.len()).any(|window| window == text);
        if has(b"ringway") && frames_are_whole(frames) && count_frames(frames) >= 2 {
            return stream;
        }
    }
}

/// Reads one publication: everything that has come must be whole frames, with at least the payload in it.
fn read_frame(stream: &mut TcpStream, payload_bytes: usize) {
    let (mut bytes, mut len) = ([0; READ_BYTES], 0);
    loop {
        let read = stream.read(&mut bytes[len..]).expect("a publication");
        assert!(read > 0, "the shard closed");
        len += read;
        if frames_are_whole(&bytes[..len]) {
            assert!(len > payload_bytes && count_frames(&bytes[..len]) == 1, "exactly one publication");
            return;
        }
    }
}

fn frames_are_whole(bytes: &[u8]) -> bool {
    next_frames(bytes).1 == bytes.len()
}

fn count_frames(bytes: &[u8]) -> usize {
    next_frames(bytes).0
}

/// How many whole frames stand at the front, and how long they are together.
fn next_frames(bytes: &[u8]) -> (usize, usize) {
    let (mut count, mut end) = (0, 0);
    while end < bytes.len() {
        let Some(len) = server_frame_len(&bytes[end..]).filter(|len| end + len <= bytes.len()) else { break };
        (count, end) = (count + 1, end + len);
    }
    (count, end)
}

/// Header and payload of an unmasked frame (RFC 6455 §5.2).
fn server_frame_len(bytes: &[u8]) -> Option<usize> {
    match *bytes.get(1)? {
        126 => Some(4 + usize::from(u16::from_be_bytes(*bytes.get(2..4)?.first_chunk()?))),
        127 => Some(10 + u64::from_be_bytes(*bytes.get(2..10)?.first_chunk()?) as usize),
        short => Some(2 + usize::from(short)),
    }
}
