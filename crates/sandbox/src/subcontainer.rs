//! Containers of whoever holds the sandbox, beside those of its maker.
//!
//! [`Sandbox::create_container`] and its sisters are the maker's, who hears of every happening and
//! deletes what has ended. What is made here is a container like any other, with record, exit and
//! cgroup, but the maker is told nothing of it: containerd would be confused by an id that it has
//! never heard of. Who listens to the sandbox's events by a pipe of his own hears of it. It lives
//! until it is destroyed, or until the maker's last task is deleted.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use berm_plan::{Spec, TaskKind};
use tokio::time::timeout;

use crate::api::{ContainerArgs, Created, Event, Stdio};
use crate::delete::exit_of;
use crate::error::Error;
use crate::live::{Live, Sandbox};
use crate::process::{SIGKILL, signal};
use crate::record::check_id;
use crate::state::{Happening, State};
use crate::task::{Kind, Task};

/// How many ids of destroyed containers are remembered.
const MAX_DESTROYED: usize = 64;

/// Exit status of a container that never ran.
const NEVER_RAN: u32 = 255;

impl Sandbox {
    /// Starts the root container: the workload of a pod of one, or the sandbox task of a CRI pod,
    /// which runs nothing. gVisor's `StartRoot`.
    /// # Errors
    /// As [`Sandbox::start`]: `FailedPrecondition` the second time, `NotFound` before it was
    /// created.
    pub async fn start_root(&self) -> Result<i32, Error> {
        self.start(self.id()).await
    }

    /// Takes an id for a container that [`Sandbox::start_subcontainer`] will make; its state is
    /// `Creating` until then. gVisor's `CreateSubcontainer`.
    /// # Errors
    /// `AlreadyExists`; `InvalidArgument` for what can be no id, and for a bundle that is no
    /// absolute path; `Unavailable` when the sandbox has ended.
    pub fn create_subcontainer(&self, id: &str, bundle: PathBuf) -> Result<(), Error> {
        check_id(id)?;
        let live = &self.0;
        if !bundle.is_absolute() {
            return Err(Error::Subcontainer {
                field: "Bundle",
                reason: format!("{bundle:?} is no absolute path"),
            });
        }
        if !self.is_running() {
            return Err(Error::SandboxGone { id: id.to_owned() });
        }
        if live.tasks.borrow().contains_key(id) {
            return Err(Error::ContainerExists { id: id.to_owned() });
        }
        let task = Task::untold(id, bundle);
        live.tasks.borrow_mut().insert(id.to_owned(), task);
        Ok(())
    }

    /// Makes and starts a container whose id was taken by [`Sandbox::create_subcontainer`]. The
    /// root file system is the spec's `root.path` on the host as it is. gVisor's
    /// `StartSubcontainer`.
    /// # Errors
    /// `NotFound` for an id that was not taken; `FailedPrecondition` if it was started already,
    /// before the root container is started, and while the pod is paused; `InvalidArgument` for
    /// the spec of a sandbox or of another sandbox's container; the plan's refusal; the step that
    /// failed. A failure leaves nothing, the id is free again, and who waits for it is told 255.
    pub async fn start_subcontainer(
        &self,
        id: &str,
        spec: Spec,
        stdio: Stdio,
    ) -> Result<Created, Error> {
        let live = &self.0;
        let task = live.task(id)?;
        let _one_at_a_time = task.busy.lock().await;
        if !Rc::ptr_eq(&task, &live.task(id)?) || !task.untold {
            return Err(Error::ContainerStarted { id: id.to_owned() });
        }
        if task.process.state() != State::Creating {
            return Err(Error::ContainerStarted { id: id.to_owned() });
        }
        let started = self.make_and_start(&task, spec, stdio).await;
        if let Err(e) = &started {
            live.keep_refused("Create", id, e);
            if let Err(e) = live.end_and_forget(&task).await {
                log::error!("call=Undo container={id} err={:?}", e.chain());
            }
        }
        started
    }

    async fn make_and_start(
        &self,
        task: &Rc<Task>,
        spec: Spec,
        stdio: Stdio,
    ) -> Result<Created, Error> {
        let live = &self.0;
        live.belongs_here(&spec)?;
        has_root(task, &spec)?;
        live.root_is_started(&task.id)?;
        live.may_run("start", &task.id)?;
        let args = ContainerArgs {
            terminal: spec.terminal(),
            stdio,
            ..ContainerArgs::new(&task.id, &task.bundle, spec)
        };
        live.name_for_user(task, &args.spec);
        let made = self.make_container(task, args).await;
        if let Err(e) = &made {
            live.tell_user("create", task, e).await;
        }
        let created = made?;
        self.start(&task.id).await?;
        Ok(created)
    }

    /// Ends a container whatever it does: kills and reaps all of its processes, also paused ones,
    /// and frees its cgroup. One that [`Sandbox::create_subcontainer`] made is forgotten; one of
    /// the sandbox's maker stays, stopped, until that deletes it. The root container takes all
    /// processes of the pod with it. The second time does nothing. gVisor's `DestroyContainer`.
    /// # Errors
    /// `NotFound` for an id that never was, or is long gone; `FailedPrecondition` while another
    /// makes it; `DeadlineExceeded` if the kernel does not let go of it: try again.
    pub async fn destroy_container(&self, id: &str) -> Result<(), Error> {
        let live = &self.0;
        if id == self.id() {
            return live.end_pod().await;
        }
        let task = match live.task(id) {
            Err(_) if live.destroyed.borrow().iter().any(|old| old == id) => return Ok(()),
            found => found?,
        };
        let lock = timeout(live.host.config.kill_deadline, task.busy.lock()).await;
        let _one_at_a_time = lock.map_err(|_| live.slow("what is done to the container"))?;
        if task.process.state() == State::Deleted {
            return Ok(());
        }
        if task.untold {
            live.end_and_forget(&task).await?;
        } else {
            if task.process.state() == State::Creating {
                task.process.can(Happening::Delete)?;
            }
            live.end_processes(&task).await?;
            live.free(&task).await?;
        }
        live.remember_destroyed(id);
        Ok(())
    }
}

/// Without a bundle a relative root would be one below `/`, which nobody means.
fn has_root(task: &Task, spec: &Spec) -> Result<(), Error> {
    let root = spec.root_path().unwrap_or(Path::new("rootfs"));
    if root.is_absolute() || task.bundle != Path::new("/") {
        return Ok(());
    }
    let reason =
        format!("{root:?} is relative; make it absolute, or give CreateSubcontainer a Bundle");
    let field = "Spec.root.path";
    Err(Error::Subcontainer { field, reason })
}

impl Live {
    fn belongs_here(&self, spec: &Spec) -> Result<(), Error> {
        let reason = match spec.kind() {
            TaskKind::Root => return Ok(()),
            TaskKind::Container { sandbox_id } if *sandbox_id == self.record.id => return Ok(()),
            TaskKind::Container { sandbox_id } => {
                format!(
                    "of a container of sandbox {sandbox_id:?}, not {:?}",
                    self.record.id
                )
            }
            TaskKind::Sandbox => "of a sandbox, not of a container in one".to_owned(),
        };
        let field = "Spec.annotations";
        Err(Error::Subcontainer { field, reason })
    }

    fn root_is_started(&self, id: &str) -> Result<(), Error> {
        let root = self.task(&self.record.id).ok();
        let state = root.map_or(State::Creating, |root| root.process.state());
        match state {
            State::Running | State::Paused => Ok(()),
            state => Err(Error::RootNotStarted {
                id: id.to_owned(),
                state: state.word(),
            }),
        }
    }

    fn slow(&self, what: &'static str) -> Error {
        let after = self.host.config.kill_deadline;
        Error::Slow { what, after }
    }

    /// Ends all processes of a container and waits until its end is told.
    async fn end_processes(&self, task: &Task) -> Result<(), Error> {
        let deadline = self.host.config.kill_deadline;
        if task.process.state() == State::Creating {
            // Its id was taken, and that is all there is of it: a failed making has undone the
            // rest and run its hooks.
            task.hooks.borrow_mut().take();
            task.process.happen(Happening::Exit)?;
            task.process.set_never_ran(NEVER_RAN);
            return Ok(());
        }
        self.kill_cgroup(task, deadline).await?;
        let ended = timeout(deadline, task.process.wait()).await;
        ended
            .map(drop)
            .map_err(|_| self.slow("the end of a destroyed container"))
    }

    /// The caller holds `task.busy`.
    async fn end_and_forget(&self, task: &Task) -> Result<(), Error> {
        self.end_processes(task).await?;
        self.free(task).await?;
        self.run_poststop(task).await;
        task.process.happen(Happening::Delete)?;
        let (id, exit) = (task.id.clone(), exit_of(&task.process));
        if task.process.pid() == 0 {
            // Nothing has happened to it that counts, but who listens to it waits for its end.
            let exec = None;
            self.tell_listeners(&Event::Exited { id, exec, exit });
        } else {
            self.tell(Event::Deleted { id, exit });
        }
        self.drop_task(task);
        Ok(())
    }

    fn drop_task(&self, task: &Task) {
        self.tasks.borrow_mut().remove(&task.id);
        self.state_dir.borrow().remove_container(&task.id);
    }

    fn remember_destroyed(&self, id: &str) {
        let mut destroyed = self.destroyed.borrow_mut();
        destroyed.retain(|old| old != id);
        destroyed.push_back(id.to_owned());
        if destroyed.len() > MAX_DESTROYED {
            destroyed.pop_front();
        }
    }

    /// True when no task of the sandbox's maker is left.
    pub(crate) fn has_untold_alone(&self) -> bool {
        self.tasks.borrow().values().all(|task| task.untold)
    }

    /// Forgets every container that no event tells of: the pod has ended. Bounded; what the kernel
    /// does not let go of is logged.
    pub(crate) async fn forget_untold(&self) {
        let all: Vec<_> = self.tasks.borrow().values().cloned().collect();
        let deadline = self.host.config.kill_deadline;
        for task in all.iter().filter(|task| task.untold) {
            let forgotten = match timeout(deadline, task.busy.lock()).await {
                // It may have been destroyed, or its start have failed, meanwhile.
                Ok(_) if task.process.state() == State::Deleted => Ok(()),
                Ok(_one_at_a_time) => self.end_and_forget(task).await,
                Err(_) => Err(self.slow("the start of a container")),
            };
            if let Err(e) = forgotten {
                log::error!("call=Forget container={} err={:?}", task.id, e.chain());
                self.drop_task(task);
            }
        }
    }

    /// Ends every process of the pod and frees the cgroups of its containers. The tasks of the
    /// sandbox's maker stay until that deletes them.
    async fn end_pod(&self) -> Result<(), Error> {
        match signal(AsFd::as_fd(&*self.init), SIGKILL) {
            Ok(()) | Err(Error::Finished) => {}
            Err(e) => return Err(e),
        }
        self.thaw_for_the_end();
        self.wait_gone(self.host.config.kill_deadline).await?;
        self.forget_untold().await;
        let all: Vec<_> = self.tasks.borrow().values().cloned().collect();
        // One that is being made dies at its gate.
        let made = |task: &&Rc<Task>| {
            task.kind == Kind::Container && task.process.state() != State::Creating
        };
        for task in all.iter().filter(made) {
            self.end_processes(task).await?;
            self.free(task).await?;
        }
        self.release_if_empty();
        Ok(())
    }
}
