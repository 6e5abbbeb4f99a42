//! What can go wrong while a test drives a node.

use std::path::PathBuf;
use std::time::Duration;

/// A failure of the testing house itself or of a program that it drives.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation, in the notation of the system call.
    #[error("{op}({path:?})")]
    File {
        /// The call.
        op: &'static str,
        /// Its argument.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// A system call without a path.
    #[error("{op}")]
    Call {
        /// The call, with its arguments.
        op: String,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// A program could not be started.
    #[error("execve({program:?})")]
    Exec {
        /// The program.
        program: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// A program ended with a failure.
    #[error("{command}: exit code {code}: {stderr}")]
    Failed {
        /// The command line.
        command: String,
        /// 0 to 255, or 128 plus the signal.
        code: i32,
        /// What it wrote to its standard error, trimmed.
        stderr: String,
    },
    /// Something did not happen in time.
    #[error("{what} took more than {limit:?}")]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
    /// A file of test data is wrong.
    #[error("{path:?}: {why}")]
    Data {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A program that the tests need is not there and cannot be installed.
    #[error("{what} is missing: {way_out}")]
    Missing {
        /// Its name.
        what: String,
        /// What a person can do.
        way_out: String,
    },
    /// An answer of a program could not be understood.
    #[error("{command}: {why}")]
    Answer {
        /// The command line.
        command: String,
        /// What is wrong with its answer.
        why: String,
    },
    /// An emulated guest did not come to the end of its job.
    #[error("the guest {how}; its console ends so:\n{console}")]
    Guest {
        /// What became of it.
        how: String,
        /// The last lines of the kernel's console.
        console: String,
        /// Whether it was the emulator's fault, so that another attempt is worth its time.
        emulator: bool,
    },
    /// Something was left behind.
    #[error("left behind:\n{0}")]
    Leak(String),
}

/// Names the file call that failed: `.map_err(file("open", path))`.
pub(crate) fn file(
    op: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.into();
    move |source| Error::File { op, path, source }
}

/// Names the call without a path that failed.
pub(crate) fn call<E: Into<std::io::Error>>(op: impl Into<String>) -> impl FnOnce(E) -> Error {
    let op = op.into();
    move |source| Error::Call {
        op,
        source: source.into(),
    }
}

/// An error with all that caused it, in one line.
#[must_use]
pub fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
