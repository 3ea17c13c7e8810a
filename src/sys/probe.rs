//! What the running kernel offers, and what to do where it does not.
//!
//! In: a fresh ring, the kernel's answers and `/proc`. Out: [`Report`] for `ringway check` and boot, or [`Unsupported`] with
//! the missing feature, the likely cause and the remedy. Invariant: a `Ring` exists only if every check here has passed; in
//! particular the one property on which the soundness of batched sends rests has been tried, not assumed.

use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use io_uring::{IoUring, Probe, opcode};

use crate::buffers::Scratch;
use crate::op::Errno;
use crate::ring::{Ring, RingOptions};
use crate::socket::Socket;

/// Ring set-up flags that the design needs, newest first: IORING_SETUP_NO_SQARRAY came with Linux 6.6.
const KERNEL_NEEDED: &str = "6.6";

/// The kernel lacks something that the gateway cannot do without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// What is missing.
    pub feature: String,
    /// Why, most likely.
    pub cause: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not available: {}. To fix it: {}", self.feature, self.cause, self.remedy)
    }
}

impl std::error::Error for Unsupported {}

/// What was found.
#[derive(Clone, Debug)]
pub struct Report {
    /// Release of the running kernel, such as `6.18.4`.
    pub kernel_release: String,
    /// Names of everything that was checked and is there.
    pub present: Vec<&'static str>,
    /// Entries of the submission queue that the kernel made.
    pub submission_entries: u32,
    /// Entries of the completion queue that the kernel made.
    pub completion_entries: u32,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "kernel {}: submission queue {}, completion queue {}; {}",
            self.kernel_release,
            self.submission_entries,
            self.completion_entries,
            self.present.join(", ")
        )
    }
}

/// Release of the running kernel, as `uname -r`.
pub fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Makes a ring with the default sizes and checks everything that the gateway uses.
pub(crate) fn probe() -> Result<Report, Unsupported> {
    let ring = Ring::new(&RingOptions::default())?;
    let (submission_entries, completion_entries) = ring.entries();
    let names = FEATURES.iter().map(|(name, _)| *name).chain(OPERATIONS.iter().map(|(name, _)| *name));
    let mut present = vec!["ring set-up flags"];
    present.extend(names);
    present.push("batched sends end when submitted");
    Ok(Report { kernel_release: kernel_release(), present, submission_entries, completion_entries })
}

type FeatureCheck = fn(&io_uring::Parameters) -> bool;

const FEATURES: [(&str, FeatureCheck); 4] = [
    ("no dropped completions (IORING_FEAT_NODROP)", |p| p.is_feature_nodrop()),
    ("waiting with a time-out (IORING_FEAT_EXT_ARG)", |p| p.is_feature_ext_arg()),
    ("silent success (IORING_FEAT_CQE_SKIP)", |p| p.is_feature_skip_cqe_on_success()),
    ("poll-driven retries (IORING_FEAT_FAST_POLL)", |p| p.is_feature_fast_poll()),
];

const OPERATIONS: [(&str, u8); 4] = [
    ("accept", opcode::AcceptMulti::CODE),
    ("poll", opcode::PollAdd::CODE),
    ("cancel", opcode::AsyncCancel::CODE),
    ("send", opcode::Send::CODE),
];

/// Checks features and operations of a new ring.
pub(crate) fn check(ring: &IoUring) -> Result<(), Unsupported> {
    for (name, is_present) in FEATURES {
        if !is_present(ring.params()) {
            return Err(too_old(format!("io_uring: {name}")));
        }
    }
    let mut probe = Probe::new();
    if let Err(error) = ring.submitter().register_probe(&mut probe) {
        return Err(Unsupported {
            feature: "io_uring: asking which operations exist".to_owned(),
            cause: format!("the kernel answers {}", Errno::from(error)),
            remedy: format!(
                "run Linux {KERNEL_NEEDED} or later, or allow io_uring_register in the container's profile"
            ),
        });
    }
    match OPERATIONS.iter().find(|(_, code)| !probe.is_supported(*code)) {
        Some((name, _)) => Err(too_old(format!("io_uring operation: {name}"))),
        None => Ok(()),
    }
}

/// Tries what `Ring::send_all` rests on: a send that finds no room ends inside the submitting call, with the bytes taken
/// or EAGAIN, and a send taken whole reports nothing.
pub(crate) fn check_sends_end_when_submitted(ring: &mut Ring) -> Result<(), Unsupported> {
    let unsupported = |cause: String| Unsupported {
        feature: "io_uring: sends that never outlive their submission (MSG_DONTWAIT, IOSQE_CQE_SKIP_SUCCESS)"
            .to_owned(),
        cause,
        remedy: format!(
            "run a kernel whose io_uring send honours MSG_DONTWAIT (mainline Linux {KERNEL_NEEDED} or later)"
        ),
    };
    let pair = UnixStream::pair().and_then(|(near, far)| near.set_nonblocking(true).map(|()| (near, far)));
    let (near, _far) = pair.map_err(|error| unsupported(format!("no socket pair to try it on: {error}")))?;
    let near = Socket::from(OwnedFd::from(near));
    // More than any default socket buffer holds. Never written, so it takes no memory.
    let large = Scratch::new(16 << 20).map_err(|errno| unsupported(format!("no memory to try it with: {errno}")))?;
    let large = large.as_slice();
    let mut exceptions = Vec::new();
    ring.send_all([(&near, &large[..1]), (&near, large), (&near, large)].into_iter(), &mut exceptions);
    match exceptions[..] {
        [(1, Ok(taken)), (2, Err(errno))] if taken < large.len() && errno.is_again() => Ok(()),
        _ => Err(unsupported(format!("a trial gave {exceptions:?}"))),
    }
}

/// Explains why `io_uring_setup` failed.
pub(crate) fn explain_setup(errno: Errno, options: &RingOptions) -> Unsupported {
    let feature = "io_uring".to_owned();
    let container = "in a container, use a seccomp profile that allows io_uring_setup, io_uring_enter and \
                     io_uring_register (for example --security-opt seccomp=FILE)";
    match errno.0 {
        libc::ENOSYS => Unsupported {
            feature,
            cause:
                "the system call io_uring_setup does not exist: kernel built without CONFIG_IO_URING, or hidden by a \
                    container's seccomp profile"
                    .to_owned(),
            remedy: format!("run Linux {KERNEL_NEEDED} or later with CONFIG_IO_URING=y; {container}"),
        },
        libc::EPERM | libc::EACCES => {
            let setting = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
            match setting.trim() {
                "" | "0" => Unsupported {
                    feature,
                    cause: format!("the kernel answers {errno}: a seccomp profile or security module forbids it"),
                    remedy: format!("{container}; otherwise allow io_uring in the security module's policy"),
                },
                value => Unsupported {
                    feature,
                    cause: format!("kernel.io_uring_disabled is {value}"),
                    remedy: "sysctl -w kernel.io_uring_disabled=0, or for the value 1 run with a group of \
                             kernel.io_uring_group"
                        .to_owned(),
                },
            }
        }
        libc::EINVAL => {
            let RingOptions { submission_entries, completion_entries } = options;
            let mut unsupported = too_old(format!(
                "io_uring with SINGLE_ISSUER, DEFER_TASKRUN and NO_SQARRAY ({submission_entries} submission and \
                 {completion_entries} completion entries)"
            ));
            unsupported.cause += ", or a queue size is out of range";
            unsupported.remedy += "; keep submission entries in 1..=32768 and completion entries in \
                                   submission entries..=65536";
            unsupported
        }
        libc::ENOMEM => Unsupported {
            feature,
            cause: "no memory for the queues: they count against the locked-memory limit".to_owned(),
            remedy: "raise the limit (ulimit -l unlimited, LimitMEMLOCK=infinity) or make the queues smaller"
                .to_owned(),
        },
        libc::EMFILE | libc::ENFILE => Unsupported {
            feature,
            cause: format!("no file descriptor is free for the ring ({errno})"),
            remedy: "raise the open-file limit (ulimit -n, LimitNOFILE=)".to_owned(),
        },
        _ => Unsupported {
            feature,
            cause: format!("the kernel answers {errno}"),
            remedy: format!("run Linux {KERNEL_NEEDED} or later"),
        },
    }
}

fn too_old(feature: String) -> Unsupported {
    Unsupported {
        feature,
        cause: format!("kernel {} is too old", kernel_release()),
        remedy: format!("run Linux {KERNEL_NEEDED} or later"),
    }
}
