//! Generated pages are fresh: what stands in `tuning/` is what the tables in the code say now.
//!
//! In: `ringway::pages` and the files of `tuning/`. Out: a failure that names the stale file and the command that
//! rewrites it. `UPDATE=1 cargo test -p ringway-tests --test generated` writes them instead.

use std::fs;
use std::path::Path;

#[test]
fn pages_in_tuning_are_fresh() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tuning");
    let update = std::env::var_os("UPDATE").is_some_and(|value| value == "1");
    let mut stale = Vec::new();
    for (name, text) in ringway::pages::all() {
        let path = dir.join(name);
        if update {
            fs::create_dir_all(&dir).expect("tuning/ can be made");
            fs::write(&path, &text).expect("the page can be written");
        }
        if fs::read_to_string(&path).ok().as_deref() != Some(text.as_str()) {
            stale.push(name);
        }
    }
    assert!(
        stale.is_empty(),
        "stale in tuning/: {stale:?}; rewrite with: UPDATE=1 cargo test -p ringway-tests --test generated"
    );
}

#[test]
fn every_page_has_a_row_for_every_entry_of_its_table() {
    let pages = ringway::pages::all();
    let page = |name: &str| &pages.iter().find(|(n, _)| *n == name).expect("is a page").1;
    for key in ringway::config_source::all_keys() {
        assert!(page("CONFIG.md").contains(&format!("| `{key}` |")), "CONFIG.md lacks {key}");
        let name = key.rsplit('.').next().unwrap_or(&key);
        assert!(page("ringway.toml").contains(&format!("\n# {name} = ")), "ringway.toml lacks {key}");
    }
    for row in ringway_engine::metrics::TABLE {
        assert!(page("METRICS.md").contains(row.name), "METRICS.md lacks {}", row.name);
    }
    for reason in ringway_wire::close::CloseReason::ALL {
        let row = format!("| {} | {} |", reason.code(), reason.text());
        assert!(page("CLOSE_CODES.md").contains(&row), "CLOSE_CODES.md lacks {reason:?}");
    }
    for (name, text) in &pages {
        let columns = |line: &str| line.matches('|').count();
        for pair in
            text.lines().collect::<Vec<_>>().windows(2).filter(|p| p[0].starts_with('|') && p[1].starts_with('|'))
        {
            assert_eq!(columns(pair[0]), columns(pair[1]), "{name}: {}", pair[1]);
        }
    }
}
