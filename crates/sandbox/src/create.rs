//! Creating a sandbox.

use std::borrow::Cow;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use berm_cgroup::{Cgroup, Place};
use berm_plan::{HostShares, Ids, Namespace, NetDevice, PodFacts, PodPlan, TaskKind, UserNs};
use berm_stage::SandboxJob;
use rustix::fs::{Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use crate::api::{Args, Event};
use crate::aside::Aside;
use crate::cleanup::cleanup_left;
use crate::error::{Error, call};
use crate::events::Listeners;
use crate::exits::undo_cgroup;
use crate::hints;
use crate::host::Host;
use crate::ids::{self, Range};
use crate::live::{Live, Sandbox};
use crate::namespace;
use crate::pause::Pauses;
use crate::phases;
use crate::process::{Identity, boot_id};
use crate::record::{Intent, Isolation, Record, StateDir, check_id, relative};
use crate::refused::Asked;
use crate::scope::{self, Holder};
use crate::stage::{Forked, Outcome, Stage};
use crate::state::Happening;
use crate::task::{Kind, Limits, Task};
use crate::user_log::UserLog;

impl Sandbox {
    /// Creates a sandbox: PID 1 runs when this returns.
    ///
    /// For a CRI sandbox the task of that id is then `Created`; for a root container's spec only
    /// the sandbox is made, and [`Sandbox::create_container`] with the same id follows.
    /// # Errors
    /// The plan's refusal; `AlreadyExists`; `FailedPrecondition` for the spec of a container that
    /// belongs to another sandbox; the stage's step that failed. Nothing is left behind then.
    pub async fn create(
        host: Rc<Host>,
        mut args: Args,
        events: UnboundedSender<Event>,
    ) -> Result<Self, Error> {
        let log = match args.user_log.take() {
            None => UserLog::of_pod(&host.config, &args.spec)?,
            given => given,
        };
        let created = Self::create_sandbox(&host, &args, events).await;
        match (&created, log) {
            (Ok(sandbox), Some(log)) => {
                // It has none yet.
                let _: Result<(), UserLog> = sandbox.0.user_log.set(log);
            }
            (Ok(_), None) => {}
            (Err(e), log) => {
                let asked = Asked::sandbox(&args.id, &args.namespace, &args.spec);
                asked.keep(&host.config.state_dir, e);
                if let Some(log) = log {
                    let what = format!("create sandbox {:?}", args.id);
                    log.tell(&what, e, host.config.stage_deadline).await;
                }
            }
        }
        created
    }

    async fn create_sandbox(
        host: &Rc<Host>,
        args: &Args,
        events: UnboundedSender<Event>,
    ) -> Result<Self, Error> {
        check_id(&args.id)?;
        if let TaskKind::Container { .. } = args.spec.kind() {
            return Err(Error::WithoutSandbox {
                id: args.id.clone(),
            });
        }
        let facts = PodFacts {
            host_paths: host.own_among(args.spec.namespace_paths()),
            volumes_without_idmap: host.lacks_idmaps_for(&args.spec),
            volumes: hints::volumes(&args.spec),
        };
        let mut policy = Cow::Borrowed(&host.config.policy);
        if let Some(upper) = &args.rootfs_upper {
            policy.to_mut().rootfs_upper = upper.clone();
        }
        let plan = berm_plan::pod(&args.spec, &policy, &facts)?;
        if args.attached && plan.pidns != Namespace::New {
            return Err(Error::NotAttachable {
                id: args.id.clone(),
            });
        }
        phases::done("plan");
        let state_dir = Self::state_dir(host, args)?;
        let mut making = Making::new(host, args, &plan, state_dir).await?;
        phases::done("cgroup");
        let sandbox = match making.make(host, args, &plan, events).await {
            Ok(live) => Self(Rc::new(live)),
            Err(e) => {
                making.undo(host).await;
                return Err(e);
            }
        };
        let cgroup = making.keep();
        if plan.pause {
            let limits = Limits {
                in_force: plan.resources,
                device_rules: plan.device_rules,
            };
            sandbox.add_sandbox_task(args, limits, cgroup)?;
        }
        sandbox.watch_init();
        if let Err(e) = sandbox.finish(&plan.net_devices).await {
            sandbox.destroy().await;
            return Err(e);
        }
        phases::done("proc");
        if plan.pause {
            sandbox.0.tell(Event::Created {
                id: args.id.clone(),
                pid: sandbox.0.record.pid,
            });
        }
        Ok(sandbox)
    }

    /// The sandbox's directory. What a dead owner or another boot has left there, of the same
    /// name, is cleaned up first: its containerd may never do it.
    fn state_dir(host: &Host, args: &Args) -> Result<StateDir, Error> {
        let create = || StateDir::create(&host.config.state_dir, &args.namespace, &args.id);
        match create() {
            Err(Error::SandboxExists { .. }) => {
                cleanup_left(&host.config, &args.namespace, &args.id)?;
                create()
            }
            created => created,
        }
    }

    fn add_sandbox_task(
        &self,
        args: &Args,
        limits: Limits,
        cgroup: Option<Cgroup>,
    ) -> Result<(), Error> {
        let live = &self.0;
        let task = Task::new(&args.id, args.bundle.clone(), Kind::Sandbox);
        task.process.set_child(live.record.pid, &live.init);
        task.process.happen(Happening::Made)?;
        *task.cgroup.borrow_mut() = cgroup;
        *task.limits.borrow_mut() = limits;
        live.tasks.borrow_mut().insert(args.id.clone(), task);
        Ok(())
    }

    /// What is made once PID 1 runs.
    async fn finish(&self, devices: &[NetDevice]) -> Result<(), Error> {
        self.mount_proc().await?;
        if !devices.is_empty() {
            self.take_net_devices(devices).await?;
        }
        self.make_hinted().await?;
        self.serve_control()
    }

    /// Moves devices of the node into the sandbox's network namespace.
    async fn take_net_devices(&self, devices: &[NetDevice]) -> Result<(), Error> {
        let live = &self.0;
        let moving = Aside::begin("NetDevices", live.host.config.stage_deadline, |report| {
            berm_stage::spawn_net_devices(live.pod(), live.host.proc.as_fd(), devices, report)
        })?;
        moving.end_well("NetDevices").await
    }

    /// Mounts a whole `/proc` in the sandbox's mount namespace.
    async fn mount_proc(&self) -> Result<(), Error> {
        let live = &self.0;
        let mounting = Aside::begin("MountProc", live.host.config.stage_deadline, |report| {
            let pidns = live.born_in(live.pidns.as_fd());
            berm_stage::spawn_sandbox_proc(pidns, live.pod(), report)
        })?;
        mounting.end().await.map(drop)
    }
}

/// Which of the pod's namespaces are the host's.
fn shares(plan: &PodPlan) -> HostShares {
    let host = |ns: &Namespace| *ns == Namespace::Host;
    HostShares {
        net: host(&plan.netns),
        ipc: host(&plan.ipcns),
        uts: host(&plan.utsns),
        pid: host(&plan.pidns),
    }
}

fn host_namespaces(shares: HostShares) -> Vec<String> {
    let all = [
        ("net", shares.net),
        ("pid", shares.pid),
        ("ipc", shares.ipc),
        ("uts", shares.uts),
    ];
    let shared = all.into_iter().filter(|(_, shared)| *shared);
    shared.map(|(name, _)| name.to_owned()).collect()
}

/// What a process that is forked now begins with.
fn own_oom_score_adj(host: &Host) -> Result<i32, Error> {
    let mut text = [0; 16];
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let read = openat(&host.proc, "self/oom_score_adj", flags, Mode::empty())
        .and_then(|file| rustix::io::read(file, &mut text));
    let read = read.map_err(call("read(/proc/self/oom_score_adj)"))?;
    let number = std::str::from_utf8(&text[..read]).ok();
    let number = number.and_then(|text| text.trim_end().parse().ok());
    number.ok_or(Error::Call {
        call: "parse(/proc/self/oom_score_adj)",
        source: Errno::INVAL,
    })
}

/// A namespace of the pod to be.
#[derive(Debug)]
enum Ns {
    New,
    Host,
    Join(OwnedFd),
}

impl Ns {
    /// Opens what the plan names.
    fn open(plan: &Namespace, name: &'static str) -> Result<Self, Error> {
        Ok(match plan {
            Namespace::New => Self::New,
            Namespace::Host => Self::Host,
            Namespace::Path(path) => Self::Join(namespace::open_foreign(path, name)?),
        })
    }

    fn for_stage(&self) -> berm_stage::Namespace<'_> {
        match self {
            Self::New => berm_stage::Namespace::New,
            Self::Host => berm_stage::Namespace::Host,
            Self::Join(fd) => berm_stage::Namespace::Join(fd.as_fd()),
        }
    }
}

/// A sandbox on its way: what is undone on drop until it lives.
struct Making {
    /// The first has ids 0 to 65535, the others those of the plan's `extra_ids`.
    ranges: Vec<Range>,
    ids: Ids,
    userns: Option<OwnedFd>,
    netns: Ns,
    pidns: Ns,
    ipcns: Ns,
    utsns: Ns,
    cgroup: Option<Cgroup>,
    /// Keeps a scope of systemd's until PID 1 is in it.
    holder: Option<Holder>,
    /// Last: while it stands, whoever comes after a crash finds the rest by it.
    state_dir: StateDir,
}

/// PID 1, which waits for the word that it is in the record.
struct Cloned {
    stage: Stage,
    cloner: Forked,
    init: Forked,
}

impl Cloned {
    /// Lets it become `berm-init`; one that is `attached` has first said that it dies with us.
    async fn go(mut self, attached: bool) -> Result<Forked, Error> {
        if attached {
            let mut outcome = Outcome::default();
            self.stage.listen(&mut outcome).await?;
            if !outcome.at_gate {
                return Err(Error::Died {
                    last: "SandboxInit",
                });
            }
        }
        self.stage.open().await?;
        self.cloner.reap();
        Ok(self.init)
    }

    /// Why it cannot be described: if it is dead already, it has said so itself.
    async fn reason(self, error: Error) -> Error {
        let alive = self.init.pid().is_ok_and(|pid| Identity::of(pid).is_some());
        if alive {
            return error;
        }
        let said = self.stage.listen(&mut Outcome::default()).await;
        said.err().unwrap_or(error)
    }
}

impl Making {
    async fn new(
        host: &Host,
        args: &Args,
        plan: &PodPlan,
        state_dir: StateDir,
    ) -> Result<Self, Error> {
        let place = Self::place(args, plan)?;
        let recorded = place.as_ref().and_then(|p| host.recorded(&p.path));
        state_dir.intend(&Intent::new(recorded)?)?;
        let (ranges, ids, userns) = match &plan.userns {
            UserNs::Auto => match &host.nested {
                Some(nested) => (Vec::new(), nested.ids.clone(), None),
                None => {
                    let ranges = Self::ranges(host, args, plan)?;
                    let ids = ids::of(&ranges);
                    (ranges, ids, None)
                }
            },
            UserNs::Mapped(ids) => (Vec::new(), ids.clone(), None),
            UserNs::Path(path, ids) => {
                let fd = namespace::open_foreign(path, "user")?;
                (Vec::new(), ids.clone(), Some(fd))
            }
            UserNs::Host(_) => (Vec::new(), Ids::default(), None),
        };
        let netns = Ns::open(&plan.netns, "net")?;
        let pidns = Ns::open(&plan.pidns, "pid")?;
        let ipcns = Ns::open(&plan.ipcns, "ipc")?;
        let utsns = Ns::open(&plan.utsns, "uts")?;
        let mut making = Self {
            ranges,
            ids,
            userns,
            netns,
            pidns,
            ipcns,
            utsns,
            cgroup: None,
            holder: None,
            state_dir,
        };
        let Some(place) = place else {
            return Ok(making);
        };
        let (cgroup, holder) = host.make_cgroup(&place, &plan.resources).await?;
        let limited = cgroup.limit(&plan.resources);
        (making.cgroup, making.holder) = (Some(cgroup), holder);
        match limited {
            Ok(()) => Ok(making),
            Err(e) => {
                making.undo(host).await;
                Err(e.into())
            }
        }
    }

    /// Ids of the node's pool: 0 to 65535, and those beyond that the spec names.
    fn ranges(host: &Host, args: &Args, plan: &PodPlan) -> Result<Vec<Range>, Error> {
        let blocks = std::iter::once(&0).chain(&plan.extra_ids);
        blocks
            .map(|first| Range::allocate(&host.config, args, *first))
            .collect()
    }

    /// The cgroup of PID 1. In a pod of one the spec's cgroup is the container's, and PID 1, a
    /// few kB, stays where the shim is.
    fn place(args: &Args, plan: &PodPlan) -> Result<Option<Place>, Error> {
        plan.pause
            .then(|| scope::place(args.spec.cgroups_path(), &args.id))
            .transpose()
    }

    /// PID 1 goes its way only once it is in the record: if the caller dies before, PID 1 ends by
    /// itself; after, it is found.
    async fn make(
        &mut self,
        host: &Rc<Host>,
        args: &Args,
        plan: &PodPlan,
        events: UnboundedSender<Event>,
    ) -> Result<Live, Error> {
        let cloned = self.clone_init(host, args, plan).await?;
        phases::done("clone");
        let (userns, mut record) = match self.describe(host, args, plan, &cloned.init) {
            Ok(described) => described,
            Err(e) => return Err(cloned.reason(e).await),
        };
        record.register_metrics(&host.config);
        self.state_dir.write(&record)?;
        let init = cloned.go(args.attached).await?;
        phases::done("init");
        self.live(host, plan, (init, userns), record, events)
    }

    fn describe(
        &self,
        host: &Host,
        args: &Args,
        plan: &PodPlan,
        init: &Forked,
    ) -> Result<(OwnedFd, Record), Error> {
        let pid = init.pid()?;
        let userns = namespace::open(pid, "user")?;
        let record = self.record(host, args, plan, pid, userns.as_fd())?;
        Ok((userns, record))
    }

    async fn clone_init(&self, host: &Host, args: &Args, plan: &PodPlan) -> Result<Cloned, Error> {
        let (stage, child_end) = Stage::new("Sandbox", host.config.stage_deadline)?;
        let tasks = self.cgroup.as_ref().map_or(Ok(Vec::new()), Cgroup::tasks)?;
        let birthplace = self.cgroup.as_ref().and_then(Cgroup::birthplace);
        let job = SandboxJob {
            report: child_end.as_fd(),
            proc: host.proc.as_fd(),
            empty: host.empty()?,
            init: host.init()?,
            tasks: tasks.iter().map(AsFd::as_fd).collect(),
            birthplace,
            userns: match (&self.userns, &plan.userns) {
                (_, UserNs::Host(_)) => berm_stage::UserNs::Host,
                (None, _) => berm_stage::UserNs::New,
                (Some(fd), _) => berm_stage::UserNs::Join(fd.as_fd()),
            },
            ids: &self.ids,
            netns: self.netns.for_stage(),
            ipcns: self.ipcns.for_stage(),
            utsns: self.utsns.for_stage(),
            new_pidns: matches!(self.pidns, Ns::New),
            sysctls: &plan.sysctls,
            hostname: plan.hostname.as_deref(),
            domainname: plan.domainname.as_deref(),
            oom_score_adj: plan.oom_score_adj,
            attached: args.attached,
        };
        let pidns = match &self.pidns {
            Ns::New | Ns::Host => None,
            Ns::Join(fd) => Some(host.born_in(fd.as_fd())),
        };
        let cloner = Forked::new(berm_stage::spawn_sandbox(pidns, &job)?);
        drop(job);
        drop((child_end, tasks));
        let init = stage.listen_for_init().await?;
        Ok(Cloned {
            stage,
            cloner,
            init,
        })
    }

    /// The values that live on, once PID 1 runs.
    fn live(
        &mut self,
        host: &Rc<Host>,
        plan: &PodPlan,
        (init, userns): (Forked, OwnedFd),
        record: Record,
        events: UnboundedSender<Event>,
    ) -> Result<Live, Error> {
        let pid = record.pid;
        let pidns = namespace::open(pid, "pid")?;
        let mntns = namespace::open(pid, "mnt")?;
        let namespaces = namespace::all_of(pid)?;
        let init = Rc::new(init.into_child()?);
        Ok(Live {
            host: Rc::clone(host),
            namespaces,
            ids: self.ids.clone(),
            mntns,
            pidns,
            userns: (!matches!(plan.userns, UserNs::Host(_))).then_some(userns),
            owns_pidns: matches!(self.pidns, Ns::New),
            shares: shares(plan),
            init,
            user_log: OnceCell::new(),
            tasks: RefCell::new(BTreeMap::new()),
            destroyed: RefCell::default(),
            events,
            counts: record.registered_metrics.is_some().then(Box::default),
            hinted: RefCell::default(),
            ending: Cell::new(false),
            gone: watch::Sender::new(false),
            released: Cell::new(false),
            oom_around: RefCell::new(None),
            pauses: Pauses::default(),
            forwards: Rc::new(()),
            listeners: Listeners::default(),
            root: !plan.pause,
            rootfs_upper: plan.rootfs_upper.clone(),
            hostname: plan.hostname.clone(),
            domainname: plan.domainname.clone(),
            record,
            state_dir: RefCell::new(self.state_dir.keep()),
        })
    }

    /// The sandbox lives: it frees the ids, its task has the cgroup.
    fn keep(mut self) -> Option<Cgroup> {
        self.ranges.iter_mut().for_each(Range::keep);
        let mut cgroup = self.cgroup.take();
        if let Some(cgroup) = &mut cgroup {
            cgroup.keep();
        }
        cgroup
    }

    /// Ends what was cloned and frees what was made; the ids last.
    async fn undo(mut self, host: &Host) {
        let deadline = host.config.kill_deadline;
        if let Some(cgroup) = self.cgroup.take() {
            undo_cgroup(cgroup, deadline).await;
        }
    }

    fn record(
        &self,
        host: &Host,
        args: &Args,
        plan: &PodPlan,
        pid: i32,
        userns: BorrowedFd<'_>,
    ) -> Result<Record, Error> {
        let gone = || Error::Died {
            last: "SandboxInit",
        };
        let init = Identity::of(pid).ok_or_else(gone)?;
        let owner = Identity::of(std::process::id().cast_signed()).ok_or_else(gone)?;
        let kind = match plan.userns {
            UserNs::Auto if host.nested.is_some() => "rootless",
            UserNs::Auto => "auto",
            UserNs::Mapped(_) => "mapped",
            UserNs::Path(..) => "path",
            UserNs::Host(_) => "none",
        };
        let because = match plan.userns {
            UserNs::Host(because) => Some(because.as_str().to_owned()),
            _ => None,
        };
        let cgroup = self.cgroup.as_ref().map(Cgroup::path);
        let ids = match &host.nested {
            Some(nested) if plan.userns == UserNs::Auto => &nested.outside,
            _ => &self.ids,
        };
        Ok(Record {
            version: Record::version(),
            engine: "native".to_owned(),
            id: args.id.clone(),
            containerd_namespace: args.namespace.clone(),
            pod_name: plan.pod_name.clone().unwrap_or_default(),
            namespace: plan.pod_namespace.clone().unwrap_or_default(),
            pid,
            start_time: init.start_time,
            uid: ids.uids.to_host(0).unwrap_or(0),
            gid: ids.gids.to_host(0).unwrap_or(0),
            cgroup: relative(cgroup.and_then(|path| host.recorded(path))),
            original_oom_score_adj: own_oom_score_adj(host)?,
            control_socket_path: self.state_dir.path().join("control.sock"),
            bundle: args.bundle.clone(),
            owner,
            boot: boot_id()?,
            mount_hints: plan.hints.clone(),
            isolation: Isolation {
                userns: kind.to_owned(),
                because,
                host_namespaces: host_namespaces(shares(plan)),
                ids: ids.clone(),
                range: self.ranges.first().map(Range::index),
                extra_ranges: self.ranges.iter().skip(1).map(Range::index).collect(),
                owns_netns: self.owns_netns(userns)?,
            },
            registered_metrics: None,
            metric_metadata: None,
            metric_server_address: None,
        })
    }

    /// True if the pod's user namespace owns its network namespace: what it made itself, and what
    /// CRI made inside the pinned user namespace of a `hostUsers: false` pod.
    fn owns_netns(&self, userns: BorrowedFd<'_>) -> Result<bool, Error> {
        let netns = match &self.netns {
            Ns::New => return Ok(true),
            Ns::Host => return Ok(false),
            Ns::Join(netns) => netns,
        };
        let owner = berm_sys::process::owner_of_namespace(netns.as_fd())
            .map_err(crate::error::io("ioctl(netns, NS_GET_USERNS)"))?;
        let inode = |fd: BorrowedFd<'_>| fstat(fd).map(|s| s.st_ino).map_err(call("fstat(nsfs)"));
        Ok(inode(owner.as_fd())? == inode(userns)?)
    }
}
