//! The walk: one flat match from step to call.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use berm_mount::{HostNode, Null, Owner, Scratch, Tree};
use berm_plan::{Scheduling, Step};
use berm_sys::mount::{SetAttr, attr};
use berm_sys::process::{self, Fork, clone3, flags};
use berm_sys::sched::{self, SchedAttr};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, PidfdFlags, chdir, getpid, pidfd_open, set_dumpable_behavior, setpgid, umask,
};
use rustix::thread::{CapabilitiesSecureBits, set_capabilities_secure_bits};

use crate::error::{Error, call, sys};
use crate::exec::Program;
use crate::filter::Filter;
use crate::report::{Message, send, wait_at_gate, write_alone};
use crate::spawn::finish;
use crate::{Job, credentials, exec, join, keyring, label, netdev, stdio};

/// A stage child and what its steps have made so far.
pub(crate) struct Child<'a> {
    job: &'a Job<'a>,
    /// What the writable layer over the root file system lies on.
    upper: Option<OwnedFd>,
    tree: Option<Tree>,
    root: Option<OwnedFd>,
    slave: Option<OwnedFd>,
    null: Option<OwnedFd>,
    /// What is bound as the container's devices, where none can be made.
    host_nodes: Vec<HostNode>,
    locked: Option<OwnedFd>,
    program: Option<Program<'a>>,
    home: Option<String>,
    filter: Option<Filter>,
    /// SELinux context of new file systems.
    label: Option<&'a str>,
    /// A working directory that root of the pod may not enter; tried again as the user.
    late_cwd: Option<PathBuf>,
}

impl<'a> Child<'a> {
    pub(crate) fn new(job: &'a Job<'a>) -> Self {
        Self {
            job,
            upper: None,
            tree: None,
            root: None,
            slave: None,
            null: None,
            host_nodes: Vec::new(),
            locked: None,
            program: None,
            home: None,
            filter: None,
            label: None,
            late_cwd: None,
        }
    }

    /// Walks all steps; the last one replaces the process.
    pub(crate) fn run(mut self) -> Infallible {
        let total = self.job.steps.len();
        for (at, step) in self.job.steps.iter().enumerate() {
            if let Err(error) = self.apply(step) {
                finish(self.job.report, at + 1, step.name(), Err(error))
            }
        }
        finish(
            self.job.report,
            total,
            "Exec",
            Err(Error::Missing { what: "Exec step" }),
        )
    }

    fn apply(&mut self, step: &'a Step) -> Result<(), Error> {
        let job = self.job;
        match step {
            Step::Seal => self.seal(),
            Step::MountLabel(label) => {
                self.label = Some(label);
                label::of_mounts(job.proc, label)
            }
            Step::JoinCgroups => join::join_cgroups(&job.tasks),
            Step::OomScoreAdj(score) => join::set_oom_score_adj(job.proc, *score, job.report),
            Step::Cpus(cpus) => sched::set_affinity(&sched::Mask::of(cpus))
                .map_err(sys("process.execCPUAffinity.final: sched_setaffinity()")),
            Step::IoPriority(value) => {
                sched::set_io_priority(*value).map_err(sys("process.ioPriority: ioprio_set()"))
            }
            Step::Scheduling(scheduling) => sched::set_scheduler(0, attr_of(scheduling))
                .map_err(sys("process.scheduler: sched_setattr()")),
            Step::NetDevices(devices) => netdev::give(job.proc, job.pod.init, devices, job.report),
            Step::JoinNetIpc => process::setns(job.pod.init, flags::NEWNET | flags::NEWIPC)
                .map_err(sys("setns(pod, CLONE_NEWNET|CLONE_NEWIPC)")),
            Step::RootfsUpper(fs) => {
                self.upper = Some(berm_mount::upper(*fs, job.upper_file, self.owner())?);
                Ok(())
            }
            Step::Rootfs(rootfs) => {
                let upper = self.upper.take();
                let root = berm_mount::rootfs(rootfs, upper, self.owner(), self.scratch()?)?;
                self.tree = Some(Tree::new(root));
                Ok(())
            }
            Step::Mount(mount) => {
                let built = berm_mount::build(mount, self.owner(), self.scratch()?)?;
                self.tree()?.push(mount.target.clone(), built);
                Ok(())
            }
            Step::Pty { size, uid } => self.open_pty(*size, *uid),
            Step::Assemble => self.assemble(None),
            Step::AssembleAt(path) => self.assemble(Some(path)),
            Step::Devices(devices) => {
                let bound = std::mem::take(&mut self.host_nodes);
                let to_host = |uid, gid| self.to_host(uid, gid).ok();
                Ok(berm_mount::devices(
                    self.root()?,
                    devices,
                    &bound,
                    self.owner(),
                    to_host,
                )?)
            }
            Step::ReadonlyMounts(paths) => Ok(berm_mount::readonly_mounts(self.root()?, paths)?),
            Step::Links(links) => Ok(berm_mount::links(self.root()?, links, self.owner())?),
            Step::Console => {
                let slave = self
                    .slave
                    .as_ref()
                    .ok_or(Error::Missing { what: "terminal" })?;
                Ok(berm_mount::console(
                    self.root()?,
                    slave.as_fd(),
                    self.owner(),
                )?)
            }
            Step::MakeDir(path) => Ok(berm_mount::make_dir_as(self.root()?, path, self.owner())?),
            Step::Mask(paths) => Ok(berm_mount::mask(
                self.root()?,
                paths,
                self.null_for_masks(),
                self.owner(),
            )?),
            Step::ReadonlyPaths(paths) => Ok(berm_mount::readonly(self.root()?, paths)?),
            Step::ReadonlyRoot => {
                let change = SetAttr {
                    set: attr::RDONLY,
                    ..SetAttr::default()
                };
                berm_sys::mount::set_attr(self.root()?, false, change, None)
                    .map_err(sys("mount_setattr(\"/\", MOUNT_ATTR_RDONLY)"))
            }
            Step::Pivot => Ok(berm_mount::pivot(self.root()?)?),
            Step::StdioOwner(uid, gid) => {
                let (uid, gid) = self.to_host(*uid, *gid)?;
                stdio::own(&job.stdio, uid, gid)
            }
            Step::Rlimits(limits) => credentials::set_rlimits(limits, job.report),
            Step::TimeNs(offsets) => join::new_clocks(job.proc, offsets),
            Step::JoinPod => join::join_pod(job.pod.init, job.pod.userns.is_some()),
            Step::NewKeyring(name) => keyring::make(name),
            Step::JoinKeyring(name) => keyring::join(Some(name)),
            Step::LockMounts { cgroupns } => {
                self.locked = Some(join::lock_mounts(job.proc, *cgroupns)?);
                Ok(())
            }
            Step::CloneInit { own_pidns } => self.clone_init(*own_pidns),
            Step::Session => stdio::new_session(self.slave.as_ref().map(AsFd::as_fd)),
            Step::Hooks => {
                send(job.report, &Message::Hooks, None).map_err(call("sendmsg(hooks)"))?;
                wait_at_gate(job.report)
                    .then_some(())
                    .ok_or(Error::Orphaned)
            }
            Step::PivotLocked => {
                self.root = Some(berm_mount::pivot_locked()?);
                Ok(())
            }
            Step::RootPropagation(change) => Ok(berm_mount::propagate(
                &berm_mount::own_root()?,
                Path::new("/"),
                *change,
            )?),
            Step::MountProc { target, attr, over } => {
                let locked = self
                    .locked
                    .as_ref()
                    .ok_or(Error::Missing { what: "mount ns" })?;
                Ok(berm_mount::attach_proc(
                    target,
                    *attr,
                    job.pod.mntns,
                    locked.as_fd(),
                    over,
                )?)
            }
            Step::MaskProc(paths) => Ok(berm_mount::mask(
                berm_mount::own_root()?.as_fd(),
                paths,
                &Null::Container,
                self.owner(),
            )?),
            Step::ReadonlyProc(paths) => Ok(berm_mount::readonly(
                berm_mount::own_root()?.as_fd(),
                paths,
            )?),
            Step::ExecLabel(label) => label::set(job.proc, label),
            Step::Stdio => self.install_stdio(),
            Step::ResolveExec {
                command,
                path,
                cwd,
                home_of,
            } => {
                self.program = Some(match job.exec_file {
                    Some(file) => exec::check_file(file).map(|()| Program::File(file))?,
                    None => Program::Path(exec::resolve(command, path.as_deref(), cwd)?),
                });
                self.home = home_of.map(exec::home);
                Ok(())
            }
            Step::Gate => self.wait_at_gate(),
            Step::JoinContainer { timens } => {
                let init = job.container.ok_or(Error::Missing { what: "container" })?;
                join::join_container(init, job.pod.userns.is_some(), *timens)
            }
            Step::Umask(mask) => {
                umask(Mode::from_raw_mode(*mask));
                Ok(())
            }
            Step::Cwd(path) => self.enter_cwd(path),
            Step::MemoryPolicy(policy) => sched::set_memory_policy(policy.mode, &policy.nodes)
                .map_err(sys("linux.memoryPolicy: set_mempolicy()")),
            Step::Personality(domain) => {
                sched::set_personality(*domain).map_err(sys("linux.personality: personality()"))
            }
            Step::Bounding(keep) => credentials::drop_bounding(*keep),
            Step::User { uid, gid, groups } => {
                credentials::become_user(*uid, *gid, groups)?;
                self.late_cwd
                    .take()
                    .map_or(Ok(()), |path| change_dir(&path))
            }
            Step::Capabilities {
                sets,
                keep_sys_admin,
            } => credentials::set_capabilities(sets, *keep_sys_admin),
            Step::NoNewPrivs => {
                rustix::thread::set_no_new_privs(true).map_err(call("prctl(PR_SET_NO_NEW_PRIVS)"))
            }
            Step::Seccomp(profile) => {
                let listener = match self.filter.as_ref().or(job.filter) {
                    Some(filter) => filter.install()?,
                    None => Filter::compile(profile)?.install()?,
                };
                listener.map_or(Ok(()), |listener| self.hand_over(listener))
            }
            Step::Exec { args, env } => {
                let program = self.program.take();
                let program = program.ok_or(Error::Missing { what: "command" })?;
                exec::exec(&program, args, env, self.home.take())
            }
        }
    }

    fn owner(&self) -> Owner<'a> {
        self.job.pod.owner(self.label)
    }

    /// Without root the container's is the host's own, bound before.
    fn null_for_masks(&self) -> &'static Null {
        match self.job.pod.nested {
            true => &Null::Container,
            false => &Null::Make,
        }
    }

    fn empty(&self) -> Result<BorrowedFd<'a>, Error> {
        let what = "empty mount namespace";
        self.job.empty.ok_or(Error::Missing { what })
    }

    fn scratch(&self) -> Result<Scratch<'a>, Error> {
        Ok(Scratch {
            kernel: self.job.kernel,
            proc: self.job.proc,
            empty: self.empty()?,
            hinted: self.job.hinted,
        })
    }

    fn to_host(&self, uid: u32, gid: u32) -> Result<(u32, u32), Error> {
        let ids = self.job.pod.ids;
        let user = ids
            .uids
            .to_host(uid)
            .ok_or(Error::IdOutsideMap { id: uid })?;
        let group = ids
            .gids
            .to_host(gid)
            .ok_or(Error::IdOutsideMap { id: gid })?;
        Ok((user, group))
    }

    fn tree(&mut self) -> Result<&mut Tree, Error> {
        self.tree.as_mut().ok_or(Error::Missing { what: "rootfs" })
    }

    fn root(&self) -> Result<BorrowedFd<'_>, Error> {
        self.root.as_ref().map(AsFd::as_fd).ok_or(Error::Missing {
            what: "assembled tree",
        })
    }

    fn seal(&mut self) -> Result<(), Error> {
        set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .map_err(call("prctl(PR_SET_DUMPABLE, 0)"))?;
        set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)
            .map_err(call("prctl(PR_SET_SECUREBITS)"))?;
        umask(Mode::empty());
        process::close_all_but(&self.job.descriptors()).map_err(sys("close_range()"))?;
        // Opened while /dev is still the host's.
        self.null = Some(stdio::open_null()?);
        if self.job.pod.nested {
            self.host_nodes = host_nodes(self.job.steps)?;
        }
        Ok(())
    }

    fn open_pty(&mut self, size: Option<(u16, u16)>, uid: u32) -> Result<(), Error> {
        let (uid, _) = self.to_host(uid, 0)?;
        let inside = self
            .tree
            .as_ref()
            .and_then(|t| t.find(Path::new("/dev/pts")));
        let devpts = self
            .job
            .devpts
            .or(inside)
            .ok_or(Error::Missing { what: "/dev/pts" })?;
        let pty = stdio::open_pty(devpts, uid, size)?;
        send(self.job.report, &Message::Pty, Some(pty.master.as_fd()))
            .map_err(call("sendmsg(pty)"))?;
        self.slave = Some(pty.slave);
        Ok(())
    }

    fn assemble(&mut self, at: Option<&Path>) -> Result<(), Error> {
        let tree = self.tree.take().ok_or(Error::Missing { what: "rootfs" })?;
        if let Some(devpts) = tree.find(Path::new("/dev/pts")) {
            send(self.job.report, &Message::Devpts, Some(devpts))
                .map_err(call("sendmsg(devpts)"))?;
        }
        self.root = Some(match at {
            Some(path) => tree.assemble_at(path, self.owner())?,
            None => tree.assemble(self.empty()?, self.owner())?,
        });
        Ok(())
    }

    /// A clones B and ends; B returns from here and goes on.
    ///
    /// Both are root of the pod by now, whose other processes may kill either at any time: so B
    /// hands over its pidfd itself, and until then it can be found by A's process group.
    fn clone_init(&self, own_pidns: bool) -> Result<(), Error> {
        let new = if own_pidns { flags::NEWPID } else { 0 };
        setpgid(None, None).map_err(call("setpgid(0, 0)"))?;
        match clone3(flags::PARENT | new).map_err(sys("clone3(CLONE_PARENT|CLONE_NEWPID)"))? {
            (Fork::Child, _) => {
                let own =
                    pidfd_open(getpid(), PidfdFlags::empty()).map_err(call("pidfd_open(self)"))?;
                send(self.job.report, &Message::Init, Some(own.as_fd()))
                    .map_err(call("sendmsg(pidfd)"))
            }
            (Fork::Parent(_), _) => process::exit(0),
        }
    }

    fn install_stdio(&mut self) -> Result<(), Error> {
        let null = self.null.as_ref().ok_or(Error::Missing {
            what: "null device",
        })?;
        let slave = self.slave.as_ref().map(AsFd::as_fd);
        let stream = |n: usize| slave.or(self.job.stdio[n]).unwrap_or(null.as_fd());
        stdio::install([stream(0), stream(1), stream(2)])?;
        let mut keep = vec![self.job.report];
        keep.extend(self.job.of_workload());
        process::close_all_but(&keep).map_err(sys("close_range()"))?;
        for (number, fd) in &self.job.pass {
            process::place(*fd, *number).map_err(|source| Error::PassFile {
                guest: *number,
                source,
            })?;
        }
        // Closed just now: their owners must not close those numbers once more.
        for fd in [
            self.slave.take(),
            self.null.take(),
            self.locked.take(),
            self.root.take(),
        ] {
            std::mem::forget(fd);
        }
        Ok(())
    }

    fn wait_at_gate(&mut self) -> Result<(), Error> {
        // Compiled before the gate: Start has less to do.
        self.filter = Filter::of(self.job.steps)?;
        send(self.job.report, &Message::Created, None).map_err(call("sendmsg(created)"))?;
        if wait_at_gate(self.job.report) {
            Ok(())
        } else {
            Err(Error::Orphaned)
        }
    }

    /// Tells the parent where the filter's listener is, and waits until it has passed it on.
    ///
    /// The filter holds by now, and whoever answers has nothing to answer by: no call may be made
    /// but write(2), which a plan keeps from being notified of, until the parent has the listener.
    /// It stays open until execve.
    fn hand_over(&self, listener: OwnedFd) -> Result<(), Error> {
        let number = listener.into_raw_fd();
        write_alone(self.job.report, &Message::Listener(number))
            .map_err(call("write(listener)"))?;
        wait_at_gate(self.job.report)
            .then_some(())
            .ok_or(Error::Orphaned)
    }

    fn enter_cwd(&mut self, path: &Path) -> Result<(), Error> {
        match chdir(path) {
            Err(Errno::ACCESS) => {
                self.late_cwd = Some(path.to_owned());
                Ok(())
            }
            done => done.map_err(|source| Error::Chdir {
                path: path.to_owned(),
                source,
            }),
        }
    }
}

/// The host's nodes for every device of the plan.
fn host_nodes(steps: &[Step]) -> Result<Vec<HostNode>, Error> {
    let mut all = Vec::new();
    for step in steps {
        if let Step::Devices(devices) = step {
            all.extend(berm_mount::host_nodes(devices)?);
        }
    }
    Ok(all)
}

fn change_dir(path: &Path) -> Result<(), Error> {
    chdir(path).map_err(|source| Error::Chdir {
        path: path.to_owned(),
        source,
    })
}

/// The kernel's form of a plan's scheduling.
pub fn attr_of(scheduling: &Scheduling) -> SchedAttr {
    SchedAttr {
        policy: scheduling.policy,
        flags: scheduling.flags,
        nice: scheduling.nice,
        priority: scheduling.priority,
        runtime_ns: scheduling.runtime_ns,
        deadline_ns: scheduling.deadline_ns,
        period_ns: scheduling.period_ns,
    }
}
