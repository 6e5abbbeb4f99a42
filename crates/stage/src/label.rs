//! What security modules call a process from its execve on.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;

use berm_plan::{Label, Lsm};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::{Errno, write};

use crate::error::Error;

/// The profile that is none: on a host without AppArmor it is in force already.
const UNCONFINED: &str = "unconfined";

/// Sets the label of the caller's next execve, by the host's `/proc`.
///
/// A host may run several modules, each with files of its own; older kernels have one for all.
pub(crate) fn set(proc: BorrowedFd<'_>, label: &Label) -> Result<(), Error> {
    let (files, text) = match label.lsm {
        Lsm::AppArmor => (
            &["self/attr/apparmor/exec", "self/attr/exec"][..],
            format!("exec {}", label.label),
        ),
        Lsm::SeLinux => (&["self/attr/exec"][..], label.label.clone()),
    };
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let open = |file: &&str| match openat(proc, *file, flags, Mode::empty()) {
        Err(Errno::NOENT) => None,
        opened => Some(opened),
    };
    let written = match files.iter().find_map(open) {
        None => Err(Errno::NOENT),
        Some(file) => file.and_then(|file| write(&file, text.as_bytes())),
    };
    match written {
        Ok(_) => Ok(()),
        // No module listens.
        Err(Errno::INVAL | Errno::NOENT)
            if label.lsm == Lsm::AppArmor && label.label == UNCONFINED =>
        {
            Ok(())
        }
        Err(errno) => Err(Error::Label {
            lsm: label.lsm,
            label: label.label.clone(),
            errno,
        }),
    }
}

/// Checks that the host has SELinux, whose file system the kernel knows only where it is enabled.
pub(crate) fn of_mounts(proc: BorrowedFd<'_>, label: &str) -> Result<(), Error> {
    let path = "filesystems";
    let known = openat(proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(io::Error::from)
        .and_then(|file| io::read_to_string(File::from(file)))
        .map_err(|source| Error::ReadProc { path, source })?;
    if known.lines().any(|line| line.ends_with("\tselinuxfs")) {
        return Ok(());
    }
    Err(Error::NoSeLinux {
        label: label.to_owned(),
    })
}
