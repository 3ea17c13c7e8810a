//! Reads the source tree for the house rules: which files are ours, and just enough Rust to tell code from comments and
//! strings, product from tests, one function from the next.
//!
//! In: files below the root. Out: [`Source`]s. A full parser would see more; the rules do not need it.

use std::path::{Path, PathBuf};

/// Names that are not ours or are made by tools; in a second working tree `.git` is a file.
const SKIPPED: &[&str] = &[".git", "target", "node_modules", "vendor", "corpus", "artifacts", "coverage", "results"];

/// A source file.
pub(crate) struct Source {
    /// From the root, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
    /// The same length and lines, comments, strings and character literals blanked.
    pub(crate) code: String,
    /// Lines before the test module; 0 when the whole file is a test.
    pub(crate) lines: usize,
}

impl Source {
    fn read(root: &Path, path: &Path) -> Source {
        let text = read(path);
        let code = blank(&text);
        let path = relative(root, path);
        let test_file = path.ends_with("/tests.rs") || path.contains("/tests/");
        let lines = if test_file { 0 } else { code_lines(&code) };
        Source { path, text, code, lines }
    }

    /// The code before the test module.
    pub(crate) fn product(&self) -> &str {
        let end = self.code.split_inclusive('\n').take(self.lines).map(str::len).sum();
        &self.code[..end]
    }
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ stands in the source tree")
}

pub(crate) fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).expect("below the root").to_string_lossy().replace('\\', "/")
}

/// Every file below `folder` that is ours.
fn files(folder: &Path, out: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut entries: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_symlink() || SKIPPED.contains(&name.as_str()) || name.starts_with("target-") {
            continue;
        }
        if !path.is_dir() {
            out.push(path);
        } else if !name.starts_with('.') || name == ".ci" {
            files(&path, out);
        }
    }
}

pub(crate) fn all_files() -> Vec<PathBuf> {
    let mut out = Vec::new();
    files(root(), &mut out);
    out
}

pub(crate) fn sources(folders: &[&str]) -> Vec<Source> {
    let mut paths = Vec::new();
    for folder in folders {
        files(&root().join(folder), &mut paths);
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let sources: Vec<_> = paths.iter().map(|path| Source::read(root(), path)).collect();
    assert!(!sources.is_empty(), "no sources under {folders:?}: the rule would check nothing");
    sources
}

pub(crate) fn all_sources() -> Vec<Source> {
    sources(&["src", "loadgen", "bench", "tests"])
}

/// Blanks comments, strings and character literals, keeping length and line breaks.
pub(crate) fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let end = match bytes[i] {
            b'/' if bytes[i..].starts_with(b"//") => line_end(bytes, i),
            b'/' if bytes[i..].starts_with(b"/*") => block_comment_end(bytes, i),
            b'"' => string_end(bytes, i),
            b'r' if !word_before(bytes, i) => raw_string_end(bytes, i),
            b'b' if !word_before(bytes, i) && bytes.get(i + 1) == Some(&b'r') => raw_string_end(bytes, i + 1),
            b'\'' => character_end(bytes, i),
            _ => i,
        };
        if end == i {
            out.push(bytes[i]);
            i += 1;
        } else {
            out.extend(bytes[i..end].iter().map(|byte| if *byte == b'\n' { b'\n' } else { b' ' }));
            i = end;
        }
    }
    String::from_utf8(out).expect("only ASCII was put in, only whole literals were taken out")
}

fn word_before(bytes: &[u8], i: usize) -> bool {
    i > 0 && is_word(bytes[i - 1])
}

pub(crate) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn line_end(bytes: &[u8], i: usize) -> usize {
    bytes[i..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |n| i + n)
}

fn block_comment_end(bytes: &[u8], mut i: usize) -> usize {
    let mut depth = 0;
    while i < bytes.len() {
        if bytes[i..].starts_with(b"/*") {
            depth += 1;
            i += 2;
        } else if bytes[i..].starts_with(b"*/") {
            depth -= 1;
            i += 2;
            if depth == 0 {
                return i;
            }
        } else {
            i += 1;
        }
    }
    i
}

fn string_end(bytes: &[u8], mut i: usize) -> usize {
    i += 1;
    while i < bytes.len() {
        match bytes[i] {
            b'\\' => i += 2,
            b'"' => return i + 1,
            _ => i += 1,
        }
    }
    bytes.len()
}

/// `i` stands on the `r`; gives `i` back when no raw string starts there.
fn raw_string_end(bytes: &[u8], i: usize) -> usize {
    let hashes = bytes[i + 1..].iter().take_while(|byte| **byte == b'#').count();
    if bytes.get(i + 1 + hashes) != Some(&b'"') {
        return i;
    }
    let close = [&b"\""[..], &b"#".repeat(hashes)].concat();
    let body = i + 2 + hashes;
    bytes[body..]
        .windows(close.len())
        .position(|window| window == close)
        .map_or(bytes.len(), |n| body + n + close.len())
}

/// A character literal, not a lifetime.
fn character_end(bytes: &[u8], i: usize) -> usize {
    if bytes.get(i + 1) == Some(&b'\\') {
        return bytes[i + 3..].iter().position(|byte| *byte == b'\'').map_or(i, |n| i + 3 + n + 1);
    }
    // One character of up to four bytes, then the closing quote.
    let close = (2..=5).find(|n| bytes.get(i + n) == Some(&b'\''));
    match close {
        Some(n) if n == 2 || bytes[i + 1] >= 0x80 => i + n + 1,
        _ => i,
    }
}

/// Lines before `#[cfg(test)] mod`.
pub(crate) fn code_lines(code: &str) -> usize {
    let lines: Vec<&str> = code.lines().collect();
    let test_module = |n: usize| {
        lines[n].trim_start().starts_with("#[cfg(")
            && lines[n].contains("test")
            && lines[n + 1..]
                .iter()
                .find(|line| !line.trim().is_empty() && !line.trim_start().starts_with("#["))
                .is_some_and(|line| line.starts_with("mod ") && line.trim_end().ends_with('{'))
    };
    (0..lines.len()).find(|n| test_module(*n)).unwrap_or(lines.len())
}

/// Words of code, with their byte positions.
pub(crate) fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let bytes = code.as_bytes();
    let mut i = 0;
    std::iter::from_fn(move || {
        while i < bytes.len() && !is_word(bytes[i]) {
            i += 1;
        }
        let start = i;
        while i < bytes.len() && is_word(bytes[i]) {
            i += 1;
        }
        (start < i).then(|| (start, &code[start..i]))
    })
}

/// Names of functions with a body, the line they start on, and their lines.
pub(crate) fn functions(code: &str) -> Vec<(String, usize, usize)> {
    let bytes = code.as_bytes();
    let mut found = Vec::new();
    let mut words = words(code).peekable();
    while let Some((start, word)) = words.next() {
        let Some((_, name)) = words.peek().copied().filter(|_| word == "fn") else { continue };
        // A pointer type `fn(u8)` has no name directly behind it.
        if code[start + 2..].trim_start().starts_with('(') {
            continue;
        }
        let mut nesting = 0_i32;
        let Some(body) = (start..bytes.len()).find(|i| {
            match bytes[*i] {
                b'(' | b'[' => nesting += 1,
                b')' | b']' => nesting -= 1,
                _ => {}
            }
            nesting == 0 && matches!(bytes[*i], b'{' | b';')
        }) else {
            continue;
        };
        if bytes[body] == b';' {
            continue;
        }
        let mut depth = 0_i32;
        let end = (body..bytes.len()).find(|i| {
            match bytes[*i] {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                _ => {}
            }
            depth == 0
        });
        let lines = |part: &str| part.matches('\n').count();
        found.push((name.to_owned(), lines(&code[..start]) + 1, lines(&code[start..end.unwrap_or(bytes.len())]) + 1));
    }
    found
}
