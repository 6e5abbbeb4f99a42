//! What can be asked: state, pids, figures, the end.

use berm_cgroup::{Pressures, Stats};
use berm_sys::Kind as ErrorKind;

use crate::api::{Exit, Pid, ProcessState};
use crate::error::Error;
use crate::live::Sandbox;
use crate::task::Kind;

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
        let pids = match task.cgroup.borrow().as_ref().map(berm_cgroup::Cgroup::pids) {
            Some(pids) => pids?,
            None => Vec::new(),
        };
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
