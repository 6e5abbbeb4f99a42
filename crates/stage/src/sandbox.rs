//! The first process of a sandbox: cloned by a stage child, it becomes `berm-init`.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berm_plan::{Ids, Sysctl, SysctlWriter};
use berm_sys::process::{self, Fork, clone3, flags, setns};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsmount, fsopen, mount_change, move_mount, unmount,
};
use rustix::process::{
    DumpableBehavior, Signal, chdir, pivot_root, set_dumpable_behavior,
    set_parent_process_death_signal,
};

use crate::error::{Error, call, sys};
use crate::join::{join_cgroups, set_oom_score_adj, write_proc};
use crate::report::{Message, send};
use crate::spawn::finish;

/// Where the user namespace comes from.
#[derive(Clone, Copy, Debug)]
pub enum UserNs<'a> {
    /// A new one with the pod's maps.
    New,
    /// One that exists.
    Join(BorrowedFd<'a>),
    /// The caller's.
    Host,
}

/// Where another namespace comes from.
#[derive(Clone, Copy, Debug)]
pub enum Namespace<'a> {
    /// A new one, owned by the pod's user namespace.
    New,
    /// One that exists, entered with the host's credentials.
    Join(BorrowedFd<'a>),
    /// The caller's.
    Host,
}

impl<'a> Namespace<'a> {
    const fn flag(self, flag: u64) -> u64 {
        if matches!(self, Self::New) { flag } else { 0 }
    }

    const fn fd(self) -> Option<BorrowedFd<'a>> {
        match self {
            Self::Join(fd) => Some(fd),
            Self::New | Self::Host => None,
        }
    }
}

/// What the sandbox's first process is made of.
#[derive(Debug)]
pub struct SandboxJob<'a> {
    /// The child's end of the channel.
    pub report: BorrowedFd<'a>,
    /// The host's `/proc`, O_PATH.
    pub proc: BorrowedFd<'a>,
    /// The empty mount namespace.
    pub empty: BorrowedFd<'a>,
    /// `berm-init`, sealed.
    pub init: BorrowedFd<'a>,
    /// `tasks` of each v1 hierarchy of the sandbox's cgroup, open for writing.
    pub tasks: Vec<BorrowedFd<'a>>,
    /// The cgroup's directory on cgroup2: the child is born in it.
    pub birthplace: Option<BorrowedFd<'a>>,
    /// User namespace.
    pub userns: UserNs<'a>,
    /// Id maps of the pod.
    pub ids: &'a Ids,
    /// Network namespace.
    pub netns: Namespace<'a>,
    /// IPC namespace.
    pub ipcns: Namespace<'a>,
    /// UTS namespace.
    pub utsns: Namespace<'a>,
    /// A PID namespace of the pod's own; false: the one that the child is born in.
    pub new_pidns: bool,
    /// Sysctls of the pod's own namespaces.
    pub sysctls: &'a [Sysctl],
    /// Host name.
    pub hostname: Option<&'a str>,
    /// Domain name.
    pub domainname: Option<&'a str>,
    /// Score of PID 1.
    pub oom_score_adj: Option<i32>,
    /// PID 1 dies with the caller; it says [`Message::Created`] once that is sure, and waits.
    pub attached: bool,
}

impl SandboxJob<'_> {
    /// A's life: joins what needs the host's credentials, clones the first process, writes its
    /// id maps, tells its pidfd, ends.
    pub(crate) fn run(&self) -> Infallible {
        let (step, made) = self.walk();
        finish(self.report, 1, step, made)
    }

    fn walk(&self) -> (&'static str, Result<(), Error>) {
        if let Err(e) = self.prepare() {
            return ("SandboxJoin", Err(e));
        }
        ("SandboxClone", self.clone_init())
    }

    fn prepare(&self) -> Result<(), Error> {
        self.seal()?;
        join_cgroups(&self.tasks)?;
        if let Some(score) = self.oom_score_adj {
            set_oom_score_adj(self.proc, score, self.report)?;
        }
        if let Some(ipcns) = self.ipcns.fd() {
            setns(ipcns, flags::NEWIPC).map_err(sys("setns(ipcns, CLONE_NEWIPC)"))?;
        }
        if let Some(utsns) = self.utsns.fd() {
            setns(utsns, flags::NEWUTS).map_err(sys("setns(utsns, CLONE_NEWUTS)"))?;
        }
        if let Some(netns) = self.netns.fd() {
            setns(netns, flags::NEWNET).map_err(sys("setns(netns, CLONE_NEWNET)"))?;
            self.write_sysctls(SysctlWriter::Host)?;
        }
        setns(self.empty, flags::NEWNS).map_err(sys("setns(empty, CLONE_NEWNS)"))
    }

    fn seal(&self) -> Result<(), Error> {
        set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .map_err(call("prctl(PR_SET_DUMPABLE, 0)"))?;
        let mut keep = vec![self.report, self.proc, self.empty, self.init];
        keep.extend(&self.tasks);
        keep.extend(
            [self.netns, self.ipcns, self.utsns]
                .into_iter()
                .filter_map(Namespace::fd),
        );
        if let UserNs::Join(fd) = self.userns {
            keep.push(fd);
        }
        process::close_all_but(&keep).map_err(sys("close_range()"))
    }

    fn write_sysctls(&self, writer: SysctlWriter) -> Result<(), Error> {
        for s in self.sysctls.iter().filter(|s| s.writer == writer) {
            write_proc(
                self.proc,
                &format!("sys/{}", s.path),
                &s.value_for(self.ids),
            )?;
        }
        Ok(())
    }

    fn clone_init(&self) -> Result<(), Error> {
        let mut new = flags::PARENT
            | flags::NEWNS
            | self.netns.flag(flags::NEWNET)
            | self.ipcns.flag(flags::NEWIPC)
            | self.utsns.flag(flags::NEWUTS);
        if self.new_pidns {
            new |= flags::NEWPID;
        }
        match self.userns {
            UserNs::Host => {}
            UserNs::New => new |= flags::NEWUSER,
            UserNs::Join(fd) => {
                setns(fd, flags::NEWUSER).map_err(sys("setns(userns, CLONE_NEWUSER)"))?;
                process::set_ids(0, 0, &[]).map_err(sys("setresuid(0)"))?;
            }
        }
        let (gate, init_end) = crate::channel().map_err(call("socketpair()"))?;
        match clone3(new).map_err(sys("clone3(sandbox)"))? {
            (Fork::Child, _) => {
                drop(gate);
                let step = self.become_init(&init_end);
                finish(self.report, 2, "SandboxInit", step)
            }
            (Fork::Parent(pid), pidfd) => {
                drop(init_end);
                let pidfd = pidfd.ok_or(Error::Missing { what: "pidfd" })?;
                send(self.report, &Message::Init, Some(pidfd.as_fd()))
                    .map_err(call("sendmsg(pidfd)"))?;
                if matches!(self.userns, UserNs::New) {
                    let Ids { uids, gids } = self.ids;
                    write_proc(self.proc, &format!("{pid}/uid_map"), &uids.to_kernel())?;
                    write_proc(self.proc, &format!("{pid}/gid_map"), &gids.to_kernel())?;
                }
                gate.open().map_err(call("send(gate)"))
            }
        }
    }

    /// The first process, on its way to `berm-init`: root of the pod, inside all namespaces.
    fn become_init(&self, gate: &OwnedFd) -> Result<(), Error> {
        if !crate::report::wait_at_gate(gate.as_fd()) {
            return Err(Error::Orphaned);
        }
        process::set_ids(0, 0, &[]).map_err(sys("setresuid(0)"))?;
        set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .map_err(call("prctl(PR_SET_DUMPABLE, 0)"))?;
        if let Some(name) = self.hostname {
            rustix::system::sethostname(name.as_bytes()).map_err(call("sethostname()"))?;
        }
        if let Some(name) = self.domainname {
            process::set_domainname(name.as_bytes()).map_err(sys("setdomainname()"))?;
        }
        if matches!(self.netns, Namespace::New) {
            berm_sys::net::loopback_up().map_err(sys("ioctl(lo, SIOCSIFFLAGS, IFF_UP)"))?;
            self.write_sysctls(SysctlWriter::Host)?;
        }
        self.write_sysctls(SysctlWriter::Pod)?;
        // Nested user namespaces are where most kernel bugs are reached from. A pod without one of
        // its own would set the host's limit.
        if !matches!(self.userns, UserNs::Host) {
            write_proc(self.proc, "sys/user/max_user_namespaces", "0")?;
        }
        if self.attached {
            self.attach()?;
        }
        // Before it is in the record nobody but its parent could end it.
        if !crate::report::wait_at_gate(self.report) {
            return Err(Error::Orphaned);
        }
        self.exec_init()
    }

    /// Asks to be killed when the caller dies, and tells it so.
    ///
    /// The caller gives its word at the gate only after that, so it cannot have died before: a
    /// process whose parent is outside of its PID namespace has no other way to tell, because
    /// getppid(2) says 0. Nothing that follows makes the kernel forget the signal: the ids stay,
    /// capabilities are only given up, and `berm-init` is no set-user-ID program.
    fn attach(&self) -> Result<(), Error> {
        set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(call("prctl(PR_SET_PDEATHSIG, SIGKILL)"))?;
        send(self.report, &Message::Created, None).map_err(call("sendmsg(attached)"))
    }

    fn exec_init(&self) -> Result<(), Error> {
        crate::keyring::join(None)?;
        crate::credentials::drop_bounding(0)?;
        process::set_capabilities(0, 0, 0).map_err(sys("capset(none)"))?;
        rustix::thread::set_no_new_privs(true).map_err(call("prctl(PR_SET_NO_NEW_PRIVS)"))?;
        crate::stdio::null_stdio()?;
        // berm-init takes its signals one by one. Blocked from here on, because one that comes
        // before it says so itself would be lost: PID 1 has no default actions.
        berm_sys::signal::block_all().map_err(sys("sigprocmask(SIG_SETMASK)"))?;
        let argv = [CString::from(c"berm-init")];
        process::fexecve(self.init, &argv, &[]).map_err(sys("execveat(berm-init)"))?;
        Ok(())
    }
}

/// Makes the empty mount namespace and sends its nsfs file.
pub(crate) fn make_empty(report: BorrowedFd<'_>) -> Result<(), Error> {
    process::unshare(flags::NEWNS).map_err(sys("unshare(CLONE_NEWNS)"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(call("mount(\"/\", MS_REC|MS_PRIVATE)"))?;
    // Opened before the old root goes: the new one has no /proc.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = openat(CWD, "/proc", flags, Mode::empty()).map_err(call("open(\"/proc\")"))?;
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(call("fsopen(tmpfs)"))?;
    fsconfig_create(&context).map_err(call("fsconfig(tmpfs, CMD_CREATE)"))?;
    let root = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .map_err(call("fsmount(tmpfs)"))?;
    for name in berm_mount::EMPTY_DIRS {
        mkdirat(&root, name, Mode::from_raw_mode(0o555)).map_err(call("mkdirat()"))?;
    }
    let at = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    // Any directory that is sure to exist will do: the old root is dropped with it.
    move_mount(&root, "", CWD, "/proc", at).map_err(call("move_mount(tmpfs)"))?;
    chdir("/proc").map_err(call("chdir(new root)"))?;
    pivot_root(".", ".").map_err(call("pivot_root()"))?;
    unmount(".", UnmountFlags::DETACH).map_err(call("umount2(old root)"))?;
    let own = openat(
        &proc,
        "self/ns/mnt",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(call("open(\"/proc/self/ns/mnt\")"))?;
    send(report, &Message::Init, Some(own.as_fd())).map_err(call("sendmsg(mntns)"))
}
