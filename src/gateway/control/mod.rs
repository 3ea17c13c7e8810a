//! The control plane: HTTP on one tokio thread. Health, metrics, the HTTP API, the demo page.
//!
//! In: requests on the control port; counters that shards publish into the [`MetricsHub`]. Out: answers; what the API
//! asks of the shards as [`Call`]s over a bounded queue, which `control_link.rs` turns into lane messages.
//! Invariants: nothing here blocks a shard; a full queue is an answer ("too many requests"), never a wait; every
//! request, every silent connection and the number of connections are bounded.
//!
//! | path | file |
//! |---|---|
//! | `/health`, `/ready` | here |
//! | `/metrics` | `metrics.rs`, `process.rs` |
//! | `POST /api/<method>`, `/api/openapi.json` | `api/`, `call.rs`; `fleet.rs` for those about all nodes |
//! | `/demo` | `demo.rs` |

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use tokio::sync::mpsc;

use crate::config::{ApiLimits, Config, Secret};
use crate::drain::Drain;
use fleet::Fleet;

pub mod api;
pub mod call;
mod fleet;
pub mod metrics;

mod demo;
mod listener;
pub mod process;

pub use call::{Call, CallSender, Hooks, NoHooks, Published, Reloaded, call_queue};
pub use fleet::{ListedByAll, NEWS_MAX, News};
pub use metrics::MetricsHub;

/// Connections of the control port at once. Over: new ones wait in the kernel's listen queue.
pub const CONNECTIONS_MAX: usize = 256;
/// From the first line of a request to its answer. Over: 504.
pub const REQUEST_TIMEOUT_MS: u64 = 15_000;
/// From handing a call to the shards to their answer. Over: 504, and whether it happened is unknown.
pub const ANSWER_TIMEOUT_MS: u64 = 5_000;
/// Silence of a connection, before or between requests. Over: it is closed.
pub const IDLE_TIMEOUT_MS: u64 = 30_000;

/// Whether this node takes new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Shards are starting.
    Starting = 0,
    /// All listeners are open.
    Ready = 1,
    /// Stopping: load balancers should send nobody here.
    Draining = 2,
}

/// The node's [`Phase`], shared between boot, shutdown and the control plane.
#[derive(Debug)]
pub struct Readiness(AtomicU8);

impl Readiness {
    /// Starting.
    pub fn new() -> Arc<Self> {
        Arc::new(Readiness(AtomicU8::new(Phase::Starting as u8)))
    }

    /// Moves to another phase.
    pub fn set(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Release);
    }

    /// The phase now.
    pub fn get(&self) -> Phase {
        match self.0.load(Ordering::Acquire) {
            1 => Phase::Ready,
            2 => Phase::Draining,
            _ => Phase::Starting,
        }
    }
}

/// What the control plane needs to know of the configuration.
#[derive(Clone, Debug)]
pub struct ControlOptions {
    /// Key of the HTTP API; empty: it refuses every call.
    pub api_key: Secret,
    /// Whether `/demo` is served.
    pub demo: bool,
    /// Port on which clients really connect.
    pub client_port: u16,
    /// Path of the client WebSocket.
    pub websocket_path: String,
    /// Bytes of a payload.
    pub publication_bytes_max: u32,
    /// Bytes of a channel name.
    pub channel_bytes_max: u32,
    /// Bytes of an idempotency key.
    pub idempotency_key_bytes_max: u32,
    /// Bounds of the server API.
    pub api: ApiLimits,
    /// How long a call may wait for the shards' answer; [`ANSWER_TIMEOUT_MS`].
    pub answer_timeout_ms: u64,
    /// This node's name.
    pub node_name: String,
    /// How long a call about all nodes waits for the other ones.
    pub nodes_wait_ms: u64,
}

impl ControlOptions {
    /// From the configuration and the port that clients really connect to (the configured one may be 0).
    pub fn new(config: &Config, client_port: u16) -> Self {
        ControlOptions {
            api_key: config.control.api_key.clone(),
            demo: config.control.demo,
            client_port,
            websocket_path: config.access.websocket_path.to_string(),
            publication_bytes_max: config.engine.publication_bytes_max,
            channel_bytes_max: config.engine.channel_bytes_max,
            idempotency_key_bytes_max: config.engine.idempotency_key_bytes_max,
            api: config.control.api,
            answer_timeout_ms: ANSWER_TIMEOUT_MS,
            node_name: config.access.node_name.to_string(),
            nodes_wait_ms: config.engine.nodes_wait_ms.into(),
        }
    }
}

/// Everything that [`serve`] needs.
#[derive(Debug)]
pub struct ControlState {
    /// A bound listener; the plane sets it non-blocking.
    pub listener: std::net::TcpListener,
    /// Counters of the shards.
    pub metrics: Arc<MetricsHub>,
    /// Where calls go.
    pub calls: CallSender,
    /// What `/ready` answers.
    pub ready: Arc<Readiness>,
    /// What `/api/drain` begins and tells.
    pub drain: Arc<Drain>,
    /// From the configuration.
    pub options: ControlOptions,
    /// What other nodes say; none: this node is alone.
    pub news: Option<mpsc::Receiver<News>>,
}

/// What handlers share.
struct Plane {
    metrics: Arc<MetricsHub>,
    calls: CallSender,
    ready: Arc<Readiness>,
    drain: Arc<Drain>,
    options: ControlOptions,
    api_results: api::ApiResults,
    identity: api::NodeIdentity,
    /// Other nodes, if there may be any.
    fleet: Option<Arc<Fleet>>,
}

/// Serves the control port until the future is dropped. Runs on a tokio current-thread runtime.
///
/// # Errors
/// When the listener cannot be given to the runtime.
pub async fn serve(state: ControlState) -> io::Result<()> {
    serve_until(state, std::future::pending()).await
}

/// As [`serve`], but stops accepting when `stop` is done and returns when requests under way are answered.
///
/// # Errors
/// When the listener cannot be given to the runtime.
pub async fn serve_until(state: ControlState, stop: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
    let listener = listener::Bounded::new(state.listener, CONNECTIONS_MAX, Duration::from_millis(IDLE_TIMEOUT_MS))?;
    let identity = api::NodeIdentity::new(&state.options.node_name);
    let fleet = state.news.is_some().then(|| {
        let metrics = state.metrics.backplane().map(Arc::clone).unwrap_or_default();
        Fleet::new(state.calls.clone(), metrics, state.options.node_name.clone(), state.options.nodes_wait_ms)
    });
    let plane = Arc::new(Plane {
        metrics: state.metrics,
        calls: state.calls,
        ready: state.ready,
        drain: state.drain,
        options: state.options,
        api_results: api::ApiResults::default(),
        identity,
        fleet,
    });
    let describing = Arc::clone(&plane);
    let talking = async move {
        match (&describing.fleet, state.news) {
            (Some(fleet), Some(news)) => Arc::clone(fleet).run(news, || describing.description()).await,
            _ => std::future::pending().await,
        }
    };
    tokio::select! {
        served = axum::serve(listener, router(plane)).with_graceful_shutdown(stop) => served,
        () = talking => Ok(()),
    }
}

fn router(plane: Arc<Plane>) -> Router {
    let body_bytes_max = api::body_bytes_max(&plane.options);
    let mut router = Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(render_metrics))
        .merge(api::routes(&plane.options));
    if plane.options.demo {
        router = router.merge(demo::routes(&plane.options));
    }
    router
        .fallback(|| async { error(StatusCode::NOT_FOUND, 404, "not found") })
        .method_not_allowed_fallback(|| async { error(StatusCode::METHOD_NOT_ALLOWED, 405, "method not allowed") })
        .layer(DefaultBodyLimit::max(body_bytes_max))
        .layer(middleware::from_fn(bound_time))
        .with_state(plane)
}

/// Ends a request that takes too long, most of all one whose body never comes.
async fn bound_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(Duration::from_millis(REQUEST_TIMEOUT_MS), next.run(request)).await {
        Ok(response) => response,
        Err(_) => error(StatusCode::GATEWAY_TIMEOUT, 100, "internal server error: the request took too long"),
    }
}

/// 200 as long as the process answers.
async fn health() -> Response {
    json(StatusCode::OK, "{\"health\":\"ok\"}".to_string())
}

/// 200 when clients may be sent here, 503 with a reason when not.
async fn ready(State(plane): State<Arc<Plane>>) -> Response {
    match plane.ready.get() {
        Phase::Ready => json(StatusCode::OK, "{\"ready\":true}".to_string()),
        Phase::Starting => {
            json(StatusCode::SERVICE_UNAVAILABLE, "{\"ready\":false,\"reason\":\"starting\"}".to_string())
        }
        Phase::Draining => {
            json(StatusCode::SERVICE_UNAVAILABLE, "{\"ready\":false,\"reason\":\"draining\"}".to_string())
        }
    }
}

async fn render_metrics(State(plane): State<Arc<Plane>>) -> Response {
    let mut out = String::with_capacity(16 * 1024);
    plane.metrics.render(&mut out);
    plane.api_results.render(&mut out);
    process::render(&mut out);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], out).into_response()
}

fn json(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// `{"error":{"code":…,"message":…}}`, as the HTTP API of Centrifugo answers.
fn error(status: StatusCode, code: u32, message: &str) -> Response {
    let message = serde_json::Value::from(message);
    json(status, format!("{{\"error\":{{\"code\":{code},\"message\":{message}}}}}"))
}

#[cfg(test)]
mod tests;
