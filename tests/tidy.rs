//! House rules as tests. Each failure names the file and the fix.
//!
//! In: the source tree. Out: pass, or the list of what breaks a rule. What a compiler can hold is not here.
//! The ratchet lists hold what was too long when the rule came: a number there may only shrink, and a row goes when
//! its file or function fits.
#![allow(clippy::disallowed_methods, reason = "tests read files and run at any time")]

#[path = "tidy/source.rs"]
mod source;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use source::{all_files, all_sources, blank, code_lines, functions, is_word, read, relative, root, sources, words};

/// Lines of a file before its test module.
const FILE_LINES_MAX: usize = 600;
/// Lines of a function, from `fn` to its closing brace.
const FUNCTION_LINES_MAX: usize = 100;
/// Lines of ARCHITECTURE.md.
const ARCHITECTURE_LINES_MAX: usize = 250;

/// Files over [`FILE_LINES_MAX`], with their lines now.
const LONG_FILES: &[(&str, usize)] = &[];
/// Functions over [`FUNCTION_LINES_MAX`], as `file::function`, with their lines now.
const LONG_FUNCTIONS: &[(&str, usize)] = &[];
/// Rows of the metric table that nothing increments, each with the reason. Better: count them or take them out.
const UNCOUNTED_METRICS: &[(&str, &str)] = &[];
/// Limits that nothing reads, each with the reason.
const UNREAD_LIMITS: &[(&str, &str)] = &[];
/// Close reasons that nothing gives, each with the reason.
const UNUSED_CLOSE_REASONS: &[(&str, &str)] = &[];

/// Modules of `engine` that work on a message one after another; only `shard` knows them all. `connection` is not one
/// of them: it holds the values of the stages and calls none.
const STAGES: &[&str] =
    &["handshake", "session", "ingest_session", "route", "owner", "journal", "fleet", "fanout", "outbox"];

/// Which of our crates a folder's code may name.
const IMPORTS: &[(&str, &[&str])] = &[
    ("src/wire", &[]),
    ("src/engine", &["ringway_wire"]),
    ("src/sys", &[]),
    ("src/gateway", &["ringway", "ringway_wire", "ringway_engine", "ringway_sys"]),
    ("src/ingest", &["ringway_wire", "ringway_ingest"]),
    ("loadgen", &["ringway_loadgen", "ringway_wire", "ringway_sys"]),
];

/// Where `unsafe` may stand.
const UNSAFE_FOLDERS: &[&str] = &["src/sys/", "bench/floor/"];

/// Fails with all complaints at once and the fix.
fn report(complaints: &[String], fix: &str) {
    assert!(complaints.is_empty(), "\n{}\nFix: {fix}\n", complaints.join("\n"));
}

/// Compares what is too long with its ratchet list.
fn ratchet(now: &[(String, usize)], list: &[(&str, usize)], max: usize, fix: &str) {
    let mut complaints = Vec::new();
    for (name, lines) in now {
        match list.iter().find(|row| row.0 == name).map(|row| row.1) {
            None if *lines > max => complaints.push(format!("{name}: {lines} lines, allowed {max}")),
            Some(listed) if *lines > listed => complaints.push(format!("{name}: {lines} lines, grown from {listed}")),
            Some(listed) if *lines <= max => complaints.push(format!("{name}: fits now ({listed}): take its row out")),
            Some(listed) if *lines < listed => complaints.push(format!("{name}: set its row from {listed} to {lines}")),
            _ => {}
        }
    }
    for (name, _) in list {
        if !now.iter().any(|(own, _)| own == name) {
            complaints.push(format!("{name}: is gone: take its row out"));
        }
    }
    report(&complaints, fix);
}

#[test]
fn every_file_says_what_it_is() {
    let complaints: Vec<String> = all_sources()
        .iter()
        .filter(|source| {
            let header: usize =
                source.text.lines().take_while(|line| line.starts_with("//!")).map(|l| l.len() - 3).sum();
            header < 60
        })
        .map(|source| format!("{}: no `//!` header, or one that says too little", source.path))
        .collect();
    report(
        &complaints,
        "open the file with what it does, what comes in from where, what goes out to where, invariants",
    );
}

#[test]
fn unsafe_stands_only_where_it_may() {
    let mut complaints = Vec::new();
    for source in all_sources() {
        if UNSAFE_FOLDERS.iter().any(|folder| source.path.starts_with(folder)) {
            continue;
        }
        for (at, _) in words(&source.code).filter(|(_, word)| *word == "unsafe") {
            complaints.push(format!("{}:{}: unsafe", source.path, source.code[..at].matches('\n').count() + 1));
        }
    }
    for (crate_root, no_std) in [
        ("src/wire/lib.rs", true),
        ("src/engine/lib.rs", true),
        ("src/gateway/lib.rs", false),
        ("src/gateway/main.rs", false),
        ("src/ingest/lib.rs", false),
        ("loadgen/lib.rs", false),
    ] {
        let code = blank(&read(&root().join(crate_root)));
        if !code.contains("forbid(unsafe_code") {
            complaints.push(format!("{crate_root}: no #![forbid(unsafe_code)]"));
        }
        if no_std && !code.contains("no_std") {
            complaints.push(format!("{crate_root}: no #![no_std]"));
        }
    }
    report(&complaints, "move the code behind a safe interface of src/sys");
}

#[test]
fn files_are_short() {
    let now: Vec<(String, usize)> = all_sources().into_iter().map(|source| (source.path, source.lines)).collect();
    ratchet(&now, LONG_FILES, FILE_LINES_MAX, "split the file by what its parts are about");
}

#[test]
fn functions_are_short() {
    let mut now: Vec<(String, usize)> = Vec::new();
    for source in all_sources() {
        let whole = if source.lines == 0 { source.code.as_str() } else { source.product() };
        for (name, _, lines) in functions(whole) {
            let name = format!("{}::{name}", source.path);
            // Functions of one name in one file: the longest counts.
            match now.iter_mut().find(|row| row.0 == name) {
                Some(row) => row.1 = row.1.max(lines),
                None => now.push((name, lines)),
            }
        }
    }
    ratchet(&now, LONG_FUNCTIONS, FUNCTION_LINES_MAX, "give the steps of the function names");
}

/// Rows that no product code names as `prefix` + row.
fn unused(rows: &BTreeSet<String>, home: &[&str], uses: &[String], excused: &[(&str, &str)]) -> Vec<String> {
    assert!(rows.len() > 5, "{home:?}: only {} rows were found: the rule would check nothing", rows.len());
    let product = sources(&["src"]);
    let mut complaints = Vec::new();
    for row in rows {
        let used = product.iter().filter(|source| !home.contains(&source.path.as_str())).any(|source| {
            uses.iter().any(|shape| {
                let needle = shape.replace('*', row);
                source
                    .product()
                    .match_indices(&needle)
                    .any(|(at, _)| source.code.as_bytes().get(at + needle.len()).is_none_or(|byte| !is_word(*byte)))
            })
        });
        match excused.iter().any(|(name, _)| name == row) {
            false if !used => complaints.push(format!("{row}: nothing uses it")),
            true if used => complaints.push(format!("{row}: is used now: take it out of the list of excuses")),
            _ => {}
        }
    }
    complaints
}

#[test]
fn every_metric_is_counted() {
    let text = read(&root().join("src/engine/metrics.rs"));
    let rows = text
        .lines()
        .filter_map(|line| line.trim().split_once(" = "))
        .filter(|(_, rest)| rest.starts_with("Counter ") || rest.starts_with("Gauge "))
        .map(|(name, _)| name.to_owned())
        .collect();
    let complaints = unused(&rows, &["src/engine/metrics.rs"], &["Metric::*".into()], UNCOUNTED_METRICS);
    report(&complaints, "count it where it happens, or take the row out of src/engine/metrics.rs");
}

#[test]
fn every_limit_is_read() {
    let code = blank(&read(&root().join("src/engine/limits.rs")));
    let body = code.split_once("pub struct Limits {").expect("the table of limits").1;
    let body = body.split_once("\n}").expect("its end").0;
    let rows = body
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(':'))
        .map(|(name, _)| name.to_owned())
        .collect();
    let mut home = vec!["src/engine/limits.rs".to_owned()];
    // The configuration sets every limit; that is not reading it.
    home.extend(
        sources(&["src/gateway"]).into_iter().map(|source| source.path).filter(|path| path.contains("/config")),
    );
    let home: Vec<&str> = home.iter().map(String::as_str).collect();
    let complaints = unused(&rows, &home, &[".*".into()], UNREAD_LIMITS);
    report(&complaints, "enforce the limit where its comment says, or take it out of src/engine/limits.rs");
}

#[test]
fn every_close_reason_is_given() {
    let code = blank(&read(&root().join("src/wire/close.rs")));
    let rows = code
        .lines()
        .filter_map(|line| line.trim().split_once(" = "))
        .filter(|(name, rest)| name.bytes().all(is_word) && rest.starts_with(|first: char| first.is_ascii_digit()))
        .map(|(name, _)| name.to_owned())
        .collect();
    let complaints = unused(&rows, &["src/wire/close.rs"], &["CloseReason::*".into()], UNUSED_CLOSE_REASONS);
    report(&complaints, "close for it where it happens, or take the row out of src/wire/close.rs");
}

#[test]
fn crates_import_only_what_they_may() {
    let mut complaints = Vec::new();
    for (folder, allowed) in IMPORTS {
        for source in sources(&[folder]) {
            // `tests`, `examples` and `benches` of a crate may use what its users may.
            if source.path.contains("/tests/")
                || source.path.contains("/examples/")
                || source.path.contains("/benches/")
            {
                continue;
            }
            let product = source.product();
            for (at, word) in words(product).filter(|(_, word)| word.starts_with("ringway_")) {
                let path = product[at + word.len()..].starts_with("::");
                if path && !allowed.contains(&word) {
                    let line = product[..at].matches('\n').count() + 1;
                    complaints.push(format!("{}:{line}: names {word}; {folder} may name {allowed:?}", source.path));
                }
            }
        }
    }
    report(&complaints, "move the code to the crate that may know both, or pass a value in");
}

#[test]
fn stages_of_the_engine_do_not_call_each_other() {
    let mut complaints = Vec::new();
    for source in sources(&["src/engine"]) {
        let module = source.path["src/engine/".len()..].split(['/', '.']).next().unwrap_or_default();
        if !STAGES.contains(&module) {
            continue;
        }
        for (at, word) in words(source.product()).filter(|(_, word)| STAGES.contains(word) && *word != module) {
            if source.code[..at].ends_with("crate::") || source.code[..at].ends_with("super::") {
                let line = source.code[..at].matches('\n').count() + 1;
                complaints.push(format!("{}:{line}: stage {module} names stage {word}", source.path));
            }
        }
    }
    report(&complaints, "let shard.rs move the value from one stage to the other");
}

#[test]
fn lint_relaxations_and_ignored_tests_say_why() {
    let mut complaints = Vec::new();
    for source in all_sources() {
        for (start, word) in words(&source.code).filter(|(_, word)| matches!(*word, "allow" | "expect" | "ignore")) {
            let before = source.code[..start].trim_end();
            if !before.ends_with("#[") && !before.ends_with("#![") {
                continue;
            }
            let rest = &source.text[start..];
            let attribute = &rest[..rest.find(']').unwrap_or(rest.len())];
            let reason = if word == "ignore" { attribute.contains("= \"") } else { attribute.contains("reason") };
            if !reason {
                let line = source.text[..start].matches('\n').count() + 1;
                complaints.push(format!("{}:{line}: #[{word}] without a reason", source.path));
            }
        }
    }
    report(&complaints, "add `reason = \"…\"`; for #[ignore = \"…\"] name the command that runs the test");
}

#[test]
fn banned_words() {
    // Put together here, so that this file does not contain them.
    let banned = [
        (concat!("to", "do!"), "finish it, or file an issue"),
        (concat!("TO", "DO"), "finish it, or file an issue"),
        (concat!("FIX", "ME"), "fix it, or file an issue"),
        (concat!("/wo", "rk/"), "no path of one machine"),
        (concat!("/tmp/", "target"), "no path of one machine"),
        (concat!("/ro", "ot/"), "no path of one machine"),
        (concat!("cra", "tes.io"), "no names of package hosts: cargo knows them"),
        (concat!("registry.npm", "js"), "no names of package hosts: npm knows them"),
        (concat!("pypi", ".org"), "no names of package hosts: pip knows them"),
        (concat!("pythonhosted", ".org"), "no names of package hosts: pip knows them"),
        (concat!("deb.debian", ".org"), "no names of package hosts: apt knows them"),
    ];
    let mut complaints = Vec::new();
    for path in all_files() {
        let name = relative(root(), &path);
        // Written by cargo, with the name of its index.
        if name.ends_with("Cargo.lock") {
            continue;
        }
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        for (n, line) in text.lines().enumerate() {
            for (word, fix) in banned.iter().filter(|(word, _)| line.contains(word)) {
                complaints.push(format!("{name}:{}: {word}: {fix}", n + 1));
            }
        }
    }
    report(&complaints, "say it without the banned word");
}

/// Targets of `[text](target)` outside code fences, with the text and the line.
fn links(text: &str) -> Vec<(usize, String, String)> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (n, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        let mut rest = line;
        while let (false, Some(at)) = (fenced, rest.find("](")) {
            let target = rest[at + 2..].split(')').next().unwrap_or_default();
            let label = rest[..at].rsplit('[').next().unwrap_or_default();
            found.push((n + 1, label.to_owned(), target.to_owned()));
            rest = &rest[at + 2..];
        }
    }
    found
}

#[test]
fn links_resolve() {
    let mut complaints = Vec::new();
    for path in all_files().into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        let name = relative(root(), &path);
        let promises = name == "PROMISES.md";
        for (line, label, target) in links(&read(&path)) {
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") || file.starts_with("mailto:") {
                continue;
            }
            let full = path.parent().expect("a file has a folder").join(file);
            if !full.exists() {
                complaints.push(format!("{name}:{line}: {target} does not exist"));
            } else if promises && file.ends_with(".rs") {
                // [`test_name`](file): the test must be there, or the promise hangs in the air.
                let test = label.trim_matches('`').rsplit("::").next().unwrap_or_default().to_owned();
                if !functions(&blank(&read(&full))).iter().any(|(name, ..)| *name == test) {
                    complaints.push(format!("{name}:{line}: {file} has no test {test:?}"));
                }
            }
        }
    }
    report(&complaints, "link a file that exists, from the folder of the page; in PROMISES.md [`test`](file)");
}

#[test]
fn the_architecture_page_stays_short() {
    let path = root().join("ARCHITECTURE.md");
    if path.exists() {
        let lines = read(&path).lines().count();
        assert!(lines <= ARCHITECTURE_LINES_MAX, "ARCHITECTURE.md: {lines} lines, allowed {ARCHITECTURE_LINES_MAX}");
    }
}

#[test]
fn the_rules_see_what_they_should() {
    let mut text = String::from("//! unsafe in a comment\n");
    let _ = writeln!(text, "fn a() {{ let s = \"unsafe \\\" fn b() {{\"; }}");
    let _ = writeln!(text, "fn c<'a>(x: &'a [u8; 4]) -> char {{\n  '{{'\n}}");
    let _ = writeln!(text, "const R: &str = r#\"fn d() {{ \" \"#; /* unsafe /* nested */ fn e() {{ */");
    let _ = writeln!(text, "trait T {{ fn f(); }}\ntype P = fn(u8);\n");
    let _ = writeln!(text, "#[cfg(test)]\nmod tests {{\n    fn g() {{}}\n}}");
    let code = blank(&text);
    assert_eq!(code.len(), text.len());
    assert!(!words(&code).any(|(_, word)| word == "unsafe"), "{code}");
    let names: Vec<_> = functions(&code).into_iter().map(|(name, _, lines)| (name, lines)).collect();
    assert_eq!(names, [("a".to_owned(), 1), ("c".to_owned(), 3), ("g".to_owned(), 1)]);
    assert_eq!(code_lines(&code), 9);
    assert_eq!(
        links("[a](b.md) and [`c::d`](e.rs#f)\n```\n[no](x)\n```"),
        [(1, "a".to_owned(), "b.md".to_owned()), (1, "`c::d`".to_owned(), "e.rs#f".to_owned()),]
    );
}
