//! A living sandbox: what its verbs share.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use berm_cgroup::Cgroup;
use berm_plan::{HostShares, Ids, PodNamespaces, RootfsUpper};
use berm_stage::PidNs;
use tokio::sync::mpsc::UnboundedSender;

use crate::api::Event;
use crate::error::Error;
use crate::events::Listeners;
use crate::host::Host;
use crate::metrics::Counts;
use crate::oom::Around;
use crate::pause::Pauses;
use crate::process::Child;
use crate::record::{Record, StateDir};
use crate::task::{Exec, Process, Task};
use crate::user_log::UserLog;

/// A pod's sandbox.
///
/// All calls are made on one thread, inside a [`tokio::task::LocalSet`]; none may be dropped
/// half-way: a caller that may go away runs them in a task of their own.
#[derive(Clone, Debug)]
pub struct Sandbox(pub(crate) Rc<Live>);

#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) host: Rc<Host>,
    pub(crate) record: Record,
    pub(crate) state_dir: RefCell<StateDir>,
    pub(crate) ids: Ids,
    pub(crate) namespaces: PodNamespaces,
    /// PID 1.
    pub(crate) init: Rc<Child>,
    pub(crate) userns: Option<OwnedFd>,
    pub(crate) mntns: OwnedFd,
    pub(crate) pidns: OwnedFd,
    pub(crate) tasks: RefCell<BTreeMap<String, Rc<Task>>>,
    /// Ids of containers that were destroyed, the last ones.
    pub(crate) destroyed: RefCell<VecDeque<String>>,
    pub(crate) events: UnboundedSender<Event>,
    /// What the events count up; `None`: nobody asked for metrics.
    pub(crate) counts: Option<Box<Counts>>,
    /// The PID namespace is the pod's own: the kernel ends everything in it with PID 1. Otherwise
    /// "PID 1" is a process like any other, and the pod's end is that of its cgroups.
    pub(crate) owns_pidns: bool,
    /// Where it is told why something cannot run.
    pub(crate) user_log: OnceCell<UserLog>,
    /// Which namespaces are the host's.
    pub(crate) shares: HostShares,
    /// The mount namespace of the tmpfses that its hints ask for.
    pub(crate) hinted: RefCell<Option<Rc<OwnedFd>>>,
    /// PID 1 is dead; what the kernel does not end with it is being ended.
    pub(crate) ending: Cell<bool>,
    /// The pod has ended.
    pub(crate) gone: tokio::sync::watch::Sender<bool>,
    /// The records are removed, the ids freed.
    pub(crate) released: Cell<bool>,
    /// What its slice counts of OOM kills, where its containers are scopes of systemd's.
    pub(crate) oom_around: RefCell<Option<Around>>,
    /// Pauses of the pod as a whole.
    pub(crate) pauses: Pauses,
    /// Held by each connection that is forwarded to the pod.
    pub(crate) forwards: Rc<()>,
    /// Who is told the events beside the owner.
    pub(crate) listeners: Listeners,
    /// A pod of one: it ends with its container.
    pub(crate) root: bool,
    /// Where what containers write to their root file systems goes.
    pub(crate) rootfs_upper: RootfsUpper,
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
}

impl Sandbox {
    /// The sandbox's id.
    pub fn id(&self) -> &str {
        &self.0.record.id
    }

    /// The record, as it stands on disk.
    pub fn record(&self) -> &Record {
        &self.0.record
    }

    /// Host pid of a container's first process; `None` for an unknown id.
    pub fn pid(&self, id: &str) -> Option<i32> {
        Some(self.0.task(id).ok()?.process.pid())
    }

    /// True when no container and no sandbox task is left.
    pub fn is_empty(&self) -> bool {
        self.0.tasks.borrow().is_empty()
    }

    /// The ids of all tasks that are left, the sandbox's own among them.
    pub fn tasks(&self) -> Vec<String> {
        self.0.tasks.borrow().keys().cloned().collect()
    }

    /// True while PID 1 runs: a zombie does not.
    pub fn is_running(&self) -> bool {
        !self.0.ending.get() && !*self.0.gone.borrow() && !self.0.init.is_dead()
    }

    /// True for the task that the sandbox ends with: its own, or the container of a pod of one.
    pub fn is_root_container(&self, id: &str) -> bool {
        id == self.id()
    }

    /// The sandbox's cgroup, opened anew: that of its own task, or in a pod of one the container's.
    /// # Errors
    /// `NotFound` while there is none, and once it is removed; `NotSupported` without root.
    pub fn new_cgroup(&self) -> Result<Cgroup, Error> {
        let live = &self.0;
        live.host.need_cgroups("the cgroup of a sandbox")?;
        let path = live
            .task(self.id())?
            .with_cgroup(|cgroup| Ok::<_, Error>(cgroup.path().clone()))?;
        Ok(Cgroup::open(&live.host.cgroup, &path)?)
    }
}

impl Live {
    pub(crate) fn task(&self, id: &str) -> Result<Rc<Task>, Error> {
        let found = self.tasks.borrow().get(id).cloned();
        found.ok_or_else(|| Error::NoContainer { id: id.to_owned() })
    }

    pub(crate) fn target(&self, id: &str, exec: Option<&str>) -> Result<Target, Error> {
        let task = self.task(id)?;
        let exec = exec.map(|exec| task.exec(exec)).transpose()?;
        Ok(Target { task, exec })
    }

    pub(crate) fn tell(&self, event: Event) {
        if let Some(counts) = &self.counts {
            let pause = (!self.root).then_some(self.record.id.as_str());
            counts.count(&event, pause);
        }
        self.tell_listeners(&event);
        let of = self.tasks.borrow().get(event.container()).cloned();
        if of.is_some_and(|task| task.untold) {
            return;
        }
        // Nobody listens any more: the shim is on its way out.
        if self.events.send(event).is_err() {
            log::debug!("call=Event result=NotFound");
        }
    }

    /// For a stage child that is born in a PID namespace of this pod.
    pub(crate) fn born_in<'a>(&'a self, target: BorrowedFd<'a>) -> PidNs<'a> {
        self.host.born_in(target)
    }

    pub(crate) fn pod(&self) -> berm_stage::Pod<'_> {
        berm_stage::Pod {
            init: AsFd::as_fd(&*self.init),
            userns: self.userns.as_ref().map(AsFd::as_fd),
            mntns: self.mntns.as_fd(),
            ids: &self.ids,
            nested: self.host.nested.is_some(),
        }
    }
}

/// A container's first process or one of its execs.
pub(crate) struct Target {
    pub(crate) task: Rc<Task>,
    pub(crate) exec: Option<Rc<Exec>>,
}

impl Target {
    pub(crate) fn process(&self) -> &Process {
        self.exec
            .as_ref()
            .map_or(&self.task.process, |exec| &exec.process)
    }
}
