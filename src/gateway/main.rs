//! The `ringway` binary: parses the command line and runs a node.
//!
//! In: arguments, environment, a configuration file. Out: an exit code (`cli.rs` lists them).

#![forbid(unsafe_code)]

use std::process::ExitCode;

use ringway::cli::{Cli, Todo, exit_code};

// Freed memory of other threads' messages comes back to the thread that made it, without locks.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match Cli::from_process().dispatch() {
        Todo::Run(config) => exit_code(ringway::boot::run(*config)),
        Todo::Exit(code) => exit_code(code),
    }
}
