//! Structured log: one logfmt line per event on standard error.
//!
//! In: a target, a message and fields from anywhere in the gateway. Out: lines such as
//! `ts=2026-03-01T12:00:00.000Z level=info target=boot msg="listening" addr=127.0.0.1:8000`.
//! Invariants: one event is one line, written with one call, so lines of several threads do not mix; a value can not
//! end its line or its quotes (control characters are escaped). No secret is ever passed here.
//! A shard's loop logs only rare facts: this takes the lock of standard error.

use std::fmt::{Display, Write as _};
use std::io::Write as _;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// How important a line is. A smaller number is more severe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Something failed and someone has to act.
    Error = 0,
    /// Something is not as it should be, and Ringway goes on.
    Warn = 1,
    /// What the process does: start, listeners, stop.
    Info = 2,
    /// Details for finding a fault.
    Debug = 3,
}

impl Level {
    /// Names in the configuration, most severe first.
    pub const NAMES: &'static [&'static str] = &["error", "warn", "info", "debug"];

    /// Name in the configuration and in lines.
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// The level with this name; `info` for any other text.
    pub fn from_name(name: &str) -> Level {
        match name {
            "error" => Level::Error,
            "warn" => Level::Warn,
            "debug" => Level::Debug,
            _ => Level::Info,
        }
    }
}

/// Named values of a line, in the order in which they are written.
pub type Fields<'a> = &'a [(&'a str, &'a dyn Display)];

static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);

/// Sets the least severity that is written, for the whole process.
pub fn set_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// Whether a line of this level would be written; ask before costly fields.
pub fn enabled(level: Level) -> bool {
    level as u8 <= LEVEL.load(Ordering::Relaxed)
}

/// Writes a line of level error. `target` is the part of the program, `message` a fixed text.
pub fn error(target: &str, message: &str, fields: Fields<'_>) {
    write(Level::Error, target, message, fields);
}

/// Writes a line of level warn.
pub fn warn(target: &str, message: &str, fields: Fields<'_>) {
    write(Level::Warn, target, message, fields);
}

/// Writes a line of level info.
pub fn info(target: &str, message: &str, fields: Fields<'_>) {
    write(Level::Info, target, message, fields);
}

/// Writes a line of level debug.
pub fn debug(target: &str, message: &str, fields: Fields<'_>) {
    write(Level::Debug, target, message, fields);
}

fn write(level: Level, target: &str, message: &str, fields: Fields<'_>) {
    if !enabled(level) {
        return;
    }
    let line = format_line(now_ms(), level, target, message, fields);
    // A closed standard error must not stop the gateway.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

#[expect(clippy::disallowed_methods, reason = "the wall clock of a log line decides nothing")]
fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

fn format_line(unix_ms: u64, level: Level, target: &str, message: &str, fields: Fields<'_>) -> String {
    let mut line = String::with_capacity(160);
    line.push_str("ts=");
    push_time(&mut line, unix_ms);
    line.push_str(" level=");
    line.push_str(level.name());
    line.push_str(" target=");
    push_value(&mut line, target);
    line.push_str(" msg=");
    push_value(&mut line, message);
    for (name, value) in fields {
        line.push(' ');
        line.push_str(name);
        line.push('=');
        push_value(&mut line, &value.to_string());
    }
    line.push('\n');
    line
}

/// RFC 3339 in UTC with milliseconds. Days to a date as in H. Hinnant's `civil_from_days`.
fn push_time(out: &mut String, unix_ms: u64) {
    let (seconds, ms) = (unix_ms / 1000, unix_ms % 1000);
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468; // days since 0000-03-01
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second_of_day / 3_600, second_of_day / 60 % 60, second_of_day % 60);
    let _ = write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z");
}

/// A bare word as it is, anything else in double quotes with escapes.
fn push_value(out: &mut String, value: &str) {
    let bare = !value.is_empty() && value.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'=' | b'\\'));
    if bare {
        out.push_str(value);
        return;
    }
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(unix_ms: u64) -> String {
        let mut out = String::new();
        push_time(&mut out, unix_ms);
        out
    }

    #[test]
    fn dates_are_right() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(time(1_709_164_800_123), "2024-02-29T00:00:00.123Z");
        assert_eq!(time(1_709_251_199_999), "2024-02-29T23:59:59.999Z");
        assert_eq!(time(1_709_251_200_000), "2024-03-01T00:00:00.000Z");
        assert_eq!(time(4_102_444_799_000), "2099-12-31T23:59:59.000Z");
    }

    #[test]
    fn a_value_stays_within_its_line() {
        let fields: Fields<'_> =
            &[("addr", &"127.0.0.1:8000"), ("text", &"a \"b\"\nlevel=error\u{7}"), ("empty", &""), ("n", &7)];
        let line = format_line(0, Level::Warn, "boot", "two words", fields);
        assert_eq!(
            line,
            "ts=1970-01-01T00:00:00.000Z level=warn target=boot msg=\"two words\" addr=127.0.0.1:8000 \
             text=\"a \\\"b\\\"\\nlevel=error\\u0007\" empty=\"\" n=7\n"
        );
    }

    #[test]
    fn names_and_levels_agree() {
        for name in Level::NAMES {
            assert_eq!(Level::from_name(name).name(), *name);
        }
        assert!(Level::Error < Level::Debug);
    }
}
