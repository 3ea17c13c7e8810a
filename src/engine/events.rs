//! stub
use crate::tokens::{ConnectClaims, TokenSubscription};
use alloc::boxed::Box;
pub enum ClientEvent<'a> {
    Connect { data: &'a [u8], name: &'a str, version: &'a str },
    Disconnect { code: u16 },
    Subscribe { channel: &'a str, data: &'a [u8] },
    Unsubscribe { channel: &'a str },
    Publish { channel: &'a str, data: &'a [u8] },
    Rpc { method: &'a str, data: &'a [u8] },
    Message { data: &'a [u8] },
}
pub enum BackendAnswer {
    Connect(Result<(ConnectClaims, Box<[u8]>), Denied>),
    Subscribe(Result<TokenSubscription, Denied>),
    Publish(Result<Option<Box<[u8]>>, Denied>),
    Rpc(Result<Box<[u8]>, Denied>),
}
pub enum Denied {
    Error { code: u32, message: Box<str>, temporary: bool },
    Disconnect { code: u16, reason: Box<str> },
    Timeout,
    Busy,
    NoBackend,
}
pub enum AskError {
    Busy,
    NoBackend,
}
impl From<AskError> for Denied {
    fn from(e: AskError) -> Denied {
        match e {
            AskError::Busy => Denied::Busy,
            AskError::NoBackend => Denied::NoBackend,
        }
    }
}
