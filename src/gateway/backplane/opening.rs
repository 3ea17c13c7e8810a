//! How a primary's two connections begin: who the server is, whether it will do, its replication id, its scripts.
//!
//! In: an address. Out: two links and the id. Invariants: both links lead to the same start of the same server; the id
//! was read on the very link that scripts will be called on; a server older than 7.0 or no primary is refused.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::{Value, cmd};

use super::config::{Address, BackplaneConfig};
use super::link::{Link, Reason, text, within};
use super::pipeline::load_scripts;
use crate::log;

/// A client whose waiting pushes pass this within the server is disconnected; smaller bounds cut the feed in bursts.
const PUBSUB_BUFFER_BYTES_MIN: u64 = 256 * 1024 * 1024;
/// Larger nodes of streams waste memory in channels with short histories.
const STREAM_NODE_BYTES_MAX: u64 = 1024;

/// Characters of a replication id that are compared, of 40: 48 bits of randomness.
const IDENTITY_BYTES: usize = 12;
/// How long the question for settings may take.
const SETTINGS_TIMEOUT_MS: u64 = 2_000;

/// What a server is refused for at once, and for good.
pub(super) const TOO_OLD: &str = "the engine is too old";

pub(super) struct Opened {
    pub(super) commands: Link,
    pub(super) feed: Link,
    pub(super) replication_id: String,
}

/// Opens both links.
///
/// # Errors
/// Why this server will not do now.
pub(super) async fn open(config: &BackplaneConfig, address: &Address) -> Result<Opened, Reason> {
    let (mut commands, info) = primary(config, address).await?;
    let mut feed = Link::open(address, &config.login, config.timeout()).await?;
    let rest = async {
        let other = feed.ask(&[cmd("INFO")]).await?;
        if info_field(&info, "run_id") != info_field(text_of(&other), "run_id") {
            return Err("two connections to the address reached different servers".to_string());
        }
        let (replication_id, _) = identities(&info)?;
        let loads = load_scripts(&mut commands);
        commands.replies(loads).await?;
        Ok(replication_id)
    };
    let replication_id = within(config.timeout(), rest).await?;
    warn_of_settings(&mut commands, address).await;
    Ok(Opened { commands, feed, replication_id })
}

/// A connection to a primary that will do, and what its INFO says.
///
/// # Errors
/// Why it will not.
pub(super) async fn primary(config: &BackplaneConfig, address: &Address) -> Result<(Link, String), Reason> {
    let mut link = Link::open(address, &config.login, config.timeout()).await?;
    let replies = within(config.timeout(), link.ask(&[cmd("INFO")])).await?;
    let info = text_of(&replies).to_string();
    let version = info_field(&info, "redis_version").unwrap_or_default();
    let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    if major < 7 {
        return Err(format!("{TOO_OLD}: {address} is {version}, at least 7.0 is needed"));
    }
    if info_field(&info, "role") != Some("master") {
        return Err(format!("{address} is no primary"));
    }
    if info_field(&info, "loading") == Some("1") {
        return Err(format!("{address} is loading its data"));
    }
    Ok((link, info))
}

/// The server's replication id, and the one it had before it was promoted: as much of each as is stored.
///
/// # Errors
/// INFO does not say.
pub(super) fn identities(info: &str) -> Result<(String, String), Reason> {
    let begin = |name| info_field(info, name).and_then(|id| id.get(..IDENTITY_BYTES)).map(String::from);
    let now = begin("master_replid").ok_or("the server does not give its replication id")?;
    Ok((now, begin("master_replid2").unwrap_or_default()))
}

/// A field of INFO.
fn info_field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn text_of(replies: &[Value]) -> &str {
    replies.first().and_then(text).unwrap_or_default()
}

/// Says once per process what of the server's configuration will hurt.
async fn warn_of_settings(link: &mut Link, address: &Address) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if SAID.swap(true, Ordering::Relaxed) {
        return;
    }
    let mut ask = cmd("CONFIG");
    ask.arg("GET").arg("maxmemory-policy").arg("client-output-buffer-limit").arg("stream-node-max-bytes");
    // A server that keeps its configuration to itself (CONFIG renamed or not allowed) runs all the same.
    let Ok(replies) = within(Duration::from_millis(SETTINGS_TIMEOUT_MS), link.ask(&[ask])).await else { return };
    for (name, value) in replies.first().and_then(Value::as_map_iter).into_iter().flatten() {
        if let (Some(name), Some(value)) = (text(name), text(value))
            && let Some(remedy) = remedy(name, value)
        {
            let fields: [(&str, &dyn std::fmt::Display); 4] =
                [("server", address), ("setting", &name), ("value", &value), ("remedy", &remedy)];
            log::warn("backplane", "a setting of the engine will hurt", &fields);
        }
    }
}

/// What should be set instead, if this will hurt.
fn remedy(name: &str, value: &str) -> Option<&'static str> {
    match name {
        "maxmemory-policy" if value != "noeviction" => {
            Some("noeviction: otherwise interest and history disappear without a word")
        }
        "client-output-buffer-limit" => {
            let mut words = value.split_whitespace().skip_while(|word| *word != "pubsub").skip(1);
            let hard: u64 = words.next()?.parse().ok()?;
            let soft: u64 = words.next()?.parse().ok()?;
            let small = |limit| limit != 0 && limit < PUBSUB_BUFFER_BYTES_MIN;
            (small(hard) || small(soft)).then_some(
                "pubsub 512mb 256mb 60: a burst larger than this cuts a node's feed, which it then reads again",
            )
        }
        "stream-node-max-bytes"
            if value.parse().is_ok_and(|bytes: u64| bytes == 0 || bytes > STREAM_NODE_BYTES_MAX) =>
        {
            Some("512: the default costs up to 4 KiB per channel with history")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_settings_are_read() {
        let info = "# Server\r\nredis_version:7.0.15\r\nrun_id:abc\r\nrole:master\r\n";
        assert_eq!(info_field(info, "redis_version"), Some("7.0.15"));
        assert_eq!(info_field(info, "redis"), None);
        assert!(remedy("maxmemory-policy", "allkeys-lru").is_some());
        assert!(remedy("maxmemory-policy", "noeviction").is_none());
        let limits = |pubsub| format!("normal 0 0 0 slave 268435456 67108864 60 pubsub {pubsub}");
        assert!(remedy("client-output-buffer-limit", &limits("33554432 8388608 60")).is_some());
        assert!(remedy("client-output-buffer-limit", &limits("536870912 268435456 60")).is_none());
        assert!(remedy("client-output-buffer-limit", &limits("0 0 0")).is_none());
        assert!(remedy("stream-node-max-bytes", "4096").is_some());
        assert!(remedy("stream-node-max-bytes", "512").is_none());
    }
}
