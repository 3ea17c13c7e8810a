//! Publishers over ingest that outlive nodes: what a node does not acknowledge they publish again elsewhere, with the
//! same idempotency key.
//!
//! In: addresses of all nodes, channels, a rate. Out: publications; what became of each number, and what
//! acknowledgements said.
//!
//! ```text
//! connection ends, GoingAway, or no acknowledgement in time -> next address, same number, same key
//! refused as temporary                                       -> again here, same number, same key
//! ```
//!
//! Invariants: a channel has at most one publication without acknowledgement, so that publishing again cannot turn the
//! order around; a number is left only when it is acknowledged. Nothing here waits but the nap between turns.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};

use super::link::Written;
use super::report::count_reason;
use crate::net;
use crate::payload::{PayloadForm, PayloadTemplate, Stamp};
use crate::report::Latency;
use link::{Heard, Link};

#[path = "backend_link.rs"]
mod link;

/// Pause between two turns, in microseconds.
const NAP_US: u64 = 1_000;
/// From the loss of a node to the next connect, in ns.
const RETRY_NS: u64 = 50_000_000;
/// From a refusal to the next try at the same node, in ns.
const REFUSED_NS: u64 = 100_000_000;
/// Longest wait for a hello, in ns.
const HELLO_NS: u64 = 2_000_000_000;

/// Where and what to publish.
#[derive(Clone, Debug)]
pub struct BackendOptions {
    /// Ingest ports of all nodes.
    pub addresses: Vec<SocketAddr>,
    /// Token of the ingest ports.
    pub token: String,
    /// Connections.
    pub publishers: u32,
    /// Numbers of the channels.
    pub channels: std::ops::Range<u32>,
    /// Channel names are this and a number.
    pub channel_prefix: String,
    /// Payload length.
    pub payload_bytes: usize,
    /// Publications per second to each channel.
    pub rate_per_channel: f64,
    /// Stamp of this run.
    pub run: u16,
    /// Longest wait for an acknowledgement, in ms; behind it the publisher goes to another node.
    pub ack_timeout_ms: u64,
    /// Core to pin to.
    pub cpu: Option<usize>,
}

/// What the publishers found.
#[derive(Clone, Debug, Default)]
pub struct BackendReport {
    /// What became of the numbers, by channel.
    pub written: Vec<Written>,
    /// Publications acknowledged.
    pub acknowledged: u64,
    /// Publications sent again.
    pub again: u64,
    /// Acknowledgements that said duplicate.
    pub duplicates: u64,
    /// Acknowledged offsets that were not the one before plus one under the epoch.
    pub wrong_offsets: u64,
    /// Acknowledgements under another epoch than the one before.
    pub epoch_changes: u64,
    /// Refusals, by error.
    pub refusals: BTreeMap<String, u64>,
    /// Why nodes were left, by reason.
    pub moves: BTreeMap<String, u64>,
    /// From the time at which a publication was due to its acknowledgement.
    pub latency: Latency,
}

/// The running publishers.
pub struct Backend {
    stop: Sender<()>,
    thread: JoinHandle<Result<BackendReport, String>>,
}

impl Backend {
    /// Starts publishing on a thread.
    ///
    /// # Errors
    /// What is wrong with the options.
    pub fn start(options: BackendOptions) -> Result<Backend, String> {
        if options.addresses.is_empty() || options.publishers == 0 {
            return Err("--ingest and --publishers must be at least 1".to_string());
        }
        let (stop, stopped) = channel();
        let mut publishing = Publishing::new(options)?;
        let thread = thread::spawn(move || publishing.run(&stopped));
        Ok(Backend { stop, thread })
    }

    /// Begins no more publications and waits up to `wait_s` until all are acknowledged.
    ///
    /// # Errors
    /// What ended the publishers before.
    pub fn finish(self, wait_s: f64) -> Result<BackendReport, String> {
        let end_ns = net::now_ns() + (wait_s * 1e9) as u64;
        // A thread that has ended with an error has dropped its end.
        let _ = self.stop.send(());
        while !self.thread.is_finished() && net::now_ns() < end_ns {
            net::nap(NAP_US);
        }
        // The second time means at once.
        let _ = self.stop.send(());
        self.thread.join().map_err(|_| "the publishing thread panicked".to_string())?
    }
}

#[derive(Clone, Debug)]
struct Channel {
    number: u32,
    name: String,
    /// Number of the next, or of the outstanding, publication.
    next: u32,
    /// Whether the publication of this number has been sent before.
    sent: bool,
    outstanding: bool,
    /// When it should have been sent.
    intended_ns: u64,
    /// When it may be sent.
    due_ns: u64,
    position: Option<((u32, u32), u64)>,
}

struct Publisher {
    number: u32,
    /// Index of the address.
    at: usize,
    link: Option<Link>,
    retry_ns: u64,
    channels: Vec<Channel>,
}

struct Publishing {
    options: BackendOptions,
    publishers: Vec<Publisher>,
    payload: PayloadTemplate,
    interval_ns: u64,
    report: BackendReport,
    stopping: bool,
}

impl Publishing {
    fn new(options: BackendOptions) -> Result<Publishing, String> {
        let (now_ns, interval_ns) = (net::now_ns(), (1e9 / options.rate_per_channel.max(1e-6)) as u64);
        let count = u64::from(options.channels.end - options.channels.start).max(1);
        let channel = |number: u32| {
            let due_ns = now_ns + interval_ns * u64::from(number - options.channels.start) / count;
            Channel {
                number,
                name: format!("{}{number}", options.channel_prefix),
                next: 0,
                sent: false,
                outstanding: false,
                intended_ns: due_ns,
                due_ns,
                position: None,
            }
        };
        let publisher = |number: u32| Publisher {
            number,
            at: number as usize % options.addresses.len(),
            link: None,
            retry_ns: 0,
            channels: options
                .channels
                .clone()
                .skip(number as usize)
                .step_by(options.publishers as usize)
                .map(channel)
                .collect(),
        };
        Ok(Publishing {
            publishers: (0..options.publishers).map(publisher).collect(),
            payload: PayloadTemplate::new(PayloadForm::Text, options.payload_bytes)?,
            interval_ns,
            report: BackendReport::default(),
            stopping: false,
            options,
        })
    }

    fn run(&mut self, stopped: &Receiver<()>) -> Result<BackendReport, String> {
        if let Some(cpu) = self.options.cpu {
            net::pin_to_core(cpu)?;
        }
        let mut at_once = false;
        while !(at_once || self.stopping && self.settled()) {
            match stopped.try_recv() {
                Ok(()) if self.stopping => at_once = true,
                Ok(()) => self.stopping = true,
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Err("nobody waits for the publishers".to_string()),
            }
            for index in 0..self.publishers.len() {
                self.turn(index)?;
            }
            net::nap(NAP_US);
        }
        let of = |channel: &Channel| Written {
            channel: channel.number,
            next: channel.next + u32::from(channel.sent),
            confirmed: channel.next,
            unconfirmed: channel.sent.then_some(channel.next).into_iter().collect(),
        };
        self.report.written = self.publishers.iter().flat_map(|publisher| &publisher.channels).map(of).collect();
        Ok(std::mem::take(&mut self.report))
    }

    fn settled(&self) -> bool {
        self.publishers.iter().flat_map(|publisher| &publisher.channels).all(|channel| !channel.sent)
    }

    fn turn(&mut self, index: usize) -> Result<(), String> {
        let now_ns = net::now_ns();
        let publisher = &mut self.publishers[index];
        let Some(link) = &mut publisher.link else {
            if publisher.retry_ns > now_ns || (self.stopping && publisher.channels.iter().all(|channel| !channel.sent))
            {
                return Ok(());
            }
            let address = self.options.addresses[publisher.at];
            let instance = u64::from(self.options.run) << 32 | u64::from(publisher.number);
            match Link::connect(address, &self.options.token, instance, now_ns) {
                Ok(link) => publisher.link = Some(link),
                Err(reason) => self.lose(index, &reason, now_ns),
            }
            return Ok(());
        };
        let heard = match link.receive() {
            Ok(heard) => heard,
            Err(reason) => {
                self.lose(index, &reason, now_ns);
                return Ok(());
            }
        };
        for one in heard {
            self.heard(index, one, now_ns)?;
        }
        self.publish(index, now_ns);
        let ack_ns = self.options.ack_timeout_ms * 1_000_000;
        let Some(link) = &mut self.publishers[index].link else { return Ok(()) };
        let leave = if !link.is_ready() {
            (now_ns > link.since_ns + HELLO_NS).then(|| "no hello in time".to_string())
        } else if link.going_away && link.outstanding() == 0 {
            Some("it goes away".to_string())
        } else if link.oldest_ns().is_some_and(|sent_ns| now_ns > sent_ns + ack_ns) {
            Some("no acknowledgement in time".to_string())
        } else {
            link.flush().err()
        };
        if let Some(reason) = leave {
            self.lose(index, &reason, now_ns);
        }
        Ok(())
    }

    /// Leaves a node; what it did not acknowledge is published again elsewhere.
    fn lose(&mut self, index: usize, reason: &str, now_ns: u64) {
        count_reason(&mut self.report.moves, reason);
        let publisher = &mut self.publishers[index];
        publisher.link = None;
        publisher.at = (publisher.at + 1) % self.options.addresses.len();
        publisher.retry_ns = now_ns + RETRY_NS;
        for channel in publisher.channels.iter_mut().filter(|channel| channel.outstanding) {
            (channel.outstanding, channel.due_ns) = (false, now_ns);
        }
    }

    fn publish(&mut self, index: usize, now_ns: u64) {
        let publisher = &mut self.publishers[index];
        let Some(link) = publisher.link.as_mut().filter(|link| link.is_ready() && !link.going_away) else { return };
        for (place, channel) in publisher.channels.iter_mut().enumerate() {
            let waits = channel.outstanding || channel.due_ns > now_ns || (self.stopping && !channel.sent);
            if waits || link.room(self.payload.len()) == 0 {
                continue;
            }
            let stamp = Stamp {
                run: self.options.run,
                channel: channel.number,
                sequence: u64::from(channel.next),
                intended_ns: channel.intended_ns,
            };
            let mut key = [0; 16];
            key[..2].copy_from_slice(&self.options.run.to_le_bytes());
            key[4..8].copy_from_slice(&channel.number.to_le_bytes());
            key[8..12].copy_from_slice(&channel.next.to_le_bytes());
            link.publish(place, &channel.name, &key, self.payload.stamped(&stamp), now_ns);
            self.report.again += u64::from(channel.sent);
            (channel.sent, channel.outstanding) = (true, true);
        }
    }

    fn heard(&mut self, index: usize, heard: Heard, now_ns: u64) -> Result<(), String> {
        let place = match heard {
            Heard::Ack { place, .. } | Heard::Nack { place, .. } => place,
        };
        let Some(channel) = self.publishers[index].channels.get_mut(place).filter(|channel| channel.outstanding) else {
            return Err("ingest: an acknowledgement of nothing that was outstanding".to_string());
        };
        channel.outstanding = false;
        match heard {
            Heard::Ack { epoch, offset, duplicate, .. } => {
                self.report.acknowledged += 1;
                self.report.duplicates += u64::from(duplicate);
                if let Some((last_epoch, last_offset)) = channel.position {
                    self.report.epoch_changes += u64::from(last_epoch != epoch);
                    self.report.wrong_offsets += u64::from(last_epoch == epoch && offset != last_offset + 1);
                }
                channel.position = Some((epoch, offset));
                self.report.latency.record(now_ns.saturating_sub(channel.intended_ns));
                (channel.next, channel.sent) = (channel.next + 1, false);
                // After an interruption nothing is made up for in a burst.
                let due_ns = (channel.intended_ns + self.interval_ns).max(now_ns.saturating_sub(self.interval_ns));
                (channel.due_ns, channel.intended_ns) = (due_ns, due_ns);
            }
            Heard::Nack { temporary, reason, .. } => {
                count_reason(&mut self.report.refusals, &reason);
                if !temporary {
                    return Err(format!("ingest: a publish to {} was refused for good: {reason}", channel.name));
                }
                channel.due_ns = now_ns + REFUSED_NS;
            }
        }
        Ok(())
    }
}
