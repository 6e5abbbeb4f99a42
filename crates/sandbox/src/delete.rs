//! Forgetting processes, containers and the sandbox.

use std::os::fd::AsFd;
use std::time::SystemTime;

use berm_sys::Kind as ErrorKind;
use tokio::time::timeout;

use crate::api::{Event, Exit};
use crate::error::Error;
use crate::exits::remove_cgroup;
use crate::live::{Live, Sandbox};
use crate::phases;
use crate::process::{SIGKILL, signal};
use crate::state::{Happening, State};
use crate::task::{Kind, Process, Task};

impl Sandbox {
    /// Forgets a stopped or never started container with its cgroup and its record, or an exec.
    /// The last one takes the sandbox with it, and what [`Sandbox::create_subcontainer`] made.
    /// # Errors
    /// `FailedPrecondition` while it runs; `NotFound` for an unknown id, and the second time;
    /// `DeadlineExceeded` if the kernel does not let go of its cgroup: it can be deleted again.
    pub async fn delete(&self, id: &str, exec: Option<&str>) -> Result<Exit, Error> {
        match exec {
            Some(exec) => self.delete_exec(id, exec),
            None => self.delete_task(id).await,
        }
    }

    fn delete_exec(&self, id: &str, exec: &str) -> Result<Exit, Error> {
        let task = self.0.task(id)?;
        let entry = task.exec(exec)?;
        entry.process.happen(Happening::Delete)?;
        if !entry.process.has_ended() {
            entry.process.set_never_ran(0);
        }
        task.execs.borrow_mut().remove(exec);
        Ok(exit_of(&entry.process))
    }

    async fn delete_task(&self, id: &str) -> Result<Exit, Error> {
        let live = &self.0;
        let task = live.task(id)?;
        let _one_at_a_time = task.busy.lock().await;
        // Somebody else may have deleted it meanwhile.
        live.task(id)?;
        task.process.can(Happening::Delete)?;
        if task.process.state() == State::Created {
            live.end_created(&task).await?;
        }
        live.free(&task).await?;
        live.run_poststop(&task).await;
        phases::done("cgroup");
        task.process.happen(Happening::Delete)?;
        let exit = exit_of(&task.process);
        live.tell(Event::Deleted {
            id: id.to_owned(),
            exit,
        });
        live.tasks.borrow_mut().remove(id);
        live.state_dir.borrow().remove_container(id);
        if live.has_untold_alone() {
            live.kill_init();
            live.thaw_for_the_end();
            let gone = live.wait_gone(live.host.config.kill_deadline).await;
            live.forget_untold().await;
            gone?;
            live.release_if_empty();
            phases::done("sandbox");
        }
        Ok(exit)
    }

    /// Ends everything: kills PID 1, waits, frees what is left. Bounded; what the kernel does not
    /// let go of is logged. Safe on a paused sandbox, and twice.
    pub async fn destroy(&self) {
        let live = &self.0;
        live.kill_init();
        live.thaw_for_the_end();
        let deadline = live.host.config.kill_deadline;
        if let Err(e) = live.wait_gone(deadline).await {
            log::error!(
                "call=Destroy sandbox={} err={:?}",
                live.record.id,
                e.chain()
            );
        }
        live.forget_untold().await;
        let all: Vec<_> = live.tasks.borrow().values().cloned().collect();
        for task in all {
            let ended = timeout(deadline, task.process.wait()).await.is_ok();
            if let Err(e) = live.free(&task).await {
                log::error!(
                    "call=Destroy container={} ended={ended} err={:?}",
                    task.id,
                    e.chain()
                );
            }
            live.run_poststop(&task).await;
            live.tasks.borrow_mut().remove(&task.id);
        }
        live.release_if_empty();
    }
}

pub(crate) fn exit_of(process: &Process) -> Exit {
    let never = Exit {
        pid: process.pid(),
        status: 0,
        at: SystemTime::now(),
    };
    process.exit().unwrap_or(never)
}

impl Live {
    /// Ends a process that still waits at its gate.
    async fn end_created(&self, task: &Task) -> Result<(), Error> {
        if task.kind == Kind::Sandbox {
            self.kill_init();
        } else if let Some(child) = task.process.child() {
            match signal(AsFd::as_fd(&*child), SIGKILL) {
                Ok(()) | Err(Error::Finished) => {}
                Err(e) => return Err(e),
            }
        }
        let deadline = self.host.config.kill_deadline;
        let slow = Error::Slow {
            what: "the end of a created process",
            after: deadline,
        };
        timeout(deadline, task.process.wait())
            .await
            .map(drop)
            .map_err(|_| slow)
    }

    /// Runs the hooks of a container that is gone, once.
    pub(crate) async fn run_poststop(&self, task: &Task) {
        let hooks = task.hooks.borrow_mut().take();
        if let Some(hooks) = hooks {
            self.after_stop(task, &hooks).await;
        }
    }

    /// Removes the task's cgroup.
    pub(crate) async fn free(&self, task: &Task) -> Result<(), Error> {
        let Some(cgroup) = task.cgroup.borrow_mut().take() else {
            return Ok(());
        };
        match remove_cgroup(&cgroup, self.host.config.kill_deadline).await {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                *task.cgroup.borrow_mut() = Some(cgroup);
                Err(e)
            }
            _ => Ok(()),
        }
    }
}
