//! Reads the sources of the configuration into [`Settings`] through the table of rows.
//!
//! In: a TOML file, environment variables, flags. Out: changed settings, and a [`Problem`] for everything that could
//! not be taken, with its place, its key and what is allowed.
//! Invariants: nothing is ignored silently (an unknown key is a problem and names the nearest one); all problems of
//! all sources are reported together; the value of a secret never stands in a problem.

use std::fmt;
use std::io::Read as _;
use std::path::Path;

use ringway_engine::namespace::Namespace;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::cli::RunArgs;
use crate::config::{FILE_BYTES_MAX, Settings};
use crate::config_namespace::NAMESPACE_ROWS;
use crate::config_table::{Field, Row, rows};

/// Start of every environment variable that sets a key.
const ENVIRONMENT_PREFIX: &str = "RINGWAY_";
/// Names the configuration file, as `--config` does.
const ENVIRONMENT_CONFIG: &str = "RINGWAY_CONFIG";

/// One thing wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where: `ringway.toml:12`, `environment RINGWAY_SHARDS`, `flag --set`; empty for relations between values.
    pub place: String,
    /// Which key; empty when the source could not be read at all.
    pub key: String,
    /// What is wrong and what is allowed.
    pub text: String,
}

impl Problem {
    /// A problem between values, or of a value whatever source it came from.
    pub fn between(key: &str, text: &str) -> Problem {
        Problem { place: String::new(), key: key.into(), text: text.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("configuration: ")?;
        for part in [&self.place, &self.key] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.text)
    }
}

/// Applies file, environment and flags, in this order.
pub(crate) fn apply(
    settings: &mut Settings,
    args: &RunArgs,
    environment: impl Iterator<Item = (String, String)>,
    problems: &mut Vec<Problem>,
) {
    let mut environment: Vec<(String, String)> =
        environment.filter(|(name, _)| name.starts_with(ENVIRONMENT_PREFIX)).collect();
    environment.sort();
    let named = environment.iter().find(|(name, _)| name == ENVIRONMENT_CONFIG).map(|(_, value)| Path::new(value));
    if let Some(path) = args.config.as_deref().or(named) {
        match read_file(path) {
            Ok(text) => apply_file(settings, &path.display().to_string(), &text, problems),
            Err(text) => problems.push(Problem { place: "file".into(), key: String::new(), text }),
        }
    }
    for (name, value) in &environment {
        apply_variable(settings, name, value, problems);
    }
    apply_flags(settings, args, problems);
}

/// Reads a small text file.
///
/// # Errors
/// The text names the file and why it can not be used.
pub(crate) fn read_file(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|f| f.take(FILE_BYTES_MAX + 1).read_to_string(&mut text));
    match read {
        Err(e) => Err(format!("{}: {e}", path.display())),
        Ok(n) if n as u64 > FILE_BYTES_MAX => Err(format!("{}: longer than {FILE_BYTES_MAX} bytes", path.display())),
        Ok(_) => Ok(text),
    }
}

/// A value as its source wrote it.
enum Raw {
    Bool(bool),
    /// Kept wide, so that out of range is told from not a number.
    Integer(i128),
    Text(String),
    List(Vec<String>),
    /// Something that no key takes; the text says what.
    Other(&'static str),
}

fn apply_file(settings: &mut Settings, file: &str, text: &str, problems: &mut Vec<Problem>) {
    let line_of = |offset: usize| 1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|b| **b == b'\n').count();
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let line = error.span().map_or(1, |span| line_of(span.start));
        let text = format!("not valid TOML: {}", error.message());
        problems.push(Problem { place: format!("{file}:{line}"), key: String::new(), text });
    }
    if !errors.is_empty() {
        return;
    }
    let place = |offset: usize| format!("{file}:{}", line_of(offset));
    for (name, value) in in_file_order(document.get_ref()) {
        let at = place(name.span().start);
        match (name.get_ref().as_ref(), value.get_ref()) {
            ("namespaces", value) => apply_namespaces(settings, value, &at, &place, problems),
            (section, DeValue::Table(table)) if is_section(section) => {
                for (name, value) in in_file_order(table) {
                    let key = format!("{section}.{}", name.get_ref());
                    apply_key(settings, &key, raw(value.get_ref()), &place(name.span().start), problems);
                }
            }
            (key, value) => apply_key(settings, key, raw(value), &at, problems),
        }
    }
}

/// `[[namespaces]]`: tables with a `name` and the rows of a namespace.
fn apply_namespaces(
    settings: &mut Settings,
    value: &DeValue<'_>,
    at: &str,
    place: &impl Fn(usize) -> String,
    problems: &mut Vec<Problem>,
) {
    let DeValue::Array(tables) = value else {
        problems.push(Problem {
            place: at.into(),
            key: "namespaces".into(),
            text: "must be tables, written [[namespaces]]".into(),
        });
        return;
    };
    for table in tables {
        let at = place(table.span().start);
        let DeValue::Table(fields) = table.get_ref() else {
            let text = "must be tables, written [[namespaces]]".into();
            problems.push(Problem { place: at, key: "namespaces".into(), text });
            continue;
        };
        let mut namespace = Namespace::closed("");
        for (name, value) in in_file_order(fields) {
            let at = place(name.span().start);
            match (name.get_ref().as_ref(), raw(value.get_ref())) {
                ("name", Raw::Text(text)) => namespace.name = text.into(),
                ("name", _) => problems.push(Problem {
                    place: at,
                    key: "namespaces.name".into(),
                    text: "must be text without ':'".into(),
                }),
                (key, value) => {
                    let full = format!("namespaces.{key}");
                    let taken = match NAMESPACE_ROWS.iter().find(|row| row.key == key) {
                        Some(row) => take(&row.field, &mut namespace, value),
                        None => Err(unknown(key, NAMESPACE_ROWS.iter().map(|r| r.key.to_string()))),
                    };
                    if let Err(text) = taken {
                        problems.push(Problem { place: at, key: full, text });
                    }
                }
            }
        }
        if namespace.name.is_empty() {
            let text = "each [[namespaces]] must have a name; the default namespace is [namespace]".into();
            problems.push(Problem { place: at, key: "namespaces.name".into(), text });
            continue;
        }
        settings.namespaces.push(namespace);
    }
}

fn apply_variable(settings: &mut Settings, name: &str, value: &str, problems: &mut Vec<Problem>) {
    let rest = &name[ENVIRONMENT_PREFIX.len()..];
    // Kubernetes injects RINGWAY_SERVICE_HOST, RINGWAY_PORT_8000_TCP and more beside a service named "ringway"; test
    // drivers pass their own variables through. None of these shapes is a key.
    let foreign = rest.starts_with("SERVICE_") || rest == "PORT" || rest.starts_with("PORT_");
    if name == ENVIRONMENT_CONFIG || foreign || rest.starts_with("TEST_") || rest == "BIN" {
        return;
    }
    let key = rest.to_ascii_lowercase().replace("__", ".");
    apply_key(settings, &key, Raw::Text(value.into()), &format!("environment {name}"), problems);
}

fn apply_flags(settings: &mut Settings, args: &RunArgs, problems: &mut Vec<Problem>) {
    if let Some(shards) = &args.shards {
        apply_key(settings, "shards", Raw::Text(shards.clone()), "flag --shards", problems);
    }
    if args.takeover {
        apply_key(settings, "takeover", Raw::Bool(true), "flag --takeover", problems);
    }
    for set in &args.set {
        match set.split_once('=') {
            Some((key, value)) => {
                apply_key(settings, key.trim(), Raw::Text(value.into()), "flag --set", problems);
            }
            None => problems.push(Problem {
                place: "flag --set".into(),
                key: set.clone(),
                text: "must be KEY=VALUE, e.g. --set client.listen=127.0.0.1:8000".into(),
            }),
        }
    }
}

/// Finds the key's row and takes the value; for the default namespace, in the namespace's rows.
fn apply_key(settings: &mut Settings, key: &str, value: Raw, place: &str, problems: &mut Vec<Problem>) {
    let of_namespace =
        key.strip_prefix("namespace.").and_then(|rest| NAMESPACE_ROWS.iter().find(|row| row.key == rest));
    let taken = if let Some(row) = of_namespace {
        take(&row.field, &mut settings.namespace, value)
    } else if let Some(row) = rows().find(|row: &&Row<Settings>| row.key == key) {
        take(&row.field, settings, value)
    } else if key == "namespaces" || key.starts_with("namespaces.") {
        Err("namespaces are set in the file, as [[namespaces]]; the default one is namespace.<key>".into())
    } else {
        Err(unknown(key, all_keys()))
    };
    if let Err(text) = taken {
        problems.push(Problem { place: place.into(), key: key.into(), text });
    }
}

/// Every key that the environment and flags can set.
pub fn all_keys() -> impl Iterator<Item = String> {
    rows().map(|row| row.key.to_string()).chain(NAMESPACE_ROWS.iter().map(|row| format!("namespace.{}", row.key)))
}

fn is_section(name: &str) -> bool {
    all_keys().any(|key| key.split_once('.').is_some_and(|(section, _)| section == name))
}

/// The text for an unknown key: the nearest known one, when one is near.
fn unknown(key: &str, known: impl Iterator<Item = String>) -> String {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_string();
    let nearest = known
        .map(|candidate| {
            let whole = strsim::osa_distance(key, &candidate);
            // The right name in the wrong section, or in none.
            let moved = 1 + strsim::osa_distance(&last(key), &last(&candidate));
            (whole.min(moved), candidate)
        })
        .min();
    match nearest {
        Some((distance, candidate)) if distance <= (key.len() / 3).max(2) => {
            format!("unknown key; did you mean {candidate}?")
        }
        _ => "unknown key; `ringway config` prints all keys".into(),
    }
}

/// A table is sorted by key; problems read better in the order of the file.
fn in_file_order<'a, 'i>(table: &'a DeTable<'i>) -> Vec<(&'a Spanned<DeString<'i>>, &'a Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    entries
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::Boolean(b) => Raw::Bool(*b),
        DeValue::Integer(i) => {
            i128::from_str_radix(i.as_str(), i.radix()).map_or(Raw::Other("a huge number"), Raw::Integer)
        }
        DeValue::String(s) => Raw::Text(s.to_string()),
        DeValue::Array(items) => {
            let texts: Option<Vec<String>> = items
                .iter()
                .map(|item| match item.get_ref() {
                    DeValue::String(s) => Some(s.to_string()),
                    _ => None,
                })
                .collect();
            texts.map_or(Raw::Other("an array with other things than text"), Raw::List)
        }
        DeValue::Float(_) => Raw::Other("a number with a fraction"),
        DeValue::Datetime(_) => Raw::Other("a date"),
        DeValue::Table(_) => Raw::Other("a table"),
    }
}

/// Checks a value against its field and writes it.
fn take<T>(field: &Field<T>, target: &mut T, value: Raw) -> Result<(), String> {
    let refuse = |got: String| {
        let got = if field.secret() { String::new() } else { format!(", not {got}") };
        Err(format!("must be {}{got}", field.allowed()))
    };
    match (field, value) {
        (Field::Flag { set, .. }, Raw::Bool(b)) => set(target, b),
        (Field::Flag { set, .. }, Raw::Text(t)) => match t.as_str() {
            "true" => set(target, true),
            "false" => set(target, false),
            _ => return refuse(format!("{t:?}")),
        },
        (Field::Integer { min, max, set, .. }, Raw::Integer(i)) => match u64::try_from(i) {
            Ok(i) if (*min..=*max).contains(&i) => set(target, i),
            _ => return refuse(i.to_string()),
        },
        (Field::Integer { .. }, Raw::Text(t)) => match t.trim().replace('_', "").parse() {
            Ok(i) => return take(field, target, Raw::Integer(i)),
            Err(_) => return refuse(format!("{t:?}")),
        },
        (Field::Choice { names, set, .. }, Raw::Text(t)) if names.contains(&t.as_str()) => set(target, &t),
        (Field::Address { set, .. }, Raw::Text(t)) => match t.parse() {
            Ok(address) => set(target, address),
            Err(_) => return refuse(format!("{t:?}")),
        },
        (Field::Text { set, .. }, Raw::Text(t)) => set(target, t),
        (Field::List { set, .. }, Raw::List(items)) => set(target, items),
        (Field::List { set, .. }, Raw::Text(t)) => {
            set(target, t.split(',').map(str::trim).filter(|t| !t.is_empty()).map(String::from).collect());
        }
        (_, Raw::Text(t)) => return refuse(format!("{t:?}")),
        (_, Raw::Bool(b)) => return refuse(b.to_string()),
        (_, Raw::Integer(i)) => return refuse(i.to_string()),
        (_, Raw::List(_)) => return refuse("an array".into()),
        (_, Raw::Other(what)) => return refuse(what.into()),
    }
    Ok(())
}

impl<T> Field<T> {
    /// What a value may be, for people.
    pub fn allowed(&self) -> String {
        match self {
            Field::Flag { .. } => "true or false".into(),
            Field::Integer { unit, min, max, .. } => format!("a whole number of {unit} from {min} to {max}"),
            Field::Choice { names, .. } => {
                let names: Vec<String> = names.iter().map(|n| format!("\"{n}\"")).collect();
                format!("one of {}", names.join(", "))
            }
            Field::Address { .. } => "an IP address and a port, such as 127.0.0.1:8001 or [::1]:8001".into(),
            Field::Text { allowed, .. } | Field::List { allowed, .. } => (*allowed).into(),
        }
    }

    /// Copies the value.
    pub fn copy(&self, from: &T, to: &mut T) {
        match self {
            Field::Flag { get, set } => set(to, get(from)),
            Field::Integer { get, set, .. } => set(to, get(from)),
            Field::Choice { get, set, .. } => set(to, get(from)),
            Field::Address { get, set } => set(to, get(from)),
            Field::Text { get, set, .. } => set(to, get(from).into()),
            Field::List { get, set, .. } => set(to, get(from).to_vec()),
        }
    }

    /// Whether the value must not be shown.
    pub const fn secret(&self) -> bool {
        matches!(self, Field::Text { secret: true, .. } | Field::List { secret: true, .. })
    }

    /// The value as TOML.
    pub fn to_toml(&self, from: &T) -> String {
        match self {
            Field::Flag { get, .. } => get(from).to_string(),
            Field::Integer { get, .. } => get(from).to_string(),
            Field::Choice { get, .. } => toml::Value::from(get(from)).to_string(),
            Field::Address { get, .. } => toml::Value::from(get(from).to_string()).to_string(),
            Field::Text { get, .. } => toml::Value::from(get(from)).to_string(),
            Field::List { get, .. } => toml::Value::from(get(from).to_vec()).to_string(),
        }
    }
}
