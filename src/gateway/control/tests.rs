//! Tests of the control plane over real sockets, with a pump that answers calls in place of the shards.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};

use ringway_engine::ids::Epoch;
use ringway_engine::lane_message::{Position, PublishError};
use ringway_engine::limits::Limits;
use ringway_engine::metrics::{Metric, Metrics};
use ringway_sys::thread::spawn_named;
use ringway_wire::ingest::PayloadKind;
use tokio::sync::{mpsc, oneshot};

use super::*;

mod api;

const EPOCH: Epoch = Epoch { boot: 35, creation: 36 };

/// A control plane on a port of its own, and its thread.
struct Server {
    address: SocketAddr,
    metrics: Arc<MetricsHub>,
    ready: Arc<Readiness>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// `answer` plays the shards: it takes calls until the plane is gone.
    fn start<F>(change: impl FnOnce(&mut ControlOptions), queue: usize, answer: F) -> Server
    where
        F: AsyncFn(Call) + 'static,
        F: Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("is bound");
        let mut options = ControlOptions {
            api_key: Secret::new(b"key"),
            demo: false,
            client_port: 4321,
            websocket_path: "/connection/websocket".into(),
            publication_bytes_max: 1024,
            channel_bytes_max: 32,
            idempotency_key_bytes_max: 16,
            api: ApiLimits {
                broadcast_channels_max: 3,
                batch_commands_max: 4,
                history_publications_max: 10,
                channels_listed_max: 2,
            },
            answer_timeout_ms: 2_000,
        };
        change(&mut options);
        let (metrics, ready) = (MetricsHub::new(2), Readiness::new());
        let (calls, mut pump) = mpsc::channel(queue);
        let (stop, stopped) = oneshot::channel();
        let drain = Drain::new(&Limits::DEFAULT, false, Arc::clone(&metrics), Arc::clone(&ready));
        let (metrics_of, ready_of) = (Arc::clone(&metrics), Arc::clone(&ready));
        let state = ControlState { listener, metrics: metrics_of, calls, ready: ready_of, drain, options };
        let thread = spawn_named("control-test", move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let pump = async {
                while let Some(call) = pump.recv().await {
                    answer(call).await;
                }
                std::future::pending::<()>().await;
            };
            let served = async {
                let stop = async {
                    let _ = stopped.await;
                };
                serve_until(state, stop).await.expect("serves");
            };
            runtime.block_on(async {
                tokio::select! { () = pump => {}, () = served => {} }
            });
        })
        .expect("a thread");
        Server { address, metrics, ready, stop: Some(stop), thread: Some(thread) }
    }

    fn quiet() -> Server {
        Server::start(|_| {}, 8, async |_| {})
    }

    fn request(&self, head: &str, body: &str) -> (u16, String, String) {
        let length = body.len();
        self.raw(format!("{head}\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes())
    }

    /// Status, header block, body.
    fn raw(&self, bytes: &[u8]) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.address).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        stream.write_all(bytes).expect("is taken");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("is answered and closed");
        let (head, body) = text.split_once("\r\n\r\n").expect("is HTTP");
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("has a status");
        (status, head.to_ascii_lowercase(), body.to_string())
    }

    fn get(&self, path: &str) -> (u16, String, String) {
        self.request(&format!("GET {path} HTTP/1.1"), "")
    }

    fn publish(&self, body: &str) -> (u16, String) {
        self.api("publish", body)
    }

    /// A call of the server API with the right key.
    fn api(&self, method: &str, body: &str) -> (u16, String) {
        let (status, _, body) = self.request(&format!("POST /api/{method} HTTP/1.1\r\nX-API-Key: key"), body);
        (status, body)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Answers every publish with an offset, unless the channel's name asks for something else.
async fn shards(call: Call) {
    let Call::Publish { channel, payload, kind, idempotency_key, tags, skip_history, reply } = call else {
        return api::other_shards(call);
    };
    let answer = match channel.as_str() {
        "unknown" => Err(PublishError::UnknownChannel),
        "denied" => Err(PublishError::PermissionDenied),
        "kind" => Err(PublishError::BadPayload),
        "large" => Err(PublishError::TooLarge),
        "busy" => Err(PublishError::Busy),
        "lost" => Err(PublishError::Unknown),
        "dropped" => return,
        _ => {
            // The offset tells the test what arrived: length, tags, kind, and length of the key.
            let told =
                payload.len() as u64 * 1000 + tags.len() as u64 * 200 + (kind == PayloadKind::Bytes) as u64 * 100;
            let offset = if channel == "plain" || skip_history { 0 } else { told + idempotency_key.len() as u64 };
            Ok(Published { position: Position { offset, epoch: EPOCH }, duplicate: channel == "duplicate" })
        }
    };
    let _ = reply.send(answer);
}

fn result(offset: u64) -> (u16, String) {
    (200, format!("{{\"result\":{{\"offset\":{offset},\"epoch\":\"{EPOCH}\"}}}}"))
}

#[test]
fn health_and_readiness() {
    let server = Server::quiet();
    assert_eq!(server.get("/health").0, 200);
    assert_eq!(server.get("/ready").2, "{\"ready\":false,\"reason\":\"starting\"}");
    assert_eq!(server.get("/ready").0, 503);
    server.ready.set(Phase::Ready);
    assert_eq!((server.get("/ready").0, server.get("/ready").2.as_str()), (200, "{\"ready\":true}"));
    server.ready.set(Phase::Draining);
    assert_eq!((server.get("/ready").0, server.get("/health").0), (503, 200));
}

#[test]
fn unknown_paths_and_methods_are_json_errors() {
    let server = Server::quiet();
    for path in ["/", "/demo", "/demo/demo.js", "/api/", "/api/nothing"] {
        let (status, head, body) = server.get(path);
        assert_eq!((status, body.as_str()), (404, "{\"error\":{\"code\":404,\"message\":\"not found\"}}"), "{path}");
        assert!(head.contains("content-type: application/json"));
    }
    assert_eq!((server.get("/api/publish").0, server.get("/api").0), (405, 405));
    assert!(server.get("/api/publish").1.contains("allow: post"));
    assert_eq!(server.request("DELETE /metrics HTTP/1.1", "").0, 405);
}

#[test]
fn metrics_are_prometheus_text() {
    let server = Server::start(|_| {}, 8, shards);
    let mut numbers = Metrics::new();
    numbers.add(Metric::Deliveries, 7);
    server.metrics.publish(1, &numbers);
    server.publish("{\"channel\":\"a\",\"data\":1}");
    server.request("POST /api/publish HTTP/1.1", "{}");
    let (status, head, body) = server.get("/metrics");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    for line in [
        "ringway_deliveries_total{shard=\"1\"} 7",
        "ringway_closes_total{reason=\"slow\",code=\"3008\",shard=\"0\"} 0",
        "ringway_api_calls_total{method=\"publish\",result=\"ok\"} 1",
        "ringway_api_calls_total{method=\"publish\",result=\"unauthorized\"} 1",
        "ringway_api_calls_total{method=\"history\",result=\"ok\"} 0",
        "# TYPE process_resident_memory_bytes gauge",
        concat!("ringway_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
    ] {
        assert!(body.lines().any(|l| l == line), "{line}");
    }
    for line in body.lines().filter(|l| !l.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').expect("a series and a value");
        assert!(!series.is_empty() && value.parse::<f64>().is_ok(), "{line}");
    }
}

#[test]
fn a_publish_is_answered_with_its_position() {
    let server = Server::start(|_| {}, 8, shards);
    assert_eq!(server.publish("{\"channel\":\"a\",\"data\":{\"x\":1}}"), result(7000));
    // Newlines between tokens go, everything else stays as it was written.
    assert_eq!(server.publish("{\"channel\":\"a\",\n\"data\":{\r\n \"x\" : 1\n}}"), result(9000 + 1000));
    assert_eq!(server.publish("{\"channel\":\"a\",\"data\":\"a\\nb\"}"), result(6000));
    assert_eq!(server.publish("{\"channel\":\"a\",\"data\":null}"), result(4000));
    assert_eq!(server.publish("{\"channel\":\"a\",\"data\":1,\"idempotency_key\":\"abc\"}"), result(1003));
    assert_eq!(server.publish("{\"channel\":\"a\",\"b64data\":\"AAEC\"}"), result(3100));
    assert_eq!(server.publish("{\"channel\":\"\\u0061\",\"data\":1,\"skip_history\":false,\"tags\":{}}"), result(1000));
    let tagged = "{\"channel\":\"a\",\"data\":1,\"tags\":{\"a\":\"b\",\"c\":\"\"}}";
    assert_eq!(server.publish(tagged), result(1000 + 400));
    // As client libraries of Centrifugo send it: base64 wins, unknown fields are ignored.
    assert_eq!(server.publish("{\"channel\":\"a\",\"data\":1,\"b64data\":\"AAEC\",\"chanel\":\"b\"}"), result(3100));
    assert_eq!(server.publish("{\"channel\":\"a\",\"data\":1,\"b64data\":\"\",\"delta\":true}"), result(1000));
    let skipped = server.publish("{\"channel\":\"a\",\"data\":1,\"skip_history\":true}");
    assert_eq!(skipped, (200, "{\"result\":{}}".into()));
    assert_eq!(server.publish("{\"channel\":\"duplicate\",\"data\":1}"), result(1000));
    assert_eq!(server.publish("{\"channel\":\"plain\",\"data\":1}"), (200, "{\"result\":{}}".into()));
}

#[test]
fn the_key_is_needed() {
    let server = Server::start(|_| {}, 8, shards);
    let body = "{\"channel\":\"a\",\"data\":1}";
    for header in [
        "X-Other: key",
        "X-API-Key: ke",
        "X-API-Key: keyy",
        "X-API-Key:",
        "Authorization: key",
        "Authorization: Bearer key",
    ] {
        let (status, _, answer) = server.request(&format!("POST /api/publish HTTP/1.1\r\n{header}"), body);
        assert_eq!(
            (status, answer.as_str()),
            (401, "{\"error\":{\"code\":101,\"message\":\"unauthorized\"}}"),
            "{header}"
        );
    }
    for header in ["X-API-Key: key", "x-api-key: key", "Authorization: apikey key", "Authorization: APIKEY key"] {
        assert_eq!(server.request(&format!("POST /api/publish HTTP/1.1\r\n{header}"), body).0, 200, "{header}");
    }
    let closed = Server::start(|options| options.api_key = Secret::new(b""), 8, shards);
    for header in ["X-API-Key:", "X-API-Key: key", "Authorization: apikey "] {
        let (status, _, answer) = closed.request(&format!("POST /api/publish HTTP/1.1\r\n{header}"), body);
        assert!(status == 401 && answer.contains("control.api_key is not set"), "{header}: {status} {answer}");
    }
}

#[test]
fn bad_bodies_are_error_107() {
    let server = Server::start(|_| {}, 8, shards);
    let long_channel = format!("{{\"channel\":\"{}\",\"data\":1}}", "c".repeat(33));
    let long_key = format!("{{\"channel\":\"a\",\"data\":1,\"idempotency_key\":\"{}\"}}", "k".repeat(17));
    for body in [
        "",
        "{",
        "[]",
        "{\"channel\":\"a\"}",
        "{\"data\":1}",
        "{\"channel\":\"\",\"data\":1}",
        "{\"channel\":1,\"data\":1}",
        "{\"channel\":\"a\",\"data\":{]}",
        "{\"channel\":\"a\",\"data\":01}",
        "{\"channel\":\"a\",\"data\":\"raw\nnewline\"}",
        "{\"channel\":\"a\",\"b64data\":\"?\"}",
        "{\"channel\":\"a\",\"b64data\":\"\"}",
        "{\"channel\":\"a\",\"data\":1} x",
        "{\"channel\":\"a\",\"data\":1,\"tags\":{\"a\":1}}",
        "{\"channel\":\"a\",\"data\":1,\"tags\":[]}",
        "{\"channel\":\"a\",\"data\":1,\"version\":1}",
        "{\"channel\":\"a\",\"data\":1,\"version_epoch\":\"a\"}",
        &long_channel,
        &long_key,
    ] {
        let (status, answer) = server.publish(body);
        assert!(
            status == 200 && answer.starts_with("{\"error\":{\"code\":107,\"message\":\"bad request: "),
            "{body}: {answer}"
        );
        serde_json::from_str::<serde_json::Value>(&answer).expect("the answer is JSON");
    }
    let mut bytes =
        b"POST /api/publish HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-API-Key: key\r\nContent-Length: 26\r\n\r\n"
            .to_vec();
    bytes.extend_from_slice(b"{\"channel\":\"a\",\"data\":\"\xff\xfe\"}");
    let (status, _, answer) = server.raw(&bytes);
    assert!(status == 200 && answer.contains("\"code\":107"), "{answer}");
}

#[test]
fn sizes_are_bounded() {
    let server = Server::start(|_| {}, 8, shards);
    let of = |length: usize| format!("{{\"channel\":\"a\",\"data\":\"{}\"}}", "x".repeat(length - 2));
    assert_eq!(server.publish(&of(1024)), result(1_024_000));
    for length in [1025, 70_000, 2_000_000] {
        let (status, answer) = server.publish(&of(length));
        assert!(status == 413 && answer.contains("\"code\":106"), "{length}: {status} {answer}");
    }
}

#[test]
fn refusals_of_the_shards_keep_their_codes() {
    let server = Server::start(|_| {}, 8, shards);
    for (channel, status, code) in [
        ("unknown", 200, 102),
        ("denied", 200, 103),
        ("kind", 200, 107),
        ("large", 413, 106),
        ("busy", 200, 111),
        ("lost", 504, 100),
        ("dropped", 504, 100),
    ] {
        let (got, answer) = server.publish(&format!("{{\"channel\":\"{channel}\",\"data\":1}}"));
        assert_eq!(got, status, "{channel}: {answer}");
        assert!(answer.starts_with(&format!("{{\"error\":{{\"code\":{code},")), "{channel}: {answer}");
    }
}

#[test]
fn shards_that_do_not_answer_are_a_timeout_and_a_full_queue_is_busy() {
    // The pump holds the first call; of the next two, one fills the queue and the other finds no place.
    let (taken, first_taken) = std::sync::mpsc::channel();
    let server = Server::start(
        |options| options.answer_timeout_ms = 700,
        1,
        async move |call| {
            let _ = taken.send(());
            tokio::time::sleep(Duration::from_secs(30)).await;
            drop(call);
        },
    );
    let body = "{\"channel\":\"a\",\"data\":1}";
    let answers: Vec<(u16, String)> = thread::scope(|scope| {
        let first = scope.spawn(|| server.publish(body));
        first_taken.recv().expect("the pump takes the first call");
        let mut threads = vec![first];
        threads.extend((0..2).map(|_| scope.spawn(|| server.publish(body))));
        threads.into_iter().map(|t| t.join().expect("is answered")).collect()
    });
    let timeouts = answers.iter().filter(|(status, body)| *status == 504 && body.contains("\"code\":100")).count();
    let busy = answers.iter().filter(|(status, body)| *status == 200 && body.contains("\"code\":111")).count();
    assert_eq!((timeouts, busy), (2, 1), "{answers:?}");
}

#[test]
fn the_demo_is_complete_and_loads_nothing_from_elsewhere() {
    let server = Server::start(
        |options| {
            options.demo = true;
            options.websocket_path = "/a\"<b".into();
        },
        8,
        shards,
    );
    let (status, head, page) = server.get("/demo");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/html") && head.contains("content-security-policy: default-src 'none'"));
    assert!(
        page.contains("data-client-port=\"4321\"") && page.contains("data-websocket-path=\"/a&quot;&lt;b\""),
        "{page}"
    );
    assert!(!page.contains("{{"), "a place was not filled");
    assert!(!page.contains("http://") && !page.contains("https://"), "loads from elsewhere");
    // Whatever the page and its script load is served, and the SDK builds define their global name.
    for (path, word) in [
        ("/demo/demo.js", "Centrifuge"),
        ("/demo/demo.css", "{"),
        ("/demo/centrifuge.js", "globalThis.Centrifuge="),
        ("/demo/centrifuge.protobuf.js", "globalThis.Centrifuge="),
        ("/demo/LICENSE", "MIT"),
    ] {
        let (status, _, body) = server.get(path);
        assert!(status == 200 && body.contains(word), "{path}");
    }
    for part in page.split(['"', '\'']).filter(|p| p.starts_with("/demo")) {
        assert_eq!(server.get(part).0, 200, "{part}");
    }
}

#[test]
fn connections_are_kept_alive_and_garbage_closes_only_its_own() {
    let server = Server::quiet();
    let mut kept = TcpStream::connect(server.address).expect("connects");
    kept.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let (status, ..) = server.raw(b"\x00\x01garbage\r\n\r\n");
    assert_eq!(status, 400);
    for _ in 0..3 {
        kept.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").expect("is taken");
        let mut answer = [0u8; 1024];
        let n = kept.read(&mut answer).expect("is answered");
        assert!(answer[..n].starts_with(b"HTTP/1.1 200"));
    }
}

#[test]
fn a_silent_connection_is_closed_and_frees_its_place() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("is bound");
    spawn_named("control-test", move || {
        runtime.block_on(async {
            let listener = listener::Bounded::new(socket, 1, Duration::from_millis(300)).expect("is taken");
            let router = Router::new().route("/", get(async || "hello"));
            axum::serve(listener, router).await.expect("serves");
        });
    })
    .expect("a thread");
    let mut silent = TcpStream::connect(address).expect("connects");
    let mut next = TcpStream::connect(address).expect("waits in the listen queue");
    next.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    next.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("is taken");
    let mut answer = String::new();
    next.read_to_string(&mut answer).expect("is answered once the silent one is closed");
    assert!(answer.ends_with("hello"), "{answer}");
    silent.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    assert_eq!(silent.read(&mut [0; 16]).unwrap_or(0), 0, "the silent connection was closed");
}
