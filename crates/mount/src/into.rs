//! Mounts that come to a container while it runs.
//!
//! The kernel locks what is copied into a mount namespace that another user namespace owns
//! (`lock_mnt_tree` in fs/namespace.c), and nothing else: a mount that is only moved there could be
//! made writable by root of the pod. So it is staged in a namespace of the host's, that is copied
//! by a process of the pod's, and a clone of the copy, whose flags are locked, is moved.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use berm_plan::{Mount, Source};
use berm_sys::process::{flags, setns, unshare};
use rustix::fs::fstat;
use rustix::mount::{MoveMountFlags, move_mount};

use crate::bind::clone_tree;
use crate::overlay::Home;
use crate::source::{Built, source, tmpfs};
use crate::target::{Shape, open_or_make, resolve};
use crate::tree::{SCRATCH_DIR, attach, attach_scratch, own_root};
use crate::{Error, Owner, Scratch};

/// Where it is staged, on a tmpfs of its own.
const STAGED: &str = "staged";

/// Builds the mount and attaches it in a copy of the empty mount namespace, which the caller is
/// in from then on; gives back the file of the container's. The caller comes from the host's.
///
/// `container` is a pidfd of the container's first process. A tmpfs without a mode gets that of the
/// directory which it will cover.
/// # Errors
/// As [`crate::build`], without the place in a spec.
pub fn stage_mount(
    mount: &Mount,
    container: BorrowedFd<'_>,
    owner: Owner<'_>,
    scratch: Scratch<'_>,
) -> Result<OwnedFd, Error> {
    let (mntns, mode) = look_inside(container, &mount.target, scratch)?;
    let mut mount = mount.clone();
    if let Source::Tmpfs {
        options,
        mode_of_target: true,
        ..
    } = &mut mount.source
    {
        options.extend(mode.map(|mode| ("mode".to_owned(), format!("{mode:o}"))));
    }
    let built = source(&mount, owner, scratch)?;
    setns(scratch.empty, flags::NEWNS).map_err(|source| Error::EnterEmpty { source })?;
    unshare(flags::NEWNS).map_err(|source| Error::Unshare { source })?;
    let host = Owner {
        userns: None,
        label: None,
        ..owner
    };
    attach_scratch(&tmpfs(&[], 0, host)?)?;
    attach_staged(&built)?;
    Ok(mntns)
}

fn attach_staged(built: &Built) -> Result<(), Error> {
    let root = own_root()?;
    let staged = Path::new(SCRATCH_DIR).join(STAGED);
    let at = open_or_make(root.as_fd(), &staged, Shape::of(&built.root, &staged)?)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&built.root, "", &at, "", flags).map_err(|source| Error::MoveMount {
        path: staged,
        source,
    })?;
    for (name, below) in &built.below {
        attach(built.root.as_fd(), name, below)?;
    }
    Ok(())
}

/// The container's mount namespace, and the permission bits of what is at `path` of it.
///
/// With the host's credentials: root of the pod need not have access to the process.
fn look_inside(
    container: BorrowedFd<'_>,
    path: &Path,
    scratch: Scratch<'_>,
) -> Result<(OwnedFd, Option<u32>), Error> {
    let home = Home::remember(scratch)?;
    enter(container)?;
    let inside = Home::remember(scratch);
    let found = own_root().and_then(|root| resolve(root.as_fd(), path));
    home.enter()?;
    let stat = found?.map(fstat).transpose();
    let stat = stat.map_err(|source| Error::Stat {
        path: path.into(),
        source,
    })?;
    Ok((inside?.mntns(), stat.map(|stat| stat.st_mode & 0o7777)))
}

/// Moves a clone of what is staged to `target` in the mount namespace `container`, below whose root
/// the path is walked; what is missing of it is made. The caller is in that namespace then.
///
/// `lock`: the caller has entered the pod's user namespace, and the flags of the mount, and what is
/// mounted below it, shall be locked.
/// # Errors
/// [`Error::Resolve`] for a target behind a magic link; [`Error::Shape`]; the errno of the mount
/// calls.
pub fn unstage_mount(target: &Path, container: BorrowedFd<'_>, lock: bool) -> Result<(), Error> {
    if lock {
        unshare(flags::NEWNS).map_err(|source| Error::Unshare { source })?;
    }
    let mount = clone_tree(&Path::new(SCRATCH_DIR).join(STAGED), true)?;
    enter(container)?;
    attach(own_root()?.as_fd(), target, &mount)
}

/// The root of the namespace is the caller's root then.
fn enter(mntns: BorrowedFd<'_>) -> Result<(), Error> {
    setns(mntns, flags::NEWNS).map_err(|source| Error::EnterContainer { source })
}
