//! Masked and read-only paths.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use berm_sys::mount::{self, SetAttr, attr};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, makedev, mknodat, openat};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use rustix::process::fchdir;

use crate::source::FsContext;
use crate::target::{Shape, resolve};
use crate::{Error, Owner};

/// The null device that covers masked files.
#[derive(Debug)]
pub enum Null {
    /// A node of the host's own making, idmapped for this pod.
    Make,
    /// `/dev/null` of the container, checked to be the null device: what an image put there
    /// instead must not become the mask (CVE-2025-31133).
    Container,
}

/// Hides `paths` below `root`: files behind the null device, directories behind an empty,
/// read-only tmpfs. What does not exist is skipped, as runc does.
/// # Errors
/// [`Error::OtherDevice`] when the container's `/dev/null` is something else.
pub fn mask(
    root: BorrowedFd<'_>,
    paths: &[PathBuf],
    null: &Null,
    owner: Owner<'_>,
) -> Result<(), Error> {
    let mut file = Cover::default();
    let mut dir = Cover::default();
    for path in paths {
        let Some(target) = resolve(root, path)? else {
            continue;
        };
        match Shape::of(&target, path)? {
            Shape::File => file.put(target.as_fd(), path, || null_node(root, null, owner))?,
            Shape::Dir => dir.put(target.as_fd(), path, || empty_dir(owner))?,
        }
    }
    Ok(())
}

/// A mount that hides any number of paths: it goes over the first, its clones over the rest.
///
/// In this order, because kernels before 6.15 clone no mount that is attached nowhere.
#[derive(Default)]
struct Cover(Option<OwnedFd>);

impl Cover {
    fn put(
        &mut self,
        target: BorrowedFd<'_>,
        path: &Path,
        make: impl FnOnce() -> Result<OwnedFd, Error>,
    ) -> Result<(), Error> {
        if let Some(first) = &self.0 {
            return attach_over(&clone_of(first.as_fd(), path)?, target, path);
        }
        let first = make()?;
        attach_over(&first, target, path)?;
        self.0 = Some(first);
        Ok(())
    }
}

/// The null device as a detached mount.
fn null_node(root: BorrowedFd<'_>, null: &Null, owner: Owner<'_>) -> Result<OwnedFd, Error> {
    let at = Path::new("/dev/null");
    let node = match null {
        Null::Make => {
            let tmpfs = crate::source::tmpfs(&[], attr::NOSUID | attr::NOEXEC, owner)?;
            let mode = Mode::from_raw_mode(0o666);
            owner.act(|| {
                mknodat(
                    &tmpfs,
                    "null",
                    FileType::CharacterDevice,
                    mode,
                    makedev(1, 3),
                )
                .map_err(|source| Error::MakeNode {
                    path: at.into(),
                    source,
                })
            })?;
            return out_of(&tmpfs, root, || {
                let node = open_node(tmpfs.as_fd(), Path::new("null"))?;
                clone_of(node.as_fd(), at)
            });
        }
        Null::Container => open_node(root, at)?,
    };
    clone_of(node.as_fd(), at)
}

/// Runs `clone` while the mount is attached, over the root of the tree: kernels before 6.15 clone
/// nothing out of a mount that is attached nowhere.
fn out_of(
    mount: &OwnedFd,
    root: BorrowedFd<'_>,
    clone: impl FnOnce() -> Result<OwnedFd, Error>,
) -> Result<OwnedFd, Error> {
    let top = Path::new("/");
    let failed = |source| Error::Resolve {
        path: top.into(),
        source,
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let here = openat(CWD, ".", flags, Mode::empty()).map_err(failed)?;
    attach_over(mount, root, top)?;
    let cloned = clone();
    fchdir(mount)
        .and_then(|()| unmount(".", UnmountFlags::DETACH))
        .and_then(|()| fchdir(&here))
        .map_err(failed)?;
    cloned
}

fn open_node(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Error> {
    let other = || Error::OtherDevice {
        path: path.into(),
        major: 1,
        minor: 3,
    };
    let node = resolve(root, path)?.ok_or_else(other)?;
    let stat = fstat(&node).map_err(|source| Error::Stat {
        path: path.into(),
        source,
    })?;
    let char = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if char && stat.st_rdev == makedev(1, 3) {
        Ok(node)
    } else {
        Err(other())
    }
}

fn empty_dir(owner: Owner<'_>) -> Result<OwnedFd, Error> {
    let context = FsContext::open("tmpfs")?;
    context.label(owner)?;
    context.set("size", "0")?;
    context.set("mode", "755")?;
    context.create()?;
    context.fsmount(attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC)
}

pub(crate) fn clone_of(mount: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Error> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    open_tree(mount, "", flags).map_err(|source| Error::OpenTree {
        path: path.into(),
        source,
    })
}

pub(crate) fn attach_over(
    mount: &OwnedFd,
    target: BorrowedFd<'_>,
    path: &Path,
) -> Result<(), Error> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", flags).map_err(|source| Error::MoveMount {
        path: path.into(),
        source,
    })
}

/// Makes `paths` below `root` read-only, with what is mounted below them left as it is. What
/// does not exist is skipped, as runc does.
/// # Errors
/// The errno of the mount calls.
pub fn readonly(root: BorrowedFd<'_>, paths: &[PathBuf]) -> Result<(), Error> {
    for path in paths {
        let Some(target) = resolve(root, path)? else {
            continue;
        };
        let clone = clone_of(target.as_fd(), path)?;
        let change = SetAttr {
            set: attr::RDONLY,
            ..SetAttr::default()
        };
        mount::set_attr(clone.as_fd(), false, change, None).map_err(|source| Error::SetAttr {
            path: path.clone(),
            set: attr::RDONLY,
            source,
        })?;
        attach_over(&clone, target.as_fd(), path)?;
    }
    Ok(())
}

/// Makes the mounts at `paths` below `root` read-only themselves.
/// # Errors
/// The errno of the mount calls.
pub fn readonly_mounts(root: BorrowedFd<'_>, paths: &[PathBuf]) -> Result<(), Error> {
    for path in paths {
        let gone = || Error::Resolve {
            path: path.clone(),
            source: rustix::io::Errno::NOENT,
        };
        let mount = resolve(root, path)?.ok_or_else(gone)?;
        let change = SetAttr {
            set: attr::RDONLY,
            ..SetAttr::default()
        };
        crate::source::set_attr(&mount, path, false, change)?;
    }
    Ok(())
}
