//! Why a command failed, and the exit code that says so.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use berm_sys::Kind;

/// The call failed.
const FAILED: u8 = 1;
/// Nothing has that name, or more than one thing has.
const NOT_FOUND: u8 = 3;
/// `run` and `exec`: the command was not started.
pub(crate) const COULD_NOT_START: u8 = 125;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Sandbox(#[from] berm_sandbox::Error),
    #[error(transparent)]
    Config(#[from] berm_shim::Error),
    #[error(transparent)]
    Metrics(#[from] berm_sandbox::metrics::MetricsError),
    #[error("bind({address})")]
    Bind { address: String, source: io::Error },
    #[error(transparent)]
    Control(#[from] berm_sandbox::urpc::Error),
    #[error("{name:?}: no sandbox, pod or container has that name (see: berm list)")]
    NotFound { name: String },
    #[error("{name:?} is ambiguous; candidates:\n  {}", candidates.join("\n  "))]
    Ambiguous {
        name: String,
        candidates: Vec<String>,
    },
    #[error("sandbox {id:?} has ended, its record is left over; to remove it: berm delete {id}")]
    Gone { id: String },
    #[error(
        "sandbox {id:?} runs, but the process that served it (pid {owner}) is gone; to end it: \
         berm delete {id}"
    )]
    Orphaned { id: String, owner: i32 },
    #[error(
        "{id:?} is served by its shim (pid {owner}) and as a rule is containerd's: delete it there \
         (crictl rmp, crictl rm, ctr task rm), or here with --force"
    )]
    Served { id: String, owner: i32 },
    #[error("interrupted by signal {signal}")]
    Interrupted { signal: u32 },
    #[error("{id:?} is a container; this is about the whole pod: {pod}")]
    NotAPod { id: String, pod: String },
    /// What the sandbox said of one file.
    #[error("{0}")]
    Told(String),
    #[error("{what}: {reason}")]
    Argument { what: String, reason: &'static str },
    #[error("--pass-fd {host}:{guest}: berm has no open file of number {host}")]
    PassFd {
        host: i32,
        guest: i32,
        source: io::Error,
    },
    #[error("{call}")]
    Io {
        call: &'static str,
        source: io::Error,
    },
    #[error("{path:?}")]
    File { path: PathBuf, source: io::Error },
    #[error("JSON")]
    Json(#[from] serde_json::Error),
}

impl Error {
    /// The text for people, causes included.
    pub(crate) fn text(&self) -> String {
        use std::error::Error as _;
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }

    pub(crate) fn code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Interrupted { signal } => u8::try_from(128 + signal).unwrap_or(FAILED),
            _ if self.is_not_found() => NOT_FOUND,
            _ => FAILED,
        })
    }

    /// Nothing has that name, or not one thing alone.
    pub(crate) fn is_not_found(&self) -> bool {
        match self {
            Self::NotFound { .. } | Self::Ambiguous { .. } | Self::Gone { .. } => true,
            Self::Sandbox(e) => e.kind() == Kind::NotFound,
            Self::Control(e) => e.kind() == Kind::NotFound,
            _ => false,
        }
    }
}

pub(crate) fn io(call: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { call, source }
}

pub(crate) fn errno(call: &'static str) -> impl Fn(rustix::io::Errno) -> Error {
    move |source| Error::Io {
        call,
        source: source.into(),
    }
}
