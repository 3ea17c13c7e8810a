//! Publishes lines of the standard input to a channel and prints where each stands.
//!
//! In: `publish ADDRESS[,ADDRESS…] TOKEN CHANNEL`, JSON texts on standard input, one a line.
//! Out: a line per publish on standard output; errors on standard error, and then status 1.
//!
//! ```text
//! seq 1 5 | cargo run -p ringway-ingest --example publish -- 127.0.0.1:8002 dev news
//! ```

use std::error::Error;
use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::time::Duration;

use ringway_ingest::{Client, Config, Options, PublishHandle};

/// Publishes on the way at once, so that a slow gateway slows the input and not the memory.
const HANDLES_MAX: usize = 1_000;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("publish: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [addresses, token, channel] = &arguments[..] else {
        return Err("usage: publish ADDRESS[,ADDRESS...] TOKEN CHANNEL < JSON-LINES".into());
    };
    let mut config = Config::new("", token.as_bytes());
    config.addresses = addresses.split(',').map(str::to_owned).collect();
    config.name = "publish-example".to_owned();
    let client = Client::connect(config)?;

    let mut out = io::stdout().lock();
    let mut handles = Vec::with_capacity(HANDLES_MAX);
    for line in io::stdin().lock().lines() {
        handles.push(client.publish_blocking(channel, line?.as_bytes(), &Options::default())?);
        if handles.len() == HANDLES_MAX {
            report(&mut out, &mut handles)?;
        }
    }
    report(&mut out, &mut handles)?;
    client.close(Duration::from_secs(10))?;
    Ok(())
}

fn report(out: &mut impl Write, handles: &mut Vec<PublishHandle>) -> Result<(), Box<dyn Error>> {
    for handle in handles.drain(..) {
        let ack = handle.wait()?;
        let note = if ack.duplicate { " (known before)" } else { "" };
        writeln!(out, "publish {}: offset {} epoch {}{note}", handle.seq(), ack.offset, ack.epoch)?;
    }
    Ok(())
}
