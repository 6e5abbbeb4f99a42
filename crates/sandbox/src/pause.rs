//! Stopping containers and letting them go on: one of them, or the whole pod.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use berm_cgroup::Cgroup;
use berm_sys::Kind as ErrorKind;
use tokio::time::{Instant, sleep};

use crate::api::Event;
use crate::error::Error;
use crate::exits::ASK_AGAIN;
use crate::live::{Live, Sandbox};
use crate::state::{Happening, State};
use crate::task::{Kind, Task};

/// How often the pod was paused as a whole and not yet resumed.
#[derive(Debug, Default)]
pub(crate) struct Pauses {
    count: Cell<u32>,
    /// Only one pause or resume of the pod at a time.
    busy: tokio::sync::Mutex<()>,
}

impl Sandbox {
    /// Freezes all containers that run. Counted: the pod goes on when it was resumed as often as
    /// it was paused.
    ///
    /// A container that was paused by itself stays so when the pod is resumed. Until then none
    /// can be started or resumed by itself and no exec begins, but one can be created, killed,
    /// inspected and deleted. PID 1, in which nothing of the pod's runs, is not frozen.
    /// # Errors
    /// `Unavailable` once the sandbox has ended; `DeadlineExceeded` if a process does not freeze:
    /// all go on then.
    pub async fn pause_all(&self) -> Result<(), Error> {
        let live = &self.0;
        live.host.need_cgroups("pausing a pod")?;
        let _one_at_a_time = live.pauses.busy.lock().await;
        live.not_ended()?;
        let count = live.pauses.count.get();
        // From here on nothing is started.
        live.pauses.count.set(count.saturating_add(1));
        if count > 0 {
            return Ok(());
        }
        let held = live.hold_all().await;
        if held.is_err() {
            live.pauses.count.set(0);
            live.let_all_go().await?;
        }
        held
    }

    /// Undoes one [`Sandbox::pause_all`].
    /// # Errors
    /// `FailedPrecondition` unless the pod is paused; `Unavailable` once the sandbox has ended.
    pub async fn resume_all(&self) -> Result<(), Error> {
        let live = &self.0;
        let _one_at_a_time = live.pauses.busy.lock().await;
        live.not_ended()?;
        let Some(left) = live.pauses.count.get().checked_sub(1) else {
            let id = live.record.id.clone();
            return Err(Error::PodNotPaused { id });
        };
        live.pauses.count.set(left);
        if left > 0 {
            return Ok(());
        }
        live.let_all_go().await
    }

    /// Freezes all processes of a container.
    /// # Errors
    /// `FailedPrecondition` unless it runs; `DeadlineExceeded` if a process does not freeze: all
    /// go on then.
    pub async fn pause(&self, id: &str) -> Result<(), Error> {
        let live = &self.0;
        live.host.need_cgroups("pausing a container")?;
        let task = live.task(id)?;
        let _one_at_a_time = task.busy.lock().await;
        task.process.can(Happening::Pause)?;
        if let Err(e) = live.freeze(&task).await {
            task.thaw()?;
            return Err(e);
        }
        task.process.happen(Happening::Pause)?;
        live.tell(Event::Paused { id: id.to_owned() });
        Ok(())
    }

    /// Lets a frozen container go on.
    /// # Errors
    /// `FailedPrecondition` unless it is paused, and while the whole pod is.
    pub async fn resume(&self, id: &str) -> Result<(), Error> {
        let live = &self.0;
        let task = live.task(id)?;
        let _one_at_a_time = task.busy.lock().await;
        if task.held.get() && task.process.state() == State::Paused {
            return Err(live.pod_paused("resume", id));
        }
        task.process.can(Happening::Resume)?;
        task.thaw()?;
        task.process.happen(Happening::Resume)?;
        live.tell(Event::Resumed { id: id.to_owned() });
        Ok(())
    }
}

impl Live {
    /// Refuses what would let something run in a pod that is paused as a whole.
    pub(crate) fn may_run(&self, verb: &'static str, id: &str) -> Result<(), Error> {
        match self.pauses.count.get() {
            0 => Ok(()),
            _ => Err(self.pod_paused(verb, id)),
        }
    }

    fn pod_paused(&self, verb: &'static str, id: &str) -> Error {
        let (id, sandbox) = (id.to_owned(), self.record.id.clone());
        Error::PodPaused { verb, id, sandbox }
    }

    fn not_ended(&self) -> Result<(), Error> {
        if self.ending.get() || *self.gone.borrow() {
            let id = self.record.id.clone();
            return Err(Error::SandboxGone { id });
        }
        Ok(())
    }

    fn containers(&self) -> Vec<Rc<Task>> {
        let tasks = self.tasks.borrow();
        let containers = tasks.values().filter(|task| task.kind == Kind::Container);
        containers.cloned().collect()
    }

    async fn hold_all(&self) -> Result<(), Error> {
        for task in self.containers() {
            self.hold(&task).await?;
        }
        Ok(())
    }

    /// Freezes a container for the pod's pause, if it runs.
    async fn hold(&self, task: &Task) -> Result<(), Error> {
        let _one_at_a_time = task.busy.lock().await;
        self.until_started(task).await?;
        if task.process.state() != State::Running {
            return Ok(());
        }
        match self.freeze(task).await {
            Err(_) if task.process.has_ended() => return Ok(()),
            Err(e) => {
                task.thaw()?;
                return Err(e);
            }
            Ok(()) => {}
        }
        if task.process.has_ended() {
            return Ok(());
        }
        task.process.happen(Happening::Pause)?;
        task.held.set(true);
        let id = task.id.clone();
        self.tell(Event::Paused { id });
        Ok(())
    }

    /// A start that was under way when the pod was paused has its outcome first.
    async fn until_started(&self, task: &Task) -> Result<(), Error> {
        let after = self.freeze_deadline();
        let until = Instant::now() + after;
        while matches!(task.process.state(), State::Starting | State::Ending) {
            if Instant::now() >= until {
                let what = "the start of a container of the pod to be paused";
                return Err(Error::Slow { what, after });
            }
            sleep(ASK_AGAIN).await;
        }
        Ok(())
    }

    /// Thaws what the pod's pause has frozen; the first failure is told after all were tried.
    async fn let_all_go(&self) -> Result<(), Error> {
        let mut first = Ok(());
        for task in self.containers() {
            let _one_at_a_time = task.busy.lock().await;
            if task.held.replace(false) && task.process.state() == State::Paused {
                first = first.and(self.let_go(&task));
            }
        }
        first
    }

    fn let_go(&self, task: &Task) -> Result<(), Error> {
        match task.thaw() {
            // It is about to be told that it has ended.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            thawed => thawed?,
        }
        task.process.happen(Happening::Resume)?;
        let id = task.id.clone();
        self.tell(Event::Resumed { id });
        Ok(())
    }

    /// Lets what is frozen die; PID 1 is dead or dying.
    pub(crate) fn thaw_for_the_end(&self) {
        for task in self.containers() {
            if task.process.state() == State::Paused
                && let Err(e) = task.thaw()
            {
                log::error!("call=Thaw container={} err={:?}", task.id, e.chain());
            }
        }
    }

    fn freeze_deadline(&self) -> Duration {
        self.host.config.kill_deadline.min(Duration::from_secs(5))
    }

    async fn freeze(&self, task: &Task) -> Result<(), Error> {
        let deadline = self.freeze_deadline();
        let until = Instant::now() + deadline;
        task.with_cgroup(Cgroup::freeze)?;
        while !task.with_cgroup(Cgroup::frozen)? {
            if Instant::now() >= until {
                return Err(Error::Slow {
                    what: "freezing",
                    after: deadline,
                });
            }
            sleep(ASK_AGAIN).await;
            if task.process.has_ended() {
                return Err(Error::Finished);
            }
        }
        Ok(())
    }
}
