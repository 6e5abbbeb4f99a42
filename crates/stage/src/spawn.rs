//! Forking stage children.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berm_plan::NetDevice;
use berm_sys::argv::Argv;
use berm_sys::process::{self, Fork, clone3, flags, setns};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::apply::Child;
use crate::aside::spawn_aside;
use crate::error::{Error, call, sys};
use crate::hook::HookJob;
use crate::listener::ListenerJob;
use crate::logger::LoggerJob;
use crate::report::{Failure, Gate, Message, Report, cut, send};
use crate::sandbox::SandboxJob;
use crate::{Job, Pod};

/// Where a stage child is born: the PID namespace of a pod or of a container.
#[derive(Clone, Copy, Debug)]
pub struct PidNs<'a> {
    /// That namespace.
    pub target: BorrowedFd<'a>,
    /// The caller's own, to go back to; `None`: it belongs to a user namespace in which the caller
    /// has no power, and who leaves it cannot go back.
    pub own: Option<BorrowedFd<'a>>,
    /// The caller's command line: blanked in the child, because that namespace can read it.
    pub argv: Option<Argv>,
}

/// Forks a child that walks `job`; gives back its pidfd.
///
/// The child is born in `pidns`: `CLONE_NEWPID` by a process whose own PID namespace is not the
/// one for its children is EINVAL, so the swap must come before this fork.
/// # Errors
/// The errno of setns(2) or fork(2). A caller that cannot go back to its own namespace aborts:
/// all that it forks from then on would be born in the pod.
pub fn spawn(pidns: PidNs<'_>, job: &Job<'_>) -> Result<OwnedFd, Error> {
    fork_in(Some(pidns), job.birthplace, || Child::new(job).run())
}

/// Forks the child that clones the first process of a sandbox, in `pidns` if that is not to be
/// the caller's own.
/// # Errors
/// The errno of setns(2) or fork(2).
pub fn spawn_sandbox(pidns: Option<PidNs<'_>>, job: &SandboxJob<'_>) -> Result<OwnedFd, Error> {
    fork_in(pidns, job.birthplace, || job.run())
}

/// Forks the child that is a process's logger, or becomes it.
/// # Errors
/// The errno of fork(2).
pub fn spawn_logger(job: &LoggerJob<'_>) -> Result<OwnedFd, Error> {
    fork_in(None, None, || job.run())
}

/// Forks the child that becomes a hook, inside a container's PID namespace or in the caller's.
/// # Errors
/// The errno of setns(2) or fork(2).
pub fn spawn_hook(pidns: Option<PidNs<'_>>, job: &HookJob<'_>) -> Result<OwnedFd, Error> {
    let birthplace = job.inside.as_ref().and_then(|inside| inside.birthplace);
    fork_in(pidns, birthplace, || job.run())
}

/// Forks the child that hands a filter's listener to the agent that answers.
/// # Errors
/// The errno of fork(2).
pub fn spawn_listener(job: &ListenerJob<'_>) -> Result<OwnedFd, Error> {
    fork_in(None, None, || job.run())
}

/// Forks a child that moves network devices of the caller's namespace into the pod's; `proc`: the
/// host's.
/// # Errors
/// The errno of fork(2).
pub fn spawn_net_devices(
    pod: Pod<'_>,
    proc: BorrowedFd<'_>,
    devices: &[NetDevice],
    report: BorrowedFd<'_>,
) -> Result<OwnedFd, Error> {
    spawn_aside("NetDevices", report, &[proc, pod.init], || {
        crate::netdev::give(proc, pod.init, devices, report)
    })
}

/// Forks a child that mounts `/proc` of the pod's PID namespace in the sandbox's mount namespace.
///
/// Only where a whole proc can be seen may root of the pod mount further ones; the host makes
/// it, because on a node whose own `/proc` is partly covered the pod could not.
/// # Errors
/// The errno of fork(2).
pub fn spawn_sandbox_proc(
    pidns: PidNs<'_>,
    pod: Pod<'_>,
    report: BorrowedFd<'_>,
) -> Result<OwnedFd, Error> {
    fork_in(Some(pidns), None, || {
        let made = mount_sandbox_proc(pod);
        finish(report, 1, "SandboxProc", made)
    })
}

fn mount_sandbox_proc(pod: Pod<'_>) -> Result<(), Error> {
    let own = openat(
        CWD,
        "/proc/self/ns/mnt",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|source| Error::OpenProc {
        path: "self/ns/mnt".into(),
        source,
    })?;
    let attr = berm_plan::Attr {
        nosuid: true,
        nodev: true,
        noexec: true,
        ..Default::default()
    };
    // The new instance is made in the host's mount namespace, then attached in the sandbox's.
    Ok(berm_mount::attach_proc(
        "/proc".as_ref(),
        attr,
        own.as_fd(),
        pod.mntns,
        &[],
    )?)
}

pub(crate) fn fork_in(
    pidns: Option<PidNs<'_>>,
    birthplace: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> Infallible,
) -> Result<OwnedFd, Error> {
    match pidns {
        None => fork_here(birthplace, child),
        Some(pidns) => match pidns.own {
            Some(own) => fork_there_and_back(pidns, own, birthplace, child),
            None => fork_by_another(pidns, child),
        },
    }
}

fn fork_here(
    birthplace: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> Infallible,
) -> Result<OwnedFd, Error> {
    born(process::fork_into(birthplace), None, child)
}

/// The caller itself goes to the PID namespace, forks, and goes back.
fn fork_there_and_back(
    pidns: PidNs<'_>,
    own: BorrowedFd<'_>,
    birthplace: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> Infallible,
) -> Result<OwnedFd, Error> {
    setns(pidns.target, flags::NEWPID).map_err(sys("setns(pod, CLONE_NEWPID)"))?;
    let forked = born(process::fork_into(birthplace), pidns.argv, child);
    if setns(own, flags::NEWPID).is_err() {
        std::process::abort();
    }
    forked
}

/// A child goes there, clones one that has the same parent, and ends. Waits for it: it makes two
/// calls of its own, and no process of the pod sees it.
fn fork_by_another(pidns: PidNs<'_>, child: impl FnOnce() -> Infallible) -> Result<OwnedFd, Error> {
    let (gate, end) = crate::channel().map_err(call("socketpair()"))?;
    let report = end.as_fd();
    let other = fork_here(None, || {
        let cloned = setns(pidns.target, flags::NEWPID)
            .map_err(sys("setns(pod, CLONE_NEWPID)"))
            .and_then(|()| born(clone3(flags::PARENT), pidns.argv, child))
            .and_then(|pidfd| {
                send(report, &Message::Init, Some(pidfd.as_fd())).map_err(call("sendmsg(pidfd)"))
            });
        finish(report, 1, "Fork", cloned)
    })?;
    drop(end);
    handed_over(gate, other, "child in the pod's PID namespace")
}

/// What both sides of a fork do first; gives back the child's pidfd.
fn born(
    forked: io::Result<(Fork, Option<OwnedFd>)>,
    argv: Option<Argv>,
    child: impl FnOnce() -> Infallible,
) -> Result<OwnedFd, Error> {
    let (side, pidfd) = forked.map_err(sys("clone3(CLONE_PIDFD)"))?;
    if matches!(side, Fork::Child) {
        // The parent's handlers would swallow a signal that is meant to end this process.
        process::reset_signals();
        if let Some(argv) = argv {
            argv.blank();
        }
        child();
    }
    pidfd.ok_or(Error::Missing { what: "pidfd" })
}

/// The descriptor that a child hands over before it ends by itself.
fn handed_over(gate: Gate, child: OwnedFd, what: &'static str) -> Result<OwnedFd, Error> {
    rustix::io::ioctl_fionbio(&gate, false).map_err(call("ioctl(FIONBIO)"))?;
    let report = gate.receive();
    waitid(WaitId::PidFd(child.as_fd()), WaitIdOptions::EXITED).map_err(call("waitid(P_PIDFD)"))?;
    match report.map_err(call("recvmsg()"))? {
        Some(Report { fd: Some(fd), .. }) => Ok(fd),
        _ => Err(Error::Missing { what }),
    }
}

/// Ends a child: silently after success, with a message after a failure.
pub(crate) fn finish(
    report: BorrowedFd<'_>,
    step: usize,
    name: &str,
    done: Result<(), Error>,
) -> ! {
    let Err(error) = done else { process::exit(0) };
    let failure = Failure {
        step,
        name: name.to_owned(),
        kind: error.kind().as_str().to_owned(),
        text: cut(error.chain()),
    };
    // A parent that is gone needs no message.
    let _: Result<(), Errno> = send(report, &Message::Failed(failure), None);
    process::exit(1)
}

/// Makes a mount namespace that holds a tmpfs with a few empty directories and nothing else.
///
/// Copies of it cost the same on a node with a thousand mounts. Forks a child for it and waits:
/// a few mount calls that touch no file system of others.
/// # Errors
/// The failed step.
pub fn empty_mount_namespace() -> Result<OwnedFd, Error> {
    let (gate, child_end) = crate::channel().map_err(call("socketpair()"))?;
    let report = child_end.as_fd();
    let child = fork_here(None, || {
        let made = crate::sandbox::make_empty(report);
        finish(report, 1, "EmptyMountNamespace", made)
    })?;
    drop(child_end);
    handed_over(gate, child, "empty mount namespace")
}
