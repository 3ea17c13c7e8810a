//! Parts of the micro benches; see the crate's table. Each bench is a file of its own beside this one:
//!
//! | bench or test | question |
//! |---|---|
//! | `decode_unmask` | what a received frame costs: header, unmasking, UTF-8 |
//! | `json_command` | what a client command costs, in JSON and Protobuf |
//! | `encode_push` | what encoding a publication costs, once per wire form |
//! | `deflate` | what compressing a frame and inflating a message costs |
//! | `fanout` | what a delivery costs in the engine, without the kernel |
//! | `lane` | items per second between two threads, beside rtrb; what a wake-up costs |
//! | `allocations` (test) | a delivery allocates nothing, in the engine and in the real loop |
//! | `locks` (test) | the sources of a delivery's way name no lock |
//!
//! In: nothing. Out: modules for the benches.

pub mod host;
pub mod measure;
pub mod node;
pub mod singles;
