//! A child for what may keep its caller waiting: reading what a process of a pod may hold back,
//! writing what the kernel takes its time for, asking systemd.

use std::os::fd::{BorrowedFd, OwnedFd};

use berm_sys::process;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::error::{Error, call, sys};
use crate::spawn::{finish, fork_in};

/// Forks a child that runs `act` and ends; gives back its pidfd. `report` is the child's end of
/// the channel, `keep` what else stays open, `name` how a failure is called. The caller kills it
/// at its deadline.
/// # Errors
/// The errno of fork(2).
pub fn spawn_aside(
    name: &str,
    report: BorrowedFd<'_>,
    keep: &[BorrowedFd<'_>],
    act: impl FnOnce() -> Result<(), Error>,
) -> Result<OwnedFd, Error> {
    fork_in(None, None, || {
        let done = seal(report, keep).and_then(|()| act());
        finish(report, 1, name, done)
    })
}

/// While it waits, the child must not hold what others wait for the end of.
fn seal(report: BorrowedFd<'_>, keep: &[BorrowedFd<'_>]) -> Result<(), Error> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(call("prctl(PR_SET_DUMPABLE, 0)"))?;
    let mut all = keep.to_vec();
    all.push(report);
    process::close_all_but(&all).map_err(sys("close_range()"))
}
