//! More processes in a running container: one fork each.

use std::cell::RefCell;
use std::os::fd::AsFd;
use std::rc::Rc;

use berm_plan::{ExecPlan, Step};
use berm_stage::{Filter, Job};
use berm_sys::sched;

use crate::api::{Created, Event, Stdio};
use crate::console::ConsoleSocket;
use crate::donated::{Donated, Lifted};
use crate::error::{Error, io};
use crate::live::{Live, Sandbox};
use crate::record::check_id;
use crate::stage::{Forked, Outcome, Stage};
use crate::state::{Happening, State};
use crate::task::{Exec, Kind, Process, Task};

impl Sandbox {
    /// Announces an exec: its id is taken, its spec is planned.
    /// # Errors
    /// `AlreadyExists` for a taken id; `FailedPrecondition` unless the container runs; the plan's
    /// refusal.
    pub fn add_exec(
        &self,
        id: &str,
        exec: &str,
        process_json: &[u8],
        terminal: bool,
    ) -> Result<(), Error> {
        check_id(exec)?;
        let live = &self.0;
        let task = live.task(id)?;
        self.plan_exec(&task, exec, process_json, terminal, false)?;
        live.tell(Event::ExecAdded {
            id: id.to_owned(),
            exec: exec.to_owned(),
        });
        Ok(())
    }

    /// Takes a name in the container's table for an exec and plans it; an `untold` one makes no
    /// events.
    pub(crate) fn plan_exec(
        &self,
        task: &Task,
        exec: &str,
        process_json: &[u8],
        terminal: bool,
        untold: bool,
    ) -> Result<(), Error> {
        let id = &task.id;
        if task.execs.borrow().contains_key(exec) {
            return Err(Error::ExecExists {
                id: id.to_owned(),
                exec: exec.to_owned(),
            });
        }
        running(task)?;
        let plan = {
            let inside = task.inside.borrow();
            let inside = inside
                .as_ref()
                .ok_or(Error::NoContainer { id: id.to_owned() })?;
            let planned = berm_plan::exec(process_json, terminal, &inside.base);
            planned
                .map_err(Error::from)
                .inspect_err(|e| self.0.tell_user_later("exec in", task, e))?
        };
        let process = Process::new(exec);
        process.happen(Happening::Made)?;
        let entry = Rc::new(Exec {
            process,
            untold,
            plan: RefCell::new(Some(plan)),
        });
        task.execs.borrow_mut().insert(exec.to_owned(), entry);
        Ok(())
    }

    /// Starts an exec that was announced; its process runs when this returns.
    /// # Errors
    /// `FailedPrecondition` unless the container runs and the exec is new; the step that failed:
    /// `wait` then answers at once, and `delete` works.
    pub async fn start_exec(&self, id: &str, exec: &str, stdio: Stdio) -> Result<Created, Error> {
        self.start_exec_with(id, exec, stdio, Donated::default())
            .await
    }

    /// The same of a process that is given more than its streams.
    /// # Errors
    /// As [`Sandbox::start_exec`], and `InvalidArgument` for what cannot be given to it: the exec
    /// is then as new as before.
    pub async fn start_exec_with(
        &self,
        id: &str,
        exec: &str,
        stdio: Stdio,
        donated: Donated,
    ) -> Result<Created, Error> {
        let started = self.start_planned(id, exec, stdio, donated).await;
        if let (Err(e), Ok(task)) = (&started, self.0.task(id)) {
            self.0.tell_user("exec in", &task, e).await;
        }
        started
    }

    async fn start_planned(
        &self,
        id: &str,
        exec: &str,
        stdio: Stdio,
        donated: Donated,
    ) -> Result<Created, Error> {
        let live = &self.0;
        let task = live.task(id)?;
        let entry = task.exec(exec)?;
        donated.check(entry.has_terminal())?;
        running(&task)?;
        live.may_run("run a command in", id)?;
        entry.process.happen(Happening::Start)?;
        let started = self.fork_exec(&task, exec, &entry, (stdio, donated)).await;
        let state = match &started {
            Ok(_) => entry.process.happen(Happening::Started)?,
            Err(_) => entry.process.happen(Happening::StartFailed)?,
        };
        match &started {
            Ok(created) => live.tell_exec_started(&task, exec, &entry, created.pid, state),
            Err(_) => {
                if !entry.process.has_ended() {
                    entry.process.happen(Happening::Exit)?;
                    entry.process.set_never_ran(255);
                }
            }
        }
        started
    }

    async fn fork_exec(
        &self,
        task: &Rc<Task>,
        name: &str,
        exec: &Rc<Exec>,
        (stdio, donated): (Stdio, Donated),
    ) -> Result<Created, Error> {
        let plan = exec.plan.borrow_mut().take();
        let plan = plan.ok_or(Error::Died { last: "ExecPlan" })?;
        let console = donated.console(self.0.host.config.stage_deadline).await?;
        let donated = donated.lift()?;
        let (mut stage, forked) = self.0.fork_exec(task, &plan, &stdio, &donated)?;
        let mut outcome = Outcome::default();
        let child = forked.as_fd()?;
        self.0
            .until_exec(&mut stage, child, task, &mut outcome)
            .await?;
        drop((stdio, donated));
        ConsoleSocket::take(console, &mut outcome)?;
        let pid = forked.pid()?;
        let child = Rc::new(forked.into_child()?);
        exec.process.set_child(pid, &child);
        self.watch_exec(task, (name.to_owned(), Rc::clone(exec)), child);
        Ok(Created {
            pid,
            terminal: outcome.pty,
        })
    }
}

/// Execs go into a running container only.
fn running(task: &Task) -> Result<(), Error> {
    let state = match (task.kind, task.process.state()) {
        (Kind::Container, State::Running) => return Ok(()),
        (Kind::Container, state) => state.word(),
        (Kind::Sandbox, _) => "the pod's sandbox, in which no command can run",
    };
    let id = task.id.clone();
    Err(Error::NotRunning { id, state })
}

impl Live {
    /// Forks an exec, on the CPUs where it is to begin: the shim goes there and comes back.
    fn fork_exec(
        &self,
        task: &Task,
        plan: &ExecPlan,
        stdio: &Stdio,
        donated: &Lifted,
    ) -> Result<(Stage, Forked), Error> {
        let Some(cpus) = &plan.initial_cpus else {
            return self.fork_into(task, &plan.steps, stdio, donated);
        };
        let own = sched::affinity().map_err(io("sched_getaffinity()"))?;
        sched::set_affinity(&sched::Mask::of(cpus))
            .map_err(io("process.execCPUAffinity.initial: sched_setaffinity()"))?;
        let forked = self.fork_into(task, &plan.steps, stdio, donated);
        sched::set_affinity(&own).map_err(io("sched_setaffinity(own)"))?;
        forked
    }

    /// Forks a process into a container.
    pub(crate) fn fork_into(
        &self,
        task: &Task,
        steps: &[Step],
        stdio: &Stdio,
        donated: &Lifted,
    ) -> Result<(Stage, Forked), Error> {
        let no_container = || Error::NoContainer {
            id: task.id.clone(),
        };
        let cgroup = task.cgroup.borrow();
        let cgroup = cgroup.as_ref().ok_or_else(no_container)?;
        let (tasks, birthplace) = (cgroup.tasks()?, cgroup.birthplace());
        let init = task.process.child().ok_or_else(no_container)?;
        let inside = task.inside.borrow();
        let inside = inside.as_ref().ok_or_else(no_container)?;
        if inside.filter.get().is_none() {
            // Nothing else runs between the check and here.
            let _: Result<(), _> = inside.filter.set(Filter::of(steps)?);
        }
        let (stage, child_end) = Stage::new("Exec", self.host.config.stage_deadline)?;
        let child_end = donated.lift(child_end)?;
        let job = Job {
            steps,
            report: child_end.as_fd(),
            proc: self.host.proc.as_fd(),
            empty: None,
            hinted: None,
            upper_file: None,
            kernel: self.host.kernel,
            pod: self.pod(),
            container: Some(AsFd::as_fd(&*init)),
            devpts: inside.devpts.as_ref().map(AsFd::as_fd),
            stdio: stdio.borrow(),
            sources: Vec::new(),
            pass: donated.pass_files(),
            exec_file: donated.exec_file(),
            tasks: tasks.iter().map(AsFd::as_fd).collect(),
            birthplace,
            filter: inside.filter.get().and_then(Option::as_ref),
        };
        let pidns = self.born_in(inside.pidns.as_fd());
        let forked = Forked::new(berm_stage::spawn(pidns, &job)?);
        Ok((stage, forked))
    }

    fn tell_exec_started(&self, task: &Task, name: &str, exec: &Exec, pid: i32, state: State) {
        if exec.untold {
            return;
        }
        let (id, name) = (task.id.clone(), name.to_owned());
        self.tell(Event::ExecStarted {
            id: id.clone(),
            exec: name.clone(),
            pid,
        });
        if let (State::Stopped, Some(exit)) = (state, exec.process.exit()) {
            self.tell(Event::Exited {
                id,
                exec: Some(name),
                exit,
            });
        }
    }
}
