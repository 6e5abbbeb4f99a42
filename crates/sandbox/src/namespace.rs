//! The namespaces of a process, by its pid.

use std::os::fd::OwnedFd;
use std::path::Path;

use berm_plan::PodNamespaces;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstat, openat, statat};

use crate::error::{Error, call};

const RDONLY: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);

/// Opens the nsfs file of an own child's namespace.
pub(crate) fn open(pid: i32, name: &str) -> Result<OwnedFd, Error> {
    openat(CWD, format!("/proc/{pid}/ns/{name}"), RDONLY, Mode::empty())
        .map_err(call("open(/proc/<pid>/ns)"))
}

fn inode(pid: i32, name: &str) -> Result<u64, Error> {
    let path = format!("/proc/{pid}/ns/{name}");
    let stat = statat(CWD, path, AtFlags::empty()).map_err(call("stat(/proc/<pid>/ns)"))?;
    Ok(stat.st_ino)
}

/// Opens a namespace that the spec names by its path.
pub(crate) fn open_foreign(path: &Path, name: &'static str) -> Result<OwnedFd, Error> {
    let fd = openat(CWD, path, RDONLY, Mode::empty()).map_err(|source| Error::File {
        call: "open",
        path: path.to_owned(),
        source,
    })?;
    foreign(fd, path, name)
}

/// Refuses the host's own namespace under any name: a pod would be no sandbox in it.
fn foreign(fd: OwnedFd, path: &Path, name: &'static str) -> Result<OwnedFd, Error> {
    let stat = fstat(&fd).map_err(call("fstat(nsfs)"))?;
    let own = statat(CWD, format!("/proc/self/ns/{name}"), AtFlags::empty())
        .map_err(call("stat(/proc/self/ns)"))?;
    if (stat.st_dev, stat.st_ino) == (own.st_dev, own.st_ino) {
        return Err(Error::HostNamespace {
            name,
            path: path.to_owned(),
        });
    }
    Ok(fd)
}

/// The inodes of all.
pub(crate) fn all_of(pid: i32) -> Result<PodNamespaces, Error> {
    Ok(PodNamespaces {
        net: inode(pid, "net")?,
        ipc: inode(pid, "ipc")?,
        uts: inode(pid, "uts")?,
        pid: inode(pid, "pid")?,
        user: inode(pid, "user")?,
    })
}
