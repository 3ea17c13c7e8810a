//! Metrics of the process as a whole, from /proc.
//!
//! In: files under /proc/self. Out: Prometheus text. Invariant: what cannot be read is left out, never guessed.

use std::fmt::Write as _;
use std::fs;

use super::metrics::push_header;

/// One metric of the process.
#[derive(Clone, Copy, Debug)]
pub struct ProcessRow {
    /// Name as Prometheus sees it.
    pub name: &'static str,
    /// `counter` or `gauge`.
    pub kind: &'static str,
    /// What it is.
    pub help: &'static str,
    read: fn() -> Option<String>,
}

/// Every metric of the process, without shard label.
pub const PROCESS_ROWS: &[ProcessRow] = &[
    ProcessRow {
        name: "process_cpu_seconds_total",
        kind: "counter",
        help: "User and system CPU time of the process, in seconds.",
        read: cpu_seconds,
    },
    ProcessRow {
        name: "process_resident_memory_bytes",
        kind: "gauge",
        help: "Resident memory of the process. Kernel memory of sockets is not in it.",
        read: resident_bytes,
    },
    ProcessRow {
        name: "process_start_time_seconds",
        kind: "gauge",
        help: "Start of the process, in seconds since 1970.",
        read: start_seconds,
    },
];

/// Name of the build information.
pub const BUILD_NAME: &str = "ringway_build_info";
/// Its help text.
pub const BUILD_HELP: &str = "Always 1; the label says which version runs.";

pub(super) fn render(out: &mut String) {
    for row in PROCESS_ROWS {
        if let Some(value) = (row.read)() {
            push_header(out, row.name, row.kind, row.help);
            let _ = writeln!(out, "{} {value}", row.name);
        }
    }
    push_header(out, BUILD_NAME, "gauge", BUILD_HELP);
    let _ = writeln!(out, "{BUILD_NAME}{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
}

/// Fields of /proc/self/stat after the command name, which may itself hold spaces; index 0 is field 3 of proc(5).
fn stat_field(field: usize) -> Option<u64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(field - 3)?.parse().ok()
}

/// Clock ticks per second, from the auxiliary vector: pairs of native words, AT_CLKTCK is 17.
fn ticks_per_second() -> Option<u64> {
    const AT_CLKTCK: usize = 17;
    const WORD: usize = size_of::<usize>();
    let vector = fs::read("/proc/self/auxv").ok()?;
    let word = |bytes: &[u8]| bytes.try_into().ok().map(usize::from_ne_bytes);
    vector
        .chunks_exact(2 * WORD)
        .find_map(|pair| (word(&pair[..WORD])? == AT_CLKTCK).then(|| word(&pair[WORD..]))?)
        .filter(|ticks| *ticks > 0)
        .map(|ticks| ticks as u64)
}

pub(super) fn cpu_seconds() -> Option<String> {
    let ticks = stat_field(14)? + stat_field(15)?;
    Some(format!("{:.2}", ticks as f64 / ticks_per_second()? as f64))
}

pub(super) fn resident_bytes() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some((kib * 1024).to_string())
}

pub(super) fn start_seconds() -> Option<String> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let boot: u64 = stat.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(format!("{:.2}", boot as f64 + stat_field(22)? as f64 / ticks_per_second()? as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_plausible() {
        let number = |text: Option<String>| text.and_then(|t| t.parse::<f64>().ok()).unwrap_or(-1.0);
        assert!(number(resident_bytes()) > 100_000.0);
        assert!(number(cpu_seconds()) >= 0.0);
        // Between 2020 and 2100; a wrong unit is off by far more.
        assert!((1_577_836_800.0..4_102_444_800.0).contains(&number(start_seconds())));
        assert_eq!(ticks_per_second(), Some(100));
    }
}
