//! A connect command that is not answered yet.
//!
//! In: what the client asked for, then what tokens, backends and owners have said. Out: the connect result.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::lane_message::{RecoverFrom, Recovery, Subscribed};
use crate::subscription::Traits;
use crate::variant::Variant;

/// What a connect command that is not answered yet has asked for and found out.
#[derive(Debug, Default)]
pub struct Opening {
    /// Id of the command.
    pub command: u32,
    /// Where the client stands in server-side subscriptions.
    pub known: Vec<Known>,
    /// Server-side subscriptions that wait for their owners.
    pub waiting: u32,
    /// Those that were granted.
    pub granted: Vec<Granted>,
    /// Data of the backend for the client.
    pub data: Box<[u8]>,
    /// Name of the client's software; kept only where backends are told of connects.
    pub name: Box<str>,
    /// Its version; as above.
    pub version: Box<str>,
    /// What the client sent along; as above.
    pub request_data: Box<[u8]>,
    /// Commands behind the connect command in its message.
    pub rest: Vec<u8>,
}

impl Opening {
    /// Payload bytes of the publications that its answer will carry.
    pub fn bytes(&self) -> usize {
        let missed = |granted: &Granted| match &granted.subscribed.recovery {
            Some(Recovery::Recovered(missed)) => missed.payload_bytes(),
            Some(Recovery::NotRecovered) | None => 0,
        };
        self.granted.iter().map(missed).sum()
    }
}

/// A position in a server-side subscription, as the client remembers it.
#[derive(Debug)]
pub struct Known {
    /// Full name.
    pub channel: Box<str>,
    /// Where.
    pub from: RecoverFrom,
}

/// A subscription that an owner has granted, for the answer to the client.
#[derive(Debug)]
pub struct Granted {
    /// Full name.
    pub channel: Box<str>,
    /// Whether clients see positions: the channel has history.
    pub has_position: bool,
    /// Where the client wanted to resume.
    pub recover: Option<RecoverFrom>,
    /// What the owner has said.
    pub subscribed: Subscribed,
    /// In which encoding it takes publications.
    pub variant: Variant,
    /// What the subscription does.
    pub traits: Traits,
    /// When it expires; none: never.
    pub expires_at_ms: Option<u64>,
    /// Data for the client; empty: none.
    pub data: Box<[u8]>,
}
