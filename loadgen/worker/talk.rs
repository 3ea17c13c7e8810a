//! What a worker does for its coordinator: obeys orders, says what it has, keeps the echo load going.
//!
//! In: lines on stdin, and that an echo came back. Out: lines on stdout, messages to echo.
//! Invariant: at most one note of each kind per `notify_us`, except for what the coordinator waits for.
use std::io::{self, Write as _};

use super::{Echo, Goal, Phase, Worker};
use crate::link::{Note, Opened, Order, WorkerReport, decode, encode};
use crate::net;
use crate::payload::{PayloadForm, PayloadTemplate, Stamp};
use crate::protocol::write_frame;
use crate::report::Latency;
use crate::server_cost;

/// Bytes of orders taken at once.
const ORDER_BYTES: usize = 16 * 1024;

impl Worker {
    /// An echo came back: send the next one on its connection.
    pub(super) fn echoed(&mut self, connection: u32) {
        self.echoes += 1;
        let Some(echo) = &mut self.echo else { return };
        echo.outstanding -= 1;
        if echo.stopping {
            return;
        }
        let mut bytes = Vec::new();
        self.append_echo(connection, &mut bytes);
        self.send(connection, &bytes);
    }

    fn append_echo(&mut self, connection: u32, bytes: &mut Vec<u8>) {
        let layout = self.config.layout;
        let Some(echo) = &mut self.echo else { return };
        let next = &mut echo.next_sequence[connection as usize];
        let stamp = Stamp {
            run: self.config.run,
            channel: layout.channel(self.config.first_connection + u64::from(connection), 0),
            sequence: u64::from(*next),
            intended_ns: net::now_ns(),
        };
        *next += 1;
        echo.outstanding += 1;
        write_frame(bytes, self.dialect.opcode(), echo.payload.stamped(&stamp));
    }

    pub(super) fn take_orders(&mut self) -> Result<(), String> {
        let mut bytes = vec![0; ORDER_BYTES];
        match rustix::io::read(io::stdin(), &mut bytes) {
            // The coordinator is gone: so is the run.
            Ok(0) => self.exiting = true,
            Ok(count) => self.orders.push_str(&String::from_utf8_lossy(&bytes[..count])),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(error) => return Err(format!("stdin: {error}")),
        }
        while let Some(end) = self.orders.find('\n') {
            let line: String = self.orders.drain(..=end).collect();
            self.obey(decode(&line)?)?;
        }
        Ok(())
    }

    fn obey(&mut self, order: Order) -> Result<(), String> {
        match order {
            Order::Goal { published } => {
                self.goal = Some(Goal { published, due: self.checker.due(published), first_ns: 0 });
            }
            Order::Echo { outstanding, payload_bytes } => {
                self.echo = Some(Echo {
                    payload: PayloadTemplate::new(PayloadForm::Text, payload_bytes)?,
                    next_sequence: vec![0; self.config.connections as usize],
                    outstanding: 0,
                    stopping: false,
                });
                for connection in 0..self.config.connections {
                    if self.phases[connection as usize] == Phase::Open {
                        let mut bytes = Vec::new();
                        for _ in 0..outstanding {
                            self.append_echo(connection, &mut bytes);
                        }
                        self.send(connection, &bytes);
                    }
                }
            }
            Order::EchoStop => {
                if let Some(echo) = &mut self.echo {
                    echo.stopping = true;
                }
            }
            Order::Churn { channel, outstanding, churners } => self.begin_churn(&channel, outstanding, churners),
            Order::ChurnStop => self.stop_churn(),
            Order::Reset => {
                self.latency = Latency::new();
                (self.echoes, self.changes, self.told) = (0, 0, 0);
                self.received_bytes = 0;
                self.cpu_ns_at_reset = server_cost::own_cpu_ns();
                say(&Note::Done)?;
            }
            Order::Report { published } => self.report(published)?,
            Order::Exit => self.exiting = true,
        }
        Ok(())
    }

    pub(super) fn something_to_say(&self) -> bool {
        self.checker.received() != self.said_received || self.open != self.said_open
    }

    pub(super) fn notify(&mut self) -> Result<(), String> {
        let settled = self.open as usize + self.failures.values().sum::<u64>() as usize;
        if !self.ready_said && settled + self.losses.values().sum::<u64>() as usize >= self.config.connections as usize
        {
            self.ready_said = true;
            return say(&Note::Ready(Opened {
                connections: self.open,
                first_ns: self.first_ns,
                last_ns: self.last_ns,
                latency: self.opening_latency.buckets(),
                failures: self.failures.clone(),
                resident_bytes: server_cost::own_resident_bytes(),
                cpu_ns: server_cost::own_cpu_ns(),
            }));
        }
        let received = self.checker.received();
        if let Some(goal) = self.goal.take_if(|goal| received >= goal.due) {
            let (published, first_ns) = (goal.published, goal.first_ns);
            say(&Note::Reached { published, first_ns, last_ns: self.delivered_ns })?;
        }
        if self.echo.as_ref().is_some_and(|echo| echo.stopping && echo.outstanding == 0) {
            self.echo = None;
            say(&Note::Done)?;
        }
        if self.churn_is_over() {
            self.churn = None;
            say(&Note::Done)?;
        }
        if self.something_to_say() {
            let now_ns = net::now_ns();
            if now_ns - self.said_ns >= self.config.notify_us * 1000 {
                self.said_ns = now_ns;
                if self.open != self.said_open {
                    self.said_open = self.open;
                    say(&Note::Open { connections: self.open })?;
                }
                if received != self.said_received {
                    self.said_received = received;
                    say(&Note::Received { deliveries: received })?;
                }
            }
        }
        Ok(())
    }

    fn report(&mut self, published: Option<u64>) -> Result<(), String> {
        let counts = match published {
            Some(published) => self.checker.finish(published),
            None => self.checker.finish(0),
        };
        say(&Note::Report(Box::new(WorkerReport {
            counts,
            latency: self.latency.buckets(),
            echoes: self.echoes,
            changes: self.changes,
            told: self.told,
            open: self.open,
            losses: self.losses.clone(),
            pings: self.pings,
            received_bytes: self.received_bytes,
            compressed: self.compressed,
            cpu_ns: server_cost::own_cpu_ns().saturating_sub(self.cpu_ns_at_reset),
            resident_bytes: server_cost::own_resident_bytes(),
        })))
    }
}

fn say(note: &Note) -> Result<(), String> {
    let line = encode(note)?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| format!("stdout: {error}"))
}
