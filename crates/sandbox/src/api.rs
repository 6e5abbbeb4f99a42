//! The values that callers hand in and get back.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::SystemTime;

pub use berm_plan::RootfsMount;
use berm_plan::{RootfsUpper, Spec};

use crate::donated::Donated;
use crate::user_log::UserLog;

/// What a new sandbox is made from.
///
/// Fields of gVisor's `Args` that are elsewhere here, or are none:
///
/// | gVisor | here |
/// |---|---|
/// | `BundleDir` | `bundle` |
/// | `Cgroup` | the spec's `linux.cgroupsPath`: the library makes the cgroup, limits and removes it |
/// | `ConsoleSocket`, `PassFiles`, `ExecFile` | [`Donated`], of a container and of an exec: a sandbox itself runs nothing |
/// | `MountsFile` | [`ContainerArgs::mounts_file`], for the caller: there is no sentry that waits for it |
/// | `MountHints` | annotations of the spec; the record tells them |
/// | `IOFiles` | [`ContainerArgs::io_files`]: what a mount shows, and no connection to a gofer, which nobody needs |
/// | `DevIOFile` | none: the stage child makes `/dev` itself, as a tmpfs with the nodes of the spec |
/// | `GoferMountConfs` | none: each mount is made in one way, which the plan says; `berm explain` and [`ContainerArgs::mounts_file`] tell it |
/// | `GoferFilestoreFiles` | [`Args::rootfs_upper`] says where they are; the upper layer is a directory or a tmpfs there, and needs no file behind it |
/// | `SinkFiles` | none: sinks come with a trace session, by the control socket |
#[derive(Debug)]
pub struct Args {
    /// Sandbox id; one path component.
    pub id: String,
    /// containerd's namespace (`k8s.io`, `default`); one path component.
    pub namespace: String,
    /// The bundle directory of the sandbox task.
    pub bundle: PathBuf,
    /// The sandbox's spec.
    pub spec: Spec,
    /// The sandbox dies with the process that makes it, however that ends: PID 1 is killed, and
    /// with it every process of the pod. What is left then are cgroups and records, for
    /// [`crate::cleanup`] or [`crate::sweep_dead`]. A pod without a PID namespace of its own is
    /// refused. The caller makes the sandbox on its main thread: the kernel goes by the thread.
    pub attached: bool,
    /// Where it is told why the sandbox, a container or an exec cannot run: one line each, time
    /// and text, up to 1 MiB. `None`: where the configuration says ([`crate::Config::user_log`]).
    pub user_log: Option<UserLog>,
    /// Where what containers write to their root file systems goes; `None`: as the configuration
    /// has it. Annotation `dev.berm.rootfs_upper` of an allowed pod wins over both.
    pub rootfs_upper: Option<RootfsUpper>,
}

impl Args {
    /// What every sandbox needs, and nothing that few ask for.
    pub fn new(
        id: impl Into<String>,
        namespace: impl Into<String>,
        bundle: impl Into<PathBuf>,
        spec: Spec,
    ) -> Self {
        Self {
            id: id.into(),
            namespace: namespace.into(),
            bundle: bundle.into(),
            spec,
            attached: false,
            user_log: None,
            rootfs_upper: None,
        }
    }
}

/// What a container is made from.
#[derive(Debug)]
pub struct ContainerArgs {
    /// Container id.
    pub id: String,
    /// Its bundle directory.
    pub bundle: PathBuf,
    /// Its spec.
    pub spec: Spec,
    /// Root file system; empty: the spec's `root.path` as it is.
    pub rootfs: Vec<RootfsMount>,
    /// The task wants a terminal; `stdio` is empty then.
    pub terminal: bool,
    /// What becomes 0, 1 and 2 of the process.
    pub stdio: Stdio,
    /// What else it is given.
    pub donated: Donated,
    /// Sources of bind mounts in place of the paths that the spec names: the first is of the root
    /// file system, the others are of `mounts`, in their order; `None`, or none at the end: by
    /// path. Each is a directory or a file of the host, opened with O_PATH, or a detached mount
    /// (open_tree(2), fsmount(2); from Linux 6.15 on). It gets the pod's ids and is locked as ever.
    pub io_files: Vec<Option<OwnedFd>>,
    /// Gets the spec's mounts as one JSON array once the container is created, with the paths that
    /// they have: links of the image are followed in `destination`, those of the host in the
    /// `source` of a bind mount. One that another mount covers keeps the spec's path.
    pub mounts_file: Option<OwnedFd>,
}

impl ContainerArgs {
    /// What every container needs: the spec's own root file system, no terminal, no streams.
    pub fn new(id: impl Into<String>, bundle: impl Into<PathBuf>, spec: Spec) -> Self {
        Self {
            id: id.into(),
            bundle: bundle.into(),
            spec,
            rootfs: Vec::new(),
            terminal: false,
            stdio: Stdio::default(),
            donated: Donated::default(),
            io_files: Vec::new(),
            mounts_file: None,
        }
    }
}

/// The three standard streams of a process; an absent one is `/dev/null`.
///
/// Each end belongs to the process alone: it is an `open()` of its own or a pipe end, because
/// flags of a shared open file description would change on both sides.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Read end, blocking.
    pub stdin: Option<OwnedFd>,
    /// Write end, blocking.
    pub stdout: Option<OwnedFd>,
    /// Write end, blocking.
    pub stderr: Option<OwnedFd>,
}

impl Stdio {
    pub(crate) fn borrow(&self) -> [Option<BorrowedFd<'_>>; 3] {
        [&self.stdin, &self.stdout, &self.stderr].map(|fd| fd.as_ref().map(AsFd::as_fd))
    }
}

/// A process that was just made.
#[derive(Debug)]
pub struct Created {
    /// Its pid on the host.
    pub pid: i32,
    /// The master of its terminal, non-blocking.
    pub terminal: Option<OwnedFd>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Host pid that it had; 0 if it never ran.
    pub pid: i32,
    /// Exit code, or 128 + signal.
    pub status: u32,
    /// When the kernel told.
    pub at: SystemTime,
}

/// A container's or an exec's state, in the words of the OCI spec and of containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Being made; not visible to clients yet.
    Creating,
    /// Made, not started.
    Created,
    /// Running.
    Running,
    /// Frozen.
    Paused,
    /// Ended, not deleted.
    Stopped,
}

impl Status {
    /// The word of the OCI spec; `paused` is containerd's.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// State of one process as `State` answers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessState {
    /// Bundle of its container.
    pub bundle: PathBuf,
    /// Host pid; stays after the exit; 0 before an exec is started.
    pub pid: i32,
    /// Status.
    pub status: Status,
    /// Set once it ended.
    pub exit: Option<Exit>,
}

/// A process of a container as `Pids` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pid {
    /// Host pid.
    pub pid: i32,
    /// The exec that it is the first process of.
    pub exec: Option<String>,
}

/// What happened in a sandbox, in the order in which it did; each exactly once. Of a container that
/// [`crate::Sandbox::create_subcontainer`] made, only [`crate::Sandbox::stream_events`] tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A container was made (`TaskCreate`).
    Created {
        /// Container.
        id: String,
        /// Host pid.
        pid: i32,
    },
    /// A container runs (`TaskStart`).
    Started {
        /// Container.
        id: String,
        /// Host pid.
        pid: i32,
    },
    /// An exec was announced (`TaskExecAdded`).
    ExecAdded {
        /// Container.
        id: String,
        /// Exec.
        exec: String,
    },
    /// An exec runs (`TaskExecStarted`).
    ExecStarted {
        /// Container.
        id: String,
        /// Exec.
        exec: String,
        /// Host pid.
        pid: i32,
    },
    /// A process ended (`TaskExit`); a container's comes after those of its execs.
    Exited {
        /// Container.
        id: String,
        /// Exec; `None` for the container itself.
        exec: Option<String>,
        /// How.
        exit: Exit,
    },
    /// The kernel killed a process of the container for want of memory (`TaskOOM`).
    Oom {
        /// Container.
        id: String,
    },
    /// Frozen (`TaskPaused`).
    Paused {
        /// Container.
        id: String,
    },
    /// Thawed (`TaskResumed`).
    Resumed {
        /// Container.
        id: String,
    },
    /// A container was deleted (`TaskDelete`).
    Deleted {
        /// Container.
        id: String,
        /// How it had ended.
        exit: Exit,
    },
}

impl Event {
    /// The container that it happened to.
    pub(crate) fn container(&self) -> &str {
        match self {
            Self::Created { id, .. }
            | Self::Started { id, .. }
            | Self::ExecAdded { id, .. }
            | Self::ExecStarted { id, .. }
            | Self::Exited { id, .. }
            | Self::Oom { id }
            | Self::Paused { id }
            | Self::Resumed { id }
            | Self::Deleted { id, .. } => id,
        }
    }
}
