//! How calls of the server API end, counted by method.
//!
//! In: one count per command, also of those in a batch; a publish of a broadcast counts as `broadcast_publish` when it is
//! refused. Out: one family of `/metrics`. Invariant: every series is there from the start, so that a rate over it works.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use super::methods::METHODS;
use crate::control::metrics::push_header;

/// How a call ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum ApiResult {
    #[default]
    Ok,
    Duplicate,
    Unauthorized,
    BadRequest,
    Refused,
    Busy,
    NoAnswer,
}

/// Label and meaning of each way a call can end, in the order of `ApiResult`.
pub const API_RESULTS: &[(&str, &str)] = &[
    ("ok", "done"),
    ("duplicate", "a publish that was answered from an idempotency key"),
    ("unauthorized", "no key, a wrong one, or none configured (401)"),
    ("bad_request", "the body is not what the method takes (104, 107), or too large (413)"),
    ("refused", "not allowed or not available (102, 103, 106, 107, 108, 112, 113)"),
    ("busy", "a limit of this node (111); the backend should try again"),
    ("no_answer", "the shards did not answer in time (504); it may have happened"),
];

/// Name of the counter.
pub const API_NAME: &str = "ringway_api_calls_total";
/// Its help text.
pub const API_HELP: &str = "Calls of the server API over HTTP, by method and result.";

/// Labels of `method` beside the methods themselves.
const MORE: [&str; 4] = ["batch", "broadcast_publish", "drain", "unknown"];

/// Counts calls by method and result.
#[derive(Debug)]
pub(in crate::control) struct ApiResults(Vec<[AtomicU64; API_RESULTS.len()]>);

impl Default for ApiResults {
    fn default() -> Self {
        ApiResults(labels().map(|_| [const { AtomicU64::new(0) }; API_RESULTS.len()]).collect())
    }
}

impl ApiResults {
    /// A method that has no label counts as the last one, `unknown`.
    pub(super) fn count(&self, method: &str, result: ApiResult) {
        let index = labels().position(|label| label == method).unwrap_or(self.0.len() - 1);
        self.0[index][result as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(in crate::control) fn render(&self, out: &mut String) {
        push_header(out, API_NAME, "counter", API_HELP);
        for (method, counts) in labels().zip(&self.0) {
            for ((label, _), count) in API_RESULTS.iter().zip(counts) {
                let count = count.load(Ordering::Relaxed);
                let _ = writeln!(out, "{API_NAME}{{method=\"{method}\",result=\"{label}\"}} {count}");
            }
        }
    }
}

fn labels() -> impl Iterator<Item = &'static str> {
    METHODS.iter().map(|method| method.name).chain(MORE)
}
