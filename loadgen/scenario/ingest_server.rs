//! What an ingest run knows of a Ringway behind its ingest port: where channels are owned, on which shard a connection is,
//! what shards say to each other, and what history holds.
//!
//! In: the control port. Out: channel names, counts, verdicts about histories. Invariant: everything here happens outside
//! the measured window.
use std::time::Duration;

use ringway_wire::ingest::PayloadKind;
use xxhash_rust::xxh3::xxh3_64;

use crate::control::{Control, Metrics};
use crate::ingest_sender::{IngestSender, SenderOptions};
use crate::net;
use crate::options::{IngestOptions, Owners};
use crate::payload::StampFinder;
use crate::report::Report;

/// Buckets of channels: part of Ringway's contract.
const BUCKETS: u64 = 4096;
/// Where all connections are to be when owners are chosen.
const SHARD: u16 = 0;
/// Longer than shards take to publish their metrics, in microseconds.
const METRICS_WAIT_US: u64 = 250_000;
/// Connections opened in vain before giving up.
const CONNECTS_MAX: u32 = 64;

/// Names of the channels.
pub(super) fn channel_names(options: &IngestOptions) -> Vec<String> {
    let owner = |name: &str| (xxh3_64(name.as_bytes()) % BUCKETS % u64::from(options.shards)) as u16;
    let wanted = |name: &String| match options.owners {
        Owners::Any => true,
        Owners::Here => owner(name) == SHARD,
        Owners::Elsewhere => owner(name) != SHARD,
    };
    let names = (0u32..).map(|number| format!("{}{number}", options.channel_prefix)).filter(wanted);
    names.take(options.channels as usize).collect()
}

/// The control port, if one was given.
pub(super) fn control(options: &IngestOptions) -> Option<Control> {
    options.control.map(|address| Control { address, api_key: options.api_key.clone() })
}

/// Opens connection `number`; when owners are chosen, again and again until it is on [`SHARD`].
pub(super) fn connect(options: &IngestOptions, number: u32, names: &[String]) -> Result<IngestSender, String> {
    let sender = || {
        IngestSender::connect(&SenderOptions {
            address: options.publishing.ingest,
            token: options.publishing.ingest_token.clone(),
            number,
            channel_names: names.to_vec(),
            kind: PayloadKind::Json,
            idempotency_keys: options.idempotency_keys,
        })
    };
    if options.owners == Owners::Any || options.shards == 1 {
        return sender();
    }
    let control = control(options).ok_or("--owners needs --control")?;
    let there = || -> Result<u64, String> {
        net::nap(METRICS_WAIT_US);
        Ok(control.metrics()?.of("ringway_ingest_connections_open", "", SHARD))
    };
    let before = there()?;
    for _ in 0..CONNECTS_MAX {
        let sender = sender()?;
        if there()? > before {
            return Ok(sender);
        }
    }
    Err(format!("{CONNECTS_MAX} connections, and none came to shard {SHARD}"))
}

/// Metrics, once every shard has published those of now.
pub(super) fn settled_metrics(options: &IngestOptions) -> Result<Option<Metrics>, String> {
    let Some(control) = control(options) else { return Ok(None) };
    std::thread::sleep(Duration::from_micros(METRICS_WAIT_US));
    control.metrics().map(Some)
}

/// What shards said to each other for each publication.
pub(super) fn report_lanes(options: &IngestOptions, report: &mut Report, before: &Metrics, after: &Metrics) {
    let sum = |metrics: &Metrics, name: &str, labels: &str| -> u64 {
        (0..options.shards).map(|shard| metrics.of(name, labels, shard)).sum()
    };
    let grown = |name: &str, labels: &str| sum(after, name, labels).saturating_sub(sum(before, name, labels)) as f64;
    let messages = |kind: &str| grown("ringway_lane_messages_total", &format!("kind=\"{kind}\""));
    let publications = grown("ringway_publications_total", "").max(1.0);
    report.number("lane_publishes_per_publication", grown("ringway_lane_publishes_total", "") / publications);
    report.number("lane_publish_messages_per_publication", messages("publish") / publications);
    report.number("lane_deliver_messages_per_publication", messages("deliver") / publications);
    report.number("lane_acks_per_publication", grown("ringway_lane_acks_total", "") / publications);
    report.number("lane_ack_messages_per_publication", messages("ack") / publications);
    report.number("loop_turns_per_publication", grown("ringway_loop_turns_total", "") / publications);
    report.row("history_publications", sum(after, "ringway_history_publications", ""));
    report.row("history_bytes", sum(after, "ringway_history_bytes", ""));
}

/// Looks at the history of `--history-checks` channels, spread over all. `top`: last acknowledged offset of a channel.
pub(super) fn check_histories(
    options: &IngestOptions,
    report: &mut Report,
    names: &[String],
    run: u16,
    top: impl Fn(u32) -> u64,
) -> Result<(), String> {
    if options.history_checks == 0 {
        return Ok(());
    }
    let control = control(options).ok_or("--history-checks needs --control")?;
    let count = options.history_checks.min(options.channels);
    for check in 0..count {
        let channel = (u64::from(check) * u64::from(options.channels) / u64::from(count)) as u32;
        let name = &names[channel as usize];
        let kept = control.history(name)?;
        let kept: Vec<_> = kept.iter().map(|(offset, data)| (*offset, data.as_str().unwrap_or_default())).collect();
        if let Err(what) = check_history(&kept, run, channel, top(channel), options.history_size) {
            report.problem(format!("history of {name}: {what}"));
        }
    }
    report.row("histories_checked", count);
    Ok(())
}

/// Whether these are the last `size` publications of a channel whose publications 1 to `top` were all this run's.
fn check_history(kept: &[(u64, &str)], run: u16, channel: u32, top: u64, size: u32) -> Result<(), String> {
    let wanted = top.min(u64::from(size));
    if kept.len() as u64 != wanted {
        return Err(format!("{} publications instead of {wanted}", kept.len()));
    }
    let mut finder = StampFinder::default();
    for ((offset, data), due) in kept.iter().zip(top - wanted + 1..) {
        let stamp = finder.find(data.as_bytes()).map(|(stamp, _)| stamp);
        let found = stamp.map(|stamp| (stamp.run, stamp.channel, stamp.sequence + 1));
        if *offset != due || found != Some((run, channel, due)) {
            return Err(format!("offset {offset} with {found:?} where {due} of channel {channel} is due"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::{PayloadForm, PayloadTemplate, Stamp};

    #[test]
    fn a_history_must_be_the_last_publications_and_no_others() {
        let mut template = PayloadTemplate::new(PayloadForm::Text, 64).expect("long enough");
        let mut text = |channel, sequence| {
            let stamp = Stamp { run: 7, channel, sequence, intended_ns: 0 };
            String::from_utf8(template.stamped(&stamp).to_vec()).expect("ASCII")
        };
        let texts: Vec<_> = (4..14).map(|sequence| text(3, sequence)).collect();
        let right: Vec<_> = (5..).zip(&texts).map(|(offset, text)| (offset, text.as_str())).collect();
        let check = |kept: &[(u64, &str)], top| check_history(kept, 7, 3, top, 10);
        assert_eq!(check(&right, 14), Ok(()));
        assert_eq!(check(&[], 0), Ok(()));
        assert!(check(&right, 15).is_err(), "the last is missing");
        assert!(check(&right[1..], 14).is_err(), "one is missing");
        assert!(check_history(&right, 8, 3, 14, 10).is_err(), "another run's");
        let mut wrong = right.clone();
        wrong[4].1 = right[5].1;
        assert!(check(&wrong, 14).is_err(), "one stands twice");
        let other = text(4, 8);
        wrong[4].1 = &other;
        assert!(check(&wrong, 14).is_err(), "another channel's");
        wrong[4] = (right[4].0 + 1, right[4].1);
        assert!(check(&wrong, 14).is_err(), "a wrong offset");
    }
}
