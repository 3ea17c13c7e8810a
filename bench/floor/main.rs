//! The floor: a bare WebSocket upgrade, then the kernel's own send loop. What any gateway on this kernel pays at least.
//!
//! In: WebSocket clients on one port. A connection whose path ends in `/publish` is a publisher; every other one is a
//! subscriber and is never read again after its upgrade. Out: each message of a publisher, as one unmasked server
//! frame, to every subscriber; those of a publisher on `/direct/publish` to the one subscriber that they name, which came
//! on `/direct/NUMBER`.
//!
//! ```text
//! publisher ── messages ──> batch ──> SEND entries, 256 per submission ──> every subscriber of the thread
//!                             └─────> inboxes of the other threads, which do the same
//! ```
//!
//! On purpose there is nothing else: no state per connection but its descriptor, no pings, no channels, no queues. A
//! subscriber that does not take a whole write is closed and counted, since its stream would be cut inside a frame.
//!
//! | file | role |
//! |---|---|
//! | `main` | options, threads |
//! | `floor` | one thread: accepts, upgrades, publishers, its turn |
//! | `send` | a batch to the subscribers of one thread |
//! | `batch` | a publisher's messages as frames |
//! | `descriptor` | recv, send and close of a bare number |
//!
//! Invariant: as in Ringway, a thread has its own ring, listener (SO_REUSEPORT) and file table, so that the open-file limit
//! counts for it alone; threads share nothing but their inboxes, which are made before the tables split.
mod batch;
mod descriptor;
mod floor;
mod send;

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use clap::{Parser, ValueEnum};
use ringway_sys::{Inbox, thread};

use batch::Batch;
use floor::Floor;

/// Batches that wait for a thread; a further one is lost, which the thread that has it reports.
const INBOX_BATCHES: usize = 4096;

/// How a broadcast leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// SEND entries on the ring, submitted in batches.
    Ring,
    /// One send() call per subscriber.
    Send,
}

#[derive(Clone, Parser, Debug)]
#[command(name = "ringway-floor", about = "The kernel's own price of a WebSocket broadcast", version)]
struct Options {
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8100")]
    listen: SocketAddr,
    /// Threads, each with a ring, a listener and a file table of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: u32,
    /// Cores to pin the threads to, in turn: one number for all of them, or several with commas.
    #[arg(long, alias = "cpus", value_delimiter = ',')]
    cpu: Vec<usize>,
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
    send_buffer_bytes: u32,
    /// SO_RCVBUF of the listener, in bytes; 0 leaves the kernel's default.
    #[arg(long, default_value_t = 16_384)]
    receive_buffer_bytes: u32,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringway-floor: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts the threads one after the other, says where they listen, and waits for them.
fn run(options: &Options) -> io::Result<()> {
    thread::raise_open_file_limit();
    let inboxes = (0..options.threads).map(|_| Inbox::new(INBOX_BATCHES, 1)).collect::<Result<Vec<_>, _>>();
    let inboxes: Arc<[Arc<Inbox<Arc<Batch>>>]> = inboxes.map_err(io::Error::other)?.into();
    let mut address = options.listen;
    let mut threads = Vec::new();
    for index in 0..options.threads as usize {
        let own = Options { listen: address, ..options.clone() };
        let (thread, bound) = start(index, own, Arc::clone(&inboxes))?;
        // The first may have taken a free port: the others share it.
        address = bound;
        threads.push(thread);
    }
    let mut stdout = io::stdout();
    writeln!(stdout, "ringway-floor ready {address} pid={}", std::process::id())?;
    stdout.flush()?;
    for thread in threads {
        thread.join().map_err(|_| io::Error::other("a thread panicked"))??;
    }
    Ok(())
}

type Running = JoinHandle<io::Result<()>>;

/// Starts one thread; returns when it listens.
fn start(index: usize, options: Options, inboxes: Arc<[Arc<Inbox<Arc<Batch>>>]>) -> io::Result<(Running, SocketAddr)> {
    let (sender, listening) = mpsc::channel();
    let running = thread::spawn_named(&format!("floor-{index}"), move || {
        match Floor::start(index, options, inboxes) {
            Ok((mut floor, address)) => {
                // Main waits for this very line.
                let _ = sender.send(Ok(address));
                let ended = floor.run();
                if let Err(error) = &ended {
                    eprintln!("ringway-floor: thread {index}: {error}");
                    // Its connections would wait for ever.
                    std::process::exit(1);
                }
                ended
            }
            Err(error) => {
                let _ = sender.send(Err(error));
                Ok(())
            }
        }
    });
    let running = running.map_err(io::Error::other)?;
    let address = listening.recv().map_err(|_| io::Error::other("a thread ended before it listened"))??;
    Ok((running, address))
}
