//! Pids that can be trusted: with a pidfd, or with a start time.

use std::cell::Cell;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::SystemTime;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use serde::{Deserialize, Serialize};
use tokio::io::Ready;
use tokio::io::unix::AsyncFd;

use crate::error::{Error, call, io};
use crate::polled::{Polled, poll};
use crate::procfs::Stat;

/// A process of the past or the present, told apart from a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Host pid.
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks since boot.
    pub start_time: u64,
}

impl Identity {
    /// The identity of a process that exists now.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let stat = Stat::parse(&stat)?;
        if matches!(stat.field(3)?, 'Z' | 'X') {
            return None;
        }
        let start_time = stat.field(22)?;
        Some(Self { pid, start_time })
    }

    /// True while this very process runs: a zombie does not.
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// True while this very process can do anything: not when it has begun to end.
    ///
    /// A killed shim may stay for some 10 ms, its socket open, while the kernel takes down the
    /// namespaces that it held. Field 9 of `/proc/<pid>/stat` has PF_EXITING then.
    pub fn is_at_work(self) -> bool {
        const PF_EXITING: u64 = 4;
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let flags: Option<u64> = Stat::parse(&stat).and_then(|stat| stat.field(9));
        flags.is_some_and(|flags| flags & PF_EXITING == 0) && self.is_alive()
    }

    /// A pidfd of this very process; `None` when it is gone.
    pub fn open(self) -> Option<OwnedFd> {
        let fd = open_pidfd(self.pid).ok()?;
        // Looked at after the pidfd is open: the number cannot change hands any more.
        self.is_alive().then_some(fd)
    }
}

/// The kernel's name for the time since it was booted.
pub(crate) fn boot_id() -> Result<String, Error> {
    let text =
        fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(io("read(boot_id)"))?;
    Ok(text.trim().to_owned())
}

/// Whether what was written in boot `boot` still means something: pids and start times of another
/// boot may be anybody's now. Unknown (empty): it does.
pub(crate) fn is_of_this_boot(boot: &str) -> bool {
    boot.is_empty() || boot_id().is_ok_and(|now| now == boot)
}

/// A pidfd of a process that cannot have been reaped: an own child.
pub(crate) fn open_pidfd(pid: i32) -> Result<OwnedFd, Error> {
    let pid = Pid::from_raw(pid).ok_or(Error::Call {
        call: "pidfd_open(0)",
        source: Errno::SRCH,
    })?;
    pidfd_open(pid, PidfdFlags::empty()).map_err(call("pidfd_open()"))
}

/// The host pid behind a pidfd (`/proc/self/fdinfo/<fd>`, field `Pid`).
pub(crate) fn pid_of(pidfd: BorrowedFd<'_>) -> Result<i32, Error> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))
        .map_err(io("read(/proc/self/fdinfo)"))?;
    let pid = info
        .lines()
        .find_map(|l| l.strip_prefix("Pid:")?.trim().parse().ok());
    pid.filter(|pid| *pid > 0).ok_or(Error::Call {
        call: "fdinfo(pidfd)",
        source: Errno::SRCH,
    })
}

/// How an own child ended, in containerd's numbers: the exit code, or 128 + signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) status: u32,
    pub(crate) at: SystemTime,
}

/// An own child, until it is reaped.
#[derive(Debug)]
pub(crate) struct Child {
    pidfd: AsyncFd<Polled<OwnedFd>>,
    /// What wait(2) would have said, once it is reaped.
    word: Cell<Option<u32>>,
}

impl Child {
    pub(crate) fn new(pidfd: OwnedFd) -> Result<Self, Error> {
        let pidfd = poll(pidfd)?;
        let word = Cell::new(None);
        Ok(Self { pidfd, word })
    }

    /// True once it is dead, reaped or not: its pidfd is readable then (pidfd_open(2)).
    pub(crate) fn is_dead(&self) -> bool {
        let mut polled = [PollFd::new(self, PollFlags::IN)];
        rustix::event::poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Waits until it is dead, and leaves it unreaped.
    pub(crate) async fn dead(&self) -> Result<(), Error> {
        let ready = self.pidfd.readable().await;
        ready.map(drop).map_err(io("epoll_wait(pidfd)"))
    }

    /// Waits until the kernel says that it ended, and reaps it.
    pub(crate) async fn wait(&self) -> Result<Ended, Error> {
        loop {
            let mut ready = self
                .pidfd
                .readable()
                .await
                .map_err(io("epoll_wait(pidfd)"))?;
            if let Some((ended, word)) = reap(self.pidfd.get_ref().0.as_fd())? {
                self.word.set(Some(word));
                return Ok(ended);
            }
            ready.clear_ready_matching(Ready::READABLE);
        }
    }

    /// What wait(2) would have said: `None` until it is reaped.
    pub(crate) fn wait_word(&self) -> Option<u32> {
        self.word.get()
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.get_ref().0.as_fd()
    }
}

fn reap(pidfd: BorrowedFd<'_>) -> Result<Option<(Ended, u32)>, Error> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let Some(status) = waitid(WaitId::PidFd(pidfd), options).map_err(call("waitid(P_PIDFD)"))?
    else {
        return Ok(None);
    };
    let number = |n: i32| u32::try_from(n).ok();
    let code = status.exit_status().and_then(number);
    let signal = status.terminating_signal().and_then(number);
    // wait(2): the code in the second byte, or the signal and a bit for a core dump.
    let word = match (code, signal) {
        (Some(code), _) => code << 8,
        (None, Some(signal)) => signal | (u32::from(status.dumped()) << 7),
        (None, None) => 255 << 8,
    };
    let status = code.or(signal.map(|s| 128 + s)).unwrap_or(255);
    let at = SystemTime::now();
    Ok(Some((Ended { status, at }, word)))
}

/// Sends a signal; a process that is gone is [`Error::Finished`].
pub(crate) fn signal(pidfd: BorrowedFd<'_>, signal: u32) -> Result<(), Error> {
    let bad = || Error::BadSignal { signal };
    let number = i32::try_from(signal)
        .ok()
        .filter(|n| (0..=64).contains(n))
        .ok_or_else(bad)?;
    match berm_sys::process::pidfd_send_signal(pidfd, number) {
        Ok(()) => Ok(()),
        Err(e) if Errno::from_io_error(&e) == Some(Errno::SRCH) => Err(Error::Finished),
        Err(e) if Errno::from_io_error(&e) == Some(Errno::INVAL) => Err(bad()),
        Err(source) => Err(Error::Io {
            call: "pidfd_send_signal()",
            source,
        }),
    }
}

pub(crate) const SIGKILL: u32 = 9;
