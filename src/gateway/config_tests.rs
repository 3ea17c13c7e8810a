//! Tests of the configuration: every key by every source, what is refused and with which words, and what defaults
//! and `--dev` let in.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use ringway_engine::namespace::NAMESPACES_MAX;

use super::*;
use crate::config_namespace::NAMESPACE_ROWS;
use crate::config_table::{Field, rows};
use crate::pages;

/// A file that is removed with the test.
struct TempFile(PathBuf);

impl TempFile {
    fn new(text: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("ringway-config-{}-{}.toml", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::write(&path, text).expect("temporary folder is writable");
        TempFile(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn load(args: &RunArgs, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::load_from(args, environment.iter().map(|(k, v)| (k.to_string(), v.to_string())))
}

fn load_file(text: &str) -> Result<Config, ConfigError> {
    let file = TempFile::new(text);
    load(&RunArgs { config: Some(file.0.clone()), ..RunArgs::default() }, &[])
}

fn set(pairs: &[&str]) -> RunArgs {
    RunArgs { set: pairs.iter().map(|p| p.to_string()).collect(), ..RunArgs::default() }
}

/// The text of the only problem.
fn problem(result: Result<Config, ConfigError>) -> String {
    let error = result.expect_err("is refused");
    assert_eq!(error.problems.len(), 1, "{error}");
    error.to_string()
}

/// For a field, another legal value as TOML and as plain text.
fn other_value<T>(field: &Field<T>, now: &T) -> (String, String) {
    let plain = match field {
        Field::Flag { get, .. } => (!get(now)).to_string(),
        Field::Integer { min, max, get, .. } => if get(now) == *max { *min } else { *max }.to_string(),
        Field::Choice { names, get, .. } => {
            let other = names.iter().find(|n| **n != get(now)).expect("a choice has two names");
            return (format!("\"{other}\""), other.to_string());
        }
        Field::Address { .. } => return ("\"[::1]:1234\"".into(), "[::1]:1234".into()),
        Field::Text { .. } => return ("\"/x\"".into(), "/x".into()),
        Field::List { .. } => return ("[\"a\", \"b\"]".into(), "a, b".into()),
    };
    (plain.clone(), plain)
}

/// Applies the sources without the relations, which a single extreme value may break.
fn settings_from(args: &RunArgs, environment: &[(String, String)]) -> Settings {
    let mut settings = Settings::default();
    let mut problems = Vec::new();
    config_source::apply(&mut settings, args, environment.iter().cloned(), &mut problems);
    assert_eq!(problems, [], "{args:?} {environment:?}");
    settings
}

#[test]
fn every_key_can_be_set_by_file_environment_and_flag() {
    let defaults = Settings::default();
    let mut keys: Vec<(String, String, String)> = Vec::new();
    for row in rows() {
        let (toml, plain) = other_value(&row.field, &defaults);
        keys.push((row.key.to_string(), toml, plain));
    }
    for row in NAMESPACE_ROWS {
        let (toml, plain) = other_value(&row.field, &defaults.namespace);
        keys.push((format!("namespace.{}", row.key), toml, plain));
    }
    let value_of = |settings: &Settings, key: &str| -> String {
        match key.strip_prefix("namespace.").and_then(|rest| NAMESPACE_ROWS.iter().find(|r| r.key == rest)) {
            Some(row) => row.field.to_toml(&settings.namespace),
            None => rows().find(|r| r.key == key).expect("is a row").field.to_toml(settings),
        }
    };
    for (key, toml, plain) in &keys {
        assert_ne!(&value_of(&defaults, key), toml, "{key}: the test needs another value than the default");
        let file = TempFile::new(&format!("{key} = {toml}\n"));
        let by_file = settings_from(&RunArgs { config: Some(file.0.clone()), ..RunArgs::default() }, &[]);
        let variable = format!("RINGWAY_{}", key.to_uppercase().replace('.', "__"));
        let by_environment = settings_from(&RunArgs::default(), &[(variable, plain.clone())]);
        let by_flag = settings_from(&set(&[&format!("{key}={plain}")]), &[]);
        for (source, settings) in [("file", by_file), ("environment", by_environment), ("flag", by_flag)] {
            assert_eq!(&value_of(&settings, key), toml, "{key} by {source}");
            let changed = keys.iter().filter(|(other, ..)| value_of(&settings, other) != value_of(&defaults, other));
            assert_eq!(changed.count(), 1, "{key} by {source} changes nothing else");
        }
    }
}

#[test]
fn every_integer_row_keeps_its_bounds_and_refuses_what_is_beyond() {
    for row in rows() {
        let Field::Integer { min, max, get, set, .. } = row.field else { continue };
        let default = get(&Settings::default());
        assert!((min..=max).contains(&default), "{}: default {default} is out of range", row.key);
        for value in [min, max] {
            let mut settings = Settings::default();
            set(&mut settings, value);
            assert_eq!(get(&settings), value, "{}: a bound does not fit the field", row.key);
        }
        let mut beyond = vec![(max + 1).to_string(), "-1".into(), "1.5".into(), "many".into(), String::new()];
        if min > 0 {
            beyond.push((min - 1).to_string());
        }
        for value in beyond {
            let args = RunArgs { set: vec![format!("{}={value}", row.key)], ..RunArgs::default() };
            let text = problem(load(&args, &[]));
            assert!(text.contains(row.key) && text.contains(&format!("from {min} to {max}")), "{text}");
        }
    }
}

#[test]
fn every_limit_and_namespace_option_has_a_row() {
    // Debug prints each field as `name: value`.
    let fields = |debug: String| -> Vec<String> {
        let inner = debug.split_once('{').expect("a struct").1.to_string();
        inner.split(", ").filter_map(|part| Some(part.split_once(':')?.0.trim().to_string())).collect()
    };
    let limits = fields(format!("{:?}", Limits::DEFAULT));
    assert!(limits.len() > 20, "{limits:?}");
    for field in limits {
        assert!(rows().any(|row| row.key == format!("limits.{field}")), "limits.{field} has no row");
    }
    for field in fields(format!("{:?}", Namespace::closed(""))) {
        assert!(field == "name" || NAMESPACE_ROWS.iter().any(|row| row.key == field), "namespace.{field} has no row");
    }
}

#[test]
fn keys_are_unique_and_texts_are_fit_for_a_table() {
    let mut keys: Vec<String> = config_source::all_keys().collect();
    let count = keys.len();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), count);
    let texts = rows()
        .map(|r| (r.key, r.what, r.effect, r.when))
        .chain(NAMESPACE_ROWS.iter().map(|r| (r.key, r.what, r.effect, r.when)));
    for (key, what, effect, when) in texts {
        for text in [what, effect, when] {
            assert!(text.ends_with('.') && !text.contains(['|', '\n']), "{key}: {text}");
        }
    }
}

#[test]
fn later_sources_win() {
    let file = TempFile::new("shards = 2\n[client]\nbacklog = 10\n[lane]\ncapacity_batches = 10\n");
    let args = RunArgs {
        config: Some(file.0.clone()),
        shards: Some("4".into()),
        set: vec!["client.backlog=30".into()],
        ..RunArgs::default()
    };
    let environment = [("RINGWAY_SHARDS", "3"), ("RINGWAY_CLIENT__BACKLOG", "20")];
    let config = load(&args, &environment).expect("is valid");
    assert_eq!((config.shards, config.client.backlog, config.lane_capacity_batches), (4, 30, 10));
    let config = load(&RunArgs { shards: None, set: Vec::new(), ..args }, &environment).expect("is valid");
    assert_eq!((config.shards, config.client.backlog), (3, 20));
    // The environment can name the file, and --config wins over it.
    let other = TempFile::new("shards = 9\n");
    let named = other.0.display().to_string();
    let config = load(&RunArgs::default(), &[("RINGWAY_CONFIG", &named)]).expect("is valid");
    assert_eq!(config.shards, 9);
    let args = RunArgs { config: Some(file.0.clone()), ..RunArgs::default() };
    assert_eq!(load(&args, &[("RINGWAY_CONFIG", &named)]).expect("is valid").shards, 2);
}

#[test]
fn unknown_keys_name_the_nearest() {
    let text = problem(load_file("# first\n\n[client]\nlistn = \"127.0.0.1:1\"\n"));
    assert!(text.contains(".toml:4: client.listn: unknown key; did you mean client.listen?"), "{text}");
    for (key, meant) in [
        ("client.websocketpath", "client.websocket_path"),
        ("outbox_bytes_max", "limits.outbox_bytes_max"),
        ("client.outbox_bytes_max", "limits.outbox_bytes_max"),
        ("limit.ping_interval_ms", "limits.ping_interval_ms"),
        ("shard", "shards"),
        ("namespace.history_sise", "namespace.history_size"),
        ("control.apikey", "control.api_key"),
    ] {
        let text = problem(load(&set(&[&format!("{key}=1")]), &[]));
        assert!(text.contains(&format!("flag --set: {key}: unknown key; did you mean {meant}?")), "{text}");
    }
    let text = problem(load(&RunArgs::default(), &[("RINGWAY_CLIENT__ECO", "true")]));
    assert!(
        text.contains("environment RINGWAY_CLIENT__ECO: client.eco: unknown key; did you mean client.echo?"),
        "{text}"
    );
    let text = problem(load(&set(&["tls.certificate_chain=x"]), &[]));
    assert!(text.contains("prints all keys"), "{text}");
    let text = problem(load_file("[[namespaces]]\nname = \"chat\"\nhistroy_size = 1\n"));
    assert!(text.contains(".toml:3: namespaces.histroy_size: unknown key; did you mean history_size?"), "{text}");
}

#[test]
fn variables_of_others_are_left_alone() {
    let foreign = [
        ("RINGWAY_SERVICE_HOST", "10.0.0.1"),
        ("RINGWAY_SERVICE_PORT_CLIENT", "8000"),
        ("RINGWAY_PORT", "tcp://10.0.0.1:8000"),
        ("RINGWAY_PORT_8000_TCP_ADDR", "10.0.0.1"),
        ("RINGWAY_TEST_SEED", "1"),
        ("RINGWAYS", "x"),
        ("PATH", "/bin"),
    ];
    load(&RunArgs::default(), &foreign).expect("is valid");
    assert!(problem(load(&RunArgs::default(), &[("RINGWAY_SHARD", "1")])).contains("did you mean shards?"));
}

#[test]
fn wrong_types_say_what_is_allowed() {
    for (file, words) in [
        ("shards = \"many\"", "shards: must be a whole number of shards from 0 to 1024, not \"many\""),
        ("shards = 1.5", "must be a whole number of shards from 0 to 1024, not a number with a fraction"),
        ("shards = 99999999999999999999999999", "shards"),
        ("pin_shards = 1", "pin_shards: must be true or false, not 1"),
        ("pin_shards = \"yes\"", "must be true or false, not \"yes\""),
        ("client.listen = \"localhost\"", "client.listen: must be an IP address and a port"),
        ("client.listen = 8000", "must be an IP address and a port, such as 127.0.0.1:8001 or [::1]:8001, not 8000"),
        ("client = 3", "client: unknown key"),
        ("ring.send_mode = \"fast\"", "ring.send_mode: must be one of \"ring\", \"syscall\", not \"fast\""),
        ("client.allowed_origins = [1]", "not an array with other things than text"),
        ("client.listen.port = 1", "not a table"),
        ("namespace.payload = \"xml\"", "must be one of \"json\", \"bytes\", not \"xml\""),
        ("namespaces = 1", "namespaces: must be tables, written [[namespaces]]"),
        ("[[namespaces]]\nrecovery = false", "each [[namespaces]] must have a name"),
        ("shards = ", "not valid TOML"),
        ("shards = 1\nshards = 2", "not valid TOML"),
    ] {
        let error = load_file(file).expect_err(file).to_string();
        assert!(error.contains(words), "{file}: {error}");
        assert!(error.contains(".toml:"), "{file}: {error} names no line");
    }
    assert!(problem(load(&set(&["namespaces.name=x"]), &[])).contains("as [[namespaces]]"));
    assert!(problem(load(&set(&["shards"]), &[])).contains("KEY=VALUE"));
    assert!(problem(load(&RunArgs { shards: Some("0x".into()), ..RunArgs::default() }, &[])).contains("flag --shards"));
}

#[test]
fn all_problems_are_reported_at_once_and_no_secret_is_shown() {
    let error = load_file(
        "a = 1\nb = 2\n[control]\napi_key = 77777777\n[ingest]\ntokens = [88888888]\n[limits]\noutbox_bytes_max = 1\n",
    )
    .expect_err("is refused");
    assert_eq!(error.problems.len(), 5, "{error}");
    let text = error.to_string();
    assert!(!text.contains("77777777") && !text.contains("88888888"), "{text}");

    let secrets = ["control.api_key=hunter2", "ingest.tokens=token3", "auth.hmac_secrets=secret4"];
    let config = load(&set(&secrets), &[]).expect("is valid");
    let shown = format!("{config:?} {:?} {:?}", config.auth, config.warnings());
    assert!(!shown.contains("hunter2") && !shown.contains("token3") && !shown.contains("secret4"), "{shown}");
}

#[test]
fn a_missing_or_unreadable_file_is_named() {
    let args = RunArgs { config: Some("/nonexistent/ringway.toml".into()), ..RunArgs::default() };
    assert!(problem(load(&args, &[])).contains("/nonexistent/ringway.toml: No such file"));
    let args = RunArgs { config: Some("/dev/zero".into()), ..RunArgs::default() };
    assert!(problem(load(&args, &[])).contains("longer than"));
}

#[test]
fn relations_are_checked() {
    let broken: &[(&[&str], &str)] = &[
        (&["limits.recovery_bytes_max=1048576"], "limits.recovery_bytes_max must be at most half"),
        (&["limits.call_answer_bytes_max=1048576"], "limits.call_answer_bytes_max must be at most half"),
        (&["limits.publication_bytes_max=65536", "limits.ingest_frame_bytes_max=65536"], "half of limits.ingest_frame"),
        (&["limits.message_bytes_max=32768"], "at most limits.message_bytes_max"),
        (&["limits.drain_deadline_ms=9999"], "at least limits.drain_grace_ms and limits.drain_backends_ms"),
        (&["backplane.engine=redis", "limits.drain_grace_ms=3333"], "at least a third of backplane.lease_ms"),
        (
            &["limits.outbox_bytes_max=200000", "limits.recovery_bytes_max=1024", "limits.call_answer_bytes_max=1024"],
            "at least 4 times limits.publication_bytes_max",
        ),
        (&["limits.read_bytes_per_turn_max=4096"], "at most limits.read_bytes_per_turn_max"),
        (&["limits.ingest_credit_bytes=4096"], "at least limits.ingest_frame_bytes_max"),
        (&["namespace.durability=fleet"], "needs a backplane"),
        (&["limits.ping_interval_ms=999", "limits.pong_timeout_ms=500"], "0 or at least 1000"),
        (&["limits.pong_timeout_ms=25000"], "below limits.ping_interval_ms"),
        (&["ring.submission_entries=1000"], "must be a power of two"),
        (&["ring.completion_entries=1000", "ring.submission_entries=256"], "must be a power of two"),
        (&["ring.completion_entries=1024"], "at least twice ring.submission_entries"),
        (&["client.websocket_path=ws"], "must begin with /"),
        (&["client.websocket_path=/a?b"], "must begin with /"),
        (&["client.websocket_path=/echo", "client.echo=true"], "must not be /echo"),
        (&["client.allowed_origins=*,https://a.b"], "[\"*\"] alone"),
        (&["client.allowed_origins=app.example.com"], "origins such as"),
        (&["client.allowed_origins=https://app.example.com/"], "origins such as"),
        (&["control.listen=127.0.0.1:8000"], "different ports"),
        (&["control.api_key=a", "control.api_key_file=/dev/null"], "must not both be set"),
        (&["auth.hmac_secrets=a", "auth.hmac_secrets_file=/dev/null"], "must not both be set"),
        (&["auth.jwks_url=idp.example.com/keys"], "auth.jwks_url must be http:// or https://"),
        (&["auth.jwks_url=ftp://idp.example.com/keys"], "auth.jwks_url must be http:// or https://"),
        (&["auth.jwks_url=https://me:secret@idp.example.com/"], "without user and password"),
        (&["auth.jwks_ca_file=ca.pem", "auth.jwks_url=http://127.0.0.1/"], "needs an https:// auth.jwks_url"),
        (&["auth.user_id_claim="], "must be the name of a claim"),
        (&["namespace.recovery=true"], "recovery needs history_size"),
        (&["namespace.history_size=5"], "needs history_ttl_ms"),
        (&["namespace.durability=disk"], "durability \"disk\" is not available"),
        (&["namespace.join_leave=true"], "default namespace: join_leave needs presence"),
        (&["client.uni_websocket_path=uni"], "must be empty, or begin with /"),
        (&["client.uni_websocket_path=/connection/websocket"], "neither client.websocket_path nor /echo"),
        (&["client.uni_websocket_path=/echo", "client.echo=true"], "neither client.websocket_path nor /echo"),
        (&["client.personal_channel=true", "client.personal_namespace=x"], "must be a configured namespace"),
        (&["client.personal_channel=true", "namespace.user_limited=false"], "that is user_limited"),
    ];
    for (pairs, words) in broken {
        let text = load(&set(pairs), &[]).expect_err(words).to_string();
        assert!(text.contains(words), "{pairs:?}: {text}");
    }
    let zero = ["client.listen=127.0.0.1:0", "control.listen=127.0.0.1:0", "ingest.listen=127.0.0.1:0"];
    load(&set(&zero), &[]).expect("three free ports are fine");
    load(&set(&["limits.ping_interval_ms=0"]), &[]).expect("no pings, so no relation to pongs");
}

#[test]
fn relations_hold_for_the_defaults_of_both_kinds() {
    for relation in RELATIONS {
        assert!((relation.holds)(&Settings::default()), "{}", relation.text);
        assert!((relation.holds)(&Settings::dev()), "{}", relation.text);
        assert!(config_source::all_keys().any(|key| key == relation.key), "{}", relation.key);
    }
}

#[test]
fn defaults_let_nobody_in() {
    let config = load(&RunArgs::default(), &[]).expect("defaults are valid");
    assert!(!config.dev && !config.access.anonymous && !config.access.echo && !config.control.demo && !config.takeover);
    assert!(config.access.ingest_tokens.is_empty() && config.control.api_key.is_empty());
    assert!(!config.control.api_key.matches(b""), "an unset key matches nothing");
    assert!(config.control.listen.ip().is_loopback() && config.ingest.listen.ip().is_loopback());
    assert!(matches!(config.access.origins, Origins::SameHost));
    let access = &config.access;
    assert!(access.uni_websocket_path.is_empty() && !access.deflate && !access.personal_channel && !access.rpc_events);
    assert_eq!(access.connect_events, EventMode::Off);
    let (_, namespace) = config.namespaces.resolve("news").expect("the default namespace");
    // A subscription token needs a key, and there is none.
    assert!(!config.auth.has_keys());
    assert_eq!((namespace.subscribe, namespace.publish), (Allow::Token, Allow::Backend));
    assert_eq!((namespace.read_presence, namespace.read_history), (Allow::Backend, Allow::Backend));
    assert!(config.namespaces.resolve("other:news").is_none());
    assert!((1..=SHARDS_MAX).contains(&config.shards));
    let ports = [config.client.listen.port(), config.control.listen.port(), config.ingest.listen.port()];
    assert_eq!(ports, [8000, 8001, 8002]);
    assert_eq!(&*config.access.websocket_path, "/connection/websocket");
    assert!(config.warnings().iter().any(|w| w.contains("no client can connect")));
    assert!(config.warnings().iter().any(|w| w.contains("no backend can publish")));
}

#[test]
fn dev_is_open_on_loopback_only() {
    let dev = || RunArgs { dev: true, ..RunArgs::default() };
    let config = load(&dev(), &[]).expect("is valid");
    assert!(config.dev && config.access.anonymous && config.access.echo && config.control.demo);
    assert!(config.control.api_key.matches(b"dev"));
    assert_eq!(config.access.ingest_tokens, [Box::from(&b"dev"[..])]);
    assert!(matches!(config.access.origins, Origins::Any));
    for channel in ["news", "any:channel"] {
        let (_, ns) = config.namespaces.resolve(channel).expect("every channel exists");
        assert_eq!((ns.subscribe, ns.publish), (Allow::Anyone, Allow::Anyone));
        assert_eq!((ns.history_size, ns.history_ttl_ms, ns.recovery), (100, 300_000, true));
        assert_eq!((ns.read_presence, ns.read_history), (Allow::Anyone, Allow::Anyone));
        assert!(ns.presence && ns.join_leave && ns.delta && ns.deflate_bytes_min > 0);
    }
    assert!(config.access.personal_channel && config.access.deflate && !config.access.rpc_events);
    assert_eq!(&*config.access.uni_websocket_path, "/connection/uni_websocket");
    for address in [config.client.listen, config.control.listen, config.ingest.listen] {
        assert!(address.ip().is_loopback());
    }
    assert!(config.warnings().is_empty(), "{:?}", config.warnings());
    for key in ["client.listen", "control.listen", "ingest.listen"] {
        let text = problem(load(&RunArgs { set: vec![format!("{key}=0.0.0.0:9000")], ..dev() }, &[]));
        assert!(text.contains(key) && text.contains("--dev"), "{text}");
    }
    let config = load(&RunArgs { set: vec!["client.listen=[::1]:9000".into()], ..dev() }, &[]).expect("loopback, too");
    assert_eq!(config.client.listen.port(), 9000);
}

#[test]
fn namespaces_come_from_the_file() {
    let config = load_file(
        "[namespace]\nsubscribe = \"authenticated\"\n[[namespaces]]\nname = \"chat\"\nhistory_size = 10\n\
         history_ttl_ms = 60_000\nrecovery = true\nsubscribe = \"anyone\"\n[[namespaces]]\nname = \"raw\"\npayload = \"bytes\"\n",
    )
    .expect("is valid");
    let (_, default) = config.namespaces.resolve("plain").expect("default");
    assert_eq!((default.subscribe, default.publish), (Allow::Authenticated, Allow::Backend));
    let (_, chat) = config.namespaces.resolve("chat:1").expect("named");
    assert_eq!((chat.history_size, chat.history_ttl_ms, chat.recovery), (10, 60_000, true));
    assert_eq!((chat.subscribe, chat.publish), (Allow::Anyone, Allow::Backend));
    let (_, raw) = config.namespaces.resolve("raw:1").expect("named");
    assert_eq!((raw.payload, raw.subscribe), (ringway_wire::ingest::PayloadKind::Bytes, Allow::Token));
    assert!(config.namespaces.resolve("other:1").is_none());

    let twice = "[[namespaces]]\nname = \"a\"\n[[namespaces]]\nname = \"a\"\n";
    assert!(problem(load_file(twice)).contains("\"a\" is defined twice"));
    assert!(problem(load_file("[[namespaces]]\nname = \"a:b\"\n")).contains("contains ':'"));
    let many: String = (0..=NAMESPACES_MAX).map(|i| format!("[[namespaces]]\nname = \"n{i}\"\n")).collect();
    assert!(problem(load_file(&many)).contains("at most 1024"));
}

#[test]
fn every_contradiction_of_every_namespace_is_reported() {
    let error = load_file(
        "shards = 2000\n[namespace]\nrecovery = true\n[[namespaces]]\nname = \"a\"\njoin_leave_forced = true\n\
         positioned = true\n[[namespaces]]\nname = \"b\"\npublish = \"token\"\n[[namespaces]]\nname = \"b\"\n",
    )
    .expect_err("is refused");
    assert_eq!(error.problems.len(), 6, "{error}");
    let text = error.to_string();
    for words in
        ["shards", "default namespace: recovery", "\"a\": join_leave_forced", "\"a\": positioned", "\"b\": publish"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(text.contains("\"b\" is defined twice"), "{text}");
}

#[test]
fn what_compresses_nothing_is_warned_of() {
    let warns = |pairs: &[&str]| {
        let warnings = load(&set(pairs), &[]).expect("is valid").warnings();
        warnings.iter().any(|warning| warning.contains("nothing is compressed"))
    };
    assert!(!warns(&[]) && !warns(&["client.deflate=true", "namespace.deflate_bytes_min=100"]));
    assert!(warns(&["client.deflate=true"]) && warns(&["namespace.deflate_bytes_min=100"]));
}

#[test]
fn rows_say_which_changes_wait_for_a_restart() {
    let waits: Vec<&str> = NAMESPACE_ROWS.iter().filter(|row| row.restart).map(|row| row.key).collect();
    assert_eq!(waits, ["payload"], "channels hold publications of one kind");
    for row in NAMESPACE_ROWS.iter().filter(|row| !row.restart && row.key != "durability") {
        assert!(row.what.contains("A reload holds"), "{} does not say from when a reload holds", row.key);
    }
    for row in rows().filter(|row| !row.restart && !row.key.starts_with("auth.")) {
        assert!(row.what.contains("A reload holds"), "{} does not say from when a reload holds", row.key);
    }
    assert!(rows().any(|row| row.restart && row.key == "client.listen"));
}

#[test]
fn secrets_may_come_from_files() {
    let key = TempFile::new("  s3cret  \n\n");
    let tokens = TempFile::new("one\n\ntwo\n");
    let pairs =
        [format!("control.api_key_file={}", key.0.display()), format!("ingest.tokens_file={}", tokens.0.display())];
    for dev in [false, true] {
        let config = load(&RunArgs { set: pairs.to_vec(), dev, ..RunArgs::default() }, &[]).expect("is valid");
        assert!(config.control.api_key.matches(b"s3cret") && !config.control.api_key.matches(b"dev"));
        assert_eq!(config.access.ingest_tokens, [Box::from(&b"one"[..]), Box::from(&b"two"[..])]);
    }
    let empty = TempFile::new("\n");
    let text = problem(load(&set(&[&format!("ingest.tokens_file={}", empty.0.display())]), &[]));
    assert!(text.contains("ingest.tokens_file") && text.contains("holds no secret"), "{text}");
    assert!(problem(load(&set(&["control.api_key_file=/nonexistent/key"]), &[])).contains("/nonexistent/key"));
}

#[test]
fn keys_of_tokens_are_read_and_weak_ones_told() {
    let none = load(&RunArgs::default(), &[]).expect("is valid");
    assert!(!none.auth.has_keys());
    let warned = |pairs: &[&str], words: &str| {
        let config = load(&set(pairs), &[]).expect("is valid");
        assert!(config.auth.has_keys() && !config.warnings().iter().any(|w| w.contains("no client can connect")));
        config.warnings().iter().any(|w| w.contains(words))
    };
    let long = format!("auth.hmac_secrets={}", "s".repeat(32));
    assert!(warned(&["auth.hmac_secrets=short"], "fewer than 32 bytes") && !warned(&[&long], "fewer than 32 bytes"));
    assert!(warned(&["auth.jwks_url=http://idp.example.com/keys"], "plain http"));
    for url in ["https://idp.example.com/keys", "http://127.0.0.1:1/keys", "http://[::1]/", "http://localhost/"] {
        assert!(!warned(&[&format!("auth.jwks_url={url}")], "plain http"), "{url}");
    }
    let many = vec!["s"; 17].join(",");
    assert!(problem(load(&set(&[&format!("auth.hmac_secrets={many}")]), &[])).contains("at most 16 secrets"));
    let file = TempFile::new("old\nnew\n");
    let path = format!("auth.hmac_secrets_file={}", file.0.display());
    for dev in [false, true] {
        let config = load(&RunArgs { set: vec![path.clone()], dev, ..RunArgs::default() }, &[]).expect("is valid");
        assert_eq!(config.auth.keys.secrets(), 2, "the file replaces the secret of --dev");
    }
}

#[test]
fn secrets_match_only_themselves() {
    let secret = Secret::new(b"abc");
    assert!(secret.matches(b"abc"));
    for wrong in [&b""[..], b"ab", b"abcd", b"abd", b"ABC"] {
        assert!(!secret.matches(wrong), "{wrong:?}");
    }
    assert_eq!(format!("{secret:?}"), "Secret(***)");
}

#[test]
fn origins_are_read_as_three_kinds() {
    assert!(matches!(origins(&[]), Origins::SameHost));
    assert!(matches!(origins(&["*".into()]), Origins::Any));
    let Origins::List(list) = origins(&["HTTPS://App.example.com".into(), "null".into()]) else {
        panic!("is a list");
    };
    assert_eq!(list, [Box::from("https://app.example.com"), Box::from("null")]);
}

#[test]
fn the_default_file_is_the_defaults() {
    let file = pages::default_file();
    let defaults = load(&RunArgs::default(), &[]).expect("is valid");
    let same = |config: &Config| {
        assert_eq!(format!("{config:?}"), format!("{defaults:?}"));
        assert_eq!(format!("{:?}", config.access), format!("{:?}", defaults.access));
        assert_eq!(format!("{:?}", config.namespaces), format!("{:?}", defaults.namespaces));
    };
    same(&load_file(&file).expect("all commented out"));
    // With every key switched on: lines `# name = value`. The example namespace stands behind the last section.
    let (keys, _) = file.split_once("\n# A namespace for channels").expect("has an example");
    let is_key = |line: &str| {
        line.strip_prefix("# ")
            .and_then(|l| l.split_once(" = "))
            .is_some_and(|(name, _)| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
    };
    let switched_on: String =
        keys.lines().map(|l| if is_key(l) { &l[2..] } else { l }).flat_map(|l| [l, "\n"]).collect();
    assert_eq!(keys.lines().filter(|l| is_key(l)).count(), config_source::all_keys().count());
    same(&load_file(&switched_on).expect("every default is legal"));
}
