//! The steps that turn a forked child into a container, an exec or a sandbox.
//!
//! A plan is a list of these; the room `stage` walks it with one flat `match`. The order is
//! data: it is tested as a table, printed by `berm explain`, and an error names its step.

use std::path::PathBuf;
use std::sync::Arc;

use berm_seccomp::Profile;
use serde::{Deserialize, Serialize};

use crate::ids::Ids;

/// How a mount's attributes are set (mount_setattr(2)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    /// Read-only.
    pub ro: bool,
    /// No set-user-id.
    pub nosuid: bool,
    /// No device nodes.
    pub nodev: bool,
    /// No execution.
    pub noexec: bool,
    /// No symbolic links are followed.
    pub nosymfollow: bool,
    /// No access times of directories.
    pub nodiratime: bool,
    /// Access times.
    pub atime: Atime,
}

/// Access time updates of a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Atime {
    /// As the source of a bind mount has it; else the kernel's default, which is `relatime`.
    #[default]
    Inherit,
    /// `relatime`
    Relatime,
    /// `noatime`
    Noatime,
    /// `strictatime`
    Strictatime,
}

/// Attributes of a mount and of all below it (mount_setattr(2) with `AT_RECURSIVE`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recursive {
    /// `MOUNT_ATTR_*` bits to set.
    pub set: u64,
    /// Bits to clear; the bits of access times only together.
    pub clear: u64,
}

/// What happens to mounts that the host makes below the source later on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// They stay outside.
    Private,
    /// They show up in the container (`HostToContainer`), with the host's ids.
    Slave,
    /// And mounts of the container show up on the host (`Bidirectional`).
    Shared,
    /// They stay outside, and the mount cannot be the source of another one.
    Unbindable,
}

/// A change of propagation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Propagate {
    /// To what.
    pub kind: Propagation,
    /// Of the mounts below as well.
    pub recursive: bool,
}

/// Which id map a bind mount gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Idmap {
    /// The pod's own: host id 0 of a file is root inside.
    Pod,
    /// One of the mount's own: `inside` is the id on disk, `outside` the host's number of whom
    /// it belongs to.
    Own {
        /// The map.
        ids: Ids,
        /// Of the mounts below as well.
        recursive: bool,
    },
    /// None: ids show as they are on the host (file systems that show no ids of people).
    None,
}

/// One cgroup directory that a container sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupView {
    /// Name below `/sys/fs/cgroup`; empty on pure v2: the directory itself.
    pub name: String,
    /// Further names of the same hierarchy, made as links (`cpu` -> `cpu,cpuacct`).
    pub links: Vec<String>,
    /// The container's directory in the host's hierarchy.
    pub host_dir: PathBuf,
}

/// How far a clock of a container is off the node's (time_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeOffset {
    /// Which.
    pub clock: Clock,
    /// Seconds, may be negative.
    pub secs: i64,
    /// Nanoseconds on top, below 1,000,000,000.
    pub nanosecs: u32,
}

/// A clock that a time namespace has of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Clock {
    /// `CLOCK_MONOTONIC` and those like it
    Monotonic,
    /// `CLOCK_BOOTTIME` and those like it
    Boottime,
}

/// Which cgroup namespace a container gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupNs {
    /// A new one: its cgroup is its root.
    New,
    /// The host's.
    Host,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// A directory or file of the host.
    Bind {
        /// Path in the host's mount namespace.
        path: PathBuf,
        /// With the mounts below it.
        recursive: bool,
        /// Id map.
        idmap: Idmap,
    },
    /// A new tmpfs, owned by root of the pod.
    Tmpfs {
        /// Options as fsconfig(2) takes them, flags with an empty value;
        /// ids, if there are any, are the host's numbers.
        options: Vec<(String, String)>,
        /// The spec names no mode: it is that of the directory which the mount covers, if there
        /// is one.
        mode_of_target: bool,
        /// Starts with a copy of what the mount covers.
        copy_up: bool,
    },
    /// The tmpfs of the pod that the hint of this name asks for.
    Hinted {
        /// See [`PodTmpfs::name`].
        name: String,
    },
    /// A new devpts instance. `gid` is the host's number of the group that owns the ttys.
    Devpts {
        /// Group of the slave ends, host's number.
        gid: Option<u32>,
        /// Mode of the slave ends, octal text.
        mode: String,
        /// Mode of `ptmx`, octal text.
        ptmxmode: String,
    },
    /// POSIX message queues of the pod's IPC namespace.
    Mqueue,
    /// sysfs of the pod's network namespace.
    Sysfs,
    /// A new mount of any other file system that the kernel has, its ids as they are.
    Fs {
        /// Its name in `/proc/filesystems`.
        fs: String,
        /// What mount(8) calls the device; may be empty.
        source: String,
        /// Options as fsconfig(2) takes them, flags with an empty value.
        options: Vec<(String, String)>,
    },
    /// The container's own cgroup directories. Without `ro`, and in a user namespace, its cgroup2
    /// directory belongs to root of the pod.
    Cgroup(Vec<CgroupView>),
}

/// A tmpfs that is made once for a pod and mounted in its containers, because of a hint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodTmpfs {
    /// Name of the hint; one path component.
    pub name: String,
    /// The source of the mounts that it stands for: a path of the host, which need not exist.
    pub like: PathBuf,
    /// Its root has the mode of that directory, if there is one.
    pub mode_of_source: bool,
    /// And its owner, as far as the pod's map holds it.
    pub owner_of_source: bool,
    /// Options as fsconfig(2) takes them; ids are the host's numbers.
    pub options: Vec<(String, String)>,
}

/// One mount of the tree that the host builds; all are locked when the container runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Which entry of the spec's `mounts` it is, for errors.
    pub index: usize,
    /// Absolute path in the container.
    pub target: PathBuf,
    /// What is mounted.
    pub source: Source,
    /// Attributes of the mount itself.
    pub attr: Attr,
    /// Attributes of it and of the mounts below.
    pub all: Recursive,
    /// Changes of propagation, in order; a new mount is private.
    pub propagation: Vec<Propagate>,
}

/// The root file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rootfs {
    /// Overlay over idmapped layers; `lower` from top to bottom, as in mount(8)'s `lowerdir=`.
    Overlay {
        /// Lower layers, topmost first.
        lower: Vec<PathBuf>,
        /// Upper and work directory; `None` makes a read-only view.
        upper: Option<(PathBuf, PathBuf)>,
        /// The files of `upper` carry the host's ids of the pod already, as containerd's
        /// snapshotter makes them for `uidmap=`: only the lower layers are idmapped.
        shifted_upper: bool,
        /// Further options for fsconfig(2): (`index`, `off`), flags with an empty value.
        options: Vec<(String, String)>,
    },
    /// A directory of the host, idmapped; `recursive` for one that is mounted already.
    Bind {
        /// Path in the host's mount namespace.
        path: PathBuf,
        /// With the mounts below it.
        recursive: bool,
        /// Read-only view, whatever the spec's `root.readonly` says.
        ro: bool,
    },
    /// A file system of the kernel on a block device, idmapped.
    Fs(DeviceFs),
}

/// A file system of the kernel on a block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFs {
    /// Its name in `/proc/filesystems`.
    pub fs: String,
    /// Path of the device in the host's mount namespace.
    pub source: PathBuf,
    /// `source` is a regular file, which a loop device shows as a block device.
    pub image: Option<Image>,
    /// Options as fsconfig(2) takes them, flags with an empty value.
    pub options: Vec<(String, String)>,
    /// Attributes of the mount; `ro` is the whole file system's.
    pub attr: Attr,
}

/// What the container's own writable layer over its root file system lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpperFs {
    /// A tmpfs.
    Memory {
        /// How much fits; `None`: half of the node's memory.
        size_bytes: Option<u64>,
    },
    /// The ext4 in the file that the host has made: [`crate::ContainerPlan::upper_file`].
    File,
}

/// How a loop device shows a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Past the file's page cache (`LO_FLAGS_DIRECT_IO`).
    pub direct: bool,
}

/// A device node, a fifo, made by the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Absolute path in the container.
    pub path: PathBuf,
    /// Type.
    pub kind: DeviceKind,
    /// Major number; 0 for a fifo.
    pub major: u32,
    /// Minor number; 0 for a fifo.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner inside the pod.
    pub uid: u32,
    /// Group inside the pod.
    pub gid: u32,
}

/// Type of a node (mknod(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// `c`, `u`
    Char,
    /// `b`
    Block,
    /// `p`
    Fifo,
}

/// A resource limit (setrlimit(2)); `u64::MAX` is no limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE` and so on, as in the spec.
    pub name: String,
    /// The kernel's number of it.
    pub resource: u32,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// The five capability sets as bit masks (capabilities(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapSets {
    /// Bounding set.
    pub bounding: u64,
    /// Effective set.
    pub effective: u64,
    /// Permitted set.
    pub permitted: u64,
    /// Inheritable set.
    pub inheritable: u64,
    /// Ambient set.
    pub ambient: u64,
}

/// Scheduling policy and parameters (sched_setattr(2)), in the kernel's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduling {
    /// `SCHED_*`
    pub policy: u32,
    /// `SCHED_FLAG_*`
    pub flags: u64,
    /// Nice value.
    pub nice: i32,
    /// Static priority of a realtime policy.
    pub priority: u32,
    /// For `SCHED_DEADLINE`.
    pub runtime_ns: u64,
    /// For `SCHED_DEADLINE`.
    pub deadline_ns: u64,
    /// For `SCHED_DEADLINE`.
    pub period_ns: u64,
}

/// NUMA memory policy (set_mempolicy(2)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPolicy {
    /// `MPOL_*` with its flags.
    pub mode: u32,
    /// Nodes.
    pub nodes: Vec<u32>,
}

/// A security module that labels processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lsm {
    /// AppArmor: profiles.
    AppArmor,
    /// SELinux: contexts.
    SeLinux,
}

impl Lsm {
    /// The field of a spec that asks for it.
    pub const fn field(self) -> &'static str {
        match self {
            Self::AppArmor => "process.apparmorProfile",
            Self::SeLinux => "process.selinuxLabel",
        }
    }
}

/// What a security module calls the process from its execve on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// Whose.
    pub lsm: Lsm,
    /// Profile or context.
    pub label: String,
}

/// A network device of the node that becomes the pod's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetDevice {
    /// Its name on the node.
    pub name: String,
    /// Its name in the pod.
    pub inside: String,
}

/// One step of a stage child. Paths are the container's unless a field says otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Step {
    // A, born in the pod's PID namespace: the host's credentials, mounts and root.
    /// Nobody inside may look at this process; capabilities survive a change of fsuid.
    Seal,
    /// The SELinux context of every new file system that is made from here on.
    MountLabel(String),
    /// Enters the cgroups of the container.
    JoinCgroups,
    /// Sets the score; a host that may not lower it warns.
    OomScoreAdj(i32),
    /// The CPUs that the process may run on.
    Cpus(Vec<u32>),
    /// Class and level of its I/O, as ioprio_set(2) takes them.
    IoPriority(u16),
    /// Scheduling policy of an exec; that of a container is set by the shim.
    Scheduling(Scheduling),
    /// Moves devices from the node's network namespace into the pod's.
    NetDevices(Vec<NetDevice>),
    /// Enters the pod's network and IPC namespaces with the host's credentials.
    JoinNetIpc,
    /// Mounts what the writable layer over the root file system lies on, detached.
    RootfsUpper(UpperFs),
    /// Builds the root file system as a detached mount, below that layer if there is one.
    Rootfs(Rootfs),
    /// Builds one more detached mount.
    Mount(Mount),
    /// Opens a pseudo terminal on the container's devpts and sends its master to the shim.
    Pty {
        /// Rows and columns of the spec's `consoleSize`.
        size: Option<(u16, u16)>,
        /// Owner of the slave inside the pod.
        uid: u32,
    },
    /// Enters an empty mount namespace and attaches root and mounts, in order.
    Assemble,
    /// Enters a copy of the host's mount namespace and attaches root and mounts, in order, at
    /// this path of the host, where hooks look for them.
    AssembleAt(PathBuf),
    /// Makes device nodes.
    Devices(Vec<Device>),
    /// Makes the mounts at these paths read-only: a tmpfs and `/dev`, in which targets of other
    /// mounts and nodes had to be made before.
    ReadonlyMounts(Vec<PathBuf>),
    /// Makes symbolic links: (path, what it points to). An existing name is left alone.
    Links(Vec<(PathBuf, PathBuf)>),
    /// Binds the terminal's slave over `/dev/console`.
    Console,
    /// Makes the directory if it is missing, as root of the pod.
    MakeDir(PathBuf),
    /// Hides paths outside `/proc`; what does not exist is skipped.
    Mask(Vec<PathBuf>),
    /// Makes paths outside `/proc` read-only; what does not exist is skipped.
    ReadonlyPaths(Vec<PathBuf>),
    /// Makes the root mount read-only.
    ReadonlyRoot,
    /// Makes the tree the root and drops the old one.
    Pivot,
    /// Gives the stdio FDs that are pipes or fifos to the workload's user: (uid, gid) inside.
    StdioOwner(u32, u32),
    /// Sets the limits; a hard limit that the host may not raise warns.
    Rlimits(Vec<Rlimit>),
    /// New clocks for what is cloned from here on, off the node's by so much.
    TimeNs(Vec<TimeOffset>),
    /// Enters the pod's user and UTS namespaces and becomes its root.
    JoinPod,
    /// A new session keyring of this name, of the pod's root: the caller's stays outside.
    NewKeyring(String),
    /// A new mount namespace owned by the pod: every mount flag is locked from here, unless the
    /// pod has no user namespace.
    LockMounts {
        /// What becomes of the cgroup namespace.
        cgroupns: CgroupNs,
    },
    /// Clones B, which goes on with the next step; A ends.
    CloneInit {
        /// In a PID namespace of its own; false: in the pod's.
        own_pidns: bool,
    },

    // B, the workload to be, inside the pod.
    /// New session; the terminal, if there is one, becomes its controlling terminal.
    Session,
    /// Says that the tree stands, and waits while the shim runs the hooks that look at it.
    Hooks,
    /// Makes the tree, which is the working directory, the root and drops the host's.
    PivotLocked,
    /// Changes the propagation of the root, and of all mounts below it.
    RootPropagation(Propagate),
    /// Mounts `/proc` of B's PID namespace.
    MountProc {
        /// Where.
        target: PathBuf,
        /// Attributes.
        attr: Attr,
        /// Paths below it at which the host has mounted something already: it is there again on
        /// the new proc.
        over: Vec<PathBuf>,
    },
    /// Hides paths below `/proc`.
    MaskProc(Vec<PathBuf>),
    /// Makes paths below `/proc` read-only.
    ReadonlyProc(Vec<PathBuf>),
    /// Sets what a security module calls the process from its execve on.
    ExecLabel(Label),
    /// Puts the stdio FDs to 0, 1, 2 and closes every other but those of the stage.
    Stdio,
    /// Looks the command up in the PATH of the container's environment.
    ResolveExec {
        /// `args[0]`.
        command: String,
        /// Value of PATH in the container's environment.
        path: Option<String>,
        /// The working directory, for a command with a slash that is relative.
        cwd: PathBuf,
        /// The environment has no HOME: it becomes that of this user in the container's
        /// `/etc/passwd`, or `/`.
        home_of: Option<u32>,
    },
    /// Says "created" and waits for the shim's word.
    Gate,

    // An exec, born in the container's PID namespace.
    /// Enters all namespaces of the container and becomes root of the pod.
    JoinContainer {
        /// The time namespace too; kernels before 5.8 know none.
        timens: bool,
    },
    /// The session keyring of this name, which is the container's.
    JoinKeyring(String),

    // The end of each: credentials, filters, execve.
    /// File mode creation mask.
    Umask(u32),
    /// Changes to the working directory; tried again as the user if root may not.
    Cwd(PathBuf),
    /// NUMA memory policy.
    MemoryPolicy(MemoryPolicy),
    /// Execution domain (personality(2)).
    Personality(u32),
    /// Drops capabilities from the bounding set.
    Bounding(u64),
    /// Supplementary groups, group and user.
    User {
        /// User id inside.
        uid: u32,
        /// Group id inside.
        gid: u32,
        /// Supplementary groups inside.
        groups: Vec<u32>,
    },
    /// Capabilities and ambient set. `keep_sys_admin`: CAP_SYS_ADMIN stays until execve, which
    /// recomputes it away, because seccomp(2) without no_new_privs wants it.
    Capabilities {
        /// The sets.
        sets: CapSets,
        /// See above.
        keep_sys_admin: bool,
    },
    /// `PR_SET_NO_NEW_PRIVS`.
    NoNewPrivs,
    /// Compiles and installs the filter.
    Seccomp(Arc<Profile>),
    /// Replaces the stage child by the workload.
    Exec {
        /// Arguments, `args[0]` included.
        args: Vec<String>,
        /// Environment.
        env: Vec<String>,
    },
}

impl Step {
    /// The step's name as it stands in errors and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Seal => "Seal",
            Self::MountLabel(_) => "MountLabel",
            Self::JoinCgroups => "JoinCgroups",
            Self::OomScoreAdj(_) => "OomScoreAdj",
            Self::Cpus(_) => "Cpus",
            Self::IoPriority(_) => "IoPriority",
            Self::Scheduling(_) => "Scheduling",
            Self::NetDevices(_) => "NetDevices",
            Self::JoinNetIpc => "JoinNetIpc",
            Self::RootfsUpper(_) => "RootfsUpper",
            Self::Rootfs(_) => "Rootfs",
            Self::Mount(_) => "Mount",
            Self::Pty { .. } => "Pty",
            Self::Assemble => "Assemble",
            Self::AssembleAt(_) => "AssembleAt",
            Self::Devices(_) => "Devices",
            Self::ReadonlyMounts(_) => "ReadonlyMounts",
            Self::Links(_) => "Links",
            Self::Console => "Console",
            Self::MakeDir(_) => "MakeDir",
            Self::Mask(_) => "Mask",
            Self::ReadonlyPaths(_) => "ReadonlyPaths",
            Self::ReadonlyRoot => "ReadonlyRoot",
            Self::Pivot => "Pivot",
            Self::StdioOwner(..) => "StdioOwner",
            Self::Rlimits(_) => "Rlimits",
            Self::TimeNs(_) => "TimeNs",
            Self::JoinPod => "JoinPod",
            Self::NewKeyring(_) => "NewKeyring",
            Self::LockMounts { .. } => "LockMounts",
            Self::CloneInit { .. } => "CloneInit",
            Self::Session => "Session",
            Self::Hooks => "Hooks",
            Self::PivotLocked => "PivotLocked",
            Self::RootPropagation(_) => "RootPropagation",
            Self::MountProc { .. } => "MountProc",
            Self::MaskProc(_) => "MaskProc",
            Self::ReadonlyProc(_) => "ReadonlyProc",
            Self::ExecLabel(_) => "ExecLabel",
            Self::Stdio => "Stdio",
            Self::ResolveExec { .. } => "ResolveExec",
            Self::Gate => "Gate",
            Self::JoinContainer { .. } => "JoinContainer",
            Self::JoinKeyring(_) => "JoinKeyring",
            Self::Umask(_) => "Umask",
            Self::Cwd(_) => "Cwd",
            Self::MemoryPolicy(_) => "MemoryPolicy",
            Self::Personality(_) => "Personality",
            Self::Bounding(_) => "Bounding",
            Self::User { .. } => "User",
            Self::Capabilities { .. } => "Capabilities",
            Self::NoNewPrivs => "NoNewPrivs",
            Self::Seccomp(_) => "Seccomp",
            Self::Exec { .. } => "Exec",
        }
    }
}
