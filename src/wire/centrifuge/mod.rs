//! The Centrifuge client protocol, version 2, in JSON and Protobuf.
//!
//! In: the bytes of one WebSocket message of a client (`command`), or the values of an answer (`reply`). Out: typed
//! commands that borrow those bytes, or the bytes of a WebSocket message without its header.
//!
//! | file | what |
//! |---|---|
//! | `command` | commands of clients: types, batches |
//! | `decode` | which field of a command goes where |
//! | `reply` | replies and pushes: types, field numbers and names |
//! | `push` | pushes in every shape; the publication push is the one reply that is encoded per publication |
//! | `fields` | what both forms can read and write; each message is described once over it |
//! | `json` | JSON texts: check, strings, field writer |
//! | `json_scan` | JSON reader: one pass, no tree |
//! | `json_string` | plain part and escapes of JSON strings |
//! | `protobuf` | protobuf reader, writer and size |
//!
//! Invariants: no allocation whose size is a number from the wire; recursion is bounded by the messages described
//! here, and the depth of foreign JSON by [`json::DEPTH_MAX`].
pub mod command;
mod decode;
mod fields;
pub mod json;
mod json_scan;
mod json_string;
pub mod protobuf;
mod push;
pub mod reply;
#[cfg(test)]
mod tests;

/// The two encodings of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Form {
    /// WebSocket text messages, one JSON object a line.
    Json = 0,
    /// WebSocket binary messages, length-delimited protobuf messages.
    Protobuf = 1,
}

impl Form {
    /// How many forms there are; `form as usize` indexes an array of this length.
    pub const COUNT: usize = 2;
    /// Both.
    pub const ALL: [Form; Form::COUNT] = [Form::Json, Form::Protobuf];
}
