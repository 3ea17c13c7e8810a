//! Replays every stored fuzz input through its target's body, so that what fuzzing once found stays found.
//!
//! In: `fuzz/corpus/<target>/*`. Out: a failed test names the file. Each target has a seed at least; a corpus folder, a
//! body or a target in `fuzz/Cargo.toml` without its row here fails too.

#![allow(unreachable_pub, reason = "a body is pub for its fuzz target, which includes the same file")]

#[path = "fuzz_bodies/deflate.rs"]
mod deflate;
#[path = "fuzz_bodies/delta.rs"]
mod delta;
#[path = "fuzz_bodies/frames.rs"]
mod frames;
#[path = "fuzz_bodies/ingest.rs"]
mod ingest;
#[path = "fuzz_bodies/json_command.rs"]
mod json_command;
#[path = "fuzz_bodies/jwt.rs"]
mod jwt;
#[path = "fuzz_bodies/protobuf_command.rs"]
mod protobuf_command;
#[path = "fuzz_bodies/shard.rs"]
mod shard;
#[path = "fuzz_bodies/upgrade.rs"]
mod upgrade;

use std::collections::BTreeSet;
use std::fs;
use std::panic;
use std::path::{Path, PathBuf};

type Body = fn(&[u8]);

const TARGETS: &[(&str, Body)] = &[
    ("deflate", deflate::run),
    ("delta", delta::run),
    ("frames", frames::run),
    ("ingest", ingest::run),
    ("json_command", json_command::run),
    ("jwt", jwt::run),
    ("protobuf_command", protobuf_command::run),
    ("shard", shard::run),
    ("upgrade", upgrade::run),
];

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// File names (without extension) of a folder.
fn stems(path: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()).collect()
}

#[test]
fn every_stored_input_passes() {
    for (target, body) in TARGETS {
        let corpus = folder("fuzz/corpus").join(target);
        let mut replayed = 0;
        for entry in fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{target} has no corpus: {error}")) {
            let path = entry.unwrap().path();
            let input = fs::read(&path).unwrap();
            if let Err(failure) = panic::catch_unwind(|| body(&input)) {
                eprintln!("failing input: {}", path.display());
                panic::resume_unwind(failure);
            }
            replayed += 1;
        }
        assert!(replayed > 0, "{target} has no seed");
    }
}

#[test]
fn every_target_is_replayed() {
    let known: BTreeSet<String> = TARGETS.iter().map(|(target, _)| (*target).to_owned()).collect();
    for place in ["fuzz/corpus", "fuzz/fuzz_targets", "fuzz_bodies"] {
        assert_eq!(stems(place), known, "{place} and TARGETS differ");
    }
}
