//! What can go wrong on either side of the socket.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use berm_sys::Kind;
use rustix::io::Errno;

use crate::MAX_FDS;
use crate::text::{bounded, printable};

/// Bytes of a parser's message that are kept; it may quote the message itself.
const QUOTE_LIMIT: usize = 512;

/// Why a message was refused. The connection it came on is closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// More bytes than [`Limits::bytes`](crate::Limits::bytes).
    #[error("message of more than {limit} bytes")]
    TooLarge {
        /// The bound.
        limit: usize,
    },
    /// More levels than [`Limits::depth`](crate::Limits::depth).
    #[error("message nested more than {limit} deep")]
    TooDeep {
        /// The bound.
        limit: u32,
    },
    /// More values than [`Limits::values`](crate::Limits::values).
    #[error("message of more than {limit} values")]
    TooManyValues {
        /// The bound.
        limit: usize,
    },
    /// Not a JSON object.
    #[error("message is not a JSON object: byte {at}")]
    Syntax {
        /// The offending byte, counted from 1.
        at: usize,
    },
    /// A JSON object, but not a message: bad JSON inside, an unknown, missing or doubled key.
    #[error("message is not well formed: {text}")]
    Json {
        /// The parser's words, bounded and escaped.
        text: String,
    },
    /// The stream ended inside a message.
    #[error("message is cut off")]
    CutOff,
    /// More than [`MAX_FDS`] descriptors, or more than this process has room for.
    #[error("too many files: more than {MAX_FDS}, or than this process may open")]
    TooManyFds,
    /// Descriptors that did not come with the first byte of a message.
    #[error("file descriptors in the middle of a message")]
    LateFds,
}

impl From<serde_json::Error> for Malformed {
    fn from(error: serde_json::Error) -> Self {
        Self::Json {
            text: printable(&bounded(error.to_string(), QUOTE_LIMIT)),
        }
    }
}

/// A failed operation on a socket, or a failed call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The socket could not be created.
    #[error("socket(AF_UNIX, SOCK_STREAM)")]
    Socket {
        /// Its errno.
        source: Errno,
    },
    /// The path names no socket: it has no last component, or a name that does not fit.
    #[error("{path:?} cannot be a socket's path")]
    Path {
        /// The path.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// The socket's directory could not be created.
    #[error("mkdir({path:?}, 0700)")]
    Mkdir {
        /// The directory.
        path: PathBuf,
        /// Its errno.
        source: Errno,
    },
    /// The socket's directory could not be opened.
    #[error("open({path:?}, O_PATH|O_DIRECTORY)")]
    OpenDir {
        /// The directory.
        path: PathBuf,
        /// Its errno.
        source: Errno,
    },
    /// The socket's directory belongs to another user or is open to others.
    #[error("{path:?} has owner {uid} and mode {mode:04o}: must be this user's and 0700")]
    Exposed {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// The socket could not be given its name, mode or queue.
    #[error("{call}({path:?})")]
    Bind {
        /// `fchmod`, `bind` or `listen`.
        call: &'static str,
        /// The socket.
        path: PathBuf,
        /// Its errno.
        source: Errno,
    },
    /// Nobody serves the socket, or its queue stayed full.
    #[error("connect({path:?})")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Its errno.
        source: Errno,
    },
    /// A socket could not be registered with the runtime.
    #[error("epoll_ctl(EPOLL_CTL_ADD)")]
    Register {
        /// The runtime's error.
        source: io::Error,
    },
    /// The listening socket is broken.
    #[error("accept4()")]
    Accept {
        /// Its errno.
        source: Errno,
    },
    /// A system call on a connection failed.
    #[error("{call}()")]
    Io {
        /// `recvmsg`, `sendmsg` or `poll`.
        call: &'static str,
        /// Its errno.
        source: Errno,
    },
    /// A request that cannot be sent: too many descriptors, or an argument without a JSON form.
    #[error("request {method}")]
    Request {
        /// The method.
        method: String,
        /// What is wrong with it.
        source: Malformed,
    },
    /// The server's reply is no reply, or not of the type asked for.
    #[error("reply to {method}")]
    Reply {
        /// The method.
        method: String,
        /// What is wrong with it.
        source: Malformed,
    },
    /// The server closed the connection without a reply.
    #[error("{method}: connection closed before a reply")]
    Closed {
        /// The method.
        method: String,
    },
    /// No complete reply within the deadline.
    #[error("{method}: no reply within {deadline:?}")]
    Deadline {
        /// The method.
        method: String,
        /// The deadline.
        deadline: Duration,
    },
    /// An earlier call broke this connection; connect anew.
    #[error("{method}: connection was given up after an earlier error")]
    GivenUp {
        /// The method.
        method: String,
    },
    /// The server answered that the call failed.
    #[error("{}", printable(.text))]
    Remote {
        /// Berm's kind; `None` from a gVisor sandbox, which has only texts.
        kind: Option<Kind>,
        /// The server's text, as it came, bounded to 4 KiB.
        text: String,
    },
}

impl Error {
    /// What callers branch on.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Socket { source }
            | Self::Mkdir { source, .. }
            | Self::OpenDir { source, .. }
            | Self::Accept { source }
            | Self::Io { source, .. } => Kind::of_errno(source.raw_os_error()),
            Self::Bind {
                source: Errno::ADDRINUSE,
                ..
            } => Kind::AlreadyExists,
            Self::Bind { source, .. } | Self::Connect { source, .. } => {
                Kind::of_errno(source.raw_os_error())
            }
            Self::Path { .. } | Self::Request { .. } => Kind::InvalidArgument,
            Self::Exposed { .. } => Kind::Denied,
            Self::Register { .. } | Self::Reply { .. } => Kind::Internal,
            Self::Closed { .. } | Self::GivenUp { .. } => Kind::Unavailable,
            Self::Deadline { .. } => Kind::DeadlineExceeded,
            Self::Remote { kind, .. } => kind.unwrap_or(Kind::Internal),
        }
    }
}
