//! The process table, as far as tests look at it.

use rustix::process::{Pid, Signal, kill_process};

/// A process, told from a later one of the same pid by its start time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its pid on the host.
    pub pid: u32,
    /// Its parent.
    pub parent: u32,
    /// The leader of its session; 0 when that lives outside of this pid namespace.
    pub session: u32,
    /// Clock ticks since boot.
    pub start: u64,
    /// The kernel's state letter; `Z` is a zombie.
    pub state: char,
    /// Its name, at most 15 bytes.
    pub comm: String,
}

impl Process {
    /// Reads `/proc/<pid>/stat`; `None` when there is no such process.
    #[must_use]
    pub fn read(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (head, tail) = (stat.split_once('(')?, stat.rsplit_once(')')?);
        let comm = &head.1[..head.1.rfind(')')?];
        let fields: Vec<&str> = tail.1.split_whitespace().collect();
        Some(Self {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
            state: fields.first()?.chars().next()?,
            comm: comm.to_owned(),
        })
    }

    /// Its command line, words separated by blanks; empty for a kernel thread or a zombie.
    #[must_use]
    pub fn command_line(&self) -> String {
        let bytes = std::fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        String::from_utf8_lossy(&bytes)
            .replace('\0', " ")
            .trim_end()
            .to_owned()
    }

    /// Its share of memory in kB (PSS), 0 when it is gone.
    #[must_use]
    pub fn pss_kb(&self) -> u64 {
        let path = format!("/proc/{}/smaps_rollup", self.pid);
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok())
            .unwrap_or_default()
    }

    /// True for the leader of a session: a daemon, and not what is forked from it.
    #[must_use]
    pub const fn leads_session(&self) -> bool {
        self.session == self.pid
    }

    /// Sends SIGKILL; a process that is gone is what was wanted.
    pub fn kill(&self) {
        send(self.pid, Signal::KILL);
    }
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "process {} {} {} [{}]",
            self.pid,
            self.comm,
            self.state,
            self.command_line()
        )
    }
}

/// Sends `signal` to `pid`; false when there is no such process.
pub fn send(pid: u32, signal: Signal) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
}

/// Every process of the machine.
#[must_use]
pub fn all() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Process::read(entry.file_name().to_str()?.parse().ok()?))
        .collect()
}

/// The processes below `root`, without itself.
#[must_use]
pub fn descendants(root: u32) -> Vec<Process> {
    let all = all();
    let mut found = Vec::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for process in all.iter().filter(|process| process.parent == parent) {
            parents.push(process.pid);
            found.push(process.clone());
        }
    }
    found
}
