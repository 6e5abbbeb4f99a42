//! A user namespace of which only the id map is wanted: the map of an idmapped mount.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use berm_plan::Ids;
use berm_sys::process::{self, Fork, clone3, flags};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::Error;

/// Makes one with these maps. A child that does nothing lives in it until it is opened.
pub(crate) fn make(ids: &Ids) -> Result<OwnedFd, Error> {
    let failed = |call: &'static str| move |source| Error::UserNs { call, source };
    let (child, pidfd) = clone3(flags::NEWUSER).map_err(failed("clone3(CLONE_NEWUSER)"))?;
    if matches!(child, Fork::Child) {
        // Its parent ends it; should that end first, so does this.
        let signal = Some(rustix::process::Signal::KILL);
        if rustix::process::set_parent_process_death_signal(signal).is_ok() {
            loop {
                process::pause();
            }
        }
        process::exit(1);
    }
    let gone = || std::io::Error::from(rustix::io::Errno::SRCH);
    let pidfd = pidfd
        .ok_or_else(gone)
        .map_err(failed("clone3(CLONE_PIDFD)"))?;
    let made = open(&pidfd, ids);
    let ended = process::pidfd_send_signal(pidfd.as_fd(), SIGKILL)
        .map_err(failed("pidfd_send_signal(SIGKILL)"))
        .and_then(|()| {
            waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
                .map_err(|e| failed("waitid(P_PIDFD)")(e.into()))
        });
    let made = made?;
    ended?;
    Ok(made)
}

const SIGKILL: i32 = 9;

fn open(pidfd: &OwnedFd, ids: &Ids) -> Result<OwnedFd, Error> {
    let failed = |call: &'static str| move |source| Error::UserNs { call, source };
    // The host's number: the caller may be in the PID namespace of a pod.
    let info = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let info = std::fs::read_to_string(info).map_err(failed("read(fdinfo)"))?;
    let pid = info
        .lines()
        .find_map(|line| line.strip_prefix("Pid:"))
        .and_then(|pid| pid.trim().parse::<u32>().ok())
        .ok_or_else(|| std::io::Error::from(rustix::io::Errno::SRCH))
        .map_err(failed("read(fdinfo)"))?;
    for (name, map) in [("uid_map", &ids.uids), ("gid_map", &ids.gids)] {
        std::fs::write(format!("/proc/{pid}/{name}"), map.to_kernel())
            .map_err(failed("write(id map)"))?;
    }
    let path = format!("/proc/{pid}/ns/user");
    openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| failed("open(ns/user)")(e.into()))
}
