//! Rare facts of the engine as lines of the log; the engine itself does not log.
//!
//! In: a shard's note. Out: one line.
use ringway_engine::ids::CoreId;
use ringway_engine::seam::Note;
use ringway_wire::ingest::EventKind;

use crate::log::{info, warn};

/// One line of the log.
pub(crate) fn log(core: CoreId, note: Note) {
    let shard = core.0;
    let from = |peer: Option<std::net::IpAddr>| peer.map_or_else(|| "unknown".to_owned(), |peer| peer.to_string());
    match note {
        Note::LaneLost { from, subscriptions } => warn(
            "lane",
            "publications were dropped because a shard could not keep up; its subscribers were told to recover",
            &[("shard", &shard), ("from", &from.0), ("subscriptions", &subscriptions)],
        ),
        Note::IngestRefused { peer } => {
            warn("ingest", "a backend was refused", &[("shard", &shard), ("peer", &from(peer))]);
        }
        Note::IngestConnected { peer } => {
            info("ingest", "a backend connected", &[("shard", &shard), ("peer", &from(peer))]);
        }
        Note::EventsTaken { peer, kinds } => {
            let kinds: Vec<_> = EventKind::ALL.into_iter().filter(|kind| kinds.contains(*kind)).collect();
            let kinds = kinds.iter().map(|kind| kind.label()).collect::<Vec<_>>().join(",");
            let fields: [(&str, &dyn std::fmt::Display); 3] =
                [("shard", &shard), ("peer", &from(peer)), ("kinds", &kinds)];
            info("events", "a backend takes events", &fields);
        }
        Note::EventsLost { count } => warn(
            "events",
            "events were dropped because backends did not take them in time; see ringway_events_dropped_total",
            &[("shard", &shard), ("count", &count)],
        ),
        Note::UserLimitUnchecked => warn(
            "users",
            "a connection came in without the engine's word about limits.connections_per_user_max; see ringway_user_limit_unchecked_total",
            &[("shard", &shard)],
        ),
    }
}
