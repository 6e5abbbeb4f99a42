//! A user namespace for a caller that is not root, with the ids that the host lends it.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use berm_plan::{IdMap, Ids};
use berm_sys::process::{self, flags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, getpid, waitid};

use crate::error::{Error, call, sys};
use crate::report::{Failure, Message, wait_at_gate};
use crate::spawn::{finish, fork_in};

/// Longest text of newuidmap(1) that an error repeats.
const MAX_SAID: u64 = 512;
const SIGKILL: i32 = 9;

/// Moves the caller, which has one thread, into a user namespace and a mount namespace of its
/// own, where it is root: `ids` tells which ids of the host it has there.
///
/// A child that stays outside waits until the caller is there, and runs newuidmap(1) and
/// newgidmap(1) for it: they may hand out what `/etc/subuid` and `/etc/subgid` lend the user. What
/// the child could not do comes back as the `Err` within.
///
/// After an error the caller may be in a namespace that maps no ids: it should end.
/// # Errors
/// The errno of unshare(2), where the host lets nobody but root make user namespaces; `Orphaned`
/// where the child says nothing for `deadline`.
pub fn enter_user_namespace(ids: &Ids, deadline: Duration) -> Result<Result<(), Failure>, Error> {
    let (gate, child_end) = crate::channel().map_err(call("socketpair()"))?;
    let (caller, report) = (getpid(), child_end.as_fd());
    let child = fork_in(None, None, || {
        let mapped = when_there(report, caller, ids);
        finish(report, 1, "MapIds", mapped)
    })?;
    drop(child_end);
    let entered = process::unshare(flags::NEWUSER | flags::NEWNS)
        .map_err(sys("unshare(CLONE_NEWUSER|CLONE_NEWNS)"));
    let said = match &entered {
        Ok(()) => gate
            .open()
            .and_then(|()| last_word(&gate, deadline))
            .map_err(call("recvmsg(mapper)")),
        Err(_) => Ok(None),
    };
    drop(gate);
    if said.is_err() {
        process::pidfd_send_signal(child.as_fd(), SIGKILL)
            .map_err(sys("pidfd_send_signal(SIGKILL)"))?;
    }
    waitid(WaitId::PidFd(child.as_fd()), WaitIdOptions::EXITED).map_err(call("waitid(P_PIDFD)"))?;
    entered?;
    Ok(said?.map_or(Ok(()), Err))
}

/// What the child failed at; `None`: it did what it should.
fn last_word(gate: &crate::Gate, deadline: Duration) -> Result<Option<Failure>, Errno> {
    let limit = Timespec::try_from(deadline).map_err(|_| Errno::INVAL)?;
    if poll(&mut [PollFd::new(gate, PollFlags::IN)], Some(&limit))? == 0 {
        return Err(Errno::TIMEDOUT);
    }
    Ok(gate.receive()?.and_then(|report| match report.message {
        Message::Failed(failure) => Some(failure),
        _ => None,
    }))
}

/// The child's life: outside, with the user's own credentials.
fn when_there(report: BorrowedFd<'_>, caller: Pid, ids: &Ids) -> Result<(), Error> {
    if !wait_at_gate(report) {
        return Err(Error::Orphaned);
    }
    set_user_mappings(caller, ids)
}

/// Writes the id maps of another process's user namespace by newuidmap(1) and newgidmap(1).
/// # Errors
/// [`Error::MapIds`] names the program that is missing, or the range that it refused.
pub fn set_user_mappings(of: Pid, ids: &Ids) -> Result<(), Error> {
    map("newuidmap", of, &ids.uids)?;
    map("newgidmap", of, &ids.gids)
}

fn map(program: &'static str, of: Pid, map: &IdMap) -> Result<(), Error> {
    let numbers = map.0.iter().flat_map(|e| [e.inside, e.outside, e.count]);
    let failed = |reason: String| Error::MapIds {
        program,
        map: map.to_kernel().trim_end().replace('\n', ", "),
        reason,
    };
    let child = Command::new(program)
        .arg(of.as_raw_nonzero().to_string())
        .args(numbers.map(|number| number.to_string()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::NoMapper { program });
        }
        spawned => spawned.map_err(|e| failed(e.to_string()))?,
    };
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let read = stderr.take(MAX_SAID).read_to_end(&mut said);
        read.map_err(|e| failed(e.to_string()))?;
    }
    let status = child.wait().map_err(|e| failed(e.to_string()))?;
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&said);
    Err(failed(match said.trim() {
        "" => status.to_string(),
        said => said.escape_debug().to_string(),
    }))
}
