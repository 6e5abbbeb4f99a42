//! What can go wrong with a sandbox.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use berm_stage::Failure;
use berm_sys::Kind;
use rustix::io::Errno;

use crate::state::Refused;

/// A failed operation, with what it was done to.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error(transparent)]
    Plan(#[from] berm_plan::Error),
    #[error(transparent)]
    Cgroup(#[from] berm_cgroup::Error),
    #[error(transparent)]
    Control(#[from] berm_urpc::Error),
    #[error(transparent)]
    Metrics(#[from] berm_metrics::Error),
    #[error(
        "sandbox {id:?} did not request metrics when it was created: \
         metric_server was not set in the configuration"
    )]
    NoMetrics { id: String },
    #[error(transparent)]
    Stage(#[from] berm_stage::Error),
    #[error("{}", stage_text(.0))]
    Step(Failure),
    #[error("linux.seccomp.listenerPath {path:?}: {reason}")]
    Listener {
        path: PathBuf,
        reason: String,
        kind: Kind,
    },
    #[error("console_socket {path:?}: {reason}")]
    ConsoleSocket {
        path: PathBuf,
        reason: String,
        kind: Kind,
    },
    #[error("{field} {path:?}: {reason}")]
    Hook {
        field: String,
        path: PathBuf,
        reason: String,
        kind: Kind,
    },
    #[error("rootfs_upper: mkfs.ext4 for a file in {dir:?} ended with {status}: {text}")]
    Mkfs {
        dir: PathBuf,
        status: u32,
        text: String,
    },
    #[error("step {last} did not end within {} s", .after.as_secs())]
    Deadline { last: &'static str, after: Duration },
    #[error("the stage child ended without a word after {last}")]
    Died { last: &'static str },
    #[error("container {id:?} already exists")]
    ContainerExists { id: String },
    #[error("container {id:?} was started already")]
    ContainerStarted { id: String },
    #[error("sandbox is not in started state, cannot start subcontainer {id:?}: state={state}")]
    RootNotStarted { id: String, state: &'static str },
    #[error(
        "source {path:?}: by hint {name:?} it stands for a tmpfs that the pod's containers share; \
         give the mount to a container's spec"
    )]
    HintedSource { name: String, path: PathBuf },
    #[error("{field}: {reason}")]
    Subcontainer { field: &'static str, reason: String },
    #[error("exec {exec:?} of container {id:?} already exists")]
    ExecExists { id: String, exec: String },
    #[error("sandbox {id:?} already exists")]
    SandboxExists { id: String },
    #[error("container {id:?} not found")]
    NoContainer { id: String },
    #[error("exec {exec:?} of container {id:?} not found")]
    NoExec { id: String, exec: String },
    #[error("sandbox {id:?} not found")]
    NoSandbox { id: String },
    #[error(
        "attached: the kernel ends nothing with PID 1 of sandbox {id:?}, which has no PID namespace \
         of its own; leave the namespace's path out of the spec, or do not attach"
    )]
    NotAttachable { id: String },
    #[error("container {id:?} belongs to a sandbox that this shim does not have")]
    WithoutSandbox { id: String },
    #[error("{id:?}: {refused}")]
    State { id: String, refused: Refused },
    #[error(
        "linux.namespaces {name}: {path:?} is the host's own; \
         pods with host namespaces come with the next release"
    )]
    HostNamespace { name: &'static str, path: PathBuf },
    #[error("container {id:?} is not running: it is {state}")]
    NotRunning { id: String, state: &'static str },
    #[error(
        "cannot {verb} container {id:?}: its pod is paused as a whole; resume the pod first \
         (containerManager.Resume of sandbox {sandbox:?})"
    )]
    PodPaused {
        verb: &'static str,
        id: String,
        sandbox: String,
    },
    #[error("sandbox {id:?} is not paused as a whole: it cannot be resumed")]
    PodNotPaused { id: String },
    #[error("process already finished")]
    Finished,
    #[error("the sandbox of container {id:?} has ended")]
    SandboxGone { id: String },
    #[error(
        "annotations[\"io.kubernetes.cri.sandbox-log-directory\"]: {path:?} is not an absolute path, \
         and user_log = true asks for a log there"
    )]
    LogDirectory { path: PathBuf },
    #[error("io_files[{at}]: {reason}; leave the file out")]
    IoFile { at: usize, reason: &'static str },
    #[error("pass_files {guest}: {reason}")]
    PassFile { guest: i32, reason: &'static str },
    #[error("signal {signal} is none that the kernel knows")]
    BadSignal { signal: u32 },
    #[error("id {id:?}: {reason}")]
    BadId { id: String, reason: &'static str },
    #[error(
        "{file} lends user {user:?} no ids, and a sandbox without root is made of those: \
         usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
    )]
    NoSubordinateIds { file: &'static str, user: String },
    #[error("{what}: without root there are no cgroups, which it needs; run as root")]
    NoCgroups { what: &'static str },
    #[error("no free id range: all {total} of the pool are in use")]
    IdsExhausted { total: u32 },
    #[error("{call} {path:?}")]
    File {
        call: &'static str,
        path: PathBuf,
        source: Errno,
    },
    #[error("{call}")]
    Call { call: &'static str, source: Errno },
    #[error("{call}")]
    Io {
        call: &'static str,
        source: io::Error,
    },
    #[error("record {path:?}")]
    Record {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("logger {path:?} ended before it was ready")]
    LoggerNotReady { path: PathBuf },
    #[error("logger {path:?} was not ready within {} s", .after.as_secs())]
    LoggerSilent { path: PathBuf, after: Duration },
    #[error("the answer is longer than {max} bytes; ask container by container")]
    TooMuch { max: u64 },
    #[error("the pod has {count} processes: no more than {max} are shown at once")]
    TooManyProcesses { count: usize, max: usize },
    #[error("a value that is written has {max} bytes at most")]
    LongValue { max: usize },
    #[error("signaling process in container {id:?} PID {pid}: no such process with PID {pid}")]
    NoProcess { id: String, pid: i32 },
    #[error("signaling foreground process group of PID {pid} in container {id:?}: no TTY attached")]
    NoTty { id: String, pid: i32 },
    #[error("this process has no log whose lines could change")]
    NoLog,
    #[error("this process tells nothing of its log's targets: set the level")]
    NoTargets,
    #[error("no unix stream socket: of that kind is the one that a port is forwarded to")]
    NoStream,
    #[error("no write end of a pipe: events are written to one")]
    NoPipe,
    #[error("{max} listeners are told the sandbox's events already")]
    TooManyListeners { max: usize },
    #[error("{max} connections are forwarded to the pod already")]
    TooManyForwards { max: usize },
    #[error("{what} did not end within {} s", .after.as_secs())]
    Slow { what: &'static str, after: Duration },
}

/// Failures that users know by other runtimes' words stand alone; the others name their step.
fn stage_text(failure: &Failure) -> String {
    match failure.name.as_str() {
        "ResolveExec" | "Exec" | "Logger" | "StartScope" | "Update" | "UpperFile" | "Aside"
        | "Connect" | "MountInto" => failure.text.clone(),
        name => format!("step {} {name}: {}", failure.step, failure.text),
    }
}

impl Error {
    /// What sort of failure it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Plan(e) => e.kind(),
            Self::Cgroup(e) => e.kind(),
            Self::Control(e) => e.kind(),
            Self::Stage(e) => e.kind(),
            Self::Metrics(e) => e.kind(),
            Self::Hook { kind, .. }
            | Self::Listener { kind, .. }
            | Self::ConsoleSocket { kind, .. } => *kind,
            Self::Step(failure) => Kind::parse(&failure.kind).unwrap_or(Kind::Internal),
            Self::Deadline { .. } | Self::Slow { .. } | Self::LoggerSilent { .. } => {
                Kind::DeadlineExceeded
            }
            Self::Died { .. }
            | Self::SandboxGone { .. }
            | Self::IdsExhausted { .. }
            | Self::TooMuch { .. }
            | Self::TooManyForwards { .. }
            | Self::TooManyListeners { .. }
            | Self::TooManyProcesses { .. }
            | Self::LoggerNotReady { .. } => Kind::Unavailable,
            Self::ContainerExists { .. } | Self::ExecExists { .. } | Self::SandboxExists { .. } => {
                Kind::AlreadyExists
            }
            Self::NoContainer { .. }
            | Self::NoExec { .. }
            | Self::NoSandbox { .. }
            | Self::NoProcess { .. }
            | Self::Finished => Kind::NotFound,
            Self::NoMetrics { .. }
            | Self::WithoutSandbox { .. }
            | Self::ContainerStarted { .. }
            | Self::RootNotStarted { .. }
            | Self::State { .. }
            | Self::NotRunning { .. }
            | Self::NoTty { .. }
            | Self::NoLog
            | Self::PodPaused { .. }
            | Self::Mkfs { .. }
            | Self::PodNotPaused { .. } => Kind::FailedPrecondition,
            Self::NoStream
            | Self::NoPipe
            | Self::Subcontainer { .. }
            | Self::LongValue { .. }
            | Self::PassFile { .. }
            | Self::IoFile { .. }
            | Self::LogDirectory { .. }
            | Self::BadSignal { .. }
            | Self::BadId { .. } => Kind::InvalidArgument,
            Self::File { source, .. } | Self::Call { source, .. } => {
                Kind::of_errno(source.raw_os_error())
            }
            Self::Io { source, .. } => source.raw_os_error().map_or(Kind::Internal, Kind::of_errno),
            Self::NoSubordinateIds { .. }
            | Self::NoCgroups { .. }
            | Self::HostNamespace { .. }
            | Self::HintedSource { .. }
            | Self::NoTargets
            | Self::NotAttachable { .. } => Kind::NotSupported,
            Self::Record { .. } => Kind::Internal,
        }
    }

    /// Text and kind, of a stage child's failure without the name of its step.
    pub(crate) fn plain(&self) -> (String, Kind) {
        let text = match self {
            Self::Step(failure) => failure.text.clone(),
            other => other.chain(),
        };
        (text, self.kind())
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

pub(crate) fn io(call: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { call, source }
}
