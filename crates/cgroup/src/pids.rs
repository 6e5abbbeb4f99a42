//! The processes of a cgroup and of its sub-groups.

use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::dir::{Dir, key_values};
use crate::{Cgroup, Error, subtree};

/// How many processes [`Cgroup::pids`] reports.
pub const MAX_PIDS: usize = 131_072;
/// How many pidfds are open at a time while a cgroup is signalled.
const CHUNK: usize = 64;

impl Cgroup {
    /// The pids of every process in the cgroup and its sub-groups, as this PID namespace numbers
    /// them, sorted.
    ///
    /// # Errors
    /// [`Error::TooMany`] beyond [`MAX_PIDS`]; [`berm_sys::Kind::NotFound`] without the cgroup.
    pub fn pids(&self) -> Result<Vec<i32>, Error> {
        let top = self.processes()?;
        if !top.has("cgroup.procs") {
            return Err(Error::Gone {
                path: top.path().to_owned(),
            });
        }
        let mut pids = Vec::new();
        subtree::walk(top, &mut |dir| {
            if read_pids(dir, &mut pids, MAX_PIDS)? {
                return Ok(true);
            }
            let path = top.path().to_owned();
            Err(Error::TooMany {
                what: "processes",
                path,
                max: MAX_PIDS,
            })
        })?;
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// True if no process is left in the cgroup and its sub-groups, or no cgroup. Zombies do not
    /// count.
    ///
    /// # Errors
    /// The errno of open(2) or read(2).
    pub fn is_empty(&self) -> Result<bool, Error> {
        if let Some(dir) = self.unified() {
            let mut buf = Vec::new();
            let Some(events) = dir.read_if_there("cgroup.events", &mut buf)? else {
                return Ok(true);
            };
            return Ok(key_values(events).any(|line| line == ("populated", 0)));
        }
        let mut pids = Vec::new();
        subtree::walk(self.processes()?, &mut |dir| {
            read_pids(dir, &mut pids, 1)?;
            Ok(pids.is_empty())
        })?;
        Ok(pids.is_empty())
    }

    /// Sends `signal` to every process in the cgroup and its sub-groups. A process that is forked
    /// meanwhile may be missed: to end them all use [`Cgroup::kill`].
    ///
    /// # Errors
    /// As [`Cgroup::pids`]; the errno of `pidfd_send_signal`(2).
    pub fn signal(&self, signal: Signal) -> Result<(), Error> {
        for chunk in self.pids()?.chunks(CHUNK) {
            let mut held = Vec::with_capacity(chunk.len());
            for pid in chunk {
                if let Some(process) = hold(*pid)? {
                    held.push((*pid, process));
                }
            }
            // A number may have been reused between reading and holding it: only what is still in
            // the list now, while we hold it, is a process of this cgroup.
            let members = self.pids()?;
            held.retain(|(pid, _)| members.binary_search(pid).is_ok());
            for (pid, process) in held {
                match rustix::process::pidfd_send_signal(&process, signal) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(source) => {
                        return Err(Error::Signal {
                            call: "pidfd_send_signal",
                            pid,
                            source,
                        });
                    }
                }
            }
        }
        Ok(())
    }
}

/// A pidfd of a process; `None` if it is gone.
fn hold(pid: i32) -> Result<Option<OwnedFd>, Error> {
    let Some(number) = Pid::from_raw(pid) else {
        return Ok(None);
    };
    match rustix::process::pidfd_open(number, PidfdFlags::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::SRCH) => Ok(None),
        Err(source) => Err(Error::Signal {
            call: "pidfd_open",
            pid,
            source,
        }),
    }
}

/// Adds the pids of one group until there are `max`; false if there are more. A process that has
/// no number in our PID namespace shows as 0 and is left out.
fn read_pids(dir: &Dir, pids: &mut Vec<i32>, max: usize) -> Result<bool, Error> {
    const FILE: &str = "cgroup.procs";
    let failed = |source| Error::Read {
        path: dir.path().join(FILE),
        source,
    };
    let fd = match dir.file(FILE, OFlags::RDONLY) {
        Ok(fd) => fd,
        // Removed between finding and reading it.
        Err(Error::Open {
            source: Errno::NOENT,
            ..
        }) => return Ok(true),
        Err(error) => return Err(error),
    };
    let mut buf = [0; 4096];
    let mut pid: i32 = 0;
    loop {
        let len = match rustix::io::read(&fd, &mut buf) {
            Ok(0) | Err(Errno::NODEV) => return Ok(true),
            Ok(len) => len,
            // A threaded group of v2: its processes are listed in the domain above it.
            Err(Errno::OPNOTSUPP) => return Ok(true),
            Err(errno) => return Err(failed(errno)),
        };
        for byte in &buf[..len] {
            match byte {
                b'0'..=b'9' => {
                    pid = pid
                        .saturating_mul(10)
                        .saturating_add(i32::from(byte - b'0'))
                }
                _ if pid == 0 => {}
                _ if pids.len() == max => return Ok(false),
                _ => pids.push(std::mem::take(&mut pid)),
            }
        }
    }
}
