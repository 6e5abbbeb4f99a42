//! Entering cgroups and namespaces.

use std::os::fd::{BorrowedFd, OwnedFd};

use berm_plan::{CgroupNs, Clock, TimeOffset};
use berm_sys::process::{self, flags, setns};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::{Errno, write};
use rustix::thread::{CapabilitiesSecureBits, set_capabilities_secure_bits};

use crate::error::{Error, call, sys};
use crate::report::{Message, send};

/// Moves the calling process, which has one thread, into every v1 cgroup behind `tasks`.
///
/// The kernel checks the opener's credentials (cgroups(7)), and "0" is whoever writes, so no pid
/// has to be translated.
pub(crate) fn join_cgroups(tasks: &[BorrowedFd<'_>]) -> Result<(), Error> {
    for fd in tasks {
        write(fd, b"0").map_err(call("write(tasks, \"0\")"))?;
    }
    Ok(())
}

/// Writes a file below the host's `/proc`; sysctls follow the namespaces of the writer.
pub(crate) fn write_proc(proc: BorrowedFd<'_>, path: &str, value: &str) -> Result<(), Error> {
    let file =
        openat(proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|source| {
            Error::OpenProc {
                path: path.to_owned(),
                source,
            }
        })?;
    write(&file, value.as_bytes()).map_err(|source| Error::WriteProc {
        path: path.to_owned(),
        value: value.to_owned(),
        source,
    })?;
    Ok(())
}

/// Sets the caller's score; where the host itself may not lower it, warns and goes on.
pub(crate) fn set_oom_score_adj(
    proc: BorrowedFd<'_>,
    score: i32,
    report: BorrowedFd<'_>,
) -> Result<(), Error> {
    match write_proc(proc, "self/oom_score_adj", &score.to_string()) {
        Err(Error::WriteProc {
            source: Errno::ACCESS | Errno::PERM,
            ..
        }) => warn(
            report,
            format!("process.oomScoreAdj: this host may not lower it to {score}"),
        ),
        done => done,
    }
}

pub(crate) fn warn(report: BorrowedFd<'_>, text: String) -> Result<(), Error> {
    send(report, &Message::Warning(text), None).map_err(call("sendmsg(warning)"))
}

/// Enters the pod's user and UTS namespaces and becomes its root.
pub(crate) fn join_pod(init: BorrowedFd<'_>, userns: bool) -> Result<(), Error> {
    let user = if userns { flags::NEWUSER } else { 0 };
    setns(init, user | flags::NEWUTS).map_err(sys("setns(pod, CLONE_NEWUSER|CLONE_NEWUTS)"))?;
    become_root(userns)
}

/// Root of the pod, with the capability rules that every process has: a user namespace sets them
/// back by itself, the host's does not, and a workload that gives up its user id would keep its
/// capabilities.
fn become_root(userns: bool) -> Result<(), Error> {
    if !userns {
        set_capabilities_secure_bits(CapabilitiesSecureBits::empty())
            .map_err(call("prctl(PR_SET_SECUREBITS, 0)"))?;
    }
    process::set_ids(0, 0, &[]).map_err(sys("setresuid(0)"))
}

/// Enters all namespaces of a container but its PID namespace, in which the caller was born.
pub(crate) fn join_container(
    init: BorrowedFd<'_>,
    userns: bool,
    timens: bool,
) -> Result<(), Error> {
    let all = flags::NEWNS | flags::NEWIPC | flags::NEWUTS | flags::NEWNET | flags::NEWCGROUP;
    let user = if userns { flags::NEWUSER } else { 0 };
    let time = if timens { flags::NEWTIME } else { 0 };
    setns(init, all | user | time).map_err(sys("setns(container)"))?;
    become_root(userns)
}

/// A new time namespace for the processes that this one clones, with the host's credentials: the
/// offsets can be written by nobody inside.
pub(crate) fn new_clocks(proc: BorrowedFd<'_>, offsets: &[TimeOffset]) -> Result<(), Error> {
    process::unshare(flags::NEWTIME).map_err(sys("unshare(CLONE_NEWTIME)"))?;
    let line = |o: &TimeOffset| {
        let clock = match o.clock {
            Clock::Monotonic => "monotonic",
            Clock::Boottime => "boottime",
        };
        format!("{clock} {} {}\n", o.secs, o.nanosecs)
    };
    let text: String = offsets.iter().map(line).collect();
    if text.is_empty() {
        return Ok(());
    }
    // One write: the kernel takes all or none.
    write_proc(proc, "self/timens_offsets", &text)
}

/// A new mount namespace of the pod's own, and a cgroup namespace if it is to be new; gives back
/// the mount namespace's file.
pub(crate) fn lock_mounts(proc: BorrowedFd<'_>, cgroupns: CgroupNs) -> Result<OwnedFd, Error> {
    let new = match cgroupns {
        CgroupNs::New => flags::NEWNS | flags::NEWCGROUP,
        CgroupNs::Host => flags::NEWNS,
    };
    process::unshare(new).map_err(sys("unshare(CLONE_NEWNS|CLONE_NEWCGROUP)"))?;
    openat(
        proc,
        "self/ns/mnt",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|source| Error::OpenProc {
        path: "self/ns/mnt".to_owned(),
        source,
    })
}
