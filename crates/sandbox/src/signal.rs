//! Signals to one process of a container by its host pid, or to what a terminal's keys reach.

use std::os::fd::{AsFd, OwnedFd};

use crate::error::Error;
use crate::live::Sandbox;
use crate::process::{open_pidfd, signal};
use crate::procfs::{MAX_FILE, ProcDir, Stat};

impl Sandbox {
    /// Signals one process of a container by its host pid (0: the container's first one), or the
    /// foreground process group of its terminal.
    /// # Errors
    /// `NotFound` for a pid that is none of the container's, and once it has ended;
    /// `FailedPrecondition` for a foreground group without a terminal; `InvalidArgument` for a
    /// number that is no signal.
    pub fn signal_process(
        &self,
        id: &str,
        pid: i32,
        number: u32,
        foreground: bool,
    ) -> Result<(), Error> {
        let pid = match pid {
            0 => self.0.task(id)?.process.pid(),
            pid => pid,
        };
        let process = self.process_of(id, pid)?;
        match foreground {
            false => signal(process.as_fd(), number),
            true => self.signal_foreground(id, pid, number),
        }
    }

    /// A pidfd of a process of the container.
    fn process_of(&self, id: &str, pid: i32) -> Result<OwnedFd, Error> {
        let strange = || Error::NoProcess {
            id: id.to_owned(),
            pid,
        };
        if self.0.task(id)?.process.has_ended() {
            return Err(Error::Finished);
        }
        // Held before it is looked up: the number cannot change hands any more.
        let Ok(pidfd) = open_pidfd(pid) else {
            return Err(strange());
        };
        let pids = match self.pids(id) {
            Err(Error::NotRunning { .. }) => return Err(Error::Finished),
            pids => pids?,
        };
        let is_ours = pids.iter().any(|p| p.pid == pid);
        is_ours.then_some(pidfd).ok_or_else(strange)
    }

    /// Signals the processes of the container that are in the foreground group of `pid`'s
    /// terminal. One by one: a group is only a number, and could be another's by now.
    fn signal_foreground(&self, id: &str, pid: i32, number: u32) -> Result<(), Error> {
        let no_tty = || Error::NoTty {
            id: id.to_owned(),
            pid,
        };
        // Fields of proc_pid_stat(5): 5 the process group, 7 the terminal, 8 its foreground group.
        let of = |pid: i32, number: usize| self.stat_of(pid, number);
        let has_tty = of(pid, 7).is_some_and(|tty| tty != 0);
        let group = of(pid, 8).filter(|group| has_tty && *group > 0);
        let group = group.ok_or_else(no_tty)?;
        let mut sent = Err(Error::Finished);
        for member in self.pids(id)? {
            let Ok(pidfd) = open_pidfd(member.pid) else {
                continue;
            };
            if of(member.pid, 5) != Some(group) {
                continue;
            }
            match signal(pidfd.as_fd(), number) {
                // It ended just now; another may be left.
                Err(Error::Finished) => {}
                Err(e) => return Err(e),
                Ok(()) => sent = Ok(()),
            }
        }
        sent
    }

    fn stat_of(&self, pid: i32, number: usize) -> Option<i32> {
        let dir = ProcDir::open(&self.0.host.proc, &pid.to_string())?;
        Stat::parse(&dir.text("stat", MAX_FILE)?)?.field(number)
    }
}
