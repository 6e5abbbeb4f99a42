//! Creating a container in a sandbox.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use berm_cgroup::{Cgroup, CgroupPath};
use berm_plan::{ContainerFacts, ContainerPlan, PidNs, Step};
use berm_stage::Job;
use berm_sys::sched::set_scheduler;
use rustix::fs::{AtFlags, CWD, fstat, statat};

use crate::api::{ContainerArgs, Created, Event};
use crate::console::ConsoleSocket;
use crate::error::{Error, io};
use crate::exits::undo_cgroup;
use crate::hooks::{self, Gated};
use crate::io_files;
use crate::live::{Live, Sandbox};
use crate::namespace;
use crate::phases;
use crate::process::{Identity, SIGKILL, signal};
use crate::record::{ContainerRecord, Intent, Record, check_id, relative};
use crate::scope::place;
use crate::stage::{Forked, Outcome, Stage};
use crate::state::Happening;
use crate::task::{Inside, Kind, Limits, Task};

impl Sandbox {
    /// Creates a container: its process waits at its gate when this returns.
    /// # Errors
    /// The plan's refusal; `AlreadyExists`; `Unavailable` when the sandbox has ended; the step
    /// that failed. Nothing is left behind then, other containers are not touched.
    pub async fn create_container(&self, args: ContainerArgs) -> Result<Created, Error> {
        check_id(&args.id)?;
        let live = &self.0;
        if !self.is_running() {
            return Err(Error::SandboxGone { id: args.id });
        }
        if live.tasks.borrow().contains_key(&args.id) {
            return Err(Error::ContainerExists { id: args.id });
        }
        let task = Task::new(&args.id, args.bundle.clone(), Kind::Container);
        live.tasks
            .borrow_mut()
            .insert(args.id.clone(), Rc::clone(&task));
        live.name_for_user(&task, &args.spec);
        let made = match args.donated.check(args.terminal) {
            Ok(()) => self.make_container(&task, args).await,
            Err(e) => Err(e),
        };
        if let Err(e) = &made {
            live.keep_refused("Create", &task.id, e);
            live.tasks.borrow_mut().remove(&task.id);
            live.state_dir.borrow().remove_container(&task.id);
            live.tell_user("create", &task, e).await;
        }
        made
    }

    pub(crate) async fn make_container(
        &self,
        task: &Rc<Task>,
        mut args: ContainerArgs,
    ) -> Result<Created, Error> {
        let live = &self.0;
        let place = place(args.spec.cgroups_path(), &args.id)?;
        let mut plan = self.plan_container(&args, &place.path)?;
        if plan.pidns != PidNs::Own {
            // Without one nothing could end what it leaves behind there.
            let what = "linux.namespaces \"pid\": a PID namespace that containers share";
            live.host.need_cgroups(what)?;
        }
        io_files::put(&mut plan.steps, &args.io_files)?;
        let hooks = plan.hooks.take().map(|hooks| Rc::new(*hooks));
        task.hooks.borrow_mut().clone_from(&hooks);
        phases::done("plan");
        live.state_dir
            .borrow()
            .intend_container(&args.id, &Intent::new(live.host.recorded(&place.path))?)?;
        let (mut cgroup, holder) = live.host.make_cgroup(&place, &plan.resources).await?;
        let made = self.fork_container(task, &mut args, plan, &cgroup).await;
        drop(holder);
        match made {
            Ok(terminal) => {
                cgroup.keep();
                *task.cgroup.borrow_mut() = Some(cgroup);
                let pid = task.process.pid();
                live.tell(Event::Created { id: args.id, pid });
                self.watch_container(task);
                self.watch_oom(task);
                if !self.is_running() {
                    // It was on its way while the others were ended: the kernel ends it with its
                    // PID namespace, unless that is not the pod's.
                    live.kill_first(task);
                }
                Ok(Created { pid, terminal })
            }
            Err(e) => {
                undo_cgroup(cgroup, live.host.config.kill_deadline).await;
                if let Some(hooks) = hooks {
                    live.after_stop(task, &hooks).await;
                }
                Err(e)
            }
        }
    }

    /// Forks the stage children and waits until the container's process is at its gate.
    async fn fork_container(
        &self,
        task: &Rc<Task>,
        args: &mut ContainerArgs,
        plan: ContainerPlan,
        cgroup: &Cgroup,
    ) -> Result<Option<OwnedFd>, Error> {
        let live = &self.0;
        cgroup.limit(&plan.resources)?;
        phases::done("cgroup");
        let (tasks, birthplace) = if plan.joins_late {
            (cgroup.entries()?, None)
        } else {
            (cgroup.tasks()?, cgroup.birthplace())
        };
        let deadline = live.host.config.stage_deadline;
        let console = args.donated.console(deadline).await?;
        let donated = std::mem::take(&mut args.donated).lift()?;
        let (mut stage, child_end) = Stage::new("Create", deadline)?;
        let child_end = donated.lift(child_end)?;
        let upper_file = match &plan.upper_file {
            Some(file) => Some(live.make_upper_file(file).await?),
            None => None,
        };
        let hinted = live.hinted.borrow().clone();
        let job = Job {
            steps: &plan.steps,
            report: child_end.as_fd(),
            proc: live.host.proc.as_fd(),
            kernel: live.host.kernel,
            empty: Some(live.host.empty()?),
            hinted: hinted.as_ref().map(AsFd::as_fd),
            upper_file: upper_file.as_ref().map(AsFd::as_fd),
            pod: live.pod(),
            container: None,
            devpts: None,
            stdio: args.stdio.borrow(),
            sources: args.io_files.iter().flatten().map(AsFd::as_fd).collect(),
            pass: donated.pass_files(),
            exec_file: donated.exec_file(),
            tasks: tasks.iter().map(AsFd::as_fd).collect(),
            birthplace,
            filter: None,
        };
        let target = live.pidns_of(&plan.pidns)?;
        let pidns = live.born_in(target.as_ref().unwrap_or(&live.pidns).as_fd());
        let builder = Forked::new(berm_stage::spawn(pidns, &job)?);
        drop(job);
        drop((child_end, tasks, donated));
        let mut outcome = Outcome::default();
        let mut listened = stage.listen(&mut outcome).await;
        if listened.is_ok() && outcome.at_hooks {
            listened = self
                .run_hooks(task, args, &plan, cgroup, (&mut stage, &mut outcome))
                .await;
        }
        let init = outcome.init.take();
        let at_gate = outcome.at_gate;
        if let (Ok(()), Some(init), true) = (&listened, &init, at_gate) {
            listened = self.hand_out(args, init, console, &mut outcome).await;
        }
        let init = match (listened, init) {
            (Ok(()), Some(init)) if at_gate => init,
            (failed, init) => {
                stage.abandon(builder, init);
                return Err(failed.err().unwrap_or(Error::Died { last: "CloneInit" }));
            }
        };
        builder.reap();
        phases::done("stage");
        self.settle_container(task, args, plan, cgroup.path(), stage, (init, outcome))
    }

    /// The process is at its gate: hands out what others wait for.
    async fn hand_out(
        &self,
        args: &ContainerArgs,
        init: &Forked,
        console: Option<ConsoleSocket>,
        outcome: &mut Outcome,
    ) -> Result<(), Error> {
        if let Some(file) = &args.mounts_file {
            let file = file.as_fd();
            self.0.write_mounts(file, args, init.pid()?).await?;
        }
        ConsoleSocket::take(console, outcome)
    }

    /// The tree stands: runs the hooks that look at it, then lets the process go to its gate.
    async fn run_hooks(
        &self,
        task: &Task,
        args: &ContainerArgs,
        plan: &ContainerPlan,
        cgroup: &Cgroup,
        (stage, outcome): (&mut Stage, &mut Outcome),
    ) -> Result<(), Error> {
        let died = || Error::Died { last: "CloneInit" };
        let hooks = task.hooks.borrow().clone().ok_or_else(died)?;
        let at = Gated {
            init: outcome.init.as_ref().ok_or_else(died)?,
            cgroup,
            bundle: &args.bundle,
            keyring: &plan.exec.keyring,
            root: &root_of(args),
        };
        self.0.before_pivot(&hooks, at).await?;
        stage.go_on(outcome).await
    }

    /// The process is at its gate: records it and puts it into the tables.
    fn settle_container(
        &self,
        task: &Rc<Task>,
        args: &ContainerArgs,
        plan: ContainerPlan,
        cgroup: &CgroupPath,
        stage: Stage,
        (init, outcome): (Forked, Outcome),
    ) -> Result<Option<OwnedFd>, Error> {
        let pid = init.pid()?;
        if let Some(scheduling) = &plan.scheduling {
            // Its number is its own until it is reaped, which only its owner does.
            set_scheduler(pid, berm_stage::attr_of(scheduling))
                .map_err(io("process.scheduler: sched_setattr()"))?;
        }
        let identity = Identity::of(pid).ok_or(Error::Died { last: "Gate" })?;
        let steps = plan.steps.iter().map(|step| step.name().to_owned());
        let steps = steps.collect();
        let label = plan.steps.iter().find_map(|step| match step {
            Step::MountLabel(label) => Some(label.clone()),
            _ => None,
        });
        let inside = Inside {
            base: plan.exec,
            filter: OnceCell::new(),
            pidns: namespace::open(pid, "pid")?,
            devpts: outcome.devpts,
            label,
            pidns_of: plan.pidns,
        };
        self.0
            .state_dir
            .borrow()
            .write_container(&ContainerRecord {
                version: Record::version(),
                id: args.id.clone(),
                init: identity,
                cgroup: relative(self.0.host.recorded(cgroup)),
                bundle: args.bundle.clone(),
                steps,
                rootfs_upper: plan.rootfs_upper,
                poststop: hooks::to_record(task),
            })?;
        *task.limits.borrow_mut() = Limits {
            in_force: plan.resources,
            device_rules: plan.device_rules,
        };
        let child = Rc::new(init.into_child()?);
        task.process.set_child(pid, &child);
        task.process.happen(Happening::Made)?;
        *task.inside.borrow_mut() = Some(inside);
        *task.process.gate.borrow_mut() = Some(stage);
        Ok(outcome.pty)
    }

    fn plan_container(
        &self,
        args: &ContainerArgs,
        path: &CgroupPath,
    ) -> Result<ContainerPlan, Error> {
        let live = &self.0;
        let rootfs = berm_plan::rootfs(&args.rootfs, &root_of(args), &live.ids)?;
        let inode = |path: PathBuf| {
            let inode = statat(CWD, &path, AtFlags::empty()).ok().map(|s| s.st_ino);
            (path, inode)
        };
        let views = live.host.cgroup.views(path).into_iter();
        let facts = ContainerFacts {
            id: args.id.clone(),
            bundle: args.bundle.clone(),
            ids: live.ids.clone(),
            pod: live.namespaces,
            inodes: args.spec.namespace_paths().into_iter().map(inode).collect(),
            owns_netns: live.record.isolation.owns_netns,
            shares: live.shares,
            pidns_of_containers: live.pidns_of_containers(),
            hints: live.record.mount_hints.clone(),
            allow_annotations: live.host.config.policy.allow_annotations.clone(),
            root: live.root && args.id == live.record.id,
            hostname: live.hostname.clone(),
            domainname: live.domainname.clone(),
            rootfs,
            rootfs_upper: live.rootfs_upper.clone(),
            cgroup_views: views
                .map(|v| berm_plan::CgroupView {
                    name: v.name,
                    links: v.links,
                    host_dir: v.host_dir,
                })
                .collect(),
            terminal: args.terminal,
            allow_dead_capabilities: live.host.config.allow_dead_capabilities,
        };
        Ok(berm_plan::container(&args.spec, &facts)?)
    }
}

/// `root.path` as a path of the host.
fn root_of(args: &ContainerArgs) -> PathBuf {
    args.bundle
        .join(args.spec.root_path().unwrap_or(Path::new("rootfs")))
}

impl Live {
    /// The containers that have a PID namespace of their own, by its inode.
    fn pidns_of_containers(&self) -> BTreeMap<u64, String> {
        let inode = |task: &Rc<Task>| {
            let inside = task.inside.borrow();
            let own = inside.as_ref().filter(|i| i.pidns_of == PidNs::Own)?;
            Some((fstat(&own.pidns).ok()?.st_ino, task.id.clone()))
        };
        self.tasks.borrow().values().filter_map(inode).collect()
    }

    /// A file of another container's PID namespace; `None`: a stage child is born in the pod's.
    fn pidns_of(&self, pidns: &PidNs) -> Result<Option<OwnedFd>, Error> {
        let PidNs::Container(id) = pidns else {
            return Ok(None);
        };
        let gone = || Error::NoContainer { id: id.clone() };
        let task = self.task(id)?;
        let inside = task.inside.borrow();
        let target = &inside.as_ref().ok_or_else(gone)?.pidns;
        let clone = target.try_clone().map_err(io("dup(pidns)"))?;
        Ok(Some(clone))
    }

    fn kill_first(&self, task: &Task) {
        let Some(child) = task.process.child() else {
            return;
        };
        match signal(AsFd::as_fd(&*child), SIGKILL) {
            Ok(()) | Err(Error::Finished) => {}
            Err(e) => log::error!("call=KillPod container={} err={:?}", task.id, e.chain()),
        }
    }
}
