//! A small backend: admits everybody who connects, serves the rpc method `sum`, and prints what clients do.
//!
//! In: `serve_events ADDRESS[,ADDRESS…] TOKEN`; clients' events from the gateway until standard input ends.
//! Out: a line per event on standard output; errors on standard error, and then status 1.
//!
//! ```text
//! cargo run -p ringway-ingest --example serve_events -- 127.0.0.1:8002 dev
//! ```

use std::error::Error;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use ringway_ingest::{Client, Config, ConnectReply, Event, EventOptions, Happened, Reply};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("serve_events: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [addresses, token] = &arguments[..] else {
        return Err("usage: serve_events ADDRESS[,ADDRESS...] TOKEN".into());
    };
    let mut config = Config::new("", token.as_bytes());
    config.addresses = addresses.split(',').map(str::to_owned).collect();
    config.name = "serve-events-example".to_owned();
    let client = Client::connect(config)?;
    client.events(EventOptions::default(), serve)?;
    // Until somebody closes the standard input; meanwhile everything happens on the client's threads.
    io::stdin().lock().read_to_end(&mut Vec::new())?;
    client.close(Duration::from_secs(10))?;
    Ok(())
}

/// Called for one client's events one after another, for different clients on several threads at once.
fn serve(event: &Event<'_>) -> Reply {
    let who = event.client.client;
    // A closed pipe must not keep clients out.
    let _ = writeln!(io::stdout(), "{} {who} {:?}: {:?}", event.id.number, event.client.user, event.client.what);
    match event.client.what {
        // The name is the client's own word, so it is good for a greeting and for nothing else.
        Happened::Connect { .. } => Reply::Connect(ConnectReply::default()),
        Happened::Rpc { method: "sum", data } => match sum(data) {
            Some(total) => Reply::Rpc(total.to_string().into_bytes()),
            None => Reply::Error { code: 400, message: "give me a list of numbers".into(), temporary: false },
        },
        Happened::Rpc { .. } => Reply::Error { code: 104, message: "method not found".into(), temporary: false },
        _ => Reply::Done,
    }
}

/// The sum of a JSON list of whole numbers.
fn sum(data: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(data).ok()?.trim().strip_prefix('[')?.strip_suffix(']')?;
    if text.trim().is_empty() {
        return Some(0);
    }
    text.split(',').try_fold(0i64, |total, number| total.checked_add(number.trim().parse().ok()?))
}
