//! A delivery takes no lock: the sources on a message's way name none, and what they share is named here.
//!
//! In: the sources. Out: pass, or the line that names a lock. A lock that a library takes inside is not seen here;
//! `instructions.py` counts the atomic operations that really ran, per delivery.

use std::fs;
use std::path::{Path, PathBuf};

/// The whole way of a delivery and what it uses: folders with all their files, or single files.
const WAY: &[&str] = &[
    "src/wire",
    "src/engine",
    "src/gateway/shard_loop.rs",
    "src/gateway/places.rs",
    "src/gateway/clock.rs",
    "src/sys/ring.rs",
    "src/sys/op.rs",
    "src/sys/socket.rs",
    "src/sys/buffers.rs",
    "src/sys/lane.rs",
    "src/sys/sleep.rs",
];

/// What blocks a thread on another, or hides that it does.
const LOCKS: &[&str] = &[
    "Mutex",
    "RwLock",
    "Condvar",
    "Barrier",
    "OnceLock",
    "LazyLock",
    "Once",
    "mpsc",
    "parking_lot",
    "park",
    "stdout",
    "stderr",
    "println",
];

#[test]
fn the_way_of_a_delivery_names_no_lock() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    WAY.iter().for_each(|path| collect(&root.join(path), &mut files));
    assert!(files.len() > 30, "only {} files found: has the tree moved?", files.len());
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a readable source");
        found.extend(lock_lines(&text).map(|(line, word)| format!("{}:{line}: {word}", file.display())));
    }
    assert!(found.is_empty(), "locks on the way of a delivery:\n{}\nuse a lane, or take it out", found.join("\n"));
}

#[test]
fn a_lock_would_be_seen() {
    let text =
        "use std::sync::Mutex;\n// a Mutex in words\nlet unlocked = Parking;\n#[cfg(test)]\nuse std::sync::Mutex;\n";
    assert_eq!(lock_lines(text).collect::<Vec<_>>(), [(1, "Mutex")]);
}

/// Lines of code, before the test module, that name a lock as a word of its own.
fn lock_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let code = text.lines().enumerate().take_while(|(_, line)| line.trim() != "#[cfg(test)]");
    code.filter(|(_, line)| !line.trim_start().starts_with("//")).filter_map(|(index, line)| {
        let mut words = line.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
        words.find(|word| LOCKS.contains(word)).map(|word| (index + 1, word))
    })
}

fn collect(path: &PathBuf, files: &mut Vec<PathBuf>) {
    if !path.is_dir() {
        files.push(path.clone());
        return;
    }
    for entry in fs::read_dir(path).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "tests" || name.ends_with(".rs") && !name.ends_with("tests.rs") {
            collect(&path, files);
        }
    }
}
