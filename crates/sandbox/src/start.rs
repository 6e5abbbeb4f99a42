//! Starting a container: its gate is opened.

use crate::api::{Event, Exit};
use crate::error::Error;
use crate::live::{Live, Sandbox};
use crate::state::{Happening, State};
use crate::task::{Kind, Process, Task};

impl Sandbox {
    /// Starts a container; gives back its host pid.
    ///
    /// The sandbox task of a CRI pod runs nothing: only its state changes.
    /// # Errors
    /// `FailedPrecondition` unless it is created, and while the pod is paused; otherwise the step that failed: the container
    /// is stopped then, and `wait` and `delete` work.
    pub async fn start(&self, id: &str) -> Result<i32, Error> {
        let live = &self.0;
        let task = live.task(id)?;
        if task.process.has_ended() {
            // The refusal of the table, without opening a gate that nobody waits at.
            task.process.can(Happening::Start)?;
        }
        if task.kind == Kind::Container {
            live.may_run("start", id)?;
        }
        task.process.happen(Happening::Start)?;
        if task.kind == Kind::Sandbox {
            return live.tell_started(&task);
        }
        let stage = task.process.gate.borrow_mut().take();
        let mut stage = stage.ok_or(Error::Died { last: "Gate" })?;
        let hooks = task.hooks.borrow().clone();
        let opened = match &hooks {
            None => live.open_until_exec(&mut stage, &task).await,
            Some(hooks) => match live.before_start(&task, hooks).await {
                Ok(()) => live.open_until_exec(&mut stage, &task).await,
                failed => failed,
            },
        };
        match opened {
            Ok(()) => {
                let pid = live.tell_started(&task)?;
                if let Some(hooks) = hooks {
                    live.after_start(&task, &hooks).await;
                }
                Ok(pid)
            }
            Err(e) => {
                live.keep_refused("Start", id, &e);
                let ended = live.end_failed_start(&task).await;
                live.tell_user("start", &task, &e).await;
                ended?;
                Err(e)
            }
        }
    }
}

impl Live {
    fn tell_started(&self, task: &Task) -> Result<i32, Error> {
        let pid = task.process.pid();
        let state = task.process.happen(Happening::Started)?;
        self.tell(Event::Started {
            id: task.id.clone(),
            pid,
        });
        if let (State::Stopped, Some(exit)) = (state, task.process.exit()) {
            self.tell(Event::Exited {
                id: task.id.clone(),
                exec: None,
                exit,
            });
        }
        Ok(pid)
    }

    /// The process ends by itself or is killed; its exit is told as usual.
    async fn end_failed_start(&self, task: &Task) -> Result<(), Error> {
        let state = task.process.happen(Happening::StartFailed)?;
        if let (State::Stopped, Some(exit)) = (state, task.process.exit()) {
            self.tell(Event::Exited {
                id: task.id.clone(),
                exec: None,
                exit,
            });
            return Ok(());
        }
        kill(&task.process);
        let deadline = self.host.config.kill_deadline;
        let slow = Error::Slow {
            what: "the end of a failed start",
            after: deadline,
        };
        let exit = tokio::time::timeout(deadline, task.process.wait()).await;
        exit.map(|_: Exit| ()).map_err(|_| slow)
    }
}

fn kill(process: &Process) {
    use std::os::fd::AsFd;
    let Some(child) = process.child() else { return };
    match crate::process::signal(AsFd::as_fd(&*child), crate::process::SIGKILL) {
        Ok(()) | Err(Error::Finished) => {}
        Err(e) => log::error!("call=Kill err={:?}", e.chain()),
    }
}
