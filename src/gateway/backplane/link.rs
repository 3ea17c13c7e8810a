//! One connection to a server of the engine: commands out, replies and pushes in, in order.
//!
//! In: packed commands. Out: values. Invariants: it never opens itself again (whoever holds it has read the server's
//! replication id on this very connection); RESP3, so that replies and pushes share it; all waiting is cancel-safe.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use redis::{Cmd, Value, ValueCodec, cmd};
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::TcpStream;
use tokio_util::codec::Decoder as _;

use super::config::{Address, Login};

/// Bytes read from a connection at once.
const READ_BYTES: usize = 64 * 1024;
/// Free memory of the write buffer beyond this is given back when it is empty.
const WRITE_KEPT_BYTES: usize = 1024 * 1024;

/// Why a connection is of no use, for the log.
pub(super) type Reason = String;

pub(super) struct Link {
    stream: TcpStream,
    codec: ValueCodec,
    read: BytesMut,
    write: Vec<u8>,
    written: usize,
}

impl Link {
    /// Connects and introduces itself.
    ///
    /// # Errors
    /// What went wrong, or that it took too long.
    pub(super) async fn open(address: &Address, login: &Login, timeout: Duration) -> Result<Link, Reason> {
        let opening = async {
            let stream = TcpStream::connect((address.host.as_str(), address.port)).await.map_err(|e| e.to_string())?;
            stream.set_nodelay(true).map_err(|e| e.to_string())?;
            let (codec, read) = (ValueCodec::default(), BytesMut::with_capacity(READ_BYTES));
            let mut link = Link { stream, codec, read, write: Vec::new(), written: 0 };
            let mut hello = cmd("HELLO");
            hello.arg(3);
            if let Some(password) = login.password() {
                hello.arg("AUTH").arg(login.username()).arg(password);
            }
            hello.arg("SETNAME").arg("ringway");
            link.ask(&[hello]).await?;
            Ok(link)
        };
        within(timeout, opening).await
    }

    /// Sends commands and waits for a reply to each; pushes in between are dropped. Only while nothing is in flight.
    ///
    /// # Errors
    /// The connection failed, or a reply is an error.
    pub(super) async fn ask(&mut self, commands: &[Cmd]) -> Result<Vec<Value>, Reason> {
        for command in commands {
            self.push(command);
        }
        self.replies(commands.len()).await
    }

    /// Waits for so many replies to what was pushed.
    ///
    /// # Errors
    /// As [`Link::ask`].
    pub(super) async fn replies(&mut self, count: usize) -> Result<Vec<Value>, Reason> {
        let mut replies = Vec::with_capacity(count);
        while replies.len() < count {
            match self.next()? {
                None => self.drive().await?,
                Some(Value::Push { .. }) => {}
                Some(Value::ServerError(error)) => {
                    return Err(format!("{} {}", error.code(), error.details().unwrap_or_default()));
                }
                Some(value) => replies.push(value),
            }
        }
        Ok(replies)
    }

    /// Appends a command to what waits to be written; returns its bytes.
    pub(super) fn push(&mut self, command: &Cmd) -> usize {
        let before = self.write.len();
        command.write_packed_command(&mut self.write);
        self.write.len() - before
    }

    /// Waits until something was read, or everything that waits was written.
    ///
    /// # Errors
    /// The connection has ended.
    pub(super) async fn drive(&mut self) -> Result<(), Reason> {
        loop {
            if self.written == self.write.len() {
                // Knows by a part of its room that there is no more, and does not ask the kernel once more.
                self.read.reserve(READ_BYTES);
                return match self.stream.read_buf(&mut self.read).await {
                    Ok(0) => Err("the server has closed the connection".into()),
                    Ok(_) => Ok(()),
                    Err(error) => Err(error.to_string()),
                };
            }
            let interest = Interest::READABLE | Interest::WRITABLE;
            let ready = self.stream.ready(interest).await.map_err(|error| error.to_string())?;
            if ready.is_writable() {
                self.write_some()?;
            }
            if ready.is_readable() {
                self.read.reserve(READ_BYTES);
                match self.stream.try_read_buf(&mut self.read) {
                    Ok(0) => return Err("the server has closed the connection".into()),
                    Ok(_) => return Ok(()),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.to_string()),
                }
            }
            if self.written == self.write.len() {
                return Ok(());
            }
        }
    }

    /// Writes what the socket takes without waiting.
    ///
    /// # Errors
    /// The connection has ended.
    pub(super) fn write_some(&mut self) -> Result<(), Reason> {
        while self.written < self.write.len() {
            match self.stream.try_write(&self.write[self.written..]) {
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
        self.write.clear();
        self.write.shrink_to(WRITE_KEPT_BYTES);
        self.written = 0;
        Ok(())
    }

    /// The next value that has been read whole.
    ///
    /// # Errors
    /// What came is no RESP.
    pub(super) fn next(&mut self) -> Result<Option<Value>, Reason> {
        if self.read.is_empty() {
            return Ok(None);
        }
        self.codec.decode(&mut self.read).map_err(|error| error.to_string())
    }
}

/// # Errors
/// The future's own, or that it took longer than this.
pub(super) async fn within<T>(timeout: Duration, future: impl Future<Output = Result<T, Reason>>) -> Result<T, Reason> {
    tokio::time::timeout(timeout, future).await.unwrap_or_else(|_| Err("no answer in time".into()))
}

/// A reply's text, whatever kind of text it is.
pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text),
        Value::Okay => Some("OK"),
        _ => None,
    }
}

/// A reply's number, also when it came as text.
pub(super) fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        other => text(other)?.parse().ok(),
    }
}
