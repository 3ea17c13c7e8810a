//! A changed configuration into a running node, without closing a connection.
//!
//! In: SIGHUP, or a call of the server API; the same sources that the process was started from, read again. Out: new
//! rules for every shard ([`LaneMessage::Rules`]), new keys for whoever checks tokens (a call-back), and a
//! [`ReloadReport`] that names what needs a restart.
//! Invariants: all or nothing: what is not valid, by itself or beside the values that stay until a restart, is refused
//! as a whole and every problem is logged; reloads happen one after the other, and a shard never gets older rules
//! behind newer ones, because only the newest wait for a shard whose queue is full.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringway_engine::ids::CoreId;
use ringway_engine::lane_message::{Batch, LaneMessage};
use ringway_engine::namespace::{Namespace, Namespaces};
use tokio::signal::unix::Signal;
use tokio::sync::Notify;

use crate::cli::RunArgs;
use crate::config::{Config, ConfigError, Secret, Settings};
use crate::config_namespace::NAMESPACE_ROWS;
use crate::config_source::Problem;
use crate::config_table::rows;
use crate::log;
use crate::shared::Shared;

/// How soon the newest rules are offered again to a shard whose queue was full. There is no last try: a shard that
/// never takes from its queue serves nobody, and only one set of rules waits for it.
const OFFER_RETRY_MS: u64 = 10;
/// Keys that one log line names. The others are counted.
const LOGGED_KEYS_MAX: usize = 32;

static DONE: AtomicU64 = AtomicU64::new(0);
static REFUSED: AtomicU64 = AtomicU64::new(0);
static SHARDS_BEHIND: AtomicU64 = AtomicU64::new(0);

/// Reloads that were applied, as a metric's value.
pub fn done() -> Option<String> {
    Some(DONE.load(Ordering::Relaxed).to_string())
}

/// Reloads that were refused, as a metric's value.
pub fn refused() -> Option<String> {
    Some(REFUSED.load(Ordering::Relaxed).to_string())
}

/// Shards to which the newest rules could not be given yet, as a metric's value.
pub fn shards_behind() -> Option<String> {
    Some(SHARDS_BEHIND.load(Ordering::Relaxed).to_string())
}

/// What a reload did. Keys as `limits.outbox_bytes_max`, `namespace.history_size` (the default namespace),
/// `namespaces.chat.history_size`, and `namespaces.chat` for one that came or went; in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReloadReport {
    /// Keys that changed and hold now.
    pub applied: Vec<String>,
    /// Keys that changed and wait for a restart.
    pub restart: Vec<String>,
}

/// Takes over what else follows a reload, such as keys. Called with a valid configuration before anything else has
/// changed; an error refuses the reload.
pub type Follow = Box<dyn Fn(&Config) -> Result<(), String> + Send + Sync>;

/// Reloads the configuration of one running node.
pub struct Reloader {
    shared: Arc<Shared>,
    follow: Follow,
    running: Mutex<Running>,
    /// Rung when rules wait for a shard.
    waiting: Notify,
}

/// What holds now.
struct Running {
    /// The flags of the start; they name the sources.
    args: RunArgs,
    /// Values as given, but what waits for a restart as it was given at the start.
    settings: Settings,
    /// As of the start.
    api_key: Secret,
    /// As of the start.
    ingest_tokens: Vec<Box<[u8]>>,
    /// As the shards have them, those counted that are gone.
    namespaces: Arc<Namespaces>,
    /// Shards that have not been given the newest rules.
    behind: Vec<CoreId>,
}

impl Reloader {
    /// For a node that runs with `config`; `shared` has its shards' inboxes and the control plane's behind them.
    pub fn new(config: &Config, shared: Arc<Shared>, follow: Follow) -> Self {
        let running = Running {
            args: config.args.clone(),
            settings: config.settings.clone(),
            api_key: config.control.api_key.clone(),
            ingest_tokens: config.access.ingest_tokens.clone(),
            namespaces: Arc::new(config.namespaces.clone()),
            behind: Vec::new(),
        };
        Reloader { shared, follow, running: Mutex::new(running), waiting: Notify::new() }
    }

    /// Reads all sources again and applies what may change while the process runs. When it returns, the rules are in
    /// the queue of every shard that has room; the others get them as soon as they have. Reads files: not for a
    /// shard's thread.
    ///
    /// # Errors
    /// Every problem found; nothing has changed then. They have been logged.
    pub fn reload(&self) -> Result<ReloadReport, ConfigError> {
        let mut running = self.running();
        let result = self.try_reload(&mut running);
        match &result {
            Ok(report) => {
                DONE.fetch_add(1, Ordering::Relaxed);
                log::info("reload", "configuration reloaded", &[("applied", &listed(&report.applied))]);
                if !report.restart.is_empty() {
                    log::warn("reload", "needs a restart", &[("keys", &listed(&report.restart))]);
                }
            }
            Err(error) => {
                REFUSED.fetch_add(1, Ordering::Relaxed);
                for problem in &error.problems {
                    log::error("reload", &problem.to_string(), &[]);
                }
                log::error("reload", "refused: nothing has changed", &[("problems", &error.problems.len())]);
            }
        }
        result
    }

    /// Reloads at each SIGHUP, and gives waiting rules to shards whose queue was full. Runs until it is dropped.
    pub async fn serve(&self, mut hangups: Signal) -> Infallible {
        loop {
            let all_have_them = self.offer(&mut self.running());
            tokio::select! {
                Some(()) = hangups.recv() => {
                    log::info("reload", "reloading", &[("signal", &"SIGHUP")]);
                    // Logged; who sent the signal has no other answer.
                    let _ = self.reload();
                }
                () = self.waiting.notified() => {}
                () = tokio::time::sleep(Duration::from_millis(OFFER_RETRY_MS)), if !all_have_them => {}
            }
        }
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        // What is behind the lock is replaced as a whole, so a panic elsewhere leaves it whole.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_reload(&self, running: &mut Running) -> Result<ReloadReport, ConfigError> {
        let wanted = Config::load_from(&running.args, Config::environment())?;
        let (settings, mut report) = merge(&running.settings, &wanted.settings, &running.namespaces);
        // Once more: what is applied must also fit what stays until a restart.
        let config = settings.finish(&running.args, Vec::new()).map_err(|error| beside(error, &report.restart))?;
        let refuse = |key: &str, text: &str| ConfigError { problems: vec![Problem::between(key, text)] };
        let namespaces =
            running.namespaces.reloaded(config.namespaces.clone()).map_err(|text| refuse("namespaces", &text))?;
        (self.follow)(&config).map_err(|text| refuse("", &text))?;
        // Files of secrets may have changed although their keys have not; they wait for a restart, too.
        if !config.control.api_key.same(&running.api_key) {
            report.restart.push("control.api_key_file".into());
        }
        if config.access.ingest_tokens != running.ingest_tokens {
            report.restart.push("ingest.tokens_file".into());
        }
        log::set_level(config.log_level);
        for warning in config.warnings() {
            log::warn("config", &warning, &[]);
        }
        running.settings = config.settings;
        running.namespaces = Arc::new(namespaces);
        // The control plane too, whose number follows the shards'.
        running.behind = (0..=self.shards()).map(CoreId).collect();
        if !self.offer(running) {
            self.waiting.notify_one();
        }
        Ok(report)
    }

    fn shards(&self) -> u16 {
        self.shared.shards
    }

    /// Gives the newest rules to the shards that lack them and have room; returns whether all have them now.
    fn offer(&self, running: &mut Running) -> bool {
        let rules = &running.namespaces;
        running.behind.retain(|core| {
            let inbox = &self.shared.inboxes[core.0 as usize];
            let messages = vec![LaneMessage::Rules(Arc::clone(rules))];
            let full = inbox.push(Batch { from: CoreId(self.shards()), messages }).is_err();
            if !full {
                inbox.wake_if_asleep();
            }
            full
        });
        SHARDS_BEHIND.store(running.behind.len() as u64, Ordering::Relaxed);
        running.behind.is_empty()
    }
}

/// `running` with all of `wanted` that needs no restart, and which keys that are. `known`: namespaces that channels may
/// have, those counted that are not configured any more.
fn merge(running: &Settings, wanted: &Settings, known: &Namespaces) -> (Settings, ReloadReport) {
    let mut merged = running.clone();
    let mut report = ReloadReport::default();
    for row in rows().filter(|row| row.field.to_toml(running) != row.field.to_toml(wanted)) {
        if row.restart {
            report.restart.push(row.key.into());
        } else {
            row.field.copy(wanted, &mut merged);
            report.applied.push(row.key.into());
        }
    }
    merged.namespace = wanted.namespace.clone();
    merge_namespace(&running.namespace, &mut merged.namespace, "namespace", &mut report);
    merged.namespaces = wanted.namespaces.clone();
    for namespace in &mut merged.namespaces {
        let key = format!("namespaces.{}", namespace.name);
        let is_new = !running.namespaces.iter().any(|before| before.name == namespace.name);
        if is_new {
            report.applied.push(key.clone());
        }
        if let Some(before) = known.by_name(&namespace.name) {
            merge_namespace(before, namespace, &key, &mut report);
        }
    }
    let gone = running.namespaces.iter().filter(|before| !wanted.namespaces.iter().any(|ns| ns.name == before.name));
    report.applied.extend(gone.map(|before| format!("namespaces.{}", before.name)));
    (merged, report)
}

/// Leaves in `namespace` what needs a restart as it was `before`.
fn merge_namespace(before: &Namespace, namespace: &mut Namespace, key: &str, report: &mut ReloadReport) {
    for row in NAMESPACE_ROWS {
        if row.field.to_toml(before) == row.field.to_toml(namespace) {
            continue;
        }
        let key = format!("{key}.{}", row.key);
        if row.restart {
            row.field.copy(before, namespace);
            report.restart.push(key);
        } else {
            report.applied.push(key);
        }
    }
}

/// Says of problems which values were not those of the sources.
fn beside(mut error: ConfigError, restart: &[String]) -> ConfigError {
    if !restart.is_empty() {
        let stays = listed(restart);
        for problem in &mut error.problems {
            problem.text.push_str(&format!(" (these keys stay as they were until a restart: {stays})"));
        }
    }
    error
}

/// Keys for a log line.
fn listed(keys: &[String]) -> String {
    let shown = keys.len().min(LOGGED_KEYS_MAX);
    let mut text = if keys.is_empty() { "nothing".to_string() } else { keys[..shown].join(", ") };
    if keys.len() > shown {
        text.push_str(&format!(", and {} more", keys.len() - shown));
    }
    text
}

#[cfg(test)]
#[path = "reload_tests.rs"]
mod tests;
