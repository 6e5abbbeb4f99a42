//! Session keyrings (session-keyring(7), keyctl(2)).

use std::ffi::CStr;
use std::io;
use std::ptr;

use crate::check;

/// Permission bits of a keyring (keyctl_setperm(3)): all for who possesses it; its user may look
/// at it, link it and find it by its name.
const FOUND_BY_ITS_USER: u32 = 0x3f1b_0000;

/// Serial number of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(i32);

/// Makes the keyring of this name the session keyring of the caller. It is a new one unless the
/// caller's user namespace has one of that name which the caller may search; `None`: always a new
/// one.
/// # Errors
/// The errno of keyctl(2): `ENOSYS` on a kernel without keys; `EDQUOT` where the keys of the
/// caller's user are at their limit.
pub fn join_session(name: Option<&CStr>) -> io::Result<Key> {
    let name = name.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: the name is null or ends with a NUL byte, and lives until the call returns.
    let serial = check(unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            u64::from(libc::KEYCTL_JOIN_SESSION_KEYRING),
            name,
        )
    })?;
    Ok(Key(serial as i32))
}

/// Lets the keyring's user find it by its name, as [`join_session`] does.
/// # Errors
/// The errno of keyctl(2): `EACCES` for a keyring that the caller may not change.
pub fn findable(keyring: Key) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            u64::from(libc::KEYCTL_SETPERM),
            i64::from(keyring.0),
            u64::from(FOUND_BY_ITS_USER),
        )
    })
    .map(drop)
}
