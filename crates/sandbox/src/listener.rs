//! Handing a seccomp filter's listener to the agent that answers its system calls.
//!
//! The stage child installs the filter as its last step before execve, says which of its
//! descriptors is the listener, and waits. The shim takes a copy, hands it over with the container
//! process state, and lets the child go on. If that fails the process does not start.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berm_plan::Listener;
use berm_stage::ListenerJob;
use berm_sys::process::pidfd_getfd;

use crate::api::Status;
use crate::aside::Aside;
use crate::error::{Error, io};
use crate::live::Live;
use crate::process::pid_of;
use crate::stage::{Outcome, Stage};
use crate::task::Task;

impl Live {
    /// Listens until a child has become its workload, and hands over its listener on the way.
    pub(crate) async fn until_exec(
        &self,
        stage: &mut Stage,
        child: BorrowedFd<'_>,
        task: &Task,
        outcome: &mut Outcome,
    ) -> Result<(), Error> {
        stage.listen(outcome).await?;
        self.pass_on(stage, child, task, outcome).await
    }

    /// The same for a child at its gate, which is opened first.
    pub(crate) async fn open_until_exec(
        &self,
        stage: &mut Stage,
        task: &Task,
    ) -> Result<(), Error> {
        let child = task.process.child().ok_or(Error::Died { last: "Gate" })?;
        let mut outcome = Outcome::default();
        stage.go_on(&mut outcome).await?;
        let child = AsFd::as_fd(&*child);
        self.pass_on(stage, child, task, &mut outcome).await
    }

    async fn pass_on(
        &self,
        stage: &mut Stage,
        child: BorrowedFd<'_>,
        task: &Task,
        outcome: &mut Outcome,
    ) -> Result<(), Error> {
        while let Some(number) = outcome.listener.take() {
            let listener = pidfd_getfd(child, number).map_err(io("pidfd_getfd(listener)"))?;
            self.hand_over(listener, child, task).await?;
            stage.go_on(outcome).await?;
        }
        Ok(())
    }

    async fn hand_over(
        &self,
        listener: OwnedFd,
        child: BorrowedFd<'_>,
        task: &Task,
    ) -> Result<(), Error> {
        let agent = {
            let inside = task.inside.borrow();
            inside.as_ref().and_then(|i| i.base.listener.clone())
        };
        let agent = agent.ok_or(Error::Died { last: "Seccomp" })?;
        let init = task.process.pid();
        let pid = pid_of(child)?;
        let status = match task.process.status() {
            Status::Running | Status::Paused => "running",
            _ => "created",
        };
        let state = agent.json(status, init, pid);
        let handing = Aside::begin("Listener", self.host.config.stage_deadline, |report| {
            berm_stage::spawn_listener(&ListenerJob {
                report,
                path: &agent.path,
                state: &state,
                listener: listener.as_fd(),
            })
        })?;
        drop(listener);
        let handed = handing.end().await.map(drop);
        handed.map_err(|e| refused(&agent, &e))
    }
}

fn refused(agent: &Listener, error: &Error) -> Error {
    let (reason, kind) = error.plain();
    Error::Listener {
        path: agent.path.clone(),
        reason,
        kind,
    }
}
