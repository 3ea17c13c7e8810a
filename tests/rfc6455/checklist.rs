//! Keeps `CHECKLIST.md` true to the tree.
//!
//! In: the table rows of the checklist. Claim: every file named there exists, and every name behind it stands in that
//! file; a row without an exception names where it is done and what shows it.

use std::fs;
use std::path::Path;

#[test]
fn every_name_in_the_checklist_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = include_str!("CHECKLIST.md");
    let mut checked = 0;
    for row in text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| § ")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        // § | rule | why not: an exception.
        let [_, _, done_in, shown_by] = cells[..] else {
            assert_eq!(cells.len(), 3, "{row}");
            assert!(cells[2].len() > 20, "an exception says why: {row}");
            continue;
        };
        for cell in [done_in, shown_by] {
            let mut source = None;
            for name in cell.split('`').skip(1).step_by(2) {
                if name.ends_with(".rs") {
                    let path = root.join(name);
                    source = Some(fs::read_to_string(path).unwrap_or_else(|error| panic!("{name}: {error} in {row}")));
                    continue;
                }
                let source = source.as_deref().unwrap_or_else(|| panic!("{name} has no file before it in {row}"));
                let defined = ["fn ", "struct ", "enum ", "const "].iter().any(|kind| {
                    source.match_indices(&format!("{kind}{name}")).any(|(at, found)| {
                        !source[at + found.len()..].starts_with(|next: char| next.is_alphanumeric() || next == '_')
                    })
                });
                assert!(defined, "{name} is not defined in its file: {row}");
                checked += 1;
            }
            assert!(source.is_some(), "no file is named: {row}");
        }
    }
    assert!(checked > 60, "the checklist has lost its rows: {checked} names");
}
