//! Kinds of failure → ttrpc codes, in one place.

use berm_sys::Kind;
use ttrpc::{Code, get_status};

use crate::error::{self, Error};

/// The code that containerd's `errdefs` reads back as the same kind, but for one: `Unimplemented`
/// makes containerd 2.3 try the whole call again with the older API. A request that cannot be met
/// here is an invalid one; only a call that does not exist is unimplemented.
pub(crate) fn of(kind: Kind) -> Code {
    match kind {
        Kind::InvalidArgument | Kind::NotSupported => Code::INVALID_ARGUMENT,
        Kind::DeadlineExceeded => Code::DEADLINE_EXCEEDED,
        Kind::NotFound => Code::NOT_FOUND,
        Kind::AlreadyExists => Code::ALREADY_EXISTS,
        Kind::Denied => Code::PERMISSION_DENIED,
        Kind::FailedPrecondition => Code::FAILED_PRECONDITION,
        Kind::Internal => Code::INTERNAL,
        Kind::Unavailable => Code::UNAVAILABLE,
    }
}

/// Characters of an error that a user sees in `kubectl describe pod`; the log and `berm explain`
/// have the whole.
const SHOWN: usize = 200;

/// The answer to a call that failed. Any other variant of ttrpc's error would become `Unknown`.
pub(crate) fn status(e: &Error) -> ttrpc::Error {
    let code = match e {
        Error::Unimplemented { .. } => Code::UNIMPLEMENTED,
        e => of(e.kind()),
    };
    ttrpc::Error::RpcStatus(get_status(code, one_line(&error::chain(e))))
}

/// The text on one line of at most [`SHOWN`] characters. What is cut is the middle: the field
/// stands at the beginning, the way out at the end.
fn one_line(text: &str) -> String {
    const GAP: &str = " … ";
    let text = text.trim().replace(|c: char| c.is_control(), " ");
    let length = text.chars().count();
    if length <= SHOWN {
        return text;
    }
    let room = SHOWN - GAP.chars().count();
    let head = room * 3 / 5;
    let beginning: String = text.chars().take(head).collect();
    let end: String = text.chars().skip(length - (room - head)).collect();
    format!("{beginning}{GAP}{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_contract() {
        let want = [
            (Kind::InvalidArgument, 3),
            (Kind::DeadlineExceeded, 4),
            (Kind::NotFound, 5),
            (Kind::AlreadyExists, 6),
            (Kind::Denied, 7),
            (Kind::FailedPrecondition, 9),
            (Kind::NotSupported, 3),
            (Kind::Internal, 13),
            (Kind::Unavailable, 14),
        ];
        for (kind, code) in want {
            assert_eq!(of(kind) as i32, code, "{kind}");
        }
    }

    #[test]
    fn a_long_text_keeps_its_beginning_and_its_end() {
        let text = format!("mounts[3].options: {}\n; use \"ro\"", "é".repeat(300));
        let shown = one_line(&text);
        assert_eq!(shown.chars().count(), SHOWN);
        assert!(shown.starts_with("mounts[3].options: é"), "{shown}");
        assert!(shown.contains("é … é"), "{shown}");
        assert!(shown.ends_with("é ; use \"ro\""), "{shown}");
        assert_eq!(one_line("a\nb\tc\n"), "a b c");
    }

    #[test]
    fn a_status_carries_the_text() {
        let ttrpc::Error::RpcStatus(status) = status(&Error::NoContainer { id: "ab".into() })
        else {
            panic!("not a status");
        };
        assert_eq!(status.message, "container ab does not exist");
        assert_eq!(status.code(), Code::NOT_FOUND);
    }
}
