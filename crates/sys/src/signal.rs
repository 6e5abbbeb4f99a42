//! Signal masks (sigprocmask(2)).

use std::io;
use std::ptr;

use crate::check;

/// Blocks every signal that can be blocked; execve keeps the mask.
///
/// A blocked signal is kept for PID 1 of a namespace, too, which loses others whose action is
/// the default.
/// # Errors
/// None that the kernel documents for these arguments.
pub fn block_all() -> io::Result<()> {
    // SAFETY: a sigset_t is plain integers, sigfillset initialises it.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `all` is valid and ours.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: `all` is initialised; the old mask is not asked for.
    let ret = unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const all, ptr::null_mut()) };
    check(i64::from(ret)).map(drop)
}
