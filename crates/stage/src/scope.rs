//! Scopes of systemd's, asked for by a child: its answer may take its time.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use berm_cgroup::{Resources, Unit};
use rustix::process::{Pid, getpid};

use crate::aside::spawn_aside;
use crate::error::{Error, call};
use crate::report::{Message, send, wait_at_gate};

/// Forks a child that has systemd start a scope around itself, tells [`Message::Created`] and
/// keeps the scope until its gate opens or its parent is gone; gives back its pidfd.
///
/// A scope ends with the last process in it: the child holds the place of those to come.
/// # Errors
/// The errno of fork(2).
pub fn spawn_scope(
    report: BorrowedFd<'_>,
    unit: &Unit,
    limits: &Resources,
    until: Instant,
) -> Result<OwnedFd, Error> {
    spawn_aside("StartScope", report, &[], || {
        let pid = Pid::as_raw_nonzero(getpid()).get().cast_unsigned();
        unit.start(pid, limits, until)?;
        send(report, &Message::Created, None).map_err(call("sendmsg(created)"))?;
        wait_at_gate(report);
        Ok(())
    })
}

/// Forks a child that has systemd end a scope, and ends; gives back its pidfd.
/// # Errors
/// The errno of fork(2).
pub fn spawn_scope_stop(
    report: BorrowedFd<'_>,
    unit: &Unit,
    until: Instant,
) -> Result<OwnedFd, Error> {
    spawn_aside("StopScope", report, &[], || Ok(unit.stop(until)?))
}
