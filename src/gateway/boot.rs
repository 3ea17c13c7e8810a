//! From a configuration to a running node, in the order that private file tables need (KERNEL notes in ARCHITECTURE).
//!
//! ```text
//! main     refuse a second instance · open the wake-up descriptors · start the token threads and the backplane's,
//!          wait until the engine knows this node · nothing else
//! shard k  split its file table · ring · listeners (shard 0 first: it finds the port when 0 was asked for)
//! main     all shards listen -> open the control port, say "ready", wait for a signal
//! ```
//! In: the configuration. Out: an exit code. What cannot work is refused here, with the reason and the remedy.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ringway_engine::ids::CoreId;
use ringway_engine::options::Options;
use ringway_engine::owner::FleetPlace;
use ringway_engine::shard::Shard;
use ringway_engine::tokens::Tokens;
use ringway_sys::{
    Errno, Holder, Inbox, InstanceLock, ListenOptions, Listener, Ring, RingOptions, port_holder, thread as sys_thread,
};

use crate::auth::Auth;
use crate::backplane::config::BackplaneConfig;
use crate::backplane::metrics::BackplaneMetrics;
use crate::backplane::{Hop, Registered};
use crate::cli::{EXIT_FAILURE, EXIT_OK, EXIT_UNAVAILABLE};
use crate::clock;
use crate::config::Config;
use crate::control::{self, ControlOptions, ControlState, Hooks, MetricsHub, Phase, Readiness, Reloaded};
use crate::control_link::{self, LinkParts};
use crate::drain::{Drain, DrainOrders};
use crate::log;
use crate::reload::Reloader;
use crate::shard_loop::{ShardLoop, ShardParts};
use crate::shared::Shared;
use crate::shutdown;

/// Descriptors of a shard that are not connections: ring, listeners, standard streams, some to spare. Each file table
/// also holds every shard's wake-up descriptor, and backends have places of their own.
const RESERVED_FILES: u64 = 64;
/// How long clients may take to answer our Close when the process ends.
const STOP_TIMEOUT_MS: u64 = 5_000;
/// How long a port may still be held by no process when a node starts. Over: it does not start.
const PORT_WAIT_MS: u64 = 5_000;
/// From one look at such a port to the next.
const PORT_LOOK_MS: u64 = 20;

/// Why the node did not start or did not go on.
#[derive(Debug)]
struct Refusal {
    text: String,
    exit: u8,
}

/// Runs a node until a signal stops it; returns the exit code.
pub fn run(config: Config) -> u8 {
    log::set_level(config.log_level);
    for warning in config.warnings() {
        log::warn("config", &warning, &[]);
    }
    match start(config) {
        Ok(()) => EXIT_OK,
        Err(refusal) => {
            log::error("boot", &refusal.text, &[]);
            refusal.exit
        }
    }
}

fn start(mut config: Config) -> Result<(), Refusal> {
    sys_thread::small_pages_only();
    let files_max = sys_thread::raise_open_file_limit();
    bound_connections(&mut config, files_max)?;
    // Held until the process ends.
    let _locks = lock(&config)?;
    let shards = config.shards as usize;
    // Behind the shards' the control plane's, and behind that the backplane's if there is one.
    let speakers = shards + 2;
    let inboxes = (0..shards + 1 + usize::from(config.backplane.is_some()))
        .map(|_| Inbox::new(config.lane_capacity_batches as usize, speakers))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|errno| failure("cannot open the wake-up descriptors of the shards", errno))?;
    let shared = Arc::new(Shared {
        shards: config.shards,
        inboxes,
        metrics: MetricsHub::new(shards),
        stop: AtomicBool::new(false),
        stop_timeout_ms: STOP_TIMEOUT_MS,
        drain: DrainOrders::new(shards),
    });
    let config = Arc::new(config);
    // Its threads wake shards and the control plane, so they share the table of main.
    let auth = Auth::start(&config.auth, &shared.inboxes[..=shards])
        .map_err(|errno| failure("cannot start the threads that check tokens", errno))?;
    shared.metrics.show_auth(&auth);
    let boot = random();
    let hop =
        config.backplane.as_ref().map(|backplane| start_backplane(&config, backplane, &shared, boot)).transpose()?;
    let started = start_shards(&config, &shared, &auth, boot)?;
    let served = serve_control(&config, &shared, &auth, &started);
    shared.stop.store(true, Ordering::Release);
    for inbox in &shared.inboxes {
        inbox.wake_if_asleep();
    }
    for thread in started.threads {
        let ended = thread.join().map_err(|_| Refusal { text: "a shard panicked".into(), exit: EXIT_FAILURE })?;
        ended.map_err(|errno| failure("a shard's ring failed", errno))?;
    }
    if let Some(hop) = hop {
        hop.stop();
    }
    served?;
    log::info("boot", "stopped", &[]);
    Ok(())
}

/// A connection is a descriptor, and each shard has a file table of its own.
fn bound_connections(config: &mut Config, files_max: u64) -> Result<(), Refusal> {
    let reserved =
        RESERVED_FILES + u64::from(config.shards) + u64::from(config.engine.ingest_connections_per_shard_max);
    let possible = u32::try_from(files_max.saturating_sub(reserved)).unwrap_or(u32::MAX);
    if possible == 0 {
        return Err(Refusal {
            text: format!(
                "the open-file limit of {files_max} leaves no descriptor for clients ({reserved} are needed beside them): raise it with ulimit -n or LimitNOFILE"
            ),
            exit: EXIT_UNAVAILABLE,
        });
    }
    if config.engine.connections_per_shard_max > possible {
        log::warn(
            "boot",
            "the open-file limit is below limits.connections_per_shard_max: raise it (ulimit -n, LimitNOFILE) or use more shards",
            &[
                ("open_files_max", &files_max),
                ("connections_per_shard_max", &config.engine.connections_per_shard_max),
                ("now", &possible),
            ],
        );
        config.engine.connections_per_shard_max = possible;
    }
    Ok(())
}

/// Takes the lock of one port. Waits a little for a holder that is no process: a killed one is gone before the kernel has
/// taken its rings down, and its sockets with them, and who supervises it starts it again at once.
fn lock_port(address: SocketAddr) -> Result<InstanceLock, Holder> {
    let mut waited_ms = 0;
    loop {
        let taken = InstanceLock::acquire(address).and_then(|lock| port_holder(address).map_or(Ok(lock), Err));
        match taken {
            Err(holder) if holder.pid == 0 && waited_ms < PORT_WAIT_MS => {
                thread::sleep(Duration::from_millis(PORT_LOOK_MS));
                waited_ms += PORT_LOOK_MS;
            }
            taken => return taken,
        }
    }
}

/// Refuses to share a port with another instance: with SO_REUSEPORT the kernel would mix the two silently.
fn lock(config: &Config) -> Result<Vec<InstanceLock>, Refusal> {
    if config.takeover {
        return Ok(Vec::new());
    }
    let mut locks = Vec::new();
    for (what, address) in [("client", config.client.listen), ("ingest", config.ingest.listen)] {
        let taken = lock_port(address).map_err(|holder| Refusal {
            text: format!(
                "the {what} port {address} is held by {holder}; stop it, choose another port, or pass --takeover for a planned hand-over"
            ),
            exit: EXIT_UNAVAILABLE,
        })?;
        locks.push(taken);
    }
    Ok(locks)
}

struct Started {
    client: SocketAddr,
    ingest: SocketAddr,
    threads: Vec<JoinHandle<Result<(), Errno>>>,
}

/// What a shard's thread reports once: where it listens.
type Report = Result<(SocketAddr, SocketAddr), Refusal>;

/// Starts the thread that speaks with the engine, and waits until this node is registered there. An engine that is
/// away does not keep the node from starting; one that will not have it does.
fn start_backplane(
    config: &Config,
    backplane: &BackplaneConfig,
    shared: &Arc<Shared>,
    boot: u64,
) -> Result<Hop, Refusal> {
    let metrics = Arc::new(BackplaneMetrics::default());
    shared.metrics.show_backplane(&metrics);
    let batch_messages_max = config.engine.lane_batch_messages_max as usize;
    let (hop, words) = Hop::start(shared, backplane, boot, batch_messages_max, &metrics)
        .map_err(|errno| failure("cannot start the backplane's thread", errno))?;
    // A node that has just died holds its name for as long as its lease.
    let until_ms = clock::now_ms() + backplane.lease_ms + backplane.timeout_ms;
    let mut last = String::from("the engine did not answer");
    loop {
        let left_ms = until_ms.saturating_sub(clock::now_ms());
        match words.recv_timeout(Duration::from_millis(left_ms)) {
            Ok(Registered::Yes(node)) => {
                log::info("boot", "registered", &[("place", &node.place), ("generation", &node.generation)]);
                return Ok(hop);
            }
            Ok(Registered::NotYet(reason)) => {
                log::warn("boot", "the engine cannot be reached: starting without it", &[("reason", &reason)]);
                return Ok(hop);
            }
            Ok(Registered::NameTaken(reason)) => last = reason,
            Ok(Registered::Refused(reason)) => {
                hop.stop();
                return Err(Refusal { text: reason, exit: EXIT_UNAVAILABLE });
            }
            Err(_) => {
                hop.stop();
                return Err(Refusal { text: last, exit: EXIT_UNAVAILABLE });
            }
        }
    }
}

fn start_shards(config: &Arc<Config>, shared: &Arc<Shared>, auth: &Arc<Auth>, boot: u64) -> Result<Started, Refusal> {
    let (mut client, mut ingest) = (config.client.listen, config.ingest.listen);
    let mut threads = Vec::new();
    for core in 0..config.shards {
        let (report, reported) = mpsc::sync_channel::<Report>(1);
        let (config, shared, tokens) = (Arc::clone(config), Arc::clone(shared), Arc::clone(auth));
        let addresses = (client, ingest);
        let body = move || run_shard(CoreId(core), &config, shared, tokens, boot, addresses, &report);
        let thread = sys_thread::spawn_named(&format!("shard-{core}"), body)
            .map_err(|errno| failure("cannot start a shard's thread", errno))?;
        threads.push(thread);
        let outcome = reported.recv().unwrap_or_else(|_| {
            Err(Refusal { text: format!("shard {core} ended before it listened"), exit: EXIT_FAILURE })
        });
        (client, ingest) = outcome?;
    }
    Ok(Started { client, ingest, threads })
}

fn run_shard(
    core: CoreId,
    config: &Config,
    shared: Arc<Shared>,
    tokens: Arc<dyn Tokens>,
    boot: u64,
    addresses: (SocketAddr, SocketAddr),
    report: &mpsc::SyncSender<Report>,
) -> Result<(), Errno> {
    match open_shard(core, config, shared, tokens, boot, addresses) {
        Ok((shard_loop, addresses)) => {
            // Boot waits for it.
            let _ = report.send(Ok(addresses));
            let _guard = EndWithShard(core);
            shard_loop.run().inspect_err(|errno| {
                log::error("boot", "a shard's ring failed", &[("shard", &core.0), ("error", errno)]);
                // Its clients and its channels are gone; a restart serves them, a node without them does not.
                std::process::exit(i32::from(EXIT_FAILURE));
            })
        }
        Err(refusal) => {
            let _ = report.send(Err(refusal));
            Ok(())
        }
    }
}

/// Ends the process when a shard panics: half a node is worse than a restart.
struct EndWithShard(CoreId);

impl Drop for EndWithShard {
    fn drop(&mut self) {
        if thread::panicking() {
            log::error("boot", "a shard panicked", &[("shard", &self.0.0)]);
            std::process::exit(i32::from(EXIT_FAILURE));
        }
    }
}

fn open_shard(
    core: CoreId,
    config: &Config,
    shared: Arc<Shared>,
    tokens: Arc<dyn Tokens>,
    boot: u64,
    (client, ingest): (SocketAddr, SocketAddr),
) -> Result<(ShardLoop, (SocketAddr, SocketAddr)), Refusal> {
    sys_thread::unshare_file_table().map_err(|errno| failure("cannot give a shard a file table of its own", errno))?;
    if config.pin_shards {
        pin(core);
    }
    let ring_options = RingOptions {
        submission_entries: config.ring.submission_entries,
        completion_entries: config.ring.completion_entries,
    };
    let ring = Ring::new(&ring_options)
        .map_err(|unsupported| Refusal { text: unsupported.to_string(), exit: EXIT_UNAVAILABLE })?;
    let (send_buffer_bytes, receive_buffer_bytes) =
        (config.client.send_buffer_bytes, config.client.receive_buffer_bytes);
    let clients = listen("client", config, client, send_buffer_bytes, receive_buffer_bytes)?;
    // Backends are few and send much: their buffers are the kernel's own, which grow with the flow.
    let backends = listen("ingest", config, ingest, 0, 0)?;
    let addresses = (clients.0.address, backends.0.address);
    let options = Options {
        core,
        shards: config.shards,
        seed: random(),
        boot,
        limits: config.engine.clone(),
        namespaces: Arc::new(config.namespaces.clone()),
        tokens,
        access: config.access.clone(),
        fleet: config.backplane.as_ref().map(|_| FleetPlace {
            core: shared.backplane(),
            wall_offset_ms: clock::unix_now_ms().cast_signed() - clock::now_ms().cast_signed(),
        }),
        utf8: |bytes| simdutf8::basic::from_utf8(bytes).is_ok(),
    };
    let shard_loop = ShardLoop::new(ShardParts {
        core,
        shard: Shard::new(options, clock::now_ms()),
        ring,
        clients,
        backends,
        shared,
        send_mode: config.ring.send_mode,
        read_bytes_per_turn_max: config.engine.read_bytes_per_turn_max,
    })
    .map_err(|errno| failure("no memory for a shard's buffer", errno))?;
    Ok((shard_loop, addresses))
}

/// Listens, and says on what, so that a full shard can close its listener and open it again.
fn listen(
    what: &str,
    config: &Config,
    address: SocketAddr,
    send_buffer_bytes: u32,
    receive_buffer_bytes: u32,
) -> Result<(ListenOptions, Listener), Refusal> {
    let backlog = config.client.backlog;
    let mut options = ListenOptions { address, backlog, reuse_port: true, send_buffer_bytes, receive_buffer_bytes };
    let listener = Listener::bind(&options).map_err(|errno| Refusal {
        text: format!("cannot listen on the {what} port {address}: {errno}"),
        exit: EXIT_UNAVAILABLE,
    })?;
    options.address = listener.local_addr();
    Ok((options, listener))
}

fn pin(core: CoreId) {
    let cores = sys_thread::allowed_cores();
    let Some(processor) = cores.get(core.0 as usize % cores.len().max(1)) else { return };
    if let Err(errno) = sys_thread::pin_to_core(*processor) {
        log::warn("boot", "a shard could not be pinned to its core", &[("shard", &core.0), ("error", &errno)]);
    }
}

/// Serves the control port on this thread until the process is to end.
fn serve_control(config: &Config, shared: &Arc<Shared>, auth: &Arc<Auth>, started: &Started) -> Result<(), Refusal> {
    let listener = std::net::TcpListener::bind(config.control.listen).map_err(|error| Refusal {
        text: format!("cannot listen on the control port {}: {error}", config.control.listen),
        exit: EXIT_UNAVAILABLE,
    })?;
    let control = listener.local_addr().map_err(|error| failure("control port", error.into()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failure("cannot start the control plane", error.into()))?;
    let keys = Arc::clone(auth);
    let follow = Box::new(move |config: &Config| {
        keys.replace(&config.auth);
        Ok(())
    });
    let reloader = Arc::new(Reloader::new(config, Arc::clone(shared), follow));
    let (calls, received) = control::call_queue();
    let ready = Readiness::new();
    let parts = LinkParts {
        namespaces: Arc::new(config.namespaces.clone()),
        hooks: Box::new(NodeHooks { reloader: Arc::clone(&reloader), auth: Arc::clone(auth) }),
    };
    let drain = Drain::new(&config.engine, config.backplane.is_some(), Arc::clone(&shared.metrics), Arc::clone(&ready));
    let state = ControlState {
        listener,
        metrics: Arc::clone(&shared.metrics),
        calls,
        ready: Arc::clone(&ready),
        drain: Arc::clone(&drain),
        options: ControlOptions::new(config, started.client.port()),
    };
    let served = runtime
        .block_on(async {
            // Before "ready" is said: from then on a signal means what it should.
            let (signals, hangups) = (shutdown::Signals::watch()?, shutdown::hangups()?);
            ready.set(Phase::Ready);
            announce(config, started, control);
            // Ends with the runtime.
            tokio::spawn(auth.keep_keys_fresh());
            tokio::select! {
                result = control::serve(state) => result,
                result = control_link::serve(Arc::clone(shared), parts, received) => result,
                never = reloader.serve(hangups) => match never {},
                why = shutdown::until_stopped(signals, &drain, shared, config.drain_on_sigterm) => {
                    log::info("boot", "stopping", &[("why", &why)]);
                    ready.set(Phase::Draining);
                    Ok(())
                }
            }
        })
        .map_err(|error| failure("the control plane failed", error.into()));
    // A name that is being resolved for auth.jwks_url must not hold up the end.
    runtime.shutdown_background();
    served
}

/// One line on standard output that scripts wait for; the rest is for people.
fn announce(config: &Config, started: &Started, control: SocketAddr) {
    let (client, ingest) = (started.client, started.ingest);
    let path = &config.access.websocket_path;
    let mut out = std::io::stdout().lock();
    let ready = format!("ringway ready client={client} control={control} ingest={ingest} pid={}\n", std::process::id());
    // Whoever started us may not read: that is no reason not to run.
    let _ = out.write_all(ready.as_bytes());
    if config.dev {
        let text = format!(
            "\n  !! --dev: everything is open. Any client may connect, subscribe and publish; API key, ingest token and the\n\
             \x20    secret of client tokens (HS256) are \"dev\".\n\
             \x20    Loopback only. Never use it in production.\n\n\
             \x20 demo page      http://{control}/demo\n\
             \x20 clients        ws://{client}{path}   (Centrifuge SDKs, JSON or Protobuf)\n\
             \x20 HTTP API       curl -H 'X-API-Key: dev' -d '{{\"channel\":\"demo\",\"data\":{{\"hello\":1}}}}' http://{control}/api/publish\n\
             \x20 ingest         {ingest}   (binary, token \"dev\")\n\
             \x20 metrics        http://{control}/metrics\n\n",
        );
        let _ = out.write_all(text.as_bytes());
    }
    let _ = out.flush();
}

fn failure(what: &str, errno: Errno) -> Refusal {
    Refusal { text: format!("{what}: {errno}"), exit: EXIT_FAILURE }
}

/// From the standard library's randomly keyed hasher, whose keys come from the kernel.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

/// What the HTTP API may do to the node as a whole.
struct NodeHooks {
    reloader: Arc<Reloader>,
    auth: Arc<Auth>,
}

impl Hooks for NodeHooks {
    fn reload(&mut self) -> Result<Reloaded, String> {
        let report = self.reloader.reload().map_err(|error| error.to_string())?;
        Ok(Reloaded { applied: report.applied, needs_restart: report.restart })
    }

    fn revoke_token(&mut self, token_id: &str, until_unix_s: Option<u64>) -> Result<(), String> {
        self.auth.revoke_token(token_id, until_unix_s.unwrap_or(0));
        Ok(())
    }
}
