use std::path::PathBuf;

use berm_sys::Kind;
use rustix::io::Errno;

/// What went wrong with a cgroup. Texts are the call that failed; the errno is the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No cgroup file system is mounted.
    #[error("no cgroup or cgroup2 file system in /proc/self/mountinfo")]
    NoHierarchy,
    /// The name of a cgroup is none.
    #[error("linux.cgroupsPath {path:?}: {reason}")]
    BadPath {
        /// As asked for.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A scope is asked for where systemd does not run.
    #[error(
        "linux.cgroupsPath: {unit} is for systemd, which does not run on this host; set the cgroup \
         driver of kubelet and containerd to cgroupfs"
    )]
    NoSystemd {
        /// The scope.
        unit: String,
    },
    /// The scope of a new container is there already.
    #[error("linux.cgroupsPath: systemd has the unit {unit} already; stop it first")]
    UnitExists {
        /// The scope.
        unit: String,
    },
    /// systemd did not do what it was asked for.
    #[error("systemd {call}({unit}): {reason}")]
    Systemd {
        /// The method.
        call: &'static str,
        /// The scope.
        unit: String,
        /// What systemd says.
        reason: String,
    },
    /// systemd cannot be reached.
    #[error("{call}({path})")]
    Bus {
        /// The system call.
        call: &'static str,
        /// The socket.
        path: String,
        /// Why not.
        source: Errno,
    },
    /// A field of the spec has a value that makes no sense.
    #[error("{field}: {value}: {reason}")]
    BadValue {
        /// The field, in the spec's words.
        field: &'static str,
        /// What it says.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// This host cannot do what a field asks for.
    #[error("{field}: {reason}")]
    Unsupported {
        /// The field, in the spec's words.
        field: &'static str,
        /// Why not.
        reason: String,
    },
    /// The kernel refused a limit.
    #[error("{field}: write({path:?}, {value:?})")]
    Limit {
        /// The field, in the spec's words.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// Why the kernel refused.
        source: Errno,
    },
    /// An update failed, and not all that it had written before could be taken back.
    #[error("the update failed half-way and these files keep the new value: {}", files.join(", "))]
    NotTakenBack {
        /// Their names.
        files: Vec<String>,
        /// Why it failed.
        source: Box<Error>,
    },
    /// A limit is below what is used already.
    #[error(
        "{field}: {limit} is below the present usage of {usage} bytes, and the kernel cannot reclaim \
         that much; choose a higher limit, or let the container free memory first"
    )]
    BelowUsage {
        /// The field, in the spec's words.
        field: &'static str,
        /// Asked for, bytes.
        limit: i64,
        /// In use, bytes.
        usage: u64,
    },
    /// The cgroup of a new container holds processes.
    #[error("cgroup {path:?} is not empty: {processes} processes")]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// How many.
        processes: usize,
    },
    /// The cgroup of a new container is frozen.
    #[error("cgroup {path:?} is frozen")]
    Frozen {
        /// The directory.
        path: PathBuf,
    },
    /// The cgroup still holds processes, perhaps dying ones: try again.
    #[error("rmdir({path:?})")]
    Busy {
        /// The directory.
        path: PathBuf,
        /// EBUSY.
        source: Errno,
    },
    /// The cgroup is not there (any more).
    #[error("cgroup {path:?} does not exist")]
    Gone {
        /// Its path below the mount points.
        path: PathBuf,
    },
    /// A bound of ours was reached.
    #[error("{path:?} has more than {max} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The bound.
        max: usize,
    },
    /// A kernel file does not read as it should.
    #[error("{path:?}: cannot read {text:?}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The start of what it says.
        text: String,
    },
    /// open(2)
    #[error("open({path:?}, {flags})")]
    Open {
        /// The file.
        path: PathBuf,
        /// How.
        flags: &'static str,
        /// Why not.
        source: Errno,
    },
    /// read(2) or getdents64(2)
    #[error("read({path:?})")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: Errno,
    },
    /// write(2)
    #[error("write({path:?}, {value:?})")]
    Write {
        /// The file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// Why not.
        source: Errno,
    },
    /// mkdir(2)
    #[error("mkdir({path:?}, 0755)")]
    Mkdir {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: Errno,
    },
    /// rmdir(2), but for EBUSY
    #[error("rmdir({path:?})")]
    Rmdir {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: Errno,
    },
    /// write(2) of "0" to `cgroup.procs`
    #[error("write(cgroup.procs of hierarchy {hierarchy}, \"0\")")]
    Join {
        /// Place in the list that was handed in.
        hierarchy: usize,
        /// Why not.
        source: Errno,
    },
    /// A call that has no path.
    #[error("{call}")]
    Call {
        /// The call with what matters of its arguments.
        call: &'static str,
        /// Why not.
        source: Errno,
    },
    /// `pidfd_send_signal(2)` or `pidfd_open(2)` of a process of the cgroup
    #[error("{call}({pid})")]
    Signal {
        /// Which call.
        call: &'static str,
        /// The process.
        pid: i32,
        /// Why not.
        source: Errno,
    },
}

impl Error {
    /// What sort of failure it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::BadPath { .. } | Self::BadValue { .. } => Kind::InvalidArgument,
            Self::NoHierarchy | Self::NoSystemd { .. } | Self::Unsupported { .. } => {
                Kind::NotSupported
            }
            Self::UnitExists { .. } => Kind::AlreadyExists,
            Self::Bus {
                source: Errno::TIMEDOUT,
                ..
            } => Kind::DeadlineExceeded,
            Self::Systemd { .. } | Self::Bus { .. } => Kind::Unavailable,
            Self::NotEmpty { .. }
            | Self::Frozen { .. }
            | Self::Busy { .. }
            | Self::BelowUsage { .. } => Kind::FailedPrecondition,
            Self::NotTakenBack { source, .. } => source.kind(),
            Self::Gone { .. } => Kind::NotFound,
            Self::TooMany { .. } => Kind::Unavailable,
            Self::Parse { .. } => Kind::Internal,
            Self::Limit { source, .. }
            | Self::Open { source, .. }
            | Self::Read { source, .. }
            | Self::Write { source, .. }
            | Self::Mkdir { source, .. }
            | Self::Rmdir { source, .. }
            | Self::Join { source, .. }
            | Self::Call { source, .. }
            | Self::Signal { source, .. } => Kind::of_errno(source.raw_os_error()),
        }
    }
}
