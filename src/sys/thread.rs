//! Threads and the process: pinning, private file tables, open-file limit, clocks, memory in use.
//!
//! In: a core number, a name, nothing. Out: the kernel's answer. Invariant: every call here acts on the calling thread or
//! on the whole process, never on another thread; none keeps state except the note that a file table has been split.

use std::thread::JoinHandle;

use crate::op::Errno;

/// Longest thread name the kernel keeps, in bytes, without the closing zero.
const THREAD_NAME_BYTES_MAX: usize = 15;

/// Pins the calling thread to `core`. Errors: EINVAL if the core does not exist or is not allowed to this process.
pub fn pin_to_core(core: usize) -> Result<(), Errno> {
    if core >= libc::CPU_SETSIZE as usize {
        return Err(Errno(libc::EINVAL));
    }
    // SAFETY: needed because the set is a C struct filled by C macros. Sound: all-zero is the empty set, `core` is below
    // CPU_SETSIZE, and the kernel reads exactly the size given.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, std::mem::size_of::<libc::cpu_set_t>(), &set)
    };
    if result == 0 { Ok(()) } else { Err(Errno::last()) }
}

/// The cores on which the calling thread may run, ascending. Empty if the kernel has more than 1,024.
pub fn allowed_cores() -> Vec<usize> {
    // SAFETY: needed because the set is a C struct. Sound: all-zero is a valid set; the kernel writes at most the size given.
    let (result, set) = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let result = libc::sched_getaffinity(0, std::mem::size_of::<libc::cpu_set_t>(), &mut set);
        (result, set)
    };
    if result != 0 {
        return Vec::new();
    }
    // SAFETY: needed for the C macro. Sound: the index is below CPU_SETSIZE.
    (0..libc::CPU_SETSIZE as usize).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect()
}

/// Gives the calling thread a file table of its own, a copy of the present one. The open-file limit then counts for this
/// thread alone. What this thread opens later exists for it (and threads it starts) only; what was open stays open until
/// every copy is closed. Descriptors must not be moved to or from the thread afterwards: [`Socket`](crate::Socket),
/// [`Listener`](crate::Listener) and [`Ring`](crate::Ring) therefore are not `Send`, and [`Inbox`](crate::Inbox) refuses to
/// be made in such a thread.
pub fn unshare_file_table() -> Result<(), Errno> {
    // SAFETY: needed because std has no unshare. Sound: takes a flag and no memory; changes only which table this thread
    // uses, with every number still naming the same file at this moment.
    if unsafe { libc::unshare(libc::CLONE_FILES) } != 0 {
        return Err(Errno::last());
    }
    crate::lane::note_private_file_table();
    Ok(())
}

/// Switches transparent huge pages off for the whole process, where the kernel allows it. Call it before the first thread is
/// started. The allocator asks for them for its whole arena, and each of its threads then has 2 MiB and more in RAM for a
/// few KiB in use; with many shards that is most of the process.
pub fn small_pages_only() {
    // SAFETY: needed because std has no prctl. Sound: takes integers only; changes how later page faults are served, not
    // what memory holds. A refusal leaves huge pages on, which costs memory and nothing else.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

/// Raises the soft open-file limit to the hard one (and both to `fs.nr_open` where privilege allows); returns what holds.
pub fn raise_open_file_limit() -> u64 {
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse::<u64>().ok());
    let Ok(now) = open_file_limit() else { return 0 };
    if let Some(most) = most.filter(|&most| most > now.rlim_max)
        && set_open_file_limit(&libc::rlimit { rlim_cur: most, rlim_max: most }).is_ok()
    {
        return most;
    }
    if now.rlim_cur < now.rlim_max {
        // A refusal leaves the old limit, which the last line then reports.
        let _ = set_open_file_limit(&libc::rlimit { rlim_cur: now.rlim_max, rlim_max: now.rlim_max });
    }
    open_file_limit().map_or(0, |limit| limit.rlim_cur)
}

fn open_file_limit() -> Result<libc::rlimit, Errno> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: needed because std has no rlimit. Sound: the kernel writes one `rlimit` to a live local.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0 { Ok(limit) } else { Err(Errno::last()) }
}

pub(crate) fn set_open_file_limit(limit: &libc::rlimit) -> Result<(), Errno> {
    // SAFETY: needed because std has no rlimit. Sound: the kernel reads one `rlimit` behind a live reference.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, limit) } == 0 { Ok(()) } else { Err(Errno::last()) }
}

/// Starts a thread called `name` (cut to 15 bytes, the kernel's bound). The one place where threads are started.
/// Errors: EAGAIN if no more threads are allowed; EINVAL if the name contains a zero byte.
#[allow(clippy::disallowed_methods, reason = "the one place where threads are started")]
pub fn spawn_named<F, R>(name: &str, f: F) -> Result<JoinHandle<R>, Errno>
where
    F: FnOnce() -> R + Send + 'static,
    R: Send + 'static,
{
    if name.contains('\0') {
        return Err(Errno(libc::EINVAL));
    }
    let short = &name[..name.floor_char_boundary(THREAD_NAME_BYTES_MAX)];
    std::thread::Builder::new().name(short.to_owned()).spawn(f).map_err(Errno::from)
}

/// Nanoseconds of a clock that never goes back (CLOCK_MONOTONIC).
#[inline]
pub fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// CPU time of the calling thread, user and system, in nanoseconds.
pub fn thread_cpu_time_ns() -> u64 {
    clock_ns(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// CPU time of the process, user and system, in nanoseconds.
pub fn process_cpu_time_ns() -> u64 {
    clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID)
}

#[inline]
fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: needed because std shows neither CPU clocks nor the monotonic clock's number. Sound: the kernel writes one
    // `timespec` to a live local. The three clocks named in this file always exist, so the call cannot fail.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Memory of the process that is in RAM, in bytes; 0 if `/proc` is not mounted.
pub fn resident_bytes() -> u64 {
    // SAFETY: needed because std does not tell the page size. Sound: takes and returns integers.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64;
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * page_bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_may_run_on_its_core_only() {
        let all = allowed_cores();
        assert!(!all.is_empty());
        let last = all[all.len() - 1];
        let seen = spawn_named("pin-test", move || {
            pin_to_core(last).expect("an allowed core");
            allowed_cores()
        });
        assert_eq!(seen.expect("thread").join().expect("no panic"), vec![last]);
        assert_eq!(allowed_cores(), all, "other threads keep theirs");
        assert!(pin_to_core(1_000_000).is_err());
    }

    #[test]
    fn clocks_advance_and_cpu_time_counts_work() {
        let (wall, cpu, process) = (monotonic_ns(), thread_cpu_time_ns(), process_cpu_time_ns());
        while thread_cpu_time_ns() - cpu < 2_000_000 {
            std::hint::black_box(0);
        }
        assert!(monotonic_ns() > wall);
        assert!(process_cpu_time_ns() - process >= 1_500_000, "the process's time contains the thread's");
    }

    #[test]
    fn names_are_cut_to_what_the_kernel_keeps() {
        let name = spawn_named("a-name-that-is-far-too-long", || std::fs::read_to_string("/proc/thread-self/comm"));
        let name = name.expect("thread").join().expect("no panic").expect("proc");
        assert_eq!(name.trim(), "a-name-that-is-");
        assert!(spawn_named("bad\0name", || ()).is_err());
    }

    #[test]
    fn limits_and_memory_are_readable() {
        assert!(raise_open_file_limit() >= 256);
        assert!(resident_bytes() > 100 * 1024);
    }
}
