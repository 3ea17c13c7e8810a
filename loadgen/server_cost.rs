//! CPU and memory of processes, from /proc.
//!
//! In: process ids. Out: [`Cost`] now; two of them bound a window.
//!
//! CPU is read twice: as run time of all living threads (`schedstat`, exact to the scheduler) and as user and system
//! time of the whole process (`stat`, in clock ticks, threads that have ended included). On loopback the receiving
//! socket's TCP work runs inside the sender's send and is charged to the server, for every server alike.
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Clock ticks per second in /proc/PID/stat: fixed at 100 on every Linux that Rust runs on.
const TICKS_PER_S: u64 = 100;

/// What a set of processes has used until now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Run time of all threads, ns.
    pub run_ns: u64,
    /// User time, ns.
    pub user_ns: u64,
    /// System time, ns.
    pub system_ns: u64,
    /// Resident memory, bytes.
    pub resident_bytes: u64,
    /// Resident memory with shared pages divided among their users, bytes; 0 where it may not be read.
    pub proportional_bytes: u64,
}

impl Cost {
    /// Sums over the processes.
    ///
    /// # Errors
    /// The process that cannot be read.
    pub fn read(pids: &[u32]) -> Result<Cost, String> {
        let mut sum = Cost::default();
        for &pid in pids {
            let one = read_one(pid).ok_or_else(|| format!("--server-pid {pid}: no such process"))?;
            sum.run_ns += one.run_ns;
            sum.user_ns += one.user_ns;
            sum.system_ns += one.system_ns;
            sum.resident_bytes += one.resident_bytes;
            sum.proportional_bytes += one.proportional_bytes;
        }
        Ok(sum)
    }

    /// CPU used since `before`, in ns: run time where the kernel tells it, else user and system time.
    pub fn cpu_ns_since(&self, before: &Cost) -> u64 {
        let run_ns = self.run_ns.saturating_sub(before.run_ns);
        if run_ns > 0 {
            return run_ns;
        }
        (self.user_ns + self.system_ns).saturating_sub(before.user_ns + before.system_ns)
    }
}

fn read_one(pid: u32) -> Option<Cost> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, also spaces and brackets: fields are counted from behind its last bracket.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11).map(|field| field.parse::<u64>());
    let user_ns = fields.next()?.ok()? * (1_000_000_000 / TICKS_PER_S);
    let system_ns = fields.next()?.ok()? * (1_000_000_000 / TICKS_PER_S);
    Some(Cost {
        run_ns: tasks_run_ns(&format!("/proc/{pid}/task")),
        user_ns,
        system_ns,
        resident_bytes: kilobytes(&format!("/proc/{pid}/status"), "VmRSS:"),
        proportional_bytes: kilobytes(&format!("/proc/{pid}/smaps_rollup"), "Pss:"),
    })
}

fn tasks_run_ns(tasks: &str) -> u64 {
    let Ok(entries) = fs::read_dir(tasks) else { return 0 };
    entries.flatten().filter_map(|entry| task_run_ns(&entry.path())).sum()
}

fn task_run_ns(task: &Path) -> Option<u64> {
    fs::read_to_string(task.join("schedstat")).ok()?.split(' ').next()?.parse().ok()
}

/// Run time so far, in ns, by `PID/NAME`, of all living threads of the processes; those of one name are added up.
pub fn threads_run_ns(pids: &[u32]) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for pid in pids {
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in entries.flatten().map(|entry| entry.path()) {
            let (Ok(name), Some(run_ns)) = (fs::read_to_string(task.join("comm")), task_run_ns(&task)) else {
                continue;
            };
            *found.entry(format!("{pid}/{}", name.trim_end())).or_default() += run_ns;
        }
    }
    found
}

fn kilobytes(path: &str, key: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// CPU of this process so far, in ns.
pub fn own_cpu_ns() -> u64 {
    tasks_run_ns("/proc/self/task")
}

/// What the kernel of this machine holds in small objects, sockets among them, in bytes (`Slab` of `proc_meminfo(5)`).
pub fn kernel_slab_bytes() -> u64 {
    kilobytes("/proc/meminfo", "Slab:")
}

/// Resident memory of this process, in bytes: shared pages divided among their users where the kernel tells.
pub fn own_resident_bytes() -> u64 {
    match kilobytes("/proc/self/smaps_rollup", "Pss:") {
        0 => kilobytes("/proc/self/status", "VmRSS:"),
        bytes => bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_grows() {
        let pid = std::process::id();
        let before = Cost::read(&[pid]).expect("this process");
        let mut sum = 0u64;
        while own_cpu_ns() == 0 || Cost::read(&[pid]).expect("this process").cpu_ns_since(&before) == 0 {
            sum = sum.wrapping_add((0..100_000u64).fold(sum, |sum, value| sum ^ value.wrapping_mul(31)));
        }
        assert!(before.resident_bytes > 0 && own_resident_bytes() > 0, "{sum}");
        assert!(Cost::read(&[u32::MAX]).is_err());
        let threads = threads_run_ns(&[pid]);
        assert!(threads.keys().all(|name| name.starts_with(&format!("{pid}/"))), "{threads:?}");
        assert!(threads.values().sum::<u64>() > 0, "{threads:?}");
    }
}
