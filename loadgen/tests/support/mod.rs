//! A tiny gateway inside the test process: just enough WebSocket, Centrifuge JSON and ingest to run every scenario.
//!
//! In: connections on three ephemeral ports of 127.0.0.1. Out: broadcasts, echoes, pushes, acknowledgements, counts of
//! members; with a [`Fault`], one of them goes wrong in a chosen way. Who offers compression is sent compressed
//! broadcasts, except on `/echo`, where the offer is declined.
//! Invariant: one thread per connection, one lock; nothing here is fast, and nothing needs to be.
use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use ringway_wire::deflate::Compressor;
use ringway_wire::frame::{Opcode, decode_header, write_server_header};
use ringway_wire::ingest::{Ack, ClientFrame, HelloOk, Publish, decode_client, frame_len, write_acks, write_hello_ok};
use ringway_wire::mask::unmask;
use ringway_wire::upgrade::{find_head_end, parse_request, write_accept};

/// What goes wrong with the fifth delivery to the first subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// It is not sent.
    Lost,
    /// It is sent twice.
    Doubled,
    /// It is sent behind the sixth.
    Late,
    /// No delivery: a member is not counted.
    Uncounted,
    /// No delivery: everybody is told of joins and leaves.
    ToldToAll,
    /// It is sent uncompressed, though the subscriber has compression.
    Uncompressed,
}

/// Index of the delivery that goes wrong.
const FAULT_AT: u64 = 4;

struct Subscriber {
    stream: TcpStream,
    peer: SocketAddr,
    hears: bool,
    deflate: bool,
    sent: u64,
    held: Option<Vec<u8>>,
}

#[derive(Default)]
struct State {
    /// Subscribers by channel; plain WebSocket ones are on the channel of the empty name.
    channels: HashMap<String, Vec<Subscriber>>,
    offsets: HashMap<String, u64>,
    written_bytes: u64,
}

/// The running gateway; its threads end with the test process.
pub(crate) struct Gateway {
    /// WebSocket port.
    pub(crate) clients: SocketAddr,
    /// Ingest port.
    pub(crate) ingest: SocketAddr,
    /// Control port.
    pub(crate) control: SocketAddr,
    /// Pongs of the client protocol that arrived.
    pub(crate) pongs: Arc<AtomicU64>,
}

struct Shared {
    state: Mutex<State>,
    fault: Fault,
    pongs: Arc<AtomicU64>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics with the lock")
    }
}

impl Gateway {
    /// Starts listening.
    pub(crate) fn start(fault: Fault) -> Gateway {
        let pongs = Arc::new(AtomicU64::new(0));
        let shared = Arc::new(Shared { state: Mutex::default(), fault, pongs: pongs.clone() });
        let clients = serve(shared.clone(), client);
        let ingest = serve(shared.clone(), backend);
        let control = serve(shared, control);
        Gateway { clients, ingest, control, pongs }
    }
}

fn serve(shared: Arc<Shared>, run: fn(&Shared, TcpStream) -> io::Result<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("an ephemeral port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let shared = shared.clone();
            // A connection that breaks ends its thread; the load generator tells the test.
            thread::spawn(move || run(&shared, stream).ok());
        }
    });
    address
}

fn client(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = Vec::new();
    let end = loop {
        if let Some(end) = find_head_end(&input, 0) {
            break end;
        }
        read_more(&mut stream, &mut input)?;
    };
    let mut answer = Vec::new();
    let (path, deflate) = {
        let request = parse_request(&input[..end]).map_err(|_| io::Error::other("a bad upgrade"))?;
        let deflate = request.deflate.filter(|_| request.path != "/echo");
        write_accept(&mut answer, &request, deflate);
        (request.path.to_string(), deflate.is_some())
    };
    input.drain(..end);
    if path == "/" {
        subscribe(shared, "", &mut stream, &answer, Ways { hears: false, deflate })?;
    } else {
        stream.write_all(&answer)?;
    }
    loop {
        let Ok(Some(header)) = decode_header(&input) else {
            read_more(&mut stream, &mut input)?;
            continue;
        };
        let whole = header.header_len + header.payload_len as usize;
        if input.len() < whole {
            read_more(&mut stream, &mut input)?;
            continue;
        }
        let mut payload: Vec<u8> = input.drain(..whole).skip(header.header_len).collect();
        unmask(&mut payload, header.mask.ok_or_else(|| io::Error::other("an unmasked client frame"))?);
        match path.as_str() {
            "/echo" => stream.write_all(&framed(&payload))?,
            "/publish" => broadcast(shared, "", &payload),
            "/connection" => commands(shared, &mut stream, &payload, deflate)?,
            _ => {}
        }
    }
}

fn commands(shared: &Shared, stream: &mut TcpStream, payload: &[u8], deflate: bool) -> io::Result<()> {
    for line in String::from_utf8_lossy(payload).lines() {
        let command: serde_json::Value = serde_json::from_str(line)?;
        let id = &command["id"];
        if command.get("connect").is_some() {
            let reply = format!("{{\"id\":{id},\"connect\":{{\"client\":\"x\",\"ping\":25,\"pong\":true}}}}\n{{}}");
            stream.write_all(&framed(reply.as_bytes()))?;
        } else if let Some(subscribe_to) = command.get("subscribe") {
            let channel = subscribe_to["channel"].as_str().unwrap_or_default();
            let position = if subscribe_to["recoverable"] == true {
                let offset = shared.state().offsets.get(channel).copied().unwrap_or(0);
                format!("\"recoverable\":true,\"epoch\":\"e\",\"offset\":{offset}")
            } else {
                String::new()
            };
            let answer = framed(format!("{{\"id\":{id},\"subscribe\":{{{position}}}}}").as_bytes());
            let hears = subscribe_to["join_leave"] == true;
            // Told before it is answered: what a client does next finds the watchers' sockets up to date.
            tell(shared, channel, "join");
            subscribe(shared, channel, stream, &answer, Ways { hears, deflate })?;
        } else if let Some(unsubscribe) = command.get("unsubscribe") {
            let (channel, peer) = (unsubscribe["channel"].as_str().unwrap_or_default(), stream.peer_addr()?);
            let answer = framed(format!("{{\"id\":{id},\"unsubscribe\":{{}}}}").as_bytes());
            tell(shared, channel, "leave");
            let mut state = shared.state();
            let subscribers = state.channels.entry(channel.to_string()).or_default();
            subscribers.retain(|subscriber| subscriber.peer != peer);
            state.written_bytes += answer.len() as u64;
            stream.write_all(&answer)?;
        } else if let Some(publish) = command.get("publish") {
            publish_to(shared, publish["channel"].as_str().unwrap_or_default(), &publish["data"].to_string());
            stream.write_all(&framed(format!("{{\"id\":{id},\"publish\":{{}}}}").as_bytes()))?;
        } else if line == "{}" {
            shared.pongs.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

fn backend(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
    let mut input = Vec::new();
    loop {
        let length = match frame_len(&input, 1 << 20) {
            Ok(Some(length)) if length <= input.len() => length,
            Ok(_) => {
                read_more(&mut stream, &mut input)?;
                continue;
            }
            Err(_) => return Err(io::Error::other("a bad ingest frame")),
        };
        let frame: Vec<u8> = input.drain(..length).collect();
        let mut out = Vec::new();
        match decode_client(&frame) {
            Ok(ClientFrame::Hello(_)) => write_hello_ok(
                &mut out,
                &HelloOk {
                    version: 1,
                    features: 0,
                    boot: 1,
                    credit_messages: 500,
                    credit_bytes: 1 << 20,
                    frame_bytes_max: 8192,
                    publication_bytes_max: 1024,
                    idempotency_window_ms: 0,
                    idle_timeout_ms: 0,
                    node: "test",
                },
            ),
            Ok(ClientFrame::PublishBatch(batch)) => {
                let acks: Vec<Ack> = batch.flatten().map(|publish| published(shared, &publish)).collect();
                write_acks(&mut out, acks);
            }
            Ok(ClientFrame::Publish(publish)) => write_acks(&mut out, [published(shared, &publish)]),
            other => return Err(io::Error::other(format!("unexpected {other:?}"))),
        }
        stream.write_all(&out)?;
    }
}

fn published(shared: &Shared, publish: &Publish<'_>) -> Ack {
    let offset = publish_to(shared, publish.channel, &String::from_utf8_lossy(publish.payload));
    Ack { seq: publish.seq, offset, epoch: (1, 1), duplicate: false }
}

/// Gives the next offset and sends the publication to everybody in the channel.
fn publish_to(shared: &Shared, channel: &str, data: &str) -> u64 {
    let offset = {
        let mut state = shared.state();
        let offset = state.offsets.entry(channel.to_string()).or_default();
        *offset += 1;
        *offset
    };
    let push = format!("{{\"push\":{{\"channel\":\"{channel}\",\"pub\":{{\"data\":{data},\"offset\":{offset}}}}}}}");
    broadcast(shared, channel, push.as_bytes());
    offset
}

/// What a subscriber takes.
struct Ways {
    /// Joins and leaves.
    hears: bool,
    /// Compressed broadcasts.
    deflate: bool,
}

/// Answers and joins in one step: whoever has read the answer gets every later broadcast.
fn subscribe(shared: &Shared, channel: &str, stream: &mut TcpStream, answer: &[u8], ways: Ways) -> io::Result<()> {
    let (peer, Ways { hears, deflate }) = (stream.peer_addr()?, ways);
    let subscriber = Subscriber { stream: stream.try_clone()?, peer, hears, deflate, sent: 0, held: None };
    let mut state = shared.state();
    state.written_bytes += answer.len() as u64;
    stream.write_all(answer)?;
    state.channels.entry(channel.to_string()).or_default().push(subscriber);
    Ok(())
}

fn broadcast(shared: &Shared, channel: &str, message: &[u8]) {
    let plain = framed(message);
    let mut compressed = Vec::new();
    Compressor::new().write_frame(&mut compressed, Opcode::Text, message);
    let mut state = shared.state();
    for (index, subscriber) in state.channels.entry(channel.to_string()).or_default().iter_mut().enumerate() {
        let frame = if subscriber.deflate { &compressed } else { &plain };
        let mut bytes = frame.clone();
        if index == 0 && subscriber.sent == FAULT_AT {
            match shared.fault {
                Fault::None | Fault::Uncounted | Fault::ToldToAll => {}
                Fault::Lost => bytes.clear(),
                Fault::Doubled => bytes.extend_from_slice(frame),
                Fault::Uncompressed => bytes.clone_from(&plain),
                Fault::Late => subscriber.held = Some(std::mem::take(&mut bytes)),
            }
        } else if let Some(held) = subscriber.held.take() {
            bytes.extend_from_slice(&held);
        }
        subscriber.sent += 1;
        // A subscriber that is gone is the load generator closing down.
        let _ = subscriber.stream.write_all(&bytes);
    }
}

/// Tells those who hear of it that somebody has come or gone; not in channels whose name begins with `plain`.
fn tell(shared: &Shared, channel: &str, what: &str) {
    if channel.starts_with("plain") {
        return;
    }
    let push = framed(format!("{{\"push\":{{\"channel\":\"{channel}\",\"{what}\":{{\"info\":{{}}}}}}}}").as_bytes());
    let mut state = shared.state();
    let everybody = shared.fault == Fault::ToldToAll;
    for subscriber in state.channels.entry(channel.to_string()).or_default() {
        if subscriber.hears || everybody {
            let _ = subscriber.stream.write_all(&push);
        }
    }
}

/// One request: numbers, or how many members a channel has.
fn control(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
    let mut input = Vec::new();
    let end = loop {
        if let Some(end) = find_head_end(&input, 0) {
            break end;
        }
        read_more(&mut stream, &mut input)?;
    };
    let head = String::from_utf8_lossy(&input[..end]).into_owned();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse::<usize>().ok());
    while input.len() < end + length.unwrap_or(0) {
        read_more(&mut stream, &mut input)?;
    }
    let state = shared.state();
    let body = if head.starts_with("GET /metrics ") {
        format!("ringway_write_bytes_total{{shard=\"0\"}} {}\n", state.written_bytes)
    } else {
        let asked: serde_json::Value = serde_json::from_slice(&input[end..])?;
        let channel = asked["channel"].as_str().unwrap_or_default();
        let members = state.channels.get(channel).map_or(0, Vec::len) - usize::from(shared.fault == Fault::Uncounted);
        if channel.starts_with("plain") {
            "{\"error\":{\"code\":108,\"message\":\"not available\"}}".to_string()
        } else {
            format!("{{\"result\":{{\"num_clients\":{members},\"num_users\":1}}}}")
        }
    };
    stream.write_all(format!("HTTP/1.1 200 OK\r\n\r\n{body}").as_bytes())
}

fn framed(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    write_server_header(&mut frame, Opcode::Text, payload.len());
    frame.extend_from_slice(payload);
    frame
}

fn read_more(stream: &mut TcpStream, input: &mut Vec<u8>) -> io::Result<()> {
    let mut bytes = [0; 4096];
    match stream.read(&mut bytes)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        count => {
            input.extend_from_slice(&bytes[..count]);
            Ok(())
        }
    }
}
