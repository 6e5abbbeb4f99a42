//! What can go wrong between a test and a shim.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use berm_sys::Kind;
use ttrpc::Code;

/// A failure of the shim client, of the shim, or of a call to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A call on the file system failed.
    #[error("{op}({path:?})")]
    File {
        /// The system call, or what was done.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A program could not be started, or its output could not be read.
    #[error("exec({program:?})")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A program ended with another status than 0.
    #[error("{program:?} {action}: {status}: {output}")]
    Program {
        /// The program.
        program: PathBuf,
        /// What it was asked to do.
        action: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it printed, at most 64 KiB.
        output: String,
    },
    /// The answer of `start`, `delete` or `-info` is in no form that containerd reads.
    #[error("answer of {action}: {text:?}")]
    Answer {
        /// `start`, `delete` or `-info`.
        action: &'static str,
        /// What was printed, lossy.
        text: String,
    },
    /// The shim's socket does not take a connection.
    #[error("connect({address:?}): {source}")]
    Connect {
        /// The address that the shim gave.
        address: String,
        /// What ttrpc says.
        source: ttrpc::Error,
    },
    /// The shim answered a call with an error.
    #[error("{method}: {code:?}: {message}")]
    Status {
        /// The method that was called.
        method: &'static str,
        /// The code of the answer.
        code: Code,
        /// The text of the answer.
        message: String,
    },
    /// A call broke off: the connection closed, or an answer could not be read.
    #[error("{method}: {source}")]
    Call {
        /// The method that was called.
        method: &'static str,
        /// What ttrpc says.
        source: ttrpc::Error,
    },
    /// Something that was waited for did not come.
    #[error("no {what} within {deadline:?}")]
    Deadline {
        /// What was waited for.
        what: String,
        /// For how long.
        deadline: Duration,
    },
    /// A spec is not the JSON that was expected.
    #[error("{what}")]
    Json {
        /// Which document.
        what: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A method was called on a pod in the wrong state.
    #[error("pod {id}: {need}")]
    Order {
        /// The pod.
        id: String,
        /// What must be done first.
        need: &'static str,
    },
}

impl Error {
    /// What sort of failure this is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::File { source, .. } | Self::Spawn { source, .. } => {
                source.raw_os_error().map_or(Kind::Internal, Kind::of_errno)
            }
            Self::Status { code, .. } => kind_of_code(*code),
            Self::Connect { .. } | Self::Call { .. } => Kind::Unavailable,
            Self::Deadline { .. } => Kind::DeadlineExceeded,
            Self::Order { .. } => Kind::FailedPrecondition,
            Self::Json { .. } => Kind::InvalidArgument,
            Self::Program { .. } | Self::Answer { .. } => Kind::Internal,
        }
    }

    /// The ttrpc code that the shim answered with; `None` if the failure is not an answer.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Status { code, .. } => Some(*code),
            _ => None,
        }
    }

    pub(crate) fn file(
        op: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { op, path, source }
    }

    pub(super) fn errno(
        op: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = path.into();
        move |source| Self::File {
            op,
            path,
            source: source.into(),
        }
    }

    pub(super) fn call(method: &'static str, source: ttrpc::Error) -> Self {
        match source {
            ttrpc::Error::RpcStatus(status) => Self::Status {
                method,
                code: status.code.enum_value_or(Code::UNKNOWN),
                message: status.message,
            },
            source => Self::Call { method, source },
        }
    }
}

fn kind_of_code(code: Code) -> Kind {
    match code {
        Code::INVALID_ARGUMENT => Kind::InvalidArgument,
        Code::NOT_FOUND => Kind::NotFound,
        Code::ALREADY_EXISTS => Kind::AlreadyExists,
        Code::FAILED_PRECONDITION => Kind::FailedPrecondition,
        Code::UNIMPLEMENTED => Kind::NotSupported,
        Code::UNAVAILABLE => Kind::Unavailable,
        Code::DEADLINE_EXCEEDED => Kind::DeadlineExceeded,
        Code::PERMISSION_DENIED | Code::UNAUTHENTICATED => Kind::Denied,
        _ => Kind::Internal,
    }
}
