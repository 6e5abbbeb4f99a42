//! Processes that are not children by birth: shims, what they started, and orphans.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid,
};
use rustix::time::Timespec;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Error;

/// A process, held by a pidfd so that its number cannot come to mean another.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Process {
    /// Holds the process that has this pid now.
    ///
    /// # Errors
    /// [`berm_sys::Kind::NotFound`] if there is none.
    pub fn open(pid: u32) -> Result<Self, Error> {
        let path = format!("/proc/{pid}");
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid
            .ok_or(rustix::io::Errno::SRCH)
            .map_err(Error::errno("pidfd_open", &path))?;
        let pidfd =
            pidfd_open(pid, PidfdFlags::empty()).map_err(Error::errno("pidfd_open", path))?;
        Ok(Self { pid, pidfd })
    }

    /// Its pid in this PID namespace.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Sends SIGKILL; a process that is already gone is no error.
    ///
    /// # Errors
    /// The errno of pidfd_send_signal(2).
    pub fn kill(&self) -> Result<(), Error> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(Error::errno(
                "pidfd_send_signal",
                format!("/proc/{}", self.pid()),
            )(errno)),
        }
    }

    /// Waits until it has ended, and reaps it if it is a child (an orphan that came back).
    ///
    /// # Errors
    /// [`Error::Deadline`] if it still runs then.
    pub async fn ended(&self, deadline: Duration) -> Result<(), Error> {
        let late = || Error::Deadline {
            what: format!("end of process {}", self.pid()),
            deadline,
        };
        // Its successor is an unsafe function; what it guards against, a descriptor closed while
        // registered, cannot happen to a borrow of our own.
        #[allow(deprecated, reason = "this crate has no unsafe code")]
        let pidfd = AsyncFd::with_interest(self.pidfd.as_fd(), Interest::READABLE)
            .map_err(Error::file("epoll_ctl", format!("/proc/{}", self.pid())))?;
        let ready = tokio::time::timeout(deadline, pidfd.readable())
            .await
            .map_err(|_| late())?;
        drop(ready.map_err(Error::file("epoll_wait", format!("/proc/{}", self.pid())))?);
        self.reap();
        Ok(())
    }

    /// Collects the exit status if it is a child that has ended; the status is of no interest.
    fn reap(&self) {
        let _ = waitpid(Some(self.pid), WaitOptions::NOHANG);
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Kills and reaps every process for which `mine` holds, until none is left or 30 s are over.
///
/// `mine` gets the process's directory in `/proc`. Used where there is no runtime any more.
pub(super) fn kill_all(mine: impl Fn(&Path) -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        let found: Vec<Process> = pids()
            .filter(|pid| mine(Path::new(&format!("/proc/{pid}"))))
            .filter_map(|pid| Process::open(pid).ok())
            .collect();
        if found.is_empty() {
            return;
        }
        for process in &found {
            let _ = process.kill();
        }
        for process in &found {
            let mut fds = [PollFd::new(process, PollFlags::IN)];
            let _ = poll(
                &mut fds,
                Some(&Timespec {
                    tv_sec: 1,
                    tv_nsec: 0,
                }),
            );
            process.reap();
        }
    }
}

/// The pids of this PID namespace but our own.
fn pids() -> impl Iterator<Item = u32> {
    let me = std::process::id();
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(move |pid| *pid != me)
}
