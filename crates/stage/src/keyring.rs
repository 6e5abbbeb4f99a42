//! Session keyrings: what a process possesses without naming it, so none of the host's may stay.

use std::ffi::CString;
use std::io;

use berm_sys::keyring::{Key, findable, join_session};
use rustix::io::Errno;

use crate::error::Error;

/// Makes the session keyring of a container, which its execs find by the name.
pub(crate) fn make(name: &str) -> Result<(), Error> {
    let made = session(Some(name)).and_then(|key| key.map_or(Ok(()), findable));
    made.map_err(failed)
}

/// Enters the keyring of this name, or a new one where the container has given that up; without a
/// name a new one that nobody finds.
pub(crate) fn join(name: Option<&str>) -> Result<(), Error> {
    session(name).map(drop).map_err(failed)
}

/// `None`: this kernel has no keys, and so none to keep from anybody.
fn session(name: Option<&str>) -> io::Result<Option<Key>> {
    let name = name.map(CString::new).transpose()?;
    match join_session(name.as_deref()) {
        Err(e) if e.raw_os_error() == Some(Errno::NOSYS.raw_os_error()) => Ok(None),
        joined => joined.map(Some),
    }
}

fn failed(source: io::Error) -> Error {
    if source.raw_os_error() == Some(Errno::DQUOT.raw_os_error()) {
        return Error::KeyQuota { source };
    }
    Error::Sys {
        call: "keyctl(KEYCTL_JOIN_SESSION_KEYRING)",
        source,
    }
}
