//! The tables of a sandbox: its containers and their execs.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::SystemTime;

use berm_cgroup::{Cgroup, DeviceRule, Resources, Stats};
use berm_plan::{ExecBase, ExecPlan, Hooks, PidNs, Step};
use berm_stage::Filter;
use tokio::sync::watch;

use crate::api::{Exit, Status};
use crate::error::Error;
use crate::process::Child;
use crate::stage::Stage;
use crate::state::{Happening, State, next};

/// One process with its state: a container's first one, or an exec's.
#[derive(Debug)]
pub(crate) struct Process {
    /// For errors: the container's or the exec's id.
    name: String,
    state: Cell<State>,
    pid: Cell<i32>,
    /// pidfd; stays until the process is forgotten.
    child: RefCell<Option<Rc<Child>>>,
    /// The stage child at its gate.
    pub(crate) gate: RefCell<Option<Stage>>,
    exit: watch::Sender<Option<Exit>>,
}

impl Process {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            state: Cell::new(State::Creating),
            pid: Cell::new(0),
            child: RefCell::new(None),
            gate: RefCell::new(None),
            exit: watch::Sender::new(None),
        }
    }

    pub(crate) fn state(&self) -> State {
        self.state.get()
    }

    /// Moves on in the table.
    pub(crate) fn happen(&self, happening: Happening) -> Result<State, Error> {
        let refused = |refused| Error::State {
            id: self.name.clone(),
            refused,
        };
        let state = next(self.state.get(), happening).map_err(refused)?;
        self.state.set(state);
        Ok(state)
    }

    /// True if the table allows it now.
    pub(crate) fn can(&self, happening: Happening) -> Result<(), Error> {
        let refused = |refused| Error::State {
            id: self.name.clone(),
            refused,
        };
        next(self.state.get(), happening).map(drop).map_err(refused)
    }

    pub(crate) fn set_child(&self, pid: i32, child: &Rc<Child>) {
        self.pid.set(pid);
        *self.child.borrow_mut() = Some(Rc::clone(child));
    }

    pub(crate) fn child(&self) -> Option<Rc<Child>> {
        self.child.borrow().clone()
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid.get()
    }

    pub(crate) fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Tells every waiter, those to come too.
    pub(crate) fn set_exit(&self, exit: Exit) {
        self.exit.send_replace(Some(exit));
    }

    /// The end of a process that never ran.
    pub(crate) fn set_never_ran(&self, status: u32) {
        self.set_exit(Exit {
            pid: self.pid(),
            status,
            at: SystemTime::now(),
        });
    }

    /// Changes when the process ends, or is forgotten.
    pub(crate) fn exits(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.subscribe()
    }

    pub(crate) async fn wait(&self) -> Exit {
        let mut exit = self.exits();
        loop {
            if let Some(exit) = *exit.borrow_and_update() {
                return exit;
            }
            // The sender lives in `self`: it cannot be gone.
            if exit.changed().await.is_err() {
                return Exit {
                    pid: self.pid(),
                    status: 255,
                    at: SystemTime::now(),
                };
            }
        }
    }

    pub(crate) fn status(&self) -> Status {
        match self.state.get() {
            State::Creating => Status::Creating,
            State::Created | State::Starting | State::Ending => Status::Created,
            State::Running => Status::Running,
            State::Paused => Status::Paused,
            State::Stopped | State::Deleted => Status::Stopped,
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.exit().is_some()
    }
}

/// An exec.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) process: Process,
    /// Made by the control socket: containerd did not ask for it and is told nothing of it.
    pub(crate) untold: bool,
    pub(crate) plan: RefCell<Option<ExecPlan>>,
}

impl Exec {
    /// True if it is still to be started, with a terminal.
    pub(crate) fn has_terminal(&self) -> bool {
        let plan = self.plan.borrow();
        let steps = plan.iter().flat_map(|plan| &plan.steps);
        steps
            .into_iter()
            .any(|step| matches!(step, Step::Pty { .. }))
    }
}

/// A container, or the sandbox itself as a task.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) id: String,
    /// What its user calls it, where somebody tells the user anything.
    pub(crate) name: OnceCell<String>,
    pub(crate) bundle: PathBuf,
    pub(crate) process: Process,
    pub(crate) execs: RefCell<BTreeMap<String, Rc<Exec>>>,
    pub(crate) cgroup: RefCell<Option<Cgroup>>,
    /// The limits in force.
    pub(crate) limits: RefCell<Limits>,
    /// The last figures, kept when the container ends: its cgroup may go before they are asked.
    pub(crate) last_stats: RefCell<Option<Stats>>,
    /// OOM kills that were told.
    pub(crate) oom_told: Cell<u64>,
    /// Programs that run at moments of its life; `None`: the usual case.
    pub(crate) hooks: RefCell<Option<Rc<Hooks>>>,
    /// What an exec needs; set when the container is made.
    pub(crate) inside: RefCell<Option<Inside>>,
    pub(crate) kind: Kind,
    /// Made by [`crate::Sandbox::create_subcontainer`]: the sandbox's maker is told nothing of it.
    pub(crate) untold: bool,
    /// Frozen by the pause of the whole pod.
    pub(crate) held: Cell<bool>,
    /// Only one pause, resume, update or delete at a time.
    pub(crate) busy: tokio::sync::Mutex<()>,
}

/// What a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The sandbox task of a CRI pod: its process is PID 1.
    Sandbox,
    /// A container.
    Container,
}

/// What is kept of a container for its execs.
#[derive(Debug)]
pub(crate) struct Inside {
    pub(crate) base: ExecBase,
    /// What the execs' filter was compiled to: 55 µs and 400 names of system calls, once.
    pub(crate) filter: OnceCell<Option<Filter>>,
    pub(crate) pidns: OwnedFd,
    pub(crate) devpts: Option<OwnedFd>,
    /// `linux.mountLabel`
    pub(crate) label: Option<String>,
    pub(crate) pidns_of: PidNs,
}

/// The limits of a task's cgroup.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    /// Of its creation, with every update since.
    pub(crate) in_force: Resources,
    /// What goes behind the device rules of an update.
    pub(crate) device_rules: Vec<DeviceRule>,
}

impl Task {
    pub(crate) fn new(id: &str, bundle: PathBuf, kind: Kind) -> Rc<Self> {
        Self::with(id, bundle, kind, false)
    }

    /// A container that the sandbox's maker is told nothing of.
    pub(crate) fn untold(id: &str, bundle: PathBuf) -> Rc<Self> {
        Self::with(id, bundle, Kind::Container, true)
    }

    fn with(id: &str, bundle: PathBuf, kind: Kind, untold: bool) -> Rc<Self> {
        Rc::new(Self {
            id: id.to_owned(),
            name: OnceCell::new(),
            bundle,
            process: Process::new(id),
            execs: RefCell::default(),
            cgroup: RefCell::default(),
            limits: RefCell::default(),
            last_stats: RefCell::default(),
            oom_told: Cell::new(0),
            hooks: RefCell::default(),
            inside: RefCell::default(),
            kind,
            untold,
            held: Cell::new(false),
            busy: tokio::sync::Mutex::new(()),
        })
    }

    /// Does something with its cgroup.
    /// # Errors
    /// `NotFound` once it has none any more.
    pub(crate) fn with_cgroup<T, E>(
        &self,
        act: impl FnOnce(&Cgroup) -> Result<T, E>,
    ) -> Result<T, Error>
    where
        Error: From<E>,
    {
        let cgroup = self.cgroup.borrow();
        let cgroup = cgroup.as_ref().ok_or_else(|| Error::NoContainer {
            id: self.id.clone(),
        })?;
        Ok(act(cgroup)?)
    }

    /// Lets go on what is frozen.
    pub(crate) fn thaw(&self) -> Result<(), Error> {
        self.with_cgroup(Cgroup::thaw)
    }

    /// True if its cgroup is a scope of systemd's.
    pub(crate) fn is_scope(&self) -> bool {
        let cgroup = self.cgroup.borrow();
        cgroup
            .as_ref()
            .is_some_and(|cgroup| cgroup.unit().is_some())
    }

    pub(crate) fn exec(&self, exec: &str) -> Result<Rc<Exec>, Error> {
        let not_found = || Error::NoExec {
            id: self.id.clone(),
            exec: exec.to_owned(),
        };
        self.execs.borrow().get(exec).cloned().ok_or_else(not_found)
    }
}
