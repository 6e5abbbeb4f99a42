//! What can be asked: state, pids, figures, the end.

use std::os::fd::{AsFd, BorrowedFd};

use berm_cgroup::{Pressures, Stats};
use berm_sys::Kind as ErrorKind;
use rustix::fs::{AtFlags, CWD, fstat, statat};

use crate::api::{Exit, Pid, ProcessState};
use crate::error::{Error, call, io};
use crate::live::{Live, Sandbox};
use crate::task::{Kind, Task};

impl Sandbox {
    /// The state of a container or an exec, from memory.
    /// # Errors
    /// `NotFound` for an unknown id or exec.
    pub fn state(&self, id: &str, exec: Option<&str>) -> Result<ProcessState, Error> {
        let target = self.0.target(id, exec)?;
        let process = target.process();
        let own = process.status();
        let paused = target.task.process.status() == crate::api::Status::Paused;
        let status = if paused && !process.has_ended() {
            crate::api::Status::Paused
        } else {
            own
        };
        Ok(ProcessState {
            bundle: target.task.bundle.clone(),
            pid: process.pid(),
            status,
            exit: process.exit(),
        })
    }

    /// Waits for the end of a process, without limit; one that has ended answers at once.
    /// # Errors
    /// `NotFound` for an unknown id or exec.
    pub async fn wait(&self, id: &str, exec: Option<&str>) -> Result<Exit, Error> {
        let target = self.0.target(id, exec)?;
        Ok(target.process().wait().await)
    }

    /// Host pids of a container's processes; of the sandbox task, PID 1.
    /// # Errors
    /// `FailedPrecondition` once it has ended: an empty list would make containerd forget it.
    pub fn pids(&self, id: &str) -> Result<Vec<Pid>, Error> {
        let task = self.0.task(id)?;
        if task.process.has_ended() {
            let state = task.process.state().word();
            let id = id.to_owned();
            return Err(Error::NotRunning { id, state });
        }
        if task.kind == Kind::Sandbox {
            return Ok(vec![Pid {
                pid: task.process.pid(),
                exec: None,
            }]);
        }
        let pids = self.0.pids_of(&task)?;
        let execs = task.execs.borrow();
        let exec_of = |pid: i32| {
            execs
                .iter()
                .find(|(_, exec)| exec.process.pid() == pid && !exec.untold)
                .map(|(name, _)| name.clone())
        };
        Ok(pids
            .into_iter()
            .map(|pid| Pid {
                pid,
                exec: exec_of(pid),
            })
            .collect())
    }

    /// Figures of the container's cgroup; the last ones once it has ended, until it is deleted.
    /// # Errors
    /// `NotFound` for an unknown id; the errno of reading a cgroup file.
    pub fn stats(&self, id: &str) -> Result<Stats, Error> {
        let task = self.0.task(id)?;
        if let Some(last) = task.last_stats.borrow().as_ref() {
            return Ok(last.clone());
        }
        let cgroup = task.cgroup.borrow();
        self.0.host.need_cgroups("figures of a container")?;
        match cgroup.as_ref().map(berm_cgroup::Cgroup::stats) {
            Some(Err(e)) if e.kind() == ErrorKind::NotFound => Err(Error::Finished),
            Some(stats) => Ok(stats?),
            None => Err(Error::NoContainer { id: id.to_owned() }),
        }
    }

    /// Pressure stall information of the container's cgroup, of cgroup2 alone; nothing once it
    /// has ended.
    /// # Errors
    /// `NotFound` for an unknown id; the errno of reading a cgroup file.
    pub fn pressures(&self, id: &str) -> Result<Pressures, Error> {
        let task = self.0.task(id)?;
        let cgroup = task.cgroup.borrow();
        let pressures = cgroup.as_ref().map(berm_cgroup::Cgroup::pressures);
        Ok(pressures.transpose()?.unwrap_or_default())
    }
}

impl Live {
    /// Host pids of all processes of a container: those of its cgroup, or without one those of its
    /// PID namespace.
    fn pids_of(&self, task: &Task) -> Result<Vec<i32>, Error> {
        let inside = task.inside.borrow();
        match (&self.host.nested, inside.as_ref()) {
            (Some(_), Some(inside)) => pids_in(inside.pidns.as_fd()),
            _ => {
                let cgroup = task.cgroup.borrow();
                let pids = cgroup.as_ref().map(berm_cgroup::Cgroup::pids);
                Ok(pids.transpose()?.unwrap_or_default())
            }
        }
    }
}

/// The processes whose PID namespace this is, as the caller's `/proc` numbers them.
fn pids_in(pidns: BorrowedFd<'_>) -> Result<Vec<i32>, Error> {
    let inode = fstat(pidns).map_err(call("fstat(pidns)"))?.st_ino;
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc").map_err(io("readdir(/proc)"))? {
        let name = entry.map_err(io("readdir(/proc)"))?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // Whoever is gone by now, or not the caller's to look at, is not in it.
        let own = statat(CWD, format!("/proc/{pid}/ns/pid"), AtFlags::empty());
        if own.is_ok_and(|own| own.st_ino == inode) {
            pids.push(pid);
        }
    }
    pids.sort_unstable();
    Ok(pids)
}
