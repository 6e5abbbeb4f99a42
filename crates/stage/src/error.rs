//! What can go wrong in a stage child.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;

use berm_plan::Lsm;
use berm_sys::Kind;
use rustix::io::Errno;

/// A failed step in syscall notation.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error(transparent)]
    Mount(#[from] berm_mount::Error),
    #[error(transparent)]
    Cgroup(#[from] berm_cgroup::Error),
    #[error(transparent)]
    Seccomp(#[from] berm_seccomp::Error),
    #[error("{call}")]
    Call { call: &'static str, source: Errno },
    #[error("{call}")]
    Sys {
        call: &'static str,
        source: io::Error,
    },
    #[error(
        "rootfs_upper: mkfs.ext4 is not on this node, and a layer in a file needs it; install \
         e2fsprogs, or use \"memory\""
    )]
    NoMkfs,
    #[error("rootfs_upper: {call} in {dir:?}; name a directory of ext4 or xfs, or use \"memory\"")]
    UpperFile {
        call: &'static str,
        dir: PathBuf,
        source: Errno,
    },
    #[error("open(\"/proc/{path}\")")]
    OpenProc { path: String, source: Errno },
    #[error("read(\"/proc/{path}\")")]
    ReadProc {
        path: &'static str,
        source: io::Error,
    },
    #[error("write(\"/proc/{path}\", {value:?})")]
    WriteProc {
        path: String,
        value: String,
        source: Errno,
    },
    #[error("setrlimit({name}, {soft}, {hard})")]
    Rlimit {
        name: String,
        soft: u64,
        hard: u64,
        source: io::Error,
    },
    #[error("chdir({path:?})")]
    Chdir { path: PathBuf, source: Errno },
    #[error("connect({address})")]
    Connect {
        address: std::net::SocketAddr,
        source: io::Error,
    },
    #[error("process.user: id {id} has no number in the pod's map")]
    IdOutsideMap { id: u32 },
    #[error("exec: {command:?}: executable file not found in $PATH")]
    NotInPath { command: String },
    #[error("exec: {command:?}: {reason}")]
    NotExecutable {
        command: String,
        reason: String,
        kind: Kind,
    },
    #[error("exec {path:?}: {}", exec_text(*.errno))]
    Exec { path: PathBuf, errno: Errno },
    #[error("pass_files {guest}: dup2(), which takes no number from RLIMIT_NOFILE on")]
    PassFile { guest: i32, source: io::Error },
    #[error("exec_file: {reason}")]
    ExecFile { reason: &'static str, kind: Kind },
    #[error("exec_file: {}", file_exec_text(*.errno))]
    FileExec { errno: Errno },
    #[error("log file {path:?}")]
    LogFile { path: PathBuf, source: io::Error },
    #[error("{}: {}", .lsm.field(), label_text(*.lsm, label, *.errno))]
    Label {
        lsm: Lsm,
        label: String,
        errno: Errno,
    },
    #[error(
        "keyctl(KEYCTL_JOIN_SESSION_KEYRING): root of the pod has as many keys as it may; free some, \
         or raise kernel.keys.maxkeys and maxbytes of the node"
    )]
    KeyQuota { source: io::Error },
    #[error("linux.netDevices[{name:?}]: {reason}")]
    NetDevice {
        name: String,
        reason: String,
        kind: Kind,
    },
    #[error(
        "linux.mountLabel: SELinux is not enabled on this host to take {label:?}; leave it out"
    )]
    NoSeLinux { label: String },
    #[error(
        "{program}: no such program in $PATH: without root it is what hands out ids \
         (package uidmap or shadow-utils)"
    )]
    NoMapper { program: &'static str },
    #[error("{program} [{map}]: {reason}")]
    MapIds {
        program: &'static str,
        map: String,
        reason: String,
    },
    #[error("{field} holds a NUL byte")]
    Nul { field: &'static str },
    #[error("no {what} for this step: a plan and its job do not fit")]
    Missing { what: &'static str },
    #[error("the parent went away")]
    Orphaned,
}

/// The words of libc's strerror(3), as users know them from other runtimes.
fn exec_text(errno: Errno) -> Cow<'static, str> {
    match errno {
        Errno::NOEXEC => "exec format error".into(),
        Errno::NOENT => "no such file or directory".into(),
        Errno::ACCESS => "permission denied".into(),
        Errno::TOOBIG => "argument list too long".into(),
        other => other.to_string().into(),
    }
}

/// The same of a file that is there for sure.
fn file_exec_text(errno: Errno) -> Cow<'static, str> {
    match errno {
        Errno::NOENT => "its interpreter is not in the container, or could not open it; donate a \
            program that is linked statically"
            .into(),
        Errno::TXTBSY => "somebody has it open for writing".into(),
        other => exec_text(other),
    }
}

/// EINVAL: nobody listens on this host, or the words mean nothing to who does.
fn label_text(lsm: Lsm, label: &str, errno: Errno) -> String {
    let (module, known) = match lsm {
        Lsm::AppArmor => ("AppArmor", "profile"),
        Lsm::SeLinux => ("SELinux", "label"),
    };
    match errno {
        Errno::INVAL => format!(
            "{module} is not enabled on this host, or does not take {label:?}; leave the {known} out"
        ),
        Errno::NOENT => {
            format!("{module} has no {known} {label:?} on this host; load it, or leave it out")
        }
        other => format!("{module} refused {label:?}: {other}"),
    }
}

impl Error {
    /// What sort of failure it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Mount(e) => e.kind(),
            Self::Cgroup(e) => e.kind(),
            Self::Seccomp(e) => e.kind(),
            Self::Call { source, .. }
            | Self::OpenProc { source, .. }
            | Self::UpperFile { source, .. }
            | Self::WriteProc { source, .. } => Kind::of_errno(source.raw_os_error()),
            Self::Exec { errno, .. }
            | Self::FileExec { errno }
            | Self::Chdir { source: errno, .. } => match *errno {
                Errno::NOENT => Kind::NotFound,
                Errno::ACCESS | Errno::PERM => Kind::Denied,
                _ => Kind::InvalidArgument,
            },
            Self::Sys { source, .. }
            | Self::Rlimit { source, .. }
            | Self::ReadProc { source, .. }
            | Self::KeyQuota { source }
            | Self::LogFile { source, .. } => {
                source.raw_os_error().map_or(Kind::Internal, Kind::of_errno)
            }
            Self::Label { errno, .. } => match *errno {
                Errno::INVAL | Errno::NOENT => Kind::NotSupported,
                other => Kind::of_errno(other.raw_os_error()),
            },
            Self::Connect { source, .. } => match source.kind() {
                io::ErrorKind::TimedOut => Kind::DeadlineExceeded,
                _ => Kind::Unavailable,
            },
            Self::IdOutsideMap { .. } | Self::Nul { .. } | Self::PassFile { .. } => {
                Kind::InvalidArgument
            }
            Self::NoSeLinux { .. } | Self::NoMapper { .. } | Self::NoMkfs => Kind::NotSupported,
            Self::MapIds { .. } => Kind::Denied,
            Self::NotInPath { .. } => Kind::NotFound,
            Self::NotExecutable { kind, .. }
            | Self::NetDevice { kind, .. }
            | Self::ExecFile { kind, .. } => *kind,
            Self::Missing { .. } => Kind::Internal,
            Self::Orphaned => Kind::Unavailable,
        }
    }

    /// The error with its causes, outermost first.
    pub fn chain(&self) -> String {
        use std::error::Error as _;
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}

pub(crate) fn call(call: &'static str) -> impl Fn(Errno) -> Error {
    move |source| Error::Call { call, source }
}

pub(crate) fn sys(call: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Sys { call, source }
}
