//! The kernel and shared memory: the only crate of Ringway that contains `unsafe`. It knows rings, sockets, threads and
//! queues between threads; it knows nothing of WebSockets or channels.
//!
//! | file | what it gives |
//! |---|---|
//! | `op.rs` | [`Op`], [`Token`] (what a completion belongs to), [`Errno`] (kernel errors with their names) |
//! | `ring.rs` | [`Ring`]: one io_uring per shard: accept, poll, cancel, batched sends, one wait per turn |
//! | `probe.rs` | what the running kernel offers: [`Unsupported`] (feature, cause, remedy), [`Report`] |
//! | `socket.rs` | [`Listener`], [`Socket`]: non-blocking TCP, IPv4 and IPv6 |
//! | `instance.rs` | [`InstanceLock`], [`port_holder`]: who else serves this address |
//! | `lane.rs`, `sleep.rs` | [`Inbox`]: the bounded queue into a shard, with sleep and wake |
//! | `thread.rs` | pinning, private file tables, limits, clocks |
//! | `buffers.rs` | [`Scratch`]: page-aligned memory that a shard reuses |
//! | `alloc_count.rs` | [`CountingAllocator`]: proves that a path does not allocate |
//! | `primitive.rs` | the one place atomics come from, so that loom can replace them |
//!
//! Invariants kept by the crate as a whole: no public function takes an address; the kernel holds no address of caller
//! memory once a call has returned; a file descriptor is owned by exactly one value and its number is never handed out
//! except through the standard `AsFd`/`AsRawFd` traits.

#[cfg(not(target_os = "linux"))]
compile_error!(
    "ringway-sys speaks to the Linux kernel (io_uring, eventfd, abstract sockets) and builds for Linux only"
);
#[cfg(not(target_pointer_width = "64"))]
compile_error!("ringway-sys needs a 64-bit target: token packing and buffer sizes rely on it");

pub mod alloc_count;
pub mod buffers;
pub mod instance;
pub mod lane;
pub mod op;
mod primitive;
pub mod probe;
pub mod ring;
mod sleep;
pub mod socket;
pub mod thread;

#[cfg(all(test, loom))]
mod lane_loom;

pub use alloc_count::CountingAllocator;
pub use buffers::Scratch;
pub use instance::{Holder, InstanceLock, port_holder};
pub use lane::Inbox;
pub use op::{Errno, Op, Token};
pub use probe::{Report, Unsupported};
pub use ring::{Completion, Ring, RingOptions, TurnReport, Wait};
pub use socket::{ConnectOptions, ListenOptions, Listener, Socket};
