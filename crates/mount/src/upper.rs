//! A writable layer of the container's own over its root file system.
//!
//! It lies on a file system that nobody else has, which the overlay alone holds: with the
//! container's last process the kernel frees all of it. Files on it carry the host's numbers of
//! the pod's ids and there is no id map: the same to whoever is inside, on every kernel.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use berm_plan::{Rootfs, UpperFs};
use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Uid, XattrFlags, chmodat, chownat, fremovexattr, fsetxattr, fstat,
    mkdirat, openat,
};
use rustix::io::Errno;

use crate::device::{self, in_file};
use crate::mountinfo::Host;
use crate::overlay::{Layers, Scratch, Upper};
use crate::rootfs::{layer, layers, mounted};
use crate::source::tmpfs;
use crate::{Error, Owner};

/// Upper and work directory of the overlay, on that file system.
pub(crate) const UPPER: &str = "u";
pub(crate) const WORK: &str = "w";

/// Mounts what the layer lies on, detached; `file` holds the ext4 of [`UpperFs::File`].
/// # Errors
/// The errno of the mount calls, or of those that get a loop device.
pub fn upper(
    fs: UpperFs,
    file: Option<BorrowedFd<'_>>,
    owner: Owner<'_>,
) -> Result<OwnedFd, Error> {
    // As with the layers of a snapshot: its files have labels of their own.
    let owner = Owner {
        label: None,
        ..owner
    };
    let made = match (fs, file) {
        (UpperFs::Memory { size_bytes }, _) => {
            let size = size_bytes.map(|bytes| ("size".to_owned(), bytes.to_string()));
            let mut options = vec![("mode".to_owned(), "755".to_owned())];
            options.extend(size);
            tmpfs(&options, 0, owner)
        }
        (UpperFs::File, _) if owner.nested => Err(Error::NoLoop),
        (UpperFs::File, Some(file)) => in_file(file, owner),
        (UpperFs::File, None) => Err(Error::NoUpperFile),
    };
    made.map_err(|source| Error::Upper {
        source: Box::new(source),
    })
}

/// The root file system below that layer, which `mount` is the whole of.
pub(crate) fn over(
    rootfs: &Rootfs,
    mount: OwnedFd,
    owner: Owner<'_>,
    scratch: Scratch<'_>,
) -> Result<OwnedFd, Error> {
    let (lower, mut options) = below(rootfs, owner)?;
    if owner.nested {
        // The others are root of the host's alone (overlayfs.rst, "User xattr").
        options.push(("userxattr".to_owned(), String::new()));
        if !takes_user_xattrs(mount.as_fd())? {
            return Err(Error::NoUserXattrs);
        }
    }
    if let Some(top) = lower.first() {
        make_dirs(&mount, top, owner).map_err(|source| Error::Upper {
            source: Box::new(source),
        })?;
    }
    let layers = Layers {
        lower,
        upper: Some(Upper::whole(mount)?),
        options: &options,
    };
    mounted(&layers, owner, scratch)
}

/// Layers, topmost first, and the options of their overlay.
type Below = (Vec<OwnedFd>, Vec<(String, String)>);

/// Whether a directory takes attributes that an ordinary user may set; tmpfs does since Linux 6.6.
/// Without them an overlay cannot say that a directory is a new one, and making it is EIO.
fn takes_user_xattrs(dir: BorrowedFd<'_>) -> Result<bool, Error> {
    let failed = |source| Error::Stat {
        path: "/".into(),
        source,
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat(dir, ".", flags, Mode::empty()).map_err(failed)?;
    match fsetxattr(&dir, "user.berm", b"y", XattrFlags::empty()) {
        Ok(()) => fremovexattr(&dir, "user.berm")
            .map_err(failed)
            .map(|()| true),
        Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(false),
        Err(source) => Err(failed(source)),
    }
}

/// What the snapshotter has made; its own writable layer is one that is read.
fn below(rootfs: &Rootfs, owner: Owner<'_>) -> Result<Below, Error> {
    match rootfs {
        Rootfs::Overlay {
            lower,
            upper,
            shifted_upper,
            options,
        } => {
            let own = Owner {
                userns: owner.userns.filter(|_| !shifted_upper),
                ..owner
            };
            let top = upper.as_ref().map(|(upper, _)| layer(upper, false, own));
            let mut all: Vec<_> = top.transpose()?.into_iter().collect();
            all.extend(layers(lower, owner)?);
            Ok((all, options.clone()))
        }
        Rootfs::Bind {
            path, recursive, ..
        } => {
            if *recursive {
                nothing_below(path)?;
            }
            Ok((vec![layer(path, false, owner)?], Vec::new()))
        }
        Rootfs::Fs(fs) => Ok((vec![device::mount(fs, owner)?], Vec::new())),
    }
}

/// An overlay shows nothing that is mounted in its layers.
fn nothing_below(path: &Path) -> Result<(), Error> {
    let host = Host::read()?;
    let (top, _) = host.at(path)?;
    match host.below(&top)?.into_iter().next() {
        Some((_, at, _)) => Err(Error::MountedBelow {
            path: path.into(),
            mount: at,
        }),
        None => Ok(()),
    }
}

/// The root of the overlay is the upper directory: it looks as the root below it does.
fn make_dirs(mount: &OwnedFd, like: &OwnedFd, owner: Owner<'_>) -> Result<(), Error> {
    owner.act(|| {
        for name in [UPPER, WORK] {
            mkdirat(mount, name, Mode::from_raw_mode(0o755)).map_err(|source| Error::MakeDir {
                path: name.into(),
                source,
            })?;
        }
        Ok(())
    })?;
    let stat = fstat(like.as_fd()).map_err(|source| Error::Stat {
        path: "/".into(),
        source,
    })?;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(mount, UPPER, Some(uid), Some(gid), AtFlags::empty()).map_err(|source| {
        Error::Chown {
            path: PathBuf::from("/"),
            uid: stat.st_uid,
            gid: stat.st_gid,
            source,
        }
    })?;
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    chmodat(mount, UPPER, mode, AtFlags::empty()).map_err(|source| Error::Stat {
        path: "/".into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use rustix::fs::CWD;

    use super::*;

    #[test]
    fn a_file_system_without_user_attributes_is_told_from_one_with_them() {
        let open = |path: &Path| openat(CWD, path, OFlags::PATH, Mode::empty()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        assert!(takes_user_xattrs(open(dir.path()).as_fd()).unwrap());
        assert!(!takes_user_xattrs(open(Path::new("/proc/self")).as_fd()).unwrap());
    }
}
