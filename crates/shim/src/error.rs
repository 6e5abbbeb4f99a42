//! What can go wrong at the door.

use std::fmt::Write;
use std::io;
use std::path::PathBuf;

use berm_sys::Kind;
use rustix::io::Errno;

/// Failure of a call of the binary protocol or of the Task service.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line.
    #[error("argument {word}: {why}")]
    Argument {
        /// The word.
        word: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A system call of the door itself.
    #[error("{call}({what})")]
    Io {
        /// The call.
        call: &'static str,
        /// Its arguments.
        what: String,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// A file is larger than anything of its sort may be.
    #[error("{path:?} is larger than {limit} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound.
        limit: u64,
    },
    /// A message of containerd does not parse.
    #[error("{what} does not parse")]
    Decode {
        /// Which message.
        what: &'static str,
        /// Why.
        #[source]
        source: containerd_shim_protos::protobuf::Error,
    },
    /// An answer could not be written as protobuf.
    #[error("{what} cannot be encoded")]
    Encode {
        /// Which message.
        what: &'static str,
        /// Why.
        #[source]
        source: containerd_shim_protos::protobuf::Error,
    },
    /// A JSON document that containerd wrote does not parse.
    #[error("{what}")]
    Json {
        /// Which.
        what: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A socket address that does not fit `sockaddr_un`.
    #[error("socket path {path:?} is longer than 106 bytes; choose a shorter socket_dir")]
    SocketPath {
        /// The path.
        path: PathBuf,
    },
    /// The configuration file.
    #[error("{file}:{line}: {why}")]
    Config {
        /// The file, or the name of what was sent in its place.
        file: String,
        /// Line, from 1.
        line: usize,
        /// What is wrong, with the key.
        why: String,
    },
    /// The call names a container that is not there.
    #[error("container {id} does not exist")]
    NoContainer {
        /// The id.
        id: String,
    },
    /// The call names an exec that is not there.
    #[error("exec {exec} of container {id} does not exist")]
    NoExec {
        /// Container.
        id: String,
        /// Exec.
        exec: String,
    },
    /// The id is taken.
    #[error("container {id} exists already")]
    ContainerExists {
        /// The id.
        id: String,
    },
    /// The exec id is taken.
    #[error("exec {exec} of container {id} exists already")]
    ExecExists {
        /// Container.
        id: String,
        /// Exec.
        exec: String,
    },
    /// A shim serves one pod.
    #[error("this shim serves sandbox {have}; {id} needs one of its own")]
    SecondSandbox {
        /// The sandbox that is there.
        have: String,
        /// The one that was asked for.
        id: String,
    },
    /// A container of a pod whose sandbox was never made or is gone.
    #[error("container {id} belongs to a sandbox that does not exist; create the sandbox first")]
    NoSandbox {
        /// The container.
        id: String,
    },
    /// Something that this version does not do.
    #[error("{field} {value:?}: {way_out}")]
    NotYet {
        /// The field of the request.
        field: &'static str,
        /// What it asks for.
        value: String,
        /// What to do instead.
        way_out: &'static str,
    },
    /// A value of a type that the call does not take.
    #[error("{call}: a value of type {type_url:?} where one of {wanted} is needed")]
    UnknownType {
        /// The call.
        call: &'static str,
        /// What came.
        type_url: String,
        /// What should have.
        wanted: &'static str,
    },
    /// A call that this version does not answer.
    #[error("{call} is not implemented")]
    Unimplemented {
        /// The call.
        call: &'static str,
    },
    /// A stdio path that cannot be used.
    #[error("{stream} {path:?}: {why}")]
    StdioPath {
        /// `stdin`, `stdout` or `stderr`.
        stream: &'static str,
        /// The path.
        path: String,
        /// Why not.
        why: &'static str,
    },
    /// A stdio file cannot be opened.
    #[error("open({path:?}, {flags})")]
    OpenStdio {
        /// The path.
        path: String,
        /// Flags.
        flags: &'static str,
        /// The errno.
        #[source]
        source: Errno,
    },
    /// A call on a descriptor of a process's stdio.
    #[error("{call} on {what}")]
    Stdio {
        /// The call.
        call: &'static str,
        /// Which end.
        what: &'static str,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// A terminal that no kernel can have.
    #[error("{field} {value} is more than 65535")]
    Size {
        /// `width` or `height`.
        field: &'static str,
        /// What was asked for.
        value: u32,
    },
    /// The daemon ends and takes no more calls.
    #[error("the shim is shutting down")]
    ShuttingDown,
    /// From the sandbox.
    #[error(transparent)]
    Sandbox(#[from] berm_sandbox::Error),
    /// ttrpc could not be set up.
    #[error("ttrpc server on {address}")]
    Server {
        /// The address.
        address: String,
        /// Why.
        #[source]
        source: ttrpc::Error,
    },
}

impl Error {
    /// What sort of failure it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Argument { .. }
            | Self::TooLarge { .. }
            | Self::Decode { .. }
            | Self::Json { .. }
            | Self::SocketPath { .. }
            | Self::Config { .. }
            | Self::Size { .. }
            | Self::UnknownType { .. }
            | Self::StdioPath { .. } => Kind::InvalidArgument,
            Self::NoContainer { .. } | Self::NoExec { .. } => Kind::NotFound,
            Self::ContainerExists { .. } | Self::ExecExists { .. } => Kind::AlreadyExists,
            Self::NoSandbox { .. } | Self::SecondSandbox { .. } => Kind::FailedPrecondition,
            Self::NotYet { .. } | Self::Unimplemented { .. } => Kind::NotSupported,
            Self::ShuttingDown => Kind::Unavailable,
            Self::Encode { .. } | Self::Server { .. } => Kind::Internal,
            Self::Io { source, .. } | Self::Stdio { source, .. } => of_io(source),
            // NotFound would tell containerd that the process is gone.
            Self::OpenStdio {
                source: Errno::NOENT,
                ..
            } => Kind::InvalidArgument,
            Self::OpenStdio { source, .. } => Kind::of_errno(source.raw_os_error()),
            Self::Sandbox(e) => e.kind(),
        }
    }
}

fn of_io(e: &io::Error) -> Kind {
    e.raw_os_error().map_or(Kind::Internal, Kind::of_errno)
}

/// The error and its causes on one line, each once.
pub(crate) fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            // Writing to a String cannot fail.
            let _ = write!(text, ": {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_names_every_cause_once() {
        let e = Error::Io {
            call: "open",
            what: "\"/x\", O_RDONLY".into(),
            source: io::Error::from_raw_os_error(2),
        };
        assert_eq!(
            chain(&e),
            "open(\"/x\", O_RDONLY): No such file or directory (os error 2)"
        );
        assert_eq!(e.kind(), Kind::NotFound);
    }

    #[test]
    fn a_missing_fifo_does_not_look_like_a_missing_process() {
        let e = Error::OpenStdio {
            path: "/x".into(),
            flags: "O_WRONLY",
            source: Errno::NOENT,
        };
        assert_eq!(e.kind(), Kind::InvalidArgument);
    }
}
