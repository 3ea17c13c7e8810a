//! Our Fossil deltas through other implementations, and theirs through ours.
//!
//! In: pairs of payloads, as channels have them and made up from a fixed seed, and what `make sdk` installs: npm
//! `fossil-delta`, the codecs of the JavaScript SDK and of the Python SDK. Out: a failed test names the case. Claims:
//! every delta gives its payload everywhere, in the JSON form as a string; we apply what `fossil-delta` makes; our
//! deltas are not larger than its.
#![allow(clippy::disallowed_methods, reason = "the input of a script is written by a thread of its own")]
#![allow(clippy::print_stdout, reason = "the sizes belong into the output of the test")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use ringway_wire::delta::{DeltaEncoder, apply};
use serde_json::{Value, json};

/// Two publications that follow each other.
struct Case {
    old: Vec<u8>,
    new: Vec<u8>,
    text: bool,
}

/// Numbers that are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

fn text(old: &Value, new: &Value) -> Case {
    Case { old: old.to_string().into_bytes(), new: new.to_string().into_bytes(), text: true }
}

/// A document whose texts need one to four bytes a character.
fn document(numbers: &mut Numbers, rows: usize) -> Value {
    const WORDS: [&str; 8] =
        ["goal", "Zürich", "Łódź", "中文字符", "😀😁", "quote \" and \\", "line\nbreak", "\u{2028}ﬀ"];
    (0..rows)
        .map(|row| json!({"id": row, "team": WORDS[numbers.below(WORDS.len())], "score": numbers.below(1000)}))
        .collect()
}

/// The document with some values changed, a row gone and a row added.
fn changed(numbers: &mut Numbers, document: &Value) -> Value {
    let mut rows = document.as_array().cloned().unwrap_or_default();
    for _ in 0..1 + numbers.below(4) {
        let row = numbers.below(rows.len());
        rows[row]["score"] = json!(numbers.below(100_000));
        let row = numbers.below(rows.len());
        rows[row]["team"] = json!(["Zürych", "中斷字符", "😁😀", "Łódz"][numbers.below(4)]);
    }
    if numbers.below(2) == 0 {
        rows.remove(numbers.below(rows.len()));
        let row = numbers.below(rows.len());
        rows.insert(row, json!({"new": "ñandú", "score": numbers.below(9)}));
    }
    rows.into()
}

fn cases() -> Vec<Case> {
    let mut numbers = Numbers(7);
    let mut cases = Vec::new();
    for round in 0..60 {
        let old = document(&mut numbers, 5 + round);
        cases.push(text(&old, &changed(&mut numbers, &old)));
    }
    let same = document(&mut numbers, 10);
    cases.push(text(&same, &same));
    // Nothing before, and very little after.
    cases.push(text(&json!(""), &same));
    cases.push(text(&same, &json!("")));
    let huge = document(&mut numbers, 8000);
    cases.push(text(&huge, &changed(&mut numbers, &huge)));
    // Bytes: all values, changed in some places, and the halves exchanged.
    for len in [40, 1000, 100_000] {
        let old: Vec<u8> = (0..len).map(|_| numbers.below(256) as u8).collect();
        let mut new = old.clone();
        for _ in 0..3 {
            let at = numbers.below(len);
            new[at] = new[at].wrapping_add(128);
        }
        new.rotate_left(len / 2);
        cases.push(Case { old, new, text: false });
    }
    cases
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn from_hex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16).expect("a hex digit") as u8;
    text.as_bytes().chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// Runs a script of `tests/sdk` with `input`; gives what it printed.
fn run(program: &str, script: &str, input: &str) -> String {
    let folder = ringway_tests::server::root().join("tests").join("sdk");
    for needed in ["node_modules/fossil-delta", ".venv/bin/python"] {
        assert!(folder.join(needed).exists(), "tests/sdk/{needed} is missing: run `make sdk`");
    }
    let mut child = Command::new(program)
        .arg(script)
        .current_dir(&folder)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {program}: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    let output = std::thread::scope(|scope| {
        // A script that ends early is judged by its exit code.
        scope.spawn(move || drop(stdin.write_all(input.as_bytes())));
        child.wait_with_output().expect("the script ends")
    });
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn deltas_are_the_same_everywhere() {
    let mut encoder = DeltaEncoder::default();
    let mut sent = Vec::new();
    for case in cases() {
        let mut delta = Vec::new();
        if encoder.create(&case.old, &case.new, case.text, &mut delta) {
            sent.push((case, delta));
        }
    }
    assert!(sent.len() >= 60, "most pairs have a delta, {}", sent.len());
    let list: Vec<Value> = sent
        .iter()
        .map(|(case, delta)| json!({"old": hex(&case.old), "new": hex(&case.new), "text": case.text, "delta": hex(delta)}))
        .collect();
    let input = Value::from(list).to_string();
    run(".venv/bin/python", "apply_deltas.py", &input);
    let answers = run("node", "apply_deltas.mjs", &input);
    let theirs: Vec<Vec<u8>> = answers.lines().map(from_hex).collect();
    assert_eq!(theirs.len(), sent.len());
    let (mut our_bytes, mut their_bytes) = (0, 0);
    for (index, ((case, ours), theirs)) in sent.iter().zip(&theirs).enumerate() {
        let mut applied = Vec::new();
        assert_eq!(apply(&case.old, theirs, case.new.len(), &mut applied), Ok(()), "case {index}");
        assert!(applied == case.new, "case {index}: another payload");
        our_bytes += ours.len();
        their_bytes += theirs.len();
    }
    println!("{} deltas: {our_bytes} bytes, those of npm fossil-delta {their_bytes}", sent.len());
    assert!(our_bytes <= their_bytes, "{our_bytes} bytes, {their_bytes} with npm fossil-delta");
}
