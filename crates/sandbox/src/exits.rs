//! How processes end: watched, reaped, told in order.

use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use berm_plan::PidNs;
use berm_sys::Kind as ErrorKind;
use tokio::time::{Instant, sleep, timeout};

use crate::api::{Event, Exit};
use crate::error::Error;
use crate::live::{Live, Sandbox};
use crate::process::{Child, Ended, SIGKILL, signal};
use crate::state::{Happening, State};
use crate::task::{Exec, Kind, Task};

/// How often what has no event is asked again (v1's cgroups).
pub(crate) const ASK_AGAIN: Duration = Duration::from_millis(2);

impl Sandbox {
    /// Watches PID 1. When it ends, the kernel has ended everything else in the pod.
    pub(crate) fn watch_init(&self) {
        let live = Rc::clone(&self.0);
        tokio::task::spawn_local(async move {
            let ended = or_lost(live.init.wait().await);
            live.ending.set(true);
            if !live.owns_pidns {
                live.end_containers().await;
            }
            live.gone.send_replace(true);
            let task = live
                .tasks
                .borrow()
                .values()
                .find(|t| t.kind == Kind::Sandbox)
                .cloned();
            if let Some(task) = task {
                live.keep_stats(&task);
                live.end_task(&task, ended);
            }
            live.end_listeners();
            live.release_if_empty();
        });
    }

    pub(crate) fn watch_container(&self, task: &Rc<Task>) {
        let Some(child) = task.process.child() else {
            return;
        };
        let (live, task) = (Rc::clone(&self.0), Rc::clone(task));
        tokio::task::spawn_local(async move {
            let ended = or_lost(child.wait().await);
            if task.is_scope() {
                // systemd removes an empty scope as soon as it hears of it.
                live.tell_last_oom(&task, ended.status);
                live.keep_stats(&task);
            }
            live.end_all_of(&task).await;
            live.keep_stats(&task);
            live.tell_last_oom(&task, ended.status);
            live.end_task(&task, ended);
            if live.root && task.id == live.record.id {
                live.kill_init();
            }
        });
    }

    pub(crate) fn watch_exec(&self, task: &Rc<Task>, exec: (String, Rc<Exec>), child: Rc<Child>) {
        let (live, task) = (Rc::clone(&self.0), Rc::clone(task));
        tokio::task::spawn_local(async move {
            let ended = or_lost(child.wait().await);
            live.end_exec(&task, &exec.0, &exec.1, ended);
        });
    }
}

/// A process whose end the kernel does not tell is no process of ours: a broken promise.
fn or_lost(ended: Result<Ended, Error>) -> Ended {
    ended.unwrap_or_else(|e| {
        log::error!("call=Reap result={} err={:?}", e.kind(), e.chain());
        Ended {
            status: 255,
            at: std::time::SystemTime::now(),
        }
    })
}

impl Live {
    /// Ends every container of a pod whose PID namespace goes on without it.
    async fn end_containers(&self) {
        let deadline = self.host.config.kill_deadline;
        let all: Vec<_> = self.tasks.borrow().values().cloned().collect();
        for task in all.iter().filter(|task| task.kind == Kind::Container) {
            if let Err(e) = self.kill_cgroup(task, deadline).await {
                log::error!("call=KillPod container={} err={:?}", task.id, e.chain());
            }
        }
    }

    /// Ends what a container's first process left: in a PID namespace of its own the kernel has
    /// done it, in the pod's it has to be done here. Then waits for its execs' ends.
    async fn end_all_of(&self, task: &Task) {
        let deadline = self.host.config.kill_deadline;
        let shares = task
            .inside
            .borrow()
            .as_ref()
            .is_some_and(|i| i.pidns_of != PidNs::Own);
        if shares && let Err(e) = self.kill_cgroup(task, deadline).await {
            log::error!("call=KillAll container={} err={:?}", task.id, e.chain());
        }
        let running: Vec<_> = task
            .execs
            .borrow()
            .values()
            .filter(|e| e.process.child().is_some() && !e.process.has_ended())
            .cloned()
            .collect();
        for exec in running {
            if timeout(deadline, exec.process.wait()).await.is_err() {
                log::error!(
                    "call=WaitExec container={} err=\"an exec did not end\"",
                    task.id
                );
            }
        }
    }

    /// Kills every process of the container's cgroup and waits until none is left.
    pub(crate) async fn kill_cgroup(&self, task: &Task, deadline: Duration) -> Result<(), Error> {
        let until = Instant::now() + deadline;
        loop {
            let step = task.cgroup.borrow().as_ref().map_or(Ok(true), killed);
            if step? {
                return Ok(());
            }
            ask_again("killing the container", until, deadline).await?;
        }
    }

    pub(crate) fn keep_stats(&self, task: &Task) {
        if self.host.nested.is_some() {
            return;
        }
        match task
            .cgroup
            .borrow()
            .as_ref()
            .map(berm_cgroup::Cgroup::stats)
        {
            Some(Ok(stats)) => *task.last_stats.borrow_mut() = Some(stats),
            // The last ones that could be read are there, or systemd was faster.
            Some(Err(e)) if e.kind() == ErrorKind::NotFound && task.is_scope() => {
                log::debug!("call=LastStats container={} result=NotFound", task.id);
            }
            Some(Err(e)) => log::warn!(
                "call=LastStats container={} err={:?}",
                task.id,
                e.to_string()
            ),
            None => {}
        }
    }

    /// The end of a container or of the sandbox task: told at once, or held back until the
    /// outcome of its start is.
    fn end_task(&self, task: &Task, ended: Ended) {
        let exit = Exit {
            pid: task.process.pid(),
            status: ended.status,
            at: ended.at,
        };
        let state = task.process.happen(Happening::Exit);
        task.process.set_exit(exit);
        match state {
            Ok(State::Ending) | Err(_) => {}
            Ok(_) => self.tell(Event::Exited {
                id: task.id.clone(),
                exec: None,
                exit,
            }),
        }
    }

    fn end_exec(&self, task: &Task, name: &str, exec: &Exec, ended: Ended) {
        let exit = Exit {
            pid: exec.process.pid(),
            status: ended.status,
            at: ended.at,
        };
        let state = exec.process.happen(Happening::Exit);
        exec.process.set_exit(exit);
        match state {
            Ok(State::Ending) | Err(_) => {}
            Ok(_) if exec.untold => {}
            Ok(_) => self.tell(Event::Exited {
                id: task.id.clone(),
                exec: Some(name.to_owned()),
                exit,
            }),
        }
    }

    /// Kills PID 1, and with it the pod.
    pub(crate) fn kill_init(&self) {
        match signal(self.init.as_fd(), SIGKILL) {
            Ok(()) | Err(Error::Finished) => {}
            Err(e) => log::error!(
                "call=KillInit sandbox={} err={:?}",
                self.record.id,
                e.chain()
            ),
        }
    }

    /// Removes records and frees the ids once PID 1 is gone and no task is left.
    pub(crate) fn release_if_empty(&self) {
        let gone = *self.gone.borrow();
        if !gone || !self.tasks.borrow().is_empty() || self.released.replace(true) {
            return;
        }
        let isolation = &self.record.isolation;
        for range in isolation.range.iter().chain(&isolation.extra_ranges) {
            crate::ids::free(&self.host.config, *range);
        }
        self.state_dir.borrow_mut().remove();
        self.free_hinted();
    }

    /// Waits until PID 1 is gone.
    pub(crate) async fn wait_gone(&self, deadline: Duration) -> Result<(), Error> {
        let mut gone = self.gone.subscribe();
        let waited = timeout(deadline, gone.wait_for(|gone| *gone)).await;
        let slow = Error::Slow {
            what: "the end of the sandbox",
            after: deadline,
        };
        waited.map(drop).map_err(|_| slow)
    }
}

/// One step of killing all of a cgroup; true when none is left.
pub(crate) fn killed(cgroup: &berm_cgroup::Cgroup) -> Result<bool, Error> {
    match cgroup.kill() {
        Err(e) if e.kind() == berm_sys::Kind::NotFound => Ok(true),
        killed => Ok(killed?),
    }
}

/// The kernel has no event for what a v1 cgroup does: waits a little, within the deadline.
async fn ask_again(what: &'static str, until: Instant, after: Duration) -> Result<(), Error> {
    if Instant::now() >= until {
        return Err(Error::Slow { what, after });
    }
    sleep(ASK_AGAIN).await;
    Ok(())
}

/// Removes a cgroup whose processes are dying, and ends the scope that it belongs to, within a
/// deadline.
pub(crate) async fn remove_cgroup(
    cgroup: &berm_cgroup::Cgroup,
    deadline: Duration,
) -> Result<(), Error> {
    let until = Instant::now() + deadline;
    loop {
        match cgroup.remove() {
            Err(berm_cgroup::Error::Busy { .. }) => {
                ask_again("the end of the cgroup's processes", until, deadline).await?;
            }
            removed => {
                removed?;
                break;
            }
        }
    }
    match cgroup.unit() {
        Some(unit) => crate::scope::stop(unit, deadline).await,
        None => Ok(()),
    }
}

/// Ends what a failed creation left in its cgroup and removes it; what stays is logged.
pub(crate) async fn undo_cgroup(mut cgroup: berm_cgroup::Cgroup, deadline: Duration) {
    let until = Instant::now() + deadline;
    let emptied = loop {
        match killed(&cgroup) {
            Ok(false) => {}
            Ok(true) => break Ok(()),
            Err(e) => break Err(e),
        }
        if let Err(e) = ask_again("undoing a failed creation", until, deadline).await {
            break Err(e);
        }
    };
    let removed = match emptied {
        Ok(()) => remove_cgroup(&cgroup, deadline).await,
        Err(e) => Err(e),
    };
    match removed {
        Ok(()) => cgroup.keep(),
        Err(e) => log::error!(
            "call=Undo cgroup={} err={:?}",
            cgroup.path().relative(),
            e.chain()
        ),
    }
}
