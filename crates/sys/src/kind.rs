//! The kinds of failure that callers branch on.

use std::fmt;

/// What sort of failure an error is, in the words of containerd's `errdefs`.
///
/// Every crate's error has a `kind()`; the shim maps it to a ttrpc code in one place and the
/// control socket carries it beside the text. People read the message, programs the kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request itself is wrong: a field of a spec, a name, a number.
    InvalidArgument,
    /// The thing that was named does not exist (any more).
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The thing exists but its state forbids the call.
    FailedPrecondition,
    /// This host, this kernel or this version cannot do it.
    NotSupported,
    /// Something that should be there is not, and may come back.
    Unavailable,
    /// The call did not end within its deadline.
    DeadlineExceeded,
    /// The caller, or Berm itself, may not do it.
    Denied,
    /// A broken promise of the kernel or of Berm.
    Internal,
}

impl Kind {
    /// The name as it stands in logs and on the control socket.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "InvalidArgument",
            Self::NotFound => "NotFound",
            Self::AlreadyExists => "AlreadyExists",
            Self::FailedPrecondition => "FailedPrecondition",
            Self::NotSupported => "NotSupported",
            Self::Unavailable => "Unavailable",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::Denied => "Denied",
            Self::Internal => "Internal",
        }
    }

    /// The kind with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    const ALL: [Self; 9] = [
        Self::InvalidArgument,
        Self::NotFound,
        Self::AlreadyExists,
        Self::FailedPrecondition,
        Self::NotSupported,
        Self::Unavailable,
        Self::DeadlineExceeded,
        Self::Denied,
        Self::Internal,
    ];

    /// The kind that an errno means when the call that failed gives it no better meaning.
    pub fn of_errno(errno: i32) -> Self {
        match errno {
            libc::ENOENT | libc::ESRCH | libc::ENODEV => Self::NotFound,
            libc::EEXIST => Self::AlreadyExists,
            libc::EINVAL
            | libc::ENAMETOOLONG
            | libc::ELOOP
            | libc::ENOTDIR
            | libc::E2BIG
            | libc::EPROTOTYPE => Self::InvalidArgument,
            libc::EPERM | libc::EACCES | libc::EROFS => Self::Denied,
            libc::ENOSYS | libc::EOPNOTSUPP => Self::NotSupported,
            libc::EBUSY | libc::ENOTEMPTY => Self::FailedPrecondition,
            libc::ETIMEDOUT => Self::DeadlineExceeded,
            libc::EMFILE
            | libc::ENFILE
            | libc::ENOSPC
            | libc::ENOMEM
            | libc::EDQUOT
            | libc::EAGAIN
            | libc::ECONNREFUSED
            | libc::EPIPE => Self::Unavailable,
            _ => Self::Internal,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
